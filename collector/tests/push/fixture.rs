//! A store behind the push routes, without network.

use std::time::Duration;

use arrow::{
    array::{Array as _, ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, Int32Type},
};
use axum::{Router, body::Body};
use collector::{PushConfig, push_and_grpc_routers};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use pipeline::{Data, DeliveryError, LABELS_WANTED, Output};
use storage::{
    Append, AppendError, ScanRequest, Store, StoreConfig,
    model::{Table, TenantId, TimeRange},
};
use tokio::task::JoinSet;
use tower::ServiceExt as _;

pub struct Fixture {
    pub store: Store,
    pub router: Router,
    pub grpc: Router,
    pub out: Output,
    pub config: PushConfig,
    _dir: tempfile::TempDir,
    _sink: JoinSet<()>,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

impl Fixture {
    pub async fn new() -> Self {
        Self::with(PushConfig::default()).await
    }

    pub async fn with(config: PushConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig::new(dir.path())).await.unwrap();
        let (out, mut queue) = Output::bounded(16, 64 << 20);
        let out = out.straight_to_store();
        let mut sink = JoinSet::new();
        let target = store.clone();
        sink.spawn(async move {
            while let Some(envelope) = queue.recv().await {
                let rows = match envelope.batch.data {
                    Data::Logs(b) => vec![(Table::Logs, b)],
                    Data::Spans(b) => vec![(Table::Spans, b)],
                    Data::Metrics(m) => vec![
                        (Table::MetricSeries, m.series),
                        (Table::MetricSamples, m.samples),
                        (Table::MetricHistograms, m.histograms),
                        (Table::MetricExemplars, m.exemplars),
                    ],
                };
                let append = Append {
                    tenant: envelope.batch.tenant,
                    rows,
                    sources: envelope.batch.sources,
                    batch_id: envelope.batch.batch_id,
                };
                let fate = target.append_with(append, envelope.batch.repeats).await;
                if let Ok(appended) = &fate
                    && let Some(refused) = &appended.refused
                {
                    envelope.batch.refusals.tell(refused);
                }
                let fate = fate.map(|_| ()).map_err(|e| DeliveryError::Unavailable {
                    reason: e.to_string(),
                    retry_after: match e {
                        AppendError::UnknownSeries { .. } => LABELS_WANTED,
                        _ => Duration::from_secs(1),
                    },
                });
                let _ = envelope.ack.send(fate);
            }
        });
        let (router, grpc) = push_and_grpc_routers(config.clone(), out.clone());
        Fixture { store, router, grpc, out, config, _dir: dir, _sink: sink }
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        post(&self.router, path, headers, body).await
    }

    /// All rows of a table, in the order of their commits.
    pub async fn rows(&self, table: Table) -> Vec<RecordBatch> {
        self.rows_of("default", table).await
    }

    pub async fn rows_of(&self, tenant: &str, table: Table) -> Vec<RecordBatch> {
        let request = ScanRequest::new(TenantId::parse(tenant).unwrap(), table, TimeRange::ALL);
        self.store.scan(request).await.unwrap().collect().await.unwrap()
    }

    /// A column of all rows as text; null is `-`.
    pub async fn column(&self, table: Table, name: &str) -> Vec<String> {
        let [column] = self.columns(table, [name]).await;
        column
    }

    /// Columns of one scan: their rows belong together, which those of two need not.
    pub async fn columns<const N: usize>(&self, table: Table, names: [&str; N]) -> [Vec<String>; N] {
        let mut out = [const { Vec::new() }; N];
        for b in self.rows(table).await {
            for (column, name) in out.iter_mut().zip(names) {
                let c = b.column_by_name(name).unwrap_or_else(|| panic!("column {name}"));
                column.extend((0..b.num_rows()).map(|i| cell(c, i)));
            }
        }
        out
    }
}

pub async fn post(router: &Router, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    let mut request = Request::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes().to_vec();
    Answer { status: parts.status, headers: parts.headers, body }
}

fn cell(c: &ArrayRef, i: usize) -> String {
    if c.is_null(i) {
        return "-".to_owned();
    }
    match c.data_type() {
        DataType::Dictionary(..) => {
            let d = c.as_dictionary::<Int32Type>();
            cell(d.values(), d.keys().value(i) as usize)
        }
        DataType::Binary => hex::encode(c.as_binary::<i32>().value(i)),
        DataType::Timestamp(..) => c.as_primitive::<arrow::datatypes::TimestampNanosecondType>().value(i).to_string(),
        DataType::List(_) => {
            let items = c.as_list::<i32>().value(i);
            let items: Vec<String> = (0..items.len()).map(|j| cell(&items, j)).collect();
            format!("[{}]", items.join(","))
        }
        DataType::Utf8 => c.as_string::<i32>().value(i).to_owned(),
        DataType::Int32 => c.as_primitive::<Int32Type>().value(i).to_string(),
        DataType::Int64 => c.as_primitive::<arrow::datatypes::Int64Type>().value(i).to_string(),
        DataType::Float64 => c.as_primitive::<arrow::datatypes::Float64Type>().value(i).to_string(),
        DataType::Boolean => c.as_boolean().value(i).to_string(),
        other => panic!("a cell of type {other}"),
    }
}
