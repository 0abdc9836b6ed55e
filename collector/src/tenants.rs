//! What each tenant may push: bytes and rows a second with a burst, log streams that are active.
//!
//! The bounds on metric series are the store's, which all series pass ([`storage::config::SeriesLimits`]).
//! Checked where every push protocol passes ([`crate::push`]). Not for what this machine's own sources read: they wait for
//! the store and have no sender to answer. Without limits in the configuration nothing is counted and nothing held.
//!
//! A rate is a bucket that may be overdrawn once: a request passes while something is in it, whatever its size, and what
//! it took too much is owed by the next ones. So the rate holds in the long run and no request is too large for ever.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arrow::{
    array::{Array, AsArray, BooleanArray, RecordBatch},
    compute::filter_record_batch,
    datatypes::Int32Type,
};
use parking_lot::Mutex;
use pipeline::{
    Data,
    codec::{Decoded, Reason},
};
use storage::{
    Refused,
    model::{TenantId, labels::id_of_json},
};

use crate::{metrics::Protocol, reply::Failure};

/// A stream without a row for so long is active no more.
pub const ACTIVE_FOR: Duration = Duration::from_secs(1200);

/// How often a full set of streams is searched for idle ones.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Tenants with state; those longest without a request are forgotten for new ones.
const TENANTS_MAX: usize = 10_000;

/// Longest `Retry-After`.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What one tenant may push. `None`: no bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestLimits {
    /// Of rows as they are held in memory, which is close to the request before compression.
    pub bytes_per_second: Option<u64>,
    /// Log records, spans or points.
    pub rows_per_second: Option<u64>,
    /// How much of its rate a tenant that was quiet may push at once.
    pub burst: Duration,
    /// Log streams with a row in the last [`ACTIVE_FOR`].
    pub streams_max: Option<usize>,
}

impl Default for IngestLimits {
    fn default() -> Self {
        IngestLimits {
            bytes_per_second: None,
            rows_per_second: None,
            burst: Duration::from_secs(5),
            streams_max: None,
        }
    }
}

impl IngestLimits {
    fn is_none(&self) -> bool {
        self.bytes_per_second.is_none() && self.rows_per_second.is_none() && self.streams_max.is_none()
    }
}

/// A rate is used up: nothing of the request was taken.
#[derive(Clone, Debug)]
pub(crate) struct Limited {
    pub message: String,
    pub retry_after: Duration,
}

impl Limited {
    /// As the protocol tells it.
    pub fn failure(self, protocol: Protocol) -> Failure {
        Failure { status: protocol.rate_limited(), message: self.message, retry_after: Some(self.retry_after) }
    }
}

/// What was taken out of a request.
#[derive(Debug, Default)]
pub(crate) struct Beyond {
    /// Numbers of its log records, ascending, counted over all batches from 0.
    pub logs: Vec<usize>,
    /// Points that the store left out.
    pub series: Refused,
}

/// The limits of all tenants and how far each has used them.
#[derive(Debug, Default)]
pub struct Tenants {
    defaults: IngestLimits,
    named: HashMap<TenantId, IngestLimits>,
    states: Mutex<HashMap<TenantId, Arc<State>>>,
}

#[derive(Debug)]
struct State {
    limits: IngestLimits,
    using: Mutex<Using>,
    /// Requests told to come back.
    limited: AtomicU64,
    refused_streams: AtomicU64,
}

#[derive(Debug)]
struct Using {
    bytes: Option<Bucket>,
    rows: Option<Bucket>,
    streams: Active,
    last: Instant,
}

impl Tenants {
    /// `defaults`: of tenants that are not named.
    pub fn new(defaults: IngestLimits, named: HashMap<TenantId, IngestLimits>) -> Self {
        Tenants { defaults, named, states: Mutex::default() }
    }

    /// Takes a request's rows from its tenant's rates, and out of it what belongs to streams beyond the limit;
    /// those are counted as rejected. Errors, with nothing taken, when a rate is used up.
    pub(crate) fn admit(&self, tenant: &TenantId, decoded: &mut Decoded) -> Result<Beyond, Limited> {
        self.admit_at(Instant::now(), tenant, decoded)
    }

    fn admit_at(&self, now: Instant, tenant: &TenantId, decoded: &mut Decoded) -> Result<Beyond, Limited> {
        let mut beyond = Beyond::default();
        let Some(state) = self.state(tenant, now) else { return Ok(beyond) };
        let mut using = state.using.lock();
        using.last = now;
        let bytes: usize = decoded.batches.iter().map(Data::bytes).sum();
        let rows: usize = decoded.batches.iter().map(Data::rows).sum();
        let using = &mut *using;
        for (bucket, cost, what) in
            [(&mut using.bytes, bytes, "bytes per second"), (&mut using.rows, rows, "rows per second")]
        {
            let Some(bucket) = bucket else { continue };
            if let Some(wait) = bucket.wait(now) {
                state.limited.fetch_add(1, Ordering::Relaxed);
                return Err(Limited {
                    message: format!(
                        "ingestion rate limit exceeded for tenant {tenant} ({} {what}) while adding {cost}; send less or later",
                        bucket.rate
                    ),
                    retry_after: wait.min(RETRY_MAX),
                });
            }
        }
        for (bucket, cost) in [(&mut using.bytes, bytes), (&mut using.rows, rows)] {
            if let Some(bucket) = bucket {
                bucket.left -= cost as f64;
            }
        }
        // Log records before this batch.
        let mut first = 0;
        for data in &mut decoded.batches {
            let (Data::Logs(batch), Some(max)) = (data, state.limits.streams_max) else { continue };
            let before = batch.num_rows();
            if let Some(keep) = streams_within(batch, &mut using.streams, max, now) {
                beyond.logs.extend((first..).zip(&keep).filter(|(_, kept)| !**kept).map(|(row, _)| row));
                *batch = rows_of(batch, &BooleanArray::from(keep));
            }
            first += before;
            let out = (before - batch.num_rows()) as u64;
            if out > 0 {
                state.refused_streams.fetch_add(out, Ordering::Relaxed);
                decoded.accepted = decoded.accepted.saturating_sub(out);
                decoded.rejected.add_many(Reason::TenantLimit, out, 0, || {
                    format!(
                        "tenant {tenant} has reached its limit of {max} active streams; use fewer label values, or \
                         raise `tenants` in the configuration"
                    )
                });
            }
        }
        decoded.batches.retain(|d| !d.is_empty());
        Ok(beyond)
    }

    /// `None`: the tenant has no limits.
    fn state(&self, tenant: &TenantId, now: Instant) -> Option<Arc<State>> {
        let limits = self.named.get(tenant).unwrap_or(&self.defaults);
        if limits.is_none() {
            return None;
        }
        let mut states = self.states.lock();
        if let Some(state) = states.get(tenant) {
            return Some(state.clone());
        }
        if states.len() >= TENANTS_MAX {
            let oldest = states.iter().min_by_key(|(_, s)| s.using.lock().last).map(|(t, _)| t.clone());
            oldest.map(|t| states.remove(&t));
        }
        let bucket = |rate: Option<u64>| rate.map(|rate| Bucket::full(rate, limits.burst, now));
        let using = Using {
            bytes: bucket(limits.bytes_per_second),
            rows: bucket(limits.rows_per_second),
            streams: Active::default(),
            last: now,
        };
        let state = Arc::new(State {
            limits: limits.clone(),
            using: Mutex::new(using),
            limited: AtomicU64::new(0),
            refused_streams: AtomicU64::new(0),
        });
        states.insert(tenant.clone(), state.clone());
        Some(state)
    }

    /// Prometheus text, one family after the other, of tenants that have limits and were heard of.
    pub fn render(&self, out: &mut String) {
        let mut states: Vec<(TenantId, Arc<State>)> =
            self.states.lock().iter().map(|(t, s)| (t.clone(), s.clone())).collect();
        states.sort_by(|a, b| a.0.cmp(&b.0));
        if states.is_empty() {
            return;
        }
        out.push_str("# TYPE collector_tenant_limited_requests_total counter\n");
        for (tenant, state) in &states {
            let n = state.limited.load(Ordering::Relaxed);
            let _ = writeln!(out, "collector_tenant_limited_requests_total{{tenant=\"{tenant}\"}} {n}");
        }
        out.push_str("# TYPE collector_tenant_rows_rejected_total counter\n");
        for (tenant, state) in &states {
            let n = state.refused_streams.load(Ordering::Relaxed);
            let _ =
                writeln!(out, "collector_tenant_rows_rejected_total{{tenant=\"{tenant}\",limit=\"streams\"}} {n}");
        }
        out.push_str("# TYPE collector_tenant_active gauge\n");
        for (tenant, state) in &states {
            let n = state.using.lock().streams.seen.len();
            let _ = writeln!(out, "collector_tenant_active{{tenant=\"{tenant}\",what=\"streams\"}} {n}");
        }
    }
}

/// What may be pushed now; negative while something is owed.
#[derive(Debug)]
struct Bucket {
    rate: u64,
    most: f64,
    left: f64,
    filled: Instant,
}

impl Bucket {
    fn full(rate: u64, burst: Duration, now: Instant) -> Self {
        let most = (rate as f64 * burst.as_secs_f64()).max(1.0);
        Bucket { rate, most, left: most, filled: now }
    }

    /// How long until something may pass; `None`: now.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.left = (self.left + since * self.rate as f64).min(self.most);
        if self.left > 0.0 {
            return None;
        }
        let seconds = (1.0 - self.left) / self.rate.max(1) as f64;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(RETRY_MAX))
    }
}

/// Ids seen of late, never more than their limit.
#[derive(Debug, Default)]
struct Active {
    seen: HashMap<i64, Instant>,
    swept: Option<Instant>,
}

impl Active {
    /// Whether a row of this id may pass.
    fn admit(&mut self, id: i64, max: usize, now: Instant) -> bool {
        if let Some(last) = self.seen.get_mut(&id) {
            *last = now;
            return true;
        }
        if self.seen.len() >= max && self.swept.is_none_or(|at| now.saturating_duration_since(at) >= SWEEP_EVERY) {
            self.swept = Some(now);
            self.seen.retain(|_, last| now.saturating_duration_since(*last) < ACTIVE_FOR);
        }
        if self.seen.len() >= max {
            return false;
        }
        self.seen.insert(id, now);
        true
    }
}

/// Which rows are of admitted streams; `None`: all.
fn streams_within(batch: &RecordBatch, active: &mut Active, max: usize, now: Instant) -> Option<Vec<bool>> {
    let column = batch.column_by_name("stream_labels").and_then(|c| c.as_dictionary_opt::<Int32Type>())?;
    let texts = column.values().as_string_opt::<i32>()?;
    let keys = column.keys();
    // A dictionary may hold values that no row has.
    let mut admitted: Vec<Option<bool>> = vec![None; texts.len()];
    let mut keep = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let Some(verdict) = usize::try_from(keys.value(row)).ok().and_then(|k| Some((k, admitted.get_mut(k)?)))
        else {
            keep.push(true);
            continue;
        };
        let (key, verdict) = verdict;
        keep.push(*verdict.get_or_insert_with(|| active.admit(id_of_json(texts.value(key)), max, now)));
    }
    (!keep.iter().all(|k| *k)).then_some(keep)
}

/// `keep`: one a row.
fn rows_of(rows: &RecordBatch, keep: &BooleanArray) -> RecordBatch {
    filter_record_batch(rows, keep).expect("the mask is as long as the rows")
}

#[cfg(test)]
mod tests {
    use storage::model::{
        Labels,
        batch::{LogBatchBuilder, LogRow},
    };

    use super::*;

    fn logs(streams: &[&str]) -> Decoded {
        let mut builder = LogBatchBuilder::new();
        for s in streams {
            let labels = Labels::from_pairs([("app", *s)]).to_json();
            builder.push(&LogRow { stream_labels: &labels, body: "x", ..LogRow::default() });
        }
        Decoded { batches: vec![Data::Logs(builder.finish())], accepted: streams.len() as u64, ..Decoded::default() }
    }

    fn tenants(limits: IngestLimits) -> Tenants {
        Tenants::new(limits, HashMap::new())
    }

    #[test]
    fn a_rate_is_overdrawn_once_and_paid_back_before_more_passes() {
        let burst = Duration::from_secs(2);
        let all = tenants(IngestLimits { rows_per_second: Some(10), burst, ..IngestLimits::default() });
        let (tenant, start) = (TenantId::default_tenant(), Instant::now());
        let push = |at: u64, rows: usize| {
            let mut decoded = logs(&vec!["a"; rows]);
            all.admit_at(start + Duration::from_millis(at), &tenant, &mut decoded)
        };
        push(0, 30).unwrap();
        let e = push(0, 1).unwrap_err().failure(Protocol::Loki);
        assert_eq!((e.status.as_u16(), e.retry_after), (429, Some(Duration::from_millis(1100))));
        assert!(e.message.contains("10 rows per second"), "{}", e.message);
        push(1_000, 1).unwrap_err();
        push(1_101, 1).unwrap();
        // A quiet time fills it up to the burst and no further.
        push(60_000, 20).unwrap();
        push(60_000, 1).unwrap_err();
    }

    #[test]
    fn one_tenant_does_not_use_up_the_rate_of_another_and_a_named_one_has_its_own() {
        let free = TenantId::parse("free").unwrap();
        let all = Tenants::new(
            IngestLimits { rows_per_second: Some(1), ..IngestLimits::default() },
            HashMap::from([(free.clone(), IngestLimits::default())]),
        );
        let (a, b) = (TenantId::parse("a").unwrap(), TenantId::parse("b").unwrap());
        let now = Instant::now();
        all.admit_at(now, &a, &mut logs(&["x"; 9])).unwrap();
        all.admit_at(now, &a, &mut logs(&["x"])).unwrap_err();
        all.admit_at(now, &b, &mut logs(&["x"])).unwrap();
        for _ in 0..3 {
            all.admit_at(now, &free, &mut logs(&["x"; 99])).unwrap();
        }
    }

    #[test]
    fn rows_of_streams_beyond_the_limit_are_refused_and_those_of_known_streams_pass() {
        let all = tenants(IngestLimits { streams_max: Some(2), ..IngestLimits::default() });
        let (tenant, start) = (TenantId::default_tenant(), Instant::now());
        let mut decoded = logs(&["a", "b", "c", "a", "c"]);
        let beyond = all.admit_at(start, &tenant, &mut decoded).unwrap();
        assert_eq!((decoded.accepted, decoded.batches[0].rows(), beyond.logs), (3, 3, vec![2, 4]));
        assert_eq!(decoded.rejected.by_reason().collect::<Vec<_>>(), [(Reason::TenantLimit, 2)]);
        assert!(decoded.rejected.summary().contains("2 active streams"), "{}", decoded.rejected.summary());
        let mut decoded = logs(&["c"]);
        all.admit_at(start, &tenant, &mut decoded).unwrap();
        assert!(decoded.batches.is_empty() && decoded.accepted == 0);
        // Streams that went quiet make room.
        let mut decoded = logs(&["c"]);
        all.admit_at(start + ACTIVE_FOR, &tenant, &mut decoded).unwrap();
        assert_eq!(decoded.accepted, 1);
        let mut text = String::new();
        all.render(&mut text);
        assert!(text.contains("rows_rejected_total{tenant=\"default\",limit=\"streams\"} 3"), "{text}");
    }
}
