//! Attributes with a column of their own: `a_<key>` beside the JSON in `attrs`, which keeps them all.
//!
//! The columns are for other readers, who then filter and group without reading JSON. They are derived when a part is written,
//! at a flush and at every merge, so a part has those that were chosen when it was written.

use std::{borrow::Cow, sync::Arc};

use arrow::{
    array::{
        Array, ArrayBuilder as _, ArrayRef, AsArray, DictionaryArray, Int32Array, RecordBatch, StringArray,
        StringBuilder,
    },
    datatypes::{DataType, Field, Int32Type},
};

use super::PartError;
use crate::{
    limits::PROMOTED_MAX,
    model::{
        Table,
        json::{self, Value, write_string},
        schema,
    },
};

/// The attributes chosen. Clones share the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promoted(Arc<[Attribute]>);

#[derive(Debug, PartialEq, Eq)]
struct Attribute {
    /// The key as it stands in canonical JSON, with quotes.
    quoted: String,
    column: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromoteError {
    #[error("{0} attributes, at most {PROMOTED_MAX} get a column")]
    TooMany(usize),
    #[error("attribute {0:?} cannot have a column: its name is empty, or over 200 bytes")]
    Name(String),
    #[error("attributes {0:?} and {1:?} would have the same column {2}")]
    Same(String, String, String),
}

/// Bytes of a promoted key at most.
const KEY_BYTES_MAX: usize = 200;

/// `a_` and the key; what a Delta table cannot have in a name, and upper case, which some readers do not tell from lower,
/// becomes `_` and lower case.
fn column_name(key: &str) -> String {
    let plain = |c: char| match c {
        ' ' | ',' | ';' | '{' | '}' | '(' | ')' | '=' | '.' | '"' | '`' => '_',
        c if c.is_control() => '_',
        c => c.to_ascii_lowercase(),
    };
    format!("a_{}", key.chars().map(plain).collect::<String>())
}

impl Promoted {
    pub fn new<S: AsRef<str>>(keys: &[S]) -> Result<Self, PromoteError> {
        if keys.len() > PROMOTED_MAX {
            return Err(PromoteError::TooMany(keys.len()));
        }
        let mut out: Vec<(&str, Attribute)> = Vec::new();
        for key in keys.iter().map(AsRef::as_ref) {
            if key.is_empty() || key.len() > KEY_BYTES_MAX {
                return Err(PromoteError::Name(key.to_owned()));
            }
            let (column, mut quoted) = (column_name(key), String::new());
            if let Some((other, _)) = out.iter().find(|(_, a)| a.column == column) {
                return Err(PromoteError::Same((*other).to_owned(), key.to_owned(), column));
            }
            write_string(&mut quoted, key);
            out.push((key, Attribute { quoted, column }));
        }
        Ok(Promoted(out.into_iter().map(|(_, a)| a).collect()))
    }

    fn attributes(&self, table: Table) -> &[Attribute] {
        if matches!(table, Table::Logs | Table::Spans) { &self.0 } else { &[] }
    }

    /// The columns of a table's new parts: text, null where a row has no such attribute.
    pub fn fields(&self, table: Table) -> Vec<Field> {
        self.attributes(table).iter().map(|a| Field::new(&a.column, DataType::Utf8, true)).collect()
    }

    /// The same, as they are handed to the Parquet writer.
    pub(super) fn written_fields(&self, table: Table) -> Vec<Field> {
        self.attributes(table).iter().map(|a| Field::new(&a.column, schema::dict(), true)).collect()
    }

    /// The columns of `batch` (stored schema).
    pub(super) fn columns(&self, table: Table, batch: &RecordBatch) -> Result<Vec<ArrayRef>, PartError> {
        let attributes = self.attributes(table);
        if attributes.is_empty() {
            return Ok(Vec::new());
        }
        let attrs = batch.column_by_name("attrs").expect("column of the stored schema");
        let mut builders: Vec<Column> = attributes.iter().map(|_| Column::default()).collect();
        // Equal neighbours, as a stream often has, are read once.
        let mut last: Option<&str> = None;
        for row in 0..attrs.len() {
            let text = text_at(attrs, row);
            if text.is_some() && text == last {
                builders.iter_mut().for_each(Column::repeat);
                continue;
            }
            last = text;
            builders.iter_mut().for_each(Column::begin);
            if let Some(text) = text {
                each_member(text, |key, value| {
                    if let Some(i) = attributes.iter().position(|a| a.quoted == key) {
                        builders[i].set(shown(value));
                    }
                });
            }
            builders.iter_mut().for_each(Column::end);
        }
        builders.into_iter().map(Column::finish).collect()
    }
}

fn text_at(attrs: &ArrayRef, row: usize) -> Option<&str> {
    match attrs.as_dictionary_opt::<Int32Type>() {
        Some(d) => d.key(row).map(|k| d.values().as_string::<i32>().value(k)),
        None => attrs.is_valid(row).then(|| attrs.as_string::<i32>().value(row)),
    }
}

/// A dictionary column that repeats the value of the row before without copying it.
#[derive(Default)]
struct Column {
    values: StringBuilder,
    keys: Vec<Option<i32>>,
    current: Option<i32>,
    /// The text of `current`, to see that it comes again behind others.
    text: String,
    pending: Option<String>,
}

impl Column {
    fn begin(&mut self) {
        self.pending = None;
    }

    fn set(&mut self, value: Option<Cow<'_, str>>) {
        self.pending = value.map(Cow::into_owned);
    }

    fn end(&mut self) {
        match self.pending.take() {
            None => self.keys.push(None),
            Some(text) if self.current.is_some() && text == self.text => self.keys.push(self.current),
            Some(text) => {
                self.current = Some(self.values.len() as i32);
                self.values.append_value(&text);
                self.text = text;
                self.keys.push(self.current);
            }
        }
    }

    fn repeat(&mut self) {
        let last = self.keys.last().copied().flatten();
        self.keys.push(last);
    }

    fn finish(mut self) -> Result<ArrayRef, PartError> {
        let values: StringArray = self.values.finish();
        Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(Int32Array::from(self.keys), Arc::new(values))?))
    }
}

/// A value as a column shows it: strings bare, numbers and booleans as JSON has them, the rest as JSON; `None`: unset.
fn shown(raw: &str) -> Option<Cow<'_, str>> {
    match raw.strip_prefix('"').and_then(|r| r.strip_suffix('"')) {
        Some(inner) if !inner.contains('\\') => Some(Cow::Borrowed(inner)),
        Some(_) => match json::parse(raw) {
            Ok(Value::String(text)) => Some(Cow::Owned(text)),
            _ => Some(Cow::Borrowed(raw)),
        },
        None if raw == "null" => None,
        None => Some(Cow::Borrowed(raw)),
    }
}

/// Gives every member of the object `text` (canonical JSON: no spaces) as raw key, with quotes, and raw value. Stops at what
/// is no such object.
fn each_member<'a>(text: &'a str, mut visit: impl FnMut(&'a str, &'a str)) {
    let bytes = text.as_bytes();
    let mut at = 1;
    if bytes.first() != Some(&b'{') {
        return;
    }
    while bytes.get(at) == Some(&b'"') {
        let Some(key_end) = value_end(bytes, at) else { return };
        if bytes.get(key_end) != Some(&b':') {
            return;
        }
        let Some(end) = value_end(bytes, key_end + 1) else { return };
        let (Some(key), Some(value)) = (text.get(at..key_end), text.get(key_end + 1..end)) else { return };
        visit(key, value);
        at = end + 1; // past the comma, or the end
    }
}

/// Behind the JSON value that starts at `at`.
fn value_end(bytes: &[u8], at: usize) -> Option<usize> {
    let (mut depth, mut i) = (0usize, at);
    loop {
        match bytes.get(i)? {
            b'"' => {
                i += 1;
                while *bytes.get(i)? != b'"' {
                    i += if bytes[i] == b'\\' { 2 } else { 1 };
                }
                i += 1;
            }
            b'{' | b'[' => {
                depth += 1;
                i += 1;
            }
            b'}' | b']' if depth > 0 => {
                depth -= 1;
                i += 1;
            }
            b',' | b'}' | b']' | b':' if depth == 0 => return (i > at).then_some(i),
            _ => {
                i += 1;
                continue;
            }
        }
        if depth == 0 {
            return Some(i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LogBatchBuilder, LogRow};

    #[test]
    fn a_column_has_what_the_json_has() {
        let promoted = Promoted::new(&["http.status", "Path", "deep", "q\"k", "absent", "none"]).unwrap();
        let names: Vec<String> = promoted.fields(Table::Logs).iter().map(|f| f.name().clone()).collect();
        assert_eq!(names, ["a_http_status", "a_path", "a_deep", "a_q_k", "a_absent", "a_none"]);
        assert!(promoted.fields(Table::MetricSamples).is_empty());
        let texts = [
            Some(r#"{"Path":"/a\"b,{","deep":{"x":[1,"}"]},"http.status":200,"none":null,"q\"k":true}"#),
            Some(r#"{"Path":"/a\"b,{","deep":{"x":[1,"}"]},"http.status":200,"none":null,"q\"k":true}"#),
            None,
            Some(r#"{"a":"\\","http.status":-1.5e3}"#),
            Some("{}"),
            Some("no object"),
        ];
        let mut b = LogBatchBuilder::new();
        for t in texts {
            b.push(&LogRow { stream_labels: "{}", attrs: t, ..LogRow::default() });
        }
        let rows = crate::head::rows::derive(Table::Logs, &b.finish()).unwrap().batch;
        let columns = promoted.columns(Table::Logs, &rows).unwrap();
        let column = |i: usize| -> Vec<Option<String>> {
            let c = arrow::compute::cast(&columns[i], &DataType::Utf8).unwrap();
            c.as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect()
        };
        let some = |v: &str| Some(v.to_owned());
        assert_eq!(column(0), [some("200"), some("200"), None, some("-1.5e3"), None, None]);
        assert_eq!(column(1), [some("/a\"b,{"), some("/a\"b,{"), None, None, None, None]);
        assert_eq!(column(2), [some(r#"{"x":[1,"}"]}"#), some(r#"{"x":[1,"}"]}"#), None, None, None, None]);
        assert_eq!(column(3)[..2], [some("true"), some("true")]);
        assert!(column(4).iter().chain(&column(5)).all(Option::is_none));
    }

    #[test]
    fn a_list_that_cannot_be_columns_is_refused() {
        let many: Vec<String> = (0..=PROMOTED_MAX).map(|i| format!("k{i}")).collect();
        assert_eq!(Promoted::new(&many), Err(PromoteError::TooMany(PROMOTED_MAX + 1)));
        assert!(matches!(Promoted::new(&["a.b", "a_b"]), Err(PromoteError::Same(..))));
        assert!(matches!(Promoted::new(&[""]), Err(PromoteError::Name(_))));
    }
}
