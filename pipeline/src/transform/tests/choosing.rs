//! Those that choose rows: `sample`, `dedupe`, `throttle`, `route`.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use storage::model::Timestamp;

use super::*;

/// Rows of a transform that counts, and what it counted.
fn run(t: &dyn Transform, data: Data, reason: DropReason) -> (Vec<serde_json::Value>, u64) {
    let registry = Registry::default();
    let counters = registry.add("t", ComponentKind::Transform);
    let data = t.apply(data, &counters).unwrap();
    let text = write_batch(&Batch::new(TenantId::default(), data)).unwrap();
    (text.lines().map(|l| serde_json::from_str(l).unwrap()).collect(), registry.snapshot()[0].dropped(reason))
}

fn log_rows(rows: &[(i64, &str, &str)]) -> Data {
    let mut b = LogBatchBuilder::new();
    for (ts, body, app) in rows {
        let labels = Labels::from_pairs([("app", *app)]).to_json();
        b.push(&LogRow { ts: *ts, body, stream_labels: &labels, ..LogRow::default() });
    }
    Data::Logs(b.finish())
}

fn bodies(rows: &[serde_json::Value]) -> Vec<&str> {
    rows.iter().map(|r| r["body"].as_str().unwrap()).collect()
}

#[test]
fn a_sample_takes_the_logs_and_spans_of_a_trace_together_and_about_the_rate() {
    let t = build(r#"{"type":"sample","inputs":["s"],"rate":0.25}"#);
    let id = |i: u64| [[0; 8], i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()].concat();
    let (mut logs, mut spans) = (LogBatchBuilder::new(), SpanBatchBuilder::new());
    for i in 0..4000 {
        let trace_id = id(i);
        logs.push(&LogRow { stream_labels: "{}", trace_id: Some(&trace_id), ..LogRow::default() });
        spans.push(&SpanRow { trace_id: &trace_id, span_id: &[1; 8], ..SpanRow::default() });
    }
    logs.push(&LogRow { stream_labels: "{}", body: "no trace", ..LogRow::default() });
    let (logs, dropped) = run(&*t, Data::Logs(logs.finish()), DropReason::Sampled);
    let (spans, _) = run(&*t, Data::Spans(spans.finish()), DropReason::Sampled);
    let ids = |rows: &[serde_json::Value]| -> Vec<String> {
        rows.iter().filter_map(|r| r["trace_id"].as_str()).map(str::to_owned).collect()
    };
    assert_eq!(ids(&logs), ids(&spans));
    assert!((850..1150).contains(&spans.len()), "{}", spans.len());
    assert_eq!(logs.last().unwrap()["body"], "no trace");
    assert_eq!(dropped as usize, 4001 - logs.len());
    // The decision is part of the format of a cluster: it must never change.
    let one = build(r#"{"type":"sample","inputs":["s"],"rate":0.5,"key":[".body"],"without_key":"drop"}"#);
    let rows: Vec<(i64, &str, &str)> =
        ["a", "b", "c", "d", "e", "f", "g", "h"].iter().map(|b| (0, *b, "x")).collect();
    let want: Vec<&str> =
        rows.iter().map(|r| r.1).filter(|b| (xxhash_rust::xxh3::xxh3_128(b.as_bytes()) >> 127) == 0).collect();
    assert_eq!(bodies(&run(&*one, log_rows(&rows), DropReason::Sampled).0), want);
}

#[test]
fn a_sample_of_metrics_takes_whole_series_and_bounds_are_exact() {
    let all = build(r#"{"type":"sample","inputs":["s"],"rate":1,"key":[".labels"]}"#);
    assert_eq!(run(&*all, metrics(), DropReason::Sampled).0.len(), 5);
    let none = build(r#"{"type":"sample","inputs":["s"],"rate":0,"key":[".labels"]}"#);
    assert_eq!(run(&*none, metrics(), DropReason::Sampled), (vec![], 5));
    let e = errors(r#"{"type":"sample","inputs":["s"],"rate":1.5,"key":[".metric"],"signals":["logs"]}"#);
    assert_eq!(e[0], "transforms.t.rate: expected a share from 0 to 1");
    assert!(e[1].starts_with("transforms.t.signals[0]: logs cannot be treated with these settings"), "{e:?}");
}

const SECOND: i64 = 1_000_000_000;

#[test]
fn of_equal_rows_one_passes_in_each_window() {
    let t = build(r#"{"type":"dedupe","inputs":["s"],"fields":[".body",".stream"],"window":"10s"}"#);
    let rows = [
        (0, "a", "x"),
        (SECOND, "a", "x"),
        (SECOND, "a", "y"),
        (2 * SECOND, "b", "x"),
        (10 * SECOND, "a", "x"),
        (9 * SECOND, "a", "x"),
    ];
    let (out, dropped) = run(&*t, log_rows(&rows), DropReason::Duplicate);
    assert_eq!((bodies(&out), dropped), (vec!["a", "a", "b", "a"], 2));
    let (out, dropped) =
        run(&*t, log_rows(&[(11 * SECOND, "a", "x"), (30 * SECOND, "a", "x")]), DropReason::Duplicate);
    assert_eq!((out.len(), dropped), (1, 1), "remembered from the batch before");
}

#[test]
fn rows_of_a_batch_that_was_not_delivered_are_not_remembered() {
    let t = build(r#"{"type":"dedupe","inputs":["s"],"fields":[".body"],"window":"10s"}"#);
    let registry = Registry::default();
    let counters = registry.add("t", ComponentKind::Transform);
    let send = |delivered: bool| {
        let (data, settle) = t.apply_tracked(log_rows(&[(0, "a", "x")]), &counters).unwrap();
        if let Some(settle) = settle {
            settle(delivered);
        }
        data.rows()
    };
    assert_eq!((send(false), send(true), send(true)), (1, 1, 0));
}

#[test]
fn the_oldest_are_forgotten_beyond_the_count() {
    let t = build(r#"{"type":"dedupe","inputs":["s"],"fields":[".body"],"window":"1h","keys_max":2}"#);
    for body in ["a", "b", "c"] {
        run(&*t, log_rows(&[(0, body, "x")]), DropReason::Duplicate);
    }
    assert_eq!(run(&*t, log_rows(&[(1, "c", "x"), (1, "b", "x"), (1, "a", "x")]), DropReason::Duplicate).0.len(), 1);
    let e = errors(r#"{"type":"dedupe","inputs":["s"],"fields":[".labels.a"],"window":"0s","keys_max":0}"#);
    assert_eq!(e.len(), 3, "{e:?}");
}

#[derive(Debug, Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed) as i64 * 1_000_000)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

fn build_at(json: &str, clock: &Arc<Hand>) -> Arc<dyn Transform> {
    let clock: Arc<dyn Clock> = clock.clone();
    serde_json::from_str::<TransformConfig>(json).unwrap().build("transforms.t", &clock).unwrap()
}

#[test]
fn a_throttle_lets_a_burst_pass_and_then_the_rate_for_each_key() {
    let clock = Arc::new(Hand::default());
    let t = build_at(r#"{"type":"throttle","inputs":["s"],"rate":2,"burst":3,"key":[".stream.app"]}"#, &clock);
    let five =
        |app: &'static str| log_rows(&[(0, "1", app), (0, "2", app), (0, "3", app), (0, "4", app), (0, "5", app)]);
    assert_eq!(run(&*t, five("a"), DropReason::Throttled).1, 2);
    assert_eq!(run(&*t, five("b"), DropReason::Throttled).1, 2, "another key has its own");
    clock.0.store(500, Ordering::Relaxed);
    assert_eq!(bodies(&run(&*t, five("a"), DropReason::Throttled).0), ["1"]);
    clock.0.store(60_000, Ordering::Relaxed);
    assert_eq!(run(&*t, five("a"), DropReason::Throttled).1, 2, "never more than the burst");
}

#[test]
fn keys_are_bounded_and_those_at_rest_make_room() {
    let clock = Arc::new(Hand::default());
    let t = build_at(r#"{"type":"throttle","inputs":["s"],"rate":1,"key":[".stream.app"],"keys_max":2}"#, &clock);
    let of = |apps: &[&str]| {
        let rows: Vec<(i64, &str, &str)> = apps.iter().map(|a| (0, "x", *a)).collect();
        run(&*t, log_rows(&rows), DropReason::Throttled).1
    };
    assert_eq!(of(&["a", "b", "c", "d"]), 1, "c and d share what is beyond");
    clock.0.store(1_500, Ordering::Relaxed);
    assert_eq!(of(&["c", "d", "c", "d"]), 2, "a and b are full again and leave their places");
}

#[test]
fn points_are_throttled_one_by_one_and_a_rate_must_be_one() {
    let t = build(r#"{"type":"throttle","inputs":["s"],"rate":0.001,"burst":2}"#);
    let (rows, dropped) = run(&*t, metrics(), DropReason::Throttled);
    assert_eq!((rows.len(), dropped), (2, 3));
    let e = errors(r#"{"type":"throttle","inputs":["s"],"rate":0,"burst":0,"keys_max":0,"key":[".body",".metric"]}"#);
    assert_eq!(e.len(), 3, "{e:?}");
}

#[test]
fn a_route_gives_each_row_to_the_first_that_takes_it() {
    let t = build(
        r#"{"type":"route","inputs":["s"],"routes":[
            {"name":"web","condition":".stream.app == 'web'"},
            {"name":"all_logs","signals":["logs"]},
            {"name":"up","condition":".metric == 'up'"}]}"#,
    );
    let names: Vec<String> = t.outputs().into_iter().map(|(n, _)| n).collect();
    assert_eq!(names, ["web", "all_logs", "up", "default"]);
    let registry = Registry::default();
    let counters = registry.add("t", ComponentKind::Transform);
    let rows = |data: Data| -> Vec<usize> { t.split(data, &counters).unwrap().iter().map(Data::rows).collect() };
    assert_eq!(rows(log_rows(&[(0, "1", "web"), (0, "2", "db"), (0, "3", "web")])), [2, 1, 0, 0]);
    assert_eq!(rows(metrics()), [0, 0, 2, 3]);
    let drops = build(
        r#"{"type":"route","inputs":["s"],"routes":[{"name":"up","condition":".metric == 'up'"}],"default":"drop"}"#,
    );
    assert_eq!(drops.outputs().len(), 1);
    drops.split(metrics(), &counters).unwrap();
    assert_eq!(registry.snapshot()[0].dropped(DropReason::Unrouted), 3);
    let e = errors(
        r#"{"type":"route","inputs":["s"],"routes":[{"name":"default","condition":".bdoy == 1"},{"name":"a b"},
            {"name":"x","signals":["metrics"],"condition":".body == 'x'"}]}"#,
    );
    assert_eq!(e.len(), 5, "{e:#?}");
}
