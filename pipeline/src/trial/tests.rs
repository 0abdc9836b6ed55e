use super::*;
use crate::{component::Signals, config::PipelineConfig};

const CONFIG: &str = r#"{
    "transforms": {
        "by_level": {"type":"route","inputs":["push"],"routes":[
            {"name":"errors","condition":".severity_number >= 17"},
            {"name":"numbers","signals":["metrics"]}]},
        "clean": {"type":"redact","inputs":["by_level.errors"],"patterns":["email"]}
    },
    "sinks": {"store": {"type":"store"}}
}"#;

fn builder(clock: Arc<dyn Clock>) -> PipelineBuilder {
    let config: PipelineConfig = serde_json::from_str(CONFIG).unwrap();
    PipelineBuilder::with_clock(config, clock).input("push", Signals::ALL)
}

fn problems(case: &str) -> Vec<String> {
    let case: Case = serde_json::from_str(case).unwrap();
    run(&case, builder).into_iter().map(|p| format!("{}: {}", p.path, p.message)).collect()
}

#[test]
fn rows_are_followed_to_outputs_and_sinks() {
    let case = r#"{"name":"n","insert_at":"push","input":[
        {"body":"mail to a@b.cd","severity_number":17,"attrs":{"n":1}},
        {"body":"fine","stream":{"app":"web"}},
        "{\"signal\":\"metric\",\"metric\":\"up\",\"labels\":{\"job\":\"j\"},\"value\":1}",
        {"signal":"span","name":"GET /"}],
        "expect":{
            "clean":[{"body":"mail to [email]","attrs":{"n":1.0},"time":"2026-01-01T00:00:00Z","service_name":null}],
            "by_level.numbers":[{"signal":"metric","metric":"up","labels":{"job":"j"},"value":1}],
            "by_level.default":[{"body":"fine","stream":{"app":"web"}},{"signal":"span","name":"GET /"}],
            "store":[{"body":"fine"},{"signal":"metric"},{"signal":"span"},{"body":"mail to [email]"}]}}"#;
    assert_eq!(problems(case), [""; 0]);
    assert_eq!(
        problems(r#"{"name":"n","insert_at":"clean","input":[{"body":"x"}],"expect":[{"body":"x"}]}"#),
        [""; 0]
    );
}

#[test]
fn what_differs_is_told_field_by_field() {
    let case = r#"{"name":"n","insert_at":"clean","input":[{"body":"x","stream":{"a":"1"}},{"body":"y"}],
        "expect":[{"body":"z","stream":{"a":1},"severity_text":"INFO"}]}"#;
    assert_eq!(
        problems(case),
        [
            "expect[0].body: expected \"z\"\n    got      \"x\"",
            "expect[0].severity_text: expected \"INFO\"\n    got      nothing",
            "expect: expected 1 row, got 2 rows\n    not expected: {\"body\":\"y\",\"signal\":\"log\",\"stream_labels\":{},\"tenant\":\"default\",\"timestamp\":\"2026-01-01T00:00:00.000000000Z\"}",
        ]
    );
    let case = r#"{"name":"n","insert_at":"clean","input":[{"body":"x"}],"expect":"dropped"}"#;
    assert!(problems(case)[0].starts_with("expect: expected no row, got 1 row"));
}

#[test]
fn a_case_that_is_written_wrong_says_where() {
    let case =
        r#"{"name":"n","insert_at":"cleen","now":"soon","input":[{"bdoy":"x"},"[]",{"trace_id":"xy"}],"expect":[]}"#;
    assert_eq!(
        problems(case),
        [
            "now: `soon` is no time such as 2026-01-02T03:04:05Z",
            "input[0].bdoy: unknown field `bdoy`; did you mean `body`?",
            "input[1]: expected a text that holds a JSON object",
            "input[2].trace_id: expected 32 hex digits in quotes",
            "insert_at: there is no source or transform `cleen`; did you mean `clean`?",
        ]
    );
    let case = r#"{"name":"n","insert_at":"by_level","input":[],"expect":[]}"#;
    assert!(problems(case)[0].starts_with("expect: `by_level` has several outputs"), "{:?}", problems(case));
    let case = r#"{"name":"n","insert_at":"by_level","input":[],"expect":{"by_level.erors":[]}}"#;
    assert!(problems(case)[0].contains("did you mean `by_level.errors`?"));
}
