//! `detected_level`: the level of a record, found as Loki finds it at ingestion, but when a query asks for it.
//!
//! Order: metadata `detected_level`; a level field among stream labels; one among metadata; OTLP's severity number; the
//! line as JSON or logfmt; the first level word of the line; `unknown`.

use std::borrow::Cow;

use serde_json::Value;

pub const DETECTED_LEVEL: &str = "detected_level";

const FIELDS: [&str; 14] = [
    "level",
    "LEVEL",
    "Level",
    "log.level",
    "severity",
    "SEVERITY",
    "Severity",
    "SeverityText",
    "lvl",
    "LVL",
    "Lvl",
    "severity_text",
    "Severity_Text",
    "SEVERITY_TEXT",
];

/// Levels a line can give, by index.
pub const LEVELS: [&str; 8] = ["unknown", "trace", "debug", "info", "warn", "error", "critical", "fatal"];

fn is_field(name: &str) -> bool {
    FIELDS.contains(&name)
}

fn known(value: &str) -> Option<u8> {
    let n = match value.len() {
        3..=11 => value.to_ascii_lowercase(),
        _ => return None,
    };
    Some(match n.as_str() {
        "trace" | "trc" => 1,
        "debug" | "dbg" => 2,
        "info" | "inf" | "information" => 3,
        "warn" | "wrn" | "warning" => 4,
        "error" | "err" => 5,
        "critical" => 6,
        "fatal" => 7,
        _ => return None,
    })
}

/// The canonical name of a level; other words stay as they are.
pub fn normalise(value: &str) -> Cow<'_, str> {
    match known(value) {
        Some(i) => Cow::Borrowed(LEVELS[usize::from(i)]),
        None => Cow::Borrowed(value),
    }
}

/// What labels and metadata say, before the line is asked.
pub fn from_labels<'a>(
    stream: impl Iterator<Item = (&'a str, &'a str)>,
    metadata: impl Iterator<Item = (&'a str, &'a str)> + Clone,
) -> Option<String> {
    if let Some((_, v)) = metadata.clone().find(|(n, _)| *n == DETECTED_LEVEL) {
        return Some(normalise(v).into_owned());
    }
    let best = |pairs: &mut dyn Iterator<Item = (&'a str, &'a str)>| {
        pairs
            .filter_map(|(n, v)| FIELDS.iter().position(|f| *f == n).map(|i| (i, v)))
            .min_by_key(|(i, _)| *i)
            .map(|(_, v)| normalise(v).into_owned())
    };
    if let Some(level) = best(&mut stream.filter(|(n, _)| is_field(n))) {
        return Some(level);
    }
    if let Some(level) = best(&mut metadata.clone().filter(|(n, _)| is_field(n))) {
        return Some(level);
    }
    let (_, number) = metadata.clone().find(|(n, _)| *n == "severity_number")?;
    Some(severity(number).to_owned())
}

fn severity(number: &str) -> &'static str {
    match number.parse::<i64>() {
        Err(_) => "info",
        Ok(0) => "unknown",
        Ok(..=4) => "trace",
        Ok(5..=8) => "debug",
        Ok(9..=12) => "info",
        Ok(13..=16) => "warn",
        Ok(17..=20) => "error",
        Ok(21..=24) => "fatal",
        Ok(_) => "unknown",
    }
}

/// The level a line gives, as an index into [`LEVELS`].
pub fn from_line(line: &str) -> u8 {
    if line.trim_start().starts_with('{') {
        if let Some(level) = from_json(line) {
            return level;
        }
    } else if line.contains('=')
        && let Some(level) = from_logfmt(line)
    {
        return level;
    }
    first_word(line)
}

fn from_json(line: &str) -> Option<u8> {
    let mut found = Found { pairs: Vec::new() };
    // What was read before a fault counts.
    let _ = serde::de::DeserializeSeed::deserialize(&mut found, &mut serde_json::Deserializer::from_str(line));
    known(seek(&found.pairs, 2)?)
}

/// The pairs of an object in order, the first of equal keys first.
struct Found {
    pairs: Vec<(String, Value)>,
}

impl<'de> serde::de::DeserializeSeed<'de> for &mut Found {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> serde::de::Visitor<'de> for &mut Found {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(pair) = map.next_entry()? {
            self.pairs.push(pair);
        }
        Ok(())
    }
}

fn seek(pairs: &[(String, Value)], depth: usize) -> Option<&str> {
    for field in &FIELDS {
        if let Some((_, Value::String(s))) = pairs.iter().find(|(n, _)| n == field) {
            return Some(s);
        }
    }
    if depth == 0 {
        return None;
    }
    pairs.iter().find_map(|(_, v)| seek_in(v, depth - 1))
}

fn seek_in(value: &Value, depth: usize) -> Option<&str> {
    let map = value.as_object()?;
    if let Some(s) = FIELDS.iter().find_map(|f| map.get(*f)?.as_str()) {
        return Some(s);
    }
    if depth == 0 {
        return None;
    }
    map.values().find_map(|v| seek_in(v, depth - 1))
}

/// The field that stands first in [`FIELDS`] counts; of equal ones the first in the line.
fn from_logfmt(line: &str) -> Option<u8> {
    let mut decoder = super::stage::logfmt::Pairs::new(line);
    let mut best: Option<(usize, Cow<'_, str>)> = None;
    while let Some(pair) = decoder.next() {
        let Ok((key, value)) = pair else { continue };
        if let Some(rank) = FIELDS.iter().position(|f| f.eq_ignore_ascii_case(key))
            && best.as_ref().is_none_or(|(r, _)| rank < *r)
        {
            best = Some((rank, value));
        }
    }
    known(&best?.1)
}

const WORDS: [(&[u8], u8); 9] = [
    (b"trace", 1),
    (b"debug", 2),
    (b"fatal", 7),
    (b"critical", 6),
    (b"error", 5),
    (b"err", 5),
    (b"warning", 4),
    (b"warn", 4),
    (b"info", 3),
];

fn first_word(line: &str) -> u8 {
    let bytes = line.as_bytes();
    let left = |b: u8| matches!(b, b' ' | b'\t' | b'\n' | b'[' | b'(' | b'{' | b'"' | b'\'' | b'=' | b'|');
    let right = |b: u8| left(b) || matches!(b, b']' | b')' | b'}' | b':' | b',' | b'!');
    let mut at_border = true;
    for (i, &b) in bytes.iter().enumerate() {
        if at_border && matches!(b | 0x20, b't' | b'd' | b'f' | b'c' | b'e' | b'w' | b'i') {
            for (word, level) in WORDS {
                let end = i + word.len();
                if bytes.len() >= end
                    && bytes[i..end].eq_ignore_ascii_case(word)
                    && bytes.get(end).is_none_or(|b| right(*b))
                {
                    return level;
                }
            }
        }
        at_border = left(b);
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_its_first_level_word_with_borders() {
        for (line, want) in [
            ("an error occurred", "error"),
            ("Error: x", "error"),
            ("terror error", "error"),
            ("err=1", "error"),
            ("(debug) x", "debug"),
            ("=debug=", "debug"),
            ("plain nothing here", "unknown"),
            ("{\"Level\":\"critical\"}", "critical"),
            ("{\"a\":{\"b\":{\"level\":\"error\"}}}", "error"),
            ("{\"level\":\"notice\",\"msg\":\"an error\"}", "error"),
            ("severity=CRITICAL", "critical"),
            ("critical,", "critical"),
        ] {
            assert_eq!(LEVELS[usize::from(from_line(line))], want, "{line}");
        }
    }
}
