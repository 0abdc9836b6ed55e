//! The log against a plain set, on a disk that fails: commits, merges, checkpoints, deletions, power cuts, reopening.

use std::{collections::BTreeSet, io::Write, path::Path, sync::Arc, time::Duration};

use super::{tests::schema, *};
use crate::{
    model::{Table, Timestamp},
    object::{LocalStore, Objects},
    vfs::sim::{Faults, Rng, SimVfs},
};

const SEEDS: u64 = 60;
const STEPS: usize = 60;
const PREFIX: &str = "data/default/logs";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    parts: BTreeSet<String>,
    txn: Option<i64>,
}

struct World {
    rng: Rng,
    disk: SimVfs,
    store: Arc<LocalStore>,
    catalog: TableCatalog,
    purge: Purge,
    now: i64,
    /// What must be there; a commit whose outcome is not known leaves two possibilities.
    known: Vec<Model>,
    /// The power goes some time soon.
    doomed: bool,
    seed: u64,
}

fn open(disk: &SimVfs, now: i64) -> (Arc<LocalStore>, TableCatalog, OpenReport) {
    disk.set_faults(Faults::default());
    let store = Arc::new(LocalStore::on(Arc::new(disk.clone()), Path::new("/")));
    store.clean_temporary().unwrap();
    let options = TableOptions::new(Table::Logs, PREFIX, schema());
    let (catalog, report) = TableCatalog::open(store.clone(), options, Timestamp(now)).unwrap();
    (store, catalog, report)
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = SimVfs::new(seed);
        let (store, catalog, _) = open(&disk, 1);
        let purge = Purge::new(Duration::ZERO);
        let known = vec![Model::default()];
        World { rng: Rng::new(seed ^ 0x5eed), disk, store, catalog, purge, now: 1, known, doomed: false, seed }
    }

    fn seen(&self) -> Model {
        Model {
            parts: self.catalog.live().iter().map(|p| p.path.clone()).collect(),
            txn: self.catalog.txn_version("app"),
        }
    }

    fn write_part(&mut self, order: Option<i64>) -> std::io::Result<NewPart> {
        let bucket = Bucket::Hour(self.rng.below(3) as i64);
        let path = part_path(bucket, 0);
        let mut w = self.store.create(&format!("{PREFIX}/{path}"))?;
        w.write_all(&vec![3; 1 + self.rng.below(2000)])?;
        let size = w.finish()?;
        let ts = Timestamp(1);
        Ok(NewPart { path, bucket, size, rows: 1, min_ts: ts, max_ts: ts, level: 0, order, tags: vec![] })
    }

    /// A flush or a merge. The files come first: without them there is no commit.
    fn commit(&mut self, merge: bool) {
        let live = self.catalog.live();
        let removes = if merge { live.iter().take(1 + self.rng.below(3)).cloned().collect() } else { vec![] };
        let order = removes.iter().map(|p: &Arc<PartEntry>| p.order).max();
        let adds: Result<Vec<NewPart>, _> = (0..1 + self.rng.below(2)).map(|_| self.write_part(order)).collect();
        let Ok(adds) = adds else { return };
        let before = self.known[0].clone();
        let txn = (!merge).then(|| before.txn.unwrap_or(0) + 1);
        let mut after = before.clone();
        removes.iter().for_each(|p| assert!(after.parts.remove(&p.path)));
        after.parts.extend(adds.iter().map(|p| p.path.clone()));
        after.txn = txn.or(before.txn);
        let commit = Commit {
            adds,
            removes,
            txn: txn.map(|v| ("app".into(), v)),
            operation: if merge { Operation::Compact } else { Operation::Flush },
        };
        match self.catalog.commit(commit, Timestamp(self.now)) {
            Ok(done) => {
                self.known = vec![after];
                for p in done.removed {
                    self.purge.retire(self.catalog.file_of(&p.path), p, Timestamp(self.now));
                }
            }
            Err(e) if e.is_uncertain() => {
                self.known = vec![before, after];
                self.power_cut();
            }
            Err(CatalogError::Write { .. }) => {}
            Err(e) => panic!("seed {}: {e:?}", self.seed),
        }
    }

    fn power_cut(&mut self) {
        self.disk = self.disk.crash();
        self.doomed = false;
        self.reopen();
    }

    fn reopen(&mut self) {
        let (store, catalog, report) = open(&self.disk, self.now);
        assert!(report.log.is_empty() && report.parts.is_empty(), "seed {}: {report:?}", self.seed);
        (self.store, self.catalog, self.purge) = (store, catalog, Purge::new(Duration::ZERO));
        let seen = self.seen();
        assert!(self.known.contains(&seen), "seed {}: {seen:?} is none of {:?}", self.seed, self.known);
        self.known = vec![seen];
        let files = self.store.list(PREFIX).unwrap();
        let parts = files.iter().filter(|f| f.path.contains("/day=")).count();
        assert_eq!(parts, self.known[0].parts.len(), "seed {}: orphans are left", self.seed);
    }

    fn step(&mut self) {
        self.now += 1_000_000_000;
        match self.rng.below(20) {
            0..=8 => self.commit(false),
            9..=11 => self.commit(true),
            12 | 13 => {
                // May fail half-way; nothing depends on it.
                let _ = self.catalog.checkpoint(Timestamp(self.now));
            }
            14 => {
                self.purge.run(&*self.store, Timestamp(self.now));
            }
            15 if !self.doomed => self.reopen(),
            15 | 16 => self.power_cut(),
            17 => {
                self.doomed = true;
                self.disk.cut_power_after(self.rng.below(60) as u64);
            }
            _ => {
                let mut some = || if self.rng.chance(500) { self.rng.below(80) as u32 } else { 0 };
                let faults = Faults { read: 0, write: some(), sync: some(), name: some(), space: None };
                self.disk.set_faults(faults);
            }
        }
        if self.known.len() == 1 {
            assert_eq!(self.seen(), self.known[0], "seed {}", self.seed);
        }
    }
}

#[test]
fn the_log_is_what_was_committed_whatever_the_disk_does() {
    let seeds = std::env::var("SIGHTLINE_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(SEEDS);
    let first = std::env::var("SIGHTLINE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.power_cut();
    }
}
