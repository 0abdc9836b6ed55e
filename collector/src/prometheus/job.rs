//! A configuration file checked into jobs, and everything in it that we do not do, by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pipeline::{
    codec::prom_text::{Options, Protocol},
    transform::relabel::{Rule, RuleConfig},
};

use super::{
    alertmanagers::{self, Alerting},
    config::{File, Global, HttpConfig, OAuth2, Scheme, ScrapeConfig, Size, Span, TlsConfig, parse_span},
    discovery::Discovery,
    resolution::{self, Resolution},
};

/// Bytes of one body unless `body_size_limit` says less: more than any real target exposes.
pub const BODY_BYTES_MAX: usize = 256 << 20;

/// Headers that `http_headers` may not set, as they are someone else's. Source: Prometheus 3.
const HEADERS_TAKEN: [&str; 17] = [
    "Accept-Encoding",
    "Authorization",
    "Connection",
    "Content-Encoding",
    "Content-Length",
    "Content-Type",
    "Host",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "User-Agent",
    "Www-Authenticate",
    "X-Amz-Content-Sha256",
    "X-Amz-Date",
    "X-Amz-Security-Token",
    "X-Prometheus-Remote-Write-Version",
    "X-Prometheus-Scrape-Timeout-Seconds",
];

const INTERVAL: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Something about a file: where, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `scrape_configs[0].relabel_configs[1].regex`.
    pub path: String,
    pub message: String,
    /// Of a key rather than its value.
    pub at_key: bool,
}

/// What [`check`] found.
#[derive(Default)]
pub struct Checked {
    pub jobs: Vec<Arc<Job>>,
    pub alerting: Alerting,
    /// Must be put right.
    pub errors: Vec<Finding>,
    /// Known to Prometheus, not done here: left out, and told.
    pub unsupported: Vec<Finding>,
}

/// One `scrape_config`, checked.
pub struct Job {
    pub name: String,
    /// The same for the same configuration.
    pub mark: u64,
    pub interval: Duration,
    pub timeout: Duration,
    pub honor_labels: bool,
    pub honor_timestamps: bool,
    pub track_timestamps_staleness: bool,
    pub protocols: Vec<Protocol>,
    pub fallback: Option<Protocol>,
    pub options: Options,
    /// Names are `[a-zA-Z_:][a-zA-Z0-9_:]*` only.
    pub legacy_names: bool,
    /// How targets shall escape names that are not.
    pub escaping: &'static str,
    pub metrics_path: String,
    pub scheme: Scheme,
    pub params: BTreeMap<String, Vec<String>>,
    pub compression: bool,
    pub body_bytes_max: usize,
    pub limits: SampleLimits,
    /// Of native histograms.
    pub resolution: Resolution,
    pub target_limit: Option<u64>,
    /// Dropped targets remembered for the API.
    pub keep_dropped: usize,
    pub extra_metrics: bool,
    /// Where scrapes that fail are written, a line of JSON each.
    pub failure_log: Option<PathBuf>,
    pub relabel: Vec<Rule>,
    pub metric_relabel: Vec<Rule>,
    pub http: HttpConfig,
    pub discovery: Vec<Discovery>,
}

/// `None`: no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct SampleLimits {
    pub samples: Option<u64>,
    pub labels: Option<u64>,
    pub name_bytes: Option<u64>,
    pub value_bytes: Option<u64>,
}

/// Dropped targets remembered of one job unless told otherwise.
const DROPPED_KEPT: usize = 10_000;

/// Collects findings below one path.
pub(super) struct Findings<'a> {
    out: &'a mut Checked,
    path: String,
}

impl Findings<'_> {
    pub fn error(&mut self, key: &str, message: impl Into<String>) {
        let path = self.at(key);
        self.out.errors.push(Finding { path, message: message.into(), at_key: false });
    }

    /// A key that we do not do.
    pub fn unsupported(&mut self, key: &str, set: bool, instead: &str) {
        if set {
            let path = self.at(key);
            let message = format!("`{}` is not supported{instead}", key.rsplit('.').next().unwrap_or(key));
            self.out.unsupported.push(Finding { path, message, at_key: true });
        }
    }

    fn at(&self, key: &str) -> String {
        match (self.path.is_empty(), key.is_empty()) {
            (true, _) => key.to_owned(),
            (_, true) => self.path.clone(),
            _ => format!("{}.{key}", self.path),
        }
    }

    pub fn below(&mut self, key: &str) -> Findings<'_> {
        let path = self.at(key);
        Findings { out: self.out, path }
    }
}

/// Checks a file. `folder`: what relative paths in it start from.
pub fn check(file: &File, folder: &Path) -> Checked {
    let mut out = Checked::default();
    let mut top = Findings { out: &mut out, path: String::new() };
    for (key, set, instead) in [
        ("runtime", file.runtime.is_some(), ": it tunes Prometheus' own process"),
        ("storage", file.storage.is_some(), ": set `storage` and `retention` in the configuration of Sightline"),
        ("tracing", file.tracing.is_some(), ": our own traces are in our own store"),
        ("otlp", file.otlp.is_some(), ": OTLP is taken with the default translation"),
        ("remote_write", file.remote_write.is_some(), " here: configure a sink of type prometheus_remote_write"),
        ("remote_read", file.remote_read.is_some(), ": queries are answered from what is stored here"),
        ("global.query_log_file", file.global.query_log_file.is_some(), ""),
    ] {
        top.unsupported(key, set, instead);
    }
    let (interval, timeout) = (file.global.scrape_interval, file.global.scrape_timeout);
    let interval = interval.filter(|s| !s.0.is_zero()).unwrap_or(Span(INTERVAL));
    if let Some(timeout) = timeout.filter(|t| t.0 > interval.0) {
        let message = format!("scrape timeout {timeout} is longer than the scrape interval {interval}");
        top.error("global.scrape_timeout", message);
    }
    let mut names = BTreeSet::new();
    let mut jobs = Vec::new();
    for (i, config) in file.scrape_configs.iter().enumerate() {
        let mut at = top.below(&format!("scrape_configs[{i}]"));
        if config.job_name.is_empty() {
            at.error("job_name", "is empty; every scrape configuration needs a name");
        } else if !names.insert(config.job_name.as_str()) {
            at.error("job_name", format!("there is another scrape configuration named {:?}", config.job_name));
        }
        jobs.push(Arc::new(job(config, &file.global, folder, &mut at)));
    }
    let alerting = file.alerting.clone().unwrap_or_default();
    let alerting = alertmanagers::check(&alerting, folder, &mut top.below("alerting"));
    out.jobs = jobs;
    out.alerting = alerting;
    out
}

fn job(config: &ScrapeConfig, global: &Global, folder: &Path, at: &mut Findings<'_>) -> Job {
    let discoveries = ": its targets are not scraped; file_sd_configs or http_sd_configs can name them";
    unsupported_discoveries(&config.unsupported_discoveries(), discoveries, at);
    // 0 is what is not said.
    let said = |span: Option<Span>| span.map(|s| s.0).filter(|s| !s.is_zero());
    let interval = said(config.scrape_interval).or(said(global.scrape_interval)).unwrap_or(INTERVAL);
    // What is inherited gives way.
    let default = said(global.scrape_timeout).unwrap_or(TIMEOUT).min(interval);
    let timeout = said(config.scrape_timeout).unwrap_or(default);
    if timeout > interval {
        let (timeout, interval) = (Span(timeout), Span(interval));
        at.error("scrape_timeout", format!("scrape timeout {timeout} is longer than the scrape interval {interval}"));
    }
    let native = config.scrape_native_histograms.or(global.scrape_native_histograms).unwrap_or(false);
    let classic = config.always_scrape_classic_histograms.or(config.scrape_classic_histograms);
    let validation =
        config.metric_name_validation_scheme.as_deref().or(global.metric_name_validation_scheme.as_deref());
    let legacy_names = match validation {
        None | Some("utf8") => false,
        Some("legacy") => true,
        Some(other) => {
            at.error("metric_name_validation_scheme", format!("unknown scheme `{other}`, expected utf8 or legacy"));
            false
        }
    };
    let escaping = config.metric_name_escaping_scheme.as_deref().or(global.metric_name_escaping_scheme.as_deref());
    let escaping = match escaping {
        None if legacy_names => "underscores",
        Some("allow-utf-8") if legacy_names => {
            let message = "allow-utf-8 asks for names that metric_name_validation_scheme `legacy` refuses";
            at.error("metric_name_escaping_scheme", message);
            "allow-utf-8"
        }
        None | Some("allow-utf-8") => "allow-utf-8",
        Some("underscores") => "underscores",
        Some("dots") => "dots",
        Some("values") => "values",
        Some(other) => {
            let expected = "expected allow-utf-8, underscores, dots or values";
            at.error("metric_name_escaping_scheme", format!("unknown scheme `{other}`, {expected}"));
            "allow-utf-8"
        }
    };
    let limit = |own: Option<u64>, global: Option<u64>| own.filter(|n| *n > 0).or(global).filter(|n| *n > 0);
    let bytes = |size: Option<Size>| size.map(|Size(n)| n);
    let body = limit(bytes(config.body_size_limit), bytes(global.body_size_limit)).unwrap_or(0);
    // Of all that it follows from; what is not the scraper's left out.
    let inherited = Global {
        evaluation_interval: None,
        rule_query_offset: None,
        external_labels: BTreeMap::new(),
        query_log_file: None,
        ..global.clone()
    };
    Job {
        name: config.job_name.clone(),
        mark: xxhash_rust::xxh3::xxh3_64(format!("{config:?}\n{inherited:?}\n{folder:?}").as_bytes()),
        interval,
        timeout,
        honor_labels: config.honor_labels,
        honor_timestamps: config.honor_timestamps.unwrap_or(true),
        track_timestamps_staleness: config.track_timestamps_staleness,
        protocols: protocols(config.scrape_protocols.as_ref().or(global.scrape_protocols.as_ref()), native, at),
        fallback: config.fallback_scrape_protocol.as_deref().and_then(|name| {
            let found = Protocol::parse(name);
            if found.is_none() {
                at.error("fallback_scrape_protocol", unknown_protocol(name));
            }
            found
        }),
        options: Options {
            native,
            classic_too: classic.or(global.always_scrape_classic_histograms).unwrap_or(false),
            custom_buckets: config
                .convert_classic_histograms_to_nhcb
                .or(global.convert_classic_histograms_to_nhcb)
                .unwrap_or(false),
        },
        legacy_names,
        escaping,
        metrics_path: config.metrics_path.clone().unwrap_or_else(|| "/metrics".to_owned()),
        scheme: config.scheme,
        params: config.params.iter().map(|(k, v)| (k.clone(), v.iter().map(|t| t.0.clone()).collect())).collect(),
        compression: config.enable_compression.unwrap_or(true),
        body_bytes_max: usize::try_from(body).ok().filter(|n| *n > 0).unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX),
        limits: SampleLimits {
            samples: limit(config.sample_limit, global.sample_limit),
            labels: limit(config.label_limit, global.label_limit),
            name_bytes: limit(config.label_name_length_limit, global.label_name_length_limit),
            value_bytes: limit(config.label_value_length_limit, global.label_value_length_limit),
        },
        resolution: Resolution {
            buckets_max: limit(config.native_histogram_bucket_limit, None),
            schema_max: resolution::schema_of(config.native_histogram_min_bucket_factor.unwrap_or(0.0)),
        },
        target_limit: limit(config.target_limit, global.target_limit),
        keep_dropped: limit(config.keep_dropped_targets, global.keep_dropped_targets)
            .map_or(DROPPED_KEPT, |n| usize::try_from(n).unwrap_or(DROPPED_KEPT).min(DROPPED_KEPT)),
        extra_metrics: config.extra_scrape_metrics.or(global.extra_scrape_metrics).unwrap_or(false),
        failure_log: config
            .scrape_failure_log_file
            .as_ref()
            .or(global.scrape_failure_log_file.as_ref())
            .filter(|file| !file.as_os_str().is_empty())
            .map(|file| folder.join(file)),
        relabel: rules(&config.relabel_configs, "relabel_configs", at),
        metric_relabel: rules(&config.metric_relabel_configs, "metric_relabel_configs", at),
        http: http(config.http(), folder, at),
        discovery: Discovery::of(config.discoveries(), folder, at),
    }
}

fn unknown_protocol(name: &str) -> String {
    let names: Vec<&str> = Protocol::ALL.iter().map(|p| p.name()).collect();
    let near = pipeline::error::nearest(name, names.iter().copied());
    let hint = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
    format!("unknown scrape protocol `{name}`, expected one of {}{hint}", names.join(", "))
}

fn protocols(names: Option<&Vec<String>>, native: bool, at: &mut Findings<'_>) -> Vec<Protocol> {
    let mut out: Vec<Protocol> = Vec::new();
    if names.is_some_and(Vec::is_empty) {
        at.error("scrape_protocols", "is empty; name a protocol, or leave it out");
    }
    for (i, name) in names.into_iter().flatten().enumerate() {
        let key = format!("scrape_protocols[{i}]");
        match Protocol::parse(name) {
            None => at.error(&key, unknown_protocol(name)),
            Some(protocol) if out.contains(&protocol) => at.error(&key, format!("`{name}` is given twice")),
            Some(protocol) => out.push(protocol),
        }
    }
    if out.is_empty() {
        out.extend(native.then_some(Protocol::Protobuf));
        out.extend(Protocol::DEFAULT);
    }
    out
}

pub(super) fn rules(configs: &[RuleConfig], key: &str, at: &mut Findings<'_>) -> Vec<Rule> {
    let mut errors = Vec::new();
    let mut out = Vec::with_capacity(configs.len());
    for (i, config) in configs.iter().enumerate() {
        out.extend(Rule::new(config, &format!("{key}[{i}]"), &mut errors));
    }
    for error in errors {
        at.error(&error.path, error.message);
    }
    out
}

/// Names discoveries that we do not have.
pub(super) fn unsupported_discoveries(found: &[(&str, bool)], instead: &str, at: &mut Findings<'_>) {
    for (key, set) in found {
        at.unsupported(key, *set, instead);
    }
}

/// Paths made absolute; contradictions and what we do not do told.
pub(super) fn http(mut config: HttpConfig, folder: &Path, at: &mut Findings<'_>) -> HttpConfig {
    let join = |path: &mut Option<PathBuf>| {
        if let Some(p) = path {
            *p = folder.join(&p);
        }
    };
    at.unsupported("proxy_connect_header", config.proxy_connect_header.is_some(), "");
    let ways = [
        config.basic_auth.is_some(),
        config.authorization.is_some(),
        config.oauth2.is_some(),
        config.bearer_token.is_some() || config.bearer_token_file.is_some(),
    ];
    if ways.into_iter().filter(|w| *w).count() > 1 {
        at.error(
            "",
            "at most one of basic_auth, authorization, oauth2, bearer_token and bearer_token_file may be set",
        );
    }
    if let Some(basic) = &mut config.basic_auth {
        join(&mut basic.password_file);
        join(&mut basic.username_file);
        at.unsupported("basic_auth.username_ref", basic.username_ref.is_some(), "");
        at.unsupported("basic_auth.password_ref", basic.password_ref.is_some(), "");
        if basic.password.is_some() && basic.password_file.is_some() {
            at.error("basic_auth", "at most one of password and password_file may be set");
        }
    }
    if let Some(auth) = &mut config.authorization {
        join(&mut auth.credentials_file);
        at.unsupported("authorization.credentials_ref", auth.credentials_ref.is_some(), "");
        if auth.credentials.is_some() && auth.credentials_file.is_some() {
            at.error("authorization", "at most one of credentials and credentials_file may be set");
        }
        if auth.kind.as_deref().is_some_and(|k| k.trim().eq_ignore_ascii_case("basic")) {
            at.error("authorization.type", "cannot be `basic`; use basic_auth");
        }
    }
    if let Some(oauth2) = &mut config.oauth2 {
        join(&mut oauth2.client_secret_file);
        oauth2_keys(oauth2, &mut at.below("oauth2"));
        tls(&mut oauth2.tls_config, folder, &mut at.below("oauth2"));
        let (url, except) = (oauth2.proxy_url.as_ref(), oauth2.no_proxy.is_some());
        proxy(url, except, oauth2.proxy_from_environment, &mut at.below("oauth2"));
    }
    join(&mut config.bearer_token_file);
    tls(&mut config.tls_config, folder, at);
    for (name, header) in &mut config.http_headers {
        if HEADERS_TAKEN.iter().any(|taken| taken.eq_ignore_ascii_case(name)) {
            at.error(&format!("http_headers.{name}"), format!("{name:?} is not to be set here"));
        }
        for file in &mut header.files {
            *file = folder.join(&*file);
        }
    }
    proxy(config.proxy_url.as_ref(), config.no_proxy.is_some(), config.proxy_from_environment, at);
    config
}

fn proxy(url: Option<&String>, no_proxy: bool, of_environment: bool, at: &mut Findings<'_>) {
    if of_environment && (url.is_some() || no_proxy) {
        let key = if url.is_some() { "proxy_url" } else { "no_proxy" };
        at.error(key, "cannot stand beside proxy_from_environment, which says it all");
        return;
    }
    match url {
        Some(url) => {
            if let Err(e) = reqwest::Proxy::all(url) {
                at.error("proxy_url", format!("is not a proxy's address: {e}"));
            }
        }
        None if no_proxy => at.error("no_proxy", "needs a proxy_url beside it"),
        None => {}
    }
}

fn oauth2_keys(config: &OAuth2, at: &mut Findings<'_>) {
    for (key, value) in [
        ("client_secret_ref", &config.client_secret_ref),
        ("proxy_connect_header", &config.proxy_connect_header),
        ("iss", &config.iss),
        ("audience", &config.audience),
        ("claims", &config.claims),
        ("signature_algorithm", &config.signature_algorithm),
        ("client_certificate_key_id", &config.client_certificate_key_id),
        ("client_certificate_key", &config.client_certificate_key),
        ("client_certificate_key_file", &config.client_certificate_key_file),
        ("client_certificate_key_ref", &config.client_certificate_key_ref),
    ] {
        at.unsupported(key, value.is_some(), ": tokens are those of the client credentials grant");
    }
    let granted = config.grant_type.as_ref().and_then(|g| g.as_str());
    if config.grant_type.is_some() && granted != Some("client_credentials") {
        at.unsupported("grant_type", true, ": tokens are those of the client credentials grant");
    }
    if config.client_id.0.is_empty() {
        at.error("client_id", "is empty");
    }
    if config.client_secret.is_some() && config.client_secret_file.is_some() {
        at.error("", "at most one of client_secret and client_secret_file may be set");
    }
    match url::Url::parse(&config.token_url) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => {}
        _ => at.error("token_url", format!("`{}` is not an address of http or https", config.token_url)),
    }
}

/// Paths made absolute; contradictions told.
fn tls(tls: &mut TlsConfig, folder: &Path, at: &mut Findings<'_>) {
    for path in [&mut tls.ca_file, &mut tls.cert_file, &mut tls.key_file].into_iter().flatten() {
        *path = folder.join(&*path);
    }
    at.unsupported("tls_config.ca_ref", tls.ca_ref.is_some(), "");
    at.unsupported("tls_config.cert_ref", tls.cert_ref.is_some(), "");
    at.unsupported("tls_config.key_ref", tls.key_ref.is_some(), "");
    if (tls.cert.is_some() || tls.cert_file.is_some()) != (tls.key.is_some() || tls.key_file.is_some()) {
        at.error("tls_config", "a certificate needs its key, and a key its certificate");
    }
    for (key, version) in [("min_version", &tls.min_version), ("max_version", &tls.max_version)] {
        match version.as_deref() {
            None | Some("TLS12" | "TLS13") => {}
            Some(other) => {
                at.error(
                    &format!("tls_config.{key}"),
                    format!("unsupported version `{other}`, expected TLS12 or TLS13"),
                );
            }
        }
    }
}

/// `__scrape_interval__` and `__scrape_timeout__` of a target.
pub(super) fn target_times(interval: &str, timeout: &str) -> Result<(Duration, Duration), String> {
    let parsed_interval = parse_span(interval).map_err(|e| format!("__scrape_interval__: {e}"))?;
    let parsed_timeout = parse_span(timeout).map_err(|e| format!("__scrape_timeout__: {e}"))?;
    if parsed_interval.is_zero() || parsed_timeout.is_zero() {
        return Err("scrape interval and timeout cannot be 0".to_owned());
    }
    if parsed_timeout > parsed_interval {
        return Err(format!("scrape timeout cannot be greater than scrape interval ({timeout:?} > {interval:?})"));
    }
    Ok((parsed_interval, parsed_timeout))
}
