//! Tempo's API: a trace by its id (v1 and v2, protobuf and JSON), echo and build information.

use std::fmt::Write as _;

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, Response, StatusCode, header::ACCEPT},
    routing::get,
};
use base64::Engine as _;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span, TracesData, span::SpanKind, status::StatusCode as SpanStatus},
};
use prost::Message;
use storage::{
    Store,
    model::{TimeRange, Timestamp, json::write_string},
};

use super::{
    envelope,
    params::{Params, invalid},
};
use crate::{error::QueryError, fetch, limits::TRACE_SPANS_MAX, trace};

/// The Tempo version whose behaviour this follows; Grafana gates features by it.
const LIKE_TEMPO: &str = "2.8.1";

/// How far around the `start` and `end` of a request spans are looked for, seconds.
const HINT_MARGIN_SECONDS: i64 = 86_400;

#[derive(Clone)]
pub struct Api {
    store: Store,
}

impl Api {
    pub fn new(store: Store) -> Self {
        Api { store }
    }
}

/// `TraceByIDResponse` of v2.
#[derive(Clone, PartialEq, Message)]
struct TraceByIdResponse {
    #[prost(message, optional, tag = "1")]
    trace: Option<TracesData>,
    #[prost(message, optional, tag = "2")]
    metrics: Option<TraceMetrics>,
}

#[derive(Clone, PartialEq, Message)]
struct TraceMetrics {
    #[prost(uint64, tag = "1")]
    inspected_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

pub fn router(api: Api) -> Router {
    let by_id = |version: Version| {
        get(move |State(api): State<Api>, Path(id): Path<String>, request: Request| async move {
            by_id(api, &id, version, request).await.unwrap_or_else(|e| envelope::tempo_error(&e))
        })
    };
    Router::new()
        .route("/api/traces/{id}", by_id(Version::V1))
        .route("/api/v2/traces/{id}", by_id(Version::V2))
        .route(
            "/api/echo",
            get(|| async { envelope::with_type(StatusCode::OK, "text/plain; charset=utf-8", "echo") }),
        )
        .route("/api/status/buildinfo", get(build_info))
        .with_state(api)
}

async fn build_info() -> Response<Body> {
    let revision = env!("CARGO_PKG_VERSION");
    envelope::json(
        StatusCode::OK,
        format!(
            "{{\"version\":\"{LIKE_TEMPO}\",\"revision\":\"sightline-{revision}\",\"branch\":\"HEAD\",\
             \"buildUser\":\"\",\"buildDate\":\"\",\"goVersion\":\"\"}}"
        ),
    )
}

/// 1 to 32 hex digits, padded with zeros on the left.
fn parse_id(text: &str) -> Result<[u8; 16], QueryError> {
    if let Some((at, c)) = text.char_indices().find(|(_, c)| !c.is_ascii_hexdigit()) {
        return Err(QueryError::BadData(format!(
            "trace IDs can only contain hex characters: invalid character {c:?} at position {}",
            at + 1
        )));
    }
    if text.len() > 32 {
        return Err(QueryError::BadData("trace IDs can't be larger than 128 bits".into()));
    }
    let mut out = [0; 16];
    hex::decode_to_slice(format!("{text:0>32}"), &mut out)
        .map_err(|e| QueryError::BadData(format!("trace ID: {e}")))?;
    Ok(out)
}

fn wants_protobuf(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).any(|v| v.contains("application/protobuf"))
}

/// The hint of `start` and `end` (Unix seconds), widened; all of time without them.
fn hinted(params: &Params) -> Result<TimeRange, QueryError> {
    let seconds = |name: &str| -> Result<Option<i64>, QueryError> {
        params.get(name).map(|v| v.parse::<i64>().map_err(|_| invalid(name, "expected Unix seconds"))).transpose()
    };
    let (start, end) = (seconds("start")?, seconds("end")?);
    let (Some(start), Some(end)) = (start, end) else { return Ok(TimeRange::ALL) };
    if (start, end) == (0, 0) {
        return Ok(TimeRange::ALL);
    }
    let at = |s: i64, margin: i64| Timestamp::from_millis(s.saturating_add(margin).saturating_mul(1000));
    TimeRange::new(at(start, -HINT_MARGIN_SECONDS), at(end, HINT_MARGIN_SECONDS))
        .ok_or_else(|| invalid("end", "must not be before start"))
}

async fn by_id(api: Api, id: &str, version: Version, request: Request) -> Result<Response<Body>, QueryError> {
    let protobuf = wants_protobuf(request.headers());
    let (params, tenant) = Params::of(request).await?;
    let id = parse_id(id)?;
    let batches = fetch::trace(&api.store, &tenant, id, hinted(&params)?, TRACE_SPANS_MAX).await?;
    if batches.is_empty() && version == Version::V1 {
        return Err(QueryError::NotFound("trace not found".into()));
    }
    tokio::task::spawn_blocking(move || {
        let bytes: usize = batches.iter().map(|b| b.get_array_memory_size()).sum();
        let resource_spans = trace::assemble(&batches)?;
        Ok(if protobuf {
            let trace = TracesData { resource_spans };
            let body = match version {
                Version::V1 => trace.encode_to_vec(),
                Version::V2 => {
                    let metrics = Some(TraceMetrics { inspected_bytes: bytes as u64 });
                    TraceByIdResponse { trace: Some(trace), metrics }.encode_to_vec()
                }
            };
            envelope::with_type(StatusCode::OK, "application/protobuf", body)
        } else {
            envelope::json(StatusCode::OK, to_json(&resource_spans, version, bytes))
        })
    })
    .await
    .map_err(|e| QueryError::Internal(e.to_string()))?
}

fn to_json(all: &[ResourceSpans], version: Version, bytes: usize) -> String {
    let mut out = String::new();
    match version {
        Version::V1 => {
            out.push_str("{\"batches\":");
            write_resource_spans(&mut out, all);
            out.push('}');
        }
        Version::V2 => {
            out.push_str("{\"trace\":{");
            if !all.is_empty() {
                out.push_str("\"resourceSpans\":");
                write_resource_spans(&mut out, all);
            }
            let _ = write!(out, "}},\"metrics\":{{\"inspectedBytes\":\"{bytes}\"}}}}");
        }
    }
    out
}

/// An object under construction: fields with zero values are left out, as protobuf's JSON form has it.
struct Object<'a> {
    out: &'a mut String,
    first: bool,
}

impl<'a> Object<'a> {
    fn new(out: &'a mut String) -> Self {
        out.push('{');
        Object { out, first: true }
    }

    fn key(&mut self, key: &str) -> &mut String {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
        let _ = write!(self.out, "\"{key}\":");
        self.out
    }

    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            write_string(self.key(key), value);
        }
    }

    fn bytes(&mut self, key: &str, value: &[u8]) {
        if !value.is_empty() {
            write_base64(self.key(key), value);
        }
    }

    /// 64-bit numbers are strings.
    fn long(&mut self, key: &str, value: u64) {
        if value != 0 {
            let _ = write!(self.key(key), "\"{value}\"");
        }
    }

    fn int(&mut self, key: &str, value: u32) {
        if value != 0 {
            let _ = write!(self.key(key), "{value}");
        }
    }

    fn list<T>(&mut self, key: &str, list: &[T], write: impl Fn(&mut String, &T)) {
        if !list.is_empty() {
            write_list(self.key(key), list, write);
        }
    }

    fn end(self) {
        self.out.push('}');
    }
}

fn write_base64(out: &mut String, value: &[u8]) {
    out.push('"');
    base64::engine::general_purpose::STANDARD.encode_string(value, out);
    out.push('"');
}

fn write_list<T>(out: &mut String, list: &[T], write: impl Fn(&mut String, &T)) {
    out.push('[');
    for (i, item) in list.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write(out, item);
    }
    out.push(']');
}

fn write_resource_spans(out: &mut String, all: &[ResourceSpans]) {
    write_list(out, all, |out, r| {
        let mut o = Object::new(out);
        let mut resource = Object::new(o.key("resource"));
        if let Some(r) = &r.resource {
            resource.list("attributes", &r.attributes, write_attribute);
            resource.int("droppedAttributesCount", r.dropped_attributes_count);
        }
        resource.end();
        write_list(o.key("scopeSpans"), &r.scope_spans, |out, s| {
            let mut o = Object::new(out);
            let mut scope = Object::new(o.key("scope"));
            if let Some(s) = &s.scope {
                scope.text("name", &s.name);
                scope.text("version", &s.version);
                scope.list("attributes", &s.attributes, write_attribute);
                scope.int("droppedAttributesCount", s.dropped_attributes_count);
            }
            scope.end();
            write_list(o.key("spans"), &s.spans, write_span);
            o.text("schemaUrl", &s.schema_url);
            o.end();
        });
        o.text("schemaUrl", &r.schema_url);
        o.end();
    });
}

fn write_span(out: &mut String, s: &Span) {
    let mut o = Object::new(out);
    o.bytes("traceId", &s.trace_id);
    o.bytes("spanId", &s.span_id);
    o.text("traceState", &s.trace_state);
    o.bytes("parentSpanId", &s.parent_span_id);
    o.int("flags", s.flags);
    o.text("name", &s.name);
    match SpanKind::try_from(s.kind) {
        Ok(SpanKind::Unspecified) => {}
        Ok(kind) => o.text("kind", kind.as_str_name()),
        Err(_) => {
            let _ = write!(o.key("kind"), "{}", s.kind);
        }
    }
    o.long("startTimeUnixNano", s.start_time_unix_nano);
    o.long("endTimeUnixNano", s.end_time_unix_nano);
    o.list("attributes", &s.attributes, write_attribute);
    o.int("droppedAttributesCount", s.dropped_attributes_count);
    o.list("events", &s.events, |out, e| {
        let mut o = Object::new(out);
        o.long("timeUnixNano", e.time_unix_nano);
        o.text("name", &e.name);
        o.list("attributes", &e.attributes, write_attribute);
        o.int("droppedAttributesCount", e.dropped_attributes_count);
        o.end();
    });
    o.int("droppedEventsCount", s.dropped_events_count);
    o.list("links", &s.links, |out, l| {
        let mut o = Object::new(out);
        o.bytes("traceId", &l.trace_id);
        o.bytes("spanId", &l.span_id);
        o.text("traceState", &l.trace_state);
        o.list("attributes", &l.attributes, write_attribute);
        o.int("droppedAttributesCount", l.dropped_attributes_count);
        o.int("flags", l.flags);
        o.end();
    });
    o.int("droppedLinksCount", s.dropped_links_count);
    let mut status = Object::new(o.key("status"));
    if let Some(s) = &s.status {
        status.text("message", &s.message);
        match SpanStatus::try_from(s.code) {
            Ok(SpanStatus::Unset) => {}
            Ok(code) => status.text("code", code.as_str_name()),
            Err(_) => {
                let _ = write!(status.key("code"), "{}", s.code);
            }
        }
    }
    status.end();
    o.end();
}

fn write_attribute(out: &mut String, kv: &KeyValue) {
    let mut o = Object::new(out);
    o.text("key", &kv.key);
    write_any(o.key("value"), kv.value.as_ref());
    o.end();
}

/// The one field of a oneof is written whatever its value.
fn write_any(out: &mut String, value: Option<&AnyValue>) {
    let mut o = Object::new(out);
    match value.and_then(|v| v.value.as_ref()) {
        None | Some(Value::StringValueStrindex(_)) => {}
        Some(Value::StringValue(s)) => write_string(o.key("stringValue"), s),
        Some(Value::BoolValue(b)) => o.key("boolValue").push_str(if *b { "true" } else { "false" }),
        Some(Value::IntValue(i)) => {
            let _ = write!(o.key("intValue"), "\"{i}\"");
        }
        Some(Value::DoubleValue(d)) => {
            let out = o.key("doubleValue");
            let _ = match () {
                () if d.is_finite() => write!(out, "{d:?}"),
                () if d.is_nan() => write!(out, "\"NaN\""),
                () if *d > 0.0 => write!(out, "\"Infinity\""),
                () => write!(out, "\"-Infinity\""),
            };
        }
        Some(Value::BytesValue(b)) => write_base64(o.key("bytesValue"), b),
        Some(Value::ArrayValue(a)) => {
            let mut inner = Object::new(o.key("arrayValue"));
            inner.list("values", &a.values, |out, v| write_any(out, Some(v)));
            inner.end();
        }
        Some(Value::KvlistValue(m)) => {
            let mut inner = Object::new(o.key("kvlistValue"));
            inner.list("values", &m.values, write_attribute);
            inner.end();
        }
    }
    o.end();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hex_padded_on_the_left() {
        assert_eq!(parse_id("abcd").unwrap()[14..], [0xab, 0xcd]);
        assert_eq!(parse_id("0000ABCD").unwrap()[14..], [0xab, 0xcd]);
        assert!(parse_id("xyz").unwrap_err().to_string().contains("position 1"));
        assert!(parse_id(&"a".repeat(33)).unwrap_err().to_string().contains("128 bits"));
    }
}
