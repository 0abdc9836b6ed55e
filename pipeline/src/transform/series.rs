//! Metric series under new labels: new ids, one row for each, points moved along.

use std::collections::HashMap;

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, UInt32Array},
    compute::take_record_batch,
    datatypes::Int64Type,
};
use storage::model::{Labels, MetricBatch, labels::id_of_json};

use crate::{component::TransformError, transform::attributes::TextColumn};

/// Changes the labels of each series. Series that become equal become one; of two samples at one time of one series
/// the store keeps the later one.
pub(super) fn relabel(
    batch: MetricBatch,
    mut change: impl FnMut(&mut Labels),
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
    let mut derived = ["metric", "job", "instance"].map(|name| (name, column(name).map(TextColumn::like)));
    for row in 0..old.num_rows() {
        let mut labels =
            Labels::from_json(json.value(row)).map_err(|e| TransformError(format!("series labels: {e}")))?;
        change(&mut labels);
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
    if moved.iter().all(|(a, b)| a == b) {
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
        let ids = rows.column(0).as_primitive::<Int64Type>();
        let new: Int64Array = ids.values().iter().map(|id| moved.get(id).copied().unwrap_or(*id)).collect();
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
