//! Runs a scan: head batches and parts of one snapshot, pruned, selected, and in a time order if asked for.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
};

use arrow::{
    array::{Array as _, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array},
    datatypes::Int64Type,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{
    request::{ScanOrder, ScanRequest, ScanStats, Sent},
    select::{self, RowSelector},
};
use crate::{
    ScanError, limits,
    model::{Table, TimeRange, Timestamp, schema},
    part::seq_of,
};

/// One unit of a scan's work: rows of a head batch or of a part.
pub(crate) trait RowSource: Send + Sync {
    /// Event time of the earliest and latest row, nanoseconds, inclusive.
    fn bounds(&self) -> (i64, i64);
    /// Gives candidate batches (at least every wanted row) with the columns `columns` of the stored schema to `visit`,
    /// in the source's order, until it answers `false`.
    fn read(
        &self,
        request: &ScanRequest,
        columns: &[usize],
        selector: &RowSelector,
        stats: &ScanStats,
        visit: &mut dyn FnMut(RecordBatch) -> Result<bool, ScanError>,
    ) -> Result<(), ScanError>;
}

/// A scan ready to run. `sources` are in commit order.
pub(crate) struct ScanJob {
    pub request: ScanRequest,
    pub selector: RowSelector,
    pub columns: Vec<usize>,
    /// The same for a source that lies in the range as a whole: its times need not be read to be tested.
    pub columns_untimed: Vec<usize>,
    pub sources: Vec<Arc<dyn RowSource>>,
    pub stats: Arc<ScanStats>,
    pub workers: usize,
}

type Sender = mpsc::Sender<Sent>;

impl ScanJob {
    /// Runs to the end on the calling (blocking) thread and its helpers; errors go to the reader.
    pub fn run(self, out: &Sender) {
        let result = match self.request.order {
            ScanOrder::Commit if keeps_commit_order(self.request.table) => self.run_in_order(out),
            ScanOrder::Commit | ScanOrder::Mixed => self.run_any_order(out),
            ScanOrder::TimeAscending | ScanOrder::TimeDescending => self.run_by_time(out),
        };
        if let Err(e) = result {
            let _ = out.blocking_send(Err(e));
        }
    }

    fn read(
        &self,
        source: &dyn RowSource,
        visit: &mut dyn FnMut(RecordBatch) -> Result<bool, ScanError>,
    ) -> Result<(), ScanError> {
        let timed = !self.covers(source);
        let columns = if timed { &self.columns } else { &self.columns_untimed };
        let done = source.read(&self.request, columns, &self.selector, &self.stats, &mut |batch| {
            let kept = select::select_timed(&self.request, &self.selector, &batch, timed, &self.stats)?;
            if kept.num_rows() == 0 { Ok(true) } else { visit(kept) }
        });
        match done {
            // What is intact is served; the reader sees from the statistics that something is missing.
            Err(ScanError::Corrupt { part, reason }) => {
                ScanStats::add(&self.stats.damaged, 1);
                tracing::error!(part, reason, "a part is damaged; its rows are left out of a query");
                Ok(())
            }
            other => other,
        }
    }

    /// Whether every row of the source is in the time range.
    fn covers(&self, source: &dyn RowSource) -> bool {
        let (min, max) = source.bounds();
        // A series' row is at no one instant.
        self.request.range == TimeRange::ALL
            || (self.request.table != Table::MetricSeries
                && self.request.range.covers(Timestamp(min), Timestamp(max)))
    }

    /// Sends rows in pieces of [`limits::SCAN_BATCH_ROWS`]; `false` once the reader has gone or has enough.
    fn emit(&self, out: &Sender, source: usize, rows: &RecordBatch, left: &AtomicUsize) -> Result<bool, ScanError> {
        let projected = select::project(&self.request, rows)?;
        let mut at = 0;
        while at < projected.num_rows() {
            let want = limits::SCAN_BATCH_ROWS.min(projected.num_rows() - at);
            let take = left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |l| Some(l.saturating_sub(want)))
                .map_or(0, |before| before.min(want));
            if take == 0 {
                return Ok(false);
            }
            ScanStats::add(&self.stats.rows_returned, take);
            if out.blocking_send(Ok((source, projected.slice(at, take)))).is_err() {
                return Ok(false);
            }
            at += take;
        }
        Ok(left.load(Ordering::Relaxed) > 0)
    }

    fn run_in_order(&self, out: &Sender) -> Result<(), ScanError> {
        let left = AtomicUsize::new(self.request.limit.unwrap_or(usize::MAX));
        for (n, source) in self.sources.iter().enumerate() {
            let mut more = true;
            self.read(source.as_ref(), &mut |rows| {
                more = self.emit(out, n, &rows, &left)?;
                Ok(more)
            })?;
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// Workers take sources from a queue; the first error ends all.
    fn each_source(
        &self,
        order: &[usize],
        work: &(dyn Fn(usize, &dyn RowSource) -> Result<bool, ScanError> + Sync),
    ) -> Result<(), ScanError> {
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let failed: Mutex<Option<ScanError>> = Mutex::new(None);
        let run = || {
            while !stop.load(Ordering::Relaxed) {
                let Some(i) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                match work(*i, self.sources[*i].as_ref()) {
                    Ok(true) => {}
                    Ok(false) => stop.store(true, Ordering::Relaxed),
                    Err(e) => {
                        stop.store(true, Ordering::Relaxed);
                        failed.lock().get_or_insert(e);
                    }
                }
            }
        };
        let helpers = self.workers.min(self.sources.len()).saturating_sub(1);
        std::thread::scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(run);
            }
            run();
        });
        failed.into_inner().map_or(Ok(()), Err)
    }

    fn run_any_order(&self, out: &Sender) -> Result<(), ScanError> {
        let left = AtomicUsize::new(self.request.limit.unwrap_or(usize::MAX));
        let order: Vec<usize> = (0..self.sources.len()).collect();
        self.each_source(&order, &|n, source| {
            let mut more = true;
            self.read(source, &mut |rows| {
                more = self.emit(out, n, &rows, &left)?;
                Ok(more)
            })?;
            Ok(more)
        })
    }

    fn run_by_time(self, out: &Sender) -> Result<(), ScanError> {
        let descending = self.request.order == ScanOrder::TimeDescending;
        let limit = self.request.limit.unwrap_or(usize::MAX);
        if limit == 0 {
            return Ok(());
        }
        // The most promising sources first, so that the bound tightens early.
        let mut order: Vec<usize> = (0..self.sources.len()).collect();
        order.sort_by_key(|i| {
            let (min, max) = self.sources[*i].bounds();
            if descending { max.saturating_neg() } else { min }
        });
        let winners = Winners::new(self.request.table, descending, limit);
        self.each_source(&order, &|i, source| {
            let (min, max) = source.bounds();
            if winners.hopeless(if descending { max } else { min }) {
                ScanStats::add(&self.stats.parts_pruned, 1);
                return Ok(true);
            }
            let mut row = 0u32;
            self.read(source, &mut |rows| {
                let n = rows.num_rows() as u32;
                winners.offer(i as u32, row, rows)?;
                row = row.saturating_add(n);
                Ok(!out.is_closed())
            })?;
            Ok(!out.is_closed())
        })?;
        let left = AtomicUsize::new(usize::MAX);
        if let Some(sorted) = winners.finish()? {
            self.emit(out, 0, &sorted, &left)?;
        }
        Ok(())
    }
}

/// Points of one series may repeat a timestamp, and the later commit counts: their order must be kept.
fn keeps_commit_order(table: Table) -> bool {
    !matches!(table, Table::Logs | Table::Spans)
}

/// (time, `seq`, source, row), all reversed for a descending order: ascending keys are the wanted order. Sources count in
/// commit order, so where there is no `seq` rows come as they were committed.
type Key = (i64, i64, u32, u32);

/// The best `limit` rows seen so far, over all workers.
struct Winners {
    table: Table,
    descending: bool,
    limit: usize,
    /// Signed time of the worst winner once there are `limit` of them; only rows before it can still win.
    bound: AtomicI64,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    batches: VecDeque<(Vec<Key>, RecordBatch)>,
    rows: usize,
    bytes: usize,
}

impl Winners {
    fn new(table: Table, descending: bool, limit: usize) -> Self {
        Winners { table, descending, limit, bound: AtomicI64::new(i64::MAX), held: Mutex::new(Held::default()) }
    }

    fn sign(&self, t: i64) -> i64 {
        if self.descending { t.saturating_neg() } else { t }
    }

    /// Whether a source whose best time is `best` cannot place a row any more.
    fn hopeless(&self, best: i64) -> bool {
        self.sign(best) > self.bound.load(Ordering::Relaxed)
    }

    fn offer(&self, source: u32, first_row: u32, rows: RecordBatch) -> Result<(), ScanError> {
        let bound = self.bound.load(Ordering::Relaxed);
        let seqs = rows.column_by_name(schema::SEQ).map(|c| c.as_primitive::<Int64Type>());
        let key = |(i, t): (usize, i64)| {
            let seq = seqs.filter(|s| s.is_valid(i)).map_or(i64::MIN, |s| s.value(i));
            let row = first_row.saturating_add(i as u32);
            if self.descending { (self.sign(t), !seq, !source, !row) } else { (t, seq, source, row) }
        };
        let mut keys: Vec<Key> = select::times_of(self.table, &rows)?.into_iter().enumerate().map(key).collect();
        let mut rows = rows;
        if bound != i64::MAX {
            let keep: Vec<u32> = (0..keys.len() as u32).filter(|i| keys[*i as usize].0 <= bound).collect();
            if keep.is_empty() {
                return Ok(());
            }
            if keep.len() < keys.len() {
                keys = keep.iter().map(|i| keys[*i as usize]).collect();
                rows = arrow::compute::take_record_batch(&rows, &UInt32Array::from(keep))?;
            }
        }
        // A batch far larger than the limit is cut down before it is held.
        let (keys, rows) = if keys.len() > self.limit.saturating_mul(2) {
            best_of(vec![(keys, rows)], self.limit)?
        } else {
            (keys, rows)
        };
        let mut held = self.held.lock();
        held.rows += keys.len();
        held.bytes += rows.get_array_memory_size();
        held.batches.push_back((keys, rows));
        if self.limit != usize::MAX && held.rows > self.limit.saturating_mul(4).max(limits::SCAN_BATCH_ROWS) {
            let all: Vec<_> = held.batches.drain(..).collect();
            let (keys, rows) = best_of(all, self.limit)?;
            if keys.len() >= self.limit
                && let Some(worst) = keys.last()
            {
                self.bound.store(worst.0, Ordering::Relaxed);
            }
            held.rows = keys.len();
            held.bytes = rows.get_array_memory_size();
            held.batches.push_back((keys, rows));
        }
        if held.bytes > limits::SCAN_SORT_BYTES_MAX {
            return Err(ScanError::TooLarge { what: "rows to sort by time", limit: limits::SCAN_SORT_BYTES_MAX });
        }
        Ok(())
    }

    fn finish(self) -> Result<Option<RecordBatch>, ScanError> {
        let held = self.held.into_inner();
        if held.batches.is_empty() {
            return Ok(None);
        }
        let (_, rows) = best_of(held.batches.into(), self.limit)?;
        Ok(Some(rows))
    }
}

/// The `limit` best rows in order.
fn best_of(batches: Vec<(Vec<Key>, RecordBatch)>, limit: usize) -> Result<(Vec<Key>, RecordBatch), ScanError> {
    let mut all: Vec<(Key, usize, usize)> = Vec::with_capacity(batches.iter().map(|(k, _)| k.len()).sum());
    for (b, (keys, _)) in batches.iter().enumerate() {
        all.extend(keys.iter().enumerate().map(|(i, k)| (*k, b, i)));
    }
    if limit < all.len() {
        all.select_nth_unstable(limit);
        all.truncate(limit);
    }
    all.sort_unstable();
    let picks: Vec<(usize, usize)> = all.iter().map(|(_, b, i)| (*b, *i)).collect();
    let records: Vec<&RecordBatch> = batches.iter().map(|(_, r)| r).collect();
    let rows = arrow::compute::interleave_record_batch(&records, &picks)?;
    Ok((all.into_iter().map(|(k, _, _)| k).collect(), rows))
}

/// The stored columns `columns` of a batch of the head schema. `first_seq`: of the WAL, what stands for its rows' arrival.
pub(crate) fn narrow(
    table: Table,
    batch: &RecordBatch,
    columns: &[usize],
    first_seq: u64,
) -> Result<RecordBatch, ScanError> {
    let Some((last, rest)) = columns.split_last().filter(|(last, _)| **last >= batch.num_columns()) else {
        return Ok(if columns.len() == batch.num_columns() { batch.clone() } else { batch.project(columns)? });
    };
    // Rows of a head stand in arrival order, so one number does for all of them.
    let seqs: ArrayRef = Arc::new(Int64Array::from_value(seq_of(first_seq, 0), batch.num_rows()));
    let mut arrays: Vec<ArrayRef> = rest.iter().map(|c| batch.column(*c).clone()).collect();
    arrays.push(seqs);
    debug_assert_eq!(schema::stored(table).field(*last).name(), schema::SEQ);
    Ok(RecordBatch::try_new(Arc::new(schema::stored(table).project(columns)?), arrays)?)
}

/// The ids of a selection that a batch of `table` certainly does not hold are no reason to read it.
pub(crate) fn may_hold(table: Table, batch: &RecordBatch, selector: &RowSelector) -> bool {
    match (table, selector) {
        (Table::Logs, RowSelector::Ids(ids)) => {
            // A dictionary value stands for one stream: a handful of hashes instead of a look at each row.
            let index = schema::stored(table).index_of("stream_labels").unwrap_or(2);
            let dictionary = batch.column(index).as_dictionary::<arrow::datatypes::Int32Type>();
            let texts = dictionary.values().as_string::<i32>();
            texts.len() > 64 || texts.iter().flatten().any(|t| ids.contains(&crate::model::labels::id_of_json(t)))
        }
        (_, RowSelector::Ids(ids)) => !ids.is_empty(),
        _ => true,
    }
}
