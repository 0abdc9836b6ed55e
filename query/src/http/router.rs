//! All read APIs as one router. The collector's write paths are merged by the binary.

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Response, StatusCode, header::RETRY_AFTER},
    middleware,
};
use storage::Store;

use super::{
    alertmanager,
    compressed::compressed,
    cross_origin::{Origins, cross_origin},
    export, loki,
    prometheus::{self, targets::Scraper},
    prometheus_admin, rules, sql, tempo,
};
use crate::{
    limits::Limits,
    promql::{Engine, EngineOptions},
    rules::ruler::Ruler,
    sql::SqlEngine,
};

/// What the read APIs are told.
#[derive(Clone, Debug, Default)]
pub struct QueryConfig {
    pub limits: Limits,
    pub promql: EngineOptions,
    pub about: prometheus::About,
    /// Other sites whose pages may read the Prometheus API.
    pub origins: Origins,
    /// Whose rules and alerts are shown.
    pub ruler: Option<Ruler>,
    /// Who scrapes, if anyone does.
    pub scraper: Scraper,
    /// Who reads files again when asked to.
    pub reloader: rules::Reloader,
}

/// The Prometheus API under `/api/v1` and `/prometheus/api/v1` with `/federate` beside it, SQL at `/api/v1/sql`, Tempo's
/// under `/` and `/tempo`, Loki's under `/loki`.
pub fn router(config: QueryConfig, store: Store) -> Router {
    let engine = Engine::new(store.clone(), config.limits.clone(), config.promql.clone());
    let api = prometheus::Api::new(engine, store.clone(), config.limits.clone(), config.about, config.ruler.clone());
    let federation = prometheus::federation(api.clone()).layer(middleware::from_fn(compressed));
    let prometheus = prometheus::router(api)
        .merge(prometheus::targets::router(config.scraper))
        .merge(prometheus_admin::router(store.clone()))
        .merge(rules::router(config.ruler.clone()))
        .layer(middleware::from_fn(compressed))
        .layer(middleware::from_fn_with_state(config.origins, cross_origin));
    let loki = loki::routes_within(store.clone(), config.limits.clone());
    let export = export::router(store.clone(), config.limits.clone());
    let sql = sql::router(SqlEngine::new(store.clone(), config.limits.clone()));
    let tempo = tempo::router(tempo::Api::new(store));
    Router::new()
        .nest("/api/v1", prometheus.clone().merge(sql))
        .nest("/prometheus/api/v1", prometheus)
        .merge(federation.clone())
        .nest("/prometheus", federation)
        .merge(tempo.clone())
        .nest("/tempo", tempo)
        .merge(loki)
        .merge(export)
        .merge(rules::lifecycle(config.reloader))
        .merge(config.ruler.and_then(|r| r.desk()).map(alertmanager::router).unwrap_or_default())
        .layer(middleware::map_response(say_when))
}

/// Seconds after which a query that could not be answered now is worth asking again.
const COME_BACK: HeaderValue = HeaderValue::from_static("5");

/// Whatever cannot be answered for now says when to come back.
async fn say_when(mut response: Response<Body>) -> Response<Body> {
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().entry(RETRY_AFTER).or_insert(COME_BACK);
    }
    response
}
