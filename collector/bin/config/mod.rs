//! The one configuration: flags, environment and YAML file, read raw, then checked into [`Config`].
//!
//! A flag beats the environment, the environment beats the file, the file beats the defaults. Checking finds every
//! error of the file at once.

pub mod check;
mod downsample;
mod file;
mod graph;
pub mod rules;
mod scrape;
mod shown;
pub mod tenants;
pub mod units;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

pub use collector::yaml;
use collector::{containers, file_tail, host_metrics, prometheus, syslog};
use pipeline::PipelineConfig;
use query::promql::Features;
use serde::Deserialize;
use storage::{
    Durability, Promoted, StoreConfig,
    config::{Retention, RetentionRule},
    model::{Table, TenantId},
    object::BucketUrl,
};

use self::{
    check::Problem,
    file::{File, FileRetention, FileTelemetry},
    graph::{cases, components, named_inputs, wiring},
    units::{Bytes, Span},
    yaml::Document,
};
pub use self::{graph::test, shown::Written};
use crate::{cli::ServeArgs, telemetry::Settings};

/// Every source that can be configured by name. The push protocols, container logs and host metrics need no entry.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SourceConfig {
    Files(file_tail::Config),
    Containers(containers::Config),
    HostMetrics(host_metrics::Config),
    PrometheusScrape(prometheus::Config),
    Syslog(syslog::Config),
}

/// Where everything is stored unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "./sightline-data";

/// The checked configuration.
#[derive(Debug)]
pub struct Config {
    pub store: StoreConfig,
    pub http: SocketAddr,
    pub otlp_grpc: SocketAddr,
    pub otlp_http: SocketAddr,
    pub allowed_origins: Vec<String>,
    /// What the files say.
    pub written: Written,
    /// What it was read by, to be read again.
    pub args: ServeArgs,
    pub collect: bool,
    pub log_level: String,
    pub features: Features,
    pub inflated_bytes_max: Option<usize>,
    pub future_max: Option<Duration>,
    pub past_max: Option<Duration>,
    pub tenants: tenants::Checked,
    pub elastic_version: Option<String>,
    pub telemetry: Settings,
    pub sources: BTreeMap<String, SourceConfig>,
    /// Names that transforms and sinks take from.
    pub named_inputs: BTreeSet<String>,
    pub pipeline: PipelineConfig,
    pub rules: rules::Checked,
    /// What is left out although it was asked for, ready to print.
    pub warnings: Vec<String>,
}

impl Config {
    /// What the syslog sources count, by name.
    pub fn syslog_counters(&self) -> Vec<(String, Arc<syslog::counters::Counters>)> {
        let counters = |(name, source): (&String, &SourceConfig)| match source {
            SourceConfig::Syslog(c) => Some((name.clone(), c.counters.clone())),
            _ => None,
        };
        self.sources.iter().filter_map(counters).collect()
    }

    /// Puts the sources that others send to under the limits of their tenants.
    pub fn limit_tenants(&mut self, tenants: &Arc<collector::tenants::Tenants>) {
        for source in self.sources.values_mut() {
            if let SourceConfig::Syslog(c) = source {
                c.tenants = tenants.clone();
            }
        }
    }

    /// What a scraping source scrapes.
    pub fn scraped(&self, name: &str) -> Option<&[Arc<prometheus::job::Job>]> {
        match self.sources.get(name)? {
            SourceConfig::PrometheusScrape(c) => Some(&c.jobs),
            _ => None,
        }
    }

    /// What the scraping sources show of themselves, by name.
    pub fn scrapers(&self) -> Vec<(String, Arc<prometheus::Pools>)> {
        let pools = |(name, source): (&String, &SourceConfig)| match source {
            SourceConfig::PrometheusScrape(c) => Some((name.clone(), c.pools.clone())),
            _ => None,
        };
        self.sources.iter().filter_map(pools).collect()
    }
}

/// Everything that stands in the way, ready to print.
#[derive(Debug)]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// Reads the file that the flags name, if any, and lays the flags over it.
    pub fn load(args: &ServeArgs) -> Result<Config, ConfigError> {
        let (document, name) = match &args.config {
            None => (None, String::new()),
            Some(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path)
                    .map_err(|e| ConfigError(vec![format!("cannot read configuration {name}: {e}")]))?;
                (Some(parse(&text, &name)?), name)
            }
        };
        let empty = Document::parse("").expect("an empty text is an empty document");
        let mut problems = Vec::new();
        let config = build(document.as_ref().unwrap_or(&empty), args, &rules::base(&name), &mut problems);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError(lines(&name, problems))),
        }
    }
}

/// Checks a text, ours or one of Prometheus: every problem at once, as `file:line:column: path: message`. What is left
/// out although it is asked for comes back in the same form.
pub fn check(text: &str, name: &str) -> Result<Vec<String>, ConfigError> {
    let document = parse(text, name)?;
    if scrape::is_prometheus(&document) {
        let read = scrape::read_document(&document, name, Path::new(name).parent().unwrap_or(Path::new("")));
        return read.map(|read| read.warnings).map_err(ConfigError);
    }
    let mut problems = Vec::new();
    let args = ServeArgs { config: Some(name.into()), ..ServeArgs::default() };
    let config = build(&document, &args, &rules::base(name), &mut problems);
    match config {
        Some(config) if problems.is_empty() => Ok(config.warnings),
        _ => Err(ConfigError(lines(name, problems))),
    }
}

fn parse(text: &str, name: &str) -> Result<Document, ConfigError> {
    Document::parse(text)
        .map_err(|e| ConfigError(vec![format!("{name}:{}:{}: {}", e.place.line, e.place.column, e.message)]))
}

fn lines(name: &str, mut problems: Vec<Problem>) -> Vec<String> {
    problems.sort_by(|a, b| (a.place, &a.path).cmp(&(b.place, &b.path)));
    problems.dedup();
    let place =
        |p: Problem| if name.is_empty() { format!("{}: {}", p.path, p.message) } else { format!("{name}:{p}") };
    problems.into_iter().map(place).collect()
}

fn build(document: &Document, args: &ServeArgs, base: &Path, problems: &mut Vec<Problem>) -> Option<Config> {
    let before = problems.len();
    let file: File = check::read(document, "", &document.value, problems)?;
    let at = |path: &str, message: String| Problem { place: document.place(path), path: path.to_owned(), message };
    let mut found = Vec::new();
    let bucket = match args.store.as_deref().or(file.storage.store.as_deref()).map(BucketUrl::parse) {
        Some(Err(e)) => {
            found.push(at("storage.store", e));
            None
        }
        Some(Ok(url)) => Some(url),
        None => None,
    };
    let mut retention = retention(&file.retention, &mut |path, message| found.push(at(path, message)));
    let tenants = tenants::check(&file.tenants, &mut retention, &mut |path, message| found.push(at(path, message)));
    let mut telemetry = telemetry(&file.telemetry, &mut |path, message| found.push(at(path, message)));
    telemetry.enabled = args.telemetry.unwrap_or(telemetry.enabled);
    let log_level = args.log_level.clone().or(file.log_level.clone()).unwrap_or_else(|| "warn".into());
    if let Err(e) = crate::telemetry::filter(&log_level) {
        found.push(at("log_level", e));
    }
    let mut features = Features::default();
    for (i, name) in file.enable_feature.iter().enumerate() {
        features.enable(name).unwrap_or_else(|e| found.push(at(&format!("enable_feature[{i}]"), e)));
    }
    for name in &args.enable_feature {
        features.enable(name).unwrap_or_else(|e| found.push(at("enable_feature", e)));
    }
    if file.storage.flush_bytes.is_some_and(|b| b.0 == 0) {
        found.push(at("storage.flush_bytes", "expected more than 0".into()));
    }
    let promoted = Promoted::new(&file.storage.promote).unwrap_or_else(|e| {
        found.push(at("storage.promote", e.to_string()));
        Promoted::default()
    });
    let downsample = downsample::check(&file.storage.downsample, &mut |path, message| found.push(at(path, message)));
    if file.storage.flush_age.is_some_and(|s| s.0.is_zero()) {
        found.push(at("storage.flush_age", "expected more than 0".into()));
    }
    if file.limits.disk_used_percent.is_some_and(|p| !(1..=100).contains(&p)) {
        found.push(at("limits.disk_used_percent", "expected 1 to 100".into()));
    }
    if let Some(version) = file.elasticsearch.version.as_deref().filter(|v| !is_version(v)) {
        let message = format!("`{version}` is no version such as 8.11.0");
        found.push(at("elasticsearch.version", message));
    }
    problems.append(&mut found);
    let mut rules = rules::check(document, &file.rules, &file.alerting, base, problems);
    let mut sources = components(document, "sources", &file.sources, problems);
    let mut warnings = Vec::new();
    let files = scrape::read_sources(document, args, &mut sources, &mut rules, problems, &mut warnings);
    let pipeline = PipelineConfig {
        transforms: components(document, "transforms", &file.transforms, problems),
        sinks: components(document, "sinks", &file.sinks, problems),
    };
    let cases = cases(document, &file, problems);
    if problems.len() == before {
        problems.extend(wiring(document, &sources, &file, &cases, args.ships_rest));
    }
    let named_inputs = named_inputs(&file);
    let mut store =
        StoreConfig::new(args.data_dir.clone().or(file.data_dir.clone()).unwrap_or_else(|| DEFAULT_DATA_DIR.into()));
    store.durability = args.fsync.or(file.fsync).map_or(Durability::Group, |f| f.0);
    store.memory_bytes_max = match args.memory_limit.or(file.memory_limit) {
        Some(Bytes(n)) => usize::try_from(n).unwrap_or(usize::MAX).max(MEMORY_MIN),
        None => default_memory(),
    };
    // A flush holds its rows twice while it sorts them.
    store.flush_bytes = (store.memory_bytes_max / 6).clamp(4 << 20, 128 << 20);
    if let Some(Bytes(n)) = file.storage.flush_bytes {
        // What is due for a flush must fit the head.
        store.flush_bytes = usize::try_from(n).unwrap_or(usize::MAX).min(store.memory_bytes_max / 6);
    }
    if let Some(Span(age)) = file.storage.flush_age {
        store.flush_age = age;
    }
    if let Some(Bytes(n)) = file.storage.wal_bytes {
        store.wal_bytes_full = n.max(WAL_MIN);
        // Files are deleted whole.
        store.wal_segment_bytes = store.wal_segment_bytes.min(store.wal_bytes_full / 8);
    }
    store.promoted = promoted;
    store.retention = retention;
    store.downsample = downsample;
    store.series = tenants.series.clone();
    store.bucket = bucket;
    if let Some(Bytes(n)) = args.cache_size.or(file.storage.cache_bytes) {
        store.cache_bytes = n;
    }
    if let Some(percent) = file.limits.disk_used_percent {
        store.disk_used_max = f64::from(percent) / 100.0;
    }
    let addr = |flag: Option<SocketAddr>, file: Option<SocketAddr>, port: u16| {
        flag.or(file).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)))
    };
    Some(Config {
        store,
        http: addr(args.http, file.http, 7600),
        otlp_grpc: addr(args.otlp_grpc, file.otlp_grpc, 4317),
        otlp_http: addr(args.otlp_http, file.otlp_http, 4318),
        allowed_origins: file.allowed_origins,
        written: Written { document: document.value.clone(), files },
        args: args.clone(),
        collect: !args.no_collect.or(file.no_collect).unwrap_or(false),
        log_level,
        features,
        inflated_bytes_max: file.limits.inflated_bytes.and_then(|b| usize::try_from(b.0).ok()),
        future_max: file.limits.future.map(|s| s.0),
        past_max: file.limits.past.map(|s| s.0),
        tenants,
        elastic_version: file.elasticsearch.version,
        telemetry,
        sources,
        named_inputs,
        pipeline,
        rules,
        warnings,
    })
}

/// `major.minor.patch`: clients compare these numbers.
fn is_version(text: &str) -> bool {
    let number = |n: &str| n.len() <= 4 && n.parse::<u16>().is_ok_and(|v| v.to_string() == n);
    text.split('.').count() == 3 && text.split('.').all(number)
}

/// Least time between two readings of our own metrics: each makes a few hundred rows.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Least memory the store works in.
const MEMORY_MIN: usize = 64 << 20;
const WAL_MIN: u64 = 16 << 20;

/// Three eighths of what the cgroup or the machine gives, at most 768 MiB.
fn default_memory() -> usize {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib * 1024)
    });
    let cgroup = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok());
    let given = machine.into_iter().chain(cgroup).min().unwrap_or(2 << 30);
    (given / 8 * 3).clamp(MEMORY_MIN, 768 << 20)
}

fn telemetry(file: &FileTelemetry, problem: &mut dyn FnMut(&str, String)) -> Settings {
    let mut out = Settings::default();
    out.enabled = file.enabled.unwrap_or(out.enabled);
    match file.interval {
        Some(Span(interval)) if interval < INTERVAL_MIN => {
            problem("telemetry.interval", format!("expected at least {INTERVAL_MIN:?}"));
        }
        Some(Span(interval)) => out.interval = interval,
        None => {}
    }
    match file.tenant.as_deref().map(TenantId::parse) {
        Some(Ok(tenant)) => out.tenant = tenant,
        Some(Err(e)) => problem("telemetry.tenant", e.to_string()),
        None => {}
    }
    match file.trace_sample_ratio {
        Some(ratio) if (0.0..=1.0).contains(&ratio) => out.trace_sample_ratio = ratio,
        Some(_) => problem("telemetry.trace_sample_ratio", "expected 0 to 1".to_owned()),
        None => {}
    }
    out
}

fn retention(rules: &[FileRetention], problem: &mut dyn FnMut(&str, String)) -> Retention {
    let mut out = Retention::default();
    for (i, rule) in rules.iter().enumerate() {
        let table = match rule.table.as_deref().map(|name| (name, Table::from_name(name))) {
            Some((name, None)) => {
                let valid: Vec<&str> = Table::ALL.iter().map(|t| t.name()).collect();
                let near = pipeline::error::nearest(name, valid.iter().copied());
                let hint = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
                problem(
                    &format!("retention[{i}].table"),
                    format!("unknown table `{name}`, expected one of {}{hint}", valid.join(", ")),
                );
                continue;
            }
            Some((_, table)) => table,
            None => None,
        };
        let tenant = match rule.tenant.as_deref().map(TenantId::parse) {
            Some(Err(e)) => {
                problem(&format!("retention[{i}].tenant"), e.to_string());
                continue;
            }
            Some(Ok(t)) => Some(t),
            None => None,
        };
        out.rules.push(RetentionRule { tenant, table, keep: rule.keep.0 });
    }
    out
}

#[cfg(test)]
#[path = "../../../storage/tests/fuzzing/mod.rs"]
mod fuzzing;

#[cfg(test)]
mod prometheus_files;
#[cfg(test)]
mod tests;
