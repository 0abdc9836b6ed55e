//! What a user does first.

use std::{
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    client::{Client, encode},
    server::{Server, program},
};

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()
}

#[test]
fn what_is_pushed_comes_back_and_survives_stop_and_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &["--no-collect"]);
    let mut sent = 0;
    for round in 0..4 {
        let mut client = server.client();
        let line =
            format!("{{\"ts\":{},\"app\":\"shop\",\"level\":\"info\",\"msg\":\"order {round} placed\"}}\n", now_ns());
        let answer = client
            .post(
                "/ingest/ndjson?time_field=ts&message_field=msg&stream_fields=app",
                "application/x-ndjson",
                line.as_bytes(),
            )
            .unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        sent += 1;
        let trace = format!("{:032x}", round + 1);
        let spans = format!(
            "{{\"resourceSpans\":[{{\"resource\":{{\"attributes\":[{{\"key\":\"service.name\",\"value\":{{\"stringValue\":\"shop\"}}}}]}},\
             \"scopeSpans\":[{{\"spans\":[{{\"traceId\":\"{trace}\",\"spanId\":\"00000000000000aa\",\"name\":\"checkout\",\
             \"startTimeUnixNano\":\"{}\",\"endTimeUnixNano\":\"{}\"}}]}}]}}]}}",
            now_ns() - 1000,
            now_ns()
        );
        let answer = client.post("/v1/traces", "application/json", spans.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let points = format!(
            "{{\"resourceMetrics\":[{{\"resource\":{{\"attributes\":[{{\"key\":\"service.name\",\"value\":{{\"stringValue\":\"shop\"}}}}]}},\
             \"scopeMetrics\":[{{\"metrics\":[{{\"name\":\"queue.size\",\"gauge\":{{\"dataPoints\":[{{\"timeUnixNano\":\"{}\",\"asDouble\":{round}}}]}}}}]}}]}}]}}",
            now_ns()
        );
        let answer = client.post("/v1/metrics", "application/json", points.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        // Visible at once after the ack.
        check(&server, sent, round);
        if round % 2 == 0 {
            server.kill();
        } else {
            let (status, took) = server.stop();
            assert!(status.success(), "{status}");
            assert!(took < Duration::from_secs(5), "stopping took {took:?}");
        }
        server = Server::start(dir.path(), &["--no-collect"]);
        check(&server, sent, round);
    }
}

/// A quarter of the time and memory of taking logs went into clearing huge pages; see the first line of `main`.
#[test]
fn the_process_keeps_clear_of_huge_pages() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    // Kernels before 5.0 do not say.
    if let Some(line) = status.lines().find(|l| l.starts_with("THP_enabled:")) {
        assert_eq!(line.split_whitespace().nth(1), Some("0"));
    }
}

fn check(server: &Server, lines: usize, round: u32) {
    let query = encode("{app=\"shop\"} |= \"order\"");
    let answer = server.get(&format!("/loki/api/v1/query_range?query={query}&limit=100"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let found: usize = answer.json()["data"]["result"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["values"].as_array().unwrap().len())
        .sum();
    assert_eq!(found, lines, "{}", answer.text());
    let answer = server.get("/api/v1/query?query=queue_size");
    assert_eq!(answer.json()["data"]["result"][0]["value"][1], round.to_string(), "{}", answer.text());
    for trace in 1..=round + 1 {
        let answer = server.get(&format!("/api/traces/{trace:032x}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().contains("checkout"), "{}", answer.text());
    }
}

#[test]
fn own_pages_answer() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    assert_eq!(server.get("/healthz").status, 200);
    let empty = Client::new(server.otlp_http).post("/v1/traces", "application/json", b"{}").unwrap();
    assert_eq!(empty.status, 200, "{}", empty.text());
    assert!(std::net::TcpStream::connect(server.otlp_grpc).is_ok());
    let metrics = server.get("/metrics").text();
    for name in ["storage_rows_appended_total", "process_resident_memory_bytes", "pipeline_", "collector_push_"] {
        assert!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
    let page = server.get("/").text();
    assert!(page.contains("Sightline") && page.contains("Stores in"), "{page}");
}

#[test]
fn a_data_directory_in_use_is_refused_in_one_sentence_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    let second = Command::new(program())
        .args(["--no-collect", "--http", "127.0.0.1:0", "--otlp-grpc", "127.0.0.1:0", "--otlp-http", "127.0.0.1:0"])
        .args(["--data-dir", &dir.path().to_string_lossy()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1));
    assert!(text.contains("is in use by process") && text.contains(&server.pid().to_string()), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn a_foreign_or_newer_directory_is_refused_and_untouched() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    let refused = |path: &std::path::Path| {
        let out = Command::new(program())
            .args([
                "--no-collect",
                "--http",
                "127.0.0.1:0",
                "--otlp-grpc",
                "127.0.0.1:0",
                "--otlp-http",
                "127.0.0.1:0",
            ])
            .args(["--data-dir", &path.to_string_lossy()])
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(1));
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let text = refused(dir.path());
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was touched");
}

#[test]
fn check_names_every_error_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sightline.yaml");
    std::fs::write(&file, "htpp: 127.0.0.1:1\nfsync: maybe\n").unwrap();
    let out = Command::new(program()).arg("check").arg(&file).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(
        text.contains("sightline.yaml:1:1: htpp: unknown field") && text.contains("did you mean `http`?"),
        "{text}"
    );
    assert!(text.contains("sightline.yaml:2:8: fsync: invalid fsync mode"), "{text}");
    std::fs::write(&file, "http: 127.0.0.1:1\n").unwrap();
    assert!(Command::new(program()).arg("check").arg(&file).status().unwrap().success());
}
