//! The client against servers of a test: who is trusted, what is shown to whom, and tokens.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::HeaderMap;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{RootCertStore, ServerConfig, crypto::ring::default_provider, server::WebPkiClientVerifier};
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

use super::{client::HttpClient, tests::a_job};

/// The heads of requests, each after the name that the client asked TLS for, and the bodies of those with one.
type Asked = Arc<Mutex<Vec<String>>>;

/// Answers of a server, in turn; the last one again and again.
type Answers = Arc<Mutex<Vec<(u16, &'static str)>>>;

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, name: String, asked: Asked, answers: Answers) {
    let mut got = Vec::new();
    loop {
        let end = got.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&got[..end]).to_lowercase();
            let length =
                head.lines().find_map(|l| l.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
            if got.len() >= end + length {
                break;
            }
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(n) if n > 0 => got.extend_from_slice(&chunk[..n]),
            _ => return,
        }
    }
    asked.lock().push(format!("{name} {}", String::from_utf8_lossy(&got)));
    let (status, body) = {
        let mut answers = answers.lock();
        if answers.len() > 1 { answers.remove(0) } else { answers[0] }
    };
    let location = if (300..400).contains(&status) { "location: /moved\r\n" } else { "" };
    let length = body.len();
    let text =
        format!("HTTP/1.1 {status} x\r\n{location}content-length: {length}\r\nconnection: close\r\n\r\n{body}");
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

struct Site {
    dir: tempfile::TempDir,
    address: SocketAddr,
    asked: Asked,
    answers: Answers,
    _tasks: JoinSet<()>,
}

impl Site {
    async fn new(tls: Option<ServerConfig>, dir: tempfile::TempDir) -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, answers) = (Asked::default(), Answers::new(Mutex::new(vec![(200, "fine")])));
        let (log, said) = (asked.clone(), answers.clone());
        let acceptor = tls.map(|c| tokio_rustls::TlsAcceptor::from(Arc::new(c)));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                match &acceptor {
                    None => answer(socket, "-".into(), log.clone(), said.clone()).await,
                    Some(acceptor) => {
                        // A client that does not trust us leaves.
                        let Ok(stream) = acceptor.accept(socket).await else { continue };
                        let name = stream.get_ref().1.server_name().unwrap_or("-").to_owned();
                        answer(stream, name, log.clone(), said.clone()).await;
                    }
                }
            }
        });
        Site { dir, address, asked, answers, _tasks: tasks }
    }

    /// A server whose certificate, for `server.test`, and whose clients' are of one authority. In the folder: `ca.pem`,
    /// `client.pem`, `client.key`. `protocols`: those it offers by ALPN, the first first.
    async fn with_tls(protocols: &[&str]) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let leaf = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let (client, client_key) = leaf("client.test");
        let (server, server_key) = leaf("server.test");
        fs::write(dir.path().join("ca.pem"), ca.pem()).unwrap();
        fs::write(dir.path().join("client.pem"), client.pem()).unwrap();
        fs::write(dir.path().join("client.key"), client_key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let provider = Arc::new(default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let key = PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![server.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        Site::new(Some(config), dir).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

async fn get(client: &HttpClient, url: &str) -> Result<String, String> {
    let response = client.get(url, HeaderMap::new()).await?;
    Ok(format!("{} {}", response.status().as_u16(), response.text().await.map_err(|e| e.to_string())?))
}

fn client(config: &str) -> HttpClient {
    HttpClient::new(&a_job(config).http, Some(Duration::from_secs(20))).unwrap()
}

#[tokio::test]
async fn a_server_is_trusted_by_its_authority_and_its_name_and_shown_our_certificate() {
    let site = Site::with_tls(&[]).await;
    let file = |name: &str| site.path(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    let ours = format!(r#""cert_file":"{cert}","key_file":"{key}""#);
    let url = format!("https://{}/metrics?a=b", site.address);
    let tls = |keys: &str| client(&format!(r#""scheme":"https","tls_config":{{{keys}}}"#));

    let named = tls(&format!(r#""ca_file":"{ca}",{ours},"server_name":"server.test""#));
    assert_eq!(get(&named, &url).await.unwrap(), "200 fine");
    let head = site.asked.lock().pop().unwrap();
    assert!(head.starts_with("server.test GET /metrics?a=b HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: {}\r\n", site.address)), "{head}");

    let blind = tls(&format!(r#"{ours},"insecure_skip_verify":true"#));
    assert_eq!(get(&blind, &url).await.unwrap(), "200 fine");

    for (keys, why) in [
        (format!(r#""ca_file":"{ca}",{ours}"#), "not valid for name"),
        (format!(r#""ca_file":"{ca}",{ours},"server_name":"other.test""#), "not valid for name"),
        (format!(r#"{ours},"server_name":"server.test""#), "UnknownIssuer"),
        // The certificate that is asked for.
        (format!(r#""ca_file":"{ca}","server_name":"server.test""#), ""),
    ] {
        let error = get(&tls(&keys), &url).await.unwrap_err();
        assert!(error.contains(why), "{keys}: {error}");
    }
    assert_eq!(site.asked.lock().len(), 1);
}

#[tokio::test]
async fn secrets_in_files_count_as_they_are_at_each_request() {
    let site = Site::new(None, tempfile::tempdir().unwrap()).await;
    let (url, file) = (format!("http://{}/", site.address), site.path("secret"));
    let shown = file.display();
    for (config, first, second) in [
        (
            format!(r#""basic_auth":{{"username":"u","password_file":"{shown}"}}"#),
            "authorization: Basic dTpvbmU=\r\n",
            "authorization: Basic dTp0d28=\r\n",
        ),
        (
            format!(r#""bearer_token_file":"{shown}""#),
            "authorization: Bearer one\r\n",
            "authorization: Bearer two\r\n",
        ),
        (
            format!(r#""authorization":{{"type":"Own","credentials_file":"{shown}"}}"#),
            "authorization: Own one\r\n",
            "authorization: Own two\r\n",
        ),
        (format!(r#""http_headers":{{"X-Key":{{"files":["{shown}"]}}}}"#), "x-key: one\r\n", "x-key: two\r\n"),
    ] {
        fs::write(&file, "one\n").unwrap();
        let client = client(&config);
        for (text, want) in [("one\n", first), ("two\n", second)] {
            fs::write(&file, text).unwrap();
            get(&client, &url).await.unwrap();
            let head = site.asked.lock().pop().unwrap();
            assert!(head.contains(want), "{want}: {head}");
        }
        fs::remove_file(&file).unwrap();
        assert!(get(&client, &url).await.unwrap_err().starts_with("cannot read "));
    }
}

#[tokio::test]
async fn a_token_is_asked_for_once_until_it_ends_or_its_secret_changes() {
    let here = tempfile::tempdir().unwrap();
    let (target, tokens) = (Site::new(None, here).await, Site::new(None, tempfile::tempdir().unwrap()).await);
    *tokens.answers.lock() = vec![
        (401, "who?"),
        (200, r#"{"access_token":"t1","token_type":"bearer","expires_in":3600}"#),
        (200, r#"{"access_token":"t2","expires_in":"5"}"#),
        (200, r#"{"access_token":"t3"}"#),
        (503, ""),
    ];
    let secret = tokens.path("secret");
    fs::write(&secret, "s s").unwrap();
    let client = client(&format!(
        r#""oauth2":{{"client_id":"me","client_secret_file":"{}","scopes":["a","b"],"token_url":"http://{}/t","endpoint_params":{{"x":"y"}}}}"#,
        secret.display(),
        tokens.address
    ));
    let url = format!("http://{}/metrics", target.address);
    let asked_with = async || {
        get(&client, &url).await.map(|_| {
            let head = target.asked.lock().pop().unwrap();
            let line = head.lines().find(|l| l.starts_with("authorization: ")).unwrap_or_default();
            line.to_owned()
        })
    };
    for _ in 0..3 {
        assert_eq!(asked_with().await.unwrap(), "authorization: Bearer t1");
    }
    let requests = tokens.asked.lock().clone();
    assert_eq!(requests.len(), 2, "the header is tried before the form");
    assert!(requests[0].contains("authorization: Basic bWU6cytz\r\n"), "{}", requests[0]);
    assert!(requests[0].ends_with("grant_type=client_credentials&scope=a+b&x=y"), "{}", requests[0]);
    assert!(requests[1].ends_with("&x=y&client_id=me&client_secret=s+s"), "{}", requests[1]);
    fs::write(&secret, "other").unwrap();
    assert_eq!(asked_with().await.unwrap(), "authorization: Bearer t2");
    assert!(tokens.asked.lock()[2].ends_with("&client_secret=other"));
    // That one ends in less than ten seconds, the next never.
    for _ in 0..2 {
        assert_eq!(asked_with().await.unwrap(), "authorization: Bearer t3");
    }
    fs::write(&secret, "third").unwrap();
    let error = asked_with().await.unwrap_err();
    assert_eq!(error, format!("no token from http://{}/t: it answered 503 Service Unavailable", tokens.address));
    assert!(target.asked.lock().is_empty(), "asked without a token");
}

#[tokio::test]
async fn a_proxy_is_asked_except_for_what_it_is_not_for() {
    let proxy = Site::new(None, tempfile::tempdir().unwrap()).await;
    let target = Site::new(None, tempfile::tempdir().unwrap()).await;
    let config = |no: &str| format!(r#""proxy_url":"http://{}","no_proxy":"{no}""#, proxy.address);
    get(&client(&config("10.0.0.0/8")), &format!("http://{}/m", target.address)).await.unwrap();
    assert!(proxy.asked.lock()[0].starts_with(&format!("- GET http://{}/m HTTP/1.1", target.address)));
    get(&client(&config("127.0.0.0/8,.x")), &format!("http://{}/m", target.address)).await.unwrap();
    assert_eq!((proxy.asked.lock().len(), target.asked.lock().len()), (1, 1));
}

#[tokio::test]
async fn redirects_are_followed_unless_told_otherwise() {
    let site = Site::new(None, tempfile::tempdir().unwrap()).await;
    let url = format!("http://{}/m", site.address);
    *site.answers.lock() = vec![(302, ""), (200, "there")];
    assert_eq!(get(&client(""), &url).await.unwrap(), "200 there");
    assert!(site.asked.lock()[1].starts_with("- GET /moved HTTP/1.1"));
    *site.answers.lock() = vec![(302, "")];
    assert_eq!(get(&client(r#""follow_redirects":false"#), &url).await.unwrap(), "302 ");
    assert_eq!(site.asked.lock().len(), 3);
}

#[tokio::test]
async fn http2_is_spoken_where_it_is_offered_unless_told_otherwise() {
    let site = Site::with_tls(&["h2", "http/1.1"]).await;
    let file = |name: &str| site.path(name).display().to_string();
    let tls = format!(
        r#""tls_config":{{"insecure_skip_verify":true,"cert_file":"{}","key_file":"{}"}}"#,
        file("client.pem"),
        file("client.key")
    );
    let url = format!("https://{}/m", site.address);
    assert_eq!(get(&client(&format!(r#""enable_http2":false,{tls}"#)), &url).await.unwrap(), "200 fine");
    assert!(site.asked.lock().pop().unwrap().contains("GET /m HTTP/1.1"));
    // This server says it knows the protocol; what it is asked with is enough.
    get(&client(&tls), &url).await.unwrap_err();
    assert!(site.asked.lock().pop().unwrap().contains("PRI * HTTP/2.0"));
}

#[test]
fn what_oauth2_does_not_do_is_named_and_what_is_wrong_is_refused() {
    let found = super::tests::checked(
        r#"{"job_name":"j","no_proxy":"x","oauth2":{"client_id":"","token_url":"ftp://x","grant_type":"urn:ietf:params:oauth:grant-type:jwt-bearer","client_certificate_key_file":"k","client_secret":"a","client_secret_file":"b"}}"#,
    );
    let paths = |findings: &[super::job::Finding]| findings.iter().map(|f| f.path.clone()).collect::<Vec<_>>();
    let at = |key: &str| format!("scrape_configs[0].{key}");
    assert_eq!(paths(&found.unsupported), [at("oauth2.client_certificate_key_file"), at("oauth2.grant_type")]);
    assert_eq!(paths(&found.errors), [at("oauth2.client_id"), at("oauth2"), at("oauth2.token_url"), at("no_proxy")]);
}
