//! OTLP over HTTP or gRPC, as the address' scheme says: `http`, `https`, `grpc`, `grpcs`.

use std::{str::FromStr as _, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes};
use http::{HeaderMap, Uri, uri::PathAndQuery};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use super::remote::{
    Answer, BodyCompression, Encoded, Outgoing, Protocol, Rows, Signal,
    config::{Compression, RemoteConfig, remote_config},
    http_client::{self, BATCH_ID_HEADER, HttpClient, TENANT_HEADER},
    retry::{Rules, Verdict, grpc_verdict},
};
use crate::{
    codec::{
        columns::EncodeError,
        otlp::{
            encode::encode,
            wire::{Reader, Wire},
        },
    },
    component::Signals,
};

remote_config! {
    /// `type: otlp`.
    Config {}
}

const SCHEMES: [&str; 4] = ["http", "https", "grpc", "grpcs"];
/// Bytes of a gRPC answer that are read.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How often an idle connection is asked whether it is still there, and how long the answer may take: a link that was
/// cut is noticed, and the request tried on a new connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

impl Config {
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut out = self.remote().problems(&SCHEMES);
        if self.is_grpc() && self.tls.insecure_skip_verify {
            out.push(("tls.insecure_skip_verify", "not available over gRPC; name the authority in `ca_file`".into()));
        }
        if self.is_grpc() && self.compression == Some(Compression::Snappy) {
            out.push(("compression", "not available over gRPC; use gzip, zstd or none".into()));
        }
        out
    }

    fn is_grpc(&self) -> bool {
        self.url.starts_with("grpc")
    }

    pub fn protocol(&self, name: &str) -> Result<Otlp, String> {
        let remote = self.remote();
        if self.is_grpc() {
            return GrpcClient::new(&remote).map(|c| Otlp { via: Via::Grpc(Box::new(c)) });
        }
        let url = self.url.trim_end_matches('/').to_owned();
        let compression = remote.compression;
        HttpClient::new(&remote, name).map(|client| Otlp { via: Via::Http { client, url, compression } })
    }
}

pub struct Otlp {
    via: Via,
}

enum Via {
    Http { client: HttpClient, url: String, compression: Compression },
    Grpc(Box<GrpcClient>),
}

#[async_trait::async_trait]
impl Protocol for Otlp {
    fn signals(&self) -> Signals {
        Signals::ALL
    }

    fn encode(&self, rows: &Rows<'_>) -> Result<Encoded, EncodeError> {
        encode(rows.data).map(|e| Encoded { body: e.body, unsupported: e.unsupported, ends: Vec::new() })
    }

    fn compression(&self) -> BodyCompression {
        BodyCompression::Chosen(match &self.via {
            Via::Http { compression, .. } => *compression,
            // The messages of gRPC are compressed one by one, by the channel.
            Via::Grpc(_) => Compression::None,
        })
    }

    async fn send(&self, request: &Outgoing) -> Answer {
        match &self.via {
            Via::Http { client, url, .. } => {
                // An address with a path of its own names the prefix of the three.
                let url = match request.signal {
                    Signal::Logs => format!("{url}/v1/logs"),
                    Signal::Metrics => format!("{url}/v1/metrics"),
                    Signal::Traces => format!("{url}/v1/traces"),
                };
                match client.post(&url, "application/x-protobuf", None, request).await {
                    Err(answer) => answer,
                    Ok(reply) => reply.refusal(Rules::Otlp).unwrap_or_else(|| partial_success(&reply.body)),
                }
            }
            Via::Grpc(client) => client.send(request).await,
        }
    }
}

/// `Export...ServiceResponse{ partial_success=1 { rejected=1, error_message=2 } }`. What cannot be read says nothing.
fn partial_success(body: &[u8]) -> Answer {
    let read = || -> Option<(u64, String)> {
        let mut r = Reader::new(body);
        let mut found = None;
        while let Some((number, wire)) = r.field().ok()? {
            if let (1, Wire::Bytes(partial)) = (number, wire) {
                let (mut rejected, mut message) = (0, String::new());
                let mut r = Reader::new(partial);
                while let Some((number, wire)) = r.field().ok()? {
                    match (number, wire) {
                        (1, Wire::Varint(n)) => rejected = (n as i64).max(0) as u64,
                        (2, Wire::Bytes(text)) => message = String::from_utf8_lossy(text).into_owned(),
                        _ => {}
                    }
                }
                found = Some((rejected, message));
            }
        }
        found
    };
    let (rejected, message) = read().unwrap_or_default();
    Answer::Taken { rejected, message: Some(message).filter(|m| !m.is_empty()) }
}

struct GrpcClient {
    channel: Channel,
    origin: Uri,
    headers: HeaderMap,
    tenant: Option<String>,
    compression: Option<CompressionEncoding>,
    timeout: Duration,
}

impl GrpcClient {
    /// Must be called inside a Tokio runtime. Connects when the first request is sent.
    fn new(config: &RemoteConfig) -> Result<Self, String> {
        let tls = config.url.starts_with("grpcs");
        let address = match config.url.strip_prefix("grpcs") {
            Some(rest) => format!("https{rest}"),
            None => format!("http{}", config.url.strip_prefix("grpc").unwrap_or_default()),
        };
        let wrong = |e: &dyn std::fmt::Display| format!("url `{}`: {e}", config.url);
        let origin = Uri::from_str(&address).map_err(|e| wrong(&e))?;
        let mut endpoint = Endpoint::from_shared(address)
            .map_err(|e| wrong(&e))?
            .connect_timeout(config.timeout.min(Duration::from_secs(10)))
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .tcp_nodelay(true);
        if tls {
            let mut options = ClientTlsConfig::new().with_native_roots();
            if let Some(path) = &config.tls.ca_file {
                let pem = std::fs::read(path).map_err(|e| format!("tls.ca_file {}: {e}", path.display()))?;
                options = options.ca_certificate(Certificate::from_pem(pem));
            }
            endpoint = endpoint.tls_config(options).map_err(|e| wrong(&e))?;
        }
        Ok(GrpcClient {
            channel: endpoint.connect_lazy(),
            origin,
            headers: http_client::headers(config)?,
            tenant: config.tenant.clone(),
            compression: match config.compression {
                Compression::Gzip => Some(CompressionEncoding::Gzip),
                Compression::Zstd => Some(CompressionEncoding::Zstd),
                Compression::None | Compression::Snappy => None,
            },
            timeout: config.timeout,
        })
    }

    async fn send(&self, request: &Outgoing) -> Answer {
        let path = match request.signal {
            Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
            Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        };
        let mut client = Grpc::with_origin(self.channel.clone(), self.origin.clone())
            .max_encoding_message_size(usize::MAX)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip);
        if let Some(encoding) = self.compression {
            client = client.send_compressed(encoding);
        }
        let mut headers = self.headers.clone();
        if let Some(tenant) = http_client::tenant(self.tenant.as_deref(), &request.tenant) {
            headers.insert(TENANT_HEADER, tenant);
        }
        if let Ok(id) = http::HeaderValue::from_str(&hex::encode(request.id)) {
            headers.insert(BATCH_ID_HEADER, id);
        }
        let mut message = Request::new(request.body.clone());
        *message.metadata_mut() = MetadataMap::from_headers(headers);
        let exchange = async {
            client.ready().await.map_err(|e| Status::unavailable(chain(&e)))?;
            client.unary(message, PathAndQuery::from_static(path), Raw).await
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Err(_) => Answer::Again { after: None, reason: format!("no answer within {:?}", self.timeout) },
            Ok(Ok(reply)) => partial_success(&reply.into_inner()),
            Ok(Err(status)) => verdict(&status),
        }
    }
}

fn chain(e: &dyn std::error::Error) -> String {
    let mut out = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        out.push_str(": ");
        out.push_str(&c.to_string());
        cause = c.source();
    }
    out
}

fn verdict(status: &Status) -> Answer {
    // A status made here, of a connection that broke: the remote has not said anything.
    if std::error::Error::source(status).is_some() {
        return Answer::Again { after: None, reason: chain(status) };
    }
    let retry_info = retry_delay(status.details());
    let reason = format!("{:?}: {}", status.code(), status.message());
    // A stream that broke without an answer is reported as an unknown or internal fault of the transport.
    let broken = matches!(status.code(), Code::Unknown | Code::Internal) && status.message().contains("h2 protocol");
    match grpc_verdict(status.code() as i32, retry_info.is_some()) {
        _ if broken => Answer::Again { after: None, reason },
        Verdict::Done => Answer::Taken { rejected: 0, message: None },
        Verdict::Again => Answer::Again { after: retry_info, reason },
        Verdict::Denied => Answer::Denied(reason),
        Verdict::TooLarge => Answer::TooLarge(reason),
        Verdict::Refused => Answer::Refused(reason),
    }
}

/// The delay of a `google.rpc.RetryInfo` among the details of a `google.rpc.Status`.
fn retry_delay(details: &[u8]) -> Option<Duration> {
    let mut r = Reader::new(details);
    while let Some((number, wire)) = r.field().ok()? {
        let (3, Wire::Bytes(any)) = (number, wire) else { continue };
        let (mut kind, mut value): (&[u8], &[u8]) = (&[], &[]);
        let mut fields = Reader::new(any);
        while let Some((number, wire)) = fields.field().ok()? {
            match (number, wire) {
                (1, Wire::Bytes(b)) => kind = b,
                (2, Wire::Bytes(b)) => value = b,
                _ => {}
            }
        }
        if !kind.ends_with(b"google.rpc.RetryInfo") {
            continue;
        }
        let (mut seconds, mut nanos) = (0, 0);
        let mut info = Reader::new(value);
        while let Some((number, wire)) = info.field().ok()? {
            let (1, Wire::Bytes(delay)) = (number, wire) else { continue };
            let mut delay = Reader::new(delay);
            while let Some((number, wire)) = delay.field().ok()? {
                match (number, wire) {
                    (1, Wire::Varint(s)) => seconds = s,
                    (2, Wire::Varint(n)) => nanos = n as u32,
                    _ => {}
                }
            }
        }
        return Some(Duration::new(seconds.min(1 << 31), nanos.min(999_999_999)));
    }
    None
}

/// Messages as bytes: the encoder has made them already.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = from.remaining();
        Ok(Some(from.copy_to_bytes(len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::otlp::wire::{put_bytes, put_int};

    #[test]
    fn partial_success_and_retry_info_are_read() {
        let mut partial = Vec::new();
        put_int(&mut partial, 1, 3);
        put_bytes(&mut partial, 2, b"bad span id");
        let mut response = Vec::new();
        put_bytes(&mut response, 1, &partial);
        let want = Answer::Taken { rejected: 3, message: Some("bad span id".into()) };
        assert_eq!(partial_success(&response), want);
        assert_eq!(partial_success(b""), Answer::Taken { rejected: 0, message: None });

        let mut delay = Vec::new();
        put_int(&mut delay, 1, 7);
        let mut info = Vec::new();
        put_bytes(&mut info, 1, &delay);
        let mut any = Vec::new();
        put_bytes(&mut any, 1, b"type.googleapis.com/google.rpc.RetryInfo");
        put_bytes(&mut any, 2, &info);
        let mut details = Vec::new();
        put_int(&mut details, 1, 8);
        put_bytes(&mut details, 3, &any);
        assert_eq!(retry_delay(&details), Some(Duration::from_secs(7)));
        assert_eq!(retry_delay(b""), None);
    }
}
