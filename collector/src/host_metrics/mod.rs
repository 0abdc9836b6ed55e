//! Source: figures of this machine and its containers, every 15 seconds.
//!
//! **For** cpu, memory, network, file systems and disks from `/proc` and cgroups of version 1, version 2 and both, under
//! the names node_exporter and cAdvisor give them, so that existing dashboards and rules work. **Not for** finding
//! containers ([`crate::containers`]).
//!
//! Every series has `node` and `instance` (the host's name) and `job`: `node` for the host, `cadvisor` for containers.
//! What the kernel does not tell is left out, never reported as zero.

mod cadvisor;
mod cgroup_v1;
mod cgroup_v2;
pub mod exposition;
mod node;
mod procfs;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pipeline::{Batch, Data, Source, SourceContext, SourceError};
use serde::Deserialize;
use storage::model::{MetricBatch, TenantId};
use tokio::time::MissedTickBehavior;

use crate::{
    containers::{self, Container, Inventory},
    file_tail::{ConfigError, tenant},
};
use cadvisor::Hierarchies;
use exposition::Exposition;

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds between looks.
    pub interval_seconds: u64,
    pub host: bool,
    pub containers: bool,
    pub proc: PathBuf,
    pub cgroup: PathBuf,
    pub tenant: Option<String>,
    /// Where containers' names come from.
    pub inventory: containers::Config,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            interval_seconds: 15,
            host: true,
            containers: true,
            proc: "/proc".into(),
            cgroup: "/sys/fs/cgroup".into(),
            tenant: None,
            inventory: containers::Config::default(),
        }
    }
}

impl Config {
    pub fn build(&self) -> Result<HostMetrics, ConfigError> {
        let tenant = tenant(self.tenant.as_deref())?;
        let inventory = Inventory::new(self.inventory.clone());
        Ok(HostMetrics { config: self.clone(), tenant, inventory, dropped: Arc::default() })
    }

    pub fn source(&self) -> Result<Box<dyn Source>, ConfigError> {
        Ok(Box::new(self.build()?))
    }

    /// One look at the host and at the containers given. Blocks. `ts_ms`: Unix milliseconds.
    pub fn collect(&self, containers: &[Container], node: &str, ts_ms: i64) -> Vec<MetricBatch> {
        let mut out = Vec::new();
        if self.host {
            let mut host = Exposition::new("node", node, ts_ms);
            node::collect(&self.proc, &mut host);
            out.push(host.finish());
        }
        if self.containers {
            let mut inside = Exposition::new("cadvisor", node, ts_ms);
            let hierarchies = Hierarchies::new(self.cgroup.clone());
            cadvisor::collect(&self.proc, &hierarchies, containers, &mut inside);
            out.push(inside.finish());
        }
        out.retain(|b| b.points() > 0);
        out
    }
}

pub struct HostMetrics {
    config: Config,
    tenant: TenantId,
    inventory: Inventory,
    dropped: Arc<AtomicU64>,
}

impl HostMetrics {
    /// Points that no sink took.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        self.dropped.clone()
    }
}

#[async_trait::async_trait]
impl Source for HostMetrics {
    async fn run(self: Box<Self>, ctx: SourceContext) -> Result<(), SourceError> {
        let mut ticks = tokio::time::interval(Duration::from_secs(self.config.interval_seconds.clamp(1, 3600)));
        // A look missed is gone: two at once would tell nothing more.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let node = crate::node_name();
        while ctx.stop.run_until_cancelled(ticks.tick()).await.is_some() {
            if self.config.containers {
                self.inventory.refresh().await;
            }
            let (config, node, snapshot) = (self.config.clone(), node.clone(), self.inventory.snapshot());
            let ts_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
            let look = move || config.collect(&snapshot.containers, &node, ts_ms);
            let batches = tokio::task::spawn_blocking(look)
                .await
                .map_err(|e| SourceError { name: ctx.name.clone(), reason: format!("reading failed: {e}") })?;
            for data in batches {
                let points = data.points();
                let batch = Batch::new(self.tenant.clone(), Data::Metrics(data));
                let refusals = batch.refusals.clone();
                match ctx.stop.run_until_cancelled(ctx.out.deliver(batch)).await {
                    None => return Ok(()),
                    // The store tells in the log what it left out.
                    Some(Ok(())) => {
                        let left_out = refusals.take().map_or(0, |r| r.rows() as u64);
                        self.dropped.fetch_add(left_out, Relaxed);
                    }
                    // Not tried again: the next look is as good, and old ones would pile up.
                    Some(Err(error)) => {
                        self.dropped.fetch_add(points as u64, Relaxed);
                        tracing::warn!(source = ctx.name, points, %error, "points dropped");
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
