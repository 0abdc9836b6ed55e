//! From head to parts: a prefix of a table's head becomes one part for each bucket of event time and one Delta commit.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arrow::array::RecordBatch;

use tracing::field::Empty;

use super::{HeadBatch, HeadRows, merge_run, points::Spans, rows::split_by_bucket};
use crate::{
    ScanError,
    catalog::{Bucket, CatalogError, Commit, NewPart, Operation, TAG_TAIL, part_path},
    limits,
    model::{Table, Timestamp},
    object::{ObjectWriter, Objects},
    part::{self, WriteOptions},
    store::{Inner, TableState},
};

/// The bounds that decide when a table's head is flushed.
pub(crate) struct FlushLimits {
    pub bytes: usize,
    pub age: Duration,
    pub idle_bytes: usize,
    pub idle_after: Duration,
}

/// What a table's head looks like to [`due`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeadState {
    pub bytes: usize,
    pub batches: usize,
    /// Some rows are in the WAL only, left there by a replay.
    pub replayed: bool,
    pub oldest_arrival: Duration,
    pub last_arrival: Duration,
    /// Event time between its earliest and latest row.
    pub span: Duration,
}

/// Whether a head should be flushed now (monotonic time).
pub(crate) fn due(head: HeadState, limits: &FlushLimits, now: Duration) -> bool {
    head.batches > 0
        && (head.replayed
            || head.bytes >= limits.bytes
            || now.saturating_sub(head.oldest_arrival) >= limits.age
            || (head.bytes >= limits.idle_bytes
                && head.span <= limits::FLUSH_IDLE_SPAN
                && now.saturating_sub(head.last_arrival) >= limits.idle_after))
}

/// Whether nearly all of the WAL is of rows long flushed, so that what little the heads hold should follow them.
pub(crate) fn held_for_little(wal_bytes: u64, head_bytes: usize) -> bool {
    wal_bytes > limits::WAL_HELD_BYTES && wal_bytes / limits::WAL_HELD_SHARE > head_bytes as u64
}

impl Inner {
    pub(crate) fn head_state(state: &TableState) -> HeadState {
        let data = state.data.read();
        let head = &data.head;
        let min = head.batches.iter().map(|b| b.min_ts).min();
        let max = head.batches.iter().map(|b| b.max_ts).max();
        HeadState {
            bytes: head.bytes,
            batches: head.batches.len(),
            replayed: head.batches.iter().any(|b| matches!(b.rows, HeadRows::Wal(_))),
            oldest_arrival: head.batches.first().map(|b| b.arrived).unwrap_or_default(),
            last_arrival: head.last_arrival,
            span: Duration::from_nanos(match (min, max) {
                (Some(min), Some(max)) => max.saturating_sub(min).max(0).unsigned_abs(),
                _ => 0,
            }),
        }
    }

    /// The oldest batches of the head, up to about `bytes_max` of memory.
    fn prefix(state: &TableState, bytes_max: usize) -> Vec<Arc<HeadBatch>> {
        let data = state.data.read();
        let (mut bytes, mut wal_bytes) = (0usize, 0u64);
        let mut out = Vec::new();
        for batch in &data.head.batches {
            if !out.is_empty() && (bytes > bytes_max || wal_bytes > limits::REPLAY_FLUSH_WAL_BYTES) {
                break;
            }
            bytes += batch.bytes;
            wal_bytes += batch.rows.wal_bytes();
            out.push(batch.clone());
        }
        // One WAL record may have given several batches of a table: they leave together.
        if let Some(last) = out.last().map(|b| b.last_seq) {
            out.extend(data.head.batches.iter().skip(out.len()).take_while(|b| b.first_seq <= last).cloned());
        }
        out
    }

    /// Flushes the oldest rows of a table; `false` when its head is empty.
    pub(crate) fn flush_table(&self, state: &TableState) -> Result<bool, ScanError> {
        let one = state.flush.lock();
        self.reload_if_needed(state, &one)?;
        let prefix = Self::prefix(state, self.config.flush_bytes + self.config.flush_bytes / 4);
        let Some(last_seq) = prefix.last().map(|b| b.last_seq) else { return Ok(false) };
        let (tenant, table) = (state.tenant.as_str(), state.table.name());
        let span = tracing::info_span!("flush", tenant, table, rows = Empty, parts = Empty, bytes = Empty).entered();
        let started = Instant::now();
        let mut rows = Vec::with_capacity(prefix.len());
        for batch in &prefix {
            match batch.load(state.table) {
                Ok(r) => {
                    self.note_replayed(state, batch, &r);
                    rows.push(r);
                }
                // What the WAL cannot give back any more was reported when it was read; the rest goes on.
                Err(ScanError::Corrupt { part, reason }) => self.report_corrupt(&part, &reason),
                Err(e) => return Err(e),
            }
        }
        let total: usize = rows.iter().map(|r| r.num_rows()).sum();
        let now = self.env.clock.now();
        let buckets = split_by_bucket(state.table, &rows, limits::FLUSH_HOURS_MAX)?;
        let adds = self.write_buckets(state, &buckets, last_seq, now)?;
        drop((buckets, rows));
        let written: u64 = adds.iter().map(|a| a.size).sum();
        span.record("rows", total).record("parts", adds.len()).record("bytes", written);
        {
            let _commit = state.commit.lock();
            let catalog = state.catalog.read().clone();
            let files: Vec<String> = adds.iter().map(|a| catalog.file_of(&a.path)).collect();
            let txn = Some((self.txn_app(state.table), last_seq as i64));
            let commit = Commit { adds, removes: Vec::new(), txn, operation: Operation::Flush };
            if let Err(e) = catalog.commit(commit, now) {
                return Err(self.commit_failed(state, "flush", &files, &e));
            }
            // Head and parts change places in one step: no scan sees a row twice or not at all.
            let mut data = state.data.write();
            let before = data.head.bytes;
            data.head.retire(last_seq);
            data.parts = catalog.live();
            self.head_bytes.fetch_sub(before - data.head.bytes, Ordering::Relaxed);
        }
        self.head_freed.notify_waiters();
        *self.flush_pause.lock() = (0, Duration::ZERO);
        self.metrics.flushes.fetch_add(1, Ordering::Relaxed);
        self.metrics.flush_rows.fetch_add(total as u64, Ordering::Relaxed);
        self.metrics.flush_bytes.fetch_add(written, Ordering::Relaxed);
        self.metrics.flush_micros.fetch_add(started.elapsed().as_micros() as u64, Ordering::Relaxed);
        tracing::debug!(tenant = %state.tenant, table = state.table.name(), rows = total, bytes = written,
            seconds = started.elapsed().as_secs_f64(), "flushed");
        Ok(true)
    }

    /// Notes the newest points of series among rows that were written before this process started: what contradicts them is to
    /// be seen as it was before.
    fn note_replayed(&self, state: &TableState, batch: &HeadBatch, rows: &RecordBatch) {
        let spilled = batch.bytes > 0;
        if spilled
            || !matches!(batch.rows, HeadRows::Wal(_))
            || !matches!(state.table, Table::MetricSamples | Table::MetricHistograms)
        {
            return;
        }
        let Some(series) = self.table(&state.tenant, Table::MetricSeries) else { return };
        let mut spans = Spans::default();
        // A store that is away is no reason not to flush: then they are not known, which refuses nothing.
        if spans.add(state.table, rows).is_ok() && self.ensure_days(&series, &spans.days()).is_ok() {
            spans.locate(&series.index.read());
            spans.enter(&mut series.index.write());
        }
    }

    /// A part for each bucket, in their order; none is left behind when one fails.
    fn write_buckets(
        &self,
        state: &TableState,
        buckets: &[(Bucket, Vec<RecordBatch>)],
        arrival: u64,
        now: Timestamp,
    ) -> Result<Vec<NewPart>, ScanError> {
        let write = |(bucket, rows): &(Bucket, Vec<RecordBatch>)| {
            self.write_part(state, 0, None, *bucket, |out| {
                let options = WriteOptions { arrival, ..self.write_options(0, now) };
                part::write_part(state.table, rows, &options, out)
            })
        };
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = || {
            let mut done = Vec::new();
            while !failed.load(Ordering::Relaxed) {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(bucket) = buckets.get(i) else { break };
                let written = write(bucket);
                failed.fetch_or(written.is_err(), Ordering::Relaxed);
                done.push((i, written));
            }
            done
        };
        let writers = if buckets.len() > limits::FLUSH_PARTS_SERIAL { limits::FLUSH_WRITERS } else { 1 };
        let mut done = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..writers).map(|_| scope.spawn(work)).collect();
            let mut done = work();
            for helper in helpers {
                match helper.join() {
                    Ok(more) => done.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            done
        });
        done.sort_by_key(|(i, _)| *i);
        let (mut adds, mut error) = (Vec::with_capacity(done.len()), None);
        for (_, written) in done {
            match written {
                Ok(add) => adds.push(add),
                Err(e) => error = Some(e),
            }
        }
        let Some(error) = error else { return Ok(adds) };
        adds.iter().for_each(|a| self.discard(&state.catalog.read().file_of(&a.path)));
        Err(error)
    }

    /// How parts are written now.
    pub(crate) fn write_options(&self, level: u8, now: Timestamp) -> WriteOptions {
        WriteOptions { promoted: self.config.promoted.clone(), ..WriteOptions::new(level, now) }
    }

    /// Writes one part file, durable when this returns; it counts only once it is committed.
    pub(crate) fn write_part(
        &self,
        state: &TableState,
        level: u8,
        order: Option<i64>,
        bucket: Bucket,
        write: impl FnOnce(&mut dyn ObjectWriter) -> Result<part::PartMeta, part::PartError>,
    ) -> Result<NewPart, ScanError> {
        let folder = state.catalog.read().folder().to_owned();
        write_part_in(self.objects.as_ref(), &folder, level, order, bucket, write)
    }

    /// Removes a part file that no log names; if it cannot be done now, the next start does it.
    pub(crate) fn discard(&self, file: &str) {
        discard(self.objects.as_ref(), file);
    }

    /// What is left to do after a commit failed: files that nothing names go, unless the outcome is unknown. The table is
    /// loaded again before anything else is committed to it when this process and the log may not agree any more.
    pub(crate) fn commit_failed(
        &self,
        state: &TableState,
        what: &str,
        files: &[String],
        error: &CatalogError,
    ) -> ScanError {
        let changed = matches!(
            error,
            CatalogError::AlreadyCommitted { .. }
                | CatalogError::Removed { .. }
                | CatalogError::Stale { .. }
                | CatalogError::Corrupt { .. }
        );
        if error.is_uncertain() || changed {
            state.reload.store(true, Ordering::SeqCst);
        }
        if !error.is_uncertain() {
            files.iter().for_each(|f| self.discard(f));
        }
        ScanError::Internal(format!("cannot commit a {what}: {error}"))
    }

    /// The Delta transaction id of this node's WAL for a table.
    pub(crate) fn txn_app(&self, table: Table) -> String {
        crate::open::txn_app(&self.config.node, table)
    }

    /// Merges runs of small head batches of a table. Not beside a flush, and not while a commit's outcome is unknown: what
    /// the commit took must still end at the end of a batch when it is let go of.
    pub(crate) fn coalesce(&self, state: &TableState) {
        let Some(_one) = state.flush.try_lock() else { return };
        if state.reload.load(Ordering::SeqCst) && !state.catalog.read().is_unmade() {
            return;
        }
        loop {
            let run = state.data.read().head.small_run();
            let Some((_, run)) = run else { return };
            let Some(merged) = merge_run(&run) else { return };
            let mut data = state.data.write();
            let before = data.head.bytes;
            data.head.replace_run(&run, merged);
            let after = data.head.bytes;
            drop(data);
            if after >= before {
                self.head_bytes.fetch_add(after - before, Ordering::Relaxed);
            } else {
                self.head_bytes.fetch_sub(before - after, Ordering::Relaxed);
            }
        }
    }

    /// Lets go of WAL segments whose rows are all in parts.
    pub(crate) fn release_wal(&self) {
        // Read first: a record published after this is newer than anything released below.
        let published = self.published_seq.load(Ordering::Acquire);
        let oldest =
            self.tables.read().values().filter_map(|t| t.data.read().head.batches.first().map(|b| b.first_seq)).min();
        let below = oldest.unwrap_or(published + 1).min(published + 1);
        let stats = self.wal.stats();
        if oldest.is_none_or(|o| o > published)
            && stats.segment_bytes >= limits::WAL_ROTATE_BYTES.min(self.config.wal_segment_bytes)
        {
            match crate::store::wait(self.wal.rotate()) {
                Ok(_) | Err(crate::wal::WalError::Closed) => {}
                Err(e) => tracing::warn!(error = %e, "cannot start a new WAL segment"),
            }
        }
        if let Err(e) = self.wal.release_below(below) {
            tracing::warn!(error = %e, "cannot remove old WAL segments");
        }
    }
}

/// Writes one part file into a table's folder, durable when this returns; it counts only once a log names it.
pub(crate) fn write_part_in(
    objects: &dyn Objects,
    folder: &str,
    level: u8,
    order: Option<i64>,
    bucket: Bucket,
    write: impl FnOnce(&mut dyn ObjectWriter) -> Result<part::PartMeta, part::PartError>,
) -> Result<NewPart, ScanError> {
    let path = part_path(bucket, level);
    let file = format!("{folder}/{path}");
    let fail = |e: &dyn std::fmt::Display| ScanError::Internal(format!("cannot write part {file}: {e}"));
    let mut out = objects.create(&file).map_err(|e| fail(&e))?;
    let meta = write(out.as_mut()).map_err(|e| fail(&e))?;
    let size = out.finish().map_err(|e| {
        discard(objects, &file);
        fail(&e)
    })?;
    Ok(NewPart {
        path,
        size,
        rows: meta.rows,
        min_ts: Timestamp(meta.min_ts),
        max_ts: Timestamp(meta.max_ts),
        level,
        bucket,
        order,
        tags: vec![(TAG_TAIL.to_owned(), meta.tail_bytes.to_string())],
    })
}

fn discard(objects: &dyn Objects, file: &str) {
    match objects.delete(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::debug!(file, error = %e, "cannot delete a part that was not committed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FlushLimits = FlushLimits {
        bytes: 1000,
        age: Duration::from_secs(300),
        idle_bytes: 100,
        idle_after: Duration::from_secs(2),
    };

    #[test]
    fn a_long_wal_held_by_small_heads_is_let_go() {
        let held = limits::WAL_HELD_BYTES;
        assert!(!held_for_little(held, 0));
        assert!(held_for_little(held + 8, 0));
        assert!(held_for_little(2 * held, (held / 8) as usize));
        assert!(!held_for_little(2 * held, (held / 4) as usize));
    }

    #[test]
    fn a_head_is_flushed_when_large_old_idle_or_replayed() {
        let now = Duration::from_secs(1000);
        let fresh =
            HeadState { bytes: 500, batches: 1, oldest_arrival: now, last_arrival: now, ..HeadState::default() };
        assert!(!due(fresh, &LIMITS, now));
        assert!(due(HeadState { bytes: 1000, ..fresh }, &LIMITS, now));
        assert!(due(HeadState { replayed: true, ..fresh }, &LIMITS, now));
        assert!(due(fresh, &LIMITS, now + Duration::from_secs(300)));
        assert!(due(fresh, &LIMITS, now + Duration::from_secs(2)));
        let years = HeadState { span: Duration::from_secs(90_000_000), ..fresh };
        assert!(!due(years, &LIMITS, now + Duration::from_secs(2)), "rows of many days wait for more of them");
        assert!(due(years, &LIMITS, now + Duration::from_secs(300)));
        assert!(!due(HeadState { bytes: 99, ..fresh }, &LIMITS, now + Duration::from_secs(2)));
        assert!(!due(HeadState::default(), &LIMITS, now));
    }
}
