//! What is generated: realistic logs, points and spans, each a function of seed and number alone.

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    metrics::v1::{Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status},
};
use storage::model::{Labels, MetricBatch, MetricBatchBuilder, batch::SeriesMeta};

const SERVICES: [&str; 12] = [
    "checkout", "cart", "catalog", "payment", "shipping", "search", "login", "mail", "stock", "price", "gateway",
    "report",
];
const PATHS: [&str; 8] =
    ["/cart", "/cart/items", "/checkout", "/products", "/products/search", "/login", "/orders", "/health"];
const METHODS: [&str; 4] = ["GET", "GET", "POST", "PUT"];

/// How many streams, series and services there are.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub seed: u64,
    pub services: u64,
    pub streams: u64,
    pub series: u64,
}

/// One log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub ts: u64,
    pub stream: u64,
    pub service: String,
    pub instance: String,
    pub level: &'static str,
    pub text: String,
    pub trace_id: Option<[u8; 16]>,
}

/// What is measured of one series at one time.
struct Measured {
    series: u64,
    instance: u64,
    round: u64,
    /// A counter's total, else a gauge's value.
    value: number_data_point::Value,
}

/// A number spread over all 64 bits (SplitMix64's finish).
pub fn mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn pick<T: Copy>(from: &[T], by: u64) -> T {
    from[(by % from.len() as u64) as usize]
}

/// `checkout`, and past the dozen names `checkout-2` and on.
fn service(n: u64) -> String {
    let (name, round) = (pick(&SERVICES, n), n / SERVICES.len() as u64);
    if round == 0 { name.to_owned() } else { format!("{name}-{}", round + 1) }
}

impl Shape {
    /// Log line number `n`. It ends in ` seq=n`.
    pub fn line(&self, n: u64, ts: u64) -> Line {
        let (a, b) = (mix(self.seed, n), mix(!self.seed, n));
        let stream = a % self.streams.max(1);
        let (path, method, ms) = (pick(&PATHS, b), pick(&METHODS, b >> 8), b >> 16 & 0x3ff);
        let trace = self.trace_id(n / 4);
        let (level, text, trace_id) = match a >> 32 & 0xff {
            0..=159 => {
                let status = if b >> 40 & 0x3f == 0 { 500 } else { 200 };
                let ip = format!("10.{}.{}.{}", b >> 24 & 0x0f, b >> 28 & 0xff, b >> 36 & 0xff);
                (
                    "info",
                    format!("{ip} \"{method} {path} HTTP/1.1\" {status} {} {ms}ms", b >> 20 & 0xffff),
                    Some(trace),
                )
            }
            160..=214 => (
                "info",
                format!("order {:08x} of customer {} placed, {} items", b as u32, b >> 32 & 0xffff, ms % 12 + 1),
                Some(trace),
            ),
            215..=239 => {
                ("debug", format!("cache miss for key user:{}:profile, loaded in {ms}ms", b >> 32 & 0xf_ffff), None)
            }
            240..=250 => (
                "warn",
                format!(
                    "slow query took {}ms: select * from orders where customer_id = {}",
                    ms * 7,
                    b >> 32 & 0xffff
                ),
                None,
            ),
            _ => (
                "error",
                format!("connection to db-{}.internal:5432 refused, attempt {} of 5", b & 7, ms % 5 + 1),
                Some(trace),
            ),
        };
        Line {
            ts,
            stream,
            service: service(stream % self.services.max(1)),
            instance: format!("pod-{stream}"),
            level,
            text: format!("{text} seq={n}"),
            trace_id,
        }
    }

    pub fn logs(&self, lines: &[Line]) -> ExportLogsServiceRequest {
        let mut by_stream: Vec<(u64, ResourceLogs)> = Vec::new();
        let mut order: Vec<&Line> = lines.iter().collect();
        order.sort_by_key(|l| l.stream);
        for line in order {
            if by_stream.last().is_none_or(|(s, _)| *s != line.stream) {
                let scope_logs = vec![ScopeLogs { scope: Some(scope()), ..ScopeLogs::default() }];
                let resource = Some(resource(&line.service, &line.instance));
                by_stream.push((line.stream, ResourceLogs { resource, scope_logs, ..ResourceLogs::default() }));
            }
            let Some((_, at)) = by_stream.last_mut() else { continue };
            at.scope_logs[0].log_records.push(LogRecord {
                time_unix_nano: line.ts,
                severity_number: match line.level {
                    "debug" => 5,
                    "info" => 9,
                    "warn" => 13,
                    _ => 17,
                },
                severity_text: line.level.to_owned(),
                body: Some(text(&line.text)),
                trace_id: line.trace_id.map(|t| t.to_vec()).unwrap_or_default(),
                ..LogRecord::default()
            });
        }
        ExportLogsServiceRequest { resource_logs: by_stream.into_iter().map(|(_, r)| r).collect() }
    }

    /// Point number `n`: every series once a round. The even series are counters, whose value is their round times a step;
    /// the odd ones gauges that wander about. Sixteen series an instance.
    fn measured(&self, n: u64) -> Measured {
        let count = self.series.max(1);
        let (series, round) = (n % count, n / count);
        let value = if series.is_multiple_of(2) {
            let step = mix(self.seed, series) % 20 + 1;
            number_data_point::Value::AsInt((round * step) as i64)
        } else {
            let base = mix(self.seed, series) % 1_000_000;
            let wander = mix(self.seed ^ series, round) % 1_000;
            number_data_point::Value::AsDouble((base + wander) as f64 / 8.0)
        };
        Measured { series, instance: series / 16, round, value }
    }

    /// Labels of a point beside those of its instance.
    fn labels_of(series: u64) -> [(&'static str, String); 3] {
        [
            ("path", pick(&PATHS, series / 2).to_owned()),
            ("method", METHODS[(series / 16 % 4) as usize].to_owned()),
            ("series", series.to_string()),
        ]
    }

    /// Points number `first` to `first + count` as Prometheus has them, under the names and labels that OTLP's get.
    pub fn samples(&self, first: u64, count: u64, ts: impl Fn(u64) -> u64) -> MetricBatch {
        let mut out = MetricBatchBuilder::default();
        for n in first..first + count {
            let m = self.measured(n);
            let (name, kind, unit, value) = match m.value {
                number_data_point::Value::AsInt(total) => ("generated_requests_total", "counter", None, total as f64),
                number_data_point::Value::AsDouble(value) => {
                    ("generated_memory_bytes", "gauge", Some("bytes"), value)
                }
            };
            let service = service(m.instance % self.services.max(1));
            let mut labels: Vec<(&str, String)> = Self::labels_of(m.series).into();
            labels.extend([
                ("__name__", name.to_owned()),
                ("job", service.clone()),
                ("service_name", service),
                ("instance", format!("pod-{}", m.instance)),
                ("service_instance_id", format!("pod-{}", m.instance)),
            ]);
            let meta = SeriesMeta { metric_type: Some(kind), unit, ..SeriesMeta::default() };
            let id = out.series(&Labels::from_pairs(labels), meta);
            let ms = ts(m.round * self.series.max(1)) / 1_000_000;
            out.sample(id, i64::try_from(ms).unwrap_or(i64::MAX), None, value);
        }
        out.finish()
    }

    /// Points number `first` to `first + count`, all of a round at its time.
    pub fn points(&self, first: u64, count: u64, ts: impl Fn(u64) -> u64) -> ExportMetricsServiceRequest {
        let series = self.series.max(1);
        let mut resource_metrics: Vec<ResourceMetrics> = Vec::new();
        let mut last_instance = None;
        for n in first..first + count {
            let Measured { series: s, instance, round, value } = self.measured(n);
            if last_instance != Some(instance) {
                last_instance = Some(instance);
                let resource = Some(resource(&service(instance % self.services.max(1)), &format!("pod-{instance}")));
                let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), ..ScopeMetrics::default() }];
                resource_metrics.push(ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() });
            }
            let Some(at) = resource_metrics.last_mut() else { continue };
            let counts = matches!(value, number_data_point::Value::AsInt(_));
            let data_points = vec![NumberDataPoint {
                attributes: Self::labels_of(s).iter().map(|(name, value)| pair(name, value)).collect(),
                time_unix_nano: ts(round * series),
                value: Some(value),
                ..NumberDataPoint::default()
            }];
            let (name, unit, data) = if counts {
                let sum = Sum { data_points, aggregation_temporality: 2, is_monotonic: true };
                ("generated.requests", "", metric::Data::Sum(sum))
            } else {
                ("generated.memory", "By", metric::Data::Gauge(Gauge { data_points }))
            };
            at.scope_metrics[0].metrics.push(Metric {
                name: name.to_owned(),
                unit: unit.to_owned(),
                data: Some(data),
                ..Metric::default()
            });
        }
        ExportMetricsServiceRequest { resource_metrics }
    }

    /// Eight spans a trace: a request that passes four services. Each has its number as attribute `seq`.
    pub fn spans(&self, first: u64, count: u64, ts: impl Fn(u64) -> u64) -> ExportTraceServiceRequest {
        let mut resource_spans: Vec<ResourceSpans> = Vec::new();
        for n in first..first + count {
            let (trace, k) = (n / SPANS_PER_TRACE, n % SPANS_PER_TRACE);
            let at = mix(self.seed, trace);
            let name = service((at >> 8).wrapping_add(k / 2) % self.services.max(1));
            let id = |k: u64| (mix(self.seed ^ 0x5fa9, trace * SPANS_PER_TRACE + k) | 1).to_be_bytes().to_vec();
            // Two spans a service: what it serves, and what it asks of the next one.
            let length = (40_000_000 + at % 400_000_000) >> k;
            let start = ts(trace * SPANS_PER_TRACE) + k * 1_000_000;
            let failed = at >> 40 & 0x1f == 0 && k >= 6;
            let span = Span {
                trace_id: self.trace_id(trace).to_vec(),
                span_id: id(k),
                parent_span_id: if k == 0 { Vec::new() } else { id(k - 1) },
                name: format!("{} {}", pick(&METHODS, at >> 20), pick(&PATHS, at >> 24)),
                kind: if k.is_multiple_of(2) { 2 } else { 3 },
                start_time_unix_nano: start,
                end_time_unix_nano: start + length,
                attributes: vec![
                    pair("http.request.method", pick(&METHODS, at >> 20)),
                    pair("http.route", pick(&PATHS, at >> 24)),
                    KeyValue {
                        key: "seq".to_owned(),
                        value: Some(AnyValue { value: Some(any_value::Value::IntValue(n as i64)) }),
                        ..KeyValue::default()
                    },
                ],
                status: Some(Status { code: if failed { 2 } else { 0 }, ..Status::default() }),
                ..Span::default()
            };
            let resource = Some(resource(&name, &format!("pod-{}", at % 64)));
            let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans: vec![span], ..ScopeSpans::default() }];
            match resource_spans.last_mut() {
                Some(last) if last.resource == resource => {
                    last.scope_spans[0].spans.extend(scope_spans.into_iter().flat_map(|s| s.spans))
                }
                _ => resource_spans.push(ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }),
            }
        }
        ExportTraceServiceRequest { resource_spans }
    }

    fn trace_id(&self, trace: u64) -> [u8; 16] {
        let (a, b) = (mix(self.seed ^ 0x7ace, trace), mix(!self.seed, trace) | 1);
        ((u128::from(a) << 64) | u128::from(b)).to_be_bytes()
    }
}

pub const SPANS_PER_TRACE: u64 = 8;

fn text(value: &str) -> AnyValue {
    AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) }
}

fn pair(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(text(value)), ..KeyValue::default() }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "sightline.generate".to_owned(), ..InstrumentationScope::default() }
}

fn resource(service: &str, instance: &str) -> Resource {
    Resource {
        attributes: vec![pair("service.name", service), pair("service.instance.id", instance)],
        ..Resource::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SHAPE: Shape = Shape { seed: 7, services: 5, streams: 20, series: 100 };

    #[test]
    fn the_same_seed_gives_the_same_data_and_another_one_gives_others() {
        assert_eq!(SHAPE.line(3, 1), SHAPE.line(3, 1));
        assert_eq!(SHAPE.points(0, 300, |n| n), SHAPE.points(0, 300, |n| n));
        assert_eq!(SHAPE.spans(0, 80, |n| n), SHAPE.spans(0, 80, |n| n));
        assert_ne!(SHAPE.line(3, 1), Shape { seed: 8, ..SHAPE }.line(3, 1));
    }

    #[test]
    fn there_are_as_many_streams_and_series_as_asked_for_and_every_line_has_its_number() {
        let lines: Vec<Line> = (0..2_000).map(|n| SHAPE.line(n, n)).collect();
        assert_eq!(lines.iter().map(|l| &l.instance).collect::<BTreeSet<_>>().len(), 20);
        assert_eq!(lines.iter().map(|l| &l.service).collect::<BTreeSet<_>>().len(), 5);
        assert!(lines.iter().enumerate().all(|(n, l)| l.text.ends_with(&format!(" seq={n}"))));
        let sent = SHAPE.logs(&lines);
        assert_eq!(sent.resource_logs.len(), 20);
        let points = SHAPE.points(0, 250, |n| n);
        let metrics: Vec<_> = points.resource_metrics.iter().flat_map(|r| &r.scope_metrics[0].metrics).collect();
        assert_eq!(metrics.len(), 250);
    }

    /// Series without what only OTLP tells, and their samples.
    fn rows(batches: &[MetricBatch]) -> BTreeSet<String> {
        use arrow::{
            array::AsArray as _,
            datatypes::{Float64Type, Int64Type},
        };
        let mut out = BTreeSet::new();
        for batch in batches {
            let ids = |b: &arrow::array::RecordBatch| b["series_id"].as_primitive::<Int64Type>().values().to_vec();
            let texts = |name: &str| {
                let plain = arrow::compute::cast(&batch.series[name], &arrow::datatypes::DataType::Utf8).unwrap();
                plain.as_string::<i32>().iter().map(|t| t.unwrap_or("").to_owned()).collect::<Vec<String>>()
            };
            let (labels, kinds, units) = (texts("labels"), texts("type"), texts("unit"));
            let series: Vec<i64> = ids(&batch.series);
            for (row, id) in ids(&batch.samples).iter().enumerate() {
                let at = series.iter().position(|s| s == id).unwrap();
                let ts = batch.samples["ts_ms"].as_primitive::<Int64Type>().value(row);
                let value = batch.samples["value"].as_primitive::<Float64Type>().value(row);
                if !labels[at].contains("target_info") {
                    out.insert(format!("{} {} {} {ts} {value:?}", labels[at], kinds[at], units[at]));
                }
            }
        }
        out
    }

    #[test]
    fn samples_are_the_points_as_an_otlp_receiver_names_them() {
        use pipeline::{Data, codec::otlp::decode_metrics};
        use prost::Message as _;
        let ts = |n: u64| 1_700_000_000_000_000_000 + n * 1_000_000;
        let sent = SHAPE.points(50, 250, ts).encode_to_vec();
        let decoded = decode_metrics(&sent, &Default::default(), 1_700_000_001_000_000_000, None).unwrap();
        let batches: Vec<MetricBatch> = decoded
            .batches
            .into_iter()
            .map(|b| match b {
                Data::Metrics(m) => m,
                _ => panic!("metrics only"),
            })
            .collect();
        let samples = rows(&[SHAPE.samples(50, 250, ts)]);
        assert_eq!(samples.len(), 250);
        assert_eq!(samples, rows(&batches));
    }

    #[test]
    fn spans_of_a_trace_hang_together() {
        let request = SHAPE.spans(8, 8, |n| n);
        let spans: Vec<&Span> = request.resource_spans.iter().flat_map(|r| &r.scope_spans[0].spans).collect();
        assert_eq!(spans.len(), 8);
        assert!(spans[0].parent_span_id.is_empty());
        assert!(spans.windows(2).all(|w| w[1].parent_span_id == w[0].span_id && w[1].trace_id == w[0].trace_id));
    }
}
