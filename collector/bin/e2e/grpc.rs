//! One raw gRPC call: any bytes as the message, so that broken ones can be sent.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

/// What came back: `grpc-status`, `grpc-message` and the message without its prefix.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub message: String,
    pub body: Vec<u8>,
}

/// A message with its flag and length.
pub fn framed(compressed: bool, message: &[u8]) -> Vec<u8> {
    let mut out = vec![u8::from(compressed)];
    out.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    out.extend_from_slice(message);
    out
}

/// `body`: as it goes over the wire, prefix included. `encoding`: empty for none.
pub fn call(addr: SocketAddr, method: &str, encoding: &str, body: Vec<u8>) -> Reply {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(connection);
        let mut request = http::Request::post(format!("http://{addr}{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if !encoding.is_empty() {
            request = request.header("grpc-encoding", encoding);
        }
        let answer = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200, "gRPC tells its errors in grpc-status");
        let head = answer.headers().clone();
        let collected = answer.into_body().collect().await.unwrap();
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let text = |name: &str| {
            let value = trailers.get(name).or_else(|| head.get(name));
            value.map_or(String::new(), |v| v.to_str().unwrap().to_owned())
        };
        let bytes = collected.to_bytes();
        Reply {
            status: text("grpc-status").parse().expect("every call ends with a status"),
            message: text("grpc-message"),
            body: bytes.get(5..).unwrap_or_default().to_vec(),
        }
    })
}
