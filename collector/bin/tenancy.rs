//! No tenant sees another's data, through any route there is.
//!
//! The routes are taken from the router that is served, so that a new one without a line in [`cases`] fails the first
//! test. Two tenants hold data that differ in every text; what one is told must not hold a byte of the other's.

mod cases;

use std::{
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{Router, body::Body};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use self::cases::{Case, FORM, JSON, Signal, cases, loki_push, otlp_logs, otlp_metrics, otlp_traces, trace_id};
use crate::{
    app::{self, App},
    cli::ServeArgs,
    config::Config,
};

/// Each tenant's own text: part of every line, label, metric and span name it pushes.
const TENANTS: [&str; 2] = ["alphaonly", "bravoonly"];

/// Paths of all routes of a router, as they were registered.
fn paths(router: &Router) -> BTreeSet<String> {
    let shown = format!("{router:?}");
    let mut out = BTreeSet::new();
    for piece in shown.split("RouteId(").skip(1) {
        let Some((_, rest)) = piece.split_once("): \"") else { continue };
        if piece.find("): \"") == piece.find("): ")
            && let Some((path, _)) = rest.split_once('"')
        {
            // The router's own, for what no route takes.
            if !path.contains("__private__axum") {
                out.insert(path.to_owned());
            }
        }
    }
    out
}

/// The whole process but for its listeners' peers, on free ports.
pub async fn start(dir: &std::path::Path) -> App {
    start_with(dir, None).await
}

async fn start_with(dir: &std::path::Path, config: Option<std::path::PathBuf>) -> App {
    let any = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
    let args = ServeArgs {
        data_dir: Some(dir.to_owned()),
        http: any,
        otlp_grpc: any,
        otlp_http: any,
        no_collect: Some(true),
        config,
        ..ServeArgs::default()
    };
    app::start(Config::load(&args).expect("defaults are valid"), None).await.expect("it starts")
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()
}

async fn ask(
    router: &Router,
    tenant: Option<&str>,
    url: &str,
    body: Option<(&str, Vec<u8>)>,
) -> (StatusCode, String) {
    let url = url.replace('{', "%7B").replace('}', "%7D");
    let mut request = Request::builder().uri(&url);
    if let Some(t) = tenant {
        request = request.header("X-Scope-OrgID", t);
    }
    let request = match body {
        None => request.body(Body::empty()),
        Some((kind, bytes)) => request.method("POST").header("Content-Type", kind).body(Body::from(bytes)),
    };
    let answer = router.clone().oneshot(request.expect("a request")).await.expect("routers do not fail");
    let status = answer.status();
    let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8_lossy(&bytes).into_owned())
}

fn filled(text: &str, own: &str) -> String {
    // The next whole one, so that what was just pushed lies before it.
    let seconds = (now_ns() / 1_000_000_000 + 1).to_string();
    text.replace("{T}", own).replace("{ID}", &trace_id(own)).replace("{NOW}", &seconds)
}

/// Trace ids are told in hex and in base64.
fn holds(answer: &str, text: &str) -> bool {
    answer.contains(text) || answer.contains(&trace_id(text))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_has_a_case() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path()).await;
    let served = paths(&app.router);
    assert!(served.len() > 40 && served.contains("/metrics"), "the router is not read well: {served:?}");
    let listed: BTreeSet<String> = cases().iter().map(|(route, _)| (*route).to_owned()).collect();
    let missing: Vec<&String> = served.difference(&listed).collect();
    assert!(
        missing.is_empty(),
        "routes without a case in collector/bin/tenancy.rs, add how they are asked: {missing:?}"
    );
    let gone: Vec<&String> = listed.difference(&served).collect();
    assert!(gone.is_empty(), "cases of routes that are not served: {gone:?}");
    assert!(app.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_holds_a_byte_of_another_tenant() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path()).await;
    let router = &app.router;
    for own in TENANTS {
        for signal in [Signal::Logs, Signal::Metrics, Signal::Traces] {
            let (url, body) = match signal {
                Signal::Logs => ("/v1/logs", otlp_logs(own, now_ns())),
                Signal::Metrics => ("/v1/metrics", otlp_metrics(own, now_ns())),
                Signal::Traces => ("/v1/traces", otlp_traces(own, now_ns())),
            };
            let (status, text) = ask(router, Some(own), url, Some((JSON, body))).await;
            assert_eq!(status, 200, "{text}");
        }
        // A label whose name is the tenant's own too.
        let Case::Write { url, kind, body, .. } = loki_push("/loki/api/v1/push") else { unreachable!("as made") };
        let (status, text) = ask(router, Some(own), url, Some((kind, body(own, now_ns())))).await;
        assert_eq!(status, 204, "{text}");
    }
    let mut asked = 0;
    for (route, cases) in cases() {
        for (i, case) in cases.into_iter().enumerate() {
            asked += 1;
            match case {
                Case::Same { url } => {
                    for tenant in [None, Some(TENANTS[0]), Some(TENANTS[1])] {
                        let (status, text) = ask(router, tenant, &filled(url, ""), None).await;
                        assert!(status.is_success() || status.is_redirection(), "{route}: {status} {text}");
                        for t in TENANTS {
                            assert!(!holds(&text, t), "{route} tells {tenant:?} of {t}: {text}");
                        }
                    }
                }
                Case::Read { url, body } => {
                    for (own, other) in [(TENANTS[0], TENANTS[1]), (TENANTS[1], TENANTS[0])] {
                        let body = |t: &str| body.map(|(kind, b)| (kind, filled(b, t).into_bytes()));
                        let (status, text) = ask(router, Some(own), &filled(url, own), body(own)).await;
                        assert!(status.is_success(), "{route}: {status} {text}");
                        assert!(holds(&text, own), "{route} does not find {own}'s own data: {text}");
                        assert!(!holds(&text, other), "{route} tells {own} of {other}: {text}");
                        // Asking for what is the other's, by its id and by its text.
                        let (_, text) = ask(router, Some(own), &filled(url, other), body(other)).await;
                        assert!(!holds(&text, other), "{route} tells {own} of {other}: {text}");
                        let (_, text) = ask(router, None, &filled(url, own), body(own)).await;
                        assert!(!holds(&text, own), "{route} tells the default tenant of {own}: {text}");
                    }
                    let several = format!("{}|{}", TENANTS[0], TENANTS[1]);
                    for bad in [several.as_str(), "../alphaonly", "..", ".", "alphaonly/logs", "alphaonly%2f"] {
                        let (status, text) = ask(router, Some(bad), &filled(url, TENANTS[0]), None).await;
                        assert!(status.is_client_error(), "{route} takes tenant {bad}: {status} {text}");
                        assert!(!holds(&text, "alphaonly line"), "{route}: {text}");
                    }
                }
                Case::Operator => {}
                Case::Delete { url, signal } => {
                    for (own, other) in [(TENANTS[0], TENANTS[1]), (TENANTS[1], TENANTS[0])] {
                        let mark = format!("{own}_deleted_{asked}");
                        let (push, body) = match signal {
                            Signal::Logs => ("/v1/logs", otlp_logs(&mark, now_ns())),
                            Signal::Metrics => ("/v1/metrics", otlp_metrics(&mark, now_ns())),
                            Signal::Traces => ("/v1/traces", otlp_traces(&mark, now_ns())),
                        };
                        let (status, text) = ask(router, Some(own), push, Some((JSON, body))).await;
                        assert_eq!(status, 200, "{text}");
                        let url = url.replace("{T}", &mark);
                        let deletes = |tenant| ask(router, tenant, &url, Some((FORM, Vec::new())));
                        for tenant in [None, Some(other)] {
                            let (status, text) = deletes(tenant).await;
                            assert!(status.is_success(), "{route}: {status} {text}");
                            let found = find(router, Some(own), signal, &mark).await;
                            assert!(found.contains(&mark), "{route}: {tenant:?} deletes of {own}: {found}");
                        }
                        let (status, text) = deletes(Some(own)).await;
                        assert!(status.is_success(), "{route}: {status} {text}");
                        let found = find(router, Some(own), signal, &mark).await;
                        assert!(!found.contains(&mark), "{route} deletes nothing: {found}");
                        if matches!(signal, Signal::Logs) {
                            // All three asked with this text; each is told of its own request only.
                            let (_, list) = ask(router, Some(own), route, None).await;
                            assert_eq!(list.matches(&mark).count(), 1, "{route}: {list}");
                        }
                    }
                }
                Case::Write { url, kind, body, signal } => {
                    for (own, other) in [(TENANTS[0], TENANTS[1]), (TENANTS[1], TENANTS[0])] {
                        let mark = format!("{own}{}_{i}", route.replace(|c: char| !c.is_alphanumeric(), "_"));
                        let (status, text) = ask(router, Some(own), url, Some((kind, body(&mark, now_ns())))).await;
                        assert!(status.is_success(), "{route}: {status} {text}");
                        let found = find(router, Some(own), signal, &mark).await;
                        assert!(found.contains(&mark), "{route}: what {own} pushed is not there: {found}");
                        for tenant in [None, Some(other)] {
                            let found = find(router, tenant, signal, &mark).await;
                            assert!(!found.contains(&mark), "{route}: {tenant:?} finds {mark}: {found}");
                        }
                    }
                    for bad in ["a|b", "..", "a/b"] {
                        let (status, _) = ask(router, Some(bad), url, Some((kind, body("x", now_ns())))).await;
                        assert!(status.is_client_error(), "{route} takes tenant {bad}: {status}");
                    }
                }
            }
        }
    }
    assert!(asked > 60, "{asked}");
    let folders: BTreeSet<String> = std::fs::read_dir(dir.path().join("data"))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(TENANTS.iter().all(|t| folders.contains(*t)), "{folders:?}");
    assert!(app.stop().await);
}

/// Asks a gRPC service; its status and message.
async fn call(router: &Router, tenant: &str, service: &str, message: &[u8]) -> (i32, String) {
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).expect("it is small").to_be_bytes());
    body.extend_from_slice(message);
    let request = Request::post(format!("/opentelemetry.proto.collector.{service}/Export"))
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        // Metadata of a call are headers.
        .header("x-scope-orgid", tenant)
        .body(Body::from(body));
    let answer = router.clone().oneshot(request.expect("a request")).await.expect("routers do not fail");
    let head = answer.headers().clone();
    let collected = answer.into_body().collect().await.expect("a body");
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let text = |name: &str| {
        let value = trailers.get(name).or_else(|| head.get(name));
        value.and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    (text("grpc-status").parse().expect("a status"), text("grpc-message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_over_grpc_belongs_to_the_tenant_of_its_metadata() {
    use pipeline::codec::otlp::json::{Request as Form, to_protobuf};
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path()).await;
    let served: Vec<String> = paths(&app.grpc_router).into_iter().filter(|path| path != "/").collect();
    assert_eq!(served.len(), 3, "services without a case here: {served:?}");
    for (service, form, signal) in [
        ("logs.v1.LogsService", Form::Logs, Signal::Logs),
        ("metrics.v1.MetricsService", Form::Metrics, Signal::Metrics),
        ("trace.v1.TraceService", Form::Traces, Signal::Traces),
    ] {
        for (own, other) in [(TENANTS[0], TENANTS[1]), (TENANTS[1], TENANTS[0])] {
            let mark = format!("{own}_grpc");
            let json = match signal {
                Signal::Logs => otlp_logs(&mark, now_ns()),
                Signal::Metrics => otlp_metrics(&mark, now_ns()),
                Signal::Traces => otlp_traces(&mark, now_ns()),
            };
            let message = to_protobuf(&json, form).unwrap();
            let (status, text) = call(&app.grpc_router, own, service, &message).await;
            assert_eq!(status, 0, "{service}: {text}");
            let found = find(&app.router, Some(own), signal, &mark).await;
            assert!(found.contains(&mark), "{service}: what {own} pushed is not there: {found}");
            for tenant in [None, Some(other)] {
                let found = find(&app.router, tenant, signal, &mark).await;
                assert!(!found.contains(&mark), "{service}: {tenant:?} finds {mark}: {found}");
            }
            for bad in ["a|b", "..", "a/b"] {
                let (status, text) = call(&app.grpc_router, bad, service, &message).await;
                assert_eq!(status, 3, "{service} takes tenant {bad}: {text}");
            }
        }
    }
    assert!(app.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_belongs_to_the_tenant_of_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::from("sources:\n");
    for own in TENANTS {
        let path = dir.path().join(own);
        text += &format!("  {own}: {{type: syslog, unix_stream: {}, tenant: {own}}}\n", path.display());
    }
    let config = dir.path().join("syslog.yaml");
    std::fs::write(&config, text).unwrap();
    let app = start_with(&dir.path().join("data"), Some(config)).await;
    for own in TENANTS {
        use std::io::Write as _;
        let mut socket = std::os::unix::net::UnixStream::connect(dir.path().join(own)).unwrap();
        socket.write_all(format!("<13>1 - - {own} - - - {own} line\n").as_bytes()).unwrap();
    }
    for (own, other) in [(TENANTS[0], TENANTS[1]), (TENANTS[1], TENANTS[0])] {
        for _ in 0..1000 {
            if find(&app.router, Some(own), Signal::Logs, own).await.contains(own) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let found = find(&app.router, Some(own), Signal::Logs, own).await;
        assert!(found.contains(own) && !found.contains(other), "{own}: {found}");
        for tenant in [None, Some(other)] {
            let found = find(&app.router, tenant, Signal::Logs, own).await;
            assert!(!found.contains(&format!("{own} line\"")), "{tenant:?} finds {own}: {found}");
        }
    }
    assert!(app.stop().await);
}

/// Asks for what was pushed, whole words only.
async fn find(router: &Router, tenant: Option<&str>, signal: Signal, mark: &str) -> String {
    let url = match signal {
        Signal::Logs => format!("/loki/api/v1/query_range?query={{service_name=~%22.%2B%22}}%7C=%22{mark}%20line%22"),
        Signal::Metrics => format!("/api/v1/series?match[]={mark}"),
        Signal::Traces => format!("/api/traces/{}", trace_id(mark)),
    };
    let (_, text) = ask(router, tenant, &url, None).await;
    // What was asked for may be told back in statistics and errors; data is in quotes of its own.
    text
}
