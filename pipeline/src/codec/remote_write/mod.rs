//! Prometheus remote write 1.0 and 2.0: protobuf (no longer snappy-compressed) to metric batches, and back.
//!
//! **For** a receiver and a sender of remote write. **Not for** negotiating versions or compressing: that is HTTP.
//! The body is walked where it lies: a series costs one text of its labels, a sample nothing but its columns. Bits of
//! values are kept (stale markers). What breaks a rule is refused alone; only a body that is not protobuf is
//! [`super::Malformed`].
//!
//! Limits that are ours: [`super::Limits`] `series_labels_max`, `label_name_bytes_max`, `series_value_bytes_max`.

mod decode;
mod encode;
mod families;
pub(in crate::codec) mod histogram;
mod known;

#[cfg(test)]
mod tests;

pub use decode::{Write, decode, decode_known};
pub use encode::{encode_v1, encode_v2};
pub use families::{Families, Family};
pub use known::{Declared, KNOWN_SERIES_MAX, KnownSeries};

/// Which message a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `prometheus.WriteRequest`.
    V1,
    /// `io.prometheus.write.v2.Request`.
    V2,
}

/// Metric types as the wire numbers them; 0 is unknown.
const TYPES: [&str; 8] =
    ["unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset"];

/// `None`: unknown.
fn type_name(number: u64) -> Option<&'static str> {
    TYPES.get(usize::try_from(number).ok().filter(|n| *n > 0)?).copied()
}

fn type_number(name: Option<&str>) -> u64 {
    name.and_then(|name| TYPES.iter().position(|t| *t == name)).unwrap_or(0) as u64
}
