//! OTLP over gRPC with a real client over a real socket, and the listener's own behaviour.

use std::time::Duration;

use collector::{listen, otlp::grpc};
use opentelemetry_proto::tonic::collector::{
    logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
    metrics::v1::{ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient},
    trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
};
use storage::model::Table;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, codec::CompressionEncoding};

use crate::{
    fixture::{Fixture, post},
    otlp::{logs_request, metrics_request, traces_request},
};

struct Server {
    url: String,
    stop: CancellationToken,
    task: JoinSet<()>,
}

async fn start(f: &Fixture) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let mut task = JoinSet::new();
    task.spawn(grpc::serve(listener, f.out.clone(), f.config.clone(), listen::ListenLimits::default(), stop.clone()));
    Server { url: format!("http://{address}"), stop, task }
}

#[tokio::test]
async fn a_tonic_client_exports_the_three_signals_and_the_server_drains() {
    let f = Fixture::new().await;
    let mut server = start(&f).await;
    for (encoding, n) in [(None, 2), (Some(CompressionEncoding::Gzip), 4), (Some(CompressionEncoding::Zstd), 6)] {
        let mut logs = LogsServiceClient::connect(server.url.clone()).await.unwrap();
        if let Some(e) = encoding {
            logs = logs.send_compressed(e);
        }
        let answer = logs.export(logs_request()).await.unwrap().into_inner();
        assert_eq!(answer.partial_success, None);
        assert_eq!(f.column(Table::Logs, "body").await.len(), n);
    }
    let mut traces = TraceServiceClient::connect(server.url.clone()).await.unwrap();
    let answer = traces.export(traces_request()).await.unwrap().into_inner();
    assert_eq!(answer.partial_success.unwrap().rejected_spans, 1);
    let mut metrics = MetricsServiceClient::connect(server.url.clone()).await.unwrap();
    metrics.export(metrics_request()).await.unwrap();
    for empty in [
        traces.export(ExportTraceServiceRequest::default()).await.map(|_| ()),
        metrics.export(ExportMetricsServiceRequest::default()).await.map(|_| ()),
    ] {
        empty.unwrap();
    }
    assert!(!f.column(Table::Spans, "name").await.is_empty());
    assert!(!f.column(Table::MetricSamples, "value").await.is_empty());
    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), server.task.join_next()).await.unwrap();
}

#[tokio::test]
async fn an_unknown_method_and_a_broken_frame_get_a_status_in_the_headers() {
    let f = Fixture::new().await;
    let grpc = ("content-type", "application/grpc");
    let path = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
    for (path, headers, body, want) in [
        ("/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export", vec![grpc], vec![], "12"),
        (path, vec![grpc], vec![0, 0], "3"),
        (path, vec![grpc], vec![0, 0, 0, 0, 9, 1], "3"),
        (path, vec![grpc, ("grpc-encoding", "br")], vec![0; 5], "12"),
    ] {
        let answer = post(&f.grpc, path, &headers, body).await;
        assert_eq!((answer.status.as_u16(), answer.headers["grpc-status"].to_str().unwrap()), (200, want), "{path}");
    }
    assert_eq!(post(&f.grpc, path, &[("content-type", "text/plain")], "").await.status, 415);
}

#[tokio::test]
async fn errors_are_grpc_statuses() {
    let f = Fixture::new().await;
    let server = start(&f).await;
    let channel = tonic::transport::Channel::from_shared(server.url.clone()).unwrap().connect().await.unwrap();
    let mut client = LogsServiceClient::with_interceptor(channel, |mut r: tonic::Request<()>| {
        r.metadata_mut().insert("x-scope-orgid", "a/b".parse().unwrap());
        Ok(r)
    });
    let error = client.export(ExportLogsServiceRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("X-Scope-OrgID"), "{}", error.message());
}

#[tokio::test]
async fn a_slow_header_is_cut_and_http1_is_served_on_the_same_port() {
    let f = Fixture::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let mut task = JoinSet::new();
    let limits = listen::ListenLimits { header_wait: Duration::from_millis(200), ..listen::ListenLimits::default() };
    task.spawn(listen::serve(listener, f.router.clone(), limits, stop.clone()));
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"POST /ingest/ndjson HTTP/1.1\r\nhost:").await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), slow.read_to_end(&mut rest)).await.unwrap().unwrap();
    let mut good = TcpStream::connect(address).await.unwrap();
    let body = "{\"msg\":\"x\"}";
    let request = format!(
        "POST /ingest/ndjson HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    good.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    good.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), task.join_next()).await.unwrap();
}
