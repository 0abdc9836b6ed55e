//! Why a query gave no answer.

use storage::ScanError;

#[derive(Debug, Clone, thiserror::Error)]
pub enum QueryError {
    /// The text is no LogQL, or asks what LogQL forbids. The message is complete, position included.
    #[error("{0}")]
    Parse(String),
    /// A limit of this server, or a feature it does not have.
    #[error("{0}")]
    Invalid(String),
    /// A sample with `__error__` reached a metric query.
    #[error("{0}")]
    Pipeline(String),
    /// Vectors that do not match one to one. Loki answers 500 to these.
    #[error("{0}")]
    Matching(String),
    #[error(
        "Request timed out, decrease the duration of the request or add more label matchers (prefer exact match over regex match) to reduce the amount of data processed."
    )]
    Deadline,
    #[error("The request was cancelled by the client.")]
    Cancelled,
    #[error(transparent)]
    Scan(#[from] ScanError),
}

impl QueryError {
    /// `parse error : ...`, for faults without a position.
    pub fn parse(what: impl std::fmt::Display) -> Self {
        QueryError::Parse(format!("parse error : {what}"))
    }

    pub fn parse_at(line: usize, col: usize, what: impl std::fmt::Display) -> Self {
        QueryError::Parse(format!("parse error at line {line}, col {col}: {what}"))
    }

    /// What the parser knows and the evaluator does not.
    pub fn unsupported(what: impl std::fmt::Display) -> Self {
        QueryError::Invalid(format!("{what} is not supported by this server yet"))
    }
}
