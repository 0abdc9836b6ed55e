//! What we tell of ourselves is found again through the APIs that serve everyone's data.

use std::time::{Duration, Instant};

use super::{
    client::{Answer, encode},
    server::Server,
};

const CONFIG: &str = "telemetry: {interval: 200ms, trace_sample_ratio: 0}\nlog_level: error\n";

fn start(dir: &std::path::Path, telemetry: &str) -> Server {
    let file = dir.join("sightline.yaml");
    std::fs::write(&file, CONFIG).unwrap();
    let file = file.to_string_lossy().into_owned();
    Server::start(&dir.join("data"), &["--no-collect", "--config", &file, "--telemetry", telemetry])
}

fn ask(server: &Server, path: &str, headers: &[(&str, &str)]) -> Answer {
    server.client().send("GET", path, headers, b"").unwrap_or_else(|e| panic!("GET {path}: {e}"))
}

/// Asks as the own tenant until the answer is as wished.
fn until(server: &Server, path: &str, wished: impl Fn(&Answer) -> bool) -> Answer {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = ask(server, path, &[("X-Scope-OrgID", "sightline")]);
        if wished(&answer) {
            return answer;
        }
        assert!(Instant::now() < end, "{path}: {} {}", answer.status, answer.text());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn figure(server: &Server, line: &str) -> f64 {
    let text = server.get("/metrics").text();
    let found = text.lines().find_map(|l| l.strip_prefix(line));
    found.unwrap_or_else(|| panic!("no {line} in {text}")).trim().parse().unwrap()
}

#[test]
fn a_query_with_a_traceparent_is_found_with_logs_and_metrics_under_the_own_tenant() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), "true");
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(ask(&server, "/api/v1/query?query=1", &[("traceparent", parent)]).status, 200);
    let trace = "/api/traces/0af7651916cd43dd8448eb211c80319c";
    let found = until(&server, trace, |a| a.status == 200).text();
    assert!(found.contains("GET /api/v1/query") && found.contains("SPAN_KIND_SERVER"), "{found}");
    // The caller's span id, as base64.
    assert!(found.contains("\"parentSpanId\":\"t61rcWkgMzE=\""), "{found}");
    assert!(found.contains("http.response.status_code") && found.contains("sightline.tenant"), "{found}");
    assert_eq!(ask(&server, trace, &[]).status, 404, "another tenant does not see it");

    let logs = format!("/loki/api/v1/query_range?query={}", encode("{service_name=\"sightline\"}"));
    let found = until(&server, &logs, |a| a.text().contains("serves")).text();
    assert!(found.contains("\"detected_level\":\"info\""), "{found}");

    for query in ["storage_wal_bytes{job=\"sightline\"}", "http_server_request_duration_seconds_count"] {
        let path = format!("/api/v1/query?query={}", encode(query));
        until(&server, &path, |a| a.json()["data"]["result"].as_array().is_some_and(|r| !r.is_empty()));
    }

    // Nothing of this makes more of it: metrics go on, spans and log records stay as many as they were.
    let (traces, logs) =
        ("telemetry_records_stored_total{signal=\"traces\"}", "telemetry_records_stored_total{signal=\"logs\"}");
    let metrics = "telemetry_records_stored_total{signal=\"metrics\"}";
    let before = (figure(&server, traces), figure(&server, logs));
    let (began, first) = (Instant::now(), figure(&server, metrics));
    while figure(&server, metrics) < first * 1.5 + 500.0 {
        assert!(began.elapsed() < Duration::from_secs(60), "our own metrics stopped");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!((figure(&server, traces), figure(&server, logs)), before);
    for signal in ["logs", "metrics", "traces"] {
        assert_eq!(figure(&server, &format!("telemetry_records_dropped_total{{signal=\"{signal}\"}}")), 0.0);
    }

    // What the SDK holds at a stop is stored.
    let last = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(ask(&server, "/api/v1/labels", &[("traceparent", last)]).status, 200);
    let (status, _) = server.stop();
    assert!(status.success());
    let server = start(dir.path(), "false");
    let found = ask(&server, "/api/traces/1af7651916cd43dd8448eb211c80319c", &[("X-Scope-OrgID", "sightline")]);
    assert!(found.text().contains("GET /api/v1/labels"), "{}", found.text());
}
