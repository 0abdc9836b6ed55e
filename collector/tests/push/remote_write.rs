//! Remote write over HTTP: what senders are told, and what is stored whatever they are told.

use std::{collections::BTreeMap, time::Duration};

use collector::{PushConfig, push_router};
use pipeline::{
    Output,
    codec::remote_write::{encode_v1, encode_v2},
};
use storage::model::{
    Labels, Matcher, MetricBatch, MetricBatchBuilder, Table, TenantId, TimeRange,
    batch::{HistogramRow, SeriesMeta},
};

use crate::fixture::{Answer, Fixture, post};

const PATH: &str = "/api/v1/write";
const V2: (&str, &str) = ("content-type", "application/x-protobuf;proto=io.prometheus.write.v2.Request");
const MS: i64 = 1_700_000_000_000;
/// Long after any test runs.
const FAR: i64 = 9_000_000_000_000;

fn packed(message: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(message).unwrap()
}

/// Two samples, the second at `second`; a histogram; an exemplar.
fn batch(second: i64) -> MetricBatch {
    let mut b = MetricBatchBuilder::new();
    let meta = SeriesMeta { metric_type: Some("counter"), help: Some("Requests."), ..SeriesMeta::default() };
    let id = b.series(&Labels::from_pairs([("__name__", "req_total"), ("job", "a")]), meta);
    b.sample(id, MS, None, 1.0);
    b.sample(id, second, None, 2.0);
    b.exemplar(id, MS, 1.0, Some(&[1; 16]), None, "{}");
    let h = b.series(&Labels::from_pairs([("__name__", "req_seconds")]), SeriesMeta::default());
    let row = HistogramRow { count: 3.0, positive_counts: vec![1.0, 2.0], ..HistogramRow::default() };
    b.histogram(h, MS, None, &row);
    b.finish()
}

fn written(answer: &Answer) -> Vec<String> {
    ["samples", "histograms", "exemplars"]
        .iter()
        .filter_map(|n| answer.headers.get(format!("x-prometheus-remote-write-{n}-written")))
        .map(|v| v.to_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn both_versions_are_stored_and_2_0_is_told_how_much() {
    for (headers, body, counts) in [
        (&[] as &[(&str, &str)], encode_v1(&batch(MS + 1)), vec![]),
        (&[V2, ("content-encoding", "snappy")], encode_v2(&batch(MS + 1)), vec!["2", "1", "1"]),
    ] {
        let f = Fixture::new().await;
        for path in [PATH, "/prometheus/api/v1/write"] {
            let answer = f.post(path, headers, packed(&body)).await;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (204, ""));
            assert_eq!(written(&answer), counts);
            f.store.flush().await.unwrap();
        }
        f.store.compact().await.unwrap();
        // The same samples again are no more samples.
        assert_eq!(f.column(Table::MetricSamples, "value").await, ["1", "2"]);
        assert_eq!(f.column(Table::MetricHistograms, "positive_counts").await, ["[1,2]"]);
        assert_eq!(f.column(Table::MetricExemplars, "trace_id").await[0], "01".repeat(16));
        let mut series = f.column(Table::MetricSeries, "labels").await;
        series.sort();
        assert_eq!(series, [r#"{"__name__":"req_seconds"}"#, r#"{"__name__":"req_total","job":"a"}"#]);
    }
}

#[tokio::test]
async fn what_is_refused_is_400_and_the_rest_is_stored_and_counted() {
    let f = Fixture::new().await;
    let answer = f.post(PATH, &[V2], packed(&encode_v2(&batch(FAR)))).await;
    assert_eq!(answer.status.as_u16(), 400);
    assert!(answer.text().contains("too far in the future"), "{}", answer.text());
    assert_eq!(written(&answer), ["1", "1", "1"]);
    f.store.flush().await.unwrap();
    let answer = f.post(PATH, &[], packed(&encode_v1(&batch(FAR)))).await;
    assert_eq!((answer.status.as_u16(), written(&answer).len()), (400, 0));
    f.store.flush().await.unwrap();
    f.store.compact().await.unwrap();
    assert_eq!(f.column(Table::MetricSamples, "value").await, ["1"]);
    let mut text = String::new();
    f.config.metrics.render(&mut text);
    for line in [
        "collector_push_records_rejected_total{protocol=\"remote_write\",reason=\"too_far_ahead\"} 2",
        "collector_push_records_accepted_total{protocol=\"remote_write\"} 6",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_with_its_reason() {
    let f = Fixture::new().await;
    for (headers, body, status, what) in [
        (vec![("content-type", "application/json")], packed(b""), 415, "application/x-protobuf"),
        (vec![("content-encoding", "gzip")], packed(b""), 415, "snappy"),
        (
            vec![("content-type", "application/x-protobuf;proto=x")],
            packed(b""),
            415,
            "io.prometheus.write.v2.Request",
        ),
        (vec![], b"not snappy".to_vec(), 400, "snappy"),
        (vec![], packed(b"\x0a\xff"), 400, "protobuf"),
        (vec![("x-scope-orgid", "../x")], packed(b""), 400, "X-Scope-OrgID"),
    ] {
        let answer = f.post(PATH, &headers, body).await;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
        assert!(answer.text().contains(what) && answer.text().ends_with('\n'), "{}", answer.text());
    }
    assert_eq!(f.post(PATH, &[], packed(b"")).await.status.as_u16(), 204);
}

#[tokio::test]
async fn senders_wait_with_503_when_nothing_can_be_taken() {
    let (out, queue) = Output::bounded(1, 1 << 20);
    drop(queue);
    let router = push_router(PushConfig::default(), out);
    let answer = post(&router, PATH, &[V2], packed(&encode_v2(&batch(MS + 1)))).await;
    assert_eq!(answer.status.as_u16(), 503);
    assert_eq!(written(&answer), ["0", "0", "0"]);
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn metadata_of_1_0_that_comes_after_the_samples_reaches_their_series() {
    let f = Fixture::new().await;
    let mut b = MetricBatchBuilder::new();
    let id = b.series(&Labels::from_pairs([("__name__", "up_seconds_bucket"), ("le", "1")]), SeriesMeta::default());
    b.sample(id, MS, None, 1.0);
    let sample = packed(&encode_v1(&b.finish()));
    assert_eq!(f.post(PATH, &[], sample.clone()).await.status.as_u16(), 204);
    // MetricMetadata { type HISTOGRAM, name "up_seconds", help "Up." }.
    let metadata = b"\x1a\x13\x08\x03\x12\x0aup_seconds\x22\x03Up.";
    assert_eq!(f.post(PATH, &[], packed(metadata)).await.status.as_u16(), 204);
    assert_eq!(f.post(PATH, &[], sample.clone()).await.status.as_u16(), 204);
    // Told once: not written again.
    assert_eq!(f.post(PATH, &[], sample).await.status.as_u16(), 204);
    assert_eq!(f.column(Table::MetricSeries, "type").await, ["-", "histogram"]);
    f.store.flush().await.unwrap();
    let known = f.store.series(&TenantId::default_tenant(), &[], TimeRange::ALL).await.unwrap();
    assert_eq!(
        (known.len(), known[0].metric_type.as_deref(), known[0].help.as_deref()),
        (1, Some("histogram"), Some("Up."))
    );
}

#[tokio::test]
async fn labels_of_known_series_are_asked_for_again_on_each_day_after_a_delete_and_with_new_metadata() {
    const DAY: i64 = 86_400_000;
    let f = Fixture::new().await;
    let tenant = TenantId::default_tenant();
    let of_job = || vec![Matcher::equal("job", "a")];
    let push = async |ms: i64, value: f64| {
        let mut b = MetricBatchBuilder::new();
        let id = b.series(&Labels::from_pairs([("__name__", "up"), ("job", "a")]), SeriesMeta::default());
        b.sample(id, ms, None, value);
        assert_eq!(f.post(PATH, &[], packed(&encode_v1(&b.finish()))).await.status.as_u16(), 204);
    };
    push(MS, 1.0).await;
    push(MS + 1, 2.0).await;
    f.store.delete_series(&tenant, of_job(), TimeRange::ALL).await.unwrap();
    push(MS + 2, 3.0).await;
    push(MS + 3, 4.0).await;
    push(MS + DAY, 5.0).await;
    // Late, of the day before.
    push(MS + 1, 6.0).await;
    push(MS + DAY + 1, 7.0).await;
    f.store.flush().await.unwrap();
    f.store.compact().await.unwrap();
    let mut values = f.column(Table::MetricSamples, "value").await;
    values.sort();
    assert_eq!(values, ["3", "4", "5", "6", "7"]);
    assert_eq!(f.column(Table::MetricSeries, "labels").await, [r#"{"__name__":"up","job":"a"}"#; 2]);
    // `up` is a counter with the help `h`, told after its samples.
    let told = [0x1a, 9, 0x08, 1, 0x12, 2, b'u', b'p', 0x22, 1, b'h'];
    assert_eq!(f.post(PATH, &[], packed(&told)).await.status.as_u16(), 204);
    push(MS + DAY + 2, 8.0).await;
    let found = f.store.series(&tenant, &of_job(), TimeRange::ALL).await.unwrap();
    assert_eq!(
        (found.len(), found[0].metric_type.as_deref(), found[0].help.as_deref()),
        (1, Some("counter"), Some("h"))
    );
}

#[tokio::test]
async fn another_value_at_the_newest_time_is_400_and_the_rest_is_stored_and_counted() {
    type Point<'a> = (&'a str, i64, f64);
    for (headers, encode) in [(&[] as &[(&str, &str)], encode_v1 as fn(&MetricBatch) -> Vec<u8>), (&[V2], encode_v2)]
    {
        let f = Fixture::new().await;
        let requests: [(&[Point<'_>], u64, u64); 8] = [
            (&[("a", 0, 1.0), ("b", 0, 1.0)], 2, 0),
            // All of it again, as after a lost answer.
            (&[("a", 0, 1.0), ("b", 0, 1.0)], 2, 0),
            (&[("a", 0, 2.0), ("b", 1, 3.0), ("new", 0, 1.0)], 2, 1),
            (&[("a", 0, 2.0), ("b", 1, 4.0)], 0, 2),
            // In one request, of known and of new series, side by side and not.
            (&[("a", 5, 1.0), ("a", 5, 2.0), ("b", 5, 1.0)], 2, 1),
            (&[("c", 5, 1.0), ("d", 5, 1.0), ("c", 5, 2.0), ("d", 5, 1.0)], 3, 1),
            (&[("a", 5, f64::NAN)], 0, 1),
            // Behind the newest the later counts.
            (&[("b", 1, 4.0)], 1, 0),
        ];
        for (points, stored, refused) in requests {
            let mut b = MetricBatchBuilder::new();
            for (name, ms, value) in points {
                let labels = Labels::from_pairs([("__name__", *name), ("job", "j")]);
                let id = b.series(&labels, SeriesMeta::default());
                b.sample(id, MS + ms, None, *value);
            }
            let answer = f.post(PATH, headers, packed(&encode(&b.finish()))).await;
            let status = if refused > 0 { 400 } else { 204 };
            assert_eq!(answer.status.as_u16(), status, "{points:?}: {}", answer.text());
            if refused > 0 {
                let text = answer.text();
                assert!(text.starts_with("duplicate sample for timestamp 17000000000"), "{points:?}: {text}");
                assert!(text.contains("series {__name__=") && text.contains("job=\"j\""), "{points:?}: {text}");
            }
            if !headers.is_empty() {
                assert_eq!(written(&answer), [stored.to_string(), "0".into(), "0".into()], "{points:?}");
            }
        }
        // Of one time, the last one is what queries see.
        let [series, times, values] = f.columns(Table::MetricSamples, ["series_id", "ts_ms", "value"]).await;
        let seen: BTreeMap<(String, String), String> = series.into_iter().zip(times).zip(values).collect();
        let mut values: Vec<String> = seen.into_values().collect();
        values.sort();
        // a: 1 and 1; b: 1, 4 and 1; new, c and d: 1.
        assert_eq!(values, ["1", "1", "1", "1", "1", "1", "1", "4"]);
        let mut text = String::new();
        f.config.metrics.render(&mut text);
        for line in [
            "collector_push_records_rejected_total{protocol=\"remote_write\",reason=\"duplicate_timestamp\"} 6",
            "collector_push_records_accepted_total{protocol=\"remote_write\"} 12",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        // Histograms too.
        let histogram = |counts: &[f64]| {
            let mut b = MetricBatchBuilder::new();
            let id = b.series(&Labels::from_pairs([("__name__", "h")]), SeriesMeta::default());
            let row = HistogramRow {
                count: counts.iter().sum(),
                positive_counts: counts.to_vec(),
                ..HistogramRow::default()
            };
            b.histogram(id, MS, None, &row);
            packed(&encode(&b.finish()))
        };
        for (counts, status) in [([1.0, 2.0], 204), ([1.0, 2.0], 204), ([2.0, 1.0], 400)] {
            let answer = f.post(PATH, headers, histogram(&counts)).await;
            assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
        }
    }
}

/// Seconds before or after the start of a test, and values; how many are stored, and what of the others is told.
type Written<'a> = (&'a [(i64, f64)], usize, &'a str);

#[tokio::test]
async fn samples_of_any_order_within_the_window_are_taken_and_behind_the_newest_the_later_of_two_counts() {
    for (headers, encode) in [(&[] as &[(&str, &str)], encode_v1 as fn(&MetricBatch) -> Vec<u8>), (&[V2], encode_v2)]
    {
        let mut config = PushConfig::default();
        config.limits.past_max = Some(Duration::from_secs(3600));
        let f = Fixture::with(config).await;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
        let requests: [Written<'_>; 6] = [
            (&[(0, 1.0), (-60, 2.0)], 2, ""),
            // Half an hour behind what there is.
            (&[(-1800, 3.0)], 1, ""),
            (&[(-60, 2.0), (0, 1.0)], 2, ""),
            // Another value at a time that has one, in another request and in one.
            (&[(-60, 4.0)], 1, ""),
            (&[(-1700, 5.0), (-1700, 6.0)], 2, ""),
            (&[(-7200, 7.0), (-1600, 8.0), (1200, 9.0)], 1, "is older than is accepted"),
        ];
        for (samples, stored, told) in requests {
            let mut b = MetricBatchBuilder::new();
            let id = b.series(&Labels::from_pairs([("__name__", "m"), ("job", "a")]), SeriesMeta::default());
            samples.iter().for_each(|(s, v)| b.sample(id, now + s * 1000, None, *v));
            let answer = f.post(PATH, headers, packed(&encode(&b.finish()))).await;
            let status = if told.is_empty() { 204 } else { 400 };
            assert_eq!(answer.status.as_u16(), status, "{samples:?}: {}", answer.text());
            assert!(answer.text().contains(told), "{samples:?}: {}", answer.text());
            if !headers.is_empty() {
                assert_eq!(written(&answer), [stored.to_string(), "0".into(), "0".into()], "{samples:?}");
            }
        }
        let wanted = [(-1800, "3"), (-1700, "6"), (-1600, "8"), (-60, "4"), (0, "1")];
        let wanted: Vec<(i64, String)> = wanted.iter().map(|(s, v)| (*s, (*v).to_owned())).collect();
        for rest in ["head", "parts", "merged"] {
            match rest {
                "parts" => f.store.flush().await.unwrap(),
                "merged" => f.store.compact().await.unwrap(),
                _ => {}
            }
            let [times, values] = f.columns(Table::MetricSamples, ["ts_ms", "value"]).await;
            // Of one time, the last one is what queries see.
            let seen: BTreeMap<i64, String> =
                times.iter().map(|t| (t.parse::<i64>().unwrap() - now) / 1000).zip(values).collect();
            assert_eq!(seen.into_iter().collect::<Vec<_>>(), wanted, "{rest}");
        }
        let mut text = String::new();
        f.config.metrics.render(&mut text);
        for reason in ["too_old", "too_far_ahead"] {
            let line =
                format!("collector_push_records_rejected_total{{protocol=\"remote_write\",reason=\"{reason}\"}} 1");
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }
}
