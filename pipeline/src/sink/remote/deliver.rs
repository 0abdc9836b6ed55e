//! One group of batches on its way: encoded, sent until the remote decides, parted where parts fare differently.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use rand::Rng as _;
use storage::{SourcePosition, model::TenantId};
use tokio::time::Instant;

use super::{
    Answer, BodyCompression, Encoded, Outgoing, Protocol, Rows, Signal,
    config::Compression,
    retry::{Backoff, RetryConfig},
    rows,
    stats::RemoteStats,
};
use crate::{
    buffer::{Ack, Permit, ack::Fate},
    codec::columns::EncodeError,
    component::{Batch, Data, DeliveryError, Envelope},
    metrics::{Counters, DropReason, Fault},
    sink::{file::RowFile, stdout},
    topology::dead_letters::{DeadLetters, marked},
};

/// Batches up to this many rows are encoded where they are.
const INLINE_ROWS_MAX: usize = 256;
/// What a sender is told when its rows were tried for long enough.
const COME_BACK: Duration = Duration::from_secs(5);
/// Attempts between two lines in the log about the same request.
const LOG_EVERY: u32 = 10;

/// Batches that share a request.
pub(super) struct Group {
    pub ordered: bool,
    pub born: Instant,
    pub rows: usize,
    pub bytes: usize,
    envelopes: Vec<Envelope>,
}

impl Group {
    pub fn new(ordered: bool, first: Envelope) -> Self {
        let mut group = Group { ordered, born: Instant::now(), rows: 0, bytes: 0, envelopes: Vec::new() };
        group.push(first);
        group
    }

    pub fn push(&mut self, envelope: Envelope) {
        self.rows += envelope.batch.data.rows();
        self.bytes += envelope.bytes;
        self.envelopes.push(envelope);
    }
}

/// What became of one batch.
pub(super) struct Item {
    pub ack: Ack,
    pub tenant: TenantId,
    pub sources: Vec<SourcePosition>,
    pub rows: u64,
    /// Rows counted as dropped already.
    pub lost: u64,
    pub fate: Fate,
    /// Held to the ack: the bytes are in flight.
    _permit: Option<Arc<Permit>>,
}

pub(super) struct Finished {
    pub items: Vec<Item>,
    pub bytes: usize,
}

/// Rows of one batch of a group.
#[derive(Clone)]
struct Part {
    /// Index into the group.
    item: usize,
    data: Data,
    batch: [u8; 16],
    numbers: Vec<u32>,
}

/// Parts that make one request.
struct Piece {
    parts: Vec<Part>,
    id: [u8; 16],
    /// Of a request part of which is tried again.
    backoff: Option<Backoff>,
}

/// Where rows go that are refused for good.
pub(super) enum Dead {
    File(RowFile),
    Component(DeadLetters),
}

/// What a sink's deliveries share.
pub(super) struct Shipper {
    pub name: String,
    pub protocol: Arc<dyn Protocol>,
    pub retry: RetryConfig,
    pub dead: Option<Dead>,
    pub counters: Arc<Counters>,
    pub stats: Arc<RemoteStats>,
}

/// How a piece ended.
enum End {
    Answered(Answer, u64),
    Unencodable(EncodeError),
    GaveUp(String),
}

fn child_id(id: [u8; 16], n: u64) -> [u8; 16] {
    let mut text = id.to_vec();
    text.extend_from_slice(b"part");
    text.extend_from_slice(&n.to_le_bytes());
    xxhash_rust::xxh3::xxh3_128(&text).to_be_bytes()
}

impl Shipper {
    /// Ends only when every row has a fate. Does not fail: fates are in the items.
    pub async fn deliver(self: Arc<Self>, group: Group) -> Finished {
        let deadline = (!group.ordered).then(|| Instant::now() + self.retry.give_up);
        let mut items = Vec::with_capacity(group.envelopes.len());
        let mut parts = Vec::new();
        for (item, e) in group.envelopes.into_iter().enumerate() {
            let batch = e.batch.batch_id.unwrap_or_else(|| rand::rng().random());
            let Batch { tenant, data, sources, .. } = e.batch;
            let wanted = self.protocol.signals().has(&data);
            let rows = if wanted { data.rows() as u64 } else { 0 };
            if wanted && !data.is_empty() {
                parts.push(Part { item, data, batch, numbers: Vec::new() });
            }
            items.push(Item { ack: e.ack, tenant, sources, rows, lost: 0, fate: Ok(()), _permit: e.permit });
        }
        let mut work = Vec::new();
        if let [first, rest @ ..] = parts.as_slice() {
            let id = if rest.is_empty() { first.batch } else { rand::rng().random() };
            work.push(Piece { parts, id, backoff: None });
        }
        while let Some(mut piece) = work.pop() {
            let tenant = items[piece.parts[0].item].tenant.clone();
            let end = self.attempt(&mut piece, &tenant, deadline).await;
            self.take_stock(end, piece, &mut items, &mut work, &tenant).await;
        }
        Finished { items, bytes: group.bytes }
    }

    /// What the end of a piece means for its rows.
    async fn take_stock(&self, end: End, piece: Piece, items: &mut [Item], work: &mut Vec<Piece>, tenant: &TenantId) {
        match end {
            End::GaveUp(reason) => {
                for part in &piece.parts {
                    items[part.item].fate =
                        Err(DeliveryError::Unavailable { reason: reason.clone(), retry_after: COME_BACK });
                }
            }
            End::Unencodable(e) => self.refused_or_alone(piece, items, work, tenant, e.to_string()).await,
            End::Answered(answer, unsupported) => {
                self.lose(&piece, items, DropReason::Unsupported, unsupported);
                match answer {
                    Answer::Taken { rejected: 0, .. } => {}
                    Answer::Taken { rejected, message } => {
                        let reason = message.unwrap_or_default();
                        tracing::warn!(sink = %self.name, rows = rejected, %reason, "the remote refused rows of a request it took");
                        self.stats.rejected(rejected);
                        self.lose(&piece, items, DropReason::Rejected, rejected);
                    }
                    Answer::Refused(reason) => self.refused_or_alone(piece, items, work, tenant, reason).await,
                    Answer::PartlyRefused(reason) => self.refuse(&piece.parts, items, tenant, reason).await,
                    Answer::TooLarge(reason) => match part_up(&piece) {
                        Some(smaller) => work.extend(smaller),
                        None => self.refuse(&piece.parts, items, tenant, reason).await,
                    },
                    Answer::Items { refused, again, reason } => {
                        tracing::debug!(sink = %self.name, refused = refused.len(), again = again.len(), %reason, "items refused");
                        self.by_item(piece, items, work, tenant, &refused, &again).await;
                    }
                    // The attempt goes on until one of the others.
                    Answer::Again { reason, .. } | Answer::Denied(reason) => {
                        for part in &piece.parts {
                            items[part.item].fate =
                                Err(DeliveryError::Unavailable { reason: reason.clone(), retry_after: COME_BACK });
                        }
                    }
                }
            }
        }
    }

    /// Rows that are gone though the request was taken; nobody knows of which batch, so the first ones bear it.
    fn lose(&self, piece: &Piece, items: &mut [Item], reason: DropReason, rows: u64) {
        self.counters.dropped(reason, rows);
        let mut left = rows;
        for part in &piece.parts {
            let item = &mut items[part.item];
            let here = left.min((part.data.rows() as u64).min(item.rows - item.lost));
            item.lost += here;
            left -= here;
        }
    }

    /// One bad batch must not take its neighbours with it: each is tried alone before it is refused.
    async fn refused_or_alone(
        &self,
        piece: Piece,
        items: &mut [Item],
        work: &mut Vec<Piece>,
        tenant: &TenantId,
        reason: String,
    ) {
        if piece.parts.len() == 1 {
            return self.refuse(&piece.parts, items, tenant, reason).await;
        }
        let id = piece.id;
        work.extend(piece.parts.into_iter().rev().enumerate().map(|(n, part)| Piece {
            parts: vec![part],
            id: child_id(id, n as u64),
            backoff: None,
        }));
    }

    async fn by_item(
        &self,
        piece: Piece,
        items: &mut [Item],
        work: &mut Vec<Piece>,
        tenant: &TenantId,
        refused: &[(u32, String)],
        again: &[u32],
    ) {
        // Number of the first item of each part.
        let mut first = 0u32;
        let mut later = Vec::new();
        for part in &piece.parts {
            let rows = part.data.rows() as u32;
            let own = |n: &u32| (*n >= first && *n < first + rows).then(|| *n - first);
            let bad: Vec<(u32, &String)> = refused.iter().filter_map(|(n, why)| Some((own(n)?, why))).collect();
            if let Some((_, why)) = bad.first() {
                let numbers: Vec<u32> = bad.iter().map(|(n, _)| *n).collect();
                match self.some_of(part, &numbers) {
                    Ok(part) => self.refuse(&[part], items, tenant, (*why).clone()).await,
                    Err(e) => items[part.item].fate = Err(DeliveryError::Rejected(e.to_string())),
                }
            }
            let numbers: Vec<u32> = again.iter().filter_map(own).collect();
            if !numbers.is_empty() {
                match self.some_of(part, &numbers) {
                    Ok(part) => later.push(part),
                    Err(e) => items[part.item].fate = Err(DeliveryError::Rejected(e.to_string())),
                }
            }
            first += rows;
        }
        if !later.is_empty() {
            let backoff = piece.backoff.or_else(|| Some(Backoff::new(&self.retry)));
            work.push(Piece { parts: later, id: child_id(piece.id, 0), backoff });
        }
    }

    fn some_of(&self, part: &Part, rows: &[u32]) -> Result<Part, EncodeError> {
        let numbers = rows.iter().map(|r| part.numbers.get(*r as usize).copied().unwrap_or(*r)).collect();
        Ok(Part { item: part.item, data: rows::take(&part.data, rows)?, batch: part.batch, numbers })
    }

    /// Refused for good: to the dead letters, where there are any.
    async fn refuse(&self, parts: &[Part], items: &mut [Item], tenant: &TenantId, reason: String) {
        for part in parts {
            let rows = part.data.rows() as u64;
            self.stats.rejected(rows);
            let item = &mut items[part.item];
            let Some(dead) = &self.dead else {
                tracing::error!(sink = %self.name, rows, %reason, "the remote refused rows for good; they are dropped");
                if part.numbers.is_empty() && rows == item.rows {
                    item.fate = Err(DeliveryError::Rejected(format!("sink {}: {reason}", self.name)));
                } else {
                    self.counters.dropped(DropReason::Rejected, rows);
                    item.lost += rows;
                }
                continue;
            };
            let buried = match dead {
                Dead::File(file) => self.write(file, part, tenant, &reason).await,
                Dead::Component(others) => {
                    others.deliver(dead_letter(&self.name, &reason, tenant, part)).await.map_err(|e| match e {
                        DeliveryError::Rejected(e) => {
                            DeliveryError::Rejected(format!("sink {}: {reason}; as a dead letter: {e}", self.name))
                        }
                        other => other,
                    })
                }
            };
            if let Err(e) = buried {
                item.fate = Err(e);
                continue;
            }
            tracing::warn!(sink = %self.name, rows, %reason, "the remote refused rows for good; they are dead letters now");
            self.stats.dead_lettered(rows);
            self.counters.dropped(DropReason::DeadLettered, rows);
            item.lost += rows;
        }
    }

    /// Until the rows are on disk: they are not lost because a disk is full for a while.
    async fn write(&self, file: &RowFile, part: &Part, tenant: &TenantId, reason: &str) -> Fate {
        let text = dead_lines(&self.name, reason, tenant, &part.data)
            .map_err(|e| DeliveryError::Rejected(format!("sink {}: {reason}; {e}", self.name)))?;
        let mut backoff = Backoff::new(&self.retry);
        while let Err(e) = file.append(text.clone()).await {
            self.counters.fault(Fault::Retry, 1);
            tracing::error!(sink = %self.name, error = %e, "cannot write dead letters, trying again");
            tokio::time::sleep(backoff.pause(None)).await;
        }
        Ok(())
    }

    /// Sends until the remote decides, or the deadline passes.
    async fn attempt(&self, piece: &mut Piece, tenant: &TenantId, deadline: Option<Instant>) -> End {
        let (request, unsupported) = match self.encode(piece, tenant).await {
            Ok(encoded) => encoded,
            Err(e) => return End::Unencodable(e),
        };
        if request.body.is_empty() {
            return End::Answered(Answer::Taken { rejected: 0, message: None }, unsupported);
        }
        // A piece that is itself a repetition waits first.
        let mut pause = piece.backoff.as_mut().map(|b| b.pause(None));
        let mut backoff = piece.backoff.clone().unwrap_or_else(|| Backoff::new(&self.retry));
        let mut why = "items were to be sent again".to_owned();
        let mut tries = 0u32;
        loop {
            if let Some(pause) = pause.take() {
                if deadline.is_some_and(|d| Instant::now() + pause > d) {
                    return End::GaveUp(format!("sink {}: {why}", self.name));
                }
                self.stats.retry();
                self.counters.fault(Fault::Retry, 1);
                tokio::time::sleep(pause).await;
            }
            let began = Instant::now();
            let answer = self.protocol.send(&request).await;
            self.stats.attempt(request.body.len(), began.elapsed());
            let (wait, reason) = match answer {
                Answer::Again { after, reason } => (backoff.pause(after), reason),
                Answer::Denied(reason) => (backoff.pause(Some(self.retry.most / 2)), reason),
                decided => return End::Answered(decided, unsupported),
            };
            if tries.is_multiple_of(LOG_EVERY) {
                tracing::warn!(sink = %self.name, %reason, pause = ?wait, "the remote does not take rows, trying again");
            }
            tries += 1;
            why = reason;
            pause = Some(wait);
        }
    }

    async fn encode(&self, piece: &Piece, tenant: &TenantId) -> Result<(Outgoing, u64), EncodeError> {
        let rows: usize = piece.parts.iter().map(|p| p.data.rows()).sum();
        let work = {
            let (protocol, parts, tenant) = (self.protocol.clone(), piece.parts.clone(), tenant.clone());
            move || {
                let mut whole = Encoded::default();
                for p in &parts {
                    let rows = Rows { data: &p.data, tenant: &tenant, batch: p.batch, numbers: &p.numbers };
                    let encoded = protocol.encode(&rows)?;
                    let from = whole.body.len();
                    whole.body.extend_from_slice(&encoded.body);
                    whole.unsupported += encoded.unsupported;
                    whole.ends.extend(encoded.ends.into_iter().map(|e| e + from));
                }
                let items = whole.ends.len();
                compress(whole.body, protocol.compression()).map(|body| (body, whole.unsupported, items))
            }
        };
        let (body, unsupported, items) = if rows <= INLINE_ROWS_MAX {
            work()?
        } else {
            // Awaited at once, so this task owns it.
            tokio::task::spawn_blocking(work).await.map_err(|e| EncodeError(format!("encoding failed: {e}")))??
        };
        let signal = Signal::of(&piece.parts[0].data);
        Ok((Outgoing { signal, tenant: tenant.clone(), body, id: piece.id, items }, unsupported))
    }
}

/// Smaller pieces of the same rows; `None` for what cannot be parted.
fn part_up(piece: &Piece) -> Option<Vec<Piece>> {
    let one = |parts: Vec<Part>, n: u64| Piece { parts, id: child_id(piece.id, n), backoff: None };
    if let [only] = piece.parts.as_slice() {
        let (first, second) = rows::halve(&only.data)?;
        let cut = first.rows();
        let numbers: Vec<u32> = match (&only.data, only.numbers.is_empty()) {
            (Data::Metrics(_), _) => Vec::new(),
            (_, true) => (0..only.data.rows() as u32).collect(),
            (_, false) => only.numbers.clone(),
        };
        let at = cut.min(numbers.len());
        let part = |data, numbers: &[u32]| Part { data, numbers: numbers.to_vec(), ..only.clone() };
        let (a, b) = (part(first, &numbers[..at]), part(second, &numbers[at..]));
        return Some(vec![one(vec![b], 1), one(vec![a], 0)]);
    }
    let (a, b) = piece.parts.split_at(piece.parts.len() / 2);
    Some(vec![one(b.to_vec(), 1), one(a.to_vec(), 0)])
}

fn compress(body: Vec<u8>, how: BodyCompression) -> Result<Bytes, EncodeError> {
    use std::io::Write as _;
    let failed = |e: &dyn std::fmt::Display| EncodeError(format!("cannot compress a request: {e}"));
    if body.is_empty() {
        return Ok(Bytes::new());
    }
    Ok(Bytes::from(match how {
        BodyCompression::Chosen(Compression::None) => body,
        BodyCompression::Chosen(Compression::Gzip) => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(&body).and_then(|()| out.finish()).map_err(|e| failed(&e))?
        }
        BodyCompression::Chosen(Compression::Zstd) => zstd::encode_all(&body[..], 1).map_err(|e| failed(&e))?,
        BodyCompression::Chosen(Compression::Snappy) => {
            let mut out = snap::write::FrameEncoder::new(Vec::new());
            out.write_all(&body).map_err(|e| failed(&e))?;
            out.into_inner().map_err(|e| failed(&e))?
        }
        BodyCompression::SnappyBlock => snap::raw::Encoder::new().compress_vec(&body).map_err(|e| failed(&e))?,
    }))
}

/// The rows as a batch of their own. Its id follows from theirs, so that rows that are sent again are stored once; points
/// of metrics, which have no numbers, need none: a sample is stored once anyhow.
fn dead_letter(sink: &str, reason: &str, tenant: &TenantId, part: &Part) -> Batch {
    let mut batch = Batch::new(tenant.clone(), marked(part.data.clone(), sink, reason));
    if !matches!(part.data, Data::Metrics(_)) {
        let numbers: Vec<u8> = part.numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        batch.batch_id = Some(child_id(part.batch, xxhash_rust::xxh3::xxh3_64(&numbers)));
    }
    batch
}

/// The rows as lines, each with who refused it and why.
fn dead_lines(sink: &str, reason: &str, tenant: &TenantId, data: &Data) -> std::io::Result<Bytes> {
    use storage::model::json::write_string;
    let lines = stdout::write_batch(&Batch::new(tenant.clone(), data.clone()))?;
    let mut head = String::from("{\"refused_by\":");
    write_string(&mut head, sink);
    head.push_str(",\"reason\":");
    write_string(&mut head, reason);
    head.push(',');
    let mut out = String::with_capacity(lines.len() + head.len() * data.rows());
    for line in lines.lines().filter_map(|l| l.strip_prefix('{')) {
        out.push_str(&head);
        out.push_str(line);
        out.push('\n');
    }
    Ok(Bytes::from(out))
}
