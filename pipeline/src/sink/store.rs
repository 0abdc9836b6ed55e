//! The local store. Many appends are in flight at once, for the store's group commit; batches with positions wait for
//! those before them that move the same position, and are then written together.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use arrow::array::RecordBatch;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use serde::Deserialize;
use storage::{
    Append, AppendError, Appended, Repeats, SourcePosition,
    model::{Table, TenantId},
};

use crate::{
    buffer::{Ack, Permit},
    component::{Batch, Data, DeliveryError, Envelope, LABELS_WANTED, Refusals, Sink, SinkContext, SinkError},
    metrics::{Counters, DropReason, Fault},
};

/// Appends in flight.
const APPENDS_MAX: usize = 256;
/// Batches that wait for an earlier one of their position.
const WAITING_MAX: usize = 256;
/// Batches with positions that one append takes together.
const JOINED_BATCHES_MAX: usize = 64;
const JOINED_BYTES_MAX: usize = 4 << 20;
/// Pause before a failed append of an ordered batch is tried again.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(10);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// What a sender is told when the store cannot say itself.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Absent: all outputs that nobody else takes.
    #[serde(default)]
    pub inputs: Option<Vec<String>>,
}

/// What takes appends: the store, or a test's stand-in.
#[async_trait::async_trait]
pub trait Destination: Send + Sync {
    async fn append(&self, append: Append) -> Result<Appended, AppendError>;

    /// As [`Destination::append`]; `repeats`: what becomes of points at a time that has another value, where that can be known.
    async fn append_with(&self, append: Append, repeats: Repeats) -> Result<Appended, AppendError> {
        let _ = repeats;
        self.append(append).await
    }
}

#[async_trait::async_trait]
impl Destination for storage::Store {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        storage::Store::append(self, append).await
    }

    async fn append_with(&self, append: Append, repeats: Repeats) -> Result<Appended, AppendError> {
        storage::Store::append_with(self, append, repeats).await
    }
}

pub struct StoreSink {
    destination: Arc<dyn Destination>,
}

impl StoreSink {
    pub fn new(destination: Arc<dyn Destination>) -> Self {
        StoreSink { destination }
    }
}

type Key = (TenantId, String);

/// An append that ended, and whom to tell what.
struct Written {
    pieces: Vec<Piece>,
    keys: Vec<Key>,
}

/// A batch of an append.
struct Piece {
    ack: Ack,
    rows: u64,
    refusals: Arc<Refusals>,
    fate: Result<LeftOut, DeliveryError>,
}

/// How an append is brought into the store.
#[derive(Clone, Copy)]
enum How {
    /// Until it is there: what comes behind it moves the same positions.
    InOrder,
    Once(Repeats),
}

/// Rows that were left out of what was taken.
#[derive(Clone, Copy, Default)]
struct LeftOut {
    over_limit: u64,
    repeated: u64,
}

#[async_trait::async_trait]
impl Sink for StoreSink {
    fn keeps_positions(&self) -> bool {
        true
    }

    async fn run(self: Box<Self>, ctx: SinkContext) -> Result<(), SinkError> {
        let SinkContext { mut intake, counters, .. } = ctx;
        let mut appends: FuturesUnordered<BoxFuture<'static, Written>> = FuturesUnordered::new();
        let mut lanes = Lanes::default();
        let mut open = true;
        while open || !appends.is_empty() || !lanes.waiting.is_empty() {
            tokio::select! {
                biased;
                Some(written) = appends.next(), if !appends.is_empty() => {
                    for key in &written.keys {
                        lanes.busy.remove(key);
                    }
                    for Piece { ack, rows, fate, .. } in written.pieces {
                        let out = fate.as_ref().map_or(LeftOut::default(), |out| *out);
                        let over_limit = out.over_limit.min(rows);
                        let repeated = out.repeated.min(rows - over_limit);
                        counters.dropped(DropReason::OverLimit, over_limit);
                        counters.dropped(DropReason::DuplicateTimestamp, repeated);
                        SinkContext::settle(&counters, rows - over_limit - repeated, ack, fate.map(drop));
                    }
                }
                next = intake.next(), if open && appends.len() < APPENDS_MAX && lanes.waiting.len() < WAITING_MAX => {
                    match next {
                        None => open = false,
                        Some(e) if e.batch.sources.is_empty() => {
                            appends.push(self.start(vec![e], Vec::new(), counters.clone()));
                            continue;
                        }
                        Some(e) => lanes.waiting.push_back(e),
                    }
                }
            }
            while appends.len() < APPENDS_MAX
                && let Some((joined, keys)) = lanes.next()
            {
                appends.push(self.start(joined, keys, counters.clone()));
            }
        }
        Ok(())
    }
}

impl StoreSink {
    fn start(&self, joined: Vec<Envelope>, keys: Vec<Key>, counters: Arc<Counters>) -> BoxFuture<'static, Written> {
        let destination = self.destination.clone();
        Box::pin(async move {
            let mut pieces = Vec::with_capacity(joined.len());
            // Held to the ack: the bytes are in flight.
            let mut permits: Vec<Option<Arc<Permit>>> = Vec::with_capacity(joined.len());
            let mut appends = Vec::with_capacity(joined.len());
            let how = match joined.iter().any(|e| e.ordered) {
                true => How::InOrder,
                false => How::Once(joined[0].batch.repeats),
            };
            for e in joined {
                let (rows, refusals) = (e.batch.data.rows() as u64, e.batch.refusals.clone());
                pieces.push(Piece { ack: e.ack, rows, refusals, fate: Ok(LeftOut::default()) });
                permits.push(e.permit);
                appends.push(to_append(e.batch));
            }
            if let [_] = appends.as_slice() {
                if let Some(only) = appends.pop() {
                    pieces[0].fate = write(&*destination, only, how, &counters, &pieces[0].refusals).await;
                }
            } else {
                // What is left out of the whole is told of the first: joined are batches with positions, which are logs.
                let fate = write(&*destination, join(&appends), how, &counters, &pieces[0].refusals).await;
                let refused = matches!(fate, Err(DeliveryError::Rejected(_)));
                for (i, (piece, append)) in pieces.iter_mut().zip(appends).enumerate() {
                    // One bad batch must not take its neighbours with it.
                    piece.fate = match refused {
                        true => write(&*destination, append, how, &counters, &piece.refusals).await,
                        false => fate.clone().map(|out| if i == 0 { out } else { LeftOut::default() }),
                    };
                }
            }
            drop(permits);
            Written { pieces, keys }
        })
    }
}

/// A batch as the store takes it.
pub fn to_append(batch: Batch) -> Append {
    let mut rows = Vec::new();
    push_rows(&mut rows, batch.data);
    Append { tenant: batch.tenant, rows, sources: batch.sources, batch_id: batch.batch_id }
}

/// Pieces of one tenant without batch ids, in order, as one append.
fn join(pieces: &[Append]) -> Append {
    let mut whole =
        Append { tenant: pieces[0].tenant.clone(), rows: Vec::new(), sources: Vec::new(), batch_id: None };
    for piece in pieces {
        whole.rows.extend(piece.rows.iter().cloned());
        for s in &piece.sources {
            advance(&mut whole.sources, s.clone());
        }
    }
    whole
}

async fn write(
    destination: &dyn Destination,
    append: Append,
    how: How,
    counters: &Counters,
    refusals: &Refusals,
) -> Result<LeftOut, DeliveryError> {
    if append.rows.is_empty() && append.sources.is_empty() {
        return Ok(LeftOut::default());
    }
    let taken = match how {
        How::InOrder => persist(destination, append, counters).await?,
        How::Once(repeats) => destination.append_with(append, repeats).await.map_err(refusal)?,
    };
    let Some(refused) = &taken.refused else { return Ok(LeftOut::default()) };
    refusals.tell(refused);
    Ok(LeftOut { over_limit: refused.over_limit() as u64, repeated: refused.repeated as u64 })
}

/// Later positions of a key replace earlier ones.
pub(super) fn advance(sources: &mut Vec<SourcePosition>, next: SourcePosition) {
    match sources.iter_mut().find(|s| s.key == next.key) {
        Some(s) => s.position = next.position,
        None => sources.push(next),
    }
}

fn push_rows(rows: &mut Vec<(Table, RecordBatch)>, data: Data) {
    let has_points = data.rows() > 0;
    let parts = match data {
        Data::Logs(b) => vec![(Table::Logs, b)],
        Data::Spans(b) => vec![(Table::Spans, b)],
        Data::Metrics(m) => vec![
            (Table::MetricSeries, m.series),
            (Table::MetricSamples, m.samples),
            (Table::MetricHistograms, m.histograms),
            (Table::MetricExemplars, m.exemplars),
        ],
    };
    // Without labels too, by which the store knows that it is to look whether it knows the series.
    let wanted = |table: Table, rows: usize| rows > 0 || table == Table::MetricSeries && has_points;
    rows.extend(parts.into_iter().filter(|(table, b)| wanted(*table, b.num_rows())));
}

/// Appends until the store takes or refuses it for good: a later position must not overtake these rows.
pub(super) async fn persist(
    destination: &dyn Destination,
    append: Append,
    counters: &Counters,
) -> Result<Appended, DeliveryError> {
    let mut pause = RETRY_PAUSE_MIN;
    loop {
        let error = match destination.append(append.clone()).await {
            Ok(appended) => return Ok(appended),
            // Nobody holds back labels of what comes with a position, and the same again would end the same.
            Err(e @ AppendError::UnknownSeries { .. }) => return Err(DeliveryError::Rejected(e.to_string())),
            Err(e) => e,
        };
        match refusal(error) {
            DeliveryError::Unavailable { reason, retry_after } => {
                counters.fault(Fault::Retry, 1);
                let wait = pause.max(retry_after).min(RETRY_PAUSE_MAX);
                tracing::warn!(sink = %counters.name(), %reason, ?wait, "the store does not take writes, trying again");
                tokio::time::sleep(wait).await;
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
            }
            other => return Err(other),
        }
    }
}

fn refusal(error: AppendError) -> DeliveryError {
    let reason = error.to_string();
    match error {
        AppendError::Overloaded { retry_after } | AppendError::DiskFull { retry_after, .. } => {
            DeliveryError::Unavailable { reason, retry_after }
        }
        AppendError::Io(_) => DeliveryError::Unavailable { reason, retry_after: RETRY_AFTER },
        AppendError::UnknownSeries { .. } => DeliveryError::Unavailable { reason, retry_after: LABELS_WANTED },
        AppendError::Invalid(_) => DeliveryError::Rejected(reason),
        AppendError::Closed => DeliveryError::Stopping,
    }
}

/// Batches with positions: one append at a time for each key, in the order they came.
#[derive(Default)]
struct Lanes {
    waiting: VecDeque<Envelope>,
    busy: HashSet<Key>,
}

impl Lanes {
    /// The first batch none of whose keys is busy or waited for, with the following ones that may share its append.
    fn next(&mut self) -> Option<(Vec<Envelope>, Vec<Key>)> {
        let mut blocked: HashSet<Key> = HashSet::new();
        let mut at = 0;
        let first = loop {
            let e = self.waiting.get(at)?;
            let keys = keys_of(e);
            if keys.iter().any(|k| self.busy.contains(k) || blocked.contains(k)) {
                blocked.extend(keys);
                at += 1;
                continue;
            }
            break self.waiting.remove(at)?;
        };
        let mut keys: HashSet<Key> = keys_of(&first).into_iter().collect();
        let mut bytes = first.bytes;
        let mut joined = vec![first];
        while joined[0].batch.batch_id.is_none() && joined.len() < JOINED_BATCHES_MAX {
            let Some(e) = self.waiting.get(at) else { break };
            let own = keys_of(e);
            let fits = e.batch.batch_id.is_none()
                && e.batch.tenant == joined[0].batch.tenant
                && bytes + e.bytes <= JOINED_BYTES_MAX
                && !own.iter().any(|k| self.busy.contains(k) || blocked.contains(k));
            if !fits {
                blocked.extend(own);
                at += 1;
                continue;
            }
            bytes += e.bytes;
            keys.extend(own);
            joined.extend(self.waiting.remove(at));
        }
        let keys: Vec<Key> = keys.into_iter().collect();
        self.busy.extend(keys.iter().cloned());
        Some((joined, keys))
    }
}

fn keys_of(e: &Envelope) -> Vec<Key> {
    e.batch.sources.iter().map(|s| (e.batch.tenant.clone(), s.key.clone())).collect()
}
