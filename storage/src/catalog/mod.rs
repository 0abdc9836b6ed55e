//! Which parts a table consists of: one Delta table per tenant and table, its log written by ourselves.
//!
//! **For** committing parts, knowing the live ones, and deleting those nobody reads any more. **Not for** what is inside
//! a part. Source of the format: the Delta transaction log protocol, reader version 1, writer version 2.
//!
//! # Invariants
//! 1. A commit is one object `_delta_log/<20 digits>.json`, put if absent; versions are dense from the first one kept.
//! 2. The cost of a commit does not grow with the work of earlier ones, but for copying a list of `Arc`s.
//! 3. A damaged entry, checkpoint or part is set aside and reported; the rest is served.
//! 4. A part's file goes only after it left the log and its last reader has dropped it.

pub mod actions;
pub mod checkpoint;
mod commit;
mod describe;
mod load;
mod part_entry;
pub mod purge;
pub mod schema;
mod state;
pub mod table;

pub use commit::{CatalogError, Commit, Committed, Operation};
pub use load::{Damage, OpenReport};
pub use part_entry::{Bucket, NewPart, PartEntry, part_path};
pub(crate) use part_entry::{TAG_TAIL, new_uuid};
pub use purge::Purge;
pub use table::{TableCatalog, TableOptions};

#[cfg(test)]
mod tests;

#[cfg(test)]
mod model_tests;
