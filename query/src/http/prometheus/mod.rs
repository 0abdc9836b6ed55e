//! The Prometheus HTTP API (3.x): queries, metadata and the small status endpoints that clients probe.

mod exemplars;
mod metadata;
mod query;
mod series;
mod status;

use std::{sync::Arc, time::SystemTime};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::Response,
    routing::get,
};
use storage::Store;

pub(super) use self::series::matches;
use super::envelope;
use crate::{annotations::Annotations, error::QueryError, limits::Limits, promql::Engine};

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
    ($f:path) => {
        |State(api): State<Api>, request: Request| async move { answer($f(api, request).await) }
    };
}

/// Paths below `/api/v1`.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/query", get(handler!(query::instant)).post(handler!(query::instant)))
        .route("/query_range", get(handler!(query::range)).post(handler!(query::range)))
        .route("/series", get(handler!(series::series)).post(handler!(series::series)))
        .route("/labels", get(handler!(series::labels)).post(handler!(series::labels)))
        .route(
            "/label/{name}/values",
            get(|State(api): State<Api>, Path(name): Path<String>, request: Request| async move {
                answer(series::label_values(api, &name, request).await)
            }),
        )
        .route("/metadata", get(handler!(metadata::metadata)))
        .route("/query_exemplars", get(handler!(exemplars::exemplars)).post(handler!(exemplars::exemplars)))
        .route("/status/buildinfo", get(status::build_info))
        .route("/status/flags", get(|State(api): State<Api>| async move { status::flags(&api) }))
        .route("/status/config", get(|| async { fixed(r#"{"yaml":""}"#) }))
        .route("/status/runtimeinfo", get(|State(api): State<Api>| async move { status::runtime_info(&api) }))
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
