//! The source against targets that a test scripts: what they are asked, and what becomes of their answers.

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;
use pipeline::{Data, Envelope, Output, Positions, SourceContext};
use storage::model::{MetricBatch, TenantId};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Config, Pools,
    target::Health,
    tests::{a_job, rows},
};

struct Nowhere;

impl Positions for Nowhere {
    fn position(&self, _: &TenantId, _: &str) -> Option<u64> {
        None
    }
}

/// What a target answers, and what it was asked with.
type Played = (StatusCode, Option<&'static str>, Vec<u8>, Vec<(String, HeaderMap)>);

#[derive(Clone)]
struct Script(Arc<Mutex<Played>>);

async fn exposed(State(script): State<Script>, request: Request) -> Response {
    let mut script = script.0.lock();
    let (head, _) = request.into_parts();
    script.3.push((head.uri.to_string(), head.headers));
    let mut response = (script.0, script.2.clone()).into_response();
    response.headers_mut().remove(header::CONTENT_TYPE);
    if let Some(kind) = script.1 {
        response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    }
    if script.2.starts_with(&[0x1f, 0x8b]) {
        response.headers_mut().insert(header::CONTENT_ENCODING, http::HeaderValue::from_static("gzip"));
    }
    response
}

struct World {
    script: Script,
    address: SocketAddr,
    tasks: JoinSet<()>,
    sent: mpsc::Receiver<Envelope>,
    pools: Arc<Pools>,
    stop: CancellationToken,
}

const TEXT: &str = "text/plain; version=0.0.4";

impl World {
    /// A target that exposes `body`, and a source with a job of `config`, where `TARGET` is the target's address.
    async fn new(config: &str, body: &str) -> World {
        let script = Script(Arc::new(Mutex::new((StatusCode::OK, Some(TEXT), body.as_bytes().to_vec(), Vec::new()))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/metrics", get(exposed)).with_state(script.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let config = config.replace("TARGET", &address.to_string());
        let job = a_job(&format!(r#""scrape_interval":"200ms","scrape_timeout":"150ms",{config}"#));
        let config = Config { jobs: vec![job], ..Config::default() };
        let pools = config.pools.clone();
        let source = config.source().unwrap();
        let (out, sent) = Output::bounded(64, 64 << 20);
        let stop = CancellationToken::new();
        let ctx = SourceContext { name: "prom".into(), out, stop: stop.clone(), positions: Arc::new(Nowhere) };
        tasks.spawn(async move { source.run(ctx).await.unwrap() });
        World { script, address, tasks, sent, pools, stop }
    }

    /// The next scrape's rows.
    async fn next(&mut self) -> Vec<MetricBatch> {
        let envelope = timeout(Duration::from_secs(20), self.sent.recv()).await.expect("a scrape").expect("a source");
        let Data::Metrics(batch) = envelope.batch.data else { panic!() };
        envelope.ack.answer(Ok(()));
        vec![batch]
    }

    /// Rows without time and the target's labels, of the next scrape in which there is `wanted`.
    async fn until(&mut self, wanted: &str) -> Vec<String> {
        for _ in 0..100 {
            let suffix = format!("instance={},job=j", self.address);
            let short = |r: &String| {
                let (series, point) = r.split_once(" @").unwrap();
                format!("{} {}", series.replace(&suffix, "").replace("{,", "{"), point.split_once(' ').unwrap().1)
            };
            let got: Vec<String> = rows(&self.next().await).iter().map(short).collect();
            if got.iter().any(|r| r == wanted) {
                return got;
            }
        }
        panic!("no scrape has {wanted}");
    }

    fn last_error(&self) -> (Health, String) {
        let status = self.pools.all()[0].active()[0].status.lock().clone();
        (status.health, status.last_error)
    }
}

const STATIC: &str = r#""static_configs":[{"targets":["TARGET"]}]"#;

#[tokio::test]
async fn a_target_is_asked_as_prometheus_asks_and_all_its_samples_bear_one_time() {
    let config = format!(
        r#"{STATIC},"params":{{"a":["b"]}},"basic_auth":{{"username":"u","password":"p"}},"http_headers":{{"X-Own":{{"values":["1"]}}}}"#
    );
    let mut world = World::new(&config, "").await;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"# TYPE a_total counter\na_total{x=\"y\"} 1\nb 2\n").unwrap();
    world.script.0.lock().2 = gzip.finish().unwrap();
    world.until("a_total{x=y} 1").await;
    let batch = world.next().await;
    let all = rows(&batch);
    assert_eq!(all.len(), 2 + 5, "{all:?}");
    let times: std::collections::BTreeSet<&str> =
        all.iter().map(|r| r.split_once('@').unwrap().1.split_once(' ').unwrap().0).collect();
    assert_eq!(times.len(), 1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let at: i64 = times.first().unwrap().parse().unwrap();
    assert!((now - at).abs() < 20_000, "{at} {now}");
    let (uri, headers) = world.script.0.lock().3.last().unwrap().clone();
    assert_eq!(uri, "/metrics?a=b");
    let told = |name: &str| headers.get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    assert!(told("accept").starts_with("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"));
    assert_eq!(
        (told("accept-encoding").as_str(), told("x-prometheus-scrape-timeout-seconds").as_str()),
        ("gzip", "0.15")
    );
    assert_eq!((told("authorization").as_str(), told("x-own").as_str()), ("Basic dTpw", "1"));
    assert!(told("user-agent").starts_with("sightline/"));
    assert_eq!(world.last_error(), (Health::Up, String::new()));
    world.stop.cancel();
    let World { mut tasks, sent, .. } = world;
    drop(sent);
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
}

#[tokio::test]
async fn a_target_that_fails_is_down_with_its_reason_and_its_series_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("failures.json");
    let config = format!(r#"{STATIC},"body_size_limit":"1KB","scrape_failure_log_file":"{}""#, log.display());
    let mut world = World::new(&config, "a 1\nb 2\n").await;
    world.until("up{} 1").await;
    world.script.0.lock().0 = StatusCode::NOT_FOUND;
    let got = world.until("up{} 0").await;
    assert!(got.contains(&"a{} stale".to_owned()) && got.contains(&"b{} stale".to_owned()), "{got:?}");
    assert_eq!(world.last_error(), (Health::Down, "server returned HTTP status 404 Not Found".into()));
    for (kind, body, want) in [
        (None, b"a 1\n".to_vec(), "the target sends no Content-Type; set fallback_scrape_protocol for it"),
        (Some(TEXT), b"a 1\nb\n".to_vec(), "line 2: expected a value after the series, got end of line"),
        (Some(TEXT), vec![b'\n'; 1025], "body size limit exceeded: more than 1024 bytes"),
    ] {
        {
            let mut script = world.script.0.lock();
            (script.0, script.1, script.2) = (StatusCode::OK, kind, body);
        }
        for _ in 0..100 {
            world.next().await;
            if world.last_error().1 == want {
                break;
            }
        }
        assert_eq!(world.last_error(), (Health::Down, want.into()));
        // The log of failures has a line of it.
        let lines = std::fs::read_to_string(&log).unwrap();
        let line: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        let url = format!("http://{}/metrics", world.address);
        for (key, told) in [("msg", want), ("level", "ERROR"), ("job_name", "j"), ("target", &url)] {
            assert_eq!(line[key], told, "{line}");
        }
    }
}

#[tokio::test]
async fn compression_and_escaping_are_asked_for_as_the_job_says() {
    for (config, encoding, escaping) in [
        (r#""enable_compression":false,"metric_name_escaping_scheme":"dots""#, "identity", "dots"),
        (r#""enable_compression":true,"metric_name_escaping_scheme":"values""#, "gzip", "values"),
        (r#""metric_name_validation_scheme":"legacy""#, "gzip", "underscores"),
    ] {
        let mut world = World::new(&format!("{STATIC},{config}"), "a 1\n").await;
        world.until("a{} 1").await;
        let headers = world.script.0.lock().3.last().unwrap().1.clone();
        assert_eq!(headers["accept-encoding"], encoding, "{config}");
        let accept = headers["accept"].to_str().unwrap();
        // The old text format knows no escaping.
        assert!(accept.contains(&format!("text/plain;version=1.0.0;escaping={escaping};")), "{config}: {accept}");
        assert!(accept.contains(&format!("version=1.0.0;escaping={escaping};q=0.6,")), "{config}: {accept}");
    }
}

#[tokio::test]
async fn dropped_targets_are_remembered_up_to_their_limit() {
    let drop = r#""relabel_configs":[{"source_labels":["__address__"],"regex":"x.","action":"drop"}]"#;
    for (limit, kept) in [("", 3), (r#","keep_dropped_targets":2"#, 2), (r#","keep_dropped_targets":0"#, 3)] {
        let targets = r#""static_configs":[{"targets":["TARGET","x1","x2","x3"]}]"#;
        let mut world = World::new(&format!("{targets},{drop}{limit}"), "a 1\n").await;
        world.until("a{} 1").await;
        let pool = world.pools.all()[0].clone();
        assert_eq!((pool.active().len(), pool.dropped().len(), pool.dropped_total()), (1, kept, 3), "{limit}");
    }
}

#[tokio::test]
async fn targets_over_the_limit_are_all_down() {
    let config = r#""static_configs":[{"targets":["TARGET","TARGET","localhost:1"]}],"target_limit":1"#;
    let mut world = World::new(config, "a 1\n").await;
    for _ in 0..4 {
        let got = rows(&world.next().await);
        assert!(got.iter().any(|r| r.starts_with("up{") && r.ends_with(" 0")), "{got:?}");
    }
    assert!(world.script.0.lock().3.is_empty(), "asked");
    assert_eq!(world.last_error().1, "target_limit exceeded (number of targets: 2, limit: 1)");
}

#[tokio::test]
async fn series_of_a_target_that_is_gone_end_and_a_new_one_begins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.json");
    let config = format!(r#""file_sd_configs":[{{"files":["{}"]}}]"#, file.display());
    let mut world = World::new(&config, "a 1\n").await;
    let address = world.address;
    let name = |labels: &str| format!(r#"[{{"targets":["{address}"],"labels":{{{labels}}}}}]"#);
    std::fs::write(&file, name("")).unwrap();
    world.until("a{} 1").await;
    std::fs::write(&file, name(r#""zone":"x""#)).unwrap();
    let mut ended = false;
    let mut began = false;
    for _ in 0..100 {
        let got = rows(&world.next().await);
        ended |= got.iter().any(|r| r.starts_with("up{") && !r.contains("zone=x") && r.ends_with("stale"));
        began |= got.iter().any(|r| r.starts_with("a{") && r.contains("zone=x") && r.ends_with(" 1"));
        assert!(!got.iter().any(|r| r.contains("zone=x") && r.ends_with("stale")), "{got:?}");
        if ended && began {
            return;
        }
    }
    panic!("ended {ended}, began {began}");
}

#[tokio::test]
async fn rows_that_are_refused_are_counted() {
    let mut world = World::new(STATIC, "a 1\n").await;
    let refused = timeout(Duration::from_secs(20), world.sent.recv()).await.unwrap().unwrap();
    let reason = pipeline::DeliveryError::Rejected("no".into());
    let lost = refused.batch.data.rows() as u64;
    refused.ack.answer(Err(reason));
    world.until("up{} 1").await;
    let counters = &world.pools.counters;
    assert_eq!(counters.lost.load(std::sync::atomic::Ordering::Relaxed), lost);
}

#[tokio::test]
async fn a_job_that_changes_goes_on_with_its_targets_and_one_that_is_gone_ends_them() {
    let mut world = World::new(STATIC, "a 1\n").await;
    world.until("a{} 1").await;
    let (pools, address) = (world.pools.clone(), world.address.to_string());
    let job = |more: &str| {
        let targets = STATIC.replace("TARGET", &address);
        a_job(&format!(r#""scrape_interval":"200ms","scrape_timeout":"150ms",{targets}{more}"#))
    };
    let set = |jobs: &[Arc<super::job::Job>]| pools.set(pools.prepare(jobs).unwrap());
    let target = || pools.all()[0].active()[0].clone();
    let before = target();
    set(&[job("")]);
    world.until("a{} 1").await;
    assert!(Arc::ptr_eq(&before, &target()), "nothing changed");
    set(&[job(r#","metric_relabel_configs":[{"target_label":"x","replacement":"y"}]"#)]);
    let is_end = |r: &String| r.starts_with("up{") && r.ends_with("stale");
    loop {
        let got = rows(&world.next().await);
        assert!(!got.iter().any(is_end), "{got:?}");
        if got.iter().any(|r| r.starts_with("a{") && r.contains("x=y")) {
            break;
        }
    }
    set(&[]);
    assert!(pools.all().is_empty());
    while !rows(&world.next().await).iter().any(is_end) {}
}

#[tokio::test]
async fn protocols_are_asked_for_in_their_order_and_the_fallback_reads_what_names_none() {
    let config = format!(
        r#"{STATIC},"scrape_protocols":["PrometheusText0.0.4","OpenMetricsText1.0.0"],"fallback_scrape_protocol":"OpenMetricsText1.0.0""#
    );
    let mut world = World::new(&config, "# TYPE a counter\na_total 1\n# EOF\n").await;
    for kind in [None, Some("application/json")] {
        world.script.0.lock().1 = kind;
        // The second scrape from now is one that was asked for after the change.
        world.next().await;
        world.next().await;
        world.until("a_total{} 1").await;
        assert_eq!(world.last_error(), (Health::Up, String::new()), "{kind:?}");
    }
    let accept = world.script.0.lock().3.last().unwrap().1["accept"].to_str().unwrap().to_owned();
    let text = accept.find("text/plain;version=0.0.4").expect("the text format");
    let open = accept.find("application/openmetrics-text;version=1.0.0").expect("OpenMetrics");
    assert!(text < open, "{accept}");
}
