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
        let mut ack = ack;
        if transform.signals().has(&whole.data) {
            let data = std::mem::replace(&mut whole.data, Data::empty());
            let (own, counts) = (transform.clone(), counters.clone());
            match off_thread(rows, move || own.apply_tracked(data, &counts)).await {
                Ok((data, settle)) => {
                    whole.data = data;
                    if let Some(settle) = settle {
                        ack = ack.watched(settle);
                    }
                }
                Err(refusal) => {
                    ack.answer(Err(refusal.told(&counters, rows)));
                    continue;
                }
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

/// Why a transform did not work on a batch.
pub(super) enum Refusal {
    Error(TransformError),
    Panic(String),
}

impl Refusal {
    /// Counts and logs it, and says it to the source. Refused for good: the batch would fail again, and `Unavailable`
    /// would hold back its source for ever.
    pub fn told(self, counters: &Counters, rows: usize) -> DeliveryError {
        let (reason, why) = match self {
            Refusal::Error(e) => (DropReason::Refused, e.to_string()),
            Refusal::Panic(text) => (DropReason::Panicked, text),
        };
        counters.dropped(reason, rows as u64);
        counters.fault(Fault::Failure, 1);
        tracing::error!(transform = %counters.name(), rows, reason = %why, "transform failed, batch refused");
        DeliveryError::Rejected(format!("transform {}: {why}", counters.name()))
    }
}

/// Runs the work on `rows` rows off the async threads, unless it is little. Panics are caught.
pub(super) async fn off_thread<T: Send + 'static>(
    rows: usize,
    work: impl FnOnce() -> Result<T, TransformError> + Send + 'static,
) -> Result<T, Refusal> {
    let done = if rows <= INLINE_ROWS_MAX {
        std::panic::catch_unwind(AssertUnwindSafe(work))
    } else {
        // Awaited at once, so this task owns it; a panic comes back as its error.
        match tokio::task::spawn_blocking(work).await {
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
