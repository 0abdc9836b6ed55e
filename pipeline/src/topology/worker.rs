//! What runs inside the tasks of sources and transforms.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use tokio::time::Instant;

use crate::{
    buffer::{Feed, Intake},
    component::{Data, DeliveryError, Envelope, Source, SourceContext, Transform, TransformError},
    metrics::{Counters, DropReason, Fault},
};

/// Pause before a failed source's restart: doubled at each failure.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(250);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);
/// A source that ran this long starts again from the shortest pause.
const RESTART_HEALTHY: Duration = Duration::from_secs(60);
/// Batches up to this many rows are transformed on the async thread: less work than a hop to another one and back.
const INLINE_ROWS_MAX: usize = 64;

/// Makes a source anew after each failure.
pub type SourceFactory = Box<dyn FnMut() -> Box<dyn Source> + Send>;

/// One source or as many as it takes.
pub(super) enum Maker {
    Once(Option<Box<dyn Source>>),
    Factory(SourceFactory),
}

impl Maker {
    fn make(&mut self) -> Option<Box<dyn Source>> {
        match self {
            Maker::Once(source) => source.take(),
            Maker::Factory(make) => Some(make()),
        }
    }
}

/// The text of a panic.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "no message".into()))
}

/// Runs a source until it ends by itself or is told to stop; restarts it, with growing pauses, when it fails.
pub(super) async fn run_source(mut maker: Maker, ctx: SourceContext, counters: Arc<Counters>) -> Result<(), String> {
    let mut pause = RESTART_PAUSE_MIN;
    let mut last = String::new();
    loop {
        let started = Instant::now();
        let Some(source) = maker.make() else { return Err(last) };
        counters.set_up(true);
        let end = AssertUnwindSafe(source.run(ctx.clone())).catch_unwind().await;
        last = match end {
            Ok(Ok(())) => {
                counters.set_up(false);
                return Ok(());
            }
            Ok(Err(e)) => e.reason,
            Err(panic) => panic_text(&*panic),
        };
        counters.set_up(false);
        counters.fault(Fault::Failure, 1);
        if ctx.stop.is_cancelled() {
            return Err(last);
        }
        if started.elapsed() >= RESTART_HEALTHY {
            pause = RESTART_PAUSE_MIN;
        }
        tracing::error!(source = %ctx.name, reason = %last, ?pause, "source failed");
        tokio::select! {
            () = ctx.stop.cancelled() => return Err(last),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(RESTART_PAUSE_MAX);
    }
}

/// Runs a transform over its queue, one batch after the other.
pub(super) async fn run_transform(
    mut intake: Intake,
    transform: Arc<dyn Transform>,
    counters: Arc<Counters>,
    out: Feed,
) -> Result<(), String> {
    while let Some(envelope) = intake.next().await {
        let Envelope { batch: mut whole, ack, permit, ordered, .. } = envelope;
        let rows = whole.data.rows();
        let applied = if transform.signals().has(&whole.data) {
            let data = std::mem::replace(&mut whole.data, Data::empty());
            apply(&transform, data, &counters, rows).await
        } else {
            Ok(whole.data)
        };
        match applied {
            Ok(data) => whole.data = data,
            Err(refusal) => {
                // Refused for good: the batch would fail again, and `Unavailable` would hold back its source for ever.
                let (reason, why) = match refusal {
                    Refusal::Error(e) => (DropReason::Refused, e.to_string()),
                    Refusal::Panic(text) => (DropReason::Panicked, text),
                };
                counters.dropped(reason, rows as u64);
                counters.fault(Fault::Failure, 1);
                tracing::error!(transform = %counters.name(), rows, reason = %why, "transform failed, batch refused");
                ack.answer(Err(DeliveryError::Rejected(format!("transform {}: {why}", counters.name()))));
                continue;
            }
        }
        counters.delivered(whole.data.rows() as u64);
        if whole.data.is_empty() && whole.sources.is_empty() {
            ack.answer(Ok(()));
            continue;
        }
        let bytes = whole.data.bytes();
        counters.emitted(&whole.data, bytes);
        let onward = Envelope { batch: whole, ack, permit, ordered, bytes };
        if let Err(refused) = out.push(onward).await {
            refused.ack.answer(Err(DeliveryError::Stopping));
        }
    }
    Ok(())
}

enum Refusal {
    Error(TransformError),
    Panic(String),
}

async fn apply(
    transform: &Arc<dyn Transform>,
    data: Data,
    counters: &Arc<Counters>,
    rows: usize,
) -> Result<Data, Refusal> {
    let done = if rows <= INLINE_ROWS_MAX {
        std::panic::catch_unwind(AssertUnwindSafe(|| transform.apply(data, counters)))
    } else {
        let (transform, counters) = (transform.clone(), counters.clone());
        // Awaited at once, so this task owns it; a panic comes back as its error.
        match tokio::task::spawn_blocking(move || transform.apply(data, &counters)).await {
            Ok(done) => Ok(done),
            Err(e) if e.is_panic() => Err(e.into_panic()),
            Err(e) => return Err(Refusal::Panic(e.to_string())),
        }
    };
    match done {
        Ok(result) => result.map_err(Refusal::Error),
        Err(panic) => Err(Refusal::Panic(panic_text(&*panic))),
    }
}
