//! The one thread that writes: takes what is queued as a group, writes it, syncs once, publishes, answers.
//!
//! A group is whatever waits when the writer is free, up to [`super::GROUP_BYTES`]. Nobody waits for company: a lone
//! client pays one sync per record, while many clients queue up behind a sync and share the next one.

use std::{
    hash::{BuildHasher, Hasher},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Instant,
};

use tokio::sync::oneshot;

use super::{
    BatchLocation, Carry, Committed, GROUP_BYTES, Job, Publish, Sealed, Segment, Shared, WalError, WalOptions, add,
    record::{Body, FRAME_BYTES, Frame, Kind, encode_body},
    segment::{HEADER_BYTES, Header},
};
use crate::{
    Durability,
    vfs::{Vfs, VfsFile},
};

/// The group buffer is given back to the allocator above this, so that one huge record does not stay for ever.
const BUFFER_KEPT_BYTES: usize = 8 << 20;

/// Bodies of at least this size are written from where they lie, not copied behind others first.
const DIRECT_BYTES_MIN: usize = 256 << 10;

pub(super) struct Writer {
    pub vfs: Arc<dyn Vfs>,
    pub options: WalOptions,
    pub shared: Arc<Shared>,
    pub carry: Carry,
    pub next_number: u64,
    pub next_seq: u64,
    /// Number and counting length of the segment before the next one (0: none).
    pub previous: (u64, u64),
    pub active: Option<Active>,
    pub buffer: Vec<u8>,
    pub last_sync: Instant,
}

/// The segment being written.
pub(super) struct Active {
    segment: Arc<Segment>,
    file: Arc<dyn VfsFile>,
    salt: u64,
    /// Acknowledged bytes, and how many of them are known durable.
    len: u64,
    durable: u64,
    /// Length after header and carried records.
    start_len: u64,
    last_seq: u64,
}

/// One record of a group.
struct Member {
    body: Body,
    publish: Publish,
    done: oneshot::Sender<Result<Committed, WalError>>,
    _budget: tokio::sync::OwnedSemaphorePermit,
}

impl Writer {
    pub fn run(mut self, jobs: &Receiver<Job>) {
        let mut closing = None;
        while closing.is_none() {
            let mut next = self.wait(jobs);
            if next.is_none() {
                break;
            }
            while let Some(job) = next.take() {
                let (group, other) = gather(job, jobs);
                if !group.is_empty() {
                    self.commit(group);
                }
                // The caller may be gone: nobody to tell.
                match other {
                    Some(Job::Sync(done)) => drop(done.send(self.sync_late())),
                    Some(Job::Rotate(done)) => drop(done.send(self.rotate())),
                    Some(Job::Close(done)) => closing = Some(done),
                    Some(Job::Append { .. }) | None => {}
                }
                if closing.is_none() {
                    next = jobs.try_recv().ok();
                }
            }
        }
        // What was queued behind the close is refused when the channel is dropped.
        let result = self.sync_late();
        if let Some(done) = closing {
            drop(done.send(result));
        }
    }

    /// The next job; syncs in between when mode `interval` asks for it. `None`: all senders are gone.
    fn wait(&mut self, jobs: &Receiver<Job>) -> Option<Job> {
        loop {
            let unsynced = self.active.as_ref().is_some_and(|a| a.durable < a.len);
            let Durability::Interval(every) = self.options.durability else { return jobs.recv().ok() };
            if !unsynced {
                return jobs.recv().ok();
            }
            match jobs.recv_timeout(every.saturating_sub(self.last_sync.elapsed())) {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => drop(self.sync_late()), // logged and counted there
            }
        }
    }

    /// Writes a group, syncs, publishes, answers. All of it or nothing.
    fn commit(&mut self, group: Vec<Member>) {
        let (segment, first_seq, first_offset) = match self.write(&group) {
            Ok(at) => at,
            Err(e) => {
                add(&self.shared.counters.failed_groups, 1);
                tracing::warn!(records = group.len(), error = %e, "a group of the log was refused");
                for m in group {
                    // First, because it holds what a retry needs: the batch id, memory.
                    drop(m.publish);
                    drop(m.done.send(Err(e.clone()))); // the caller may be gone
                }
                return;
            }
        };
        let mut offset = first_offset;
        for (seq, m) in (first_seq..).zip(group) {
            let body_at = offset + FRAME_BYTES as u64;
            let locations = m.body.batches.iter().map(|(at, meta)| BatchLocation {
                segment: segment.clone(),
                offset: body_at + u64::from(*at),
                meta: *meta,
            });
            let committed = Committed { seq, locations: locations.collect() };
            offset = body_at + m.body.bytes.len() as u64;
            let publish = m.publish;
            let shown = catch_unwind(AssertUnwindSafe(|| publish(&committed)));
            drop(m.done.send(shown.map(|()| committed).map_err(|_| WalError::Publish)));
        }
    }

    /// Where the group went: segment, sequence number and offset of its first record. It is as durable as the mode asks.
    fn write(&mut self, group: &[Member]) -> Result<(Arc<Segment>, u64, u64), WalError> {
        let bytes: u64 = group.iter().map(|m| (FRAME_BYTES + m.body.bytes.len()) as u64).sum();
        let full = |a: &Active| a.len > a.start_len && a.len + bytes > self.options.segment_bytes;
        if self.active.as_ref().is_some_and(full) {
            self.seal();
        }
        if self.active.is_none() {
            self.open_segment()?;
        }
        let active = self.active.as_mut().expect("just opened");
        let first_seq = self.next_seq;
        self.next_seq += group.len() as u64;
        let segment = active.segment.clone();
        let path = &segment.path;
        let mut result =
            append_group(active, first_seq, group, &mut self.buffer).map_err(|e| WalError::io("write", path, e));
        if self.buffer.capacity() > BUFFER_KEPT_BYTES {
            self.buffer = Vec::new();
        }
        if result.is_ok() && self.options.durability == Durability::Group {
            result = timed_sync(active.file.as_ref(), &self.shared).map_err(|e| WalError::io("sync", path, e));
        }
        if let Err(e) = result {
            self.abandon();
            return Err(e);
        }
        let offset = active.len;
        active.len += bytes;
        active.last_seq = self.next_seq - 1;
        if self.options.durability == Durability::Group {
            active.durable = active.len;
        }
        let c = &self.shared.counters;
        add(&c.records, group.len() as u64);
        add(&c.bytes, bytes);
        add(&c.groups, 1);
        c.active_bytes.store(active.len, Ordering::Relaxed);
        if let Durability::Interval(every) = self.options.durability
            && self.last_sync.elapsed() >= every
        {
            drop(self.sync_late()); // logged and counted there; these records are acknowledged by their write
        }
        Ok((segment, first_seq, offset))
    }

    /// Syncs what was acknowledged without. After a failure the segment is not written again.
    fn sync_late(&mut self) -> Result<(), WalError> {
        self.last_sync = Instant::now();
        let Some(active) = self.active.as_mut().filter(|a| a.durable < a.len) else { return Ok(()) };
        match timed_sync(active.file.as_ref(), &self.shared) {
            Ok(()) => {
                active.durable = active.len;
                Ok(())
            }
            Err(e) => {
                let path = active.segment.path.clone();
                tracing::error!(path = %path.display(), error = %e, "acknowledged records may not survive a power cut");
                add(&self.shared.counters.failed_late_syncs, 1);
                self.retire();
                Err(WalError::io("sync", path, e))
            }
        }
    }

    fn rotate(&mut self) -> Result<u64, WalError> {
        if self.active.as_ref().is_some_and(|a| a.len == a.start_len) {
            // Nothing was appended since it was opened: whatever came before is sealed already.
            return Ok(self.next_seq);
        }
        self.seal();
        let boundary = self.next_seq;
        self.open_segment()?;
        Ok(boundary)
    }

    /// Ends the active segment in good order.
    fn seal(&mut self) {
        drop(self.sync_late()); // logged and counted there
        self.retire();
    }

    /// Ends the active segment after a failed write or sync: cuts what was not acknowledged. If that fails too, the header of
    /// the next segment still says where this one ends.
    fn abandon(&mut self) {
        if let Some(a) = &self.active {
            let cut = a.file.set_len(a.len).and_then(|()| a.file.sync_data());
            if let Err(e) = cut {
                tracing::warn!(path = %a.segment.path.display(), len = a.len, error = %e, "cannot cut a segment");
            }
        }
        self.retire();
    }

    fn retire(&mut self) {
        let Some(a) = self.active.take() else { return };
        self.previous = (a.segment.number, a.len);
        self.shared.counters.active.store(0, Ordering::Relaxed);
        self.shared.counters.active_bytes.store(0, Ordering::Relaxed);
        self.shared.sealed.lock().push(Sealed {
            segment: a.segment,
            last_seq: a.last_seq,
            len: a.len,
            carries: true,
        });
    }

    /// A new segment, ready for records: header and name durable, then the carried state durable.
    fn open_segment(&mut self) -> Result<(), WalError> {
        // A number is used once, even if this fails: a leftover is void because the next header skips it.
        let number = self.next_number;
        self.next_number += 1;
        let segment = Segment::new(self.vfs.clone(), &self.shared.dir, number);
        let opened = self.fill_segment(&segment);
        match opened {
            Ok(active) => {
                self.shared.counters.active.store(1, Ordering::Relaxed);
                self.shared.counters.active_bytes.store(active.len, Ordering::Relaxed);
                add(&self.shared.counters.segments_created, 1);
                self.active = Some(active);
                Ok(())
            }
            Err(e) => {
                if self.vfs.remove_file(&segment.path).is_err() {
                    self.shared.leftovers.lock().push(segment.path.clone());
                }
                Err(e)
            }
        }
    }

    fn fill_segment(&mut self, segment: &Arc<Segment>) -> Result<Active, WalError> {
        let path = &segment.path;
        let file = self.vfs.create_new(path).map_err(|e| WalError::io("create", path, e))?;
        let header = Header {
            number: segment.number,
            first_seq: self.next_seq,
            salt: random_u64(),
            previous: self.previous.0,
            previous_len: self.previous.1,
        };
        file.append(&header.encode()).map_err(|e| WalError::io("write", path, e))?;
        // Before anything follows: a file longer than a header whose header is bad is then damaged, not unfinished.
        timed_sync(file.as_ref(), &self.shared).map_err(|e| WalError::io("sync", path, e))?;
        self.vfs.sync_dir(&self.shared.dir).map_err(|e| WalError::io("sync", &self.shared.dir, e))?;
        let mut carried = Vec::new();
        let mut seq = self.next_seq;
        for (tenant, sections) in (self.carry)() {
            let body = encode_body(&tenant, sections)
                .map_err(|bytes| WalError::TooLarge { bytes, limit: super::RECORD_BYTES_MAX })?;
            carried.extend_from_slice(&frame(&body, seq, Kind::Carry, HEADER_BYTES as u64, header.salt));
            carried.extend_from_slice(&body.bytes);
            seq += 1;
        }
        self.next_seq = seq;
        if !carried.is_empty() {
            file.append(&carried).map_err(|e| WalError::io("write", path, e))?;
            timed_sync(file.as_ref(), &self.shared).map_err(|e| WalError::io("sync", path, e))?;
        }
        let len = (HEADER_BYTES + carried.len()) as u64;
        Ok(Active {
            segment: segment.clone(),
            file,
            salt: header.salt,
            len,
            durable: len,
            start_len: len,
            last_seq: self.next_seq - 1,
        })
    }
}

/// What waits behind `first`, up to a group's size or a job that is no append, which comes back beside it.
fn gather(first: Job, jobs: &Receiver<Job>) -> (Vec<Member>, Option<Job>) {
    let (mut group, mut bytes, mut next) = (Vec::new(), 0, Some(first));
    while let Some(job) = next {
        match job {
            Job::Append { body, publish, done, _budget } => {
                bytes += body.bytes.len() + FRAME_BYTES;
                group.push(Member { body, publish, done, _budget });
            }
            other => return (group, Some(other)),
        }
        next = if bytes < GROUP_BYTES { jobs.try_recv().ok() } else { None };
    }
    (group, None)
}

/// Writes a group's records: small ones together, the body of a large one from where it lies. What a failure leaves is cut off
/// or void, as after a torn write.
fn append_group(active: &Active, first_seq: u64, group: &[Member], buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    for (seq, m) in (first_seq..).zip(group) {
        buffer.extend_from_slice(&frame(&m.body, seq, Kind::Append, active.durable, active.salt));
        if m.body.bytes.len() < DIRECT_BYTES_MIN {
            buffer.extend_from_slice(&m.body.bytes);
            continue;
        }
        active.file.append(buffer)?;
        buffer.clear();
        active.file.append(&m.body.bytes)?;
    }
    if buffer.is_empty() { Ok(()) } else { active.file.append(buffer) }
}

fn frame(body: &Body, seq: u64, kind: Kind, durable: u64, salt: u64) -> [u8; FRAME_BYTES] {
    Frame { len: body.bytes.len() as u32, seq, durable, body_crc: body.crc, kind }.encode(salt)
}

fn timed_sync(file: &dyn VfsFile, shared: &Shared) -> io::Result<()> {
    let start = Instant::now();
    let result = file.sync_data();
    add(&shared.counters.syncs, 1);
    add(&shared.counters.sync_nanos, u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    result
}

/// Unpredictable to those who send data; the standard library's hash keys come from the operating system.
fn random_u64() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}
