//! What was made of a piece of input text the last times it was met, by the text itself.

use xxhash_rust::xxh3::xxh3_64;

use crate::codec::log_columns::ByHash;

/// Texts remembered at most; more are worked out each time.
const ENTRIES_MAX: usize = 65_536;

/// Lookups after which a cache that rarely hits is given up.
const TRIAL: u64 = 4096;

/// From raw text to what was made of it. Hits compare the text, not its hash alone.
pub struct RawCache<V> {
    by_hash: ByHash<(u32, u32, V)>,
    bytes: Vec<u8>,
    /// The entry found last: log lines come in runs.
    last: Option<(u32, u32, V)>,
    lookups: u64,
    hits: u64,
}

impl<V> Default for RawCache<V> {
    fn default() -> Self {
        RawCache { by_hash: ByHash::default(), bytes: Vec::new(), last: None, lookups: 0, hits: 0 }
    }
}

impl<V: Copy> RawCache<V> {
    fn text(&self, from: u32, len: u32) -> &[u8] {
        &self.bytes[from as usize..][..len as usize]
    }

    #[inline]
    pub fn get(&mut self, raw: &[u8]) -> Option<V> {
        self.lookups += 1;
        if let Some((from, len, v)) = self.last
            && self.text(from, len) == raw
        {
            self.hits += 1;
            return Some(v);
        }
        if !self.is_worth_it() {
            return None;
        }
        let (from, len, v) = *self.by_hash.get(&xxh3_64(raw))?;
        if self.text(from, len) != raw {
            return None;
        }
        self.hits += 1;
        self.last = Some((from, len, v));
        Some(v)
    }

    /// Remembers; of two texts with one hash the later.
    pub fn insert(&mut self, raw: &[u8], value: V) {
        if self.by_hash.len() >= ENTRIES_MAX
            || !self.is_worth_it()
            || u32::try_from(self.bytes.len() + raw.len()).is_err()
        {
            return;
        }
        let entry = (self.bytes.len() as u32, raw.len() as u32, value);
        self.bytes.extend_from_slice(raw);
        self.by_hash.insert(xxh3_64(raw), entry);
        self.last = Some(entry);
    }

    fn is_worth_it(&self) -> bool {
        self.lookups < TRIAL || self.hits * 4 > self.lookups
    }

    /// Forgets the entries, keeps what it learnt about its worth.
    pub fn clear(&mut self) {
        self.by_hash.clear();
        self.bytes.clear();
        self.last = None;
    }
}
