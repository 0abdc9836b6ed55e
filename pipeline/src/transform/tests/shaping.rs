//! Those that change rows: `relabel`, `normalize`, `limit_labels`.

use std::time::Duration;

use storage::model::Timestamp;

use super::*;
use crate::metrics::{Change, ComponentSnapshot, Fault};

fn run(t: &dyn Transform, data: Data) -> (Vec<serde_json::Value>, ComponentSnapshot) {
    let registry = Registry::default();
    let counters = registry.add("t", ComponentKind::Transform);
    let data = t.apply(data, &counters).unwrap();
    let text = write_batch(&Batch::new(TenantId::default(), data)).unwrap();
    (text.lines().map(|l| serde_json::from_str(l).unwrap()).collect(), registry.snapshot().remove(0))
}

#[test]
fn relabel_works_on_what_identifies_each_signal_and_counts_what_it_drops() {
    let t = build(
        r#"{"type":"relabel","inputs":["s"],"rules":[
            {"source_labels":["app"],"regex":"old","action":"drop"},
            {"source_labels":["pod"],"regex":"b","action":"drop"},
            {"source_labels":["app"],"regex":"(.+)","target_label":"service_name","replacement":"svc-$1"}]}"#,
    );
    assert_eq!((t.signals(), t.passes_others()), (Signals::ALL, false));
    let mut b = LogBatchBuilder::new();
    for app in ["web", "old", "web"] {
        let labels = Labels::from_pairs([("app", app)]).to_json();
        b.push(&LogRow { stream_labels: &labels, service_name: Some("x"), ..LogRow::default() });
    }
    let (rows, counts) = run(&*t, Data::Logs(b.finish()));
    assert_eq!((rows.len(), counts.dropped(DropReason::Relabeled)), (2, 1));
    assert_eq!(rows[0]["stream_labels"], serde_json::json!({"app":"web","service_name":"svc-web"}));
    assert_eq!(rows[1]["service_name"], "svc-web", "the column follows the label");
    let (rows, counts) = run(&*t, metrics());
    assert_eq!((rows.len(), counts.dropped(DropReason::Relabeled)), (4, 1));
    let mut b = SpanBatchBuilder::new();
    let span = SpanRow { trace_id: &[1; 16], span_id: &[2; 8], name: "n", ..SpanRow::default() };
    b.push(&SpanRow { resource_attrs: Some(r#"{"app":"web","n":[1],"t":""}"#), ..span });
    b.push(&SpanRow { resource_attrs: Some(r#"{"app":"old"}"#), ..span });
    let (rows, _) = run(&*t, Data::Spans(b.finish()));
    assert_eq!(rows.len(), 1);
    assert_eq!(
        rows[0]["resource_attrs"],
        serde_json::json!({"app":"web","n":[1],"service_name":"svc-web","t":""}),
        "what no rule touched keeps its type"
    );
}

#[test]
fn relabel_of_attributes_knows_no_metrics_and_a_set_left_empty_goes() {
    let t =
        build(r#"{"type":"relabel","inputs":["s"],"target":"attrs","rules":[{"regex":"x","action":"labeldrop"}]}"#);
    assert_eq!(t.signals(), Signals::LOGS.or(Signals::TRACES));
    let (rows, _) = run(&*t, logs());
    assert_eq!(rows[0]["attrs"], serde_json::json!({"y":{"z":"q"}}));
    let t = build(r#"{"type":"relabel","inputs":["s"],"rules":[{"regex":".*","action":"labeldrop"}]}"#);
    let (rows, counts) = run(&*t, metrics());
    assert_eq!((rows.len(), counts.dropped(DropReason::Relabeled)), (0, 5));
    let e = errors(r#"{"type":"relabel","inputs":["s"],"target":"attrs","signals":["metrics"],"rules":[{}]}"#);
    assert!(e[0].starts_with("transforms.t.signals[0]: metrics cannot be treated"), "{e:?}");
    assert!(e[1].starts_with("transforms.t.rules[0].target_label"), "{e:?}");
}

#[derive(Debug)]
struct At(i64);

impl Clock for At {
    fn now(&self) -> Timestamp {
        Timestamp(self.0)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

const SECOND: i64 = 1_000_000_000;

fn build_at(json: &str, seconds: i64) -> Arc<dyn Transform> {
    let clock: Arc<dyn Clock> = Arc::new(At(seconds * SECOND));
    serde_json::from_str::<TransformConfig>(json).unwrap().build("transforms.t", &clock).unwrap()
}

#[test]
fn times_come_from_a_field_in_the_first_format_that_fits_and_are_never_far_ahead() {
    let t = build_at(
        r#"{"type":"normalize","inputs":["s"],"time_field":".attrs.t","time_formats":["%d/%b/%Y:%H:%M:%S %z","unix_ms"],
            "ahead_max":"1m","ahead":"replace"}"#,
        1_000_000_000,
    );
    let mut b = LogBatchBuilder::new();
    for attrs in [
        r#"{"t":"02/Jan/1970:00:00:00 +0000"}"#,
        r#"{"t":86400000}"#,
        r#"{"t":"soon"}"#,
        r#"{"t":9000000000000}"#,
        "{}",
    ] {
        b.push(&LogRow { ts: 5 * SECOND, stream_labels: "{}", attrs: Some(attrs), ..LogRow::default() });
    }
    let (rows, counts) = run(&*t, Data::Logs(b.finish()));
    let times: Vec<&str> = rows.iter().map(|r| r["timestamp"].as_str().unwrap()).collect();
    assert_eq!(
        times,
        [
            "1970-01-02T00:00:00.000000000Z",
            "1970-01-02T00:00:00.000000000Z",
            "1970-01-01T00:00:05.000000000Z",
            "2001-09-09T01:46:40.000000000Z",
            "1970-01-01T00:00:05.000000000Z"
        ]
    );
    assert_eq!((counts.changed(Change::Retimed), counts.fault(Fault::Unparsed)), (3, 1));
    let t = build_at(r#"{"type":"normalize","inputs":["s"],"ahead_max":"1s"}"#, 0);
    assert_eq!(t.signals(), Signals::ALL);
    let (rows, counts) = run(&*t, metrics());
    assert!(rows.iter().all(|r| r["timestamp"] == "1970-01-01T00:00:01.000000000Z"), "{rows:?}");
    assert_eq!(counts.changed(Change::Retimed), 3);
}

#[test]
fn severity_has_one_number_and_one_text() {
    let t = build(r#"{"type":"normalize","inputs":["s"],"severity":true}"#);
    assert_eq!(t.signals(), Signals::LOGS);
    let mut b = LogBatchBuilder::new();
    let cases = [
        (None, Some("err"), Some(17), Some("ERROR")),
        (Some(13), None, Some(13), Some("WARN")),
        (Some(9), Some("Information"), Some(9), Some("INFO")),
        (Some(0), Some("debug"), Some(5), Some("DEBUG")),
        (None, Some("loud"), None, Some("loud")),
        (None, None, None, None),
    ];
    for (number, text, _, _) in cases {
        b.push(&LogRow { stream_labels: "{}", severity_number: number, severity_text: text, ..LogRow::default() });
    }
    let (rows, counts) = run(&*t, Data::Logs(b.finish()));
    for (row, (_, _, number, text)) in rows.iter().zip(cases) {
        assert_eq!(
            (row.get("severity_number").and_then(|n| n.as_i64()), row.get("severity_text").and_then(|t| t.as_str())),
            (number, text)
        );
    }
    assert_eq!((counts.changed(Change::Reranked), counts.fault(Fault::Unparsed)), (4, 1));
    assert_eq!(errors(r#"{"type":"normalize","inputs":["s"]}"#).len(), 1);
    let e = errors(
        r#"{"type":"normalize","inputs":["s"],"time_field":".ts","time_formats":["noon"],"signals":["traces"]}"#,
    );
    assert_eq!(e.len(), 3, "{e:?}");
}

#[test]
fn limits_on_labels_hold_for_each_signal_and_are_counted() {
    let t = build(r#"{"type":"limit_labels","inputs":["s"],"count_max":2,"target":"labels"}"#);
    let (rows, counts) = run(&*t, metrics());
    assert_eq!(rows[0]["labels"], serde_json::json!({"__name__":"up","job":"j"}));
    assert_eq!((counts.changed(Change::Limited), counts.dropped(DropReason::OverLimit)), (3, 0));
    let t =
        build(r#"{"type":"limit_labels","inputs":["s"],"value_bytes_max":2,"action":"drop_row","target":"attrs"}"#);
    let (rows, counts) = run(&*t, logs());
    assert_eq!((rows.len(), counts.dropped(DropReason::OverLimit)), (1, 2));
    assert_eq!(errors(r#"{"type":"limit_labels","inputs":["s"],"action":"truncate"}"#).len(), 1);
}
