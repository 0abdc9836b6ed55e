//! What `stats` tells of a query: samples that each step looks at, counted by hand.

use serde_json::{Value, json};
use storage::model::{
    Labels, MetricBatchBuilder,
    batch::{HistogramRow, SeriesMeta},
};

use super::{api, api_over, append, get};

#[tokio::test]
async fn statistics_come_last_and_for_unknown_words_with_a_warning() {
    let (_dir, api) = api().await;
    let (_, body) = get(&api, "/api/v1/query?query=requests_total&time=600&stats=true").await;
    assert!(
        body["data"]["stats"]["timings"]["execTotalTime"].is_number() && body.get("warnings").is_none(),
        "{body}"
    );
    assert!(body["data"]["stats"]["samples"]["totalQueryableSamples"].as_u64() > Some(0), "{body}");
    let (_, body) = get(&api, "/api/v1/query?query=requests_total&time=600&stats=yes").await;
    assert!(body["data"]["stats"].is_object(), "{body}");
    assert!(body["warnings"][0].as_str().unwrap().contains("deprecated"), "{body}");
    assert!(get(&api, "/api/v1/query?query=1&time=600").await.1["data"].get("stats").is_none());
}

/// Samples by the minute of two series; windows of five minutes and steps of one, two series of five samples each.
#[tokio::test]
async fn statistics_of_steps_count_what_each_step_looks_at_and_what_is_new_there() {
    let (_dir, api) = api().await;
    let ask = async |path: String| {
        let (status, body) = get(&api, &path).await;
        assert!(status == 200 && body.get("warnings").is_none(), "{path}: {body}");
        let stats = body["data"]["stats"].clone();
        assert_eq!(body["data"].as_object().unwrap().keys().count(), 3, "{body}");
        let timings = [
            "evalTotalTime",
            "resultSortTime",
            "queryPreparationTime",
            "innerEvalTime",
            "execQueueTime",
            "execTotalTime",
        ];
        assert!(timings.iter().all(|t| stats["timings"][t].is_number()), "{stats}");
        assert!(stats["samples"]["peakSamples"].is_number(), "{stats}");
        stats["samples"].clone()
    };
    let range = async |query: &str, step: i64| {
        ask(format!("/api/v1/query_range?query={query}&start=300&end=480&step={step}&stats=all")).await
    };
    let steps = |values: &[u64], step: i64| -> Value {
        values.iter().zip(0..).map(|(n, i)| json!([300 + i * step, n])).collect()
    };
    for (query, samples, read) in [
        ("sum(rate(requests_total%5B5m%5D))", [10, 10, 10, 10], [10, 2, 2, 2]),
        ("requests_total", [2, 2, 2, 2], [2, 2, 2, 2]),
        (
            "requests_total%7Binstance=%22a%22%7D%2B%20on()%20group_left%20sum(requests_total)",
            [3, 3, 3, 3],
            [3, 3, 3, 3],
        ),
        ("increase(requests_total%5B2m%5D%20offset%20-2m)", [4, 4, 4, 4], [4, 2, 2, 2]),
        // Windows shorter than a step share nothing.
        ("count_over_time(requests_total%5B30s%5D)", [2, 2, 2, 2], [2, 2, 2, 2]),
        // The same at every step, read once.
        ("requests_total%20%40%20120", [2, 2, 2, 2], [2, 0, 0, 0]),
        ("sum_over_time(requests_total%5B3m%5D%20%40%20end())", [6, 6, 6, 6], [6, 0, 0, 0]),
        // The values of a subquery, not those below it.
        ("max_over_time(sum(rate(requests_total%5B5m%5D))%5B4m:2m%5D)", [2, 2, 2, 2], [2, 1, 0, 1]),
        ("quantile_over_time(0.5%2C%20requests_total%5B2m%5D)", [4, 4, 4, 4], [4, 2, 2, 2]),
        ("absent_over_time(requests_total%5B2m%5D%20offset%201m)", [4, 4, 4, 4], [4, 2, 2, 2]),
        ("timestamp(requests_total)%20and%20requests_total%7Binstance%3D%22b%22%7D", [3, 3, 3, 3], [3, 3, 3, 3]),
        ("increase(requests_total%5B5m%5D%20%40%20start())", [10, 10, 10, 10], [10, 0, 0, 0]),
        ("topk(1%2C%20requests_total)", [2, 2, 2, 2], [2, 2, 2, 2]),
        ("vector(1)", [0, 0, 0, 0], [0, 0, 0, 0]),
        ("none", [0, 0, 0, 0], [0, 0, 0, 0]),
    ] {
        let stats = range(query, 60).await;
        assert_eq!(stats["totalQueryableSamplesPerStep"], steps(&samples, 60), "{query}");
        assert_eq!(stats["samplesReadPerStep"], steps(&read, 60), "{query}");
        assert_eq!(stats["totalQueryableSamples"], samples.iter().sum::<u64>(), "{query}");
        assert_eq!(stats["samplesRead"], read.iter().sum::<u64>(), "{query}");
    }
    let stats = ask("/api/v1/query?query=rate(requests_total%5B5m%5D)&time=600.5&stats=all".into()).await;
    assert_eq!(stats["totalQueryableSamplesPerStep"], json!([[600.5, 10]]));
    assert_eq!((&stats["totalQueryableSamples"], &stats["samplesReadPerStep"]), (&json!(10), &json!([[600.5, 10]])));
    // Windows of three minutes at 480 and 600 s, the second of which has two samples that the first has not.
    let below = "max_over_time(requests_total%7Binstance=%22a%22%7D%5B3m%5D)%5B4m:2m%5D";
    for (query, samples, read) in [
        (below, 6, 5),
        ("requests_total%5B3m%5D%20offset%201m", 6, 6),
        // Four values of each series.
        ("sum_over_time(requests_total%5B4m:1m%5D)", 8, 8),
        ("requests_total%20%40%20120%20offset%201m", 2, 2),
    ] {
        let stats = ask(format!("/api/v1/query?query={query}&time=600&stats=all")).await;
        assert_eq!(stats["totalQueryableSamplesPerStep"], json!([[600, samples]]), "{query}");
        assert_eq!(stats["samplesReadPerStep"], json!([[600, read]]), "{query}");
    }
    // Without the steps the sums are the same.
    let (_, body) =
        get(&api, "/api/v1/query_range?query=rate(requests_total%5B5m%5D)&start=300&end=480&step=60&stats=true")
            .await;
    let stats = &body["data"]["stats"]["samples"];
    assert!(stats.get("totalQueryableSamplesPerStep").is_none(), "{body}");
    assert_eq!((&stats["totalQueryableSamples"], &stats["samplesRead"]), (&json!(40), &json!(16)));
}

/// Four buckets in a row: 176 bytes of what each histogram has, and 40 of its own.
#[tokio::test]
async fn a_histogram_counts_as_the_samples_it_takes_the_room_of() {
    let values = [1.0; 11];
    let (_dir, api, store) = api_over(&[(&[("__name__", "f")], 0, &values)], query::QueryConfig::default()).await;
    let mut b = MetricBatchBuilder::new();
    let id = b.series(&Labels::from_pairs([("__name__", "h")]), SeriesMeta::default());
    for i in 0..=10 {
        let counts: Vec<f64> = [1, 2, 1, 1].map(|n| f64::from(n * (i + 1))).to_vec();
        let row = HistogramRow {
            schema: 1,
            zero_threshold: 0.0,
            zero_count: 0.0,
            count: counts.iter().sum(),
            sum: 20.0,
            min: None,
            max: None,
            positive_offset: 1,
            positive_counts: counts,
            negative_offset: 0,
            negative_counts: Vec::new(),
            custom_bounds: None,
            reset_hint: 0,
            is_float: false,
        };
        b.histogram(id, i64::from(i) * 60_000, None, &row);
    }
    append(&store, b).await;
    for (query, samples, read) in [
        ("h", [13, 13], [13, 13]),
        ("histogram_quantile(0.9%2C%20rate(h%5B5m%5D))", [65, 65], [65, 13]),
        ("sum(%7B__name__%3D~%22f%7Ch%22%7D)%20or%20f", [15, 15], [15, 15]),
        ("timestamp(h)", [1, 1], [1, 1]),
        ("histogram_count(sum_over_time(h%5B3m:1m%5D))", [39, 39], [39, 13]),
        ("h%20%40%20120", [13, 13], [13, 0]),
    ] {
        let path = format!("/api/v1/query_range?query={query}&start=300&end=360&step=60&stats=all");
        let (_, body) = get(&api, &path).await;
        let stats = &body["data"]["stats"]["samples"];
        let steps = |n: [u64; 2]| json!([[300, n[0]], [360, n[1]]]);
        assert_eq!(stats["totalQueryableSamplesPerStep"], steps(samples), "{query}: {body}");
        assert_eq!(stats["samplesReadPerStep"], steps(read), "{query}");
    }
    let (_, body) = get(&api, "/api/v1/query?query=h%5B3m%5D&time=600&stats=true").await;
    assert_eq!(body["data"]["stats"]["samples"]["totalQueryableSamples"], 39);
}
