//! What a commit to a table is, and how one can fail.

use std::{io, sync::Arc};

use super::{
    checkpoint,
    part_entry::{NewPart, PartEntry},
    schema::SchemaError,
    table::COMMIT_RACES_MAX,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Flush,
    Compact,
    /// Aggregates of an hour of samples take the place of earlier ones.
    Downsample,
    /// Whole parts behind retention.
    Expire,
    /// Rows deleted by predicate.
    Delete,
    /// A damaged part leaves the log.
    Quarantine,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Operation::Flush | Operation::Downsample => "WRITE",
            Operation::Compact => "OPTIMIZE",
            Operation::Expire | Operation::Delete => "DELETE",
            Operation::Quarantine => "QUARANTINE",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Commit {
    pub adds: Vec<NewPart>,
    pub removes: Vec<Arc<PartEntry>>,
    /// Application id and its version: with a flush, the last WAL sequence number it holds. Must grow.
    pub txn: Option<(String, i64)>,
    pub operation: Operation,
}

#[derive(Clone, Debug)]
pub struct Committed {
    pub version: i64,
    /// In the order of [`Commit::adds`].
    pub added: Vec<Arc<PartEntry>>,
    /// To be given to [`super::Purge::retire`] once no new reader can get them.
    pub removed: Vec<Arc<PartEntry>>,
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("cannot read {path}")]
    Read { path: String, source: io::Error },
    /// Nothing was committed.
    #[error("cannot write {path}")]
    Write { path: String, source: io::Error },
    /// The entry may or may not survive a crash. The files it names must stay; nothing can be committed to this table
    /// until it is opened again, which finds out.
    #[error("the outcome of commit {version} of {table} is not known; restart to recover")]
    Uncertain { table: String, version: i64 },
    #[error("another writer removed {path} first")]
    Removed { path: String },
    /// The log holds this version of the application, or a later one: the rows are in the table.
    #[error("{app} has committed version {version} already")]
    AlreadyCommitted { app: String, version: i64 },
    /// Others went on so far that entries this process has not seen are cleared.
    #[error("the view of {table} is too old to commit; open it again")]
    Stale { table: String },
    #[error("lost {COMMIT_RACES_MAX} races for the next version of {table}; try again later")]
    Busy { table: String },
    #[error(
        "table {table} wants Delta reader {reader} and writer {writer}, this program knows 1 and 2; use another directory"
    )]
    Protocol { table: String, reader: i32, writer: i32 },
    #[error("{path} is damaged: {reason}")]
    Corrupt { path: String, reason: String },
    #[error("cannot use table {table}")]
    Schema { table: String, source: SchemaError },
    #[error("cannot make a checkpoint of {table}")]
    Checkpoint { table: String, source: checkpoint::CheckpointError },
}

impl CatalogError {
    /// Whether the caller must assume that the commit may come into effect.
    pub fn is_uncertain(&self) -> bool {
        matches!(self, CatalogError::Uncertain { .. })
    }
}
