//! Batches to OTLP requests: the decoders' inverse. What came in by OTLP goes out as it came, in terms of a batch:
//! `decode(encode(batch))` has the same rows.
//!
//! Rows that were born elsewhere (a container's line, a Prometheus sample) have things OTLP knows no field for. They are
//! sent as attributes any receiver can read, with a mark by which our own decoders put them back:
//! - resource attribute [`STREAM_LABELS`]: `true` says that the resource's attributes are the stream's labels and nothing
//!   else; a map holds the labels of a stream that has resource attributes beside.
//! - metric metadata [`SERIES`]: the metric is one Prometheus series as it is, its points' attributes are its labels.

mod logs;
mod metrics;
mod native;
mod origin;
mod traces;
pub(super) mod value;

#[cfg(test)]
mod tests;

pub use logs::encode_logs;
pub use metrics::encode_metrics;
pub use traces::encode_traces;

use super::wire::put_varint;
use crate::{Data, codec::columns::EncodeError};

/// Resource attribute: what the labels of a log stream are, where the resource's attributes do not tell.
pub const STREAM_LABELS: &str = "sightline.stream_labels";
/// Metadata of a metric that is a Prometheus series as it is; the value is the series' type.
pub const SERIES: &str = "sightline.series";
/// Metadata beside [`SERIES`]: the series' origin, canonical JSON.
pub const ORIGIN: &str = "sightline.origin";

/// Rows as a request body, and how many rows have no form in it (a histogram with counts that are not whole).
///
/// Bodies of the same signal may be put one after the other: together they are one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    pub body: Vec<u8>,
    pub unsupported: u64,
}

pub fn encode(data: &Data) -> Result<Encoded, EncodeError> {
    match data {
        Data::Logs(b) => encode_logs(b).map(|body| Encoded { body, unsupported: 0 }),
        Data::Spans(b) => encode_traces(b).map(|body| Encoded { body, unsupported: 0 }),
        Data::Metrics(m) => encode_metrics(m),
    }
}

fn put_fixed64(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_fixed32(out: &mut Vec<u8>, number: u32, value: u32) {
    put_varint(out, u64::from(number) << 3 | 5);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A time as the wire has it, where zero means that there is none: the epoch itself becomes the nanosecond after.
fn wire_time(ns: i64) -> u64 {
    u64::try_from(ns).unwrap_or(0).max(1)
}
