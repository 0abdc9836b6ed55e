//! The one door to storage: what the languages ask of it, in their own shapes.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::{Float64Type, Int32Type, Int64Type},
};
use storage::{
    ScanError, ScanRequest, Selector, SeriesInfo, Store,
    model::{Labels, Matcher, Table, TenantId, TimeRange, Timestamp, batch::HistogramRow},
};

use crate::{
    error::QueryError,
    promql::{
        histogram::{Histogram, ResetHint},
        is_stale,
    },
};

/// All points of one series in a range, ascending, one per time.
#[derive(Clone, Debug, Default)]
pub struct SeriesData {
    /// With `__name__`.
    pub labels: Arc<Labels>,
    /// Milliseconds, ascending, as long as `values`.
    pub ts: Vec<i64>,
    /// Stale markers included.
    pub values: Vec<f64>,
    /// Start times (ms, 0 = unknown) beside `ts`; empty when no sample has one.
    pub starts: Vec<i64>,
    pub histograms: Vec<(i64, Arc<Histogram>)>,
    /// Start times beside `histograms`; empty when none has one.
    pub histogram_starts: Vec<i64>,
}

/// How much before a range histograms are read for what they say of the first one in it, ms.
const HINT_MS: i64 = 300_000;

/// A budget of samples that all selectors of a query share.
#[derive(Debug)]
pub struct SampleBudget {
    left: usize,
}

impl SampleBudget {
    pub fn new(samples: usize) -> Self {
        SampleBudget { left: samples }
    }

    pub fn take(&mut self, samples: usize) -> Result<(), QueryError> {
        self.left = self.left.checked_sub(samples).ok_or_else(|| {
            QueryError::Execution(
                "query processing would load too many samples into memory in query execution".to_owned(),
            )
        })?;
        Ok(())
    }
}

/// Series alive in the range. Sorted by labels.
pub async fn series(
    store: &Store,
    tenant: &TenantId,
    matchers: &[Matcher],
    range: TimeRange,
) -> Result<Vec<SeriesInfo>, QueryError> {
    Ok(store.series(tenant, matchers, range).await?)
}

/// The half-open range of the closed interval `[from, to]` of milliseconds.
pub fn range_of_millis(from: i64, to: i64) -> Option<TimeRange> {
    TimeRange::new(Timestamp::from_millis(from), Timestamp::from_millis(to.saturating_add(1)))
}

/// Points of all matching series with `from_ms <= ts <= to_ms`.
///
/// `tell_drops`: histograms say that they were reset where they fell, not only where their sender says so.
/// Errors when more than `series_max` series match or the budget is used up.
pub async fn samples(
    store: &Store,
    tenant: &TenantId,
    matchers: &[Matcher],
    (from_ms, to_ms): (i64, i64),
    tell_drops: bool,
    series_max: usize,
    budget: &mut SampleBudget,
) -> Result<Vec<Arc<SeriesData>>, QueryError> {
    let Some(range) = range_of_millis(from_ms, to_ms) else { return Ok(Vec::new()) };
    let infos = series(store, tenant, matchers, range).await?;
    if infos.len() > series_max {
        return Err(QueryError::Execution(format!(
            "query selects {} series, more than the limit of {series_max} series per query; add matchers",
            infos.len()
        )));
    }
    if infos.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Arc<[i64]> = infos.iter().map(|s| s.id).collect();
    let request = |table, columns: &[&str]| {
        ScanRequest::new(tenant.clone(), table, range).selector(Selector::Ids(ids.clone())).columns(columns)
    };
    let mut batches = Vec::new();
    let mut stream = store.scan(request(Table::MetricSamples, &["series_id", "ts_ms", "start_ms", "value"])).await?;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        budget.take(batch.num_rows())?;
        batches.push(batch);
    }
    // The histogram before the first one tells whether that was reset.
    let earlier = range_of_millis(from_ms.saturating_sub(HINT_MS), to_ms).unwrap_or(range);
    let mut histograms = Vec::new();
    let mut stream = store
        .scan(ScanRequest::new(tenant.clone(), Table::MetricHistograms, earlier).selector(Selector::Ids(ids.clone())))
        .await?;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        budget.take(batch.num_rows().saturating_mul(10))?;
        histograms.push(batch);
    }
    tokio::task::spawn_blocking(move || gather(infos, &batches, &histograms, from_ms, tell_drops))
        .await
        .map_err(|e| QueryError::Internal(e.to_string()))?
}

pub(crate) fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, QueryError> {
    batch
        .column_by_name(name)
        .ok_or_else(|| QueryError::Storage(ScanError::Internal(format!("scan gave no column {name}"))))
}

fn gather(
    infos: Vec<SeriesInfo>,
    batches: &[RecordBatch],
    histograms: &[RecordBatch],
    from_ms: i64,
    tell_drops: bool,
) -> Result<Vec<Arc<SeriesData>>, QueryError> {
    let index: HashMap<i64, usize> = infos.iter().enumerate().map(|(i, s)| (s.id, i)).collect();
    let mut out: Vec<SeriesData> =
        infos.into_iter().map(|s| SeriesData { labels: s.labels, ..SeriesData::default() }).collect();
    for batch in batches {
        let ids = column(batch, "series_id")?.as_primitive::<Int64Type>().values();
        let ts = column(batch, "ts_ms")?.as_primitive::<Int64Type>().values();
        let values = column(batch, "value")?.as_primitive::<Float64Type>().values();
        let starts = column(batch, "start_ms")?.as_primitive::<Int64Type>();
        // Rows come in runs of one series.
        let mut at = 0;
        while at < ids.len() {
            let id = ids[at];
            let end = at + ids[at..].iter().take_while(|i| **i == id).count();
            if let Some(series) = index.get(&id).map(|i| &mut out[*i]) {
                if starts.null_count() < starts.len() {
                    series.starts.resize(series.ts.len(), 0);
                    series.starts.extend(starts.iter().skip(at).take(end - at).map(|s| s.unwrap_or(0)));
                } else if !series.starts.is_empty() {
                    series.starts.resize(series.ts.len() + end - at, 0);
                }
                series.ts.extend_from_slice(&ts[at..end]);
                series.values.extend_from_slice(&values[at..end]);
            }
            at = end;
        }
    }
    for batch in histograms {
        gather_histograms(batch, &index, &mut out)?;
    }
    for series in &mut out {
        if series.starts.iter().all(|s| *s == 0) {
            series.starts.clear();
        }
        sort_points(series);
        hint_resets(&mut series.histograms, tell_drops);
        let early = series.histograms.partition_point(|h| h.0 < from_ms);
        series.histograms.drain(..early);
        series.histogram_starts.drain(..early);
        if series.histogram_starts.iter().all(|s| *s == 0) {
            series.histogram_starts.clear();
        }
    }
    out.retain(|s| !s.ts.is_empty() || !s.histograms.is_empty());
    Ok(out.into_iter().map(Arc::new).collect())
}

fn gather_histograms(
    batch: &RecordBatch,
    index: &HashMap<i64, usize>,
    out: &mut [SeriesData],
) -> Result<(), QueryError> {
    let ints = |name| Ok::<_, QueryError>(column(batch, name)?.as_primitive::<Int64Type>());
    let small = |name| Ok::<_, QueryError>(column(batch, name)?.as_primitive::<Int32Type>());
    let floats = |name| Ok::<_, QueryError>(column(batch, name)?.as_primitive::<Float64Type>());
    let list = |name: &str, row: usize| -> Result<Option<Vec<f64>>, QueryError> {
        let lists = column(batch, name)?.as_list::<i32>();
        Ok(lists.is_valid(row).then(|| lists.value(row).as_primitive::<Float64Type>().values().to_vec()))
    };
    for row in 0..batch.num_rows() {
        let Some(series) = index.get(&ints("series_id")?.value(row)) else { continue };
        let histogram = HistogramRow {
            schema: small("schema")?.value(row),
            zero_threshold: floats("zero_threshold")?.value(row),
            zero_count: floats("zero_count")?.value(row),
            count: floats("count")?.value(row),
            sum: floats("sum")?.value(row),
            min: None,
            max: None,
            positive_offset: small("positive_offset")?.value(row),
            positive_counts: list("positive_counts", row)?.unwrap_or_default(),
            negative_offset: small("negative_offset")?.value(row),
            negative_counts: list("negative_counts", row)?.unwrap_or_default(),
            custom_bounds: list("custom_bounds", row)?,
            reset_hint: small("reset_hint")?.value(row),
            is_float: true,
        };
        let starts = ints("start_ms")?;
        out[*series].histogram_starts.push(if starts.is_valid(row) { starts.value(row) } else { 0 });
        out[*series].histograms.push((ints("ts_ms")?.value(row), Arc::new(Histogram::from(histogram))));
    }
    Ok(())
}

/// Tells of each counter histogram when it was not reset since the one before, as a Prometheus store does.
fn hint_resets(histograms: &mut [(i64, Arc<Histogram>)], tell_drops: bool) {
    for i in 1..histograms.len() {
        let (before, now) = (histograms[i - 1].1.clone(), &mut histograms[i].1);
        let known = now.hint != ResetHint::Unknown || before.hint == ResetHint::Gauge;
        if known || is_stale(before.sum) || is_stale(now.sum) {
            continue;
        }
        // A drop stays unknown: the one that fell may have come out of order.
        match (now.is_reset_since(&before), tell_drops) {
            (false, _) => Arc::make_mut(now).hint = ResetHint::NotReset,
            (true, true) => Arc::make_mut(now).hint = ResetHint::Reset,
            (true, false) => {}
        }
    }
}

/// Ascending times; of equal ones the last in commit order stays.
fn sort_points(series: &mut SeriesData) {
    if !series.ts.windows(2).all(|w| w[0] < w[1]) {
        let mut order: Vec<usize> = (0..series.ts.len()).collect();
        order.sort_by_key(|i| series.ts[*i]);
        let mut kept: Vec<usize> = Vec::with_capacity(order.len());
        for i in order {
            match kept.last_mut() {
                Some(last) if series.ts[*last] == series.ts[i] => *last = i,
                _ => kept.push(i),
            }
        }
        series.values = kept.iter().map(|i| series.values[*i]).collect();
        if !series.starts.is_empty() {
            series.starts = kept.iter().map(|i| series.starts[*i]).collect();
        }
        series.ts = kept.iter().map(|i| series.ts[*i]).collect();
    }
    if !series.histograms.windows(2).all(|w| w[0].0 < w[1].0) {
        let histograms = std::mem::take(&mut series.histograms);
        let starts = std::mem::take(&mut series.histogram_starts);
        // A stable sort by time: the last of equal ones is the last that was committed.
        let mut rows: Vec<_> = histograms.into_iter().zip(starts).collect();
        rows.sort_by_key(|((t, _), _)| *t);
        rows.dedup_by(|next, kept| {
            let same = next.0.0 == kept.0.0;
            if same {
                std::mem::swap(next, kept);
            }
            same
        });
        (series.histograms, series.histogram_starts) = rows.into_iter().unzip();
    }
}

/// All rows of one trace in commit order. `range` is a hint where to look.
pub async fn trace(
    store: &Store,
    tenant: &TenantId,
    trace_id: [u8; 16],
    range: TimeRange,
    spans_max: usize,
) -> Result<Vec<RecordBatch>, QueryError> {
    let request = ScanRequest::new(tenant.clone(), Table::Spans, range).selector(Selector::Trace(trace_id));
    let mut stream = store.scan(request).await?;
    let (mut out, mut rows) = (Vec::new(), 0);
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        rows += batch.num_rows();
        if rows > spans_max {
            return Err(QueryError::TooLarge(format!(
                "trace has more than the limit of {spans_max} spans per answer"
            )));
        }
        out.push(batch);
    }
    Ok(out)
}
