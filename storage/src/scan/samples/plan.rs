//! What a scan of samples will read: the parts and head batches of a snapshot that have rows of the series that are asked for,
//! and the series cut into shares.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::{Arc, OnceLock, atomic::Ordering},
};

use arrow::{array::AsArray, datatypes::Int64Type};

use super::{HeadRuns, PartRuns, Run, SampleRequest, SampleScan, Slot, Source, columns};
use crate::{
    ScanError,
    catalog::PartEntry,
    head::{HeadBatch, HeadRows},
    model::{Table, TenantId, TimeRange, Timestamp, time::NANOS_PER_MILLI},
    parallel,
    scan::ScanStats,
    store::Inner,
};

/// Into about how many shares a scan is cut at least, unless they had fewer samples than that many.
const SHARES_AIM: u64 = 16;
const SHARE_ROWS_MIN: usize = 4096;

/// About what a row takes that is unpacked: most bytes of times and values are those of the row before.
const UNPACKED_ROW_BYTES: u64 = 8;

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
