use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arrow::array::{BooleanArray, RecordBatch};
use tokio::sync::mpsc;

use crate::{
    ScanError,
    model::{Matcher, Table, TenantId, TimeRange},
};

/// Which rows of a table.
#[derive(Clone, Debug)]
pub enum Selector {
    All,
    /// Logs: on stream labels. Series and points: on series labels. Spans: not allowed.
    Labels(Vec<Matcher>),
    /// `stream_id` or `series_id`, any order.
    Ids(Arc<[i64]>),
    /// Spans, logs and exemplars of one trace.
    Trace([u8; 16]),
}

/// In which order rows come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanOrder {
    /// Older commits first, head last: of two points with equal series and time the later one counts.
    /// Within one part rows come in the table's sort order.
    Commit,
    /// As [`ScanOrder::Commit`] within a part or head batch; several of those are read at once and come mixed.
    /// [`ScanStream::next_of`] tells them apart.
    Mixed,
    /// Log records of one stream and time come in the order they arrived.
    TimeAscending,
    /// The reverse.
    TimeDescending,
}

impl ScanOrder {
    pub(crate) fn is_by_time(self) -> bool {
        matches!(self, ScanOrder::TimeAscending | ScanOrder::TimeDescending)
    }
}

/// A predicate evaluated where the rows are, before `limit` counts.
pub trait RowFilter: Send + Sync {
    /// Columns [`RowFilter::keep`] reads; they are in its batch, beside the requested ones.
    fn columns(&self) -> &[&'static str];
    /// One boolean a row; null counts as false.
    fn keep(&self, batch: &RecordBatch) -> Result<BooleanArray, ScanError>;
}

#[derive(Clone)]
pub struct ScanRequest {
    pub tenant: TenantId,
    pub table: Table,
    pub selector: Selector,
    /// On the table's time column ([`Table::time_column`]).
    pub range: TimeRange,
    /// Columns of the stored schema, in this order; `None`: all.
    pub columns: Option<Vec<String>>,
    pub filter: Option<Arc<dyn RowFilter>>,
    pub order: ScanOrder,
    /// Rows at most; with a time order these are the first in that order.
    pub limit: Option<usize>,
}

impl ScanRequest {
    pub fn new(tenant: TenantId, table: Table, range: TimeRange) -> Self {
        ScanRequest {
            tenant,
            table,
            selector: Selector::All,
            range,
            columns: None,
            filter: None,
            order: ScanOrder::Commit,
            limit: None,
        }
    }

    pub fn selector(mut self, selector: Selector) -> Self {
        self.selector = selector;
        self
    }

    pub fn columns(mut self, columns: &[&str]) -> Self {
        self.columns = Some(columns.iter().map(|c| (*c).to_owned()).collect());
        self
    }

    pub fn filter(mut self, filter: Arc<dyn RowFilter>) -> Self {
        self.filter = Some(filter);
        self
    }

    pub fn order(mut self, order: ScanOrder, limit: Option<usize>) -> Self {
        self.order = order;
        self.limit = limit;
        self
    }
}

/// What a scan cost; counts grow while it runs.
#[derive(Debug, Default)]
pub struct ScanStats {
    pub parts: AtomicU64,
    pub parts_pruned: AtomicU64,
    pub row_groups: AtomicU64,
    pub row_groups_pruned: AtomicU64,
    /// Parts or head batches that could not be read and were left out.
    pub damaged: AtomicU64,
    /// Rows looked at, after pruning.
    pub rows_scanned: AtomicU64,
    /// Rows given to the reader.
    pub rows_returned: AtomicU64,
    /// Decoded bytes of the rows looked at.
    pub bytes_scanned: AtomicU64,
    /// Bytes fetched from files.
    pub bytes_read: AtomicU64,
}

impl ScanStats {
    pub(crate) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// A batch and the number of its part or head batch in commit order.
pub(crate) type Sent = Result<(usize, RecordBatch), ScanError>;

/// The batches of a scan. Dropping it stops the scan.
pub struct ScanStream {
    receiver: mpsc::Receiver<Sent>,
    stats: Arc<ScanStats>,
}

impl ScanStream {
    pub(crate) fn new(receiver: mpsc::Receiver<Sent>, stats: Arc<ScanStats>) -> Self {
        ScanStream { receiver, stats }
    }

    /// The next batch, never an empty one; `None` at the end. After an error nothing follows.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, ScanError>> {
        Some(self.receiver.recv().await?.map(|(_, batch)| batch))
    }

    /// As [`ScanStream::next`], with the number of the part or head batch it is from: greater ones were committed later.
    pub async fn next_of(&mut self) -> Option<Result<(usize, RecordBatch), ScanError>> {
        self.receiver.recv().await
    }

    /// All remaining batches. For results known to be small.
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>, ScanError> {
        let mut out = Vec::new();
        while let Some(batch) = self.next().await {
            out.push(batch?);
        }
        Ok(out)
    }

    pub fn stats(&self) -> &Arc<ScanStats> {
        &self.stats
    }
}
