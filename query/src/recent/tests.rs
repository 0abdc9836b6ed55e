//! An engine that remembers against one that does not, over one store in every state.

use std::sync::Arc;

use proptest::prelude::*;
use storage::{
    Store, StoreConfig,
    model::{Labels, Matcher, TenantId, TimeRange, Timestamp},
};

use crate::{
    limits::Limits,
    promql::{Engine, EngineOptions, InstantRequest, Point, STALE_NAN_BITS, histogram::Histogram},
    rules::write::{OutSample, append},
};

const QUERIES: [&str; 8] = [
    "m",
    "rate(m{job=\"a\"}[2m])",
    "sum by (job) (m) or {__name__=~\"m|n\", i=\"1\"}",
    "absent(n{job=\"b\"})",
    "max_over_time(n[3m:30s])",
    "m offset 1m / on (job, i) group_left () n",
    "count_over_time({job=\"a\"}[4m] @ 900)",
    "topk(2, m) > 0",
];

/// One thing that happens; times in seconds.
#[derive(Clone, Debug)]
enum Step {
    Put { name: u8, job: u8, instance: u8, ts: i64, value: f64 },
    Histogram { instance: u8, ts: i64 },
    Flush,
    Compact,
    Delete { instance: u8, from: i64 },
    Follow,
    Ask { at: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![4 => -5.0..9.0f64, 1 => Just(f64::from_bits(STALE_NAN_BITS))];
    // Now and then over midnight.
    let ts = prop_oneof![6 => 600..1000i64, 1 => 86_300..86_500i64];
    prop_oneof![
        14 => (0..2u8, 0..2u8, 0..3u8, ts.clone(), value)
            .prop_map(|(name, job, instance, ts, value)| Step::Put { name, job, instance, ts, value }),
        1 => (0..3u8, ts.clone()).prop_map(|(instance, ts)| Step::Histogram { instance, ts }),
        2 => Just(Step::Flush),
        1 => Just(Step::Compact),
        1 => (0..3u8, ts.clone()).prop_map(|(instance, from)| Step::Delete { instance, from }),
        3 => Just(Step::Follow),
        5 => ts.prop_map(|at| Step::Ask { at }),
    ]
}

struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
    plain: Engine,
    remembering: Engine,
    tenant: TenantId,
}

impl Bench {
    async fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut config = StoreConfig::new(dir.path());
        config.durability = storage::Durability::None;
        config.background = false;
        let store = Store::open(config).await.unwrap();
        let plain = Engine::new(store.clone(), Limits::default(), EngineOptions::default());
        Bench { _dir: dir, store, remembering: plain.remembering(), plain, tenant: TenantId::default() }
    }

    async fn put(&self, labels: &[(&str, &str)], ts: i64, point: Point) {
        let labels = Arc::new(Labels::from_pairs(labels.iter().copied()));
        append(&self.store, &self.tenant, &[OutSample { labels, ts_ms: ts * 1000, point }]).await.unwrap();
    }

    async fn ask(&self, engine: &Engine, query: &str, at: i64) -> String {
        let request = InstantRequest { query: query.into(), time_ms: at * 1000, ..InstantRequest::default() };
        match engine.instant(&self.tenant, request).await {
            Ok(out) => format!("{:?} {:?}", out.value, out.annotations),
            Err(e) => e.to_string(),
        }
    }

    async fn compare(&self, at: i64) {
        for query in QUERIES {
            let (one, other) = (self.ask(&self.plain, query, at).await, self.ask(&self.remembering, query, at).await);
            assert_eq!(one, other, "{query} at {at}");
        }
        self.remembering.recent().unwrap().keep_noted(&self.tenant).await.unwrap();
    }

    async fn run(&self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Put { name, job, instance, ts, value } => {
                    let name = ["m", "n"][usize::from(*name)];
                    let job = ["a", "b"][usize::from(*job)];
                    let labels = [("__name__", name), ("job", job), ("i", &instance.to_string())];
                    self.put(&labels, *ts, Point::Float(*value)).await;
                }
                Step::Histogram { instance, ts } => {
                    let labels = [("__name__", "n"), ("job", "a"), ("i", &instance.to_string())];
                    self.put(&labels, *ts, Point::Histogram(Arc::new(Histogram::default()))).await;
                }
                Step::Flush => self.store.flush().await.unwrap(),
                Step::Compact => self.store.compact().await.unwrap(),
                Step::Delete { instance, from } => {
                    let start = Timestamp::from_millis(from * 1000);
                    let range = TimeRange::new(start, Timestamp::from_millis(from * 1000 + 60_000)).unwrap();
                    let of = vec![Matcher::equal("i", instance.to_string())];
                    self.store.delete_series(&self.tenant, of, range).await.unwrap();
                }
                Step::Follow => self.remembering.recent().unwrap().follow().await,
                Step::Ask { at } => self.compare(*at).await,
            }
        }
        self.compare(1000).await;
        self.compare(1000).await;
        self.compare(86_500).await;
        self.compare(86_500).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn what_is_remembered_is_what_a_scan_gives(steps in proptest::collection::vec(step(), 1..60)) {
        tokio::runtime::Runtime::new().unwrap().block_on(async { Bench::new().await.run(&steps).await });
    }
}

#[tokio::test]
async fn what_is_asked_again_is_not_read_again() {
    let bench = Bench::new().await;
    let recent = bench.remembering.recent().unwrap().clone();
    let read = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::Relaxed);
    let put = async |instance: &str, ts| {
        let labels = [("__name__", "m"), ("job", "a"), ("i", instance)];
        bench.put(&labels, ts, Point::Float(ts as f64)).await;
    };
    put("1", 600).await;
    bench.store.flush().await.unwrap();
    bench.remembering.note(&bench.tenant, "m", 600_000);
    recent.keep_noted(&bench.tenant).await.unwrap();
    for ts in 601..660 {
        // A series that is new, now and then; and a flush that comes after what it takes was seen.
        put(if ts % 10 == 0 { "2" } else { "1" }, ts).await;
        bench.compare(ts).await;
        if ts % 7 == 0 {
            bench.store.flush().await.unwrap();
        }
    }
    let reloads = read(&recent.figures().reloads);
    assert_eq!((read(&recent.figures().series), reloads), (2, 0));
    // Rows that were flushed before anyone looked are read from the parts.
    put("3", 661).await;
    bench.store.flush().await.unwrap();
    bench.compare(662).await;
    assert_eq!(read(&recent.figures().reloads), 1);
    recent.follow().await;
    assert_eq!((read(&recent.figures().series), read(&recent.figures().samples)), (3, 61));
}
