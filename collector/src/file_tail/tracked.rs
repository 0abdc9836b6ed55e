//! One file that is being read, and what is asked of its descriptor.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use super::{
    discover::Target,
    filling::RowLabels,
    fingerprint::{FileId, HEAD_BYTES, Head},
    reader::Wait,
};

pub(super) struct Tracked {
    pub target: Arc<Target>,
    pub labels: RowLabels,
    pub path: PathBuf,
    pub id: FileId,
    /// `None`: closed at its end.
    pub file: Option<File>,
    /// Fingerprint and key of what the file holds now; known from its first whole line on.
    pub known: Option<(Head, Arc<str>)>,
    /// Whether `offset` is where to read, or has still to be asked for.
    pub resolved: bool,
    /// Everything before is in a batch.
    pub offset: u64,
    pub size: u64,
    /// Modification time, seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Since when the reader waits at `offset`, and for what.
    pub waiting: Option<(u64, Wait, Instant)>,
    /// Latest growth seen.
    pub grown: Instant,
    pub rotated: bool,
    pub deleted: bool,
    /// Since when no discovery names it.
    pub unseen: Option<Instant>,
    pub dirty: bool,
    /// The file this one may be a copy of.
    pub copy_of: Option<FileId>,
}

/// Whether the file still begins as when it was identified.
pub(super) fn begins_as_known(f: &Tracked, file: &File) -> bool {
    let mut head = [0; HEAD_BYTES];
    match (&f.known, read_full(file, &mut head, 0)) {
        (Some((h, _)), Ok(n)) => h.matches(&head[..n]),
        _ => true,
    }
}

pub(super) fn modified(meta: &std::fs::Metadata) -> (i64, i64) {
    (meta.mtime(), meta.mtime_nsec())
}

/// Reads until `buffer` is full or the file ends.
pub(super) fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match file.read_at(&mut buffer[n..], offset + n as u64) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}
