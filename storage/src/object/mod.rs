//! Where files of the store live: whole objects under `/`-separated paths, never changed once written.
//!
//! **For** part files, the Delta log and quarantine. **Not for** the WAL, which appends.
//!
//! [`Objects`] is the blocking form; flush, compaction and start-up run on blocking threads and use it directly.
//! [`LocalStore`] implements it on a folder; [`AsyncLocal`] is the same folder as an `object_store::ObjectStore`.
//! [`bridge::Bridged`] gives the blocking form of any `object_store::ObjectStore`, so that a [`bucket`] can take the
//! folder's place, read through a [`cache`] on the local disk. [`owner`] keeps one writer to a bucket's folder.
//!
//! # Invariants
//! 1. An object appears whole or not at all, and once `put` or `finish` has returned it survives a power cut.
//! 2. [`PutMode::Create`] lets exactly one of many racing writers win, also across processes.
//! 3. No path leads out of the root.

mod async_local;
pub mod bridge;
pub mod bucket;
pub mod cache;
pub mod local;
pub mod owner;

use std::{fmt, io, ops::Range};

use bytes::Bytes;

use crate::model::Timestamp;

pub use async_local::AsyncLocal;
pub use bucket::{BucketUrl, Remote};
pub use local::LocalStore;

/// What to do when the object exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Fail with [`io::ErrorKind::AlreadyExists`].
    Create,
    Overwrite,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    pub path: String,
    pub size: u64,
    pub modified: Timestamp,
}

/// A store of objects, blocking. Absent objects give [`io::ErrorKind::NotFound`].
pub trait Objects: fmt::Debug + Send + Sync + 'static {
    /// Durable when it returns. After an error the object may or may not be there (look with [`Objects::head`]).
    fn put(&self, path: &str, bytes: &[u8], mode: PutMode) -> io::Result<()>;
    fn get(&self, path: &str) -> io::Result<Bytes>;
    /// A range that ends behind the end of the object gives fewer bytes; one that starts there fails.
    fn get_range(&self, path: &str, range: Range<u64>) -> io::Result<Bytes>;
    /// Several ranges of one object, where that is quicker at once than one after the other.
    fn get_ranges(&self, path: &str, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>> {
        ranges.iter().map(|r| self.get_range(path, r.clone())).collect()
    }
    /// As [`Objects::get_range`], past every cache: for bytes that turned out to be wrong.
    fn get_range_again(&self, path: &str, range: Range<u64>) -> io::Result<Bytes> {
        self.get_range(path, range)
    }
    fn head(&self, path: &str) -> io::Result<ObjectInfo>;
    /// All objects below the folder `prefix`, by path. Empty if there is no such folder.
    fn list(&self, prefix: &str) -> io::Result<Vec<ObjectInfo>>;
    fn delete(&self, path: &str) -> io::Result<()>;
    /// Replaces `to` if it exists.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes the entries of the folder that holds `path` durable again, after a `put` failed in that last step.
    fn settle(&self, path: &str) -> io::Result<()>;
    /// Streams a new object of any size. It appears under `path` with [`ObjectWriter::finish`].
    fn create(&self, path: &str) -> io::Result<Box<dyn ObjectWriter>>;
    /// Whether a write that gave an error, or that a process sent before it died, may come into effect afterwards.
    fn may_land_late(&self) -> bool {
        false
    }
}

/// An object being written. Dropping it unfinished leaves nothing behind.
pub trait ObjectWriter: io::Write + Send {
    /// Makes the object durable and visible (an existing one is replaced); returns its size in bytes.
    fn finish(self: Box<Self>) -> io::Result<u64>;
    /// Bytes written so far.
    fn written(&self) -> u64;
}
