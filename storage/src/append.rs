//! The way of an append: admitted, held to limits, its columns derived, logged, and then shown in the heads.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arrow::array::RecordBatch;

use crate::{
    AppendError, ScanError, Store,
    head::{
        HeadBatch, HeadRows,
        cardinality::{self, Refused},
        points::Spans,
        repeats::{self, Repeated, Repeats},
        rows::{self, StoredRows},
    },
    limits,
    model::{Labels, Table, TenantId, Timestamp},
    sources::{Admission, InFlight},
    store::{Inner, TableState},
    wal,
};

/// How far a source has got, kept durable in the same WAL record as the rows that position stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePosition {
    /// Names one input of one source for ever, for example a file's identity.
    pub key: String,
    /// Everything before this (for files: a byte offset) is in the store once the batch is.
    pub position: u64,
}

/// One unit of writing: durable and visible whole.
#[derive(Clone, Debug)]
pub struct Append {
    pub tenant: TenantId,
    /// Batches of the tables' input schemas.
    pub rows: Vec<(Table, RecordBatch)>,
    pub sources: Vec<SourcePosition>,
    /// A batch id seen before (among the latest 65,536) is acknowledged and not stored again.
    pub batch_id: Option<[u8; 16]>,
}

/// What became of an [`Append`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    pub rows: usize,
    /// The batch id was known: nothing was stored now, all of it earlier.
    pub duplicate: bool,
    /// What was left out because of the tenant's limits on series, or contradicts what there is; `rows` counts it too.
    pub refused: Option<Arc<Refused>>,
}

impl Store {
    /// Returns when the rows are durable (see [`crate::Durability`]) and visible to scans that start afterwards.
    pub async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        self.append_with(append, Repeats::LaterWins).await
    }

    /// As [`Store::append`]; `repeats`: what becomes of points at a time that has another value.
    pub async fn append_with(&self, append: Append, repeats: Repeats) -> Result<Appended, AppendError> {
        let inner = &self.inner;
        inner.check_open()?;
        let admitted = match append.batch_id {
            None => None,
            Some(id) => match inner.sources.admit(&append.tenant, id) {
                Admission::Duplicate => {
                    return Ok(Appended {
                        rows: append.rows.iter().map(|(_, b)| b.num_rows()).sum(),
                        duplicate: true,
                        refused: None,
                    });
                }
                Admission::InFlight => {
                    return Err(AppendError::Overloaded { retry_after: Duration::from_secs(1) });
                }
                Admission::New(guard) => Some(guard),
            },
        };
        let input_bytes: usize = append.rows.iter().map(|(_, b)| b.get_array_memory_size()).sum();
        let reserved = inner.reserve_head(input_bytes).await?;
        let rows = append.rows.iter().map(|(_, b)| b.num_rows()).sum();
        // With a bucket, a look into its parts may be needed.
        let (entry, refused) = if input_bytes > limits::INLINE_ENCODE_BYTES || inner.far.is_some() {
            let inner = inner.clone();
            tokio::task::spawn_blocking(move || inner.prepare(append, repeats, reserved, admitted))
                .await
                .map_err(|e| AppendError::Invalid(format!("cannot encode the batch: {e}")))??
        } else {
            inner.prepare(append, repeats, reserved, admitted)?
        };
        let Some(entry) = entry else { return Ok(Appended { rows, duplicate: false, refused }) };
        inner.wal.append(entry).await.map_err(|e| inner.append_failed(e))?;
        Ok(Appended { rows, duplicate: false, refused })
    }
}

/// Head bytes reserved for an append; given back if it does not get there.
pub(crate) struct Reserved {
    inner: Arc<Inner>,
    bytes: usize,
}

impl Reserved {
    /// The bytes are now counted by the head itself.
    fn spent(mut self) {
        self.give_back();
    }

    fn give_back(&mut self) {
        self.inner.head_bytes.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
        self.inner.head_freed.notify_waiters();
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// What an append is to the store.
#[derive(Default)]
struct Derived {
    stored: Vec<StoredRows>,
    spans: Spans,
    /// What has to go first.
    repeated: Option<Repeated>,
}

impl Inner {
    pub(crate) fn check_open(&self) -> Result<(), AppendError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(AppendError::Closed);
        }
        if let Some(reason) = self.far.as_ref().and_then(|far| far.lease.lost()) {
            return Err(AppendError::Io(format!("the store is another's: {reason}")));
        }
        if self.wal_full.load(Ordering::Relaxed) {
            self.metrics.append_overloaded.fetch_add(1, Ordering::Relaxed);
            return Err(AppendError::Overloaded { retry_after: Duration::from_secs(5) });
        }
        let used = self.disk_full_percent.load(Ordering::Relaxed);
        if used > 0 {
            self.metrics.append_disk_full.fetch_add(1, Ordering::Relaxed);
            return Err(AppendError::DiskFull {
                used_percent: used,
                limit_percent: (self.config.disk_used_max * 100.0) as u8,
                retry_after: Duration::from_secs(5),
            });
        }
        Ok(())
    }

    fn append_failed(&self, e: wal::WalError) -> AppendError {
        match e {
            wal::WalError::TooLarge { .. } => AppendError::Invalid(e.to_string()),
            wal::WalError::Closed => AppendError::Closed,
            wal::WalError::NoSpace { .. } => {
                self.metrics.append_disk_full.fetch_add(1, Ordering::Relaxed);
                AppendError::DiskFull {
                    used_percent: 100,
                    limit_percent: (self.config.disk_used_max * 100.0) as u8,
                    retry_after: Duration::from_secs(5),
                }
            }
            e => AppendError::Io(e.to_string()),
        }
    }

    /// Waits until the head has room.
    async fn reserve_head(self: &Arc<Self>, bytes: usize) -> Result<Reserved, AppendError> {
        let max = self.head_bytes_max();
        let deadline = tokio::time::Instant::now() + limits::APPEND_WAIT_MAX;
        loop {
            let freed = self.head_freed.notified();
            // A batch larger than the whole budget passes alone rather than never. Check and claim are one step, because
            // all who wait are woken together.
            let claim = |held: usize| (held == 0 || held + bytes <= max).then_some(held + bytes);
            if self.head_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim).is_ok() {
                return Ok(Reserved { inner: self.clone(), bytes });
            }
            self.wake.wake();
            if tokio::time::timeout_at(deadline, freed).await.is_err() {
                self.metrics.append_overloaded.fetch_add(1, Ordering::Relaxed);
                return Err(AppendError::Overloaded { retry_after: Duration::from_secs(2) });
            }
            self.check_open()?;
        }
    }

    /// Brings the index of series up to date for these days. A store that is away is no reason to refuse points: series that
    /// are not known are then taken for new, which costs their rows once more.
    fn know_series(&self, state: &TableState, days: &HashSet<i64>) -> Result<(), AppendError> {
        let now = self.env.clock.monotonic();
        if now < *self.index_not_before.lock() {
            return Ok(());
        }
        match self.ensure_days(state, days) {
            Err(ScanError::Unavailable { .. }) => {
                *self.index_not_before.lock() = now + limits::INDEX_PAUSE;
                Ok(())
            }
            other => other.map_err(|e| AppendError::Io(e.to_string())),
        }
    }

    /// Derives columns, encodes the WAL record and prepares what happens once it is durable. `None`: nothing to write.
    fn prepare(
        self: &Arc<Self>,
        mut append: Append,
        repeats: Repeats,
        reserved: Reserved,
        admitted: Option<InFlight>,
    ) -> Result<(Option<wal::Entry>, Option<Arc<Refused>>), AppendError> {
        let underway = self.appends.lock().clone();
        let mut refused = self.hold_to_limits(&mut append)?;
        let mut derived = self.derive(&append, repeats)?;
        if let Some(repeated) = derived.repeated.take() {
            repeats::leave_out(&mut append.rows, repeated, refused.get_or_insert_default());
            derived = self.derive(&append, Repeats::LaterWins)?;
        }
        let (Derived { stored, spans, .. }, refused) = (derived, refused.map(Arc::new));
        if stored.is_empty() && append.sources.is_empty() && append.batch_id.is_none() {
            return Ok((None, refused));
        }
        let mut sections = Vec::with_capacity(stored.len() + append.sources.len() + 1);
        let mut targets = Vec::with_capacity(stored.len());
        for rows in &stored {
            targets.push(self.table_or_create(&append.tenant, rows.table)?);
            let encoded =
                wal::encode_batch(rows.table, &rows.batch).map_err(|e| AppendError::Invalid(e.to_string()))?;
            sections.push(wal::Section::Batch(encoded));
        }
        for s in &append.sources {
            sections.push(wal::Section::Position { key: s.key.clone(), position: s.position });
        }
        if let Some(id) = append.batch_id {
            sections.push(wal::Section::BatchId(id));
        }
        let (inner, tenant, batch_id, sources) =
            (self.clone(), append.tenant.clone(), append.batch_id, append.sources);
        let publish = Box::new(move |committed: &wal::Committed| {
            let _whole = inner.publishing.lock();
            inner.publish(committed, stored, &targets, &spans, reserved);
            inner.sources.record(&tenant, &sources, batch_id);
            // Held until here and not by the caller, who may have gone while the record was on its way.
            drop(admitted);
            drop(underway);
            inner.published_seq.fetch_max(committed.seq, Ordering::Release);
        });
        Ok((Some(wal::Entry { tenant: append.tenant, sections, publish }), refused))
    }

    /// The rows that an append is to store: its own and those of new series.
    fn derive(&self, append: &Append, repeats: Repeats) -> Result<Derived, AppendError> {
        let mut out = Derived { stored: Vec::with_capacity(append.rows.len()), ..Derived::default() };
        for (table, batch) in &append.rows {
            if batch.num_rows() > 0 && *table != Table::MetricSeries {
                out.spans.add(*table, batch)?;
                out.stored.push(rows::derive(*table, batch)?);
            }
        }
        let of_series = append.rows.iter().filter(|(table, _)| *table == Table::MetricSeries);
        let series: Vec<&RecordBatch> = of_series.map(|(_, batch)| batch).collect();
        if series.is_empty() || out.spans.is_empty() {
            return Ok(out);
        }
        series.iter().try_for_each(|batch| rows::check_schema(Table::MetricSeries, batch))?;
        let state = self.table_or_create(&append.tenant, Table::MetricSeries)?;
        self.know_series(&state, &out.spans.days())?;
        let index = state.index.read();
        let new = crate::head::points::new_series(&index, &series, &mut out.spans)?;
        if repeats == Repeats::Refused && out.spans.may_contradict(&index) {
            out.repeated = repeats::find(&append.rows, &index)?;
        }
        drop(index);
        for rows in &new {
            // First, so that a series is visible no later than its points.
            out.stored.insert(0, rows::derive(Table::MetricSeries, rows)?);
        }
        Ok(out)
    }

    /// Takes points of series beyond the tenant's limits out of an append. `None`: nothing had to go.
    fn hold_to_limits(&self, append: &mut Append) -> Result<Option<Refused>, AppendError> {
        let Some(guard) = self.cardinality.of(&append.tenant) else { return Ok(None) };
        let (ids, mut days) = cardinality::series_of(&append.rows)?;
        let now = self.env.clock.monotonic();
        let unknown = guard.touch(ids, now);
        if unknown.is_empty() {
            return Ok(None);
        }
        let state = self.table_or_create(&append.tenant, Table::MetricSeries)?;
        // Days on which a series that is there already has been: those of its points, and those in which it was active.
        let today = self.env.clock.now();
        let window = i64::try_from(guard.limits.active_for.as_nanos()).unwrap_or(i64::MAX);
        days.extend([today.day(), Timestamp(today.nanos().saturating_sub(window)).day()]);
        self.know_series(&state, &days)?;
        // What was there before cannot be told from what is new while parts cannot be read.
        let blind = now < *self.index_not_before.lock();
        let told = cardinality::labels_of(&append.rows);
        let index = state.index.read();
        let verdict = guard.register(
            unknown.into_iter(),
            now,
            |id| blind || days.iter().any(|day| index.entry(*day, id).is_some()),
            |id| match told.get(&id) {
                Some(json) => Labels::from_json(json).ok().map(Arc::new),
                None => index.labels(id).map(Arc::new),
            },
        );
        drop((index, told));
        if verdict.over.is_empty() {
            return Ok(None);
        }
        let mut refused = verdict.refused;
        let points = cardinality::leave_out(&mut append.rows, &verdict.over, &mut refused);
        guard.refuse(points, &refused, now);
        Ok(Some(refused))
    }

    /// Puts durable rows into their heads. Runs on the WAL's writer thread, in sequence order.
    fn publish(
        &self,
        committed: &wal::Committed,
        stored: Vec<StoredRows>,
        targets: &[Arc<TableState>],
        spans: &Spans,
        reserved: Reserved,
    ) {
        let (seq, arrived) = (committed.seq, self.env.clock.monotonic());
        let mut stored: Vec<Option<StoredRows>> = stored.into_iter().map(Some).collect();
        // Where each batch is in the log: only a store that may be away lets go of rows in memory.
        let at = |k: usize| self.far.as_ref().and_then(|_| committed.locations.get(k).cloned()).into_iter().collect();
        for (i, state) in targets.iter().enumerate() {
            // All batches of a table at once: a flush in between would take half of the record for the whole.
            let same: Vec<(StoredRows, Vec<wal::BatchLocation>)> = (i..targets.len())
                .filter(|k| Arc::ptr_eq(&targets[*k], state))
                .filter_map(|k| Some((stored[k].take()?, at(k))))
                .collect();
            if same.is_empty() {
                continue;
            }
            // Index and head together: see `Inner::index_anew`.
            let mut data = state.data.write();
            for (rows, at) in same {
                self.metrics.rows_in(rows.table, rows.batch.num_rows());
                crate::head::points::index_rows(&mut state.index.write(), &rows);
                let bytes = rows.batch.get_array_memory_size();
                self.head_bytes.fetch_add(bytes, Ordering::Relaxed);
                data.head.push(HeadBatch {
                    first_seq: seq,
                    last_seq: seq,
                    row_count: rows.batch.num_rows(),
                    min_ts: rows.min_ts,
                    max_ts: rows.max_ts,
                    bytes,
                    arrived,
                    rows: HeadRows::Memory(rows.batch),
                    at,
                });
            }
            if data.head.bytes >= self.config.flush_bytes {
                self.wake.wake();
            }
        }
        if !spans.is_empty()
            && let Some(tenant) = targets.first().map(|t| &t.tenant)
            && let Some(series) = self.table(tenant, Table::MetricSeries)
        {
            spans.enter(&mut series.index.write());
        }
        reserved.spent();
    }
}
