//! What makes a file the same file: device, inode, and a hash of how it begins.
//!
//! The hash covers the first line, at most [`HEAD_BYTES`]. A file that only grows keeps it; a reused inode or a file
//! truncated and written anew has another one, unless it begins with the very same bytes. A file that has neither a whole
//! line nor [`HEAD_BYTES`] bytes yet has no fingerprint, and nothing of it needs one: no record of it is complete.

use std::{fs::Metadata, os::unix::fs::MetadataExt};

/// Most bytes of a file that are hashed.
pub const HEAD_BYTES: usize = 256;

/// Device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    pub dev: u64,
    pub ino: u64,
}

impl From<&Metadata> for FileId {
    fn from(m: &Metadata) -> Self {
        FileId { dev: m.dev(), ino: m.ino() }
    }
}

/// The beginning of a file: how many bytes, and their xxh3-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Head {
    pub len: usize,
    pub hash: u64,
}

impl Head {
    /// `bytes`: the first bytes of a file, as many as there are up to [`HEAD_BYTES`].
    pub fn of(bytes: &[u8]) -> Option<Head> {
        let bytes = &bytes[..bytes.len().min(HEAD_BYTES)];
        match memchr::memchr(b'\n', bytes) {
            Some(n) => Some(Head::first(bytes, n + 1)),
            None if bytes.len() == HEAD_BYTES => Some(Head::first(bytes, HEAD_BYTES)),
            None => None,
        }
    }

    /// The fingerprint of the first `len` bytes, whatever they hold.
    pub fn first(bytes: &[u8], len: usize) -> Head {
        Head { len, hash: xxhash_rust::xxh3::xxh3_64(&bytes[..len]) }
    }

    /// Whether a file that begins with `bytes` may be the file of this fingerprint.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        bytes.len() >= self.len && Head::first(bytes, self.len) == *self
    }
}

/// Under this name a file's position is kept.
pub fn key(id: FileId, head: Head) -> String {
    format!("file:{:x}:{:x}:{:x}:{:016x}", id.dev, id.ino, head.len, head.hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_keeps_the_fingerprint_and_other_first_bytes_change_it() {
        assert_eq!(Head::of(b"first"), None);
        let head = Head::of(b"first\n").unwrap();
        assert_eq!(Head::of(b"first\nsecond\n"), Some(head));
        assert_ne!(Head::of(b"First\n"), Some(head));
        assert!(head.matches(b"first\nand more") && !head.matches(b"firs"));
        let long = [b'x'; 2 * HEAD_BYTES];
        assert_eq!(Head::of(&long), Head::of(&long[..HEAD_BYTES]));
    }
}
