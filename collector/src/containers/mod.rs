//! Which containers this machine has, and the source of their logs.
//!
//! **For** names, images, labels, log files, processes and cgroups of containers of Docker, Podman and CRI runtimes
//! (containerd, CRI-O under Kubernetes). **Not for** reading the files ([`crate::file_tail`]) or their figures
//! ([`crate::host_metrics`]).
//!
//! The API socket is asked where there is one; whatever it does not tell is read from the runtime's own files.
//!
//! # Labels of a record
//! Stream labels: `node`, `container` (its name), `stream`, `service_name` (by Loki's rule, so the container's name), in
//! Kubernetes also `namespace` and `pod`. Structured metadata (column `attrs`), where known: `container_id`, `image`,
//! `runtime`, `pod_uid`, and each container label as `label_<key>` with every character outside `[A-Za-z0-9_]` as `_`.

pub mod docker_api;
pub mod inventory;
pub mod runtime_files;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use pipeline::{Source, SourceContext, SourceError};
use serde::Deserialize;
use storage::model::TenantId;
use tokio::task::JoinSet;

use crate::file_tail::{ConfigError, FileTail, TailConfig, counters::Counters, formats::Format, tenant};

pub use inventory::{Inventory, Snapshot};

/// Between looks for new containers.
pub(crate) const REFRESH: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runtime {
    Docker,
    Podman,
    Cri,
}

impl Runtime {
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Docker => "docker",
            Runtime::Podman => "podman",
            Runtime::Cri => "cri",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// One container. Texts that are not known are empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// 64 hex digits; empty for a CRI container whose link is missing.
    pub id: String,
    pub name: String,
    pub image: String,
    pub labels: BTreeMap<String, String>,
    pub runtime: Runtime,
    /// Log files being written, without rotated ones.
    pub logs: Vec<(PathBuf, Format)>,
    /// First process, while running.
    pub pid: Option<u32>,
    pub pod: Option<Pod>,
}

/// Where runtimes keep their files. The defaults are those of a usual installation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Docker-compatible API sockets; those that are not there are passed over.
    pub sockets: Vec<PathBuf>,
    /// Podman's storage folders, each with its folder of run-time state.
    pub podman: Vec<PodmanFolders>,
    /// Docker's folder.
    pub docker: PathBuf,
    /// Log folder of CRI runtimes, and of the links to its files.
    pub pods: PathBuf,
    pub pod_links: PathBuf,
    pub tenant: Option<String>,
    pub tail: TailConfig,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodmanFolders {
    /// For root `/var/lib/containers/storage`.
    pub storage: PathBuf,
    /// For root `/run/containers/storage`.
    pub run: PathBuf,
    /// File of events, which alone of Podman's plain files has the containers' labels. For root
    /// `/run/libpod/events/events.log`.
    pub events: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        let mut sockets = vec!["/var/run/docker.sock".into(), "/run/podman/podman.sock".into()];
        let mut podman = vec![PodmanFolders {
            storage: "/var/lib/containers/storage".into(),
            run: "/run/containers/storage".into(),
            events: "/run/libpod/events/events.log".into(),
        }];
        for (home, uid) in runtime_files::homes() {
            let run = PathBuf::from(format!("/run/user/{uid}"));
            sockets.extend([run.join("podman/podman.sock"), run.join("docker.sock")]);
            podman.push(PodmanFolders {
                storage: home.join(".local/share/containers/storage"),
                run: run.join("containers"),
                events: run.join("libpod/tmp/events/events.log"),
            });
        }
        Config {
            sockets,
            podman,
            docker: "/var/lib/docker".into(),
            pods: "/var/log/pods".into(),
            pod_links: "/var/log/containers".into(),
            tenant: None,
            tail: TailConfig::default(),
        }
    }
}

impl Config {
    pub fn build(&self) -> Result<ContainerLogs, ConfigError> {
        let tenant: TenantId = tenant(self.tenant.as_deref())?;
        let inventory = Arc::new(Inventory::new(self.clone()));
        let discover = Box::new(inventory::Targets::new(inventory.clone(), crate::node_name()));
        let tail = FileTail::new(self.tail.settings(tenant, REFRESH), discover);
        Ok(ContainerLogs { inventory, tail })
    }

    pub fn source(&self) -> Result<Box<dyn Source>, ConfigError> {
        Ok(Box::new(self.build()?))
    }
}

/// The logs of all containers of this machine.
pub struct ContainerLogs {
    inventory: Arc<Inventory>,
    tail: FileTail,
}

impl ContainerLogs {
    pub fn counters(&self) -> Arc<Counters> {
        self.tail.counters()
    }
}

#[async_trait::async_trait]
impl Source for ContainerLogs {
    async fn run(self: Box<Self>, ctx: SourceContext) -> Result<(), SourceError> {
        self.inventory.refresh().await;
        let mut tasks = JoinSet::new();
        let (inventory, stop) = (self.inventory.clone(), ctx.stop.clone());
        tasks.spawn(async move { inventory.keep_fresh(REFRESH, &stop).await });
        let outcome = Box::new(self.tail).run(ctx).await;
        tasks.shutdown().await;
        outcome
    }
}

/// What is there when the process starts, for its first lines of output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Containers with a log to read, running ones among them, by runtime.
    pub containers: usize,
    /// For a person, one line each, for example `found 3 containers (Podman)`.
    pub summary: Vec<String>,
}

/// Looks once, with the defaults.
pub async fn detect() -> Found {
    detect_with(&Config::default()).await
}

/// Looks once.
pub async fn detect_with(config: &Config) -> Found {
    let inventory = Inventory::new(config.clone());
    inventory.refresh().await;
    let snapshot = inventory.snapshot();
    let mut by_runtime: BTreeMap<Runtime, usize> = BTreeMap::new();
    for c in snapshot.containers.iter().filter(|c| !c.logs.is_empty()) {
        *by_runtime.entry(c.runtime).or_default() += 1;
    }
    let mut summary: Vec<String> = by_runtime
        .iter()
        .map(|(runtime, n)| {
            let name = match runtime {
                Runtime::Docker => "Docker",
                Runtime::Podman => "Podman",
                Runtime::Cri => "Kubernetes",
            };
            format!("found {n} container{} ({name})", if *n == 1 { "" } else { "s" })
        })
        .collect();
    if summary.is_empty() {
        summary.push("found no containers; new ones are taken up within seconds".to_owned());
    }
    summary.extend(snapshot.notes.iter().cloned());
    Found { containers: by_runtime.values().sum(), summary }
}
