//! Finding everything again: which segments count, which bytes of them, and every intact record in order.
//!
//! Bounded memory: one window over one file, as large as its largest record; payloads are passed over by place.
//! Damage never fails a start. Where a record should be and is not, the next intact one is searched for byte by byte:
//! - In the newest segment, if the next one was written when the hole was not yet durable (its frame says so), or there
//!   is none, this is the torn tail a power cut leaves: cut off, counted, not damage.
//! - Anywhere else acknowledged bytes went bad: they are copied to the quarantine folder and reported.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{
    BatchLocation, Carry, Counters, Kind, QUEUE_UNIT, Sealed, Segment, Shared, Wal, WalError, WalOptions,
    record::{FRAME_BYTES, Frame, parse_body},
    segment::{FORMAT_VERSION, HEADER_BYTES, Header, HeaderState, number_of},
    writer::Writer,
};
use crate::{
    model::TenantId,
    vfs::{Vfs, VfsFile},
};

/// Bytes read at once.
const WINDOW_BYTES: usize = 1 << 20;
/// Where a large read fails, each page is tried alone.
const PAGE_BYTES: usize = 4096;
/// Attempts of one read.
const READ_TRIES: usize = 4;
/// Damaged places that are reported one by one; further ones are only counted.
const DAMAGE_REPORTS_MAX: usize = 1000;

/// One intact record.
#[derive(Debug)]
pub struct ReplayedRecord {
    pub seq: u64,
    pub kind: Kind,
    pub tenant: TenantId,
    /// Not decoded, not even checked against their schema; [`BatchLocation::read`] does.
    pub batches: Vec<BatchLocation>,
    pub positions: Vec<(String, u64)>,
    pub batch_ids: Vec<[u8; 16]>,
}

/// Acknowledged bytes that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub segment: u64,
    /// In the segment. Empty if the whole segment is missing.
    pub bytes: Range<u64>,
    pub reason: &'static str,
    /// The copy, if one could be made.
    pub quarantined: Option<PathBuf>,
}

/// What [`replay`] found.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    pub segments: u64,
    pub records: u64,
    pub batches: u64,
    /// Of the records handed over.
    pub bytes: u64,
    /// Bytes behind the last whole record of the newest segment: written, never acknowledged as durable.
    pub torn_tail_bytes: u64,
    /// Bytes of refused writes that were passed over.
    pub void_bytes: u64,
    pub damage: Vec<Damage>,
    /// Also those not listed in `damage`.
    pub damaged_places: u64,
    pub damaged_bytes: u64,
    /// 0: no record.
    pub last_seq: u64,
}

/// A log that was read and may now be written.
#[derive(Debug)]
pub struct Recovered {
    pub report: RecoveryReport,
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    options: WalOptions,
    sealed: Vec<Sealed>,
    leftovers: Vec<PathBuf>,
    previous: (u64, u64),
    next_number: u64,
    next_seq: u64,
}

/// Reads all segments in `dir` (made if missing) and hands every intact record to `visit`, in order. Blocks on the disk.
///
/// # Errors
/// The folder cannot be made or listed, or a newer release wrote a segment; then nothing was touched. Damage is no error.
pub fn replay(
    vfs: Arc<dyn Vfs>,
    dir: &Path,
    options: WalOptions,
    visit: &mut dyn FnMut(ReplayedRecord),
) -> Result<Recovered, WalError> {
    vfs.create_dir_all(dir).map_err(|e| WalError::io("create", dir, e))?;
    let names = retry(|| vfs.list_dir(dir)).map_err(|e| WalError::io("list", dir, e))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|n| number_of(n)).collect();
    numbers.sort_unstable();
    let mut files = BTreeMap::new();
    for n in &numbers {
        let found = Found::look(&vfs, dir, *n);
        if let HeaderState::Newer(version) = found.header {
            let path = found.segment.path.clone();
            return Err(WalError::NewerVersion { path, found: version, known: FORMAT_VERSION });
        }
        files.insert(*n, found);
    }
    let shapes: Vec<Shape> = files.values().map(Found::shape).collect();
    let plan = plan(&shapes);
    let mut reader = Reader {
        quarantine: options.quarantine.clone(),
        report: RecoveryReport::default(),
        tenant: TenantId::default_tenant(),
        visit,
    };
    let mut out = Recovered {
        report: RecoveryReport::default(),
        dir: dir.to_owned(),
        sealed: Vec::new(),
        leftovers: Vec::new(),
        previous: (0, 0),
        next_number: numbers.last().map_or(1, |n| n + 1),
        next_seq: 1,
        vfs: vfs.clone(),
        options,
    };
    for step in plan {
        match step {
            Step::Missing { number } => reader.damaged(number, 0..0, "the segment is missing", None),
            Step::Void { number } => {
                let found = &files[&number];
                reader.report.void_bytes += found.len;
                if let Err(e) = vfs.remove_file(&found.segment.path) {
                    // Harmless: it is void at the next start too.
                    tracing::warn!(path = %found.segment.path.display(), error = %e, "cannot remove a void segment");
                    out.leftovers.push(found.segment.path.clone());
                }
            }
            Step::Read { number, end, newest } => {
                let found = &files[&number];
                let end = reader.segment(found, end, newest);
                if newest {
                    settle(found, dir);
                }
                let first_seq = if let HeaderState::Good(h) = found.header { h.first_seq } else { 0 };
                out.next_seq = out.next_seq.max(first_seq).max(reader.report.last_seq + 1);
                out.previous = (number, end);
                let segment = found.segment.clone();
                out.sealed.push(Sealed { segment, last_seq: out.next_seq - 1, len: end, carries: false });
            }
        }
    }
    out.report = reader.report;
    Ok(out)
}

impl Recovered {
    /// Highest sequence number that was ever given to a record here, as far as known; 0: none.
    pub fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// Starts the writer. The next record gets a sequence number above all replayed ones and not below `seq_min` (what the
    /// catalog says was flushed, plus one). `carry` must already give the replayed state. The first segment is made with
    /// the first record, so that a start needs no disk space.
    pub fn start(self, seq_min: u64, carry: Carry) -> Result<Wal, WalError> {
        let shared = Arc::new(Shared {
            dir: self.dir,
            sealed: Mutex::new(self.sealed),
            leftovers: Mutex::new(self.leftovers),
            releasing: Mutex::new(()),
            counters: Counters::default(),
        });
        let (jobs, queue) = mpsc::channel();
        let units = (self.options.queue_bytes / QUEUE_UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let vfs = self.vfs;
        let writer = Writer {
            vfs: vfs.clone(),
            options: self.options,
            shared: shared.clone(),
            carry,
            next_number: self.next_number,
            next_seq: self.next_seq.max(seq_min),
            previous: self.previous,
            active: None,
            buffer: Vec::new(),
            last_sync: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("wal".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(|e| WalError::io("start the writer of", &shared.dir, e))?;
        Ok(Wal {
            jobs,
            budget: Arc::new(Semaphore::new(units)),
            budget_units: units as u32,
            vfs,
            shared,
            thread: Some(thread),
        })
    }
}

/// Makes durable what was just read of the newest segment: after a mere kill it may be in the page cache only, while from
/// here on it is visible, and the next segment's header vouches for its length.
///
/// Known limit: if a sync failed, the process died before its next good write, and the power goes later, bytes that only
/// the page cache had are gone then, and reported as damage. They were refused, never acknowledged.
fn settle(found: &Found, dir: &Path) {
    let (vfs, path) = (&found.segment.vfs, &found.segment.path);
    let settled = vfs.open_append(path).and_then(|f| f.sync_data()).and_then(|()| vfs.sync_dir(dir));
    if let Err(e) = settled {
        tracing::error!(path = %path.display(), error = %e, "the last records of the log may not survive a power cut");
    }
}

/// A segment file as it lies there.
struct Found {
    segment: Arc<Segment>,
    /// `None`: cannot be opened.
    file: Option<Arc<dyn VfsFile>>,
    header: HeaderState,
    len: u64,
}

impl Found {
    fn look(vfs: &Arc<dyn Vfs>, dir: &Path, number: u64) -> Found {
        let segment = Segment::new(vfs.clone(), dir, number);
        let file = retry(|| vfs.open_read(&segment.path)).ok();
        // Unknown counts as used: a segment that cannot be opened must not pass for one that was never finished.
        let len = file.as_ref().and_then(|f| retry(|| f.len()).ok()).unwrap_or(HEADER_BYTES as u64 + 1);
        let mut found = Found { segment, file, header: HeaderState::Bad, len };
        let mut window = Window::new(&found, len);
        found.header = match Header::decode(window.get(0, HEADER_BYTES)) {
            HeaderState::Good(h) if h.number != number => HeaderState::Bad,
            state => state,
        };
        // Files are held open one at a time, in `Reader::segment`.
        found.file = None;
        found
    }

    fn shape(&self) -> Shape {
        let chain = match self.header {
            HeaderState::Good(h) => Some((h.previous, h.previous_len)),
            _ => None,
        };
        Shape { number: self.segment.number, len: self.len, chain }
    }
}

/// What planning needs of a segment: with an intact header, which segment came before it and how long that one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    number: u64,
    len: u64,
    chain: Option<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Named by its successor, not there, while older ones are.
    Missing { number: u64 },
    /// Left from a failed attempt to open a segment: nothing in it was acknowledged.
    Void { number: u64 },
    /// Read up to `end`, which may lie past what there is.
    Read { number: u64, end: Option<u64>, newest: bool },
}

/// Which segments count, ascending. `shapes`: ascending.
fn plan(shapes: &[Shape]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut newest = true;
    let mut before: Option<(u64, u64)> = None; // what the last intact header seen says comes next, going down
    for s in shapes.iter().rev() {
        let mut end = None;
        match before {
            Some((number, _)) if s.number > number => {
                steps.push(Step::Void { number: s.number });
                continue;
            }
            Some((number, len)) if s.number == number => end = Some(len),
            Some((number, _)) if number != 0 => steps.push(Step::Missing { number }),
            _ => {}
        }
        // Headers are durable before anything follows them, so a file without a whole one was never used, unless its
        // successor says otherwise.
        let whole = HEADER_BYTES as u64;
        if (s.len < whole || s.len == whole && s.chain.is_none()) && end.is_none() {
            steps.push(Step::Void { number: s.number });
            continue; // `before` stays: it was a step aside
        }
        steps.push(Step::Read { number: s.number, end, newest });
        newest = false;
        before = s.chain;
    }
    steps.reverse();
    steps
}

struct Reader<'a> {
    quarantine: PathBuf,
    report: RecoveryReport,
    /// Of the last record: most follow one of the same tenant.
    tenant: TenantId,
    visit: &'a mut dyn FnMut(ReplayedRecord),
}

impl Reader<'_> {
    /// Hands over the intact records of a segment; answers how many of its bytes count from now on.
    fn segment(&mut self, found: &Found, end: Option<u64>, newest: bool) -> u64 {
        let number = found.segment.number;
        self.report.segments += 1;
        let file = retry(|| found.segment.vfs.open_read(&found.segment.path)).ok();
        let found = Found { segment: found.segment.clone(), file, header: found.header, len: found.len };
        let end = end.unwrap_or(found.len);
        let there = end.min(found.len);
        self.report.void_bytes += found.len - there;
        let HeaderState::Good(header) = found.header else {
            self.damaged(number, 0..found.len, "the header of the segment is damaged", Some(&found));
            return end;
        };
        let mut window = Window::new(&found, there);
        let mut at = HEADER_BYTES as u64;
        while at < there {
            if let Some(total) = self.record(&found, &header, &mut window, at) {
                at += total;
                continue;
            }
            let next = self.next_record(&header, &mut window, at, there);
            match next {
                Some((_, durable)) if newest && durable <= at => return self.cut(&found, at, there, &window),
                None if newest => return self.cut(&found, at, there, &window),
                Some((next, _)) => {
                    self.damaged(number, at..next, "a record is damaged", Some(&found));
                    at = next;
                }
                None => {
                    self.damaged(number, at..there, "the rest of the segment is damaged", Some(&found));
                    break;
                }
            }
        }
        if there < end {
            self.damaged(number, there..end, "the end of the segment is missing", None);
        }
        end
    }

    /// Hands over the record at `at` and answers its length; `None` if there is no intact one.
    fn record(&mut self, found: &Found, header: &Header, window: &mut Window, at: u64) -> Option<u64> {
        let frame = self.frame(header, window, at)?;
        let body_at = at + FRAME_BYTES as u64;
        let body = window.get(body_at, frame.len as usize);
        if body.len() != frame.len as usize || crc32c::crc32c(body) != frame.body_crc {
            return None;
        }
        let parsed = parse_body(body)?;
        if parsed.tenant != self.tenant.as_str() {
            self.tenant = TenantId::parse(parsed.tenant).ok()?;
        }
        let locate = |(start, meta): &(u32, super::BatchMeta)| BatchLocation {
            segment: found.segment.clone(),
            offset: body_at + u64::from(*start),
            meta: *meta,
        };
        self.report.records += 1;
        self.report.batches += parsed.batches.len() as u64;
        self.report.bytes += frame.total();
        self.report.last_seq = frame.seq;
        (self.visit)(ReplayedRecord {
            seq: frame.seq,
            kind: frame.kind,
            tenant: self.tenant.clone(),
            batches: parsed.batches.iter().map(locate).collect(),
            positions: parsed.positions.into_iter().map(|(k, p)| (k.to_owned(), p)).collect(),
            batch_ids: parsed.batch_ids,
        });
        Some(frame.total())
    }

    fn frame(&self, header: &Header, window: &mut Window, at: u64) -> Option<Frame> {
        let frame = Frame::decode(window.get(at, FRAME_BYTES), header.salt)?;
        (frame.seq > self.report.last_seq && frame.durable <= at).then_some(frame)
    }

    /// The first intact record behind a damaged place: its offset, and how much was durable when it was written.
    fn next_record(&self, header: &Header, window: &mut Window, at: u64, end: u64) -> Option<(u64, u64)> {
        (at + 1..end.saturating_sub(FRAME_BYTES as u64)).find_map(|at| {
            let frame = self.frame(header, window, at)?;
            let body = window.get(at + FRAME_BYTES as u64, frame.len as usize);
            let whole = body.len() == frame.len as usize && crc32c::crc32c(body) == frame.body_crc;
            (whole && parse_body(body).is_some()).then_some((at, frame.durable))
        })
    }

    /// Cuts a torn tail, so that nobody meets it again. If that fails, the next segment's header says the same.
    fn cut(&mut self, found: &Found, at: u64, end: u64, window: &Window) -> u64 {
        self.report.torn_tail_bytes += end - at;
        let path = &found.segment.path;
        if window.unreadable > 0 {
            // The disk refused to show some bytes; it may change its mind, so a copy is kept.
            self.damaged(found.segment.number, at..end, "unreadable", Some(found));
            return at;
        }
        let cut = found.segment.vfs.open_append(path).and_then(|f| f.set_len(at).and_then(|()| f.sync_data()));
        if let Err(e) = cut {
            tracing::warn!(path = %path.display(), len = at, error = %e, "cannot cut the torn tail of a segment");
        }
        at
    }

    fn damaged(&mut self, number: u64, bytes: Range<u64>, reason: &'static str, from: Option<&Found>) {
        self.report.damaged_places += 1;
        self.report.damaged_bytes += bytes.end - bytes.start;
        if self.report.damage.len() >= DAMAGE_REPORTS_MAX {
            return;
        }
        let copied = from.map(|f| copy_out(f, &self.quarantine, &bytes, reason)).transpose();
        let quarantined = copied.unwrap_or_else(|e| {
            tracing::warn!(segment = number, error = %e, "cannot copy damaged bytes of the log to the quarantine");
            None
        });
        tracing::error!(
            segment = number,
            ?bytes,
            reason,
            ?quarantined,
            "the log is damaged; the rest of it is served"
        );
        self.report.damage.push(Damage { segment: number, bytes, reason, quarantined });
    }
}

/// Copies a place of a segment to `wal-<segment>-<offset>-<length>.bin`, once, with a `.txt` that says why.
fn copy_out(found: &Found, quarantine: &Path, bytes: &Range<u64>, reason: &str) -> io::Result<PathBuf> {
    let vfs = &found.segment.vfs;
    vfs.create_dir_all(quarantine)?;
    let len = bytes.end - bytes.start;
    let stem = format!("wal-{:08}-{:010}-{len:010}", found.segment.number, bytes.start);
    let path = quarantine.join(format!("{stem}.bin"));
    match vfs.metadata(&path) {
        Ok(m) if m.len == len => return Ok(path), // from an earlier start
        Ok(_) => vfs.remove_file(&path)?,
        Err(_) => {}
    }
    let file = vfs.create_new(&path)?;
    let mut window = Window::new(found, bytes.end);
    let mut at = bytes.start;
    while at < bytes.end {
        let n = WINDOW_BYTES.min((bytes.end - at) as usize);
        let chunk = window.get(at, n);
        file.append(chunk)?;
        at += n as u64;
    }
    file.sync_data()?;
    let text = format!("segment {}\noffset {}\nlength {len}\n{reason}\n", found.segment.number, bytes.start);
    vfs.replace(&quarantine.join(format!("{stem}.txt")), text.as_bytes())?;
    Ok(path)
}

/// A moving view of a file's first `end` bytes. What the disk refuses to give reads as zeros, and is counted.
struct Window<'a> {
    file: Option<&'a dyn VfsFile>,
    end: u64,
    start: u64,
    bytes: Vec<u8>,
    unreadable: u64,
}

impl<'a> Window<'a> {
    fn new(found: &'a Found, end: u64) -> Self {
        Window { file: found.file.as_deref(), end, start: 0, bytes: Vec::new(), unreadable: 0 }
    }

    /// Up to `len` bytes from `at` on; fewer only at the end.
    fn get(&mut self, at: u64, len: usize) -> &[u8] {
        let len = len.min(usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX));
        let held = at >= self.start && at + len as u64 <= self.start + self.bytes.len() as u64;
        if !held {
            let n = len.max(WINDOW_BYTES).min((self.end - at.min(self.end)) as usize);
            self.bytes.clear();
            if n <= WINDOW_BYTES {
                self.bytes.shrink_to(WINDOW_BYTES); // after a large record
            }
            self.bytes.resize(n, 0);
            self.start = at;
            self.fill();
        }
        let from = (at - self.start) as usize;
        &self.bytes[from..from + len]
    }

    fn fill(&mut self) {
        let Some(file) = self.file else {
            self.unreadable += self.bytes.len() as u64;
            return;
        };
        if retry(|| file.read_exact_at(&mut self.bytes, self.start)).is_ok() {
            return;
        }
        for (i, page) in self.bytes.chunks_mut(PAGE_BYTES).enumerate() {
            let at = self.start + (i * PAGE_BYTES) as u64;
            if retry(|| file.read_exact_at(page, at)).is_err() {
                page.fill(0);
                self.unreadable += page.len() as u64;
            }
        }
    }
}

fn retry<T>(mut f: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut result = f();
    for _ in 1..READ_TRIES {
        if result.is_ok() {
            break;
        }
        result = f();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const USED: u64 = 5000;

    fn shape(number: u64, len: u64, chain: Option<(u64, u64)>) -> Shape {
        Shape { number, len, chain }
    }

    fn read(number: u64, end: Option<u64>, newest: bool) -> Step {
        Step::Read { number, end, newest }
    }

    #[test]
    fn a_chain_says_which_segments_count_and_how_far() {
        let one = shape(1, USED, Some((0, 0)));
        let two = shape(2, USED, Some((1, 4000)));
        assert_eq!(plan(&[]), []);
        assert_eq!(plan(&[one]), [read(1, None, true)]);
        assert_eq!(plan(&[one, two]), [read(1, Some(4000), false), read(2, None, true)]);
        // Released predecessors are no loss.
        assert_eq!(plan(&[two]), [read(2, None, true)]);
        // An unfinished newest segment was never used.
        assert_eq!(
            plan(&[one, shape(2, 10, None)]),
            [read(1, None, true), Step::Void { number: 2 }],
            "the one before it is the newest"
        );
        // A segment that its successor steps over is void, whatever is in it.
        let three = shape(3, USED, Some((1, 4500)));
        assert_eq!(
            plan(&[one, two, three]),
            [read(1, Some(4500), false), Step::Void { number: 2 }, read(3, None, true)]
        );
        // A hole under a chain is loss.
        let four = shape(4, USED, Some((3, 10)));
        assert_eq!(plan(&[one, four]), [read(1, None, false), Step::Missing { number: 3 }, read(4, None, true)]);
        // A used segment with a bad header is read (and found damaged); those below have no limit.
        let bad = shape(2, USED, None);
        let next = shape(3, USED, Some((2, USED)));
        assert_eq!(plan(&[one, bad, next]), [read(1, None, false), read(2, Some(USED), false), read(3, None, true)]);
    }
}
