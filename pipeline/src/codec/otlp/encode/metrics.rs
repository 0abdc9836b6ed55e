//! Metric batches to `ExportMetricsServiceRequest`.
//!
//! A series that came in by OTLP says so in its origin: its metric, resource and scope are built again, classic
//! histograms and summaries from their many series. Before that is done, the labels it would get on the other side are
//! worked out; where they are not the ones it has (somebody relabelled it), and for series born in Prometheus, the series
//! is sent as it is, with the mark [`SERIES`].

use std::collections::HashMap;

use storage::model::{Labels, MetricBatch, json::Value};

use super::{
    super::{
        metric_names::label_name,
        metrics::{HISTOGRAM, STALE},
        wire::{put_bytes, put_int, put_varint},
    },
    Encoded, ORIGIN, SERIES,
    native::{HistogramColumns, Whole as _},
    origin::{Form, Origin, Role, attributes_of, role_of},
    put_fixed64, value, wire_time,
};
use crate::codec::columns::{Blobs, Doubles, EncodeError, Ints, Text};

pub fn encode_metrics(batch: &MetricBatch) -> Result<Encoded, EncodeError> {
    let mut e = Encoder::default();
    e.series(batch)?;
    e.exemplars(batch)?;
    e.samples(batch)?;
    e.histograms(batch)?;
    Ok(e.finish())
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    metric: usize,
    point: usize,
    role: Role,
    verbatim: bool,
}

struct Metric {
    scope: usize,
    form: Form,
    /// All of `Metric` but its data.
    head: Vec<u8>,
    /// `is_monotonic` of a sum.
    monotonic: bool,
    /// The points, each as a field 1.
    points: Vec<u8>,
}

/// What the points of one attribute set of a metric share.
struct PointHead {
    /// The attributes, each as a field of the point.
    attributes: Vec<u8>,
    /// Exemplars that wait for a point.
    exemplars: Vec<Vec<u8>>,
}

/// A histogram or summary that is put together from its series.
struct Composite {
    metric: usize,
    point: usize,
    ts_ms: i64,
    start_ms: Option<i64>,
    stale: bool,
    sum: Option<f64>,
    count: Option<f64>,
    /// Bound or quantile, and value.
    parts: Vec<(f64, f64)>,
}

#[derive(Default)]
struct Encoder {
    resources: Vec<(Vec<u8>, String)>,
    scopes: Vec<(usize, Vec<u8>, String)>,
    metrics: Vec<Metric>,
    points: Vec<PointHead>,
    of_resource: HashMap<String, usize>,
    of_scope: HashMap<(usize, String), usize>,
    of_metric: HashMap<(usize, Form, Vec<u8>), usize>,
    of_point: HashMap<(usize, Vec<u8>), usize>,
    plans: HashMap<i64, Plan>,
    unsupported: u64,
}

impl Encoder {
    fn series(&mut self, batch: &MetricBatch) -> Result<(), EncodeError> {
        let series = &batch.series;
        let (ids, labels) = (Ints::of(series, "series_id")?, Text::of(series, "labels")?);
        let (kind, unit) = (Text::of(series, "type")?, Text::of(series, "unit")?);
        let (help, origin) = (Text::of(series, "help")?, Text::of(series, "origin")?);
        let has_histogram: std::collections::HashSet<i64> = {
            let ids = Ints::of(&batch.histograms, "series_id")?;
            (0..batch.histograms.num_rows()).filter_map(|row| ids.at(row)).collect()
        };
        let mut infos = Vec::new();
        let mut torn: std::collections::HashSet<i32> = std::collections::HashSet::new();
        let mut alive: std::collections::HashSet<String> = std::collections::HashSet::new();
        for row in 0..series.num_rows() {
            let Some(id) = ids.at(row) else { continue };
            let text = labels.at(row).unwrap_or("{}");
            let mut labels = Labels::from_json(text).map_err(|e| EncodeError::column("labels", e))?;
            let name = labels.remove("__name__").unwrap_or_default();
            let read = origin.at(row).map(Origin::read).transpose()?;
            if let Some(o) = read.as_ref().filter(|o| !o.kind.is_empty()) {
                alive.insert(o.resource_key.clone());
                // Points with an attribute of their own that buckets and quantiles have as a label.
                let label = if o.kind == "summary" { "quantile" } else { "le" };
                let of_points = name.ends_with("_sum") || name.ends_with("_count");
                let own = o.attributes.iter().flatten().any(|(k, _)| label_name(k) == label);
                if matches!(o.kind.as_str(), "histogram" | "summary")
                    && (own || of_points && labels.get(label).is_some())
                {
                    torn.insert(origin.key(row));
                }
            }
            infos.push((row, id, name, labels, read));
        }
        for (row, id, name, labels, read) in infos {
            let help = help.at(row).unwrap_or_default();
            let born = read.as_ref().filter(|o| !o.strange && !torn.contains(&origin.key(row)));
            if let Some(o) = born.filter(|o| o.kind.is_empty() && name == "target_info")
                && alive.contains(&o.resource_key)
            {
                self.plans.insert(id, Plan { metric: 0, point: 0, role: Role::Derived, verbatim: false });
                continue;
            }
            let mut plain = labels.clone();
            let rebuilt = born.and_then(|o| {
                let (form, role, monotonic) = role_of(o, &name, &mut plain)?;
                Some((o, form, role, monotonic, attributes_of(&plain, o)?))
            });
            let plan = match rebuilt {
                Some((o, form, role, monotonic, attributes)) => {
                    let metric = self.metric(o, form, monotonic, help);
                    Plan { metric, point: self.point(metric, &attributes), role, verbatim: false }
                }
                None => {
                    let (kind, unit) = (kind.at(row).unwrap_or_default(), unit.at(row).unwrap_or_default());
                    let role = if has_histogram.contains(&id) { Role::Exponential } else { Role::Number };
                    let metric = self.verbatim(&name, kind, unit, help, origin.at(row), role);
                    let attributes: Vec<(String, Value)> =
                        labels.iter().map(|(n, v)| (n.to_owned(), Value::String(v.to_owned()))).collect();
                    Plan { metric, point: self.point(metric, &attributes), role, verbatim: true }
                }
            };
            self.plans.insert(id, plan);
        }
        Ok(())
    }

    /// The metric of a series that came in by OTLP.
    fn metric(&mut self, o: &Origin, form: Form, monotonic: bool, help: &str) -> usize {
        let resource = self.resource(&o.resource_key, || {
            (value::resource(&o.resource, &o.resource_meta), o.resource_meta.schema_url.clone())
        });
        let scope = self.scope(resource, &o.scope_key, || {
            (value::scope(o.scope_name.as_deref(), &o.scope_meta), o.scope_meta.schema_url.clone())
        });
        let mut head = Vec::new();
        put_bytes(&mut head, 1, o.name.as_bytes());
        put_bytes(&mut head, 2, help.as_bytes());
        put_bytes(&mut head, 3, o.unit.as_bytes());
        value::put_pairs(&mut head, 12, &o.metadata);
        self.named(scope, form, monotonic, head)
    }

    /// The metric that carries a series as it is.
    fn verbatim(
        &mut self,
        name: &str,
        kind: &str,
        unit: &str,
        help: &str,
        origin: Option<&str>,
        role: Role,
    ) -> usize {
        let resource = self.resource("", Default::default);
        let scope = self.scope(resource, "", Default::default);
        let mut head = Vec::new();
        put_bytes(&mut head, 1, name.as_bytes());
        put_bytes(&mut head, 2, help.as_bytes());
        put_bytes(&mut head, 3, unit.as_bytes());
        value::put_pair(&mut head, 12, SERIES, &value::text(kind));
        if let Some(origin) = origin {
            value::put_pair(&mut head, 12, ORIGIN, &value::text(origin));
        }
        let form = match role {
            Role::Exponential => Form::Exponential,
            _ if kind == "counter" => Form::Sum,
            _ => Form::Gauge,
        };
        self.named(scope, form, kind == "counter", head)
    }

    fn resource(&mut self, key: &str, make: impl FnOnce() -> (Vec<u8>, String)) -> usize {
        if let Some(at) = self.of_resource.get(key) {
            return *at;
        }
        self.resources.push(make());
        self.of_resource.insert(key.to_owned(), self.resources.len() - 1);
        self.resources.len() - 1
    }

    fn scope(&mut self, resource: usize, key: &str, make: impl FnOnce() -> (Vec<u8>, String)) -> usize {
        if let Some(at) = self.of_scope.get(&(resource, key.to_owned())) {
            return *at;
        }
        let (head, url) = make();
        self.scopes.push((resource, head, url));
        self.of_scope.insert((resource, key.to_owned()), self.scopes.len() - 1);
        self.scopes.len() - 1
    }

    fn named(&mut self, scope: usize, form: Form, monotonic: bool, head: Vec<u8>) -> usize {
        let key = (scope, form, head);
        if let Some(at) = self.of_metric.get(&key) {
            return *at;
        }
        self.metrics.push(Metric { scope, form, head: key.2.clone(), monotonic, points: Vec::new() });
        self.of_metric.insert(key, self.metrics.len() - 1);
        self.metrics.len() - 1
    }

    fn point(&mut self, metric: usize, attributes: &[(String, Value)]) -> usize {
        let mut encoded = Vec::new();
        let number = match self.metrics[metric].form {
            Form::Gauge | Form::Sum | Form::Summary => 7,
            Form::Histogram => 9,
            Form::Exponential => 1,
        };
        value::put_pairs(&mut encoded, number, attributes);
        let key = (metric, encoded);
        if let Some(at) = self.of_point.get(&key) {
            return *at;
        }
        self.points.push(PointHead { attributes: key.1.clone(), exemplars: Vec::new() });
        self.of_point.insert(key, self.points.len() - 1);
        self.points.len() - 1
    }

    fn exemplars(&mut self, batch: &MetricBatch) -> Result<(), EncodeError> {
        let rows = &batch.exemplars;
        let (ids, ts, values) = (Ints::of(rows, "series_id")?, Ints::of(rows, "ts_ms")?, Doubles::of(rows, "value")?);
        let (trace, span) = (Blobs::of(rows, "trace_id")?, Blobs::of(rows, "span_id")?);
        let labels = Text::of(rows, "labels")?;
        for row in 0..rows.num_rows() {
            let plan = ids.at(row).and_then(|id| self.plans.get(&id)).copied();
            let Some(plan) = plan.filter(|p| !matches!(self.metrics[p.metric].form, Form::Summary)) else {
                self.unsupported += 1;
                continue;
            };
            let mut out = Vec::new();
            put_fixed64(&mut out, 2, wire_ms(ts.at(row).unwrap_or(0)));
            put_fixed64(&mut out, 3, values.at(row).unwrap_or(f64::NAN).to_bits());
            if let Some(id) = span.at(row) {
                put_bytes(&mut out, 4, id);
            }
            if let Some(id) = trace.at(row) {
                put_bytes(&mut out, 5, id);
            }
            value::put_pairs(&mut out, 7, &value::parse_map(labels.at(row).unwrap_or("{}"), "labels")?);
            self.points[plan.point].exemplars.push(out);
        }
        Ok(())
    }

    fn samples(&mut self, batch: &MetricBatch) -> Result<(), EncodeError> {
        let rows = &batch.samples;
        let (ids, ts, start) = (Ints::of(rows, "series_id")?, Ints::of(rows, "ts_ms")?, Ints::of(rows, "start_ms")?);
        let values = Doubles::of(rows, "value")?;
        let mut composites: Vec<Composite> = Vec::new();
        let mut of_composite: HashMap<(usize, i64, Option<i64>), usize> = HashMap::new();
        for row in 0..rows.num_rows() {
            let Some(plan) = ids.at(row).and_then(|id| self.plans.get(&id)).copied() else {
                return Err(EncodeError::column("series_id", "names a series that the batch does not hold"));
            };
            let (ts, start) = (ts.at(row).unwrap_or(0), start.at(row));
            let value = values.at(row).unwrap_or(f64::NAN);
            let stale = value.to_bits() == STALE.to_bits();
            let part = match plan.role {
                Role::Derived => continue,
                Role::Number => {
                    self.number(plan, ts, start, value, stale);
                    continue;
                }
                // A series with histograms that has plain samples too: two metrics of one name would be needed.
                Role::Exponential => {
                    self.unsupported += 1;
                    continue;
                }
                role => role,
            };
            let at = *of_composite.entry((plan.point, ts, start)).or_insert_with(|| {
                composites.push(Composite {
                    metric: plan.metric,
                    point: plan.point,
                    ts_ms: ts,
                    start_ms: start,
                    stale,
                    sum: None,
                    count: None,
                    parts: Vec::new(),
                });
                composites.len() - 1
            });
            let whole = &mut composites[at];
            match part {
                Role::Sum => whole.sum = Some(value),
                Role::Count => whole.count = Some(value),
                Role::Bucket(at) | Role::Quantile(at) => whole.parts.push((at, value)),
                Role::Number | Role::Exponential | Role::Derived => {}
            }
        }
        for whole in composites {
            self.composite(whole);
        }
        Ok(())
    }

    /// Appends a finished point with what all kinds of points share.
    fn push(&mut self, metric: usize, point: usize, exemplar_field: Option<u32>, mut body: Vec<u8>) {
        let head = &mut self.points[point];
        body.extend_from_slice(&head.attributes);
        if let Some(number) = exemplar_field {
            for e in head.exemplars.drain(..) {
                put_bytes(&mut body, number, &e);
            }
        }
        put_bytes(&mut self.metrics[metric].points, 1, &body);
    }

    fn number(&mut self, plan: Plan, ts_ms: i64, start_ms: Option<i64>, value: f64, stale: bool) {
        let mut body = times(ts_ms, start_ms);
        if stale {
            put_int(&mut body, 8, 1);
        } else {
            put_fixed64(&mut body, 4, value.to_bits());
        }
        self.push(plan.metric, plan.point, Some(5), body);
    }

    fn composite(&mut self, mut whole: Composite) {
        let mut body = times(whole.ts_ms, whole.start_ms);
        let live = |v: Option<f64>| v.filter(|_| !whole.stale);
        whole.parts.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = live(whole.count.or_else(|| whole.parts.last().map(|(_, v)| *v)));
        put_fixed64(&mut body, 4, count.unwrap_or(0.0) as u64);
        if let Some(sum) = live(whole.sum) {
            put_fixed64(&mut body, 5, sum.to_bits());
        }
        if self.metrics[whole.metric].form == Form::Summary {
            for (quantile, value) in &whole.parts {
                let mut pair = Vec::new();
                put_fixed64(&mut pair, 1, quantile.to_bits());
                put_fixed64(&mut pair, 2, live(Some(*value)).unwrap_or(0.0).to_bits());
                put_bytes(&mut body, 6, &pair);
            }
            if whole.stale {
                put_int(&mut body, 8, 1);
            }
            return self.push(whole.metric, whole.point, None, body);
        }
        let bounds: Vec<f64> = whole.parts.iter().map(|(b, _)| *b).filter(|b| *b != f64::INFINITY).collect();
        let (mut counts, mut packed_bounds, mut before) = (Vec::new(), Vec::new(), 0u64);
        for (i, bound) in bounds.iter().enumerate() {
            let upto = live(Some(whole.parts[i].1)).unwrap_or(0.0) as u64;
            counts.extend_from_slice(&upto.saturating_sub(before).to_le_bytes());
            before = before.max(upto);
            packed_bounds.extend_from_slice(&bound.to_bits().to_le_bytes());
        }
        counts.extend_from_slice(&(count.unwrap_or(0.0) as u64).saturating_sub(before).to_le_bytes());
        put_bytes(&mut body, 6, &counts);
        if !packed_bounds.is_empty() {
            put_bytes(&mut body, 7, &packed_bounds);
        }
        if whole.stale {
            put_int(&mut body, 10, 1);
        }
        self.push(whole.metric, whole.point, Some(8), body);
    }

    fn histograms(&mut self, batch: &MetricBatch) -> Result<(), EncodeError> {
        let rows = &batch.histograms;
        let (ids, ts, start) = (Ints::of(rows, "series_id")?, Ints::of(rows, "ts_ms")?, Ints::of(rows, "start_ms")?);
        let columns = HistogramColumns::of(rows)?;
        for row in 0..rows.num_rows() {
            let Some(plan) = ids.at(row).and_then(|id| self.plans.get(&id)).copied() else {
                return Err(EncodeError::column("series_id", "names a series that the batch does not hold"));
            };
            let h = columns.at(row);
            let whole = h.is_whole();
            if plan.role != Role::Exponential || !whole && !plan.verbatim {
                self.unsupported += 1;
                continue;
            }
            let mut body = times(ts.at(row).unwrap_or(0), start.at(row));
            put_fixed64(&mut body, 4, h.count as u64);
            let stale = h.sum.to_bits() == STALE.to_bits();
            if !stale {
                put_fixed64(&mut body, 5, h.sum.to_bits());
            }
            if whole {
                put_sint(&mut body, 6, h.schema);
                put_fixed64(&mut body, 7, h.zero_count as u64);
                for (number, offset, counts) in
                    [(8, h.positive_offset, &h.positive_counts), (9, h.negative_offset, &h.negative_counts)]
                {
                    if !counts.is_empty() {
                        let mut buckets = Vec::new();
                        // OTLP counts from lower bounds, Prometheus from upper ones.
                        put_sint(&mut buckets, 1, offset.saturating_sub(1));
                        let mut packed = Vec::new();
                        for c in counts {
                            put_varint(&mut packed, *c as u64);
                        }
                        put_bytes(&mut buckets, 2, &packed);
                        put_bytes(&mut body, number, &buckets);
                    }
                }
            } else {
                value::put_pair(&mut body, 1, HISTOGRAM, &value::text(&h.to_json()));
            }
            if stale {
                put_int(&mut body, 10, 1);
            }
            for (number, value) in [(12, h.min), (13, h.max)] {
                if let Some(v) = value {
                    put_fixed64(&mut body, number, v.to_bits());
                }
            }
            put_fixed64(&mut body, 14, h.zero_threshold.to_bits());
            self.push(plan.metric, plan.point, Some(11), body);
        }
        Ok(())
    }

    fn finish(self) -> Encoded {
        let waiting: usize = self.points.iter().map(|p| p.exemplars.len()).sum();
        let mut scopes: Vec<Vec<u8>> = self
            .scopes
            .iter()
            .map(|(_, head, _)| {
                let mut out = Vec::new();
                put_bytes(&mut out, 1, head);
                out
            })
            .collect();
        for m in self.metrics.iter().filter(|m| !m.points.is_empty()) {
            let mut data = m.points.clone();
            if matches!(m.form, Form::Sum | Form::Histogram | Form::Exponential) {
                put_int(&mut data, 2, CUMULATIVE);
            }
            if m.form == Form::Sum && m.monotonic {
                put_int(&mut data, 3, 1);
            }
            let mut metric = m.head.clone();
            put_bytes(&mut metric, m.form as u32, &data);
            put_bytes(&mut scopes[m.scope], 2, &metric);
        }
        let mut resources: Vec<Vec<u8>> = self
            .resources
            .iter()
            .map(|(head, _)| {
                let mut out = Vec::new();
                put_bytes(&mut out, 1, head);
                out
            })
            .collect();
        for ((resource, _, url), mut scope) in self.scopes.iter().zip(scopes) {
            if !url.is_empty() {
                put_bytes(&mut scope, 3, url.as_bytes());
            }
            put_bytes(&mut resources[*resource], 2, &scope);
        }
        let mut body = Vec::new();
        for ((_, url), mut resource) in self.resources.iter().zip(resources) {
            if !url.is_empty() {
                put_bytes(&mut resource, 3, url.as_bytes());
            }
            put_bytes(&mut body, 1, &resource);
        }
        Encoded { body, unsupported: self.unsupported + waiting as u64 }
    }
}

/// `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: u64 = 2;

fn wire_ms(ms: i64) -> u64 {
    wire_time(ms.saturating_mul(1_000_000))
}

fn times(ts_ms: i64, start_ms: Option<i64>) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(start) = start_ms {
        put_fixed64(&mut out, 2, wire_ms(start));
    }
    put_fixed64(&mut out, 3, wire_ms(ts_ms));
    out
}

/// A `sint32`.
fn put_sint(out: &mut Vec<u8>, number: u32, value: i32) {
    put_int(out, number, u64::from(((value << 1) ^ (value >> 31)) as u32));
}
