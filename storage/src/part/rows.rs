//! The rows of a scan, a row group fetched at a time.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection, RowSelectionPolicy},
};

use super::{
    PartError, encode,
    error::reading,
    reader::{Inner, guarded},
};
use crate::{ScanStats, limits, model::schema};

/// Rows of one row group that may match: disjoint, ascending, counted from the group's start.
pub(super) struct RowGroupPlan {
    pub(super) group: usize,
    pub(super) rows: Vec<Range<usize>>,
}

/// Batches of [`super::PartReader::scan`].
pub struct PartRows<'s> {
    inner: Arc<Inner>,
    columns: Vec<usize>,
    schema: SchemaRef,
    plans: VecDeque<RowGroupPlan>,
    current: Option<ParquetRecordBatchReader>,
    mask: Option<ProjectionMask>,
    /// Rows to give without any column.
    bare_rows: usize,
    stats: &'s ScanStats,
}

impl<'s> PartRows<'s> {
    pub(super) fn new(
        inner: Arc<Inner>,
        columns: Vec<usize>,
        schema: SchemaRef,
        plans: Vec<RowGroupPlan>,
        stats: &'s ScanStats,
    ) -> Self {
        let mask = projection(&inner, &columns);
        PartRows { inner, columns, schema, plans: plans.into(), current: None, mask, bare_rows: 0, stats }
    }

    /// Schema of the batches.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>, PartError> {
        loop {
            if self.bare_rows > 0 {
                let n = self.bare_rows.min(limits::SCAN_BATCH_ROWS);
                self.bare_rows -= n;
                let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(n));
                let empty =
                    RecordBatch::try_new_with_options(Arc::new(arrow::datatypes::Schema::empty()), vec![], &options)?;
                return encode::from_disk(self.inner.table, &self.columns, &self.schema, &empty).map(Some);
            }
            if let Some(reader) = &mut self.current {
                match reader.next() {
                    Some(Ok(batch)) if batch.num_rows() == 0 => continue,
                    Some(Ok(batch)) => {
                        return encode::from_disk(self.inner.table, &self.columns, &self.schema, &batch).map(Some);
                    }
                    Some(Err(e)) => return Err(PartError::corrupt(e)),
                    None => self.current = None,
                }
            }
            let Some(plan) = self.plans.pop_front() else { return Ok(None) };
            match self.mask.clone() {
                Some(mask) => self.current = Some(self.open_group(&plan, mask)?),
                None => self.bare_rows = plan.rows.iter().map(Range::len).sum(),
            }
        }
    }

    fn open_group(&self, plan: &RowGroupPlan, mask: ProjectionMask) -> Result<ParquetRecordBatchReader, PartError> {
        let total = group_rows(&self.inner, plan.group);
        let whole = plan.rows.len() == 1 && plan.rows[0] == (0..total);
        let ranges = byte_ranges(&self.inner, plan, &mask, whole)?;
        let (fetched, n) = self.inner.source.fetch(ranges)?;
        ScanStats::add(&self.stats.bytes_read, n);
        let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(fetched, self.inner.metadata.clone())
            .with_row_groups(vec![plan.group])
            .with_projection(mask)
            .with_batch_size(limits::SCAN_BATCH_ROWS);
        if !whole {
            builder = builder
                .with_row_selection(RowSelection::from_consecutive_ranges(plan.rows.iter().cloned(), total))
                .with_row_selection_policy(RowSelectionPolicy::Selectors);
        }
        builder.build().map_err(reading)
    }
}

impl Iterator for PartRows<'_> {
    type Item = Result<RecordBatch, PartError>;

    fn next(&mut self) -> Option<Self::Item> {
        let out = guarded(|| self.next_batch());
        if out.is_err() {
            self.current = None;
            self.plans.clear();
            self.bare_rows = 0;
        }
        out.transpose()
    }
}

pub(super) fn group_rows(inner: &Inner, group: usize) -> usize {
    (inner.first_rows[group + 1] - inner.first_rows[group]) as usize
}

/// Leaves of the file that the stored columns need; `None`: it has none of them.
fn projection(inner: &Inner, columns: &[usize]) -> Option<ProjectionMask> {
    let stored = schema::stored(inner.table);
    let parquet = inner.metadata.parquet_schema();
    let mut roots = Vec::new();
    for &c in columns {
        for name in encode::disk_names(inner.table, stored.field(c)) {
            roots.extend(inner.metadata.schema().index_of(&name));
        }
    }
    (!roots.is_empty()).then(|| ProjectionMask::roots(parquet, roots))
}

/// Bytes of the row group that the plan's rows need: whole chunks, or dictionary pages and single data pages.
fn byte_ranges(
    inner: &Inner,
    plan: &RowGroupPlan,
    mask: &ProjectionMask,
    whole: bool,
) -> Result<Vec<Range<u64>>, PartError> {
    let metadata = inner.metadata.metadata();
    let group = metadata.row_group(plan.group);
    let total = group_rows(inner, plan.group);
    let mut out = Vec::new();
    for (leaf, chunk) in group.columns().iter().enumerate().filter(|(leaf, _)| mask.leaf_included(*leaf)) {
        let (start, len) = chunk.byte_range();
        let end = start.checked_add(len).ok_or_else(|| PartError::corrupt("column chunk beyond the file"))?;
        let pages = metadata
            .offset_index()
            .and_then(|i| i.get(plan.group)?.get(leaf))
            .map(|i| i.page_locations())
            .filter(|p| !whole && !p.is_empty());
        let Some(pages) = pages else {
            out.push(start..end);
            continue;
        };
        let at = |i: usize| pages.get(i).map_or(total, |p| usize::try_from(p.first_row_index).unwrap_or(total));
        // The dictionary page lies between the chunk's start and its first data page.
        out.push(start..u64::try_from(pages[0].offset).unwrap_or(end));
        let mut wanted = plan.rows.iter().peekable();
        for (i, page) in pages.iter().enumerate() {
            while wanted.next_if(|r| r.end <= at(i)).is_some() {}
            if wanted.peek().is_some_and(|r| r.start < at(i + 1)) {
                let (from, len) = (u64::try_from(page.offset), u64::try_from(page.compressed_page_size));
                let (Ok(from), Ok(len)) = (from, len) else {
                    return Err(PartError::corrupt("page before the file"));
                };
                out.push(from..from.saturating_add(len));
            }
        }
    }
    Ok(out)
}
