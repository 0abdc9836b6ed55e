//! From a request to its answer: parse, resolve times, fetch what selectors need, evaluate off the async threads.

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

use super::{
    aggregates::{Answered, Source},
    ast::{AggregateOp, At, BinaryOp, Duration, DurationKind, Edges, Expr, ExprKind, Selector, ValueType},
    eval::{self, Counted, Evaluator, Leaf, Steps, Streamed, Tally, Values},
    features::Features,
    parser::parse,
    stack,
    value::{Point, Sample, SeriesPoints, Value},
};
use crate::{
    annotations::Annotations,
    error::QueryError,
    fetch::{self, Selected, SeriesData, Shares},
    limits::{Limits, STEPS_MAX},
    recent::{Recent, Wanted},
    syntax::Span,
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

/// The least time of one piece of a streamed leaf: compacted parts hold an hour or more.
const PIECE_MS_MIN: i64 = 2 * 3_600_000;

/// Samples a piece shall have about: few beside what a query may hold, many beside what a piece costs.
const PIECE_SAMPLES: usize = 5_000_000;

/// Parts that are read at once, of each of which a row group or two are unpacked at a time (2 MiB each).
const PIECE_PARTS: usize = 48;

/// What reading a selector gives.
enum Read {
    Samples(Vec<Arc<SeriesData>>),
    /// Of its leaf.
    Computed(Vec<eval::Series>),
}

/// What a query has read so far, and what it may still.
pub(super) struct Fetched<'a> {
    pub store: &'a Store,
    pub tenant: &'a TenantId,
    pub series_max: usize,
    samples_max: usize,
    pub budget: fetch::SampleBudget,
    pub samples_peak: usize,
    pub answered: Answered,
}

impl Fetched<'_> {
    /// Counts what was at hand.
    fn taken(&mut self, found: Vec<Arc<SeriesData>>) -> Result<Vec<Arc<SeriesData>>, QueryError> {
        let samples = found.iter().map(|s| s.ts.len()).sum();
        self.budget.take(samples)?;
        self.samples_peak += samples;
        Ok(found)
    }

    async fn read(
        &mut self,
        evaluator: &Evaluator,
        need: Need,
        steps: Steps,
        reading: fetch::Reading,
    ) -> Result<Read, QueryError> {
        let times = (need.from, need.to);
        let matchers = &need.selector.matchers;
        let selected = fetch::select(self.store, self.tenant, matchers, times, self.series_max).await?;
        let selected = Arc::new(selected);
        let Some(leaf) = &need.leaf else { return self.whole(&selected, times, reading).await };
        if selected.is_empty() {
            return Ok(Read::Computed(Vec::new()));
        }
        let histograms =
            reading.starts || fetch::may_have_histograms(self.store, self.tenant, &selected, times).await?;
        if histograms && need.to - need.from <= PIECE_MS_MIN {
            return self.whole(&selected, times, reading).await;
        }
        let streamed =
            Streamed::new(need.selector.clone(), leaf.clone(), steps, evaluator.lookback_ms, selected.len());
        let streamed = if histograms {
            self.in_pieces(evaluator, streamed, &selected, times, reading).await?
        } else {
            self.in_shares(evaluator, streamed, &selected, times).await?
        };
        let (eval, grouped) = (evaluator.clone(), need.grouped);
        tokio::task::spawn_blocking(move || streamed.finish(&eval, selected.labels().cloned(), grouped))
            .await
            .map_err(|e| QueryError::Internal(e.to_string()))?
            .map(Read::Computed)
    }

    /// All samples of a selector.
    async fn whole(
        &mut self,
        selected: &Arc<Selected>,
        times: (i64, i64),
        reading: fetch::Reading,
    ) -> Result<Read, QueryError> {
        let before = self.budget.left();
        let all = fetch::load(self.store, self.tenant, selected, times, reading, &mut self.budget).await?;
        self.samples_peak += before - self.budget.left();
        Ok(Read::Samples(all.into_iter().filter(|s| !s.is_empty()).map(Arc::new).collect()))
    }

    /// The values of a leaf without histograms, whose samples are read, evaluated and forgotten some series at a time.
    async fn in_shares(
        &mut self,
        evaluator: &Evaluator,
        mut streamed: Streamed,
        selected: &Arc<Selected>,
        (from, to): (i64, i64),
    ) -> Result<Streamed, QueryError> {
        let Some(range) = fetch::range_of_millis(from, to) else { return Ok(streamed) };
        let cuts = self.store.sample_cuts(self.tenant, range, PIECE_PARTS);
        let mut start = from;
        let mut held = 0;
        for end in cuts.into_iter().map(|cut| cut - 1).chain([to]) {
            let Some(range) = fetch::range_of_millis(start, end).filter(|_| start <= end) else { continue };
            let shares = Shares::open(self.store, self.tenant, selected, range, self.samples_max).await?;
            let most = self.budget.left().saturating_sub(shares.held());
            let eval = evaluator.clone();
            let work = move || {
                let peak = streamed.push_shares(&eval, &shares, end, most)?;
                Ok::<_, QueryError>((streamed, peak + shares.held()))
            };
            let (back, peak) =
                tokio::task::spawn_blocking(work).await.map_err(|e| QueryError::Internal(e.to_string()))??;
            streamed = back;
            self.samples_peak = self.samples_peak.max(peak + held);
            self.budget.give_back(held);
            held = streamed.held();
            self.budget.take(held)?;
            start = end + 1;
        }
        self.budget.give_back(held);
        Ok(streamed)
    }

    /// The points of each selected series, and whether it has a float.
    #[allow(clippy::too_many_arguments)]
    pub(super) async fn streamed_points(
        &mut self,
        evaluator: &Evaluator,
        selector: &Selector,
        (from, to): (i64, i64),
        leaf: Leaf,
        steps: Steps,
        reading: fetch::Reading,
        selected: &Arc<Selected>,
    ) -> Result<(Vec<Option<Vec<Point>>>, Vec<bool>), QueryError> {
        let streamed = Streamed::new(selector.clone(), leaf, steps, evaluator.lookback_ms, selected.len());
        Ok(self.in_pieces(evaluator, streamed, selected, (from, to), reading).await?.into_points())
    }

    /// The values of a leaf, whose samples are read and forgotten piece by piece of time; the next piece is read while one
    /// is evaluated.
    async fn in_pieces(
        &mut self,
        evaluator: &Evaluator,
        mut streamed: Streamed,
        selected: &Arc<Selected>,
        (from, to): (i64, i64),
        reading: fetch::Reading,
    ) -> Result<Streamed, QueryError> {
        let mut length = PIECE_MS_MIN;
        let mut start = from;
        // What is read and not yet evaluated, up to when, and its samples.
        let mut waiting: Option<(Vec<SeriesData>, i64, usize)> = None;
        let mut held = 0;
        loop {
            let end = if start > to { None } else { Some(piece_end(start, length).min(to)) };
            let before = self.budget.left();
            let read = async {
                match end {
                    Some(end) => {
                        let times = (start, end);
                        fetch::load(self.store, self.tenant, selected, times, reading, &mut self.budget)
                            .await
                            .map(Some)
                    }
                    None => Ok(None),
                }
            };
            let (eval, taken) = (evaluator.clone(), waiting.take());
            let evaluated = async move {
                let work = move || {
                    let Some((samples, until, n)) = taken else { return Ok((streamed, 0)) };
                    streamed.push(&eval, samples, until)?;
                    Ok::<_, QueryError>((streamed, n))
                };
                tokio::task::spawn_blocking(work).await.map_err(|e| QueryError::Internal(e.to_string()))?
            };
            let (read, evaluated) = tokio::join!(read, evaluated);
            let (back, n) = evaluated?;
            streamed = back;
            let new = before - self.budget.left();
            self.samples_peak = self.samples_peak.max(new + n + held);
            // Of the piece that was evaluated only what the next steps see is still there.
            let kept = streamed.held().min(n + held);
            self.budget.give_back(n + held - kept);
            held = kept;
            match (read?, end) {
                (Some(samples), Some(end)) => {
                    waiting = Some((samples, end, new));
                    // As many samples as wanted, going by the piece before.
                    let aim = PIECE_SAMPLES.min(self.samples_max / 8);
                    let wanted = (aim as f64 / new.max(1) as f64) * (end - start + 1) as f64;
                    // Slowly, for what a piece had says little of the next one.
                    let most = length.saturating_mul(2);
                    length = (wanted as i64).min(most).max(PIECE_MS_MIN);
                    start = end + 1;
                }
                _ => break,
            }
        }
        self.budget.give_back(held);
        Ok(streamed)
    }
}

/// The last millisecond before a full hour, `length` or somewhat less after `start`: parts end there.
fn piece_end(start: i64, length: i64) -> i64 {
    const HOUR_MS: i64 = 3_600_000;
    let end = (start.saturating_add(length)).div_euclid(HOUR_MS) * HOUR_MS;
    if end > start { end - 1 } else { start.saturating_add(length) }
}

/// Samples that a selector needs.
pub(super) struct Need {
    pub selector: Selector,
    /// Closed interval of sample times, ms.
    pub from: i64,
    pub to: i64,
    /// What is computed of them while they are read, where nothing else is.
    pub leaf: Option<Leaf>,
    /// An aggregation takes the leaf's values, which looks at other labels than the name.
    grouped: bool,
}

impl Need {
    fn wanted(&self, at_ms: i64) -> Wanted {
        Wanted { matchers: self.selector.matchers.clone(), from_ms: self.from, to_ms: self.to, at_ms }
    }
}

/// Notes of each need whether its selector can be evaluated as it is read.
fn leaves(expr: &Expr, needs: &mut [Need]) {
    let note = |s: &Selector, leaf: Leaf, needs: &mut [Need]| {
        if s.at.is_none()
            && s.edges == Edges::Plain
            && let Some(need) = needs.iter_mut().find(|n| n.selector.id == s.id)
        {
            need.leaf = Some(leaf);
        }
    };
    match &expr.kind {
        // Steps of a subquery are its own.
        ExprKind::Number(_) | ExprKind::String(_) | ExprKind::Range { .. } | ExprKind::Subquery(_) => {}
        ExprKind::Paren(e) | ExprKind::Unary { operand: e, .. } => leaves(e, needs),
        ExprKind::Binary(b) => {
            leaves(&b.left, needs);
            leaves(&b.right, needs);
        }
        ExprKind::Aggregate(a) => {
            a.parameter.iter().for_each(|p| leaves(p, needs));
            leaves(&a.operand, needs);
            // The others make labels of all labels, or choose by them.
            let groups = !matches!(a.op, AggregateOp::CountValues | AggregateOp::LimitRatio);
            if groups
                && !a.grouping.iter().any(|name| name == "__name__")
                && let ExprKind::Call { args, .. } = &a.operand.inner().kind
                && let Some(ExprKind::Range { selector, .. }) = args.first().map(|a| &a.inner().kind)
            {
                needs.iter_mut().filter(|n| n.selector.id == selector.id).for_each(|n| n.grouped = true);
            }
        }
        ExprKind::Selector(s) => note(s, Leaf::Instant(expr.span), needs),
        ExprKind::Call { function, args } => {
            if eval::is_plain(function.name) {
                if let ExprKind::Range { selector, range } = &args[0].inner().kind {
                    let leaf = Leaf::Function { name: function.name, range: range.clone(), span: args[0].span };
                    note(selector, leaf, needs);
                }
                return;
            }
            // These read the samples' own times, or look at labels of selectors.
            if !matches!(function.name, "timestamp" | "start_timestamp" | "info") {
                args.iter().for_each(|a| leaves(a, needs));
            }
        }
    }
}

/// Whether start times are asked for by name.
fn asks_for_starts(expr: &Expr) -> bool {
    let mut found = false;
    expr.walk(&mut |e| {
        found |= matches!(&e.kind, ExprKind::Call { function, .. } if function.name == "start_timestamp");
    });
    found
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
fn plan(expr: &Expr, times: (i64, i64), lookback: i64, out: &mut Vec<Need>) {
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
            out.push(Need { selector: s.clone(), from: from - lookback + 1, to, leaf: None, grouped: false });
        }
        ExprKind::Range { selector: s, range } => {
            let (from, to) = moved(s.at, s.offset.as_ref());
            let (before, after) = match s.edges {
                Edges::Plain => (0, 0),
                Edges::Anchored => (lookback, 0),
                Edges::Smoothed => (lookback, lookback),
            };
            let from = from - eval::millis(range) - before + 1;
            out.push(Need { selector: s.clone(), from, to: to + after, leaf: None, grouped: false });
        }
        ExprKind::Subquery(s) => {
            let (from, to) = moved(s.at, s.offset.as_ref());
            plan(&s.expr, (from - eval::millis(&s.range), to), lookback, out);
        }
    }
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
