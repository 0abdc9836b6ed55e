//! Labels to ids, by day: which log streams and metric series there are, and when they were alive.
//!
//! A day is filled from the parts of that day when it is first asked for, and from every append at once. Entries are never
//! wrong about labels; their life span may be wider than the rows, never narrower.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use crate::model::{Labels, MatchOp, Matcher, TimeRange, Timestamp};

/// What is known of one stream or series on one day.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub labels: Arc<Labels>,
    /// Nanoseconds, inclusive.
    pub min_ts: i64,
    pub max_ts: i64,
    pub meta: Option<Arc<SeriesText>>,
}

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

#[derive(Debug, Default)]
pub(crate) struct DayIndex {
    entries: HashMap<i64, Entry>,
    /// (name, value) to ids, for `=` matchers.
    postings: HashMap<(Arc<str>, Arc<str>), Vec<i64>>,
    /// Parts whose streams are already in.
    pub parts: HashSet<String>,
}

#[derive(Debug, Default)]
pub(crate) struct LabelIndex {
    pub days: BTreeMap<i64, DayIndex>,
    names: HashSet<Arc<str>>,
    /// Of every id on any day, so that nobody walks over the days for them: rows may come from tens of thousands.
    labels: HashMap<i64, Arc<Labels>>,
    /// Grows when days are forgotten: who filled them and then looks must look whether it was for nothing.
    pub generation: u64,
    /// (day, series) that a delete may be about to remove: they do not count as known to appends.
    pub doomed: HashSet<(i64, i64)>,
}

impl LabelIndex {
    fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.names.get(text) {
            return known.clone();
        }
        let new: Arc<str> = Arc::from(text);
        self.names.insert(new.clone());
        new
    }

    /// What is known of a series, for those who append to it: nothing of one that a delete may be about to remove.
    pub fn entry(&self, day: i64, id: i64) -> Option<&Entry> {
        self.days.get(&day)?.entries.get(&id).filter(|_| !self.doomed.contains(&(day, id)))
    }

    /// Labels of an id on any day.
    pub fn labels(&self, id: i64) -> Option<&Arc<Labels>> {
        self.labels.get(&id)
    }

    /// Widens the life of a known entry; `false` when the id is not known on that day.
    pub fn touch(&mut self, day: i64, id: i64, min_ts: i64, max_ts: i64) -> bool {
        match self.days.get_mut(&day).and_then(|d| d.entries.get_mut(&id)) {
            Some(e) => {
                e.min_ts = e.min_ts.min(min_ts);
                e.max_ts = e.max_ts.max(max_ts);
                true
            }
            None => false,
        }
    }

    /// Adds or widens an entry.
    pub fn add(
        &mut self,
        day: i64,
        id: i64,
        labels: &Arc<Labels>,
        min_ts: i64,
        max_ts: i64,
        meta: Option<SeriesText>,
    ) {
        if self.touch(day, id, min_ts, max_ts) {
            if let (Some(meta), Some(e)) = (meta, self.days.get_mut(&day).and_then(|d| d.entries.get_mut(&id)))
                && e.meta.as_deref() != Some(&meta)
            {
                e.meta = Some(Arc::new(meta.or(e.meta.as_deref())));
            }
            return;
        }
        // Days share the label sets.
        let labels = self.labels.entry(id).or_insert_with(|| labels.clone()).clone();
        let pairs: Vec<(Arc<str>, Arc<str>)> = labels.iter().map(|(n, v)| (self.intern(n), self.intern(v))).collect();
        let day = self.days.entry(day).or_default();
        for pair in pairs {
            day.postings.entry(pair).or_default().push(id);
        }
        day.entries.insert(id, Entry { labels, min_ts, max_ts, meta: meta.map(Arc::new) });
    }

    /// Entries alive in the range that match, by id; life and text of several days are joined.
    pub fn find(&self, matchers: &[Matcher], range: TimeRange) -> HashMap<i64, Entry> {
        let mut out: HashMap<i64, Entry> = HashMap::new();
        let mut verdicts: HashMap<i64, bool> = HashMap::new();
        let first = range.start().day();
        let last = Timestamp(range.end().nanos().saturating_sub(1)).day();
        for day in self.days.range(first..=last).map(|(_, d)| d) {
            // The shortest posting list of an `=` matcher decides whom to look at.
            let candidates = matchers
                .iter()
                .filter(|m| m.op() == MatchOp::Eq && !m.value().is_empty())
                .map(|m| day.posting(m.name(), m.value()))
                .min_by_key(|p| p.len());
            let mut visit = |id: i64, e: &Entry| {
                if !range.overlaps(Timestamp(e.min_ts), Timestamp(e.max_ts)) {
                    return;
                }
                let hit = *verdicts.entry(id).or_insert_with(|| matchers.iter().all(|m| m.matches(&e.labels)));
                if !hit {
                    return;
                }
                out.entry(id)
                    .and_modify(|o| {
                        o.min_ts = o.min_ts.min(e.min_ts);
                        o.max_ts = o.max_ts.max(e.max_ts);
                        if e.meta.is_some() {
                            o.meta = e.meta.clone();
                        }
                    })
                    .or_insert_with(|| e.clone());
            };
            match candidates {
                Some(ids) => ids.iter().for_each(|id| {
                    if let Some(e) = day.entries.get(id) {
                        visit(*id, e);
                    }
                }),
                None => day.entries.iter().for_each(|(id, e)| visit(*id, e)),
            }
        }
        out
    }

    /// (day, id) of the entries that [`LabelIndex::find`] finds.
    pub fn find_days(&self, matchers: &[Matcher], range: TimeRange) -> HashSet<(i64, i64)> {
        let first = range.start().day();
        let last = Timestamp(range.end().nanos().saturating_sub(1)).day();
        let found = self.find(matchers, range);
        self.days
            .range(first..=last)
            .flat_map(|(day, d)| d.entries.iter().map(move |(id, e)| (*day, *id, e)))
            .filter(|(_, id, e)| found.contains_key(id) && range.overlaps(Timestamp(e.min_ts), Timestamp(e.max_ts)))
            .map(|(day, id, _)| (day, id))
            .collect()
    }

    /// Forgets these days, so that they are filled again.
    pub fn forget_days(&mut self, days: &BTreeSet<i64>) {
        self.generation += 1;
        self.days.retain(|day, _| !days.contains(day));
        self.forget_labels();
    }

    /// Of ids that no day has any more.
    fn forget_labels(&mut self) {
        let alive: HashSet<i64> = self.days.values().flat_map(|d| d.entries.keys().copied()).collect();
        self.labels.retain(|id, _| alive.contains(id));
    }

    /// Forgets days before `day`.
    pub fn drop_before(&mut self, day: i64) {
        let kept = self.days.split_off(&day);
        let forgotten = std::mem::replace(&mut self.days, kept);
        if !forgotten.is_empty() {
            self.forget_labels();
        }
    }

    pub fn len(&self) -> usize {
        self.days.values().map(|d| d.entries.len()).sum()
    }
}

impl DayIndex {
    fn posting(&self, name: &str, value: &str) -> &[i64] {
        self.postings.get(&(Arc::from(name), Arc::from(value))).map(Vec::as_slice).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(job: &str) -> Arc<Labels> {
        Arc::new(Labels::from_pairs([("__name__", "up"), ("job", job)]))
    }

    #[test]
    fn labels_are_known_as_long_as_a_day_has_them() {
        let mut index = LabelIndex::default();
        index.add(0, 1, &labels("a"), 0, 1, None);
        index.add(20_000, 1, &labels("a"), 0, 1, None);
        index.add(3, 2, &labels("b"), 0, 1, None);
        assert!(index.labels(1).is_some() && index.labels(2).is_some());
        index.drop_before(10);
        assert!(index.labels(1).is_some() && index.labels(2).is_none());
        assert_eq!((index.len(), index.days.len()), (1, 1));
    }

    #[test]
    fn an_entry_is_found_on_the_days_it_lived_and_by_every_matcher() {
        const DAY: i64 = crate::model::time::NANOS_PER_DAY;
        let mut index = LabelIndex::default();
        for (id, job) in [(1, "a"), (2, "b")] {
            index.add(0, id, &labels(job), 10, 20, None);
        }
        index.add(1, 1, &labels("a"), DAY, DAY + 5, None);
        let find = |m: Matcher, start: i64, end: i64| {
            let range = TimeRange::new(Timestamp(start), Timestamp(end)).unwrap();
            let mut ids: Vec<i64> = index.find(&[m], range).into_keys().collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!(find(Matcher::equal("job", "a"), 0, 2 * DAY), [1]);
        assert_eq!(find(Matcher::new("job", MatchOp::Re, "a|b").unwrap(), 0, 15), [1, 2]);
        assert_eq!(find(Matcher::new("job", MatchOp::Ne, "a").unwrap(), 0, 15), [2]);
        assert_eq!(find(Matcher::equal("zone", ""), 21, DAY), [] as [i64; 0]);
        assert_eq!(find(Matcher::equal("zone", ""), DAY, DAY + 1), [1]);
    }
}
