//! `rate`, `increase`, `delta`, `irate`, `idelta`. Source: Prometheus 3.

use std::sync::Arc;

use super::range::{Notes, Window};
use crate::promql::{
    histogram::{Histogram, ResetHint},
    value::Point,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Rate,
    Increase,
    Delta,
}

impl Kind {
    /// The kind of an extrapolating function.
    pub fn of(name: &str) -> Option<Kind> {
        Some(match name {
            "rate" => Kind::Rate,
            "increase" => Kind::Increase,
            "delta" => Kind::Delta,
            _ => return None,
        })
    }

    pub fn is_counter(self) -> bool {
        self != Kind::Delta
    }
}

/// Whether sample `i` counts from a start of its own: one after the sample before, or at it where that one had an earlier
/// start (a delta). A first sample with its start at the one before only does not know its start.
/// `starts`: ms, 0 = unknown, beside the samples at `time(i)`; empty when none is known.
pub(super) fn starts_anew(starts: &[i64], time: impl Fn(usize) -> i64, i: usize) -> bool {
    let (Some(start), Some(before)) = (starts.get(i).copied(), i.checked_sub(1)) else { return false };
    let (start_before, time_before) = (starts[before], time(before));
    start != 0
        && start < time(i)
        && (start > time_before || (start == time_before && start_before != 0 && start_before < time_before))
}

/// The start of the first sample, if the counter is known to have been zero then, inside the window.
fn zero_at(starts: &[i64], first: i64, w: &Window<'_>) -> Option<i64> {
    starts.first().copied().filter(|s| *s != 0 && *s > w.start && *s < first)
}

/// Tells of samples that count from a time before the previous one, which counted from another.
pub(super) fn tell_overlaps(w: &Window<'_>, notes: &Notes<'_>) {
    let overlaps = |starts: &[i64], time: &dyn Fn(usize) -> i64| {
        (1..starts.len()).any(|i| starts[i] != 0 && starts[i] < time(i - 1) && starts[i] != starts[i - 1])
    };
    if overlaps(w.starts, &|i| w.ts[i]) || overlaps(w.histogram_starts, &|i| w.histograms[i].0) {
        let metric = notes.metric;
        notes.eval.warn(
            notes.span,
            &format!("sample has start time that overlaps with previous sample timestamp for metric {metric:?}"),
        );
    }
}

/// Increase (or difference) over the window, extrapolated to its edges; per second for `rate`. None below two samples.
pub(super) fn extrapolated(w: &Window<'_>, notes: &Notes<'_>, kind: Kind) -> Point {
    if !w.ts.is_empty() && !w.histograms.is_empty() {
        notes.mixed();
        return Point::None;
    }
    if kind.is_counter() {
        tell_overlaps(w, notes);
    }
    if let [(first, h), ..] = w.histograms {
        let zero = zero_at(w.histogram_starts, *first, w).filter(|_| kind.is_counter());
        if w.histograms.len() < 2 && zero.is_none() {
            return Point::None;
        }
        let points: Vec<&Histogram> = w.histograms.iter().map(|h| &*h.1).collect();
        let anew = |i: usize| starts_anew(w.histogram_starts, |i| w.histograms[i].0, i).then_some(true);
        let Some(mut result) = histogram_increase(&points, notes, kind.is_counter(), anew) else {
            return Point::None;
        };
        if zero.is_some() && result.add(h).is_err() {
            notes.warn("vector contains a mix of histograms with exponential and custom buckets schemas");
            return Point::None;
        }
        result.hint = ResetHint::Gauge;
        let last = w.histograms[points.len() - 1].0;
        let counted = kind.is_counter().then_some((points[0].count, result.count));
        let factor = factor(w, kind, (*first, last), points.len(), counted, zero);
        return Point::Histogram(Arc::new(result.scaled(factor).compact()));
    }
    let (Some(first), Some(last)) = (w.ts.first().copied(), w.ts.last().copied()) else { return Point::None };
    let zero = zero_at(w.starts, first, w).filter(|_| kind.is_counter());
    if w.ts.len() < 2 && zero.is_none() {
        return Point::None;
    }
    let values = w.values;
    let mut result = values[values.len() - 1] - values[0];
    if kind.is_counter() {
        if w.starts.is_empty() {
            for pair in values.windows(2) {
                if pair[1] < pair[0] {
                    result += pair[0];
                }
            }
        } else {
            for i in 1..values.len() {
                if values[i] < values[i - 1] || starts_anew(w.starts, |i| w.ts[i], i) {
                    result += values[i - 1];
                }
            }
        }
    }
    if zero.is_some() {
        result += values[0];
    }
    let counted = kind.is_counter().then_some((values[0], result));
    Point::Float(result * factor(w, kind, (first, last), w.ts.len(), counted, zero))
}

/// [`extrapolated`] of every window over floats without start times. What was reset is found once for all windows.
/// `windows`: `start < ts <= end`, neither end ever moving back.
pub(super) fn over_floats(ts: &[i64], values: &[f64], windows: &[(i64, i64)], kind: Kind) -> Vec<Point> {
    let mut resets: Vec<usize> = Vec::new();
    // Mostly there is none, which is seen on several at once.
    let falls = |values: &[f64]| {
        values.iter().zip(values.get(1..).unwrap_or_default()).fold(false, |any, (a, b)| any | (b < a))
    };
    if kind.is_counter() && falls(values) {
        resets.extend(values.windows(2).enumerate().filter(|(_, pair)| pair[1] < pair[0]).map(|(i, _)| i + 1));
    }
    let mut out = vec![Point::None; windows.len()];
    let (mut lo, mut hi, mut next) = (0, 0, 0);
    for (point, &(start, end)) in out.iter_mut().zip(windows) {
        hi = super::selector::upper_bound(ts, hi, end);
        lo = super::selector::upper_bound(&ts[..hi], lo.min(hi), start);
        if hi - lo < 2 {
            continue;
        }
        let mut result = values[hi - 1] - values[lo];
        while resets.get(next).is_some_and(|r| *r <= lo) {
            next += 1;
        }
        for r in resets[next..].iter().take_while(|r| **r < hi) {
            result += values[r - 1];
        }
        let counted = kind.is_counter().then_some((values[lo], result));
        let w = Window {
            ts: &ts[lo..hi],
            values: &values[lo..hi],
            histograms: &[],
            starts: &[],
            histogram_starts: &[],
            start,
            end,
            at: end,
        };
        *point = Point::Float(result * factor(&w, kind, (ts[lo], ts[hi - 1]), hi - lo, counted, None));
    }
    out
}

/// What the increase between the first and the last sample is multiplied with. `counted`: first value and increase
/// of a counter, which cannot have been below zero at the window's start. `zero`: when it is known to have been zero,
/// which takes the place of a guess at the left.
pub(super) fn factor(
    w: &Window<'_>,
    kind: Kind,
    (first, last): (i64, i64),
    n: usize,
    counted: Option<(f64, f64)>,
    zero: Option<i64>,
) -> f64 {
    let mut to_start = (first - w.start) as f64 / 1000.0;
    let mut to_end = (w.end - last) as f64 / 1000.0;
    let sampled = (last - zero.unwrap_or(first)) as f64 / 1000.0;
    // A single sample, after a known zero, says nothing of how far apart they are: nothing is added behind it.
    let average = if n > 1 { (last - first) as f64 / 1000.0 / (n - 1) as f64 } else { 0.0 };
    let threshold = average * 1.1;
    if to_start >= threshold {
        to_start = average / 2.0;
    }
    if let Some((first, increase)) = counted
        && increase > 0.0
        && first >= 0.0
    {
        to_start = to_start.min(sampled * (first / increase));
    }
    if zero.is_some() {
        to_start = 0.0;
    }
    if to_end >= threshold {
        to_end = average / 2.0;
    }
    let factor = (sampled + to_start + to_end) / sampled;
    if kind == Kind::Rate { factor / w.seconds() } else { factor }
}

/// Difference of the last and the first histogram, with what resets took away. Also used by edge modifiers.
/// `anew`: whether a point by its index is known to count from a start of its own, or known not to.
pub(super) fn histogram_increase(
    points: &[&Histogram],
    notes: &Notes<'_>,
    counter: bool,
    anew: impl Fn(usize) -> Option<bool>,
) -> Option<Histogram> {
    let (mut previous, last) = (points[0], *points.last()?);
    let empty;
    let not_counter = || {
        notes.eval.warn(notes.span, &format!("this native histogram metric is not a counter: {:?}", notes.metric));
    };
    if counter && (previous.hint == ResetHint::Gauge || last.hint == ResetHint::Gauge) {
        not_counter();
    }
    // A first sample that was reset away says nothing, not even by its layout.
    if counter && points.len() > 1 && anew(1).unwrap_or_else(|| points[1].is_reset_since(previous)) {
        empty = Histogram {
            schema: points[1].schema,
            custom: points[1].custom.clone(),
            zero_threshold: points[1].zero_threshold,
            ..Histogram::default()
        };
        previous = &empty;
    }
    let custom = previous.uses_custom_buckets();
    let mixed = || notes.warn("vector contains a mix of histograms with exponential and custom buckets schemas");
    if last.uses_custom_buckets() != custom {
        mixed();
        return None;
    }
    let mut schema = previous.schema.min(last.schema);
    if counter {
        for p in points.iter().take(points.len() - 1).skip(1) {
            if p.hint == ResetHint::Gauge {
                not_counter();
            }
            if p.uses_custom_buckets() != custom {
                mixed();
                return None;
            }
            schema = schema.min(p.schema);
        }
    } else if points[0].hint != ResetHint::Gauge || last.hint != ResetHint::Gauge {
        notes.eval.warn(notes.span, &format!("this native histogram metric is not a gauge: {:?}", notes.metric));
    }
    let reconciled = |what: &str| {
        notes.eval.info(notes.span, &format!("mismatched custom buckets were reconciled during {what}"));
    };
    let mut out = last.clone().at_schema(schema);
    match out.sub(previous) {
        Ok(joined) if joined.bounds_reconciled => reconciled("subtraction"),
        Ok(_) => {}
        Err(_) => {
            mixed();
            return None;
        }
    }
    if counter {
        for (i, p) in points.iter().enumerate().skip(1) {
            // The first one was taken away above where the second began anew.
            if anew(i).filter(|anew| i > 1 || !anew).unwrap_or_else(|| p.is_reset_since(previous)) {
                match out.add(previous) {
                    Ok(joined) if joined.bounds_reconciled => reconciled("addition"),
                    Ok(_) => {}
                    Err(_) => {
                        mixed();
                        return None;
                    }
                }
            }
            previous = p;
        }
    }
    out.hint = ResetHint::Gauge;
    Some(out)
}

/// From the last two samples alone: `irate` per second with resets, `idelta` the difference.
pub(super) fn instant(w: &Window<'_>, notes: &Notes<'_>, rate: bool) -> Point {
    if w.histograms.is_empty() {
        // The common case, without a look at what is not there.
        let Some(i) = w.ts.len().checked_sub(2) else { return Point::None };
        let (a, b) = (w.values[i], w.values[i + 1]);
        let seconds = (w.ts[i + 1] - w.ts[i]) as f64 / 1000.0;
        if rate {
            tell_overlaps(w, notes);
        }
        let reset = rate && (b < a || starts_anew(w.starts, |i| w.ts[i], i + 1));
        let difference = if reset { b } else { b - a };
        return Point::Float(if rate { difference / seconds } else { difference });
    }
    if rate {
        tell_overlaps(w, notes);
    }
    let histogram_anew = rate && w.histograms.len() > 1 && {
        starts_anew(w.histogram_starts, |i| w.histograms[i].0, w.histograms.len() - 1)
    };
    let float_anew = rate && w.ts.len() > 1 && starts_anew(w.starts, |i| w.ts[i], w.ts.len() - 1);
    // The last two of floats and histograms together.
    let mut last: Vec<(i64, Point)> = Vec::with_capacity(4);
    for i in w.ts.len().saturating_sub(2)..w.ts.len() {
        last.push((w.ts[i], Point::Float(w.values[i])));
    }
    for (t, h) in &w.histograms[w.histograms.len().saturating_sub(2)..] {
        last.push((*t, Point::Histogram(h.clone())));
    }
    last.sort_by_key(|p| p.0);
    let [.., (t0, a), (t1, b)] = last.as_slice() else { return Point::None };
    let seconds = (t1 - t0) as f64 / 1000.0;
    if seconds == 0.0 {
        return Point::None;
    }
    match (a, b) {
        (Point::Float(a), Point::Float(b)) => {
            let difference = if rate && (b < a || float_anew) { *b } else { b - a };
            Point::Float(if rate { difference / seconds } else { difference })
        }
        (Point::Histogram(a), Point::Histogram(b)) => {
            if rate && (a.hint == ResetHint::Gauge || b.hint == ResetHint::Gauge) {
                notes
                    .eval
                    .warn(notes.span, &format!("this native histogram metric is not a counter: {:?}", notes.metric));
            }
            if !rate && (a.hint != ResetHint::Gauge || b.hint != ResetHint::Gauge) {
                notes
                    .eval
                    .warn(notes.span, &format!("this native histogram metric is not a gauge: {:?}", notes.metric));
            }
            let mut out = Histogram::clone(b);
            if !rate || !(histogram_anew || b.is_reset_since(a)) {
                match out.sub(a) {
                    Ok(joined) if joined.bounds_reconciled => {
                        notes.eval.info(notes.span, "mismatched custom buckets were reconciled during subtraction");
                    }
                    Ok(_) => {}
                    Err(_) => {
                        notes.warn("vector contains a mix of histograms with exponential and custom buckets schemas");
                        return Point::None;
                    }
                }
            }
            out.hint = ResetHint::Gauge;
            Point::Histogram(Arc::new(if rate { out.divided(seconds) } else { out }.compact()))
        }
        _ => {
            notes.mixed();
            Point::None
        }
    }
}
