//! The `tests:` section of a pipeline file: rows put in at a component, rows that must come out, without any task,
//! socket or store, under a clock that stands still.
//!
//! A row is what the sink `stdout` prints, with shorter names for what one writes often (see [`rows`]). Of an expected row
//! only the fields it names are compared; `null` says that a field is absent.

mod compare;
mod rows;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::Value;
use storage::{
    model::{TenantId, Timestamp},
    vfs::Clock,
};

use crate::{
    component::{Batch, Data},
    error::nearest,
    sink::stdout::write_batch,
    topology::{Graph, PipelineBuilder},
    transform::parse::{TimeFormat, parse_time},
};

/// Rows one case may put in.
const INPUT_ROWS_MAX: usize = 10_000;
/// 2026-01-01T00:00:00Z: what the clock says, and the time of rows without one, unless a case says otherwise.
const NOW_DEFAULT: i64 = 1_767_225_600_000_000_000;

/// One case as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    /// A transform, which gets the rows, or a source, which emits them.
    pub insert_at: String,
    /// What the clock says, RFC 3339.
    #[serde(default)]
    pub now: Option<String>,
    /// Rows as mappings, or as texts that hold a JSON object.
    pub input: Vec<Value>,
    /// `dropped`, or the rows that leave `insert_at`; or a mapping from outputs and sinks to either.
    pub expect: Value,
}

/// One thing wrong with a case, or with what came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Within the case: `expect[0].body`.
    pub path: String,
    pub message: String,
}

impl Problem {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Problem { path: path.into(), message: message.into() }
    }
}

/// What must arrive at one place.
struct Expected<'a> {
    /// Within the case.
    path: String,
    /// An output or a sink.
    at: String,
    rows: &'a [Value],
}

/// A clock that stands still.
#[derive(Debug)]
struct Frozen(Timestamp);

impl Clock for Frozen {
    fn now(&self) -> Timestamp {
        self.0
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

/// Everything wrong with how a case is written.
pub fn check(case: &Case, graph: &Graph) -> Vec<Problem> {
    let mut problems = Vec::new();
    let now = now(case, &mut problems);
    rows::read(&case.input, now, &mut problems);
    let known: Vec<&str> =
        graph.outputs.keys().filter(|name| !graph.sinks.contains(*name)).map(String::as_str).collect();
    if known.contains(&case.insert_at.as_str()) {
        for expected in expected(case, graph, &mut problems) {
            for (i, row) in expected.rows.iter().enumerate() {
                compare::check(row, &format!("{}[{i}]", expected.path), &mut problems);
            }
        }
    } else {
        let hint = nearest(&case.insert_at, known.iter().copied()).map(|n| format!("; did you mean `{n}`?"));
        let message = format!(
            "there is no source or transform `{}`{}",
            case.insert_at,
            hint.unwrap_or_else(|| format!("; there are {}", known.join(", ")))
        );
        problems.push(Problem::new("insert_at", message));
    }
    problems
}

/// Runs a case on the pipeline that `make` builds with the case's clock; empty when what comes out is what it expects.
pub fn run(case: &Case, make: impl FnOnce(Arc<dyn Clock>) -> PipelineBuilder) -> Vec<Problem> {
    let mut problems = Vec::new();
    let now = now(case, &mut Vec::new());
    let builder = make(Arc::new(Frozen(Timestamp(now))));
    let graph = match builder.check() {
        Ok(graph) => graph,
        Err(e) => return vec![Problem::new("", e.to_string())],
    };
    problems.extend(check(case, &graph));
    if !problems.is_empty() {
        return problems;
    }
    let inputs = rows::read(&case.input, now, &mut problems);
    let arrived = match builder.trial(&graph, &case.insert_at, inputs) {
        Ok(arrived) => arrived,
        Err(e) => return vec![Problem::new("input", e)],
    };
    for expected in expected(case, &graph, &mut problems) {
        let got = arrived.get(&expected.at).map_or(&[][..], Vec::as_slice);
        compare::rows(expected.rows, &printed(got), &expected.path, &mut problems);
    }
    problems
}

fn now(case: &Case, problems: &mut Vec<Problem>) -> i64 {
    let Some(text) = &case.now else { return NOW_DEFAULT };
    parse_time(text, &TimeFormat::Rfc3339).unwrap_or_else(|| {
        problems.push(Problem::new("now", format!("`{text}` is no time such as 2026-01-02T03:04:05Z")));
        NOW_DEFAULT
    })
}

/// The places that a case looks at.
fn expected<'a>(case: &'a Case, graph: &Graph, problems: &mut Vec<Problem>) -> Vec<Expected<'a>> {
    let mut own = graph.outputs.get(&case.insert_at).map_or(&[][..], Vec::as_slice);
    // A list of rows means what goes on.
    if let [main, _] = own
        && *main == case.insert_at
    {
        own = &own[..1];
    }
    let mut all = Vec::new();
    match &case.expect {
        Value::Object(places) => {
            let outputs = graph.outputs.values().flatten().map(String::as_str);
            let sinks = graph.sinks.iter().map(String::as_str);
            let known: Vec<&str> = outputs.chain(sinks).collect();
            for (at, value) in places {
                let path = format!("expect.{at}");
                if !known.contains(&at.as_str()) {
                    let hint = nearest(at, known.iter().copied()).map(|n| format!("; did you mean `{n}`?"));
                    let hint = hint.unwrap_or_else(|| format!("; there are {}", known.join(", ")));
                    problems.push(Problem::new(path, format!("there is no output or sink `{at}`{hint}")));
                } else if let Some(rows) = expected_rows(value, &path, problems) {
                    all.push(Expected { path, at: at.clone(), rows });
                }
            }
        }
        value => match own {
            [only] => {
                if let Some(rows) = expected_rows(value, "expect", problems) {
                    all.push(Expected { path: "expect".into(), at: only.clone(), rows });
                }
            }
            several => {
                let message = format!(
                    "`{}` has several outputs, expected a mapping with some of {}",
                    case.insert_at,
                    several.join(", ")
                );
                problems.push(Problem::new("expect", message));
            }
        },
    }
    all
}

fn expected_rows<'a>(value: &'a Value, path: &str, problems: &mut Vec<Problem>) -> Option<&'a [Value]> {
    match value {
        Value::Array(rows) => Some(rows),
        Value::String(word) if word == "dropped" => Some(&[]),
        _ => {
            problems.push(Problem::new(path, "expected `dropped` or a list of rows"));
            None
        }
    }
}

/// Batches as the sink `stdout` prints them.
fn printed(batches: &[Data]) -> Vec<Value> {
    let mut out = Vec::new();
    for data in batches {
        let text = write_batch(&Batch::new(TenantId::default(), data.clone())).unwrap_or_default();
        out.extend(text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()));
    }
    out
}

/// The rows that arrived at each output and each sink.
pub type Arrived = BTreeMap<String, Vec<Data>>;
