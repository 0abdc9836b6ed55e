//! [`LocalStore`] as an `object_store::ObjectStore`: its blocking calls, moved off the async threads.

use std::{fmt, io, ops::Range};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode as StorePutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    RenameOptions, RenameTargetMode, Result, UploadPart, path::Path,
};

use super::{LocalStore, ObjectInfo, ObjectWriter, Objects, PutMode};

const STORE: &str = "local";

/// Bytes of one piece of a streamed answer.
const STREAM_BYTES: u64 = 1 << 20;

/// Its own type, so that no call can mean both forms.
#[derive(Clone, Debug)]
pub struct AsyncLocal(LocalStore);

impl From<LocalStore> for AsyncLocal {
    fn from(store: LocalStore) -> Self {
        AsyncLocal(store)
    }
}

impl fmt::Display for AsyncLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "folder {}", self.0.root().display())
    }
}

fn error(path: &str, source: io::Error) -> Error {
    let (path, source): (String, Box<dyn std::error::Error + Send + Sync>) = (path.to_owned(), Box::new(source));
    match source.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => Error::NotFound { path, source },
        Some(io::ErrorKind::AlreadyExists) => Error::AlreadyExists { path, source },
        Some(io::ErrorKind::PermissionDenied) => Error::PermissionDenied { path, source },
        _ => Error::Generic { store: STORE, source },
    }
}

fn unsupported(what: &str) -> Error {
    Error::NotSupported { source: what.to_owned().into() }
}

fn meta(info: &ObjectInfo) -> ObjectMeta {
    ObjectMeta {
        location: Path::from(info.path.as_str()),
        last_modified: chrono::DateTime::from_timestamp_nanos(info.modified.nanos()),
        size: info.size,
        // Objects never change once written, but for the few that are replaced whole.
        e_tag: Some(format!("{:x}-{:x}", info.modified.nanos(), info.size)),
        version: None,
    }
}

impl AsyncLocal {
    /// Runs a blocking call on a thread for them.
    async fn blocking<T: Send + 'static>(
        &self,
        path: &str,
        call: impl FnOnce(&LocalStore, &str) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (store, path) = (self.0.clone(), path.to_owned());
        tokio::task::spawn_blocking(move || call(&store, &path).map_err(|e| error(&path, e)))
            .await
            .map_err(|e| Error::Generic { store: STORE, source: Box::new(e) })?
    }
}

#[async_trait]
impl ObjectStore for AsyncLocal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let mode = match opts.mode {
            StorePutMode::Create => PutMode::Create,
            StorePutMode::Overwrite => PutMode::Overwrite,
            StorePutMode::Update(_) => return Err(unsupported("conditional update of an object")),
        };
        let bytes = Bytes::from(payload);
        self.blocking(location.as_ref(), move |s, p| s.put(p, &bytes, mode)).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let writer = self.blocking(location.as_ref(), |s, p| s.create(p)).await?;
        let state = std::sync::Arc::new(parking_lot::Mutex::new(Upload { writer: Some(writer), failed: false }));
        Ok(Box::new(LocalUpload { store: self.clone(), path: location.to_string(), state, last: None }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let info = self.blocking(location.as_ref(), |s, p| s.head(p)).await?;
        let meta = meta(&info);
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            _ if options.head => 0..0,
            None => 0..meta.size,
            Some(r) => checked(r, meta.size)?,
        };
        let store = self.clone();
        let path = info.path;
        let pieces = stream::try_unfold(range.start, {
            let end = range.end;
            move |at| {
                let (store, path) = (store.clone(), path.clone());
                async move {
                    if at >= end {
                        return Ok(None);
                    }
                    let to = end.min(at + STREAM_BYTES);
                    let bytes = store.blocking(&path, move |s, p| s.get_range(p, at..to)).await?;
                    // A shorter answer means that the object was replaced meanwhile.
                    if bytes.len() as u64 != to - at {
                        return Err(error(&path, io::ErrorKind::UnexpectedEof.into()));
                    }
                    Ok(Some((bytes, to)))
                }
            }
        });
        Ok(GetResult {
            payload: GetResultPayload::Stream(pieces.boxed()),
            meta,
            range,
            attributes: object_store::Attributes::default(),
        })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let ranges = ranges.to_vec();
        self.blocking(location.as_ref(), move |s, p| ranges.into_iter().map(|r| s.get_range(p, r)).collect()).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .and_then(move |location| {
                let store = store.clone();
                async move {
                    store.blocking(location.as_ref(), |s, p| s.delete(p)).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let store = self.clone();
        let prefix = prefix.map(|p| p.to_string()).unwrap_or_default();
        stream::once(async move {
            let found = store.blocking(&prefix, |s, p| s.list(p)).await?;
            Ok::<_, Error>(stream::iter(found.iter().map(|i| Ok(meta(i))).collect::<Vec<_>>()))
        })
        .try_flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let all: Vec<ObjectMeta> = self.list(prefix).try_collect().await?;
        let root = Path::default();
        let prefix = prefix.unwrap_or(&root);
        let (mut common_prefixes, mut objects) = (std::collections::BTreeSet::new(), Vec::new());
        for m in all {
            let mut rest = m.location.prefix_match(prefix).into_iter().flatten();
            match (rest.next(), rest.next()) {
                (Some(folder), Some(_)) => {
                    let folder = prefix.clone().join(folder);
                    common_prefixes.insert(folder);
                }
                _ => {
                    drop(rest);
                    objects.push(m);
                }
            }
        }
        Ok(ListResult { common_prefixes: common_prefixes.into_iter().collect(), objects })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let mode = match options.mode {
            CopyMode::Create => PutMode::Create,
            CopyMode::Overwrite => PutMode::Overwrite,
        };
        let to = to.to_string();
        self.blocking(from.as_ref(), move |s, from| {
            let bytes = s.get(from)?;
            s.put(&to, &bytes, mode)
        })
        .await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let to = to.to_string();
        self.blocking(from.as_ref(), move |s, from| match options.target_mode {
            RenameTargetMode::Overwrite => s.rename(from, &to),
            RenameTargetMode::Create => s.rename_new(from, &to),
        })
        .await
    }
}

fn checked(range: &GetRange, size: u64) -> Result<Range<u64>> {
    range.as_range(size).map_err(|e| Error::Generic { store: STORE, source: Box::new(e) })
}

/// Parts of an upload go to one file, in the order in which they were put.
struct LocalUpload {
    store: AsyncLocal,
    path: String,
    state: std::sync::Arc<parking_lot::Mutex<Upload>>,
    /// Ends when the part before is written.
    last: Option<tokio::sync::oneshot::Receiver<()>>,
}

struct Upload {
    writer: Option<Box<dyn ObjectWriter>>,
    failed: bool,
}

impl fmt::Debug for LocalUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "upload of {}", self.path)
    }
}

#[async_trait]
impl MultipartUpload for LocalUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (done, next) = tokio::sync::oneshot::channel();
        let before = self.last.replace(next);
        let (store, path, state) = (self.store.clone(), self.path.clone(), self.state.clone());
        Box::pin(async move {
            if let Some(before) = before {
                // A part whose future was dropped breaks the chain: its sender goes without a word.
                if before.await.is_err() {
                    state.lock().failed = true;
                }
            }
            let written = store
                .blocking(&path, move |_, _| {
                    let mut state = state.lock();
                    let write = |state: &mut Upload| {
                        let failed = state.failed;
                        let writer = state.writer.as_mut().filter(|_| !failed);
                        let writer = writer.ok_or_else(|| io::Error::other("an earlier part of it failed"))?;
                        data.iter().try_for_each(|b| io::Write::write_all(writer, b))
                    };
                    let written = write(&mut state);
                    state.failed |= written.is_err();
                    written
                })
                .await;
            let _ = done.send(());
            written
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let failed = match self.last.take() {
            Some(last) => last.await.is_err(),
            None => false,
        };
        let state = self.state.clone();
        self.blocking_finish(state, failed).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> Result<()> {
        self.state.lock().writer = None;
        Ok(())
    }
}

impl LocalUpload {
    async fn blocking_finish(&self, state: std::sync::Arc<parking_lot::Mutex<Upload>>, failed: bool) -> Result<()> {
        self.store
            .blocking(&self.path, move |_, _| {
                let mut state = state.lock();
                let writer = state.writer.take().filter(|_| !failed && !state.failed);
                writer.ok_or_else(|| io::Error::other("a part of the upload failed"))?.finish().map(|_| ())
            })
            .await
    }
}
