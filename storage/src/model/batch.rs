//! Builders of input batches, row by row. Codecs that have columns at hand may build the arrays themselves.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use arrow::{
    array::{
        ArrayBuilder as _, ArrayRef, BinaryBuilder, BooleanBuilder, Float64Builder, Int32Builder, Int64Builder,
        ListBuilder, RecordBatch, StringBuilder, StringDictionaryBuilder, TimestampNanosecondBuilder,
    },
    datatypes::Int32Type,
};

use super::{Labels, Table, schema};

type DictBuilder = StringDictionaryBuilder<Int32Type>;

/// One log record. Text fields that are `None` become null.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogRow<'a> {
    pub ts: i64,
    pub observed_ts: Option<i64>,
    /// Canonical JSON of the stream labels ([`Labels::to_json`]).
    pub stream_labels: &'a str,
    pub service_name: Option<&'a str>,
    pub severity_number: Option<i32>,
    pub severity_text: Option<&'a str>,
    pub event_name: Option<&'a str>,
    pub flags: Option<i64>,
    /// 16 bytes.
    pub trace_id: Option<&'a [u8]>,
    /// 8 bytes.
    pub span_id: Option<&'a [u8]>,
    pub body: &'a str,
    /// `Some("json")` when `body` is the canonical JSON of a value that is not a string.
    pub body_type: Option<&'a str>,
    pub scope_name: Option<&'a str>,
    pub scope_meta: Option<&'a str>,
    pub resource_attrs: Option<&'a str>,
    pub resource_meta: Option<&'a str>,
    pub attrs: Option<&'a str>,
    pub dropped_attributes_count: Option<i64>,
}

/// Builds a `logs` input batch.
#[derive(Default)]
pub struct LogBatchBuilder {
    ts: Vec<i64>,
    observed_ts: TimestampNanosecondBuilder,
    stream_labels: DictBuilder,
    service_name: DictBuilder,
    severity_number: Int32Builder,
    severity_text: DictBuilder,
    event_name: DictBuilder,
    flags: Int64Builder,
    trace_id: BinaryBuilder,
    span_id: BinaryBuilder,
    body: StringBuilder,
    body_type: DictBuilder,
    scope_name: DictBuilder,
    scope_meta: DictBuilder,
    resource_attrs: DictBuilder,
    resource_meta: DictBuilder,
    attrs: DictBuilder,
    dropped_attributes_count: Int64Builder,
}

impl LogBatchBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Reserves room for `rows` rows with `body_bytes` of bodies.
    pub fn with_capacity(rows: usize, body_bytes: usize) -> Self {
        LogBatchBuilder {
            ts: Vec::with_capacity(rows),
            body: StringBuilder::with_capacity(rows, body_bytes),
            ..Self::default()
        }
    }

    pub fn len(&self) -> usize {
        self.ts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ts.is_empty()
    }

    pub fn push(&mut self, row: &LogRow<'_>) {
        self.ts.push(row.ts);
        self.observed_ts.append_option(row.observed_ts);
        self.stream_labels.append_value(row.stream_labels);
        self.service_name.append_option(row.service_name);
        self.severity_number.append_option(row.severity_number);
        self.severity_text.append_option(row.severity_text);
        self.event_name.append_option(row.event_name);
        self.flags.append_option(row.flags);
        self.trace_id.append_option(row.trace_id);
        self.span_id.append_option(row.span_id);
        self.body.append_value(row.body);
        self.body_type.append_option(row.body_type);
        self.scope_name.append_option(row.scope_name);
        self.scope_meta.append_option(row.scope_meta);
        self.resource_attrs.append_option(row.resource_attrs);
        self.resource_meta.append_option(row.resource_meta);
        self.attrs.append_option(row.attrs);
        self.dropped_attributes_count.append_option(row.dropped_attributes_count);
    }

    /// The rows so far as one batch; the builder is left empty.
    pub fn finish(&mut self) -> RecordBatch {
        let ts = arrow::array::TimestampNanosecondArray::from(std::mem::take(&mut self.ts)).with_timezone("UTC");
        let columns: Vec<ArrayRef> = vec![
            Arc::new(ts),
            Arc::new(self.observed_ts.finish().with_timezone("UTC")),
            Arc::new(self.stream_labels.finish()),
            Arc::new(self.service_name.finish()),
            Arc::new(self.severity_number.finish()),
            Arc::new(self.severity_text.finish()),
            Arc::new(self.event_name.finish()),
            Arc::new(self.flags.finish()),
            Arc::new(self.trace_id.finish()),
            Arc::new(self.span_id.finish()),
            Arc::new(self.body.finish()),
            Arc::new(self.body_type.finish()),
            Arc::new(self.scope_name.finish()),
            Arc::new(self.scope_meta.finish()),
            Arc::new(self.resource_attrs.finish()),
            Arc::new(self.resource_meta.finish()),
            Arc::new(self.attrs.finish()),
            Arc::new(self.dropped_attributes_count.finish()),
        ];
        RecordBatch::try_new(schema::input(Table::Logs), columns).expect("builder columns follow the logs schema")
    }
}

/// One span. Text fields that are `None` become null.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpanRow<'a> {
    /// 16 bytes.
    pub trace_id: &'a [u8],
    /// 8 bytes.
    pub span_id: &'a [u8],
    pub parent_span_id: Option<&'a [u8]>,
    pub ts: i64,
    pub duration_ns: i64,
    pub name: &'a str,
    pub service_name: Option<&'a str>,
    pub kind: i32,
    pub status_code: i32,
    pub status_message: Option<&'a str>,
    pub trace_state: Option<&'a str>,
    pub flags: Option<i64>,
    pub scope_name: Option<&'a str>,
    pub scope_meta: Option<&'a str>,
    pub resource_attrs: Option<&'a str>,
    pub resource_meta: Option<&'a str>,
    pub attrs: Option<&'a str>,
    pub events: Option<&'a str>,
    pub links: Option<&'a str>,
    pub dropped_attributes_count: Option<i64>,
    pub dropped_events_count: Option<i64>,
    pub dropped_links_count: Option<i64>,
}

/// Builds a `spans` input batch.
#[derive(Default)]
pub struct SpanBatchBuilder {
    trace_id: BinaryBuilder,
    span_id: BinaryBuilder,
    parent_span_id: BinaryBuilder,
    ts: Vec<i64>,
    duration_ns: Int64Builder,
    name: DictBuilder,
    service_name: DictBuilder,
    kind: Int32Builder,
    status_code: Int32Builder,
    status_message: DictBuilder,
    trace_state: DictBuilder,
    flags: Int64Builder,
    scope_name: DictBuilder,
    scope_meta: DictBuilder,
    resource_attrs: DictBuilder,
    resource_meta: DictBuilder,
    attrs: StringBuilder,
    events: StringBuilder,
    links: StringBuilder,
    dropped_attributes_count: Int64Builder,
    dropped_events_count: Int64Builder,
    dropped_links_count: Int64Builder,
}

impl SpanBatchBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.ts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ts.is_empty()
    }

    pub fn push(&mut self, row: &SpanRow<'_>) {
        self.trace_id.append_value(row.trace_id);
        self.span_id.append_value(row.span_id);
        self.parent_span_id.append_option(row.parent_span_id);
        self.ts.push(row.ts);
        self.duration_ns.append_value(row.duration_ns);
        self.name.append_value(row.name);
        self.service_name.append_option(row.service_name);
        self.kind.append_value(row.kind);
        self.status_code.append_value(row.status_code);
        self.status_message.append_option(row.status_message);
        self.trace_state.append_option(row.trace_state);
        self.flags.append_option(row.flags);
        self.scope_name.append_option(row.scope_name);
        self.scope_meta.append_option(row.scope_meta);
        self.resource_attrs.append_option(row.resource_attrs);
        self.resource_meta.append_option(row.resource_meta);
        self.attrs.append_option(row.attrs);
        self.events.append_option(row.events);
        self.links.append_option(row.links);
        self.dropped_attributes_count.append_option(row.dropped_attributes_count);
        self.dropped_events_count.append_option(row.dropped_events_count);
        self.dropped_links_count.append_option(row.dropped_links_count);
    }

    /// The rows so far as one batch; the builder is left empty.
    pub fn finish(&mut self) -> RecordBatch {
        let ts = arrow::array::TimestampNanosecondArray::from(std::mem::take(&mut self.ts)).with_timezone("UTC");
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.trace_id.finish()),
            Arc::new(self.span_id.finish()),
            Arc::new(self.parent_span_id.finish()),
            Arc::new(ts),
            Arc::new(self.duration_ns.finish()),
            Arc::new(self.name.finish()),
            Arc::new(self.service_name.finish()),
            Arc::new(self.kind.finish()),
            Arc::new(self.status_code.finish()),
            Arc::new(self.status_message.finish()),
            Arc::new(self.trace_state.finish()),
            Arc::new(self.flags.finish()),
            Arc::new(self.scope_name.finish()),
            Arc::new(self.scope_meta.finish()),
            Arc::new(self.resource_attrs.finish()),
            Arc::new(self.resource_meta.finish()),
            Arc::new(self.attrs.finish()),
            Arc::new(self.events.finish()),
            Arc::new(self.links.finish()),
            Arc::new(self.dropped_attributes_count.finish()),
            Arc::new(self.dropped_events_count.finish()),
            Arc::new(self.dropped_links_count.finish()),
        ];
        RecordBatch::try_new(schema::input(Table::Spans), columns).expect("builder columns follow the spans schema")
    }
}

/// What is known of a series besides its labels.
#[derive(Clone, Copy, Debug, Default)]
pub struct SeriesMeta<'a> {
    /// Prometheus type name: counter, gauge, histogram, summary, info, stateset, unknown.
    pub metric_type: Option<&'a str>,
    pub unit: Option<&'a str>,
    pub help: Option<&'a str>,
    pub origin: Option<&'a str>,
}

/// One native (or exponential) histogram; fields as in the table `metric_histograms`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramRow {
    pub schema: i32,
    pub zero_threshold: f64,
    pub zero_count: f64,
    pub count: f64,
    pub sum: f64,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub positive_offset: i32,
    pub positive_counts: Vec<f64>,
    pub negative_offset: i32,
    pub negative_counts: Vec<f64>,
    pub custom_bounds: Option<Vec<f64>>,
    pub reset_hint: i32,
    pub is_float: bool,
}

/// Metrics in motion: points and the series they belong to. Every `series_id` in a points batch has its row in `series`;
/// but on the way straight into the store, series that it knows may go without.
#[derive(Clone, Debug)]
pub struct MetricBatch {
    pub series: RecordBatch,
    pub samples: RecordBatch,
    pub histograms: RecordBatch,
    pub exemplars: RecordBatch,
}

impl MetricBatch {
    /// Points of all kinds (series rows are not points).
    pub fn points(&self) -> usize {
        self.samples.num_rows() + self.histograms.num_rows()
    }
}

/// Takes a series id, itself a hash, for what it is.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64(bytes);
    }

    fn write_i64(&mut self, id: i64) {
        self.0 = id as u64;
    }
}

/// Builds a [`MetricBatch`].
#[derive(Default)]
pub struct MetricBatchBuilder {
    rows: Vec<(i64, i64)>, // first_ms, last_ms by series row
    row_of: HashMap<i64, usize, BuildHasherDefault<IdHasher>>,
    /// Id and row of the series named last: points of one series mostly follow each other.
    last: Option<(i64, usize)>,
    s_id: Int64Builder,
    s_labels: StringBuilder,
    s_metric: DictBuilder,
    s_job: DictBuilder,
    s_instance: DictBuilder,
    s_type: DictBuilder,
    s_unit: DictBuilder,
    s_help: DictBuilder,
    s_origin: DictBuilder,
    id: Vec<i64>,
    ts_ms: Vec<i64>,
    /// As far as there are any.
    start_ms: Int64Builder,
    value: Vec<f64>,
    h: HistogramColumns,
    e_id: Int64Builder,
    e_ts: Int64Builder,
    e_value: Float64Builder,
    e_trace: BinaryBuilder,
    e_span: BinaryBuilder,
    e_labels: StringBuilder,
}

#[derive(Default)]
struct HistogramColumns {
    id: Int64Builder,
    ts: Int64Builder,
    start: Int64Builder,
    schema: Int32Builder,
    zero_threshold: Float64Builder,
    zero_count: Float64Builder,
    count: Float64Builder,
    sum: Float64Builder,
    min: Float64Builder,
    max: Float64Builder,
    positive_offset: Int32Builder,
    positive_counts: ListBuilder<Float64Builder>,
    negative_offset: Int32Builder,
    negative_counts: ListBuilder<Float64Builder>,
    custom_bounds: ListBuilder<Float64Builder>,
    reset_hint: Int32Builder,
    is_float: BooleanBuilder,
}

impl MetricBatchBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Points so far.
    pub fn len(&self) -> usize {
        self.id.len() + arrow::array::ArrayBuilder::len(&self.h.id)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the labels declared so far.
    pub fn label_bytes(&self) -> usize {
        self.s_labels.values_slice().len()
    }

    /// Declares a series and returns its id. `labels` holds `__name__`. The first declaration's `meta` counts.
    pub fn series(&mut self, labels: &Labels, meta: SeriesMeta<'_>) -> i64 {
        let metric = labels.get("__name__").unwrap_or("");
        self.series_of_json(&labels.to_json(), metric, labels.get("job"), labels.get("instance"), meta)
    }

    /// As [`MetricBatchBuilder::series`], for labels that are at hand as canonical JSON ([`Labels::to_json`]).
    pub fn series_of_json(
        &mut self,
        json: &str,
        metric: &str,
        job: Option<&str>,
        instance: Option<&str>,
        meta: SeriesMeta<'_>,
    ) -> i64 {
        let id = super::labels::id_of_json(json);
        let row = *self.row_of.entry(id).or_insert(self.rows.len());
        self.last = Some((id, row));
        if row == self.rows.len() {
            self.rows.push((i64::MAX, i64::MIN));
            self.s_id.append_value(id);
            self.s_labels.append_value(json);
            self.s_metric.append_value(metric);
            self.s_job.append_option(job);
            self.s_instance.append_option(instance);
            self.s_type.append_option(meta.metric_type);
            self.s_unit.append_option(meta.unit);
            self.s_help.append_option(meta.help);
            self.s_origin.append_option(meta.origin);
        }
        id
    }

    fn touch(&mut self, id: i64, ts_ms: i64) {
        let row = match self.last {
            Some((last, row)) if last == id => row,
            _ => self.row_of.get(&id).copied().expect("a point's series is declared first"),
        };
        self.last = Some((id, row));
        let (first, last) = &mut self.rows[row];
        *first = ts_ms.min(*first);
        *last = ts_ms.max(*last);
    }

    /// Adds a sample to a declared series. Panics if `id` was not declared.
    pub fn sample(&mut self, id: i64, ts_ms: i64, start_ms: Option<i64>, value: f64) {
        self.touch(id, ts_ms);
        self.id.push(id);
        self.ts_ms.push(ts_ms);
        self.value.push(value);
        self.started(start_ms);
    }

    /// Makes room for so many samples more.
    pub fn reserve_samples(&mut self, n: usize) {
        self.id.reserve_exact(n);
        self.ts_ms.reserve_exact(n);
        self.value.reserve_exact(n);
    }

    /// Adds a sample to a series that the store knows, which is not declared.
    #[inline]
    pub fn sample_of_known(&mut self, id: i64, ts_ms: i64, start_ms: Option<i64>, value: f64) {
        self.id.push(id);
        self.ts_ms.push(ts_ms);
        self.value.push(value);
        self.started(start_ms);
    }

    /// Start of the sample that was just added. Few have one.
    #[inline]
    fn started(&mut self, start_ms: Option<i64>) {
        if start_ms.is_some() {
            self.start_ms.append_nulls(self.id.len() - 1 - self.start_ms.len());
            self.start_ms.append_option(start_ms);
        }
    }

    /// Adds a histogram to a declared series. Panics if `id` was not declared.
    pub fn histogram(&mut self, id: i64, ts_ms: i64, start_ms: Option<i64>, row: &HistogramRow) {
        self.touch(id, ts_ms);
        let h = &mut self.h;
        h.id.append_value(id);
        h.ts.append_value(ts_ms);
        h.start.append_option(start_ms);
        h.schema.append_value(row.schema);
        h.zero_threshold.append_value(row.zero_threshold);
        h.zero_count.append_value(row.zero_count);
        h.count.append_value(row.count);
        h.sum.append_value(row.sum);
        h.min.append_option(row.min);
        h.max.append_option(row.max);
        h.positive_offset.append_value(row.positive_offset);
        h.positive_counts.append_value(row.positive_counts.iter().copied().map(Some));
        h.negative_offset.append_value(row.negative_offset);
        h.negative_counts.append_value(row.negative_counts.iter().copied().map(Some));
        h.custom_bounds.append_option(row.custom_bounds.as_ref().map(|b| b.iter().copied().map(Some)));
        h.reset_hint.append_value(row.reset_hint);
        h.is_float.append_value(row.is_float);
    }

    /// Adds an exemplar to a declared series. Panics if `id` was not declared. `labels`: canonical JSON.
    pub fn exemplar(
        &mut self,
        id: i64,
        ts_ms: i64,
        value: f64,
        trace_id: Option<&[u8]>,
        span_id: Option<&[u8]>,
        labels: &str,
    ) {
        assert!(self.row_of.contains_key(&id), "an exemplar's series is declared first");
        self.e_id.append_value(id);
        self.e_ts.append_value(ts_ms);
        self.e_value.append_value(value);
        self.e_trace.append_option(trace_id);
        self.e_span.append_option(span_id);
        self.e_labels.append_value(labels);
    }

    /// Everything so far as one batch; the builder is left empty.
    pub fn finish(&mut self) -> MetricBatch {
        let mut first = Int64Builder::new();
        let mut last = Int64Builder::new();
        for (a, b) in self.rows.drain(..) {
            // A series declared without a point: valid nowhere.
            first.append_value(if a == i64::MAX { 0 } else { a });
            last.append_value(if b == i64::MIN { 0 } else { b });
        }
        self.row_of.clear();
        self.last = None;
        let build = |table, columns: Vec<ArrayRef>| {
            RecordBatch::try_new(schema::input(table), columns).expect("builder columns follow the metric schemas")
        };
        let starts = match self.start_ms.is_empty() {
            true => arrow::array::new_null_array(&arrow::datatypes::DataType::Int64, self.id.len()),
            false => {
                self.start_ms.append_nulls(self.id.len() - self.start_ms.len());
                Arc::new(self.start_ms.finish())
            }
        };
        let h = &mut self.h;
        MetricBatch {
            series: build(
                Table::MetricSeries,
                vec![
                    Arc::new(self.s_id.finish()),
                    Arc::new(self.s_labels.finish()),
                    Arc::new(self.s_metric.finish()),
                    Arc::new(self.s_job.finish()),
                    Arc::new(self.s_instance.finish()),
                    Arc::new(self.s_type.finish()),
                    Arc::new(self.s_unit.finish()),
                    Arc::new(self.s_help.finish()),
                    Arc::new(self.s_origin.finish()),
                    Arc::new(first.finish()),
                    Arc::new(last.finish()),
                ],
            ),
            samples: build(
                Table::MetricSamples,
                vec![
                    Arc::new(arrow::array::Int64Array::from(std::mem::take(&mut self.id))),
                    Arc::new(arrow::array::Int64Array::from(std::mem::take(&mut self.ts_ms))),
                    starts,
                    Arc::new(arrow::array::Float64Array::from(std::mem::take(&mut self.value))),
                ],
            ),
            histograms: build(
                Table::MetricHistograms,
                vec![
                    Arc::new(h.id.finish()),
                    Arc::new(h.ts.finish()),
                    Arc::new(h.start.finish()),
                    Arc::new(h.schema.finish()),
                    Arc::new(h.zero_threshold.finish()),
                    Arc::new(h.zero_count.finish()),
                    Arc::new(h.count.finish()),
                    Arc::new(h.sum.finish()),
                    Arc::new(h.min.finish()),
                    Arc::new(h.max.finish()),
                    Arc::new(h.positive_offset.finish()),
                    Arc::new(h.positive_counts.finish()),
                    Arc::new(h.negative_offset.finish()),
                    Arc::new(h.negative_counts.finish()),
                    Arc::new(h.custom_bounds.finish()),
                    Arc::new(h.reset_hint.finish()),
                    Arc::new(h.is_float.finish()),
                ],
            ),
            exemplars: build(
                Table::MetricExemplars,
                vec![
                    Arc::new(self.e_id.finish()),
                    Arc::new(self.e_ts.finish()),
                    Arc::new(self.e_value.finish()),
                    Arc::new(self.e_trace.finish()),
                    Arc::new(self.e_span.finish()),
                    Arc::new(self.e_labels.finish()),
                ],
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builders_follow_their_schemas_and_reset() {
        let mut b = LogBatchBuilder::new();
        b.push(&LogRow { ts: 1, stream_labels: "{}", body: "x", ..LogRow::default() });
        assert_eq!(b.finish().num_rows(), 1);
        assert_eq!(b.finish().num_rows(), 0);
        let mut s = SpanBatchBuilder::new();
        s.push(&SpanRow { trace_id: &[1; 16], span_id: &[2; 8], name: "n", ..SpanRow::default() });
        assert_eq!(s.finish().num_rows(), 1);
        let mut m = MetricBatchBuilder::new();
        let id = m.series(&Labels::from_pairs([("__name__", "up"), ("job", "a")]), SeriesMeta::default());
        m.sample(id, 10, None, 1.0);
        m.sample(id, 5, Some(1), 2.0);
        m.histogram(id, 7, None, &HistogramRow { positive_counts: vec![1.0, 2.0], ..HistogramRow::default() });
        m.exemplar(id, 7, 1.0, Some(&[1; 16]), None, "{}");
        let out = m.finish();
        assert_eq!((out.series.num_rows(), out.points(), out.exemplars.num_rows()), (1, 3, 1));
        let first = out.series.column_by_name("first_ms").unwrap();
        assert_eq!(arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(first).value(0), 5);
    }
}
