//! Opening: lock the directory, load the tables, replay the WAL in bounded memory, start the background threads.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};

use crate::{
    OpenError, ScanError, SourcePosition, StoreConfig,
    catalog::{CatalogError, Purge, TableCatalog, TableOptions},
    head::{
        HeadBatch, HeadRows, TableHead, cardinality::Cardinality, points::index_series, rows::streams_of,
        series::LabelIndex,
    },
    lock::DataDir,
    metrics::StoreMetrics,
    model::{Table, TenantId, TimeRange, Timestamp},
    object::{
        LocalStore, Objects, Remote,
        bridge::Bridged,
        cache::{BlockCache, Cached},
        owner,
    },
    part::{Promoted, table_schema},
    part_cache::PartCache,
    scan::{ScanRequest, ScanStats, select::RowSelector, stream::RowSource},
    sources::SourceMemory,
    store::{Environment, Far, Inner, TableData, TableState, Wake},
    wal::{self, RecoveryReport, ReplayedRecord, WalError, WalOptions},
};

/// Folder of the tables in the data directory or bucket.
pub(crate) const TABLES: &str = "data";
/// Folder of the read cache in the data directory.
const CACHE: &str = "cache";

pub(crate) fn open(mut config: StoreConfig, env: Environment) -> Result<Arc<Inner>, OpenError> {
    let dir = if env.lock_dir { Some(DataDir::open(&config.dir)?) } else { None };
    let local = LocalStore::on(env.vfs.clone(), &config.dir);
    if let Err(e) = local.clean_temporary() {
        tracing::warn!(dir = %config.dir.display(), error = %e, "cannot remove what unfinished writes left");
    }
    let (objects, far, taken_over): (Arc<dyn Objects>, _, _) = match remote(&config, &env)? {
        None => {
            owner::check_local(&*env.vfs, &config.dir)?;
            (Arc::new(local), None, false)
        }
        Some(remote) => {
            let (objects, far, taken_over) = open_remote(&mut config, &env, &remote)?;
            (objects, Some(far), taken_over)
        }
    };
    let mut tables = BTreeMap::new();
    for (tenant, table) in existing_tables(&objects)? {
        // Files of an owner before us that no entry names may be about to be named.
        let state = open_table(&objects, &env, &config.promoted, &tenant, table, !taken_over)
            .map_err(|e| OpenError::Catalog { table: format!("{tenant}/{}", table.name()), source: Box::new(e) })?;
        tables.insert((tenant, table), Arc::new(state));
    }
    let sources = Arc::new(SourceMemory::default());
    let mut replay = Replay {
        objects: &objects,
        env: &env,
        promoted: &config.promoted,
        node: &config.node,
        tables,
        sources: &sources,
        error: None,
    };
    let carry = sources.clone();
    let mut options = WalOptions::new(config.durability, config.dir.join("quarantine"));
    options.segment_bytes = config.wal_segment_bytes;
    let wal_dir = config.dir.join("wal");
    let recovered =
        wal::replay(env.vfs.clone(), &wal_dir, options, &mut |record| replay.record(record)).map_err(wal_error)?;
    if let Some(e) = replay.error {
        return Err(e);
    }
    let tables = replay.tables;
    report_recovery(&recovered.report);
    // Above everything the parts hold too, should the log have been lost.
    let flushed = tables
        .iter()
        .filter_map(|((_, t), s)| s.catalog.read().txn_version(&txn_app(&config.node, *t)))
        .filter_map(|v| u64::try_from(v).ok())
        .max()
        .unwrap_or(0);
    let published = recovered.last_seq().max(flushed);
    let wal = recovered.start(flushed + 1, Box::new(move || carry.carry())).map_err(wal_error)?;
    let inner = Arc::new(Inner {
        published_seq: AtomicU64::new(published),
        cardinality: Cardinality::new(config.series.clone()),
        config,
        objects,
        wal,
        tables: RwLock::new(tables),
        sources,
        parts: PartCache::default(),
        orders: Default::default(),
        head_bytes: AtomicUsize::new(0),
        head_freed: tokio::sync::Notify::new(),
        disk_full_percent: AtomicU8::new(0),
        wal_full: AtomicBool::new(false),
        creating: Mutex::new(()),
        flush_pause: Mutex::new((0, std::time::Duration::ZERO)),
        index_not_before: Mutex::new(std::time::Duration::ZERO),
        far,
        stop: AtomicBool::new(false),
        closed: AtomicBool::new(false),
        wake: Wake::default(),
        workers: Mutex::new(Vec::new()),
        metrics: Arc::new(StoreMetrics::default()),
        purge: Purge::default(),
        compact_limits: crate::compact::plan::Limits::default(),
        downsampling: Mutex::new(()),
        downsampled_empty: Mutex::default(),
        dir: Mutex::new(dir),
        appends: Mutex::default(),
        publishing: Mutex::new(()),
        env,
    });
    if inner.config.background {
        crate::compact::worker::start(&inner)
            .map_err(|source| OpenError::Write { path: inner.config.dir.clone(), source })?;
    }
    Ok(inner)
}

/// The bucket that was asked for.
fn remote(config: &StoreConfig, env: &Environment) -> Result<Option<Remote>, OpenError> {
    if let Some(remote) = &env.remote {
        return Ok(Some(remote.clone()));
    }
    let Some(url) = &config.bucket else { return Ok(None) };
    Remote::from_env(url)
        .map(Some)
        .map_err(|e| OpenError::Store { store: url.to_string(), reason: format!("check the AWS_ variables: {e}") })
}

/// The bucket as a store that is ours, read through a cache; and whether it was another's until now.
fn open_remote(
    config: &mut StoreConfig,
    env: &Environment,
    remote: &Remote,
) -> Result<(Arc<dyn Objects>, Far, bool), OpenError> {
    let bridge = Bridged::start(remote)
        .map_err(|e| OpenError::Store { store: remote.name.clone(), reason: format!("cannot start threads: {e}") })?;
    let claimed = owner::claim(remote, &bridge, &*env.vfs, &config.dir)?;
    config.node = claimed.writer;
    let stats = bridge.stats();
    let cache = match BlockCache::open(&config.dir.join(CACHE), config.cache_bytes) {
        Ok(cache) => cache.map(Arc::new),
        Err(e) => {
            tracing::warn!(dir = %config.dir.display(), error = %e, "no read cache: everything is read from the store");
            None
        }
    };
    let bridge: Arc<dyn Objects> = Arc::new(bridge);
    let objects = match &cache {
        Some(cache) => Arc::new(Cached::new(bridge, cache.clone())),
        None => bridge,
    };
    Ok((objects, Far { lease: claimed.lease, stats, cache }, claimed.taken_over))
}

/// The Delta transaction id of a node's WAL for a table.
pub(crate) fn txn_app(node: &str, table: Table) -> String {
    format!("wal-{node}-{}", table.name())
}

fn wal_error(e: WalError) -> OpenError {
    match e {
        WalError::NewerVersion { path, found, known } => {
            OpenError::NewerVersion { dir: path, found: found.into(), known: known.into() }
        }
        e => OpenError::Wal(e),
    }
}

fn report_recovery(report: &RecoveryReport) {
    for d in &report.damage {
        tracing::error!(segment = d.segment, bytes = ?d.bytes, reason = d.reason, copy = ?d.quarantined,
            "the write-ahead log is damaged here; the rest was read");
    }
    if report.records > 0 {
        tracing::info!(
            records = report.records,
            bytes = report.bytes,
            torn_tail_bytes = report.torn_tail_bytes,
            "write-ahead log replayed"
        );
    }
}

/// Tables the data directory holds, by their folders; other names are left alone.
fn existing_tables(objects: &Arc<dyn Objects>) -> Result<Vec<(TenantId, Table)>, OpenError> {
    let read = |source| OpenError::Read { path: TABLES.into(), source };
    let mut found = BTreeSet::new();
    for object in objects.list(TABLES).map_err(read)? {
        let mut pieces = object.path.split('/').skip(1);
        if let (Some(tenant), Some(table)) = (pieces.next(), pieces.next())
            && let (Ok(tenant), Some(table)) = (TenantId::parse(tenant), Table::from_name(table))
        {
            found.insert((tenant, table));
        }
    }
    Ok(found.into_iter().collect())
}

/// Loads a table, or creates it.
pub(crate) fn open_table(
    objects: &Arc<dyn Objects>,
    env: &Environment,
    promoted: &Promoted,
    tenant: &TenantId,
    table: Table,
    clear_orphans: bool,
) -> Result<TableState, CatalogError> {
    let catalog = load_catalog(objects, env, promoted, tenant, table, clear_orphans)?;
    Ok(table_state(tenant, table, catalog, false))
}

/// A new table, without asking the store: its log is made before its first flush. For a store that may be away, while the
/// write-ahead log is here.
pub(crate) fn new_table(
    objects: &Arc<dyn Objects>,
    env: &Environment,
    promoted: &Promoted,
    tenant: &TenantId,
    table: Table,
) -> Result<TableState, CatalogError> {
    let options = table_options(promoted, tenant, table, false);
    let catalog = TableCatalog::unmade(objects.clone(), options, env.clock.now())?;
    Ok(table_state(tenant, table, catalog, true))
}

fn table_state(tenant: &TenantId, table: Table, catalog: TableCatalog, reload: bool) -> TableState {
    TableState {
        tenant: tenant.clone(),
        table,
        data: RwLock::new(TableData { head: TableHead::default(), parts: catalog.live() }),
        catalog: RwLock::new(Arc::new(catalog)),
        reload: AtomicBool::new(reload),
        index: RwLock::new(LabelIndex::default()),
        flush: Mutex::new(()),
        merge: Mutex::new(()),
        commit: Mutex::new(()),
        replay_indexed: AtomicBool::new(true),
        compact_not_before: Mutex::new(std::time::Duration::ZERO),
    }
}

fn table_options(promoted: &Promoted, tenant: &TenantId, table: Table, clear_orphans: bool) -> TableOptions {
    let prefix = format!("{TABLES}/{tenant}/{}", table.name());
    TableOptions { clear_orphans, ..TableOptions::new(table, prefix, table_schema(table, promoted)) }
}

fn load_catalog(
    objects: &Arc<dyn Objects>,
    env: &Environment,
    promoted: &Promoted,
    tenant: &TenantId,
    table: Table,
    clear_orphans: bool,
) -> Result<TableCatalog, CatalogError> {
    let options = table_options(promoted, tenant, table, clear_orphans);
    let (catalog, report) = TableCatalog::open(objects.clone(), options, env.clock.now())?;
    for damage in report.log.iter().chain(&report.parts) {
        tracing::error!(%tenant, table = table.name(), path = damage.path, reason = damage.reason,
            moved_to = damage.moved_to, "damage found; the rest of the table is served");
    }
    Ok(catalog)
}

/// Takes WAL records into heads, without their rows: those stay in the WAL until someone asks or they are flushed.
struct Replay<'a> {
    objects: &'a Arc<dyn Objects>,
    env: &'a Environment,
    promoted: &'a Promoted,
    node: &'a str,
    tables: BTreeMap<(TenantId, Table), Arc<TableState>>,
    sources: &'a SourceMemory,
    error: Option<OpenError>,
}

impl Replay<'_> {
    fn record(&mut self, record: ReplayedRecord) {
        let positions: Vec<SourcePosition> =
            record.positions.into_iter().map(|(key, position)| SourcePosition { key, position }).collect();
        self.sources.record(&record.tenant, &positions, None);
        for id in record.batch_ids {
            self.sources.record(&record.tenant, &[], Some(id));
        }
        for at in record.batches {
            let table = at.meta.table;
            let Some(state) = self.table(&record.tenant, table) else { return };
            let flushed = state.catalog.read().txn_version(&txn_app(self.node, table));
            if flushed.is_some_and(|v| u64::try_from(v).is_ok_and(|v| record.seq <= v)) {
                continue;
            }
            state.replay_indexed.store(false, Ordering::Relaxed);
            state.data.write().head.push(HeadBatch {
                first_seq: record.seq,
                last_seq: record.seq,
                row_count: at.meta.rows as usize,
                min_ts: at.meta.min_ts,
                max_ts: at.meta.max_ts,
                bytes: 0,
                arrived: self.env.clock.monotonic(),
                rows: HeadRows::Wal(vec![at]),
                at: Vec::new(),
            });
        }
    }

    fn table(&mut self, tenant: &TenantId, table: Table) -> Option<Arc<TableState>> {
        let key = (tenant.clone(), table);
        if let Some(state) = self.tables.get(&key) {
            return Some(state.clone());
        }
        match open_table(self.objects, self.env, self.promoted, tenant, table, false) {
            Ok(state) => Some(self.tables.entry(key).or_insert(Arc::new(state)).clone()),
            Err(e) => {
                let table = format!("{tenant}/{}", table.name());
                self.error.get_or_insert(OpenError::Catalog { table, source: Box::new(e) });
                None
            }
        }
    }
}

impl Inner {
    /// Loads a table's log again if the outcome of a commit was not known, and lets go of head rows that turn out to be
    /// in parts. `_flush`: the table's `flush` lock is held, so that the head's batches end where the commit's did.
    pub(crate) fn reload_if_needed(
        &self,
        state: &TableState,
        _flush: &parking_lot::MutexGuard<'_, ()>,
    ) -> Result<(), ScanError> {
        if !state.reload.load(Ordering::SeqCst) {
            return Ok(());
        }
        let _commit = state.commit.lock();
        // Files that no entry names stay: a merge may be writing them, or a scan still be reading them.
        let catalog =
            load_catalog(&self.objects, &self.env, &self.config.promoted, &state.tenant, state.table, false)
                .map_err(|e| ScanError::Internal(format!("cannot load the table again: {e}")))?;
        let flushed = catalog.txn_version(&self.txn_app(state.table)).and_then(|v| u64::try_from(v).ok());
        let mut data = state.data.write();
        // Scans hold the entries they had: the same ones must count as live, or their files would go too early.
        catalog.keep_entries(&data.parts);
        data.parts = catalog.live();
        if let Some(seq) = flushed {
            let before = data.head.bytes;
            data.head.retire(seq);
            self.head_bytes.fetch_sub(before - data.head.bytes, Ordering::Relaxed);
        }
        *state.catalog.write() = Arc::new(catalog);
        state.reload.store(false, Ordering::SeqCst);
        drop(data);
        self.head_freed.notify_waiters();
        Ok(())
    }

    /// As [`Inner::reload_if_needed`] for those who do not hold the lock.
    pub(crate) fn reload_table(&self, state: &TableState) -> Result<(), ScanError> {
        if !state.reload.load(Ordering::SeqCst) {
            return Ok(()); // without waiting for a flush
        }
        let flush = state.flush.lock();
        self.reload_if_needed(state, &flush)
    }

    /// Brings the index of a table up to what the parts of the range's days, and batches still in the WAL, hold.
    fn ensure_indexed(&self, state: &TableState, range: TimeRange) -> Result<(), ScanError> {
        let first = range.start().day();
        let last = Timestamp(range.end().nanos().saturating_sub(1)).day();
        self.index_parts(state, |day| first <= day && day <= last)
    }

    /// What `look` finds in the index of a table, filled for the range.
    pub(crate) fn find_indexed<T>(
        &self,
        state: &TableState,
        range: TimeRange,
        look: impl Fn(&LabelIndex) -> T,
    ) -> Result<T, ScanError> {
        loop {
            let generation = state.index.read().generation;
            self.ensure_indexed(state, range)?;
            let index = state.index.read();
            // Else a delete has emptied days in between; deletes are rare and one at a time.
            if index.generation == generation {
                return Ok(look(&index));
            }
        }
    }

    /// As [`Inner::ensure_indexed`] for certain days.
    pub(crate) fn ensure_days(&self, state: &TableState, days: &HashSet<i64>) -> Result<(), ScanError> {
        self.index_parts(state, |day| days.contains(&day))
    }

    fn index_parts(&self, state: &TableState, wanted: impl Fn(i64) -> bool) -> Result<(), ScanError> {
        // The head first: rows that are flushed meanwhile are then found in the parts.
        if !state.replay_indexed.load(Ordering::Acquire) {
            let generation = state.index.read().generation;
            let head = state.data.read().head.batches.clone();
            for batch in head.iter().filter(|b| matches!(b.rows, HeadRows::Wal(_))) {
                match batch.load(state.table) {
                    Ok(rows) => index_batch(&mut state.index.write(), state.table, &rows),
                    Err(ScanError::Corrupt { part, reason }) => self.report_corrupt(&part, &reason),
                    Err(e) => return Err(e),
                }
            }
            let index = state.index.read();
            if index.generation == generation {
                state.replay_indexed.store(true, Ordering::Release);
            }
        }
        let parts = state.data.read().parts.clone();
        for entry in parts.iter().filter(|p| wanted(p.day())) {
            if state.index.read().days.get(&entry.day()).is_some_and(|d| d.parts.contains(&entry.path)) {
                continue;
            }
            let generation = state.index.read().generation;
            let file = state.catalog.read().file_of(&entry.path);
            match self.index_part(state, &file, entry) {
                Ok(()) => {}
                Err(ScanError::Corrupt { part, reason }) => self.report_corrupt(&part, &reason),
                Err(e) => return Err(e),
            }
            let mut index = state.index.write();
            // Else what was entered just now may have been forgotten with its day.
            if index.generation == generation {
                index.days.entry(entry.day()).or_default().parts.insert(entry.path.clone());
            }
        }
        Ok(())
    }

    fn index_part(
        &self,
        state: &TableState,
        file: &str,
        entry: &Arc<crate::catalog::PartEntry>,
    ) -> Result<(), ScanError> {
        let reader = self.parts.open(&self.objects, file, entry)?;
        if state.table == Table::Logs {
            let streams = reader.streams().map_err(|e| e.into_scan(file))?;
            let mut index = state.index.write();
            for s in streams.iter() {
                let labels = || crate::model::Labels::from_json(&s.labels).ok().map(Arc::new);
                index.add(entry.day(), s.stream_id, labels, s.min_ts, s.max_ts, None);
            }
            return Ok(());
        }
        let source = crate::part_cache::PartSource {
            objects: self.objects.clone(),
            cache: self.parts.clone(),
            file: file.to_owned(),
            entry: entry.clone(),
        };
        let request = ScanRequest::new(state.tenant.clone(), state.table, TimeRange::ALL);
        let columns: Vec<usize> = (0..crate::model::schema::stored(state.table).fields().len()).collect();
        source.read(&request, &columns, &RowSelector::All, &ScanStats::default(), &mut |rows| {
            index_series(&mut state.index.write(), &rows, true);
            Ok(true)
        })
    }
}

/// Enters streams or series of a head batch.
pub(crate) fn index_batch(index: &mut LabelIndex, table: Table, rows: &arrow::array::RecordBatch) {
    match table {
        Table::Logs => {
            let streams = streams_of(rows);
            crate::head::points::index_streams(index, &streams);
        }
        Table::MetricSeries => index_series(index, rows, true),
        _ => {}
    }
}
