//! Leaves of a query that are evaluated while their samples are read, a piece of time after the other.
//!
//! A selector, or a function of one range selector, at the query's own steps: what it needs of a day are the samples of one
//! window, so a day is never in memory. Everything else waits for all its samples.
//!
//! Invariant: pieces are pushed in order of time and each step is evaluated when the last sample it can see is there.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;

use super::{
    Evaluator, Series, Steps, metric_name, of_one_name,
    range::{Work, keeps_name, plain},
    selector::{Shift, without_stale},
};
use crate::{
    error::QueryError,
    fetch::{SeriesData, Shares, too_many},
    parallel,
    promql::{
        ast::{Duration, Selector},
        value::Point,
    },
    syntax::Span,
};

/// What is computed of a selector's samples.
#[derive(Clone, Debug)]
pub(in crate::promql) enum Leaf {
    /// The newest sample. With the selector's place.
    Instant(Span),
    /// A function of the range, by its name. With the place of its argument.
    Function { name: &'static str, range: Duration, span: Span },
}

pub(in crate::promql) struct Streamed {
    selector: Selector,
    leaf: Leaf,
    steps: Steps,
    lookback_ms: i64,
    /// Steps that are evaluated.
    done: usize,
    /// Samples that the next step may still see, by series.
    held: Vec<SeriesData>,
    points: Vec<Option<Vec<Point>>>,
    /// Series with a float in any piece.
    floats: Vec<bool>,
    /// Whether any has a histogram in any piece.
    histograms: bool,
}

impl Streamed {
    pub fn new(selector: Selector, leaf: Leaf, steps: Steps, lookback_ms: i64, series: usize) -> Self {
        Streamed {
            selector,
            leaf,
            steps,
            lookback_ms,
            done: 0,
            held: Vec::new(),
            points: vec![None; series],
            floats: vec![false; series],
            histograms: false,
        }
    }

    /// Takes the samples up to `until` (ms, inclusive) and evaluates the steps that see no later ones.
    pub fn push(&mut self, eval: &Evaluator, samples: Vec<SeriesData>, until: i64) -> Result<(), QueryError> {
        for (floats, s) in self.floats.iter_mut().zip(&samples) {
            *floats |= !s.ts.is_empty();
            self.histograms |= !s.histograms.is_empty();
        }
        if self.held.is_empty() {
            self.held = samples;
        } else {
            self.held.iter_mut().zip(samples).for_each(|(held, new)| held.append(new));
        }
        let ready = self.ready(until);
        if ready == 0 {
            return Ok(());
        }
        let series: Vec<Arc<SeriesData>> = std::mem::take(&mut self.held).into_iter().map(Arc::new).collect();
        let points = self.evaluate(eval, &series, ready)?;
        for (n, new) in points.into_iter().enumerate() {
            self.keep(n, new);
        }
        let next = self.next_after(ready);
        self.done += ready;
        if let Some(next) = next {
            self.held = series.into_iter().map(Arc::unwrap_or_clone).collect();
            self.held.iter_mut().for_each(|s| s.forget(next));
        }
        Ok(())
    }

    /// As [`Streamed::push`] with samples that are read, evaluated and forgotten a share of the series after the other, on
    /// all cores. Gives how many were held at a time, which is an error above `samples_max`.
    pub fn push_shares(
        &mut self,
        eval: &Evaluator,
        shares: &Shares,
        until: i64,
        samples_max: usize,
    ) -> Result<usize, QueryError> {
        let ready = self.ready(until);
        let next = self.next_after(ready);
        let before: Vec<Mutex<SeriesData>> = std::mem::take(&mut self.held).into_iter().map(Mutex::new).collect();
        let (now, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let done = parallel::map(shares.count(), usize::MAX, |share| {
            eval.alive()?;
            let samples = shares.read(share)?;
            let n: usize = samples.iter().map(|(_, s)| s.ts.len()).sum();
            let held = now.fetch_add(n, Ordering::Relaxed) + n;
            if held > samples_max {
                return Err(too_many());
            }
            peak.fetch_max(held, Ordering::Relaxed);
            let floats: Vec<bool> = samples.iter().map(|(_, s)| !s.ts.is_empty()).collect();
            let (places, mut series): (Vec<usize>, Vec<SeriesData>) = samples.into_iter().unzip();
            if !before.is_empty() {
                for (place, new) in places.iter().zip(&mut series) {
                    let mut all = std::mem::take(&mut *before[*place].lock());
                    all.append(std::mem::take(new));
                    *new = all;
                }
            }
            let series: Vec<Arc<SeriesData>> = series.into_iter().map(Arc::new).collect();
            let points = if ready > 0 { self.evaluate(eval, &series, ready)? } else { vec![None; series.len()] };
            let held = next.map(|next| {
                let mut held: Vec<SeriesData> = series.into_iter().map(Arc::unwrap_or_clone).collect();
                held.iter_mut().for_each(|s| s.shrink_after(next));
                held
            });
            let kept = held.iter().flatten().map(|s| s.ts.len()).sum();
            // What is kept may be more than was read: the rest was counted before.
            now.fetch_sub(n.saturating_sub(kept), Ordering::Relaxed);
            Ok::<_, QueryError>((places, floats, points, held))
        })?;
        if next.is_some() {
            self.held.resize_with(self.points.len(), SeriesData::default);
        }
        for (places, floats, points, held) in done {
            for ((place, floats), points) in places.iter().zip(floats).zip(points) {
                self.floats[*place] |= floats;
                self.keep(*place, points);
            }
            for (place, held) in places.iter().zip(held.into_iter().flatten()) {
                self.held[*place] = held;
            }
        }
        self.done += ready;
        Ok(peak.into_inner())
    }

    fn shift(&self) -> Shift {
        Shift::new(self.selector.at, self.selector.offset.as_ref())
    }

    /// How many more steps see no sample after `until`.
    fn ready(&self, until: i64) -> usize {
        let shift = self.shift();
        (self.done..self.steps.count).take_while(|i| shift.apply(self.steps.time(*i)) <= until).count()
    }

    /// The time up to which no step behind the next `ready` ones sees a sample; `None`: there is no such step.
    fn next_after(&self, ready: usize) -> Option<i64> {
        let next = self.done + ready;
        (next < self.steps.count).then(|| self.shift().apply(self.steps.time(next)) - self.window())
    }

    /// How far back a step sees, ms.
    fn window(&self) -> i64 {
        match &self.leaf {
            Leaf::Instant(_) => self.lookback_ms,
            Leaf::Function { range, .. } => super::millis(range),
        }
    }

    /// The points of `series` at the next `ready` steps.
    fn evaluate(
        &self,
        eval: &Evaluator,
        series: &[Arc<SeriesData>],
        ready: usize,
    ) -> Result<Vec<Option<Vec<Point>>>, QueryError> {
        let steps = Steps { start: self.steps.time(self.done), step: self.steps.step, count: ready };
        match &self.leaf {
            Leaf::Instant(span) => eval.newest_of(series, &self.selector, *span, &steps, |_, _, p| p),
            Leaf::Function { name, range, span } => {
                let range_ms = super::millis(range);
                let shift = self.shift();
                let windows: Vec<(i64, i64)> =
                    (0..ready).map(|i| shift.apply(steps.time(i))).map(|end| (end - range_ms, end)).collect();
                let Some(f) = plain(name) else {
                    return Err(QueryError::Internal("a streamed function takes a range alone".into()));
                };
                let clean: Vec<Arc<SeriesData>> = series.iter().map(without_stale).collect();
                eval.points_over(&clean, &windows, *span, &steps, Work::Plain(name, f))
            }
        }
    }

    /// Puts the points of the steps after those that are done behind those of series `n`.
    fn keep(&mut self, n: usize, new: Option<Vec<Point>>) {
        let Some(new) = new else { return };
        match &mut self.points[n] {
            Some(all) => {
                all.resize(self.done, Point::None);
                all.extend(new);
            }
            none if self.done == 0 => *none = Some(new),
            none => {
                let mut points = Vec::with_capacity(self.steps.count);
                points.resize(self.done, Point::None);
                points.extend(new);
                *none = Some(points);
            }
        }
    }

    /// Samples kept for the next piece.
    pub fn held(&self) -> usize {
        self.held.iter().map(|s| s.ts.len() + 10 * s.histograms.len()).sum()
    }

    /// The leaf's series. `labels`: of all selected ones. `grouped`: whoever takes them looks at labels other than the name,
    /// which then may stay where no two series become one without it.
    pub fn finish(
        self,
        eval: &Evaluator,
        labels: impl Iterator<Item = Arc<storage::model::Labels>>,
        grouped: bool,
    ) -> Result<Vec<Series>, QueryError> {
        let count = self.steps.count;
        let mut named: Vec<(Arc<storage::model::Labels>, _)> = Vec::new();
        let mut hinted: Option<Arc<storage::model::Labels>> = None;
        let (keep_name, counter) = match &self.leaf {
            Leaf::Instant(_) => (true, None),
            Leaf::Function { name, span, .. } => {
                (keeps_name(name), matches!(*name, "rate" | "increase").then_some(*span))
            }
        };
        for ((labels, points), floats) in labels.zip(self.points).zip(self.floats) {
            let Some(mut points) = points else { continue };
            points.resize(count, Point::None);
            if let Some(span) = counter.filter(|_| floats) {
                // Series of one name come one after the other.
                let again = hinted.as_ref().is_some_and(|h| metric_name(h) == metric_name(&labels));
                if !again || eval.drop_type_and_unit {
                    eval.hint_not_counter(&labels, span);
                    hinted = Some(labels.clone());
                }
            }
            named.push((labels, Some(points)));
        }
        // Aggregations of histograms tell names.
        let may_stay =
            grouped && !self.histograms && !eval.drop_type_and_unit && of_one_name(named.iter().map(|(l, _)| l));
        eval.named(named.into_iter(), keep_name || may_stay)
    }

    /// Points of all selected series up to the last step that has any, and which of them have a float.
    pub fn into_points(self) -> (Vec<Option<Vec<Point>>>, Vec<bool>) {
        (self.points, self.floats)
    }
}
