//! Rows as lines of JSON in files that rotate by size and age. Lines are those of `stdout`: every column that is set.
//!
//! A batch is acknowledged after its lines are synced. The file survives crashes: a line that was torn off is cut away when
//! the file is opened again (nobody was told that it is there).

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::{
    remote::{
        Answer, BodyCompression, Encoded, Outgoing, Protocol, Rows,
        config::{BatchConfig, Compression, DeliveryConfig, QueueConfig, RetryConfig},
    },
    stdout,
};
use crate::{
    codec::columns::EncodeError,
    component::{Batch, Signals},
    units,
};

/// Bytes at which a file of dead letters is closed and the next begun.
const DEAD_LETTER_BYTES: u64 = 256 << 20;
/// Bytes read at once in search of the last whole line.
const TAIL_BYTES: u64 = 64 << 10;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub inputs: Vec<String>,
    pub path: PathBuf,
    #[serde(default)]
    pub rotate: Rotate,
    #[serde(default)]
    pub batch: BatchConfig,
    #[serde(default)]
    pub queue: QueueConfig,
    #[serde(default)]
    pub retry: RetryConfig,
}

/// When a file is closed and renamed to `NAME-<time>.EXT`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rotate {
    #[serde(deserialize_with = "super::remote::config::bytes")]
    pub bytes: usize,
    #[serde(deserialize_with = "units::optional_duration")]
    pub age: Option<Duration>,
    /// Whether closed files are compressed.
    pub gzip: bool,
}

impl Default for Rotate {
    fn default() -> Self {
        Rotate { bytes: 256 << 20, age: None, gzip: false }
    }
}

impl Config {
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut out = self.delivery().problems();
        if self.path.file_name().is_none() {
            out.push(("path", "expected a file's name".into()));
        }
        if self.rotate.bytes == 0 {
            out.push(("rotate.bytes", "expected more than 0".into()));
        }
        if self.rotate.age.is_some_and(|a| a.is_zero()) {
            out.push(("rotate.age", "expected more than 0".into()));
        }
        out
    }

    pub fn delivery(&self) -> DeliveryConfig {
        DeliveryConfig {
            batch: self.batch.clone(),
            // Lines go in one after the other.
            queue: QueueConfig { requests: 1, ..self.queue.clone() },
            retry: self.retry.clone(),
            dead_letter: None,
        }
    }

    pub fn protocol(&self) -> FileProtocol {
        FileProtocol { file: Arc::new(RowFile::new(self.path.clone(), self.rotate.clone())) }
    }
}

/// Writes lines to a [`RowFile`].
pub struct FileProtocol {
    file: Arc<RowFile>,
}

#[async_trait::async_trait]
impl Protocol for FileProtocol {
    fn signals(&self) -> Signals {
        Signals::ALL
    }

    fn encode(&self, rows: &Rows<'_>) -> Result<Encoded, EncodeError> {
        ndjson(rows)
    }

    fn compression(&self) -> BodyCompression {
        BodyCompression::Chosen(Compression::None)
    }

    async fn send(&self, request: &Outgoing) -> Answer {
        match self.file.append(request.body.clone()).await {
            Ok(()) => Answer::Taken { rejected: 0, message: None },
            Err(e) => {
                Answer::Again { after: None, reason: format!("cannot write {}: {e}", self.file.path.display()) }
            }
        }
    }
}

/// The rows as lines.
pub fn ndjson(rows: &Rows<'_>) -> Result<Encoded, EncodeError> {
    let text = stdout::write_batch(&Batch::new(rows.tenant.clone(), rows.data.clone()))
        .map_err(|e| EncodeError(e.to_string()))?;
    Ok(Encoded { body: text.into_bytes(), ..Encoded::default() })
}

/// A file that is only appended to, whole lines at a time.
pub struct RowFile {
    path: PathBuf,
    rotate: Rotate,
    open: Arc<tokio::sync::Mutex<Option<Open>>>,
}

struct Open {
    file: File,
    len: u64,
    born: SystemTime,
}

impl RowFile {
    pub fn new(path: PathBuf, rotate: Rotate) -> Self {
        RowFile { path, rotate, open: Arc::default() }
    }

    pub fn dead_letters(path: PathBuf) -> Self {
        let bytes = usize::try_from(DEAD_LETTER_BYTES).unwrap_or(usize::MAX);
        RowFile::new(path, Rotate { bytes, ..Rotate::default() })
    }

    /// Appends whole lines and syncs them. On an error none of them is in the file.
    pub async fn append(&self, lines: Bytes) -> io::Result<()> {
        let mut open = self.open.clone().lock_owned().await;
        let (path, rotate) = (self.path.clone(), self.rotate.clone());
        // Awaited at once; if it is not, the file is whole all the same.
        let work = tokio::task::spawn_blocking(move || append(&mut open, &path, &rotate, &lines));
        work.await.map_err(io::Error::other)?
    }
}

fn append(open: &mut Option<Open>, path: &Path, rotate: &Rotate, lines: &[u8]) -> io::Result<()> {
    let now = SystemTime::now();
    let mut current = match open.take() {
        Some(current) => current,
        None => {
            let current = reopen(path)?;
            compress_closed(path, rotate)?;
            current
        }
    };
    let full = current.len > 0 && current.len + lines.len() as u64 > rotate.bytes as u64;
    let old = rotate.age.is_some_and(|a| current.len > 0 && now.duration_since(current.born).is_ok_and(|d| d >= a));
    if full || old {
        drop(current);
        close(path, now)?;
        compress_closed(path, rotate)?;
        current = reopen(path)?;
    }
    let before = current.len;
    let written = current.file.write_all(lines).and_then(|()| current.file.sync_data());
    match written {
        Ok(()) => {
            current.len += lines.len() as u64;
            *open = Some(current);
            Ok(())
        }
        Err(e) => {
            // What was written of it is cut off; should that fail too, the file is opened and looked at anew.
            if current.file.set_len(before).and_then(|()| current.file.sync_data()).is_ok() {
                *open = Some(current);
            }
            Err(e)
        }
    }
}

/// Opens or makes the file, and cuts a torn line off its end.
fn reopen(path: &Path) -> io::Result<Open> {
    let dir = parent(path);
    std::fs::create_dir_all(dir)?;
    let is_new = !path.exists();
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    if is_new {
        File::open(dir)?.sync_all()?;
    }
    let len = file.metadata()?.len();
    let whole = whole_lines(&mut file, len)?;
    if whole < len {
        tracing::warn!(path = %path.display(), bytes = len - whole, "cutting off a line that was not written whole");
        file.set_len(whole)?;
        file.sync_data()?;
    }
    let meta = file.metadata()?;
    let born = meta.created().or_else(|_| meta.modified()).unwrap_or_else(|_| SystemTime::now());
    Ok(Open { file, len: whole, born })
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Bytes up to the last newline.
fn whole_lines(file: &mut File, len: u64) -> io::Result<u64> {
    let mut end = len;
    let mut buffer = Vec::new();
    while end > 0 {
        let from = end.saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(from))?;
        buffer.resize((end - from) as usize, 0);
        file.read_exact(&mut buffer)?;
        if let Some(at) = memchr::memrchr(b'\n', &buffer) {
            return Ok(from + at as u64 + 1);
        }
        end = from;
    }
    Ok(0)
}

fn name_parts(path: &Path) -> (String, String) {
    let part = |p: Option<&std::ffi::OsStr>| p.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    (part(path.file_stem()), part(path.extension()))
}

/// Renames the file to `NAME-<time>.EXT`.
fn close(path: &Path, now: SystemTime) -> io::Result<()> {
    let (stem, extension) = name_parts(path);
    let at = DateTime::<Utc>::from(now);
    for n in 0..10_000 {
        let suffix = if n == 0 { String::new() } else { format!("-{n}") };
        let dot = if extension.is_empty() { "" } else { "." };
        let name = format!("{stem}-{}{suffix}{dot}{extension}", at.format("%Y%m%dT%H%M%S%.3fZ"));
        let target = path.with_file_name(&name);
        let taken = target.exists() || path.with_file_name(format!("{name}.gz")).exists();
        if !taken {
            std::fs::rename(path, &target)?;
            return File::open(parent(path))?.sync_all();
        }
    }
    Err(io::Error::other("too many closed files of the same instant"))
}

/// Compresses closed files that are not compressed yet, also those of a process that ended before it got to it.
fn compress_closed(path: &Path, rotate: &Rotate) -> io::Result<()> {
    if !rotate.gzip {
        return Ok(());
    }
    let (stem, extension) = name_parts(path);
    let (prefix, dot) = (format!("{stem}-2"), if extension.is_empty() { "" } else { "." });
    for entry in std::fs::read_dir(parent(path))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let closed = name.starts_with(&prefix) && name.ends_with(&format!("Z{dot}{extension}"))
            || name.starts_with(&prefix) && name.contains("Z-") && name.ends_with(&format!("{dot}{extension}"));
        if !closed || name.ends_with(".gz") || name.ends_with(".part") {
            continue;
        }
        let (source, part) = (entry.path(), entry.path().with_file_name(format!("{name}.gz.part")));
        let mut encoder = flate2::write::GzEncoder::new(File::create(&part)?, flate2::Compression::default());
        io::copy(&mut File::open(&source)?, &mut encoder)?;
        encoder.finish()?.sync_all()?;
        std::fs::rename(&part, entry.path().with_file_name(format!("{name}.gz")))?;
        File::open(parent(path))?.sync_all()?;
        std::fs::remove_file(&source)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_torn_line_is_cut_off_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/rows.ndjson");
        let rows = RowFile::new(path.clone(), Rotate::default());
        rows.append(Bytes::from_static(b"{\"a\":1}\n")).await.unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"b\":").unwrap();
        let again = RowFile::new(path.clone(), Rotate::default());
        again.append(Bytes::from_static(b"{\"c\":3}\n")).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"a\":1}\n{\"c\":3}\n");
    }

    #[tokio::test]
    async fn files_rotate_by_size_and_closed_ones_are_compressed_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.ndjson");
        let rotate = Rotate { bytes: 20, age: None, gzip: false };
        let rows = RowFile::new(path.clone(), rotate.clone());
        for _ in 0..4 {
            rows.append(Bytes::from_static(b"{\"n\":12345}\n")).await.unwrap();
        }
        assert_eq!(files(dir.path()).len(), 4, "{:?}", files(dir.path()));
        let again = RowFile::new(path.clone(), Rotate { gzip: true, ..rotate });
        again.append(Bytes::from_static(b"{\"n\":1}\n")).await.unwrap();
        let names = files(dir.path());
        assert_eq!(names.iter().filter(|n| n.ends_with(".ndjson.gz")).count(), 3, "{names:?}");
        let mut lines = 0;
        for name in names {
            let bytes = std::fs::read(dir.path().join(&name)).unwrap();
            let mut text = String::new();
            if name.ends_with(".gz") {
                flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
            } else {
                text = String::from_utf8(bytes).unwrap();
            }
            lines += text.lines().count();
        }
        assert_eq!(lines, 5);
    }
}
