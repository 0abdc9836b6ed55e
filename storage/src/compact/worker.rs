//! Background work: one thread flushes, another merges, applies retention, writes checkpoints and deletes what is retired.
//! Each piece of work ends by itself; a failure is counted, logged and tried again later.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use arrow::array::RecordBatch;
use tracing::field::Empty;

use super::{
    merge::{MergeOptions, merge},
    plan::{self, Job},
    retention,
};
use crate::{
    ScanError, ScanRequest, ScanStats,
    catalog::{Bucket, Commit, NewPart, Operation, PartEntry},
    downsample::Resolution,
    head::flush::{FlushLimits, due, held_for_little},
    limits,
    model::{
        Table, TimeRange, Timestamp, schema,
        time::{NANOS_PER_DAY, NANOS_PER_HOUR},
    },
    part::PartError,
    part_cache::PartSource,
    scan::{select::RowSelector, stream::RowSource},
    store::{Inner, TableState},
};

/// How often the threads look when nobody wakes them.
const FLUSH_TICK: Duration = Duration::from_millis(100);
const COMPACT_TICK: Duration = Duration::from_millis(500);
const DISK_TICK: Duration = Duration::from_secs(1);
const RETENTION_TICK: Duration = Duration::from_secs(60);
/// How long a table is left alone after a merge of its parts failed.
const COMPACT_RETRY: Duration = Duration::from_secs(60);
/// Merges of one table before the others, retention and checkpoints get their turn.
const MERGES_PER_TURN: usize = 4;
/// Closed days of samples up to this size become one part, some ten million samples. Above it their hours stay apart: a
/// part is sorted by series, so whoever asks for one hour of a day decodes the day.
const SAMPLES_DAY_BYTES_MAX: u64 = 4 << 20;
/// How far an eager compaction looks ahead, so that every hour and day counts as closed and quiet.
const EAGER_AHEAD: i64 = 3 * NANOS_PER_DAY;

/// Starts the background threads.
pub(crate) fn start(inner: &Arc<Inner>) -> std::io::Result<()> {
    let mut workers = inner.workers.lock();
    let flusher = inner.clone();
    workers.push(std::thread::Builder::new().name("store-flush".into()).spawn(move || run_flusher(&flusher))?);
    let compactor = inner.clone();
    workers.push(std::thread::Builder::new().name("store-compact".into()).spawn(move || run_compactor(&compactor))?);
    if !inner.config.downsample.rules.is_empty() {
        let aggregator = inner.clone();
        let name = "store-downsample".to_owned();
        workers.push(std::thread::Builder::new().name(name).spawn(move || crate::downsample::run(&aggregator))?);
    }
    if inner.far.is_some() {
        let owner = inner.clone();
        workers.push(std::thread::Builder::new().name("store-lease".into()).spawn(move || run_lease(&owner))?);
        let spiller = inner.clone();
        workers.push(std::thread::Builder::new().name("store-spill".into()).spawn(move || run_spiller(&spiller))?);
    }
    Ok(())
}

fn run_flusher(inner: &Inner) {
    let mut disk_seen: Option<Duration> = None;
    while !inner.stop.load(Ordering::SeqCst) {
        let now = inner.env.clock.monotonic();
        if disk_seen.is_none_or(|t| now.saturating_sub(t) >= DISK_TICK) {
            disk_seen = Some(now);
            inner.watch_disk();
        }
        inner.cardinality.sweep_if_due(now);
        let mut failed = false;
        for state in inner.tables_now() {
            inner.coalesce(&state);
            failed |= !inner.flush_if_due(&state);
        }
        inner.watch_wal();
        inner.relieve_pressure();
        inner.wake.wait(if failed { Duration::from_secs(1) } else { FLUSH_TICK });
    }
}

/// Apart from the flusher, which may be waiting for the bucket.
fn run_spiller(inner: &Inner) {
    while !inner.stop.load(Ordering::SeqCst) {
        inner.watch_wal();
        inner.spill();
        inner.wake.wait(FLUSH_TICK);
    }
}

fn run_lease(inner: &Inner) {
    let Some(far) = &inner.far else { return };
    let mut renewed = Instant::now();
    while !inner.stop.load(Ordering::SeqCst) {
        let left = far.lease.beat.saturating_sub(renewed.elapsed());
        if !left.is_zero() {
            inner.wake.wait(left.min(COMPACT_TICK));
            continue;
        }
        far.lease.renew();
        renewed = Instant::now();
    }
}

fn run_compactor(inner: &Inner) {
    let mut retention_seen: Option<Duration> = None;
    while !inner.stop.load(Ordering::SeqCst) {
        let now = inner.env.clock.monotonic();
        let retain = retention_seen.is_none_or(|t| now.saturating_sub(t) >= RETENTION_TICK);
        if retain {
            retention_seen = Some(now);
        }
        let mut more = false;
        for state in inner.tables_now() {
            if inner.stop.load(Ordering::SeqCst) {
                return;
            }
            // A store that takes no flush takes nothing from here either.
            if inner.flush_paused() {
                continue;
            }
            if retain && let Err(e) = inner.apply_retention(&state) {
                tracing::warn!(tenant = %state.tenant, table = state.table.name(), error = %e, "retention failed");
            }
            if let Err(e) = inner.reload_table(&state) {
                tracing::warn!(tenant = %state.tenant, table = state.table.name(), error = %e, "cannot load the table again");
            }
            if *state.compact_not_before.lock() <= now {
                match inner.compact_table(&state, &inner.compact_limits, false) {
                    Ok(left) => more |= left,
                    Err(e) => {
                        *state.compact_not_before.lock() = now + COMPACT_RETRY;
                        inner.metrics.compaction_failures.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(tenant = %state.tenant, table = state.table.name(), error = %e, "compaction failed");
                    }
                }
            }
            inner.checkpoint_if_due(&state);
        }
        inner.run_purge();
        if !more {
            inner.wake.wait(COMPACT_TICK);
        }
    }
}

impl Inner {
    pub(crate) fn tables_now(&self) -> Vec<Arc<TableState>> {
        self.tables.read().values().cloned().collect()
    }

    fn flush_limits(&self) -> FlushLimits {
        FlushLimits {
            bytes: self.config.flush_bytes,
            age: self.config.flush_age,
            idle_bytes: limits::IDLE_FLUSH_BYTES,
            idle_after: limits::IDLE_FLUSH_AFTER,
        }
    }

    /// `false` when a flush failed.
    fn flush_if_due(&self, state: &TableState) -> bool {
        let mut flushed = false;
        while !self.stop.load(Ordering::SeqCst)
            && !self.flush_paused()
            && due(Self::head_state(state), &self.flush_limits(), self.env.clock.monotonic())
        {
            match self.flush_table(state) {
                Ok(true) => flushed = true,
                Ok(false) => break,
                Err(e) => {
                    self.flush_failed(state, &e);
                    return false;
                }
            }
        }
        if flushed {
            self.release_wal();
        }
        true
    }

    fn flush_failed(&self, state: &TableState, e: &ScanError) {
        self.metrics.flush_failures.fetch_add(1, Ordering::Relaxed);
        if self.far.is_some() {
            let mut pause = self.flush_pause.lock();
            let length = limits::FLUSH_PAUSE_FIRST.saturating_mul(1 << pause.0.min(10)).min(limits::FLUSH_PAUSE_MAX);
            *pause = (pause.0 + 1, self.env.clock.monotonic() + length);
        }
        tracing::warn!(tenant = %state.tenant, table = state.table.name(), error = %e,
            "flush failed; the rows stay in the log and in memory, it will be tried again");
    }

    /// Whether the background leaves flushes alone, because the last ones failed.
    fn flush_paused(&self) -> bool {
        self.env.clock.monotonic() < self.flush_pause.lock().1
    }

    /// Under memory pressure, with too long a WAL, or with one held by little, tables are flushed that are not due yet.
    fn relieve_pressure(&self) {
        if self.flush_paused() {
            return;
        }
        let held = self.head_bytes.load(Ordering::Relaxed);
        let wal = self.wal.stats().segment_bytes;
        let victim = if held > self.head_bytes_max() / 4 * 3 {
            self.tables_now().into_iter().max_by_key(|t| t.data.read().head.bytes)
        } else if wal > limits::WAL_BYTES_MAX || held_for_little(wal, held) {
            self.tables_now()
                .into_iter()
                .filter(|t| !t.data.read().head.batches.is_empty())
                .min_by_key(|t| t.data.read().head.batches.first().map_or(u64::MAX, |b| b.first_seq))
        } else {
            None
        };
        if let Some(state) = victim {
            match self.flush_table(&state) {
                Ok(_) => self.release_wal(),
                Err(e) => self.flush_failed(&state, &e),
            }
        }
    }

    /// Refuses writes while the log is as long as it may get.
    fn watch_wal(&self) {
        let full = self.wal.stats().segment_bytes > self.config.wal_bytes_full;
        if full && !self.wal_full.swap(full, Ordering::Relaxed) {
            tracing::warn!(
                "the write-ahead log is as long as it may get because nothing can be flushed, writes are refused"
            );
        }
        self.wal_full.store(full, Ordering::Relaxed);
    }

    /// Refuses writes while the disk is too full, and takes them again by itself.
    fn watch_disk(&self) {
        let Ok(space) = self.env.vfs.space(&self.config.dir) else { return };
        let share = space.used_share();
        let was = self.disk_full_percent.load(Ordering::Relaxed);
        // A little slack, so that it does not flap.
        let limit = if was > 0 { self.config.disk_used_max - 0.005 } else { self.config.disk_used_max };
        let now = if share > limit { (share * 100.0).round().clamp(1.0, 100.0) as u8 } else { 0 };
        if (was > 0) != (now > 0) {
            if now > 0 {
                tracing::warn!(used_percent = now, dir = %self.config.dir.display(), "the disk is nearly full, writes are refused");
            } else {
                tracing::info!("the disk has room again, writes are taken");
            }
        }
        self.disk_full_percent.store(now, Ordering::Relaxed);
    }

    /// Flushes every table until its head holds nothing that was there at the call.
    pub(crate) fn flush_all(&self) -> Result<(), ScanError> {
        let mut result = Ok(());
        for state in self.tables_now() {
            // One table's trouble is no reason to leave the others.
            result = result.and(self.flush_now(&state));
            if self.far.is_some() && result.is_err() {
                break; // the others would wait for the same bucket
            }
        }
        self.release_wal();
        result
    }

    /// Flushes a table until its head holds nothing that was there at the call.
    pub(crate) fn flush_now(&self, state: &TableState) -> Result<(), ScanError> {
        let Some(target) = state.data.read().head.batches.last().map(|b| b.last_seq) else { return Ok(()) };
        while state.data.read().head.batches.first().is_some_and(|b| b.first_seq <= target) {
            if let Err(e) = self.flush_table(state) {
                self.flush_failed(state, &e);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Every merge that is due when all hours count as closed and quiet; then retired files go.
    pub(crate) fn compact_all(&self) -> Result<(), ScanError> {
        let mut result = Ok(());
        for state in self.tables_now() {
            result = result.and(self.compact_table(&state, &self.compact_limits, true).map(|_| ()));
        }
        self.run_purge();
        result
    }

    /// Runs what the plan of a table asks for now: `eager`, as if every hour were closed and quiet, all of it, for the parts
    /// there are at the call (those flushed meanwhile wait, so that it ends); else a few merges. `true`: there may be more.
    fn compact_table(&self, state: &TableState, limits: &plan::Limits, eager: bool) -> Result<bool, ScanError> {
        let newest = state.data.read().parts.iter().map(|p| p.order).max().filter(|_| eager).unwrap_or(i64::MAX);
        let mut limits = limits.clone();
        if state.table == Table::MetricSamples {
            limits.day_bytes_max = limits.day_bytes_max.min(SAMPLES_DAY_BYTES_MAX);
        }
        let mut merges = 0;
        while eager || merges < MERGES_PER_TURN {
            let one = state.merge.lock();
            self.reload_table(state)?;
            let now = self.env.clock.now();
            let job = {
                // A merged part has the greatest order of its inputs, so it stays among them.
                let parts: Vec<_> = state.data.read().parts.iter().filter(|p| p.order <= newest).cloned().collect();
                let now = if eager { Timestamp(now.nanos().saturating_add(EAGER_AHEAD)) } else { now };
                plan::plan(&parts, now, &limits).into_iter().find(|job| eager || !self.more_is_coming(state, job))
            };
            let Some(job) = job else { return Ok(false) };
            if self.stop.load(Ordering::SeqCst) && !eager {
                return Ok(false);
            }
            self.run_job(state, &job)?;
            drop(job);
            // Whoever waits (retention, another compaction) gets its turn.
            parking_lot::MutexGuard::unlock_fair(one);
            self.run_purge();
            merges += 1;
        }
        Ok(true)
    }

    /// Whether a closed bucket's merge should wait, because the head holds more rows of that bucket: a bulk import of old
    /// data is then merged once, at its end. Not for ever: many parts are merged all the same.
    fn more_is_coming(&self, state: &TableState, job: &Job) -> bool {
        if job.level < 2 || job.inputs.len() >= self.compact_limits.import_parts {
            return false;
        }
        let end = job.bucket.end().nanos();
        let start = end.saturating_sub(match job.bucket {
            Bucket::Hour(_) => NANOS_PER_HOUR,
            Bucket::Day(_) => NANOS_PER_DAY,
        });
        state.data.read().head.batches.iter().any(|b| b.min_ts < end && b.max_ts >= start)
    }

    fn run_job(&self, state: &TableState, job: &Job) -> Result<(), ScanError> {
        let started = Instant::now();
        let (tenant, table, inputs) = (state.tenant.as_str(), state.table.name(), job.inputs.len());
        let level = job.level;
        let span =
            tracing::info_span!("compact", tenant, table, level, inputs, rows = Empty, bytes = Empty).entered();
        let mut readers = Vec::with_capacity(job.inputs.len());
        for entry in &job.inputs {
            let file = state.catalog.read().file_of(&entry.path);
            match self.parts.open(&self.objects, &file, entry) {
                Ok(reader) => readers.push(reader.as_ref().clone()),
                Err(ScanError::Corrupt { reason, .. }) => return self.set_aside(state, entry, &reason),
                Err(e) => return Err(e),
            }
        }
        let rows_in: u64 = job.inputs.iter().map(|p| p.rows).sum();
        let mut removed = 0;
        let mut damage = None;
        let add = self.write_part(state, job.level, Some(job.order), job.bucket, |out| {
            let options = MergeOptions::new(self.write_options(job.level, self.env.clock.now()));
            let merged = merge(&readers, state.table, &options, out).inspect_err(|e| {
                if let PartError::Corrupt(reason) = e {
                    damage = Some(reason.clone());
                }
            })?;
            removed = merged.rows_deleted + merged.rows_replaced;
            Ok(merged.part)
        });
        let add = match (add, damage) {
            (Ok(mut add), _) => {
                add.tags.extend(crate::downsample::tag_of(&job.inputs, None));
                if state.table == Table::MetricSamples && !self.config.downsample.rules.is_empty() {
                    add.tags.push(crate::downsample::tag_of_samples(&job.inputs));
                }
                add
            }
            (Err(e), None) => return Err(e),
            (Err(e), Some(_)) => {
                // Which one it is shows when each is read alone.
                let Some((entry, reason)) = self.damaged_input(state, job)? else { return Err(e) };
                return self.set_aside(state, &entry, &reason);
            }
        };
        if add.rows + removed != rows_in {
            self.discard(&state.catalog.read().file_of(&add.path));
            return Err(ScanError::Internal(format!(
                "merge of {rows_in} rows gave {} and removed {removed}; nothing was changed",
                add.rows
            )));
        }
        let bytes = add.size;
        span.record("rows", rows_in).record("bytes", bytes);
        self.replace_parts(state, vec![add], &job.inputs, Operation::Compact)?;
        self.metrics.compactions.fetch_add(1, Ordering::Relaxed);
        self.metrics.compaction_rows.fetch_add(rows_in - removed, Ordering::Relaxed);
        self.metrics.compaction_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.compaction_micros.fetch_add(started.elapsed().as_micros() as u64, Ordering::Relaxed);
        tracing::debug!(tenant = %state.tenant, table = state.table.name(), inputs = job.inputs.len(), rows = rows_in,
            bytes, level = job.level, seconds = started.elapsed().as_secs_f64(), "merged");
        Ok(())
    }

    /// The first input that cannot be read whole.
    fn damaged_input(&self, state: &TableState, job: &Job) -> Result<Option<(Arc<PartEntry>, String)>, ScanError> {
        let columns: Vec<usize> = (0..schema::stored(state.table).fields().len()).collect();
        let request = ScanRequest::new(state.tenant.clone(), state.table, TimeRange::ALL);
        for entry in &job.inputs {
            let source = PartSource {
                objects: self.objects.clone(),
                cache: self.parts.clone(),
                file: state.catalog.read().file_of(&entry.path),
                entry: entry.clone(),
            };
            let mut rows = 0;
            let read = source.read(
                &request,
                &columns,
                &RowSelector::All,
                &ScanStats::default(),
                &mut |batch: RecordBatch| {
                    rows += batch.num_rows() as u64;
                    Ok(true)
                },
            );
            match read {
                Err(ScanError::Corrupt { reason, .. }) => return Ok(Some((entry.clone(), reason))),
                Err(e) => return Err(e),
                Ok(()) if rows != entry.rows => {
                    let reason = format!("it holds {rows} rows, the log says {}", entry.rows);
                    return Ok(Some((entry.clone(), reason)));
                }
                Ok(()) => {}
            }
        }
        Ok(None)
    }

    /// Takes a damaged part out of its table, so that the others can be merged.
    pub(crate) fn set_aside(
        &self,
        state: &TableState,
        entry: &Arc<PartEntry>,
        reason: &str,
    ) -> Result<(), ScanError> {
        let _commit = state.commit.lock();
        let catalog = state.catalog.read().clone();
        let file = catalog.file_of(&entry.path);
        self.report_corrupt(&file, reason);
        if let Err(e) = catalog.quarantine(entry, reason, self.env.clock.now()) {
            return Err(self.commit_failed(state, "quarantine", &[], &e));
        }
        state.data.write().parts = catalog.live();
        self.parts.forget(&file);
        Ok(())
    }

    /// One commit that adds and removes parts, and the same in the live list.
    pub(crate) fn replace_parts(
        &self,
        state: &TableState,
        adds: Vec<NewPart>,
        removes: &[Arc<PartEntry>],
        operation: Operation,
    ) -> Result<(), ScanError> {
        let now = self.env.clock.now();
        let catalog;
        {
            let _commit = state.commit.lock();
            catalog = state.catalog.read().clone();
            let files: Vec<String> = adds.iter().map(|a| catalog.file_of(&a.path)).collect();
            let commit = Commit { adds, removes: removes.to_vec(), txn: None, operation };
            if let Err(e) = catalog.commit(commit, now) {
                return Err(self.commit_failed(state, "merge or removal", &files, &e));
            }
            let mut data = state.data.write();
            data.parts = catalog.live();
        }
        for part in removes {
            let file = catalog.file_of(&part.path);
            self.parts.forget(&file);
            self.purge.retire(file, part.clone(), now);
        }
        Ok(())
    }

    pub(crate) fn expire_all(&self) -> Result<(), ScanError> {
        for state in self.tables_now() {
            self.apply_retention(&state)?;
        }
        self.run_purge();
        Ok(())
    }

    /// Removes parts that are wholly past the retention of their table.
    fn apply_retention(&self, state: &TableState) -> Result<(), ScanError> {
        let now = self.env.clock.now();
        // A series stays as long as anything of it: aggregates may outlive its samples.
        let outlived_by = Resolution::ALL.map(Resolution::table).into_iter();
        let outlived_by =
            outlived_by.filter(|t| state.table == Table::MetricSeries && self.table(&state.tenant, *t).is_some());
        let horizons: Option<Vec<Timestamp>> = std::iter::once(state.table)
            .chain(outlived_by)
            .map(|table| retention::horizon(&self.config.retention, &state.tenant, table, now))
            .collect();
        let Some(horizon) = horizons.and_then(|all| all.into_iter().min()) else { return Ok(()) };
        let _one = state.merge.lock();
        self.reload_table(state)?;
        let parts = state.data.read().parts.clone();
        let expired = retention::expired(&parts, horizon).parts;
        if expired.is_empty() {
            return Ok(());
        }
        self.replace_parts(state, Vec::new(), &expired, Operation::Expire)?;
        self.metrics.retention_parts.fetch_add(expired.len() as u64, Ordering::Relaxed);
        state.index.write().drop_before(horizon.day());
        Ok(())
    }

    pub(crate) fn checkpoint_all(&self) -> Result<(), ScanError> {
        for state in self.tables_now() {
            let catalog = state.catalog.read().clone();
            catalog
                .checkpoint(self.env.clock.now())
                .map_err(|e| ScanError::Internal(format!("cannot make a checkpoint: {e}")))?;
            self.metrics.checkpoints.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn checkpoint_if_due(&self, state: &TableState) {
        let catalog = state.catalog.read().clone();
        if !catalog.checkpoint_due() {
            return;
        }
        match catalog.checkpoint(self.env.clock.now()) {
            Ok(_) => {
                self.metrics.checkpoints.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => {
                tracing::warn!(tenant = %state.tenant, table = state.table.name(), error = %e, "checkpoint failed")
            }
        }
    }

    pub(crate) fn run_purge(&self) {
        self.purge.run(self.objects.as_ref(), self.env.clock.now());
    }

    /// Brings the gauges up to date.
    pub(crate) fn observe(&self) {
        let (mut bytes, mut batches, mut rows, mut parts, mut part_bytes, mut part_rows, mut series) =
            (0u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64);
        for t in self.tables_now() {
            let data = t.data.read();
            bytes += data.head.bytes as u64;
            batches += data.head.batches.len() as u64;
            rows += data.head.batches.iter().map(|b| b.row_count as u64).sum::<u64>();
            parts += data.parts.len() as u64;
            part_bytes += data.parts.iter().map(|p| p.size).sum::<u64>();
            part_rows += data.parts.iter().map(|p| p.rows).sum::<u64>();
            series += t.index.read().len() as u64;
        }
        let wal = self.wal.stats();
        let m = &self.metrics;
        if let Some(far) = &self.far {
            let get = |a: &std::sync::atomic::AtomicU64| a.load(Ordering::Relaxed);
            let s = &far.stats;
            for (to, from) in [
                (&m.object_gets, &s.gets),
                (&m.object_get_bytes, &s.get_bytes),
                (&m.object_puts, &s.puts),
                (&m.object_put_bytes, &s.put_bytes),
                (&m.object_lists, &s.lists),
                (&m.object_deletes, &s.deletes),
                (&m.object_failures, &s.failures),
            ] {
                to.store(get(from), Ordering::Relaxed);
            }
            if let Some(cache) = &far.cache {
                let s = &cache.stats;
                for (to, from) in [
                    (&m.cache_hit_bytes, &s.hit_bytes),
                    (&m.cache_miss_bytes, &s.miss_bytes),
                    (&m.cache_damaged, &s.damaged),
                    (&m.cache_bytes, &s.held_bytes),
                ] {
                    to.store(get(from), Ordering::Relaxed);
                }
            }
        }
        for (gauge, value) in [
            (&m.head_bytes, bytes),
            (&m.head_batches, batches),
            (&m.head_rows, rows),
            (&m.parts, parts),
            (&m.part_bytes, part_bytes),
            (&m.part_rows, part_rows),
            (&m.series, series),
            (&m.unpacked_bytes, self.parts.groups.bytes()),
            (&m.wal_bytes, wal.segment_bytes),
            (&m.wal_fsyncs, wal.syncs),
            (&m.wal_fsync_micros, wal.sync_time.as_micros() as u64),
            (&m.wal_written_bytes, wal.bytes),
            (&m.disk_full_percent, u64::from(self.disk_full_percent.load(Ordering::Relaxed))),
        ] {
            gauge.store(value, Ordering::Relaxed);
        }
    }

    /// Ends everything. `flush`: the head becomes parts first, so that the files are complete.
    pub(crate) fn close(&self, flush: bool) -> Result<(), ScanError> {
        self.closed.store(true, Ordering::Release);
        self.stop.store(true, Ordering::SeqCst);
        self.wake.wake();
        self.head_freed.notify_waiters();
        for worker in self.workers.lock().drain(..) {
            if worker.join().is_err() {
                tracing::error!("a background thread of the store panicked");
            }
        }
        // Who was creating a table has ended after this, and nobody begins.
        drop(self.creating.lock());
        drop(self.tables.write());
        // Deletes and merges that someone asked for see the stop and end.
        self.tables_now().iter().for_each(|t| drop(t.merge.lock()));
        // The bulk while the WAL can still begin a new segment and so let go of the old ones.
        if flush && let Err(e) = self.flush_all() {
            tracing::warn!(error = %e, "flush at close failed, trying once more");
        }
        // Whatever was on its way into the WAL is in a head after this.
        let synced = crate::store::wait(self.wal.close())
            .map_err(|e| ScanError::Internal(format!("cannot close the WAL: {e}")));
        let flushed = if flush { self.flush_all() } else { Ok(()) };
        self.run_purge();
        if let Some(far) = &self.far {
            far.lease.release();
            if let Some(cache) = &far.cache {
                cache.save_order();
            }
        }
        drop(self.dir.lock().take());
        synced.and(flushed)
    }

    /// Counts of live parts by level, for tests and the status page.
    pub(crate) fn parts_by_level(&self) -> HashMap<u8, usize> {
        let mut out = HashMap::new();
        for t in self.tables_now() {
            for p in t.data.read().parts.iter() {
                *out.entry(p.level).or_default() += 1;
            }
        }
        out
    }
}
