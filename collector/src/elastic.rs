//! Elasticsearch `_bulk` and the questions its shippers ask before, also below `/elasticsearch`.
//!
//! Every answer bears `X-Elastic-Product`, without which official clients refuse to go on. The members of an answer have
//! the order that Elasticsearch gives them: some shippers search its text.

use std::{fmt::Write as _, sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use pipeline::codec::{
    compress::Encoding,
    elastic::{self, Action, Bulk},
};
use serde_json::{Value, json};
use storage::model::json::write_string;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    auth,
    metrics::Protocol,
    push::{Push, batch_id, content_encoding, media_type},
    reply::Failure,
};

const JSON: &str = "application/json";

/// What we say we are unless configured: recent enough for every 8.x shipper.
pub const VERSION: &str = "8.11.0";

/// Types of a body that are taken; absent counts as the first.
const MEDIA_TYPES: [&str; 4] =
    ["application/x-ndjson", JSON, "application/vnd.elasticsearch+x-ndjson", "application/vnd.elasticsearch+json"];

/// What shippers look at and set up before they send; they find that all of it is there.
const SETUP: [&str; 7] = [
    "/_index_template/{*name}",
    "/_template/{*name}",
    "/_component_template/{*name}",
    "/_ilm/policy/{*name}",
    "/_data_stream/{*name}",
    "/_ingest/pipeline/{*name}",
    "/_alias/{*name}",
];

/// Clients that ask `/` who we are, by a word of their `User-Agent`.
const SHIPPERS: [&str; 4] = ["elastic", "vector", "logstash", "fluent"];

/// The answers that are the same for everyone.
fn answers() -> [(&'static str, Value); 5] {
    [
        (
            "/_license",
            json!({ "license": { "status": "active", "uid": "sightline", "type": "basic", "mode": "basic",
                "expiry_date_in_millis": 4_000_000_000_000u64 } }),
        ),
        (
            "/_xpack",
            json!({ "build": {}, "license": { "uid": "sightline", "type": "basic", "mode": "basic",
                "status": "active" }, "features": {} }),
        ),
        ("/_cluster/health", json!({ "cluster_name": "sightline", "status": "green", "number_of_nodes": 1 })),
        ("/_nodes/http", json!({ "nodes": {} })),
        ("/_nodes/_all/http", json!({ "nodes": {} })),
    ]
}

/// `version`: what shippers are told that we are.
pub(crate) fn routes(version: &str) -> Router<Arc<Push>> {
    let mut router = Router::new();
    for base in ["", "/elasticsearch"] {
        router = router
            .route(&format!("{base}/_bulk"), post(bulk_any).put(bulk_any))
            .route(&format!("{base}/{{index}}/_bulk"), post(bulk_of).put(bulk_of));
        for (path, body) in answers() {
            let text = body.to_string();
            router = router.route(
                &format!("{base}{path}"),
                get(move || std::future::ready(answer(StatusCode::OK, text.clone()))),
            );
        }
        for path in SETUP {
            router = router.route(&format!("{base}{path}"), any(setup));
        }
    }
    // At the top `/` is the status page for people, and a name there may be anything: see [`fallback`].
    for root in ["/elasticsearch", "/elasticsearch/"] {
        let about = about(version);
        router = router.route(root, get(move || std::future::ready(answer(StatusCode::OK, about.clone()))));
    }
    router
        .route("/elasticsearch/{index}", any(index))
        .layer(map_response(|response| std::future::ready(marked(response))))
}

/// The body of the answer to `GET /`.
pub fn about(version: &str) -> String {
    json!({ "name": "sightline", "cluster_name": "sightline", "cluster_uuid": "AAAAAAAAAAAAAAAAAAAAAA",
        "version": { "number": version, "build_flavor": "default", "build_type": "tar", "build_hash": "0",
            "build_date": "2024-01-01T00:00:00Z", "build_snapshot": false, "lucene_version": "9.8.0",
            "minimum_wire_compatibility_version": "7.17.0", "minimum_index_compatibility_version": "7.0.0" },
        "tagline": "You Know, for Search" })
    .to_string()
}

/// The answer to `GET /`.
pub fn root(version: &str) -> Response {
    answer(StatusCode::OK, about(version))
}

/// For paths that no route takes: what Elasticsearch's shippers ask of an index at the top, and what of theirs is not
/// known here, told in their words. `None`: the path is nobody's.
pub fn fallback(method: &Method, path: &str) -> Option<Response> {
    let name = path.strip_prefix('/')?;
    if name.starts_with('_') || name.starts_with("elasticsearch/") {
        return Some(unknown());
    }
    // Shippers ask whether an index is there, and make it; nothing here has a name of one piece and these methods.
    let is_index = !name.is_empty() && !name.contains('/');
    (is_index && matches!(*method, Method::HEAD | Method::PUT)).then(|| set_up(method))
}

/// Names of indexes begin otherwise.
async fn index(method: Method, Path(index): Path<String>) -> Response {
    if index.starts_with('_') { unknown() } else { set_up(&method) }
}

fn unknown() -> Response {
    let status = StatusCode::NOT_FOUND;
    let reason = "there is no such API here; this server takes documents at /_bulk and /<index>/_bulk";
    answer(status, failure("resource_not_found_exception", reason, status))
}

/// Whether who asks for `/` is a shipper and no browser.
pub fn asks(headers: &HeaderMap) -> bool {
    let text = |name| {
        let value = headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
        value.unwrap_or_default().to_ascii_lowercase()
    };
    let (accept, agent) = (text(header::ACCEPT), text(header::USER_AGENT));
    !accept.contains("html") && (accept.contains("json") || SHIPPERS.iter().any(|s| agent.contains(s)))
}

async fn setup(method: Method) -> Response {
    set_up(&method)
}

fn set_up(method: &Method) -> Response {
    match *method {
        Method::PUT | Method::POST => answer(StatusCode::OK, r#"{"acknowledged":true}"#),
        Method::GET | Method::HEAD => answer(StatusCode::OK, "{}"),
        _ => {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            answer(status, error(status, "there is nothing here that could be changed"))
        }
    }
}

fn answer(status: StatusCode, body: impl Into<Body>) -> Response {
    marked((status, [(header::CONTENT_TYPE, JSON)], body.into()).into_response())
}

fn marked(mut response: Response) -> Response {
    response.headers_mut().insert("x-elastic-product", HeaderValue::from_static("Elasticsearch"));
    response
}

/// An error as Elasticsearch tells it.
fn error(status: StatusCode, message: &str) -> String {
    let kind = match status.as_u16() {
        413 => "content_too_long_exception",
        429 | 503 => "es_rejected_execution_exception",
        500.. => "internal_server_error",
        _ => "illegal_argument_exception",
    };
    failure(kind, message, status)
}

fn failure(kind: &str, reason: &str, status: StatusCode) -> String {
    let cause = json!({ "type": kind, "reason": reason });
    json!({ "error": { "root_cause": [cause], "type": kind, "reason": reason }, "status": status.as_u16() })
        .to_string()
}

async fn bulk_any(State(push): State<Arc<Push>>, headers: HeaderMap, body: Body) -> Response {
    bulk(&push, None, &headers, body).await
}

async fn bulk_of(
    State(push): State<Arc<Push>>,
    Path(index): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    bulk(&push, Some(index), &headers, body).await
}

async fn bulk(push: &Push, index: Option<String>, headers: &HeaderMap, body: Body) -> Response {
    let (began, mut sent) = (Instant::now(), 0);
    let response = match take(push, index, headers, body, &mut sent).await {
        Ok(bulk) => answer(StatusCode::OK, report(&bulk, began, push.now())),
        Err(failure) => marked(failure.response(JSON, error(failure.status, &failure.message))),
    };
    push.metrics().request(Protocol::Elastic, response.status(), sent);
    response
}

async fn take(
    push: &Push,
    index: Option<String>,
    headers: &HeaderMap,
    body: Body,
    sent: &mut usize,
) -> Result<Bulk, Failure> {
    let tenant = auth::tenant(headers)?;
    let media = media_type(headers);
    if !media.is_empty() && !MEDIA_TYPES.contains(&media.as_str()) {
        let message = format!("Content-Type header [{media}] is not supported");
        return Err(Failure::new(StatusCode::NOT_ACCEPTABLE, message));
    }
    let encoding = content_encoding(headers)?;
    let received = push.receive(headers, body, encoding != Encoding::Identity).await?;
    *sent = received.sent;
    let (mut bulk, hash) = push
        .decode(received.body.clone(), encoding, move |body, limits, now| {
            let mut hash = xxh3_128(&body).to_be_bytes().to_vec();
            hash.extend_from_slice(index.as_deref().unwrap_or_default().as_bytes());
            Ok((elastic::decode(&body, index.as_deref(), limits, now)?, xxh3_128(&hash).to_be_bytes()))
        })
        .await?;
    // Where every document has an id, the same request again is the same documents.
    let named = !bulk.items.is_empty() && bulk.items.iter().all(|i| i.id.is_some());
    let id = batch_id(headers).or_else(|| named.then_some(hash));
    let beyond = push.deliver(Protocol::Elastic, tenant, &mut bulk.decoded, id).await?;
    if !beyond.logs.is_empty() {
        let reason = bulk.decoded.rejected.details.last().map(|d| d.message.clone()).unwrap_or_default();
        let stored = bulk.items.iter_mut().filter(|i| i.refused.is_none() && i.action != Action::Delete);
        let mut beyond = beyond.logs.into_iter().peekable();
        for (_, item) in stored.enumerate().filter(|(row, _)| beyond.next_if_eq(row).is_some()) {
            item.refused = Some(reason.clone().into());
        }
    }
    Ok(bulk)
}

fn report(bulk: &Bulk, began: Instant, now: i64) -> String {
    let mut out = String::with_capacity(64 + bulk.items.len() * 192);
    let errors = bulk.items.iter().any(|i| i.refused.is_some());
    let _ = write!(out, "{{\"took\":{},\"errors\":{errors},\"items\":[", began.elapsed().as_millis());
    for (at, item) in bulk.items.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        let _ = write!(out, "{{\"{}\":{{\"_index\":", item.action.name());
        write_string(&mut out, &item.index);
        out.push_str(",\"_id\":");
        match &item.id {
            Some(id) => write_string(&mut out, id),
            None => {
                let _ = write!(out, "\"{now:x}-{at:x}\"");
            }
        }
        if let Some(reason) = &item.refused {
            out.push_str(",\"status\":400,\"error\":{\"type\":\"mapper_parsing_exception\",\"reason\":");
            write_string(&mut out, reason);
            out.push_str("}}}");
            continue;
        }
        let (result, status) = match item.action {
            Action::Delete => ("not_found", 404),
            _ => ("created", 201),
        };
        let _ = write!(
            out,
            ",\"_version\":1,\"result\":\"{result}\",\"_shards\":{{\"total\":1,\"successful\":1,\"failed\":0}},\
             \"_seq_no\":0,\"_primary_term\":1,\"status\":{status}}}}}"
        );
    }
    out.push_str("]}");
    out
}
