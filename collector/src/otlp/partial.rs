//! What was accepted, what was not and why, in OTLP's words.

use pipeline::codec::{
    Decoded,
    otlp::{
        json::Request,
        wire::{put_bytes, put_int},
    },
};
use serde_json::json;

/// `ExportXServiceResponse` as protobuf; empty when nothing was refused.
pub fn protobuf(decoded: &Decoded) -> Vec<u8> {
    let mut out = Vec::new();
    let rejected = decoded.rejected.total();
    if rejected > 0 {
        let mut partial = Vec::new();
        put_int(&mut partial, 1, rejected);
        put_bytes(&mut partial, 2, decoded.rejected.summary().as_bytes());
        put_bytes(&mut out, 1, &partial);
    }
    out
}

/// The same as JSON; 64-bit integers are strings.
pub fn json(decoded: &Decoded, request: Request) -> String {
    let rejected = decoded.rejected.total();
    if rejected == 0 {
        return "{}".to_owned();
    }
    let name = match request {
        Request::Logs => "rejectedLogRecords",
        Request::Metrics => "rejectedDataPoints",
        Request::Traces => "rejectedSpans",
    };
    json!({ "partialSuccess": { name: rejected.to_string(), "errorMessage": decoded.rejected.summary() } })
        .to_string()
}
