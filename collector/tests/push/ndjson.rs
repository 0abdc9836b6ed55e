use std::time::Duration;

use collector::{PushConfig, push_router};
use pipeline::{DeliveryError, Output, codec::Limits};
use serde_json::json;
use storage::model::Table;
use tokio::task::JoinSet;

use crate::fixture::{Fixture, post};

const PATH: &str = "/ingest/ndjson?time_field=ts&message_field=msg&stream_fields=app";

#[tokio::test]
async fn lines_are_stored_when_answered_and_bad_ones_are_named() {
    let f = Fixture::new().await;
    let body = "{\"ts\":1767225600,\"app\":\"a\",\"msg\":\"one\",\"n\":1}\nbroken\n{\"app\":\"b\",\"msg\":\"two\"}\n";
    let answer = f.post(PATH, &[], body).await;
    assert_eq!(answer.status, 200);
    let report = answer.json();
    assert_eq!((&report["accepted"], &report["rejected"]), (&json!(2), &json!(1)));
    assert_eq!(report["errors"][0]["line"], 2);
    assert_eq!(f.column(Table::Logs, "body").await, ["one", "two"]);
    assert_eq!(f.column(Table::Logs, "attrs").await, [r#"{"n":1}"#, "-"]);
    assert_eq!(f.column(Table::Logs, "service_name").await, ["a", "b"]);
    let answer = f.post(PATH, &[], "x\ny").await;
    assert_eq!((answer.status.as_u16(), answer.json()["rejected"].clone()), (400, json!(2)));
    let mut text = String::new();
    f.config.metrics.render(&mut text);
    assert!(text.contains("collector_push_records_accepted_total{protocol=\"ndjson\"} 2\n"), "{text}");
    assert!(text.contains("{protocol=\"ndjson\",reason=\"malformed\"} 3\n"), "{text}");
}

#[tokio::test]
async fn the_header_names_the_tenant_and_a_bad_name_is_refused() {
    let f = Fixture::new().await;
    assert_eq!(f.post(PATH, &[("X-Scope-OrgID", "team")], "{\"msg\":\"x\"}").await.status, 200);
    assert_eq!(f.rows_of("team", Table::Logs).await.len(), 1);
    assert!(f.rows(Table::Logs).await.is_empty());
    let answer = f.post(PATH, &[("X-Scope-OrgID", "../x")], "{\"msg\":\"x\"}").await;
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"].as_str().unwrap().contains("X-Scope-OrgID"));
}

#[tokio::test]
async fn unknown_encodings_bombs_and_large_bodies_get_their_codes() {
    let limits = Limits { body_bytes_max: 2000, inflated_bytes_max: 5000, ..Limits::default() };
    let f = Fixture::with(PushConfig { limits, ..PushConfig::default() }).await;
    assert_eq!(f.post(PATH, &[("content-encoding", "br")], "x").await.status, 415);
    assert_eq!(f.post(PATH, &[], "x".repeat(2001)).await.status, 413);
    // 8 KiB of one byte, as one snappy literal and copies: far over the cap once inflated.
    let mut bomb = vec![0x80, 0x40, 0x00, b' '];
    for _ in 0..128 {
        bomb.extend_from_slice(&[0xfe, 1, 0]);
    }
    assert_eq!(f.post(PATH, &[("content-encoding", "snappy")], bomb).await.status, 413);
    assert_eq!(f.post(PATH, &[("content-encoding", "gzip")], "not gzip").await.status, 400);
}

#[tokio::test]
async fn a_request_larger_than_a_batch_is_split_and_stored_whole() {
    let limits = Limits { batch_rows_max: 100, ..Limits::default() };
    let f = Fixture::with(PushConfig { limits, ..PushConfig::default() }).await;
    let body: String = (0..5000).map(|i| format!("{{\"app\":\"a\",\"msg\":\"line {i}\"}}\n")).collect();
    let answer = f.post(PATH, &[], body).await;
    assert_eq!(answer.json()["accepted"], 5000);
    let mut want: Vec<String> = (0..5000).map(|i| format!("line {i}")).collect();
    let mut got = f.column(Table::Logs, "body").await;
    want.sort();
    got.sort();
    assert!(got == want, "{} lines stored", got.len());
}

#[tokio::test]
async fn a_store_that_cannot_take_it_gives_503_with_retry_after() {
    let (out, mut queue) = Output::bounded(4, 1 << 20);
    let mut sink = JoinSet::new();
    sink.spawn(async move {
        while let Some(envelope) = queue.recv().await {
            let retry_after = Duration::from_millis(1500);
            let _ = envelope.ack.send(Err(DeliveryError::Unavailable { reason: "disk full".into(), retry_after }));
        }
    });
    let router = push_router(PushConfig::default(), out);
    let answer = post(&router, PATH, &[], "{\"msg\":\"x\"}").await;
    assert_eq!((answer.status.as_u16(), answer.headers["retry-after"].to_str().unwrap()), (503, "2"));
}
