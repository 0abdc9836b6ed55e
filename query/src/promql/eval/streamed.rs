//! Leaves of a query that are evaluated while their samples are read, a piece of time after the other.
//!
//! A selector, or a function of one range selector, at the query's own steps: what it needs of a day are the samples of one
//! window, so a day is never in memory. Everything else waits for all its samples.
//!
//! Invariant: pieces are pushed in order of time and each step is evaluated when the last sample it can see is there.

use std::sync::Arc;

use super::{
    Evaluator, Series, Steps,
    range::{Work, plain},
    selector::{Shift, without_stale},
};
use crate::{
    error::QueryError,
    fetch::SeriesData,
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
    /// Steps that are evaluated.
    done: usize,
    /// Samples that the next step may still see, by series.
    held: Vec<SeriesData>,
    points: Vec<Option<Vec<Point>>>,
    /// Series with a float in any piece.
    floats: Vec<bool>,
}

impl Streamed {
    pub fn new(selector: Selector, leaf: Leaf, steps: Steps, series: usize) -> Self {
        Streamed {
            selector,
            leaf,
            steps,
            done: 0,
            held: Vec::new(),
            points: vec![None; series],
            floats: vec![false; series],
        }
    }

    /// Takes the samples up to `until` (ms, inclusive) and evaluates the steps that see no later ones.
    pub fn push(&mut self, eval: &Evaluator, samples: Vec<SeriesData>, until: i64) -> Result<(), QueryError> {
        for (floats, s) in self.floats.iter_mut().zip(&samples) {
            *floats |= !s.ts.is_empty();
        }
        if self.held.is_empty() {
            self.held = samples;
        } else {
            self.held.iter_mut().zip(samples).for_each(|(held, new)| held.append(new));
        }
        let shift = Shift::new(self.selector.at, self.selector.offset.as_ref());
        let ready = (self.done..self.steps.count).take_while(|i| shift.apply(self.steps.time(*i)) <= until).count();
        if ready == 0 {
            return Ok(());
        }
        let steps = Steps { start: self.steps.time(self.done), step: self.steps.step, count: ready };
        let series: Vec<Arc<SeriesData>> = std::mem::take(&mut self.held).into_iter().map(Arc::new).collect();
        let (points, window) = match &self.leaf {
            Leaf::Instant(span) => {
                let points = eval.newest_of(&series, &self.selector, *span, &steps, |_, _, p| p)?;
                (points, eval.lookback_ms)
            }
            Leaf::Function { name, range, span } => {
                let range_ms = super::millis(range);
                let windows: Vec<(i64, i64)> =
                    (0..ready).map(|i| shift.apply(steps.time(i))).map(|end| (end - range_ms, end)).collect();
                let Some(f) = plain(name) else {
                    return Err(QueryError::Internal("a streamed function takes a range alone".into()));
                };
                let clean: Vec<Arc<SeriesData>> = series.iter().map(without_stale).collect();
                (eval.points_over(&clean, &windows, *span, &steps, Work::Plain(name, f))?, range_ms)
            }
        };
        for (all, new) in self.points.iter_mut().zip(points) {
            match (all.as_mut(), new) {
                (_, None) => {}
                (Some(all), Some(new)) => {
                    all.resize(self.done, Point::None);
                    all.extend(new);
                }
                (None, Some(new)) if self.done == 0 => *all = Some(new),
                (None, Some(new)) => {
                    let mut points = Vec::with_capacity(self.steps.count);
                    points.resize(self.done, Point::None);
                    points.extend(new);
                    *all = Some(points);
                }
            }
        }
        self.done += ready;
        if self.done < self.steps.count {
            let next = shift.apply(self.steps.time(self.done)) - window;
            self.held = series.into_iter().map(Arc::unwrap_or_clone).collect();
            self.held.iter_mut().for_each(|s| s.forget(next));
        }
        Ok(())
    }

    /// Samples kept for the next piece.
    pub fn held(&self) -> usize {
        self.held.iter().map(|s| s.ts.len() + 10 * s.histograms.len()).sum()
    }

    /// The leaf's series. `labels`: of all selected ones.
    pub fn finish(
        self,
        eval: &Evaluator,
        labels: impl Iterator<Item = Arc<storage::model::Labels>>,
    ) -> Result<Vec<Series>, QueryError> {
        let count = self.steps.count;
        let mut named = Vec::new();
        let (keep_name, counter) = match &self.leaf {
            Leaf::Instant(_) => (true, None),
            Leaf::Function { name, span, .. } => (
                matches!(*name, "last_over_time" | "first_over_time"),
                matches!(*name, "rate" | "increase").then_some(*span),
            ),
        };
        for ((labels, points), floats) in labels.zip(self.points).zip(self.floats) {
            let Some(mut points) = points else { continue };
            points.resize(count, Point::None);
            if let Some(span) = counter.filter(|_| floats) {
                eval.hint_not_counter(&labels, span);
            }
            named.push((labels, Some(points)));
        }
        eval.named(named.into_iter(), keep_name)
    }

    /// Points of all selected series up to the last step that has any, and which of them have a float.
    pub fn into_points(self) -> (Vec<Option<Vec<Point>>>, Vec<bool>) {
        (self.points, self.floats)
    }
}
