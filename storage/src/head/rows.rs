//! From an input batch to a stored one: derived columns, and what the label index needs to know of the rows.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, new_null_array},
    datatypes::{DataType, Int32Type, Int64Type, TimestampNanosecondType},
};

use crate::{
    AppendError,
    catalog::Bucket,
    index::template::template_id,
    model::{
        Labels, Table,
        labels::id_of_json,
        schema,
        time::{NANOS_PER_DAY, NANOS_PER_MILLI},
    },
};

/// One stream of a logs batch: what the label index takes from it.
#[derive(Debug)]
pub(crate) struct StreamSpan {
    pub id: i64,
    pub labels: Arc<Labels>,
    /// First and last time of its rows on each day that has any: two rows decades apart are two days, not all between.
    pub lives: Vec<(i64, i64)>,
}

/// A batch of the head schema, ready for the WAL and the head.
#[derive(Debug)]
pub(crate) struct StoredRows {
    pub table: Table,
    pub batch: RecordBatch,
    /// Event time of the rows, nanoseconds, inclusive.
    pub min_ts: i64,
    pub max_ts: i64,
    /// Logs only.
    pub streams: Vec<StreamSpan>,
}

/// Checks a batch against its table's input schema and adds the columns the store derives. CPU-bound: template ids take
/// a pass over the bodies.
pub(crate) fn derive(table: Table, batch: &RecordBatch) -> Result<StoredRows, AppendError> {
    check_schema(table, batch)?;
    let mut columns = batch.columns().to_vec();
    let mut streams = Vec::new();
    match table {
        Table::Logs => {
            let times = batch.column(0).as_primitive::<TimestampNanosecondType>().values();
            let labels = batch.column(2).as_dictionary::<Int32Type>();
            let texts = labels.values().as_string::<i32>();
            let keys = labels.keys().values();
            let ids: Vec<i64> = texts.iter().map(|v| id_of_json(v.unwrap_or("{}"))).collect();
            streams = stream_spans(&ids, texts, keys, times)?;
            let streams_of_rows = Int64Array::from_iter_values(keys.iter().map(|k| ids[*k as usize]));
            columns.push(Arc::new(streams_of_rows) as ArrayRef);
            let bodies = batch.column(10).as_string::<i32>();
            let templates: Vec<i64> = (0..bodies.len()).map(|i| template_id(bodies.value(i).as_bytes())).collect();
            columns.push(Arc::new(Int64Array::from(templates)));
        }
        Table::Spans => {
            check_ids(batch)?;
            for _ in 0..4 {
                columns.push(new_null_array(&DataType::Int32, batch.num_rows()));
            }
        }
        _ => {}
    }
    let stored =
        RecordBatch::try_new(schema::head(table), columns).map_err(|e| AppendError::Invalid(e.to_string()))?;
    let (min_ts, max_ts) = time_bounds(table, &stored);
    Ok(StoredRows { table, batch: stored, min_ts, max_ts, streams })
}

/// Whether a batch has its table's input schema (metadata aside).
pub(crate) fn check_schema(table: Table, batch: &RecordBatch) -> Result<(), AppendError> {
    if batch.schema_ref().fields() != schema::input(table).fields() {
        return Err(AppendError::Invalid(format!("batch does not have the schema of table {}", table.name())));
    }
    Ok(())
}

fn check_ids(batch: &RecordBatch) -> Result<(), AppendError> {
    for (column, bytes) in [(0, 16), (1, 8)] {
        let ids = batch.column(column).as_binary::<i32>();
        if ids.iter().any(|v| v.is_none_or(|v| v.len() != bytes)) {
            return Err(AppendError::Invalid(format!(
                "{} is not {bytes} bytes long",
                batch.schema_ref().field(column).name()
            )));
        }
    }
    Ok(())
}

fn stream_spans(
    ids: &[i64],
    texts: &arrow::array::StringArray,
    keys: &[i32],
    times: &[i64],
) -> Result<Vec<StreamSpan>, AppendError> {
    let mut bounds = vec![(i64::MAX, i64::MIN); ids.len()];
    for (k, t) in keys.iter().zip(times) {
        let b = &mut bounds[*k as usize];
        b.0 = b.0.min(*t);
        b.1 = b.1.max(*t);
    }
    let day = |t: i64| t.div_euclid(NANOS_PER_DAY);
    // Streams with rows of several days, which are few.
    let several: Vec<bool> = bounds.iter().map(|(min, max)| min < max && day(*min) != day(*max)).collect();
    let mut by_day: BTreeMap<(i32, i64), (i64, i64)> = BTreeMap::new();
    if several.contains(&true) {
        for (k, t) in keys.iter().zip(times).filter(|(k, _)| several[**k as usize]) {
            let life = by_day.entry((*k, day(*t))).or_insert((*t, *t));
            *life = (life.0.min(*t), life.1.max(*t));
        }
    }
    let mut out = Vec::with_capacity(ids.len());
    for (i, (min_ts, max_ts)) in bounds.into_iter().enumerate() {
        if min_ts > max_ts {
            continue; // a dictionary value no row uses
        }
        let labels = Labels::from_json(texts.value(i)).map_err(|e| {
            AppendError::Invalid(format!("stream labels {:?} are not a JSON object: {e}", texts.value(i)))
        })?;
        if labels.to_json() != texts.value(i) {
            return Err(AppendError::Invalid(format!("stream labels {:?} are not canonical", texts.value(i))));
        }
        let lives = match several[i] {
            false => vec![(min_ts, max_ts)],
            true => by_day.range((i as i32, i64::MIN)..=(i as i32, i64::MAX)).map(|(_, life)| *life).collect(),
        };
        out.push(StreamSpan { id: ids[i], labels: Arc::new(labels), lives });
    }
    Ok(out)
}

/// Streams of a logs batch of the head schema (from the WAL), without the checks of [`derive`].
pub(crate) fn streams_of(batch: &RecordBatch) -> Vec<StreamSpan> {
    let times = batch.column(0).as_primitive::<TimestampNanosecondType>().values();
    let labels = batch.column(2).as_dictionary::<Int32Type>();
    let texts = labels.values().as_string::<i32>();
    let ids: Vec<i64> = texts.iter().map(|v| id_of_json(v.unwrap_or("{}"))).collect();
    stream_spans(&ids, texts, labels.keys().values(), times).unwrap_or_default()
}

/// Event time of the earliest and latest row, nanoseconds; `(0, -1)` for none.
pub(crate) fn time_bounds(table: Table, batch: &RecordBatch) -> (i64, i64) {
    if batch.num_rows() == 0 {
        return (0, -1);
    }
    let Some(column) = batch.column_by_name(table.time_column()) else { return (0, -1) };
    let (values, scale) = match table {
        Table::Logs | Table::Spans => (column.as_primitive::<TimestampNanosecondType>().values(), 1),
        _ => (column.as_primitive::<Int64Type>().values(), NANOS_PER_MILLI),
    };
    let (mut min, mut max) = (i64::MAX, i64::MIN);
    for v in values.iter() {
        min = min.min(*v);
        max = max.max(*v);
    }
    if table == Table::MetricSeries
        && let Some(last) = batch.column_by_name("last_ms")
    {
        for v in last.as_primitive::<Int64Type>().values() {
            max = max.max(*v);
        }
    }
    (min.saturating_mul(scale), max.saturating_mul(scale))
}

/// Splits rows into event-time buckets of an hour, or of a day where hours would be more than `hours_max`.
/// Series rows go by day.
pub(crate) fn split_by_bucket(
    table: Table,
    batches: &[RecordBatch],
    hours_max: usize,
) -> Result<Vec<(Bucket, Vec<RecordBatch>)>, crate::ScanError> {
    use crate::model::time::{NANOS_PER_DAY, NANOS_PER_HOUR};
    let times_of = |b: &RecordBatch| crate::scan::select::times_of(table, b);
    // A batch usually lies within one hour, which its bounds show.
    let bounds: Vec<(i64, i64)> = batches.iter().map(|b| time_bounds(table, b)).collect();
    let within = |(min, max): (i64, i64), width: i64| {
        Some(min.div_euclid(width)).filter(|bucket| max.div_euclid(width) == *bucket)
    };
    let mut hours: Vec<i64> = Vec::new();
    for (batch, bounds) in batches.iter().zip(&bounds) {
        if batch.num_rows() == 0 || hours.len() > hours_max {
            continue;
        }
        let single = within(*bounds, NANOS_PER_HOUR);
        let times = if single.is_some() { Vec::new() } else { times_of(batch)? };
        let mut last = None;
        for hour in single.into_iter().chain(times.into_iter().map(|t| t.div_euclid(NANOS_PER_HOUR))) {
            if last != Some(hour) && hours.len() <= hours_max {
                last = Some(hour);
                if !hours.contains(&hour) {
                    hours.push(hour);
                }
            }
        }
    }
    let by_day = table == Table::MetricSeries || hours.len() > hours_max;
    let width = if by_day { NANOS_PER_DAY } else { NANOS_PER_HOUR };
    let mut out: std::collections::BTreeMap<i64, Vec<RecordBatch>> = std::collections::BTreeMap::new();
    for (batch, bounds) in batches.iter().zip(&bounds).filter(|(b, _)| b.num_rows() > 0) {
        if let Some(bucket) = within(*bounds, width) {
            out.entry(bucket).or_default().push(batch.clone());
            continue;
        }
        let mut rows: HashMap<i64, Vec<u32>> = HashMap::new();
        for (i, t) in times_of(batch)?.into_iter().enumerate() {
            rows.entry(t.div_euclid(width)).or_default().push(i as u32);
        }
        for (bucket, rows) in rows {
            let taken = arrow::compute::take_record_batch(batch, &arrow::array::UInt32Array::from(rows))?;
            out.entry(bucket).or_default().push(taken);
        }
    }
    let bucket = |b| if by_day { Bucket::Day(b) } else { Bucket::Hour(b) };
    Ok(out.into_iter().map(|(b, rows)| (bucket(b), rows)).collect())
}

#[cfg(test)]
mod span_tests {
    use super::*;
    use crate::model::{LogBatchBuilder, LogRow};

    #[test]
    fn a_stream_lives_on_the_days_of_its_rows_and_not_on_those_between() {
        let mut b = LogBatchBuilder::new();
        for (ts, labels) in [(5, "{}"), (7, "{}"), (20_000 * NANOS_PER_DAY, "{}"), (9, r#"{"a":"b"}"#)] {
            b.push(&LogRow { ts, stream_labels: labels, ..LogRow::default() });
        }
        let streams = streams_of(&b.finish());
        let lives: Vec<_> = streams.iter().map(|s| s.lives.clone()).collect();
        let late = 20_000 * NANOS_PER_DAY;
        assert_eq!(lives, [vec![(5, 7), (late, late)], vec![(9, 9)]]);
    }
}
