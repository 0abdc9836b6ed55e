//! Owns the tasks of a pipeline: failure, drain, stop.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    buffer::Budget,
    component::Output,
    metrics::{ComponentSnapshot, Counters, Fault, Registry},
    topology::worker::panic_text,
};

/// Share of the stop deadline kept back for what is behind the sources.
const DRAIN_SHARE: u32 = 4;
/// A component gets at least this long to drain, also when those before it used up the deadline.
const DRAIN_MIN: Duration = Duration::from_millis(100);

/// A transform, a sink or a fork.
pub(super) struct Node {
    name: String,
    /// The component whose output it is, for a fork; else itself.
    pub after: String,
    pub is_fork: bool,
    close: CancellationToken,
    task: JoinSet<()>,
}

pub(super) struct SourceTask {
    name: String,
    task: JoinSet<()>,
}

/// Starts tasks so that none ends unnoticed.
pub(super) struct Tasks {
    failed: watch::Sender<Option<String>>,
}

impl Tasks {
    pub fn new() -> Self {
        Tasks { failed: watch::Sender::new(None) }
    }

    pub fn node(
        &mut self,
        name: String,
        is_fork: bool,
        close: CancellationToken,
        counters: Option<Arc<Counters>>,
        work: impl Future<Output = Result<(), String>> + Send + 'static,
    ) -> Node {
        let title = if is_fork { format!("the fork behind {name}") } else { name.clone() };
        let (failed, closing, shown) = (self.failed.clone(), close.clone(), title.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let reason = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(Ok(())) if closing.is_cancelled() => return,
                Ok(Ok(())) => "ended before it was told to".to_owned(),
                Ok(Err(reason)) => reason,
                Err(panic) => panic_text(&*panic),
            };
            if let Some(c) = counters {
                c.set_up(false);
                c.fault(Fault::Failure, 1);
            }
            tracing::error!(component = %shown, %reason, "component of the pipeline failed");
            failed.send_if_modified(|f| {
                let first = f.is_none();
                f.get_or_insert_with(|| format!("{shown}: {reason}"));
                first
            });
        });
        Node { name: title, after: name, is_fork, close, task }
    }

    /// A source's failure is its own: it is reported and does not end the pipeline.
    pub fn source(
        &mut self,
        name: String,
        stop: CancellationToken,
        counters: Arc<Counters>,
        work: impl Future<Output = Result<(), String>> + Send + 'static,
    ) -> SourceTask {
        let mut task = JoinSet::new();
        let shown = name.clone();
        task.spawn(async move {
            // Its own panics are caught inside, with each run.
            match work.await {
                Ok(()) if stop.is_cancelled() => {}
                Ok(()) => tracing::info!(source = %shown, "source has nothing more to read"),
                Err(reason) => {
                    counters.set_up(false);
                    tracing::error!(source = %shown, %reason, "source ended with an error");
                }
            }
        });
        SourceTask { name, task }
    }
}

/// How a stop went.
#[derive(Clone, Debug)]
pub struct Report {
    /// Who had not ended by the deadline, and was cut off.
    pub late: Vec<String>,
    /// The counters at the end.
    pub components: Vec<ComponentSnapshot>,
}

/// A running pipeline. Dropped without [`Running::stop`], its tasks are cut off where they are.
pub struct Running {
    stop: CancellationToken,
    inputs: BTreeMap<String, Output>,
    budgets: Vec<Budget>,
    process: Budget,
    sources: Vec<SourceTask>,
    nodes: Vec<Node>,
    registry: Registry,
    tasks: Tasks,
}

impl Running {
    #[expect(clippy::too_many_arguments, reason = "the builder's one call")]
    pub(super) fn new(
        stop: CancellationToken,
        inputs: BTreeMap<String, Output>,
        budgets: Vec<Budget>,
        process: Budget,
        sources: Vec<SourceTask>,
        nodes: Vec<Node>,
        registry: Registry,
        tasks: Tasks,
    ) -> Self {
        Running { stop, inputs, budgets, process, sources, nodes, registry, tasks }
    }

    /// Where a push protocol sends; `None` when the builder was told of no such input.
    pub fn input(&self, name: &str) -> Option<Output> {
        self.inputs.get(name).cloned()
    }

    pub fn metrics(&self) -> Vec<ComponentSnapshot> {
        self.registry.snapshot()
    }

    /// The counters, for whoever outlives the borrow (an HTTP handler).
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// Bytes between entry and ack.
    pub fn bytes_in_flight(&self) -> usize {
        self.process.used_bytes()
    }

    /// Waits for the failure of a transform, a sink or a fork (not of a source: those are restarted). The pipeline cannot
    /// go on from there; whoever waits should stop the process.
    pub fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        let mut failed = self.tasks.failed.subscribe();
        async move {
            match failed.wait_for(Option::is_some).await.ok().and_then(|f| f.clone()) {
                Some(reason) => reason,
                None => std::future::pending().await,
            }
        }
    }

    /// Waits until all sources have ended by themselves.
    pub async fn sources_done(&mut self) {
        for source in &mut self.sources {
            while source.task.join_next().await.is_some() {}
        }
    }

    /// Sources stop, inputs refuse, queues drain, sinks flush, within `deadline`; whoever is late is named and cut off.
    pub async fn stop(mut self, deadline: Duration) -> Report {
        let start = Instant::now();
        let mut late = Vec::new();
        self.stop.cancel();
        for budget in &self.budgets {
            budget.close();
        }
        let sources_until = start + deadline - deadline / DRAIN_SHARE;
        for mut source in std::mem::take(&mut self.sources) {
            if !ended(&mut source.task, sources_until).await {
                late.push(source.name);
            }
        }
        for mut node in std::mem::take(&mut self.nodes) {
            node.close.cancel();
            let until = (start + deadline).max(Instant::now() + DRAIN_MIN);
            if !ended(&mut node.task, until).await {
                late.push(node.name);
            }
        }
        for name in &late {
            tracing::warn!(component = %name, ?deadline, "late at the stop, cut off");
        }
        Report { late, components: self.registry.snapshot() }
    }
}

/// Whether the task ended in time; if not it is aborted and waited for.
async fn ended(task: &mut JoinSet<()>, until: Instant) -> bool {
    let in_time = tokio::time::timeout_at(until, async { while task.join_next().await.is_some() {} }).await.is_ok();
    if !in_time {
        task.shutdown().await;
    }
    in_time
}
