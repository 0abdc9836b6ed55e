use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const WINDOW: u64 = 100;

fn limits(of: [Option<usize>; 4]) -> SeriesLimits {
    SeriesLimits {
        series: of[0],
        series_per_metric: of[1],
        label_values: of[2],
        label_values_per_metric: of[3],
        active_for: Duration::from_secs(WINDOW),
    }
}

fn guard(of: [Option<usize>; 4]) -> Guard {
    Guard::new(TenantId::default_tenant(), limits(of))
}

fn series(metric: &str, labels: &[(&str, &str)]) -> Arc<Labels> {
    Arc::new(labels.iter().copied().chain([("__name__", metric)]).collect())
}

/// One append of these series; those that are refused.
fn append(guard: &Guard, at: u64, of: &[Arc<Labels>], known: &HashSet<i64>) -> Verdict {
    let now = Duration::from_secs(at);
    let by_id: HashMap<i64, &Arc<Labels>> = of.iter().map(|l| (l.id(), l)).collect();
    let unknown = guard.touch(of.iter().map(|l| l.id()), now);
    guard.register(unknown.into_iter(), now, |id| known.contains(&id), |id| by_id.get(&id).copied())
}

#[test]
fn each_limit_names_itself_and_who_is_over_it() {
    let nobody = HashSet::new();
    for (of, want) in [
        (
            [Some(2), None, None, None],
            "limit `series` of 2 reached: 2 active series; refused {__name__=\"m\", a=\"3\"}",
        ),
        ([None, Some(2), None, None], "limit `series_per_metric` of 2 reached by metric m: 2 active series"),
        ([None, None, Some(2), None], "limit `label_values` of 2 reached by label a: 2 values"),
        (
            [None, None, None, Some(2)],
            "limit `label_values_per_metric` of 2 reached by label a of metric m: 2 values",
        ),
    ] {
        let guard = guard(of);
        let all = ["1", "2", "3", "4"].map(|v| series("m", &[("a", v)]));
        let verdict = append(&guard, 0, &all, &nobody);
        let over: BTreeSet<i64> = verdict.over.keys().copied().collect();
        assert_eq!(over, all[2..].iter().map(|l| l.id()).collect(), "{want}");
        let text = verdict.refused.to_string();
        assert!(text.contains(want) && text.contains("2 new series"), "{text}");
        assert_eq!(verdict.refused.offenders.len(), 1, "one offender, told once: {text}");
        // Those that are in stay in, those that are not stay out.
        assert_eq!(append(&guard, 1, &all, &nobody).over.len(), 2);
        // What the store knows passes whatever the limits, and counts.
        assert!(append(&guard, 2, &all[2..3], &HashSet::from([all[2].id()])).over.is_empty());
        assert_eq!(guard.active.lock().seen.len(), 3);
    }
}

#[test]
fn series_that_went_quiet_make_room_and_leave_nothing_behind() {
    let guard = guard([Some(100), Some(1), Some(1), Some(1)]);
    let (a, b) = (series("m", &[("a", "1"), ("b", "1")]), series("m", &[("a", "2"), ("b", "1")]));
    let nobody = HashSet::new();
    assert!(append(&guard, 0, std::slice::from_ref(&a), &nobody).over.is_empty());
    guard.sweep(Duration::from_secs(WINDOW - 1));
    assert_eq!(append(&guard, WINDOW - 1, std::slice::from_ref(&b), &nobody).over.len(), 1);
    guard.sweep(Duration::from_secs(WINDOW));
    assert!(append(&guard, WINDOW, &[b], &nobody).over.is_empty());
    assert_eq!(append(&guard, WINDOW, &[a], &nobody).over.len(), 1);
    guard.sweep(Duration::from_secs(2 * WINDOW));
    let active = guard.active.lock();
    assert!(active.seen.is_empty() && active.of_metric.is_empty() && active.values.is_empty());
    assert!(active.metric_pairs.is_empty() && active.metric_values.is_empty() && active.pairs.numbers.is_empty());
}

#[test]
fn long_names_are_cut_where_they_are_told() {
    let guard = guard([Some(1), None, None, None]);
    let nobody = HashSet::new();
    append(&guard, 0, &[series("m", &[])], &nobody);
    let long = "ä".repeat(10_000);
    let text = append(&guard, 0, &[series("m", &[("a", &long)])], &nobody).refused.to_string();
    assert!(text.len() < 1000 && text.contains("..."), "{}", text.len());
}

/// All series ever taken with the last time of a point: what is active is counted anew at each question.
#[derive(Default)]
struct Model(BTreeMap<i64, (Arc<Labels>, u64)>);

impl Model {
    fn over(&self, of: &Labels, limits: &SeriesLimits) -> Option<SeriesLimit> {
        let metric = |l: &Labels| l.get("__name__").unwrap_or_default().to_owned();
        let all: Vec<&Arc<Labels>> = self.0.values().map(|(l, _)| l).collect();
        let full = |max: Option<usize>, n: usize| max.is_some_and(|max| n >= max);
        if full(limits.series, all.len()) {
            return Some(SeriesLimit::Series);
        }
        let mine: Vec<&Arc<Labels>> = all.iter().copied().filter(|l| metric(l) == metric(of)).collect();
        if full(limits.series_per_metric, mine.len()) {
            return Some(SeriesLimit::SeriesPerMetric);
        }
        let values = |of: &[&Arc<Labels>], name: &str| -> BTreeSet<String> {
            of.iter().filter_map(|l| l.get(name).map(str::to_owned)).collect()
        };
        for (name, value) in of.iter().filter(|(n, _)| *n != "__name__") {
            let (whole, own) = (values(&all, name), values(&mine, name));
            if !whole.contains(value) && full(limits.label_values, whole.len()) {
                return Some(SeriesLimit::LabelValues);
            }
            if !own.contains(value) && full(limits.label_values_per_metric, own.len()) {
                return Some(SeriesLimit::LabelValuesPerMetric);
            }
        }
        None
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Random series that come, stay, go quiet and come back, against counting everything anew each time.
    #[test]
    fn limits_hold_as_in_a_model_that_counts_anew(
        of in prop::array::uniform4(prop::option::of(1usize..5)),
        steps in prop::collection::vec(
            (0u64..60, prop::collection::vec((0u8..3, 0u8..5, 0u8..4), 1..6), any::<bool>()),
            1..40,
        ),
    ) {
        let guard = guard(of);
        let mut model = Model::default();
        let mut now = 0;
        for (wait, picked, stored) in steps {
            now += wait;
            guard.sweep(Duration::from_secs(now));
            model.0.retain(|_, (_, at)| now - *at < WINDOW);
            let texts: Vec<[String; 3]> =
                picked.iter().map(|(m, a, b)| [format!("m{m}"), a.to_string(), b.to_string()]).collect();
            let of: Vec<Arc<Labels>> =
                texts.iter().map(|[m, a, b]| series(m, &[("a", a), ("b", if b == "0" { "" } else { b })])).collect();
            // Now and then the store knows the first one from before.
            let known: HashSet<i64> = of.iter().take(usize::from(stored)).map(|l| l.id()).collect();
            let verdict = append(&guard, now, &of, &known);
            // Those that are active are touched first, whatever their place.
            for l in &of {
                if let Some((_, at)) = model.0.get_mut(&l.id()) {
                    *at = now;
                }
            }
            let mut asked = HashSet::new();
            for l in of.iter().filter(|l| asked.insert(l.id())) {
                let over = match model.0.contains_key(&l.id()) || known.contains(&l.id()) {
                    true => None,
                    false => model.over(l, &guard.limits),
                };
                prop_assert_eq!(verdict.over.get(&l.id()).copied(), over, "{} at {}", l, now);
                if over.is_none() {
                    model.0.insert(l.id(), (l.clone(), now));
                }
            }
            prop_assert_eq!(guard.active.lock().seen.len(), model.0.len());
        }
    }
}
