//! From a request to its answer: parse, resolve times, fetch what selectors need, evaluate off the async threads.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    sync::Arc,
    time::{Duration as StdDuration, Instant},
};

use storage::{Store, model::TenantId};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    ast::{At, BinaryOp, Duration, DurationKind, Edges, Expr, ExprKind, Selector, ValueType},
    eval::{self, Evaluator, Steps, Values},
    parser::parse,
    value::{Point, Sample, SeriesPoints, Value},
};
use crate::{annotations::Annotations, error::QueryError, fetch, limits::Limits, syntax::Span};

/// What differs from Prometheus' default flags.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// `__type__` and `__unit__` are dropped together with the metric name.
    pub type_and_unit_labels: bool,
    /// `rate`, `increase`, `irate` and `resets` use the start times of samples.
    pub start_timestamps: bool,
    /// Step of subqueries that name none.
    pub default_step: StdDuration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            type_and_unit_labels: false,
            start_timestamps: false,
            default_step: StdDuration::from_secs(60),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct InstantRequest {
    pub query: String,
    pub time_ms: i64,
    /// At most the engine's own.
    pub timeout: Option<StdDuration>,
    pub lookback: Option<StdDuration>,
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
}

/// A value, what is to be said about it, and what it cost.
#[derive(Clone, Debug)]
pub struct Output {
    pub value: Value,
    pub annotations: Annotations,
    pub stats: Stats,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub queue: StdDuration,
    pub prepare: StdDuration,
    pub eval: StdDuration,
    pub samples: usize,
}

/// Evaluates queries over one store. Clones share it.
#[derive(Clone)]
pub struct Engine {
    store: Store,
    limits: Arc<Limits>,
    options: Arc<EngineOptions>,
    slots: Arc<Semaphore>,
}

impl Engine {
    pub fn new(store: Store, limits: Limits, options: EngineOptions) -> Self {
        let slots = Arc::new(Semaphore::new(limits.concurrent_max.max(1)));
        Engine { store, limits: Arc::new(limits), options: Arc::new(options), slots }
    }

    /// The value at one time: a scalar, string, vector or, for a range expression, a matrix.
    pub async fn instant(&self, tenant: &TenantId, request: InstantRequest) -> Result<Output, QueryError> {
        let steps = Steps { start: request.time_ms, step: 1, count: 1 };
        let times = (request.time_ms, request.time_ms, 0);
        self.run(tenant, &request.query, steps, times, request.timeout, request.lookback).await
    }

    /// A matrix of values at `start, start + step, ... <= end`.
    pub async fn range(&self, tenant: &TenantId, request: RangeRequest) -> Result<Output, QueryError> {
        if request.step_ms <= 0 || request.end_ms < request.start_ms {
            return Err(QueryError::BadData("range needs a positive step and an end not before its start".into()));
        }
        let intervals = (request.end_ms - request.start_ms) / request.step_ms;
        let count = usize::try_from(intervals).map_err(|_| QueryError::BadData("too many steps".into()))? + 1;
        let steps = Steps { start: request.start_ms, step: request.step_ms, count };
        let times = (request.start_ms, request.end_ms, request.step_ms);
        self.run(tenant, &request.query, steps, times, request.timeout, request.lookback).await
    }

    async fn run(
        &self,
        tenant: &TenantId,
        query: &str,
        steps: Steps,
        times: (i64, i64, i64),
        timeout: Option<StdDuration>,
        lookback: Option<StdDuration>,
    ) -> Result<Output, QueryError> {
        let timeout = timeout.map_or(self.limits.timeout, |t| t.min(self.limits.timeout));
        let begun = Instant::now();
        let deadline = begun + timeout;
        // Dropping the request's future ends the evaluation on its blocking thread.
        let cancel = CancellationToken::new();
        let guard = cancel.clone().drop_guard();
        let out = tokio::time::timeout_at(
            deadline.into(),
            self.run_until(tenant, query, steps, times, lookback, deadline, cancel),
        )
        .await;
        drop(guard);
        out.unwrap_or(Err(QueryError::Timeout("expression evaluation")))
    }

    #[allow(clippy::too_many_arguments)]
    async fn run_until(
        &self,
        tenant: &TenantId,
        query: &str,
        steps: Steps,
        times: (i64, i64, i64),
        lookback: Option<StdDuration>,
        deadline: Instant,
        cancel: CancellationToken,
    ) -> Result<Output, QueryError> {
        let mut expr = parse(query)?;
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
        let bounds = self.limits.tenants.of(tenant);
        for (_, from, to) in &needs {
            bounds.check_range(to.saturating_sub(*from).saturating_mul(1_000_000)).map_err(QueryError::Execution)?;
        }
        let samples_max = self.limits.samples_of(tenant);
        let mut budget = fetch::SampleBudget::new(samples_max);
        let mut data = vec![Vec::new(); needs.len()];
        let mut stats_only = HashSet::new();
        of_stats(&expr, false, &mut stats_only);
        for (selector, from, to) in needs {
            data[selector.id] = fetch::samples(
                &self.store,
                tenant,
                &selector.matchers,
                (from, to),
                stats_only.contains(&selector.id),
                self.limits.series_of(tenant),
                &mut budget,
            )
            .await?;
        }
        let samples: usize = data.iter().flatten().map(|s| s.ts.len() + s.histograms.len()).sum();
        let samples_left = samples_max.saturating_sub(samples);
        let drop_type_and_unit = self.options.type_and_unit_labels;
        let start_timestamps = self.options.start_timestamps;
        let query = query.to_owned();
        let started = Instant::now();
        let work = move || {
            let _slot = slot;
            let evaluator = Evaluator {
                query: &query,
                data: &data,
                lookback_ms,
                times,
                default_step_ms,
                drop_type_and_unit,
                start_timestamps,
                notes: RefCell::new(Annotations::default()),
                samples_left: Cell::new(samples_left),
                deadline,
                cancel: &cancel,
            };
            let values = evaluator.eval(&expr, &steps)?;
            let value = finish(values, &steps, is_range)?;
            Ok::<_, QueryError>((value, evaluator.notes.into_inner()))
        };
        let (value, annotations) =
            tokio::task::spawn_blocking(work).await.map_err(|e| QueryError::Internal(e.to_string()))??;
        let stats = Stats { queue: prepared - queued, prepare: started - prepared, eval: started.elapsed(), samples };
        Ok(Output { value, annotations, stats })
    }
}

fn ms(d: StdDuration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX / 4)
}

/// Puts numbers in the place of duration expressions, `@ start()` and `@ end()`.
fn resolve(query: &str, expr: &mut Expr, times: (i64, i64, i64)) -> Result<(), QueryError> {
    let selector = |s: &mut Selector| {
        s.at = s.at.map(|at| fixed(at, times));
        if let Some(offset) = &mut s.offset {
            set(query, offset, times, false)?;
        }
        Ok::<_, QueryError>(())
    };
    match &mut expr.kind {
        ExprKind::Number(_) | ExprKind::String(_) => Ok(()),
        ExprKind::Paren(e) | ExprKind::Unary { operand: e, .. } => resolve(query, e, times),
        ExprKind::Binary(b) => {
            resolve(query, &mut b.left, times)?;
            resolve(query, &mut b.right, times)
        }
        ExprKind::Aggregate(a) => {
            if let Some(p) = &mut a.parameter {
                resolve(query, p, times)?;
            }
            resolve(query, &mut a.operand, times)
        }
        ExprKind::Call { function, args } => {
            if function.name == "info" {
                resolve(query, &mut args[0], times)?;
                complete_info(args);
            }
            args.iter_mut().try_for_each(|a| resolve(query, a, times))
        }
        ExprKind::Selector(s) => selector(s),
        ExprKind::Range { selector: s, range } => {
            selector(s)?;
            set(query, range, times, true)
        }
        ExprKind::Subquery(s) => {
            s.at = s.at.map(|at| fixed(at, times));
            set(query, &mut s.range, times, true)?;
            if let Some(step) = &mut s.step {
                set(query, step, times, true)?;
            }
            if let Some(offset) = &mut s.offset {
                set(query, offset, times, false)?;
            }
            resolve(query, &mut s.expr, times)
        }
    }
}

/// Info series are read at the times at which the selector they are joined to is.
fn complete_info(args: &mut [Expr]) {
    let Some(base) = args.first() else { return };
    let Some((at, offset_ms)) = reference(base) else { return };
    let span = base.span;
    if let Some(ExprKind::Selector(info)) = args.get_mut(1).map(|a| &mut a.kind) {
        info.at = at;
        info.offset = Some(Duration { kind: DurationKind::Seconds(offset_ms as f64 / 1000.0), span });
    }
}

/// Where `@` and offsets (ms) on the way to the first selector of a resolved expression move its time.
fn reference(expr: &Expr) -> Option<(Option<At>, i64)> {
    let moved = |at: Option<At>, offset: &Option<Duration>| (at, offset.as_ref().map_or(0, eval::millis));
    match &expr.kind {
        ExprKind::Number(_) | ExprKind::String(_) => None,
        ExprKind::Paren(e) | ExprKind::Unary { operand: e, .. } => reference(e),
        ExprKind::Binary(b) => reference(&b.left).or_else(|| reference(&b.right)),
        ExprKind::Aggregate(a) => reference(&a.operand),
        ExprKind::Call { args, .. } => args.iter().find_map(reference),
        ExprKind::Selector(s) | ExprKind::Range { selector: s, .. } => Some(moved(s.at, &s.offset)),
        ExprKind::Subquery(s) => {
            let (inner_at, inner_offset) = reference(&s.expr)?;
            let (at, offset) = moved(s.at, &s.offset);
            // A fixed time inside does not move with what is around it.
            Some(if inner_at.is_some() { (inner_at, inner_offset) } else { (at, offset + inner_offset) })
        }
    }
}

fn fixed(at: At, times: (i64, i64, i64)) -> At {
    match at {
        At::Millis(t) => At::Millis(t),
        At::Start => At::Millis(times.0),
        At::End => At::Millis(times.1),
    }
}

fn set(query: &str, d: &mut Duration, times: (i64, i64, i64), positive: bool) -> Result<(), QueryError> {
    let seconds = duration_seconds(query, d, times)?;
    let error = |m: &str| Err(QueryError::Syntax(crate::syntax::SyntaxError::new(query, d.span, m)));
    if positive && seconds < 0.001 {
        return error("duration must be greater than 0");
    }
    // A thousand years; sums of it stay far from the ends of i64.
    if seconds.is_nan() || seconds.abs() > 1000.0 * 365.0 * 86_400.0 {
        return error("duration out of range");
    }
    d.kind = DurationKind::Seconds(seconds);
    Ok(())
}

fn duration_seconds(query: &str, d: &Duration, times: (i64, i64, i64)) -> Result<f64, QueryError> {
    let value = |d: &Duration| duration_seconds(query, d, times);
    let error = |at: Span, m: &str| Err(QueryError::Syntax(crate::syntax::SyntaxError::new(query, at, m)));
    Ok(match &d.kind {
        DurationKind::Seconds(s) => *s,
        DurationKind::Step => times.2 as f64 / 1000.0,
        DurationKind::Range => (times.1 - times.0) as f64 / 1000.0,
        DurationKind::Negate(d) => -value(d)?,
        DurationKind::Least(a, b) => value(a)?.min(value(b)?),
        DurationKind::Greatest(a, b) => value(a)?.max(value(b)?),
        DurationKind::Binary(op, a, b) => {
            let (a, b) = (value(a)?, value(b)?);
            match op {
                BinaryOp::Add => a + b,
                BinaryOp::Sub => a - b,
                BinaryOp::Mul => a * b,
                BinaryOp::Div if b == 0.0 => return error(d.span, "division by zero"),
                BinaryOp::Mod if b == 0.0 => return error(d.span, "modulo by zero"),
                BinaryOp::Div => a / b,
                BinaryOp::Mod => a % b,
                BinaryOp::Pow => a.powf(b),
                _ => return error(d.span, "unexpected operator in duration expression"),
            }
        }
    })
}

/// Selectors of which only counts and sums of histograms are asked for. Prometheus reads those with an iterator that tells
/// every reset, which aggregations can then warn of.
fn of_stats(expr: &Expr, inside: bool, out: &mut HashSet<usize>) {
    match &expr.kind {
        ExprKind::Number(_) | ExprKind::String(_) => {}
        ExprKind::Paren(e) | ExprKind::Unary { operand: e, .. } => of_stats(e, inside, out),
        ExprKind::Binary(b) => {
            of_stats(&b.left, inside, out);
            of_stats(&b.right, inside, out);
        }
        ExprKind::Aggregate(a) => of_stats(&a.operand, inside, out),
        ExprKind::Call { function, args } => {
            let inside = match function.name {
                "histogram_count" | "histogram_sum" | "histogram_avg" => true,
                "histogram_quantile" | "histogram_quantiles" | "histogram_fraction" => false,
                _ => inside,
            };
            args.iter().for_each(|a| of_stats(a, inside, out));
        }
        ExprKind::Selector(s) | ExprKind::Range { selector: s, .. } => {
            if inside {
                out.insert(s.id);
            }
        }
        ExprKind::Subquery(s) => of_stats(&s.expr, false, out),
    }
}

/// What each selector needs, by its id: the closed interval of sample times for evaluation times in `times`.
fn plan(expr: &Expr, times: (i64, i64), lookback: i64, out: &mut Vec<(Selector, i64, i64)>) {
    let moved = |at: Option<At>, offset: Option<&Duration>| {
        let (from, to) = match at {
            Some(At::Millis(t)) => (t, t),
            _ => times,
        };
        let offset = offset.map_or(0, eval::millis);
        (from - offset, to - offset)
    };
    let mut go = |e: &Expr| plan(e, times, lookback, out);
    match &expr.kind {
        ExprKind::Number(_) | ExprKind::String(_) => {}
        ExprKind::Paren(e) | ExprKind::Unary { operand: e, .. } => go(e),
        ExprKind::Binary(b) => {
            go(&b.left);
            go(&b.right);
        }
        ExprKind::Aggregate(a) => {
            if let Some(p) = &a.parameter {
                go(p);
            }
            go(&a.operand);
        }
        ExprKind::Call { args, .. } => args.iter().for_each(go),
        ExprKind::Selector(s) => {
            let (from, to) = moved(s.at, s.offset.as_ref());
            let to = if s.edges == Edges::Smoothed { to + lookback } else { to };
            out.push((s.clone(), from - lookback + 1, to));
        }
        ExprKind::Range { selector: s, range } => {
            let (from, to) = moved(s.at, s.offset.as_ref());
            let (before, after) = match s.edges {
                Edges::Plain => (0, 0),
                Edges::Anchored => (lookback, 0),
                Edges::Smoothed => (lookback, lookback),
            };
            out.push((s.clone(), from - eval::millis(range) - before + 1, to + after));
        }
        ExprKind::Subquery(s) => {
            let (from, to) = moved(s.at, s.offset.as_ref());
            plan(&s.expr, (from - eval::millis(&s.range), to), lookback, out);
        }
    }
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
