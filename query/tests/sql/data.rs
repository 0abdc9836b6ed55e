//! A store of random rows, in head and parts, and the rows themselves.

use std::time::Duration;

use axum::{Router, body::Body, http::Request};
use http_body_util::BodyExt;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use storage::{
    Append, Store, StoreConfig,
    model::{
        Labels, LogBatchBuilder, MetricBatchBuilder, SpanBatchBuilder, Table, TenantId,
        batch::{LogRow, SeriesMeta, SpanRow},
    },
};
use tower::ServiceExt;

/// 2023-11-14T22:00:00Z.
pub const BASE: i64 = 1_699_999_200_000_000_000;
pub const SECOND: i64 = 1_000_000_000;

#[derive(Clone, Debug)]
pub struct Log {
    pub ts: i64,
    pub app: Option<String>,
    pub service: Option<String>,
    pub severity: Option<i32>,
    pub trace: Option<[u8; 16]>,
    pub body: String,
    pub attrs: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Sample {
    pub ts_ms: i64,
    pub metric: String,
    pub job: String,
    pub value: f64,
}

pub struct World {
    _dir: tempfile::TempDir,
    pub store: Store,
    pub router: Router,
    pub logs: Vec<Log>,
    pub samples: Vec<Sample>,
    /// Trace, name, service, duration.
    pub spans: Vec<([u8; 16], String, String, i64)>,
}

pub fn trace(n: u8) -> [u8; 16] {
    let mut id = [0xa0; 16];
    id[15] = n;
    id
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn pick<'a, T>(rng: &mut StdRng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}

fn random_log(rng: &mut StdRng) -> Log {
    let app = pick(rng, &[Some("shop"), Some("web"), Some("we%b"), Some("db"), None]).map(str::to_owned);
    let service = match &app {
        Some(a) if a == "db" => None,
        other => other.clone().or(Some("unknown".into())),
    };
    let attrs = match rng.random_range(0..4) {
        0 => None,
        1 => Some(format!("{{\"code\":{},\"user\":\"u{}\"}}", rng.random_range(0..5), rng.random_range(0..3))),
        2 => Some(format!("{{\"code\":\"{}\"}}", rng.random_range(0..5))),
        _ => Some("{\"nested\":{\"a\":[1,2]},\"flag\":true}".into()),
    };
    Log {
        ts: BASE + rng.random_range(0..7200 * SECOND),
        app,
        service,
        severity: *pick(rng, &[None, Some(9), Some(13), Some(17)]),
        trace: rng.random_bool(0.2).then(|| trace(rng.random_range(0..6))),
        body: format!(
            "order {} {}",
            rng.random_range(0..30),
            pick(rng, &["placed", "failed: timeout", "paid \"x\""])
        ),
        attrs,
    }
}

async fn append(store: &Store, rows: Vec<(Table, arrow::array::RecordBatch)>) {
    let append = Append { tenant: TenantId::default(), rows, sources: vec![], batch_id: None };
    store.append(append).await.unwrap();
}

impl World {
    /// `rounds` appends; all but the last two are flushed, the first ones merged.
    pub async fn new(seed: u64, rounds: usize, rows: usize) -> World {
        let rng = &mut StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut config = StoreConfig::new(dir.path());
        config.background = false;
        let store = Store::open(config).await.unwrap();
        let router = query::router(query::QueryConfig::default(), store.clone());
        let mut out = World { _dir: dir, store, router, logs: vec![], samples: vec![], spans: vec![] };
        for round in 0..rounds {
            let rows = vec![out.some_logs(rng, rows), out.some_spans(rng, rows / 4)];
            append(&out.store, rows).await;
            let points = out.some_samples(rng, round);
            append(&out.store, points).await;
            if round + 2 < rounds {
                out.store.flush().await.unwrap();
            }
            if round == rounds / 2 {
                out.store.compact().await.unwrap();
            }
        }
        out
    }

    fn some_logs(&mut self, rng: &mut StdRng, rows: usize) -> (Table, arrow::array::RecordBatch) {
        let mut b = LogBatchBuilder::new();
        for _ in 0..rows {
            let log = random_log(rng);
            let mut labels = vec![("env".to_owned(), "test".to_owned())];
            labels.extend(log.app.clone().map(|a| ("app".to_owned(), a)));
            let stream = Labels::from_pairs(labels).to_json();
            b.push(&LogRow {
                ts: log.ts,
                stream_labels: &stream,
                service_name: log.service.as_deref(),
                severity_number: log.severity,
                trace_id: log.trace.as_ref().map(|t| &t[..]),
                body: &log.body,
                attrs: log.attrs.as_deref(),
                ..LogRow::default()
            });
            self.logs.push(log);
        }
        (Table::Logs, b.finish())
    }

    fn some_spans(&mut self, rng: &mut StdRng, rows: usize) -> (Table, arrow::array::RecordBatch) {
        let mut b = SpanBatchBuilder::new();
        for _ in 0..rows {
            let (id, name) = (trace(rng.random_range(0..6)), *pick(rng, &["checkout", "pay"]));
            let (service, duration) = (*pick(rng, &["shop", "bank"]), rng.random_range(0..1_000_000i64));
            let span: [u8; 8] = rng.random();
            b.push(&SpanRow {
                trace_id: &id,
                span_id: &span,
                ts: BASE + rng.random_range(0..7200 * SECOND),
                duration_ns: duration,
                name,
                service_name: Some(service),
                ..SpanRow::default()
            });
            self.spans.push((id, name.into(), service.into(), duration));
        }
        (Table::Spans, b.finish())
    }

    fn some_samples(&mut self, rng: &mut StdRng, round: usize) -> Vec<(Table, arrow::array::RecordBatch)> {
        let mut b = MetricBatchBuilder::new();
        for metric in ["up", "requests_total"] {
            for job in ["api", "web", "a.b"] {
                let labels = Labels::from_pairs([("__name__", metric), ("job", job), ("zone", "z1")]);
                let id = b.series(&labels, SeriesMeta { metric_type: Some("gauge"), ..SeriesMeta::default() });
                for i in 0..20i64 {
                    let ts_ms = BASE / 1_000_000 + (round as i64 * 20 + i) * 15_000;
                    let value = *pick(rng, &[0.0, 1.0, 0.25, -3.5, f64::INFINITY]);
                    b.sample(id, ts_ms, None, value);
                    self.samples.push(Sample { ts_ms, metric: metric.into(), job: job.into(), value });
                }
            }
        }
        let batch = b.finish();
        vec![(Table::MetricSeries, batch.series), (Table::MetricSamples, batch.samples)]
    }

    pub async fn ask(&self, body: Value) -> (u16, Vec<(String, String)>, Vec<u8>) {
        self.ask_as(body, None).await
    }

    pub async fn ask_as(&self, body: Value, tenant: Option<&str>) -> (u16, Vec<(String, String)>, Vec<u8>) {
        let mut request = Request::post("/api/v1/sql").header("content-type", "application/json");
        if let Some(tenant) = tenant {
            request = request.header("x-scope-orgid", tenant);
        }
        let request = request.body(Body::from(body.to_string())).unwrap();
        let response = tokio::time::timeout(Duration::from_secs(60), self.router.clone().oneshot(request))
            .await
            .unwrap()
            .unwrap();
        let status = response.status().as_u16();
        let headers = response.headers().iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned()));
        let headers = headers.collect();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, headers, body.to_vec())
    }

    /// The whole answer.
    pub async fn answer(&self, query: &str) -> Value {
        let (status, _, body) = self.ask(json!({"query": query})).await;
        assert_eq!(status, 200, "{query}: {}", String::from_utf8_lossy(&body));
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["status"], "success", "{query}: {value}");
        value
    }

    pub async fn rows(&self, query: &str) -> Vec<Value> {
        self.answer(query).await["data"]["rows"].as_array().unwrap().clone()
    }

    /// Status and text of an error.
    pub async fn refused(&self, query: &str) -> (u16, Value) {
        let (status, _, body) = self.ask(json!({"query": query})).await;
        let value: Value = serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{query}: {e}"));
        assert_eq!(value["status"], "error", "{query}: {value}");
        (status, value)
    }
}
