//! Puts the process together: store, pipeline, read and write APIs, listeners; and takes it apart in the right order.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    time::{Duration, Instant},
};

use axum::Router;
use collector::{
    PushConfig, containers, host_metrics,
    listen::{self, ListenLimits},
    push_and_grpc_routers,
};
use pipeline::{PipelineBuilder, Running, Signals};
use query::{
    http::{prometheus::InForce, rules::Reload},
    promql::{Engine, EngineOptions},
    rules::{
        notify::{Desk, NotifySettings, plan::Plan},
        ruler,
    },
};
use storage::{OpenError, Store};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    alert_targets,
    config::{self, Config, SourceConfig},
    own_routes::{self, Own},
    reload::{self, Reloadable},
    telemetry::{Recording, Telemetry},
};

/// What the push protocols send into, by this name in `inputs:`.
pub const PUSH: &str = "push";
/// Logs of this machine's containers.
const CONTAINERS: &str = "containers";
/// Metrics of this machine and its containers.
const HOST: &str = "host";

/// How long each step of a stop may take.
pub const DRAIN: Duration = Duration::from_secs(3);

/// Sources that are there without configuration, by name; with `collects` those of this machine too.
pub fn fixed_sources(collects: bool) -> Vec<(&'static str, Signals)> {
    let mut out = vec![(PUSH, Signals::ALL)];
    if collects {
        out.extend([(CONTAINERS, Signals::LOGS), (HOST, Signals::METRICS)]);
    }
    out
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot listen on {addr} for {what}; free the address or set another with --{flag}")]
    Listen { addr: SocketAddr, what: &'static str, flag: &'static str, source: std::io::Error },
    #[error("{0}")]
    Config(String),
}

/// A process at work.
pub struct App {
    store: Store,
    running: Running,
    own: Arc<Own>,
    recording: Option<Recording>,
    rules: ruler::Running,
    /// Looks for Alertmanagers.
    told_by: JoinSet<()>,
    reloadable: Arc<dyn Reload>,
    listeners: JoinSet<&'static str>,
    stop_listening: CancellationToken,
    /// All routes of the HTTP API, for the test that asks each of them.
    #[cfg(test)]
    pub router: Router,
    /// The services of the gRPC port, for the same test.
    #[cfg(test)]
    pub grpc_router: Router,
    /// What to print once it runs.
    pub banner: Vec<String>,
}

/// Starts everything; nothing is left behind when it fails.
/// `telemetry`: our own signals, which go into the store from here on.
pub async fn start(mut config: Config, telemetry: Option<Telemetry>) -> Result<App, StartError> {
    let started = Instant::now();
    // Addresses first: a second process on the same ports must not touch the data.
    let http = bind(config.http, "the HTTP API", "http").await?;
    let grpc = bind(config.otlp_grpc, "OTLP over gRPC", "otlp-grpc").await?;
    let otlp_http = bind(config.otlp_http, "OTLP over HTTP", "otlp-http").await?;
    let address = |l: &TcpListener, asked: SocketAddr| l.local_addr().unwrap_or(asked);
    let (http_addr, grpc_addr) = (address(&http, config.http), address(&grpc, config.otlp_grpc));
    let otlp_http_addr = address(&otlp_http, config.otlp_http);

    let dir = std::path::absolute(&config.store.dir).unwrap_or_else(|_| config.store.dir.clone());
    let stores_in = match &config.store.bucket {
        None => dir.display().to_string(),
        Some(url) => format!("{url}, log and cache in {}", dir.display()),
    };
    let memory = config.store.memory_bytes_max;
    let durability = config.store.durability;
    let store = Store::open(config.store.clone()).await?;

    let mut push = push_config(&config, memory);
    push.tenants = Arc::new(std::mem::take(&mut config.tenants.ingest));
    let (metrics, tenants) = (push.metrics.clone(), push.tenants.clone());
    let elastic_version = push.elastic_version.clone();
    config.limit_tenants(&tenants);
    let configuration = InForce::new(config.written.shown());
    let query_limits = query::limits::Limits { tenants: config.tenants.queries.clone(), ..Default::default() };
    let mut queries = query::QueryConfig {
        limits: query_limits,
        about: query::http::prometheus::About { configuration: configuration.clone(), memory_bytes: memory as u64 },
        origins: query::http::cross_origin::Origins::of(std::mem::take(&mut config.allowed_origins)),
        scraper: crate::scrape_targets::of(config.scrapers()),
        promql: query::promql::EngineOptions { features: config.features, ..Default::default() },
        ..query::QueryConfig::default()
    };
    let syslogs = config.syslog_counters();
    let mut rules = std::mem::take(&mut config.rules);
    let (told, mut rules) = tokio::task::spawn_blocking(move || {
        let told = alert_targets::prepare(&mut rules);
        (told, rules)
    })
    .await
    .map_err(|e| StartError::Config(e.to_string()))?;
    let (targets, told) = watch::channel(Arc::new(told.map_err(StartError::Config)?));
    let (args, written) = (config.args.clone(), std::mem::take(&mut config.written));
    let scrapers = config.scrapers();
    let scrape_counters: Vec<_> = scrapers.iter().map(|(n, p)| (n.clone(), p.counters.clone())).collect();
    let (builder, found) = plan_pipeline(config, memory).await?;
    let running = builder.build(store.clone()).map_err(|e| StartError::Config(e.to_string()))?;
    let out = running.input(PUSH).ok_or_else(|| StartError::Config("the pipeline has no push input".into()))?;
    let registry = running.registry();
    let url = format!("http://{http_addr}");
    let telemetry_lines = telemetry.as_ref().map(Telemetry::render);
    let state_dir = dir.join("rules");
    let desk = open_desk(rules.plan.take(), &rules, &url, &state_dir).await?;
    let (rules, rules_running) = start_rules(&rules, desk.clone(), &url, &state_dir, &queries.limits, &store).await?;
    queries.ruler = Some(rules.clone());
    let mut told_by = JoinSet::new();
    told_by.spawn(alert_targets::keep(rules.clone(), told));
    let at_work = reload::Rules { ruler: rules.clone(), desk, targets, url: url.clone(), state_dir };
    let reloadable: Arc<dyn Reload> =
        Arc::new(Reloadable::new(args, written, configuration, scrapers, Some(at_work)));
    queries.reloader = query::http::rules::Reloader(Some(reloadable.clone()));
    let own = Arc::new(Own {
        store: store.clone(),
        ready: AtomicBool::new(false),
        started,
        extra: Box::new(move |text| {
            pipeline::metrics::write_prometheus(text, &registry.snapshot());
            metrics.render(text);
            tenants.render(text);
            text.push_str(&own_routes::render(&rules.metrics()));
            collector::syslog::counters::render(&syslogs, text);
            collector::prometheus::counters::render(&scrape_counters, text);
            if let Some(lines) = &telemetry_lines {
                lines(text);
            }
        }),
        url: url.clone(),
        facts: vec![
            ("Collects".into(), found.join("; ")),
            ("Stores in".into(), stores_in.clone()),
            ("Durability".into(), format!("{durability:?}")),
            ("OTLP".into(), format!("gRPC {grpc_addr}, HTTP {otlp_http_addr}")),
        ],
        elastic_version,
    });
    let (writes, grpc_writes) = push_and_grpc_routers(push, out);
    let reads = query::router(queries, store.clone());
    let all = Router::new()
        .merge(own_routes::routes(own.clone()))
        .merge(crate::backup::routes(store.clone()))
        .merge(reads)
        .merge(writes.clone())
        .fallback(own_routes::nothing);

    #[cfg(test)]
    let (router, grpc_router) = (all.clone(), grpc_writes.clone());
    let figures = own.clone();
    let recording = telemetry.map(|t| t.record(store.clone(), move || figures.figures()));
    let traced = |router: Router| match &recording {
        Some(recording) => recording.traced(router),
        None => router,
    };
    let (all, writes, grpc_writes) = (traced(all), traced(writes), traced(grpc_writes));

    let stop_listening = CancellationToken::new();
    let mut listeners = JoinSet::new();
    let limits = ListenLimits { drain: DRAIN, ..ListenLimits::default() };
    let (l, stop) = (limits.clone(), stop_listening.clone());
    listeners.spawn(async move {
        listen::serve(http, all, l, stop).await;
        "HTTP"
    });
    let (l, stop) = (limits.clone(), stop_listening.clone());
    listeners.spawn(async move {
        listen::serve(grpc, grpc_writes, l, stop).await;
        "OTLP gRPC"
    });
    let (l, stop) = (limits, stop_listening.clone());
    listeners.spawn(async move {
        listen::serve(otlp_http, writes, l, stop).await;
        "OTLP HTTP"
    });
    own.ready.store(true, Ordering::Release);
    tracing::info!(
        http = %http_addr,
        version = env!("CARGO_PKG_VERSION"),
        seconds = started.elapsed().as_secs_f64(),
        "serves queries and takes data"
    );
    let mut banner = vec![format!("sightline {} serves http://{http_addr}", env!("CARGO_PKG_VERSION"))];
    banner.extend(found.iter().map(|line| format!("  {line}")));
    banner.push(format!(
        "  takes OTLP gRPC {grpc_addr}, OTLP HTTP {otlp_http_addr}, Loki push and NDJSON on the first"
    ));
    banner.push(format!("  stores in {stores_in}"));
    banner.push(format!(
        "  try: curl -G '{url}/loki/api/v1/query_range' --data-urlencode 'query={{container=~\".+\"}}'"
    ));
    banner.push(format!(
        "       curl -G '{url}/api/v1/query' --data-urlencode 'query=rate(node_cpu_seconds_total[1m])'"
    ));
    Ok(App {
        store,
        running,
        own,
        recording,
        rules: rules_running,
        told_by,
        reloadable,
        listeners,
        stop_listening,
        #[cfg(test)]
        router,
        #[cfg(test)]
        grpc_router,
        banner,
    })
}

/// What takes silences and tells receivers, where the configuration has some.
async fn open_desk(
    plan: Option<Plan>,
    rules: &config::rules::Checked,
    url: &str,
    state_dir: &Path,
) -> Result<Option<Desk>, StartError> {
    let Some(plan) = plan else { return Ok(None) };
    let url = ruler_settings(rules, url, state_dir).external_url;
    let (clock, file) = (Arc::new(storage::vfs::SystemClock::new()), state_dir.join("told.json"));
    let open = tokio::task::spawn_blocking(move || Desk::open(plan, clock, url, file)).await;
    open.map(Some).map_err(|e| StartError::Config(format!("notifications cannot begin: {e}")))
}

/// Without the desk: it is opened once.
pub fn ruler_settings(rules: &config::rules::Checked, url: &str, state_dir: &Path) -> ruler::RulerSettings {
    ruler::RulerSettings {
        sources: rules.sources.clone(),
        interval: rules.interval,
        external_labels: rules.external_labels.clone(),
        external_url: rules.external_url.clone().unwrap_or_else(|| url.to_owned()),
        state_dir: state_dir.to_owned(),
        notify: NotifySettings {
            resend_delay: rules.resend_delay,
            alertmanagers: rules.alertmanagers.clone(),
            desk: None,
        },
    }
}

/// Begins the rules that the configuration names, if any.
async fn start_rules(
    rules: &config::rules::Checked,
    desk: Option<Desk>,
    url: &str,
    state_dir: &Path,
    limits: &query::limits::Limits,
    store: &Store,
) -> Result<(ruler::Ruler, ruler::Running), StartError> {
    let mut settings = ruler_settings(rules, url, state_dir);
    settings.notify.desk = desk;
    // Apart from people's queries: neither waits for the other.
    let engine = Engine::new(store.clone(), limits.clone(), EngineOptions::default());
    let clock = Arc::new(storage::vfs::SystemClock::new());
    let started = ruler::Ruler::start(settings, engine, store.clone(), clock, config::rules::discover()).await;
    started.map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        StartError::Config(lines.join("\n"))
    })
}

pub async fn bind(addr: SocketAddr, what: &'static str, flag: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(addr).await.map_err(|source| StartError::Listen { addr, what, flag, source })
}

pub fn push_config(config: &Config, memory: usize) -> PushConfig {
    let mut push = PushConfig { in_flight_bytes_max: (memory / 5).max(64 << 20), ..PushConfig::default() };
    if let Some(bytes) = config.inflated_bytes_max {
        push.limits.inflated_bytes_max = bytes;
    }
    if config.future_max.is_some() {
        push.limits.future_max = config.future_max;
    }
    push.limits.past_max = config.past_max;
    if let Some(version) = &config.elastic_version {
        push.elastic_version = version.as_str().into();
    }
    push
}

/// Sources, transforms and sinks, and a line for each thing that is collected.
pub async fn plan_pipeline(config: Config, memory: usize) -> Result<(PipelineBuilder, Vec<String>), StartError> {
    let mut found = Vec::new();
    let limits = pipeline::Limits { process_bytes: (memory / 8).max(16 << 20), ..pipeline::Limits::default() };
    let mut builder = PipelineBuilder::new(config.pipeline).limits(limits).input(PUSH, Signals::ALL);
    let mut configured: BTreeMap<String, SourceConfig> = config.sources;
    if config.collect {
        if !configured.values().any(|s| matches!(s, SourceConfig::Containers(_))) {
            configured.insert(CONTAINERS.into(), SourceConfig::Containers(containers::Config::default()));
        }
        if !configured.values().any(|s| matches!(s, SourceConfig::HostMetrics(_))) {
            configured.insert(HOST.into(), SourceConfig::HostMetrics(host_metrics::Config::default()));
        }
    } else {
        found.push("collects nothing from this machine (--no-collect)".to_owned());
        configured.retain(|_, s| {
            matches!(s, SourceConfig::Files(_) | SourceConfig::Syslog(_) | SourceConfig::PrometheusScrape(_))
        });
    }
    for (name, source) in &configured {
        let wrong = |e: &dyn std::fmt::Display| StartError::Config(format!("sources.{name}: {e}"));
        let made = match source {
            SourceConfig::Files(c) => {
                found.push(format!("reads files {}", c.include.join(", ")));
                c.source().map_err(|e| wrong(&e))?
            }
            SourceConfig::Containers(c) => {
                found.extend(containers::detect_with(c).await.summary);
                c.source().map_err(|e| wrong(&e))?
            }
            SourceConfig::Syslog(c) => {
                found.push(format!("takes syslog on {}", c.summary()));
                c.source().map_err(|e| wrong(&e))?
            }
            SourceConfig::PrometheusScrape(c) => {
                found.push(format!("scrapes {}", c.summary()));
                c.source().map_err(|e| wrong(&e))?
            }
            SourceConfig::HostMetrics(c) => {
                found.push(format!("takes host and container metrics every {} s", c.interval_seconds));
                c.source().map_err(|e| wrong(&e))?
            }
        };
        builder = builder.source(name, made);
    }
    // Transforms and sinks may name the sources of this machine even when they are off.
    for (name, signals) in fixed_sources(true) {
        if name != PUSH && config.named_inputs.contains(name) && !configured.contains_key(name) {
            builder = builder.input(name, signals);
        }
    }
    Ok((builder, found))
}

impl App {
    /// Resolves when a part of the process has failed that it cannot work without.
    pub fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        self.running.failed()
    }

    pub fn reloadable(&self) -> Arc<dyn Reload> {
        self.reloadable.clone()
    }

    /// Stop order: not ready, pipeline drains, listeners close, the store flushes. Whoever is late is named.
    pub async fn stop(mut self) -> bool {
        let began = Instant::now();
        self.own.ready.store(false, Ordering::Release);
        // New connections and requests end first, so that nothing is refused half way.
        self.stop_listening.cancel();
        let listeners = async {
            while let Some(done) = self.listeners.join_next().await {
                if let Err(e) = done {
                    tracing::error!(error = %e, "a listener panicked");
                }
            }
        };
        if tokio::time::timeout(DRAIN, listeners).await.is_err() {
            tracing::warn!("listeners had requests in flight when the deadline came");
        }
        let report = self.running.stop(DRAIN).await;
        self.told_by.shutdown().await;
        if !self.rules.stop(DRAIN).await {
            tracing::warn!("rules did not end before the deadline");
        }
        for name in &report.late {
            tracing::warn!(component = name, "did not drain before the deadline");
        }
        if let Some(recording) = self.recording.take() {
            recording.stop().await;
        }
        let flushed = self.store.close().await;
        if let Err(e) = &flushed {
            tracing::error!(error = %e, "the head could not be flushed; the write-ahead log keeps its rows");
        }
        tracing::info!(seconds = began.elapsed().as_secs_f64(), "stopped");
        flushed.is_ok()
    }
}
