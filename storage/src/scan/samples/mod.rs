//! Samples of many series, read a few series at a time.
//!
//! **For** who evaluates series by series: parts are sorted by series, so that a *share* of consecutive series is a stretch of
//! each part, and what is read can be used and forgotten before the next share. **Not for** rows as Arrow batches
//! ([`super::ScanRequest`]), nor for start times.
//!
//! # Invariants
//! 1. Every share is read at most once, shares on any threads in any order.
//! 2. A row group is unpacked once, and after the last share that needs it forgotten or left to the cache of parts.

mod plan;

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{Float64Type, Int64Type},
};
use parking_lot::Mutex;

use super::{ScanStats, groups::Groups};
use crate::{
    ScanError,
    catalog::PartEntry,
    model::{TenantId, TimeRange},
    part::{PartReader, SampleGroup},
};

/// Which samples.
#[derive(Clone, Debug)]
pub struct SampleRequest {
    pub tenant: TenantId,
    /// `series_id`, any order, each once.
    pub ids: Arc<[i64]>,
    pub range: TimeRange,
    /// About how many samples a share has, unless one series has more.
    pub share_rows: usize,
}

/// One series' samples: parts and head batches of one time one after the other in commit order, each in order of time.
/// So of samples of one time the one that was committed last comes last, and where nothing came late all are in order.
#[derive(Debug, Default)]
pub struct StoredSamples {
    /// Index into [`SampleRequest::ids`].
    pub series: usize,
    /// Milliseconds.
    pub ts: Vec<i64>,
    /// [ts].
    pub values: Vec<f64>,
}

/// A snapshot of the samples that were asked for. Reading blocks.
pub struct SampleScan {
    /// Places in [`SampleRequest::ids`], by id: a series' *rank* is its index here.
    by_id: Vec<u32>,
    /// Ranks of each share.
    shares: Vec<Range<u32>>,
    /// In order of time; those that overlap, also by way of others, in commit order.
    sources: Vec<Source>,
    /// Closed interval, ms.
    times: (i64, i64),
    /// Row groups that other scans have unpacked.
    kept: Arc<Groups>,
    /// What this one unpacks is little enough to be kept for the next.
    keeps: bool,
    stats: Arc<ScanStats>,
}

enum Source {
    Part(PartRuns),
    Head(HeadRuns),
}

/// Consecutive rows of one series.
#[derive(Clone, Copy)]
struct Run {
    rank: u32,
    first: u64,
    rows: u64,
}

struct PartRuns {
    /// First and last sample's time, ms.
    bounds: (i64, i64),
    file: String,
    /// Keeps the file from being deleted.
    _entry: Arc<PartEntry>,
    reader: Arc<PartReader>,
    sorted: bool,
    /// By rank.
    runs: Vec<Run>,
    /// Row groups that may have rows in the range.
    live: Vec<bool>,
    /// (share, row group), sorted: which group each share needs.
    needs: Vec<(u32, u32)>,
    groups: Vec<Slot>,
}

#[derive(Default)]
struct Slot {
    /// Shares that will still ask for it.
    uses: AtomicUsize,
    state: Mutex<SlotState>,
}

#[derive(Default)]
enum SlotState {
    #[default]
    Unread,
    Read(Arc<SampleGroup>),
    Damaged,
}

struct HeadRuns {
    /// First and last sample's time, ms.
    bounds: (i64, i64),
    ts: Vec<i64>,
    values: Vec<f64>,
    rows: Option<RecordBatch>,
    /// By rank.
    runs: Vec<Run>,
}

impl HeadRuns {
    fn columns(&self) -> (&[i64], &[f64]) {
        match &self.rows {
            Some(rows) => columns(rows).unwrap_or((&[], &[])),
            None => (&self.ts, &self.values),
        }
    }
}

fn columns(rows: &RecordBatch) -> Option<(&[i64], &[f64])> {
    let ts = rows.column_by_name("ts_ms")?.as_primitive_opt::<Int64Type>()?.values();
    let values = rows.column_by_name("value")?.as_primitive_opt::<Float64Type>()?.values();
    Some((ts, values))
}

impl SampleScan {
    pub fn shares(&self) -> usize {
        self.shares.len()
    }

    /// The series of a share: indexes into [`SampleRequest::ids`].
    pub fn series_of(&self, share: usize) -> &[u32] {
        let ranks = &self.shares[share];
        &self.by_id[ranks.start as usize..ranks.end as usize]
    }

    pub fn stats(&self) -> &Arc<ScanStats> {
        &self.stats
    }

    /// Samples that are held for the whole scan: what was decoded of the log.
    pub fn held(&self) -> usize {
        let held = self.sources.iter().map(|s| if let Source::Head(h) = s { h.ts.len() } else { 0 });
        held.sum()
    }

    /// The samples of a share's series, in the order of [`SampleScan::series_of`]; empty for those that have none.
    pub fn read(&self, share: usize) -> Result<Vec<StoredSamples>, ScanError> {
        let ranks = self.shares[share].clone();
        let mut out: Vec<StoredSamples> = self
            .series_of(share)
            .iter()
            .map(|series| StoredSamples { series: *series as usize, ..StoredSamples::default() })
            .collect();
        // First what there is, so that a series gets room for all of it at once.
        let mut pieces: Vec<Piece> = Vec::new();
        let mut rows = vec![0; out.len()];
        for (n, source) in self.sources.iter().enumerate() {
            match source {
                Source::Part(part) => self.pieces_of(part, n, share, &mut pieces)?,
                Source::Head(head) => pieces.extend(of_ranks(&head.runs, &ranks).iter().map(|run| Piece {
                    series: run.rank,
                    source: n,
                    group: None,
                    rows: run.first as usize..(run.first + run.rows) as usize,
                })),
            }
        }
        for piece in &pieces {
            rows[(piece.series - ranks.start) as usize] += piece.rows.len();
        }
        for (series, rows) in out.iter_mut().zip(&rows) {
            series.ts.reserve_exact(*rows);
            series.values.reserve_exact(*rows);
        }
        for piece in &pieces {
            let into = &mut out[(piece.series - ranks.start) as usize];
            match (&piece.group, &self.sources[piece.source]) {
                (Some(group), Source::Part(part)) => self.append(group, piece.rows.clone(), part.sorted, into),
                (_, Source::Head(head)) => self.append_head(head, piece.rows.clone(), into),
                (None, Source::Part(_)) => {}
            }
        }
        let rows: usize = rows.into_iter().sum();
        ScanStats::add(&self.stats.rows_scanned, rows);
        ScanStats::add(&self.stats.bytes_scanned, 16 * rows);
        ScanStats::add(&self.stats.rows_returned, out.iter().map(|s| s.ts.len()).sum());
        Ok(out)
    }

    /// The rows of a part that a share needs, as far as their order tells those of the time range.
    fn pieces_of(
        &self,
        part: &PartRuns,
        source: usize,
        share: usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), ScanError> {
        let share_at = share as u32;
        let needs = part.needs.partition_point(|(s, _)| *s < share_at);
        let needs = part.needs[needs..].iter().take_while(|(s, _)| *s == share_at).map(|(_, g)| *g as usize);
        let groups: Vec<(usize, Option<Arc<SampleGroup>>)> =
            needs.map(|g| Ok((g, self.group(part, g)?))).collect::<Result<_, ScanError>>()?;
        let starts = part.reader.group_starts();
        for run in of_ranks(&part.runs, &self.shares[share]) {
            let mut at = run.first;
            while at < run.first + run.rows {
                let group = starts.partition_point(|s| *s <= at) - 1;
                let end = (run.first + run.rows).min(starts[group + 1]);
                let found = groups.binary_search_by_key(&group, |(g, _)| *g).ok();
                if let Some(unpacked) = found.and_then(|i| groups[i].1.as_ref()) {
                    let rows = (at - starts[group]) as usize..(end - starts[group]) as usize;
                    let rows = unpacked.in_time(rows, self.times, part.sorted);
                    if !rows.is_empty() {
                        pieces.push(Piece { series: run.rank, source, group: Some(unpacked.clone()), rows });
                    }
                }
                at = end;
            }
        }
        for (g, _) in &groups {
            let slot = &part.groups[*g];
            if slot.uses.fetch_sub(1, Ordering::AcqRel) == 1 {
                *slot.state.lock() = SlotState::Unread;
            }
        }
        Ok(())
    }

    fn append(&self, group: &SampleGroup, rows: Range<usize>, sorted: bool, into: &mut StoredSamples) {
        let before = into.ts.len();
        group.append(rows, &mut into.ts, &mut into.values);
        if !sorted {
            let mut kept = before;
            for i in before..into.ts.len() {
                if self.times.0 <= into.ts[i] && into.ts[i] <= self.times.1 {
                    (into.ts[kept], into.values[kept]) = (into.ts[i], into.values[i]);
                    kept += 1;
                }
            }
            into.ts.truncate(kept);
            into.values.truncate(kept);
        }
    }

    fn append_head(&self, head: &HeadRuns, rows: Range<usize>, into: &mut StoredSamples) {
        let (ts, values) = head.columns();
        for (t, v) in ts[rows.clone()].iter().zip(&values[rows]) {
            if self.times.0 <= *t && *t <= self.times.1 {
                into.ts.push(*t);
                into.values.push(*v);
            }
        }
    }

    /// `None`: it is damaged, and left out.
    fn group(&self, part: &PartRuns, group: usize) -> Result<Option<Arc<SampleGroup>>, ScanError> {
        // Another share that needs it waits here.
        let mut state = part.groups[group].state.lock();
        match &*state {
            SlotState::Read(group) => return Ok(Some(group.clone())),
            SlotState::Damaged => return Ok(None),
            SlotState::Unread => {}
        }
        if let Some(kept) = self.kept.get(&part.file, group) {
            *state = SlotState::Read(kept.clone());
            return Ok(Some(kept));
        }
        ScanStats::add(&self.stats.row_groups, 1);
        match part.reader.sample_group(group, &self.stats).map_err(|e| e.into_scan(&part.file)) {
            Ok(unpacked) => {
                let unpacked = Arc::new(unpacked);
                if self.keeps {
                    self.kept.keep(&part.file, group, &unpacked);
                }
                *state = SlotState::Read(unpacked.clone());
                Ok(Some(unpacked))
            }
            Err(ScanError::Corrupt { part, reason }) => {
                self.damaged(&part, &reason);
                *state = SlotState::Damaged;
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn damaged(&self, part: &str, reason: &str) {
        ScanStats::add(&self.stats.damaged, 1);
        tracing::error!(part, reason, "a part is damaged; its rows are left out of a query");
    }
}

/// Rows of one series in a row group or a head batch.
struct Piece {
    /// Its rank.
    series: u32,
    source: usize,
    /// Of a part.
    group: Option<Arc<SampleGroup>>,
    rows: Range<usize>,
}

impl Source {
    fn bounds(&self) -> (i64, i64) {
        match self {
            Source::Part(part) => part.bounds,
            Source::Head(head) => head.bounds,
        }
    }
}

fn of_ranks<'r>(runs: &'r [Run], ranks: &Range<u32>) -> &'r [Run] {
    let start = runs.partition_point(|r| r.rank < ranks.start);
    let end = start + runs[start..].partition_point(|r| r.rank < ranks.end);
    &runs[start..end]
}
