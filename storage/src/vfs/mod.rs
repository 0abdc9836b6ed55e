//! The seam to files and clocks: everything the store does outside memory and the object store goes through here.
//!
//! **For** swapping the real file system and clock ([`OsVfs`], [`SystemClock`]) for ones that fail on demand
//! ([`sim::SimVfs`], [`sim::SimClock`]), under the very same store code. **Not for** Parquet parts, which live behind
//! `object_store`. All calls block: callers run them off the async threads.
//!
//! Contract that both implementations keep, and that callers may rely on:
//! 1. Bytes are durable after `sync_data` returned `Ok`; a name (create, rename, remove) after `sync_dir` of its folder.
//! 2. After a failed `sync_data` nothing written since the last good one may be trusted, not even after a later good one.
//! 3. A failed `append` may have written any prefix of its bytes.
//! 4. An open file stays readable after it was removed.

mod os;
pub mod sim;

use std::{fmt::Debug, io, path::Path, sync::Arc, time::Duration};

pub use os::{OsVfs, SystemClock};

use crate::model::Timestamp;

/// Files and folders of one machine.
pub trait Vfs: Send + Sync + Debug {
    /// A new empty file, open for reading and appending. `AlreadyExists` if the name is taken.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;
    /// An existing file, open for reading and appending.
    fn open_append(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;
    /// Replaces `to` atomically if it exists.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// A second name for a file; `AlreadyExists` if it is taken, decided atomically, also against other processes.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Names (not paths) in a folder, sorted. Names that are not UTF-8 are left out: we make none.
    fn list_dir(&self, path: &Path) -> io::Result<Vec<String>>;
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// `NotFound` if there is no such file.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;
    /// Of the file system that holds `path`.
    fn space(&self, path: &Path) -> io::Result<Space>;

    fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.metadata(path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The whole file, refused (`FileTooLarge`) above `bytes_max`.
    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        let file = self.open_read(path)?;
        let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
        if len > bytes_max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{len} bytes, limit {bytes_max}")));
        }
        let mut out = vec![0; len];
        file.read_exact_at(&mut out, 0)?;
        Ok(out)
    }

    /// Puts a whole file in place so that a power cut leaves the old or the new content, durable on return.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let folder = path.parent().ok_or_else(|| io::Error::other("path has no folder"))?;
        let mut name = path.file_name().ok_or_else(|| io::Error::other("path has no name"))?.to_owned();
        name.push(".new");
        let fresh = folder.join(name);
        if self.exists(&fresh)? {
            self.remove_file(&fresh)?;
        }
        let file = self.create_new(&fresh)?;
        file.append(content)?;
        file.sync_data()?;
        self.rename(&fresh, path)?;
        self.sync_dir(folder)
    }
}

/// One open file. Shared: reads at an offset may run beside one appender.
pub trait VfsFile: Send + Sync + Debug {
    /// Bytes read, which may be fewer than asked for; 0 at the end.
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at the end of the file. On an error any prefix may have been written.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;
    /// `fdatasync`: contents and length, not the name.
    fn sync_data(&self) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;

    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `out` or fails with `UnexpectedEof`.
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < out.len() {
            match self.read_at(&mut out[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    pub len: u64,
    pub modified: Timestamp,
    pub is_dir: bool,
}

/// Bytes of a file system. `used + available` may be less than `total` (blocks kept for root).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub used: u64,
    /// What we may still write.
    pub available: u64,
    pub total: u64,
}

impl Space {
    /// Share in use as `df` shows it, 0..=1.
    pub fn used_share(self) -> f64 {
        let reachable = self.used + self.available;
        if reachable == 0 { 1.0 } else { self.used as f64 / reachable as f64 }
    }
}

/// What time it is.
pub trait Clock: Send + Sync + Debug {
    /// Wall clock; may jump.
    fn now(&self) -> Timestamp;
    /// Since some fixed instant; never goes back.
    fn monotonic(&self) -> Duration;
}
