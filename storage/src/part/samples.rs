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
use bytes::Bytes;
use parquet::{
    basic::{Encoding, Type},
    column::page::{Page, PageReader as _},
    file::{metadata::ColumnChunkMetaData, serialized_reader::SerializedPageReader},
};

use super::{
    PartError, PartReader, PartRows,
    encode::POWERS,
    error::reading,
    reader::{Inner, guarded},
    rows::{RowGroupPlan, group_rows},
    source::Fetched,
};
use crate::{
    ScanStats,
    model::{Table, schema},
};

const WIDTH: usize = 8;

/// 64-bit values of consecutive rows, byte `k` of all of them in plane `k`.
struct Planes {
    first: usize,
    rows: usize,
    /// `rows` bytes of each plane.
    bytes: Bytes,
}

impl Planes {
    #[inline]
    fn get(&self, row: usize) -> u64 {
        let i = row - self.first;
        (0..WIDTH).fold(0, |v, k| v | u64::from(self.bytes[k * self.rows + i]) << (8 * k))
    }

    /// Gives the values of `rows`, which are all here, some at a time.
    fn each(&self, rows: Range<usize>, mut give: impl FnMut(&[u64])) {
        let (start, end) = (rows.start - self.first, rows.end - self.first);
        let planes: [&[u8]; WIDTH] = std::array::from_fn(|k| &self.bytes[k * self.rows + start..k * self.rows + end]);
        let whole = (end - start) / 8 * 8;
        let mut at = 0;
        while at < whole {
            let words = std::array::from_fn(|k| {
                let eight: [u8; 8] = planes[k][at..at + 8].try_into().unwrap_or_default();
                u64::from_le_bytes(eight)
            });
            give(&transposed(words));
            at += 8;
        }
        for i in whole..end - start {
            give(&[planes.iter().rev().fold(0, |v, plane| v << 8 | u64::from(plane[i]))]);
        }
    }
}

/// Eight words as a square of bytes, rows and columns changed.
#[inline]
fn transposed(mut w: [u64; 8]) -> [u64; 8] {
    for (distance, shift, mask) in
        [(4, 32, 0x0000_0000_ffff_ffff), (2, 16, 0x0000_ffff_0000_ffff), (1, 8, 0x00ff_00ff_00ff_00ff_u64)]
    {
        for i in (0..8).filter(|i| i & distance == 0) {
            let (a, b) = (w[i], w[i + distance]);
            w[i] = (a & mask) | (b & mask) << shift;
            w[i + distance] = (a >> shift & mask) | (b & !mask);
        }
    }
    w
}

/// A column of 64-bit integers.
enum Integers {
    Split(Vec<Planes>),
    Flat(Vec<i64>),
}

impl Integers {
    fn get(&self, row: usize) -> i64 {
        match self {
            Integers::Flat(all) => all[row],
            Integers::Split(pages) => pages[page_of(pages, row)].get(row) as i64,
        }
    }

    fn append(&self, rows: Range<usize>, out: &mut Vec<i64>) {
        match self {
            Integers::Flat(all) => out.extend_from_slice(&all[rows]),
            Integers::Split(pages) => each(pages, rows, |v| out.extend(v.iter().map(|v| *v as i64))),
        }
    }
}

fn page_of(pages: &[Planes], row: usize) -> usize {
    pages.partition_point(|p| p.first <= row) - 1
}

fn each(pages: &[Planes], rows: Range<usize>, mut give: impl FnMut(&[u64])) {
    let mut at = rows.start;
    while at < rows.end {
        let page = &pages[page_of(pages, at)];
        let end = rows.end.min(page.first + page.rows);
        page.each(at..end, &mut give);
        at = end;
    }
}

enum Values {
    /// `integer / 10^exponent`; where each run of an exponent ends.
    Decimal {
        integers: Vec<Planes>,
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
                    if exponent == 0 {
                        each(integers, at..end, |v| out.extend(v.iter().map(|v| *v as i64 as f64)));
                    } else {
                        let power = POWERS[usize::from(exponent)];
                        each(integers, at..end, |v| out.extend(v.iter().map(|v| *v as i64 as f64 / power)));
                    }
                    at = end;
                    run += 1;
                }
            }
        }
    }
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
        let bound = |mut low: usize, mut high: usize, before: &dyn Fn(i64) -> bool| {
            while low < high {
                let middle = low + (high - low) / 2;
                if before(self.times.get(middle)) { low = middle + 1 } else { high = middle }
            }
            low
        };
        let start = if self.times.get(rows.start) >= from {
            rows.start
        } else {
            bound(rows.start + 1, rows.end, &|t| t < from)
        };
        let end =
            if self.times.get(rows.end - 1) <= to { rows.end } else { bound(start, rows.end - 1, &|t| t <= to) };
        start..end.max(start)
    }

    /// Puts times (ms) and values of rows behind those that are there.
    pub fn append(&self, rows: Range<usize>, ts: &mut Vec<i64>, values: &mut Vec<f64>) {
        debug_assert!(rows.end <= self.rows);
        self.times.append(rows.clone(), ts);
        self.values.append(rows, values);
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
    let Some(times) = column(0)?.and_then(|c| c.split_without_nulls(rows)) else { return Ok(None) };
    let (Some(integers), Some(exponents)) = (column(1)?, column(2)?) else { return Ok(None) };
    let Some(exponents) = exponents.exponents(rows)? else { return Ok(None) };
    let values = if doubles {
        let Some(doubles) = column(3)? else { return Ok(None) };
        match joined(&integers, &doubles, &exponents, rows)? {
            Some(values) => Values::Flat(values),
            None => return Ok(None),
        }
    } else {
        match integers.split_without_nulls(rows) {
            Some(integers) => Values::Decimal { integers, exponents },
            None => return Ok(None),
        }
    };
    Ok(Some(SampleGroup { rows, times: Integers::Split(times), values }))
}

/// The pages of a column chunk, unpacked.
struct Column {
    kind: Type,
    /// Values of the dictionary page, if there is one.
    dictionary: Option<Vec<i32>>,
    pages: Vec<DataPage>,
}

struct DataPage {
    first: usize,
    rows: usize,
    /// Runs of rows with and without a value; empty where all have one.
    levels: Vec<(u32, usize)>,
    /// Rows with a value.
    present: usize,
    encoding: Encoding,
    values: Bytes,
}

impl Column {
    /// `None`: kinds of pages that our writer does not write.
    fn read(fetched: &Arc<Fetched>, chunk: &ColumnChunkMetaData, rows: usize) -> Result<Option<Self>, PartError> {
        let descriptor = chunk.column_descr();
        if descriptor.max_rep_level() > 0 || descriptor.max_def_level() > 1 {
            return Ok(None);
        }
        let optional = descriptor.max_def_level() == 1;
        let mut reader = SerializedPageReader::new(fetched.clone(), chunk, rows, None).map_err(reading)?;
        let (mut dictionary, mut pages, mut first) = (None, Vec::new(), 0);
        while let Some(page) = reader.get_next_page().map_err(reading)? {
            match page {
                Page::DictionaryPage { buf, .. } if descriptor.physical_type() == Type::INT32 => {
                    let words = buf.chunks_exact(4);
                    dictionary = Some(words.map(|w| i32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect());
                }
                Page::DataPage { buf, num_values, encoding, def_level_encoding: Encoding::RLE, .. } => {
                    let rows = num_values as usize;
                    let (mut levels, mut present, mut values) = (Vec::new(), rows, buf);
                    if optional {
                        let short = || PartError::corrupt("a page ends in its levels");
                        let len = values.first_chunk::<4>().ok_or_else(short)?;
                        let end = 4usize.saturating_add(u32::from_le_bytes(*len) as usize);
                        levels = hybrid(values.get(4..end).ok_or_else(short)?, 1, rows)?;
                        values = values.slice(end..);
                        present = levels.iter().filter(|(level, _)| *level == 1).map(|(_, n)| n).sum();
                        if present == rows {
                            levels.clear();
                        }
                    }
                    pages.push(DataPage { first, rows, levels, present, encoding, values });
                    first += rows;
                }
                _ => return Ok(None),
            }
        }
        if first != rows {
            return Err(PartError::corrupt("a column has not the rows its footer says"));
        }
        Ok(Some(Column { kind: descriptor.physical_type(), dictionary, pages }))
    }

    fn split_without_nulls(self, rows: usize) -> Option<Vec<Planes>> {
        let ours = |p: &DataPage| {
            p.encoding == Encoding::BYTE_STREAM_SPLIT && p.present == p.rows && p.values.len() == p.rows * WIDTH
        };
        if self.kind != Type::INT64 || rows == 0 || !self.pages.iter().all(ours) {
            return None;
        }
        let planes = self.pages.into_iter().filter(|p| p.rows > 0);
        Some(planes.map(|p| Planes { first: p.first, rows: p.rows, bytes: p.values }).collect())
    }

    /// Where each run of an exponent ends.
    fn exponents(&self, rows: usize) -> Result<Option<Vec<(usize, u8)>>, PartError> {
        let Some(dictionary) = &self.dictionary else { return Ok(None) };
        let mut out: Vec<(usize, u8)> = Vec::new();
        let mut end = 0;
        for page in &self.pages {
            if page.encoding != Encoding::RLE_DICTIONARY || page.present != page.rows {
                return Ok(None);
            }
            let Some((width, keys)) = page.values.split_first() else {
                return Err(PartError::corrupt("a page without values"));
            };
            for (key, n) in hybrid(keys, *width, page.rows)? {
                let exponent = dictionary.get(key as usize).and_then(|e| u8::try_from(*e).ok());
                let exponent = exponent.filter(|e| usize::from(*e) < POWERS.len());
                let exponent = exponent.ok_or_else(|| PartError::corrupt("exponent of a sample is out of range"))?;
                end += n;
                match out.last_mut() {
                    Some(last) if last.1 == exponent => last.0 = end,
                    _ => out.push((end, exponent)),
                }
            }
        }
        Ok((end == rows).then_some(out))
    }

    /// Gives each value with its row; `false`: not encoded as our writer encodes it.
    fn each_present(&self, encoding: Encoding, mut give: impl FnMut(usize, u64)) -> bool {
        let ours = |p: &DataPage| p.present == 0 || (p.encoding == encoding && p.values.len() == p.present * WIDTH);
        if !self.pages.iter().all(ours) {
            return false;
        }
        for page in self.pages.iter().filter(|p| p.present > 0) {
            let whole = [(1, page.rows)];
            let levels = if page.levels.is_empty() { whole.as_slice() } else { page.levels.as_slice() };
            let mut row = page.first;
            let mut rows = levels.iter().flat_map(|(level, n)| {
                row += n;
                if *level == 1 { row - n..row } else { 0..0 }
            });
            let mut next = |v: u64| {
                if let Some(row) = rows.next() {
                    give(row, v);
                }
            };
            if encoding == Encoding::BYTE_STREAM_SPLIT {
                let planes = Planes { first: 0, rows: page.present, bytes: page.values.clone() };
                planes.each(0..page.present, |v| v.iter().copied().for_each(&mut next));
            } else {
                for word in page.values.chunks_exact(WIDTH) {
                    next(u64::from_le_bytes(word.try_into().unwrap_or_default()));
                }
            }
        }
        true
    }
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

/// Runs of `count` numbers of `width` bits in Parquet's hybrid of run lengths and bit packing.
fn hybrid(mut bytes: &[u8], width: u8, count: usize) -> Result<Vec<(u32, usize)>, PartError> {
    let broken = || PartError::corrupt("a page ends in a run");
    if width > 32 {
        return Err(PartError::corrupt("keys of more than 32 bits"));
    }
    let mut out: Vec<(u32, usize)> = Vec::new();
    let mut push = |value: u32, n: usize| match out.last_mut() {
        Some(last) if last.0 == value => last.1 += n,
        _ => out.push((value, n)),
    };
    let mut left = count;
    while left > 0 {
        let mut header = 0u64;
        let mut shift = 0;
        loop {
            let (byte, rest) = bytes.split_first().ok_or_else(broken)?;
            bytes = rest;
            header |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 56 {
                return Err(broken());
            }
        }
        let n = usize::try_from(header >> 1).map_err(|_| broken())?;
        if header & 1 == 0 {
            let len = usize::from(width).div_ceil(8);
            let (value, rest) = bytes.split_at_checked(len).ok_or_else(broken)?;
            bytes = rest;
            let n = n.min(left);
            if n == 0 {
                return Err(broken());
            }
            push(value.iter().rev().fold(0, |v, b| v << 8 | u32::from(*b)), n);
            left -= n;
        } else {
            // Groups of eight; the last ones may be cut off.
            let len = n.checked_mul(usize::from(width)).ok_or_else(broken)?;
            let (packed, rest) = bytes.split_at(len.min(bytes.len()));
            bytes = rest;
            let n = n.saturating_mul(8).min(left);
            if n == 0 || packed.len() < (n * usize::from(width)).div_ceil(8) {
                return Err(broken());
            }
            for i in 0..n {
                let bit = i * usize::from(width);
                let mut window = [0; 8];
                let from = &packed[bit / 8..packed.len().min(bit / 8 + 8)];
                window[..from.len()].copy_from_slice(from);
                let mask = (1u64 << width) - 1;
                push((u64::from_le_bytes(window) >> (bit % 8) & mask) as u32, 1);
            }
            left -= n;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_planes_become_the_values_they_were() {
        let values: Vec<u64> = (0..29).map(|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i).collect();
        let mut bytes = Vec::new();
        for k in 0..WIDTH {
            bytes.extend(values.iter().map(|v| v.to_le_bytes()[k]));
        }
        let planes = Planes { first: 100, rows: values.len(), bytes: bytes.into() };
        for (start, end) in [(0, 29), (3, 29), (5, 12), (8, 16), (7, 7)] {
            let mut out = Vec::new();
            planes.each(100 + start..100 + end, |v| out.extend_from_slice(v));
            assert_eq!(out, values[start..end]);
        }
        assert!((0..29).all(|i| planes.get(100 + i) == values[i]));
    }

    #[test]
    fn runs_and_packed_numbers_are_read_and_broken_ones_refused() {
        // 5 times 3 in 2 bits, then eight packed: 0 1 2 3 0 1 2 3.
        let bytes = [10, 3, 3, 0b1110_0100, 0b1110_0100];
        let runs = hybrid(&bytes, 2, 13).unwrap();
        let flat: Vec<u32> = runs.iter().flat_map(|(v, n)| std::iter::repeat_n(*v, *n)).collect();
        assert_eq!(flat, [3, 3, 3, 3, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(hybrid(&bytes, 2, 4).unwrap(), [(3, 4)]);
        assert_eq!(hybrid(&[200, 1], 0, 100).unwrap(), [(0, 100)]);
        assert!(hybrid(&bytes, 2, 14).is_err());
        assert!(hybrid(&[0xff; 12], 1, 4).is_err());
        assert!(hybrid(&[0, 1], 1, 4).is_err());
    }
}
