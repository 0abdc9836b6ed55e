//! Source: scrapes targets as Prometheus does, from Prometheus' own `scrape_configs`.
//!
//! **For** asking targets for their metrics at their interval, finding them, and saying what is wrong with a configuration.
//! **Not for** rules and alerts of a Prometheus file: [`config::File`] reads them, [`alertmanagers`] finds whom alerts are told,
//! whoever evaluates rules takes both.
//!
//! A file becomes [`job::Job`]s ([`job::check`]); each has a pool ([`scrape_pool`]) of targets that its discoveries
//! ([`discovery`]) name, each target its loop ([`scrape_loop`]); [`series`] makes rows of what a target exposed.
//!
//! Jobs may change while they run ([`Pools::set`]): those that did not go on undisturbed; of the others targets that are still
//! there are asked as the job now says, and the rest ends with its staleness markers.
//!
//! What Prometheus knows and we do not is told at start and by `sightline check`, with its place; the rest is done.

pub mod alertmanagers;
pub mod client;
pub mod config;
pub mod counters;
pub mod discovery;
pub mod job;
mod oauth2;
mod resolution;
mod scrape_loop;
pub mod scrape_pool;
mod series;
pub mod target;

#[cfg(test)]
mod client_tests;
#[cfg(test)]
mod loop_tests;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use pipeline::{Signals, Source, SourceContext, SourceError};
use serde::Deserialize;
use storage::model::{TenantId, labels::id_of_json};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    client::HttpClient,
    counters::Counters,
    job::Job,
    scrape_loop::{BUDGET, Shared},
    scrape_pool::{Pool, PoolState},
};
use crate::file_tail;

/// The source as it stands in our configuration: a Prometheus file by name, or its sections inline.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub config_file: Option<PathBuf>,
    /// Read with their places by whoever reads the configuration; see [`Config::jobs`].
    pub global: Option<serde_json::Value>,
    pub scrape_configs: Option<serde_json::Value>,
    pub tenant: Option<String>,
    /// What was read and checked.
    #[serde(skip)]
    pub jobs: Vec<Arc<Job>>,
    #[serde(skip)]
    pub pools: Arc<Pools>,
}

/// What a source shows of itself, and where it is told to do otherwise.
#[derive(Default)]
pub struct Pools {
    tenant: parking_lot::Mutex<TenantId>,
    jobs: watch::Sender<Vec<Work>>,
    pub counters: Arc<Counters>,
}

/// A job and what it works with.
#[derive(Clone)]
struct Work {
    job: Arc<Job>,
    client: Arc<HttpClient>,
    state: Arc<PoolState>,
}

/// Jobs that can be put in force.
pub struct Prepared(Vec<Work>);

impl Pools {
    pub fn all(&self) -> Vec<Arc<PoolState>> {
        self.jobs.borrow().iter().map(|work| work.state.clone()).collect()
    }

    /// Whose samples they are.
    pub fn tenant(&self) -> TenantId {
        self.tenant.lock().clone()
    }

    /// Makes what new jobs need; those that did not change keep what they have. Reads certificates: blocks.
    pub fn prepare(&self, jobs: &[Arc<Job>]) -> Result<Prepared, ConfigError> {
        let former = self.jobs.borrow().clone();
        let mut out = Vec::with_capacity(jobs.len());
        for job in jobs {
            let before = former.iter().find(|work| work.job.name == job.name);
            if let Some(same) = before.filter(|work| work.job.mark == job.mark) {
                out.push(same.clone());
                continue;
            }
            let client = HttpClient::new(&job.http, None)
                .map_err(|reason| ConfigError::Client { job: job.name.clone(), reason })?;
            let state = before.map_or_else(|| PoolState::new(&job.name), |work| work.state.clone());
            out.push(Work { job: job.clone(), client: Arc::new(client), state });
        }
        Ok(Prepared(out))
    }

    /// These jobs from now on; those that did not change go on undisturbed.
    pub fn set(&self, jobs: Prepared) {
        self.jobs.send_replace(jobs.0);
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("scrape configuration {job:?}: {reason}")]
    Client { job: String, reason: String },
    #[error(transparent)]
    Tenant(#[from] file_tail::ConfigError),
}

impl Config {
    pub fn source(&self) -> Result<Box<dyn Source>, ConfigError> {
        let tenant = file_tail::tenant(self.tenant.as_deref())?;
        self.pools.set(self.pools.prepare(&self.jobs)?);
        *self.pools.tenant.lock() = tenant.clone();
        Ok(Box::new(Scraper { jobs: self.pools.jobs.subscribe(), tenant, counters: self.pools.counters.clone() }))
    }

    /// `2 jobs of prometheus.yml`.
    pub fn summary(&self) -> String {
        let jobs = self.jobs.len();
        let file = self.config_file.as_ref().map(|f| format!(" of {}", f.display())).unwrap_or_default();
        format!("{jobs} {}{file}", if jobs == 1 { "job" } else { "jobs" })
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.summary())
    }
}

/// Files that match a pattern, in order of their names. Blocks.
pub fn files_of(pattern: &str) -> Vec<PathBuf> {
    let mut out = std::collections::BTreeSet::new();
    file_tail::discover::glob(pattern, &mut out);
    out.into_iter().collect()
}

struct Scraper {
    jobs: watch::Receiver<Vec<Work>>,
    tenant: TenantId,
    counters: Arc<Counters>,
}

fn panicked(source: &str, error: &tokio::task::JoinError) -> SourceError {
    SourceError { name: source.to_owned(), reason: format!("a scrape pool panicked: {error}") }
}

#[async_trait::async_trait]
impl Source for Scraper {
    async fn run(self: Box<Self>, ctx: SourceContext) -> Result<(), SourceError> {
        let shared = Shared {
            source: ctx.name.clone(),
            out: ctx.out,
            tenant: self.tenant,
            counters: self.counters,
            stop: ctx.stop.clone(),
            budget: Arc::new(Semaphore::new(BUDGET)),
            seed: id_of_json(&crate::node_name()) as u64,
        };
        let mut jobs = self.jobs;
        let mut pools = JoinSet::new();
        let mut running: HashMap<String, (watch::Sender<Work>, CancellationToken)> = HashMap::new();
        loop {
            let wanted = jobs.borrow_and_update().clone();
            running.retain(|name, (_, gone)| {
                let stays = wanted.iter().any(|work| work.job.name == *name);
                if !stays {
                    gone.cancel();
                }
                stays
            });
            for work in wanted {
                match running.get(&work.job.name) {
                    Some((known, _)) => drop(known.send_if_modified(|now| {
                        let differs = now.job.mark != work.job.mark;
                        if differs {
                            *now = work.clone();
                        }
                        differs
                    })),
                    None => {
                        let (name, gone) = (work.job.name.clone(), CancellationToken::new());
                        let (known, work) = watch::channel(work);
                        pools.spawn(Pool { work, shared: shared.clone(), gone: gone.clone() }.run());
                        running.insert(name, (known, gone));
                    }
                }
            }
            tokio::select! {
                () = ctx.stop.cancelled() => break,
                Ok(()) = jobs.changed() => {}
                Some(Err(e)) = pools.join_next(), if !pools.is_empty() => return Err(panicked(&ctx.name, &e)),
            }
        }
        while let Some(done) = pools.join_next().await {
            done.map_err(|e| panicked(&ctx.name, &e))?;
        }
        Ok(())
    }

    fn signals(&self) -> Signals {
        Signals::METRICS
    }
}
