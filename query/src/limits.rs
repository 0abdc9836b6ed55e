//! Every bound of a query, with its reason. [`Limits`] are those an operator may change.

use std::{collections::HashMap, sync::Arc, time::Duration};

use storage::model::TenantId;

/// Points a range query may ask for per series: `(end - start) / step`. Source: Prometheus.
pub const POINTS_PER_SERIES_MAX: i64 = 11_000;

/// Steps of one range query, whoever asks: even a query of no series holds a number for each.
pub const STEPS_MAX: usize = 1_000_000;

/// `match[]` parameters of one request.
pub const MATCHES_MAX: usize = 200;

/// Bytes of a remote read request, compressed and not. Source: Prometheus.
pub const READ_REQUEST_BYTES_MAX: usize = 32 << 20;

/// Bytes of a remote read request above which it is one of [`READS_LARGE_MAX`].
pub const READ_LARGE_BYTES: usize = 1 << 20;

/// Large remote read requests in memory at the same time; the others wait for their turn.
pub const READS_LARGE_MAX: usize = 2;

/// Matchers of all queries of a remote read request: each may be asked of every value of its label.
pub const READ_MATCHERS_MAX: usize = 10_000;

/// Remote reads at work at the same time; the others wait for their turn until their deadline.
pub const READS_CONCURRENT_MAX: usize = 10;

/// Bytes of a remote read answer of samples, before compression: it is one message. Streamed chunks have no such bound.
pub const READ_ANSWER_BYTES_MAX: usize = 256 << 20;

/// Points that a remote read holds at a time.
pub const READ_GROUP_POINTS: usize = 1_000_000;

/// Series that a remote read or a federation reads together.
pub const READ_GROUP_SERIES_MAX: usize = 20_000;

/// Bytes of chunks in one frame of a streamed remote read. Source: Prometheus' `remote_read_bytes_in_frame`.
pub const READ_FRAME_BYTES: usize = 1 << 20;

/// Bytes of an answer of `/federate`.
pub const FEDERATE_ANSWER_BYTES_MAX: usize = 256 << 20;

/// Spans of one trace that an answer may hold; a bound on memory, far above any trace seen.
pub const TRACE_SPANS_MAX: usize = 2_000_000;

/// Bytes of a form body: above what a query of a MiB grows to when it is encoded, so that the error is about the query.
pub const FORM_BYTES_MAX: usize = 4 << 20;

#[derive(Clone, Debug)]
pub struct Limits {
    /// Samples one query may hold in memory: loaded and computed.
    pub samples_max: usize,
    /// Series one query may select.
    pub series_max: usize,
    /// Longest run time; a request may ask for less.
    pub timeout: Duration,
    /// How far back an instant selector looks for a sample.
    pub lookback: Duration,
    /// Queries that run at the same time; the rest waits.
    pub concurrent_max: usize,
    /// What single tenants may do less than everyone.
    pub tenants: Arc<ByTenant>,
}

/// Bounds of one tenant's queries. `None`: those of everyone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// Longest time from the first to the last moment that a query reads.
    pub range_max: Option<Duration>,
    pub series_max: Option<usize>,
    pub samples_max: Option<usize>,
}

#[derive(Clone, Debug, Default)]
pub struct ByTenant {
    /// Of tenants that are not named.
    pub defaults: TenantLimits,
    pub named: HashMap<TenantId, TenantLimits>,
}

impl ByTenant {
    pub fn of(&self, tenant: &TenantId) -> &TenantLimits {
        self.named.get(tenant).unwrap_or(&self.defaults)
    }
}

impl Limits {
    /// Series that one query of this tenant may select.
    pub fn series_of(&self, tenant: &TenantId) -> usize {
        self.tenants.of(tenant).series_max.map_or(self.series_max, |n| n.min(self.series_max))
    }

    /// Samples that one query of this tenant may hold.
    pub fn samples_of(&self, tenant: &TenantId) -> usize {
        self.tenants.of(tenant).samples_max.map_or(self.samples_max, |n| n.min(self.samples_max))
    }
}

impl TenantLimits {
    /// Whether a query may read so many nanoseconds; if not, the reason, which names the limit.
    pub fn check_range(&self, nanos: i64) -> Result<(), String> {
        let length = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
        match self.range_max {
            Some(limit) if length > limit => Err(format!(
                "the query time range exceeds the limit of this tenant (query length: {}, limit: {})",
                written(length),
                written(limit)
            )),
            _ => Ok(()),
        }
    }
}

/// `1d2h3m4s`, whole seconds.
fn written(length: Duration) -> String {
    let s = length.as_secs();
    let mut out = String::new();
    for (n, unit) in [(s / 86_400, "d"), (s / 3600 % 24, "h"), (s / 60 % 60, "m"), (s % 60, "s")] {
        if n > 0 {
            out.push_str(&format!("{n}{unit}"));
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            samples_max: 50_000_000,
            series_max: 1_000_000,
            timeout: Duration::from_secs(120),
            lookback: Duration::from_secs(300),
            concurrent_max: 20,
            tenants: Arc::default(),
        }
    }
}

/// Nested brackets of an SQL text: what its parser's own recursion allows for.
pub const SQL_DEPTH_MAX: usize = 48;

/// Words, names and operators of an SQL text, commas and literals not counted: a chain of operators is as high as it is
/// long, and planning walks it recursively.
pub const SQL_WORDS_MAX: usize = 2_000;

/// Tables one SQL query may name, each as often as it does.
pub const SQL_TABLES_MAX: usize = 64;

/// Stack of each thread that SQL works on: room for a tree as high as [`SQL_WORDS_MAX`], used only when there is one.
pub const SQL_STACK_BYTES: usize = 256 << 20;

/// Memory that the operators (sorts, joins, groups) of all SQL queries share.
pub const SQL_MEMORY_BYTES_MAX: usize = 256 << 20;

/// SQL queries at work at the same time; the others wait for their turn until their deadline.
pub const SQL_CONCURRENT_MAX: usize = 4;

/// Rows of an SQL answer without a `limit` of its own.
pub const SQL_ROWS_MAX: usize = 1_000_000;

/// Bytes of an SQL answer.
pub const SQL_ANSWER_BYTES_MAX: usize = 1 << 30;

/// Bytes of an SQL answer held back, so that an error or the statistics can still be in its head.
pub const SQL_HOLD_BYTES: usize = 1 << 20;

/// Encoded pieces of an SQL answer on their way to its reader.
pub const SQL_QUEUE_PIECES: usize = 4;

/// Series that one scan of `samples` may read.
pub const SQL_SERIES_MAX: usize = 1_000_000;

/// Rows that `ORDER BY ts LIMIT n` may ask a scan for in time order; more are sorted behind it.
pub const SQL_FIRST_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_tenant_has_its_own_bounds_and_never_more_than_everyone() {
        let named = TenantId::parse("small").unwrap();
        let small = TenantLimits {
            range_max: Some(Duration::from_secs(3600)),
            series_max: Some(10),
            samples_max: Some(usize::MAX),
        };
        let tenants = ByTenant { named: HashMap::from([(named.clone(), small)]), ..ByTenant::default() };
        let limits = Limits { tenants: Arc::new(tenants), ..Limits::default() };
        let other = TenantId::default_tenant();
        assert_eq!((limits.series_of(&named), limits.series_of(&other)), (10, 1_000_000));
        assert_eq!(limits.samples_of(&named), limits.samples_max);
        assert!(limits.tenants.of(&other).check_range(i64::MAX).is_ok());
        assert!(limits.tenants.of(&named).check_range(3_600_000_000_000).is_ok());
        let why = limits.tenants.of(&named).check_range(90_061_000_000_000).unwrap_err();
        assert!(why.contains("query length: 1d1h1m1s, limit: 1h"), "{why}");
    }
}
