//! The configuration file as it is written, before anything is checked.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use serde::Deserialize;

use super::{
    downsample, rules, tenants,
    units::{Bytes, Fsync, Span},
};

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub data_dir: Option<PathBuf>,
    pub http: Option<SocketAddr>,
    pub otlp_grpc: Option<SocketAddr>,
    pub otlp_http: Option<SocketAddr>,
    /// Other sites whose pages may read the Prometheus API: `https://grafana.example`, `*` for all.
    pub allowed_origins: Vec<String>,
    pub no_collect: Option<bool>,
    pub fsync: Option<Fsync>,
    pub memory_limit: Option<Bytes>,
    pub log_level: Option<String>,
    /// As the flag `--enable-feature`.
    pub enable_feature: Vec<String>,
    pub retention: Vec<FileRetention>,
    pub limits: FileLimits,
    pub tenants: tenants::Section,
    pub telemetry: FileTelemetry,
    pub storage: FileStorage,
    pub elasticsearch: FileElastic,
    pub sources: BTreeMap<String, serde_json::Value>,
    pub transforms: BTreeMap<String, serde_json::Value>,
    pub sinks: BTreeMap<String, serde_json::Value>,
    pub rules: Vec<rules::Entry>,
    pub alerting: rules::Alerting,
    /// Run by `sightline test`.
    pub tests: Vec<serde_json::Value>,
}

/// Bounds of what comes in.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileLimits {
    /// Bytes one request may inflate to.
    pub inflated_bytes: Option<Bytes>,
    /// How far ahead of our clock a record may be.
    pub future: Option<Span>,
    /// How old a record may be; by default any age is taken.
    pub past: Option<Span>,
    /// Share of the disk in use, in percent, above which writes are refused.
    pub disk_used_percent: Option<u8>,
}

/// Tuning of the store. The defaults follow from the memory limit; small values make many small files, which suits tests
/// of flush and compaction and hardly anything else.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileStorage {
    /// `s3://bucket/prefix`: parts and their logs go there.
    pub store: Option<String>,
    /// Disk for what is read from the bucket; by default 4GiB.
    pub cache_bytes: Option<Bytes>,
    /// Bytes of one table in memory that trigger a flush; by default a sixth of the memory limit, 4MiB to 128MiB.
    pub flush_bytes: Option<Bytes>,
    /// Age of the oldest row in memory that triggers a flush; by default 5m.
    pub flush_age: Option<Span>,
    /// The write-ahead log's length above which writes are refused, when nothing can be flushed; by default 4GiB.
    pub wal_bytes: Option<Bytes>,
    /// Attributes of logs and spans that get a column `a_<key>` of their own in the files, at most 64.
    pub promote: Vec<String>,
    /// Aggregates of samples over 5m and 1h; none by default.
    pub downsample: Vec<downsample::Entry>,
}

/// What Elasticsearch's shippers are told of us.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileElastic {
    /// `8.11.0` by default; Beats before 8.0 refuse a server that is older than they are.
    pub version: Option<String>,
}

/// Our own logs, metrics and traces.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileTelemetry {
    pub enabled: Option<bool>,
    /// Between two readings of our metrics; 15s by default.
    pub interval: Option<Span>,
    /// Whose tables they rest in; `sightline` by default.
    pub tenant: Option<String>,
    /// Share of requests without a `traceparent` that are traced, 0 to 1; 0.01 by default.
    pub trace_sample_ratio: Option<f64>,
}

/// How long rows are kept.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRetention {
    pub keep: Span,
    #[serde(default)]
    pub table: Option<String>,
    #[serde(default)]
    pub tenant: Option<String>,
}
