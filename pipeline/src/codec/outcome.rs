//! What became of a request: batches, and what was refused with its reason. Partial success is a value, not an error.

use crate::Data;

/// Why a record was refused. The names are label values of our own metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    Malformed,
    InvalidUtf8,
    InvalidTime,
    TooFarAhead,
    TooOld,
    RecordTooLarge,
    TooManyRecords,
    TooManyAttributes,
    TooDeep,
    InvalidLabels,
    TooManyLabels,
    LabelTooLong,
    InvalidTraceId,
    InvalidSpanId,
    InvalidMetric,
    Temporality,
    /// Its tenant has as many streams or series as it may.
    TenantLimit,
    /// A point at a time of its series that has another value.
    DuplicateTimestamp,
}

impl Reason {
    pub const ALL: [Reason; 18] = [
        Reason::Malformed,
        Reason::InvalidUtf8,
        Reason::InvalidTime,
        Reason::TooFarAhead,
        Reason::TooOld,
        Reason::RecordTooLarge,
        Reason::TooManyRecords,
        Reason::TooManyAttributes,
        Reason::TooDeep,
        Reason::InvalidLabels,
        Reason::TooManyLabels,
        Reason::LabelTooLong,
        Reason::InvalidTraceId,
        Reason::InvalidSpanId,
        Reason::InvalidMetric,
        Reason::Temporality,
        Reason::TenantLimit,
        Reason::DuplicateTimestamp,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::InvalidUtf8 => "invalid_utf8",
            Reason::InvalidTime => "invalid_time",
            Reason::TooFarAhead => "too_far_ahead",
            Reason::TooOld => "too_old",
            Reason::RecordTooLarge => "record_too_large",
            Reason::TooManyRecords => "too_many_records",
            Reason::TooManyAttributes => "too_many_attributes",
            Reason::TooDeep => "too_deep",
            Reason::InvalidLabels => "invalid_labels",
            Reason::TooManyLabels => "too_many_labels",
            Reason::LabelTooLong => "label_too_long",
            Reason::InvalidTraceId => "invalid_trace_id",
            Reason::InvalidSpanId => "invalid_span_id",
            Reason::InvalidMetric => "invalid_metric",
            Reason::Temporality => "temporality",
            Reason::TenantLimit => "tenant_limit",
            Reason::DuplicateTimestamp => "duplicate_timestamp",
        }
    }
}

/// Refusals told one by one; more are only counted.
pub const DETAILS_MAX: usize = 100;

/// Bytes of one refusal's text: it quotes what was sent, which may be megabytes.
pub const MESSAGE_BYTES_MAX: usize = 8 << 10;

/// The text, cut at `max` bytes with `...` where it is longer.
pub fn clip(mut text: String, max: usize) -> String {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push_str("...");
    }
    text
}

/// One refused record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detail {
    /// 1-based place of the record in the request (NDJSON: its line number).
    pub at: u64,
    pub message: String,
}

/// What was refused.
#[derive(Clone, Debug, Default)]
pub struct Rejected {
    counts: [u64; Reason::ALL.len()],
    pub details: Vec<Detail>,
}

impl Rejected {
    pub fn add(&mut self, reason: Reason, at: u64, message: impl FnOnce() -> String) {
        self.add_many(reason, 1, at, message);
    }

    pub fn add_many(&mut self, reason: Reason, n: u64, at: u64, message: impl FnOnce() -> String) {
        self.counts[reason as usize] += n;
        if n > 0 && self.details.len() < DETAILS_MAX {
            self.details.push(Detail { at, message: clip(message(), MESSAGE_BYTES_MAX) });
        }
    }

    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Counts by reason, zeros left out.
    pub fn by_reason(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.into_iter().map(|r| (r, self.counts[r as usize])).filter(|(_, n)| *n > 0)
    }

    /// One sentence for a partial-success answer: the first distinct messages.
    pub fn summary(&self) -> String {
        const SHOWN: usize = 5;
        let mut shown: Vec<&str> = Vec::new();
        for d in &self.details {
            if !shown.contains(&d.message.as_str()) {
                if shown.len() == SHOWN {
                    shown.push("...");
                    break;
                }
                shown.push(&d.message);
            }
        }
        shown.join("; ")
    }
}

/// A decoded request.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Non-empty batches, in the order of the request. Splitting depends on the bytes and limits alone.
    pub batches: Vec<Data>,
    /// Records, spans or points in `batches`, as the protocol counts them.
    pub accepted: u64,
    pub rejected: Rejected,
}

/// A request that cannot be read at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);
