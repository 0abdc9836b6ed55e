//! The files being read, and one step of reading them: synchronous, with the time as a parameter.
//!
//! # Exactly once
//! A batch carries, for each file it has rows of, the position behind them, and [`super::reader`] only ever consumes a
//! prefix of a file. The sink keeps rows and positions in one record, batches are handed over in order, and at start each
//! file goes on at the position the sink has. So whatever instant the process dies at, a row is either kept and lies
//! before its file's position, or is read again.
//!
//! - *Renamed* files keep device, inode and beginning, so their position is found under the same key, at run time and at
//!   start; siblings named like rotations of a file belong to it.
//! - *Copied and truncated* files: the file itself begins anew. The copy has another inode but the old beginning, so its
//!   position is the one under (inode of the file, beginning of the copy). While file and copy begin alike, the copy waits.
//! - *Deleted* files are read to their end through the open descriptor.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use pipeline::{Batch, Positions};
use storage::model::TenantId;

use super::{
    counters::Counters,
    discover::{self, Discover, FILES_MAX, Target},
    filling::{FileRows, Filling, RowLabels},
    fingerprint::{self, FileId, HEAD_BYTES, Head},
    formats::Format,
    reader::{self, Force, LineLimits, Scratch, Wait},
    tracked::{Tracked, begins_as_known, modified, read_full},
};

/// What one read takes at first; grows for long lines up to the group limit and shrinks again.
const READ_BYTES: usize = 256 << 10;
/// Read from one file before the others have their turn.
const TURN_BYTES: u64 = 1 << 20;
/// Positions remembered beyond those of known files, against the time their batch needs to be kept.
const HANDED_MAX: usize = 2 * FILES_MAX;

/// How a tailer reads and when it hands over.
#[derive(Clone, Debug)]
pub struct Settings {
    pub tenant: TenantId,
    pub limits: LineLimits,
    pub batch_rows: usize,
    pub batch_bytes: usize,
    /// Age of a batch's oldest row at which it is handed over though not full.
    pub linger: Duration,
    /// Time after which open parts, and the last line of a plain file, are delivered as they are.
    pub partial_timeout: Duration,
    /// Between looks at the sizes of all known files.
    pub check_every: Duration,
    /// Between looks for new files.
    pub discover_every: Duration,
    /// Time without growth after which a file that was rotated away or is gone is closed.
    pub close_after: Duration,
}

/// The receiver of batches is gone.
#[derive(Debug)]
pub struct Closed;

/// What a step left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tick {
    /// There is more to read now.
    Busy,
    /// Nothing to do before so long, unless a file changes.
    Idle(Duration),
}

pub struct Tailer {
    settings: Settings,
    discover: Box<dyn Discover>,
    positions: Arc<dyn Positions>,
    counters: Arc<Counters>,
    files: BTreeMap<u64, Tracked>,
    by_id: HashMap<FileId, u64>,
    by_folder: HashMap<PathBuf, Vec<u64>>,
    next_number: u64,
    /// Positions in batches handed over or being filled; the sink may not have them yet.
    handed: HashMap<Arc<str>, u64>,
    filling: Filling,
    buffer: Vec<u8>,
    scratch: Scratch,
    next_discovery: Option<Instant>,
    next_check: Option<Instant>,
    discoveries: u64,
}

impl Tailer {
    pub fn new(
        settings: Settings,
        discover: Box<dyn Discover>,
        positions: Arc<dyn Positions>,
        counters: Arc<Counters>,
    ) -> Self {
        let nonce = format!("{:?} {}", SystemTime::now(), std::process::id());
        Tailer {
            filling: Filling::new(settings.tenant.clone(), xxhash_rust::xxh3::xxh3_64(nonce.as_bytes())),
            settings,
            discover,
            positions,
            counters,
            files: BTreeMap::new(),
            by_id: HashMap::new(),
            by_folder: HashMap::new(),
            next_number: 0,
            handed: HashMap::new(),
            buffer: Vec::new(),
            scratch: Scratch::default(),
            next_discovery: None,
            next_check: None,
            discoveries: 0,
        }
    }

    /// Changes with each discovery: the folders to watch may have changed too.
    pub fn discoveries(&self) -> u64 {
        self.discoveries
    }

    /// Folders whose changes matter.
    pub fn folders(&self) -> HashSet<PathBuf> {
        self.by_folder.keys().cloned().chain(self.discover.folders()).collect()
    }

    /// Something in `folder` was written to.
    pub fn touched(&mut self, folder: &Path) {
        for number in self.by_folder.get(folder).into_iter().flatten() {
            if let Some(f) = self.files.get_mut(number) {
                f.dirty = true;
            }
        }
    }

    /// Something came, went or was renamed.
    pub fn rediscover_soon(&mut self) {
        self.next_discovery = None;
    }

    /// One step: look for files when it is time, read what has changed, hand over what is due.
    pub fn tick(&mut self, now: Instant, hand: &mut dyn FnMut(Batch) -> bool) -> Result<Tick, Closed> {
        if self.next_discovery.is_none_or(|t| t <= now) {
            self.rediscover(now);
            self.next_discovery = Some(now + self.settings.discover_every);
        }
        let check = self.next_check.is_none_or(|t| t <= now);
        if check {
            self.next_check = Some(now + self.settings.check_every);
            self.files.values_mut().filter(|f| f.file.is_some()).for_each(|f| f.dirty = true);
        }
        let mut busy = false;
        let dirty: Vec<u64> = self.files.iter().filter(|(_, f)| f.dirty).map(|(n, _)| *n).collect();
        for number in dirty {
            busy |= self.visit(number, now, hand)?;
        }
        if check {
            self.let_go(now);
            let lag = self.files.values().map(|f| f.size.saturating_sub(f.offset)).sum();
            self.counters.lag_bytes.store(lag, Relaxed);
            self.counters.files.store(self.files.len() as u64, Relaxed);
        }
        let due = self.filling.since().map(|s| s + self.settings.linger);
        if due.is_some_and(|d| d <= now) {
            self.flush(hand)?;
        }
        if busy || self.next_discovery.is_none() {
            return Ok(Tick::Busy);
        }
        let next = [self.next_discovery, self.next_check, self.filling.since().map(|s| s + self.settings.linger)];
        let next = next.into_iter().flatten().min().map_or(self.settings.check_every, |t| t - now);
        Ok(Tick::Idle(next))
    }

    /// Hands over what is there.
    pub fn flush(&mut self, hand: &mut dyn FnMut(Batch) -> bool) -> Result<(), Closed> {
        let taken = self.filling.finish().is_none_or(hand);
        if taken { Ok(()) } else { Err(Closed) }
    }

    fn rediscover(&mut self, now: Instant) {
        self.discoveries += 1;
        let targets = self.discover.discover();
        let mut seen = HashSet::new();
        let mut live = Vec::with_capacity(targets.len());
        for target in &targets {
            live.push(self.note(target, &target.path, None, now, &mut seen));
        }
        let siblings = discover::rotated(targets.iter().map(|t| t.path.as_path()));
        for (target, live) in targets.iter().zip(live) {
            for path in siblings.get(&target.path).into_iter().flatten() {
                self.note(target, path, Some(live), now, &mut seen);
            }
        }
        for (number, f) in &mut self.files {
            match seen.contains(number) {
                true => f.unseen = None,
                false => drop(f.unseen.get_or_insert(now)),
            }
        }
        self.by_folder.clear();
        for (number, f) in &self.files {
            if let Some(folder) = f.path.parent() {
                self.by_folder.entry(folder.to_owned()).or_default().push(*number);
            }
        }
    }

    /// Takes up the file at `path`, or notes where a known file is now. `live`: given for rotated siblings, the file now at
    /// the target's own path.
    fn note(
        &mut self,
        target: &Arc<Target>,
        path: &Path,
        live: Option<Option<FileId>>,
        now: Instant,
        seen: &mut HashSet<u64>,
    ) -> Option<FileId> {
        let rotated = live.is_some();
        let meta = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        let id = FileId::from(&meta);
        if let Some(number) = self.by_id.get(&id).copied()
            && let Some(f) = self.files.get_mut(&number)
        {
            if seen.insert(number) {
                if rotated && !f.rotated {
                    Counters::add(&self.counters.rotations, 1);
                }
                f.rotated = rotated;
                if f.path != path {
                    f.path = path.to_owned();
                }
                if *f.target != **target {
                    (f.target, f.labels) = (target.clone(), RowLabels::of(target));
                }
                if f.file.is_none() && (meta.len(), modified(&meta)) != (f.size, f.modified) {
                    f.file = File::open(path).ok().filter(|o| o.metadata().is_ok_and(|m| FileId::from(&m) == id));
                    f.grown = now;
                }
                f.dirty |= f.file.is_some();
            }
            return Some(id);
        }
        if self.files.len() >= FILES_MAX {
            tracing::warn!(path = %path.display(), limit = FILES_MAX, "more files than the limit; this one is not read");
            return Some(id);
        }
        let opened = File::open(path).and_then(|f| f.metadata().map(|m| (f, m)));
        let (file, meta) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.failed(path, &error);
                return Some(id);
            }
        };
        // Between the look and the opening another file may have taken the path.
        let id = FileId::from(&meta);
        if self.by_id.contains_key(&id) {
            return Some(id);
        }
        let copy_of = live.flatten();
        if let Some(original) = copy_of.and_then(|o| self.by_id.get(&o)).and_then(|n| self.files.get(n)) {
            let mut head = [0; HEAD_BYTES];
            let n = read_full(&file, &mut head, 0).unwrap_or(0);
            // A copy of what the live file still holds, perhaps not finished: its rows come from the live file.
            let waits = match &original.known {
                Some((h, _)) => h.matches(&head[..n]),
                None => original.size > 0,
            };
            if n == 0 || waits {
                return Some(id);
            }
        }
        let number = self.next_number;
        self.next_number += 1;
        let mut f = Tracked {
            target: target.clone(),
            labels: RowLabels::of(target),
            path: path.to_owned(),
            id,
            file: Some(file),
            known: None,
            resolved: false,
            offset: 0,
            size: meta.len(),
            modified: (0, 0),
            waiting: None,
            grown: now,
            rotated,
            deleted: false,
            unseen: None,
            dirty: true,
            copy_of,
        };
        let mut head = [0; HEAD_BYTES];
        if let Some(n) = f.file.as_ref().and_then(|o| read_full(o, &mut head, 0).ok()) {
            self.identify(&mut f, &head[..n]);
        }
        if !target.from_start && !f.resolved && self.discoveries == 1 {
            (f.offset, f.resolved) = (f.size, true);
        }
        seen.insert(number);
        self.by_id.insert(id, number);
        self.files.insert(number, f);
        Some(id)
    }

    fn failed(&self, path: &Path, error: &io::Error) {
        Counters::add(&self.counters.errors, 1);
        if self.discoveries == 1 || error.kind() != io::ErrorKind::PermissionDenied {
            tracing::warn!(path = %path.display(), %error, "cannot read log file; it is tried again");
        }
    }

    /// Finds out what the file is from its first bytes and, once, where to go on in it.
    fn identify(&self, f: &mut Tracked, head: &[u8]) {
        let whole = Head::of(head);
        if let Some(h) = whole {
            f.known = Some((h, fingerprint::key(f.id, h).into()));
        }
        if f.resolved {
            return;
        }
        // A file may have been read to its end before its first line was whole: its position is under fewer bytes then.
        let longest = whole.map_or(head.len(), |h| h.len);
        let mut found = (1..=longest).rev().find_map(|len| {
            let h = Head::first(head, len);
            let key = fingerprint::key(f.id, h);
            self.position(&key, f.size).map(|p| (h, key, p))
        });
        if found.is_none()
            && let (Some(h), Some(original)) = (whole, f.copy_of)
        {
            let position = self.position(&fingerprint::key(original, h), f.size);
            found = position.map(|p| (h, fingerprint::key(f.id, h), p));
        }
        match found {
            Some((h, key, position)) => {
                f.offset = position;
                f.resolved = true;
                f.known.get_or_insert((h, key.into()));
            }
            None if whole.is_some() => {
                let skip = !f.target.from_start && self.discoveries == 1;
                f.offset = if skip { f.size } else { f.offset };
                f.resolved = true;
            }
            None => {}
        }
    }

    /// A position beyond the end of the file is not the file's.
    fn position(&self, key: &str, size: u64) -> Option<u64> {
        let known = self.handed.get(key).copied();
        known.or_else(|| self.positions.position(&self.settings.tenant, key)).filter(|p| *p <= size)
    }

    /// Reads what a file has, at most [`TURN_BYTES`]. Whether there is more.
    fn visit(&mut self, number: u64, now: Instant, hand: &mut dyn FnMut(Batch) -> bool) -> Result<bool, Closed> {
        let Some(mut f) = self.files.remove(&number) else { return Ok(false) };
        let read = self.read(&mut f, now, hand);
        f.dirty = matches!(read, Ok(true) | Err(ReadEnd::Closed));
        let outcome = match read {
            Ok(more) => Ok(more),
            Err(ReadEnd::Closed) => Err(Closed),
            Err(ReadEnd::Io(error)) => {
                self.failed(&f.path, &error);
                Ok(false)
            }
        };
        self.files.insert(number, f);
        outcome
    }

    fn read(&mut self, f: &mut Tracked, now: Instant, hand: &mut dyn FnMut(Batch) -> bool) -> Result<bool, ReadEnd> {
        let Some(file) = f.file.take() else { return Ok(false) };
        let outcome = self.read_open(f, &file, now, hand);
        f.file = Some(file);
        // Long lines are rare: their buffer is not kept.
        if self.buffer.len() > READ_BYTES + 1 {
            self.buffer = Vec::new();
        }
        outcome
    }

    fn read_open(
        &mut self,
        f: &mut Tracked,
        file: &File,
        now: Instant,
        hand: &mut dyn FnMut(Batch) -> bool,
    ) -> Result<bool, ReadEnd> {
        let meta = file.metadata().map_err(ReadEnd::Io)?;
        if meta.len() != f.size {
            f.grown = now;
        }
        let touched = modified(&meta) != f.modified;
        (f.size, f.deleted, f.modified) = (meta.len(), meta.nlink() == 0, modified(&meta));
        if f.size < f.offset {
            self.begin_anew(f);
        }
        if touched && f.size == f.offset && !begins_as_known(f, file) {
            self.begin_anew(f);
        }
        let force = self.force(f, now);
        let turn_end = f.offset.saturating_add(TURN_BYTES);
        let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
        let mut read_bytes = READ_BYTES;
        while f.offset < f.size {
            // One byte more than asked for: the one before tells whether the position is within a line.
            let before = u64::from(f.offset > 0);
            if self.buffer.len() < read_bytes + 1 {
                self.buffer.resize(read_bytes + 1, 0);
            }
            let window = &mut self.buffer[..read_bytes + before as usize];
            let n = read_full(file, window, f.offset - before).map_err(ReadEnd::Io)?;
            // What came since the size was taken is left for the next look.
            let n = n.min(usize::try_from(f.size - f.offset + before).unwrap_or(usize::MAX));
            let mut head = [0; HEAD_BYTES];
            let head_n = read_full(file, &mut head, 0).map_err(ReadEnd::Io)?;
            let head = &head[..head_n];
            // Looked at after the read, so that what was read is known to be of the same content.
            match &f.known {
                Some((h, _)) if !h.matches(head) => {
                    self.begin_anew(f);
                    f.size = file.metadata().map_err(ReadEnd::Io)?.len();
                    continue;
                }
                Some(_) => {}
                None => {
                    let at = f.offset;
                    self.identify(f, head);
                    if f.offset != at {
                        continue;
                    }
                }
            }
            if (n as u64) <= before {
                break;
            }
            let mid_line = before == 1 && self.buffer[0] != b'\n';
            let rows_before = self.filling.rows();
            let mut rows = FileRows {
                filling: &mut self.filling,
                labels: &f.labels,
                counters: &self.counters,
                now_ns,
                rows_max: self.settings.batch_rows,
            };
            // Force is for what the file holds to its end, not for what one read holds.
            let to_end = f.offset + n as u64 - before >= f.size;
            let (done, wait) = reader::consume(
                f.target.format,
                &self.buffer[before as usize..n],
                mid_line,
                if to_end { force } else { Force::Nothing },
                self.settings.limits,
                &mut self.scratch,
                &mut rows,
            );
            f.offset += done as u64;
            Counters::add(&self.counters.bytes, done);
            if self.filling.rows() > rows_before {
                let (_, key) = f.known.get_or_insert_with(|| {
                    let h = Head::first(head, head.len());
                    (h, fingerprint::key(f.id, h).into())
                });
                f.resolved = true;
                self.filling.reached(key, f.offset, now);
                self.handed.insert(key.clone(), f.offset);
            }
            if self.filling.rows() >= self.settings.batch_rows
                || self.filling.body_bytes() >= self.settings.batch_bytes
            {
                self.flush(hand).map_err(|Closed| ReadEnd::Closed)?;
            }
            match wait {
                Wait::Line | Wait::Parts if !to_end && done == 0 => {
                    read_bytes = (read_bytes * 2).min(self.settings.limits.group_bytes_max.max(READ_BYTES));
                }
                Wait::Line | Wait::Parts if to_end => {
                    if f.waiting.is_none_or(|(at, why, _)| (at, why) != (f.offset, wait)) {
                        f.waiting = Some((f.offset, wait, now));
                    }
                    return Ok(false);
                }
                _ => {}
            }
            if f.offset >= turn_end {
                return Ok(f.offset < f.size);
            }
        }
        f.waiting = None;
        Ok(false)
    }

    /// What is to be delivered though unfinished.
    fn force(&self, f: &Tracked, now: Instant) -> Force {
        let patience = self.settings.partial_timeout;
        let quiet = now.saturating_duration_since(f.grown) >= patience;
        let waited = |(at, _, since): (u64, Wait, Instant)| at == f.offset && now.duration_since(since) >= patience;
        match f.waiting {
            Some(w) if waited(w) && quiet && (f.deleted || f.rotated || f.target.format == Format::Plain) => {
                Force::All
            }
            Some(w) if waited(w) && w.1 == Wait::Parts => Force::Parts,
            _ => Force::Nothing,
        }
    }

    /// The file was truncated, perhaps written anew already. What it held and was not read may be in a copy beside it.
    fn begin_anew(&mut self, f: &mut Tracked) {
        Counters::add(&self.counters.truncations, 1);
        (f.known, f.offset, f.waiting, f.resolved) = (None, 0, None, true);
        self.next_discovery = None;
    }

    /// Closes and forgets files that are done with.
    fn let_go(&mut self, now: Instant) {
        let close_after = self.settings.close_after;
        let mut gone = Vec::new();
        for (number, f) in &mut self.files {
            let quiet = now.saturating_duration_since(f.grown) >= close_after;
            let at_end = f.offset >= f.size && f.waiting.is_none();
            let unseen = f.unseen.is_some_and(|since| now.duration_since(since) >= close_after);
            let left_unfinished = f.waiting.is_some() && !f.deleted;
            let done = if unseen { at_end || left_unfinished } else { f.deleted && at_end };
            if quiet && done {
                gone.push((*number, f.id));
            } else if f.rotated && at_end && quiet {
                f.file = None;
            }
        }
        for (number, id) in gone {
            self.files.remove(&number);
            self.by_id.remove(&id);
        }
        if self.handed.len() > HANDED_MAX {
            let known: HashSet<Arc<str>> =
                self.files.values().filter_map(|f| f.known.as_ref().map(|(_, k)| k.clone())).collect();
            self.handed.retain(|key, _| known.contains(key));
        }
    }
}

enum ReadEnd {
    Closed,
    Io(io::Error),
}
