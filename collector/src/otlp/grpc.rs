//! The three OTLP gRPC services, spoken over plain HTTP/2 routes.
//!
//! Unary gRPC is one length-prefixed message each way and a status in the trailers: speaking it here keeps the body's
//! bytes as they came for the decoders, and the one decompressor with its cap.

use std::{future, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use pipeline::{
    Output,
    codec::{
        Decoded,
        compress::Encoding,
        otlp::{Totals, json::Request},
    },
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{http as over_http, partial};
use crate::{
    auth,
    listen::{self, ListenLimits},
    metrics::Protocol,
    push::{Push, PushConfig, batch_id},
    reply::Failure,
};

/// Serves OTLP gRPC until `stop`, then drains.
pub async fn serve(
    listener: TcpListener,
    out: Output,
    config: PushConfig,
    limits: ListenLimits,
    stop: CancellationToken,
) {
    listen::serve(listener, router(config, out), limits, stop).await;
}

/// The services as routes; they need HTTP/2.
pub fn router(config: PushConfig, out: Output) -> Router {
    routes(Push::new(config, out))
}

pub(crate) fn routes(push: Arc<Push>) -> Router {
    Router::new()
        .route("/opentelemetry.proto.collector.logs.v1.LogsService/Export", post(logs))
        .route("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", post(metrics))
        .route("/opentelemetry.proto.collector.trace.v1.TraceService/Export", post(traces))
        .fallback(|| future::ready(status(UNIMPLEMENTED, "this method is not known here")))
        .with_state(push)
}

/// `google.rpc.Code`.
const UNIMPLEMENTED: u8 = 12;
const INVALID_ARGUMENT: u8 = 3;

/// Flag and length ahead of a message.
const PREFIX_BYTES: usize = 5;

const CONTENT_TYPE: &str = "application/grpc";
const STATUS: &str = "grpc-status";
const ACCEPTED_ENCODINGS: &str = "identity,gzip,zstd,snappy,deflate";

async fn logs(State(push): State<Arc<Push>>, headers: HeaderMap, body: Body) -> Response {
    export(&push, Request::Logs, &headers, body).await
}

async fn metrics(State(push): State<Arc<Push>>, headers: HeaderMap, body: Body) -> Response {
    export(&push, Request::Metrics, &headers, body).await
}

async fn traces(State(push): State<Arc<Push>>, headers: HeaderMap, body: Body) -> Response {
    export(&push, Request::Traces, &headers, body).await
}

async fn export(push: &Push, request: Request, headers: &HeaderMap, body: Body) -> Response {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !content_type.starts_with(CONTENT_TYPE) {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    let mut sent = 0;
    let taken = take(push, request, headers, body, &mut sent).await;
    let outcome = taken.as_ref().map_or_else(|e| e.failure.status, |_| StatusCode::OK);
    push.metrics().request(Protocol::OtlpGrpc, outcome, sent);
    match taken {
        Ok(decoded) => message(&partial::protobuf(&decoded)),
        Err(e) => status(e.code, &e.failure.message),
    }
}

struct Refused {
    code: u8,
    failure: Failure,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Refused { code: over_http::grpc_code(failure.status), failure }
    }
}

fn invalid(message: &str) -> Refused {
    Refused { code: INVALID_ARGUMENT, failure: Failure::new(StatusCode::BAD_REQUEST, message) }
}

async fn take(
    push: &Push,
    request: Request,
    headers: &HeaderMap,
    body: Body,
    sent: &mut usize,
) -> Result<Decoded, Refused> {
    let tenant = auth::tenant(headers)?;
    let name = headers.get("grpc-encoding").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let encoding = Encoding::parse(name).ok_or_else(|| Refused {
        code: UNIMPLEMENTED,
        failure: Failure::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("grpc-encoding {name:?} is not supported; use {ACCEPTED_ENCODINGS}"),
        ),
    })?;
    let received = push.receive(headers, body, encoding != Encoding::Identity).await?;
    *sent = received.sent;
    let mut framed = received.body.clone();
    if framed.len() < PREFIX_BYTES {
        return Err(invalid("the request has no message"));
    }
    let (flag, len) = (framed.get_u8(), framed.get_u32());
    if framed.len() != len as usize {
        return Err(invalid("the request is not one whole message"));
    }
    let encoding = match flag {
        0 => Encoding::Identity,
        1 => encoding,
        _ => return Err(invalid("the message has an unknown flag")),
    };
    let (deltas, owner) = (push.deltas.clone(), tenant.clone());
    let mut decoded = push
        .decode(framed, encoding, move |body, limits, now| {
            let totals = Totals { deltas: &deltas, tenant: owner.as_str() };
            over_http::decode(&body, request, limits, now, totals)
        })
        .await?;
    push.deliver(Protocol::OtlpGrpc, tenant, &mut decoded, batch_id(headers)).await?;
    Ok(decoded)
}

/// A message and the status OK.
fn message(bytes: &[u8]) -> Response {
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + bytes.len());
    framed.put_u8(0);
    framed.put_u32(bytes.len() as u32);
    framed.put_slice(bytes);
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    let body = Full::<Bytes>::from(framed.freeze()).with_trailers(future::ready(Some(Ok(trailers))));
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], Body::new(body)).into_response()
}

/// A status alone: all in the headers.
fn status(code: u8, message: &str) -> Response {
    let mut response = ([(header::CONTENT_TYPE, CONTENT_TYPE)], Body::empty()).into_response();
    let headers = response.headers_mut();
    headers.insert(STATUS, HeaderValue::from(u16::from(code)));
    headers.insert("grpc-accept-encoding", HeaderValue::from_static(ACCEPTED_ENCODINGS));
    if let Ok(text) = HeaderValue::from_str(&percent_encode(message)) {
        headers.insert("grpc-message", text);
    }
    response
}

/// As gRPC wants it in `grpc-message`: printable ASCII but `%` as it is.
fn percent_encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if (b' '..=b'~').contains(&b) && b != b'%' {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}
