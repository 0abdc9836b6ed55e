//! An agent in a network namespace of its own, a server in ours, and a link that is cut again and again.
//!
//! Lines and pushes bear sequence numbers; through the public API each must be there exactly once in the end: the link was
//! cut 20 times and the agent was killed on the way.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    client::{Client, encode},
    server::{Server, program},
    skip::skipped,
};

const CUTS: usize = 20;
/// A cut and the time after it.
const DOWN: Duration = Duration::from_millis(700);
const UP: Duration = Duration::from_millis(800);
/// Lines a tick, and the tick.
const LINES: u64 = 20;
const TICK: Duration = Duration::from_millis(40);

fn ip(args: &str) -> Result<(), String> {
    let run = Command::new("ip").args(args.split(' ')).output().map_err(|e| e.to_string())?;
    if run.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&run.stderr).trim().to_owned()) }
}

/// A namespace with one link to us. Gone when dropped.
struct Link {
    namespace: String,
    ours: String,
    here: Ipv4Addr,
    there: Ipv4Addr,
}

impl Link {
    fn new() -> Result<Link, String> {
        let id = std::process::id();
        let (namespace, ours, theirs) = (format!("slagent{id}"), format!("sl{id}a"), format!("sl{id}b"));
        // TEST-NET-3, a small net for each process.
        let base = (id % 60) as u8 * 4;
        let (here, there) = (Ipv4Addr::new(203, 0, 113, base + 1), Ipv4Addr::new(203, 0, 113, base + 2));
        ip(&format!("netns add {namespace}"))?;
        let link = Link { namespace: namespace.clone(), ours: ours.clone(), here, there };
        ip(&format!("link add {ours} type veth peer name {theirs} netns {namespace}"))?;
        ip(&format!("addr add {here}/30 dev {ours}"))?;
        ip(&format!("link set {ours} up"))?;
        ip(&format!("-n {namespace} addr add {there}/30 dev {theirs}"))?;
        ip(&format!("-n {namespace} link set {theirs} up"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        Ok(link)
    }

    fn set(&self, state: &str) {
        ip(&format!("link set {} {state}", self.ours)).unwrap();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {}", self.ours));
        let _ = ip(&format!("netns del {}", self.namespace));
    }
}

struct Agent {
    child: Child,
    http: SocketAddr,
}

impl Agent {
    fn start(link: &Link, dir: &Path, config: &Path, to: &str) -> Agent {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &link.namespace])
            .arg(program())
            .args(["agent", "--to", to, "--no-collect", "--http", &format!("{}:0", link.there)])
            .args(["--otlp-grpc", "127.0.0.1:0", "--otlp-http", "127.0.0.1:0", "--log-level", "error"])
            .arg("--data-dir")
            .arg(dir)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let http = line.trim().rsplit_once("http://").unwrap_or_else(|| panic!("no address: {line:?}")).1;
        thread::spawn(move || out.lines().map_while(Result::ok).for_each(drop));
        let http = http.parse().unwrap();
        Agent { child, http }
    }

    /// `ip netns exec` becomes the agent: its process is ours.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn metric(&self, name: &str) -> Option<f64> {
        let text = Client::new(self.http).get("/metrics").ok()?.text();
        text.lines().find(|l| l.starts_with(name))?.rsplit(' ').next()?.parse().ok()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// How often each sequence number of a service is there.
fn counted(server: &Server, service: &str, from: u64) -> BTreeMap<u64, u64> {
    const WINDOW: u64 = 500_000_000;
    let mut out = BTreeMap::new();
    let mut client = server.client();
    let query = encode(&format!("{{service_name=\"{service}\"}}"));
    let mut start = from;
    while start < now_ns() + WINDOW {
        let end = start + WINDOW;
        let path =
            format!("/loki/api/v1/query_range?query={query}&start={start}&end={end}&limit=5000&direction=forward");
        let answer = client.get(&path).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json();
        let mut found = 0;
        for value in json["data"]["result"].as_array().unwrap().iter().flat_map(|s| s["values"].as_array().unwrap()) {
            let line = value[1].as_str().unwrap();
            let n = line.rsplit("seq=").next().unwrap().trim_end_matches('"').parse().unwrap();
            *out.entry(n).or_default() += 1;
            found += 1;
        }
        assert!(found < 5000, "a window holds more lines than one answer");
        start = end;
    }
    out
}

/// Sends each number until it is acknowledged, under one id.
fn push(agent: &moving::Address, stop: &AtomicBool, sent: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let n = sent.load(Ordering::Relaxed);
        let line = format!("{{\"ts\":{},\"app\":\"pushed\",\"msg\":\"seq={n}\"}}\n", now_ns());
        let id = format!("push-{n}");
        let headers = [("X-Batch-Id", id.as_str()), ("Content-Type", "application/x-ndjson")];
        let path = "/ingest/ndjson?time_field=ts&message_field=msg&stream_fields=app";
        loop {
            let answer = Client::new(agent.addr()).send("POST", path, &headers, line.as_bytes());
            if answer.is_ok_and(|a| a.status == 200) {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        sent.fetch_add(1, Ordering::Relaxed);
        thread::sleep(TICK);
    }
}

/// The address of an agent that may be another one after a while.
mod moving {
    use std::{net::SocketAddr, sync::Mutex};

    pub struct Address(Mutex<SocketAddr>);

    impl Address {
        pub fn new(addr: SocketAddr) -> Self {
            Address(Mutex::new(addr))
        }

        pub fn addr(&self) -> SocketAddr {
            *self.0.lock().unwrap()
        }

        pub fn set(&self, addr: SocketAddr) {
            *self.0.lock().unwrap() = addr;
        }
    }
}

#[test]
fn a_link_that_is_cut_twenty_times_and_a_killed_agent_lose_nothing_and_repeat_nothing() {
    let link = match Link::new() {
        Ok(link) => link,
        Err(e) => return skipped("agent over a link that is cut", &format!("network namespaces (root and ip): {e}")),
    };
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("app.log");
    let config = dir.path().join("agent.yaml");
    std::fs::write(&log, "").unwrap();
    let source = format!("sources:\n  app: {{type: files, include: [{:?}], labels: {{app: tailed}}}}\n", log);
    std::fs::write(&config, source).unwrap();
    let began = now_ns();
    let listen = SocketAddr::new(IpAddr::V4(link.here), 0).to_string();
    let server = Server::start_beyond(&dir.path().join("server"), &listen);
    let to = format!("http://{}", server.otlp_http);
    let queue = dir.path().join("agent");
    let mut agent = Agent::start(&link, &queue, &config, &to);

    let stop = Arc::new(AtomicBool::new(false));
    let (written, pushed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let at = Arc::new(moving::Address::new(agent.http));
    let writer = {
        let (stop, written, log) = (stop.clone(), written.clone(), log.clone());
        thread::spawn(move || {
            let mut file = OpenOptions::new().append(true).open(log).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let from = written.load(Ordering::Relaxed);
                let lines: String =
                    (from..from + LINES).map(|n| format!("a line of the application seq={n}\n")).collect();
                file.write_all(lines.as_bytes()).unwrap();
                written.store(from + LINES, Ordering::Relaxed);
                thread::sleep(TICK);
            }
        })
    };
    let pusher = {
        let (stop, pushed, at) = (stop.clone(), pushed.clone(), at.clone());
        thread::spawn(move || push(&at, &stop, &pushed))
    };
    for cut in 0..CUTS {
        link.set("down");
        thread::sleep(DOWN);
        // Once while nothing can be delivered, once while all can.
        if cut == CUTS / 3 {
            agent.kill();
            agent = Agent::start(&link, &queue, &config, &to);
            at.set(agent.http);
        }
        link.set("up");
        thread::sleep(UP);
        if cut == 2 * CUTS / 3 {
            agent.kill();
            agent = Agent::start(&link, &queue, &config, &to);
            at.set(agent.http);
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    pusher.join().unwrap();
    let (written, pushed) = (written.load(Ordering::Relaxed), pushed.load(Ordering::Relaxed));
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let (tailed, took) = (counted(&server, "tailed", began), counted(&server, "pushed", began));
        let twice: Vec<_> = tailed.iter().chain(&took).filter(|(_, times)| **times > 1).take(5).collect();
        assert!(twice.is_empty(), "stored twice: {twice:?}");
        let lost = (0..written).filter(|n| !tailed.contains_key(n)).count()
            + (0..pushed).filter(|n| !took.contains_key(n)).count();
        if lost == 0 {
            assert_eq!((tailed.len() as u64, took.len() as u64), (written, pushed));
            break;
        }
        assert!(Instant::now() < end, "{lost} of {} are lost", written + pushed);
        thread::sleep(Duration::from_millis(500));
    }
    let retries = agent.metric("pipeline_sink_retries_total");
    let memory = agent.metric("process_resident_memory_bytes").unwrap_or(0.0) / f64::from(1 << 20);
    println!(
        "{written} lines and {pushed} pushes over {CUTS} cuts, each once; retries since the last start: {retries:?}; agent's memory {memory:.0} MiB"
    );
}
