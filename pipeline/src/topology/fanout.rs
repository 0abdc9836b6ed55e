//! One output, many inputs. Clones are cheap (columns are shared); the ack is the conjunction of the branches.

use std::sync::Arc;

use futures::{StreamExt as _, stream::FuturesOrdered};
use storage::{SourcePosition, model::TenantId};

use crate::{
    buffer::{Ack, Feed, Intake, ack::Fate},
    component::{Batch, Data, Delivery, DeliveryError, Envelope, Transform},
    metrics::{Counters, DropReason},
    topology::worker::off_thread,
};

/// Batches with positions between a fork and their last ack.
const POSITIONS_WAITING_MAX: usize = 1024;

pub(super) struct FanOut {
    pub intake: Intake,
    /// At least two, or one behind a splitter.
    pub branches: Vec<Feed>,
    /// The store sink that writes positions once all branches have the rows. `None`: no store is downstream.
    pub positions: Option<Feed>,
    /// Gives each row to one branch. `None`: every branch gets them all.
    pub splitter: Option<Splitter>,
}

/// A transform with several outputs.
pub(super) struct Splitter {
    pub transform: Arc<dyn Transform>,
    pub counters: Arc<Counters>,
    /// The branch of its dead letters.
    pub dead: Option<usize>,
}

/// A batch whose branches are under way.
struct Forked {
    tenant: TenantId,
    positions: Vec<SourcePosition>,
    parent: Ack,
}

impl FanOut {
    pub async fn run(mut self) {
        let mut waiting = FuturesOrdered::new();
        let mut open = true;
        // After a batch was neither delivered nor refused for good, no later position may be written.
        let mut broken = false;
        while open || !waiting.is_empty() {
            tokio::select! {
                biased;
                Some((fate, forked)) = waiting.next(), if !waiting.is_empty() => {
                    self.settle(fate, forked, &mut broken).await;
                }
                next = self.intake.next(), if open && waiting.len() < POSITIONS_WAITING_MAX => match next {
                    None => open = false,
                    Some(mut envelope) if !envelope.batch.sources.is_empty() => {
                        let positions = std::mem::take(&mut envelope.batch.sources);
                        let (ack, fate) = Ack::new();
                        let parent = std::mem::replace(&mut envelope.ack, ack);
                        let forked = Forked { tenant: envelope.batch.tenant.clone(), positions, parent };
                        waiting.push_back(async move { (Delivery::new(fate).wait().await, forked) });
                        self.fork(envelope).await;
                    }
                    Some(envelope) => self.fork(envelope).await,
                }
            }
        }
    }

    async fn fork(&self, envelope: Envelope) {
        if let Some(splitter) = &self.splitter {
            return self.split(splitter, envelope).await;
        }
        let Envelope { batch, ack, permit, ordered, bytes } = envelope;
        for (i, (feed, ack)) in self.branches.iter().zip(ack.split(self.branches.len())).enumerate() {
            let mut batch = batch.clone();
            batch.batch_id = batch.batch_id.map(|id| branch_id(id, i));
            let branch = Envelope { batch, ack, permit: permit.clone(), ordered, bytes };
            if let Err(refused) = feed.push(branch).await {
                refused.ack.answer(Err(DeliveryError::Stopping));
            }
        }
    }

    async fn split(&self, splitter: &Splitter, envelope: Envelope) {
        let Envelope { mut batch, ack, permit, ordered, .. } = envelope;
        let counters = &splitter.counters;
        let rows = batch.data.rows();
        let data = std::mem::replace(&mut batch.data, Data::empty());
        let (transform, own) = (splitter.transform.clone(), counters.clone());
        let (parts, settle) = match off_thread(rows, move || transform.split_tracked(data, &own)).await {
            Ok(split) => split,
            Err(refusal) => {
                ack.answer(Err(refusal.told(counters, rows)));
                return;
            }
        };
        let ack = match settle {
            Some(settle) => ack.watched(settle),
            None => ack,
        };
        for (i, part) in parts.iter().enumerate() {
            match splitter.dead == Some(i) {
                true => counters.dropped(DropReason::DeadLettered, part.rows() as u64),
                false => counters.delivered(part.rows() as u64),
            }
        }
        let parts: Vec<(usize, Data)> = parts.into_iter().enumerate().filter(|(_, p)| !p.is_empty()).collect();
        if parts.is_empty() {
            ack.answer(Ok(()));
            return;
        }
        for ((i, data), ack) in parts.iter().zip(ack.split(parts.len())) {
            let bytes = data.bytes();
            counters.emitted(data, bytes);
            let batch_id = batch.batch_id.map(|id| branch_id(id, *i));
            let (refusals, repeats) = (batch.refusals.clone(), batch.repeats);
            let mut batch = Batch::new(batch.tenant.clone(), data.clone());
            (batch.batch_id, batch.refusals, batch.repeats) = (batch_id, refusals, repeats);
            let branch = Envelope { batch, ack, permit: permit.clone(), ordered, bytes };
            if let Err(refused) = self.branches[*i].push(branch).await {
                refused.ack.answer(Err(DeliveryError::Stopping));
            }
        }
    }

    async fn settle(&self, fate: Fate, forked: Forked, broken: &mut bool) {
        let Forked { tenant, positions, parent } = forked;
        match (fate, &self.positions) {
            (Err(DeliveryError::Rejected(reason)), _) => parent.answer(Err(DeliveryError::Rejected(reason))),
            (Err(e), _) => {
                *broken = true;
                parent.answer(Err(e));
            }
            (Ok(()), _) if *broken => parent.answer(Err(DeliveryError::Stopping)),
            (Ok(()), None) => parent.answer(Ok(())),
            (Ok(()), Some(store)) => {
                let mut batch = Batch::new(tenant, Data::empty());
                batch.sources = positions;
                let envelope = Envelope { batch, ack: parent, permit: None, ordered: true, bytes: 0 };
                if let Err(refused) = store.push(envelope).await {
                    *broken = true;
                    refused.ack.answer(Err(DeliveryError::Stopping));
                }
            }
        }
    }
}

/// The first branch keeps the sender's id; the others get ids that are the same at every repetition.
fn branch_id(id: [u8; 16], branch: usize) -> [u8; 16] {
    if branch == 0 {
        return id;
    }
    let mut text = id.to_vec();
    text.extend_from_slice(&(branch as u64).to_le_bytes());
    xxhash_rust::xxh3::xxh3_128(&text).to_le_bytes()
}
