//! A *part*: one immutable Parquet file with its indexes.
//!
//! **For** turning rows of the stored schema into a file that any Parquet or Delta reader understands, and back, reading no
//! more of it than a scan needs. **Not for** deciding what is flushed, merged or deleted.
//!
//! # Bytes
//! ```text
//! PAR1 | row groups, each followed by its Bloom filters | run index | checksums | page indexes, footer | PAR1
//! ```
//! The *run index* ([`crate::index::runs`]) and the *checksums* (crc32c of every 16 KiB before them) are found through the
//! key-value metadata `sightline.runs` and `sightline.checksums`; the checksum of what follows them is in
//! `sightline.tail`. Other readers skip all three.
//!
//! # Invariants
//! 1. Rows are in the table's sort order, rows of equal key in commit order.
//! 2. Every index is a hint: without it, or with a damaged one, a scan gives the same rows.
//! 3. A damaged file gives an error or the right rows, never other rows and never a panic.

mod arrival;
mod chunk;
mod distinct;
mod encode;
mod error;
mod gather;
mod meta;
mod numbers;
mod planes;
mod promoted;
mod prune;
mod reader;
mod rows;
mod samples;
mod seal;
mod sort;
mod source;
#[cfg(test)]
pub(crate) mod tests;
mod untemplated;
mod writer;

pub(crate) use arrival::seq_of;
pub(crate) use distinct::Distinct;
pub use encode::disk_schema;
pub(crate) use encode::table_schema;
pub use error::PartError;
pub(crate) use error::is_loss;
pub use meta::{PartMeta, WriteOptions};
pub use promoted::{PromoteError, Promoted};
pub use reader::{PartReader, PartScan};
pub use rows::PartRows;
pub(crate) use samples::SampleGroup;
pub(crate) use sort::MixedMap;
pub use source::{FileSource, RangeRead};
#[cfg(test)]
pub(crate) use writer::sorted as sorted_rows;
pub use writer::{PartWriter, write_part};
