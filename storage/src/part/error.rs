use std::io;

use arrow::error::ArrowError;
use parquet::errors::ParquetError;

use crate::{AppendError, ScanError};

/// Why a part could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// The file could not be read or written; its bytes may be fine.
    #[error("cannot {what}")]
    Io { what: &'static str, source: io::Error },
    /// The bytes are not what was written.
    #[error("damaged part: {0}")]
    Corrupt(String),
    /// The caller's rows or request do not fit the table.
    #[error("{0}")]
    Invalid(String),
}

impl PartError {
    /// The error as a scan of the part named `part` gives it: a file that is missing or too short is damaged for good;
    /// what the disk refuses to give now it may give later.
    pub fn into_scan(self, part: &str) -> ScanError {
        match self {
            PartError::Corrupt(reason) => ScanError::Corrupt { part: part.to_owned(), reason },
            PartError::Io { what, source } => {
                if let Some(away) = crate::object::bridge::away(&source) {
                    return ScanError::Unavailable { part: part.to_owned(), reason: away.to_string() };
                }
                let reason = format!("cannot {what}: {source}");
                if is_loss(&source) {
                    ScanError::Corrupt { part: part.to_owned(), reason }
                } else {
                    ScanError::Internal(format!("{part}: {reason}; try again"))
                }
            }
            PartError::Invalid(reason) => ScanError::Invalid(reason),
        }
    }

    pub(super) fn corrupt(what: impl std::fmt::Display) -> Self {
        PartError::Corrupt(what.to_string())
    }
}

/// Whether a read failed because the bytes are not there, rather than because the disk or the system failed.
pub(crate) fn is_loss(e: &io::Error) -> bool {
    // `InvalidInput`: a range behind the end of the object.
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput)
}

/// For work on bytes that were read: what Parquet cannot read is damage.
pub(super) fn reading(e: ParquetError) -> PartError {
    PartError::Corrupt(e.to_string())
}

/// For work on rows that are to be written.
pub(super) fn writing(e: ParquetError) -> PartError {
    match e {
        ParquetError::External(e) => match e.downcast::<io::Error>() {
            Ok(source) => PartError::Io { what: "write the part", source: *source },
            Err(e) => PartError::Invalid(e.to_string()),
        },
        other => PartError::Invalid(other.to_string()),
    }
}

impl From<ArrowError> for PartError {
    fn from(e: ArrowError) -> Self {
        PartError::Invalid(e.to_string())
    }
}

impl From<PartError> for AppendError {
    fn from(e: PartError) -> Self {
        match e {
            PartError::Invalid(m) => AppendError::Invalid(m),
            other => AppendError::Io(other.to_string()),
        }
    }
}
