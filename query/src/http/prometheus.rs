//! The Prometheus HTTP API (3.x): queries, metadata and the small status endpoints that clients probe.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arrow::{
    array::{Array, AsArray},
    datatypes::{Float64Type, Int64Type},
};
use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::Response,
    routing::get,
};
use storage::{
    ScanRequest, Selector, SeriesInfo, Store,
    model::{Labels, Matcher, Table, TenantId, TimeRange, json::write_string},
};

use super::{
    encode, envelope,
    params::{Params, invalid},
};
use crate::{
    annotations::Annotations,
    error::QueryError,
    fetch,
    limits::{Limits, MATCHES_MAX, POINTS_PER_SERIES_MAX},
    promql::{self, Engine, InstantRequest, Output, RangeRequest, Value, ast::ExprKind},
};

/// The Prometheus version whose behaviour this follows; Grafana reads it to know what it may ask.
const LIKE_PROMETHEUS: &str = "3.5.0";

const TRUNCATED: &str = "results truncated due to limit";

#[derive(Clone)]
pub struct Api {
    engine: Engine,
    store: Store,
    limits: Arc<Limits>,
    started: SystemTime,
}

impl Api {
    pub fn new(engine: Engine, store: Store, limits: Limits) -> Self {
        Api { engine, store, limits: Arc::new(limits), started: SystemTime::now() }
    }
}

type Answer = Result<Response<Body>, QueryError>;

/// Turns an error into its envelope.
fn answer(result: Answer) -> Response<Body> {
    result.unwrap_or_else(|e| envelope::prometheus_error(&e))
}

/// A handler of a request's parameters.
macro_rules! handler {
    ($f:ident) => {
        |State(api): State<Api>, request: Request| async move { answer($f(api, request).await) }
    };
}

/// Paths below `/api/v1`.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/query", get(handler!(query)).post(handler!(query)))
        .route("/query_range", get(handler!(query_range)).post(handler!(query_range)))
        .route("/series", get(handler!(series)).post(handler!(series)))
        .route("/labels", get(handler!(labels)).post(handler!(labels)))
        .route(
            "/label/{name}/values",
            get(|State(api): State<Api>, Path(name): Path<String>, request: Request| async move {
                answer(label_values(api, &name, request).await)
            }),
        )
        .route("/metadata", get(handler!(metadata)))
        .route("/query_exemplars", get(handler!(exemplars)).post(handler!(exemplars)))
        .route("/status/buildinfo", get(build_info))
        .route("/status/flags", get(|State(api): State<Api>| async move { flags(&api) }))
        .route("/status/config", get(|| async { fixed(r#"{"yaml":""}"#) }))
        .route("/status/runtimeinfo", get(|State(api): State<Api>| async move { runtime_info(&api) }))
        .route("/rules", get(|| async { fixed(r#"{"groups":[]}"#) }))
        .route("/alerts", get(|| async { fixed(r#"{"alerts":[]}"#) }))
        .route("/targets", get(|| async { fixed(r#"{"activeTargets":[],"droppedTargets":[]}"#) }))
        .route("/targets/metadata", get(|| async { fixed("[]") }))
        .route("/scrape_pools", get(|| async { fixed(r#"{"scrapePools":[]}"#) }))
        .route("/alertmanagers", get(|| async { fixed(r#"{"activeAlertmanagers":[],"droppedAlertmanagers":[]}"#) }))
        .with_state(api)
}

fn fixed(data: &'static str) -> Response<Body> {
    envelope::prometheus_success(data, &Annotations::default())
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// `timeout` or `lookback_delta`, above zero.
fn positive(params: &Params, name: &str) -> Result<Option<Duration>, QueryError> {
    match params.duration(name)? {
        Some(ms) if ms <= 0 => Err(invalid(name, "must be greater than 0")),
        ms => Ok(ms.map(|ms| Duration::from_millis(ms.unsigned_abs()))),
    }
}

async fn query(api: Api, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let time_ms = params.time("time")?.unwrap_or_else(now_ms);
    let request = InstantRequest {
        query: params.required("query")?.to_owned(),
        time_ms: bounded("time", time_ms)?,
        timeout: positive(&params, "timeout")?,
        lookback: positive(&params, "lookback_delta")?,
    };
    let limit = params.limit()?;
    let begun = Instant::now();
    let output = api.engine.instant(&tenant, request).await?;
    respond(output, limit, params.get("stats").is_some(), begun).await
}

async fn query_range(api: Api, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let time = |name: &str| {
        let value = params.time(name)?;
        bounded(name, value.ok_or_else(|| invalid(name, "cannot parse \"\" to a valid timestamp"))?)
    };
    let (start_ms, end_ms) = (time("start")?, time("end")?);
    if end_ms < start_ms {
        return Err(invalid("end", "end timestamp must not be before start time"));
    }
    let step_ms = params.duration("step")?.ok_or_else(|| invalid("step", "cannot parse \"\" to a valid duration"))?;
    if step_ms <= 0 {
        return Err(invalid(
            "step",
            "zero or negative query resolution step widths are not accepted. Try a positive integer",
        ));
    }
    if (end_ms - start_ms) / step_ms > POINTS_PER_SERIES_MAX {
        return Err(QueryError::BadData(
            "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)"
                .into(),
        ));
    }
    let request = RangeRequest {
        query: params.required("query")?.to_owned(),
        start_ms,
        end_ms,
        step_ms,
        timeout: positive(&params, "timeout")?,
        lookback: positive(&params, "lookback_delta")?,
    };
    let limit = params.limit()?;
    let begun = Instant::now();
    let output = api.engine.range(&tenant, request).await.map_err(|e| match e {
        QueryError::BadData(why) => invalid("query", &why),
        other => other,
    })?;
    respond(output, limit, params.get("stats").is_some(), begun).await
}

/// Times so far out that their arithmetic could overflow match nothing anyway.
fn bounded(name: &str, ms: i64) -> Result<i64, QueryError> {
    const MS_MAX: i64 = i64::MAX / 1000;
    if (-MS_MAX..=MS_MAX).contains(&ms) { Ok(ms) } else { Err(invalid(name, "timestamp is out of range")) }
}

async fn respond(mut output: Output, limit: Option<usize>, stats: bool, begun: Instant) -> Answer {
    if let Some(limit) = limit {
        let cut = match &mut output.value {
            Value::Vector { samples, .. } if samples.len() > limit => {
                samples.truncate(limit);
                true
            }
            Value::Matrix(series) if series.len() > limit => {
                series.truncate(limit);
                true
            }
            _ => false,
        };
        if cut {
            output.annotations.warn_plain(TRUNCATED);
        }
    }
    // A large answer takes longer to write than an async thread may be held.
    tokio::task::spawn_blocking(move || {
        let mut data = String::from("{");
        encode::write_value(&mut data, &output.value);
        if stats {
            let s = output.stats;
            let (eval, prepare, queue) = (s.eval.as_secs_f64(), s.prepare.as_secs_f64(), s.queue.as_secs_f64());
            data.push_str(&format!(
                ",\"stats\":{{\"timings\":{{\"evalTotalTime\":{},\"resultSortTime\":0,\"queryPreparationTime\":{prepare},\
                 \"innerEvalTime\":{eval},\"execQueueTime\":{queue},\"execTotalTime\":{}}},\
                 \"samples\":{{\"totalQueryableSamples\":{n},\"samplesRead\":{n},\"peakSamples\":{n}}}}}",
                eval + prepare,
                begun.elapsed().as_secs_f64(),
                n = s.samples,
            ));
        }
        data.push('}');
        envelope::prometheus_success(&data, &output.annotations)
    })
    .await
    .map_err(|e| QueryError::Internal(e.to_string()))
}

/// The selectors of `match[]`.
pub(super) fn matches(params: &Params) -> Result<Vec<Vec<Matcher>>, QueryError> {
    let all: Vec<&str> = params.all("match[]").collect();
    if all.len() > MATCHES_MAX {
        return Err(invalid("match[]", &format!("more than {MATCHES_MAX} selectors")));
    }
    all.into_iter()
        .map(|text| {
            promql::parse_selector(text).map_err(|e| {
                if e.message.contains("at least one non-empty matcher") {
                    invalid("match[]", "match[] must contain at least one non-empty matcher")
                } else {
                    invalid("match[]", &e.to_string())
                }
            })
        })
        .collect()
}

/// Series of any of the selectors (of all series if there are none), each once, sorted by labels.
async fn find(
    api: &Api,
    tenant: &TenantId,
    matches: &[Vec<Matcher>],
    range: Option<TimeRange>,
) -> Result<Vec<SeriesInfo>, QueryError> {
    let Some(range) = range else { return Ok(Vec::new()) };
    let everything = [Vec::new()];
    let matches = if matches.is_empty() { &everything[..] } else { matches };
    let mut out = Vec::new();
    for matchers in matches {
        out.extend(fetch::series(&api.store, tenant, matchers, range).await?);
    }
    let series_max = api.limits.series_of(tenant);
    if out.len() > series_max {
        return Err(QueryError::Execution(format!(
            "request selects {} series, more than the limit of {series_max} series; add matchers",
            out.len()
        )));
    }
    if matches.len() > 1 {
        out.sort_by(|a, b| a.labels.cmp(&b.labels));
        out.dedup_by_key(|s| s.id);
    }
    Ok(out)
}

fn truncated<T>(list: &mut Vec<T>, limit: Option<usize>) -> Annotations {
    let mut notes = Annotations::default();
    if let Some(limit) = limit
        && list.len() > limit
    {
        list.truncate(limit);
        notes.warn_plain(TRUNCATED);
    }
    notes
}

async fn series(api: Api, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let matches = matches(&params)?;
    if matches.is_empty() {
        return Err(QueryError::BadData("no match[] parameter provided".into()));
    }
    let limit = params.limit()?;
    let mut found = find(&api, &tenant, &matches, params.range()?).await?;
    let notes = truncated(&mut found, limit);
    let mut data = String::from("[");
    for (i, s) in found.iter().enumerate() {
        if i > 0 {
            data.push(',');
        }
        encode::write_labels(&mut data, &s.labels);
    }
    data.push(']');
    Ok(envelope::prometheus_success(&data, &notes))
}

fn strings(mut list: Vec<&str>, limit: Option<usize>) -> Response<Body> {
    let notes = truncated(&mut list, limit);
    let mut data = String::new();
    encode::write_strings(&mut data, list);
    envelope::prometheus_success(&data, &notes)
}

async fn labels(api: Api, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let (matches, limit) = (matches(&params)?, params.limit()?);
    let found = find(&api, &tenant, &matches, params.range()?).await?;
    let names: BTreeSet<&str> = found.iter().flat_map(|s| s.labels.iter().map(|(n, _)| n)).collect();
    Ok(strings(names.into_iter().collect(), limit))
}

async fn label_values(api: Api, name: &str, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let name = unescape_label(name);
    if name.is_empty() || name.contains('\u{FFFD}') {
        return Err(QueryError::BadData(format!("invalid label name: {name:?}")));
    }
    let (matches, limit) = (matches(&params)?, params.limit()?);
    let found = find(&api, &tenant, &matches, params.range()?).await?;
    let values: BTreeSet<&str> = found.iter().filter_map(|s| s.labels.get(&name)).collect();
    Ok(strings(values.into_iter().collect(), limit))
}

/// `U__a_2e_b` is `a.b`: `__` an underscore, `_hex_` a code point. What is not well-formed stays as it is.
fn unescape_label(name: &str) -> String {
    fn inner(text: &str) -> Option<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            if c != '_' {
                if !(c.is_ascii_alphanumeric() || c == ':') {
                    return None;
                }
                out.push(c);
                continue;
            }
            let end = rest.find('_')?;
            if end == 0 {
                out.push('_');
            } else {
                let code = u32::from_str_radix(rest.get(..end).filter(|h| h.len() <= 6)?, 16).ok()?;
                out.push(char::from_u32(code)?);
            }
            rest = &rest[end + 1..];
        }
        Some(out)
    }
    name.strip_prefix("U__").and_then(inner).unwrap_or_else(|| name.to_owned())
}

async fn metadata(api: Api, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let number = |name: &str| -> Result<Option<usize>, QueryError> {
        match params.get(name).map(str::parse::<i64>) {
            None => Ok(None),
            Some(Ok(n)) => Ok(usize::try_from(n).ok()),
            Some(Err(_)) => Err(QueryError::BadData(format!("{name} must be a number"))),
        }
    };
    let (limit, per_metric) = (number("limit")?, number("limit_per_metric")?);
    let wanted = params.get("metric");
    let found = find(&api, &tenant, &[], Some(TimeRange::ALL)).await?;
    let mut families: BTreeMap<&str, BTreeSet<(&str, &str, &str)>> = BTreeMap::new();
    for s in &found {
        let Some(kind) = s.metric_type.as_deref() else { continue };
        let family = family(s.labels.get("__name__").unwrap_or(""), kind);
        if wanted.is_none_or(|w| w == family) {
            let entry = (kind, s.help.as_deref().unwrap_or(""), s.unit.as_deref().unwrap_or(""));
            families.entry(family).or_default().insert(entry);
        }
    }
    let mut data = String::from("{");
    for (i, (name, entries)) in families.iter().take(limit.unwrap_or(usize::MAX)).enumerate() {
        if i > 0 {
            data.push(',');
        }
        write_string(&mut data, name);
        data.push_str(":[");
        let most = per_metric.filter(|n| *n > 0).unwrap_or(usize::MAX);
        for (n, (kind, help, unit)) in entries.iter().take(most).enumerate() {
            data.push_str(if n > 0 { ",{\"type\":" } else { "{\"type\":" });
            write_string(&mut data, kind);
            data.push_str(",\"help\":");
            write_string(&mut data, help);
            data.push_str(",\"unit\":");
            write_string(&mut data, unit);
            data.push('}');
        }
        data.push(']');
    }
    data.push('}');
    Ok(envelope::prometheus_success(&data, &Annotations::default()))
}

/// Histograms and summaries go by the name without the suffix of their parts.
fn family<'a>(name: &'a str, kind: &str) -> &'a str {
    let suffixes: &[&str] = match kind {
        "histogram" | "gaugehistogram" => &["_bucket", "_count", "_sum"],
        "summary" => &["_count", "_sum"],
        _ => &[],
    };
    suffixes.iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name)
}

async fn exemplars(api: Api, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let expr = promql::parse(params.required("query")?)?;
    let mut selectors: Vec<Vec<Matcher>> = Vec::new();
    expr.walk(&mut |e| {
        if let ExprKind::Selector(s) | ExprKind::Range { selector: s, .. } = &e.kind {
            selectors.push(s.matchers.clone());
        }
    });
    let (Some(range), false) = (params.range()?, selectors.is_empty()) else { return Ok(fixed("[]")) };
    // A series may have been quiet around its exemplars: look it up in all of time.
    let found = find(&api, &tenant, &selectors, Some(TimeRange::ALL)).await?;
    let ids: Arc<[i64]> = found.iter().map(|s| s.id).collect();
    let mut by_series: BTreeMap<i64, Vec<(i64, String)>> = BTreeMap::new();
    let mut left = api.limits.samples_of(&tenant);
    let request = ScanRequest::new(tenant, Table::MetricExemplars, range).selector(Selector::Ids(ids));
    let mut stream = api.store.scan(request).await?;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        left = left.checked_sub(batch.num_rows()).ok_or_else(|| {
            QueryError::Execution("query would load too many exemplars into memory; narrow the time range".into())
        })?;
        let ids = fetch::column(&batch, "series_id")?.as_primitive::<Int64Type>();
        let times = fetch::column(&batch, "ts_ms")?.as_primitive::<Int64Type>();
        let values = fetch::column(&batch, "value")?.as_primitive::<Float64Type>();
        let labels = fetch::column(&batch, "labels")?.as_string::<i32>();
        let trace = fetch::column(&batch, "trace_id")?.as_binary::<i32>();
        let span = fetch::column(&batch, "span_id")?.as_binary::<i32>();
        for i in 0..batch.num_rows() {
            let mut set = Labels::from_json(labels.value(i)).unwrap_or_default();
            for (name, column) in [("trace_id", trace), ("span_id", span)] {
                if column.is_valid(i) && set.get(name).is_none() {
                    set.set(name, hex::encode(column.value(i)));
                }
            }
            let mut text = String::from("{\"labels\":");
            encode::write_labels(&mut text, &set);
            text.push_str(&format!(",\"value\":\"{}\",\"timestamp\":", promql::format_float(values.value(i))));
            encode::write_time(&mut text, times.value(i));
            text.push('}');
            by_series.entry(ids.value(i)).or_default().push((times.value(i), text));
        }
    }
    let mut data = String::from("[");
    for s in &found {
        let Some(mut list) = by_series.remove(&s.id) else { continue };
        list.sort();
        list.dedup();
        data.push_str(if data.len() > 1 { ",{\"seriesLabels\":" } else { "{\"seriesLabels\":" });
        encode::write_labels(&mut data, &s.labels);
        let texts: Vec<&str> = list.iter().map(|(_, t)| t.as_str()).collect();
        data.push_str(",\"exemplars\":[");
        data.push_str(&texts.join(","));
        data.push_str("]}");
    }
    data.push(']');
    Ok(envelope::prometheus_success(&data, &Annotations::default()))
}

async fn build_info() -> Response<Body> {
    let data = format!(
        "{{\"version\":\"{LIKE_PROMETHEUS}\",\"revision\":\"sightline-{}\",\"branch\":\"HEAD\",\"buildUser\":\"\",\
         \"buildDate\":\"\",\"goVersion\":\"\"}}",
        env!("CARGO_PKG_VERSION")
    );
    envelope::prometheus_success(&data, &Annotations::default())
}

fn flags(api: &Api) -> Response<Body> {
    let data = format!(
        "{{\"query.lookback-delta\":\"{}s\",\"query.max-samples\":\"{}\",\"query.timeout\":\"{}s\"}}",
        api.limits.lookback.as_secs(),
        api.limits.samples_max,
        api.limits.timeout.as_secs()
    );
    envelope::prometheus_success(&data, &Annotations::default())
}

fn runtime_info(api: &Api) -> Response<Body> {
    let time =
        |t: SystemTime| chrono::DateTime::<chrono::Utc>::from(t).to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
    let (start, now) = (time(api.started), time(SystemTime::now()));
    let data = format!(
        "{{\"startTime\":\"{start}\",\"CWD\":\"\",\"hostname\":\"\",\"serverTime\":\"{now}\",\
         \"reloadConfigSuccess\":true,\"lastConfigTime\":\"{start}\",\"corruptionCount\":0,\"goroutineCount\":0,\
         \"GOMAXPROCS\":0,\"GOMEMLIMIT\":0,\"GOGC\":\"\",\"GODEBUG\":\"\",\"storageRetention\":\"\"}}"
    );
    envelope::prometheus_success(&data, &Annotations::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_label_names_are_read() {
        assert_eq!(unescape_label("U__http_2e_status"), "http.status");
        assert_eq!(unescape_label("U__a__b"), "a_b");
        assert_eq!(unescape_label("U__bad_"), "U__bad_");
        assert_eq!(unescape_label("job"), "job");
    }
}
