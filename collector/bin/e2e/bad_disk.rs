//! A disk that is full, and data directories that cannot be used: writes wait or the start is refused, and nothing that
//! was acknowledged is lost or touched.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    client::{Answer, Client, encode},
    grpc,
    server::{Server, program},
    skip::skipped,
};

const UNAVAILABLE: u16 = 14;
/// Within which writes stop and resume by themselves.
const PATIENCE: Duration = Duration::from_secs(30);

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

/// One line by NDJSON.
fn write(server: &Server, app: &str, n: usize) -> Answer {
    let line = format!("{{\"ts\":{},\"app\":\"{app}\",\"msg\":\"line {n}\"}}\n", now_ns());
    let path = "/ingest/ndjson?time_field=ts&message_field=msg&stream_fields=app";
    Client::new(server.http).post(path, "application/x-ndjson", line.as_bytes()).unwrap()
}

fn count(server: &Server, app: &str) -> usize {
    let query = encode(&format!("{{app=\"{app}\"}}"));
    let answer = server.get(&format!("/loki/api/v1/query_range?query={query}&limit=5000"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    json["data"]["result"].as_array().unwrap().iter().map(|s| s["values"].as_array().unwrap().len()).sum()
}

/// Every protocol says 503 and when to come again.
fn assert_all_refused(server: &Server) {
    let now = now_ns();
    let logs = format!(
        "{{\"resourceLogs\":[{{\"scopeLogs\":[{{\"logRecords\":[{{\"timeUnixNano\":\"{now}\",\"body\":{{\"stringValue\":\"x\"}}}}]}}]}}]}}"
    );
    let points = format!(
        "{{\"resourceMetrics\":[{{\"scopeMetrics\":[{{\"metrics\":[{{\"name\":\"m\",\"gauge\":{{\"dataPoints\":[{{\"timeUnixNano\":\"{now}\",\"asDouble\":1}}]}}}}]}}]}}]}}"
    );
    let spans = format!(
        "{{\"resourceSpans\":[{{\"scopeSpans\":[{{\"spans\":[{{\"traceId\":\"{:032x}\",\"spanId\":\"{:016x}\",\"startTimeUnixNano\":\"{now}\",\"endTimeUnixNano\":\"{now}\"}}]}}]}}]}}",
        7, 7
    );
    let push = format!("{{\"streams\":[{{\"stream\":{{\"app\":\"x\"}},\"values\":[[\"{now}\",\"x\"]]}}]}}");
    let post = |addr: SocketAddr, path: &str, body: &str| {
        Client::new(addr).post(path, "application/json", body.as_bytes()).unwrap()
    };
    for (path, answer) in [
        ("ndjson", write(server, "refused", 0)),
        ("logs", post(server.otlp_http, "/v1/logs", &logs)),
        ("metrics", post(server.otlp_http, "/v1/metrics", &points)),
        ("traces", post(server.http, "/v1/traces", &spans)),
        ("loki", post(server.http, "/loki/api/v1/push", &push)),
    ] {
        assert_eq!(answer.status, 503, "{path}: {}", answer.text());
        let seconds: u64 = answer.header("retry-after").unwrap_or_else(|| panic!("{path}")).parse().unwrap();
        assert!((1..=60).contains(&seconds), "{path}: {seconds}");
        assert!(answer.text().contains("full"), "{path} says why: {}", answer.text());
    }
    // resource_logs { scope_logs { log_records { body { string_value: "x" } } } }
    let record = [0x0a, 9, 0x12, 7, 0x12, 5, 0x2a, 3, 0x0a, 1, b'x'];
    let method = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
    let reply = grpc::call(server.otlp_grpc, method, "", grpc::framed(false, &record));
    assert!(reply.status == UNAVAILABLE && reply.message.contains("full"), "{reply:?}");
}

#[test]
fn over_the_disk_limit_every_protocol_gets_503_and_queries_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &["--no-collect"]);
    assert_eq!(write(&server, "kept", 0).status, 200);
    drop(server);
    let config = dir.path().join("sightline.yaml");
    fs::write(&config, "limits: {disk_used_percent: 1}\n").unwrap();
    let server = Server::start(&data, &["--no-collect", "--config", &config.to_string_lossy()]);
    let end = Instant::now() + PATIENCE;
    while write(&server, "refused", 0).status != 503 {
        assert!(Instant::now() < end, "a disk used by more than 1 % is not noticed");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_all_refused(&server);
    assert_eq!(count(&server, "kept"), 1);
    assert_eq!(server.get("/healthz").status, 200);
}

/// A small file system of its own; unmounted at the end.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path, size: &str) -> Result<Mount, String> {
        fs::create_dir_all(at).unwrap();
        let out =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at).output();
        match out {
            Ok(o) if o.status.success() => Ok(Mount(at.to_owned())),
            Ok(o) => Err(format!("root, to mount a tmpfs: {}", String::from_utf8_lossy(&o.stderr).trim_end())),
            Err(e) => Err(format!("`mount`: {e}")),
        }
    }

    fn read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_fills_up_stops_writes_until_there_is_room_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mount = match Mount::tmpfs(&dir.path().join("disk"), "64m") {
        Ok(m) => m,
        Err(missing) => return skipped("a disk that fills up", &missing),
    };
    let data = mount.0.join("data");
    let ballast = mount.0.join("ballast");
    let mut server = Server::start(&data, &["--no-collect", "--memory-limit", "64MiB"]);
    let mut acked = 0;
    for round in 0..2 {
        for n in 0..20 {
            assert_eq!(write(&server, "kept", n).status, 200);
            acked += 1;
        }
        // First to over 95 %, then to the last byte, found by a write that fails.
        let used = 61 << 20;
        if round == 0 {
            fs::write(&ballast, vec![1; used]).unwrap();
        } else {
            let mut file = fs::File::create(&ballast).unwrap();
            let _ = std::io::copy(&mut std::io::repeat(1), &mut file);
        }
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = write(&server, "kept", 100);
            match answer.status {
                200 => acked += 1,
                503 => break,
                other => panic!("{other}: {}", answer.text()),
            }
            assert!(Instant::now() < end, "a full disk is not noticed");
            std::thread::sleep(Duration::from_millis(20));
        }
        if round == 0 {
            assert_all_refused(&server);
        }
        let seen = count(&server, "kept");
        assert!(seen >= acked, "{acked} acknowledged, {seen} found while the disk is full");
        fs::remove_file(&ballast).unwrap();
        let end = Instant::now() + PATIENCE;
        while write(&server, "kept", 200).status != 200 {
            assert!(Instant::now() < end, "writes do not resume");
            std::thread::sleep(Duration::from_millis(50));
        }
        acked += 1;
        server.kill();
        server = Server::start(&data, &["--no-collect", "--memory-limit", "64MiB"]);
        // A write that was answered 503 may have been kept, never lost when answered 200.
        let seen = count(&server, "kept");
        assert!(seen >= acked && seen <= acked + 40, "{acked} acknowledged, {seen} found");
        acked = seen;
    }
    drop(server);
}

/// Every file below, with its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            out.extend(contents(&entry.path()));
        } else {
            out.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    out
}

/// What the program says when it does not start on a directory.
fn refusal(data: &Path) -> String {
    let out = Command::new(program())
        .args(["--no-collect", "--http", "127.0.0.1:0", "--otlp-grpc", "127.0.0.1:0", "--otlp-http", "127.0.0.1:0"])
        .args(["--data-dir", &data.to_string_lossy()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stderr).trim_end().to_owned();
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "one sentence: {text}");
    assert!(text.contains(&*data.to_string_lossy()), "{text}");
    text
}

#[test]
fn a_directory_of_a_newer_version_is_refused_and_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    assert_eq!(write(&server, "kept", 0).status, 200);
    server.kill();
    let format = dir.path().join("format");
    let version: u32 = fs::read_to_string(&format).unwrap().trim().parse().unwrap();
    fs::write(&format, format!("{}\n", version + 1)).unwrap();
    let before = contents(dir.path());
    let text = refusal(dir.path());
    assert!(text.contains(&format!("version {}", version + 1)) && text.contains("newer"), "{text}");
    assert!(contents(dir.path()) == before, "files changed");
    // And as it was, it opens again.
    fs::write(&format, format!("{version}\n")).unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    assert_eq!(count(&server, "kept"), 1);
}

#[test]
fn a_directory_that_cannot_be_written_is_refused_and_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let mount = match Mount::tmpfs(&dir.path().join("disk"), "64m") {
        Ok(m) => m,
        Err(missing) => return skipped("a read-only file system", &missing),
    };
    let data = mount.0.join("data");
    let server = Server::start(&data, &["--no-collect", "--memory-limit", "64MiB"]);
    assert_eq!(write(&server, "kept", 0).status, 200);
    server.kill();
    let before = contents(&data);
    mount.read_only();
    for path in [data.clone(), mount.0.join("new")] {
        let text = refusal(&path);
        assert!(text.contains("writ") || text.contains("Read-only"), "{text}");
    }
    assert!(contents(&data) == before, "files changed");
    // A file where the directory should be.
    let file = dir.path().join("file");
    fs::write(&file, "text").unwrap();
    refusal(&file);
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
}
