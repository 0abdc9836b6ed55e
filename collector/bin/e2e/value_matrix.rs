//! Odd values against every push protocol: one record with the value between two good ones. The good ones are kept
//! whatever becomes of it, and what becomes of it is what this table says.

use std::{
    io::Write as _,
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse},
        metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse},
        trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value as Any},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    metrics::v1::{Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric, number_data_point},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;

use super::{
    client::{Client, encode},
    server::Server,
};

const DAY: i64 = 86_400_000_000_000;
/// In a request: a text whose first byte becomes one that UTF-8 does not know.
const BROKEN: &str = "broken-utf8";

/// What becomes of the odd record.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Kept,
    /// It alone, and the sender is told.
    Refused,
    /// It alone, counted, and nobody is told: what Prometheus does with a series of invalid labels in 1.0.
    Silent,
    /// The request cannot be read at all: 400.
    Whole,
    /// The protocol cannot say such a value, or not this one apart from another.
    None,
}
use Fate::{Kept, None as NoWay, Refused, Silent, Whole};

/// What is odd about a record.
#[derive(Clone, Debug)]
struct Odd {
    name: &'static str,
    labels: Vec<(String, String)>,
    /// Nanoseconds since the epoch; `None`: now.
    ts: Option<i64>,
    value: f64,
    fates: [Fate; 9],
}

/// In the order of the fates.
const PROTOCOLS: [&str; 9] = [
    "OTLP logs",
    "OTLP traces",
    "OTLP metrics",
    "Loki JSON",
    "Loki protobuf",
    "NDJSON",
    "remote write",
    "Elasticsearch bulk",
    "syslog",
];

fn with_syslog(all: Fate, syslog: Fate) -> [Fate; 9] {
    let mut fates = [all; 9];
    fates[8] = syslog;
    fates
}

fn cases(now: i64) -> Vec<Odd> {
    let plain = |name, fates| Odd { name, labels: vec![], ts: None, value: 1.0, fates };
    let labelled =
        |name, value: &str, fates| Odd { labels: vec![("odd".into(), value.into())], ..plain(name, fates) };
    let at = |name, ts, fates| Odd { ts: Some(ts), ..plain(name, fates) };
    let many = |n: usize| (0..n).map(|i| (format!("k{i}"), "v".to_owned())).collect();
    vec![
        plain("nothing odd", [Kept; 9]),
        labelled("UTF-8 fault", BROKEN, [Refused, Refused, Refused, Whole, Refused, Refused, Silent, Refused, Kept]),
        labelled("NUL", "a\0b", [Kept; 9]),
        labelled(
            "1 MiB label",
            &"x".repeat(1 << 20),
            [Kept, Kept, Kept, Refused, Refused, Kept, Refused, Kept, Kept],
        ),
        Odd {
            labels: vec![("odd".into(), "1".into()), ("odd".into(), "2".into())],
            ..plain("duplicate label", [Kept, Kept, Kept, Kept, Kept, Kept, Silent, Kept, Kept])
        },
        at("just after the epoch", 1_000_000, [Kept; 9]),
        // Syslog has no way to refuse: such a record gets the time of its arrival.
        at("a day ahead", now + DAY, with_syslog(Refused, Kept)),
        at("the end of time", i64::MAX, with_syslog(Refused, Kept)),
        Odd { value: f64::NAN, ..plain("NaN", [Kept, Kept, Kept, NoWay, NoWay, Refused, Kept, Refused, NoWay]) },
        Odd {
            value: f64::from_bits(0x7ff8_dead_beef_0001),
            ..plain("NaN with a payload", [Kept, Kept, Kept, NoWay, NoWay, NoWay, Kept, NoWay, NoWay])
        },
        Odd {
            value: f64::INFINITY,
            ..plain("infinity", [Kept, Kept, Kept, NoWay, NoWay, Refused, Kept, Refused, NoWay])
        },
        Odd { labels: many(100_000), ..plain("100,000 attributes", with_syslog(Refused, Kept)) },
    ]
}

/// A record of a request.
struct Record {
    /// Its body or name, which finds it again.
    mark: String,
    labels: Vec<(String, String)>,
    ts: i64,
    value: Option<f64>,
}

fn text(value: &str) -> Option<AnyValue> {
    Some(AnyValue { value: Some(Any::StringValue(value.into())) })
}

fn attributes(r: &Record) -> Vec<KeyValue> {
    let value = r.value.map(|v| KeyValue {
        key: "value".into(),
        value: Some(AnyValue { value: Some(Any::DoubleValue(v)) }),
        ..KeyValue::default()
    });
    let pair = |(k, v): &(String, String)| KeyValue { key: k.clone(), value: text(v), ..KeyValue::default() };
    r.labels.iter().map(pair).chain(value).collect()
}

fn resource(service: &str) -> Option<Resource> {
    let name = KeyValue { key: "service.name".into(), value: text(service), ..KeyValue::default() };
    Some(Resource { attributes: vec![name], ..Resource::default() })
}

fn otlp_logs(service: &str, records: &[Record]) -> Vec<u8> {
    let log_records = records
        .iter()
        .map(|r| LogRecord {
            time_unix_nano: r.ts as u64,
            body: text(&r.mark),
            attributes: attributes(r),
            ..LogRecord::default()
        })
        .collect();
    let scope_logs = vec![ScopeLogs { log_records, ..ScopeLogs::default() }];
    let group = ResourceLogs { resource: resource(service), scope_logs, ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![group] }.encode_to_vec()
}

fn otlp_traces(service: &str, trace: u64, records: &[Record]) -> Vec<u8> {
    let span = |(i, r): (usize, &Record)| Span {
        trace_id: u128::from(trace).to_be_bytes().to_vec(),
        span_id: (i as u64 + 1).to_be_bytes().to_vec(),
        name: r.mark.clone(),
        start_time_unix_nano: r.ts as u64,
        end_time_unix_nano: r.ts as u64,
        attributes: attributes(r),
        ..Span::default()
    };
    let spans = records.iter().enumerate().map(span).collect();
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let group = ResourceSpans { resource: resource(service), scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![group] }.encode_to_vec()
}

fn otlp_metrics(service: &str, records: &[Record]) -> Vec<u8> {
    let metric = |r: &Record| {
        let labels = Record { mark: String::new(), labels: r.labels.clone(), ts: 0, value: None };
        let point = NumberDataPoint {
            time_unix_nano: r.ts as u64,
            value: Some(number_data_point::Value::AsDouble(r.value.unwrap_or(1.0))),
            attributes: attributes(&labels),
            ..NumberDataPoint::default()
        };
        let data = metric::Data::Gauge(Gauge { data_points: vec![point] });
        Metric { name: r.mark.clone(), data: Some(data), ..Metric::default() }
    };
    let metrics = records.iter().map(metric).collect();
    let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
    let group = ResourceMetrics { resource: resource(service), scope_metrics, ..ResourceMetrics::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![group] }.encode_to_vec()
}

fn quoted(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string()
}

fn loki_json(service: &str, records: &[Record]) -> Vec<u8> {
    let stream = |r: &Record| {
        let labels: String = r.labels.iter().map(|(k, v)| format!(",{}:{}", quoted(k), quoted(v))).collect();
        format!(
            r#"{{"stream":{{"service_name":{}{labels}}},"values":[["{}",{}]]}}"#,
            quoted(service),
            r.ts,
            quoted(&r.mark)
        )
    };
    format!(r#"{{"streams":[{}]}}"#, records.iter().map(stream).collect::<Vec<_>>().join(",")).into_bytes()
}

#[derive(Clone, PartialEq, Message)]
struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    streams: Vec<PushStream>,
}

#[derive(Clone, PartialEq, Message)]
struct PushStream {
    #[prost(string, tag = "1")]
    labels: String,
    #[prost(message, repeated, tag = "2")]
    entries: Vec<PushEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct PushEntry {
    #[prost(message, optional, tag = "1")]
    timestamp: Option<PushTime>,
    #[prost(string, tag = "2")]
    line: String,
}

#[derive(Clone, PartialEq, Message)]
struct PushTime {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

fn loki_protobuf(service: &str, records: &[Record]) -> Vec<u8> {
    let streams = records
        .iter()
        .map(|r| {
            let labels: String = r.labels.iter().map(|(k, v)| format!(", {k}={}", quoted(v))).collect();
            let (seconds, nanos) = (r.ts.div_euclid(1_000_000_000), r.ts.rem_euclid(1_000_000_000) as i32);
            let entry = PushEntry { timestamp: Some(PushTime { seconds, nanos }), line: r.mark.clone() };
            PushStream { labels: format!("{{service_name={}{labels}}}", quoted(service)), entries: vec![entry] }
        })
        .collect();
    PushRequest { streams }.encode_to_vec()
}

/// Each record behind its action.
fn bulk(service: &str, records: &[Record]) -> Vec<u8> {
    let lines = String::from_utf8(ndjson(service, records)).unwrap();
    let named = |line: &str| {
        let line = line.replacen("\"ts\":", "\"@timestamp\":", 1).replacen("\"msg\":", "\"message\":", 1);
        format!("{{\"create\":{{}}}}\n{}\n", line.replacen("\"service_name\":", "\"service.name\":", 1))
    };
    lines.lines().map(named).collect::<String>().into_bytes()
}

fn ndjson(service: &str, records: &[Record]) -> Vec<u8> {
    let line = |r: &Record| {
        let labels: String = r.labels.iter().map(|(k, v)| format!(",{}:{}", quoted(k), quoted(v))).collect();
        let value = match r.value {
            None => String::new(),
            Some(v) if v.is_nan() => ",\"value\":NaN".into(),
            Some(v) if v.is_infinite() => ",\"value\":1e999".into(),
            Some(v) => format!(",\"value\":{v}"),
        };
        format!(
            "{{\"ts\":{},\"msg\":{},\"service_name\":{}{labels}{value}}}\n",
            r.ts,
            quoted(&r.mark),
            quoted(service)
        )
    };
    records.iter().map(line).collect::<String>().into_bytes()
}

#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<WriteLabel>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<WriteSample>,
}

#[derive(Clone, PartialEq, Message)]
struct WriteLabel {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct WriteSample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

fn remote_write(service: &str, records: &[Record]) -> Vec<u8> {
    let timeseries = records
        .iter()
        .map(|r| {
            let label = |(n, v): (&str, &str)| WriteLabel { name: n.into(), value: v.into() };
            let own = [("__name__", r.mark.as_str()), ("job", service)].into_iter().map(label);
            let mut labels: Vec<WriteLabel> =
                own.chain(r.labels.iter().map(|(n, v)| label((n.as_str(), v.as_str())))).collect();
            labels.sort_by(|a, b| a.name.cmp(&b.name));
            let sample = WriteSample { value: r.value.unwrap_or(1.0), timestamp: r.ts / 1_000_000 };
            TimeSeries { labels, samples: vec![sample] }
        })
        .collect();
    WriteRequest { timeseries }.encode_to_vec()
}

/// Each message with its count ahead; what a cut leaves of it tells its name all the same.
fn syslog(service: &str, records: &[Record]) -> Vec<u8> {
    let message = |r: &Record| {
        let time = chrono::DateTime::from_timestamp_nanos(r.ts).to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        let pairs: String = r.labels.iter().map(|(k, v)| format!(" {k}={}", quoted(v))).collect();
        let data = if pairs.is_empty() { "-".to_owned() } else { format!("[odd{pairs}]") };
        let message = format!("<13>1 {time} - {service} - {} {data} {}", r.mark, r.mark).replace("\\u0000", "\0");
        format!("{} {message}", message.len()).into_bytes()
    };
    records.iter().flat_map(message).collect()
}

fn with_fault(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(at) = bytes.windows(BROKEN.len()).position(|w| w == BROKEN.as_bytes()) {
        bytes[at] = 0xff;
    }
    bytes
}

/// Which of the marks a query finds.
fn found(server: &Server, protocol: usize, service: &str, trace: u64, marks: &[String], times: &[i64]) -> Vec<bool> {
    let has = |path: String, mark: &str| {
        let answer = server.get(&path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.text().contains(&format!("\"{mark}\""))
    };
    marks
        .iter()
        .zip(times)
        .map(|(mark, ts)| match protocol {
            1 => has(format!("/api/traces/{trace:032x}"), mark),
            2 | 6 => {
                // A little later: an instant query looks back.
                let at = (ts / 1_000_000 + 1) as f64 / 1e3;
                has(format!("/api/v1/query?time={at}&query={}", encode(&format!("{{__name__=\"{mark}\"}}"))), mark)
            }
            _ => {
                let (start, end) = match protocol {
                    // Whatever becomes of its time, it must not be ahead.
                    8 => ((*ts.min(&times[0]) - DAY / 24).max(0), *ts.min(&times[0]) + DAY / 24),
                    _ => (ts.saturating_sub(1_000_000), ts.saturating_add(1_000_000)),
                };
                let selector = encode(&format!("{{service_name=\"{service}\"}}"));
                let path = format!("/loki/api/v1/query_range?query={selector}&limit=100&start={start}&end={end}");
                has(path, mark)
            }
        })
        .collect()
}

/// Through the socket of the source; waits until all of it is stored.
fn send_syslog(server: &Server, socket: &Path, body: &[u8], records: usize) {
    let delivered = || {
        let text = server.get("/metrics").text();
        let line = text.lines().find(|l| l.starts_with("collector_syslog_delivered_total{source=\"odd\"} "));
        line.and_then(|l| l.rsplit_once(' ')?.1.parse::<usize>().ok()).expect("the source counts")
    };
    let before = delivered();
    UnixStream::connect(socket).unwrap().write_all(body).unwrap();
    for _ in 0..1000 {
        if delivered() == before + records {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{} of {records} messages are there", delivered() - before);
}

/// The status, and how many records the sender was told were refused.
fn send(
    server: &Server,
    socket: &Path,
    protocol: usize,
    service: &str,
    trace: u64,
    records: &[Record],
) -> (u16, i64) {
    const PROTOBUF: &str = "application/x-protobuf";
    let body = with_fault(match protocol {
        0 => otlp_logs(service, records),
        1 => otlp_traces(service, trace, records),
        2 => otlp_metrics(service, records),
        3 => loki_json(service, records),
        4 => loki_protobuf(service, records),
        5 => ndjson(service, records),
        6 => remote_write(service, records),
        7 => bulk(service, records),
        _ => syslog(service, records),
    });
    if protocol == 8 {
        send_syslog(server, socket, &body, records.len());
        return (200, 0);
    }
    let body = if matches!(protocol, 4 | 6) { snap::raw::Encoder::new().compress_vec(&body).unwrap() } else { body };
    let (path, media) = match protocol {
        0 => ("/v1/logs", PROTOBUF),
        1 => ("/v1/traces", PROTOBUF),
        2 => ("/v1/metrics", PROTOBUF),
        3 => ("/loki/api/v1/push", "application/json"),
        4 => ("/loki/api/v1/push", PROTOBUF),
        5 => ("/ingest/ndjson?time_field=ts&message_field=msg&stream_fields=service_name", "application/x-ndjson"),
        6 => ("/api/v1/write", PROTOBUF),
        _ => ("/logs-odd/_bulk", "application/x-ndjson"),
    };
    let answer = Client::new(server.http).send("POST", path, &[("Content-Type", media)], &body);
    let answer = answer.unwrap_or_else(|e| panic!("{}: {e}", PROTOCOLS[protocol]));
    let refused = match (protocol, answer.status) {
        (0, 200) => ExportLogsServiceResponse::decode(&answer.body[..])
            .unwrap()
            .partial_success
            .map_or(0, |p| p.rejected_log_records),
        (1, 200) => ExportTraceServiceResponse::decode(&answer.body[..])
            .unwrap()
            .partial_success
            .map_or(0, |p| p.rejected_spans),
        (2, 200) => ExportMetricsServiceResponse::decode(&answer.body[..])
            .unwrap()
            .partial_success
            .map_or(0, |p| p.rejected_data_points),
        (5, 200) => answer.json()["rejected"].as_i64().unwrap(),
        (7, 200) => {
            let json = answer.json();
            let items = json["items"].as_array().unwrap();
            items.iter().filter(|i| i["create"]["status"] != 201).count() as i64
        }
        _ => i64::from(answer.status == 400),
    };
    (answer.status, refused)
}

#[test]
fn an_odd_value_gets_its_documented_answer_and_costs_its_neighbours_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, config) = (dir.path().join("syslog"), dir.path().join("odd.yaml"));
    std::fs::write(&config, format!("sources: {{odd: {{type: syslog, unix_stream: {}}}}}\n", socket.display()))
        .unwrap();
    let server = Server::start(&dir.path().join("data"), &["--no-collect", "--config", &config.to_string_lossy()]);
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
    let mut wrong = Vec::new();
    for (c, case) in cases(now).iter().enumerate() {
        for (p, protocol) in PROTOCOLS.iter().enumerate().filter(|(p, _)| case.fates[*p] != NoWay) {
            let service = format!("case{c}_{p}");
            let trace = (c * 16 + p + 1) as u64;
            let marks: Vec<String> = ["first", "odd", "last"].iter().map(|m| format!("{m}_{c}_{p}")).collect();
            let times = [now, case.ts.unwrap_or(now), now];
            let records: Vec<Record> = (0..3)
                .map(|i| Record {
                    mark: marks[i].clone(),
                    labels: if i == 1 { case.labels.clone() } else { Vec::new() },
                    ts: times[i],
                    value: (i == 1).then_some(case.value),
                })
                .collect();
            let (status, refused) = send(&server, &socket, p, &service, trace, &records);
            let kept = found(&server, p, &service, trace, &marks, &times);
            let fate = match (kept.as_slice(), refused, status) {
                ([true, true, true], 0, 200 | 204) => Some(Kept),
                ([true, false, true], 1, 200 | 400) => Some(Refused),
                ([true, false, true], 0, 204) => Some(Silent),
                ([false, false, false], _, 400) => Some(Whole),
                _ => None,
            };
            if fate != Some(case.fates[p]) {
                let want = case.fates[p];
                wrong.push(format!(
                    "{} by {protocol}: {status}, {refused} refused, kept {kept:?}; want {want:?}",
                    case.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
