//! Source: files that grow, and container logs above all.
//!
//! **For** reading lines of plain files, CRI and json-file container logs across rotation, and handing them over exactly
//! once to a sink that keeps positions with rows. **Not for** finding containers ([`crate::containers`]) or for parsing what
//! a line says (transforms of the pipeline do).
//!
//! One thread reads all files ([`tailer`]); one task delivers its batches in order, one at a time, each until the sink has
//! it. While a batch is under way the next is being read and no more than [`QUEUE_BATCHES`] wait, so a slow sink slows the
//! reading.
//!
//! # Invariants
//! 1. The state of a file is its position: [`reader`] consumes prefixes and keeps nothing between calls.
//! 2. Batches reach the sink in order; none is passed over but one the sink refuses for good, which is counted.
//! 3. No position is trusted but the one [`pipeline::Positions`] gives at start.

pub mod checkpoint;
pub mod counters;
pub mod discover;
mod filling;
pub mod fingerprint;
pub mod formats;
pub mod reader;
pub mod tailer;
mod tracked;
mod watch;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use pipeline::{Batch, DeliveryError, Source, SourceContext, SourceError};
use serde::Deserialize;
use storage::model::{Labels, TenantId};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use counters::Counters;
use discover::{Discover, Globs};
use formats::Format;
use reader::LineLimits;
use tailer::{Settings, Tailer, Tick};

/// Batches read and not yet under way.
pub const QUEUE_BATCHES: usize = 1;
/// Longest sleep of the reading thread, so that it notices a stop.
const NAP_MAX: Duration = Duration::from_millis(200);
/// Events of this long are taken together: a busy writer does not cause a read for each line.
const COALESCE: Duration = Duration::from_millis(20);
/// Between attempts to deliver where the sink does not say how long.
const RETRY_AFTER: Duration = Duration::from_millis(500);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Where to begin in a file never seen before, when the process starts. Files that appear later are read whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartAt {
    #[default]
    Beginning,
    End,
}

/// Files by pattern.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Patterns: `*` and `?` within a folder, `**` for any depth.
    pub include: Vec<String>,
    #[serde(default)]
    pub exclude: Vec<String>,
    #[serde(default)]
    pub format: Format,
    #[serde(default)]
    pub start_at: StartAt,
    /// Added to the stream labels `node`, `filename` and `service_name`, which they may also replace.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub tenant: Option<String>,
    #[serde(default)]
    pub tail: TailConfig,
}

/// How to read; shared with container logs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TailConfig {
    /// Longest record in bytes; longer ones are split.
    pub line_bytes_max: usize,
    pub batch_rows: usize,
    pub batch_bytes: usize,
    /// Milliseconds a row waits for its batch to fill.
    pub linger_ms: u64,
    /// Milliseconds after which an unfinished record is delivered as it is.
    pub partial_timeout_ms: u64,
}

impl Default for TailConfig {
    fn default() -> Self {
        TailConfig {
            line_bytes_max: 1 << 20,
            batch_rows: 8192,
            batch_bytes: 256 << 10,
            linger_ms: 200,
            partial_timeout_ms: 5000,
        }
    }
}

impl TailConfig {
    /// Checked settings. Sizes are brought into the range that works rather than refused.
    pub fn settings(&self, tenant: TenantId, discover_every: Duration) -> Settings {
        let line_bytes_max = self.line_bytes_max.clamp(64, 16 << 20);
        Settings {
            tenant,
            limits: LineLimits { line_bytes_max, group_bytes_max: (4 * line_bytes_max).max(64 << 10) },
            batch_rows: self.batch_rows.clamp(1, 1 << 20),
            batch_bytes: self.batch_bytes.clamp(1, 64 << 20),
            linger: Duration::from_millis(self.linger_ms),
            partial_timeout: Duration::from_millis(self.partial_timeout_ms),
            check_every: Duration::from_secs(1),
            discover_every,
            close_after: Duration::from_secs(10),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("file_tail: `include` names no pattern; give at least one, for example /var/log/*.log")]
    NoPattern,
    #[error("tenant {name:?} is not valid")]
    Tenant { name: String, source: storage::model::tenant::TenantError },
}

/// The tenant of a configuration.
pub(crate) fn tenant(name: Option<&str>) -> Result<TenantId, ConfigError> {
    match name {
        None => Ok(TenantId::default_tenant()),
        Some(name) => TenantId::parse(name).map_err(|source| ConfigError::Tenant { name: name.to_owned(), source }),
    }
}

impl Config {
    pub fn new(include: Vec<String>) -> Self {
        Config {
            include,
            exclude: Vec::new(),
            format: Format::default(),
            start_at: StartAt::default(),
            labels: BTreeMap::new(),
            tenant: None,
            tail: TailConfig::default(),
        }
    }

    pub fn build(&self) -> Result<FileTail, ConfigError> {
        if self.include.is_empty() {
            return Err(ConfigError::NoPattern);
        }
        let mut labels = Labels::from_pairs([("node", crate::node_name())]);
        for (name, value) in &self.labels {
            labels.set(name, value.as_str());
        }
        pipeline::codec::stream::discover_service_name(&mut labels);
        let globs = Globs {
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            format: self.format,
            labels,
            from_start: self.start_at == StartAt::Beginning,
        };
        let settings = self.tail.settings(tenant(self.tenant.as_deref())?, Duration::from_secs(5));
        Ok(FileTail::new(settings, Box::new(globs)))
    }

    pub fn source(&self) -> Result<Box<dyn Source>, ConfigError> {
        Ok(Box::new(self.build()?))
    }
}

/// Reads the files that a [`Discover`] names.
pub struct FileTail {
    settings: Settings,
    discover: Box<dyn Discover>,
    counters: Arc<Counters>,
}

impl FileTail {
    pub fn new(settings: Settings, discover: Box<dyn Discover>) -> Self {
        FileTail { settings, discover, counters: Arc::default() }
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}

#[async_trait::async_trait]
impl Source for FileTail {
    async fn run(self: Box<Self>, ctx: SourceContext) -> Result<(), SourceError> {
        let (queue, mut batches) = mpsc::channel(QUEUE_BATCHES);
        let tailer = Tailer::new(self.settings, self.discover, ctx.positions.clone(), self.counters.clone());
        // Stops the thread when this future is dropped as well.
        let stop = ctx.stop.child_token();
        let _stop_thread = stop.clone().drop_guard();
        let mut thread = JoinSet::new();
        thread.spawn_blocking(move || read_until_stopped(tailer, &stop, &queue));
        while let Some(batch) = batches.recv().await {
            if !deliver(batch, &ctx, &self.counters).await {
                break;
            }
        }
        drop(batches);
        match thread.join_next().await {
            Some(Err(panic)) => {
                Err(SourceError { name: ctx.name, reason: format!("the reading thread failed: {panic}") })
            }
            _ => Ok(()),
        }
    }
}

fn read_until_stopped(mut tailer: Tailer, stop: &CancellationToken, queue: &mpsc::Sender<Batch>) {
    let mut hand = |batch: Batch| queue.blocking_send(batch).is_ok();
    let mut watch = watch::Watch::new();
    let mut discoveries = 0;
    while !stop.is_cancelled() {
        let Ok(tick) = tailer.tick(Instant::now(), &mut hand) else { return };
        if tailer.discoveries() != discoveries {
            discoveries = tailer.discoveries();
            watch.set(tailer.folders());
        }
        let Tick::Idle(nap) = tick else { continue };
        let changes = watch.wait(nap.min(NAP_MAX));
        if changes.names || !changes.written.is_empty() {
            std::thread::sleep(COALESCE);
        }
        for folder in &changes.written {
            tailer.touched(folder);
        }
        if changes.names {
            tailer.rediscover_soon();
        }
    }
    // Only what was read is handed over: reading on to the end of every file could take any time.
    let _ = tailer.flush(&mut hand);
}

/// Delivers one batch, for as long as it takes. `false`: the pipeline is stopping, and nothing later may be delivered.
async fn deliver(batch: Batch, ctx: &SourceContext, counters: &Counters) -> bool {
    let rows = batch.data.rows();
    loop {
        let Ok(delivery) = ctx.out.send(batch.clone()).await else { return false };
        let wait = match delivery.wait().await {
            Ok(()) => {
                Counters::add(&counters.delivered, rows);
                return true;
            }
            Err(DeliveryError::Rejected(reason)) => {
                Counters::add(&counters.rejected, rows);
                tracing::error!(source = ctx.name, rows, reason, "batch refused for good; its rows are lost");
                return true;
            }
            Err(DeliveryError::Unavailable { retry_after, .. }) => retry_after.clamp(RETRY_AFTER, RETRY_AFTER_MAX),
            // Whether the batch is kept is unknown; its id makes a repetition harmless.
            Err(DeliveryError::Stopping) => RETRY_AFTER,
        };
        tokio::select! {
            () = ctx.stop.cancelled() => return false,
            () = tokio::time::sleep(wait) => {}
        }
    }
}
