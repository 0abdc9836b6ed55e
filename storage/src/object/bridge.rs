//! The blocking form of an `object_store::ObjectStore`.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode as StorePutMode, PutOptions, PutPayload, path::Path,
};
use tokio::runtime::Handle;

use super::{ObjectInfo, ObjectWriter, Objects, PutMode};
use crate::model::Timestamp;

/// Calls the store on `runtime` and waits. Must not be used on that runtime's async threads.
#[derive(Debug)]
pub struct Bridged {
    store: Arc<dyn ObjectStore>,
    runtime: Handle,
}

impl Bridged {
    pub fn new(store: Arc<dyn ObjectStore>, runtime: Handle) -> Self {
        Bridged { store, runtime }
    }
}

fn io_error(e: Error) -> io::Error {
    let kind = match &e {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        Error::InvalidPath { .. } => io::ErrorKind::InvalidInput,
        Error::NotSupported { .. } | Error::NotImplemented { .. } => io::ErrorKind::Unsupported,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, e)
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
        let mode = match mode {
            PutMode::Create => StorePutMode::Create,
            PutMode::Overwrite => StorePutMode::Overwrite,
        };
        let payload = PutPayload::from(bytes.to_vec());
        let p = path(p)?;
        self.runtime.block_on(self.store.put_opts(&p, payload, PutOptions::from(mode))).map(|_| ()).map_err(io_error)
    }

    fn get(&self, p: &str) -> io::Result<Bytes> {
        let p = path(p)?;
        self.runtime.block_on(async { self.store.get(&p).await?.bytes().await }).map_err(io_error)
    }

    fn get_range(&self, p: &str, range: Range<u64>) -> io::Result<Bytes> {
        self.runtime.block_on(self.store.get_range(&path(p)?, range)).map_err(io_error)
    }

    fn head(&self, p: &str) -> io::Result<ObjectInfo> {
        self.runtime.block_on(self.store.head(&path(p)?)).map(info).map_err(io_error)
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<ObjectInfo>> {
        let prefix = path(prefix)?;
        let list = self.store.list(Some(&prefix)).map_ok(info).try_collect::<Vec<_>>();
        let mut all = self.runtime.block_on(list).map_err(io_error)?;
        all.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(all)
    }

    fn delete(&self, p: &str) -> io::Result<()> {
        self.runtime.block_on(self.store.delete(&path(p)?)).map_err(io_error)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (path(from)?, path(to)?);
        self.runtime.block_on(self.store.rename(&from, &to)).map_err(io_error)
    }

    fn settle(&self, _path: &str) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, p: &str) -> io::Result<Box<dyn ObjectWriter>> {
        let upload = self.runtime.block_on(self.store.put_multipart(&path(p)?)).map_err(io_error)?;
        Ok(Box::new(Upload { upload: Some(upload), runtime: self.runtime.clone(), part: Vec::new(), written: 0 }))
    }
}

/// Bytes of one part of a multipart upload: above the 5 MiB that buckets ask for at least.
const UPLOAD_PART_BYTES: usize = 8 << 20;

struct Upload {
    upload: Option<Box<dyn object_store::MultipartUpload>>,
    runtime: Handle,
    part: Vec<u8>,
    written: u64,
}

impl Upload {
    fn send(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        match &mut self.upload {
            Some(upload) if !part.is_empty() => {
                self.runtime.block_on(upload.put_part(PutPayload::from(part))).map_err(io_error)
            }
            _ => Ok(()),
        }
    }
}

impl io::Write for Upload {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(buf);
        self.written += buf.len() as u64;
        if self.part.len() >= UPLOAD_PART_BYTES {
            self.send()?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ObjectWriter for Upload {
    fn finish(mut self: Box<Self>) -> io::Result<u64> {
        self.send()?;
        if let Some(upload) = &mut self.upload {
            self.runtime.block_on(upload.complete()).map_err(io_error)?;
        }
        self.upload = None;
        Ok(self.written)
    }

    fn written(&self) -> u64 {
        self.written
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(upload) = &mut self.upload {
            // Best effort: a bucket drops unfinished uploads by its own rule.
            let _ = self.runtime.block_on(upload.abort());
        }
    }
}
