//! SQL over the store's tables: DataFusion plans and runs, [`crate::fragment`] reads.
//!
//! **For** one `SELECT` at a time over the tables of one tenant, streamed. **Not for** changing anything, and not for
//! reading anything but the store: there is no statement, table or function here that opens a file or an address.
//!
//! ```text
//! text -> check (length, depth, one SELECT) -> plan -> rewrite (counts and first rows beside the scan)
//!      -> operators of DataFusion over fragments -> batches -> an encoder's bytes
//! ```
//! Invariants: a query works on threads of its own with a stack of known size, under one memory pool that all queries
//! share, and ends at its deadline or when its reader has gone. What a filter says is always tested on every row that is
//! read; what [`pushdown`] takes from it only spares reading. Rewrites are exact, and tested against plans without them.

mod check;
pub mod columns;
mod functions;
mod pushdown;
mod rewrite;
mod session;
mod table;

pub use session::{Answer, Encoder, Piece, SqlEngine, SqlError, SqlRequest, SqlStats};
