//! Newline-delimited JSON to log records.
//!
//! One field is the time, one the message, the named ones are stream labels; all others are attributes (structured
//! metadata) with their JSON types. `trace_id` and `span_id` fill their columns, and stay among the attributes unless
//! they are exactly what the column gives back; `level` or `severity` fill the severity columns and stay.
//!
//! This is the hot path of log ingest: [`scan`] finds the fields in one pass, and what was made of a line's stream
//! fields and attributes is remembered by their text, so that a usual line builds no JSON and hashes two short texts.
//! A line that the scanner does not like goes to the general parser; both give the same record.

mod scan;
pub mod time;
mod value;

#[cfg(test)]
mod tests;

use scan::{Field, Kind, Scanner};
use storage::model::{Labels, json};
use value::Refusal;

use super::{
    Decoded, Limits, Reason,
    limits::TimeBounds,
    log_columns::{Column, Key, LogColumns, Row},
    raw_cache::RawCache,
    stream,
};
use crate::Data;

/// Stream fields of one request at most.
pub const STREAM_FIELDS_MAX: usize = 32;

/// Fields taken for time and message where the request names none; the first that a line has counts.
const TIME_FIELDS: [&str; 5] = ["ts", "time", "timestamp", "@timestamp", "_time"];
const MESSAGE_FIELDS: [&str; 5] = ["msg", "message", "_msg", "log", "body"];

/// The same of Elasticsearch's documents, whose time is the first alone: the others may say anything.
const DOCUMENT_TIME_FIELDS: [&str; 3] = ["@timestamp", "timestamp", "time"];
const DOCUMENT_MESSAGE_FIELDS: [&str; 4] = ["message", "msg", "log", "body"];
/// Names a document's service, as one field or as `service: {name}`.
const DOCUMENT_SERVICE: &str = "service.name";
/// Stream label that holds the name of a document's index.
pub const INDEX_LABEL: &str = "index";

/// Which field is what.
#[derive(Clone, Debug, Default)]
pub struct Params {
    time: Vec<String>,
    message: Vec<String>,
    stream: Vec<String>,
    /// Lines are Elasticsearch's documents: each has an index, its times may lack a zone, and one without a message is
    /// its own.
    documents: bool,
}

impl Params {
    /// Of Elasticsearch's documents.
    pub(crate) fn documents() -> Self {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Params {
            time: owned(&DOCUMENT_TIME_FIELDS),
            message: owned(&DOCUMENT_MESSAGE_FIELDS),
            stream: vec![DOCUMENT_SERVICE.to_owned()],
            documents: true,
        }
    }

    /// `stream_fields`: separated by commas. An absent time or message field means the usual names.
    pub fn new(
        time_field: Option<&str>,
        message_field: Option<&str>,
        stream_fields: Option<&str>,
    ) -> Result<Self, String> {
        let or = |given: Option<&str>, usual: &[&str]| match given.filter(|g| !g.is_empty()) {
            Some(one) => vec![one.to_owned()],
            None => usual.iter().map(|n| (*n).to_owned()).collect(),
        };
        let mut stream: Vec<String> = Vec::new();
        for name in stream_fields.unwrap_or_default().split(',').map(str::trim).filter(|n| !n.is_empty()) {
            if !stream.iter().any(|s| s == name) {
                stream.push(name.to_owned());
            }
        }
        if stream.len() > STREAM_FIELDS_MAX {
            return Err(format!("stream_fields names {} fields; at most {STREAM_FIELDS_MAX}", stream.len()));
        }
        let (time, message) = (or(time_field, &TIME_FIELDS), or(message_field, &MESSAGE_FIELDS));
        Ok(Params { time, message, stream, documents: false })
    }

    fn role(&self, key: &str) -> Role {
        if let Some(i) = self.stream.iter().position(|s| s == key) {
            Role::Stream(i as u8)
        } else if let Some(i) = self.time.iter().position(|s| s == key) {
            Role::Time(i as u8)
        } else if let Some(i) = self.message.iter().position(|s| s == key) {
            Role::Message(i as u8)
        } else if key == "trace_id" {
            Role::TraceId
        } else if key == "span_id" {
            Role::SpanId
        } else {
            Role::Attribute
        }
    }
}

/// What a field is for. Numbers: its place in the list of names, the lowest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Time(u8),
    Message(u8),
    Stream(u8),
    TraceId,
    SpanId,
    Attribute,
}

#[derive(Clone, Copy)]
struct Stream {
    labels: Key,
    service_name: Key,
    severity: Severity,
}

#[derive(Clone, Copy)]
struct Attributes {
    json: Key,
    severity: Severity,
}

#[derive(Clone, Copy)]
struct Severity {
    text: Key,
    number: Option<i32>,
}

const NO_SEVERITY: Severity = Severity { text: Key::NULL, number: None };

/// Fields of a line whose names are remembered by place.
const PLACES_MAX: usize = 64;

/// Ends a text in a raw key; cannot occur in what the scanner or the general parser lets pass.
const END: u8 = 1;
const ABSENT: u8 = 2;

struct Decoder<'p> {
    params: &'p Params,
    limits: &'p Limits,
    now: i64,
    bounds: TimeBounds,
    columns: LogColumns,
    streams: RawCache<Stream>,
    attributes: RawCache<Attributes>,
    /// Keys and roles of the previous line by place: lines of one sender look alike.
    order: Vec<(String, Role)>,
    raw: Vec<u8>,
    text: String,
    /// Places of a line's attributes among its fields.
    attribute_at: Vec<u32>,
    /// Of the line, where lines are documents.
    index: String,
    out: Decoded,
}

/// `now`: nanoseconds since the epoch, the time of lines without one.
pub fn decode(body: &[u8], params: &Params, limits: &Limits, now: i64) -> Decoded {
    let mut d = Decoder::new(params, limits, now);
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let first = memchr::memchr(b'\n', body).unwrap_or(body.len());
    let rows = (body.len() / (first + 1)).min(limits.batch_rows_max);
    d.columns = LogColumns::with_room(rows, (body.len() / 2).min(limits.batch_bytes_max));
    let whole = std::str::from_utf8(body).ok();
    let mut fields = Vec::new();
    let mut from = 0;
    let mut number = 0;
    for end in memchr::memchr_iter(b'\n', body).chain([body.len()]) {
        number += 1;
        let (start, line) = (from, &body[from..end]);
        from = end + 1;
        if line.iter().all(|b| matches!(b, b' ' | b'\t' | b'\r')) {
            continue;
        }
        let text = match whole {
            Some(all) => Ok(&all[start..end]),
            None => std::str::from_utf8(line),
        };
        let done = match text {
            Ok(text) => d.line(text, &mut fields),
            Err(_) => Err((Reason::InvalidUtf8, "line is not valid UTF-8".to_owned())),
        };
        if let Err((reason, message)) = done {
            d.out.rejected.add(reason, number, || message);
        }
    }
    d.flush();
    d.out
}

/// Documents one by one, for a request that has more than documents in it.
pub(crate) struct Documents<'p, 'b> {
    decoder: Decoder<'p>,
    fields: Vec<Field<'b>>,
}

impl<'p, 'b> Documents<'p, 'b> {
    /// `params`: [`Params::documents`].
    pub fn new(params: &'p Params, limits: &'p Limits, now: i64) -> Self {
        Documents { decoder: Decoder::new(params, limits, now), fields: Vec::new() }
    }

    /// Takes one document; a refusal is the caller's to count.
    pub fn push(&mut self, document: &'b str, index: &str) -> Result<(), Refusal> {
        if self.decoder.index != index {
            self.decoder.index.clear();
            self.decoder.index.push_str(index);
        }
        self.decoder.line(document, &mut self.fields)
    }

    /// Counts a refused document. `at`: its line, from 1.
    pub fn refuse(&mut self, reason: Reason, at: u64, message: &str) {
        self.decoder.out.rejected.add(reason, at, || message.to_owned());
    }

    pub fn finish(mut self) -> Decoded {
        self.decoder.flush();
        self.decoder.out
    }
}

impl<'p> Decoder<'p> {
    fn new(params: &'p Params, limits: &'p Limits, now: i64) -> Self {
        Decoder {
            params,
            limits,
            now,
            bounds: TimeBounds::new(limits, now),
            columns: LogColumns::default(),
            streams: RawCache::default(),
            attributes: RawCache::default(),
            order: Vec::new(),
            raw: Vec::new(),
            text: String::new(),
            attribute_at: Vec::new(),
            index: String::new(),
            out: Decoded::default(),
        }
    }

    fn line<'b>(&mut self, line: &'b str, fields: &mut Vec<Field<'b>>) -> Result<(), Refusal> {
        if line.len() > self.limits.record_bytes_max {
            let limit = self.limits.record_bytes_max;
            return Err((Reason::RecordTooLarge, format!("line has {} bytes; at most {limit}", line.len())));
        }
        if self.out.accepted as usize >= self.limits.records_max {
            let limit = self.limits.records_max;
            return Err((
                Reason::TooManyRecords,
                format!("request has more than {limit} records; send fewer at once"),
            ));
        }
        fields.clear();
        if scan_line(line, fields).is_ok() && self.record(fields, line).is_ok() {
            return Ok(());
        }
        let owned = value::parse_line(line)?;
        let fields: Vec<Field<'_>> = owned.iter().map(value::OwnedField::borrow).collect();
        self.record(&fields, line)
    }

    #[inline]
    fn role(&mut self, place: usize, key: &str) -> Role {
        if let Some((known, role)) = self.order.get(place)
            && known == key
        {
            return *role;
        }
        let role = self.params.role(key);
        if let Some(slot) = self.order.get_mut(place) {
            *slot = (key.to_owned(), role);
        } else if place < PLACES_MAX && place == self.order.len() {
            self.order.push((key.to_owned(), role));
        }
        role
    }

    fn record(&mut self, fields: &[Field<'_>], line: &str) -> Result<(), Refusal> {
        if fields.len() > self.limits.attributes_max {
            let limit = self.limits.attributes_max;
            return Err((Reason::TooManyAttributes, format!("record has {} fields; at most {limit}", fields.len())));
        }
        let mut time: Option<(u8, usize)> = None;
        let mut message: Option<(u8, usize)> = None;
        let mut trace: Option<(usize, &Field<'_>)> = None;
        let mut span: Option<(usize, &Field<'_>)> = None;
        let mut streams: [Option<&Field<'_>>; STREAM_FIELDS_MAX] = [None; STREAM_FIELDS_MAX];
        let mut service: Option<&Field<'_>> = None;
        self.attribute_at.clear();
        for (at, field) in fields.iter().enumerate() {
            match self.role(at, field.key) {
                Role::Attribute => {
                    if self.params.documents && field.kind == Kind::Nested && field.key == "service" {
                        service = Some(field);
                    }
                    self.attribute_at.push(at as u32);
                }
                Role::Stream(i) => {
                    if let Some(old) = streams[usize::from(i)].replace(field) {
                        self.check(old)?;
                    }
                }
                // Of several usual names the first in the list; the others are attributes like any.
                Role::Time(i) => self.displace(&mut time, i, at, fields)?,
                Role::Message(i) => self.displace(&mut message, i, at, fields)?,
                Role::TraceId => {
                    if let Some((_, old)) = trace.replace((at, field)) {
                        self.check(old)?;
                    }
                }
                Role::SpanId => {
                    if let Some((_, old)) = span.replace((at, field)) {
                        self.check(old)?;
                    }
                }
            }
        }
        let ts = match time {
            None => self.now,
            Some((place, at)) => match self.time(&fields[at]) {
                Ok(ts) => ts,
                // A field of such a name that is no time means something else.
                Err((Reason::InvalidTime, _)) if self.params.documents && place > 0 => {
                    self.attribute_at.push(at as u32);
                    self.now
                }
                Err(refusal) => return Err(refusal),
            },
        };
        let (trace_id, in_column) = id_of::<16>(trace.map(|t| t.1));
        if let Some((at, _)) = trace.filter(|_| !in_column) {
            self.attribute_at.push(at as u32);
        }
        let (span_id, in_column) = id_of::<8>(span.map(|t| t.1));
        if let Some((at, _)) = span.filter(|_| !in_column) {
            self.attribute_at.push(at as u32);
        }
        let stream = self.stream(&streams[..self.params.stream.len()], service)?;
        let attributes = self.attributes(fields)?;
        let severity = if attributes.severity.text == Key::NULL { stream.severity } else { attributes.severity };
        let (body, body_type) = match message.map(|(_, at)| &fields[at]) {
            None if self.params.documents => (line.trim_ascii(), Key::NULL),
            None => ("", Key::NULL),
            Some(f) => match (f.plain(), f.kind) {
                (Some(text), _) => (text, Key::NULL),
                (_, Kind::Escaped) => {
                    self.text.clear();
                    unescape(f.raw, &mut self.text)?;
                    (self.text.as_str(), Key::NULL)
                }
                _ if f.raw == "null" => ("", Key::NULL),
                _ => {
                    self.text.clear();
                    value::write_canonical(&mut self.text, f, self.limits)?;
                    (self.text.as_str(), self.columns.key(Column::BodyType, "json"))
                }
            },
        };
        self.columns.push(&Row {
            ts,
            service_name: stream.service_name,
            severity_number: severity.number,
            severity_text: severity.text,
            trace_id,
            span_id,
            body,
            body_type,
            attrs: attributes.json,
            ..Row::of_stream(stream.labels)
        });
        self.out.accepted += 1;
        if self.columns.len() >= self.limits.batch_rows_max
            || self.columns.text_bytes() >= self.limits.batch_bytes_max
        {
            self.flush();
        }
        Ok(())
    }

    /// Keeps the field whose name stands first in its list; the loser becomes an attribute.
    fn displace(
        &mut self,
        held: &mut Option<(u8, usize)>,
        place: u8,
        at: usize,
        fields: &[Field<'_>],
    ) -> Result<(), Refusal> {
        match *held {
            Some((best, _)) if best < place => self.attribute_at.push(at as u32),
            Some((best, old)) => {
                *held = Some((place, at));
                // The same name again: the last counts.
                if best == place { self.check(&fields[old])? } else { self.attribute_at.push(old as u32) }
            }
            None => *held = Some((place, at)),
        }
        Ok(())
    }

    /// Reads a value that a later one of the same name replaces: broken JSON is refused wherever it stands.
    fn check(&mut self, f: &Field<'_>) -> Result<(), Refusal> {
        let mut text = String::new();
        value::write_canonical(&mut text, f, self.limits)
    }

    fn time(&self, f: &Field<'_>) -> Result<i64, Refusal> {
        if f.raw == "null" {
            return Ok(self.now);
        }
        let text = f.plain().unwrap_or(f.raw);
        let ts = match f.kind {
            Kind::Plain if self.params.documents => time::parse_zoneless(text),
            Kind::Plain => time::parse(text),
            Kind::Scalar => {
                // What JSON does not take for a number, such as `007`, is not one.
                let fine = matches!(text.as_bytes(), [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit));
                if !fine {
                    value::parse_value(text)?;
                }
                time::parse(text)
            }
            Kind::Escaped | Kind::Nested => None,
        };
        let Some(ts) = ts else {
            let shown: String = text.chars().take(64).collect();
            return Err((
                Reason::InvalidTime,
                format!("field {:?} is not a time: {shown:?}; use RFC 3339 or a number of s, ms, us or ns", f.key),
            ));
        };
        check_time(ts, self.bounds, self.now)?;
        Ok(ts)
    }

    /// `service`: a document's object of that name.
    fn stream(&mut self, fields: &[Option<&Field<'_>>], service: Option<&Field<'_>>) -> Result<Stream, Refusal> {
        self.raw.clear();
        if self.params.documents {
            self.raw.extend_from_slice(self.index.as_bytes());
            self.raw.push(END);
            self.raw.extend_from_slice(service.map_or("", |f| f.raw).as_bytes());
            self.raw.push(END);
        }
        for field in fields {
            match field {
                Some(f) => {
                    self.raw.extend_from_slice(f.raw.as_bytes());
                    self.raw.push(END);
                }
                None => self.raw.push(ABSENT),
            }
        }
        if let Some(known) = self.streams.get(&self.raw) {
            return Ok(known);
        }
        let mut pairs = Vec::new();
        for (name, field) in self.params.stream.iter().zip(fields) {
            if let Some(f) = field.filter(|f| f.raw != "null") {
                let mut text = String::new();
                match f.kind {
                    Kind::Plain | Kind::Escaped => unescape(f.raw, &mut text)?,
                    _ => value::write_canonical(&mut text, f, self.limits)?,
                }
                pairs.push((stream::sanitize_name(name), text));
            }
        }
        let mut labels = Labels::from_pairs(pairs);
        if self.params.documents {
            if labels.get(stream::SERVICE_NAME).is_none() {
                let named = service.and_then(|f| value::member(f, "name"));
                labels.set(stream::SERVICE_NAME, named.unwrap_or_else(|| self.index.clone()));
            }
            labels.set(INDEX_LABEL, self.index.as_str());
        }
        stream::discover_service_name(&mut labels);
        stream::check_labels(&labels, self.limits)?;
        let severity = match labels.get("level").or_else(|| labels.get("severity")) {
            None => NO_SEVERITY,
            Some(text) => self.severity(text),
        };
        let made = Stream {
            labels: self.columns.key(Column::StreamLabels, &labels.to_json()),
            service_name: self.columns.key_of(Column::ServiceName, labels.get(stream::SERVICE_NAME)),
            severity,
        };
        self.streams.insert(&self.raw, made);
        Ok(made)
    }

    fn severity(&mut self, text: &str) -> Severity {
        Severity { text: self.columns.key(Column::SeverityText, text), number: stream::severity_number(text) }
    }

    /// The attributes at `self.attribute_at`.
    fn attributes(&mut self, fields: &[Field<'_>]) -> Result<Attributes, Refusal> {
        if self.attribute_at.is_empty() {
            return Ok(Attributes { json: Key::NULL, severity: NO_SEVERITY });
        }
        self.raw.clear();
        for at in &self.attribute_at {
            let f = &fields[*at as usize];
            self.raw.extend_from_slice(f.key.as_bytes());
            self.raw.push(END);
            self.raw.extend_from_slice(f.raw.as_bytes());
            self.raw.push(END);
        }
        if let Some(known) = self.attributes.get(&self.raw) {
            return Ok(known);
        }
        // Of equal keys the last in the line counts.
        self.attribute_at.sort_by(|a, b| fields[*a as usize].key.cmp(fields[*b as usize].key).then(a.cmp(b)));
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        text.push('{');
        let mut level = None;
        for (i, at) in self.attribute_at.iter().enumerate() {
            let f = &fields[*at as usize];
            if self.attribute_at.get(i + 1).is_some_and(|next| fields[*next as usize].key == f.key) {
                value::write_canonical(&mut String::new(), f, self.limits)?;
                continue;
            }
            if text.len() > 1 {
                text.push(',');
            }
            json::write_string(&mut text, f.key);
            text.push(':');
            value::write_canonical(&mut text, f, self.limits)?;
            if matches!(f.kind, Kind::Plain | Kind::Escaped)
                && (f.key == "level" || f.key == "severity" && level.is_none())
            {
                level = Some(f);
            }
        }
        text.push('}');
        let json = self.columns.key(Column::Attrs, &text);
        self.text = text;
        let severity = match level {
            None => NO_SEVERITY,
            Some(f) => {
                let mut word = String::new();
                unescape(f.raw, &mut word)?;
                if word.is_empty() { NO_SEVERITY } else { self.severity(&word) }
            }
        };
        let made = Attributes { json, severity };
        self.attributes.insert(&self.raw, made);
        Ok(made)
    }

    fn flush(&mut self) {
        if !self.columns.is_empty() {
            self.out.batches.push(Data::Logs(self.columns.finish()));
        }
        // Keys hold for one batch.
        self.streams.clear();
        self.attributes.clear();
    }
}

#[inline]
fn scan_line<'b>(line: &'b str, fields: &mut Vec<Field<'b>>) -> Result<(), scan::Odd> {
    let mut scanner = Scanner::new(line)?;
    while let Some(field) = scanner.field()? {
        fields.push(field);
    }
    Ok(())
}

/// The inside of a string value, meant.
fn unescape(raw: &str, out: &mut String) -> Result<(), Refusal> {
    scan::unescape(&raw[1..raw.len() - 1], out)
        .ok_or_else(|| (Reason::Malformed, "invalid escape in a string".to_owned()))
}

/// The id in a field, and whether the column gives the field's text back exactly.
fn id_of<const N: usize>(field: Option<&Field<'_>>) -> (Option<[u8; N]>, bool) {
    let Some(text) = field.and_then(|f| f.plain()).filter(|t| t.len() == 2 * N) else {
        return (None, false);
    };
    let id = stream::parse_hex::<N>(text.as_bytes()).filter(|id| id.iter().any(|b| *b != 0));
    (id, id.is_some() && stream::is_canonical_hex(text.as_bytes()))
}

/// Refuses a time outside of the bounds.
pub(crate) fn check_time(ts: i64, bounds: TimeBounds, now: i64) -> Result<(), Refusal> {
    if bounds.contains(ts) {
        return Ok(());
    }
    let seconds = (ts / 1_000_000_000).abs_diff(now / 1_000_000_000);
    if ts > bounds.newest {
        Err((Reason::TooFarAhead, format!("timestamp {ts} is {seconds} s ahead of the server's clock")))
    } else {
        Err((Reason::TooOld, format!("timestamp {ts} is {seconds} s old, more than is accepted")))
    }
}
