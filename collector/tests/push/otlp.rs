use arrow::{
    array::{AsArray as _, RecordBatch},
    datatypes::{Float64Type, Int64Type},
};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse},
        metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse},
        trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    },
    common::v1::{AnyValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    metrics::v1::{
        Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, exemplar,
        exponential_histogram_data_point::Buckets, metric, number_data_point, summary_data_point,
    },
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span},
};
use prost::Message as _;
use serde_json::json;
use storage::model::{Labels, Table};

use crate::fixture::Fixture;

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

pub fn value(v: Value) -> Option<AnyValue> {
    Some(AnyValue { value: Some(v) })
}

pub fn kv(key: &str, v: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value(v), ..KeyValue::default() }
}

pub fn text(s: &str) -> Value {
    Value::StringValue(s.to_owned())
}

pub fn logs_request() -> ExportLogsServiceRequest {
    let full = LogRecord {
        time_unix_nano: 1_767_225_600_000_000_001,
        observed_time_unix_nano: 1_767_225_600_000_000_002,
        severity_number: 17,
        severity_text: "ERROR".into(),
        body: value(text("it \"broke\"")),
        attributes: vec![
            kv("n", Value::IntValue(-5)),
            kv("d", Value::DoubleValue(1.0)),
            kv("b", Value::BoolValue(true)),
            kv("n", Value::IntValue(7)),
            kv("raw", Value::BytesValue(vec![1, 2])),
        ],
        dropped_attributes_count: 3,
        flags: 1,
        trace_id: (1..=16).collect(),
        span_id: (1..=8).collect(),
        event_name: "device.crash".into(),
    };
    let map = KeyValueList { values: vec![kv("b", text("x")), kv("a", Value::IntValue(1))] };
    let structured = LogRecord { body: value(Value::KvlistValue(map)), trace_id: vec![1, 2], ..LogRecord::default() };
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(Resource {
                attributes: vec![
                    kv("service.name", text("shop")),
                    kv("k8s.pod.name", text("p-1")),
                    kv("host.cpus", Value::IntValue(4)),
                ],
                dropped_attributes_count: 1,
                ..Resource::default()
            }),
            scope_logs: vec![ScopeLogs {
                scope: Some(InstrumentationScope {
                    name: "lib".into(),
                    version: "1.2".into(),
                    attributes: vec![kv("s", text("t"))],
                    dropped_attributes_count: 0,
                }),
                log_records: vec![full, structured],
                schema_url: "https://schema".into(),
            }],
            schema_url: "https://resource".into(),
        }],
    }
}

async fn assert_logs_are_whole(f: &Fixture) {
    for (column, want) in [
        ("body", [r#"it "broke""#, r#"{"a":1,"b":"x"}"#]),
        ("body_type", ["-", "json"]),
        ("attrs", [r#"{"b":true,"d":1.0,"n":7,"raw":{"$bytes":"AQI="}}"#, "-"]),
        ("stream_labels", [r#"{"k8s_pod_name":"p-1","service_name":"shop"}"#; 2]),
        ("service_name", ["shop"; 2]),
        ("resource_attrs", [r#"{"host.cpus":4,"k8s.pod.name":"p-1","service.name":"shop"}"#; 2]),
        ("resource_meta", [r#"{"dropped_attributes_count":1,"schema_url":"https://resource"}"#; 2]),
        ("scope_name", ["lib"; 2]),
        ("scope_meta", [r#"{"attributes":{"s":"t"},"schema_url":"https://schema","version":"1.2"}"#; 2]),
        ("severity_number", ["17", "-"]),
        ("severity_text", ["ERROR", "-"]),
        ("event_name", ["device.crash", "-"]),
        ("flags", ["1", "-"]),
        ("trace_id", ["0102030405060708090a0b0c0d0e0f10", "-"]),
        ("span_id", ["0102030405060708", "-"]),
        ("observed_ts", ["1767225600000000002", "-"]),
        ("dropped_attributes_count", ["3", "-"]),
    ] {
        assert_eq!(f.column(Table::Logs, column).await, want, "{column}");
    }
    assert_eq!(f.column(Table::Logs, "ts").await[0], "1767225600000000001");
}

#[tokio::test]
async fn a_protobuf_log_record_keeps_every_field() {
    let f = Fixture::new().await;
    let answer = f.post("/v1/logs", &[PROTOBUF], logs_request().encode_to_vec()).await;
    assert_eq!((answer.status.as_u16(), answer.headers["content-type"].to_str().unwrap()), (200, PROTOBUF.1));
    assert_eq!(ExportLogsServiceResponse::decode(&answer.body[..]).unwrap().partial_success, None);
    assert_logs_are_whole(&f).await;
}

#[tokio::test]
async fn the_same_record_as_json_is_stored_the_same() {
    let f = Fixture::new().await;
    let body = json!({"resourceLogs": [{
        "resource": {"attributes": [
            {"key": "service.name", "value": {"stringValue": "shop"}},
            {"key": "k8s.pod.name", "value": {"stringValue": "p-1"}},
            {"key": "host.cpus", "value": {"intValue": "4"}}], "droppedAttributesCount": 1, "unknown": [{}]},
        "scopeLogs": [{
            "scope": {"name": "lib", "version": "1.2", "attributes": [{"key": "s", "value": {"stringValue": "t"}}]},
            "logRecords": [
                {"timeUnixNano": "1767225600000000001", "observed_time_unix_nano": 1767225600000000002i64,
                 "severityNumber": "SEVERITY_NUMBER_ERROR", "severityText": "ERROR", "body": {"stringValue": "it \"broke\""},
                 "attributes": [
                    {"key": "n", "value": {"intValue": -5}}, {"key": "d", "value": {"doubleValue": 1}},
                    {"key": "b", "value": {"boolValue": true}}, {"key": "n", "value": {"intValue": "7"}},
                    {"key": "raw", "value": {"bytesValue": "AQI="}}],
                 "droppedAttributesCount": 3, "flags": 1, "traceId": "0102030405060708090A0B0C0D0E0F10",
                 "spanId": "0102030405060708", "eventName": "device.crash"},
                {"body": {"kvlistValue": {"values": [
                    {"key": "b", "value": {"stringValue": "x"}}, {"key": "a", "value": {"intValue": "1"}}]}},
                 "traceId": "nonsense", "spanId": null}],
            "schemaUrl": "https://schema"}],
        "schemaUrl": "https://resource"}]});
    let answer = f.post("/otlp/v1/logs", &[JSON], body.to_string()).await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "{}"));
    assert_logs_are_whole(&f).await;
}

#[tokio::test]
async fn records_ahead_of_the_clock_are_refused_one_by_one() {
    let f = Fixture::new().await;
    let mut request = logs_request();
    request.resource_logs[0].scope_logs[0].log_records[0].time_unix_nano = u64::MAX;
    let answer = f.post("/v1/logs", &[PROTOBUF], request.encode_to_vec()).await;
    let partial = ExportLogsServiceResponse::decode(&answer.body[..]).unwrap().partial_success.unwrap();
    assert_eq!((answer.status.as_u16(), partial.rejected_log_records), (200, 1));
    assert!(partial.error_message.contains("timestamp"), "{}", partial.error_message);
    assert_eq!(f.column(Table::Logs, "body").await, [r#"{"a":1,"b":"x"}"#]);
}

#[tokio::test]
async fn what_cannot_be_read_gets_a_status_in_the_requests_encoding() {
    let f = Fixture::new().await;
    let answer = f.post("/v1/logs", &[PROTOBUF], "\u{1}\u{2}\u{3}").await;
    assert_eq!((answer.status.as_u16(), &answer.body[..2]), (400, &[8u8, 3][..]));
    let answer = f.post("/v1/logs", &[JSON], "{\"resourceLogs\":[{\"resource\":5}]}").await;
    assert_eq!((answer.status.as_u16(), answer.json()["code"].clone()), (400, json!(3)));
    assert_eq!(f.post("/v1/logs", &[("content-type", "text/plain")], "x").await.status, 415);
    assert_eq!(f.post("/v1/logs", &[PROTOBUF, ("content-encoding", "br")], "x").await.status, 415);
    assert_eq!(f.post("/v1/logs", &[PROTOBUF], "").await.status, 200);
}

pub fn traces_request() -> ExportTraceServiceRequest {
    let good = Span {
        trace_id: (1..=16).collect(),
        span_id: (1..=8).collect(),
        parent_span_id: vec![9; 8],
        trace_state: "a=b".into(),
        name: "GET /".into(),
        kind: 2,
        start_time_unix_nano: 1_767_225_600_000_000_001,
        end_time_unix_nano: 1_767_225_600_000_000_501,
        attributes: vec![kv("http.status", Value::IntValue(500))],
        dropped_attributes_count: 1,
        events: vec![span::Event {
            time_unix_nano: 1_767_225_600_000_000_100,
            name: "retry".into(),
            attributes: vec![kv("n", Value::IntValue(2))],
            dropped_attributes_count: 4,
        }],
        dropped_events_count: 2,
        links: vec![span::Link {
            trace_id: vec![7; 16],
            span_id: vec![8; 8],
            trace_state: "c=d".into(),
            attributes: vec![],
            dropped_attributes_count: 0,
            flags: 256,
        }],
        dropped_links_count: 3,
        status: Some(Status { message: "oops".into(), code: 2 }),
        flags: 257,
    };
    let backwards =
        Span { span_id: vec![2; 8], end_time_unix_nano: 1, events: vec![], links: vec![], ..good.clone() };
    let bad = Span { trace_id: vec![0; 16], ..good.clone() };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: vec![kv("service.name", text("shop"))], ..Resource::default() }),
            scope_spans: vec![ScopeSpans {
                scope: None,
                spans: vec![good, bad, backwards],
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    }
}

#[tokio::test]
async fn spans_keep_every_field_and_a_bad_id_refuses_its_span_only() {
    let f = Fixture::new().await;
    let answer = f.post("/v1/traces", &[PROTOBUF], traces_request().encode_to_vec()).await;
    let partial = ExportTraceServiceResponse::decode(&answer.body[..]).unwrap().partial_success.unwrap();
    assert_eq!((answer.status.as_u16(), partial.rejected_spans), (200, 1));
    assert!(partial.error_message.contains("trace id"), "{}", partial.error_message);
    let events = r#"[{"time_unix_nano":1767225600000000100,"name":"retry","attributes":{"n":2},"dropped_attributes_count":4}]"#;
    let links = format!(
        r#"[{{"trace_id":"{}","span_id":"{}","trace_state":"c=d","attributes":{{}},"dropped_attributes_count":0,"flags":256}}]"#,
        "07".repeat(16),
        "08".repeat(8)
    );
    for (column, want) in [
        ("trace_id", ["0102030405060708090a0b0c0d0e0f10"; 2]),
        ("span_id", ["0102030405060708", "0202020202020202"]),
        ("parent_span_id", ["0909090909090909"; 2]),
        ("ts", ["1767225600000000001"; 2]),
        ("duration_ns", ["500", "0"]),
        ("name", ["GET /"; 2]),
        ("service_name", ["shop"; 2]),
        ("kind", ["2"; 2]),
        ("status_code", ["2"; 2]),
        ("status_message", ["oops"; 2]),
        ("trace_state", ["a=b"; 2]),
        ("flags", ["257"; 2]),
        ("attrs", [r#"{"http.status":500}"#; 2]),
        ("resource_attrs", [r#"{"service.name":"shop"}"#; 2]),
        ("events", [events, "-"]),
        ("links", [&links, "-"]),
        ("dropped_attributes_count", ["1"; 2]),
        ("dropped_events_count", ["2"; 2]),
        ("dropped_links_count", ["3"; 2]),
    ] {
        assert_eq!(f.column(Table::Spans, column).await, want, "{column}");
    }
}

fn metric(name: &str, unit: &str, data: metric::Data) -> Metric {
    Metric { name: name.into(), unit: unit.into(), description: "help".into(), metadata: vec![], data: Some(data) }
}

const MS: u64 = 1_767_225_600_000_000_000;

pub fn metrics_request() -> ExportMetricsServiceRequest {
    let number = |v: f64| NumberDataPoint {
        attributes: vec![kv("http.method", text("GET"))],
        time_unix_nano: MS,
        start_time_unix_nano: MS - 1_000_000_000,
        value: Some(number_data_point::Value::AsDouble(v)),
        ..NumberDataPoint::default()
    };
    let exemplar = Exemplar {
        filtered_attributes: vec![kv("user", text("7"))],
        time_unix_nano: MS,
        value: Some(exemplar::Value::AsDouble(0.7)),
        span_id: vec![2; 8],
        trace_id: vec![1; 16],
    };
    let sum = |temporality, points| {
        metric::Data::Sum(Sum { data_points: points, aggregation_temporality: temporality, is_monotonic: true })
    };
    let histogram = HistogramDataPoint {
        time_unix_nano: MS,
        count: 6,
        sum: Some(4.5),
        bucket_counts: vec![1, 2, 3],
        explicit_bounds: vec![0.5, 1.0],
        exemplars: vec![exemplar],
        ..HistogramDataPoint::default()
    };
    let exponential = ExponentialHistogramDataPoint {
        time_unix_nano: MS,
        count: 7,
        sum: Some(9.0),
        scale: 9,
        zero_count: 1,
        positive: Some(Buckets { offset: 1, bucket_counts: vec![1, 2, 3] }),
        min: Some(0.1),
        max: Some(2.0),
        ..ExponentialHistogramDataPoint::default()
    };
    let summary = SummaryDataPoint {
        time_unix_nano: MS,
        count: 4,
        sum: 8.0,
        quantile_values: vec![summary_data_point::ValueAtQuantile { quantile: 0.5, value: 1.5 }],
        ..SummaryDataPoint::default()
    };
    let stale = NumberDataPoint { flags: 1, value: None, ..number(0.0) };
    let gauge = metric::Data::Gauge(Gauge { data_points: vec![stale] });
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource {
                attributes: vec![
                    kv("service.name", text("shop")),
                    kv("service.namespace", text("eu")),
                    kv("service.instance.id", text("i1")),
                    kv("os.type", text("linux")),
                ],
                ..Resource::default()
            }),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(InstrumentationScope { name: "lib".into(), ..InstrumentationScope::default() }),
                metrics: vec![
                    metric("system.network.io", "By", sum(2, vec![number(5.0)])),
                    metric("unspecified", "", sum(0, vec![number(1.0), number(2.0)])),
                    metric(
                        "request.size",
                        "By",
                        metric::Data::Histogram(Histogram {
                            data_points: vec![histogram],
                            aggregation_temporality: 2,
                        }),
                    ),
                    metric(
                        "latency",
                        "s",
                        metric::Data::ExponentialHistogram(ExponentialHistogram {
                            data_points: vec![exponential],
                            aggregation_temporality: 2,
                        }),
                    ),
                    metric("rpc", "", metric::Data::Summary(Summary { data_points: vec![summary] })),
                    metric("cpu.utilization", "1", gauge),
                ],
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    }
}

#[tokio::test]
async fn metrics_become_prometheus_series_and_lose_nothing() {
    let f = Fixture::new().await;
    let answer = f.post("/api/v1/otlp/v1/metrics", &[PROTOBUF], metrics_request().encode_to_vec()).await;
    let partial = ExportMetricsServiceResponse::decode(&answer.body[..]).unwrap().partial_success.unwrap();
    assert_eq!((answer.status.as_u16(), partial.rejected_data_points), (200, 2));
    assert!(partial.error_message.contains("invalid temporality"), "{}", partial.error_message);
    let names = f.column(Table::MetricSeries, "metric").await;
    let labels = f.column(Table::MetricSeries, "labels").await;
    let sorted = |mut v: Vec<String>| {
        v.sort();
        v
    };
    assert_eq!(
        sorted(names.clone()),
        [
            "cpu_utilization_ratio",
            "latency_seconds",
            "request_size_bytes_bucket",
            "request_size_bytes_bucket",
            "request_size_bytes_bucket",
            "request_size_bytes_count",
            "request_size_bytes_sum",
            "rpc",
            "rpc_count",
            "rpc_sum",
            "system_network_io_bytes_total",
            "target_info",
        ]
    );
    // The store gives rows in an order of its own.
    let at = |name: &str| names.iter().position(|n| n == name).unwrap();
    let counter = at("system_network_io_bytes_total");
    assert_eq!(
        labels[counter],
        r#"{"__name__":"system_network_io_bytes_total","http_method":"GET","instance":"i1","job":"eu/shop","service_instance_id":"i1","service_name":"shop","service_namespace":"eu"}"#
    );
    let bounds = labels.iter().filter_map(|l| Some(l.split(r#""le":""#).nth(1)?.split('"').next()?.to_owned()));
    assert_eq!(sorted(bounds.collect()), ["+Inf", "0.5", "1"]);
    let target = r#"{"__name__":"target_info","instance":"i1","job":"eu/shop","os_type":"linux"}"#;
    assert_eq!(labels[at("target_info")], target);
    let values = sorted(f.column(Table::MetricSamples, "value").await);
    assert_eq!(values, ["1", "1", "1.5", "3", "4", "4.5", "5", "6", "6", "8", "NaN"]);
    let starts = f.column(Table::MetricSamples, "start_ms").await;
    // Of the counter and of the gauge.
    assert_eq!(starts.iter().filter(|s| *s == "1767225599000").count(), 2);
    // Scale 9 merges to 8: indexes 1, 2, 3 become 0, 1, 1, one higher in Prometheus.
    for (column, want) in [
        ("schema", "8"),
        ("positive_offset", "1"),
        ("positive_counts", "[1,5]"),
        ("negative_counts", "[]"),
        ("count", "7"),
        ("zero_count", "1"),
        ("min", "0.1"),
        ("max", "2"),
    ] {
        assert_eq!(f.column(Table::MetricHistograms, column).await, [want], "{column}");
    }
    assert_eq!(f.column(Table::MetricExemplars, "labels").await, [r#"{"user":"7"}"#]);
    assert_eq!(f.column(Table::MetricExemplars, "trace_id").await, ["01".repeat(16)]);
    let origin: serde_json::Value =
        serde_json::from_str(&f.column(Table::MetricSeries, "origin").await[counter]).unwrap();
    assert_eq!(
        origin,
        json!({"attributes": {"http.method": "GET"}, "kind": "monotonic_sum", "name": "system.network.io",
            "resource": {"os.type": "linux", "service.instance.id": "i1", "service.name": "shop", "service.namespace": "eu"},
            "scope_name": "lib", "unit": "By"})
    );
    assert_eq!(f.column(Table::MetricSeries, "type").await[counter], "counter");
    assert_eq!(f.column(Table::MetricSeries, "unit").await[counter], "bytes");
}

#[tokio::test]
async fn json_metrics_and_traces_are_read() {
    let f = Fixture::new().await;
    let body = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"g","gauge":{"dataPoints":[
        {"asInt":"-5","timeUnixNano":"1767225600000000000"},{"asDouble":"NaN","timeUnixNano":1767225601000000000}]}}]}]}]}"#;
    assert_eq!(f.post("/otlp/v1/metrics", &[JSON], body).await.text(), "{}");
    assert_eq!(f.column(Table::MetricSamples, "value").await, ["-5", "NaN"]);
    let body = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B174",
        "name":"n","kind":"SPAN_KIND_CLIENT","startTimeUnixNano":"1544712660000000000","endTimeUnixNano":"1544712661000000000"},
        {"traceId":"xyz"}]}]}]}"#;
    let answer = f.post("/otlp/v1/traces", &[JSON], body).await.json();
    assert_eq!(answer["partialSuccess"]["rejectedSpans"], "1");
    assert_eq!(f.column(Table::Spans, "kind").await, ["3"]);
}

/// One delta sum and one delta histogram over (start, end] seconds.
fn delta_request(start: u64, end: u64, value: i64) -> Vec<u8> {
    const S: u64 = 1_000_000_000;
    let (start, end) = (MS + start * S, MS + end * S);
    let number = NumberDataPoint {
        start_time_unix_nano: start,
        time_unix_nano: end,
        value: Some(number_data_point::Value::AsInt(value)),
        ..NumberDataPoint::default()
    };
    let histogram = HistogramDataPoint {
        start_time_unix_nano: start,
        time_unix_nano: end,
        count: 3,
        bucket_counts: vec![1, 2],
        explicit_bounds: vec![0.5],
        ..HistogramDataPoint::default()
    };
    let metric = |name: &str, data| Metric { name: name.into(), data: Some(data), ..Metric::default() };
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource {
                attributes: vec![kv("service.name", text("shop"))],
                entity_refs: vec![EntityRef {
                    r#type: "service".into(),
                    id_keys: vec!["service.name".into()],
                    ..EntityRef::default()
                }],
                ..Resource::default()
            }),
            scope_metrics: vec![ScopeMetrics {
                metrics: vec![
                    metric(
                        "orders",
                        metric::Data::Sum(Sum {
                            data_points: vec![number],
                            aggregation_temporality: 1,
                            is_monotonic: true,
                        }),
                    ),
                    metric(
                        "took",
                        metric::Data::Histogram(Histogram {
                            data_points: vec![histogram],
                            aggregation_temporality: 1,
                        }),
                    ),
                ],
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    }
    .encode_to_vec()
}

#[tokio::test]
async fn delta_points_are_stored_as_running_totals_of_their_stream() {
    let f = Fixture::new().await;
    // The second comes twice, as after a lost answer; the last after a gap.
    for (start, end, value) in [(0, 10, 5), (10, 20, 7), (10, 20, 7), (60, 70, 2)] {
        let answer = f.post("/v1/metrics", &[PROTOBUF], delta_request(start, end, value)).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, &b""[..]));
    }
    // Another tenant has its own totals.
    let headers = [PROTOBUF, ("x-scope-orgid", "other")];
    assert_eq!(f.post("/v1/metrics", &headers, delta_request(10, 20, 7)).await.status.as_u16(), 200);
    let samples = |batches: Vec<RecordBatch>, id: i64| {
        let mut out: Vec<(i64, f64)> = Vec::new();
        for b in batches {
            let ids = b.column_by_name("series_id").unwrap().as_primitive::<Int64Type>().clone();
            let times = b.column_by_name("ts_ms").unwrap().as_primitive::<Int64Type>().clone();
            let values = b.column_by_name("value").unwrap().as_primitive::<Float64Type>().clone();
            out.extend((0..b.num_rows()).filter(|i| ids.value(*i) == id).map(|i| (times.value(i), values.value(i))));
        }
        out.sort_by(|a, b| a.partial_cmp(b).unwrap());
        out.dedup();
        out
    };
    let series = |labels: &[(&str, &str)]| {
        let base = [("job", "shop"), ("service_name", "shop")];
        Labels::from_pairs(base.iter().chain(labels).copied()).id()
    };
    let base = (MS / 1_000_000) as i64;
    let orders = series(&[("__name__", "orders_total")]);
    assert_eq!(
        samples(f.rows(Table::MetricSamples).await, orders),
        [(1, 0.0), (10_000, 5.0), (20_000, 12.0), (60_001, 0.0), (70_000, 2.0)].map(|(ms, v)| (base + ms, v))
    );
    assert_eq!(
        samples(f.rows_of("other", Table::MetricSamples).await, orders),
        [(10_001, 0.0), (20_000, 7.0)].map(|(ms, v)| (base + ms, v))
    );
    let bucket = series(&[("__name__", "took_bucket"), ("le", "+Inf")]);
    let totals: Vec<f64> = samples(f.rows(Table::MetricSamples).await, bucket).into_iter().map(|s| s.1).collect();
    assert_eq!(totals, [0.0, 3.0, 6.0, 0.0, 3.0]);
    let origin = f.column(Table::MetricSeries, "origin").await.join("\n");
    assert!(origin.contains(r#""temporality":"delta""#) && origin.contains(r#""entity_refs":[{"#), "{origin}");
}
