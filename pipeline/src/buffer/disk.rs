//! A queue on disk: batches rest in a write-ahead log until they are delivered. An append is acknowledged after its
//! `fdatasync`, so what was acknowledged survives a crash and a long cut, in little memory.
//!
//! Positions of sources and ids of batches rest in the same records as the rows: after a crash a source goes on exactly
//! behind the rows that are here. How far delivery has got is a position too. It is written now and then, so after a crash some batches
//! are delivered again, under the same ids ([`Stored::id`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arrow::{array::RecordBatch, compute::concat_batches};
use parking_lot::Mutex;
use storage::{
    Append, AppendError, Appended, Durability, SourcePosition,
    model::{MetricBatch, Table, TenantId, schema},
    vfs::OsVfs,
    wal::{self, BatchLocation, Committed, Entry, ReadError, Section, Wal, WalError, WalOptions},
};
use tokio::sync::Notify;

use crate::{
    component::{Data, Positions},
    sink::store::Destination,
};

/// Grain in which disk space comes back.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Bytes that wait for the log's writer.
const WRITE_QUEUE_BYTES: usize = 16 << 20;
/// Sources whose positions are remembered, the latest ones.
const POSITIONS_MAX: usize = 100_000;
/// Batch ids that are remembered, the latest ones.
const BATCH_IDS_MAX: usize = 65_536;
/// When whoever appends to a full queue may come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Position that says below which record everything is delivered.
const DELIVERED: &str = "sightline.queue/delivered";
const ID_FILE: &str = "id";

#[derive(Debug, thiserror::Error)]
pub enum DiskQueueError {
    #[error("cannot use the queue {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("cannot open the log of the queue {path}")]
    Log { path: PathBuf, source: WalError },
}

/// A batch that was durable and cannot be read any more.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableError {
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error("cannot put the batches of a record together: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
}

/// Clones share the queue.
#[derive(Clone)]
pub struct DiskQueue {
    inner: Arc<Inner>,
}

struct Inner {
    wal: Wal,
    shared: Arc<Shared>,
    /// Bytes of undelivered rows at which appends are told to come back.
    bytes_max: u64,
    id: [u8; 16],
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Notify,
}

type Key = (TenantId, String);

#[derive(Default)]
struct State {
    /// With the order in which they came.
    positions: HashMap<Key, (u64, u64)>,
    age: u64,
    batch_ids: HashSet<(TenantId, [u8; 16])>,
    batch_order: VecDeque<(TenantId, [u8; 16])>,
    in_flight: HashSet<(TenantId, [u8; 16])>,
    waiting: BTreeMap<u64, Stored>,
    /// Given out and not delivered yet.
    out: BTreeSet<u64>,
    /// Undelivered bytes.
    bytes: u64,
    last_seq: u64,
    /// What the log says is delivered.
    marked: u64,
}

/// A batch of the queue, still on disk.
#[derive(Clone, Debug)]
pub struct Stored {
    pub seq: u64,
    pub tenant: TenantId,
    /// On disk.
    pub bytes: u64,
    locations: Vec<BatchLocation>,
    queue: [u8; 16],
}

impl Stored {
    /// Names its rows of one signal, the same after any crash.
    pub fn id(&self, signal: u8) -> [u8; 16] {
        let mut text = self.queue.to_vec();
        text.extend_from_slice(&self.seq.to_le_bytes());
        text.push(signal);
        xxhash_rust::xxh3::xxh3_128(&text).to_be_bytes()
    }

    pub fn rows(&self) -> u64 {
        let points = |l: &&BatchLocation| l.meta.table != Table::MetricSeries;
        self.locations.iter().filter(points).map(|l| u64::from(l.meta.rows)).sum()
    }

    /// Its rows, each signal at most once. Blocks on the disk.
    pub fn read(&self) -> Result<Vec<Data>, UnreadableError> {
        let mut tables: BTreeMap<Table, Vec<RecordBatch>> = BTreeMap::new();
        for location in &self.locations {
            tables.entry(location.meta.table).or_default().push(location.read()?);
        }
        let mut whole =
            |table: Table| concat_batches(&schema::input(table), &tables.remove(&table).unwrap_or_default());
        let metrics = MetricBatch {
            series: whole(Table::MetricSeries)?,
            samples: whole(Table::MetricSamples)?,
            histograms: whole(Table::MetricHistograms)?,
            exemplars: whole(Table::MetricExemplars)?,
        };
        let all = [Data::Logs(whole(Table::Logs)?), Data::Spans(whole(Table::Spans)?), Data::Metrics(metrics)];
        Ok(all.into_iter().filter(|d| !d.is_empty()).collect())
    }
}

impl State {
    fn remember(&mut self, tenant: &TenantId, key: String, position: u64) {
        self.age += 1;
        self.positions.insert((tenant.clone(), key), (position, self.age));
        if self.positions.len() > POSITIONS_MAX {
            let mut ages: Vec<u64> = self.positions.values().map(|(_, age)| *age).collect();
            let middle = ages.len() / 2;
            let (_, cut, _) = ages.select_nth_unstable(middle);
            let cut = *cut;
            self.positions.retain(|(_, key), (_, age)| *age >= cut || key == DELIVERED);
        }
    }

    fn remember_batch(&mut self, id: (TenantId, [u8; 16])) {
        if self.batch_ids.insert(id.clone()) {
            self.batch_order.push_back(id);
        }
        while self.batch_order.len() > BATCH_IDS_MAX {
            if let Some(old) = self.batch_order.pop_front() {
                self.batch_ids.remove(&old);
            }
        }
    }

    /// Every record below this is delivered.
    fn delivered_below(&self) -> u64 {
        let waiting = self.waiting.keys().next();
        waiting.into_iter().chain(self.out.first()).min().copied().unwrap_or(self.last_seq + 1)
    }

    fn carry(&self) -> Vec<(TenantId, Vec<Section>)> {
        let mut out: HashMap<TenantId, Vec<Section>> = HashMap::new();
        for ((tenant, key), (position, _)) in &self.positions {
            let section = Section::Position { key: key.clone(), position: *position };
            out.entry(tenant.clone()).or_default().push(section);
        }
        for (tenant, id) in &self.batch_order {
            out.entry(tenant.clone()).or_default().push(Section::BatchId(*id));
        }
        out.into_iter().collect()
    }
}

/// Takes a batch id out of flight when its append ends.
struct Admitted {
    shared: Arc<Shared>,
    id: (TenantId, [u8; 16]),
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.shared.state.lock().in_flight.remove(&self.id);
    }
}

impl DiskQueue {
    /// Opens or makes the queue in `dir`, which no other process may use. Blocks on the disk.
    pub fn open(dir: &Path, bytes_max: u64) -> Result<DiskQueue, DiskQueueError> {
        let id = queue_id(dir).map_err(|source| DiskQueueError::Io { path: dir.to_owned(), source })?;
        let log = |source| DiskQueueError::Log { path: dir.to_owned(), source };
        let shared = Arc::new(Shared::default());
        let options = WalOptions {
            segment_bytes: SEGMENT_BYTES,
            queue_bytes: WRITE_QUEUE_BYTES,
            ..WalOptions::new(Durability::Group, dir.join("quarantine"))
        };
        let recovered = {
            let mut state = shared.state.lock();
            let recovered = wal::replay(Arc::new(OsVfs), &dir.join("log"), options, &mut |r| {
                state.last_seq = state.last_seq.max(r.seq);
                for (key, position) in r.positions {
                    state.remember(&r.tenant, key, position);
                }
                for batch in r.batch_ids {
                    state.remember_batch((r.tenant.clone(), batch));
                }
                if !r.batches.is_empty() {
                    let bytes = r.batches.iter().map(|l| u64::from(l.meta.payload_len)).sum();
                    let (seq, tenant, locations) = (r.seq, r.tenant, r.batches);
                    state.waiting.insert(seq, Stored { seq, tenant, bytes, locations, queue: id });
                }
            })
            .map_err(log)?;
            state.last_seq = state.last_seq.max(recovered.last_seq());
            let mark = (TenantId::default(), DELIVERED.to_owned());
            let marked = state.positions.get(&mark).map_or(0, |(p, _)| *p);
            state.marked = marked;
            state.waiting = state.waiting.split_off(&marked);
            state.bytes = state.waiting.values().map(|s| s.bytes).sum();
            recovered
        };
        let carried = shared.clone();
        let carry = Box::new(move || carried.state.lock().carry());
        let seq_min = shared.state.lock().last_seq + 1;
        let wal = recovered.start(seq_min, carry).map_err(log)?;
        Ok(DiskQueue { inner: Arc::new(Inner { wal, shared, bytes_max, id }) })
    }

    /// The oldest batch that was not given out yet; waits for one. Cancel-safe.
    pub async fn next(&self) -> Stored {
        loop {
            let arrived = self.inner.shared.arrived.notified();
            {
                let mut state = self.inner.shared.state.lock();
                if let Some((seq, stored)) = state.waiting.pop_first() {
                    state.out.insert(seq);
                    return stored;
                }
            }
            arrived.await;
        }
    }

    /// The batch is delivered, or refused for good: it is not wanted any more.
    pub fn done(&self, stored: &Stored) {
        let mut state = self.inner.shared.state.lock();
        if state.out.remove(&stored.seq) {
            state.bytes = state.bytes.saturating_sub(stored.bytes);
        }
    }

    /// Bytes on disk of what is not delivered.
    pub fn bytes(&self) -> u64 {
        self.inner.shared.state.lock().bytes
    }

    /// Makes durable how far delivery has got, and gives back the disk space behind it.
    pub async fn checkpoint(&self) -> Result<(), WalError> {
        let below = {
            let state = self.inner.shared.state.lock();
            let below = state.delivered_below();
            if below <= state.marked {
                return Ok(());
            }
            below
        };
        let shared = self.inner.shared.clone();
        let tenant = TenantId::default();
        let sections = vec![Section::Position { key: DELIVERED.to_owned(), position: below }];
        let publish = Box::new(move |committed: &Committed| {
            let mut state = shared.state.lock();
            state.last_seq = committed.seq;
            state.marked = below;
            state.remember(&TenantId::default(), DELIVERED.to_owned(), below);
        });
        self.inner.wal.append(Entry { tenant, sections, publish }).await?;
        if self.inner.wal.stats().segments > 1 {
            let inner = self.inner.clone();
            let release = tokio::task::spawn_blocking(move || inner.wal.release_below(below));
            release.await.unwrap_or(Ok(0))?;
        }
        Ok(())
    }

    /// Syncs and ends. Later appends are refused.
    pub async fn close(&self) -> Result<(), WalError> {
        self.inner.wal.close().await
    }

    fn admit(&self, tenant: &TenantId, id: [u8; 16]) -> Result<Option<Admitted>, AppendError> {
        let id = (tenant.clone(), id);
        let mut state = self.inner.shared.state.lock();
        if state.batch_ids.contains(&id) {
            return Ok(None);
        }
        if !state.in_flight.insert(id.clone()) {
            return Err(AppendError::Overloaded { retry_after: RETRY_AFTER });
        }
        Ok(Some(Admitted { shared: self.inner.shared.clone(), id }))
    }
}

#[async_trait::async_trait]
impl Destination for DiskQueue {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let Append { tenant, rows, sources, batch_id } = append;
        let rows: Vec<(Table, RecordBatch)> = rows.into_iter().filter(|(_, b)| b.num_rows() > 0).collect();
        let count: usize = rows.iter().map(|(_, b)| b.num_rows()).sum();
        let _admitted = match batch_id.map(|id| self.admit(&tenant, id)).transpose()? {
            Some(None) => return Ok(Appended { duplicate: true, ..Appended::default() }),
            admitted => admitted,
        };
        if count > 0 && self.bytes() >= self.inner.bytes_max {
            return Err(AppendError::Overloaded { retry_after: RETRY_AFTER });
        }
        let encode = move || {
            let encoded = rows.iter().map(|(table, batch)| wal::encode_batch(*table, batch).map(Section::Batch));
            encoded.collect::<Result<Vec<Section>, _>>()
        };
        // Awaited at once, so this future owns it.
        let encoded = tokio::task::spawn_blocking(encode).await.map_err(|e| AppendError::Io(e.to_string()))?;
        let mut sections = encoded.map_err(|e| AppendError::Invalid(e.to_string()))?;
        let positions = sources.iter().map(|s| Section::Position { key: s.key.clone(), position: s.position });
        sections.extend(positions);
        sections.extend(batch_id.map(Section::BatchId));
        let (shared, id) = (self.inner.shared.clone(), self.inner.id);
        let of = tenant.clone();
        let publish = Box::new(move |committed: &Committed| {
            shared.publish(committed, &of, &sources, batch_id, id);
        });
        self.inner.wal.append(Entry { tenant, sections, publish }).await.map_err(refusal)?;
        Ok(Appended { rows: count, ..Appended::default() })
    }
}

impl Shared {
    fn publish(
        &self,
        committed: &Committed,
        tenant: &TenantId,
        sources: &[SourcePosition],
        batch_id: Option<[u8; 16]>,
        queue: [u8; 16],
    ) {
        let mut state = self.state.lock();
        state.last_seq = committed.seq;
        for s in sources {
            state.remember(tenant, s.key.clone(), s.position);
        }
        if let Some(id) = batch_id {
            state.remember_batch((tenant.clone(), id));
        }
        if committed.locations.is_empty() {
            return;
        }
        let bytes: u64 = committed.locations.iter().map(|l| u64::from(l.meta.payload_len)).sum();
        state.bytes += bytes;
        let (seq, locations) = (committed.seq, committed.locations.clone());
        state.waiting.insert(seq, Stored { seq, tenant: tenant.clone(), bytes, locations, queue });
        drop(state);
        self.arrived.notify_one();
    }
}

impl Positions for DiskQueue {
    fn position(&self, tenant: &TenantId, key: &str) -> Option<u64> {
        let state = self.inner.shared.state.lock();
        state.positions.get(&(tenant.clone(), key.to_owned())).map(|(p, _)| *p)
    }
}

fn refusal(e: WalError) -> AppendError {
    match e {
        WalError::NoSpace { .. } => {
            AppendError::DiskFull { used_percent: 100, limit_percent: 100, retry_after: RETRY_AFTER }
        }
        WalError::TooLarge { .. } => AppendError::Invalid(e.to_string()),
        WalError::Closed => AppendError::Closed,
        other => AppendError::Io(other.to_string()),
    }
}

/// The queue's own name, made once: the ids of its batches must not be those of any other queue.
fn queue_id(dir: &Path) -> io::Result<[u8; 16]> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(ID_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let mut id = [0; 16];
            let wrong = |e| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display()));
            hex::decode_to_slice(text.trim(), &mut id).map_err(wrong)?;
            Ok(id)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let id: [u8; 16] = rand::random();
            let new = dir.join("id.new");
            let mut file = std::fs::File::create(&new)?;
            io::Write::write_all(&mut file, hex::encode(id).as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            std::fs::File::open(dir)?.sync_all()?;
            Ok(id)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use storage::model::{LogBatchBuilder, LogRow};

    use super::*;

    fn append(word: &str, position: Option<u64>) -> Append {
        let mut b = LogBatchBuilder::new();
        b.push(&LogRow { ts: 1, stream_labels: "{}", body: word, ..LogRow::default() });
        let sources = position.map(|position| SourcePosition { key: "file".into(), position });
        Append {
            tenant: TenantId::default(),
            rows: vec![(Table::Logs, b.finish())],
            sources: sources.into_iter().collect(),
            batch_id: None,
        }
    }

    fn body(stored: &Stored) -> String {
        let data = stored.read().unwrap();
        let [Data::Logs(b)] = data.as_slice() else { panic!("one batch of logs") };
        let column = b.column_by_name("body").unwrap();
        arrow::array::AsArray::as_string::<i32>(column).value(0).to_owned()
    }

    #[tokio::test]
    async fn what_is_not_delivered_is_there_after_a_restart_under_the_same_id_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let q = DiskQueue::open(dir.path(), 1 << 20).unwrap();
        for (n, word) in ["a", "b", "c"].iter().enumerate() {
            q.append(append(word, Some(n as u64 + 1))).await.unwrap();
        }
        let (a, b) = (q.next().await, q.next().await);
        q.done(&a);
        q.checkpoint().await.unwrap();
        let ids = (b.id(0), b.id(1));
        assert_ne!(ids.0, ids.1);
        // No close: as after a crash.
        drop(q);
        let q = DiskQueue::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(q.position(&TenantId::default(), "file"), Some(3));
        let (b, c) = (q.next().await, q.next().await);
        assert_eq!((body(&b), body(&c), (b.id(0), b.id(1))), ("b".into(), "c".into(), ids));
        q.done(&c);
        q.checkpoint().await.unwrap();
        drop(q);
        // `c` was delivered before `b`: it comes again.
        let q = DiskQueue::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(body(&q.next().await), "b");
        assert_eq!(body(&q.next().await), "c");
        assert!(tokio::time::timeout(Duration::from_millis(20), q.next()).await.is_err());
    }

    #[tokio::test]
    async fn a_batch_id_is_taken_once_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..2 {
            let q = DiskQueue::open(dir.path(), 1 << 20).unwrap();
            let named = || Append { batch_id: Some([9; 16]), ..append("x", None) };
            assert_eq!(q.append(named()).await.unwrap().duplicate, n > 0);
            assert!(q.append(named()).await.unwrap().duplicate);
            q.close().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_rows_and_takes_them_again_once_some_are_delivered() {
        let dir = tempfile::tempdir().unwrap();
        let q = DiskQueue::open(dir.path(), 1).unwrap();
        q.append(append("a", None)).await.unwrap();
        assert!(matches!(q.append(append("b", None)).await, Err(AppendError::Overloaded { .. })));
        let a = q.next().await;
        q.done(&a);
        q.append(append("b", None)).await.unwrap();
    }

    #[tokio::test]
    async fn disk_space_comes_back_and_positions_stay() {
        let dir = tempfile::tempdir().unwrap();
        let q = DiskQueue::open(dir.path(), 1 << 30).unwrap();
        // Lines that do not compress, so that segments fill.
        let noise = |n: u64| {
            let mut text = String::new();
            let mut x = n;
            while text.len() < 2 << 20 {
                x = xxhash_rust::xxh3::xxh3_64(&x.to_le_bytes());
                text.push_str(&format!("{x:016x}"));
            }
            text
        };
        for n in 0..24 {
            q.append(append(&noise(n), Some(n))).await.unwrap();
            let stored = q.next().await;
            q.done(&stored);
        }
        q.checkpoint().await.unwrap();
        let files = std::fs::read_dir(dir.path().join("log")).unwrap().count();
        assert!(files <= 2, "{files} segments are left");
        drop(q);
        let q = DiskQueue::open(dir.path(), 1 << 30).unwrap();
        assert_eq!(q.position(&TenantId::default(), "file"), Some(23));
        assert_eq!(q.bytes(), 0);
    }
}
