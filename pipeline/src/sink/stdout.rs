//! One JSON object a row on standard output, for people and for tests. Lossless: every column that is set is there.
//!
//!   {"signal":"log","tenant":"default","timestamp":"2026-01-02T03:04:05.000000006Z","stream_labels":{},"body":"x", ...}
//!   {"signal":"span","tenant":"default","timestamp":...,"trace_id":"<hex>","name":"GET /","duration_ns":5, ...}
//!   {"signal":"metric","tenant":"default","kind":"sample","timestamp":...,"labels":{"__name__":"up"},"value":1.0, ...}

use std::{
    collections::HashMap,
    io::{self, Write},
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type, Int32Type, Int64Type, TimestampNanosecondType},
};
use chrono::{DateTime, SecondsFormat};
use serde::Deserialize;
use storage::model::{
    json::{write_double, write_string},
    time::NANOS_PER_MILLI,
};

use crate::component::{Batch, Data, DeliveryError, Sink, SinkContext, SinkError};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub inputs: Vec<String>,
}

/// Writes to `W`, usually standard output.
pub struct StdoutSink<W> {
    out: W,
}

impl<W: Write + Send + 'static> StdoutSink<W> {
    pub fn new(out: W) -> Self {
        StdoutSink { out }
    }
}

#[async_trait::async_trait]
impl<W: Write + Send + 'static> Sink for StdoutSink<W> {
    async fn run(self: Box<Self>, ctx: SinkContext) -> Result<(), SinkError> {
        let SinkContext { name, mut intake, counters, .. } = ctx;
        let mut out = self.out;
        while let Some(envelope) = intake.next().await {
            let batch = envelope.batch.clone();
            // A terminal or a pipe may block for as long as it likes.
            let written = tokio::task::spawn_blocking(move || {
                let done = write_batch(&batch).and_then(|text| {
                    out.write_all(text.as_bytes())?;
                    out.flush()
                });
                (out, done)
            });
            let (back, done) = written
                .await
                .map_err(|e| SinkError { name: name.clone(), reason: format!("cannot write rows: {e}") })?;
            out = back;
            if let Err(e) = done {
                let reason = format!("cannot write to standard output: {e}");
                SinkContext::answer(&counters, envelope, Err(DeliveryError::Stopping));
                return Err(SinkError { name, reason });
            }
            SinkContext::answer(&counters, envelope, Ok(()));
        }
        Ok(())
    }
}

/// The rows of a batch as lines.
pub fn write_batch(batch: &Batch) -> io::Result<String> {
    let mut head = String::from("\"tenant\":");
    write_string(&mut head, batch.tenant.as_str());
    let mut out = String::new();
    match &batch.data {
        Data::Logs(rows) => write_rows(&mut out, &format!("{{\"signal\":\"log\",{head}"), rows, None),
        Data::Spans(rows) => write_rows(&mut out, &format!("{{\"signal\":\"span\",{head}"), rows, None),
        Data::Metrics(m) => {
            let series = series_texts(&m.series);
            for (kind, rows) in [("sample", &m.samples), ("histogram", &m.histograms), ("exemplar", &m.exemplars)] {
                let head = format!("{{\"signal\":\"metric\",{head},\"kind\":\"{kind}\"");
                write_rows(&mut out, &head, rows, Some((kind, &series)));
            }
        }
    }
    Ok(out)
}

/// The NaN by which Prometheus marks the end of a series; JSON cannot tell it from others.
const STALE_BITS: u64 = 0x7ff0_0000_0000_0002;

type SeriesTexts = HashMap<i64, String>;

/// What each series says of itself, as JSON members with a leading comma.
fn series_texts(series: &RecordBatch) -> SeriesTexts {
    let ids = series.column(0).as_primitive::<Int64Type>();
    (0..series.num_rows())
        .map(|row| {
            let mut text = String::new();
            for (field, column) in series.schema_ref().fields().iter().zip(series.columns()) {
                // The times of the batch's own points say the same.
                if !matches!(field.name().as_str(), "series_id" | "first_ms" | "last_ms") {
                    write_member(&mut text, field.name(), column, row, None);
                }
            }
            (ids.value(row), text)
        })
        .collect()
}

fn write_rows(out: &mut String, head: &str, rows: &RecordBatch, metrics: Option<(&str, &SeriesTexts)>) {
    let schema = rows.schema();
    let body_type = rows.column_by_name("body_type");
    for row in 0..rows.num_rows() {
        out.push_str(head);
        for (field, column) in schema.fields().iter().zip(rows.columns()) {
            match (field.name().as_str(), metrics) {
                ("series_id", Some((_, series))) => {
                    let id = column.as_primitive::<Int64Type>().value(row);
                    out.push_str(series.get(&id).map_or("", String::as_str));
                }
                ("labels", Some(("exemplar", _))) => {
                    write_member(out, "exemplar_labels", column, row, Some(true));
                }
                ("body", _) => {
                    let json = body_type.is_some_and(|t| t.is_valid(row));
                    write_member(out, "body", column, row, Some(json));
                }
                (name, _) => write_member(out, name, column, row, None),
            }
        }
        out.push_str("}\n");
    }
}

/// Columns whose text is JSON already.
fn holds_json(name: &str) -> bool {
    matches!(
        name,
        "stream_labels"
            | "scope_meta"
            | "resource_attrs"
            | "resource_meta"
            | "attrs"
            | "events"
            | "links"
            | "labels"
            | "origin"
    )
}

/// Appends `,"name":value`; nothing for null. `raw`: whether text is JSON, if the name alone does not tell.
fn write_member(out: &mut String, name: &str, column: &dyn Array, row: usize, raw: Option<bool>) {
    use std::fmt::Write as _;
    if column.is_null(row) {
        return;
    }
    out.push(',');
    write_string(
        out,
        match name {
            "ts" | "ts_ms" => "timestamp",
            "observed_ts" => "observed_timestamp",
            other => other,
        },
    );
    out.push(':');
    let text = |out: &mut String, value: &str| {
        if raw.unwrap_or_else(|| holds_json(name)) { out.push_str(value) } else { write_string(out, value) }
    };
    match column.data_type() {
        DataType::Timestamp(_, _) => write_time(out, column.as_primitive::<TimestampNanosecondType>().value(row)),
        DataType::Int64 if name == "ts_ms" => {
            write_time(out, column.as_primitive::<Int64Type>().value(row).saturating_mul(NANOS_PER_MILLI));
        }
        DataType::Int64 => {
            let _ = write!(out, "{}", column.as_primitive::<Int64Type>().value(row));
        }
        DataType::Int32 => {
            let _ = write!(out, "{}", column.as_primitive::<Int32Type>().value(row));
        }
        DataType::Float64 => {
            let value = column.as_primitive::<Float64Type>().value(row);
            write_double(out, value);
            if value.to_bits() == STALE_BITS {
                out.push_str(",\"stale\":true");
            }
        }
        DataType::Boolean => out.push_str(if column.as_boolean().value(row) { "true" } else { "false" }),
        DataType::Binary => {
            let _ = write!(out, "\"{}\"", hex::encode(column.as_binary::<i32>().value(row)));
        }
        DataType::Utf8 => text(out, column.as_string::<i32>().value(row)),
        DataType::Dictionary(_, _) => {
            let d = column.as_dictionary::<Int32Type>();
            let values = d.values().as_string::<i32>();
            text(out, values.value(d.keys().value(row) as usize));
        }
        DataType::List(_) => {
            let list = column.as_list::<i32>().value(row);
            out.push('[');
            for (i, v) in list.as_primitive::<Float64Type>().iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                match v {
                    Some(v) => write_double(out, v),
                    None => out.push_str("null"),
                }
            }
            out.push(']');
        }
        // The schemas of the store have no other type.
        other => write_string(out, &format!("unknown type {other}")),
    }
}

fn write_time(out: &mut String, nanos: i64) {
    out.push('"');
    out.push_str(&DateTime::from_timestamp_nanos(nanos).to_rfc3339_opts(SecondsFormat::Nanos, true));
    out.push('"');
}

#[cfg(test)]
mod tests {
    use storage::model::{
        Labels, LogBatchBuilder, LogRow, MetricBatchBuilder, SpanBatchBuilder, SpanRow, TenantId,
        batch::{HistogramRow, SeriesMeta},
    };

    use super::*;

    fn lines(data: Data) -> Vec<serde_json::Value> {
        let text = write_batch(&Batch::new(TenantId::default(), data)).unwrap();
        text.lines().map(|l| serde_json::from_str(l).expect(l)).collect()
    }

    #[test]
    fn a_log_row_keeps_every_column_that_is_set() {
        let mut b = LogBatchBuilder::new();
        b.push(&LogRow {
            ts: 1_000_000_007,
            stream_labels: r#"{"app":"a\"b"}"#,
            body: "line\n\u{1}",
            trace_id: Some(&[0xab; 16]),
            attrs: Some(r#"{"d":1.0,"n":{"x":[1]}}"#),
            severity_number: Some(9),
            ..LogRow::default()
        });
        b.push(&LogRow { stream_labels: "{}", body: r#"{"k":1}"#, body_type: Some("json"), ..LogRow::default() });
        let l = lines(Data::Logs(b.finish()));
        assert_eq!(l[0]["timestamp"], "1970-01-01T00:00:01.000000007Z");
        assert_eq!(l[0]["body"], "line\n\u{1}");
        assert_eq!(l[0]["stream_labels"]["app"], "a\"b");
        assert_eq!(l[0]["attrs"]["n"]["x"][0], 1);
        assert_eq!(l[0]["trace_id"], "ab".repeat(16));
        assert_eq!(l[0]["severity_number"], 9);
        assert!(l[0].get("span_id").is_none());
        assert_eq!(l[1]["body"]["k"], 1);
        assert_eq!(l[1]["body_type"], "json");
    }

    #[test]
    fn a_span_is_one_object_and_its_events_are_json() {
        let mut b = SpanBatchBuilder::new();
        b.push(&SpanRow {
            trace_id: &[1; 16],
            span_id: &[2; 8],
            name: "GET /",
            duration_ns: 5,
            events: Some(r#"[{"name":"e"}]"#),
            ..SpanRow::default()
        });
        let l = lines(Data::Spans(b.finish()));
        assert_eq!((l[0]["signal"].as_str(), l[0]["duration_ns"].as_i64()), (Some("span"), Some(5)));
        assert_eq!(l[0]["events"][0]["name"], "e");
    }

    #[test]
    fn points_carry_their_series() {
        let mut m = MetricBatchBuilder::new();
        let labels = Labels::from_pairs([("__name__", "up"), ("job", "a")]);
        let id = m.series(&labels, SeriesMeta { metric_type: Some("gauge"), ..SeriesMeta::default() });
        m.sample(id, 1_500, None, f64::from_bits(STALE_BITS));
        m.histogram(id, 2_000, None, &HistogramRow { positive_counts: vec![1.0, 2.0], ..HistogramRow::default() });
        m.exemplar(id, 2_000, 4.0, Some(&[3; 16]), None, r#"{"x":"y"}"#);
        let l = lines(Data::Metrics(m.finish()));
        assert_eq!(l.len(), 3);
        assert!(l.iter().all(|v| v["labels"]["__name__"] == "up" && v["type"] == "gauge"));
        assert_eq!(l[0]["value"]["$double"], "NaN");
        assert_eq!(l[0]["stale"], true);
        assert_eq!(l[0]["timestamp"], "1970-01-01T00:00:01.500000000Z");
        assert_eq!(l[1]["positive_counts"][1], 2.0);
        assert_eq!(l[2]["exemplar_labels"]["x"], "y");
    }
}
