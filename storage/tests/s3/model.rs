//! The store in a bucket against a plain map, while requests fail, answers get lost and the server is killed: what was
//! acknowledged is found exactly once, after flushes, merges, retention and reopening, with and without a local cache.

use std::{collections::BTreeMap, fs, time::Duration};

use storage::{
    Store, StoreConfig,
    config::{Retention, RetentionRule},
    object::Remote,
    vfs::sim::Rng,
};

use super::{
    proxy::Proxy,
    remote,
    rows::{self, DAY, append, config, found, open},
    seeds,
    weed::{self, Weed},
};

const STEPS: usize = 60;
const FAULTS_PER_MILLE: u32 = 140;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Owed,
    /// Past its retention, and perhaps gone.
    Maybe,
    Gone,
}

struct Run {
    seed: u64,
    rng: Rng,
    dir: tempfile::TempDir,
    config: StoreConfig,
    remote: Remote,
    store: Option<Store>,
    rows: BTreeMap<u64, (Row, bool)>,
    next: u64,
    told: BTreeMap<&'static str, u32>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_found_once_whatever_happens_to_requests() {
    let Some(mut weed) = weed::start_or_skip("s3") else { return };
    for seed in seeds(3) {
        let proxy = Proxy::start(weed.s3(), seed);
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir.path().join("data"));
        config.flush_bytes = 16 << 10;
        config.wal_segment_bytes = 16 << 10;
        let keep = Duration::from_secs(7 * 86_400);
        config.retention = Retention { rules: vec![RetentionRule { tenant: None, table: None, keep }] };
        let remote = remote(proxy.address, &format!("model{seed}"), 1);
        let store = Some(open(&config, &remote).await.unwrap());
        let (rows, told) = (BTreeMap::new(), BTreeMap::new());
        let mut run = Run { seed, rng: Rng::new(seed ^ 0x53_3a), dir, config, remote, store, rows, next: 0, told };
        proxy.faulty(FAULTS_PER_MILLE);
        let killed = 10 + run.rng.below(25);
        for step in 0..STEPS {
            if step == killed {
                run.without_server(&mut weed).await;
            }
            run.step().await;
            if run.rng.chance(300) {
                proxy.faulty(0);
                run.check(&format!("seed {seed} step {step}")).await;
                proxy.faulty(FAULTS_PER_MILLE);
            }
        }
        proxy.faulty(0);
        run.finish().await;
        println!("seed {seed}: {} rows, {:?}; {}", run.next, run.told, proxy.told());
    }
}

impl Run {
    fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open")
    }

    fn tell(&mut self, what: &'static str) {
        *self.told.entry(what).or_default() += 1;
    }

    async fn step(&mut self) {
        match self.rng.below(100) {
            0..=44 => self.append().await,
            45..=64 => {
                let done = self.store().flush().await;
                self.tell(if done.is_ok() { "flush" } else { "flush failed" });
            }
            65..=76 => {
                let done = self.store().compact().await;
                self.tell(if done.is_ok() { "compact" } else { "compact failed" });
            }
            77..=82 => {
                let done = self.store().checkpoint().await;
                self.tell(if done.is_ok() { "checkpoint" } else { "checkpoint failed" });
            }
            83..=88 => self.expire().await,
            _ => {
                let (clean, wipe) = (self.rng.chance(400), self.rng.chance(500));
                self.reopen(clean, wipe).await;
            }
        }
    }

    async fn append(&mut self) {
        let n = 1 + self.rng.below(120) as u64;
        let old = self.rng.chance(200);
        let age = if old { 30 * DAY } else { self.rng.below(3) as i64 * DAY / 3 };
        let (from, to) = (self.next, self.next + n);
        self.next = to;
        // The log is here: no write waits for the bucket, the first one of a table neither.
        if let Err(e) = append(self.store(), from, to, rows::now() - age).await {
            panic!("seed {}: {e}", self.seed);
        }
        self.rows.extend((from..to).map(|n| (n, (Row::Owed, old))));
    }

    /// Old rows leave, those in parts.
    async fn expire(&mut self) {
        let flushed = self.store().flush().await.is_ok();
        let expired = self.store().expire().await.is_ok();
        self.tell(if flushed && expired { "expire" } else { "expire failed" });
        let became = if flushed && expired { Row::Gone } else { Row::Maybe };
        for (row, old) in self.rows.values_mut() {
            if *old && *row != Row::Gone {
                *row = became;
            }
        }
    }

    /// As after a crash, or cleanly; `wipe`: only the bucket and the log are left.
    async fn reopen(&mut self, clean: bool, wipe: bool) {
        let store = self.store.take().expect("it is open");
        let closed = if clean { store.close().await } else { store.abandon().await };
        drop(store);
        self.tell(if closed.is_ok() { "close" } else { "close failed" });
        if wipe {
            let _ = fs::remove_dir_all(self.config.dir.join("cache"));
        }
        for _ in 0..30 {
            match open(&self.config, &self.remote).await {
                Ok(store) => {
                    self.store = Some(store);
                    return;
                }
                Err(_) => self.tell("open failed"),
            }
        }
        panic!("seed {}: it does not open: {:?}", self.seed, self.told);
    }

    /// The server is killed; meanwhile rows are taken and a flush fails.
    async fn without_server(&mut self, weed: &mut Weed) {
        self.append().await;
        weed.kill();
        self.append().await;
        let flushed = self.store().flush().await;
        assert!(flushed.is_err() || self.rows.values().all(|(r, _)| *r == Row::Gone), "flushed without a server");
        self.append().await;
        weed.restart();
    }

    async fn check(&mut self, what: &str) {
        let found = found(self.store()).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        for (n, times) in &found {
            let (row, _) = self.rows.get(n).unwrap_or_else(|| panic!("{what}: row {n} was never written"));
            assert!(*row != Row::Gone, "{what}: row {n} should be gone, {:?}", self.told);
            assert_eq!(*times, 1, "{what}: row {n} is there {times} times, {:?}", self.told);
        }
        let lost: Vec<&u64> = self
            .rows
            .iter()
            .filter(|(n, (r, _))| *r == Row::Owed && !found.contains_key(n))
            .map(|(n, _)| n)
            .collect();
        assert!(lost.is_empty(), "{what}: lost {lost:?}, {:?}", self.told);
    }

    async fn finish(&mut self) {
        let what = format!("seed {} end", self.seed);
        self.reopen(false, true).await;
        self.check(&what).await;
        self.store().flush().await.unwrap();
        self.check(&what).await;
        self.store().compact().await.unwrap();
        self.check(&what).await;
        self.reopen(true, true).await;
        self.check(&what).await;
        // From the bucket alone, in a directory that knows nothing.
        let store = self.store.take().expect("it is open");
        store.close().await.unwrap();
        drop(store);
        self.config.dir = self.dir.path().join("fresh");
        self.store = Some(open(&self.config, &self.remote).await.unwrap());
        self.check(&what).await;
        self.store().checkpoint().await.unwrap();
        self.reopen(true, false).await;
        self.check(&what).await;
    }
}
