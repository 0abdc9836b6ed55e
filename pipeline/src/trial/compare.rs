//! Expected rows against those that came.

use serde_json::{Map, Value};

use super::{
    Problem,
    rows::{check_names, full_name, signal_of, time_of},
};

/// Longest row shown, in bytes.
const SHOWN_BYTES_MAX: usize = 400;

/// Checks how an expected row is written.
pub(super) fn check(row: &Value, path: &str, problems: &mut Vec<Problem>) {
    let Value::Object(row) = row else {
        problems.push(Problem::new(path, "expected a mapping"));
        return;
    };
    match signal_of(row) {
        Ok((_, valid)) => check_names(row, valid, path, problems),
        Err(message) => problems.push(Problem::new(format!("{path}.signal"), message)),
    }
}

/// Compares in order. Each difference is a problem at the field that expects something else.
pub(super) fn rows(expected: &[Value], got: &[Value], path: &str, problems: &mut Vec<Problem>) {
    for (i, (expected, got)) in expected.iter().zip(got).enumerate() {
        if let (Value::Object(expected), Value::Object(got)) = (expected, got) {
            row(expected, got, &format!("{path}[{i}]"), problems);
        }
    }
    if expected.len() != got.len() {
        let mut message = format!("expected {}, got {}", count(expected.len()), count(got.len()));
        for extra in got.iter().skip(expected.len()).take(5) {
            message.push_str(&format!("\n    not expected: {}", shown(extra)));
        }
        let path = if got.len() < expected.len() { format!("{path}[{}]", got.len()) } else { path.to_owned() };
        problems.push(Problem::new(path, message));
    }
}

fn count(rows: usize) -> String {
    match rows {
        0 => "no row".into(),
        1 => "1 row".into(),
        n => format!("{n} rows"),
    }
}

fn row(expected: &Map<String, Value>, got: &Map<String, Value>, path: &str, problems: &mut Vec<Problem>) {
    // A row without a signal is a log record.
    if !expected.contains_key("signal") && got.get("signal").is_some_and(|s| s != "log") {
        let message = format!("expected a log record, got {}", shown(&Value::Object(got.clone())));
        problems.push(Problem::new(path, message));
        return;
    }
    for (name, want) in expected {
        let have = got.get(full_name(name)).unwrap_or(&Value::Null);
        if !same(full_name(name), want, have) {
            let message = format!("expected {}\n    got      {}", shown(want), shown(have));
            problems.push(Problem::new(format!("{path}.{name}"), message));
        }
    }
}

fn same(name: &str, want: &Value, have: &Value) -> bool {
    match (name, want, have) {
        ("timestamp" | "observed_timestamp", _, Value::String(_)) => {
            time_of(want).is_some() && time_of(want) == time_of(have)
        }
        // The name of a metric may be given by `metric` instead.
        ("labels", Value::Object(want), Value::Object(have)) if !want.contains_key("__name__") => {
            let mut have = have.clone();
            have.remove("__name__");
            labels_equal(want, &have)
        }
        ("labels" | "stream_labels", Value::Object(want), Value::Object(have)) => labels_equal(want, have),
        _ => equal(want, have),
    }
}

/// Labels are text, whatever YAML makes of `code: 200`.
fn labels_equal(want: &Map<String, Value>, have: &Map<String, Value>) -> bool {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    want.len() == have.len() && want.iter().all(|(n, v)| have.get(n).is_some_and(|h| text(h) == text(v)))
}

/// Numbers are equal by value: `1` is `1.0`.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

fn shown(value: &Value) -> String {
    if value.is_null() {
        return "nothing".into();
    }
    let text = value.to_string();
    if text.len() <= SHOWN_BYTES_MAX {
        return text;
    }
    format!("{}...", &text[..text.floor_char_boundary(SHOWN_BYTES_MAX)])
}
