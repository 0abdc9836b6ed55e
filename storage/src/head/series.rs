//! Labels to ids, by day: which log streams and metric series there are, and when they were alive.
//!
//! A day is filled from the parts of that day when it is first asked for, and from every append at once. Entries are never
//! wrong about labels; their life span may be wider than the rows, never narrower.
//!
//! Held small, for millions of series: labels are numbers of [`Pairs`], and a series has a slot, the next free number when it
//! is first met. A day knows slots by pages, so that one series on each of ten thousand days costs a page each. Looking up is
//! in [`super::lookup`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{
    pairs::{Pair, Pairs, Slot},
    repeats::{Newest, NewestPoints},
};
use crate::{model::Labels, part::MixedMap};

/// Type, unit and help of a series.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct SeriesText {
    pub metric_type: Option<Arc<str>>,
    pub unit: Option<Arc<str>>,
    pub help: Option<Arc<str>>,
}

impl SeriesText {
    /// What is absent here as `other` has it: an older row may tell more.
    fn or(self, other: Option<&SeriesText>) -> SeriesText {
        let Some(other) = other else { return self };
        SeriesText {
            metric_type: self.metric_type.or_else(|| other.metric_type.clone()),
            unit: self.unit.or_else(|| other.unit.clone()),
            help: self.help.or_else(|| other.help.clone()),
        }
    }
}

/// What is known of one stream or series on one day.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    /// Nanoseconds, inclusive; `min_ts > max_ts`: not known.
    pub min_ts: i64,
    pub max_ts: i64,
    /// Place in the index' texts, or [`NO_TEXT`].
    pub text: u32,
}

pub(super) const NO_TEXT: u32 = u32::MAX;

/// Slots of one page of a day.
pub(crate) const PAGE: usize = 64;

/// One life for each of [`PAGE`] slots.
pub(super) type Page = [Life; PAGE];

const UNKNOWN: Life = Life { min_ts: i64::MAX, max_ts: i64::MIN, text: NO_TEXT };

impl Life {
    pub fn is_known(&self) -> bool {
        self.min_ts <= self.max_ts
    }

    fn widen(&mut self, min_ts: i64, max_ts: i64) {
        self.min_ts = self.min_ts.min(min_ts);
        self.max_ts = self.max_ts.max(max_ts);
    }
}

#[derive(Debug, Default)]
pub(crate) struct DayIndex {
    pub(super) pages: MixedMap<u32, Box<Page>>,
    /// Streams or series.
    len: usize,
    /// Parts whose streams are already in.
    pub parts: HashSet<String>,
}

impl DayIndex {
    pub(super) fn life(&self, slot: Slot) -> Option<&Life> {
        let page = self.pages.get(&(slot / PAGE as u32))?;
        Some(&page[slot as usize % PAGE]).filter(|life| life.is_known())
    }

    fn life_mut(&mut self, slot: Slot) -> Option<&mut Life> {
        let page = self.pages.get_mut(&(slot / PAGE as u32))?;
        Some(&mut page[slot as usize % PAGE]).filter(|life| life.is_known())
    }

    pub fn len(&self) -> usize {
        self.len
    }
}

#[derive(Debug, Default)]
pub(crate) struct LabelIndex {
    pub days: BTreeMap<i64, DayIndex>,
    pub(super) pairs: Pairs,
    slots: MixedMap<i64, Slot>,
    /// Id of each slot.
    pub(super) ids: Vec<i64>,
    /// Pairs of all slots, end to end, each slot's sorted by name; and where each slot's end.
    slot_pairs: Vec<Pair>,
    ends: Vec<usize>,
    /// Each text once.
    texts: Vec<Arc<SeriesText>>,
    text_of: HashMap<Arc<SeriesText>, u32>,
    newest: NewestPoints,
    /// Grows when days are forgotten: who filled them and then looks must look whether it was for nothing.
    pub generation: u64,
    /// Grows when slots get other numbers.
    pub numbering: u64,
    /// (day, series) that a delete may be about to remove: they do not count as known to appends.
    pub doomed: HashSet<(i64, i64)>,
}

/// A known series on one day, for those who append to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    pub slot: Slot,
    pub text: Option<&'a SeriesText>,
}

/// Looks one series up after the other, of one day or few. Senders send them in much the same order again and again, so the one
/// behind the last is looked at first: a million of them are too many for any cache when each is looked up by its hash.
pub(crate) struct Cursor<'a> {
    index: &'a LabelIndex,
    next: Slot,
    day: Option<(i64, Option<&'a DayIndex>)>,
    page: Option<(u32, Option<&'a Page>)>,
}

impl<'a> Cursor<'a> {
    /// As [`LabelIndex::entry`].
    pub fn entry(&mut self, day: i64, id: i64) -> Option<Known<'a>> {
        let index = self.index;
        let slot = match index.ids.get(self.next as usize) {
            Some(likely) if *likely == id => self.next,
            _ => *index.slots.get(&id)?,
        };
        self.next = slot + 1;
        let lives = match self.day {
            Some((last, lives)) if last == day => lives,
            _ => {
                self.page = None;
                self.day.insert((day, index.days.get(&day))).1
            }
        };
        let number = slot / PAGE as u32;
        let page = match self.page {
            Some((last, page)) if last == number => page,
            _ => self.page.insert((number, lives?.pages.get(&number).map(|p| &**p))).1,
        };
        let life = Some(&page?[slot as usize % PAGE]).filter(|life| life.is_known())?;
        index.known(day, id, slot, life)
    }
}

impl LabelIndex {
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { index: self, next: 0, day: None, page: None }
    }

    fn known(&self, day: i64, id: i64, slot: Slot, life: &Life) -> Option<Known<'_>> {
        if !self.doomed.is_empty() && self.doomed.contains(&(day, id)) {
            return None;
        }
        Some(Known { slot, text: self.text(life.text).map(Arc::as_ref) })
    }

    /// What is known of a series, for those who append to it: nothing of one that a delete may be about to remove.
    pub fn entry(&self, day: i64, id: i64) -> Option<Known<'_>> {
        let slot = *self.slots.get(&id)?;
        let life = self.days.get(&day)?.life(slot)?;
        self.known(day, id, slot, life)
    }

    /// Labels of an id that was met on any day.
    pub fn labels(&self, id: i64) -> Option<Labels> {
        self.slots.get(&id).map(|slot| self.labels_of(*slot))
    }

    pub(super) fn pairs_of(&self, slot: Slot) -> &[Pair] {
        let slot = slot as usize;
        let start = slot.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.slot_pairs[start..self.ends[slot]]
    }

    pub(super) fn labels_of(&self, slot: Slot) -> Labels {
        let pairs: Vec<(&str, &str)> = self
            .pairs_of(slot)
            .iter()
            .map(|p| (self.pairs.name_text(self.pairs.name_of(*p)), self.pairs.value_text(*p)))
            .collect();
        Labels::packed(&pairs)
    }

    pub(super) fn text(&self, at: u32) -> Option<&Arc<SeriesText>> {
        self.texts.get(at as usize)
    }

    fn intern_text(&mut self, text: SeriesText) -> u32 {
        if let Some(at) = self.text_of.get(&text) {
            return *at;
        }
        let (at, text) = (self.texts.len() as u32, Arc::new(text));
        self.texts.push(text.clone());
        self.text_of.insert(text, at);
        at
    }

    /// Newest point of a series, as far as it is known.
    pub fn newest(&self, id: i64) -> Option<Newest> {
        self.slots.get(&id).map(|slot| self.newest.of(*slot))
    }

    #[inline]
    pub fn newest_of(&self, slot: Slot) -> Newest {
        self.newest.of(slot)
    }

    /// A point of a series, by its slot in the present numbering, that may be its newest.
    #[inline]
    pub fn note(&mut self, slot: Slot, point: Newest) {
        self.newest.enter(slot, point);
    }

    /// Widens the life of a known entry, and gives its slot; `None` when the id is not known on that day.
    pub fn touch(&mut self, day: i64, id: i64, min_ts: i64, max_ts: i64) -> Option<Slot> {
        let slot = *self.slots.get(&id)?;
        self.days.get_mut(&day)?.life_mut(slot)?.widen(min_ts, max_ts);
        Some(slot)
    }

    /// As [`LabelIndex::touch`] for many slots (of the present numbering) of one page of a day: slot, first and last time.
    pub fn touch_page(&mut self, day: i64, page: u32, lives: impl Iterator<Item = (Slot, i64, i64)>) {
        let Some(known) = self.days.get_mut(&day).and_then(|d| d.pages.get_mut(&page)) else { return };
        for (slot, min_ts, max_ts) in lives {
            let life = &mut known[slot as usize % PAGE];
            if life.is_known() {
                life.widen(min_ts, max_ts);
            }
        }
    }

    /// Adds or widens an entry. `labels` is asked for only where no day knows the id.
    pub fn add(
        &mut self,
        day: i64,
        id: i64,
        labels: impl FnOnce() -> Option<Arc<Labels>>,
        min_ts: i64,
        max_ts: i64,
        meta: Option<SeriesText>,
    ) {
        let slot = match self.slots.get(&id) {
            Some(slot) => *slot,
            None => {
                let Some(labels) = labels() else { return };
                self.register(id, &labels)
            }
        };
        let meta = meta.map(|meta| {
            let old = self.days.get(&day).and_then(|d| d.life(slot)).and_then(|l| self.text(l.text));
            meta.or(old.map(Arc::as_ref))
        });
        let text = meta.map(|meta| self.intern_text(meta));
        let day = self.days.entry(day).or_default();
        let page = day.pages.entry(slot / PAGE as u32).or_insert_with(|| Box::new([UNKNOWN; PAGE]));
        let life = &mut page[slot as usize % PAGE];
        day.len += usize::from(!life.is_known());
        life.min_ts = life.min_ts.min(min_ts);
        life.max_ts = life.max_ts.max(max_ts.max(min_ts));
        life.text = text.unwrap_or(life.text);
    }

    /// Gives a new series its slot: the one place where a series comes to be known.
    fn register(&mut self, id: i64, labels: &Labels) -> Slot {
        let slot = self.ids.len() as Slot;
        for (name, value) in labels.iter() {
            let pair = self.pairs.intern(name, value);
            self.pairs.post(pair, slot);
            self.slot_pairs.push(pair);
        }
        self.ends.push(self.slot_pairs.len());
        self.ids.push(id);
        self.slots.insert(id, slot);
        slot
    }

    /// Forgets these days, so that they are filled again.
    pub fn forget_days(&mut self, days: &BTreeSet<i64>) {
        self.generation += 1;
        // The newest may be among what was deleted.
        self.newest.forget();
        self.days.retain(|day, _| !days.contains(day));
        self.forget_series();
    }

    /// Forgets days before `day`.
    pub fn drop_before(&mut self, day: i64) {
        let kept = self.days.split_off(&day);
        let forgotten = std::mem::replace(&mut self.days, kept);
        if !forgotten.is_empty() {
            self.forget_series();
        }
    }

    /// Series that no day has any more, once they are half of all: then the rest is numbered anew.
    fn forget_series(&mut self) {
        let mut alive = vec![false; self.ids.len()];
        for (page, lives) in self.days.values().flat_map(|d| &d.pages) {
            for (i, _) in lives.iter().enumerate().filter(|(_, life)| life.is_known()) {
                alive[*page as usize * PAGE + i] = true;
            }
        }
        if alive.iter().filter(|a| **a).count() * 2 > self.ids.len() {
            return;
        }
        let old = std::mem::take(self);
        self.generation = old.generation;
        self.numbering = old.numbering + 1;
        for (slot, _) in alive.iter().enumerate().filter(|(_, alive)| **alive) {
            let (slot, new) = (slot as Slot, self.register(old.ids[slot], &old.labels_of(slot as Slot)));
            self.newest.enter(new, old.newest.of(slot));
        }
        for (day, known) in &old.days {
            self.days.entry(*day).or_default().parts.clone_from(&known.parts);
            for (page, lives) in &known.pages {
                for (i, life) in lives.iter().enumerate().filter(|(_, life)| life.is_known()) {
                    let id = old.ids[*page as usize * PAGE + i];
                    let text = old.text(life.text).map(|t| t.as_ref().clone());
                    self.add(*day, id, || None, life.min_ts, life.max_ts, text);
                }
            }
        }
        self.doomed = old.doomed;
    }

    /// Streams or series, counted on each day.
    pub fn len(&self) -> usize {
        self.days.values().map(DayIndex::len).sum()
    }
}

#[cfg(test)]
#[path = "series_tests.rs"]
mod tests;
