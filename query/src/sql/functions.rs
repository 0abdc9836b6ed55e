//! Functions SQL gets from us: values out of the JSON columns `stream_labels`, `labels`, `attrs`, `resource_attrs` ...
//!
//! - `label(json, key)`, also named `attr`: the value as text, null if absent. A string comes without its quotes,
//!   anything else as its JSON.
//! - `attr_number(json, key)`: the value as a double, null if it is absent or no number (a number in a string counts).

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, DictionaryArray, Float64Array, Float64Builder, Int32Array, StringArray,
        StringBuilder, new_null_array,
    },
    compute::{cast, take},
    datatypes::{DataType, Int32Type},
};
use datafusion::{
    common::{Result, ScalarValue, exec_err, plan_err},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use storage::model::schema::dict;

/// Name of the function that [`super::pushdown`] knows.
pub const LABEL: &str = "label";

pub fn all() -> Vec<Arc<ScalarUDF>> {
    [Kind::Text, Kind::Number].into_iter().map(|kind| Arc::new(ScalarUDF::new_from_impl(Pick::new(kind)))).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Text,
    Number,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Pick {
    kind: Kind,
    signature: Signature,
}

impl Pick {
    fn new(kind: Kind) -> Self {
        Pick { kind, signature: Signature::any(2, Volatility::Immutable) }
    }
}

static TEXT_ALIASES: LazyLock<Vec<String>> = LazyLock::new(|| vec!["attr".to_owned()]);

fn is_text(t: &DataType) -> bool {
    match t {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => true,
        DataType::Dictionary(_, v) => is_text(v),
        _ => false,
    }
}

impl ScalarUDFImpl for Pick {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Text => LABEL,
            Kind::Number => "attr_number",
        }
    }

    fn aliases(&self) -> &[String] {
        match self.kind {
            Kind::Text => &TEXT_ALIASES,
            Kind::Number => &[],
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        if !args.iter().all(is_text) {
            return plan_err!("{}(json, key) takes two texts", self.name());
        }
        Ok(match (self.kind, &args[0]) {
            (Kind::Number, _) => DataType::Float64,
            (Kind::Text, DataType::Dictionary(..)) => dict(),
            (Kind::Text, _) => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let [json, key] = args.args.as_slice() else { return exec_err!("{} takes two arguments", self.name()) };
        let scalar_json = matches!(json, ColumnarValue::Scalar(_));
        let key = match key {
            ColumnarValue::Scalar(s) => match s.try_as_str() {
                Some(Some(key)) => key.to_owned(),
                _ => return Ok(ColumnarValue::Array(new_null_array(args.return_field.data_type(), rows))),
            },
            ColumnarValue::Array(_) => return exec_err!("the key of {} must be a constant", self.name()),
        };
        let json = json.to_array(if scalar_json { 1 } else { rows })?;
        let picked = match self.kind {
            Kind::Text => text(&json, &key)?,
            Kind::Number => number(&json, &key)?,
        };
        Ok(if scalar_json {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&picked, 0)?)
        } else {
            ColumnarValue::Array(picked)
        })
    }
}

/// The keys of a dictionary made dense over the values in use, and those values, so that each is read once however large
/// the dictionary is.
fn used(dictionary: &DictionaryArray<Int32Type>) -> Result<(Int32Array, StringArray)> {
    let values = dictionary.values();
    let mut seen = vec![-1i32; values.len()];
    let mut order: Vec<i32> = Vec::new();
    let keys: Int32Array = dictionary
        .keys()
        .iter()
        .map(|k| {
            let k = k?;
            let slot = &mut seen[k as usize];
            if *slot < 0 {
                *slot = order.len() as i32;
                order.push(k);
            }
            Some(*slot)
        })
        .collect();
    let values = take(values, &Int32Array::from(order), None)?;
    Ok((keys, cast(&values, &DataType::Utf8)?.as_string::<i32>().clone()))
}

fn dictionary(json: &ArrayRef) -> Result<Option<(Int32Array, StringArray)>> {
    match json.data_type() {
        DataType::Dictionary(..) => Ok(Some(used(cast(json, &dict())?.as_dictionary::<Int32Type>())?)),
        _ => Ok(None),
    }
}

fn text(json: &ArrayRef, key: &str) -> Result<ArrayRef> {
    let pick = |values: &StringArray| {
        let mut out = StringBuilder::with_capacity(values.len(), values.len() * 8);
        for value in values {
            match value.and_then(|v| member(v, key)) {
                Some(raw) => match serde_json::from_str::<String>(raw.get()) {
                    Ok(text) => out.append_value(text),
                    Err(_) => out.append_value(raw.get()),
                },
                None => out.append_null(),
            }
        }
        out.finish()
    };
    Ok(match dictionary(json)? {
        Some((keys, values)) => {
            let picked = pick(&values);
            // A null among a dictionary's values is one more way to be null; most kernels look at keys only.
            let keys: Int32Array = keys.iter().map(|k| k.filter(|k| picked.is_valid(*k as usize))).collect();
            Arc::new(DictionaryArray::try_new(keys, Arc::new(picked))?)
        }
        None => Arc::new(pick(cast(json, &DataType::Utf8)?.as_string::<i32>())),
    })
}

fn number(json: &ArrayRef, key: &str) -> Result<ArrayRef> {
    let pick = |values: &StringArray| -> Float64Array {
        let mut out = Float64Builder::with_capacity(values.len());
        for value in values {
            let raw = value.and_then(|v| member(v, key));
            out.append_option(raw.and_then(|r| r.get().trim_matches('"').trim().parse::<f64>().ok()));
        }
        out.finish()
    };
    Ok(match dictionary(json)? {
        Some((keys, values)) => take(&pick(&values), &keys, None)?,
        None => Arc::new(pick(cast(json, &DataType::Utf8)?.as_string::<i32>())),
    })
}

/// The member of a JSON object, `None` if it is absent or null, or the text is no object.
fn member<'a>(json: &'a str, key: &str) -> Option<&'a RawValue> {
    let mut reader = serde_json::Deserializer::from_str(json);
    Member(key).deserialize(&mut reader).ok().flatten().filter(|raw| raw.get() != "null")
}

struct Member<'k>(&'k str);

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(hit) = map.next_key_seed(IsKey(self.0))? {
            if hit && found.is_none() {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Whether a key is the wanted one, without a copy of it.
struct IsKey<'k>(&'k str);

impl<'de> DeserializeSeed<'de> for IsKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_text_whatever_its_type_and_null_where_there_is_none() {
        let json: ArrayRef = Arc::new(StringArray::from(vec![
            Some(r#"{"a":"x\n","b":1}"#),
            Some(r#"{"b":2,"a":[1,{"c":2}]}"#),
            Some(r#"{"a":null}"#),
            Some("no object"),
            None,
        ]));
        let expected = vec![Some("x\n"), Some(r#"[1,{"c":2}]"#), None, None, None];
        assert_eq!(text(&json, "a").unwrap().as_string::<i32>(), &StringArray::from(expected.clone()));
        let coded = cast(&json, &dict()).unwrap();
        let picked = text(&coded, "a").unwrap();
        assert_eq!(picked.data_type(), &dict());
        assert_eq!(cast(&picked, &DataType::Utf8).unwrap().as_string::<i32>(), &StringArray::from(expected));
        let numbers = number(&coded, "b").unwrap();
        assert_eq!(
            numbers.as_primitive::<arrow::datatypes::Float64Type>(),
            &Float64Array::from(vec![Some(1.0), Some(2.0), None, None, None])
        );
    }
}
