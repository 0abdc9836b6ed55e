//! Rows as OTLP: a request a line in OTLP's JSON, the form of OpenTelemetry's file exporters.
//!
//! What OTLP has no field for (a Prometheus series, the labels of a log stream) goes in marks that Sightline puts back and
//! others may ignore, as the sink `otlp` does it. Not kept: the bits of a NaN, times before 1970; `target_info` is made anew by
//! the receiver.

use pipeline::codec::{
    Limits,
    otlp::{
        encode::encode,
        json::{Request, from_protobuf},
    },
    rows,
};

use super::Signal;

/// Bytes of exported lines that become one request of logs or spans.
pub const PIECE_BYTES: usize = 4 << 20;

/// Bytes of exported lines of one request of metrics. It holds every point of its time: a histogram is several rows.
pub const SLICE_BYTES_MAX: usize = 32 << 20;

pub const fn request_of(signal: Signal) -> Request {
    match signal {
        Signal::Logs => Request::Logs,
        Signal::Metrics => Request::Metrics,
        Signal::Traces => Request::Traces,
    }
}

/// Which request a line holds, and where it is pushed to.
pub fn request_in(line: &[u8]) -> Option<&'static str> {
    let text = line.trim_ascii_start().strip_prefix(b"{")?.trim_ascii_start().strip_prefix(b"\"")?;
    let paths: [(&[u8], &'static str); 3] =
        [(b"resourceLogs\"", "/v1/logs"), (b"resourceMetrics\"", "/v1/metrics"), (b"resourceSpans\"", "/v1/traces")];
    paths.into_iter().find(|(name, _)| text.starts_with(name)).map(|(_, path)| path)
}

/// A line of the file.
#[derive(Debug)]
pub struct Line {
    pub json: String,
    pub rows: u64,
    /// Rows that OTLP has no form for: they are not in it.
    pub unsupported: u64,
}

/// `exported`: lines of `/api/v1/export`.
pub fn line(signal: Signal, exported: &[u8]) -> Result<Line, String> {
    // The server has taken these rows already; whoever reads the file has limits of its own.
    let limits = Limits {
        records_max: usize::MAX,
        record_bytes_max: usize::MAX,
        future_max: None,
        batch_rows_max: usize::MAX,
        batch_bytes_max: usize::MAX,
        ..Limits::default()
    };
    let decoded = rows::decode(exported, &limits, 0);
    if let Some(first) = decoded.rejected.details.first() {
        return Err(format!("cannot read the export: {}", first.message));
    }
    let mut body = Vec::new();
    let mut unsupported = 0;
    for data in &decoded.batches {
        let encoded = encode(data).map_err(|e| format!("cannot write rows as OTLP: {e}"))?;
        body.extend_from_slice(&encoded.body);
        unsupported += encoded.unsupported;
    }
    let json = from_protobuf(&body, request_of(signal)).map_err(|e| format!("cannot write rows as OTLP: {}", e.0))?;
    Ok(Line { json, rows: decoded.accepted - unsupported, unsupported })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_where_it_goes() {
        let logs = br#"{"row":"log","ts":5,"stream_labels":{"app":"shop"},"body":"x","attrs":{"n":1}}"#;
        let line = line(Signal::Logs, logs).unwrap();
        assert_eq!((line.rows, line.unsupported, request_in(line.json.as_bytes())), (1, 0, Some("/v1/logs")));
        assert!(line.json.contains(r#""timeUnixNano":"5""#) && !line.json.contains('\n'), "{}", line.json);
        assert_eq!(request_in(b" { \"resourceSpans\" : []}"), Some("/v1/traces"));
        assert_eq!(request_in(logs), None);
        assert!(super::line(Signal::Logs, b"{\"row\":\"log\"}").is_err());
    }
}
