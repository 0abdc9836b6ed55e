//! Objects in a folder.
//!
//! An object is written to `tmp/` under the root, synced, then linked (create) or renamed (overwrite) into place, then
//! the folder is synced. What a crash leaves in `tmp/` goes with [`LocalStore::clean_temporary`].

use std::{
    collections::HashSet,
    io::{self, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{ObjectInfo, ObjectWriter, Objects, PutMode};
use crate::vfs::{OsVfs, Vfs, VfsFile};

/// Folder below the root for objects that are not complete yet.
const TEMPORARY: &str = "tmp";

/// Distinguishes the temporary files of one process, also of several stores on one folder.
static NEXT_TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// Objects below one folder. Clones share it.
#[derive(Clone, Debug)]
pub struct LocalStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    vfs: Arc<dyn Vfs>,
    root: PathBuf,
    /// Folders known to exist durably, so that a put does not walk and sync its parents each time.
    folders: Mutex<HashSet<PathBuf>>,
}

/// Bytes read whole: log entries and checkpoints. Parts are read in ranges.
const GET_BYTES_MAX: usize = 1 << 30;

/// Folders remembered at most; more (very many days) only cost a look at the disk.
const FOLDERS_KNOWN_MAX: usize = 65_536;

impl LocalStore {
    /// On the real file system. `root` must exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::on(Arc::new(OsVfs), root)
    }

    /// On any file system. `root` must exist.
    pub fn on(vfs: Arc<dyn Vfs>, root: impl Into<PathBuf>) -> Self {
        LocalStore { inner: Arc::new(Inner { vfs, root: root.into(), folders: Mutex::new(HashSet::new()) }) }
    }

    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The file of an object.
    pub fn file_of(&self, path: &str) -> io::Result<PathBuf> {
        let mut file = self.inner.root.clone();
        for segment in path.split('/') {
            // Only plain names: nothing empty, no `.` or `..`, no separator of any platform, no NUL.
            if segment.is_empty() || segment == "." || segment == ".." || segment.contains(['\\', '\0']) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid object path {path:?}")));
            }
            file.push(segment);
        }
        Ok(file)
    }

    /// Removes what unfinished writes left. Only for the holder of the data directory, before anything is written.
    pub fn clean_temporary(&self) -> io::Result<usize> {
        let folder = self.inner.root.join(TEMPORARY);
        let names = match self.inner.vfs.list_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            names => names?,
        };
        for name in &names {
            self.inner.vfs.remove_file(&folder.join(name))?;
        }
        Ok(names.len())
    }

    /// Gives an object another name, which must be free.
    pub fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.file_of(from)?, self.file_of(to)?);
        self.inner.ensure_parent(&to)?;
        self.inner.vfs.hard_link(&from, &to)?;
        self.inner.sync_parent(&to)?;
        self.inner.vfs.remove_file(&from)?;
        self.inner.sync_parent(&from)
    }

    fn temporary(&self) -> io::Result<(PathBuf, Arc<dyn VfsFile>)> {
        let folder = self.inner.root.join(TEMPORARY);
        self.inner.ensure_folder(&folder)?;
        loop {
            let n = NEXT_TEMPORARY.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{}-{n}", std::process::id()));
            match self.inner.vfs.create_new(&path) {
                Ok(file) => return Ok((path, file)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            }
        }
    }
}

impl Inner {
    /// Creates `folder` and its parents, durably.
    fn ensure_folder(&self, folder: &Path) -> io::Result<()> {
        if folder == self.root || self.folders.lock().contains(folder) {
            return Ok(());
        }
        self.vfs.create_dir_all(folder)?;
        let mut folders = self.folders.lock();
        if folders.len() < FOLDERS_KNOWN_MAX {
            folders.insert(folder.to_owned());
        }
        Ok(())
    }

    fn ensure_parent(&self, file: &Path) -> io::Result<()> {
        file.parent().map_or(Ok(()), |p| self.ensure_folder(p))
    }

    fn sync_parent(&self, file: &Path) -> io::Result<()> {
        file.parent().map_or(Ok(()), |p| self.vfs.sync_dir(p))
    }
}

impl Objects for LocalStore {
    fn put(&self, path: &str, bytes: &[u8], mode: PutMode) -> io::Result<()> {
        let target = self.file_of(path)?;
        let (temporary, file) = self.temporary()?;
        let placed = (|| {
            file.append(bytes)?;
            file.sync_data()?;
            self.inner.ensure_parent(&target)?;
            match mode {
                // A hard link fails if the name exists: the one atomic "create whole" that every Unix has.
                PutMode::Create => self.inner.vfs.hard_link(&temporary, &target),
                PutMode::Overwrite => self.inner.vfs.rename(&temporary, &target),
            }
        })();
        if placed.is_err() || mode == PutMode::Create {
            let _ = self.inner.vfs.remove_file(&temporary);
        }
        placed?;
        self.inner.sync_parent(&target)
    }

    fn get(&self, path: &str) -> io::Result<Bytes> {
        self.inner.vfs.read(&self.file_of(path)?, GET_BYTES_MAX).map(Bytes::from)
    }

    fn get_range(&self, path: &str, range: Range<u64>) -> io::Result<Bytes> {
        let file = self.inner.vfs.open_read(&self.file_of(path)?)?;
        let len = file.len()?;
        let end = range.end.min(len);
        if range.start >= end {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("range {range:?} of {path} lies behind its {len} bytes"),
            ));
        }
        let mut bytes = vec![0; (end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(Bytes::from(bytes))
    }

    fn head(&self, path: &str) -> io::Result<ObjectInfo> {
        let meta = self.inner.vfs.metadata(&self.file_of(path)?)?;
        if meta.is_dir {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{path} is a folder")));
        }
        Ok(ObjectInfo { path: path.to_owned(), size: meta.len, modified: meta.modified })
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<ObjectInfo>> {
        let mut out = Vec::new();
        let mut folders = match prefix {
            "" => vec![(self.inner.root.clone(), String::new())],
            p => vec![(self.file_of(p)?, format!("{p}/"))],
        };
        while let Some((folder, prefix)) = folders.pop() {
            let names = match self.inner.vfs.list_dir(&folder) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                names => names?,
            };
            for name in names {
                let file = folder.join(&name);
                let meta = match self.inner.vfs.metadata(&file) {
                    // Deleted since it was listed.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    meta => meta?,
                };
                if !meta.is_dir {
                    out.push(ObjectInfo { path: format!("{prefix}{name}"), size: meta.len, modified: meta.modified });
                } else if !(prefix.is_empty() && name == TEMPORARY) {
                    folders.push((file, format!("{prefix}{name}/")));
                }
            }
        }
        out.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(out)
    }

    fn delete(&self, path: &str) -> io::Result<()> {
        self.inner.vfs.remove_file(&self.file_of(path)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.file_of(from)?, self.file_of(to)?);
        self.inner.ensure_parent(&to)?;
        self.inner.vfs.rename(&from, &to)?;
        self.inner.sync_parent(&to)?;
        self.inner.sync_parent(&from)
    }

    fn settle(&self, path: &str) -> io::Result<()> {
        self.inner.sync_parent(&self.file_of(path)?)
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn ObjectWriter>> {
        let target = self.file_of(path)?;
        let (temporary, file) = self.temporary()?;
        Ok(Box::new(LocalWriter {
            inner: self.inner.clone(),
            temporary: Some(temporary),
            target,
            file,
            buffer: Vec::new(),
            written: 0,
            unsynced: 0,
        }))
    }
}

/// Bytes gathered before a write to the file.
const WRITE_BUFFER_BYTES: usize = 256 << 10;

/// Bytes after which a file being written is synced: a part in one go would keep the disk busy for a while, and the sync of
/// the write-ahead log, for which senders wait, behind it.
const SYNC_BYTES: usize = 2 << 20;

struct LocalWriter {
    inner: Arc<Inner>,
    /// `None` once in place.
    temporary: Option<PathBuf>,
    target: PathBuf,
    file: Arc<dyn VfsFile>,
    buffer: Vec<u8>,
    written: u64,
    /// Bytes in the file since it was last synced.
    unsynced: usize,
}

impl Write for LocalWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(buf);
        self.written += buf.len() as u64;
        if self.buffer.len() >= WRITE_BUFFER_BYTES {
            self.flush()?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.append();
        if flushed.is_err() {
            // Some of it may have been written: the writer must not be used again, and `finish` must not pass.
            self.discard();
        }
        flushed
    }
}

impl LocalWriter {
    fn append(&mut self) -> io::Result<()> {
        self.file.append(&self.buffer)?;
        self.unsynced += self.buffer.len();
        self.buffer.clear();
        if self.unsynced >= SYNC_BYTES {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(())
    }

    fn discard(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            let _ = self.inner.vfs.remove_file(&temporary);
        }
    }
}

impl ObjectWriter for LocalWriter {
    fn finish(mut self: Box<Self>) -> io::Result<u64> {
        self.flush()?;
        self.file.sync_data()?;
        self.inner.ensure_parent(&self.target)?;
        let temporary = self.temporary.as_ref().ok_or_else(|| io::Error::other("an earlier write of it failed"))?;
        self.inner.vfs.rename(temporary, &self.target)?;
        self.temporary = None;
        self.inner.sync_parent(&self.target)?;
        Ok(self.written)
    }

    fn written(&self) -> u64 {
        self.written
    }
}

impl Drop for LocalWriter {
    fn drop(&mut self) {
        self.discard();
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
