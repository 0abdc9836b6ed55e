//! Memory (stored) schema to disk schema and back.
//!
//! On disk a dictionary is a plain string, a nanosecond time is microseconds plus a remainder `<name>_ns` of 0-999
//! (rounded down, also before 1970), and a sample is `value_i / 10^exponent`, or `value_f` where that is not null.

use std::sync::{Arc, LazyLock};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, Float64Array, Int8Array, Int16Array, Int64Array, ListArray, RecordBatch,
        RecordBatchOptions, TimestampMicrosecondArray, TimestampNanosecondArray, new_null_array,
    },
    buffer::NullBuffer,
    compute::cast,
    datatypes::{
        DataType, Field, Float64Type, Int8Type, Int16Type, Int64Type, Schema, SchemaRef, TimeUnit,
        TimestampMicrosecondType, TimestampNanosecondType,
    },
};

use super::{PartError, Promoted};
use crate::model::{Table, schema};

/// Largest exponent of a sample: the largest power of ten that a double holds exactly.
const EXPONENT_MAX: usize = 22;
pub(super) const POWERS: [f64; EXPONENT_MAX + 1] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19,
    1e20, 1e21, 1e22,
];
/// Integers below this are exact as doubles.
const INTEGER_END: f64 = 9_007_199_254_740_992.0;

static DISK: LazyLock<Vec<SchemaRef>> =
    LazyLock::new(|| Table::ALL.iter().map(|t| Arc::new(Schema::new(disk_fields(*t, false)))).collect());
static WRITTEN: LazyLock<Vec<SchemaRef>> =
    LazyLock::new(|| Table::ALL.iter().map(|t| Arc::new(Schema::new(disk_fields(*t, true)))).collect());

/// Columns of a table's Parquet files.
pub fn disk_schema(table: Table) -> SchemaRef {
    DISK[usize::from(table.code() - 1)].clone()
}

/// [`disk_schema`] with dictionaries left as they are: the Parquet writer takes both alike.
pub(super) fn written_schema(table: Table) -> SchemaRef {
    WRITTEN[usize::from(table.code() - 1)].clone()
}

/// [`written_schema`] with the promoted attributes behind it.
pub(super) fn with_promoted(table: Table, promoted: &Promoted) -> SchemaRef {
    let more = promoted.written_fields(table);
    if more.is_empty() {
        return written_schema(table);
    }
    let mut fields: Vec<Arc<Field>> = written_schema(table).fields().iter().cloned().collect();
    fields.extend(more.into_iter().map(Arc::new));
    Arc::new(Schema::new(fields))
}

/// Columns of a table: [`disk_schema`] with the promoted attributes.
pub(crate) fn table_schema(table: Table, promoted: &Promoted) -> SchemaRef {
    let mut fields: Vec<Arc<Field>> = disk_schema(table).fields().iter().cloned().collect();
    fields.extend(promoted.fields(table).into_iter().map(Arc::new));
    Arc::new(Schema::new(fields))
}

fn disk_fields(table: Table, dictionaries: bool) -> Vec<Field> {
    let mut out = Vec::new();
    for f in schema::stored(table).fields() {
        let (name, nullable) = (f.name().as_str(), f.is_nullable());
        match f.data_type() {
            DataType::Timestamp(_, zone) => {
                out.push(Field::new(name, DataType::Timestamp(TimeUnit::Microsecond, zone.clone()), nullable));
                out.push(Field::new(format!("{name}_ns"), DataType::Int16, nullable));
            }
            DataType::Dictionary(_, text) if !dictionaries => out.push(Field::new(name, (**text).clone(), nullable)),
            DataType::List(item) => out.push(Field::new(name, DataType::List(element(item)), nullable)),
            DataType::Float64 if is_split(table, name) => {
                out.push(Field::new("value_i", DataType::Int64, true));
                out.push(Field::new("exponent", DataType::Int8, false));
                out.push(Field::new("value_f", DataType::Float64, true));
            }
            other => out.push(Field::new(name, other.clone(), nullable)),
        }
    }
    out
}

fn element(item: &Field) -> Arc<Field> {
    Arc::new(Field::new("element", item.data_type().clone(), item.is_nullable()))
}

fn is_split(table: Table, column: &str) -> bool {
    table == Table::MetricSamples && column == "value"
}

/// Names on disk of one stored column.
pub(super) fn disk_names(table: Table, field: &Field) -> Vec<String> {
    match field.data_type() {
        DataType::Timestamp(..) => vec![field.name().clone(), format!("{}_ns", field.name())],
        DataType::Float64 if is_split(table, field.name()) => {
            vec!["value_i".into(), "exponent".into(), "value_f".into()]
        }
        _ => vec![field.name().clone()],
    }
}

/// `batch`: stored schema, all columns; samples sorted by series.
pub(super) fn to_disk(table: Table, batch: &RecordBatch) -> Result<RecordBatch, PartError> {
    let mut out: Vec<ArrayRef> = Vec::with_capacity(batch.num_columns() + 4);
    for (f, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        match f.data_type() {
            DataType::Timestamp(..) => {
                let ns = column.as_primitive::<TimestampNanosecondType>();
                let us = ns.values().iter().map(|t| t.div_euclid(1000)).collect::<Vec<_>>();
                let rest = ns.values().iter().map(|t| t.rem_euclid(1000) as i16).collect::<Vec<_>>();
                out.push(Arc::new(
                    TimestampMicrosecondArray::new(us.into(), ns.nulls().cloned()).with_timezone("UTC"),
                ));
                out.push(Arc::new(Int16Array::new(rest.into(), ns.nulls().cloned())));
            }
            DataType::List(item) => {
                let (_, offsets, values, nulls) = column.as_list::<i32>().clone().into_parts();
                out.push(Arc::new(ListArray::try_new(element(item), offsets, values, nulls)?));
            }
            DataType::Float64 if is_split(table, f.name()) => {
                let ids = batch.column(0).as_primitive::<Int64Type>();
                let (i, e, v) = split_values(ids.values(), column.as_primitive::<Float64Type>().values());
                out.push(Arc::new(i));
                out.push(Arc::new(e));
                out.push(v);
            }
            _ => out.push(column.clone()),
        }
    }
    Ok(RecordBatch::try_new(written_schema(table), out)?)
}

/// `series`: [n] sorted ids. `values`: [n].
fn split_values(series: &[i64], values: &[f64]) -> (Int64Array, Int8Array, ArrayRef) {
    let mut integers = Vec::with_capacity(values.len());
    let mut exponents = Vec::with_capacity(values.len());
    // Rows without an integer, which few parts have any of.
    let mut others = Vec::new();
    for ids in series.chunk_by(|a, b| a == b) {
        let at = integers.len();
        let run = &values[at..at + ids.len()];
        integers.extend(run.iter().map_while(|v| integer(*v)));
        let mut exponent = Some(0);
        if integers.len() < at + run.len() {
            integers.truncate(at);
            exponent = exponent_of(run);
            for v in run {
                let decimal = exponent.and_then(|e| decimal(*v, e));
                if decimal.is_none() {
                    others.push(integers.len());
                }
                integers.push(decimal.unwrap_or(0));
            }
        }
        exponents.resize(at + run.len(), exponent.unwrap_or(0) as i8);
    }
    if others.is_empty() {
        let none = new_null_array(&DataType::Float64, values.len());
        return (integers.into(), exponents.into(), none);
    }
    let mut other = vec![false; values.len()];
    others.iter().for_each(|at| other[*at] = true);
    let doubles = values.iter().zip(&other).map(|(v, other)| if *other { *v } else { 0.0 }).collect::<Vec<_>>();
    let is_double = NullBuffer::from(other);
    let is_integer = NullBuffer::new(!is_double.inner());
    let doubles = Float64Array::new(doubles.into(), Some(is_double));
    (Int64Array::new(integers.into(), Some(is_integer)), exponents.into(), Arc::new(doubles))
}

/// What [`decimal`] gives at exponent 0, for less.
fn integer(v: f64) -> Option<i64> {
    let i = v as i64;
    ((i as f64).to_bits() == v.to_bits() && i.unsigned_abs() < INTEGER_END as u64).then_some(i)
}

/// NaN, infinities and -0.0 are never decimal, and do not keep the rest of their series from being so.
fn is_special(v: f64) -> bool {
    !v.is_finite() || (v == 0.0 && v.is_sign_negative())
}

/// `i` with `i / 10^exponent` the very same double as `v`.
fn decimal(v: f64, exponent: usize) -> Option<i64> {
    if is_special(v) {
        return None;
    }
    let i = (v * POWERS[exponent]).round();
    (i.abs() < INTEGER_END && (i / POWERS[exponent]).to_bits() == v.to_bits()).then_some(i as i64)
}

/// The smallest exponent at which every value of a series is decimal (but special ones).
fn exponent_of(values: &[f64]) -> Option<usize> {
    let mut exponent = 0;
    for v in values.iter().filter(|v| !is_special(**v)) {
        while decimal(*v, exponent).is_none() {
            exponent += 1;
            if exponent > EXPONENT_MAX {
                return None;
            }
        }
    }
    let all = values.iter().all(|v| is_special(*v) || decimal(*v, exponent).is_some());
    all.then_some(exponent)
}

/// A batch of some disk columns as the stored columns `columns` (indexes into the stored schema).
/// A column the file does not have is null, if it may be.
pub(super) fn from_disk(
    table: Table,
    columns: &[usize],
    out_schema: &SchemaRef,
    batch: &RecordBatch,
) -> Result<RecordBatch, PartError> {
    let stored = schema::stored(table);
    let mut out: Vec<ArrayRef> = Vec::with_capacity(columns.len());
    for &c in columns {
        let field = stored.field(c);
        let array = match field.data_type() {
            DataType::Timestamp(..) => join_time(batch, field)?,
            DataType::Float64 if is_split(table, field.name()) => join_value(batch)?,
            wanted => typed(batch, field.name(), wanted, field.is_nullable())?,
        };
        if !field.is_nullable() && array.null_count() > 0 {
            return Err(PartError::corrupt(format_args!("nulls in column {}", field.name())));
        }
        out.push(array);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(out_schema.clone(), out, &options).map_err(PartError::corrupt)
}

fn typed(batch: &RecordBatch, name: &str, wanted: &DataType, nullable: bool) -> Result<ArrayRef, PartError> {
    match batch.column_by_name(name) {
        Some(a) if a.data_type() == wanted => Ok(a.clone()),
        Some(a) => cast(a, wanted).map_err(PartError::corrupt),
        None if nullable => Ok(new_null_array(wanted, batch.num_rows())),
        None => Err(PartError::corrupt(format_args!("no column {name}"))),
    }
}

fn join_time(batch: &RecordBatch, field: &Field) -> Result<ArrayRef, PartError> {
    let nullable = field.is_nullable();
    let micros = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let us = typed(batch, field.name(), &micros, nullable)?;
    let us = us.as_primitive::<TimestampMicrosecondType>();
    let rest = typed(batch, &format!("{}_ns", field.name()), &DataType::Int16, true)?;
    let rest = rest.as_primitive::<Int16Type>();
    // Wrapping, because the microsecond below the earliest nanosecond does not fit while their sum does.
    let join = |us: i64, rest: i16| us.wrapping_mul(1000).wrapping_add(i64::from(rest));
    let ns: Vec<i64> = if rest.null_count() == 0 || rest.nulls() == us.nulls() {
        us.values().iter().zip(rest.values()).map(|(u, r)| join(*u, *r)).collect()
    } else {
        // A remainder that another tool dropped counts as 0.
        us.values().iter().zip(rest.iter()).map(|(u, r)| join(*u, r.unwrap_or(0))).collect()
    };
    Ok(Arc::new(TimestampNanosecondArray::new(ns.into(), us.nulls().cloned()).with_timezone("UTC")))
}

fn join_value(batch: &RecordBatch) -> Result<ArrayRef, PartError> {
    let integers = typed(batch, "value_i", &DataType::Int64, true)?;
    let exponents = typed(batch, "exponent", &DataType::Int8, true)?;
    let doubles = typed(batch, "value_f", &DataType::Float64, true)?;
    let integers = integers.as_primitive::<Int64Type>();
    let exponents = exponents.as_primitive::<Int8Type>();
    let doubles = doubles.as_primitive::<Float64Type>();
    let mut out = Vec::with_capacity(integers.len());
    let plain = doubles.null_count() == doubles.len() && integers.null_count() == 0 && exponents.null_count() == 0;
    if plain {
        // Runs of one exponent, which is most often 0: nothing is looked up or divided a row.
        let mut at = 0;
        for run in exponents.values().chunk_by(|a, b| a == b) {
            let power = usize::try_from(run[0]).ok().and_then(|e| POWERS.get(e));
            let power = *power.ok_or_else(|| PartError::corrupt("exponent of a sample is out of range"))?;
            let values = &integers.values()[at..at + run.len()];
            if run[0] == 0 {
                out.extend(values.iter().map(|v| *v as f64));
            } else {
                out.extend(values.iter().map(|v| *v as f64 / power));
            }
            at += run.len();
        }
        return Ok(Arc::new(Float64Array::from(out)));
    }
    for i in 0..integers.len() {
        out.push(if doubles.is_valid(i) {
            doubles.value(i)
        } else if integers.is_valid(i) && exponents.is_valid(i) {
            let power = usize::try_from(exponents.value(i)).ok().and_then(|e| POWERS.get(e));
            let power = power.ok_or_else(|| PartError::corrupt("exponent of a sample is out of range"))?;
            integers.value(i) as f64 / power
        } else {
            return Err(PartError::corrupt("a sample without a value"));
        });
    }
    Ok(Arc::new(Float64Array::from(out)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(series: &[i64], values: &[f64]) -> (Vec<Option<i64>>, Vec<i8>) {
        let (i, e, f) = split_values(series, values);
        let f = f.as_primitive::<Float64Type>();
        for (k, value) in values.iter().enumerate() {
            assert_ne!(i.is_valid(k), f.is_valid(k));
            let back = if f.is_valid(k) { f.value(k) } else { i.value(k) as f64 / 10f64.powi(i32::from(e.value(k))) };
            assert_eq!(back.to_bits(), value.to_bits());
        }
        (i.iter().collect(), e.values().to_vec())
    }

    #[test]
    fn one_exponent_serves_a_series() {
        let (i, e) = round_trip(&[1, 1, 1, 2], &[0.5, 12.25, 3.0, 7.0]);
        assert_eq!((i, e), (vec![Some(50), Some(1225), Some(300), Some(7)], vec![2, 2, 2, 0]));
    }

    #[test]
    fn a_value_that_is_not_decimal_makes_its_series_doubles() {
        let (i, _) = round_trip(&[1, 1, 2], &[1.0, std::f64::consts::PI * 1e-30, 1.0]);
        assert_eq!(i, [None, None, Some(1)]);
    }

    #[test]
    fn special_values_keep_their_bits_and_leave_the_series_decimal() {
        let stale = f64::from_bits(0x7ff0_0000_0000_0002);
        let (i, e) = round_trip(&[1; 6], &[0.1, stale, f64::NAN, -0.0, f64::INFINITY, f64::NEG_INFINITY]);
        assert_eq!(i, [Some(1), None, None, None, None, None]);
        assert_eq!(e, [1; 6]);
    }

    #[test]
    fn the_bound_of_exact_integers_holds() {
        let (i, _) = round_trip(&[1], &[INTEGER_END - 1.0]);
        assert_eq!(i, [Some((1 << 53) - 1)]);
        let (i, _) = round_trip(&[1], &[INTEGER_END]);
        assert_eq!(i, [None]);
        // Each fits alone, not with one exponent.
        let (i, _) = round_trip(&[1, 1], &[INTEGER_END - 1.0, 0.1]);
        assert_eq!(i, [None, None]);
        round_trip(&[1, 2, 3, 4], &[f64::MIN_POSITIVE, 5e-324, f64::MAX, 1e22]);
    }
}
