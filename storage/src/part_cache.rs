//! Open parts, and the two kinds of row sources a scan has: a part, a head batch.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use arrow::{array::RecordBatch, compute::concat_batches};
use parking_lot::Mutex;

use crate::{
    ScanError,
    catalog::PartEntry,
    head::{HeadBatch, HeadRows},
    limits,
    model::{Table, schema},
    object::Objects,
    part::{PartReader, PartScan, RangeRead, is_loss},
    scan::{
        groups::Groups,
        request::{ScanRequest, ScanStats},
        select::RowSelector,
        stream::{RowSource, may_hold, narrow},
    },
    store::Inner,
    wal,
};

/// Readers of parts with their footers and indexes, the least recently used forgotten first.
#[derive(Clone)]
pub(crate) struct PartCache {
    held: Arc<Mutex<Held>>,
    /// What was unpacked of them.
    pub groups: Arc<Groups>,
}

impl Default for PartCache {
    fn default() -> Self {
        PartCache { held: Arc::default(), groups: Arc::new(Groups::new(limits::UNPACKED_SAMPLES_BYTES_MAX)) }
    }
}

#[derive(Default)]
struct Held {
    /// Counts look-ups: the age of an entry.
    clock: u64,
    readers: HashMap<String, (u64, Arc<PartReader>)>,
}

impl PartCache {
    pub fn open(
        &self,
        objects: &Arc<dyn Objects>,
        file: &str,
        entry: &PartEntry,
    ) -> Result<Arc<PartReader>, ScanError> {
        {
            let mut held = self.held.lock();
            held.clock += 1;
            let now = held.clock;
            if let Some((used, reader)) = held.readers.get_mut(file) {
                *used = now;
                return Ok(reader.clone());
            }
        }
        let (size, tail_bytes) = (entry.size, entry.tail_bytes());
        let source: Arc<dyn RangeRead> =
            Arc::new(ObjectRange { objects: objects.clone(), path: file.to_owned(), size, tail_bytes });
        let reader = Arc::new(PartReader::open(source).map_err(|e| e.into_scan(file))?);
        let mut held = self.held.lock();
        let now = held.clock;
        if held.readers.len() >= limits::OPEN_PARTS_MAX {
            let mut ages: Vec<u64> = held.readers.values().map(|(used, _)| *used).collect();
            let eighth = ages.len() / 8;
            let (_, cut, _) = ages.select_nth_unstable(eighth);
            let cut = *cut;
            held.readers.retain(|_, (used, _)| *used > cut);
        }
        held.readers.insert(file.to_owned(), (now, reader.clone()));
        Ok(reader)
    }

    pub fn forget(&self, file: &str) {
        self.held.lock().readers.remove(file);
        self.groups.forget(file);
    }
}

/// An object read by ranges.
#[derive(Debug)]
pub(crate) struct ObjectRange {
    pub objects: Arc<dyn Objects>,
    pub path: String,
    pub size: u64,
    pub tail_bytes: Option<u64>,
}

impl RangeRead for ObjectRange {
    fn len(&self) -> u64 {
        self.size
    }

    fn read(&self, range: std::ops::Range<u64>) -> std::io::Result<bytes::Bytes> {
        self.objects.get_range(&self.path, range)
    }

    fn read_many(&self, ranges: &[std::ops::Range<u64>]) -> std::io::Result<Vec<bytes::Bytes>> {
        self.objects.get_ranges(&self.path, ranges)
    }

    fn is_far(&self) -> bool {
        self.objects.may_land_late()
    }

    fn tail_bytes(&self) -> Option<u64> {
        self.tail_bytes
    }

    fn read_again(&self, range: std::ops::Range<u64>) -> std::io::Result<bytes::Bytes> {
        self.objects.get_range_again(&self.path, range)
    }
}

/// Rows of a part. Holding it keeps the part's file from being deleted.
pub(crate) struct PartSource {
    pub objects: Arc<dyn Objects>,
    pub cache: PartCache,
    /// Path of the file in the object store.
    pub file: String,
    pub entry: Arc<PartEntry>,
}

impl RowSource for PartSource {
    fn bounds(&self) -> (i64, i64) {
        (self.entry.min_ts.nanos(), self.entry.max_ts.nanos())
    }

    fn read(
        &self,
        request: &ScanRequest,
        columns: &[usize],
        selector: &RowSelector,
        stats: &ScanStats,
        visit: &mut dyn FnMut(RecordBatch) -> Result<bool, ScanError>,
    ) -> Result<(), ScanError> {
        let reader = self.cache.open(&self.objects, &self.file, &self.entry)?;
        let scan = PartScan { columns, range: request.range, selector };
        for batch in reader.scan(&scan, stats).map_err(|e| e.into_scan(&self.file))? {
            if !visit(batch.map_err(|e| e.into_scan(&self.file))?)? {
                break;
            }
        }
        Ok(())
    }
}

/// Rows of a head batch.
pub(crate) struct HeadSource {
    pub table: Table,
    pub batch: Arc<HeadBatch>,
}

impl HeadBatch {
    /// The rows, decoded from the WAL if they rest there.
    pub fn load(&self, table: Table) -> Result<RecordBatch, ScanError> {
        match &self.rows {
            HeadRows::Memory(rows) => Ok(rows.clone()),
            HeadRows::Wal(at) => {
                let batches: Vec<RecordBatch> = at.iter().map(|at| self.read(table, at)).collect::<Result<_, _>>()?;
                match batches.as_slice() {
                    [one] => Ok(one.clone()),
                    several => concat_batches(&schema::head(table), several)
                        .map_err(|e| ScanError::Internal(format!("wal record {}: {e}", self.first_seq))),
                }
            }
        }
    }

    fn read(&self, table: Table, at: &wal::BatchLocation) -> Result<RecordBatch, ScanError> {
        let part = || format!("wal record {}", self.first_seq);
        let rows = at.read().map_err(|e| match &e {
            wal::ReadError::Io { source, .. } if !is_loss(source) => {
                ScanError::Internal(format!("{}: {e}: {source}; try again", part()))
            }
            _ => ScanError::Corrupt { part: part(), reason: e.to_string() },
        })?;
        if rows.schema_ref().fields() != schema::head(table).fields() {
            return Err(ScanError::Corrupt {
                part: part(),
                reason: "its columns are those of another release".into(),
            });
        }
        Ok(rows)
    }
}

impl RowSource for HeadSource {
    fn bounds(&self) -> (i64, i64) {
        (self.batch.min_ts, self.batch.max_ts)
    }

    fn read(
        &self,
        _request: &ScanRequest,
        columns: &[usize],
        selector: &RowSelector,
        _stats: &ScanStats,
        visit: &mut dyn FnMut(RecordBatch) -> Result<bool, ScanError>,
    ) -> Result<(), ScanError> {
        let rows = self.batch.load(self.table)?;
        if !may_hold(self.table, &rows, selector) {
            return Ok(());
        }
        // In pieces, so that a selection of one in many rows works in cache and can stop early.
        let mut at = 0;
        while at < rows.num_rows() {
            let n = HEAD_PIECE_ROWS.min(rows.num_rows() - at);
            if !visit(narrow(self.table, &rows.slice(at, n), columns, self.batch.first_seq)?)? {
                break;
            }
            at += n;
        }
        Ok(())
    }
}

const HEAD_PIECE_ROWS: usize = 16_384;

impl Inner {
    /// Counts and reports a part that cannot be read.
    pub(crate) fn report_corrupt(&self, part: &str, reason: &str) {
        self.metrics.quarantined_parts.fetch_add(1, Ordering::Relaxed);
        tracing::error!(part, reason, "a part is damaged; its rows are left out");
    }
}
