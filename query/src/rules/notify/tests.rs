//! Deliveries to a small receiver on this machine.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{Router, extract::State, http::StatusCode, routing::post};
use parking_lot::Mutex;

use super::*;

fn notice(name: &str, resolved: bool) -> Notice {
    Notice {
        labels: [("alertname".to_owned(), name.to_owned())].into(),
        annotations: BTreeMap::new(),
        starts_at: 1_000,
        ends_at: 2_000,
        resolved,
        generator_url: "http://x/graph".into(),
    }
}

#[derive(Clone, Default)]
struct Receiver {
    bodies: Arc<Mutex<Vec<String>>>,
    asked: Arc<AtomicUsize>,
}

/// Refuses the first requests with these statuses, then takes all.
async fn receiver(refusals: &'static [u16], tasks: &mut JoinSet<()>) -> (url::Url, Receiver) {
    let seen = Receiver::default();
    let take = move |State(seen): State<Receiver>, headers: axum::http::HeaderMap, body: String| async move {
        let n = seen.asked.fetch_add(1, Ordering::SeqCst);
        if let Some(status) = refusals.get(n) {
            return StatusCode::from_u16(*status).unwrap();
        }
        let auth = headers.get("authorization").map(|v| v.to_str().unwrap()).unwrap_or("-").to_owned();
        seen.bodies.lock().push(format!("{auth} {body}"));
        StatusCode::OK
    };
    let app = Router::new().route("/am/api/v2/alerts", post(take)).with_state(seen.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/am/", listener.local_addr().unwrap()).parse().unwrap();
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    (url, seen)
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} did not come");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_is_tried_again_until_an_alertmanager_takes_it() {
    let mut tasks = JoinSet::new();
    let (url, seen) = receiver(&[503], &mut tasks).await;
    let stop = CancellationToken::new();
    let credentials = Credentials::Bearer(alertmanager::Secret::Text("t".into()));
    let target = Alertmanager { url, timeout: Duration::from_secs(5), credentials, via: None, relabel: None };
    let settings = NotifySettings { resend_delay: Duration::from_secs(60), alertmanagers: vec![target], desk: None };
    let notifier = Notifier::start(settings, &mut tasks, &stop);
    notifier.notify(&[notice("a", false)]);
    until("the delivery", || seen.bodies.lock().len() == 1).await;
    let body = seen.bodies.lock()[0].clone();
    let (auth, json) = body.split_once(" [").unwrap();
    assert_eq!(auth, "Bearer t");
    let wanted = r#"{"annotations":{},"endsAt":"1970-01-01T00:00:02.000Z","generatorURL":"http://x/graph","labels":{"alertname":"a"},"startsAt":"1970-01-01T00:00:01.000Z"}]"#;
    assert_eq!(json, wanted);
    until("the count", || notifier.metrics().iter().map(|l| l.value).collect::<Vec<_>>() == [1.0, 1.0, 0.0, 0.0])
        .await;
    stop.cancel();
}

#[tokio::test]
async fn only_the_newest_word_on_an_alert_waits() {
    let queue = Queue::default();
    queue.put(&[notice("a", false), notice("b", false), notice("a", true)]);
    let taken = queue.take(10).await;
    assert_eq!(
        taken.iter().map(|n| (n.labels["alertname"].as_str(), n.resolved)).collect::<Vec<_>>(),
        [("a", true), ("b", false)]
    );
    queue.put(&[notice("a", false)]);
    queue.put_back(taken);
    let again = queue.take(10).await;
    assert_eq!(
        again.iter().map(|n| (n.labels["alertname"].as_str(), n.resolved)).collect::<Vec<_>>(),
        [("a", false), ("b", false)]
    );
    let many: Vec<Notice> = (0..10_050).map(|i| notice(&i.to_string(), false)).collect();
    queue.put(&many);
    assert_eq!(queue.figures(), [0, 1, 50, 10_000]);
}
