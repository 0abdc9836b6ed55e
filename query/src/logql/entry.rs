//! The label set of an entry, rebuilt from the columns of the logs table: stream labels, structured metadata and
//! `detected_level`.
//!
//! Which columns become metadata:
//! * `attrs`, whatever the row's origin;
//! * rows with OTLP origin (`resource_attrs`, `scope_name` or `scope_meta` is set): resource attributes that are not stream
//!   labels, scope name, version and attributes, and the record's severity, event name, flags, observed time and dropped count,
//!   under the names Loki's OTLP endpoint gives them;
//! * of other rows the severity columns are left out, because their text rests in `attrs` already under the sender's name;
//! * `trace_id` and `span_id` in lower-case hex, unless `attrs` has the name.
//!
//! A stream label hides metadata of the same name; of equal metadata names the record's attribute wins, then the scope's,
//! then the resource's.
//!
//! What repeats is computed once a *combination* of dictionary keys, never once a row.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryArray, Int32Array, Int64Array, RecordBatch, StringArray},
    datatypes::{Int32Type, Int64Type, TimestampNanosecondType},
};
use storage::{ScanError, model::Labels};

use super::{attrs, level};

/// Where a label of an entry comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Stream,
    Metadata,
    Parsed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub name: Arc<str>,
    pub value: Arc<str>,
    pub kind: Kind,
}

/// Which labels of an entry a query reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    All,
    /// Sorted.
    Names(Vec<String>),
}

impl Need {
    pub fn names(names: impl IntoIterator<Item = String>) -> Self {
        let mut names: Vec<String> = names.into_iter().collect();
        names.sort();
        names.dedup();
        Need::Names(names)
    }

    pub fn has(&self, name: &str) -> bool {
        match self {
            Need::All => true,
            Need::Names(n) => n.binary_search_by(|x| x.as_str().cmp(name)).is_ok(),
        }
    }

    pub fn merge(self, other: Need) -> Need {
        match (self, other) {
            (Need::Names(mut a), Need::Names(b)) => {
                a.extend(b);
                Need::names(a)
            }
            _ => Need::All,
        }
    }
}

/// Columns to request so that [`Entries`] can tell the labels in `need`, given the streams that will come.
pub fn columns(need: &Need, streams: &[Arc<Labels>]) -> Vec<&'static str> {
    let mut out = Vec::new();
    let Need::Names(names) = need else {
        out.extend(["stream_labels", "body", "resource_attrs", "scope_name", "scope_meta", "attrs", "severity_text"]);
        out.extend(["severity_number", "event_name", "flags", "observed_ts", "dropped_attributes_count"]);
        out.extend(["trace_id", "span_id"]);
        return out;
    };
    if names.is_empty() {
        return out;
    }
    out.push("stream_labels");
    // A label that every stream has cannot come from anywhere else.
    let open: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|n| streams.is_empty() || !streams.iter().all(|s| s.get(n).is_some()))
        .collect();
    if open.is_empty() {
        return out;
    }
    out.extend(["resource_attrs", "scope_name", "scope_meta", "attrs"]);
    let detected = open.contains(&level::DETECTED_LEVEL);
    for (name, column) in [
        ("severity_text", "severity_text"),
        ("severity_number", "severity_number"),
        ("event_name", "event_name"),
        ("flags", "flags"),
        ("observed_timestamp", "observed_ts"),
        ("dropped_attributes_count", "dropped_attributes_count"),
        ("trace_id", "trace_id"),
        ("span_id", "span_id"),
    ] {
        if open.contains(&name) || (detected && name.starts_with("severity")) {
            out.push(column);
        }
    }
    if detected {
        out.push("body");
    }
    out
}

/// A dictionary column; keys of null rows are -1.
struct Dict<'a> {
    keys: &'a Int32Array,
    values: &'a StringArray,
}

impl<'a> Dict<'a> {
    fn key(&self, row: usize) -> i32 {
        if self.keys.is_null(row) { -1 } else { self.keys.value(row) }
    }

    fn value(&self, key: i32) -> Option<&'a str> {
        usize::try_from(key).ok().filter(|k| self.values.is_valid(*k)).map(|k| self.values.value(k))
    }
}

/// Dictionary columns in the order of a combination's keys.
const DICTS: [&str; 7] =
    ["stream_labels", "attrs", "resource_attrs", "scope_name", "scope_meta", "severity_text", "event_name"];
const STREAM: usize = 0;
const ATTRS: usize = 1;
const RESOURCE: usize = 2;
const SCOPE_NAME: usize = 3;
const SCOPE_META: usize = 4;
const SEVERITY_TEXT: usize = 5;
const EVENT: usize = 6;

/// The keys of one combination: dictionaries, then the severity number (`i32::MIN` for null).
type Keys = [i32; 8];

/// Up to so many names looking at each is cheaper than a set.
const FEW_NAMES: usize = 32;

/// Labels that all rows of one combination share.
pub struct Combination {
    /// Only those in the need; without `detected_level`. Sorted by name.
    pub labels: Vec<Label>,
    otlp: bool,
    has_trace: bool,
    has_span: bool,
    /// What labels and metadata say of the level; `None`: ask the line.
    level: Option<Arc<str>>,
    /// `detected_level` is a stream label.
    level_is_stream: bool,
}

/// The entries of one batch.
pub struct Entries<'a> {
    need: &'a Need,
    dicts: [Option<Dict<'a>>; 7],
    severity: Option<&'a Int32Array>,
    trace: Option<&'a BinaryArray>,
    span: Option<&'a BinaryArray>,
    flags: Option<&'a Int64Array>,
    dropped: Option<&'a Int64Array>,
    observed: Option<&'a [i64]>,
    observed_nulls: Option<&'a arrow::buffer::NullBuffer>,
    body: Option<&'a StringArray>,
    wants_level: bool,
    streams: HashMap<i32, Arc<Labels>>,
    index: HashMap<Keys, u32>,
    last: Option<(Keys, u32)>,
    pub combinations: Vec<Combination>,
}

/// The columns of a batch that may be looked at.
struct View<'a, 'c> {
    batch: &'a RecordBatch,
    columns: &'c [&'c str],
}

impl<'a> View<'a, '_> {
    fn column(&self, name: &str) -> Option<&'a ArrayRef> {
        if self.columns.contains(&name) { self.batch.column_by_name(name) } else { None }
    }

    fn typed<T: 'static>(&self, name: &str) -> Result<Option<&'a T>, ScanError> {
        match self.column(name) {
            None => Ok(None),
            Some(c) => match c.as_any().downcast_ref::<T>() {
                Some(t) => Ok(Some(t)),
                None => Err(ScanError::Internal(format!("column {name} has type {}", c.data_type()))),
            },
        }
    }

    fn dict(&self, name: &str) -> Result<Option<Dict<'a>>, ScanError> {
        let Some(column) = self.column(name) else { return Ok(None) };
        let wrong = || ScanError::Internal(format!("column {name} is not a dictionary of strings"));
        let d = column.as_dictionary_opt::<Int32Type>().ok_or_else(wrong)?;
        Ok(Some(Dict { keys: d.keys(), values: d.values().as_string_opt::<i32>().ok_or_else(wrong)? }))
    }
}

impl<'a> Entries<'a> {
    /// `columns` is what [`columns`] answered for `need`; others are not looked at, absent ones count as null.
    pub fn new(batch: &'a RecordBatch, need: &'a Need, columns: &[&str]) -> Result<Self, ScanError> {
        let view = View { batch, columns };
        let mut dicts = [const { None }; 7];
        for (slot, name) in dicts.iter_mut().zip(DICTS) {
            *slot = view.dict(name)?;
        }
        let observed = view.column("observed_ts").and_then(|c| c.as_primitive_opt::<TimestampNanosecondType>());
        Ok(Entries {
            need,
            dicts,
            severity: view.typed("severity_number")?,
            trace: view.typed("trace_id")?,
            span: view.typed("span_id")?,
            flags: view.column("flags").and_then(|c| c.as_primitive_opt::<Int64Type>()),
            dropped: view.column("dropped_attributes_count").and_then(|c| c.as_primitive_opt::<Int64Type>()),
            observed: observed.map(|o| o.values().as_ref()),
            observed_nulls: observed.and_then(|o| o.nulls()),
            body: view.typed("body")?,
            wants_level: need.has(level::DETECTED_LEVEL),
            streams: HashMap::new(),
            index: HashMap::new(),
            last: None,
            combinations: Vec::new(),
        })
    }

    /// The combination of a row, as an index into [`Entries::combinations`].
    pub fn combination(&mut self, row: usize) -> u32 {
        let mut keys: Keys = [-1; 8];
        for (key, dict) in keys.iter_mut().zip(&self.dicts) {
            if let Some(d) = dict {
                *key = d.key(row);
            }
        }
        keys[7] = match self.severity {
            Some(s) if s.is_valid(row) => s.value(row),
            _ => i32::MIN,
        };
        if let Some((last, index)) = &self.last
            && *last == keys
        {
            return *index;
        }
        let index = match self.index.get(&keys) {
            Some(i) => *i,
            None => {
                let i = u32::try_from(self.combinations.len()).expect("a batch has fewer than 2^32 rows");
                let combination = self.build(&keys);
                self.combinations.push(combination);
                self.index.insert(keys, i);
                i
            }
        };
        self.last = Some((keys, index));
        index
    }

    fn text(&self, column: usize, keys: &Keys) -> Option<&'a str> {
        self.dicts[column].as_ref().and_then(|d| d.value(keys[column]))
    }

    fn build(&mut self, keys: &Keys) -> Combination {
        let json = self.text(STREAM, keys).unwrap_or("{}");
        let stream = self
            .streams
            .entry(keys[STREAM])
            .or_insert_with(|| Arc::new(Labels::from_json(json).unwrap_or_default()))
            .clone();
        let mut meta: Vec<(String, String)> = Vec::new();
        // Names in `meta`, once it has more than a few.
        let mut known: HashSet<String> = HashSet::new();
        let mut add = |meta: &mut Vec<(String, String)>, name: &str, value: &str| {
            if meta.len() == FEW_NAMES {
                known.extend(meta.iter().map(|(n, _)| n.clone()));
            }
            let is_there =
                if meta.len() < FEW_NAMES { meta.iter().any(|(n, _)| n == name) } else { known.contains(name) };
            if stream.get(name).is_none() && !is_there {
                if meta.len() >= FEW_NAMES {
                    known.insert(name.to_owned());
                }
                meta.push((name.to_owned(), value.to_owned()));
            }
        };
        if let Some(json) = self.text(ATTRS, keys) {
            attrs::for_each(json, &mut |n, v| add(&mut meta, n, v));
        }
        let (resource, scope, scope_meta) =
            (self.text(RESOURCE, keys), self.text(SCOPE_NAME, keys), self.text(SCOPE_META, keys));
        let otlp = resource.is_some() || scope.is_some() || scope_meta.is_some();
        if otlp {
            for (name, value) in [
                ("scope_name", scope),
                ("severity_text", self.text(SEVERITY_TEXT, keys)),
                ("event_name", self.text(EVENT, keys)),
            ] {
                if let Some(v) = value.filter(|v| !v.is_empty()) {
                    add(&mut meta, name, v);
                }
            }
            if keys[7] != i32::MIN && keys[7] != 0 {
                add(&mut meta, "severity_number", &keys[7].to_string());
            }
            if let Some(json) = scope_meta {
                scope_labels(json, &mut |n, v| add(&mut meta, n, v));
            }
            if let Some(json) = resource {
                attrs::for_each(json, &mut |n, v| add(&mut meta, n, v));
            }
        }
        let level = if self.wants_level {
            level::from_labels(stream.iter(), meta.iter().map(|(n, v)| (n.as_str(), v.as_str()))).map(Arc::from)
        } else {
            None
        };
        let has = |name: &str| stream.get(name).is_some() || meta.iter().any(|(n, _)| n == name);
        let (has_trace, has_span) = (has("trace_id"), has("span_id"));
        let mut labels: Vec<Label> = Vec::new();
        let all = stream
            .iter()
            .map(|(n, v)| (n, v, Kind::Stream))
            .chain(meta.iter().map(|(n, v)| (n.as_str(), v.as_str(), Kind::Metadata)));
        for (name, value, kind) in all {
            if self.need.has(name) && !(name == level::DETECTED_LEVEL && kind == Kind::Metadata) {
                labels.push(Label { name: name.into(), value: value.into(), kind });
            }
        }
        labels.sort_by(|a, b| a.name.cmp(&b.name));
        let level_is_stream = stream.get(level::DETECTED_LEVEL).is_some();
        Combination { labels, otlp, has_trace, has_span, level, level_is_stream }
    }

    /// Index of the row's level: 0 if it is told by the combination or not wanted, else 1 + index into
    /// [`level::LEVELS`].
    pub fn line_level(&self, row: usize, combination: u32) -> u8 {
        let c = &self.combinations[combination as usize];
        if !self.wants_level || c.level.is_some() || c.level_is_stream {
            return 0;
        }
        1 + self.body.map_or(0, |b| level::from_line(b.value(row)))
    }

    /// Whether rows of one combination and line level may still differ in the labels needed.
    pub fn has_row_labels(&self) -> bool {
        [("trace_id", self.trace.is_some()), ("span_id", self.span.is_some())]
            .iter()
            .any(|(n, p)| *p && self.need.has(n))
            || (self.flags.is_some() && self.need.has("flags"))
            || (self.dropped.is_some() && self.need.has("dropped_attributes_count"))
            || (self.observed.is_some() && self.need.has("observed_timestamp"))
    }

    /// All needed labels of a row, sorted by name.
    pub fn labels(&mut self, row: usize) -> Vec<Label> {
        let index = self.combination(row);
        let line_level = self.line_level(row, index);
        let c = &self.combinations[index as usize];
        let mut out = c.labels.clone();
        let mut add = |name: &str, value: &str| {
            if self.need.has(name)
                && let Err(at) = out.binary_search_by(|l| (*l.name).cmp(name))
            {
                out.insert(at, Label { name: name.into(), value: value.into(), kind: Kind::Metadata });
            }
        };
        if self.wants_level && !c.level_is_stream {
            match (&c.level, line_level) {
                (Some(l), _) => add(level::DETECTED_LEVEL, l),
                (None, n) => add(level::DETECTED_LEVEL, level::LEVELS[usize::from(n.max(1) - 1)]),
            }
        }
        for (name, array, has) in [("trace_id", self.trace, c.has_trace), ("span_id", self.span, c.has_span)] {
            if let Some(a) = array
                && !has
                && a.is_valid(row)
                && a.value(row).iter().any(|b| *b != 0)
            {
                add(name, &hex::encode(a.value(row)));
            }
        }
        if c.otlp {
            for (name, array) in [("flags", self.flags), ("dropped_attributes_count", self.dropped)] {
                if let Some(a) = array
                    && a.is_valid(row)
                    && a.value(row) != 0
                {
                    add(name, &a.value(row).to_string());
                }
            }
            if let Some(o) = self.observed
                && self.observed_nulls.is_none_or(|n| n.is_valid(row))
                && o[row] != 0
            {
                add("observed_timestamp", &o[row].to_string());
            }
        }
        out
    }
}

/// `version`, `attributes` and `dropped_attributes_count` of a scope under Loki's names.
fn scope_labels(json: &str, f: &mut dyn FnMut(&str, &str)) {
    let Ok(serde_json::Value::Object(map)) = serde_json::from_str(json) else { return };
    for (key, value) in &map {
        match (key.as_str(), value) {
            ("version", serde_json::Value::String(v)) if !v.is_empty() => f("scope_version", v),
            ("dropped_attributes_count", v) if v.as_i64().is_some_and(|n| n != 0) => {
                f("scope_dropped_attributes_count", &v.to_string());
            }
            ("attributes", v) => attrs::for_each(&v.to_string(), f),
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
