//! decode(encode(batch)) == batch, in rows.

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    metrics::v1::{
        Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, exemplar,
        exponential_histogram_data_point::Buckets, metric, number_data_point, summary_data_point::ValueAtQuantile,
    },
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span},
};
use prost::Message as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use storage::model::{
    Labels, LogBatchBuilder, LogRow, MetricBatchBuilder, TenantId,
    batch::{HistogramRow, SeriesMeta},
};

use super::encode;
use crate::{
    Batch, Data,
    codec::{
        Limits,
        otlp::{decode, json::Request},
    },
    sink::stdout::write_batch,
};

const NOW: i64 = 1_790_000_000_000_000_000;
const CASES: u64 = 150;

/// The rows of batches as sorted lines, every column of them.
fn rows(batches: &[Data]) -> Vec<String> {
    let mut out: Vec<String> = batches
        .iter()
        .flat_map(|d| {
            let text = write_batch(&Batch::new(TenantId::default(), d.clone())).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    out.sort();
    out
}

fn request_of(data: &Data) -> Request {
    match data {
        Data::Logs(_) => Request::Logs,
        Data::Metrics(_) => Request::Metrics,
        Data::Spans(_) => Request::Traces,
    }
}

/// What arrives at another Sightline.
fn there(batches: &[Data]) -> Vec<Data> {
    let mut out = Vec::new();
    for data in batches {
        let encoded = encode(data).unwrap();
        assert_eq!(encoded.unsupported, 0);
        let limits = Limits { future_max: None, ..Limits::default() };
        let decoded = decode(&encoded.body, request_of(data), &limits, NOW, None).unwrap();
        assert_eq!(decoded.rejected.total(), 0, "{:?}", decoded.rejected);
        out.extend(decoded.batches);
    }
    out
}

fn same(got: &[Data], want: &[Data], what: &str) {
    let (got, want) = (rows(got), rows(want));
    let only = |a: &[String], b: &[String]| {
        let count = |all: &[String], line: &String| all.iter().filter(|l| *l == line).count();
        a.iter().filter(|l| count(b, l) < count(a, l)).take(3).cloned().collect::<Vec<_>>()
    };
    let (lost, new) = (only(&want, &got), only(&got, &want));
    assert!(got == want, "{what}: {} rows became {}; lost {lost:#?}, new {new:#?}", want.len(), got.len());
}

fn check(body: &[u8], request: Request, seed: u64) {
    let limits = Limits { future_max: None, ..Limits::default() };
    let here = decode(body, request, &limits, NOW, None).unwrap().batches;
    same(&there(&here), &here, &format!("seed {seed}"));
}

fn value(r: &mut StdRng, depth: u32) -> AnyValue {
    let value = match r.random_range(0..if depth > 2 { 6 } else { 8 }) {
        0 => None,
        1 => Some(Value::StringValue(text(r))),
        2 => Some(Value::BoolValue(r.random())),
        3 => Some(Value::IntValue(r.random())),
        4 => Some(Value::DoubleValue(*[0.0, -0.0, 1.5, f64::INFINITY, 1e300, 3.0].choose(r).unwrap())),
        5 => Some(Value::BytesValue((0..r.random_range(0..5)).map(|_| r.random()).collect())),
        6 => {
            let values = (0..r.random_range(0..3)).map(|_| value(r, depth + 1)).collect();
            Some(Value::ArrayValue(ArrayValue { values }))
        }
        _ => Some(Value::KvlistValue(KeyValueList { values: attributes(r, depth + 1) })),
    };
    AnyValue { value }
}

fn text(r: &mut StdRng) -> String {
    ["", "a", "b c", "ü\n\"", "service", "1a", "_x", "x.y"].choose(r).unwrap().to_string()
}

fn attributes(r: &mut StdRng, depth: u32) -> Vec<KeyValue> {
    let names = ["k", "x.y", "x_y", "http.method", "_foo", "1", "host.name", "job", "le", "k8s.pod.name"];
    (0..r.random_range(0..4))
        .map(|_| {
            let key = names.choose(r).unwrap().to_string();
            KeyValue { key, value: Some(value(r, depth)), ..KeyValue::default() }
        })
        .collect()
}

fn string(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

fn resource(r: &mut StdRng) -> Option<Resource> {
    r.random_bool(0.9).then(|| {
        let mut attributes = attributes(r, 0);
        for name in ["service.name", "service.namespace", "service.instance.id", "k8s.pod.name", "os.type"] {
            if r.random_bool(0.5) {
                attributes.push(string(name, ["api", "web", "7"].choose(r).unwrap()));
            }
        }
        Resource { attributes, dropped_attributes_count: r.random_range(0..2), ..Resource::default() }
    })
}

fn scope(r: &mut StdRng) -> Option<InstrumentationScope> {
    r.random_bool(0.8).then(|| InstrumentationScope {
        name: text(r),
        version: text(r),
        attributes: attributes(r, 0),
        dropped_attributes_count: r.random_range(0..2),
    })
}

fn time(r: &mut StdRng) -> u64 {
    NOW as u64 - r.random_range(0..1_000_000_000_000)
}

fn id(r: &mut StdRng, len: usize) -> Vec<u8> {
    (0..len).map(|_| r.random_range(1..=255)).collect()
}

#[test]
fn logs_that_came_by_otlp_arrive_as_they_were() {
    for seed in 0..CASES {
        let r = &mut StdRng::seed_from_u64(seed);
        let record = |r: &mut StdRng| LogRecord {
            time_unix_nano: time(r),
            observed_time_unix_nano: if r.random() { time(r) } else { 0 },
            severity_number: r.random_range(0..24),
            severity_text: text(r),
            body: r.random_bool(0.9).then(|| value(r, 0)),
            attributes: attributes(r, 0),
            dropped_attributes_count: r.random_range(0..2),
            flags: r.random_range(0..3),
            trace_id: if r.random() { id(r, 16) } else { Vec::new() },
            span_id: if r.random() { id(r, 8) } else { Vec::new() },
            event_name: text(r),
        };
        let request = ExportLogsServiceRequest {
            resource_logs: (0..r.random_range(0..4))
                .map(|_| ResourceLogs {
                    resource: resource(r),
                    scope_logs: (0..r.random_range(0..3))
                        .map(|_| ScopeLogs {
                            scope: scope(r),
                            log_records: (0..r.random_range(0..5)).map(|_| record(r)).collect(),
                            schema_url: text(r),
                        })
                        .collect(),
                    schema_url: text(r),
                })
                .collect(),
        };
        check(&request.encode_to_vec(), Request::Logs, seed);
    }
}

#[test]
fn spans_arrive_as_they_were() {
    for seed in 0..CASES {
        let r = &mut StdRng::seed_from_u64(seed);
        let span = |r: &mut StdRng| {
            let start = time(r);
            Span {
                trace_id: id(r, 16),
                span_id: id(r, 8),
                trace_state: text(r),
                parent_span_id: if r.random() { id(r, 8) } else { Vec::new() },
                flags: r.random_range(0..3),
                name: text(r),
                kind: r.random_range(0..6),
                start_time_unix_nano: start,
                end_time_unix_nano: start + r.random_range(0..1000),
                attributes: attributes(r, 0),
                dropped_attributes_count: r.random_range(0..2),
                events: (0..r.random_range(0..3))
                    .map(|_| span::Event {
                        time_unix_nano: time(r),
                        name: text(r),
                        attributes: attributes(r, 0),
                        dropped_attributes_count: r.random_range(0..2),
                    })
                    .collect(),
                dropped_events_count: r.random_range(0..2),
                links: (0..r.random_range(0..3))
                    .map(|_| span::Link {
                        trace_id: id(r, 16),
                        span_id: id(r, 8),
                        trace_state: text(r),
                        attributes: attributes(r, 0),
                        dropped_attributes_count: r.random_range(0..2),
                        flags: r.random_range(0..3),
                    })
                    .collect(),
                dropped_links_count: r.random_range(0..2),
                status: r.random_bool(0.5).then(|| Status { message: text(r), code: r.random_range(0..3) }),
            }
        };
        let request = ExportTraceServiceRequest {
            resource_spans: (0..r.random_range(0..4))
                .map(|_| ResourceSpans {
                    resource: resource(r),
                    scope_spans: (0..r.random_range(0..3))
                        .map(|_| ScopeSpans {
                            scope: scope(r),
                            spans: (0..r.random_range(0..5)).map(|_| span(r)).collect(),
                            schema_url: text(r),
                        })
                        .collect(),
                    schema_url: text(r),
                })
                .collect(),
        };
        check(&request.encode_to_vec(), Request::Traces, seed);
    }
}

fn exemplars(r: &mut StdRng) -> Vec<Exemplar> {
    (0..r.random_range(0..2))
        .map(|_| Exemplar {
            filtered_attributes: attributes(r, 0),
            time_unix_nano: time(r),
            span_id: id(r, 8),
            trace_id: id(r, 16),
            value: Some(exemplar::Value::AsDouble(r.random_range(0..20).into())),
        })
        .collect()
}

fn metric(r: &mut StdRng, n: usize) -> Metric {
    // A point a metric: two with the same attributes and time would be one.
    let (start, at) = (if r.random() { time(r) } else { 0 }, time(r));
    let flags = u32::from(r.random_bool(0.1));
    let number = |r: &mut StdRng| NumberDataPoint {
        attributes: attributes(r, 0),
        start_time_unix_nano: start,
        time_unix_nano: at,
        exemplars: exemplars(r),
        flags,
        value: Some(if r.random() {
            number_data_point::Value::AsDouble(r.random())
        } else {
            number_data_point::Value::AsInt(r.random_range(-1000..1000))
        }),
    };
    let data = match r.random_range(0..5) {
        0 => metric::Data::Gauge(Gauge { data_points: vec![number(r)] }),
        1 => metric::Data::Sum(Sum {
            data_points: vec![number(r)],
            aggregation_temporality: 2,
            is_monotonic: r.random(),
        }),
        2 => {
            let counts: Vec<u64> = (0..r.random_range(1..4)).map(|_| r.random_range(0..9)).collect();
            metric::Data::Histogram(Histogram {
                data_points: vec![HistogramDataPoint {
                    attributes: attributes(r, 0),
                    start_time_unix_nano: start,
                    time_unix_nano: at,
                    count: counts.iter().sum(),
                    sum: r.random_bool(0.7).then(|| r.random()),
                    explicit_bounds: (1..counts.len()).map(|b| b as f64 * 2.5).collect(),
                    bucket_counts: counts,
                    exemplars: exemplars(r),
                    flags,
                    ..HistogramDataPoint::default()
                }],
                aggregation_temporality: 2,
            })
        }
        3 => {
            let buckets = |r: &mut StdRng| {
                let counts = (0..r.random_range(0..4)).map(|_| r.random_range(0..9)).collect();
                Some(Buckets { offset: r.random_range(-5..5), bucket_counts: counts })
            };
            metric::Data::ExponentialHistogram(ExponentialHistogram {
                data_points: vec![ExponentialHistogramDataPoint {
                    attributes: attributes(r, 0),
                    start_time_unix_nano: start,
                    time_unix_nano: at,
                    count: r.random_range(0..99),
                    sum: Some(r.random()),
                    scale: r.random_range(-4..12),
                    zero_count: r.random_range(0..3),
                    positive: buckets(r),
                    negative: buckets(r),
                    flags,
                    exemplars: exemplars(r),
                    min: r.random_bool(0.5).then(|| r.random()),
                    max: r.random_bool(0.5).then(|| r.random()),
                    zero_threshold: *[0.0, 0.5].choose(r).unwrap(),
                }],
                aggregation_temporality: 2,
            })
        }
        _ => metric::Data::Summary(Summary {
            data_points: vec![SummaryDataPoint {
                attributes: attributes(r, 0),
                start_time_unix_nano: start,
                time_unix_nano: at,
                count: r.random_range(0..99),
                sum: r.random(),
                quantile_values: [0.5, 0.99]
                    .into_iter()
                    .map(|quantile| ValueAtQuantile { quantile, value: r.random() })
                    .collect(),
                flags,
            }],
        }),
    };
    Metric {
        name: format!("{}.{n}", ["http.server.duration", "x", "a_sum", "2xx", "jobs_total"].choose(r).unwrap()),
        description: text(r),
        unit: ["s", "By", "1", "", "{req}", "By/s"].choose(r).unwrap().to_string(),
        metadata: if r.random_bool(0.2) { vec![string("m", "v")] } else { Vec::new() },
        data: Some(data),
    }
}

#[test]
fn metrics_that_came_by_otlp_arrive_as_they_were() {
    for seed in 0..CASES {
        let r = &mut StdRng::seed_from_u64(seed);
        let request = ExportMetricsServiceRequest {
            resource_metrics: (0..r.random_range(0..3))
                .map(|n| {
                    let mut of = resource(r).unwrap_or_default();
                    // Equal resources would be made one, with fewer points of target_info.
                    of.attributes.push(string("n", &n.to_string()));
                    ResourceMetrics {
                        resource: Some(of),
                        scope_metrics: (0..r.random_range(0..3))
                            .map(|s| ScopeMetrics {
                                scope: scope(r),
                                metrics: (0..r.random_range(0..4)).map(|m| metric(r, s * 10 + m)).collect(),
                                schema_url: text(r),
                            })
                            .collect(),
                        schema_url: text(r),
                    }
                })
                .collect(),
        };
        check(&request.encode_to_vec(), Request::Metrics, seed);
    }
}

#[test]
fn what_was_not_born_in_otlp_arrives_as_it_was() {
    let mut b = LogBatchBuilder::new();
    let row = |labels: &'static str, resource: Option<&'static str>| LogRow {
        ts: NOW,
        stream_labels: labels,
        resource_attrs: resource,
        body: "line",
        attrs: Some(r#"{"k":"v"}"#),
        ..LogRow::default()
    };
    b.push(&LogRow {
        service_name: Some("web"),
        ..row(r#"{"container":"web","job":"containers","service_name":"web"}"#, None)
    });
    b.push(&row("{}", None));
    // The stream was relabelled: its resource alone would make another one.
    b.push(&row(r#"{"team":"a"}"#, Some(r#"{"service.name":"api","x":1}"#)));
    let logs = vec![Data::Logs(b.finish())];
    same(&there(&logs), &logs, "logs");

    let mut m = MetricBatchBuilder::new();
    let series = |m: &mut MetricBatchBuilder, name: &str, kind: Option<&str>, origin: Option<&str>| {
        let labels = Labels::from_pairs([("__name__", name), ("job", "node"), ("_odd__", "x"), ("le", "0.5")]);
        let meta = SeriesMeta { metric_type: kind, unit: Some("s"), help: Some("helps"), origin };
        m.series(&labels, meta)
    };
    for (name, kind) in
        [("up", Some("gauge")), ("odd__name_", None), ("c", Some("counter")), ("h_bucket", Some("histogram"))]
    {
        let id = series(&mut m, name, kind, None);
        m.sample(id, NOW / 1_000_000, Some(5), 1.5);
        m.sample(id, NOW / 1_000_000 + 1, None, f64::from_bits(0x7ff0_0000_0000_0002));
        m.exemplar(id, NOW / 1_000_000, 1.0, Some(&[1; 16]), None, r#"{"a":"b"}"#);
    }
    // Relabelled: what its origin says would give other labels.
    let origin = r#"{"kind":"gauge","name":"x","resource":{"service.name":"api"},"unit":""}"#;
    let id = series(&mut m, "renamed", Some("gauge"), Some(origin));
    m.sample(id, NOW / 1_000_000, None, 2.0);
    let plain = HistogramRow {
        schema: 3,
        zero_threshold: 1e-128,
        count: 3.0,
        sum: 4.5,
        positive_offset: -2,
        positive_counts: vec![1.0, 2.0],
        ..HistogramRow::default()
    };
    let odd = [
        HistogramRow { is_float: true, count: 2.5, positive_counts: vec![0.5, 2.0], ..plain.clone() },
        HistogramRow {
            schema: -53,
            zero_threshold: 0.0,
            positive_offset: 0,
            custom_bounds: Some(vec![0.1, 0.5]),
            ..plain.clone()
        },
        HistogramRow { reset_hint: 3, zero_threshold: 0.0, min: Some(0.1), ..plain.clone() },
        plain,
    ];
    for (n, h) in odd.iter().enumerate() {
        let id = series(&mut m, &format!("native_{n}"), Some("histogram"), None);
        m.histogram(id, NOW / 1_000_000, Some(7), h);
    }
    let metrics = vec![Data::Metrics(m.finish())];
    same(&there(&metrics), &metrics, "metrics");
}

#[test]
fn a_carried_histogram_that_is_none_is_refused() {
    let mut m = MetricBatchBuilder::new();
    let id = m.series(&Labels::from_pairs([("__name__", "h")]), SeriesMeta::default());
    // Bounds that end in infinity, as nothing writes them.
    let row = HistogramRow { schema: -53, custom_bounds: Some(vec![0.1, f64::INFINITY]), ..HistogramRow::default() };
    m.histogram(id, NOW / 1_000_000, None, &row);
    let encoded = encode(&Data::Metrics(m.finish())).unwrap();
    let decoded = decode(&encoded.body, Request::Metrics, &Limits::default(), NOW, None).unwrap();
    assert_eq!((decoded.accepted, decoded.rejected.total()), (0, 1));
}
