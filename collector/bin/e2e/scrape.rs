//! We scrape Debian's Prometheus, which scrapes itself: names, labels, types and targets are those it has itself; killed, it
//! is down and its series end.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
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

struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until<T>(what: &str, mut ready: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match ready() {
            Ok(found) => return found,
            Err(why) => assert!(Instant::now() < end, "{what}: not after {PATIENCE:?}: {why}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn data(at: SocketAddr, path: &str) -> Result<Value, String> {
    let answer = Client::new(at).get(path).map_err(|e| e.to_string())?;
    if answer.status == 200 { Ok(answer.json()["data"].clone()) } else { Err(answer.text()) }
}

/// Label sets of all series, with numbers in `le` and `quantile` as one text: Prometheus 3 writes `1.0`, 2.42 `1`.
fn series(at: SocketAddr) -> Result<BTreeSet<String>, String> {
    let found = data(at, &format!("/api/v1/series?match[]={}", encode("{__name__!=\"\"}")))?;
    let one = |labels: &Value| {
        let mut labels = labels.clone();
        for name in ["le", "quantile"] {
            if let Some(number) = labels[name].as_str().and_then(|v| v.parse::<f64>().ok()) {
                labels[name] = Value::String(number.to_string());
            } else if let Some(map) = labels.as_object_mut() {
                map.retain(|n, v| n != name || !v.is_null());
            }
        }
        labels.to_string()
    };
    Ok(found.as_array().into_iter().flatten().map(one).collect())
}

fn one_value(at: SocketAddr, query: &str) -> Result<f64, String> {
    let found = data(at, &format!("/api/v1/query?query={}", encode(query)))?;
    let value = found["result"][0]["value"][1].as_str().ok_or_else(|| format!("{query} gives {found}"))?;
    value.parse().map_err(|_| value.to_owned())
}

fn equal<T: PartialEq + std::fmt::Debug>(ours: T, theirs: T) -> Result<(), String> {
    if ours == theirs { Ok(()) } else { Err(format!("ours {ours:?}, theirs {theirs:?}")) }
}

fn start(dir: &Path, config: &Path, http: SocketAddr) -> Prometheus {
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
        .arg(format!("--web.listen-address={http}"))
        .arg("--log.level=warn")
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.join("prometheus.log")).unwrap())
        .spawn()
        .unwrap();
    Prometheus(child)
}

/// A target that exposes this text to whoever connects.
fn exposing(body: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close";
    let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (mut got, mut chunk) = (Vec::new(), [0; 4096]);
            while !got.ends_with(b"\r\n\r\n") {
                match stream.read(&mut chunk) {
                    Ok(n) if n > 0 => got.extend_from_slice(&chunk[..n]),
                    _ => break,
                }
            }
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

#[test]
fn classic_histograms_scraped_with_custom_buckets_have_the_same_quantiles() {
    let mut body = "# TYPE h_seconds histogram\n".to_owned();
    for (code, counts) in [("200", [3, 10, 40, 41, 42]), ("500", [0, 0, 1, 1, 4])] {
        for (bound, count) in ["0.1", "0.5", "1", "2.5", "+Inf"].iter().zip(counts) {
            body.push_str(&format!("h_seconds_bucket{{code=\"{code}\",le=\"{bound}\"}} {count}\n"));
        }
        let n = counts[4];
        body.push_str(&format!("h_seconds_sum{{code=\"{code}\"}} {n}.5\nh_seconds_count{{code=\"{code}\"}} {n}\n"));
    }
    let target = exposing(&body);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("prometheus.yml");
    let here = format!("static_configs: [{{targets: ['{target}']}}]");
    let text = format!(
        "global: {{scrape_interval: 500ms, convert_classic_histograms_to_nhcb: true}}\nscrape_configs:\n\
         - {{job_name: custom, {here}}}\n- {{job_name: both, always_scrape_classic_histograms: true, {here}}}\n\
         - {{job_name: classic, convert_classic_histograms_to_nhcb: false, {here}}}\n\
         - {{job_name: far, proxy_from_environment: true, static_configs: [{{targets: ['nowhere.test:80']}}]}}\n"
    );
    std::fs::write(&config, text).unwrap();
    let args = ["--no-collect", "--prometheus-config", &config.display().to_string()];
    // The target answers as a proxy would.
    let proxy = format!("http://{target}");
    let server = Server::start_with(&dir.path().join("data"), &args, &[("http_proxy", &proxy)]).unwrap();
    let at = server.http;
    until("scrapes of all jobs", || equal(one_value(at, "sum(up)")?, 4.0));
    for (job, series) in [("custom", 2.0), ("both", 2.0 + 14.0), ("classic", 14.0), ("far", 2.0)] {
        let query = format!("count({{__name__=~\"h_.*\",job=\"{job}\"}})");
        assert_eq!(one_value(at, &query), Ok(series), "{job}");
        let query = format!("scrape_samples_scraped{{job=\"{job}\"}}");
        assert_eq!(one_value(at, &query), Ok(series), "{job}");
    }
    for code in ["200", "500"] {
        for q in ["0.05", "0.3", "0.5", "0.9", "0.97", "1"] {
            let of = |selector: &str| one_value(at, &format!("histogram_quantile({q}, {selector})")).unwrap();
            let want = of(&format!("h_seconds_bucket{{job=\"classic\",code=\"{code}\"}}"));
            for job in ["custom", "both", "far"] {
                let got = of(&format!("h_seconds{{job=\"{job}\",code=\"{code}\"}}"));
                assert!((got - want).abs() < 1e-9, "{q} of {code} by {job}: {got}, classic {want}");
            }
        }
        for function in ["count", "sum"] {
            let got = format!("histogram_{function}(h_seconds{{job=\"custom\",code=\"{code}\"}})");
            let want = format!("h_seconds_{function}{{job=\"classic\",code=\"{code}\"}}");
            assert_eq!(one_value(at, &got), one_value(at, &want));
        }
    }
}

#[test]
fn a_prometheus_file_scrapes_here_what_it_scrapes_there() {
    if !Command::new("prometheus").arg("--version").output().is_ok_and(|o| o.status.success()) {
        return skipped("scraping beside Prometheus", "prometheus (Debian package prometheus)");
    }
    let dir = tempfile::tempdir().unwrap();
    // Free a moment ago.
    let there = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let config = dir.path().join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 500ms, scrape_timeout: 400ms}}\nrule_files:\nscrape_configs:\n- job_name: self\n  \
         static_configs: [{{targets: ['{there}'], labels: {{zone: eu}}}}]\n  \
         relabel_configs: [{{source_labels: [__address__], regex: '.*:(.*)', target_label: port}}]\n  \
         metric_relabel_configs: [{{source_labels: [__name__], regex: 'go_gc_.*', action: drop}}]\n\
         - job_name: more\n  file_sd_configs: [{{files: ['more.json']}}]\n  honor_labels: true\n"
    );
    std::fs::write(&config, text).unwrap();
    std::fs::write(dir.path().join("more.json"), "[]").unwrap();
    let prometheus = start(dir.path(), &config, there);
    let server = Server::start(
        &dir.path().join("data"),
        &["--no-collect", "--prometheus-config", &config.display().to_string()],
    );
    let here = server.http;

    until("two scrapes by both", || {
        for at in [here, there] {
            if one_value(at, "count_over_time(up{job=\"self\"}[1h])")? < 3.0 {
                return Err("fewer".into());
            }
        }
        Ok(())
    });
    let all = until("the same series", || {
        let (ours, theirs) = (series(here)?, series(there)?);
        let differ: Vec<&String> = ours.symmetric_difference(&theirs).take(5).collect();
        if differ.is_empty() { Ok(ours) } else { Err(format!("{differ:?}")) }
    });
    assert!(all.len() > 300, "{} series", all.len());
    for query in
        ["prometheus_build_info", "process_start_time_seconds", "up", "count({__name__=~\"go_gc_.*\"}) or vector(0)"]
    {
        until(query, || equal(one_value(here, query)?, one_value(there, query)?));
    }
    // What is told of families; Prometheus 2.42 tells nothing of its own series.
    until("metadata", || {
        let (mut ours, theirs) = (data(here, "/api/v1/metadata")?, data(there, "/api/v1/metadata")?);
        let map = ours.as_object_mut().ok_or("no map")?;
        map.retain(|name, _| name != "up" && !name.starts_with("scrape_"));
        let theirs_map = theirs.as_object().ok_or("no map")?;
        let missing = theirs_map.iter().find(|(n, v)| !n.starts_with("go_gc_") && map.get(*n) != Some(*v));
        match missing {
            Some((name, v)) => Err(format!("{name}: ours {:?}, theirs {v}", map.get(name))),
            None => Ok(()),
        }
    });
    let target = |at: SocketAddr| -> Result<Vec<String>, String> {
        let found = data(at, "/api/v1/targets?state=active")?;
        let target = &found["activeTargets"][0];
        let keys = [
            "discoveredLabels",
            "labels",
            "scrapePool",
            "scrapeUrl",
            "lastError",
            "health",
            "scrapeInterval",
            "scrapeTimeout",
        ];
        Ok(keys.iter().map(|k| format!("{k} {}", target[*k])).collect())
    };
    until("targets", || equal(target(here)?, target(there)?));
    let pools = data(here, "/api/v1/scrape_pools").unwrap();
    assert_eq!(pools, serde_json::json!({"scrapePools": ["more", "self"]}));
    let told = data(here, "/api/v1/targets/metadata?metric=prometheus_build_info").unwrap();
    assert_eq!(told[0]["type"], "gauge", "{told}");

    // Another target by file, without a restart.
    std::fs::write(dir.path().join("more.json"), format!("[{{\"targets\":[\"{there}\"]}}]")).unwrap();
    until("the target of the file", || equal(one_value(here, "up{job=\"more\"}")?, 1.0));

    // Killed: down, and what it exposed is over at once rather than after the lookback of five minutes.
    drop(prometheus);
    until("down", || equal(one_value(here, "up{job=\"self\"}")?, 0.0));
    until("stale", || {
        equal(data(here, "/api/v1/query?query=prometheus_build_info")?["result"].clone(), serde_json::json!([]))
    });
    assert!(one_value(here, "count_over_time(prometheus_build_info{job=\"self\"}[1h])").unwrap() >= 3.0);
    let found = data(here, "/api/v1/targets").unwrap();
    let down = found["activeTargets"].as_array().unwrap().iter().find(|t| t["scrapePool"] == "self").unwrap();
    assert_eq!(down["health"], "down");
    assert!(down["lastError"].as_str().unwrap().contains("onnect"), "{down}");
    let own = server.get("/metrics").text();
    assert!(own.contains("collector_scrape_failed_scrapes_total{source=\"prometheus\"}"), "{own}");
}
