//! Functions over range vectors: the sliding window, and which function is called on it.

use std::sync::Arc;

use storage::model::Labels;

use super::{
    Evaluator, Series, Steps, Values, edges, join_same_labels, metric_name, of_one_name, over_time, rate,
    selector::Ranges,
};
use crate::{
    error::QueryError,
    fetch::SeriesData,
    parallel,
    promql::{
        ast::{Edges, Expr, ExprKind},
        histogram::Histogram,
        value::Point,
    },
    syntax::Span,
};

/// What a function sees of one series at one step.
pub(super) struct Window<'a> {
    pub ts: &'a [i64],
    pub values: &'a [f64],
    pub histograms: &'a [(i64, Arc<Histogram>)],
    /// Start times (ms, 0 = unknown) beside `ts`; empty when none is known or they do not count.
    pub starts: &'a [i64],
    /// The same beside `histograms`.
    pub histogram_starts: &'a [i64],
    /// Exclusive, ms.
    pub start: i64,
    /// Inclusive, ms.
    pub end: i64,
    /// The evaluation time, ms.
    pub at: i64,
}

impl Window<'_> {
    pub fn is_empty(&self) -> bool {
        self.ts.is_empty() && self.histograms.is_empty()
    }

    pub fn seconds(&self) -> f64 {
        (self.end - self.start) as f64 / 1000.0
    }
}

/// Where notices about a window go.
pub(super) struct Notes<'a> {
    pub eval: &'a Evaluator,
    pub metric: &'a str,
    /// Of the range argument.
    pub span: Span,
}

impl Notes<'_> {
    pub fn warn(&self, message: &str) {
        self.eval.warn(self.span, &format!("{message} for metric name {:?}", self.metric));
    }

    pub fn mixed(&self) {
        self.warn("encountered a mix of histograms and floats");
    }

    pub fn ignored_histograms(&self) {
        self.eval.info(
            self.span,
            &format!(
                "ignored histograms in a range containing both floats and histograms for metric name {:?}",
                self.metric
            ),
        );
    }
}

/// About how long it takes to make labels without a name, ns.
const NAME_WORK: usize = 800;

pub(super) type Plain = fn(&Window<'_>, &Notes<'_>) -> Point;

/// A function of one step's window that differs from step to step.
pub(super) type Stepped<'f> = dyn Fn(&Window<'_>, &Notes<'_>, usize) -> Result<Point, QueryError> + Sync + 'f;

/// What is done with windows.
#[derive(Clone, Copy)]
pub(super) enum Work<'f> {
    /// By its name, and what it does.
    Plain(&'f str, Plain),
    Stepped(&'f Stepped<'f>),
}

/// Functions of one range vector and nothing else.
pub(super) fn plain(name: &str) -> Option<Plain> {
    Some(match name {
        "rate" => |w, n| rate::extrapolated(w, n, rate::Kind::Rate),
        "increase" => |w, n| rate::extrapolated(w, n, rate::Kind::Increase),
        "delta" => |w, n| rate::extrapolated(w, n, rate::Kind::Delta),
        "irate" => |w, n| rate::instant(w, n, true),
        "idelta" => |w, n| rate::instant(w, n, false),
        "changes" => |w, _| over_time::changes(w),
        "resets" => |w, n| {
            rate::tell_overlaps(w, n);
            over_time::resets(w)
        },
        "deriv" => over_time::deriv,
        "avg_over_time" => over_time::avg,
        "sum_over_time" => over_time::sum,
        "count_over_time" => |w, _| over_time::count(w),
        "present_over_time" => |w, _| Point::Float(f64::from(u8::from(!w.is_empty()))),
        "last_over_time" => |w, _| over_time::last(w),
        "first_over_time" => |w, _| over_time::first(w),
        "min_over_time" => |w, n| over_time::extreme(w, n, |a, b| b < a),
        "max_over_time" => |w, n| over_time::extreme(w, n, |a, b| b > a),
        "ts_of_min_over_time" => |w, n| over_time::time_of_extreme(w, n, |a, b| b <= a),
        "ts_of_max_over_time" => |w, n| over_time::time_of_extreme(w, n, |a, b| b >= a),
        "ts_of_first_over_time" => |w, _| over_time::time_of_first(w),
        "ts_of_last_over_time" => |w, _| over_time::time_of_last(w),
        "stdvar_over_time" => |w, n| over_time::variance(w, n, false),
        "stddev_over_time" => |w, n| over_time::variance(w, n, true),
        "mad_over_time" => over_time::mad,
        _ => return None,
    })
}

/// Whether the results of one of [`plain`] have the name of their series.
pub(super) fn keeps_name(name: &str) -> bool {
    matches!(name, "last_over_time" | "first_over_time")
}

impl Evaluator {
    /// `None` when the function takes no range vector.
    pub(super) fn range_call(
        &self,
        name: &str,
        args: &[Expr],
        steps: &Steps,
    ) -> Result<Option<Vec<Series>>, QueryError> {
        if let Some(f) = plain(name) {
            if let Some(computed) = selector_of(&args[0]).and_then(|s| self.computed.lock().remove(&s.id)) {
                return Ok(Some(computed));
            }
            let ranges = self.ranges(&args[0], steps)?;
            if ranges.edges != Edges::Plain {
                return edges::call(self, name, &ranges, args[0].span, steps).map(Some);
            }
            let keep_name = keeps_name(name);
            let counter = matches!(name, "rate" | "increase");
            return self
                .over_windows(&ranges, args[0].span, steps, keep_name, counter, Work::Plain(name, f))
                .map(Some);
        }
        Ok(Some(match name {
            "quantile_over_time" => {
                let q = self.scalar(&args[0], steps)?;
                for q in &q {
                    self.check_quantile(*q, args[0].span);
                }
                let ranges = self.ranges(&args[1], steps)?;
                self.over_windows(
                    &ranges,
                    args[1].span,
                    steps,
                    false,
                    false,
                    Work::Stepped(&|w, n, i| Ok(over_time::quantile(w, n, q[i]))),
                )?
            }
            "predict_linear" => {
                let ahead = self.scalar(&args[1], steps)?;
                let ranges = self.ranges(&args[0], steps)?;
                self.over_windows(
                    &ranges,
                    args[0].span,
                    steps,
                    false,
                    false,
                    Work::Stepped(&|w, n, i| Ok(over_time::predict(w, n, ahead[i]))),
                )?
            }
            "double_exponential_smoothing" | "holt_winters" => {
                let smoothing = self.scalar(&args[1], steps)?;
                let trend = self.scalar(&args[2], steps)?;
                let ranges = self.ranges(&args[0], steps)?;
                self.over_windows(
                    &ranges,
                    args[0].span,
                    steps,
                    false,
                    false,
                    Work::Stepped(&|w, n, i| over_time::smoothing(w, n, smoothing[i], trend[i])),
                )?
            }
            "absent_over_time" => {
                let ranges = self.ranges(&args[0], steps)?;
                let present = self.over_windows(
                    &ranges,
                    args[0].span,
                    steps,
                    true,
                    false,
                    Work::Plain("count_over_time", |w, _| over_time::count(w)),
                );
                let points = match present {
                    Ok(series) => super::call::absent_points(&series, steps),
                    Err(e) => return Err(e),
                };
                super::call::absent_series(&args[0], points)
            }
            _ => return Ok(None),
        }))
    }

    pub(super) fn ranges(&self, expr: &Expr, steps: &Steps) -> Result<Ranges, QueryError> {
        match self.eval(expr, steps)? {
            Values::Ranges(r) => Ok(r),
            _ => Err(QueryError::Internal("expected a range vector".into())),
        }
    }

    /// Calls the function on every non-empty window. `counter`: a name that does not look like a counter's is told.
    fn over_windows(
        &self,
        ranges: &Ranges,
        span: Span,
        steps: &Steps,
        keep_name: bool,
        counter: bool,
        work: Work<'_>,
    ) -> Result<Vec<Series>, QueryError> {
        let points = self.points_over(&ranges.series, &ranges.windows, span, steps, work)?;
        let labels = ranges.series.iter().map(|s| &s.labels);
        if counter {
            for (s, _) in ranges.series.iter().zip(&points).filter(|(s, p)| p.is_some() && !s.ts.is_empty()) {
                self.hint_not_counter(&s.labels, span);
            }
        }
        self.named(labels.cloned().zip(points), keep_name)
    }

    /// Series of the points, where there are any, with the labels that a function's results have.
    pub(super) fn named(
        &self,
        points: impl Iterator<Item = (Arc<Labels>, Option<Vec<Point>>)>,
        keep_name: bool,
    ) -> Result<Vec<Series>, QueryError> {
        let mut out: Vec<Series> = points
            .filter_map(|(labels, points)| points.map(|points| Series { labels, points }))
            .filter(|s| s.points.iter().any(Point::is_some))
            .collect();
        if keep_name {
            return Ok(out);
        }
        let distinct = of_one_name(out.iter().map(|s| &s.labels)) && !self.drop_type_and_unit;
        let labels = parallel::map(out.len(), out.len().saturating_mul(NAME_WORK), |i| {
            Ok::<_, QueryError>(self.without_name(&out[i].labels))
        })?;
        out.iter_mut().zip(labels).for_each(|(s, l)| s.labels = l);
        if distinct { Ok(out) } else { join_same_labels(out) }
    }

    /// Points of each series at each step; `None` for a series without a sample in any window.
    pub(super) fn points_over(
        &self,
        series: &[Arc<SeriesData>],
        windows: &[(i64, i64)],
        span: Span,
        steps: &Steps,
        work: Work<'_>,
    ) -> Result<Vec<Option<Vec<Point>>>, QueryError> {
        if let Some(tally) = &self.tally {
            tally.windows(series, windows, steps);
        }
        let samples: usize = series.iter().map(|s| s.ts.len() + 10 * s.histograms.len()).sum();
        let amount = samples.saturating_mul(8).saturating_add(series.len().saturating_mul(windows.len() * 20));
        parallel::map(series.len(), amount, |n| {
            if n % 64 == 0 {
                self.alive()?;
            }
            let data = &*series[n];
            if data.is_empty() {
                return Ok(None);
            }
            let steady = match work {
                Work::Plain(name, _) => rate::Kind::of(name).filter(|_| data.histograms.is_empty()),
                Work::Stepped(_) => None,
            };
            let extreme = match work {
                Work::Plain("max_over_time", _) if data.histograms.is_empty() => {
                    Some(f64::gt as fn(&f64, &f64) -> bool)
                }
                Work::Plain("min_over_time", _) if data.histograms.is_empty() => {
                    Some(f64::lt as fn(&f64, &f64) -> bool)
                }
                _ => None,
            };
            let points = match (steady, extreme) {
                (Some(kind), _) if data.starts.is_empty() || !self.start_timestamps => {
                    Some(rate::over_floats(&data.ts, &data.values, windows, kind))
                }
                (_, Some(better)) => over_time::extremes(&data.ts, &data.values, windows, better),
                _ => self.points_of(data, windows, span, steps, work)?,
            };
            if points.is_some() {
                self.charge(windows.len())?;
            }
            Ok(points)
        })
    }

    fn points_of(
        &self,
        data: &SeriesData,
        windows: &[(i64, i64)],
        span: Span,
        steps: &Steps,
        work: Work<'_>,
    ) -> Result<Option<Vec<Point>>, QueryError> {
        let notes = Notes { eval: self, metric: metric_name(&data.labels), span };
        let mut points = vec![Point::None; windows.len()];
        let (mut lo, mut hi, mut hist_lo, mut hist_hi) = (0, 0, 0, 0);
        let mut seen = false;
        let (starts, histogram_starts): (&[i64], &[i64]) =
            if self.start_timestamps { (&data.starts, &data.histogram_starts) } else { (&[], &[]) };
        for (i, &(start, end)) in windows.iter().enumerate() {
            hi = super::selector::upper_bound(&data.ts, hi, end);
            lo = super::selector::upper_bound(&data.ts[..hi], lo.min(hi), start);
            while data.histograms.get(hist_hi).is_some_and(|h| h.0 <= end) {
                hist_hi += 1;
            }
            while hist_lo < hist_hi && data.histograms[hist_lo].0 <= start {
                hist_lo += 1;
            }
            let window = Window {
                ts: &data.ts[lo..hi],
                values: &data.values[lo..hi],
                histograms: &data.histograms[hist_lo..hist_hi],
                starts: if starts.is_empty() { starts } else { &starts[lo..hi] },
                histogram_starts: if histogram_starts.is_empty() {
                    histogram_starts
                } else {
                    &histogram_starts[hist_lo..hist_hi]
                },
                start,
                end,
                at: steps.time(i),
            };
            if !window.is_empty() {
                seen = true;
                points[i] = match work {
                    Work::Plain(_, f) => f(&window, &notes),
                    Work::Stepped(f) => f(&window, &notes, i)?,
                };
            }
        }
        Ok(seen.then_some(points))
    }

    pub(super) fn hint_not_counter(&self, labels: &storage::model::Labels, span: Span) {
        let metric = metric_name(labels);
        if self.drop_type_and_unit
            && let Some(t) = labels.get("__type__")
        {
            if t != "counter" && t != "histogram" {
                self.info(span, &format!("metric might not be a counter, __type__ label is not set to \"counter\" or \"histogram\", got {t:?}: {metric:?}"));
            }
            return;
        }
        if !metric.is_empty() && !["_total", "_sum", "_count", "_bucket"].iter().any(|s| metric.ends_with(s)) {
            self.info(
                span,
                &format!(
                    "metric might not be a counter, name does not end in _total/_sum/_count/_bucket: {metric:?}"
                ),
            );
        }
    }

    pub(super) fn check_quantile(&self, q: f64, span: Span) {
        if q.is_nan() || !(0.0..=1.0).contains(&q) {
            let shown = crate::promql::value::format_general(q);
            self.warn(span, &format!("quantile value should be between 0 and 1, got {shown}"));
        }
    }
}

/// Whether the expression is a selector, or a range of one, in parentheses or not.
pub(super) fn selector_of(expr: &Expr) -> Option<&crate::promql::ast::Selector> {
    match &expr.inner().kind {
        ExprKind::Selector(s) | ExprKind::Range { selector: s, .. } => Some(s),
        _ => None,
    }
}
