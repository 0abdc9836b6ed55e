//! Real containers of Podman, found by its files alone and by its API. Skips loudly where there is no Podman.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::array::AsArray;
use collector::{
    containers::{self, Inventory, Runtime},
    host_metrics,
};
use parking_lot::Mutex;
use pipeline::{Data, Output, Positions, SourceContext};
use storage::model::{Labels, TenantId};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The script that starts containers without a registry, if it and Podman are there.
fn script() -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/containers/containers.sh"));
    let podman = Command::new("podman").arg("--version").output().is_ok_and(|o| o.status.success());
    let missing = match (path.is_file(), podman) {
        (true, true) => return Some(path),
        (false, _) => "the script that starts test containers",
        (_, false) => "podman",
    };
    assert!(std::env::var_os("SIGHTLINE_REQUIRE_ALL").is_none(), "{missing} is missing");
    eprintln!("SKIPPED: {missing} is missing, no real containers tested");
    None
}

/// Three running test containers; those this started are removed at the end.
struct Containers {
    script: PathBuf,
    started: bool,
}

impl Containers {
    fn up(script: PathBuf) -> Option<Self> {
        let running = Command::new("podman").args(["ps", "-q", "--filter", "name=sightline-test-"]).output().unwrap();
        if running.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty()).count() >= 3 {
            return Some(Containers { script, started: false });
        }
        // Not `output`: the containers' monitors inherit the pipes and would keep it waiting for ever.
        let (mut up, quiet) = (Command::new(&script), Stdio::null);
        let up = up.args(["up", "3", "20"]).stdout(quiet()).stderr(quiet()).status().unwrap();
        if !up.success() {
            assert!(std::env::var_os("SIGHTLINE_REQUIRE_ALL").is_none(), "containers do not start");
            eprintln!("SKIPPED: containers do not start: {up}");
            return None;
        }
        Some(Containers { script, started: true })
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        if self.started {
            let _ = Command::new(&self.script).arg("down").status();
        }
    }
}

#[derive(Default)]
struct Kept {
    /// Body by stream labels.
    rows: Vec<(Labels, Labels, String)>,
    positions: BTreeMap<String, u64>,
}

struct Sink(Mutex<Kept>);

impl Positions for Sink {
    fn position(&self, _: &TenantId, key: &str) -> Option<u64> {
        self.0.lock().positions.get(key).copied()
    }
}

/// Runs the container source for a while and keeps what it sends.
async fn tail_for(config: &containers::Config, sink: &Arc<Sink>, time: Duration) {
    let (out, mut envelopes) = Output::bounded(4, 16 << 20);
    let stop = CancellationToken::new();
    let ctx = SourceContext { name: "containers".to_owned(), out, stop: stop.clone(), positions: sink.clone() };
    let source = config.source().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { source.run(ctx).await.unwrap() });
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        if let Ok(Some(envelope)) = tokio::time::timeout(left, envelopes.recv()).await {
            keep(sink, envelope);
        }
    }
    stop.cancel();
    // Odd rounds of a restart lose what is under way, as a kill would.
    drop(envelopes);
    tasks.join_all().await;
}

fn keep(sink: &Sink, envelope: pipeline::component::Envelope) {
    let Data::Logs(rows) = envelope.batch.data else { panic!("log rows expected") };
    let text = |name: &str| {
        let column = rows.column_by_name(name).unwrap();
        arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).unwrap()
    };
    let (labels, attrs, body) = (text("stream_labels"), text("attrs"), text("body"));
    let mut kept = sink.0.lock();
    for i in 0..rows.num_rows() {
        let json = |a: &arrow::array::ArrayRef| Labels::from_json(a.as_string::<i32>().value(i)).unwrap();
        kept.rows.push((json(&labels), json(&attrs), body.as_string::<i32>().value(i).to_owned()));
    }
    for s in envelope.batch.sources {
        kept.positions.insert(s.key, s.position);
    }
    let _ = envelope.ack.send(Ok(()));
}

struct Api(Child);

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn socket_of(script: &Path, dir: &Path) -> (Api, PathBuf) {
    let socket = dir.join("podman.sock");
    let child = Command::new(script).arg("api").arg(&socket).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let api = Api(child.unwrap());
    for _ in 0..200 {
        if tokio::net::UnixStream::connect(&socket).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (api, socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_labels_and_figures_of_real_containers_arrive_once() {
    let Some(script) = script() else { return };
    let Some(_containers) = Containers::up(script.clone()) else { return };
    let files_only = containers::Config { sockets: Vec::new(), ..containers::Config::default() };

    let sink = Arc::new(Sink(Mutex::default()));
    for _ in 0..3 {
        tail_for(&files_only, &sink, Duration::from_millis(1500)).await;
    }
    let mut seqs: HashMap<String, Vec<u64>> = HashMap::new();
    for (labels, attrs, body) in &sink.0.lock().rows {
        let name = labels.get("container").unwrap();
        let Some(number) = name.strip_prefix("sightline-test-") else { continue };
        assert_eq!(labels.get("service_name"), Some(name));
        assert_eq!(labels.get("node"), Some(collector::node_name().as_str()));
        assert_eq!(attrs.get("label_app"), Some(format!("demo-{number}").as_str()));
        assert_eq!((attrs.get("label_tier"), attrs.get("runtime")), (Some("test"), Some("podman")));
        assert_eq!(attrs.get("container_id").map(str::len), Some(64));
        if labels.get("stream") == Some("stdout") {
            let seq = body.split("seq=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
            seqs.entry(name.to_owned()).or_default().push(seq);
        }
    }
    assert!(seqs.len() >= 3, "{:?}", seqs.keys());
    for (name, seqs) in &seqs {
        let want: Vec<u64> = (1..=seqs.len() as u64).collect();
        assert_eq!(seqs, &want, "{name}");
    }

    let inventory = Inventory::new(files_only.clone());
    inventory.refresh().await;
    let from_files = inventory.snapshot();
    let metrics = host_metrics::Config { host: false, ..host_metrics::Config::default() };
    let batches = metrics.collect(&from_files.containers, "n1", 1_000_000);
    let series = batches[0].series.column_by_name("labels").unwrap();
    let series: Vec<Labels> =
        series.as_string::<i32>().iter().map(|l| Labels::from_json(l.unwrap()).unwrap()).collect();
    for name in ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_processes"] {
        for container in seqs.keys() {
            let found = series.iter().any(|l| l.get("__name__") == Some(name) && l.get("name") == Some(container));
            assert!(found, "{name} of {container}");
        }
    }

    // The API tells the same.
    let dir = tempfile::tempdir().unwrap();
    let (_api, socket) = socket_of(&script, dir.path()).await;
    let api_only = containers::Config {
        sockets: vec![socket],
        podman: Vec::new(),
        docker: dir.path().to_owned(),
        pods: dir.path().to_owned(),
        ..files_only
    };
    let inventory = Inventory::new(api_only);
    // A service that has just started on a loaded machine may miss the time an answer has; the next look asks again.
    for _ in 0..10 {
        inventory.refresh().await;
        if inventory.snapshot().notes.is_empty() {
            break;
        }
    }
    let told = inventory.snapshot();
    assert_eq!(told.notes, Vec::<String>::new());
    for c in from_files.containers.iter().filter(|c| seqs.contains_key(&c.name)) {
        let api = told.containers.iter().find(|a| a.id == c.id).unwrap();
        assert_eq!(api.runtime, Runtime::Podman);
        assert_eq!((&api.name, &api.labels, &api.logs, api.pid), (&c.name, &c.labels, &c.logs, c.pid));
    }
}
