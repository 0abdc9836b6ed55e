//! The pages of a column chunk of numbers, unpacked.
//!
//! **For** the encodings that our writer gives the columns of samples; of anything else the Parquet reader knows more, and is
//! asked instead.

use std::sync::Arc;

use parking_lot::Mutex;
use parquet::{
    basic::{Compression, Encoding, Type},
    column::page::{Page, PageReader as _},
    file::{metadata::ColumnChunkMetaData, serialized_reader::SerializedPageReader},
};

use super::{
    PartError,
    encode::POWERS,
    error::reading,
    planes::{Planes, WIDTH},
    source::Fetched,
};

/// Most bytes of a page beside eight for each of its values.
const PAGE_REST_MAX: usize = 64 << 10;

/// Unpackers that are kept for the next page, with a page's bytes each: about as many threads read at once.
const RESTING_MAX: usize = 8;

/// Bytes that a resting unpacker keeps at most.
const RESTING_BYTES_MAX: usize = 2 << 20;

static RESTING: Mutex<Vec<Unpacker>> = Mutex::new(Vec::new());

/// What a page is unpacked with. Making one costs as much as a small page, and so does touching new memory for each.
struct Unpacker {
    zstd: zstd::bulk::Decompressor<'static>,
    out: Vec<u8>,
}

impl Unpacker {
    /// `None`: there is none.
    fn take() -> Option<Self> {
        if let Some(resting) = RESTING.lock().pop() {
            return Some(resting);
        }
        Some(Unpacker { zstd: zstd::bulk::Decompressor::new().ok()?, out: Vec::new() })
    }

    fn rest(mut self) {
        if self.out.capacity() > RESTING_BYTES_MAX {
            self.out = Vec::new();
        }
        let mut resting = RESTING.lock();
        if resting.len() < RESTING_MAX {
            resting.push(self);
        }
    }

    /// What was packed in one frame that says how long it is, at most `bytes_max`; `None`: that is not so, or it is broken.
    fn unpack(&mut self, packed: &[u8], bytes_max: usize) -> Option<&[u8]> {
        let len = zstd::zstd_safe::get_frame_content_size(packed).ok().flatten()?;
        let len = usize::try_from(len).ok().filter(|len| *len <= bytes_max)?;
        self.out.clear();
        self.out.reserve(len);
        let n = self.zstd.decompress_to_buffer(packed, &mut self.out).ok()?;
        (n == len).then_some(&self.out[..])
    }
}

pub(super) struct Column {
    pub kind: Type,
    /// Values of the dictionary page, if there is one.
    dictionary: Option<Vec<i32>>,
    pages: Vec<DataPage>,
}

struct DataPage {
    first: usize,
    rows: usize,
    /// Runs of rows with and without a value; empty where all have one.
    levels: Vec<(u32, usize)>,
    /// Rows with a value.
    present: usize,
    encoding: Encoding,
    values: Values,
}

/// The values of those rows of a page that have one.
enum Values {
    /// In planes of bytes.
    Split(Planes),
    /// As they are encoded.
    Encoded(Vec<u8>),
}

impl Column {
    /// `None`: kinds of pages that our writer does not write.
    pub fn read(fetched: &Arc<Fetched>, chunk: &ColumnChunkMetaData, rows: usize) -> Result<Option<Self>, PartError> {
        let descriptor = chunk.column_descr();
        if descriptor.max_rep_level() > 0 || descriptor.max_def_level() > 1 {
            return Ok(None);
        }
        let packed = match chunk.compression() {
            Compression::ZSTD(_) => true,
            Compression::UNCOMPRESSED => false,
            _ => return Ok(None),
        };
        // Pages come as they are in the file, and are unpacked here: the reader would make what it needs for that anew for
        // each column, to pack as well as to unpack.
        let bare =
            chunk.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build().map_err(reading)?;
        let mut reader = SerializedPageReader::new(fetched.clone(), &bare, rows, None).map_err(reading)?;
        let Some(mut unpacker) = Unpacker::take() else { return Ok(None) };
        let mut column = Column { kind: descriptor.physical_type(), dictionary: None, pages: Vec::new() };
        let mut known = true;
        let mut first = 0;
        while let Some(page) = reader.get_next_page().map_err(reading)?.filter(|_| known) {
            // A page of a damaged file may say anything.
            let values = rows.min(page.num_values() as usize);
            let bytes_max = values.saturating_mul(WIDTH).saturating_add(PAGE_REST_MAX);
            let bytes = if packed { unpacker.unpack(page.buffer(), bytes_max) } else { Some(&page.buffer()[..]) };
            known = match bytes {
                Some(bytes) => column.take(&page, bytes, &mut first, descriptor.max_def_level() == 1)?,
                None => false,
            };
        }
        unpacker.rest();
        if !known {
            return Ok(None);
        }
        if first != rows {
            return Err(PartError::corrupt("a column has not the rows its footer says"));
        }
        Ok(Some(column))
    }

    /// Takes a page with its bytes unpacked. `false`: our writer does not write such ones.
    fn take(&mut self, page: &Page, bytes: &[u8], first: &mut usize, optional: bool) -> Result<bool, PartError> {
        match page {
            Page::DictionaryPage { .. } if self.kind == Type::INT32 => {
                let words = bytes.chunks_exact(4);
                self.dictionary = Some(words.map(|w| i32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect());
                Ok(true)
            }
            Page::DataPage { num_values, encoding, def_level_encoding: Encoding::RLE, .. } => {
                let rows = *num_values as usize;
                let (mut levels, mut present, mut values) = (Vec::new(), rows, bytes);
                if optional {
                    let short = || PartError::corrupt("a page ends in its levels");
                    let len = values.first_chunk::<4>().ok_or_else(short)?;
                    let end = 4usize.saturating_add(u32::from_le_bytes(*len) as usize);
                    levels = hybrid(values.get(4..end).ok_or_else(short)?, 1, rows)?;
                    values = &values[end..];
                    present = levels.iter().filter(|(level, _)| *level == 1).map(|(_, n)| n).sum();
                    if present == rows {
                        levels.clear();
                    }
                }
                let values = if *encoding == Encoding::BYTE_STREAM_SPLIT && values.len() == present * WIDTH {
                    Values::Split(Planes::of(values))
                } else {
                    Values::Encoded(values.to_vec())
                };
                self.pages.push(DataPage { first: *first, rows, levels, present, encoding: *encoding, values });
                *first += rows;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// First row and numbers of each page, if all rows have one.
    pub fn split_without_nulls(self) -> Option<Vec<(usize, Planes)>> {
        if self.kind != Type::INT64 || self.pages.is_empty() {
            return None;
        }
        let pages = self.pages.into_iter().filter(|p| p.rows > 0);
        pages
            .map(|p| match p.values {
                Values::Split(planes) if planes.rows() == p.rows => Some((p.first, planes)),
                _ => None,
            })
            .collect()
    }

    /// Where each run of an exponent ends.
    pub fn exponents(&self, rows: usize) -> Result<Option<Vec<(usize, u8)>>, PartError> {
        let Some(dictionary) = &self.dictionary else { return Ok(None) };
        let mut out: Vec<(usize, u8)> = Vec::new();
        let mut end = 0;
        for page in &self.pages {
            if page.encoding != Encoding::RLE_DICTIONARY || page.present != page.rows {
                return Ok(None);
            }
            let Values::Encoded(keys) = &page.values else { return Ok(None) };
            let Some((width, keys)) = keys.split_first() else {
                return Err(PartError::corrupt("a page without values"));
            };
            for (key, n) in hybrid(keys, *width, page.rows)? {
                let exponent = dictionary.get(key as usize).and_then(|e| u8::try_from(*e).ok());
                let exponent = exponent.filter(|e| usize::from(*e) < POWERS.len());
                let exponent = exponent.ok_or_else(|| PartError::corrupt("exponent of a sample is out of range"))?;
                end += n;
                match out.last_mut() {
                    Some(last) if last.1 == exponent => last.0 = end,
                    _ => out.push((end, exponent)),
                }
            }
        }
        Ok((end == rows).then_some(out))
    }

    /// Gives each value with its row; `false`: not encoded as our writer encodes it.
    pub fn each_present(&self, encoding: Encoding, mut give: impl FnMut(usize, u64)) -> bool {
        let ours = |p: &DataPage| match &p.values {
            _ if p.present == 0 => true,
            Values::Split(_) => p.encoding == encoding,
            Values::Encoded(bytes) => {
                p.encoding == encoding && encoding != Encoding::BYTE_STREAM_SPLIT && bytes.len() == p.present * WIDTH
            }
        };
        if !self.pages.iter().all(ours) {
            return false;
        }
        for page in self.pages.iter().filter(|p| p.present > 0) {
            let whole = [(1, page.rows)];
            let levels = if page.levels.is_empty() { whole.as_slice() } else { page.levels.as_slice() };
            let mut row = page.first;
            let mut rows = levels.iter().flat_map(|(level, n)| {
                row += n;
                if *level == 1 { row - n..row } else { 0..0 }
            });
            let mut next = |v: u64| {
                if let Some(row) = rows.next() {
                    give(row, v);
                }
            };
            match &page.values {
                Values::Split(planes) => planes.each(0..page.present, |v| v.iter().copied().for_each(&mut next)),
                Values::Encoded(bytes) => {
                    for word in bytes.chunks_exact(WIDTH) {
                        next(u64::from_le_bytes(word.try_into().unwrap_or_default()));
                    }
                }
            }
        }
        true
    }
}

/// Runs of `count` numbers of `width` bits in Parquet's hybrid of run lengths and bit packing.
fn hybrid(mut bytes: &[u8], width: u8, count: usize) -> Result<Vec<(u32, usize)>, PartError> {
    let broken = || PartError::corrupt("a page ends in a run");
    if width > 32 {
        return Err(PartError::corrupt("keys of more than 32 bits"));
    }
    let mut out: Vec<(u32, usize)> = Vec::new();
    let mut push = |value: u32, n: usize| match out.last_mut() {
        Some(last) if last.0 == value => last.1 += n,
        _ => out.push((value, n)),
    };
    let mut left = count;
    while left > 0 {
        let mut header = 0u64;
        let mut shift = 0;
        loop {
            let (byte, rest) = bytes.split_first().ok_or_else(broken)?;
            bytes = rest;
            header |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 56 {
                return Err(broken());
            }
        }
        let n = usize::try_from(header >> 1).map_err(|_| broken())?;
        if header & 1 == 0 {
            let len = usize::from(width).div_ceil(8);
            let (value, rest) = bytes.split_at_checked(len).ok_or_else(broken)?;
            bytes = rest;
            let n = n.min(left);
            if n == 0 {
                return Err(broken());
            }
            push(value.iter().rev().fold(0, |v, b| v << 8 | u32::from(*b)), n);
            left -= n;
        } else {
            // Groups of eight; the last ones may be cut off.
            let len = n.checked_mul(usize::from(width)).ok_or_else(broken)?;
            let (packed, rest) = bytes.split_at(len.min(bytes.len()));
            bytes = rest;
            let n = n.saturating_mul(8).min(left);
            if n == 0 || packed.len() < (n * usize::from(width)).div_ceil(8) {
                return Err(broken());
            }
            for i in 0..n {
                let bit = i * usize::from(width);
                let mut window = [0; 8];
                let from = &packed[bit / 8..packed.len().min(bit / 8 + 8)];
                window[..from.len()].copy_from_slice(from);
                let mask = (1u64 << width) - 1;
                push((u64::from_le_bytes(window) >> (bit % 8) & mask) as u32, 1);
            }
            left -= n;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_packed_numbers_are_read_and_broken_ones_refused() {
        // 5 times 3 in 2 bits, then eight packed: 0 1 2 3 0 1 2 3.
        let bytes = [10, 3, 3, 0b1110_0100, 0b1110_0100];
        let runs = hybrid(&bytes, 2, 13).unwrap();
        let flat: Vec<u32> = runs.iter().flat_map(|(v, n)| std::iter::repeat_n(*v, *n)).collect();
        assert_eq!(flat, [3, 3, 3, 3, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(hybrid(&bytes, 2, 4).unwrap(), [(3, 4)]);
        assert_eq!(hybrid(&[200, 1], 0, 100).unwrap(), [(0, 100)]);
        assert!(hybrid(&bytes, 2, 14).is_err());
        assert!(hybrid(&[0xff; 12], 1, 4).is_err());
        assert!(hybrid(&[0, 1], 1, 4).is_err());
    }
}
