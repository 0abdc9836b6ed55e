//! A hash of some fields of each row, the same on every machine: what `sample`, `dedupe` and `throttle` tell rows apart by.

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, Int32Type, Int64Type, TimestampNanosecondType},
};
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    component::Signals,
    condition::Field,
    error::ConfigError,
    transform::attributes::{Texts, get, text_of},
};

/// Fields whose values make the key.
#[derive(Clone, Debug)]
pub(super) struct Key(Vec<Part>);

/// A field, or a whole set of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Field(Field),
    Set(&'static str),
}

/// Sets of fields that may be named whole, with their columns and signals.
const SETS: [(&str, &str, Signals); 6] = [
    (".attrs", "attrs", Signals::LOGS.or(Signals::TRACES)),
    (".resource", "resource_attrs", Signals::LOGS.or(Signals::TRACES)),
    (".stream", "stream_labels", Signals::LOGS),
    (".labels", "labels", Signals::METRICS),
    (".events", "events", Signals::TRACES),
    (".links", "links", Signals::TRACES),
];

impl Part {
    /// Reads `.attrs.key`, `.body`, or a whole set such as `.attrs`.
    pub fn parse(text: &str, path: &str) -> Result<Part, ConfigError> {
        if let Some((_, column, _)) = SETS.iter().find(|(name, _, _)| *name == text.trim()) {
            return Ok(Part::Set(column));
        }
        Field::parse(text).map(Part::Field).map_err(|e| {
            let mut error = ConfigError::new(path, e.to_string());
            error.nearest = e.nearest;
            error
        })
    }

    pub fn signals(&self) -> Signals {
        match self {
            Part::Field(field) => field.signals(),
            Part::Set(column) => SETS.iter().find(|(_, c, _)| c == column).map_or(Signals::NONE, |(_, _, s)| *s),
        }
    }

    pub fn column(&self) -> &'static str {
        match self {
            Part::Field(Field::Column(column) | Field::Member { column, .. }) | Part::Set(column) => column,
        }
    }

    /// Hash of the value in each row; `None` where it is absent.
    fn hashes(&self, rows: &RecordBatch) -> Vec<Option<u128>> {
        let Some(column) = rows.column_by_name(self.column()) else { return vec![None; rows.num_rows()] };
        match self {
            Part::Field(Field::Member { key, .. }) => match Texts::new(column) {
                Some(texts) => texts.each(None, |json| get(json, key).map(|v| xxh3_128(text_of(v).as_bytes()))),
                None => vec![None; rows.num_rows()],
            },
            _ => column_hashes(column),
        }
    }
}

fn column_hashes(column: &ArrayRef) -> Vec<Option<u128>> {
    let each = |value: &dyn Fn(usize) -> u128| -> Vec<Option<u128>> {
        (0..column.len()).map(|i| column.is_valid(i).then(|| value(i))).collect()
    };
    match column.data_type() {
        DataType::Int32 => {
            let a = column.as_primitive::<Int32Type>();
            each(&|i| xxh3_128(a.value(i).to_string().as_bytes()))
        }
        DataType::Int64 => {
            let a = column.as_primitive::<Int64Type>();
            each(&|i| xxh3_128(a.value(i).to_string().as_bytes()))
        }
        DataType::Timestamp(_, _) => {
            let a = column.as_primitive::<TimestampNanosecondType>();
            each(&|i| xxh3_128(a.value(i).to_string().as_bytes()))
        }
        // As hex, so that an id in an attribute counts as the same.
        DataType::Binary => {
            let a = column.as_binary::<i32>();
            each(&|i| xxh3_128(hex::encode(a.value(i)).as_bytes()))
        }
        _ => match Texts::new(column) {
            Some(texts) => texts.each(None, |t| Some(xxh3_128(t.as_bytes()))),
            None => vec![None; column.len()],
        },
    }
}

impl Key {
    /// Reads the fields; `path` is the place of the list.
    pub fn parse(fields: &[String], path: &str, errors: &mut Vec<ConfigError>) -> Key {
        let mut parts = Vec::with_capacity(fields.len());
        for (i, field) in fields.iter().enumerate() {
            match Part::parse(field, &format!("{path}[{i}]")) {
                Ok(part) => parts.push(part),
                Err(e) => errors.push(e),
            }
        }
        if fields.is_empty() {
            errors.push(ConfigError::new(path, "names no field"));
        }
        Key(parts)
    }

    /// Signals that have all the fields.
    pub fn signals(&self) -> Signals {
        self.0.iter().fold(Signals::ALL, |s, p| s.and(p.signals()))
    }

    /// One for each row (of metrics: of the series table). `None` where all of the fields are absent.
    pub fn hashes(&self, rows: &RecordBatch) -> Vec<Option<u128>> {
        let Some((first, rest)) = self.0.split_first() else { return vec![None; rows.num_rows()] };
        let mut all = first.hashes(rows);
        for part in rest {
            for (own, next) in all.iter_mut().zip(part.hashes(rows)) {
                *own = match (*own, next) {
                    (None, None) => None,
                    (a, b) => {
                        let mut text = [0; 34];
                        put(&mut text[..17], a);
                        put(&mut text[17..], b);
                        Some(xxh3_128(&text))
                    }
                };
            }
        }
        all
    }
}

/// A byte that tells whether there is a value, then the value.
fn put(to: &mut [u8], value: Option<u128>) {
    to[0] = u8::from(value.is_some());
    to[1..].copy_from_slice(&value.unwrap_or(0).to_le_bytes());
}
