//! The store: durable, open Parquet under a Delta log, with everything recent in memory.
//!
//! **For** keeping log records, metric points and spans, and answering [`Store::scan`] over all of them under one
//! snapshot. **Not for** protocols, query languages or HTTP: nothing here knows them.
//!
//! # When a write is durable
//! [`Store::append`] returns only after the write-ahead-log record of the batch is on disk (`fdatasync` of its group
//! in mode `group`) and its rows are in the head, so a query that starts afterwards sees them. A flush turns head rows into
//! a Parquet part and one Delta commit that names the last WAL sequence number it holds; only then do WAL segments go.
//!
//! # Invariants
//! 1. Acked is kept; a record is in exactly one of head or part in every snapshot.
//! 2. Indexes are hints: a part without them gives the same answers.
//! 3. Every queue, loop over input and cache has a bound in [`limits`].
//! 4. Damage is quarantined, counted and reported; what is intact is served.

mod append;
pub mod backup;
pub mod catalog;
pub mod compact;
pub mod config;
pub mod downsample;
pub mod error;
mod head;
pub mod index;
pub mod limits;
pub mod lock;
pub mod metrics;
pub mod model;
pub mod object;
mod open;
pub mod parallel;
pub mod part;
mod part_cache;
pub mod scan;
mod sources;
pub mod store;
pub mod vfs;
pub mod wal;

pub use append::{Append, Appended, SourcePosition};
pub use compact::delete::{DeleteRequest, Receipt};
pub use config::{Durability, StoreConfig};
pub use error::{AppendError, ErrorKind, OpenError, ScanError};
pub use head::{
    cardinality::{Offender, Refused, SeriesLimit},
    census::Census,
    repeats::Repeats,
};
pub use part::Promoted;
pub use scan::{
    Mark, RowFilter, SampleRequest, SampleScan, ScanOrder, ScanRequest, ScanStats, ScanStream, Selector,
    StoredSamples, Tail,
};
pub use store::{Environment, SeriesInfo, Store, StreamInfo};
