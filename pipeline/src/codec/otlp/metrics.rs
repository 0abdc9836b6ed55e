//! `ExportMetricsServiceRequest` to Prometheus series, samples, native histograms and exemplars.
//!
//! What the Prometheus form cannot say (the original name and unit, resource, scope, attribute types, temporality)
//! rests in the series' `origin`, so that nothing is lost.

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{
        AggregationTemporality, Exemplar, ExponentialHistogramDataPoint, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, SummaryDataPoint, exemplar, exponential_histogram_data_point::Buckets, metric,
        number_data_point,
    },
};
use prost::Message as _;
use storage::model::{
    Labels, MetricBatchBuilder,
    batch::{HistogramRow, SeriesMeta},
    json,
};

use super::{
    delta::Deltas,
    encode::{ORIGIN, SERIES},
    metric_names::{Shape, label_name, metric_name, unit_name},
    points::{NO_RECORDED_VALUE, Totalled, check_bounds, check_scale, stream_key},
    salvage,
    value::{self, Fail},
};
use crate::{
    Data,
    codec::{Decoded, Limits, Malformed, Reason, limits::TimeBounds, ndjson::check_time},
};

/// Resource attributes that become labels of every series of the resource, where a point does not set them.
pub(super) const PROMOTED: [&str; 16] = [
    "service.name",
    "service.namespace",
    "service.instance.id",
    "service.version",
    "deployment.environment",
    "deployment.environment.name",
    "k8s.cluster.name",
    "k8s.namespace.name",
    "k8s.pod.name",
    "k8s.container.name",
    "k8s.node.name",
    "k8s.deployment.name",
    "host.name",
    "container.name",
    "cloud.region",
    "cloud.availability_zone",
];

/// Attributes that say which target it is: labels `job` and `instance`.
pub(super) const IDENTIFYING: [&str; 3] = ["service.name", "service.namespace", "service.instance.id"];

/// A NaN that means "no more": Prometheus' staleness marker.
pub(super) const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

/// Attribute of a point that carries a native histogram OTLP has no form for, as canonical JSON.
pub(super) const HISTOGRAM: &str = "sightline.histogram";

/// `target_info` is repeated at half the default lookback, at most so often in one request.
const TARGET_INFO_STEP_MS: i64 = 150_000;
const TARGET_INFO_SAMPLES_MAX: i64 = 1_000;

/// Zero threshold of exponential histograms that give none.
const ZERO_THRESHOLD: f64 = 1e-128;

/// What all points of a resource share.
struct ResourceTexts {
    labels: Vec<(String, String)>,
    target: Vec<(String, String)>,
    has_target_info: bool,
    /// `"resource":{...}`, `"resource_meta":{...}`.
    origin: String,
}

/// A metric's family: what all its series share.
struct Family {
    name: String,
    unit: String,
    help: String,
    kind: &'static str,
    delta: bool,
    /// Start of the origin object, without its end.
    origin: String,
}

/// Where delta points become cumulative, and whose they are.
#[derive(Clone, Copy)]
pub struct Totals<'d> {
    pub deltas: &'d Deltas,
    pub tenant: &'d str,
}

struct Decoder<'l> {
    limits: &'l Limits,
    totals: Option<Totals<'l>>,
    now: i64,
    bounds: TimeBounds,
    rows: MetricBatchBuilder,
    met: u64,
    /// Earliest and latest point of the resource, ms.
    seen_ms: Option<(i64, i64)>,
    out: Decoded,
}

type Refusal = (Reason, String);

/// `body`: protobuf. `now`: nanoseconds since the epoch, the time of points without one. Without `totals` delta points
/// are refused.
pub fn decode_metrics(
    body: &[u8],
    limits: &Limits,
    now: i64,
    totals: Option<Totals<'_>>,
) -> Result<Decoded, Malformed> {
    let (request, lost) = match ExportMetricsServiceRequest::decode(body) {
        Ok(request) => (request, 0),
        Err(e) if salvage::is_text(&e) => salvage::salvage(body)?,
        Err(e) => return Err(Malformed(format!("invalid protobuf: {e}"))),
    };
    let mut d = Decoder {
        limits,
        totals,
        now,
        bounds: TimeBounds::new(limits, now),
        rows: MetricBatchBuilder::new(),
        met: 0,
        seen_ms: None,
        out: Decoded::default(),
    };
    d.out.rejected.add_many(Reason::InvalidUtf8, lost, 1, || "a text is not valid UTF-8".to_owned());
    for resource in &request.resource_metrics {
        d.resource(resource);
    }
    d.flush();
    Ok(d.out)
}

fn points_of(m: &Metric) -> usize {
    match &m.data {
        None => 0,
        Some(metric::Data::Gauge(g)) => g.data_points.len(),
        Some(metric::Data::Sum(s)) => s.data_points.len(),
        Some(metric::Data::Histogram(h)) => h.data_points.len(),
        Some(metric::Data::ExponentialHistogram(h)) => h.data_points.len(),
        Some(metric::Data::Summary(s)) => s.data_points.len(),
    }
}

fn attribute_text(kv: &KeyValue, limits: &Limits) -> Result<String, Refusal> {
    match kv.value.as_ref().and_then(|v| v.value.as_ref()) {
        None => Ok(String::new()),
        Some(Value::StringValue(s)) => Ok(s.clone()),
        Some(_) => {
            let bytes = kv.value.as_ref().map(|v| v.encode_to_vec()).unwrap_or_default();
            value::any(&bytes).and_then(|v| value::label_text(v, limits)).map_err(refusal)
        }
    }
}

/// Canonical JSON of attributes.
fn attributes_json(attributes: &[KeyValue], limits: &Limits) -> Result<String, Refusal> {
    let encoded: Vec<Vec<u8>> = attributes.iter().map(|kv| kv.encode_to_vec()).collect();
    let sent: Vec<&[u8]> = encoded.iter().map(Vec::as_slice).collect();
    let mut out = String::new();
    value::write_attributes(&mut out, &sent, limits, limits.depth_max).map_err(refusal)?;
    Ok(out)
}

fn refusal(f: Fail) -> Refusal {
    match f {
        Fail::Malformed(m) => (Reason::Malformed, m.0),
        Fail::Refused(reason, message) => (reason, message),
    }
}

/// Labels by name; values of those that have become one name are joined with `;` in their order.
pub(super) fn join_equal_names(labels: &mut Vec<(String, String)>) {
    // Stable: within a name the order stays.
    labels.sort_by(|a, b| a.0.cmp(&b.0));
    labels.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same {
            kept.1.push(';');
            kept.1.push_str(&later.1);
        }
        same
    });
}

/// Attributes as labels. Of equal keys the last counts; values of keys that become one name are joined with `;` in the
/// order of the keys.
fn label_pairs(attributes: &[KeyValue], limits: &Limits) -> Result<Vec<(String, String)>, Refusal> {
    if attributes.len() > limits.attributes_max {
        let limit = limits.attributes_max;
        return Err((Reason::TooManyAttributes, format!("{} attributes; at most {limit}", attributes.len())));
    }
    let mut sorted: Vec<&KeyValue> = attributes.iter().collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key));
    let mut out: Vec<(String, String)> = Vec::with_capacity(sorted.len());
    for (i, kv) in sorted.iter().enumerate() {
        let replaced = sorted.get(i + 1).is_some_and(|next| next.key == kv.key);
        if replaced || kv.key == "__name__" || kv.key.is_empty() {
            continue;
        }
        out.push((label_name(&kv.key), attribute_text(kv, limits)?));
    }
    join_equal_names(&mut out);
    Ok(out)
}

impl Decoder<'_> {
    fn resource(&mut self, sent: &ResourceMetrics) {
        let texts = match self.resource_texts(sent) {
            Ok(t) => t,
            Err((reason, message)) => {
                let metrics = sent.scope_metrics.iter().flat_map(|s| &s.metrics);
                let n: usize = metrics.map(points_of).sum();
                self.refuse(reason, n, message);
                return;
            }
        };
        self.seen_ms = None;
        for scope in &sent.scope_metrics {
            let origin = match self.scope_origin(scope) {
                Ok(o) => o,
                Err((reason, message)) => {
                    let n: usize = scope.metrics.iter().map(points_of).sum();
                    self.refuse(reason, n, message);
                    continue;
                }
            };
            for m in &scope.metrics {
                self.metric(&texts, &origin, m);
            }
        }
        self.target_info(&texts);
    }

    fn refuse(&mut self, reason: Reason, points: usize, message: String) {
        self.out.rejected.add_many(reason, points as u64, self.met + 1, || message);
        self.met += points as u64;
    }

    fn resource_texts(&self, sent: &ResourceMetrics) -> Result<ResourceTexts, Refusal> {
        let empty = Vec::new();
        let attributes = sent.resource.as_ref().map_or(&empty, |r| &r.attributes);
        let get = |name: &str| -> Result<Option<String>, Refusal> {
            let found = attributes.iter().rev().find(|kv| kv.key == name);
            let text = found.map(|kv| attribute_text(kv, self.limits)).transpose()?;
            Ok(text.filter(|t| !t.is_empty()))
        };
        let mut labels = Vec::new();
        for name in PROMOTED {
            if let Some(text) = get(name)? {
                labels.push((label_name(name), text));
            }
        }
        let job = match (get("service.namespace")?, get("service.name")?) {
            (Some(ns), Some(name)) => Some(format!("{ns}/{name}")),
            (_, name) => name,
        };
        let instance = get("service.instance.id")?;
        let identity: Vec<(String, String)> = [("job", job), ("instance", instance)]
            .into_iter()
            .filter_map(|(n, v)| Some((n.to_owned(), v?)))
            .collect();
        labels.extend(identity.iter().cloned());
        let descriptive: Vec<KeyValue> =
            attributes.iter().filter(|kv| !IDENTIFYING.contains(&kv.key.as_str())).cloned().collect();
        let mut target = label_pairs(&descriptive, self.limits)?;
        let has_target_info = !target.is_empty() && !identity.is_empty();
        target.extend(identity);
        let mut origin = String::new();
        if !attributes.is_empty() {
            origin.push_str("\"resource\":");
            origin.push_str(&attributes_json(attributes, self.limits)?);
            origin.push(',');
        }
        let dropped = sent.resource.as_ref().map_or(0, |r| r.dropped_attributes_count);
        let entities: Vec<Vec<u8>> =
            sent.resource.iter().flat_map(|r| &r.entity_refs).map(|e| e.encode_to_vec()).collect();
        let entities = value::entities_json(entities.iter().map(Vec::as_slice)).map_err(refusal)?;
        let meta = value::write_resource_meta(dropped.into(), entities.as_deref(), &sent.schema_url);
        if let Some(meta) = meta {
            origin.push_str("\"resource_meta\":");
            origin.push_str(&meta);
            origin.push(',');
        }
        Ok(ResourceTexts { labels, target, has_target_info, origin })
    }

    fn scope_origin(&self, sent: &ScopeMetrics) -> Result<String, Refusal> {
        let mut out = String::new();
        let Some(scope) = &sent.scope else { return Ok(out) };
        let attributes = match scope.attributes.as_slice() {
            [] => None,
            some => Some(attributes_json(some, self.limits)?),
        };
        let dropped = scope.dropped_attributes_count.into();
        if let Some(meta) = value::write_meta(attributes.as_deref(), dropped, &sent.schema_url, &scope.version) {
            out.push_str("\"scope_meta\":");
            out.push_str(&meta);
            out.push(',');
        }
        if !scope.name.is_empty() {
            out.push_str("\"scope_name\":");
            json::write_string(&mut out, &scope.name);
            out.push(',');
        }
        Ok(out)
    }

    fn metric(&mut self, resource: &ResourceTexts, scope_origin: &str, m: &Metric) {
        let Some(data) = &m.data else { return };
        if let Some(kind) = metadata_text(m, SERIES) {
            return self.verbatim(m, data, kind);
        }
        let (kind, shape, temporality) = match data {
            metric::Data::Gauge(_) => ("gauge", Shape::Gauge, None),
            metric::Data::Sum(s) if s.is_monotonic => ("counter", Shape::Counter, Some(s.aggregation_temporality)),
            metric::Data::Sum(s) => ("gauge", Shape::Other, Some(s.aggregation_temporality)),
            metric::Data::Histogram(h) => ("histogram", Shape::Other, Some(h.aggregation_temporality)),
            metric::Data::ExponentialHistogram(h) => ("histogram", Shape::Other, Some(h.aggregation_temporality)),
            metric::Data::Summary(_) => ("summary", Shape::Other, None),
        };
        let delta = temporality == Some(AggregationTemporality::Delta as i32) && self.totals.is_some();
        if !delta && temporality.is_some_and(|t| t != AggregationTemporality::Cumulative as i32) {
            let message = format!(
                "invalid temporality and type combination for metric {:?}: send cumulative or delta temporality",
                m.name
            );
            return self.refuse(Reason::Temporality, points_of(m), message);
        }
        let name = metric_name(&m.name, &m.unit, shape);
        if name.is_empty() {
            let message = format!("metric name {:?} has no letter or digit", m.name);
            return self.refuse(Reason::InvalidMetric, points_of(m), message);
        }
        let family = Family {
            origin: family_origin(m, data, resource, scope_origin, delta, self.limits),
            delta,
            name,
            unit: unit_name(&m.unit),
            help: m.description.clone(),
            kind,
        };
        match data {
            metric::Data::Gauge(g) => self.points(&g.data_points, |d, p| d.number(resource, &family, p)),
            metric::Data::Sum(s) => {
                self.points(&s.data_points, |d, p| d.total(&family, p, &|d, p| d.number(resource, &family, p)));
            }
            metric::Data::Histogram(h) => {
                self.points(&h.data_points, |d, p| d.total(&family, p, &|d, p| d.histogram(resource, &family, p)));
            }
            metric::Data::ExponentialHistogram(h) => {
                self.points(&h.data_points, |d, p| d.total(&family, p, &|d, p| d.exponential(resource, &family, p)));
            }
            metric::Data::Summary(s) => self.points(&s.data_points, |d, p| d.summary(resource, &family, p)),
        }
    }

    /// A Prometheus series that another Sightline sent as it is ([`super::encode`]).
    fn verbatim(&mut self, m: &Metric, data: &metric::Data, kind: &str) {
        let declare = |d: &mut Self, attributes: &[KeyValue]| -> Result<i64, Refusal> {
            if attributes.len() > d.limits.attributes_max {
                let message = format!("{} attributes; at most {}", attributes.len(), d.limits.attributes_max);
                return Err((Reason::TooManyAttributes, message));
            }
            let mut pairs = Vec::with_capacity(attributes.len());
            for kv in attributes.iter().filter(|kv| kv.key != HISTOGRAM) {
                pairs.push((kv.key.clone(), attribute_text(kv, d.limits)?));
            }
            let mut labels = Labels::from_pairs(pairs);
            labels.set("__name__", m.name.as_str());
            let some = |t: &&str| !t.is_empty();
            let meta = SeriesMeta {
                metric_type: Some(kind).filter(some),
                unit: Some(m.unit.as_str()).filter(some),
                help: Some(m.description.as_str()).filter(some),
                origin: metadata_text(m, ORIGIN),
            };
            Ok(d.rows.series(&labels, meta))
        };
        let number = |d: &mut Self, p: &NumberDataPoint| {
            let value = match p.value {
                _ if p.flags & NO_RECORDED_VALUE != 0 => STALE,
                Some(number_data_point::Value::AsDouble(v)) => v,
                Some(number_data_point::Value::AsInt(i)) => i as f64,
                None => return Err((Reason::InvalidMetric, format!("a point of {:?} has no value", m.name))),
            };
            let (ms, start) = d.times(p.time_unix_nano, p.start_time_unix_nano)?;
            let id = declare(d, &p.attributes)?;
            d.rows.sample(id, ms, start, value);
            p.exemplars.iter().try_for_each(|e| d.exemplar(id, ms, e))
        };
        match data {
            metric::Data::Gauge(g) => self.points(&g.data_points, number),
            metric::Data::Sum(s) => self.points(&s.data_points, number),
            metric::Data::ExponentialHistogram(h) => self.points(&h.data_points, |d, p| {
                let carried = p.attributes.iter().find(|kv| kv.key == HISTOGRAM);
                let mut row = match carried.map(|kv| attribute_text(kv, d.limits)).transpose()? {
                    Some(text) => carried_histogram(&text).filter(is_sound).ok_or_else(|| {
                        (Reason::InvalidMetric, format!("attribute {HISTOGRAM} of {:?} is no histogram", m.name))
                    })?,
                    None => histogram_row(p, &m.name)?,
                };
                let stale = p.flags & NO_RECORDED_VALUE != 0;
                row.sum = if stale { STALE } else { p.sum.unwrap_or(0.0) };
                (row.min, row.max) = (p.min, p.max);
                let (ms, start) = d.times(p.time_unix_nano, p.start_time_unix_nano)?;
                let id = declare(d, &p.attributes)?;
                d.rows.histogram(id, ms, start, &row);
                p.exemplars.iter().try_for_each(|e| d.exemplar(id, ms, e))
            }),
            metric::Data::Histogram(_) | metric::Data::Summary(_) => {
                let message = format!("metric {:?} is marked {SERIES} but is no gauge or sum", m.name);
                self.refuse(Reason::InvalidMetric, points_of(m), message);
            }
        }
    }

    /// Takes a point of a sum or histogram; of delta temporality it is the running total that is taken.
    fn total<P: Totalled>(
        &mut self,
        family: &Family,
        p: &P,
        take: &dyn Fn(&mut Self, &P) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let Some(totals) = self.totals.filter(|_| family.delta) else { return take(self, p) };
        let attributes = attributes_json(p.attributes(), self.limits)?;
        let key = stream_key(&[totals.tenant, &family.origin, &attributes]);
        if p.flags() & NO_RECORDED_VALUE != 0 {
            totals.deltas.forget(key);
            return take(self, p);
        }
        let mut p = p.clone();
        let now = u64::try_from(self.now).unwrap_or_default();
        let end = if p.end() == 0 { now } else { p.end() };
        p.set_times(p.start(), end);
        // Before it counts in a total.
        check_time(super::logs::nanos(end).map_err(refusal)?, self.bounds, self.now)?;
        p.check()?;
        let converted = totals.deltas.convert(key, &p)?;
        if let Some(zero) = &converted.zero {
            // A start out of bounds costs the zero only.
            let _ = take(self, zero);
        }
        take(self, &converted.point)
    }

    fn points<P>(&mut self, points: &[P], take: impl Fn(&mut Self, &P) -> Result<(), Refusal>) {
        for p in points {
            self.met += 1;
            let done = if self.out.accepted as usize >= self.limits.records_max {
                let limit = self.limits.records_max;
                Err((Reason::TooManyRecords, format!("request has more than {limit} points; send fewer at once")))
            } else {
                take(self, p)
            };
            match done {
                Ok(()) => self.out.accepted += 1,
                Err((reason, message)) => self.out.rejected.add(reason, self.met, || message),
            }
            if self.rows.len() >= self.limits.batch_rows_max {
                self.flush();
            }
        }
    }

    /// Milliseconds of a point and of its start.
    fn times(&mut self, time: u64, start: u64) -> Result<(i64, Option<i64>), Refusal> {
        let ns = if time == 0 { self.now } else { super::logs::nanos(time).map_err(refusal)? };
        check_time(ns, self.bounds, self.now)?;
        let ms = ns / 1_000_000;
        let (first, last) = self.seen_ms.unwrap_or((ms, ms));
        self.seen_ms = Some((first.min(ms), last.max(ms)));
        let start = i64::try_from(start).ok().filter(|s| *s != 0).map(|s| s / 1_000_000);
        Ok((ms, start))
    }

    /// Labels of a point without `__name__`, and its origin.
    fn labels(
        &self,
        resource: &ResourceTexts,
        family: &Family,
        attributes: &[KeyValue],
    ) -> Result<(Labels, String), Refusal> {
        let own = label_pairs(attributes, self.limits)?;
        // What came later counts: points over the resource, but `job` and `instance` are the resource's.
        let (identity, promoted): (Vec<_>, Vec<_>) =
            resource.labels.iter().cloned().partition(|(n, _)| n == "job" || n == "instance");
        let labels = Labels::from_pairs(promoted.into_iter().chain(own).chain(identity));
        let lossy = attributes.iter().any(|kv| {
            !matches!(kv.value.as_ref().and_then(|v| v.value.as_ref()), Some(Value::StringValue(s)) if !s.is_empty())
                || label_name(&kv.key) != kv.key
        });
        let mut origin = String::from("{");
        if lossy {
            origin.push_str("\"attributes\":");
            origin.push_str(&attributes_json(attributes, self.limits)?);
            origin.push(',');
        }
        origin.push_str(&family.origin);
        Ok((labels, origin))
    }

    fn series(&mut self, labels: &Labels, name: &str, family: &Family, origin: &str) -> i64 {
        let mut labels = labels.clone();
        labels.set("__name__", name);
        let some = |t: &'_ str| !t.is_empty();
        self.rows.series(
            &labels,
            SeriesMeta {
                metric_type: Some(family.kind),
                unit: Some(family.unit.as_str()).filter(|t| some(t)),
                help: Some(family.help.as_str()).filter(|t| some(t)),
                origin: Some(origin),
            },
        )
    }

    fn number(&mut self, resource: &ResourceTexts, family: &Family, p: &NumberDataPoint) -> Result<(), Refusal> {
        let value = match p.value {
            _ if p.flags & NO_RECORDED_VALUE != 0 => STALE,
            Some(number_data_point::Value::AsDouble(d)) => d,
            Some(number_data_point::Value::AsInt(i)) => i as f64,
            None => return Err((Reason::InvalidMetric, format!("a point of {:?} has no value", family.name))),
        };
        let (labels, origin) = self.labels(resource, family, &p.attributes)?;
        let (ms, start) = self.times(p.time_unix_nano, p.start_time_unix_nano)?;
        let id = self.series(&labels, &family.name, family, &origin);
        self.rows.sample(id, ms, start, value);
        for e in &p.exemplars {
            self.exemplar(id, ms, e)?;
        }
        Ok(())
    }

    fn exemplar(&mut self, id: i64, point_ms: i64, e: &Exemplar) -> Result<(), Refusal> {
        let value = match e.value {
            Some(exemplar::Value::AsDouble(d)) => d,
            Some(exemplar::Value::AsInt(i)) => i as f64,
            None => return Ok(()),
        };
        let ms = i64::try_from(e.time_unix_nano).ok().filter(|t| *t != 0).map_or(point_ms, |t| t / 1_000_000);
        let labels = Labels::from_pairs(label_pairs(&e.filtered_attributes, self.limits)?).to_json();
        let trace = Some(e.trace_id.as_slice()).filter(|id| id.len() == 16);
        let span = Some(e.span_id.as_slice()).filter(|id| id.len() == 8);
        self.rows.exemplar(id, ms, value, trace, span, &labels);
        Ok(())
    }

    fn histogram(
        &mut self,
        resource: &ResourceTexts,
        family: &Family,
        p: &HistogramDataPoint,
    ) -> Result<(), Refusal> {
        check_bounds(p).map_err(|(reason, message)| (reason, format!("{message} (metric {:?})", family.name)))?;
        let (mut labels, origin) = self.labels(resource, family, &p.attributes)?;
        let (ms, start) = self.times(p.time_unix_nano, p.start_time_unix_nano)?;
        let stale = p.flags & NO_RECORDED_VALUE != 0;
        let value = |v: f64| if stale { STALE } else { v };
        if let Some(sum) = p.sum.or(stale.then_some(STALE)) {
            let id = self.series(&labels, &format!("{}_sum", family.name), family, &origin);
            self.rows.sample(id, ms, start, value(sum));
        }
        let id = self.series(&labels, &format!("{}_count", family.name), family, &origin);
        self.rows.sample(id, ms, start, value(p.count as f64));
        let bucket = format!("{}_bucket", family.name);
        let mut cumulative = 0u64;
        let mut exemplars: Vec<&Exemplar> = p.exemplars.iter().collect();
        for (i, bound) in p.explicit_bounds.iter().copied().chain([f64::INFINITY]).enumerate() {
            // The last bucket holds everything, whatever the counts add up to.
            let last = i == p.explicit_bounds.len();
            cumulative = cumulative.saturating_add(p.bucket_counts.get(i).copied().unwrap_or(0));
            let count = if last { p.count } else { cumulative };
            if last && bound.is_infinite() && p.explicit_bounds.last() == Some(&f64::INFINITY) {
                break;
            }
            labels.set("le", bound_text(bound));
            let id = self.series(&labels, &bucket, family, &origin);
            self.rows.sample(id, ms, start, value(count as f64));
            let mut left = Vec::new();
            for e in exemplars {
                let v = match e.value {
                    Some(exemplar::Value::AsDouble(d)) => d,
                    Some(exemplar::Value::AsInt(i)) => i as f64,
                    None => continue,
                };
                if last || v <= bound { self.exemplar(id, ms, e)? } else { left.push(e) }
            }
            exemplars = left;
        }
        Ok(())
    }

    fn summary(&mut self, resource: &ResourceTexts, family: &Family, p: &SummaryDataPoint) -> Result<(), Refusal> {
        let (mut labels, origin) = self.labels(resource, family, &p.attributes)?;
        let (ms, start) = self.times(p.time_unix_nano, p.start_time_unix_nano)?;
        let stale = p.flags & NO_RECORDED_VALUE != 0;
        let value = |v: f64| if stale { STALE } else { v };
        let id = self.series(&labels, &format!("{}_sum", family.name), family, &origin);
        self.rows.sample(id, ms, start, value(p.sum));
        let id = self.series(&labels, &format!("{}_count", family.name), family, &origin);
        self.rows.sample(id, ms, start, value(p.count as f64));
        for q in &p.quantile_values {
            labels.set("quantile", bound_text(q.quantile));
            let id = self.series(&labels, &family.name, family, &origin);
            self.rows.sample(id, ms, start, value(q.value));
        }
        Ok(())
    }

    fn exponential(
        &mut self,
        resource: &ResourceTexts,
        family: &Family,
        p: &ExponentialHistogramDataPoint,
    ) -> Result<(), Refusal> {
        let row = histogram_row(p, &family.name)?;
        let (labels, origin) = self.labels(resource, family, &p.attributes)?;
        let (ms, start) = self.times(p.time_unix_nano, p.start_time_unix_nano)?;
        let id = self.series(&labels, &family.name, family, &origin);
        self.rows.histogram(id, ms, start, &row);
        for e in &p.exemplars {
            self.exemplar(id, ms, e)?;
        }
        Ok(())
    }

    fn target_info(&mut self, resource: &ResourceTexts) {
        let (Some((first, last)), true) = (self.seen_ms, resource.has_target_info) else { return };
        let mut labels = Labels::from_pairs(resource.target.iter().cloned());
        labels.set("__name__", "target_info");
        let origin = format!("{{{}}}", resource.origin.trim_end_matches(','));
        let meta = SeriesMeta {
            metric_type: Some("gauge"),
            help: Some("Target metadata"),
            origin: Some(&origin),
            ..SeriesMeta::default()
        };
        let id = self.rows.series(&labels, meta);
        let mut ms = last;
        for _ in 0..TARGET_INFO_SAMPLES_MAX {
            self.rows.sample(id, ms, None, 1.0);
            if ms <= first {
                break;
            }
            ms = (ms - TARGET_INFO_STEP_MS).max(first);
        }
    }

    fn flush(&mut self) {
        if !self.rows.is_empty() {
            self.out.batches.push(Data::Metrics(self.rows.finish()));
        }
    }
}

/// A point of an exponential histogram as a native one.
fn histogram_row(p: &ExponentialHistogramDataPoint, name: &str) -> Result<HistogramRow, Refusal> {
    check_scale(p).map_err(|(reason, message)| (reason, format!("{message} (metric {name:?})")))?;
    let shift = u32::try_from(p.scale - 8).unwrap_or(0);
    let wrong = || (Reason::InvalidMetric, format!("a bucket offset of {:?} is out of range", name));
    let (positive_offset, positive_counts) = buckets(p.positive.as_ref(), shift).ok_or_else(wrong)?;
    let (negative_offset, negative_counts) = buckets(p.negative.as_ref(), shift).ok_or_else(wrong)?;
    let stale = p.flags & NO_RECORDED_VALUE != 0;
    Ok(HistogramRow {
        schema: p.scale.min(8),
        zero_threshold: if p.zero_threshold == 0.0 { ZERO_THRESHOLD } else { p.zero_threshold },
        zero_count: p.zero_count as f64,
        count: p.count as f64,
        // A stale histogram is one with a stale sum (Prometheus).
        sum: if stale { STALE } else { p.sum.unwrap_or(0.0) },
        min: p.min,
        max: p.max,
        positive_offset,
        positive_counts,
        negative_offset,
        negative_counts,
        custom_bounds: None,
        reset_hint: 0,
        is_float: false,
    })
}

/// What [`HISTOGRAM`] says; its sum, minimum and maximum are the point's.
fn carried_histogram(text: &str) -> Option<HistogramRow> {
    let read = json::parse(text).ok()?;
    let int = |name: &str| i32::try_from(read.get(name)?.as_int()?).ok();
    let double = |v: &json::Value| if let json::Value::Double(d) = v { Some(*d) } else { None };
    let number = |name: &str| double(read.get(name)?);
    let list = |name: &str| match read.get(name)? {
        json::Value::Array(items) => items.iter().map(double).collect::<Option<Vec<f64>>>(),
        _ => None,
    };
    Some(HistogramRow {
        schema: int("schema")?,
        zero_threshold: number("zero_threshold")?,
        zero_count: number("zero_count")?,
        count: number("count")?,
        sum: 0.0,
        min: None,
        max: None,
        positive_offset: int("positive_offset")?,
        positive_counts: list("positive_counts")?,
        negative_offset: int("negative_offset")?,
        negative_counts: list("negative_counts")?,
        custom_bounds: list("custom_bounds"),
        reset_hint: int("reset_hint")?,
        is_float: matches!(read.get("is_float")?, json::Value::Bool(true)),
    })
}

/// Buckets of one side of a carried histogram, as remote write has it.
const CARRIED_BUCKETS_MAX: usize = 65_536;

/// Whether a carried histogram is one that could have come by remote write: what reads it relies on that.
fn is_sound(h: &HistogramRow) -> bool {
    let side = |offset: i32, counts: &[f64]| {
        let fits = i32::try_from(counts.len()).is_ok_and(|n| offset.checked_add(n).is_some());
        fits && counts.len() <= CARRIED_BUCKETS_MAX && counts.iter().all(|c| *c >= 0.0)
    };
    let form = match &h.custom_bounds {
        None => (-4..=8).contains(&h.schema),
        Some(bounds) => {
            let rising = bounds.windows(2).all(|w| w[0] < w[1]) && !bounds.iter().any(|b| b.is_nan());
            let end = h.positive_counts.len() + usize::try_from(h.positive_offset).unwrap_or(usize::MAX / 2);
            h.schema == -53
                && rising
                && bounds.last() != Some(&f64::INFINITY)
                && h.negative_counts.is_empty()
                && h.zero_count == 0.0
                && h.zero_threshold == 0.0
                && (h.positive_counts.is_empty() || end <= bounds.len() + 1)
        }
    };
    form && side(h.positive_offset, &h.positive_counts)
        && side(h.negative_offset, &h.negative_counts)
        && h.count >= 0.0
        && h.zero_count >= 0.0
        && h.zero_threshold >= 0.0
        && (0..=3).contains(&h.reset_hint)
}

/// The text of a metric's metadata entry.
fn metadata_text<'a>(m: &'a Metric, key: &str) -> Option<&'a str> {
    let found = m.metadata.iter().find(|kv| kv.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(s) => Some(s),
        _ => None,
    }
}

/// The members of a series' origin that all series of a metric share, and the end of the object. Keys are sorted.
fn family_origin(
    m: &Metric,
    data: &metric::Data,
    resource: &ResourceTexts,
    scope_origin: &str,
    delta: bool,
    limits: &Limits,
) -> String {
    let mut out = String::new();
    let kind = match data {
        metric::Data::Gauge(_) => "gauge",
        metric::Data::Sum(s) if s.is_monotonic => "monotonic_sum",
        metric::Data::Sum(_) => "sum",
        metric::Data::Histogram(_) => "histogram",
        metric::Data::ExponentialHistogram(_) => "exponential_histogram",
        metric::Data::Summary(_) => "summary",
    };
    out.push_str("\"kind\":");
    json::write_string(&mut out, kind);
    if !m.metadata.is_empty()
        && let Ok(metadata) = attributes_json(&m.metadata, limits)
    {
        out.push_str(",\"metadata\":");
        out.push_str(&metadata);
    }
    out.push_str(",\"name\":");
    json::write_string(&mut out, &m.name);
    out.push(',');
    out.push_str(&resource.origin);
    out.push_str(scope_origin);
    if delta {
        out.push_str("\"temporality\":\"delta\",");
    }
    out.push_str("\"unit\":");
    json::write_string(&mut out, &m.unit);
    out.push('}');
    out
}

/// A bound or quantile as label text: `0.5`, `1`, `+Inf`.
fn bound_text(v: f64) -> String {
    if v == f64::INFINITY {
        "+Inf".to_owned()
    } else if v == f64::NEG_INFINITY {
        "-Inf".to_owned()
    } else {
        v.to_string()
    }
}

/// OTLP buckets as Prometheus indexes them (one higher: upper instead of lower bounds), merged down by `shift` scales.
/// `None`: an index leaves i32.
fn buckets(sent: Option<&Buckets>, shift: u32) -> Option<(i32, Vec<f64>)> {
    let Some(sent) = sent.filter(|b| !b.bucket_counts.is_empty()) else { return Some((0, Vec::new())) };
    let index = |i: usize| (i64::from(sent.offset) + i as i64) >> shift.min(62);
    let first = index(0);
    let mut counts = vec![0.0; usize::try_from(index(sent.bucket_counts.len() - 1) - first).ok()? + 1];
    for (i, count) in sent.bucket_counts.iter().enumerate() {
        counts[usize::try_from(index(i) - first).ok()?] += *count as f64;
    }
    Some((i32::try_from(first + 1).ok()?, counts))
}
