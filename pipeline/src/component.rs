//! What a source, a transform and a sink are to the pipeline, and what moves between them.

use std::{sync::Arc, time::Duration};

use arrow::array::RecordBatch;
use storage::{
    ErrorKind,
    model::{MetricBatch, TenantId},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use storage::SourcePosition;

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
}

impl Batch {
    pub fn new(tenant: TenantId, data: Data) -> Self {
        Batch { tenant, data, sources: Vec::new(), batch_id: None }
    }
}

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
    pub ack: oneshot::Sender<Result<(), DeliveryError>>,
    /// Bytes of the queue budget, given back when the envelope is dropped.
    pub permit: Option<tokio::sync::OwnedSemaphorePermit>,
}

/// The fate of a sent batch.
pub struct Delivery(oneshot::Receiver<Result<(), DeliveryError>>);

impl Delivery {
    /// Waits until every sink has the batch, or one refused it for good.
    pub async fn wait(self) -> Result<(), DeliveryError> {
        self.0.await.unwrap_or(Err(DeliveryError::Stopping))
    }
}

/// Where a source puts its batches. Clones share the queue and its budget.
#[derive(Clone)]
pub struct Output {
    queue: mpsc::Sender<Envelope>,
    budget: Arc<tokio::sync::Semaphore>,
    budget_bytes: usize,
}

/// Unit of the byte budget, so that it fits a semaphore's 32-bit permits.
const BUDGET_UNIT: usize = 1024;

impl Output {
    /// A queue of at most `batches` envelopes and `bytes` bytes.
    pub fn bounded(batches: usize, bytes: usize) -> (Output, mpsc::Receiver<Envelope>) {
        let (queue, receiver) = mpsc::channel(batches);
        let units = (bytes / BUDGET_UNIT).clamp(1, u32::MAX as usize >> 4);
        let budget = Arc::new(tokio::sync::Semaphore::new(units));
        (Output { queue, budget, budget_bytes: units * BUDGET_UNIT }, receiver)
    }

    /// Waits for room in the queue, then hands the batch over. The [`Delivery`] tells its fate.
    pub async fn send(&self, batch: Batch) -> Result<Delivery, DeliveryError> {
        // A batch larger than the whole budget takes all of it: it passes alone rather than never.
        let bytes = batch.data.bytes().min(self.budget_bytes);
        let units = u32::try_from((bytes / BUDGET_UNIT).max(1)).unwrap_or(u32::MAX);
        let permit = self.budget.clone().acquire_many_owned(units).await.map_err(|_| DeliveryError::Stopping)?;
        let (ack, fate) = oneshot::channel();
        self.queue.send(Envelope { batch, ack, permit: Some(permit) }).await.map_err(|_| DeliveryError::Stopping)?;
        Ok(Delivery(fate))
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
}
