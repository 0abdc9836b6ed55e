//! Containers as their runtimes' own files tell them, for machines without an API socket.
//!
//! Reading is best effort: a file that is missing, unreadable or not as expected leaves its container out or its text
//! empty, and is looked at again next time.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{Container, Pod, PodmanFolders, Runtime};
use crate::file_tail::formats::Format;

/// Most containers one look gives.
pub const CONTAINERS_MAX: usize = 10_000;
/// Longest file read whole.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Read of an event file at once; older events beyond it are not seen.
const EVENT_BYTES_MAX: u64 = 8 << 20;
/// Storage drivers name a folder each.
const DRIVERS: [&str; 4] = ["overlay", "vfs", "btrfs", "zfs"];

/// Home folders of people, with their owners' user ids.
pub(super) fn homes() -> Vec<(PathBuf, u32)> {
    let Ok(entries) = fs::read_dir("/home") else { return Vec::new() };
    entries.flatten().filter_map(|e| e.metadata().ok().map(|m| (e.path(), m.uid()))).take(256).collect()
}

fn read_bounded(path: &Path) -> Option<Vec<u8>> {
    let file = fs::File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&read_bounded(path)?)
        .inspect_err(|error| tracing::debug!(path = %path.display(), %error, "not understood"))
        .ok()
}

#[derive(Deserialize)]
struct StorageContainer {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    image: String,
    /// JSON of its own.
    #[serde(default)]
    metadata: String,
}

#[derive(Default, Deserialize)]
struct StorageMetadata {
    #[serde(rename = "image-name", default)]
    image_name: String,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Type", default)]
    kind: &'a str,
    #[serde(rename = "Image", default)]
    image: Option<String>,
    #[serde(rename = "Attributes", default)]
    attributes: Option<BTreeMap<String, String>>,
}

/// What Podman's event file told of a container.
#[derive(Clone, Default)]
struct Told {
    labels: BTreeMap<String, String>,
    image: String,
}

/// Follows one event file.
#[derive(Default)]
struct Events {
    inode: u64,
    read_to: u64,
    told: HashMap<String, Told>,
}

impl Events {
    /// Reads what is new. What was told is kept when the file is rotated.
    fn follow(&mut self, path: &Path) -> io::Result<()> {
        let mut file = fs::File::open(path)?;
        let meta = file.metadata()?;
        if meta.ino() != self.inode || meta.len() < self.read_to {
            (self.inode, self.read_to) = (meta.ino(), 0);
        }
        if meta.len() == self.read_to {
            return Ok(());
        }
        let from = self.read_to.max(meta.len().saturating_sub(EVENT_BYTES_MAX));
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(EVENT_BYTES_MAX).read_to_end(&mut bytes)?;
        let whole = memchr::memrchr(b'\n', &bytes).map_or(0, |n| n + 1);
        for line in bytes[..whole].split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let Ok(event) = serde_json::from_slice::<Event<'_>>(line) else { continue };
            if event.kind != "container" || event.id.is_empty() || self.told.len() >= CONTAINERS_MAX {
                continue;
            }
            let told = self.told.entry(event.id).or_default();
            if let Some(labels) = event.attributes.filter(|a| !a.is_empty()) {
                told.labels = labels;
            }
            if let Some(image) = event.image.filter(|i| !i.is_empty()) {
                told.image = image;
            }
        }
        self.read_to = from + whole as u64;
        Ok(())
    }
}

/// Reads the files of all runtimes; remembers what is costly to read again.
#[derive(Default)]
pub struct RuntimeFiles {
    events: HashMap<PathBuf, Events>,
}

impl RuntimeFiles {
    /// Containers of one Podman storage whose log is a file.
    pub fn podman(&mut self, folders: &PodmanFolders) -> Vec<Container> {
        let mut found = Vec::new();
        for driver in DRIVERS {
            let kept = folders.storage.join(format!("{driver}-containers"));
            let run = folders.run.join(format!("{driver}-containers"));
            let lists = [kept.join("containers.json"), run.join("volatile-containers.json")];
            let listed = lists.iter().filter_map(|l| read_json::<Vec<StorageContainer>>(l)).flatten();
            for c in listed.take(CONTAINERS_MAX) {
                // An id becomes part of a path.
                if c.id.is_empty() || !c.id.bytes().all(|b| b.is_ascii_alphanumeric()) {
                    continue;
                }
                let log = kept.join(&c.id).join("userdata/ctr.log");
                let meta: StorageMetadata = serde_json::from_str(&c.metadata).unwrap_or_default();
                let name = c.names.into_iter().next().unwrap_or(meta.name);
                let pid = read_bounded(&run.join(&c.id).join("userdata/pidfile"));
                let pid = pid.and_then(|p| std::str::from_utf8(&p).ok()?.trim().parse().ok());
                found.push(Container {
                    name: if name.is_empty() { c.id.chars().take(12).collect() } else { name },
                    image: if meta.image_name.is_empty() { c.image } else { meta.image_name },
                    labels: BTreeMap::new(),
                    runtime: Runtime::Podman,
                    logs: if log.is_file() { vec![(log, Format::Cri)] } else { Vec::new() },
                    pid,
                    pod: None,
                    id: c.id,
                });
            }
        }
        if !found.is_empty() {
            let events = self.events.entry(folders.events.clone()).or_default();
            if let Err(error) = events.follow(&folders.events) {
                tracing::debug!(path = %folders.events.display(), %error, "no labels from Podman's events");
            }
            for c in &mut found {
                if let Some(told) = events.told.get(&c.id) {
                    c.labels.clone_from(&told.labels);
                    if c.image.is_empty() {
                        c.image.clone_from(&told.image);
                    }
                }
            }
        }
        found
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerContainer {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    log_path: String,
    #[serde(default)]
    config: DockerConfig,
    #[serde(default)]
    state: DockerState,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerConfig {
    #[serde(default)]
    image: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerState {
    #[serde(default)]
    running: bool,
    #[serde(default)]
    pid: u32,
}

/// Containers in Docker's folder.
pub fn docker(folder: &Path) -> Vec<Container> {
    let Ok(entries) = fs::read_dir(folder.join("containers")) else { return Vec::new() };
    let read = |e: fs::DirEntry| {
        let c: DockerContainer = read_json(&e.path().join("config.v2.json"))?;
        let log = match c.log_path.as_str() {
            "" => e.path().join(format!("{}-json.log", e.file_name().to_string_lossy())),
            path => PathBuf::from(path),
        };
        Some(Container {
            name: c.name.trim_start_matches('/').to_owned(),
            image: c.config.image,
            labels: c.config.labels.unwrap_or_default(),
            runtime: Runtime::Docker,
            logs: if log.is_file() { vec![(log, Format::DockerJson)] } else { Vec::new() },
            pid: (c.state.running && c.state.pid > 0).then_some(c.state.pid),
            pod: None,
            id: c.id,
        })
    };
    entries.flatten().take(CONTAINERS_MAX).filter_map(read).collect()
}

/// Containers in the log folder of a CRI runtime: `<namespace>_<pod>_<uid>/<container>/<restart>.log`. `links`: the folder of
/// `<pod>_<namespace>_<container>-<id>.log`, which alone has the ids.
pub fn cri(pods: &Path, links: &Path) -> Vec<Container> {
    let ids = ids_of_links(links);
    let mut found = Vec::new();
    for pod in fs::read_dir(pods).into_iter().flatten().flatten() {
        let name = pod.file_name().to_string_lossy().into_owned();
        let mut parts = name.splitn(3, '_');
        let (Some(namespace), Some(pod_name), Some(uid)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        for container in fs::read_dir(pod.path()).into_iter().flatten().flatten() {
            if found.len() >= CONTAINERS_MAX {
                return found;
            }
            let name = container.file_name().to_string_lossy().into_owned();
            let logs: Vec<(PathBuf, Format)> = fs::read_dir(container.path())
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|f| log_of_restart(&f.path()))
                .take(64)
                .collect();
            if logs.is_empty() {
                continue;
            }
            found.push(Container {
                id: ids.get(&format!("{pod_name}_{namespace}_{name}")).cloned().unwrap_or_default(),
                name,
                image: String::new(),
                labels: BTreeMap::new(),
                runtime: Runtime::Cri,
                logs,
                pid: None,
                pod: Some(Pod { namespace: namespace.to_owned(), name: pod_name.to_owned(), uid: uid.to_owned() }),
            });
        }
    }
    found
}

/// `<digits>.log`, followed to where it leads: under Docker it is a link to a json-file.
fn log_of_restart(path: &Path) -> Option<(PathBuf, Format)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".log")?;
    if stem.is_empty() || !stem.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let real = fs::canonicalize(path).ok()?;
    let json = real.to_str().is_some_and(|p| p.ends_with("-json.log"));
    Some((real, if json { Format::DockerJson } else { Format::Cri }))
}

fn ids_of_links(links: &Path) -> HashMap<String, String> {
    let entries = fs::read_dir(links).into_iter().flatten().flatten();
    let split = |e: fs::DirEntry| {
        let name = e.file_name().to_str()?.strip_suffix(".log")?.to_owned();
        let (of, id) = name.rsplit_once('-')?;
        (id.len() == 64).then(|| (of.to_owned(), id.to_owned()))
    };
    entries.take(CONTAINERS_MAX).filter_map(split).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn podman_containers_have_names_from_storage_and_labels_from_events() {
        let dir = tempfile::tempdir().unwrap();
        let folders = PodmanFolders {
            storage: dir.path().join("storage"),
            run: dir.path().join("run"),
            events: dir.path().join("events.log"),
        };
        write(
            &folders.storage.join("overlay-containers/containers.json"),
            r#"[{"id":"abc1","names":["web"],"image":"sha","metadata":"{\"image-name\":\"docker.io/library/nginx:1\"}"},
                {"id":"../../etc","names":["evil"]}]"#,
        );
        write(&folders.storage.join("overlay-containers/abc1/userdata/ctr.log"), "");
        write(&folders.run.join("overlay-containers/abc1/userdata/pidfile"), "42\n");
        write(&folders.events, "{\"ID\":\"abc1\",\"Type\":\"container\",\"Attributes\":{\"app\":\"shop\"}}\n{\"ID\"");
        let mut files = RuntimeFiles::default();
        let found = files.podman(&folders);
        assert_eq!(found.len(), 1);
        let c = &found[0];
        assert_eq!((c.name.as_str(), c.image.as_str(), c.pid), ("web", "docker.io/library/nginx:1", Some(42)));
        assert_eq!((c.labels["app"].as_str(), c.logs.len()), ("shop", 1));
        // The rest of a half line is read when it is there; what was told survives a rotation of the file.
        fs::remove_file(&folders.events).unwrap();
        write(&folders.events, "");
        assert_eq!(files.podman(&folders)[0].labels["app"], "shop");
    }

    #[test]
    fn docker_containers_come_from_their_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let c = dir.path().join("containers/d1");
        write(
            &c.join("config.v2.json"),
            r#"{"ID":"d1","Name":"/db","Config":{"Image":"postgres:16","Labels":{"tier":"data"}},
               "State":{"Running":true,"Pid":7},"LogPath":""}"#,
        );
        write(&c.join("d1-json.log"), "");
        write(&dir.path().join("containers/broken/config.v2.json"), "{");
        let found = docker(dir.path());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].pid), ("db", Some(7)));
        assert_eq!(found[0].logs, [(c.join("d1-json.log"), Format::DockerJson)]);
    }

    #[test]
    fn cri_containers_come_from_folder_names() {
        let dir = tempfile::tempdir().unwrap();
        let (pods, links) = (dir.path().join("pods"), dir.path().join("containers"));
        write(&pods.join("shop_web-0_1234-5678/app/0.log"), "");
        write(&pods.join("shop_web-0_1234-5678/app/1.log"), "");
        write(&pods.join("shop_web-0_1234-5678/app/0.log.20260101-000000"), "");
        let id = "a".repeat(64);
        write(&links.join(format!("web-0_shop_app-{id}.log")), "");
        let found = cri(&pods, &links);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].id.as_str(), found[0].logs.len()), (id.as_str(), 2));
        let pod = found[0].pod.as_ref().unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()), ("shop", "web-0", "1234-5678"));
    }
}
