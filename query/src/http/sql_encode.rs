//! SQL answers as JSON, CSV and Arrow IPC.
//!
//! JSON: integers, decimals and finite doubles are numbers, other doubles the texts `NaN`, `+Inf`, `-Inf`; times are RFC 3339;
//! lists are arrays, structs and maps objects; what JSON has no form for (intervals, bytes) is text.

use std::fmt::Write as _;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, Float32Type, Float64Type, SchemaRef},
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};
use arrow_ipc::writer::StreamWriter;
use bytes::Bytes;
use serde::Deserialize;
use storage::model::json::write_string;

use crate::sql::{Encoder, SqlError, SqlStats};

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Json,
    Csv,
    Arrow,
}

impl Format {
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Csv => "text/csv; charset=utf-8",
            Format::Arrow => "application/vnd.apache.arrow.stream",
        }
    }
}

pub fn encoder(format: Format) -> Box<dyn Encoder> {
    match format {
        Format::Json => Box::new(Json { any: false }),
        Format::Csv => Box::new(Csv),
        Format::Arrow => Box::new(Arrow { writer: None }),
    }
}

pub fn stats_json(s: &SqlStats) -> String {
    format!(
        "{{\"rows\":{},\"truncated\":{},\"rowsScanned\":{},\"bytesScanned\":{},\"bytesRead\":{},\"parts\":{},\
         \"partsPruned\":{},\"rowGroups\":{},\"rowGroupsPruned\":{},\"damaged\":{},\"seconds\":{}}}",
        s.rows,
        s.truncated,
        s.rows_scanned,
        s.bytes_scanned,
        s.bytes_read,
        s.parts,
        s.parts_pruned,
        s.row_groups,
        s.row_groups_pruned,
        s.damaged,
        s.elapsed.as_secs_f64(),
    )
}

struct Json {
    any: bool,
}

/// The end of an answer that failed under way. `error`: an envelope's JSON object.
pub fn json_broken_off(error: &str) -> Bytes {
    format!("\n]}},{}", error.strip_prefix('{').unwrap_or("}")).into()
}

impl Encoder for Json {
    fn begin(&mut self, schema: &SchemaRef) -> Result<Bytes, SqlError> {
        let mut out = String::from("{\"data\":{\"columns\":[");
        for (i, f) in schema.fields().iter().enumerate() {
            out.push_str(if i > 0 { ",{\"name\":" } else { "{\"name\":" });
            write_string(&mut out, f.name());
            out.push_str(",\"type\":");
            write_string(&mut out, &type_name(f.data_type()));
            out.push('}');
        }
        out.push_str("],\"rows\":[");
        Ok(out.into())
    }

    fn rows(&mut self, batch: &RecordBatch) -> Result<Bytes, SqlError> {
        let columns: Result<Vec<JsonColumn<'_>>, ArrowError> = batch.columns().iter().map(JsonColumn::new).collect();
        let columns = columns?;
        let mut out = String::with_capacity(batch.num_rows() * batch.num_columns() * 12);
        for row in 0..batch.num_rows() {
            out.push_str(if self.any { ",\n[" } else { "\n[" });
            self.any = true;
            for (i, column) in columns.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                column.write(&mut out, row)?;
            }
            out.push(']');
        }
        Ok(out.into())
    }

    fn end(&mut self, stats: &SqlStats) -> Result<Bytes, SqlError> {
        let mut out = format!("\n]}},\"stats\":{}", stats_json(stats));
        let mut warnings = Vec::new();
        if stats.truncated {
            warnings.push("results truncated due to limit".to_owned());
        }
        if stats.damaged > 0 {
            warnings.push(format!("{} parts could not be read; their rows are missing", stats.damaged));
        }
        if !warnings.is_empty() {
            out.push_str(",\"warnings\":");
            super::encode::write_strings(&mut out, warnings.iter().map(String::as_str));
        }
        out.push_str(",\"status\":\"success\"}\n");
        Ok(out.into())
    }
}

static OPTIONS: FormatOptions<'static> = FormatOptions::new().with_display_error(false);

fn type_name(t: &DataType) -> String {
    match t {
        DataType::Dictionary(_, value) => type_name(value),
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8.to_string(),
        DataType::Timestamp(..) => "Timestamp".into(),
        other => other.to_string(),
    }
}

/// A column made ready to be written by row.
struct JsonColumn<'a> {
    array: &'a ArrayRef,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Bool,
    /// Numbers, as they are shown.
    Plain(ArrayFormatter<'a>),
    Float32,
    Float64,
    Text(ArrayFormatter<'a>),
    /// The JSON of each value, and which one a row has.
    Coded(Vec<usize>, Vec<String>),
    List(Box<JsonColumn<'a>>),
    Struct(Vec<(&'a str, JsonColumn<'a>)>),
    Map(ArrayFormatter<'a>, Box<JsonColumn<'a>>),
}

impl<'a> JsonColumn<'a> {
    fn new(array: &'a ArrayRef) -> Result<Self, ArrowError> {
        use DataType as T;
        let kind = match array.data_type() {
            T::Boolean => Kind::Bool,
            t if t.is_integer() || t.is_decimal() => Kind::Plain(ArrayFormatter::try_new(array, &OPTIONS)?),
            T::Float32 => Kind::Float32,
            T::Float64 => Kind::Float64,
            T::Dictionary(..) if array.as_any_dictionary().values().is_empty() => Kind::Coded(vec![], vec![]),
            T::Dictionary(..) => {
                let dictionary = array.as_any_dictionary();
                let values = JsonColumn::new(dictionary.values())?;
                let written: Result<Vec<String>, ArrowError> = (0..dictionary.values().len())
                    .map(|i| {
                        let mut out = String::new();
                        values.write(&mut out, i)?;
                        Ok(out)
                    })
                    .collect();
                Kind::Coded(dictionary.normalized_keys(), written?)
            }
            T::List(_) => Kind::List(Box::new(JsonColumn::new(array.as_list::<i32>().values())?)),
            T::Struct(fields) => {
                let columns = array.as_struct().columns();
                let named = fields.iter().zip(columns).map(|(f, c)| Ok((f.name().as_str(), JsonColumn::new(c)?)));
                Kind::Struct(named.collect::<Result<_, ArrowError>>()?)
            }
            T::Map(..) => {
                let map = array.as_map();
                let keys = ArrayFormatter::try_new(map.keys(), &OPTIONS)?;
                Kind::Map(keys, Box::new(JsonColumn::new(map.values())?))
            }
            _ => Kind::Text(ArrayFormatter::try_new(array, &OPTIONS)?),
        };
        Ok(JsonColumn { array, kind })
    }

    fn write(&self, out: &mut String, row: usize) -> Result<(), ArrowError> {
        if self.array.is_null(row) {
            out.push_str("null");
            return Ok(());
        }
        match &self.kind {
            Kind::Bool => out.push_str(if self.array.as_boolean().value(row) { "true" } else { "false" }),
            Kind::Plain(f) => f.value(row).write(out)?,
            Kind::Float32 => {
                let value = self.array.as_primitive::<Float32Type>().value(row);
                if value.is_finite() {
                    let _ = write!(out, "{value:?}");
                } else {
                    write_double(out, f64::from(value));
                }
            }
            Kind::Float64 => write_double(out, self.array.as_primitive::<Float64Type>().value(row)),
            Kind::Text(f) => write_string(out, &f.value(row).try_to_string()?),
            Kind::Coded(keys, values) => {
                out.push_str(keys.get(row).and_then(|k| values.get(*k)).map_or("null", |v| v))
            }
            Kind::List(items) => {
                let offsets = self.array.as_list::<i32>().value_offsets();
                out.push('[');
                for i in offsets[row]..offsets[row + 1] {
                    if i > offsets[row] {
                        out.push(',');
                    }
                    items.write(out, i as usize)?;
                }
                out.push(']');
            }
            Kind::Struct(fields) => {
                for (i, (name, column)) in fields.iter().enumerate() {
                    out.push(if i > 0 { ',' } else { '{' });
                    write_string(out, name);
                    out.push(':');
                    column.write(out, row)?;
                }
                out.push_str(if fields.is_empty() { "{}" } else { "}" });
            }
            Kind::Map(keys, values) => {
                let offsets = self.array.as_map().value_offsets();
                out.push('{');
                for i in offsets[row]..offsets[row + 1] {
                    if i > offsets[row] {
                        out.push(',');
                    }
                    write_string(out, &keys.value(i as usize).try_to_string()?);
                    out.push(':');
                    values.write(out, i as usize)?;
                }
                out.push('}');
            }
        }
        Ok(())
    }
}

fn write_double(out: &mut String, value: f64) {
    let _ = match value {
        v if v.is_finite() => write!(out, "{v:?}"),
        v if v.is_nan() => write!(out, "\"NaN\""),
        v if v > 0.0 => write!(out, "\"+Inf\""),
        _ => write!(out, "\"-Inf\""),
    };
}

/// Quoted where a reader needs it. Source: RFC 4180, with line feeds between rows.
struct Csv;

fn write_field(out: &mut String, text: &str) {
    if !text.is_empty() && !text.contains(['"', ',', '\n', '\r']) {
        out.push_str(text);
        return;
    }
    out.push('"');
    out.push_str(&text.replace('"', "\"\""));
    out.push('"');
}

impl Encoder for Csv {
    fn begin(&mut self, schema: &SchemaRef) -> Result<Bytes, SqlError> {
        let mut out = String::new();
        for (i, f) in schema.fields().iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            write_field(&mut out, f.name());
        }
        out.push('\n');
        Ok(out.into())
    }

    fn rows(&mut self, batch: &RecordBatch) -> Result<Bytes, SqlError> {
        let columns: Result<Vec<_>, ArrowError> =
            batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &OPTIONS)).collect();
        let columns = columns?;
        let mut out = String::with_capacity(batch.num_rows() * batch.num_columns() * 12);
        let mut text = String::new();
        for row in 0..batch.num_rows() {
            for (i, (array, shown)) in batch.columns().iter().zip(&columns).enumerate() {
                if i > 0 {
                    out.push(',');
                }
                if !array.logical_nulls().is_some_and(|n| n.is_null(row)) {
                    text.clear();
                    shown.value(row).write(&mut text)?;
                    write_field(&mut out, &text);
                }
            }
            out.push('\n');
        }
        Ok(out.into())
    }

    fn end(&mut self, _: &SqlStats) -> Result<Bytes, SqlError> {
        Ok(Bytes::new())
    }
}

struct Arrow {
    writer: Option<StreamWriter<Vec<u8>>>,
}

impl Arrow {
    fn written(&mut self) -> Bytes {
        self.writer.as_mut().map(|w| std::mem::take(w.get_mut())).unwrap_or_default().into()
    }
}

impl Encoder for Arrow {
    fn begin(&mut self, schema: &SchemaRef) -> Result<Bytes, SqlError> {
        self.writer = Some(StreamWriter::try_new(Vec::new(), schema)?);
        Ok(self.written())
    }

    fn rows(&mut self, batch: &RecordBatch) -> Result<Bytes, SqlError> {
        if let Some(writer) = &mut self.writer {
            writer.write(batch)?;
        }
        Ok(self.written())
    }

    fn end(&mut self, _: &SqlStats) -> Result<Bytes, SqlError> {
        if let Some(writer) = &mut self.writer {
            writer.finish()?;
        }
        Ok(self.written())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{DictionaryArray, Float64Array, Int64Array, StringArray, TimestampNanosecondArray},
        datatypes::Int32Type,
    };

    use super::*;

    fn rows() -> RecordBatch {
        let coded: DictionaryArray<Int32Type> = [Some("a,b"), None, Some("")].into_iter().collect();
        let columns: [(&str, ArrayRef); 5] = [
            ("n", Arc::new(Int64Array::from(vec![Some(i64::MAX), None, Some(-1)]))),
            ("x", Arc::new(Float64Array::from(vec![0.1, f64::NAN, f64::NEG_INFINITY]))),
            ("c", Arc::new(coded)),
            ("t", Arc::new(StringArray::from(vec!["q\"", "z", "l\n"]))),
            ("at", Arc::new(TimestampNanosecondArray::from(vec![1, 1_000_000_000, 0]).with_timezone("UTC"))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn whole(format: Format) -> Vec<u8> {
        let (mut e, batch) = (encoder(format), rows());
        let pieces =
            [e.begin(&batch.schema()).unwrap(), e.rows(&batch).unwrap(), e.end(&SqlStats::default()).unwrap()];
        pieces.concat()
    }

    #[test]
    fn json_keeps_integers_and_names_what_is_no_number() {
        let value: serde_json::Value = serde_json::from_slice(&whole(Format::Json)).unwrap();
        assert_eq!(
            value["data"]["rows"],
            serde_json::json!([
                [i64::MAX, 0.1, "a,b", "q\"", "1970-01-01T00:00:00.000000001Z"],
                [null, "NaN", null, "z", "1970-01-01T00:00:01Z"],
                [-1, "-Inf", "", "l\n", "1970-01-01T00:00:00Z"],
            ])
        );
        assert_eq!(value["data"]["columns"][2], serde_json::json!({"name": "c", "type": "Utf8"}));
        assert_eq!(value["status"], "success");
    }

    #[test]
    fn csv_tells_nothing_from_the_empty_text() {
        let text = String::from_utf8(whole(Format::Csv)).unwrap();
        assert_eq!(
            text,
            "n,x,c,t,at\n9223372036854775807,0.1,\"a,b\",\"q\"\"\",1970-01-01T00:00:00.000000001Z\n\
             ,NaN,,z,1970-01-01T00:00:01Z\n-1,-inf,\"\",\"l\n\",1970-01-01T00:00:00Z\n"
        );
    }

    #[test]
    fn an_answer_broken_off_is_json_that_says_so() {
        let (mut e, batch) = (encoder(Format::Json), rows());
        let tail = json_broken_off(r#"{"status":"error","error":"x"}"#);
        let text = [e.begin(&batch.schema()).unwrap(), e.rows(&batch).unwrap(), tail].concat();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["status"], "error");
    }
}
