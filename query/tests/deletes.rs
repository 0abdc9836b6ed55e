//! Deletes as Loki's and Prometheus's clients ask for them.

use axum::{Router, body::Body, http::Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use storage::{
    Append, Store, StoreConfig,
    model::{Labels, LogBatchBuilder, LogRow, MetricBatchBuilder, Table, TenantId, batch::SeriesMeta},
};
use tower::ServiceExt;

const START: i64 = 1_700_000_000;

async fn api() -> (tempfile::TempDir, Store, Router) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = StoreConfig::new(dir.path());
    config.background = false;
    let store = Store::open(config).await.unwrap();
    for tenant in ["default", "other"] {
        let mut logs = LogBatchBuilder::new();
        let mut points = MetricBatchBuilder::new();
        for app in ["shop", "mail"] {
            let labels = Labels::from_pairs([("app", app)]).to_json();
            for i in 0..10 {
                let (body, ts) = (format!("user {} did {i}", i % 2), (START + i) * 1_000_000_000);
                logs.push(&LogRow { ts, stream_labels: &labels, body: &body, ..LogRow::default() });
            }
            let id = points.series(&Labels::from_pairs([("__name__", "up"), ("job", app)]), SeriesMeta::default());
            (0..10).for_each(|i| points.sample(id, (START + i) * 1000, None, 1.0));
        }
        let m = points.finish();
        let rows =
            vec![(Table::Logs, logs.finish()), (Table::MetricSeries, m.series), (Table::MetricSamples, m.samples)];
        let tenant = TenantId::parse(tenant).unwrap();
        store.append(Append { tenant, rows, sources: vec![], batch_id: None }).await.unwrap();
    }
    (dir, store.clone(), query::router(query::QueryConfig::default(), store))
}

struct Reply {
    status: u16,
    deleted: String,
    body: Value,
    text: String,
}

async fn ask(router: &Router, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost:7600");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let deleted = response.headers().get("x-sightline-deleted").map(|v| v.to_str().unwrap().to_owned());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Reply { status, deleted: deleted.unwrap_or_default(), body, text }
}

/// Lines of all streams of an app.
async fn lines(router: &Router, app: &str, headers: &[(&str, &str)]) -> usize {
    let path = format!("/loki/api/v1/query_range?query=%7Bapp%3D%22{app}%22%7D&start={START}&end={}", START + 60);
    let reply = ask(router, "GET", &path, headers).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let streams = reply.body["data"]["result"].as_array().unwrap().clone();
    streams.iter().map(|s| s["values"].as_array().unwrap().len()).sum()
}

#[tokio::test]
async fn a_loki_delete_takes_the_lines_of_its_query_and_is_listed() {
    let (_dir, _store, api) = api().await;
    // {app="shop"} |= "user 1"
    let query = "query=%7Bapp%3D%22shop%22%7D+%7C%3D+%22user+1%22";
    let path = format!("/loki/api/v1/delete?{query}&start={START}&end={}", START + 5);
    let reply = ask(&api, "POST", &path, &[]).await;
    assert_eq!((reply.status, reply.text.as_str()), (204, ""));
    assert!(reply.deleted.contains("rows=3"), "{}", reply.deleted); // seconds 1, 3 and 5: the end counts
    assert_eq!((lines(&api, "shop", &[]).await, lines(&api, "mail", &[]).await), (7, 10));
    let other = [("x-scope-orgid", "other")];
    assert_eq!(lines(&api, "shop", &other).await, 10, "another tenant's lines stay");
    assert_eq!(ask(&api, "PUT", &path, &[]).await.status, 204, "a second time there is nothing left to do");
    let list = ask(&api, "GET", "/loki/api/v1/delete", &[]).await.body;
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(list[0]["query"], "{app=\"shop\"} |= \"user 1\"");
    assert_eq!((&list[0]["status"], &list[0]["start_time"]), (&json!("processed"), &json!(START)));
    assert_eq!((&list[0]["deleted"]["rows"], &list[1]["deleted"]["rows"]), (&json!(3), &json!(0)));
    assert_eq!(ask(&api, "GET", "/loki/api/v1/delete", &other).await.body, json!([]));
    let id = list[0]["request_id"].as_str().unwrap();
    let cancel = |force: &str| format!("/loki/api/v1/delete?request_id={id}{force}");
    assert_eq!(ask(&api, "DELETE", &cancel(""), &[]).await.status, 400, "what is done is done");
    assert_eq!(ask(&api, "DELETE", &cancel("&force=true"), &other).await.status, 404);
    assert_eq!(ask(&api, "DELETE", &cancel("&force=true"), &[]).await.status, 204);
    assert_eq!(ask(&api, "GET", "/loki/api/v1/delete", &[]).await.body.as_array().unwrap().len(), 1);
    // Whole streams leave the labels too.
    let path = format!("/loki/api/v1/delete?query=%7Bapp%3D%22mail%22%7D&start={START}&end={}", START + 60);
    assert_eq!(ask(&api, "POST", &path, &[]).await.status, 204);
    let path = format!("/loki/api/v1/label/app/values?start={START}&end={}", START + 60);
    assert_eq!(ask(&api, "GET", &path, &[]).await.body["data"], json!(["shop"]));
}

#[tokio::test]
async fn a_loki_delete_that_says_too_little_or_comes_from_elsewhere_is_refused() {
    let (_dir, _store, api) = api().await;
    let shop = "query=%7Bapp%3D%22shop%22%7D";
    for (params, status, text) in [
        (format!("start={START}"), 400, "query not set"),
        (shop.to_owned(), 400, "start time not set"),
        (format!("{shop}&start={START}&end=5000000000"), 400, "deletes in the future are not allowed"),
        (format!("{shop}&start={START}&end={}", START - 1), 400, "start time can't be greater than end time"),
        (format!("query=rate(%7Bapp%3D%22shop%22%7D%5B1m%5D)&start={START}"), 400, "unsupported query expression"),
        (format!("query=%7B%7D&start={START}"), 400, ""),
    ] {
        let reply = ask(&api, "POST", &format!("/loki/api/v1/delete?{params}"), &[]).await;
        assert_eq!(reply.status, status, "{params}: {}", reply.text);
        assert!(reply.text.contains(text), "{params}: {}", reply.text);
    }
    let path = format!("/loki/api/v1/delete?{shop}&start={START}&end={}", START + 60);
    let page = [("origin", "https://elsewhere.example")];
    assert_eq!(ask(&api, "POST", &path, &page).await.status, 403);
    assert_eq!(ask(&api, "POST", "/api/v1/admin/tsdb/delete_series?match[]=up", &page).await.status, 403);
    assert_eq!(lines(&api, "shop", &[]).await, 10);
}

#[tokio::test]
async fn deleted_series_leave_samples_and_series_answers() {
    let (_dir, _store, api) = api().await;
    let series = async || {
        let body = ask(&api, "GET", "/api/v1/series?match[]=up", &[]).await.body;
        body["data"].as_array().unwrap().iter().map(|s| s["job"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(series().await, ["mail", "shop"]);
    let admin = "/api/v1/admin/tsdb/delete_series";
    let reply = ask(&api, "POST", admin, &[]).await;
    assert_eq!((reply.status, &reply.body["error"]), (400, &json!("no match[] parameter provided")));
    let some = format!("{admin}?match[]=up%7Bjob%3D%22shop%22%7D&start={START}&end={}", START + 3);
    let reply = ask(&api, "PUT", &some, &[]).await;
    assert_eq!(reply.status, 204);
    assert!(reply.deleted.contains("rows=4"), "{}", reply.deleted);
    assert_eq!(series().await, ["mail", "shop"], "six samples are left");
    let count = |time: i64| format!("/api/v1/query?query=count_over_time(up%5B1m%5D)&time={time}");
    let body = ask(&api, "GET", &count(START + 30), &[]).await.body;
    let values: Vec<&str> =
        body["data"]["result"].as_array().unwrap().iter().map(|r| r["value"][1].as_str().unwrap()).collect();
    assert_eq!(values, ["10", "6"]);
    assert_eq!(ask(&api, "POST", &format!("{admin}?match[]=up%7Bjob%3D%22shop%22%7D"), &[]).await.status, 204);
    assert_eq!(series().await, ["mail"]);
    assert_eq!(ask(&api, "POST", "/api/v1/admin/tsdb/clean_tombstones", &[]).await.status, 204);
    let other = ask(&api, "GET", "/api/v1/series?match[]=up", &[("x-scope-orgid", "other")]).await.body;
    assert_eq!(other["data"].as_array().unwrap().len(), 2, "another tenant's series stay");
}
