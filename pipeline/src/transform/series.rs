//! Metric series under new labels (new ids, one row for each, points moved along), and fewer series or points.

use std::collections::HashMap;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, UInt32Array},
    compute::{filter_record_batch, take_record_batch},
    datatypes::Int64Type,
};
use storage::model::{Labels, MetricBatch, labels::id_of_json};

use crate::{
    component::{Data, TransformError},
    transform::attributes::TextColumn,
};

/// The rows whose mask is true.
pub(super) fn keep_rows(rows: RecordBatch, mask: Vec<bool>) -> Result<RecordBatch, TransformError> {
    if mask.iter().all(|k| *k) {
        return Ok(rows);
    }
    Ok(filter_record_batch(&rows, &BooleanArray::from(mask))?)
}

/// The log records or spans that the mask has; points of metrics are not looked at.
pub(super) fn keep_where(data: Data, mask: impl FnOnce(&RecordBatch) -> Vec<bool>) -> Result<Data, TransformError> {
    let (rows, wrap): (RecordBatch, fn(RecordBatch) -> Data) = match data {
        Data::Logs(rows) => (rows, Data::Logs),
        Data::Spans(rows) => (rows, Data::Spans),
        Data::Metrics(_) => return Ok(data),
    };
    let mask = mask(&rows);
    keep_rows(rows, mask).map(wrap)
}

/// The series whose mask is true, with their points.
pub(super) fn keep_series(m: MetricBatch, mask: &[bool]) -> Result<MetricBatch, TransformError> {
    if mask.iter().all(|k| *k) {
        return Ok(m);
    }
    let fates = by_series(&m, mask);
    let points = |rows: RecordBatch| {
        let kept = ids_of(&rows).iter().map(|id| fates.get(id).copied().unwrap_or(false)).collect();
        keep_rows(rows, kept)
    };
    Ok(MetricBatch {
        series: keep_rows(m.series, mask.to_vec())?,
        samples: points(m.samples)?,
        histograms: points(m.histograms)?,
        exemplars: points(m.exemplars)?,
    })
}

/// The points whose fate is true, asked in the order of rows. Series without points stay: a source may send a series row
/// alone.
pub(super) fn keep_points<T: Copy>(
    m: MetricBatch,
    facts: &[T],
    absent: T,
    mut fate: impl FnMut(T) -> bool,
) -> Result<MetricBatch, TransformError> {
    let facts = by_series(&m, facts);
    let mut points = |rows: RecordBatch| {
        let kept = ids_of(&rows).iter().map(|id| fate(facts.get(id).copied().unwrap_or(absent))).collect();
        keep_rows(rows, kept)
    };
    Ok(MetricBatch {
        samples: points(m.samples)?,
        histograms: points(m.histograms)?,
        exemplars: points(m.exemplars)?,
        series: m.series,
    })
}

/// A fact of each series row, by series id.
fn by_series<T: Copy>(m: &MetricBatch, facts: &[T]) -> HashMap<i64, T> {
    ids_of(&m.series).iter().copied().zip(facts.iter().copied()).collect()
}

/// The series id of each row: the first column of all four tables.
fn ids_of(rows: &RecordBatch) -> &[i64] {
    rows.column(0).as_primitive::<Int64Type>().values()
}

/// Changes the labels of each series; a series whose change says `false` leaves with its points. Series that become
/// equal become one; of two samples at one time of one series the store keeps the later one.
pub(super) fn relabel(
    batch: MetricBatch,
    mut change: impl FnMut(&mut Labels) -> bool,
) -> Result<MetricBatch, TransformError> {
    let old = &batch.series;
    let column = |name: &str| {
        old.column_by_name(name).ok_or_else(|| TransformError(format!("the series have no column `{name}`")))
    };
    let json = column("labels")?.as_string::<i32>();
    let ids = column("series_id")?.as_primitive::<Int64Type>();
    let (first, last) =
        (column("first_ms")?.as_primitive::<Int64Type>(), column("last_ms")?.as_primitive::<Int64Type>());
    let mut moved: HashMap<i64, i64> = HashMap::with_capacity(old.num_rows());
    let mut row_of: HashMap<i64, usize> = HashMap::new();
    let (mut rows, mut texts, mut new_ids, mut span) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut dropped = false;
    let mut derived = ["metric", "job", "instance"].map(|name| (name, column(name).map(TextColumn::like)));
    for row in 0..old.num_rows() {
        let mut labels =
            Labels::from_json(json.value(row)).map_err(|e| TransformError(format!("series labels: {e}")))?;
        if !change(&mut labels) {
            dropped = true;
            continue;
        }
        let text = labels.to_json();
        let id = id_of_json(&text);
        moved.insert(ids.value(row), id);
        if let Some(at) = row_of.get(&id) {
            let (f, l): &mut (i64, i64) = &mut span[*at];
            *f = (*f).min(first.value(row));
            *l = (*l).max(last.value(row));
            continue;
        }
        row_of.insert(id, rows.len());
        rows.push(row as u32);
        new_ids.push(id);
        span.push((first.value(row), last.value(row)));
        for (name, out) in &mut derived {
            if let Ok(out) = out {
                match *name {
                    "metric" => out.push(Some(labels.get("__name__").unwrap_or(""))),
                    other => out.push(labels.get(other)),
                }
            }
        }
        texts.push(text);
    }
    if !dropped && moved.iter().all(|(a, b)| a == b) {
        return Ok(batch);
    }
    let kept = take_record_batch(old, &UInt32Array::from(rows))?;
    let mut columns: Vec<ArrayRef> = kept.columns().to_vec();
    let schema = kept.schema();
    let mut put = |name: &str, array: ArrayRef| -> Result<(), TransformError> {
        columns[schema.index_of(name)?] = array;
        Ok(())
    };
    put("series_id", std::sync::Arc::new(Int64Array::from(new_ids)))?;
    put("labels", std::sync::Arc::new(StringArray::from(texts)))?;
    put("first_ms", std::sync::Arc::new(span.iter().map(|s| s.0).collect::<Int64Array>()))?;
    put("last_ms", std::sync::Arc::new(span.iter().map(|s| s.1).collect::<Int64Array>()))?;
    for (name, out) in derived {
        put(name, out?.finish())?;
    }
    let points = |rows: &RecordBatch| -> Result<RecordBatch, TransformError> {
        let rows = keep_rows(rows.clone(), ids_of(rows).iter().map(|id| moved.contains_key(id)).collect())?;
        let new: Int64Array = ids_of(&rows).iter().map(|id| moved[id]).collect();
        let mut columns = rows.columns().to_vec();
        columns[0] = std::sync::Arc::new(new);
        Ok(RecordBatch::try_new(rows.schema(), columns)?)
    };
    Ok(MetricBatch {
        samples: points(&batch.samples)?,
        histograms: points(&batch.histograms)?,
        exemplars: points(&batch.exemplars)?,
        series: RecordBatch::try_new(schema, columns)?,
    })
}
