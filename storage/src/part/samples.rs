//! Samples of one row group, unpacked and not yet decoded, and slices of them as flat numbers.
//!
//! **For** reading a short time of many series: what a row group costs is unpacking its pages; each value of a column that is
//! split into planes of bytes is then as near as any other, so only the rows that are wanted become numbers.
//! **Not for** other tables, nor for files of other writers whose encodings are not ours: those come through [`PartRows`] into
//! the same form.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::AsArray,
    datatypes::{Float64Type, Int64Type},
};
use parquet::{
    basic::{Encoding, Type},
    file::metadata::ColumnChunkMetaData,
};

use super::{
    PartError, PartReader, PartRows,
    encode::POWERS,
    numbers::Column,
    planes::Planes,
    reader::{Inner, guarded},
    rows::{RowGroupPlan, group_rows},
};
use crate::{
    ScanStats,
    model::{Table, schema},
};

/// Numbers of a column, page by page: each one's first row.
type Pages = Vec<(usize, Planes)>;

/// A column of 64-bit integers.
enum Integers {
    Split(Pages),
    Flat(Vec<i64>),
}

impl Integers {
    #[inline]
    fn get(&self, row: usize) -> i64 {
        match self {
            Integers::Flat(all) => all[row],
            Integers::Split(pages) => {
                let (first, page) = &pages[page_of(pages, row)];
                page.get(row - first) as i64
            }
        }
    }

    fn append(&self, rows: Range<usize>, out: &mut Vec<i64>) {
        match self {
            Integers::Flat(all) => out.extend_from_slice(&all[rows]),
            Integers::Split(pages) => each(pages, rows, |_, v| out.extend(v.iter().map(|v| *v as i64))),
        }
    }

    fn memory_size(&self) -> usize {
        match self {
            Integers::Flat(all) => all.capacity() * size_of::<i64>(),
            Integers::Split(pages) => memory_of(pages),
        }
    }
}

#[inline]
fn page_of(pages: &[(usize, Planes)], row: usize) -> usize {
    if pages.len() == 1 { 0 } else { pages.partition_point(|(first, _)| *first <= row) - 1 }
}

/// Gives the numbers of `rows`, which are all here, some at a time, and the page they are of.
fn each(pages: &[(usize, Planes)], rows: Range<usize>, mut give: impl FnMut(&Planes, &[u64])) {
    let mut at = rows.start;
    while at < rows.end {
        let (first, page) = &pages[page_of(pages, at)];
        let end = rows.end.min(first + page.rows());
        page.each(at - first..end - first, |v| give(page, v));
        at = end;
    }
}

fn memory_of(pages: &[(usize, Planes)]) -> usize {
    pages.iter().map(|(_, p)| p.memory_size()).sum()
}

enum Values {
    /// `integer / 10^exponent`; where each run of an exponent ends.
    Decimal {
        integers: Pages,
        exponents: Vec<(usize, u8)>,
    },
    Flat(Vec<f64>),
}

impl Values {
    fn append(&self, rows: Range<usize>, out: &mut Vec<f64>) {
        match self {
            Values::Flat(all) => out.extend_from_slice(&all[rows]),
            Values::Decimal { integers, exponents } => {
                let mut at = rows.start;
                let mut run = exponents.partition_point(|(end, _)| *end <= at);
                while at < rows.end {
                    let (end, exponent) = exponents[run];
                    let end = end.min(rows.end);
                    let power = POWERS[usize::from(exponent)];
                    each(integers, at..end, |page, v| match (page.most() < SMALL_END, exponent) {
                        (true, 0) => out.extend(v.iter().map(|v| small(*v))),
                        (true, _) => out.extend(v.iter().map(|v| small(*v) / power)),
                        (false, 0) => out.extend(v.iter().map(|v| *v as i64 as f64)),
                        (false, _) => out.extend(v.iter().map(|v| *v as i64 as f64 / power)),
                    });
                    at = end;
                    run += 1;
                }
            }
        }
    }

    fn memory_size(&self) -> usize {
        match self {
            Values::Flat(all) => all.capacity() * size_of::<f64>(),
            Values::Decimal { integers, exponents } => {
                memory_of(integers) + exponents.capacity() * size_of::<(usize, u8)>()
            }
        }
    }
}

/// Integers below this are the mantissa of 2^52 and something.
const SMALL_END: u64 = 1 << 52;

/// `v as f64` of an integer below [`SMALL_END`], exactly, by operations that are done on several at once.
#[inline]
fn small(v: u64) -> f64 {
    const BASE: f64 = SMALL_END as f64;
    f64::from_bits(v | BASE.to_bits()) - BASE
}

/// The samples of one row group.
pub(crate) struct SampleGroup {
    rows: usize,
    times: Integers,
    values: Values,
}

impl SampleGroup {
    /// The rows of `rows` with `from <= ts <= to` (ms). `sorted`: their times ascend; else the answer is all of them, and
    /// the caller looks at each.
    pub fn in_time(&self, rows: Range<usize>, (from, to): (i64, i64), sorted: bool) -> Range<usize> {
        if !sorted || rows.is_empty() {
            return rows;
        }
        let ends = (self.times.get(rows.start), self.times.get(rows.end - 1));
        let start = self.first_from(&rows, ends, from);
        let end = to.checked_add(1).map_or(rows.end, |after| self.first_from(&rows, ends, after));
        start..end.max(start)
    }

    /// The first of `rows`, whose times ascend from `first` to `last`, that is not before `time`.
    fn first_from(&self, rows: &Range<usize>, (first, last): (i64, i64), time: i64) -> usize {
        if first >= time {
            return rows.start;
        }
        if last < time {
            return rows.end;
        }
        // Samples mostly come at even times: the answer is where it would be then, or near.
        let share = time.saturating_sub(first) as f64 / last.saturating_sub(first).max(1) as f64;
        let (mut low, mut high) = (rows.start + 1, rows.end - 1);
        let mut guess = rows.start + (share * (rows.len() - 1) as f64) as usize;
        let (mut stride, mut up) = (1, None);
        while low < high {
            guess = guess.clamp(low, high - 1);
            let before = self.times.get(guess) < time;
            if before {
                low = guess + 1
            } else {
                high = guess
            }
            // Further and further away, until it lies between: then by halves.
            let turned = up.is_some_and(|up| up != before);
            up = if turned { up } else { Some(before) };
            guess = match up {
                _ if turned || stride == 0 => low + (high - low) / 2,
                Some(true) => low + stride - 1,
                _ => high.saturating_sub(stride),
            };
            stride = if turned || stride == 0 { 0 } else { 2 * stride };
        }
        low
    }

    /// Puts times (ms) and values of rows behind those that are there.
    pub fn append(&self, rows: Range<usize>, ts: &mut Vec<i64>, values: &mut Vec<f64>) {
        debug_assert!(rows.end <= self.rows);
        self.times.append(rows.clone(), ts);
        self.values.append(rows, values);
    }

    #[cfg(test)]
    pub(crate) fn flat(ts: Vec<i64>, values: Vec<f64>) -> Self {
        SampleGroup { rows: ts.len(), times: Integers::Flat(ts), values: Values::Flat(values) }
    }

    pub fn memory_size(&self) -> usize {
        size_of::<Self>() + self.times.memory_size() + self.values.memory_size()
    }
}

impl PartReader {
    /// First row of each row group and, after them, the number of rows.
    pub(crate) fn group_starts(&self) -> &[u64] {
        &self.inner.first_rows
    }

    /// Whether series and times ascend for sure: so our writer leaves them.
    pub(crate) fn is_sorted(&self) -> Result<bool, PartError> {
        Ok(self.run_index()?.is_some())
    }

    /// Times of a row group's samples, ms, inclusive; `None`: not known.
    pub(crate) fn group_times(&self, group: usize) -> Option<(i64, i64)> {
        use parquet::file::statistics::Statistics;
        let chunk = self.inner.metadata.metadata().row_group(group);
        match chunk.column(leaf(&self.inner, "ts_ms")?).statistics()? {
            Statistics::Int64(s) => Some((*s.min_opt()?, *s.max_opt()?)),
            _ => None,
        }
    }

    /// All samples of a row group.
    pub(crate) fn sample_group(&self, group: usize, stats: &ScanStats) -> Result<SampleGroup, PartError> {
        guarded(|| match unpacked(&self.inner, group, stats)? {
            Some(found) => Ok(found),
            None => decoded(&self.inner, group, stats),
        })
    }
}

fn leaf(inner: &Inner, name: &str) -> Option<usize> {
    let columns = inner.metadata.parquet_schema().columns();
    columns.iter().position(|c| c.path().parts().len() == 1 && c.name() == name)
}

/// By the Parquet reader.
fn decoded(inner: &Arc<Inner>, group: usize, stats: &ScanStats) -> Result<SampleGroup, PartError> {
    let stored = schema::stored(Table::MetricSamples);
    let index = |name: &str| stored.index_of(name).map_err(|_| PartError::corrupt(format_args!("no column {name}")));
    let mut columns = vec![index("ts_ms")?, index("value")?];
    columns.sort_unstable();
    let projected = Arc::new(stored.project(&columns)?);
    let total = group_rows(inner, group);
    let plan = vec![RowGroupPlan { group, rows: std::iter::once(0..total).collect() }];
    let (mut ts, mut values) = (Vec::with_capacity(total), Vec::with_capacity(total));
    for batch in PartRows::new(inner.clone(), columns, projected, plan, stats) {
        let batch = batch?;
        let column = |name: &str| {
            batch.column_by_name(name).ok_or_else(|| PartError::corrupt(format_args!("no column {name}")))
        };
        ts.extend_from_slice(column("ts_ms")?.as_primitive::<Int64Type>().values());
        values.extend_from_slice(column("value")?.as_primitive::<Float64Type>().values());
    }
    if ts.len() != total || values.len() != total {
        return Err(PartError::corrupt(format_args!("row group {group} has not the rows its footer says")));
    }
    Ok(SampleGroup { rows: total, times: Integers::Flat(ts), values: Values::Flat(values) })
}

/// `None`: something is not as our writer writes it.
fn unpacked(inner: &Inner, group: usize, stats: &ScanStats) -> Result<Option<SampleGroup>, PartError> {
    let rows = group_rows(inner, group);
    let metadata = inner.metadata.metadata().row_group(group);
    let names = ["ts_ms", "value_i", "exponent", "value_f"];
    let mut leaves = [0; 4];
    for (leaf_of, name) in leaves.iter_mut().zip(names) {
        match leaf(inner, name) {
            Some(found) => *leaf_of = found,
            None => return Ok(None),
        }
    }
    let chunks = leaves.map(|l| metadata.column(l));
    let all_null =
        |c: &ColumnChunkMetaData| c.statistics().and_then(|s| s.null_count_opt()).is_some_and(|n| n == rows as u64);
    let doubles = !all_null(chunks[3]);
    let mut ranges = Vec::with_capacity(4);
    for chunk in chunks.iter().take(if doubles { 4 } else { 3 }) {
        let (start, len) = chunk.byte_range();
        let end = start.checked_add(len).ok_or_else(|| PartError::corrupt("column chunk beyond the file"))?;
        ranges.push(start..end);
    }
    let (fetched, n) = inner.source.fetch(ranges)?;
    ScanStats::add(&stats.bytes_read, n);
    let fetched = Arc::new(fetched);
    let column = |i: usize| Column::read(&fetched, chunks[i], rows);
    let Some(times) = column(0)?.and_then(Column::split_without_nulls) else { return Ok(None) };
    let (Some(integers), Some(exponents)) = (column(1)?, column(2)?) else { return Ok(None) };
    let Some(exponents) = exponents.exponents(rows)? else { return Ok(None) };
    let values = if doubles {
        let Some(doubles) = column(3)? else { return Ok(None) };
        match joined(&integers, &doubles, &exponents, rows)? {
            Some(values) => Values::Flat(values),
            None => return Ok(None),
        }
    } else {
        match integers.split_without_nulls() {
            Some(integers) => Values::Decimal { integers, exponents },
            None => return Ok(None),
        }
    };
    Ok(Some(SampleGroup { rows, times: Integers::Split(times), values }))
}

/// Values of a row group where some or all are doubles.
fn joined(
    integers: &Column,
    doubles: &Column,
    exponents: &[(usize, u8)],
    rows: usize,
) -> Result<Option<Vec<f64>>, PartError> {
    if integers.kind != Type::INT64 || doubles.kind != Type::DOUBLE {
        return Ok(None);
    }
    let mut out = vec![0.0; rows];
    let mut seen = vec![false; rows];
    let mut run = 0;
    let known = integers.each_present(Encoding::BYTE_STREAM_SPLIT, |row, v| {
        while exponents[run].0 <= row {
            run += 1;
        }
        let exponent = exponents[run].1;
        out[row] = if exponent == 0 { v as i64 as f64 } else { v as i64 as f64 / POWERS[usize::from(exponent)] };
        seen[row] = true;
    });
    let known = known
        && doubles.each_present(Encoding::PLAIN, |row, v| {
            out[row] = f64::from_bits(v);
            seen[row] = true;
        });
    if known && !seen.iter().all(|s| *s) {
        return Err(PartError::corrupt("a sample without a value"));
    }
    Ok(known.then_some(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_a_time_are_those_that_a_search_one_by_one_finds() {
        let even: Vec<i64> = (0..240).map(|i| 1_000 + i * 15).collect();
        let uneven: Vec<i64> = (0..240).map(|i| if i < 7 { i } else { 90_000 + i * i * i }).collect();
        let same = vec![5; 40];
        let few = vec![3, 9];
        for ts in [even, uneven, same, few, vec![4]] {
            let group = SampleGroup::flat(ts.clone(), Vec::new());
            let times: Vec<i64> = ts.iter().flat_map(|t| [t - 1, *t, t + 1]).chain([i64::MIN, i64::MAX]).collect();
            for rows in [0..ts.len(), ts.len() / 3..ts.len() - ts.len() / 4] {
                for (i, from) in times.iter().enumerate() {
                    for to in times[i..].iter().step_by(11) {
                        let found = group.in_time(rows.clone(), (*from, *to), true);
                        let wanted: Vec<usize> = rows.clone().filter(|r| (*from..=*to).contains(&ts[*r])).collect();
                        assert_eq!(found.collect::<Vec<_>>(), wanted, "{from} {to}");
                    }
                }
            }
        }
    }

    #[test]
    fn small_integers_become_the_doubles_that_a_conversion_gives() {
        for v in [0, 1, 2, 12_345, (1 << 31) - 1, 1 << 31, 1 << 32, SMALL_END - 1] {
            assert_eq!(small(v).to_bits(), (v as i64 as f64).to_bits());
        }
    }
}
