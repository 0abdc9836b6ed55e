//! Values of templates, their truth and their text.

use std::{collections::BTreeMap, sync::Arc};

use storage::model::Labels;

use super::format::{go_duration, go_float, go_time};

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<str>),
    List(Arc<Vec<Value>>),
    /// An absent key is the empty text.
    Map(Arc<BTreeMap<String, Value>>),
    /// An absent field is an error.
    Object(Arc<BTreeMap<String, Value>>),
    /// Nanoseconds since the Unix epoch.
    Time(i64),
    /// Nanoseconds.
    Duration(i64),
}

impl Value {
    pub fn text(text: impl Into<Arc<str>>) -> Value {
        Value::Text(text.into())
    }

    pub fn of_labels(labels: &Labels) -> Value {
        Value::Map(Arc::new(labels.iter().map(|(n, v)| (n.to_owned(), Value::text(v))).collect()))
    }

    pub fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
        Value::Object(Arc::new(fields.into_iter().map(|(n, v)| (n.to_owned(), v)).collect()))
    }

    pub fn list(items: impl IntoIterator<Item = Value>) -> Value {
        Value::List(Arc::new(items.into_iter().collect()))
    }

    /// As Go names the kind in messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Nil => "nil",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float64",
            Value::Text(_) => "string",
            Value::List(_) => "list",
            Value::Map(_) => "map",
            Value::Object(_) => "struct",
            Value::Time(_) => "time.Time",
            Value::Duration(_) => "time.Duration",
        }
    }

    pub fn is_true(&self) -> bool {
        match self {
            Value::Nil => false,
            Value::Bool(b) => *b,
            Value::Int(i) | Value::Duration(i) => *i != 0,
            Value::Float(f) => *f != 0.0,
            Value::Text(t) => !t.is_empty(),
            Value::List(l) => !l.is_empty(),
            Value::Map(m) => !m.is_empty(),
            Value::Object(_) | Value::Time(_) => true,
        }
    }

    /// As `{{ . }}` writes it.
    pub fn write(&self, out: &mut String) {
        match self {
            Value::Nil => out.push_str("<no value>"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Int(i) => out.push_str(&i.to_string()),
            Value::Float(f) => out.push_str(&go_float(*f)),
            Value::Text(t) => out.push_str(t),
            Value::Time(t) => out.push_str(&go_time(*t)),
            Value::Duration(d) => out.push_str(&go_duration(*d)),
            Value::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(' ');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Value::Map(map) => {
                out.push_str("map[");
                for (i, (name, value)) in map.iter().enumerate() {
                    if i > 0 {
                        out.push(' ');
                    }
                    out.push_str(name);
                    out.push(':');
                    value.write(out);
                }
                out.push(']');
            }
            Value::Object(map) => {
                out.push('{');
                for (i, value) in map.values().enumerate() {
                    if i > 0 {
                        out.push(' ');
                    }
                    value.write(out);
                }
                out.push('}');
            }
        }
    }

    pub fn to_text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    /// A number, or a text that is one.
    pub fn to_float(&self) -> Result<f64, String> {
        match self {
            Value::Float(f) => Ok(*f),
            Value::Int(i) => Ok(*i as f64),
            Value::Duration(d) => Ok(*d as f64 / 1e9),
            Value::Text(t) => parse_float(t),
            other => Err(format!("can't convert {} to float", other.kind())),
        }
    }
}

fn parse_float(text: &str) -> Result<f64, String> {
    let bare = text.trim_start_matches(['+', '-']);
    let known = ["inf", "infinity", "nan"].iter().any(|w| bare.eq_ignore_ascii_case(w));
    if (known || bare.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
        && let Ok(v) = text.parse()
    {
        return Ok(v);
    }
    Err(format!("strconv.ParseFloat: parsing {text:?}: invalid syntax"))
}
