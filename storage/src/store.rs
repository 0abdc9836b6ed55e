//! The store: scan, labels, close. Appending is in [`crate::append`], opening in [`crate::open`], background work in
//! [`crate::compact::worker`].

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc};

use crate::{
    AppendError, OpenError, SampleRequest, SampleScan, ScanError, ScanRequest, ScanStats, ScanStream, Selector,
    StoreConfig,
    catalog::{PartEntry, Purge, TableCatalog},
    compact::delete::{DeleteRequest, Receipt},
    head::{TableHead, cardinality::Cardinality, census::Census, series::LabelIndex},
    index::order::LabelOrders,
    limits,
    lock::DataDir,
    metrics::StoreMetrics,
    model::{Labels, Matcher, Table, TenantId, TimeRange, Timestamp},
    object::{Objects, Remote, bridge::ObjectStats, cache::BlockCache, owner::Lease},
    part_cache::{HeadSource, PartCache, PartSource},
    scan::{
        select::{self, RowSelector},
        stream::{RowSource, ScanJob},
    },
    sources::SourceMemory,
    vfs::{Clock, Vfs},
    wal::Wal,
};

/// One log stream.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    pub id: i64,
    pub labels: Arc<Labels>,
}

/// One metric series.
#[derive(Clone, Debug)]
pub struct SeriesInfo {
    pub id: i64,
    /// With `__name__`.
    pub labels: Arc<Labels>,
    pub metric_type: Option<Arc<str>>,
    pub unit: Option<Arc<str>>,
    pub help: Option<Arc<str>>,
}

/// Files and clock of a store; the real ones unless a test brings its own.
#[derive(Clone, Debug)]
pub struct Environment {
    pub vfs: Arc<dyn Vfs>,
    pub clock: Arc<dyn Clock>,
    /// Take the directory's lock and check whose it is. Off on a file system that only this process sees.
    pub lock_dir: bool,
    /// Where parts and logs are, instead of what the configuration names.
    pub remote: Option<Remote>,
}

impl Default for Environment {
    fn default() -> Self {
        Environment {
            vfs: Arc::new(crate::vfs::OsVfs),
            clock: Arc::new(crate::vfs::SystemClock::default()),
            lock_dir: true,
            remote: None,
        }
    }
}

/// An open store. Clones share it; the last one dropped closes it without a flush (the WAL keeps the rows).
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    _closer: Arc<Closer>,
}

/// Waits for a future on a thread of ours that blocks anyway.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    let waiting = std::thread::current();
    let waker = std::task::Waker::from(Arc::new(Unpark(waiting)));
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(out) => return out,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

struct Unpark(std::thread::Thread);

impl std::task::Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Ends the background threads when the last [`Store`] is gone.
struct Closer(Weak<Inner>);

impl Drop for Closer {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.stop.store(true, Ordering::SeqCst);
            inner.wake.wake();
        }
    }
}

/// Wakes the background threads.
#[derive(Default)]
pub(crate) struct Wake {
    flag: Mutex<u64>,
    changed: parking_lot::Condvar,
}

impl Wake {
    pub fn wake(&self) {
        *self.flag.lock() += 1;
        self.changed.notify_all();
    }

    /// Until woken or `limit` has passed.
    pub fn wait(&self, limit: Duration) {
        let mut flag = self.flag.lock();
        self.changed.wait_for(&mut flag, limit);
    }
}

/// Head and parts of one table: read together, swapped together.
pub(crate) struct TableData {
    pub head: TableHead,
    /// Older rows first.
    pub parts: Arc<Vec<Arc<PartEntry>>>,
}

pub(crate) struct TableState {
    pub tenant: TenantId,
    pub table: Table,
    pub data: RwLock<TableData>,
    /// Replaced when the table had to be loaded again: a commit's outcome was not known, or its log was yet to be made.
    pub catalog: RwLock<Arc<TableCatalog>>,
    pub reload: AtomicBool,
    pub index: RwLock<LabelIndex>,
    /// Held by whoever takes batches out of the head or puts others in their place: flush, merge of small batches, reload.
    /// A spill, which gives a batch's rows another place, needs no more than `data`.
    pub flush: Mutex<()>,
    /// Held by whoever merges or removes parts. Taken before `flush`.
    pub merge: Mutex<()>,
    /// Held from a commit to the moment when `data` shows it, so that nobody shows half of another's commit.
    /// Taken after `flush`.
    pub commit: Mutex<()>,
    /// Streams of batches that a replay left in the WAL are in the index.
    pub replay_indexed: AtomicBool,
    /// A part that could not be read, and until when (monotonic) the table is left alone by the compactor.
    pub compact_not_before: Mutex<Duration>,
}

pub(crate) struct Inner {
    pub config: StoreConfig,
    pub env: Environment,
    pub objects: Arc<dyn Objects>,
    pub wal: Wal,
    /// Bounds on metric series, and what counts towards them.
    pub cardinality: Cardinality,
    pub tables: RwLock<BTreeMap<(TenantId, Table), Arc<TableState>>>,
    pub sources: Arc<SourceMemory>,
    pub parts: PartCache,
    pub orders: LabelOrders,
    /// Bytes of all heads, and of appends on their way into them.
    pub head_bytes: AtomicUsize,
    pub head_freed: Notify,
    /// Highest sequence number whose rows are in a head (or a part).
    pub published_seq: AtomicU64,
    /// Percent of the disk in use while writes are refused, else 0.
    pub disk_full_percent: AtomicU8,
    /// The log on disk is as long as it may get: nothing could be flushed for long.
    pub wal_full: AtomicBool,
    /// Held while a table is created.
    pub creating: Mutex<()>,
    /// Failed flushes in a row, and until when (monotonic) none is tried in the background.
    pub flush_pause: Mutex<(u32, Duration)>,
    /// Until when (monotonic) parts are not looked into for series.
    pub index_not_before: Mutex<Duration>,
    /// With a bucket only.
    pub far: Option<Far>,
    pub stop: AtomicBool,
    pub closed: AtomicBool,
    pub wake: Wake,
    pub workers: Mutex<Vec<std::thread::JoinHandle<()>>>,
    pub metrics: Arc<StoreMetrics>,
    pub purge: Purge,
    pub compact_limits: crate::compact::plan::Limits,
    /// Held by every append from before it looks into an index until its rows are published or it has failed.
    pub appends: Mutex<Arc<()>>,
    /// Held while a record is made visible: whoever holds it sees whole records.
    pub publishing: Mutex<()>,
    /// Held while an hour of samples is aggregated, and by whoever deletes samples: the aggregates go first, and must not
    /// come back from samples that are about to go. Taken before every table's `merge`.
    pub downsampling: Mutex<()>,
    /// Hours of samples without any that are to be aggregated, as [`crate::downsample`] found them.
    pub downsampled_empty: Mutex<crate::downsample::EmptyHours>,
    /// Given back by [`Inner::close`], after everything that writes has ended.
    pub dir: Mutex<Option<DataDir>>,
}

/// What a store in a bucket has more than one in a folder.
pub(crate) struct Far {
    pub lease: Lease,
    pub stats: Arc<ObjectStats>,
    pub cache: Option<Arc<BlockCache>>,
}

impl Store {
    /// Opens or creates the store at `config.dir`: replays the WAL in bounded memory, then is ready.
    pub async fn open(config: StoreConfig) -> Result<Store, OpenError> {
        Self::open_on(config, Environment::default()).await
    }

    /// As [`Store::open`] on another file system and clock.
    pub async fn open_on(config: StoreConfig, env: Environment) -> Result<Store, OpenError> {
        tokio::task::spawn_blocking(move || crate::open::open(config, env))
            .await
            .map_err(|e| OpenError::Foreign {
                dir: std::path::PathBuf::new(),
                reason: format!("open panicked: {e}"),
            })?
            .map(|inner| Store { _closer: Arc::new(Closer(Arc::downgrade(&inner))), inner })
    }

    /// The durable position of a source's input, if it ever wrote one.
    pub fn position(&self, tenant: &TenantId, key: &str) -> Option<u64> {
        self.inner.sources.position(tenant, key)
    }

    /// Rows under one snapshot: everything acknowledged before the call, nothing twice.
    pub async fn scan(&self, request: ScanRequest) -> Result<ScanStream, ScanError> {
        let stats = Arc::new(ScanStats::default());
        let (sender, receiver) = mpsc::channel(limits::SCAN_QUEUE_BATCHES);
        let stream = ScanStream::new(receiver, stats.clone());
        let inner = self.inner.clone();
        // Errors of the request itself come from here, those of reading through the stream.
        let job = tokio::task::spawn_blocking(move || inner.plan_scan(request, stats))
            .await
            .map_err(|e| ScanError::Internal(e.to_string()))??;
        if let Some(job) = job {
            // The task ends by itself when the stream is dropped: its channel closes.
            #[allow(clippy::disallowed_methods, reason = "bounded by the stream that is returned")]
            drop(tokio::task::spawn_blocking(move || job.run(&sender)));
        }
        Ok(stream)
    }

    /// Samples under one snapshot, as [`Store::scan`]; what it reads of files when asked.
    pub async fn samples(&self, request: SampleRequest) -> Result<SampleScan, ScanError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.plan_samples(&request))
            .await
            .map_err(|e| ScanError::Internal(e.to_string()))?
    }

    /// Whether there may be histograms of any of the series in the range.
    pub async fn may_have_histograms(
        &self,
        tenant: &TenantId,
        ids: Arc<[i64]>,
        range: TimeRange,
    ) -> Result<bool, ScanError> {
        let (inner, tenant) = (self.inner.clone(), tenant.clone());
        tokio::task::spawn_blocking(move || inner.may_have(&tenant, Table::MetricHistograms, &ids, range))
            .await
            .map_err(|e| ScanError::Internal(e.to_string()))
    }

    /// Times (ms) at which a long range is best cut, ascending and inside of it: between two of them about `parts_max` parts
    /// of samples overlap.
    pub fn sample_cuts(&self, tenant: &TenantId, range: TimeRange, parts_max: usize) -> Vec<i64> {
        self.inner.sample_cuts(tenant, range, parts_max)
    }

    /// Log streams with a record in the range (in hours at the edges), by labels; sorted by labels.
    pub async fn streams(
        &self,
        tenant: &TenantId,
        matchers: &[Matcher],
        range: TimeRange,
    ) -> Result<Vec<StreamInfo>, ScanError> {
        let found = self.find(tenant, Table::Logs, matchers, range).await?;
        Ok(found.into_iter().map(|e| StreamInfo { id: e.id, labels: e.labels }).collect())
    }

    /// Metric series alive in the range (in days at the edges), by labels; sorted by labels.
    pub async fn series(
        &self,
        tenant: &TenantId,
        matchers: &[Matcher],
        range: TimeRange,
    ) -> Result<Vec<SeriesInfo>, ScanError> {
        let found = self.find(tenant, Table::MetricSeries, matchers, range).await?;
        Ok(found
            .into_iter()
            .map(|e| {
                let text = e.meta.as_deref().cloned().unwrap_or_default();
                SeriesInfo {
                    id: e.id,
                    labels: e.labels,
                    metric_type: text.metric_type,
                    unit: text.unit,
                    help: text.help,
                }
            })
            .collect())
    }

    /// Label names of the log streams ([`Table::Logs`]) or metric series (any other table) alive in the range, sorted. Costs
    /// as much as there are names, and series where there are matchers; no label set is put together.
    pub async fn label_names(
        &self,
        tenant: &TenantId,
        table: Table,
        matchers: &[Matcher],
        range: TimeRange,
    ) -> Result<Vec<String>, ScanError> {
        let matchers = matchers.to_vec();
        self.look(tenant, table, move |inner, state| {
            inner.find_indexed(state, range, |i| i.find_names(&matchers, range))
        })
        .await
    }

    /// Values of a label, as [`Store::label_names`] has names.
    pub async fn label_values(
        &self,
        tenant: &TenantId,
        table: Table,
        name: &str,
        matchers: &[Matcher],
        range: TimeRange,
    ) -> Result<Vec<String>, ScanError> {
        let (name, matchers) = (name.to_owned(), matchers.to_vec());
        self.look(tenant, table, move |inner, state| {
            inner.find_indexed(state, range, |i| i.find_values(&name, &matchers, range))
        })
        .await
    }

    /// Counts the metric series alive in the range (in days at the edges); each list has at most `top` entries. Costs some time
    /// for each label of each series, no memory for them.
    pub async fn census(&self, tenant: &TenantId, range: TimeRange, top: usize) -> Result<Census, ScanError> {
        let mut census = self
            .look(tenant, Table::MetricSeries, move |inner, state| {
                inner.find_indexed(state, range, |i| i.census(range, top))
            })
            .await?;
        for table in [Table::MetricSamples, Table::MetricHistograms] {
            let Some(state) = self.inner.table(tenant, table) else { continue };
            let data = state.data.read();
            let parts = data.parts.iter().map(|p| (p.min_ts, p.max_ts));
            let batches = data.head.batches.iter().map(|b| (Timestamp(b.min_ts), Timestamp(b.max_ts)));
            for (min, max) in parts.chain(batches).filter(|(min, max)| range.overlaps(*min, *max)) {
                census.pieces += 1;
                let (min, max) = (min.max(range.start()).millis(), max.millis());
                let times = census.times.get_or_insert((min, max));
                *times = (times.0.min(min), times.1.max(max));
            }
        }
        Ok(census)
    }

    async fn find(
        &self,
        tenant: &TenantId,
        table: Table,
        matchers: &[Matcher],
        range: TimeRange,
    ) -> Result<Vec<crate::head::lookup::Entry>, ScanError> {
        let matchers = matchers.to_vec();
        self.look(tenant, table, move |inner, state| {
            let found = inner.find_indexed(state, range, |i| i.find(&matchers, range))?;
            let found = found.into_iter().map(|e| (e.id, e)).collect();
            let sorted = inner.orders.sorted(found, |a, b| a.labels.cmp(&b.labels));
            Ok(sorted.into_iter().map(|(_, e)| e).collect())
        })
        .await
    }

    /// What is found for a table's streams or series; nothing where there is no such table.
    async fn look<T: Default + Send + 'static>(
        &self,
        tenant: &TenantId,
        table: Table,
        look: impl FnOnce(&Inner, &TableState) -> Result<T, ScanError> + Send + 'static,
    ) -> Result<T, ScanError> {
        let owner = if table == Table::Logs { Table::Logs } else { Table::MetricSeries };
        let Some(state) = self.inner.table(tenant, owner) else { return Ok(T::default()) };
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || look(&inner, &state))
            .await
            .map_err(|e| ScanError::Internal(e.to_string()))?
    }

    /// Figures of the limits on series, of tenants that have any.
    pub fn series_lines(&self) -> Vec<crate::metrics::MetricLine> {
        self.inner.cardinality.lines()
    }

    /// Tenants that hold data.
    pub fn tenants(&self) -> Vec<TenantId> {
        let mut out: Vec<TenantId> = self.inner.tables.read().keys().map(|(t, _)| t.clone()).collect();
        out.dedup();
        out
    }

    /// Turns all head rows into parts.
    pub async fn flush(&self) -> Result<(), ScanError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.flush_all())
            .await
            .map_err(|e| ScanError::Internal(e.to_string()))?
    }

    /// Runs every compaction that is due, as if all hours were closed and quiet.
    pub async fn compact(&self) -> Result<(), ScanError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.compact_all())
            .await
            .map_err(|e| ScanError::Internal(e.to_string()))?
    }

    /// Removes parts past their retention now; in the background that happens once a minute.
    pub async fn expire(&self) -> Result<(), ScanError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.expire_all())
            .await
            .map_err(|e| ScanError::Internal(e.to_string()))?
    }

    /// Aggregates every hour of samples that is due, late ones at once; in the background that happens by itself. Answers how
    /// many hours were done.
    pub async fn downsample(&self) -> Result<usize, ScanError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.downsample_due(true))
            .await
            .map_err(|e| ScanError::Internal(e.to_string()))?
    }

    /// Deletes rows: all that were acknowledged before the call and match. All of them or, after an error, none.
    pub async fn delete(&self, request: DeleteRequest) -> Result<Receipt, ScanError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.delete(&request))
            .await
            .map_err(|e| ScanError::Internal(e.to_string()))?
    }

    /// Deletes the points of series, and each series from the days on which no point of it is left. The receipt counts
    /// points.
    pub async fn delete_series(
        &self,
        tenant: &TenantId,
        matchers: Vec<Matcher>,
        range: TimeRange,
    ) -> Result<Receipt, ScanError> {
        let (inner, tenant) = (self.inner.clone(), tenant.clone());
        tokio::task::spawn_blocking(move || inner.delete_series(&tenant, &matchers, range))
            .await
            .map_err(|e| ScanError::Internal(e.to_string()))?
    }

    /// Deletes the files of parts that nobody reads any more; in the background that happens by itself.
    pub async fn purge(&self) -> Result<(), ScanError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.run_purge()).await.map_err(|e| ScanError::Internal(e.to_string()))
    }

    /// Writes a checkpoint of every table's log, due or not.
    pub async fn checkpoint(&self) -> Result<(), ScanError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.checkpoint_all())
            .await
            .map_err(|e| ScanError::Internal(e.to_string()))?
    }

    /// Refuses new writes, flushes the head so that the files are complete, ends background work.
    pub async fn close(&self) -> Result<(), ScanError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.close(true))
            .await
            .map_err(|e| ScanError::Internal(e.to_string()))?
    }

    /// As [`Store::close`], but the head stays in the WAL, as after a crash.
    pub async fn abandon(&self) -> Result<(), ScanError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.close(false))
            .await
            .map_err(|e| ScanError::Internal(e.to_string()))?
    }

    /// Live parts by level: 0 flushed, 1 merged in the open hour, 2 merged of a closed hour.
    pub fn parts_by_level(&self) -> HashMap<u8, usize> {
        self.inner.parts_by_level()
    }

    /// Counters and gauges of the store.
    pub fn metrics(&self) -> Arc<StoreMetrics> {
        self.inner.observe();
        self.inner.metrics.clone()
    }

    pub fn config(&self) -> &StoreConfig {
        &self.inner.config
    }
}

impl Inner {
    pub(crate) fn head_bytes_max(&self) -> usize {
        self.config.memory_bytes_max / 2
    }

    pub(crate) fn table(&self, tenant: &TenantId, table: Table) -> Option<Arc<TableState>> {
        self.tables.read().get(&(tenant.clone(), table)).cloned()
    }

    /// The table, created when this is its first row.
    pub(crate) fn table_or_create(&self, tenant: &TenantId, table: Table) -> Result<Arc<TableState>, AppendError> {
        if let Some(state) = self.table(tenant, table) {
            return Ok(state);
        }
        // Not under the lock of the tables, since this may take a while, and scans go on meanwhile.
        let _one = self.creating.lock();
        if let Some(state) = self.table(tenant, table) {
            return Ok(state);
        }
        // Nothing is created once the directory may belong to someone else: see `Inner::close`.
        if self.closed.load(Ordering::Acquire) {
            return Err(AppendError::Closed);
        }
        if self.tables.read().len() >= limits::TABLES_MAX {
            return Err(AppendError::Invalid(format!("more than {} tables; use fewer tenants", limits::TABLES_MAX)));
        }
        // In a bucket later, with the first flush: what is acknowledged is in the log here, whether the bucket answers or not.
        let (objects, env, promoted) = (&self.objects, &self.env, &self.config.promoted);
        let made = match &self.far {
            Some(_) => crate::open::new_table(objects, env, promoted, tenant, table),
            None => crate::open::open_table(objects, env, promoted, tenant, table, false),
        };
        let state =
            made.map_err(|e| AppendError::Io(format!("cannot create table {tenant}/{}: {e}", table.name())))?;
        let state = Arc::new(state);
        self.tables.write().insert((tenant.clone(), table), state.clone());
        Ok(state)
    }

    /// The selector of a request in the form that rows are tested with.
    pub(crate) fn row_selector(&self, request: &ScanRequest) -> Result<RowSelector, ScanError> {
        Ok(match &request.selector {
            Selector::All => RowSelector::All,
            Selector::Ids(ids) => RowSelector::Ids(ids.iter().copied().collect()),
            Selector::Trace(t) => RowSelector::Trace(*t),
            Selector::Labels(matchers) => {
                let owner = match request.table {
                    Table::Logs => Table::Logs,
                    Table::Spans => {
                        return Err(ScanError::Invalid("spans have no stream labels to select by".into()));
                    }
                    _ => Table::MetricSeries,
                };
                RowSelector::Ids(match self.table(&request.tenant, owner) {
                    None => HashSet::new(),
                    Some(state) => {
                        self.find_indexed(&state, request.range, |i| i.find_ids(matchers, request.range))?
                    }
                })
            }
        })
    }

    fn plan_scan(
        self: &Arc<Self>,
        request: ScanRequest,
        stats: Arc<ScanStats>,
    ) -> Result<Option<ScanJob>, ScanError> {
        let selector = self.row_selector(&request)?;
        let columns = select::needed_columns(&request, &selector, true)?;
        let columns_untimed = select::needed_columns(&request, &selector, false)?;
        if matches!(&selector, RowSelector::Ids(ids) if ids.is_empty()) {
            return Ok(None);
        }
        let Some(state) = self.table(&request.tenant, request.table) else { return Ok(None) };
        let (parts, head) = {
            let data = state.data.read();
            (data.parts.clone(), data.head.batches.clone())
        };
        let mut sources: Vec<Arc<dyn RowSource>> = Vec::with_capacity(parts.len() + head.len());
        for part in parts.iter() {
            if request.range.overlaps(part.min_ts, part.max_ts) {
                let file = state.catalog.read().file_of(&part.path);
                sources.push(Arc::new(PartSource {
                    objects: self.objects.clone(),
                    cache: self.parts.clone(),
                    file,
                    entry: part.clone(),
                }));
            } else {
                ScanStats::add(&stats.parts_pruned, 1);
            }
        }
        ScanStats::add(&stats.parts, parts.len());
        for batch in head {
            let (min, max) = (crate::model::Timestamp(batch.min_ts), crate::model::Timestamp(batch.max_ts));
            if request.range.overlaps(min, max) {
                sources.push(Arc::new(HeadSource { table: request.table, batch }));
            }
        }
        let workers = crate::parallel::threads();
        Ok(Some(ScanJob { request, selector, columns, columns_untimed, sources, stats, workers }))
    }
}
