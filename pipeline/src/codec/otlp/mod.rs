//! OTLP: protobuf (and JSON, turned into protobuf first) to batches of the three signals.
//!
//! Logs and traces are read by a walker over the body's bytes ([`wire`]), with nothing copied but what is stored; what
//! holds for a whole resource or scope is worked out once for it. A body that is not protobuf is [`super::Malformed`];
//! a record that breaks a rule is refused alone, with its reason.

mod delta;
pub mod encode;
pub mod json;
mod logs;
mod metric_names;
mod metrics;
mod points;
mod salvage;
mod traces;
mod value;
pub mod wire;

#[cfg(test)]
mod tests;

pub use delta::Deltas;
pub use logs::decode_logs;
pub use metrics::{Totals, decode_metrics};
pub use traces::decode_traces;

use super::{Decoded, Limits, Malformed};

/// `body`: protobuf. `now`: nanoseconds since the epoch. `totals`: see [`decode_metrics`].
pub fn decode(
    body: &[u8],
    request: json::Request,
    limits: &Limits,
    now: i64,
    totals: Option<Totals<'_>>,
) -> Result<Decoded, Malformed> {
    match request {
        json::Request::Logs => decode_logs(body, limits, now),
        json::Request::Metrics => decode_metrics(body, limits, now, totals),
        json::Request::Traces => decode_traces(body, limits, now),
    }
}
