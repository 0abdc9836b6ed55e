//! Rows that a component cannot work on or deliver, as an output of its own: `NAME.dead_letter`.
//!
//! The output is there when somebody takes it. A transform then hands over the batches it fails on, and `parse` the rows
//! it cannot read; a sink hands over what its remote refuses for good. Log records and spans get two attributes,
//! `refused_by` and `refused_reason`; points of metrics go as they are, because an attribute would make them another
//! series. A batch of which something went this way is delivered once the other end has it too.

#[cfg(test)]
mod tests;

use std::{borrow::Cow, panic::AssertUnwindSafe, sync::Arc};

use arrow::array::RecordBatch;

use crate::{
    buffer::{Ack, Feed, ack::Fate},
    component::{Batch, Data, Delivery, DeliveryError, Envelope, Settle, Signals, Transform, TransformError},
    metrics::{Counters, Fault},
    topology::worker::panic_text,
    transform::attributes::{Attributes, map_texts},
};

/// Short name of the output.
pub const DEAD_LETTER: &str = "dead_letter";

/// The attributes that tell of it.
pub const REFUSED_BY: &str = "refused_by";
pub const REFUSED_REASON: &str = "refused_reason";

/// Bytes of a reason: remotes answer with pages.
const REASON_BYTES_MAX: usize = 1024;

/// Where a sink puts what is refused for good.
#[derive(Clone)]
pub struct DeadLetters(Feed);

impl DeadLetters {
    pub(crate) fn new(feed: Feed) -> Self {
        DeadLetters(feed)
    }

    /// Hands the rows over and waits for their fate. Whoever takes them tries until it is told to stop: they have nowhere
    /// else to go.
    pub async fn deliver(&self, batch: Batch) -> Fate {
        let (ack, fate) = Ack::new();
        let bytes = batch.data.bytes();
        let envelope = Envelope { batch, ack, permit: None, ordered: true, bytes };
        if let Err(refused) = self.0.push(envelope).await {
            refused.ack.answer(Err(DeliveryError::Stopping));
        }
        Delivery::new(fate).wait().await
    }
}

/// The rows with who refused them and why.
pub fn marked(data: Data, by: &str, reason: &str) -> Data {
    let reason = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)];
    let mark = |rows: RecordBatch| -> RecordBatch {
        let Ok(at) = rows.schema().index_of("attrs") else { return rows };
        let mut columns = rows.columns().to_vec();
        columns[at] = map_texts(&columns[at], |json| {
            let mut set = Attributes::read(json.unwrap_or("{}"));
            set.set_text(Cow::Borrowed(REFUSED_BY), by);
            set.set_text(Cow::Borrowed(REFUSED_REASON), reason);
            Some(set.to_json())
        });
        RecordBatch::try_new(rows.schema(), columns).unwrap_or(rows)
    };
    match data {
        Data::Logs(rows) => Data::Logs(mark(rows)),
        Data::Spans(rows) => Data::Spans(mark(rows)),
        Data::Metrics(points) => Data::Metrics(points),
    }
}

/// A transform whose dead letters somebody takes: its outputs, and behind them the one for what it fails on.
pub(super) struct WithDeadLetters {
    inner: Arc<dyn Transform>,
    name: String,
    /// Of the transform itself.
    outputs: usize,
}

impl WithDeadLetters {
    pub fn new(inner: Arc<dyn Transform>, name: &str) -> Self {
        let outputs = inner.outputs().len().max(1);
        WithDeadLetters { inner, name: name.to_owned(), outputs }
    }

    /// The place of the dead letters among the outputs.
    pub const fn dead(&self) -> usize {
        self.outputs
    }

    fn work(&self, data: Data, counters: &Counters) -> Result<(Vec<Data>, Option<Settle>), TransformError> {
        if self.outputs > 1 || !self.inner.outputs().is_empty() {
            let mut parts = self.inner.split(data, counters)?;
            parts.push(Data::empty());
            return Ok((parts, None));
        }
        if !self.inner.signals().has(&data) {
            return Ok((vec![data, Data::empty()], None));
        }
        let apart = self.inner.apply_apart(data, counters)?;
        let dead = apart.unread.map(|(rows, why)| marked(rows, &self.name, &why));
        Ok((vec![apart.data, dead.unwrap_or_else(Data::empty)], apart.settle))
    }
}

impl Transform for WithDeadLetters {
    fn signals(&self) -> Signals {
        Signals::ALL
    }

    fn apply(&self, data: Data, counters: &Counters) -> Result<Data, TransformError> {
        self.inner.apply(data, counters)
    }

    fn split(&self, data: Data, counters: &Counters) -> Result<Vec<Data>, TransformError> {
        self.split_tracked(data, counters).map(|(parts, _)| parts)
    }

    fn split_tracked(&self, data: Data, counters: &Counters) -> Result<(Vec<Data>, Option<Settle>), TransformError> {
        let whole = data.clone();
        let why = match std::panic::catch_unwind(AssertUnwindSafe(|| self.work(data, counters))) {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(e)) => e.to_string(),
            Err(panic) => panic_text(&*panic),
        };
        counters.fault(Fault::Failure, 1);
        tracing::error!(transform = %self.name, rows = whole.rows(), reason = %why, "transform failed, the batch is a dead letter");
        let mut parts = vec![Data::empty(); self.outputs];
        parts.push(marked(whole, &self.name, &why));
        Ok((parts, None))
    }
}
