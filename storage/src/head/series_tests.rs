//! The label index, and lookups against a scan over all series.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::{MatchOp, Matcher, TimeRange, Timestamp, time::NANOS_PER_DAY as DAY};

fn labels(job: &str) -> Option<Arc<Labels>> {
    Some(Arc::new(Labels::from_pairs([("__name__", "up"), ("job", job)])))
}

fn range(start: i64, end: i64) -> TimeRange {
    TimeRange::new(Timestamp(start), Timestamp(end)).unwrap()
}

#[test]
fn labels_are_known_as_long_as_a_day_has_them() {
    let mut index = LabelIndex::default();
    index.add(0, 1, || labels("a"), 0, 1, None);
    index.add(20_000, 1, || labels("a"), 0, 1, None);
    index.add(3, 2, || labels("b"), 0, 1, None);
    assert!(index.labels(1).is_some() && index.labels(2).is_some());
    index.drop_before(10);
    assert!(index.labels(1).is_some() && index.labels(2).is_none());
    assert_eq!((index.len(), index.days.len()), (1, 1));
}

#[test]
fn an_entry_is_found_on_the_days_it_lived_and_by_every_matcher() {
    let mut index = LabelIndex::default();
    for (id, job) in [(1, "a"), (2, "b")] {
        index.add(0, id, || labels(job), 10, 20, None);
    }
    index.add(1, 1, || labels("a"), DAY, DAY + 5, None);
    let find = |m: Matcher, start: i64, end: i64| {
        let mut ids: Vec<i64> = index.find_ids(&[m], range(start, end)).into_iter().collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(find(Matcher::equal("job", "a"), 0, 2 * DAY), [1]);
    assert_eq!(find(Matcher::new("job", MatchOp::Re, "a|b").unwrap(), 0, 15), [1, 2]);
    assert_eq!(find(Matcher::new("job", MatchOp::Ne, "a").unwrap(), 0, 15), [2]);
    assert_eq!(find(Matcher::equal("zone", ""), 21, DAY), [] as [i64; 0]);
    assert_eq!(find(Matcher::equal("zone", ""), DAY, DAY + 1), [1]);
}

#[test]
fn a_text_told_later_completes_one_told_before() {
    let mut index = LabelIndex::default();
    let text = |t: Option<&str>, h: Option<&str>| {
        Some(SeriesText { metric_type: t.map(Arc::from), unit: None, help: h.map(Arc::from) })
    };
    index.add(0, 1, || labels("a"), 0, 1, text(Some("counter"), None));
    index.add(0, 1, || labels("a"), 0, 1, text(None, Some("h")));
    let known = index.entry(0, 1).unwrap();
    assert_eq!(known.text.cloned(), text(Some("counter"), Some("h")));
    assert!(index.entry(1, 1).is_none());
    index.doomed.insert((0, 1));
    assert!(index.entry(0, 1).is_none());
}

/// One series: label values (0: no such label) and the spans of its life.
type Model = (Vec<u8>, Vec<(i64, i64)>);

const NAMES: [&str; 4] = ["__name__", "job", "le", "zone"];
const VALUES: [&str; 6] = ["", "a", "b", "ab", "a.b", "é"];

fn model_labels(values: &[u8]) -> Labels {
    Labels::from_pairs(NAMES.iter().zip(values).map(|(n, v)| (*n, VALUES[*v as usize % VALUES.len()])))
}

fn model() -> impl Strategy<Value = Vec<Model>> {
    let life = (0i64..4 * DAY, 0..DAY / 4);
    let series = (proptest::collection::vec(0u8..6, 4), proptest::collection::vec(life, 1..4));
    proptest::collection::vec(series, 0..120)
}

fn matcher() -> impl Strategy<Value = Matcher> {
    let values =
        ["", "a", "b", "a|b", "a|", "a.*", ".*b", ".+", ".*", "a.+b", "(a|é)", "[ab]", "a?", "nothing", r"a\.b"];
    let op = prop::sample::select(vec![MatchOp::Eq, MatchOp::Ne, MatchOp::Re, MatchOp::Nre]);
    let name = prop::sample::select(vec!["__name__", "job", "le", "zone", "absent"]);
    (name, op, prop::sample::select(values.to_vec())).prop_map(|(n, op, v)| Matcher::new(n, op, v).unwrap())
}

proptest! {
    #[test]
    fn lookups_find_what_a_scan_over_all_series_finds(
        all in model(),
        matchers in proptest::collection::vec(matcher(), 0..4),
        start in -DAY..5 * DAY,
        len in 1..3 * DAY,
        forgotten in 0i64..4,
    ) {
        let mut index = LabelIndex::default();
        // Lives by day and series, as an index may know them.
        let mut lives: BTreeMap<(i64, i64), (i64, i64)> = BTreeMap::new();
        let mut sets: BTreeMap<i64, Labels> = BTreeMap::new();
        for (values, spans) in &all {
            let labels = model_labels(values);
            let id = labels.id();
            for (from, width) in spans {
                let day = from.div_euclid(DAY);
                let to = (from + width).min((day + 1) * DAY - 1);
                index.add(day, id, || Some(Arc::new(labels.clone())), *from, to, None);
                let life = lives.entry((day, id)).or_insert((*from, to));
                *life = (life.0.min(*from), life.1.max(to));
            }
            sets.insert(id, labels);
        }
        index.drop_before(forgotten);
        lives.retain(|(day, _), _| *day >= forgotten);
        prop_assert_eq!(index.len(), lives.len());
        let range = range(start, start + len);
        let alive = |(min, max): &(i64, i64)| range.overlaps(Timestamp(*min), Timestamp(*max));
        let hit = |id: &i64| matchers.iter().all(|m| m.matches(&sets[id]));
        let days: HashSet<(i64, i64)> =
            lives.iter().filter(|((_, id), life)| alive(life) && hit(id)).map(|(key, _)| *key).collect();
        let ids: HashSet<i64> = days.iter().map(|(_, id)| *id).collect();
        prop_assert_eq!(&index.find_days(&matchers, range), &days);
        prop_assert_eq!(&index.find_ids(&matchers, range), &ids);
        let found = index.find(&matchers, range);
        prop_assert_eq!(found.len(), ids.len());
        for e in &found {
            prop_assert_eq!(&*e.labels, &sets[&e.id]);
        }
        let names: BTreeSet<&str> = ids.iter().flat_map(|id| sets[id].iter().map(|(n, _)| n)).collect();
        prop_assert_eq!(index.find_names(&matchers, range), names.into_iter().collect::<Vec<_>>());
        for name in ["__name__", "job", "zone", "absent"] {
            let values: BTreeSet<&str> = ids.iter().filter_map(|id| sets[id].get(name)).collect();
            prop_assert_eq!(index.find_values(name, &matchers, range), values.into_iter().collect::<Vec<_>>());
        }
        // One after the other, in order of slots and in any other.
        let mut cursor = index.cursor();
        let slots: Vec<i64> = index.ids.clone();
        let asked = (-1..5).flat_map(|day| slots.iter().map(move |id| (day, *id)));
        for (day, id) in asked.chain(sets.keys().flat_map(|id| (-1..5).map(move |day| (day, *id)))) {
            let slot = cursor.entry(day, id).map(|k| k.slot);
            prop_assert_eq!(slot.is_some(), lives.contains_key(&(day, id)));
            prop_assert_eq!(slot, index.entry(day, id).map(|k| k.slot));
        }
        // Slots and lives go on where they were.
        for ((day, id), (min, max)) in &lives {
            prop_assert!(index.touch(*day, *id, *min, *max).is_some());
        }
        prop_assert!(index.touch(forgotten - 1, 1, 0, 0).is_none());
    }
}
