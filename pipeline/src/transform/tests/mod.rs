//! Transforms on the three signals: here `filter`, `set`, `rename` and `remove`; the others by what they are for.

mod choosing;
mod shaping;

use std::sync::Arc;

use storage::model::{
    Labels, LogBatchBuilder, LogRow, MetricBatchBuilder, SpanBatchBuilder, SpanRow, TenantId,
    batch::{HistogramRow, SeriesMeta},
};

use storage::vfs::{Clock, SystemClock};

use super::registry::TransformConfig;
use crate::{
    Batch,
    component::{Data, Signals, Transform},
    metrics::{ComponentKind, DropReason, Registry},
    sink::stdout::write_batch,
};

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::default())
}

fn build(json: &str) -> Arc<dyn Transform> {
    serde_json::from_str::<TransformConfig>(json).unwrap().build("transforms.t", &clock()).unwrap()
}

fn errors(json: &str) -> Vec<String> {
    let config = serde_json::from_str::<TransformConfig>(json).unwrap();
    config.build("transforms.t", &clock()).err().unwrap().iter().map(ToString::to_string).collect()
}

fn apply(t: &dyn Transform, data: Data) -> (Vec<serde_json::Value>, u64) {
    let registry = Registry::default();
    let counters = registry.add("t", ComponentKind::Transform);
    let data = t.apply(data, &counters).unwrap();
    let text = write_batch(&Batch::new(TenantId::default(), data)).unwrap();
    let lines = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    (lines, registry.snapshot()[0].dropped(DropReason::Filtered))
}

fn logs() -> Data {
    let mut b = LogBatchBuilder::new();
    let row = LogRow { ts: 1, stream_labels: r#"{"app":"web"}"#, body: "a", ..LogRow::default() };
    b.push(&LogRow { attrs: Some(r#"{"x":1,"y":{"z":"q"}}"#), resource_attrs: Some(r#"{"host":"h"}"#), ..row });
    b.push(&LogRow { attrs: Some(r#"{"x":1,"y":{"z":"q"}}"#), body: "b", ..row });
    b.push(&LogRow { stream_labels: "{}", body: "c", ..row });
    Data::Logs(b.finish())
}

fn metrics() -> Data {
    let mut m = MetricBatchBuilder::new();
    for (name, pod) in [("up", "a"), ("up", "b"), ("down", "a")] {
        let id =
            m.series(&Labels::from_pairs([("__name__", name), ("pod", pod), ("job", "j")]), SeriesMeta::default());
        m.sample(id, if pod == "a" { 1_000 } else { 2_000 }, None, 1.0);
        if name == "down" {
            m.histogram(id, 3_000, None, &HistogramRow::default());
            m.exemplar(id, 3_000, 1.0, None, None, "{}");
        }
    }
    Data::Metrics(m.finish())
}

#[test]
fn set_reaches_rows_with_and_without_a_value_and_keeps_types() {
    let t = build(
        r#"{"type":"set","inputs":["s"],"fields":{".attrs.x":2.5,".attrs.new":"v",".stream.env":7,".stream.app":"",".resource.up":true}}"#,
    );
    assert_eq!(t.signals(), Signals::LOGS.or(Signals::TRACES));
    let (out, _) = apply(&*t, logs());
    assert_eq!(out[0]["attrs"], serde_json::json!({"new":"v","x":2.5,"y":{"z":"q"}}));
    assert_eq!(out[0]["stream_labels"], serde_json::json!({"env":"7"}), "labels are texts, an empty one is removed");
    assert_eq!(out[0]["resource_attrs"], serde_json::json!({"host":"h","up":true}));
    assert_eq!(out[2]["attrs"], serde_json::json!({"new":"v","x":2.5}));
}

#[test]
fn rename_moves_within_a_set_and_across_sets_and_passes_over_absent_fields() {
    let t = build(
        r#"{"type":"rename","inputs":["s"],"fields":{".attrs.x":".stream.code",".attrs.y":".attrs.\"a b\"",".resource.no":".attrs.no"}}"#,
    );
    let (out, _) = apply(&*t, logs());
    assert_eq!(out[0]["stream_labels"], serde_json::json!({"app":"web","code":"1"}));
    assert_eq!(out[0]["attrs"], serde_json::json!({"a b":{"z":"q"}}));
    assert_eq!(out[2]["stream_labels"], serde_json::json!({}));
    assert!(out[2].get("attrs").is_none());
}

#[test]
fn remove_leaves_null_behind_the_last_attribute_and_works_on_spans() {
    let t = build(r#"{"type":"remove","inputs":["s"],"fields":[".attrs.x",".attrs.y",".stream.app"]}"#);
    let (out, _) = apply(&*t, logs());
    assert!(out.iter().all(|r| r.get("attrs").is_none() && r["stream_labels"] == serde_json::json!({})));
    let mut b = SpanBatchBuilder::new();
    let span = SpanRow { trace_id: &[1; 16], span_id: &[2; 8], name: "n", ..SpanRow::default() };
    b.push(&SpanRow { attrs: Some(r#"{"x":1,"z":2}"#), ..span });
    b.push(&span);
    let (out, _) = apply(&*t, Data::Spans(b.finish()));
    assert_eq!(out[0]["attrs"], serde_json::json!({"z":2}));
    assert!(out[1].get("attrs").is_none());
}

#[test]
fn changed_labels_give_series_new_ids_and_equal_series_become_one() {
    let t = build(r#"{"type":"remove","inputs":["s"],"fields":[".labels.pod"]}"#);
    assert_eq!(t.signals(), Signals::METRICS);
    let registry = Registry::default();
    let Data::Metrics(m) = t.apply(metrics(), &registry.add("t", ComponentKind::Transform)).unwrap() else {
        panic!()
    };
    assert_eq!((m.series.num_rows(), m.samples.num_rows()), (2, 3));
    let first = arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(
        m.series.column_by_name("first_ms").unwrap(),
    );
    let last = arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(
        m.series.column_by_name("last_ms").unwrap(),
    );
    assert_eq!((first.value(0), last.value(0)), (1_000, 2_000));
    let t = build(r#"{"type":"set","inputs":["s"],"fields":{".labels.job":"k",".labels.__name__":"n"}}"#);
    let (out, _) = apply(&*t, metrics());
    assert_eq!(out.len(), 5, "every point finds its series again");
    assert!(out.iter().all(|p| p["labels"]["job"] == "k" && p["job"] == "k" && p["metric"] == "n"), "{out:?}");
}

#[test]
fn filter_keeps_whole_series_and_counts_points() {
    let t = build(r#"{"type":"filter","inputs":["s"],"condition":".metric == 'up' and .labels.pod != 'b'"}"#);
    let (out, dropped) = apply(&*t, metrics());
    assert_eq!(out.len(), 1);
    assert_eq!(dropped, 4);
    let (out, dropped) = apply(&*build(r#"{"type":"filter","inputs":["s"],"condition":".attrs.x == 1"}"#), logs());
    assert_eq!((out.len(), dropped), (2, 1));
}

#[test]
fn mistakes_name_their_place() {
    let e = errors(r#"{"type":"filter","inputs":["s"],"condition":".bdoy == 1"}"#);
    assert!(e[0].starts_with("transforms.t.condition: unknown field `.bdoy`"), "{e:?}");
    let e = errors(r#"{"type":"remove","inputs":["s"],"fields":[".attrs.x",".body",".atrs.x"]}"#);
    assert!(e[0].starts_with("transforms.t.fields[1]: `.body` cannot be changed here"), "{e:?}");
    assert!(e[1].starts_with("transforms.t.fields[2]: unknown field `.atrs`; did you mean `.attrs.`?"), "{e:?}");
    let e = errors(r#"{"type":"rename","inputs":["s"],"fields":{".labels.a":".attrs.a"}}"#);
    assert!(e[0].contains("no signal has both"), "{e:?}");
    assert_eq!(errors(r#"{"type":"remove","inputs":["s"],"fields":[]}"#), ["transforms.t.fields: names no field"]);
}
