//! Range modifiers `anchored` and `smoothed`: what a range function sees at the edges of its window.
//!
//! `anchored` takes the sample at or before the window's start as its first one. `smoothed` interpolates between the
//! samples around either edge.

use std::sync::Arc;

use super::{
    Evaluator, Series, Steps, join_same_labels, metric_name, over_time,
    range::{Notes, Window},
    rate,
    selector::Ranges,
};
use crate::{
    error::QueryError,
    fetch::SeriesData,
    promql::{
        ast::Edges,
        histogram::{Histogram, ResetHint},
        is_stale,
        value::Point,
    },
    syntax::Span,
};

/// The value at `t` on the line between two samples; a counter that was reset rises from zero.
fn between(a: (i64, f64), b: (i64, f64), t: i64, counter: bool) -> f64 {
    let from = if counter && b.1 < a.1 { 0.0 } else { a.1 };
    from + (b.1 - from) * (t - a.0) as f64 / (b.0 - a.0) as f64
}

/// A smoothed instant selector: between the samples around `time`, or the newest if none follows.
pub(super) fn smoothed_at(data: &SeriesData, time: i64, lookback: i64, notes: &Notes<'_>) -> Point {
    if !data.histograms.is_empty() {
        let seen = |t: i64| t > time - lookback && t <= time + lookback;
        if data.histograms.iter().any(|h| seen(h.0)) {
            if data.ts.iter().any(|t| seen(*t)) {
                notes.mixed();
                return Point::None;
            }
            return smoothed_histogram(data, time, lookback, notes);
        }
    }
    let next = data.ts.partition_point(|t| *t < time);
    let usable = |i: usize| !is_stale(data.values[i]);
    let after = data.ts.get(next).filter(|t| **t <= time + lookback).map(|t| (*t, data.values[next]));
    if let Some((t, v)) = after
        && t == time
    {
        return if usable(next) { Point::Float(v) } else { Point::None };
    }
    let before = next
        .checked_sub(1)
        .filter(|i| data.ts[*i] > time - lookback && usable(*i))
        .map(|i| (data.ts[i], data.values[i]));
    match (before, after.filter(|_| usable(next))) {
        (Some(a), Some(b)) => Point::Float(between(a, b, time, false)),
        (Some(a), None) => Point::Float(a.1),
        _ => Point::None,
    }
}

fn smoothed_histogram(data: &SeriesData, time: i64, lookback: i64, notes: &Notes<'_>) -> Point {
    let all = &data.histograms;
    let next = all.partition_point(|h| h.0 < time);
    let usable = |i: &usize| !is_stale(all[*i].1.sum);
    let after = (next < all.len() && all[next].0 <= time + lookback).then_some(next);
    if let Some(i) = after.filter(|i| all[*i].0 == time) {
        return if usable(&i) { Point::Histogram(all[i].1.clone()) } else { Point::None };
    }
    let before = next.checked_sub(1).filter(|i| all[*i].0 > time - lookback && usable(i));
    match (before, after.filter(usable)) {
        (Some(a), Some(b)) => {
            let counter = all[b].1.hint != ResetHint::Gauge;
            match on_the_line(&all[a], &all[b], time, counter) {
                Some(h) => super::native::point(h),
                None => {
                    notes.warn("vector contains a mix of histograms with exponential and custom buckets schemas");
                    Point::None
                }
            }
        }
        (Some(a), None) => Point::Histogram(all[a].1.clone()),
        _ => Point::None,
    }
}

/// The histogram at `t` between two samples; a counter that was reset rises from zero. `None`: their buckets do not mix.
fn on_the_line(a: &(i64, Arc<Histogram>), b: &(i64, Arc<Histogram>), t: i64, counter: bool) -> Option<Histogram> {
    let share = (t - a.0) as f64 / (b.0 - a.0) as f64;
    let (from, to) = (&a.1, &b.1);
    if from.uses_custom_buckets() != to.uses_custom_buckets() {
        return None;
    }
    if counter && to.is_reset_since(from) {
        return Some(Histogram::clone(to).scaled(share));
    }
    let mut difference = Histogram::clone(to);
    difference.sub(from).ok()?;
    let mut out = Histogram::clone(from);
    out.add(&difference.scaled(share)).ok()?;
    out.hint = to.hint;
    Some(out)
}

/// `rate`, `increase`, `delta`, `changes` and `resets` over a range with an edge modifier.
pub(super) fn call(
    eval: &Evaluator,
    name: &str,
    ranges: &Ranges,
    span: Span,
    steps: &Steps,
) -> Result<Vec<Series>, QueryError> {
    if let Some(tally) = &eval.tally {
        tally.windows(&ranges.series, &ranges.windows, steps);
    }
    let smoothed = ranges.edges == Edges::Smoothed;
    let mut out = Vec::new();
    for data in &ranges.series {
        eval.alive()?;
        let notes = Notes { eval, metric: metric_name(&data.labels), span };
        let mut points = vec![Point::None; steps.count];
        for (i, &(start, end)) in ranges.windows.iter().enumerate() {
            let until = if smoothed { end + eval.lookback_ms } else { end };
            let slice = |times: &dyn Fn(usize) -> i64, len: usize| -> (usize, usize) {
                let from = (0..len).position(|n| times(n) > start - eval.lookback_ms).unwrap_or(len);
                let to = (0..len).rposition(|n| times(n) <= until).map_or(from, |n| n + 1);
                (from, to.max(from))
            };
            let (lo, hi) = slice(&|n| data.ts[n], data.ts.len());
            let (hist_lo, hist_hi) = slice(&|n| data.histograms[n].0, data.histograms.len());
            let window = Window {
                ts: &data.ts[lo..hi],
                values: &data.values[lo..hi],
                histograms: &data.histograms[hist_lo..hist_hi],
                starts: &[],
                histogram_starts: &[],
                start,
                end,
                at: steps.time(i),
            };
            points[i] = one(name, &window, &notes, smoothed);
        }
        if matches!(name, "rate" | "increase") && points.iter().any(|p| p.float().is_some()) {
            eval.hint_not_counter(&data.labels, span);
        }
        if points.iter().any(Point::is_some) {
            out.push(Series { labels: eval.without_name(&data.labels), points });
        }
    }
    join_same_labels(out)
}

/// Index of the last element at or before `start`, else 0.
fn anchor(len: usize, time: impl Fn(usize) -> i64, start: i64) -> usize {
    (0..len).take_while(|i| time(*i) <= start).count().saturating_sub(1)
}

fn one(name: &str, w: &Window<'_>, notes: &Notes<'_>, smoothed: bool) -> Point {
    if matches!(name, "changes" | "resets") {
        let mut first = anchor(w.ts.len(), |i| w.ts[i], w.start);
        let mut first_histogram = anchor(w.histograms.len(), |i| w.histograms[i].0, w.start);
        // One anchor for both kinds: what is older than it is not looked at.
        if let (Some(float), Some((histogram, _))) = (w.ts.get(first), w.histograms.get(first_histogram)) {
            if *float <= w.start && float < histogram && *histogram <= w.start {
                first += 1;
            } else if *histogram <= w.start && histogram < float && *float <= w.start {
                first_histogram += 1;
            }
        }
        let newest = w.ts.last().copied().max(w.histograms.last().map(|h| h.0));
        if newest.is_none_or(|t| t <= w.start) {
            return Point::None;
        }
        let w = Window {
            ts: &w.ts[first..],
            values: &w.values[first..],
            histograms: &w.histograms[first_histogram..],
            ..*w
        };
        return if name == "changes" { over_time::changes(&w) } else { over_time::resets(&w) };
    }
    let kind = match name {
        "rate" => rate::Kind::Rate,
        "increase" => rate::Kind::Increase,
        _ => rate::Kind::Delta,
    };
    let in_window = |t: i64| t > w.start && t <= w.end;
    if w.ts.iter().any(|t| in_window(*t)) && w.histograms.iter().any(|h| in_window(h.0)) {
        notes.mixed();
        return Point::None;
    }
    if !w.histograms.is_empty() && w.ts.is_empty() {
        return histograms(w, notes, kind, smoothed);
    }
    floats(w, kind, smoothed)
        .map_or(Point::None, |v| Point::Float(if kind == rate::Kind::Rate { v / w.seconds() } else { v }))
}

fn floats(w: &Window<'_>, kind: rate::Kind, smoothed: bool) -> Option<f64> {
    let counter = kind.is_counter();
    let sample = |i: usize| (w.ts[i], w.values[i]);
    let mut last = w.ts.len().checked_sub(1)?;
    if w.ts[last] <= w.start {
        return None;
    }
    // Nothing at or before the window's end: what follows says nothing about the window.
    if smoothed && w.ts[0] > w.end {
        return None;
    }
    let mut first = anchor(w.ts.len() - 1, |i| w.ts[i], w.start);
    if smoothed {
        last = w.ts[..last].partition_point(|t| *t < w.end);
    }
    if w.ts[last] <= w.start {
        return None;
    }
    let left = if smoothed && w.ts[first] < w.start {
        between(sample(first), sample(first + 1), w.start, counter)
    } else {
        w.values[first]
    };
    let right = if smoothed && last > 0 && w.ts[last] > w.end {
        between(sample(last - 1), sample(last), w.end, counter)
    } else {
        w.values[last]
    };
    let mut result = right - left;
    if counter {
        if w.ts[first] <= w.start {
            first += 1;
        }
        let end = if w.ts[last] >= w.end { last } else { last + 1 };
        let mut previous = left;
        for v in w.values.get(first..end).unwrap_or(&[]).iter().chain(std::iter::once(&right)) {
            if *v < previous {
                result += previous;
            }
            previous = *v;
        }
    }
    Some(result)
}

fn histograms(w: &Window<'_>, notes: &Notes<'_>, kind: rate::Kind, smoothed: bool) -> Point {
    let all = w.histograms;
    let Some(mut last) = all.len().checked_sub(1) else { return Point::None };
    if all[last].0 <= w.start {
        return Point::None;
    }
    let first = anchor(all.len() - 1, |i| all[i].0, w.start);
    if smoothed {
        last = all[..last].partition_point(|h| h.0 < w.end);
    }
    if all[last].0 <= w.start {
        return Point::None;
    }
    let line = |a: usize, b: usize, t: i64| on_the_line(&all[a], &all[b], t, kind.is_counter());
    let mut first_is_between = false;
    let mut points: Vec<Histogram> = all[first..=last].iter().map(|h| Histogram::clone(&h.1)).collect();
    let mixed = || notes.warn("vector contains a mix of histograms with exponential and custom buckets schemas");
    if smoothed && all[last].0 > w.end && last > 0 {
        let Some(h) = line(last - 1, last, w.end) else {
            mixed();
            return Point::None;
        };
        let n = points.len() - 1;
        points[n] = h;
    }
    if smoothed && all[first].0 < w.start {
        let Some(h) = line(first, first + 1, w.start) else {
            mixed();
            return Point::None;
        };
        points[0] = h;
        // What lies on the way to the next sample already knows of its reset.
        first_is_between = true;
    }
    let seconds = if kind == rate::Kind::Rate { w.seconds() } else { 1.0 };
    if points.len() == 1 {
        points.push(points[0].clone());
    }
    let refs: Vec<&Histogram> = points.iter().collect();
    match rate::histogram_increase(&refs, notes, kind.is_counter(), |i| (i == 1 && first_is_between).then_some(false))
    {
        Some(h) => super::native::point(h.divided(seconds)),
        None => Point::None,
    }
}
