//! The batch being filled: rows of any number of files, and how far each of them is done with once the batch is kept.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use pipeline::{Batch, Data, component::SourcePosition};
use storage::model::{Labels, LogBatchBuilder, LogRow, TenantId};

use super::{
    counters::Counters,
    discover::Target,
    formats::Stream,
    reader::{Oddity, Rows},
};

/// A file's labels, rendered once.
pub(super) struct RowLabels {
    plain: String,
    stdout: String,
    stderr: String,
    attrs: Option<String>,
    service_name: Option<String>,
}

impl RowLabels {
    pub(super) fn of(target: &Target) -> Self {
        let with = |stream: &str| {
            let mut labels: Labels = target.labels.clone();
            labels.set("stream", stream);
            labels.to_json()
        };
        RowLabels {
            plain: target.labels.to_json(),
            stdout: with("stdout"),
            stderr: with("stderr"),
            attrs: target.attrs.clone(),
            service_name: target.labels.get("service_name").map(str::to_owned),
        }
    }

    fn stream(&self, stream: Option<Stream>) -> &str {
        match stream {
            None => &self.plain,
            Some(Stream::Stdout) => &self.stdout,
            Some(Stream::Stderr) => &self.stderr,
        }
    }
}

pub(super) struct Filling {
    tenant: TenantId,
    builder: LogBatchBuilder,
    rows: usize,
    body_bytes: usize,
    positions: BTreeMap<Arc<str>, u64>,
    since: Option<Instant>,
    /// Differs between processes, so that batch ids never meet those of an earlier run.
    nonce: u64,
    batches: u64,
}

impl Filling {
    pub(super) fn new(tenant: TenantId, nonce: u64) -> Self {
        Filling {
            tenant,
            builder: LogBatchBuilder::new(),
            rows: 0,
            body_bytes: 0,
            positions: BTreeMap::new(),
            since: None,
            nonce,
            batches: 0,
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// When the oldest row was added.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// All rows of the file `key` before `position` are in this batch or an earlier one.
    pub(super) fn reached(&mut self, key: &Arc<str>, position: u64, now: Instant) {
        self.positions.insert(key.clone(), position);
        self.since.get_or_insert(now);
    }

    /// The batch, with an id so that handing it over again after an unclear failure stores it once.
    pub(super) fn finish(&mut self) -> Option<Batch> {
        if self.rows == 0 {
            return None;
        }
        self.batches += 1;
        (self.rows, self.body_bytes, self.since) = (0, 0, None);
        let positions = std::mem::take(&mut self.positions);
        let sources =
            positions.into_iter().map(|(key, position)| SourcePosition { key: key.to_string(), position }).collect();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.nonce.to_le_bytes());
        id[8..].copy_from_slice(&self.batches.to_le_bytes());
        let data = Data::Logs(self.builder.finish());
        Some(Batch { sources, batch_id: Some(id), ..Batch::new(self.tenant.clone(), data) })
    }
}

/// Rows of one file on their way into the batch.
pub(super) struct FileRows<'a> {
    pub filling: &'a mut Filling,
    pub labels: &'a RowLabels,
    pub counters: &'a Counters,
    /// Wall clock, nanoseconds.
    pub now_ns: i64,
    pub rows_max: usize,
}

impl Rows for FileRows<'_> {
    fn row(&mut self, ts: Option<i64>, stream: Option<Stream>, body: &[u8]) {
        let lossy;
        let body = match std::str::from_utf8(body) {
            Ok(text) => text,
            Err(_) => {
                Counters::add(&self.counters.invalid_utf8, 1);
                lossy = String::from_utf8_lossy(body);
                &lossy
            }
        };
        self.filling.builder.push(&LogRow {
            ts: ts.unwrap_or(self.now_ns),
            observed_ts: Some(self.now_ns),
            stream_labels: self.labels.stream(stream),
            service_name: self.labels.service_name.as_deref(),
            attrs: self.labels.attrs.as_deref(),
            body,
            ..LogRow::default()
        });
        self.filling.rows += 1;
        self.filling.body_bytes += body.len();
        Counters::add(&self.counters.lines, 1);
    }

    fn odd(&mut self, what: Oddity) {
        let counter = match what {
            Oddity::Split => &self.counters.split,
            Oddity::Incomplete => &self.counters.incomplete,
            Oddity::Malformed => &self.counters.malformed,
        };
        Counters::add(counter, 1);
    }

    fn room(&self) -> bool {
        self.filling.rows < self.rows_max
    }
}
