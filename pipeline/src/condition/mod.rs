//! The condition language of `filter`: comparisons and boolean logic over the fields of a row.
//!
//!   condition  = and { "or" and }            and = not { "and" not }          not = "not" not | test
//!   test       = "(" condition ")" | "exists" field | field op literal
//!   op         = == != < <= > >= contains starts_with ends_with matches
//!   field      = .body .severity_number .service_name ... | .attrs.KEY .resource.KEY .stream.KEY .labels.KEY
//!   literal    = "text" | 'text' | 12.5 | true | false
//!
//! `&&`, `||` and `!` are accepted too. A KEY is everything up to the next blank, bracket or operator, dots included
//! (`.attrs.http.status_code`); any other key is quoted (`.attrs."a key"`). Logic has two values: a test on an absent
//! field is false, except `!=`, which is the negation of `==`. Text that holds a number compares with numbers.

mod eval;
mod parse;
#[cfg(test)]
mod tests;

use regex::Regex;

use crate::component::Signals;

/// Longest condition in bytes.
pub const CONDITION_BYTES_MAX: usize = 16 << 10;
/// Deepest nesting of brackets and `not`.
pub const CONDITION_DEPTH_MAX: usize = 64;
/// Largest compiled regular expression in bytes.
pub const CONDITION_REGEX_BYTES_MAX: usize = 10 << 20;

/// A checked condition.
#[derive(Clone, Debug)]
pub struct Condition {
    root: Node,
    signals: Signals,
}

#[derive(Clone, Debug)]
enum Node {
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    Test(Field, Test),
}

#[derive(Clone, Debug)]
enum Test {
    Exists,
    Compare(Compare, Literal),
    Contains(String),
    StartsWith(String),
    EndsWith(String),
    Matches(Regex),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

#[derive(Clone, Debug, PartialEq)]
enum Literal {
    Text(String),
    Number(f64),
    Bool(bool),
}

/// Something a row has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// A column under its own name.
    Column(&'static str),
    /// A member of a JSON column.
    Member { column: &'static str, key: String },
}

/// Why a condition was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}\n  {line}\n  {}^", " ".repeat(*.column))]
pub struct ConditionError {
    pub message: String,
    /// The line of the condition it is in, and the character in it (from 0).
    pub line: String,
    pub column: usize,
    pub nearest: Option<String>,
}

/// A field's name, its column, and the signals that have it.
struct KnownField {
    name: &'static str,
    column: &'static str,
    signals: Signals,
}

const LOGS_TRACES: Signals = Signals::LOGS.or(Signals::TRACES);

const fn known(name: &'static str, column: &'static str, signals: Signals) -> KnownField {
    KnownField { name, column, signals }
}

/// Fields that stand alone.
const COLUMNS: [KnownField; 25] = [
    known("body", "body", Signals::LOGS),
    known("severity_number", "severity_number", Signals::LOGS),
    known("severity_text", "severity_text", Signals::LOGS),
    known("event_name", "event_name", Signals::LOGS),
    known("ts", "ts", LOGS_TRACES),
    known("observed_ts", "observed_ts", Signals::LOGS),
    known("service_name", "service_name", LOGS_TRACES),
    known("scope_name", "scope_name", LOGS_TRACES),
    known("flags", "flags", LOGS_TRACES),
    known("trace_id", "trace_id", LOGS_TRACES),
    known("span_id", "span_id", LOGS_TRACES),
    known("parent_span_id", "parent_span_id", Signals::TRACES),
    known("name", "name", Signals::TRACES),
    known("kind", "kind", Signals::TRACES),
    known("status_code", "status_code", Signals::TRACES),
    known("status_message", "status_message", Signals::TRACES),
    known("duration_ns", "duration_ns", Signals::TRACES),
    known("trace_state", "trace_state", Signals::TRACES),
    known("metric", "metric", Signals::METRICS),
    known("type", "type", Signals::METRICS),
    known("unit", "unit", Signals::METRICS),
    known("help", "help", Signals::METRICS),
    known("job", "job", Signals::METRICS),
    known("instance", "instance", Signals::METRICS),
    known("body_type", "body_type", Signals::LOGS),
];

/// Fields that take a key.
const MEMBERS: [KnownField; 4] = [
    known("attrs", "attrs", LOGS_TRACES),
    known("resource", "resource_attrs", LOGS_TRACES),
    known("stream", "stream_labels", Signals::LOGS),
    known("labels", "labels", Signals::METRICS),
];

/// All field names, for messages: those that take a key end in `.`.
pub fn field_names() -> Vec<String> {
    let alone = COLUMNS.iter().map(|f| format!(".{}", f.name));
    alone.chain(MEMBERS.iter().map(|f| format!(".{}.", f.name))).collect()
}

impl Condition {
    /// Reads and checks a condition.
    pub fn parse(text: &str) -> Result<Condition, ConditionError> {
        parse::parse(text)
    }

    /// The signals that have all the fields it names. Never none.
    pub fn signals(&self) -> Signals {
        self.signals
    }

    /// Whether each row of a batch fulfils it.
    pub fn mask(&self, rows: &arrow::array::RecordBatch) -> Vec<bool> {
        eval::mask(&self.root, rows)
    }
}

impl Field {
    /// Reads `.attrs.key`; all of `text` must be one field.
    pub fn parse(text: &str) -> Result<Field, ConditionError> {
        parse::field_alone(text).map(|(field, _)| field)
    }

    /// Signals that have it.
    pub fn signals(&self) -> Signals {
        let (list, column): (&[KnownField], &str) = match self {
            Field::Column(c) => (&COLUMNS, c),
            Field::Member { column, .. } => (&MEMBERS, column),
        };
        list.iter().find(|f| f.column == column).map_or(Signals::NONE, |f| f.signals)
    }
}
