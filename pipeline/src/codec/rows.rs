//! Exported rows as NDJSON, back into batches without loss: every column of logs, spans and points has a key.
//!
//! Kinds may be mixed; `row` says which one a line is. What is JSON in a column (labels, attributes, events) is kept as it
//! is written, so that what was exported comes back byte for byte; labels are put into their canonical form.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Visitor},
};
use serde_json::value::RawValue;
use storage::model::{
    Labels, MetricBatchBuilder,
    batch::{HistogramRow, LogBatchBuilder, LogRow, SeriesMeta, SpanBatchBuilder, SpanRow},
};

use super::{Decoded, Limits, Reason, limits::TimeBounds};
use crate::Data;

#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(borrow)]
    row: Cow<'a, str>,
}

type Text<'a> = Option<Cow<'a, str>>;
type Json<'a> = Option<&'a RawValue>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Log<'a> {
    #[serde(rename = "row")]
    _row: serde::de::IgnoredAny,
    ts: i64,
    observed_ts: Option<i64>,
    #[serde(borrow)]
    stream_labels: &'a RawValue,
    #[serde(borrow)]
    service_name: Text<'a>,
    severity_number: Option<i32>,
    #[serde(borrow)]
    severity_text: Text<'a>,
    #[serde(borrow)]
    event_name: Text<'a>,
    flags: Option<i64>,
    trace_id: Option<Id<16>>,
    span_id: Option<Id<8>>,
    #[serde(borrow)]
    body: Cow<'a, str>,
    #[serde(borrow)]
    body_type: Text<'a>,
    #[serde(borrow)]
    scope_name: Text<'a>,
    #[serde(borrow)]
    scope_meta: Json<'a>,
    #[serde(borrow)]
    resource_attrs: Json<'a>,
    #[serde(borrow)]
    resource_meta: Json<'a>,
    #[serde(borrow)]
    attrs: Json<'a>,
    dropped_attributes_count: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Span<'a> {
    #[serde(rename = "row")]
    _row: serde::de::IgnoredAny,
    trace_id: Id<16>,
    span_id: Id<8>,
    parent_span_id: Option<Id<8>>,
    ts: i64,
    duration_ns: i64,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    service_name: Text<'a>,
    kind: i32,
    status_code: i32,
    #[serde(borrow)]
    status_message: Text<'a>,
    #[serde(borrow)]
    trace_state: Text<'a>,
    flags: Option<i64>,
    #[serde(borrow)]
    scope_name: Text<'a>,
    #[serde(borrow)]
    scope_meta: Json<'a>,
    #[serde(borrow)]
    resource_attrs: Json<'a>,
    #[serde(borrow)]
    resource_meta: Json<'a>,
    #[serde(borrow)]
    attrs: Json<'a>,
    #[serde(borrow)]
    events: Json<'a>,
    #[serde(borrow)]
    links: Json<'a>,
    dropped_attributes_count: Option<i64>,
    dropped_events_count: Option<i64>,
    dropped_links_count: Option<i64>,
}

/// A sample, histogram or exemplar: the fields of all three, of which each kind needs its own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Point<'a> {
    #[serde(rename = "row")]
    _row: serde::de::IgnoredAny,
    #[serde(borrow)]
    series_labels: &'a RawValue,
    #[serde(borrow, rename = "type")]
    metric_type: Text<'a>,
    #[serde(borrow)]
    unit: Text<'a>,
    #[serde(borrow)]
    help: Text<'a>,
    #[serde(borrow)]
    origin: Json<'a>,
    ts_ms: i64,
    start_ms: Option<i64>,
    value: Option<Double>,
    schema: Option<i32>,
    zero_threshold: Option<Double>,
    zero_count: Option<Double>,
    count: Option<Double>,
    sum: Option<Double>,
    min: Option<Double>,
    max: Option<Double>,
    positive_offset: Option<i32>,
    positive_counts: Option<Vec<Double>>,
    negative_offset: Option<i32>,
    negative_counts: Option<Vec<Double>>,
    custom_bounds: Option<Vec<Double>>,
    reset_hint: Option<i32>,
    is_float: Option<bool>,
    trace_id: Option<Id<16>>,
    span_id: Option<Id<8>>,
    #[serde(borrow)]
    labels: Json<'a>,
}

/// Bytes as hex.
struct Id<const N: usize>([u8; N]);

impl<'de, const N: usize> Deserialize<'de> for Id<N> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(d)?;
        let mut out = [0; N];
        hex::decode_to_slice(&*text, &mut out)
            .map_err(|_| D::Error::custom(format!("expected {} hex digits", 2 * N)))?;
        Ok(Id(out))
    }
}

/// A number, or `"0x..."`: the bits of one that JSON does not have.
#[derive(Clone, Copy)]
struct Double(f64);

impl<'de> Deserialize<'de> for Double {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Double;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or the bits of one as \"0x\" and 16 hex digits")
            }
            fn visit_f64<E>(self, v: f64) -> Result<Double, E> {
                Ok(Double(v))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Double, E> {
                Ok(Double(v as f64))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Double, E> {
                Ok(Double(v as f64))
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Double, E> {
                let bits = v.strip_prefix("0x").and_then(|h| u64::from_str_radix(h, 16).ok());
                bits.map(|b| Double(f64::from_bits(b)))
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(v), &self))
            }
        }
        d.deserialize_any(Either)
    }
}

/// The batches under way, one of each signal.
#[derive(Default)]
struct Open {
    logs: LogBatchBuilder,
    spans: SpanBatchBuilder,
    metrics: MetricBatchBuilder,
    exemplars: usize,
    bytes: usize,
}

impl Open {
    fn close(&mut self, out: &mut Vec<Data>) {
        if !self.logs.is_empty() {
            out.push(Data::Logs(self.logs.finish()));
        }
        if !self.spans.is_empty() {
            out.push(Data::Spans(self.spans.finish()));
        }
        if !self.metrics.is_empty() || self.exemplars > 0 {
            out.push(Data::Metrics(self.metrics.finish()));
            self.exemplars = 0;
        }
        self.bytes = 0;
    }

    fn rows(&self) -> usize {
        self.logs.len() + self.spans.len() + self.metrics.len() + self.exemplars
    }
}

/// Reads exported lines. `now`: nanoseconds since the epoch. Lines that cannot be read are refused one by one.
pub fn decode(body: &[u8], limits: &Limits, now: i64) -> Decoded {
    let times = TimeBounds::new(limits, now);
    let mut out = Decoded::default();
    let mut open = Open::default();
    for (at, line) in body.split(|b| *b == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let at = at as u64 + 1;
        if line.len() > limits.record_bytes_max {
            let max = limits.record_bytes_max;
            out.rejected.add(Reason::RecordTooLarge, at, || format!("line is longer than {max} bytes"));
            continue;
        }
        if out.accepted as usize >= limits.records_max {
            let max = limits.records_max;
            out.rejected.add(Reason::TooManyRecords, at, || format!("more than {max} rows in one request"));
            continue;
        }
        match push(&mut open, line, times) {
            Ok(()) => {
                out.accepted += 1;
                open.bytes += line.len();
                if open.rows() >= limits.batch_rows_max || open.bytes >= limits.batch_bytes_max {
                    open.close(&mut out.batches);
                }
            }
            Err((reason, why)) => out.rejected.add(reason, at, || why),
        }
    }
    open.close(&mut out.batches);
    out
}

fn push(open: &mut Open, line: &[u8], times: TimeBounds) -> Result<(), (Reason, String)> {
    let text = std::str::from_utf8(line).map_err(|e| (Reason::InvalidUtf8, e.to_string()))?;
    let bad = |e: serde_json::Error| (Reason::Malformed, e.to_string());
    let kind: Kind<'_> = serde_json::from_str(text).map_err(bad)?;
    match &*kind.row {
        "log" => log(open, &serde_json::from_str(text).map_err(bad)?, times),
        "span" => span(open, &serde_json::from_str(text).map_err(bad)?, times),
        "sample" | "histogram" | "exemplar" => {
            point(open, &kind.row, &serde_json::from_str(text).map_err(bad)?, times)
        }
        other => {
            Err((Reason::Malformed, format!("row {other:?}: expected log, span, sample, histogram or exemplar")))
        }
    }
}

fn in_time(ts: i64, times: TimeBounds) -> Result<(), (Reason, String)> {
    if times.contains(ts) {
        return Ok(());
    }
    let reason = if ts > times.newest { Reason::TooFarAhead } else { Reason::TooOld };
    Err((reason, format!("time {ts} is out of the range that is taken")))
}

fn labels(raw: &RawValue) -> Result<Labels, (Reason, String)> {
    Labels::from_json(raw.get()).map_err(|e| (Reason::InvalidLabels, format!("labels: {e}")))
}

fn raw<'a>(json: Json<'a>) -> Option<&'a str> {
    json.map(RawValue::get)
}

fn log(open: &mut Open, r: &Log<'_>, times: TimeBounds) -> Result<(), (Reason, String)> {
    in_time(r.ts, times)?;
    let stream_labels = labels(r.stream_labels)?.to_json();
    open.logs.push(&LogRow {
        ts: r.ts,
        observed_ts: r.observed_ts,
        stream_labels: &stream_labels,
        service_name: r.service_name.as_deref(),
        severity_number: r.severity_number,
        severity_text: r.severity_text.as_deref(),
        event_name: r.event_name.as_deref(),
        flags: r.flags,
        trace_id: r.trace_id.as_ref().map(|i| &i.0[..]),
        span_id: r.span_id.as_ref().map(|i| &i.0[..]),
        body: &r.body,
        body_type: r.body_type.as_deref(),
        scope_name: r.scope_name.as_deref(),
        scope_meta: raw(r.scope_meta),
        resource_attrs: raw(r.resource_attrs),
        resource_meta: raw(r.resource_meta),
        attrs: raw(r.attrs),
        dropped_attributes_count: r.dropped_attributes_count,
    });
    Ok(())
}

fn span(open: &mut Open, r: &Span<'_>, times: TimeBounds) -> Result<(), (Reason, String)> {
    in_time(r.ts, times)?;
    open.spans.push(&SpanRow {
        trace_id: &r.trace_id.0,
        span_id: &r.span_id.0,
        parent_span_id: r.parent_span_id.as_ref().map(|i| &i.0[..]),
        ts: r.ts,
        duration_ns: r.duration_ns,
        name: &r.name,
        service_name: r.service_name.as_deref(),
        kind: r.kind,
        status_code: r.status_code,
        status_message: r.status_message.as_deref(),
        trace_state: r.trace_state.as_deref(),
        flags: r.flags,
        scope_name: r.scope_name.as_deref(),
        scope_meta: raw(r.scope_meta),
        resource_attrs: raw(r.resource_attrs),
        resource_meta: raw(r.resource_meta),
        attrs: raw(r.attrs),
        events: raw(r.events),
        links: raw(r.links),
        dropped_attributes_count: r.dropped_attributes_count,
        dropped_events_count: r.dropped_events_count,
        dropped_links_count: r.dropped_links_count,
    });
    Ok(())
}

fn point(open: &mut Open, kind: &str, r: &Point<'_>, times: TimeBounds) -> Result<(), (Reason, String)> {
    in_time(r.ts_ms.saturating_mul(1_000_000), times)?;
    let labels = labels(r.series_labels)?;
    if labels.get("__name__").is_none() {
        return Err((Reason::InvalidMetric, "series without a label __name__".to_owned()));
    }
    let lacks = |what: &str| (Reason::Malformed, format!("a {kind} needs `{what}`"));
    let number = |v: Option<Double>, what: &str| v.map(|v| v.0).ok_or_else(|| lacks(what));
    let list = |v: &Option<Vec<Double>>| v.as_ref().map(|v| v.iter().map(|d| d.0).collect::<Vec<f64>>());
    let meta = SeriesMeta {
        metric_type: r.metric_type.as_deref(),
        unit: r.unit.as_deref(),
        help: r.help.as_deref(),
        origin: raw(r.origin),
    };
    match kind {
        "sample" => {
            let value = number(r.value, "value")?;
            let id = open.metrics.series(&labels, meta);
            open.metrics.sample(id, r.ts_ms, r.start_ms, value);
        }
        "histogram" => {
            let row = HistogramRow {
                schema: r.schema.ok_or_else(|| lacks("schema"))?,
                zero_threshold: number(r.zero_threshold, "zero_threshold")?,
                zero_count: number(r.zero_count, "zero_count")?,
                count: number(r.count, "count")?,
                sum: number(r.sum, "sum")?,
                min: r.min.map(|v| v.0),
                max: r.max.map(|v| v.0),
                positive_offset: r.positive_offset.ok_or_else(|| lacks("positive_offset"))?,
                positive_counts: list(&r.positive_counts).ok_or_else(|| lacks("positive_counts"))?,
                negative_offset: r.negative_offset.ok_or_else(|| lacks("negative_offset"))?,
                negative_counts: list(&r.negative_counts).ok_or_else(|| lacks("negative_counts"))?,
                custom_bounds: list(&r.custom_bounds),
                reset_hint: r.reset_hint.ok_or_else(|| lacks("reset_hint"))?,
                is_float: r.is_float.ok_or_else(|| lacks("is_float"))?,
            };
            let id = open.metrics.series(&labels, meta);
            open.metrics.histogram(id, r.ts_ms, r.start_ms, &row);
        }
        _ => {
            let value = number(r.value, "value")?;
            let own = r.labels.ok_or_else(|| lacks("labels"))?;
            let (trace, span) = (r.trace_id.as_ref().map(|i| &i.0[..]), r.span_id.as_ref().map(|i| &i.0[..]));
            let id = open.metrics.series(&labels, meta);
            open.metrics.exemplar(id, r.ts_ms, value, trace, span, own.get());
            open.exemplars += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray as _;
    use arrow::datatypes::Float64Type;

    use super::*;

    fn read(lines: &str) -> Decoded {
        decode(lines.as_bytes(), &Limits::default(), 1_700_000_000_000_000_000)
    }

    #[test]
    fn lines_of_all_kinds_become_rows() {
        let decoded = read(
            r#"{"row":"log","ts":5,"stream_labels":{"b":"2","a":"1"},"body":"x\ny","attrs":{"k":1.50}}
{"row":"span","trace_id":"00112233445566778899aabbccddeeff","span_id":"0011223344556677","ts":1,"duration_ns":2,"name":"n","kind":2,"status_code":0}

{"row":"sample","series_labels":{"__name__":"up"},"type":"gauge","ts_ms":3,"value":"0x7ff0000000000002"}
{"row":"exemplar","series_labels":{"__name__":"up"},"ts_ms":3,"value":1,"labels":{}}
"#,
        );
        assert_eq!((decoded.accepted, decoded.rejected.total(), decoded.batches.len()), (4, 0, 3));
        let Data::Logs(logs) = &decoded.batches[0] else { panic!("logs first") };
        let attrs = logs.column_by_name("attrs").unwrap().as_dictionary::<arrow::datatypes::Int32Type>();
        assert_eq!(attrs.values().as_string::<i32>().value(0), "{\"k\":1.50}", "kept as written");
        let labels = logs.column_by_name("stream_labels").unwrap().as_dictionary::<arrow::datatypes::Int32Type>();
        assert_eq!(labels.values().as_string::<i32>().value(0), "{\"a\":\"1\",\"b\":\"2\"}");
        let Data::Metrics(metrics) = &decoded.batches[2] else { panic!("metrics last") };
        let values = metrics.samples.column_by_name("value").unwrap().as_primitive::<Float64Type>();
        assert_eq!(values.value(0).to_bits(), 0x7ff0_0000_0000_0002, "stale markers keep their bits");
        assert_eq!(metrics.exemplars.num_rows(), 1);
    }

    #[test]
    fn bad_lines_are_refused_one_by_one_with_their_place() {
        let decoded = read(concat!(
            "{\"row\":\"log\",\"ts\":1,\"stream_labels\":{},\"body\":\"ok\"}\n",
            "no json\n",
            "{\"row\":\"series\"}\n",
            "{\"row\":\"log\",\"ts\":1,\"stream_labels\":[],\"body\":\"x\"}\n",
            "{\"row\":\"log\",\"ts\":1,\"stream_labels\":{},\"body\":\"x\",\"bodi\":1}\n",
            "{\"row\":\"span\",\"trace_id\":\"00\",\"span_id\":\"0011223344556677\",\"ts\":1,\"duration_ns\":2,\"name\":\"n\",\"kind\":2,\"status_code\":0}\n",
            "{\"row\":\"sample\",\"series_labels\":{\"__name__\":\"up\"},\"ts_ms\":1}\n",
            "{\"row\":\"log\",\"ts\":9223372036854775807,\"stream_labels\":{},\"body\":\"x\"}\n",
        ));
        assert_eq!((decoded.accepted, decoded.rejected.total()), (1, 7), "{:?}", decoded.rejected);
        let places: Vec<u64> = decoded.rejected.details.iter().map(|d| d.at).collect();
        assert_eq!(places, [2, 3, 4, 5, 6, 7, 8]);
        assert!(decoded.rejected.details[5].message.contains("needs `value`"), "{:?}", decoded.rejected.details[5]);
    }
}
