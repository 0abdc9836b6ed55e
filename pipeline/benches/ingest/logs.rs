//! The same log records as NDJSON and as OTLP protobuf.

use std::{
    fmt::Write as _,
    fs::File,
    io::{BufRead as _, BufReader},
};

use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value as Any},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    resource::v1::Resource,
};
use pipeline::codec::{Limits, ndjson, otlp};
use prost::Message as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use crate::measure::{Requests, settle};

/// Bytes of NDJSON in one request; the OTLP request holds the same lines.
const REQUEST_BYTES: usize = 8_000_000;

/// A time after every line.
const NOW: i64 = 1_900_000_000_000_000_000;

pub async fn run(lines: usize, rounds: usize) {
    let (mut plain, mut protobuf) = (Requests::new(), Requests::new());
    let mut request = String::new();
    let mut source = Source::open(lines);
    loop {
        let more = source.next(&mut request);
        if request.len() >= REQUEST_BYTES || (!more && !request.is_empty()) {
            let records = request.lines().count() as u64;
            plain.push(request.as_bytes(), records);
            protobuf.push(&otlp_request(&request), records);
            request.clear();
        }
        if !more {
            break;
        }
    }
    let params = ndjson::Params::new(Some("ts"), Some("msg"), Some("namespace,app,pod,node")).expect("parameters");
    let limits = Limits::default();
    // By turns, and the cheapest of each counts: what else the machine does comes and goes.
    let (mut ndjson, mut otlp) = (None, None);
    for _ in 0..rounds.max(1) {
        let cost = settle(&mut plain, |body| ndjson::decode(body, &params, &limits, NOW)).await;
        ndjson = Some(cost.or_cheaper(ndjson));
        let cost = settle(&mut protobuf, |body| otlp::decode_logs(body, &limits, NOW).expect("protobuf")).await;
        otlp = Some(cost.or_cheaper(otlp));
    }
    let (Some(ndjson), Some(otlp)) = (ndjson, otlp) else { return };
    ndjson.print("logs, NDJSON", plain.records, plain.bytes);
    otlp.print("logs, OTLP protobuf", protobuf.records, protobuf.bytes);
    println!("  OTLP takes {:.2} times the records per CPU-second of NDJSON", ndjson.total() / otlp.total());
}

enum Source {
    File(BufReader<File>),
    MadeUp { rng: Box<StdRng>, line: usize, lines: usize },
}

impl Source {
    fn open(lines: usize) -> Self {
        match std::env::var_os("SIGHTLINE_BENCH_INPUT") {
            Some(path) => {
                let file = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                println!("input: {}", path.display());
                Source::File(BufReader::new(file))
            }
            None => {
                println!("input: {lines} lines made up");
                Source::MadeUp { rng: Box::new(StdRng::seed_from_u64(1)), line: 0, lines }
            }
        }
    }

    /// Appends the next line; `false` at the end.
    fn next(&mut self, out: &mut String) -> bool {
        match self {
            Source::File(file) => file.read_line(out).expect("input") > 0,
            Source::MadeUp { line, lines, .. } if line == lines => false,
            Source::MadeUp { rng, line, lines } => {
                let step = 6 * 3_600_000_000_000 / *lines as u64;
                make_up(rng, 1_767_225_600_000_000_000 + *line as u64 * step, out);
                *line += 1;
                true
            }
        }
    }
}

/// One line of eight kinds of program, each with sixteen pods.
fn make_up(rng: &mut StdRng, ts: u64, out: &mut String) {
    let (kind, pod) = (rng.random_range(0..8usize), rng.random_range(0..16u32));
    let (a, b, c): (u64, u32, u32) = (rng.random(), rng.random_range(0..256), rng.random_range(1..60_000));
    let app = ["storage", "shop", "proxy", "queue", "sshd", "batch", "kernel", "auth"][kind];
    let space = ["data", "prod", "infra", "staging"][kind % 4];
    let level = ["info", "info", "info", "info", "info", "warn", "error"][rng.random_range(0..7)];
    let node = (pod * 7 + kind as u32) % 20;
    let _ = write!(
        out,
        r#"{{"ts":{ts},"namespace":"{space}","app":"{app}","pod":"{app}-5f{pod:02x}c9-x{pod:03}","node":"node-{node:02}","level":"{level}","msg":""#
    );
    let _ = match kind {
        0 => write!(out, "Receiving block blk_{a} src: /10.250.{b}.102:{c} dest: /10.250.19.{b}:50010"),
        1 => write!(out, "order {a:016x} placed by user{c} total={b}.{:02} EUR items={}", b % 100, b % 9),
        2 => write!(
            out,
            r#"10.1.{b}.7 - - \"GET /api/v2/items/{c}?page={} HTTP/1.1\" {} {a} \"Mozilla/5.0 (X11; Linux)\""#,
            b % 30,
            [200, 200, 200, 304, 404, 500][rng.random_range(0..6)]
        ),
        3 => write!(
            out,
            "PacketResponder {} for topic events.{} partition {b} offset {a} committed in {c} us",
            b % 3,
            b % 40
        ),
        4 => write!(out, "Failed password for invalid user admin{b} from 203.0.113.{b} port {c} ssh2"),
        5 => write!(
            out,
            "INFO [executor task launch worker-{}] executor.Executor: Finished task {b}.0 in stage {}.0 (TID {c}). {} bytes result sent to driver",
            b % 16,
            b % 50,
            a % 100_000
        ),
        6 => write!(out, "[{c}.{b:06}] eth0: link is up, {} Mbps, full duplex, lpa 0x{a:04x}", (b % 4 + 1) * 1000),
        _ => write!(out, "session opened for user svc-{} by (uid={b}), token {a:032x} expires in {c}s", b % 64),
    };
    out.push('"');
    if rng.random_ratio(1, 5) {
        let _ = write!(out, r#","trace_id":"{:016x}{a:016x}""#, rng.random::<u64>());
    }
    out.push_str("}\n");
}

fn text<'v>(line: &'v Value, key: &str) -> &'v str {
    line[key].as_str().unwrap_or_default()
}

fn string(value: &str) -> Option<AnyValue> {
    Some(AnyValue { value: Some(Any::StringValue(value.to_owned())) })
}

/// The lines by resource, as a collector's batching gives them; stream fields are resource attributes.
fn otlp_request(lines: &str) -> Vec<u8> {
    let mut out = ExportLogsServiceRequest::default();
    let mut places = std::collections::HashMap::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).expect("NDJSON");
        let resource = [
            ("service.namespace", text(&line, "namespace")),
            ("service.name", text(&line, "app")),
            ("k8s.pod.name", text(&line, "pod")),
            ("k8s.node.name", text(&line, "node")),
        ];
        let group = *places.entry(resource.map(|r| r.1.to_owned())).or_insert_with(|| {
            let attributes = resource
                .iter()
                .map(|(k, v)| KeyValue { key: (*k).to_owned(), value: string(v), ..KeyValue::default() })
                .collect();
            out.resource_logs.push(ResourceLogs {
                resource: Some(Resource { attributes, ..Resource::default() }),
                scope_logs: vec![ScopeLogs::default()],
                ..ResourceLogs::default()
            });
            out.resource_logs.len() - 1
        });
        out.resource_logs[group].scope_logs[0].log_records.push(LogRecord {
            time_unix_nano: line["ts"].as_u64().expect("ts"),
            severity_text: text(&line, "level").to_owned(),
            severity_number: match text(&line, "level") {
                "error" => 17,
                "warn" => 13,
                _ => 9,
            },
            body: string(text(&line, "msg")),
            trace_id: hex::decode(text(&line, "trace_id")).expect("hex"),
            ..LogRecord::default()
        });
    }
    out.encode_to_vec()
}
