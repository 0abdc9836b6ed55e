//! Which hours are due, and the making of one.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arrow::{
    array::AsArray,
    datatypes::{Float64Type, Int64Type},
};

use super::{
    Aggregate, HOUR_MS, Resolution, fold, hour_of,
    hours::{self, Made},
    to_batch,
};
use crate::{
    ScanError, ScanRequest, ScanStats, Store,
    catalog::{Bucket, NewPart, Operation, PartEntry},
    compact::retention,
    model::{
        Table, TenantId, TimeRange, Timestamp,
        time::{NANOS_PER_HOUR, NANOS_PER_MILLI},
    },
    part::{PartError, PartWriter},
    part_cache::PartSource,
    scan::{
        select::{self, RowSelector},
        stream::RowSource,
    },
    store::{Inner, TableState},
};

/// How often the thread looks, and how long it leaves a table alone after a failure.
const TICK: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(60);
/// How long the thread sleeps at a time, so that it sees the end.
const NAP: Duration = Duration::from_millis(500);
/// How old the newest samples that came late to an hour must be before it is made again: late ones seldom come alone.
const QUIET: Duration = Duration::from_secs(120);
/// Samples of one pass, some 64 MB.
const SAMPLES_PER_PASS: u64 = 2_000_000;
/// Hours of one plan; the next one follows.
const HOURS_PER_PLAN: usize = 256;

/// The background thread.
pub(crate) fn run(inner: &Inner) {
    let mut next = inner.env.clock.monotonic();
    while !inner.stop.load(Ordering::SeqCst) {
        if inner.env.clock.monotonic() < next {
            inner.wake.wait(NAP);
            continue;
        }
        let wait = match inner.downsample_due(false) {
            Ok(_) => TICK,
            Err(e) => {
                inner.metrics.downsample_failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(error = %e, "samples were not aggregated, it will be tried again");
                RETRY
            }
        };
        next = inner.env.clock.monotonic() + wait;
    }
}

/// An hour to be made at one resolution.
#[derive(Clone, Copy)]
struct Wanted {
    resolution: Resolution,
    made: Made,
}

/// One sample with its place among the parts, by which of two at one time the later commit's is known.
type Sample = (i64, i64, usize, f64);

impl Store {
    /// Hours (see [`super::hour_of`]) with samples in `from_ms < ms <= to_ms` that are aggregated at a resolution. `exact`:
    /// only those whose aggregates are of all samples there are now, by the rules of now.
    pub fn downsampled(
        &self,
        tenant: &TenantId,
        resolution: Resolution,
        from_ms: i64,
        to_ms: i64,
        exact: bool,
    ) -> Vec<i64> {
        self.inner.downsampled(tenant, resolution, (hour_of(from_ms.saturating_add(1)), hour_of(to_ms)), exact)
    }

    /// Time (ms) before which retention may have taken samples.
    pub fn samples_kept_from(&self, tenant: &TenantId) -> Option<i64> {
        self.inner.samples_horizon(tenant).map(Timestamp::millis)
    }
}

impl Inner {
    fn samples_horizon(&self, tenant: &TenantId) -> Option<Timestamp> {
        retention::horizon(&self.config.retention, tenant, Table::MetricSamples, self.env.clock.now())
    }

    fn downsampled(&self, tenant: &TenantId, resolution: Resolution, within: (i64, i64), exact: bool) -> Vec<i64> {
        let Some(state) = self.table(tenant, resolution.table()) else { return Vec::new() };
        let made = {
            let parts = state.data.read().parts.clone();
            let near = |p: &&Arc<PartEntry>| p.min_ts.hour() <= within.1 && p.max_ts.hour() >= within.0;
            hours::of_parts(parts.iter().filter(near))
        };
        let made = made.range(within.0..=within.1.max(within.0));
        if !exact {
            return made.map(|(hour, _)| *hour).collect();
        }
        let rules = self.config.downsample.fingerprint(tenant, resolution);
        let horizon = self.samples_horizon(tenant);
        let Some(samples) = self.table(tenant, Table::MetricSamples) else { return made.map(|(h, _)| *h).collect() };
        let (orders, head) = {
            let data = samples.data.read();
            let head: Vec<(i64, i64)> = data
                .head
                .batches
                .iter()
                .map(|b| {
                    (hour_of(b.min_ts.div_euclid(NANOS_PER_MILLI)), hour_of(b.max_ts.div_euclid(NANOS_PER_MILLI)))
                })
                .collect();
            (hours::of_samples(&data.parts, within), head)
        };
        let exact = |hour: i64, made: &Made| {
            // Where samples have gone there is nothing to compare with.
            let kept = horizon.is_none_or(|h| hour.saturating_mul(NANOS_PER_HOUR) >= h.nanos());
            !kept
                || (Some(made.rules) == rules
                    && orders.get(&hour).is_none_or(|(order, _)| *order == made.order)
                    && !head.iter().any(|(first, last)| (*first..=*last).contains(&hour)))
        };
        made.filter(|(hour, m)| exact(**hour, m)).map(|(hour, _)| *hour).collect()
    }

    /// Makes every hour that is due; `eager`: without waiting for more late samples. Answers how many hours were made.
    pub(crate) fn downsample_due(&self, eager: bool) -> Result<usize, ScanError> {
        if self.config.downsample.rules.is_empty() {
            return Ok(0);
        }
        let tables: Vec<Arc<TableState>> =
            self.tables_now().into_iter().filter(|t| t.table == Table::MetricSamples).collect();
        let (mut done, mut failed) = (0, None);
        for state in tables {
            loop {
                let due = self.due_hours(&state, eager);
                let n = due.len();
                for (hour, wanted) in due {
                    if self.stop.load(Ordering::SeqCst) && !eager || self.closed.load(Ordering::Acquire) {
                        return Ok(done);
                    }
                    // One hour's trouble is no reason to leave the others.
                    match self.downsample_hour(&state, hour, &wanted) {
                        Ok(()) => done += 1,
                        Err(e) => failed = failed.or(Some(e)),
                    }
                }
                if n < HOURS_PER_PLAN || failed.is_some() {
                    break;
                }
            }
        }
        failed.map_or(Ok(done), Err)
    }

    /// Hours to be made now, the newest first, at most [`HOURS_PER_PLAN`].
    fn due_hours(&self, state: &TableState, eager: bool) -> Vec<(i64, Vec<Wanted>)> {
        let rules = &self.config.downsample;
        let now = self.env.clock.now();
        let parts = state.data.read().parts.clone();
        let samples = hours::of_samples(&parts, (i64::MIN, now.hour()));
        let horizon = self.samples_horizon(&state.tenant);
        let mut out: std::collections::BTreeMap<i64, Vec<Wanted>> = std::collections::BTreeMap::new();
        for resolution in Resolution::ALL {
            let Some(fingerprint) = rules.fingerprint(&state.tenant, resolution) else { continue };
            let after = i64::try_from(rules.after(&state.tenant, resolution).as_nanos()).unwrap_or(i64::MAX);
            let held = self.table(&state.tenant, resolution.table());
            let made = held.map(|t| hours::of_parts(t.data.read().parts.iter())).unwrap_or_default();
            let empty = self.downsampled_empty.lock();
            for (&hour, &(order, written)) in &samples {
                let start = hour.saturating_mul(NANOS_PER_HOUR);
                let over = start.saturating_add(NANOS_PER_HOUR).saturating_add(after) <= now.nanos();
                if !over || horizon.is_some_and(|h| start < h.nanos()) {
                    continue;
                }
                let wanted = Made { order, rules: fingerprint };
                let before = made.get(&hour).or_else(|| empty.get(&(state.tenant.clone(), resolution, hour)));
                let quiet = now.millis().saturating_sub(written) >= QUIET.as_millis() as i64;
                if before == Some(&wanted) || (before.is_some() && !quiet && !eager) {
                    continue;
                }
                out.entry(hour).or_default().push(Wanted { resolution, made: wanted });
            }
        }
        out.into_iter().rev().take(HOURS_PER_PLAN).collect()
    }

    fn downsample_hour(&self, samples: &TableState, hour: i64, wanted: &[Wanted]) -> Result<(), ScanError> {
        let _one = self.downsampling.lock();
        let from = hour.saturating_mul(HOUR_MS);
        let Some(range) =
            TimeRange::new(Timestamp::from_millis(from + 1), Timestamp::from_millis(from + HOUR_MS + 1))
        else {
            return Ok(());
        };
        let parts: Vec<Arc<PartEntry>> = {
            let all = samples.data.read().parts.clone();
            all.iter().filter(|p| range.overlaps(p.min_ts, p.max_ts)).cloned().collect()
        };
        // A delete or a flush may have been faster than we: what the tag says must be what is read.
        let order = hours::of_samples(&parts, (hour, hour)).get(&hour).map(|(order, _)| *order);
        let wanted: Vec<Wanted> = wanted
            .iter()
            .map(|w| Wanted { made: Made { order: order.unwrap_or(w.made.order), ..w.made }, ..*w })
            .collect();
        let mut chosen: Vec<(Resolution, HashSet<i64>)> = Vec::new();
        for w in &wanted {
            chosen.push((w.resolution, self.series_to_aggregate(&samples.tenant, w.resolution, range)?));
        }
        let ids: BTreeSet<i64> = chosen.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        let ids: Vec<i64> = ids.into_iter().collect();
        let job = Hour { inner: self, samples, range, parts, ids, chosen };
        let added = match job.write(hour)? {
            Written::Parts(added) => added,
            Written::Damaged(entry, reason) => {
                // Its hours are planned again, without it.
                let _merge = samples.merge.lock();
                return self.set_aside(samples, &entry, &reason);
            }
        };
        for (resolution, part) in added {
            let Some(made) = wanted.iter().find(|w| w.resolution == resolution).map(|w| w.made) else { continue };
            self.put_hour(&samples.tenant, resolution, hour, made, part)?;
        }
        self.metrics.downsampled_hours.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn series_to_aggregate(
        &self,
        tenant: &TenantId,
        resolution: Resolution,
        range: TimeRange,
    ) -> Result<HashSet<i64>, ScanError> {
        let mut out = HashSet::new();
        let Some(series) = self.table(tenant, Table::MetricSeries) else { return Ok(out) };
        for selector in self.config.downsample.of(tenant, resolution).flat_map(|r| &r.selectors) {
            out.extend(self.find_indexed(&series, range, |i| i.find_ids(selector, range))?);
        }
        Ok(out)
    }

    /// Commits the part of an hour in the place of the one before.
    fn put_hour(
        &self,
        tenant: &TenantId,
        resolution: Resolution,
        hour: i64,
        made: Made,
        mut part: NewPart,
    ) -> Result<(), ScanError> {
        let state = self.aggregates(tenant, resolution)?;
        let file = state.catalog.read().file_of(&part.path);
        let _merge = state.merge.lock();
        if let Err(e) = self.reload_table(&state) {
            self.discard(&file);
            return Err(e);
        }
        if self.closed.load(Ordering::Acquire) {
            self.discard(&file);
            return Err(ScanError::Internal("the store is closing".into()));
        }
        // An hour that was merged with others stays, and the newer rows count.
        let old: Vec<Arc<PartEntry>> = {
            let parts = state.data.read().parts.clone();
            let only = |p: &&Arc<PartEntry>| hours::of_part(p).into_keys().eq([hour]);
            parts.iter().filter(only).cloned().collect()
        };
        let rows = part.rows;
        let key = (tenant.clone(), resolution, hour);
        if rows == 0 {
            self.discard(&file);
            if !old.is_empty() {
                self.replace_parts(&state, Vec::new(), &old, Operation::Downsample)?;
            }
            self.downsampled_empty.lock().insert(key, made);
            return Ok(());
        }
        part.tags.push(hours::to_tag(&[(hour, made)].into()));
        self.replace_parts(&state, vec![part], &old, Operation::Downsample)?;
        self.downsampled_empty.lock().remove(&key);
        self.metrics.downsampled_rows.fetch_add(rows, Ordering::Relaxed);
        Ok(())
    }

    fn aggregates(&self, tenant: &TenantId, resolution: Resolution) -> Result<Arc<TableState>, ScanError> {
        let state =
            self.table_or_create(tenant, resolution.table()).map_err(|e| ScanError::Internal(e.to_string()))?;
        self.reload_table(&state)?;
        Ok(state)
    }
}

/// The making of one hour.
struct Hour<'a> {
    inner: &'a Inner,
    samples: &'a TableState,
    range: TimeRange,
    /// Of samples, in commit order.
    parts: Vec<Arc<PartEntry>>,
    /// Ascending.
    ids: Vec<i64>,
    chosen: Vec<(Resolution, HashSet<i64>)>,
}

enum Written {
    Parts(Vec<(Resolution, NewPart)>),
    Damaged(Arc<PartEntry>, String),
}

/// Why a pass ended early.
enum Failure {
    Damaged(Arc<PartEntry>, String),
    Other(ScanError),
}

impl From<PartError> for Failure {
    fn from(e: PartError) -> Self {
        Failure::Other(ScanError::Internal(e.to_string()))
    }
}

impl From<ScanError> for Failure {
    fn from(e: ScanError) -> Self {
        Failure::Other(e)
    }
}

impl Hour<'_> {
    /// Writes a part for each resolution; nothing is committed.
    fn write(&self, hour: i64) -> Result<Written, ScanError> {
        let wants = |r: Resolution| self.chosen.iter().any(|(c, _)| *c == r);
        let mut failure = None;
        // Twelve rows an hour and series go out as they are made; the one of the hour can wait.
        let mut coarse = Vec::new();
        let mut out = Vec::new();
        if wants(Resolution::FiveMinutes) {
            let part = self.part(Resolution::FiveMinutes, hour, |writer| {
                let made = self.each_pass(&mut |resolution, rows| {
                    let batch = to_batch(resolution, &rows)?;
                    match resolution {
                        Resolution::FiveMinutes => writer(&batch)?,
                        Resolution::Hour => coarse.push(batch),
                    }
                    Ok(())
                });
                made.map_err(|e| {
                    failure = Some(e);
                    PartError::Invalid("the hour was given up".into())
                })
            });
            match (part, failure) {
                (Ok(part), _) => out.push((Resolution::FiveMinutes, part)),
                (Err(_), Some(Failure::Damaged(entry, reason))) => return Ok(Written::Damaged(entry, reason)),
                (Err(_), Some(Failure::Other(e))) | (Err(e), None) => return Err(e),
            }
        } else {
            let made = self.each_pass(&mut |resolution, rows| {
                coarse.push(to_batch(resolution, &rows)?);
                Ok(())
            });
            match made {
                Ok(()) => {}
                Err(Failure::Damaged(entry, reason)) => return Ok(Written::Damaged(entry, reason)),
                Err(Failure::Other(e)) => return Err(e),
            }
        }
        if wants(Resolution::Hour) {
            let part = self.part(Resolution::Hour, hour, |writer| coarse.iter().try_for_each(writer));
            match part {
                Ok(part) => out.push((Resolution::Hour, part)),
                Err(e) => {
                    for (resolution, part) in out {
                        let state = self.inner.aggregates(&self.samples.tenant, resolution)?;
                        self.inner.discard(&state.catalog.read().file_of(&part.path));
                    }
                    return Err(e);
                }
            }
        }
        Ok(Written::Parts(out))
    }

    fn part(
        &self,
        resolution: Resolution,
        hour: i64,
        fill: impl FnOnce(&mut dyn FnMut(&arrow::array::RecordBatch) -> Result<(), PartError>) -> Result<(), PartError>,
    ) -> Result<NewPart, ScanError> {
        let state = self.inner.aggregates(&self.samples.tenant, resolution)?;
        self.inner.write_part(&state, 0, None, Bucket::Hour(hour), |out| {
            let options = self.inner.write_options(0, self.inner.env.clock.now());
            let mut writer = PartWriter::new(resolution.table(), &options, out)?;
            fill(&mut |batch| writer.write(batch))?;
            Ok(writer.finish()?.0)
        })
    }

    /// Gives the aggregates of ever greater series, some at a time.
    fn each_pass(
        &self,
        give: &mut dyn FnMut(Resolution, Vec<(i64, Aggregate)>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let per_series = self.samples_about() / self.ids.len().max(1) as u64;
        let series = (SAMPLES_PER_PASS / per_series.max(1)).clamp(1, self.ids.len().max(1) as u64) as usize;
        for ids in self.ids.chunks(series) {
            if self.inner.closed.load(Ordering::Acquire) {
                return Err(Failure::Other(ScanError::Internal("the store is closing".into())));
            }
            let samples = self.read(ids)?;
            for (resolution, chosen) in &self.chosen {
                give(*resolution, aggregates(*resolution, chosen, &samples))?;
            }
        }
        Ok(())
    }

    /// About how many samples the parts have in this hour.
    fn samples_about(&self) -> u64 {
        let (start, end) = (self.range.start().nanos(), self.range.end().nanos());
        let share = |p: &Arc<PartEntry>| {
            let length = (p.max_ts.nanos().saturating_sub(p.min_ts.nanos())).max(1) as f64;
            let inside = end.min(p.max_ts.nanos()).saturating_sub(start.max(p.min_ts.nanos())).max(1) as f64;
            (p.rows as f64 * (inside / length).min(1.0)) as u64
        };
        self.parts.iter().map(share).sum()
    }

    /// Samples of some series by series and time, one for each time.
    fn read(&self, ids: &[i64]) -> Result<Vec<Sample>, Failure> {
        let selector = RowSelector::Ids(ids.iter().copied().collect());
        let request = ScanRequest::new(self.samples.tenant.clone(), Table::MetricSamples, self.range).columns(&[
            "series_id",
            "ts_ms",
            "value",
        ]);
        let columns = select::needed_columns(&request, &selector, true)?;
        let stats = ScanStats::default();
        let mut out: Vec<Sample> = Vec::new();
        for (place, entry) in self.parts.iter().enumerate() {
            let source = PartSource {
                objects: self.inner.objects.clone(),
                cache: self.inner.parts.clone(),
                file: self.samples.catalog.read().file_of(&entry.path),
                entry: entry.clone(),
            };
            let read = source.read(&request, &columns, &selector, &stats, &mut |batch| {
                let rows = select::select(&request, &selector, &batch, &stats)?;
                let int = |name: &str| rows.column_by_name(name).map(|c| c.as_primitive::<Int64Type>().values());
                let value = rows.column_by_name("value").map(|c| c.as_primitive::<Float64Type>().values());
                if let (Some(ids), Some(times), Some(values)) = (int("series_id"), int("ts_ms"), value) {
                    out.extend(ids.iter().zip(times).zip(values).map(|((id, t), v)| (*id, *t, place, *v)));
                }
                Ok(true)
            });
            match read {
                Err(ScanError::Corrupt { reason, .. }) => return Err(Failure::Damaged(entry.clone(), reason)),
                other => other?,
            }
        }
        let key = |s: &Sample| (s.0, s.1, s.2);
        if !out.is_sorted_by_key(key) {
            out.sort_by_key(key);
        }
        out.dedup_by(|next, kept| {
            let same = (next.0, next.1) == (kept.0, kept.1);
            if same {
                *kept = *next;
            }
            same
        });
        Ok(out)
    }
}

fn aggregates(resolution: Resolution, chosen: &HashSet<i64>, samples: &[Sample]) -> Vec<(i64, Aggregate)> {
    let mut out = Vec::new();
    let (mut ts, mut values, mut made) = (Vec::new(), Vec::new(), Vec::new());
    for run in samples.chunk_by(|a, b| a.0 == b.0).filter(|run| chosen.contains(&run[0].0)) {
        ts.clear();
        values.clear();
        made.clear();
        ts.extend(run.iter().map(|s| s.1));
        values.extend(run.iter().map(|s| s.3));
        fold(&ts, &values, |t| resolution.end_of(t), &mut made);
        out.extend(made.iter().map(|a| (run[0].0, *a)));
    }
    out
}
