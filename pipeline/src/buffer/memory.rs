//! The bounded queue in front of each component.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{component::Envelope, metrics::Counters};

/// Where batches are put. Clones share the queue.
#[derive(Clone)]
pub struct Feed {
    queue: mpsc::Sender<Envelope>,
    /// Of the component behind the queue.
    counters: Option<Arc<Counters>>,
}

/// Where a component takes its batches from.
pub struct Intake {
    queue: mpsc::Receiver<Envelope>,
    counters: Option<Arc<Counters>>,
    close: CancellationToken,
    closing: bool,
}

/// A queue of at most `batches`. When `close` is cancelled it takes nothing new and the intake ends with what is queued.
pub fn queue(batches: usize, counters: Option<Arc<Counters>>, close: CancellationToken) -> (Feed, Intake) {
    let (sender, receiver) = mpsc::channel(batches);
    (Feed { queue: sender, counters: counters.clone() }, Intake { queue: receiver, counters, close, closing: false })
}

impl Feed {
    pub(crate) fn bare(queue: mpsc::Sender<Envelope>) -> Self {
        Feed { queue, counters: None }
    }

    /// Waits for room. Gives the envelope back when the component behind the queue takes no more.
    pub async fn push(&self, envelope: Envelope) -> Result<(), Envelope> {
        match self.queue.reserve().await {
            Err(_) => Err(envelope),
            Ok(slot) => {
                if let Some(c) = &self.counters {
                    c.queued(envelope.bytes);
                }
                slot.send(envelope);
                Ok(())
            }
        }
    }
}

impl Intake {
    /// The next batch; `None` when the queue is closed and empty. Cancel-safe.
    pub async fn next(&mut self) -> Option<Envelope> {
        let envelope = if self.closing {
            self.queue.recv().await
        } else {
            tokio::select! {
                biased;
                envelope = self.queue.recv() => envelope,
                () = self.close.cancelled() => {
                    self.queue.close();
                    self.closing = true;
                    self.queue.recv().await
                }
            }
        };
        if let (Some(e), Some(c)) = (&envelope, &self.counters) {
            c.unqueued(e.bytes);
            c.received(&e.batch.data, e.bytes);
        }
        envelope
    }
}
