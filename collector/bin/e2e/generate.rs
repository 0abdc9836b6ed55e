//! What is generated arrives, all of it, by every protocol.

use std::{collections::BTreeSet, process::Command};

use super::{
    client::encode,
    server::{Server, program},
};

fn generate(args: &[&str]) -> (bool, serde_json::Value) {
    let out = Command::new(program()).arg("generate").args(args).arg("--json").output().expect("the program runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let value = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text} {}", String::from_utf8_lossy(&out.stderr)));
    (out.status.success(), value)
}

/// Whether it succeeded, and what it says against it.
fn run(args: &[&str]) -> (bool, String) {
    let out = Command::new(program()).arg("generate").args(args).output().expect("the program runs");
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn number(server: &Server, path: &str, tenant: &str) -> f64 {
    let answer = server.client().send("GET", path, &[("X-Scope-OrgID", tenant)], b"").unwrap();
    let json = answer.json();
    let value = &json["data"]["result"][0]["value"][1];
    value.as_str().unwrap_or_else(|| panic!("{path}: {json}")).parse().unwrap()
}

#[test]
fn all_that_is_sent_is_acknowledged_and_there() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    let (http, grpc) = (format!("http://{}", server.http), format!("http://{}", server.otlp_grpc));
    for (protocol, to) in [("otlp", &http), ("otlp-grpc", &grpc), ("loki", &http), ("ndjson", &http)] {
        let args =
            ["logs", "--to", to, "--protocol", protocol, "--count", "2500", "--rate", "0", "--tenant", protocol];
        let (ok, told) = generate(&args);
        assert!(ok, "{protocol}: {told}");
        assert_eq!((&told["sent"], &told["acked"], &told["requests"]), (&2500.into(), &2500.into(), &3.into()));
        let query = encode("sum(count_over_time({service_name=~\".+\"}[1h]))");
        assert_eq!(number(&server, &format!("/loki/api/v1/query?query={query}"), protocol), 2500.0, "{protocol}");
        let last = encode("sum(count_over_time({service_name=~\".+\"} |~ \"seq=2499$\" [1h]))");
        assert_eq!(number(&server, &format!("/loki/api/v1/query?query={last}"), protocol), 1.0, "{protocol}");
    }
    let mut sums = BTreeSet::new();
    for (protocol, to) in [("otlp", &http), ("otlp-grpc", &grpc), ("remote-write", &http)] {
        let args = ["--to", to, "--protocol", protocol, "--count", "2000", "--rate", "0", "--tenant", protocol];
        let (ok, told) = generate(&[&["metrics", "--series", "200"][..], &args].concat());
        assert!(ok, "{protocol}: {told}");
        let query = encode("count({__name__=~\"generated_.+\"})");
        assert_eq!(number(&server, &format!("/api/v1/query?query={query}"), protocol), 200.0, "{protocol}");
        let sum = encode("sum(sum_over_time(generated_memory_bytes[1h]))");
        sums.insert(number(&server, &format!("/api/v1/query?query={sum}"), protocol).to_bits());
        if protocol == "remote-write" {
            continue;
        }
        let (ok, told) = generate(&[&["traces"][..], &args].concat());
        assert!(ok && told["acked"] == 2000, "{protocol}: {told}");
    }
    assert_eq!(sums.len(), 1, "equal seeds give equal data by every protocol");
    let (ok, told) = run(&["traces", "--to", &http, "--protocol", "remote-write", "--count", "8"]);
    assert!(!ok && told.contains("remote-write takes metrics only"), "{told}");
}

#[test]
fn what_is_refused_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.yaml");
    std::fs::write(&config, "tenants: {overrides: {small: {ingest_rows: 10, ingest_burst: 1s}}}\n").unwrap();
    let server = Server::start(&dir.path().join("data"), &["--no-collect", "--config", &config.to_string_lossy()]);
    let http = format!("http://{}", server.http);
    let args = ["logs", "--to", &http, "--tenant", "small", "--count", "400", "--batch", "100", "--rate", "0"];
    let (ok, told) = generate(&[&args[..], &["--connections", "1"]].concat());
    assert!(!ok && told["acked"] == 100 && told["failed"] == 300, "{told}");
    assert!(told["errors"].to_string().contains("429 Too Many Requests: "), "{told}");
}
