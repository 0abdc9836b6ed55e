//! Prometheus remote write 1.0 and 2.0: `POST /api/v1/write`. Answers are plain text.
//!
//! Good points of a request are stored whatever else is in it. 204: all is well; 400: something was refused and shall
//! not be sent again; 503: nothing is wrong with the request (senders of Prometheus drop what is answered 429).

use std::{
    collections::HashMap,
    sync::{Arc, RwLock},
};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use pipeline::{
    LABELS_WANTED,
    codec::{
        compress::Encoding,
        remote_write::{self, Families, KnownSeries, Version, Write},
    },
};
use storage::model::TenantId;

use crate::{
    auth,
    metrics::Protocol,
    push::{Push, batch_id, media_type},
    reply::Failure,
};

/// How many samples, histograms and exemplars were stored.
const WRITTEN: [&str; 3] = [
    "x-prometheus-remote-write-samples-written",
    "x-prometheus-remote-write-histograms-written",
    "x-prometheus-remote-write-exemplars-written",
];

/// Tenants whose metric families are remembered.
const TENANTS_MAX: usize = 1000;

/// What is remembered of a tenant.
#[derive(Default)]
struct Memory {
    /// What its senders of 1.0 told of metric families, which they do apart from the samples.
    families: RwLock<Families>,
    series: KnownSeries,
}

/// The tenants' memories.
#[derive(Default)]
pub(crate) struct SenderMemory(RwLock<HashMap<TenantId, Arc<Memory>>>);

impl SenderMemory {
    fn of(&self, tenant: &TenantId) -> Arc<Memory> {
        // Nothing can panic while these locks are held; what is behind them is whole anyway.
        let read = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = read.get(tenant) {
            return known.clone();
        }
        drop(read);
        let mut all = self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if all.len() >= TENANTS_MAX && !all.contains_key(tenant) {
            return Arc::default();
        }
        all.entry(tenant.clone()).or_default().clone()
    }
}

/// What became of a request that could be read.
struct Written {
    samples: u64,
    histograms: u64,
    exemplars: u64,
    error: Option<String>,
}

pub(crate) async fn push(State(push): State<Arc<Push>>, headers: HeaderMap, body: Body) -> Response {
    let mut sent = 0;
    let version = negotiate(&headers);
    let written = match &version {
        Ok(version) => take(&push, *version, &headers, body, &mut sent).await,
        Err(failure) => Err(failure.clone()),
    };
    let mut response = match &written {
        Ok(Written { error: None, .. }) => StatusCode::NO_CONTENT.into_response(),
        Ok(Written { error: Some(message), .. }) => text(&Failure::new(StatusCode::BAD_REQUEST, message)),
        Err(failure) => text(failure),
    };
    // A 2.0 sender that finds no counts takes us for a 1.0 receiver.
    if matches!(version, Ok(Version::V2)) {
        let counts = written.as_ref().map_or([0; 3], |w| [w.samples, w.histograms, w.exemplars]);
        for (name, n) in WRITTEN.into_iter().zip(counts) {
            response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from(n));
        }
    }
    push.metrics().request(Protocol::RemoteWrite, response.status(), sent);
    response
}

fn text(failure: &Failure) -> Response {
    failure.response("text/plain; charset=utf-8", format!("{}\n", failure.message))
}

/// The message that the headers announce; 415 when it is none of ours.
fn negotiate(headers: &HeaderMap) -> Result<Version, Failure> {
    const MESSAGES: &str = "use application/x-protobuf with proto=prometheus.WriteRequest (1.0, the default) or \
                            proto=io.prometheus.write.v2.Request (2.0), and Content-Encoding: snappy";
    let unsupported = |what: String| Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("{what}; {MESSAGES}"));
    let encoding = headers.get(header::CONTENT_ENCODING).map_or(Ok(""), |v| v.to_str()).unwrap_or("?").trim();
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("snappy") {
        return Err(unsupported(format!("Content-Encoding {encoding:?} is not supported")));
    }
    let sent = headers.get(header::CONTENT_TYPE).map_or(Ok(""), |v| v.to_str()).unwrap_or("?");
    let media = media_type(headers);
    if !media.is_empty() && media != "application/x-protobuf" {
        return Err(unsupported(format!("Content-Type {sent:?} is not supported")));
    }
    let proto = sent.split(';').skip(1).find_map(|p| {
        let (name, value) = p.split_once('=')?;
        name.trim().eq_ignore_ascii_case("proto").then(|| value.trim().trim_matches('"'))
    });
    match proto {
        None | Some("prometheus.WriteRequest") => Ok(Version::V1),
        Some("io.prometheus.write.v2.Request") => Ok(Version::V2),
        Some(other) => Err(unsupported(format!("message {other:?} is not known"))),
    }
}

async fn take(
    push: &Push,
    version: Version,
    headers: &HeaderMap,
    body: Body,
    sent: &mut usize,
) -> Result<Written, Failure> {
    let tenant = auth::tenant(headers)?;
    let received = push.receive(headers, body, true).await?;
    *sent = received.sent;
    let memory = push.senders.of(&tenant);
    // Labels may stay away only where nobody but the store sees the points.
    let learns = push.is_straight_to_store();
    let mut leave_out = learns;
    let (mut write, beyond) = loop {
        let mut write = decode(push, version, received.body.clone(), &memory, leave_out).await?;
        let delivered =
            push.deliver(Protocol::RemoteWrite, tenant.clone(), &mut write.decoded, batch_id(headers)).await;
        match delivered {
            Err(f) if write.of_known > 0 && f.retry_after == Some(LABELS_WANTED) => {
                memory.series.forget();
                leave_out = false;
            }
            delivered => break (write, delivered?),
        }
    };
    // Series of points that contradict others are in the store.
    if learns && write.decoded.rejected.total() == beyond.series.repeated as u64 {
        memory.series.learn(std::mem::take(&mut write.declared));
    }
    let over = beyond.series;
    let limit = (over.rows() > 0).then(|| over.to_string());
    let error = match (write.error, limit) {
        (Some(error), Some(limit)) => Some(format!("{error}; {limit}")),
        (error, limit) => error.or(limit),
    };
    let left = |n: u64, out: usize| n.saturating_sub(out as u64);
    Ok(Written {
        samples: left(write.samples, over.samples),
        histograms: left(write.histograms, over.histograms),
        exemplars: left(write.exemplars, over.exemplars),
        error,
    })
}

/// Reads a request, and learns what it tells of metric families. `leave_out`: the labels of series that the store knows.
async fn decode(
    push: &Push,
    version: Version,
    body: Bytes,
    memory: &Arc<Memory>,
    leave_out: bool,
) -> Result<Write, Failure> {
    let memory = memory.clone();
    let write = push
        .decode(body, Encoding::SnappyBlock, move |body, limits, now| {
            let families = memory.families.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            let known = leave_out.then_some(&memory.series);
            let mut write = remote_write::decode_known(&body, version, limits, now, &families, known)?;
            drop(families);
            let told = std::mem::take(&mut write.told);
            if !told.is_empty()
                && memory.families.write().unwrap_or_else(std::sync::PoisonError::into_inner).learn(told)
            {
                // Their series are to be declared again, with what is known now.
                memory.series.forget();
            }
            Ok(write)
        })
        .await?;
    if let Some(first) = write.decoded.rejected.details.first() {
        tracing::debug!(refused = write.decoded.rejected.total(), first = %first.message, "remote write: points refused");
    }
    Ok(write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_decide_the_message_and_unknown_ones_are_415() {
        let v2 = "application/x-protobuf;proto=io.prometheus.write.v2.Request";
        for (content, encoding, want) in [
            (None, None, Ok(Version::V1)),
            (Some("application/x-protobuf"), Some("snappy"), Ok(Version::V1)),
            (Some("application/x-protobuf; proto=\"prometheus.WriteRequest\""), Some("Snappy"), Ok(Version::V1)),
            (Some(v2), Some("snappy"), Ok(Version::V2)),
            (Some("application/x-protobuf;proto=other.Request"), None, Err(415)),
            (Some("application/json"), None, Err(415)),
            (Some(v2), Some("gzip"), Err(415)),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(c) = content {
                headers.insert(header::CONTENT_TYPE, c.parse().unwrap());
            }
            if let Some(e) = encoding {
                headers.insert(header::CONTENT_ENCODING, e.parse().unwrap());
            }
            let got = negotiate(&headers).map_err(|f| f.status.as_u16());
            assert_eq!(got, want, "{content:?} {encoding:?}");
        }
    }
}
