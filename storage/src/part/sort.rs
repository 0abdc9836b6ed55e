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

/// One row: which batch, and which row of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
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

/// Rows of `batches` (stored schema, in commit order) in the table's sort order; rows of equal key in commit order. Not for
/// more rows than a `u32` counts.
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

/// Rows of one key.
struct Group {
    key: (i64, i64),
    /// Of the row met last.
    latest: i64,
    rows: u32,
    /// Where its next row goes.
    place: u32,
}

/// Groups in order of first appearance, found by key.
///
/// With a million series there are few rows of each, and to look each row's group up in memory is what costs. So the group
/// behind that of the row before is looked at first: senders repeat their order. Else groups are looked up in a table of
/// their numbers, the smallest there can be.
#[derive(Default)]
struct Groups {
    all: Vec<Group>,
    /// Open addressing, at most half full; [`FREE`] or a place in `all`.
    table: Vec<u32>,
    last: usize,
}

const FREE: u32 = u32::MAX;

impl Groups {
    /// Number of the group with this key.
    #[inline]
    fn of(&mut self, key: (i64, i64)) -> usize {
        for likely in [self.last, self.last + 1] {
            if self.all.get(likely).is_some_and(|g| g.key == key) {
                self.last = likely;
                return likely;
            }
        }
        self.last = self.find(key);
        self.last
    }

    fn find(&mut self, key: (i64, i64)) -> usize {
        if self.all.len() * 2 >= self.table.len() {
            self.grow();
        }
        let mask = self.table.len() - 1;
        let mut at = Self::hash(key) & mask;
        loop {
            match self.table[at] {
                FREE => break,
                g if self.all[g as usize].key == key => return g as usize,
                _ => at = (at + 1) & mask,
            }
        }
        self.table[at] = self.all.len() as u32;
        self.all.push(Group { key, latest: i64::MIN, rows: 0, place: 0 });
        self.all.len() - 1
    }

    #[cold]
    fn grow(&mut self) {
        let len = (self.table.len() * 4).max(1024);
        self.table.clear();
        self.table.resize(len, FREE);
        for (g, group) in self.all.iter().enumerate() {
            let mut at = Self::hash(group.key) & (len - 1);
            while self.table[at] != FREE {
                at = (at + 1) & (len - 1);
            }
            self.table[at] = g as u32;
        }
    }

    /// Low bits are good.
    fn hash((major, minor): (i64, i64)) -> usize {
        let mut hasher = Mixed::default();
        hasher.write_i64(major);
        hasher.write_i64(minor);
        (hasher.finish() >> 32) as usize
    }
}

/// Counting sort by group, then by time within each group that is not in time order already.
fn grouped<'a>(
    batches: &'a [RecordBatch],
    key: impl Fn(&'a RecordBatch) -> (&'a [i64], &'a [i64]),
    time: &str,
) -> Vec<Position> {
    let total = batches.iter().map(RecordBatch::num_rows).sum();
    let times: Vec<&[i64]> = batches.iter().map(|b| if time.is_empty() { &[] } else { int(b, time) }).collect();
    let mut group_of: Vec<u32> = Vec::with_capacity(total);
    let mut groups = Groups::default();
    let mut unordered: Vec<u32> = Vec::new();
    for (b, times) in batches.iter().zip(&times) {
        let (major, minor) = key(b);
        for (i, first) in major.iter().enumerate() {
            let g = groups.of((*first, minor.get(i).copied().unwrap_or(0)));
            let group = &mut groups.all[g];
            group.rows += 1;
            let ts = times.get(i).copied().unwrap_or(0);
            if ts < group.latest && unordered.last() != Some(&(g as u32)) {
                unordered.push(g as u32);
            }
            group.latest = ts;
            group_of.push(g as u32);
        }
    }
    let Groups { all: mut groups, .. } = groups;
    let mut sorted: Vec<(i64, u32)> = groups.iter().zip(0..).map(|(g, number)| (g.key.0, number)).collect();
    let minor = |g: u32| groups[g as usize].key.1;
    sorted.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| minor(a.1).cmp(&minor(b.1))));
    let mut place = 0;
    for (_, g) in sorted {
        let group = &mut groups[g as usize];
        group.place = place;
        place += group.rows;
    }
    let mut out = vec![Position { batch: 0, row: 0 }; total];
    let mut group_of = group_of.into_iter();
    for (batch, b) in batches.iter().enumerate() {
        for (row, g) in group_of.by_ref().take(b.num_rows()).enumerate() {
            let place = &mut groups[g as usize].place;
            out[*place as usize] = Position { batch: batch as u32, row: row as u32 };
            *place += 1;
        }
    }
    unordered.sort_unstable();
    unordered.dedup();
    for g in unordered {
        let group = &groups[g as usize];
        let rows = &mut out[(group.place - group.rows) as usize..group.place as usize];
        rows.sort_by_cached_key(|p| times[p.batch as usize][p.row as usize]);
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
            let position = Position { batch: batch as u32, row: row as u32 };
            keys.push((u128::from_be_bytes(prefix), left, position, *ts));
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
            .then_with(|| (a.3, a.2.batch, a.2.row).cmp(&(b.3, b.2.batch, b.2.row)))
    });
    keys.into_iter().map(|k| k.2).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Labels, MetricBatchBuilder};

    proptest! {
        #[test]
        fn rows_are_sorted_by_series_and_time_and_else_as_they_came(
            rows in proptest::collection::vec((0..900i64, 0..6i64), 0..3000),
            repeated in any::<bool>(),
            cut in 1..700usize,
        ) {
            let mut rows = rows;
            if repeated {
                rows.sort_by_key(|(series, ts)| (*ts, *series));
            }
            let mut builder = MetricBatchBuilder::new();
            let ids: Vec<i64> = (0..900)
                .map(|i| Labels::from_pairs([("__name__", "m"), ("i", &i.to_string())]).id())
                .collect();
            let batches: Vec<RecordBatch> = rows
                .chunks(cut)
                .map(|rows| {
                    for (series, ts) in rows {
                        builder.sample_of_known(ids[*series as usize], *ts, None, 0.0);
                    }
                    builder.finish().samples
                })
                .collect();
            let found = order(Table::MetricSamples, &batches);
            let mut wanted: Vec<usize> = (0..rows.len()).collect();
            wanted.sort_by_key(|i| (ids[rows[*i].0 as usize], rows[*i].1));
            let found: Vec<usize> = found.iter().map(|p| p.batch as usize * cut + p.row as usize).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
