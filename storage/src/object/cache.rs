//! What was read from a store far away, kept on the local disk in blocks: bounded, checked, least recently used out first.
//!
//! **For** the bytes of parts, which never change under their name. **Not for** logs and checkpoints.
//!
//! Two files: `blocks`, slots of [`BLOCK_BYTES`] each, and `index`, one entry a slot; see `docs/format.md`. Nothing is synced: an
//! entry counts only if its own checksum and that of its block's bytes are right, so after a crash, or with a disk that
//! rots, a block is read again from the store, never wrongly. A disk that fails or fills costs speed, not answers.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128;

use super::{ObjectInfo, ObjectWriter, Objects, PutMode};

/// What is kept, and fetched at least, as one: the bytes of one checksum of a part, so that no more is fetched than is verified.
/// Neighbours are fetched by one request.
pub const BLOCK_BYTES: u64 = 16 << 10;

/// Fewer slots than this are no cache.
const SLOTS_MIN: u64 = 16;

const MAGIC: &[u8; 8] = b"SLCACHE1";
const HEADER_BYTES: u64 = 16;
const ENTRY_BYTES: usize = 40;
const NIL: u32 = u32::MAX;

/// Hash of the object's name, and which block of it.
type Key = (u128, u32);

#[derive(Debug, Default)]
pub struct CacheStats {
    /// Bytes served from the disk, and bytes that had to be fetched.
    pub hit_bytes: AtomicU64,
    pub miss_bytes: AtomicU64,
    /// Blocks whose bytes were not what was written.
    pub damaged: AtomicU64,
    pub held_bytes: AtomicU64,
}

/// Blocks on the local disk.
#[derive(Debug)]
pub struct BlockCache {
    blocks: File,
    index: File,
    slots: u32,
    state: Mutex<State>,
    /// The disk gave an error: nothing more is written.
    failed: AtomicBool,
    pub stats: CacheStats,
}

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<Key, u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Least and most recently used.
    oldest: u32,
    newest: u32,
    /// Blocks that are being written.
    writing: HashSet<Key>,
    tick: u64,
}

#[derive(Clone, Debug)]
struct Slot {
    key: Option<Key>,
    len: u32,
    crc: u32,
    /// Neighbours by age.
    older: u32,
    newer: u32,
}

impl Slot {
    const EMPTY: Slot = Slot { key: None, len: 0, crc: 0, older: NIL, newer: NIL };
}

impl State {
    fn unlink(&mut self, slot: u32) {
        let Slot { older, newer, .. } = self.slots[slot as usize];
        match older {
            NIL => self.oldest = newer,
            o => self.slots[o as usize].newer = newer,
        }
        match newer {
            NIL => self.newest = older,
            n => self.slots[n as usize].older = older,
        }
    }

    fn link_newest(&mut self, slot: u32) {
        let before = std::mem::replace(&mut self.newest, slot);
        self.slots[slot as usize].older = before;
        self.slots[slot as usize].newer = NIL;
        match before {
            NIL => self.oldest = slot,
            b => self.slots[b as usize].newer = slot,
        }
    }

    fn touch(&mut self, slot: u32) {
        if self.newest != slot {
            self.unlink(slot);
            self.link_newest(slot);
        }
    }

    /// Empties a slot that is in use.
    fn release(&mut self, slot: u32) {
        self.unlink(slot);
        if let Some(key) = std::mem::replace(&mut self.slots[slot as usize], Slot::EMPTY).key {
            self.held.remove(&key);
        }
    }

    /// A slot for a new block, which nobody sees until it is linked.
    fn claim(&mut self, limit: u32) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if (self.slots.len() as u32) < limit {
            self.slots.push(Slot::EMPTY);
            return Some(self.slots.len() as u32 - 1);
        }
        let slot = self.oldest;
        (slot != NIL).then(|| {
            self.release(slot);
            slot
        })
    }
}

fn encode(key: Option<Key>, len: u32, crc: u32, tick: u64) -> [u8; ENTRY_BYTES] {
    let mut out = [0; ENTRY_BYTES];
    let (name, block) = key.unwrap_or((0, 0));
    out[..16].copy_from_slice(&name.to_le_bytes());
    out[16..20].copy_from_slice(&block.to_le_bytes());
    out[20..24].copy_from_slice(&len.to_le_bytes());
    out[24..28].copy_from_slice(&crc.to_le_bytes());
    out[28..36].copy_from_slice(&tick.to_le_bytes());
    let sum = crc32c::crc32c(&out[..36]);
    out[36..].copy_from_slice(&sum.to_le_bytes());
    out
}

/// Key, length, checksum and age of an entry that is intact and in use.
fn decode(entry: &[u8]) -> Option<(Key, u32, u32, u64)> {
    let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes"));
    if crc32c::crc32c(&entry[..36]) != word(36) {
        return None;
    }
    let name = u128::from_le_bytes(entry[..16].try_into().expect("sixteen bytes"));
    let len = word(20);
    let tick = u64::from_le_bytes(entry[28..36].try_into().expect("eight bytes"));
    (len > 0 && u64::from(len) <= BLOCK_BYTES).then_some(((name, word(16)), len, word(24), tick))
}

impl BlockCache {
    /// Opens or makes the cache in `dir`, which holds nothing else. `bytes`: its bound; at most half of what the disk has
    /// left for it. `None`: too small to be of use.
    pub fn open(dir: &Path, bytes: u64) -> io::Result<Option<BlockCache>> {
        let open =
            |name: &str| File::options().read(true).write(true).create(true).truncate(false).open(dir.join(name));
        if bytes / BLOCK_BYTES < SLOTS_MIN {
            match fs::remove_dir_all(dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => return Ok(None),
            }
        }
        fs::create_dir_all(dir)?;
        let (blocks, index) = (open("blocks")?, open("index")?);
        let room = rustix::fs::statvfs(dir).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
        let bytes = bytes.min(room.saturating_add(blocks.metadata()?.len()) / 2);
        let slots = u32::try_from(bytes / BLOCK_BYTES).unwrap_or(NIL - 1).min(NIL - 1);
        if u64::from(slots) < SLOTS_MIN {
            return Ok(None);
        }
        let mut header = [0; HEADER_BYTES as usize];
        header[..8].copy_from_slice(MAGIC);
        header[8..16].copy_from_slice(&BLOCK_BYTES.to_le_bytes());
        let mut found = vec![0; HEADER_BYTES as usize];
        let ours = index.read_exact_at(&mut found, 0).is_ok() && found == header;
        let mut entries = Vec::new();
        if ours {
            let len = index.metadata()?.len().saturating_sub(HEADER_BYTES) as usize / ENTRY_BYTES;
            entries = vec![0; len.min(slots as usize) * ENTRY_BYTES];
            index.read_exact_at(&mut entries, HEADER_BYTES)?;
        } else {
            index.set_len(0)?;
            blocks.set_len(0)?;
            index.write_all_at(&header, 0)?;
        }
        if blocks.metadata()?.len() > u64::from(slots) * BLOCK_BYTES {
            blocks.set_len(u64::from(slots) * BLOCK_BYTES)?;
            index.set_len(HEADER_BYTES + u64::from(slots) * ENTRY_BYTES as u64)?;
        }
        let cache = BlockCache {
            blocks,
            index,
            slots,
            state: Mutex::new(load(&entries)),
            failed: AtomicBool::new(false),
            stats: CacheStats::default(),
        };
        cache.count(&cache.state.lock());
        Ok(Some(cache))
    }

    fn count(&self, state: &State) {
        self.stats.held_bytes.store(state.held.len() as u64 * BLOCK_BYTES, Ordering::Relaxed);
    }

    /// The bytes of a block, if they are here and as they were written.
    fn get(&self, key: Key) -> Option<Bytes> {
        let (slot, len, crc) = {
            let mut state = self.state.lock();
            let slot = *state.held.get(&key)?;
            state.touch(slot);
            let Slot { len, crc, .. } = state.slots[slot as usize];
            (slot, len, crc)
        };
        let mut bytes = vec![0; len as usize];
        let read = self.blocks.read_exact_at(&mut bytes, u64::from(slot) * BLOCK_BYTES);
        if read.is_ok() && crc32c::crc32c(&bytes) == crc {
            self.stats.hit_bytes.fetch_add(u64::from(len), Ordering::Relaxed);
            return Some(bytes.into());
        }
        let mut state = self.state.lock();
        // Unless the slot was given to another block meanwhile.
        if state.held.get(&key) == Some(&slot) && state.slots[slot as usize].crc == crc {
            state.release(slot);
            state.free.push(slot);
            self.stats.damaged.fetch_add(1, Ordering::Relaxed);
        }
        None
    }

    fn put(&self, key: Key, bytes: &[u8]) {
        if bytes.is_empty() || self.failed.load(Ordering::Relaxed) {
            return;
        }
        let (slot, tick) = {
            let mut state = self.state.lock();
            if state.held.contains_key(&key) || !state.writing.insert(key) {
                return;
            }
            let Some(slot) = state.claim(self.slots) else {
                state.writing.remove(&key);
                return;
            };
            state.tick += 1;
            (slot, state.tick)
        };
        let (len, crc) = (bytes.len() as u32, crc32c::crc32c(bytes));
        let at = HEADER_BYTES + u64::from(slot) * ENTRY_BYTES as u64;
        let written = self
            .blocks
            .write_all_at(bytes, u64::from(slot) * BLOCK_BYTES)
            .and_then(|()| self.index.write_all_at(&encode(Some(key), len, crc, tick), at));
        let mut state = self.state.lock();
        state.writing.remove(&key);
        match written {
            Ok(()) => {
                state.slots[slot as usize] = Slot { key: Some(key), len, crc, older: NIL, newer: NIL };
                state.held.insert(key, slot);
                state.link_newest(slot);
                self.count(&state);
            }
            Err(e) => {
                state.free.push(slot);
                if !self.failed.swap(true, Ordering::Relaxed) {
                    tracing::warn!(error = %e, "cannot write the read cache; it takes nothing more until the next start");
                }
            }
        }
    }

    /// Gives up what is held of an object.
    fn forget(&self, path: &str) {
        let name = xxh3_128(path.as_bytes());
        let mut state = self.state.lock();
        let gone: Vec<u32> = state.held.range((name, 0)..=(name, u32::MAX)).map(|(_, slot)| *slot).collect();
        for slot in gone {
            state.release(slot);
            state.free.push(slot);
        }
        self.count(&state);
    }

    /// Writes down which blocks were used last, for the next start.
    pub fn save_order(&self) {
        let state = self.state.lock();
        let mut entries = vec![encode(None, 0, 0, 0); state.slots.len()];
        let (mut slot, mut tick) = (state.oldest, 0);
        while slot != NIL {
            let s = &state.slots[slot as usize];
            entries[slot as usize] = encode(s.key, s.len, s.crc, tick);
            (slot, tick) = (s.newer, tick + 1);
        }
        if let Err(e) = self.index.write_all_at(&entries.concat(), HEADER_BYTES) {
            tracing::debug!(error = %e, "cannot save the order of the read cache");
        }
    }
}

fn load(entries: &[u8]) -> State {
    let mut state = State { oldest: NIL, newest: NIL, ..State::default() };
    let mut live: Vec<(u64, u32, Slot)> = Vec::new();
    let mut seen = HashSet::new();
    for (slot, entry) in entries.chunks_exact(ENTRY_BYTES).enumerate() {
        state.slots.push(Slot::EMPTY);
        match decode(entry) {
            Some((key, len, crc, tick)) if seen.insert(key) => {
                live.push((tick, slot as u32, Slot { key: Some(key), len, crc, older: NIL, newer: NIL }));
            }
            _ => state.free.push(slot as u32),
        }
    }
    live.sort_unstable_by_key(|(tick, slot, _)| (*tick, *slot));
    for (tick, at, slot) in live {
        state.tick = tick;
        state.held.extend(slot.key.map(|key| (key, at)));
        state.slots[at as usize] = slot;
        state.link_newest(at);
    }
    state
}

/// A store whose parts are read through a cache. Parts that are written go into it on their way, because what is new is what
/// merges and queries want next.
#[derive(Clone, Debug)]
pub struct Cached {
    inner: Arc<dyn Objects>,
    cache: Arc<BlockCache>,
}

/// Only parts: their names are never used again.
fn cacheable(path: &str) -> bool {
    path.ends_with(".parquet") && path.contains("/day=")
}

fn blocks_of(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES)
}

impl Cached {
    pub fn new(inner: Arc<dyn Objects>, cache: Arc<BlockCache>) -> Self {
        Cached { inner, cache }
    }

    /// All blocks of the ranges, from here or, near ones together, from the store.
    fn read(&self, path: &str, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>> {
        let name = xxh3_128(path.as_bytes());
        let mut have: BTreeMap<u64, Bytes> = BTreeMap::new();
        let mut missing: Vec<Range<u64>> = Vec::new();
        let mut wanted: Vec<u64> = ranges.iter().flat_map(blocks_of).collect();
        wanted.sort_unstable();
        wanted.dedup();
        for block in wanted {
            match u32::try_from(block).ok().and_then(|b| self.cache.get((name, b))) {
                Some(bytes) => {
                    let last = (bytes.len() as u64) < BLOCK_BYTES;
                    have.insert(block, bytes);
                    // Behind it there is nothing to ask for.
                    if last {
                        break;
                    }
                }
                None => match missing.last_mut() {
                    Some(run) if run.end == block => run.end += 1,
                    _ => missing.push(block..block + 1),
                },
            }
        }
        let fetch: Vec<Range<u64>> = missing.iter().map(|m| m.start * BLOCK_BYTES..m.end * BLOCK_BYTES).collect();
        let fetched = if fetch.is_empty() { Vec::new() } else { self.inner.get_ranges(path, &fetch)? };
        for (run, bytes) in missing.iter().zip(fetched) {
            self.cache.stats.miss_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            let size = BLOCK_BYTES as usize;
            for (i, block) in (run.start..run.end).enumerate() {
                // The last block of an object is shorter.
                let piece = bytes.slice((i * size).min(bytes.len())..((i + 1) * size).min(bytes.len()));
                if let Ok(b) = u32::try_from(block) {
                    self.cache.put((name, b), &piece);
                }
                have.insert(block, piece);
            }
        }
        ranges.iter().map(|range| cut(path, range, &have)).collect()
    }
}

/// The bytes of a range out of its blocks; fewer where the object ends.
fn cut(path: &str, range: &Range<u64>, have: &BTreeMap<u64, Bytes>) -> io::Result<Bytes> {
    let piece = |block: u64| {
        let bytes = have.get(&block).cloned().unwrap_or_default();
        let start = range.start.saturating_sub(block * BLOCK_BYTES).min(bytes.len() as u64);
        let end = (range.end - block * BLOCK_BYTES).min(bytes.len() as u64);
        bytes.slice(start as usize..end as usize)
    };
    let blocks = blocks_of(range);
    let out = if blocks.end - blocks.start == 1 {
        piece(blocks.start)
    } else {
        let mut out = BytesMut::with_capacity((range.end - range.start) as usize);
        blocks.for_each(|b| out.extend_from_slice(&piece(b)));
        out.freeze()
    };
    if out.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("range {range:?} lies behind the end of {path}"),
        ));
    }
    Ok(out)
}

impl Objects for Cached {
    fn put(&self, path: &str, bytes: &[u8], mode: PutMode) -> io::Result<()> {
        self.inner.put(path, bytes, mode)
    }

    fn get(&self, path: &str) -> io::Result<Bytes> {
        self.inner.get(path)
    }

    fn get_range(&self, path: &str, range: Range<u64>) -> io::Result<Bytes> {
        if !cacheable(path) || range.start >= range.end {
            return self.inner.get_range(path, range);
        }
        Ok(self.read(path, std::slice::from_ref(&range))?.swap_remove(0))
    }

    fn get_ranges(&self, path: &str, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>> {
        if !cacheable(path) || ranges.iter().any(|r| r.start >= r.end) {
            return self.inner.get_ranges(path, ranges);
        }
        self.read(path, ranges)
    }

    fn get_range_again(&self, path: &str, range: Range<u64>) -> io::Result<Bytes> {
        self.cache.forget(path);
        self.inner.get_range_again(path, range)
    }

    fn head(&self, path: &str) -> io::Result<ObjectInfo> {
        self.inner.head(path)
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<ObjectInfo>> {
        self.inner.list(prefix)
    }

    fn delete(&self, path: &str) -> io::Result<()> {
        self.cache.forget(path);
        self.inner.delete(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.cache.forget(from);
        self.inner.rename(from, to)
    }

    fn settle(&self, path: &str) -> io::Result<()> {
        self.inner.settle(path)
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn ObjectWriter>> {
        let inner = self.inner.create(path)?;
        if !cacheable(path) {
            return Ok(inner);
        }
        let name = xxh3_128(path.as_bytes());
        Ok(Box::new(CachedWriter { inner, cache: self.cache.clone(), name, block: 0, gathered: Vec::new() }))
    }

    fn may_land_late(&self) -> bool {
        self.inner.may_land_late()
    }
}

struct CachedWriter {
    inner: Box<dyn ObjectWriter>,
    cache: Arc<BlockCache>,
    name: u128,
    block: u32,
    gathered: Vec<u8>,
}

impl CachedWriter {
    fn keep(&mut self) {
        self.cache.put((self.name, self.block), &self.gathered);
        self.gathered.clear();
        self.block = self.block.saturating_add(1);
    }
}

impl Write for CachedWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        let mut rest = &buf[..n];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES as usize - self.gathered.len()));
            self.gathered.extend_from_slice(now);
            rest = later;
            if self.gathered.len() as u64 == BLOCK_BYTES {
                self.keep();
            }
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl ObjectWriter for CachedWriter {
    fn finish(mut self: Box<Self>) -> io::Result<u64> {
        self.keep();
        self.inner.finish()
    }

    fn written(&self) -> u64 {
        self.inner.written()
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
