//! OTLP/JSON to OTLP protobuf, driven by tables of fields, so that each signal has one decoder.
//!
//! Differences from protobuf's usual JSON, by the OTLP specification: trace and span ids are hex; enumerations are
//! numbers (names are taken too); unknown fields are ignored. Streams: nothing is held but the output.

mod write;

use std::{borrow::Cow, fmt};

use base64::Engine as _;
use serde::{
    Deserialize as _,
    de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

pub use self::write::from_protobuf;
use super::wire::put_varint;
use crate::codec::Malformed;

#[derive(Clone, Copy)]
enum Type {
    Message(&'static [Field]),
    Text,
    Bytes,
    /// Hex text of so many bytes. What is not becomes one zero byte, which no id is: the record's own check refuses it.
    Id,
    Bool,
    /// int64, uint64, uint32, int32 as plain varints.
    Int,
    /// sint32.
    Zigzag,
    /// Prefix of the names, and the names from zero on.
    Enum(&'static str, &'static [&'static str]),
    Double,
    Fixed64,
    Fixed32,
}

struct Field {
    name: &'static str,
    number: u32,
    kind: Type,
    repeated: bool,
}

const fn one(name: &'static str, number: u32, kind: Type) -> Field {
    Field { name, number, kind, repeated: false }
}

const fn many(name: &'static str, number: u32, kind: Type) -> Field {
    Field { name, number, kind, repeated: true }
}

use Type::{Bool, Bytes, Double, Enum, Fixed32, Fixed64, Id, Int, Message, Text, Zigzag};

static ANY_VALUE: [Field; 7] = [
    one("stringValue", 1, Text),
    one("boolValue", 2, Bool),
    one("intValue", 3, Int),
    one("doubleValue", 4, Double),
    one("arrayValue", 5, Message(&ARRAY_VALUE)),
    one("kvlistValue", 6, Message(&KEY_VALUE_LIST)),
    one("bytesValue", 7, Bytes),
];
static ARRAY_VALUE: [Field; 1] = [many("values", 1, Message(&ANY_VALUE))];
static KEY_VALUE_LIST: [Field; 1] = [many("values", 1, Message(&KEY_VALUE))];
static KEY_VALUE: [Field; 2] = [one("key", 1, Text), one("value", 2, Message(&ANY_VALUE))];
static RESOURCE: [Field; 2] = [many("attributes", 1, Message(&KEY_VALUE)), one("droppedAttributesCount", 2, Int)];
static SCOPE: [Field; 4] = [
    one("name", 1, Text),
    one("version", 2, Text),
    many("attributes", 3, Message(&KEY_VALUE)),
    one("droppedAttributesCount", 4, Int),
];

static LOGS: [Field; 1] = [many("resourceLogs", 1, Message(&RESOURCE_LOGS))];
static RESOURCE_LOGS: [Field; 3] =
    [one("resource", 1, Message(&RESOURCE)), many("scopeLogs", 2, Message(&SCOPE_LOGS)), one("schemaUrl", 3, Text)];
static SCOPE_LOGS: [Field; 3] =
    [one("scope", 1, Message(&SCOPE)), many("logRecords", 2, Message(&LOG_RECORD)), one("schemaUrl", 3, Text)];
static LOG_RECORD: [Field; 11] = [
    one("timeUnixNano", 1, Fixed64),
    one("severityNumber", 2, Enum("SEVERITY_NUMBER_", &SEVERITIES)),
    one("severityText", 3, Text),
    one("body", 5, Message(&ANY_VALUE)),
    many("attributes", 6, Message(&KEY_VALUE)),
    one("droppedAttributesCount", 7, Int),
    one("flags", 8, Fixed32),
    one("traceId", 9, Id),
    one("spanId", 10, Id),
    one("observedTimeUnixNano", 11, Fixed64),
    one("eventName", 12, Text),
];
static SEVERITIES: [&str; 25] = [
    "UNSPECIFIED",
    "TRACE",
    "TRACE2",
    "TRACE3",
    "TRACE4",
    "DEBUG",
    "DEBUG2",
    "DEBUG3",
    "DEBUG4",
    "INFO",
    "INFO2",
    "INFO3",
    "INFO4",
    "WARN",
    "WARN2",
    "WARN3",
    "WARN4",
    "ERROR",
    "ERROR2",
    "ERROR3",
    "ERROR4",
    "FATAL",
    "FATAL2",
    "FATAL3",
    "FATAL4",
];

static TRACES: [Field; 1] = [many("resourceSpans", 1, Message(&RESOURCE_SPANS))];
static RESOURCE_SPANS: [Field; 3] =
    [one("resource", 1, Message(&RESOURCE)), many("scopeSpans", 2, Message(&SCOPE_SPANS)), one("schemaUrl", 3, Text)];
static SCOPE_SPANS: [Field; 3] =
    [one("scope", 1, Message(&SCOPE)), many("spans", 2, Message(&SPAN)), one("schemaUrl", 3, Text)];
static SPAN: [Field; 16] = [
    one("traceId", 1, Id),
    one("spanId", 2, Id),
    one("traceState", 3, Text),
    one("parentSpanId", 4, Id),
    one("name", 5, Text),
    one("kind", 6, Enum("SPAN_KIND_", &["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"])),
    one("startTimeUnixNano", 7, Fixed64),
    one("endTimeUnixNano", 8, Fixed64),
    many("attributes", 9, Message(&KEY_VALUE)),
    one("droppedAttributesCount", 10, Int),
    many("events", 11, Message(&EVENT)),
    one("droppedEventsCount", 12, Int),
    many("links", 13, Message(&LINK)),
    one("droppedLinksCount", 14, Int),
    one("status", 15, Message(&STATUS)),
    one("flags", 16, Fixed32),
];
static EVENT: [Field; 4] = [
    one("timeUnixNano", 1, Fixed64),
    one("name", 2, Text),
    many("attributes", 3, Message(&KEY_VALUE)),
    one("droppedAttributesCount", 4, Int),
];
static LINK: [Field; 6] = [
    one("traceId", 1, Id),
    one("spanId", 2, Id),
    one("traceState", 3, Text),
    many("attributes", 4, Message(&KEY_VALUE)),
    one("droppedAttributesCount", 5, Int),
    one("flags", 6, Fixed32),
];
static STATUS: [Field; 2] =
    [one("message", 2, Text), one("code", 3, Enum("STATUS_CODE_", &["UNSET", "OK", "ERROR"]))];

static METRICS: [Field; 1] = [many("resourceMetrics", 1, Message(&RESOURCE_METRICS))];
static RESOURCE_METRICS: [Field; 3] = [
    one("resource", 1, Message(&RESOURCE)),
    many("scopeMetrics", 2, Message(&SCOPE_METRICS)),
    one("schemaUrl", 3, Text),
];
static SCOPE_METRICS: [Field; 3] =
    [one("scope", 1, Message(&SCOPE)), many("metrics", 2, Message(&METRIC)), one("schemaUrl", 3, Text)];
static METRIC: [Field; 9] = [
    one("name", 1, Text),
    one("description", 2, Text),
    one("unit", 3, Text),
    one("gauge", 5, Message(&GAUGE)),
    one("sum", 7, Message(&SUM)),
    one("histogram", 9, Message(&HISTOGRAM)),
    one("exponentialHistogram", 10, Message(&EXPONENTIAL_HISTOGRAM)),
    one("summary", 11, Message(&SUMMARY)),
    many("metadata", 12, Message(&KEY_VALUE)),
];
const TEMPORALITY: Type = Enum("AGGREGATION_TEMPORALITY_", &["UNSPECIFIED", "DELTA", "CUMULATIVE"]);
static GAUGE: [Field; 1] = [many("dataPoints", 1, Message(&NUMBER_POINT))];
static SUM: [Field; 3] = [
    many("dataPoints", 1, Message(&NUMBER_POINT)),
    one("aggregationTemporality", 2, TEMPORALITY),
    one("isMonotonic", 3, Bool),
];
static HISTOGRAM: [Field; 2] =
    [many("dataPoints", 1, Message(&HISTOGRAM_POINT)), one("aggregationTemporality", 2, TEMPORALITY)];
static EXPONENTIAL_HISTOGRAM: [Field; 2] =
    [many("dataPoints", 1, Message(&EXPONENTIAL_POINT)), one("aggregationTemporality", 2, TEMPORALITY)];
static SUMMARY: [Field; 1] = [many("dataPoints", 1, Message(&SUMMARY_POINT))];
static NUMBER_POINT: [Field; 7] = [
    many("attributes", 7, Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("asDouble", 4, Double),
    one("asInt", 6, Fixed64),
    many("exemplars", 5, Message(&EXEMPLAR)),
    one("flags", 8, Int),
];
static HISTOGRAM_POINT: [Field; 11] = [
    many("attributes", 9, Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("count", 4, Fixed64),
    one("sum", 5, Double),
    many("bucketCounts", 6, Fixed64),
    many("explicitBounds", 7, Double),
    many("exemplars", 8, Message(&EXEMPLAR)),
    one("flags", 10, Int),
    one("min", 11, Double),
    one("max", 12, Double),
];
static EXPONENTIAL_POINT: [Field; 14] = [
    many("attributes", 1, Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("count", 4, Fixed64),
    one("sum", 5, Double),
    one("scale", 6, Zigzag),
    one("zeroCount", 7, Fixed64),
    one("positive", 8, Message(&BUCKETS)),
    one("negative", 9, Message(&BUCKETS)),
    one("flags", 10, Int),
    many("exemplars", 11, Message(&EXEMPLAR)),
    one("min", 12, Double),
    one("max", 13, Double),
    one("zeroThreshold", 14, Double),
];
static BUCKETS: [Field; 2] = [one("offset", 1, Zigzag), many("bucketCounts", 2, Int)];
static SUMMARY_POINT: [Field; 7] = [
    many("attributes", 7, Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("count", 4, Fixed64),
    one("sum", 5, Double),
    many("quantileValues", 6, Message(&QUANTILE)),
    one("flags", 8, Int),
];
static QUANTILE: [Field; 2] = [one("quantile", 1, Double), one("value", 2, Double)];
static EXEMPLAR: [Field; 6] = [
    many("filteredAttributes", 7, Message(&KEY_VALUE)),
    one("timeUnixNano", 2, Fixed64),
    one("asDouble", 3, Double),
    one("asInt", 6, Fixed64),
    one("spanId", 4, Id),
    one("traceId", 5, Id),
];

/// Which request a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Logs,
    Metrics,
    Traces,
}

/// The protobuf of a JSON request.
pub fn to_protobuf(json: &[u8], request: Request) -> Result<Vec<u8>, Malformed> {
    let fields: &'static [Field] = match request {
        Request::Logs => &LOGS,
        Request::Metrics => &METRICS,
        Request::Traces => &TRACES,
    };
    let mut out = Vec::with_capacity(json.len() / 2);
    let malformed = |e: serde_json::Error| Malformed(format!("invalid JSON: {e}"));
    let mut d = serde_json::Deserializer::from_slice(json);
    MessageSeed { fields, out: &mut out }.deserialize(&mut d).map_err(malformed)?;
    d.end().map_err(malformed)?;
    Ok(out)
}

/// Bytes of a length written before it is known.
const LENGTH_BYTES: usize = 5;

/// Runs `body` between a length-delimited tag and its length: a varint of fixed width, which every reader takes.
fn delimited<E>(out: &mut Vec<u8>, number: u32, body: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
    put_varint(out, u64::from(number) << 3 | 2);
    let at = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    body(out)?;
    let mut len = out.len() - at - LENGTH_BYTES;
    for (i, b) in out[at..at + LENGTH_BYTES].iter_mut().enumerate() {
        *b = len as u8 & 0x7f | if i + 1 < LENGTH_BYTES { 0x80 } else { 0 };
        len >>= 7;
    }
    Ok(())
}

struct MessageSeed<'o> {
    fields: &'static [Field],
    out: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for MessageSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MessageSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key_seed(KeySeed(self.fields))? {
            match field {
                Some(field) => map.next_value_seed(ValueSeed { field, out: &mut *self.out })?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

struct KeySeed(&'static [Field]);

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Option<&'static Field>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Option<&'static Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        // Protobuf's own names (`time_unix_nano`) are taken like the JSON names.
        let same = |name: &str| {
            let mut upper = false;
            let mut name = name.bytes();
            for mut b in key.bytes() {
                if b == b'_' {
                    upper = true;
                    continue;
                }
                if std::mem::take(&mut upper) {
                    b = b.to_ascii_uppercase();
                }
                if name.next() != Some(b) {
                    return false;
                }
            }
            name.next().is_none()
        };
        Ok(self.0.iter().find(|f| f.name == key).or_else(|| self.0.iter().find(|f| same(f.name))))
    }
}

/// The value of a field: one, a list, or null.
struct ValueSeed<'o> {
    field: &'static Field,
    out: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        match self.field.kind {
            Double if !self.field.repeated => match double::<D>(d)? {
                Some(v) => self.scalar(Scalar::Double(v)),
                None => Ok(()),
            },
            _ => d.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of field {}", self.field.name)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if !self.field.repeated {
            return Err(A::Error::custom(format!("field {} is not a list", self.field.name)));
        }
        match self.field.kind {
            Message(_) => {
                while seq.next_element_seed(ItemSeed { field: self.field, out: &mut *self.out })?.is_some() {}
            }
            // Numbers are packed.
            _ => delimited(self.out, self.field.number, |out| {
                while seq.next_element_seed(NumberSeed { field: self.field, out: &mut *out })?.is_some() {}
                Ok(())
            })?,
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        match self.field.kind {
            Message(fields) if !self.field.repeated => {
                delimited(self.out, self.field.number, |out| MessageSeed { fields, out }.visit_map(map))
            }
            _ => Err(A::Error::custom(format!("field {} is not an object", self.field.name))),
        }
    }

    fn visit_bool<E: serde::de::Error>(self, v: bool) -> Result<(), E> {
        self.scalar(Scalar::Bool(v))
    }

    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<(), E> {
        self.scalar(Scalar::Int(v.into()))
    }

    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<(), E> {
        self.scalar(Scalar::Int(v.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<(), E> {
        self.scalar(Scalar::Double(v))
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<(), E> {
        self.scalar(Scalar::Text(Cow::Borrowed(v)))
    }
}

impl ValueSeed<'_> {
    fn scalar<E: serde::de::Error>(self, v: Scalar<'_>) -> Result<(), E> {
        if self.field.repeated {
            return Err(E::custom(format!("field {} is a list", self.field.name)));
        }
        put_scalar(self.out, self.field, &v, true)
    }
}

/// One message of a list.
struct ItemSeed<'o> {
    field: &'static Field,
    out: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for ItemSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        let Message(fields) = self.field.kind else { return Err(D::Error::custom("not a list of messages")) };
        delimited(self.out, self.field.number, |out| MessageSeed { fields, out }.deserialize(d))
    }
}

/// One number of a packed list.
struct NumberSeed<'o> {
    field: &'static Field,
    out: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for NumberSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        let scalar = match self.field.kind {
            Double => Scalar::Double(double::<D>(d)?.ok_or_else(|| D::Error::custom("null in a list of numbers"))?),
            _ => d.deserialize_any(ScalarVisitor)?,
        };
        put_scalar(self.out, self.field, &scalar, false)
    }
}

/// A double from its text: the JSON reader's own is off by the last bit now and then. `None`: null.
fn double<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
    let text = <&RawValue>::deserialize(d)?.get();
    let wrong = || D::Error::custom(format!("{text} is not a number"));
    match text.as_bytes().first() {
        Some(b'n') => Ok(None),
        Some(b'"') => {
            let inner: Cow<'_, str> = serde_json::from_str(text).map_err(D::Error::custom)?;
            Scalar::Text(inner).double().map(Some).ok_or_else(wrong)
        }
        _ => text.parse().ok().filter(|v: &f64| v.is_finite()).map(Some).ok_or_else(wrong),
    }
}

enum Scalar<'a> {
    Bool(bool),
    Int(i128),
    Double(f64),
    Text(Cow<'a, str>),
}

struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = Scalar<'static>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_i64<E>(self, v: i64) -> Result<Self::Value, E> {
        Ok(Scalar::Int(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Self::Value, E> {
        Ok(Scalar::Int(v.into()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Self::Value, E> {
        Ok(Scalar::Double(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(v.to_owned())))
    }
}

impl Scalar<'_> {
    /// An integer of 64 bits, signed or not.
    fn int(&self) -> Option<u64> {
        let wide = match self {
            Scalar::Int(i) => *i,
            Scalar::Double(d) if d.fract() == 0.0 && d.abs() < 1.9e19 => *d as i128,
            Scalar::Text(t) => t.trim().parse().ok()?,
            _ => return None,
        };
        (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&wide).then_some(wide as u64)
    }

    fn double(&self) -> Option<f64> {
        match self {
            Scalar::Int(i) => Some(*i as f64),
            Scalar::Double(d) => Some(*d),
            Scalar::Text(t) => match t.as_ref() {
                "NaN" => Some(f64::NAN),
                "Infinity" | "+Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                t => t.parse().ok(),
            },
            Scalar::Bool(_) => None,
        }
    }
}

fn put_scalar<E: serde::de::Error>(out: &mut Vec<u8>, field: &Field, v: &Scalar<'_>, tagged: bool) -> Result<(), E> {
    let wrong = || E::custom(format!("field {} has a value of the wrong type", field.name));
    let tag = |out: &mut Vec<u8>, wire: u64| {
        if tagged {
            put_varint(out, u64::from(field.number) << 3 | wire);
        }
    };
    match (field.kind, v) {
        (Message(_), _) => return Err(wrong()),
        (Text, Scalar::Text(t)) => put_text(out, field.number, t.as_bytes()),
        (Bytes, Scalar::Text(t)) => put_text(out, field.number, &decode_base64(t).ok_or_else(wrong)?),
        (Id, Scalar::Text(t)) => put_text(out, field.number, &hex::decode(t.as_ref()).unwrap_or_else(|_| vec![0])),
        (Text | Bytes | Id, _) => return Err(wrong()),
        (Bool, v) => {
            let on = match v {
                Scalar::Bool(b) => *b,
                Scalar::Text(t) if matches!(t.as_ref(), "true" | "false") => t == "true",
                _ => return Err(wrong()),
            };
            tag(out, 0);
            put_varint(out, on.into());
        }
        (Enum(prefix, names), Scalar::Text(t)) if t.parse::<i32>().is_err() => {
            let name = t.strip_prefix(prefix).unwrap_or(t);
            let n = names.iter().position(|n| *n == name).ok_or_else(wrong)?;
            tag(out, 0);
            put_varint(out, n as u64);
        }
        (Int | Enum(..), v) => {
            let n = v.int().ok_or_else(wrong)?;
            tag(out, 0);
            put_varint(out, n);
        }
        (Zigzag, v) => {
            let n = i32::try_from(v.int().ok_or_else(wrong)? as i64).map_err(|_| wrong())?;
            tag(out, 0);
            put_varint(out, u64::from((n << 1 ^ n >> 31) as u32));
        }
        (Double, v) => {
            let d = v.double().ok_or_else(wrong)?;
            tag(out, 1);
            out.extend_from_slice(&d.to_le_bytes());
        }
        (Fixed64, v) => {
            let n = v.int().ok_or_else(wrong)?;
            tag(out, 1);
            out.extend_from_slice(&n.to_le_bytes());
        }
        (Fixed32, v) => {
            let n = u32::try_from(v.int().ok_or_else(wrong)?).map_err(|_| wrong())?;
            tag(out, 5);
            out.extend_from_slice(&n.to_le_bytes());
        }
    }
    Ok(())
}

fn put_text(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    super::wire::put_bytes(out, number, bytes);
}

/// Either alphabet, padded or not.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    const LENIENT: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT);
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_keep_every_bit() {
        // These are off by one bit when read fast.
        for number in
            [-0.0016308441446937503, 21.876973517126526, 7.6171201308002135e-6, 114.03801859816835, -0.0, 3.0]
        {
            let value = Scalar::Double(number);
            let mut wanted = Vec::new();
            put_scalar::<serde_json::Error>(&mut wanted, &ANY_VALUE[3], &value, true).unwrap();
            for text in [format!("{number:?}"), format!("\"{number:?}\"")] {
                let mut out = Vec::new();
                let json = format!("{{\"doubleValue\":{text}}}");
                let mut d = serde_json::Deserializer::from_str(&json);
                MessageSeed { fields: &ANY_VALUE, out: &mut out }.deserialize(&mut d).unwrap();
                assert_eq!(out, wanted, "{text}");
            }
        }
        for text in ["1e999", "true", "[1]", "{}", "\"x\""] {
            let mut d = serde_json::Deserializer::from_str(text);
            assert!(ValueSeed { field: &ANY_VALUE[3], out: &mut Vec::new() }.deserialize(&mut d).is_err(), "{text}");
        }
    }
}
