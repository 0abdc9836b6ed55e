//! Series that the store knows, by the bytes of their labels as a sender writes them, so that a sample of one costs neither
//! its labels' reading nor their writing.
//!
//! Senders send series in much the same order again and again, so the series behind the one that was found last is looked
//! at first: a million of them are too many for any cache when they are looked up each by its hash.
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

/// Series remembered of one tenant: some 200 MB.
pub const KNOWN_SERIES_MAX: usize = 3_500_000;

/// Sets the hashes of symbols apart from those of bytes.
const SYMBOLS: u64 = 0x73_796d_626f_6c73;

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

/// A known series.
#[derive(Clone, Copy, Debug)]
pub struct Series {
    pub labels: LabelsHash,
    /// Bytes of the labels (1.0), so that they are found without being read; 0: not told.
    pub len: u32,
    pub id: i64,
}

#[derive(Default)]
struct State {
    /// Days since the epoch.
    day: i64,
    /// In the order in which they first came.
    series: Vec<Series>,
    /// First half of the hash to the place in `series`.
    places: HashMap<u64, u32, BuildHasherDefault<Half>>,
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
    series: Vec<(Series, i64)>,
}

impl Declared {
    pub fn push(&mut self, series: Series, day: i64) {
        self.series.push((series, day));
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

    /// As [`Look::hash`], for labels that are symbols: `symbols` are the hashes of their texts. It is never that of bytes.
    pub fn hash_symbols(&self, symbols: &[u8]) -> LabelsHash {
        let hash = xxh3_128_with_seed(symbols, self.seed ^ SYMBOLS);
        [hash as u64, (hash >> 64) as u64]
    }

    /// The series at a place.
    #[inline]
    pub fn at(&self, place: usize) -> Option<&Series> {
        self.state.series.get(place)
    }

    /// Id of the series with these labels, if the store has it on its day. `next`: the place to look at first, and in the end
    /// the one behind that of the series.
    #[inline]
    pub fn id(&self, labels: LabelsHash, next: &mut usize) -> Option<i64> {
        let of = |place: usize| self.state.series.get(place).filter(|s| s.labels == labels);
        if let Some(series) = of(*next) {
            *next += 1;
            return Some(series.id);
        }
        let place = *self.state.places.get(&labels[0])? as usize;
        let series = of(place)?;
        *next = place + 1;
        Some(series.id)
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
        let Some(latest) = declared.series.iter().map(|(_, day)| *day).max() else { return };
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if declared.generation != state.generation || latest < state.day {
            return;
        }
        if latest > state.day {
            state.day = latest;
            state.series.clear();
            state.places.clear();
        }
        let State { series: all, places, .. } = &mut *state;
        for (series, _) in declared.series.into_iter().filter(|(_, day)| *day == latest) {
            match places.get(&series.labels[0]) {
                Some(place) => all[*place as usize] = series,
                None if all.len() < KNOWN_SERIES_MAX => {
                    places.insert(series.labels[0], all.len() as u32);
                    all.push(series);
                }
                None => {}
            }
        }
    }

    pub fn forget(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.generation += 1;
        state.series = Vec::new();
        state.places = HashMap::default();
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
            declared.push(Series { labels: hash(text), len: text.len() as u32, id }, day);
            declared
        };
        let id = |text: &str| known.look().id(hash(text), &mut 0);
        known.learn(declare("a", 1, 5));
        assert_eq!((id("a"), id("b")), (Some(1), None));
        assert!(known.look().is_of_day(5 * MS_PER_DAY) && !known.look().is_of_day(6 * MS_PER_DAY));
        known.learn(declare("old", 2, 4));
        assert_eq!(id("old"), None);
        known.learn(declare("b", 3, 6));
        assert_eq!((id("a"), id("b")), (None, Some(3)));
        let late = declare("c", 4, 6);
        known.forget();
        known.learn(late);
        assert_eq!((id("b"), id("c")), (None, None));
    }

    #[test]
    fn series_are_found_in_their_order_and_in_any_other() {
        let known = KnownSeries::default();
        let mut declared = known.look().declares();
        for i in 0..100i64 {
            let labels = known.look().hash(&i.to_le_bytes());
            declared.push(Series { labels, len: 8, id: i * 7 }, 3);
        }
        known.learn(declared);
        let look = known.look();
        let mut next = 0;
        for i in (0..100i64).chain((0..100).rev()).chain((0..100).map(|i| i * 37 % 100)) {
            assert_eq!(look.id(look.hash(&i.to_le_bytes()), &mut next), Some(i * 7));
            assert_eq!(next as i64, i + 1);
        }
        assert_eq!(look.id(look.hash(&100i64.to_le_bytes()), &mut next), None);
        assert_eq!(look.id(look.hash_symbols(&0i64.to_le_bytes()), &mut next), None);
    }
}
