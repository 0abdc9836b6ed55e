//! Source: scrapes targets as Prometheus does, from Prometheus' own `scrape_configs`.
//!
//! **For** asking targets for their metrics at their interval, finding them, and saying what is wrong with a configuration.
//! **Not for** rules and alerts of a Prometheus file: [`config::File`] reads them, whoever evaluates them takes them.
//!
//! A file becomes [`job::Job`]s ([`job::check`]); each has a pool ([`scrape_pool`]) of targets that its discoveries
//! ([`discovery`]) name, each target its loop ([`scrape_loop`]); [`series`] makes rows of what a target exposed.
//!
//! What Prometheus knows and we do not is told at start and by `sightline check`, with its place; the rest is done.

mod client;
pub mod config;
pub mod counters;
pub mod discovery;
pub mod job;
mod oauth2;
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

use std::{path::PathBuf, sync::Arc};

use pipeline::{Signals, Source, SourceContext, SourceError};
use serde::Deserialize;
use storage::model::{TenantId, labels::id_of_json};
use tokio::{sync::Semaphore, task::JoinSet};

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

/// What a source shows of itself.
#[derive(Default)]
pub struct Pools {
    pools: parking_lot::Mutex<(TenantId, Vec<Arc<PoolState>>)>,
    pub counters: Arc<Counters>,
}

impl Pools {
    pub fn all(&self) -> Vec<Arc<PoolState>> {
        self.pools.lock().1.clone()
    }

    /// Whose samples they are.
    pub fn tenant(&self) -> TenantId {
        self.pools.lock().0.clone()
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
        let mut jobs = Vec::with_capacity(self.jobs.len());
        for job in &self.jobs {
            let client = HttpClient::new(&job.http, None)
                .map_err(|reason| ConfigError::Client { job: job.name.clone(), reason })?;
            jobs.push((job.clone(), Arc::new(client), PoolState::new(&job.name)));
        }
        *self.pools.pools.lock() = (tenant.clone(), jobs.iter().map(|(_, _, state)| state.clone()).collect());
        Ok(Box::new(Scraper { jobs, tenant, counters: self.pools.counters.clone() }))
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
    jobs: Vec<(Arc<Job>, Arc<HttpClient>, Arc<PoolState>)>,
    tenant: TenantId,
    counters: Arc<Counters>,
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
        let mut pools = JoinSet::new();
        for (job, client, state) in self.jobs {
            pools.spawn(Pool { job, state, client, shared: shared.clone() }.run());
        }
        while let Some(done) = pools.join_next().await {
            done.map_err(|e| SourceError { name: ctx.name.clone(), reason: format!("a scrape pool panicked: {e}") })?;
        }
        ctx.stop.cancelled().await;
        Ok(())
    }

    fn signals(&self) -> Signals {
        Signals::METRICS
    }
}
