//! Spans over OTLP protobuf.

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value as Any},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::Event},
};
use pipeline::codec::{Limits, otlp};
use prost::Message as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::measure::{Requests, settle};

/// Spans of one request: the batch size of a usual collector.
const REQUEST_SPANS: usize = 8192;

/// Spans of one trace, one request each to the next service.
const TRACE_SPANS: usize = 12;

const NOW: i64 = 1_900_000_000_000_000_000;
const SERVICES: [&str; 12] = [
    "gateway", "shop", "cart", "catalog", "payment", "stock", "shipping", "mail", "users", "search", "price", "audit",
];

pub async fn run(spans: usize) {
    let mut requests = Requests::new();
    let rng = &mut StdRng::seed_from_u64(1);
    let mut made = 0;
    // A trace's spans come in two requests: services send at different times.
    let mut late: Vec<(usize, Span)> = Vec::new();
    while made < spans || !late.is_empty() {
        let mut group: Vec<(usize, Span)> = std::mem::take(&mut late);
        while group.len() + TRACE_SPANS <= REQUEST_SPANS && made < spans {
            for (i, span) in trace(rng, made as u64).into_iter().enumerate() {
                if i % 4 == 3 { late.push((i, span)) } else { group.push((i, span)) }
            }
            made += TRACE_SPANS;
        }
        let records = group.len() as u64;
        requests.push(&request(group), records);
    }
    let limits = Limits::default();
    let cost = settle(&mut requests, |body| otlp::decode_traces(body, &limits, NOW).expect("protobuf")).await;
    cost.print("spans, OTLP protobuf", requests.records, requests.bytes);
}

fn kv(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn string(key: &str, value: impl Into<String>) -> KeyValue {
    kv(key, Any::StringValue(value.into()))
}

/// A chain of calls with a fan-out: span `i` is called by span `i / 2`.
fn trace(rng: &mut StdRng, number: u64) -> Vec<Span> {
    let id: [u8; 16] = rng.random();
    let ids: [[u8; 8]; TRACE_SPANS] = rng.random();
    let start = 1_767_225_600_000_000_000 + number * 100_000;
    (0..TRACE_SPANS)
        .map(|i| {
            let from = start + i as u64 * 750_000 + rng.random_range(0..100_000);
            let failed = rng.random_ratio(1, 50);
            let item = rng.random_range(0..100_000);
            let route = ["/cart/{id}", "/items/{id}", "/pay", "/users/{id}/orders"][i % 4];
            let mut attributes = vec![
                string("http.request.method", if i % 3 == 0 { "POST" } else { "GET" }),
                string("http.route", route),
                string("url.path", route.replace("{id}", &format!("{item}"))),
                kv("http.response.status_code", Any::IntValue(if failed { 500 } else { 200 })),
                string("server.address", format!("{}.prod.svc", SERVICES[i])),
                kv("server.port", Any::IntValue(8080)),
                string("network.peer.address", format!("10.0.{}.{}", item % 8, item % 250)),
                kv("thread.id", Any::IntValue(item % 64)),
            ];
            if i % 5 == 4 {
                attributes.push(string("db.query.text", format!("SELECT * FROM items WHERE id = {item}")));
            }
            Span {
                trace_id: id.to_vec(),
                span_id: ids[i].to_vec(),
                parent_span_id: if i == 0 { Vec::new() } else { ids[i / 2].to_vec() },
                name: format!("{} {route}", if i % 3 == 0 { "POST" } else { "GET" }),
                kind: if i % 2 == 0 { 2 } else { 3 },
                start_time_unix_nano: from,
                end_time_unix_nano: from + rng.random_range(50_000..20_000_000),
                attributes,
                events: if failed {
                    vec![Event {
                        time_unix_nano: from + 10_000,
                        name: "exception".to_owned(),
                        attributes: vec![
                            string("exception.type", "Timeout"),
                            string("exception.message", format!("no answer within {} ms", item % 1000)),
                        ],
                        ..Event::default()
                    }]
                } else {
                    Vec::new()
                },
                status: failed.then(|| Status { message: "timeout".to_owned(), code: 2 }),
                ..Span::default()
            }
        })
        .collect()
}

/// By service, in groups as a collector's batching gives them.
fn request(spans: Vec<(usize, Span)>) -> Vec<u8> {
    let mut groups: Vec<Vec<Span>> = vec![Vec::new(); TRACE_SPANS];
    for (service, span) in spans {
        groups[service].push(span);
    }
    let group = |(service, spans): (usize, Vec<Span>)| {
        let name = SERVICES[service];
        ResourceSpans {
            resource: Some(Resource {
                attributes: vec![
                    string("service.name", name),
                    string("service.namespace", "prod"),
                    string("k8s.pod.name", format!("{name}-7d9f8c-x2x4z")),
                    string("telemetry.sdk.language", "java"),
                ],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "io.opentelemetry.http".to_owned(),
                    version: "2.9.0".to_owned(),
                    ..InstrumentationScope::default()
                }),
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }
    };
    let resource_spans = groups.into_iter().enumerate().filter(|g| !g.1.is_empty()).map(group).collect();
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}
