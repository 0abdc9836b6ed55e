//! Tailing under rotation, truncation, torn writes and restarts: every record once, none missing.
//!
//! The tailer is driven step by step with a clock of our own, so a failing seed fails always.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::array::AsArray;
use collector::file_tail::{
    counters::Counters,
    discover::{Discover, Target},
    formats::Format,
    reader::LineLimits,
    tailer::{Settings, Tailer},
};
use parking_lot::Mutex;
use pipeline::{Batch, Data, Positions};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use storage::model::{Labels, TenantId};

/// What a store keeps: rows and positions, together.
#[derive(Default)]
struct Kept {
    bodies: Vec<String>,
    streams: Vec<String>,
    positions: BTreeMap<String, u64>,
}

struct Sink(Mutex<Kept>);

impl Positions for Sink {
    fn position(&self, _: &TenantId, key: &str) -> Option<u64> {
        self.0.lock().positions.get(key).copied()
    }
}

impl Sink {
    fn keep(&self, batch: Batch) {
        let Data::Logs(rows) = batch.data else { panic!("log rows expected") };
        let mut kept = self.0.lock();
        let body = rows.column_by_name("body").unwrap().as_string::<i32>();
        let labels =
            arrow::compute::cast(rows.column_by_name("stream_labels").unwrap(), &arrow::datatypes::DataType::Utf8);
        let labels = labels.unwrap();
        for i in 0..rows.num_rows() {
            kept.bodies.push(body.value(i).to_owned());
            kept.streams.push(labels.as_string::<i32>().value(i).to_owned());
        }
        for s in batch.sources {
            kept.positions.insert(s.key, s.position);
        }
    }
}

struct Fixed(Vec<Arc<Target>>);

impl Discover for Fixed {
    fn discover(&mut self) -> Vec<Arc<Target>> {
        self.0.clone()
    }
}

fn target(path: &Path, format: Format) -> Arc<Target> {
    let labels = Labels::from_pairs([("container", "c")]);
    Arc::new(Target { path: path.to_owned(), format, labels, attrs: None, from_start: true })
}

fn settings(patience: Duration) -> Settings {
    Settings {
        tenant: TenantId::default_tenant(),
        limits: LineLimits { line_bytes_max: 1 << 20, group_bytes_max: 4 << 20 },
        batch_rows: 7,
        batch_bytes: 300,
        linger: Duration::from_millis(200),
        partial_timeout: patience,
        check_every: Duration::from_secs(1),
        discover_every: Duration::from_secs(2),
        close_after: Duration::from_secs(10),
    }
}

/// A tailer that can die, with batches that are read and not kept yet.
struct Rig {
    sink: Arc<Sink>,
    targets: Vec<Arc<Target>>,
    settings: Settings,
    tailer: Tailer,
    queued: Vec<Batch>,
    counters: Arc<Counters>,
    now: Instant,
}

impl Rig {
    fn new(targets: Vec<Arc<Target>>, settings: Settings) -> Rig {
        let sink = Arc::new(Sink(Mutex::default()));
        let counters = Arc::new(Counters::default());
        let discover = Box::new(Fixed(targets.clone()));
        let tailer = Tailer::new(settings.clone(), discover, sink.clone(), counters.clone());
        Rig { sink, targets, settings, tailer, queued: Vec::new(), counters, now: Instant::now() }
    }

    fn tick(&mut self, after: Duration) {
        self.now += after;
        let queued = &mut self.queued;
        let _ = self.tailer.tick(self.now, &mut |b| {
            queued.push(b);
            true
        });
    }

    fn keep(&mut self, n: usize) {
        let n = n.min(self.queued.len());
        self.queued.drain(..n).for_each(|b| self.sink.keep(b));
    }

    fn restart(&mut self) {
        self.queued.clear();
        let discover = Box::new(Fixed(self.targets.clone()));
        self.tailer = Tailer::new(self.settings.clone(), discover, self.sink.clone(), self.counters.clone());
    }

    /// Ticks until long after every timeout, keeping all.
    fn settle(&mut self) {
        for _ in 0..12 {
            self.tick(self.settings.partial_timeout / 4 + Duration::from_secs(4));
            self.keep(usize::MAX);
        }
    }

    fn bodies(&self) -> Vec<String> {
        self.sink.0.lock().bodies.clone()
    }

    fn count(&self, name: &str) -> u64 {
        self.counters.snapshot().into_iter().find(|(n, _)| *n == name).unwrap().1
    }
}

fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(bytes).unwrap();
}

fn cri(stream: &str, tag: &str, body: &str) -> String {
    format!("2026-01-01T00:00:00.{:09}Z {stream} {tag} {body}\n", body.len())
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rotation {
    Rename,
    CopyTruncate,
}

/// Writes log lines the way programs and runtimes do, with every token once.
struct Writer {
    path: PathBuf,
    format: Format,
    file: File,
    token: u64,
    /// Complete records, as they should arrive if no timeout tears them.
    records: Vec<String>,
    /// Open records: stdout, stderr.
    open: [String; 2],
    /// Bytes of a physical line not written yet.
    held: Vec<u8>,
}

impl Writer {
    fn new(path: PathBuf, format: Format) -> Writer {
        let file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        Writer { path, format, file, token: 0, records: Vec::new(), open: Default::default(), held: Vec::new() }
    }

    fn token(&mut self) -> String {
        self.token += 1;
        format!("<{}>", self.token)
    }

    fn write(&mut self, rng: &mut StdRng) {
        let stream = rng.random_range(0..2);
        let end = rng.random_bool(0.6);
        let text = self.token() + &"x".repeat(if rng.random_bool(0.02) { 3000 } else { rng.random_range(0..30) });
        let name = ["stdout", "stderr"][stream];
        let bytes = match self.format {
            Format::Plain if end => text.clone() + "\n",
            Format::Plain => text.clone(),
            Format::Cri => cri(name, if end { "F" } else { "P" }, &text),
            Format::DockerJson => {
                let newline = if end { "\\n" } else { "" };
                format!("{{\"log\":\"{text}{newline}\",\"stream\":\"{name}\",\"time\":\"2026-01-01T00:00:00Z\"}}\n")
            }
        };
        let open = &mut self.open[if self.format == Format::Plain { 0 } else { stream }];
        open.push_str(&text);
        if end {
            self.records.push(std::mem::take(open));
        }
        self.held.extend_from_slice(bytes.as_bytes());
        // The system may take a write in two.
        let now = if rng.random_bool(0.2) { rng.random_range(0..=self.held.len()) } else { self.held.len() };
        self.file.write_all(&self.held[..now]).unwrap();
        self.held.drain(..now);
    }

    /// Ends what is open, so that a rotation tears nothing.
    fn complete(&mut self) {
        let mut bytes = std::mem::take(&mut self.held);
        for stream in 0..2 {
            if !self.open[stream].is_empty() {
                let text = self.token();
                let name = ["stdout", "stderr"][stream];
                bytes.extend_from_slice(
                    match self.format {
                        Format::Plain => format!("{text}\n"),
                        Format::Cri => cri(name, "F", &text),
                        Format::DockerJson => {
                            format!(
                                "{{\"log\":\"{text}\\n\",\"stream\":\"{name}\",\"time\":\"2026-01-01T00:00:00Z\"}}\n"
                            )
                        }
                    }
                    .as_bytes(),
                );
                let record = std::mem::take(&mut self.open[stream]) + &text;
                self.records.push(record);
            }
        }
        self.file.write_all(&bytes).unwrap();
    }

    fn rotate(&mut self, how: Rotation) {
        let numbered = |n: usize| PathBuf::from(format!("{}.{n}", self.path.display()));
        for n in (1..60).rev() {
            if numbered(n).exists() {
                fs::rename(numbered(n), numbered(n + 1)).unwrap();
            }
        }
        match how {
            Rotation::Rename => {
                fs::rename(&self.path, numbered(1)).unwrap();
                self.file = OpenOptions::new().create(true).append(true).open(&self.path).unwrap();
            }
            Rotation::CopyTruncate => {
                fs::copy(&self.path, numbered(1)).unwrap();
                self.file.set_len(0).unwrap();
            }
        }
    }
}

fn tokens(bodies: &[String]) -> HashMap<&str, usize> {
    let mut seen = HashMap::new();
    for body in bodies {
        for piece in body.split('<').skip(1) {
            *seen.entry(piece.split('>').next().unwrap()).or_default() += 1;
        }
    }
    seen
}

/// One random life of a log file. `torn`: rotations may cut records and timeouts are short, so only tokens are counted.
fn life(seed: u64, format: Format, rotation: Rotation, torn: bool) {
    let rng = &mut StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path().join("app.log"), format);
    let patience = Duration::from_secs(if torn { 2 } else { 3600 });
    let mut rig = Rig::new(vec![target(&writer.path, format)], settings(patience));
    for _ in 0..rng.random_range(10..200) {
        match rng.random_range(0..100) {
            0..60 => writer.write(rng),
            60..66 => {
                if !torn {
                    writer.complete();
                }
                // A file cut within a physical line cannot be told from two lines: no runtime does it.
                if writer.held.is_empty() {
                    writer.rotate(rotation);
                }
            }
            66..82 => rig.tick(Duration::from_millis(*[1, 150, 1200, 2500].choose(rng).unwrap())),
            82..92 => rig.keep(rng.random_range(0..4)),
            92..96 => rig.keep(usize::MAX),
            _ => rig.restart(),
        }
    }
    writer.complete();
    rig.settle();
    let bodies = rig.bodies();
    let seen = tokens(&bodies);
    let context = format!("seed {seed} {format:?} {rotation:?} torn {torn}");
    for token in 1..=writer.token {
        let n = seen.get(token.to_string().as_str()).copied().unwrap_or(0);
        assert_eq!(
            n,
            1,
            "{context}: token {token} arrived {n} times; {:?}",
            fs::read_dir(dir.path()).unwrap().count()
        );
    }
    if !torn {
        let (mut got, mut want) = (bodies, writer.records);
        got.sort();
        want.sort();
        assert_eq!(got, want, "{context}");
    }
}

fn lives(format: Format, rotation: Rotation) {
    let n: u64 = std::env::var("SIGHTLINE_TAIL_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(15);
    for seed in 0..n {
        life(seed, format, rotation, false);
        life(seed, format, rotation, true);
    }
}

#[test]
fn plain_lines_arrive_once_under_renames_and_restarts() {
    lives(Format::Plain, Rotation::Rename);
}

#[test]
fn plain_lines_arrive_once_under_copytruncate_and_restarts() {
    lives(Format::Plain, Rotation::CopyTruncate);
}

#[test]
fn cri_records_arrive_once_under_renames_and_restarts() {
    lives(Format::Cri, Rotation::Rename);
}

#[test]
fn cri_records_arrive_once_under_copytruncate_and_restarts() {
    lives(Format::Cri, Rotation::CopyTruncate);
}

#[test]
fn docker_records_arrive_once_under_renames_and_restarts() {
    lives(Format::DockerJson, Rotation::Rename);
}

fn one(format: Format) -> (tempfile::TempDir, PathBuf, Rig) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let rig = Rig::new(vec![target(&path, format)], settings(Duration::from_secs(5)));
    (dir, path, rig)
}

#[test]
fn a_deleted_file_is_read_to_its_end() {
    let (_dir, path, mut rig) = one(Format::Plain);
    append(&path, b"a\n");
    rig.tick(Duration::ZERO);
    append(&path, b"b\nunfinished");
    fs::remove_file(&path).unwrap();
    rig.settle();
    assert_eq!(rig.bodies(), ["a", "b", "unfinished"]);
    assert_eq!(rig.count("files"), 0);
}

#[test]
fn an_inode_used_again_is_a_new_file() {
    let (_dir, path, mut rig) = one(Format::Plain);
    append(&path, b"first\n");
    rig.settle();
    rig.restart();
    // As good as a reused inode: the same number with another beginning, while nobody looks.
    fs::write(&path, b"other content, longer than before\n").unwrap();
    rig.settle();
    assert_eq!(rig.bodies(), ["first", "other content, longer than before"]);
}

#[test]
fn a_last_line_without_newline_is_delivered_after_the_timeout_and_its_newline_is_no_record() {
    let (_dir, path, mut rig) = one(Format::Plain);
    append(&path, b"no end");
    rig.tick(Duration::ZERO);
    rig.tick(Duration::from_secs(3));
    rig.keep(usize::MAX);
    assert!(rig.bodies().is_empty());
    rig.settle();
    assert_eq!(rig.bodies(), ["no end"]);
    for restart in [false, true] {
        if restart {
            rig.restart();
        }
        append(&path, b"\nnext");
        rig.settle();
    }
    assert_eq!(rig.bodies(), ["no end", "next", "next"]);
}

#[test]
fn parts_of_both_streams_are_joined_apart_and_time_out_together() {
    let (_dir, path, mut rig) = one(Format::Cri);
    append(&path, (cri("stdout", "P", "a") + &cri("stderr", "P", "x")).as_bytes());
    rig.tick(Duration::ZERO);
    append(&path, (cri("stdout", "F", "b") + &cri("stderr", "F", "y")).as_bytes());
    rig.tick(Duration::from_secs(1));
    rig.tick(Duration::from_secs(1));
    rig.keep(usize::MAX);
    assert_eq!(rig.bodies(), ["ab", "xy"]);
    assert!(rig.sink.0.lock().streams[1].contains(r#""stream":"stderr""#));
    append(&path, cri("stdout", "P", "alone").as_bytes());
    rig.settle();
    assert_eq!(rig.bodies()[2..], ["alone"]);
    assert_eq!(rig.count("incomplete_lines_total"), 1);
}

#[test]
fn bytes_that_are_not_utf8_are_replaced_and_counted() {
    let (_dir, path, mut rig) = one(Format::Cri);
    append(&path, b"2026-01-01T00:00:00Z stdout F a\xff\xfeb\n");
    // A character cut in two by the runtime's 16 KiB is whole after joining.
    append(&path, b"2026-01-01T00:00:00Z stdout P \xc3\n2026-01-01T00:00:00Z stdout F \xbc\n");
    rig.settle();
    assert_eq!(rig.bodies(), ["a\u{fffd}\u{fffd}b", "ü"]);
    assert_eq!(rig.count("invalid_utf8_lines_total"), 1);
}

#[test]
fn lines_of_megabytes_are_split_and_nothing_is_lost() {
    let (_dir, path, mut rig) = one(Format::Plain);
    let long = "y".repeat((5 << 20) + 17);
    append(&path, format!("{long}\nshort\n").as_bytes());
    for _ in 0..20 {
        rig.tick(Duration::from_millis(300));
    }
    rig.settle();
    let bodies = rig.bodies();
    assert_eq!(bodies.len(), 7);
    assert_eq!(bodies[..6].concat(), long);
    assert_eq!(rig.count("split_lines_total"), 5);
}

#[test]
fn thousands_of_files_share_batches() {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..2000).map(|i| dir.path().join(format!("{i}.log"))).collect();
    for (i, p) in paths.iter().enumerate() {
        fs::write(p, format!("line of {i}\n")).unwrap();
    }
    let targets = paths.iter().map(|p| target(p, Format::Plain)).collect();
    let mut rig =
        Rig::new(targets, Settings { batch_rows: 500, batch_bytes: 1 << 20, ..settings(Duration::from_secs(5)) });
    rig.tick(Duration::ZERO);
    assert_eq!(rig.queued.len(), 4);
    assert_eq!(rig.queued.iter().map(|b| b.sources.len()).sum::<usize>(), 2000);
    rig.keep(2);
    rig.restart();
    rig.settle();
    let mut bodies = rig.bodies();
    bodies.sort();
    bodies.dedup();
    assert_eq!((bodies.len(), rig.bodies().len()), (2000, 2000));
}
