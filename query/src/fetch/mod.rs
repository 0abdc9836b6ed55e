//! The one door to storage: what the languages ask of it, in their own shapes.

mod histograms;

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch},
    datatypes::{Float64Type, Int64Type},
};
use storage::{
    SampleRequest, SampleScan, ScanError, ScanOrder, ScanRequest, Selector, SeriesInfo, Store,
    model::{Labels, Matcher, Table, TenantId, TimeRange, Timestamp},
};
use tokio_util::sync::CancellationToken;

use crate::{error::QueryError, parallel, promql::histogram::Histogram};

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

impl SeriesData {
    pub fn new(labels: Arc<Labels>) -> Self {
        SeriesData { labels, ..SeriesData::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.ts.is_empty() && self.histograms.is_empty()
    }

    /// Puts later points behind these. Times of `later` are all after those here.
    pub fn append(&mut self, later: SeriesData) {
        if self.is_empty() {
            *self = later;
            return;
        }
        let both = |starts: &mut Vec<i64>, len: usize, later: Vec<i64>, later_len: usize| {
            if !(starts.is_empty() && later.is_empty()) {
                starts.resize(len, 0);
                starts.extend(later);
                starts.resize(len + later_len, 0);
            }
        };
        both(&mut self.starts, self.ts.len(), later.starts, later.ts.len());
        both(&mut self.histogram_starts, self.histograms.len(), later.histogram_starts, later.histograms.len());
        self.ts.extend(later.ts);
        self.values.extend(later.values);
        self.histograms.extend(later.histograms);
    }

    /// As [`SeriesData::forget`], without the room for what was there.
    pub fn shrink_after(&mut self, ms: i64) {
        self.forget(ms);
        self.ts.shrink_to_fit();
        self.values.shrink_to_fit();
    }

    /// Forgets points at or before `ms`.
    pub fn forget(&mut self, ms: i64) {
        let samples = self.ts.partition_point(|t| *t <= ms);
        let histograms = self.histograms.partition_point(|h| h.0 <= ms);
        if samples > 0 {
            self.ts.drain(..samples);
            self.values.drain(..samples);
            if !self.starts.is_empty() {
                self.starts.drain(..samples);
            }
        }
        if histograms > 0 {
            self.histograms.drain(..histograms);
            if !self.histogram_starts.is_empty() {
                self.histogram_starts.drain(..histograms);
            }
        }
    }
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

    pub fn left(&self) -> usize {
        self.left
    }

    /// Of samples that are no longer held.
    pub fn give_back(&mut self, samples: usize) {
        self.left += samples;
    }

    pub fn take(&mut self, samples: usize) -> Result<(), QueryError> {
        self.left = self.left.checked_sub(samples).ok_or_else(too_many)?;
        Ok(())
    }
}

/// The error of a used up budget.
pub fn too_many() -> QueryError {
    QueryError::Execution("query processing would load too many samples into memory in query execution".to_owned())
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

/// The series of a selector, found once for all that is read of them.
#[derive(Debug, Default)]
pub struct Selected {
    /// Sorted by labels.
    infos: Vec<SeriesInfo>,
    ids: Arc<[i64]>,
    /// Id to place in `infos`, made when it is first asked for.
    index: OnceLock<HashMap<i64, usize>>,
}

impl Selected {
    pub fn len(&self) -> usize {
        self.infos.len()
    }

    pub fn is_empty(&self) -> bool {
        self.infos.is_empty()
    }

    pub(crate) fn ids(&self) -> &Arc<[i64]> {
        &self.ids
    }

    /// Where a series is among the selected ones.
    pub(crate) fn place(&self, id: i64) -> Option<usize> {
        self.index().get(&id).copied()
    }

    /// Those that `chosen` accepts, and the others.
    pub(crate) fn split(&self, chosen: impl Fn(&SeriesInfo) -> bool) -> (Selected, Selected) {
        let (ours, others) = self.infos.iter().cloned().partition(chosen);
        (Selected::of(ours), Selected::of(others))
    }

    fn of(infos: Vec<SeriesInfo>) -> Selected {
        let ids = infos.iter().map(|s| s.id).collect();
        Selected { infos, ids, index: OnceLock::new() }
    }

    pub fn labels(&self) -> impl Iterator<Item = &Arc<Labels>> {
        self.infos.iter().map(|s| &s.labels)
    }

    fn index(&self) -> &HashMap<i64, usize> {
        self.index.get_or_init(|| self.infos.iter().enumerate().map(|(i, s)| (s.id, i)).collect())
    }
}

/// What is read of points beside their times and values.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    pub starts: bool,
    /// Histograms say that they were reset where they fell, not only where their sender says so.
    pub tell_drops: bool,
}

/// The matching series that are alive in the closed interval. Errors when there are more than `series_max`.
pub async fn select(
    store: &Store,
    tenant: &TenantId,
    matchers: &[Matcher],
    (from_ms, to_ms): (i64, i64),
    series_max: usize,
) -> Result<Selected, QueryError> {
    let Some(range) = range_of_millis(from_ms, to_ms) else { return Ok(Selected::default()) };
    let infos = series(store, tenant, matchers, range).await?;
    if infos.len() > series_max {
        return Err(QueryError::Execution(format!(
            "query selects {} series, more than the limit of {series_max} series per query; add matchers",
            infos.len()
        )));
    }
    Ok(Selected::of(infos))
}

/// Samples of a share, unless a query may hold few: they stay in cache while they are evaluated.
const SHARE_SAMPLES: usize = 1 << 17;

/// The samples of selected series in a closed interval, read a share of the series at a time on any threads.
/// Without histograms and start times.
pub struct Shares {
    selected: Arc<Selected>,
    scan: SampleScan,
}

impl Shares {
    /// `samples_max`: what the query may hold.
    pub async fn open(
        store: &Store,
        tenant: &TenantId,
        selected: &Arc<Selected>,
        range: TimeRange,
        samples_max: usize,
    ) -> Result<Self, QueryError> {
        let share_rows = SHARE_SAMPLES.min(samples_max / 16).max(1);
        let request = SampleRequest { tenant: tenant.clone(), ids: selected.ids.clone(), range, share_rows };
        Ok(Shares { selected: selected.clone(), scan: store.samples(request).await? })
    }

    pub fn count(&self) -> usize {
        self.scan.shares()
    }

    /// Samples held besides those that were read.
    pub fn held(&self) -> usize {
        self.scan.held()
    }

    /// The series of a share with their places in the selection. Blocks.
    pub fn read(&self, share: usize) -> Result<Vec<(usize, SeriesData)>, QueryError> {
        let read = self.scan.read(share)?;
        Ok(read
            .into_iter()
            .map(|s| {
                let mut series = SeriesData::new(self.selected.infos[s.series].labels.clone());
                (series.ts, series.values) = (s.ts, s.values);
                sort_samples(&mut series);
                (s.series, series)
            })
            .collect())
    }
}

/// Whether any selected series may have histograms in the closed interval.
pub async fn may_have_histograms(
    store: &Store,
    tenant: &TenantId,
    selected: &Selected,
    (from_ms, to_ms): (i64, i64),
) -> Result<bool, QueryError> {
    let Some(range) = range_of_millis(from_ms.saturating_sub(HINT_MS), to_ms) else { return Ok(false) };
    Ok(store.may_have_histograms(tenant, selected.ids.clone(), range).await?)
}

/// Points with `from_ms <= ts <= to_ms` of each selected series, in their order; a series without any is empty.
///
/// Errors when the budget is used up.
pub async fn load(
    store: &Store,
    tenant: &TenantId,
    selected: &Arc<Selected>,
    (from_ms, to_ms): (i64, i64),
    reading: Reading,
    budget: &mut SampleBudget,
) -> Result<Vec<SeriesData>, QueryError> {
    let Some(range) = range_of_millis(from_ms, to_ms).filter(|_| !selected.is_empty()) else {
        return Ok(selected.infos.iter().map(|s| SeriesData::new(s.labels.clone())).collect());
    };
    let request = |table, range| {
        ScanRequest::new(tenant.clone(), table, range)
            .selector(Selector::Ids(selected.ids.clone()))
            .order(ScanOrder::Mixed, None)
    };
    let mut out = if reading.starts {
        with_starts(store, request(Table::MetricSamples, range), selected, budget).await?
    } else {
        by_shares(Shares::open(store, tenant, selected, range, budget.left()).await?, budget).await?
    };
    // The histogram before the first one tells whether that was reset.
    let earlier = range_of_millis(from_ms.saturating_sub(HINT_MS), to_ms).unwrap_or(range);
    let mut found = Vec::new();
    let wanted = request(Table::MetricHistograms, earlier).columns(&histograms::COLUMNS);
    let mut stream = store.scan(wanted).await?;
    while let Some(batch) = stream.next_of().await {
        let batch = batch?;
        budget.take(batch.1.num_rows().saturating_mul(10))?;
        found.push(batch);
    }
    // Of points with one time the one that was committed last counts.
    found.sort_by_key(|(source, _)| *source);
    if found.is_empty() {
        return Ok(out);
    }
    let selected = selected.clone();
    tokio::task::spawn_blocking(move || {
        histograms::put(&selected, &found, from_ms, reading, &mut out)?;
        Ok(out)
    })
    .await
    .map_err(|e| QueryError::Internal(e.to_string()))?
}

async fn with_starts(
    store: &Store,
    request: ScanRequest,
    selected: &Arc<Selected>,
    budget: &mut SampleBudget,
) -> Result<Vec<SeriesData>, QueryError> {
    let mut samples = Vec::new();
    let mut stream = store.scan(request.columns(&["series_id", "ts_ms", "value", "start_ms"])).await?;
    while let Some(batch) = stream.next_of().await {
        let batch = batch?;
        budget.take(batch.1.num_rows())?;
        samples.push(batch);
    }
    let selected = selected.clone();
    tokio::task::spawn_blocking(move || gather(&selected, &samples))
        .await
        .map_err(|e| QueryError::Internal(e.to_string()))?
}

/// All shares.
async fn by_shares(shares: Shares, budget: &mut SampleBudget) -> Result<Vec<SeriesData>, QueryError> {
    let left = budget.left();
    // Whoever stops waiting for it stops it.
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let work = move || {
        let taken = AtomicUsize::new(shares.held());
        let read = parallel::map(shares.count(), usize::MAX, |share| {
            if stop.is_cancelled() {
                return Err(QueryError::Canceled("expression evaluation"));
            }
            let read = shares.read(share)?;
            let n = read.iter().map(|(_, s)| s.ts.len()).sum::<usize>();
            if taken.fetch_add(n, Ordering::Relaxed) + n > left {
                return Err(too_many());
            }
            Ok(read)
        })?;
        let mut out: Vec<SeriesData> =
            shares.selected.infos.iter().map(|s| SeriesData::new(s.labels.clone())).collect();
        read.into_iter().flatten().for_each(|(n, series)| out[n] = series);
        Ok::<_, QueryError>((out, taken.into_inner() - shares.held()))
    };
    let (out, taken) = tokio::task::spawn_blocking(work).await.map_err(|e| QueryError::Internal(e.to_string()))??;
    budget.take(taken)?;
    Ok(out)
}

pub(crate) fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, QueryError> {
    batch
        .column_by_name(name)
        .ok_or_else(|| QueryError::Storage(ScanError::Internal(format!("scan gave no column {name}"))))
}

/// Rows of one series in a batch.
struct Piece {
    series: u32,
    /// Of commit order.
    source: u32,
    batch: u32,
    rows: Range<u32>,
}

/// The columns of a batch of samples.
struct Columns<'b> {
    ts: &'b [i64],
    values: &'b [f64],
    starts: Option<&'b Int64Array>,
}

/// The rows of the selected series, series by series, in commit order.
fn pieces(selected: &Selected, batches: &[(usize, RecordBatch)]) -> Result<Vec<Piece>, QueryError> {
    let mut out = Vec::new();
    for (n, (source, batch)) in batches.iter().enumerate() {
        let ids = column(batch, "series_id")?.as_primitive::<Int64Type>().values();
        let mut at = 0;
        for run in ids.chunk_by(|a, b| a == b) {
            let rows = at as u32..(at + run.len()) as u32;
            at += run.len();
            if let Some(series) = selected.index().get(&run[0]) {
                out.push(Piece { series: *series as u32, source: *source as u32, batch: n as u32, rows });
            }
        }
    }
    // Batches of one source are in their order already, and stay in it.
    out.sort_by_key(|p| (p.series, p.source));
    Ok(out)
}

impl<'b> Columns<'b> {
    fn of(batch: &'b RecordBatch) -> Result<Self, QueryError> {
        Ok(Columns {
            ts: column(batch, "ts_ms")?.as_primitive::<Int64Type>().values(),
            values: column(batch, "value")?.as_primitive::<Float64Type>().values(),
            starts: batch
                .column_by_name("start_ms")
                .map(|c| c.as_primitive::<Int64Type>())
                .filter(|c| c.null_count() < c.len()),
        })
    }
}

fn gather(selected: &Selected, samples: &[(usize, RecordBatch)]) -> Result<Vec<SeriesData>, QueryError> {
    let pieces = pieces(selected, samples)?;
    let columns = samples.iter().map(|(_, batch)| Columns::of(batch)).collect::<Result<Vec<_>, _>>()?;
    let rows = samples.iter().map(|(_, b)| b.num_rows()).sum::<usize>();
    // Where the pieces of each series begin.
    let mut first = vec![0; selected.len() + 1];
    for p in &pieces {
        first[p.series as usize + 1] += 1;
    }
    for i in 1..first.len() {
        first[i] += first[i - 1];
    }
    parallel::map(selected.len(), rows.saturating_mul(2), |n| {
        let mut series = SeriesData::new(selected.infos[n].labels.clone());
        let of = &pieces[first[n]..first[n + 1]];
        let len = of.iter().map(|p| p.rows.len()).sum();
        series.ts.reserve_exact(len);
        series.values.reserve_exact(len);
        for p in of {
            let (columns, rows) = (&columns[p.batch as usize], p.rows.start as usize..p.rows.end as usize);
            if let Some(starts) = columns.starts {
                series.starts.resize(series.ts.len(), 0);
                series.starts.extend(rows.clone().map(|i| if starts.is_valid(i) { starts.value(i) } else { 0 }));
            } else if !series.starts.is_empty() {
                series.starts.resize(series.ts.len() + rows.len(), 0);
            }
            series.ts.extend_from_slice(&columns.ts[rows.clone()]);
            series.values.extend_from_slice(&columns.values[rows]);
        }
        if series.starts.iter().all(|s| *s == 0) {
            series.starts.clear();
        }
        sort_samples(&mut series);
        Ok::<_, QueryError>(series)
    })
}

/// Ascending times; of equal ones the last in commit order stays.
fn sort_samples(series: &mut SeriesData) {
    // Without an end in between, so that several are looked at at once.
    let sorted = series.ts.iter().zip(series.ts.get(1..).unwrap_or_default()).fold(true, |all, (a, b)| all & (a < b));
    if !sorted {
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
