//! Exemplars that are there already: one that was sent again, after an answer that was lost, is stored once.

use std::collections::HashSet;

use arrow::{
    array::{Array, AsArray, BooleanArray, RecordBatch},
    compute::filter_record_batch,
    datatypes::{Float64Type, Int64Type},
};
use xxhash_rust::xxh3::xxh3_128;

use super::PartError;

/// Different exemplars of one series and time that are remembered; beyond, all are kept.
const REMEMBERED_MAX: usize = 4096;

/// Takes rows in sort order, batch after batch.
#[derive(Debug, Default)]
pub(crate) struct Distinct {
    key: Option<(i64, i64)>,
    /// Hashes of the rows of `key`.
    seen: HashSet<u128>,
    text: Vec<u8>,
}

impl Distinct {
    /// The rows that were not there yet.
    pub fn filter(&mut self, batch: RecordBatch) -> Result<RecordBatch, PartError> {
        let column = |name: &str| batch.column_by_name(name).expect("column of the stored schema");
        let int = |name: &str| column(name).as_primitive::<Int64Type>().values();
        let (ids, times) = (int("series_id"), int("ts_ms"));
        let values = column("value").as_primitive::<Float64Type>().values();
        let (traces, spans) = (column("trace_id").as_binary::<i32>(), column("span_id").as_binary::<i32>());
        let labels = column("labels").as_string::<i32>();
        let mut keep = Vec::with_capacity(batch.num_rows());
        for i in 0..batch.num_rows() {
            let key = (ids[i], times[i]);
            // Nearly all stand alone.
            let alone = self.key != Some(key) && (ids.get(i + 1), times.get(i + 1)) != (Some(&key.0), Some(&key.1));
            if alone && i + 1 < batch.num_rows() {
                self.key = None;
                keep.push(true);
                continue;
            }
            if self.key.replace(key) != Some(key) {
                self.seen.clear();
            }
            self.text.clear();
            self.text.extend_from_slice(&values[i].to_bits().to_le_bytes());
            for id in [traces, spans] {
                let bytes = if id.is_valid(i) { id.value(i) } else { &[] };
                self.text.push(bytes.len() as u8);
                self.text.extend_from_slice(bytes);
            }
            self.text.extend_from_slice(labels.value(i).as_bytes());
            let full = self.seen.len() >= REMEMBERED_MAX;
            keep.push(full || self.seen.insert(xxh3_128(&self.text)));
        }
        if keep.iter().all(|k| *k) {
            return Ok(batch);
        }
        Ok(filter_record_batch(&batch, &BooleanArray::from(keep))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Labels, MetricBatchBuilder, batch::SeriesMeta};

    #[test]
    fn equal_exemplars_are_kept_once_over_batches_and_different_ones_all() {
        let mut rows = MetricBatchBuilder::new();
        let id = rows.series(&Labels::from_pairs([("__name__", "m")]), SeriesMeta::default());
        let more: [(i64, f64, Option<&[u8]>, &str); 9] = [
            (1, 1.0, None, "{}"),
            (2, 1.0, None, "{}"),
            (2, 1.0, None, "{}"),
            (2, 1.0, Some(&[1; 16]), "{}"),
            (2, 1.0, Some(&[1; 16]), "{}"),
            (2, 2.0, None, "{}"),
            (2, 1.0, None, r#"{"a":"b"}"#),
            (2, 1.0, None, "{}"),
            (3, 1.0, None, "{}"),
        ];
        for (ts, value, trace, labels) in more {
            rows.exemplar(id, ts, value, trace, None, labels);
        }
        let all = rows.finish().exemplars;
        for cut in 0..=all.num_rows() {
            let mut distinct = Distinct::default();
            let kept: usize = [all.slice(0, cut), all.slice(cut, all.num_rows() - cut)]
                .into_iter()
                .map(|b| distinct.filter(b).unwrap().num_rows())
                .sum();
            assert_eq!(kept, 6, "cut at {cut}");
        }
    }
}
