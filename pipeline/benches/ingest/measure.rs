//! One store, one kind of request: what each step took.

use std::{
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    path::Path,
};

use pipeline::{Data, codec::Decoded};
use storage::{
    Append, Store, StoreConfig,
    model::{Table, TenantId},
};

/// Requests on disk, so that what is measured is not the memory they take.
pub struct Requests {
    file: File,
    lens: Vec<usize>,
    /// Records in all requests.
    pub records: u64,
    pub bytes: u64,
}

impl Requests {
    pub fn new() -> Self {
        let file = tempfile::tempfile().expect("temporary file");
        Requests { file, lens: Vec::new(), records: 0, bytes: 0 }
    }

    pub fn push(&mut self, body: &[u8], records: u64) {
        self.file.write_all(body).expect("temporary file");
        self.lens.push(body.len());
        self.records += records;
        self.bytes += body.len() as u64;
    }
}

/// CPU seconds by step, and what is left on disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub decode: f64,
    pub append: f64,
    pub flush: f64,
    pub compact: f64,
    pub disk_bytes: u64,
    pub wal_bytes: u64,
    pub peak_mib: u64,
}

impl Cost {
    pub fn total(&self) -> f64 {
        self.decode + self.append + self.flush + self.compact
    }

    pub fn or_cheaper(self, other: Option<Cost>) -> Cost {
        other.filter(|o| o.total() <= self.total()).unwrap_or(self)
    }

    pub fn print(&self, what: &str, records: u64, input_bytes: u64) {
        println!(
            "{what}: {:.0} records/CPU-s, {:.1} MB/CPU-s; {:.2} CPU-s: decode {:.2}, append {:.2}, flush {:.2}, compact {:.2}",
            records as f64 / self.total(),
            input_bytes as f64 / 1e6 / self.total(),
            self.total(),
            self.decode,
            self.append,
            self.flush,
            self.compact,
        );
        println!(
            "  {records} records, {:.1} MB; on disk {:.2} bytes a record, {:.4} of the input; write-ahead log {:.1} MB; peak RSS {} MiB",
            input_bytes as f64 / 1e6,
            self.disk_bytes as f64 / records as f64,
            self.disk_bytes as f64 / input_bytes as f64,
            self.wal_bytes as f64 / 1e6,
            self.peak_mib,
        );
    }
}

/// User and system time of the process so far, seconds, to 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc/self/stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|f| f.parse::<u64>().expect("ticks")).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn tree_bytes(dir: &Path) -> u64 {
    let mut out = 0;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        out += if meta.is_dir() { tree_bytes(&entry.path()) } else { meta.len() };
    }
    out
}

/// Where steps book the time since the last booking.
struct Stopwatch(f64);

impl Stopwatch {
    fn book(&mut self, step: &mut f64) {
        let now = cpu_seconds();
        *step += now - self.0;
        self.0 = now;
    }
}

/// Puts all requests through a store of its own. Panics where anything is refused or lost.
pub async fn settle(requests: &mut Requests, decode: impl Fn(&[u8]) -> Decoded) -> Cost {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut config = StoreConfig::new(dir.path());
    config.background = false;
    let flush_bytes = config.flush_bytes as u64;
    let store = Store::open(config).await.expect("store");
    // Resets the peak; without the right to, it is that of all runs so far.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let (mut cost, mut accepted, mut body) = (Cost::default(), 0, Vec::new());
    requests.file.rewind().expect("temporary file");
    for len in &requests.lens {
        body.resize(*len, 0);
        requests.file.read_exact(&mut body).expect("temporary file");
        let mut watch = Stopwatch(cpu_seconds());
        let decoded = decode(&body);
        watch.book(&mut cost.decode);
        accepted += decoded.accepted;
        for data in decoded.batches {
            let rows = rows_of(data);
            let append = Append { tenant: TenantId::default(), rows, sources: Vec::new(), batch_id: None };
            store.append(append).await.expect("append");
        }
        watch.book(&mut cost.append);
        if store.metrics().head_bytes.load(std::sync::atomic::Ordering::Relaxed) >= flush_bytes {
            store.flush().await.expect("flush");
            watch.book(&mut cost.flush);
        }
    }
    assert_eq!(accepted, requests.records, "records taken");
    cost.wal_bytes = store.metrics().wal_written_bytes.load(std::sync::atomic::Ordering::Relaxed);
    let mut watch = Stopwatch(cpu_seconds());
    store.flush().await.expect("flush");
    watch.book(&mut cost.flush);
    store.compact().await.expect("compact");
    watch.book(&mut cost.compact);
    cost.peak_mib = peak_mib();
    store.close().await.expect("close");
    drop(store);
    cost.disk_bytes = tree_bytes(dir.path());
    cost
}

fn rows_of(data: Data) -> Vec<(Table, arrow::array::RecordBatch)> {
    let rows = match data {
        Data::Logs(b) => vec![(Table::Logs, b)],
        Data::Spans(b) => vec![(Table::Spans, b)],
        Data::Metrics(m) => vec![
            (Table::MetricSeries, m.series),
            (Table::MetricSamples, m.samples),
            (Table::MetricHistograms, m.histograms),
            (Table::MetricExemplars, m.exemplars),
        ],
    };
    rows.into_iter().filter(|(_, b)| b.num_rows() > 0).collect()
}
