//! Counters of each component: relaxed atomics touched once per batch, read by [`Registry::snapshot`].

use std::{
    fmt::Write as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;

use crate::{
    component::Data,
    sink::remote::stats::{self, RemoteSnapshot, RemoteStats},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ComponentKind {
    Source,
    Transform,
    Sink,
}

impl ComponentKind {
    pub const fn name(self) -> &'static str {
        match self {
            ComponentKind::Source => "source",
            ComponentKind::Transform => "transform",
            ComponentKind::Sink => "sink",
        }
    }
}

/// Why rows went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// A filter's condition was false.
    Filtered,
    /// A component refused the batch for good.
    Refused,
    /// Handed back to the source, which may send them again (and they count as read again).
    Returned,
    /// A component panicked on the batch.
    Panicked,
    /// `relabel` dropped its series, stream or resource.
    Relabeled,
    /// Not in the sample.
    Sampled,
    /// `dedupe` let an equal row pass not long before.
    Duplicate,
    /// Above the rate of its key.
    Throttled,
    /// No condition of a `route` holds, and its default is to drop.
    Unrouted,
    /// Its labels pass a limit, or its series is one too many for its tenant.
    OverLimit,
    /// A point at the time of its series' newest one, with another value.
    DuplicateTimestamp,
    /// The remote took the request and refused these rows of it.
    Rejected,
    /// The remote refused them for good; they are in dead letters now.
    DeadLettered,
    /// The protocol of the sink has no form for them.
    Unsupported,
}

impl DropReason {
    pub const ALL: [DropReason; 14] = [
        DropReason::Filtered,
        DropReason::Refused,
        DropReason::Returned,
        DropReason::Panicked,
        DropReason::Relabeled,
        DropReason::Sampled,
        DropReason::Duplicate,
        DropReason::Throttled,
        DropReason::Unrouted,
        DropReason::OverLimit,
        DropReason::DuplicateTimestamp,
        DropReason::Rejected,
        DropReason::DeadLettered,
        DropReason::Unsupported,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            DropReason::Filtered => "filtered",
            DropReason::Refused => "refused",
            DropReason::Returned => "returned",
            DropReason::Panicked => "panicked",
            DropReason::Relabeled => "relabeled",
            DropReason::Sampled => "sampled",
            DropReason::Duplicate => "duplicate",
            DropReason::Throttled => "throttled",
            DropReason::Unrouted => "unrouted",
            DropReason::OverLimit => "over_limit",
            DropReason::DuplicateTimestamp => "duplicate_timestamp",
            DropReason::Rejected => "rejected",
            DropReason::DeadLettered => "dead_lettered",
            DropReason::Unsupported => "unsupported",
        }
    }
}

/// What went wrong without a row being lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A row that a parser could not read; it stays as it was.
    Unparsed,
    /// A delivery that failed and is tried again.
    Retry,
    /// A component that ended with an error or a panic.
    Failure,
}

impl Fault {
    pub const ALL: [Fault; 3] = [Fault::Unparsed, Fault::Retry, Fault::Failure];

    pub const fn name(self) -> &'static str {
        match self {
            Fault::Unparsed => "unparsed",
            Fault::Retry => "retry",
            Fault::Failure => "failure",
        }
    }
}

/// What a transform altered in a row that goes on, where somebody will want to know how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Pieces of text replaced by `redact`.
    Redacted,
    /// Labels cut or taken out by `limit_labels`.
    Limited,
    /// Times that `normalize` read, or moved because they were too far ahead.
    Retimed,
    /// Severities that `normalize` completed or rewrote.
    Reranked,
}

impl Change {
    pub const ALL: [Change; 4] = [Change::Redacted, Change::Limited, Change::Retimed, Change::Reranked];

    pub const fn name(self) -> &'static str {
        match self {
            Change::Redacted => "redacted",
            Change::Limited => "limited",
            Change::Retimed => "retimed",
            Change::Reranked => "reranked",
        }
    }
}

/// No event time seen yet.
const NO_TIME: i64 = i64::MIN;

/// The counters of one component.
#[derive(Debug)]
pub struct Counters {
    name: String,
    kind: ComponentKind,
    up: AtomicBool,
    batches_in: AtomicU64,
    rows_in: AtomicU64,
    bytes_in: AtomicU64,
    batches_out: AtomicU64,
    rows_out: AtomicU64,
    bytes_out: AtomicU64,
    rows_delivered: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
    faults: [AtomicU64; Fault::ALL.len()],
    changes: [AtomicU64; Change::ALL.len()],
    queue_batches: AtomicI64,
    queue_bytes: AtomicI64,
    newest_ns: AtomicI64,
    /// Of a sink that ships somewhere.
    remote: OnceLock<Arc<RemoteStats>>,
}

impl Counters {
    pub fn new(name: impl Into<String>, kind: ComponentKind) -> Arc<Self> {
        Arc::new(Counters {
            name: name.into(),
            kind,
            up: AtomicBool::new(true),
            batches_in: AtomicU64::new(0),
            rows_in: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            batches_out: AtomicU64::new(0),
            rows_out: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            rows_delivered: AtomicU64::new(0),
            dropped: Default::default(),
            faults: Default::default(),
            changes: Default::default(),
            queue_batches: AtomicI64::new(0),
            queue_bytes: AtomicI64::new(0),
            newest_ns: AtomicI64::new(NO_TIME),
            remote: OnceLock::new(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn queued(&self, bytes: usize) {
        self.queue_batches.fetch_add(1, Relaxed);
        self.queue_bytes.fetch_add(bytes as i64, Relaxed);
    }

    pub(crate) fn unqueued(&self, bytes: usize) {
        self.queue_batches.fetch_sub(1, Relaxed);
        self.queue_bytes.fetch_sub(bytes as i64, Relaxed);
    }

    pub(crate) fn received(&self, data: &Data, bytes: usize) {
        self.batches_in.fetch_add(1, Relaxed);
        self.rows_in.fetch_add(data.rows() as u64, Relaxed);
        self.bytes_in.fetch_add(bytes as u64, Relaxed);
        self.saw(data);
    }

    pub(crate) fn emitted(&self, data: &Data, bytes: usize) {
        self.batches_out.fetch_add(1, Relaxed);
        self.rows_out.fetch_add(data.rows() as u64, Relaxed);
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
        self.saw(data);
    }

    fn saw(&self, data: &Data) {
        if let Some(ns) = data.last_event_ns() {
            self.newest_ns.fetch_max(ns, Relaxed);
        }
    }

    pub(crate) fn delivered(&self, rows: u64) {
        self.rows_delivered.fetch_add(rows, Relaxed);
    }

    pub fn dropped(&self, reason: DropReason, rows: u64) {
        self.dropped[reason as usize].fetch_add(rows, Relaxed);
    }

    pub fn fault(&self, fault: Fault, count: u64) {
        self.faults[fault as usize].fetch_add(count, Relaxed);
    }

    pub fn changed(&self, change: Change, count: u64) {
        self.changes[change as usize].fetch_add(count, Relaxed);
    }

    /// Tells where a sink that ships keeps its own counters.
    pub(crate) fn ships(&self, stats: Arc<RemoteStats>) {
        let _ = self.remote.set(stats);
    }

    pub(crate) fn set_up(&self, up: bool) {
        self.up.store(up, Relaxed);
    }

    fn snapshot(&self, now_ns: i64) -> ComponentSnapshot {
        // Fates before reads: a batch settled in between shows as in flight, never as more delivered than read.
        let dropped = DropReason::ALL.map(|r| (r, self.dropped[r as usize].load(Relaxed)));
        let rows_delivered = self.rows_delivered.load(Relaxed);
        let newest = self.newest_ns.load(Relaxed);
        ComponentSnapshot {
            name: self.name.clone(),
            kind: self.kind,
            up: self.up.load(Relaxed),
            batches_in: self.batches_in.load(Relaxed),
            rows_in: self.rows_in.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            batches_out: self.batches_out.load(Relaxed),
            rows_out: self.rows_out.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            rows_delivered,
            dropped,
            faults: Fault::ALL.map(|f| (f, self.faults[f as usize].load(Relaxed))),
            changes: Change::ALL.map(|c| (c, self.changes[c as usize].load(Relaxed))),
            queue_batches: self.queue_batches.load(Relaxed).max(0) as u64,
            queue_bytes: self.queue_bytes.load(Relaxed).max(0) as u64,
            remote: self.remote.get().map(|s| s.snapshot()),
            lag_seconds: (newest != NO_TIME).then(|| now_ns.saturating_sub(newest) as f64 / 1e9),
        }
    }
}

/// One component at one instant. A source's `rows_out` is what it read, a sink's `rows_delivered` what arrived.
#[derive(Clone, Debug)]
pub struct ComponentSnapshot {
    pub name: String,
    pub kind: ComponentKind,
    /// False between a source's failure and its restart, and after a component's end.
    pub up: bool,
    pub batches_in: u64,
    pub rows_in: u64,
    pub bytes_in: u64,
    pub batches_out: u64,
    pub rows_out: u64,
    pub bytes_out: u64,
    /// Source: rows whose ack came. Sink: rows it delivered.
    pub rows_delivered: u64,
    pub dropped: [(DropReason, u64); DropReason::ALL.len()],
    pub faults: [(Fault, u64); Fault::ALL.len()],
    pub changes: [(Change, u64); Change::ALL.len()],
    pub queue_batches: u64,
    pub queue_bytes: u64,
    /// Of a sink that ships somewhere.
    pub remote: Option<RemoteSnapshot>,
    /// Now minus the newest event time seen (the last row of each batch stands for it); negative for future times.
    pub lag_seconds: Option<f64>,
}

impl ComponentSnapshot {
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize].1
    }

    pub fn fault(&self, fault: Fault) -> u64 {
        self.faults[fault as usize].1
    }

    pub fn changed(&self, change: Change) -> u64 {
        self.changes[change as usize].1
    }

    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(|(_, n)| n).sum()
    }

    /// Of a source: rows read whose fate is open.
    pub fn rows_in_flight(&self) -> u64 {
        match self.kind {
            ComponentKind::Source => self.rows_out.saturating_sub(self.rows_delivered + self.dropped_total()),
            _ => self.rows_in.saturating_sub(self.rows_delivered + self.dropped_total()),
        }
    }
}

/// All components of a pipeline. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<Vec<Arc<Counters>>>>);

impl Registry {
    pub fn add(&self, name: &str, kind: ComponentKind) -> Arc<Counters> {
        let counters = Counters::new(name, kind);
        self.0.lock().push(counters.clone());
        counters
    }

    pub fn snapshot(&self) -> Vec<ComponentSnapshot> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
        let all = self.0.lock().clone();
        all.iter().map(|c| c.snapshot(now)).collect()
    }

    /// One component; `None` if there is none of that name and kind.
    pub fn component(&self, kind: ComponentKind, name: &str) -> Option<ComponentSnapshot> {
        self.snapshot().into_iter().find(|c| c.kind == kind && c.name == name)
    }
}

/// Appends a snapshot as Prometheus text, each family with its HELP and TYPE.
pub fn write_prometheus(out: &mut String, components: &[ComponentSnapshot]) {
    type Read = fn(&ComponentSnapshot) -> Option<f64>;
    let families: [(&str, &str, &str, Read); 11] = [
        ("up", "gauge", "1 while the component runs", |c| Some(f64::from(u8::from(c.up)))),
        ("batches_in_total", "counter", "batches taken", |c| Some(c.batches_in as f64)),
        ("rows_in_total", "counter", "records, points and spans taken", |c| Some(c.rows_in as f64)),
        ("bytes_in_total", "counter", "bytes in memory of the batches taken", |c| Some(c.bytes_in as f64)),
        ("batches_out_total", "counter", "batches given on", |c| Some(c.batches_out as f64)),
        ("rows_out_total", "counter", "records, points and spans given on", |c| Some(c.rows_out as f64)),
        ("bytes_out_total", "counter", "bytes in memory of the batches given on", |c| Some(c.bytes_out as f64)),
        ("rows_delivered_total", "counter", "rows acknowledged (source) or delivered (sink)", |c| {
            Some(c.rows_delivered as f64)
        }),
        ("queue_batches", "gauge", "batches waiting in front of the component", |c| Some(c.queue_batches as f64)),
        ("queue_bytes", "gauge", "bytes waiting in front of the component", |c| Some(c.queue_bytes as f64)),
        ("lag_seconds", "gauge", "now minus the newest event time seen", |c| c.lag_seconds),
    ];
    for (name, kind, help, read) in families {
        let _ = writeln!(out, "# HELP pipeline_component_{name} {help}\n# TYPE pipeline_component_{name} {kind}");
        for c in components {
            if let Some(v) = read(c) {
                let _ = writeln!(out, "pipeline_component_{name}{} {v}", labels(c, None));
            }
        }
    }
    out.push_str("# HELP pipeline_component_dropped_total rows that went no further\n");
    out.push_str("# TYPE pipeline_component_dropped_total counter\n");
    for c in components {
        for (reason, n) in c.dropped.iter().filter(|(_, n)| *n > 0) {
            let _ =
                writeln!(out, "pipeline_component_dropped_total{} {n}", labels(c, Some(("reason", reason.name()))));
        }
    }
    out.push_str("# HELP pipeline_component_errors_total faults that lost nothing\n");
    out.push_str("# TYPE pipeline_component_errors_total counter\n");
    for c in components {
        for (fault, n) in c.faults.iter().filter(|(_, n)| *n > 0) {
            let _ = writeln!(out, "pipeline_component_errors_total{} {n}", labels(c, Some(("error", fault.name()))));
        }
    }
    out.push_str("# HELP pipeline_component_changes_total what a transform altered in rows that went on\n");
    out.push_str("# TYPE pipeline_component_changes_total counter\n");
    for c in components {
        for (change, n) in c.changes.iter().filter(|(_, n)| *n > 0) {
            let _ =
                writeln!(out, "pipeline_component_changes_total{} {n}", labels(c, Some(("change", change.name()))));
        }
    }
    let sinks: Vec<(&str, RemoteSnapshot)> =
        components.iter().filter_map(|c| Some((c.name.as_str(), c.remote?))).collect();
    stats::write_prometheus(out, &sinks, escaped);
}

fn escaped(name: &str) -> String {
    name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn labels(c: &ComponentSnapshot, more: Option<(&str, &str)>) -> String {
    let name = escaped(&c.name);
    let mut out = format!("{{component=\"{name}\",kind=\"{}\"", c.kind.name());
    if let Some((k, v)) = more {
        let _ = write!(out, ",{k}=\"{v}\"");
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_text_names_component_kind_and_reason() {
        let r = Registry::default();
        let c = r.add("only \"errors\"", ComponentKind::Transform);
        c.dropped(DropReason::Filtered, 3);
        let mut out = String::new();
        write_prometheus(&mut out, &r.snapshot());
        assert!(out.contains(
            "pipeline_component_dropped_total{component=\"only \\\"errors\\\"\",kind=\"transform\",reason=\"filtered\"} 3\n"
        ));
        assert!(out.contains("# TYPE pipeline_component_rows_in_total counter\n"));
        assert!(!out.contains("lag_seconds{"), "no lag before the first row");
    }
}
