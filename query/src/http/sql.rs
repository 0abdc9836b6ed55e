//! `POST /api/v1/sql`: one SELECT, its answer streamed as JSON, CSV or Arrow.
//!
//! ```text
//! request   {"query": "...", "format": "json|csv|arrow", "start": T, "end": T, "limit": N, "timeout": "30s"}
//!           all but `query` optional; T: Unix seconds or RFC 3339, both inclusive
//! json      {"data":{"columns":[{"name":"n","type":"Int64"},..],"rows":[[..],..]},"stats":{..},"status":"success"}
//! csv       a line of names, a line for each row; null is nothing, the empty text is ""
//! arrow     an Arrow IPC stream
//! error     {"status":"error","errorType":"bad_data","error":"...","position":{"line":1,"column":8}}
//! ```
//! `status` comes last, because an answer that is under way can still fail: then it ends with an error and `"status":
//! "error"`. CSV and Arrow then end without their last chunk, so that no client takes them for whole. Their statistics are
//! in the header `X-Sightline-Stats`, or in a trailer of that name when the answer is longer than what is held back.

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header::TRAILER},
    routing::post,
};
use bytes::{Bytes, BytesMut};
use futures::stream;
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use serde::Deserialize;
use serde_json::Value;
use storage::model::{TimeRange, Timestamp};

use super::{
    envelope,
    params::{self, invalid, parse_time_ms},
    sql_encode::{self, Format},
};
use crate::{
    error::QueryError,
    limits::{FORM_BYTES_MAX, SQL_HOLD_BYTES},
    promql::parse_duration_ms,
    sql::{Answer, Piece, SqlEngine, SqlError, SqlRequest, SqlStats},
};

const STATS: HeaderName = HeaderName::from_static("x-sightline-stats");

/// Paths below `/api/v1`.
pub fn router(engine: SqlEngine) -> Router {
    Router::new().route("/sql", post(answer)).with_state(engine)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    query: String,
    #[serde(default)]
    format: Format,
    start: Option<Value>,
    end: Option<Value>,
    limit: Option<usize>,
    timeout: Option<Value>,
}

async fn answer(State(engine): State<SqlEngine>, request: Request) -> Response<Body> {
    match ask(&engine, request).await {
        Ok(response) => response,
        Err(e) => failed(&e),
    }
}

async fn ask(engine: &SqlEngine, request: Request) -> Result<Response<Body>, SqlError> {
    let tenant = params::tenant(request.headers())?;
    let body = Limited::new(request.into_body(), FORM_BYTES_MAX)
        .collect()
        .await
        .map_err(|e| QueryError::BadData(format!("cannot read the body (at most {FORM_BYTES_MAX} bytes): {e}")))?;
    let ask: Ask = serde_json::from_slice(&body.to_bytes())
        .map_err(|e| QueryError::BadData(format!("the body is not {{\"query\": \"SELECT ...\"}}: {e}")))?;
    let format = ask.format;
    let Some(request) = checked(ask)? else {
        return Err(invalid("end", "end timestamp must not be before start time").into());
    };
    held_back(engine.run(tenant, request, sql_encode::encoder(format))?, format).await
}

/// `None`: the end is before the start.
fn checked(ask: Ask) -> Result<Option<SqlRequest>, QueryError> {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let time = |name: &str, v: &Option<Value>| {
        let given = v.as_ref().map(text);
        let parsed = given.as_deref().map(|t| {
            parse_time_ms(t).ok_or_else(|| invalid(name, &format!("cannot parse {t:?} to a valid timestamp")))
        });
        parsed.transpose()
    };
    let (start, end) = (time("start", &ask.start)?, time("end", &ask.end)?);
    let timeout = match ask.timeout.as_ref().map(text) {
        None => None,
        Some(t) => {
            let seconds = t.parse::<f64>().ok().map(|s| (s * 1000.0) as i64);
            match seconds.or_else(|| parse_duration_ms(&t)) {
                Some(ms) if ms > 0 => Some(std::time::Duration::from_millis(ms.unsigned_abs())),
                _ => return Err(invalid("timeout", &format!("cannot parse {t:?} to a duration above 0"))),
            }
        }
    };
    let start = start.map_or(Timestamp::MIN, Timestamp::from_millis);
    let end = end.map_or(Timestamp::MAX, |e| Timestamp::from_millis(e.saturating_add(1)));
    let within = TimeRange::new(start, end);
    Ok(within.map(|within| SqlRequest { within, limit: ask.limit, timeout, ..SqlRequest::new(ask.query) }))
}

/// Holds the first bytes back: an answer that fails or ends within them is answered whole.
async fn held_back(mut answer: Answer, format: Format) -> Result<Response<Body>, SqlError> {
    let mut held = BytesMut::new();
    loop {
        match answer.next().await {
            None => return Err(QueryError::Internal("an SQL query ended without an end".into()).into()),
            Some(Err(e)) => return Err(e),
            Some(Ok(Piece::End(stats))) => {
                let mut response = envelope::with_type(StatusCode::OK, format.content_type(), held.freeze());
                response.headers_mut().extend(stats_header(&stats));
                return Ok(response);
            }
            Some(Ok(Piece::Bytes(bytes))) => held.extend_from_slice(&bytes),
        }
        if held.len() > SQL_HOLD_BYTES {
            let body =
                StreamBody::new(stream::unfold(Rest::Held(held.freeze(), answer), move |rest| rest.next(format)));
            let mut response = envelope::with_type(StatusCode::OK, format.content_type(), Body::new(body));
            response.headers_mut().insert(TRAILER, HeaderValue::from_static("x-sightline-stats"));
            return Ok(response);
        }
    }
}

/// What of an answer is still to be sent.
enum Rest {
    Held(Bytes, Answer),
    More(Answer),
    Nothing,
}

type Sent = Result<Frame<Bytes>, QueryError>;

impl Rest {
    async fn next(self, format: Format) -> Option<(Sent, Rest)> {
        let mut answer = match self {
            Rest::Held(bytes, answer) => return Some((Ok(Frame::data(bytes)), Rest::More(answer))),
            Rest::More(answer) => answer,
            Rest::Nothing => return None,
        };
        let missing = || Err(QueryError::Internal("an SQL query ended without an end".into()).into());
        match answer.next().await.unwrap_or_else(missing) {
            Ok(Piece::Bytes(bytes)) => Some((Ok(Frame::data(bytes)), Rest::More(answer))),
            Ok(Piece::End(stats)) => Some((Ok(Frame::trailers(stats_header(&stats))), Rest::Nothing)),
            Err(e) if format == Format::Json => {
                let (_, error) = envelope::prometheus_error_text(&e.error, e.position);
                let tail = sql_encode::json_broken_off(&error);
                Some((Ok(Frame::data(tail)), Rest::Nothing))
            }
            Err(e) => Some((Err(e.error), Rest::Nothing)),
        }
    }
}

fn stats_header(stats: &SqlStats) -> HeaderMap {
    let value = HeaderValue::from_str(&sql_encode::stats_json(stats)).ok();
    value.into_iter().map(|v| (STATS, v)).collect()
}

fn failed(e: &SqlError) -> Response<Body> {
    let (status, body) = envelope::prometheus_error_text(&e.error, e.position);
    envelope::json(status, body)
}
