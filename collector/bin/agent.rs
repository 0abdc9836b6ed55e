//! `sightline agent`: collects here and ships; no store, no queries.
//!
//! What sources and pushes bring rests in a queue on disk ([`DiskQueue`]) from its `fdatasync` to the remote's answer. The
//! queue's log also remembers how far each source has got. Sinks of the configuration file work beside, or without, `--to`.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use collector::{
    elastic,
    listen::{self, ListenLimits},
    push_and_grpc_routers,
};
use http::{HeaderMap, StatusCode, header};
use pipeline::{
    Positions, Running,
    buffer::disk::DiskQueue,
    metrics::write_prometheus,
    sink::{buffered::BufferedSink, otlp, remote::RemoteSink, store::Destination},
};
use query::http::prometheus::InForce;
use storage::lock::DataDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    app::{self, DRAIN, StartError},
    cli::AgentArgs,
    config::{Config, DEFAULT_DATA_DIR},
    own_routes,
    reload::Reloadable,
};

/// The sink that `--to` makes.
pub const TO: &str = "to";
/// Where an agent keeps its queue unless told otherwise.
const DATA_DIR: &str = "./sightline-agent";
/// Undelivered rows on disk unless told otherwise.
const QUEUE_BYTES: u64 = 1 << 30;
/// What the bounds of requests and batches in flight follow from.
const MEMORY_BYTES: usize = 256 << 20;

/// An agent at work.
pub struct Agent {
    queue: DiskQueue,
    running: Running,
    own: Arc<Own>,
    listeners: JoinSet<()>,
    stop_listening: CancellationToken,
    reloadable: Arc<Reloadable>,
    pub banner: Vec<String>,
    _dir: DataDir,
}

struct Own {
    ready: AtomicBool,
    started: Instant,
    metrics: Box<dyn Fn(&mut String) + Send + Sync>,
    to: String,
    /// What shippers of Elasticsearch are told.
    elastic_version: Arc<str>,
}

/// The sink's configuration, as it would stand in the file.
fn sink_config(args: &AgentArgs, url: &str) -> Result<otlp::Config, StartError> {
    let mut config = serde_json::json!({ "inputs": [], "url": url });
    if let Some(token) = &args.token {
        config["auth"] = serde_json::json!({ "bearer": token });
    }
    if let Some(tenant) = &args.tenant {
        config["tenant"] = serde_json::json!(tenant);
    }
    if let Some(file) = &args.ca_file {
        config["tls"] = serde_json::json!({ "ca_file": file });
    }
    let wrong = |e: &dyn std::fmt::Display| StartError::Config(format!("--to: {e}"));
    let config: otlp::Config = serde_json::from_value(config).map_err(|e| wrong(&e))?;
    match config.problems().as_slice() {
        [] => Ok(config),
        [(key, message), ..] => Err(StartError::Config(format!("--to: {key}: {message}"))),
    }
}

/// Starts everything; nothing is left behind when it fails.
pub async fn start(mut config: Config, args: &AgentArgs) -> Result<Agent, StartError> {
    let started = Instant::now();
    if config.pipeline.sinks.values().any(pipeline::sink::registry::SinkConfig::is_store) {
        let message = "an agent has no store; take sinks of type store out, or run without `agent`";
        return Err(StartError::Config(message.into()));
    }
    if config.store.dir == Path::new(DEFAULT_DATA_DIR) {
        config.store.dir = DATA_DIR.into();
    }
    let sink = args.to.as_deref().map(|url| sink_config(args, url)).transpose()?;
    if sink.is_none() && config.pipeline.sinks.is_empty() {
        return Err(StartError::Config("nowhere to ship; give --to URL, or sinks in the configuration".into()));
    }
    let http = app::bind(config.http, "the HTTP API", "http").await?;
    let grpc = app::bind(config.otlp_grpc, "OTLP over gRPC", "otlp-grpc").await?;
    let otlp_http = app::bind(config.otlp_http, "OTLP over HTTP", "otlp-http").await?;
    let address = |l: &tokio::net::TcpListener, asked| l.local_addr().unwrap_or(asked);
    let (http_addr, grpc_addr) = (address(&http, config.http), address(&grpc, config.otlp_grpc));
    let otlp_http_addr = address(&otlp_http, config.otlp_http);

    let path = config.store.dir.clone();
    let queue_bytes = args.queue.map_or(QUEUE_BYTES, |b| b.0);
    let opened = tokio::task::spawn_blocking(move || -> Result<_, StartError> {
        let dir = DataDir::open(path)?;
        let queue = DiskQueue::open(&dir.path().join("queue"), queue_bytes)
            .map_err(|e| StartError::Config(crate::chain(&e)))?;
        Ok((dir, queue))
    });
    let (dir, queue) = opened.await.map_err(|e| StartError::Config(e.to_string()))??;

    // Nothing is kept here: unless told otherwise, less than a store takes.
    let memory = match args.serve.memory_limit {
        Some(_) => config.store.memory_bytes_max,
        None => config.store.memory_bytes_max.min(MEMORY_BYTES),
    };
    let push = app::push_config(&config, memory);
    let (push_metrics, elastic_version) = (push.metrics.clone(), push.elastic_version.clone());
    let syslogs = config.syslog_counters();
    let pools = config.scrapers();
    let scrapers: Vec<_> = pools.iter().map(|(n, p)| (n.clone(), p.counters.clone())).collect();
    if !config.rules.sources.is_empty() {
        tracing::warn!("an agent evaluates no rules: the server it ships to does");
    }
    let (args, written) = (config.args.clone(), config.written.clone());
    let reloadable = Arc::new(Reloadable::new(args, written, InForce::default(), pools, None));
    let (mut builder, mut found) = app::plan_pipeline(config, memory).await?;
    let to = match sink {
        None => "the sinks of the configuration".to_owned(),
        Some(sink) => {
            let protocol = sink.protocol(TO).map_err(StartError::Config)?;
            let positions: Arc<dyn Destination> = Arc::new(queue.clone());
            let remote = RemoteSink::new(Arc::new(protocol), sink.remote().delivery, positions);
            builder = builder.rest_sink(TO, Box::new(BufferedSink::new(queue.clone(), remote)));
            sink.url
        }
    };
    let positions: Arc<dyn Positions> = Arc::new(queue.clone());
    let running =
        builder.build_on(Arc::new(queue.clone()), positions).map_err(|e| StartError::Config(e.to_string()))?;
    let out = running.input(app::PUSH).ok_or_else(|| StartError::Config("the pipeline has no push input".into()))?;
    let registry = running.registry();
    let own = Arc::new(Own {
        ready: AtomicBool::new(false),
        started,
        metrics: Box::new(move |text| {
            write_prometheus(text, &registry.snapshot());
            push_metrics.render(text);
            collector::syslog::counters::render(&syslogs, text);
            collector::prometheus::counters::render(&scrapers, text);
        }),
        to: to.clone(),
        elastic_version,
    });
    let (writes, grpc_writes) = push_and_grpc_routers(push, out);
    let all = Router::new().merge(routes(own.clone())).merge(writes.clone()).fallback(own_routes::nothing);
    let stop_listening = CancellationToken::new();
    let mut listeners = JoinSet::new();
    let limits = ListenLimits { drain: DRAIN, ..ListenLimits::default() };
    for (listener, router) in [(http, all), (grpc, grpc_writes), (otlp_http, writes)] {
        listeners.spawn(listen::serve(listener, router, limits.clone(), stop_listening.clone()));
    }
    own.ready.store(true, Ordering::Release);
    found.push(format!("takes OTLP gRPC {grpc_addr}, OTLP HTTP {otlp_http_addr}, Loki push and NDJSON on the first"));
    found.push(format!("ships to {to}"));
    found.push(format!("queues in {}", dir.path().display()));
    let mut banner = vec![format!("sightline agent {} at http://{http_addr}", env!("CARGO_PKG_VERSION"))];
    banner.extend(found.into_iter().map(|line| format!("  {line}")));
    Ok(Agent { queue, running, own, listeners, stop_listening, reloadable, banner, _dir: dir })
}

impl Agent {
    /// Resolves when a part of the process has failed that it cannot work without.
    pub fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        self.running.failed()
    }

    pub fn reloadable(&self) -> Arc<Reloadable> {
        self.reloadable.clone()
    }

    /// Stop order: not ready, listeners, pipeline, queue. What was not delivered goes after the next start.
    pub async fn stop(mut self) -> bool {
        self.own.ready.store(false, Ordering::Release);
        self.stop_listening.cancel();
        let listeners = async { while self.listeners.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, listeners).await.is_err() {
            tracing::warn!("listeners had requests in flight when the deadline came");
        }
        self.running.stop(DRAIN).await;
        let closed = self.queue.close().await;
        if let Err(e) = &closed {
            tracing::error!(error = %e, "the queue could not be closed; what was acknowledged is in it");
        }
        let left = self.queue.bytes();
        if left > 0 {
            tracing::warn!(bytes = left, "rows are left in the queue; they are shipped after the next start");
        }
        closed.is_ok()
    }
}

fn routes(own: Arc<Own>) -> Router {
    Router::new()
        .route(
            "/",
            get(|State(own): State<Arc<Own>>, headers: HeaderMap| async move {
                if elastic::asks(&headers) {
                    return elastic::root(&own.elastic_version);
                }
                format!("sightline agent, ships to {}\n", own.to).into_response()
            }),
        )
        .route("/ready", get(ready))
        .route("/-/ready", get(ready))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/-/healthy", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .with_state(own)
}

async fn ready(State(own): State<Arc<Own>>) -> Response {
    if own.ready.load(Ordering::Acquire) {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "not ready: starting or stopping\n")
            .into_response()
    }
}

async fn metrics(State(own): State<Arc<Own>>) -> Response {
    let mut text = own_routes::render(&own_routes::process_lines(own.started));
    (own.metrics)(&mut text);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
