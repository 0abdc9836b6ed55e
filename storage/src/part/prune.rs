//! Which rows of a row group may match, from statistics, page indexes, Bloom filters and the run index. Everything here is
//! a hint that errs on the side of reading.

use std::{iter, ops::Range, sync::Arc};

use arrow::array::{Array as _, AsArray as _};
use parquet::{
    arrow::arrow_reader::ParquetRecordBatchReaderBuilder,
    file::{metadata::RowGroupMetaData, page_index::column_index::ColumnIndexMetaData, statistics::Statistics},
};

use super::{
    PartError, PartRows,
    error::reading,
    reader::Inner,
    rows::{RowGroupPlan, group_rows},
};
use crate::{
    ScanStats,
    index::runs::Runs,
    model::{Table, TimeRange, Timestamp, schema, time::NANOS_PER_MILLI},
    scan::select::{RowSelector, id_column},
};

/// Ranges of rows closer than this are read as one: skipping costs more than decoding so few.
const JOIN_ROWS: usize = 64;

pub(super) struct Pruner<'a> {
    inner: &'a Arc<Inner>,
    table: Table,
    /// Closed interval in units of the time column on disk; `None`: all of it.
    time: Option<(i64, i64)>,
    ids: Option<Vec<i64>>,
    trace: Option<[u8; 16]>,
    /// Rows of the part, from the run index.
    rows: Option<Vec<Range<u64>>>,
}

impl<'a> Pruner<'a> {
    pub(super) fn new(inner: &'a Arc<Inner>, range: TimeRange, selector: &RowSelector, runs: Option<&Runs>) -> Self {
        let unit = if matches!(inner.table, Table::Logs | Table::Spans) { 1000 } else { NANOS_PER_MILLI };
        let last = range.end().nanos() - 1;
        // Milliseconds beyond what nanoseconds can say count as the earliest nanosecond, so they are before no range.
        let start = if range.start() == Timestamp::MIN { i64::MIN } else { range.start().nanos().div_euclid(unit) };
        let time = (range != TimeRange::ALL).then(|| (start, last.div_euclid(unit)));
        let (mut ids, mut trace, mut rows) = (None, None, None);
        match selector {
            RowSelector::All => {}
            RowSelector::Ids(wanted) => {
                rows = match runs {
                    Some(Runs::Streams(all)) => Some(
                        all.iter()
                            .filter(|s| wanted.contains(&s.stream_id) && may_overlap(range, s.min_ts, s.max_ts))
                            .map(|s| s.first_row..s.first_row + s.rows)
                            .collect(),
                    ),
                    Some(Runs::Series(all)) => Some(
                        all.iter()
                            .filter(|s| wanted.contains(&s.series_id))
                            .map(|s| s.first_row..s.first_row + s.rows)
                            .collect(),
                    ),
                    _ => None,
                };
                let mut sorted: Vec<i64> = wanted.iter().copied().collect();
                sorted.sort_unstable();
                ids = Some(sorted);
            }
            RowSelector::Trace(id) => {
                if let Some(Runs::Traces(all)) = runs {
                    let at = all.partition_point(|t| t.trace_id < *id);
                    let found = all[at..].iter().take_while(|t| t.trace_id == *id);
                    rows = Some(found.map(|t| t.first_row..t.first_row + t.rows).collect());
                }
                trace = Some(*id);
            }
        }
        Pruner { inner, table: inner.table, time, ids, trace, rows }
    }

    /// Rows of `group` that may match: disjoint, ascending.
    pub(super) fn rows(&self, group: usize, stats: &ScanStats) -> Result<Vec<Range<usize>>, PartError> {
        let total = group_rows(self.inner, group);
        let mut rows = match &self.rows {
            None => iter::once(0..total).collect(),
            Some(all) => within(all, self.inner.first_rows[group], total),
        };
        if total == 0 || rows.is_empty() || !self.group_may_match(group) {
            return Ok(Vec::new());
        }
        if let Some((start, end)) = self.time
            && self.table != Table::MetricSeries
        {
            let column = self.table.time_column();
            rows = self.keep_pages(group, rows, column, |index, page| {
                int_bounds(index, page).is_none_or(|(min, max)| min <= end && start <= max)
            });
        }
        if let (Some(ids), None, Some(column)) = (&self.ids, &self.rows, id_column(self.table)) {
            rows = self.keep_pages(group, rows, column, |index, page| {
                int_bounds(index, page).is_none_or(|(min, max)| any_between(ids, min, max))
            });
        }
        if let (Some(trace), None) = (&self.trace, &self.rows) {
            rows = self.keep_pages(group, rows, "trace_id", |index, page| byte_page_may_hold(index, page, trace));
            // Spans lie sorted by it: their pages say it.
            if self.table != Table::Spans && !rows.is_empty() && !self.bloom_may_hold(group, trace, stats)? {
                return Ok(Vec::new());
            }
            if !rows.is_empty() && self.inner.source.bytes.is_far() {
                return self.rows_of_trace(group, rows, trace, stats);
            }
        }
        Ok(rows)
    }

    /// The rows of the trace among `rows`, by reading that one column: pages of the others may be many times as large.
    fn rows_of_trace(
        &self,
        group: usize,
        rows: Vec<Range<usize>>,
        trace: &[u8; 16],
        stats: &ScanStats,
    ) -> Result<Vec<Range<usize>>, PartError> {
        let stored = schema::stored(self.table);
        let Ok(column) = stored.index_of("trace_id") else { return Ok(rows) };
        let projected = Arc::new(stored.project(&[column])?);
        let mut at = rows.iter().flat_map(Clone::clone);
        let plan = vec![RowGroupPlan { group, rows: rows.clone() }];
        let mut found: Vec<Range<usize>> = Vec::new();
        for batch in PartRows::new(self.inner.clone(), vec![column], projected, plan, stats) {
            let batch = batch?;
            let ids = batch.column(0).as_binary::<i32>();
            for (i, row) in (0..ids.len()).zip(&mut at) {
                if ids.is_valid(i) && ids.value(i) == trace {
                    found.push(row..row + 1);
                }
            }
        }
        Ok(join(found))
    }

    fn leaf(&self, name: &str) -> Option<usize> {
        let columns = self.inner.metadata.parquet_schema().columns();
        columns.iter().position(|c| c.path().parts().len() == 1 && c.name() == name)
    }

    fn chunk_bounds(&self, group: &RowGroupMetaData, name: &str) -> Option<(i64, i64)> {
        match group.column(self.leaf(name)?).statistics()? {
            Statistics::Int64(s) => Some((*s.min_opt()?, *s.max_opt()?)),
            _ => None,
        }
    }

    /// By the statistics of whole column chunks.
    fn group_may_match(&self, group: usize) -> bool {
        let group = self.inner.metadata.metadata().row_group(group);
        if let Some((start, end)) = self.time {
            let first = self.chunk_bounds(group, self.table.time_column());
            // A series ends with its `last_ms`; everything else is at one instant.
            let last = if self.table == Table::MetricSeries { self.chunk_bounds(group, "last_ms") } else { first };
            if first.is_some_and(|(min, _)| end < min) || last.is_some_and(|(_, max)| max < start) {
                return false;
            }
        }
        if let (Some(ids), Some(column)) = (&self.ids, id_column(self.table))
            && self.chunk_bounds(group, column).is_some_and(|(min, max)| !any_between(ids, min, max))
        {
            return false;
        }
        if let Some(trace) = &self.trace
            && let Some(Statistics::ByteArray(s)) = self.leaf("trace_id").and_then(|l| group.column(l).statistics())
            && let (Some(min), Some(max)) = (s.min_bytes_opt(), s.max_bytes_opt())
            && (trace.as_slice() < min || (s.max_is_exact() && max < trace.as_slice()))
        {
            return false;
        }
        true
    }

    /// `rows` without the pages of `column` that `may_match` excludes.
    fn keep_pages(
        &self,
        group: usize,
        rows: Vec<Range<usize>>,
        column: &str,
        may_match: impl Fn(&ColumnIndexMetaData, usize) -> bool,
    ) -> Vec<Range<usize>> {
        let metadata = self.inner.metadata.metadata();
        let pages = || {
            let leaf = self.leaf(column)?;
            let index = metadata.column_index()?.get(group)?.get(leaf)?;
            let offsets = metadata.offset_index()?.get(group)?.get(leaf)?;
            Some((index, offsets.page_locations()))
        };
        let Some((index, pages)) = pages() else { return rows };
        if matches!(index, ColumnIndexMetaData::NONE) || index.num_pages() != pages.len() as u64 {
            return rows;
        }
        let total = group_rows(self.inner, group);
        let first = |i: usize| pages.get(i).map_or(total, |p| usize::try_from(p.first_row_index).unwrap_or(0));
        let mut kept: Vec<Range<u64>> = Vec::new();
        for i in (0..pages.len()).filter(|i| may_match(index, *i)) {
            kept.push(first(i) as u64..first(i + 1) as u64);
        }
        let mut out = Vec::new();
        for r in rows {
            let inside = within(&kept, r.start as u64, r.len());
            out.extend(inside.into_iter().map(|k| k.start + r.start..k.end + r.start));
        }
        join(out)
    }

    fn bloom_may_hold(&self, group: usize, trace: &[u8; 16], stats: &ScanStats) -> Result<bool, PartError> {
        let Some(leaf) = self.leaf("trace_id") else { return Ok(true) };
        let chunk = self.inner.metadata.metadata().row_group(group).column(leaf);
        let (Some(offset), Some(len)) = (chunk.bloom_filter_offset(), chunk.bloom_filter_length()) else {
            return Ok(true);
        };
        let (Ok(offset), Ok(len)) = (u64::try_from(offset), u64::try_from(len)) else { return Ok(true) };
        let (fetched, n) = match self.inner.source.fetch(iter::once(offset..offset.saturating_add(len)).collect()) {
            Ok(f) => f,
            // A damaged filter is no filter.
            Err(PartError::Corrupt(_)) => return Ok(true),
            Err(e) => return Err(e),
        };
        ScanStats::add(&stats.bytes_read, n);
        let filter = ParquetRecordBatchReaderBuilder::new_with_metadata(fetched, self.inner.metadata.clone())
            .get_row_group_column_bloom_filter(group, leaf)
            .map_err(reading);
        Ok(filter.ok().flatten().is_none_or(|f| f.check(trace.as_slice())))
    }
}

fn may_overlap(range: TimeRange, min: i64, max: i64) -> bool {
    range == TimeRange::ALL || range.overlaps(Timestamp(min), Timestamp(max))
}

fn any_between(sorted: &[i64], min: i64, max: i64) -> bool {
    sorted.get(sorted.partition_point(|id| *id < min)).is_some_and(|id| *id <= max)
}

fn int_bounds(index: &ColumnIndexMetaData, page: usize) -> Option<(i64, i64)> {
    match index {
        ColumnIndexMetaData::INT64(i) => Some((*i.min_value(page)?, *i.max_value(page)?)),
        _ => None,
    }
}

fn byte_page_may_hold(index: &ColumnIndexMetaData, page: usize, wanted: &[u8]) -> bool {
    let ColumnIndexMetaData::BYTE_ARRAY(i) = index else { return true };
    if index.is_null_page(page) {
        return false;
    }
    match (i.min_value(page), i.max_value(page)) {
        (Some(min), Some(max)) => min <= wanted && wanted <= max,
        _ => true,
    }
}

/// The parts of `ranges` in `[start, start + len)`, counted from `start`; near ones joined.
fn within(ranges: &[Range<u64>], start: u64, len: usize) -> Vec<Range<usize>> {
    let end = start + len as u64;
    let first = ranges.partition_point(|r| r.end <= start);
    let inside = ranges[first..].iter().take_while(|r| r.start < end);
    join(inside.map(|r| (r.start.max(start) - start) as usize..(r.end.min(end) - start) as usize).collect())
}

fn join(ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for r in ranges.into_iter().filter(|r| !r.is_empty()) {
        match out.last_mut() {
            Some(last) if r.start <= last.end + JOIN_ROWS => last.end = last.end.max(r.end),
            _ => out.push(r),
        }
    }
    out
}
