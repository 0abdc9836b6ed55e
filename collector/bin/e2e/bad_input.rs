//! What is broken, hostile or over a limit gets the documented answer in its protocol's own shape; good records of the
//! same request are kept; the server lives on.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse},
        metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse},
        trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    },
    common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value as Any},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    metrics::v1::{Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric, number_data_point},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;

use super::{
    client::{Answer, encode},
    grpc,
    server::Server,
};

const LOGS: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
const METRICS: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";
const NDJSON: &str = "/ingest/ndjson?time_field=ts&message_field=msg&stream_fields=app";
const REMOTE_WRITE: &str = "/api/v1/write";
const LOKI: &str = "/loki/api/v1/push";
const IMPORT: &str = "/api/v1/import";
const SQL: &str = "/api/v1/sql";
const BULK: &str = "/logs-app/_bulk";

const INVALID_ARGUMENT: u16 = 3;
const RESOURCE_EXHAUSTED: u16 = 8;

/// Bytes a request may inflate to.
const INFLATED_MAX: usize = 64 << 20;

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

fn now_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

const MINUTE: u64 = 60_000_000_000;
const DAY: u64 = 24 * 60 * MINUTE;

fn post(addr: SocketAddr, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let answer = super::client::Client::new(addr).send("POST", path, headers, body);
    answer.unwrap_or_else(|e| panic!("POST {path} {headers:?}: {e}"))
}

/// The refusal is what OTLP says: `google.rpc.Status` in the request's encoding.
fn assert_otlp_refusal(answer: &Answer, status: u16, code: i32, media: &str, what: &str) {
    assert_eq!(answer.status, status, "{what}: {}", answer.text());
    assert_eq!(answer.header("content-type"), Some(media), "{what}");
    if media == JSON {
        let json = answer.json();
        assert_eq!(json["code"], code, "{what}: {json}");
        assert!(!json["message"].as_str().unwrap().is_empty(), "{what}");
    } else {
        let told = Status::decode(&answer.body[..]).unwrap();
        assert!(told.code == code && !told.message.is_empty(), "{what}: {told:?}");
    }
}

/// Sends one good line and finds it: the server is alive.
fn assert_alive(server: &Server) {
    let app = format!("alive-{}", now_ns());
    let line = format!("{{\"ts\":{},\"app\":\"{app}\",\"msg\":\"here\"}}\n", now_ns());
    let answer = post(server.http, NDJSON, &[], line.as_bytes());
    assert_eq!((answer.status, &answer.json()["accepted"]), (200, &1.into()));
    assert_eq!(lines(server, &app).len(), 1);
    assert_eq!(server.get("/ready").status, 200);
}

/// Lines of `{app="..."}` (or `service_name`) of the last weeks, oldest first.
fn lines(server: &Server, app: &str) -> Vec<String> {
    lines_between(server, &format!("{{service_name=\"{app}\"}}"), now_ns() - 20 * DAY, now_ns() + DAY)
}

fn lines_between(server: &Server, selector: &str, start: u64, end: u64) -> Vec<String> {
    let answer = server.get(&format!(
        "/loki/api/v1/query_range?query={}&start={start}&end={end}&limit=5000&direction=forward",
        encode(selector)
    ));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    let streams = json["data"]["result"].as_array().unwrap();
    let mut found: Vec<(String, String)> = Vec::new();
    for value in streams.iter().flat_map(|s| s["values"].as_array().unwrap()) {
        found.push((value[0].as_str().unwrap().to_owned(), value[1].as_str().unwrap().to_owned()));
    }
    found.sort();
    found.into_iter().map(|(_, line)| line).collect()
}

fn text(value: &str) -> Option<AnyValue> {
    Some(AnyValue { value: Some(Any::StringValue(value.into())) })
}

fn attribute(key: &str, value: Option<AnyValue>) -> KeyValue {
    KeyValue { key: key.into(), value, ..KeyValue::default() }
}

fn resource(service: &str) -> Option<Resource> {
    Some(Resource { attributes: vec![attribute("service.name", text(service))], ..Resource::default() })
}

fn logs(service: &str, records: Vec<LogRecord>) -> Vec<u8> {
    let scope_logs = vec![ScopeLogs { log_records: records, ..ScopeLogs::default() }];
    let group = ResourceLogs { resource: resource(service), scope_logs, ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![group] }.encode_to_vec()
}

fn log(time_unix_nano: u64, body: &str) -> LogRecord {
    LogRecord { time_unix_nano, body: text(body), ..LogRecord::default() }
}

/// The text `mark` in encoded bytes made into what is not UTF-8.
fn break_text(mut bytes: Vec<u8>, mark: &str) -> Vec<u8> {
    let at = bytes.windows(mark.len()).position(|w| w == mark.as_bytes()).expect("the mark is there");
    bytes[at] = 0xff;
    bytes
}

/// A value inside so many arrays.
fn nested(depth: usize) -> Option<AnyValue> {
    let mut value = text("deep");
    for _ in 0..depth {
        value = Some(AnyValue { value: Some(Any::ArrayValue(ArrayValue { values: value.into_iter().collect() })) });
    }
    value
}

#[test]
fn what_cannot_be_read_is_refused_in_each_protocols_shape() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    let garbage = [0xff; 40];
    for addr in [server.http, server.otlp_http] {
        for path in ["/v1/logs", "/v1/metrics", "/v1/traces"] {
            let bad = post(addr, path, &[("Content-Type", PROTOBUF)], &garbage);
            assert_otlp_refusal(&bad, 400, 3, PROTOBUF, path);
            for body in
                ["{", "[1]", "\"x\"", "{\"resourceLogs\":7,\"resourceMetrics\":7,\"resourceSpans\":7}", "\u{0}"]
            {
                let bad = post(addr, path, &[("Content-Type", "application/json; charset=utf-8")], body.as_bytes());
                assert_otlp_refusal(&bad, 400, 3, JSON, &format!("{path} {body}"));
            }
            for encoding in ["gzip", "zstd", "snappy", "deflate", "lz4"] {
                let headers = [("Content-Type", JSON), ("Content-Encoding", encoding)];
                assert_otlp_refusal(&post(addr, path, &headers, &garbage), 400, 3, JSON, encoding);
            }
            let headers = [("Content-Type", JSON), ("Content-Encoding", "br")];
            assert_otlp_refusal(&post(addr, path, &headers, b"{}"), 415, 3, JSON, "br");
            assert_eq!(post(addr, path, &[("Content-Type", "text/csv")], b"a,b").status, 415);
            // Nothing at all is a success.
            assert_eq!(post(addr, path, &[("Content-Type", PROTOBUF)], b"").status, 200);
        }
    }
    for method in [LOGS, METRICS, TRACES] {
        let broken = [
            grpc::framed(false, &garbage),
            vec![0, 0, 0],
            vec![0, 0, 0, 1, 0, 1],
            grpc::framed(true, &garbage),
            [&[9][..], &grpc::framed(false, b"")[1..]].concat(),
        ];
        for body in broken {
            let reply = grpc::call(server.otlp_grpc, method, "gzip", body);
            assert!(reply.status == INVALID_ARGUMENT && !reply.message.is_empty(), "{method}: {reply:?}");
        }
        assert_eq!(grpc::call(server.otlp_grpc, method, "br", grpc::framed(true, b"")).status, 12);
        assert_eq!(grpc::call(server.otlp_grpc, method, "", grpc::framed(false, b"")).status, 0);
    }
    assert_eq!(grpc::call(server.otlp_grpc, "/no.such.Service/Call", "", grpc::framed(false, b"")).status, 12);
    let snappy = |body: &[u8]| snap::raw::Encoder::new().compress_vec(body).unwrap();
    let json = [("Content-Type", JSON)];
    let mut refused = vec![
        post(server.http, LOKI, &json, b"{"),
        post(server.http, LOKI, &json, br#"{"streams":[{"stream":{"a":"b"},"values":[[17,"x"]]}]}"#),
        post(server.http, LOKI, &json, b"{\"streams\":[{\"stream\":{\"a\":\"b\"},\"values\":[[\"1\",\"\xff\"]]}]}"),
        post(server.http, LOKI, &[("Content-Type", PROTOBUF)], &garbage),
        post(server.http, LOKI, &[("Content-Type", PROTOBUF)], &snappy(&garbage)),
        post(server.http, LOKI, &[("Content-Type", JSON), ("Content-Encoding", "br")], b"{}"),
        post(server.http, LOKI, &[("Content-Type", JSON), ("Content-Encoding", "gzip")], b"{}"),
    ];
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    refused.push(post(server.http, LOKI, &json, format!("{{\"streams\":{deep}}}").as_bytes()));
    for answer in refused {
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.text().ends_with('\n') && answer.text().trim().len() > 3, "{:?}", answer.text());
    }
    for none in ["{}", "null", "{\"streams\":[]}"] {
        assert_eq!(post(server.http, LOKI, &json, none.as_bytes()).status, 422, "{none}");
    }
    for line in [&b"{\n"[..], b"7\n", b"{\"ts\":\"soon\",\"msg\":\"x\"}\n", b"\xff\xfe\n", deep.as_bytes()] {
        let answer = post(server.http, NDJSON, &[], line);
        let json = answer.json();
        assert_eq!((answer.status, &json["accepted"], &json["rejected"]), (400, &0.into(), &1.into()), "{json}");
        assert_eq!(json["errors"][0]["line"], 1, "{json}");
    }
    assert_eq!(post(server.http, NDJSON, &[("Content-Encoding", "gzip")], b"{}").status, 400);
    let gzip = [("Content-Type", "application/x-ndjson"), ("Content-Encoding", "gzip")];
    let lines = &gzip[..1];
    for (headers, body, status) in [
        (&gzip[..], &garbage[..], 400),
        (lines, &garbage[..], 400),
        (lines, b"{\"create\":{}}\n", 400),
        (lines, deep.as_bytes(), 400),
        (&[("Content-Type", "text/csv")][..], b"a", 406),
        (&[("Content-Encoding", "br")][..], b"{}", 415),
    ] {
        let answer = post(server.http, BULK, headers, body);
        let json = answer.json();
        assert_eq!((answer.status, &json["status"]), (status, &status.into()), "{json}");
        assert_eq!(answer.header("x-elastic-product"), Some("Elasticsearch"), "{json}");
        assert!(!json["error"]["reason"].as_str().unwrap().is_empty(), "{json}");
    }
    assert_alive(&server);
}

/// Mebibytes of zeros, gzipped member after member.
fn gzip_zeros(mib: usize) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&vec![0; 16 << 20]).unwrap();
    encoder.finish().unwrap().repeat(mib / 16)
}

fn zstd_zeros(mib: usize) -> Vec<u8> {
    zstd::stream::encode_all(std::io::repeat(0).take((mib << 20) as u64), 1).unwrap()
}

/// Bytes of the process's `VmRSS` or `VmHWM`.
fn memory(server: &Server, field: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// Starts the high-water mark anew.
fn forget_peak(server: &Server) {
    std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").unwrap();
}

/// Zeros through a writer that compresses.
fn zeros_through<W>(mib: usize, mut writer: W, finish: impl FnOnce(W) -> Vec<u8>) -> Vec<u8>
where
    W: std::io::Write,
{
    let zeros = vec![0; 1 << 20];
    (0..mib).for_each(|_| writer.write_all(&zeros).unwrap());
    finish(writer)
}

#[test]
fn a_compression_bomb_is_413_within_a_second_and_costs_at_most_twice_the_cap() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    assert_alive(&server);
    let zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    let block = snap::raw::Encoder::new().compress_vec(&vec![0; INFLATED_MAX + 1]).unwrap();
    // A length of 4 GiB and nothing behind it.
    let boast = vec![0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0];
    let encodings: [(&str, Vec<u8>); 8] = [
        ("gzip", gzip_zeros(1024)),
        ("zstd", zstd_zeros(1024)),
        ("deflate", zeros_through(128, zlib, |w| w.finish().unwrap())),
        ("deflate", zeros_through(128, deflate, |w| w.finish().unwrap())),
        ("snappy", zeros_through(128, snap::write::FrameEncoder::new(Vec::new()), |w| w.into_inner().unwrap())),
        ("snappy", block.clone()),
        ("snappy", boast.clone()),
        ("lz4", zeros_through(128, lz4_flex::frame::FrameEncoder::new(Vec::new()), |w| w.finish().unwrap())),
    ];
    let routes = [
        ("/v1/logs", PROTOBUF),
        ("/v1/metrics", JSON),
        ("/v1/traces", PROTOBUF),
        (LOKI, JSON),
        (NDJSON, JSON),
        (IMPORT, JSON),
        (BULK, "application/x-ndjson"),
        ("/elasticsearch/_bulk", JSON),
    ];
    let mut bombs: Vec<(&str, &str, &str, &[u8])> = Vec::new();
    for (path, media) in routes {
        bombs.extend(encodings.iter().map(|(encoding, body)| (path, media, *encoding, &body[..])));
    }
    // These two are compressed without saying so.
    for path in [LOKI, REMOTE_WRITE] {
        bombs.extend([(path, PROTOBUF, "", &block[..]), (path, PROTOBUF, "", &boast[..])]);
    }
    let mut most = 0;
    for (path, media, encoding, body) in bombs {
        let headers: &[(&str, &str)] = match encoding {
            "" => &[("Content-Type", media)],
            encoding => &[("Content-Type", media), ("Content-Encoding", encoding)],
        };
        let before = memory(&server, "VmRSS");
        forget_peak(&server);
        // The best of three: others work on this machine too.
        let mut took = Duration::MAX;
        for _ in 0..3 {
            let started = Instant::now();
            let answer = post(server.http, path, headers, body);
            assert_eq!(answer.status, 413, "{path} {encoding}: {}", answer.text());
            if path.starts_with("/v1/") {
                assert_otlp_refusal(&answer, 413, 8, media, path);
            }
            took = took.min(started.elapsed());
            if took < Duration::from_secs(1) {
                break;
            }
        }
        assert!(took < Duration::from_secs(1), "{path} {encoding} took {took:?}");
        let rise = memory(&server, "VmHWM").saturating_sub(before);
        assert!(rise <= 2 * INFLATED_MAX, "{path} {encoding} took {} MiB", rise >> 20);
        most = most.max(rise);
    }
    for method in [LOGS, METRICS, TRACES] {
        for (encoding, body) in &encodings[..2] {
            let before = memory(&server, "VmRSS");
            forget_peak(&server);
            let reply = grpc::call(server.otlp_grpc, method, encoding, grpc::framed(true, body));
            assert_eq!(reply.status, RESOURCE_EXHAUSTED, "{method} {encoding}: {reply:?}");
            let rise = memory(&server, "VmHWM").saturating_sub(before);
            assert!(rise <= 2 * INFLATED_MAX, "{method} {encoding} took {} MiB", rise >> 20);
            most = most.max(rise);
        }
    }
    println!("the worst took {} MiB more", most >> 20);
    assert_alive(&server);
}

#[test]
fn many_compression_bombs_at_once_stay_within_the_memory_limit() {
    const LIMIT: usize = 256 << 20;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect", "--memory-limit", "256MiB"]);
    assert_alive(&server);
    let bomb = zstd_zeros(1024);
    let before = memory(&server, "VmRSS");
    forget_peak(&server);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                let headers = [("Content-Type", PROTOBUF), ("Content-Encoding", "zstd")];
                let answer = post(server.http, "/v1/logs", &headers, &bomb);
                // Told to come back is right too.
                assert!([413, 503].contains(&answer.status), "{}", answer.text());
            });
        }
    });
    let rise = memory(&server, "VmHWM").saturating_sub(before);
    assert!(rise < LIMIT, "32 at once took {} MiB", rise >> 20);
    assert_alive(&server);
}

#[test]
fn a_body_over_the_limit_is_413_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    for path in ["/v1/logs", LOKI, NDJSON, IMPORT, BULK, REMOTE_WRITE] {
        let mut stream = TcpStream::connect(server.http).unwrap();
        let media = if path == REMOTE_WRITE { PROTOBUF } else { JSON };
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {media}\r\nContent-Length: {}\r\n\r\n{{",
            200 << 20
        );
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 413", "{path}");
    }
    assert_alive(&server);
}

#[test]
fn sql_that_is_too_long_too_deep_or_no_sql_is_400_and_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    let ask = |body: &[u8]| post(server.http, SQL, &[("Content-Type", JSON)], body);
    assert_eq!(ask(b"{\"query\": \"select 1\"}").status, 200);
    let query = |text: &str| serde_json::json!({ "query": text }).to_string().into_bytes();
    let deep = |open: &str, close: &str| query(&format!("select {}1{}", open.repeat(50_000), close.repeat(50_000)));
    let bodies = [
        b"{".to_vec(),
        b"{\"query\": 7}".to_vec(),
        b"{\"query\": \"select 1\", \"x\": 1}".to_vec(),
        [&b"{\"query\": \"select "[..], &[0xff], b"\"}"].concat(),
        query(""),
        query("drop table logs"),
        query("select * from '/etc/passwd'"),
        query("copy logs to '/tmp/x'"),
        deep("(", ")"),
        deep("(select ", ")"),
        deep("- ", ""),
        deep("not ", ""),
        deep("case when 1=1 then ", " end"),
        query(&format!("select {}", vec!["1"; 100_000].join("+"))),
        format!("{{\"query\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes(),
        query(&"x".repeat(900_000)),
    ];
    let before = memory(&server, "VmRSS");
    forget_peak(&server);
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let answer = ask(&body);
        let json = answer.json();
        assert_eq!(
            (answer.status, &json["status"], &json["errorType"]),
            (400, &"error".into(), &"bad_data".into()),
            "{shown}: {json}"
        );
        assert!(!json["error"].as_str().unwrap().is_empty(), "{shown}");
    }
    // Whether one who sends on and on reads the refusal depends on when the connection ends.
    let giant = query(&"x".repeat(64 << 20));
    let told = super::client::Client::new(server.http).send("POST", SQL, &[("Content-Type", JSON)], &giant);
    assert!(told.as_ref().map_or(true, |a| a.status == 400), "{told:?}");
    let rise = memory(&server, "VmHWM").saturating_sub(before);
    assert!(rise <= INFLATED_MAX, "took {} MiB", rise >> 20);
    assert_alive(&server);
}

#[test]
fn syslog_without_end_or_sense_takes_no_memory_and_no_neighbour() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, config) = (dir.path().join("syslog"), dir.path().join("syslog.yaml"));
    std::fs::write(&config, format!("sources: {{s: {{type: syslog, unix_stream: {}}}}}\n", socket.display()))
        .unwrap();
    let server = Server::start(&dir.path().join("data"), &["--no-collect", "--config", &config.to_string_lossy()]);
    let before = memory(&server, "VmRSS");
    forget_peak(&server);
    let endless = vec![b'x'; 32 << 20];
    let binary: Vec<u8> = (0..8u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let counted = [b"9999999 <13>".as_slice(), &[b'y'; 1 << 20]].concat();
    for body in
        [&endless[..], &binary, &counted, b"999999999999999999999 <1>x\n", b"<999>1 \n<>\n\0\0<13>1 - - - - - [\n"]
    {
        use std::os::unix::net::UnixStream;
        UnixStream::connect(&socket).unwrap().write_all(body).unwrap();
        let mark = format!("after-{}", now_ns());
        UnixStream::connect(&socket).unwrap().write_all(format!("<13>1 - - {mark} - - - here\n").as_bytes()).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while lines(&server, &mark).is_empty() {
            assert!(Instant::now() < end, "the neighbour of {:?} is not there", &body[..20]);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let rise = memory(&server, "VmHWM").saturating_sub(before);
    assert!(rise <= 2 * INFLATED_MAX, "took {} MiB", rise >> 20);
    assert_alive(&server);
}

#[test]
fn otlp_logs_keep_the_good_records_and_name_the_bad_ones() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    let now = now_ns();
    let wide = |n: usize| (0..n).map(|i| attribute(&format!("key{i}"), text("v"))).collect::<Vec<_>>();
    let nan = AnyValue { value: Some(Any::DoubleValue(f64::NAN)) };
    let records = vec![
        log(now, "first"),
        log(now + 11 * MINUTE, "ahead"),
        log(now + 9 * MINUTE, "a little ahead"),
        log(90 * DAY, "ancient"),
        log(now, "broken-utf8"),
        LogRecord { attributes: wide(10_000), ..log(now, "wide") },
        LogRecord { attributes: wide(20_000), ..log(now, "too wide") },
        LogRecord { attributes: vec![attribute("v", nested(40))], ..log(now, "nested") },
        LogRecord { attributes: vec![attribute("v", nested(90))], ..log(now, "too nested") },
        LogRecord { attributes: vec![attribute("nan", Some(nan))], ..log(now, "nan") },
        log(now, &"x".repeat(5 << 20)),
        log(now + 1, "last"),
    ];
    let good = ["first", "last", "nan", "nested", "wide", "a little ahead"];
    for transport in ["http", "grpc"] {
        let service = format!("kept-{transport}");
        let body = break_text(logs(&service, records.clone()), "broken-utf8");
        let told = if transport == "http" {
            let answer = post(server.otlp_http, "/v1/logs", &[("Content-Type", PROTOBUF)], &body);
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.body
        } else {
            let reply = grpc::call(server.otlp_grpc, LOGS, "", grpc::framed(false, &body));
            assert_eq!(reply.status, 0, "{reply:?}");
            reply.body
        };
        let partial = ExportLogsServiceResponse::decode(&told[..]).unwrap().partial_success.unwrap();
        assert_eq!(partial.rejected_log_records, 5, "{}", partial.error_message);
        for word in ["ahead", "UTF-8", "attributes", "deep", "bytes"] {
            assert!(partial.error_message.contains(word), "{word}: {}", partial.error_message);
        }
        let mut found = lines(&server, &service);
        found.sort();
        let mut wanted = good;
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{transport}");
        let old = format!("{{service_name=\"{service}\"}}");
        assert_eq!(lines_between(&server, &old, 89 * DAY, 91 * DAY), ["ancient"], "{transport}");
    }
    // The same through JSON, with its own words.
    let body = format!(
        "{{\"resourceLogs\":[{{\"resource\":{{\"attributes\":[{{\"key\":\"service.name\",\"value\":{{\"stringValue\":\"kept-json\"}}}}]}},\
         \"scopeLogs\":[{{\"logRecords\":[{{\"timeUnixNano\":\"{now}\",\"body\":{{\"stringValue\":\"good\"}},\"unknown\":{{\"x\":[1]}}}},\
         {{\"timeUnixNano\":\"{}\",\"body\":{{\"stringValue\":\"ahead\"}}}}]}}]}}]}}",
        now + DAY
    );
    let answer = post(server.otlp_http, "/v1/logs", &[("Content-Type", JSON)], body.as_bytes());
    let json = answer.json();
    assert_eq!((answer.status, &json["partialSuccess"]["rejectedLogRecords"]), (200, &"1".into()), "{json}");
    assert!(json["partialSuccess"]["errorMessage"].as_str().unwrap().contains("ahead"), "{json}");
    assert_eq!(lines(&server, "kept-json"), ["good"]);
    assert_alive(&server);
}

#[test]
fn otlp_metrics_and_spans_keep_the_good_records_and_name_the_bad_ones() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    let now = now_ns();
    let gauge = |name: &str, points: &[(u64, f64)]| {
        let point = |(time_unix_nano, value): &(u64, f64)| NumberDataPoint {
            time_unix_nano: *time_unix_nano,
            value: Some(number_data_point::Value::AsDouble(*value)),
            ..NumberDataPoint::default()
        };
        let data = metric::Data::Gauge(Gauge { data_points: points.iter().map(point).collect() });
        Metric { name: name.into(), data: Some(data), ..Metric::default() }
    };
    let metrics = vec![
        gauge("good.one", &[(now, 1.5), (now + DAY, 2.0)]),
        gauge("not.a.number", &[(now, f64::NAN)]),
        gauge("endless", &[(now, f64::INFINITY)]),
        gauge("ancient", &[(90 * DAY, 3.0)]),
        gauge("broken-utf8", &[(now, 4.0)]),
        gauge("good.two", &[(now, 5.0)]),
    ];
    let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
    let group = ResourceMetrics { resource: resource("m"), scope_metrics, ..ResourceMetrics::default() };
    let body = ExportMetricsServiceRequest { resource_metrics: vec![group] }.encode_to_vec();
    let body = break_text(body, "broken-utf8");
    let reply = grpc::call(server.otlp_grpc, METRICS, "", grpc::framed(false, &body));
    assert_eq!(reply.status, 0, "{reply:?}");
    let partial = ExportMetricsServiceResponse::decode(&reply.body[..]).unwrap().partial_success.unwrap();
    assert_eq!(partial.rejected_data_points, 2, "{}", partial.error_message);
    let value = |query: &str| {
        let json = server.get(&format!("/api/v1/query?query={}", encode(query))).json();
        json["data"]["result"][0]["value"][1].as_str().map(str::to_owned)
    };
    for (name, expected) in [
        ("good_one", "1.5"),
        ("not_a_number", "NaN"),
        ("endless", "+Inf"),
        ("good_two", "5"),
        ("ancient @ 7776010", "3"),
    ] {
        assert_eq!(value(name).as_deref(), Some(expected), "{name}");
    }

    let span = |trace: u8, id: u8, start: u64, name: &str| Span {
        trace_id: vec![trace; 16],
        span_id: vec![id; 8],
        name: name.into(),
        start_time_unix_nano: start,
        end_time_unix_nano: start + 1000,
        ..Span::default()
    };
    let spans = vec![
        span(7, 1, now, "good"),
        span(0, 1, now, "no trace"),
        span(7, 0, now, "no id"),
        Span { trace_id: vec![7; 5], ..span(7, 2, now, "short trace") },
        span(7, 3, now + DAY, "ahead"),
        span(7, 4, now, "broken-utf8"),
        Span { end_time_unix_nano: now - 5, ..span(7, 5, now, "ends before it starts") },
    ];
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let group = ResourceSpans { resource: resource("s"), scope_spans, ..ResourceSpans::default() };
    let body = break_text(ExportTraceServiceRequest { resource_spans: vec![group] }.encode_to_vec(), "broken-utf8");
    let answer = post(server.otlp_http, "/v1/traces", &[("Content-Type", PROTOBUF)], &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let partial = ExportTraceServiceResponse::decode(&answer.body[..]).unwrap().partial_success.unwrap();
    assert_eq!(partial.rejected_spans, 5, "{}", partial.error_message);
    let trace = server.get(&format!("/api/traces/{}", "07".repeat(16))).text();
    assert!(trace.contains("good") && trace.contains("ends before it starts"), "{trace}");
    assert_eq!(trace.matches("spanId").count(), 2, "{trace}");
    assert_alive(&server);
}

#[test]
fn loki_and_ndjson_keep_the_good_records_and_name_the_bad_ones() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    let now = now_ns();
    let labels = |n: usize| (0..n).map(|i| format!("\"l{i}\":\"v\"")).collect::<Vec<_>>().join(",");
    let long = "x".repeat(300_000);
    let bad_streams = [
        (labels(16), "\"ok\"".to_owned(), now, "16 label names; limit 15"),
        (format!("\"app\":\"{}\"", "v".repeat(3000)), "\"ok\"".into(), now, "label"),
        (format!("\"{}\":\"v\"", "n".repeat(2000)), "\"ok\"".into(), now, "label"),
        ("\"app\":\"late\"".into(), "\"ok\"".into(), now + DAY, "too new"),
        ("\"app\":\"long\"".into(), format!("\"{long}\""), now, "max entry size '262144' bytes exceeded"),
    ];
    for (i, (stream, line, ts, words)) in bad_streams.iter().enumerate() {
        let body = format!(
            "{{\"streams\":[{{\"stream\":{{\"app\":\"good-{i}\"}},\"values\":[[\"{now}\",\"kept\"]]}},\
             {{\"stream\":{{{stream}}},\"values\":[[\"{ts}\",{line}]]}}]}}"
        );
        let answer = post(server.http, LOKI, &[("Content-Type", JSON)], body.as_bytes());
        assert_eq!(answer.status, 400, "{words}: {}", answer.text());
        assert!(answer.text().contains(words) && answer.text().ends_with('\n'), "{words}: {}", answer.text());
        assert_eq!(lines(&server, &format!("good-{i}")), ["kept"], "{words}");
    }
    let old =
        format!("{{\"streams\":[{{\"stream\":{{\"app\":\"old\"}},\"values\":[[\"{}\",\"kept\"]]}}]}}", 90 * DAY);
    assert_eq!(post(server.http, LOKI, &[("Content-Type", JSON)], old.as_bytes()).status, 204);
    assert_eq!(lines_between(&server, "{app=\"old\"}", 89 * DAY, 91 * DAY), ["kept"]);

    let wide: String = (0..10_000).map(|i| format!(",\"k{i}\":{i}")).collect();
    let nest = |n: usize| "[".repeat(n) + &"]".repeat(n);
    let head = |msg: &str| format!("{{\"ts\":{now},\"app\":\"nd\",\"msg\":\"{msg}\"");
    let mut body = Vec::new();
    for line in [
        format!("{}}}", head("good")),
        format!("{}{wide}}}", head("wide")),
        format!("{},\"v\":{}}}", head("nested"), nest(40)),
        format!("{},\"v\":{}}}", head("too nested"), nest(90)),
        format!("{},\"v\":{}}}", head("far too nested"), nest(100_000)),
        format!("{{\"ts\":{},\"app\":\"nd\",\"msg\":\"ahead\"}}", now + DAY),
        "{\"ts\":1e999,\"app\":\"nd\",\"msg\":\"endless\"}".to_owned(),
        format!("{},\"v\":NaN}}", head("nan")),
        format!("{{\"ts\":{now},\"app\":\"nd\",\"msg\":\"{}\"}}", "x".repeat(5 << 20)),
    ] {
        body.extend_from_slice(line.as_bytes());
        body.push(b'\n');
    }
    body.extend_from_slice(b"{\"app\":\"nd\",\"msg\":\"\xff\"}\n");
    body.extend_from_slice(format!("{}}}\n", head("last")).as_bytes());
    let answer = post(server.http, NDJSON, &[], &body);
    let json = answer.json();
    assert_eq!((answer.status, &json["accepted"], &json["rejected"]), (200, &4.into(), &7.into()), "{json}");
    let told: Vec<u64> = json["errors"].as_array().unwrap().iter().map(|e| e["line"].as_u64().unwrap()).collect();
    assert_eq!(told, [4, 5, 6, 7, 8, 9, 10], "{json}");
    let mut found = lines(&server, "nd");
    found.sort();
    assert_eq!(found, ["good", "last", "nested", "wide"]);
    assert_alive(&server);
}
