//! Log rows to `ExportLogsServiceRequest`.

use std::collections::HashMap;

use arrow::array::RecordBatch;
use storage::model::{
    Labels,
    json::{self, Value},
};

use super::{
    super::{
        logs::stream_labels,
        value::Resource,
        wire::{put_bytes, put_int},
    },
    STREAM_LABELS, put_fixed32, put_fixed64,
    value::{self, Groups, Meta, ResourceHead},
    wire_time,
};
use crate::codec::{
    Limits,
    columns::{Blobs, EncodeError, Ints, SmallInts, Text, Times},
};

/// `batch`: input schema of the table `logs`.
pub fn encode_logs(batch: &RecordBatch) -> Result<Vec<u8>, EncodeError> {
    let (ts, observed) = (Times::of(batch, "ts")?, Times::of(batch, "observed_ts")?);
    let labels = Text::of(batch, "stream_labels")?;
    let number = SmallInts::of(batch, "severity_number")?;
    let severity = Text::of(batch, "severity_text")?;
    let event = Text::of(batch, "event_name")?;
    let flags = Ints::of(batch, "flags")?;
    let (trace, span) = (Blobs::of(batch, "trace_id")?, Blobs::of(batch, "span_id")?);
    let (body, body_type) = (Text::of(batch, "body")?, Text::of(batch, "body_type")?);
    let (scope_name, scope_meta) = (Text::of(batch, "scope_name")?, Text::of(batch, "scope_meta")?);
    let (attrs_of, meta_of) = (Text::of(batch, "resource_attrs")?, Text::of(batch, "resource_meta")?);
    let attrs = Text::of(batch, "attrs")?;
    let dropped = Ints::of(batch, "dropped_attributes_count")?;

    let mut groups = Groups::default();
    let mut known: HashMap<i32, Vec<u8>> = HashMap::new();
    let mut record = Vec::new();
    for row in 0..batch.num_rows() {
        record.clear();
        put_fixed64(&mut record, 1, wire_time(ts.at(row).unwrap_or(0)));
        if let Some(n) = number.at(row) {
            put_int(&mut record, 2, n as u64);
        }
        if let Some(text) = severity.at(row) {
            put_bytes(&mut record, 3, text.as_bytes());
        }
        let text = body.at(row).unwrap_or_default();
        if body_type.at(row) == Some("json") {
            let parsed = json::parse(text).map_err(|e| EncodeError::column("body", e))?;
            put_bytes(&mut record, 5, &value::any(&parsed));
        } else {
            put_bytes(&mut record, 5, &value::text(text));
        }
        let key = attrs.key(row);
        if let Some(text) = attrs.text(key) {
            let encoded = match known.entry(key) {
                std::collections::hash_map::Entry::Occupied(e) => e.into_mut(),
                std::collections::hash_map::Entry::Vacant(e) => {
                    let mut bytes = Vec::new();
                    value::put_pairs(&mut bytes, 6, &value::parse_map(text, "attrs")?);
                    e.insert(bytes)
                }
            };
            record.extend_from_slice(encoded);
        }
        if let Some(n) = dropped.at(row) {
            put_int(&mut record, 7, n.max(0) as u64);
        }
        if let Some(n) = flags.at(row) {
            put_fixed32(&mut record, 8, n as u32);
        }
        if let Some(id) = trace.at(row) {
            put_bytes(&mut record, 9, id);
        }
        if let Some(id) = span.at(row) {
            put_bytes(&mut record, 10, id);
        }
        if let Some(t) = observed.at(row) {
            put_fixed64(&mut record, 11, wire_time(t));
        }
        if let Some(name) = event.at(row) {
            put_bytes(&mut record, 12, name.as_bytes());
        }
        let resource_key = [labels.key(row), attrs_of.key(row), meta_of.key(row)];
        let scope_key = [scope_name.key(row), scope_meta.key(row)];
        let records = groups.records(
            resource_key,
            scope_key,
            || {
                let labels = labels.text(resource_key[0]).unwrap_or("{}");
                resource(labels, attrs_of.text(resource_key[1]), meta_of.text(resource_key[2]))
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

/// The resource of a stream, marked where its attributes alone would make another stream.
fn resource(labels_json: &str, attrs: Option<&str>, meta: Option<&str>) -> Result<ResourceHead, EncodeError> {
    let meta = Meta::parse(meta, "resource_meta")?;
    let labels = Labels::from_json(labels_json).map_err(|e| EncodeError::column("stream_labels", e))?;
    let Some(attrs) = attrs else {
        // Born without a resource: the labels are what any receiver should know it by.
        let mut pairs: Vec<(String, Value)> =
            labels.iter().map(|(n, v)| (n.to_owned(), Value::String(v.to_owned()))).collect();
        pairs.push((STREAM_LABELS.to_owned(), Value::Bool(true)));
        return Ok((value::resource(&pairs, &meta), meta.schema_url));
    };
    let mut pairs = value::parse_map(attrs, "resource_attrs")?;
    let plain = value::resource(&pairs, &meta);
    let derived = Resource::read(&plain, "", &Limits::default()).and_then(|r| stream_labels(&r, &Limits::default()));
    if derived.is_ok_and(|d| d == labels) {
        return Ok((plain, meta.schema_url));
    }
    let own = labels.iter().map(|(n, v)| (n.to_owned(), Value::String(v.to_owned()))).collect();
    pairs.push((STREAM_LABELS.to_owned(), Value::Map(own)));
    Ok((value::resource(&pairs, &meta), meta.schema_url))
}
