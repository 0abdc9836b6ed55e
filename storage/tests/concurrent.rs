//! Scans, appends, flushes, merges and retention at the same time, on real files with real threads.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arrow::{
    array::AsArray as _,
    datatypes::{Float64Type, Int32Type},
};
use storage::{
    Append, AppendError, DeleteRequest, Durability, RowFilter, ScanRequest, Selector, Store, StoreConfig,
    config::{Retention, RetentionRule},
    model::{
        Labels, LogBatchBuilder, LogRow, MatchOp, Matcher, MetricBatchBuilder, Table, TenantId, TimeRange,
        batch::SeriesMeta,
    },
};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// Everything happens often.
fn hasty(dir: &std::path::Path) -> StoreConfig {
    let mut c = StoreConfig::new(dir);
    c.durability = Durability::None;
    c.flush_bytes = 1 << 20;
    c.flush_age = Duration::from_millis(400);
    c.wal_segment_bytes = 64 << 10;
    c.retention =
        Retention { rules: vec![RetentionRule { tenant: None, table: None, keep: Duration::from_secs(2 * 86_400) }] };
    c
}

/// What one writer has sent and what was acknowledged: numbers `0..n`.
#[derive(Default)]
struct Written {
    begun: AtomicU64,
    acked: AtomicU64,
}

fn batch(writer: usize, from: u64, to: u64, at: impl Fn(u64) -> i64) -> Vec<(Table, arrow::array::RecordBatch)> {
    let mut logs = LogBatchBuilder::new();
    let mut points = MetricBatchBuilder::new();
    let name = format!("w{writer}");
    let labels = Labels::from_pairs([("app", name.as_str())]).to_json();
    let series = points.series(&Labels::from_pairs([("__name__", name.as_str())]), SeriesMeta::default());
    for n in from..to {
        logs.push(&LogRow {
            ts: at(n) * 1_000_000,
            stream_labels: &labels,
            body: &n.to_string(),
            ..LogRow::default()
        });
        points.sample(series, at(n), None, n as f64);
    }
    let m = points.finish();
    vec![(Table::Logs, logs.finish()), (Table::MetricSeries, m.series), (Table::MetricSamples, m.samples)]
}

async fn write(store: Store, writer: usize, written: Arc<Vec<Written>>, stop: Arc<AtomicBool>, start_ms: i64) {
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let to = n + 1 + (n * 7 + writer as u64) % 40;
        written[writer].begun.store(to, Ordering::SeqCst);
        let rows = batch(writer, n, to, |n| start_ms + (n as i64 % 3) * HOUR_MS + n as i64);
        let append = Append { tenant: TenantId::default_tenant(), rows, sources: vec![], batch_id: None };
        match store.append(append).await {
            Ok(_) => written[writer].acked.store(to, Ordering::SeqCst),
            Err(e) => panic!("append of writer {writer}: {e}"),
        }
        n = to;
        // As fast as flushes of this size can follow, in an unoptimized build.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Times each number of each writer was found.
async fn count(store: &Store, table: Table, selector: Selector) -> HashMap<usize, HashMap<u64, u32>> {
    let columns: &[&str] = if table == Table::Logs { &["stream_labels", "body"] } else { &["series_id", "value"] };
    let ids: HashMap<i64, usize> = (0..3)
        .map(|w| {
            let labels = Labels::from_pairs([("__name__", format!("w{w}").as_str())]);
            (MetricBatchBuilder::new().series(&labels, SeriesMeta::default()), w)
        })
        .collect();
    let request = ScanRequest::new(TenantId::default_tenant(), table, TimeRange::ALL).columns(columns);
    let mut stream = store.scan(request.selector(selector)).await.unwrap();
    let mut found: HashMap<usize, HashMap<u64, u32>> = HashMap::new();
    while let Some(b) = stream.next().await {
        let b = b.unwrap();
        for i in 0..b.num_rows() {
            let (writer, n) = if table == Table::Logs {
                let labels = b.column(0).as_dictionary::<Int32Type>();
                let text = labels.values().as_string::<i32>().value(labels.keys().value(i) as usize);
                let name = Labels::from_json(text).unwrap().get("app").unwrap().to_owned();
                (name[1..].parse().unwrap(), b.column(1).as_string::<i32>().value(i).parse().unwrap())
            } else {
                let id = b.column(0).as_primitive::<arrow::datatypes::Int64Type>().value(i);
                (ids[&id], b.column(1).as_primitive::<Float64Type>().value(i) as u64)
            };
            *found.entry(writer).or_default().entry(n).or_default() += 1;
        }
        // A slow reader: parts are merged and expire under it.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(stream.stats().damaged.load(Ordering::Relaxed), 0, "a file went while it was read");
    found
}

async fn scan(store: Store, written: Arc<Vec<Written>>, stop: Arc<AtomicBool>, table: Table) -> usize {
    let mut scans = 0;
    while !stop.load(Ordering::Relaxed) {
        let least: Vec<u64> = written.iter().map(|w| w.acked.load(Ordering::SeqCst)).collect();
        let selector = match (scans % 2, table) {
            (0, _) => Selector::All,
            (_, Table::Logs) => Selector::Labels(vec![Matcher::new("app", MatchOp::Re, "w.*").unwrap()]),
            _ => Selector::Labels(vec![Matcher::new("__name__", MatchOp::Re, "w.*").unwrap()]),
        };
        let found = count(&store, table, selector).await;
        for (writer, w) in written.iter().enumerate() {
            let empty = HashMap::new();
            let rows = found.get(&writer).unwrap_or(&empty);
            let what = format!("{table:?} of writer {writer} in scan {scans}");
            if let Some((n, times)) = rows.iter().find(|(_, times)| **times > 1) {
                panic!("{what}: number {n} was found {times} times");
            }
            assert!(rows.keys().all(|n| *n < w.begun.load(Ordering::SeqCst)), "{what}: never written");
            // The last writer's rows are past their retention: they may go at any time.
            if writer < 2
                && let Some(n) = (0..least[writer]).find(|n| !rows.contains_key(n))
            {
                panic!("{what}: number {n} of {} acknowledged is missing", least[writer]);
            }
        }
        scans += 1;
    }
    scans
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_sees_every_row_once_while_flushes_merges_and_retention_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(hasty(dir.path())).await.unwrap();
    let written: Arc<Vec<Written>> = Arc::new((0..3).map(|_| Written::default()).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let base = (now_ms() / HOUR_MS - 4) * HOUR_MS;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..3 {
        let start = if writer < 2 { base } else { base - 5 * DAY_MS };
        tasks.spawn(write(store.clone(), writer, written.clone(), stop.clone(), start));
    }
    let mut scanners = tokio::task::JoinSet::new();
    for table in [Table::Logs, Table::MetricSamples] {
        scanners.spawn(scan(store.clone(), written.clone(), stop.clone(), table));
    }
    let started = Instant::now();
    let mut round = 0;
    while started.elapsed() < Duration::from_secs(4) {
        tokio::time::sleep(Duration::from_millis(60)).await;
        store.expire().await.unwrap();
        if round % 8 == 3 {
            store.compact().await.unwrap();
        }
        round += 1;
    }
    stop.store(true, Ordering::SeqCst);
    let mut scans = 0;
    while let Some(done) = scanners.join_next().await {
        scans += done.unwrap();
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let m = store.metrics();
    let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
    let (flushes, merges, expired) = (get(&m.flushes), get(&m.compactions), get(&m.retention_parts));
    eprintln!("{scans} scans beside {flushes} flushes, {merges} merges, {expired} parts expired");
    assert!(scans > 2 && flushes > 2 && merges > 0 && expired > 0);
    assert_eq!((get(&m.quarantined_parts), get(&m.flush_failures), get(&m.compaction_failures)), (0, 0, 0));
    store.close().await.unwrap();
    let store = Store::open(hasty(dir.path())).await.unwrap();
    for table in [Table::Logs, Table::MetricSamples] {
        let found = count(&store, table, Selector::All).await;
        for (writer, w) in written.iter().enumerate().take(2) {
            assert_eq!(found[&writer].len() as u64, w.acked.load(Ordering::SeqCst), "{table:?} of writer {writer}");
        }
    }
    store.close().await.unwrap();
}

/// Deletes every number of a writer that is a multiple of ten.
struct Tens;

impl RowFilter for Tens {
    fn columns(&self) -> &[&'static str] {
        &["body"]
    }
    fn keep(&self, batch: &arrow::array::RecordBatch) -> Result<arrow::array::BooleanArray, storage::ScanError> {
        let body = batch.column_by_name("body").unwrap().as_string::<i32>();
        Ok(body.iter().map(|b| b.map(|b| b.ends_with('0'))).collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_beside_scans_and_merges_take_theirs_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(hasty(dir.path())).await.unwrap();
    let written: Arc<Vec<Written>> = Arc::new((0..3).map(|_| Written::default()).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let base = (now_ms() / HOUR_MS - 4) * HOUR_MS;
    let mut tasks = tokio::task::JoinSet::new();
    // The scan looks at the first two for missing rows; deletes are for the third.
    for writer in 0..3 {
        tasks.spawn(write(store.clone(), writer, written.clone(), stop.clone(), base));
    }
    let mut scanners = tokio::task::JoinSet::new();
    for table in [Table::Logs, Table::MetricSamples] {
        scanners.spawn(scan(store.clone(), written.clone(), stop.clone(), table));
    }
    let tenant = TenantId::default_tenant();
    let tens = DeleteRequest {
        tenant: tenant.clone(),
        table: Table::Logs,
        selector: Selector::Labels(vec![Matcher::equal("app", "w2")]),
        range: TimeRange::ALL,
        filter: Some(Arc::new(Tens)),
    };
    let (mut logs, mut points, mut round) = (0, 0, 0);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let acked = written[2].acked.load(Ordering::SeqCst);
        logs += store.delete(tens.clone()).await.unwrap().rows;
        let mut found = count(&store, Table::Logs, Selector::All).await;
        let third = found.remove(&2).unwrap_or_default();
        assert!(!third.keys().any(|n| n % 10 == 0 && *n < acked), "round {round}: deleted rows are seen");
        assert!(
            (0..acked).filter(|n| n % 10 != 0).all(|n| third.contains_key(&n)),
            "round {round}: too much is gone"
        );
        if round % 3 == 1 {
            let matchers = vec![Matcher::equal("__name__", "w2")];
            points += store.delete_series(&tenant, matchers, TimeRange::ALL).await.unwrap().rows;
        }
        if round % 4 == 2 {
            store.compact().await.unwrap();
        }
        round += 1;
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(done) = scanners.join_next().await {
        done.unwrap();
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    eprintln!("{round} rounds: {logs} log rows and {points} points deleted");
    assert!(logs > 0 && points > 0);
    // Points that came after a delete are found by their labels: no series lost its row to a delete beside its append.
    let all = count(&store, Table::MetricSamples, Selector::All).await.remove(&2).unwrap_or_default();
    let labels = Selector::Labels(vec![Matcher::equal("__name__", "w2")]);
    let named = count(&store, Table::MetricSamples, labels.clone()).await.remove(&2).unwrap_or_default();
    assert_eq!(all, named);
    store.close().await.unwrap();
    let store = Store::open(hasty(dir.path())).await.unwrap();
    assert_eq!(count(&store, Table::MetricSamples, labels).await.remove(&2).unwrap_or_default(), named);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_amid_appends_keeps_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let base = (now_ms() / HOUR_MS - 4) * HOUR_MS;
    let mut expected = 0;
    for round in 0..4u64 {
        let store = Store::open(hasty(dir.path())).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for lane in 0..4u64 {
            let store = store.clone();
            tasks.spawn(async move {
                let mut acked = 0u64;
                loop {
                    // Distinct times and numbers for each round and lane.
                    let n = (round * 4 + lane) * 100_000 + acked;
                    let rows = batch(0, n, n + 1, |n| base + n as i64);
                    let append = Append { tenant: TenantId::default_tenant(), rows, sources: vec![], batch_id: None };
                    match store.append(append).await {
                        Ok(_) => acked += 1,
                        Err(AppendError::Closed) => return acked,
                        Err(e) => panic!("{e}"),
                    }
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(120)).await;
        if round % 2 == 0 {
            store.close().await.unwrap()
        } else {
            store.abandon().await.unwrap()
        }
        while let Some(acked) = tasks.join_next().await {
            expected += acked.unwrap();
        }
        drop(store);
        let store = Store::open(hasty(dir.path())).await.unwrap();
        for table in [Table::Logs, Table::MetricSamples] {
            let found = count(&store, table, Selector::All).await.remove(&0).unwrap_or_default();
            assert!(found.values().all(|times| *times == 1), "{table:?} found twice");
            assert_eq!(found.len() as u64, expected, "{table:?} after round {round}");
        }
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_a_caller_has_gone_does_not_store_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = hasty(dir.path());
    config.durability = Durability::Group;
    let store = Store::open(config).await.unwrap();
    let base = (now_ms() / HOUR_MS - 4) * HOUR_MS;
    for n in 0..150u64 {
        let append = Append {
            tenant: TenantId::default_tenant(),
            rows: batch(0, n, n + 1, |n| base + n as i64),
            sources: vec![],
            batch_id: Some((u128::from(n) + 1).to_be_bytes()),
        };
        // Given up at any moment of its way.
        let patience = Duration::from_micros(n * 37 % 1500);
        drop(tokio::time::timeout(patience, store.append(append.clone())).await);
        while let Err(e) = store.append(append.clone()).await {
            assert!(matches!(e, AppendError::Overloaded { .. }), "{e}");
            tokio::task::yield_now().await;
        }
    }
    let found = count(&store, Table::Logs, Selector::All).await.remove(&0).unwrap();
    assert_eq!(found.len(), 150);
    assert!(found.values().all(|times| *times == 1), "{found:?}");
    store.close().await.unwrap();
}
