//! Late samples, samples sent again, samples with another value at the same time, and deleted ones, as queries see them
//! wherever they rest.

use axum::{Router, body::Body, http::Request};
use query::QueryConfig;
use serde_json::{Value, json};
use storage::{
    Store, StoreConfig,
    model::{
        Labels, MetricBatchBuilder,
        batch::{HistogramRow, SeriesMeta},
    },
};

use super::{append, get, raw};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rest {
    Head,
    /// Parts as they are flushed.
    Parts,
    Merged,
    /// The head, read again from the log.
    Log,
}

const RESTS: [Rest; 4] = [Rest::Head, Rest::Parts, Rest::Merged, Rest::Log];

struct World {
    dir: tempfile::TempDir,
    store: Store,
    api: Router,
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let (store, api) = Self::open(&dir).await;
        World { dir, store, api }
    }

    async fn open(dir: &tempfile::TempDir) -> (Store, Router) {
        let mut config = StoreConfig::new(dir.path());
        config.background = false;
        let store = Store::open(config).await.unwrap();
        (store.clone(), query::router(QueryConfig::default(), store))
    }

    async fn put(&mut self, rest: Rest) {
        match rest {
            Rest::Head => {}
            Rest::Parts => self.store.flush().await.unwrap(),
            Rest::Merged => {
                self.store.flush().await.unwrap();
                self.store.compact().await.unwrap();
            }
            Rest::Log => {
                self.store.abandon().await.unwrap();
                (self.store, self.api) = Self::open(&self.dir).await;
            }
        }
    }

    /// Samples of `m` and, counting as much, histograms of `h`: seconds and values.
    async fn write(&self, job: &str, points: &[(i64, f64)]) {
        let mut b = MetricBatchBuilder::new();
        let m = b.series(&Labels::from_pairs([("__name__", "m"), ("job", job)]), SeriesMeta::default());
        let h = b.series(&Labels::from_pairs([("__name__", "h"), ("job", job)]), SeriesMeta::default());
        for (s, v) in points {
            b.sample(m, s * 1000, None, *v);
            let row = HistogramRow { count: *v, positive_counts: vec![*v], ..HistogramRow::default() };
            b.histogram(h, s * 1000, None, &row);
        }
        append(&self.store, b).await;
    }

    async fn ask(&self, path: &str) -> Value {
        let (status, body) = get(&self.api, &format!("/api/v1/{path}")).await;
        assert_eq!(status, 200, "{path}: {body}");
        body["data"].clone()
    }

    /// Jobs, and the value of each.
    async fn vector(&self, query: &str) -> Vec<(String, String)> {
        let data =
            self.ask(&format!("query?time=1200&query={}", query.replace('+', "%2B").replace(' ', "%20"))).await;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        data["result"].as_array().unwrap().iter().map(|r| (text(&r["metric"]["job"]), text(&r["value"][1]))).collect()
    }

    async fn delete(&self, form: &str) -> String {
        let request = Request::post(format!("/api/v1/admin/tsdb/delete_series?{form}")).header("host", "localhost");
        let (status, headers, body) = raw(&self.api, request.body(Body::empty()).unwrap()).await;
        assert_eq!((status, body.len()), (204, 0));
        headers["x-sightline-deleted"].to_str().unwrap().to_owned()
    }
}

fn all(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(job, value)| ((*job).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn late_and_repeated_samples_are_one_sample_a_time_wherever_they_rest() {
    for (first, second) in RESTS.iter().flat_map(|a| RESTS.iter().map(move |b| (*a, *b))) {
        let what = format!("{first:?}, then {second:?}");
        let mut world = World::new().await;
        let by_minute: Vec<(i64, f64)> = (1..=10).map(|i| (i * 60, i as f64)).collect();
        world.write("a", &by_minute).await;
        world.put(first).await;
        // The same, others at times that have one, and late ones between them, from the newest to the oldest.
        let wanted: Vec<(i64, f64)> = (1..=10)
            .flat_map(|i| [(i * 60 - 30, 50.0 + i as f64), (i * 60, if i > 5 { 100.0 + i as f64 } else { i as f64 })])
            .collect();
        let again: Vec<(i64, f64)> = wanted.iter().rev().copied().collect();
        world.write("a", &again).await;
        world.put(second).await;

        let wanted: Vec<Value> = wanted.iter().map(|(s, v)| json!([s, v.to_string()])).collect();
        let data = world.ask("query?query=m%5B20m%5D&time=1200").await;
        assert_eq!(data["result"][0]["values"], json!(wanted), "{what}");
        let data = world.ask("query_range?query=m&start=30&end=600&step=30").await;
        assert_eq!(data["result"], json!([{"metric": {"__name__": "m", "job": "a"}, "values": wanted}]), "{what}");
        // The same of histograms: by time, by number and as steps.
        let data = world.ask("query_range?query=histogram_count(h)&start=30&end=600&step=30").await;
        assert_eq!(data["result"], json!([{"metric": {"job": "a"}, "values": wanted}]), "{what}");
        for name in ["m", "h"] {
            let count = world.vector(&format!("count_over_time({name}[20m])")).await;
            assert_eq!(count, all(&[("a", "20")]), "{name}, {what}");
        }
        let data = world.ask("query_range?query=sum(count_over_time(m%5B5m%5D))&start=300&end=600&step=300").await;
        assert_eq!(data["result"][0]["values"], json!([[300, "10"], [600, "10"]]), "{what}");
        assert_eq!(world.ask("series?match[]=m").await.as_array().unwrap().len(), 1, "{what}");
    }
}

#[tokio::test]
async fn what_a_delete_by_matchers_took_no_query_sees_wherever_it_rested() {
    for (before, after) in RESTS.iter().flat_map(|a| RESTS.iter().map(move |b| (*a, *b))) {
        let what = format!("deleted from {before:?}, then {after:?}");
        let mut world = World::new().await;
        let points: Vec<(i64, f64)> = (1..=10).map(|i| (i * 60, i as f64)).collect();
        for job in ["a", "b", "c"] {
            world.write(job, &points).await;
        }
        world.put(before).await;
        // Four minutes of two jobs' samples; the end counts. What both selectors name counts once.
        let receipt =
            world.delete("match[]=m%7Bjob=~%22a%7Cb%22%7D&match[]=m%7Bjob=%22a%22%7D&start=120&end=300").await;
        // A file of a few rows may be no smaller without them.
        assert!(!receipt.starts_with("files=0,") && receipt.contains(", rows=8, bytes="), "{what}: {receipt}");
        // Histograms as well as samples, of all times.
        let receipt = world.delete("match[]=%7B__name__=~%22m%7Ch%22,job!~%22a%7Cb%22%7D").await;
        assert!(receipt.contains("rows=20,"), "{what}: {receipt}");
        let receipt = world.delete("match[]=nothing").await;
        assert_eq!(receipt, "files=0, rows=0, bytes=0");

        let seen = async |world: &World, moment: &str| {
            let counts = world.vector("count_over_time(m[20m])").await;
            assert_eq!(counts, all(&[("a", "6"), ("b", "6")]), "{what}, {moment}");
            let counts = world.vector("count_over_time(h[20m])").await;
            assert_eq!(counts, all(&[("a", "10"), ("b", "10")]), "{what}, {moment}");
            let data = world.ask("query_range?query=sum(last_over_time(m%5B1m%5D))&start=60&end=600&step=60").await;
            let times: Vec<i64> =
                data["result"][0]["values"].as_array().unwrap().iter().map(|v| v[0].as_i64().unwrap()).collect();
            assert_eq!(times, [60, 360, 420, 480, 540, 600], "{what}, {moment}");
            assert_eq!(world.ask("label/job/values").await, json!(["a", "b"]), "{what}, {moment}");
        };
        seen(&world, "at once").await;
        world.put(after).await;
        seen(&world, "later").await;
        // What comes afterwards is not taken, not even at the same times.
        world.write("a", &[(120, 7.0)]).await;
        world.write("c", &[(600, 8.0)]).await;
        world.put(after).await;
        assert_eq!(
            world.vector("count_over_time(m[20m])").await,
            all(&[("a", "7"), ("b", "6"), ("c", "1")]),
            "{what}"
        );
    }
}
