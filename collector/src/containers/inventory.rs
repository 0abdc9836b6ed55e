//! All containers of the machine, looked up again and again, and the files to tail that follow from them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use pipeline::codec::stream::discover_service_name;
use storage::model::Labels;
use tokio_util::sync::CancellationToken;

use super::{Config, Container, Runtime, docker_api::DockerApi, runtime_files, runtime_files::RuntimeFiles};
use crate::file_tail::discover::{Discover, Target};

/// Container labels taken over; the rest is left out.
const LABELS_MAX: usize = 128;

/// What one look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By runtime, then name.
    pub containers: Vec<Container>,
    /// For a person: sockets that are there and do not answer.
    pub notes: Vec<String>,
}

pub struct Inventory {
    config: Config,
    latest: Mutex<Arc<Snapshot>>,
    /// Held over a refresh: one at a time.
    lookups: tokio::sync::Mutex<(Vec<DockerApi>, RuntimeFiles)>,
}

impl Inventory {
    pub fn new(config: Config) -> Self {
        let apis = config.sockets.iter().cloned().map(DockerApi::new).collect();
        Inventory {
            config,
            latest: Mutex::default(),
            lookups: tokio::sync::Mutex::new((apis, RuntimeFiles::default())),
        }
    }

    /// The latest look.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.latest.lock().clone()
    }

    /// Looks now. Never fails: what cannot be had is left out.
    pub async fn refresh(&self) {
        let mut lookups = self.lookups.lock().await;
        let (apis, files) = &mut *lookups;
        let mut notes = Vec::new();
        let mut told = Vec::new();
        for api in apis.iter_mut().filter(|a| a.socket().exists()) {
            match api.containers().await {
                Ok(found) => told.extend(found),
                Err(error) => {
                    let reason = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
                    notes.push(format!("{error}{reason}; the runtime's files are read instead"));
                }
            }
        }
        let (config, mut files_now) = (self.config.clone(), std::mem::take(files));
        let read = tokio::task::spawn_blocking(move || {
            let mut found: Vec<Container> = config.podman.iter().flat_map(|p| files_now.podman(p)).collect();
            found.extend(runtime_files::docker(&config.docker));
            found.extend(runtime_files::cri(&config.pods, &config.pod_links));
            (found, files_now)
        });
        let mut found = Vec::new();
        match read.await {
            Ok((from_files, files_then)) => (found, *files) = (from_files, files_then),
            Err(error) => tracing::error!(%error, "reading the container runtimes' files failed"),
        }
        *self.latest.lock() = Arc::new(Snapshot { containers: merge(told, found), notes });
    }

    /// Looks every so often until stopped.
    pub async fn keep_fresh(&self, every: Duration, stop: &CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            self.refresh().await;
        }
    }
}

/// What the API told goes before what files told, by id. A CRI container is not what Docker knows it by.
fn merge(told: Vec<Container>, found: Vec<Container>) -> Vec<Container> {
    let mut by_id: BTreeMap<String, Container> = told.into_iter().map(|c| (c.id.clone(), c)).collect();
    let mut out = Vec::new();
    for mut c in found {
        if c.runtime == Runtime::Cri {
            if let Some(api) = by_id.remove(&c.id) {
                (c.image, c.labels, c.pid) = (api.image, api.labels, api.pid);
            }
            out.push(c);
        } else if !by_id.contains_key(&c.id) {
            out.push(c);
        }
    }
    out.extend(by_id.into_values());
    out.sort_by(|a, b| (a.runtime, &a.name, &a.id).cmp(&(b.runtime, &b.name, &b.id)));
    out
}

/// The log files of an [`Inventory`].
pub(super) struct Targets {
    inventory: Arc<Inventory>,
    node: String,
}

impl Targets {
    pub(super) fn new(inventory: Arc<Inventory>, node: String) -> Self {
        Targets { inventory, node }
    }
}

impl Discover for Targets {
    fn discover(&mut self) -> Vec<Arc<Target>> {
        let snapshot = self.inventory.snapshot();
        let containers = snapshot.containers.iter();
        containers.flat_map(|c| targets(c, &self.node)).collect()
    }
}

fn targets(c: &Container, node: &str) -> Vec<Arc<Target>> {
    let mut stream = Labels::from_pairs([("node", node), ("container", &c.name)]);
    let mut attrs = Labels::default();
    for (key, value) in c.labels.iter().take(LABELS_MAX) {
        attrs.set(&format!("label_{}", plain_name(key)), value.as_str());
    }
    attrs.set("container_id", c.id.as_str());
    attrs.set("image", c.image.as_str());
    attrs.set("runtime", c.runtime.name());
    if let Some(pod) = &c.pod {
        stream.set("namespace", pod.namespace.as_str());
        stream.set("pod", pod.name.as_str());
        attrs.set("pod_uid", pod.uid.as_str());
    }
    discover_service_name(&mut stream);
    let target = |(path, format): &(std::path::PathBuf, _)| {
        let attrs = Some(attrs.to_json());
        Arc::new(Target { path: path.clone(), format: *format, labels: stream.clone(), attrs, from_start: true })
    };
    c.logs.iter().map(target).collect()
}

/// `app.kubernetes.io/name` as `app_kubernetes_io_name`.
pub fn plain_name(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{containers::Pod, file_tail::formats::Format};

    fn container(id: &str, name: &str, runtime: Runtime) -> Container {
        Container {
            id: id.to_owned(),
            name: name.to_owned(),
            image: "img:1".to_owned(),
            labels: BTreeMap::from([("app.kubernetes.io/name".to_owned(), "shop".to_owned())]),
            runtime,
            logs: vec![("/x/0.log".into(), Format::Cri)],
            pid: None,
            pod: None,
        }
    }

    #[test]
    fn stream_labels_are_few_and_the_rest_is_metadata() {
        let mut c = container("i", "web", Runtime::Cri);
        c.pod = Some(Pod { namespace: "ns".to_owned(), name: "web-0".to_owned(), uid: "u".to_owned() });
        let t = &targets(&c, "n1")[0];
        assert_eq!(
            t.labels.to_json(),
            r#"{"container":"web","namespace":"ns","node":"n1","pod":"web-0","service_name":"web"}"#
        );
        let want = r#"{"container_id":"i","image":"img:1","label_app_kubernetes_io_name":"shop","pod_uid":"u","runtime":"cri"}"#;
        assert_eq!(t.attrs.as_deref(), Some(want));
    }

    #[test]
    fn the_api_goes_before_files_and_nothing_is_there_twice() {
        let told = vec![container("1", "renamed", Runtime::Podman)];
        let found = vec![container("1", "old", Runtime::Podman), container("2", "other", Runtime::Podman)];
        let names: Vec<String> = merge(told, found).into_iter().map(|c| c.name).collect();
        assert_eq!(names, ["other", "renamed"]);
    }
}
