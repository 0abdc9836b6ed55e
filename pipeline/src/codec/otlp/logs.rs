//! `ExportLogsServiceRequest` to log records.

use storage::model::Labels;

use super::{
    encode::STREAM_LABELS,
    value::{self, Any, Fail, Group, Resource, Scope},
    wire::Reader,
};
use crate::{
    Data,
    codec::{
        Decoded, Limits, Malformed, Reason,
        limits::TimeBounds,
        log_columns::{Column, Key, LogColumns, Row},
        ndjson::check_time,
        raw_cache::RawCache,
        stream,
    },
};

/// Resource attributes that become stream labels. Source: Loki 3 defaults for OTLP.
const INDEX_ATTRIBUTES: [&str; 18] = [
    "service.name",
    "service.namespace",
    "service.instance.id",
    "deployment.environment",
    "deployment.environment.name",
    "cloud.region",
    "cloud.availability_zone",
    "k8s.cluster.name",
    "k8s.namespace.name",
    "k8s.pod.name",
    "k8s.container.name",
    "container.name",
    "k8s.replicaset.name",
    "k8s.deployment.name",
    "k8s.statefulset.name",
    "k8s.daemonset.name",
    "k8s.cronjob.name",
    "k8s.job.name",
];

/// Bytes of a record's tag and length.
const MEMBER_BYTES: usize = 3;

/// What all records of a resource share.
struct ResourceTexts {
    labels: String,
    service_name: Option<String>,
    attrs: Option<String>,
    meta: Option<String>,
}

/// Keys of a resource and scope in the batch being built.
#[derive(Clone, Copy)]
struct Keys {
    labels: Key,
    service_name: Key,
    resource_attrs: Key,
    resource_meta: Key,
    scope_name: Key,
    scope_meta: Key,
}

struct Decoder<'l> {
    limits: &'l Limits,
    now: i64,
    bounds: TimeBounds,
    columns: LogColumns,
    attributes: RawCache<Key>,
    raw: Vec<u8>,
    text: String,
    /// Records met so far, taken or not.
    met: u64,
    /// Bytes of the whole request.
    bytes: usize,
    out: Decoded,
}

/// `body`: protobuf. `now`: nanoseconds since the epoch, the time of records without one.
pub fn decode_logs(body: &[u8], limits: &Limits, now: i64) -> Result<Decoded, Malformed> {
    let mut d = Decoder {
        limits,
        now,
        bounds: TimeBounds::new(limits, now),
        columns: LogColumns::default(),
        attributes: RawCache::default(),
        raw: Vec::new(),
        text: String::new(),
        met: 0,
        bytes: body.len(),
        out: Decoded::default(),
    };
    let mut r = Reader::new(body);
    while let Some((number, wire)) = r.field()? {
        if number == 1 {
            d.resource(&Group::read(wire.bytes()?)?)?;
        }
    }
    d.flush();
    Ok(d.out)
}

impl Decoder<'_> {
    fn resource(&mut self, group: &Group<'_>) -> Result<(), Malformed> {
        match self.resource_texts(group) {
            Ok(texts) => {
                for scope in &group.members {
                    self.scope(&texts, &Group::read(scope)?)?;
                }
                Ok(())
            }
            Err(Fail::Malformed(m)) => Err(m),
            Err(Fail::Refused(reason, message)) => self.refuse_all(reason, group.count_records()?, message),
        }
    }

    fn refuse_all(&mut self, reason: Reason, records: u64, message: String) -> Result<(), Malformed> {
        self.out.rejected.add_many(reason, records, self.met + 1, || message);
        self.met += records;
        Ok(())
    }

    fn resource_texts(&self, group: &Group<'_>) -> Result<ResourceTexts, Fail> {
        let schema_url = value::text(group.schema_url, "a schema URL")?;
        let resource = Resource::read(group.head, schema_url, self.limits)?;
        let (labels, resource) = match resource.get(STREAM_LABELS)? {
            None => (stream_labels(&resource, self.limits)?, resource),
            Some(mark) => marked_labels(resource, mark, self.limits)?,
        };
        // Loki's own list is longer than its limit on the number of labels; only lengths are checked.
        let limits = Limits { labels_max: usize::MAX, ..self.limits.clone() };
        stream::check_labels(&labels, &limits).map_err(|(r, m)| Fail::Refused(r, m))?;
        Ok(ResourceTexts {
            service_name: labels.get(stream::SERVICE_NAME).map(str::to_owned),
            labels: labels.to_json(),
            attrs: resource.attrs,
            meta: resource.meta,
        })
    }

    fn scope(&mut self, resource: &ResourceTexts, group: &Group<'_>) -> Result<(), Malformed> {
        let read =
            value::text(group.schema_url, "a schema URL").and_then(|url| Scope::read(group.head, url, self.limits));
        let scope = match read {
            Ok(scope) => scope,
            Err(Fail::Malformed(m)) => return Err(m),
            Err(Fail::Refused(reason, message)) => {
                return self.refuse_all(reason, group.members.len() as u64, message);
            }
        };
        if self.met == 0 && !group.members.is_empty() {
            // As many to the byte in the rest of the request as here.
            let here: usize = group.members.iter().map(|m| m.len() + MEMBER_BYTES).sum();
            let rows = (self.bytes / here).saturating_mul(group.members.len()).min(self.limits.batch_rows_max);
            self.columns = LogColumns::with_room(rows, self.bytes.min(self.limits.batch_bytes_max));
        }
        let mut keys = None;
        for record in &group.members {
            self.met += 1;
            let known = *keys.get_or_insert_with(|| self.keys(resource, &scope));
            match self.record(known, record) {
                Ok(()) => {}
                Err(Fail::Malformed(m)) => return Err(m),
                Err(Fail::Refused(reason, message)) => self.out.rejected.add(reason, self.met, || message),
            }
            if self.columns.len() >= self.limits.batch_rows_max
                || self.columns.text_bytes() >= self.limits.batch_bytes_max
            {
                self.flush();
                keys = None;
            }
        }
        Ok(())
    }

    fn keys(&mut self, resource: &ResourceTexts, scope: &Scope<'_>) -> Keys {
        let c = &mut self.columns;
        Keys {
            labels: c.key(Column::StreamLabels, &resource.labels),
            service_name: c.key_of(Column::ServiceName, resource.service_name.as_deref()),
            resource_attrs: c.key_of(Column::ResourceAttrs, resource.attrs.as_deref()),
            resource_meta: c.key_of(Column::ResourceMeta, resource.meta.as_deref()),
            scope_name: c.key_of(Column::ScopeName, scope.name),
            scope_meta: c.key_of(Column::ScopeMeta, scope.meta.as_deref()),
        }
    }

    fn record(&mut self, keys: Keys, bytes: &[u8]) -> Result<(), Fail> {
        if bytes.len() > self.limits.record_bytes_max {
            let message = format!("record has {} bytes; at most {}", bytes.len(), self.limits.record_bytes_max);
            return Err(Fail::Refused(Reason::RecordTooLarge, message));
        }
        if self.out.accepted as usize >= self.limits.records_max {
            let message = format!("request has more than {} records; send fewer at once", self.limits.records_max);
            return Err(Fail::Refused(Reason::TooManyRecords, message));
        }
        let mut row = Row {
            service_name: keys.service_name,
            resource_attrs: keys.resource_attrs,
            resource_meta: keys.resource_meta,
            scope_name: keys.scope_name,
            scope_meta: keys.scope_meta,
            ..Row::of_stream(keys.labels)
        };
        let (mut time, mut observed, mut body, mut attributes) = (0, 0, Any::Unset, 0usize);
        self.raw.clear();
        let mut r = Reader::new(bytes);
        while let Some((number, wire)) = r.field()? {
            match number {
                1 => time = wire.fixed64()?,
                2 => row.severity_number = Some(wire.varint()? as i32).filter(|n| *n != 0),
                3 => {
                    let text = value::text(wire.bytes()?, "severity text")?;
                    row.severity_text =
                        self.columns.key_of(Column::SeverityText, Some(text).filter(|t| !t.is_empty()));
                }
                5 => body = value::any(wire.bytes()?)?,
                6 => {
                    let kv = wire.bytes()?;
                    attributes += 1;
                    self.raw.extend_from_slice(&(kv.len() as u32).to_le_bytes());
                    self.raw.extend_from_slice(kv);
                }
                7 => row.dropped_attributes_count = Some(wire.varint()? as u32).filter(|n| *n != 0).map(i64::from),
                8 => row.flags = Some(wire.fixed32()?).filter(|n| *n != 0).map(i64::from),
                // A wrong id means the record belongs to no trace (opentelemetry-proto, LogRecord).
                9 => row.trace_id = wire.bytes()?.try_into().ok().filter(|id| *id != [0; 16]),
                10 => row.span_id = wire.bytes()?.try_into().ok().filter(|id| *id != [0; 8]),
                11 => observed = wire.fixed64()?,
                12 => {
                    let name = value::text(wire.bytes()?, "event name")?;
                    row.event_name = self.columns.key_of(Column::EventName, Some(name).filter(|t| !t.is_empty()));
                }
                _ => {}
            }
        }
        row.observed_ts = Some(nanos(observed)?).filter(|t| *t != 0);
        row.ts = match (time, row.observed_ts) {
            (0, Some(t)) => t,
            (0, None) => self.now,
            (t, _) => nanos(t)?,
        };
        check_time(row.ts, self.bounds, self.now).map_err(|(r, m)| Fail::Refused(r, m))?;
        if attributes > 0 {
            row.attrs = self.attributes(bytes, attributes)?;
        }
        match body {
            Any::Unset => {}
            Any::Text(text) => row.body = text,
            other => {
                self.text.clear();
                value::write_any(&mut self.text, other, self.limits, self.limits.depth_max)?;
                row.body_type = self.columns.key(Column::BodyType, "json");
                row.body = &self.text;
            }
        }
        self.columns.push(&row);
        self.out.accepted += 1;
        Ok(())
    }

    /// The key of a record's attributes, whose messages are in `self.raw`.
    fn attributes(&mut self, record: &[u8], count: usize) -> Result<Key, Fail> {
        if let Some(key) = self.attributes.get(&self.raw) {
            return Ok(key);
        }
        let mut sent = Vec::with_capacity(count);
        let mut r = Reader::new(record);
        while let Some((number, wire)) = r.field()? {
            if number == 6 {
                sent.push(wire.bytes()?);
            }
        }
        self.text.clear();
        value::write_attributes(&mut self.text, &sent, self.limits, self.limits.depth_max)?;
        let key = self.columns.key(Column::Attrs, &self.text);
        self.attributes.insert(&self.raw, key);
        Ok(key)
    }

    fn flush(&mut self) {
        if !self.columns.is_empty() {
            self.out.batches.push(Data::Logs(self.columns.finish()));
        }
        self.attributes.clear();
    }
}

/// The labels of a resource's stream, as Loki makes them of OTLP.
pub(super) fn stream_labels(resource: &Resource<'_>, limits: &Limits) -> Result<Labels, Fail> {
    let mut labels = Labels::default();
    for kv in &resource.attributes {
        let (key, sent) = value::key_value(kv)?;
        if INDEX_ATTRIBUTES.contains(&key) {
            labels.set(&stream::sanitize_name(key), value::label_text(value::any(sent)?, limits)?);
        }
    }
    stream::discover_service_name(&mut labels);
    Ok(labels)
}

/// The labels that another Sightline says a stream has, and the resource as it was there ([`super::encode`]).
fn marked_labels<'a>(
    mut resource: Resource<'a>,
    mark: Any<'a>,
    limits: &Limits,
) -> Result<(Labels, Resource<'a>), Fail> {
    let mut kept = Vec::with_capacity(resource.attributes.len());
    for kv in &resource.attributes {
        if value::key_value(kv)?.0 != STREAM_LABELS {
            kept.push(*kv);
        }
    }
    let pairs = |sent: &[&[u8]]| -> Result<Labels, Fail> {
        let mut out = Vec::with_capacity(sent.len());
        for kv in sent {
            let (name, sent) = value::key_value(kv)?;
            out.push((name.to_owned(), value::label_text(value::any(sent)?, limits)?));
        }
        Ok(Labels::from_pairs(out))
    };
    let labels = match mark {
        Any::Map(bytes) => {
            let mut json = String::new();
            value::write_attributes(&mut json, &kept, limits, limits.depth_max)?;
            resource.attrs = Some(json);
            pairs(&value::repeated(bytes, 1)?)?
        }
        _ => {
            resource.attrs = None;
            pairs(&std::mem::take(&mut kept))?
        }
    };
    resource.attributes = kept;
    Ok((labels, resource))
}

/// A wire time as ours: the second half of u64 lies beyond the year 2262.
pub(super) fn nanos(sent: u64) -> Result<i64, Fail> {
    i64::try_from(sent)
        .map_err(|_| Fail::Refused(Reason::TooFarAhead, format!("timestamp {sent} is beyond the year 2262")))
}
