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
    /// The error as a scan of the part named `part` gives it.
    pub fn into_scan(self, part: &str) -> ScanError {
        match self {
            PartError::Corrupt(reason) => ScanError::Corrupt { part: part.to_owned(), reason },
            PartError::Io { what, source } => {
                ScanError::Corrupt { part: part.to_owned(), reason: format!("cannot {what}: {source}") }
            }
            PartError::Invalid(reason) => ScanError::Invalid(reason),
        }
    }

    pub(super) fn corrupt(what: impl std::fmt::Display) -> Self {
        PartError::Corrupt(what.to_string())
    }
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
