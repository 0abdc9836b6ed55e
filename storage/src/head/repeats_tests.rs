//! Points that contradict others, through a store.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    Append, Appended, ScanRequest, Store, StoreConfig,
    model::{
        Matcher, MetricBatch, TenantId, TimeRange,
        batch::{HistogramRow, MetricBatchBuilder, SeriesMeta},
    },
};

const BASE_MS: i64 = 1_700_000_000_000;
const STALE: u64 = 0x7ff0_0000_0000_0002;

async fn open(dir: &std::path::Path) -> Store {
    Store::open(StoreConfig { background: false, ..StoreConfig::new(dir) }).await.unwrap()
}

#[derive(Clone, Copy)]
enum Value {
    Float(f64),
    /// A histogram with these counts.
    Counts(f64, f64),
}

/// Series, time after the base and value of each point, in their order.
fn points(of: &[(&str, i64, Value)]) -> MetricBatch {
    let mut b = MetricBatchBuilder::new();
    for (name, ms, value) in of {
        let id = b.series(&Labels::from_pairs([("__name__", *name), ("job", "a")]), SeriesMeta::default());
        match value {
            Value::Float(v) => b.sample(id, BASE_MS + ms, None, *v),
            Value::Counts(low, high) => {
                let row =
                    HistogramRow { count: low + high, positive_counts: vec![*low, *high], ..HistogramRow::default() };
                b.histogram(id, BASE_MS + ms, None, &row);
            }
        }
    }
    b.finish()
}

async fn append(store: &Store, of: &[(&str, i64, Value)], repeats: Repeats) -> Appended {
    let m = points(of);
    let rows = vec![
        (Table::MetricSeries, m.series),
        (Table::MetricSamples, m.samples),
        (Table::MetricHistograms, m.histograms),
        (Table::MetricExemplars, m.exemplars),
    ];
    let append = Append { tenant: TenantId::default(), rows, sources: vec![], batch_id: None };
    store.append_with(append, repeats).await.unwrap()
}

/// How many samples and histograms are refused, and what is told.
async fn refused(store: &Store, of: &[(&str, i64, Value)]) -> (usize, usize, String) {
    let told = append(store, of, Repeats::Refused).await.refused.unwrap_or_default();
    assert_eq!(told.repeated, told.rows());
    (told.samples, told.histograms, if told.rows() > 0 { told.to_string() } else { String::new() })
}

/// Samples by series and time; of one time the last.
async fn stored(store: &Store) -> BTreeMap<(i64, i64), u64> {
    let request = ScanRequest::new(TenantId::default(), Table::MetricSamples, TimeRange::ALL);
    let mut out = BTreeMap::new();
    for b in store.scan(request).await.unwrap().collect().await.unwrap() {
        let ids = b.column_by_name("series_id").unwrap().as_primitive::<Int64Type>();
        let ts = b.column_by_name("ts_ms").unwrap().as_primitive::<Int64Type>();
        let values = b.column_by_name("value").unwrap().as_primitive::<Float64Type>();
        for i in 0..b.num_rows() {
            out.insert((ids.value(i), ts.value(i) - BASE_MS), values.value(i).to_bits());
        }
    }
    out
}

use Value::{Counts, Float};

#[tokio::test]
async fn another_value_at_the_newest_time_is_refused_and_the_same_or_an_older_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let none = (0, 0, String::new());
    assert_eq!(refused(&store, &[("m", 0, Float(1.0)), ("m", 10, Float(2.0))]).await, none);
    assert_eq!(refused(&store, &[("m", 0, Float(1.0)), ("m", 10, Float(2.0))]).await, none, "all of it again");
    let (samples, _, told) = refused(&store, &[("m", 10, Float(3.0)), ("n", 10, Float(3.0))]).await;
    assert_eq!(samples, 1);
    assert_eq!(
        told,
        format!(
            "duplicate sample for timestamp {}: series {{__name__=\"m\", job=\"a\"}} has another value at that time, \
             which stays",
            BASE_MS + 10
        )
    );
    // Behind the newest nothing is compared.
    assert_eq!(refused(&store, &[("m", 0, Float(5.0)), ("m", 5, Float(6.0))]).await, none);
    // The newest among others of the same request.
    assert_eq!(refused(&store, &[("m", 5, Float(6.0)), ("m", 10, Float(7.0)), ("m", 20, Float(8.0))]).await.0, 1);
    let values: Vec<u64> = stored(&store).await.into_values().collect();
    let mut wanted = [5.0, 6.0, 2.0, 8.0, 3.0].map(f64::to_bits).to_vec();
    let id = |name: &str| Labels::from_pairs([("__name__", name), ("job", "a")]).id();
    if id("n") < id("m") {
        wanted.rotate_right(1);
    }
    assert_eq!(values, wanted);
}

#[tokio::test]
async fn values_are_compared_by_their_bits_and_histograms_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let (nan, stale) = (f64::NAN, f64::from_bits(STALE));
    for (i, (first, second, out)) in [
        (Float(nan), Float(nan), (0, 0)),
        (Float(nan), Float(stale), (1, 0)),
        (Float(stale), Float(stale), (0, 0)),
        (Float(1.0), Float(stale), (1, 0)),
        (Float(0.0), Float(-0.0), (1, 0)),
        (Counts(1.0, 2.0), Counts(1.0, 2.0), (0, 0)),
        (Counts(1.0, 2.0), Counts(2.0, 1.0), (0, 1)),
        (Counts(1.0, 2.0), Float(3.0), (1, 0)),
        (Float(3.0), Counts(1.0, 2.0), (0, 1)),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("m{i}");
        assert_eq!(refused(&store, &[(&name, 0, first)]).await.2, "");
        let (samples, histograms, _) = refused(&store, &[(&name, 0, second)]).await;
        assert_eq!((samples, histograms), out, "case {i}");
    }
    // In one append: floats come ahead of histograms.
    assert_eq!(refused(&store, &[("both", 0, Counts(1.0, 1.0)), ("both", 0, Float(1.0))]).await.1, 1);
    let (samples, _, told) =
        refused(&store, &[("new", 0, Float(1.0)), ("other", 0, Float(1.0)), ("new", 0, Float(2.0))]).await;
    assert_eq!(samples, 1);
    assert!(told.contains("__name__=\"new\""), "{told}");
}

#[tokio::test]
async fn who_does_not_ask_replaces_and_what_replaced_is_then_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for value in [1.0, 2.0] {
        assert!(append(&store, &[("m", 0, Float(value))], Repeats::LaterWins).await.refused.is_none());
    }
    assert_eq!(refused(&store, &[("m", 0, Float(1.0))]).await.0, 1);
    assert_eq!(refused(&store, &[("m", 0, Float(2.0))]).await.0, 0);
}

#[tokio::test]
async fn the_newest_point_is_known_after_a_crash_and_forgotten_with_a_delete() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let all = [("m", 0, Float(1.0)), ("h", 0, Counts(1.0, 1.0))];
    append(&store, &all, Repeats::Refused).await;
    store.abandon().await.unwrap();
    drop(store);
    let store = open(dir.path()).await;
    // What is in the log is looked at when it is flushed, which in the background is at once.
    store.flush().await.unwrap();
    let other = [("m", 0, Float(2.0)), ("h", 0, Counts(1.0, 2.0))];
    let (samples, histograms, _) = refused(&store, &other).await;
    assert_eq!((samples, histograms), (1, 1));
    store.delete_series(&TenantId::default(), vec![Matcher::equal("job", "a")], TimeRange::ALL).await.unwrap();
    assert_eq!(refused(&store, &other).await.2, "");
}

#[tokio::test]
async fn any_mix_of_appends_refuses_what_a_plain_model_refuses() {
    for seed in 0..6 {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        let names: Vec<String> = (0..12).map(|i| format!("m{i}")).collect();
        let mut newest: BTreeMap<usize, (i64, u64)> = BTreeMap::new();
        let mut model: BTreeMap<(i64, i64), u64> = BTreeMap::new();
        for round in 0..60i64 {
            let strict = rng.random_range(0..8) > 0;
            let mut of = Vec::new();
            for _ in 0..rng.random_range(1..40) {
                let late = if rng.random_range(0..4) == 0 { rng.random_range(0..4) } else { 0 };
                // Some on the day before.
                let ms = (round / 4 - late) * 1000 - if rng.random_range(0..9) == 0 { 86_400_000 } else { 0 };
                of.push((rng.random_range(0..names.len()), ms, rng.random_range(0..3)));
            }
            if rng.random_range(0..2) == 0 {
                of.sort_unstable();
            }
            let mut out = 0;
            for (series, ms, value) in &of {
                let bits = (*value as f64).to_bits();
                match newest.get(series) {
                    Some((at, known)) if strict && at == ms && *known != bits => {
                        out += 1;
                        continue;
                    }
                    Some((at, _)) if at > ms => {}
                    _ => {
                        newest.insert(*series, (*ms, bits));
                    }
                }
                let labels = Labels::from_pairs([("__name__", names[*series].as_str()), ("job", "a")]);
                model.insert((labels.id(), *ms), bits);
            }
            let of: Vec<(&str, i64, Value)> =
                of.iter().map(|(s, ms, v)| (names[*s].as_str(), *ms, Float(f64::from(*v)))).collect();
            let repeats = if strict { Repeats::Refused } else { Repeats::LaterWins };
            let told = append(&store, &of, repeats).await.refused.unwrap_or_default();
            assert_eq!((told.repeated, told.samples), (out, out), "seed {seed}, round {round}");
            if rng.random_range(0..10) == 0 {
                store.flush().await.unwrap();
            }
        }
        store.flush().await.unwrap();
        store.compact().await.unwrap();
        assert_eq!(stored(&store).await, model, "seed {seed}");
    }
}
