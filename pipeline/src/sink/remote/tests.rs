//! The engine against a remote that answers by script.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use storage::{
    Append, AppendError, Appended, SourcePosition,
    model::{LogBatchBuilder, LogRow, MetricBatchBuilder, TenantId},
};

use super::*;
use crate::{
    Batch, Delivery, Output, PipelineBuilder, PipelineConfig, Positions, Running, metrics::ComponentKind,
    sink::file::ndjson, topology::Limits,
};

/// Answers by script, then takes everything. What it took is kept.
#[derive(Default)]
struct Remote {
    script: Mutex<VecDeque<Answer>>,
    /// Id and body of every attempt.
    attempts: Mutex<Vec<([u8; 16], String)>>,
    taken: Mutex<Vec<String>>,
    bytes_max: Option<usize>,
    refuses: Option<&'static str>,
}

#[async_trait::async_trait]
impl Protocol for Arc<Remote> {
    fn signals(&self) -> Signals {
        Signals::LOGS
    }

    fn encode(&self, rows: &Rows<'_>) -> Result<Encoded, EncodeError> {
        let mut encoded = ndjson(rows)?;
        encoded.ends = memchr::memchr_iter(b'\n', &encoded.body).map(|at| at + 1).collect();
        Ok(encoded)
    }

    fn compression(&self) -> BodyCompression {
        BodyCompression::Chosen(Compression::None)
    }

    async fn send(&self, request: &Outgoing) -> Answer {
        let body = String::from_utf8(request.body.to_vec()).unwrap();
        self.attempts.lock().unwrap().push((request.id, body.clone()));
        let scripted = self.script.lock().unwrap().pop_front();
        let answer = match scripted {
            Some(answer) => answer,
            None if self.refuses.is_some_and(|word| body.contains(word)) => Answer::Refused("bad word".into()),
            None if self.bytes_max.is_some_and(|m| body.len() > m) => Answer::TooLarge("too large".into()),
            None => Answer::Taken { rejected: 0, message: None },
        };
        let lost = |n: u32| match &answer {
            Answer::Taken { .. } => false,
            Answer::Items { refused, again, .. } => again.contains(&n) || refused.iter().any(|(r, _)| *r == n),
            _ => true,
        };
        let lines = body.lines().enumerate().filter(|(n, _)| !lost(*n as u32)).map(|(_, l)| l.to_owned());
        self.taken.lock().unwrap().extend(lines);
        answer
    }
}

/// Where positions go.
#[derive(Default)]
struct Log(Mutex<Vec<Append>>);

#[async_trait::async_trait]
impl Destination for Log {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        self.0.lock().unwrap().push(append);
        Ok(Appended::default())
    }
}

impl Positions for Log {
    fn position(&self, _: &TenantId, _: &str) -> Option<u64> {
        None
    }
}

struct Bench {
    remote: Arc<Remote>,
    log: Arc<Log>,
    running: Running,
    out: Output,
}

fn quick() -> DeliveryConfig {
    DeliveryConfig {
        batch: config::BatchConfig { age: Duration::from_millis(5), ..config::BatchConfig::default() },
        retry: retry::RetryConfig {
            first: Duration::from_millis(2),
            most: Duration::from_millis(10),
            give_up: Duration::from_secs(30),
        },
        ..DeliveryConfig::default()
    }
}

fn bench(remote: Remote, config: DeliveryConfig) -> Bench {
    let (remote, log) = (Arc::new(remote), Arc::new(Log::default()));
    let sink = RemoteSink::new(Arc::new(remote.clone()), config, log.clone());
    let running = PipelineBuilder::new(PipelineConfig::default())
        .limits(Limits { queue_batches: 4, ..Limits::default() })
        .input("push", Signals::ALL)
        .sink("far", &["push"], Box::new(sink))
        .build_on(log.clone(), log.clone())
        .unwrap();
    let out = running.input("push").unwrap();
    Bench { remote, log, running, out }
}

fn scripted(answers: impl IntoIterator<Item = Answer>) -> Remote {
    Remote { script: Mutex::new(answers.into_iter().collect()), ..Remote::default() }
}

fn again() -> Answer {
    Answer::Again { after: None, reason: "down".into() }
}

fn logs(words: &[&str]) -> Batch {
    let mut b = LogBatchBuilder::new();
    for (i, word) in words.iter().enumerate() {
        b.push(&LogRow { ts: 1 + i as i64, stream_labels: "{}", body: word, ..LogRow::default() });
    }
    Batch::new(TenantId::default(), Data::Logs(b.finish()))
}

fn at(mut batch: Batch, position: u64) -> Batch {
    batch.sources.push(SourcePosition { key: "file".into(), position });
    batch
}

impl Bench {
    async fn send(&self, batch: Batch) -> Delivery {
        self.out.send(batch).await.unwrap()
    }

    fn counted(&self) -> crate::metrics::ComponentSnapshot {
        self.running.registry().component(ComponentKind::Sink, "far").unwrap()
    }

    fn words(&self) -> Vec<String> {
        let body =
            |l: &String| serde_json::from_str::<serde_json::Value>(l).unwrap()["body"].as_str().unwrap().to_owned();
        let mut words: Vec<String> = self.remote.taken.lock().unwrap().iter().map(body).collect();
        words.sort();
        words
    }
}

#[tokio::test]
async fn a_request_is_sent_again_unchanged_until_it_is_taken_and_only_then_acknowledged() {
    let b = bench(scripted([again(), again(), Answer::Denied("401".into())]), quick());
    b.send(logs(&["x"])).await.wait().await.unwrap();
    let attempts = b.remote.attempts.lock().unwrap().clone();
    assert_eq!(attempts.len(), 4);
    assert!(attempts.iter().all(|a| *a == attempts[0]), "the same bytes under the same id");
    let c = b.counted();
    let remote = c.remote.unwrap();
    assert_eq!((c.rows_delivered, remote.requests, remote.retries), (1, 4, 3));
    let mut text = String::new();
    crate::metrics::write_prometheus(&mut text, &b.running.metrics());
    assert!(text.contains("pipeline_sink_retries_total{component=\"far\"} 3"), "{text}");
    assert!(text.contains("pipeline_sink_request_seconds_count{component=\"far\"} 4"), "{text}");
}

#[tokio::test]
async fn a_batch_that_its_sender_names_keeps_its_name() {
    let b = bench(scripted([again()]), quick());
    for _ in 0..2 {
        let mut batch = logs(&["x"]);
        batch.batch_id = Some([7; 16]);
        b.send(batch).await.wait().await.unwrap();
    }
    assert!(b.remote.attempts.lock().unwrap().iter().all(|(id, _)| *id == [7; 16]));
}

#[tokio::test]
async fn one_bad_batch_does_not_take_its_neighbours_with_it() {
    let mut config = quick();
    config.batch.age = Duration::from_millis(100);
    let b = bench(Remote { refuses: Some("bad"), ..Remote::default() }, config);
    let (good, bad) = (b.send(logs(&["a", "b"])).await, b.send(logs(&["bad"])).await);
    good.wait().await.unwrap();
    assert!(matches!(bad.wait().await, Err(DeliveryError::Rejected(_))));
    assert_eq!(b.words(), ["a", "b"]);
    let c = b.counted();
    assert_eq!((c.rows_delivered, c.dropped(DropReason::Refused)), (2, 1));
    assert_eq!(c.remote.unwrap().rejected, 1);
}

#[tokio::test]
async fn refused_rows_are_dead_letters_with_their_reason_and_count_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dead.ndjson");
    let config = DeliveryConfig { dead_letter: Some(path.clone()), ..quick() };
    let b = bench(Remote { refuses: Some("bad"), ..Remote::default() }, config);
    b.send(logs(&["bad"])).await.wait().await.unwrap();
    let line: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!((line["refused_by"].as_str(), line["reason"].as_str()), (Some("far"), Some("bad word")));
    assert_eq!(line["body"], "bad");
    let c = b.counted();
    assert_eq!((c.rows_delivered, c.dropped(DropReason::DeadLettered)), (0, 1));
    assert_eq!(c.remote.unwrap().dead_lettered, 1);
}

/// `far` refuses `bad`; what it refuses goes to a second remote.
fn with_grave(grave: Remote) -> (Bench, Arc<Remote>) {
    let remote = Arc::new(Remote { refuses: Some("bad"), ..Remote::default() });
    let (grave, log) = (Arc::new(grave), Arc::new(Log::default()));
    let sink = |remote: &Arc<Remote>| Box::new(RemoteSink::new(Arc::new(remote.clone()), quick(), log.clone()));
    let running = PipelineBuilder::new(PipelineConfig::default())
        .limits(Limits { queue_batches: 4, ..Limits::default() })
        .input("push", Signals::ALL)
        .sink("far", &["push"], sink(&remote))
        .sink("grave", &["far.dead_letter"], sink(&grave))
        .build_on(log.clone(), log.clone())
        .unwrap();
    let out = running.input("push").unwrap();
    (Bench { remote, log, running, out }, grave)
}

#[tokio::test]
async fn refused_rows_reach_the_component_that_takes_dead_letters_before_the_sender_hears_of_it() {
    let (b, grave) = with_grave(scripted([again(), again()]));
    let (good, bad) = (b.send(logs(&["a"])).await, b.send(at(logs(&["bad"]), 7)).await);
    good.wait().await.unwrap();
    bad.wait().await.unwrap();
    assert_eq!(b.words(), ["a"]);
    let taken = grave.taken.lock().unwrap().clone();
    let line: serde_json::Value = serde_json::from_str(&taken[0]).unwrap();
    assert_eq!((taken.len(), &line["body"]), (1, &"bad".into()));
    assert_eq!((&line["attrs"]["refused_by"], &line["attrs"]["refused_reason"]), (&"far".into(), &"bad word".into()));
    assert_eq!(grave.attempts.lock().unwrap().len(), 3, "tried until it was there");
    let positions: Vec<u64> =
        b.log.0.lock().unwrap().iter().flat_map(|a| a.sources.iter().map(|s| s.position)).collect();
    assert_eq!(positions, [7]);
    let c = b.counted();
    assert_eq!((c.rows_delivered, c.dropped(DropReason::DeadLettered)), (1, 1));
    assert_eq!(c.remote.unwrap().dead_lettered, 1);
    let grave = b.running.registry().component(ComponentKind::Sink, "grave").unwrap();
    assert_eq!((grave.rows_in, grave.rows_delivered), (1, 1));
    assert!(b.running.stop(Duration::from_secs(5)).await.late.is_empty());
}

#[tokio::test]
async fn a_batch_that_is_sent_again_has_dead_letters_of_the_same_name() {
    let (b, grave) = with_grave(Remote::default());
    for _ in 0..2 {
        let mut batch = logs(&["bad"]);
        batch.batch_id = Some([7; 16]);
        b.send(batch).await.wait().await.unwrap();
    }
    let ids: Vec<[u8; 16]> = grave.attempts.lock().unwrap().iter().map(|(id, _)| *id).collect();
    assert!(ids.len() == 2 && ids[0] == ids[1] && ids[0] != [7; 16], "{ids:?}");
}

#[tokio::test]
async fn dead_letters_that_are_refused_too_are_the_senders_error() {
    let (b, _) = with_grave(Remote { refuses: Some("bad"), ..Remote::default() });
    let fate = b.send(logs(&["bad"])).await.wait().await;
    let Err(DeliveryError::Rejected(why)) = fate else { panic!("{fate:?}") };
    assert!(why.contains("sink far: bad word; as a dead letter: sink grave: bad word"), "{why}");
    assert_eq!(b.counted().dropped(DropReason::Refused), 1);
}

#[tokio::test]
async fn what_is_too_large_goes_in_parts_and_what_cannot_be_parted_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dead.ndjson");
    let config = DeliveryConfig { dead_letter: Some(path.clone()), ..quick() };
    let b = bench(Remote { bytes_max: Some(250), ..Remote::default() }, config);
    let long = "x".repeat(500);
    let words: Vec<String> = (0..9).map(|n| format!("w{n}")).chain([long]).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    b.send(logs(&words)).await.wait().await.unwrap();
    assert_eq!(b.words(), words[..9]);
    assert_eq!(b.counted().dropped(DropReason::DeadLettered), 1);
    let ids: std::collections::HashSet<[u8; 16]> =
        b.remote.attempts.lock().unwrap().iter().map(|(id, _)| *id).collect();
    assert_eq!(ids.len(), b.remote.attempts.lock().unwrap().len(), "each part has a name of its own");
}

#[tokio::test]
async fn items_fare_each_by_its_own_status() {
    let answer = Answer::Items { refused: vec![(1, "mapping".into())], again: vec![0, 3], reason: "429".into() };
    let then = Answer::Items { refused: vec![], again: vec![1], reason: "429".into() };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dead.ndjson");
    let b = bench(scripted([answer, then]), DeliveryConfig { dead_letter: Some(path.clone()), ..quick() });
    b.send(logs(&["a", "b", "c", "d"])).await.wait().await.unwrap();
    assert_eq!(b.words(), ["a", "c", "d"], "each once");
    assert!(std::fs::read_to_string(path).unwrap().contains("\"body\":\"b\""));
    let c = b.counted();
    assert_eq!((c.rows_delivered, c.dropped(DropReason::DeadLettered)), (3, 1));
}

#[tokio::test]
async fn rows_refused_of_a_request_that_was_taken_are_counted() {
    let b = bench(scripted([Answer::Taken { rejected: 2, message: Some("too old".into()) }]), quick());
    b.send(logs(&["a", "b", "c"])).await.wait().await.unwrap();
    let c = b.counted();
    assert_eq!((c.rows_delivered, c.dropped(DropReason::Rejected)), (1, 2));
}

#[tokio::test]
async fn positions_are_written_in_order_behind_their_rows_and_survive_refusals_of_others() {
    let mut config = quick();
    config.batch.age = Duration::ZERO;
    let b = bench(scripted([again(), again()]), config);
    let mut fates = Vec::new();
    for n in 1..=6 {
        fates.push(b.send(at(logs(&["x"]), n)).await);
    }
    for fate in fates {
        fate.wait().await.unwrap();
    }
    let written: Vec<u64> =
        b.log.0.lock().unwrap().iter().flat_map(|a| a.sources.iter().map(|s| s.position)).collect();
    assert!(written.is_sorted() && written.last() == Some(&6), "{written:?}");
    assert!(b.log.0.lock().unwrap().iter().all(|a| a.rows.is_empty()));
}

#[tokio::test]
async fn a_remote_that_is_down_makes_the_source_wait_and_stop_hands_the_rows_back() {
    let mut config = quick();
    config.queue = config::QueueConfig { bytes: 1, requests: 1 };
    let b = bench(scripted((0..100_000).map(|_| again())), config);
    let mut fates = Vec::new();
    let flood = async {
        loop {
            fates.push(b.send(logs(&["x"])).await);
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(300), flood).await.is_err());
    // One under way, and the queue in front of the sink.
    assert!(fates.len() <= 6, "{} batches were taken", fates.len());
    let Bench { running, .. } = b;
    let report = running.stop(Duration::from_millis(200)).await;
    assert_eq!(report.late, ["far"]);
    for fate in fates {
        assert!(matches!(fate.wait().await, Err(DeliveryError::Unavailable { .. } | DeliveryError::Stopping)));
    }
}

#[tokio::test]
async fn pushed_rows_are_handed_back_after_their_time_and_rows_with_positions_never() {
    let mut config = quick();
    config.retry.give_up = Duration::from_millis(40);
    let b = bench(scripted((0..200).map(|_| again())), config);
    let (pushed, read) = (b.send(logs(&["p"])).await, b.send(at(logs(&["f"]), 1)).await);
    assert!(matches!(pushed.wait().await, Err(DeliveryError::Unavailable { .. })));
    read.wait().await.unwrap();
    assert_eq!(b.words(), ["f"]);
    assert_eq!(b.counted().dropped(DropReason::Returned), 1);
}

#[tokio::test]
async fn rows_of_another_signal_are_counted_and_what_waits_is_sent_at_the_stop() {
    let mut config = quick();
    config.batch.age = Duration::from_secs(3600);
    let b = bench(Remote::default(), config);
    let mut m = MetricBatchBuilder::new();
    let id = m.series(&storage::model::Labels::from_pairs([("__name__", "up")]), Default::default());
    m.sample(id, 1, None, 1.0);
    b.send(Batch::new(TenantId::default(), Data::Metrics(m.finish()))).await.wait().await.unwrap();
    assert_eq!(b.counted().dropped(DropReason::Unsupported), 1);
    let waiting = b.send(logs(&["last"])).await;
    let Bench { running, remote, .. } = b;
    assert!(running.stop(Duration::from_secs(5)).await.late.is_empty());
    waiting.wait().await.unwrap();
    assert_eq!(remote.taken.lock().unwrap().len(), 1);
}
