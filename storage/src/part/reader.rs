//! An open part: footer and indexes parsed once, scanned many times.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
};

use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
    file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader},
};

use super::{
    PartError, PartRows, encode,
    error::reading,
    prune,
    rows::RowGroupPlan,
    seal::{self, BLOCK_BYTES},
    source::{Checksums, Fetched, RangeRead, Source},
};
use crate::{
    ScanStats,
    index::runs::{self, Runs, RunsBuilder, SeriesRun, StreamRun, TraceRun},
    limits,
    model::{Table, TimeRange, schema},
    scan::select::RowSelector,
};

/// First read of a file from its end, where nobody knows how much it takes: footer, page indexes and checksums of all but the
/// largest parts. By the size of the file, within these bounds.
const SUFFIX_BYTES: (u64, u64) = (64 << 10, 256 << 10);
const SUFFIX_SHARE: u64 = 256;
/// A run index up to this size is read from far away to find one trace, and with the footer.
pub(super) const FAR_RUNS_BYTES_MAX: u64 = 64 << 10;
/// Bytes verified at a time.
const VERIFY_BYTES: u64 = 4 << 20;
/// Length and magic at the end of a Parquet file.
const FOOTER_BYTES: usize = 8;

/// What to read of a part. Rows that cannot match are left out where that is cheap; the caller tests the rest.
pub struct PartScan<'a> {
    /// Indexes into the stored schema, ascending.
    pub columns: &'a [usize],
    /// On the table's time column.
    pub range: TimeRange,
    pub selector: &'a RowSelector,
}

/// An open part. Clones share it.
#[derive(Clone)]
pub struct PartReader {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) table: Table,
    pub(super) source: Source,
    pub(super) metadata: ArrowReaderMetadata,
    /// First row of each row group, and after them the number of rows.
    pub(super) first_rows: Vec<u64>,
    runs_at: Option<(Range<u64>, u32)>,
    /// `None` once read: there is no intact one.
    runs: OnceLock<Option<Runs>>,
    scanned: OnceLock<Runs>,
}

impl PartReader {
    /// Reads the footer and the page indexes. Blocks.
    pub fn open(source: Arc<dyn RangeRead>) -> Result<Self, PartError> {
        guarded(|| open(source))
    }

    pub fn table(&self) -> Table {
        self.inner.table
    }

    pub fn rows(&self) -> u64 {
        self.inner.first_rows.last().copied().unwrap_or(0)
    }

    pub fn bytes_file(&self) -> u64 {
        self.inner.source.bytes.len()
    }

    /// Approximate bytes that the open part holds in memory.
    pub fn memory_size(&self) -> usize {
        let sums = self.inner.source.checksums.as_ref().map_or(0, |c| c.crcs.len() * 4);
        self.inner.metadata.metadata().memory_size() + sums
    }

    /// A value of the file's key-value metadata.
    pub fn key_value(&self, key: &str) -> Option<&str> {
        key_value(self.inner.metadata.metadata(), key)
    }

    /// Reads every byte that has a checksum; one that does not match is an error. Footers are checked at opening.
    pub fn verify(&self) -> Result<(), PartError> {
        let end = self.inner.source.checksums.as_ref().map_or(0, |c| c.end);
        let mut at = 0;
        while at < end {
            let next = end.min(at + VERIFY_BYTES);
            self.inner.source.read(at..next)?;
            at = next;
        }
        Ok(())
    }

    /// Log streams in row order; from the run index or, without an intact one, by a scan.
    pub fn streams(&self) -> Result<Arc<[StreamRun]>, PartError> {
        match self.runs()? {
            Runs::Streams(s) => Ok(s),
            _ => Err(PartError::Invalid(format!("table {} has no streams", self.inner.table.name()))),
        }
    }

    /// Series of points in row order; from the run index or, without an intact one, by a scan.
    pub fn series(&self) -> Result<Arc<[SeriesRun]>, PartError> {
        match self.runs()? {
            Runs::Series(s) => Ok(s),
            _ => Err(PartError::Invalid(format!("table {} has no series", self.inner.table.name()))),
        }
    }

    /// Traces in row order; from the run index or, without an intact one, by a scan.
    pub fn traces(&self) -> Result<Arc<[TraceRun]>, PartError> {
        match self.runs()? {
            Runs::Traces(t) => Ok(t),
            _ => Err(PartError::Invalid(format!("no trace summary in table {}", self.inner.table.name()))),
        }
    }

    fn runs(&self) -> Result<Runs, PartError> {
        if let Some(runs) = self.run_index()? {
            return Ok(runs.clone());
        }
        if let Some(runs) = self.inner.scanned.get() {
            return Ok(runs.clone());
        }
        let stored = schema::stored(self.inner.table);
        let mut columns: Vec<usize> =
            runs::columns(self.inner.table).iter().map(|c| stored.index_of(c).expect("stored column")).collect();
        columns.sort_unstable();
        let stats = ScanStats::default();
        let mut builder = RunsBuilder::new(self.inner.table);
        let scan = PartScan { columns: &columns, range: TimeRange::ALL, selector: &RowSelector::All };
        for batch in self.scan_plain(&scan, &stats)? {
            builder.push(&batch?);
        }
        Ok(self.inner.scanned.get_or_init(|| builder.finish()).clone())
    }

    /// The embedded run index, if it is there and intact. An unreadable file is an error, not an absent index.
    pub(super) fn run_index(&self) -> Result<Option<&Runs>, PartError> {
        if let Some(known) = self.inner.runs.get() {
            return Ok(known.as_ref());
        }
        let found = match &self.inner.runs_at {
            None => None,
            Some((at, crc)) => match self.inner.source.read(at.clone()) {
                Ok((bytes, _)) if crc32c::crc32c(&bytes) == *crc => Runs::decode(&bytes)
                    .filter(|r| r.rows().is_none_or(|n| n == self.rows()) && fits(self.inner.table, r)),
                Ok(_) | Err(PartError::Corrupt(_)) => None,
                Err(e) => return Err(e),
            },
        };
        Ok(self.inner.runs.get_or_init(|| found).as_ref())
    }

    /// Whether reading the run index for one trace would fetch much from far away.
    fn runs_are_dear(&self) -> bool {
        let bytes = self.inner.runs_at.as_ref().map_or(0, |(at, _)| at.end - at.start);
        self.inner.source.bytes.is_far() && self.inner.runs.get().is_none() && bytes > FAR_RUNS_BYTES_MAX
    }

    /// Rows that may match, stored schema projected to `scan.columns`, in part order, at most
    /// [`limits::SCAN_BATCH_ROWS`] a batch. Work happens as the iterator is asked; it ends after an error.
    pub fn scan<'s>(&self, scan: &PartScan<'_>, stats: &'s ScanStats) -> Result<PartRows<'s>, PartError> {
        guarded(|| {
            let runs = match scan.selector {
                RowSelector::All => None,
                // The page index finds a trace as well; the summary of all traces costs more than the rows it saves.
                RowSelector::Trace(_) if self.runs_are_dear() => None,
                _ => self.run_index()?,
            };
            self.scan_with(scan, runs, stats)
        })
    }

    /// Without the run index.
    fn scan_plain<'s>(&self, scan: &PartScan<'_>, stats: &'s ScanStats) -> Result<PartRows<'s>, PartError> {
        guarded(|| self.scan_with(scan, None, stats))
    }

    fn scan_with<'s>(
        &self,
        scan: &PartScan<'_>,
        runs: Option<&Runs>,
        stats: &'s ScanStats,
    ) -> Result<PartRows<'s>, PartError> {
        let stored = schema::stored(self.inner.table);
        let projected =
            stored.project(scan.columns).map_err(|e| PartError::Invalid(format!("no such column: {e}")))?;
        let pruner = prune::Pruner::new(&self.inner, scan.range, scan.selector, runs);
        let groups = self.inner.first_rows.len() - 1;
        let mut plans = Vec::new();
        for group in 0..groups {
            let rows = pruner.rows(group, stats)?;
            if !rows.is_empty() {
                plans.push(RowGroupPlan { group, rows });
            }
        }
        ScanStats::add(&stats.row_groups, plans.len());
        ScanStats::add(&stats.row_groups_pruned, groups - plans.len());
        Ok(PartRows::new(self.inner.clone(), scan.columns.to_vec(), Arc::new(projected), plans, stats))
    }
}

/// Runs `f`, and makes damage that the Parquet reader panics on an error.
pub(super) fn guarded<T>(f: impl FnOnce() -> Result<T, PartError>) -> Result<T, PartError> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        Err(PartError::Corrupt(format!("reading it failed: {what}")))
    })
}

fn fits(table: Table, runs: &Runs) -> bool {
    match table {
        Table::Logs => matches!(runs, Runs::Streams(_)),
        Table::Spans => matches!(runs, Runs::Traces(_)),
        _ => matches!(runs, Runs::Series(_)),
    }
}

fn key_value<'a>(metadata: &'a ParquetMetaData, key: &str) -> Option<&'a str> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    pairs.iter().find(|kv| kv.key == key)?.value.as_deref()
}

/// `offset,len,crc` within the first `end` bytes.
fn place(text: &str, end: u64) -> Option<(Range<u64>, u32)> {
    let mut parts = text.split(',');
    let start: u64 = parts.next()?.parse().ok()?;
    let len: u64 = parts.next()?.parse().ok()?;
    let crc = parts.next()?.parse().ok()?;
    let stop = start.checked_add(len).filter(|s| *s <= end)?;
    Some((start..stop, crc))
}

fn open(bytes: Arc<dyn RangeRead>) -> Result<PartReader, PartError> {
    let mut source = Source { bytes, checksums: None };
    let len = source.bytes.len();
    if len < (FOOTER_BYTES + 4) as u64 {
        return Err(PartError::corrupt(format_args!("{len} bytes are too few for a Parquet file")));
    }
    let tail = source.bytes.tail_bytes().unwrap_or((len / SUFFIX_SHARE).clamp(SUFFIX_BYTES.0, SUFFIX_BYTES.1));
    let mut from = len.saturating_sub(tail.max(FOOTER_BYTES as u64));
    let mut suffix = source.read(from..len)?.0;
    let end = &suffix[suffix.len() - FOOTER_BYTES..];
    if &end[4..] != b"PAR1" {
        return Err(PartError::corrupt("no Parquet magic at its end"));
    }
    let footer_len = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]])) + FOOTER_BYTES as u64;
    let footer_at = len.checked_sub(footer_len).ok_or_else(|| PartError::corrupt("footer longer than the file"))?;
    if footer_at < from {
        from = footer_at;
        suffix = source.read(from..len)?.0;
    }
    if let Some(start) = seal::tail_start(&suffix[(footer_at - from) as usize..]) {
        if start > footer_at {
            return Err(PartError::corrupt("tail starts beyond the footer"));
        }
        if start < from {
            from = start;
            suffix = source.read(from..len)?.0;
        }
        seal::verify_tail(&suffix[(start - from) as usize..])?;
    }
    let mut metadata = parse_metadata(&suffix, from, &source, len)?;
    if let Some((at, crc)) = key_value(&metadata, "sightline.checksums").and_then(|t| place(t, len)) {
        let sums = if at.start >= from {
            suffix.slice((at.start - from) as usize..(at.end - from) as usize)
        } else {
            source.read(at.clone())?.0
        };
        if crc32c::crc32c(&sums) != crc || sums.len() as u64 / 4 != at.start.div_ceil(BLOCK_BYTES as u64) {
            return Err(PartError::corrupt("checksum of the checksums does not match"));
        }
        let crcs = sums.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
        source.checksums = Some(Checksums { end: at.start, crcs });
    }
    let (table, arrow) = arrow_metadata(&mut metadata)?;
    let mut first_rows = vec![0u64];
    for g in arrow.metadata().row_groups() {
        let n = u64::try_from(g.num_rows()).map_err(|_| PartError::corrupt("negative row count"))?;
        let next = first_rows[first_rows.len() - 1].checked_add(n);
        first_rows.push(next.ok_or_else(|| PartError::corrupt("row counts overflow"))?);
    }
    let runs_at = key_value(arrow.metadata(), "sightline.runs").and_then(|t| place(t, len));
    let runs_at = runs_at.filter(|(r, _)| r.end - r.start <= limits::RUN_INDEX_BYTES_MAX as u64);
    let inner = Inner {
        table,
        source,
        metadata: arrow,
        first_rows,
        runs_at,
        runs: OnceLock::new(),
        scanned: OnceLock::new(),
    };
    Ok(PartReader { inner: Arc::new(inner) })
}

/// Footer and page indexes. `suffix`: the file from byte `from` on.
fn parse_metadata(suffix: &Bytes, from: u64, source: &Source, len: u64) -> Result<ParquetMetaData, PartError> {
    let footer = ParquetMetaDataReader::new();
    let fetched = Fetched { len, pieces: [(from, suffix.clone())].into() };
    let bare = footer.parse_and_finish(&fetched).map_err(reading)?;
    // Page indexes of a foreign file may lie before the suffix.
    let index_start = bare
        .row_groups()
        .iter()
        .flat_map(|g| g.columns())
        .flat_map(|c| [c.column_index_offset(), c.offset_index_offset()])
        .flatten()
        .map(|o| o.max(0) as u64)
        .min();
    let fetched = match index_start {
        None => return Ok(bare),
        Some(at) if at >= from => fetched,
        Some(at) => Fetched { len, pieces: [(at, source.read(at..len)?.0)].into() },
    };
    let mut reader = ParquetMetaDataReader::new_with_metadata(bare).with_page_index_policy(PageIndexPolicy::Optional);
    reader.read_page_indexes(&fetched).map_err(reading)?;
    reader.finish().map_err(reading)
}

/// The table, and the metadata with the types that the Parquet reader shall give: dictionaries where memory has them.
fn arrow_metadata(metadata: &mut ParquetMetaData) -> Result<(Table, ArrowReaderMetadata), PartError> {
    let shared = Arc::new(metadata.clone());
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let inferred = ArrowReaderMetadata::try_new(shared.clone(), options.clone()).map_err(reading)?;
    let table = key_value(&shared, "sightline.table")
        .and_then(Table::from_name)
        .or_else(|| Table::ALL.into_iter().find(|t| looks_like(*t, inferred.schema())))
        .ok_or_else(|| PartError::corrupt("its columns are those of no table"))?;
    let stored = schema::stored(table);
    let fields: Vec<Field> = inferred
        .schema()
        .fields()
        .iter()
        .map(|f| match stored.field_with_name(f.name()) {
            Ok(s) if matches!(s.data_type(), DataType::Dictionary(..)) && f.data_type() == &DataType::Utf8 => {
                f.as_ref().clone().with_data_type(schema::dict())
            }
            _ => f.as_ref().clone(),
        })
        .collect();
    let hinted =
        options.with_schema(Arc::new(Schema::new_with_metadata(fields, inferred.schema().metadata().clone())));
    Ok((table, ArrowReaderMetadata::try_new(shared, hinted).map_err(reading)?))
}

fn looks_like(table: Table, found: &Schema) -> bool {
    encode::disk_schema(table).fields().iter().all(|f| f.is_nullable() || found.index_of(f.name()).is_ok())
}
