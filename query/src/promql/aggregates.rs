//! Leaves of a query answered from aggregates of samples (`storage::downsample`) instead of samples.
//!
//! A leaf is a selector or a function of one range at the query's own steps. Which source answers it is chosen here, in one
//! place, for each selector of a query: [`Source`] says how.
//!
//! Hours that are aggregated are read as such; of the others samples are read and put into the same buckets, and steps that
//! see none of the aggregated hours are evaluated from samples as ever. So a query up to now sees the newest samples, too.
//! Series that no rule aggregates and those with native histograms are read from samples.
//!
//! Where windows begin and end with buckets nothing is lost (see `eval::aggregated` for what that means for each function).
//! Elsewhere each step is answered as of the last bucket's end before it, over whole buckets, and an info says so. A query
//! for one time reads samples at the edges of its window instead, where there are any.

use std::{collections::HashSet, sync::Arc};

use arrow::{array::AsArray, datatypes::Int64Type};
use storage::{
    ScanOrder, ScanRequest, Selector,
    downsample::{Aggregate, Columns, HOUR_MS, Resolution, fold, hour_of},
    model::Table,
};

use super::{
    engine::{Fetched, Need},
    eval::{self, Evaluator, Leaf, Seen, Steps},
    value::Point,
};
use crate::{
    error::QueryError,
    fetch::{self, Reading, Selected},
    parallel,
};

/// What a query may be answered from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Samples, and aggregates where retention has taken those; as `Auto` where a rule says so.
    #[default]
    Configured,
    /// Samples alone.
    Raw,
    /// The coarsest aggregates that give the same answer as samples.
    Auto,
    /// The coarsest aggregates up to this length of a bucket (ms), the same answer or not.
    AtMost(i64),
}

/// Series answered from aggregates of each resolution, finer first.
pub type Answered = [usize; Resolution::ALL.len()];

/// Samples that one aggregate counts for: it takes as much memory.
const WEIGHT: usize = 7;

/// Aggregates of one block of steps.
const BLOCK_AGGREGATES: i64 = 1_000_000;

/// Hours of samples, where they are not aggregated, that are read at a time.
const SAMPLES_HOURS: i64 = 2;

/// How a leaf is answered.
struct Choice {
    resolution: Resolution,
    /// Ascending.
    hours: Vec<i64>,
    /// As many steps see aggregated hours.
    steps: usize,
    /// Windows are moved to the edges of buckets.
    snapped: bool,
    /// Samples have gone: it does not count what the rules say now.
    all_series: bool,
}

/// Windows of a leaf before and after their edges are moved.
struct Windows<'a> {
    leaf: &'a Leaf,
    steps: Steps,
    offset: i64,
    /// Of the range, or the lookback.
    length: i64,
}

impl Windows<'_> {
    fn new<'a>(leaf: &'a Leaf, need: &Need, steps: Steps, lookback: i64) -> Windows<'a> {
        let length = match leaf {
            Leaf::Instant(_) => lookback,
            Leaf::Function { range, .. } => eval::millis(range),
        };
        Windows { leaf, steps, offset: need.selector.offset.as_ref().map_or(0, eval::millis), length }
    }

    fn end(&self, i: usize) -> i64 {
        self.steps.time(i) - self.offset
    }

    fn start(&self, i: usize) -> i64 {
        self.end(i) - self.length
    }

    fn is_single(&self) -> bool {
        self.steps.count == 1
    }

    /// Whether every window of several begins and ends with a bucket.
    fn fits(&self, resolution: Resolution) -> bool {
        let whole = |ms: i64| ms % resolution.millis() == 0;
        let is_instant = matches!(self.leaf, Leaf::Instant(_));
        whole(self.steps.step) && whole(self.end(0)) && (is_instant || whole(self.length))
    }

    fn seen(&self, i: usize, choice: &Choice) -> Seen {
        let bucket = choice.resolution.millis();
        let floor = |ms: i64| ms.div_euclid(bucket) * bucket;
        let covered = |ms: i64| choice.hours.binary_search(&hour_of(ms)).is_ok();
        let mut end = self.end(i);
        if choice.snapped || (self.is_single() && covered(end)) {
            end = floor(end);
        }
        let mut start = end - self.length;
        let is_instant = matches!(self.leaf, Leaf::Instant(_));
        if is_instant || choice.snapped || (self.is_single() && covered(start + 1)) {
            start = floor(start);
        }
        let asked = (!is_instant && end - start != self.length).then_some(self.length);
        Seen { start, end, asked }
    }
}

impl Fetched<'_> {
    /// The series of a leaf, where it is one and aggregates answer it.
    pub(super) async fn aggregated(
        &mut self,
        evaluator: &Evaluator,
        need: &Need,
        steps: Steps,
        reading: Reading,
        source: Source,
    ) -> Result<Option<Vec<eval::Series>>, QueryError> {
        let Some(leaf) = &need.leaf else { return Ok(None) };
        if source == Source::Raw || evaluator.start_timestamps || steps.step <= 0 {
            return Ok(None);
        }
        let windows = Windows::new(leaf, need, steps, evaluator.lookback_ms);
        let Some(choice) = self.choose(&windows, need, source) else { return Ok(None) };
        let span = match leaf {
            Leaf::Instant(span) | Leaf::Function { span, .. } => *span,
        };
        if !eval::answers(leaf) {
            if choice.all_series
                && let Leaf::Function { name, .. } = leaf
            {
                let m = format!("{name} needs samples, and those of part of this time have gone by retention");
                evaluator.info(span, &m);
            }
            return Ok(None);
        }
        let times = (need.from, need.to);
        let selected =
            Arc::new(fetch::select(self.store, self.tenant, &need.selector.matchers, times, self.series_max).await?);
        let with_histograms = self.with_histograms(&selected, times).await?;
        let rules = &self.store.config().downsample;
        let chosen = |s: &storage::SeriesInfo| {
            !with_histograms.contains(&s.id)
                && (choice.all_series || rules.accepts(self.tenant, choice.resolution, &s.labels))
        };
        let (ours, others) = selected.split(chosen);
        if ours.is_empty() {
            return Ok(None);
        }
        if (0..choice.steps).any(|i| {
            let seen = windows.seen(i, &choice);
            seen.end != windows.end(i) || seen.asked.is_some()
        }) {
            let name = choice.resolution.name();
            evaluator.info(span, &format!("answered from aggregates of {name}: windows are moved to their edges"));
        }
        self.answered[choice.resolution as usize] += ours.len();
        let (ours, others) = (Arc::new(ours), Arc::new(others));
        let mut parts = Vec::new();
        let mut points = self.over_buckets(evaluator, &windows, &choice, &ours).await?;
        let mut floats: Vec<bool> = points.iter().map(Option::is_some).collect();
        if choice.steps < steps.count {
            let rest = Steps { start: steps.time(choice.steps), step: steps.step, count: steps.count - choice.steps };
            let from = windows.start(choice.steps) + 1;
            let (later, later_floats) = self
                .streamed_points(evaluator, &need.selector, (from, need.to), leaf.clone(), rest, reading, &ours)
                .await?;
            for (i, later) in later.into_iter().enumerate() {
                floats[i] |= later_floats[i];
                let Some(later) = later else { continue };
                let all = points[i].get_or_insert_default();
                all.resize(choice.steps, Point::None);
                all.extend(later);
            }
        }
        parts.push((ours, points, floats));
        if !others.is_empty() {
            let (points, floats) =
                self.streamed_points(evaluator, &need.selector, times, leaf.clone(), steps, reading, &others).await?;
            parts.push((others, points, floats));
        }
        let (eval, leaf) = (evaluator.clone(), leaf.clone());
        let work = move || {
            let mut all: Vec<_> = parts
                .into_iter()
                .flat_map(|(selected, points, floats)| {
                    let labels: Vec<_> = selected.labels().cloned().collect();
                    labels.into_iter().zip(points).zip(floats)
                })
                .collect();
            all.sort_by(|((a, _), _), ((b, _), _)| a.cmp(b));
            let floats: Vec<bool> = all.iter().map(|(_, floats)| *floats).collect();
            let (labels, points): (Vec<_>, Vec<_>) = all.into_iter().map(|(of, _)| of).unzip();
            eval::named(&eval, &leaf, labels.into_iter(), points, &floats, steps.count)
        };
        let series = tokio::task::spawn_blocking(work).await.map_err(|e| QueryError::Internal(e.to_string()))??;
        Ok(Some(series))
    }

    fn choose(&self, windows: &Windows<'_>, need: &Need, source: Source) -> Option<Choice> {
        let (store, tenant) = (self.store, self.tenant);
        let rules = &store.config().downsample;
        let source = if source == Source::Configured && rules.is_auto(tenant) { Source::Auto } else { source };
        let kept_from = store.samples_kept_from(tenant);
        let gone = |hour: i64| kept_from.is_some_and(|from| hour * HOUR_MS < from);
        let last = windows.end(windows.steps.count - 1);
        let count = |hours: &[i64]| {
            let end = hours.last().map_or(i64::MIN, |h| (h + 1) * HOUR_MS);
            (0..windows.steps.count).take_while(|i| windows.start(*i) < end).count()
        };
        let choice = |resolution: Resolution, hours: Vec<i64>, all_series| {
            let snapped = !windows.is_single() && !windows.fits(resolution);
            let steps = count(&hours);
            (steps > 0).then_some(Choice { resolution, hours, steps, snapped, all_series })
        };
        let coarsest = match source {
            Source::Auto => i64::MAX,
            Source::AtMost(ms) => ms,
            Source::Configured | Source::Raw => 0,
        };
        for resolution in Resolution::ALL.into_iter().rev().filter(|r| r.millis() <= coarsest) {
            let exact = source == Source::Auto;
            if exact && !windows.is_single() && !windows.fits(resolution) {
                continue;
            }
            let mut hours = store.downsampled(tenant, resolution, need.from - 1, last, exact);
            if windows.is_single() {
                // At the edges samples say more, where they are.
                let (start, end) = (windows.start(0), windows.end(0));
                hours.retain(|h| gone(*h) || (h * HOUR_MS >= start && (h + 1) * HOUR_MS <= end));
            }
            // Beside many hours of samples a few aggregates are no gain.
            let all = hour_of(last) - hour_of(need.from) + 1;
            if hours.is_empty() || (exact && (hours.len() as i64) < all / 2) {
                continue;
            }
            if let Some(choice) = choice(resolution, hours, false) {
                return Some(choice);
            }
        }
        if !gone(hour_of(need.from)) {
            return None;
        }
        let hours_of = |r: Resolution| {
            let mut hours = store.downsampled(tenant, r, need.from - 1, last, false);
            hours.retain(|h| gone(*h));
            (r, hours)
        };
        // The finer one where both reach as far.
        let of_all = Resolution::ALL.map(hours_of).into_iter().filter(|(_, hours)| !hours.is_empty());
        let (resolution, hours) = of_all.min_by_key(|(_, hours)| hours[0])?;
        choice(resolution, hours, true)
    }

    /// Those of the series that have a native histogram.
    async fn with_histograms(&self, selected: &Selected, (from, to): (i64, i64)) -> Result<HashSet<i64>, QueryError> {
        let mut out = HashSet::new();
        let Some(range) = fetch::range_of_millis(from, to).filter(|_| !selected.is_empty()) else { return Ok(out) };
        let request = ScanRequest::new(self.tenant.clone(), Table::MetricHistograms, range)
            .selector(Selector::Ids(selected.ids().clone()))
            .columns(&["series_id"])
            .order(ScanOrder::Mixed, None);
        let mut stream = self.store.scan(request).await?;
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            let ids = fetch::column(&batch, "series_id")?.as_primitive::<Int64Type>().values();
            out.extend(ids.chunk_by(|a, b| a == b).map(|run| run[0]));
        }
        Ok(out)
    }

    /// Points of the steps that see aggregated hours, block by block.
    async fn over_buckets(
        &mut self,
        evaluator: &Evaluator,
        windows: &Windows<'_>,
        choice: &Choice,
        selected: &Arc<Selected>,
    ) -> Result<Vec<Option<Vec<Point>>>, QueryError> {
        let mut out: Vec<Option<Vec<Point>>> = vec![None; selected.len()];
        let block = BLOCK_AGGREGATES / selected.len().max(1) as i64 * choice.resolution.millis();
        // What windows share is read again for each block.
        let block = block.max(windows.length).max(24 * HOUR_MS);
        let mut done = 0;
        while done < choice.steps {
            evaluator.alive()?;
            let first = windows.seen(done, choice);
            let seen: Vec<Seen> = (done..choice.steps)
                .map(|i| windows.seen(i, choice))
                .take_while(|w| w.end == first.end || w.end - first.end <= block)
                .collect();
            let to = seen.last().map_or(first.end, |w| w.end);
            let held = self.budget.left();
            let buckets = self.buckets(choice, selected, (first.start, to)).await?;
            self.samples_peak = self.samples_peak.max(held - self.budget.left());
            self.budget.give_back(held - self.budget.left());
            let (eval, leaf, n) = (evaluator.clone(), windows.leaf.clone(), seen.len());
            let steps = Steps { start: windows.steps.time(done), step: windows.steps.step, count: n };
            let work = move || {
                let amount = buckets.iter().map(|b| b.len() * 20 + n * 40).sum();
                let points = parallel::map(buckets.len(), amount, |i| {
                    if i % 64 == 0 {
                        eval.alive()?;
                    }
                    let points = eval::bucket_points(&leaf, &buckets[i], &seen, eval.lookback_ms);
                    if points.is_some() {
                        eval.charge(n)?;
                    }
                    Ok::<_, QueryError>(points)
                })?;
                match (&eval.tally, &leaf) {
                    (Some(tally), Leaf::Instant(_)) => tally.values(&points, &steps, false),
                    (Some(tally), Leaf::Function { .. }) => tally.buckets(&buckets, &seen, &steps),
                    (None, _) => {}
                }
                Ok::<_, QueryError>(points)
            };
            let points =
                tokio::task::spawn_blocking(work).await.map_err(|e| QueryError::Internal(e.to_string()))??;
            for (all, new) in out.iter_mut().zip(points) {
                let Some(new) = new else { continue };
                let all = all.get_or_insert_default();
                all.resize(done, Point::None);
                all.extend(new);
            }
            done += n;
        }
        Ok(out)
    }

    /// Aggregates of each series with samples in `from < ms <= to`: stored ones of aggregated hours, made ones of others.
    async fn buckets(
        &mut self,
        choice: &Choice,
        selected: &Arc<Selected>,
        (from, to): (i64, i64),
    ) -> Result<Vec<Vec<Aggregate>>, QueryError> {
        let resolution = choice.resolution;
        let covered = |hour: i64| choice.hours.binary_search(&hour).is_ok();
        let mut out: Vec<Vec<(usize, Aggregate)>> = vec![Vec::new(); selected.len()];
        let first = from.div_euclid(resolution.millis()) * resolution.millis();
        if let Some(range) = fetch::range_of_millis(first, to - 1) {
            let request = ScanRequest::new(self.tenant.clone(), resolution.table(), range)
                .selector(Selector::Ids(selected.ids().clone()))
                .order(ScanOrder::Mixed, None);
            let mut stream = self.store.scan(request).await?;
            while let Some(batch) = stream.next_of().await {
                let (source, batch) = batch?;
                self.budget.take(batch.num_rows().saturating_mul(WEIGHT))?;
                let columns = Columns::new(resolution, &batch)?;
                for i in 0..batch.num_rows() {
                    let aggregate = columns.row(i);
                    let end = aggregate.end_ms;
                    if end > from
                        && end <= to
                        && covered(hour_of(end))
                        && let Some(place) = selected.place(columns.series[i])
                    {
                        out[place].push((source, aggregate));
                    }
                }
            }
        }
        for (start, end) in uncovered((from, to), covered) {
            let mut at = start;
            while at <= end {
                // To the end of an hour, so that no bucket is cut.
                let until = end.min((hour_of(at) + SAMPLES_HOURS) * HOUR_MS);
                let before = self.budget.left();
                let reading = Reading::default();
                let series =
                    fetch::load(self.store, self.tenant, selected, (at, until), reading, &mut self.budget).await?;
                let read = before - self.budget.left();
                self.samples_peak = self.samples_peak.max(read);
                self.budget.give_back(read);
                let mut made = Vec::new();
                for (all, series) in out.iter_mut().zip(series) {
                    made.clear();
                    fold(&series.ts, &series.values, |t| resolution.end_of(t).min(to), &mut made);
                    self.budget.take(made.len() * WEIGHT)?;
                    all.extend(made.iter().map(|a| (usize::MAX, *a)));
                }
                at = until + 1;
            }
        }
        let sorted = |mut all: Vec<(usize, Aggregate)>| {
            if !all.is_sorted_by(|a, b| a.1.end_ms < b.1.end_ms) {
                all.sort_by_key(|(source, a)| (a.end_ms, *source));
                // Of one bucket the later commit's counts.
                all.dedup_by(|next, kept| {
                    let same = next.1.end_ms == kept.1.end_ms;
                    if same {
                        *kept = *next;
                    }
                    same
                });
            }
            all.into_iter().map(|(_, a)| a).collect()
        };
        Ok(out.into_iter().map(sorted).collect())
    }
}

/// Stretches of `from < ms <= to`, both ends inclusive, in hours that are not aggregated.
fn uncovered((from, to): (i64, i64), covered: impl Fn(i64) -> bool) -> Vec<(i64, i64)> {
    let mut out: Vec<(i64, i64)> = Vec::new();
    for hour in hour_of(from + 1)..=hour_of(to) {
        if covered(hour) {
            continue;
        }
        let (start, end) = ((from + 1).max(hour * HOUR_MS + 1), to.min((hour + 1) * HOUR_MS));
        match out.last_mut() {
            Some(last) if last.1 + 1 == start => last.1 = end,
            _ => out.push((start, end)),
        }
    }
    out
}
