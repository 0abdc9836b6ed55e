//! Loki push, and the answers a real Loki gave, as far as they are recorded.

use serde_json::Value;
use storage::model::Table;

use crate::fixture::Fixture;

const PATH: &str = "/loki/api/v1/push";
const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn recorded_refusals_and_oddities_get_lokis_status() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/conformance/loki/cases/push_errors.json");
    let Ok(text) = std::fs::read_to_string(path) else {
        assert!(std::env::var("SIGHTLINE_REQUIRE_ALL").is_err(), "recorded cases are missing: {path}");
        eprintln!("SKIPPED: recorded Loki cases are missing at {path}");
        return;
    };
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut failed = Vec::new();
    for case in &cases {
        let f = Fixture::new().await;
        let request = &case["request"];
        let headers: Vec<(&str, &str)> = request["headers"]
            .as_object()
            .map(|h| h.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap())).collect())
            .unwrap_or_default();
        let body = request["body"].as_str().unwrap().to_owned();
        let answer = f.post(request["path"].as_str().unwrap(), &headers, body).await;
        let want = case["response"]["status"].as_u64().unwrap();
        // Texts of syntax errors name tokens of Loki's own parsers; the others are ours too.
        let exact = case["strict"] == true || want == 422 || case["id"] == "push_errors-014";
        let same_text = answer.text().trim() == case["response"]["body"].as_str().unwrap().trim();
        if u64::from(answer.status.as_u16()) != want || exact && !same_text {
            failed.push(format!("{}: got {} {:?}", case["id"], answer.status, answer.text()));
        }
    }
    assert!(!cases.is_empty() && failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), cases.len());
}

#[tokio::test]
async fn json_entries_are_stored_with_labels_and_metadata() {
    let f = Fixture::new().await;
    let body = r#"{"streams":[{"stream":{"app":"api","env":"prod"},"values":[
        ["1700000000000000000","one"],
        ["1700000000000000001","two",{"trace_id":"0af7651916cd43dd8448eb211c80319c","user.id":"7"}]]}]}"#;
    let answer = f.post(PATH, &[JSON], body).await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (204, ""));
    assert_eq!(f.column(Table::Logs, "body").await, ["one", "two"]);
    assert_eq!(
        f.column(Table::Logs, "stream_labels").await,
        [r#"{"app":"api","env":"prod","service_name":"api"}"#; 2]
    );
    assert_eq!(f.column(Table::Logs, "attrs").await, ["-", r#"{"user_id":"7"}"#]);
    assert_eq!(f.column(Table::Logs, "trace_id").await, ["-", "0af7651916cd43dd8448eb211c80319c"]);
    assert_eq!(f.column(Table::Logs, "ts").await, ["1700000000000000000", "1700000000000000001"]);
}

#[tokio::test]
async fn good_entries_of_a_refused_push_are_stored() {
    let f = Fixture::new().await;
    let body = r#"{"streams":[{"stream":{"a":"b"},"values":[["1700000000000000000","good"],["9000000000000000000","far"]]}]}"#;
    let answer = f.post("/api/prom/push", &[JSON], body).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("has timestamp too new") && answer.text().ends_with('\n'), "{}", answer.text());
    assert_eq!(f.column(Table::Logs, "body").await, ["good"]);
}

#[tokio::test]
async fn encodings_are_lokis() {
    let f = Fixture::new().await;
    let answer = f.post(PATH, &[JSON, ("content-encoding", "br")], "{}").await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (400, "Content-Encoding \"br\" not supported\n"));
    // A snappy block of one literal: PushRequest{ streams { labels {a="b"}, entries { line "x" } } }.
    let message = b"\x0a\x0f\x0a\x07{a=\"b\"}\x12\x04\x12\x02xx";
    assert_eq!(message.len(), 17);
    let mut snappy = vec![message.len() as u8, (message.len() as u8 - 1) << 2];
    snappy.extend_from_slice(message);
    let answer = f.post(PATH, &[("content-type", "application/x-protobuf")], snappy).await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (204, ""));
    assert_eq!(f.column(Table::Logs, "body").await, ["xx"]);
}
