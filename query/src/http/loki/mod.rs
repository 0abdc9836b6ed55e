//! Loki's read API under `/loki/api/v1`, unmodified Grafana and logcli being the clients.
//!
//! A handler reads parameters, checks them, asks [`crate::logql`] on a blocking thread and writes. Errors are plain text,
//! as Loki's are.

mod delete;
mod encode;
mod index;
mod params;

use std::{
    collections::BTreeSet,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, Method, StatusCode, header};
use storage::{
    ErrorKind, ScanError, Store, StreamInfo,
    model::{Matcher, MatcherBudget, TenantId, TimeRange, Timestamp},
};
use tokio::sync::Semaphore;

use self::{encode::Cost, params::Params};
use super::params::tenant;
use crate::{
    limits::{Limits, TenantLimits},
    logql::{self, Context, LogRequest, QueryError, Steps, Value, ast::Expr},
};

/// Queries evaluated at a time; more wait.
const QUERIES_MAX: usize = 16;

/// Longest evaluation.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);

const HOUR: i64 = 3_600_000_000_000;

/// Entries returned when the request names no limit.
const LIMIT_DEFAULT: usize = 100;

#[derive(Clone)]
struct Api {
    store: Store,
    limits: Arc<Limits>,
    slots: Arc<Semaphore>,
}

/// The routes, paths included, with no limits but our own.
pub fn routes(store: Store) -> Router {
    routes_within(store, Limits::default())
}

/// The routes, paths included. Of `limits` those of the tenants count; LogQL has its own for everyone.
pub fn routes_within(store: Store, limits: Limits) -> Router {
    let deletes = delete::routes(store.clone());
    let api = Api { store, limits: Arc::new(limits), slots: Arc::new(Semaphore::new(QUERIES_MAX)) };
    Router::new()
        .route("/loki/api/v1/query_range", get(query_range).post(query_range))
        .route("/loki/api/v1/query", get(query).post(query))
        .route("/loki/api/v1/labels", get(labels).post(labels))
        .route("/loki/api/v1/label", get(labels).post(labels))
        .route("/loki/api/v1/label/{name}/values", get(label_values).post(label_values))
        .route("/loki/api/v1/series", get(series).post(series))
        .route("/loki/api/v1/index/stats", get(index::stats).post(index::stats))
        .route("/loki/api/v1/index/volume", get(index::volume).post(index::volume))
        .route("/loki/api/v1/index/volume_range", get(index::volume_range).post(index::volume_range))
        .route("/loki/api/v1/drilldown-limits", get(drilldown_limits))
        .route("/loki/api/v1/format_query", get(format_query).post(format_query))
        .route("/loki/api/v1/status/buildinfo", get(buildinfo))
        .with_state(api)
        .merge(deletes)
}

/// An answer that is not 2xx: plain text.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    text: String,
}

impl Failure {
    fn bad(text: impl Into<String>) -> Self {
        Failure { status: StatusCode::BAD_REQUEST, text: text.into() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], self.text).into_response()
    }
}

impl From<QueryError> for Failure {
    fn from(e: QueryError) -> Self {
        let status = match &e {
            QueryError::Parse(_) | QueryError::Invalid(_) | QueryError::Pipeline(_) => StatusCode::BAD_REQUEST,
            QueryError::Matching(_) => StatusCode::INTERNAL_SERVER_ERROR,
            QueryError::Deadline => StatusCode::GATEWAY_TIMEOUT,
            QueryError::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            QueryError::Scan(e) => return e.clone().into(),
        };
        Failure { status, text: e.to_string() }
    }
}

impl From<ScanError> for Failure {
    fn from(e: ScanError) -> Self {
        let status = match e.kind() {
            ErrorKind::Invalid | ErrorKind::TooLarge => StatusCode::BAD_REQUEST,
            ErrorKind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => {
                // Internal text stays in our log.
                tracing::error!(error = %e, "a log query failed");
                return Failure { status: StatusCode::INTERNAL_SERVER_ERROR, text: "internal error".into() };
            }
        };
        Failure { status, text: e.to_string() }
    }
}

type Answer = Result<Response, Failure>;

fn json(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json; charset=UTF-8")], body).into_response()
}

/// Tenant and parameters of a request.
async fn read(request: Request) -> Result<(TenantId, Params, HeaderMap), Failure> {
    let (parts, body) = request.into_parts();
    let tenant = tenant(&parts.headers).map_err(|e| Failure::bad(e.to_string()))?;
    let form = if parts.method == Method::POST { form(body).await? } else { String::new() };
    Ok((tenant, Params::parse(parts.uri.query().unwrap_or(""), &form), parts.headers))
}

async fn form(body: Body) -> Result<String, Failure> {
    let bytes = axum::body::to_bytes(body, crate::limits::FORM_BYTES_MAX)
        .await
        .map_err(|e| Failure { status: StatusCode::PAYLOAD_TOO_LARGE, text: format!("cannot read the form: {e}") })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

type Work<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

impl Api {
    /// Runs `work` on a blocking thread, with a slot, a deadline and the news when nobody waits any more.
    async fn run<T: Send + 'static>(
        &self,
        tenant: TenantId,
        work: impl for<'a> FnOnce(&'a Context) -> Work<'a, T> + Send + 'static,
    ) -> Result<(T, Cost), Failure> {
        let slot = self.slots.clone().acquire_owned().await.map_err(|_| Failure::bad("the server is closing"))?;
        let began = Instant::now();
        let bounds = self.limits.tenants.of(&tenant).clone();
        let ctx = Context::new(self.store.clone(), tenant, began + QUERY_TIMEOUT).within(&bounds);
        let flag = ctx.cancelled.clone();
        let guard = CancelOnDrop(flag);
        let handle = tokio::runtime::Handle::current();
        let done = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            let out = handle.block_on(work(&ctx));
            (out, ctx.scans())
        })
        .await;
        std::mem::forget(guard);
        let (out, scans) = done.map_err(|e| {
            tracing::error!(error = %e, "a log query panicked");
            Failure { status: StatusCode::INTERNAL_SERVER_ERROR, text: "internal error".into() }
        })?;
        Ok((out?, Cost { scans, elapsed: began.elapsed(), returned: 0 }))
    }
}

struct CancelOnDrop(Arc<std::sync::atomic::AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn categorize(headers: &HeaderMap) -> bool {
    headers
        .get_all("x-loki-response-encoding-flags")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.split(',').any(|f| f.trim() == "categorize-labels"))
}

fn check_length(start: i64, end: i64) -> Result<(), Failure> {
    if end < start {
        return Err(Failure::bad("end timestamp must not be before or equal to start time"));
    }
    let length = end.saturating_sub(start);
    if length > logql::limits::QUERY_LENGTH_MAX {
        let (h, rest) = (length / HOUR, length % HOUR);
        return Err(Failure::bad(format!(
            "the query time range exceeds the limit (query length: {h}h{}m{}s, limit: 30d1h)",
            rest / 60_000_000_000,
            rest % 60_000_000_000 / 1_000_000_000
        )));
    }
    Ok(())
}

async fn query_range(State(api): State<Api>, request: Request) -> Answer {
    let (tenant, params, headers) = read(request).await?;
    let (start, end) = params.range(HOUR)?;
    let limit = params.limit(LIMIT_DEFAULT)?;
    let direction = params.direction()?;
    if end < start {
        return Err(Failure::bad("end timestamp must not be before or equal to start time"));
    }
    let length = end.saturating_sub(start);
    let step = params.step()?.unwrap_or_else(|| (length / 250_000_000_000 * 1_000_000_000).max(1_000_000_000));
    let interval = params.interval()?;
    if length / step > logql::limits::POINTS_MAX {
        return Err(Failure::bad(
            "exceeded maximum resolution of 11,000 points per time series. Try increasing the value of the step parameter",
        ));
    }
    let expr = logql::parse(params.query())?;
    check_length(start, end)?;
    match expr {
        Expr::Log(q) => {
            if limit > logql::limits::ENTRIES_MAX {
                return Err(Failure::bad(format!(
                    "max entries limit per query exceeded, limit > max_entries_limit_per_query ({limit} > {})",
                    logql::limits::ENTRIES_MAX
                )));
            }
            let wanted = LogRequest { start, end, limit, direction, interval };
            let (entries, cost) = api
                .run(tenant, move |ctx| Box::pin(async move { Ok(logql::log_query(ctx, &q, wanted).await?) }))
                .await?;
            Ok(json(encode::streams(&entries, categorize(&headers), &Cost { returned: entries.len(), ..cost })))
        }
        Expr::Metric(m) => {
            // Metric steps lie on multiples of the step: start rounds down, end up.
            let first = start.div_euclid(step).saturating_mul(step);
            let last = end.saturating_add(step - 1).div_euclid(step).saturating_mul(step);
            let count = usize::try_from(last.saturating_sub(first) / step).unwrap_or(0) + 1;
            let steps = Steps { start: first, step, count };
            let (value, cost) = api
                .run(tenant, move |ctx| Box::pin(async move { Ok(logql::range_query(ctx, &m, steps).await?) }))
                .await?;
            let Value::Matrix(series) = value else { return Err(Failure::bad("not a matrix")) };
            let times: Vec<i64> = (0..steps.count).map(|i| steps.at(i)).collect();
            let returned = series.len();
            Ok(json(encode::matrix(&times, &series, &Cost { returned, ..cost })))
        }
    }
}

async fn query(State(api): State<Api>, request: Request) -> Answer {
    let (tenant, params, _) = read(request).await?;
    let time = params.instant()?;
    params.limit(LIMIT_DEFAULT)?;
    params.direction()?;
    let Expr::Metric(metric) = logql::parse(params.query())? else {
        return Err(Failure::bad(
            "log queries are not supported as an instant query type, please change your query to a range query type",
        ));
    };
    let (value, cost) =
        api.run(tenant, move |ctx| Box::pin(async move { Ok(logql::instant(ctx, &metric, time).await?) })).await?;
    Ok(json(match value {
        Value::Scalar(v) => encode::scalar(time, v, &Cost { returned: 1, ..cost }),
        Value::Vector(samples) => encode::vector(time, &samples, &Cost { returned: samples.len(), ..cost }),
        Value::Matrix(_) => return Err(Failure::bad("not a vector")),
    }))
}

/// The selector in `query`, if there is one: it must exclude something.
fn selector(params: &Params) -> Result<Vec<Matcher>, Failure> {
    match params.get("query") {
        None => Ok(Vec::new()),
        Some(text) => {
            let matchers = logql::parse_matchers(text)?;
            logql::check_matchers(&matchers)?;
            Ok(matchers)
        }
    }
}

/// The range of a label or series request; streams with a record in it count. Without times it is what the tenant may ask
/// about, at most six hours.
fn label_range(params: &Params, bounds: &TenantLimits) -> Result<TimeRange, Failure> {
    let most = bounds.range_max.map_or(i64::MAX, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX));
    let (start, end) = params.range(most.min(6 * HOUR))?;
    if end < start {
        return Err(Failure::bad("this data is no longer available, it is past now - max_query_lookback (0s)"));
    }
    let end = end.max(start.saturating_add(1));
    TimeRange::new(Timestamp(start), Timestamp(end)).ok_or_else(|| Failure::bad("start must be before end"))
}

impl Api {
    fn bounds(&self, tenant: &TenantId) -> &TenantLimits {
        self.limits.tenants.of(tenant)
    }

    async fn streams(
        &self,
        tenant: TenantId,
        matchers: Vec<Matcher>,
        range: TimeRange,
    ) -> Result<Vec<StreamInfo>, Failure> {
        let (streams, _) = self
            .run(tenant, move |ctx| {
                Box::pin(async move {
                    ctx.check_range(range)?;
                    Ok(ctx.store.streams(&ctx.tenant, &matchers, range).await?)
                })
            })
            .await?;
        Ok(streams)
    }
}

/// Labels for the store's own use are not shown.
fn shown(name: &str) -> bool {
    !matches!(name, "__stream_shard__" | "__aggregated_metric__" | "__pattern__")
}

async fn labels(State(api): State<Api>, request: Request) -> Answer {
    let (tenant, params, _) = read(request).await?;
    let (matchers, range) = (selector(&params)?, label_range(&params, api.bounds(&tenant))?);
    let streams = api.streams(tenant, matchers, range).await?;
    let names: BTreeSet<&str> =
        streams.iter().flat_map(|s| s.labels.iter().map(|(n, _)| n)).filter(|n| shown(n)).collect();
    Ok(json(encode::strings(names.into_iter())))
}

async fn label_values(State(api): State<Api>, Path(name): Path<String>, request: Request) -> Answer {
    let (tenant, params, _) = read(request).await?;
    let (matchers, range) = (selector(&params)?, label_range(&params, api.bounds(&tenant))?);
    let streams = api.streams(tenant, matchers, range).await?;
    let values: BTreeSet<&str> =
        if shown(&name) { streams.iter().filter_map(|s| s.labels.get(&name)).collect() } else { BTreeSet::new() };
    Ok(json(encode::strings(values.into_iter())))
}

async fn series(State(api): State<Api>, request: Request) -> Answer {
    let (tenant, params, _) = read(request).await?;
    let range = label_range(&params, api.bounds(&tenant))?;
    let mut sets = BTreeSet::new();
    let texts: Vec<&str> = params.all("match[]").chain(params.all("match")).filter(|t| !t.is_empty()).collect();
    let mut groups: Vec<Vec<Matcher>> = Vec::new();
    let mut budget = MatcherBudget::default();
    for text in &texts {
        let matchers = logql::parse_matchers_within(text, &mut budget)?;
        if !matchers.is_empty() {
            logql::check_matchers(&matchers)?;
        }
        groups.push(matchers);
    }
    if groups.is_empty() {
        groups.push(Vec::new());
    }
    for matchers in groups {
        for s in api.streams(tenant.clone(), matchers, range).await? {
            sets.insert(s.labels);
        }
    }
    Ok(json(encode::label_sets(sets.iter().map(|l| &**l))))
}

async fn format_query(request: Request) -> Answer {
    let (_, params, _) = read(request).await?;
    Ok(match logql::parse(params.query()) {
        Ok(expr) => {
            let mut out = String::from("{\"status\":\"success\",\"data\":");
            encode::string(&mut out, &logql::pretty(&expr));
            out.push('}');
            json(out)
        }
        Err(e) => {
            let mut out = String::from("{\"status\":\"invalid-query\",\"error\":");
            encode::string(&mut out, &e.to_string());
            out.push('}');
            (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "application/json; charset=UTF-8")], out)
                .into_response()
        }
    })
}

async fn buildinfo() -> Response {
    json(format!(
        "{{\"version\":\"3.8.0\",\"revision\":\"sightline-{}\",\"branch\":\"HEAD\",\"buildUser\":\"\",\"buildDate\":\"\",\"goVersion\":\"\"}}",
        env!("CARGO_PKG_VERSION")
    ))
}

/// What Logs Drilldown may ask for; bounds are ours where Loki's default differs.
async fn drilldown_limits() -> Response {
    json(format!(
        "{{\"limits\":{{\"discover_log_levels\":true,\"discover_service_name\":[],\"log_level_fields\":[],\"max_entries_limit_per_query\":{},\"max_line_size_truncate\":false,\"max_query_bytes_read\":\"0B\",\"max_query_length\":\"30d1h\",\"max_query_lookback\":\"0s\",\"max_query_range\":\"0s\",\"max_query_series\":{},\"metric_aggregation_enabled\":false,\"pattern_persistence_enabled\":false,\"query_timeout\":\"1m\",\"retention_period\":\"0s\",\"volume_enabled\":true,\"volume_max_series\":{}}},\"pattern_ingester_enabled\":false,\"version\":\"3.8.0\"}}",
        logql::limits::ENTRIES_MAX,
        logql::limits::SERIES_MAX,
        index::VOLUMES_MAX,
    ))
}
