//! OTLP protobuf to OTLP/JSON, by the same tables of fields: one line, as OpenTelemetry's file exporters write it.
//!
//! By the OTLP specification 64-bit integers are text, ids hex, enumerations numbers. What is not set is left out, fields
//! nobody knows too. A NaN is `"NaN"`: the bits of its payload are not kept.

use std::fmt::Write as _;

use base64::Engine as _;
use storage::model::json::write_string;

use super::{Field, LOGS, METRICS, Request, TRACES, Type};
use crate::codec::{
    Malformed,
    otlp::wire::{Reader, Wire},
};

/// Messages within messages; a value nests at most half as deep.
const DEPTH_MAX: usize = 256;

/// The JSON of a protobuf request, without a line break.
pub fn from_protobuf(body: &[u8], request: Request) -> Result<String, Malformed> {
    let fields: &'static [Field] = match request {
        Request::Logs => &LOGS,
        Request::Metrics => &METRICS,
        Request::Traces => &TRACES,
    };
    let mut out = String::with_capacity(body.len() * 2);
    message(&mut out, fields, body, 0)?;
    Ok(out)
}

fn message(out: &mut String, fields: &'static [Field], body: &[u8], depth: usize) -> Result<(), Malformed> {
    if depth > DEPTH_MAX {
        return Err(Malformed(format!("messages nest deeper than {DEPTH_MAX}")));
    }
    out.push('{');
    let mut any = false;
    for field in fields {
        let mut values = Vec::new();
        let mut reader = Reader::new(body);
        while let Some((number, wire)) = reader.field()? {
            if number == field.number {
                values.push(wire);
            }
        }
        let Some(last) = values.last().copied() else { continue };
        let _ = write!(out, "{}\"{}\":", if any { "," } else { "" }, field.name);
        any = true;
        if !field.repeated {
            value(out, field, last, depth)?;
            continue;
        }
        out.push('[');
        let mut first = true;
        for wire in values {
            for item in unpacked(field, wire)? {
                out.push_str(if std::mem::take(&mut first) { "" } else { "," });
                value(out, field, item, depth)?;
            }
        }
        out.push(']');
    }
    out.push('}');
    Ok(())
}

/// The items of one occurrence of a list: numbers may be packed.
fn unpacked<'a>(field: &Field, wire: Wire<'a>) -> Result<Vec<Wire<'a>>, Malformed> {
    let Wire::Bytes(packed) = wire else { return Ok(vec![wire]) };
    match field.kind {
        Type::Double | Type::Fixed64 => {
            let (words, []) = packed.as_chunks::<8>() else { return Err(wrong(field)) };
            Ok(words.iter().map(|w| Wire::Fixed64(u64::from_le_bytes(*w))).collect())
        }
        Type::Int => {
            let mut reader = Reader::new(packed);
            let mut out = Vec::new();
            while !reader.is_empty() {
                out.push(Wire::Varint(reader.varint()?));
            }
            Ok(out)
        }
        _ => Ok(vec![wire]),
    }
}

fn wrong(field: &Field) -> Malformed {
    Malformed(format!("invalid protobuf: field {} is not what it should be", field.name))
}

fn value(out: &mut String, field: &Field, wire: Wire<'_>, depth: usize) -> Result<(), Malformed> {
    match field.kind {
        Type::Message(fields) => message(out, fields, wire.bytes()?, depth + 1)?,
        Type::Text => write_string(out, std::str::from_utf8(wire.bytes()?).map_err(|_| wrong(field))?),
        Type::Bytes => {
            let _ = write!(out, "\"{}\"", base64::engine::general_purpose::STANDARD.encode(wire.bytes()?));
        }
        Type::Id => {
            let _ = write!(out, "\"{}\"", hex::encode(wire.bytes()?));
        }
        Type::Bool => out.push_str(if wire.varint()? != 0 { "true" } else { "false" }),
        Type::Int => {
            let n = wire.varint()?;
            let _ = match field.name {
                "intValue" => write!(out, "\"{}\"", n as i64),
                "bucketCounts" => write!(out, "\"{n}\""),
                _ => write!(out, "{}", n as u32),
            };
        }
        Type::Zigzag => {
            let n = wire.varint()? as u32;
            let _ = write!(out, "{}", (n >> 1) as i32 ^ -((n & 1) as i32));
        }
        Type::Enum(..) => {
            let _ = write!(out, "{}", wire.varint()? as i32);
        }
        Type::Double => {
            let v = f64::from_bits(wire.fixed64()?);
            let _ = match v {
                _ if v.is_nan() => write!(out, "\"NaN\""),
                f64::INFINITY => write!(out, "\"Infinity\""),
                f64::NEG_INFINITY => write!(out, "\"-Infinity\""),
                _ => write!(out, "{v:?}"),
            };
        }
        Type::Fixed64 => {
            let n = wire.fixed64()?;
            let _ = if field.name == "asInt" { write!(out, "\"{}\"", n as i64) } else { write!(out, "\"{n}\"") };
        }
        Type::Fixed32 => {
            let _ = write!(out, "{}", wire.fixed32()?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::to_protobuf, *};

    #[test]
    fn what_is_written_reads_back_as_it_was() {
        let value = r#"{"kvlistValue":{"values":[{"key":"n","value":{"arrayValue":{"values":[{"intValue":"-5"},{"doubleValue":1e+300},{"boolValue":true},{"bytesValue":"AP8="},{"stringValue":"ü\"\n"},{"doubleValue":"NaN"}]}}}]}}"#;
        let resource =
            format!(r#""resource":{{"attributes":[{{"key":"k","value":{value}}}],"droppedAttributesCount":2}}"#);
        let exemplar = r#"{"timeUnixNano":"7","asInt":"-3","spanId":"0102030405060708","traceId":"0102030405060708090a0b0c0d0e0f10"}"#;
        for (request, json) in [
            (
                Request::Logs,
                format!(
                    r#"{{"resourceLogs":[{{{resource},"scopeLogs":[{{"scope":{{"name":"s","version":"1"}},"logRecords":[{{"timeUnixNano":"1700000000000000001","severityNumber":9,"severityText":"INFO","body":{value},"flags":4294967295,"traceId":"0102030405060708090a0b0c0d0e0f10","observedTimeUnixNano":"18446744073709551615","eventName":"e"}},{{"timeUnixNano":"2"}}],"schemaUrl":"u"}}]}},{{"schemaUrl":"v"}}]}}"#
                ),
            ),
            (
                Request::Traces,
                format!(
                    r#"{{"resourceSpans":[{{{resource},"scopeSpans":[{{"spans":[{{"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"0102030405060708","name":"n","kind":3,"startTimeUnixNano":"1","endTimeUnixNano":"2","events":[{{"timeUnixNano":"1","name":"e"}}],"links":[{{"spanId":"0102030405060708","flags":1}}],"status":{{"message":"m","code":2}}}}]}}]}}]}}"#
                ),
            ),
            (
                Request::Metrics,
                format!(
                    r#"{{"resourceMetrics":[{{{resource},"scopeMetrics":[{{"metrics":[{{"name":"g","gauge":{{"dataPoints":[{{"timeUnixNano":"1","asDouble":0.1,"exemplars":[{exemplar}]}},{{"asInt":"-9223372036854775808"}}]}}}},{{"name":"h","histogram":{{"dataPoints":[{{"count":"3","bucketCounts":["1","2"],"explicitBounds":[0.5]}}],"aggregationTemporality":2}}}},{{"name":"x","exponentialHistogram":{{"dataPoints":[{{"scale":-2,"zeroCount":"0","positive":{{"offset":-1,"bucketCounts":["18446744073709551615","0"]}},"flags":1,"min":"-Infinity","max":"Infinity"}}],"aggregationTemporality":2}}}},{{"name":"s","sum":{{"dataPoints":[{{"asDouble":1.0}}],"aggregationTemporality":2,"isMonotonic":true}},"metadata":[{{"key":"m","value":{{"boolValue":true}}}}]}}]}}]}}]}}"#
                ),
            ),
        ] {
            let again = from_protobuf(&to_protobuf(json.as_bytes(), request).unwrap(), request).unwrap();
            let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(parse(&again), parse(&json), "{request:?}");
            assert!(!again.contains('\n'), "one line");
        }
    }

    #[test]
    fn foreign_bytes_are_refused_not_followed() {
        let mut deep = Vec::new();
        for _ in 0..DEPTH_MAX {
            let mut outer = Vec::new();
            crate::codec::otlp::wire::put_bytes(&mut outer, 5, &deep);
            let mut list = Vec::new();
            crate::codec::otlp::wire::put_bytes(&mut list, 1, &outer);
            deep = list;
        }
        let mut out = String::new();
        let fields: &'static [Field] = &super::super::ARRAY_VALUE;
        assert!(message(&mut out, fields, &deep, 0).is_err());
        assert!(from_protobuf(&[0x0a, 0xff], Request::Logs).is_err());
        assert!(from_protobuf(&[0x08, 0x01], Request::Logs).is_err(), "a number where a message should be");
    }
}
