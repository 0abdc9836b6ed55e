//! `set`, `rename` and `remove`: attributes, resource attributes, stream labels, and the labels of metric series.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use arrow::array::{ArrayRef, RecordBatch};
use serde::Deserialize;
use storage::model::json::{write_double, write_string};

use crate::{
    component::{Data, Signals, Transform, TransformError},
    condition::Field,
    error::ConfigError,
    metrics::Counters,
    transform::{
        attributes::{Attributes, TextColumn, Texts, map_texts, text_of},
        series,
    },
};

/// `set`: gives fields a value, whether they had one or not.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetConfig {
    pub inputs: Vec<String>,
    /// `.attrs.env: prod`. Stream and series labels are texts; an empty text removes them.
    pub fields: BTreeMap<String, Scalar>,
}

/// `rename`: moves a value, also from one set to another (`.attrs.container: .stream.container`).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenameConfig {
    pub inputs: Vec<String>,
    /// From: to. A field that is absent changes nothing; what was at the new name is replaced.
    pub fields: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveConfig {
    pub inputs: Vec<String>,
    pub fields: Vec<String>,
}

/// A value in the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    Bool(bool),
    Integer(i64),
    Double(f64),
    Text(String),
}

impl Scalar {
    fn to_json(&self) -> String {
        let mut out = String::new();
        match self {
            Scalar::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Scalar::Integer(i) => out.push_str(&i.to_string()),
            Scalar::Double(d) => write_double(&mut out, *d),
            Scalar::Text(t) => write_string(&mut out, t),
        }
        out
    }
}

/// A member of a JSON column.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    column: &'static str,
    key: String,
    signals: Signals,
}

impl Place {
    /// Stream labels and series labels are texts and never empty.
    fn holds_labels(&self) -> bool {
        matches!(self.column, "stream_labels" | "labels")
    }
}

#[derive(Clone, Debug)]
enum Change {
    /// The value as JSON.
    Set(Place, String),
    Move(Place, Place),
    Remove(Place),
}

/// A list of changes, one after the other.
pub struct Edit {
    changes: Vec<Change>,
    signals: Signals,
}

fn place(text: &str, path: &str, errors: &mut Vec<ConfigError>) -> Option<Place> {
    match Field::parse(text) {
        Ok(field) => {
            let signals = field.signals();
            match field {
                Field::Member { column, key } => return Some(Place { column, key, signals }),
                Field::Column(name) => errors.push(ConfigError::new(
                    path,
                    format!("`.{name}` cannot be changed here; the fields are .attrs.KEY .resource.KEY .stream.KEY .labels.KEY"),
                )),
            }
        }
        Err(e) => {
            let mut error = ConfigError::new(path, e.to_string());
            error.nearest = e.nearest;
            errors.push(error);
        }
    }
    None
}

impl Edit {
    fn new(changes: Vec<Change>, path: &str, mut errors: Vec<ConfigError>) -> Result<Edit, Vec<ConfigError>> {
        if changes.is_empty() && errors.is_empty() {
            errors.push(ConfigError::new(format!("{path}.fields"), "names no field"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let signals = changes.iter().fold(Signals::NONE, |s, c| {
            s.or(match c {
                Change::Set(p, _) | Change::Remove(p) => p.signals,
                Change::Move(a, b) => a.signals.and(b.signals),
            })
        });
        Ok(Edit { changes, signals })
    }

    pub fn set(config: &SetConfig, path: &str) -> Result<Edit, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut changes = Vec::new();
        for (name, value) in &config.fields {
            if let Some(p) = place(name, &format!("{path}.fields.{name}"), &mut errors) {
                changes.push(Change::Set(p, value.to_json()));
            }
        }
        Edit::new(changes, path, errors)
    }

    pub fn rename(config: &RenameConfig, path: &str) -> Result<Edit, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut changes = Vec::new();
        for (from, to) in &config.fields {
            let at = format!("{path}.fields.{from}");
            if let (Some(a), Some(b)) = (place(from, &at, &mut errors), place(to, &at, &mut errors)) {
                if a.signals.and(b.signals).is_none() {
                    errors.push(ConfigError::new(at, format!("no signal has both `{from}` and `{to}`")));
                } else if a != b {
                    changes.push(Change::Move(a, b));
                }
            }
        }
        Edit::new(changes, path, errors)
    }

    pub fn remove(config: &RemoveConfig, path: &str) -> Result<Edit, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut changes = Vec::new();
        for (i, name) in config.fields.iter().enumerate() {
            if let Some(p) = place(name, &format!("{path}.fields[{i}]"), &mut errors) {
                changes.push(Change::Remove(p));
            }
        }
        Edit::new(changes, path, errors)
    }

    fn rows(&self, rows: RecordBatch) -> Result<RecordBatch, TransformError> {
        let schema = rows.schema();
        let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
        for change in &self.changes {
            match change {
                Change::Set(p, value) => one(&schema, &mut columns, p, |a| put(a, p, value)),
                Change::Remove(p) => one(&schema, &mut columns, p, |a| drop(a.remove(&p.key))),
                Change::Move(from, to) if from.column == to.column => one(&schema, &mut columns, from, |a| {
                    if let Some(value) = a.remove(&from.key) {
                        put(a, to, &value);
                    }
                }),
                Change::Move(from, to) => across(&schema, &mut columns, from, to),
            }
        }
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

impl Transform for Edit {
    fn signals(&self) -> Signals {
        self.signals
    }

    fn apply(&self, data: Data, _counters: &Counters) -> Result<Data, TransformError> {
        match data {
            Data::Logs(rows) => self.rows(rows).map(Data::Logs),
            Data::Spans(rows) => self.rows(rows).map(Data::Spans),
            Data::Metrics(m) => series::relabel(m, |labels| {
                for change in &self.changes {
                    match change {
                        Change::Set(p, value) if p.column == "labels" => labels.set(&p.key, text_of(value)),
                        Change::Remove(p) if p.column == "labels" => drop(labels.remove(&p.key)),
                        Change::Move(a, b) if a.column == "labels" && b.column == "labels" => {
                            if let Some(value) = labels.remove(&a.key) {
                                labels.set(&b.key, value);
                            }
                        }
                        _ => {}
                    }
                }
                true
            })
            .map(Data::Metrics),
        }
    }
}

/// Sets a member under the rules of its column.
fn put(set: &mut Attributes<'_>, place: &Place, value: &str) {
    let name = Cow::Owned(place.key.clone());
    if !place.holds_labels() {
        set.set_json(name, Cow::Owned(value.to_owned()));
        return;
    }
    match text_of(value) {
        t if t.is_empty() => drop(set.remove(&place.key)),
        t => set.set_text(name, &t),
    }
}

/// An empty set is null, except for labels, which every row has.
fn text(set: &Attributes<'_>, place: &Place) -> Option<String> {
    (!set.is_empty() || place.holds_labels()).then(|| set.to_json())
}

/// A change within one column. Columns that this signal does not have are left out.
fn one(
    schema: &arrow::datatypes::Schema,
    columns: &mut [ArrayRef],
    place: &Place,
    change: impl Fn(&mut Attributes<'_>),
) {
    let Ok(at) = schema.index_of(place.column) else { return };
    columns[at] = map_texts(&columns[at], |json| {
        let mut set = Attributes::read(json.unwrap_or("{}"));
        change(&mut set);
        text(&set, place)
    });
}

/// A move between two columns, once for each pair of distinct values.
fn across(schema: &arrow::datatypes::Schema, columns: &mut [ArrayRef], from: &Place, to: &Place) {
    let (Ok(a), Ok(b)) = (schema.index_of(from.column), schema.index_of(to.column)) else { return };
    let (old_a, old_b) = (columns[a].clone(), columns[b].clone());
    let (Some(texts_a), Some(texts_b)) = (Texts::new(&old_a), Texts::new(&old_b)) else { return };
    let (mut new_a, mut new_b) = (TextColumn::like(&old_a), TextColumn::like(&old_b));
    type Slot = Option<usize>;
    type Text = Option<String>;
    let mut known: HashMap<(Slot, Slot), (Text, Text)> = HashMap::new();
    for row in 0..old_a.len() {
        let slots = (texts_a.slot(row), texts_b.slot(row));
        let (x, y) = known.entry(slots).or_insert_with(|| {
            let (json_a, json_b) = (texts_a.row(row), texts_b.row(row));
            let mut set_a = Attributes::read(json_a.unwrap_or("{}"));
            let Some(value) = set_a.remove(&from.key) else {
                return (json_a.map(str::to_owned), json_b.map(str::to_owned));
            };
            let mut set_b = Attributes::read(json_b.unwrap_or("{}"));
            put(&mut set_b, to, &value);
            (text(&set_a, from), text(&set_b, to))
        });
        new_a.push(x.as_deref());
        new_b.push(y.as_deref());
    }
    columns[a] = new_a.finish();
    columns[b] = new_b.finish();
}
