//! `sightline export` and `import` of a real server in OTLP's JSON: what comes back is what was there.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::json;

use super::{
    oracle::now_ns,
    server::{Server, program},
};

fn run(args: &[&str]) -> Output {
    Command::new(program()).args(args).output().expect("the program runs")
}

/// What it says on standard error.
fn done(args: &[&str]) -> String {
    let out = run(args);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{args:?}: {told}");
    told
}

fn post(server: &Server, path: &str, kind: &str, body: &str) {
    let headers = [("Content-Type", kind), ("X-Scope-OrgID", "a")];
    let answer = server.client().send("POST", path, &headers, body.as_bytes()).unwrap();
    assert!((200..300).contains(&answer.status), "{path}: {} {}", answer.status, answer.text());
    assert!(
        !answer.text().contains("partialSuccess") && !answer.text().contains("\"rejected\":1"),
        "{}",
        answer.text()
    );
}

/// Rows of each kind beside those that are generated: of Loki, of Prometheus, and OTLP histograms.
fn push(server: &Server) {
    let ns = (now_ns() - 60_000_000_000) / 1_000_000 * 1_000_000;
    let values = [[ns.to_string(), "of Loki".to_owned()], [(ns + 1).to_string(), "ü \"two\"\nlines".to_owned()]];
    let streams = json!({ "streams": [{ "stream": { "app": "shop", "zone": "b" }, "values": values }] });
    post(server, "/loki/api/v1/push", "application/json", &streams.to_string());

    let ms = ns / 1_000_000;
    let labels = json!({ "__name__": "up", "job": "api", "instance": "i:1" });
    let native = json!({ "__name__": "took", "job": "api" });
    let rows = [
        json!({ "row": "sample", "series_labels": labels, "type": "gauge", "ts_ms": ms, "value": 1.0 }),
        json!({ "row": "sample", "series_labels": labels, "type": "gauge", "ts_ms": ms + 1, "value": "0x7ff0000000000002" }),
        json!({ "row": "exemplar", "series_labels": labels, "type": "gauge", "ts_ms": ms, "value": 0.5,
                "trace_id": "0102030405060708090a0b0c0d0e0f10", "labels": { "user": "7" } }),
        json!({ "row": "histogram", "series_labels": native, "type": "histogram", "ts_ms": ms, "schema": 3, "zero_threshold": 0.001,
                "zero_count": 1.5, "count": 7.0, "sum": 12.25, "positive_offset": -4, "positive_counts": [2.5, 3.0],
                "negative_offset": 0, "negative_counts": [], "reset_hint": 0, "is_float": true }),
    ];
    post(server, "/api/v1/import", "application/x-ndjson", &rows.map(|r| r.to_string()).join("\n"));

    let point = |at: i64, method: &str| {
        json!({ "timeUnixNano": at.to_string(), "startTimeUnixNano": ns.to_string(), "count": "6", "sum": 20.5, "bucketCounts": ["1", "2", "3"],
                "explicitBounds": [0.5, 5.0], "attributes": [{ "key": "method", "value": { "stringValue": method } }] })
    };
    let points = [point(ns + 1_000_000, "GET"), point(ns + 1_000_000, "PUT"), point(ns + 2_000_000, "GET")];
    let metric = json!({ "name": "request.took", "unit": "s", "description": "how long",
                         "histogram": { "aggregationTemporality": 2, "dataPoints": points } });
    let resource = json!({ "attributes": [{ "key": "service.name", "value": { "stringValue": "shop" } }] });
    let scope = json!({ "scope": { "name": "meter", "version": "1" }, "metrics": [metric] });
    let body = json!({ "resourceMetrics": [{ "resource": resource, "scopeMetrics": [scope] }] });
    post(server, "/v1/metrics", "application/json", &body.to_string());
}

#[test]
fn rows_that_go_out_and_in_as_otlp_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--no-collect"]);
    let url = format!("http://{}", server.http);
    for (signal, count) in [("logs", "6000"), ("metrics", "2000"), ("traces", "400")] {
        let series = ["--series", "200", "--tenant", "a", "--json"];
        let out = run(&[&["generate", signal, "--to", &url, "--rate", "0", "--count", count][..], &series].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    push(&server);
    for signal in ["logs", "metrics", "traces"] {
        let path = dir.path().join(format!("{signal}.jsonl"));
        let file = path.to_string_lossy().into_owned();
        let export = ["export", "--url", &url, "--signal", signal, "--from", "1h"];
        let exported = |tenant: &str| -> Vec<String> {
            let out = run(&[&export[..], &["--tenant", tenant]].concat());
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            let mut lines: Vec<String> = String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let there = exported("a");
        let told = done(&[&export[..], &["--tenant", "a", "--format", "otlp", "--out", &file]].concat());
        assert_eq!(told, format!("exported {} rows to {file}\n", there.len()));
        let requests = lines_of(&path);
        // Twice, as after a lost answer.
        for _ in 0..2 {
            let told = done(&["import", &file, "--url", &url, "--tenant", "b"]);
            assert_eq!(told, format!("imported 0 rows and {requests} requests of OTLP, 0 rows refused\n"));
        }
        let back = exported("b");
        assert_eq!(back.len(), there.len(), "{signal}");
        let other = back.iter().zip(&there).find(|(b, a)| b != a);
        assert!(other.is_none(), "{signal}: {other:#?}");
    }
    let out = run(&["export", "--url", &url, "--signal", "metrics", "--format", "otlp"]);
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("--from 6h"), "{out:?}");
}

/// Lines of a file, each a request.
fn lines_of(path: &Path) -> usize {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.lines().all(|l| l.starts_with("{\"resource")), "{text}");
    text.lines().count()
}
