//! Everything around queries: printed and parsed expressions, status pages, methods, compression, other origins, limits
//! of tenants.

use std::{collections::HashMap, io::Read as _, sync::Arc, time::Duration};

use axum::{body::Body, http::Request};
use query::{
    http::cross_origin::Origins,
    limits::{ByTenant, TenantLimits},
};
use serde_json::{Value, json};
use storage::model::TenantId;

use super::{api, api_over, get, post, raw, send};

#[tokio::test]
async fn expressions_are_printed_and_parsed() {
    let (_dir, api) = api().await;
    let (status, body) = get(&api, "/api/v1/format_query?query=sum(a)by(b)%20%23%20comment").await;
    assert_eq!((status, body), (200, json!({"status": "success", "data": "sum by (b) (a)"})));
    let (_, body) = post(&api, "/api/v1/parse_query", "query=foo/bar").await;
    assert_eq!(body["data"]["type"], "binaryExpr");
    assert_eq!(body["data"]["matching"]["card"], "one-to-one");
    for path in ["format_query", "parse_query"] {
        let (status, body) = get(&api, &format!("/api/v1/{path}?query=sum(")).await;
        assert_eq!((status, &body["errorType"]), (400, &json!("bad_data")));
        assert!(
            body["error"].as_str().unwrap().starts_with("invalid parameter \"query\": 1:5: parse error:"),
            "{body}"
        );
        assert_eq!(get(&api, &format!("/api/v1/{path}")).await.0, 400);
    }
}

#[tokio::test]
async fn status_pages_say_what_clients_look_for() {
    let in_force = query::http::prometheus::InForce::new("a: 1\n".into());
    let config = query::QueryConfig {
        about: query::http::prometheus::About { configuration: in_force.clone(), memory_bytes: 1 << 30 },
        ..query::QueryConfig::default()
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let (_dir, api, _) = api_over(
        &[
            (&[("__name__", "a"), ("job", "long value")], now - 60, &[1.0]),
            (&[("__name__", "a"), ("job", "x")], now - 60, &[1.0]),
            (&[("__name__", "b"), ("job", "x")], now - 60, &[1.0]),
        ],
        config,
    )
    .await;
    let data = async |path: &str| {
        let (status, body) = get(&api, &format!("/api/v1/{path}")).await;
        assert_eq!((status, &body["status"]), (200, &json!("success")), "{path}");
        body["data"].clone()
    };
    let build = data("status/buildinfo").await;
    let strings = ["version", "revision", "branch", "buildUser", "buildDate", "goVersion"];
    assert!(strings.iter().all(|k| build[k].is_string()) && build.get("features").is_none(), "{build}");
    assert_eq!(data("status/config").await, json!({"yaml": "a: 1\n"}));
    let flags = data("status/flags").await;
    assert_eq!((&flags["query.lookback-delta"], &flags["query.timeout"]), (&json!("5m"), &json!("2m")));
    assert!(flags.as_object().unwrap().values().all(Value::is_string));
    let runtime = data("status/runtimeinfo").await;
    assert_eq!((&runtime["GOMEMLIMIT"], &runtime["reloadConfigSuccess"]), (&json!(1 << 30), &json!(true)));
    in_force.refused();
    let refused = data("status/runtimeinfo").await;
    assert_eq!(
        (&refused["reloadConfigSuccess"], &refused["lastConfigTime"]),
        (&json!(false), &runtime["lastConfigTime"])
    );
    in_force.set("a: 2\n".into());
    assert_eq!(data("status/config").await, json!({"yaml": "a: 2\n"}));
    let taken = data("status/runtimeinfo").await;
    assert_eq!(taken["reloadConfigSuccess"], true);
    assert!(taken["lastConfigTime"].as_str() > runtime["lastConfigTime"].as_str(), "{taken}");
    assert_eq!(data("status/walreplay").await["state"], "done");
    assert_eq!(data("features").await["api"]["remote_read"], true);
    let tsdb = data("status/tsdb?limit=1").await;
    assert_eq!((&tsdb["headStats"]["numSeries"], &tsdb["headStats"]["numLabelPairs"]), (&json!(3), &json!(4)));
    assert_eq!(tsdb["seriesCountByMetricName"], json!([{"name": "a", "value": 2}]));
    assert_eq!(tsdb["labelValueCountByLabelName"], json!([{"name": "__name__", "value": 2}]));
    assert_eq!(tsdb["memoryInBytesByLabelName"], json!([{"name": "job", "value": 12}]));
    assert_eq!(tsdb["seriesCountByLabelValuePair"], json!([{"name": "__name__=a", "value": 2}]));
    // One append, in memory.
    assert_eq!(tsdb["headStats"]["chunkCount"], 1);
    let times = ["minTime", "maxTime"].map(|t| tsdb["headStats"][t].as_i64().unwrap());
    assert_eq!(times, [(now - 60) * 1000; 2]);
    assert_eq!(data("status/tsdb?limit=").await["seriesCountByLabelValuePair"].as_array().unwrap().len(), 4);
    for limit in ["0", "-1", "x", "10001"] {
        assert_eq!(get(&api, &format!("/api/v1/status/tsdb?limit={limit}")).await.0, 400, "{limit}");
    }
}

#[tokio::test]
async fn a_post_where_only_get_is_known_is_405() {
    let (_dir, api) = api().await;
    for path in [
        "label/job/values",
        "metadata",
        "rules",
        "alerts",
        "targets",
        "targets/metadata",
        "alertmanagers",
        "scrape_pools",
        "features",
        "status/buildinfo",
        "status/config",
        "status/flags",
        "status/runtimeinfo",
        "status/tsdb",
        "status/walreplay",
    ] {
        assert_eq!(post(&api, &format!("/api/v1/{path}"), "a=b").await.0, 405, "{path}");
    }
    // Nobody ends the process from afar, and is told so.
    assert_eq!((post(&api, "/-/quit", "").await.0, get(&api, "/-/quit").await.0), (403, 405));
}

#[tokio::test]
async fn large_answers_are_compressed_for_those_who_take_it() {
    let labels: Vec<String> = (0..200).map(|i| format!("value {i}")).collect();
    let pairs: Vec<[(&str, &str); 2]> = labels.iter().map(|v| [("__name__", "m"), ("x", v.as_str())]).collect();
    let given: Vec<super::Given<'_>> = pairs.iter().map(|p| (&p[..], 0, &[1.0][..])).collect();
    let (_dir, api, _) = api_over(&given, query::QueryConfig::default()).await;
    let ask =
        |path: &str, accept: &str| Request::get(path).header("accept-encoding", accept).body(Body::empty()).unwrap();
    let path = "/api/v1/label/x/values";
    let (_, headers, plain) = raw(&api, ask(path, "identity")).await;
    assert!(!headers.contains_key("content-encoding") && headers["vary"] == "Accept-Encoding");
    let (_, headers, body) = raw(&api, ask(path, "gzip")).await;
    assert_eq!(headers["content-encoding"], "gzip");
    let mut inflated = Vec::new();
    flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut inflated).unwrap();
    assert!(inflated == plain && body.len() < plain.len() / 2);
    let (_, headers, body) = raw(&api, ask(path, "deflate")).await;
    assert_eq!(headers["content-encoding"], "deflate");
    let mut inflated = Vec::new();
    flate2::read::ZlibDecoder::new(&body[..]).read_to_end(&mut inflated).unwrap();
    assert!(inflated == plain);
    let (_, headers, _) = raw(&api, ask("/api/v1/query?query=1", "gzip")).await;
    assert!(!headers.contains_key("content-encoding"));
}

#[tokio::test]
async fn other_origins_read_answers_only_where_they_may() {
    let ask = |method: &str, origin: &str| {
        let request = Request::builder().method(method).uri("/api/v1/query?query=1").header("origin", origin);
        request.body(Body::empty()).unwrap()
    };
    let allowed = |headers: &http::HeaderMap| {
        headers.get("access-control-allow-origin").map(|v| v.to_str().unwrap().to_owned())
    };
    let with = async |origins: &[&str]| {
        let origins = Origins::of(origins.iter().map(|o| (*o).to_owned()).collect());
        api_over(&[], query::QueryConfig { origins, ..query::QueryConfig::default() }).await
    };
    let (_dir, closed, _) = with(&[]).await;
    let (status, headers, _) = raw(&closed, ask("OPTIONS", "https://a.example")).await;
    assert_eq!((status, allowed(&headers)), (204, None));
    assert_eq!(allowed(&raw(&closed, ask("GET", "https://a.example")).await.1), None);
    let (_dir, open, _) = with(&["https://a.example"]).await;
    let (status, headers, body) = raw(&open, ask("OPTIONS", "https://a.example")).await;
    assert_eq!((status, allowed(&headers).as_deref(), body.len()), (204, Some("https://a.example"), 0));
    assert_eq!(headers["access-control-allow-methods"], "GET, POST, OPTIONS");
    assert_eq!(headers["access-control-allow-headers"], "Accept, Authorization, Content-Type, Origin");
    let (status, headers, _) = raw(&open, ask("GET", "https://a.example")).await;
    assert_eq!((status, headers["access-control-expose-headers"].to_str().unwrap()), (200, "Date"));
    assert_eq!(allowed(&raw(&open, ask("GET", "https://b.example")).await.1), None);
    let (_dir, all, _) = with(&["*"]).await;
    assert_eq!(allowed(&raw(&all, ask("GET", "https://b.example")).await.1).as_deref(), Some("https://b.example"));
}

#[tokio::test]
async fn a_tenant_looks_no_further_than_it_may_in_any_list() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let day = 86_400;
    let bounds = TenantLimits { range_max: Some(Duration::from_secs(3600)), ..TenantLimits::default() };
    let mut config = query::QueryConfig::default();
    let named = HashMap::from([(TenantId::default(), bounds)]);
    config.limits.tenants = Arc::new(ByTenant { named, ..ByTenant::default() });
    let (_dir, api, _) = api_over(
        &[(&[("__name__", "new")], now - 60, &[1.0]), (&[("__name__", "old")], now - 3 * day, &[1.0])],
        config,
    )
    .await;
    for path in [
        "/api/v1/series?match[]=%7B__name__!=%22%22%7D",
        "/api/v1/labels?match[]=new",
        "/api/v1/label/__name__/values?match[]=%7B__name__!=%22%22%7D",
        "/api/v1/query_exemplars?query=new",
    ] {
        let with = |start: i64| format!("{path}&start={}&end={now}", now - start);
        let (status, body) = get(&api, &with(7200)).await;
        assert_eq!((status, &body["errorType"]), (422, &json!("execution")), "{path}");
        assert!(body["error"].as_str().unwrap().contains("(query length: 2h, limit: 1h)"), "{body}");
        assert_eq!(get(&api, &with(3600)).await.0, 200, "{path}");
        // Without times: as far back as it may look.
        let (status, body) = get(&api, path).await;
        assert_eq!(status, 200);
        assert!(!body.to_string().contains("old"), "{body}");
        let other = Request::get(with(7200)).header("x-scope-orgid", "other").body(Body::empty()).unwrap();
        assert_eq!(send(&api, other).await.0, 200, "{path}");
    }
    for path in ["labels?", "label/app/values?", "series?match[]=%7Bapp=%22a%22%7D&"] {
        let with = |start: i64| format!("/loki/api/v1/{path}start={}&end={now}", now - start);
        let request = |path: &str| Request::get(path).body(Body::empty()).unwrap();
        let (status, _, body) = raw(&api, request(&with(7200))).await;
        assert_eq!(status, 400, "{path}");
        assert!(String::from_utf8(body).unwrap().contains("limit: 1h"), "{path}");
        assert_eq!(raw(&api, request(&with(3600))).await.0, 200, "{path}");
        assert_eq!(raw(&api, request(&format!("/loki/api/v1/{path}"))).await.0, 200, "{path}");
    }
}

/// A counter that is younger than the window, its first sample one interval above zero: Prometheus 3 reaches back half an
/// interval, because the window's start is further than the threshold and half an interval is less than the way to zero.
/// Prometheus 2 took the way to zero first, found it shorter than the threshold and went all of it: 50 instead of 45.
#[tokio::test]
async fn a_young_counter_is_extrapolated_as_prometheus_3_does() {
    let (_dir, api, _) =
        api_over(&[(&[("__name__", "c")], 900, &[10.0, 20.0, 30.0, 40.0, 50.0])], query::QueryConfig::default())
            .await;
    let (_, body) = get(&api, "/api/v1/query?query=increase(c%5B20m%5D)&time=1140").await;
    assert_eq!(body["data"]["result"][0]["value"][1], "45");
    let (_, body) = get(&api, "/api/v1/query?query=rate(c%5B20m%5D)&time=1140").await;
    assert_eq!(body["data"]["result"][0]["value"][1], "0.0375");
}

/// Each limit ends its query with its own name, and what comes in afterwards is stored and found.
#[test]
fn a_query_over_a_limit_is_told_which_and_nothing_else_suffers() {
    // As deep as is allowed takes more than the stack of a test's thread; this is that of the program's.
    let thread = std::thread::Builder::new().stack_size(8 << 20);
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_stack_size(8 << 20).build();
        runtime.unwrap().block_on(over_limits());
    };
    thread.spawn(run).unwrap().join().unwrap();
}

async fn over_limits() {
    let mut config = query::QueryConfig::default();
    config.limits.series_max = 3;
    config.limits.samples_max = 50;
    let labels: Vec<String> = (0..4).map(|i| i.to_string()).collect();
    let pairs: Vec<[(&str, &str); 2]> = labels.iter().map(|v| [("__name__", "m"), ("x", v.as_str())]).collect();
    let values: Vec<f64> = (0..30).map(f64::from).collect();
    let given: Vec<super::Given<'_>> = pairs.iter().map(|p| (&p[..], 0, &values[..])).collect();
    let (_dir, api, store) = api_over(&given, config).await;
    let refused = async |path: &str, form: String| {
        let (status, body) = post(&api, &format!("/api/v1/{path}"), &form).await;
        (status, body["error"].as_str().unwrap_or_default().to_owned())
    };
    let query = |text: &str| format!("query={}&time=600", text.replace('+', "%2B"));
    for (text, status, words) in [
        ("m", 422, "more than the limit of 3 series"),
        (
            "quantile_over_time(0.1, m{x!=\"0\"}[20m]) + quantile_over_time(0.5, m{x!=\"0\"}[20m])",
            422,
            "too many samples into memory",
        ),
        ("max_over_time(vector(1)[10y:1s])", 422, "too many samples into memory"),
        (&"x".repeat(200_000), 400, "longer than the limit of 131072 bytes"),
        // A regex of a MiB, in a form twice as long.
        (&format!("m{{x=~\"{}\"}}", "a%7C".repeat(1 << 19)), 400, "longer than the limit of 131072 bytes"),
        (&format!("{}1{}", "(".repeat(1000), ")".repeat(1000)), 400, "nested deeper than 250 levels"),
        (&format!("m{{x=~\"{}\"}}", "(a{1000}){1000}"), 400, "exceeds size limit of"),
    ] {
        let (got, error) = refused("query", query(text)).await;
        assert!(got == status && error.contains(words), "{}: {got} {error}", &text[..text.len().min(60)]);
    }
    let (status, error) = refused("query", format!("{}&timeout=1ns", query("m{x=\"1\"}"))).await;
    assert_eq!((status, error.contains("timeout")), (400, true), "{error}");
    let (status, error) = refused("series", "match[]=m".into()).await;
    assert!(status == 422 && error.contains("more than the limit of 3 series"), "{error}");

    let mut b = storage::model::MetricBatchBuilder::new();
    let name = storage::model::Labels::from_pairs([("__name__", "late")]);
    let id = b.series(&name, storage::model::batch::SeriesMeta::default());
    b.sample(id, 600_000, None, 7.0);
    super::append(&store, b).await;
    let (_, body) = get(&api, "/api/v1/query?query=late&time=600").await;
    assert_eq!(body["data"]["result"][0]["value"], json!([600, "7"]));
}
