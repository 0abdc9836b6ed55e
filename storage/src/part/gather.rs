//! Rows by permutation: each column of many batches, one output batch at a time.
//!
//! Low-cardinality dictionaries are first mapped to one dictionary for all batches, hashing only distinct values, so that
//! a row costs one key.

use std::{cell::LazyCell, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, DictionaryArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
        StringBuilder, UInt32Array, new_null_array,
    },
    compute::{concat, interleave, take},
    datatypes::{DataType, Float64Type, Int32Type, Int64Type, SchemaRef},
};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    PartError,
    sort::{MixedMap, Position},
};
use crate::limits;

/// Columns of all batches, ready for [`Gather::rows`].
pub(super) struct Gather<'a> {
    schema: SchemaRef,
    columns: Vec<Column<'a>>,
    /// First row of each batch, counted through all.
    bases: Vec<u32>,
}

enum Column<'a> {
    /// Null in every row.
    Null(DataType),
    /// Numbers, none of them null: copied from where they are.
    Integers(Vec<&'a [i64]>),
    Doubles(Vec<&'a [f64]>),
    /// Other numbers: joined, since copying them is cheap.
    Joined(ArrayRef),
    Dictionary {
        keys: Int32Array,
        values: ArrayRef,
    },
    /// Many distinct values: copied row by row.
    DictionaryRows(Vec<&'a DictionaryArray<Int32Type>>),
    /// Texts, bytes, lists: copied from where they are, never joined.
    Rows(Vec<&'a dyn Array>),
}

impl<'a> Gather<'a> {
    /// `batches`: all of one schema, at least one.
    pub(super) fn new(batches: &'a [RecordBatch]) -> Result<Self, PartError> {
        let mut bases = Vec::with_capacity(batches.len());
        let mut rows = 0usize;
        for b in batches {
            bases.push(u32::try_from(rows).map_err(|_| too_many())?);
            rows += b.num_rows();
        }
        u32::try_from(rows).map_err(|_| too_many())?;
        let schema = batches[0].schema();
        let columns = (0..schema.fields().len())
            .map(|c| Column::new(batches.iter().map(|b| b.column(c)).collect(), rows))
            .collect::<Result<_, _>>()?;
        Ok(Gather { schema, columns, bases })
    }

    /// The rows at `order`, in that order.
    pub(super) fn rows(&self, order: &[Position]) -> Result<RecordBatch, PartError> {
        let indexes = LazyCell::new(|| order.iter().map(|p| self.bases[p.batch as usize] + p.row).collect());
        let places = LazyCell::new(|| order.iter().map(|p| (p.batch as usize, p.row as usize)).collect());
        let columns = self.columns.iter().map(|c| c.rows(order, &indexes, &places)).collect::<Result<_, _>>()?;
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

fn too_many() -> PartError {
    PartError::Invalid("more than 4,294,967,295 rows for one part".into())
}

impl<'a> Column<'a> {
    fn new(arrays: Vec<&'a ArrayRef>, rows: usize) -> Result<Self, PartError> {
        let kind = arrays[0].data_type();
        let whole = arrays.iter().all(|a| a.null_count() == 0);
        if rows > 0 && arrays.iter().all(|a| a.null_count() == a.len()) {
            return Ok(Column::Null(kind.clone()));
        }
        Ok(match kind {
            DataType::Dictionary(..) => {
                let typed: Vec<_> = arrays.iter().copied().map(|a| a.as_dictionary::<Int32Type>()).collect();
                match one_dictionary(&typed, rows) {
                    Some((keys, values)) => Column::Dictionary { keys, values },
                    None => Column::DictionaryRows(typed),
                }
            }
            DataType::Utf8 | DataType::Binary | DataType::List(_) => {
                Column::Rows(arrays.iter().copied().map(|a| &**a).collect())
            }
            DataType::Int64 if whole => {
                Column::Integers(arrays.iter().map(|a| &**a.as_primitive::<Int64Type>().values()).collect())
            }
            DataType::Float64 if whole => {
                Column::Doubles(arrays.iter().map(|a| &**a.as_primitive::<Float64Type>().values()).collect())
            }
            _ => Column::Joined(concat(&arrays.iter().map(|a| a.as_ref()).collect::<Vec<_>>())?),
        })
    }

    /// `indexes` and `places`: the rows of `order`, counted through all batches, and with their batch.
    fn rows(
        &self,
        order: &[Position],
        indexes: &LazyCell<UInt32Array, impl FnOnce() -> UInt32Array>,
        places: &LazyCell<Vec<(usize, usize)>, impl FnOnce() -> Vec<(usize, usize)>>,
    ) -> Result<ArrayRef, PartError> {
        Ok(match self {
            Column::Null(kind) => new_null_array(kind, order.len()),
            Column::Integers(from) => Arc::new(Int64Array::from(pick(from, order))),
            Column::Doubles(from) => Arc::new(Float64Array::from(pick(from, order))),
            Column::Joined(a) => take(a, &**indexes, None)?,
            Column::Dictionary { keys, values } => {
                let keys = take(keys, &**indexes, None)?;
                Arc::new(DictionaryArray::try_new(keys.as_primitive::<Int32Type>().clone(), values.clone())?)
            }
            Column::DictionaryRows(arrays) => dictionary_rows(arrays, places)?,
            Column::Rows(arrays) => interleave(arrays, places)?,
        })
    }
}

fn pick<T: Copy>(from: &[&[T]], order: &[Position]) -> Vec<T> {
    order.iter().map(|p| from[p.batch as usize][p.row as usize]).collect()
}

/// Keys of all rows into one list of distinct values; `None` if that list is too large to be worth it.
fn one_dictionary(arrays: &[&DictionaryArray<Int32Type>], rows: usize) -> Option<(Int32Array, ArrayRef)> {
    let mut distinct = Distinct::default();
    let mut keys: Vec<Option<i32>> = Vec::with_capacity(rows);
    let mut previous: Option<(&ArrayRef, Vec<Option<i32>>)> = None;
    for d in arrays {
        let map = match previous.take() {
            Some((values, map)) if Arc::ptr_eq(values, d.values()) => map,
            _ => {
                let values = d.values().as_string::<i32>();
                values.iter().map(|v| v.map(|v| distinct.key(v))).collect()
            }
        };
        if distinct.bytes > limits::FLUSH_DICTIONARY_BYTES_MAX {
            return None;
        }
        keys.extend(d.keys().iter().map(|k| k.and_then(|k| map[k as usize])));
        previous = Some((d.values(), map));
    }
    let values = StringArray::from_iter_values(distinct.values);
    Some((Int32Array::from(keys), Arc::new(values)))
}

#[derive(Default)]
struct Distinct<'a> {
    /// By hash; on a collision of two texts the second takes the next free number.
    keys: MixedMap<u64, i32>,
    values: Vec<&'a str>,
    bytes: usize,
}

impl<'a> Distinct<'a> {
    fn key(&mut self, value: &'a str) -> i32 {
        let mut hash = xxh3_64(value.as_bytes());
        loop {
            match self.keys.get(&hash) {
                Some(k) if self.values[*k as usize] == value => return *k,
                Some(_) => hash = hash.wrapping_add(1),
                None => break,
            }
        }
        let key = self.values.len() as i32;
        self.keys.insert(hash, key);
        self.values.push(value);
        self.bytes += value.len() + 16;
        key
    }
}

/// A dictionary with one value a row or fewer.
fn dictionary_rows(arrays: &[&DictionaryArray<Int32Type>], places: &[(usize, usize)]) -> Result<ArrayRef, PartError> {
    let mut values = StringBuilder::new();
    let mut keys: Vec<Option<i32>> = Vec::with_capacity(places.len());
    let mut last: Option<((usize, i32), i32)> = None;
    let mut next = 0;
    for &(batch, row) in places {
        let d = arrays[batch];
        let texts = d.values().as_string::<i32>();
        let key = d.is_valid(row).then(|| d.keys().value(row)).filter(|k| texts.is_valid(*k as usize));
        let Some(key) = key else {
            keys.push(None);
            continue;
        };
        match last {
            Some((seen, mapped)) if seen == (batch, key) => keys.push(Some(mapped)),
            _ => {
                values.append_value(texts.value(key as usize));
                keys.push(Some(next));
                last = Some(((batch, key), next));
                next += 1;
            }
        }
    }
    Ok(Arc::new(DictionaryArray::try_new(Int32Array::from(keys), Arc::new(values.finish()))?))
}
