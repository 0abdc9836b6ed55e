//! How much of a cold store a needle reads: of parts of the size that flushes make, rows of the size that real ones have.

use std::sync::{Arc, atomic::Ordering};

use arrow::array::{AsArray as _, BooleanArray, RecordBatch};
use object_store::memory::InMemory;
use storage::{
    Append, RowFilter, ScanError, ScanRequest, Selector, Store,
    model::{
        Labels, LogBatchBuilder, LogRow, Matcher, MetricBatchBuilder, SpanBatchBuilder, SpanRow, Table, TenantId,
        TimeRange, Timestamp, batch::SeriesMeta,
    },
    object::Remote,
};

use super::rows::{HOUR, config, open};

/// Log rows and spans of each of the two hours, four spans a trace; points of each of the series.
const ROWS: u64 = 160_000;
const SERIES: u64 = 400;
const POINTS: u64 = 1_000;
const BATCH: u64 = 4_000;
const BASE: i64 = 1_767_225_600_000_000_000;

/// Hex digits that hardly compress, cheap to make: pieces of one long text.
struct Noise {
    text: String,
    state: u64,
}

impl Noise {
    fn new() -> Self {
        let mut noise = Noise { text: String::new(), state: 7 };
        noise.text = (0..1 << 18).map(|_| format!("{:08x}", noise.next() & 0xffff_ffff)).collect();
        noise
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.state >> 20
    }

    fn hex(&mut self, n: usize) -> &str {
        let at = self.next() as usize % (self.text.len() - n);
        &self.text[at..at + n]
    }
}

fn trace(n: u64) -> [u8; 16] {
    let a = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut out = [0; 16];
    out[..8].copy_from_slice(&(a ^ (a >> 29)).to_be_bytes());
    out[8..].copy_from_slice(&n.to_be_bytes());
    out
}

async fn append(store: &Store, rows: Vec<(Table, RecordBatch)>) {
    let append = Append { tenant: TenantId::default_tenant(), rows, sources: vec![], batch_id: None };
    store.append(append).await.unwrap();
}

/// One hour of access logs and spans, of a thousand pods.
async fn fill_hour(store: &Store, hour: u64, noise: &mut Noise) {
    for chunk in 0..ROWS / BATCH {
        let (mut logs, mut spans) = (LogBatchBuilder::new(), SpanBatchBuilder::new());
        for i in 0..BATCH {
            let n = hour * ROWS + chunk * BATCH + i;
            let ts = BASE + (n as i64) * HOUR / (ROWS as i64);
            let labels = format!("{{\"app\":\"shop\",\"pod\":\"pod-{}\"}}", n % 1000);
            let (took, code) = (noise.next() % 3_000, [200, 200, 200, 404, 500][noise.next() as usize % 5]);
            let body = format!(
                "level=info method=GET path=/api/v1/orders/{} status={code} took={took}ms request={n} session={} token={}",
                noise.next() % 1_000_000,
                noise.hex(32).to_owned(),
                noise.hex(64)
            );
            logs.push(&LogRow { ts, stream_labels: &labels, body: &body, ..LogRow::default() });
            let attrs = format!(
                "{{\"http.method\":\"GET\",\"http.route\":\"/api/v1/orders\",\"http.status_code\":{code},\"session\":\"{}\",\"k8s.pod\":\"pod-{}\"}}",
                noise.hex(96).to_owned(),
                n % 1000
            );
            let parent = (n - n % 4).to_be_bytes();
            spans.push(&SpanRow {
                trace_id: &trace(n / 4),
                span_id: &noise.next().to_be_bytes(),
                parent_span_id: (!n.is_multiple_of(4)).then_some(&parent),
                ts,
                duration_ns: took as i64 * 1_000_000,
                name: ["checkout", "SELECT orders", "POST /pay", "render"][(n % 4) as usize],
                service_name: Some(["shop", "db", "pay", "web"][(n % 4) as usize]),
                attrs: Some(&attrs),
                ..SpanRow::default()
            });
        }
        append(store, vec![(Table::Logs, logs.finish()), (Table::Spans, spans.finish())]).await;
    }
}

async fn fill_points(store: &Store) {
    let labels = |n: u64| {
        let pod = format!("pod-{n}");
        Labels::from_pairs([("__name__", "http_requests_total"), ("job", "shop"), ("pod", pod.as_str())])
    };
    for chunk in 0..10 {
        let mut metrics = MetricBatchBuilder::new();
        for n in 0..SERIES {
            let id = metrics.series(&labels(n), SeriesMeta::default());
            for i in 0..POINTS / 10 {
                let at = chunk * POINTS / 10 + i;
                metrics.sample(id, BASE / 1_000_000 + 7_000 * at as i64, None, (at * (n % 7 + 1)) as f64);
            }
        }
        let batch = metrics.finish();
        append(store, vec![(Table::MetricSeries, batch.series), (Table::MetricSamples, batch.samples)]).await;
    }
}

struct Contains(String);

impl RowFilter for Contains {
    fn columns(&self) -> &[&'static str] {
        &["body"]
    }

    fn keep(&self, batch: &RecordBatch) -> Result<BooleanArray, ScanError> {
        let body = batch.column_by_name("body").unwrap().as_string::<i32>();
        Ok(body.iter().map(|b| b.map(|b| b.contains(&self.0))).collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_needle_reads_less_than_a_hundredth_of_the_bytes_and_a_warm_one_none() {
    let mut bucket = Remote::new("s3://needle", Arc::new(InMemory::new()));
    bucket.beat = std::time::Duration::from_millis(40);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.memory_bytes_max = 4 << 30;
    config.flush_bytes = 1 << 30;
    config.cache_bytes = 256 << 20;
    let store = open(&config, &bucket).await.unwrap();
    let mut noise = Noise::new();
    for hour in 0..2 {
        fill_hour(&store, hour, &mut noise).await;
        store.flush().await.unwrap();
    }
    fill_points(&store).await;
    store.close().await.unwrap();
    drop(store);
    let request = |table, range| ScanRequest::new(TenantId::default_tenant(), table, range);
    let minutes = |from: i64, to: i64| {
        let at = |m: i64| Timestamp(BASE + m * HOUR / 60);
        TimeRange::new(at(from), at(to)).unwrap()
    };
    let pod = |n: u64| Selector::Labels(vec![Matcher::equal("pod", format!("pod-{n}"))]);
    // Row 42 of thousand 60 is of pod 42, in the first hour.
    let word = Arc::new(Contains("request=60042 ".to_owned()));
    let needles = [
        ("a trace by its id", request(Table::Spans, TimeRange::ALL).selector(Selector::Trace(trace(17_000))), 4..5),
        ("a trace that is not there", request(Table::Spans, TimeRange::ALL).selector(Selector::Trace([7; 16])), 0..1),
        ("a pod's word in an hour", request(Table::Logs, minutes(0, 60)).selector(pod(42)).filter(word), 1..2),
        ("a pod's minute", request(Table::Logs, minutes(70, 71)).selector(pod(42)), 1..10),
        (
            "a series",
            request(Table::MetricSamples, minutes(0, 60)).selector(pod(42)).columns(&["ts_ms", "value"]),
            500..520,
        ),
    ];
    for (what, request, expected) in needles {
        std::fs::remove_dir_all(dir.path().join("cache")).unwrap();
        let store = open(&config, &bucket).await.unwrap();
        let metrics = || store.metrics();
        let all = metrics().part_bytes.load(Ordering::Relaxed);
        let read = || metrics().object_get_bytes.load(Ordering::Relaxed);
        let before = read();
        let scan = async |store: &Store| {
            let batches = store.scan(request.clone()).await.unwrap().collect().await.unwrap();
            batches.iter().map(RecordBatch::num_rows).sum::<usize>()
        };
        let found = scan(&store).await;
        let cold = read() - before;
        println!("{what}: {found} rows, {cold} of {all} bytes, {:.2} %", cold as f64 / all as f64 * 100.0);
        assert!(expected.contains(&found), "{what}: {found} rows");
        assert!(cold > 0 && cold * 100 < all, "{what}: {cold} of {all} bytes read for {found} rows");
        assert_eq!(scan(&store).await, found);
        assert_eq!(read() - before, cold, "{what}: the second time everything comes from the disk");
        store.close().await.unwrap();
        drop(store);
        // And after a restart.
        let store = open(&config, &bucket).await.unwrap();
        let before = store.metrics().object_get_bytes.load(Ordering::Relaxed);
        assert_eq!(scan(&store).await, found);
        assert_eq!(store.metrics().object_get_bytes.load(Ordering::Relaxed), before, "{what}: after a restart");
        store.close().await.unwrap();
    }
}
