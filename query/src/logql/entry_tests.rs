use storage::model::{LogBatchBuilder, LogRow};

use super::*;

fn labels_of(row: &LogRow<'_>, need: &Need) -> Vec<(String, String, Kind)> {
    let mut b = LogBatchBuilder::new();
    b.push(row);
    let batch = b.finish();
    let columns = columns(need, &[]);
    let mut entries = Entries::new(&batch, need, &columns).unwrap();
    entries.labels(0).into_iter().map(|l| (l.name.to_string(), l.value.to_string(), l.kind)).collect()
}

fn texts(labels: &[(String, String, Kind)]) -> Vec<String> {
    labels.iter().map(|(n, v, _)| format!("{n}={v}")).collect()
}

#[test]
fn a_plain_row_shows_its_attributes_and_ids_once() {
    let row = LogRow {
        stream_labels: r#"{"app":"x"}"#,
        severity_text: Some("WARN"),
        severity_number: Some(13),
        trace_id: Some(&[0xab; 16]),
        body: "hello",
        attrs: Some(r#"{"app":"hidden","level":"WARN"}"#),
        ..LogRow::default()
    };
    let hex = "ab".repeat(16);
    assert_eq!(
        texts(&labels_of(&row, &Need::All)),
        ["app=x", "detected_level=warn", "level=WARN", &format!("trace_id={hex}")]
    );
    let with_own = LogRow { attrs: Some(r#"{"trace_id":"own"}"#), ..row };
    assert_eq!(texts(&labels_of(&with_own, &Need::names(["trace_id".to_owned()]))), ["trace_id=own"]);
}

#[test]
fn an_otlp_row_shows_what_loki_keeps_of_it() {
    let row = LogRow {
        stream_labels: r#"{"service_name":"s"}"#,
        severity_text: Some("Oops"),
        severity_number: Some(17),
        observed_ts: Some(5),
        flags: Some(1),
        body: "x",
        scope_name: Some("lib"),
        scope_meta: Some(r#"{"attributes":{"k":1},"version":"2"}"#),
        resource_attrs: Some(r#"{"host.name":"h","service.name":"s"}"#),
        attrs: Some(r#"{"http":{"status":200}}"#),
        ..LogRow::default()
    };
    assert_eq!(
        texts(&labels_of(&row, &Need::All)),
        [
            "detected_level=Oops",
            "flags=1",
            "host_name=h",
            "http_status=200",
            "k=1",
            "observed_timestamp=5",
            "scope_name=lib",
            "scope_version=2",
            "service_name=s",
            "severity_number=17",
            "severity_text=Oops"
        ]
    );
    assert_eq!(texts(&labels_of(&row, &Need::names(["host_name".to_owned()]))), ["host_name=h"]);
}

#[test]
fn labels_that_every_stream_has_need_no_other_column() {
    let streams = [Arc::new(Labels::from_pairs([("app", "x")]))];
    assert_eq!(columns(&Need::names(["app".to_owned()]), &streams), ["stream_labels"]);
    assert!(columns(&Need::names([]), &streams).is_empty());
    assert!(columns(&Need::names(["user".to_owned()]), &streams).contains(&"attrs"));
}
