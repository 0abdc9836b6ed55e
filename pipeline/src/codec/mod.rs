//! Wire bytes to batches and back.
//!
//! Decoders are pure: bytes, limits and the present time in, batches and a list of what was refused out. They never
//! panic on foreign bytes, and every loop over them has a bound in [`limits::Limits`].

pub mod columns;
pub mod compress;
pub mod elastic;
pub mod limits;
pub mod log_columns;
pub mod loki;
pub mod ndjson;
pub mod otlp;
pub mod outcome;
pub mod prom_text;
mod raw_cache;
pub mod remote_write;
pub mod rows;
pub mod stream;
pub mod syslog;

pub use limits::Limits;
pub use outcome::{Decoded, Malformed, Reason, Rejected};
