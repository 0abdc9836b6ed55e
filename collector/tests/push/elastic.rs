//! Elasticsearch bulk over HTTP: the handshakes, and the exact text of answers.

use std::{collections::HashMap, path::Path, process::Command, sync::Arc};

use axum::{body::Body, routing::get};
use collector::{
    PushConfig, elastic,
    listen::{self, ListenLimits},
    tenants::{IngestLimits, Tenants},
};
use http::{Method, Request};
use http_body_util::BodyExt as _;
use storage::model::Table;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::fixture::Fixture;

const NDJSON: (&str, &str) = ("content-type", "application/vnd.elasticsearch+x-ndjson; compatible-with=8");

const BODY: &str = "{\"create\":{\"_index\":\"app\",\"_id\":\"1\"}}\n\
    {\"@timestamp\":\"2026-01-01T00:00:00Z\",\"message\":\"one\",\"user\":\"u\"}\n\
    {\"index\":{\"_id\":\"2\"}}\n{\"@timestamp\":\"no time\"}\n{\"delete\":{\"_id\":\"3\"}}\n";

#[tokio::test]
async fn items_are_answered_in_order_and_key_for_key() {
    for path in ["/logs/_bulk?refresh=false", "/elasticsearch/logs/_bulk"] {
        let f = Fixture::new().await;
        let gzip = gzip_of(BODY.as_bytes());
        let answer = f.post(path, &[NDJSON, ("content-encoding", "gzip")], gzip).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.headers["content-type"]),
            (200, &"application/json".parse().unwrap())
        );
        assert_eq!(answer.headers["x-elastic-product"], "Elasticsearch");
        let text = answer.text();
        let (took, rest) = text.split_once(',').unwrap();
        assert!(took.starts_with("{\"took\":"), "{text}");
        let first = "\"errors\":true,\"items\":[{\"create\":{\"_index\":\"app\",\"_id\":\"1\",\"_version\":1,\
            \"result\":\"created\",\"_shards\":{\"total\":1,\"successful\":1,\"failed\":0},\"_seq_no\":0,\
            \"_primary_term\":1,\"status\":201}},";
        let second = "{\"index\":{\"_index\":\"logs\",\"_id\":\"2\",\"status\":400,\"error\":\
            {\"type\":\"mapper_parsing_exception\",\"reason\":\"";
        assert!(rest.starts_with(&format!("{first}{second}")), "{text}");
        assert_eq!(answer.json()["items"][2]["delete"]["status"], 404, "{text}");
        // The same documents again are no more documents.
        f.post(path, &[NDJSON], BODY).await;
        assert_eq!(f.column(Table::Logs, "body").await, ["one"]);
        assert_eq!(f.column(Table::Logs, "stream_labels").await, [r#"{"index":"app","service_name":"app"}"#]);
        assert_eq!(f.column(Table::Logs, "attrs").await, [r#"{"user":"u"}"#]);
    }
}

#[tokio::test]
async fn documents_without_ids_and_of_another_index_are_others() {
    let f = Fixture::new().await;
    for path in ["/a/_bulk", "/b/_bulk"] {
        f.post(path, &[NDJSON], "{\"index\":{\"_id\":\"1\"}}\n{\"message\":\"m\"}\n").await;
    }
    for _ in 0..2 {
        f.post("/c/_bulk", &[NDJSON], "{\"create\":{}}\n{\"message\":\"m\"}\n").await;
    }
    let mut services = f.column(Table::Logs, "service_name").await;
    services.sort();
    assert_eq!(services, ["a", "b", "c", "c"]);
}

/// A gzip member of one stored block: header, block, CRC-32, length.
fn gzip_of(data: &[u8]) -> Vec<u8> {
    let mut crc = !0u32;
    for b in data {
        crc ^= u32::from(*b);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    let len = u16::try_from(data.len()).unwrap();
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    out.extend(len.to_le_bytes());
    out.extend((!len).to_le_bytes());
    out.extend(data);
    out.extend((!crc).to_le_bytes());
    out.extend(u32::from(len).to_le_bytes());
    out
}

#[tokio::test]
async fn broken_framing_and_strange_types_are_refused_whole() {
    let f = Fixture::new().await;
    for (headers, body, status) in [
        ([NDJSON], "{\"index\":{}}\n{}\n", 400),
        ([NDJSON], "{\"index\":{\"_index\":\"a\"}}\n", 400),
        ([("content-type", "text/plain")], "", 406),
        ([("x-scope-orgid", "../x")], "", 400),
    ] {
        let answer = f.post("/_bulk", &headers, body).await;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
        assert_eq!(answer.json()["status"], status);
        assert!(answer.headers.contains_key("x-elastic-product"));
    }
    let answer = f.post("/_bulk", &[NDJSON], "").await;
    assert!(answer.text().ends_with("\"errors\":false,\"items\":[]}"), "{}", answer.text());
}

#[tokio::test]
async fn documents_beyond_a_tenants_streams_are_told_and_the_others_are_stored() {
    let limits = IngestLimits { streams_max: Some(2), ..IngestLimits::default() };
    let tenants = Arc::new(Tenants::new(limits, HashMap::new()));
    let f = Fixture::with(PushConfig { tenants, ..PushConfig::default() }).await;
    let mut body = String::new();
    for (index, document) in [
        ("a", "{\"message\":\"1\"}"),
        ("b", "{\"message\":\"2\"}"),
        ("c", "{\"message\":\"3\"}"),
        ("a", "{"),
        ("a", "{\"message\":\"5\"}"),
        ("d", "{\"message\":\"6\"}"),
        ("b", "{\"message\":\"7\"}"),
    ] {
        body += &format!(
            "{{\"create\":{{\"_index\":\"{index}\"}}}}\n{document}\n{{\"delete\":{{\"_index\":\"a\",\"_id\":\"1\"}}}}\n"
        );
    }
    let answer = f.post("/_bulk", &[NDJSON], body).await.json();
    let items = answer["items"].as_array().unwrap();
    let told: Vec<&serde_json::Value> = items.iter().filter_map(|i| i.get("create")).collect();
    let statuses: Vec<u64> = told.iter().map(|c| c["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [201, 201, 400, 400, 201, 400, 201], "{answer}");
    assert!(told[2]["error"]["reason"].as_str().unwrap().contains("2 active streams"), "{answer}");
    assert!(items.iter().filter_map(|i| i.get("delete")).all(|d| d["status"] == 404), "{answer}");
    let mut bodies = f.column(Table::Logs, "body").await;
    bodies.sort();
    assert_eq!(bodies, ["1", "2", "5", "7"]);
}

#[tokio::test]
async fn whatever_a_shipper_asks_for_the_answer_says_who_we_are() {
    let f = Fixture::with(PushConfig { elastic_version: "8.19.2".into(), ..PushConfig::default() }).await;
    let ask = |method: &str, path: &str| {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let router = f.router.clone();
        async move { router.oneshot(request).await.unwrap() }
    };
    for (method, path, status) in [
        ("HEAD", "/elasticsearch/", 200),
        ("HEAD", "/elasticsearch/filebeat-8.11.0", 200),
        ("PUT", "/elasticsearch/%3Clogstash-%7Bnow%2Fd%7D-000001%3E", 200),
        ("GET", "/_license", 200),
        ("GET", "/_cluster/health", 200),
        ("HEAD", "/_index_template/filebeat-8.11.0", 200),
        ("PUT", "/_ilm/policy/logstash-policy", 200),
        ("HEAD", "/_alias/logstash", 200),
        ("GET", "/_bulk", 405),
        ("POST", "/elasticsearch/_msearch", 404),
    ] {
        let answer = ask(method, path).await;
        assert_eq!(answer.status(), status, "{method} {path}");
        assert_eq!(answer.headers()["x-elastic-product"], "Elasticsearch", "{method} {path}");
        if status == 404 {
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                (&json["status"], &json["error"]["type"]),
                (&404.into(), &"resource_not_found_exception".into())
            );
        }
    }
    let body = ask("GET", "/elasticsearch/").await.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("\"number\":\"8.19.2\""));
    // At the top, where names may be anything: what no route takes.
    for (method, path, status) in [
        (Method::HEAD, "/filebeat-8.11.0", Some(200)),
        (Method::PUT, "/logs-app", Some(200)),
        (Method::GET, "/logs-app", None),
        (Method::HEAD, "/", None),
        (Method::HEAD, "/static/logo.svg", None),
        (Method::POST, "/_msearch", Some(404)),
        (Method::GET, "/_cat/indices", Some(404)),
        (Method::GET, "/elasticsearch/logs/_search", Some(404)),
    ] {
        let answer = elastic::fallback(&method, path);
        assert_eq!(answer.as_ref().map(|a| a.status().as_u16()), status, "{method} {path}");
        assert!(answer.is_none_or(|a| a.headers().contains_key("x-elastic-product")));
    }
}

#[test]
fn a_shipper_is_told_from_a_browser() {
    let asks = |name: &'static str, value: &'static str| {
        let mut headers = http::HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        elastic::asks(&headers)
    };
    assert!(asks("accept", "application/vnd.elasticsearch+json; compatible-with=8"));
    assert!(asks("user-agent", "Elastic-filebeat/8.11.0") && asks("user-agent", "Vector/0.40.0"));
    assert!(!asks("accept", "text/html,application/xhtml+xml,application/json;q=0.9") && !asks("accept", "*/*"));
}

/// What the client must find at `/`, where the process has its status page for people.
#[tokio::test(flavor = "multi_thread")]
async fn documents_of_the_official_client_are_stored_once_and_bad_ones_told() {
    let python = |args: &[&str]| Command::new("python3").args(args).output();
    let has = "import elasticsearch; assert elasticsearch.__version__[0] == 8";
    if !python(&["-c", has]).is_ok_and(|o| o.status.success()) {
        let missing = "the package elasticsearch 8 from PyPI";
        assert!(std::env::var("SIGHTLINE_REQUIRE_ALL").as_deref() != Ok("1"), "this test needs {missing}");
        eprintln!("SKIPPED: Elasticsearch's own client needs {missing}");
        return;
    }
    const COUNT: usize = 20;
    let f = Fixture::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let router = f.router.clone().route("/", get(|| std::future::ready(elastic::root(elastic::VERSION))));
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    tasks.spawn(listen::serve(listener, router, ListenLimits::default(), stop.clone()));
    for (base, index) in [("", "top"), ("/elasticsearch", "below")] {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/push/elastic_client.py");
        let url = format!("http://{addr}{base}");
        let count = COUNT.to_string();
        let out = tokio::task::spawn_blocking(move || {
            Command::new("python3").arg(script).args([&url, index, &count]).output().unwrap()
        });
        let out = out.await.unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    stop.cancel();
    let [bodies, streams, times] = f.columns(Table::Logs, ["body", "stream_labels", "ts"]).await;
    for index in ["top", "below"] {
        let stream = format!(r#"{{"index":"{index}","service_name":"{index}"}}"#);
        let mut found: Vec<(&String, &String)> =
            (0..bodies.len()).filter(|i| streams[*i] == stream).map(|i| (&times[i], &bodies[i])).collect();
        found.sort();
        assert_eq!(found.len(), COUNT + 1, "{found:?}");
        for (n, (ts, body)) in found.into_iter().enumerate() {
            let want = 1_767_323_045_000_000_000 + n as u64 * 1_000_000;
            assert_eq!((ts, body), (&want.to_string(), &format!("order {n} ü")));
        }
    }
}
