//! What a sink that ships counts beyond what every component does.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the latency histogram, in seconds.
const BOUNDS: [f64; 8] = [0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

#[derive(Debug, Default)]
pub struct RemoteStats {
    requests: AtomicU64,
    retries: AtomicU64,
    bytes: AtomicU64,
    rejected: AtomicU64,
    dead_lettered: AtomicU64,
    held_bytes: AtomicU64,
    queued_bytes: AtomicU64,
    latency: [AtomicU64; BOUNDS.len() + 1],
    latency_micros: AtomicU64,
}

impl RemoteStats {
    /// An attempt that was answered, or failed.
    pub(crate) fn attempt(&self, bytes: usize, took: Duration) {
        self.requests.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
        let at = BOUNDS.iter().position(|b| took.as_secs_f64() <= *b).unwrap_or(BOUNDS.len());
        self.latency[at].fetch_add(1, Relaxed);
        self.latency_micros.fetch_add(took.as_micros() as u64, Relaxed);
    }

    pub(crate) fn retry(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub(crate) fn rejected(&self, rows: u64) {
        self.rejected.fetch_add(rows, Relaxed);
    }

    pub(crate) fn dead_lettered(&self, rows: u64) {
        self.dead_lettered.fetch_add(rows, Relaxed);
    }

    pub(crate) fn holds(&self, bytes: usize) {
        self.held_bytes.store(bytes as u64, Relaxed);
    }

    pub(crate) fn queues(&self, bytes: u64) {
        self.queued_bytes.store(bytes, Relaxed);
    }

    pub fn snapshot(&self) -> RemoteSnapshot {
        RemoteSnapshot {
            requests: self.requests.load(Relaxed),
            retries: self.retries.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            dead_lettered: self.dead_lettered.load(Relaxed),
            held_bytes: self.held_bytes.load(Relaxed),
            queued_bytes: self.queued_bytes.load(Relaxed),
            latency: std::array::from_fn(|i| self.latency[i].load(Relaxed)),
            latency_seconds: self.latency_micros.load(Relaxed) as f64 / 1e6,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RemoteSnapshot {
    /// Attempts, also those that failed.
    pub requests: u64,
    /// Attempts after a first one.
    pub retries: u64,
    /// Bytes of bodies as sent, with every attempt.
    pub bytes: u64,
    /// Rows that the remote refused for good, dead-lettered ones included.
    pub rejected: u64,
    pub dead_lettered: u64,
    /// Bytes of rows that wait or are under way.
    pub held_bytes: u64,
    /// Bytes of undelivered rows in the queue on disk.
    pub queued_bytes: u64,
    latency: [u64; BOUNDS.len() + 1],
    latency_seconds: f64,
}

type Read = fn(&RemoteSnapshot) -> u64;
const FAMILIES: [(&str, &str, &str, Read); 7] = [
    ("requests_total", "counter", "attempts to deliver a request", |s| s.requests),
    ("retries_total", "counter", "attempts after a failed one", |s| s.retries),
    ("sent_bytes_total", "counter", "bytes of request bodies as sent", |s| s.bytes),
    ("rejected_rows_total", "counter", "rows the remote refused for good", |s| s.rejected),
    (
        "dead_lettered_rows_total",
        "counter",
        "refused rows written to the dead-letter file, or handed to who takes dead letters",
        |s| s.dead_lettered,
    ),
    ("held_bytes", "gauge", "bytes of rows that wait or are under way", |s| s.held_bytes),
    ("disk_queue_bytes", "gauge", "bytes of undelivered rows in the queue on disk", |s| s.queued_bytes),
];

/// Appends the sinks as Prometheus text; `label` escapes a label's value.
pub(crate) fn write_prometheus(out: &mut String, sinks: &[(&str, RemoteSnapshot)], label: fn(&str) -> String) {
    if sinks.is_empty() {
        return;
    }
    for (name, kind, help, read) in FAMILIES {
        let _ = writeln!(out, "# HELP pipeline_sink_{name} {help}\n# TYPE pipeline_sink_{name} {kind}");
        for (sink, s) in sinks {
            let _ = writeln!(out, "pipeline_sink_{name}{{component=\"{}\"}} {}", label(sink), read(s));
        }
    }
    let name = "pipeline_sink_request_seconds";
    let _ = writeln!(out, "# HELP {name} time to the answer of an attempt\n# TYPE {name} histogram");
    for (sink, s) in sinks {
        let (sink, mut total) = (label(sink), 0);
        for (i, n) in s.latency.iter().enumerate() {
            total += n;
            let bound = BOUNDS.get(i).map_or("+Inf".to_owned(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{component=\"{sink}\",le=\"{bound}\"}} {total}");
        }
        let _ = writeln!(out, "{name}_sum{{component=\"{sink}\"}} {}", s.latency_seconds);
        let _ = writeln!(out, "{name}_count{{component=\"{sink}\"}} {total}");
    }
}
