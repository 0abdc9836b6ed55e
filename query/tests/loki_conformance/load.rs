//! Loki push bodies into a store, by Loki's rules: sorted labels, `service_name`, exact duplicates once.

use std::{collections::HashSet, path::Path};

use serde_json::Value;
use storage::{
    Append, Store, StoreConfig,
    model::{Labels, LogBatchBuilder, LogRow, Table, TenantId},
};

const SERVICE_LABELS: [&str; 14] = [
    "service",
    "app",
    "application",
    "app_name",
    "name",
    "app_kubernetes_io_name",
    "container",
    "container_name",
    "k8s_container_name",
    "component",
    "workload",
    "job",
    "k8s_job_name",
    "service_name",
];

pub async fn store(dir: &Path, data: &Path) -> Store {
    let mut config = StoreConfig::new(dir);
    config.background = false;
    let store = Store::open(config).await.expect("a store in a temporary folder");
    let mut files: Vec<_> =
        std::fs::read_dir(data).expect("push bodies").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    for file in files {
        let body: Value =
            serde_json::from_str(&std::fs::read_to_string(&file).expect("a push body")).expect("a JSON push body");
        let mut rows = LogBatchBuilder::new();
        for stream in body["streams"].as_array().into_iter().flatten() {
            push_stream(&mut rows, stream);
        }
        store
            .append(Append {
                tenant: TenantId::default_tenant(),
                rows: vec![(Table::Logs, rows.finish())],
                sources: Vec::new(),
                batch_id: None,
            })
            .await
            .expect("an append");
    }
    store
}

fn push_stream(rows: &mut LogBatchBuilder, stream: &Value) {
    let pairs = |v: &Value| -> Vec<(String, String)> {
        v.as_object()
            .into_iter()
            .flatten()
            .map(|(n, v)| (n.clone(), v.as_str().map_or_else(|| v.to_string(), str::to_owned)))
            .collect()
    };
    let mut labels = Labels::from_pairs(pairs(&stream["stream"]));
    if labels.get("service_name").is_none() {
        let name = SERVICE_LABELS.iter().find_map(|l| labels.get(l)).unwrap_or("unknown_service").to_owned();
        labels.set("service_name", name);
    }
    let json = labels.to_json();
    let mut seen = HashSet::new();
    for value in stream["values"].as_array().into_iter().flatten() {
        let ts: i64 = value[0].as_str().and_then(|t| t.parse().ok()).expect("a time");
        let line = value[1].as_str().unwrap_or("");
        let attrs = value.get(2).map(|m| Labels::from_pairs(pairs(m)).to_json()).filter(|a| a != "{}");
        if !seen.insert((ts, line, attrs.clone())) {
            continue;
        }
        rows.push(&LogRow {
            ts,
            stream_labels: &json,
            service_name: labels.get("service_name"),
            body: line,
            attrs: attrs.as_deref(),
            ..LogRow::default()
        });
    }
}
