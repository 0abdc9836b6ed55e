//! Arrow schema to Delta schema: the JSON in `metaData.schemaString`.

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use serde_json::{Value, json};

/// The partition column of every table. It is in the log, not in the files.
pub const PARTITION_COLUMN: &str = "day";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error("column {column} has type {found}, which a Delta table cannot hold")]
    Type { column: String, found: String },
    #[error("column {column} of the table is {found}, this program writes {wanted}")]
    Changed { column: String, found: String, wanted: String },
    #[error("the table's schema is not readable: {0}")]
    Unreadable(String),
}

/// `schemaString` of a table whose files have `schema`, plus the partition column.
pub fn schema_string(schema: &Schema) -> Result<String, SchemaError> {
    let mut fields = Vec::with_capacity(schema.fields().len() + 1);
    for f in schema.fields() {
        fields.push(field(f)?);
    }
    fields.push(json!({"name": PARTITION_COLUMN, "type": "date", "nullable": true, "metadata": {}}));
    Ok(json!({"type": "struct", "fields": fields}).to_string())
}

fn field(f: &Field) -> Result<Value, SchemaError> {
    let t = data_type(f.name(), f.data_type())?;
    Ok(json!({"name": f.name(), "type": t, "nullable": f.is_nullable(), "metadata": {}}))
}

fn data_type(column: &str, t: &DataType) -> Result<Value, SchemaError> {
    Ok(match t {
        DataType::Boolean => json!("boolean"),
        DataType::Int8 => json!("byte"),
        DataType::Int16 => json!("short"),
        DataType::Int32 => json!("integer"),
        DataType::Int64 => json!("long"),
        DataType::Float32 => json!("float"),
        DataType::Float64 => json!("double"),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => json!("string"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            json!("binary")
        }
        DataType::Date32 => json!("date"),
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if &**zone == "UTC" => json!("timestamp"),
        DataType::Dictionary(_, value) => data_type(column, value)?,
        DataType::List(item) | DataType::LargeList(item) => json!({
            "type": "array",
            "elementType": data_type(column, item.data_type())?,
            "containsNull": item.is_nullable(),
        }),
        DataType::Struct(inner) => {
            let inner: Result<Vec<Value>, SchemaError> = inner.iter().map(|f| field(f)).collect();
            json!({"type": "struct", "fields": inner?})
        }
        other => return Err(SchemaError::Type { column: column.to_owned(), found: other.to_string() }),
    })
}

/// Whether the log needs new metadata to hold files of `wanted` (a `schemaString`). `Some`: the string to write, the
/// columns of both. Columns may come and become nullable; a changed type is an error.
pub fn evolve(existing: &str, wanted: &str) -> Result<Option<String>, SchemaError> {
    let parse = |s: &str| -> Result<Vec<Value>, SchemaError> {
        let v: Value = serde_json::from_str(s).map_err(|e| SchemaError::Unreadable(e.to_string()))?;
        v["fields"].as_array().cloned().ok_or_else(|| SchemaError::Unreadable("no fields".into()))
    };
    let (mut fields, wanted) = (parse(existing)?, parse(wanted)?);
    let mut changed = false;
    for old in &mut fields {
        match wanted.iter().find(|w| w["name"] == old["name"]) {
            Some(w) if w["type"] != old["type"] => {
                return Err(SchemaError::Changed {
                    column: old["name"].as_str().unwrap_or("?").to_owned(),
                    found: old["type"].to_string(),
                    wanted: w["type"].to_string(),
                });
            }
            // A column that new files lack, or that may be null in them, is nullable from now on.
            w if old["nullable"] == false && w.is_none_or(|w| w["nullable"] == true) => {
                old["nullable"] = Value::Bool(true);
                changed = true;
            }
            _ => {}
        }
    }
    for w in wanted {
        if !fields.iter().any(|old| old["name"] == w["name"]) {
            let mut w = w;
            // Older files do not have it.
            w["nullable"] = Value::Bool(true);
            fields.push(w);
            changed = true;
        }
    }
    Ok(changed.then(|| json!({"type": "struct", "fields": fields}).to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn of(fields: Vec<Field>) -> String {
        schema_string(&Schema::new(fields)).unwrap()
    }

    #[test]
    fn every_type_we_write_has_its_delta_name() {
        let us = DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")));
        let dict = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let list = DataType::List(Arc::new(Field::new("item", DataType::Float64, true)));
        let s: Value = serde_json::from_str(&of(vec![
            Field::new("ts", us, false),
            Field::new("ns", DataType::Int16, false),
            Field::new("s", dict, true),
            Field::new("l", list, true),
        ]))
        .unwrap();
        let types: Vec<&Value> = s["fields"].as_array().unwrap().iter().map(|f| &f["type"]).collect();
        let array = json!({"type": "array", "elementType": "double", "containsNull": true});
        assert_eq!(types, [&json!("timestamp"), &json!("short"), &json!("string"), &array, &json!("date")]);
        let ns = DataType::Timestamp(TimeUnit::Nanosecond, None);
        assert!(schema_string(&Schema::new(vec![Field::new("x", ns, true)])).is_err());
    }

    #[test]
    fn columns_may_come_and_go_but_not_change_their_type() {
        let a = of(vec![Field::new("a", DataType::Int64, false)]);
        let ab = of(vec![Field::new("a", DataType::Int64, false), Field::new("b", DataType::Utf8, false)]);
        let other = of(vec![Field::new("a", DataType::Utf8, false)]);
        assert_eq!(evolve(&a, &a).unwrap(), None);
        let grown: Value = serde_json::from_str(&evolve(&a, &ab).unwrap().unwrap()).unwrap();
        assert_eq!(grown["fields"][2]["name"], "b");
        assert_eq!(grown["fields"][2]["nullable"], true);
        assert!(evolve(&ab, &a).unwrap().unwrap().contains("\"b\""));
        assert!(matches!(evolve(&a, &other), Err(SchemaError::Changed { .. })));
        assert!(matches!(evolve("{", &a), Err(SchemaError::Unreadable(_))));
    }
}
