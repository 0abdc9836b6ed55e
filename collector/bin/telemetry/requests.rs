//! A span and a duration for each request, continuing the caller's trace where there is one (W3C `traceparent`).
//!
//! Texts of requests stay out: who may read our own tenant may not read what others ask.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue,
    metrics::{Histogram, Meter},
    propagation::{Extractor, TextMapPropagator as _},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Instrument as _, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Asked every few seconds by whoever watches us, and never worth a trace.
const QUIET: [&str; 5] = ["/ready", "/-/ready", "/healthz", "/-/healthy", "/metrics"];

/// Bounds of the durations' buckets, seconds. Source: OpenTelemetry semantic conventions for HTTP.
const BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

#[derive(Clone)]
pub struct Traced {
    duration: Histogram<f64>,
}

impl Traced {
    pub fn new(meter: &Meter) -> Self {
        let duration = meter
            .f64_histogram("http.server.request.duration")
            .with_unit("s")
            .with_description("Duration of requests, to the head of the answer.")
            .with_boundaries(BUCKETS.to_vec())
            .build();
        Traced { duration }
    }
}

pub async fn trace(State(traced): State<Traced>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    if QUIET.contains(&route.as_str()) {
        return next.run(request).await;
    }
    let method = method(request.method());
    // A name that is no tenant is refused by the handler; here it is nothing to keep.
    let tenant = collector::auth::tenant(request.headers()).ok();
    let span = tracing::info_span!(
        target: "sightline::http",
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        http.request.method = method,
        http.route = route,
        http.request.body.size = request.headers().get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()),
        sightline.tenant = tenant.as_ref().map(|t| t.as_str()),
        http.response.status_code = Empty,
        otel.status_code = Empty,
    );
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(request.headers()));
    // Refused only where the span is not recorded at all.
    let _ = span.set_parent(parent);
    let began = Instant::now();
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    traced.duration.record(
        began.elapsed().as_secs_f64(),
        &[
            KeyValue::new("http.request.method", method),
            KeyValue::new("http.route", route),
            KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
        ],
    );
    response
}

/// A bounded set of names, whatever is sent.
fn method(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
