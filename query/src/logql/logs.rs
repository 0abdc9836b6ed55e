//! Log queries: the first or last entries of a range, with their labels.

use std::{borrow::Cow, sync::Arc};

use storage::{
    ScanOrder, ScanRequest, Selector,
    model::{Table, TimeRange, Timestamp},
};

use super::{
    ast::LogQuery,
    entry::{self, Entries, Label, Need},
    error::QueryError,
    eval::Context,
    plan::{self, Pipeline, PipelineFilter, Row},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Backward,
}

#[derive(Clone, Copy, Debug)]
pub struct LogRequest {
    /// Nanoseconds, half-open.
    pub start: i64,
    pub end: i64,
    /// Entries over all streams.
    pub limit: usize,
    pub direction: Direction,
    /// Nanoseconds between returned entries of a stream; 0: all.
    pub interval: i64,
}

/// One entry of an answer.
#[derive(Clone, Debug)]
pub struct LogEntry {
    pub ts: i64,
    pub line: String,
    /// Sorted by name.
    pub labels: Vec<Label>,
}

/// Entries in the order of the direction, at most `limit`.
pub async fn log_query(ctx: &Context, query: &LogQuery, request: LogRequest) -> Result<Vec<LogEntry>, QueryError> {
    let Some(range) = TimeRange::new(Timestamp(request.start), Timestamp(request.end)) else { return Ok(Vec::new()) };
    ctx.check_range(range)?;
    let streams = ctx.store.streams(&ctx.tenant, &query.matchers, range).await?;
    if streams.is_empty() {
        return Ok(Vec::new());
    }
    let pipeline = Arc::new(Pipeline::new(query)?);
    let labels: Vec<_> = streams.iter().map(|s| s.labels.clone()).collect();
    let need = pipeline.need(Need::All);
    let label_columns = entry::columns(&need, &labels);
    let mut columns = label_columns.clone();
    columns.extend(["ts", "body"]);
    columns.sort_unstable();
    columns.dedup();
    let order = match request.direction {
        Direction::Forward => ScanOrder::TimeAscending,
        Direction::Backward => ScanOrder::TimeDescending,
    };
    // An interval drops entries behind the scan, so that the scan cannot count to the limit.
    let scan_limit = if request.interval > 0 { None } else { Some(request.limit) };
    let mut scan = ScanRequest::new(ctx.tenant.clone(), Table::Logs, range)
        .selector(Selector::Ids(streams.iter().map(|s| s.id).collect()))
        .columns(&columns)
        .order(order, scan_limit);
    scan.filter = PipelineFilter::of(&pipeline, &labels, true);
    let mut stream = ctx.store.scan(scan).await?;
    ctx.watch(stream.stats());
    let mut out: Vec<LogEntry> = Vec::new();
    let mut spacing = Spacing::new(request);
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        ctx.check()?;
        let (times, bodies) = (plan::times(&batch)?, plan::bodies(&batch)?);
        let mut entries = Entries::new(&batch, &need, &label_columns)?;
        for (i, ts) in times.iter().enumerate() {
            let mut row = Row { ts: *ts, line: Cow::Borrowed(bodies.value(i)), labels: entries.labels(i) };
            if !pipeline.run(&mut row) || !spacing.keep(row.ts) {
                continue;
            }
            out.push(LogEntry { ts: row.ts, line: row.line.into_owned(), labels: row.labels });
            if out.len() >= request.limit {
                return Ok(out);
            }
        }
    }
    Ok(out)
}

/// `interval`: entries nearer than it to the previously returned one are left out.
struct Spacing {
    interval: i64,
    last: Option<i64>,
}

impl Spacing {
    fn new(request: LogRequest) -> Self {
        Spacing { interval: request.interval, last: None }
    }

    fn keep(&mut self, ts: i64) -> bool {
        let keep = self.interval <= 0 || self.last.is_none_or(|l| ts.abs_diff(l) >= self.interval as u64);
        if keep {
            self.last = Some(ts);
        }
        keep
    }
}
