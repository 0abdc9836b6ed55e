//! A batch to a request, for sinks.

use std::collections::HashMap;

use arrow::{
    array::{Array as _, AsArray, RecordBatch},
    datatypes::{Float64Type, Int32Type, Int64Type},
};
use storage::model::{Labels, MetricBatch, batch::HistogramRow};

use super::{histogram, type_number};
use crate::codec::otlp::wire::{put_bytes, put_int, put_varint};

/// Points of one series, as rows of their tables.
#[derive(Default)]
struct Points {
    samples: Vec<usize>,
    histograms: Vec<usize>,
    exemplars: Vec<usize>,
}

/// A batch's columns at hand. Series keep the order of the batch; the points of one are in time order.
struct Columns<'b> {
    batch: &'b MetricBatch,
    points: Vec<Points>,
}

fn ints<'b>(batch: &'b RecordBatch, name: &str) -> &'b [i64] {
    batch.column_by_name(name).expect("column of the input schema").as_primitive::<Int64Type>().values()
}

fn doubles<'b>(batch: &'b RecordBatch, name: &str) -> &'b [f64] {
    batch.column_by_name(name).expect("column of the input schema").as_primitive::<Float64Type>().values()
}

fn int_at(batch: &RecordBatch, name: &str, row: usize) -> Option<i64> {
    let column = batch.column_by_name(name).expect("column of the input schema").as_primitive::<Int64Type>();
    column.is_valid(row).then(|| column.value(row))
}

fn int32_at(batch: &RecordBatch, name: &str, row: usize) -> i32 {
    batch.column_by_name(name).expect("column of the input schema").as_primitive::<Int32Type>().value(row)
}

fn list_at(batch: &RecordBatch, name: &str, row: usize) -> Option<Vec<f64>> {
    let column = batch.column_by_name(name).expect("column of the input schema").as_list::<i32>();
    column.is_valid(row).then(|| column.value(row).as_primitive::<Float64Type>().values().to_vec())
}

fn text_at<'b>(batch: &'b RecordBatch, name: &str, row: usize) -> Option<&'b str> {
    let column = batch.column_by_name(name).expect("column of the input schema").as_dictionary::<Int32Type>();
    let key = column.is_valid(row).then(|| column.keys().value(row) as usize)?;
    Some(column.values().as_string::<i32>().value(key))
}

/// A row of the table `metric_histograms`.
fn histogram_at(b: &RecordBatch, row: usize) -> HistogramRow {
    let double = |name: &str| doubles(b, name)[row];
    let optional = |name: &str| {
        let column = b.column_by_name(name).expect("column of the input schema").as_primitive::<Float64Type>();
        column.is_valid(row).then(|| column.value(row))
    };
    HistogramRow {
        schema: int32_at(b, "schema", row),
        zero_threshold: double("zero_threshold"),
        zero_count: double("zero_count"),
        count: double("count"),
        sum: double("sum"),
        min: optional("min"),
        max: optional("max"),
        positive_offset: int32_at(b, "positive_offset", row),
        positive_counts: list_at(b, "positive_counts", row).unwrap_or_default(),
        negative_offset: int32_at(b, "negative_offset", row),
        negative_counts: list_at(b, "negative_counts", row).unwrap_or_default(),
        custom_bounds: list_at(b, "custom_bounds", row),
        reset_hint: int32_at(b, "reset_hint", row),
        is_float: b.column_by_name("is_float").expect("column of the input schema").as_boolean().value(row),
    }
}

impl<'b> Columns<'b> {
    fn new(batch: &'b MetricBatch) -> Self {
        let ids = ints(&batch.series, "series_id");
        let row_of: HashMap<i64, usize> = ids.iter().enumerate().map(|(row, id)| (*id, row)).collect();
        let mut points: Vec<Points> = ids.iter().map(|_| Points::default()).collect();
        let mut spread = |table: &RecordBatch, of: fn(&mut Points) -> &mut Vec<usize>| {
            for (row, id) in ints(table, "series_id").iter().enumerate() {
                if let Some(at) = row_of.get(id) {
                    of(&mut points[*at]).push(row);
                }
            }
        };
        spread(&batch.samples, |p| &mut p.samples);
        spread(&batch.histograms, |p| &mut p.histograms);
        spread(&batch.exemplars, |p| &mut p.exemplars);
        let sort = |rows: &mut Vec<usize>, times: &[i64]| {
            if !rows.is_sorted_by_key(|r| times[*r]) {
                rows.sort_by_key(|r| times[*r]);
            }
        };
        for p in &mut points {
            sort(&mut p.samples, ints(&batch.samples, "ts_ms"));
            sort(&mut p.histograms, ints(&batch.histograms, "ts_ms"));
            sort(&mut p.exemplars, ints(&batch.exemplars, "ts_ms"));
        }
        Columns { batch, points }
    }

    /// Labels of a series; empty if they are no canonical JSON, which a batch's labels always are.
    fn labels(&self, series: usize) -> Labels {
        let column = self.batch.series.column_by_name("labels").expect("column of the input schema");
        Labels::from_json(column.as_string::<i32>().value(series)).unwrap_or_default()
    }

    fn exemplar_labels(&self, row: usize) -> Labels {
        let b = &self.batch.exemplars;
        let column = |name: &str| b.column_by_name(name).expect("column of the input schema");
        let mut labels = Labels::from_json(column("labels").as_string::<i32>().value(row)).unwrap_or_default();
        for name in ["trace_id", "span_id"] {
            let ids = column(name).as_binary::<i32>();
            if ids.is_valid(row) {
                labels.set(name, hex::encode(ids.value(row)));
            }
        }
        labels
    }
}

fn put_double(out: &mut Vec<u8>, number: u32, value: f64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_labels_v1(out: &mut Vec<u8>, labels: &Labels, scratch: &mut Vec<u8>) {
    for (name, value) in labels.iter() {
        scratch.clear();
        put_bytes(scratch, 1, name.as_bytes());
        put_bytes(scratch, 2, value.as_bytes());
        put_bytes(out, 1, scratch);
    }
}

/// The whole batch as one `prometheus.WriteRequest` (not compressed), with the metadata of its families.
///
/// What 1.0 cannot say is left out: starts of series, minima and maxima of histograms.
pub fn encode_v1(batch: &MetricBatch) -> Vec<u8> {
    let columns = Columns::new(batch);
    let (mut out, mut series, mut part) = (Vec::new(), Vec::new(), Vec::new());
    let mut families: HashMap<&str, usize> = HashMap::new();
    for (at, points) in columns.points.iter().enumerate() {
        series.clear();
        put_labels_v1(&mut series, &columns.labels(at), &mut part);
        for row in &points.samples {
            part.clear();
            put_double(&mut part, 1, doubles(&batch.samples, "value")[*row]);
            put_int(&mut part, 2, ints(&batch.samples, "ts_ms")[*row] as u64);
            put_bytes(&mut series, 2, &part);
        }
        for row in &points.exemplars {
            let mut exemplar = Vec::new();
            put_labels_v1(&mut exemplar, &columns.exemplar_labels(*row), &mut part);
            put_double(&mut exemplar, 2, doubles(&batch.exemplars, "value")[*row]);
            put_int(&mut exemplar, 3, ints(&batch.exemplars, "ts_ms")[*row] as u64);
            put_bytes(&mut series, 3, &exemplar);
        }
        for row in &points.histograms {
            part.clear();
            let ms = ints(&batch.histograms, "ts_ms")[*row];
            histogram::write(&mut part, ms, None, &histogram_at(&batch.histograms, *row));
            put_bytes(&mut series, 4, &part);
        }
        if !(points.samples.is_empty() && points.exemplars.is_empty() && points.histograms.is_empty()) {
            put_bytes(&mut out, 1, &series);
        }
        let kind = text_at(&batch.series, "type", at);
        if let (Some(kind), Some(metric)) = (kind, text_at(&batch.series, "metric", at)) {
            families.entry(family_name(metric, kind)).or_insert(at);
        }
    }
    let mut families: Vec<_> = families.into_iter().collect();
    families.sort_unstable();
    for (name, at) in families {
        part.clear();
        put_int(&mut part, 1, type_number(text_at(&batch.series, "type", at)));
        put_bytes(&mut part, 2, name.as_bytes());
        put_bytes(&mut part, 4, text_at(&batch.series, "help", at).unwrap_or_default().as_bytes());
        put_bytes(&mut part, 5, text_at(&batch.series, "unit", at).unwrap_or_default().as_bytes());
        put_bytes(&mut out, 3, &part);
    }
    out
}

/// The family that a series of a type belongs to.
fn family_name<'m>(metric: &'m str, kind: &str) -> &'m str {
    let suffixes: &[&str] = match kind {
        "histogram" => &["_bucket", "_sum", "_count"],
        "gaugehistogram" => &["_bucket", "_gsum", "_gcount"],
        "summary" => &["_sum", "_count"],
        _ => &[],
    };
    suffixes.iter().find_map(|s| metric.strip_suffix(s)).filter(|m| !m.is_empty()).unwrap_or(metric)
}

/// Symbols of a 2.0 request in the order of first use.
struct Symbols {
    at: HashMap<String, u32>,
    out: Vec<u8>,
}

impl Symbols {
    fn of(&mut self, text: &str) -> u64 {
        if let Some(at) = self.at.get(text) {
            return u64::from(*at);
        }
        let at = self.at.len() as u32;
        self.at.insert(text.to_owned(), at);
        put_bytes(&mut self.out, 4, text.as_bytes());
        u64::from(at)
    }

    fn put_labels(&mut self, out: &mut Vec<u8>, labels: &Labels) {
        let mut refs = Vec::with_capacity(labels.len() * 4);
        for (name, value) in labels.iter() {
            put_varint(&mut refs, self.of(name));
            put_varint(&mut refs, self.of(value));
        }
        put_bytes(out, 1, &refs);
    }
}

/// The whole batch as one `io.prometheus.write.v2.Request` (not compressed). Series without a sample or histogram, which
/// 2.0 refuses, are left out with their exemplars.
pub fn encode_v2(batch: &MetricBatch) -> Vec<u8> {
    let columns = Columns::new(batch);
    let mut symbols = Symbols { at: HashMap::new(), out: Vec::new() };
    symbols.of("");
    let (mut body, mut series, mut part) = (Vec::new(), Vec::new(), Vec::new());
    for (at, points) in columns.points.iter().enumerate() {
        if points.samples.is_empty() && points.histograms.is_empty() {
            continue;
        }
        series.clear();
        symbols.put_labels(&mut series, &columns.labels(at));
        for row in &points.samples {
            part.clear();
            put_double(&mut part, 1, doubles(&batch.samples, "value")[*row]);
            put_int(&mut part, 2, ints(&batch.samples, "ts_ms")[*row] as u64);
            if let Some(start) = int_at(&batch.samples, "start_ms", *row) {
                put_int(&mut part, 3, start as u64);
            }
            put_bytes(&mut series, 2, &part);
        }
        for row in &points.histograms {
            part.clear();
            let ms = ints(&batch.histograms, "ts_ms")[*row];
            let start = int_at(&batch.histograms, "start_ms", *row);
            histogram::write(&mut part, ms, start, &histogram_at(&batch.histograms, *row));
            put_bytes(&mut series, 3, &part);
        }
        for row in &points.exemplars {
            part.clear();
            symbols.put_labels(&mut part, &columns.exemplar_labels(*row));
            put_double(&mut part, 2, doubles(&batch.exemplars, "value")[*row]);
            put_int(&mut part, 3, ints(&batch.exemplars, "ts_ms")[*row] as u64);
            put_bytes(&mut series, 4, &part);
        }
        part.clear();
        put_int(&mut part, 1, type_number(text_at(&batch.series, "type", at)));
        put_int(&mut part, 3, symbols.of(text_at(&batch.series, "help", at).unwrap_or_default()));
        put_int(&mut part, 4, symbols.of(text_at(&batch.series, "unit", at).unwrap_or_default()));
        put_bytes(&mut series, 5, &part);
        put_bytes(&mut body, 5, &series);
    }
    let mut out = symbols.out;
    out.extend_from_slice(&body);
    out
}
