//! Rows as people write them.
//!
//!   {body: "a line", stream: {app: web}, attrs: {n: 1}, resource: {...}, severity_number: 9, time: 2026-01-02T03:04:05Z}
//!   {signal: span, name: "GET /", trace_id: <hex>, span_id: <hex>, duration_ns: 5, attrs: {...}}
//!   {signal: metric, metric: up, labels: {job: a}, value: 1}
//!
//! `signal` is `log` when it is absent. `time`, `stream` and `resource` are short for `timestamp`, `stream_labels` and
//! `resource_attrs`.

use serde_json::{Map, Value};
use storage::model::{
    Labels, LogBatchBuilder, LogRow, MetricBatchBuilder, SpanBatchBuilder, SpanRow, batch::SeriesMeta,
    time::NANOS_PER_MILLI,
};

use super::{INPUT_ROWS_MAX, Problem};
use crate::{
    component::Data,
    error::nearest,
    transform::{
        attributes::Attributes,
        parse::{TimeFormat, parse_time},
    },
};

/// Fields of a row by signal. `tenant` and `kind` are what `stdout` prints besides.
const LOG: [&str; 18] = [
    "timestamp",
    "observed_timestamp",
    "stream_labels",
    "service_name",
    "severity_number",
    "severity_text",
    "event_name",
    "flags",
    "trace_id",
    "span_id",
    "body",
    "body_type",
    "scope_name",
    "scope_meta",
    "resource_attrs",
    "resource_meta",
    "attrs",
    "dropped_attributes_count",
];
const SPAN: [&str; 22] = [
    "timestamp",
    "trace_id",
    "span_id",
    "parent_span_id",
    "duration_ns",
    "name",
    "service_name",
    "kind",
    "status_code",
    "status_message",
    "trace_state",
    "flags",
    "scope_name",
    "scope_meta",
    "resource_attrs",
    "resource_meta",
    "attrs",
    "events",
    "links",
    "dropped_attributes_count",
    "dropped_events_count",
    "dropped_links_count",
];
const METRIC: [&str; 10] =
    ["timestamp", "kind", "metric", "labels", "value", "type", "unit", "help", "job", "instance"];
/// What any row may have.
const ANY: [&str; 2] = ["signal", "tenant"];

const TRACE_ID_DEFAULT: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const SPAN_ID_DEFAULT: [u8; 8] = [0, 0, 0, 0, 0, 0, 0, 1];

/// The full name of a field.
pub(super) fn full_name(name: &str) -> &str {
    match name {
        "time" => "timestamp",
        "stream" => "stream_labels",
        "resource" => "resource_attrs",
        other => other,
    }
}

/// The signal of a row and the fields it may have.
pub(super) fn signal_of(row: &Map<String, Value>) -> Result<(&'static str, &'static [&'static str]), String> {
    match row.get("signal").map(|s| s.as_str().unwrap_or_default()) {
        None | Some("log") => Ok(("log", &LOG)),
        Some("span") => Ok(("span", &SPAN)),
        Some("metric") => Ok(("metric", &METRIC)),
        Some(_) => Err("expected `signal` to be log, metric or span".into()),
    }
}

/// Checks the names; expected rows are checked by it too.
pub(super) fn check_names(row: &Map<String, Value>, valid: &[&str], path: &str, problems: &mut Vec<Problem>) {
    for name in row.keys().filter(|n| !valid.contains(&full_name(n)) && !ANY.contains(&n.as_str())) {
        let hint = nearest(name, valid.iter().copied()).map(|n| format!("; did you mean `{n}`?"));
        let hint = hint.unwrap_or_else(|| format!(", expected one of {}", valid.join(", ")));
        problems.push(Problem::new(format!("{path}.{name}"), format!("unknown field `{name}`{hint}")));
    }
}

/// One batch for each run of rows of one signal.
pub(super) fn read(input: &[Value], now: i64, problems: &mut Vec<Problem>) -> Vec<Data> {
    let mut open = Open::default();
    if input.len() > INPUT_ROWS_MAX {
        problems.push(Problem::new("input", format!("more than {INPUT_ROWS_MAX} rows")));
        return Vec::new();
    }
    for (i, row) in input.iter().enumerate() {
        let path = format!("input[{i}]");
        let parsed: Value;
        let row = match row {
            Value::Object(row) => row,
            Value::String(line) => {
                parsed = serde_json::from_str(line).unwrap_or_default();
                match &parsed {
                    Value::Object(row) => row,
                    _ => {
                        problems.push(Problem::new(path, "expected a text that holds a JSON object"));
                        continue;
                    }
                }
            }
            _ => {
                problems.push(Problem::new(path, "expected a mapping, or a text that holds a JSON object"));
                continue;
            }
        };
        let (signal, valid) = match signal_of(row) {
            Ok(found) => found,
            Err(message) => {
                problems.push(Problem::new(format!("{path}.signal"), message));
                continue;
            }
        };
        check_names(row, valid, &path, problems);
        let mut fields = Fields { row, path, problems };
        match signal {
            "log" => fields.log(&mut open, now),
            "span" => fields.span(&mut open, now),
            _ => fields.metric(&mut open, now),
        }
    }
    open.close();
    open.done
}

/// Batches under construction; at most one of them has rows.
#[derive(Default)]
struct Open {
    logs: LogBatchBuilder,
    spans: SpanBatchBuilder,
    metrics: MetricBatchBuilder,
    done: Vec<Data>,
}

impl Open {
    fn close(&mut self) {
        if !self.logs.is_empty() {
            self.done.push(Data::Logs(self.logs.finish()));
        }
        if !self.spans.is_empty() {
            self.done.push(Data::Spans(self.spans.finish()));
        }
        if !self.metrics.is_empty() {
            self.done.push(Data::Metrics(std::mem::take(&mut self.metrics).finish()));
        }
    }
}

/// Reads the fields of one row; what is of the wrong type is a problem.
struct Fields<'a> {
    row: &'a Map<String, Value>,
    path: String,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<(&'a str, &'a Value)> {
        let found = self.row.iter().find(|(n, _)| full_name(n) == name)?;
        (!found.1.is_null()).then_some((found.0.as_str(), found.1))
    }

    fn wrong(&mut self, name: &str, expected: &str) {
        self.problems.push(Problem::new(format!("{}.{name}", self.path), format!("expected {expected}")));
    }

    fn text(&mut self, name: &str) -> Option<&'a str> {
        let (name, value) = self.get(name)?;
        if value.as_str().is_none() {
            self.wrong(name, "a text");
        }
        value.as_str()
    }

    fn integer(&mut self, name: &str) -> Option<i64> {
        let (name, value) = self.get(name)?;
        if value.as_i64().is_none() {
            self.wrong(name, "a whole number");
        }
        value.as_i64()
    }

    fn small(&mut self, name: &str) -> Option<i32> {
        let value = self.integer(name)?;
        if i32::try_from(value).is_err() {
            self.wrong(name, "a number of 32 bits");
        }
        i32::try_from(value).ok()
    }

    fn hex<const N: usize>(&mut self, name: &str) -> Option<[u8; N]> {
        let text = self.text(name)?;
        let mut id = [0; N];
        if hex::decode_to_slice(text, &mut id).is_err() {
            self.wrong(name, &format!("{} hex digits in quotes", 2 * N));
            return None;
        }
        Some(id)
    }

    fn time(&mut self, name: &str) -> Option<i64> {
        let (name, value) = self.get(name)?;
        let found = time_of(value);
        if found.is_none() {
            self.wrong(name, "a time such as 2026-01-02T03:04:05Z, or an epoch number");
        }
        found
    }

    /// An object as canonical JSON.
    fn set(&mut self, name: &str) -> Option<String> {
        let (name, value) = self.get(name)?;
        let found = Attributes::parse(&value.to_string()).map(|a| a.to_json());
        if found.is_none() {
            self.wrong(name, "a mapping");
        }
        found
    }

    fn list(&mut self, name: &str) -> Option<String> {
        let (name, value) = self.get(name)?;
        if !value.is_array() {
            self.wrong(name, "a list");
            return None;
        }
        Some(value.to_string())
    }

    /// Labels: every value as text.
    fn labels(&mut self, name: &str) -> Labels {
        match self.get(name) {
            None => Labels::default(),
            Some((_, Value::Object(map))) => Labels::from_pairs(
                map.iter().map(|(n, v)| (n.clone(), v.as_str().map_or_else(|| v.to_string(), str::to_owned))),
            ),
            Some((name, _)) => {
                self.wrong(name, "a mapping");
                Labels::default()
            }
        }
    }

    fn log(&mut self, open: &mut Open, now: i64) {
        if open.logs.is_empty() {
            open.close();
        }
        let stream = self.labels("stream_labels");
        let (body, body_type) = match self.get("body") {
            None => (String::new(), None),
            Some((_, Value::String(text))) => (text.clone(), None),
            Some((_, other)) => (other.to_string(), Some("json")),
        };
        let (scope_meta, resource_meta) = (self.set("scope_meta"), self.set("resource_meta"));
        let (resource, attrs) = (self.set("resource_attrs"), self.set("attrs"));
        let (trace_id, span_id) = (self.hex::<16>("trace_id"), self.hex::<8>("span_id"));
        let row = LogRow {
            ts: self.time("timestamp").unwrap_or(now),
            observed_ts: self.time("observed_timestamp"),
            stream_labels: &stream.to_json(),
            service_name: self.text("service_name"),
            severity_number: self.small("severity_number"),
            severity_text: self.text("severity_text"),
            event_name: self.text("event_name"),
            flags: self.integer("flags"),
            trace_id: trace_id.as_ref().map(|id| &id[..]),
            span_id: span_id.as_ref().map(|id| &id[..]),
            body: &body,
            body_type,
            scope_name: self.text("scope_name"),
            scope_meta: scope_meta.as_deref(),
            resource_attrs: resource.as_deref(),
            resource_meta: resource_meta.as_deref(),
            attrs: attrs.as_deref(),
            dropped_attributes_count: self.integer("dropped_attributes_count"),
        };
        open.logs.push(&row);
    }

    fn span(&mut self, open: &mut Open, now: i64) {
        if open.spans.is_empty() {
            open.close();
        }
        let trace_id = self.hex::<16>("trace_id").unwrap_or(TRACE_ID_DEFAULT);
        let span_id = self.hex::<8>("span_id").unwrap_or(SPAN_ID_DEFAULT);
        let parent = self.hex::<8>("parent_span_id");
        let (scope_meta, resource_meta) = (self.set("scope_meta"), self.set("resource_meta"));
        let (resource, attrs) = (self.set("resource_attrs"), self.set("attrs"));
        let (events, links) = (self.list("events"), self.list("links"));
        let row = SpanRow {
            trace_id: &trace_id,
            span_id: &span_id,
            parent_span_id: parent.as_ref().map(|id| &id[..]),
            ts: self.time("timestamp").unwrap_or(now),
            duration_ns: self.integer("duration_ns").unwrap_or(0),
            name: self.text("name").unwrap_or(""),
            service_name: self.text("service_name"),
            kind: self.small("kind").unwrap_or(0),
            status_code: self.small("status_code").unwrap_or(0),
            status_message: self.text("status_message"),
            trace_state: self.text("trace_state"),
            flags: self.integer("flags"),
            scope_name: self.text("scope_name"),
            scope_meta: scope_meta.as_deref(),
            resource_attrs: resource.as_deref(),
            resource_meta: resource_meta.as_deref(),
            attrs: attrs.as_deref(),
            events: events.as_deref(),
            links: links.as_deref(),
            dropped_attributes_count: self.integer("dropped_attributes_count"),
            dropped_events_count: self.integer("dropped_events_count"),
            dropped_links_count: self.integer("dropped_links_count"),
        };
        open.spans.push(&row);
    }

    fn metric(&mut self, open: &mut Open, now: i64) {
        if open.metrics.is_empty() {
            open.close();
        }
        if let Some((_, kind)) = self.get("kind").filter(|(_, k)| k.as_str() != Some("sample")) {
            let kind = kind.to_string();
            self.wrong("kind", &format!("`sample`, {kind} cannot be put in"));
        }
        let mut labels = self.labels("labels");
        for (field, label) in [("metric", "__name__"), ("job", "job"), ("instance", "instance")] {
            if let Some(text) = self.text(field) {
                labels.set(label, text);
            }
        }
        let value = match self.get("value") {
            Some((_, v)) if v.is_number() => v.as_f64().unwrap_or(0.0),
            Some((_, v)) => match v.get("$double").and_then(Value::as_str).and_then(|t| t.parse().ok()) {
                Some(odd) => odd,
                None => {
                    self.wrong("value", "a number");
                    0.0
                }
            },
            None => 0.0,
        };
        let meta = SeriesMeta {
            metric_type: self.text("type"),
            unit: self.text("unit"),
            help: self.text("help"),
            ..SeriesMeta::default()
        };
        let at = self.time("timestamp").unwrap_or(now).div_euclid(NANOS_PER_MILLI);
        let id = open.metrics.series(&labels, meta);
        open.metrics.sample(id, at, None, value);
    }
}

/// Nanoseconds of a time as text or as an epoch number.
pub(super) fn time_of(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => parse_time(text, &TimeFormat::Auto),
        Value::Number(number) => parse_time(&number.to_string(), &TimeFormat::Auto),
        _ => None,
    }
}
