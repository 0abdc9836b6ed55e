//! Every sink over a real network: into our own receivers, and against servers that fail in every way.

#[path = "../push/fixture.rs"]
#[expect(dead_code, reason = "the fixture of the push tests has more than these need")]
mod fixture;

mod faults;
mod own;
mod tls;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::Router;
use collector::listen::{self, ListenLimits};
use pipeline::{
    Batch, Data, DeliveryError, Output, PipelineBuilder, PipelineConfig, Positions, Running,
    metrics::{ComponentKind, ComponentSnapshot},
    sink::store::Destination,
};
use serde_json::{Value, json};
use storage::{
    Append, AppendError, Appended,
    model::{
        Labels, LogBatchBuilder, LogRow, MetricBatchBuilder, SpanBatchBuilder, SpanRow, TenantId, batch::SeriesMeta,
    },
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Where positions of sources go; none come here.
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

/// A pipeline with one sink, `far`.
pub struct Shipper {
    running: Running,
    out: Output,
}

impl Shipper {
    /// `sink`: as in the configuration; inputs, small pauses and ages are added.
    pub fn new(mut sink: Value) -> Shipper {
        let quick = json!({
            "inputs": ["push"],
            "batch": {"age": "20ms"},
            "retry": {"first": "5ms", "most": "50ms", "give_up": "30s"},
        });
        for (key, value) in quick.as_object().unwrap() {
            sink.as_object_mut().unwrap().entry(key).or_insert(value.clone());
        }
        let config: PipelineConfig = serde_json::from_value(json!({ "sinks": { "far": sink } })).unwrap();
        let log = Arc::new(Log::default());
        let signals = config.sinks["far"].signals();
        let running = PipelineBuilder::new(config).input("push", signals).build_on(log.clone(), log).unwrap();
        let out = running.input("push").unwrap();
        Shipper { running, out }
    }

    pub async fn deliver(&self, data: Data) -> Result<(), DeliveryError> {
        self.out.deliver(Batch::new(TenantId::default(), data)).await
    }

    pub fn counted(&self) -> ComponentSnapshot {
        self.running.registry().component(ComponentKind::Sink, "far").unwrap()
    }
}

/// A server on a free port until it is dropped.
pub struct Server {
    pub addr: SocketAddr,
    _task: JoinSet<()>,
}

impl Server {
    pub async fn new(router: Router) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(listen::serve(listener, router, ListenLimits::default(), CancellationToken::new()));
        Server { addr, _task: task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }
}

pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_nanos()).unwrap()
}

pub fn logs(words: &[&str]) -> Data {
    let mut b = LogBatchBuilder::new();
    for (i, word) in words.iter().enumerate() {
        b.push(&LogRow {
            ts: now() - 1_000 + i as i64,
            stream_labels: r#"{"container":"web","service_name":"web"}"#,
            service_name: Some("web"),
            body: word,
            attrs: Some(r#"{"user":"7"}"#),
            ..LogRow::default()
        });
    }
    Data::Logs(b.finish())
}

pub fn spans(names: &[&str]) -> Data {
    let mut b = SpanBatchBuilder::new();
    for (i, name) in names.iter().enumerate() {
        b.push(&SpanRow {
            trace_id: &[1; 16],
            span_id: &[1 + i as u8; 8],
            ts: now(),
            duration_ns: 5,
            name,
            ..SpanRow::default()
        });
    }
    Data::Spans(b.finish())
}

pub fn points(values: &[f64]) -> Data {
    let mut m = MetricBatchBuilder::new();
    let labels = Labels::from_pairs([("__name__", "odd__name"), ("job", "node")]);
    let id = m.series(&labels, SeriesMeta { metric_type: Some("gauge"), ..SeriesMeta::default() });
    for (i, value) in values.iter().enumerate() {
        m.sample(id, now() / 1_000_000 + i as i64, None, *value);
    }
    Data::Metrics(m.finish())
}
