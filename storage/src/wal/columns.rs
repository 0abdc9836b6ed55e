//! A batch's columns as bytes: form 3 of a payload.
//!
//! ```text
//! payload   raw_len u32 | (raw u32 | len u32 | lz4 block of raw bytes)*        the blocks unfold to the columns, end to end
//! column    0                                                 all null
//!           1 | values                                        none null
//!           2 | bitmap, a bit a row, 1: not null | values
//! values    32-bit and 64-bit numbers   mode u8: 0 plain; 1 zigzag varint of the difference to the value before;
//!                                       2 distinct u32 | the distinct values, plain | keys
//!           booleans                    bitmap
//!           texts, bytes                length varint a row | the bytes, end to end
//!           dictionaries                distinct u32 | column of the distinct values | keys
//!           lists                       length varint a row | column of the items
//! keys      width u8: 1, 2 or 4 | key a row
//! ```
//! Little-endian. Against Arrow IPC this leaves out what repeats: offsets, columns of nulls, three bytes of four of a key.
//! Blocks are compressed one after the other in a buffer of fixed size, straight from where the texts lie.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BooleanArray, DictionaryArray, GenericByteArray, ListArray,
        PrimitiveArray, RecordBatch, StringArray, new_null_array,
    },
    buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer},
    datatypes::{
        ArrowPrimitiveType, ByteArrayType, DataType, Float64Type, Int32Type, Int64Type, SchemaRef, TimeUnit,
        TimestampNanosecondType,
    },
    error::ArrowError,
};

use super::payload::{DECODED_BYTES_MAX, DecodeError, damaged};

/// Raw bytes of one block at most.
const BLOCK_BYTES: usize = 256 << 10;
/// Texts of at least this length are compressed where they lie; shorter ones are gathered first.
const DIRECT_BYTES_MIN: usize = 32 << 10;
/// Room made ahead for a payload at most; a larger one grows.
const EXPECTED_BYTES_MAX: usize = 16 << 20;
/// Rows that decide how a column of numbers is written.
const SAMPLE_ROWS: usize = 256;
/// Distinct numbers of a column that is written as keys.
const DISTINCT_MAX: usize = 1 << 16;
/// Rows of a batch in this form: what damaged bytes may make us allocate.
pub(super) const ROWS_MAX: usize = 1 << 22;

const ALL_NULL: u8 = 0;
const NO_NULL: u8 = 1;
const SOME_NULL: u8 = 2;

const PLAIN: u8 = 0;
const DELTA: u8 = 1;
const KEYED: u8 = 2;

/// `None`: a column of a type that this form does not know.
pub(super) fn encode(batch: &RecordBatch) -> Option<Vec<u8>> {
    let mut out = Blocks::new(batch.get_array_memory_size() / 2);
    for column in batch.columns() {
        put_array(&mut out, column.as_ref())?;
    }
    Some(out.finish())
}

/// Compresses what is written to it.
struct Blocks {
    out: Vec<u8>,
    /// Not compressed yet; never more than [`BLOCK_BYTES`].
    raw: Vec<u8>,
    /// Where a block is compressed to, before it is known how long it is.
    packed: Vec<u8>,
    raw_len: usize,
}

impl Blocks {
    /// `expected`: bytes that it will have, roughly.
    fn new(expected: usize) -> Self {
        let mut out = Vec::with_capacity(expected.clamp(BLOCK_BYTES, EXPECTED_BYTES_MAX));
        out.extend_from_slice(&[0; 4]);
        Blocks { out, raw: Vec::new(), packed: Vec::new(), raw_len: 0 }
    }

    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if bytes.len() >= DIRECT_BYTES_MIN {
                self.end_block();
                let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES));
                self.block(now);
                bytes = later;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.raw.len()));
            self.raw.extend_from_slice(now);
            if self.raw.len() == BLOCK_BYTES {
                self.end_block();
            }
            bytes = later;
        }
    }

    fn end_block(&mut self) {
        if !self.raw.is_empty() {
            let raw = std::mem::take(&mut self.raw);
            self.block(&raw);
            self.raw = raw;
            self.raw.clear();
        }
    }

    fn block(&mut self, raw: &[u8]) {
        self.raw_len += raw.len();
        let room = lz4_flex::block::get_maximum_output_size(raw.len());
        if self.packed.len() < room {
            self.packed.resize(room, 0);
        }
        let n = lz4_flex::block::compress_into(raw, &mut self.packed).expect("there is room for any block");
        self.out.extend_from_slice(&(raw.len() as u32).to_le_bytes());
        self.out.extend_from_slice(&(n as u32).to_le_bytes());
        self.out.extend_from_slice(&self.packed[..n]);
    }

    fn finish(mut self) -> Vec<u8> {
        self.end_block();
        // Longer than this it is over the limit of a record in any case.
        let len = u32::try_from(self.raw_len).unwrap_or(u32::MAX);
        self.out[..4].copy_from_slice(&len.to_le_bytes());
        self.out
    }
}

fn put_array(out: &mut Blocks, array: &dyn Array) -> Option<()> {
    if !array.is_empty() && array.null_count() == array.len() {
        out.put(&[ALL_NULL]);
        return Some(());
    }
    match array.nulls().filter(|n| n.null_count() > 0) {
        None => out.put(&[NO_NULL]),
        Some(nulls) => {
            out.put(&[SOME_NULL]);
            put_bits(out, nulls.inner());
        }
    }
    match array.data_type() {
        DataType::Int32 => put_numbers::<Int32Type, 4>(out, array, |v| i64::from(*v), |v| v.to_le_bytes()),
        DataType::Int64 => put_numbers::<Int64Type, 8>(out, array, |v| *v, |v| v.to_le_bytes()),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            put_numbers::<TimestampNanosecondType, 8>(out, array, |v| *v, |v| v.to_le_bytes());
        }
        // By its bits: doubles that repeat become keys, and differences mean nothing.
        DataType::Float64 => {
            put_numbers::<Float64Type, 8>(out, array, |v| v.to_bits() as i64, |v| v.to_le_bytes());
        }
        DataType::Boolean => put_bits(out, array.as_boolean().values()),
        DataType::Utf8 => put_bytes(out, array.as_string::<i32>()),
        DataType::Binary => put_bytes(out, array.as_binary::<i32>()),
        DataType::Dictionary(key, value) if **key == DataType::Int32 && **value == DataType::Utf8 => {
            let dictionary = array.as_dictionary::<Int32Type>();
            out.put(&(dictionary.values().len() as u32).to_le_bytes());
            put_array(out, dictionary.values().as_ref())?;
            put_keys(out, dictionary.values().len(), dictionary.keys().values().iter().map(|k| *k as u32));
        }
        DataType::List(item) if *item.data_type() == DataType::Float64 => {
            let list = array.as_list::<i32>();
            put_lengths(out, list.offsets());
            let (from, to) = (list.offsets()[0] as usize, list.offsets()[list.len()] as usize);
            put_array(out, list.values().slice(from, to - from).as_ref())?;
        }
        _ => return None,
    }
    Some(())
}

fn put_bits(out: &mut Blocks, bits: &BooleanBuffer) {
    out.put(bits.sliced().as_slice());
}

fn put_numbers<T: ArrowPrimitiveType, const N: usize>(
    out: &mut Blocks,
    array: &dyn Array,
    number: impl Fn(&T::Native) -> i64,
    bytes: impl Fn(&T::Native) -> [u8; N],
) {
    let values = array.as_primitive::<T>().values();
    let sample = &values[..values.len().min(SAMPLE_ROWS)];
    let mut seen: Vec<i64> = sample.iter().map(&number).collect();
    let near = sample.len() > 1
        && T::DATA_TYPE != DataType::Float64
        && seen.windows(2).map(|w| varint_len(zigzag(w[1].wrapping_sub(w[0])))).sum::<usize>()
            < seen.len() * N * 3 / 4;
    seen.sort_unstable();
    seen.dedup();
    if seen.len() <= sample.len() / 2
        && let Some((distinct, keys)) = keyed(values.iter().map(&number))
    {
        out.put(&[KEYED]);
        out.put(&(distinct.len() as u32).to_le_bytes());
        out.put(&distinct.iter().flat_map(|v| v.to_le_bytes().into_iter().take(N)).collect::<Vec<_>>());
        put_keys(out, distinct.len(), keys.into_iter());
    } else if near {
        let mut text = vec![DELTA];
        let mut last = 0i64;
        for v in values.iter().map(&number) {
            put_varint(&mut text, zigzag(v.wrapping_sub(last)));
            last = v;
        }
        out.put(&text);
    } else {
        let mut text = Vec::with_capacity(1 + values.len() * N);
        text.push(PLAIN);
        values.iter().for_each(|v| text.extend_from_slice(&bytes(v)));
        out.put(&text);
    }
}

/// Distinct values in order of appearance and the key of each row; `None`: too many.
fn keyed(values: impl ExactSizeIterator<Item = i64>) -> Option<(Vec<i64>, Vec<u32>)> {
    let mut keys = Vec::with_capacity(values.len());
    let mut distinct = Vec::new();
    let mut by_value: crate::part::MixedMap<i64, u32> = HashMap::default();
    let mut last: Option<(i64, u32)> = None;
    for value in values {
        let key = match last {
            Some((seen, key)) if seen == value => key,
            _ => *by_value.entry(value).or_insert_with(|| {
                distinct.push(value);
                distinct.len() as u32 - 1
            }),
        };
        if distinct.len() > DISTINCT_MAX {
            return None;
        }
        last = Some((value, key));
        keys.push(key);
    }
    Some((distinct, keys))
}

fn put_keys(out: &mut Blocks, distinct: usize, keys: impl ExactSizeIterator<Item = u32>) {
    let width = match distinct {
        0..=0x100 => 1,
        0x101..=0x1_0000 => 2,
        _ => 4,
    };
    let mut text = Vec::with_capacity(1 + keys.len() * width);
    text.push(width as u8);
    match width {
        1 => text.extend(keys.map(|k| k as u8)),
        2 => keys.for_each(|k| text.extend_from_slice(&(k as u16).to_le_bytes())),
        _ => keys.for_each(|k| text.extend_from_slice(&k.to_le_bytes())),
    }
    out.put(&text);
}

fn put_bytes<T: ByteArrayType<Offset = i32>>(out: &mut Blocks, array: &GenericByteArray<T>) {
    put_lengths(out, array.offsets());
    let offsets = array.value_offsets();
    out.put(&array.value_data()[offsets[0] as usize..offsets[array.len()] as usize]);
}

fn put_lengths(out: &mut Blocks, offsets: &OffsetBuffer<i32>) {
    let mut text = Vec::with_capacity(offsets.len() * 2);
    offsets.windows(2).for_each(|w| put_varint(&mut text, (w[1] - w[0]) as u64));
    out.put(&text);
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

fn varint_len(n: u64) -> usize {
    (64 - (n | 1).leading_zeros() as usize).div_ceil(7)
}

#[inline]
fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// The columns of a payload. Safe on any bytes: nothing is allocated beyond [`DECODED_BYTES_MAX`] and a few times
/// [`ROWS_MAX`].
pub(super) fn decode(payload: &[u8], schema: &SchemaRef, rows: usize) -> Result<RecordBatch, DecodeError> {
    let raw = Buffer::from_vec(unfold(payload)?);
    // The first column has at least a byte a row.
    if rows > ROWS_MAX || rows > raw.len() {
        return Err(damaged(format!("{rows} rows in {} bytes", raw.len())));
    }
    let mut input = Input { bytes: &raw, at: 0 };
    let columns: Result<Vec<ArrayRef>, _> =
        schema.fields().iter().map(|f| take_array(&mut input, f.data_type(), rows)).collect();
    let batch = RecordBatch::try_new(schema.clone(), columns?).map_err(damaged)?;
    if input.at == raw.len() { Ok(batch) } else { Err(damaged("bytes behind the last column")) }
}

fn unfold(payload: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let (len, mut blocks) = payload.split_first_chunk::<4>().ok_or_else(|| damaged("too short"))?;
    let len = u32::from_le_bytes(*len) as usize;
    // An lz4 block cannot unfold to more than 255 times its size.
    if len > DECODED_BYTES_MAX || len / 255 > blocks.len() {
        return Err(damaged(format!("unfolds to {len} bytes")));
    }
    let mut out = vec![0; len];
    let mut at = 0usize;
    while !blocks.is_empty() {
        let (head, rest) = blocks.split_first_chunk::<8>().ok_or_else(|| damaged("a block without its length"))?;
        let word = |i: usize| u32::from_le_bytes(head[i..i + 4].try_into().expect("4 bytes")) as usize;
        let (block, rest) = rest.split_at_checked(word(4)).ok_or_else(|| damaged("a block ends early"))?;
        let place = at.checked_add(word(0)).and_then(|end| out.get_mut(at..end));
        let place = place.ok_or_else(|| damaged("blocks unfold to more than was announced"))?;
        let n = lz4_flex::block::decompress_into(block, place).map_err(damaged)?;
        if n != word(0) {
            return Err(damaged("a block unfolds to less than was announced"));
        }
        at += n;
        blocks = rest;
    }
    if at == len { Ok(out) } else { Err(damaged("blocks are missing")) }
}

struct Input<'a> {
    bytes: &'a Buffer,
    at: usize,
}

impl Input<'_> {
    fn take(&mut self, len: usize) -> Result<Buffer, DecodeError> {
        if len > self.bytes.len() - self.at {
            return Err(damaged("a column ends early"));
        }
        self.at += len;
        Ok(self.bytes.slice_with_length(self.at - len, len))
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    fn count(&mut self) -> Result<usize, DecodeError> {
        let n = u32::from_le_bytes(self.take(4)?.as_slice().try_into().expect("4 bytes")) as usize;
        if n > ROWS_MAX { Err(damaged(format!("{n} distinct values"))) } else { Ok(n) }
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut out = 0;
        for (i, b) in self.bytes[self.at..].iter().enumerate().take(10) {
            out |= u64::from(b & 0x7f) << (7 * i);
            if *b < 0x80 {
                self.at += i + 1;
                return Ok(out);
            }
        }
        Err(damaged("a number ends early"))
    }

    fn bits(&mut self, rows: usize) -> Result<BooleanBuffer, DecodeError> {
        // Copied, so that it stands at an address of its own.
        let bytes = Buffer::from(self.take(rows.div_ceil(8))?.as_slice());
        Ok(BooleanBuffer::new(bytes, 0, rows))
    }

    fn offsets(&mut self, rows: usize) -> Result<OffsetBuffer<i32>, DecodeError> {
        let mut out = Vec::with_capacity(rows + 1);
        let mut at = 0i32;
        out.push(at);
        for _ in 0..rows {
            let len = self.varint()?;
            at = i32::try_from(len).ok().and_then(|n| at.checked_add(n)).ok_or_else(|| damaged("lengths"))?;
            out.push(at);
        }
        Ok(OffsetBuffer::new(out.into()))
    }

    fn keys(&mut self, rows: usize) -> Result<Vec<u32>, DecodeError> {
        let width = self.byte()?;
        let bytes = self.take(rows * usize::from(width.min(4)))?;
        match width {
            1 => Ok(bytes.iter().map(|b| u32::from(*b)).collect()),
            2 => Ok(bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect()),
            4 => Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
            _ => Err(damaged("keys of an unknown width")),
        }
    }
}

fn take_array(input: &mut Input<'_>, kind: &DataType, rows: usize) -> Result<ArrayRef, DecodeError> {
    let nulls = match input.byte()? {
        ALL_NULL => return Ok(new_null_array(kind, rows)),
        NO_NULL => None,
        SOME_NULL => Some(NullBuffer::new(input.bits(rows)?)),
        other => return Err(damaged(format!("column mark {other}"))),
    };
    let long = |b: &[u8]| i64::from_le_bytes(b.try_into().expect("8 bytes"));
    Ok(match kind {
        DataType::Int32 => take_numbers::<Int32Type>(
            input,
            rows,
            nulls,
            |n| n as i32,
            |b| i32::from_le_bytes(b.try_into().expect("4 bytes")),
        )?,
        DataType::Int64 => take_numbers::<Int64Type>(input, rows, nulls, |n| n, long)?,
        DataType::Float64 => take_numbers::<Float64Type>(
            input,
            rows,
            nulls,
            |n| f64::from_bits(n as u64),
            |b| f64::from_bits(long(b) as u64),
        )?,
        DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
            let plain = take_numbers::<TimestampNanosecondType>(input, rows, nulls, |n| n, long)?;
            let plain = plain.as_primitive::<TimestampNanosecondType>().clone();
            Arc::new(plain.with_timezone_opt(zone.clone()))
        }
        DataType::Boolean => Arc::new(BooleanArray::new(input.bits(rows)?, nulls)),
        DataType::Utf8 => {
            let (offsets, bytes) = take_bytes(input, rows)?;
            Arc::new(StringArray::try_new(offsets, bytes, nulls).map_err(damaged)?)
        }
        DataType::Binary => {
            let (offsets, bytes) = take_bytes(input, rows)?;
            Arc::new(BinaryArray::try_new(offsets, bytes, nulls).map_err(damaged)?)
        }
        DataType::Dictionary(_, value) => {
            let distinct = input.count()?;
            let values = take_array(input, value, distinct)?;
            let keys: Vec<i32> = input.keys(rows)?.into_iter().map(|k| k as i32).collect();
            let keys = PrimitiveArray::<Int32Type>::try_new(keys.into(), nulls).map_err(damaged)?;
            Arc::new(DictionaryArray::try_new(keys, values).map_err(damaged)?)
        }
        DataType::List(item) => {
            let offsets = input.offsets(rows)?;
            let total = offsets[rows] as usize;
            if total > ROWS_MAX.max(input.bytes.len()) {
                return Err(damaged("items of lists"));
            }
            let items = take_array(input, item.data_type(), total)?;
            Arc::new(ListArray::try_new(item.clone(), offsets, items, nulls).map_err(damaged)?)
        }
        other => return Err(damaged(ArrowError::NotYetImplemented(other.to_string()))),
    })
}

fn take_bytes(input: &mut Input<'_>, rows: usize) -> Result<(OffsetBuffer<i32>, Buffer), DecodeError> {
    let offsets = input.offsets(rows)?;
    let bytes = input.take(offsets[rows] as usize)?;
    Ok((offsets, bytes))
}

fn take_numbers<T: ArrowPrimitiveType>(
    input: &mut Input<'_>,
    rows: usize,
    nulls: Option<NullBuffer>,
    narrow: impl Fn(i64) -> T::Native,
    read: impl Fn(&[u8]) -> T::Native,
) -> Result<ArrayRef, DecodeError> {
    let width = size_of::<T::Native>();
    let plain = |input: &mut Input<'_>, n: usize| -> Result<Vec<T::Native>, DecodeError> {
        Ok(input.take(n * width)?.chunks_exact(width).map(&read).collect())
    };
    let values: Vec<T::Native> = match input.byte()? {
        PLAIN => plain(input, rows)?,
        DELTA => {
            let mut last = 0i64;
            let mut out = Vec::with_capacity(rows);
            for _ in 0..rows {
                last = last.wrapping_add(unzigzag(input.varint()?));
                out.push(narrow(last));
            }
            out
        }
        KEYED => {
            let distinct = input.count()?;
            let distinct = plain(input, distinct)?;
            let value = |k: u32| distinct.get(k as usize).copied().ok_or_else(|| damaged("a key without a value"));
            input.keys(rows)?.into_iter().map(value).collect::<Result<_, _>>()?
        }
        other => return Err(damaged(format!("numbers of mode {other}"))),
    };
    Ok(Arc::new(PrimitiveArray::<T>::try_new(ScalarBuffer::from(values), nulls).map_err(damaged)?))
}
