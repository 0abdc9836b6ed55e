//! Decoding rate of log records, one thread: NDJSON, and the same records as OTLP protobuf and Loki JSON.
//!
//!     cargo bench -p sightline-pipeline --bench decode -- FILE.ndjson
//!
//! FILE: lines with ts, namespace, app, pod, node, level, msg, perhaps trace_id. Without it 200,000 lines are made up.
//! Prints records and megabytes for each second of the thread's CPU time, the best of five.

use std::{fmt::Write as _, hint::black_box, time::Instant};

use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value as Any},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    resource::v1::Resource,
};
use pipeline::codec::{Limits, loki, ndjson, otlp};
use prost::Message as _;
use serde_json::{Value, json};

/// Bytes of one request: what a shipper sends at once.
const REQUEST_BYTES: usize = 8_000_000;

/// Records of one OTLP resource group.
const GROUP: usize = 512;

const NOW: i64 = 1_900_000_000_000_000_000;

fn main() {
    let file = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let text = match &file {
        Some(path) => std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}")),
        None => made_up(200_000),
    };
    let records = text.lines().count();
    let limits = Limits::default();

    let mut requests = Vec::new();
    let mut request = String::new();
    for line in text.lines() {
        request.push_str(line);
        request.push('\n');
        if request.len() >= REQUEST_BYTES {
            requests.push(std::mem::take(&mut request));
        }
    }
    requests.push(request);
    let params = ndjson::Params::new(Some("ts"), Some("msg"), Some("namespace,app,pod,node")).expect("fine");
    rate("ndjson", records, text.len(), || {
        requests.iter().map(|r| ndjson::decode(r.as_bytes(), &params, &limits, NOW).accepted).sum()
    });

    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("NDJSON")).collect();
    let bodies: Vec<Vec<u8>> = lines.chunks(GROUP * 16).map(otlp_request).collect();
    rate("otlp protobuf", records, bodies.iter().map(Vec::len).sum(), || {
        bodies.iter().map(|b| otlp::decode_logs(b, &limits, NOW).expect("valid").accepted).sum()
    });

    let bodies: Vec<String> = lines.chunks(GROUP * 16).map(loki_request).collect();
    rate("loki json", records, bodies.iter().map(String::len).sum(), || {
        bodies.iter().map(|b| loki::decode_json(b.as_bytes(), &limits, NOW).expect("valid").decoded.accepted).sum()
    });
}

fn rate(what: &str, records: usize, bytes: usize, decode: impl Fn() -> u64) {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let from = cpu_seconds();
        assert_eq!(black_box(decode()), records as u64, "{what}");
        best = best.min(cpu_seconds() - from);
    }
    let (rate, megabytes) = (records as f64 / best, bytes as f64 / 1e6 / best);
    println!("{what:14} {records} records, {bytes} bytes: {rate:.0} records/CPU-s, {megabytes:.0} MB/CPU-s");
}

/// CPU time of this thread; where the kernel does not tell, time.
fn cpu_seconds() -> f64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    std::fs::read_to_string("/proc/self/schedstat")
        .ok()
        .and_then(|s| s.split(' ').next()?.parse::<u64>().ok())
        .map_or_else(|| START.get_or_init(Instant::now).elapsed().as_secs_f64(), |ns| ns as f64 / 1e9)
}

fn made_up(lines: usize) -> String {
    let mut out = String::new();
    for i in 0..lines as u64 {
        let app = i % 16;
        let id = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let _ = write!(
            out,
            r#"{{"ts":{},"namespace":"prod","app":"app-{app}","pod":"app-{app}-{:x}","node":"node-{}","level":"info","msg":"Receiving block blk_{id} src: /10.250.{}.{}:54106 dest: /10.250.19.102:50010 \"ok\"""#,
            1_767_225_600_000_000_000 + i * 5_000_000,
            i % 8,
            i % 20,
            i % 256,
            id % 256,
        );
        if i % 5 == 0 {
            let _ = write!(out, r#","trace_id":"{:016x}{:016x}""#, id, !id);
        }
        out.push_str("}\n");
    }
    out
}

fn text<'v>(line: &'v Value, key: &str) -> &'v str {
    line[key].as_str().unwrap_or_default()
}

fn kv(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Any::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

fn otlp_request(lines: &[Value]) -> Vec<u8> {
    let group = |lines: &[Value]| ResourceLogs {
        resource: Some(Resource {
            attributes: ["namespace", "app", "pod", "node"].map(|k| kv(k, text(&lines[0], k))).to_vec(),
            ..Resource::default()
        }),
        scope_logs: vec![ScopeLogs {
            log_records: lines
                .iter()
                .map(|l| LogRecord {
                    time_unix_nano: l["ts"].as_u64().unwrap_or(1),
                    severity_text: text(l, "level").to_owned(),
                    severity_number: 9,
                    body: Some(AnyValue { value: Some(Any::StringValue(text(l, "msg").to_owned())) }),
                    attributes: vec![kv("level", text(l, "level")), kv("log.iostream", "stdout")],
                    trace_id: vec![7; if l["trace_id"].is_null() { 0 } else { 16 }],
                    ..LogRecord::default()
                })
                .collect(),
            ..ScopeLogs::default()
        }],
        ..ResourceLogs::default()
    };
    ExportLogsServiceRequest { resource_logs: lines.chunks(GROUP).map(group).collect() }.encode_to_vec()
}

fn loki_request(lines: &[Value]) -> String {
    let stream = |(i, lines): (usize, &[Value])| {
        let values: Vec<Value> = lines
            .iter()
            .enumerate()
            .map(|(j, l)| json!([(i * GROUP + j).to_string(), text(l, "msg"), { "level": text(l, "level") }]))
            .collect();
        json!({ "stream": { "app": text(&lines[0], "app"), "pod": text(&lines[0], "pod") }, "values": values })
    };
    json!({ "streams": lines.chunks(GROUP).enumerate().map(stream).collect::<Vec<_>>() }).to_string()
}
