//! Range aggregations: entries to series over steps.
//!
//! An entry at `ts` counts at every step `t` with `t - range - offset < ts <= t - offset`, which is one run of steps: two
//! additions into an array of differences, whatever the range. A running sum gives the counts at the end.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use arrow::array::RecordBatch;
use storage::{
    ScanRequest, Selector,
    model::{Labels, MatchOp, Table, TimeRange, Timestamp},
};

use super::{
    ast::{Grouping, RangeAggregation, RangeOp},
    entry::{self, Entries, Label, Need},
    error::QueryError,
    eval::Context,
    limits,
    plan::{self, Pipeline, PipelineFilter, Row},
    stage::label_filter::ERROR,
    vector::Series,
};

/// Evaluation times, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    pub start: i64,
    /// At least 1.
    pub step: i64,
    pub count: usize,
}

impl Steps {
    pub fn instant(time: i64) -> Self {
        Steps { start: time, step: 1, count: 1 }
    }

    pub fn at(&self, i: usize) -> i64 {
        self.start.saturating_add(self.step.saturating_mul(i as i64))
    }

    fn last(&self) -> i64 {
        self.at(self.count - 1)
    }
}

/// Which steps an entry counts at.
struct Windows {
    steps: Steps,
    range: i64,
    offset: i64,
    /// Half-open interval of times for which `run` holds.
    from: i64,
    to: i64,
    run: (usize, usize),
}

impl Windows {
    fn new(steps: Steps, range: i64, offset: i64) -> Self {
        Windows { steps, range, offset, from: 0, to: 0, run: (0, 0) }
    }

    /// First step and the one behind the last; empty if equal. Entries near in time share the answer.
    #[inline]
    fn run(&mut self, ts: i64) -> (usize, usize) {
        if ts < self.from || ts >= self.to {
            self.find(ts);
        }
        self.run
    }

    fn find(&mut self, ts: i64) {
        let Steps { start, step, count } = self.steps;
        let (start, step, ts, n) = (i128::from(start), i128::from(step), i128::from(ts), count as i128);
        let (range, offset) = (i128::from(self.range), i128::from(self.offset));
        let ceil = |a: i128| -> i128 { (a + step - 1).div_euclid(step) };
        // The first step at or behind the entry, and the first at which it has left the window.
        let low = ceil(ts + offset - start);
        let high = ceil(ts + offset + range - start);
        self.run = (low.clamp(0, n) as usize, high.clamp(0, n) as usize);
        // Both stay the same for all times in (previous border, next border].
        let from = ((low - 1) * step).max((high - 1) * step - range) + start - offset + 1;
        let to = (low * step).min(high * step - range) + start - offset + 1;
        let clamp = |v: i128| v.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        (self.from, self.to) = (clamp(from), clamp(to));
    }
}

/// What rows are grouped by.
#[derive(Clone, Debug)]
pub enum GroupBy {
    /// Every distinct label set is a series.
    All,
    Some(Grouping),
}

impl GroupBy {
    fn need(&self) -> Need {
        match self {
            GroupBy::Some(g) if !g.without => Need::names(g.labels.iter().cloned()),
            _ => Need::All,
        }
    }

    fn labels(&self, labels: &[Label]) -> Labels {
        let kept = |l: &&Label| match self {
            GroupBy::All => true,
            GroupBy::Some(g) => g.labels.iter().any(|n| **n == *l.name) != g.without,
        };
        Labels::from_pairs(labels.iter().filter(kept).map(|l| (&*l.name, &*l.value)))
    }
}

/// Counts and bytes by group and step.
struct Counts {
    windows: Windows,
    stride: usize,
    groups: HashMap<Labels, u32>,
    labels: Vec<Labels>,
    counts: Vec<i64>,
    bytes: Option<Vec<i64>>,
}

impl Counts {
    fn group(&mut self, labels: Labels) -> Result<u32, QueryError> {
        if let Some(g) = self.groups.get(&labels) {
            return Ok(*g);
        }
        let cells = (self.labels.len() + 1) * self.stride;
        if cells > limits::CELLS_MAX {
            return Err(QueryError::Invalid(format!(
                "query needs more than {} series times steps in one range aggregation; use fewer steps or group by fewer labels",
                limits::CELLS_MAX
            )));
        }
        let g = self.labels.len() as u32;
        self.labels.push(labels.clone());
        self.groups.insert(labels, g);
        self.counts.resize(cells, 0);
        if let Some(b) = &mut self.bytes {
            b.resize(cells, 0);
        }
        Ok(g)
    }

    #[inline]
    fn add(&mut self, group: u32, ts: i64, bytes: usize) {
        let (low, high) = self.windows.run(ts);
        if low < high {
            let base = group as usize * self.stride;
            self.counts[base + low] += 1;
            self.counts[base + high] -= 1;
            if let Some(b) = &mut self.bytes {
                b[base + low] += bytes as i64;
                b[base + high] -= bytes as i64;
            }
        }
    }

    fn finish(self, op: RangeOp, range: i64) -> Vec<Series> {
        let seconds = range as f64 / 1e9;
        let steps = self.stride - 1;
        let mut out = Vec::with_capacity(self.labels.len());
        for (g, labels) in self.labels.into_iter().enumerate() {
            let base = g * self.stride;
            let (mut count, mut bytes) = (0_i64, 0_i64);
            let mut values = Vec::with_capacity(steps);
            for t in 0..steps {
                count += self.counts[base + t];
                if let Some(b) = &self.bytes {
                    bytes += b[base + t];
                }
                let value = match op {
                    RangeOp::Rate => count as f64 / seconds,
                    RangeOp::Bytes => bytes as f64,
                    RangeOp::BytesRate => bytes as f64 / seconds,
                    _ => count as f64,
                };
                values.push((count > 0).then_some(value));
            }
            if values.iter().any(Option::is_some) {
                out.push(Series { labels, values });
            }
        }
        out
    }
}

/// Evaluates a range aggregation, its entries summed by `group`.
pub async fn evaluate(
    ctx: &Context,
    agg: &RangeAggregation,
    steps: Steps,
    group: &GroupBy,
) -> Result<Vec<Series>, QueryError> {
    if agg.unwrap.is_some() {
        return Err(QueryError::unsupported(format!("`unwrap` (in {})", agg.op.name())));
    }
    match agg.op {
        RangeOp::Absent => absent(ctx, agg, steps).await,
        RangeOp::Count | RangeOp::Rate | RangeOp::Bytes | RangeOp::BytesRate => counts(ctx, agg, steps, group).await,
        other => Err(QueryError::unsupported(format!("`{}`", other.name()))),
    }
}

async fn counts(
    ctx: &Context,
    agg: &RangeAggregation,
    steps: Steps,
    group: &GroupBy,
) -> Result<Vec<Series>, QueryError> {
    let start = steps.start.saturating_sub(agg.range).saturating_sub(agg.offset).saturating_add(1);
    let end = steps.last().saturating_sub(agg.offset).saturating_add(1);
    let Some(range) = TimeRange::new(Timestamp(start), Timestamp(end)) else { return Ok(Vec::new()) };
    ctx.check_range(range)?;
    let streams = ctx.store.streams(&ctx.tenant, &agg.query.matchers, range).await?;
    if streams.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = Pipeline::new(&agg.query)?;
    if group.need() == Need::names([]) {
        pipeline = pipeline.without_parsers();
    }
    let pipeline = Arc::new(pipeline);
    let labels: Vec<Arc<Labels>> = streams.iter().map(|s| s.labels.clone()).collect();
    let bytes = matches!(agg.op, RangeOp::Bytes | RangeOp::BytesRate);
    let mut out_need = group.need();
    if pipeline.has_row_stages() {
        out_need = out_need.merge(Need::names([ERROR.to_owned()]));
    }
    let need = pipeline.need(out_need);
    let label_columns = entry::columns(&need, &labels);
    let mut columns = label_columns.clone();
    columns.push("ts");
    if bytes || !pipeline.labels_only() {
        columns.push("body");
    }
    columns.sort_unstable();
    columns.dedup();
    let mut scan = ScanRequest::new(ctx.tenant.clone(), Table::Logs, range)
        .selector(Selector::Ids(streams.iter().map(|s| s.id).collect()))
        .columns(&columns);
    scan.filter = PipelineFilter::of(&pipeline, &labels, false);
    let mut stream = ctx.store.scan(scan).await?;
    ctx.watch(stream.stats());
    let mut counts = Counts {
        windows: Windows::new(steps, agg.range, agg.offset),
        stride: steps.count + 1,
        groups: HashMap::new(),
        labels: Vec::new(),
        counts: Vec::new(),
        bytes: bytes.then(Vec::new),
    };
    let grouped = matches!(group, GroupBy::Some(g) if g.labels.iter().any(|l| l == ERROR) && !g.without);
    let batch_plan =
        BatchPlan { pipeline: &pipeline, need: &need, columns: &label_columns, group, allow_error: grouped };
    while let Some(batch) = stream.next().await {
        ctx.check()?;
        batch_plan.add(&batch?, bytes, &mut counts)?;
    }
    Ok(counts.finish(agg.op, agg.range))
}

struct BatchPlan<'a> {
    pipeline: &'a Pipeline,
    need: &'a Need,
    columns: &'a [&'static str],
    group: &'a GroupBy,
    /// The query groups by `__error__`, so errors are data.
    allow_error: bool,
}

impl BatchPlan<'_> {
    fn add(&self, batch: &RecordBatch, bytes: bool, out: &mut Counts) -> Result<(), QueryError> {
        let times = plan::times(batch)?;
        let bodies = if bytes { Some(plan::bodies(batch)?) } else { None };
        let length = |i: usize| bodies.map_or(0, |b| b.value(i).len());
        if self.columns.is_empty() && !self.pipeline.has_row_stages() {
            // No label is looked at: one group.
            let g = out.group(Labels::default())?;
            for (i, ts) in times.iter().enumerate() {
                out.add(g, *ts, length(i));
            }
            return Ok(());
        }
        let mut entries = Entries::new(batch, self.need, self.columns)?;
        if !self.pipeline.labels_only() || entries.has_row_labels() {
            let lines = if self.pipeline.labels_only() { None } else { Some(plan::bodies(batch)?) };
            for (i, ts) in times.iter().enumerate() {
                let line = Cow::Borrowed(lines.or(bodies).map_or("", |b| b.value(i)));
                let mut row = Row { ts: *ts, line, labels: entries.labels(i) };
                if self.pipeline.run(&mut row) {
                    let g = self.group_of(&row, out)?;
                    out.add(g, *ts, if bytes { row.line.len() } else { 0 });
                }
            }
            return Ok(());
        }
        // Labels decide alone: once a combination of keys and level of the line. `None`: the entry is dropped.
        let mut known: HashMap<(u32, u8), Option<u32>> = HashMap::new();
        let mut last = None;
        for (i, ts) in times.iter().enumerate() {
            let combination = entries.combination(i);
            let key = (combination, entries.line_level(i, combination));
            let group = match last {
                Some((k, g)) if k == key => g,
                _ => {
                    let g = match known.get(&key) {
                        Some(g) => *g,
                        None => {
                            let mut row = Row { ts: *ts, line: Cow::Borrowed(""), labels: entries.labels(i) };
                            let g = if self.pipeline.run(&mut row) { Some(self.group_of(&row, out)?) } else { None };
                            known.insert(key, g);
                            g
                        }
                    };
                    last = Some((key, g));
                    g
                }
            };
            if let Some(g) = group {
                out.add(g, *ts, length(i));
            }
        }
        Ok(())
    }

    fn group_of(&self, row: &Row<'_>, out: &mut Counts) -> Result<u32, QueryError> {
        if !self.allow_error
            && let Some(code) = row.get(ERROR)
        {
            return Err(pipeline_error(code, &row.labels));
        }
        out.group(self.group.labels(&row.labels))
    }
}

/// Loki's text for a sample with an error.
pub fn pipeline_error(code: &str, labels: &[Label]) -> QueryError {
    let all = Labels::from_pairs(labels.iter().map(|l| (&*l.name, &*l.value)));
    QueryError::Pipeline(format!(
        "pipeline error: '{code}' for series: '{all}'.\nUse a label filter to intentionally skip this error. (e.g | __error__!=\"{code}\").\nTo skip all potential errors you can match empty errors.(e.g __error__=\"\")\nThe label filter can also be specified after unwrap. (e.g | unwrap latency | __error__=\"\" )\n"
    ))
}

/// 1 where no entry matched, with the labels that the selector fixes.
async fn absent(ctx: &Context, agg: &RangeAggregation, steps: Steps) -> Result<Vec<Series>, QueryError> {
    let grouping = GroupBy::Some(Grouping { without: false, labels: vec![ERROR.to_owned()] });
    let present = counts(ctx, agg, steps, &grouping).await?;
    let values: Vec<Option<f64>> =
        (0..steps.count).map(|t| present.iter().all(|s| s.values[t].is_none()).then_some(1.0)).collect();
    if values.iter().all(Option::is_none) {
        return Ok(Vec::new());
    }
    let matchers = &agg.query.matchers;
    let fixed = matchers
        .iter()
        .filter(|m| m.op() == MatchOp::Eq && matchers.iter().filter(|o| o.name() == m.name()).count() == 1)
        .map(|m| (m.name(), m.value()));
    Ok(vec![Series { labels: Labels::from_pairs(fixed), values }])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_entry_counts_where_the_definition_says(
            start in -50i64..50, step in 1i64..20, count in 1usize..12, range in 0i64..40, offset in -30i64..30,
            times in prop::collection::vec(-150i64..400, 1..40),
        ) {
            let steps = Steps { start, step, count };
            let mut windows = Windows::new(steps, range, offset);
            for ts in times {
                let (low, high) = windows.run(ts);
                for i in 0..count {
                    let t = steps.at(i);
                    let want = t - range - offset < ts && ts <= t - offset;
                    prop_assert_eq!(want, low <= i && i < high, "ts {} step {}", ts, i);
                }
            }
        }
    }
}
