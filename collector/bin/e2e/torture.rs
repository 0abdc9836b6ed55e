//! Crash torture: the process is killed with -9 at random instants under mixed load, while heads are flushed and parts are
//! merged all the time; after each restart a judge that shares no code with the server reads everything back.
//!
//! `SIGHTLINE_TORTURE_CYCLES` (4), `SIGHTLINE_S3_TORTURE_CYCLES` (2), `SIGHTLINE_SEED` (random, printed).

use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    client::{Client, encode},
    judge::{Scope, Verdict, judge},
    oracle::{DAYS, Fate, Kind, Oracle, Request, Rng, step},
    server::Server,
    weed,
};

const APP: &str = "torture";
const WRITERS: u64 = 4;
/// Load before a crash, ms.
const LOAD_MS: (u64, u64) = (60, 800);
/// Largest usual request and a rare large one, records.
const RECORDS: (u64, u64) = (24, 400);
/// Everything is judged this often, and at the end; else the newest days and one other.
const ALL_EVERY: u64 = 20;

const CONFIG: &str = "no_collect: true\nmemory_limit: 256MiB\nstorage:\n  flush_bytes: 64KiB\n  flush_age: 300ms\n";

#[test]
fn torture_kill_loses_alters_and_repeats_nothing() {
    let cycles = count("SIGHTLINE_TORTURE_CYCLES", 4);
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::new("torture", dir.path(), &dir.path().join("data"));
    run.cycles(cycles, &mut |server, rng, place| {
        // A stop in the middle of the load now and then: it must keep what it acknowledged, too.
        if rng.one_in(10) {
            server.stop();
        } else {
            server.kill();
        }
        // Killed again while it recovers.
        while rng.one_in(4) {
            place.start_and_kill(Duration::from_millis(rng.below(120)));
        }
    });
}

#[test]
fn torture_over_s3_loses_alters_and_repeats_nothing() {
    let cycles = count("SIGHTLINE_S3_TORTURE_CYCLES", 2);
    let Some(weed) = weed::start_or_skip("torture over S3") else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::new("torture_s3", dir.path(), &dir.path().join("data"));
    run.place.env = [
        ("AWS_ENDPOINT_URL", format!("http://{}", weed.s3())),
        ("AWS_ACCESS_KEY_ID", weed::KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", weed::SECRET.to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("SIGHTLINE_STORE", format!("s3://{}/torture", weed::BUCKET)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec();
    run.cycles(cycles, &mut |server, rng, place| {
        server.kill();
        while rng.one_in(4) {
            place.start_and_kill(Duration::from_millis(rng.below(200)));
        }
        // Only the bucket and the log are left.
        if rng.one_in(3) {
            let _ = std::fs::remove_dir_all(place.data.join("cache"));
        }
    });
}

/// A number from the environment.
pub fn count(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

/// Where and how the server runs.
pub struct Place {
    pub data: PathBuf,
    config: PathBuf,
    log: PathBuf,
    /// Environment of the server.
    env: Vec<(String, String)>,
    /// The power is going: an answer that comes now could not have reached anyone, so it makes no obligation.
    pub power_goes: AtomicBool,
}

impl Place {
    fn log(&self) -> std::fs::File {
        OpenOptions::new().create(true).append(true).open(&self.log).expect("the log can be written")
    }

    fn args(&self) -> [String; 2] {
        ["--config".into(), self.config.display().to_string()]
    }

    fn start(&self) -> Server {
        Server::start_logged(&self.data, &self.args(), &self.env, self.log())
            .unwrap_or_else(|e| panic!("server did not start: {e}\n{}", self.log_end()))
    }

    fn start_and_kill(&self, after: Duration) {
        Server::start_and_kill(&self.data, &self.args(), &self.env, self.log(), after);
    }

    fn log_end(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(4000)..]).into_owned()
    }
}

/// Totals of a run.
#[derive(Default)]
struct Totals {
    acked: AtomicU64,
    unanswered: AtomicU64,
    refused: AtomicU64,
    resent: AtomicU64,
    seen_at_once: AtomicU64,
}

pub struct Run {
    name: &'static str,
    oracle: Oracle,
    rng: Rng,
    place: Place,
    requests: Mutex<Vec<Request>>,
    /// Of each writer: no present is older.
    clocks: [Mutex<i64>; WRITERS as usize],
    totals: Totals,
    judged: u64,
    found_unasked: u64,
    flushes: f64,
    merges: f64,
}

impl Run {
    /// `aside`: a directory for the configuration and the server's log.
    pub fn new(name: &'static str, aside: &Path, data: &Path) -> Self {
        let random = Oracle::new(0).began as u64 ^ u64::from(std::process::id());
        let seed = count("SIGHTLINE_SEED", random);
        println!("{name}: SIGHTLINE_SEED={seed}");
        let place = Place {
            data: data.to_owned(),
            config: aside.join("sightline.yaml"),
            log: aside.join("server.log"),
            env: Vec::new(),
            power_goes: AtomicBool::new(false),
        };
        std::fs::write(&place.config, CONFIG).expect("the directory can be written");
        Run {
            name,
            oracle: Oracle::new(seed),
            rng: Rng::new(seed),
            place,
            requests: Mutex::default(),
            clocks: Default::default(),
            totals: Totals::default(),
            judged: 0,
            found_unasked: 0,
            flushes: 0.0,
            merges: 0.0,
        }
    }

    /// Load, crash, restart, judge; `crash` leaves no process behind.
    pub fn cycles(&mut self, cycles: u64, crash: &mut dyn FnMut(Server, &mut Rng, &Place)) {
        let began = Instant::now();
        let mut server = self.place.start();
        for cycle in 0..cycles {
            let stop = AtomicBool::new(false);
            let load = Duration::from_millis(LOAD_MS.0 + self.rng.below(LOAD_MS.1 - LOAD_MS.0));
            let http = server.http;
            let seeds: Vec<u64> = (0..WRITERS).map(|_| self.rng.next()).collect();
            let (this, rng, place) = (&*self, &mut self.rng.clone(), &self.place);
            let counted = std::thread::scope(|scope| {
                for (writer, seed) in seeds.into_iter().enumerate() {
                    let stop = &stop;
                    scope.spawn(move || this.write(Client::new(http), writer as u64, cycle, Rng::new(seed), stop));
                }
                std::thread::sleep(load);
                let counted = counters(&server);
                crash(server, rng, place);
                stop.store(true, Ordering::SeqCst);
                counted
            });
            self.rng = rng.clone();
            self.flushes += counted.0;
            self.merges += counted.1;
            server = self.place.start();
            self.place.power_goes.store(false, Ordering::SeqCst);
            self.resend(&server);
            let last = cycle + 1 == cycles;
            let scope = if last || cycle % ALL_EVERY == ALL_EVERY - 1 {
                Scope::all()
            } else {
                let newest = cycle.saturating_sub(2)..=cycle;
                let mut days: BTreeSet<u64> = newest.map(|c| c % DAYS).collect();
                days.insert(self.rng.below(DAYS.min(cycle + 1)));
                Scope { days, present: self.rng.one_in(4) }
            };
            self.judge(&server, &scope, cycle);
        }
        // Once more after a clean stop, when everything is in parts, and the parts have been merged for a while.
        std::thread::sleep(Duration::from_millis(if cycles > 10 { 3000 } else { 500 }));
        self.judge(&server, &Scope::all(), cycles);
        server.stop();
        server = self.place.start();
        self.judge(&server, &Scope::all(), cycles);
        drop(server);
        let t = &self.totals;
        println!(
            "{}: {cycles} cycles in {:.0} s: {} records acknowledged, {} without an answer ({} of them stored), {} refused, \
             {} requests sent again, {} looked up at once, {:.0} flushes and {:.0} merges seen before the crashes; \
             {} judgements of owed records: 0 lost, 0 altered, 0 twice",
            self.name,
            began.elapsed().as_secs_f64(),
            t.acked.load(Ordering::Relaxed),
            t.unanswered.load(Ordering::Relaxed),
            self.found_unasked,
            t.refused.load(Ordering::Relaxed),
            t.resent.load(Ordering::Relaxed),
            t.seen_at_once.load(Ordering::Relaxed),
            self.flushes,
            self.merges,
            self.judged
        );
        assert!(t.acked.load(Ordering::Relaxed) > cycles * 10, "hardly anything was acknowledged");
    }

    fn judge(&mut self, server: &Server, scope: &Scope, cycle: u64) {
        let requests = self.requests.get_mut().expect("no writer panicked");
        let Verdict { judged, found_unasked, violations, told } = judge(&self.oracle, APP, server, requests, scope);
        self.judged += judged;
        self.found_unasked += found_unasked;
        if violations > 0 {
            let kept = self.keep();
            panic!(
                "{}: SIGHTLINE_SEED={} cycle {cycle}: {violations} violations; data kept in {kept}\n{}\nserver log:\n{}",
                self.name,
                self.oracle.seed,
                told.join("\n"),
                self.place.log_end()
            );
        }
    }

    /// A copy of the data that outlives the test.
    fn keep(&self) -> String {
        let kept = std::env::temp_dir().join(format!("sightline-{}-{}", self.name, self.oracle.seed));
        let copied = std::process::Command::new("cp").arg("-a").arg(&self.place.data).arg(&kept).status();
        if copied.is_ok_and(|s| s.success()) {
            kept.display().to_string()
        } else {
            "no place: it cannot be copied".into()
        }
    }

    /// One client until the server is gone.
    fn write(&self, mut client: Client, writer: u64, cycle: u64, mut rng: Rng, stop: &AtomicBool) {
        // A writer's points differ in time, also from those of earlier cycles whose clock ran ahead.
        let mut clock = self.clocks[writer as usize].lock().expect("no writer panicked");
        let mut traces: Vec<Request> = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            let kinds = [Kind::Ndjson, Kind::Ndjson, Kind::Loki, Kind::Points, Kind::Written, Kind::Spans];
            let kind = kinds[rng.below(kinds.len() as u64) as usize];
            let most = if rng.one_in(30) { RECORDS.1 } else { RECORDS.0 };
            // A trace is asked for on its own.
            let count = 1 + rng.below(if kind == Kind::Spans { most / 8 } else { most });
            let present = rng.one_in(4).then_some(&mut *clock);
            let mut request = self.oracle.plan(kind, count, writer, cycle, present);
            if kind == Kind::Spans
                && rng.one_in(2)
                && let Some(earlier) = traces.pop()
            {
                request =
                    Request { kind: Kind::MoreSpans, base: earlier.base + 1_000_000, fate: Fate::Maybe, ..earlier };
            }
            if !self.send(&mut client, &mut request) {
                self.requests.lock().expect("no writer panicked").push(request);
                return;
            }
            if request.kind == Kind::Spans {
                traces.push(request.clone());
            }
            if request.fate == Fate::Owed && request.kind.is_log() && rng.one_in(8) {
                self.look(&mut client, &request);
            }
            self.requests.lock().expect("no writer panicked").push(request);
            std::thread::sleep(Duration::from_micros(rng.below(4000)));
        }
    }

    /// `false` when the connection broke.
    fn send(&self, client: &mut Client, request: &mut Request) -> bool {
        let (path, content_type, body) = self.oracle.encode(request, APP);
        let batch_id = request.batch_id();
        let mut headers = vec![("Content-Type", content_type)];
        if request.kind == Kind::Ndjson {
            headers.push(("X-Batch-Id", &batch_id));
        }
        let t = &self.totals;
        match client.send("POST", path, &headers, &body) {
            Ok(answer) if (200..300).contains(&answer.status) && self.place.power_goes.load(Ordering::SeqCst) => {
                t.unanswered.fetch_add(request.count, Ordering::Relaxed);
                false
            }
            Ok(answer) if (200..300).contains(&answer.status) => {
                t.acked.fetch_add(request.count, Ordering::Relaxed);
                request.fate = Fate::Owed;
                true
            }
            Ok(answer) => {
                assert!(
                    answer.status == 429 || answer.status >= 500,
                    "POST {path}: {} {}",
                    answer.status,
                    answer.text()
                );
                t.refused.fetch_add(request.count, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
                true
            }
            Err(_) => {
                t.unanswered.fetch_add(request.count, Ordering::Relaxed);
                false
            }
        }
    }

    /// What was acknowledged is seen by a query that starts now.
    fn look(&self, client: &mut Client, request: &Request) {
        let end = request.base + request.count as i64 * step(request.kind);
        let query = encode(&format!("{{app=\"{APP}\",writer=\"w{}\"}}", request.writer));
        let path = format!("/loki/api/v1/query_range?query={query}&start={}&end={end}&limit=5000", request.base);
        // Killed meanwhile: the judge will look.
        let Ok(answer) = client.get(&path) else { return };
        if answer.status != 200 {
            return;
        }
        let answer = answer.json();
        let streams = answer["data"]["result"].as_array().into_iter().flatten();
        let found: usize = streams.map(|s| s["values"].as_array().map_or(0, Vec::len)).sum();
        assert_eq!(
            found as u64, request.count,
            "records seen right after the ack of {request:?}, SIGHTLINE_SEED={}",
            self.oracle.seed
        );
        self.totals.seen_at_once.fetch_add(request.count, Ordering::Relaxed);
    }

    /// Senders that got no answer send again under the same batch id; some do although they had one.
    fn resend(&mut self, server: &Server) {
        let mut client = server.client();
        let mut requests = std::mem::take(self.requests.get_mut().expect("no writer panicked"));
        let any = requests.len() as u64;
        let again: BTreeSet<usize> =
            (0..6).filter(|_| any > 0).map(|_| self.rng.below(any.max(1)) as usize).collect();
        for (i, request) in requests.iter_mut().enumerate() {
            // A batch id makes it safe to send NDJSON again; a sample is the same at the same time.
            if !matches!(request.kind, Kind::Ndjson | Kind::Written) {
                continue;
            }
            if again.contains(&i) || (request.fate == Fate::Maybe && self.rng.one_in(2)) {
                request.resent += 1;
                assert!(self.send(&mut client, request), "the server went away by itself\n{}", self.place.log_end());
                self.totals.resent.fetch_add(1, Ordering::Relaxed);
            }
        }
        *self.requests.get_mut().expect("no writer panicked") = requests;
    }
}

/// Flushes and merges since the start; zero when nobody answers any more.
fn counters(server: &Server) -> (f64, f64) {
    let text = server.client().get("/metrics").map(|a| a.text()).unwrap_or_default();
    let get =
        |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<f64>().ok()).unwrap_or_default();
    (get("storage_flushes_total "), get("storage_compactions_total "))
}
