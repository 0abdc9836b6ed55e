//! The road all push protocols share: admit, read the body, inflate, decode, deliver.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Router, body::Body, routing::post};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use pipeline::{
    Batch, Output,
    codec::{
        Decoded, Limits, Reason,
        compress::{self, Encoding, InflateError},
        otlp::Deltas,
    },
};
use storage::model::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    elastic, loki_push,
    metrics::{IngestMetrics, Protocol},
    ndjson, otlp,
    remote_write::{self, SenderMemory},
    reply::Failure,
    tenants::{Beyond, Tenants},
};

/// What the push endpoints are told.
#[derive(Clone)]
pub struct PushConfig {
    pub limits: Limits,
    /// Memory that requests in flight may take together, roughly: bodies, what they inflate to and their batches.
    pub in_flight_bytes_max: usize,
    /// A request that gets no memory for so long is told to come back.
    pub admission_wait: Duration,
    /// A body that brings nothing for so long is given up.
    pub body_idle_max: Duration,
    pub metrics: Arc<IngestMetrics>,
    /// What each tenant may push.
    pub tenants: Arc<Tenants>,
    /// The version that Elasticsearch's shippers are told; `major.minor.patch`.
    pub elastic_version: Arc<str>,
}

impl Default for PushConfig {
    fn default() -> Self {
        PushConfig {
            limits: Limits::default(),
            in_flight_bytes_max: 256 << 20,
            admission_wait: Duration::from_secs(5),
            body_idle_max: Duration::from_secs(30),
            metrics: Arc::default(),
            tenants: Arc::default(),
            elastic_version: elastic::VERSION.into(),
        }
    }
}

/// All push routes: OTLP over HTTP, Loki push, remote write, NDJSON, Elasticsearch bulk.
pub fn push_router(config: PushConfig, out: Output) -> Router {
    routes(Push::new(config, out))
}

/// The push routes and, second, the gRPC services (for [`crate::otlp::grpc`]'s port), with one memory budget.
pub fn push_and_grpc_routers(config: PushConfig, out: Output) -> (Router, Router) {
    let push = Push::new(config, out);
    (routes(push.clone()), otlp::grpc::routes(push))
}

pub(crate) fn routes(push: Arc<Push>) -> Router {
    Router::new()
        .route("/ingest/ndjson", post(ndjson::push))
        .route("/api/v1/import", post(ndjson::import))
        .route("/loki/api/v1/push", post(loki_push::push))
        .route("/api/prom/push", post(loki_push::push))
        .route("/api/v1/write", post(remote_write::push))
        .route("/prometheus/api/v1/write", post(remote_write::push))
        .route("/v1/logs", post(otlp::http::logs))
        .route("/otlp/v1/logs", post(otlp::http::logs))
        .route("/v1/metrics", post(otlp::http::metrics))
        .route("/otlp/v1/metrics", post(otlp::http::metrics))
        .route("/api/v1/otlp/v1/metrics", post(otlp::http::metrics))
        .route("/v1/traces", post(otlp::http::traces))
        .route("/otlp/v1/traces", post(otlp::http::traces))
        .merge(elastic::routes(&push.config.elastic_version))
        .with_state(push)
}

/// What handlers share.
pub(crate) struct Push {
    pub config: PushConfig,
    pub senders: SenderMemory,
    pub deltas: Arc<Deltas>,
    out: Output,
    memory: Arc<Semaphore>,
    memory_units: usize,
    /// Requests that inflate to far more than they were admitted for, at once.
    swelling: Semaphore,
}

/// Unit of the memory budget, so that it fits a semaphore.
const MEMORY_UNIT: usize = 1024;

/// What a request of unknown length is taken for.
const UNKNOWN_LENGTH: usize = 4 << 20;

/// Memory a request takes for each byte of its body: the body and its batches; more where it inflates.
const COST_PLAIN: usize = 2;
const COST_COMPRESSED: usize = 16;

/// Least memory a compressed request is admitted with.
const COMPRESSED_BYTES_MIN: usize = 1 << 20;

/// Memory that inflating takes for each byte of its cap, while the output grows.
const COST_INFLATING: usize = 2;

/// Bodies up to this size are decoded where they are: less than a millisecond.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// A body in memory, with the memory it holds.
pub(crate) struct Received {
    pub body: Bytes,
    /// Bytes as sent.
    pub sent: usize,
    _memory: OwnedSemaphorePermit,
}

impl Push {
    pub fn new(config: PushConfig, out: Output) -> Arc<Self> {
        let memory_units = (config.in_flight_bytes_max / MEMORY_UNIT).clamp(1, u32::MAX as usize >> 4);
        let swollen = config.limits.inflated_bytes_max.saturating_mul(COST_INFLATING).max(1);
        let swelling = Semaphore::new((config.in_flight_bytes_max / swollen).max(1));
        let memory = Arc::new(Semaphore::new(memory_units));
        Arc::new(Push {
            config,
            senders: SenderMemory::default(),
            deltas: Arc::default(),
            out,
            memory,
            memory_units,
            swelling,
        })
    }

    /// Whether what is pushed goes to the local store and nowhere else.
    pub fn is_straight_to_store(&self) -> bool {
        self.out.is_straight_to_store()
    }

    /// Nanoseconds since the epoch.
    pub fn now(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    pub fn metrics(&self) -> &IngestMetrics {
        &self.config.metrics
    }

    /// Reads a body within its limits, once there is memory for it.
    pub async fn receive(&self, headers: &HeaderMap, body: Body, compressed: bool) -> Result<Received, Failure> {
        let limit = self.config.limits.body_bytes_max;
        let too_large = || {
            let message = format!("request body is larger than {limit} bytes; send smaller requests");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, message)
        };
        let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|l| l > limit) {
            return Err(too_large());
        }
        let cost = if compressed { COST_COMPRESSED } else { COST_PLAIN };
        let least = if compressed { COMPRESSED_BYTES_MIN } else { 1 };
        let bytes = length.unwrap_or(UNKNOWN_LENGTH).saturating_mul(cost).max(least);
        let mut units = (bytes / MEMORY_UNIT).clamp(1, self.memory_units);
        let mut memory = self.admit(units).await?;
        let mut body = body;
        let mut one: Option<Bytes> = None;
        let mut many = BytesMut::new();
        loop {
            let frame = match tokio::time::timeout(self.config.body_idle_max, body.frame()).await {
                Err(_) => return Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "the request body stopped coming")),
                Ok(None) => break,
                Ok(Some(Err(e))) => {
                    return Err(Failure::new(StatusCode::BAD_REQUEST, format!("cannot read the request body: {e}")));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            let total = data.len() + many.len() + one.as_ref().map_or(0, Bytes::len);
            if total > limit {
                return Err(too_large());
            }
            // A body of unknown length is more than was thought.
            while total.saturating_mul(cost) / MEMORY_UNIT > units && units < self.memory_units {
                let more = units.min(self.memory_units - units);
                memory.merge(self.admit(more).await?);
                units += more;
            }
            if many.is_empty() && one.is_none() {
                one = Some(data);
                continue;
            }
            if let Some(first) = one.take() {
                // Memory for all of an announced length was admitted, so that no more than this is ever promised; what a
                // liar does not send is never touched.
                many.reserve(length.unwrap_or(0).max(first.len() + data.len()));
                many.extend_from_slice(&first);
            }
            many.extend_from_slice(&data);
        }
        let body = one.unwrap_or_else(|| many.freeze());
        Ok(Received { sent: body.len(), body, _memory: memory })
    }

    async fn admit(&self, units: usize) -> Result<OwnedSemaphorePermit, Failure> {
        let wait = self.memory.clone().acquire_many_owned(units as u32);
        match tokio::time::timeout(self.config.admission_wait, wait).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(overloaded()),
        }
    }

    /// Inflates and decodes, off the async threads where it takes long. A body that inflates to more than it was
    /// admitted for waits for one of a few places, so that many bombs at once cost no more than a few.
    pub async fn decode<T, F>(&self, body: Bytes, encoding: Encoding, decode: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(Bytes, &Limits, i64) -> Result<T, Failure> + Send + 'static,
    {
        let now = self.now();
        let limits = self.config.limits.clone();
        let cap = limits.inflated_bytes_max;
        if encoding == Encoding::Identity && body.len() <= INLINE_BYTES_MAX {
            return decode(compress::inflate(encoding, body, cap)?, &limits, now);
        }
        let admitted = match encoding {
            Encoding::Identity => cap,
            _ => body.len().saturating_mul(COST_COMPRESSED).clamp(COMPRESSED_BYTES_MIN.min(cap), cap),
        };
        let (packed, all) = (body.clone(), limits.clone());
        let first = blocking(move || match compress::inflate(encoding, packed, admitted) {
            Err(InflateError::TooLarge { .. }) if admitted < cap => Ok(Tried::Larger(decode)),
            inflated => decode(inflated?, &all, now).map(Tried::Done),
        });
        let decode = match first.await? {
            Tried::Done(decoded) => return Ok(decoded),
            Tried::Larger(decode) => decode,
        };
        let wait = tokio::time::timeout(self.config.admission_wait, self.swelling.acquire());
        let Ok(Ok(_place)) = wait.await else { return Err(overloaded()) };
        blocking(move || decode(compress::inflate_doubtful(encoding, body, cap)?, &limits, now)).await
    }

    /// Hands all batches over and waits until each is acknowledged, within what the tenant may push: rows beyond its
    /// streams, and points that the store left out because of its series, are moved to `decoded.rejected`, and told.
    /// `batch_id`: the sender's; each batch of a split request gets its own, the same for the same request.
    pub async fn deliver(
        &self,
        protocol: Protocol,
        tenant: TenantId,
        decoded: &mut Decoded,
        batch_id: Option<[u8; 16]>,
    ) -> Result<Beyond, Failure> {
        let mut beyond = self.config.tenants.admit(&tenant, decoded).map_err(|limited| limited.failure(protocol))?;
        let mut fates = Vec::with_capacity(decoded.batches.len());
        for (i, data) in decoded.batches.drain(..).enumerate() {
            let mut batch = Batch::new(tenant.clone(), data);
            batch.batch_id = batch_id.map(|id| nth_batch_id(id, i as u64));
            batch.repeats = protocol.repeats();
            let refusals = batch.refusals.clone();
            fates.push((self.out.send(batch).await?, refusals));
        }
        for (fate, refusals) in fates {
            fate.wait().await?;
            if let Some(refused) = refusals.take() {
                beyond.series.join(refused);
            }
        }
        let points = (beyond.series.samples + beyond.series.histograms) as u64;
        if beyond.series.rows() > 0 {
            decoded.accepted = decoded.accepted.saturating_sub(points);
            let repeated = beyond.series.repeated as u64;
            let told = |reason: Reason| match (reason, &beyond.series.repeat) {
                (Reason::DuplicateTimestamp, Some(repeat)) => repeat.clone(),
                _ => format!("tenant {tenant}: {}", beyond.series),
            };
            for (reason, n) in
                [(Reason::TenantLimit, points.saturating_sub(repeated)), (Reason::DuplicateTimestamp, repeated)]
            {
                decoded.rejected.add_many(reason, n, 0, || told(reason));
            }
        }
        // Now, since a request that comes again brings what was refused of it again.
        self.metrics().rejected(protocol, &decoded.rejected);
        self.metrics().accepted(protocol, decoded.accepted);
        Ok(beyond)
    }
}

/// What came of inflating within what a request was admitted for.
enum Tried<T, F> {
    Done(T),
    Larger(F),
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let failed = |_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "decoding failed; this is a bug");
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

fn overloaded() -> Failure {
    Failure::unavailable("too many bytes of requests are in flight", Duration::from_secs(1))
}

fn nth_batch_id(id: [u8; 16], n: u64) -> [u8; 16] {
    if n == 0 {
        return id;
    }
    let mut text = id.to_vec();
    text.extend_from_slice(&n.to_le_bytes());
    xxhash_rust::xxh3::xxh3_128(&text).to_be_bytes()
}

/// The body's encoding; 415 when we do not know it.
pub(crate) fn content_encoding(headers: &HeaderMap) -> Result<Encoding, Failure> {
    let name = headers.get(header::CONTENT_ENCODING).map_or(Ok(""), |v| v.to_str()).unwrap_or("?");
    Encoding::parse(name).ok_or_else(|| {
        let message = format!("Content-Encoding {name:?} is not supported; use gzip, zstd, deflate, snappy or lz4");
        Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    })
}

/// The media type without its parameters, lower case; empty when absent.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Names a request that is sent again unchanged after a lost answer: stored once.
pub(crate) const BATCH_ID_HEADER: &str = "x-batch-id";

/// The sender's name for this request: 32 hex digits are the id itself; any other text is hashed.
pub(crate) fn batch_id(headers: &HeaderMap) -> Option<[u8; 16]> {
    let text = headers.get(BATCH_ID_HEADER)?.as_bytes();
    let mut id = [0; 16];
    Some(match hex::decode_to_slice(text, &mut id) {
        Ok(()) => id,
        Err(_) => xxhash_rust::xxh3::xxh3_128(text).to_be_bytes(),
    })
}
