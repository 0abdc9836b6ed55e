//! The targets of one job: what its discoveries name, relabelled, each with its loop.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use storage::model::Labels;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Work,
    counters::Counters,
    discovery::{Feed, Publisher, TargetGroup},
    job::Job,
    scrape_loop::{ScrapeLoop, Shared},
    target::{Populated, Target, populate, with_defaults},
};

/// Targets of one job; more are not scraped, and told.
const TARGETS_MAX: usize = 100_000;
/// What changes within this time is taken up at once.
const SETTLE: Duration = Duration::from_millis(100);

/// What the API and the loops see of a pool.
pub struct PoolState {
    pub name: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    active: Vec<Arc<Target>>,
    /// Label sets before relabelling; at most those the job keeps.
    dropped: Vec<Labels>,
    dropped_total: usize,
    refusal: Option<String>,
}

impl PoolState {
    pub fn new(name: &str) -> Arc<PoolState> {
        Arc::new(PoolState { name: name.to_owned(), inner: Mutex::default() })
    }

    pub fn active(&self) -> Vec<Arc<Target>> {
        self.inner.lock().active.clone()
    }

    pub fn dropped(&self) -> Vec<Labels> {
        self.inner.lock().dropped.clone()
    }

    pub fn dropped_total(&self) -> usize {
        self.inner.lock().dropped_total
    }

    /// Whether a target with these labels is scraped.
    pub fn has(&self, labels: &Labels) -> bool {
        self.inner.lock().active.iter().any(|t| t.labels == *labels)
    }

    /// Why no target of the pool is scraped.
    pub fn refusal(&self) -> Option<String> {
        self.inner.lock().refusal.clone()
    }
}

/// The targets of a job at work.
pub(super) struct Pool {
    /// Changes with the configuration; the name of the job does not.
    pub work: watch::Receiver<Work>,
    pub shared: Shared,
    /// The job is no more.
    pub gone: CancellationToken,
}

/// A target's loop.
struct Running {
    target: Arc<Target>,
    /// Of the job it was begun for.
    mark: u64,
    /// The target is no more.
    removed: CancellationToken,
    /// Another loop takes its place.
    replaced: CancellationToken,
    /// The loop has ended.
    ended: CancellationToken,
}

/// What is known of the loops.
#[derive(Default)]
struct Loops {
    tasks: JoinSet<()>,
    running: HashMap<u64, Running>,
}

impl Pool {
    /// Until the process stops, or the job is gone.
    pub async fn run(mut self) {
        let mut loops = Loops::default();
        loop {
            let work = self.work.borrow_and_update().clone();
            if !self.run_job(&work, &mut loops).await {
                break;
            }
        }
        if self.gone.is_cancelled() {
            loops.running.values().for_each(|r| r.removed.cancel());
            *self.work.borrow().state.inner.lock() = Inner::default();
        }
        // What is under way is delivered.
        while loops.tasks.join_next().await.is_some() {}
    }

    /// Until the job changes; `false`: it ends.
    async fn run_job(&mut self, work: &Work, loops: &mut Loops) -> bool {
        let job = &work.job;
        let feed = Arc::new(Feed::new(job.discovery.len()));
        let mut discoveries = JoinSet::new();
        for (i, discovery) in job.discovery.iter().enumerate() {
            let publisher = Publisher::new(feed.clone(), i, &job.name, self.shared.counters.clone());
            let (discovery, stop) = (discovery.clone(), self.shared.stop.clone());
            discoveries.spawn(async move {
                stop.run_until_cancelled(discovery.run(publisher)).await;
            });
        }
        if job.discovery.is_empty() {
            self.sync(work, &[], loops);
        }
        let goes_on = loop {
            tokio::select! {
                () = self.shared.stop.cancelled() => break false,
                () = self.gone.cancelled() => break false,
                Ok(()) = self.work.changed() => break true,
                () = feed.changed() => {
                    if self.shared.stop.run_until_cancelled(tokio::time::sleep(SETTLE)).await.is_none() {
                        break false;
                    }
                    self.sync(work, &feed.groups(), loops);
                }
                Some(Err(e)) = loops.tasks.join_next(), if !loops.tasks.is_empty() => {
                    tracing::error!(job = job.name, error = %e, "a scrape loop panicked");
                }
                Some(Err(e)) = discoveries.join_next(), if !discoveries.is_empty() => {
                    tracing::error!(job = job.name, error = %e, "a discovery panicked; its targets stay as they are");
                }
            }
        };
        discoveries.shutdown().await;
        goes_on
    }

    /// Starts loops of new targets, ends those of targets that are gone, begins those anew whose job has changed, and leaves
    /// the others alone.
    fn sync(&self, work: &Work, groups: &[Arc<Vec<TargetGroup>>], loops: &mut Loops) {
        let job = &work.job;
        let found = find(job, groups, &self.shared.counters);
        let wanted: HashSet<u64> = found.targets.iter().map(|t| t.id).collect();
        loops.running.retain(|id, running| {
            let stays = wanted.contains(id);
            if !stays {
                running.removed.cancel();
            }
            stays
        });
        let mut active = Vec::with_capacity(found.targets.len());
        let mut new = Vec::new();
        for target in found.targets {
            match loops.running.get(&target.id) {
                Some(old) if old.mark == job.mark => {
                    *old.target.discovered.lock() = target.discovered.into_inner();
                    active.push(old.target.clone());
                }
                old => {
                    let after = old.map(|old| {
                        old.replaced.cancel();
                        *target.status.lock() = old.target.status.lock().clone();
                        old.ended.clone()
                    });
                    let target = Arc::new(target);
                    active.push(target.clone());
                    new.push((target, after));
                }
            }
        }
        let over = job.target_limit.filter(|l| active.len() as u64 > *l);
        let n = active.len();
        *work.state.inner.lock() = Inner {
            active,
            dropped: found.dropped,
            dropped_total: found.dropped_total,
            refusal: over.map(|l| format!("target_limit exceeded (number of targets: {n}, limit: {l})")),
        };
        for (target, after) in new {
            let running = Running {
                target: target.clone(),
                mark: job.mark,
                removed: CancellationToken::new(),
                replaced: CancellationToken::new(),
                ended: CancellationToken::new(),
            };
            let one = ScrapeLoop {
                shared: self.shared.clone(),
                job: job.clone(),
                target,
                client: work.client.clone(),
                pool: work.state.clone(),
                removed: running.removed.clone(),
                replaced: running.replaced.clone(),
            };
            let ended = running.ended.clone().drop_guard();
            loops.running.insert(one.target.id, running);
            loops.tasks.spawn(async move {
                let _ended = ended;
                // One at a time asks a target.
                if let Some(after) = after {
                    after.cancelled().await;
                }
                one.run().await;
            });
        }
    }
}

struct Found {
    targets: Vec<Target>,
    dropped: Vec<Labels>,
    dropped_total: usize,
}

/// The targets of discovered groups: each once.
fn find(job: &Job, groups: &[Arc<Vec<TargetGroup>>], counters: &Counters) -> Found {
    let mut out = Found { targets: Vec::new(), dropped: Vec::new(), dropped_total: 0 };
    let mut seen = HashSet::new();
    for group in groups.iter().flat_map(|g| g.iter()) {
        for own in &group.targets {
            if out.targets.len() >= TARGETS_MAX {
                tracing::warn!(job = job.name, limit = TARGETS_MAX, "there are more targets than are scraped");
                return out;
            }
            let mut labels = group.labels.clone();
            for (name, value) in own.iter() {
                labels.set(name, value);
            }
            let discovered = with_defaults(job, labels);
            match populate(job, &discovered) {
                Populated::Target(target) => {
                    if seen.insert(target.id) {
                        out.targets.push(*target);
                    }
                }
                Populated::Dropped => {
                    out.dropped_total += 1;
                    if out.dropped.len() < job.keep_dropped {
                        out.dropped.push(discovered);
                    }
                }
                Populated::Invalid(reason) => {
                    Counters::add(&counters.invalid_targets, 1);
                    tracing::warn!(
                        job = job.name,
                        source = group.source,
                        reason,
                        "a discovered target is not scraped"
                    );
                }
            }
        }
    }
    out
}
