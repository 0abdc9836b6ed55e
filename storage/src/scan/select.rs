//! Exact selection on a batch of the stored schema: selector, time range, row filter, projection. Head batches and parts
//! end here alike, so that pruning is never more than a hint.

use std::collections::HashSet;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, RecordBatch},
    buffer::BooleanBuffer,
    compute::{filter_record_batch, prep_null_mask_filter},
    datatypes::{Int64Type, TimestampNanosecondType},
};

use crate::{
    ScanError,
    model::{Table, TimeRange, schema::SEQ, time::NANOS_PER_MILLI},
    scan::{ScanRequest, ScanStats},
};

/// A selector in the form that rows are tested with.
pub enum RowSelector {
    All,
    Ids(HashSet<i64>),
    Trace([u8; 16]),
}

/// The id column a [`RowSelector::Ids`] tests.
pub(crate) fn id_column(table: Table) -> Option<&'static str> {
    match table {
        Table::Logs => Some("stream_id"),
        Table::Spans => None,
        _ => Some("series_id"),
    }
}

/// Event time of row `i`, nanoseconds.
pub(crate) fn times_of(table: Table, batch: &RecordBatch) -> Result<Vec<i64>, ScanError> {
    let column = column(batch, table.time_column())?;
    Ok(match table {
        Table::Logs | Table::Spans => column.as_primitive::<TimestampNanosecondType>().values().to_vec(),
        _ => {
            column.as_primitive::<Int64Type>().values().iter().map(|ms| ms.saturating_mul(NANOS_PER_MILLI)).collect()
        }
    })
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, ScanError> {
    batch.column_by_name(name).ok_or_else(|| ScanError::Internal(format!("batch has no column {name}")))
}

fn time_mask(table: Table, batch: &RecordBatch, range: TimeRange) -> Result<Option<BooleanArray>, ScanError> {
    if range == TimeRange::ALL {
        return Ok(None);
    }
    let mut bits = BooleanBufferBuilder::new(batch.num_rows());
    if table == Table::MetricSeries {
        // A series is in the range when its life overlaps it.
        let first = column(batch, "first_ms")?.as_primitive::<Int64Type>();
        let last = column(batch, "last_ms")?.as_primitive::<Int64Type>();
        for (a, b) in first.values().iter().zip(last.values()) {
            bits.append(
                range.overlaps(crate::model::Timestamp::from_millis(*a), crate::model::Timestamp::from_millis(*b)),
            );
        }
    } else {
        let (start, end) = (range.start().nanos(), range.end().nanos());
        for t in times_of(table, batch)? {
            bits.append(start <= t && t < end);
        }
    }
    Ok(Some(BooleanArray::new(bits.finish(), None)))
}

fn selector_mask(
    table: Table,
    batch: &RecordBatch,
    selector: &RowSelector,
) -> Result<Option<BooleanArray>, ScanError> {
    match selector {
        RowSelector::All => Ok(None),
        RowSelector::Ids(ids) => {
            let name = id_column(table).ok_or_else(|| ScanError::Invalid("spans have no series".into()))?;
            let column = column(batch, name)?.as_primitive::<Int64Type>();
            let mut bits = BooleanBufferBuilder::new(batch.num_rows());
            // Rows come in runs of one id: ask the set once a run.
            let (mut last, mut hit) = (None, false);
            for id in column.values() {
                if last != Some(*id) {
                    (last, hit) = (Some(*id), ids.contains(id));
                }
                bits.append(hit);
            }
            Ok(Some(BooleanArray::new(bits.finish(), None)))
        }
        RowSelector::Trace(trace) => {
            let column = column(batch, "trace_id")?.as_binary::<i32>();
            let mut bits = BooleanBufferBuilder::new(batch.num_rows());
            for i in 0..column.len() {
                bits.append(column.is_valid(i) && column.value(i) == trace);
            }
            Ok(Some(BooleanArray::new(bits.finish(), None)))
        }
    }
}

/// Which rows of `batch` (stored schema, at least the columns of [`needed_columns`]) the request wants. Without nulls.
pub(crate) fn matching(
    request: &ScanRequest,
    selector: &RowSelector,
    batch: &RecordBatch,
) -> Result<BooleanArray, ScanError> {
    let mut mask = BooleanArray::new(BooleanBuffer::new_set(batch.num_rows()), None);
    let both = |a: &BooleanArray, b: &BooleanArray| BooleanArray::new(a.values() & b.values(), None);
    if let Some(m) = time_mask(request.table, batch, request.range)? {
        mask = both(&mask, &m);
    }
    if let Some(m) = selector_mask(request.table, batch, selector)? {
        mask = both(&mask, &m);
    }
    if let Some(filter) = request.filter.as_ref().filter(|_| mask.true_count() > 0) {
        let m = filter.keep(batch)?;
        if m.len() != batch.num_rows() {
            return Err(ScanError::Internal("row filter answered with another length".into()));
        }
        mask = both(&mask, &if m.null_count() > 0 { prep_null_mask_filter(&m) } else { m });
    }
    Ok(mask)
}

/// The rows of `batch` (stored schema, at least the columns of [`needed_columns`]) that the request wants,
/// still with all columns of `batch`.
pub(crate) fn select(
    request: &ScanRequest,
    selector: &RowSelector,
    batch: &RecordBatch,
    stats: &ScanStats,
) -> Result<RecordBatch, ScanError> {
    select_timed(request, selector, batch, true, stats)
}

/// As [`select`]. Not `timed`: all rows are known to be in the time range, and their times may be missing.
pub(crate) fn select_timed(
    request: &ScanRequest,
    selector: &RowSelector,
    batch: &RecordBatch,
    timed: bool,
    stats: &ScanStats,
) -> Result<RecordBatch, ScanError> {
    ScanStats::add(&stats.rows_scanned, batch.num_rows());
    ScanStats::add(&stats.bytes_scanned, batch.get_array_memory_size());
    let mut out = batch.clone();
    if timed && let Some(mask) = time_mask(request.table, &out, request.range)? {
        out = apply(out, &mask)?;
    }
    if let Some(mask) = selector_mask(request.table, &out, selector)? {
        out = apply(out, &mask)?;
    }
    if let Some(filter) = &request.filter
        && out.num_rows() > 0
    {
        let mask = filter.keep(&out)?;
        if mask.len() != out.num_rows() {
            return Err(ScanError::Internal("row filter answered with another length".into()));
        }
        let mask = if mask.null_count() > 0 { prep_null_mask_filter(&mask) } else { mask };
        out = apply(out, &mask)?;
    }
    Ok(out)
}

fn apply(batch: RecordBatch, mask: &BooleanArray) -> Result<RecordBatch, ScanError> {
    let kept = mask.true_count();
    if kept == batch.num_rows() {
        return Ok(batch);
    }
    if kept == 0 {
        return Ok(batch.slice(0, 0));
    }
    Ok(filter_record_batch(&batch, mask)?)
}

/// The requested columns in the requested order.
pub(crate) fn project(request: &ScanRequest, batch: &RecordBatch) -> Result<RecordBatch, ScanError> {
    let Some(columns) = &request.columns else { return Ok(batch.clone()) };
    let schema = batch.schema();
    let indexes: Result<Vec<usize>, ScanError> = columns
        .iter()
        .map(|c| schema.index_of(c).map_err(|_| ScanError::Invalid(format!("no column {c}"))))
        .collect();
    Ok(batch.project(&indexes?)?)
}

/// Columns a scan must read: requested, time if `timed` or ordered by it, id or trace, and the filter's. In
/// stored-schema order.
pub(crate) fn needed_columns(
    request: &ScanRequest,
    selector: &RowSelector,
    timed: bool,
) -> Result<Vec<usize>, ScanError> {
    let schema = crate::model::schema::stored(request.table);
    let Some(columns) = &request.columns else { return Ok((0..schema.fields().len()).collect()) };
    let mut wanted: Vec<&str> = columns.iter().map(String::as_str).collect();
    if timed || request.order.is_by_time() {
        wanted.push(request.table.time_column());
        if request.table == Table::MetricSeries {
            wanted.push("last_ms");
        }
    }
    match selector {
        RowSelector::All => {}
        RowSelector::Ids(_) => wanted.extend(id_column(request.table)),
        RowSelector::Trace(_) => wanted.push("trace_id"),
    }
    if let Some(filter) = &request.filter {
        wanted.extend(filter.columns());
    }
    if request.order.is_by_time() && request.table == Table::Logs {
        wanted.push(SEQ); // decides between equal times
    }
    let mut indexes = Vec::with_capacity(wanted.len());
    for name in wanted {
        indexes.push(
            schema
                .index_of(name)
                .map_err(|_| ScanError::Invalid(format!("table {} has no column {name}", request.table.name())))?,
        );
    }
    indexes.sort_unstable();
    indexes.dedup();
    Ok(indexes)
}
