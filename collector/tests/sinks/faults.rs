//! Servers that fail in every way.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, Response},
};
use http_body_util::BodyExt as _;
use pipeline::{
    DeliveryError,
    codec::otlp::wire::{put_bytes, put_int},
    metrics::DropReason,
};
use serde_json::json;
use tokio::{io::AsyncReadExt as _, net::TcpListener, task::JoinSet};

use super::{Server, Shipper, logs};

/// A request, and when it came.
type Seen = (HeaderMap, Vec<u8>, Instant);

/// A server that answers by script, then 200. What it was sent is kept.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Scripted>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[derive(Clone)]
struct Scripted {
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
    after: Duration,
}

fn status(status: u16) -> Scripted {
    Scripted { status, headers: Vec::new(), body: Vec::new(), after: Duration::ZERO }
}

impl Script {
    async fn serve(answers: impl IntoIterator<Item = Scripted>) -> (Script, Server) {
        let script = Script::default();
        script.answers.lock().unwrap().extend(answers);
        let shared = script.clone();
        let router = Router::new().fallback(move |request: Request<Body>| {
            let script = shared.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(|b| b.to_bytes().to_vec()).unwrap_or_default();
                script.seen.lock().unwrap().push((parts.headers, body, Instant::now()));
                let answer = script.answers.lock().unwrap().pop_front().unwrap_or_else(|| status(200));
                tokio::time::sleep(answer.after).await;
                let mut out = Response::builder().status(answer.status);
                for (name, value) in answer.headers {
                    out = out.header(name, value);
                }
                out.body(Body::from(answer.body)).unwrap()
            }
        });
        let server = Server::new(router).await;
        (script, server)
    }

    fn bodies(&self) -> Vec<Vec<u8>> {
        self.seen.lock().unwrap().iter().map(|(_, b, _)| b.clone()).collect()
    }
}

#[tokio::test]
async fn busy_servers_are_asked_again_when_they_want_to_be() {
    let busy = Scripted { headers: vec![("retry-after", "1")], ..status(503) };
    let (script, server) = Script::serve([status(429), busy, status(502)]).await;
    let shipper = Shipper::new(json!({
        "type": "otlp", "url": server.url(""), "auth": {"user": "u", "password": "p"}, "headers": {"x-team": "a"},
    }));
    shipper.deliver(logs(&["x"])).await.unwrap();
    let seen = script.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 4);
    assert!(seen[2].2 - seen[1].2 >= Duration::from_secs(1), "Retry-After is kept to");
    for (headers, body, _) in &seen {
        assert_eq!((body, headers.get("x-batch-id")), (&seen[0].1, seen[0].0.get("x-batch-id")));
        assert_eq!(headers["authorization"], "Basic dTpw");
        assert_eq!(headers["x-team"], "a");
        assert_eq!(headers["content-encoding"], "gzip");
    }
}

#[tokio::test]
async fn connections_that_break_and_answers_that_do_not_come_are_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    // Closes each connection in the middle of the request, then goes away; a good server comes in its place.
    tasks.spawn(async move {
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut some = [0; 64];
            let _ = stream.read(&mut some).await;
        }
        drop(listener);
        tokio::time::sleep(Duration::from_millis(150)).await;
        let listener = TcpListener::bind(addr).await.unwrap();
        let slow = Arc::new(Mutex::new(true));
        let router = Router::new().fallback(move || {
            let first = std::mem::take(&mut *slow.lock().unwrap());
            async move { tokio::time::sleep(Duration::from_millis(if first { 900 } else { 0 })).await }
        });
        collector::listen::serve(listener, router, Default::default(), Default::default()).await;
    });
    let shipper = Shipper::new(json!({"type": "loki", "url": format!("http://{addr}"), "timeout": "300ms"}));
    shipper.deliver(logs(&["x"])).await.unwrap();
    let c = shipper.counted();
    assert!(c.remote.unwrap().retries >= 4, "{:?}", c.remote);
    assert_eq!(c.rows_delivered, 1);
}

#[tokio::test]
async fn rejected_rows_of_a_partial_success_are_counted_and_not_sent_again() {
    let mut partial = Vec::new();
    put_int(&mut partial, 1, 2);
    put_bytes(&mut partial, 2, b"too old");
    let mut body = Vec::new();
    put_bytes(&mut body, 1, &partial);
    let (script, server) = Script::serve([Scripted { body, ..status(200) }]).await;
    let shipper = Shipper::new(json!({"type": "otlp", "url": server.url("")}));
    shipper.deliver(logs(&["a", "b", "c"])).await.unwrap();
    let c = shipper.counted();
    assert_eq!((c.rows_delivered, c.dropped(DropReason::Rejected), script.bodies().len()), (1, 2, 1));
}

#[tokio::test]
async fn what_is_refused_for_good_is_a_dead_letter_or_the_senders_error() {
    let (_, server) = Script::serve([Scripted { body: b"no such thing".to_vec(), ..status(400) }, status(500)]).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dead.ndjson");
    let shipper = Shipper::new(json!({"type": "otlp", "url": server.url(""), "dead_letter": path}));
    shipper.deliver(logs(&["refused"])).await.unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"body\":\"refused\"") && text.contains("no such thing"), "{text}");
    // 500 is not retried in OTLP.
    let plain = Shipper::new(json!({"type": "otlp", "url": server.url("")}));
    assert!(matches!(plain.deliver(logs(&["x"])).await, Err(DeliveryError::Rejected(_))));
    assert_eq!(plain.counted().dropped(DropReason::Refused), 1);
}

#[tokio::test]
async fn documents_fare_each_by_its_own_status_and_keep_their_ids() {
    let answer = |statuses: &[u16]| {
        let items: Vec<_> =
            statuses.iter().map(|s| json!({"create": {"status": s, "error": {"type": "x"}}})).collect();
        Scripted { body: json!({"errors": true, "items": items}).to_string().into_bytes(), ..status(200) }
    };
    let good = Scripted { body: br#"{"errors":false,"items":[]}"#.to_vec(), ..status(200) };
    let (script, server) = Script::serve([answer(&[201, 429, 400, 409, 503]), answer(&[201, 429]), good]).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dead.ndjson");
    let shipper = Shipper::new(json!({
        "type": "elasticsearch", "url": server.url(""), "compression": "none", "dead_letter": path,
    }));
    shipper.deliver(logs(&["a", "b", "c", "d", "e"])).await.unwrap();
    let ids: Vec<Vec<String>> = script
        .bodies()
        .iter()
        .map(|b| {
            let text = String::from_utf8(b.clone()).unwrap();
            let id = |l: &str| {
                Some(serde_json::from_str::<serde_json::Value>(l).ok()?["create"]["_id"].as_str()?.to_owned())
            };
            text.lines().filter_map(id).collect()
        })
        .collect();
    assert_eq!(ids.iter().map(Vec::len).collect::<Vec<_>>(), [5, 2, 1]);
    assert_eq!(ids[1], [ids[0][1].clone(), ids[0][4].clone()]);
    assert_eq!(ids[2], [ids[0][4].clone()]);
    assert!(std::fs::read_to_string(path).unwrap().contains("\"body\":\"c\""));
    let c = shipper.counted();
    assert_eq!((c.rows_delivered, c.dropped(DropReason::DeadLettered)), (4, 1));
}

#[tokio::test]
async fn a_request_that_is_too_large_goes_in_parts() {
    let (script, server) = Script::serve([status(413), status(413)]).await;
    let shipper = Shipper::new(json!({"type": "http", "url": server.url("/in"), "compression": "none"}));
    shipper.deliver(logs(&["a", "b", "c", "d"])).await.unwrap();
    let lines: Vec<usize> = script.bodies().iter().map(|b| b.iter().filter(|c| **c == b'\n').count()).collect();
    assert_eq!(lines, [4, 2, 1, 1, 2]);
    assert_eq!(shipper.counted().rows_delivered, 4);
}
