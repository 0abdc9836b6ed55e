//! What every sink that ships rows somewhere has in common: batching, a bounded queue, retries, dead letters, acks.
//!
//! **For** delivering batches to a [`Protocol`] and answering each only when the remote has it, or has refused it for
//! good. **Not for** any protocol: encoding rows and reading answers is theirs.
//!
//! # Invariants
//! 1. A batch is acknowledged only after the remote took its rows, or they were dead-lettered, or refused and counted.
//! 2. A request that is sent again is the same bytes under the same id, so that a remote that knows ids stores it once.
//! 3. Positions are written in the order they came, each after its rows.
//! 4. Rows held are bounded in bytes: beyond, the sources wait.

pub mod config;
mod deliver;
pub mod http_client;
pub mod retry;
mod rows;
pub mod stats;

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{
    StreamExt as _,
    future::BoxFuture,
    stream::{FuturesOrdered, FuturesUnordered},
};
use storage::{Append, model::TenantId};
use tokio::time::Instant;

use self::{
    config::{Compression, DeliveryConfig},
    deliver::{Dead, Finished, Group, Shipper},
    stats::RemoteStats,
};
use crate::{
    codec::columns::EncodeError,
    component::{Data, DeliveryError, Envelope, Signals, Sink, SinkContext, SinkError},
    metrics::{Counters, DropReason},
    sink::{
        file::RowFile,
        store::{Destination, advance, persist},
    },
};

/// Which kind of rows a request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    Logs,
    Metrics,
    Traces,
}

impl Signal {
    pub fn of(data: &Data) -> Signal {
        match data {
            Data::Logs(_) => Signal::Logs,
            Data::Metrics(_) => Signal::Metrics,
            Data::Spans(_) => Signal::Traces,
        }
    }
}

/// Rows of a batch as a piece of a request.
pub struct Rows<'a> {
    pub data: &'a Data,
    pub tenant: &'a TenantId,
    /// Names the batch: with a row's number it names the row, the same at every attempt.
    pub batch: [u8; 16],
    /// The number that each row had in its batch; empty: 0, 1, 2 ...
    pub numbers: &'a [u32],
}

/// Bytes that may be put one after the other with those of other batches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    pub body: Vec<u8>,
    /// Rows that the protocol has no form for.
    pub unsupported: u64,
    /// Where each item ends in `body`, for protocols that answer item by item; one item a row.
    pub ends: Vec<usize>,
}

/// A request as it is sent, once or often.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub signal: Signal,
    pub tenant: TenantId,
    /// Compressed, if the sink compresses.
    pub body: Bytes,
    pub id: [u8; 16],
    /// Items in the body.
    pub items: usize,
}

/// What came of one attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The remote has the rows but for `rejected` of them, which it did not name.
    Taken {
        rejected: u64,
        message: Option<String>,
    },
    /// The fates of single items, by number; the others are taken.
    Items {
        refused: Vec<(u32, String)>,
        again: Vec<u32>,
        reason: String,
    },
    Again {
        after: Option<Duration>,
        reason: String,
    },
    /// The remote refuses us, not the rows.
    Denied(String),
    TooLarge(String),
    Refused(String),
    /// Some rows are refused, which ones is not said, and the others are there: nothing of it may be sent again.
    PartlyRefused(String),
}

/// One remote and how to talk to it.
#[async_trait::async_trait]
pub trait Protocol: Send + Sync + 'static {
    fn signals(&self) -> Signals;

    /// Called off the async threads for all but small batches.
    fn encode(&self, rows: &Rows<'_>) -> Result<Encoded, EncodeError>;

    /// How bodies are compressed before they are sent.
    fn compression(&self) -> BodyCompression;

    async fn send(&self, request: &Outgoing) -> Answer;
}

/// What happens to a body before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyCompression {
    /// As the configuration says, told in a header.
    Chosen(Compression),
    /// One snappy block, as the protocol has it.
    SnappyBlock,
}

/// A sink that ships.
pub struct RemoteSink {
    protocol: Arc<dyn Protocol>,
    config: DeliveryConfig,
    positions: Arc<dyn Destination>,
    stats: Arc<RemoteStats>,
}

impl RemoteSink {
    /// `positions`: where the positions of sources are written once their rows are delivered.
    pub fn new(protocol: Arc<dyn Protocol>, config: DeliveryConfig, positions: Arc<dyn Destination>) -> Self {
        RemoteSink { protocol, config, positions, stats: Arc::default() }
    }

    pub fn stats(&self) -> Arc<RemoteStats> {
        self.stats.clone()
    }
}

/// What may share a request.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    tenant: TenantId,
    signal: Signal,
    ordered: bool,
}

#[async_trait::async_trait]
impl Sink for RemoteSink {
    fn signals(&self) -> Signals {
        self.protocol.signals()
    }

    fn keeps_positions(&self) -> bool {
        true
    }

    fn gives_dead_letters(&self) -> bool {
        true
    }

    async fn run(self: Box<Self>, ctx: SinkContext) -> Result<(), SinkError> {
        let SinkContext { name, mut intake, counters, dead_letters } = ctx;
        let stats = self.stats.clone();
        counters.ships(stats.clone());
        let file = || self.config.dead_letter.clone().map(|path| Dead::File(RowFile::dead_letters(path)));
        let dead = dead_letters.map(Dead::Component).or_else(file);
        let shipper = Arc::new(Shipper {
            name: name.clone(),
            protocol: self.protocol.clone(),
            retry: self.config.retry.clone(),
            dead,
            counters: counters.clone(),
            stats: stats.clone(),
        });
        let mut work = Work {
            config: &self.config,
            filling: HashMap::new(),
            ready: VecDeque::new(),
            free: FuturesUnordered::new(),
            ordered: FuturesOrdered::new(),
            held: 0,
        };
        let mut taking = true;
        loop {
            work.start(&shipper);
            stats.holds(work.held);
            if !taking && work.is_empty() {
                return Ok(());
            }
            let due = work.due();
            let finished = tokio::select! {
                biased;
                Some(finished) = work.free.next(), if !work.free.is_empty() => finished,
                Some(finished) = work.ordered.next(), if !work.ordered.is_empty() => finished,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    work.seal(|g, age| g.born + age <= Instant::now());
                    continue;
                }
                next = intake.next(), if taking && work.held < self.config.queue.bytes => {
                    match next {
                        Some(envelope) => work.add(envelope, self.protocol.signals(), &counters),
                        None => {
                            taking = false;
                            work.seal(|_, _| true);
                        }
                    }
                    continue;
                }
            };
            work.held = work.held.saturating_sub(finished.bytes);
            settle(finished, &*self.positions, &counters).await;
        }
    }
}

/// Everything a sink holds.
struct Work<'c> {
    config: &'c DeliveryConfig,
    filling: HashMap<Key, Group>,
    ready: VecDeque<Group>,
    free: FuturesUnordered<BoxFuture<'static, Finished>>,
    /// Groups with positions: they end in the order they began.
    ordered: FuturesOrdered<BoxFuture<'static, Finished>>,
    held: usize,
}

impl Work<'_> {
    fn is_empty(&self) -> bool {
        self.filling.is_empty() && self.ready.is_empty() && self.free.is_empty() && self.ordered.is_empty()
    }

    /// When the oldest group that waits for more shall wait no longer.
    fn due(&self) -> Option<Instant> {
        self.filling.values().map(|g| g.born + self.config.batch.age).min()
    }

    fn add(&mut self, envelope: Envelope, signals: Signals, counters: &Counters) {
        if !signals.has(&envelope.batch.data) && !envelope.batch.data.is_empty() {
            counters.dropped(DropReason::Unsupported, envelope.batch.data.rows() as u64);
            if envelope.batch.sources.is_empty() {
                envelope.ack.answer(Ok(()));
                return;
            }
        }
        self.held += envelope.bytes;
        let signal = Signal::of(&envelope.batch.data);
        let key = Key { tenant: envelope.batch.tenant.clone(), signal, ordered: envelope.ordered };
        // A batch that its sender names is sent alone, so that sent again it is the same request.
        if envelope.batch.batch_id.is_some() {
            self.ready.extend(self.filling.remove(&key));
            self.ready.push_back(Group::new(key.ordered, envelope));
            return;
        }
        let (rows, bytes) = (envelope.batch.data.rows(), envelope.bytes);
        let limit = &self.config.batch;
        if let Some(group) = self.filling.get(&key)
            && (group.rows + rows > limit.rows || group.bytes + bytes > limit.bytes)
        {
            self.ready.extend(self.filling.remove(&key));
        }
        let group = match self.filling.entry(key.clone()) {
            std::collections::hash_map::Entry::Occupied(e) => {
                let group = e.into_mut();
                group.push(envelope);
                group
            }
            std::collections::hash_map::Entry::Vacant(e) => e.insert(Group::new(key.ordered, envelope)),
        };
        if group.rows >= limit.rows || group.bytes >= limit.bytes || limit.age.is_zero() {
            self.ready.extend(self.filling.remove(&key));
        }
    }

    fn seal(&mut self, which: impl Fn(&Group, Duration) -> bool) {
        let age = self.config.batch.age;
        let mut sealed: Vec<Group> = self.filling.extract_if(|_, g| which(g, age)).map(|(_, g)| g).collect();
        sealed.sort_by_key(|g| g.born);
        self.ready.extend(sealed);
    }

    fn start(&mut self, shipper: &Arc<Shipper>) {
        while self.free.len() + self.ordered.len() < self.config.queue.requests
            && let Some(group) = self.ready.pop_front()
        {
            let ordered = group.ordered;
            let work = Box::pin(shipper.clone().deliver(group));
            if ordered { self.ordered.push_back(work) } else { self.free.push(work) }
        }
    }
}

/// Writes the positions of what was delivered, then tells the sources.
async fn settle(finished: Finished, positions: &dyn Destination, counters: &Counters) {
    let mut append: Option<Append> = None;
    for item in finished.items.iter().filter(|i| i.fate.is_ok() && !i.sources.is_empty()) {
        let append = append.get_or_insert_with(|| Append {
            tenant: item.tenant.clone(),
            rows: Vec::new(),
            sources: Vec::new(),
            batch_id: None,
        });
        for s in &item.sources {
            advance(&mut append.sources, s.clone());
        }
    }
    let written = match append {
        Some(append) => persist(positions, append, counters).await.map(drop),
        None => Ok(()),
    };
    for item in finished.items {
        let fate = match (item.fate, &written) {
            (Ok(()), Err(e)) if !item.sources.is_empty() => Err(e.clone()),
            (fate, _) => fate,
        };
        match &fate {
            Ok(()) => counters.delivered(item.rows.saturating_sub(item.lost)),
            Err(DeliveryError::Rejected(_)) => counters.dropped(DropReason::Refused, item.rows - item.lost),
            Err(_) => counters.dropped(DropReason::Returned, item.rows - item.lost),
        }
        item.ack.answer(fate);
    }
}
