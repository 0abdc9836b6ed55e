//! One record: the frame that says how long and whose, and the sections inside. Little-endian throughout.
//!
//! Decoding takes any bytes without panicking, and accepts nothing that was not written into this very segment: the
//! frame's checksum, which covers the body's, starts from the segment's salt, so a record quoted inside a log line is no
//! record.

use super::payload::{BatchMeta, EncodedBatch};
use crate::model::{Table, TenantId};

/// Bytes of one record's body: what a writer may be asked to hold and a reader to read at once.
pub const RECORD_BYTES_MAX: usize = 64 << 20;

/// Bytes of a source's key.
pub const POSITION_KEY_BYTES_MAX: usize = 4096;

/// `len u32 | head crc u32 | seq u64 | durable u64 | body crc u32 | kind u8 | 0 [3]`, then the body.
pub(crate) const FRAME_BYTES: usize = 32;

const SECTION_BATCH: u8 = 1;
const SECTION_POSITION: u8 = 2;
const SECTION_BATCH_ID: u8 = 3;

/// `table u8 | form u8 | rows u32 | min_ts i64 | max_ts i64 | schema u64 | payload crc u32`, then the payload.
const BATCH_HEAD_BYTES: usize = 34;

/// A piece of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Section {
    Batch(EncodedBatch),
    /// How far a source has got.
    Position {
        key: String,
        position: u64,
    },
    BatchId([u8; 16]),
}

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An append of the store.
    Append,
    /// State repeated at the head of a segment, so that the ones before it can go.
    Carry,
}

/// The frame of a record, its checksum verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub len: u32,
    pub seq: u64,
    /// Length of the segment that was known durable when this record was written.
    pub durable: u64,
    pub body_crc: u32,
    pub kind: Kind,
}

impl Frame {
    pub fn encode(&self, salt: u64) -> [u8; FRAME_BYTES] {
        let mut out = [0; FRAME_BYTES];
        out[0..4].copy_from_slice(&self.len.to_le_bytes());
        out[8..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..24].copy_from_slice(&self.durable.to_le_bytes());
        out[24..28].copy_from_slice(&self.body_crc.to_le_bytes());
        out[28] = match self.kind {
            Kind::Append => 1,
            Kind::Carry => 2,
        };
        let crc = head_crc(&out, salt);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` unless `bytes` starts with an intact frame of a segment with this salt.
    pub fn decode(bytes: &[u8], salt: u64) -> Option<Frame> {
        let head = bytes.first_chunk::<FRAME_BYTES>()?;
        let len = u32_at(head, 0)?;
        // Before the checksum, because scanning for a record asks this at every byte.
        if len as usize > RECORD_BYTES_MAX || head[29..] != [0; 3] || u32_at(head, 4)? != head_crc(head, salt) {
            return None;
        }
        let kind = match head[28] {
            1 => Kind::Append,
            2 => Kind::Carry,
            _ => return None,
        };
        Some(Frame { len, seq: u64_at(head, 8)?, durable: u64_at(head, 16)?, body_crc: u32_at(head, 24)?, kind })
    }

    pub fn total(&self) -> u64 {
        FRAME_BYTES as u64 + u64::from(self.len)
    }
}

/// Over everything in the head but the checksum itself, from the salt on.
fn head_crc(head: &[u8; FRAME_BYTES], salt: u64) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &head[..4]);
    crc32c::crc32c_append(crc, &head[8..])
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// A record's body, ready but for its frame, which needs the sequence number.
#[derive(Debug)]
pub(crate) struct Body {
    pub bytes: Vec<u8>,
    pub crc: u32,
    /// Where each batch's payload starts in `bytes`.
    pub batches: Vec<(u32, BatchMeta)>,
}

/// `tenant len u8 | tenant | section count u32`, then per section `kind u8 | len u32 | bytes`. A payload that comes first, as
/// that of a large append does, becomes the body where it lies.
/// `Err`: the length it would have, over [`RECORD_BYTES_MAX`].
pub(crate) fn encode_body(tenant: &TenantId, mut sections: Vec<Section>) -> Result<Body, usize> {
    let size = |s: &Section| match s {
        Section::Batch(b) => 5 + BATCH_HEAD_BYTES + b.payload.len(),
        Section::Position { key, .. } => 13 + key.len(),
        Section::BatchId(_) => 21,
    };
    let total = 5 + tenant.as_str().len() + sections.iter().map(size).sum::<usize>();
    if total > RECORD_BYTES_MAX {
        return Err(total);
    }
    let mut head = vec![tenant.as_str().len() as u8];
    head.extend_from_slice(tenant.as_str().as_bytes());
    head.extend((sections.len() as u32).to_le_bytes());
    let mut batches = Vec::new();
    let mut done = 0;
    let mut out = match sections.first_mut() {
        Some(Section::Batch(b)) => {
            put_batch_head(&mut head, &b.meta);
            batches.push((head.len() as u32, b.meta));
            let mut out = std::mem::take(&mut b.payload);
            out.reserve(total - out.len());
            out.splice(0..0, head);
            done = 1;
            out
        }
        _ => head,
    };
    for s in &sections[done..] {
        let len = (size(s) - 5) as u32;
        match s {
            Section::Batch(b) => {
                put_batch_head(&mut out, &b.meta);
                batches.push((out.len() as u32, b.meta));
                out.extend_from_slice(&b.payload);
            }
            Section::Position { key, position } => {
                out.push(SECTION_POSITION);
                out.extend(len.to_le_bytes());
                out.extend(position.to_le_bytes());
                out.extend_from_slice(key.as_bytes());
            }
            Section::BatchId(id) => {
                out.push(SECTION_BATCH_ID);
                out.extend(len.to_le_bytes());
                out.extend_from_slice(id);
            }
        }
    }
    debug_assert_eq!(out.len(), total);
    let crc = crc32c::crc32c(&out);
    Ok(Body { bytes: out, crc, batches })
}

/// What stands before a batch's payload.
fn put_batch_head(out: &mut Vec<u8>, meta: &BatchMeta) {
    out.push(SECTION_BATCH);
    out.extend((BATCH_HEAD_BYTES as u32 + meta.payload_len).to_le_bytes());
    out.extend([meta.table.code(), meta.form]);
    out.extend(meta.rows.to_le_bytes());
    out.extend(meta.min_ts.to_le_bytes());
    out.extend(meta.max_ts.to_le_bytes());
    out.extend(meta.schema.to_le_bytes());
    out.extend(meta.payload_crc.to_le_bytes());
}

/// A body taken apart; payloads by place.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed<'a> {
    pub tenant: &'a str,
    pub batches: Vec<(u32, BatchMeta)>,
    pub positions: Vec<(&'a str, u64)>,
    pub batch_ids: Vec<[u8; 16]>,
}

/// `None` if the bytes are no body of this format version.
pub(crate) fn parse_body(bytes: &[u8]) -> Option<Parsed<'_>> {
    let tenant_len = usize::from(*bytes.first()?);
    let tenant = std::str::from_utf8(bytes.get(1..1 + tenant_len)?).ok()?;
    let mut out = Parsed { tenant, ..Parsed::default() };
    let mut at = 1 + tenant_len;
    let count = u32_at(bytes, at)?;
    at += 4;
    for _ in 0..count {
        let kind = *bytes.get(at)?;
        let len = u32_at(bytes, at + 1)? as usize;
        at += 5;
        let section = bytes.get(at..at.checked_add(len)?)?;
        match kind {
            SECTION_BATCH => {
                let payload_len = len.checked_sub(BATCH_HEAD_BYTES)?;
                let meta = BatchMeta {
                    table: Table::from_code(section[0])?,
                    form: section[1],
                    rows: u32_at(section, 2)?,
                    min_ts: u64_at(section, 6)? as i64,
                    max_ts: u64_at(section, 14)? as i64,
                    schema: u64_at(section, 22)?,
                    payload_len: payload_len as u32,
                    payload_crc: u32_at(section, 30)?,
                };
                out.batches.push(((at + BATCH_HEAD_BYTES) as u32, meta));
            }
            SECTION_POSITION => {
                let key = std::str::from_utf8(section.get(8..)?).ok()?;
                out.positions.push((key, u64_at(section, 0)?));
            }
            SECTION_BATCH_ID => out.batch_ids.push(section.try_into().ok()?),
            _ => return None,
        }
        at += len;
    }
    (at == bytes.len()).then_some(out)
}
