//! Limits on series, from outside: new series are refused by name on every way in, existing ones never.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pipeline::codec::remote_write::{encode_v1, encode_v2};
use storage::model::{Labels, MetricBatchBuilder, batch::SeriesMeta};

use super::{
    client::{Answer, encode},
    server::Server,
};

const CONFIG: &str = "
tenants:
  defaults: {series: 40, series_active: 1h}
  overrides:
    whole: {series: 3}
    metric: {series: 100, series_per_metric: 2}
    label: {series: 100, label_values: 2}
    both: {series: 100, label_values_per_metric: 2}
    brief: {series: 2, series_active: 1s}
";

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

/// One sample of each `metric{user=...}`.
fn push(server: &Server, tenant: &str, v2: bool, metric: &str, users: &[&str]) -> Answer {
    let mut builder = MetricBatchBuilder::new();
    for user in users {
        let id = builder.series(&Labels::from_pairs([("__name__", metric), ("user", user)]), SeriesMeta::default());
        builder.sample(id, now_ms(), None, 1.0);
    }
    let batch = builder.finish();
    let (body, content) = match v2 {
        false => (encode_v1(&batch), "application/x-protobuf"),
        true => (encode_v2(&batch), "application/x-protobuf;proto=io.prometheus.write.v2.Request"),
    };
    let body = snap::raw::Encoder::new().compress_vec(&body).unwrap();
    let headers = [("Content-Type", content), ("Content-Encoding", "snappy"), ("X-Scope-OrgID", tenant)];
    server.client().send("POST", "/api/v1/write", &headers, &body).unwrap()
}

/// Series of the metric that have a sample.
fn stored(server: &Server, tenant: &str, metric: &str) -> u64 {
    let path = format!("/api/v1/query?query={}", encode(&format!("count(last_over_time({metric}[10m]))")));
    let answer = server.client().send("GET", &path, &[("X-Scope-OrgID", tenant)], b"").unwrap().json();
    answer["data"]["result"][0]["value"][1].as_str().map_or(0, |n| n.parse().unwrap())
}

fn start(dir: &std::path::Path, config: &str) -> Server {
    let path = dir.join("c.yaml");
    std::fs::write(&path, config).unwrap();
    Server::start(&dir.join("data"), &["--no-collect", "--config", &path.to_string_lossy()])
}

#[test]
fn new_series_beyond_a_limit_are_refused_by_name_and_existing_ones_never() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), CONFIG);
    for (tenant, max, want) in [
        ("whole", 3, "limit `series` of 3 reached: 3 active series; refused {__name__=\"m\", user=\"d\"}"),
        ("metric", 2, "limit `series_per_metric` of 2 reached by metric m: 2 active series"),
        ("label", 2, "limit `label_values` of 2 reached by label user: 2 values"),
        ("both", 2, "limit `label_values_per_metric` of 2 reached by label user of metric m: 2 values"),
    ] {
        let users = &["a", "b", "c", "d"][..max];
        assert_eq!(push(&server, tenant, false, "m", users).status, 204, "{tenant}");
        let answer = push(&server, tenant, true, "m", &["a", "d"]);
        let told = answer.text();
        assert_eq!(answer.status, 400, "{told}");
        assert!(told.contains(want) && told.contains("1 points of 1 new series refused"), "{told}");
        assert_eq!(answer.header("x-prometheus-remote-write-samples-written"), Some("1"), "{tenant}");
        assert_eq!(stored(&server, tenant, "m"), max as u64, "{tenant}");
    }
    // Another metric has its own count where the limit is of one metric.
    assert_eq!(push(&server, "both", false, "other", &["x", "y"]).status, 204);
    assert_eq!(push(&server, "label", false, "other", &["x"]).status, 400);
    let metrics = server.get("/metrics").text();
    for line in [
        "storage_series_active{tenant=\"whole\"} 3",
        "storage_series_points_refused_total{tenant=\"metric\",limit=\"series_per_metric\"} 1",
        "storage_series_points_refused_total{tenant=\"metric\",limit=\"series\"} 0",
        "collector_push_records_rejected_total{protocol=\"remote_write\",reason=\"tenant_limit\"} 5",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    // By OTLP it is a partial success.
    let point = |name: &str| {
        serde_json::json!({"name": name, "gauge": {"dataPoints":
            [{"timeUnixNano": (now_ms() * 1_000_000).to_string(), "asDouble": 1.0}]}})
    };
    let body = serde_json::json!({"resourceMetrics": [{"scopeMetrics": [{"metrics": [point("g1"), point("g2")]}]}]});
    let headers = [("Content-Type", "application/json"), ("X-Scope-OrgID", "whole")];
    let answer = server.client().send("POST", "/v1/metrics", &headers, body.to_string().as_bytes()).unwrap();
    let told = answer.json();
    assert_eq!((answer.status, &told["partialSuccess"]["rejectedDataPoints"]), (200, &"2".into()), "{told}");
    assert!(told["partialSuccess"]["errorMessage"].as_str().unwrap().contains("limit `series` of 3"), "{told}");

    // After a kill the counts begin anew; what is stored has its place all the same.
    server.kill();
    let server = start(dir.path(), CONFIG);
    assert_eq!(push(&server, "whole", false, "m", &["x", "y", "z"]).status, 204, "there is room until they are back");
    assert_eq!(push(&server, "whole", false, "m", &["a", "b", "c"]).status, 204, "existing series are never refused");
    assert_eq!(push(&server, "whole", false, "m", &["w"]).status, 400);

    // Series that went quiet make room.
    assert_eq!(push(&server, "brief", false, "m", &["a", "b"]).status, 204);
    assert_eq!(push(&server, "brief", false, "m", &["c"]).status, 400);
    let deadline = Instant::now() + Duration::from_secs(20);
    while push(&server, "brief", false, "m", &["c"]).status != 204 {
        assert!(Instant::now() < deadline, "series that went quiet keep their place");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_target_with_too_many_series_is_told_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let target = Server::start(&dir.path().join("target"), &["--no-collect"]);
    let config = format!(
        "{CONFIG}sources:\n  scrape:\n    type: prometheus_scrape\n    scrape_configs:\n    - job_name: wide\n      \
         scrape_interval: 1s\n      scrape_timeout: 1s\n      static_configs: [{{targets: ['{}']}}]\n",
        target.http
    );
    let server = start(dir.path(), &config);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let targets = server.get("/api/v1/targets").json();
        let told = &targets["data"]["activeTargets"][0];
        if told["lastError"].as_str().is_some_and(|e| e.contains("limit `series` of 40 reached")) {
            assert_eq!(told["health"], "up", "{targets}");
            break;
        }
        assert!(Instant::now() < deadline, "{targets}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let metrics = server.get("/metrics").text();
    let left_out =
        metrics.lines().find_map(|l| l.strip_prefix("collector_scrape_over_limit_total{source=\"scrape\"} "));
    assert!(left_out.is_some_and(|n| n != "0"), "{metrics}");
    let path = format!("/api/v1/query?query={}", encode("count({__name__=~\".+\"})"));
    assert_eq!(server.get(&path).json()["data"]["result"][0]["value"][1], "40");
}
