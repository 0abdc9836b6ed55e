//! Messages of remote read. Source: Prometheus' `remote.proto` and `types.proto`.

use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

/// How much a [`ReadRequest`] says that there is, counted before anything is made of it: two bytes may stand for a query.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parts {
    pub queries: usize,
    /// Of all queries.
    pub matchers: usize,
    /// At most; in bytes where they are packed.
    pub types: usize,
}

impl Parts {
    pub fn of(mut request: &[u8]) -> Result<Parts, String> {
        let mut parts = Parts::default();
        while let Some((tag, mut field)) = next(&mut request)? {
            match tag {
                1 => {
                    parts.queries += 1;
                    while let Some((tag, _)) = next(&mut field)? {
                        parts.matchers += usize::from(tag == 3);
                    }
                }
                2 => parts.types += field.len().max(1),
                _ => {}
            }
        }
        Ok(parts)
    }
}

/// The next field of a message: its number and, if it has a length, its bytes.
fn next<'a>(message: &mut &'a [u8]) -> Result<Option<(u32, &'a [u8])>, String> {
    if message.is_empty() {
        return Ok(None);
    }
    let told = |e: prost::DecodeError| e.to_string();
    let (tag, wire_type) = decode_key(message).map_err(told)?;
    if wire_type != WireType::LengthDelimited {
        skip_field(wire_type, tag, message, DecodeContext::default()).map_err(told)?;
        return Ok(Some((tag, &[])));
    }
    let length = usize::try_from(decode_varint(message).map_err(told)?).unwrap_or(usize::MAX);
    let (field, rest) = message.split_at_checked(length).ok_or("a field is longer than its message")?;
    *message = rest;
    Ok(Some((tag, field)))
}

#[derive(Clone, PartialEq, Message)]
pub struct ReadRequest {
    #[prost(message, repeated, tag = "1")]
    pub queries: Vec<Query>,
    #[prost(int32, repeated, tag = "2")]
    pub accepted_response_types: Vec<i32>,
}

pub const SAMPLES: i32 = 0;
pub const STREAMED_XOR_CHUNKS: i32 = 1;

/// Hints are not read: they say what may be left out, and nothing is.
#[derive(Clone, PartialEq, Message)]
pub struct Query {
    /// Inclusive, as the end.
    #[prost(int64, tag = "1")]
    pub start_timestamp_ms: i64,
    #[prost(int64, tag = "2")]
    pub end_timestamp_ms: i64,
    #[prost(message, repeated, tag = "3")]
    pub matchers: Vec<LabelMatcher>,
}

#[derive(Clone, PartialEq, Message)]
pub struct LabelMatcher {
    /// 0 `=`, 1 `!=`, 2 `=~`, 3 `!~`.
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub value: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReadResponse {
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<QueryResult>,
}

#[derive(Clone, PartialEq, Message)]
pub struct QueryResult {
    #[prost(message, repeated, tag = "1")]
    pub timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    pub samples: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    pub histograms: Vec<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Label {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Sample {
    /// Absent is zero, which is another number than -0.
    #[prost(double, optional, tag = "1")]
    pub value: Option<f64>,
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct BucketSpan {
    #[prost(sint32, tag = "1")]
    pub offset: i32,
    #[prost(uint32, tag = "2")]
    pub length: u32,
}

/// Counts as integers (`*_int`, deltas) or as floats, never both.
#[derive(Clone, PartialEq, Message)]
pub struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    pub count_int: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub count_float: Option<f64>,
    #[prost(double, tag = "3")]
    pub sum: f64,
    #[prost(sint32, tag = "4")]
    pub schema: i32,
    #[prost(double, tag = "5")]
    pub zero_threshold: f64,
    #[prost(uint64, optional, tag = "6")]
    pub zero_count_int: Option<u64>,
    #[prost(double, optional, tag = "7")]
    pub zero_count_float: Option<f64>,
    #[prost(message, repeated, tag = "8")]
    pub negative_spans: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "9")]
    pub negative_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "10")]
    pub negative_counts: Vec<f64>,
    #[prost(message, repeated, tag = "11")]
    pub positive_spans: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "12")]
    pub positive_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "13")]
    pub positive_counts: Vec<f64>,
    #[prost(int32, tag = "14")]
    pub reset_hint: i32,
    #[prost(int64, tag = "15")]
    pub timestamp: i64,
    #[prost(double, repeated, tag = "16")]
    pub custom_values: Vec<f64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ChunkedReadResponse {
    #[prost(message, repeated, tag = "1")]
    pub chunked_series: Vec<ChunkedSeries>,
    #[prost(int64, tag = "2")]
    pub query_index: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ChunkedSeries {
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    pub chunks: Vec<Chunk>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Chunk {
    #[prost(int64, tag = "1")]
    pub min_time_ms: i64,
    #[prost(int64, tag = "2")]
    pub max_time_ms: i64,
    /// [`XOR`], [`HISTOGRAM`] or [`FLOAT_HISTOGRAM`].
    #[prost(int32, tag = "3")]
    pub kind: i32,
    #[prost(bytes = "vec", tag = "4")]
    pub data: Vec<u8>,
}

pub const XOR: i32 = 1;
pub const HISTOGRAM: i32 = 2;
pub const FLOAT_HISTOGRAM: i32 = 3;
