//! Evaluation of a checked tree over samples that are already in memory, for all steps at once.
//!
//! Every node gives, for each of the query's steps, a point per series. Work is per series over flat arrays with sliding
//! windows, so the samples of a selector are walked once. Not here: fetching (`engine`), types (`check`).

mod aggregate;
mod aggregated;
mod binary;
mod call;
mod classic;
mod date;
mod edges;
mod hash;
mod info;
mod labels;
mod native;
mod over_time;
mod range;
mod rate;
mod selector;
mod streamed;
mod tally;

pub(super) use aggregated::{Seen, answers, named, points as bucket_points};
pub(super) use info::name_matchers;
pub(super) use streamed::{Leaf, Streamed};
pub use tally::Counted;
pub(super) use tally::Tally;

/// Whether a function takes one range vector and nothing else.
pub(super) fn is_plain(function: &str) -> bool {
    range::plain(function).is_some()
}

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use storage::model::Labels;
use tokio_util::sync::CancellationToken;

use super::{
    ast::{Duration, DurationKind, Expr, ExprKind},
    value::Point,
};
use crate::{annotations::Annotations, error::QueryError, fetch::SeriesData, syntax::Span};

/// The evaluation times of a node: `start`, `start + step`, ... (`count` of them), milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Steps {
    pub start: i64,
    pub step: i64,
    pub count: usize,
}

impl Steps {
    pub fn time(&self, i: usize) -> i64 {
        self.start + self.step * i as i64
    }
}

/// One series of an instant vector over all steps.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub labels: Arc<Labels>,
    /// [steps].
    pub points: Vec<Point>,
}

/// What a node gives, over all steps.
#[derive(Clone, Debug)]
pub(super) enum Values {
    /// [steps].
    Scalar(Vec<f64>),
    String(String),
    Vector(Vec<Series>),
    Ranges(selector::Ranges),
}

#[derive(Clone)]
pub(super) struct Evaluator {
    pub query: Arc<str>,
    /// Samples by selector id.
    pub data: Arc<[Vec<Arc<SeriesData>>]>,
    /// What [`streamed`] leaves have given, by the id of their selector; each is asked for once.
    pub computed: Arc<Mutex<HashMap<usize, Vec<Series>>>>,
    pub lookback_ms: i64,
    /// First and last evaluation time of the query and its step (0 for an instant query), ms.
    pub times: (i64, i64, i64),
    /// Step of a subquery that names none, ms.
    pub default_step_ms: i64,
    /// Whether `__type__` and `__unit__` go where the name goes.
    pub drop_type_and_unit: bool,
    /// Whether counters are known to have been zero at the start times of their samples.
    pub start_timestamps: bool,
    pub notes: Arc<Mutex<Annotations>>,
    /// What steps look at, where someone asks.
    pub tally: Option<Arc<Tally>>,
    /// Points that may still be held.
    pub samples_left: Arc<AtomicUsize>,
    pub deadline: Instant,
    pub cancel: CancellationToken,
}

pub(super) const SAME_LABELS: &str = "vector cannot contain metrics with the same labelset";

pub(super) fn fail<T>(message: impl Into<String>) -> Result<T, QueryError> {
    Err(QueryError::Execution(message.into()))
}

/// A duration that [`super::engine`] has resolved, in ms.
pub(super) fn millis(duration: &Duration) -> i64 {
    match &duration.kind {
        DurationKind::Seconds(s) => (s * 1000.0).round() as i64,
        _ => unreachable!("durations are resolved before evaluation"),
    }
}

impl Evaluator {
    pub fn warn(&self, at: Span, message: &str) {
        self.notes.lock().warn(&self.query, at, message);
    }

    pub fn info(&self, at: Span, message: &str) {
        self.notes.lock().info(&self.query, at, message);
    }

    /// Ends an evaluation that is late, unwanted, or too large. Called once a node and now and then inside.
    pub fn alive(&self) -> Result<(), QueryError> {
        if self.cancel.is_cancelled() {
            return Err(QueryError::Canceled("expression evaluation"));
        }
        if Instant::now() >= self.deadline {
            return Err(QueryError::Timeout("expression evaluation"));
        }
        Ok(())
    }

    /// Counts points that stay in memory.
    pub fn charge(&self, points: usize) -> Result<(), QueryError> {
        let taken =
            self.samples_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(points));
        match taken {
            Ok(_) => Ok(()),
            Err(_) => fail("query processing would load too many samples into memory in query execution"),
        }
    }

    pub fn eval(&self, expr: &Expr, steps: &Steps) -> Result<Values, QueryError> {
        self.alive()?;
        match &expr.kind {
            ExprKind::Number(n) => Ok(Values::Scalar(vec![*n; steps.count])),
            ExprKind::String(s) => Ok(Values::String(s.clone())),
            ExprKind::Paren(inner) => self.eval(inner, steps),
            ExprKind::Unary { minus, operand } => self.unary(*minus, self.eval(operand, steps)?),
            ExprKind::Binary(b) => self.binary(b, expr.span, steps),
            ExprKind::Aggregate(a) => self.aggregate(a, steps).map(Values::Vector),
            ExprKind::Call { function, args } => self.call(function, args, expr.span, steps),
            ExprKind::Selector(s) => {
                let computed = self.computed.lock().remove(&s.id);
                computed.map_or_else(|| self.select(s, expr.span, steps), Ok).map(Values::Vector)
            }
            ExprKind::Range { selector, range } => Ok(Values::Ranges(self.select_ranges(selector, range, steps))),
            ExprKind::Subquery(s) => self.subquery(s, steps, false).map(Values::Ranges),
        }
    }

    pub fn vector(&self, expr: &Expr, steps: &Steps) -> Result<Vec<Series>, QueryError> {
        match self.eval(expr, steps)? {
            Values::Vector(v) => Ok(v),
            _ => Err(QueryError::Internal("expected a vector".into())),
        }
    }

    pub fn scalar(&self, expr: &Expr, steps: &Steps) -> Result<Vec<f64>, QueryError> {
        match self.eval(expr, steps)? {
            Values::Scalar(v) => Ok(v),
            _ => Err(QueryError::Internal("expected a scalar".into())),
        }
    }

    pub fn string(&self, expr: &Expr) -> Result<String, QueryError> {
        match &expr.inner().kind {
            ExprKind::String(s) => Ok(s.clone()),
            _ => Err(QueryError::Internal("expected a string".into())),
        }
    }

    fn unary(&self, minus: bool, operand: Values) -> Result<Values, QueryError> {
        match operand {
            Values::Scalar(mut v) => {
                if minus {
                    v.iter_mut().for_each(|v| *v = -*v);
                }
                Ok(Values::Scalar(v))
            }
            Values::Vector(mut series) if minus => {
                for s in &mut series {
                    s.labels = self.without_name(&s.labels);
                    for p in &mut s.points {
                        *p = match std::mem::take(p) {
                            Point::Float(v) => Point::Float(-v),
                            Point::Histogram(h) => Point::Histogram(Arc::new(Arc::unwrap_or_clone(h).scaled(-1.0))),
                            Point::None => Point::None,
                        };
                    }
                }
                join_same_labels(series).map(Values::Vector)
            }
            other => Ok(other),
        }
    }

    /// The labels without the metric name (and what goes with it).
    pub fn without_name(&self, labels: &Arc<Labels>) -> Arc<Labels> {
        let typed = self.drop_type_and_unit && (labels.get("__type__").is_some() || labels.get("__unit__").is_some());
        if labels.get("__name__").is_none() && !typed {
            return labels.clone();
        }
        let mut out = Labels::clone(labels);
        out.remove("__name__");
        if self.drop_type_and_unit {
            out.remove("__type__");
            out.remove("__unit__");
        }
        Arc::new(out)
    }
}

pub(super) fn metric_name(labels: &Labels) -> &str {
    // It is nearly always the first.
    match labels.iter().next() {
        Some(("__name__", name)) => name,
        _ => labels.get("__name__").unwrap_or(""),
    }
}

/// Errors if two series have equal labels, whatever their steps.
pub(super) fn refuse_same_labels(series: &[Series]) -> Result<(), QueryError> {
    let mut seen = HashSet::with_capacity(series.len());
    if series.iter().all(|s| seen.insert(&s.labels)) { Ok(()) } else { fail(SAME_LABELS) }
}

/// Whether all series of distinct labels have the same name, so that they stay distinct without it.
pub(super) fn of_one_name<'l>(mut labels: impl Iterator<Item = &'l Arc<Labels>>) -> bool {
    let Some(first) = labels.next() else { return true };
    let name = metric_name(first);
    labels.all(|l| metric_name(l) == name)
}

/// Joins series of equal labels that never share a step; errors if they do.
pub(super) fn join_same_labels(series: Vec<Series>) -> Result<Vec<Series>, QueryError> {
    let mut index: HashMap<Arc<Labels>, usize> = HashMap::with_capacity(series.len());
    let mut out: Vec<Series> = Vec::with_capacity(series.len());
    for s in series {
        match index.get(&s.labels) {
            None => {
                index.insert(s.labels.clone(), out.len());
                out.push(s);
            }
            Some(i) => {
                for (into, from) in out[*i].points.iter_mut().zip(s.points) {
                    match (into.is_some(), from.is_some()) {
                        (true, true) => return fail(SAME_LABELS),
                        (false, true) => *into = from,
                        _ => {}
                    }
                }
            }
        }
    }
    Ok(out)
}

/// Without series that have no point at all.
pub(super) fn without_empty(mut series: Vec<Series>) -> Vec<Series> {
    series.retain(|s| s.points.iter().any(Point::is_some));
    series
}
