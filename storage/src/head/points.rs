//! Series of metric points: which (series, day) pairs a batch touches, and which of them are new.
//!
//! A series has one row in `metric_series` for each day it has a point on; the WAL carries a row only when it is new, or
//! when it tells a type, unit or help that was not known (remote write 1.0 sends those after the first samples).

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array},
    datatypes::{Int32Type, Int64Type},
};

use super::{
    rows::{StoredRows, StreamSpan},
    series::{LabelIndex, SeriesText},
};
use crate::{
    AppendError,
    model::{
        Labels, Table,
        labels::id_of_json,
        schema,
        time::{MILLIS_PER_DAY, NANOS_PER_DAY, NANOS_PER_MILLI},
    },
};

/// (series, day) to the first and last time of its points, nanoseconds.
pub(crate) type Lives = HashMap<(i64, i64), (i64, i64)>;

/// Adds the lives of a points batch; other tables are left alone.
pub(crate) fn lives_of(table: Table, batch: &RecordBatch, lives: &mut Lives) -> Result<(), AppendError> {
    if !matches!(table, Table::MetricSamples | Table::MetricHistograms | Table::MetricExemplars) {
        return Ok(());
    }
    super::rows::check_schema(table, batch)?;
    let ids = batch.column(0).as_primitive::<Int64Type>().values();
    let times = batch.column(1).as_primitive::<Int64Type>().values();
    let (mut last, mut bounds) = (None, (0, 0));
    for (id, ms) in ids.iter().zip(times) {
        let key = (*id, ms.div_euclid(MILLIS_PER_DAY));
        let ns = ms.saturating_mul(NANOS_PER_MILLI);
        if last == Some(key) {
            bounds = (ns.min(bounds.0), ns.max(bounds.1));
            continue;
        }
        if let Some(key) = last {
            join(lives, key, bounds);
        }
        (last, bounds) = (Some(key), (ns, ns));
    }
    if let Some(key) = last {
        join(lives, key, bounds);
    }
    Ok(())
}

fn join(lives: &mut Lives, key: (i64, i64), bounds: (i64, i64)) {
    lives.entry(key).and_modify(|b| *b = (b.0.min(bounds.0), b.1.max(bounds.1))).or_insert(bounds);
}

/// The rows of `series` that the index lacks, one for each new (series, day), with that day's first and last time.
pub(crate) fn new_series(
    index: &LabelIndex,
    series: &RecordBatch,
    lives: &Lives,
) -> Result<Option<RecordBatch>, AppendError> {
    let ids = series.column(0).as_primitive::<Int64Type>().values();
    let texts = series.column(1).as_string::<i32>();
    let told = ["type", "unit", "help"].map(|name| series.column_by_name(name));
    let mut row_of: HashMap<i64, u32> = HashMap::with_capacity(ids.len());
    for (i, id) in ids.iter().enumerate() {
        row_of.insert(*id, i as u32);
    }
    let mut rows = Vec::new();
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for ((id, day), (min, max)) in lives {
        if let Some(known) = index.entry(*day, *id) {
            let Some(row) = row_of.get(id) else { continue };
            let known = match known.meta.as_deref() {
                Some(text) => [text.metric_type.is_some(), text.unit.is_some(), text.help.is_some()],
                None => [false; 3],
            };
            let new = told.map(|column| column.is_some_and(|c| c.is_valid(*row as usize)));
            // More than before, and nothing less: two senders that disagree must not write it again and again.
            if new == known || !known.iter().zip(new).all(|(k, n)| n || !k) {
                continue;
            }
        }
        let Some(row) = row_of.get(id) else {
            return Err(AppendError::Invalid(format!("points of series {id} come without its labels")));
        };
        let text = texts.value(*row as usize);
        if id_of_json(text) != *id {
            return Err(AppendError::Invalid(format!("series id {id} is not the hash of its labels {text}")));
        }
        if let Some(known) = index.labels(*id)
            && known.to_json() != text
        {
            return Err(AppendError::Invalid(format!("labels {text} collide with {known} in their 64-bit id")));
        }
        rows.push(*row);
        first.push(min.div_euclid(NANOS_PER_MILLI));
        last.push(max.div_euclid(NANOS_PER_MILLI));
    }
    if rows.is_empty() {
        return Ok(None);
    }
    let taken = arrow::compute::take_record_batch(series, &UInt32Array::from(rows))
        .map_err(|e| AppendError::Invalid(e.to_string()))?;
    let mut columns: Vec<ArrayRef> = taken.columns().to_vec();
    let at = columns.len() - 2;
    columns[at] = Arc::new(Int64Array::from(first));
    columns[at + 1] = Arc::new(Int64Array::from(last));
    RecordBatch::try_new(schema::input(Table::MetricSeries), columns)
        .map(Some)
        .map_err(|e| AppendError::Invalid(e.to_string()))
}

/// Enters streams or series of stored rows into the index of their table.
pub(crate) fn index_rows(index: &mut LabelIndex, rows: &StoredRows) {
    match rows.table {
        Table::Logs => {
            index_streams(index, &rows.streams);
        }
        Table::MetricSeries => index_series(index, &rows.batch, false),
        _ => {}
    }
}

/// Enters the streams of a logs batch.
pub(crate) fn index_streams(index: &mut LabelIndex, streams: &[StreamSpan]) {
    for s in streams {
        for (min, max) in &s.lives {
            index.add(min.div_euclid(NANOS_PER_DAY), s.id, &s.labels, *min, *max, None);
        }
    }
}

/// Enters series rows. `whole_day`: their times are not final (they were written when the series was new, and points may
/// have come before and behind them), so they are taken to live all day.
pub(crate) fn index_series(index: &mut LabelIndex, batch: &RecordBatch, whole_day: bool) {
    let column = |name: &str| batch.column_by_name(name);
    let (Some(ids), Some(texts), Some(first), Some(last)) =
        (column("series_id"), column("labels"), column("first_ms"), column("last_ms"))
    else {
        return;
    };
    let (ids, texts) = (ids.as_primitive::<Int64Type>(), texts.as_string::<i32>());
    let (first, last) = (first.as_primitive::<Int64Type>(), last.as_primitive::<Int64Type>());
    let text = |name: &str, i: usize| -> Option<Arc<str>> {
        let d = column(name)?.as_dictionary::<Int32Type>();
        d.is_valid(i).then(|| Arc::from(d.values().as_string::<i32>().value(d.keys().value(i) as usize)))
    };
    for i in 0..batch.num_rows() {
        let Ok(labels) = Labels::from_json(texts.value(i)) else { continue };
        let day = first.value(i).div_euclid(MILLIS_PER_DAY);
        let (first, last) = if whole_day {
            (day.saturating_mul(MILLIS_PER_DAY), (day + 1).saturating_mul(MILLIS_PER_DAY) - 1)
        } else {
            (first.value(i), last.value(i))
        };
        let meta = SeriesText { metric_type: text("type", i), unit: text("unit", i), help: text("help", i) };
        index.add(
            day,
            ids.value(i),
            &Arc::new(labels),
            first.saturating_mul(NANOS_PER_MILLI),
            last.saturating_mul(NANOS_PER_MILLI),
            Some(meta),
        );
    }
}
