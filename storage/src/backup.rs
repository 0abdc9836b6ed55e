//! A copy of the whole store, taken while it runs, and the way back.
//!
//! The cut is one moment between two records of the write-ahead log: of every table the parts and the head of that moment, and
//! how far every source had got. A part in the cut is held, so that no merge, delete or retention takes its file away; the
//! head becomes parts of the copy. A copied table has a log of one entry, so any Delta reader reads it, and whatever has come
//! since is not in it. A copy without [`MANIFEST`], which is written last, is not whole.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use serde::{Deserialize, Serialize};

use crate::{
    Append, AppendError, Durability, OpenError, ScanError, SourcePosition, Store, StoreConfig,
    catalog::{NewPart, PartEntry},
    head::{HeadBatch, flush::write_part_in, rows::split_by_bucket},
    limits,
    model::{Table, TenantId, Timestamp},
    object::{LocalStore, Objects, PutMode},
    open::TABLES,
    part::{self, PartReader, WriteOptions, is_loss},
    part_cache::ObjectRange,
    store::{Inner, TableState},
    wal::Section,
};

/// Says what a copy holds.
pub const MANIFEST: &str = "sightline-backup.json";

/// Version of the manifest and of the layout beside it.
const FORMAT: u32 = 1;

/// Bytes copied at a time.
const COPY_BYTES: u64 = 4 << 20;

/// What a copy holds, and what of the store is not in its files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// Milliseconds since the epoch, when the cut was made.
    pub created_ms: i64,
    pub tables: Vec<TableCopy>,
    /// How far sources had got: what is before is in the tables.
    positions: Vec<PositionCopy>,
    /// Batches that are not to be stored again, oldest first: tenant and 32 hex digits.
    batch_ids: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableCopy {
    pub tenant: String,
    pub table: String,
    pub files: u64,
    pub rows: u64,
    pub bytes: u64,
    /// Files that could not be read whole and are not in the copy.
    pub damaged: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct PositionCopy {
    tenant: String,
    key: String,
    position: u64,
}

impl Manifest {
    pub fn files(&self) -> u64 {
        self.tables.iter().map(|t| t.files).sum()
    }

    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|t| t.rows).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.tables.iter().map(|t| t.bytes).sum()
    }

    pub fn damaged(&self) -> impl Iterator<Item = &str> {
        self.tables.iter().flat_map(|t| &t.damaged).map(String::as_str)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{dir} is not empty; give a folder that is empty or not there")]
    NotEmpty { dir: PathBuf },
    #[error("{dir} is inside the data directory; give a folder elsewhere")]
    Inside { dir: PathBuf },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{dir} holds no whole backup: {reason}")]
    NoBackup { dir: PathBuf, reason: String },
    #[error("the store is closing; the copy is not whole")]
    Closing,
    #[error("{what} is not as the backup says: {reason}; nothing was put in place")]
    Differs { what: String, reason: String },
    #[error(transparent)]
    Store(#[from] ScanError),
    #[error("cannot open the restored store")]
    Open(#[source] OpenError),
    #[error("cannot restore how far sources had got")]
    Sources(#[source] AppendError),
}

/// What sources need remembered, by tenant.
type Carried = Vec<(TenantId, Vec<Section>)>;

/// One table at the moment of the cut.
struct TableCut {
    state: Arc<TableState>,
    parts: Arc<Vec<Arc<PartEntry>>>,
    head: Vec<Arc<HeadBatch>>,
}

impl Store {
    /// Copies everything acknowledged before the call, and whatever else is published when the cut is made, to the folder
    /// `to`, which must be empty or not there.
    pub async fn backup(&self, to: PathBuf) -> Result<Manifest, BackupError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.backup(&to))
            .await
            .map_err(|e| BackupError::Store(ScanError::Internal(e.to_string())))?
    }
}

/// Whether the folder is not there or holds nothing.
fn is_vacant(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e),
    }
}

impl Inner {
    fn backup(&self, to: &Path) -> Result<Manifest, BackupError> {
        let write = |path: &Path, source| BackupError::Write { path: path.to_owned(), source };
        if !is_vacant(to).map_err(|source| BackupError::Read { path: to.to_owned(), source })? {
            return Err(BackupError::NotEmpty { dir: to.to_owned() });
        }
        fs::create_dir_all(to).map_err(|e| write(to, e))?;
        if let (Ok(to), Ok(own)) = (to.canonicalize(), self.config.dir.canonicalize())
            && to.starts_with(own)
        {
            return Err(BackupError::Inside { dir: to });
        }
        let copy = LocalStore::new(to);
        let now = self.env.clock.now();
        let (cuts, carried, seq) = self.cut();
        let mut tables = Vec::with_capacity(cuts.len());
        for cut in cuts {
            tables.push(self.copy_table(&cut, seq, &copy, now)?);
        }
        let (positions, batch_ids) = written_out(carried);
        let manifest = Manifest { format: FORMAT, created_ms: now.millis(), tables, positions, batch_ids };
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| write(to, e.into()))?;
        copy.put(MANIFEST, &text, PutMode::Create).map_err(|e| write(&to.join(MANIFEST), e))?;
        // Of the copy's own writing; empty by now.
        drop(fs::remove_dir(to.join("tmp")));
        Ok(manifest)
    }

    /// Everything there is at one moment: tables, what sources need remembered, and the last WAL sequence number in it.
    fn cut(&self) -> (Vec<TableCut>, Carried, u64) {
        let _between_records = self.publishing.lock();
        let cuts = self.tables_now().into_iter().map(|state| {
            let data = state.data.read();
            let (parts, head) = (data.parts.clone(), data.head.batches.clone());
            drop(data);
            TableCut { state, parts, head }
        });
        (cuts.collect(), self.sources.carry(), self.published_seq.load(Ordering::Acquire))
    }

    fn copy_table(
        &self,
        cut: &TableCut,
        seq: u64,
        copy: &LocalStore,
        now: Timestamp,
    ) -> Result<TableCopy, BackupError> {
        let state = &cut.state;
        let mut done = TableCopy {
            tenant: state.tenant.to_string(),
            table: state.table.name().to_owned(),
            files: 0,
            rows: 0,
            bytes: 0,
            damaged: Vec::new(),
        };
        let folder = format!("{TABLES}/{}/{}", state.tenant, state.table.name());
        let catalog = state.catalog.read().clone();
        let mut kept = Vec::with_capacity(cut.parts.len());
        for part in cut.parts.iter() {
            if self.stop.load(Ordering::SeqCst) {
                return Err(BackupError::Closing);
            }
            let path = format!("{folder}/{}", part.path);
            match copy_object(self.objects.as_ref(), &catalog.file_of(&part.path), part.size, copy, &path)? {
                Ok(()) => match check_part(copy, &path, part) {
                    Ok(()) => kept.push(part.clone()),
                    Err(reason) => {
                        drop(copy.delete(&path));
                        done.damaged.push(format!("{path}: {reason}"));
                    }
                },
                Err(reason) => done.damaged.push(format!("{path}: {reason}")),
            }
        }
        let fresh = self.copy_head(cut, copy, &folder, seq, now, &mut done.damaged)?;
        done.files = (kept.len() + fresh.len()) as u64;
        done.rows = kept.iter().map(|p| p.rows).chain(fresh.iter().map(|p| p.rows)).sum();
        done.bytes = kept.iter().map(|p| p.size).chain(fresh.iter().map(|p| p.size)).sum();
        let oldest = fresh.iter().filter_map(|p| p.order).min().unwrap_or(0);
        let txn = (self.txn_app(state.table), i64::try_from(seq).unwrap_or(i64::MAX));
        let (name, entry) = catalog.entry_of_copy(&kept, oldest, &fresh, txn, now);
        let path = format!("{folder}/{name}");
        copy.put(&path, &entry, PutMode::Create)
            .map_err(|source| BackupError::Write { path: copy.root().join(&path), source })?;
        Ok(done)
    }

    /// Writes the head of the cut as parts. Their `order` ends at 0, the version of the copy's one log entry.
    fn copy_head(
        &self,
        cut: &TableCut,
        copy: &LocalStore,
        folder: &str,
        seq: u64,
        now: Timestamp,
        damaged: &mut Vec<String>,
    ) -> Result<Vec<NewPart>, BackupError> {
        let table = cut.state.table;
        let pieces = pieces(&cut.head, self.config.flush_bytes);
        let first_order = 1 - pieces.len() as i64;
        let mut out = Vec::new();
        for (order, piece) in (first_order..).zip(pieces) {
            let mut rows = Vec::with_capacity(piece.len());
            for batch in piece {
                match batch.load(table) {
                    Ok(r) => rows.push(r),
                    Err(ScanError::Corrupt { part, reason }) => damaged.push(format!("{part}: {reason}")),
                    Err(e) => return Err(e.into()),
                }
            }
            // Grows from piece to piece and stays below what the next flush of a restored store has.
            let arrival = piece.last().map_or(seq, |b| b.last_seq);
            for (bucket, rows) in split_by_bucket(table, &rows, limits::FLUSH_HOURS_MAX)? {
                let options = WriteOptions { arrival, ..self.write_options(0, now) };
                out.push(write_part_in(copy, folder, 0, Some(order), bucket, |out| {
                    part::write_part(table, &rows, &options, out)
                })?);
            }
        }
        Ok(out)
    }
}

/// Head batches in pieces that are written at once, bounded as a flush is.
fn pieces(head: &[Arc<HeadBatch>], bytes_max: usize) -> Vec<&[Arc<HeadBatch>]> {
    let mut out = Vec::new();
    let (mut start, mut bytes, mut wal_bytes) = (0, 0, 0);
    for (i, batch) in head.iter().enumerate() {
        if i > start && (bytes > bytes_max || wal_bytes > limits::REPLAY_FLUSH_WAL_BYTES) {
            out.push(&head[start..i]);
            (start, bytes, wal_bytes) = (i, 0, 0);
        }
        bytes += batch.bytes;
        wal_bytes += batch.rows.wal_bytes();
    }
    if start < head.len() {
        out.push(&head[start..]);
    }
    out
}

/// Copies an object. The inner error: it cannot be read, and nothing is left of it.
fn copy_object(
    from: &dyn Objects,
    path: &str,
    size: u64,
    to: &LocalStore,
    as_path: &str,
) -> Result<Result<(), String>, BackupError> {
    let write = |source| BackupError::Write { path: to.root().join(as_path), source };
    let mut out = to.create(as_path).map_err(write)?;
    let mut at = 0;
    while at < size {
        let end = size.min(at + COPY_BYTES);
        match from.get_range(path, at..end) {
            Ok(bytes) if bytes.len() as u64 == end - at => out.write_all(&bytes).map_err(write)?,
            Ok(_) => return Ok(Err("it is shorter than its log says".into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound || is_loss(&e) => return Ok(Err(e.to_string())),
            Err(source) => return Err(BackupError::Read { path: path.into(), source }),
        }
        at = end;
    }
    out.finish().map_err(write)?;
    Ok(Ok(()))
}

/// Whether a copied part is whole: its checksums, and as many rows as the log says.
fn check_part(copy: &LocalStore, path: &str, entry: &PartEntry) -> Result<(), String> {
    let objects: Arc<dyn Objects> = Arc::new(copy.clone());
    let range = ObjectRange { objects, path: path.to_owned(), size: entry.size, tail_bytes: None };
    let reader = PartReader::open(Arc::new(range)).map_err(|e| e.to_string())?;
    reader.verify().map_err(|e| e.to_string())?;
    // Files of other writers may say nothing of their rows.
    if entry.rows > 0 && reader.rows() != entry.rows {
        return Err(format!("it holds {} rows, its log says {}", reader.rows(), entry.rows));
    }
    Ok(())
}

fn written_out(carried: Carried) -> (Vec<PositionCopy>, Vec<(String, String)>) {
    let (mut positions, mut ids) = (Vec::new(), Vec::new());
    for (tenant, sections) in carried {
        let tenant = tenant.to_string();
        for section in sections {
            match section {
                Section::Position { key, position } => {
                    positions.push(PositionCopy { tenant: tenant.clone(), key, position })
                }
                Section::BatchId(id) => ids.push((tenant.clone(), format!("{:032x}", u128::from_be_bytes(id)))),
                Section::Batch(_) => {}
            }
        }
    }
    positions.sort_by(|a, b| (&a.tenant, &a.key).cmp(&(&b.tenant, &b.key)));
    (positions, ids)
}

/// Makes a data directory of a backup. It appears whole: until then everything is in `<data_dir>.restoring`.
pub async fn restore(from: &Path, data_dir: &Path) -> Result<Manifest, BackupError> {
    let manifest = read_manifest(from)?;
    let read = |path: &Path, source| BackupError::Read { path: path.to_owned(), source };
    if !is_vacant(data_dir).map_err(|e| read(data_dir, e))? {
        return Err(BackupError::NotEmpty { dir: data_dir.to_owned() });
    }
    let mut name = data_dir.as_os_str().to_owned();
    name.push(".restoring");
    let half = PathBuf::from(name);
    if !is_vacant(&half).map_err(|e| read(&half, e))? {
        return Err(BackupError::NotEmpty { dir: half });
    }
    let (source, target) = (from.to_owned(), half.clone());
    tokio::task::spawn_blocking(move || copy_all(&source, &target))
        .await
        .map_err(|e| BackupError::Store(ScanError::Internal(e.to_string())))??;
    let mut config = StoreConfig::new(&half);
    config.background = false;
    config.durability = Durability::None;
    let store = Store::open(config).await.map_err(BackupError::Open)?;
    compare(&store, &manifest)?;
    restore_sources(&store, &manifest).await?;
    store.close().await?;
    drop(store);
    let write = |source| BackupError::Write { path: data_dir.to_owned(), source };
    fs::rename(&half, data_dir).map_err(write)?;
    let parent = data_dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(parent).and_then(|d| d.sync_all()).map_err(write)?;
    Ok(manifest)
}

fn read_manifest(from: &Path) -> Result<Manifest, BackupError> {
    let none = |reason: String| BackupError::NoBackup { dir: from.to_owned(), reason };
    let path = from.join(MANIFEST);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(none(format!("it has no {MANIFEST}, which a backup writes last")));
        }
        Err(source) => return Err(BackupError::Read { path, source }),
    };
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| none(format!("{MANIFEST}: {e}")))?;
    if manifest.format > FORMAT {
        return Err(none(format!("it is of version {}, this program knows {FORMAT}", manifest.format)));
    }
    Ok(manifest)
}

fn copy_all(from: &Path, half: &Path) -> Result<(), BackupError> {
    fs::create_dir_all(half).map_err(|source| BackupError::Write { path: half.to_owned(), source })?;
    // What opening a new directory leaves there first, so that what follows counts as ours.
    drop(crate::lock::DataDir::open(half).map_err(BackupError::Open)?);
    let (source, target) = (LocalStore::new(from), LocalStore::new(half));
    let all = source.list(TABLES).map_err(|e| BackupError::Read { path: from.join(TABLES), source: e })?;
    for object in all {
        let copied = copy_object(&source, &object.path, object.size, &target, &object.path)?;
        copied.map_err(|reason| BackupError::Differs { what: object.path, reason })?;
    }
    Ok(())
}

/// Whether a restored store has all that the backup says.
fn compare(store: &Store, manifest: &Manifest) -> Result<(), BackupError> {
    for copy in &manifest.tables {
        let what = format!("{}/{}", copy.tenant, copy.table);
        let differs = |reason: String| BackupError::Differs { what: what.clone(), reason };
        let tenant = TenantId::parse(&copy.tenant).map_err(|e| differs(e.to_string()))?;
        let table = Table::from_name(&copy.table).ok_or_else(|| differs("there is no such table".into()))?;
        let state = store.inner.table(&tenant, table).ok_or_else(|| differs("it is missing".into()))?;
        let parts = state.data.read().parts.clone();
        let rows: u64 = parts.iter().map(|p| p.rows).sum();
        if (parts.len() as u64, rows) != (copy.files, copy.rows) {
            let (files, wanted) = (parts.len(), (copy.files, copy.rows));
            return Err(differs(format!("{files} files and {rows} rows instead of {} and {}", wanted.0, wanted.1)));
        }
        let local = LocalStore::new(&store.inner.config.dir);
        let catalog = state.catalog.read().clone();
        for part in parts.iter() {
            check_part(&local, &catalog.file_of(&part.path), part)
                .map_err(|reason| differs(format!("{}: {reason}", part.path)))?;
        }
    }
    Ok(())
}

async fn restore_sources(store: &Store, manifest: &Manifest) -> Result<(), BackupError> {
    let differs = |reason: String| BackupError::Differs { what: MANIFEST.into(), reason };
    let tenant = |name: &str| TenantId::parse(name).map_err(|e| differs(e.to_string()));
    for same in manifest.positions.chunk_by(|a, b| a.tenant == b.tenant) {
        for some in same.chunks(POSITIONS_A_RECORD) {
            let sources = some.iter().map(|p| SourcePosition { key: p.key.clone(), position: p.position }).collect();
            let append = Append { tenant: tenant(&some[0].tenant)?, rows: Vec::new(), sources, batch_id: None };
            store.append(append).await.map_err(BackupError::Sources)?;
        }
    }
    for (name, id) in &manifest.batch_ids {
        let id = u128::from_str_radix(id, 16).map_err(|e| differs(format!("batch id {id}: {e}")))?;
        let batch_id = Some(id.to_be_bytes());
        let append = Append { tenant: tenant(name)?, rows: Vec::new(), sources: Vec::new(), batch_id };
        store.append(append).await.map_err(BackupError::Sources)?;
    }
    Ok(())
}

/// Positions in one record of the write-ahead log.
const POSITIONS_A_RECORD: usize = 500;
