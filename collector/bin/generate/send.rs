//! One batch to the endpoint, in the protocol asked for.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::{
    logs::v1::logs_service_client::LogsServiceClient, metrics::v1::metrics_service_client::MetricsServiceClient,
    trace::v1::trace_service_client::TraceServiceClient,
};
use pipeline::codec::remote_write;
use prost::Message as _;
use serde_json::{Map, Value, json};
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::{
    Protocol,
    data::{Line, Shape},
};

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a batch is made of.
pub enum Rows {
    Lines(Vec<Line>),
    /// First, count, and the time of each row.
    Points(u64, u64, Clock),
    Spans(u64, u64, Clock),
}

/// When row `n` is: nanoseconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub start: u64,
    pub rows_per_second: f64,
}

impl Clock {
    pub fn at(self, n: u64) -> u64 {
        self.start + (n as f64 / self.rows_per_second * 1e9) as u64
    }
}

pub struct Sender {
    http: reqwest::Client,
    /// Where each request goes.
    url: String,
    grpc: Option<Channel>,
    protocol: Protocol,
    tenant: Option<String>,
    shape: Shape,
}

impl Sender {
    /// `path`: of the protocol, appended when `to` has none.
    pub fn new(
        to: &str,
        protocol: Protocol,
        path: &str,
        tenant: Option<String>,
        shape: Shape,
    ) -> Result<Self, String> {
        let mut url =
            url::Url::parse(to).map_err(|e| format!("--to {to}: {e}; expected for example http://127.0.0.1:7600"))?;
        if protocol != Protocol::OtlpGrpc && url.path() == "/" {
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            url.set_path(path);
            if !query.is_empty() {
                url.set_query(Some(query));
            }
        }
        let grpc = match protocol {
            Protocol::OtlpGrpc => {
                let endpoint = Endpoint::from_shared(to.to_owned()).map_err(|e| format!("--to {to}: {e}"))?;
                Some(endpoint.timeout(TIMEOUT).connect_lazy())
            }
            _ => None,
        };
        let http = reqwest::Client::builder().timeout(TIMEOUT).build().map_err(|e| e.to_string())?;
        Ok(Sender { http, url: url.into(), grpc, protocol, tenant, shape })
    }

    /// Sends the rows; the bytes of the request. Errors with what stood against it, short enough to count by.
    pub async fn send(&self, rows: Rows) -> Result<usize, String> {
        match (&self.grpc, rows) {
            (Some(channel), rows) => self.grpc(channel.clone(), rows).await,
            (None, Rows::Lines(lines)) => match self.protocol {
                Protocol::Ndjson => self.post("application/x-ndjson", ndjson(&lines)).await,
                Protocol::Loki => self.post("application/json", loki(&lines)).await,
                _ => self.post(PROTOBUF, self.shape.logs(&lines).encode_to_vec()).await,
            },
            (None, Rows::Points(first, count, clock)) if self.protocol == Protocol::RemoteWrite => {
                let body = remote_write::encode_v1(&self.shape.samples(first, count, |n| clock.at(n)));
                let body = snap::raw::Encoder::new().compress_vec(&body).map_err(|e| e.to_string())?;
                self.post(PROTOBUF, body).await
            }
            (None, Rows::Points(first, count, clock)) => {
                let request = self.shape.points(first, count, |n| clock.at(n));
                self.post(PROTOBUF, request.encode_to_vec()).await
            }
            (None, Rows::Spans(first, count, clock)) => {
                let request = self.shape.spans(first, count, |n| clock.at(n));
                self.post(PROTOBUF, request.encode_to_vec()).await
            }
        }
    }

    async fn post(&self, kind: &str, body: Vec<u8>) -> Result<usize, String> {
        let bytes = body.len();
        let mut request = self.http.post(&self.url).header("Content-Type", kind).body(body);
        if self.protocol == Protocol::RemoteWrite {
            request =
                request.header("Content-Encoding", "snappy").header("X-Prometheus-Remote-Write-Version", "0.1.0");
        }
        if let Some(tenant) = &self.tenant {
            request = request.header("X-Scope-OrgID", tenant);
        }
        let answer = request.send().await.map_err(|e| chain(&e))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(bytes);
        }
        let text = answer.text().await.unwrap_or_default();
        let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
        Err(format!("{status}: {text}"))
    }

    async fn grpc(&self, channel: Channel, rows: Rows) -> Result<usize, String> {
        let tenant: Option<MetadataValue<Ascii>> = self.tenant.as_deref().and_then(|t| t.parse().ok());
        fn request<T>(message: T, tenant: Option<MetadataValue<Ascii>>) -> Request<T> {
            let mut request = Request::new(message);
            tenant.map(|t| request.metadata_mut().insert("x-scope-orgid", t));
            request
        }
        let failed = |s: tonic::Status| format!("{:?}: {}", s.code(), s.message());
        match rows {
            Rows::Lines(lines) => {
                let message = self.shape.logs(&lines);
                let bytes = message.encoded_len();
                let sent = LogsServiceClient::new(channel).export(request(message, tenant)).await;
                let refused = sent.map_err(failed)?.into_inner().partial_success;
                whole(bytes, refused.map(|p| (p.rejected_log_records, p.error_message)))
            }
            Rows::Points(first, count, clock) => {
                let message = self.shape.points(first, count, |n| clock.at(n));
                let bytes = message.encoded_len();
                let sent = MetricsServiceClient::new(channel).export(request(message, tenant)).await;
                let refused = sent.map_err(failed)?.into_inner().partial_success;
                whole(bytes, refused.map(|p| (p.rejected_data_points, p.error_message)))
            }
            Rows::Spans(first, count, clock) => {
                let message = self.shape.spans(first, count, |n| clock.at(n));
                let bytes = message.encoded_len();
                let sent = TraceServiceClient::new(channel).export(request(message, tenant)).await;
                let refused = sent.map_err(failed)?.into_inner().partial_success;
                whole(bytes, refused.map(|p| (p.rejected_spans, p.error_message)))
            }
        }
    }
}

const PROTOBUF: &str = "application/x-protobuf";

/// A partial success counts as none: some of the batch is not there.
fn whole(bytes: usize, refused: Option<(i64, String)>) -> Result<usize, String> {
    match refused {
        Some((n, why)) if n > 0 => Err(format!("{n} records of a batch refused: {why}")),
        _ => Ok(bytes),
    }
}

fn ndjson(lines: &[Line]) -> Vec<u8> {
    let mut out = Vec::new();
    for l in lines {
        let mut row =
            json!({ "ts": l.ts, "service_name": l.service, "instance": l.instance, "level": l.level, "msg": l.text });
        if let Some(id) = l.trace_id {
            row["trace_id"] = Value::String(id.iter().map(|b| format!("{b:02x}")).collect());
        }
        out.extend_from_slice(row.to_string().as_bytes());
        out.push(b'\n');
    }
    out
}

fn loki(lines: &[Line]) -> Vec<u8> {
    let mut streams: Vec<(u64, &Line, Vec<Value>)> = Vec::new();
    for l in lines {
        let entry = json!([l.ts.to_string(), l.text, Map::from_iter([("level".to_owned(), Value::from(l.level))])]);
        match streams.iter_mut().find(|(s, _, _)| *s == l.stream) {
            Some((_, _, values)) => values.push(entry),
            None => streams.push((l.stream, l, vec![entry])),
        }
    }
    let streams: Vec<Value> = streams
        .into_iter()
        .map(|(_, l, values)| json!({ "stream": { "service_name": l.service, "instance": l.instance }, "values": values }))
        .collect();
    json!({ "streams": streams }).to_string().into_bytes()
}

/// The error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        out = format!("{out}: {cause}");
        next = cause.source();
    }
    out
}
