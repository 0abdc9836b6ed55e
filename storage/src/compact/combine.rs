//! What becomes of merged rows on their way into a part, by table.

use std::{collections::HashMap, io::Write, ops::Range, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch, UInt32Array, new_null_array,
    },
    compute::{concat_batches, filter_record_batch, take_record_batch},
    datatypes::{DataType, Int64Type, TimestampNanosecondType},
};

use crate::{
    limits,
    model::{Table, schema},
    part::{Distinct, PartError, PartMeta, PartWriter},
};

/// Takes rows in merged order, writes what is left of them.
pub(super) trait Combine<W: Write + Send> {
    fn push(&mut self, batch: RecordBatch) -> Result<(), PartError>;
    /// The part, and how many rows a later one replaced.
    fn finish(self) -> Result<(PartMeta, u64), PartError>;
}

/// Keeps everything.
pub(super) struct Plain<W: Write + Send>(pub(super) PartWriter<W>);

impl<W: Write + Send> Combine<W> for Plain<W> {
    fn push(&mut self, batch: RecordBatch) -> Result<(), PartError> {
        self.0.write(&batch)
    }

    fn finish(self) -> Result<(PartMeta, u64), PartError> {
        Ok((self.0.finish()?.0, 0))
    }
}

fn ints<'a>(batch: &'a RecordBatch, name: &str) -> &'a [i64] {
    batch.column_by_name(name).expect("column of the stored schema").as_primitive::<Int64Type>().values()
}

/// Of points with equal series and time, keeps the last.
pub(super) struct UniquePoints<W: Write + Send> {
    writer: PartWriter<W>,
    /// The next batch decides whether its last row stays.
    held: Option<RecordBatch>,
    replaced: u64,
}

impl<W: Write + Send> UniquePoints<W> {
    pub(super) fn new(writer: PartWriter<W>) -> Self {
        UniquePoints { writer, held: None, replaced: 0 }
    }

    fn write(&mut self, batch: &RecordBatch, next: Option<(i64, i64)>) -> Result<(), PartError> {
        let (ids, times) = (ints(batch, "series_id"), ints(batch, "ts_ms"));
        let key = |i: usize| ids.get(i).map(|id| (*id, times[i])).or(next);
        let mask: BooleanArray = (0..ids.len()).map(|i| Some(key(i) != key(i + 1))).collect();
        let dropped = ids.len() - mask.true_count();
        self.replaced += dropped as u64;
        if dropped == 0 { self.writer.write(batch) } else { self.writer.write(&filter_record_batch(batch, &mask)?) }
    }
}

impl<W: Write + Send> Combine<W> for UniquePoints<W> {
    fn push(&mut self, batch: RecordBatch) -> Result<(), PartError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let first = (ints(&batch, "series_id")[0], ints(&batch, "ts_ms")[0]);
        if let Some(held) = self.held.replace(batch) {
            self.write(&held, Some(first))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(PartMeta, u64), PartError> {
        if let Some(held) = self.held.take() {
            self.write(&held, None)?;
        }
        Ok((self.writer.finish()?.0, self.replaced))
    }
}

/// Of exemplars that are the same in all columns, keeps one.
pub(super) struct UniqueExemplars<W: Write + Send> {
    writer: PartWriter<W>,
    distinct: Distinct,
    replaced: u64,
}

impl<W: Write + Send> UniqueExemplars<W> {
    pub(super) fn new(writer: PartWriter<W>) -> Self {
        UniqueExemplars { writer, distinct: Distinct::default(), replaced: 0 }
    }
}

impl<W: Write + Send> Combine<W> for UniqueExemplars<W> {
    fn push(&mut self, batch: RecordBatch) -> Result<(), PartError> {
        let rows = batch.num_rows();
        let kept = self.distinct.filter(batch)?;
        self.replaced += (rows - kept.num_rows()) as u64;
        if kept.num_rows() > 0 { self.writer.write(&kept) } else { Ok(()) }
    }

    fn finish(self) -> Result<(PartMeta, u64), PartError> {
        Ok((self.writer.finish()?.0, self.replaced))
    }
}

/// One row a series: earliest `first_ms`, latest `last_ms`, texts of the last row.
pub(super) struct SeriesRows<W: Write + Send> {
    writer: PartWriter<W>,
    held: Option<RecordBatch>,
    /// Life so far of the series that the rows before the held batch ended in.
    open: Option<(i64, i64, i64)>,
    replaced: u64,
}

impl<W: Write + Send> SeriesRows<W> {
    pub(super) fn new(writer: PartWriter<W>) -> Self {
        SeriesRows { writer, held: None, open: None, replaced: 0 }
    }

    fn write(&mut self, batch: &RecordBatch, next: Option<i64>) -> Result<(), PartError> {
        let ids = ints(batch, "series_id");
        let (first, last) = (ints(batch, "first_ms"), ints(batch, "last_ms"));
        let (mut firsts, mut lasts, mut mask) = (Vec::new(), Vec::new(), Vec::with_capacity(ids.len()));
        for i in 0..ids.len() {
            let (from, to) = match self.open.take() {
                Some((id, from, to)) if id == ids[i] => (from.min(first[i]), to.max(last[i])),
                _ => (first[i], last[i]),
            };
            let ends = ids.get(i + 1).copied().or(next) != Some(ids[i]);
            mask.push(ends);
            if ends {
                firsts.push(from);
                lasts.push(to);
            } else {
                self.open = Some((ids[i], from, to));
                self.replaced += 1;
            }
        }
        let kept = filter_record_batch(batch, &BooleanArray::from(mask))?;
        let schema = kept.schema();
        let mut columns = kept.columns().to_vec();
        columns[schema.index_of("first_ms")?] = Arc::new(Int64Array::from(firsts));
        columns[schema.index_of("last_ms")?] = Arc::new(Int64Array::from(lasts));
        self.writer.write(&RecordBatch::try_new(schema, columns)?)
    }
}

impl<W: Write + Send> Combine<W> for SeriesRows<W> {
    fn push(&mut self, batch: RecordBatch) -> Result<(), PartError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let first = ints(&batch, "series_id")[0];
        if let Some(held) = self.held.replace(batch) {
            self.write(&held, Some(first))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(PartMeta, u64), PartError> {
        if let Some(held) = self.held.take() {
            self.write(&held, None)?;
        }
        Ok((self.writer.finish()?.0, self.replaced))
    }
}

/// Whole traces: of spans with equal id the last stays, and the tree is numbered.
pub(super) struct Traces<W: Write + Send> {
    writer: PartWriter<W>,
    /// Rows whose last trace may go on.
    held: Vec<RecordBatch>,
    held_rows: usize,
    /// A trace too large to number, whose rows pass as they come.
    giant: Option<Vec<u8>>,
    replaced: u64,
}

fn trace_of(batch: &RecordBatch, row: usize) -> &[u8] {
    batch.column_by_name("trace_id").expect("column of the stored schema").as_binary::<i32>().value(row)
}

/// First row of the last trace.
fn last_trace(batch: &RecordBatch) -> usize {
    let last = trace_of(batch, batch.num_rows() - 1);
    (0..batch.num_rows()).rev().take_while(|i| trace_of(batch, *i) == last).last().unwrap_or(0)
}

impl<W: Write + Send> Traces<W> {
    pub(super) fn new(writer: PartWriter<W>) -> Self {
        Traces { writer, held: Vec::new(), held_rows: 0, giant: None, replaced: 0 }
    }

    fn write_held(&mut self) -> Result<(), PartError> {
        if self.held.is_empty() {
            return Ok(());
        }
        let batch = concat_batches(&schema::stored(Table::Spans), &self.held)?;
        self.held.clear();
        self.held_rows = 0;
        self.write_traces(&batch)
    }

    /// `batch`: whole traces.
    fn write_traces(&mut self, batch: &RecordBatch) -> Result<(), PartError> {
        let numbered = number(batch)?;
        self.replaced += (batch.num_rows() - numbered.num_rows()) as u64;
        let mut at = 0;
        while at < numbered.num_rows() {
            let n = limits::SCAN_BATCH_ROWS.min(numbered.num_rows() - at);
            self.writer.write(&numbered.slice(at, n))?;
            at += n;
        }
        Ok(())
    }

    fn write_bare(&mut self, batch: &RecordBatch) -> Result<(), PartError> {
        let nulls = new_null_array(&DataType::Int32, batch.num_rows());
        self.writer.write(&with_numbers(batch, [nulls.clone(), nulls.clone(), nulls.clone(), nulls])?)
    }
}

impl<W: Write + Send> Combine<W> for Traces<W> {
    fn push(&mut self, mut batch: RecordBatch) -> Result<(), PartError> {
        if let Some(giant) = &self.giant {
            let n = (0..batch.num_rows()).take_while(|i| trace_of(&batch, *i) == giant.as_slice()).count();
            if n < batch.num_rows() {
                self.giant = None;
            }
            self.write_bare(&batch.slice(0, n))?;
            batch = batch.slice(n, batch.num_rows() - n);
        }
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let cut = last_trace(&batch);
        let goes_on = self.held.last().is_some_and(|h| trace_of(h, h.num_rows() - 1) == trace_of(&batch, 0));
        if cut > 0 {
            self.held.push(batch.slice(0, cut));
        }
        if cut > 0 || !goes_on {
            self.write_held()?;
        }
        let rest = batch.slice(cut, batch.num_rows() - cut);
        self.held_rows += rest.num_rows();
        self.held.push(rest);
        if self.held_rows > limits::NESTED_SET_SPANS_MAX {
            self.giant = Some(trace_of(&batch, batch.num_rows() - 1).to_vec());
            self.held_rows = 0;
            for b in std::mem::take(&mut self.held) {
                self.write_bare(&b)?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(PartMeta, u64), PartError> {
        self.write_held()?;
        Ok((self.writer.finish()?.0, self.replaced))
    }
}

fn with_numbers(batch: &RecordBatch, numbers: [ArrayRef; 4]) -> Result<RecordBatch, PartError> {
    let schema = batch.schema();
    let mut columns = batch.columns().to_vec();
    for (name, array) in ["nested_left", "nested_right", "nested_parent", "child_count"].into_iter().zip(numbers) {
        columns[schema.index_of(name)?] = array;
    }
    Ok(RecordBatch::try_new(schema, columns)?)
}

/// Nested-set numbers of one row.
#[derive(Clone, Copy, Default)]
struct Numbers {
    left: i32,
    right: i32,
    parent: i32,
    children: i32,
}

/// `batch`: whole traces, spans in commit order. Answers each trace's distinct spans by `nested_left`.
fn number(batch: &RecordBatch) -> Result<RecordBatch, PartError> {
    let mut rows = Vec::with_capacity(batch.num_rows());
    let mut numbers = Vec::with_capacity(batch.num_rows());
    let mut at = 0;
    while at < batch.num_rows() {
        let trace = trace_of(batch, at);
        let n = (at..batch.num_rows()).take_while(|i| trace_of(batch, *i) == trace).count();
        number_trace(batch, at..at + n, &mut rows, &mut numbers);
        at += n;
    }
    let taken = take_record_batch(batch, &UInt32Array::from(rows))?;
    let column = |f: fn(&Numbers) -> i32| -> ArrayRef { Arc::new(numbers.iter().map(f).collect::<Int32Array>()) };
    with_numbers(&taken, [column(|n| n.left), column(|n| n.right), column(|n| n.parent), column(|n| n.children)])
}

/// Appends the trace's spans in tree order. A root has -1 for a parent. Spans that no root reaches, because a parent is not
/// there or their parents form a cycle, have 0 for all three numbers and come first.
fn number_trace(batch: &RecordBatch, span: Range<usize>, rows: &mut Vec<u32>, numbers: &mut Vec<Numbers>) {
    let column = |name: &str| batch.column_by_name(name).expect("column of the stored schema");
    let ids = column("span_id").as_binary::<i32>();
    let parents = column("parent_span_id").as_binary::<i32>();
    let times = column("ts").as_primitive::<TimestampNanosecondType>().values();
    let by_id: HashMap<&[u8], usize> = span.clone().map(|i| (ids.value(i), i)).collect();
    // By start, so that siblings and roots are numbered in the order they began.
    let mut unique: Vec<usize> = by_id.values().copied().collect();
    unique.sort_unstable_by_key(|i| (times[*i], *i));
    let mut children: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut stack = Vec::new();
    for &i in unique.iter().rev() {
        match parents.is_valid(i).then(|| parents.value(i)).filter(|p| !p.is_empty()) {
            // Entered spans come onto the stack a second time, to be left.
            None => stack.push((i, -1, false)),
            Some(parent) => {
                if let Some(p) = by_id.get(parent) {
                    children.entry(*p).or_default().push(i);
                }
            }
        }
    }
    let below = |i: usize| children.get(&i).map_or(&[][..], Vec::as_slice);
    let mut found: HashMap<usize, Numbers> = HashMap::with_capacity(unique.len());
    let mut tree = Vec::with_capacity(unique.len());
    let mut counter = 0;
    while let Some((i, parent, leave)) = stack.pop() {
        counter += 1;
        if leave {
            found.entry(i).or_default().right = counter;
            continue;
        }
        found.insert(i, Numbers { left: counter, right: 0, parent, children: below(i).len() as i32 });
        tree.push(i);
        stack.push((i, parent, true));
        stack.extend(below(i).iter().map(|c| (*c, counter, false)));
    }
    unique.retain(|i| !found.contains_key(i));
    for i in unique.into_iter().chain(tree) {
        rows.push(i as u32);
        let bare = Numbers { children: below(i).len() as i32, ..Numbers::default() };
        numbers.push(found.get(&i).copied().unwrap_or(bare));
    }
}
