//! The tables and their Arrow schemas.
//!
//! *Input* is what a source hands over. *Head* is what the write-ahead log and the head hold: input plus the columns the
//! store derives (`stream_id`, `template_id`, nested-set numbers). *Stored* is what a scan answers: head plus `seq`.
//! On disk two things differ, so that any Delta or Parquet reader
//! can use them (see `docs/format.md`): `ts` is microseconds plus `ts_ns` (0-999), and a sample's `value` is split into
//! `value_i`, `exponent` and `value_f`.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// One Delta table per tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    Logs,
    MetricSeries,
    MetricSamples,
    MetricHistograms,
    MetricExemplars,
    Spans,
    /// Aggregates of samples over five minutes; see [`crate::downsample`].
    MetricSamples5m,
    /// The same over an hour.
    MetricSamples1h,
}

impl Table {
    pub const ALL: [Table; 8] = [
        Table::Logs,
        Table::MetricSeries,
        Table::MetricSamples,
        Table::MetricHistograms,
        Table::MetricExemplars,
        Table::Spans,
        Table::MetricSamples5m,
        Table::MetricSamples1h,
    ];

    /// Folder name and SQL name.
    pub const fn name(self) -> &'static str {
        match self {
            Table::Logs => "logs",
            Table::MetricSeries => "metric_series",
            Table::MetricSamples => "metric_samples",
            Table::MetricHistograms => "metric_histograms",
            Table::MetricExemplars => "metric_exemplars",
            Table::Spans => "spans",
            Table::MetricSamples5m => "metric_samples_5m",
            Table::MetricSamples1h => "metric_samples_1h",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// Stable number, written into WAL records.
    pub const fn code(self) -> u8 {
        match self {
            Table::Logs => 1,
            Table::MetricSeries => 2,
            Table::MetricSamples => 3,
            Table::MetricHistograms => 4,
            Table::MetricExemplars => 5,
            Table::Spans => 6,
            Table::MetricSamples5m => 7,
            Table::MetricSamples1h => 8,
        }
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.code() == code)
    }

    /// The event-time column: `ts` (Timestamp ns) for logs and spans, `ts_ms` (Int64, ms) for points,
    /// `first_ms` for series.
    pub const fn time_column(self) -> &'static str {
        match self {
            Table::Logs | Table::Spans => "ts",
            Table::MetricSeries => "first_ms",
            _ => "ts_ms",
        }
    }
}

/// `Dictionary(Int32, Utf8)`.
pub fn dict() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// `Timestamp(Nanosecond, "UTC")`.
pub fn ts_ns() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some(Arc::from("UTC")))
}

fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", item, true)))
}

fn required(name: &str, t: DataType) -> Field {
    Field::new(name, t, false)
}

fn optional(name: &str, t: DataType) -> Field {
    Field::new(name, t, true)
}

fn input_fields(table: Table) -> Vec<Field> {
    use DataType::{Binary, Boolean, Float64, Int32, Int64, Utf8};
    match table {
        Table::Logs => vec![
            required("ts", ts_ns()),
            optional("observed_ts", ts_ns()),
            // Canonical JSON of the stream's labels; `stream_id` is its xxh3-64.
            required("stream_labels", dict()),
            optional("service_name", dict()),
            optional("severity_number", Int32),
            optional("severity_text", dict()),
            optional("event_name", dict()),
            optional("flags", Int64),
            optional("trace_id", Binary), // 16 bytes
            optional("span_id", Binary),  // 8 bytes
            required("body", Utf8),
            // Null: `body` is a string. "json": `body` is the canonical JSON of another OTLP value.
            optional("body_type", dict()),
            optional("scope_name", dict()),
            // Canonical JSON: version, attributes, dropped_attributes_count, schema_url of the scope, where set.
            optional("scope_meta", dict()),
            // Canonical JSON of the resource's attributes.
            optional("resource_attrs", dict()),
            // Canonical JSON: dropped_attributes_count, schema_url of the resource, where set.
            optional("resource_meta", dict()),
            // Canonical JSON of the record's own attributes; Loki's structured metadata, all strings, rest here too.
            optional("attrs", dict()),
            optional("dropped_attributes_count", Int64),
        ],
        Table::Spans => vec![
            required("trace_id", Binary),
            required("span_id", Binary),
            optional("parent_span_id", Binary),
            required("ts", ts_ns()),
            required("duration_ns", Int64),
            required("name", dict()),
            optional("service_name", dict()),
            required("kind", Int32), // OTLP: 0 unspecified 1 internal 2 server 3 client 4 producer 5 consumer
            required("status_code", Int32), // OTLP: 0 unset 1 ok 2 error
            optional("status_message", dict()),
            optional("trace_state", dict()),
            optional("flags", Int64),
            optional("scope_name", dict()),
            optional("scope_meta", dict()),
            optional("resource_attrs", dict()),
            optional("resource_meta", dict()),
            optional("attrs", Utf8),
            // JSON arrays: [{"time_unix_nano":1,"name":"","attributes":{},"dropped_attributes_count":0}], and
            // [{"trace_id":"hex","span_id":"hex","trace_state":"","attributes":{},"dropped_attributes_count":0,"flags":0}].
            optional("events", Utf8),
            optional("links", Utf8),
            optional("dropped_attributes_count", Int64),
            optional("dropped_events_count", Int64),
            optional("dropped_links_count", Int64),
        ],
        Table::MetricSeries => vec![
            required("series_id", Int64),
            required("labels", Utf8), // canonical JSON, `__name__` included
            required("metric", dict()),
            optional("job", dict()),
            optional("instance", dict()),
            optional("type", dict()), // counter, gauge, histogram, summary, info, stateset, unknown
            optional("unit", dict()),
            optional("help", dict()),
            // Canonical JSON of what the Prometheus form cannot say of an OTLP series (name, unit, resource, scope ...).
            optional("origin", dict()),
            required("first_ms", Int64),
            required("last_ms", Int64),
        ],
        Table::MetricSamples => vec![
            required("series_id", Int64),
            required("ts_ms", Int64),
            // Start of a cumulative or delta series, where the sender gave it.
            optional("start_ms", Int64),
            required("value", Float64),
        ],
        Table::MetricSamples5m | Table::MetricSamples1h => vec![
            required("series_id", Int64),
            // Start of the bucket: it holds samples behind it, up to and with its end.
            required("ts_ms", Int64),
            // Samples, stale markers not counted. Where it is 0 there were only those, and values are NaN (`sum` 0).
            required("count", Int64),
            required("sum", Float64),
            required("min", Float64),
            required("max", Float64),
            required("first_ms", Int64),
            required("first", Float64),
            required("last_ms", Int64),
            required("last", Float64),
            // What resets of a counter took away: its increase from the first to the last sample is last - first + lost.
            required("lost", Float64),
            // Time of the newest sample, where that is a stale marker.
            optional("stale_ms", Int64),
        ],
        Table::MetricHistograms => vec![
            required("series_id", Int64),
            required("ts_ms", Int64),
            optional("start_ms", Int64),
            required("schema", Int32), // -4..=8 exponential, -53 custom bounds
            required("zero_threshold", Float64),
            required("zero_count", Float64),
            required("count", Float64),
            required("sum", Float64),
            optional("min", Float64),
            optional("max", Float64),
            // Absolute counts of consecutive buckets from `offset` on, in Prometheus bucket indexes.
            required("positive_offset", Int32),
            required("positive_counts", list_of(Float64)),
            required("negative_offset", Int32),
            required("negative_counts", list_of(Float64)),
            optional("custom_bounds", list_of(Float64)),
            required("reset_hint", Int32), // 0 unknown 1 reset 2 no reset 3 gauge
            required("is_float", Boolean),
        ],
        Table::MetricExemplars => vec![
            required("series_id", Int64),
            required("ts_ms", Int64),
            required("value", Float64),
            optional("trace_id", Binary),
            optional("span_id", Binary),
            required("labels", Utf8),
        ],
    }
}

/// Of two log records of one stream and time the one with the lesser `seq` arrived first. Null in parts of releases
/// without it, which are older than all others.
pub const SEQ: &str = "seq";

fn stored_fields(table: Table) -> Vec<Field> {
    let mut fields = head_fields(table);
    if table == Table::Logs {
        fields.push(optional(SEQ, DataType::Int64));
    }
    fields
}

fn head_fields(table: Table) -> Vec<Field> {
    let mut fields = input_fields(table);
    match table {
        Table::Logs => {
            fields.push(required("stream_id", DataType::Int64));
            fields.push(required("template_id", DataType::Int64));
        }
        Table::Spans => {
            for name in ["nested_left", "nested_right", "nested_parent", "child_count"] {
                fields.push(optional(name, DataType::Int32));
            }
        }
        _ => {}
    }
    fields
}

static INPUT: LazyLock<Vec<SchemaRef>> =
    LazyLock::new(|| Table::ALL.iter().map(|t| Arc::new(Schema::new(input_fields(*t)))).collect());
static HEAD: LazyLock<Vec<SchemaRef>> =
    LazyLock::new(|| Table::ALL.iter().map(|t| Arc::new(Schema::new(head_fields(*t)))).collect());
static STORED: LazyLock<Vec<SchemaRef>> =
    LazyLock::new(|| Table::ALL.iter().map(|t| Arc::new(Schema::new(stored_fields(*t)))).collect());

/// Schema of the batches that [`crate::Store::append`] takes.
pub fn input(table: Table) -> SchemaRef {
    INPUT[usize::from(table.code() - 1)].clone()
}

/// Schema of batches in the write-ahead log and the head: the first columns of [`stored`]. A change of it makes logs of the
/// release before unreadable.
pub fn head(table: Table) -> SchemaRef {
    HEAD[usize::from(table.code() - 1)].clone()
}

/// Schema (before projection) of the batches that [`crate::Store::scan`] gives.
pub fn stored(table: Table) -> SchemaRef {
    STORED[usize::from(table.code() - 1)].clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_distinct_and_read_back() {
        for t in Table::ALL {
            assert_eq!(Table::from_code(t.code()), Some(t));
            assert_eq!(Table::from_name(t.name()), Some(t));
            assert!(stored(t).field_with_name(t.time_column()).is_ok());
            assert_eq!(head(t).fields()[..], stored(t).fields()[..head(t).fields().len()]);
        }
    }
}
