use parking_lot::Mutex;
use storage::{
    Append, AppendError, Appended, SourcePosition,
    model::{LogBatchBuilder, LogRow, TenantId},
};

use super::*;
use crate::{
    Positions, Running,
    metrics::{ComponentKind, DropReason},
    sink::{stdout::write_batch, store::Destination},
    topology::PipelineBuilder,
};

/// A store that keeps everything.
#[derive(Default)]
struct Kept(Mutex<Vec<Append>>);

#[async_trait::async_trait]
impl Destination for Kept {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        self.0.lock().push(append);
        Ok(Appended::default())
    }
}

impl Positions for Kept {
    fn position(&self, _: &TenantId, _: &str) -> Option<u64> {
        None
    }
}

impl Kept {
    fn rows(&self) -> Vec<serde_json::Value> {
        let appends = self.0.lock();
        let batches = appends.iter().flat_map(|a| &a.rows);
        let text: String = batches
            .map(|(_, rows)| write_batch(&Batch::new(TenantId::default(), Data::Logs(rows.clone()))).unwrap())
            .collect();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

fn logs(bodies: &[&str]) -> Batch {
    let mut b = LogBatchBuilder::new();
    for (i, body) in bodies.iter().enumerate() {
        b.push(&LogRow {
            ts: 1 + i as i64,
            stream_labels: "{}",
            attrs: Some(r#"{"a":"b"}"#),
            body,
            ..LogRow::default()
        });
    }
    Batch::new(TenantId::default(), Data::Logs(b.finish()))
}

fn builder(config: serde_json::Value) -> PipelineBuilder {
    PipelineBuilder::new(serde_json::from_value(config).unwrap()).input("push", Signals::ALL)
}

fn running(builder: PipelineBuilder) -> (Running, Arc<Kept>) {
    let kept = Arc::new(Kept::default());
    (builder.build_on(kept.clone(), kept.clone()).unwrap(), kept)
}

fn errors(config: serde_json::Value) -> Vec<String> {
    builder(config).check().unwrap_err().0.iter().map(ToString::to_string).collect()
}

/// Fails on `error`, panics on `panic`.
struct Touchy;

impl Transform for Touchy {
    fn signals(&self) -> Signals {
        Signals::LOGS
    }

    fn apply(&self, data: Data, _: &Counters) -> Result<Data, TransformError> {
        let text = write_batch(&Batch::new(TenantId::default(), data.clone())).unwrap();
        assert!(!text.contains("panic"), "oh no");
        if text.contains("error") { Err(TransformError("not this one".into())) } else { Ok(data) }
    }
}

#[tokio::test]
async fn rows_that_do_not_parse_go_their_own_way_and_the_position_comes_after_both() {
    let (running, kept) = running(builder(serde_json::json!({
        "transforms": {
            "p": {"type": "parse", "inputs": ["push"], "format": "json"},
            "rest": {"type": "set", "inputs": ["p.dead_letter"], "fields": {".attrs.seen": "yes"}}
        },
        "sinks": {"store": {"type": "store"}}
    })));
    let out = running.input("push").unwrap();
    let mut batch = logs(&[r#"{"n":1}"#, "no json", r#"{"n":2}"#]);
    batch.sources.push(SourcePosition { key: "file".into(), position: 9 });
    out.deliver(batch).await.unwrap();
    let rows = kept.rows();
    let (dead, good): (Vec<_>, Vec<_>) = rows.iter().partition(|r| r["attrs"].get(REFUSED_BY).is_some());
    assert_eq!((dead.len(), good.len()), (1, 2), "{rows:?}");
    let attrs = &dead[0]["attrs"];
    assert_eq!((&dead[0]["body"], &attrs["a"], &attrs["seen"]), (&"no json".into(), &"b".into(), &"yes".into()));
    assert_eq!(
        (&attrs[REFUSED_BY], &attrs[REFUSED_REASON]),
        (&"p".into(), &"the body does not parse as json".into())
    );
    assert!(good.iter().all(|r| r["attrs"].get("seen").is_none()), "{good:?}");
    let positions: Vec<usize> =
        kept.0.lock().iter().enumerate().filter(|(_, a)| !a.sources.is_empty()).map(|(i, _)| i).collect();
    assert_eq!(positions, [2], "one append of the position, behind the rows of both branches");
    let counted = running.registry().component(ComponentKind::Transform, "p").unwrap();
    assert_eq!((counted.rows_in, counted.rows_delivered, counted.dropped(DropReason::DeadLettered)), (3, 2, 1));
}

#[tokio::test]
async fn a_batch_that_a_transform_fails_on_is_kept_whole_and_delivered() {
    let (running, kept) = running(
        PipelineBuilder::new(Default::default())
            .input("push", Signals::ALL)
            .transform("touchy", &["push"], Arc::new(Touchy))
            .store_sink("store", &["touchy", "touchy.dead_letter"]),
    );
    let out = running.input("push").unwrap();
    for bodies in [["fine", "too"], ["an error", "x"], ["a panic", "y"]] {
        out.deliver(logs(&bodies)).await.unwrap();
    }
    let told: Vec<_> =
        kept.rows().iter().map(|r| r["attrs"].get(REFUSED_REASON).cloned().unwrap_or_default()).collect();
    let [error, panic]: [serde_json::Value; 2] = ["not this one".into(), "panicked: oh no".into()];
    assert_eq!(told, [Default::default(), Default::default(), error.clone(), error, panic.clone(), panic]);
}

#[tokio::test]
async fn without_anyone_to_take_them_everything_is_as_before() {
    let (running, kept) = running(
        PipelineBuilder::new(Default::default())
            .input("push", Signals::ALL)
            .transform("touchy", &["push"], Arc::new(Touchy))
            .store_sink("store", &["touchy"]),
    );
    let refused = running.input("push").unwrap().deliver(logs(&["error"])).await;
    assert!(matches!(refused, Err(DeliveryError::Rejected(_))) && kept.rows().is_empty());
}

#[test]
fn names_of_dead_letters_are_checked_as_all_others() {
    let loki = |inputs: &[&str]| serde_json::json!({"type": "loki", "inputs": inputs, "url": "http://x"});
    let config = serde_json::json!({"sinks": {"far": loki(&["push"]), "store": {"type": "store", "inputs": ["far.dead_letter"]}}});
    let graph = builder(config).check().unwrap();
    assert_eq!(graph.order, ["push", "far", "store"]);
    assert_eq!(graph.consumers["far.dead_letter"], ["store"]);
    // A sink that takes the rest does not take them unasked.
    let graph = builder(serde_json::json!({"sinks": {"far": loki(&["push"]), "store": {"type": "store"}}})).check();
    assert!(graph.is_err() || !graph.unwrap().consumers.contains_key("far.dead_letter"));
    assert_eq!(
        errors(serde_json::json!({"sinks": {
            "a": {"type": "store", "inputs": ["push", "b.dead_letter"]},
            "b": loki(&["push", "a.dead_letter", "push.dead_letter", "c.dead_leter"]),
            "c": loki(&["push", "c.dead_letter"])
        }})),
        [
            "sinks.b.inputs[1]: `a` has no dead letters: it refuses nothing",
            "sinks.b.inputs[2]: `push` has no dead letters: it refuses nothing",
            "sinks.b.inputs[3]: there is no source or transform `c.dead_leter`; did you mean `c.dead_letter`?",
            "sinks.c.inputs[1]: a cycle: c -> c",
        ]
    );
    let twice = serde_json::json!({"sinks": {
        "far": {"type": "loki", "inputs": ["push"], "url": "http://x", "dead_letter": "/tmp/x"},
        "store": {"type": "store", "inputs": ["far.dead_letter"]}
    }});
    assert!(errors(twice)[0].starts_with("sinks.far.dead_letter: rows cannot go to this file"));
    // What a sink refuses is of the signals that it works on.
    let config = serde_json::json!({"sinks": {
        "far": loki(&["push"]),
        "numbers": {"type": "remote_write", "inputs": ["far.dead_letter"], "url": "http://x"}
    }});
    assert_eq!(
        errors(config),
        ["sinks.numbers.inputs[0]: `far.dead_letter` gives logs, but `numbers` works on metrics"]
    );
}

#[test]
fn cases_of_a_file_see_dead_letters() {
    let case = serde_json::json!({
        "name": "n", "insert_at": "p", "input": [{"body": "{\"n\":1}"}, {"body": "x"}],
        "expect": {"p": [{"attrs": {"n": 1}}], "p.dead_letter": [{"body": "x", "attrs": {"refused_by": "p", "refused_reason": "the body does not parse as json"}}], "store": [{}, {}]}
    });
    let run = |case: serde_json::Value| {
        crate::trial::run(&serde_json::from_value(case).unwrap(), |_| {
            builder(serde_json::json!({
                "transforms": {"p": {"type": "parse", "inputs": ["push"], "format": "json"}},
                "sinks": {"store": {"type": "store", "inputs": ["p", "p.dead_letter"]}}
            }))
        })
    };
    assert_eq!(run(case), []);
    let list = serde_json::json!({"name": "n", "insert_at": "p", "input": [{"body": "{}"}, {"body": "x"}], "expect": [{"body": "{}"}]});
    assert_eq!(run(list), []);
}
