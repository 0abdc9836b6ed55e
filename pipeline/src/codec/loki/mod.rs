//! Loki push: JSON and protobuf to log records, with Loki's limits, words and leniency.
//!
//! A body that cannot be read is [`super::Malformed`] and nothing of it is stored; a stream or entry that breaks a rule
//! is refused alone. `detected_level` is left to the query side: it follows from what is stored here.

mod encode;
mod json;
mod labels;
mod protobuf;

#[cfg(test)]
mod tests;

use std::{borrow::Cow, collections::HashSet};

use storage::model::{Labels, json::write_string};
use xxhash_rust::xxh3::Xxh3;

use super::{
    Decoded, Limits, Malformed, Reason,
    limits::TimeBounds,
    log_columns::{Column, Key, LogColumns, Row},
    outcome::{MESSAGE_BYTES_MAX, clip},
    raw_cache::RawCache,
    stream,
};
use crate::Data;

pub use encode::encode;
pub(crate) use encode::write_json;
pub use labels::parse_labels;

/// Bytes of a stream's labels as an entry's refusal quotes them.
const SHOWN_BYTES_MAX: usize = 1024;

/// A stream as sent, whatever the encoding.
struct Stream<'a> {
    /// Sorted, without empty values; or why they are none.
    labels: Result<Labels, String>,
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    ts: i64,
    line: Cow<'a, str>,
    /// Names as sent.
    metadata: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// The line or metadata was not UTF-8: the entry is refused.
    broken: bool,
}

/// A decoded push.
#[derive(Debug)]
pub struct Push {
    pub decoded: Decoded,
    /// Streams named in the body, empty ones too. None at all is an error of its own.
    pub streams: usize,
    /// What Loki answers with when anything was refused: the last refusal.
    pub last_error: Option<String>,
}

pub fn decode_json(body: &[u8], limits: &Limits, now: i64) -> Result<Push, Malformed> {
    Ok(take(json::parse(body)?, limits, now))
}

/// `body`: the `PushRequest`, no longer compressed.
pub fn decode_protobuf(body: &[u8], limits: &Limits, now: i64) -> Result<Push, Malformed> {
    Ok(take(protobuf::parse(body)?, limits, now))
}

struct Taker<'l> {
    limits: &'l Limits,
    bounds: TimeBounds,
    columns: LogColumns,
    attributes: RawCache<Key>,
    raw: Vec<u8>,
    text: String,
    /// Hashes of the entries met: Loki stores an equal entry once.
    seen: HashSet<u128>,
    met: u64,
    out: Push,
}

fn take(streams: Vec<Stream<'_>>, limits: &Limits, now: i64) -> Push {
    let mut t = Taker {
        limits,
        bounds: TimeBounds::new(limits, now),
        columns: LogColumns::default(),
        attributes: RawCache::default(),
        raw: Vec::new(),
        text: String::new(),
        seen: HashSet::new(),
        met: 0,
        out: Push { decoded: Decoded::default(), streams: streams.len(), last_error: None },
    };
    for s in streams {
        t.stream(s);
    }
    t.flush();
    t.out
}

impl Taker<'_> {
    fn refuse(&mut self, reason: Reason, n: u64, message: String) {
        let message = clip(message, MESSAGE_BYTES_MAX);
        self.out.decoded.rejected.add_many(reason, n, self.met, || message.clone());
        self.out.last_error = Some(message);
    }

    fn stream(&mut self, s: Stream<'_>) {
        let n = s.entries.len() as u64;
        let mut labels = match s.labels {
            Ok(l) => l,
            Err(message) => {
                self.met += n;
                return self.refuse(Reason::InvalidLabels, n, message);
            }
        };
        if n == 0 {
            return;
        }
        stream::discover_service_name(&mut labels);
        if let Err((reason, message)) = stream::check_labels(&labels, self.limits) {
            self.met += n;
            return self.refuse(reason, n, message);
        }
        // Told once an entry: long labels times many bad entries must not cost much.
        let shown = clip(stream::loki_display(&labels), SHOWN_BYTES_MAX);
        let json = labels.to_json();
        let service = labels.get(stream::SERVICE_NAME).unwrap_or_default();
        let mut keys = None;
        for e in &s.entries {
            self.met += 1;
            let (stream_key, service_key) = *keys.get_or_insert_with(|| {
                (self.columns.key(Column::StreamLabels, &json), self.columns.key(Column::ServiceName, service))
            });
            if let Err((reason, message)) = self.entry(e, &shown, &json, stream_key, service_key) {
                self.refuse(reason, 1, message);
            }
            if self.columns.len() >= self.limits.batch_rows_max
                || self.columns.text_bytes() >= self.limits.batch_bytes_max
            {
                self.flush();
                keys = None;
            }
        }
    }

    fn entry(
        &mut self,
        e: &Entry<'_>,
        shown: &str,
        stream_json: &str,
        stream: Key,
        service_name: Key,
    ) -> Result<(), (Reason, String)> {
        let limits = self.limits;
        if e.broken {
            return Err((Reason::InvalidUtf8, format!("entry for stream '{shown}' is not valid UTF-8")));
        }
        if !self.bounds.contains(e.ts) {
            let at = chrono::DateTime::from_timestamp_nanos(e.ts).to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
            return Err(if e.ts > self.bounds.newest {
                (Reason::TooFarAhead, format!("entry for stream '{shown}' has timestamp too new: {at}"))
            } else {
                let oldest = chrono::DateTime::from_timestamp_nanos(self.bounds.oldest)
                    .to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
                let message = format!(
                    "entry for stream '{shown}' has timestamp too old: {at}, oldest acceptable timestamp is: {oldest}"
                );
                (Reason::TooOld, message)
            });
        }
        if e.line.len() > limits.line_bytes_max {
            let message = format!(
                "max entry size '{}' bytes exceeded for stream '{shown}' while adding an entry with length '{}' bytes",
                limits.line_bytes_max,
                e.line.len()
            );
            return Err((Reason::RecordTooLarge, message));
        }
        if self.out.decoded.accepted as usize >= limits.records_max {
            let message = format!("request has more than {} entries; send fewer at once", limits.records_max);
            return Err((Reason::TooManyRecords, message));
        }
        let bytes: usize = e.metadata.iter().map(|(n, v)| n.len() + v.len()).sum();
        if bytes > limits.metadata_bytes_max {
            let limit = limits.metadata_bytes_max;
            let message = format!(
                "stream '{shown}' has structured metadata too large: '{bytes}' bytes, limit: '{limit}' bytes"
            );
            return Err((Reason::TooManyAttributes, message));
        }
        if e.metadata.len() > limits.metadata_entries_max {
            let (n, limit) = (e.metadata.len(), limits.metadata_entries_max);
            let message =
                format!("stream '{shown}' has too many structured metadata labels: '{n}', limit: '{limit}'");
            return Err((Reason::TooManyAttributes, message));
        }
        let mut row = Row { ts: e.ts, body: &e.line, service_name, ..Row::of_stream(stream) };
        self.metadata(&e.metadata, &mut row);
        self.out.decoded.accepted += 1;
        if self.is_new(e, stream_json) {
            self.columns.push(&row);
        }
        Ok(())
    }

    /// Whether no equal entry (stream, time, line, metadata) came before in this push.
    fn is_new(&mut self, e: &Entry<'_>, stream_json: &str) -> bool {
        let mut hash = Xxh3::new();
        let mut part = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(stream_json.as_bytes());
        part(&e.ts.to_le_bytes());
        part(e.line.as_bytes());
        for (n, v) in &e.metadata {
            part(n.as_bytes());
            part(v.as_bytes());
        }
        self.seen.insert(hash.digest128())
    }

    /// Fills `attrs`, and `trace_id` and `span_id` where the metadata has them.
    fn metadata(&mut self, sent: &[(Cow<'_, str>, Cow<'_, str>)], row: &mut Row<'_>) {
        if sent.is_empty() {
            return;
        }
        self.raw.clear();
        let mut kept: Vec<(Cow<'_, str>, &str)> = Vec::with_capacity(sent.len());
        for (name, value) in sent {
            if value.is_empty() {
                continue;
            }
            let name = match is_label_name(name) {
                true => Cow::Borrowed(name.as_ref()),
                false => Cow::Owned(stream::sanitize_name(name)),
            };
            // What its column gives back exactly needs no second place.
            let canonical = stream::is_canonical_hex(value.as_bytes());
            if name == "trace_id" {
                row.trace_id = stream::parse_hex::<16>(value.as_bytes()).filter(|id| *id != [0; 16]);
                if canonical && row.trace_id.is_some() {
                    continue;
                }
            } else if name == "span_id" {
                row.span_id = stream::parse_hex::<8>(value.as_bytes()).filter(|id| *id != [0; 8]);
                if canonical && row.span_id.is_some() {
                    continue;
                }
            }
            self.raw.extend_from_slice(&(name.len() as u32).to_le_bytes());
            self.raw.extend_from_slice(name.as_bytes());
            self.raw.extend_from_slice(&(value.len() as u32).to_le_bytes());
            self.raw.extend_from_slice(value.as_bytes());
            kept.push((name, value));
        }
        if kept.is_empty() {
            return;
        }
        if let Some(key) = self.attributes.get(&self.raw) {
            row.attrs = key;
            return;
        }
        kept.sort_by(|a, b| a.0.cmp(&b.0));
        self.text.clear();
        self.text.push('{');
        for (i, (name, value)) in kept.iter().enumerate() {
            if kept.get(i + 1).is_some_and(|next| next.0 == *name) {
                continue;
            }
            if self.text.len() > 1 {
                self.text.push(',');
            }
            write_string(&mut self.text, name);
            self.text.push(':');
            write_string(&mut self.text, value);
        }
        self.text.push('}');
        row.attrs = self.columns.key(Column::Attrs, &self.text);
        self.attributes.insert(&self.raw, row.attrs);
    }

    fn flush(&mut self) {
        if !self.columns.is_empty() {
            self.out.decoded.batches.push(Data::Logs(self.columns.finish()));
        }
        self.attributes.clear();
    }
}

fn is_label_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Labels from pairs, if every name is one.
fn checked_labels<'a>(pairs: impl IntoIterator<Item = (Cow<'a, str>, Cow<'a, str>)>) -> Result<Labels, String> {
    let pairs: Vec<_> = pairs.into_iter().collect();
    if let Some((name, _)) = pairs.iter().find(|(n, _)| !is_label_name(n)) {
        let wrong = name
            .char_indices()
            .find(|(i, c)| !(c.is_ascii_alphabetic() || *c == '_' || *i > 0 && c.is_ascii_digit()))
            .map_or('=', |(_, c)| c);
        let message =
            format!("couldn't parse labels: 1:2: parse error: unexpected character inside braces: '{wrong}'");
        return Err(message);
    }
    Ok(Labels::from_pairs(pairs.into_iter().map(|(n, v)| (n.into_owned(), v.into_owned()))))
}
