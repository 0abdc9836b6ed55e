//! A `logs` input batch built column by column, for decoders that meet the same stream and attributes again and again.
//!
//! Unlike [`storage::model::LogBatchBuilder`] the caller holds dictionary keys, so that a row of a known stream with
//! known attributes hashes no text. Columns without a value cost nothing per row.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use arrow::{
    array::{
        Array as _, ArrayRef, BinaryArray, DictionaryArray, Int32Array, Int64Array, RecordBatch, StringBuilder,
        TimestampNanosecondArray, new_null_array,
    },
    buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer},
    datatypes::Int32Type,
};
use storage::model::{Table, schema};
use xxhash_rust::xxh3::xxh3_64;

/// A value's place in a dictionary column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(i32);

impl Key {
    pub const NULL: Key = Key(-1);
}

/// Makes room for what is expected of a column that has no value yet.
fn reserve<T>(column: &mut Vec<T>, rows: usize) {
    column.reserve_exact(rows.saturating_sub(column.len()));
}

/// Takes a finished column without the room it did not need, which would count as memory of the head.
fn tight<T>(column: &mut Vec<T>) -> Vec<T> {
    let mut out = std::mem::take(column);
    out.shrink_to_fit();
    out
}

/// Takes a hash for what it is.
#[derive(Default)]
pub struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

pub type ByHash<V> = HashMap<u64, V, BuildHasherDefault<Identity>>;

/// `Dictionary(Int32, Utf8)` with null keys.
#[derive(Default)]
struct DictColumn {
    keys: Vec<i32>,
    values: StringBuilder,
    by_hash: ByHash<i32>,
    nulls: bool,
}

impl DictColumn {
    fn intern(&mut self, value: &str) -> Key {
        let mut hash = xxh3_64(value.as_bytes());
        loop {
            match self.by_hash.get(&hash) {
                None => break,
                Some(&key) if self.value(key) == value.as_bytes() => return Key(key),
                // Another text with the same hash: the next free place.
                Some(_) => hash = hash.wrapping_add(1),
            }
        }
        let key = self.by_hash.len() as i32;
        self.values.append_value(value);
        self.by_hash.insert(hash, key);
        Key(key)
    }

    fn value(&self, key: i32) -> &[u8] {
        let at = key as usize;
        let offsets = self.values.offsets_slice();
        &self.values.values_slice()[offsets[at] as usize..offsets[at + 1] as usize]
    }

    /// `row`: rows before this one. `rows`: as many as are expected in all.
    #[inline]
    fn push(&mut self, row: usize, key: Key, rows: usize) {
        if key == Key::NULL {
            self.nulls = true;
            if self.keys.is_empty() {
                return;
            }
        } else if self.keys.is_empty() {
            reserve(&mut self.keys, rows);
            self.keys.resize(row, -1);
        }
        self.keys.push(key.0);
    }

    fn finish(&mut self, rows: usize) -> ArrayRef {
        self.by_hash.clear();
        let values = self.values.finish();
        let mut keys = tight(&mut self.keys);
        if keys.is_empty() {
            self.nulls = false;
            return new_null_array(&schema::dict(), rows);
        }
        let nulls = std::mem::take(&mut self.nulls).then(|| NullBuffer::from_iter(keys.iter().map(|k| *k >= 0)));
        if nulls.is_some() {
            keys.iter_mut().for_each(|k| *k = (*k).max(0));
        }
        let keys = Int32Array::new(ScalarBuffer::from(keys), nulls);
        Arc::new(DictionaryArray::<Int32Type>::new(keys, Arc::new(values)))
    }
}

/// Nullable fixed-width values that are often absent in all rows.
struct Optional<T> {
    values: Vec<T>,
    valid: Vec<bool>,
}

impl<T> Default for Optional<T> {
    fn default() -> Self {
        Optional { values: Vec::new(), valid: Vec::new() }
    }
}

impl<T: Copy + Default> Optional<T> {
    #[inline]
    fn push(&mut self, row: usize, value: Option<T>, rows: usize) {
        match value {
            None if self.values.is_empty() => {}
            None => {
                self.values.push(T::default());
                self.valid.push(false);
            }
            Some(v) => {
                if self.values.is_empty() {
                    reserve(&mut self.values, rows);
                    reserve(&mut self.valid, rows);
                    self.values.resize(row, T::default());
                    self.valid.resize(row, false);
                }
                self.values.push(v);
                self.valid.push(true);
            }
        }
    }

    fn take(&mut self) -> Option<(Vec<T>, NullBuffer)> {
        let valid = NullBuffer::from(std::mem::take(&mut self.valid));
        let values = tight(&mut self.values);
        (!values.is_empty()).then_some((values, valid))
    }
}

/// Nullable ids of one length, as the column holds them: a null takes no bytes.
struct Ids<const N: usize> {
    bytes: Vec<u8>,
    /// Where each row's id ends; empty as long as no row has one.
    ends: Vec<i32>,
    valid: Vec<bool>,
}

impl<const N: usize> Default for Ids<N> {
    fn default() -> Self {
        Ids { bytes: Vec::new(), ends: Vec::new(), valid: Vec::new() }
    }
}

impl<const N: usize> Ids<N> {
    /// `row`: rows before this one. `rows`: as many as are expected in all.
    #[inline]
    fn push(&mut self, row: usize, id: Option<[u8; N]>, rows: usize) {
        match id {
            None if self.ends.is_empty() => return,
            None => {}
            Some(id) => {
                if self.ends.is_empty() {
                    reserve(&mut self.ends, rows + 1);
                    reserve(&mut self.valid, rows);
                    self.ends.resize(row + 1, 0);
                    self.valid.resize(row, false);
                }
                self.bytes.extend_from_slice(&id);
            }
        }
        self.ends.push(self.bytes.len() as i32);
        self.valid.push(id.is_some());
    }

    fn finish(&mut self, rows: usize) -> ArrayRef {
        let Ids { mut bytes, mut ends, valid } = std::mem::take(self);
        if ends.is_empty() {
            return new_null_array(&arrow::datatypes::DataType::Binary, rows);
        }
        let ends = OffsetBuffer::new(ScalarBuffer::from(tight(&mut ends)));
        let array = BinaryArray::new(ends, Buffer::from_vec(tight(&mut bytes)), Some(NullBuffer::from(valid)));
        debug_assert_eq!(array.len(), rows);
        Arc::new(array)
    }
}

/// A log record with its repeating texts as keys of the builder it is pushed to.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    pub ts: i64,
    pub observed_ts: Option<i64>,
    /// Never [`Key::NULL`].
    pub stream_labels: Key,
    pub service_name: Key,
    pub severity_number: Option<i32>,
    pub severity_text: Key,
    pub event_name: Key,
    pub flags: Option<i64>,
    pub trace_id: Option<[u8; 16]>,
    pub span_id: Option<[u8; 8]>,
    pub body: &'a str,
    pub body_type: Key,
    pub scope_name: Key,
    pub scope_meta: Key,
    pub resource_attrs: Key,
    pub resource_meta: Key,
    pub attrs: Key,
    pub dropped_attributes_count: Option<i64>,
}

impl Row<'_> {
    /// A row of which nothing is known but its stream.
    pub fn of_stream(stream_labels: Key) -> Self {
        Row {
            ts: 0,
            observed_ts: None,
            stream_labels,
            service_name: Key::NULL,
            severity_number: None,
            severity_text: Key::NULL,
            event_name: Key::NULL,
            flags: None,
            trace_id: None,
            span_id: None,
            body: "",
            body_type: Key::NULL,
            scope_name: Key::NULL,
            scope_meta: Key::NULL,
            resource_attrs: Key::NULL,
            resource_meta: Key::NULL,
            attrs: Key::NULL,
            dropped_attributes_count: None,
        }
    }
}

/// The dictionary columns of a `logs` batch.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    StreamLabels,
    ServiceName,
    SeverityText,
    EventName,
    BodyType,
    ScopeName,
    ScopeMeta,
    ResourceAttrs,
    ResourceMeta,
    Attrs,
}

const COLUMNS: usize = Column::Attrs as usize + 1;

/// Builds a `logs` input batch. Keys hold for one batch: after [`LogColumns::finish`] all must be asked for again.
#[derive(Default)]
pub struct LogColumns {
    ts: Vec<i64>,
    observed_ts: Optional<i64>,
    dicts: [DictColumn; COLUMNS],
    severity_number: Optional<i32>,
    flags: Optional<i64>,
    trace_id: Ids<16>,
    span_id: Ids<8>,
    body: StringBuilder,
    dropped_attributes_count: Optional<i64>,
    /// Rows that the batch is expected to have; 0: unknown.
    rows: usize,
}

impl LogColumns {
    /// With room for `rows` rows and `bytes` bytes of bodies, both a guess: columns that grow come to it in steps, each copied.
    /// What is not used is given back by [`LogColumns::finish`].
    pub fn with_room(rows: usize, bytes: usize) -> Self {
        LogColumns {
            ts: Vec::with_capacity(rows),
            body: StringBuilder::with_capacity(rows, bytes),
            rows,
            ..LogColumns::default()
        }
    }

    pub fn len(&self) -> usize {
        self.ts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ts.is_empty()
    }

    /// Bytes of the bodies and of the dictionaries: what grows with the input.
    pub fn text_bytes(&self) -> usize {
        self.body.values_slice().len() + self.dicts.iter().map(|d| d.values.values_slice().len()).sum::<usize>()
    }

    /// The key of a text in a column.
    pub fn key(&mut self, column: Column, text: &str) -> Key {
        self.dicts[column as usize].intern(text)
    }

    /// The key of a text that may be absent: [`Key::NULL`] then.
    pub fn key_of(&mut self, column: Column, text: Option<&str>) -> Key {
        text.map_or(Key::NULL, |t| self.key(column, t))
    }

    #[inline]
    pub fn push(&mut self, row: &Row<'_>) {
        let (at, rows) = (self.ts.len(), self.rows);
        self.ts.push(row.ts);
        self.observed_ts.push(at, row.observed_ts, rows);
        let keys = [
            row.stream_labels,
            row.service_name,
            row.severity_text,
            row.event_name,
            row.body_type,
            row.scope_name,
            row.scope_meta,
            row.resource_attrs,
            row.resource_meta,
            row.attrs,
        ];
        for (dict, key) in self.dicts.iter_mut().zip(keys) {
            dict.push(at, key, rows);
        }
        self.severity_number.push(at, row.severity_number, rows);
        self.flags.push(at, row.flags, rows);
        self.trace_id.push(at, row.trace_id, rows);
        self.span_id.push(at, row.span_id, rows);
        self.body.append_value(row.body);
        self.dropped_attributes_count.push(at, row.dropped_attributes_count, rows);
    }

    /// The rows so far as one batch; the builder is left empty.
    pub fn finish(&mut self) -> RecordBatch {
        let rows = self.ts.len();
        self.rows = 0;
        let ts = TimestampNanosecondArray::from(tight(&mut self.ts)).with_timezone("UTC");
        let observed: ArrayRef = match self.observed_ts.take() {
            Some((v, n)) => {
                Arc::new(TimestampNanosecondArray::new(ScalarBuffer::from(v), Some(n)).with_timezone("UTC"))
            }
            None => new_null_array(&schema::ts_ns(), rows),
        };
        let severity_number: ArrayRef = match self.severity_number.take() {
            Some((v, n)) => Arc::new(Int32Array::new(ScalarBuffer::from(v), Some(n))),
            None => new_null_array(&arrow::datatypes::DataType::Int32, rows),
        };
        let [stream, service, severity_text, event, body_type, scope, scope_meta, resource, resource_meta, attrs] =
            self.dicts.each_mut().map(|d| d.finish(rows));
        let mut body = self.body.finish();
        body.shrink_to_fit();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(ts),
            observed,
            stream,
            service,
            severity_number,
            severity_text,
            event,
            int64(self.flags.take(), rows),
            self.trace_id.finish(rows),
            self.span_id.finish(rows),
            Arc::new(body),
            body_type,
            scope,
            scope_meta,
            resource,
            resource_meta,
            attrs,
            int64(self.dropped_attributes_count.take(), rows),
        ];
        RecordBatch::try_new(schema::input(Table::Logs), columns).expect("columns follow the logs schema")
    }
}

fn int64(values: Option<(Vec<i64>, NullBuffer)>, rows: usize) -> ArrayRef {
    match values {
        Some((v, n)) => Arc::new(Int64Array::new(ScalarBuffer::from(v), Some(n))),
        None => new_null_array(&arrow::datatypes::DataType::Int64, rows),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use storage::model::{LogBatchBuilder, LogRow};

    use super::*;

    #[test]
    fn a_batch_equals_the_row_builders_and_the_builder_resets() {
        let mut fast = LogColumns::default();
        for round in 0..2 {
            let mut slow = LogBatchBuilder::new();
            for i in 0..50i64 {
                let some = i >= 3 && i % 2 == round;
                let labels = format!(r#"{{"a":"{}"}}"#, i % 3);
                let trace = [i as u8; 16];
                let text = some.then_some("info");
                let stream = fast.key(Column::StreamLabels, &labels);
                let row = Row {
                    ts: i,
                    flags: some.then_some(i),
                    severity_number: some.then_some(9),
                    severity_text: fast.key_of(Column::SeverityText, text),
                    trace_id: some.then_some(trace),
                    body: "b",
                    observed_ts: some.then_some(7),
                    ..Row::of_stream(stream)
                };
                fast.push(&row);
                slow.push(&LogRow {
                    ts: i,
                    stream_labels: &labels,
                    flags: row.flags,
                    severity_number: row.severity_number,
                    severity_text: text,
                    trace_id: some.then_some(&trace[..]),
                    body: "b",
                    observed_ts: row.observed_ts,
                    ..LogRow::default()
                });
            }
            let (a, b) = (fast.finish(), slow.finish());
            for (x, y) in a.columns().iter().zip(b.columns()) {
                match x.as_any_dictionary_opt() {
                    Some(d) => {
                        let plain =
                            |c: &ArrayRef| arrow::compute::cast(c, &arrow::datatypes::DataType::Utf8).unwrap();
                        let _ = d;
                        assert_eq!(&plain(x), &plain(y));
                    }
                    None => assert_eq!(x, y),
                }
            }
        }
        assert_eq!(fast.finish().num_rows(), 0);
    }
}
