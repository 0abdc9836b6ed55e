//! What an index holds, counted: for who asks why there are so many series. From the postings, so no label set is put together.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{lookup::Bits, pairs::Pair, series::LabelIndex};
use crate::model::TimeRange;

const METRIC_NAME: &str = "__name__";

/// The metric series of a tenant that are alive in a range, counted. Lists are ordered by count, equal ones by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub series: usize,
    /// Label pairs.
    pub pairs: usize,
    pub series_by_metric: Vec<(String, u64)>,
    /// Values of each label name.
    pub values_by_name: Vec<(String, u64)>,
    /// Bytes of these values, each counted once for each series that has it.
    pub value_bytes_by_name: Vec<(String, u64)>,
    pub series_by_pair: Vec<((String, String), u64)>,
    /// Immutable pieces that samples and histograms of the range rest in: batches of the head, and parts.
    pub pieces: usize,
    /// Time of the earliest point of these pieces that is not before the range's start, at least, and of the latest, ms. `None`: there is
    /// none.
    pub times: Option<(i64, i64)>,
}

/// The entries of the highest counts; of equal ones those whose keys come first.
struct Top<K> {
    max: usize,
    /// The least of them on top.
    kept: BinaryHeap<(Reverse<u64>, K)>,
}

impl<K: Ord> Top<K> {
    fn new(max: usize) -> Self {
        Top { max, kept: BinaryHeap::new() }
    }

    fn offer(&mut self, n: u64, key: impl FnOnce() -> K) {
        if self.kept.len() < self.max {
            self.kept.push((Reverse(n), key()));
        } else if let Some(mut least) = self.kept.peek_mut()
            && n >= least.0.0
        {
            let offered = (Reverse(n), key());
            if offered < *least {
                *least = offered;
            }
        }
    }

    fn named<N>(self, name: impl Fn(K) -> N) -> Vec<(N, u64)> {
        self.kept.into_sorted_vec().into_iter().map(|(Reverse(n), key)| (name(key), n)).collect()
    }
}

impl LabelIndex {
    /// Counts the series alive in the range and their labels; each list has at most `top` entries. Costs a look at each posting.
    pub fn census(&self, range: TimeRange, top: usize) -> Census {
        let mut lives = self.lives(range);
        let mut alive = Bits::new(self.ids.len());
        let mut out = Census::default();
        for slot in self.everything(&lives) {
            if lives.is_alive(slot) {
                alive.set(slot);
                out.series += 1;
            }
        }
        let metric = self.pairs.name(METRIC_NAME);
        // Values and their bytes, by name.
        let mut of_names = vec![(0, 0); self.pairs.names().count()];
        let (mut by_metric, mut by_pair) = (Top::new(top), Top::new(top));
        for pair in 0..self.pairs.len() as Pair {
            let n = self.pairs.series(pair).iter().filter(|slot| alive.has(**slot)).count() as u64;
            if n == 0 {
                continue;
            }
            out.pairs += 1;
            let (name, value) = (self.pairs.name_of(pair), self.pairs.value_text(pair));
            let of_name = &mut of_names[name as usize];
            *of_name = (of_name.0 + 1, of_name.1 + value.len() as u64 * n);
            by_pair.offer(n, || (self.pairs.name_text(name), value));
            if metric == Some(name) {
                by_metric.offer(n, || value);
            }
        }
        let (mut values, mut bytes) = (Top::new(top), Top::new(top));
        for (name, (n, size)) in self.pairs.names().zip(of_names).filter(|(_, (n, _))| *n > 0) {
            values.offer(n, || self.pairs.name_text(name));
            bytes.offer(size, || self.pairs.name_text(name));
        }
        out.series_by_metric = by_metric.named(str::to_owned);
        out.values_by_name = values.named(str::to_owned);
        out.value_bytes_by_name = bytes.named(str::to_owned);
        out.series_by_pair = by_pair.named(|(name, value)| (name.to_owned(), value.to_owned()));
        out
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, HashMap},
        sync::Arc,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::model::{Labels, Timestamp};

    fn index(series: &[Labels]) -> LabelIndex {
        let mut index = LabelIndex::default();
        for labels in series {
            index.add(0, labels.id(), || Some(Arc::new(labels.clone())), 10, 20, None);
        }
        index
    }

    fn range(from: i64, to: i64) -> TimeRange {
        TimeRange::new(Timestamp(from), Timestamp(to)).unwrap()
    }

    #[test]
    fn every_list_is_counted_and_ordered_as_in_prometheus() {
        let series = |pairs: &[(&str, &str)]| pairs.iter().copied().collect::<Labels>();
        let all = [
            series(&[("__name__", "up"), ("job", "a"), ("instance", "one")]),
            series(&[("__name__", "up"), ("job", "a"), ("instance", "two")]),
            series(&[("__name__", "up"), ("job", "b")]),
            series(&[("__name__", "x"), ("job", "b")]),
        ];
        let mut index = index(&all);
        // One that is no more.
        index.add(0, 1, || Some(Arc::new(series(&[("__name__", "old"), ("job", "c")]))), 0, 5, None);
        let told = |all: &[(&str, u64)]| all.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect::<Vec<_>>();
        let census = index.census(range(9, 21), 2);
        assert_eq!((census.series, census.pairs), (4, 6));
        assert_eq!(census.series_by_metric, told(&[("up", 3), ("x", 1)]));
        assert_eq!(census.values_by_name, told(&[("__name__", 2), ("instance", 2)]));
        // Bytes of the values, once for each series.
        assert_eq!(census.value_bytes_by_name, told(&[("__name__", 7), ("instance", 6)]));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(census.series_by_pair, [(pair("__name__", "up"), 3), (pair("job", "a"), 2)]);
        assert_eq!(index.census(range(9, 21), 100).series_by_pair.len(), 6);
        assert_eq!(index.census(range(21, 22), 100), Census::default());
    }

    proptest! {
        #[test]
        fn the_top_of_a_list_is_the_start_of_the_whole_list_in_order(
            values in proptest::collection::vec((0u8..4, 0u8..30), 0..80),
            top in 1usize..12,
        ) {
            let mut all: Vec<Labels> = values
                .iter()
                .map(|(m, v)| Labels::from_pairs([("__name__", format!("m{m}").as_str()), ("v", v.to_string().as_str())]))
                .collect();
            all.sort();
            all.dedup();
            let mut counts: HashMap<(String, String), u64> = HashMap::new();
            for (name, value) in all.iter().flat_map(|l| l.iter()) {
                *counts.entry((name.to_owned(), value.to_owned())).or_default() += 1;
            }
            let ordered: BTreeMap<_, u64> = counts.into_iter().map(|(key, n)| ((Reverse(n), key), n)).collect();
            let wanted: Vec<_> = ordered.into_iter().take(top).map(|((_, key), n)| (key, n)).collect();
            let census = index(&all).census(range(0, 100), top);
            prop_assert_eq!(census.series, all.len());
            prop_assert_eq!(census.series_by_pair, wanted);
        }
    }
}
