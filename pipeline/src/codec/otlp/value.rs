//! `AnyValue` and lists of `KeyValue` on the wire to canonical JSON and to label text.

use storage::model::json;

use super::wire::{Reader, Wire};
use crate::codec::{Limits, Malformed, Reason};

/// Why a record cannot be taken: it alone, or the whole body.
#[derive(Debug)]
pub enum Fail {
    Malformed(Malformed),
    Refused(Reason, String),
}

impl From<Malformed> for Fail {
    fn from(m: Malformed) -> Self {
        Fail::Malformed(m)
    }
}

#[inline]
pub fn text<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, Fail> {
    std::str::from_utf8(bytes).map_err(|_| Fail::Refused(Reason::InvalidUtf8, format!("{what} is not valid UTF-8")))
}

/// An `AnyValue`, one level of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Any<'a> {
    Unset,
    Text(&'a str),
    Bool(bool),
    Int(i64),
    Double(f64),
    Array(&'a [u8]),
    Map(&'a [u8]),
    Bytes(&'a [u8]),
}

#[inline]
pub fn any(bytes: &[u8]) -> Result<Any<'_>, Fail> {
    let mut r = Reader::new(bytes);
    let mut value = Any::Unset;
    // Of a oneof the last on the wire counts.
    while let Some((number, wire)) = r.field()? {
        value = match number {
            1 => Any::Text(text(wire.bytes()?, "a string value")?),
            2 => Any::Bool(wire.varint()? != 0),
            3 => Any::Int(wire.varint()? as i64),
            4 => Any::Double(f64::from_bits(wire.fixed64()?)),
            5 => Any::Array(wire.bytes()?),
            6 => Any::Map(wire.bytes()?),
            7 => Any::Bytes(wire.bytes()?),
            _ => value,
        };
    }
    Ok(value)
}

/// Key and value of a `KeyValue`.
#[inline]
pub fn key_value(bytes: &[u8]) -> Result<(&str, &[u8]), Fail> {
    let mut r = Reader::new(bytes);
    let (mut key, mut value): (&str, &[u8]) = ("", &[]);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => key = text(wire.bytes()?, "an attribute key")?,
            2 => value = wire.bytes()?,
            _ => {}
        }
    }
    Ok((key, value))
}

/// Appends the canonical JSON object of attributes (`KeyValue` messages as sent). Of equal keys the last wins.
pub fn write_attributes(out: &mut String, sent: &[&[u8]], limits: &Limits, depth: usize) -> Result<(), Fail> {
    use std::fmt::Write as _;
    if depth == 0 {
        return Err(Fail::Refused(Reason::TooDeep, format!("value is nested deeper than {}", limits.depth_max)));
    }
    if sent.len() > limits.attributes_max {
        let limit = limits.attributes_max;
        let message = format!("{} attributes; at most {limit}", sent.len());
        return Err(Fail::Refused(Reason::TooManyAttributes, message));
    }
    let mut pairs = Vec::with_capacity(sent.len());
    for kv in sent {
        pairs.push(key_value(kv)?);
    }
    pairs.sort_by(|a, b| a.0.cmp(b.0));
    out.push('{');
    let mut first = true;
    for (i, (key, value)) in pairs.iter().enumerate() {
        if pairs.get(i + 1).is_some_and(|next| next.0 == *key) {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        json::write_string(out, key);
        out.push(':');
        match any(value)? {
            Any::Text(s) => json::write_string(out, s),
            Any::Int(i) => {
                let _ = write!(out, "{i}");
            }
            other => write_any(out, other, limits, depth - 1)?,
        }
    }
    out.push('}');
    Ok(())
}

/// Appends the canonical JSON of a value.
pub fn write_any(out: &mut String, value: Any<'_>, limits: &Limits, depth: usize) -> Result<(), Fail> {
    use std::fmt::Write as _;
    if depth == 0 {
        return Err(Fail::Refused(Reason::TooDeep, format!("value is nested deeper than {}", limits.depth_max)));
    }
    match value {
        Any::Unset => out.push_str("null"),
        Any::Text(s) => json::write_string(out, s),
        Any::Bool(b) => out.push_str(if b { "true" } else { "false" }),
        Any::Int(i) => {
            let _ = write!(out, "{i}");
        }
        Any::Double(d) => json::write_double(out, d),
        Any::Bytes(b) => json::write_bytes(out, b),
        Any::Array(bytes) => {
            out.push('[');
            let mut first = true;
            let mut r = Reader::new(bytes);
            while let Some((number, wire)) = r.field()? {
                if number == 1 {
                    if !std::mem::take(&mut first) {
                        out.push(',');
                    }
                    write_any(out, any(wire.bytes()?)?, limits, depth - 1)?;
                }
            }
            out.push(']');
        }
        Any::Map(bytes) => {
            let sent = repeated(bytes, 1)?;
            write_attributes(out, &sent, limits, depth)?;
        }
    }
    Ok(())
}

/// The messages of a repeated field.
pub fn repeated(bytes: &[u8], number: u32) -> Result<Vec<&[u8]>, Malformed> {
    let mut out = Vec::new();
    let mut r = Reader::new(bytes);
    while let Some((n, wire)) = r.field()? {
        if n == number {
            out.push(wire.bytes()?);
        }
    }
    Ok(out)
}

/// A value as a label's text: strings as they are, doubles shortest, arrays and maps as JSON, bytes as base64.
pub fn label_text(value: Any<'_>, limits: &Limits) -> Result<String, Fail> {
    use base64::Engine as _;
    Ok(match value {
        Any::Unset => String::new(),
        Any::Text(s) => s.to_owned(),
        Any::Double(d) => d.to_string(),
        Any::Bytes(b) => base64::engine::general_purpose::STANDARD.encode(b),
        other => {
            let mut out = String::new();
            write_any(&mut out, other, limits, limits.depth_max)?;
            out
        }
    })
}

/// `EntityRef` messages as canonical JSON; `None`: there are none.
pub fn entities_json<'a>(sent: impl Iterator<Item = &'a [u8]>) -> Result<Option<String>, Fail> {
    let mut out = String::from("[");
    for entity in sent {
        if out.len() > 1 {
            out.push(',');
        }
        let (mut schema, mut kind) = ("", "");
        let (mut ids, mut descriptions): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        let mut r = Reader::new(entity);
        while let Some((number, wire)) = r.field()? {
            match number {
                1 => schema = text(wire.bytes()?, "an entity's schema URL")?,
                2 => kind = text(wire.bytes()?, "an entity's type")?,
                3 => ids.push(text(wire.bytes()?, "an entity's key")?),
                4 => descriptions.push(text(wire.bytes()?, "an entity's key")?),
                _ => {}
            }
        }
        let list = |out: &mut String, keys: &[&str]| {
            out.push('[');
            for (i, key) in keys.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                json::write_string(out, key);
            }
            out.push(']');
        };
        out.push_str("{\"description_keys\":");
        list(&mut out, &descriptions);
        out.push_str(",\"id_keys\":");
        list(&mut out, &ids);
        out.push_str(",\"schema_url\":");
        json::write_string(&mut out, schema);
        out.push_str(",\"type\":");
        json::write_string(&mut out, kind);
        out.push('}');
    }
    Ok((out.len() > 1).then(|| out + "]"))
}

/// As [`write_meta`], for a resource: with its entity references.
pub fn write_resource_meta(dropped: u64, entities: Option<&str>, schema_url: &str) -> Option<String> {
    let rest = write_meta(None, dropped, schema_url, "");
    let Some(entities) = entities else { return rest };
    // Keys in order: what is dropped, entities, the schema.
    let mut out = String::from("{");
    if dropped > 0 {
        out.push_str(&format!("\"dropped_attributes_count\":{dropped},"));
    }
    out.push_str("\"entity_refs\":");
    out.push_str(entities);
    if !schema_url.is_empty() {
        out.push_str(",\"schema_url\":");
        json::write_string(&mut out, schema_url);
    }
    out.push('}');
    Some(out)
}

/// What a resource or scope says beside its name and attributes, as canonical JSON; `None`: nothing.
pub fn write_meta(attributes: Option<&str>, dropped: u64, schema_url: &str, version: &str) -> Option<String> {
    use std::fmt::Write as _;
    let mut out = String::from("{");
    let key = |out: &mut String, name: &str| {
        if out.len() > 1 {
            out.push(',');
        }
        let _ = write!(out, "\"{name}\":");
    };
    if let Some(a) = attributes {
        key(&mut out, "attributes");
        out.push_str(a);
    }
    if dropped > 0 {
        key(&mut out, "dropped_attributes_count");
        let _ = write!(out, "{dropped}");
    }
    if !schema_url.is_empty() {
        key(&mut out, "schema_url");
        json::write_string(&mut out, schema_url);
    }
    if !version.is_empty() {
        key(&mut out, "version");
        json::write_string(&mut out, version);
    }
    (out.len() > 1).then(|| out + "}")
}

/// A `Resource`, read once for all that it holds.
#[derive(Debug, Default)]
pub struct Resource<'a> {
    /// `KeyValue` messages.
    pub attributes: Vec<&'a [u8]>,
    /// Canonical JSON; `None`: no attributes.
    pub attrs: Option<String>,
    pub meta: Option<String>,
}

impl<'a> Resource<'a> {
    pub fn read(bytes: &'a [u8], schema_url: &str, limits: &Limits) -> Result<Self, Fail> {
        let mut out = Resource::default();
        let (mut dropped, mut entities) = (0, Vec::new());
        let mut r = Reader::new(bytes);
        while let Some((number, wire)) = r.field()? {
            match number {
                1 => out.attributes.push(wire.bytes()?),
                2 => dropped = wire.varint()? & 0xffff_ffff,
                3 => entities.push(wire.bytes()?),
                _ => {}
            }
        }
        if !out.attributes.is_empty() {
            let mut json = String::new();
            write_attributes(&mut json, &out.attributes, limits, limits.depth_max)?;
            out.attrs = Some(json);
        }
        let entities = entities_json(entities.into_iter())?;
        out.meta = write_resource_meta(dropped, entities.as_deref(), schema_url);
        Ok(out)
    }

    /// The last value of an attribute.
    pub fn get(&self, name: &str) -> Result<Option<Any<'a>>, Fail> {
        for kv in self.attributes.iter().rev() {
            let (key, value) = key_value(kv)?;
            if key == name {
                return any(value).map(Some);
            }
        }
        Ok(None)
    }
}

/// An `InstrumentationScope`.
#[derive(Debug, Default)]
pub struct Scope<'a> {
    pub name: Option<&'a str>,
    pub meta: Option<String>,
}

impl<'a> Scope<'a> {
    pub fn read(bytes: &'a [u8], schema_url: &str, limits: &Limits) -> Result<Self, Fail> {
        let (mut name, mut version, mut dropped, mut attributes) = ("", "", 0, Vec::new());
        let mut r = Reader::new(bytes);
        while let Some((number, wire)) = r.field()? {
            match number {
                1 => name = text(wire.bytes()?, "a scope name")?,
                2 => version = text(wire.bytes()?, "a scope version")?,
                3 => attributes.push(wire.bytes()?),
                4 => dropped = wire.varint()? & 0xffff_ffff,
                _ => {}
            }
        }
        let mut json = None;
        if !attributes.is_empty() {
            let out: &mut String = json.insert(String::new());
            write_attributes(out, &attributes, limits, limits.depth_max)?;
        }
        let meta = write_meta(json.as_deref(), dropped, schema_url, version);
        Ok(Scope { name: Some(name).filter(|n| !n.is_empty()), meta })
    }
}

/// The parts of a `ResourceX` or `ScopeX` message: what it describes (1), its schema URL (3), its members (2).
pub struct Group<'a> {
    pub head: &'a [u8],
    pub schema_url: &'a [u8],
    pub members: Vec<&'a [u8]>,
}

impl<'a> Group<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut out = Group { head: &[], schema_url: &[], members: Vec::new() };
        let mut r = Reader::new(bytes);
        while let Some((number, wire)) = r.field()? {
            match (number, wire) {
                (1, Wire::Bytes(b)) => out.head = b,
                (2, Wire::Bytes(b)) => out.members.push(b),
                (3, Wire::Bytes(b)) => out.schema_url = b,
                (1..=3, _) => {
                    wire.bytes()?;
                }
                _ => {}
            }
        }
        Ok(out)
    }

    /// Records in a resource's groups: what is lost when the resource cannot be taken.
    pub fn count_records(&self) -> Result<u64, Malformed> {
        let mut n = 0;
        for scope in &self.members {
            n += Group::read(scope)?.members.len() as u64;
        }
        Ok(n)
    }
}
