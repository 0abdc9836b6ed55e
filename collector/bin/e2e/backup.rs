//! `sightline backup` of a server that takes writes, and `sightline restore`.

use std::{
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    client::{Client, encode},
    server::{Server, program},
    skip,
};

fn run(args: &[&str]) -> Output {
    Command::new(program()).args(args).output().expect("the program runs")
}

fn nanos() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// Pushes numbered lines and samples of them until told to stop; `acked`: numbers below it were acknowledged.
fn push(addr: std::net::SocketAddr, acked: &AtomicU64, stop: &AtomicBool) {
    let mut client = Client::new(addr);
    let path = "/ingest/ndjson?time_field=ts&message_field=msg&stream_fields=app";
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        let to = n + 20;
        let body: String = (n..to)
            .map(|i| format!("{{\"ts\":{},\"app\":\"a{}\",\"msg\":\"number {i}\"}}\n", nanos(), i % 3))
            .collect();
        let answer = client.post(path, "application/x-ndjson", body.as_bytes()).expect("the server answers");
        assert!((200..300).contains(&answer.status), "{}", answer.text());
        n = to;
        acked.store(n, Ordering::SeqCst);
    }
}

/// Numbers found, in the order of their time; all of them distinct.
fn numbers(server: &Server) -> Vec<u64> {
    let mut client = Client::new(server.http);
    let mut out = Vec::new();
    for app in 0..3 {
        let query = encode(&format!("{{app=\"a{app}\"}}"));
        let mut start = 0;
        // As many at a time as the API allows.
        loop {
            let path = format!(
                "/loki/api/v1/query_range?query={query}&limit=5000&direction=forward&start={}&end={}",
                if start == 0 { nanos() - 600_000_000_000 } else { start },
                nanos()
            );
            let answer = client.get(&path).expect("the server answers");
            assert_eq!(answer.status, 200, "{}", answer.text());
            let json = answer.json();
            let streams = json["data"]["result"].as_array().unwrap();
            let values: Vec<(u64, u64)> = streams
                .iter()
                .flat_map(|s| s["values"].as_array().unwrap())
                .map(|v| {
                    let line = v[1].as_str().unwrap().trim_start_matches("number ");
                    (v[0].as_str().unwrap().parse().unwrap(), line.parse().unwrap())
                })
                .collect();
            out.extend(values.iter().map(|v| v.1));
            if values.len() < 5000 {
                break;
            }
            start = values.iter().map(|v| v.0).max().unwrap() + 1;
        }
    }
    out.sort_unstable();
    let before = out.len();
    out.dedup();
    assert_eq!(out.len(), before, "lines are there twice");
    out
}

/// What Python's `deltalake` counts in the logs of a copy; `None` where it is not installed.
fn delta_rows(copy: &Path) -> Option<u64> {
    // Its worker threads now and then abort an interpreter that is leaving: it leaves at once.
    let script = "import os, sys, deltalake; \
        print(deltalake.DeltaTable(sys.argv[1]).to_pyarrow_table().num_rows, flush=True); os._exit(0)";
    let table = copy.join("data/default/logs");
    let out = Command::new("python3").args(["-c", script, &table.to_string_lossy()]).output();
    match out {
        Ok(o) if o.status.success() => Some(String::from_utf8_lossy(&o.stdout).trim().parse().unwrap()),
        Ok(o) if String::from_utf8_lossy(&o.stderr).contains("No module named") => None,
        Err(_) => None,
        Ok(o) => panic!("deltalake cannot read the copy: {}", String::from_utf8_lossy(&o.stderr)),
    }
}

#[test]
fn a_backup_beside_writes_is_whole_and_restores() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (data, copy, again, restored) = (at("data"), at("copy"), at("copy2"), at("restored"));
    std::fs::write(dir.path().join("c.yaml"), "storage: {flush_bytes: 64KiB, flush_age: 1s}\n").unwrap();
    let server = Server::start(Path::new(&data), &["--no-collect", "--config", &at("c.yaml")]);
    let url = format!("http://{}", server.http);
    let (acked, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = std::thread::spawn({
        let (addr, acked, stop) = (server.http, acked.clone(), stop.clone());
        move || push(addr, &acked, &stop)
    });
    let end = Instant::now() + Duration::from_secs(60);
    while acked.load(Ordering::SeqCst) < 2000 {
        assert!(Instant::now() < end, "writes are too slow");
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = acked.load(Ordering::SeqCst);
    let made = run(&["backup", "--data-dir", &data, "--to", &copy, "--url", &url]);
    let text = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(made.status.success(), "{text}{}", String::from_utf8_lossy(&made.stderr));
    let refused = run(&["backup", "--data-dir", &data, "--to", &copy, "--url", &url]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("not empty"));
    let elsewhere = run(&["backup", "--data-dir", &data, "--to", &again, "--url", "http://127.0.0.1:9"]);
    assert!(!elsewhere.status.success(), "nobody listens there");
    stop.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    let after = acked.load(Ordering::SeqCst);

    // Who cannot write into a folder cannot have the server write there.
    let mut client = Client::new(server.http);
    let path =
        format!("/api/v1/admin/backup?to={}&token={}&data_dir={}", encode(&at("x")), "0".repeat(32), encode(&data));
    assert_eq!(client.post(&path, "text/plain", b"").unwrap().status, 403);

    let made = run(&["restore", "--from", &copy, "--data-dir", &restored]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let refused = run(&["restore", "--from", &copy, "--data-dir", &restored]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("not empty"));
    let unfinished = run(&["restore", "--from", &at("c.yaml"), "--data-dir", &at("y")]);
    assert!(!unfinished.status.success());

    let second = Server::start(Path::new(&restored), &["--no-collect"]);
    let found = numbers(&second);
    // All that was acknowledged before, nothing cut in the middle of a request.
    assert!(found.len() as u64 >= before && found.len() as u64 <= after, "{before} <= {} <= {after}", found.len());
    assert_eq!(found.len() % 20, 0);
    assert!(found.iter().enumerate().all(|(i, n)| *n == i as u64), "a gap in what was copied");
    match delta_rows(Path::new(&copy)) {
        Some(rows) => assert_eq!(rows, found.len() as u64),
        None => skip::skipped("a backup read by another program", "the Python package deltalake"),
    }
    // It takes writes, and those come behind what was restored.
    let acked = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| push(second.http, &acked, &stop));
        while acked.load(Ordering::SeqCst) < 100 {
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::SeqCst);
    });
    drop(second);

    // Of a data directory that no server uses.
    drop(server);
    let made = run(&["backup", "--data-dir", &data, "--to", &again]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    if let Some(rows) = delta_rows(Path::new(&again)) {
        assert_eq!(rows, after);
    }
}
