//! `GET /api/v1/export`: rows of a tenant as they are stored, streamed: NDJSON that `/api/v1/import` takes back without
//! loss, or an Arrow stream.
//!
//! | parameter | |
//! |---|---|
//! | `signal` | `logs`, `traces`, `metrics`, or one kind of point: `samples`, `histograms`, `exemplars` |
//! | `start`, `end` | Unix seconds or RFC 3339, half-open; all of time where absent |
//! | `selector` | `{label="value"}` of log streams or series |
//! | `format` | `ndjson` (default) or `arrow`, which takes one kind only |
//!
//! A line of NDJSON holds its kind as `row` and the columns that are not null. Times are integers (`ts` nanoseconds,
//! `ts_ms` milliseconds), ids are hex, attributes and labels JSON objects, doubles that JSON lacks a string `0x...` of
//! their bits. Points carry the labels and metadata of their series. Memory is that of one batch and, for points, of
//! the selected series.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, DictionaryArray, Int32Array, PrimitiveArray, RecordBatch, StringArray},
    datatypes::{DataType, Field, Float64Type, Int32Type, Int64Type, Schema, SchemaRef, TimestampNanosecondType},
    ipc::writer::StreamWriter,
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{Response, StatusCode},
    routing::get,
};
use storage::{
    ScanError, ScanRequest, ScanStream, Selector, Store,
    model::{Matcher, Table, TenantId, TimeRange, Timestamp, json::write_string, schema},
};

use super::{
    envelope,
    params::{Params, invalid},
};
use crate::{error::QueryError, limits::Limits, logql, promql};

/// What points carry of their series, by the column's name here and in the table of series.
const SERIES_COLUMNS: [(&str, &str); 5] =
    [("series_labels", "labels"), ("type", "type"), ("unit", "unit"), ("help", "help"), ("origin", "origin")];

/// Columns of canonical JSON: written as they are.
const JSON_COLUMNS: [&str; 10] = [
    "stream_labels",
    "series_labels",
    "labels",
    "origin",
    "scope_meta",
    "resource_attrs",
    "resource_meta",
    "attrs",
    "events",
    "links",
];

#[derive(Clone)]
pub struct Api {
    store: Store,
    limits: Arc<Limits>,
}

pub fn router(store: Store, limits: Limits) -> Router {
    Router::new().route("/api/v1/export", get(handle)).with_state(Api { store, limits: Arc::new(limits) })
}

async fn handle(State(api): State<Api>, request: Request) -> Response<Body> {
    export(api, request).await.unwrap_or_else(|e| envelope::prometheus_error(&e))
}

/// The kind of rows of a table, as `row` names it.
pub const fn kind(table: Table) -> &'static str {
    match table {
        Table::Logs => "log",
        Table::Spans => "span",
        Table::MetricSamples => "sample",
        Table::MetricSamples5m => "sample_5m",
        Table::MetricSamples1h => "sample_1h",
        Table::MetricHistograms => "histogram",
        Table::MetricExemplars => "exemplar",
        Table::MetricSeries => "series",
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Ndjson,
    Arrow,
}

async fn export(api: Api, request: Request) -> Result<Response<Body>, QueryError> {
    let (params, tenant) = Params::of(request).await?;
    let tables: &[Table] = match params.required("signal")? {
        "logs" => &[Table::Logs],
        "traces" => &[Table::Spans],
        "metrics" => &[Table::MetricSamples, Table::MetricHistograms, Table::MetricExemplars],
        "samples" => &[Table::MetricSamples],
        "histograms" => &[Table::MetricHistograms],
        "exemplars" => &[Table::MetricExemplars],
        other => {
            let expected = "expected logs, traces, metrics, samples, histograms or exemplars";
            return Err(invalid("signal", &format!("{other:?}: {expected}")));
        }
    };
    let format = match params.get("format").unwrap_or("ndjson") {
        "ndjson" => Format::Ndjson,
        "arrow" if tables.len() == 1 => Format::Arrow,
        "arrow" => return Err(invalid("format", "arrow takes one kind: signal=samples, histograms or exemplars")),
        other => return Err(invalid("format", &format!("{other:?}: expected ndjson or arrow"))),
    };
    let (start, end) = (params.time("start")?, params.time("end")?);
    let range = TimeRange::new(
        start.map_or(Timestamp::MIN, Timestamp::from_millis),
        end.map_or(Timestamp::MAX, Timestamp::from_millis),
    )
    .ok_or_else(|| invalid("end", "must be after start"))?;
    if let (Some(from), Some(to)) = (start, end) {
        let nanos = to.saturating_sub(from).saturating_mul(1_000_000);
        api.limits.tenants.of(&tenant).check_range(nanos).map_err(QueryError::BadData)?;
    }
    let matchers = match params.get("selector") {
        None => None,
        Some(text) if tables == [Table::Logs] => {
            Some(logql::parse_matchers(text).map_err(|e| invalid("selector", &e.to_string()))?)
        }
        Some(_) if tables == [Table::Spans] => {
            return Err(invalid("selector", "traces have no stream labels to select by"));
        }
        Some(text) => Some(promql::parse_selector(text).map_err(|e| invalid("selector", &e.to_string()))?),
    };
    let selector = matchers.clone().map_or(Selector::All, Selector::Labels);
    let mut scans = Vec::new();
    for table in tables.iter().rev() {
        let columns = columns(*table);
        let names: Vec<&str> = columns.iter().map(String::as_str).collect();
        let request = ScanRequest::new(tenant.clone(), *table, range).selector(selector.clone()).columns(&names);
        scans.push((*table, api.store.scan(request).await?));
    }
    // After the points, so that every point's series is among them.
    let series = match tables[0] {
        Table::Logs | Table::Spans => None,
        _ => Some(Arc::new(Series::of(&api, &tenant, matchers).await?)),
    };
    let state = Rows { scans, series, format, header: true };
    let stream = futures::stream::try_unfold(state, |mut state| async move {
        match state.next().await {
            Ok(Some(bytes)) => Ok(Some((bytes, state))),
            Ok(None) => Ok(None),
            Err(e) => {
                // The status is gone; the cut body tells.
                tracing::warn!(error = %e, "an export ended early");
                Err(std::io::Error::other(e.to_string()))
            }
        }
    });
    let content = match format {
        Format::Ndjson => "application/x-ndjson",
        Format::Arrow => "application/vnd.apache.arrow.stream",
    };
    Ok(envelope::with_type(StatusCode::OK, content, Body::from_stream(stream)))
}

/// Columns that are read: those a source hands over.
fn columns(table: Table) -> Vec<String> {
    schema::input(table).fields().iter().map(|f| f.name().clone()).collect()
}

/// Schema of exported rows of a table.
pub fn exported(table: Table) -> SchemaRef {
    let input = schema::input(table);
    match table {
        Table::Logs | Table::Spans | Table::MetricSeries => input,
        _ => {
            let mut fields: Vec<Field> = SERIES_COLUMNS
                .iter()
                .map(|(name, _)| Field::new(*name, schema::dict(), *name != "series_labels"))
                .collect();
            fields.extend(input.fields().iter().skip(1).map(|f| f.as_ref().clone()));
            Arc::new(Schema::new(fields))
        }
    }
}

/// The series of an export: their row by id, and a column of text for each of [`SERIES_COLUMNS`].
struct Series {
    row_of: HashMap<i64, i32>,
    columns: Vec<ArrayRef>,
}

impl Series {
    async fn of(api: &Api, tenant: &TenantId, matchers: Option<Vec<Matcher>>) -> Result<Self, QueryError> {
        let mut names = vec!["series_id"];
        names.extend(SERIES_COLUMNS.iter().map(|(_, stored)| *stored));
        let request = ScanRequest::new(tenant.clone(), Table::MetricSeries, TimeRange::ALL)
            .selector(matchers.map_or(Selector::All, Selector::Labels))
            .columns(&names);
        let mut scan = api.store.scan(request).await?;
        let max = api.limits.series_of(tenant);
        let mut row_of: HashMap<i64, i32> = HashMap::new();
        let mut kept: Vec<RecordBatch> = Vec::new();
        while let Some(batch) = scan.next().await {
            let batch = batch?;
            let ids = ints(&batch, "series_id")?;
            // A series has a row for each day; one is enough.
            let mut fresh = Vec::new();
            for (at, id) in ids.values().iter().enumerate() {
                if !row_of.contains_key(id) {
                    let row = i32::try_from(row_of.len()).unwrap_or(i32::MAX);
                    row_of.insert(*id, row);
                    fresh.push(at as u32);
                }
            }
            if row_of.len() > max {
                return Err(QueryError::Execution(format!(
                    "export selects more than the limit of {max} series; add matchers"
                )));
            }
            let fresh = arrow::array::UInt32Array::from(fresh);
            kept.push(arrow::compute::take_record_batch(&batch, &fresh).map_err(internal)?);
        }
        let mut columns = Vec::new();
        for (_, stored) in SERIES_COLUMNS {
            let mut texts: Vec<Option<String>> = Vec::with_capacity(row_of.len());
            for batch in &kept {
                let column = batch.column_by_name(stored).ok_or_else(|| missing(stored))?;
                let plain = arrow::compute::cast(column, &DataType::Utf8).map_err(internal)?;
                texts.extend(plain.as_string::<i32>().iter().map(|t| t.map(str::to_owned)));
            }
            columns.push(Arc::new(StringArray::from(texts)) as ArrayRef);
        }
        Ok(Series { row_of, columns })
    }

    /// Points with what they carry of their series in the place of its id.
    fn join(&self, table: Table, points: &RecordBatch) -> Result<RecordBatch, QueryError> {
        let ids = ints(points, "series_id")?;
        let rows: Vec<i32> = ids
            .values()
            .iter()
            .map(|id| self.row_of.get(id).copied().ok_or_else(|| missing(&format!("series {id}"))))
            .collect::<Result<_, _>>()?;
        let mut columns: Vec<ArrayRef> = Vec::new();
        for values in &self.columns {
            let keys: Int32Array = rows.iter().map(|r| values.is_valid(*r as usize).then_some(*r)).collect();
            columns.push(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values.clone()).map_err(internal)?));
        }
        columns.extend(points.columns().iter().skip(1).cloned());
        RecordBatch::try_new(exported(table), columns).map_err(internal)
    }
}

fn ints<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a PrimitiveArray<Int64Type>, QueryError> {
    batch.column_by_name(name).and_then(|c| c.as_primitive_opt::<Int64Type>()).ok_or_else(|| missing(name))
}

fn missing(what: &str) -> QueryError {
    QueryError::Storage(ScanError::Internal(format!("scan gave no {what}")))
}

fn internal(e: arrow::error::ArrowError) -> QueryError {
    QueryError::Internal(e.to_string())
}

/// What is left of an export.
struct Rows {
    /// The next one last.
    scans: Vec<(Table, ScanStream)>,
    series: Option<Arc<Series>>,
    format: Format,
    /// Whether the Arrow schema is still to be written.
    header: bool,
}

impl Rows {
    async fn next(&mut self) -> Result<Option<Bytes>, QueryError> {
        loop {
            let Some((table, scan)) = self.scans.last_mut() else { return Ok(None) };
            let table = *table;
            let batch = match scan.next().await {
                Some(batch) => Some(batch?),
                None => {
                    self.scans.pop();
                    // Arrow without rows is a schema still, and has an end.
                    if self.format == Format::Ndjson {
                        continue;
                    }
                    None
                }
            };
            let (series, format, header) = (self.series.clone(), self.format, std::mem::take(&mut self.header));
            let bytes = tokio::task::spawn_blocking(move || {
                let batch = match (batch, series) {
                    (Some(batch), Some(series)) => Some(series.join(table, &batch)?),
                    (batch, _) => batch,
                };
                match (format, batch) {
                    (Format::Ndjson, Some(batch)) => ndjson(table, &batch).map(String::into_bytes),
                    (Format::Ndjson, None) => Ok(Vec::new()),
                    (Format::Arrow, batch) => arrow_piece(table, batch.as_ref(), header),
                }
            })
            .await
            .map_err(|e| QueryError::Internal(e.to_string()))??;
            return Ok(Some(bytes.into()));
        }
    }
}

/// A piece of an Arrow stream: the schema with the first one, the end mark where there is no batch. Dictionaries are laid
/// out plain, so that pieces stand for themselves.
fn arrow_piece(table: Table, batch: Option<&RecordBatch>, header: bool) -> Result<Vec<u8>, QueryError> {
    let schema = plain_schema(table);
    let mut out = Vec::new();
    let mut writer = StreamWriter::try_new(&mut out, &schema).map_err(internal)?;
    writer.flush().map_err(internal)?;
    let head = writer.get_ref().len();
    if let Some(batch) = batch {
        writer.write(&plain(batch, &schema)?).map_err(internal)?;
        writer.flush().map_err(internal)?;
    } else {
        writer.finish().map_err(internal)?;
    }
    drop(writer);
    Ok(if header { out } else { out.split_off(head) })
}

/// The exported schema with text in the place of dictionaries.
pub fn plain_schema(table: Table) -> SchemaRef {
    let exported = exported(table);
    let fields = exported.fields().iter().map(|f| match f.data_type() {
        DataType::Dictionary(_, values) => f.as_ref().clone().with_data_type(values.as_ref().clone()),
        _ => f.as_ref().clone(),
    });
    Arc::new(Schema::new(fields.collect::<Vec<Field>>()))
}

fn plain(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, QueryError> {
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(c, f)| arrow::compute::cast(c, f.data_type()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(internal)?;
    RecordBatch::try_new(schema.clone(), columns).map_err(internal)
}

/// The rows of a batch in the exported schema (or its plain form), a line each.
pub fn ndjson(table: Table, batch: &RecordBatch) -> Result<String, QueryError> {
    let mut out = String::with_capacity(batch.num_rows() * 256);
    let schema = batch.schema();
    let columns: Vec<(String, &ArrayRef, bool)> = schema
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(f, c)| (format!(",\"{}\":", f.name()), c, JSON_COLUMNS.contains(&f.name().as_str())))
        .collect();
    for row in 0..batch.num_rows() {
        out.push_str("{\"row\":\"");
        out.push_str(kind(table));
        out.push('"');
        for (key, column, json) in &columns {
            if column.is_valid(row) {
                out.push_str(key);
                value(&mut out, column, row, *json)?;
            }
        }
        out.push_str("}\n");
    }
    Ok(out)
}

fn value(out: &mut String, column: &ArrayRef, row: usize, json: bool) -> Result<(), QueryError> {
    use std::fmt::Write as _;
    let text = |out: &mut String, t: &str| if json { out.push_str(t) } else { write_string(out, t) };
    match column.data_type() {
        DataType::Timestamp(_, _) => {
            let _ = write!(out, "{}", column.as_primitive::<TimestampNanosecondType>().value(row));
        }
        DataType::Int64 => {
            let _ = write!(out, "{}", column.as_primitive::<Int64Type>().value(row));
        }
        DataType::Int32 => {
            let _ = write!(out, "{}", column.as_primitive::<Int32Type>().value(row));
        }
        DataType::Float64 => double(out, column.as_primitive::<Float64Type>().value(row)),
        DataType::Boolean => out.push_str(if column.as_boolean().value(row) { "true" } else { "false" }),
        DataType::Utf8 => text(out, column.as_string::<i32>().value(row)),
        DataType::Dictionary(_, _) => {
            let dictionary = column.as_dictionary::<Int32Type>();
            let key = dictionary.keys().value(row) as usize;
            text(out, dictionary.values().as_string::<i32>().value(key));
        }
        DataType::Binary => {
            out.push('"');
            out.push_str(&hex::encode(column.as_binary::<i32>().value(row)));
            out.push('"');
        }
        DataType::List(_) => {
            out.push('[');
            let list = column.as_list::<i32>().value(row);
            for (i, v) in list.as_primitive::<Float64Type>().values().iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                double(out, *v);
            }
            out.push(']');
        }
        other => return Err(QueryError::Internal(format!("column of type {other} cannot be exported"))),
    }
    Ok(())
}

/// A number, or the bits of one that JSON does not have (stale markers are such).
fn double(out: &mut String, value: f64) {
    use std::fmt::Write as _;
    let _ = if value.is_finite() { write!(out, "{value:?}") } else { write!(out, "\"0x{:016x}\"", value.to_bits()) };
}
