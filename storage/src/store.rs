//! The store: append, scan, labels, close. Opening is in [`crate::open`], background work in [`crate::compact::worker`].

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arrow::array::RecordBatch;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc};

use crate::{
    AppendError, OpenError, SampleRequest, SampleScan, ScanError, ScanRequest, ScanStats, ScanStream, Selector,
    StoreConfig,
    catalog::{PartEntry, Purge, TableCatalog},
    compact::delete::{DeleteRequest, Receipt},
    head::{
        HeadBatch, HeadRows, TableHead,
        cardinality::{self, Cardinality, Refused},
        points::Spans,
        repeats::{self, Repeated, Repeats},
        rows::{self, StoredRows},
        series::LabelIndex,
    },
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
    sources::{Admission, InFlight, SourceMemory},
    vfs::{Clock, Vfs},
    wal::{self, Wal},
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

/// The metric series of a tenant that are alive in a range, counted. Lists are ordered by count, equal ones by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub series: usize,
    /// Label pairs.
    pub pairs: usize,
    pub series_by_metric: Vec<(String, u64)>,
    /// Values of each label name.
    pub values_by_name: Vec<(String, u64)>,
    /// Bytes of these values, each counted once for each series that has it.
    pub value_bytes_by_name: Vec<(String, u64)>,
    pub series_by_pair: Vec<((String, String), u64)>,
    /// Immutable pieces that samples and histograms of the range rest in: batches of the head, and parts.
    pub pieces: usize,
    /// Time of the earliest point of these pieces that is not before the range's start, at least, and of the latest, ms. `None`: there is
    /// none.
    pub times: Option<(i64, i64)>,
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

    pub(crate) fn head_bytes_max(&self) -> usize {
        self.config.memory_bytes_max / 2
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
