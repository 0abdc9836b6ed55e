//! Spans to `ExportTraceServiceRequest`.

use arrow::array::RecordBatch;
use storage::model::json::{self, Value};

use super::{
    super::wire::{put_bytes, put_int},
    put_fixed32, put_fixed64,
    value::{self, Groups, Meta},
};
use crate::codec::columns::{Blobs, EncodeError, Ints, NULL, SmallInts, Text, Times};

/// `batch`: input schema of the table `spans`.
pub fn encode_traces(batch: &RecordBatch) -> Result<Vec<u8>, EncodeError> {
    let (trace, span) = (Blobs::of(batch, "trace_id")?, Blobs::of(batch, "span_id")?);
    let parent = Blobs::of(batch, "parent_span_id")?;
    let (ts, duration) = (Times::of(batch, "ts")?, Ints::of(batch, "duration_ns")?);
    let name = Text::of(batch, "name")?;
    let (kind, status) = (SmallInts::of(batch, "kind")?, SmallInts::of(batch, "status_code")?);
    let message = Text::of(batch, "status_message")?;
    let state = Text::of(batch, "trace_state")?;
    let flags = Ints::of(batch, "flags")?;
    let (scope_name, scope_meta) = (Text::of(batch, "scope_name")?, Text::of(batch, "scope_meta")?);
    let (attrs_of, meta_of) = (Text::of(batch, "resource_attrs")?, Text::of(batch, "resource_meta")?);
    let attrs = Text::of(batch, "attrs")?;
    let (events, links) = (Text::of(batch, "events")?, Text::of(batch, "links")?);
    let dropped_attributes = Ints::of(batch, "dropped_attributes_count")?;
    let dropped_events = Ints::of(batch, "dropped_events_count")?;
    let dropped_links = Ints::of(batch, "dropped_links_count")?;

    let mut groups = Groups::default();
    let mut record = Vec::new();
    for row in 0..batch.num_rows() {
        record.clear();
        put_bytes(&mut record, 1, trace.at(row).unwrap_or_default());
        put_bytes(&mut record, 2, span.at(row).unwrap_or_default());
        if let Some(text) = state.at(row) {
            put_bytes(&mut record, 3, text.as_bytes());
        }
        if let Some(id) = parent.at(row) {
            put_bytes(&mut record, 4, id);
        }
        put_bytes(&mut record, 5, name.at(row).unwrap_or_default().as_bytes());
        put_int(&mut record, 6, i64::from(kind.at(row).unwrap_or(0)) as u64);
        let start = ts.at(row).unwrap_or(0);
        put_fixed64(&mut record, 7, u64::try_from(start).unwrap_or(0));
        let end = start.saturating_add(duration.at(row).unwrap_or(0));
        put_fixed64(&mut record, 8, u64::try_from(end).unwrap_or(0));
        if let Some(text) = attrs.at(row) {
            value::put_pairs(&mut record, 9, &value::parse_map(text, "attrs")?);
        }
        put_count(&mut record, 10, dropped_attributes.at(row));
        if let Some(text) = events.at(row) {
            for event in list(text, "events")? {
                put_bytes(&mut record, 11, &self::event(&event));
            }
        }
        put_count(&mut record, 12, dropped_events.at(row));
        if let Some(text) = links.at(row) {
            for link in list(text, "links")? {
                put_bytes(&mut record, 13, &self::link(&link));
            }
        }
        put_count(&mut record, 14, dropped_links.at(row));
        let mut outcome = Vec::new();
        if let Some(text) = message.at(row) {
            put_bytes(&mut outcome, 2, text.as_bytes());
        }
        if let Some(code) = status.at(row).filter(|c| *c != 0) {
            put_int(&mut outcome, 3, i64::from(code) as u64);
        }
        if !outcome.is_empty() {
            put_bytes(&mut record, 15, &outcome);
        }
        if let Some(n) = flags.at(row) {
            put_fixed32(&mut record, 16, n as u32);
        }
        let resource_key = [NULL, attrs_of.key(row), meta_of.key(row)];
        let scope_key = [scope_name.key(row), scope_meta.key(row)];
        let records = groups.records(
            resource_key,
            scope_key,
            || {
                let meta = Meta::parse(meta_of.text(resource_key[2]), "resource_meta")?;
                let pairs = match attrs_of.text(resource_key[1]) {
                    Some(text) => value::parse_map(text, "resource_attrs")?,
                    None => Vec::new(),
                };
                Ok((value::resource(&pairs, &meta), meta.schema_url))
            },
            || {
                let meta = Meta::parse(scope_meta.text(scope_key[1]), "scope_meta")?;
                Ok((value::scope(scope_name.text(scope_key[0]), &meta), meta.schema_url))
            },
        )?;
        put_bytes(records, 2, &record);
    }
    Ok(groups.finish())
}

fn put_count(out: &mut Vec<u8>, number: u32, count: Option<i64>) {
    if let Some(n) = count {
        put_int(out, number, n.max(0) as u64);
    }
}

fn list(text: &str, column: &str) -> Result<Vec<Value>, EncodeError> {
    match json::parse(text) {
        Ok(Value::Array(items)) => Ok(items),
        Ok(_) => Err(EncodeError::column(column, "holds JSON that is no list")),
        Err(e) => Err(EncodeError::column(column, e)),
    }
}

fn event(event: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let time = match event.get("time_unix_nano") {
        Some(Value::Int(n)) => *n as u64,
        // Beyond i64: such a time was never a real one.
        Some(Value::Double(d)) => *d as u64,
        _ => 0,
    };
    put_fixed64(&mut out, 1, time);
    put_bytes(&mut out, 2, event.get("name").and_then(Value::as_str).unwrap_or_default().as_bytes());
    put_attributes(&mut out, 3, event);
    put_dropped(&mut out, 4, event);
    out
}

fn link(link: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, name) in [(1, "trace_id"), (2, "span_id")] {
        let id = link.get(name).and_then(Value::as_str).and_then(|t| hex::decode(t).ok());
        put_bytes(&mut out, number, &id.unwrap_or_default());
    }
    put_bytes(&mut out, 3, link.get("trace_state").and_then(Value::as_str).unwrap_or_default().as_bytes());
    put_attributes(&mut out, 4, link);
    put_dropped(&mut out, 5, link);
    if let Some(flags) = link.get("flags").and_then(Value::as_int) {
        put_fixed32(&mut out, 6, flags as u32);
    }
    out
}

fn put_attributes(out: &mut Vec<u8>, number: u32, of: &Value) {
    if let Some(Value::Map(pairs)) = of.get("attributes") {
        value::put_pairs(out, number, pairs);
    }
}

fn put_dropped(out: &mut Vec<u8>, number: u32, of: &Value) {
    put_count(out, number, of.get("dropped_attributes_count").and_then(Value::as_int));
}
