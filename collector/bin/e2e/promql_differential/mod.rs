//! The same series by remote write into us and into Debian's Prometheus 2.42, and the same queries to both.
//!
//! `SIGHTLINE_PROMQL_QUERIES=20000` asks for more than the 3,000 of a usual run, `SIGHTLINE_PROMQL_SEED` for others.
//! What is left out because the versions differ is said in `generate`.

mod data;
mod generate;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use generate::Generator;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use super::{
    client::{Client, encode},
    server::Server,
    skip::skipped,
};

const QUERIES: usize = 3000;
/// Relative; sums are compensated in one and not in the other.
const TOLERANCE: f64 = 1e-9;
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Prometheus {
    child: Child,
    pub http: SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// One that scrapes nothing and takes remote writes.
    pub fn receiver(dir: &Path) -> Prometheus {
        Self::receiver_with(dir, &[])
    }

    pub fn receiver_with(dir: &Path, args: &[&str]) -> Prometheus {
        let http = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        std::fs::write(dir.join("prometheus.yml"), "global: {scrape_interval: 15s}\n").unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
            .arg(format!("--web.listen-address={http}"))
            .args(["--web.enable-remote-write-receiver", "--log.level=warn", "--query.max-samples=200000000"])
            .args(args)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("prometheus.log")).unwrap())
            .spawn()
            .unwrap();
        let out = Prometheus { child, http };
        let end = Instant::now() + PATIENCE;
        while !Client::new(http).get("/-/ready").is_ok_and(|a| a.status == 200) {
            assert!(Instant::now() < end, "Prometheus is not ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        out
    }
}

/// Points by series, or that it failed. The texts of errors are not compared.
type Answer = Result<BTreeMap<String, Vec<(f64, f64)>>, String>;

fn ask(client: &mut Client, path: &str) -> Answer {
    let answer = client.get(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let json = answer.json();
    if json["status"] != "success" {
        return Err(format!("{} {}", json["errorType"], json["error"]));
    }
    let number = |v: &Value| match v.as_str().unwrap_or("") {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        text => text.parse().unwrap_or_else(|_| panic!("{v} is no number")),
    };
    let point = |p: &Value| (p[0].as_f64().unwrap_or(f64::NAN), number(&p[1]));
    let data = &json["data"];
    let mut out = BTreeMap::new();
    if data["resultType"] == "scalar" {
        out.insert("scalar".to_owned(), vec![point(&data["result"])]);
        return Ok(out);
    }
    for series in data["result"].as_array().into_iter().flatten() {
        let points = match series["values"].as_array() {
            Some(values) => values.iter().map(point).collect(),
            None => vec![point(&series["value"])],
        };
        let labels: BTreeMap<&String, &Value> = series["metric"].as_object().into_iter().flatten().collect();
        let before = out.insert(format!("{labels:?}"), points);
        assert!(before.is_none(), "{path}: a series twice");
    }
    Ok(out)
}

fn close(a: f64, b: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()).max(1e-3)
}

/// Since Prometheus 3 a comparison that is false is a match all the same, and a second one an error.
fn matched_twice(query: &str, why: &str) -> bool {
    why.contains("multiple matches for labels") && ["==", "!=", "<", ">"].iter().any(|op| query.contains(op))
}

/// 2.42 refuses series that a dropped name makes one and that never share a step; 3 joins them, as the recorded cases say.
fn joined_since(why: &str) -> bool {
    why.contains("vector cannot contain metrics with the same labelset")
}

/// What is different, if anything is.
fn difference(query: &str, ours: &Answer, theirs: &Answer) -> Option<String> {
    let (ours, theirs) = match (ours, theirs) {
        (Err(_), Err(_)) => return None,
        (Err(e), Ok(_)) if matched_twice(query, e) => return None,
        (Ok(_), Err(e)) if joined_since(e) => return None,
        (Ok(a), Ok(b)) => (a, b),
        (Ok(a), Err(e)) => return Some(format!("{} series, but Prometheus fails: {e}", a.len())),
        (Err(e), Ok(b)) => return Some(format!("fails: {e}, but Prometheus gives {} series", b.len())),
    };
    for (labels, points) in theirs {
        let Some(found) = ours.get(labels) else { return Some(format!("without {labels}")) };
        if found.len() != points.len() {
            return Some(format!("{labels}: {} points instead of {}", found.len(), points.len()));
        }
        for (a, b) in found.iter().zip(points) {
            if a.0 != b.0 || !close(a.1, b.1) {
                return Some(format!("{labels}: {a:?} instead of {b:?}"));
            }
        }
    }
    ours.keys().find(|l| !theirs.contains_key(*l)).map(|l| format!("{l} too much"))
}

#[test]
fn generated_queries_are_answered_as_prometheus_answers_them() {
    if !Command::new("prometheus").arg("--version").output().is_ok_and(|o| o.status.success()) {
        return skipped("the comparison of PromQL", "prometheus (Debian package prometheus)");
    }
    let asked = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let count = asked("SIGHTLINE_PROMQL_QUERIES").map_or(QUERIES, |n| n as usize);
    let seed = asked("SIGHTLINE_PROMQL_SEED").unwrap_or(42);
    let dir = tempfile::tempdir().unwrap();
    let start_ours = || Server::start(&dir.path().join("data"), &["--no-collect"]);
    let mut server = start_ours();
    let prometheus = Prometheus::receiver(dir.path());

    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    let start = (now / 3600 - 4) * 3600;
    let series = data::series(seed);
    // Ours has the first two thirds in parts and the rest in its head, at last all in parts.
    let cut = data::SAMPLES * 2 / 3;
    let mut sent = data::send(server.http, &series, start * 1000, 0..cut);
    server.stop();
    server = start_ours();
    sent += data::send(server.http, &series, start * 1000, cut..data::SAMPLES);
    assert_eq!(sent, data::send(prometheus.http, &series, start * 1000, 0..data::SAMPLES));

    let middle = start + data::SAMPLES * data::STEP_MS / 2000;
    let mut generator = Generator { rng: StdRng::seed_from_u64(seed), middle };
    let (mut ours, mut theirs) = (Client::new(server.http), Client::new(prometheus.http));
    let (mut empty, mut failed, mut wrong) = (0, 0, Vec::new());
    for n in 0..count {
        if n == count / 2 {
            server.stop();
            server = start_ours();
            ours = Client::new(server.http);
        }
        let query = generator.query();
        // At half seconds.
        let at = middle + generator.rng.random_range(-3600..4000);
        let path = if n % 2 == 0 {
            format!("/api/v1/query?query={}&time={at}.5", encode(&query))
        } else {
            let step = generator.rng.random_range(7..300);
            let end = at + step * generator.rng.random_range(0..30);
            format!("/api/v1/query_range?query={}&start={at}.5&end={end}.5&step={step}", encode(&query))
        };
        let (got, wanted) = (ask(&mut ours, &path), ask(&mut theirs, &path));
        match &wanted {
            Ok(series) if series.is_empty() => empty += 1,
            Ok(_) => {}
            Err(_) => failed += 1,
        }
        if let Some(difference) = difference(&query, &got, &wanted) {
            wrong.push(format!("{query}\n    {path}\n    {difference}"));
        }
    }
    println!("{count} queries (seed {seed}), {empty} without an answer, {failed} refused, {} different", wrong.len());
    assert!(
        wrong.is_empty(),
        "seed {seed}: {} of {count} differ\n{}",
        wrong.len(),
        wrong[..wrong.len().min(40)].join("\n")
    );
    assert!(empty < count / 2 && failed < count / 3, "{empty} empty and {failed} refused of {count} say little");
}
