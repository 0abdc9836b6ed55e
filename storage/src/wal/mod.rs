//! The write-ahead log: what the store has acknowledged and not yet turned into parts.
//!
//! **For** making an append durable with few `fdatasync`s ([`Wal::append`]), and finding everything again after a crash
//! ([`replay`]). **Not for** deciding what a record means: the store does, in `publish` and in the visitor.
//! The bytes are drawn in `docs/format.md`.
//!
//! # Life of a log
//! [`replay`] reads what is there -> [`Recovered::start`] gives the [`Wal`] -> [`Wal::append`] ... ->
//! [`Wal::rotate`] and [`Wal::release_below`] when parts hold the rows -> [`Wal::close`].
//!
//! # Invariants
//! 1. `append` answers `Ok` only after the record is durable (mode `group`) and was published. Records are published
//!    in the order of their sequence numbers, which only grow, with gaps where a write failed.
//! 2. A record is found whole or not at all. One that was refused may be found after a crash (the sender was told
//!    "perhaps"), but never once a later record was acknowledged.
//! 3. A file that failed a write or a sync is never written again: it is cut to what was acknowledged, and the header of the
//!    next segment states that length, for the case that the cut failed too.
//! 4. What replay gives back is a prefix of what was written, but for damage under acknowledged bytes, which is
//!    quarantined and reported: a position never outlives the rows it stands for.
//! 5. Every segment starts with the state (positions, batch ids) of all before it, so that those can go.

mod columns;
mod payload;
mod record;
mod replay;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

pub use payload::{BatchMeta, DecodeError, EncodeError, EncodedBatch, decode_batch, encode_batch};
pub use record::{Kind, POSITION_KEY_BYTES_MAX, RECORD_BYTES_MAX, Section};
pub use replay::{Damage, Recovered, RecoveryReport, ReplayedRecord, replay};
pub use segment::{BatchLocation, ReadError, Segment};

use crate::{Durability, model::TenantId};

/// Bytes at which a segment is full. A file is deleted whole, so this is the grain in which disk space comes back.
pub const SEGMENT_BYTES: u64 = 128 << 20;

/// Bytes of records waiting for the writer; senders wait beyond.
pub const QUEUE_BYTES_MAX: usize = 128 << 20;

/// Bytes at which a group stops taking records in.
pub const GROUP_BYTES: usize = 1 << 20;

/// Grain of the queue's budget, so that many empty records are bounded too.
const QUEUE_UNIT: usize = 1024;

#[derive(Clone, Debug)]
pub struct WalOptions {
    pub durability: Durability,
    pub segment_bytes: u64,
    pub queue_bytes: usize,
    /// Folder where copies of damaged bytes go.
    pub quarantine: PathBuf,
}

impl WalOptions {
    pub fn new(durability: Durability, quarantine: impl Into<PathBuf>) -> Self {
        WalOptions {
            durability,
            segment_bytes: SEGMENT_BYTES,
            queue_bytes: QUEUE_BYTES_MAX,
            quarantine: quarantine.into(),
        }
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum WalError {
    #[error("cannot {what} {path}")]
    Io { what: &'static str, path: PathBuf, source: Arc<io::Error> },
    /// Nothing was kept; writes resume by themselves once there is space.
    #[error("no space left on the disk of {path}")]
    NoSpace { path: PathBuf },
    #[error("record of {bytes} bytes is over the limit of {limit}; send smaller batches")]
    TooLarge { bytes: usize, limit: usize },
    #[error("log {path} has format version {found}, this program knows versions up to {known}; use a newer release")]
    NewerVersion { path: PathBuf, found: u16, known: u16 },
    #[error("the record is durable, but showing it to readers failed")]
    Publish,
    #[error("the log is closed")]
    Closed,
}

impl WalError {
    fn io(what: &'static str, path: impl Into<PathBuf>, e: io::Error) -> Self {
        let path = path.into();
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => WalError::NoSpace { path },
            _ => WalError::Io { what, path, source: Arc::new(e) },
        }
    }
}

/// What became of a record.
#[derive(Clone, Debug)]
pub struct Committed {
    pub seq: u64,
    /// Of the batch sections, in their order.
    pub locations: Vec<BatchLocation>,
}

/// Shows a durable record to readers. Runs on the writer's thread: it must be short and must not wait for the log.
pub type Publish = Box<dyn FnOnce(&Committed) + Send>;

/// Gives the state that must outlive released segments, as of everything published. Runs on the writer's thread.
pub type Carry = Box<dyn Fn() -> Vec<(TenantId, Vec<Section>)> + Send>;

/// One atomic record.
pub struct Entry {
    pub tenant: TenantId,
    pub sections: Vec<Section>,
    pub publish: Publish,
}

/// Counters since the log was started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WalStats {
    pub records: u64,
    pub bytes: u64,
    /// Groups written; `records / groups` is the mean group size.
    pub groups: u64,
    pub syncs: u64,
    pub sync_time: Duration,
    /// Groups refused because a write or a sync failed.
    pub failed_groups: u64,
    /// Syncs of already acknowledged records that failed (modes `interval` and `none`).
    pub failed_late_syncs: u64,
    pub segments_created: u64,
    pub segments_released: u64,
    /// Segments there are now, and their bytes.
    pub segments: u64,
    pub segment_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    records: AtomicU64,
    bytes: AtomicU64,
    groups: AtomicU64,
    syncs: AtomicU64,
    sync_nanos: AtomicU64,
    failed_groups: AtomicU64,
    failed_late_syncs: AtomicU64,
    segments_created: AtomicU64,
    segments_released: AtomicU64,
    active_bytes: AtomicU64,
    active: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// A segment that is not written any more.
#[derive(Clone, Debug)]
struct Sealed {
    segment: Arc<Segment>,
    /// No record in it has a higher sequence number.
    last_seq: u64,
    len: u64,
    /// It begins with all the state before it. Of a segment found at start nobody knows whether its writer got that far.
    carries: bool,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    /// Ascending.
    sealed: Mutex<Vec<Sealed>>,
    /// Files of segments that never came to be and could not be removed. They are void only while the segment that steps
    /// over them exists, so nothing is released before they are gone.
    leftovers: Mutex<Vec<PathBuf>>,
    /// One release at a time: files go in ascending order.
    releasing: Mutex<()>,
    counters: Counters,
}

enum Job {
    Append {
        body: record::Body,
        publish: Publish,
        done: oneshot::Sender<Result<Committed, WalError>>,
        /// Given back when the job is done.
        _budget: tokio::sync::OwnedSemaphorePermit,
    },
    Sync(oneshot::Sender<Result<(), WalError>>),
    Rotate(oneshot::Sender<Result<u64, WalError>>),
    Close(oneshot::Sender<Result<(), WalError>>),
}

/// A running log. Dropping it ends the writer after what is queued.
pub struct Wal {
    jobs: mpsc::Sender<Job>,
    budget: Arc<Semaphore>,
    budget_units: u32,
    vfs: Arc<dyn crate::vfs::Vfs>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Wal {
    /// Makes a record durable, publishes it, and answers. Waits while the queue is full. If the future is dropped, the
    /// record may or may not be written; it is published if it is.
    ///
    /// # Errors
    /// Nothing was published. The record may still be found after a crash, so a retry should bear the same batch id.
    pub async fn append(&self, entry: Entry) -> Result<Committed, WalError> {
        let long_key = entry.sections.iter().find_map(|s| match s {
            Section::Position { key, .. } if key.len() > POSITION_KEY_BYTES_MAX => Some(key.len()),
            _ => None,
        });
        if let Some(bytes) = long_key {
            return Err(WalError::TooLarge { bytes, limit: POSITION_KEY_BYTES_MAX });
        }
        let body = record::encode_body(&entry.tenant, entry.sections)
            .map_err(|bytes| WalError::TooLarge { bytes, limit: RECORD_BYTES_MAX })?;
        let units = (body.bytes.len() / QUEUE_UNIT + 1).min(self.budget_units as usize) as u32;
        let budget = self.budget.clone().acquire_many_owned(units).await.map_err(|_| WalError::Closed)?;
        let (done, answer) = oneshot::channel();
        let job = Job::Append { body, publish: entry.publish, done, _budget: budget };
        self.jobs.send(job).map_err(|_| WalError::Closed)?;
        answer.await.unwrap_or(Err(WalError::Closed))
    }

    /// Makes everything acknowledged so far durable, whatever the mode.
    pub async fn sync(&self) -> Result<(), WalError> {
        self.ask(Job::Sync).await
    }

    /// Ends the active segment, so that all records so far can be released, and opens the next. Answers a sequence
    /// number that is above every record before and not above any after. Does nothing to a segment without appends.
    pub async fn rotate(&self) -> Result<u64, WalError> {
        self.ask(Job::Rotate).await
    }

    /// Refuses new records, writes and syncs what is queued, ends the writer.
    pub async fn close(&self) -> Result<(), WalError> {
        self.budget.close();
        self.ask(Job::Close).await
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, WalError>>) -> Job) -> Result<T, WalError> {
        let (done, answer) = oneshot::channel();
        self.jobs.send(job(done)).map_err(|_| WalError::Closed)?;
        answer.await.unwrap_or(Err(WalError::Closed))
    }

    /// Reads and decodes a batch; the same as [`BatchLocation::read`]. Blocks on the disk.
    pub fn read_batch(&self, location: &BatchLocation) -> Result<arrow::array::RecordBatch, ReadError> {
        location.read()
    }

    /// Removes the segments all of whose records are below `seq`, but never the newest that this process began: it
    /// holds the carried state and the sequence numbers. Answers how many went. Blocks on the disk. Batches of removed segments stay readable as long as
    /// their locations are held.
    pub fn release_below(&self, seq: u64) -> Result<u64, WalError> {
        let _one = self.shared.releasing.lock();
        let mut released = 0;
        loop {
            self.remove_leftovers()?;
            let first = {
                let sealed = self.shared.sealed.lock();
                let active = self.shared.counters.active.load(Ordering::SeqCst) == 1;
                let spare = active || sealed.iter().skip(1).any(|s| s.carries);
                sealed.first().filter(|s| spare && s.last_seq < seq).cloned()
            };
            let Some(sealed) = first else { return Ok(released) };
            let segment = &sealed.segment;
            // Someone besides the list and this function holds a batch of it: keep the file open for them.
            if Arc::strong_count(segment) > 2 {
                segment.pin().map_err(|e| WalError::io("open", &segment.path, e))?;
            }
            match segment.vfs.remove_file(&segment.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(WalError::io("remove", &segment.path, e));
                }
                _ => {}
            }
            self.shared.sealed.lock().remove(0);
            released += 1;
            add(&self.shared.counters.segments_released, 1);
            // One by one and in order: a gap in the numbers then always means loss.
            segment.vfs.sync_dir(&self.shared.dir).map_err(|e| WalError::io("sync", &self.shared.dir, e))?;
        }
    }

    fn remove_leftovers(&self) -> Result<(), WalError> {
        let mut leftovers = self.shared.leftovers.lock();
        while let Some(path) = leftovers.last() {
            match self.vfs.remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(WalError::io("remove", path, e)),
                _ => drop(leftovers.pop()),
            }
        }
        Ok(())
    }

    pub fn stats(&self) -> WalStats {
        let c = &self.shared.counters;
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        let sealed = self.shared.sealed.lock();
        WalStats {
            records: get(&c.records),
            bytes: get(&c.bytes),
            groups: get(&c.groups),
            syncs: get(&c.syncs),
            sync_time: Duration::from_nanos(get(&c.sync_nanos)),
            failed_groups: get(&c.failed_groups),
            failed_late_syncs: get(&c.failed_late_syncs),
            segments_created: get(&c.segments_created),
            segments_released: get(&c.segments_released),
            segments: sealed.len() as u64 + get(&c.active),
            segment_bytes: sealed.iter().map(|s| s.len).sum::<u64>() + get(&c.active_bytes),
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        let (done, _) = oneshot::channel();
        let _ = self.jobs.send(Job::Close(done)); // an error: it has ended already
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the writer of the log panicked");
        }
    }
}
