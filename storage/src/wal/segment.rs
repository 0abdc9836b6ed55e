//! A segment file: its name, its header, and batches read back from it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::array::RecordBatch;
use parking_lot::Mutex;

use super::payload::{BatchMeta, DecodeError, decode_batch};
use crate::vfs::{Vfs, VfsFile};

pub(crate) const FORMAT_VERSION: u16 = 2;
const MAGIC: [u8; 8] = *b"SLWALSEG";

/// The header is written twice, a sector each, because without its salt no record of the segment can be believed.
const HEADER_COPY_BYTES: usize = 512;
pub(crate) const HEADER_BYTES: usize = 2 * HEADER_COPY_BYTES;
const HEADER_USED: usize = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub number: u64,
    /// No record in here has a lower sequence number.
    pub first_seq: u64,
    pub salt: u64,
    /// The segment written before this one (0: none), and how many of its bytes count. What lies beyond was refused.
    pub previous: u64,
    pub previous_len: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderState {
    Good(Header),
    Newer(u16),
    Bad,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut copy = [0; HEADER_COPY_BYTES];
        copy[..8].copy_from_slice(&MAGIC);
        copy[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        let words = [self.number, self.first_seq, self.salt, self.previous, self.previous_len];
        for (i, w) in words.iter().enumerate() {
            copy[16 + 8 * i..24 + 8 * i].copy_from_slice(&w.to_le_bytes());
        }
        let crc = crc32c::crc32c(&copy[..HEADER_USED - 4]);
        copy[HEADER_USED - 4..HEADER_USED].copy_from_slice(&crc.to_le_bytes());
        let mut out = [0; HEADER_BYTES];
        out[..HEADER_COPY_BYTES].copy_from_slice(&copy);
        out[HEADER_COPY_BYTES..].copy_from_slice(&copy);
        out
    }

    /// From the first bytes of a file, possibly fewer than [`HEADER_BYTES`].
    pub fn decode(bytes: &[u8]) -> HeaderState {
        let one = |copy: &[u8]| -> HeaderState {
            let Some(c) = copy.first_chunk::<HEADER_USED>() else { return HeaderState::Bad };
            let crc = u32::from_le_bytes([c[56], c[57], c[58], c[59]]);
            if c[..8] != MAGIC || crc32c::crc32c(&c[..HEADER_USED - 4]) != crc {
                return HeaderState::Bad;
            }
            let version = u16::from_le_bytes([c[8], c[9]]);
            if version > FORMAT_VERSION {
                return HeaderState::Newer(version);
            }
            let word = |i: usize| u64::from_le_bytes(c[16 + 8 * i..24 + 8 * i].try_into().expect("8 bytes"));
            HeaderState::Good(Header {
                number: word(0),
                first_seq: word(1),
                salt: word(2),
                previous: word(3),
                previous_len: word(4),
            })
        };
        match one(bytes) {
            HeaderState::Bad => one(bytes.get(HEADER_COPY_BYTES..).unwrap_or_default()),
            found => found,
        }
    }
}

pub(crate) fn file_name(number: u64) -> String {
    format!("{number:08}.seg")
}

/// `None` for names that are not a segment's.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    if digits.len() < 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|n| file_name(*n) == name)
}

/// A segment that batches can be read from, for as long as someone holds one of its batches: it is opened at the first
/// read, and before it is removed.
pub struct Segment {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) path: PathBuf,
    pub(crate) number: u64,
    file: Mutex<Option<Arc<dyn VfsFile>>>,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({})", self.number)
    }
}

impl Segment {
    pub(crate) fn new(vfs: Arc<dyn Vfs>, dir: &Path, number: u64) -> Arc<Self> {
        Arc::new(Segment { vfs, path: dir.join(file_name(number)), number, file: Mutex::new(None) })
    }

    /// The open file; kept open from then on.
    pub(crate) fn pin(&self) -> io::Result<Arc<dyn VfsFile>> {
        let mut file = self.file.lock();
        if let Some(f) = &*file {
            return Ok(f.clone());
        }
        let f = self.vfs.open_read(&self.path)?;
        *file = Some(f.clone());
        Ok(f)
    }
}

/// Where a batch rests in the log. Holding it keeps the bytes readable even after the segment was released.
#[derive(Clone, Debug)]
pub struct BatchLocation {
    pub segment: Arc<Segment>,
    /// Of the payload in the segment.
    pub offset: u64,
    pub meta: BatchMeta,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read batch at {offset} of {path}")]
    Io { path: PathBuf, offset: u64, source: Arc<io::Error> },
    #[error("batch at {offset} of {path} cannot be used")]
    Decode { path: PathBuf, offset: u64, source: DecodeError },
}

impl BatchLocation {
    /// Reads, checks and decodes the batch. Blocks on the disk.
    pub fn read(&self) -> Result<RecordBatch, ReadError> {
        let (path, offset) = (&self.segment.path, self.offset);
        let io = |e| ReadError::Io { path: path.clone(), offset, source: Arc::new(e) };
        let decode = |source| ReadError::Decode { path: path.clone(), offset, source };
        let file = self.segment.pin().map_err(io)?;
        let mut payload = vec![0; self.meta.payload_len as usize];
        file.read_exact_at(&mut payload, offset).map_err(io)?;
        if crc32c::crc32c(&payload) != self.meta.payload_crc {
            return Err(decode(DecodeError::Damaged("checksum".to_owned())));
        }
        decode_batch(&self.meta, payload).map_err(decode)
    }
}
