//! From a request to its answer: parse, resolve times, fetch what selectors need, evaluate off the async threads.

mod plan;
mod read;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration as StdDuration, Instant},
};

use storage::{Store, model::TenantId};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use plan::{asks_for_starts, leaves, of_stats, plan, resolve};
use read::Read;

pub(super) use self::{plan::Need, read::Fetched};
use super::{
    aggregates::{Answered, Source},
    ast::{Expr, ExprKind, ValueType},
    eval::{self, Counted, Evaluator, Steps, Tally, Values},
    features::Features,
    parser::parse,
    stack,
    value::{Point, Sample, SeriesPoints, Value},
};
use crate::{
    annotations::Annotations,
    error::QueryError,
    fetch,
    limits::{Limits, STEPS_MAX},
    recent::Recent,
};

/// What differs from Prometheus' default flags.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    pub features: Features,
    /// Step of subqueries that name none.
    pub default_step: StdDuration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { features: Features::default(), default_step: StdDuration::from_secs(60) }
    }
}

#[derive(Clone, Debug, Default)]
pub struct InstantRequest {
    pub query: String,
    pub time_ms: i64,
    /// At most the engine's own.
    pub timeout: Option<StdDuration>,
    pub lookback: Option<StdDuration>,
    pub source: Source,
    /// Whether the samples of each step are counted.
    pub count: bool,
}

#[derive(Clone, Debug, Default)]
pub struct RangeRequest {
    pub query: String,
    pub start_ms: i64,
    /// Inclusive; not before `start_ms`.
    pub end_ms: i64,
    /// Above zero.
    pub step_ms: i64,
    pub timeout: Option<StdDuration>,
    pub lookback: Option<StdDuration>,
    pub source: Source,
    /// Whether the samples of each step are counted.
    pub count: bool,
}

/// A value, what is to be said about it, and what it cost.
#[derive(Clone, Debug)]
pub struct Output {
    pub value: Value,
    pub annotations: Annotations,
    pub stats: Stats,
}

#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub queue: StdDuration,
    pub prepare: StdDuration,
    pub eval: StdDuration,
    /// Series, selector by selector, that aggregates answered.
    pub answered: Answered,
    /// Most samples and computed points held at one time, of about 16 bytes each.
    pub samples_peak: usize,
    /// What each step looked at, where that was asked for.
    pub steps: Vec<Counted>,
}

/// What a request asks, with times in one form.
struct Asked<'q> {
    query: &'q str,
    steps: Steps,
    /// First and last evaluation time and the step (0 for an instant query), ms.
    times: (i64, i64, i64),
    timeout: Option<StdDuration>,
    lookback: Option<StdDuration>,
    source: Source,
    count: bool,
}

/// Evaluates queries over one store. Clones share it.
#[derive(Clone)]
pub struct Engine {
    store: Store,
    limits: Arc<Limits>,
    options: Arc<EngineOptions>,
    slots: Arc<Semaphore>,
    recent: Option<Recent>,
}

impl Engine {
    pub fn new(store: Store, limits: Limits, options: EngineOptions) -> Self {
        let slots = Arc::new(Semaphore::new(limits.concurrent_max.max(1)));
        Engine { store, limits: Arc::new(limits), options: Arc::new(options), slots, recent: None }
    }

    /// The same, for instant queries that come again and again: the last minutes of what they read stay in memory.
    pub fn remembering(&self) -> Engine {
        Engine { recent: Some(Recent::new(self.store.clone())), ..self.clone() }
    }

    pub fn recent(&self) -> Option<&Recent> {
        self.recent.as_ref()
    }

    /// Tells a remembering engine what it will be asked; [`Recent::keep_noted`] then reads it at once. What has errors is
    /// left out.
    pub fn note(&self, tenant: &TenantId, query: &str, at_ms: i64) {
        let Some(recent) = &self.recent else { return };
        let Ok(mut expr) = parse(query) else { return };
        if resolve(query, &mut expr, (at_ms, at_ms, 0)).is_err() {
            return;
        }
        let mut needs = Vec::new();
        plan(&expr, (at_ms, at_ms), ms(self.limits.lookback).max(1), &mut needs);
        for need in needs {
            recent.note(tenant, need.wanted(at_ms));
        }
    }

    /// The value at one time: a scalar, string, vector or, for a range expression, a matrix.
    pub async fn instant(&self, tenant: &TenantId, request: InstantRequest) -> Result<Output, QueryError> {
        let steps = Steps { start: request.time_ms, step: 1, count: 1 };
        let InstantRequest { timeout, lookback, source, count, .. } = request;
        let times = (request.time_ms, request.time_ms, 0);
        self.run(tenant, Asked { query: &request.query, steps, times, timeout, lookback, source, count }).await
    }

    /// A matrix of values at `start, start + step, ... <= end`.
    pub async fn range(&self, tenant: &TenantId, request: RangeRequest) -> Result<Output, QueryError> {
        if request.step_ms <= 0 || request.end_ms < request.start_ms {
            return Err(QueryError::BadData("range needs a positive step and an end not before its start".into()));
        }
        let intervals = (request.end_ms - request.start_ms) / request.step_ms;
        let count = usize::try_from(intervals).map_err(|_| QueryError::BadData("too many steps".into()))? + 1;
        if count > STEPS_MAX {
            return Err(QueryError::Execution(format!(
                "query asks for {count} steps, more than the limit of {STEPS_MAX} steps per query; choose a longer step"
            )));
        }
        let steps = Steps { start: request.start_ms, step: request.step_ms, count };
        let times = (request.start_ms, request.end_ms, request.step_ms);
        let RangeRequest { timeout, lookback, source, count, .. } = request;
        self.run(tenant, Asked { query: &request.query, steps, times, timeout, lookback, source, count }).await
    }

    async fn run(&self, tenant: &TenantId, asked: Asked<'_>) -> Result<Output, QueryError> {
        let timeout = asked.timeout.map_or(self.limits.timeout, |t| t.min(self.limits.timeout));
        let begun = Instant::now();
        let deadline = begun + timeout;
        // Dropping the request's future ends the evaluation on its blocking thread.
        let cancel = CancellationToken::new();
        let guard = cancel.clone().drop_guard();
        let out = tokio::time::timeout_at(deadline.into(), self.run_until(tenant, asked, deadline, cancel)).await;
        drop(guard);
        out.unwrap_or(Err(QueryError::Timeout("expression evaluation")))
    }

    async fn run_until(
        &self,
        tenant: &TenantId,
        asked: Asked<'_>,
        deadline: Instant,
        cancel: CancellationToken,
    ) -> Result<Output, QueryError> {
        let Asked { query, steps, times, lookback, source, .. } = asked;
        let mut expr = parse(query)?;
        self.options.features.check(query, &expr)?;
        let is_range = times.2 > 0;
        let value_type = expr.value_type();
        if is_range && !matches!(value_type, ValueType::Scalar | ValueType::Vector) {
            return Err(QueryError::BadData(format!(
                "invalid expression type {:?} for range query, must be Scalar or instant Vector",
                value_type.name()
            )));
        }
        resolve(query, &mut expr, times)?;
        let queued = Instant::now();
        let slot = self.slots.clone().acquire_owned().await;
        let slot = slot.map_err(|_| QueryError::Canceled("query queue"))?;
        let prepared = Instant::now();
        let lookback_ms = ms(lookback.unwrap_or(self.limits.lookback)).max(1);
        let default_step_ms = ms(self.options.default_step).max(1);
        let mut needs = Vec::new();
        let last = steps.time(steps.count - 1);
        plan(&expr, (steps.start, last), lookback_ms, &mut needs);
        leaves(&expr, &mut needs);
        let bounds = self.limits.tenants.of(tenant);
        for Need { from, to, .. } in &needs {
            bounds.check_range(to.saturating_sub(*from).saturating_mul(1_000_000)).map_err(QueryError::Execution)?;
        }
        let samples_max = self.limits.samples_of(tenant);
        let mut evaluator = Evaluator {
            query: query.into(),
            data: Arc::default(),
            computed: Arc::default(),
            lookback_ms,
            times,
            default_step_ms,
            drop_type_and_unit: self.options.features.type_and_unit_labels,
            start_timestamps: self.options.features.start_timestamps,
            notes: Arc::default(),
            tally: asked.count.then(|| Arc::new(Tally::new(steps))),
            samples_left: Arc::new(AtomicUsize::new(samples_max)),
            deadline,
            cancel,
        };
        let mut stats_only = HashSet::new();
        of_stats(&expr, false, &mut stats_only);
        let wants_starts = self.options.features.start_timestamps || asks_for_starts(&expr);
        let mut fetched = Fetched {
            store: &self.store,
            tenant,
            series_max: self.limits.series_of(tenant),
            samples_max,
            budget: fetch::SampleBudget::new(samples_max),
            samples_peak: 0,
            answered: Answered::default(),
        };
        let mut data = vec![Vec::new(); needs.len()];
        for need in needs {
            let id = need.selector.id;
            let reading = fetch::Reading { starts: wants_starts, tell_drops: stats_only.contains(&id) };
            if let Some(recent) = self.recent.as_ref().filter(|_| !is_range && !wants_starts)
                && let Some(found) = recent.find(tenant, &need.wanted(steps.start), fetched.series_max).await
            {
                data[id] = fetched.taken(found)?;
                continue;
            }
            if let Some(series) = fetched.aggregated(&evaluator, &need, steps, reading, source).await? {
                evaluator.computed.lock().insert(id, series);
                continue;
            }
            match fetched.read(&evaluator, need, steps, reading).await? {
                Read::Computed(series) => drop(evaluator.computed.lock().insert(id, series)),
                Read::Samples(samples) => data[id] = samples,
            }
        }
        let (samples_peak, answered) = (fetched.samples_peak, fetched.answered);
        evaluator.data = data.into();
        // What is loaded and what is computed share one bound.
        let computed = samples_max.saturating_sub(evaluator.samples_left.load(Ordering::Relaxed));
        evaluator.samples_left.store(fetched.budget.left().saturating_sub(computed), Ordering::Relaxed);
        let started = Instant::now();
        let work = move || {
            let _slot = slot;
            let values = stack::with_room(&evaluator.query, || evaluate(&evaluator, &expr, &steps))?;
            let value = finish(values, &steps, is_range)?;
            let notes = std::mem::take(&mut *evaluator.notes.lock());
            let left = evaluator.samples_left.load(Ordering::Relaxed);
            let counted = evaluator.tally.as_ref().map(|tally| tally.counted()).unwrap_or_default();
            Ok::<_, QueryError>((value, notes, samples_max.saturating_sub(left), counted))
        };
        let (value, annotations, held, counted) =
            tokio::task::spawn_blocking(work).await.map_err(|e| QueryError::Internal(e.to_string()))??;
        let stats = Stats {
            queue: prepared - queued,
            prepare: started - prepared,
            eval: started.elapsed(),
            answered,
            samples_peak: samples_peak.max(held),
            steps: counted,
        };
        Ok(Output { value, annotations, stats })
    }
}

fn ms(d: StdDuration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX / 4)
}

/// The values of a whole query.
fn evaluate(evaluator: &Evaluator, expr: &Expr, steps: &Steps) -> Result<Values, QueryError> {
    if let ExprKind::Subquery(s) = &expr.inner().kind {
        return evaluator.subquery(s, steps, true).map(Values::Ranges);
    }
    let values = evaluator.eval(expr, steps)?;
    if let (Values::Ranges(ranges), Some(tally)) = (&values, &evaluator.tally) {
        tally.windows(&ranges.series, &ranges.windows, steps);
    }
    Ok(values)
}

/// The answer's form: points in time order, series of a range sorted by labels.
fn finish(values: Values, steps: &Steps, is_range: bool) -> Result<Value, QueryError> {
    let ts_ms = steps.start;
    let mut matrix = match values {
        Values::Scalar(v) if !is_range => return Ok(Value::Scalar { ts_ms, value: v[0] }),
        Values::String(value) => return Ok(Value::String { ts_ms, value }),
        Values::Vector(series) if !is_range => {
            eval::refuse_same_labels(&series)?;
            let samples = series
                .into_iter()
                .filter_map(|mut s| {
                    s.points.pop().filter(Point::is_some).map(|point| Sample { labels: s.labels, point })
                })
                .collect();
            return Ok(Value::Vector { ts_ms, samples });
        }
        Values::Scalar(v) => {
            let points = v.into_iter().enumerate().map(|(i, v)| (steps.time(i), Point::Float(v))).collect();
            return Ok(Value::Matrix(vec![SeriesPoints { labels: Arc::default(), points }]));
        }
        Values::Vector(series) => series
            .into_iter()
            .map(|s| {
                let points = s.points.into_iter().enumerate().filter(|(_, p)| p.is_some());
                SeriesPoints { labels: s.labels, points: points.map(|(i, p)| (steps.time(i), p)).collect() }
            })
            .collect::<Vec<_>>(),
        Values::Ranges(ranges) => {
            let (start, end) = ranges.windows[0];
            let inside = |t: i64| t > start && t <= end;
            let series = ranges.series.iter().map(|data| {
                let floats = data.ts.iter().zip(&data.values).map(|(t, v)| (*t, Point::Float(*v)));
                let histograms = data.histograms.iter().map(|(t, h)| (*t, Point::Histogram(h.clone())));
                let mut points: Vec<(i64, Point)> = floats.chain(histograms).filter(|p| inside(p.0)).collect();
                points.sort_by_key(|p| p.0);
                SeriesPoints { labels: data.labels.clone(), points }
            });
            series.collect()
        }
    };
    matrix.retain(|s| !s.points.is_empty());
    matrix.sort_by(|a, b| a.labels.cmp(&b.labels));
    Ok(Value::Matrix(matrix))
}
