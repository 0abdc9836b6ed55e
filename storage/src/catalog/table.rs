//! The Delta log of one table: open, commit, the live parts, checkpoints.

use std::{
    collections::HashSet,
    hash::{BuildHasher, Hasher},
    io,
    sync::Arc,
};

use arc_swap::ArcSwap;
use arrow::datatypes::SchemaRef;
use chrono::{DateTime, Days, NaiveDate, SecondsFormat};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{
    actions::{
        self, Action, Add, CommitInfo, Format, MetaData, Protocol, READER_VERSION, Remove, StringMap, Txn,
        WRITER_VERSION,
    },
    checkpoint::{self, Contents},
    load::{self, Damage, Loader, OpenReport, checkpoint_name, entry_name, log_folder},
    schema::{self, PARTITION_COLUMN, SchemaError},
    state::{self, Change, State, decode_path},
};
use crate::{
    downsample::TAG_SAMPLE_HOURS,
    model::{
        Table, Timestamp,
        time::{NANOS_PER_DAY, NANOS_PER_HOUR, NANOS_PER_MILLI},
    },
    object::{Objects, PutMode},
};

/// Entries between checkpoints: a load reads one checkpoint and at most about this many small files.
pub const ENTRIES_PER_CHECKPOINT: u64 = 64;

/// How long a checkpoint remembers a removed file. Only other programs' vacuum needs it; ours deletes by [`super::Purge`].
pub const TOMBSTONE_KEEP_MS: i64 = 3_600_000;

/// Lost races in a row before a commit gives up.
const COMMIT_RACES_MAX: usize = 256;

/// How long entries behind the previous checkpoint stay when others write the table too. A writer that has not looked for
/// longer would find the name of a cleared entry free and commit into the past.
const SHARED_LOG_KEEP_NS: i64 = 7 * NANOS_PER_DAY;

/// The version of a table without a log.
const UNMADE: i64 = -1;

/// How often an entry is put again whose put failed without trace, where such a put may come into effect later.
const LATE_TRIES: usize = 4;

/// Tries to make an entry's folder durable before the outcome of a commit counts as unknown.
pub(super) const SETTLE_TRIES: usize = 3;

/// Unit of partition of event time that all rows of a part lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bucket {
    /// Hours since the epoch.
    Hour(i64),
    /// Days since the epoch.
    Day(i64),
}

impl Bucket {
    /// Days since the epoch.
    pub fn day(self) -> i64 {
        match self {
            Bucket::Hour(h) => h.div_euclid(24),
            Bucket::Day(d) => d,
        }
    }

    /// First instant behind the bucket.
    pub fn end(self) -> Timestamp {
        Timestamp(match self {
            Bucket::Hour(h) => h.saturating_add(1).saturating_mul(NANOS_PER_HOUR),
            Bucket::Day(d) => d.saturating_add(1).saturating_mul(NANOS_PER_DAY),
        })
    }

    fn tag(self) -> String {
        match self {
            Bucket::Hour(h) => format!("h{h}"),
            Bucket::Day(d) => format!("d{d}"),
        }
    }

    fn from_tag(tag: &str) -> Option<Self> {
        if let Some(h) = tag.strip_prefix('h') { h.parse().ok().map(Bucket::Hour) } else { None }
            .or_else(|| tag.strip_prefix('d')?.parse().ok().map(Bucket::Day))
    }
}

/// A live part: what the log says about one file.
#[derive(Clone, Debug)]
pub struct PartEntry {
    /// Relative to the table's folder.
    pub path: String,
    pub bucket: Bucket,
    /// Bytes of the file.
    pub size: u64,
    pub rows: u64,
    /// Event time of the rows, both inclusive.
    pub min_ts: Timestamp,
    pub max_ts: Timestamp,
    /// 0 a flush, 1 merged in an open hour, 2 merged of a closed one.
    pub level: u8,
    /// Place in commit order: the version of the flush, for a merged part the greatest of its inputs. Of two rows that
    /// are the same point, that of the greater order counts.
    pub order: i64,
    /// Milliseconds since the epoch.
    pub modification_time: i64,
    pub(super) add: Add,
}

impl PartEntry {
    /// Days since the epoch.
    pub fn day(&self) -> i64 {
        self.bucket.day()
    }

    /// A tag given with [`NewPart::tags`].
    pub fn tag(&self, name: &str) -> Option<&str> {
        self.add.tags.as_ref()?.get(name)?.as_deref()
    }

    /// How many bytes at the file's end opening it takes, if its writer said so.
    pub fn tail_bytes(&self) -> Option<u64> {
        self.tag(TAG_TAIL)?.parse().ok()
    }

    /// An entry without a table.
    #[cfg(test)]
    pub(crate) fn for_test(
        bucket: Bucket,
        size: u64,
        level: u8,
        order: i64,
        min_ts: Timestamp,
        max_ts: Timestamp,
    ) -> Arc<Self> {
        let part = NewPart {
            path: part_path(bucket, level),
            bucket,
            size,
            rows: size,
            min_ts,
            max_ts,
            level,
            order: Some(order),
            tags: Vec::new(),
        };
        Arc::new(Self::from_add(add_of(Table::Logs, &part, order, max_ts, true)))
    }

    /// Entries of other writers lack our tags: then they are taken for a whole day of the top level.
    pub(super) fn from_add(add: Add) -> Self {
        let tag = |name: &str| add.tags.as_ref().and_then(|t| t.get(name)).and_then(|v| v.as_deref());
        let long = |name: &str| tag(name).and_then(|v| v.parse::<i64>().ok());
        let day = add
            .partition_values
            .get(PARTITION_COLUMN)
            .and_then(|v| v.as_deref())
            .and_then(|v| v.parse::<NaiveDate>().ok())
            .map_or(0, day_of_date);
        let bucket = tag(TAG_BUCKET).and_then(Bucket::from_tag).unwrap_or(Bucket::Day(day));
        let stats: Option<Value> = add.stats.as_deref().and_then(|s| serde_json::from_str(s).ok());
        let start = Timestamp(day.saturating_mul(NANOS_PER_DAY));
        PartEntry {
            path: decode_path(&add.path),
            bucket,
            size: u64::try_from(add.size).unwrap_or(0),
            rows: stats.and_then(|s| s["numRecords"].as_u64()).unwrap_or(0),
            min_ts: long(TAG_MIN_TS).map_or(start, Timestamp),
            max_ts: long(TAG_MAX_TS).map_or(Timestamp(bucket.end().nanos() - 1), Timestamp),
            level: tag(TAG_LEVEL).and_then(|v| v.parse().ok()).unwrap_or(2),
            order: long(TAG_ORDER).unwrap_or(0),
            modification_time: add.modification_time,
            add,
        }
    }
}

const TAG_LEVEL: &str = "sightline.level";
const TAG_BUCKET: &str = "sightline.bucket";
const TAG_ORDER: &str = "sightline.order";
const TAG_MIN_TS: &str = "sightline.min_ts";
const TAG_MAX_TS: &str = "sightline.max_ts";

/// Bytes at the file's end that a reader needs first; see [`PartEntry::tail_bytes`].
pub(crate) const TAG_TAIL: &str = "sightline.tail_bytes";

/// A part whose file is complete and durable, to be made visible by a commit.
#[derive(Clone, Debug)]
pub struct NewPart {
    /// Relative to the table's folder, from [`part_path`].
    pub path: String,
    pub bucket: Bucket,
    pub size: u64,
    pub rows: u64,
    /// Both inclusive, nanoseconds.
    pub min_ts: Timestamp,
    pub max_ts: Timestamp,
    pub level: u8,
    /// `None`: the version of this commit (a flush). A merged part has the greatest of its inputs.
    pub order: Option<i64>,
    /// Further facts, kept as strings.
    pub tags: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Flush,
    Compact,
    /// Aggregates of an hour of samples take the place of earlier ones.
    Downsample,
    /// Whole parts behind retention.
    Expire,
    /// Rows deleted by predicate.
    Delete,
    /// A damaged part leaves the log.
    Quarantine,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Flush | Operation::Downsample => "WRITE",
            Operation::Compact => "OPTIMIZE",
            Operation::Expire | Operation::Delete => "DELETE",
            Operation::Quarantine => "QUARANTINE",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Commit {
    pub adds: Vec<NewPart>,
    pub removes: Vec<Arc<PartEntry>>,
    /// Application id and its version: with a flush, the last WAL sequence number it holds. Must grow.
    pub txn: Option<(String, i64)>,
    pub operation: Operation,
}

#[derive(Clone, Debug)]
pub struct Committed {
    pub version: i64,
    /// In the order of [`Commit::adds`].
    pub added: Vec<Arc<PartEntry>>,
    /// To be given to [`super::Purge::retire`] once no new reader can get them.
    pub removed: Vec<Arc<PartEntry>>,
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("cannot read {path}")]
    Read { path: String, source: io::Error },
    /// Nothing was committed.
    #[error("cannot write {path}")]
    Write { path: String, source: io::Error },
    /// The entry may or may not survive a crash. The files it names must stay; nothing can be committed to this table
    /// until it is opened again, which finds out.
    #[error("the outcome of commit {version} of {table} is not known; restart to recover")]
    Uncertain { table: String, version: i64 },
    #[error("another writer removed {path} first")]
    Removed { path: String },
    /// The log holds this version of the application, or a later one: the rows are in the table.
    #[error("{app} has committed version {version} already")]
    AlreadyCommitted { app: String, version: i64 },
    /// Others went on so far that entries this process has not seen are cleared.
    #[error("the view of {table} is too old to commit; open it again")]
    Stale { table: String },
    #[error("lost {COMMIT_RACES_MAX} races for the next version of {table}; try again later")]
    Busy { table: String },
    #[error(
        "table {table} wants Delta reader {reader} and writer {writer}, this program knows 1 and 2; use another directory"
    )]
    Protocol { table: String, reader: i32, writer: i32 },
    #[error("{path} is damaged: {reason}")]
    Corrupt { path: String, reason: String },
    #[error("cannot use table {table}")]
    Schema { table: String, source: SchemaError },
    #[error("cannot make a checkpoint of {table}")]
    Checkpoint { table: String, source: checkpoint::CheckpointError },
}

impl CatalogError {
    /// Whether the caller must assume that the commit may come into effect.
    pub fn is_uncertain(&self) -> bool {
        matches!(self, CatalogError::Uncertain { .. })
    }
}

#[derive(Clone, Debug)]
pub struct TableOptions {
    pub table: Table,
    /// The table's folder in the store, for example `data/default/logs`.
    pub prefix: String,
    /// Schema of the part files (without the partition column).
    pub schema: SchemaRef,
    /// Folder in the store for what is damaged.
    pub quarantine: String,
    /// The caller holds the data directory: nobody else writes. Only then is damage repaired and are orphans deleted.
    pub exclusive: bool,
    /// Delete part files that no entry names. Only for the first opening of a table in a process: later such files may
    /// be about to be committed, or still be read.
    pub clear_orphans: bool,
}

impl TableOptions {
    pub fn new(table: Table, prefix: impl Into<String>, schema: SchemaRef) -> Self {
        TableOptions {
            table,
            prefix: prefix.into(),
            schema,
            quarantine: "quarantine".into(),
            exclusive: true,
            clear_orphans: true,
        }
    }
}

/// An open table. All calls block; share it by `Arc`.
#[derive(Debug)]
pub struct TableCatalog {
    objects: Arc<dyn Objects>,
    options: TableOptions,
    inner: Mutex<Inner>,
    live: ArcSwap<Vec<Arc<PartEntry>>>,
    /// Held while a checkpoint is made.
    checkpointing: Mutex<()>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Live by the log, but damaged.
    unserved: HashSet<String>,
    /// Set by an outcome that is not known.
    uncertain: Option<i64>,
}

impl TableCatalog {
    /// Loads the table, creating it if there is none.
    pub fn open(
        objects: Arc<dyn Objects>,
        options: TableOptions,
        now: Timestamp,
    ) -> Result<(Self, OpenReport), CatalogError> {
        let wanted = schema::schema_string(&options.schema).map_err(|e| schema_error(&options, e))?;
        let mut loader = Loader { objects: &*objects, options: &options, now, report: OpenReport::default() };
        let mut loaded = loader.load()?;
        if loaded.is_none() {
            let entry = actions::write_entry(&[
                info("CREATE TABLE", now, true, new_uuid()),
                Action::Protocol(protocol()),
                Action::MetaData(metadata(&options, new_uuid(), wanted.clone(), now)),
            ]);
            let path = format!("{}/{}", log_folder(&options.prefix), entry_name(0));
            match objects.put(&path, &entry, PutMode::Create) {
                Ok(()) => loader.report.created = true,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(CatalogError::Write { path, source }),
            }
            loaded = loader.load()?;
        }
        let state = loaded.ok_or_else(|| CatalogError::Corrupt {
            path: log_folder(&options.prefix),
            reason: "an entry just written is not there".into(),
        })?;
        check_protocol(&options, &state)?;
        let (unserved, orphans) = loader.check_files(&state)?;
        let unserved: HashSet<String> = unserved.into_iter().collect();
        let mut report = loader.report;
        let live = state.sorted().into_iter().filter(|p| !unserved.contains(&p.path)).collect();
        let catalog = TableCatalog {
            objects,
            options,
            inner: Mutex::new(Inner { state, unserved, uncertain: None }),
            live: ArcSwap::from_pointee(live),
            checkpointing: Mutex::new(()),
        };
        catalog.adopt_schema(&wanted, now)?;
        catalog.clear_orphans(orphans, &mut report, now)?;
        Ok((catalog, report))
    }

    /// A new table whose log is not made yet and will be by [`TableCatalog::open`]: it has no part, and nothing may be
    /// committed to it.
    pub(crate) fn unmade(
        objects: Arc<dyn Objects>,
        options: TableOptions,
        now: Timestamp,
    ) -> Result<Self, CatalogError> {
        let wanted = schema::schema_string(&options.schema).map_err(|e| schema_error(&options, e))?;
        let mut state = State::empty(UNMADE);
        // As it will be, for whoever copies the table before.
        state.apply_all(vec![
            Action::Protocol(protocol()),
            Action::MetaData(metadata(&options, new_uuid(), wanted, now)),
        ]);
        Ok(TableCatalog {
            objects,
            options,
            inner: Mutex::new(Inner { state, unserved: HashSet::new(), uncertain: None }),
            live: ArcSwap::default(),
            checkpointing: Mutex::new(()),
        })
    }

    /// Whether the log is still to be made.
    pub(crate) fn is_unmade(&self) -> bool {
        self.inner.lock().state.version == UNMADE
    }

    /// Deletes part files that no entry names.
    fn clear_orphans(
        &self,
        orphans: Vec<String>,
        report: &mut OpenReport,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        if orphans.is_empty() {
            return Ok(());
        }
        let inner = &mut *self.inner.lock();
        if self.objects.may_land_late() {
            // An entry that a process before us sent may still be on its way and name one of them. With the next version
            // taken it cannot land any more, or it has, and then it is known now.
            self.append(inner, "FENCE", true, now, None, &[], |_| Vec::new())?;
        }
        for file in orphans {
            if inner.state.adds.contains_key(file.get(self.options.prefix.len() + 1..).unwrap_or_default()) {
                continue;
            }
            match self.objects.delete(&file) {
                Ok(()) => report.orphans_deleted += 1,
                Err(e) => {
                    tracing::warn!(path = file, error = %e, "cannot delete a file no table names");
                    report.orphans_kept += 1;
                }
            }
        }
        Ok(())
    }

    /// Brings the metadata up to what this program writes.
    fn adopt_schema(&self, wanted: &str, now: Timestamp) -> Result<(), CatalogError> {
        let inner = &mut *self.inner.lock();
        let mut fresh = Vec::new();
        if inner.state.protocol.is_none() {
            fresh.push(Action::Protocol(protocol()));
        }
        match &inner.state.metadata {
            None => {
                fresh.push(Action::MetaData(metadata(&self.options, new_uuid(), wanted.to_owned(), now)));
            }
            Some(m) => {
                let evolved = schema::evolve(&m.schema_string, wanted).map_err(|e| schema_error(&self.options, e))?;
                let mut configuration = m.configuration.clone();
                configuration.extend(properties(self.options.table));
                if evolved.is_some() || configuration != m.configuration {
                    let schema_string = evolved.unwrap_or_else(|| m.schema_string.clone());
                    fresh.push(Action::MetaData(MetaData { schema_string, configuration, ..m.clone() }));
                }
            }
        }
        if fresh.is_empty() {
            return Ok(());
        }
        self.append(inner, "SET SCHEMA", false, now, None, &[], |_| fresh.clone()).map(|_| ())
    }

    /// The live parts, older rows first; parts known to be damaged are not among them. Cheap.
    pub fn live(&self) -> Arc<Vec<Arc<PartEntry>>> {
        self.live.load_full()
    }

    /// Takes the entries of an earlier opening for those of the same parts, so that who holds them keeps their files.
    pub(crate) fn keep_entries(&self, known: &[Arc<PartEntry>]) {
        let inner = &mut *self.inner.lock();
        let mut live: Vec<Arc<PartEntry>> = self.live.load().iter().cloned().collect();
        for old in known {
            if let Some(held) = inner.state.adds.get_mut(&old.path) {
                *held = old.clone();
            }
            if let Some(shown) = live.iter_mut().find(|p| p.path == old.path) {
                *shown = old.clone();
            }
        }
        self.live.store(Arc::new(live));
    }

    /// Parts the log names that were missing or of another size when the table was opened. Retention lets them go, too.
    pub fn unserved(&self) -> Vec<Arc<PartEntry>> {
        let inner = self.inner.lock();
        inner.unserved.iter().filter_map(|p| inner.state.adds.get(p).cloned()).collect()
    }

    pub fn version(&self) -> i64 {
        self.inner.lock().state.version
    }

    /// The last version an application committed.
    pub fn txn_version(&self, app_id: &str) -> Option<i64> {
        self.inner.lock().state.txns.get(app_id).map(|t| t.version)
    }

    pub fn prefix(&self) -> &str {
        &self.options.prefix
    }

    /// The path of a part in the store.
    pub fn file_of(&self, path: &str) -> String {
        format!("{}/{path}", self.options.prefix)
    }

    /// The table's folder in the store.
    pub fn folder(&self) -> &str {
        &self.options.prefix
    }

    /// Name and bytes of the one log entry, of version 0, of another table that consists of `kept` of these parts and of
    /// `fresh` ones. `oldest`: the least order of the fresh parts, at most 0; the kept ones get orders below it, so that
    /// what is committed to the copy later comes behind all of them. `txn` is added to those of this table.
    pub(crate) fn entry_of_copy(
        &self,
        kept: &[Arc<PartEntry>],
        oldest: i64,
        fresh: &[NewPart],
        (app, seq): (String, i64),
        now: Timestamp,
    ) -> (String, Vec<u8>) {
        let (mut txns, meta) = {
            let inner = self.inner.lock();
            (inner.state.txns.clone(), inner.state.metadata.clone())
        };
        let version = txns.get(&app).map_or(seq, |t| t.version.max(seq));
        txns.insert(app.clone(), Txn { app_id: app, version, last_updated: Some(now.millis()) });
        let shift = oldest - 1 - kept.iter().map(|p| p.order).max().unwrap_or(0);
        let mut all = vec![info("BACKUP", now, true, new_uuid()), Action::Protocol(protocol())];
        all.extend(meta.map(Action::MetaData));
        all.extend(txns.into_values().map(Action::Txn));
        for part in kept {
            let mut add = Add { data_change: true, ..part.add.clone() };
            let order = part.order.saturating_add(shift);
            let tags = add.tags.get_or_insert_default();
            tags.insert(TAG_ORDER.to_owned(), Some(order.to_string()));
            // Orders of this table mean nothing in the copy.
            tags.remove(TAG_SAMPLE_HOURS);
            all.push(Action::Add(add));
        }
        all.extend(fresh.iter().map(|p| Action::Add(add_of(self.options.table, p, 0, now, true))));
        (
            format!("{}/{}", log_folder(""), entry_name(0)).trim_start_matches('/').to_owned(),
            actions::write_entry(&all),
        )
    }

    /// Writes the next entry and applies it. The files of the adds must be durable. When this returns, the commit is
    /// durable and [`TableCatalog::live`] shows it; after an error nothing was committed, unless
    /// [`CatalogError::is_uncertain`].
    pub fn commit(&self, commit: Commit, now: Timestamp) -> Result<Committed, CatalogError> {
        let inner = &mut *self.inner.lock();
        if commit.adds.is_empty() && commit.removes.is_empty() && commit.txn.is_none() {
            return Ok(Committed { version: inner.state.version, added: Vec::new(), removed: Vec::new() });
        }
        let data_change = commit.operation != Operation::Compact;
        let removed: Vec<&str> = commit.removes.iter().map(|r| r.path.as_str()).collect();
        let (version, change) = self.append(
            inner,
            commit.operation.name(),
            removed.is_empty(),
            now,
            commit.txn.as_ref().map(|(app, v)| (app.as_str(), *v)),
            &removed,
            |version| {
                let adds =
                    commit.adds.iter().map(|p| Action::Add(add_of(self.options.table, p, version, now, data_change)));
                let removes = commit.removes.iter().map(|p| Action::Remove(remove_of(p, now, data_change)));
                let txn = commit.txn.iter().map(|(app, v)| {
                    Action::Txn(Txn { app_id: app.clone(), version: *v, last_updated: Some(now.millis()) })
                });
                txn.chain(removes).chain(adds).collect()
            },
        )?;
        Ok(Committed { version, added: change.added, removed: change.removed })
    }

    /// Takes a part that cannot be read out of the log and moves its file into quarantine.
    pub fn quarantine(&self, part: &Arc<PartEntry>, reason: &str, now: Timestamp) -> Result<Damage, CatalogError> {
        let commit =
            Commit { adds: Vec::new(), removes: vec![part.clone()], txn: None, operation: Operation::Quarantine };
        self.commit(commit, now)?;
        let path = self.file_of(&part.path);
        let to = load::quarantine_path(&self.options, &path, now);
        // The file may be what is missing; the log no longer needs it either way.
        let moved_to = self.objects.rename(&path, &to).ok().map(|()| to);
        tracing::error!(path, reason, ?moved_to, "a part is damaged and was taken out of its table");
        Ok(Damage { path, reason: reason.to_owned(), moved_to })
    }

    /// Takes in what other writers have committed. `true`: there was something.
    pub fn refresh(&self) -> Result<bool, CatalogError> {
        let inner = &mut *self.inner.lock();
        let before = inner.state.version;
        while self.take_in(inner)?.is_some() {}
        Ok(inner.state.version > before)
    }

    /// Puts the entry at the next free version. `actions` gives them for a version.
    #[allow(clippy::too_many_arguments)]
    fn append(
        &self,
        inner: &mut Inner,
        operation: &str,
        blind: bool,
        now: Timestamp,
        txn: Option<(&str, i64)>,
        removes: &[&str],
        actions: impl Fn(i64) -> Vec<Action>,
    ) -> Result<(i64, Change), CatalogError> {
        let id = new_uuid();
        for _ in 0..COMMIT_RACES_MAX {
            if let Some(version) = inner.uncertain {
                return Err(self.uncertain(version));
            }
            if let Some((app, wanted)) = txn
                && let Some(held) = inner.state.txns.get(app).filter(|t| t.version >= wanted)
            {
                return Err(CatalogError::AlreadyCommitted { app: app.to_owned(), version: held.version });
            }
            if let Some(path) = removes.iter().find(|p| !inner.state.adds.contains_key(**p)) {
                return Err(CatalogError::Removed { path: (*path).to_owned() });
            }
            if inner.state.version == UNMADE {
                return Err(CatalogError::Stale { table: self.options.prefix.clone() });
            }
            let version = inner.state.version + 1;
            let path = format!("{}/{}", log_folder(&self.options.prefix), entry_name(version));
            self.check_not_stale(inner.state.version)?;
            let mut all = vec![info(operation, now, blind, id.clone())];
            all.extend(actions(version));
            let entry = actions::write_entry(&all);
            match self.objects.put(&path, &entry, PutMode::Create) {
                Ok(()) => {}
                Err(e) => {
                    if !self.is_ours(inner, version, &path, &id, &entry, e)? {
                        self.take_in(inner)?;
                        continue;
                    }
                }
            }
            return Ok((version, self.apply(inner, version, all)));
        }
        Err(CatalogError::Busy { table: self.options.prefix.clone() })
    }

    /// The newest entry is never cleared, so where the one we build on is gone, there are newer ones.
    fn check_not_stale(&self, version: i64) -> Result<(), CatalogError> {
        if self.options.exclusive {
            return Ok(());
        }
        let path = format!("{}/{}", log_folder(&self.options.prefix), entry_name(version));
        match self.objects.head(&path) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(CatalogError::Stale { table: self.options.prefix.clone() })
            }
            Err(source) => Err(CatalogError::Read { path, source }),
        }
    }

    /// After a failed put: whether the entry is there and ours (`true`), or another writer's (`false`). Where a put may land
    /// late, an entry that is not there is put again: then one of the two lands, and the version is decided.
    fn is_ours(
        &self,
        inner: &mut Inner,
        version: i64,
        path: &str,
        id: &str,
        entry: &[u8],
        mut failure: io::Error,
    ) -> Result<bool, CatalogError> {
        let late = self.objects.may_land_late();
        for _ in 0..if late { LATE_TRIES } else { 1 } {
            match self.objects.get(path) {
                Ok(bytes) if holds_id(&bytes, id) => {
                    if (0..SETTLE_TRIES).any(|_| self.objects.settle(path).is_ok()) {
                        return Ok(true);
                    }
                    break;
                }
                Ok(_) => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::NotFound && !late => {
                    return Err(CatalogError::Write { path: path.to_owned(), source: failure });
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    match self.objects.put(path, entry, PutMode::Create) {
                        Ok(()) => return Ok(true),
                        Err(e) => failure = e,
                    }
                }
                Err(_) => {}
            }
        }
        tracing::error!(path, error = %failure, "a commit's outcome is not known");
        inner.uncertain = Some(version);
        Err(self.uncertain(version))
    }

    fn uncertain(&self, version: i64) -> CatalogError {
        CatalogError::Uncertain { table: self.options.prefix.clone(), version }
    }

    /// Applies another writer's next entry, if there is one.
    fn take_in(&self, inner: &mut Inner) -> Result<Option<i64>, CatalogError> {
        let version = inner.state.version + 1;
        let path = format!("{}/{}", log_folder(&self.options.prefix), entry_name(version));
        let bytes = match self.objects.get(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CatalogError::Read { path, source }),
        };
        let theirs = actions::parse_entry(&bytes)
            .map_err(|e| CatalogError::Corrupt { path: path.clone(), reason: e.to_string() })?;
        self.apply(inner, version, theirs);
        check_protocol(&self.options, &inner.state)?;
        Ok(Some(version))
    }

    fn apply(&self, inner: &mut Inner, version: i64, actions: Vec<Action>) -> Change {
        let change = inner.state.apply_all(actions);
        inner.state.version = version;
        inner.state.entries_since_checkpoint += 1;
        if !change.added.is_empty() || !change.removed.is_empty() {
            let gone: HashSet<*const PartEntry> = change.removed.iter().map(Arc::as_ptr).collect();
            for r in &change.removed {
                inner.unserved.remove(&r.path);
            }
            let mut live: Vec<Arc<PartEntry>> = self.live.load().iter().cloned().collect();
            if !gone.is_empty() {
                live.retain(|p| !gone.contains(&Arc::as_ptr(p)));
            }
            live.extend(change.added.iter().cloned());
            state::sort(&mut live);
            self.live.store(Arc::new(live));
        }
        change
    }

    /// Whether [`TableCatalog::checkpoint`] is worth calling.
    pub fn checkpoint_due(&self) -> bool {
        self.inner.lock().state.entries_since_checkpoint >= ENTRIES_PER_CHECKPOINT
    }

    /// Writes a checkpoint of the present version and clears the log before the previous one. Commits go on meanwhile.
    pub fn checkpoint(&self, now: Timestamp) -> Result<i64, CatalogError> {
        let _one = self.checkpointing.lock();
        let (version, protocol, metadata, txns, parts, tombstones, previous) = {
            let state = &mut self.inner.lock().state;
            let oldest = now.millis().saturating_sub(TOMBSTONE_KEEP_MS);
            state.tombstones.retain(|_, r| r.deletion_timestamp.is_some_and(|t| t > oldest));
            if state.checkpoints[0] == Some(state.version) || state.version == UNMADE {
                return Ok(state.version);
            }
            (
                state.version,
                state.protocol.clone().unwrap_or_else(protocol),
                state.metadata.clone(),
                state.txns.values().cloned().collect::<Vec<_>>(),
                state.adds.values().cloned().collect::<Vec<_>>(),
                state.tombstones.values().cloned().collect::<Vec<_>>(),
                state.checkpoints[0],
            )
        };
        let table = || self.options.prefix.clone();
        let metadata = metadata.ok_or_else(|| CatalogError::Corrupt {
            path: log_folder(&self.options.prefix),
            reason: "the table has no metadata".into(),
        })?;
        let contents = Contents {
            protocol: &protocol,
            metadata: &metadata,
            txns: txns.iter().collect(),
            adds: state::adds(&parts),
            removes: tombstones.iter().collect(),
        };
        let bytes =
            checkpoint::encode(&contents).map_err(|source| CatalogError::Checkpoint { table: table(), source })?;
        let folder = log_folder(&self.options.prefix);
        let put = |name: String, bytes: &[u8]| {
            let path = format!("{folder}/{name}");
            self.objects.put(&path, bytes, PutMode::Overwrite).map_err(|source| CatalogError::Write { path, source })
        };
        put(checkpoint_name(version), &bytes)?;
        let hint = json!({
            "version": version,
            "size": contents.actions(),
            "sizeInBytes": bytes.len(),
            "numOfAddFiles": parts.len(),
        });
        put("_last_checkpoint".into(), hint.to_string().as_bytes())?;
        {
            let state = &mut self.inner.lock().state;
            state.checkpoints = [Some(version), previous];
            state.entries_since_checkpoint = u64::try_from(state.version - version).unwrap_or(0);
        }
        if let Some(previous) = previous {
            self.clear_log_before(previous, now);
        }
        Ok(version)
    }

    /// Everything from the previous checkpoint on stays: a damaged newest checkpoint then costs nothing, and readers
    /// that loaded a little earlier still find their entries.
    fn clear_log_before(&self, version: i64, now: Timestamp) {
        let Ok(listing) = load::listing(&*self.objects, &self.options.prefix) else { return };
        let old = listing.checkpoints.range(..version).chain(listing.entries.range(..version));
        for (_, path) in old {
            if !self.options.exclusive
                && self
                    .objects
                    .head(path)
                    .is_ok_and(|info| now.nanos().saturating_sub(info.modified.nanos()) < SHARED_LOG_KEEP_NS)
            {
                continue;
            }
            if let Err(e) = self.objects.delete(path)
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path, error = %e, "cannot delete an old log file, will try again");
            }
        }
    }
}

fn schema_error(options: &TableOptions, source: SchemaError) -> CatalogError {
    CatalogError::Schema { table: options.prefix.clone(), source }
}

fn protocol() -> Protocol {
    Protocol { min_reader_version: READER_VERSION, min_writer_version: WRITER_VERSION }
}

fn check_protocol(options: &TableOptions, state: &State) -> Result<(), CatalogError> {
    match &state.protocol {
        Some(p) if p.min_reader_version > READER_VERSION || p.min_writer_version > WRITER_VERSION => {
            Err(CatalogError::Protocol {
                table: options.prefix.clone(),
                reader: p.min_reader_version,
                writer: p.min_writer_version,
            })
        }
        _ => Ok(()),
    }
}

fn metadata(options: &TableOptions, id: String, schema_string: String, now: Timestamp) -> MetaData {
    MetaData {
        id,
        name: Some(options.table.name().to_owned()),
        description: None,
        format: Format { provider: "parquet".into(), options: StringMap::new() },
        schema_string,
        partition_columns: vec![PARTITION_COLUMN.to_owned()],
        configuration: properties(options.table),
        created_time: Some(now.millis()),
    }
}

/// Table properties, as every table has them.
///
/// Which columns have statistics must be said: Python's `deltalake` 1.6 takes a statistic that is not there for a bound that
/// nothing meets, and would answer every filter on another column with no row at all.
fn properties(table: Table) -> StringMap {
    let keep = format!("interval {} seconds", TOMBSTONE_KEEP_MS / 1000);
    let (name, columns) = match table {
        Table::Logs | Table::Spans => ("delta.dataSkippingStatsColumns", "ts"),
        // Their columns have one of two bounds: none that such a reader may use.
        Table::MetricSeries => ("delta.dataSkippingNumIndexedCols", "0"),
        _ => ("delta.dataSkippingStatsColumns", "ts_ms"),
    };
    StringMap::from([
        ("delta.deletedFileRetentionDuration".to_owned(), Some(keep)),
        (name.to_owned(), Some(columns.to_owned())),
    ])
}

fn info(operation: &str, now: Timestamp, blind: bool, id: String) -> Action {
    Action::CommitInfo(CommitInfo {
        timestamp: now.millis(),
        operation: operation.to_owned(),
        operation_parameters: Some(json!({})),
        is_blind_append: Some(blind),
        engine_info: Some(concat!("sightline/", env!("CARGO_PKG_VERSION")).to_owned()),
        txn_id: Some(id),
    })
}

fn holds_id(entry: &[u8], id: &str) -> bool {
    actions::parse_entry(entry).is_ok_and(|all| {
        all.iter().any(|a| matches!(a, Action::CommitInfo(info) if info.txn_id.as_deref() == Some(id)))
    })
}

fn add_of(table: Table, part: &NewPart, version: i64, now: Timestamp, data_change: bool) -> Add {
    let mut tags: StringMap = part.tags.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
    for (name, value) in [
        (TAG_LEVEL, part.level.to_string()),
        (TAG_BUCKET, part.bucket.tag()),
        (TAG_ORDER, part.order.unwrap_or(version).to_string()),
        (TAG_MIN_TS, part.min_ts.nanos().to_string()),
        (TAG_MAX_TS, part.max_ts.nanos().to_string()),
    ] {
        tags.insert(name.to_owned(), Some(value));
    }
    Add {
        path: part.path.clone(),
        partition_values: partition_values(part.bucket.day()),
        size: i64::try_from(part.size).unwrap_or(i64::MAX),
        modification_time: now.millis(),
        data_change,
        stats: Some(stats(table, part).to_string()),
        tags: Some(tags),
    }
}

fn remove_of(part: &PartEntry, now: Timestamp, data_change: bool) -> Remove {
    Remove {
        path: part.add.path.clone(),
        deletion_timestamp: Some(now.millis()),
        data_change,
        extended_file_metadata: Some(true),
        partition_values: Some(part.add.partition_values.clone()),
        size: Some(part.add.size),
    }
}

/// Statistics other readers prune by. `ts` is microseconds on disk.
fn stats(table: Table, part: &NewPart) -> Value {
    let micros =
        |t: Timestamp| json!(DateTime::from_timestamp_nanos(t.nanos()).to_rfc3339_opts(SecondsFormat::Micros, true));
    let (min, max) = match table {
        Table::Logs | Table::Spans => (json!({"ts": micros(part.min_ts)}), json!({"ts": micros(part.max_ts)})),
        // A series lives from first_ms to last_ms, so each bounds one end only.
        Table::MetricSeries => {
            (json!({"first_ms": part.min_ts.millis()}), json!({"last_ms": part.max_ts.nanos() / NANOS_PER_MILLI}))
        }
        _ => (json!({"ts_ms": part.min_ts.millis()}), json!({"ts_ms": part.max_ts.millis()})),
    };
    json!({"numRecords": part.rows, "minValues": min, "maxValues": max})
}

const EPOCH: NaiveDate = match NaiveDate::from_ymd_opt(1970, 1, 1) {
    Some(date) => date,
    None => unreachable!(),
};

/// `YYYY-MM-DD` of a day since the epoch; days outside chrono's years are clamped, which event time cannot reach.
pub fn date_string(day: i64) -> String {
    let date = if day >= 0 {
        EPOCH.checked_add_days(Days::new(day.unsigned_abs()))
    } else {
        EPOCH.checked_sub_days(Days::new(day.unsigned_abs()))
    };
    date.unwrap_or(EPOCH).format("%Y-%m-%d").to_string()
}

fn day_of_date(date: NaiveDate) -> i64 {
    date.signed_duration_since(EPOCH).num_days()
}

fn partition_values(day: i64) -> StringMap {
    StringMap::from([(PARTITION_COLUMN.to_owned(), Some(date_string(day)))])
}

/// A new, unique path for a part of a bucket: `day=2026-01-02/l0-<32 hex digits>.parquet`.
pub fn part_path(bucket: Bucket, level: u8) -> String {
    let id = new_uuid().replace('-', "");
    format!("{PARTITION_COLUMN}={}/l{level}-{id}.parquet", date_string(bucket.day()))
}

/// A random version 4 UUID. `RandomState` is seeded by the operating system; names need to be distinct, not secret.
pub(crate) fn new_uuid() -> String {
    let random = || {
        let mut h = std::hash::RandomState::new().build_hasher();
        h.write_u32(std::process::id());
        h.write_u128(std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos()));
        h.finish()
    };
    let (a, b) = (random(), random());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        (b >> 48) & 0x3fff | 0x8000,
        b & 0xffff_ffff_ffff
    )
}
