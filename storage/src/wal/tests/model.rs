//! The log against a plain list, on a disk that fails and loses power, over many seeds.
//! `SIGHTLINE_SEEDS=n` runs n of them, `SIGHTLINE_SEED=x` that one alone.

use std::collections::{BTreeMap, HashMap, HashSet};

use parking_lot::Mutex;

use super::*;
use crate::{
    vfs::sim::{Faults, Rng},
    wal::Kind,
};

const SEEDS: u64 = 400;
const STEPS: usize = 40;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {v}")))
}

#[test]
fn whatever_was_acknowledged_is_found_exactly_once_after_any_failure() {
    let seeds = match env("SIGHTLINE_SEED") {
        Some(one) => one..one + 1,
        None => 0..env("SIGHTLINE_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let run = std::panic::catch_unwind(|| Model::new(seed).run());
        assert!(run.is_ok(), "failed: run again with SIGHTLINE_SEED={seed}");
    }
}

/// What the store would know.
#[derive(Default)]
struct State {
    position: u64,
    ids: HashSet<u64>,
}

struct Model {
    rng: Rng,
    vfs: SimVfs,
    state: Arc<Mutex<State>>,
    /// Every id ever sent, with its payload.
    sent: HashMap<u64, Vec<u8>>,
    /// Acknowledged records not yet released, by sequence number.
    kept: BTreeMap<u64, u64>,
    /// Highest acknowledged id: ids are sent in order, so this is the position too.
    acked: u64,
    /// Sent since the last good answer without an answer of their own: may be found after a crash.
    perhaps: HashSet<u64>,
    next_id: u64,
    released_below: u64,
    /// A sync may have failed since the last power cut, so that the page cache shows bytes that are not on the disk.
    /// A mere restart cannot tell them apart (see `settle`), so the model cuts the power instead.
    cache_lies: bool,
}

fn id_bytes(id: u64) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&id.to_le_bytes());
    out
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let vfs = SimVfs::new(rng.next_u64());
        Model {
            rng,
            vfs,
            state: Arc::default(),
            sent: HashMap::new(),
            kept: BTreeMap::new(),
            acked: 0,
            perhaps: HashSet::new(),
            next_id: 1,
            released_below: 0,
            cache_lies: false,
        }
    }

    fn options(&mut self) -> WalOptions {
        WalOptions { segment_bytes: 2000 + self.rng.below(8000) as u64, ..options() }
    }

    fn run(mut self) {
        let mut wal = self.reopen();
        for _ in 0..STEPS {
            match self.rng.below(20) {
                0 => wal = self.restart(wal, true),
                1 => wal = self.restart(wal, false),
                2 => {
                    let operations = self.rng.below(12) as u64;
                    self.vfs.cut_power_after(operations);
                    (0..6).for_each(|_| self.append(&wal));
                    wal = self.restart(wal, true);
                }
                3 => drop(wait(wal.rotate())),
                4 => self.release(&wal),
                5 => self.faults(),
                6 => self.vfs.set_faults(Faults::default()),
                _ => self.append(&wal),
            }
        }
        drop(self.restart(wal, true));
    }

    fn faults(&mut self) {
        let used = self.vfs.space(Path::new("/")).map_or(0, |s| s.used);
        let mut some = |of: usize| if self.rng.chance(500) { self.rng.below(of) as u32 } else { 0 };
        let faults = Faults { read: 0, write: some(300), sync: some(300), name: some(200), space: None };
        let space = self.rng.chance(300).then(|| used + self.rng.below(4000) as u64);
        self.cache_lies = true;
        self.vfs.set_faults(Faults { space, ..faults });
    }

    /// One to five records at once.
    fn append(&mut self, wal: &Wal) {
        let count = 1 + self.rng.below(5);
        let mut waiting = Vec::new();
        for _ in 0..count {
            let id = self.next_id;
            self.next_id += 1;
            let rows = 1 + self.rng.below(4);
            let body = format!("{:0width$}", id, width = 1 + self.rng.below(600));
            let Section::Batch(encoded) = batch(&logs(rows, id as i64, &body)) else { unreachable!() };
            self.sent.insert(id, encoded.payload.clone());
            let state = self.state.clone();
            let sections = vec![
                Section::Batch(encoded),
                Section::Position { key: "source".to_owned(), position: id },
                Section::BatchId(id_bytes(id)),
            ];
            let publish: super::super::Publish = Box::new(move |_| {
                let mut state = state.lock();
                state.position = id;
                state.ids.insert(id);
            });
            waiting.push((id, wal.append(Entry { publish, ..entry(sections) })));
        }
        let (ids, futures): (Vec<u64>, Vec<_>) = waiting.into_iter().unzip();
        let answers = wait(futures::future::join_all(futures));
        for (id, answer) in ids.into_iter().zip(answers) {
            match answer {
                Ok(c) => {
                    let last = self.kept.last_key_value().map_or(0, |(s, _)| *s);
                    assert!(c.seq > last, "sequence numbers grow");
                    assert!(self.state.lock().ids.contains(&id), "published before it was acknowledged");
                    self.kept.insert(c.seq, id);
                    self.acked = id;
                    // A later record was acknowledged: those refused before it are refused for good.
                    self.perhaps.clear();
                }
                Err(_) => {
                    assert!(!self.state.lock().ids.contains(&id), "refused and yet published");
                    self.perhaps.insert(id);
                }
            }
        }
    }

    fn release(&mut self, wal: &Wal) {
        let Some((seq, _)) = self.kept.iter().nth(self.rng.below(self.kept.len().max(1))) else { return };
        let below = *seq + 1;
        drop(wal.release_below(below)); // with faults on, it may stop half way
        self.released_below = self.released_below.max(below);
    }

    fn restart(&mut self, wal: Wal, power_cut: bool) -> Wal {
        if power_cut || self.cache_lies {
            self.cache_lies = false;
            self.vfs = self.vfs.crash();
        } else {
            self.vfs.set_faults(Faults::default());
        }
        drop(wal);
        self.reopen()
    }

    fn reopen(&mut self) -> Wal {
        let options = self.options();
        let (records, recovered) = recover(&self.vfs, options).unwrap();
        let report = recovered.report.clone();
        assert_eq!(report.damage, [], "a power cut is no damage");
        let mut state = State::default();
        let mut found = BTreeMap::new();
        let mut last = 0;
        for r in &records {
            assert!(r.seq > last, "in order");
            last = r.seq;
            let ids: Vec<u64> = r.batch_ids.iter().map(|b| u64::from_le_bytes(b[..8].try_into().unwrap())).collect();
            state.position = r.positions.last().map_or(state.position, |(_, p)| *p);
            state.ids.extend(&ids);
            if r.kind == Kind::Carry {
                continue;
            }
            assert_eq!((ids.len(), r.batches.len()), (1, 1));
            let sent = self.sent.get(&ids[0]).expect("nothing appears that was never sent");
            let location = &r.batches[0];
            let file = self.vfs.open_read(&location.segment.path).unwrap();
            let mut bytes = vec![0; sent.len()];
            file.read_exact_at(&mut bytes, location.offset).unwrap();
            assert_eq!(&bytes, sent, "unchanged");
            assert!(location.read().is_ok());
            assert!(found.insert(r.seq, ids[0]).is_none());
        }
        for (seq, id) in &self.kept {
            if *seq >= self.released_below {
                assert_eq!(found.get(seq), Some(id), "acknowledged record {id} is found under {seq}");
            }
        }
        for (seq, id) in &found {
            if self.kept.get(seq) != Some(id) {
                assert!(self.perhaps.contains(id), "record {id} was refused for good and is back");
            }
        }
        assert!(state.position >= self.acked, "the position survives");
        // Positions and ids: all acknowledged ones, and of the others only those that were found.
        for id in state.ids.iter().filter(|id| **id > self.acked) {
            assert!(self.perhaps.contains(id));
        }
        let all: HashSet<u64> = self.state.lock().ids.clone();
        assert!(all.is_subset(&state.ids), "batch ids survive release");
        self.kept.extend(found);
        self.acked = self.acked.max(state.position);
        self.perhaps.clear();
        *self.state.lock() = state;
        let known = self.state.clone();
        let carry: Carry = Box::new(move || {
            let state = known.lock();
            let mut ids: Vec<u64> = state.ids.iter().copied().collect();
            ids.sort_unstable();
            let position = Section::Position { key: "source".to_owned(), position: state.position };
            let sections = ids.into_iter().map(|id| Section::BatchId(id_bytes(id))).chain([position]).collect();
            vec![(TenantId::default_tenant(), sections)]
        });
        let wal = recovered.start(1, carry).unwrap();
        assert!(self.kept.last_key_value().is_none_or(|(s, _)| *s <= last.max(*s)));
        wal
    }
}
