//! The tables SQL sees and how their columns come from stored ones.
//!
//! Stored columns keep their names. Ids of traces and spans are lowercase hexadecimal text. Tables of points also have
//! `ts`, their `ts_ms` as a timestamp. `samples` is `metric_samples` with the labels of each sample's series.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, DictionaryArray, Int32Array, Int32Builder, Int64Array, RecordBatch,
        RecordBatchOptions, StringArray, StringBuilder, TimestampNanosecondArray,
    },
    datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef},
};
use storage::{
    ScanError, SeriesInfo,
    model::{
        Table,
        schema::{dict, stored, ts_ns},
        time::NANOS_PER_MILLI,
    },
};

/// The column of row counts that [`counted`] adds.
pub const ROWS: &str = "__rows";

/// A table of SQL.
#[derive(Debug)]
pub struct Relation {
    pub name: &'static str,
    pub table: Table,
    pub columns: Vec<ColumnDef>,
    pub schema: SchemaRef,
    /// Rows bear labels of their series, which are not stored beside them.
    pub with_series: bool,
}

#[derive(Debug)]
pub struct ColumnDef {
    pub name: String,
    pub from: From,
}

#[derive(Debug)]
pub enum From {
    Stored(String),
    /// Bytes as lowercase hexadecimal text.
    Hex(String),
    /// Milliseconds as a timestamp; beyond the years of nanoseconds it is the last one of them.
    Millis(String),
    /// Of the series that `series_id` names.
    Series(SeriesText),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeriesText {
    Metric,
    Job,
    Instance,
    Labels,
    Type,
    Unit,
}

static RELATIONS: LazyLock<Vec<Relation>> = LazyLock::new(|| {
    let mut out: Vec<Relation> = Table::ALL.into_iter().map(of_table).collect();
    out.push(samples());
    out
});

/// All tables, the view among them.
pub fn relations() -> &'static [Relation] {
    &RELATIONS
}

fn relation(name: &'static str, table: Table, columns: Vec<(ColumnDef, Field)>) -> Relation {
    let with_series = columns.iter().any(|(c, _)| matches!(c.from, From::Series(_)));
    let (columns, fields): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    Relation { name, table, columns, schema: Arc::new(Schema::new(fields)), with_series }
}

fn column(name: &str, from: From, t: DataType, nullable: bool) -> (ColumnDef, Field) {
    (ColumnDef { name: name.to_owned(), from }, Field::new(name, t, nullable))
}

fn of_table(table: Table) -> Relation {
    let mut columns = Vec::new();
    if table.time_column() == "ts_ms" {
        columns.push(column("ts", From::Millis("ts_ms".into()), ts_ns(), false));
    }
    for f in stored(table).fields() {
        columns.push(match f.data_type() {
            DataType::Binary => column(f.name(), From::Hex(f.name().clone()), DataType::Utf8, f.is_nullable()),
            t => column(f.name(), From::Stored(f.name().clone()), t.clone(), f.is_nullable()),
        });
    }
    relation(table.name(), table, columns)
}

fn samples() -> Relation {
    let text = |name, what, nullable| column(name, From::Series(what), dict(), nullable);
    relation(
        "samples",
        Table::MetricSamples,
        vec![
            column("ts", From::Millis("ts_ms".into()), ts_ns(), false),
            text("metric", SeriesText::Metric, true),
            text("job", SeriesText::Job, true),
            text("instance", SeriesText::Instance, true),
            text("labels", SeriesText::Labels, true),
            column("value", From::Stored("value".into()), DataType::Float64, false),
            text("type", SeriesText::Type, true),
            text("unit", SeriesText::Unit, true),
            column("series_id", From::Stored("series_id".into()), DataType::Int64, false),
            column("ts_ms", From::Stored("ts_ms".into()), DataType::Int64, false),
        ],
    )
}

impl Relation {
    /// The schema of some columns, and with `rows` a count behind them.
    pub fn schema_of(&self, columns: &[usize], rows: bool) -> SchemaRef {
        let mut fields: Vec<_> = columns.iter().map(|c| self.schema.fields()[*c].clone()).collect();
        if rows {
            fields.push(Arc::new(Field::new(ROWS, DataType::Int64, false)));
        }
        Arc::new(Schema::new(fields))
    }

    /// Stored columns that `columns` are made of, each once.
    pub fn stored_of(&'static self, columns: &[usize]) -> Vec<&'static str> {
        let mut out: Vec<&'static str> = Vec::with_capacity(columns.len());
        for c in columns {
            let name = match &self.columns[*c].from {
                From::Stored(n) | From::Hex(n) | From::Millis(n) => n.as_str(),
                From::Series(_) => "series_id",
            };
            if !out.contains(&name) {
                out.push(name);
            }
        }
        out
    }

    /// `columns` of this table from a batch of the stored columns they are made of.
    pub fn convert(
        &self,
        columns: &[usize],
        batch: &RecordBatch,
        series: Option<&SeriesMap>,
    ) -> Result<RecordBatch, ScanError> {
        let arrays: Result<Vec<ArrayRef>, ScanError> =
            columns.iter().map(|c| self.columns[*c].from.array(batch, series)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(self.schema_of(columns, false), arrays?, &options)?)
    }
}

impl From {
    fn array(&self, batch: &RecordBatch, series: Option<&SeriesMap>) -> Result<ArrayRef, ScanError> {
        let stored = |name: &str| {
            let found = batch.column_by_name(name);
            found.ok_or_else(|| ScanError::Internal(format!("scan gave no column {name}")))
        };
        Ok(match self {
            From::Stored(name) => stored(name)?.clone(),
            From::Hex(name) => Arc::new(hex_of(stored(name)?)),
            From::Millis(name) => {
                let ms = stored(name)?.as_primitive::<Int64Type>();
                let ns = ms.values().iter().map(|ms| ms.saturating_mul(NANOS_PER_MILLI));
                Arc::new(TimestampNanosecondArray::from_iter_values(ns).with_timezone("UTC"))
            }
            From::Series(what) => {
                let series = series.ok_or_else(|| ScanError::Internal("no series were looked up".into()))?;
                Arc::new(series.column(*what, stored("series_id")?.as_primitive::<Int64Type>())?)
            }
        })
    }
}

fn hex_of(bytes: &ArrayRef) -> StringArray {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bytes = bytes.as_binary::<i32>();
    let mut out = StringBuilder::with_capacity(bytes.len(), bytes.len() * 32);
    let mut text = String::with_capacity(32);
    for value in bytes {
        match value {
            Some(value) => {
                text.clear();
                for b in value {
                    text.push(char::from(DIGITS[usize::from(b >> 4)]));
                    text.push(char::from(DIGITS[usize::from(b & 15)]));
                }
                out.append_value(&text);
            }
            None => out.append_null(),
        }
    }
    out.finish()
}

/// Series by id, for the columns of `samples` that are not stored beside the points.
#[derive(Debug)]
pub struct SeriesMap(HashMap<i64, SeriesInfo>);

impl SeriesMap {
    pub fn new(series: Vec<SeriesInfo>) -> Self {
        SeriesMap(series.into_iter().map(|s| (s.id, s)).collect())
    }

    pub fn ids(&self) -> Arc<[i64]> {
        self.0.keys().copied().collect()
    }

    /// Points come in runs of one series: a value for each run.
    fn column(&self, what: SeriesText, ids: &Int64Array) -> Result<DictionaryArray<Int32Type>, ScanError> {
        let mut keys = Int32Builder::with_capacity(ids.len());
        let mut values = StringBuilder::new();
        let (mut last, mut key, mut count) = (None, None, 0);
        for id in ids.values() {
            if last != Some(*id) {
                last = Some(*id);
                let text = self.0.get(id).and_then(|s| match what {
                    SeriesText::Metric => s.labels.get("__name__").map(str::to_owned),
                    SeriesText::Job => s.labels.get("job").map(str::to_owned),
                    SeriesText::Instance => s.labels.get("instance").map(str::to_owned),
                    SeriesText::Labels => Some(s.labels.to_json()),
                    SeriesText::Type => s.metric_type.as_deref().map(str::to_owned),
                    SeriesText::Unit => s.unit.as_deref().map(str::to_owned),
                });
                key = text.map(|t| {
                    values.append_value(t);
                    count += 1;
                    count - 1
                });
            }
            keys.append_option(key);
        }
        Ok(DictionaryArray::try_new(keys.finish(), Arc::new(values.finish()))?)
    }
}

/// The distinct rows of a batch whose columns are all dictionaries, and how often each came. A dictionary that repeats a
/// value gives that row more than once. Rows: at most as many as came.
pub fn counted(batch: &RecordBatch) -> Result<RecordBatch, ScanError> {
    let columns: Vec<&DictionaryArray<Int32Type>> =
        batch.columns().iter().map(|c| c.as_dictionary::<Int32Type>()).collect();
    // The first row of each combination, and its count.
    let mut found: Vec<(i32, i64)> = Vec::new();
    match columns.as_slice() {
        [] if batch.num_rows() > 0 => found.push((0, batch.num_rows() as i64)),
        [] => {}
        [only] => count_one(only, &mut found),
        many => count_many(many, &mut found),
    }
    let firsts = Int32Array::from_iter_values(found.iter().map(|(row, _)| *row));
    let counts = Int64Array::from_iter_values(found.iter().map(|(_, n)| *n));
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns.len() + 1);
    for column in &columns {
        let keys = arrow::compute::take(column.keys(), &firsts, None)?;
        let keys = keys.as_primitive::<Int32Type>().clone();
        arrays.push(Arc::new(DictionaryArray::try_new(keys, column.values().clone())?));
    }
    arrays.push(Arc::new(counts));
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(ROWS, DataType::Int64, false)));
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

fn count_one(column: &DictionaryArray<Int32Type>, found: &mut Vec<(i32, i64)>) {
    let keys = column.keys();
    // The place of each key in `found`, that of null last.
    let mut places = vec![usize::MAX; column.values().len() + 1];
    let null = column.values().len();
    let mut at = 0;
    while at < keys.len() {
        let key = if keys.is_valid(at) { keys.value(at) as usize } else { null };
        let same = |i: usize| (if keys.is_valid(i) { keys.value(i) as usize } else { null }) == key;
        let end = (at + 1..keys.len()).find(|i| !same(*i)).unwrap_or(keys.len());
        if places[key] == usize::MAX {
            places[key] = found.len();
            found.push((at as i32, 0));
        }
        found[places[key]].1 += (end - at) as i64;
        at = end;
    }
}

fn count_many(columns: &[&DictionaryArray<Int32Type>], found: &mut Vec<(i32, i64)>) {
    let key_of = |row: usize| -> Vec<i32> {
        let key = |c: &&DictionaryArray<Int32Type>| if c.keys().is_valid(row) { c.keys().value(row) } else { -1 };
        columns.iter().map(key).collect()
    };
    let mut places: HashMap<Vec<i32>, usize> = HashMap::new();
    let mut last: (Vec<i32>, usize) = (Vec::new(), 0);
    for row in 0..columns[0].len() {
        let same = |(c, k): (&&DictionaryArray<Int32Type>, &i32)| {
            if c.keys().is_valid(row) { c.keys().value(row) == *k } else { *k == -1 }
        };
        if last.0.is_empty() || !columns.iter().zip(&last.0).all(same) {
            let key = key_of(row);
            let place = *places.entry(key.clone()).or_insert_with(|| {
                found.push((row as i32, 0));
                found.len() - 1
            });
            last = (key, place);
        }
        found[last.1].1 += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_rows_are_counted_nulls_apart() {
        let a: DictionaryArray<Int32Type> = [Some("x"), Some("x"), None, Some("y"), Some("x")].into_iter().collect();
        let b: DictionaryArray<Int32Type> = [Some("1"), Some("2"), None, None, Some("1")].into_iter().collect();
        let schema = Schema::new(vec![Field::new("a", dict(), true), Field::new("b", dict(), true)]);
        let both = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(a), Arc::new(b)]).unwrap();
        let counts = |batch: &RecordBatch| {
            let out = counted(batch).unwrap();
            out.column(out.num_columns() - 1).as_primitive::<Int64Type>().values().to_vec()
        };
        assert_eq!(counts(&both), [2, 1, 1, 1]);
        assert_eq!(counts(&both.project(&[0]).unwrap()), [3, 1, 1]);
        assert_eq!(counts(&both.project(&[]).unwrap()), [5]);
    }

    #[test]
    fn every_table_has_a_time_column_it_can_be_asked_by() {
        for r in relations() {
            let expected = if r.table == Table::MetricSeries { "first_ms" } else { "ts" };
            assert!(r.schema.index_of(expected).is_ok(), "{}", r.name);
        }
    }
}
