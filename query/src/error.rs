//! Why a query has no answer. Each API's envelope maps the kind to its own status and body.

use storage::{ErrorKind, ScanError};

use crate::syntax::SyntaxError;

#[derive(Debug, Clone, thiserror::Error)]
pub enum QueryError {
    /// The query text cannot be read.
    #[error("{0}")]
    Syntax(SyntaxError),
    /// A parameter is wrong.
    #[error("{0}")]
    BadData(String),
    /// The query is fine, its evaluation is not possible.
    #[error("{0}")]
    Execution(String),
    #[error("query timed out in {0}")]
    Timeout(&'static str),
    #[error("query was canceled in {0}")]
    Canceled(&'static str),
    #[error("{0}")]
    NotFound(String),
    /// A limit was reached; the text names it.
    #[error("{0}")]
    TooLarge(String),
    #[error("storage: {0}")]
    Storage(ScanError),
    #[error("internal error")]
    Internal(String),
}

impl QueryError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            QueryError::Syntax(_) | QueryError::BadData(_) | QueryError::Execution(_) => ErrorKind::Invalid,
            QueryError::Timeout(_) | QueryError::Canceled(_) => ErrorKind::Deadline,
            QueryError::NotFound(_) => ErrorKind::NotFound,
            QueryError::TooLarge(_) => ErrorKind::TooLarge,
            QueryError::Storage(e) => e.kind(),
            QueryError::Internal(_) => ErrorKind::Internal,
        }
    }
}

impl From<SyntaxError> for QueryError {
    fn from(e: SyntaxError) -> Self {
        QueryError::Syntax(e)
    }
}

impl From<ScanError> for QueryError {
    fn from(e: ScanError) -> Self {
        QueryError::Storage(e)
    }
}
