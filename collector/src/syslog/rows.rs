//! Messages to rows, and rows to the pipeline.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pipeline::{
    Batch, Data, DeliveryError, SourceContext,
    codec::{
        Decoded, stream,
        syslog::{Message, UtcOffset, parse},
    },
};
use storage::model::{Labels, LogBatchBuilder, LogRow, TenantId, json};
use tokio::{sync::mpsc, time::Instant};
use xxhash_rust::xxh3::xxh3_64;

use super::{Raw, counters::Counters};
use crate::tenants::Tenants;

const BATCH_ROWS: usize = 4096;
const BATCH_BYTES: usize = 1 << 20;
/// How long a row waits for its batch to fill.
const LINGER: Duration = Duration::from_millis(200);
/// Messages parsed before other tasks get their turn.
const AT_ONCE: usize = 256;
/// A message further ahead has a wrong clock: the time of arrival is taken.
const AHEAD_MAX_NS: i64 = 600_000_000_000;
/// Between attempts to deliver where the sink does not say how long.
const RETRY_AFTER: Duration = Duration::from_millis(500);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// Streams whose labels are kept as text.
const STREAMS_MAX: usize = 4096;

/// Labels of one host and program.
struct Stream {
    labels: String,
    service_name: Option<String>,
}

/// The batch being filled.
pub(super) struct Rows {
    labels: Labels,
    tenant: TenantId,
    offset: UtcOffset,
    counters: Arc<Counters>,
    tenants: Arc<Tenants>,
    node: String,
    streams: HashMap<String, Stream>,
    key: String,
    builder: LogBatchBuilder,
    rows: usize,
    bytes: usize,
    since: Option<Instant>,
    /// Differs between processes and sources, so that batch ids never meet.
    nonce: u64,
    batches: u64,
}

impl Rows {
    pub fn new(
        labels: Labels,
        tenant: TenantId,
        offset: UtcOffset,
        counters: Arc<Counters>,
        tenants: Arc<Tenants>,
    ) -> Self {
        Rows {
            labels,
            tenant,
            offset,
            counters,
            tenants,
            node: crate::node_name(),
            streams: HashMap::new(),
            key: String::new(),
            builder: LogBatchBuilder::new(),
            rows: 0,
            bytes: 0,
            since: None,
            nonce: 0,
            batches: 0,
        }
    }

    /// Until the queue has ended, or the pipeline takes no more.
    pub async fn deliver_all(mut self, mut messages: mpsc::Receiver<Raw>, ctx: &SourceContext) {
        self.nonce = xxh3_64(format!("{} {}", ctx.name, now_ns()).as_bytes());
        let mut taken = Vec::with_capacity(AT_ONCE);
        loop {
            let due = self.since.map(|since| since + LINGER);
            let n = tokio::select! {
                n = messages.recv_many(&mut taken, AT_ONCE) => Some(n),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
            };
            let now = now_ns();
            for raw in taken.drain(..) {
                self.add(&raw, now);
            }
            let full = self.rows >= BATCH_ROWS || self.bytes >= BATCH_BYTES;
            let waited = self.since.is_some_and(|since| since.elapsed() >= LINGER);
            if (full || waited || n == Some(0)) && !self.deliver(ctx).await {
                break;
            }
            if n == Some(0) {
                return;
            }
        }
        messages.close();
        while messages.try_recv().is_ok() {
            Counters::add(&self.counters.lost, 1);
        }
    }

    fn add(&mut self, raw: &Raw, now: i64) {
        let text = match std::str::from_utf8(&raw.frame.bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => {
                Counters::add(&self.counters.invalid_utf8, 1);
                String::from_utf8_lossy(&raw.frame.bytes)
            }
        };
        let message = parse(&text, now, self.offset);
        Counters::add(&self.counters.unparsed, usize::from(message.bare));
        Counters::add(&self.counters.cut, usize::from(raw.frame.cut));
        let ts = match message.ts {
            Some(ts) if ts > now.saturating_add(AHEAD_MAX_NS) => {
                Counters::add(&self.counters.ahead, 1);
                now
            }
            told => told.unwrap_or(now),
        };
        let host = message.host.or(raw.peer.as_deref());
        if self.streams.len() >= STREAMS_MAX {
            self.streams.clear();
        }
        self.key.clear();
        for part in [host, message.app] {
            self.key.push_str(part.unwrap_or_default());
            self.key.push('\n');
        }
        if !self.streams.contains_key(&self.key) {
            let mut labels = self.labels.clone();
            labels.set("host", host.unwrap_or(&self.node));
            if let Some(app) = message.app {
                labels.set("app", app);
            }
            stream::discover_service_name(&mut labels);
            let service_name = labels.get(stream::SERVICE_NAME).map(str::to_owned);
            self.streams.insert(self.key.clone(), Stream { labels: labels.to_json(), service_name });
        }
        let stream = &self.streams[&self.key];
        let (level, number) = message.level();
        let attrs = attributes(&message, raw.peer.as_deref());
        self.builder.push(&LogRow {
            ts,
            observed_ts: Some(now),
            stream_labels: &stream.labels,
            service_name: stream.service_name.as_deref(),
            severity_number: Some(number),
            severity_text: Some(level),
            body: message.body,
            attrs: Some(&attrs),
            ..LogRow::default()
        });
        self.rows += 1;
        self.bytes += text.len() + attrs.len();
        self.since.get_or_insert_with(Instant::now);
    }

    /// Delivers what is there, for as long as it takes. `false`: the pipeline is stopping.
    async fn deliver(&mut self, ctx: &SourceContext) -> bool {
        if self.rows == 0 {
            return true;
        }
        self.batches += 1;
        let rows = std::mem::take(&mut self.rows);
        (self.bytes, self.since) = (0, None);
        let all = Data::Logs(self.builder.finish());
        let mut decoded = Decoded { batches: vec![all], accepted: rows as u64, ..Decoded::default() };
        while let Err(limited) = self.tenants.admit(&self.tenant, &mut decoded) {
            tracing::debug!(source = ctx.name, reason = limited.message, "syslog waits");
            if !self.pause(limited.retry_after, rows, ctx).await {
                return false;
            }
        }
        let Some(data) = decoded.batches.pop() else {
            Counters::add(&self.counters.limited, rows);
            return true;
        };
        Counters::add(&self.counters.limited, rows - data.rows());
        let rows = data.rows();
        let mut batch = Batch::new(self.tenant.clone(), data);
        // Handed over again after an unclear failure it is stored once.
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.nonce.to_le_bytes());
        id[8..].copy_from_slice(&self.batches.to_le_bytes());
        batch.batch_id = Some(id);
        loop {
            let fate = match ctx.out.send(batch.clone()).await {
                Ok(delivery) => delivery.wait().await,
                Err(e) => Err(e),
            };
            let wait = match fate {
                Ok(()) => {
                    Counters::add(&self.counters.delivered, rows);
                    return true;
                }
                Err(DeliveryError::Rejected(reason)) => {
                    Counters::add(&self.counters.lost, rows);
                    tracing::error!(source = ctx.name, rows, reason, "batch refused for good; its rows are lost");
                    return true;
                }
                Err(DeliveryError::Unavailable { retry_after, .. }) => {
                    retry_after.clamp(RETRY_AFTER, RETRY_AFTER_MAX)
                }
                Err(DeliveryError::Stopping) => RETRY_AFTER,
            };
            if !self.pause(wait, rows, ctx).await {
                return false;
            }
        }
    }

    /// `false`: the pipeline is stopping, and so many rows are lost.
    async fn pause(&self, wait: Duration, rows: usize, ctx: &SourceContext) -> bool {
        tokio::select! {
            () = ctx.stop.cancelled() => {
                Counters::add(&self.counters.lost, rows);
                tracing::warn!(source = ctx.name, rows, "stopped before the rows could be delivered");
                false
            }
            () = tokio::time::sleep(wait) => true,
        }
    }
}

/// Canonical JSON.
fn attributes(message: &Message<'_>, peer: Option<&str>) -> String {
    let own = [
        ("facility", Some(message.facility())),
        ("msgid", message.message_id),
        ("pid", message.pid),
        ("source_ip", peer),
    ];
    let own = own.into_iter().filter_map(|(k, v)| Some((k, v?)));
    let mut all: Vec<(&str, &str)> = own.chain(message.data.iter().map(|(k, v)| (k.as_str(), &**v))).collect();
    all.sort_by(|a, b| a.0.cmp(b.0));
    let mut out = String::from("{");
    for (i, (name, value)) in all.iter().enumerate() {
        // Of equal names the last counts.
        if all.get(i + 1).is_some_and(|next| next.0 == *name) {
            continue;
        }
        if out.len() > 1 {
            out.push(',');
        }
        json::write_string(&mut out, name);
        out.push(':');
        json::write_string(&mut out, value);
    }
    out.push('}');
    out
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
