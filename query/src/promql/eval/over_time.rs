//! `*_over_time` and the regressions. Windows are never empty here.

use std::{collections::VecDeque, sync::Arc};

use super::range::{Notes, Window};
use crate::{
    error::QueryError,
    promql::{
        histogram::Histogram,
        value::{Kahan, Mean, Point},
    },
};

/// Floats and histograms in time order.
fn merged<'a>(w: &'a Window<'_>) -> impl Iterator<Item = (i64, Result<f64, &'a Histogram>)> {
    let (mut i, mut j) = (0, 0);
    std::iter::from_fn(move || {
        let float = w.ts.get(i);
        let histogram = w.histograms.get(j);
        match (float, histogram) {
            (Some(t), h) if h.is_none_or(|h| *t <= h.0) => {
                i += 1;
                Some((*t, Ok(w.values[i - 1])))
            }
            (_, Some((t, h))) => {
                j += 1;
                Some((*t, Err(&**h)))
            }
            _ => None,
        }
    })
}

pub(super) fn changes(w: &Window<'_>) -> Point {
    let mut changes = 0.0;
    let mut previous: Option<Result<f64, &Histogram>> = None;
    for (_, now) in merged(w) {
        let changed = match (previous, now) {
            (None, _) => false,
            (Some(Ok(a)), Ok(b)) => a != b && !(a.is_nan() && b.is_nan()),
            (Some(Err(a)), Err(b)) => !a.same_as(b),
            _ => true,
        };
        changes += f64::from(u8::from(changed));
        previous = Some(now);
    }
    Point::Float(changes)
}

pub(super) fn resets(w: &Window<'_>) -> Point {
    let mut resets = 0.0;
    let mut previous: Option<Result<f64, &Histogram>> = None;
    let (mut floats, mut histograms) = (0, 0);
    for (_, now) in merged(w) {
        let anew = match now {
            Ok(_) => {
                floats += 1;
                super::rate::starts_anew(w.starts, |i| w.ts[i], floats - 1)
            }
            Err(_) => {
                histograms += 1;
                super::rate::starts_anew(w.histogram_starts, |i| w.histograms[i].0, histograms - 1)
            }
        };
        let reset = match (previous, now) {
            (None, _) => false,
            (Some(Ok(a)), Ok(b)) => b < a || anew,
            (Some(Err(a)), Err(b)) => anew || b.is_reset_since(a),
            _ => true,
        };
        resets += f64::from(u8::from(reset));
        previous = Some(now);
    }
    Point::Float(resets)
}

pub(super) fn count(w: &Window<'_>) -> Point {
    Point::Float((w.ts.len() + w.histograms.len()) as f64)
}

pub(super) fn last(w: &Window<'_>) -> Point {
    match (w.ts.last(), w.histograms.last()) {
        (t, Some((h, value))) if t.is_none_or(|t| t < h) => Point::Histogram(value.clone()),
        (Some(_), _) => Point::Float(w.values[w.values.len() - 1]),
        _ => Point::None,
    }
}

pub(super) fn first(w: &Window<'_>) -> Point {
    match (w.ts.first(), w.histograms.first()) {
        (t, Some((h, value))) if t.is_none_or(|t| h < t) => Point::Histogram(value.clone()),
        (Some(_), _) => Point::Float(w.values[0]),
        _ => Point::None,
    }
}

fn seconds(ms: i64) -> Point {
    Point::Float(ms as f64 / 1000.0)
}

pub(super) fn time_of_last(w: &Window<'_>) -> Point {
    w.ts.last().copied().max(w.histograms.last().map(|h| h.0)).map_or(Point::None, seconds)
}

pub(super) fn time_of_first(w: &Window<'_>) -> Point {
    [w.ts.first().copied(), w.histograms.first().map(|h| h.0)]
        .into_iter()
        .flatten()
        .min()
        .map_or(Point::None, seconds)
}

pub(super) fn sum(w: &Window<'_>, notes: &Notes<'_>) -> Point {
    if w.histograms.is_empty() {
        let mut sum = Kahan::default();
        w.values.iter().for_each(|v| sum.add(*v));
        return Point::Float(sum.total());
    }
    histogram_sum(w, notes).map_or(Point::None, |h| Point::Histogram(Arc::new(h.compact())))
}

pub(super) fn avg(w: &Window<'_>, notes: &Notes<'_>) -> Point {
    if w.histograms.is_empty() {
        let mut mean = Mean::default();
        w.values.iter().for_each(|v| mean.add(*v));
        return Point::Float(mean.value());
    }
    let n = w.histograms.len() as f64;
    histogram_sum(w, notes).map_or(Point::None, |h| {
        let all = || w.histograms.iter().map(|h| &*h.1);
        super::native::point(super::native::mean(h, n, all))
    })
}

fn histogram_sum(w: &Window<'_>, notes: &Notes<'_>) -> Option<Histogram> {
    if !w.ts.is_empty() {
        notes.mixed();
        return None;
    }
    let all: Vec<&Histogram> = w.histograms.iter().map(|h| &*h.1).collect();
    super::native::sum(&all, |note| match note {
        super::native::SumNote::Mixed => {
            notes.warn("vector contains a mix of histograms with exponential and custom buckets schemas");
        }
        super::native::SumNote::Reconciled => {
            notes.eval.info(notes.span, "mismatched custom buckets were reconciled during aggregation");
        }
        super::native::SumNote::Collision => {
            notes.eval.warn(notes.span, "conflicting counter resets during histogram aggregation");
        }
    })
}

/// Whether there is a float to work on; tells of histograms passed over.
fn floats_only(w: &Window<'_>, notes: &Notes<'_>) -> bool {
    if !w.ts.is_empty() && !w.histograms.is_empty() {
        notes.ignored_histograms();
    }
    !w.ts.is_empty()
}

/// The value that no other is `better(value, other)` than; NaN gives way to any number.
pub(super) fn extreme(w: &Window<'_>, notes: &Notes<'_>, better: fn(f64, f64) -> bool) -> Point {
    if !floats_only(w, notes) {
        return Point::None;
    }
    let mut best = w.values[0];
    for v in &w.values[1..] {
        if best.is_nan() || better(best, *v) {
            best = *v;
        }
    }
    Point::Float(best)
}

/// [`extreme`] of every window over floats; `None` where all windows are empty. Each sample is looked at about twice,
/// however many windows it is in. `windows`: `start < ts <= end`, neither end ever moving back.
pub(super) fn extremes(
    ts: &[i64],
    values: &[f64],
    windows: &[(i64, i64)],
    better: fn(&f64, &f64) -> bool,
) -> Option<Vec<Point>> {
    let mut out = vec![Point::None; windows.len()];
    // Places of numbers of the window that are better than all behind them, the first of equal ones.
    let mut best: VecDeque<usize> = VecDeque::new();
    let (mut lo, mut hi, mut seen) = (0, 0, false);
    for (point, &(start, end)) in out.iter_mut().zip(windows) {
        let next = super::selector::upper_bound(ts, hi, end);
        lo = super::selector::upper_bound(&ts[..next], lo.min(next), start);
        while best.front().is_some_and(|i| *i < lo) {
            best.pop_front();
        }
        for (i, v) in values.iter().enumerate().take(next).skip(hi.max(lo)).filter(|(_, v)| !v.is_nan()) {
            while best.back().is_some_and(|b| better(v, &values[*b])) {
                best.pop_back();
            }
            best.push_back(i);
        }
        hi = next;
        if lo < hi {
            seen = true;
            // Without a number the last NaN is as good as any.
            *point = Point::Float(values[best.front().copied().unwrap_or(hi - 1)]);
        }
    }
    seen.then_some(out)
}

pub(super) fn time_of_extreme(w: &Window<'_>, notes: &Notes<'_>, better: fn(f64, f64) -> bool) -> Point {
    if !floats_only(w, notes) {
        return Point::None;
    }
    let mut best = 0;
    for (i, v) in w.values.iter().enumerate().skip(1) {
        if w.values[best].is_nan() || better(w.values[best], *v) {
            best = i;
        }
    }
    seconds(w.ts[best])
}

pub(super) fn variance(w: &Window<'_>, notes: &Notes<'_>, root: bool) -> Point {
    if !floats_only(w, notes) {
        return Point::None;
    }
    let mut count = 0.0;
    let (mut mean, mut squares) = (Kahan::default(), Kahan::default());
    for v in w.values {
        count += 1.0;
        let delta = v - mean.total();
        mean.add(delta / count);
        squares.add(delta * (v - mean.total()));
    }
    let variance = squares.total() / count;
    Point::Float(if root { variance.sqrt() } else { variance })
}

/// The `q`-quantile of values, NaN lowest, by linear interpolation; sorts them.
pub(super) fn quantile_of(q: f64, values: &mut [f64]) -> f64 {
    if values.is_empty() || q.is_nan() {
        return f64::NAN;
    }
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    values.sort_by(|a, b| match (a.is_nan(), b.is_nan()) {
        (false, false) => a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal),
        (a, b) => b.cmp(&a),
    });
    let rank = q * (values.len() - 1) as f64;
    let low = rank.floor().max(0.0) as usize;
    let high = (low + 1).min(values.len() - 1);
    let weight = rank - rank.floor();
    values[low] * (1.0 - weight) + values[high] * weight
}

pub(super) fn quantile(w: &Window<'_>, notes: &Notes<'_>, q: f64) -> Point {
    if !floats_only(w, notes) {
        return Point::None;
    }
    Point::Float(quantile_of(q, &mut w.values.to_vec()))
}

pub(super) fn mad(w: &Window<'_>, notes: &Notes<'_>) -> Point {
    if !floats_only(w, notes) {
        return Point::None;
    }
    if w.values.iter().any(|v| v.is_nan()) {
        return Point::Float(f64::NAN);
    }
    let mut values = w.values.to_vec();
    let median = quantile_of(0.5, &mut values);
    values.iter_mut().for_each(|v| *v = (*v - median).abs());
    Point::Float(quantile_of(0.5, &mut values))
}

/// Slope per second and value at `origin` (ms) of the least-squares line.
fn regression(w: &Window<'_>, origin: i64) -> (f64, f64) {
    let (mut sx, mut sy, mut sxy, mut sxx) = (Kahan::default(), Kahan::default(), Kahan::default(), Kahan::default());
    let first = w.values[0];
    let mut constant = true;
    for (t, v) in w.ts.iter().zip(w.values) {
        constant &= *v == first;
        let x = (t - origin) as f64 / 1000.0;
        sx.add(x);
        sy.add(*v);
        sxy.add(x * v);
        sxx.add(x * x);
    }
    if constant {
        return if first.is_infinite() { (f64::NAN, f64::NAN) } else { (0.0, first) };
    }
    let n = w.ts.len() as f64;
    let covariance = sxy.total() - sx.total() * sy.total() / n;
    let variance = sxx.total() - sx.total() * sx.total() / n;
    let slope = covariance / variance;
    (slope, sy.total() / n - slope * sx.total() / n)
}

/// Two floats at least; a mix is told.
fn regressible(w: &Window<'_>, notes: &Notes<'_>) -> bool {
    if !w.ts.is_empty() && !w.histograms.is_empty() {
        notes.ignored_histograms();
    }
    w.ts.len() >= 2
}

pub(super) fn deriv(w: &Window<'_>, notes: &Notes<'_>) -> Point {
    if !regressible(w, notes) {
        return Point::None;
    }
    Point::Float(regression(w, w.ts[0]).0)
}

pub(super) fn predict(w: &Window<'_>, notes: &Notes<'_>, ahead: f64) -> Point {
    if !regressible(w, notes) {
        return Point::None;
    }
    let (slope, intercept) = regression(w, w.at);
    Point::Float(slope * ahead + intercept)
}

/// Holt's linear smoothing. Errors unless both factors lie between 0 and 1.
pub(super) fn smoothing(w: &Window<'_>, notes: &Notes<'_>, sf: f64, tf: f64) -> Result<Point, QueryError> {
    for (what, v) in [("smoothing", sf), ("trend", tf)] {
        if !(v > 0.0 && v < 1.0) {
            return super::fail(format!("invalid {what} factor. Expected: 0 < {} < 1, got: {v}", &what[..1]));
        }
    }
    if !regressible(w, notes) {
        return Ok(Point::None);
    }
    let (mut level, mut trend) = (w.values[0], w.values[1] - w.values[0]);
    let mut before = 0.0;
    for (i, v) in w.values.iter().enumerate().skip(1) {
        if i > 1 {
            trend = tf * (level - before) + (1.0 - tf) * trend;
        }
        let next = sf * v + (1.0 - sf) * (level + trend);
        before = level;
        level = next;
    }
    Ok(Point::Float(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Better = fn(&f64, &f64) -> bool;
    type After = fn(f64, f64) -> bool;

    /// As [`extreme`] does it, a window after the other.
    fn one_by_one(values: &[f64], better: fn(f64, f64) -> bool) -> f64 {
        let mut best = values[0];
        for v in &values[1..] {
            if best.is_nan() || better(best, *v) {
                best = *v;
            }
        }
        best
    }

    #[test]
    fn extremes_of_all_windows_at_once_are_those_of_each_to_the_bit() {
        let marked = |bits: u64| f64::from_bits(f64::NAN.to_bits() | bits);
        let mut state = 7u64;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for round in 0..300 {
            let n = next(60) as usize;
            let mut now = 0;
            let ts: Vec<i64> = (0..n)
                .map(|_| {
                    now += 1 + next(9) as i64;
                    now
                })
                .collect();
            let values: Vec<f64> = (0..n)
                .map(|i| match next(if round % 3 == 0 { 4 } else { 9 }) {
                    0 => marked(i as u64),
                    1 => 0.0,
                    2 => -0.0,
                    3 => f64::INFINITY,
                    v => v as f64 - 6.0,
                })
                .collect();
            let (width, step) = (1 + next(80) as i64, next(30) as i64);
            let windows: Vec<(i64, i64)> = (0..20).map(|i| (i * step - width, i * step)).collect();
            let both: [(Better, After); 2] = [(f64::gt, |a, b| b > a), (f64::lt, |a, b| b < a)];
            for (better, after) in both {
                let found = extremes(&ts, &values, &windows, better);
                let wanted: Vec<Option<u64>> = windows
                    .iter()
                    .map(|(start, end)| {
                        let inside: Vec<f64> = ts
                            .iter()
                            .zip(&values)
                            .filter(|(t, _)| start < *t && *t <= end)
                            .map(|(_, v)| *v)
                            .collect();
                        (!inside.is_empty()).then(|| one_by_one(&inside, after).to_bits())
                    })
                    .collect();
                assert_eq!(found.is_some(), wanted.iter().any(Option::is_some));
                let found = found.unwrap_or(vec![Point::None; windows.len()]);
                let found: Vec<Option<u64>> =
                    found.iter().map(|p| if let Point::Float(v) = p { Some(v.to_bits()) } else { None }).collect();
                assert_eq!(found, wanted, "{ts:?} {values:?} {windows:?}");
            }
        }
    }
}
