//! `POST /ingest/ndjson?time_field=&message_field=&stream_fields=a,b`

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use pipeline::codec::{
    Decoded,
    compress::Encoding,
    ndjson::{Params, decode},
    rows,
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    auth,
    metrics::Protocol,
    push::{Push, batch_id, content_encoding},
    reply::Failure,
};

#[derive(Deserialize)]
pub(crate) struct RawParams {
    time_field: Option<String>,
    message_field: Option<String>,
    stream_fields: Option<String>,
}

pub(crate) async fn push(
    State(push): State<Arc<Push>>,
    Query(raw): Query<RawParams>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut sent = 0;
    let response = match take(&push, raw, &headers, body, &mut sent).await {
        Ok(decoded) => answer(&decoded),
        Err(failure) => failure.response("application/json", json!({ "error": failure.message }).to_string()),
    };
    push.metrics().request(Protocol::Ndjson, response.status(), sent);
    response
}

async fn take(
    push: &Push,
    raw: RawParams,
    headers: &HeaderMap,
    body: Body,
    sent: &mut usize,
) -> Result<Decoded, Failure> {
    let tenant = auth::tenant(headers)?;
    let params = Params::new(raw.time_field.as_deref(), raw.message_field.as_deref(), raw.stream_fields.as_deref())
        .map_err(|e| Failure::new(StatusCode::BAD_REQUEST, e))?;
    let encoding = content_encoding(headers)?;
    let batch_id = batch_id(headers);
    let received = push.receive(headers, body, encoding != Encoding::Identity).await?;
    *sent = received.sent;
    let mut decoded = push
        .decode(received.body.clone(), encoding, move |body, limits, now| Ok(decode(&body, &params, limits, now)))
        .await?;
    push.deliver(Protocol::Ndjson, tenant, &mut decoded, batch_id).await?;
    Ok(decoded)
}

/// `POST /api/v1/import`: rows as `/api/v1/export` gives them.
pub(crate) async fn import(State(push): State<Arc<Push>>, headers: HeaderMap, body: Body) -> Response {
    let mut sent = 0;
    let response = match take_rows(&push, &headers, body, &mut sent).await {
        Ok(decoded) => answer(&decoded),
        Err(failure) => failure.response("application/json", json!({ "error": failure.message }).to_string()),
    };
    push.metrics().request(Protocol::Import, response.status(), sent);
    response
}

async fn take_rows(push: &Push, headers: &HeaderMap, body: Body, sent: &mut usize) -> Result<Decoded, Failure> {
    let tenant = auth::tenant(headers)?;
    let encoding = content_encoding(headers)?;
    let batch_id = batch_id(headers);
    let received = push.receive(headers, body, encoding != Encoding::Identity).await?;
    *sent = received.sent;
    let mut decoded = push
        .decode(received.body.clone(), encoding, move |body, limits, now| Ok(rows::decode(&body, limits, now)))
        .await?;
    push.deliver(Protocol::Import, tenant, &mut decoded, batch_id).await?;
    Ok(decoded)
}

/// 200 with what was taken and refused, 400 where nothing but refusals came.
fn answer(decoded: &Decoded) -> Response {
    let all_bad = decoded.accepted == 0 && decoded.rejected.total() > 0;
    let status = if all_bad { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    (status, [(header::CONTENT_TYPE, "application/json")], report(decoded)).into_response()
}

/// `{"accepted":n,"rejected":m,"errors":[{"line":3,"reason":"..."}]}`; `errors` holds the first refusals only.
fn report(decoded: &Decoded) -> String {
    let errors: Vec<_> =
        decoded.rejected.details.iter().map(|d| json!({ "line": d.at, "reason": d.message })).collect();
    json!({ "accepted": decoded.accepted, "rejected": decoded.rejected.total(), "errors": errors }).to_string()
}
