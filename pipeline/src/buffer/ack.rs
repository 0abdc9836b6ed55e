//! Delivery told back to the source. A fanned-out batch is delivered when all its branches are: the first refusal wins.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    component::{DeliveryError, Refusals, Settle},
    metrics::{Counters, DropReason},
};

/// What a sink answers.
pub type Fate = Result<(), DeliveryError>;

/// When a sender should retry a batch that a failed component held.
const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// The line back to the source of one batch. Dropped without an answer (a component failed, or was stopped late) it
/// answers [`DeliveryError::Unavailable`], so that no batch vanishes unnoticed.
pub struct Ack(Option<Line>);

enum Line {
    Source { fate: oneshot::Sender<Fate>, meter: Option<Meter> },
    Join(Arc<Join>),
    Watched { parent: Box<Ack>, settle: Settle },
}

/// Counts at its source what became of a batch.
struct Meter {
    source: Arc<Counters>,
    rows: u64,
    refusals: Arc<Refusals>,
}

struct Join {
    waiting: AtomicUsize,
    parent: Mutex<Option<Ack>>,
}

impl Ack {
    /// A line to whoever holds the receiver.
    pub fn new() -> (Ack, oneshot::Receiver<Fate>) {
        let (fate, receiver) = oneshot::channel();
        (Ack(Some(Line::Source { fate, meter: None })), receiver)
    }

    /// As [`Ack::new`]; the fate of `rows` rows is counted at `source`.
    pub fn metered(source: Arc<Counters>, rows: u64, refusals: Arc<Refusals>) -> (Ack, oneshot::Receiver<Fate>) {
        let (fate, receiver) = oneshot::channel();
        (Ack(Some(Line::Source { fate, meter: Some(Meter { source, rows, refusals }) })), receiver)
    }

    /// `branches` acks whose conjunction answers this one. `branches` is at least 1.
    pub fn split(self, branches: usize) -> Vec<Ack> {
        let join = Arc::new(Join { waiting: AtomicUsize::new(branches), parent: Mutex::new(Some(self)) });
        (0..branches).map(|_| Ack(Some(Line::Join(join.clone())))).collect()
    }

    /// This line, with somebody who is told the fate first.
    pub fn watched(self, settle: Settle) -> Ack {
        Ack(Some(Line::Watched { parent: Box::new(self), settle }))
    }

    /// Tells the source the fate of its batch. Gives the fate back when nobody waits for it any more.
    pub fn send(mut self, fate: Fate) -> Result<(), Fate> {
        self.tell(fate)
    }

    /// [`Ack::send`] for those who do not care whether anybody listens.
    pub fn answer(mut self, fate: Fate) {
        let _ = self.tell(fate);
    }

    fn tell(&mut self, fate: Fate) -> Result<(), Fate> {
        match self.0.take() {
            None => Ok(()),
            Some(Line::Source { fate: line, meter }) => {
                if let Some(m) = meter {
                    m.settle(&fate);
                }
                line.send(fate)
            }
            Some(Line::Watched { mut parent, settle }) => {
                settle(fate.is_ok());
                parent.tell(fate)
            }
            Some(Line::Join(join)) => {
                let last = join.waiting.fetch_sub(1, Ordering::AcqRel) == 1;
                if fate.is_ok() && !last {
                    return Ok(());
                }
                // Taken out first: the lock is not held while the parent is told.
                let parent = join.parent.lock().take();
                parent.map_or(Ok(()), |mut p| p.tell(fate))
            }
        }
    }
}

impl Meter {
    fn settle(&self, fate: &Fate) {
        match fate {
            Ok(()) => {
                // Transforms may have made more points of what was sent.
                let (over_limit, repeated) = self.refusals.rows();
                let over_limit = over_limit.min(self.rows);
                let repeated = repeated.min(self.rows - over_limit);
                self.source.delivered(self.rows - over_limit - repeated);
                self.source.dropped(DropReason::OverLimit, over_limit);
                self.source.dropped(DropReason::DuplicateTimestamp, repeated);
            }
            Err(DeliveryError::Rejected(_)) => self.source.dropped(DropReason::Refused, self.rows),
            Err(DeliveryError::Unavailable { .. } | DeliveryError::Stopping) => {
                self.source.dropped(DropReason::Returned, self.rows);
            }
        }
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        if self.0.is_some() {
            let _ = self.tell(Err(DeliveryError::Unavailable {
                reason: "a component of the pipeline ended before it delivered the batch".into(),
                retry_after: RETRY_AFTER_FAILURE,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_branches_must_deliver() {
        let (ack, mut fate) = Ack::new();
        let mut branches = ack.split(3);
        branches.pop().unwrap().answer(Ok(()));
        branches.pop().unwrap().answer(Ok(()));
        assert!(fate.try_recv().is_err());
        branches.pop().unwrap().answer(Ok(()));
        assert!(fate.try_recv().unwrap().is_ok());
    }

    #[test]
    fn the_first_refusal_wins_and_comes_at_once() {
        let (ack, mut fate) = Ack::new();
        let mut branches = ack.split(3);
        branches.pop().unwrap().answer(Ok(()));
        branches.pop().unwrap().answer(Err(DeliveryError::Rejected("bad".into())));
        assert!(matches!(fate.try_recv().unwrap(), Err(DeliveryError::Rejected(_))));
        branches.pop().unwrap().answer(Err(DeliveryError::Stopping));
    }

    #[test]
    fn an_ack_that_is_dropped_is_an_answer() {
        let (ack, mut fate) = Ack::new();
        let nested: Vec<Ack> = ack.split(2).into_iter().flat_map(|a| a.split(2)).collect();
        drop(nested);
        assert!(matches!(fate.try_recv().unwrap(), Err(DeliveryError::Unavailable { .. })));
    }
}
