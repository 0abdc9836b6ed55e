//! The Delta log of one table: open, commit, the live parts, checkpoints.

use std::{collections::HashSet, io, sync::Arc};

use arc_swap::ArcSwap;
use arrow::datatypes::SchemaRef;
use parking_lot::Mutex;
use serde_json::json;

use super::{
    actions::{self, Action, Add, MetaData, Txn},
    checkpoint::{self, Contents},
    commit::{CatalogError, Commit, Committed, Operation},
    describe::{check_protocol, holds_id, info, metadata, properties, protocol, schema_error},
    load::{self, Damage, Loader, OpenReport, checkpoint_name, entry_name, log_folder},
    part_entry::{NewPart, PartEntry, TAG_ORDER, add_of, new_uuid, remove_of},
    schema,
    state::{self, Change, State},
};
use crate::{
    downsample::TAG_SAMPLE_HOURS,
    model::{Table, Timestamp, time::NANOS_PER_DAY},
    object::{Objects, PutMode},
};

/// Entries between checkpoints: a load reads one checkpoint and at most about this many small files.
pub const ENTRIES_PER_CHECKPOINT: u64 = 64;

/// How long a checkpoint remembers a removed file. Only other programs' vacuum needs it; ours deletes by [`super::Purge`].
pub const TOMBSTONE_KEEP_MS: i64 = 3_600_000;

/// Lost races in a row before a commit gives up.
pub(super) const COMMIT_RACES_MAX: usize = 256;

/// How long entries behind the previous checkpoint stay when others write the table too. A writer that has not looked for
/// longer would find the name of a cleared entry free and commit into the past.
const SHARED_LOG_KEEP_NS: i64 = 7 * NANOS_PER_DAY;

/// The version of a table without a log.
const UNMADE: i64 = -1;

/// How often an entry is put again whose put failed without trace, where such a put may come into effect later.
const LATE_TRIES: usize = 4;

/// Tries to make an entry's folder durable before the outcome of a commit counts as unknown.
pub(super) const SETTLE_TRIES: usize = 3;

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
