//! Aggregation operators. Groups exist at the steps where one of their series has a point.

use std::{cmp::Ordering, collections::HashMap, sync::Arc};

use storage::model::Labels;

use super::{Evaluator, Series, Steps, fail, metric_name, native, over_time, without_empty};
use crate::{
    error::QueryError,
    parallel,
    promql::{
        ast::{Aggregate, AggregateOp, Expr, ExprKind},
        histogram::Histogram,
        value::{Kahan, Mean, Point, format_general, format_plain},
    },
    syntax::Span,
};

/// Largest k of topk, bottomk and limitk: what fits an i64 as a double.
const K_BOUND: f64 = 9.223_372_036_854_776e18;

impl Evaluator {
    pub(super) fn aggregate(&self, a: &Aggregate, steps: &Steps) -> Result<Vec<Series>, QueryError> {
        let parameter = match &a.parameter {
            Some(p) if a.op.parameter() == Some(crate::promql::ast::ValueType::Scalar) => self.scalar(p, steps)?,
            _ => Vec::new(),
        };
        let at = a.parameter.as_ref().map_or(a.operand.span, |p| p.span);
        let series = self.vector(&a.operand, steps)?;
        match a.op {
            AggregateOp::CountValues => {
                let label = self.string(a.parameter.as_ref().expect("checked"))?;
                return self.count_values(a, &label, series, steps);
            }
            AggregateOp::Topk | AggregateOp::Bottomk | AggregateOp::Limitk | AggregateOp::LimitRatio => {
                return self.choose(a, &parameter, at, series, steps);
            }
            AggregateOp::Quantile => {
                for q in &parameter {
                    self.check_quantile(*q, at);
                }
            }
            _ => {}
        }
        let groups = group(a, &series);
        self.charge(groups.labels.len().saturating_mul(steps.count))?;
        let amount = series.len().saturating_mul(steps.count).saturating_mul(4);
        let points = parallel::map(groups.members.len(), amount, |g| {
            self.alive()?;
            let members = &groups.members[g];
            Ok(match a.op {
                AggregateOp::Sum | AggregateOp::Avg => self.sums(a, members, &series, steps),
                AggregateOp::Quantile => self
                    .per_step(a, members, &series, steps, |i, values| over_time::quantile_of(parameter[i], values)),
                AggregateOp::Count => counts(members, &series, steps, false),
                AggregateOp::Group => counts(members, &series, steps, true),
                AggregateOp::Min => self.extremes(a, members, &series, steps, |best, v| v < best),
                AggregateOp::Max => self.extremes(a, members, &series, steps, |best, v| v > best),
                AggregateOp::Stddev => self.per_step(a, members, &series, steps, |_, v| variance(v).sqrt()),
                AggregateOp::Stdvar => self.per_step(a, members, &series, steps, |_, v| variance(v)),
                _ => return Err(QueryError::Internal("aggregation is handled above".into())),
            })
        })?;
        let out = groups.labels.into_iter().zip(points).map(|(labels, points)| Series { labels, points });
        Ok(without_empty(out.collect()))
    }

    fn ignored(&self, a: &Aggregate) {
        self.info(a.operand.span, &format!("ignored histogram in {} aggregation", a.op.name()));
    }

    fn sums(&self, a: &Aggregate, members: &[usize], series: &[Series], steps: &Steps) -> Vec<Point> {
        let average = a.op == AggregateOp::Avg;
        let mut floats = vec![0u32; steps.count];
        let mut sums = vec![Kahan::default(); if average { 0 } else { steps.count }];
        let mut means = vec![Mean::default(); if average { steps.count } else { 0 }];
        let mut histograms: HashMap<usize, Vec<(&Series, &Histogram)>> = HashMap::new();
        for m in members {
            for (i, p) in series[*m].points.iter().enumerate() {
                match p {
                    Point::None => {}
                    Point::Float(v) => {
                        floats[i] += 1;
                        if average { means[i].add(*v) } else { sums[i].add(*v) }
                    }
                    Point::Histogram(h) => histograms.entry(i).or_default().push((&series[*m], h)),
                }
            }
        }
        (0..steps.count)
            .map(|i| match (floats[i], histograms.get(&i)) {
                (0, None) => Point::None,
                (_, None) => Point::Float(if average { means[i].value() } else { sums[i].total() }),
                (0, Some(all)) => self.histogram_sum(all, average, a.operand.span),
                (_, Some(_)) => {
                    self.warn(a.operand.span, "encountered a mix of histograms and floats for aggregation");
                    Point::None
                }
            })
            .collect()
    }

    fn histogram_sum(&self, all: &[(&Series, &Histogram)], average: bool, span: Span) -> Point {
        let histograms: Vec<&Histogram> = all.iter().map(|(_, h)| *h).collect();
        let sum = native::sum(&histograms, |note| match note {
            native::SumNote::Mixed => {
                let name = metric_name(&all[0].0.labels);
                self.warn(span, &format!("vector contains a mix of histograms with exponential and custom buckets schemas for metric name {name:?}"));
            }
            native::SumNote::Reconciled => {
                self.info(span, "mismatched custom buckets were reconciled during aggregation");
            }
            native::SumNote::Collision => {
                self.warn(span, "conflicting counter resets during histogram aggregation");
            }
        });
        match sum {
            None => Point::None,
            Some(h) if average => native::point(native::mean(h, all.len() as f64, || histograms.iter().copied())),
            Some(h) => native::point(h),
        }
    }

    fn extremes(
        &self,
        a: &Aggregate,
        members: &[usize],
        series: &[Series],
        steps: &Steps,
        better: fn(f64, f64) -> bool,
    ) -> Vec<Point> {
        let mut out = vec![Point::None; steps.count];
        for m in members {
            for (best, p) in out.iter_mut().zip(&series[*m].points) {
                match p {
                    Point::None => {}
                    Point::Histogram(_) => self.ignored(a),
                    Point::Float(v) => {
                        let keep = best.float().is_some_and(|b| !b.is_nan() && !better(b, *v));
                        if !keep {
                            *best = Point::Float(*v);
                        }
                    }
                }
            }
        }
        out
    }

    /// For aggregations that need all floats of a step at once.
    fn per_step(
        &self,
        a: &Aggregate,
        members: &[usize],
        series: &[Series],
        steps: &Steps,
        f: impl Fn(usize, &mut [f64]) -> f64,
    ) -> Vec<Point> {
        let mut values = Vec::with_capacity(members.len());
        (0..steps.count)
            .map(|i| {
                values.clear();
                for m in members {
                    match &series[*m].points[i] {
                        Point::Float(v) => values.push(*v),
                        Point::Histogram(_) => self.ignored(a),
                        Point::None => {}
                    }
                }
                if values.is_empty() { Point::None } else { Point::Float(f(i, &mut values)) }
            })
            .collect()
    }

    fn count_values(
        &self,
        a: &Aggregate,
        label: &str,
        series: Vec<Series>,
        steps: &Steps,
    ) -> Result<Vec<Series>, QueryError> {
        if label.is_empty() {
            return fail(format!("invalid label name {label:?}"));
        }
        let mut index: HashMap<Labels, usize> = HashMap::new();
        let mut out: Vec<Series> = Vec::new();
        let by: Vec<String> = a.grouping.iter().cloned().chain((!a.without).then(|| label.to_owned())).collect();
        for s in &series {
            for (i, p) in s.points.iter().enumerate() {
                let text = match p {
                    Point::None => continue,
                    Point::Float(v) => format_plain(*v),
                    Point::Histogram(h) => h.to_text(),
                };
                let mut labels = Labels::clone(&s.labels);
                labels.set(label, text);
                let key = grouped(&labels, a.without, &by);
                let slot = match index.get(&key) {
                    Some(slot) => *slot,
                    None => {
                        self.charge(steps.count)?;
                        let series = Series { labels: Arc::new(key.clone()), points: vec![Point::None; steps.count] };
                        out.push(series);
                        index.insert(key, out.len() - 1);
                        out.len() - 1
                    }
                };
                let point = &mut out[slot].points[i];
                *point = Point::Float(point.float().unwrap_or(0.0) + 1.0);
            }
        }
        Ok(out)
    }

    /// topk, bottomk, limitk, limit_ratio: which of the elements stay.
    fn choose(
        &self,
        a: &Aggregate,
        parameter: &[f64],
        at: Span,
        series: Vec<Series>,
        steps: &Steps,
    ) -> Result<Vec<Series>, QueryError> {
        for p in parameter {
            let ratio = a.op == AggregateOp::LimitRatio;
            if p.is_nan() {
                return fail(if ratio { "Ratio value is NaN" } else { "Parameter value is NaN" });
            }
            if !ratio && !(-K_BOUND..K_BOUND).contains(p) {
                return fail(format!("Scalar value {} overflows int64", format_general(*p)));
            }
            if ratio && p.abs() > 1.0 {
                let cap = p.signum();
                let (shown, cap) = (format_general(*p), format_general(cap));
                self.warn(at, &format!("ratio value should be between -1 and 1, got {shown}, capping to {cap}"));
            }
        }
        let groups = group(a, &series);
        let mut keep = vec![false; series.len().saturating_mul(steps.count)];
        let mut stays = vec![false; series.len()];
        // Series in the order of the answer: by group, and for one step by rank.
        let mut order: Vec<usize> = Vec::with_capacity(series.len());
        for members in &groups.members {
            let chosen = self.chosen(a, parameter, members, &series, steps)?;
            for (i, chosen) in chosen.iter().enumerate() {
                for m in chosen {
                    keep[m * steps.count + i] = true;
                    stays[*m] = true;
                }
            }
            match <[_; 1]>::try_from(chosen) {
                Ok([ranked]) => order.extend(ranked),
                Err(_) => order.extend(members.iter().filter(|m| stays[**m])),
            }
        }
        let mut slots: Vec<Option<Series>> = series.into_iter().map(Some).collect();
        let mut out = Vec::with_capacity(order.len());
        for m in order {
            let mut s = slots[m].take().ok_or_else(|| QueryError::Internal("a series is in one group".into()))?;
            for (p, keep) in s.points.iter_mut().zip(&keep[m * steps.count..]) {
                if !keep {
                    *p = Point::None;
                }
            }
            out.push(s);
        }
        // Names that a function's result has not may have stayed as long as there were many of them.
        if drops_names(&a.operand) {
            out.iter_mut().for_each(|s| s.labels = self.without_name(&s.labels));
        }
        Ok(out)
    }

    /// The elements that stay at each step, in order of rank where they have one.
    fn chosen(
        &self,
        a: &Aggregate,
        parameter: &[f64],
        members: &[usize],
        series: &[Series],
        steps: &Steps,
    ) -> Result<Vec<Vec<usize>>, QueryError> {
        let present = |i: usize| members.iter().copied().filter(move |m| series[*m].points[i].is_some());
        let amount = members.len().saturating_mul(steps.count).saturating_mul(5);
        if a.op == AggregateOp::LimitRatio {
            return parallel::map(steps.count, amount, |i| {
                self.alive()?;
                let r = parameter[i].clamp(-1.0, 1.0);
                let stays = |m: &usize| {
                    let share = super::hash::of_labels(&series[*m].labels) as f64 / u64::MAX as f64;
                    if r >= 0.0 { share < r } else { share >= 1.0 + r }
                };
                Ok(present(i).filter(stays).collect())
            });
        }
        let k = |i: usize| parameter[i].max(0.0) as usize;
        if a.op == AggregateOp::Limitk {
            return Ok((0..steps.count).map(|i| present(i).take(k(i)).collect()).collect());
        }
        // Some series after the other, all steps of each: that is how points lie. Then the best of each some.
        let descending = a.op == AggregateOp::Topk;
        let none = || (0..steps.count).map(|i| Best::new(k(i), descending));
        let most = (0..steps.count).map(k).max().unwrap_or(0);
        let at_once = SERIES_AT_ONCE.max(most.saturating_mul(4)).min(members.len().max(1));
        let blocks: Vec<&[usize]> = members.chunks(at_once).collect();
        let mut found = parallel::map(blocks.len(), amount, |n| {
            self.alive()?;
            let mut best: Vec<Best> = none().collect();
            for m in blocks[n] {
                for (best, point) in best.iter_mut().zip(&series[*m].points) {
                    match point {
                        Point::Float(v) => best.offer(*v, *m),
                        Point::Histogram(_) => self.ignored(a),
                        Point::None => {}
                    }
                }
            }
            best.iter_mut().for_each(Best::cut);
            Ok::<_, QueryError>(best)
        })?
        .into_iter();
        let mut best = found.next().unwrap_or_else(|| none().collect());
        for of_block in found {
            for (best, of_block) in best.iter_mut().zip(of_block) {
                of_block.kept.into_iter().for_each(|(value, place)| best.offer(value, place));
            }
        }
        Ok(best.into_iter().map(Best::ranked).collect())
    }
}

/// Series of which the best are chosen at a time, unless few of them are not among the best.
const SERIES_AT_ONCE: usize = 512;

/// The first `k` of what is offered, NaN last; of equal ones that of the lowest place stays.
struct Best {
    k: usize,
    descending: bool,
    /// Values and places; all of the first `k` and some that may be.
    kept: Vec<(f64, usize)>,
    /// What is not before this is not among them.
    bound: Option<(f64, usize)>,
}

impl Best {
    fn new(k: usize, descending: bool) -> Self {
        Best { k, descending, kept: Vec::new(), bound: None }
    }

    fn before(descending: bool, a: &(f64, usize), b: &(f64, usize)) -> Ordering {
        let order = match (a.0.is_nan(), b.0.is_nan()) {
            (false, false) if descending => b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal),
            (false, false) => a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal),
            (a, b) => a.cmp(&b),
        };
        order.then(a.1.cmp(&b.1))
    }

    #[inline]
    fn offer(&mut self, value: f64, place: usize) {
        // Most are not even near.
        if self.bound.is_some_and(|(bound, _)| if self.descending { value < bound } else { bound < value }) {
            return;
        }
        self.consider((value, place));
    }

    fn consider(&mut self, new: (f64, usize)) {
        if self.k == 0 {
            return;
        }
        if self.bound.is_some_and(|bound| Self::before(self.descending, &new, &bound).is_ge()) {
            return;
        }
        self.kept.push(new);
        // Seldom enough to be cheap, often enough that little is kept.
        if self.kept.len() >= self.k.saturating_mul(2).max(32) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let descending = self.descending;
        if self.k < self.kept.len() {
            let before = |a: &(f64, usize), b: &(f64, usize)| Self::before(descending, a, b);
            let (_, last, _) = self.kept.select_nth_unstable_by(self.k - 1, before);
            self.bound = Some(*last);
            self.kept.truncate(self.k);
        }
    }

    fn ranked(mut self) -> Vec<usize> {
        self.cut();
        let descending = self.descending;
        self.kept.sort_unstable_by(|a, b| Self::before(descending, a, b));
        self.kept.into_iter().map(|(_, place)| place).collect()
    }
}

fn counts(members: &[usize], series: &[Series], steps: &Steps, one: bool) -> Vec<Point> {
    let mut counts = vec![0u32; steps.count];
    for m in members {
        counts.iter_mut().zip(&series[*m].points).for_each(|(c, p)| *c += u32::from(p.is_some()));
    }
    let value = |c: u32| if one { 1.0 } else { f64::from(c) };
    counts.into_iter().map(|c| if c == 0 { Point::None } else { Point::Float(value(c)) }).collect()
}

/// Population variance (Welford).
fn variance(values: &[f64]) -> f64 {
    let (mut mean, mut squares) = (0.0, 0.0);
    for (n, v) in values.iter().enumerate() {
        let delta = v - mean;
        mean += delta / (n + 1) as f64;
        squares += delta * (v - mean);
    }
    squares / values.len() as f64
}

/// Whether the results of an expression have no names for sure.
fn drops_names(operand: &Expr) -> bool {
    match &operand.inner().kind {
        ExprKind::Call { function, .. } => super::is_plain(function.name) && !super::range::keeps_name(function.name),
        _ => false,
    }
}

struct Groups {
    labels: Vec<Arc<Labels>>,
    /// Indexes of series, in their order.
    members: Vec<Vec<usize>>,
}

fn group(a: &Aggregate, series: &[Series]) -> Groups {
    let mut out = Groups { labels: Vec::new(), members: Vec::new() };
    if !a.without && a.grouping.is_empty() {
        if !series.is_empty() {
            out.labels.push(Arc::new(Labels::default()));
            out.members.push((0..series.len()).collect());
        }
        return out;
    }
    if !a.without {
        // By the values of the names, so that no label set is made for a series.
        let mut index: HashMap<Vec<&str>, usize> = HashMap::new();
        for (i, s) in series.iter().enumerate() {
            let key = a.grouping.iter().map(|n| s.labels.get(n).unwrap_or("")).collect();
            let slot = *index.entry(key).or_insert_with(|| {
                out.labels.push(Arc::new(grouped(&s.labels, false, &a.grouping)));
                out.members.push(Vec::new());
                out.labels.len() - 1
            });
            out.members[slot].push(i);
        }
        return out;
    }
    let mut index: HashMap<Arc<Labels>, usize> = HashMap::new();
    for (i, s) in series.iter().enumerate() {
        let key = Arc::new(grouped(&s.labels, a.without, &a.grouping));
        match index.get(&key) {
            Some(slot) => out.members[*slot].push(i),
            None => {
                index.insert(key.clone(), out.labels.len());
                out.labels.push(key);
                out.members.push(vec![i]);
            }
        }
    }
    out
}

fn grouped(labels: &Labels, without: bool, names: &[String]) -> Labels {
    let named = |n: &str| names.iter().any(|l| l == n);
    if without {
        labels.iter().filter(|(n, _)| *n != "__name__" && !named(n)).collect()
    } else {
        labels.iter().filter(|(n, _)| named(n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_what_is_offered_are_the_first_of_all_sorted() {
        let mut state = 3u64;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for n in [0, 1, 5, 40, 500] {
            let all: Vec<(f64, usize)> = (0..n)
                .map(|i| {
                    let v = match next(12) {
                        0 => f64::NAN,
                        1 => -0.0,
                        v => (v as f64 - 6.0) * next(9) as f64,
                    };
                    (v, i)
                })
                .collect();
            for (k, descending) in [(0, true), (1, true), (3, false), (10, true), (33, false), (usize::MAX, true)] {
                let mut best = Best::new(k, descending);
                all.iter().for_each(|(v, i)| best.offer(*v, *i));
                let mut sorted = all.clone();
                sorted.sort_by(|a, b| Best::before(descending, a, b));
                let wanted: Vec<usize> = sorted.into_iter().map(|(_, i)| i).take(k).collect();
                assert_eq!(best.ranked(), wanted, "{k} of {n}");
            }
        }
    }
}
