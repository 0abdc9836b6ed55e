//! Another point of a series at a time that has one.
//!
//! It is either the same again, because somebody did not hear that it was taken, or it contradicts what there is. Who appends
//! says what becomes of the latter: [`Repeats`]. To refuse it, the label index keeps the newest point of each series, 16 bytes of
//! it: a point is compared with that one alone, as in Prometheus. Older times are not looked at; there the later commit counts.
//!
//! What is not known contradicts nothing: points of parts that were there when the process started, those of the WAL until they
//! are flushed after the start, and all after a delete. Of two appends that are under way at the same moment both may be taken.

use std::{borrow::Cow, collections::HashMap};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch},
    compute::filter_record_batch,
    datatypes::{Float64Type, Int32Type, Int64Type},
};
use xxhash_rust::xxh3::Xxh3;

use super::{
    cardinality::{Refused, labels_of, shown},
    pairs::Slot,
    series::{LabelIndex, PAGE},
};
use crate::{
    AppendError,
    model::{Labels, Table, time::NANOS_PER_MILLI},
};

/// What becomes of a point at the time of the newest one of its series, with another value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repeats {
    /// It takes the place of the other.
    #[default]
    LaterWins,
    /// It is left out of the append, and told: [`Refused::repeated`].
    Refused,
}

/// The newest point of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Newest {
    /// Nanoseconds.
    pub at: i64,
    /// See [`marks`].
    pub mark: u64,
}

const NONE: Newest = Newest { at: i64::MIN, mark: 0 };

/// The newest points of series, by slot.
#[derive(Debug, Default)]
pub(crate) struct NewestPoints(Vec<Option<Box<[Newest; PAGE]>>>);

impl NewestPoints {
    /// One that is older than every point, where none is known.
    #[inline]
    pub fn of(&self, slot: Slot) -> Newest {
        let slot = slot as usize;
        self.0.get(slot / PAGE).and_then(Option::as_ref).map_or(NONE, |page| page[slot % PAGE])
    }

    /// Enters a point, which is nothing where a newer one is known.
    #[inline]
    pub fn enter(&mut self, slot: Slot, point: Newest) {
        if point == NONE {
            return;
        }
        let slot = slot as usize;
        if self.0.len() <= slot / PAGE {
            self.0.resize_with(slot / PAGE + 1, || None);
        }
        let page = self.0[slot / PAGE].get_or_insert_with(|| Box::new([NONE; PAGE]));
        let known = &mut page[slot % PAGE];
        if point.at >= known.at {
            *known = point;
        }
    }

    pub fn forget(&mut self) {
        self.0 = Vec::new();
    }
}

/// What tells a point from others at its time, row by row: the bits of a sample's value (so that NaN equals the same NaN alone,
/// and a stale marker another), a hash of all that a histogram is. Of exemplars nothing, and no other table has any.
pub(super) fn marks(table: Table, batch: &RecordBatch) -> Option<Cow<'_, [u64]>> {
    match table {
        Table::MetricSamples => {
            let values = batch.column(3).as_primitive::<Float64Type>().values();
            Some(Cow::Borrowed(values.inner().typed_data::<u64>()))
        }
        Table::MetricHistograms => Some(Cow::Owned(hashes(batch))),
        _ => None,
    }
}

/// Columns that are not the histogram itself.
const BESIDE: [&str; 4] = ["series_id", "ts_ms", "start_ms", "reset_hint"];

fn hashes(batch: &RecordBatch) -> Vec<u64> {
    let columns: Vec<&ArrayRef> = (batch.schema_ref().fields().iter())
        .zip(batch.columns())
        .filter(|(field, _)| !BESIDE.contains(&field.name().as_str()))
        .map(|(_, column)| column)
        .collect();
    let of_row = |i: usize| {
        let mut hash = Xxh3::new();
        for column in &columns {
            let valid = column.is_valid(i);
            hash.update(&[u8::from(valid)]);
            if !valid {
                continue;
            }
            if let Some(list) = column.as_list_opt::<i32>() {
                let list = list.value(i);
                hash.update(&(list.len() as u64).to_le_bytes());
                let counts = list.as_primitive::<Float64Type>().values();
                counts.iter().for_each(|c| hash.update(&c.to_bits().to_le_bytes()));
            } else if let Some(numbers) = column.as_primitive_opt::<Float64Type>() {
                hash.update(&numbers.value(i).to_bits().to_le_bytes());
            } else if let Some(numbers) = column.as_primitive_opt::<Int32Type>() {
                hash.update(&numbers.value(i).to_le_bytes());
            } else if let Some(flags) = column.as_boolean_opt() {
                hash.update(&[u8::from(flags.value(i))]);
            }
        }
        hash.digest()
    };
    (0..batch.num_rows()).map(of_row).collect()
}

/// What is to be left out of an append.
#[derive(Debug)]
pub(crate) struct Repeated {
    /// For each of the append's batches, which rows stay; `None`: all.
    keep: Vec<Option<BooleanArray>>,
    /// The first of them, as it is told.
    told: String,
}

/// Points of an append, in its order, that contradict the newest point of their series: one that is there, or one ahead of them in
/// the same append. `None`: there is none. Costs a look-up for each row.
pub(crate) fn find(rows: &[(Table, RecordBatch)], index: &LabelIndex) -> Result<Option<Repeated>, AppendError> {
    let mut newest: HashMap<i64, Newest> = HashMap::new();
    let mut keep = Vec::with_capacity(rows.len());
    let mut first = None;
    for (table, batch) in rows {
        let Some(marks) = of_points(*table, batch)? else {
            keep.push(None);
            continue;
        };
        let ids = batch.column(0).as_primitive::<Int64Type>().values();
        let times = batch.column(1).as_primitive::<Int64Type>().values();
        let mut all = true;
        let stays: Vec<bool> = (ids.iter().zip(times).zip(marks.iter()))
            .map(|((id, ms), mark)| {
                let point = Newest { at: ms.saturating_mul(NANOS_PER_MILLI), mark: *mark };
                let known = newest.entry(*id).or_insert_with(|| index.newest(*id).unwrap_or(NONE));
                if point.at == known.at && point.mark != known.mark {
                    first.get_or_insert((*id, *ms));
                    all = false;
                    return false;
                }
                if point.at > known.at {
                    *known = point;
                }
                true
            })
            .collect();
        keep.push((!all).then(|| BooleanArray::from(stays)));
    }
    let Some((id, ms)) = first else { return Ok(None) };
    let told = || Labels::from_json(labels_of(rows).get(&id)?).ok();
    let labels = index.labels(id).or_else(told).unwrap_or_default();
    let told = format!(
        "duplicate sample for timestamp {ms}: series {} has another value at that time, which stays",
        shown(&labels)
    );
    Ok(Some(Repeated { keep, told }))
}

fn of_points(table: Table, batch: &RecordBatch) -> Result<Option<Cow<'_, [u64]>>, AppendError> {
    if batch.num_rows() == 0 || !matches!(table, Table::MetricSamples | Table::MetricHistograms) {
        return Ok(None);
    }
    super::rows::check_schema(table, batch)?;
    Ok(marks(table, batch))
}

/// Takes them out of the append they were found in.
pub(crate) fn leave_out(rows: &mut [(Table, RecordBatch)], repeated: Repeated, refused: &mut Refused) {
    for ((table, batch), keep) in rows.iter_mut().zip(repeated.keep) {
        let Some(keep) = keep else { continue };
        let kept = filter_record_batch(batch, &keep).expect("the mask is as long as the rows");
        let out = batch.num_rows() - kept.num_rows();
        match table {
            Table::MetricHistograms => refused.histograms += out,
            _ => refused.samples += out,
        }
        refused.repeated += out;
        *batch = kept;
    }
    refused.repeat.get_or_insert(repeated.told);
}

#[cfg(test)]
#[path = "repeats_tests.rs"]
mod tests;
