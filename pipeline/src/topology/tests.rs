//! The pipeline as a whole, against a model of what a store and its sources hold.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arrow::array::AsArray;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use storage::{
    Append, AppendError, Appended, SourcePosition,
    model::{LogBatchBuilder, LogRow, Table, TenantId},
};
use tokio::sync::Semaphore;

use super::*;
use crate::{
    component::{
        Batch, Data, DeliveryError, Positions, Signals, Sink, SinkContext, SinkError, Source, SourceContext,
        SourceError, Transform, TransformError,
    },
    config::PipelineConfig,
    metrics::{ComponentKind, Counters, DropReason, Fault},
    sink::store::Destination,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// Rows `key:from` to `key:to`, the position after them.
fn batch(key: &str, from: u64, to: u64) -> Batch {
    let mut rows = LogBatchBuilder::new();
    for i in from..to {
        rows.push(&LogRow { ts: i as i64, stream_labels: "{}", body: &format!("{key}:{i}"), ..LogRow::default() });
    }
    let mut b = Batch::new(TenantId::default(), Data::Logs(rows.finish()));
    b.sources = vec![SourcePosition { key: key.into(), position: to }];
    b
}

fn bodies(data: &Data) -> Vec<String> {
    let Data::Logs(rows) = data else { return Vec::new() };
    rows.column_by_name("body").unwrap().as_string::<i32>().iter().flatten().map(str::to_owned).collect()
}

/// A store that fails at random, and checks at every append that no position is ahead of its rows.
struct Model {
    rng: Mutex<StdRng>,
    fail: f64,
    refuse: f64,
    rows: Mutex<HashMap<String, usize>>,
    positions: Mutex<BTreeMap<String, u64>>,
    /// Rows that need not be there: refused for good, filtered, or kept by another sink.
    excused: Mutex<Vec<String>>,
    also: Option<Arc<Recorder>>,
    appends: AtomicUsize,
    gate: Semaphore,
    violations: Mutex<Vec<String>>,
}

impl Model {
    fn new(seed: u64, fail: f64, refuse: f64) -> Self {
        Model {
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            fail,
            refuse,
            rows: Mutex::default(),
            positions: Mutex::default(),
            excused: Mutex::default(),
            also: None,
            appends: AtomicUsize::new(0),
            gate: Semaphore::new(usize::MAX >> 4),
            violations: Mutex::default(),
        }
    }

    fn stuck() -> Self {
        Model { gate: Semaphore::new(0), ..Model::new(0, 0.0, 0.0) }
    }

    fn position(&self, key: &str) -> Option<u64> {
        self.positions.lock().get(key).copied()
    }

    fn total(&self) -> usize {
        self.rows.lock().values().sum()
    }
}

#[async_trait::async_trait]
impl Destination for Model {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        self.gate.acquire().await.unwrap().forget();
        self.appends.fetch_add(1, Ordering::Relaxed);
        let (pause, dice) = {
            let mut rng = self.rng.lock();
            (rng.random_range(0..4), rng.random::<f64>())
        };
        for _ in 0..pause {
            tokio::task::yield_now().await;
        }
        let found: Vec<String> = append
            .rows
            .iter()
            .flat_map(|(t, b)| {
                assert_eq!(*t, Table::Logs);
                bodies(&Data::Logs(b.clone()))
            })
            .collect();
        if dice < self.fail {
            return Err(AppendError::Overloaded { retry_after: Duration::from_millis(1) });
        }
        if dice < self.fail + self.refuse && append.rows.len() == 1 {
            self.excused.lock().extend(found);
            return Err(AppendError::Invalid("dice".into()));
        }
        let count = found.len();
        let mut rows = self.rows.lock();
        for f in found {
            *rows.entry(f).or_default() += 1;
        }
        let excused = self.excused.lock();
        for s in append.sources {
            let mut positions = self.positions.lock();
            let before = positions.insert(s.key.clone(), s.position).unwrap_or(0);
            for i in before..s.position {
                let row = format!("{}:{i}", s.key);
                let elsewhere = self.also.as_ref().is_none_or(|r| r.rows.lock().contains(&row));
                if !(rows.contains_key(&row) && elsewhere || excused.contains(&row)) {
                    self.violations.lock().push(format!("position {} of {} without {row}", s.position, s.key));
                }
            }
            if s.position <= before {
                self.violations.lock().push(format!("position of {} went back from {before}", s.key));
            }
        }
        Ok(Appended { rows: count, ..Appended::default() })
    }
}

struct NoPositions;

impl Positions for NoPositions {
    fn position(&self, _: &TenantId, _: &str) -> Option<u64> {
        None
    }
}

/// Sends `batches` batches with some in flight, then waits for all fates.
struct Counting {
    key: String,
    batches: u64,
    rows: u64,
    refused: Arc<AtomicU64>,
}

#[async_trait::async_trait]
impl Source for Counting {
    async fn run(self: Box<Self>, ctx: SourceContext) -> Result<(), SourceError> {
        let mut fates = Vec::new();
        for i in 0..self.batches {
            let b = batch(&self.key, i * self.rows, (i + 1) * self.rows);
            let Ok(d) = ctx.out.send(b).await else { break };
            fates.push(d);
        }
        for f in fates {
            match f.wait().await {
                Ok(()) => {}
                Err(DeliveryError::Rejected(_)) => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
                Err(e) => return Err(SourceError { name: ctx.name, reason: e.to_string() }),
            }
        }
        Ok(())
    }
}

fn counting(key: &str, batches: u64, rows: u64) -> Box<Counting> {
    Box::new(Counting { key: key.into(), batches, rows, refused: Arc::default() })
}

/// Remembers rows in the order they came.
#[derive(Default)]
struct Recorder {
    rows: Mutex<Vec<String>>,
    refuse_row: Option<String>,
    broken: AtomicBool,
}

struct RecorderSink(Arc<Recorder>);

#[async_trait::async_trait]
impl Sink for RecorderSink {
    async fn run(self: Box<Self>, mut ctx: SinkContext) -> Result<(), SinkError> {
        while let Some(e) = ctx.intake.next().await {
            assert!(!self.0.broken.load(Ordering::Relaxed), "told to break");
            let rows = bodies(&e.batch.data);
            let fate = match &self.0.refuse_row {
                Some(bad) if rows.contains(bad) => Err(DeliveryError::Rejected("bad row".into())),
                _ => {
                    self.0.rows.lock().extend(rows);
                    Ok(())
                }
            };
            tokio::task::yield_now().await;
            SinkContext::answer(&ctx.counters, e, fate);
        }
        Ok(())
    }
}

/// Keeps the rows whose number the predicate likes; panics on `boom`.
struct Keep(fn(u64) -> bool);

impl Transform for Keep {
    fn signals(&self) -> Signals {
        Signals::LOGS
    }

    fn apply(&self, data: Data, counters: &Counters) -> Result<Data, TransformError> {
        let rows = bodies(&data);
        assert!(!rows.iter().any(|r| r == "boom:0"), "boom");
        let Data::Logs(b) = data else { return Ok(data) };
        let mask: Vec<bool> =
            rows.iter().map(|r| self.0(r.split(':').next_back().unwrap().parse().unwrap())).collect();
        let kept = arrow::compute::filter_record_batch(&b, &mask.into())?;
        counters.dropped(DropReason::Filtered, (b.num_rows() - kept.num_rows()) as u64);
        Ok(Data::Logs(kept))
    }
}

fn builder() -> PipelineBuilder {
    PipelineBuilder::new(PipelineConfig::default())
}

async fn run_to_end(b: PipelineBuilder, model: &Arc<Model>) -> Report {
    let mut running = b.build_on(model.clone(), Arc::new(NoPositions)).unwrap();
    tokio::time::timeout(DEADLINE, running.sources_done()).await.expect("sources end");
    let report = running.stop(DEADLINE).await;
    assert!(report.late.is_empty(), "{:?}", report.late);
    assert_eq!(*model.violations.lock(), Vec::<String>::new());
    for c in report.components.iter().filter(|c| c.kind == ComponentKind::Source) {
        assert_eq!(c.rows_in_flight(), 0, "{c:?}");
        assert_eq!(c.rows_out, c.rows_delivered + c.dropped_total(), "{c:?}");
    }
    report
}

fn find<'a>(report: &'a Report, name: &str) -> &'a crate::metrics::ComponentSnapshot {
    report.components.iter().find(|c| c.name == name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_arrives_once_and_no_position_is_ahead_of_its_rows_under_random_failures() {
    for seed in 0..20 {
        println!("seed {seed}");
        let model = Arc::new(Model::new(seed, 0.1, 0.0));
        let report =
            run_to_end(builder().source("a", counting("a", 60, 5)).source("b", counting("b", 60, 3)), &model).await;
        assert_eq!(model.position("a"), Some(300));
        assert_eq!(model.position("b"), Some(180));
        assert!(model.rows.lock().values().all(|n| *n == 1));
        assert_eq!(model.total(), 480);
        assert_eq!(find(&report, "store").rows_delivered, 480);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_the_store_refuses_for_good_is_counted_and_does_not_hold_back_the_rest() {
    for seed in 0..10 {
        println!("seed {seed}");
        let model = Arc::new(Model::new(seed, 0.05, 0.2));
        let source = counting("a", 80, 2);
        let refused = source.refused.clone();
        let report = run_to_end(builder().source("a", source), &model).await;
        let refused = refused.load(Ordering::Relaxed) * 2;
        assert_eq!(find(&report, "a").dropped(DropReason::Refused), refused);
        assert_eq!(model.total() as u64 + refused, 160);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_drops_whole_batches_still_moves_the_position() {
    let model = Arc::new(Model::new(1, 0.1, 0.0));
    model.excused.lock().extend((0..100).filter(|i| i % 100 < 90).map(|i| format!("a:{i}")));
    let b = builder().source("a", counting("a", 10, 10)).transform("keep", &["a"], Arc::new(Keep(|i| i >= 90)));
    let report = run_to_end(b, &model).await;
    assert_eq!(model.position("a"), Some(100));
    assert_eq!(model.total(), 10);
    let keep = find(&report, "keep");
    assert_eq!((keep.rows_in, keep.rows_out, keep.dropped(DropReason::Filtered)), (100, 10, 90));
    assert_eq!(find(&report, "a").rows_delivered, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_fork_a_position_waits_for_all_sinks() {
    for seed in 0..10 {
        println!("seed {seed}");
        let also = Arc::new(Recorder::default());
        let model = Arc::new(Model { also: Some(also.clone()), ..Model::new(seed, 0.1, 0.0) });
        let b =
            builder().source("a", counting("a", 50, 3)).sink("also", &["a"], Box::new(RecorderSink(also.clone())));
        let b = b.store_sink("store", &["a"]);
        run_to_end(b, &model).await;
        assert_eq!(model.position("a"), Some(150));
        let expected: Vec<String> = (0..150).map(|i| format!("a:{i}")).collect();
        assert_eq!(*also.rows.lock(), expected, "in the order of the source");
        assert_eq!(model.total(), 150);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_branches_into_one_store_partition_the_rows_and_move_the_position_last() {
    let model = Arc::new(Model::new(3, 0.2, 0.0));
    let b = builder()
        .source("a", counting("a", 40, 5))
        .transform("even", &["a"], Arc::new(Keep(|i| i % 2 == 0)))
        .transform("odd", &["a"], Arc::new(Keep(|i| i % 2 == 1)));
    run_to_end(b, &model).await;
    assert_eq!(model.position("a"), Some(200));
    assert_eq!(model.total(), 200);
    assert!(model.rows.lock().values().all(|n| *n == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_gives_each_row_to_one_output_and_moves_the_position_last() {
    for seed in 0..10 {
        println!("seed {seed}");
        let config = serde_json::from_str::<PipelineConfig>(
            r#"{"transforms":{
                "r":{"type":"route","inputs":["a"],"routes":[{"name":"even","condition":".body matches '[02468]$'"},
                    {"name":"never","condition":".body == ''"}]},
                "keep":{"type":"filter","inputs":["r.even"],"condition":".body contains ':'"}},
                "sinks":{"store":{"type":"store","inputs":["keep","r.default","r.never"]}}}"#,
        )
        .unwrap();
        let model = Arc::new(Model::new(seed, 0.2, 0.0));
        let report = run_to_end(PipelineBuilder::new(config).source("a", counting("a", 40, 5)), &model).await;
        assert_eq!((model.position("a"), model.total()), (Some(200), 200));
        assert!(model.rows.lock().values().all(|n| *n == 1));
        assert_eq!((find(&report, "r").rows_out, find(&report, "keep").rows_in), (200, 100));
    }
}

#[tokio::test]
async fn a_dedupe_forgets_the_rows_of_a_batch_that_was_sent_back() {
    let config = serde_json::from_str::<PipelineConfig>(
        r#"{"transforms":{"d":{"type":"dedupe","inputs":["push"],"fields":[".body"],"window":"1h","signals":["logs"]}}}"#,
    )
    .unwrap();
    let model = Arc::new(Model::new(7, 0.5, 0.0));
    let running = PipelineBuilder::new(config)
        .input("push", Signals::ALL)
        .build_on(model.clone(), Arc::new(NoPositions))
        .unwrap();
    let out = running.input("push").unwrap();
    for i in 0..50 {
        loop {
            let mut b = batch("push", i, i + 1);
            b.sources.clear();
            if out.deliver(b).await.is_ok() {
                break;
            }
        }
    }
    assert_eq!(model.total(), 50, "every acknowledged row is stored, whatever had to be sent again");
    let report = running.stop(DEADLINE).await;
    assert_eq!(find(&report, "d").dropped(DropReason::Duplicate), 0);
}

#[tokio::test]
async fn one_refusing_branch_refuses_the_batch() {
    let picky = Arc::new(Recorder { refuse_row: Some("push:7".into()), ..Recorder::default() });
    let model = Arc::new(Model::new(0, 0.0, 0.0));
    let running = builder()
        .input("push", Signals::ALL)
        .sink("picky", &["push"], Box::new(RecorderSink(picky)))
        .store_sink("store", &["push"])
        .build_on(model.clone(), Arc::new(NoPositions))
        .unwrap();
    let out = running.input("push").unwrap();
    assert!(out.deliver(batch("push", 0, 5)).await.is_ok());
    assert!(matches!(out.deliver(batch("push", 5, 10)).await, Err(DeliveryError::Rejected(_))));
    assert!(out.deliver(batch("push", 10, 15)).await.is_ok());
    assert_eq!(model.position("push"), Some(15));
    let report = running.stop(DEADLINE).await;
    let push = find(&report, "push");
    assert_eq!((push.rows_out, push.rows_delivered, push.dropped(DropReason::Refused)), (15, 10, 5));
    assert!(matches!(out.send(batch("push", 15, 20)).await, Err(DeliveryError::Stopping)));
}

#[tokio::test]
async fn branches_of_a_fork_have_batch_ids_of_their_own_that_repeat() {
    struct Ids(Mutex<Vec<[u8; 16]>>);
    #[async_trait::async_trait]
    impl Destination for Ids {
        async fn append(&self, append: Append) -> Result<Appended, AppendError> {
            self.0.lock().push(append.batch_id.expect("an id"));
            Ok(Appended::default())
        }
    }
    let ids = Arc::new(Ids(Mutex::default()));
    let running = builder()
        .input("push", Signals::ALL)
        .transform("even", &["push"], Arc::new(Keep(|i| i % 2 == 0)))
        .transform("odd", &["push"], Arc::new(Keep(|i| i % 2 == 1)))
        .build_on(ids.clone(), Arc::new(NoPositions))
        .unwrap();
    let out = running.input("push").unwrap();
    for _ in 0..2 {
        let mut b = batch("push", 0, 4);
        b.sources.clear();
        b.batch_id = Some([7; 16]);
        out.deliver(b).await.unwrap();
    }
    running.stop(DEADLINE).await;
    let mut seen = ids.0.lock().clone();
    seen.sort_unstable();
    assert!(seen.len() == 4 && seen[0] == seen[1] && seen[2] == seen[3] && seen[1] != seen[2], "{seen:?}");
    assert!(seen.contains(&[7; 16]));
}

#[tokio::test]
async fn a_push_sender_is_told_at_once_that_the_store_is_overloaded() {
    let model = Arc::new(Model::new(0, 1.0, 0.0));
    let running = builder().input("push", Signals::ALL).build_on(model.clone(), Arc::new(NoPositions)).unwrap();
    let mut b = batch("push", 0, 5);
    b.sources.clear();
    let fate = running.input("push").unwrap().deliver(b).await;
    assert!(matches!(fate, Err(DeliveryError::Unavailable { .. })), "{fate:?}");
    let report = running.stop(DEADLINE).await;
    assert_eq!(find(&report, "push").dropped(DropReason::Returned), 5);
}

#[tokio::test]
async fn a_stuck_store_makes_the_source_wait_within_the_budget_and_a_late_stop_names_it() {
    let model = Arc::new(Model::stuck());
    let one = batch("push", 0, 100).data.bytes();
    let running = builder()
        .limits(Limits { queue_batches: 4, input_bytes: one * 8, process_bytes: one * 16 })
        .input("push", Signals::ALL)
        .build_on(model.clone(), Arc::new(NoPositions))
        .unwrap();
    let out = running.input("push").unwrap();
    let mut sent = 0;
    let mut fates = Vec::new();
    while let Ok(Ok(fate)) =
        tokio::time::timeout(Duration::from_millis(100), out.send(batch("push", sent, sent + 100))).await
    {
        fates.push(fate);
        sent += 100;
        assert!(sent < 10_000, "the source must be made to wait");
    }
    assert!((700..=900).contains(&sent), "{sent}");
    assert!(running.bytes_in_flight() <= one * 8);
    let metrics = running.metrics();
    let source = metrics.iter().find(|c| c.name == "push").unwrap();
    assert_eq!(source.rows_in_flight(), sent);
    let report = running.stop(Duration::from_millis(200)).await;
    assert_eq!(report.late, ["store"]);
    for f in fates {
        assert!(f.wait().await.is_err(), "nothing was delivered, nothing may say so");
    }
    let source = find(&report, "push");
    assert_eq!((source.rows_in_flight(), source.dropped(DropReason::Returned)), (0, sent));
}

#[tokio::test]
async fn a_stop_drains_what_was_taken() {
    let model = Arc::new(Model::stuck());
    let running = builder()
        .input("push", Signals::ALL)
        .transform("keep", &["push"], Arc::new(Keep(|_| true)))
        .build_on(model.clone(), Arc::new(NoPositions))
        .unwrap();
    let out = running.input("push").unwrap();
    let mut fates = Vec::new();
    for i in 0..20 {
        fates.push(out.send(batch("push", i, i + 1)).await.unwrap());
    }
    model.gate.add_permits(1 << 20);
    let report = running.stop(DEADLINE).await;
    assert!(report.late.is_empty(), "{:?}", report.late);
    for f in fates {
        f.wait().await.unwrap();
    }
    assert_eq!(model.total(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panicking_transform_refuses_that_batch_and_goes_on() {
    let model = Arc::new(Model::new(0, 0.0, 0.0));
    let running = builder()
        .input("push", Signals::ALL)
        .transform("keep", &["push"], Arc::new(Keep(|_| true)))
        .build_on(model.clone(), Arc::new(NoPositions))
        .unwrap();
    let out = running.input("push").unwrap();
    out.deliver(batch("push", 0, 5)).await.unwrap();
    for rows in [1, 500] {
        let fate = out.deliver(batch("boom", 0, rows)).await;
        assert!(matches!(&fate, Err(DeliveryError::Rejected(r)) if r.contains("boom")), "{fate:?}");
    }
    out.deliver(batch("push", 5, 10)).await.unwrap();
    let report = running.stop(DEADLINE).await;
    assert_eq!(find(&report, "keep").dropped(DropReason::Panicked), 501);
    assert_eq!(find(&report, "keep").fault(Fault::Failure), 2);
    assert_eq!(find(&report, "push").dropped(DropReason::Refused), 501);
    assert_eq!(model.total(), 10);
}

#[tokio::test]
async fn a_sink_that_dies_is_reported_and_its_batches_are_not_acknowledged() {
    let broken = Arc::new(Recorder::default());
    broken.broken.store(true, Ordering::Relaxed);
    let running = builder()
        .input("push", Signals::ALL)
        .sink("broken", &["push"], Box::new(RecorderSink(broken)))
        .build_on(Arc::new(Model::new(0, 0.0, 0.0)), Arc::new(NoPositions))
        .unwrap();
    let failed = running.failed();
    assert!(running.input("push").unwrap().deliver(batch("push", 0, 5)).await.is_err());
    assert_eq!(failed.await, "broken: panicked: told to break");
    let report = running.stop(DEADLINE).await;
    assert!(!find(&report, "broken").up);
}

#[tokio::test]
async fn a_failing_source_is_made_anew() {
    struct Fails;
    #[async_trait::async_trait]
    impl Source for Fails {
        async fn run(self: Box<Self>, _: SourceContext) -> Result<(), SourceError> {
            panic!("no network")
        }
    }
    let tries = Arc::new(AtomicUsize::new(0));
    let count = tries.clone();
    let make = Box::new(move || -> Box<dyn Source> {
        match count.fetch_add(1, Ordering::Relaxed) {
            0 => Box::new(Fails),
            _ => counting("a", 3, 2),
        }
    });
    let model = Arc::new(Model::new(0, 0.0, 0.0));
    let report = run_to_end(builder().source_factory("a", Signals::LOGS, make), &model).await;
    assert_eq!(tries.load(Ordering::Relaxed), 2);
    assert_eq!(find(&report, "a").fault(Fault::Failure), 1);
    assert_eq!(model.position("a"), Some(6));
}

#[test]
fn a_wrong_transform_and_a_wrong_graph_are_told_together() {
    let config = serde_json::from_str::<PipelineConfig>(
        r#"{"transforms":{"f":{"type":"filter","inputs":["pushh"],"condition":".bdoy == 1"}}}"#,
    )
    .unwrap();
    let e = PipelineBuilder::new(config).input("push", Signals::ALL).check().unwrap_err();
    let paths: Vec<&str> = e.0.iter().map(|e| e.path.as_str()).collect();
    assert_eq!(paths, ["transforms.f.condition", "transforms.f.inputs[0]"]);
    assert_eq!(e.0[1].nearest.as_deref(), Some("push"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configured_transforms_run_into_a_real_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = storage::Store::open(storage::StoreConfig::new(dir.path())).await.unwrap();
    let config = serde_json::from_str::<PipelineConfig>(
        r#"{"transforms":{
            "parse":{"type":"parse","inputs":["push"],"format":"logfmt","severity":"level"},
            "keep":{"type":"filter","inputs":["parse"],"condition":".severity_number >= 17"}}}"#,
    )
    .unwrap();
    let running = PipelineBuilder::new(config).input("push", Signals::ALL).build(store.clone()).unwrap();
    let mut rows = LogBatchBuilder::new();
    for i in 0..200 {
        let body = format!("level={} n={i}", if i % 4 == 0 { "error" } else { "info" });
        rows.push(&LogRow { ts: i + 1, stream_labels: r#"{"app":"x"}"#, body: &body, ..LogRow::default() });
    }
    let mut b = Batch::new(TenantId::default(), Data::Logs(rows.finish()));
    b.sources = vec![SourcePosition { key: "k".into(), position: 9 }];
    running.input("push").unwrap().deliver(b).await.unwrap();
    assert_eq!(store.position(&TenantId::default(), "k"), Some(9));
    let report = running.stop(DEADLINE).await;
    assert_eq!(find(&report, "store").rows_delivered, 50);
    assert_eq!(find(&report, "keep").dropped(DropReason::Filtered), 150);
    store.close().await.unwrap();
}
