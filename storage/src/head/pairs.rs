//! Labels as numbers: each pair of a name and a value once, with the series that have it.
//!
//! A pair's series are numbered by the index that owns this, in the order they came, so that a posting is sorted by
//! construction. Nothing is ever taken out: whoever forgets series builds this anew.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::part::MixedMap;

/// Number of a pair.
pub(crate) type Pair = u32;
/// Number of a series within one index.
pub(crate) type Slot = u32;

/// Each text once, end to end.
#[derive(Debug, Default)]
struct Texts {
    text: String,
    ends: Vec<usize>,
    /// By hash, with the seed counted up where another text has it already.
    by_hash: MixedMap<u64, u32>,
}

impl Texts {
    fn of(&self, id: u32) -> &str {
        let id = id as usize;
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[id]]
    }

    /// The text's number or, where there is none, the hash to enter it by.
    fn find(&self, text: &str) -> Result<u32, u64> {
        let mut seed = 0;
        loop {
            let hash = xxh3_64_with_seed(text.as_bytes(), seed);
            match self.by_hash.get(&hash) {
                None => return Err(hash),
                Some(id) if self.of(*id) == text => return Ok(*id),
                Some(_) => seed += 1,
            }
        }
    }

    fn intern(&mut self, text: &str) -> u32 {
        match self.find(text) {
            Ok(id) => id,
            Err(hash) => {
                let id = number(self.ends.len());
                self.text.push_str(text);
                self.ends.push(self.text.len());
                self.by_hash.insert(hash, id);
                id
            }
        }
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).expect("memory ends before 2^32 texts, pairs or series do")
}

/// The series of a pair, ascending. Most pairs of a large index have one.
#[derive(Debug, Default)]
enum Posting {
    #[default]
    None,
    One(Slot),
    Many(Vec<Slot>),
}

#[derive(Debug)]
struct PairEntry {
    name: u32,
    value: u32,
    series: Posting,
}

/// A label name and its pairs.
#[derive(Debug)]
struct NameEntry {
    text: u32,
    pairs: Vec<Pair>,
}

/// All pairs of an index.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    texts: Texts,
    names: Vec<NameEntry>,
    /// Text of a name to its place in `names`.
    name_of: MixedMap<u32, u32>,
    pairs: Vec<PairEntry>,
    /// Name and text of the value to the pair.
    pair_of: MixedMap<(u32, u32), Pair>,
}

impl Pairs {
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// The pair's number, given to it now if it is new.
    pub fn intern(&mut self, name: &str, value: &str) -> Pair {
        let (name, value) = (self.texts.intern(name), self.texts.intern(value));
        let next = number(self.names.len());
        let name_at = *self.name_of.entry(name).or_insert(next);
        if name_at == next {
            self.names.push(NameEntry { text: name, pairs: Vec::new() });
        }
        let next = number(self.pairs.len());
        let pair = *self.pair_of.entry((name_at, value)).or_insert(next);
        if pair == next {
            self.pairs.push(PairEntry { name: name_at, value, series: Posting::None });
            self.names[name_at as usize].pairs.push(pair);
        }
        pair
    }

    /// Enters a series, whose slot is above all entered before.
    pub fn post(&mut self, pair: Pair, slot: Slot) {
        let series = &mut self.pairs[pair as usize].series;
        match series {
            Posting::None => *series = Posting::One(slot),
            Posting::One(first) => *series = Posting::Many(vec![*first, slot]),
            Posting::Many(all) => all.push(slot),
        }
    }

    pub fn series(&self, pair: Pair) -> &[Slot] {
        match &self.pairs[pair as usize].series {
            Posting::None => &[],
            Posting::One(slot) => std::slice::from_ref(slot),
            Posting::Many(all) => all,
        }
    }

    /// The number of a name that some pair has.
    pub fn name(&self, name: &str) -> Option<u32> {
        self.name_of.get(&self.texts.find(name).ok()?).copied()
    }

    pub fn find(&self, name: u32, value: &str) -> Option<Pair> {
        let value = self.texts.find(value).ok()?;
        self.pair_of.get(&(name, value)).copied()
    }

    /// Pairs of a name, in the order they came.
    pub fn of_name(&self, name: u32) -> &[Pair] {
        &self.names[name as usize].pairs
    }

    /// Numbers of all names.
    pub fn names(&self) -> impl Iterator<Item = u32> {
        0..number(self.names.len())
    }

    pub fn name_of(&self, pair: Pair) -> u32 {
        self.pairs[pair as usize].name
    }

    pub fn name_text(&self, name: u32) -> &str {
        self.texts.of(self.names[name as usize].text)
    }

    pub fn value_text(&self, pair: Pair) -> &str {
        self.texts.of(self.pairs[pair as usize].value)
    }
}
