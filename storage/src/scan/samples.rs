//! Samples of many series, read a few series at a time.
//!
//! **For** who evaluates series by series: parts are sorted by series, so that a *share* of consecutive series is a stretch of
//! each part, and what is read can be used and forgotten before the next share. **Not for** rows as Arrow batches
//! ([`super::ScanRequest`]), nor for start times.
//!
//! # Invariants
//! 1. Every share is read at most once, shares on any threads in any order.
//! 2. A row group is unpacked once, and after the last share that needs it forgotten or left to the cache of parts.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::{
        Arc, OnceLock,
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
    head::{HeadBatch, HeadRows},
    model::{Table, TenantId, TimeRange, Timestamp, time::NANOS_PER_MILLI},
    parallel,
    part::{PartReader, SampleGroup},
    store::Inner,
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

/// Where ids are in the sorted order.
struct Ranks {
    ids: Vec<i64>,
    /// Made when it is first asked for: parts are sorted by id as well.
    of: OnceLock<HashMap<i64, u32>>,
}

impl Ranks {
    fn of(&self, id: i64) -> Option<u32> {
        let all = || self.ids.iter().enumerate().map(|(rank, id)| (*id, rank as u32)).collect();
        self.of.get_or_init(all).get(&id).copied()
    }
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

/// Sources in commit order as [`SampleScan::sources`] has them.
fn by_time(sources: Vec<Source>) -> Vec<Source> {
    let mut order: Vec<usize> = (0..sources.len()).collect();
    order.sort_by_key(|n| sources[*n].bounds().0);
    let mut end = i64::MIN;
    let mut stretch = 0;
    // (which stretch of overlapping ones, place in commit order)
    let mut keys = vec![(0, 0); sources.len()];
    for n in order {
        let (first, last) = sources[n].bounds();
        stretch += usize::from(first > end);
        end = end.max(last);
        keys[n] = (stretch, n);
    }
    let mut keyed: Vec<_> = keys.into_iter().zip(sources).collect();
    keyed.sort_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, source)| source).collect()
}

fn of_ranks<'r>(runs: &'r [Run], ranks: &Range<u32>) -> &'r [Run] {
    let start = runs.partition_point(|r| r.rank < ranks.start);
    let end = start + runs[start..].partition_point(|r| r.rank < ranks.end);
    &runs[start..end]
}

/// What a snapshot has: parts with their files, and head batches, each in commit order.
pub(crate) type Snapshot = (Vec<(String, Arc<PartEntry>)>, Vec<Arc<HeadBatch>>);

impl Inner {
    /// The parts and head batches of a table that overlap the range. Counted in `stats`.
    pub(crate) fn snapshot(
        &self,
        tenant: &TenantId,
        table: Table,
        range: TimeRange,
        stats: &ScanStats,
    ) -> Option<Snapshot> {
        let state = self.table(tenant, table)?;
        let (parts, head) = {
            let data = state.data.read();
            (data.parts.clone(), data.head.batches.clone())
        };
        ScanStats::add(&stats.parts, parts.len());
        let mut kept = Vec::with_capacity(parts.len());
        for part in parts.iter() {
            if range.overlaps(part.min_ts, part.max_ts) {
                kept.push((state.catalog.read().file_of(&part.path), part.clone()));
            } else {
                ScanStats::add(&stats.parts_pruned, 1);
            }
        }
        let overlaps = |b: &Arc<HeadBatch>| range.overlaps(Timestamp(b.min_ts), Timestamp(b.max_ts));
        Some((kept, head.into_iter().filter(overlaps).collect()))
    }

    pub(crate) fn plan_samples(&self, request: &SampleRequest) -> Result<SampleScan, ScanError> {
        let stats = Arc::new(ScanStats::default());
        let last = request.range.end().nanos() - 1;
        let start = if request.range.start() == Timestamp::MIN {
            i64::MIN
        } else {
            // Rounded up: a sample is at a whole millisecond.
            -(-request.range.start().nanos()).div_euclid(NANOS_PER_MILLI)
        };
        let times = (start, last.div_euclid(NANOS_PER_MILLI));
        let mut by_id: Vec<u32> = (0..request.ids.len() as u32).collect();
        by_id.sort_unstable_by_key(|place| request.ids[*place as usize]);
        let ids: Vec<i64> = by_id.iter().map(|place| request.ids[*place as usize]).collect();
        let ranks = Ranks { ids, of: OnceLock::new() };
        let mut scan = SampleScan {
            by_id,
            shares: Vec::new(),
            sources: Vec::new(),
            times,
            kept: self.parts.groups.clone(),
            keeps: false,
            stats: stats.clone(),
        };
        let snapshot = self.snapshot(&request.tenant, Table::MetricSamples, request.range, &stats);
        let Some((parts, heads)) = snapshot.filter(|_| !request.ids.is_empty()) else {
            return Ok(scan);
        };
        let sources = parts.len() + heads.len();
        let found = parallel::map(sources, usize::MAX, |i| {
            let found = match parts.get(i) {
                Some((file, entry)) => self.part_runs(file, entry, &ranks, times).map(|p| p.map(Source::Part)),
                None => head_runs(&heads[i - parts.len()], &ranks, times).map(|h| h.map(Source::Head)),
            };
            match found {
                Err(ScanError::Corrupt { part, reason }) => {
                    scan.damaged(&part, &reason);
                    Ok(None)
                }
                other => other,
            }
        })?;
        scan.sources = by_time(found.into_iter().flatten().collect());
        scan.cut(request.share_rows.max(1), ranks.ids.len());
        Ok(scan)
    }

    fn part_runs(
        &self,
        file: &str,
        entry: &Arc<PartEntry>,
        ranks: &Ranks,
        times: (i64, i64),
    ) -> Result<Option<PartRuns>, ScanError> {
        let reader = self.parts.open(&self.objects, file, entry)?;
        let series = reader.series().map_err(|e| e.into_scan(file))?;
        let sorted = reader.is_sorted().map_err(|e| e.into_scan(file))?;
        let run = |rank: u32, s: &crate::index::runs::SeriesRun| Run { rank, first: s.first_row, rows: s.rows };
        let mut runs = Vec::new();
        if !sorted {
            runs.extend(series.iter().filter_map(|s| ranks.of(s.series_id).map(|rank| run(rank, s))));
        } else if series.len() / 16 < ranks.ids.len() {
            let mut rest = series.iter().peekable();
            for (rank, id) in ranks.ids.iter().enumerate() {
                while rest.next_if(|s| s.series_id < *id).is_some() {}
                while let Some(s) = rest.next_if(|s| s.series_id == *id) {
                    runs.push(run(rank as u32, s));
                }
            }
        } else {
            for (rank, id) in ranks.ids.iter().enumerate() {
                let at = series.partition_point(|s| s.series_id < *id);
                runs.extend(series[at..].iter().take_while(|s| s.series_id == *id).map(|s| run(rank as u32, s)));
            }
        }
        if runs.is_empty() {
            return Ok(None);
        }
        if !runs.is_sorted_by_key(|r| r.rank) {
            runs.sort_by_key(|r| r.rank);
        }
        let groups = reader.group_starts().len() - 1;
        let live = (0..groups)
            .map(|g| reader.group_times(g).is_none_or(|(min, max)| min <= times.1 && times.0 <= max))
            .collect();
        Ok(Some(PartRuns {
            bounds: (entry.min_ts.millis(), entry.max_ts.millis()),
            file: file.to_owned(),
            _entry: entry.clone(),
            reader,
            sorted,
            runs,
            live,
            needs: Vec::new(),
            groups: Vec::new(),
        }))
    }

    /// Whether a table may have rows of any of the series in the range. A part that cannot be read does not decide it.
    pub(crate) fn may_have(&self, tenant: &TenantId, table: Table, ids: &[i64], range: TimeRange) -> bool {
        let Some((parts, heads)) = self.snapshot(tenant, table, range, &ScanStats::default()) else { return false };
        if !heads.is_empty() {
            return true;
        }
        if parts.is_empty() {
            return false;
        }
        let wanted: std::collections::HashSet<i64> = ids.iter().copied().collect();
        parts.iter().any(|(file, entry)| {
            let Ok(reader) = self.parts.open(&self.objects, file, entry) else { return true };
            reader.series().map_or(true, |all| all.iter().any(|s| wanted.contains(&s.series_id)))
        })
    }

    /// Times (ms) at which a range is best cut, ascending and inside of it: between two of them no more than `parts_max`
    /// parts overlap, where parts of equal times allow that.
    pub(crate) fn sample_cuts(&self, tenant: &TenantId, range: TimeRange, parts_max: usize) -> Vec<i64> {
        let Some((parts, _)) = self.snapshot(tenant, Table::MetricSamples, range, &ScanStats::default()) else {
            return Vec::new();
        };
        let mut lives: Vec<(i64, i64)> = parts.iter().map(|(_, p)| (p.min_ts.millis(), p.max_ts.millis())).collect();
        lives.sort_unstable();
        let (first, end) = (range.start().millis(), range.end().millis());
        let mut open: Vec<i64> = Vec::new();
        let mut cuts: Vec<i64> = Vec::new();
        for (min, max) in lives {
            if open.len() >= parts_max.max(1) && min > cuts.last().copied().unwrap_or(first) && min < end {
                cuts.push(min);
                open.retain(|max| *max >= min);
            }
            open.push(max);
        }
        cuts
    }
}

impl SampleScan {
    /// Cuts the series into shares and notes what each needs.
    fn cut(&mut self, share_rows: usize, series: usize) {
        let mut weights = vec![0u64; series];
        for source in &self.sources {
            let (runs, share) = match source {
                Source::Part(p) => (&p.runs, p.fraction(self.times)),
                Source::Head(h) => (&h.runs, 1.0),
            };
            for run in runs {
                weights[run.rank as usize] += (run.rows as f64 * share) as u64 + 1;
            }
        }
        // On all cores: they end at about the same time.
        let total: u64 = weights.iter().sum();
        let share_rows = share_rows.min((total / SHARES_AIM) as usize).max(share_rows.min(SHARE_ROWS_MIN));
        let (mut start, mut sum) = (0, 0);
        for (rank, weight) in weights.iter().enumerate() {
            if sum > 0 && sum + weight > share_rows as u64 {
                self.shares.push(start..rank as u32);
                (start, sum) = (rank as u32, 0);
            }
            sum += weight;
        }
        self.shares.push(start..series as u32);
        for source in &mut self.sources {
            let Source::Part(part) = source else { continue };
            part.note_needs(&self.shares);
        }
        let rows = self.sources.iter().map(|s| if let Source::Part(p) = s { p.rows_needed() } else { 0 });
        self.keeps = rows.sum::<u64>().saturating_mul(UNPACKED_ROW_BYTES) <= self.kept.bytes_of_a_scan() as u64;
    }
}

impl PartRuns {
    /// About which part of the rows is in the times.
    fn fraction(&self, (from, to): (i64, i64)) -> f64 {
        let (min, max) = self.bounds;
        let inside = to.min(max).saturating_sub(from.max(min)).saturating_add(1).max(1);
        (inside as f64 / (max.saturating_sub(min).saturating_add(1)).max(1) as f64).min(1.0)
    }

    /// Of all row groups that some share needs.
    fn rows_needed(&self) -> u64 {
        let starts = self.reader.group_starts();
        let needed = self.groups.iter().enumerate().filter(|(_, slot)| slot.uses.load(Ordering::Relaxed) > 0);
        needed.map(|(g, _)| starts[g + 1] - starts[g]).sum()
    }

    fn note_needs(&mut self, shares: &[Range<u32>]) {
        let starts = self.reader.group_starts();
        let mut needs: BTreeSet<(u32, u32)> = BTreeSet::new();
        let mut share = 0;
        let mut last = None;
        for run in self.runs.iter().filter(|r| r.rows > 0) {
            while shares[share].end <= run.rank {
                share += 1;
            }
            let first = starts.partition_point(|s| *s <= run.first) - 1;
            let end = run.first + run.rows;
            for group in (first..self.live.len()).take_while(|g| starts[*g] < end).filter(|g| self.live[*g]) {
                let need = (share as u32, group as u32);
                if last != Some(need) {
                    needs.insert(need);
                    last = Some(need);
                }
            }
        }
        self.groups.resize_with(self.live.len(), Slot::default);
        for (_, group) in &needs {
            self.groups[*group as usize].uses.fetch_add(1, Ordering::Relaxed);
        }
        self.needs = needs.into_iter().collect();
    }
}

fn head_runs(batch: &HeadBatch, ranks: &Ranks, times: (i64, i64)) -> Result<Option<HeadRuns>, ScanError> {
    let rows = batch.load(Table::MetricSamples)?;
    let missing = || ScanError::Internal("a head batch of samples lacks a column".into());
    let ids = rows.column_by_name("series_id").ok_or_else(missing)?;
    let ids = ids.as_primitive_opt::<Int64Type>().ok_or_else(missing)?.values();
    let (ts, values) = columns(&rows).ok_or_else(missing)?;
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0;
    for run in ids.chunk_by(|a, b| a == b) {
        if let Some(rank) = ranks.of(run[0]) {
            runs.push(Run { rank, first: at, rows: run.len() as u64 });
        }
        at += run.len() as u64;
    }
    if runs.is_empty() {
        return Ok(None);
    }
    let bounds = (Timestamp(batch.min_ts).millis(), Timestamp(batch.max_ts).millis());
    let mut out = HeadRuns { bounds, ts: Vec::new(), values: Vec::new(), rows: None, runs };
    if matches!(batch.rows, HeadRows::Wal(_)) {
        // Nothing else keeps these rows: no more of them stay than are wanted.
        for run in &mut out.runs {
            let first = out.ts.len() as u64;
            for i in run.first as usize..(run.first + run.rows) as usize {
                if times.0 <= ts[i] && ts[i] <= times.1 {
                    out.ts.push(ts[i]);
                    out.values.push(values[i]);
                }
            }
            *run = Run { first, rows: out.ts.len() as u64 - first, ..*run };
        }
    } else {
        out.rows = Some(rows);
    }
    // Stable: rows of one series stay in the order they came.
    out.runs.sort_by_key(|r| r.rank);
    Ok(Some(out))
}

/// Into about how many shares a scan is cut at least, unless they had fewer samples than that many.
const SHARES_AIM: u64 = 16;
const SHARE_ROWS_MIN: usize = 4096;

/// About what a row takes that is unpacked: most bytes of times and values are those of the row before.
const UNPACKED_ROW_BYTES: u64 = 8;
