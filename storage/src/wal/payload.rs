//! A batch as bytes, without its schema, which the table and a fingerprint stand for.
//!
//! Forms differ because a batch of one row and a batch of 10,000 rows spend their bytes on different things:
//! - *columns* (code 3), for all batches of more than [`FLAT_ROWS_MAX`] rows: see [`super::columns`].
//! - *messages* (code 1), which the first release wrote for those, and which is still read: Arrow IPC, one dictionary message per dictionary column that has values, then the batch message; buffers
//!   lz4 (frame) each. `count u32`, then per message `metadata len u32 | body len u32 | metadata | body`, padded to 8.
//! - *flat* (code 2), up to [`FLAT_ROWS_MAX`] rows: dictionaries are written out, the one batch message is not compressed
//!   inside, and all of it is one lz4 block behind its `raw len u32`. The 18 columns of a one-row log batch carry
//!   nine dictionary messages and some fifty buffer entries, nearly all zeros, which this folds away.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    buffer::Buffer,
    compute,
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit, TimestampNanosecondType},
};
use arrow_ipc::{
    CompressionType, MessageHeader, MetadataVersion,
    reader::{read_dictionary, read_record_batch},
    root_as_message,
    writer::{DictionaryTracker, EncodedData, IpcDataGenerator, IpcWriteContext, IpcWriteOptions},
};

use super::columns;
use crate::model::{Table, Timestamp, schema};

/// Rows up to which a batch is written flat. At 64 rows both forms of a log batch are about as large; below, flat wins.
pub const FLAT_ROWS_MAX: usize = 64;

/// Bytes one payload may unfold to: more is damage, not data.
pub const DECODED_BYTES_MAX: usize = 512 << 20;

const FORM_MESSAGES: u8 = 1;
const FORM_FLAT: u8 = 2;
const FORM_COLUMNS: u8 = 3;

/// A batch ready for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedBatch {
    pub meta: BatchMeta,
    pub payload: Vec<u8>,
}

/// What is known of a batch without decoding it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchMeta {
    pub table: Table,
    /// Which of the forms the payload has.
    pub form: u8,
    pub rows: u32,
    /// Earliest and latest event time, nanoseconds, both inclusive. For series: first and last life sign.
    pub min_ts: i64,
    pub max_ts: i64,
    /// Of the schema the batch was written with.
    pub schema: u64,
    pub payload_len: u32,
    pub payload_crc: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("batch has no rows")]
    Empty,
    #[error("batch has neither the input nor the head schema of {table}")]
    Schema { table: &'static str },
    #[error("batch of {bytes} bytes is over the limit of {limit}; send smaller batches")]
    TooLarge { bytes: usize, limit: usize },
    #[error("cannot encode the batch")]
    Arrow(#[from] arrow::error::ArrowError),
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum DecodeError {
    #[error(
        "the batch of table {table} was written with a schema (fingerprint {found:016x}) this program does not know"
    )]
    UnknownSchema { table: &'static str, found: u64 },
    #[error("the batch is damaged: {0}")]
    Damaged(String),
}

pub(super) fn damaged(why: impl std::fmt::Display) -> DecodeError {
    DecodeError::Damaged(why.to_string())
}

/// A schema in the shapes that writing and reading need.
struct Layout {
    table: Table,
    schema: SchemaRef,
    fingerprint: u64,
    /// The same with an id for each dictionary column: its place among them.
    with_ids: SchemaRef,
    /// The same with dictionaries written out.
    flat: SchemaRef,
    dictionaries: Vec<usize>,
}

static LAYOUTS: LazyLock<Vec<Layout>> = LazyLock::new(|| {
    let both = |t| [(t, schema::input(t)), (t, schema::head(t))];
    Table::ALL.into_iter().flat_map(both).map(|(t, s)| Layout::new(t, s)).collect()
});

impl Layout {
    fn new(table: Table, schema: SchemaRef) -> Self {
        let mut dictionaries = Vec::new();
        let mut with_ids = Vec::new();
        let mut flat = Vec::new();
        for (i, f) in schema.fields().iter().enumerate() {
            if let DataType::Dictionary(_, value) = f.data_type() {
                let id = dictionaries.len() as i64;
                #[allow(deprecated)] // the reader finds dictionaries by this id, and offers no other way
                with_ids.push(Field::new_dict(f.name(), f.data_type().clone(), f.is_nullable(), id, false));
                flat.push(Field::new(f.name(), value.as_ref().clone(), f.is_nullable()));
                dictionaries.push(i);
            } else {
                with_ids.push(f.as_ref().clone());
                flat.push(f.as_ref().clone());
            }
        }
        Layout {
            table,
            fingerprint: fingerprint(&schema),
            schema,
            with_ids: Arc::new(Schema::new(with_ids)),
            flat: Arc::new(Schema::new(flat)),
            dictionaries,
        }
    }

    fn of_batch(table: Table, schema: &SchemaRef) -> Option<&'static Layout> {
        LAYOUTS.iter().find(|l| l.table == table && (Arc::ptr_eq(&l.schema, schema) || l.schema == *schema))
    }

    fn of_meta(meta: &BatchMeta) -> Option<&'static Layout> {
        LAYOUTS.iter().find(|l| l.table == meta.table && l.fingerprint == meta.schema)
    }
}

/// xxh3-64 of `name:type[?]` lines. Type names are ours, so that a new Arrow version cannot change them.
fn fingerprint(schema: &Schema) -> u64 {
    fn name(t: &DataType) -> String {
        match t {
            DataType::Int32 => "i32".into(),
            DataType::Int64 => "i64".into(),
            DataType::Float64 => "f64".into(),
            DataType::Boolean => "bool".into(),
            DataType::Utf8 => "utf8".into(),
            DataType::Binary => "binary".into(),
            DataType::Timestamp(TimeUnit::Nanosecond, zone) => format!("ts_ns({})", zone.as_deref().unwrap_or("")),
            DataType::Dictionary(k, v) => format!("dict({},{})", name(k), name(v)),
            DataType::List(f) => format!("list({})", field(f)),
            other => other.to_string(),
        }
    }
    fn field(f: &Field) -> String {
        format!("{}:{}{}\n", f.name(), name(f.data_type()), if f.is_nullable() { "?" } else { "" })
    }
    let text: String = schema.fields().iter().map(|f| field(f)).collect();
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

/// The event times of a batch, both ends inclusive, in nanoseconds.
fn time_range(table: Table, batch: &RecordBatch) -> Option<(i64, i64)> {
    let column = |name: &str| batch.column_by_name(name).expect("schema was checked").clone();
    let times = column(table.time_column());
    match table {
        Table::Logs | Table::Spans => {
            let t = times.as_primitive::<TimestampNanosecondType>();
            Some((compute::min(t)?, compute::max(t)?))
        }
        _ => {
            let last = if table == Table::MetricSeries { column("last_ms") } else { times.clone() };
            let first = compute::min(times.as_primitive::<Int64Type>())?;
            let last = compute::max(last.as_primitive::<Int64Type>())?;
            Some((Timestamp::from_millis(first).nanos(), Timestamp::from_millis(last).nanos()))
        }
    }
}

/// Turns a batch of the input or head schema of `table` into log bytes. Costs CPU: call it where the batch comes
/// from, not where the log is written.
pub fn encode_batch(table: Table, batch: &RecordBatch) -> Result<EncodedBatch, EncodeError> {
    let layout = Layout::of_batch(table, batch.schema_ref()).ok_or(EncodeError::Schema { table: table.name() })?;
    let (min_ts, max_ts) = time_range(table, batch).ok_or(EncodeError::Empty)?;
    let (form, payload) = if batch.num_rows() <= FLAT_ROWS_MAX {
        (FORM_FLAT, encode_flat(layout, batch)?)
    } else if batch.num_rows() <= columns::ROWS_MAX
        && let Some(payload) = columns::encode(batch)
    {
        (FORM_COLUMNS, payload)
    } else {
        (FORM_MESSAGES, encode_messages(layout, batch)?)
    };
    let limit = super::record::RECORD_BYTES_MAX;
    if payload.len() > limit {
        return Err(EncodeError::TooLarge { bytes: payload.len(), limit });
    }
    let meta = BatchMeta {
        table,
        form,
        rows: batch.num_rows() as u32,
        min_ts,
        max_ts,
        schema: layout.fingerprint,
        payload_len: payload.len() as u32,
        payload_crc: crc32c::crc32c(&payload),
    };
    Ok(EncodedBatch { meta, payload })
}

/// As the first release wrote larger batches.
#[cfg(test)]
pub(super) fn encode_as_messages(table: Table, batch: &RecordBatch) -> Result<EncodedBatch, EncodeError> {
    let mut out = encode_batch(table, batch)?;
    let layout = Layout::of_batch(table, batch.schema_ref()).ok_or(EncodeError::Schema { table: table.name() })?;
    out.payload = encode_messages(layout, batch)?;
    out.meta.form = FORM_MESSAGES;
    out.meta.payload_len = out.payload.len() as u32;
    out.meta.payload_crc = crc32c::crc32c(&out.payload);
    Ok(out)
}

fn options(compression: Option<CompressionType>) -> Result<IpcWriteOptions, EncodeError> {
    Ok(IpcWriteOptions::try_new(8, false, MetadataVersion::V5)?.try_with_compression(compression)?)
}

fn encode_messages(layout: &Layout, batch: &RecordBatch) -> Result<Vec<u8>, EncodeError> {
    let mut tracker = DictionaryTracker::new(false);
    layout.dictionaries.iter().for_each(|_| {
        tracker.next_dict_id();
    });
    let (dictionaries, rows) = IpcDataGenerator::default().encode(
        batch,
        &mut tracker,
        &options(Some(CompressionType::LZ4_FRAME))?,
        &mut IpcWriteContext::default(),
    )?;
    // A dictionary without values may stay away; the reader then takes it as empty.
    let useful = |k: &usize| !batch.column(layout.dictionaries[*k]).as_any_dictionary().values().is_empty();
    let kept = dictionaries.into_iter().enumerate().filter(|(k, _)| useful(k)).map(|(_, d)| d);
    let all: Vec<EncodedData> = kept.chain([rows]).collect();
    let mut out = Vec::with_capacity(all.iter().map(|m| m.arrow_data.len() + m.ipc_message.len() + 24).sum());
    out.extend((all.len() as u32).to_le_bytes());
    out.extend([0; 4]);
    for m in &all {
        push_message(&mut out, m);
    }
    Ok(out)
}

fn encode_flat(layout: &Layout, batch: &RecordBatch) -> Result<Vec<u8>, EncodeError> {
    let columns: Result<Vec<ArrayRef>, _> = batch
        .columns()
        .iter()
        .zip(layout.flat.fields())
        .map(|(c, f)| if c.data_type() == f.data_type() { Ok(c.clone()) } else { compute::cast(c, f.data_type()) })
        .collect();
    let flat = RecordBatch::try_new(layout.flat.clone(), columns?)?;
    let (_, rows) = IpcDataGenerator::default().encode(
        &flat,
        &mut DictionaryTracker::new(false),
        &options(None)?,
        &mut IpcWriteContext::default(),
    )?;
    let mut raw = Vec::with_capacity(rows.arrow_data.len() + rows.ipc_message.len() + 16);
    push_message(&mut raw, &rows);
    let mut out = (raw.len() as u32).to_le_bytes().to_vec();
    out.extend(lz4_flex::block::compress(&raw));
    Ok(out)
}

fn push_message(out: &mut Vec<u8>, m: &EncodedData) {
    out.extend((m.ipc_message.len() as u32).to_le_bytes());
    out.extend((m.arrow_data.len() as u32).to_le_bytes());
    for part in [&m.ipc_message, &m.arrow_data] {
        out.extend_from_slice(part);
        out.resize(out.len().next_multiple_of(8), 0);
    }
}

/// The batch of a payload whose checksum the caller has checked. Never panics, whatever the bytes.
pub fn decode_batch(meta: &BatchMeta, payload: Vec<u8>) -> Result<RecordBatch, DecodeError> {
    let layout =
        Layout::of_meta(meta).ok_or(DecodeError::UnknownSchema { table: meta.table.name(), found: meta.schema })?;
    // The Arrow reader was not written for hostile bytes. What it is known to trip over is checked first
    // (`check_header`); a panic that is left is caught.
    let decoded = catch_unwind(AssertUnwindSafe(|| match meta.form {
        FORM_MESSAGES => decode_messages(layout, &Buffer::from_vec(payload)),
        FORM_FLAT => decode_flat(layout, &payload),
        FORM_COLUMNS => columns::decode(&payload, &layout.schema, meta.rows as usize),
        other => Err(damaged(format!("unknown form {other}"))),
    }));
    let batch = decoded.unwrap_or_else(|_| Err(damaged("the Arrow reader gave up")))?;
    if batch.num_rows() != meta.rows as usize {
        return Err(damaged(format!("{} rows, {} announced", batch.num_rows(), meta.rows)));
    }
    Ok(batch)
}

fn decode_messages(layout: &Layout, payload: &Buffer) -> Result<RecordBatch, DecodeError> {
    let mut messages = Messages { bytes: payload, at: 8 };
    let count = payload.get(..4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes"))).unwrap_or(0) as usize;
    if count == 0 || count > layout.dictionaries.len() + 1 {
        return Err(damaged(format!("{count} messages")));
    }
    let mut dictionaries = HashMap::new();
    for _ in 1..count {
        let (head, body) = messages.next()?;
        let message = root_as_message(&head).map_err(damaged)?;
        let d = message.header_as_dictionary_batch().ok_or_else(|| damaged("not a dictionary message"))?;
        check_header(d.data(), body.len(), &body)?;
        if d.isDelta() {
            return Err(damaged("a delta dictionary"));
        }
        read_dictionary(&body, d, &layout.with_ids, &mut dictionaries, &MetadataVersion::V5).map_err(damaged)?;
    }
    let batch = read_rows(messages.next()?, &layout.with_ids, &dictionaries)?;
    RecordBatch::try_new(layout.schema.clone(), batch.columns().to_vec()).map_err(damaged)
}

fn decode_flat(layout: &Layout, payload: &[u8]) -> Result<RecordBatch, DecodeError> {
    let (len, block) = payload.split_first_chunk::<4>().ok_or_else(|| damaged("too short"))?;
    let len = u32::from_le_bytes(*len) as usize;
    // An lz4 block cannot unfold to more than 255 times its size.
    if len > DECODED_BYTES_MAX || len / 255 > block.len() {
        return Err(damaged(format!("unfolds to {len} bytes")));
    }
    let raw = Buffer::from_vec(lz4_flex::block::decompress(block, len).map_err(damaged)?);
    let batch = read_rows(Messages { bytes: &raw, at: 0 }.next()?, &layout.flat, &HashMap::new())?;
    let columns: Result<Vec<ArrayRef>, _> = batch
        .columns()
        .iter()
        .zip(layout.schema.fields())
        .map(|(c, f)| if c.data_type() == f.data_type() { Ok(c.clone()) } else { compute::cast(c, f.data_type()) })
        .collect();
    RecordBatch::try_new(layout.schema.clone(), columns.map_err(damaged)?).map_err(damaged)
}

fn read_rows(
    (head, body): (Buffer, Buffer),
    schema: &SchemaRef,
    dictionaries: &HashMap<i64, ArrayRef>,
) -> Result<RecordBatch, DecodeError> {
    let message = root_as_message(&head).map_err(damaged)?;
    if message.header_type() != MessageHeader::RecordBatch {
        return Err(damaged("not a batch message"));
    }
    let header = message.header_as_record_batch();
    check_header(header, body.len(), &body)?;
    let header = header.ok_or_else(|| damaged("no batch header"))?;
    read_record_batch(&body, header, schema.clone(), dictionaries, None, &MetadataVersion::V5).map_err(damaged)
}

/// Every offset, length and count of a batch message lies where it may.
fn check_header(header: Option<arrow_ipc::RecordBatch>, body_len: usize, body: &[u8]) -> Result<(), DecodeError> {
    let header = header.ok_or_else(|| damaged("no batch header"))?;
    let rows_max = DECODED_BYTES_MAX as i64;
    let plausible = |n: i64| (0..=rows_max).contains(&n);
    if !plausible(header.length()) {
        return Err(damaged("row count"));
    }
    for node in header.nodes().into_iter().flatten() {
        if !plausible(node.length()) || !(0..=node.length()).contains(&node.null_count()) {
            return Err(damaged("field counts"));
        }
    }
    let mut unfolded = 0usize;
    for b in header.buffers().into_iter().flatten() {
        let (Ok(at), Ok(len)) = (usize::try_from(b.offset()), usize::try_from(b.length())) else {
            return Err(damaged("buffer place"));
        };
        if at.checked_add(len).is_none_or(|end| end > body_len) {
            return Err(damaged("buffer outside the body"));
        }
        if len > 0 && header.compression().is_some() {
            let prefix = body[at..at + len].first_chunk::<8>().ok_or_else(|| damaged("compressed buffer"))?;
            let raw = i64::from_le_bytes(*prefix);
            if raw != -1 {
                unfolded = unfolded.saturating_add(usize::try_from(raw).map_err(|_| damaged("unfolded length"))?);
            }
        }
    }
    if unfolded > DECODED_BYTES_MAX { Err(damaged("unfolds to too many bytes")) } else { Ok(()) }
}

struct Messages<'a> {
    bytes: &'a Buffer,
    at: usize,
}

impl Messages<'_> {
    /// Metadata and body of the next message.
    fn next(&mut self) -> Result<(Buffer, Buffer), DecodeError> {
        let short = || damaged("message ends early");
        let head = self.bytes.get(self.at..).and_then(|b| b.first_chunk::<8>()).ok_or_else(short)?;
        let word = |i: usize| u32::from_le_bytes(head[i..i + 4].try_into().expect("4 bytes")) as usize;
        let (meta_len, body_len) = (word(0), word(4));
        let meta_at = self.at + 8;
        let body_at = meta_at + meta_len.next_multiple_of(8);
        let end = body_at + body_len;
        if end > self.bytes.len() {
            return Err(short());
        }
        self.at = end.next_multiple_of(8);
        Ok((self.bytes.slice_with_length(meta_at, meta_len), self.bytes.slice_with_length(body_at, body_len)))
    }
}
