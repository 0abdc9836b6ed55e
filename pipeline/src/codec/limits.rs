//! Every bound on pushed data, with its reason.

use std::time::Duration;

/// What a decoder takes at most. Over a limit of a request: the request is refused; over a limit of a record: that
/// record is, with its reason, and the others are kept.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request's body as sent. Loki's own default, the largest of the protocols we take.
    pub body_bytes_max: usize,
    /// Bytes of a request's body once inflated: what a compression bomb may cost.
    pub inflated_bytes_max: usize,
    /// Log records, spans or points of one request.
    pub records_max: usize,
    /// Bytes of one record as sent.
    pub record_bytes_max: usize,
    /// Attributes of one record, resource or scope. Above what any real sender makes, and not quadratic below.
    pub attributes_max: usize,
    /// Nesting of arrays and maps in an attribute or body.
    pub depth_max: usize,
    /// Labels of one stream, `service_name` not counted (Loki's default).
    pub labels_max: usize,
    pub label_name_bytes_max: usize,
    pub label_value_bytes_max: usize,
    /// Labels of one metric series of remote write, and bytes of a value. Above what real series have: each value is kept
    /// in the memory of the index.
    pub series_labels_max: usize,
    pub series_value_bytes_max: usize,
    /// Bytes of one line of a Loki push (Loki's default).
    pub line_bytes_max: usize,
    /// Structured metadata of one entry of a Loki push (Loki's defaults).
    pub metadata_entries_max: usize,
    pub metadata_bytes_max: usize,
    /// Records older than this are refused; `None`: any past time is taken.
    pub past_max: Option<Duration>,
    /// Records further ahead than this are refused; `None`: any future time is taken.
    pub future_max: Option<Duration>,
    /// Rows and body bytes at which a request is split into batches, so that queue budgets work.
    pub batch_rows_max: usize,
    pub batch_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body_bytes_max: 100 << 20,
            inflated_bytes_max: 64 << 20,
            records_max: 4_000_000,
            record_bytes_max: 4 << 20,
            attributes_max: 16_384,
            depth_max: 64,
            labels_max: 15,
            label_name_bytes_max: 1024,
            label_value_bytes_max: 2048,
            series_labels_max: 256,
            series_value_bytes_max: 16 << 10,
            line_bytes_max: 256 << 10,
            metadata_entries_max: 128,
            metadata_bytes_max: 64 << 10,
            past_max: None,
            future_max: Some(Duration::from_secs(600)),
            batch_rows_max: 65_536,
            batch_bytes_max: 16 << 20,
        }
    }
}

/// Which event times are taken, worked out once for a request.
#[derive(Clone, Copy, Debug)]
pub struct TimeBounds {
    /// Nanoseconds since the epoch, both ends taken.
    pub oldest: i64,
    pub newest: i64,
}

impl TimeBounds {
    /// `now`: nanoseconds since the epoch.
    pub fn new(limits: &Limits, now: i64) -> Self {
        let nanos = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
        TimeBounds {
            oldest: limits.past_max.map_or(i64::MIN, |d| now.saturating_sub(nanos(d))),
            newest: limits.future_max.map_or(i64::MAX, |d| now.saturating_add(nanos(d))),
        }
    }

    pub fn contains(self, ts: i64) -> bool {
        self.oldest <= ts && ts <= self.newest
    }
}
