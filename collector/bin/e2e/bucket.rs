//! The whole program on a bucket that goes away and comes back: what is taken, what is answered meanwhile, and that nothing
//! is lost, also without the local cache and without the data directory.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{
    client::{Answer, Client, encode},
    judge::{Scope, judge},
    oracle::{Fate, Kind, Oracle, Request, Rng, now_ns},
    server::Server,
    weed::{self, Weed},
};

const APP: &str = "bucket";
/// Heads and log are small, so that little is taken while nothing can be flushed; parts come soon.
const CONFIG: &str =
    "no_collect: true\nmemory_limit: 64MiB\nstorage: {flush_bytes: 64KiB, flush_age: 200ms, wal_bytes: 16MiB}\n";
/// A push that fills heads and log, and how many of them are more than fit.
const FLOOD_LINES: usize = 2_000;
const FLOOD_PUSHES: usize = 200;
const FLOOD_WIDTH: usize = 400;

fn env(weed: &Weed) -> Vec<(String, String)> {
    [
        ("AWS_ENDPOINT_URL", format!("http://{}", weed.s3())),
        ("AWS_ACCESS_KEY_ID", weed::KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", weed::SECRET.to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

struct Run {
    oracle: Oracle,
    requests: Vec<Request>,
    clock: i64,
}

impl Run {
    /// Logs, metrics and spans, acknowledged.
    fn push(&mut self, server: &Server) {
        let mut client = server.client();
        for kind in [Kind::Ndjson, Kind::Loki, Kind::Points, Kind::Written, Kind::Spans] {
            let mut request = self.oracle.plan(kind, 40, 0, 0, Some(&mut self.clock));
            let (path, content_type, body) = self.oracle.encode(&request, APP);
            let answer = client.post(path, content_type, &body).unwrap();
            assert!((200..300).contains(&answer.status), "{kind:?}: {} {}", answer.status, answer.text());
            request.fate = Fate::Owed;
            self.requests.push(request);
        }
    }

    fn judge(&mut self, server: &Server, when: &str) {
        let verdict = judge(&self.oracle, APP, server, &mut self.requests, &Scope::all());
        assert_eq!(verdict.violations, 0, "{when}: {}", verdict.told.join("\n"));
        assert!(verdict.judged >= self.requests.iter().map(|r| r.count).sum(), "{when}: {}", verdict.judged);
    }
}

fn metric(server: &Server, name: &str) -> f64 {
    let text = server.get("/metrics").text();
    let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no metric {name}"))
}

fn wait_until(what: &str, limit: u64, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(limit);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {limit} s");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Pushes the lines `from..` of a tenant; the answer.
fn push_lines(client: &mut Client, tenant: &str, from: usize, lines: usize, width: usize) -> Answer {
    let now = now_ns();
    let mut rng = Rng::new(from as u64);
    // Hard to compress, so that the log grows.
    let mut noise = || (0..width / 16).map(|_| format!("{:016x}", rng.next())).collect::<String>();
    let values: Vec<String> =
        (from..from + lines).map(|n| format!("[\"{}\",\"line {n} {}\"]", now + n as i64, noise())).collect();
    let body = format!("{{\"streams\":[{{\"stream\":{{\"app\":\"{tenant}\"}},\"values\":[{}]}}]}}", values.join(","));
    let headers = [("Content-Type", "application/json"), ("X-Scope-OrgID", tenant)];
    client.send("POST", "/loki/api/v1/push", &headers, body.as_bytes()).unwrap()
}

/// Lines a tenant has.
fn lines_of(server: &Server, tenant: &str) -> usize {
    let query = encode(&format!("sum(count_over_time({{app=\"{tenant}\"}}[1h]))"));
    let at = (now_ns() + 60_000_000_000) / 1_000_000_000;
    let path = format!("/loki/api/v1/query?query={query}&time={at}");
    let answer = server.client().send("GET", &path, &[("X-Scope-OrgID", tenant)], b"").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["data"]["result"][0]["value"][1].as_str().and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn value(answer: &Answer) -> serde_json::Value {
    answer.json()["data"]["result"][0]["value"][1].clone()
}

fn counted(server: &Server) -> Answer {
    server.get(&format!("/api/v1/query?query={}", encode("sum(count_over_time(torture_gauge[10m]))")))
}

/// The read APIs, for what is in parts only, while neither the bucket nor the cache has it.
fn are_told_to_come_back(server: &Server, run: &Run) {
    let (from, to) = (run.oracle.began - 60_000_000_000, now_ns());
    let sql = r#"{"query": "select count(body) from logs", "format": "json"}"#;
    let reads = [
        format!("/loki/api/v1/query_range?query={}&start={from}&end={to}", encode("{app=\"bucket\"} |= \"job\"")),
        format!("/api/traces/{:032x}", u128::from_be_bytes(run.oracle.trace_id(run.requests[4].first))),
        "/api/v1/sql".to_owned(),
    ];
    for path in reads {
        let mut client = server.client();
        let answer = match path.as_str() {
            "/api/v1/sql" => client.post(&path, "application/json", sql.as_bytes()),
            _ => client.get(&path),
        };
        let answer = answer.unwrap();
        let text = answer.text();
        assert_eq!(answer.status, 503, "{path}: {text}");
        assert!(
            answer.header("retry-after").is_some_and(|s| s.parse::<u32>().is_ok()),
            "{path}: {:?}",
            answer.headers
        );
        assert!(text.contains("store s3://sightline/bucket does not answer"), "{path}: {text}");
    }
}

#[test]
fn a_bucket_that_goes_away_costs_answers_for_a_while_and_no_row() {
    let Some(mut weed) = weed::start_or_skip("the program on a bucket") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (data, config) = (dir.path().join("data"), dir.path().join("sightline.yaml"));
    std::fs::write(&config, CONFIG).unwrap();
    let log = dir.path().join("log");
    let bucket = format!("s3://{}/bucket", weed::BUCKET);
    let args = ["--config".to_owned(), config.display().to_string(), "--store".to_owned(), bucket];
    let env = env(&weed);
    let start = |data: &Path| {
        let log = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        Server::start_logged(data, &args, &env, log).unwrap()
    };
    let told = || String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    let oracle = Oracle::new(now_ns() as u64);
    let mut run = Run { clock: 0, requests: Vec::new(), oracle };

    let server = start(&data);
    let flushed = |server: &Server| metric(server, "storage_head_rows") == 0.0;
    run.push(&server);
    wait_until("the first flush", 30, || flushed(&server));
    run.judge(&server, "in parts");

    // Away: what is in memory is read, and everything is taken, the first rows of a tenant too.
    weed.kill();
    run.push(&server);
    assert_eq!(push_lines(&mut server.client(), "late", 0, 10, 10).status, 204);
    assert_eq!(lines_of(&server, "late"), 10);
    run.judge(&server, "from memory and cache");
    // Without the cache. Samples that were read stay unpacked in memory: they are all there, or it is said that they are not.
    let samples = counted(&server);
    assert_eq!(samples.status, 200, "{}", samples.text());
    std::fs::write(data.join("cache/blocks"), b"").unwrap();
    are_told_to_come_back(&server, &run);
    let again = counted(&server);
    assert!(again.status == 503 || value(&again) == value(&samples), "{} {}", samples.text(), again.text());
    // Until there is no more room.
    let mut client = server.client();
    let mut taken = 0;
    let refused = (0..FLOOD_PUSHES).find_map(|_| {
        let answer = push_lines(&mut client, "flood", taken, FLOOD_LINES, FLOOD_WIDTH);
        taken += if answer.status == 204 { FLOOD_LINES } else { 0 };
        (answer.status != 204).then_some(answer)
    });
    let refused = refused.unwrap_or_else(|| panic!("{taken} lines and no end"));
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some_and(|s| s.parse::<u32>().is_ok()), "{:?}", refused.headers);
    assert!(metric(&server, "storage_head_spilled_rows_total") > 0.0 && metric(&server, "storage_wal_bytes") > 16e6);
    assert!(taken > 0 && lines_of(&server, "flood") == taken && lines_of(&server, "late") == 10);

    // Back: whoever was refused comes again and is taken, and all of it gets to the bucket.
    weed.restart();
    wait_until("writes are taken again", 60, || {
        push_lines(&mut client, "flood", taken, FLOOD_LINES, FLOOD_WIDTH).status == 204
    });
    taken += FLOOD_LINES;
    run.push(&server);
    wait_until("everything is flushed", 60, || flushed(&server));
    let all = |run: &mut Run, server: &Server, when: &str| {
        run.judge(server, when);
        assert_eq!((lines_of(server, "late"), lines_of(server, "flood")), (10, taken), "{when}");
    };
    all(&mut run, &server, "the bucket is back");

    // Without the cache, and without the data directory.
    let (status, _) = server.stop();
    assert!(status.success(), "{}", told());
    std::fs::remove_dir_all(data.join("cache")).unwrap();
    let server = start(&data);
    all(&mut run, &server, "with an empty cache");
    assert!(metric(&server, "storage_object_read_bytes_total") > 0.0);
    let (status, _) = server.stop();
    assert!(status.success(), "{}", told());
    let server = start(&dir.path().join("elsewhere"));
    all(&mut run, &server, "from the bucket alone");
    server.stop();
}
