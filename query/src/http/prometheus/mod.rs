//! The Prometheus HTTP API (3.x): queries, metadata and the small status endpoints that clients probe.

mod exemplars;
mod exposition;
mod federate;
mod metadata;
mod query;
pub mod remote_read;
mod series;
mod status;
pub mod targets;
mod text;

use std::{sync::Arc, time::SystemTime};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State, rejection::PathRejection},
    http::Response,
    routing::{get, post},
};
use storage::{Store, model::Labels};
use tokio::sync::Semaphore;

pub(super) use self::series::{matches, named_matches};
pub use self::status::{About, InForce};
use super::envelope;
use crate::{
    annotations::Annotations,
    error::QueryError,
    limits::{Limits, READS_CONCURRENT_MAX, READS_LARGE_MAX},
    promql::Engine,
    rules::ruler::Ruler,
};

const TRUNCATED: &str = "results truncated due to limit";

#[derive(Clone)]
pub struct Api {
    engine: Engine,
    store: Store,
    limits: Arc<Limits>,
    started: SystemTime,
    about: Arc<About>,
    /// Slots of remote reads.
    reads: Arc<Semaphore>,
    /// Places of remote read requests that are large themselves.
    large_reads: Arc<Semaphore>,
    /// Whose external labels tell what is here from what others hold.
    ruler: Option<Ruler>,
}

impl Api {
    pub fn new(engine: Engine, store: Store, limits: Limits, about: About, ruler: Option<Ruler>) -> Self {
        Api {
            engine,
            store,
            limits: Arc::new(limits),
            started: SystemTime::now(),
            about: Arc::new(about),
            reads: Arc::new(Semaphore::new(READS_CONCURRENT_MAX)),
            large_reads: Arc::new(Semaphore::new(READS_LARGE_MAX)),
            ruler,
        }
    }

    /// What series get, where they have no label of that name, when another Prometheus takes them.
    fn external_labels(&self) -> Labels {
        self.ruler.as_ref().map(Ruler::external_labels).unwrap_or_default()
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
            get(|State(api): State<Api>, name: Result<Path<String>, PathRejection>, request: Request| async move {
                match name {
                    Ok(Path(name)) => answer(series::label_values(api, &name, request).await),
                    Err(_) => answer(Err(series::not_utf8(request.uri().path()))),
                }
            }),
        )
        .route("/metadata", get(handler!(metadata::metadata)))
        .route("/query_exemplars", get(handler!(exemplars::exemplars)).post(handler!(exemplars::exemplars)))
        .route("/status/buildinfo", get(status::build_info))
        .route("/status/flags", get(|State(api): State<Api>| async move { status::flags(&api) }))
        .route("/status/config", get(|State(api): State<Api>| async move { status::config(&api) }))
        .route("/status/runtimeinfo", get(|State(api): State<Api>| async move { status::runtime_info(&api) }))
        .route("/status/tsdb", get(handler!(status::tsdb)))
        .route("/status/walreplay", get(status::wal_replay))
        .route("/features", get(status::features))
        .route("/format_query", get(handler!(text::format)).post(handler!(text::format)))
        .route("/parse_query", get(handler!(text::parse)).post(handler!(text::parse)))
        .route("/read", post(remote_read::read))
        .with_state(api)
}

/// Paths beside `/api/v1`.
pub fn federation(api: Api) -> Router {
    Router::new().route("/federate", get(federate::federate)).with_state(api)
}

fn fixed(data: &'static str) -> Response<Body> {
    envelope::prometheus_success(data, &Annotations::default())
}
