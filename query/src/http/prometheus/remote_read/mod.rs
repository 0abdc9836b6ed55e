//! Remote read (`POST /read`): raw points by matchers and time, as samples in one message or as streamed chunks.
//!
//! A stream reads some series, sends them and reads the next ones: its memory does not grow with its length. An answer of
//! samples is one message, so it has a limit of bytes.

mod bits;
pub(super) mod chunk;
pub mod wire;

use std::{collections::VecDeque, sync::Arc, time::Instant};

use axum::{
    body::{Body, HttpBody as _},
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, Response, StatusCode,
        header::{CONTENT_ENCODING, CONTENT_TYPE},
    },
};
use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, Limited};
use prost::Message;
use storage::{
    ErrorKind, SeriesInfo,
    model::{Labels, MatchOp, Matcher, MatcherBudget, TenantId, re2},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Api;
use crate::{
    error::QueryError,
    fetch::{self, range_of_millis},
    http::{envelope, params},
    limits::{
        MATCHES_MAX, READ_ANSWER_BYTES_MAX, READ_FRAME_BYTES, READ_GROUP_POINTS, READ_GROUP_SERIES_MAX,
        READ_LARGE_BYTES, READ_MATCHERS_MAX, READ_REQUEST_BYTES_MAX,
    },
    raw::{self, RawSeries},
};

const STREAMED: &str = "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse";

/// What a client is told: a status and a line of text.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl Refusal {
    fn bad(text: impl Into<String>) -> Self {
        Refusal(StatusCode::BAD_REQUEST, text.into())
    }
}

impl From<QueryError> for Refusal {
    fn from(e: QueryError) -> Self {
        let status = match e.kind() {
            ErrorKind::Invalid | ErrorKind::TooLarge => StatusCode::BAD_REQUEST,
            ErrorKind::Overloaded | ErrorKind::Unavailable | ErrorKind::Deadline => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        envelope::log_internal(&e);
        Refusal(status, e.to_string())
    }
}

pub(super) async fn read(State(api): State<Api>, request: Request) -> Response<Body> {
    answer(api, request)
        .await
        .unwrap_or_else(|Refusal(status, text)| envelope::with_type(status, "text/plain; charset=utf-8", text + "\n"))
}

async fn answer(api: Api, request: Request) -> Result<Response<Body>, Refusal> {
    let (head, body) = request.into_parts();
    let tenant = params::tenant(&head.headers)?;
    let deadline = Instant::now() + api.limits.timeout;
    let (request, large) = decoded(&api, &head.headers, body, deadline).await?;
    let streamed = wants_chunks(&request.accepted_response_types)?;
    let mut budget = MatcherBudget::default();
    let external = api.external_labels();
    let wanted = request.queries.into_iter().map(|q| Wanted::of(q, &external, &mut budget));
    let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
    for w in &wanted {
        w.check_range(&api, &tenant)?;
    }
    let slot = turn(&api.reads, deadline).await?;
    let samples_max = api.limits.samples_of(&tenant);
    let reader = Reader {
        queue: wanted.into_iter().enumerate().collect(),
        current: None,
        group: 1,
        left: samples_max,
        samples_max,
        deadline,
        external,
        api,
        tenant,
        _turns: (slot, large),
    };
    if streamed { stream_of_chunks(reader).await } else { one_message(reader).await }
}

async fn turn(places: &Arc<Semaphore>, deadline: Instant) -> Result<OwnedSemaphorePermit, Refusal> {
    let permit = tokio::time::timeout_at(deadline.into(), places.clone().acquire_owned()).await;
    let permit = permit.map_err(|_| QueryError::Timeout("remote read queue"))?;
    Ok(permit.map_err(|_| QueryError::Canceled("remote read queue"))?)
}

/// The request and, if it is large, its place.
async fn decoded(
    api: &Api,
    headers: &HeaderMap,
    body: Body,
    deadline: Instant,
) -> Result<(wire::ReadRequest, Option<OwnedSemaphorePermit>), Refusal> {
    if let Some(encoding) = headers.get(CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"snappy")
    {
        return Err(Refusal::bad("a remote read request is compressed with snappy (block format)"));
    }
    let too_large =
        || Refusal::bad(format!("the request is larger than the limit of {READ_REQUEST_BYTES_MAX} bytes"));
    if body.size_hint().lower() > READ_REQUEST_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let mut body = Limited::new(body, READ_REQUEST_BYTES_MAX);
    let mut packed = Vec::new();
    let mut place = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            if e.is::<http_body_util::LengthLimitError>() {
                too_large()
            } else {
                Refusal::bad(format!("cannot read the body: {e}"))
            }
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if place.is_none() && packed.len() + data.len() > READ_LARGE_BYTES {
            place = Some(turn(&api.large_reads, deadline).await?);
        }
        packed.extend_from_slice(&data);
    }
    // The length stands ahead of the block: nothing is inflated that would not fit.
    let length = snap::raw::decompress_len(&packed).map_err(|e| undecodable(&e))?;
    if length > READ_REQUEST_BYTES_MAX {
        return Err(too_large());
    }
    if length <= READ_LARGE_BYTES {
        return Ok((decode(&packed)?, place));
    }
    if place.is_none() {
        place = Some(turn(&api.large_reads, deadline).await?);
    }
    Ok((blocking(move || decode(&packed)).await??, place))
}

fn undecodable(e: &dyn std::fmt::Display) -> Refusal {
    Refusal::bad(format!("cannot decode the request: {e}"))
}

/// The request of a snappy block.
fn decode(packed: &[u8]) -> Result<wire::ReadRequest, Refusal> {
    let plain = snap::raw::Decoder::new().decompress_vec(packed).map_err(|e| undecodable(&e))?;
    let parts = wire::Parts::of(&plain).map_err(|e| undecodable(&e))?;
    for (n, limit, what) in [
        (parts.queries, MATCHES_MAX, "queries"),
        (parts.matchers, READ_MATCHERS_MAX, "matchers"),
        (parts.types, MATCHES_MAX, "response types"),
    ] {
        if n > limit {
            return Err(Refusal::bad(format!("more than the limit of {limit} {what} in a request")));
        }
    }
    wire::ReadRequest::decode(&plain[..]).map_err(|e| undecodable(&e))
}

/// The first type that is known; no types mean samples.
fn wants_chunks(accepted: &[i32]) -> Result<bool, Refusal> {
    let known = accepted.iter().find(|t| matches!(**t, wire::SAMPLES | wire::STREAMED_XOR_CHUNKS));
    match known {
        Some(t) => Ok(*t == wire::STREAMED_XOR_CHUNKS),
        None if accepted.is_empty() => Ok(false),
        None => Err(Refusal::bad(format!(
            "none of the requested response types {accepted:?} is supported: SAMPLES (0), STREAMED_XOR_CHUNKS (1)"
        ))),
    }
}

/// One query of a request.
struct Wanted {
    matchers: Vec<Matcher>,
    /// Closed interval, ms.
    times: (i64, i64),
}

impl Wanted {
    /// What asks for an external label is met by all series.
    fn of(query: wire::Query, external: &Labels, budget: &mut MatcherBudget) -> Result<Self, Refusal> {
        let met = |m: &wire::LabelMatcher| m.kind == 0 && external.get(&m.name) == Some(&*m.value);
        let matchers = query.matchers.into_iter().filter(|m| !met(m)).map(|m| {
            let op = match m.kind {
                0 => MatchOp::Eq,
                1 => MatchOp::Ne,
                2 => MatchOp::Re,
                3 => MatchOp::Nre,
                other => return Err(Refusal::bad(format!("invalid matcher type {other}"))),
            };
            let matcher = budget.matcher(m.name, op, m.value.clone());
            matcher.map_err(|e| Refusal::bad(format!("invalid matcher: {}", re2::told(&m.value, &e))))
        });
        // Far ends of time match nothing; nearer ones keep arithmetic simple.
        let bounded = |ms: i64| ms.clamp(i64::MIN / 4, i64::MAX / 4);
        let times = (bounded(query.start_timestamp_ms), bounded(query.end_timestamp_ms));
        Ok(Wanted { matchers: matchers.collect::<Result<_, _>>()?, times })
    }

    fn check_range(&self, api: &Api, tenant: &TenantId) -> Result<(), Refusal> {
        let nanos = self.times.1.saturating_sub(self.times.0).saturating_mul(1_000_000);
        api.limits.tenants.of(tenant).check_range(nanos).map_err(Refusal::bad)
    }
}

/// Series of the query being read that are still to come.
struct Current {
    index: usize,
    times: (i64, i64),
    infos: VecDeque<SeriesInfo>,
}

/// Reads the queries of a request in order, some series at a time.
struct Reader {
    api: Api,
    tenant: TenantId,
    queue: VecDeque<(usize, Wanted)>,
    current: Option<Current>,
    /// Series to read together: as many as hold about [`READ_GROUP_POINTS`].
    group: usize,
    /// Points that may still be read.
    left: usize,
    samples_max: usize,
    deadline: Instant,
    /// Added to each series.
    external: Labels,
    _turns: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

/// Some series of one query, by its index.
type Group = (usize, Vec<RawSeries>);

impl Reader {
    /// `None` at the end. `fresh`: each group may hold as many points as a query may.
    async fn next(&mut self, fresh: bool) -> Result<Option<Group>, Refusal> {
        let deadline = self.deadline;
        tokio::time::timeout_at(deadline.into(), self.read(fresh))
            .await
            .unwrap_or_else(|_| Err(QueryError::Timeout("remote read").into()))
    }

    async fn read(&mut self, fresh: bool) -> Result<Option<Group>, Refusal> {
        loop {
            let Some(current) = &mut self.current else {
                let Some((index, wanted)) = self.queue.pop_front() else { return Ok(None) };
                let infos = match range_of_millis(wanted.times.0, wanted.times.1) {
                    Some(range) => fetch::series(&self.api.store, &self.tenant, &wanted.matchers, range).await?,
                    None => Vec::new(),
                };
                let series_max = self.api.limits.series_of(&self.tenant);
                if infos.len() > series_max {
                    let n = infos.len();
                    return Err(Refusal::bad(format!(
                        "query selects {n} series, more than the limit of {series_max} series per query; add matchers"
                    )));
                }
                self.current = Some(Current { index, times: wanted.times, infos: infos.into() });
                continue;
            };
            if current.infos.is_empty() {
                self.current = None;
                continue;
            }
            let many = self.group.min(current.infos.len());
            let infos: Vec<SeriesInfo> = current.infos.drain(..many).collect();
            if fresh {
                self.left = self.samples_max;
            }
            let before = self.left;
            let found = raw::points(&self.api.store, &self.tenant, &infos, current.times, &mut self.left).await?;
            let Some(mut found) = found else {
                return Err(Refusal::bad(format!("exceeded sample limit ({})", self.samples_max)));
            };
            for (name, value) in self.external.iter() {
                for s in found.iter_mut().filter(|s| s.labels.get(name).is_none()) {
                    Arc::make_mut(&mut s.labels).set(name, value);
                }
            }
            let each = (before - self.left) / many;
            self.group = (READ_GROUP_POINTS / each.max(1)).clamp(1, (many * 4).min(READ_GROUP_SERIES_MAX));
            if !found.is_empty() {
                return Ok(Some((current.index, found)));
            }
        }
    }
}

fn labels(series: &RawSeries) -> Vec<wire::Label> {
    series.labels.iter().map(|(n, v)| wire::Label { name: n.to_owned(), value: v.to_owned() }).collect()
}

fn sample(timestamp: i64, value: f64) -> wire::Sample {
    wire::Sample { value: (value.to_bits() != 0).then_some(value), timestamp }
}

/// Off the async threads: a large group takes longer than one may be held.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|e| QueryError::Internal(e.to_string()).into())
}

async fn one_message(mut reader: Reader) -> Result<Response<Body>, Refusal> {
    // `QueryResult`s as their bytes: the series of each, one after another.
    let mut results: Vec<Vec<u8>> = vec![Vec::new(); reader.queue.len()];
    let mut bytes = 0;
    while let Some((index, group)) = reader.next(false).await? {
        let encoded = blocking(move || {
            let timeseries = group.iter().map(|s| wire::TimeSeries {
                labels: labels(s),
                samples: s.samples.iter().map(|(t, v)| sample(*t, *v)).collect(),
                histograms: s.histograms.iter().map(|(t, h)| chunk::message(*t, h)).collect(),
            });
            let mut out = Vec::new();
            timeseries.for_each(|s| put_message(&mut out, 1, &s.encode_to_vec()));
            out
        });
        let encoded = encoded.await?;
        bytes += encoded.len();
        if bytes > READ_ANSWER_BYTES_MAX {
            return Err(Refusal::bad(format!(
                "the answer is larger than the limit of {READ_ANSWER_BYTES_MAX} bytes; ask for streamed chunks, a \
                 shorter time or fewer series"
            )));
        }
        results[index].extend_from_slice(&encoded);
    }
    let body = blocking(move || {
        let mut out = Vec::with_capacity(bytes + 16);
        results.iter().for_each(|r| put_message(&mut out, 1, r));
        drop(results);
        snap::raw::Encoder::new().compress_vec(&out)
    });
    let body = body.await?.map_err(|e| QueryError::Internal(e.to_string()))?;
    let mut response = envelope::with_type(StatusCode::OK, "application/x-protobuf", body);
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("snappy"));
    Ok(response)
}

/// A field that is a message.
fn put_message(out: &mut Vec<u8>, field: u32, message: &[u8]) {
    prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, out);
    prost::encoding::encode_varint(message.len() as u64, out);
    out.extend_from_slice(message);
}

async fn stream_of_chunks(mut reader: Reader) -> Result<Response<Body>, Refusal> {
    // What fails at once still has a status of its own.
    let first = piece(&mut reader).await?;
    let rest = stream::try_unfold((first, reader), |(ready, mut reader)| async move {
        let next = match ready {
            Some(ready) => Some(ready),
            None => piece(&mut reader).await.map_err(|Refusal(_, text)| std::io::Error::other(text))?,
        };
        Ok::<_, std::io::Error>(next.map(|bytes| (bytes, (None, reader))))
    });
    let mut response = Response::new(Body::from_stream(rest));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(STREAMED));
    Ok(response)
}

/// Frames of the next group.
async fn piece(reader: &mut Reader) -> Result<Option<Bytes>, Refusal> {
    let Some((index, group)) = reader.next(true).await? else { return Ok(None) };
    let encoded = blocking(move || {
        let mut out = Vec::new();
        group.iter().for_each(|s| put_frames(&mut out, index, s));
        Bytes::from(out)
    });
    Ok(Some(encoded.await?))
}

/// Frames of one series, each of about [`READ_FRAME_BYTES`].
fn put_frames(out: &mut Vec<u8>, index: usize, series: &RawSeries) {
    let mut chunks: VecDeque<wire::Chunk> = chunks(series).into();
    let labels = labels(series);
    while !chunks.is_empty() {
        let mut room = READ_FRAME_BYTES;
        let mut taken = Vec::new();
        while let Some(next) = chunks.pop_front() {
            room = room.saturating_sub(next.data.len() + 32);
            taken.push(next);
            if room == 0 {
                break;
            }
        }
        let frame = wire::ChunkedReadResponse {
            chunked_series: vec![wire::ChunkedSeries { labels: labels.clone(), chunks: taken }],
            query_index: index as i64,
        };
        let payload = frame.encode_to_vec();
        prost::encoding::encode_varint(payload.len() as u64, out);
        out.extend_from_slice(&crc32c::crc32c(&payload).to_be_bytes());
        out.extend_from_slice(&payload);
    }
}

/// Chunks in time order: a series may have turned from floats to histograms and back.
fn chunks(series: &RawSeries) -> Vec<wire::Chunk> {
    let (mut floats, mut histograms) = (&series.samples[..], &series.histograms[..]);
    let mut out = Vec::new();
    while !floats.is_empty() || !histograms.is_empty() {
        let until = histograms.first().map_or(i64::MAX, |h| h.0);
        let (now, later) = floats.split_at(floats.partition_point(|f| f.0 < until));
        out.extend(chunk::of_samples(now));
        floats = later;
        let until = floats.first().map_or(i64::MAX, |f| f.0);
        let (now, later) = histograms.split_at(histograms.partition_point(|h| h.0 <= until));
        out.extend(chunk::of_histograms(now));
        histograms = later;
    }
    out
}
