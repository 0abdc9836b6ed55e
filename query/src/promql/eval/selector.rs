//! Instant and range selectors and subqueries: which samples a step sees.

use std::sync::Arc;

use storage::model::Labels;

use super::{Evaluator, Series, Steps, Tally, Values, metric_name, millis, range::Notes};
use crate::{
    error::QueryError,
    fetch::SeriesData,
    parallel,
    promql::{
        ast::{At, Duration, Edges, Selector, Subquery},
        histogram::ResetHint,
        is_stale,
        value::Point,
    },
    syntax::Span,
};

/// Series with the window of samples that each step sees.
#[derive(Clone, Debug)]
pub(in crate::promql) struct Ranges {
    /// Without stale markers.
    pub series: Vec<Arc<SeriesData>>,
    /// [steps]: a window holds `start < ts <= end`, ms. Both ends never move back unless the steps do not move at all.
    pub windows: Vec<(i64, i64)>,
    pub edges: Edges,
}

/// Where a modifier moves an evaluation time.
#[derive(Clone, Copy)]
pub(super) struct Shift {
    at: Option<i64>,
    offset: i64,
}

impl Shift {
    pub fn new(at: Option<At>, offset: Option<&Duration>) -> Self {
        let at = match at {
            Some(At::Millis(t)) => Some(t),
            _ => None,
        };
        Shift { at, offset: offset.map_or(0, millis) }
    }

    pub fn apply(self, time: i64) -> i64 {
        self.at.unwrap_or(time).saturating_sub(self.offset)
    }
}

/// One past the last element of `ts` that is <= `time`, searched upwards from `from`.
pub(super) fn upper_bound(ts: &[i64], from: usize, time: i64) -> usize {
    // Steps advance by few samples: try the neighbourhood before halving the rest.
    let near = (from + 16).min(ts.len());
    if near == ts.len() || ts[near] > time {
        return from + ts[from..near].iter().take_while(|t| **t <= time).count();
    }
    // Doubling strides: windows are short beside the whole.
    let (mut low, mut stride) = (near, 16);
    while low + stride < ts.len() && ts[low + stride] <= time {
        low += stride;
        stride *= 2;
    }
    let high = (low + stride + 1).min(ts.len());
    low + ts[low..high].partition_point(|t| *t <= time)
}

/// Follows one series' newest sample from step to step.
pub(super) struct Newest<'a> {
    data: &'a SeriesData,
    lookback: i64,
    floats: usize,
    histograms: usize,
    start: i64,
}

impl<'a> Newest<'a> {
    pub fn new(data: &'a SeriesData, lookback: i64) -> Self {
        Newest { data, lookback, floats: 0, histograms: 0, start: 0 }
    }

    /// The sample at `time` with its own time; `time` must not decrease from call to call.
    pub fn at(&mut self, time: i64) -> Option<(i64, Point)> {
        self.floats = upper_bound(&self.data.ts, self.floats, time);
        while self.data.histograms.get(self.histograms).is_some_and(|h| h.0 <= time) {
            self.histograms += 1;
        }
        let float = self.floats.checked_sub(1).map(|i| (self.data.ts[i], self.data.values[i]));
        let histogram = self.histograms.checked_sub(1).map(|i| &self.data.histograms[i]);
        match (float, histogram) {
            (float, Some((t, h))) if float.is_none_or(|f| f.0 <= *t) => {
                self.start = self.data.histogram_starts.get(self.histograms - 1).copied().unwrap_or(0);
                (*t > time - self.lookback && !is_stale(h.sum)).then(|| (*t, Point::Histogram(h.clone())))
            }
            (Some((t, v)), _) => {
                self.start = self.data.starts.get(self.floats - 1).copied().unwrap_or(0);
                (t > time - self.lookback && !is_stale(v)).then_some((t, Point::Float(v)))
            }
            (None, _) => None,
        }
    }

    /// Start time of the sample that [`Newest::at`] gave last, ms; 0 = unknown.
    pub fn start(&self) -> i64 {
        self.start
    }
}

impl Evaluator {
    pub(super) fn select(&self, selector: &Selector, span: Span, steps: &Steps) -> Result<Vec<Series>, QueryError> {
        self.select_with(selector, span, steps, |_, _, point| point)
    }

    /// As [`Evaluator::select`], with each point made from the sample's own time, its start and its value.
    pub(super) fn select_with(
        &self,
        selector: &Selector,
        span: Span,
        steps: &Steps,
        make: impl Fn(i64, i64, Point) -> Point + Sync,
    ) -> Result<Vec<Series>, QueryError> {
        let all = &self.data[selector.id];
        let points = self.newest_of(all, selector, span, steps, make)?;
        let labels = all.iter().map(|s| s.labels.clone());
        self.named(labels.zip(points), true)
    }

    /// The newest point of each series at each step; `None` for a series that has none at any.
    pub(super) fn newest_of(
        &self,
        series: &[Arc<SeriesData>],
        selector: &Selector,
        span: Span,
        steps: &Steps,
        make: impl Fn(i64, i64, Point) -> Point + Sync,
    ) -> Result<Vec<Option<Vec<Point>>>, QueryError> {
        let shift = Shift::new(selector.at, selector.offset.as_ref());
        let amount = series.len().saturating_mul(steps.count).saturating_mul(10);
        let points = parallel::map(series.len(), amount, |n| {
            if n % 256 == 0 {
                self.alive()?;
            }
            let data = &*series[n];
            if data.is_empty() {
                return Ok::<_, QueryError>(None);
            }
            let points: Vec<Point> = if selector.edges == Edges::Smoothed {
                let notes = Notes { eval: self, metric: metric_name(&data.labels), span };
                (0..steps.count)
                    .map(|i| super::edges::smoothed_at(data, shift.apply(steps.time(i)), self.lookback_ms, &notes))
                    .collect()
            } else {
                let mut newest = Newest::new(data, self.lookback_ms);
                (0..steps.count)
                    .map(|i| match newest.at(shift.apply(steps.time(i))) {
                        Some((t, p)) => make(t, newest.start(), p),
                        None => Point::None,
                    })
                    .collect()
            };
            if !points.iter().any(Point::is_some) {
                return Ok(None);
            }
            self.charge(points.len())?;
            Ok(Some(points))
        })?;
        if let Some(tally) = &self.tally {
            tally.values(&points, steps, selector.at.is_some());
        }
        Ok(points)
    }

    pub(super) fn select_ranges(&self, selector: &Selector, range: &Duration, steps: &Steps) -> Ranges {
        let shift = Shift::new(selector.at, selector.offset.as_ref());
        let range_ms = millis(range);
        let windows = (0..steps.count)
            .map(|i| {
                let end = shift.apply(steps.time(i));
                (end - range_ms, end)
            })
            .collect();
        let series = self.data[selector.id].iter().map(without_stale).collect();
        Ranges { series, windows, edges: selector.edges }
    }

    /// `bare`: nothing is called on it. Then what its steps look at counts for the one step that there is; else its values
    /// are counted where they are looked at.
    pub(in crate::promql) fn subquery(&self, s: &Subquery, steps: &Steps, bare: bool) -> Result<Ranges, QueryError> {
        let shift = Shift::new(s.at, s.offset.as_ref());
        let range_ms = millis(&s.range);
        let windows: Vec<(i64, i64)> = (0..steps.count)
            .map(|i| {
                let end = shift.apply(steps.time(i));
                (end - range_ms, end)
            })
            .collect();
        let inner = subquery_steps(s, windows[0].0, windows[windows.len() - 1].1, self.default_step_ms);
        let mut series = Vec::new();
        if inner.count > 0 {
            self.charge(inner.count)?;
            let tally = self.tally.as_ref().filter(|_| bare).map(|all| (all, Arc::new(Tally::new(inner))));
            let below = Evaluator { tally: tally.as_ref().map(|(_, below)| below.clone()), ..self.clone() };
            match below.eval(&s.expr, &inner)? {
                Values::Vector(v) => series = v.into_iter().map(|s| Arc::new(as_data(s, &inner))).collect(),
                Values::Scalar(v) => {
                    let points = v.into_iter().map(Point::Float).collect();
                    let s = Series { labels: Arc::new(Labels::default()), points };
                    series.push(Arc::new(as_data(s, &inner)));
                }
                _ => return Err(QueryError::Internal("a subquery's expression gives a vector".into())),
            }
            if let Some((all, below)) = tally {
                all.take_all(0, &below);
            }
        }
        Ok(Ranges { series, windows, edges: Edges::Plain })
    }
}

/// Evaluation times of a subquery whose windows reach from `start` (exclusive) to `end`: multiples of its step.
pub(in crate::promql) fn subquery_steps(s: &Subquery, start: i64, end: i64, default_step: i64) -> Steps {
    let step = s.step.as_ref().map_or(default_step, millis).max(1);
    let mut first = step * (start / step);
    if first <= start {
        first += step;
    }
    let count = if end < first { 0 } else { usize::try_from((end - first) / step + 1).unwrap_or(0) };
    Steps { start: first, step, count }
}

fn as_data(series: Series, steps: &Steps) -> SeriesData {
    let mut out = SeriesData { labels: series.labels, ..SeriesData::default() };
    for (i, point) in series.points.into_iter().enumerate() {
        match point {
            Point::Float(v) => {
                out.ts.push(steps.time(i));
                out.values.push(v);
            }
            // What is known of a reset is about the sample before, which a step may have left out.
            Point::Histogram(mut h) => {
                if matches!(h.hint, ResetHint::Reset | ResetHint::NotReset) {
                    Arc::make_mut(&mut h).hint = ResetHint::Unknown;
                }
                out.histograms.push((steps.time(i), h));
            }
            Point::None => {}
        }
    }
    out
}

pub(super) fn without_stale(data: &Arc<SeriesData>) -> Arc<SeriesData> {
    // Without an end in between, so that several are looked at at once.
    let any_float = data.values.iter().fold(false, |any, v| any | is_stale(*v));
    if !any_float && !data.histograms.iter().any(|h| is_stale(h.1.sum)) {
        return data.clone();
    }
    let kept: Vec<usize> = (0..data.ts.len()).filter(|i| !is_stale(data.values[*i])).collect();
    Arc::new(SeriesData {
        labels: data.labels.clone(),
        ts: kept.iter().map(|i| data.ts[*i]).collect(),
        values: kept.iter().map(|i| data.values[*i]).collect(),
        starts: if data.starts.is_empty() { Vec::new() } else { kept.iter().map(|i| data.starts[*i]).collect() },
        histogram_starts: data
            .histogram_starts
            .iter()
            .zip(&data.histograms)
            .filter(|(_, h)| !is_stale(h.1.sum))
            .map(|(s, _)| *s)
            .collect(),
        histograms: data.histograms.iter().filter(|h| !is_stale(h.1.sum)).cloned().collect(),
    })
}
