//! `parse`: reads the body or an attribute of log records and writes attributes, body, time and severity.
//! What does not parse stays as it was and is counted; where somebody takes `NAME.dead_letter` it goes there instead.

mod severity;
#[cfg(test)]
mod tests;
mod text;
mod time;

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Int32Array, RecordBatch, TimestampNanosecondArray},
    compute::filter_record_batch,
    datatypes::{Int32Type, TimestampNanosecondType},
};
use regex::{Regex, RegexBuilder};
use serde::Deserialize;

pub use severity::{severity_of, severity_text};
pub use time::{TimeFormat, parse_time};

use crate::{
    component::{Apart, Data, Signals, Transform, TransformError},
    condition::{CONDITION_REGEX_BYTES_MAX, Field},
    error::ConfigError,
    metrics::{Counters, Fault},
    transform::attributes::{Attributes, TextColumn, Texts, get, text_of},
};

/// How the text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `TIME stdout|stderr F|P LINE`: time, body, and the attributes `stream` and, for a part of a line, `partial`.
    Cri,
    /// An object: its members become attributes.
    Json,
    /// `key=value key="a value"`: the pairs become attributes.
    Logfmt,
    /// Named captures become attributes.
    Regex,
    /// The field is the time.
    Timestamp,
    /// The field is the severity.
    Severity,
}

impl Format {
    /// As it stands in the configuration.
    const fn name(self) -> &'static str {
        match self {
            Format::Cri => "cri",
            Format::Json => "json",
            Format::Logfmt => "logfmt",
            Format::Regex => "regex",
            Format::Timestamp => "timestamp",
            Format::Severity => "severity",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub inputs: Vec<String>,
    pub format: Format,
    /// What to read: `.body` (default) or `.attrs.KEY`.
    #[serde(default)]
    pub field: Option<String>,
    /// Of format `regex`.
    #[serde(default)]
    pub pattern: Option<String>,
    /// `auto` (default: RFC 3339 or epoch), `rfc3339`, `unix_s`, `unix_ms`, `unix_us`, `unix_ns`, or a strftime pattern.
    #[serde(default)]
    pub time_format: Option<String>,
    /// Parsed member that becomes the time of the record.
    #[serde(default)]
    pub timestamp: Option<String>,
    /// Parsed member that becomes the body.
    #[serde(default)]
    pub message: Option<String>,
    /// Parsed member that becomes the severity.
    #[serde(default)]
    pub severity: Option<String>,
}

pub struct Parse {
    format: Format,
    /// Key of the attribute; `None`: the body.
    key: Option<String>,
    pattern: Option<Regex>,
    time: TimeFormat,
    timestamp: Option<String>,
    message: Option<String>,
    severity: Option<String>,
}

impl Parse {
    pub fn new(config: &Config, path: &str) -> Result<Parse, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut error =
            |field: &str, message: String| errors.push(ConfigError::new(format!("{path}.{field}"), message));
        let key = match config.field.as_deref().map(Field::parse) {
            None | Some(Ok(Field::Column("body"))) => None,
            Some(Ok(Field::Member { column: "attrs", key })) => Some(key),
            Some(Ok(_)) => {
                error("field", "can read `.body` and `.attrs.KEY` only".into());
                None
            }
            Some(Err(e)) => {
                error("field", e.to_string());
                None
            }
        };
        let pattern = match (config.format, &config.pattern) {
            (Format::Regex, None) => {
                error(
                    "pattern",
                    "format `regex` needs a pattern with named captures such as `(?<status>\\d+)`".into(),
                );
                None
            }
            (Format::Regex, Some(p)) => match RegexBuilder::new(p).size_limit(CONDITION_REGEX_BYTES_MAX).build() {
                Ok(r) if r.capture_names().flatten().next().is_none() => {
                    error("pattern", "has no named captures such as `(?<status>\\d+)`".into());
                    None
                }
                Ok(r) => Some(r),
                Err(e) => {
                    error("pattern", format!("invalid regular expression: {e}"));
                    None
                }
            },
            (_, Some(_)) => {
                error("pattern", "is for format `regex` only".into());
                None
            }
            (_, None) => None,
        };
        let time = match config.time_format.as_deref().map(TimeFormat::parse) {
            None => TimeFormat::Auto,
            Some(Ok(f)) => f,
            Some(Err(e)) => {
                error("time_format", e);
                TimeFormat::Auto
            }
        };
        if !matches!(config.format, Format::Json | Format::Logfmt | Format::Regex) {
            for (name, set) in
                [("timestamp", &config.timestamp), ("message", &config.message), ("severity", &config.severity)]
            {
                if set.is_some() {
                    error(name, "is for the formats `json`, `logfmt` and `regex` only".into());
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Parse {
            format: config.format,
            key,
            pattern,
            time,
            timestamp: config.timestamp.clone(),
            message: config.message.clone(),
            severity: config.severity.clone(),
        })
    }

    /// What the text says; `None` when it is not of the format.
    fn read<'a>(&self, text: &'a str) -> Option<Found<'a>> {
        let mut found = Found::default();
        match self.format {
            Format::Cri => return text::cri(text),
            Format::Timestamp => {
                found.ts = Some(parse_time(text, &self.time)?);
                return Some(found);
            }
            Format::Severity => {
                found.severity = Some(severity_of(text)?);
                return Some(found);
            }
            Format::Json => found.attributes = Attributes::parse(text)?,
            Format::Logfmt => found.attributes = text::logfmt(text)?,
            Format::Regex => {
                let pattern = self.pattern.as_ref()?;
                let captures = pattern.captures(text)?;
                for name in pattern.capture_names().flatten() {
                    if let Some(m) = captures.name(name) {
                        found.attributes.set_text(Cow::Owned(name.to_owned()), m.as_str());
                    }
                }
            }
        }
        // A member that cannot be used for its purpose stays an attribute.
        let found_text = |a: &Attributes<'_>, name: &Option<String>| {
            name.as_ref().and_then(|n| a.get_text(n)).map(Cow::into_owned)
        };
        if let Some(t) = found_text(&found.attributes, &self.timestamp).and_then(|t| parse_time(&t, &self.time)) {
            found.ts = Some(t);
            found.attributes.remove(self.timestamp.as_deref().unwrap_or_default());
        }
        if let Some(s) = found_text(&found.attributes, &self.severity).and_then(|s| severity_of(&s)) {
            found.severity = Some(s);
            found.attributes.remove(self.severity.as_deref().unwrap_or_default());
        }
        if let Some(m) = found_text(&found.attributes, &self.message) {
            found.body = Some(Cow::Owned(m));
            found.attributes.remove(self.message.as_deref().unwrap_or_default());
        }
        Some(found)
    }
}

/// What was read from one text.
#[derive(Default)]
struct Found<'a> {
    ts: Option<i64>,
    body: Option<Cow<'a, str>>,
    severity: Option<(i32, String)>,
    attributes: Attributes<'a>,
}

impl Transform for Parse {
    fn signals(&self) -> Signals {
        Signals::LOGS
    }

    fn apply(&self, data: Data, counters: &Counters) -> Result<Data, TransformError> {
        match data {
            Data::Logs(rows) => self.rows(rows, counters).map(|(rows, _)| Data::Logs(rows)),
            other => Ok(other),
        }
    }

    fn apply_apart(&self, data: Data, counters: &Counters) -> Result<Apart, TransformError> {
        let Data::Logs(rows) = data else { return Ok(Apart { data, unread: None, settle: None }) };
        let (rows, unread) = self.rows(rows, counters)?;
        if unread.is_empty() {
            return Ok(Apart { data: Data::Logs(rows), unread: None, settle: None });
        }
        let mut keep = vec![true; rows.num_rows()];
        unread.iter().for_each(|row| keep[*row] = false);
        let apart: BooleanArray = keep.iter().map(|k| Some(!k)).collect();
        let apart = Data::Logs(filter_record_batch(&rows, &apart)?);
        let kept = Data::Logs(filter_record_batch(&rows, &BooleanArray::from(keep))?);
        let what = match &self.key {
            None => "the body".to_owned(),
            Some(key) => format!("attribute {key}"),
        };
        let why = format!("{what} does not parse as {}", self.format.name());
        Ok(Apart { data: kept, unread: Some((apart, why)), settle: None })
    }
}

impl Parse {
    /// The rows in their order, and the numbers of those that stayed as they were because they do not parse.
    fn rows(&self, rows: RecordBatch, counters: &Counters) -> Result<(RecordBatch, Vec<usize>), TransformError> {
        let mut out = Columns::new(&rows)?;
        let mut unread = Vec::new();
        // Attributes of many rows are the same text; a body hardly ever is.
        let mut seen: HashMap<usize, Attributes<'_>> = HashMap::new();
        let attrs = Texts::new(&out.attrs_in).ok_or_else(|| TransformError("column `attrs` is not text".into()))?;
        let bodies = out.body_in.as_string::<i32>();
        let writes_attrs = !matches!(self.format, Format::Timestamp | Format::Severity);
        let writes_body = self.format == Format::Cri || self.message.is_some();
        let mut next = Next::like(&out, writes_attrs, writes_body);
        for row in 0..rows.num_rows() {
            let text = match &self.key {
                None => Some(Cow::Borrowed(bodies.value(row))),
                Some(key) => attrs.row(row).and_then(|json| get(json, key)).map(text_of),
            };
            match text.as_deref().and_then(|t| self.read(t)) {
                None => {
                    unread.push(row);
                    next.keep(bodies.value(row), attrs.row(row));
                }
                Some(found) => {
                    let known = attrs.slot(row).map(|slot| {
                        &*seen.entry(slot).or_insert_with(|| Attributes::read(attrs.value(slot).unwrap_or("{}")))
                    });
                    next.write(row, found, bodies.value(row), attrs.row(row), known);
                }
            }
        }
        if !unread.is_empty() {
            counters.fault(Fault::Unparsed, unread.len() as u64);
        }
        let done = next.finish();
        Ok((out.replace(done)?, unread))
    }
}

/// The columns that a parse may change.
struct Columns {
    rows: RecordBatch,
    attrs_in: ArrayRef,
    body_in: ArrayRef,
    body_type_in: ArrayRef,
    ts_in: ArrayRef,
    number_in: ArrayRef,
    text_in: ArrayRef,
}

impl Columns {
    fn new(rows: &RecordBatch) -> Result<Self, TransformError> {
        let column = |name: &str| {
            rows.column_by_name(name)
                .cloned()
                .ok_or_else(|| TransformError(format!("the rows have no column `{name}`")))
        };
        Ok(Columns {
            rows: rows.clone(),
            attrs_in: column("attrs")?,
            body_in: column("body")?,
            body_type_in: column("body_type")?,
            ts_in: column("ts")?,
            number_in: column("severity_number")?,
            text_in: column("severity_text")?,
        })
    }

    fn replace(&mut self, next: Replaced) -> Result<RecordBatch, TransformError> {
        let schema = self.rows.schema();
        let mut columns = self.rows.columns().to_vec();
        for (name, array) in next {
            columns[schema.index_of(name)?] = array;
        }
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

type Replaced = Vec<(&'static str, ArrayRef)>;

/// The changed columns under construction. Those that nothing changed are given back as they were, unbuilt.
struct Next {
    /// `None`: this parse never writes the column.
    attrs: Option<TextColumn>,
    body: Option<TextColumn>,
    ts: Vec<i64>,
    /// Rows whose body was replaced, with the wish to be plain text.
    new_body: Vec<bool>,
    severity: Vec<Option<(i32, String)>>,
    old: (ArrayRef, ArrayRef, ArrayRef),
    changed: Changed,
}

#[derive(Default)]
struct Changed {
    attrs: bool,
    body: bool,
    ts: bool,
    severity: bool,
}

impl Next {
    fn like(c: &Columns, writes_attrs: bool, writes_body: bool) -> Self {
        Next {
            attrs: writes_attrs.then(|| TextColumn::like(&c.attrs_in)),
            body: writes_body.then(|| TextColumn::like(&c.body_in)),
            ts: c.ts_in.as_primitive::<TimestampNanosecondType>().values().to_vec(),
            new_body: Vec::with_capacity(c.rows.num_rows()),
            severity: Vec::with_capacity(c.rows.num_rows()),
            old: (c.body_type_in.clone(), c.number_in.clone(), c.text_in.clone()),
            changed: Changed::default(),
        }
    }

    fn keep(&mut self, body: &str, attrs: Option<&str>) {
        self.push_attrs(attrs);
        self.push_body(body);
        self.new_body.push(false);
        self.severity.push(None);
    }

    fn write(
        &mut self,
        row: usize,
        found: Found<'_>,
        body: &str,
        attrs: Option<&str>,
        known: Option<&Attributes<'_>>,
    ) {
        if found.attributes.is_empty() {
            self.push_attrs(attrs);
        } else {
            self.changed.attrs = true;
            match known {
                Some(k) if !k.is_empty() => {
                    self.push_attrs(Some(&k.to_json_with(&found.attributes)));
                }
                _ => self.push_attrs(Some(&found.attributes.to_json())),
            }
        }
        self.changed.body |= found.body.is_some();
        self.new_body.push(found.body.is_some());
        self.push_body(found.body.as_deref().unwrap_or(body));
        if let Some(ts) = found.ts {
            self.changed.ts = true;
            self.ts[row] = ts;
        }
        self.changed.severity |= found.severity.is_some();
        self.severity.push(found.severity);
    }

    fn push_attrs(&mut self, value: Option<&str>) {
        if let Some(column) = &mut self.attrs {
            column.push(value);
        }
    }

    fn push_body(&mut self, value: &str) {
        if let Some(column) = &mut self.body {
            column.push(Some(value));
        }
    }

    fn finish(self) -> Replaced {
        let mut out: Replaced = Vec::new();
        let (body_type, number, text) = &self.old;
        if let Some(attrs) = self.attrs.filter(|_| self.changed.attrs) {
            out.push(("attrs", attrs.finish()));
        }
        if let Some(body) = self.body.filter(|_| self.changed.body) {
            out.push(("body", body.finish()));
            if body_type.null_count() < body_type.len() {
                let mut types = TextColumn::like(body_type);
                if let Some(old) = Texts::new(body_type) {
                    for (row, new) in self.new_body.iter().enumerate() {
                        types.push(if *new { None } else { old.row(row) });
                    }
                    out.push(("body_type", types.finish()));
                }
            }
        }
        if self.changed.ts {
            out.push(("ts", Arc::new(TimestampNanosecondArray::from(self.ts).with_timezone("UTC"))));
        }
        if self.changed.severity {
            let old = number.as_primitive::<Int32Type>();
            let numbers: Int32Array = self
                .severity
                .iter()
                .enumerate()
                .map(|(i, s)| s.as_ref().map(|s| s.0).or_else(|| old.is_valid(i).then(|| old.value(i))))
                .collect();
            out.push(("severity_number", Arc::new(numbers)));
            if let Some(old) = Texts::new(text) {
                let mut texts = TextColumn::like(text);
                for (i, s) in self.severity.iter().enumerate() {
                    texts.push(s.as_ref().map(|s| s.1.as_str()).or_else(|| old.row(i)));
                }
                out.push(("severity_text", texts.finish()));
            }
        }
        out
    }
}
