//! Errors that leave the store, each with a [`ErrorKind`] that a boundary maps to its own status.

use std::{io, path::PathBuf, time::Duration};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    Invalid,
    NotFound,
    Conflict,
    TooLarge,
    Overloaded,
    Deadline,
    Corrupt,
    /// Something elsewhere that is needed does not answer.
    Unavailable,
    Internal,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("data directory {dir} is in use by process {pid}; stop it or change `storage.dir`")]
    Locked { dir: PathBuf, pid: u32 },
    #[error("data directory {dir} is not writable; change its permissions or `storage.dir`")]
    NotWritable { dir: PathBuf, source: io::Error },
    #[error(
        "data directory {dir} has format version {found}, this program knows versions up to {known}; use a newer release"
    )]
    NewerVersion { dir: PathBuf, found: u32, known: u32 },
    #[error("data directory {dir} does not look like ours: {reason}")]
    Foreign { dir: PathBuf, reason: String },
    #[error("cannot use the store {store}: {reason}")]
    Store { store: String, reason: String },
    #[error("data directory {dir} belongs to {known}, not to {asked}; {hint}")]
    OtherStore { dir: PathBuf, known: String, asked: String, hint: String },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot open the write-ahead log")]
    Wal(#[source] crate::wal::WalError),
    #[error("cannot open the table {table}")]
    Catalog { table: String, source: Box<dyn std::error::Error + Send + Sync> },
}

/// Why a batch was not stored. Nothing of it is visible; after [`AppendError::Io`] and [`AppendError::DiskFull`] it may be
/// found, whole, after a restart, so a retry should bear the same batch id.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    #[error("the store is at its memory limit; retry in {retry_after:?}")]
    Overloaded { retry_after: Duration },
    #[error("the disk of the data directory is {used_percent} % full; writes resume below {limit_percent} %")]
    DiskFull { used_percent: u8, limit_percent: u8, retry_after: Duration },
    #[error("invalid batch: {0}")]
    Invalid(String),
    /// The batch leaves out the labels of a series that is not known (any more) on the day of its points.
    #[error("points of series {id} come without its labels; send them with their labels")]
    UnknownSeries { id: i64 },
    /// The write may or may not survive; the sender should retry.
    #[error("cannot write the log of the store: {0}")]
    Io(String),
    #[error("the store is closing")]
    Closed,
}

impl AppendError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            AppendError::Overloaded { .. }
            | AppendError::DiskFull { .. }
            | AppendError::Io(_)
            | AppendError::Closed => ErrorKind::Overloaded,
            AppendError::Invalid(_) | AppendError::UnknownSeries { .. } => ErrorKind::Invalid,
        }
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum ScanError {
    #[error("{0}")]
    Invalid(String),
    #[error("scan needs more than {limit} bytes of memory ({what}); narrow the time range or the selector")]
    TooLarge { what: &'static str, limit: usize },
    #[error("cannot read part {part}: {reason}")]
    Corrupt { part: String, reason: String },
    /// A part is in a store that does not answer now.
    #[error("cannot read part {part}: {reason}; try again later")]
    Unavailable { part: String, reason: String },
    #[error("scan failed: {0}")]
    Internal(String),
}

impl ScanError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            ScanError::Invalid(_) => ErrorKind::Invalid,
            ScanError::TooLarge { .. } => ErrorKind::TooLarge,
            ScanError::Corrupt { .. } => ErrorKind::Corrupt,
            ScanError::Unavailable { .. } => ErrorKind::Unavailable,
            ScanError::Internal(_) => ErrorKind::Internal,
        }
    }
}

impl From<arrow::error::ArrowError> for ScanError {
    fn from(e: arrow::error::ArrowError) -> Self {
        ScanError::Internal(e.to_string())
    }
}
