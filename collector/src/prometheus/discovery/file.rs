//! `file_sd_configs`: groups in JSON and YAML files. Watched, and read again at each refresh in any case.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
    time::Duration,
};

use inotify::{Inotify, WatchMask};
use tokio::{io::unix::AsyncFd, time::Instant};

use super::{Publisher, TargetGroup, groups_of, refresh};
use crate::{
    file_tail::discover::glob,
    prometheus::{config::FileSd, job::Findings},
    yaml,
};

const REFRESH: Duration = Duration::from_secs(300);
/// What is written in pieces is read when it rests.
const SETTLE: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
pub struct FileDiscovery {
    patterns: Vec<String>,
    refresh: Duration,
}

impl FileDiscovery {
    pub(in crate::prometheus) fn new(config: &FileSd, folder: &Path, at: &mut Findings<'_>) -> FileDiscovery {
        if config.files.is_empty() {
            at.error("files", "names no file");
        }
        for (i, file) in config.files.iter().enumerate() {
            if ![".json", ".yml", ".yaml"].iter().any(|end| file.ends_with(end)) {
                at.error(&format!("files[{i}]"), format!("path name {file:?} does not end in .json, .yml or .yaml"));
            }
        }
        let absolute = |file: &String| folder.join(file).to_string_lossy().into_owned();
        FileDiscovery {
            patterns: config.files.iter().map(absolute).collect(),
            refresh: refresh(config.refresh_interval, REFRESH, at),
        }
    }

    pub async fn run(&self, publisher: &Publisher) {
        let mut watch = self.watch().inspect_err(|e| {
            tracing::warn!(job = publisher.job, error = %e, "cannot watch the folders of file_sd_configs; they are read at each refresh");
        });
        let mut known = BTreeMap::new();
        loop {
            let (this, old) = (self.clone(), std::mem::take(&mut known));
            match tokio::task::spawn_blocking(move || this.read(old)).await {
                Ok((groups, errors)) => {
                    known = groups;
                    errors.iter().for_each(|e| publisher.failed("file", e));
                }
                Err(e) => publisher.failed("file", &e.to_string()),
            }
            publisher.tell(known.values().flatten().cloned().collect());
            let next = Instant::now() + self.refresh;
            let lost = match &mut watch {
                Ok(fd) => tokio::time::timeout_at(next, changed(fd)).await.is_ok_and(|seen| seen.is_err()),
                Err(_) => {
                    tokio::time::sleep_until(next).await;
                    false
                }
            };
            if lost {
                watch = self.watch();
            }
            tokio::time::sleep(SETTLE).await;
        }
    }

    /// A watch on the folders where the patterns' files lie.
    fn watch(&self) -> std::io::Result<AsyncFd<Inotify>> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
        let folders: HashSet<PathBuf> =
            self.patterns.iter().filter_map(|p| Path::new(p).parent().map(Path::to_owned)).collect();
        let mut first = Ok(());
        let mut watched = 0;
        for folder in folders {
            let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
            match inotify.watches().add(&folder, mask) {
                Ok(_) => watched += 1,
                Err(e) => first = Err(e),
            }
        }
        if watched == 0 {
            first?;
        }
        // Its successor is unsafe for types that may close their descriptor early; this one holds it until it is dropped.
        #[allow(deprecated)]
        AsyncFd::new(inotify)
    }

    /// The groups of each file. Of one that cannot be read those it had, and why.
    fn read(
        &self,
        mut known: BTreeMap<PathBuf, Vec<TargetGroup>>,
    ) -> (BTreeMap<PathBuf, Vec<TargetGroup>>, Vec<String>) {
        let mut files = BTreeSet::new();
        self.patterns.iter().for_each(|p| glob(p, &mut files));
        let (mut out, mut errors) = (BTreeMap::new(), Vec::new());
        for file in files {
            match read(&file) {
                Ok(groups) => drop(out.insert(file, groups)),
                Err(e) => {
                    errors.push(format!("{}: {e}", file.display()));
                    if let Some(old) = known.remove(&file) {
                        out.insert(file, old);
                    }
                }
            }
        }
        (out, errors)
    }
}

/// Waits until something happened.
async fn changed(fd: &mut AsyncFd<Inotify>) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let mut ready = fd.readable_mut().await?;
        match ready.get_inner_mut().read_events(&mut buffer).map(Iterator::count) {
            Ok(n) if n > 0 => return Ok(()),
            Ok(_) => ready.clear_ready(),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(e) => return Err(e),
        }
    }
}

fn read(file: &Path) -> Result<Vec<TargetGroup>, String> {
    let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
    let name = file.to_string_lossy();
    let value = if name.ends_with(".json") {
        serde_json::from_str(&text).map_err(|e| e.to_string())?
    } else if text.trim().is_empty() {
        serde_json::Value::Array(Vec::new())
    } else {
        yaml::Document::parse(&text).map_err(|e| format!("{}:{}: {}", e.place.line, e.place.column, e.message))?.value
    };
    groups_of(value, &name, "__meta_filepath")
}
