//! Prometheus's admin API as far as it makes sense here: deletes are done when they are answered, so there are no
//! tombstones to clean.

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Response, StatusCode},
    routing::post,
};
use storage::{Receipt, Store};

use super::{envelope, params::Params, prometheus, receipt, same_site};
use crate::error::QueryError;

/// Paths below `/api/v1`.
pub fn router(store: Store) -> Router {
    Router::new()
        .route("/admin/tsdb/delete_series", post(delete_series).put(delete_series))
        .route("/admin/tsdb/clean_tombstones", post(clean_tombstones).put(clean_tombstones))
        .with_state(store)
}

type Answer = Result<Response<Body>, QueryError>;

fn answer(result: Answer) -> Response<Body> {
    result.unwrap_or_else(|e| envelope::prometheus_error(&e))
}

fn refused() -> Response<Body> {
    envelope::with_type(
        StatusCode::FORBIDDEN,
        "text/plain; charset=utf-8",
        "a page of another site may not delete; ask from a program or a page of this server\n",
    )
}

async fn delete_series(State(store): State<Store>, request: Request) -> Response<Body> {
    if same_site::is_foreign(request.headers()) {
        return refused();
    }
    let delete = async {
        let (params, tenant) = Params::of(request).await?;
        let matches = prometheus::named_matches(&params)?;
        if matches.is_empty() {
            return Err(QueryError::BadData("no match[] parameter provided".into()));
        }
        let Some(range) = params.range()? else {
            return Err(QueryError::BadData("end timestamp must not be before start time".into()));
        };
        let mut done = Receipt::default();
        for matchers in matches {
            done += store.delete_series(&tenant, matchers, range).await?;
        }
        Ok(receipt::no_content(done))
    };
    answer(delete.await)
}

async fn clean_tombstones(State(store): State<Store>, request: Request) -> Response<Body> {
    if same_site::is_foreign(request.headers()) {
        return refused();
    }
    answer(store.purge().await.map(|()| receipt::no_content(Receipt::default())).map_err(QueryError::from))
}
