//! Debian's Prometheus reads from us: by remote read, by federation, and its printed queries and its `rate` beside ours.

use std::{path::Path, process::Command};

use super::{
    client::{Client, encode},
    prometheus::{Prometheus, ask, installed, until},
    server::Server,
    skip::skipped,
};

fn now() -> f64 {
    super::oracle::now_ns() as f64 / 1e9
}

fn folder(dir: &Path, name: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::create_dir(&path).unwrap();
    path
}

#[test]
fn a_prometheus_reads_back_and_federates_what_another_wrote() {
    if !installed() {
        return skipped("Prometheus remote read", "prometheus and promtool (Debian package prometheus)");
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--no-collect"]);
    let writing = folder(dir.path(), "writing");
    let log = writing.join("prometheus.log");
    let writer = Prometheus::start(&writing, &server);
    until("six scrapes", &log, || {
        let found = ask(server.http, "count_over_time(up{job=\"self\"}[1h]) >= 6", now());
        (found.len() == 1).then_some(())
    });
    for query in QUERIES {
        let formatted = |at| {
            let path = format!("/api/v1/format_query?query={}", encode(query));
            Client::new(at).get(&path).unwrap().json()["data"].as_str().map(str::to_owned)
        };
        assert_eq!(formatted(server.http), formatted(writer.http), "{query}");
    }
    // Killed: it writes no stale markers, so its series live on for five minutes.
    drop(writer);

    let reading = folder(dir.path(), "reading");
    let reader = Prometheus::run(&reading, |_| {
        format!("remote_read:\n- {{url: 'http://{}/api/v1/read', read_recent: true}}\n", server.http)
    });
    let federating = folder(dir.path(), "federating");
    let federator = Prometheus::run(&federating, |_| {
        format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 400ms}}\n\
             scrape_configs:\n- job_name: federate\n  honor_labels: true\n  metrics_path: /federate\n  \
             params: {{'match[]': ['{{job=\"self\"}}']}}\n  static_configs: [{{targets: ['{}']}}]\n",
            server.http
        )
    });
    let time = (now() * 1000.0).floor() / 1000.0;
    // Every sample of every series, with its time and its text.
    let all = "{job=\"self\"}[1h]";
    let wanted = ask(server.http, all, time);
    assert!(wanted.len() > 300, "{} series", wanted.len());
    let got = until("remote read", &reading.join("prometheus.log"), || {
        Some(ask(reader.http, all, time)).filter(|found| !found.is_empty())
    });
    for (got, wanted) in got.iter().zip(&wanted) {
        assert_eq!(got, wanted);
    }
    assert_eq!(got.len(), wanted.len());

    let newest = "{job=\"self\"}";
    let got = until("federation", &federating.join("prometheus.log"), || {
        Some(ask(federator.http, newest, now())).filter(|found| found.len() > 300)
    });
    // Elements alike but for the time at which they were asked for.
    let values = |list: Vec<String>| -> Vec<String> {
        let without_time = |text: String| {
            let mut element: serde_json::Value = serde_json::from_str(&text).unwrap();
            element["value"][0].take();
            element.to_string()
        };
        list.into_iter().map(without_time).collect()
    };
    let (got, wanted) = (values(got), values(ask(server.http, newest, now())));
    for (got, wanted) in got.iter().zip(&wanted) {
        assert_eq!(got, wanted);
    }
    assert_eq!(got.len(), wanted.len());
    // With the times at which they were scraped first.
    let times = "timestamp({job=\"self\",__name__=~\"up|process_.+\"})";
    assert_eq!(values(ask(federator.http, times, now())), values(ask(server.http, times, now())));
}

/// What has the same printed form since Prometheus 2.
const QUERIES: &[&str] = &[
    "sum(rate(a[5m]))by(job)",
    "sum without(x,y)(a)",
    "topk(5,a{b='c',d!~\"e.*\",f!=\"\"})",
    "a+on(job,x)group_left(y)b",
    "a>bool 1.50",
    "a and ignoring(z) b unless c",
    "-a^2",
    "(a)",
    "1e3+0x10-Inf",
    "rate(a[1h30m]offset 90s)",
    "a@1.5 offset -1w",
    "a[1d] @ end()",
    "max_over_time(rate(a[5m])[1h:])",
    "max_over_time(rate(a[300s])[1h:1m]@start() offset 1d)",
    "label_replace(a,\"x\",\"$1-\\\"q\\\"\",\"y\",\"(.*)\\\\.z\\n\")",
    "quantile(0.9,a)",
    "count_values('v',a)",
    "histogram_quantile(0.99,sum by(le,job)(rate(http_request_duration_seconds_bucket{job=~\"api|web\",code!~\"5..\"}[5m])))",
    "sum by(namespace)(rate(container_cpu_usage_seconds_total{image!=\"\",container!=\"POD\"}[5m])) / on(namespace) group_left() sum by(namespace)(kube_pod_container_resource_limits{resource=\"cpu\"})",
    "clamp_max(label_replace(some_rather_long_metric_name_that_fills_the_line{label=\"value\"},\"destination\",\"$1\",\"source\",\"(.*)\"),100)",
    "-(some_rather_long_metric_name_that_fills_the_line{label=\"value\"}+another_rather_long_metric_name_that_fills_it{a=\"b\"})",
    "absent(some_rather_long_metric_name_that_fills_the_line{label=\"value\",another_label=\"another value\",x=\"y\"} offset 5m)",
];

/// Five samples of a counter that begins within its range, the first of them one step above zero.
const YOUNG: &str = "rule_files: []
evaluation_interval: 15s
tests:
- interval: 15s
  input_series: [{series: c, values: '_x15 10 20 30 40 50'}]
  promql_expr_test: [{expr: 'increase(c[5m])', eval_time: 285s, exp_samples: [{labels: '{}', value: EXPECTED}]}]
";

/// The one known difference of `rate` and `increase` from Prometheus 2; ours is in `query/tests/prometheus_api`.
#[test]
fn prometheus_2_reaches_back_a_whole_interval_where_3_goes_half_of_one() {
    if !installed() {
        return skipped("Prometheus' own rate", "prometheus and promtool (Debian package prometheus)");
    }
    let version = Command::new("promtool").arg("--version").output().unwrap();
    let version = String::from_utf8_lossy(&version.stdout).into_owned() + &String::from_utf8_lossy(&version.stderr);
    let expected = if version.contains("version 2.") { "50" } else { "45" };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("young.yml");
    std::fs::write(&path, YOUNG.replace("EXPECTED", expected)).unwrap();
    let out = Command::new("promtool").args(["test", "rules"]).arg(&path).output().unwrap();
    assert!(out.status.success(), "{version}: {}", String::from_utf8_lossy(&out.stdout));
}
