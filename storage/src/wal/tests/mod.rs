//! Tests of the log as a whole; those of planning are beside it in `replay.rs`.

mod basic;
mod codec;
mod model;

use std::{path::Path, sync::Arc};

use arrow::array::RecordBatch;

use super::{Carry, Entry, Recovered, ReplayedRecord, Section, Wal, WalError, WalOptions, encode_batch, replay};
use crate::{
    Durability,
    model::{
        Table, TenantId,
        batch::{LogBatchBuilder, LogRow},
    },
    vfs::{Vfs, sim::SimVfs},
};

pub(super) const DIR: &str = "/wal";

pub(super) fn options() -> WalOptions {
    WalOptions { segment_bytes: 64 << 10, ..WalOptions::new(Durability::Group, "/quarantine") }
}

pub(super) fn no_carry() -> Carry {
    Box::new(Vec::new)
}

/// Replays into a vector.
pub(super) fn recover(vfs: &SimVfs, options: WalOptions) -> Result<(Vec<ReplayedRecord>, Recovered), WalError> {
    let mut out = Vec::new();
    let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    let recovered = replay(vfs, Path::new(DIR), options, &mut |r| out.push(r))?;
    Ok((out, recovered))
}

pub(super) fn open(vfs: &SimVfs) -> (Vec<ReplayedRecord>, Wal) {
    let (records, recovered) = recover(vfs, options()).unwrap();
    (records, recovered.start(1, no_carry()).unwrap())
}

pub(super) fn logs(rows: usize, first: i64, body: &str) -> RecordBatch {
    let mut b = LogBatchBuilder::default();
    for i in 0..rows {
        b.push(&LogRow {
            ts: first + i as i64,
            stream_labels: r#"{"app":"checkout","node":"n1"}"#,
            service_name: Some("checkout"),
            severity_number: Some(9),
            severity_text: Some("INFO"),
            body: &format!("{body} {i}"),
            resource_attrs: Some(r#"{"service.name":"checkout","k8s.pod.name":"checkout-5d9"}"#),
            attrs: if i % 3 == 0 { Some(r#"{"order":"17"}"#) } else { None },
            ..LogRow::default()
        });
    }
    b.finish()
}

pub(super) fn entry(sections: Vec<Section>) -> Entry {
    Entry { tenant: TenantId::default_tenant(), sections, publish: Box::new(|_| {}) }
}

pub(super) fn batch(b: &RecordBatch) -> Section {
    Section::Batch(encode_batch(Table::Logs, b).unwrap())
}

/// Runs a future of the log, which needs nothing of a runtime but to be polled.
pub(super) fn wait<T>(f: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(f)
}
