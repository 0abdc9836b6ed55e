use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    resource::v1::Resource,
};
use prost::Message as _;
use serde_json::json;
use storage::model::Table;

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

fn logs_request() -> ExportLogsServiceRequest {
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
