//! One seed: a store, a disk that fails, and what must be found.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use storage::{
    Append, AppendError, Appended, Environment, SourcePosition, Store, StoreConfig,
    model::{Table, TenantId, Timestamp},
    vfs::sim::{Faults, Op, Rng, SimClock, SimVfs},
};

use super::rows::{self, SIGNALS};

const STEPS: usize = 28;
const SOURCES: usize = 3;

#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub acked: usize,
    pub refused: usize,
    /// Refused, and found after a restart all the same.
    pub survived: usize,
    pub retried: usize,
    pub power_cuts: usize,
    pub reopened: usize,
    pub refused_opens: usize,
    pub flushes: usize,
    pub failed_flushes: usize,
    pub merges: usize,
    pub failed_merges: usize,
    pub deletes: usize,
    pub failed_deletes: usize,
}

impl Totals {
    pub fn add(&mut self, o: &Totals) {
        for (a, b) in [
            (&mut self.acked, o.acked),
            (&mut self.refused, o.refused),
            (&mut self.survived, o.survived),
            (&mut self.retried, o.retried),
            (&mut self.power_cuts, o.power_cuts),
            (&mut self.reopened, o.reopened),
            (&mut self.refused_opens, o.refused_opens),
            (&mut self.flushes, o.flushes),
            (&mut self.failed_flushes, o.failed_flushes),
            (&mut self.merges, o.merges),
            (&mut self.failed_merges, o.failed_merges),
            (&mut self.deletes, o.deletes),
            (&mut self.failed_deletes, o.failed_deletes),
        ] {
            *a += b;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Must be there, now and for ever.
    Acked,
    /// The sender was told that it failed. Not visible now; after a restart it may be.
    Refused,
    /// Refused, and there was a restart that nobody could look into.
    Unknown,
    /// Refused, and not there after a restart: never again, unless it is sent again.
    Gone,
}

/// What was done to the acknowledged rows of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deleted {
    /// Never there again.
    Yes,
    /// The delete failed: all of them are there or none.
    Maybe,
}

#[derive(Clone, Debug)]
struct Record {
    number: u32,
    signals: Vec<Table>,
    rows: usize,
    batch_id: bool,
    source: Option<(usize, u64)>,
    state: State,
    deleted: BTreeMap<Table, Deleted>,
}

struct Run {
    seed: u64,
    rng: Rng,
    vfs: SimVfs,
    clock: Arc<SimClock>,
    config: StoreConfig,
    store: Store,
    tenant: TenantId,
    records: Vec<Record>,
    next_position: [u64; SOURCES],
    acked_position: [u64; SOURCES],
    /// The power is armed to go; whatever happens now, the next thing is a crash.
    doomed: bool,
    totals: Totals,
    step: usize,
    last_error: String,
}

async fn open(config: &StoreConfig, vfs: &SimVfs, clock: &Arc<SimClock>) -> Result<Store, storage::OpenError> {
    let env =
        Environment { vfs: Arc::new(vfs.clone()), clock: clock.clone(), lock_dir: false, ..Environment::default() };
    Store::open_on(config.clone(), env).await
}

pub async fn run(seed: u64) -> Totals {
    let mut rng = Rng::new(seed ^ 0x5157_0000);
    let vfs = SimVfs::new(seed);
    let clock = Arc::new(SimClock::new(Timestamp(rows::BASE_MS * 1_000_000)));
    let mut config = StoreConfig::new("/store");
    config.background = false;
    // Small, so that flushes take a part of the head and the log has many segments.
    config.flush_bytes = [2 << 10, 64 << 10, 16 << 20][rng.below(3)];
    config.wal_segment_bytes = [8 << 10, 32 << 10, 128 << 20][rng.below(3)];
    let store = open(&config, &vfs, &clock).await.expect("a good disk");
    let mut run = Run {
        seed,
        rng,
        vfs,
        clock,
        config,
        store,
        tenant: TenantId::default_tenant(),
        records: Vec::new(),
        next_position: [0; SOURCES],
        acked_position: [0; SOURCES],
        doomed: false,
        totals: Totals::default(),
        step: 0,
        last_error: String::new(),
    };
    for step in 0..STEPS {
        run.step = step;
        run.step().await;
        if run.rng.chance(350) {
            run.check().await;
        }
    }
    run.finish().await;
    run.totals
}

impl Run {
    fn at(&self) -> String {
        format!("seed {} step {}", self.seed, self.step)
    }

    async fn step(&mut self) {
        self.clock.advance(Duration::from_millis(self.rng.below(400_000) as u64));
        match self.rng.below(100) {
            0..=44 => {
                let n = if self.rng.chance(250) { 2 + self.rng.below(3) } else { 1 };
                let first = self.records.len();
                let mut taken = [false; SOURCES];
                for _ in 0..n {
                    let record = self.fresh(&mut taken);
                    self.records.push(record);
                }
                self.send((first..first + n).collect()).await;
            }
            45..=47 => self.delete().await,
            48..=54 => {
                let with_id: Vec<usize> = (0..self.records.len()).filter(|i| self.records[*i].batch_id).collect();
                if !with_id.is_empty() {
                    let i = with_id[self.rng.below(with_id.len())];
                    self.totals.retried += 1;
                    self.send(vec![i]).await;
                }
            }
            55..=67 => match self.store.flush().await {
                Ok(()) => self.totals.flushes += 1,
                Err(_) => self.totals.failed_flushes += 1,
            },
            68..=72 => match self.store.compact().await {
                Ok(()) => self.totals.merges += 1,
                Err(_) => self.totals.failed_merges += 1,
            },
            73..=74 => drop(self.store.checkpoint().await), // may fail on this disk
            75..=79 => {
                drop(self.store.abandon().await);
                self.reopen().await;
            }
            80..=81 => {
                drop(self.store.close().await);
                self.reopen().await;
            }
            82..=86 => self.power_cut().await,
            87..=90 => {
                self.vfs.cut_power_after(self.rng.below(60) as u64);
                self.doomed = true;
            }
            91..=96 => {
                let mut f = Faults::default();
                let p = [5, 30, 150][self.rng.below(3)];
                match self.rng.below(6) {
                    0 => f.read = p,
                    1 => f.write = p,
                    2 => f.sync = p,
                    3 => f.name = p,
                    4 => {
                        let used = storage::vfs::Vfs::space(&self.vfs, Path::new("/")).unwrap().used;
                        f.space = Some(used + self.rng.below(30_000) as u64);
                    }
                    _ => (f.read, f.write, f.sync, f.name) = (p, p, p, p),
                }
                self.vfs.set_faults(f);
            }
            _ => {
                let ops = [Op::Read, Op::Append, Op::Sync, Op::Create, Op::Rename, Op::Remove, Op::SyncDir];
                self.vfs.fail_next(ops[self.rng.below(ops.len())], 1 + self.rng.below(4) as u32);
            }
        }
        if self.rng.chance(120) {
            self.heal();
        }
        if self.doomed && self.rng.chance(200) {
            self.power_cut().await;
        }
    }

    /// The rows of one signal of an acknowledged record.
    async fn delete(&mut self) {
        let acked: Vec<usize> = (0..self.records.len())
            .filter(|i| self.records[*i].state == State::Acked && !self.records[*i].signals.is_empty())
            .collect();
        if acked.is_empty() {
            return;
        }
        let i = acked[self.rng.below(acked.len())];
        let r = &self.records[i];
        let signal = r.signals[self.rng.below(r.signals.len())];
        let answer = self.store.delete(rows::delete(&self.tenant, signal, r.number)).await;
        let at = self.at();
        let r = &mut self.records[i];
        let before = r.deleted.get(&signal).copied();
        match answer {
            Ok(receipt) => {
                self.totals.deletes += 1;
                let rows = receipt.rows as usize;
                let expected: &[usize] = match before {
                    None => &[r.rows],
                    Some(Deleted::Yes) => &[0],
                    Some(Deleted::Maybe) => &[0, r.rows],
                };
                assert!(expected.contains(&rows), "{at}: {rows} rows of {signal:?} of {r:?} deleted");
                r.deleted.insert(signal, Deleted::Yes);
            }
            Err(_) => {
                self.totals.failed_deletes += 1;
                r.deleted.entry(signal).or_insert(Deleted::Maybe);
            }
        }
    }

    fn heal(&self) {
        self.vfs.set_faults(Faults::default());
        for op in [Op::Read, Op::Append, Op::Sync, Op::SetLen, Op::Create, Op::Rename, Op::Remove, Op::SyncDir] {
            self.vfs.fail_next(op, 0);
        }
    }

    fn fresh(&mut self, taken: &mut [bool; SOURCES]) -> Record {
        let signals = SIGNALS.into_iter().filter(|_| self.rng.chance(450)).collect();
        let source = self.rng.below(SOURCES);
        // Appends on their way together have no order, so a source has one of them at most.
        let source = (!std::mem::replace(&mut taken[source], true)).then(|| {
            self.next_position[source] += 1;
            (source, self.next_position[source])
        });
        Record {
            number: self.records.len() as u32,
            signals,
            rows: 1 + self.rng.below(8),
            batch_id: self.rng.chance(600),
            source,
            state: State::Gone,
            deleted: BTreeMap::new(),
        }
    }

    fn append_of(&self, r: &Record) -> Append {
        Append {
            tenant: self.tenant.clone(),
            rows: r.signals.iter().flat_map(|s| rows::build(*s, r.number, r.rows)).collect(),
            sources: r
                .source
                .iter()
                .map(|(key, position)| SourcePosition { key: format!("s{key}"), position: *position })
                .collect(),
            batch_id: r.batch_id.then(|| (u128::from(r.number) + 1).to_be_bytes()),
        }
    }

    async fn send(&mut self, which: Vec<usize>) {
        let mut appends = Vec::new();
        for i in &which {
            let mut append = self.append_of(&self.records[*i]);
            // A retry comes late: its position was overtaken.
            if self.records[*i].source.is_some_and(|(s, p)| p < self.next_position[s]) {
                append.sources.clear();
            }
            appends.push(append);
        }
        let with_source: Vec<bool> = appends.iter().map(|a| !a.sources.is_empty()).collect();
        let answers = futures::future::join_all(appends.into_iter().map(|a| self.store.append(a))).await;
        for ((i, with_source), answer) in which.into_iter().zip(with_source).zip(answers) {
            // Of one stored earlier it is not known here which of its attempts that was.
            let with_source = with_source && answer.as_ref().is_ok_and(|a| !a.duplicate);
            self.learn(i, with_source, answer);
        }
    }

    fn learn(&mut self, i: usize, with_source: bool, answer: Result<Appended, AppendError>) {
        let at = self.at();
        let r = &mut self.records[i];
        match answer {
            Ok(a) => {
                if r.state == State::Acked {
                    assert!(a.duplicate, "{at}: record {} was stored twice", r.number);
                }
                let known = matches!(r.state, State::Acked | State::Unknown);
                assert!(!a.duplicate || known, "{at}: record {} was never stored: {r:?}", r.number);
                if with_source && let Some((source, position)) = r.source {
                    let last = &mut self.acked_position[source];
                    *last = (*last).max(position);
                }
                r.state = State::Acked;
                self.totals.acked += 1;
            }
            Err(AppendError::Invalid(e)) => panic!("{at}: record {i} was taken for invalid: {e}"),
            Err(e) => {
                self.last_error = e.to_string();
                if r.state == State::Gone {
                    r.state = State::Refused;
                }
                self.totals.refused += 1;
            }
        }
    }

    async fn power_cut(&mut self) {
        self.totals.power_cuts += 1;
        self.vfs = self.vfs.crash();
        self.doomed = false;
        drop(self.store.abandon().await); // its disk is gone
        if self.rng.chance(300) {
            let p = [5, 30][self.rng.below(2)];
            self.vfs.set_faults(Faults { read: p, write: p, sync: p, name: p, space: None });
        }
        self.reopen().await;
    }

    /// With the disk as it is, and after some tries with a good one.
    async fn reopen(&mut self) {
        for _ in 0..3 {
            match open(&self.config, &self.vfs, &self.clock).await {
                Ok(store) => {
                    self.store = store;
                    return self.after_open().await;
                }
                Err(_) => self.totals.refused_opens += 1,
            }
            if self.rng.chance(200) {
                // Power lost while it was opening.
                self.vfs = self.vfs.crash();
                self.doomed = false;
            }
        }
        if self.doomed {
            self.vfs = self.vfs.crash();
            self.doomed = false;
        }
        self.heal();
        match open(&self.config, &self.vfs, &self.clock).await {
            Ok(store) => self.store = store,
            Err(e) => panic!("{}: the store does not open on a good disk: {e:?}", self.at()),
        }
        self.after_open().await;
    }

    async fn after_open(&mut self) {
        self.totals.reopened += 1;
        if self.doomed {
            for r in self.records.iter_mut().filter(|r| r.state == State::Refused) {
                r.state = State::Unknown;
            }
            return; // what is seen now need not last
        }
        let found = self.read_all().await;
        for r in &mut self.records {
            if !matches!(r.state, State::Refused | State::Unknown) {
                continue;
            }
            if !r.signals.is_empty() {
                let there = r.signals.iter().any(|s| found[s].contains_key(&r.number));
                self.totals.survived += usize::from(there);
                r.state = if there { State::Acked } else { State::Gone };
            } else {
                r.state = State::Unknown; // nobody can tell without rows
            }
        }
        self.judge(&found);
    }

    /// All rows, on a disk that reads.
    async fn read_all(&mut self) -> BTreeMap<Table, rows::Found> {
        let by_labels = self.rng.chance(500);
        let mut out = BTreeMap::new();
        for signal in SIGNALS {
            let mut tries = 0;
            let found = loop {
                match rows::read(&self.store, &self.tenant, signal, by_labels).await {
                    Ok(found) => break found,
                    // An error that goes away with the fault; never fewer rows.
                    Err(e) => {
                        tries += 1;
                        assert!(tries < 3, "{}: cannot scan {signal:?} on a good disk: {e}", self.at());
                        self.heal();
                    }
                }
            };
            out.insert(signal, found);
        }
        out
    }

    async fn check(&mut self) {
        if self.doomed {
            return;
        }
        let found = self.read_all().await;
        self.judge(&found);
    }

    fn judge(&self, found: &BTreeMap<Table, rows::Found>) {
        let at = self.at();
        for r in &self.records {
            for signal in &r.signals {
                let rows = found[signal].get(&r.number);
                match (r.state, rows) {
                    (State::Acked, None) if r.deleted.contains_key(signal) => {}
                    (State::Acked, Some(rows)) if r.deleted.get(signal) == Some(&Deleted::Yes) => {
                        panic!("{at}: {signal:?} of {r:?} were deleted, yet here they are: {rows:?}")
                    }
                    (State::Acked, None) => panic!("{at}: {signal:?} of acknowledged {r:?} are lost"),
                    (State::Acked, Some(rows)) => {
                        assert_eq!(rows.len(), r.rows, "{at}: rows of {signal:?} of {r:?} are missing: {rows:?}");
                        assert!(rows.values().all(|n| *n == 1), "{at}: {signal:?} of {r:?} found twice: {rows:?}");
                    }
                    (_, None) => {}
                    (_, Some(rows)) => panic!("{at}: {signal:?} of {r:?} were refused, yet here they are: {rows:?}"),
                }
            }
        }
        for source in 0..SOURCES {
            let held = self.store.position(&self.tenant, &format!("s{source}"));
            let of = |r: &&Record| r.source.is_some_and(|(s, _)| s == source);
            let least = self.acked_position[source];
            assert!(held.unwrap_or(0) >= least, "{at}: source {source} fell back to {held:?} from {least}");
            if let Some(held) = held {
                let with_rows = self.records.iter().filter(of).find(|r| r.source == Some((source, held)));
                let ahead = with_rows.is_none_or(|r| r.state != State::Acked && !r.signals.is_empty());
                assert!(!ahead, "{at}: source {source} is at {held}, whose rows are not there: {with_rows:?}");
            }
        }
    }

    /// On a good disk everything works again at once, and stays.
    async fn finish(&mut self) {
        if self.doomed {
            self.power_cut().await;
        }
        self.heal();
        let again: Vec<usize> =
            (0..self.records.len()).filter(|i| self.records[*i].batch_id && self.rng.chance(700)).collect();
        for i in again {
            self.send(vec![i]).await;
            assert_eq!(
                self.records[i].state,
                State::Acked,
                "{}: writes do not resume: {}",
                self.at(),
                self.last_error
            );
        }
        let mut taken = [false; SOURCES];
        let record = self.fresh(&mut taken);
        self.records.push(record);
        self.send(vec![self.records.len() - 1]).await;
        assert_eq!(
            self.records.last().unwrap().state,
            State::Acked,
            "{}: writes do not resume: {}",
            self.at(),
            self.last_error
        );
        let at = self.at();
        self.store.flush().await.unwrap_or_else(|e| panic!("{at}: flush on a good disk: {e}"));
        self.check().await;
        self.store.compact().await.unwrap_or_else(|e| panic!("{at}: merge on a good disk: {e}"));
        self.check().await;
        self.power_cut().await;
        self.heal();
        self.check().await;
        drop(self.store.close().await);
        self.reopen().await;
        let damaged = self.store.metrics().quarantined_parts.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(damaged, 0, "{at}: nothing is damaged on this disk");
    }
}
