//! `ExportTraceServiceRequest` to spans.

use storage::model::{SpanBatchBuilder, SpanRow, json};

use super::{
    logs::nanos,
    value::{self, Any, Fail, Group, Resource, Scope},
    wire::Reader,
};
use crate::{
    Data,
    codec::{Decoded, Limits, Malformed, Reason, limits::TimeBounds, ndjson::check_time},
};

struct ResourceTexts {
    service_name: Option<String>,
    attrs: Option<String>,
    meta: Option<String>,
}

#[derive(Default)]
struct Texts {
    attrs: String,
    events: String,
    links: String,
}

struct Decoder<'l> {
    limits: &'l Limits,
    now: i64,
    bounds: TimeBounds,
    rows: SpanBatchBuilder,
    /// Bytes of the spans in `rows`, as sent.
    bytes: usize,
    met: u64,
    out: Decoded,
}

/// `body`: protobuf. `now`: nanoseconds since the epoch.
pub fn decode_traces(body: &[u8], limits: &Limits, now: i64) -> Result<Decoded, Malformed> {
    let mut d = Decoder {
        limits,
        now,
        bounds: TimeBounds::new(limits, now),
        rows: SpanBatchBuilder::new(),
        bytes: 0,
        met: 0,
        out: Decoded::default(),
    };
    let mut texts = Texts::default();
    let mut r = Reader::new(body);
    while let Some((number, wire)) = r.field()? {
        if number == 1 {
            d.resource(&Group::read(wire.bytes()?)?, &mut texts)?;
        }
    }
    d.flush();
    Ok(d.out)
}

impl Decoder<'_> {
    fn resource(&mut self, group: &Group<'_>, texts: &mut Texts) -> Result<(), Malformed> {
        let resource = match self.resource_texts(group) {
            Ok(r) => r,
            Err(Fail::Malformed(m)) => return Err(m),
            Err(Fail::Refused(reason, message)) => {
                let n = group.count_records()?;
                self.out.rejected.add_many(reason, n, self.met + 1, || message);
                self.met += n;
                return Ok(());
            }
        };
        for scope in &group.members {
            let group = Group::read(scope)?;
            let read = value::text(group.schema_url, "a schema URL")
                .and_then(|url| Scope::read(group.head, url, self.limits));
            let scope = match read {
                Ok(s) => s,
                Err(Fail::Malformed(m)) => return Err(m),
                Err(Fail::Refused(reason, message)) => {
                    let n = group.members.len() as u64;
                    self.out.rejected.add_many(reason, n, self.met + 1, || message);
                    self.met += n;
                    continue;
                }
            };
            for span in &group.members {
                self.met += 1;
                match self.span(&resource, &scope, span, texts) {
                    Ok(()) => {}
                    Err(Fail::Malformed(m)) => return Err(m),
                    Err(Fail::Refused(reason, message)) => self.out.rejected.add(reason, self.met, || message),
                }
                if self.rows.len() >= self.limits.batch_rows_max || self.bytes >= self.limits.batch_bytes_max {
                    self.flush();
                }
            }
        }
        Ok(())
    }

    fn resource_texts(&self, group: &Group<'_>) -> Result<ResourceTexts, Fail> {
        let schema_url = value::text(group.schema_url, "a schema URL")?;
        let resource = Resource::read(group.head, schema_url, self.limits)?;
        let service_name = match resource.get("service.name")? {
            None | Some(Any::Unset) => None,
            Some(v) => Some(value::label_text(v, self.limits)?).filter(|n| !n.is_empty()),
        };
        Ok(ResourceTexts { service_name, attrs: resource.attrs, meta: resource.meta })
    }

    fn span(
        &mut self,
        resource: &ResourceTexts,
        scope: &Scope<'_>,
        bytes: &[u8],
        texts: &mut Texts,
    ) -> Result<(), Fail> {
        let refuse = |reason, message: String| Err(Fail::Refused(reason, message));
        if bytes.len() > self.limits.record_bytes_max {
            let limit = self.limits.record_bytes_max;
            return refuse(Reason::RecordTooLarge, format!("span has {} bytes; at most {limit}", bytes.len()));
        }
        if self.out.accepted as usize >= self.limits.records_max {
            let limit = self.limits.records_max;
            return refuse(
                Reason::TooManyRecords,
                format!("request has more than {limit} spans; send fewer at once"),
            );
        }
        let mut row = SpanRow {
            service_name: resource.service_name.as_deref(),
            scope_name: scope.name,
            scope_meta: scope.meta.as_deref(),
            resource_attrs: resource.attrs.as_deref(),
            resource_meta: resource.meta.as_deref(),
            ..SpanRow::default()
        };
        let (mut start, mut end) = (0, 0);
        let mut attributes = Vec::new();
        texts.events.clear();
        texts.links.clear();
        let count = |v: u64| Some(v as u32).filter(|n| *n != 0).map(i64::from);
        let mut r = Reader::new(bytes);
        while let Some((number, wire)) = r.field()? {
            match number {
                1 => row.trace_id = wire.bytes()?,
                2 => row.span_id = wire.bytes()?,
                3 => {
                    row.trace_state = Some(value::text(wire.bytes()?, "trace state")?).filter(|s| !s.is_empty());
                }
                4 => row.parent_span_id = Some(wire.bytes()?).filter(|id| !id.is_empty() && *id != [0; 8]),
                5 => row.name = value::text(wire.bytes()?, "span name")?,
                6 => row.kind = wire.varint()? as i32,
                7 => start = wire.fixed64()?,
                8 => end = wire.fixed64()?,
                9 => attributes.push(wire.bytes()?),
                10 => row.dropped_attributes_count = count(wire.varint()?),
                11 => self.event(&mut texts.events, wire.bytes()?)?,
                12 => row.dropped_events_count = count(wire.varint()?),
                13 => self.link(&mut texts.links, wire.bytes()?)?,
                14 => row.dropped_links_count = count(wire.varint()?),
                15 => {
                    let mut status = Reader::new(wire.bytes()?);
                    while let Some((number, wire)) = status.field()? {
                        match number {
                            2 => {
                                let message = value::text(wire.bytes()?, "status message")?;
                                row.status_message = Some(message).filter(|m| !m.is_empty());
                            }
                            3 => row.status_code = wire.varint()? as i32,
                            _ => {}
                        }
                    }
                }
                16 => row.flags = Some(wire.fixed32()?).filter(|n| *n != 0).map(i64::from),
                _ => {}
            }
        }
        if row.trace_id.len() != 16 || row.trace_id == [0; 16] {
            let message = "trace id is not 16 bytes with one that is not zero".to_owned();
            return refuse(Reason::InvalidTraceId, message);
        }
        if row.span_id.len() != 8 || row.span_id == [0; 8] {
            let message = "span id is not 8 bytes with one that is not zero".to_owned();
            return refuse(Reason::InvalidSpanId, message);
        }
        if row.parent_span_id.is_some_and(|id| id.len() != 8) {
            return refuse(Reason::InvalidSpanId, "parent span id is not 8 bytes".to_owned());
        }
        row.ts = nanos(start)?;
        check_time(row.ts, self.bounds, self.now).map_err(|(r, m)| Fail::Refused(r, m))?;
        // A clock that went backwards: no negative durations.
        row.duration_ns = nanos(end)?.saturating_sub(row.ts).max(0);
        texts.attrs.clear();
        if !attributes.is_empty() {
            value::write_attributes(&mut texts.attrs, &attributes, self.limits, self.limits.depth_max)?;
            row.attrs = Some(&texts.attrs);
        }
        if !texts.events.is_empty() {
            texts.events.push(']');
            row.events = Some(&texts.events);
        }
        if !texts.links.is_empty() {
            texts.links.push(']');
            row.links = Some(&texts.links);
        }
        self.rows.push(&row);
        self.bytes += bytes.len();
        self.out.accepted += 1;
        Ok(())
    }

    /// Appends `,{"time_unix_nano":1,"name":"","attributes":{},"dropped_attributes_count":0}`, or `[{` the first time.
    fn event(&self, out: &mut String, bytes: &[u8]) -> Result<(), Fail> {
        use std::fmt::Write as _;
        let (mut time, mut name, mut attributes, mut dropped) = (0, "", Vec::new(), 0);
        let mut r = Reader::new(bytes);
        while let Some((number, wire)) = r.field()? {
            match number {
                1 => time = wire.fixed64()?,
                2 => name = value::text(wire.bytes()?, "event name")?,
                3 => attributes.push(wire.bytes()?),
                4 => dropped = wire.varint()? as u32,
                _ => {}
            }
        }
        let _ = write!(out, "{}{{\"time_unix_nano\":{time},\"name\":", if out.is_empty() { '[' } else { ',' });
        json::write_string(out, name);
        out.push_str(",\"attributes\":");
        value::write_attributes(out, &attributes, self.limits, self.limits.depth_max)?;
        let _ = write!(out, ",\"dropped_attributes_count\":{dropped}}}");
        Ok(())
    }

    /// Appends a link as [`Self::event`] does an event.
    fn link(&self, out: &mut String, bytes: &[u8]) -> Result<(), Fail> {
        use std::fmt::Write as _;
        let (mut trace, mut span, mut state): (&[u8], &[u8], &str) = (&[], &[], "");
        let (mut attributes, mut dropped, mut flags) = (Vec::new(), 0, 0);
        let mut r = Reader::new(bytes);
        while let Some((number, wire)) = r.field()? {
            match number {
                1 => trace = wire.bytes()?,
                2 => span = wire.bytes()?,
                3 => state = value::text(wire.bytes()?, "trace state")?,
                4 => attributes.push(wire.bytes()?),
                5 => dropped = wire.varint()? as u32,
                6 => flags = wire.fixed32()?,
                _ => {}
            }
        }
        let open = if out.is_empty() { '[' } else { ',' };
        let (trace, span) = (hex::encode(trace), hex::encode(span));
        let _ = write!(out, "{open}{{\"trace_id\":\"{trace}\",\"span_id\":\"{span}\",\"trace_state\":");
        json::write_string(out, state);
        out.push_str(",\"attributes\":");
        value::write_attributes(out, &attributes, self.limits, self.limits.depth_max)?;
        let _ = write!(out, ",\"dropped_attributes_count\":{dropped},\"flags\":{flags}}}");
        Ok(())
    }

    fn flush(&mut self) {
        if !self.rows.is_empty() {
            self.out.batches.push(Data::Spans(self.rows.finish()));
        }
        self.bytes = 0;
    }
}
