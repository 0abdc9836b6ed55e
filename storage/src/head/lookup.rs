//! Who matches, and which names and values there are, from a [`LabelIndex`]: at the cost of what is found, not of all there is.
//!
//! A matcher is asked once for each distinct value of its label, and turned into pairs that a series must have one of, or
//! must have none of. The pairs with the fewest series say whom to look at.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use super::{
    pairs::{Pair, Slot},
    series::{DayIndex, LabelIndex, Life, NO_TEXT, PAGE, Page, SeriesText},
};
use crate::model::{Labels, Matcher, TimeRange, Timestamp};

/// What is found of one stream or series, its days joined.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub id: i64,
    pub labels: Arc<Labels>,
    pub meta: Option<Arc<SeriesText>>,
}

/// A set of small numbers.
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub fn new(len: usize) -> Self {
        Bits(vec![0; len.div_ceil(64)])
    }

    pub fn set(&mut self, i: u32) {
        self.0[i as usize / 64] |= 1 << (i % 64);
    }

    fn clear(&mut self, i: u32) {
        self.0[i as usize / 64] &= !(1 << (i % 64));
    }

    pub fn has(&self, i: u32) -> bool {
        self.0[i as usize / 64] >> (i % 64) & 1 == 1
    }

    /// Ascending.
    fn numbers(&self) -> Vec<u32> {
        let mut out = Vec::new();
        for (at, word) in self.0.iter().enumerate() {
            let mut left = *word;
            while left != 0 {
                out.push((at * 64) as u32 + left.trailing_zeros());
                left &= left - 1;
            }
        }
        out
    }
}

/// A matcher in pairs.
struct Test {
    name: u32,
    pairs: Vec<Pair>,
    /// A series must have one of the pairs; else none of them.
    one_of: bool,
    /// Series of all the pairs.
    series: usize,
}

/// Lives of the days of a range, asked for in ascending order of slots.
pub(super) struct Lives<'a> {
    days: Vec<(&'a DayIndex, u32, Option<&'a Page>)>,
    range: TimeRange,
}

impl<'a> Lives<'a> {
    pub fn is_alive(&mut self, slot: Slot) -> bool {
        let range = self.range;
        self.of(slot).any(|life| range.overlaps(Timestamp(life.min_ts), Timestamp(life.max_ts)))
    }

    fn of(&mut self, slot: Slot) -> impl Iterator<Item = &'a Life> {
        let (page, at) = (slot / PAGE as u32, slot as usize % PAGE);
        self.days.iter_mut().filter_map(move |(day, last, lives)| {
            if *last != page {
                (*last, *lives) = (page, day.pages.get(&page).map(|p| &**p));
            }
            lives.map(|p| &p[at]).filter(|life| life.is_known())
        })
    }
}

impl LabelIndex {
    pub(super) fn lives(&self, range: TimeRange) -> Lives<'_> {
        let first = range.start().day();
        let last = Timestamp(range.end().nanos().saturating_sub(1)).day();
        Lives { days: self.days.range(first..=last).map(|(_, d)| (d, u32::MAX, None)).collect(), range }
    }

    /// `None`: every series passes.
    fn test(&self, matcher: &Matcher) -> Option<Test> {
        let absent = matcher.matches_empty();
        let Some(name) = self.pairs.name(matcher.name()) else {
            return (!absent).then_some(Test { name: u32::MAX, pairs: Vec::new(), one_of: true, series: 0 });
        };
        let pairs: Vec<Pair> = match matcher.named_values() {
            // The values that are named: those that match or those that do not, as the absent label does not or does.
            Some((values, matching)) if matching != absent => {
                let mut pairs: Vec<Pair> = values.filter_map(|v| self.pairs.find(name, v)).collect();
                pairs.sort_unstable();
                pairs.dedup();
                pairs
            }
            _ => {
                let all = self.pairs.of_name(name).iter();
                all.filter(|p| matcher.matches_value(self.pairs.value_text(**p)) != absent).copied().collect()
            }
        };
        let series = pairs.iter().map(|p| self.pairs.series(*p).len()).sum();
        let passes_all = if absent { pairs.is_empty() } else { series == self.ids.len() };
        (!passes_all).then_some(Test { name, pairs, one_of: !absent, series })
    }

    /// All tests of the matchers; `None`: nothing can pass.
    fn tests(&self, matchers: &[Matcher]) -> Option<Vec<Test>> {
        let mut tests: Vec<Test> = matchers.iter().filter_map(|m| self.test(m)).collect();
        tests.sort_by_key(|t| (!t.one_of, t.series));
        let nothing = tests.first().is_some_and(|t| t.one_of && t.series == 0);
        (!nothing).then_some(tests)
    }

    /// The series that have one of the pairs, ascending.
    fn union(&self, pairs: &[Pair], series: usize) -> Vec<Slot> {
        match pairs {
            [one] => self.pairs.series(*one).to_vec(),
            _ if series < self.ids.len() / 64 => {
                let mut all: Vec<Slot> = pairs.iter().flat_map(|p| self.pairs.series(*p)).copied().collect();
                all.sort_unstable();
                all
            }
            _ => {
                let mut bits = Bits::new(self.ids.len());
                pairs.iter().flat_map(|p| self.pairs.series(*p)).for_each(|s| bits.set(*s));
                bits.numbers()
            }
        }
    }

    /// Slots of all series of the days, ascending.
    pub(super) fn everything(&self, lives: &Lives<'_>) -> Vec<Slot> {
        let mut pages: Vec<u32> = lives.days.iter().flat_map(|(day, ..)| day.pages.keys().copied()).collect();
        pages.sort_unstable();
        pages.dedup();
        let slots = pages.into_iter().flat_map(|p| (0..PAGE as u32).map(move |i| p * PAGE as u32 + i));
        slots.take_while(|slot| (*slot as usize) < self.ids.len()).collect()
    }

    /// Slots that pass, ascending, with some that are not alive on the days of `lives`.
    fn passing(&self, tests: &[Test], lives: &Lives<'_>) -> Vec<Slot> {
        if lives.days.is_empty() {
            return Vec::new();
        }
        let (mut slots, rest) = match tests.split_first() {
            Some((first, rest)) if first.one_of => (self.union(&first.pairs, first.series), rest),
            _ => (self.everything(lives), tests),
        };
        for test in rest {
            let mut pairs = Bits::new(self.pairs.len());
            test.pairs.iter().for_each(|p| pairs.set(*p));
            slots.retain(|slot| self.pairs_of(*slot).iter().any(|p| pairs.has(*p)) == test.one_of);
        }
        slots
    }

    /// Slots alive in the range that pass, ascending.
    fn select(&self, tests: &[Test], range: TimeRange) -> Vec<Slot> {
        let mut lives = self.lives(range);
        let mut slots = self.passing(tests, &lives);
        slots.retain(|slot| lives.is_alive(*slot));
        slots
    }

    /// Series alive in the range that match; texts of several days: the latest.
    pub fn find(&self, matchers: &[Matcher], range: TimeRange) -> Vec<Entry> {
        let Some(tests) = self.tests(matchers) else { return Vec::new() };
        let mut lives = self.lives(range);
        let entry = |slot: Slot| {
            let overlaps = |l: &&Life| range.overlaps(Timestamp(l.min_ts), Timestamp(l.max_ts));
            let text = lives.of(slot).filter(overlaps).map(|l| l.text).filter(|t| *t != NO_TEXT).last();
            Entry {
                id: self.ids[slot as usize],
                labels: Arc::new(self.labels_of(slot)),
                meta: text.and_then(|t| self.text(t)).cloned(),
            }
        };
        self.select(&tests, range).into_iter().map(entry).collect()
    }

    /// Ids of the series that [`LabelIndex::find`] finds.
    pub fn find_ids(&self, matchers: &[Matcher], range: TimeRange) -> HashSet<i64> {
        let Some(tests) = self.tests(matchers) else { return HashSet::new() };
        self.select(&tests, range).into_iter().map(|slot| self.ids[slot as usize]).collect()
    }

    /// (day, id) of the series that [`LabelIndex::find`] finds.
    pub fn find_days(&self, matchers: &[Matcher], range: TimeRange) -> HashSet<(i64, i64)> {
        let Some(tests) = self.tests(matchers) else { return HashSet::new() };
        let slots = self.select(&tests, range);
        let first = range.start().day();
        let last = Timestamp(range.end().nanos().saturating_sub(1)).day();
        let mut out = HashSet::new();
        for (day, known) in self.days.range(first..=last) {
            let lives = slots.iter().filter_map(|s| Some((*s, known.life(*s)?)));
            out.extend(
                lives
                    .filter(|(_, l)| range.overlaps(Timestamp(l.min_ts), Timestamp(l.max_ts)))
                    .map(|(slot, _)| (*day, self.ids[slot as usize])),
            );
        }
        out
    }

    /// Label names of the series that [`LabelIndex::find`] finds, sorted.
    pub fn find_names(&self, matchers: &[Matcher], range: TimeRange) -> Vec<String> {
        let Some(tests) = self.tests(matchers) else { return Vec::new() };
        let names: BTreeSet<&str> = if tests.is_empty() {
            let mut lives = self.lives(range);
            let alive = |name: &u32| self.pairs.of_name(*name).iter().any(|p| self.has_alive(*p, &mut lives));
            self.pairs.names().filter(alive).map(|n| self.pairs.name_text(n)).collect()
        } else {
            let mut seen = Bits::new(self.pairs.len());
            for slot in self.select(&tests, range) {
                self.pairs_of(slot).iter().for_each(|p| seen.set(*p));
            }
            seen.numbers().into_iter().map(|p| self.pairs.name_text(self.pairs.name_of(p))).collect()
        };
        names.into_iter().map(str::to_owned).collect()
    }

    /// Values of a label that the series have which [`LabelIndex::find`] finds, sorted.
    pub fn find_values(&self, name: &str, matchers: &[Matcher], range: TimeRange) -> Vec<String> {
        let (Some(tests), Some(name)) = (self.tests(matchers), self.pairs.name(name)) else { return Vec::new() };
        let mut values: Vec<&str> = match tests.as_slice() {
            [] => self.alive_values(self.pairs.of_name(name), range),
            // Asked of the same label: no series needs to be looked at but for its life.
            [only] if only.name == name && only.one_of => self.alive_values(&only.pairs, range),
            _ => {
                // Only a series with a value that was not met yet is asked for its life: of many series few are.
                let all = self.pairs.of_name(name);
                let mut unmet = Bits::new(self.pairs.len());
                all.iter().for_each(|p| unmet.set(*p));
                let mut lives = self.lives(range);
                let mut found = Vec::new();
                for slot in self.passing(&tests, &lives) {
                    if found.len() == all.len() {
                        break;
                    }
                    if let Some(pair) = self.pairs_of(slot).iter().find(|p| unmet.has(**p))
                        && lives.is_alive(slot)
                    {
                        unmet.clear(*pair);
                        found.push(self.pairs.value_text(*pair));
                    }
                }
                found
            }
        };
        values.sort_unstable();
        values.into_iter().map(str::to_owned).collect()
    }

    fn alive_values(&self, pairs: &[Pair], range: TimeRange) -> Vec<&str> {
        let mut lives = self.lives(range);
        pairs.iter().filter(|p| self.has_alive(**p, &mut lives)).map(|p| self.pairs.value_text(*p)).collect()
    }

    /// Whether some series with the pair is alive; mostly the last one that came is.
    fn has_alive(&self, pair: Pair, lives: &mut Lives<'_>) -> bool {
        self.pairs.series(pair).iter().rev().any(|slot| lives.is_alive(*slot))
    }
}
