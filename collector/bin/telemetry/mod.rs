//! Our own signals: a log on standard error, and logs, spans and metrics in our own store, under a tenant of their own.
//!
//! The OpenTelemetry SDK gathers them in its bounded queues; [`export`] turns its batches into OTLP requests, which
//! [`intake`] decodes as those of any sender and appends, in process. Every interval the figures of `/metrics` follow as
//! samples of the same names ([`samples`]). Requests become spans in [`requests`], flushes and merges in the store.
//!
//! What handles our own signals makes none: it runs with telemetry suppressed, and spans and log records about the own
//! tenant's tables are left out. What finds a queue full is dropped and counted; nobody waits for telemetry.

mod export;
mod intake;
pub mod requests;
mod samples;

use std::{
    io::IsTerminal as _,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize},
    },
    time::Duration,
};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::{
    Resource,
    logs::{BatchConfigBuilder as LogQueue, BatchLogProcessor, SdkLoggerProvider},
    metrics::{PeriodicReader, SdkMeterProvider},
    trace::{BatchConfigBuilder as SpanQueue, BatchSpanProcessor, Sampler, SdkTracerProvider},
};
use storage::model::TenantId;
use tokio::sync::mpsc;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

pub use intake::Recording;

/// The name we tell: `service.name` of our spans and logs, `job` of our metrics.
pub const SERVICE: &str = "sightline";

/// Spans and log records that wait for the next batch.
const QUEUE_MAX: usize = 2048;

/// Spans and log records of one batch.
const BATCH_MAX: usize = 512;

/// Longest wait for a batch.
const BATCH_DELAY_MAX: Duration = Duration::from_secs(5);

/// Encoded batches on their way to the store, and their bytes.
const PARCELS_MAX: usize = 64;
const PARCEL_BYTES_MAX: usize = 8 << 20;

/// What the section `telemetry:` says.
#[derive(Clone, Debug)]
pub struct Settings {
    pub enabled: bool,
    /// Between two readings of our metrics.
    pub interval: Duration,
    pub tenant: TenantId,
    /// Share of the requests without a `traceparent` that are traced; the others follow their caller.
    pub trace_sample_ratio: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            enabled: true,
            interval: Duration::from_secs(15),
            tenant: TenantId::parse(SERVICE).expect("a valid name"),
            trace_sample_ratio: 0.01,
        }
    }
}

/// The SDK at work; its batches wait until [`Telemetry::record`] takes them to the store.
pub struct Telemetry {
    spans: SdkTracerProvider,
    logs: SdkLoggerProvider,
    metrics: SdkMeterProvider,
    parcels: mpsc::Receiver<Parcel>,
    flow: Arc<Flow>,
    settings: Settings,
}

/// An encoded batch.
struct Parcel {
    signal: Signal,
    /// An OTLP request in protobuf.
    body: Vec<u8>,
    records: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Logs,
    Metrics,
    Traces,
}

impl Signal {
    const ALL: [Signal; 3] = [Signal::Logs, Signal::Metrics, Signal::Traces];

    const fn name(self) -> &'static str {
        match self {
            Signal::Logs => "logs",
            Signal::Metrics => "metrics",
            Signal::Traces => "traces",
        }
    }
}

/// How many records went where, by signal.
#[derive(Debug, Default)]
struct Flow {
    queued_bytes: AtomicUsize,
    stored: [AtomicU64; 3],
    dropped: [AtomicU64; 3],
}

/// Checks a `--log-level`.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(level).map_err(|e| {
        format!("invalid log level {level:?}: {e}; expected error, warn, info, debug or trace, also per module: info,storage=debug")
    })
}

/// Starts logging and, where wanted, the SDK. Called once.
pub fn start(filter: EnvFilter, settings: &Settings) -> Option<Telemetry> {
    let color = std::io::stderr().is_terminal();
    let shown = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(color).with_filter(filter);
    let registry = tracing_subscriber::registry().with(shown);
    if !settings.enabled {
        registry.init();
        return None;
    }
    let telemetry = Telemetry::new(settings);
    let bridge = OpenTelemetryTracingBridge::new(&telemetry.logs).with_filter(ours());
    let spans = tracing_opentelemetry::layer()
        .with_tracer(telemetry.spans.tracer(SERVICE))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(ours());
    registry.with(bridge).with(spans).init();
    Some(telemetry)
}

/// What is worth keeping: our own crates from info on, warnings of others, nothing of the SDK itself.
fn ours() -> Targets {
    Targets::new()
        .with_targets(
            [SERVICE, "storage", "pipeline", "collector", "query", "dashboards"].map(|t| (t, LevelFilter::INFO)),
        )
        .with_targets(["opentelemetry", "opentelemetry_sdk", "tracing_opentelemetry"].map(|t| (t, LevelFilter::OFF)))
        .with_default(LevelFilter::WARN)
}

impl Telemetry {
    fn new(settings: &Settings) -> Self {
        let (sender, parcels) = mpsc::channel(PARCELS_MAX);
        let flow = Arc::new(Flow::default());
        let door = export::Door::new(sender, flow.clone(), settings.tenant.clone());
        let resource = Resource::builder_empty()
            .with_service_name(SERVICE)
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(opentelemetry::KeyValue::new("service.instance.id", collector::node_name()))
            .build();
        let delay = settings.interval.min(BATCH_DELAY_MAX);
        let queue = SpanQueue::default()
            .with_max_queue_size(QUEUE_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(delay)
            .build();
        let spans = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.trace_sample_ratio))))
            .with_span_processor(
                BatchSpanProcessor::builder(export::Spans::new(door.clone())).with_batch_config(queue).build(),
            )
            .build();
        let queue = LogQueue::default()
            .with_max_queue_size(QUEUE_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(delay)
            .build();
        let logs = SdkLoggerProvider::builder()
            .with_resource(resource.clone())
            .with_log_processor(
                BatchLogProcessor::builder(export::Logs::new(door.clone())).with_batch_config(queue).build(),
            )
            .build();
        let reader = PeriodicReader::builder(export::Metrics::new(door)).with_interval(settings.interval).build();
        let metrics = SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build();
        Telemetry { spans, logs, metrics, parcels, flow, settings: settings.clone() }
    }
}
