//! Series that the store knows, by the bytes of their labels as a sender writes them, so that a sample of one costs neither
//! its labels' reading nor their writing.
//!
//! Filled with what the store has acknowledged. It stands for one day, the latest: a series has a row for each day, which
//! the store makes from its labels. What is in here may be wrong, after a delete; then the store says so, the caller calls
//! [`KnownSeries::forget`] and sends the labels.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState},
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Series remembered of one tenant: some 100 MB.
pub const KNOWN_SERIES_MAX: usize = 3_500_000;

const MS_PER_DAY: i64 = 86_400_000;

/// Hash of the bytes of a series' labels; 128 bits, of a seed that is this process' own, stand for the bytes.
pub type LabelsHash = [u64; 2];

/// Takes one half of such a hash as the hash of it.
#[derive(Default)]
struct Half(u64);

impl Hasher for Half {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64(bytes);
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

#[derive(Default)]
struct State {
    /// Days since the epoch.
    day: i64,
    /// First half of the hash to the other and the series' id.
    ids: HashMap<u64, (u64, i64), BuildHasherDefault<Half>>,
    /// Grows when something is forgotten: what was found out before may not be entered after.
    generation: u64,
}

/// The known series of one tenant.
pub struct KnownSeries {
    seed: u64,
    state: RwLock<State>,
}

impl Default for KnownSeries {
    fn default() -> Self {
        KnownSeries { seed: RandomState::new().hash_one(0u8), state: RwLock::default() }
    }
}

/// What a request declared, to be remembered once the store has it.
#[derive(Debug, Default)]
pub struct Declared {
    generation: u64,
    /// With the day of the points.
    series: Vec<(LabelsHash, i64, i64)>,
}

impl Declared {
    pub fn push(&mut self, labels: LabelsHash, id: i64, day: i64) {
        self.series.push((labels, id, day));
    }
}

/// The known series, for as long as a request is read.
pub struct Look<'a> {
    seed: u64,
    state: RwLockReadGuard<'a, State>,
}

impl Look<'_> {
    pub fn hash(&self, labels: &[u8]) -> LabelsHash {
        let hash = xxh3_128_with_seed(labels, self.seed);
        [hash as u64, (hash >> 64) as u64]
    }

    /// The id of the series with these labels, if the store has it on its day.
    #[inline]
    pub fn id(&self, labels: LabelsHash) -> Option<i64> {
        self.state.ids.get(&labels[0]).filter(|(half, _)| *half == labels[1]).map(|(_, id)| *id)
    }

    /// Whether a point of this time, ms, is of the day.
    #[inline]
    pub fn is_of_day(&self, ms: i64) -> bool {
        day_of(ms) == self.state.day
    }

    pub fn declares(&self) -> Declared {
        Declared { generation: self.state.generation, series: Vec::new() }
    }
}

/// Days since the epoch.
pub fn day_of(ms: i64) -> i64 {
    ms.div_euclid(MS_PER_DAY)
}

impl KnownSeries {
    pub fn look(&self) -> Look<'_> {
        Look { seed: self.seed, state: self.state.read().unwrap_or_else(PoisonError::into_inner) }
    }

    /// The store has what was declared.
    pub fn learn(&self, declared: Declared) {
        let Some(latest) = declared.series.iter().map(|(_, _, day)| *day).max() else { return };
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if declared.generation != state.generation || latest < state.day {
            return;
        }
        if latest > state.day {
            state.day = latest;
            state.ids.clear();
        }
        for ([first, second], id, day) in declared.series {
            if day == latest && (state.ids.len() < KNOWN_SERIES_MAX || state.ids.contains_key(&first)) {
                state.ids.insert(first, (second, id));
            }
        }
    }

    pub fn forget(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.generation += 1;
        state.ids = HashMap::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_declared_is_known_on_its_day_until_it_is_forgotten() {
        let known = KnownSeries::default();
        let hash = |text: &str| known.look().hash(text.as_bytes());
        let declare = |text: &str, id: i64, day: i64| {
            let mut declared = known.look().declares();
            declared.push(hash(text), id, day);
            declared
        };
        known.learn(declare("a", 1, 5));
        assert_eq!((known.look().id(hash("a")), known.look().id(hash("b"))), (Some(1), None));
        assert!(known.look().is_of_day(5 * MS_PER_DAY) && !known.look().is_of_day(6 * MS_PER_DAY));
        known.learn(declare("old", 2, 4));
        assert_eq!(known.look().id(hash("old")), None);
        known.learn(declare("b", 3, 6));
        assert_eq!((known.look().id(hash("a")), known.look().id(hash("b"))), (None, Some(3)));
        let late = declare("c", 4, 6);
        known.forget();
        known.learn(late);
        assert_eq!((known.look().id(hash("b")), known.look().id(hash("c"))), (None, None));
    }
}
