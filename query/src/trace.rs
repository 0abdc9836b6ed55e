//! Rows of the table `spans` back to OTLP: one trace, grouped by resource and scope, without loss.
//!
//! Of rows with the same span id and kind the one committed last counts. Groups come in the order of their earliest
//! span, spans by start time.

use std::collections::HashMap;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    datatypes::{Int32Type, Int64Type, TimestampNanosecondType},
};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
    },
};
use storage::model::json::{self, Value};

use crate::{error::QueryError, fetch::column};

/// What spans of one scope of one resource have in common, as stored.
#[derive(Clone, PartialEq, Eq, Hash)]
struct GroupKey {
    resource_attrs: Option<String>,
    resource_meta: Option<String>,
    scope_name: Option<String>,
    scope_meta: Option<String>,
}

/// Canonical JSON of a resource's attributes and of the rest.
type ResourceKey = (Option<String>, Option<String>);

/// The spans of `batches` (stored schema, all columns) in commit order.
pub fn assemble(batches: &[RecordBatch]) -> Result<Vec<ResourceSpans>, QueryError> {
    let mut rows: Vec<(GroupKey, Span)> = Vec::new();
    let mut index: HashMap<(Vec<u8>, i32), usize> = HashMap::new();
    for batch in batches {
        let columns = Columns::of(batch)?;
        for i in 0..batch.num_rows() {
            let row = (columns.group(i), columns.span(i)?);
            match index.entry((row.1.span_id.clone(), row.1.kind)) {
                std::collections::hash_map::Entry::Occupied(e) => rows[*e.get()] = row,
                std::collections::hash_map::Entry::Vacant(e) => {
                    e.insert(rows.len());
                    rows.push(row);
                }
            }
        }
    }
    rows.sort_by_key(|(_, s)| s.start_time_unix_nano);
    let mut resources: Vec<(ResourceKey, ResourceSpans)> = Vec::new();
    let mut resource_index: HashMap<(Option<String>, Option<String>), usize> = HashMap::new();
    let mut scope_index: HashMap<GroupKey, usize> = HashMap::new();
    for (key, span) in rows {
        let resource_key = (key.resource_attrs.clone(), key.resource_meta.clone());
        let r = match resource_index.get(&resource_key) {
            Some(r) => *r,
            None => {
                resources.push((resource_key.clone(), resource(&resource_key)?));
                resource_index.insert(resource_key, resources.len() - 1);
                resources.len() - 1
            }
        };
        let scopes = &mut resources[r].1.scope_spans;
        let s = match scope_index.get(&key) {
            Some(s) => *s,
            None => {
                scopes.push(scope(&key)?);
                scope_index.insert(key, scopes.len() - 1);
                scopes.len() - 1
            }
        };
        scopes[s].spans.push(span);
    }
    Ok(resources.into_iter().map(|(_, r)| r).collect())
}

fn read(text: &str) -> Result<Value, QueryError> {
    json::parse(text).map_err(|e| QueryError::Internal(format!("stored attributes: {e}")))
}

fn meta(text: Option<&str>) -> Result<Value, QueryError> {
    text.map_or(Ok(Value::Unset), read)
}

fn text_of(meta: &Value, key: &str) -> String {
    meta.get(key).and_then(Value::as_str).unwrap_or("").to_owned()
}

fn count_of(meta: &Value, key: &str) -> u32 {
    meta.get(key).and_then(Value::as_int).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

fn resource((attrs, meta_text): &(Option<String>, Option<String>)) -> Result<ResourceSpans, QueryError> {
    let meta = meta(meta_text.as_deref())?;
    let attributes = attributes(attrs.as_deref())?;
    Ok(ResourceSpans {
        resource: Some(Resource {
            attributes,
            dropped_attributes_count: count_of(&meta, "dropped_attributes_count"),
            ..Resource::default()
        }),
        scope_spans: Vec::new(),
        schema_url: text_of(&meta, "schema_url"),
    })
}

fn scope(key: &GroupKey) -> Result<ScopeSpans, QueryError> {
    let meta = meta(key.scope_meta.as_deref())?;
    Ok(ScopeSpans {
        scope: Some(InstrumentationScope {
            name: key.scope_name.clone().unwrap_or_default(),
            version: text_of(&meta, "version"),
            attributes: meta.get("attributes").cloned().map(key_values).unwrap_or_default(),
            dropped_attributes_count: count_of(&meta, "dropped_attributes_count"),
        }),
        spans: Vec::new(),
        schema_url: text_of(&meta, "schema_url"),
    })
}

fn attributes(text: Option<&str>) -> Result<Vec<KeyValue>, QueryError> {
    text.map_or(Ok(Vec::new()), |t| Ok(key_values(read(t)?)))
}

/// The pairs of a map; nothing of anything else.
fn key_values(value: Value) -> Vec<KeyValue> {
    let Value::Map(pairs) = value else { return Vec::new() };
    pairs.into_iter().map(|(key, v)| KeyValue { key, value: Some(any_value(v)), ..KeyValue::default() }).collect()
}

/// OTLP's `AnyValue` of a canonical value.
pub fn any_value(value: Value) -> AnyValue {
    use any_value::Value as Any;
    let value = match value {
        Value::Unset => None,
        Value::Bool(b) => Some(Any::BoolValue(b)),
        Value::Int(i) => Some(Any::IntValue(i)),
        Value::Double(d) => Some(Any::DoubleValue(d)),
        Value::String(s) => Some(Any::StringValue(s)),
        Value::Bytes(b) => Some(Any::BytesValue(b)),
        Value::Array(a) => Some(Any::ArrayValue(ArrayValue { values: a.into_iter().map(any_value).collect() })),
        map @ Value::Map(_) => Some(Any::KvlistValue(KeyValueList { values: key_values(map) })),
    };
    AnyValue { value }
}

fn events(text: Option<&str>) -> Result<Vec<Event>, QueryError> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let Value::Array(list) = read(text)? else { return Ok(Vec::new()) };
    Ok(list
        .into_iter()
        .map(|e| Event {
            time_unix_nano: e.get("time_unix_nano").and_then(Value::as_int).unwrap_or(0) as u64,
            name: text_of(&e, "name"),
            attributes: e.get("attributes").cloned().map(key_values).unwrap_or_default(),
            dropped_attributes_count: count_of(&e, "dropped_attributes_count"),
        })
        .collect())
}

fn links(text: Option<&str>) -> Result<Vec<Link>, QueryError> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let Value::Array(list) = read(text)? else { return Ok(Vec::new()) };
    let id = |l: &Value, key| hex::decode(text_of(l, key)).unwrap_or_default();
    Ok(list
        .into_iter()
        .map(|l| Link {
            trace_id: id(&l, "trace_id"),
            span_id: id(&l, "span_id"),
            trace_state: text_of(&l, "trace_state"),
            attributes: l.get("attributes").cloned().map(key_values).unwrap_or_default(),
            dropped_attributes_count: count_of(&l, "dropped_attributes_count"),
            flags: count_of(&l, "flags"),
        })
        .collect())
}

/// A column of text, dictionary or plain.
enum Text<'a> {
    Plain(&'a StringArray),
    Dictionary(&'a arrow::array::DictionaryArray<Int32Type>, &'a StringArray),
}

impl<'a> Text<'a> {
    fn of(array: &'a ArrayRef) -> Result<Self, QueryError> {
        if let Some(plain) = array.as_string_opt::<i32>() {
            return Ok(Text::Plain(plain));
        }
        let dictionary = array.as_dictionary_opt::<Int32Type>();
        let values = dictionary.and_then(|d| d.values().as_string_opt::<i32>());
        match (dictionary, values) {
            (Some(d), Some(v)) => Ok(Text::Dictionary(d, v)),
            _ => Err(QueryError::Internal("a text column of spans is no text".into())),
        }
    }

    fn get(&self, i: usize) -> Option<&'a str> {
        match self {
            Text::Plain(a) => a.is_valid(i).then(|| a.value(i)),
            Text::Dictionary(d, v) => d.is_valid(i).then(|| v.value(d.keys().value(i) as usize)),
        }
    }
}

/// The columns of one batch.
struct Columns<'a> {
    batch: &'a RecordBatch,
    text: HashMap<&'static str, Text<'a>>,
}

const TEXT_COLUMNS: [&str; 10] = [
    "name",
    "status_message",
    "trace_state",
    "scope_name",
    "scope_meta",
    "resource_attrs",
    "resource_meta",
    "attrs",
    "events",
    "links",
];

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self, QueryError> {
        let text = TEXT_COLUMNS
            .into_iter()
            .map(|name| Ok((name, Text::of(column(batch, name)?)?)))
            .collect::<Result<_, QueryError>>()?;
        Ok(Columns { batch, text })
    }

    fn str(&self, name: &'static str, i: usize) -> Option<&'a str> {
        self.text.get(name).and_then(|t| t.get(i))
    }

    fn owned(&self, name: &'static str, i: usize) -> Option<String> {
        self.str(name, i).map(str::to_owned)
    }

    fn bytes(&self, name: &str, i: usize) -> Result<Vec<u8>, QueryError> {
        let a = column(self.batch, name)?.as_binary::<i32>();
        Ok(if a.is_valid(i) { a.value(i).to_vec() } else { Vec::new() })
    }

    fn long(&self, name: &str, i: usize) -> Result<i64, QueryError> {
        let a = column(self.batch, name)?.as_primitive::<Int64Type>();
        Ok(if a.is_valid(i) { a.value(i) } else { 0 })
    }

    fn int(&self, name: &str, i: usize) -> Result<i32, QueryError> {
        Ok(column(self.batch, name)?.as_primitive::<Int32Type>().value(i))
    }

    fn count(&self, name: &str, i: usize) -> Result<u32, QueryError> {
        Ok(u32::try_from(self.long(name, i)?).unwrap_or(0))
    }

    fn group(&self, i: usize) -> GroupKey {
        GroupKey {
            resource_attrs: self.owned("resource_attrs", i),
            resource_meta: self.owned("resource_meta", i),
            scope_name: self.owned("scope_name", i),
            scope_meta: self.owned("scope_meta", i),
        }
    }

    fn span(&self, i: usize) -> Result<Span, QueryError> {
        // Stored as i64: times past 2262 wrap there and back again here.
        let start = column(self.batch, "ts")?.as_primitive::<TimestampNanosecondType>().value(i);
        let duration = self.long("duration_ns", i)?;
        Ok(Span {
            trace_id: self.bytes("trace_id", i)?,
            span_id: self.bytes("span_id", i)?,
            trace_state: self.owned("trace_state", i).unwrap_or_default(),
            parent_span_id: self.bytes("parent_span_id", i)?,
            flags: self.count("flags", i)?,
            name: self.owned("name", i).unwrap_or_default(),
            kind: self.int("kind", i)?,
            start_time_unix_nano: start as u64,
            end_time_unix_nano: start.wrapping_add(duration) as u64,
            attributes: attributes(self.str("attrs", i))?,
            dropped_attributes_count: self.count("dropped_attributes_count", i)?,
            events: events(self.str("events", i))?,
            dropped_events_count: self.count("dropped_events_count", i)?,
            links: links(self.str("links", i))?,
            dropped_links_count: self.count("dropped_links_count", i)?,
            status: Some(Status {
                message: self.owned("status_message", i).unwrap_or_default(),
                code: self.int("status_code", i)?,
            }),
        })
    }
}
