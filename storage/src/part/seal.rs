//! Checksums of a part's bytes. Parquet has a place for page checksums, but the writer in use leaves it empty.

use std::io::{self, Write};

use super::PartError;

/// What one checksum covers: small enough that a read of one page does not fetch much more than the page.
pub(super) const BLOCK_BYTES: usize = 16 << 10;

/// Precedes, in the footer, where the tail starts and its checksum: 16 hex digits, `:`, 8 hex digits.
const TAIL_MARK: &[u8] = b"sightline-tail:";
const TAIL_VALUE_LEN: usize = 16 + 1 + 8;

/// Key-value text for a tail that starts at `start`, its checksum still zeros.
pub(super) fn tail_value(start: u64) -> String {
    format!("sightline-tail:{start:016x}:00000000")
}

/// Sums what it passes on. After [`Sealing::begin_tail`] it holds bytes back until [`Sealing::finish`] has put their
/// checksum among them.
pub(super) struct Sealing<W> {
    out: W,
    crc: u32,
    filled: usize,
    crcs: Vec<u32>,
    written: u64,
    tail: Option<Vec<u8>>,
}

impl<W: Write> Sealing<W> {
    pub(super) fn new(out: W) -> Self {
        Sealing { out, crc: 0, filled: 0, crcs: Vec::new(), written: 0, tail: None }
    }

    /// Checksums of everything written so far, the last block being what there is of it.
    pub(super) fn sums(&self) -> Vec<u32> {
        let mut out = self.crcs.clone();
        if self.filled > 0 {
            out.push(self.crc);
        }
        out
    }

    pub(super) fn begin_tail(&mut self) {
        self.tail = Some(Vec::new());
    }

    /// Writes the tail. Answers the length of the file.
    pub(super) fn finish(mut self) -> io::Result<(W, u64)> {
        let mut tail = self.tail.take().unwrap_or_default();
        if let Some(at) = tail_at(&tail) {
            let crc = crc32c::crc32c(&tail);
            tail[at + 17..at + TAIL_VALUE_LEN].copy_from_slice(format!("{crc:08x}").as_bytes());
        }
        self.out.write_all(&tail)?;
        self.out.flush()?;
        Ok((self.out, self.written + tail.len() as u64))
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(tail) = &mut self.tail {
            tail.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        let n = self.out.write(bytes)?;
        let mut rest = &bytes[..n];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES - self.filled));
            self.crc = crc32c::crc32c_append(self.crc, now);
            self.filled += now.len();
            if self.filled == BLOCK_BYTES {
                self.crcs.push(std::mem::take(&mut self.crc));
                self.filled = 0;
            }
            rest = later;
        }
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.tail.is_some() { Ok(()) } else { self.out.flush() }
    }
}

/// Where the value after the last mark starts.
fn tail_at(footer: &[u8]) -> Option<usize> {
    let at = memchr::memmem::rfind(footer, TAIL_MARK)? + TAIL_MARK.len();
    (at + TAIL_VALUE_LEN <= footer.len()).then_some(at)
}

/// Start of the tail that `footer` (the end of a file) names; `None` for files without one.
pub(super) fn tail_start(footer: &[u8]) -> Option<u64> {
    let at = tail_at(footer)?;
    u64::from_str_radix(std::str::from_utf8(&footer[at..at + 16]).ok()?, 16).ok()
}

/// `tail`: from [`tail_start`] to the end of the file.
pub(super) fn verify_tail(tail: &[u8]) -> Result<(), PartError> {
    let damaged = || PartError::corrupt("checksum of the footer does not match");
    let at = tail_at(tail).ok_or_else(damaged)?;
    let digits = at + 17..at + TAIL_VALUE_LEN;
    let text = std::str::from_utf8(&tail[digits.clone()]).map_err(|_| damaged())?;
    let expected = u32::from_str_radix(text, 16).map_err(|_| damaged())?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&tail[..digits.start]), b"00000000");
    if crc32c::crc32c_append(crc, &tail[digits.end..]) == expected { Ok(()) } else { Err(damaged()) }
}
