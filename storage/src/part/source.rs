//! Where a part's bytes come from, verified on the way.

use std::{
    fs::File,
    io::{self, Cursor},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use parquet::{
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
};

use super::{PartError, seal::BLOCK_BYTES};

/// Ranges closer than this are fetched as one; from far away, where several are fetched side by side and each byte counts.
const COALESCE_GAP_BYTES: u64 = 64 << 10;
const COALESCE_GAP_FAR_BYTES: u64 = 16 << 10;

/// Random access to the bytes of an immutable file. Blocks.
pub trait RangeRead: Send + Sync {
    fn len(&self) -> u64;
    /// Exactly these bytes; an error if the file has fewer.
    fn read(&self, range: Range<u64>) -> io::Result<Bytes>;
    /// Several ranges, where that is quicker at once.
    fn read_many(&self, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>> {
        ranges.iter().map(|r| self.read(r.clone())).collect()
    }
    /// Past every cache on the way: for bytes that turned out to be wrong.
    fn read_again(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.read(range)
    }
    /// Whether bytes are dear: then an index larger than what it saves is not read.
    fn is_far(&self) -> bool {
        false
    }
    /// How many bytes at the end opening it takes, if that is known.
    fn tail_bytes(&self) -> Option<u64> {
        None
    }
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl RangeRead for Bytes {
    fn len(&self) -> u64 {
        Bytes::len(self) as u64
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        if range.start > range.end || range.end > RangeRead::len(self) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.slice(range.start as usize..range.end as usize))
    }
}

/// A file of the local file system, read by position.
pub struct FileSource {
    file: File,
    len: u64,
}

impl FileSource {
    pub fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(FileSource { file, len })
    }
}

impl RangeRead for FileSource {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        use std::os::unix::fs::FileExt as _;
        if range.start > range.end || range.end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut out = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut out, range.start)?;
        Ok(out.into())
    }
}

/// crc32c of each [`BLOCK_BYTES`] of `[0, end)`.
pub(super) struct Checksums {
    pub(super) end: u64,
    pub(super) crcs: Vec<u32>,
}

pub(super) struct Source {
    pub(super) bytes: Arc<dyn RangeRead>,
    pub(super) checksums: Option<Checksums>,
}

impl Source {
    /// The bytes of `range`, checked where there are checksums. Second: how many were fetched.
    pub(super) fn read(&self, range: Range<u64>) -> Result<(Bytes, usize), PartError> {
        let (mut bytes, n) = self.read_all(std::slice::from_ref(&range))?;
        Ok((bytes.swap_remove(0), n))
    }

    /// As [`Source::read`] for several ranges at once.
    fn read_all(&self, ranges: &[Range<u64>]) -> Result<(Vec<Bytes>, usize), PartError> {
        if let Some(range) = ranges.iter().find(|r| r.start > r.end || r.end > self.bytes.len()) {
            return Err(PartError::corrupt(format_args!("refers to bytes {range:?} beyond its end")));
        }
        let wide: Vec<Range<u64>> = ranges.iter().map(|r| self.widened(r)).collect();
        let fetched = match wide.as_slice() {
            [one] => self.bytes.read(one.clone()).map(|b| vec![b]),
            several => self.bytes.read_many(several),
        };
        let fetched = fetched.map_err(|source| PartError::Io { what: "read the part", source })?;
        let (mut out, mut total) = (Vec::with_capacity(ranges.len()), 0);
        for ((range, wide), mut bytes) in ranges.iter().zip(wide).zip(fetched) {
            exactly(&bytes, &wide)?;
            if self.verify(&wide, &bytes).is_err() {
                // Once more: what is wrong may be the way here and not the part.
                let again = self.bytes.read_again(wide.clone());
                bytes = again.map_err(|source| PartError::Io { what: "read the part", source })?;
                exactly(&bytes, &wide)?;
                self.verify(&wide, &bytes)?;
            }
            total += bytes.len();
            let skip = (range.start - wide.start) as usize;
            out.push(bytes.slice(skip..skip + (range.end - range.start) as usize));
        }
        Ok((out, total))
    }

    /// The blocks that hold the range, where there are checksums of blocks.
    fn widened(&self, range: &Range<u64>) -> Range<u64> {
        let block = BLOCK_BYTES as u64;
        match self.checksums.as_ref().filter(|s| range.start < s.end && range.start < range.end) {
            None => range.clone(),
            Some(sums) => {
                let end = range.end.max(range.end.next_multiple_of(block).min(sums.end));
                range.start / block * block..end
            }
        }
    }

    fn verify(&self, wide: &Range<u64>, bytes: &Bytes) -> Result<(), PartError> {
        let Some(sums) = self.checksums.as_ref().filter(|s| wide.start < s.end && wide.start < wide.end) else {
            return Ok(());
        };
        let first = (wide.start / BLOCK_BYTES as u64) as usize;
        let covered = (sums.end.min(wide.end) - wide.start) as usize;
        for (i, chunk) in bytes[..covered].chunks(BLOCK_BYTES).enumerate() {
            if sums.crcs.get(first + i) != Some(&crc32c::crc32c(chunk)) {
                let at = wide.start + (i * BLOCK_BYTES) as u64;
                return Err(PartError::corrupt(format_args!("checksum of the block at byte {at} does not match")));
            }
        }
        Ok(())
    }

    /// Fetches all `ranges`, near ones together.
    pub(super) fn fetch(&self, mut ranges: Vec<Range<u64>>) -> Result<(Fetched, usize), PartError> {
        ranges.retain(|r| r.start < r.end);
        ranges.sort_unstable_by_key(|r| r.start);
        let gap = if self.bytes.is_far() { COALESCE_GAP_FAR_BYTES } else { COALESCE_GAP_BYTES };
        let mut merged: Vec<Range<u64>> = Vec::new();
        for r in ranges {
            match merged.last_mut() {
                Some(last) if r.start <= last.end.saturating_add(gap) => last.end = last.end.max(r.end),
                _ => merged.push(r),
            }
        }
        let (bytes, total) = self.read_all(&merged)?;
        let pieces = merged.iter().map(|r| r.start).zip(bytes).collect();
        Ok((Fetched { len: self.bytes.len(), pieces }, total))
    }
}

fn exactly(bytes: &Bytes, range: &Range<u64>) -> Result<(), PartError> {
    if bytes.len() as u64 == range.end - range.start {
        return Ok(());
    }
    Err(PartError::Io { what: "read the part", source: io::ErrorKind::UnexpectedEof.into() })
}

/// Pieces of a file in memory, as the Parquet reader wants them. It may ask for nothing else.
#[derive(Clone)]
pub(super) struct Fetched {
    pub(super) len: u64,
    /// Start and bytes, by start.
    pub(super) pieces: Arc<[(u64, Bytes)]>,
}

impl Fetched {
    fn from(&self, start: u64) -> Result<Bytes, ParquetError> {
        let i = self.pieces.partition_point(|(at, _)| *at <= start);
        let piece = i.checked_sub(1).map(|i| &self.pieces[i]);
        piece
            .filter(|(at, b)| start - at <= b.len() as u64)
            .map(|(at, b)| b.slice((start - at) as usize..))
            .ok_or_else(|| ParquetError::EOF(format!("byte {start} was not fetched")))
    }
}

impl Length for Fetched {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Fetched {
    type T = Cursor<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(Cursor::new(self.from(start)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let bytes = self.from(start)?;
        if bytes.len() < length {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} were not fetched")));
        }
        Ok(bytes.slice(..length))
    }
}
