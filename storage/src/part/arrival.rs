//! Column `seq` of log records: their order of arrival where stream and time do not decide it.
//!
//! A part is sorted by stream, template and time, which tears apart what one stream wrote at one instant. `seq` is the flush
//! and, below it, the place among the flush's records of the same stream and time: nearly everywhere the same number for a
//! whole run, which costs nothing on disk.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};

use super::{
    PartError,
    sort::{MixedMap, Position, int},
};
use crate::model::{Table, schema};

/// Bits of the place among records of one stream and time; later ones share the last place.
const RANK_BITS: u32 = 20;
const RANK_MAX: u32 = (1 << RANK_BITS) - 1;

/// `arrival`: grows from flush to flush.
pub(crate) fn seq_of(arrival: u64, rank: u32) -> i64 {
    let arrival = arrival.min((1 << (63 - RANK_BITS)) - 1) as i64;
    arrival << RANK_BITS | i64::from(rank.min(RANK_MAX))
}

/// Of each row of `order` (log records of `batches` by stream, template and time): how many of the same stream and time
/// arrived before it. `None`: none at all.
pub(super) fn ranks(batches: &[RecordBatch], order: &[Position]) -> Option<Vec<u32>> {
    batches.first()?.column_by_name("template_id")?;
    let streams: Vec<&[i64]> = batches.iter().map(|b| int(b, "stream_id")).collect();
    let tied = unordered(batches, &streams);
    if !tied.values().any(|s| s.unordered) {
        return None;
    }
    let times: Vec<&[i64]> = batches.iter().map(|b| int(b, "ts")).collect();
    let stream_of = |p: &Position| streams[p.batch as usize][p.row as usize];
    let mut out = vec![0; order.len()];
    let mut at = 0;
    while at < order.len() {
        let stream = stream_of(&order[at]);
        let n = order[at..].iter().take_while(|p| stream_of(p) == stream).count();
        if tied.get(&stream).is_some_and(|s| s.unordered) {
            rank_stream(&times, &order[at..at + n], &mut out[at..at + n]);
        }
        at += n;
    }
    out.iter().any(|rank| *rank > 0).then_some(out)
}

struct Seen {
    latest: i64,
    unordered: bool,
}

/// Streams whose records did not arrive each later than all before: only they may have equal times.
fn unordered(batches: &[RecordBatch], streams: &[&[i64]]) -> MixedMap<i64, Seen> {
    let mut out: MixedMap<i64, Seen> = MixedMap::default();
    for (batch, streams) in batches.iter().zip(streams) {
        for (stream, ts) in streams.iter().zip(int(batch, "ts")) {
            match out.get_mut(stream) {
                Some(seen) if seen.latest < *ts => seen.latest = *ts,
                Some(seen) => seen.unordered = true,
                None => drop(out.insert(*stream, Seen { latest: *ts, unordered: false })),
            }
        }
    }
    out
}

fn rank_stream(times: &[&[i64]], rows: &[Position], ranks: &mut [u32]) {
    let ts = |p: &Position| times[p.batch as usize][p.row as usize];
    let mut by_arrival: Vec<u32> = (0..rows.len() as u32).collect();
    by_arrival.sort_unstable_by_key(|i| {
        let p = &rows[*i as usize];
        (ts(p), p.batch, p.row)
    });
    let mut rank = 0;
    for pair in by_arrival.windows(2) {
        let same = ts(&rows[pair[0] as usize]) == ts(&rows[pair[1] as usize]);
        rank = if same { rank + 1 } else { 0 };
        ranks[pair[1] as usize] = rank;
    }
}

/// `batch` (head schema) with `seq`, where the table has one. `ranks`: a number a row; `None`: all 0.
pub(super) fn with_seq(
    table: Table,
    batch: RecordBatch,
    arrival: u64,
    ranks: Option<&[u32]>,
) -> Result<RecordBatch, PartError> {
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(match ranks {
        None => Int64Array::from_value(seq_of(arrival, 0), batch.num_rows()),
        Some(ranks) => ranks.iter().map(|r| seq_of(arrival, *r)).collect(),
    }));
    Ok(RecordBatch::try_new(schema::stored(table), columns)?)
}
