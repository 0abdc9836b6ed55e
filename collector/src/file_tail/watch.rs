//! Waking up when a watched folder changes. A hint only: every file is looked at periodically as well, so a folder that
//! cannot be watched, or an event that is lost, costs a second and nothing else.

use std::{
    collections::{HashMap, HashSet},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What happened while waiting.
#[derive(Default)]
pub(super) struct Changes {
    /// Folders with files that were written to.
    pub written: HashSet<PathBuf>,
    /// Something came, went or was renamed, or it is not known what happened.
    pub names: bool,
}

pub(super) struct Watch {
    inotify: Option<Inotify>,
    folders: HashMap<WatchDescriptor, PathBuf>,
    watched: HashSet<PathBuf>,
    warned: bool,
}

impl Watch {
    pub(super) fn new() -> Self {
        let inotify = Inotify::init()
            .inspect_err(|error| tracing::warn!(%error, "inotify is not available; files are polled once a second"))
            .ok();
        Watch { inotify, folders: HashMap::new(), watched: HashSet::new(), warned: false }
    }

    /// Watches these folders and no others.
    pub(super) fn set(&mut self, folders: HashSet<PathBuf>) {
        let Some(inotify) = &mut self.inotify else { return };
        let gone: Vec<WatchDescriptor> =
            self.folders.iter().filter(|(_, p)| !folders.contains(*p)).map(|(w, _)| w.clone()).collect();
        for descriptor in gone {
            if let Some(path) = self.folders.remove(&descriptor) {
                self.watched.remove(&path);
            }
            // Fails when the folder itself is gone, and the watch with it.
            let _ = inotify.watches().remove(descriptor);
        }
        let mask = WatchMask::MODIFY
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::ONLYDIR;
        for folder in folders {
            if self.watched.contains(&folder) {
                continue;
            }
            match inotify.watches().add(&folder, mask) {
                Ok(descriptor) => {
                    // Two names of one folder share a descriptor; the first name is enough.
                    self.folders.entry(descriptor).or_insert_with(|| folder.clone());
                    self.watched.insert(folder);
                }
                Err(error) if error.kind() != std::io::ErrorKind::NotFound && !self.warned => {
                    self.warned = true;
                    tracing::warn!(folder = %folder.display(), %error,
                        "cannot watch folder, it is polled once a second; fs.inotify.max_user_watches may be too low");
                }
                Err(_) => {}
            }
        }
    }

    /// Waits for a change, at most `timeout`.
    pub(super) fn wait(&mut self, timeout: Duration) -> Changes {
        let mut changes = Changes::default();
        let Some(inotify) = &mut self.inotify else {
            std::thread::sleep(timeout);
            return changes;
        };
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let fd = inotify.as_fd();
        if !matches!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)), Ok(n) if n > 0) {
            return changes;
        }
        let mut buffer = [0; 16 << 10];
        let Ok(events) = inotify.read_events(&mut buffer) else { return changes };
        for event in events {
            if event.mask == EventMask::MODIFY {
                if let Some(folder) = self.folders.get(&event.wd) {
                    changes.written.insert(folder.clone());
                }
                continue;
            }
            changes.names = true;
            if event.mask.contains(EventMask::IGNORED)
                && let Some(folder) = self.folders.remove(&event.wd)
            {
                self.watched.remove(Path::new(&folder));
            }
        }
        changes
    }
}
