//! Syslog over real sockets, from plain ones to Debian's rsyslog: every message once, with its parts.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write as _,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arrow::{
    array::AsArray,
    compute::cast,
    datatypes::{DataType, TimestampNanosecondType},
};
use collector::{
    syslog::{Config, counters},
    tenants::{IngestLimits, Tenants},
};
use parking_lot::Mutex;
use pipeline::{Data, DeliveryError, Output, Positions, Source as _, SourceContext, SourceError};
use serde_json::{Value, json};
use storage::model::TenantId;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Debug)]
struct Row {
    ts: i64,
    body: String,
    severity: String,
    labels: Value,
    attrs: Value,
}

struct NoPositions;

impl Positions for NoPositions {
    fn position(&self, _: &TenantId, _: &str) -> Option<u64> {
        None
    }
}

/// A source at work, and what came of it.
struct Running {
    tcp: Option<SocketAddr>,
    udp: Option<SocketAddr>,
    tls: Option<SocketAddr>,
    rows: Arc<Mutex<Vec<Row>>>,
    counters: Arc<counters::Counters>,
    stop: CancellationToken,
    source: JoinSet<Result<(), SourceError>>,
    _sink: JoinSet<()>,
}

impl Running {
    async fn start(config: Value) -> Running {
        Self::with(config, 0).await
    }

    /// The first `unavailable` batches are refused for now.
    async fn with(config: Value, unavailable: usize) -> Running {
        Self::launch(serde_json::from_value(config).unwrap(), unavailable).await
    }

    async fn launch(config: Config, mut unavailable: usize) -> Running {
        let built = config.build().unwrap();
        let bound = built.bound();
        let (out, mut queue) = Output::bounded(16, 64 << 20);
        let rows: Arc<Mutex<Vec<Row>>> = Arc::default();
        let (mut sink, kept) = (JoinSet::new(), rows.clone());
        sink.spawn(async move {
            let mut ids = std::collections::HashSet::new();
            while let Some(envelope) = queue.recv().await {
                if unavailable > 0 {
                    unavailable -= 1;
                    let reason = "not now".to_owned();
                    let _ = envelope
                        .ack
                        .send(Err(DeliveryError::Unavailable { reason, retry_after: Duration::from_millis(1) }));
                    continue;
                }
                assert!(ids.insert(envelope.batch.batch_id.unwrap()), "ids differ");
                kept.lock().extend(rows_of(&envelope.batch.data));
                let _ = envelope.ack.send(Ok(()));
            }
        });
        let stop = CancellationToken::new();
        let ctx = SourceContext { name: "syslog".into(), out, stop: stop.clone(), positions: Arc::new(NoPositions) };
        let mut source = JoinSet::new();
        source.spawn(Box::new(built).run(ctx));
        let (tcp, udp, tls) = (bound.tcp, bound.udp, bound.tls);
        Running { tcp, udp, tls, rows, counters: config.counters, stop, source, _sink: sink }
    }

    /// Waits for so many rows.
    async fn rows(&self, n: usize) -> Vec<Row> {
        for _ in 0..2000 {
            if self.rows.lock().len() >= n {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let rows = self.rows.lock().clone();
        assert!(rows.len() >= n, "{} of {n} rows: {rows:?} {:?}", rows.len(), self.counters);
        rows
    }

    /// All rows, once the source has ended.
    async fn end(mut self) -> Vec<Row> {
        self.stop.cancel();
        self.source.join_next().await.unwrap().unwrap().unwrap();
        self.rows.lock().clone()
    }

    fn figures(&self) -> String {
        let mut out = String::new();
        counters::render(&[("s".to_owned(), self.counters.clone())], &mut out);
        out
    }
}

fn rows_of(data: &Data) -> Vec<Row> {
    let Data::Logs(batch) = data else { panic!("log rows expected") };
    let text = |name: &str| cast(batch.column_by_name(name).unwrap(), &DataType::Utf8).unwrap();
    let (body, labels, attrs) = (text("body"), text("stream_labels"), text("attrs"));
    let severity = text("severity_text");
    let ts = batch.column_by_name("ts").unwrap().as_primitive::<TimestampNanosecondType>();
    let row = |i: usize| Row {
        ts: ts.value(i),
        body: body.as_string::<i32>().value(i).to_owned(),
        severity: severity.as_string::<i32>().value(i).to_owned(),
        labels: serde_json::from_str(labels.as_string::<i32>().value(i)).unwrap(),
        attrs: serde_json::from_str(attrs.as_string::<i32>().value(i)).unwrap(),
    };
    (0..batch.num_rows()).map(row).collect()
}

fn bodies(rows: &[Row]) -> Vec<&str> {
    let mut bodies: Vec<&str> = rows.iter().map(|r| r.body.as_str()).collect();
    bodies.sort();
    bodies
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transport_brings_its_messages_and_stop_takes_what_was_read() {
    let dir = tempfile::tempdir().unwrap();
    let (unix, stream) = (dir.path().join("log"), dir.path().join("stream"));
    // What a killed process left.
    drop(UnixDatagram::bind(&unix).unwrap());
    let s = Running::start(json!({
        "tcp": "127.0.0.1:0", "udp": "127.0.0.1:0", "unix": unix, "unix_stream": stream,
        "labels": {"site": "lab"}, "utc_offset": "+00:00", "message_bytes_max": 512,
    }))
    .await;
    let mut tcp = TcpStream::connect(s.tcp.unwrap()).unwrap();
    tcp.write_all(b"<14>1 2026-01-01T00:00:00Z web shop 7 ID [a b=\"c\"] counted by line\n").unwrap();
    tcp.write_all(b"59 <14>1 2026-01-01T00:00:00Z web shop - - - counted by octets").unwrap();
    tcp.write_all(format!("<14>{}\n", "x".repeat(2000)).as_bytes()).unwrap();
    tcp.write_all(b"<11>no end").unwrap();
    drop(tcp);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.send_to(b"<34>Jan  1 00:00:00 router su[3]: from far\n\0", s.udp.unwrap()).unwrap();
    udp.send_to(b"not syslog \xff", s.udp.unwrap()).unwrap();
    udp.send_to(b"\n", s.udp.unwrap()).unwrap();
    UnixDatagram::unbound().unwrap().send_to(b"<30>Jan  1 00:00:00 cron[9]: from here", &unix).unwrap();
    UnixStream::connect(&stream).unwrap().write_all(b"<30>Jan  1 00:00:00 cron: by stream\n").unwrap();
    let rows = s.rows(8).await;
    let long = "x".repeat(508);
    let mut wanted = vec![
        "by stream",
        "counted by line",
        "counted by octets",
        "from far",
        "from here",
        "no end",
        "not syslog \u{fffd}",
        &long,
    ];
    wanted.sort();
    assert_eq!(bodies(&rows), wanted);
    let row = |body: &str| rows.iter().find(|r| r.body == body).unwrap();
    let line = row("counted by line");
    assert_eq!(line.labels, json!({"app": "shop", "host": "web", "service_name": "shop", "site": "lab"}));
    let attrs = json!({"a.b": "c", "facility": "user", "msgid": "ID", "pid": "7", "source_ip": "127.0.0.1"});
    assert_eq!((line.ts, line.severity.as_str(), &line.attrs), (1_767_225_600_000_000_000, "info", &attrs));
    assert_eq!(row("from far").labels["host"], "router");
    assert_eq!((row("from far").severity.as_str(), &row("from far").attrs["pid"]), ("critical", &json!("3")));
    assert_eq!(row("from here").labels["host"], collector::node_name());
    assert_eq!(row(&long).labels["host"], "127.0.0.1");
    let figures = s.figures();
    for line in [
        "messages_total{source=\"s\",transport=\"udp\"} 2",
        "messages_total{source=\"s\",transport=\"tcp\"} 4",
        "messages_total{source=\"s\",transport=\"unix\"} 2",
        "delivered_total{source=\"s\"} 8",
        "cut_total{source=\"s\"} 2",
        "invalid_utf8_total{source=\"s\"} 1",
        "unparsed_total{source=\"s\"} 1",
        "overrun_total{source=\"s\"} 0",
    ] {
        assert!(figures.contains(&format!("collector_syslog_{line}")), "{line}: {figures}");
    }
    udp.send_to(b"<13>last words", s.udp.unwrap()).unwrap();
    assert!(bodies(&s.end().await).contains(&"last words"));
    assert!(!unix.exists() && !stream.exists(), "socket files are removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_finds_the_pipeline_full_comes_again_and_is_there_once() {
    let s = Running::with(json!({"tcp": "127.0.0.1:0"}), 1).await;
    let mut tcp = TcpStream::connect(s.tcp.unwrap()).unwrap();
    for n in 0..5000 {
        tcp.write_all(format!("<13>line {n}\n").as_bytes()).unwrap();
    }
    drop(tcp);
    let rows = s.rows(5000).await;
    let wanted: Vec<String> = (0..5000).map(|n| format!("line {n}")).collect();
    assert_eq!(rows.iter().map(|r| r.body.clone()).collect::<Vec<_>>(), wanted, "in order, each once");
    assert_eq!(s.end().await.len(), 5000);
}

#[test]
fn a_source_that_cannot_listen_says_where_and_why() {
    let told = |config: Value| serde_json::from_value::<Config>(config).unwrap().build().unwrap_err().to_string();
    assert!(told(json!({})).contains("give at least one of tcp"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    assert!(told(json!({"tcp": addr})).contains(&format!("cannot listen on TCP {addr}")));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x");
    std::fs::write(&file, "not PEM").unwrap();
    let tls = json!({"listen": "127.0.0.1:0", "cert_file": file, "key_file": file});
    assert!(told(json!({"tls": tls})).contains("there is no certificate in it"));
    // A file that is no socket is never removed.
    assert!(told(json!({"unix": file})).contains("cannot listen on"));
    assert!(file.exists());
}

/// A certificate of `localhost` that is its own authority.
fn certificate(dir: &Path, name: &str) -> rcgen::CertifiedKey<rcgen::KeyPair> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join(format!("{name}.pem")), made.cert.pem()).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_certificate_is_refused_where_one_is_asked_for() {
    use rustls_pki_types::{PrivateKeyDer, ServerName};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let dir = tempfile::tempdir().unwrap();
    let server = certificate(dir.path(), "server");
    let client = certificate(dir.path(), "client");
    let path = |name: &str| dir.path().join(name);
    let s = Running::start(json!({"tls": {"listen": "127.0.0.1:0", "cert_file": path("server.pem"),
        "key_file": path("server.key"), "client_ca_file": path("client.pem")}}))
    .await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.cert.der().clone()).unwrap();
    let builder = || {
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
    };
    let key = PrivateKeyDer::try_from(client.signing_key.serialize_der()).unwrap();
    let known = builder().with_client_auth_cert(vec![client.cert.der().clone()], key).unwrap();
    for (config, line) in [(builder().with_no_client_auth(), "<13>stranger\n"), (known, "<13>friend\n")] {
        let socket = tokio::net::TcpStream::connect(s.tls.unwrap()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let Ok(mut stream) = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await else {
            continue;
        };
        let _ = stream.write_all(line.as_bytes()).await;
        let _ = stream.shutdown().await;
        let _ = stream.read(&mut [0; 1]).await;
    }
    let rows = s.rows(1).await;
    assert_eq!(bodies(&rows), ["friend"]);
    let figures = s.figures();
    assert!(figures.contains("connection_errors_total{source=\"s\"} 1"), "{figures}");
    assert_eq!(s.end().await.len(), 1);
}

fn skipped(test: &str, missing: &str) {
    assert!(std::env::var("SIGHTLINE_REQUIRE_ALL").as_deref() != Ok("1"), "{test} needs {missing}");
    eprintln!("SKIPPED: {test} needs {missing}");
}

/// Ended with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn now_ns() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

const RSYSLOGD: &str = "/usr/sbin/rsyslogd";

#[tokio::test(flavor = "multi_thread")]
async fn what_rsyslog_forwards_in_each_format_over_each_transport_is_there_once() {
    let version = Command::new(RSYSLOGD).arg("-v").output();
    let ossl = |dir: std::fs::DirEntry| dir.path().join("rsyslog/lmnsd_ossl.so").exists();
    let has_tls = std::fs::read_dir("/usr/lib").is_ok_and(|all| all.flatten().any(ossl));
    if version.is_err() || !has_tls {
        return skipped("syslog by rsyslog", "the Debian packages rsyslog and rsyslog-openssl");
    }
    const COUNT: usize = 200;
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path(), "server");
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).display().to_string();
    // One source each, told apart by a label.
    let mut sources: BTreeMap<&str, Running> = BTreeMap::new();
    for (via, mut config) in [
        ("octets", json!({"tcp": "127.0.0.1:0"})),
        ("lines", json!({"tcp": "127.0.0.1:0"})),
        ("udp", json!({"udp": "127.0.0.1:0"})),
        ("unix", json!({"unix": path("out.sock")})),
        (
            "tls",
            json!({"tls": {"listen": "127.0.0.1:0", "cert_file": path("server.pem"), "key_file": path("server.key")}}),
        ),
    ] {
        config["labels"] = json!({ "via": via });
        sources.insert(via, Running::start(config).await);
    }
    let port = |via: &str| {
        let s = &sources[via];
        s.tcp.or(s.udp).or(s.tls).unwrap().port()
    };
    let conf = format!(
        r#"
global(workDirectory="{dir}" defaultNetstreamDriverCAFile="{ca}")
module(load="imuxsock" SysSock.Use="off")
module(load="omuxsock")
input(type="imuxsock" Socket="{input}" RateLimit.Interval="0")
action(type="omfwd" target="127.0.0.1" port="{octets}" protocol="tcp" TCP_Framing="octet-counted"
  template="RSYSLOG_SyslogProtocol23Format" action.resumeRetryCount="-1")
action(type="omfwd" target="127.0.0.1" port="{lines}" protocol="tcp"
  template="RSYSLOG_TraditionalForwardFormat" action.resumeRetryCount="-1")
action(type="omfwd" target="127.0.0.1" port="{udp}" protocol="udp" template="RSYSLOG_ForwardFormat")
action(type="omfwd" target="localhost" port="{tls}" protocol="tcp" TCP_Framing="octet-counted"
  StreamDriver="ossl" StreamDriverMode="1" StreamDriverAuthMode="x509/certvalid"
  template="RSYSLOG_SyslogProtocol23Format" action.resumeRetryCount="-1")
$OMUxSockSocket {out}
*.* :omuxsock:;RSYSLOG_TraditionalForwardFormat
"#,
        dir = dir.path().display(),
        ca = text("server.pem"),
        input = text("in.sock"),
        octets = port("octets"),
        lines = port("lines"),
        udp = port("udp"),
        tls = port("tls"),
        out = text("out.sock"),
    );
    std::fs::write(path("rsyslog.conf"), conf).unwrap();
    let log = std::fs::File::create(path("rsyslog.log")).unwrap();
    let daemon = Command::new(RSYSLOGD)
        .args(["-n", "-i", "NONE", "-f"])
        .arg(path("rsyslog.conf"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let _daemon = Daemon(daemon);
    let input = UnixDatagram::unbound().unwrap();
    let began = now_ns();
    for n in 0..COUNT {
        // The socket is there when rsyslog has read its configuration.
        let mut tries = 0;
        // Severity critical of facility auth.
        while let Err(e) = input.send_to(format!("<34>shop[77]: order {n} ü \"quoted\"").as_bytes(), path("in.sock"))
        {
            tries += 1;
            let log = std::fs::read_to_string(path("rsyslog.log")).unwrap_or_default();
            assert!(tries < 1000, "{e}: {log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    for (via, source) in sources {
        let ours = |rows: Vec<Row>| rows.into_iter().filter(|r| r.labels["app"] == "shop").collect::<Vec<_>>();
        for _ in 0..2000 {
            if ours(source.rows.lock().clone()).len() >= COUNT {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut rows = ours(source.end().await);
        let log = std::fs::read_to_string(path("rsyslog.log")).unwrap_or_default();
        assert_eq!(rows.len(), COUNT, "{via}: {log}");
        rows.sort_by_key(|r| r.body.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok()));
        for (n, row) in rows.iter().enumerate() {
            // rsyslog keeps the space behind the tag in the text of RFC 5424.
            assert_eq!(row.body.trim_start(), format!("order {n} ü \"quoted\""), "{via}");
            assert_eq!((row.severity.as_str(), &row.attrs["facility"]), ("critical", &json!("auth")), "{via}");
            assert_eq!((&row.attrs["pid"], &row.labels["service_name"]), (&json!("77"), &json!("shop")), "{via}");
            assert_eq!(row.labels["via"], via);
            let host = row.labels["host"].as_str().unwrap();
            assert!(collector::node_name().starts_with(host) && !host.is_empty(), "{via}: {host}");
            // Whole seconds in the old format.
            assert!((began - 1_000_000_000..=now_ns()).contains(&row.ts), "{via}: {} of {began}", row.ts);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_logger_sends_is_read_with_its_structured_data() {
    if !Command::new("logger").arg("--version").output().is_ok_and(|o| o.status.success()) {
        return skipped("syslog by logger", "the Debian package bsdutils");
    }
    let s = Running::start(json!({"tcp": "127.0.0.1:0", "udp": "127.0.0.1:0"})).await;
    let (tcp, udp) = (s.tcp.unwrap().port().to_string(), s.udp.unwrap().port().to_string());
    let sends: [&[&str]; 3] = [
        &["-T", "-P", &tcp, "--rfc5424", "--octet-count", "--sd-id", "shop@1", "--sd-param", "part=\"a b\"", "five"],
        &["-T", "-P", &tcp, "--rfc3164", "three"],
        &["-d", "-P", &udp, "--rfc5424", "datagram"],
    ];
    for args in sends {
        let out = Command::new("logger")
            .args(["-n", "127.0.0.1", "-t", "shop", "-p", "local3.warning"])
            .args(args)
            .output();
        let out = out.unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let rows = s.rows(3).await;
    assert_eq!(bodies(&rows), ["datagram", "five", "three"]);
    for row in &rows {
        assert_eq!((row.severity.as_str(), &row.attrs["facility"]), ("warn", &json!("local3")), "{row:?}");
        assert_eq!(row.labels["app"], "shop", "{row:?}");
    }
    let five = rows.iter().find(|r| r.body == "five").unwrap();
    assert_eq!(five.attrs["shop@1.part"], "a b");
    assert_eq!(s.end().await.len(), 3);
}

#[tokio::test]
async fn the_limits_of_the_tenant_hold_rows_back_and_refuse_further_streams() {
    let limits = IngestLimits {
        rows_per_second: Some(5),
        burst: Duration::from_secs(1),
        streams_max: Some(2),
        ..IngestLimits::default()
    };
    let limited = TenantId::parse("limited").unwrap();
    let mut config: Config =
        serde_json::from_value(json!({"tcp": "127.0.0.1:0", "tenant": "limited", "labels": {"service_name": "s"}}))
            .unwrap();
    config.tenants = Arc::new(Tenants::new(IngestLimits::default(), HashMap::from([(limited, limits)])));
    let running = Running::launch(config, 0).await;
    let mut socket = TcpStream::connect(running.tcp.unwrap()).unwrap();
    let began = std::time::Instant::now();
    // More than a second's worth, in one batch: it passes, and the next one waits for what is owed.
    for n in 0..8 {
        socket.write_all(format!("<13>1 - h app{} - - - first {n}\n", n % 4).as_bytes()).unwrap();
    }
    let first = running.rows(4).await;
    assert!(first.iter().all(|r| ["app0", "app1"].map(Value::from).contains(&r.labels["app"])), "{first:?}");
    socket.write_all(b"<13>1 - h app1 - - - later\n").unwrap();
    let all = running.rows(5).await;
    assert_eq!(all.last().unwrap().body, "later");
    assert!(began.elapsed() > Duration::from_millis(700), "three rows are owed, at five a second");
    let figures = running.figures();
    assert!(figures.contains("collector_syslog_limited_total{source=\"s\"} 4"), "{figures}");
    assert!(figures.contains("collector_syslog_delivered_total{source=\"s\"} 5"), "{figures}");
    drop(socket);
    running.end().await;
}
