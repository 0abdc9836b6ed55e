//! Where targets come from. Each discovery tells all it knows whenever that changed; what it told stays while it fails.

mod dns;
mod docker;
mod file;
mod http;
mod kubernetes;
mod kubernetes_targets;
pub mod resolver;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::Deserialize;
use storage::model::Labels;
use tokio::sync::Notify;

use super::{
    config::{Discoveries, Span, StaticConfig, Text},
    counters::Counters,
    job::Findings,
};

/// Targets one discovery tells at most.
const TARGETS_MAX: usize = 100_000;
/// Bytes of one answer of a discovery's server.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Targets with what they have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TargetGroup {
    /// Whence: a file, an address, a pod.
    pub source: String,
    pub labels: Labels,
    /// Each with `__address__`.
    pub targets: Vec<Labels>,
}

/// What the discoveries of a job told last.
pub struct Feed {
    slots: Mutex<Vec<Arc<Vec<TargetGroup>>>>,
    changed: Notify,
}

impl Feed {
    pub fn new(discoveries: usize) -> Feed {
        Feed { slots: Mutex::new(vec![Arc::default(); discoveries]), changed: Notify::new() }
    }

    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn groups(&self) -> Vec<Arc<Vec<TargetGroup>>> {
        self.slots.lock().clone()
    }
}

/// Where one discovery tells what it knows.
pub struct Publisher {
    feed: Arc<Feed>,
    slot: usize,
    pub job: String,
    counters: Arc<Counters>,
}

impl Publisher {
    pub fn new(feed: Arc<Feed>, slot: usize, job: &str, counters: Arc<Counters>) -> Publisher {
        Publisher { feed, slot, job: job.to_owned(), counters }
    }

    /// Everything known now.
    pub fn tell(&self, groups: Vec<TargetGroup>) {
        let mut slots = self.feed.slots.lock();
        let Some(slot) = slots.get_mut(self.slot) else { return };
        if **slot != groups {
            *slot = Arc::new(groups);
            self.feed.changed.notify_one();
        }
    }

    pub fn failed(&self, what: &str, error: &str) {
        Counters::add(&self.counters.discovery_failures, 1);
        tracing::warn!(job = self.job, discovery = what, error, "discovery failed; targets known before stay");
    }
}

#[derive(Clone)]
pub enum Discovery {
    Static(Arc<Vec<TargetGroup>>),
    File(file::FileDiscovery),
    Http(Arc<http::HttpDiscovery>),
    Dns(dns::DnsDiscovery),
    Docker(Arc<docker::DockerDiscovery>),
    Kubernetes(Arc<kubernetes::KubernetesDiscovery>),
}

impl Discovery {
    pub(super) fn of(config: Discoveries<'_>, folder: &Path, at: &mut Findings<'_>) -> Vec<Discovery> {
        let mut out = Vec::new();
        if !config.fixed.is_empty() {
            let group = |(i, c): (usize, &StaticConfig)| group_of(i.to_string(), c.targets.clone(), c.labels.clone());
            out.push(Discovery::Static(Arc::new(config.fixed.iter().enumerate().map(group).collect())));
        }
        for (i, c) in config.file.iter().enumerate() {
            let mut at = at.below(&format!("file_sd_configs[{i}]"));
            out.push(Discovery::File(file::FileDiscovery::new(c, folder, &mut at)));
        }
        for (i, c) in config.http.iter().enumerate() {
            let mut at = at.below(&format!("http_sd_configs[{i}]"));
            out.push(Discovery::Http(Arc::new(http::HttpDiscovery::new(c, folder, &mut at))));
        }
        for (i, c) in config.dns.iter().enumerate() {
            let mut at = at.below(&format!("dns_sd_configs[{i}]"));
            out.push(Discovery::Dns(dns::DnsDiscovery::new(c, &mut at)));
        }
        for (i, c) in config.docker.iter().enumerate() {
            let mut at = at.below(&format!("docker_sd_configs[{i}]"));
            out.push(Discovery::Docker(Arc::new(docker::DockerDiscovery::new(c, folder, &mut at))));
        }
        for (i, c) in config.kubernetes.iter().enumerate() {
            let mut at = at.below(&format!("kubernetes_sd_configs[{i}]"));
            out.push(Discovery::Kubernetes(Arc::new(kubernetes::KubernetesDiscovery::new(c, folder, &mut at))));
        }
        out
    }

    /// Tells until it is dropped; returns when nothing more will change.
    pub async fn run(&self, publisher: Publisher) {
        match self {
            Discovery::Static(groups) => publisher.tell(groups.to_vec()),
            Discovery::File(d) => d.run(&publisher).await,
            Discovery::Http(d) => d.run(&publisher).await,
            Discovery::Dns(d) => d.run(&publisher).await,
            Discovery::Docker(d) => d.run(&publisher).await,
            Discovery::Kubernetes(d) => d.run(&publisher).await,
        }
    }
}

/// A group as files and HTTP answers write it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    targets: Vec<Text>,
    #[serde(default)]
    labels: BTreeMap<String, Text>,
}

fn group_of(source: String, targets: Vec<Text>, labels: BTreeMap<String, Text>) -> TargetGroup {
    TargetGroup {
        source,
        labels: Labels::from_pairs(labels.into_iter().map(|(n, v)| (n, v.0))),
        targets: targets.into_iter().map(|t| Labels::from_pairs([("__address__", t.0)])).collect(),
    }
}

/// Groups of a file or an answer, each with a label that says whence it is.
fn groups_of(value: serde_json::Value, source: &str, meta: &str) -> Result<Vec<TargetGroup>, String> {
    let written: Vec<Written> = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let total: usize = written.iter().map(|w| w.targets.len()).sum();
    if total > TARGETS_MAX {
        return Err(format!("{total} targets, more than {TARGETS_MAX}"));
    }
    let group = |(i, w): (usize, Written)| {
        let mut group = group_of(format!("{source}:{i}"), w.targets, w.labels);
        group.labels.set(meta, source);
        group
    };
    Ok(written.into_iter().enumerate().map(group).collect())
}

/// A refresh interval, and the way it is given when it is not.
fn refresh(span: Option<Span>, default: Duration, at: &mut Findings<'_>) -> Duration {
    match span {
        Some(Span(d)) if d.is_zero() => {
            at.error("refresh_interval", "is 0; expected more");
            default
        }
        Some(Span(d)) => d,
        None => default,
    }
}

/// A name as part of a label's: what cannot be in one becomes `_`.
fn sanitize(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

/// `host:port`, with brackets around an IPv6 address.
fn host_port(host: &str, port: impl std::fmt::Display) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The body of an answer of 200.
async fn body(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    if response.status() != ::http::StatusCode::OK {
        return Err(format!("server returned HTTP status {}", response.status()));
    }
    let mut out = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| super::client::chain(&e))? {
        if out.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(format!("an answer of more than {ANSWER_BYTES_MAX} bytes"));
        }
        out.extend_from_slice(&chunk);
    }
    Ok(out)
}
