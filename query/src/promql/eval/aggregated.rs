//! Functions over aggregates of samples instead of samples.
//!
//! **For** windows that begin and end with buckets: there `count`, `min`, `max`, `first`, `last`, `present` and the newest value
//! are what the samples give, to the bit, and sums, means, `rate`, `increase` and `delta` up to the order of additions: the
//! same where these are exact, as with whole numbers below 2^53. **Not for** choosing windows: see `promql::aggregates`.

use std::sync::Arc;

use storage::{downsample::Aggregate, model::Labels};

use super::{
    Evaluator, Series,
    range::Window,
    rate::{self, Kind},
    streamed::Leaf,
};
use crate::{
    error::QueryError,
    promql::value::{Kahan, Point},
};

/// What one step sees: buckets with `start < end_ms <= end`. Times are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::promql) struct Seen {
    pub start: i64,
    pub end: i64,
    /// Length of the range that was asked for, where it is another one: what counts over time is scaled to it.
    pub asked: Option<i64>,
}

/// Whether aggregates answer a leaf.
pub(in crate::promql) fn answers(leaf: &Leaf) -> bool {
    match leaf {
        Leaf::Instant(_) => true,
        Leaf::Function { name, .. } => {
            Kind::of(name).is_some()
                || matches!(
                    *name,
                    "avg_over_time"
                        | "sum_over_time"
                        | "count_over_time"
                        | "min_over_time"
                        | "max_over_time"
                        | "last_over_time"
                        | "first_over_time"
                        | "present_over_time"
                )
        }
    }
}

/// Points of one series, whose aggregates are ascending and one for each bucket; `None` if there is none at any step.
pub(in crate::promql) fn points(
    leaf: &Leaf,
    all: &[Aggregate],
    seen: &[Seen],
    lookback_ms: i64,
) -> Option<Vec<Point>> {
    let mut out = vec![Point::None; seen.len()];
    let (mut lo, mut hi) = (0, 0);
    let mut any = false;
    for (point, w) in out.iter_mut().zip(seen) {
        while all.get(hi).is_some_and(|a| a.end_ms <= w.end) {
            hi += 1;
        }
        while lo < hi && all[lo].end_ms <= w.start {
            lo += 1;
        }
        *point = match leaf {
            Leaf::Instant(_) => newest(&all[..hi], w.end - lookback_ms),
            Leaf::Function { name, .. } => over(name, &all[lo..hi], *w),
        };
        any |= point.is_some();
    }
    any.then_some(out)
}

/// The newest sample, if it is after `oldest` and no stale marker.
fn newest(all: &[Aggregate], oldest: i64) -> Point {
    match all.last() {
        Some(a) if a.stale_ms.is_none() && a.last_ms > oldest => Point::Float(a.last),
        _ => Point::None,
    }
}

fn over(name: &str, all: &[Aggregate], w: Seen) -> Point {
    let mut with_samples = all.iter().filter(|a| a.count > 0);
    let Some(first) = with_samples.next() else { return Point::None };
    let last = all.iter().rfind(|a| a.count > 0).unwrap_or(first);
    if let Some(kind) = Kind::of(name) {
        return extrapolated(all, (first, last), w, kind);
    }
    let count = || all.iter().map(|a| a.count).sum::<u64>() as f64;
    let sum = || {
        let mut sum = Kahan::default();
        all.iter().filter(|a| a.count > 0).for_each(|a| sum.add(a.sum));
        sum.total()
    };
    let extreme = |of: fn(&Aggregate) -> f64, better: fn(f64, f64) -> bool| {
        with_samples.fold(of(first), |best, a| if best.is_nan() || better(best, of(a)) { of(a) } else { best })
    };
    Point::Float(match name {
        "avg_over_time" => sum() / count(),
        "sum_over_time" => scaled(sum(), w),
        "count_over_time" => scaled(count(), w),
        "min_over_time" => extreme(|a| a.min, |a, b| b < a),
        "max_over_time" => extreme(|a| a.max, |a, b| b > a),
        "last_over_time" => last.last,
        "first_over_time" => first.first,
        "present_over_time" => 1.0,
        _ => return Point::None,
    })
}

/// As over the range that was asked for.
fn scaled(value: f64, w: Seen) -> f64 {
    match w.asked {
        Some(asked) => value * (asked as f64 / (w.end - w.start) as f64),
        None => value,
    }
}

/// As [`rate::extrapolated`], with what resets took away inside of buckets and between them.
fn extrapolated(all: &[Aggregate], (first, last): (&Aggregate, &Aggregate), w: Seen, kind: Kind) -> Point {
    let n: u64 = all.iter().map(|a| a.count).sum();
    if n < 2 {
        return Point::None;
    }
    let mut result = last.last - first.first;
    if kind.is_counter() {
        let mut before: Option<&Aggregate> = None;
        for a in all.iter().filter(|a| a.count > 0) {
            if let Some(before) = before.filter(|b| a.first < b.last) {
                result += before.last;
            }
            if a.lost != 0.0 {
                result += a.lost;
            }
            before = Some(a);
        }
    }
    let window = Window {
        ts: &[],
        values: &[],
        histograms: &[],
        starts: &[],
        histogram_starts: &[],
        start: w.start,
        end: w.end,
        at: w.end,
    };
    let counted = kind.is_counter().then_some((first.first, result));
    let n = usize::try_from(n).unwrap_or(usize::MAX);
    let value = result * rate::factor(&window, kind, (first.first_ms, last.last_ms), n, counted, None);
    Point::Float(if kind == Kind::Rate { value } else { scaled(value, w) })
}

/// A leaf's series from the points of all selected ones. `floats`: whether any sample was a float.
pub(in crate::promql) fn named(
    eval: &Evaluator,
    leaf: &Leaf,
    labels: impl Iterator<Item = Arc<Labels>>,
    points: Vec<Option<Vec<Point>>>,
    floats: &[bool],
    steps: usize,
) -> Result<Vec<Series>, QueryError> {
    let (keep_name, counter) = match leaf {
        Leaf::Instant(_) => (true, None),
        Leaf::Function { name, span, .. } => (
            matches!(*name, "last_over_time" | "first_over_time"),
            matches!(*name, "rate" | "increase").then_some(*span),
        ),
    };
    let mut out = Vec::new();
    for ((labels, points), floats) in labels.zip(points).zip(floats) {
        let Some(mut points) = points else { continue };
        points.resize(steps, Point::None);
        if let Some(span) = counter.filter(|_| *floats) {
            eval.hint_not_counter(&labels, span);
        }
        out.push((labels, Some(points)));
    }
    eval.named(out.into_iter(), keep_name)
}
