//! Real containers under Podman: their lines, labels and figures come back, each line once, through kills.
//!
//! Each container numbers its lines (`seq=`), so that the judge needs nothing of ours: per container and stream the
//! numbers must be gapless and without repetition up to the last one in the runtime's own log file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::Rng as _;
use serde_json::Value;

use super::{
    client::encode,
    server::Server,
    skip::{shared, skipped},
};

const CONTAINERS: usize = 3;
const KILLS: usize = 6;
/// Entries of one page of an answer.
const PAGE: usize = 5000;
/// For what needs the machine to do something.
const PATIENCE: Duration = Duration::from_secs(60);

/// The containers of one test; removed when it ends, however it ends.
struct Containers {
    script: PathBuf,
    names: Vec<String>,
    /// Those that were already there belong to somebody else, and stay.
    ours: bool,
}

impl Containers {
    fn start() -> Result<Containers, String> {
        let script = shared().join("containers/containers.sh");
        if !script.exists() {
            return Err(format!("{}", script.display()));
        }
        let running = podman(&["ps", "--filter", "name=sightline-test-", "--format", "{{.Names}}"])?;
        let mut names: Vec<String> = running.lines().map(str::to_owned).collect();
        let ours = names.is_empty();
        if ours {
            let count = CONTAINERS.to_string();
            // Never by a pipe: the containers' monitors keep it open for as long as they live.
            let mut up = Command::new(&script);
            up.args(["up", &count, "20"]).stdout(Stdio::null()).stderr(Stdio::null());
            let up = up.status().map_err(|e| e.to_string())?;
            if !up.success() {
                return Err(format!("podman that starts containers, {} up: {up}", script.display()));
            }
            names = (0..CONTAINERS).map(|i| format!("sightline-test-{i}")).collect();
        }
        Ok(Containers { script, names, ours })
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        if self.ours {
            let _ = Command::new(&self.script).arg("down").status();
        }
    }
}

fn podman(args: &[&str]) -> Result<String, String> {
    let out = Command::new("podman").args(args).output().map_err(|e| format!("podman: {e}"))?;
    if !out.status.success() {
        return Err(format!("podman {args:?}: {}", String::from_utf8_lossy(&out.stderr)));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn inspect(name: &str, format: &str) -> String {
    podman(&["inspect", name, "--format", format]).unwrap()
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()
}

fn seq(line: &str) -> u64 {
    let at = line.find("seq=").unwrap_or_else(|| panic!("a line without a number: {line}")) + 4;
    let digits = line[at..].bytes().take_while(u8::is_ascii_digit).count();
    line[at..at + digits].parse().unwrap()
}

/// The last number of each stream in the runtime's own file; only whole lines count.
fn written(log: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(log).unwrap();
    let mut last = BTreeMap::new();
    for line in text.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
        let stream = line.split(' ').nth(1).unwrap();
        last.insert(stream.to_owned(), seq(line));
    }
    last
}

/// Every entry of a selector over the last days: labels, time and line, asked page by page.
fn read_all(server: &Server, selector: &str) -> Vec<(Value, u64, String)> {
    let mut all = Vec::new();
    let end = now_ns();
    let mut start = u64::try_from(end - 3 * 24 * 3600 * 1_000_000_000).unwrap();
    loop {
        let answer = server.get(&format!(
            "/loki/api/v1/query_range?query={}&start={start}&end={end}&direction=forward&limit={PAGE}",
            encode(selector)
        ));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json();
        let mut page: Vec<(Value, u64, String)> = Vec::new();
        for stream in json["data"]["result"].as_array().unwrap() {
            for value in stream["values"].as_array().unwrap() {
                let ts = value[0].as_str().unwrap().parse().unwrap();
                page.push((stream["stream"].clone(), ts, value[1].as_str().unwrap().to_owned()));
            }
        }
        let full = page.len() >= PAGE;
        // The next page begins with the last instant of this one, whose entries may have been cut.
        let last = page.iter().map(|(_, ts, _)| *ts).max().unwrap_or(start);
        all.extend(page.into_iter().filter(|(_, ts, _)| !full || *ts < last));
        if !full {
            return all;
        }
        assert!(last > start, "more than a page of entries at one instant");
        start = last;
    }
}

fn last_seen(server: &Server, container: &str, stream: &str) -> Option<u64> {
    let selector = encode(&format!("{{container=\"{container}\",stream=\"{stream}\"}}"));
    let answer = server.get(&format!("/loki/api/v1/query_range?query={selector}&limit=1&since=24h"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    Some(seq(answer.json()["data"]["result"][0]["values"][0][1].as_str()?))
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until each stream has come as far as the runtime's files are now.
fn catch_up(server: &Server, logs: &BTreeMap<String, PathBuf>) -> BTreeMap<(String, String), u64> {
    let mut goals = BTreeMap::new();
    for (name, log) in logs {
        for (stream, last) in written(log) {
            goals.insert((name.clone(), stream), last);
        }
    }
    for ((name, stream), goal) in &goals {
        wait_for(&format!("line {goal} of {name} {stream}"), || last_seen(server, name, stream) >= Some(*goal));
    }
    goals
}

/// One value of an instant query.
fn sample(server: &Server, query: &str) -> Option<f64> {
    let answer = server.get(&format!("/api/v1/query?query={}", encode(query)));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    let result = json["data"]["result"].as_array().unwrap();
    assert!(result.len() <= 1, "{query}: {json}");
    result.first().map(|r| r["value"][1].as_str().unwrap().parse().unwrap())
}

#[test]
fn lines_labels_and_figures_of_real_containers_come_back_once_through_kills() {
    let containers = match Containers::start() {
        Ok(c) => c,
        Err(missing) => return skipped("real containers", &missing),
    };
    let logs: BTreeMap<String, PathBuf> =
        containers.names.iter().map(|n| (n.clone(), inspect(n, "{{.HostConfig.LogConfig.Path}}").into())).collect();
    wait_for("both streams of each container have lines", || logs.values().all(|l| written(l).len() == 2));
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[]);
    let mut rng = rand::rng();
    for kill in 0..KILLS {
        // Sometimes in the middle of the first reading, sometimes while following.
        if kill % 2 == 1 {
            catch_up(&server, &logs);
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..1500)));
        if kill == KILLS / 2 {
            let (status, _) = server.stop();
            assert!(status.success(), "{status}");
        } else {
            server.kill();
        }
        server = Server::start(dir.path(), &[]);
    }
    let goals = catch_up(&server, &logs);
    lines_are_whole(&server, &goals);
    for (i, name) in containers.names.iter().enumerate() {
        labels_are_right(&server, name, i);
        figures_are_right(&server, name);
    }
}

fn lines_are_whole(server: &Server, goals: &BTreeMap<(String, String), u64>) {
    for ((name, stream), goal) in goals {
        let entries = read_all(server, &format!("{{container=\"{name}\",stream=\"{stream}\"}}"));
        // Errors are printed on stderr with every tenth number.
        let step = if stream == "stderr" { 10 } else { 1 };
        let mut times: BTreeMap<u64, usize> = BTreeMap::new();
        for (_, _, line) in &entries {
            *times.entry(seq(line)).or_default() += 1;
            let words = if stream == "stderr" { "level=error msg=\"upstream" } else { "level=info msg=\"request" };
            assert!(line.starts_with(words), "{name} {stream}: {line}");
        }
        let twice: Vec<_> = times.iter().filter(|(_, n)| **n > 1).take(5).collect();
        let missing: Vec<u64> =
            (1..=goal / step).map(|n| n * step).filter(|n| !times.contains_key(n)).take(5).collect();
        assert!(twice.is_empty() && missing.is_empty(), "{name} {stream}: twice {twice:?}, missing {missing:?}");
        eprintln!("{name} {stream}: {} lines, none missing, none twice", times.len());
    }
}

fn labels_are_right(server: &Server, name: &str, i: usize) {
    let selector = encode(&format!("{{container=\"{name}\"}}"));
    let answer = server.get(&format!("/loki/api/v1/series?match[]={selector}&since=24h"));
    let json = answer.json();
    let series = json["data"].as_array().unwrap();
    assert_eq!(series.len(), 2, "one stream for each of stdout and stderr: {json}");
    for labels in series {
        let names: BTreeSet<&str> = labels.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, BTreeSet::from(["container", "node", "service_name", "stream"]), "{json}");
        assert_eq!((&labels["container"], &labels["service_name"]), (&Value::from(name), &Value::from(name)));
    }
    let streams: BTreeSet<&str> = series.iter().map(|l| l["stream"].as_str().unwrap()).collect();
    assert_eq!(streams, BTreeSet::from(["stderr", "stdout"]));
    let answer = server.get(&format!("/loki/api/v1/query_range?query={selector}&limit=10&since=24h"));
    let id = inspect(name, "{{.Id}}");
    let image = inspect(name, "{{.ImageName}}");
    for stream in answer.json()["data"]["result"].as_array().unwrap() {
        let labels = &stream["stream"];
        assert_eq!(labels["container_id"], id.as_str(), "{labels}");
        assert_eq!(labels["label_tier"], "test", "{labels}");
        assert_eq!(labels["label_app"], inspect(name, "{{index .Config.Labels \"app\"}}").as_str(), "{labels}");
        assert_eq!(labels["runtime"], "podman", "{labels}");
        // A container made of a folder has no image.
        assert_eq!(labels["image"].as_str().unwrap_or_default(), image, "{labels} of container {i}");
    }
}

fn figures_are_right(server: &Server, name: &str) {
    let of = |metric: &str| format!("{metric}{{name=\"{name}\"}}");
    wait_for("figures of the container", || sample(server, &of("container_memory_working_set_bytes")).is_some());
    let memory = sample(server, &of("container_memory_working_set_bytes")).unwrap();
    assert!(memory > 4096.0 && memory < f64::from(64 << 20), "{memory}");
    assert_eq!(sample(server, &of("container_spec_memory_limit_bytes")), Some(f64::from(64 << 20)));
    let cpu = sample(server, &of("container_cpu_usage_seconds_total")).unwrap();
    assert!(cpu > 0.0, "{cpu}");
    // Taken at each start at least, and never fallen.
    let window = of("container_cpu_usage_seconds_total") + "[1h]";
    assert!(sample(server, &format!("count_over_time({window})")).unwrap() >= 2.0);
    assert_eq!(sample(server, &format!("resets({window})")), Some(0.0));
}
