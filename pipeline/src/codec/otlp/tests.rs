//! No decoder panics: on noise, and on valid requests with some bytes changed.

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    metrics::v1::{
        ExponentialHistogram, ExponentialHistogramDataPoint, Histogram, HistogramDataPoint, Metric, ResourceMetrics,
        ScopeMetrics, exponential_histogram_data_point::Buckets, metric,
    },
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span},
};
use proptest::prelude::*;
use prost::Message as _;

use super::{json::Request, *};
use crate::Data;

fn nested() -> Option<AnyValue> {
    let leaf = |v| Some(AnyValue { value: Some(v) });
    let list =
        ArrayValue { values: vec![AnyValue { value: Some(Value::DoubleValue(1.5)) }, AnyValue { value: None }] };
    let map = KeyValueList {
        values: vec![KeyValue { key: "k".into(), value: leaf(Value::ArrayValue(list)), ..KeyValue::default() }],
    };
    leaf(Value::KvlistValue(map))
}

fn attributes() -> Vec<KeyValue> {
    vec![
        KeyValue {
            key: "service.name".into(),
            value: Some(AnyValue { value: Some(Value::StringValue("s".into())) }),
            ..KeyValue::default()
        },
        KeyValue { key: "m".into(), value: nested(), ..KeyValue::default() },
    ]
}

fn samples() -> Vec<(Request, Vec<u8>)> {
    let resource = Some(Resource { attributes: attributes(), ..Resource::default() });
    let scope =
        Some(InstrumentationScope { name: "n".into(), attributes: attributes(), ..InstrumentationScope::default() });
    let record = LogRecord {
        time_unix_nano: 5,
        body: nested(),
        attributes: attributes(),
        trace_id: vec![1; 16],
        severity_text: "x".into(),
        ..LogRecord::default()
    };
    let logs = ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: resource.clone(),
            scope_logs: vec![ScopeLogs {
                scope: scope.clone(),
                log_records: vec![record; 2],
                ..ScopeLogs::default()
            }],
            schema_url: "u".into(),
        }],
    };
    let span = Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        parent_span_id: vec![3; 8],
        name: "n".into(),
        start_time_unix_nano: 7,
        end_time_unix_nano: 9,
        attributes: attributes(),
        events: vec![span::Event { name: "e".into(), attributes: attributes(), ..span::Event::default() }],
        links: vec![span::Link { trace_id: vec![1; 16], span_id: vec![2; 8], ..span::Link::default() }],
        status: Some(Status { message: "m".into(), code: 2 }),
        ..Span::default()
    };
    let traces = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: resource.clone(),
            scope_spans: vec![ScopeSpans { scope: scope.clone(), spans: vec![span; 2], ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    };
    let point = HistogramDataPoint {
        attributes: attributes(),
        time_unix_nano: 5_000_000,
        count: 3,
        bucket_counts: vec![1, 2],
        explicit_bounds: vec![0.5],
        ..HistogramDataPoint::default()
    };
    let exponential = ExponentialHistogramDataPoint {
        time_unix_nano: 5_000_000,
        scale: 20,
        positive: Some(Buckets { offset: -7, bucket_counts: vec![1; 9] }),
        ..ExponentialHistogramDataPoint::default()
    };
    let metric = |data| Metric { name: "m.x".into(), unit: "By/s".into(), data: Some(data), ..Metric::default() };
    let metrics = ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource,
            scope_metrics: vec![ScopeMetrics {
                scope,
                metrics: vec![
                    metric(metric::Data::Histogram(Histogram {
                        data_points: vec![point],
                        aggregation_temporality: 2,
                    })),
                    metric(metric::Data::ExponentialHistogram(ExponentialHistogram {
                        data_points: vec![exponential],
                        aggregation_temporality: 2,
                    })),
                ],
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    };
    vec![
        (Request::Logs, logs.encode_to_vec()),
        (Request::Traces, traces.encode_to_vec()),
        (Request::Metrics, metrics.encode_to_vec()),
    ]
}

#[test]
fn valid_requests_are_taken_whole_and_split_the_same_way_each_time() {
    for (request, body) in samples() {
        let limits = Limits { batch_rows_max: 1, ..Limits::default() };
        let d = decode(&body, request, &limits, 10, None).unwrap();
        assert_eq!((d.accepted, d.rejected.total()), (2, 0), "{request:?} {:?}", d.rejected.details);
        assert!(d.batches.len() >= 2);
        assert!(d.batches.iter().all(|b| b.rows() > 0));
    }
}

#[test]
fn deep_values_refuse_their_record_only() {
    let mut body: Vec<u8> = Vec::new();
    for _ in 0..100_000 {
        // AnyValue { array_value { values [ ... ] } }, built from the inside.
        if body.len() > 400_000 {
            break;
        }
        let mut list = Vec::new();
        wire::put_bytes(&mut list, 1, &body);
        body.clear();
        wire::put_bytes(&mut body, 5, &list);
    }
    let mut record = Vec::new();
    wire::put_bytes(&mut record, 5, &body);
    let mut scope = Vec::new();
    wire::put_bytes(&mut scope, 2, &record);
    wire::put_bytes(&mut scope, 2, &[]);
    let mut resource = Vec::new();
    wire::put_bytes(&mut resource, 2, &scope);
    let mut request = Vec::new();
    wire::put_bytes(&mut request, 1, &resource);
    let d = decode_logs(&request, &Limits::default(), 10).unwrap();
    assert_eq!((d.accepted, d.rejected.total()), (1, 1));
}

#[test]
fn invalid_utf8_refuses_its_record_only() {
    let (_, body) = samples().swap_remove(0);
    let mut request = ExportLogsServiceRequest::decode(&body[..]).unwrap();
    request.resource_logs[0].scope_logs[0].log_records[1].severity_text = "QQQQ".into();
    let mut body = request.encode_to_vec();
    let at = body.windows(4).position(|w| w == b"QQQQ").unwrap();
    body[at] = 0xff;
    let d = decode_logs(&body, &Limits::default(), 10).unwrap();
    assert_eq!((d.accepted, d.rejected.total()), (1, 1));
    assert!(matches!(d.batches[0], Data::Logs(_)));
}

#[test]
fn invalid_utf8_in_metrics_refuses_its_points_only() {
    use opentelemetry_proto::tonic::metrics::v1 as m;
    let point = |n: u64, key: &str| m::NumberDataPoint {
        time_unix_nano: 1_000_000 * n,
        value: Some(m::number_data_point::Value::AsInt(1)),
        attributes: vec![KeyValue { key: key.into(), ..KeyValue::default() }],
        ..m::NumberDataPoint::default()
    };
    let metric = |name: &str, keys: [&str; 2]| m::Metric {
        name: name.into(),
        data: Some(m::metric::Data::Gauge(m::Gauge { data_points: vec![point(1, keys[0]), point(2, keys[1])] })),
        ..m::Metric::default()
    };
    let scope = |url: &str, metrics: Vec<m::Metric>| m::ScopeMetrics {
        metrics,
        schema_url: url.into(),
        ..m::ScopeMetrics::default()
    };
    let resource = |url: &str, scope_metrics: Vec<m::ScopeMetrics>| m::ResourceMetrics {
        scope_metrics,
        schema_url: url.into(),
        ..m::ResourceMetrics::default()
    };
    let whole = |resource_metrics| {
        let mut body = ExportMetricsServiceRequest { resource_metrics }.encode_to_vec();
        while let Some(at) = body.windows(4).position(|w| w == b"QQQQ") {
            body[at] = 0xff;
        }
        let d = decode_metrics(&body, &Limits::default(), 10, None).unwrap();
        (d.accepted, d.rejected.total())
    };
    let fine = || metric("fine", ["a", "b"]);
    let mixed = vec![fine(), metric("one", ["a", "QQQQ"]), metric("QQQQ", ["a", "b"]), fine()];
    assert_eq!(whole(vec![resource("", vec![scope("", mixed.clone())])]), (5, 3));
    let spoiled = vec![scope("QQQQ", mixed.clone()), scope("", vec![fine()])];
    assert_eq!(whole(vec![resource("", spoiled.clone())]), (2, 8));
    assert_eq!(whole(vec![resource("", vec![scope("", vec![fine()])]), resource("QQQQ", spoiled)]), (2, 10));
}

proptest! {
    #[test]
    fn noise_and_damage_never_panic(
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        for (request, mut body) in samples() {
            let deltas = Deltas::default();
            let totals = Some(Totals { deltas: &deltas, tenant: "" });
            let _ = decode(&noise, request, &Limits::default(), 10, totals);
            for (at, byte) in &changes {
                let i = at.index(body.len());
                body[i] = *byte;
            }
            let _ = decode(&body, request, &Limits::default(), 10, None);
            let _ = decode(&body[..cut.index(body.len())], request, &Limits::default(), 10, None);
        }
    }

    #[test]
    fn json_never_panics(
        noise in "[{}\\[\\]\":,a-z0-9 ]{0,80}",
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 32u8..127), 1..4),
    ) {
        for request in [Request::Logs, Request::Traces, Request::Metrics] {
            let _ = json::to_protobuf(noise.as_bytes(), request);
            let mut text = br#"{"resourceLogs":[{"resource":{"attributes":[{"key":"a","value":{"intValue":"5"}}]},"scopeLogs":[{"logRecords":[{"timeUnixNano":"5","traceId":"0102","body":{"arrayValue":{"values":[{"doubleValue":"NaN"}]}}}]}]}],"resourceSpans":[{"scopeSpans":[{"spans":[{"kind":"SPAN_KIND_SERVER","events":[{}]}]}]}],"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"histogram":{"dataPoints":[{"bucketCounts":["1",2],"explicitBounds":[1.5]}]}}]}]}]}"#.to_vec();
            for (at, byte) in &changes {
                let i = at.index(text.len());
                text[i] = *byte;
            }
            if let Ok(body) = json::to_protobuf(&text, request) {
                let _ = decode(&body, request, &Limits::default(), 10, None);
            }
        }
    }
}
