//! The targets of one job: what its discoveries name, relabelled, each with its loop.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use storage::model::Labels;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    client::HttpClient,
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

/// A job and what it works with.
pub struct Pool {
    pub job: Arc<Job>,
    pub state: Arc<PoolState>,
    pub client: Arc<HttpClient>,
    pub shared: Shared,
}

impl Pool {
    /// Until the process stops.
    pub async fn run(self) {
        let feed = Arc::new(Feed::new(self.job.discovery.len()));
        let mut discoveries = JoinSet::new();
        for (i, discovery) in self.job.discovery.iter().enumerate() {
            let publisher = Publisher::new(feed.clone(), i, &self.job.name, self.shared.counters.clone());
            let (discovery, stop) = (discovery.clone(), self.shared.stop.clone());
            discoveries.spawn(async move {
                stop.run_until_cancelled(discovery.run(publisher)).await;
            });
        }
        let mut loops = JoinSet::new();
        let mut running: HashMap<u64, (CancellationToken, Arc<Target>)> = HashMap::new();
        loop {
            tokio::select! {
                () = self.shared.stop.cancelled() => break,
                () = feed.changed() => {
                    if self.shared.stop.run_until_cancelled(tokio::time::sleep(SETTLE)).await.is_none() {
                        break;
                    }
                    self.sync(&feed.groups(), &mut running, &mut loops);
                }
                Some(Err(e)) = loops.join_next(), if !loops.is_empty() => {
                    tracing::error!(job = self.job.name, error = %e, "a scrape loop panicked");
                }
                Some(Err(e)) = discoveries.join_next(), if !discoveries.is_empty() => {
                    tracing::error!(job = self.job.name, error = %e, "a discovery panicked; its targets stay as they are");
                }
            }
        }
        discoveries.shutdown().await;
        // What is under way is delivered.
        while loops.join_next().await.is_some() {}
    }

    /// Starts loops of new targets, ends those of targets that are gone, and leaves the others alone.
    fn sync(
        &self,
        groups: &[Arc<Vec<TargetGroup>>],
        running: &mut HashMap<u64, (CancellationToken, Arc<Target>)>,
        loops: &mut JoinSet<()>,
    ) {
        let found = find(&self.job, groups, &self.shared.counters);
        let wanted: HashSet<u64> = found.targets.iter().map(|t| t.id).collect();
        running.retain(|id, (removed, _)| {
            let stays = wanted.contains(id);
            if !stays {
                removed.cancel();
            }
            stays
        });
        let mut active = Vec::with_capacity(found.targets.len());
        let mut new = Vec::new();
        for target in found.targets {
            match running.get(&target.id) {
                Some((_, old)) => {
                    *old.discovered.lock() = target.discovered.into_inner();
                    active.push(old.clone());
                }
                None => {
                    let (target, removed) = (Arc::new(target), CancellationToken::new());
                    running.insert(target.id, (removed.clone(), target.clone()));
                    active.push(target.clone());
                    new.push((target, removed));
                }
            }
        }
        let over = self.job.target_limit.filter(|l| active.len() as u64 > *l);
        let n = active.len();
        *self.state.inner.lock() = Inner {
            active,
            dropped: found.dropped,
            dropped_total: found.dropped_total,
            refusal: over.map(|l| format!("target_limit exceeded (number of targets: {n}, limit: {l})")),
        };
        for (target, removed) in new {
            let one = ScrapeLoop {
                shared: self.shared.clone(),
                job: self.job.clone(),
                target,
                client: self.client.clone(),
                pool: self.state.clone(),
                removed,
            };
            loops.spawn(one.run());
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
