//! Metric batches to `ExportMetricsServiceRequest`.
//!
//! A series that came in by OTLP says so in its origin: its metric, resource and scope are built again, classic
//! histograms and summaries from their many series. Before that is done, the labels it would get on the other side are
//! worked out; where they are not the ones it has (somebody relabelled it), and for series born in Prometheus, the series
//! is sent as it is, with the mark [`SERIES`].

use std::collections::HashMap;

use storage::model::{
    Labels, MetricBatch,
    json::{self, Value},
};

use super::{
    super::{
        metric_names::{Shape, label_name, metric_name},
        metrics::{HISTOGRAM, IDENTIFYING, PROMOTED, STALE},
        value::{any, label_text},
        wire::{put_bytes, put_int, put_varint},
    },
    Encoded, ORIGIN, SERIES, put_fixed64,
    value::{self, Meta},
    wire_time,
};
use crate::codec::{
    Limits,
    columns::{Blobs, DoubleLists, Doubles, EncodeError, Flags, Ints, SmallInts, Text},
};

pub fn encode_metrics(batch: &MetricBatch) -> Result<Encoded, EncodeError> {
    let mut e = Encoder::default();
    e.series(batch)?;
    e.exemplars(batch)?;
    e.samples(batch)?;
    e.histograms(batch)?;
    Ok(e.finish())
}

/// What kind of data a metric has; also the number of its field in `Metric`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Form {
    Gauge = 5,
    Sum = 7,
    Histogram = 9,
    Exponential = 10,
    Summary = 11,
}

/// What a series is of its metric's points.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Number,
    Sum,
    Count,
    Bucket(f64),
    Quantile(f64),
    Exponential,
    /// Made again by the decoder from the resource of the others.
    Derived,
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

/// A series' origin, read.
struct Origin {
    name: String,
    unit: String,
    kind: String,
    attributes: Option<Vec<(String, Value)>>,
    metadata: Vec<(String, Value)>,
    resource: Vec<(String, Value)>,
    resource_meta: Meta,
    scope_name: Option<String>,
    scope_meta: Meta,
    /// Texts that tell resources and scopes apart.
    resource_key: String,
    scope_key: String,
    /// Something that this encoder does not know: the series is sent as it is.
    strange: bool,
}

impl Origin {
    fn read(text: &str) -> Result<Origin, EncodeError> {
        let mut out = Origin {
            name: String::new(),
            unit: String::new(),
            kind: String::new(),
            attributes: None,
            metadata: Vec::new(),
            resource: Vec::new(),
            resource_meta: Meta::default(),
            scope_name: None,
            scope_meta: Meta::default(),
            resource_key: String::new(),
            scope_key: String::new(),
            strange: false,
        };
        for (key, value) in value::parse_map(text, "origin")? {
            match (key.as_str(), value) {
                ("name", Value::String(s)) => out.name = s,
                ("unit", Value::String(s)) => out.unit = s,
                ("kind", Value::String(s)) => out.kind = s,
                ("attributes", Value::Map(pairs)) => out.attributes = Some(pairs),
                ("metadata", Value::Map(pairs)) => out.metadata = pairs,
                ("resource", Value::Map(pairs)) => {
                    out.resource_key.push_str(&format!("{pairs:?}"));
                    out.resource = pairs;
                }
                ("resource_meta", Value::Map(pairs)) => {
                    out.resource_key.push_str(&format!("|{pairs:?}"));
                    out.resource_meta = meta(pairs);
                }
                ("scope_name", Value::String(s)) => out.scope_name = Some(s),
                ("scope_meta", Value::Map(pairs)) => {
                    out.scope_key = format!("{pairs:?}");
                    out.scope_meta = meta(pairs);
                }
                _ => out.strange = true,
            }
        }
        if let Some(name) = &out.scope_name {
            out.scope_key = format!("{}|{name}", out.scope_key);
        }
        Ok(out)
    }
}

fn meta(pairs: Vec<(String, Value)>) -> Meta {
    let mut out = Meta::default();
    for (key, value) in pairs {
        match (key.as_str(), value) {
            ("attributes", Value::Map(pairs)) => out.attributes = pairs,
            ("dropped_attributes_count", Value::Int(n)) => out.dropped = n.max(0) as u64,
            ("schema_url", Value::String(s)) => out.schema_url = s,
            ("version", Value::String(s)) => out.version = s,
            _ => {}
        }
    }
    out
}

/// A value as a label's text.
fn text_of(v: &Value) -> String {
    if let Value::String(s) = v {
        return s.clone();
    }
    let bytes = value::any(v);
    any(&bytes).and_then(|v| label_text(v, &Limits::default())).unwrap_or_default()
}

/// Attributes as the decoder makes labels of them: equal names are joined with `;` in the order of the keys.
fn own_labels(attributes: &[(String, Value)]) -> Vec<(String, String)> {
    let mut sorted: Vec<&(String, Value)> =
        attributes.iter().filter(|(k, _)| !k.is_empty() && k != "__name__").collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out: Vec<(String, String)> = sorted.into_iter().map(|(k, v)| (label_name(k), text_of(v))).collect();
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same {
            kept.1.push(';');
            kept.1.push_str(&later.1);
        }
        same
    });
    out
}

/// Names and values of labels.
type Pairs = Vec<(String, String)>;

/// Labels that every series of a resource gets: promoted ones, then `job` and `instance`.
fn resource_labels(resource: &[(String, Value)]) -> (Pairs, Pairs) {
    let get = |name: &str| {
        let found = resource.iter().rev().find(|(k, _)| k == name);
        found.map(|(_, v)| text_of(v)).filter(|t| !t.is_empty())
    };
    let promoted = PROMOTED.iter().filter_map(|n| Some((label_name(n), get(n)?))).collect();
    let [name, namespace, instance] = IDENTIFYING.map(get);
    let job = match (namespace, name) {
        (Some(ns), Some(name)) => Some(format!("{ns}/{name}")),
        (_, name) => name,
    };
    let identity = [("job", job), ("instance", instance)];
    (promoted, identity.into_iter().filter_map(|(n, v)| Some((n.to_owned(), v?))).collect())
}

/// The attributes of a point of a series with these labels (without `__name__`, `le` and `quantile`); `None`: there are
/// none that would give the same labels again.
fn attributes_of(labels: &Labels, origin: &Origin) -> Option<Vec<(String, Value)>> {
    let (promoted, identity) = resource_labels(&origin.resource);
    let own = match &origin.attributes {
        Some(pairs) => pairs.clone(),
        None => labels
            .iter()
            .filter(|(n, v)| !promoted.iter().chain(&identity).any(|(pn, pv)| pn == n && pv == v))
            .map(|(n, v)| (n.to_owned(), Value::String(v.to_owned())))
            .collect(),
    };
    let again = Labels::from_pairs(promoted.into_iter().chain(own_labels(&own)).chain(identity));
    (again == *labels).then_some(own)
}

/// Form and role of a series that came in by OTLP, and whether its sum is monotonic. `labels` loses `le` or `quantile`.
fn role_of(origin: &Origin, name: &str, labels: &mut Labels) -> Option<(Form, Role, bool)> {
    let shape = match origin.kind.as_str() {
        "gauge" => Shape::Gauge,
        "monotonic_sum" => Shape::Counter,
        _ => Shape::Other,
    };
    let family = metric_name(&origin.name, &origin.unit, shape);
    let suffix = name.strip_prefix(family.as_str())?;
    let bound = |labels: &mut Labels, label: &str| labels.remove(label)?.parse::<f64>().ok();
    Some(match (origin.kind.as_str(), suffix) {
        ("gauge", "") => (Form::Gauge, Role::Number, false),
        ("monotonic_sum", "") => (Form::Sum, Role::Number, true),
        ("sum", "") => (Form::Sum, Role::Number, false),
        ("histogram", "_sum") => (Form::Histogram, Role::Sum, false),
        ("histogram", "_count") => (Form::Histogram, Role::Count, false),
        ("histogram", "_bucket") => (Form::Histogram, Role::Bucket(bound(labels, "le")?), false),
        ("summary", "_sum") => (Form::Summary, Role::Sum, false),
        ("summary", "_count") => (Form::Summary, Role::Count, false),
        ("summary", "") => (Form::Summary, Role::Quantile(bound(labels, "quantile")?), false),
        ("exponential_histogram", "") => (Form::Exponential, Role::Exponential, false),
        _ => return None,
    })
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

struct HistogramColumns<'a> {
    ints: [SmallInts<'a>; 4],
    doubles: [Doubles<'a>; 6],
    lists: [DoubleLists<'a>; 3],
    is_float: Flags<'a>,
}

type Histogram = storage::model::batch::HistogramRow;

impl<'a> HistogramColumns<'a> {
    fn of(rows: &'a arrow::array::RecordBatch) -> Result<Self, EncodeError> {
        let ints = |n| SmallInts::of(rows, n);
        let doubles = |n| Doubles::of(rows, n);
        let lists = |n| DoubleLists::of(rows, n);
        Ok(HistogramColumns {
            ints: [ints("schema")?, ints("positive_offset")?, ints("negative_offset")?, ints("reset_hint")?],
            doubles: [
                doubles("zero_threshold")?,
                doubles("zero_count")?,
                doubles("count")?,
                doubles("sum")?,
                doubles("min")?,
                doubles("max")?,
            ],
            lists: [lists("positive_counts")?, lists("negative_counts")?, lists("custom_bounds")?],
            is_float: Flags::of(rows, "is_float")?,
        })
    }

    fn at(&self, row: usize) -> Histogram {
        let int = |i: usize| self.ints[i].at(row).unwrap_or(0);
        let double = |i: usize| self.doubles[i].at(row);
        Histogram {
            schema: int(0),
            zero_threshold: double(0).unwrap_or(0.0),
            zero_count: double(1).unwrap_or(0.0),
            count: double(2).unwrap_or(0.0),
            sum: double(3).unwrap_or(0.0),
            min: double(4),
            max: double(5),
            positive_offset: int(1),
            positive_counts: self.lists[0].at(row).unwrap_or_default(),
            negative_offset: int(2),
            negative_counts: self.lists[1].at(row).unwrap_or_default(),
            custom_bounds: self.lists[2].at(row),
            reset_hint: int(3),
            is_float: self.is_float.at(row).unwrap_or(false),
        }
    }
}

trait Whole {
    /// Whether OTLP's exponential histogram can say all of it.
    fn is_whole(&self) -> bool;
    fn to_json(&self) -> String;
}

impl Whole for Histogram {
    fn is_whole(&self) -> bool {
        let whole = |v: &f64| v.fract() == 0.0 && *v >= 0.0 && *v < 1.8e19;
        let counts = self.positive_counts.iter().chain(&self.negative_counts);
        (-4..=8).contains(&self.schema)
            && self.custom_bounds.is_none()
            && !self.is_float
            && self.reset_hint == 0
            && self.zero_threshold != 0.0
            && whole(&self.count)
            && whole(&self.zero_count)
            && counts.into_iter().all(whole)
            && (!self.positive_counts.is_empty() || self.positive_offset == 0)
            && (!self.negative_counts.is_empty() || self.negative_offset == 0)
    }

    fn to_json(&self) -> String {
        use std::fmt::Write as _;
        let double = |v: f64| {
            let mut out = String::new();
            json::write_double(&mut out, v);
            out
        };
        let list = |values: &[f64]| format!("[{}]", values.iter().map(|v| double(*v)).collect::<Vec<_>>().join(","));
        let mut out = format!(
            "{{\"schema\":{},\"zero_threshold\":{},\"zero_count\":{},\"count\":{},\"positive_offset\":{},\
             \"positive_counts\":{},\"negative_offset\":{},\"negative_counts\":{},\"reset_hint\":{},\"is_float\":{}",
            self.schema,
            double(self.zero_threshold),
            double(self.zero_count),
            double(self.count),
            self.positive_offset,
            list(&self.positive_counts),
            self.negative_offset,
            list(&self.negative_counts),
            self.reset_hint,
            self.is_float,
        );
        if let Some(bounds) = &self.custom_bounds {
            let _ = write!(out, ",\"custom_bounds\":{}", list(bounds));
        }
        out.push('}');
        out
    }
}
