//! Each sink against our own receivers, also when answers are lost.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, Response, StatusCode},
};
use serde_json::{Value, json};
use storage::model::Table;
use tower::ServiceExt as _;

use super::{Server, Shipper, fixture::Fixture, logs, points, spans};

/// Lets every request through, and loses the answers of the first `lost` of each that it should.
fn forgetful(inner: Router, lost: usize) -> Router {
    let seen = Arc::new(AtomicUsize::new(0));
    Router::new().fallback(move |request: Request<Body>| {
        let (inner, seen) = (inner.clone(), seen.clone());
        async move {
            let is_grpc = request.headers().get("content-type").is_some_and(|c| c == "application/grpc");
            let answer = inner.oneshot(request).await.unwrap();
            if seen.fetch_add(1, Ordering::SeqCst) >= lost {
                return answer;
            }
            let mut instead = Response::new(Body::empty());
            if is_grpc {
                instead.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
                instead.headers_mut().insert("grpc-status", HeaderValue::from_static("14"));
            } else {
                *instead.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            instead
        }
    })
}

/// Every way to our own receivers.
fn ways(http: &Server, grpc: &Server) -> Vec<Value> {
    let grpc = format!("grpc://{}", grpc.addr);
    let mut out = Vec::new();
    for compression in ["none", "gzip", "zstd", "snappy"] {
        out.push(json!({"type": "otlp", "url": http.url(""), "compression": compression}));
    }
    for compression in ["none", "gzip", "zstd"] {
        out.push(json!({"type": "otlp", "url": grpc, "compression": compression}));
    }
    out.push(json!({"type": "loki", "url": http.url("")}));
    out.push(json!({"type": "remote_write", "url": http.url("/api/v1/write")}));
    let query = "?time_field=timestamp&message_field=body&stream_fields=service_name";
    out.push(json!({"type": "http", "url": http.url(&format!("/ingest/ndjson{query}")), "compression": "zstd"}));
    out
}

#[tokio::test]
async fn every_row_is_stored_once_though_answers_are_lost() {
    let fixture = Fixture::new().await;
    for n in 0.. {
        // A server of its own for each way: the first answers of each are lost.
        let http = Server::new(forgetful(fixture.router.clone(), 3)).await;
        let grpc = Server::new(forgetful(fixture.grpc.clone(), 3)).await;
        let Some(way) = ways(&http, &grpc).into_iter().nth(n) else { break };
        let shipper = Shipper::new(way.clone());
        let kind = way["type"].as_str().unwrap();
        let (line, span, value) = (format!("line {n}"), format!("span {n}"), n as f64 + 0.5);
        if kind != "remote_write" {
            shipper.deliver(logs(&[&line, "second"])).await.unwrap();
        }
        if kind == "otlp" {
            shipper.deliver(spans(&[&span])).await.unwrap();
        }
        if matches!(kind, "otlp" | "remote_write") {
            shipper.deliver(points(&[value])).await.unwrap();
        }
        let once = |have: Vec<String>, want: &str| have.iter().filter(|h| *h == want).count();
        if kind != "remote_write" {
            assert_eq!(once(fixture.column(Table::Logs, "body").await, &line), 1, "{way}");
        }
        if kind == "otlp" {
            assert_eq!(once(fixture.column(Table::Spans, "name").await, &span), 1, "{way}");
        }
        if matches!(kind, "otlp" | "remote_write") {
            assert_eq!(once(fixture.column(Table::MetricSamples, "value").await, &value.to_string()), 1, "{way}");
        }
        let c = shipper.counted();
        assert_eq!((c.remote.unwrap().retries, c.dropped_total()), (3, 0), "{way}");
    }
    // What was not born in OTLP keeps its labels on the way.
    let labels = fixture.column(Table::Logs, "stream_labels").await;
    let kept = labels.iter().filter(|l| *l == r#"{"container":"web","service_name":"web"}"#).count();
    assert_eq!(kept, 2 * 8, "seven ways of OTLP and Loki: {labels:?}");
    let names = fixture.column(Table::MetricSeries, "metric").await;
    assert!(!names.is_empty() && names.iter().all(|n| n == "odd__name"), "{names:?}");
}

#[tokio::test]
async fn rows_keep_their_tenant_unless_the_sink_names_one() {
    let fixture = Fixture::new().await;
    let http = Server::new(fixture.router.clone()).await;
    let shipper = Shipper::new(json!({"type": "otlp", "url": http.url(""), "tenant": "team-a"}));
    shipper.deliver(logs(&["x"])).await.unwrap();
    assert_eq!(fixture.rows_of("team-a", Table::Logs).await.iter().map(|b| b.num_rows()).sum::<usize>(), 1);
    assert!(fixture.rows(Table::Logs).await.is_empty());
}

#[tokio::test]
async fn entries_that_loki_refuses_do_not_make_it_store_the_others_twice() {
    let fixture = Fixture::new().await;
    let http = Server::new(fixture.router.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let dead = dir.path().join("dead.ndjson");
    let shipper = Shipper::new(json!({
        "type": "loki", "url": http.url(""), "dead_letter": dead, "batch": {"age": "200ms"},
    }));
    let long = "x".repeat(300 << 10);
    // Both in one request.
    let (good, bad) = (logs(&["good"]), logs(&[&long, "also good"]));
    let (good, bad) = tokio::join!(shipper.deliver(good), shipper.deliver(bad));
    good.unwrap();
    bad.unwrap();
    let mut stored = fixture.column(Table::Logs, "body").await;
    stored.sort();
    assert_eq!(stored, ["also good", "good"]);
    assert!(std::fs::read_to_string(dead).unwrap().contains(&long), "what was refused is a dead letter");
}

#[tokio::test]
async fn lines_that_another_sightline_refuses_are_counted() {
    let fixture = Fixture::new().await;
    let http = Server::new(fixture.router.clone()).await;
    // No line has such a time.
    let url = http.url("/ingest/ndjson?time_field=body&message_field=body");
    let shipper = Shipper::new(json!({"type": "http", "url": url}));
    let good = (super::now() / 1_000_000).to_string();
    shipper.deliver(logs(&[&good, "no time"])).await.unwrap();
    let c = shipper.counted();
    assert_eq!((c.rows_delivered, c.dropped(pipeline::metrics::DropReason::Rejected)), (1, 1));
}
