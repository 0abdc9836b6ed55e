//! The Prometheus API over a small store: shapes, statuses and messages as clients see them.

mod errors;
mod federate;
mod remote_read;
mod rests;
mod routes;
mod rules;
mod statistics;

use std::sync::Arc;

use axum::{Router, body::Body, http::Request};
use http_body_util::BodyExt;
use query::{
    limits::Limits,
    promql::{Engine, EngineOptions},
    rules::ruler::{Ruler, RulerSettings, Running},
};
use serde_json::{Value, json};
use storage::{
    Append, Store, StoreConfig,
    model::{Labels, MetricBatchBuilder, Table, TenantId, batch::SeriesMeta},
};
use tower::ServiceExt;

async fn api() -> (tempfile::TempDir, Router) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = StoreConfig::new(dir.path());
    config.background = false;
    let store = Store::open(config).await.unwrap();
    let mut b = MetricBatchBuilder::new();
    for (instance, slope) in [("a", 1.0), ("b", 2.0)] {
        let labels = Labels::from_pairs([("__name__", "requests_total"), ("instance", instance), ("job", "api")]);
        let meta = SeriesMeta { metric_type: Some("counter"), help: Some("Requests."), ..SeriesMeta::default() };
        let id = b.series(&labels, meta);
        (0..=10).for_each(|i| b.sample(id, i * 60_000, None, slope * i as f64));
        b.exemplar(id, 60_000, 0.43, Some(&[0xab; 16]), None, "{}");
    }
    let batch = b.finish();
    let rows = vec![
        (Table::MetricSeries, batch.series),
        (Table::MetricSamples, batch.samples),
        (Table::MetricExemplars, batch.exemplars),
    ];
    let append = Append { tenant: TenantId::default(), rows, sources: vec![], batch_id: None };
    store.append(append).await.unwrap();
    (dir, query::router(query::QueryConfig::default(), store))
}

/// Labels, a start time in seconds and values a minute apart.
type Given<'a> = (&'a [(&'a str, &'a str)], i64, &'a [f64]);

/// An API over such series.
async fn api_over(given: &[Given<'_>], config: query::QueryConfig) -> (tempfile::TempDir, Router, Store) {
    let dir = tempfile::tempdir().unwrap();
    let mut store_config = StoreConfig::new(dir.path());
    store_config.background = false;
    let store = Store::open(store_config).await.unwrap();
    let mut b = MetricBatchBuilder::new();
    for (labels, start, values) in given {
        let id = b.series(&Labels::from_pairs(labels.iter().copied()), SeriesMeta::default());
        values.iter().zip(0..).for_each(|(v, i)| b.sample(id, start * 1000 + i * 60_000, None, *v));
    }
    append(&store, b).await;
    (dir, query::router(config, store.clone()), store)
}

async fn append(store: &Store, mut b: MetricBatchBuilder) {
    let batch = b.finish();
    let rows = vec![
        (Table::MetricSeries, batch.series),
        (Table::MetricSamples, batch.samples),
        (Table::MetricHistograms, batch.histograms),
    ];
    store.append(Append { tenant: TenantId::default(), rows, sources: vec![], batch_id: None }).await.unwrap();
}

/// An API of a process that is `region="eu", replica="r"` outside.
async fn with_external_labels(dir: &tempfile::TempDir, store: Store) -> (Router, Running) {
    let settings = RulerSettings {
        external_labels: Labels::from_pairs([("region", "eu"), ("replica", "r")]),
        interval: std::time::Duration::from_secs(60),
        state_dir: dir.path().join("state"),
        ..RulerSettings::default()
    };
    let engine = Engine::new(store.clone(), Limits::default(), EngineOptions::default());
    let clock = Arc::new(storage::vfs::SystemClock::new());
    let discover = Arc::new(|_: &str| Vec::<std::path::PathBuf>::new());
    let (ruler, running) = Ruler::start(settings, engine, store.clone(), clock, discover).await.unwrap();
    (query::router(query::QueryConfig { ruler: Some(ruler), ..query::QueryConfig::default() }, store), running)
}

/// Status, headers and body as it is.
async fn raw(router: &Router, request: Request<Body>) -> (u16, http::HeaderMap, Vec<u8>) {
    let response = router.clone().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    (head.status.as_u16(), head.headers, body.collect().await.unwrap().to_bytes().to_vec())
}

async fn send(router: &Router, request: Request<Body>) -> (u16, Value) {
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn get(router: &Router, path: &str) -> (u16, Value) {
    send(router, Request::get(path).body(Body::empty()).unwrap()).await
}

async fn post(router: &Router, path: &str, form: &str) -> (u16, Value) {
    let request = Request::post(path).header("content-type", "application/x-www-form-urlencoded");
    send(router, request.body(Body::from(form.to_owned())).unwrap()).await
}

#[tokio::test]
async fn an_instant_query_gives_scalar_vector_or_matrix() {
    let (_dir, api) = api().await;
    let (status, body) = get(&api, "/api/v1/query?query=1%2B1&time=4").await;
    assert_eq!((status, body), (200, json!({"status":"success","data":{"resultType":"scalar","result":[4,"2"]}})));
    let (_, body) = post(&api, "/prometheus/api/v1/query", "query=sum(rate(requests_total[5m]))&time=600").await;
    assert_eq!(body["data"]["resultType"], "vector");
    assert_eq!(body["data"]["result"], json!([{"metric":{},"value":[600,"0.05"]}]));
    let (_, body) = get(&api, "/api/v1/query?query=requests_total%7Binstance%3D%22a%22%7D%5B2m%5D&time=600").await;
    assert_eq!(body["data"]["result"][0]["values"], json!([[540, "9"], [600, "10"]]));
    let (_, body) = get(&api, "/api/v1/query?query=requests_total&time=600&limit=1").await;
    assert_eq!(body["data"]["result"].as_array().unwrap().len(), 1);
    assert_eq!(body["warnings"], json!(["results truncated due to limit"]));
}

#[tokio::test]
async fn a_range_query_gives_a_matrix_sorted_by_labels() {
    let (_dir, api) = api().await;
    let (status, body) =
        post(&api, "/api/v1/query_range", "query=requests_total+%2A+0.5&start=60&end=180.5&step=60").await;
    assert_eq!(status, 200);
    let expected = json!([
        {"metric":{"instance":"a","job":"api"},"values":[[60,"0.5"],[120,"1"],[180,"1.5"]]},
        {"metric":{"instance":"b","job":"api"},"values":[[60,"1"],[120,"2"],[180,"3"]]},
    ]);
    assert_eq!(body["data"], json!({"resultType":"matrix","result":expected}));
}

#[tokio::test]
async fn errors_have_prometheus_types_statuses_and_texts() {
    let (_dir, api) = api().await;
    for (path, status, kind, text) in [
        (
            "query?query=1%2B",
            400,
            "bad_data",
            "invalid parameter \"query\": 1:3: parse error: unexpected end of input",
        ),
        (
            "query",
            400,
            "bad_data",
            "invalid parameter \"query\": unknown position: parse error: no expression found in input",
        ),
        (
            "query?query=up&time=x",
            400,
            "bad_data",
            "invalid parameter \"time\": invalid time value for 'time': cannot parse \"x\" to a valid timestamp",
        ),
        (
            "query_range?query=up&start=2&end=1&step=1",
            400,
            "bad_data",
            "invalid parameter \"end\": end timestamp must not be before start time",
        ),
        (
            "query_range?query=up&start=1&end=2&step=0",
            400,
            "bad_data",
            "invalid parameter \"step\": zero or negative query resolution step widths are not accepted. Try a positive integer",
        ),
        (
            "query_range?query=up&start=0&end=11001&step=1",
            400,
            "bad_data",
            "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)",
        ),
        (
            "query_range?query=up%5B5m%5D&start=0&end=1&step=1",
            400,
            "bad_data",
            "invalid parameter \"query\": invalid expression type \"range vector\" for range query, must be Scalar or instant Vector",
        ),
        ("series", 400, "bad_data", "no match[] parameter provided"),
        (
            "series?match[]=%7Ba%3D%22%22%7D",
            400,
            "bad_data",
            "invalid parameter \"match[]\": match[] must contain at least one non-empty matcher",
        ),
        ("labels?limit=-1", 400, "bad_data", "invalid parameter \"limit\": limit must be non-negative"),
        (
            "query?query=requests_total+%2B+on(job)+requests_total&time=600",
            422,
            "execution",
            "found duplicate series for the match group {job=\"api\"} on the right hand-side of the operation: [{__name__=\"requests_total\", instance=\"a\", job=\"api\"}, {__name__=\"requests_total\", instance=\"b\", job=\"api\"}];many-to-many matching not allowed: matching labels must be unique on one side",
        ),
    ] {
        let (got, body) = get(&api, &format!("/api/v1/{path}")).await;
        assert_eq!(got, status, "{path}: {body}");
        assert_eq!(body, json!({"status":"error","errorType":kind,"error":text}), "{path}");
    }
    assert_eq!(post(&api, "/api/v1/label/job/values", "").await.0, 405);
}

#[tokio::test]
async fn metadata_endpoints_answer_in_sorted_lists() {
    let (_dir, api) = api().await;
    let data = |path: &'static str| {
        let api = api.clone();
        async move { get(&api, path).await.1["data"].clone() }
    };
    assert_eq!(data("/api/v1/labels").await, json!(["__name__", "instance", "job"]));
    assert_eq!(data("/api/v1/label/instance/values").await, json!(["a", "b"]));
    assert_eq!(data("/api/v1/label/U__instance/values?match[]=requests_total").await, json!(["a", "b"]));
    assert_eq!(data("/api/v1/label/none/values").await, json!([]));
    assert_eq!(
        data("/api/v1/series?match[]=%7Binstance%3D%22a%22%7D&start=0&end=100").await.as_array().unwrap().len(),
        1
    );
    assert_eq!(data("/api/v1/series?match[]=requests_total&start=1000&end=1100").await, json!([]));
    assert_eq!(
        data("/api/v1/metadata").await,
        json!({"requests_total":[{"type":"counter","help":"Requests.","unit":""}]})
    );
    let exemplars =
        data("/api/v1/query_exemplars?query=rate(requests_total%7Binstance%3D%22a%22%7D%5B5m%5D)&start=0&end=100")
            .await;
    assert_eq!(exemplars[0]["exemplars"][0]["value"], "0.43");
    assert_eq!(exemplars[0]["exemplars"][0]["labels"]["trace_id"], "ab".repeat(16));
    // Grafana's probe sends milliseconds where seconds belong.
    assert_eq!(data("/api/v1/query_exemplars?query=test&start=1700000000000&end=1700000001000").await, json!([]));
    assert_eq!(data("/api/v1/status/buildinfo").await["version"], "3.5.0");
}

#[tokio::test]
async fn another_tenant_sees_nothing_and_a_bad_one_is_refused() {
    let (_dir, api) = api().await;
    let ask =
        |tenant: &str| Request::get("/api/v1/labels").header("x-scope-orgid", tenant).body(Body::empty()).unwrap();
    assert_eq!(send(&api, ask("other")).await.1["data"], json!([]));
    assert_eq!(send(&api, ask("a/b")).await.0, 400);
}
