//! Formats in which scrapers take metrics: text 0.0.4, OpenMetrics, protobuf; and names as older scrapers can read them.
//! Source: the Prometheus and OpenMetrics exposition formats.

use std::fmt::Write as _;

use axum::http::HeaderMap;
use prost::Message;
use storage::model::batch::HistogramRow;

use super::remote_read::{chunk, wire::BucketSpan};
use crate::promql::format_float;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    OpenMetrics,
    Protobuf,
}

/// What becomes of names that are not `[a-zA-Z_:][a-zA-Z0-9_:]*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escaping {
    AllowUtf8,
    Underscores,
    Dots,
    Values,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exposition {
    pub format: Format,
    /// `version=` of the format; empty where it has none.
    version: &'static str,
    pub escaping: Escaping,
    /// Whether the client spoke of escaping.
    escaping_told: bool,
}

const TEXT: Exposition =
    Exposition { format: Format::Text, version: "0.0.4", escaping: Escaping::Underscores, escaping_told: false };

/// Formats of an `Accept` header that are looked at.
const ACCEPT_MAX: usize = 32;

impl Exposition {
    /// The format that the client likes best of those there are; of equal ones its first. Text if none.
    pub fn negotiated(headers: &HeaderMap) -> Self {
        let all = headers.get_all("accept").iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
        let mut best: Option<(f64, Exposition)> = None;
        for entry in all.take(ACCEPT_MAX) {
            let Some((q, found)) = accepted(entry) else { continue };
            if q > 0.0 && best.is_none_or(|(b, _)| q > b) {
                best = Some((q, found));
            }
        }
        best.map_or(TEXT, |(_, e)| e)
    }

    pub fn content_type(&self) -> String {
        let mut out = match self.format {
            Format::Text => format!("text/plain; version={}; charset=utf-8", self.version),
            Format::OpenMetrics => {
                format!("application/openmetrics-text; version={}; charset=utf-8", self.version)
            }
            Format::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
                    .to_owned()
            }
        };
        if self.escaping_told {
            out.push_str(match self.escaping {
                Escaping::AllowUtf8 => "; escaping=allow-utf-8",
                Escaping::Underscores => "; escaping=underscores",
                Escaping::Dots => "; escaping=dots",
                Escaping::Values => "; escaping=values",
            });
        }
        out
    }

    /// A metric or label name in a form that the client reads.
    pub fn name(&self, name: &str) -> String {
        escaped(name, self.escaping)
    }
}

/// One entry of `Accept` with its weight, if it is a format that we have.
fn accepted(entry: &str) -> Option<(f64, Exposition)> {
    let mut pieces = entry.split(';').map(str::trim);
    let media = pieces.next()?.to_ascii_lowercase();
    let (mut q, mut version, mut proto, mut encoding, mut escaping) = (1.0, "", "", "", None);
    for piece in pieces {
        let (name, value) = piece.split_once('=')?;
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "q" => q = value.parse().ok()?,
            "version" => version = value,
            "proto" => proto = value,
            "encoding" => encoding = value,
            "escaping" => escaping = Some(value),
            _ => {}
        }
    }
    let (format, version) = match (media.as_str(), version) {
        ("application/openmetrics-text", "" | "1.0.0") => (Format::OpenMetrics, "1.0.0"),
        ("application/openmetrics-text", "0.0.1") => (Format::OpenMetrics, "0.0.1"),
        ("text/plain", "" | "0.0.4") | ("*/*" | "text/*", _) => (Format::Text, "0.0.4"),
        ("text/plain", "1.0.0") => (Format::Text, "1.0.0"),
        ("application/vnd.google.protobuf", _)
            if proto == "io.prometheus.client.MetricFamily" && encoding == "delimited" =>
        {
            (Format::Protobuf, "")
        }
        _ => return None,
    };
    let escaping_told = escaping.is_some();
    let escaping = match escaping {
        Some("allow-utf-8") => Escaping::AllowUtf8,
        Some("dots") => Escaping::Dots,
        Some("values") => Escaping::Values,
        _ => Escaping::Underscores,
    };
    Some((q, Exposition { format, version, escaping, escaping_told }))
}

/// Whether older scrapers read the name.
fn is_plain(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    !name.is_empty() && name.chars().all(ok) && !name.starts_with(|c: char| c.is_ascii_digit())
}

fn escaped(name: &str, how: Escaping) -> String {
    let valid = |i: usize, c: char| c.is_ascii_alphabetic() || c == '_' || c == ':' || (c.is_ascii_digit() && i > 0);
    let each = |f: &dyn Fn(char, bool) -> String| name.chars().enumerate().map(|(i, c)| f(c, valid(i, c))).collect();
    match how {
        Escaping::AllowUtf8 => name.to_owned(),
        // Dots are told from underscores, so names without dots change too.
        Escaping::Dots => each(&|c, valid| match c {
            '_' => "__".to_owned(),
            '.' => "_dot_".to_owned(),
            c if valid => c.to_string(),
            _ => "__".to_owned(),
        }),
        _ if is_plain(name) => name.to_owned(),
        Escaping::Underscores => each(&|c, valid| if valid { c.to_string() } else { "_".to_owned() }),
        Escaping::Values => {
            let text: String = each(&|c, valid| match c {
                '_' => "__".to_owned(),
                c if valid => c.to_string(),
                c => format!("_{:x}_", u32::from(c)),
            });
            format!("U__{text}")
        }
    }
}

/// A metric of a family: its labels without the name, its time and its value.
pub struct Exposed<'a> {
    pub labels: &'a [(String, String)],
    pub ts_ms: i64,
    pub value: Value<'a>,
}

#[derive(Clone, Copy)]
pub enum Value<'a> {
    Untyped(f64),
    /// Shown in protobuf as it is; with custom bounds everywhere as a classic histogram.
    Histogram(&'a HistogramRow),
}

const SCHEMA_CUSTOM: i32 = -53;

fn is_classic(h: &HistogramRow) -> bool {
    h.schema == SCHEMA_CUSTOM
}

/// Writes families of metrics one after another.
pub struct Writer {
    how: Exposition,
    pub out: Vec<u8>,
}

impl Writer {
    pub fn new(how: Exposition) -> Self {
        Writer { how, out: Vec::new() }
    }

    /// Whether the format has a form for the value.
    pub fn can_show(&self, value: Value<'_>) -> bool {
        match value {
            Value::Untyped(_) => true,
            Value::Histogram(h) => self.how.format == Format::Protobuf || is_classic(h),
        }
    }

    /// One family: metrics of one name and one type.
    pub fn family(&mut self, name: &str, metrics: &[Exposed<'_>]) {
        let Some(first) = metrics.first() else { return };
        if self.how.format == Format::Protobuf {
            let family = proto::family(&self.how, name, metrics);
            // A vector always has room.
            let _ = family.encode_length_delimited(&mut self.out);
            return;
        }
        let mut text = String::new();
        let name = self.how.name(name);
        let kind = match (first.value, self.how.format) {
            (Value::Histogram(_), _) => "histogram",
            (Value::Untyped(_), Format::OpenMetrics) => "unknown",
            (Value::Untyped(_), _) => "untyped",
        };
        let shown = if is_plain(&name) { name.clone() } else { quoted(&name) };
        let _ = writeln!(text, "# TYPE {shown} {kind}");
        for m in metrics {
            match m.value {
                Value::Untyped(v) => self.line(&mut text, &name, m, None, v),
                Value::Histogram(h) => {
                    for (bound, count) in cumulative(h) {
                        self.line(&mut text, &format!("{name}_bucket"), m, Some(&format_float(bound)), count);
                    }
                    self.line(&mut text, &format!("{name}_sum"), m, None, h.sum);
                    self.line(&mut text, &format!("{name}_count"), m, None, h.count);
                }
            }
        }
        self.out.extend_from_slice(text.as_bytes());
    }

    fn line(&self, out: &mut String, name: &str, m: &Exposed<'_>, le: Option<&str>, value: f64) {
        let mut inside: Vec<String> = Vec::new();
        if is_plain(name) {
            out.push_str(name);
        } else {
            inside.push(quoted(name));
        }
        let labels = m.labels.iter().map(|(n, v)| (self.how.name(n), v.as_str()));
        for (label, value) in labels.chain(le.map(|b| ("le".to_owned(), b))) {
            // Labels have no colons in their names.
            let label = if is_plain(&label) && !label.contains(':') { label } else { quoted(&label) };
            inside.push(format!("{label}={}", quoted(value)));
        }
        if !inside.is_empty() {
            let _ = write!(out, "{{{}}}", inside.join(","));
        }
        let _ = write!(out, " {} ", format_float(value));
        match self.how.format {
            Format::OpenMetrics => crate::http::encode::write_time(out, m.ts_ms),
            _ => out.push_str(&m.ts_ms.to_string()),
        }
        out.push('\n');
    }

    pub fn finish(mut self) -> Vec<u8> {
        if self.how.format == Format::OpenMetrics {
            self.out.extend_from_slice(b"# EOF\n");
        }
        self.out
    }
}

/// Upper bounds of a custom histogram with how much is up to each.
fn cumulative(h: &HistogramRow) -> Vec<(f64, f64)> {
    let bounds = h.custom_bounds.as_deref().unwrap_or_default();
    let mut total = 0.0;
    let at = |i: usize| usize::try_from(i as i64 - i64::from(h.positive_offset)).ok();
    let mut out: Vec<(f64, f64)> = bounds
        .iter()
        .enumerate()
        .map(|(i, bound)| {
            total += at(i).and_then(|i| h.positive_counts.get(i)).copied().unwrap_or(0.0);
            (*bound, total)
        })
        .collect();
    out.push((f64::INFINITY, h.count));
    out
}

/// A label value, or a name that is not plain.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// Messages of `io.prometheus.client`, as far as they are written here.
mod proto {
    use super::*;

    #[derive(Clone, PartialEq, Message)]
    pub struct MetricFamily {
        #[prost(string, optional, tag = "1")]
        name: Option<String>,
        #[prost(int32, optional, tag = "3")]
        kind: Option<i32>,
        #[prost(message, repeated, tag = "4")]
        metric: Vec<Metric>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Metric {
        #[prost(message, repeated, tag = "1")]
        label: Vec<LabelPair>,
        #[prost(message, optional, tag = "5")]
        untyped: Option<Untyped>,
        #[prost(int64, optional, tag = "6")]
        timestamp_ms: Option<i64>,
        #[prost(message, optional, tag = "7")]
        histogram: Option<Histogram>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct LabelPair {
        #[prost(string, optional, tag = "1")]
        name: Option<String>,
        #[prost(string, optional, tag = "2")]
        value: Option<String>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Untyped {
        #[prost(double, optional, tag = "1")]
        value: Option<f64>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Bucket {
        #[prost(uint64, optional, tag = "1")]
        cumulative_count: Option<u64>,
        #[prost(double, optional, tag = "2")]
        upper_bound: Option<f64>,
        #[prost(double, optional, tag = "4")]
        cumulative_count_float: Option<f64>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Histogram {
        #[prost(uint64, optional, tag = "1")]
        sample_count: Option<u64>,
        #[prost(double, optional, tag = "4")]
        sample_count_float: Option<f64>,
        #[prost(double, optional, tag = "2")]
        sample_sum: Option<f64>,
        #[prost(message, repeated, tag = "3")]
        bucket: Vec<Bucket>,
        #[prost(sint32, optional, tag = "5")]
        schema: Option<i32>,
        #[prost(double, optional, tag = "6")]
        zero_threshold: Option<f64>,
        #[prost(uint64, optional, tag = "7")]
        zero_count: Option<u64>,
        #[prost(double, optional, tag = "8")]
        zero_count_float: Option<f64>,
        #[prost(message, repeated, tag = "9")]
        negative_span: Vec<BucketSpan>,
        #[prost(sint64, repeated, packed = "false", tag = "10")]
        negative_delta: Vec<i64>,
        #[prost(double, repeated, packed = "false", tag = "11")]
        negative_count: Vec<f64>,
        #[prost(message, repeated, tag = "12")]
        positive_span: Vec<BucketSpan>,
        #[prost(sint64, repeated, packed = "false", tag = "13")]
        positive_delta: Vec<i64>,
        #[prost(double, repeated, packed = "false", tag = "14")]
        positive_count: Vec<f64>,
    }

    const UNTYPED: i32 = 3;
    const HISTOGRAM: i32 = 4;
    const GAUGE_HISTOGRAM: i32 = 5;

    pub fn family(how: &Exposition, name: &str, metrics: &[Exposed<'_>]) -> MetricFamily {
        let kind = match metrics.first().map(|m| m.value) {
            Some(Value::Histogram(h)) if h.reset_hint == 3 => GAUGE_HISTOGRAM,
            Some(Value::Histogram(_)) => HISTOGRAM,
            _ => UNTYPED,
        };
        MetricFamily {
            name: Some(how.name(name)),
            kind: Some(kind),
            metric: metrics.iter().map(|m| metric(how, m)).collect(),
        }
    }

    fn metric(how: &Exposition, m: &Exposed<'_>) -> Metric {
        let label =
            m.labels.iter().map(|(n, v)| LabelPair { name: Some(how.name(n)), value: Some(v.clone()) }).collect();
        let (untyped, histogram) = match m.value {
            Value::Untyped(v) => (Some(Untyped { value: Some(v) }), None),
            Value::Histogram(h) if is_classic(h) => (None, Some(classic(h))),
            Value::Histogram(h) => (None, Some(native(h))),
        };
        Metric { label, untyped, timestamp_ms: Some(m.ts_ms), histogram }
    }

    fn classic(h: &HistogramRow) -> Histogram {
        let bucket = cumulative(h).into_iter().map(|(bound, count)| Bucket {
            cumulative_count: (!h.is_float).then_some(count as u64),
            cumulative_count_float: h.is_float.then_some(count),
            upper_bound: Some(bound),
        });
        Histogram {
            sample_count: (!h.is_float).then_some(h.count as u64),
            sample_count_float: h.is_float.then_some(h.count),
            sample_sum: Some(h.sum),
            bucket: bucket.collect(),
            ..Histogram::default()
        }
    }

    fn native(h: &HistogramRow) -> Histogram {
        let m = chunk::message(0, h);
        let mut positive_span = m.positive_spans;
        if positive_span.is_empty() && m.negative_spans.is_empty() {
            // Tells an empty native histogram from a classic one.
            positive_span.push(BucketSpan { offset: 0, length: 0 });
        }
        Histogram {
            sample_count: m.count_int,
            sample_count_float: m.count_float,
            sample_sum: Some(h.sum),
            bucket: Vec::new(),
            schema: Some(h.schema),
            zero_threshold: Some(h.zero_threshold),
            zero_count: m.zero_count_int,
            zero_count_float: m.zero_count_float,
            negative_span: m.negative_spans,
            negative_delta: m.negative_deltas,
            negative_count: m.negative_counts,
            positive_span,
            positive_delta: m.positive_deltas,
            positive_count: m.positive_counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiated(accept: &str) -> Exposition {
        let mut headers = HeaderMap::new();
        headers.insert("accept", accept.parse().unwrap());
        Exposition::negotiated(&headers)
    }

    #[test]
    fn the_format_liked_best_is_given() {
        assert_eq!(Exposition::negotiated(&HeaderMap::new()), TEXT);
        for (accept, format, content) in [
            ("text/html,*/*;q=0.8", Format::Text, "text/plain; version=0.0.4; charset=utf-8"),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            ),
            (
                "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3",
                Format::Text,
                "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,text/plain;q=0.5",
                Format::Protobuf,
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
            ),
            ("application/json", Format::Text, "text/plain; version=0.0.4; charset=utf-8"),
            (
                "application/openmetrics-text;q=0,text/plain;q=0.1",
                Format::Text,
                "text/plain; version=0.0.4; charset=utf-8",
            ),
        ] {
            let found = negotiated(accept);
            assert_eq!((found.format, found.content_type().as_str()), (format, content), "{accept}");
        }
    }

    #[test]
    fn names_are_escaped_as_they_are_asked_for() {
        for (name, underscores, dots, values) in [
            ("http.status", "http_status", "http_dot_status", "U__http_2e_status"),
            ("a_b", "a_b", "a__b", "a_b"),
            ("1é", "__", "____", "U___31__e9_"),
        ] {
            assert_eq!(escaped(name, Escaping::Underscores), underscores);
            assert_eq!(escaped(name, Escaping::Dots), dots);
            assert_eq!(escaped(name, Escaping::Values), values);
            assert_eq!(escaped(name, Escaping::AllowUtf8), name);
        }
    }
}
