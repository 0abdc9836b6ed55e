//! Sources: everything that listens, tails or scrapes.
//!
//! **For** turning what the world sends or shows into batches for a [`pipeline::Output`], and for answering senders only
//! when their batch is acknowledged. **Not for** storing, transforming or querying.
//!
//! # Map
//! Push protocols share one road: [`auth`] (tenant) -> `push` (memory, body, inflate, decode off the async threads,
//! deliver) -> a protocol's own answer ([`reply`]).
//! [`otlp`] logs, metrics and traces over HTTP and gRPC · `loki_push` · `ndjson` · [`listen`] the accept loop for any
//! router · [`metrics`] what was taken and refused.

pub mod auth;
pub mod listen;
mod loki_push;
pub mod metrics;
mod ndjson;
pub mod otlp;
pub mod push;
pub mod reply;

pub use push::{PushConfig, push_router};
