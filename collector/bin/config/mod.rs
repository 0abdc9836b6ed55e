//! The one configuration: flags, environment and YAML file, read raw, then checked into [`Config`].
//!
//! A flag beats the environment, the environment beats the file, the file beats the defaults. Checking finds every
//! error of the file at once.

pub mod check;
mod downsample;
pub mod rules;
mod scrape;
mod shown;
pub mod tenants;
pub mod units;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use collector::yaml;
use collector::{containers, file_tail, host_metrics, prometheus, syslog};
use pipeline::{
    PipelineBuilder, PipelineConfig,
    trial::{self, Case},
};
use query::promql::Features;
use serde::Deserialize;
use storage::{
    Durability, Promoted, StoreConfig,
    config::{Retention, RetentionRule},
    model::{Table, TenantId},
    object::BucketUrl,
    vfs::{Clock, SystemClock},
};

pub use self::shown::Written;
use self::{
    check::Problem,
    units::{Bytes, Fsync, Span},
    yaml::Document,
};
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

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    http: Option<SocketAddr>,
    otlp_grpc: Option<SocketAddr>,
    otlp_http: Option<SocketAddr>,
    /// Other sites whose pages may read the Prometheus API: `https://grafana.example`, `*` for all.
    allowed_origins: Vec<String>,
    no_collect: Option<bool>,
    fsync: Option<Fsync>,
    memory_limit: Option<Bytes>,
    log_level: Option<String>,
    /// As the flag `--enable-feature`.
    enable_feature: Vec<String>,
    retention: Vec<FileRetention>,
    limits: FileLimits,
    tenants: tenants::Section,
    telemetry: FileTelemetry,
    storage: FileStorage,
    elasticsearch: FileElastic,
    sources: BTreeMap<String, serde_json::Value>,
    transforms: BTreeMap<String, serde_json::Value>,
    sinks: BTreeMap<String, serde_json::Value>,
    rules: Vec<rules::Entry>,
    alerting: rules::Alerting,
    /// Run by `sightline test`.
    tests: Vec<serde_json::Value>,
}

/// Bounds of what comes in.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileLimits {
    /// Bytes one request may inflate to.
    inflated_bytes: Option<Bytes>,
    /// How far ahead of our clock a record may be.
    future: Option<Span>,
    /// How old a record may be; by default any age is taken.
    past: Option<Span>,
    /// Share of the disk in use, in percent, above which writes are refused.
    disk_used_percent: Option<u8>,
}

/// Tuning of the store. The defaults follow from the memory limit; small values make many small files, which suits tests
/// of flush and compaction and hardly anything else.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileStorage {
    /// `s3://bucket/prefix`: parts and their logs go there.
    store: Option<String>,
    /// Disk for what is read from the bucket; by default 4GiB.
    cache_bytes: Option<Bytes>,
    /// Bytes of one table in memory that trigger a flush; by default a sixth of the memory limit, 4MiB to 128MiB.
    flush_bytes: Option<Bytes>,
    /// Age of the oldest row in memory that triggers a flush; by default 5m.
    flush_age: Option<Span>,
    /// The write-ahead log's length above which writes are refused, when nothing can be flushed; by default 4GiB.
    wal_bytes: Option<Bytes>,
    /// Attributes of logs and spans that get a column `a_<key>` of their own in the files, at most 64.
    promote: Vec<String>,
    /// Aggregates of samples over 5m and 1h; none by default.
    downsample: Vec<downsample::Entry>,
}

/// What Elasticsearch's shippers are told of us.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileElastic {
    /// `8.11.0` by default; Beats before 8.0 refuse a server that is older than they are.
    version: Option<String>,
}

/// Our own logs, metrics and traces.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileTelemetry {
    enabled: Option<bool>,
    /// Between two readings of our metrics; 15s by default.
    interval: Option<Span>,
    /// Whose tables they rest in; `sightline` by default.
    tenant: Option<String>,
    /// Share of requests without a `traceparent` that are traced, 0 to 1; 0.01 by default.
    trace_sample_ratio: Option<f64>,
}

/// How long rows are kept.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRetention {
    keep: Span,
    #[serde(default)]
    table: Option<String>,
    #[serde(default)]
    tenant: Option<String>,
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

/// How one case of the section `tests` went.
pub struct Outcome {
    pub name: String,
    /// As `file:line:column: path: message`; empty when all is as expected.
    pub problems: Vec<String>,
}

/// Runs the section `tests` of a text. A text with errors is not run.
pub fn test(text: &str, name: &str) -> Result<Vec<Outcome>, ConfigError> {
    let document = parse(text, name)?;
    let mut problems = Vec::new();
    build(&document, &ServeArgs::default(), &rules::base(name), &mut problems);
    let file: Option<File> = check::read(&document, "", &document.value, &mut Vec::new());
    let Some(file) = file.filter(|_| problems.is_empty()) else { return Err(ConfigError(lines(name, problems))) };
    let sources = components(&document, "sources", &file.sources, &mut problems);
    let outcome = |(place, case): (String, Case)| {
        let found = trial::run(&case, |clock| wired(&document, &sources, &file, clock));
        let found = found.into_iter().map(|p| problem_of_case(&document, &place, p)).collect();
        Outcome { name: case.name, problems: lines(name, found) }
    };
    Ok(cases(&document, &file, &mut problems).into_iter().map(outcome).collect())
}

/// The cases of the section `tests`, each with its place.
fn cases(document: &Document, file: &File, problems: &mut Vec<Problem>) -> Vec<(String, Case)> {
    let mut out = Vec::new();
    for (i, raw) in file.tests.iter().enumerate() {
        let place = format!("tests[{i}]");
        if let Some(case) = check::read(document, &place, raw, problems) {
            out.push((place, case));
        }
    }
    out
}

fn problem_of_case(document: &Document, place: &str, problem: trial::Problem) -> Problem {
    let path = if problem.path.is_empty() { place.to_owned() } else { format!("{place}.{}", problem.path) };
    let unknown = problem.message.starts_with("unknown field") || problem.message.starts_with("there is no output");
    Problem {
        place: if unknown { document.key_place(&path) } else { document.place(&path) },
        path,
        message: problem.message,
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

/// Reads each component of a section on its own, so that one bad one does not hide the others.
fn components<T: serde::de::DeserializeOwned>(
    document: &Document,
    section: &str,
    raw: &BTreeMap<String, serde_json::Value>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, T> {
    let mut out = BTreeMap::new();
    for (name, value) in raw {
        if let Some(read) = check::read(document, &yaml::join(section, name), value, problems) {
            out.insert(name.clone(), read);
        }
    }
    out
}

/// What transforms and sinks name as their inputs.
fn named_inputs(file: &File) -> BTreeSet<String> {
    let components = file.transforms.values().chain(file.sinks.values());
    let inputs = components.filter_map(|c| c.get("inputs")?.as_array());
    inputs.flatten().filter_map(|i| i.as_str()).map(str::to_owned).collect()
}

/// The graph of the file, unstarted. Sources stand for themselves by their names and signals.
fn wired(
    document: &Document,
    sources: &BTreeMap<String, SourceConfig>,
    file: &File,
    clock: Arc<dyn Clock>,
) -> PipelineBuilder {
    let mut unused = Vec::new();
    let pipeline = PipelineConfig {
        transforms: components(document, "transforms", &file.transforms, &mut unused),
        sinks: components(document, "sinks", &file.sinks, &mut unused),
    };
    let mut builder = PipelineBuilder::with_clock(pipeline, clock);
    let collects = !file.no_collect.unwrap_or(false);
    let named = named_inputs(file);
    for (name, signals) in crate::app::fixed_sources(collects) {
        builder = builder.input(name, signals);
    }
    for (name, signals) in crate::app::fixed_sources(true).into_iter().skip(1) {
        if !collects && named.contains(name) && !sources.contains_key(name) {
            builder = builder.input(name, signals);
        }
    }
    for (name, source) in sources {
        let signals = match source {
            SourceConfig::HostMetrics(_) | SourceConfig::PrometheusScrape(_) => pipeline::Signals::METRICS,
            SourceConfig::Files(_) | SourceConfig::Containers(_) | SourceConfig::Syslog(_) => pipeline::Signals::LOGS,
        };
        builder = builder.input(name, signals);
    }
    builder
}

/// Names, cycles and signals of the graph, and what its tests name.
fn wiring(
    document: &Document,
    sources: &BTreeMap<String, SourceConfig>,
    file: &File,
    cases: &[(String, Case)],
    ships_rest: bool,
) -> Vec<Problem> {
    let mut builder = wired(document, sources, file, Arc::new(SystemClock::new()));
    if ships_rest {
        builder = builder.expect_rest_sink(crate::agent::TO);
    }
    match builder.check() {
        Ok(graph) => {
            let found = cases.iter().flat_map(|(place, case)| {
                let problems = trial::check(case, &graph).into_iter();
                problems.map(|p| problem_of_case(document, place, p)).collect::<Vec<_>>()
            });
            found.collect()
        }
        Err(e) => e
            .0
            .into_iter()
            .map(|e| Problem {
                place: document.place(&e.path),
                message: match &e.nearest {
                    Some(n) if !e.message.contains("did you mean") => format!("{}; did you mean `{n}`?", e.message),
                    _ => e.message.clone(),
                },
                path: e.path,
            })
            .collect(),
    }
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
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_is_an_error_and_nothing_worse() {
        let seeds = vec![
            include_bytes!("example.yaml").to_vec(),
            b"retention:\n  - {keep: 30d, table: spans}\nlimits: {inflated_bytes: 64MiB, future: 10m}\nfsync: interval=200ms\n\
              sources:\n  app: {type: files, include: [\"/var/log/*.log\"], labels: {app: shop}}\n"
                .to_vec(),
        ];
        let words = [
            "&a ",
            "*a",
            "!!binary ",
            "<<: ",
            "- ",
            "? ",
            ": ",
            "|",
            ">",
            "{",
            "}",
            "[",
            "]",
            "---\n",
            "\t",
            "null",
            "'",
        ];
        let target = fuzzing::Target { name: "config", seeds, words: &words };
        fuzzing::run(env!("CARGO_MANIFEST_DIR"), target, |input| {
            let text = String::from_utf8_lossy(input);
            let checked = check(&text, "f");
            let tested = test(&text, "f").is_ok();
            match checked {
                Ok(_) => format!("fine {tested}"),
                Err(ConfigError(lines)) => format!("{} {}", fuzzing::size(lines.len()), fuzzing::outline(&lines[0])),
            }
        });
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = Config::load(&ServeArgs::default()).unwrap();
        assert_eq!(config.http.to_string(), "127.0.0.1:7600");
        assert_eq!(config.store.durability, Durability::Group);
        assert!(config.collect);
    }

    #[test]
    fn every_error_comes_at_once_with_its_place() {
        let text = "htpp: 1\nfsync: sometimes\nmemory_limit: big\nretention:\n  - {keep: 30d, table: lgos}\n\
                    sinks:\n  out: {type: stdoot}\n";
        let ConfigError(lines) = check(text, "f.yaml").unwrap_err();
        let all = lines.join("\n");
        assert_eq!(lines.len(), 5, "{all}");
        assert!(lines[0].starts_with("f.yaml:1:1: htpp: unknown field `htpp`"), "{all}");
        assert!(lines[0].contains("did you mean `http`?"), "{all}");
        assert!(lines[1].starts_with("f.yaml:2:8: fsync: invalid fsync mode"), "{all}");
        assert!(lines[2].starts_with("f.yaml:3:15: memory_limit: invalid size"), "{all}");
        assert!(lines[3].contains("5:24: retention[0].table: unknown table `lgos`"), "{all}");
        assert!(lines[4].contains("did you mean `stdout`?"), "{all}");
    }

    #[test]
    fn a_bucket_is_named_by_the_file_or_a_flag() {
        let text = "storage: {store: s3://logs/prod, cache_bytes: 1GiB}\n";
        let document = Document::parse(text).unwrap();
        let mut problems = Vec::new();
        let store = build(&document, &ServeArgs::default(), Path::new("."), &mut problems).unwrap().store;
        assert_eq!((store.bucket.unwrap().to_string().as_str(), store.cache_bytes), ("s3://logs/prod", 1 << 30));
        let args = ServeArgs { store: Some("s3://other".into()), ..ServeArgs::default() };
        let store = build(&document, &args, Path::new("."), &mut problems).unwrap().store;
        assert_eq!(store.bucket.unwrap().to_string(), "s3://other");
        assert!(problems.is_empty(), "{problems:?}");
        let ConfigError(lines) = check("storage: {store: gs://x}\n", "f.yaml").unwrap_err();
        assert!(lines[0].starts_with("f.yaml:1:18: storage.store: invalid store `gs://x`"), "{lines:?}");
    }

    #[test]
    fn flushes_are_tuned_within_the_memory_limit() {
        let document =
            Document::parse("memory_limit: 96MiB\nstorage: {flush_bytes: 64KiB, flush_age: 300ms}\n").unwrap();
        let mut problems = Vec::new();
        let config = build(&document, &ServeArgs::default(), Path::new("."), &mut problems).unwrap();
        assert_eq!((config.store.flush_bytes, config.store.flush_age), (64 << 10, Duration::from_millis(300)));
        let document = Document::parse("memory_limit: 96MiB\nstorage: {flush_bytes: 1GiB}\n").unwrap();
        assert_eq!(
            build(&document, &ServeArgs::default(), Path::new("."), &mut problems).unwrap().store.flush_bytes,
            16 << 20
        );
        assert!(problems.is_empty(), "{problems:?}");
        let ConfigError(lines) = check("storage: {promote: [a.b, a_b]}\n", "f.yaml").unwrap_err();
        assert!(lines[0].contains("same column a_a_b"), "{lines:?}");
        let ConfigError(lines) = check("storage: {flush_age: 0s, flush_bites: 3}\n", "f.yaml").unwrap_err();
        assert!(lines.iter().any(|l| l.contains("did you mean `flush_bytes`?")), "{lines:?}");
    }

    #[test]
    fn downsampling_is_read_and_every_slip_has_its_place() {
        let text = "storage:\n  downsample:\n    - {match: ['{job=\"a\"}', up], resolutions: [1h], after: 2h, query: auto}\n    - {}\n";
        let document = Document::parse(text).unwrap();
        let mut problems = Vec::new();
        let store = build(&document, &ServeArgs::default(), Path::new("."), &mut problems).unwrap().store;
        assert!(problems.is_empty(), "{problems:?}");
        let [first, second] = &store.downsample.rules[..] else { panic!("two rules") };
        assert_eq!((first.selectors.len(), first.resolutions.len(), first.auto), (2, 1, true));
        assert_eq!((first.after, second.after), (Duration::from_secs(7200), Duration::from_secs(3600)));
        assert_eq!((second.selectors.len(), second.resolutions.len(), second.auto), (1, 2, false));
        let text = "storage:\n  downsample:\n    - {match: ['{job='], resolutions: [10m, 5m, 5m]}\n    - {query: yes, \
                    tenant: a/b}\n    - {resolution: [5m]}\n    - {resolutions: []}\n";
        let ConfigError(lines) = check(text, "f.yaml").unwrap_err();
        let all = lines.join("\n");
        for wanted in [
            "f.yaml:3:16: storage.downsample[0].match[0]: ",
            "f.yaml:3:40: storage.downsample[0].resolutions[0]: unknown resolution `10m`, expected 5m or 1h",
            "storage.downsample[0].resolutions[2]: `5m` is there twice",
            "f.yaml:4:15: storage.downsample[1].query: unknown choice `yes`, expected raw or auto",
            "storage.downsample[1].tenant: ",
            "f.yaml:5:8: storage.downsample[2].resolution: unknown field `resolution`",
            "storage.downsample[3].resolutions: expected 5m, 1h or both",
        ] {
            assert!(all.contains(wanted), "{wanted} is not in\n{all}");
        }
    }

    #[test]
    fn a_syslog_source_is_read_and_its_slips_are_told() {
        check("sources:\n  net: {type: syslog, udp: '127.0.0.1:1514', utc_offset: '+02:00'}\n", "f.yaml").unwrap();
        let ConfigError(lines) =
            check("sources:\n  net: {type: syslog, udpp: '127.0.0.1:1', utc_offset: '2'}\n", "f.yaml").unwrap_err();
        assert!(lines.iter().any(|l| l.contains("did you mean `udp`?")), "{lines:?}");
        assert!(lines.iter().any(|l| l.contains("sources.net: invalid offset `2`")), "{lines:?}");
    }

    #[test]
    fn wiring_is_checked_too() {
        let text = "sinks:\n  out: {type: stdout, inputs: [psuh]}\n";
        let ConfigError(lines) = check(text, "f.yaml").unwrap_err();
        let slip = lines.iter().find(|l| l.contains("psuh")).unwrap();
        assert!(
            slip.starts_with("f.yaml:2:32: sinks.out.inputs[0]") && slip.contains("did you mean `push`?"),
            "{lines:?}"
        );
        assert!(lines.iter().any(|l| l.contains("sources.containers")), "rows of a source nobody takes: {lines:?}");
        check("no_collect: true\nsinks:\n  out: {type: stdout, inputs: [push]}\n", "f.yaml").unwrap();
    }

    #[test]
    fn dead_letters_have_a_name_also_those_of_where_an_agent_ships() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.yaml");
        std::fs::write(&path, "sinks:\n  later: {type: file, inputs: [to.dead_letter], path: /tmp/refused.ndjson}\n")
            .unwrap();
        let args = |ships_rest| ServeArgs { config: Some(path.clone()), ships_rest, ..ServeArgs::default() };
        let config = Config::load(&args(true)).unwrap();
        assert!(config.named_inputs.contains("to.dead_letter"));
        let ConfigError(lines) = Config::load(&args(false)).unwrap_err();
        assert!(lines.iter().any(|l| l.contains("there is no source or transform `to.dead_letter`")), "{lines:?}");
        let text = "no_collect: true\ntransforms:\n  p: {type: parse, inputs: [push], format: json}\nsinks:\n  \
                    a: {type: store, inputs: [p, p.dead_letter, b.dead_letter]}\n  \
                    b: {type: loki, inputs: [p, a.dead_letter], url: 'http://x'}\n";
        let ConfigError(lines) = check(text, "f.yaml").unwrap_err();
        let told = "f.yaml:6:31: sinks.b.inputs[1]: `a` has no dead letters: it refuses nothing";
        assert_eq!(lines, [told]);
        check(&text.replace(", a.dead_letter", ""), "f.yaml").unwrap();
    }

    #[test]
    fn tests_of_the_file_are_checked_with_it() {
        let text = "no_collect: true\ntransforms:\n  f: {type: filter, inputs: [push], condition: '.body == \"a\"'}\n\
                    tests:\n  - {name: one, insert_at: g, input: [{bdoy: a}], expect: dropped}\n  - {nmae: two}\n";
        let ConfigError(lines) = check(text, "f.yaml").unwrap_err();
        assert!(lines.iter().any(|l| l.starts_with("f.yaml:6:6: tests[1].nmae: unknown field")), "{lines:?}");
        let text = text.replace("  - {nmae: two}\n", "");
        let ConfigError(lines) = check(&text, "f.yaml").unwrap_err();
        assert!(lines.iter().any(|l| l.starts_with("f.yaml:5:28: tests[0].insert_at: there is no")), "{lines:?}");
        assert!(lines.iter().any(|l| l.contains("tests[0].input[0].bdoy") && l.contains("`body`")), "{lines:?}");
    }

    #[test]
    fn a_failing_test_says_where_it_expects_what() {
        let text = "no_collect: true\ntransforms:\n  f: {type: filter, inputs: [push], condition: '.body == \"a\"'}\n\
                    tests:\n  - {name: one, insert_at: f, input: [{body: a}], expect: dropped}\n\
                    \x20 - {name: two, insert_at: f, input: [{body: a}],\n     expect: [{body: b}]}\n\
                    \x20 - {name: three, insert_at: f, input: [{body: b}], expect: dropped}\n";
        let outcomes = test(text, "f.yaml").unwrap();
        assert_eq!(outcomes.len(), 3);
        assert!(
            outcomes[0].problems[0].starts_with("f.yaml:5:59: tests[0].expect: expected no row, got 1 row"),
            "{:?}",
            outcomes[0].problems
        );
        assert!(
            outcomes[1].problems[0].starts_with("f.yaml:7:22: tests[1].expect[0].body: expected \"b\""),
            "{:?}",
            outcomes[1].problems
        );
        assert!(outcomes[2].problems.is_empty());
    }

    /// The worked example of the README is kept beside this test, so that it is always right.
    #[test]
    fn the_example_of_the_readme_passes_its_own_tests() {
        let outcomes = test(include_str!("example.yaml"), "example.yaml").unwrap_or_else(|e| panic!("{:#?}", e.0));
        assert!(outcomes.len() >= 4);
        for outcome in &outcomes {
            assert!(outcome.problems.is_empty(), "{}: {:#?}", outcome.name, outcome.problems);
        }
    }
}
