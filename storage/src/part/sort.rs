//! The order of a part's rows, as a permutation, from a compact array of keys instead of the columns.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{Int32Type, Int64Type, TimestampNanosecondType},
};

use crate::model::Table;

/// One row: which batch, which row of it, and the event time it is sorted by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub(super) ts: i64,
    pub(super) batch: u32,
    pub(super) row: u32,
}

/// For keys that are hashes already.
#[derive(Default)]
pub(crate) struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(29) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_i64(&mut self, n: i64) {
        self.write_u64(n as u64);
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }
}

pub(crate) type MixedMap<K, V> = HashMap<K, V, BuildHasherDefault<Mixed>>;

/// Rows of `batches` (stored schema, in commit order) in the table's sort order; rows of equal key in commit order.
pub(super) fn order(table: Table, batches: &[RecordBatch]) -> Vec<Position> {
    match table {
        Table::Spans => spans(batches),
        Table::Logs => grouped(batches, |b| (int(b, "stream_id"), int(b, "template_id")), "ts"),
        Table::MetricSeries => grouped(batches, |b| (int(b, "series_id"), &[]), ""),
        _ => grouped(batches, |b| (int(b, "series_id"), &[]), "ts_ms"),
    }
}

pub(super) fn int<'a>(batch: &'a RecordBatch, name: &str) -> &'a [i64] {
    let column = batch.column_by_name(name).expect("column of the stored schema");
    match column.as_primitive_opt::<Int64Type>() {
        Some(a) => a.values(),
        None => column.as_primitive::<TimestampNanosecondType>().values(),
    }
}

/// Counting sort by group, then by time within each group that is not in time order already.
fn grouped<'a>(
    batches: &'a [RecordBatch],
    key: impl Fn(&'a RecordBatch) -> (&'a [i64], &'a [i64]),
    time: &str,
) -> Vec<Position> {
    // Group of every row, in order of first appearance.
    let total = batches.iter().map(RecordBatch::num_rows).sum();
    let mut group_of: Vec<u32> = Vec::with_capacity(total);
    let mut groups: MixedMap<(i64, i64), u32> = MixedMap::default();
    let mut keys: Vec<(i64, i64)> = Vec::new();
    let mut counts: Vec<usize> = Vec::new();
    for b in batches {
        let (major, minor) = key(b);
        let mut last = None;
        for (i, first) in major.iter().enumerate() {
            let k = (*first, minor.get(i).copied().unwrap_or(0));
            let g = match last {
                Some((seen, g)) if seen == k => g,
                _ => *groups.entry(k).or_insert_with(|| {
                    keys.push(k);
                    counts.push(0);
                    keys.len() as u32 - 1
                }),
            };
            last = Some((k, g));
            counts[g as usize] += 1;
            group_of.push(g);
        }
    }
    // Where each group starts in the result.
    let mut sorted: Vec<u32> = (0..keys.len() as u32).collect();
    sorted.sort_unstable_by_key(|g| keys[*g as usize]);
    let mut starts = vec![0; keys.len()];
    let mut at = 0;
    for g in &sorted {
        starts[*g as usize] = at;
        at += counts[*g as usize];
    }
    let mut next = starts.clone();
    let mut out = vec![Position { ts: 0, batch: 0, row: 0 }; total];
    let mut groups = group_of.into_iter();
    for (batch, b) in batches.iter().enumerate() {
        let times = if time.is_empty() { &[] } else { int(b, time) };
        for (row, g) in groups.by_ref().take(b.num_rows()).enumerate() {
            let place = &mut next[g as usize];
            let ts = times.get(row).copied().unwrap_or(0);
            out[*place] = Position { ts, batch: batch as u32, row: row as u32 };
            *place += 1;
        }
    }
    for g in sorted {
        let run = &mut out[starts[g as usize]..][..counts[g as usize]];
        if !run.is_sorted_by_key(|p| p.ts) {
            run.sort_by_key(|p| p.ts);
        }
    }
    out
}

fn spans(batches: &[RecordBatch]) -> Vec<Position> {
    let columns: Vec<_> = batches
        .iter()
        .map(|b| {
            let column = |name: &str| b.column_by_name(name).expect("column of the stored schema");
            (column("trace_id").as_binary::<i32>(), column("nested_left").as_primitive::<Int32Type>(), int(b, "ts"))
        })
        .collect();
    let mut keys = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for (batch, (traces, nested, times)) in columns.iter().enumerate() {
        for (row, ts) in times.iter().enumerate() {
            let trace = traces.value(row);
            let mut prefix = [0; 16];
            let n = trace.len().min(16);
            prefix[..n].copy_from_slice(&trace[..n]);
            // `None` is before every number.
            let left = nested.is_valid(row).then(|| nested.value(row));
            let position = Position { ts: *ts, batch: batch as u32, row: row as u32 };
            keys.push((u128::from_be_bytes(prefix), left, position));
        }
    }
    keys.sort_unstable_by(|a, b| {
        let trace = |p: &Position| columns[p.batch as usize].0.value(p.row as usize);
        a.0.cmp(&b.0)
            .then_with(|| {
                let (x, y) = (trace(&a.2), trace(&b.2));
                if x.len() == 16 && y.len() == 16 { std::cmp::Ordering::Equal } else { x.cmp(y) }
            })
            .then_with(|| a.1.cmp(&b.1))
            .then_with(|| (a.2.ts, a.2.batch, a.2.row).cmp(&(b.2.ts, b.2.batch, b.2.row)))
    });
    keys.into_iter().map(|k| k.2).collect()
}
