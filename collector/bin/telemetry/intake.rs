//! The last stretch: our own batches and samples into the store.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Router, middleware};
use opentelemetry::{Context, context::FutureExt as _, metrics::MeterProvider as _};
use opentelemetry_sdk::{logs::SdkLoggerProvider, metrics::SdkMeterProvider, trace::SdkTracerProvider};
use pipeline::{
    Batch, Data,
    codec::{
        Limits,
        otlp::{self, json::Request},
    },
    sink::store::to_append,
};
use storage::{Store, model::TenantId};
use tokio::{sync::mpsc, task::JoinSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{Flow, Parcel, SERVICE, Signal, Telemetry, requests, samples};

/// How long the SDK may take to give its last batches, and the store to take them.
const STOP_MAX: Duration = Duration::from_secs(3);

/// Telemetry on its way into a store, until [`Recording::stop`].
pub struct Recording {
    spans: SdkTracerProvider,
    logs: SdkLoggerProvider,
    metrics: SdkMeterProvider,
    tasks: JoinSet<()>,
    finish: CancellationToken,
}

impl Telemetry {
    /// Writes our own counters, for `/metrics`.
    pub fn render(&self) -> impl Fn(&mut String) + Send + Sync + 'static {
        let flow = self.flow.clone();
        move |out| {
            for (name, counts) in [("stored", &flow.stored), ("dropped", &flow.dropped)] {
                let _ = writeln!(out, "# TYPE telemetry_records_{name}_total counter");
                for signal in Signal::ALL {
                    let n = counts[signal as usize].load(Ordering::Relaxed);
                    let _ = writeln!(out, "telemetry_records_{name}_total{{signal=\"{}\"}} {n}", signal.name());
                }
            }
        }
    }

    /// Takes batches to the store from now on, and the `figures` (Prometheus text) every interval.
    pub fn record(self, store: Store, figures: impl Fn() -> String + Send + 'static) -> Recording {
        let finish = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let intake = Intake {
            store,
            tenant: self.settings.tenant,
            flow: self.flow,
            failing: false,
            instance: collector::node_name(),
        };
        let work = intake.run(self.parcels, self.settings.interval, figures, finish.clone());
        // Nothing in here is recorded: it would never end.
        tasks.spawn(work.with_context(Context::new().with_telemetry_suppressed()));
        Recording { spans: self.spans, logs: self.logs, metrics: self.metrics, tasks, finish }
    }
}

impl Recording {
    /// The router with a span and a duration for each request.
    pub fn traced(&self, router: Router) -> Router {
        let traced = requests::Traced::new(&self.metrics.meter(SERVICE));
        router.layer(middleware::from_fn_with_state(traced, requests::trace))
    }

    /// Ends the SDK; what it still holds reaches the store, which must be open until then.
    pub async fn stop(mut self) {
        let (spans, logs, metrics) = (self.spans, self.logs, self.metrics);
        let ended = tokio::task::spawn_blocking(move || {
            // Errors tell of batches that were dropped, which are counted.
            let _ = spans.shutdown_with_timeout(STOP_MAX);
            let _ = logs.shutdown_with_timeout(STOP_MAX);
            let _ = metrics.shutdown_with_timeout(STOP_MAX);
        });
        let _ = tokio::time::timeout(STOP_MAX, ended).await;
        self.finish.cancel();
        let written = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_MAX, written).await.is_err() {
            eprintln!("sightline: our own telemetry was not written before the deadline");
        }
    }
}

struct Intake {
    store: Store,
    tenant: TenantId,
    flow: Arc<Flow>,
    /// Whether the last batch was not taken: a failure is told once, not with every batch.
    failing: bool,
    instance: String,
}

impl Intake {
    async fn run(
        mut self,
        mut parcels: mpsc::Receiver<Parcel>,
        interval: Duration,
        figures: impl Fn() -> String,
        finish: CancellationToken,
    ) {
        let mut tick = tokio::time::interval(interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                Some(parcel) = parcels.recv() => self.take(parcel).await,
                () = finish.cancelled() => break,
                _ = tick.tick() => self.sample(figures()).await,
            }
        }
        while let Ok(parcel) = parcels.try_recv() {
            self.take(parcel).await;
        }
        self.sample(figures()).await;
    }

    async fn take(&mut self, parcel: Parcel) {
        let Parcel { signal, body, records } = parcel;
        self.flow.queued_bytes.fetch_sub(body.len(), Ordering::Relaxed);
        let request = match signal {
            Signal::Logs => Request::Logs,
            Signal::Metrics => Request::Metrics,
            Signal::Traces => Request::Traces,
        };
        let decode = move || otlp::decode(&body, request, &Limits::default(), now_ns(), None);
        match tokio::task::spawn_blocking(decode).await {
            Ok(Ok(decoded)) => {
                let refused = decoded.rejected.total();
                self.flow.dropped[signal as usize].fetch_add(refused, Ordering::Relaxed);
                for data in decoded.batches {
                    self.append(signal, data).await;
                }
            }
            _ => {
                self.flow.dropped[signal as usize].fetch_add(records, Ordering::Relaxed);
            }
        }
    }

    async fn sample(&mut self, figures: String) {
        let batch = samples::batch(&figures, SERVICE, &self.instance, now_ns() / 1_000_000);
        self.append(Signal::Metrics, Data::Metrics(batch)).await;
    }

    async fn append(&mut self, signal: Signal, data: Data) {
        let rows = data.rows() as u64;
        let appended = self.store.append(to_append(Batch::new(self.tenant.clone(), data))).await;
        let left_out = match &appended {
            Ok(a) => a.refused.as_ref().map_or(0, |r| r.rows() as u64).min(rows),
            Err(_) => rows,
        };
        self.flow.stored[signal as usize].fetch_add(rows - left_out, Ordering::Relaxed);
        self.flow.dropped[signal as usize].fetch_add(left_out, Ordering::Relaxed);
        match appended {
            Ok(_) => self.failing = false,
            Err(e) if !self.failing => {
                self.failing = true;
                tracing::warn!(error = %e, "the store does not take our own telemetry; it is dropped until it does");
            }
            Err(_) => {}
        }
    }
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
