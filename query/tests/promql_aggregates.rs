//! Queries answered from aggregates against the same ones answered from samples: random series with resets, gaps, NaN and
//! stale markers, some of them not aggregated, some with native histograms, samples that came late.
//!
//! `SIGHTLINE_SEEDS=n` runs seeds 0..n, `SIGHTLINE_SEED=x` one of them.

use std::{sync::Arc, time::Duration};

use query::{
    limits::Limits,
    promql::{Engine, EngineOptions, InstantRequest, Output, Point, RangeRequest, Source, Value},
};
use storage::{
    Append, Environment, Store, StoreConfig,
    config::RetentionRule,
    downsample::{Resolution, Rule},
    model::{
        Labels, MatchOp, Matcher, MetricBatchBuilder, Table, TenantId, Timestamp,
        batch::{HistogramRow, SeriesMeta},
    },
    vfs::sim::{Rng, SimClock, SimVfs},
};

const HOUR: i64 = 3_600_000;
const BASE: i64 = 1_767_225_600_000;
const HOURS: i64 = 30;
const STALE: u64 = 0x7ff0_0000_0000_0002;

fn seeds(default: u64) -> Vec<u64> {
    if let Ok(seed) = std::env::var("SIGHTLINE_SEED") {
        return vec![seed.parse().expect("SIGHTLINE_SEED is a number")];
    }
    let n = std::env::var("SIGHTLINE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    (0..n).collect()
}

struct World {
    store: Store,
    engine: Engine,
    clock: Arc<SimClock>,
}

async fn world(retention: &[(Option<Table>, Duration)]) -> World {
    let (vfs, clock) = (SimVfs::new(7), Arc::new(SimClock::new(Timestamp::from_millis(BASE))));
    let mut config = StoreConfig::new("/store");
    config.background = false;
    config.downsample.rules.push(Rule {
        tenant: None,
        selectors: vec![vec![Matcher::new("job", MatchOp::Ne, "raw").unwrap()]],
        resolutions: Resolution::ALL.to_vec(),
        after: Duration::ZERO,
        auto: false,
    });
    for (table, keep) in retention {
        config.retention.rules.push(RetentionRule { tenant: None, table: *table, keep: *keep });
    }
    let env = Environment { vfs: Arc::new(vfs), clock: clock.clone(), lock_dir: false, ..Environment::default() };
    let store = Store::open_on(config, env).await.unwrap();
    let engine = Engine::new(store.clone(), Limits::default(), EngineOptions::default());
    World { store, engine, clock }
}

async fn append(store: &Store, mut points: MetricBatchBuilder) {
    let m = points.finish();
    let rows = vec![
        (Table::MetricSeries, m.series),
        (Table::MetricSamples, m.samples),
        (Table::MetricHistograms, m.histograms),
    ];
    let rows = rows.into_iter().filter(|(_, b)| b.num_rows() > 0).collect();
    store.append(Append { tenant: TenantId::default_tenant(), rows, sources: vec![], batch_id: None }).await.unwrap();
}

/// Series of one job each; whole numbers if `whole`.
async fn fill(world: &World, rng: &mut Rng, whole: bool) {
    let mut on_time = MetricBatchBuilder::new();
    let mut late = MetricBatchBuilder::new();
    for n in 0..10 {
        let job = if n == 9 { "raw".to_owned() } else { format!("job{n}") };
        let labels = Labels::from_pairs([("__name__", "m_total"), ("job", job.as_str())]);
        let is_counter = n % 2 == 0;
        let interval = [15_000, 60_000, 300_000, 1_700_000][rng.below(4)];
        let mut ms = BASE + 1 + rng.below(interval as usize) as i64;
        let mut value = rng.below(1000) as f64;
        // A few of them exactly where buckets end.
        if rng.chance(300) {
            ms = BASE + interval;
        }
        while ms <= BASE + HOURS * HOUR {
            let step = if whole { rng.below(500) as f64 } else { rng.below(1_000_000) as f64 / 7e4 };
            value = match (is_counter, rng.below(50)) {
                (true, 0) => step,
                (true, _) => value + step,
                (false, _) => value + step - if whole { 250.0 } else { 7.1 },
            };
            let stored = match rng.below(80) {
                0 => f64::NAN,
                1 => f64::from_bits(STALE),
                _ => value,
            };
            let to = if rng.chance(100) { &mut late } else { &mut on_time };
            let id = to.series(&labels, SeriesMeta::default());
            to.sample(id, ms, None, stored);
            ms += interval;
            if rng.chance(10) {
                ms += rng.below(4 * HOUR as usize) as i64;
            }
        }
    }
    let labels = Labels::from_pairs([("__name__", "m_total"), ("job", "native")]);
    let id = on_time.series(&labels, SeriesMeta::default());
    for i in 0..HOURS * 6 {
        let count = (i + 1) as f64;
        on_time.histogram(
            id,
            BASE + i * 600_000 + 5,
            None,
            &HistogramRow {
                count,
                sum: count,
                positive_counts: vec![count],
                is_float: true,
                ..HistogramRow::default()
            },
        );
    }
    append(&world.store, on_time).await;
    world.store.flush().await.unwrap();
    world.clock.set(Timestamp::from_millis(BASE + (HOURS - 2) * HOUR));
    world.store.downsample().await.unwrap();
    append(&world.store, late).await;
    world.store.flush().await.unwrap();
    // The last hours are not over for the store: queries read samples of them.
    assert!(world.store.downsample().await.unwrap() > 0, "late samples make hours anew");
    if rng.chance(500) {
        world.store.compact().await.unwrap();
    }
}

async fn range(world: &World, query: &str, (start_ms, end_ms, step_ms): (i64, i64, i64), source: Source) -> Output {
    let request = RangeRequest {
        query: query.into(),
        start_ms,
        end_ms,
        step_ms,
        source,
        count: true,
        ..RangeRequest::default()
    };
    world.engine.range(&TenantId::default_tenant(), request).await.unwrap_or_else(|e| panic!("{query}: {e}"))
}

async fn instant(world: &World, query: &str, time_ms: i64, source: Source) -> Output {
    let request = InstantRequest { query: query.into(), time_ms, source, count: true, ..InstantRequest::default() };
    world.engine.instant(&TenantId::default_tenant(), request).await.unwrap_or_else(|e| panic!("{query}: {e}"))
}

/// Labels, time and value of every point.
fn points(output: &Output) -> Vec<(String, i64, Point)> {
    match &output.value {
        Value::Matrix(series) => {
            let of = |s: &query::promql::SeriesPoints| {
                let labels = s.labels.to_json();
                s.points.iter().map(|(t, p)| (labels.clone(), *t, p.clone())).collect::<Vec<_>>()
            };
            series.iter().flat_map(of).collect()
        }
        Value::Vector { ts_ms, samples } => {
            let mut out: Vec<_> = samples.iter().map(|s| (s.labels.to_json(), *ts_ms, s.point.clone())).collect();
            out.sort_by(|a, b| a.0.cmp(&b.0));
            out
        }
        other => panic!("{other:?}"),
    }
}

fn assert_same(found: &Output, wanted: &Output, whole: bool, what: &str) {
    let (found, wanted) = (points(found), points(wanted));
    let keys = |p: &[(String, i64, Point)]| p.iter().map(|p| (p.0.clone(), p.1)).collect::<Vec<_>>();
    assert_eq!(keys(&found), keys(&wanted), "{what}");
    for ((labels, t, a), (.., b)) in found.iter().zip(&wanted) {
        let same = match (a, b) {
            (Point::Float(a), Point::Float(b)) => {
                // Sums of whole numbers have no order; of others some bits in 2^52 may differ for each addition.
                let bound = if whole { 0.0 } else { 1e-9 * a.abs().max(b.abs()).max(1e-3) };
                a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()) || (a - b).abs() <= bound
            }
            // What is known of a reset depends on how far back was read.
            (Point::Histogram(a), Point::Histogram(b)) => (a.count, a.sum) == (b.count, b.sum),
            _ => false,
        };
        assert!(same, "{what}: {labels} at {t}: {a:?} from aggregates, {b:?} from samples");
    }
}

const FUNCTIONS: [&str; 11] = [
    "rate",
    "increase",
    "delta",
    "avg_over_time",
    "sum_over_time",
    "count_over_time",
    "min_over_time",
    "max_over_time",
    "last_over_time",
    "first_over_time",
    "present_over_time",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_windows_are_whole_buckets_aggregates_answer_as_samples_do() {
    for seed in seeds(4) {
        let mut rng = Rng::new(seed);
        let whole = seed % 3 != 2;
        let world = world(&[]).await;
        fill(&world, &mut rng, whole).await;
        let (mut fine, mut coarse) = (0, 0);
        for _ in 0..60 {
            let bucket = [300_000, HOUR][rng.below(2)];
            let many = |rng: &mut Rng, n: usize| bucket * (1 + rng.below(n) as i64);
            let step = many(&mut rng, 4);
            let length = many(&mut rng, 5);
            let start = BASE + bucket * rng.below((HOURS * HOUR / bucket / 2) as usize) as i64;
            let end = start + rng.below((HOURS * HOUR + 2 * HOUR) as usize) as i64;
            let function = FUNCTIONS[rng.below(FUNCTIONS.len())];
            let ranged = format!("{function}(m_total[{}s])", length / 1000);
            let query = match rng.below(6) {
                0 => "m_total".to_owned(),
                1 => format!("sum by (job) ({ranged}) + 1"),
                2 => format!("{function}(m_total[{}s] offset {}s)", length / 1000, bucket / 1000),
                3 => format!("{function}({{job=~\"job.*\"}}[{}s])", length / 1000),
                _ => ranged,
            };
            let times = (start, end, step);
            let what = format!("seed {seed}: {query} from {start} to {end} by {step}");
            let found = range(&world, &query, times, Source::Auto).await;
            assert!(found.annotations.infos().iter().all(|i| !i.contains("aggregates")), "{what}");
            fine += found.stats.answered[0];
            coarse += found.stats.answered[1];
            let wanted = range(&world, &query, times, Source::Raw).await;
            assert_same(&found, &wanted, whole, &what);
            assert_eq!(found.stats.steps, wanted.stats.steps, "{what}: aggregates count for the samples they are of");
            // One time: the edges of the window are read from samples, wherever they are.
            let at = BASE + rng.below((HOURS * HOUR) as usize) as i64;
            let query = format!("{function}(m_total[{}s])", 3600 + rng.below(20 * 3600));
            let what = format!("seed {seed}: {query} at {at}");
            let found = instant(&world, &query, at, Source::Auto).await;
            coarse += found.stats.answered[1];
            let wanted = instant(&world, &query, at, Source::Raw).await;
            assert_same(&found, &wanted, whole, &what);
            assert_eq!(found.stats.steps, wanted.stats.steps, "{what}");
        }
        assert!(fine > 50 && coarse > 50, "seed {seed}: {fine} and {coarse} series were answered from aggregates");
    }
}

#[tokio::test]
async fn other_windows_are_answered_from_samples_unless_asked_otherwise() {
    let world = world(&[]).await;
    fill(&world, &mut Rng::new(3), true).await;
    let unaligned = (BASE + 61_000, BASE + 20 * HOUR, HOUR);
    let auto = range(&world, "increase(m_total[1h])", unaligned, Source::Auto).await;
    assert_eq!(auto.stats.answered, [0, 0]);
    let asked = range(&world, "increase(m_total[90m])", unaligned, Source::AtMost(HOUR)).await;
    assert_eq!(asked.stats.answered, [0, 9]);
    assert!(
        asked.annotations.infos().iter().any(|i| i.contains("answered from aggregates of 1h")),
        "{:?}",
        asked.annotations
    );
    let finer = range(&world, "increase(m_total[90m])", unaligned, Source::AtMost(HOUR - 1)).await;
    assert_eq!(finer.stats.answered, [9, 0]);
    // As of the last full hour, over whole hours, for the length that was asked for.
    let floored = (BASE, BASE + 19 * HOUR, HOUR);
    let wanted = range(&world, "increase(m_total[2h]) * 0.75", floored, Source::Raw).await;
    let moved: Vec<_> = points(&asked).into_iter().filter(|p| p.0.contains("job")).collect();
    let wanted = points(&wanted);
    let mut compared = 0;
    for (labels, t, point) in moved.iter().filter(|p| p.0.contains("\"job0\"") || p.0.contains("\"job2\"")) {
        let floor = t.div_euclid(HOUR) * HOUR;
        let other = wanted.iter().find(|w| w.0 == *labels && w.1 == floor);
        let (Some(a), Some(b)) = (point.float(), other.and_then(|w| w.2.float())) else { panic!("{labels} at {t}") };
        assert!((a - b).abs() <= 1e-9 * a.abs() || (a.is_nan() && b.is_nan()), "{labels} at {t}: {a} and {b}");
        compared += 1;
    }
    assert!(compared > 10);
    let none = range(&world, "stddev_over_time(m_total[1h])", (BASE, BASE + 20 * HOUR, HOUR), Source::Auto).await;
    assert_eq!(none.stats.answered, [0, 0]);
    let without = range(&world, "rate(m_total[1h])", (BASE, BASE + 20 * HOUR, HOUR), Source::Configured).await;
    assert_eq!(without.stats.answered, [0, 0], "not asked for");
}

#[tokio::test]
async fn where_retention_has_taken_samples_aggregates_answer_unasked() {
    // Longer than what is filled in, so that all of it is aggregated first.
    let keep = Duration::from_secs(40 * 3600);
    let world = world(&[(Some(Table::MetricSamples), keep), (Some(Table::MetricSeries), keep)]).await;
    fill(&world, &mut Rng::new(5), true).await;
    let times = (BASE + 2 * HOUR, BASE + HOURS * HOUR, HOUR);
    let queries =
        ["m_total", "increase(m_total[1h])", "sum(max_over_time(m_total{job!=\"raw\",job!=\"native\"}[2h]))"];
    let mut before = Vec::new();
    for query in queries {
        before.push(range(&world, query, times, Source::Raw).await);
    }
    world.clock.set(Timestamp::from_millis(BASE + (HOURS + 28) * HOUR));
    world.store.expire().await.unwrap();
    for (query, before) in queries.iter().zip(&before) {
        let now = range(&world, query, times, Source::Configured).await;
        assert!(now.stats.answered[0] > 0, "the finer aggregates reach as far");
        let kept = |o: &Output| {
            points(o).into_iter().filter(|p| !p.0.contains("raw") && !p.0.contains("native")).collect::<Vec<_>>()
        };
        let (found, wanted) = (kept(&now), kept(before));
        assert_eq!(found.len(), wanted.len(), "{query}");
        for (a, b) in found.iter().zip(&wanted) {
            let same = a.2.float().zip(b.2.float()).is_some_and(|(a, b)| a == b || (a.is_nan() && b.is_nan()));
            assert!(a.0 == b.0 && a.1 == b.1 && same, "{query}: {a:?} now, {b:?} before");
        }
        let raw = range(&world, query, times, Source::Raw).await;
        assert!(points(&raw).len() < wanted.len(), "{query}: samples have gone");
    }
    let told = range(&world, "stddev_over_time(m_total[1h])", times, Source::Configured).await;
    assert!(told.annotations.infos().iter().any(|i| i.contains("needs samples")), "{:?}", told.annotations);
}
