//! Every bound of a query, with its reason. [`Limits`] are those an operator may change.

use std::time::Duration;

/// Points a range query may ask for per series: `(end - start) / step`. Source: Prometheus.
pub const POINTS_PER_SERIES_MAX: i64 = 11_000;

/// `match[]` parameters of one request.
pub const MATCHES_MAX: usize = 200;

/// Spans of one trace that an answer may hold; a bound on memory, far above any trace seen.
pub const TRACE_SPANS_MAX: usize = 2_000_000;

/// Bytes of a form body.
pub const FORM_BYTES_MAX: usize = 1 << 20;

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
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            samples_max: 50_000_000,
            series_max: 1_000_000,
            timeout: Duration::from_secs(120),
            lookback: Duration::from_secs(300),
            concurrent_max: 20,
        }
    }
}
