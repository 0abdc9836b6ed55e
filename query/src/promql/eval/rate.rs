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
    pub fn is_counter(self) -> bool {
        self != Kind::Delta
    }
}

/// Increase (or difference) over the window, extrapolated to its edges; per second for `rate`. None below two samples.
pub(super) fn extrapolated(w: &Window<'_>, notes: &Notes<'_>, kind: Kind) -> Point {
    if !w.ts.is_empty() && !w.histograms.is_empty() {
        notes.mixed();
        return Point::None;
    }
    if w.histograms.len() >= 2 {
        let points: Vec<&Histogram> = w.histograms.iter().map(|h| &*h.1).collect();
        let Some(result) = histogram_increase(&points, notes, kind.is_counter()) else { return Point::None };
        let (first, last) = (w.histograms[0].0, w.histograms[points.len() - 1].0);
        let counted = kind.is_counter().then_some((points[0].count, result.count));
        let factor = factor(w, kind, (first, last), points.len(), counted);
        return Point::Histogram(Arc::new(result.scaled(factor).compact()));
    }
    if w.ts.len() < 2 {
        return Point::None;
    }
    let values = w.values;
    let mut result = values[values.len() - 1] - values[0];
    if kind.is_counter() {
        for pair in values.windows(2) {
            if pair[1] < pair[0] {
                result += pair[0];
            }
        }
    }
    let counted = kind.is_counter().then_some((values[0], result));
    Point::Float(result * factor(w, kind, (w.ts[0], w.ts[w.ts.len() - 1]), w.ts.len(), counted))
}

/// What the increase between the first and the last sample is multiplied with. `counted`: first value and increase
/// of a counter, which cannot have been below zero at the window's start.
fn factor(w: &Window<'_>, kind: Kind, (first, last): (i64, i64), n: usize, counted: Option<(f64, f64)>) -> f64 {
    let mut to_start = (first - w.start) as f64 / 1000.0;
    let mut to_end = (w.end - last) as f64 / 1000.0;
    let sampled = (last - first) as f64 / 1000.0;
    let average = sampled / (n - 1) as f64;
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
    if to_end >= threshold {
        to_end = average / 2.0;
    }
    let factor = (sampled + to_start + to_end) / sampled;
    if kind == Kind::Rate { factor / w.seconds() } else { factor }
}

/// Difference of the last and the first histogram, with what resets took away. Also used by edge modifiers.
pub(super) fn histogram_increase(points: &[&Histogram], notes: &Notes<'_>, counter: bool) -> Option<Histogram> {
    let (mut previous, last) = (points[0].clone(), *points.last()?);
    let not_counter = || {
        notes.eval.warn(notes.span, &format!("this native histogram metric is not a counter: {:?}", notes.metric));
    };
    if counter && (previous.hint == ResetHint::Gauge || last.hint == ResetHint::Gauge) {
        not_counter();
    }
    // A first sample that was reset away says nothing, not even by its layout.
    if counter && points[1].is_reset_since(&previous) {
        previous = Histogram {
            schema: points[1].schema,
            custom: points[1].custom.clone(),
            zero_threshold: points[1].zero_threshold,
            ..Histogram::default()
        };
    }
    let custom = previous.uses_custom_buckets();
    let mixed = || notes.warn("vector contains a mix of histograms with exponential and custom buckets schemas");
    if last.uses_custom_buckets() != custom {
        mixed();
        return None;
    }
    let mut schema = previous.schema.min(last.schema);
    if counter {
        for p in &points[1..points.len() - 1] {
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
    match out.sub(&previous) {
        Ok(joined) if joined.bounds_reconciled => reconciled("subtraction"),
        Ok(_) => {}
        Err(_) => {
            mixed();
            return None;
        }
    }
    if counter {
        for p in &points[1..] {
            if p.is_reset_since(&previous) {
                match out.add(&previous) {
                    Ok(joined) if joined.bounds_reconciled => reconciled("addition"),
                    Ok(_) => {}
                    Err(_) => {
                        mixed();
                        return None;
                    }
                }
            }
            previous = (*p).clone();
        }
    }
    out.hint = ResetHint::Gauge;
    Some(out)
}

/// From the last two samples alone: `irate` per second with resets, `idelta` the difference.
pub(super) fn instant(w: &Window<'_>, notes: &Notes<'_>, rate: bool) -> Point {
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
            let difference = if rate && b < a { *b } else { b - a };
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
            if !rate || !b.is_reset_since(a) {
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
