//! Points as they are stored, for those who copy them: remote read and federation. The evaluator's own door is
//! [`crate::fetch`].
//!
//! Stale markers stay, histograms keep their hints and whether they count in integers.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{Float64Type, Int32Type, Int64Type},
};
use storage::{
    ScanRequest, Selector, SeriesInfo, Store,
    model::{Labels, Table, TenantId, batch::HistogramRow},
};

use crate::{
    error::QueryError,
    fetch::{column, range_of_millis},
};

/// All points of one series in a range; times in ms, ascending, each once.
#[derive(Clone, Debug, Default)]
pub struct RawSeries {
    /// With `__name__`.
    pub labels: Arc<Labels>,
    pub samples: Vec<(i64, f64)>,
    pub histograms: Vec<(i64, HistogramRow)>,
}

/// Points of the series with `from_ms <= ts <= to_ms`, in the order of `infos`; series without any are left out.
///
/// `left`: points that may still be read; `None` is returned when there are more. A histogram counts as ten.
pub async fn points(
    store: &Store,
    tenant: &TenantId,
    infos: &[SeriesInfo],
    (from_ms, to_ms): (i64, i64),
    left: &mut usize,
) -> Result<Option<Vec<RawSeries>>, QueryError> {
    let Some(range) = range_of_millis(from_ms, to_ms).filter(|_| !infos.is_empty()) else {
        return Ok(Some(Vec::new()));
    };
    let ids: Arc<[i64]> = infos.iter().map(|s| s.id).collect();
    let mut read = Vec::new();
    for (table, weight) in [(Table::MetricSamples, 1), (Table::MetricHistograms, 10)] {
        let mut request = ScanRequest::new(tenant.clone(), table, range).selector(Selector::Ids(ids.clone()));
        if table == Table::MetricSamples {
            request = request.columns(&["series_id", "ts_ms", "value"]);
        }
        let mut stream = store.scan(request).await?;
        let mut batches = Vec::new();
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            match left.checked_sub(batch.num_rows().saturating_mul(weight)) {
                Some(n) => *left = n,
                None => return Ok(None),
            }
            batches.push(batch);
        }
        read.push(batches);
    }
    let mut out: Vec<RawSeries> =
        infos.iter().map(|s| RawSeries { labels: s.labels.clone(), ..RawSeries::default() }).collect();
    tokio::task::spawn_blocking(move || {
        let index: HashMap<i64, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        for batch in &read[0] {
            gather_samples(batch, &index, &mut out)?;
        }
        for batch in &read[1] {
            gather_histograms(batch, &index, &mut out)?;
        }
        for series in &mut out {
            in_order(&mut series.samples);
            in_order(&mut series.histograms);
        }
        out.retain(|s| !s.samples.is_empty() || !s.histograms.is_empty());
        Ok(Some(out))
    })
    .await
    .map_err(|e| QueryError::Internal(e.to_string()))?
}

fn gather_samples(batch: &RecordBatch, index: &HashMap<i64, usize>, out: &mut [RawSeries]) -> Result<(), QueryError> {
    let ids = column(batch, "series_id")?.as_primitive::<Int64Type>().values();
    let ts = column(batch, "ts_ms")?.as_primitive::<Int64Type>().values();
    let values = column(batch, "value")?.as_primitive::<Float64Type>().values();
    // Rows come in runs of one series.
    let mut at = 0;
    while at < ids.len() {
        let end = at + ids[at..].iter().take_while(|i| **i == ids[at]).count();
        if let Some(i) = index.get(&ids[at]) {
            out[*i].samples.extend(ts[at..end].iter().copied().zip(values[at..end].iter().copied()));
        }
        at = end;
    }
    Ok(())
}

fn gather_histograms(
    batch: &RecordBatch,
    index: &HashMap<i64, usize>,
    out: &mut [RawSeries],
) -> Result<(), QueryError> {
    let ints = |name| Ok::<_, QueryError>(column(batch, name)?.as_primitive::<Int64Type>());
    let small = |name| Ok::<_, QueryError>(column(batch, name)?.as_primitive::<Int32Type>());
    let floats = |name| Ok::<_, QueryError>(column(batch, name)?.as_primitive::<Float64Type>());
    let list = |name: &str, row: usize| -> Result<Option<Vec<f64>>, QueryError> {
        let lists = column(batch, name)?.as_list::<i32>();
        Ok(lists.is_valid(row).then(|| lists.value(row).as_primitive::<Float64Type>().values().to_vec()))
    };
    let is_float = column(batch, "is_float")?.as_boolean();
    for row in 0..batch.num_rows() {
        let Some(series) = index.get(&ints("series_id")?.value(row)) else { continue };
        let histogram = HistogramRow {
            schema: small("schema")?.value(row),
            zero_threshold: floats("zero_threshold")?.value(row),
            zero_count: floats("zero_count")?.value(row),
            count: floats("count")?.value(row),
            sum: floats("sum")?.value(row),
            min: None,
            max: None,
            positive_offset: small("positive_offset")?.value(row),
            positive_counts: list("positive_counts", row)?.unwrap_or_default(),
            negative_offset: small("negative_offset")?.value(row),
            negative_counts: list("negative_counts", row)?.unwrap_or_default(),
            custom_bounds: list("custom_bounds", row)?,
            reset_hint: small("reset_hint")?.value(row),
            is_float: is_float.value(row),
        };
        out[*series].histograms.push((ints("ts_ms")?.value(row), histogram));
    }
    Ok(())
}

/// Ascending times; of equal ones the last in commit order stays.
fn in_order<T>(points: &mut Vec<(i64, T)>) {
    if points.windows(2).all(|w| w[0].0 < w[1].0) {
        return;
    }
    // Stable, so that the later commit comes later.
    points.sort_by_key(|p| p.0);
    points.reverse();
    points.dedup_by_key(|p| p.0);
    points.reverse();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_points_of_one_time_the_later_commit_counts() {
        let mut points = vec![(3, 'a'), (1, 'b'), (3, 'c'), (2, 'd'), (1, 'e')];
        in_order(&mut points);
        assert_eq!(points, [(1, 'e'), (2, 'd'), (3, 'c')]);
    }
}
