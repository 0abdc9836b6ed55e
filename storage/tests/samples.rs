//! What [`Store::samples`] gives is what a scan gives, whatever the samples are like and wherever they rest.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::AsArray,
    datatypes::{Float64Type, Int64Type},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use storage::{
    Append, SampleRequest, ScanRequest, Selector, Store, StoreConfig,
    model::{
        Labels, Table, TenantId, TimeRange, Timestamp,
        batch::{MetricBatchBuilder, SeriesMeta},
    },
};

/// 2023-11-14, 22:13:20: two days, several hours.
const BASE_MS: i64 = 1_700_000_000_000;
const SERIES: usize = 40;

type Samples = BTreeMap<i64, Vec<(i64, u64)>>;

fn config(dir: &std::path::Path) -> StoreConfig {
    StoreConfig { background: false, ..StoreConfig::new(dir) }
}

/// A value of a series: each has its own kind.
fn value(series: usize, i: i64, rng: &mut StdRng) -> f64 {
    match series % 6 {
        0 => (i * 7) as f64,
        1 => i as f64 / 8.0,
        2 => (i as f64).sqrt() * 1e-9,
        3 if rng.random_range(0..20) == 0 => f64::from_bits(0x7ff0_0000_0000_0002),
        3 => -(i as f64) * 0.01,
        4 if i % 5000 > 2500 => std::f64::consts::PI * i as f64,
        4 => i as f64,
        _ => *[0.0, -0.0, f64::NAN, f64::INFINITY, 1e300, 3.0].get(rng.random_range(0..6)).unwrap_or(&0.0),
    }
}

async fn append(store: &Store, first: i64, count: i64, rng: &mut StdRng) {
    let mut b = MetricBatchBuilder::new();
    for series in 0..SERIES {
        if rng.random_range(0..10) == 0 {
            continue;
        }
        let labels = Labels::from_pairs([("__name__", "m"), ("n", &series.to_string())]);
        let id = b.series(&labels, SeriesMeta::default());
        for i in first..first + count {
            b.sample(id, BASE_MS + i * 1000 + (series as i64), None, value(series, i, rng));
        }
    }
    let m = b.finish();
    let rows = vec![(Table::MetricSeries, m.series), (Table::MetricSamples, m.samples)];
    store.append(Append { tenant: TenantId::default(), rows, sources: vec![], batch_id: None }).await.unwrap();
}

/// Samples by time, those of one time in commit order, by a scan.
async fn scanned(store: &Store, ids: &[i64], range: TimeRange) -> Samples {
    let request = ScanRequest::new(TenantId::default(), Table::MetricSamples, range)
        .selector(Selector::Ids(ids.into()))
        .columns(&["series_id", "ts_ms", "value"]);
    let mut out = Samples::new();
    for b in store.scan(request).await.unwrap().collect().await.unwrap() {
        let (ids, ts) = (b.column(0).as_primitive::<Int64Type>(), b.column(1).as_primitive::<Int64Type>());
        let values = b.column(2).as_primitive::<Float64Type>();
        for i in 0..b.num_rows() {
            out.entry(ids.value(i)).or_default().push((ts.value(i), values.value(i).to_bits()));
        }
    }
    out.values_mut().for_each(|samples| samples.sort_by_key(|(ts, _)| *ts));
    out
}

/// The same by shares, read on two threads from both ends.
async fn shared(store: &Store, ids: &[i64], range: TimeRange, share_rows: usize) -> (Samples, usize) {
    let ids: Arc<[i64]> = ids.into();
    let request = SampleRequest { tenant: TenantId::default(), ids: ids.clone(), range, share_rows };
    let scan = store.samples(request).await.unwrap();
    let read = |shares: Vec<usize>| -> Vec<(i64, Vec<(i64, u64)>)> {
        let all = shares.into_iter().flat_map(|share| {
            let read = scan.read(share).unwrap();
            assert_eq!(read.len(), scan.series_of(share).len());
            read
        });
        let pairs = |s: storage::StoredSamples| {
            assert_eq!(s.ts.len(), s.values.len());
            (ids[s.series], s.ts.iter().zip(&s.values).map(|(t, v)| (*t, v.to_bits())).collect())
        };
        all.map(pairs).collect()
    };
    let middle = scan.shares() / 2;
    let (front, back) = std::thread::scope(|scope| {
        let back = scope.spawn(|| read((middle..scan.shares()).rev().collect()));
        (read((0..middle).collect()), back.join().unwrap())
    });
    let mut out = Samples::new();
    for (id, samples) in front.into_iter().chain(back) {
        let before = out.insert(id, samples);
        assert!(before.is_none(), "series {id} is in one share");
    }
    assert_eq!(out.len(), ids.len());
    out.retain(|_, samples| !samples.is_empty());
    out.values_mut().for_each(|samples| samples.sort_by_key(|(ts, _)| *ts));
    (out, scan.shares())
}

async fn compare(store: &Store, rng: &mut StdRng, what: &str) {
    let all: Vec<i64> =
        store.series(&TenantId::default(), &[], TimeRange::ALL).await.unwrap().iter().map(|s| s.id).collect();
    for round in 0..6 {
        let ids: Vec<i64> = match round {
            0 => all.clone(),
            1 => vec![all[rng.random_range(0..all.len())], 12_345],
            _ => all.iter().copied().filter(|_| rng.random()).collect(),
        };
        let range = if round == 0 {
            TimeRange::ALL
        } else {
            let start = BASE_MS + rng.random_range(-100..20_000) * 1000;
            let end = start + rng.random_range(1..9_000_000);
            TimeRange::new(Timestamp(start * 1_000_000 + rng.random_range(0..2)), Timestamp::from_millis(end))
                .unwrap()
        };
        let share_rows = [1, 3_000, 1 << 17][rng.random_range(0..3)];
        let (found, shares) = shared(store, &ids, range, share_rows).await;
        assert!(share_rows > 1 || shares >= found.len(), "{what}: {shares}");
        assert!(found == scanned(store, &ids, range).await, "{what}, round {round}, shares of {share_rows}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_by_shares_are_those_of_a_scan() {
    let dir = tempfile::tempdir().unwrap();
    let rng = &mut StdRng::seed_from_u64(7);
    let mut store = Store::open(config(dir.path())).await.unwrap();
    // More rows than a row group has, in two days.
    for round in 0..4 {
        append(&store, round * 2_500, 2_500, rng).await;
        compare(&store, rng, &format!("head {round}")).await;
        if round % 2 == 1 {
            store.flush().await.unwrap();
            compare(&store, rng, &format!("flushed {round}")).await;
        }
    }
    // Late and again.
    append(&store, 1_000, 700, rng).await;
    store.flush().await.unwrap();
    append(&store, 1_500, 700, rng).await;
    compare(&store, rng, "with late samples").await;
    store.compact().await.unwrap();
    compare(&store, rng, "merged").await;
    store.abandon().await.unwrap();
    store = Store::open(config(dir.path())).await.unwrap();
    compare(&store, rng, "from the log").await;
    let whole =
        TimeRange::new(Timestamp::from_millis(BASE_MS), Timestamp::from_millis(BASE_MS + 20_000_000)).unwrap();
    let cuts = store.sample_cuts(&TenantId::default(), whole, 1);
    assert!(!cuts.is_empty() && cuts.is_sorted(), "{cuts:?}");
    assert!(store.sample_cuts(&TenantId::default(), whole, 100).is_empty());
}
