//! The blocking form of an `object_store::ObjectStore`.
//!
//! A bucket's answers are late, lost, cut short or refused, so: what is read is as long as it must be; a write that gave an
//! error may still come into effect ([`Objects::may_land_late`]); an upload whose last answer was lost is looked up.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Write},
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode as StorePutMode, PutOptions,
    PutPayload, path::Path,
};
use tokio::{runtime::Handle, task::JoinHandle};

use super::{ObjectInfo, ObjectWriter, Objects, PutMode, Remote};
use crate::{model::Timestamp, store::wait};

/// Objects up to this size are put at once; larger ones go in parts of it, above the 5 MiB that buckets ask for at least.
pub const UPLOAD_PART_BYTES: usize = 8 << 20;

/// Parts of one upload that are under way at once. An upload holds at most one more than this in memory.
const UPLOAD_PARTS_IN_FLIGHT: usize = 3;

/// Ranges of one object that are fetched at once.
const RANGES_IN_FLIGHT: usize = 8;

/// What went to the store and came from it.
#[derive(Debug, Default)]
pub struct ObjectStats {
    pub gets: AtomicU64,
    pub get_bytes: AtomicU64,
    pub puts: AtomicU64,
    pub put_bytes: AtomicU64,
    pub lists: AtomicU64,
    pub deletes: AtomicU64,
    pub failures: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// The store does not answer, or not as it should; later it may.
#[derive(Debug)]
pub struct StoreAway {
    pub store: String,
    source: Error,
}

impl fmt::Display for StoreAway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "store {} does not answer: {}", self.store, self.source)
    }
}

impl std::error::Error for StoreAway {}

/// The name of the store that did not answer, if that is what happened.
pub fn away(e: &io::Error) -> Option<&StoreAway> {
    e.get_ref()?.downcast_ref()
}

/// Threads for the requests, so that they go on whoever waits for them.
#[derive(Debug)]
struct IoThreads(Option<tokio::runtime::Runtime>);

impl Drop for IoThreads {
    fn drop(&mut self) {
        // The last holder may be an async task, where a runtime must not be waited for.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

const IO_THREADS: usize = 2;

/// Calls the store on its own threads, or a given runtime, and waits without a runtime: callers block.
#[derive(Clone, Debug)]
pub struct Bridged {
    name: Arc<str>,
    store: Arc<dyn ObjectStore>,
    stats: Arc<ObjectStats>,
    /// Why nothing may be written any more.
    refused: Arc<OnceLock<String>>,
    runtime: Handle,
    _threads: Option<Arc<IoThreads>>,
}

impl Bridged {
    pub fn new(store: Arc<dyn ObjectStore>, runtime: Handle) -> Self {
        Bridged {
            name: store.to_string().into(),
            store,
            stats: Arc::default(),
            refused: Arc::default(),
            runtime,
            _threads: None,
        }
    }

    /// With threads of its own.
    pub fn start(remote: &Remote) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(IO_THREADS)
            .thread_name("store-io")
            .enable_all()
            .build()?;
        Ok(Bridged {
            name: remote.name.as_str().into(),
            store: remote.store.clone(),
            stats: Arc::default(),
            refused: Arc::default(),
            runtime: runtime.handle().clone(),
            _threads: Some(Arc::new(IoThreads(Some(runtime)))),
        })
    }

    pub fn stats(&self) -> Arc<ObjectStats> {
        self.stats.clone()
    }

    /// From now on every write fails with this reason.
    pub fn refuse(&self, reason: String) {
        let _ = self.refused.set(reason);
    }

    fn check_writable(&self) -> io::Result<()> {
        match self.refused.get() {
            None => Ok(()),
            Some(reason) => {
                Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("store {}: {reason}", self.name)))
            }
        }
    }

    fn run<T>(&self, call: impl Future<Output = Result<T, Error>>) -> io::Result<T> {
        let _in = self.runtime.enter();
        wait(call).map_err(|e| self.error(e))
    }

    fn error(&self, e: Error) -> io::Error {
        let kind = match &e {
            Error::NotFound { .. } => io::ErrorKind::NotFound,
            Error::AlreadyExists { .. } | Error::Precondition { .. } => io::ErrorKind::AlreadyExists,
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
            Error::InvalidPath { .. } => io::ErrorKind::InvalidInput,
            Error::NotSupported { .. } | Error::NotImplemented { .. } => io::ErrorKind::Unsupported,
            _ => {
                add(&self.stats.failures, 1);
                return io::Error::other(StoreAway { store: self.name.to_string(), source: e });
            }
        };
        io::Error::new(kind, e)
    }

    /// Bytes and the tag by which [`Bridged::replace`] knows them.
    pub fn get_tagged(&self, p: &str) -> io::Result<(Bytes, Option<String>)> {
        let p = path(p)?;
        add(&self.stats.gets, 1);
        self.run(async {
            let got = self.store.get(&p).await?;
            let tag = got.meta.e_tag.clone();
            Ok((whole(got).await?, tag))
        })
    }

    /// Replaces an object that is still the one with this tag, else [`io::ErrorKind::AlreadyExists`]. Gives the new tag.
    pub fn replace(&self, p: &str, bytes: &[u8], tag: Option<String>) -> io::Result<Option<String>> {
        let p = path(p)?;
        let mode = StorePutMode::Update(object_store::UpdateVersion { e_tag: tag, version: None });
        let payload = PutPayload::from(bytes.to_vec());
        add(&self.stats.puts, 1);
        self.run(self.store.put_opts(&p, payload, PutOptions::from(mode))).map(|put| put.e_tag)
    }

    async fn range(&self, p: &Path, range: Range<u64>) -> Result<Bytes, Error> {
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        add(&self.stats.gets, 1);
        let bytes = whole(self.store.get_opts(p, options).await?).await?;
        add(&self.stats.get_bytes, bytes.len() as u64);
        Ok(bytes)
    }
}

/// The bytes of an answer, all of them.
async fn whole(got: object_store::GetResult) -> Result<Bytes, Error> {
    let wanted = got.range.end - got.range.start;
    let bytes = got.bytes().await?;
    if bytes.len() as u64 != wanted {
        let text = format!("{} bytes came, {wanted} were announced", bytes.len());
        return Err(Error::Generic { store: "object", source: text.into() });
    }
    Ok(bytes)
}

fn path(p: &str) -> io::Result<Path> {
    Path::parse(p).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

fn info(meta: ObjectMeta) -> ObjectInfo {
    let modified = Timestamp(meta.last_modified.timestamp_nanos_opt().unwrap_or(0));
    ObjectInfo { path: meta.location.to_string(), size: meta.size, modified }
}

impl Objects for Bridged {
    fn put(&self, p: &str, bytes: &[u8], mode: PutMode) -> io::Result<()> {
        self.check_writable()?;
        let mode = match mode {
            PutMode::Create => StorePutMode::Create,
            PutMode::Overwrite => StorePutMode::Overwrite,
        };
        let payload = PutPayload::from(bytes.to_vec());
        let p = path(p)?;
        add(&self.stats.puts, 1);
        add(&self.stats.put_bytes, bytes.len() as u64);
        self.run(self.store.put_opts(&p, payload, PutOptions::from(mode))).map(|_| ())
    }

    fn get(&self, p: &str) -> io::Result<Bytes> {
        let bytes = self.get_tagged(p)?.0;
        add(&self.stats.get_bytes, bytes.len() as u64);
        Ok(bytes)
    }

    fn get_range(&self, p: &str, range: Range<u64>) -> io::Result<Bytes> {
        self.run(self.range(&path(p)?, range))
    }

    fn get_ranges(&self, p: &str, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>> {
        let p = path(p)?;
        let calls = futures::stream::iter(ranges.iter().cloned().map(|r| self.range(&p, r)));
        self.run(calls.buffered(RANGES_IN_FLIGHT).try_collect())
    }

    fn head(&self, p: &str) -> io::Result<ObjectInfo> {
        self.run(self.store.head(&path(p)?)).map(info)
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<ObjectInfo>> {
        let prefix = if prefix.is_empty() { Path::default() } else { path(prefix)? };
        add(&self.stats.lists, 1);
        let list = self.store.list(Some(&prefix)).map_ok(info).try_collect::<Vec<_>>();
        let mut all = self.run(list)?;
        all.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(all)
    }

    fn delete(&self, p: &str) -> io::Result<()> {
        self.check_writable()?;
        let p = path(p)?;
        add(&self.stats.deletes, 1);
        self.run(self.store.delete(&p))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check_writable()?;
        let (from, to) = (path(from)?, path(to)?);
        self.run(self.store.rename(&from, &to))
    }

    fn settle(&self, _path: &str) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, p: &str) -> io::Result<Box<dyn ObjectWriter>> {
        let (at, name) = (path(p)?, p.to_owned());
        let part = Vec::new();
        Ok(Box::new(Upload {
            bridge: self.clone(),
            name,
            at,
            upload: None,
            sent: VecDeque::new(),
            part,
            written: 0,
            failed: false,
        }))
    }

    fn may_land_late(&self) -> bool {
        true
    }
}

/// An object on its way: in memory while it is small, else a multipart upload with a few parts in flight.
struct Upload {
    bridge: Bridged,
    name: String,
    at: Path,
    upload: Option<Box<dyn object_store::MultipartUpload>>,
    sent: VecDeque<JoinHandle<Result<(), Error>>>,
    part: Vec<u8>,
    written: u64,
    failed: bool,
}

impl Upload {
    /// Starts sending the part that was gathered.
    fn send(&mut self) -> io::Result<()> {
        self.bridge.check_writable()?;
        if self.upload.is_none() {
            add(&self.bridge.stats.puts, 1);
            self.upload = Some(self.bridge.run(self.bridge.store.put_multipart(&self.at))?);
        }
        while self.sent.len() >= UPLOAD_PARTS_IN_FLIGHT {
            self.receive()?;
        }
        let part = std::mem::take(&mut self.part);
        add(&self.bridge.stats.puts, 1);
        add(&self.bridge.stats.put_bytes, part.len() as u64);
        if let Some(upload) = &mut self.upload {
            let call = upload.put_part(PutPayload::from(part));
            // Waited for by `receive`, or ended by `drop`.
            #[allow(clippy::disallowed_methods, reason = "its handle is in `sent`")]
            self.sent.push_back(self.bridge.runtime.spawn(call));
        }
        Ok(())
    }

    /// Waits for the oldest part.
    fn receive(&mut self) -> io::Result<()> {
        match self.sent.pop_front() {
            None => Ok(()),
            Some(sent) => wait(sent).map_err(io::Error::other)?.map_err(|e| self.bridge.error(e)),
        }
    }

    fn finish_upload(&mut self) -> io::Result<()> {
        if self.upload.is_none() && self.part.len() < UPLOAD_PART_BYTES {
            let part = std::mem::take(&mut self.part);
            return self.bridge.put(&self.name, &part, PutMode::Overwrite);
        }
        if !self.part.is_empty() {
            self.send()?;
        }
        while !self.sent.is_empty() {
            self.receive()?;
        }
        let Some(mut upload) = self.upload.take() else { return Ok(()) };
        add(&self.bridge.stats.puts, 1);
        let Err(e) = self.bridge.run(upload.complete()) else { return Ok(()) };
        // The answer may have been lost, or this was the second time of asking: then the object is there, whole.
        if self.bridge.head(&self.name).is_ok_and(|found| found.size == self.written) {
            return Ok(());
        }
        self.upload = Some(upload);
        Err(e)
    }
}

impl Write for Upload {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other("an earlier part of the upload failed"));
        }
        // Parts of equal size, as some stores want them.
        let n = buf.len().min(UPLOAD_PART_BYTES - self.part.len());
        self.part.extend_from_slice(&buf[..n]);
        self.written += n as u64;
        if self.part.len() >= UPLOAD_PART_BYTES
            && let Err(e) = self.send()
        {
            self.failed = true;
            return Err(e);
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ObjectWriter for Upload {
    fn finish(mut self: Box<Self>) -> io::Result<u64> {
        if self.failed {
            return Err(io::Error::other("an earlier part of the upload failed"));
        }
        self.finish_upload()?;
        Ok(self.written)
    }

    fn written(&self) -> u64 {
        self.written
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.sent.drain(..).for_each(|sent| sent.abort());
        if let Some(mut upload) = self.upload.take() {
            // Best effort: a bucket drops unfinished uploads by its own rule.
            if let Err(e) = self.bridge.run(upload.abort()) {
                tracing::debug!(path = self.name, error = %e, "cannot abort an upload");
            }
        }
    }
}
