//! Log streams whose bodies do not template: prose, payloads, stack traces of everything. Nearly every row would be a run of
//! its own, in no useful order, so they get the constant skeleton and with it the order of time.

use std::{collections::HashSet, sync::Arc};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};

use super::sort::{MixedMap, int};
use crate::{
    index::template::UNTEMPLATED,
    limits::{TEMPLATED_ROWS_MIN, TEMPLATES_PER_ROW_MAX},
};

/// `batches` (logs, head or stored schema), with [`UNTEMPLATED`] for the template of every row of such a stream.
pub(super) fn without_templates(batches: &[RecordBatch]) -> Option<Vec<RecordBatch>> {
    let poor = poor_streams(batches);
    if poor.is_empty() {
        return None;
    }
    let changed = batches.iter().map(|b| {
        let (streams, templates) = (int(b, "stream_id"), int(b, "template_id"));
        let templates: Int64Array =
            streams.iter().zip(templates).map(|(s, t)| if poor.contains(s) { UNTEMPLATED } else { *t }).collect();
        let at = b.schema_ref().index_of("template_id").expect("column of the stored schema");
        let mut columns: Vec<ArrayRef> = b.columns().to_vec();
        columns[at] = Arc::new(templates);
        RecordBatch::try_new(b.schema(), columns).expect("the same types")
    });
    Some(changed.collect())
}

/// Streams with many rows and nearly as many templates.
fn poor_streams(batches: &[RecordBatch]) -> HashSet<i64> {
    let mut seen: MixedMap<(i64, i64), ()> = MixedMap::default();
    // Rows and templates.
    let mut streams: MixedMap<i64, (usize, usize)> = MixedMap::default();
    for b in batches {
        let mut last = None;
        for key in int(b, "stream_id").iter().copied().zip(int(b, "template_id").iter().copied()) {
            let fresh = last != Some(key) && seen.insert(key, ()).is_none();
            last = Some(key);
            let counts = streams.entry(key.0).or_default();
            counts.0 += 1;
            counts.1 += usize::from(fresh);
        }
    }
    let poor = |(rows, templates): &(usize, usize)| {
        *rows >= TEMPLATED_ROWS_MIN && *templates as f64 > *rows as f64 * TEMPLATES_PER_ROW_MAX
    };
    streams.into_iter().filter(|(_, counts)| poor(counts)).map(|(stream, _)| stream).collect()
}
