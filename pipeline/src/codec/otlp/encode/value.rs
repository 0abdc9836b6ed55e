//! Canonical JSON to `AnyValue`, lists of `KeyValue`, resources and scopes on the wire.

use storage::model::json::{self, Value};

use super::super::wire::{put_bytes, put_int};
use crate::codec::columns::EncodeError;

/// The map that a column's canonical JSON says.
pub fn parse_map(text: &str, column: &str) -> Result<Vec<(String, Value)>, EncodeError> {
    match json::parse(text) {
        Ok(Value::Map(pairs)) => Ok(pairs),
        Ok(_) => Err(EncodeError::column(column, "holds JSON that is no object")),
        Err(e) => Err(EncodeError::column(column, e)),
    }
}

/// The body of an `AnyValue`; empty for an unset value.
pub fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    match value {
        Value::Unset => {}
        Value::String(s) => put_bytes(&mut out, 1, s.as_bytes()),
        Value::Bool(b) => put_int(&mut out, 2, u64::from(*b)),
        Value::Int(i) => put_int(&mut out, 3, *i as u64),
        Value::Double(d) => super::put_fixed64(&mut out, 4, d.to_bits()),
        Value::Array(items) => {
            let mut list = Vec::new();
            for item in items {
                put_bytes(&mut list, 1, &any(item));
            }
            put_bytes(&mut out, 5, &list);
        }
        Value::Map(pairs) => {
            let mut list = Vec::new();
            put_pairs(&mut list, 1, pairs);
            put_bytes(&mut out, 6, &list);
        }
        Value::Bytes(b) => put_bytes(&mut out, 7, b),
    }
    out
}

/// Each pair as a `KeyValue` in field `number`.
pub fn put_pairs(out: &mut Vec<u8>, number: u32, pairs: &[(String, Value)]) {
    for (key, value) in pairs {
        put_pair(out, number, key, &any(value));
    }
}

/// `value`: the body of an `AnyValue`.
pub fn put_pair(out: &mut Vec<u8>, number: u32, key: &str, value: &[u8]) {
    let mut pair = Vec::with_capacity(key.len() + value.len() + 8);
    put_bytes(&mut pair, 1, key.as_bytes());
    put_bytes(&mut pair, 2, value);
    put_bytes(out, number, &pair);
}

/// A text as the body of an `AnyValue`.
pub fn text(value: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 4);
    put_bytes(&mut out, 1, value.as_bytes());
    out
}

/// What a `..._meta` column says.
#[derive(Debug, Default)]
pub struct Meta {
    pub attributes: Vec<(String, Value)>,
    pub dropped: u64,
    pub schema_url: String,
    pub version: String,
}

impl Meta {
    pub fn parse(text: Option<&str>, column: &str) -> Result<Meta, EncodeError> {
        let Some(text) = text else { return Ok(Meta::default()) };
        Ok(Meta::of(parse_map(text, column)?))
    }

    /// Members that are none of a resource or scope are left out.
    pub fn of(members: Vec<(String, Value)>) -> Meta {
        let mut out = Meta::default();
        for (key, value) in members {
            match (key.as_str(), value) {
                ("attributes", Value::Map(pairs)) => out.attributes = pairs,
                ("dropped_attributes_count", Value::Int(n)) => out.dropped = n.max(0) as u64,
                ("schema_url", Value::String(s)) => out.schema_url = s,
                ("version", Value::String(s)) => out.version = s,
                _ => {}
            }
        }
        out
    }
}

/// A `Resource` message.
pub fn resource(attributes: &[(String, Value)], meta: &Meta) -> Vec<u8> {
    let mut out = Vec::new();
    put_pairs(&mut out, 1, attributes);
    if meta.dropped > 0 {
        put_int(&mut out, 2, meta.dropped);
    }
    out
}

/// An `InstrumentationScope` message.
pub fn scope(name: Option<&str>, meta: &Meta) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(name) = name {
        put_bytes(&mut out, 1, name.as_bytes());
    }
    if !meta.version.is_empty() {
        put_bytes(&mut out, 2, meta.version.as_bytes());
    }
    put_pairs(&mut out, 3, &meta.attributes);
    if meta.dropped > 0 {
        put_int(&mut out, 4, meta.dropped);
    }
    out
}

/// Rows of one resource, by scope, while they are collected.
#[derive(Default)]
pub struct Groups {
    resources: Vec<(ResourceHead, Vec<Scope>)>,
    of_resource: std::collections::HashMap<[i32; 3], usize>,
    of_scope: std::collections::HashMap<(usize, [i32; 2]), usize>,
}

/// A `Resource` message and its schema URL.
pub type ResourceHead = (Vec<u8>, String);

struct Scope {
    head: Vec<u8>,
    schema_url: String,
    /// The records, each as a field 2.
    records: Vec<u8>,
}

impl Groups {
    /// Where the records of a resource and scope go. The heads are worked out once for each key.
    pub fn records(
        &mut self,
        resource_key: [i32; 3],
        scope_key: [i32; 2],
        resource: impl FnOnce() -> Result<ResourceHead, EncodeError>,
        scope: impl FnOnce() -> Result<ResourceHead, EncodeError>,
    ) -> Result<&mut Vec<u8>, EncodeError> {
        let r = match self.of_resource.get(&resource_key) {
            Some(r) => *r,
            None => {
                self.resources.push((resource()?, Vec::new()));
                self.of_resource.insert(resource_key, self.resources.len() - 1);
                self.resources.len() - 1
            }
        };
        let scopes = &mut self.resources[r].1;
        let s = match self.of_scope.get(&(r, scope_key)) {
            Some(s) => *s,
            None => {
                let (head, schema_url) = scope()?;
                scopes.push(Scope { head, schema_url, records: Vec::new() });
                self.of_scope.insert((r, scope_key), scopes.len() - 1);
                scopes.len() - 1
            }
        };
        Ok(&mut self.resources[r].1[s].records)
    }

    /// The whole request.
    pub fn finish(self) -> Vec<u8> {
        let mut out = Vec::new();
        for ((head, schema_url), scopes) in self.resources {
            let mut resource = Vec::new();
            put_bytes(&mut resource, 1, &head);
            for scope in scopes {
                let mut body = Vec::with_capacity(scope.records.len() + scope.head.len() + 16);
                if !scope.head.is_empty() {
                    put_bytes(&mut body, 1, &scope.head);
                }
                body.extend_from_slice(&scope.records);
                if !scope.schema_url.is_empty() {
                    put_bytes(&mut body, 3, scope.schema_url.as_bytes());
                }
                put_bytes(&mut resource, 2, &body);
            }
            if !schema_url.is_empty() {
                put_bytes(&mut resource, 3, schema_url.as_bytes());
            }
            put_bytes(&mut out, 1, &resource);
        }
        out
    }
}
