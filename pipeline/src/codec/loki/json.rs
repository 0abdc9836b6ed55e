//! The JSON form of a push, as lenient and as strict as Loki is (see the recorded cases).

use std::borrow::Cow;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{Entry, Stream, checked_labels, parse_labels};
use crate::codec::{Malformed, ndjson::time};

pub(super) fn parse(body: &[u8]) -> Result<Vec<Stream<'_>>, Malformed> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(Malformed("EOF".to_owned()));
    }
    // Serde would read an array as the fields of an object in their order.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(Malformed("invalid push request: expected an object, found an array".to_owned()));
    }
    let request: Option<Request<'_>> =
        serde_json::from_slice(body).map_err(|e| Malformed(format!("invalid push request: {e}")))?;
    Ok(request.and_then(|r| r.streams).unwrap_or_default().into_iter().map(Stream::from).collect())
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow, default)]
    streams: Option<Vec<RawStream<'a>>>,
}

#[derive(Deserialize)]
struct RawStream<'a> {
    #[serde(borrow, default)]
    stream: Option<Pairs<'a>>,
    #[serde(borrow, default)]
    values: Option<Vec<RawEntry<'a>>>,
    /// The form of `/api/prom/push`.
    #[serde(borrow, default)]
    labels: Option<Text<'a>>,
    #[serde(borrow, default)]
    entries: Option<Vec<LegacyEntry<'a>>>,
}

impl<'a> From<RawStream<'a>> for Stream<'a> {
    fn from(s: RawStream<'a>) -> Self {
        let labels = match (s.stream, s.labels) {
            (Some(pairs), _) => checked_labels(pairs.0),
            (None, Some(text)) => parse_labels(&text.0),
            (None, None) => checked_labels([]),
        };
        let values = s.values.unwrap_or_default().into_iter().map(|e| e.0);
        let legacy = s.entries.unwrap_or_default().into_iter().map(|e| Entry {
            ts: e.ts.0,
            line: e.line.map(|l| l.0).unwrap_or_default(),
            metadata: e.metadata.map(|m| m.0).unwrap_or_default(),
            broken: false,
        });
        Stream { labels, entries: values.chain(legacy).collect() }
    }
}

/// A string, borrowed where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(v)))
            }

            fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(v.to_owned())))
            }
        }
        d.deserialize_str(V)
    }
}

/// Label names and values; a value that is not a string counts as its text.
struct Pairs<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of labels")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut out = Vec::new();
                while let Some((name, raw)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    let raw = raw.get();
                    let value = match raw.starts_with('"') {
                        true => serde_json::from_str::<Text<'de>>(raw).map_err(A::Error::custom)?.0,
                        false => Cow::Borrowed(raw),
                    };
                    out.push((name.0, value));
                }
                Ok(Pairs(out))
            }
        }
        d.deserialize_map(V)
    }
}

/// Structured metadata: strings only.
struct Metadata<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Metadata<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Metadata<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut out = Vec::new();
                while let Some((name, value)) = map.next_entry::<Text<'de>, Text<'de>>()? {
                    out.push((name.0, value.0));
                }
                Ok(Metadata(out))
            }
        }
        d.deserialize_map(V)
    }
}

/// `["<ns>", "line", {metadata}]`; line and metadata may be absent.
struct RawEntry<'a>(Entry<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for RawEntry<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = RawEntry<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("[\"<nanoseconds>\", \"line\", {metadata}]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let missing = || A::Error::custom("an entry without a timestamp");
                let ts = seq.next_element::<Text<'de>>()?.ok_or_else(missing)?.0;
                let wrong = || A::Error::custom(format!("timestamp {ts:?} is not a number of nanoseconds"));
                let ts: i64 = ts.parse().map_err(|_| wrong())?;
                let line = seq.next_element::<Text<'de>>()?.map(|t| t.0).unwrap_or_default();
                let metadata = seq.next_element::<Metadata<'de>>()?.map(|m| m.0).unwrap_or_default();
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(RawEntry(Entry { ts, line, metadata, broken: false }))
            }
        }
        d.deserialize_seq(V)
    }
}

#[derive(Deserialize)]
struct LegacyEntry<'a> {
    ts: LegacyTime,
    #[serde(borrow, default)]
    line: Option<Text<'a>>,
    #[serde(borrow, default, rename = "structuredMetadata")]
    metadata: Option<Metadata<'a>>,
}

/// RFC 3339.
struct LegacyTime(i64);

impl<'de> Deserialize<'de> for LegacyTime {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(d)?.0;
        time::parse(&text)
            .map(LegacyTime)
            .ok_or_else(|| D::Error::custom(format!("timestamp {text:?} is not RFC 3339")))
    }
}
