//! JSON values of a line to canonical JSON, and the general parser for lines that the scanner calls odd.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Value, value::RawValue};
use storage::model::json;

use super::scan::{Field, Kind};
use crate::codec::{Limits, Reason};

/// Why a value or line is refused.
pub type Refusal = (Reason, String);

/// One field of a line, its key perhaps unescaped.
pub struct OwnedField<'a> {
    key: Cow<'a, str>,
    raw: &'a str,
}

impl OwnedField<'_> {
    pub fn borrow(&self) -> Field<'_> {
        let kind = match self.raw.as_bytes()[0] {
            b'"' if self.raw.contains('\\') => Kind::Escaped,
            b'"' => Kind::Plain,
            b'{' | b'[' => Kind::Nested,
            _ => Kind::Scalar,
        };
        Field { key: &self.key, raw: self.raw, kind }
    }
}

struct Fields<'a>(Vec<OwnedField<'a>>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut out = Vec::new();
                while let Some((key, raw)) = map.next_entry::<String, &'de RawValue>()? {
                    out.push(OwnedField { key: Cow::Owned(key), raw: raw.get() });
                }
                Ok(Fields(out))
            }
        }
        d.deserialize_map(Collect)
    }
}

/// The text of a member of an object, where it is one and not empty.
pub fn member(object: &Field<'_>, name: &str) -> Option<String> {
    let fields = parse_line(object.raw).ok()?;
    let found = fields.iter().rev().find(|f| f.key == name)?;
    serde_json::from_str::<String>(found.raw).ok().filter(|text| !text.is_empty())
}

/// The fields of a line by the general parser.
pub fn parse_line(line: &str) -> Result<Vec<OwnedField<'_>>, Refusal> {
    serde_json::from_str::<Fields<'_>>(line).map(|f| f.0).map_err(|e| (Reason::Malformed, describe(&e)))
}

fn describe(e: &serde_json::Error) -> String {
    // serde_json counts lines within the line; only the column is news.
    let text = e.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("invalid JSON at column {}: {what}", e.column())
}

/// Appends the canonical JSON of a value's text.
pub fn write_canonical(out: &mut String, field: &Field<'_>, limits: &Limits) -> Result<(), Refusal> {
    match field.kind {
        // No escapes, no control characters: it is its own canonical form.
        Kind::Plain => out.push_str(field.raw),
        Kind::Scalar if matches!(field.raw, "true" | "false" | "null") || is_plain_integer(field.raw) => {
            out.push_str(field.raw);
        }
        _ => {
            let value = parse_value(field.raw)?;
            // The JSON reader's doubles are off by the last bit now and then; the text is not.
            if let (Value::Number(n), Ok(exact)) = (&value, field.raw.parse::<f64>())
                && n.is_f64()
            {
                json::write_double(out, exact);
                return Ok(());
            }
            write_value(out, &value, limits, limits.depth_max)?;
        }
    }
    Ok(())
}

/// An integer of up to 18 digits in its only JSON form.
fn is_plain_integer(raw: &str) -> bool {
    let digits = raw.strip_prefix('-').unwrap_or(raw).as_bytes();
    (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit) && (digits[0] != b'0' || raw.len() == 1)
}

pub fn parse_value(raw: &str) -> Result<Value, Refusal> {
    serde_json::from_str(raw).map_err(|e| {
        let reason = if e.to_string().contains("recursion limit") { Reason::TooDeep } else { Reason::Malformed };
        (reason, describe(&e))
    })
}

pub fn write_value(out: &mut String, value: &Value, limits: &Limits, depth: usize) -> Result<(), Refusal> {
    use fmt::Write as _;
    if depth == 0 {
        return Err((Reason::TooDeep, format!("value is nested deeper than {}", limits.depth_max)));
    }
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(i), ..) => {
                let _ = write!(out, "{i}");
            }
            (_, Some(u), _) => {
                let _ = write!(out, "{u}");
            }
            (.., f) => json::write_double(out, f.unwrap_or(f64::NAN)),
        },
        Value::String(s) => json::write_string(out, s),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_value(out, item, limits, depth - 1)?;
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (i, (k, v)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                json::write_string(out, k);
                out.push(':');
                write_value(out, v, limits, depth - 1)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_keep_every_bit() {
        // Off by one bit when read fast.
        for raw in ["1.3200389356336975", "1.9831682502500634", "1.3753329151084461", "-0.0016308441446937503"] {
            let mut out = String::new();
            let field = Field { key: "x", raw, kind: Kind::Scalar };
            write_canonical(&mut out, &field, &Limits::default()).unwrap();
            assert_eq!(out, raw);
        }
    }
}
