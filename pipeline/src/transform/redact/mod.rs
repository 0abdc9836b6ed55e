//! `redact`: replaces what must not be stored, by named patterns (e-mail addresses, card numbers, bearer tokens, IP
//! addresses) and by regular expressions, in bodies and attributes. Names of attributes stay as they are.
//!
//! In JSON every text and every number is looked at, however deep. Rather one replacement too many than one too few:
//! the patterns do not ask whether an address belongs to a person.

mod patterns;
#[cfg(test)]
mod tests;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use storage::model::json::write_string;

use self::patterns::Named;
use crate::{
    component::{Data, Signals, Transform, TransformError},
    condition::{CONDITION_REGEX_BYTES_MAX, Field},
    error::ConfigError,
    metrics::{Change, Counters},
    transform::{
        attributes::{Attributes, TextColumn, Texts, text_of},
        choice::{Signal, Treats},
        key::Part,
        series,
    },
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub inputs: Vec<String>,
    /// `email`, `card`, `bearer`, `ip`, `ipv4`, `ipv6`: each leaves its name in brackets, `[email]`.
    #[serde(default)]
    pub patterns: Vec<Named>,
    /// Expressions of your own, after the named ones.
    #[serde(default)]
    pub expressions: Vec<Expression>,
    /// Where to look; by default wherever the signal has text from outside.
    #[serde(default)]
    pub fields: Option<Vec<String>>,
    #[serde(default)]
    pub signals: Option<Vec<Signal>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expression {
    pub regex: String,
    /// `$1` and `${name}` are what the groups hold.
    #[serde(default = "replacement_default")]
    pub replacement: String,
}

fn replacement_default() -> String {
    "[redacted]".into()
}

/// Looked at when the configuration names no fields.
const FIELDS_DEFAULT: [&str; 8] =
    [".body", ".attrs", ".resource", ".name", ".status_message", ".events", ".links", ".labels"];

pub struct Redact {
    replacer: Replacer,
    fields: Vec<Part>,
    treats: Treats,
}

/// The patterns, one after the other.
struct Replacer {
    named: Vec<Named>,
    expressions: Vec<(Regex, String)>,
}

impl Redact {
    pub fn new(config: &Config, path: &str) -> Result<Redact, Vec<ConfigError>> {
        let mut errors = Vec::new();
        if config.patterns.is_empty() && config.expressions.is_empty() {
            errors.push(ConfigError::new(path, "needs `patterns` or `expressions`"));
        }
        let mut expressions = Vec::with_capacity(config.expressions.len());
        for (i, e) in config.expressions.iter().enumerate() {
            match RegexBuilder::new(&e.regex).size_limit(CONDITION_REGEX_BYTES_MAX).build() {
                Ok(regex) => expressions.push((regex, e.replacement.clone())),
                Err(e) => {
                    let text = e.to_string();
                    let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                    errors.push(ConfigError::new(
                        format!("{path}.expressions[{i}].regex"),
                        format!("invalid regular expression: {last}"),
                    ));
                }
            }
        }
        let names = config.fields.clone().unwrap_or_else(|| FIELDS_DEFAULT.iter().map(|f| (*f).to_owned()).collect());
        if names.is_empty() {
            errors.push(ConfigError::new(format!("{path}.fields"), "names no field"));
        }
        let mut fields = Vec::with_capacity(names.len());
        for (i, name) in names.iter().enumerate() {
            let at = format!("{path}.fields[{i}]");
            match Part::parse(name, &at) {
                Ok(Part::Field(Field::Column(column))) if !TEXT_COLUMNS.contains(&column) => {
                    errors.push(ConfigError::new(at, format!("`.{column}` holds no text that could be redacted")));
                }
                Ok(part) => fields.push(part),
                Err(e) => errors.push(e),
            }
        }
        let able = fields.iter().fold(Signals::NONE, |s, f| s.or(f.signals()));
        let treats = Treats::new(config.signals.as_deref(), able, path, &mut errors);
        let replacer = Replacer { named: config.patterns.clone(), expressions };
        if errors.is_empty() { Ok(Redact { replacer, fields, treats }) } else { Err(errors) }
    }

    fn rows(&self, rows: RecordBatch, count: &mut u64) -> Result<RecordBatch, TransformError> {
        let schema = rows.schema();
        let mut columns = rows.columns().to_vec();
        let body_types = rows.column_by_name("body_type").cloned();
        for field in &self.fields {
            // A field that only other signals have.
            let Ok(at) = schema.index_of(field.column()) else { continue };
            columns[at] = match field {
                Part::Field(Field::Column("body")) => self.body(&columns[at], body_types.as_ref(), count),
                Part::Field(Field::Column(_)) => self.texts(&columns[at], count),
                Part::Field(Field::Member { key, .. }) => self.member(&columns[at], key, count),
                Part::Set(_) => self.sets(&columns[at], count),
            };
        }
        Ok(RecordBatch::try_new(schema, columns)?)
    }

    fn texts(&self, column: &ArrayRef, count: &mut u64) -> ArrayRef {
        map_counted(column, count, |text| self.replacer.text(text))
    }

    fn sets(&self, column: &ArrayRef, count: &mut u64) -> ArrayRef {
        map_counted(column, count, |json| self.replacer.json(json))
    }

    fn member(&self, column: &ArrayRef, key: &str, count: &mut u64) -> ArrayRef {
        map_counted(column, count, |json| {
            let mut set = Attributes::read(json);
            let (new, n) = self.replacer.json(set.get(key)?)?;
            set.set_json(key.into(), new.into());
            Some((set.to_json(), n))
        })
    }

    /// A body is text, or the JSON of another value.
    fn body(&self, column: &ArrayRef, types: Option<&ArrayRef>, count: &mut u64) -> ArrayRef {
        let bodies = column.as_string::<i32>();
        let is_json = |row: usize| types.is_some_and(|t| t.is_valid(row));
        let mut out: Option<TextColumn> = None;
        for row in 0..bodies.len() {
            let old = bodies.value(row);
            let new = if is_json(row) { self.replacer.json(old) } else { self.replacer.text(old) };
            if new.is_some() && out.is_none() {
                let mut column = TextColumn::like(column);
                (0..row).for_each(|r| column.push(Some(bodies.value(r))));
                out = Some(column);
            }
            *count += new.as_ref().map_or(0, |(_, n)| *n);
            if let Some(out) = &mut out {
                out.push(Some(new.as_ref().map_or(old, |(text, _)| text)));
            }
        }
        out.map_or_else(|| column.clone(), TextColumn::finish)
    }
}

/// Columns of plain text that may be named.
const TEXT_COLUMNS: [&str; 10] = [
    "body",
    "severity_text",
    "event_name",
    "service_name",
    "scope_name",
    "name",
    "status_message",
    "trace_state",
    "help",
    "unit",
];

impl Replacer {
    /// The new text and how many pieces were replaced; `None` when there are none.
    fn text(&self, text: &str) -> Option<(String, u64)> {
        let mut new: Option<String> = None;
        let mut count = 0;
        for named in &self.named {
            if let Some((replaced, n)) = named.replace(new.as_deref().unwrap_or(text)) {
                new = Some(replaced);
                count += n;
            }
        }
        for (regex, replacement) in &self.expressions {
            let now = new.as_deref().unwrap_or(text);
            let n = regex.find_iter(now).count() as u64;
            if n > 0 {
                new = Some(regex.replace_all(now, replacement.as_str()).into_owned());
                count += n;
            }
        }
        new.map(|text| (text, count))
    }

    /// The same for each text and number in canonical JSON; a number in which something was found becomes text.
    fn json(&self, json: &str) -> Option<(String, u64)> {
        let mut out = String::new();
        let mut count = 0;
        // What is before `done` is in `out` already.
        let (mut at, mut done) = (0, 0);
        let bytes = json.as_bytes();
        while at < bytes.len() {
            let end = match bytes[at] {
                b'"' => string_end(bytes, at),
                b'-' | b'0'..=b'9' => {
                    at + bytes[at..].iter().take_while(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b)).count()
                }
                _ => {
                    at += 1;
                    continue;
                }
            };
            let is_name = bytes[at] == b'"' && bytes.get(end) == Some(&b':');
            if !is_name && let Some((new, n)) = self.text(&text_of(&json[at..end])) {
                out.push_str(&json[done..at]);
                write_string(&mut out, &new);
                done = end;
                count += n;
            }
            at = end;
        }
        (count > 0).then(|| {
            out.push_str(&json[done..]);
            (out, count)
        })
    }
}

/// Where the string that opens at `at` ends.
fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut i = at + 1;
    while i < bytes.len() {
        match bytes[i] {
            b'"' => return i + 1,
            b'\\' => i += 2,
            _ => i += 1,
        }
    }
    bytes.len()
}

/// The column with each distinct value changed once; `count` grows by what was replaced in each row.
fn map_counted(
    column: &ArrayRef,
    count: &mut u64,
    mut change: impl FnMut(&str) -> Option<(String, u64)>,
) -> ArrayRef {
    let Some(texts) = Texts::new(column) else { return column.clone() };
    let mut found: Vec<(String, u64)> = Vec::new();
    // The place of each row's value in `found`, none where nothing was replaced.
    let places = texts.each(None, |text| {
        let new = change(text)?;
        found.push(new);
        Some(found.len() - 1)
    });
    if found.is_empty() {
        return column.clone();
    }
    let mut out = TextColumn::like(column);
    for (row, place) in places.into_iter().enumerate() {
        match place.map(|p| &found[p]) {
            Some((text, n)) => {
                *count += n;
                out.push(Some(text));
            }
            None => out.push(texts.row(row)),
        }
    }
    out.finish()
}

impl Transform for Redact {
    fn signals(&self) -> Signals {
        self.treats.signals
    }

    fn passes_others(&self) -> bool {
        self.treats.chosen
    }

    fn apply(&self, data: Data, counters: &Counters) -> Result<Data, TransformError> {
        let mut count = 0;
        let done = match data {
            Data::Logs(rows) => Data::Logs(self.rows(rows, &mut count)?),
            Data::Spans(rows) => Data::Spans(self.rows(rows, &mut count)?),
            Data::Metrics(mut m) => {
                m.series = self.descriptions(m.series, &mut count)?;
                let whole = self.fields.contains(&Part::Set("labels"));
                let keys: Vec<&str> = self
                    .fields
                    .iter()
                    .filter_map(|f| match f {
                        Part::Field(Field::Member { column: "labels", key }) => Some(key.as_str()),
                        _ => None,
                    })
                    .collect();
                Data::Metrics(series::relabel(m, |labels| {
                    let changed: Vec<(String, String)> = labels
                        .iter()
                        .filter(|(name, _)| (whole && *name != "__name__") || keys.contains(name))
                        .filter_map(|(name, value)| {
                            let (new, n) = self.replacer.text(value)?;
                            count += n;
                            Some((name.to_owned(), new))
                        })
                        .collect();
                    for (name, value) in changed {
                        labels.set(&name, value);
                    }
                    true
                })?)
            }
        };
        counters.changed(Change::Redacted, count);
        Ok(done)
    }
}

impl Redact {
    /// Texts of a series besides its labels.
    fn descriptions(&self, series: RecordBatch, count: &mut u64) -> Result<RecordBatch, TransformError> {
        let schema = series.schema();
        let mut columns = series.columns().to_vec();
        for field in &self.fields {
            if let Part::Field(Field::Column(name @ ("help" | "unit"))) = field {
                let at = schema.index_of(name)?;
                columns[at] = self.texts(&columns[at], count);
            }
        }
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}
