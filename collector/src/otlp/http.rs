//! OTLP over HTTP: protobuf or JSON in, the same out.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use pipeline::codec::{
    Decoded, Limits,
    compress::Encoding,
    otlp::{
        self, Totals,
        json::Request,
        wire::{put_bytes, put_int},
    },
};
use serde_json::json;

use super::partial;
use crate::{
    auth,
    metrics::Protocol,
    push::{Push, batch_id, content_encoding, media_type},
    reply::Failure,
};

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

pub(crate) async fn logs(State(push): State<Arc<Push>>, headers: HeaderMap, body: Body) -> Response {
    export(&push, Request::Logs, &headers, body).await
}

pub(crate) async fn metrics(State(push): State<Arc<Push>>, headers: HeaderMap, body: Body) -> Response {
    export(&push, Request::Metrics, &headers, body).await
}

pub(crate) async fn traces(State(push): State<Arc<Push>>, headers: HeaderMap, body: Body) -> Response {
    export(&push, Request::Traces, &headers, body).await
}

async fn export(push: &Push, request: Request, headers: &HeaderMap, body: Body) -> Response {
    let mut sent = 0;
    let media = media_type(headers);
    let response = match take(push, request, &media, headers, body, &mut sent).await {
        Ok(decoded) if media == JSON => {
            ([(header::CONTENT_TYPE, JSON)], partial::json(&decoded, request)).into_response()
        }
        Ok(decoded) => ([(header::CONTENT_TYPE, PROTOBUF)], partial::protobuf(&decoded)).into_response(),
        Err(failure) if media == JSON => {
            let status = json!({ "code": grpc_code(failure.status), "message": failure.message });
            failure.response(JSON, status.to_string())
        }
        Err(failure) => {
            let mut status = Vec::new();
            put_int(&mut status, 1, grpc_code(failure.status).into());
            put_bytes(&mut status, 2, failure.message.as_bytes());
            failure.response(PROTOBUF, status)
        }
    };
    push.metrics().request(Protocol::OtlpHttp, response.status(), sent);
    response
}

async fn take(
    push: &Push,
    request: Request,
    media: &str,
    headers: &HeaderMap,
    body: Body,
    sent: &mut usize,
) -> Result<Decoded, Failure> {
    let tenant = auth::tenant(headers)?;
    let is_json = match media {
        JSON => true,
        PROTOBUF | "application/protobuf" => false,
        other => {
            let message = format!("Content-Type {other:?} is not supported; use {PROTOBUF} or {JSON}");
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    };
    let encoding = content_encoding(headers)?;
    let received = push.receive(headers, body, encoding != Encoding::Identity).await?;
    *sent = received.sent;
    let (deltas, owner) = (push.deltas.clone(), tenant.clone());
    let mut decoded = push
        .decode(received.body.clone(), encoding, move |body, limits, now| {
            let totals = Totals { deltas: &deltas, tenant: owner.as_str() };
            if is_json {
                decode(&otlp::json::to_protobuf(&body, request)?, request, limits, now, totals)
            } else {
                decode(&body, request, limits, now, totals)
            }
        })
        .await?;
    push.deliver(Protocol::OtlpHttp, tenant, &mut decoded, batch_id(headers)).await?;
    Ok(decoded)
}

/// `body`: protobuf.
pub(crate) fn decode(
    body: &[u8],
    request: Request,
    limits: &Limits,
    now: i64,
    totals: Totals<'_>,
) -> Result<Decoded, Failure> {
    Ok(otlp::decode(body, request, limits, now, Some(totals))?)
}

/// `google.rpc.Code` of an HTTP status.
pub(crate) fn grpc_code(status: StatusCode) -> u8 {
    match status.as_u16() {
        401 => 16,
        403 => 7,
        404 => 12,
        413 => 8,
        429 | 502..=504 => 14,
        408 => 4,
        400 | 415 => 3,
        _ => 13,
    }
}
