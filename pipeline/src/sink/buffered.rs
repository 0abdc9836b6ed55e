//! A sink behind a queue on disk: a batch is acknowledged when it is durable here, and shipped from there.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;

use super::{
    remote::{RemoteSink, Signal, stats::RemoteStats},
    store::StoreSink,
};
use crate::{
    buffer::{
        Ack, Feed,
        disk::{DiskQueue, Stored},
        memory,
    },
    component::{Batch, Delivery, DeliveryError, Envelope, Signals, Sink, SinkContext, SinkError},
    metrics::{ComponentKind, Counters, DropReason, Fault},
};

/// Records that are read from disk and on their way.
const RECORDS_MAX: usize = 16;
/// Bytes on disk of those; what they take in memory is a few times that.
const RECORD_BYTES_MAX: u64 = 4 << 20;
/// How often the log is told how far delivery has got.
const CHECKPOINT: Duration = Duration::from_millis(250);
/// What is on its way at a stop gets so long; the rest goes after the next start.
const DRAIN: Duration = Duration::from_secs(1);

pub struct BufferedSink {
    queue: DiskQueue,
    remote: RemoteSink,
}

impl BufferedSink {
    pub fn new(queue: DiskQueue, remote: RemoteSink) -> Self {
        BufferedSink { queue, remote }
    }
}

#[async_trait::async_trait]
impl Sink for BufferedSink {
    fn signals(&self) -> Signals {
        self.remote.signals()
    }

    fn keeps_positions(&self) -> bool {
        true
    }

    fn gives_dead_letters(&self) -> bool {
        true
    }

    async fn run(self: Box<Self>, ctx: SinkContext) -> Result<(), SinkError> {
        let SinkContext { name, intake, counters, dead_letters } = ctx;
        let BufferedSink { queue, remote } = *self;
        let stats = remote.stats();
        let stop = CancellationToken::new();
        // Three signals a record at most: a push never waits.
        let (feed, shipping) = memory::queue(RECORDS_MAX * 3, None, CancellationToken::new());
        // Rows count as delivered when they are there, not when they are on our disk.
        let own = Counters::new(name.clone(), ComponentKind::Sink);
        let taking = SinkContext { name: name.clone(), intake, counters: own, dead_letters: None };
        let taking = Box::new(StoreSink::new(Arc::new(queue.clone()))).run(taking);
        let context = SinkContext { name, intake: shipping, counters: counters.clone(), dead_letters };
        let shipped = Box::new(remote).run(context);
        let taken = async {
            let take = async {
                let taken = taking.await;
                stop.cancel();
                taken
            };
            tokio::join!(take, feed_from(&queue, feed, &stop, &counters, &stats)).0
        };
        tokio::select! {
            // What the remote still holds then is in the queue too.
            taken = taken => taken,
            shipped = shipped => shipped,
        }
    }
}

type Shipped = (Stored, bool);

/// Gives the queue's batches to the remote in their order, until `stop`.
async fn feed_from(
    queue: &DiskQueue,
    feed: Feed,
    stop: &CancellationToken,
    counters: &Counters,
    stats: &RemoteStats,
) {
    let mut fates: FuturesUnordered<futures::future::BoxFuture<'static, Shipped>> = FuturesUnordered::new();
    let mut bytes = 0;
    let mut tick = tokio::time::interval(CHECKPOINT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some((stored, settled)) = fates.next(), if !fates.is_empty() => {
                bytes -= stored.bytes;
                if settled {
                    queue.done(&stored);
                }
            }
            _ = tick.tick() => {
                stats.queues(queue.bytes());
                if let Err(e) = queue.checkpoint().await {
                    tracing::warn!(sink = %counters.name(), error = %e, "cannot note how far delivery has got");
                }
            }
            stored = queue.next(), if fates.len() < RECORDS_MAX && (bytes < RECORD_BYTES_MAX || fates.is_empty()) => {
                bytes += stored.bytes;
                let shipped = ship(stored, &feed, counters).await;
                fates.push(shipped);
            }
        }
    }
    let drain = async {
        while let Some((stored, settled)) = fates.next().await {
            if settled {
                queue.done(&stored);
            }
        }
    };
    // What is late goes again after the next start, under the same ids.
    let _ = tokio::time::timeout(DRAIN, drain).await;
    if let Err(e) = queue.checkpoint().await {
        tracing::warn!(sink = %counters.name(), error = %e, "cannot note how far delivery has got");
    }
}

async fn ship(stored: Stored, feed: &Feed, counters: &Counters) -> futures::future::BoxFuture<'static, Shipped> {
    let reading = stored.clone();
    let read = tokio::task::spawn_blocking(move || reading.read()).await;
    let data = match read {
        Ok(Ok(data)) => data,
        Ok(Err(e)) => {
            let rows = stored.rows();
            tracing::error!(sink = %counters.name(), rows, error = %e, "a batch of the queue cannot be read; its rows are lost");
            counters.fault(Fault::Failure, 1);
            counters.dropped(DropReason::Refused, rows);
            return Box::pin(async move { (stored, true) });
        }
        Err(e) => {
            tracing::error!(sink = %counters.name(), error = %e, "reading the queue failed");
            counters.fault(Fault::Failure, 1);
            return Box::pin(async move { (stored, false) });
        }
    };
    let mut fates = Vec::with_capacity(data.len());
    for data in data {
        let id = stored.id(Signal::of(&data) as u8);
        let bytes = data.bytes();
        let batch = Batch { batch_id: Some(id), ..Batch::new(stored.tenant.clone(), data) };
        let (ack, fate) = Ack::new();
        // Ordered: tried until the remote decides.
        let envelope = Envelope { batch, ack, permit: None, ordered: true, bytes };
        if let Err(refused) = feed.push(envelope).await {
            refused.ack.answer(Err(DeliveryError::Stopping));
        }
        fates.push(Delivery::new(fate));
    }
    Box::pin(async move {
        let mut settled = true;
        for fate in fates {
            settled &= matches!(fate.wait().await, Ok(()) | Err(DeliveryError::Rejected(_)));
        }
        (stored, settled)
    })
}
