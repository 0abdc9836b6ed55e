//! What a scraped target says: Prometheus text 0.0.4, OpenMetrics text 1.0 and delimited protobuf, one sample at a time.
//!
//! **For** a scraper. **Not for** asking (HTTP) or for what becomes of samples: labels are given as exposed, relabelling,
//! staleness and limits are the scraper's. A body is walked where it lies; nothing is allocated for a sample but what has
//! escapes in it. A body with an error anywhere is an error, as in Prometheus, told with its line: what was given before it
//! must not be kept.
//!
//! Values of `le` (histograms) and `quantile` (summaries) are normalised to a float's text (`1` to `1.0`) as in
//! Prometheus 3, and a value that is any NaN becomes the one NaN that is no stale marker.

mod custom_buckets;
mod float;
mod lexer;
mod negotiate;
mod openmetrics;
mod protobuf;
mod text;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use storage::model::batch::HistogramRow;

pub use float::write_float;
pub use negotiate::{Format, FormatError, Protocol, accept, format_of};

/// Why a body cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place} {at}: {message}")]
pub struct DecodeError {
    /// `line` or, in protobuf, `metric family`.
    pub place: &'static str,
    /// From 1.
    pub at: usize,
    pub message: String,
}

/// What a format leaves to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Take native histograms (protobuf). Without it, their classic part.
    pub native: bool,
    /// Of a histogram that is both, or converted, take the classic part as well.
    pub classic_too: bool,
    /// Make classic histograms that are not native too native ones with custom buckets.
    pub custom_buckets: bool,
}

/// What was read beside samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Classic histograms that [`Options::custom_buckets`] could not convert, and that were taken as they are.
    pub not_converted: u64,
}

/// A name and its value.
pub type Label<'a> = (Cow<'a, str>, Cow<'a, str>);

/// A metric family as it is told before its samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Family<'a> {
    pub name: Cow<'a, str>,
    /// Prometheus' name of the type.
    pub metric_type: Option<&'static str>,
    pub help: Option<Cow<'a, str>>,
    pub unit: Option<Cow<'a, str>>,
}

impl Family<'_> {
    /// Whether a series of this name belongs to the family: it bears its name, or that with a suffix of its type.
    pub fn has(&self, series: &str) -> bool {
        let Some(suffix) = series.strip_prefix(&*self.name) else { return false };
        let suffixes: &[&str] = match self.metric_type {
            Some("counter") => &["_total", "_created"],
            Some("histogram") => &["_bucket", "_sum", "_count", "_created"],
            Some("gaugehistogram") => &["_bucket", "_gsum", "_gcount", "_sum", "_count"],
            Some("summary") => &["_sum", "_count", "_created"],
            Some("info") => &["_info"],
            _ => &[],
        };
        suffix.is_empty() || suffixes.contains(&suffix)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Exemplar<'a> {
    pub labels: Vec<Label<'a>>,
    pub value: f64,
    pub ts_ms: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Point<'a> {
    Value(f64),
    Histogram(&'a HistogramRow),
}

/// One sample of one series.
#[derive(Debug)]
pub struct Sample<'a> {
    /// The series as it is written. Equal keys from bodies of one format are one series.
    pub key: &'a [u8],
    /// As exposed: `__name__` first, values may be empty, names may repeat.
    pub labels: &'a [Label<'a>],
    pub point: Point<'a>,
    pub ts_ms: Option<i64>,
    /// Since when a counter counts, where the format tells.
    pub start_ms: Option<i64>,
    pub exemplars: &'a [Exemplar<'a>],
    /// `None`: nothing was told of it.
    pub family: Option<&'a Family<'a>>,
}

/// Reads a body. `take` gets each sample in its order and may end the reading with an error of its own.
pub fn decode<E: From<DecodeError>>(
    body: &[u8],
    format: Format,
    options: Options,
    take: &mut dyn FnMut(&Sample<'_>) -> Result<(), E>,
) -> Result<Read, E> {
    match format {
        Format::Text => text::decode(utf8(body)?, options, take),
        Format::OpenMetrics => openmetrics::decode(utf8(body)?, options, take),
        Format::Protobuf => protobuf::decode(body, options, take),
    }
}

fn utf8(body: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(body).map_err(|e| {
        let line = memchr::memchr_iter(b'\n', &body[..e.valid_up_to()]).count() + 1;
        DecodeError { place: "line", at: line, message: "invalid UTF-8".to_owned() }
    })
}
