//! `PushRequest` by the protobuf walker.

use std::borrow::Cow;

use super::{Entry, Stream, parse_labels};
use crate::codec::{Malformed, otlp::wire::Reader};

pub(super) fn parse(body: &[u8]) -> Result<Vec<Stream<'_>>, Malformed> {
    let mut out = Vec::new();
    let mut r = Reader::new(body);
    while let Some((number, wire)) = r.field()? {
        if number == 1 {
            out.push(stream(wire.bytes()?)?);
        }
    }
    Ok(out)
}

fn stream(bytes: &[u8]) -> Result<Stream<'_>, Malformed> {
    let mut labels: &[u8] = b"{}";
    let mut entries = Vec::new();
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => labels = wire.bytes()?,
            2 => entries.push(entry(wire.bytes()?)?),
            _ => {}
        }
    }
    let labels = match std::str::from_utf8(labels) {
        Ok(text) => parse_labels(text),
        Err(_) => Err("couldn't parse labels: not valid UTF-8".to_owned()),
    };
    Ok(Stream { labels, entries })
}

fn entry(bytes: &[u8]) -> Result<Entry<'_>, Malformed> {
    let mut out = Entry { ts: 0, line: Cow::Borrowed(""), metadata: Vec::new(), broken: false };
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => {
                let (mut seconds, mut nanos) = (0i64, 0i32);
                let mut t = Reader::new(wire.bytes()?);
                while let Some((number, wire)) = t.field()? {
                    match number {
                        1 => seconds = wire.varint()? as i64,
                        2 => nanos = wire.varint()? as i32,
                        _ => {}
                    }
                }
                out.ts = seconds.saturating_mul(1_000_000_000).saturating_add(nanos.into());
            }
            2 => out.line = Cow::Borrowed(text(wire.bytes()?, &mut out.broken)),
            3 => {
                let (mut name, mut value) = ("", "");
                let mut pair = Reader::new(wire.bytes()?);
                while let Some((number, wire)) = pair.field()? {
                    match number {
                        1 => name = text(wire.bytes()?, &mut out.broken),
                        2 => value = text(wire.bytes()?, &mut out.broken),
                        _ => {}
                    }
                }
                out.metadata.push((Cow::Borrowed(name), Cow::Borrowed(value)));
            }
            _ => {}
        }
    }
    Ok(out)
}

fn text<'a>(bytes: &'a [u8], broken: &mut bool) -> &'a str {
    std::str::from_utf8(bytes).unwrap_or_else(|_| {
        *broken = true;
        ""
    })
}
