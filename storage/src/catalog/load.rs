//! Reads a table's log: newest checkpoint, entries behind it, and what to do with damage.

use std::{
    collections::{BTreeMap, HashMap},
    io,
};

use bytes::Bytes;

use super::{
    actions::{Action, CommitInfo, parse_entry, write_entry},
    checkpoint,
    commit::CatalogError,
    state::State,
    table::{SETTLE_TRIES, TableOptions},
};
use crate::{
    model::Timestamp,
    object::{ObjectInfo, Objects, PutMode},
};

/// How often a file that does not parse is read before it counts as damaged, where the way here may be what is wrong.
const READ_TRIES: usize = 3;

/// Missing versions in a row that are taken for a hole to fill; a greater jump is a stray file.
const HOLE_VERSIONS_MAX: i64 = 1_000;

/// One thing that was not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Path in the store.
    pub path: String,
    pub reason: String,
    /// Where it was moved, if it was.
    pub moved_to: Option<String>,
}

/// What opening found besides the live parts.
#[derive(Clone, Debug, Default)]
pub struct OpenReport {
    /// The table did not exist.
    pub created: bool,
    /// Damaged entries and checkpoints of the log.
    pub log: Vec<Damage>,
    /// Parts the log names that are missing or of another size: not served.
    pub parts: Vec<Damage>,
    /// Files no entry names that were deleted.
    pub orphans_deleted: usize,
    /// Files no entry names that were left alone, because the log is damaged and may have named them.
    pub orphans_kept: usize,
    /// Entries read behind the checkpoint.
    pub entries_replayed: u64,
}

pub(super) fn entry_name(version: i64) -> String {
    format!("{version:020}.json")
}

pub(super) fn checkpoint_name(version: i64) -> String {
    format!("{version:020}.checkpoint.parquet")
}

/// Folder of the log in the store.
pub(super) fn log_folder(prefix: &str) -> String {
    format!("{prefix}/_delta_log")
}

fn version_of(name: &str, suffix: &str) -> Option<i64> {
    let digits = name.strip_suffix(suffix)?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

/// Versions present in the log folder.
#[derive(Default)]
pub(super) struct Listing {
    pub entries: BTreeMap<i64, String>,
    pub checkpoints: BTreeMap<i64, String>,
}

pub(super) fn listing(objects: &dyn Objects, prefix: &str) -> Result<Listing, CatalogError> {
    let folder = log_folder(prefix);
    let files = objects.list(&folder).map_err(|source| CatalogError::Read { path: folder.clone(), source })?;
    let mut out = Listing::default();
    for f in files {
        let name = f.path.rsplit('/').next().unwrap_or_default();
        if let Some(v) = version_of(name, ".json") {
            out.entries.insert(v, f.path);
        } else if let Some(v) = version_of(name, ".checkpoint.parquet") {
            out.checkpoints.insert(v, f.path);
        }
    }
    Ok(out)
}

pub(super) struct Loader<'a> {
    pub objects: &'a dyn Objects,
    pub options: &'a TableOptions,
    pub now: Timestamp,
    pub report: OpenReport,
}

impl Loader<'_> {
    /// `None`: there is no log yet.
    pub fn load(&mut self) -> Result<Option<State>, CatalogError> {
        let mut listing = listing(self.objects, &self.options.prefix)?;
        if listing.entries.is_empty() && listing.checkpoints.is_empty() {
            return Ok(None);
        }
        self.settle(&listing)?;
        let mut state = self.base(&mut listing)?;
        while let Some((&version, path)) = listing.entries.range(state.version + 1..).next() {
            let path = path.clone();
            if version > state.version + 1 {
                let reason = format!("version {} is missing before it", state.version + 1);
                if version - state.version > HOLE_VERSIONS_MAX {
                    self.set_aside(&path, reason)?;
                    listing.entries.remove(&version);
                    continue;
                }
                let hole = state.version + 1;
                self.damaged_log(&format!("{}/{}", log_folder(&self.options.prefix), entry_name(hole)), reason)?;
                self.fill(hole)?;
                state.version = hole;
                continue;
            }
            match self.read(&path, |bytes| parse_entry(&bytes))? {
                Ok(actions) => {
                    state.apply_all(actions);
                }
                Err(e) => {
                    self.set_aside(&path, e.to_string())?;
                    self.fill(version)?;
                }
            }
            state.version = version;
            state.entries_since_checkpoint += 1;
            self.report.entries_replayed += 1;
        }
        Ok(Some(state))
    }

    /// Reads and parses a file of the log. Inner error: its bytes are wrong.
    fn read<T, E>(&self, path: &str, parse: impl Fn(Bytes) -> Result<T, E>) -> Result<Result<T, E>, CatalogError> {
        let tries = if self.objects.may_land_late() { READ_TRIES } else { 1 };
        let mut at = 1;
        loop {
            let got = self.objects.get(path);
            let bytes = got.map_err(|source| CatalogError::Read { path: path.to_owned(), source })?;
            match parse(bytes) {
                Err(_) if at < tries => at += 1,
                parsed => return Ok(parsed),
            }
        }
    }

    /// An entry may be seen and yet not survive a power cut, if its writer failed or died at the last step. What is built on
    /// it (rows leave the WAL) must not outlive it.
    fn settle(&self, listing: &Listing) -> Result<(), CatalogError> {
        if !self.options.exclusive {
            return Ok(());
        }
        let Some(path) = listing.entries.values().chain(listing.checkpoints.values()).next() else { return Ok(()) };
        let mut result = Ok(());
        for _ in 0..SETTLE_TRIES {
            result = self.objects.settle(path);
            if result.is_ok() {
                break;
            }
        }
        result.map_err(|source| CatalogError::Write { path: log_folder(&self.options.prefix), source })
    }

    /// The state of the newest readable checkpoint, or of nothing.
    fn base(&mut self, listing: &mut Listing) -> Result<State, CatalogError> {
        let mut state = None;
        while let Some((&version, path)) = listing.checkpoints.last_key_value() {
            let path = path.clone();
            match self.read(&path, checkpoint::decode)? {
                Ok(actions) if complete(&actions) => {
                    let mut s = State::empty(version);
                    s.apply_all(actions);
                    s.checkpoints[0] = Some(version);
                    s.checkpoints[1] = listing.checkpoints.range(..version).next_back().map(|(v, _)| *v);
                    state = Some(s);
                    break;
                }
                Ok(_) => self.set_aside(&path, "it has no protocol or no metadata".into())?,
                Err(e) => self.set_aside(&path, e.to_string())?,
            }
            listing.checkpoints.remove(&version);
        }
        if let Some(state) = state {
            return Ok(state);
        }
        let first = listing.entries.keys().next().copied().unwrap_or(0);
        if first > 0 {
            let folder = log_folder(&self.options.prefix);
            self.damaged_log(&folder, format!("no readable checkpoint and no entry before version {first}"))?;
        }
        Ok(State::empty(first - 1))
    }

    fn damaged_log(&mut self, path: &str, reason: String) -> Result<(), CatalogError> {
        if !self.options.exclusive {
            return Err(CatalogError::Corrupt { path: path.to_owned(), reason });
        }
        tracing::error!(path, reason, "the log of a table is damaged here; going on without");
        self.report.log.push(Damage { path: path.to_owned(), reason, moved_to: None });
        Ok(())
    }

    /// Moves a damaged log file into quarantine.
    fn set_aside(&mut self, path: &str, reason: String) -> Result<(), CatalogError> {
        self.damaged_log(path, reason)?;
        let to = quarantine_path(self.options, path, self.now);
        self.objects.rename(path, &to).map_err(|source| CatalogError::Write { path: path.to_owned(), source })?;
        if let Some(damage) = self.report.log.last_mut() {
            damage.moved_to = Some(to);
        }
        Ok(())
    }

    /// Puts an entry without effect where one is missing, because every Delta reader wants dense versions.
    fn fill(&self, version: i64) -> Result<(), CatalogError> {
        let path = format!("{}/{}", log_folder(&self.options.prefix), entry_name(version));
        let entry = write_entry(&[Action::CommitInfo(CommitInfo {
            timestamp: self.now.millis(),
            operation: "QUARANTINE".into(),
            operation_parameters: None,
            is_blind_append: None,
            engine_info: None,
            txn_id: None,
        })]);
        match self.objects.put(&path, &entry, PutMode::Create) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(CatalogError::Write { path, source: e }),
            _ => Ok(()),
        }
    }

    /// Compares the log with the files there are: gives the paths not to serve, and the files that nothing names and that
    /// may go.
    pub fn check_files(&mut self, state: &State) -> Result<(Vec<String>, Vec<String>), CatalogError> {
        let prefix = &self.options.prefix;
        let files: Vec<ObjectInfo> =
            self.objects.list(prefix).map_err(|source| CatalogError::Read { path: prefix.clone(), source })?;
        let inside = |path: &str| path.get(prefix.len() + 1..).unwrap_or_default().to_owned();
        let sizes: HashMap<String, u64> = files.iter().map(|f| (inside(&f.path), f.size)).collect();
        let mut bad = Vec::new();
        for entry in state.adds.values() {
            let reason = match sizes.get(&entry.path) {
                None => "the file is missing".to_owned(),
                Some(size) if *size != entry.size => {
                    format!("the file has {size} bytes, the log says {}", entry.size)
                }
                Some(_) => continue,
            };
            let path = format!("{prefix}/{}", entry.path);
            tracing::error!(path, reason, "a part is damaged and not served");
            self.report.parts.push(Damage { path, reason, moved_to: None });
            bad.push(entry.path.clone());
        }
        if !self.options.exclusive || !self.options.clear_orphans {
            return Ok((bad, Vec::new()));
        }
        let mut orphans = Vec::new();
        for f in files {
            let name = inside(&f.path);
            if name.starts_with('_') || !name.ends_with(".parquet") || state.adds.contains_key(&name) {
                continue;
            }
            if !self.report.log.is_empty() {
                self.report.orphans_kept += 1;
                continue;
            }
            // It is older than this open: the folder is ours alone, and the list was made before any write.
            orphans.push(f.path);
        }
        Ok((bad, orphans))
    }
}

fn complete(actions: &[Action]) -> bool {
    actions.iter().any(|a| matches!(a, Action::Protocol(_)))
        && actions.iter().any(|a| matches!(a, Action::MetaData(_)))
}

/// Where `path` goes when it is damaged; the time keeps repeated ones apart.
pub(super) fn quarantine_path(options: &TableOptions, path: &str, now: Timestamp) -> String {
    format!("{}/{path}.{}", options.quarantine, now.nanos())
}
