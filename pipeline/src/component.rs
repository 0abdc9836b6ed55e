//! What a source, a transform and a sink are to the pipeline, and what moves between them.

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{Int64Type, TimestampNanosecondType},
};
use parking_lot::Mutex;
use storage::{
    ErrorKind, Refused, Repeats,
    model::{MetricBatch, Table, TenantId, schema, time::NANOS_PER_MILLI},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use storage::SourcePosition;

use crate::{
    buffer::{Ack, Budget, Feed, Intake, Permit},
    metrics::{Counters, DropReason},
    topology::DeadLetters,
};

/// Which kinds of rows a component emits or works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    pub logs: bool,
    pub metrics: bool,
    pub traces: bool,
}

impl Signals {
    pub const NONE: Signals = Signals { logs: false, metrics: false, traces: false };
    pub const ALL: Signals = Signals { logs: true, metrics: true, traces: true };
    pub const LOGS: Signals = Signals { logs: true, ..Signals::NONE };
    pub const METRICS: Signals = Signals { metrics: true, ..Signals::NONE };
    pub const TRACES: Signals = Signals { traces: true, ..Signals::NONE };

    pub const fn and(self, other: Signals) -> Signals {
        Signals {
            logs: self.logs && other.logs,
            metrics: self.metrics && other.metrics,
            traces: self.traces && other.traces,
        }
    }

    pub const fn or(self, other: Signals) -> Signals {
        Signals {
            logs: self.logs || other.logs,
            metrics: self.metrics || other.metrics,
            traces: self.traces || other.traces,
        }
    }

    /// Those that are not in `other`.
    pub const fn without(self, other: Signals) -> Signals {
        Signals {
            logs: self.logs && !other.logs,
            metrics: self.metrics && !other.metrics,
            traces: self.traces && !other.traces,
        }
    }

    pub const fn is_none(self) -> bool {
        !(self.logs || self.metrics || self.traces)
    }

    pub const fn has(self, data: &Data) -> bool {
        match data {
            Data::Logs(_) => self.logs,
            Data::Metrics(_) => self.metrics,
            Data::Spans(_) => self.traces,
        }
    }
}

/// `logs and traces`.
impl std::fmt::Display for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = [(self.logs, "logs"), (self.metrics, "metrics"), (self.traces, "traces")]
            .into_iter()
            .filter_map(|(on, name)| on.then_some(name))
            .collect();
        f.write_str(&if names.is_empty() { "nothing".to_owned() } else { names.join(" and ") })
    }
}

/// The rows of a batch: one signal each.
#[derive(Clone, Debug)]
pub enum Data {
    /// Input schema of the table `logs`.
    Logs(RecordBatch),
    /// Input schema of the table `spans`.
    Spans(RecordBatch),
    Metrics(MetricBatch),
}

impl Data {
    /// Log records, spans or points.
    pub fn rows(&self) -> usize {
        match self {
            Data::Logs(b) | Data::Spans(b) => b.num_rows(),
            Data::Metrics(m) => m.points() + m.exemplars.num_rows(),
        }
    }

    /// Nothing in it that a sink could write, series without points included.
    pub fn is_empty(&self) -> bool {
        match self {
            Data::Logs(b) | Data::Spans(b) => b.num_rows() == 0,
            Data::Metrics(m) => self.rows() == 0 && m.series.num_rows() == 0,
        }
    }

    /// No rows. What carries positions when there are no rows for them.
    pub fn empty() -> Self {
        Data::Logs(RecordBatch::new_empty(schema::input(Table::Logs)))
    }

    /// Event time of the last row: a constant-time stand-in for the newest one.
    pub fn last_event_ns(&self) -> Option<i64> {
        let last = |batch: &RecordBatch, column: &str| {
            let array = batch.column_by_name(column)?;
            let at = array.len().checked_sub(1)?;
            Some(match column {
                "ts" => array.as_primitive_opt::<TimestampNanosecondType>()?.value(at),
                _ => array.as_primitive_opt::<Int64Type>()?.value(at).saturating_mul(NANOS_PER_MILLI),
            })
        };
        match self {
            Data::Logs(b) | Data::Spans(b) => last(b, "ts"),
            Data::Metrics(m) => last(&m.samples, "ts_ms").or_else(|| last(&m.histograms, "ts_ms")),
        }
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Data::Logs(b) | Data::Spans(b) => b.get_array_memory_size(),
            Data::Metrics(m) => {
                [&m.series, &m.samples, &m.histograms, &m.exemplars].iter().map(|b| b.get_array_memory_size()).sum()
            }
        }
    }
}

/// What moves through the pipeline.
#[derive(Clone, Debug)]
pub struct Batch {
    pub tenant: TenantId,
    pub data: Data,
    /// Positions of the source that this batch completes; made durable together with the rows.
    pub sources: Vec<SourcePosition>,
    /// Chosen by a sender that retries: a batch id is stored once.
    pub batch_id: Option<[u8; 16]>,
    /// Where a store tells what it left out of it. Shared by all branches; behind a disk buffer nobody hears it any more.
    pub refusals: Arc<Refusals>,
    /// What becomes of points at a time that has another value. Behind a disk buffer the later wins.
    pub repeats: Repeats,
}

impl Batch {
    pub fn new(tenant: TenantId, data: Data) -> Self {
        Batch {
            tenant,
            data,
            sources: Vec::new(),
            batch_id: None,
            refusals: Arc::default(),
            repeats: Repeats::default(),
        }
    }
}

/// Points that a store left out of a batch that it took: those of series beyond the limits of their tenant, and those at a time
/// that has another value.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Option<Refused>>);

impl Refusals {
    pub fn tell(&self, refused: &Refused) {
        self.0.lock().get_or_insert_with(Refused::default).join(refused.clone());
    }

    /// Told before the batch is acknowledged.
    pub fn take(&self) -> Option<Refused> {
        self.0.lock().take()
    }

    /// Rows over a limit, and those at a time that has another value.
    pub(crate) fn rows(&self) -> (u64, u64) {
        self.0.lock().as_ref().map_or((0, 0), |r| (r.over_limit() as u64, r.repeated as u64))
    }
}

/// `retry_after` of a batch whose points came without the labels of a series that the store does not know: it is to be sent
/// again at once, with the labels of all its series.
pub const LABELS_WANTED: Duration = Duration::ZERO;

/// Why a batch was not delivered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeliveryError {
    /// Try again later; nothing is wrong with the batch.
    #[error("{reason}")]
    Unavailable { reason: String, retry_after: Duration },
    /// The batch itself is refused; retrying is useless.
    #[error("{0}")]
    Rejected(String),
    #[error("the pipeline is stopping")]
    Stopping,
}

impl DeliveryError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            DeliveryError::Unavailable { .. } | DeliveryError::Stopping => ErrorKind::Overloaded,
            DeliveryError::Rejected(_) => ErrorKind::Invalid,
        }
    }
}

/// A batch on its way, with the line back to its source.
pub struct Envelope {
    pub batch: Batch,
    pub ack: Ack,
    /// Bytes of the budget, given back when the last part of the batch is dropped.
    pub permit: Option<Arc<Permit>>,
    /// The batch came with positions: a sink that cannot take it now tries again in place, because a later position
    /// must not become durable before these rows. Other batches are answered [`DeliveryError::Unavailable`].
    pub ordered: bool,
    /// [`Data::bytes`] when it entered the pipeline or was last transformed.
    pub bytes: usize,
}

/// The fate of a sent batch.
pub struct Delivery(oneshot::Receiver<Result<(), DeliveryError>>);

impl Delivery {
    pub(crate) fn new(fate: oneshot::Receiver<Result<(), DeliveryError>>) -> Self {
        Delivery(fate)
    }

    /// Waits until every sink has the batch, or one refused it for good.
    pub async fn wait(self) -> Result<(), DeliveryError> {
        self.0.await.unwrap_or(Err(DeliveryError::Stopping))
    }
}

/// Where a source puts its batches. Clones share the queue and its budget.
#[derive(Clone)]
pub struct Output {
    feed: Feed,
    budget: Budget,
    source: Option<Arc<Counters>>,
    is_straight: bool,
}

impl Output {
    /// A queue of at most `batches` envelopes and `bytes` bytes, outside of any topology (for tests of sources).
    pub fn bounded(batches: usize, bytes: usize) -> (Output, mpsc::Receiver<Envelope>) {
        let (queue, receiver) = mpsc::channel(batches);
        let feed = Feed::bare(queue);
        (Output { feed, budget: Budget::new(bytes), source: None, is_straight: false }, receiver)
    }

    pub(crate) fn new(feed: Feed, budget: Budget, source: Arc<Counters>) -> Self {
        Output { feed, budget, source: Some(source), is_straight: false }
    }

    /// The same, known to lead to the local store and nowhere else.
    pub fn straight_to_store(self) -> Self {
        Output { is_straight: true, ..self }
    }

    /// Whether batches go to the local store and nobody else sees them: then points may come without the labels of series
    /// that the store knows. Those it does not know it answers [`LABELS_WANTED`].
    pub fn is_straight_to_store(&self) -> bool {
        self.is_straight
    }

    /// Waits for room in the queue, then hands the batch over. The [`Delivery`] tells its fate.
    pub async fn send(&self, batch: Batch) -> Result<Delivery, DeliveryError> {
        let bytes = batch.data.bytes();
        let permit = self.budget.take(bytes).await?;
        let (ack, fate) = match &self.source {
            Some(source) => {
                source.emitted(&batch.data, bytes);
                Ack::metered(source.clone(), batch.data.rows() as u64, batch.refusals.clone())
            }
            None => Ack::new(),
        };
        let ordered = !batch.sources.is_empty();
        let envelope = Envelope { batch, ack, permit: Some(Arc::new(permit)), ordered, bytes };
        match self.feed.push(envelope).await {
            Ok(()) => Ok(Delivery(fate)),
            Err(refused) => {
                refused.ack.answer(Err(DeliveryError::Stopping));
                Err(DeliveryError::Stopping)
            }
        }
    }

    /// Sends and waits for the ack: what a push protocol does before it answers 2xx.
    pub async fn deliver(&self, batch: Batch) -> Result<(), DeliveryError> {
        self.send(batch).await?.wait().await
    }
}

/// Where a source asks how far it had got, at start.
pub trait Positions: Send + Sync {
    fn position(&self, tenant: &TenantId, key: &str) -> Option<u64>;
}

impl Positions for storage::Store {
    fn position(&self, tenant: &TenantId, key: &str) -> Option<u64> {
        storage::Store::position(self, tenant, key)
    }
}

/// What a running source has.
#[derive(Clone)]
pub struct SourceContext {
    /// The component's name in the configuration.
    pub name: String,
    pub out: Output,
    /// Cancelled when the source shall stop reading, wait for its acks and return.
    pub stop: CancellationToken,
    pub positions: Arc<dyn Positions>,
}

#[derive(Debug, thiserror::Error)]
#[error("source {name}: {reason}")]
pub struct SourceError {
    pub name: String,
    pub reason: String,
}

/// Something that reads the world and sends batches until told to stop.
#[async_trait::async_trait]
pub trait Source: Send {
    async fn run(self: Box<Self>, ctx: SourceContext) -> Result<(), SourceError>;

    /// What it may emit; the graph check tells when nothing downstream can use it.
    fn signals(&self) -> Signals {
        Signals::ALL
    }
}

/// Why a transform could not work on a batch at all. The batch is refused.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct TransformError(pub String);

impl From<arrow::error::ArrowError> for TransformError {
    fn from(e: arrow::error::ArrowError) -> Self {
        TransformError(e.to_string())
    }
}

/// Told whether the batch it was given for reached its sinks.
pub type Settle = Box<dyn FnOnce(bool) + Send>;

/// Turns one batch into one batch, perhaps an empty one. It never holds rows back, so the positions and the batch id
/// simply stay with the rows. One that has [`Transform::outputs`] gives each row to one of them instead.
pub trait Transform: Send + Sync {
    /// What it works on; other batches pass by untouched.
    fn signals(&self) -> Signals;

    /// Whether it is fine that signals it does not work on come to it, and pass. Else the graph check refuses them.
    fn passes_others(&self) -> bool {
        true
    }

    /// Called off the async threads for all but small batches. Rows it takes out are counted in `counters`.
    fn apply(&self, data: Data, counters: &Counters) -> Result<Data, TransformError>;

    /// As [`Transform::apply`], for one that remembers rows: what it remembers of this batch counts only once the
    /// batch was delivered, because a sender that is told to come back sends the same rows again.
    fn apply_tracked(&self, data: Data, counters: &Counters) -> Result<(Data, Option<Settle>), TransformError> {
        self.apply(data, counters).map(|d| (d, None))
    }

    /// As [`Transform::apply_tracked`]; rows that it cannot read are apart instead of going on as they were.
    fn apply_apart(&self, data: Data, counters: &Counters) -> Result<Apart, TransformError> {
        self.apply_tracked(data, counters).map(|(data, settle)| Apart { data, unread: None, settle })
    }

    /// Short names of its outputs, each with the signals it may give, when it has more than the one that bears its own
    /// name: other components name them `NAME.output`.
    fn outputs(&self) -> Vec<(String, Signals)> {
        Vec::new()
    }

    /// The rows of each of its [`Transform::outputs`], in their order.
    fn split(&self, data: Data, counters: &Counters) -> Result<Vec<Data>, TransformError> {
        self.apply(data, counters).map(|d| vec![d])
    }

    /// As [`Transform::split`], for one that remembers rows: see [`Transform::apply_tracked`].
    fn split_tracked(&self, data: Data, counters: &Counters) -> Result<(Vec<Data>, Option<Settle>), TransformError> {
        self.split(data, counters).map(|parts| (parts, None))
    }
}

/// What a transform made of a batch.
pub struct Apart {
    pub data: Data,
    /// Rows that it could not read, and why.
    pub unread: Option<(Data, String)>,
    pub settle: Option<Settle>,
}

/// What a running sink has.
pub struct SinkContext {
    pub name: String,
    pub intake: Intake,
    pub counters: Arc<Counters>,
    /// Where what is refused for good goes, if somebody takes it.
    pub dead_letters: Option<DeadLetters>,
}

impl SinkContext {
    /// Answers a batch and counts its rows.
    pub fn answer(counters: &Counters, envelope: Envelope, fate: Result<(), DeliveryError>) {
        Self::settle(counters, envelope.batch.data.rows() as u64, envelope.ack, fate);
    }

    /// As [`SinkContext::answer`], for a batch whose rows were given away.
    pub fn settle(counters: &Counters, rows: u64, ack: Ack, fate: Result<(), DeliveryError>) {
        match &fate {
            Ok(()) => counters.delivered(rows),
            Err(DeliveryError::Rejected(_)) => counters.dropped(DropReason::Refused, rows),
            Err(_) => counters.dropped(DropReason::Returned, rows),
        }
        ack.answer(fate);
    }
}

#[derive(Debug, thiserror::Error)]
#[error("sink {name}: {reason}")]
pub struct SinkError {
    pub name: String,
    pub reason: String,
}

/// Where batches leave the pipeline. It takes from its intake until that ends, answers every batch, and returns when all
/// is written. A batch that is `ordered` it never answers [`DeliveryError::Unavailable`]: it tries again instead.
#[async_trait::async_trait]
pub trait Sink: Send {
    async fn run(self: Box<Self>, ctx: SinkContext) -> Result<(), SinkError>;

    /// Whether it writes the positions of sources behind the rows it delivered.
    fn keeps_positions(&self) -> bool {
        false
    }

    fn signals(&self) -> Signals {
        Signals::ALL
    }

    /// Whether it hands over what is refused for good, when somebody takes `NAME.dead_letter`.
    fn gives_dead_letters(&self) -> bool {
        false
    }
}
