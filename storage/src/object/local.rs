//! Objects in a folder.
//!
//! An object is written to `tmp/` under the root, synced, then linked (create) or renamed (overwrite) into place, then
//! the folder is synced. What a crash leaves in `tmp/` goes with [`LocalStore::clean_temporary`].

use std::{
    collections::HashSet,
    fs::{self, File},
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
    root: PathBuf,
    /// Folders known to exist durably, so that a put does not walk and sync its parents each time.
    folders: Mutex<HashSet<PathBuf>>,
}

/// Folders remembered at most; more (very many days) only cost a look at the disk.
const FOLDERS_KNOWN_MAX: usize = 65_536;

impl LocalStore {
    /// `root` must exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        LocalStore { inner: Arc::new(Inner { root: root.into(), folders: Mutex::new(HashSet::new()) }) }
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
        let mut removed = 0;
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(e),
        };
        for entry in entries {
            fs::remove_file(entry?.path())?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Gives an object another name, which must be free.
    pub fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.file_of(from)?, self.file_of(to)?);
        self.inner.ensure_parent(&to)?;
        fs::hard_link(&from, &to)?;
        sync_parent(&to)?;
        fs::remove_file(&from)?;
        sync_parent(&from)
    }

    fn temporary(&self) -> io::Result<(PathBuf, File)> {
        let folder = self.inner.root.join(TEMPORARY);
        self.inner.ensure_folder(&folder)?;
        loop {
            let n = NEXT_TEMPORARY.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{}-{n}", std::process::id()));
            match File::create_new(&path) {
                Ok(file) => return Ok((path, file)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            }
        }
    }
}

impl Inner {
    /// Creates `folder` and its parents below the root, durably.
    fn ensure_folder(&self, folder: &Path) -> io::Result<()> {
        if folder == self.root || self.folders.lock().contains(folder) {
            return Ok(());
        }
        let parent = folder.parent().unwrap_or(&self.root);
        self.ensure_folder(parent)?;
        match fs::create_dir(folder) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        sync_folder(parent)?;
        let mut folders = self.folders.lock();
        if folders.len() < FOLDERS_KNOWN_MAX {
            folders.insert(folder.to_owned());
        }
        Ok(())
    }

    fn ensure_parent(&self, file: &Path) -> io::Result<()> {
        file.parent().map_or(Ok(()), |p| self.ensure_folder(p))
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn sync_parent(file: &Path) -> io::Result<()> {
    file.parent().map_or(Ok(()), sync_folder)
}

impl Objects for LocalStore {
    fn put(&self, path: &str, bytes: &[u8], mode: PutMode) -> io::Result<()> {
        let target = self.file_of(path)?;
        let (temporary, mut file) = self.temporary()?;
        let placed = (|| {
            file.write_all(bytes)?;
            file.sync_data()?;
            self.inner.ensure_parent(&target)?;
            match mode {
                // A hard link fails if the name exists: the one atomic "create whole" that every Unix has.
                PutMode::Create => fs::hard_link(&temporary, &target),
                PutMode::Overwrite => fs::rename(&temporary, &target),
            }
        })();
        if placed.is_err() || mode == PutMode::Create {
            let _ = fs::remove_file(&temporary);
        }
        placed?;
        sync_parent(&target)
    }

    fn get(&self, path: &str) -> io::Result<Bytes> {
        fs::read(self.file_of(path)?).map(Bytes::from)
    }

    fn get_range(&self, path: &str, range: Range<u64>) -> io::Result<Bytes> {
        use std::os::unix::fs::FileExt;
        let file = File::open(self.file_of(path)?)?;
        let len = file.metadata()?.len();
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
        let meta = fs::metadata(self.file_of(path)?)?;
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{path} is not a file")));
        }
        Ok(ObjectInfo { path: path.to_owned(), size: meta.len(), modified: meta.modified()? })
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<ObjectInfo>> {
        let mut out = Vec::new();
        let mut folders = match prefix {
            "" => vec![(self.inner.root.clone(), String::new())],
            p => vec![(self.file_of(p)?, format!("{p}/"))],
        };
        while let Some((folder, prefix)) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            for entry in entries {
                let entry = entry?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    if !(prefix.is_empty() && name == TEMPORARY) {
                        folders.push((entry.path(), format!("{prefix}{name}/")));
                    }
                } else if kind.is_file() {
                    let meta = match entry.metadata() {
                        Ok(meta) => meta,
                        Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                        Err(e) => return Err(e),
                    };
                    out.push(ObjectInfo {
                        path: format!("{prefix}{name}"),
                        size: meta.len(),
                        modified: meta.modified()?,
                    });
                }
            }
        }
        out.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(out)
    }

    fn delete(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.file_of(path)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.file_of(from)?, self.file_of(to)?);
        self.inner.ensure_parent(&to)?;
        fs::rename(&from, &to)?;
        sync_parent(&to)?;
        sync_parent(&from)
    }

    fn settle(&self, path: &str) -> io::Result<()> {
        sync_parent(&self.file_of(path)?)
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn ObjectWriter>> {
        let target = self.file_of(path)?;
        let (temporary, file) = self.temporary()?;
        Ok(Box::new(LocalWriter {
            inner: self.inner.clone(),
            temporary: Some(temporary),
            target,
            file: io::BufWriter::with_capacity(WRITE_BUFFER_BYTES, file),
            written: 0,
        }))
    }
}

/// Bytes gathered before a write to the file.
const WRITE_BUFFER_BYTES: usize = 256 << 10;

struct LocalWriter {
    inner: Arc<Inner>,
    /// `None` once in place.
    temporary: Option<PathBuf>,
    target: PathBuf,
    file: io::BufWriter<File>,
    written: u64,
}

impl Write for LocalWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl ObjectWriter for LocalWriter {
    fn finish(mut self: Box<Self>) -> io::Result<u64> {
        self.file.flush()?;
        self.file.get_ref().sync_data()?;
        self.inner.ensure_parent(&self.target)?;
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.target)?;
        }
        self.temporary = None;
        sync_parent(&self.target)?;
        Ok(self.written)
    }

    fn written(&self) -> u64 {
        self.written
    }
}

impl Drop for LocalWriter {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
