//! `/status/*` and `/features`: what clients ask to know whom they speak to and what it holds.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use axum::{body::Body, extract::Request, http::Response};
use parking_lot::RwLock;
use serde_json::{Value, json};
use storage::{
    Census,
    model::{Table, TimeRange, Timestamp},
};

use super::{Answer, Api, query::now_ms};
use crate::{
    annotations::Annotations,
    error::QueryError,
    http::{
        envelope,
        params::{Params, invalid},
    },
    promql::print::duration_text,
};

/// The Prometheus version whose behaviour this follows; Grafana reads it to know what it may ask.
const LIKE_PROMETHEUS: &str = "3.5.0";

/// How far back `/status/tsdb` looks for series: as far as the memory of a Prometheus reaches.
const HEAD_MS: i64 = 2 * 3_600_000;

/// Lines of a list of `/status/tsdb` without a `limit`, and at most.
const TOP_DEFAULT: usize = 10;
const TOP_MAX: usize = 10_000;

/// The configuration in force, as clients are shown it. Clones share it.
#[derive(Clone, Debug)]
pub struct InForce(Arc<RwLock<Shown>>);

#[derive(Debug)]
struct Shown {
    yaml: String,
    since: SystemTime,
    /// Whether the latest reload was taken.
    latest: bool,
}

impl Default for InForce {
    fn default() -> Self {
        InForce::new(String::new())
    }
}

impl InForce {
    /// `yaml` has no secrets.
    pub fn new(yaml: String) -> Self {
        InForce(Arc::new(RwLock::new(Shown { yaml, since: SystemTime::now(), latest: true })))
    }

    /// After a reload.
    pub fn set(&self, yaml: String) {
        *self.0.write() = Shown { yaml, since: SystemTime::now(), latest: true };
    }

    /// After a reload of something faulty: what was in force stays.
    pub fn refused(&self) {
        self.0.write().latest = false;
    }
}

/// What the binary knows of its process.
#[derive(Clone, Debug, Default)]
pub struct About {
    pub configuration: InForce,
    /// Bytes that the process may take; 0: not known.
    pub memory_bytes: u64,
}

fn success(data: &Value) -> Response<Body> {
    envelope::prometheus_success(&data.to_string(), &Annotations::default())
}

pub(super) async fn build_info() -> Response<Body> {
    success(&json!({
        "version": LIKE_PROMETHEUS,
        "revision": concat!("sightline-", env!("CARGO_PKG_VERSION")),
        "branch": "HEAD",
        "buildUser": "",
        "buildDate": "",
        "goVersion": "",
    }))
}

fn millis(d: std::time::Duration) -> String {
    duration_text(i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// How long samples of tenants without a rule of their own are kept.
fn retention(api: &Api) -> String {
    let keep = api.store.config().retention.keep(&storage::model::TenantId::default(), Table::MetricSamples);
    keep.map_or_else(|| "0s".to_owned(), millis)
}

pub(super) fn flags(api: &Api) -> Response<Body> {
    let limits = &api.limits;
    let flags = BTreeMap::from([
        ("query.lookback-delta", millis(limits.lookback)),
        ("query.max-concurrency", limits.concurrent_max.to_string()),
        ("query.max-samples", limits.samples_max.to_string()),
        ("query.timeout", millis(limits.timeout)),
        ("storage.remote.read-concurrent-limit", crate::limits::READS_CONCURRENT_MAX.to_string()),
        ("storage.remote.read-max-bytes-in-frame", crate::limits::READ_FRAME_BYTES.to_string()),
        ("storage.remote.read-sample-limit", limits.samples_max.to_string()),
        ("storage.tsdb.retention.time", retention(api)),
        // Clients read these to know what they may ask for.
        ("web.enable-admin-api", "true".to_owned()),
        ("web.enable-lifecycle", "false".to_owned()),
        ("web.enable-remote-write-receiver", "true".to_owned()),
        ("web.enable-otlp-receiver", "true".to_owned()),
    ]);
    success(&json!(flags))
}

pub(super) fn config(api: &Api) -> Response<Body> {
    success(&json!({"yaml": api.about.configuration.0.read().yaml}))
}

pub(super) fn runtime_info(api: &Api) -> Response<Body> {
    let time =
        |t: SystemTime| chrono::DateTime::<chrono::Utc>::from(t).to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
    let (since, latest) = {
        let shown = api.about.configuration.0.read();
        (shown.since, shown.latest)
    };
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    success(&json!({
        "startTime": time(api.started),
        "CWD": std::env::current_dir().map(|d| d.display().to_string()).unwrap_or_default(),
        "hostname": hostname.trim(),
        "serverTime": time(SystemTime::now()),
        "reloadConfigSuccess": latest,
        "lastConfigTime": time(since),
        "corruptionCount": api.store.metrics().quarantined_parts.load(Ordering::Relaxed),
        "goroutineCount": 0,
        "GOMAXPROCS": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "GOMEMLIMIT": api.about.memory_bytes,
        "GOGC": "",
        "GODEBUG": "",
        "storageRetention": retention(api),
    }))
}

/// The log has been replayed before anything is answered.
pub(super) async fn wal_replay() -> Response<Body> {
    success(&json!({"min": 0, "max": 0, "current": 0, "state": "done"}))
}

/// What Prometheus has behind flags, by category.
pub(super) async fn features() -> Response<Body> {
    success(&json!({
        "api": {
            "admin": true, "exemplars": true, "format_query": true, "label_values_match": true, "lifecycle": false,
            "metadata": true, "otlp_write_receiver": true, "parse_query": true, "query_stats": true,
            "query_warnings": true, "remote_read": true, "remote_read_streamed": true,
            "remote_write_receiver": true, "time_range_labels": true, "time_range_series": true,
        },
        "promql": {
            "anchored": true, "at_modifier": true, "bool": true, "by": true, "duration_expr": true, "fill": true,
            "group_left": true, "group_right": true, "ignoring": true, "negative_offset": true, "offset": true,
            "on": true, "per_query_lookback_delta": true, "smoothed": true, "subqueries": true,
        },
        "tsdb": {"delete_series": true, "exemplar_storage": true, "native_histograms": true, "out_of_order": true},
    }))
}

/// What the head of a Prometheus would hold: series with a sample in the last two hours. `chunkCount` counts what their samples
/// and histograms rest in, each with many series: batches in memory and parts on disk.
pub(super) async fn tsdb(api: Api, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let top = match params.get("limit").filter(|v| !v.is_empty()).map(str::parse::<usize>) {
        None => TOP_DEFAULT,
        Some(Ok(n)) if (1..=TOP_MAX).contains(&n) => n,
        Some(_) => return Err(invalid("limit", &format!("limit must be a number from 1 to {TOP_MAX}"))),
    };
    let now = now_ms();
    let range = TimeRange::new(Timestamp::from_millis(now - HEAD_MS), Timestamp::from_millis(now + 1));
    let range = range.ok_or_else(|| QueryError::Internal("the clock is beyond all time".into()))?;
    Ok(success(&tsdb_status(&api.store.census(&tenant, range, top).await?)))
}

fn tsdb_status(census: &Census) -> Value {
    // As a Prometheus without samples tells them.
    let (min, max) = census.times.unwrap_or((i64::MAX, i64::MIN));
    let list = |all: &[(String, u64)]| -> Vec<Value> {
        all.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
    };
    let pairs: Vec<(String, u64)> =
        census.series_by_pair.iter().map(|((name, value), n)| (format!("{name}={value}"), *n)).collect();
    json!({
        "headStats": {
            "numSeries": census.series, "numLabelPairs": census.pairs, "chunkCount": census.pieces,
            "minTime": min, "maxTime": max,
        },
        "seriesCountByMetricName": list(&census.series_by_metric),
        "labelValueCountByLabelName": list(&census.values_by_name),
        "memoryInBytesByLabelName": list(&census.value_bytes_by_name),
        "seriesCountByLabelValuePair": list(&pairs),
    })
}
