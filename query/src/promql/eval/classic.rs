//! Classic histograms: series of cumulative buckets by label `le`.

use std::{collections::HashMap, sync::Arc};

use storage::model::Labels;

use super::{Evaluator, Series, Steps, join_same_labels, metric_name, without_empty};
use crate::{
    error::QueryError,
    promql::{ast::Expr, histogram::Histogram, value::Point},
};

/// Upper bound and cumulative count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cumulative {
    pub bound: f64,
    pub count: f64,
}

/// Counts this much (relatively) apart are the same.
const TOLERANCE: f64 = 1e-12;

#[derive(Default)]
struct Group {
    /// Index of a series and its bound.
    buckets: Vec<(usize, f64)>,
    native: Vec<usize>,
}

impl Evaluator {
    /// Groups classic buckets by labels without `le`, and calls the one or the other function a step and group.
    pub(super) fn over_histograms(
        &self,
        arg: &Expr,
        steps: &Steps,
        native: impl Fn(usize, &Histogram, &str) -> f64,
        classic: impl Fn(usize, &mut Vec<Cumulative>, &str) -> f64,
    ) -> Result<Vec<Series>, QueryError> {
        let series = self.vector(arg, steps)?;
        let mut groups: Vec<(Labels, Group)> = Vec::new();
        let mut index: HashMap<Labels, usize> = HashMap::new();
        for (n, s) in series.iter().enumerate() {
            let has_floats = s.points.iter().any(|p| p.float().is_some());
            let has_native = s.points.iter().any(|p| p.histogram().is_some());
            if has_floats {
                let le = s.labels.get("le").unwrap_or("");
                match parse_bound(le) {
                    Some(bound) => {
                        let mut labels = Labels::clone(&s.labels);
                        labels.remove("le");
                        slot(&mut groups, &mut index, labels).buckets.push((n, bound));
                    }
                    None => {
                        let name = metric_name(&s.labels);
                        self.warn(
                            arg.span,
                            &format!("bucket label \"le\" is missing or has a malformed value of {le:?} for metric name {name:?}"),
                        );
                    }
                }
            }
            if has_native {
                slot(&mut groups, &mut index, Labels::clone(&s.labels)).native.push(n);
            }
        }
        let mut out = Vec::with_capacity(groups.len());
        let mut buckets = Vec::new();
        for (labels, group) in groups {
            self.alive()?;
            let metric = metric_name(&labels).to_owned();
            let mut points = vec![Point::None; steps.count];
            for (i, point) in points.iter_mut().enumerate() {
                buckets.clear();
                for (n, bound) in &group.buckets {
                    if let Some(count) = series[*n].points[i].float() {
                        buckets.push(Cumulative { bound: *bound, count });
                    }
                }
                let histogram = group.native.iter().find_map(|n| series[*n].points[i].histogram());
                *point = match (histogram, buckets.is_empty()) {
                    (None, true) => Point::None,
                    (None, false) => Point::Float(classic(i, &mut buckets, &metric)),
                    (Some(h), true) => Point::Float(native(i, h, &metric)),
                    (Some(_), false) => {
                        self.warn(
                            arg.span,
                            &format!(
                                "vector contains a mix of classic and native histograms for metric name {metric:?}"
                            ),
                        );
                        Point::None
                    }
                };
            }
            out.push(Series { labels: self.without_name(&Arc::new(labels)), points });
        }
        join_same_labels(without_empty(out))
    }
}

fn slot<'a>(
    groups: &'a mut Vec<(Labels, Group)>,
    index: &mut HashMap<Labels, usize>,
    labels: Labels,
) -> &'a mut Group {
    let i = *index.entry(labels.clone()).or_insert(groups.len());
    if i == groups.len() {
        groups.push((labels, Group::default()));
    }
    &mut groups[i].1
}

fn parse_bound(le: &str) -> Option<f64> {
    match le {
        "+Inf" | "Inf" | "inf" | "+inf" => Some(f64::INFINITY),
        "-Inf" | "-inf" => Some(f64::NEG_INFINITY),
        _ => le.parse().ok(),
    }
}

/// Sorted by bound, equal bounds summed, counts never falling. `Some`: what had to be raised for that.
fn tidy(buckets: &mut Vec<Cumulative>) -> Option<String> {
    buckets.sort_by(|a, b| a.bound.total_cmp(&b.bound));
    buckets.dedup_by(|next, kept| {
        let same = next.bound == kept.bound;
        if same {
            kept.count += next.count;
        }
        same
    });
    let mut fixed: Option<(f64, f64, f64)> = None;
    let mut previous = buckets.first()?.count;
    for b in &mut buckets[1..] {
        let distance = (b.count - previous).abs();
        let scale = b.count.abs() + previous.abs();
        if b.count == previous || (scale > 0.0 && distance / scale.min(f64::MAX) < TOLERANCE) {
            b.count = previous;
            continue;
        }
        if b.count < previous {
            let (low, high, most) = fixed.unwrap_or((b.bound, b.bound, 0.0));
            fixed = Some((low.min(b.bound), high.max(b.bound), f64::max(most, previous - b.count)));
            b.count = previous;
        }
        previous = b.count;
    }
    fixed.map(|(low, high, most)| {
        let n = crate::promql::value::format_general;
        format!("from buckets {} to {}, with a max diff of {}", n(low), n(high), n(most))
    })
}

pub(super) fn quantile(q: f64, buckets: &mut Vec<Cumulative>) -> (f64, Option<String>) {
    if q.is_nan() {
        return (f64::NAN, None);
    }
    if q < 0.0 {
        return (f64::NEG_INFINITY, None);
    }
    if q > 1.0 {
        return (f64::INFINITY, None);
    }
    buckets.sort_by(|a, b| a.bound.total_cmp(&b.bound));
    if buckets.last().is_none_or(|b| b.bound != f64::INFINITY) {
        return (f64::NAN, None);
    }
    let fixed = tidy(buckets);
    let total = buckets[buckets.len() - 1].count;
    if buckets.len() < 2 || total == 0.0 || total.is_nan() {
        return (f64::NAN, None);
    }
    let rank = q * total;
    let last = buckets.len() - 1;
    let b = buckets[..last].iter().position(|b| b.count >= rank).unwrap_or(last);
    if b == last {
        return (buckets[last - 1].bound, fixed);
    }
    if b == 0 && buckets[0].bound <= 0.0 {
        return (buckets[0].bound, fixed);
    }
    let (mut low, mut count, mut rank) = (0.0, buckets[b].count, rank);
    if b > 0 {
        low = buckets[b - 1].bound;
        count -= buckets[b - 1].count;
        rank -= buckets[b - 1].count;
    }
    (low + (buckets[b].bound - low) * (rank / count), fixed)
}

pub(super) fn fraction(lower: f64, upper: f64, buckets: &mut Vec<Cumulative>) -> f64 {
    buckets.sort_by(|a, b| a.bound.total_cmp(&b.bound));
    if buckets.last().is_none_or(|b| b.bound != f64::INFINITY) {
        return f64::NAN;
    }
    tidy(buckets);
    let total = buckets[buckets.len() - 1].count;
    if total == 0.0 || total.is_nan() || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    let (mut rank, mut low_rank, mut high_rank) = (0.0, None, None);
    for (n, b) in buckets.iter().enumerate() {
        let low = match n {
            0 if b.bound > 0.0 => 0.0,
            0 => f64::NEG_INFINITY,
            _ => buckets[n - 1].bound,
        };
        let inside = |v: f64| {
            if low == f64::NEG_INFINITY || b.bound == f64::INFINITY {
                return if low == f64::NEG_INFINITY { b.count } else { rank };
            }
            rank + (b.count - rank) * (v - low) / (b.bound - low)
        };
        for (bound, slot) in [(lower, &mut low_rank), (upper, &mut high_rank)] {
            if slot.is_none() && low >= bound {
                *slot = Some(rank);
            }
            if slot.is_none() && b.bound > bound {
                *slot = Some(inside(bound));
            }
        }
        rank = b.count;
    }
    (high_rank.unwrap_or(total) - low_rank.unwrap_or(total)) / total
}
