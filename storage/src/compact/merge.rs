//! Parts into one part: a k-way merge in bounded memory.
//!
//! What is below every other input's next row is copied as a slice, so that inputs that do not overlap in time cost
//! little more than reading and writing. Points with equal series and time keep the later commit's, a series keeps one row,
//! a trace's spans get their nested-set numbers; of exemplars that are the same in all columns one is kept, and all log
//! records.

use std::{io::Write, sync::Arc};

use arrow::{
    array::{
        Array, ArrayData, AsArray, BinaryArray, BooleanArray, MutableArrayData, RecordBatch, make_array,
        new_null_array,
    },
    buffer::ScalarBuffer,
    compute::{filter_record_batch, prep_null_mask_filter},
    datatypes::{Field, Int64Type, TimestampNanosecondType},
};

use super::combine::{Combine, Plain, SeriesRows, Traces, UniqueExemplars, UniquePoints};
use crate::{
    ScanRequest, ScanStats, limits,
    model::{Table, TenantId, TimeRange, schema},
    part::{PartError, PartMeta, PartReader, PartRows, PartScan, PartWriter, WriteOptions},
    scan::select::{self, RowSelector},
};

/// Slices shorter than this on average are gathered into one batch before they are written.
const SLICE_ROWS_MIN: usize = 64;

/// Which rows survive a merge, one boolean a row of a stored batch; null counts as false.
pub type KeepRows<'a> = &'a (dyn Fn(&RecordBatch) -> Result<BooleanArray, PartError> + Sync);

pub struct MergeOptions<'a> {
    pub write: WriteOptions,
    /// Rows outside are removed; series by their life.
    pub range: TimeRange,
    /// For deletes by predicate; `None`: all.
    pub keep: Option<KeepRows<'a>>,
}

impl MergeOptions<'_> {
    pub fn new(write: WriteOptions) -> Self {
        MergeOptions { write, range: TimeRange::ALL, keep: None }
    }
}

/// What a merge did. Invariant: `rows_in == part.rows + rows_deleted + rows_replaced`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    pub part: PartMeta,
    pub rows_in: u64,
    /// Outside the range or not kept.
    pub rows_deleted: u64,
    /// Duplicates of a later commit's row.
    pub rows_replaced: u64,
}

/// Merges `inputs`, given in commit order, into one part. Blocks.
///
/// Errors: an input that cannot be read or holds other rows than its footer says, an output that cannot be written.
/// What was written to `out` by then is to be thrown away.
pub fn merge<W: Write + Send>(
    inputs: &[PartReader],
    table: Table,
    options: &MergeOptions<'_>,
    out: W,
) -> Result<Merged, PartError> {
    if inputs.iter().any(|i| i.table() != table) {
        return Err(PartError::Invalid(format!("a part of another table among those of {}", table.name())));
    }
    let writer = PartWriter::new(table, &options.write, out)?;
    match table {
        Table::Logs => run(inputs, table, options, Plain(writer)),
        Table::MetricExemplars => run(inputs, table, options, UniqueExemplars::new(writer)),
        Table::MetricSamples | Table::MetricHistograms | Table::MetricSamples5m | Table::MetricSamples1h => {
            run(inputs, table, options, UniquePoints::new(writer))
        }
        Table::MetricSeries => run(inputs, table, options, SeriesRows::new(writer)),
        Table::Spans => run(inputs, table, options, Traces::new(writer)),
    }
}

fn run<W: Write + Send>(
    inputs: &[PartReader],
    table: Table,
    options: &MergeOptions<'_>,
    mut sink: impl Combine<W>,
) -> Result<Merged, PartError> {
    let stats = ScanStats::default();
    let columns: Vec<usize> = (0..schema::stored(table).fields().len()).collect();
    let scan = PartScan { columns: &columns, range: TimeRange::ALL, selector: &RowSelector::All };
    let request = ScanRequest::new(TenantId::default(), table, options.range);
    let keep = |batch: RecordBatch| keep_rows(&request, options.keep, batch);
    let mut heads = Vec::with_capacity(inputs.len());
    for input in inputs {
        heads.push(Head::new(table, input.scan(&scan, &stats)?, &keep)?);
    }
    let mut pieces = Pieces::default();
    while let Some((least, bound)) = least_of(&heads) {
        let head = &mut heads[least];
        let n = head.rows_within(least, bound);
        pieces.push(least, head, n);
        head.advance(n, &keep)?;
        if pieces.rows >= limits::SCAN_BATCH_ROWS {
            pieces.write(&mut sink)?;
        }
    }
    pieces.write(&mut sink)?;
    let rows_in = heads.iter().map(|h| h.read).sum();
    let rows_deleted = heads.iter().map(|h| h.deleted).sum();
    let expected: u64 = inputs.iter().map(PartReader::rows).sum();
    let (part, rows_replaced) = sink.finish()?;
    if rows_in != expected || rows_in != part.rows + rows_deleted + rows_replaced {
        return Err(PartError::Corrupt(format!(
            "merge of {expected} rows read {rows_in}, wrote {}, deleted {rows_deleted}, replaced {rows_replaced}",
            part.rows
        )));
    }
    Ok(Merged { part, rows_in, rows_deleted, rows_replaced })
}

fn keep_rows(
    request: &ScanRequest,
    keep: Option<KeepRows<'_>>,
    batch: RecordBatch,
) -> Result<RecordBatch, PartError> {
    let batch = if request.range == TimeRange::ALL {
        batch
    } else {
        select::select(request, &RowSelector::All, &batch, &ScanStats::default())
            .map_err(|e| PartError::Invalid(e.to_string()))?
    };
    let Some(keep) = keep else { return Ok(batch) };
    let mask = keep(&batch)?;
    if mask.len() != batch.num_rows() {
        return Err(PartError::Invalid("the predicate answered with another length".into()));
    }
    let mask = if mask.null_count() > 0 { prep_null_mask_filter(&mask) } else { mask };
    Ok(filter_record_batch(&batch, &mask)?)
}

/// Place of a row in the merge: all of its sort key, but of spans only the trace.
type Key = (u128, i64);

/// Sort keys of one batch.
enum Keys {
    Two(ScalarBuffer<i64>, ScalarBuffer<i64>, ScalarBuffer<i64>),
    One(ScalarBuffer<i64>, Option<ScalarBuffer<i64>>),
    Trace(BinaryArray),
}

/// An integer as an unsigned one of the same order.
fn biased(n: i64) -> u128 {
    u128::from(n as u64 ^ (1 << 63))
}

impl Keys {
    fn new(table: Table, batch: &RecordBatch) -> Self {
        let column = |name: &str| batch.column_by_name(name).expect("column of the stored schema");
        let int = |name: &str| column(name).as_primitive::<Int64Type>().values().clone();
        match table {
            Table::Logs => Keys::Two(
                int("stream_id"),
                int("template_id"),
                column("ts").as_primitive::<TimestampNanosecondType>().values().clone(),
            ),
            Table::Spans => Keys::Trace(column("trace_id").as_binary::<i32>().clone()),
            Table::MetricSeries => Keys::One(int("series_id"), None),
            _ => Keys::One(int("series_id"), Some(int("ts_ms"))),
        }
    }

    fn at(&self, i: usize) -> Key {
        match self {
            Keys::Two(a, b, c) => (biased(a[i]) << 64 | biased(b[i]), c[i]),
            Keys::One(a, b) => (biased(a[i]), b.as_ref().map_or(0, |b| b[i])),
            Keys::Trace(t) => {
                let (id, mut bytes) = (t.value(i), [0; 16]);
                let n = id.len().min(16);
                bytes[..n].copy_from_slice(&id[..n]);
                (u128::from_be_bytes(bytes), 0)
            }
        }
    }
}

/// Where one input stands.
struct Head<'s> {
    table: Table,
    rows: PartRows<'s>,
    batch: RecordBatch,
    keys: Keys,
    at: usize,
    ended: bool,
    read: u64,
    deleted: u64,
}

impl<'s> Head<'s> {
    fn new(
        table: Table,
        rows: PartRows<'s>,
        keep: &impl Fn(RecordBatch) -> Result<RecordBatch, PartError>,
    ) -> Result<Self, PartError> {
        let batch = RecordBatch::new_empty(schema::stored(table));
        let keys = Keys::new(table, &batch);
        let mut head = Head { table, rows, batch, keys, at: 0, ended: false, read: 0, deleted: 0 };
        head.advance(0, keep)?;
        Ok(head)
    }

    fn advance(
        &mut self,
        n: usize,
        keep: &impl Fn(RecordBatch) -> Result<RecordBatch, PartError>,
    ) -> Result<(), PartError> {
        self.at += n;
        while self.at == self.batch.num_rows() && !self.ended {
            let Some(batch) = self.rows.next() else {
                self.ended = true;
                break;
            };
            let batch = batch?;
            let rows = batch.num_rows();
            self.batch = keep(batch)?;
            self.read += rows as u64;
            self.deleted += (rows - self.batch.num_rows()) as u64;
            self.keys = Keys::new(self.table, &self.batch);
            self.at = 0;
        }
        Ok(())
    }

    /// Rows from here that come before the next row of any other input, at least one. `me`: this input's number.
    fn rows_within(&self, me: usize, bound: Option<(Key, usize)>) -> usize {
        let left = self.batch.num_rows() - self.at;
        let Some((key, other)) = bound else { return left };
        // Of equal keys the earlier commit's rows come first.
        let before = |i: usize| (self.keys.at(self.at + i), me) < (key, other);
        let mut reach = 1;
        while reach < left && before(reach) {
            reach *= 2;
        }
        // Row `reach / 2` is before the bound, row `reach` is not or does not exist.
        let (mut low, mut high) = (reach / 2 + 1, reach.min(left));
        while low < high {
            let middle = (low + high) / 2;
            if before(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low.min(left)
    }
}

/// The input with the least next row, and the next row of the second.
fn least_of(heads: &[Head<'_>]) -> Option<(usize, Option<(Key, usize)>)> {
    let mut least: Option<(Key, usize)> = None;
    let mut second = None;
    for (i, h) in heads.iter().enumerate().filter(|(_, h)| !h.ended) {
        let next = Some((h.keys.at(h.at), i));
        if least.is_none() || next < least {
            second = least;
            least = next;
        } else if second.is_none() || next < second {
            second = next;
        }
    }
    least.map(|(_, i)| (i, second))
}

/// Rows in merged order that are not written yet, as places in the batches they come from.
#[derive(Default)]
struct Pieces {
    sources: Vec<RecordBatch>,
    /// Input and [`Head::read`] of each source, which together name a batch.
    names: Vec<(usize, u64)>,
    /// Source, first row, rows.
    list: Vec<(usize, usize, usize)>,
    rows: usize,
}

impl Pieces {
    fn push(&mut self, input: usize, head: &Head<'_>, n: usize) {
        let name = (input, head.read);
        let source = self.names.iter().rposition(|k| *k == name).unwrap_or_else(|| {
            self.names.push(name);
            self.sources.push(head.batch.clone());
            self.names.len() - 1
        });
        self.list.push((source, head.at, n));
        self.rows += n;
    }

    fn write<W: Write + Send>(&mut self, sink: &mut impl Combine<W>) -> Result<(), PartError> {
        let Pieces { sources, list, rows, .. } = std::mem::take(self);
        if list.is_empty() {
            return Ok(());
        }
        if rows / list.len() >= SLICE_ROWS_MIN {
            return list.into_iter().try_for_each(|(s, at, n)| sink.push(sources[s].slice(at, n)));
        }
        sink.push(gather(&sources, &list, rows)?)
    }
}

/// The `rows` rows of `list` (source, first row, rows) as one batch. Neighbours in a source are copied at once, and a column of
/// nulls not at all.
fn gather(sources: &[RecordBatch], list: &[(usize, usize, usize)], rows: usize) -> Result<RecordBatch, PartError> {
    let schema = sources[0].schema();
    let column = |(c, field): (usize, &Arc<Field>)| {
        if sources.iter().all(|s| s.column(c).null_count() == s.num_rows()) {
            return Ok(new_null_array(field.data_type(), rows));
        }
        let data: Vec<ArrayData> = sources.iter().map(|s| s.column(c).to_data()).collect();
        let mut out = MutableArrayData::new(data.iter().collect(), false, rows);
        list.iter().try_for_each(|&(source, at, n)| out.try_extend(source, at, at + n))?;
        Ok(make_array(out.freeze()))
    };
    let columns: Result<_, arrow::error::ArrowError> = schema.fields().iter().enumerate().map(column).collect();
    Ok(RecordBatch::try_new(schema.clone(), columns?)?)
}
