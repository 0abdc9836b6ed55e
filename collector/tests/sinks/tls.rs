//! TLS, with authorities the system does not know.

use std::{path::PathBuf, sync::Arc};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use storage::model::Table;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use super::{Shipper, fixture::Fixture, logs};

struct Secure {
    port: u16,
    ca_file: PathBuf,
    _dir: tempfile::TempDir,
    _task: JoinSet<()>,
}

async fn serve(router: Router) -> Secure {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, made.cert.pem()).unwrap();
    let chain = vec![CertificateDer::from(made.cert.der().to_vec())];
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, router) = (acceptor.clone(), router.clone());
            connections.spawn(async move {
                // A client that does not trust us hangs up here.
                if let Ok(stream) = acceptor.accept(stream).await {
                    let service = TowerToHyperService::new(router);
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                }
            });
        }
    });
    Secure { port, ca_file, _dir: dir, _task: task }
}

#[tokio::test]
async fn an_authority_from_a_file_is_trusted_over_http_and_grpc_and_no_other_is() {
    let fixture = Fixture::new().await;
    let (http, grpc) = (serve(fixture.router.clone()).await, serve(fixture.grpc.clone()).await);
    let https = format!("https://localhost:{}", http.port);
    let grpcs = format!("grpcs://localhost:{}", grpc.port);
    for (url, ca_file, line) in [(&https, &http.ca_file, "over https"), (&grpcs, &grpc.ca_file, "over grpcs")] {
        let strict = Shipper::new(json!({
            "type": "otlp", "url": url, "retry": {"first": "5ms", "most": "20ms", "give_up": "300ms"},
        }));
        strict.deliver(logs(&["nobody may see this"])).await.unwrap_err();
        let trusting = Shipper::new(json!({"type": "otlp", "url": url, "tls": {"ca_file": ca_file}}));
        trusting.deliver(logs(&[line])).await.unwrap();
    }
    let reckless = Shipper::new(json!({"type": "otlp", "url": https, "tls": {"insecure_skip_verify": true}}));
    reckless.deliver(logs(&["unverified"])).await.unwrap();
    let mut bodies = fixture.column(Table::Logs, "body").await;
    bodies.sort();
    assert_eq!(bodies, ["over grpcs", "over https", "unverified"]);
}
