//! Parts of batches: what is sent again in smaller requests, or alone.

use std::collections::{BTreeSet, HashMap, HashSet};

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch, UInt32Array},
    compute::{filter_record_batch, take_record_batch},
    datatypes::Int64Type,
};
use storage::model::MetricBatch;

use crate::{
    codec::columns::{EncodeError, Text},
    component::Data,
};

/// The rows with these numbers, of logs and spans.
pub fn take(data: &Data, rows: &[u32]) -> Result<Data, EncodeError> {
    let numbers = UInt32Array::from(rows.to_vec());
    let taken = |b: &RecordBatch| take_record_batch(b, &numbers).map_err(|e| EncodeError(e.to_string()));
    match data {
        Data::Logs(b) => taken(b).map(Data::Logs),
        Data::Spans(b) => taken(b).map(Data::Spans),
        Data::Metrics(_) => Err(EncodeError("points of metrics cannot be taken one by one".into())),
    }
}

/// Two parts of about the same size, in order; `None` for what cannot be parted. Points that make one histogram or
/// summary stay together.
pub fn halve(data: &Data) -> Option<(Data, Data)> {
    match data {
        Data::Logs(b) => halve_rows(b).map(|(a, b)| (Data::Logs(a), Data::Logs(b))),
        Data::Spans(b) => halve_rows(b).map(|(a, b)| (Data::Spans(a), Data::Spans(b))),
        Data::Metrics(m) => halve_metrics(m).map(|(a, b)| (Data::Metrics(a), Data::Metrics(b))),
    }
}

fn halve_rows(b: &RecordBatch) -> Option<(RecordBatch, RecordBatch)> {
    let half = b.num_rows() / 2;
    (half > 0).then(|| (b.slice(0, half), b.slice(half, b.num_rows() - half)))
}

/// By family; of a single family by time.
fn halve_metrics(m: &MetricBatch) -> Option<(MetricBatch, MetricBatch)> {
    let ids = int64s(&m.series, "series_id")?;
    let metric = Text::of(&m.series, "metric").ok()?;
    let mut families: Vec<&str> = Vec::new();
    let mut family_of: HashMap<i64, usize> = HashMap::new();
    for (row, id) in ids.iter().enumerate() {
        let name = metric.at(row).unwrap_or_default();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
        let at = families.iter().rposition(|f| *f == family).unwrap_or_else(|| {
            families.push(family);
            families.len() - 1
        });
        family_of.insert(*id, at);
    }
    let half = families.len() / 2;
    if half > 0 {
        let first = |id: i64, _: i64| family_of.get(&id).is_some_and(|f| *f < half);
        return Some((select(m, &first)?, select(m, &|id, ts| !first(id, ts))?));
    }
    let times: BTreeSet<i64> =
        [&m.samples, &m.histograms].iter().filter_map(|b| int64s(b, "ts_ms")).flat_map(|t| t.to_vec()).collect();
    let middle = *times.iter().nth(times.len() / 2).filter(|_| times.len() > 1)?;
    Some((select(m, &|_, ts| ts < middle)?, select(m, &|_, ts| ts >= middle)?))
}

fn int64s<'b>(b: &'b RecordBatch, name: &str) -> Option<&'b [i64]> {
    Some(b.column_by_name(name)?.as_primitive_opt::<Int64Type>()?.values())
}

/// The points that `keep` (series, milliseconds) is true of, with their series.
fn select(m: &MetricBatch, keep: &dyn Fn(i64, i64) -> bool) -> Option<MetricBatch> {
    let mut used: HashSet<i64> = HashSet::new();
    let mut points = |b: &RecordBatch| -> Option<RecordBatch> {
        let (ids, times) = (int64s(b, "series_id")?, int64s(b, "ts_ms")?);
        let mask: Vec<bool> = ids.iter().zip(times).map(|(id, ts)| keep(*id, *ts)).collect();
        used.extend(ids.iter().zip(&mask).filter(|(_, k)| **k).map(|(id, _)| *id));
        filter_record_batch(b, &BooleanArray::from(mask)).ok()
    };
    let (samples, histograms, exemplars) = (points(&m.samples)?, points(&m.histograms)?, points(&m.exemplars)?);
    let mask: Vec<bool> = int64s(&m.series, "series_id")?.iter().map(|id| used.contains(id)).collect();
    let series = filter_record_batch(&m.series, &BooleanArray::from(mask)).ok()?;
    Some(MetricBatch { series, samples, histograms, exemplars })
}

#[cfg(test)]
mod tests {
    use storage::model::{Labels, LogBatchBuilder, LogRow, MetricBatchBuilder, batch::SeriesMeta};

    use super::*;

    #[test]
    fn halves_hold_every_row_once_and_families_stay_together() {
        let mut b = LogBatchBuilder::new();
        for ts in 0..5 {
            b.push(&LogRow { ts, stream_labels: "{}", body: "x", ..LogRow::default() });
        }
        let logs = Data::Logs(b.finish());
        let (first, second) = halve(&logs).unwrap();
        assert_eq!((first.rows(), second.rows()), (2, 3));
        let Data::Logs(taken) = take(&logs, &[1, 4]).unwrap() else { panic!() };
        assert_eq!(taken.num_rows(), 2);

        let mut m = MetricBatchBuilder::new();
        for name in ["h_bucket", "h_sum", "h_count", "x"] {
            let id = m.series(&Labels::from_pairs([("__name__", name)]), SeriesMeta::default());
            m.sample(id, 1, None, 1.0);
            m.sample(id, 2, None, 1.0);
        }
        let (first, second) = halve(&Data::Metrics(m.finish())).unwrap();
        assert_eq!((first.rows(), second.rows()), (6, 2));
        let (early, late) = halve(&first).unwrap();
        assert_eq!((early.rows(), late.rows()), (3, 3));
        assert!(halve(&early).is_none(), "one histogram is not torn");
    }
}
