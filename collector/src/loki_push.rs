//! `POST /loki/api/v1/push` (and `/api/prom/push`): JSON, or snappy-compressed protobuf. Answers are plain text.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use pipeline::codec::{
    Reason,
    compress::{self, Encoding},
    loki,
};

use crate::{
    auth,
    metrics::Protocol,
    push::{Push, batch_id, media_type},
    reply::Failure,
};

pub(crate) async fn push(State(push): State<Arc<Push>>, headers: HeaderMap, body: Body) -> Response {
    let mut sent = 0;
    let response = match take(&push, &headers, body, &mut sent).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(failure) => failure.response("text/plain; charset=utf-8", format!("{}\n", failure.message)),
    };
    push.metrics().request(Protocol::Loki, response.status(), sent);
    response
}

async fn take(push: &Push, headers: &HeaderMap, body: Body, sent: &mut usize) -> Result<(), Failure> {
    let tenant = auth::tenant(headers)?;
    let is_json = media_type(headers) == "application/json";
    let name = headers.get(header::CONTENT_ENCODING).map_or(Ok(""), |v| v.to_str()).unwrap_or("?");
    let unsupported = || Failure::new(StatusCode::BAD_REQUEST, format!("Content-Encoding \"{name}\" not supported"));
    let outer = match (Encoding::parse(name).ok_or_else(unsupported)?, is_json) {
        // Protobuf is always a snappy block, whether or not the header says so.
        (Encoding::Snappy | Encoding::SnappyBlock, false) => Encoding::Identity,
        (e, _) => e,
    };
    let received = push.receive(headers, body, !is_json || outer != Encoding::Identity).await?;
    *sent = received.sent;
    let mut decoded = push
        .decode(received.body.clone(), outer, move |body, limits, now| {
            Ok(if is_json {
                loki::decode_json(&body, limits, now)?
            } else {
                let plain = compress::inflate(Encoding::SnappyBlock, body, limits.inflated_bytes_max).map_err(
                    |e| match e {
                        compress::InflateError::Corrupt { .. } => {
                            Failure::new(StatusCode::BAD_REQUEST, "snappy: corrupt input")
                        }
                        large => large.into(),
                    },
                )?;
                loki::decode_protobuf(&plain, limits, now)?
            })
        })
        .await?;
    if decoded.streams == 0 {
        let message = "error at least one valid stream is required for ingestion";
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, message));
    }
    push.deliver(Protocol::Loki, tenant, &mut decoded.decoded, batch_id(headers)).await?;
    // The good entries are stored; the answer tells of the last bad one.
    let over = decoded.decoded.rejected.by_reason().any(|(reason, _)| reason == Reason::TenantLimit);
    match decoded.last_error.or_else(|| over.then(|| decoded.decoded.rejected.summary())) {
        Some(message) => Err(Failure::new(StatusCode::BAD_REQUEST, message)),
        None => Ok(()),
    }
}
