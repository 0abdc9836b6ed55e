//! Log rows to a `PushRequest`. What a push brought goes out as it came; of other rows what Loki knows of OTLP is kept:
//! attributes, severity, ids, resource and scope as structured metadata.

use std::collections::HashMap;

use arrow::array::RecordBatch;
use storage::model::{
    Labels,
    json::{self, Value},
};

use crate::codec::{
    columns::{Blobs, EncodeError, Ints, SmallInts, Text, Times},
    otlp::wire::{put_bytes, put_int},
    stream::sanitize_name,
};

/// `batch`: input schema of the table `logs`. Not compressed; requests may be put one after the other.
pub fn encode(batch: &RecordBatch) -> Result<Vec<u8>, EncodeError> {
    let (ts, labels, body) = (Times::of(batch, "ts")?, Text::of(batch, "stream_labels")?, Text::of(batch, "body")?);
    let metadata = Metadata::of(batch)?;
    let mut streams: Vec<Vec<u8>> = Vec::new();
    let mut stream_of: HashMap<i32, usize> = HashMap::new();
    let mut entry = Vec::new();
    for row in 0..batch.num_rows() {
        let key = labels.key(row);
        let at = match stream_of.get(&key) {
            Some(at) => *at,
            None => {
                let text = labels.text(key).unwrap_or("{}");
                let labels = Labels::from_json(text).map_err(|e| EncodeError::column("stream_labels", e))?;
                let mut stream = Vec::new();
                put_bytes(&mut stream, 1, selector(&labels).as_bytes());
                streams.push(stream);
                stream_of.insert(key, streams.len() - 1);
                streams.len() - 1
            }
        };
        entry.clear();
        let ns = ts.at(row).unwrap_or(0);
        let mut time = Vec::new();
        put_int(&mut time, 1, ns.div_euclid(1_000_000_000) as u64);
        put_int(&mut time, 2, ns.rem_euclid(1_000_000_000) as u64);
        put_bytes(&mut entry, 1, &time);
        put_bytes(&mut entry, 2, body.at(row).unwrap_or_default().as_bytes());
        for (name, value) in metadata.pairs(row)? {
            let mut pair = Vec::with_capacity(name.len() + value.len() + 8);
            put_bytes(&mut pair, 1, name.as_bytes());
            put_bytes(&mut pair, 2, value.as_bytes());
            put_bytes(&mut entry, 3, &pair);
        }
        put_bytes(&mut streams[at], 2, &entry);
    }
    let mut out = Vec::new();
    for stream in streams {
        put_bytes(&mut out, 1, &stream);
    }
    Ok(out)
}

/// `{a="1", b="x\"y"}` with names that Loki takes.
fn selector(labels: &Labels) -> String {
    let mut out = String::from("{");
    for (name, value) in labels.iter() {
        if out.len() > 1 {
            out.push_str(", ");
        }
        out.push_str(&sanitize_name(name));
        out.push('=');
        // Loki reads a Go string: its escapes are those of JSON, which are all that this writes.
        json::write_string(&mut out, value);
    }
    out.push('}');
    out
}

struct Metadata<'a> {
    attrs: Text<'a>,
    resource: Text<'a>,
    scope: Text<'a>,
    severity: Text<'a>,
    number: SmallInts<'a>,
    event: Text<'a>,
    trace: Blobs<'a>,
    span: Blobs<'a>,
    flags: Ints<'a>,
}

impl<'a> Metadata<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self, EncodeError> {
        Ok(Metadata {
            attrs: Text::of(batch, "attrs")?,
            resource: Text::of(batch, "resource_attrs")?,
            scope: Text::of(batch, "scope_name")?,
            severity: Text::of(batch, "severity_text")?,
            number: SmallInts::of(batch, "severity_number")?,
            event: Text::of(batch, "event_name")?,
            trace: Blobs::of(batch, "trace_id")?,
            span: Blobs::of(batch, "span_id")?,
            flags: Ints::of(batch, "flags")?,
        })
    }

    /// Names and values; of equal names the first, which is the row's own.
    fn pairs(&self, row: usize) -> Result<Vec<(String, String)>, EncodeError> {
        let mut out: Vec<(String, String)> = Vec::new();
        for (column, text) in [("attrs", self.attrs.at(row)), ("resource_attrs", self.resource.at(row))] {
            if let Some(text) = text {
                match json::parse(text) {
                    Ok(Value::Map(pairs)) => pairs.iter().for_each(|(k, v)| flatten(&mut out, k, v)),
                    _ => return Err(EncodeError::column(column, "holds JSON that is no object")),
                }
            }
        }
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value.filter(|v| !v.is_empty())
                && !out.iter().any(|(n, _)| n == name)
            {
                out.push((name.to_owned(), value));
            }
        };
        add("trace_id", self.trace.at(row).map(hex::encode));
        add("span_id", self.span.at(row).map(hex::encode));
        add("severity_number", self.number.at(row).map(|n| n.to_string()));
        add("severity_text", self.severity.at(row).map(str::to_owned));
        add("scope_name", self.scope.at(row).map(str::to_owned));
        add("event_name", self.event.at(row).map(str::to_owned));
        add("flags", self.flags.at(row).map(|n| n.to_string()));
        Ok(out)
    }
}

/// Maps become names put together with `_`; other values their text.
fn flatten(out: &mut Vec<(String, String)>, name: &str, value: &Value) {
    use base64::Engine as _;
    let text = match value {
        Value::Map(pairs) => {
            return pairs.iter().for_each(|(k, v)| flatten(out, &format!("{name}_{k}"), v));
        }
        Value::Unset => return,
        Value::String(s) => s.clone(),
        Value::Bool(b) => b.to_string(),
        Value::Int(i) => i.to_string(),
        Value::Double(d) => d.to_string(),
        Value::Bytes(b) => base64::engine::general_purpose::STANDARD.encode(b),
        Value::Array(items) => {
            let mut text = String::from("[");
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                write_json(&mut text, item);
            }
            text.push(']');
            text
        }
    };
    let name = sanitize_name(name);
    if !text.is_empty() && !out.iter().any(|(n, _)| *n == name) {
        out.push((name, text));
    }
}

/// A value as JSON that anybody reads.
pub(crate) fn write_json(out: &mut String, value: &Value) {
    use base64::Engine as _;
    use std::fmt::Write as _;
    match value {
        Value::Unset => out.push_str("null"),
        Value::Bool(b) => {
            let _ = write!(out, "{b}");
        }
        Value::Int(i) => {
            let _ = write!(out, "{i}");
        }
        Value::Double(d) if d.is_finite() => json::write_double(out, *d),
        Value::Double(d) => json::write_string(out, &d.to_string()),
        Value::String(s) => json::write_string(out, s),
        Value::Bytes(b) => json::write_string(out, &base64::engine::general_purpose::STANDARD.encode(b)),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_json(out, item);
            }
            out.push(']');
        }
        Value::Map(pairs) => {
            out.push('{');
            for (i, (key, item)) in pairs.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                json::write_string(out, key);
                out.push(':');
                write_json(out, item);
            }
            out.push('}');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode_protobuf;
    use super::*;
    use crate::{
        Batch, Data,
        codec::{Limits, loki::decode_json},
        sink::stdout::write_batch,
    };
    use storage::model::TenantId;

    fn lines(batches: &[Data]) -> Vec<String> {
        let mut out: Vec<String> = batches
            .iter()
            .flat_map(|d| {
                let text = write_batch(&Batch::new(TenantId::default(), d.clone())).unwrap();
                text.lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        out.sort();
        out
    }

    #[test]
    fn a_push_goes_out_as_it_came() {
        let body = br#"{"streams":[
            {"stream":{"app":"a\"b\\c\nd","env":"prod"},"values":[
                ["1700000000000000001","one",{"trace_id":"0af7651916cd43dd8448eb211c80319c","user":"7"}],
                ["1700000000000000002","two\u0001"]]},
            {"stream":{"app":"z"},"values":[["1700000000000000003","level=error x",{"detected_level":"warn"}]]}]}"#;
        let limits = Limits::default();
        let now = 1_700_000_000_000_000_010;
        let here = decode_json(body, &limits, now).unwrap().decoded.batches;
        let mut sent = Vec::new();
        for data in &here {
            let Data::Logs(batch) = data else { panic!("logs") };
            sent.extend(encode(batch).unwrap());
        }
        let there = decode_protobuf(&sent, &limits, now).unwrap();
        assert_eq!(there.last_error, None);
        assert_eq!(lines(&there.decoded.batches), lines(&here));
    }
}
