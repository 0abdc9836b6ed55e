//! Debian's Prometheus, which scrapes itself and remote-writes into us: the same questions get the same answers from both.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    client::{Client, encode},
    server::Server,
    skip::skipped,
};

/// How long to wait for what takes a few seconds.
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
    /// Scrapes itself and remote-writes into a server.
    pub fn start(dir: &Path, write_to: &Server) -> Prometheus {
        Self::run(dir, |http| {
            format!(
                "global: {{scrape_interval: 500ms, scrape_timeout: 400ms}}\n\
                 scrape_configs:\n- job_name: self\n  static_configs: [{{targets: ['{http}']}}]\n\
                 remote_write:\n- url: http://{}/api/v1/write\n  send_exemplars: true\n  \
                 send_native_histograms: true\n  queue_config: {{batch_send_deadline: 200ms}}\n  \
                 metadata_config: {{send_interval: 1s}}\n",
                write_to.http
            )
        })
    }

    /// With a configuration that may name its own address; its data and its log (`prometheus.log`) rest in `dir`.
    pub fn run(dir: &Path, config: impl FnOnce(SocketAddr) -> String) -> Prometheus {
        // Free a moment ago.
        let http = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        std::fs::write(dir.join("prometheus.yml"), config(http)).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
            .arg(format!("--web.listen-address={http}"))
            .arg("--log.level=warn")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("prometheus.log")).unwrap())
            .spawn()
            .unwrap();
        Prometheus { child, http }
    }
}

/// The `data.result` of an instant query, its series in the order of their labels.
pub fn ask(at: SocketAddr, query: &str, time: f64) -> Vec<String> {
    let answer = Client::new(at).get(&format!("/api/v1/query?query={}&time={time}", encode(query)));
    let Ok(answer) = answer else { return Vec::new() };
    if answer.status != 200 {
        return Vec::new();
    }
    let json = answer.json();
    let mut out: Vec<String> =
        json["data"]["result"].as_array().into_iter().flatten().map(Value::to_string).collect();
    out.sort();
    out
}

fn promtool(at: SocketAddr, query: &str, time: f64) -> String {
    let out = Command::new("promtool")
        .args(["query", "instant", &format!("--time={time}"), &format!("http://{at}"), query])
        .output()
        .unwrap();
    assert!(out.status.success(), "{query}: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

pub fn until<T>(what: &str, log: &Path, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ready() {
            return found;
        }
        let log = || std::fs::read_to_string(log).unwrap_or_default();
        assert!(Instant::now() < end, "{what}: not after {PATIENCE:?}\n{}", log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn installed() -> bool {
    let there = |name: &str| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    there("prometheus") && there("promtool")
}

#[test]
fn what_prometheus_remote_writes_is_answered_as_prometheus_answers_it() {
    if !installed() {
        return skipped("Prometheus remote write", "prometheus and promtool (Debian package prometheus)");
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--no-collect"]);
    let prometheus = Prometheus::start(dir.path(), &server);
    let log = dir.path().join("prometheus.log");
    let both = (server.http, prometheus.http);

    // Some scrapes, then a time that lies behind both: from there on nothing comes that is older.
    let up = "count_over_time(up[1h])";
    let now = || super::oracle::now_ns() as f64 / 1e9;
    until("four scrapes", &log, || {
        let found = ask(prometheus.http, up, now());
        let n = serde_json::from_str::<Value>(found.first()?).ok()?["value"][1].as_str()?.parse::<f64>().ok()?;
        (n >= 4.0).then_some(())
    });
    let time = (now() * 1000.0).floor() / 1000.0;
    // Every sample of every series, with its time and its text.
    let all = "{__name__!=\"\"}[1h]";
    let wanted = ask(both.1, all, time);
    assert!(wanted.len() > 300, "Prometheus knows {} series of itself", wanted.len());
    until("all samples", &log, || {
        (ask(both.0, "count({__name__!=\"\"})", time) == ask(both.1, "count({__name__!=\"\"})", time)
            && ask(both.0, all, time).len() == wanted.len())
        .then_some(())
    });
    let got = until("the same samples", &log, || {
        let got = ask(both.0, all, time);
        (got == wanted || now() - time > 10.0).then_some(got)
    });
    for (got, wanted) in got.iter().zip(&wanted) {
        assert_eq!(got, wanted);
    }
    assert_eq!(got.len(), wanted.len());

    // Without `rate` and its like: see `prometheus_reads`.
    for query in [
        "up",
        "sum by (code) (prometheus_http_requests_total)",
        "max_over_time(prometheus_tsdb_head_samples_appended_total[1h])",
        "histogram_quantile(0.9, sum by (le) (prometheus_http_request_duration_seconds_bucket))",
        "topk(3, count by (__name__) ({__name__=~\"prometheus_.+\"}))",
        "prometheus_build_info",
    ] {
        assert_eq!(promtool(both.0, query, time), promtool(both.1, query, time), "{query}");
    }

    // Metadata comes on its own, later than the first samples.
    let name = "prometheus_http_request_duration_seconds";
    let metadata = |at| {
        let answer = Client::new(at).get(&format!("/api/v1/metadata?metric={name}")).ok()?;
        answer.json()["data"][name].as_array()?.first().cloned()
    };
    let wanted = metadata(both.1).expect("Prometheus knows its metadata");
    until("metadata", &log, || (metadata(both.0)? == wanted).then_some(()));
}
