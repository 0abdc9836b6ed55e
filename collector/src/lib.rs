//! Sources: everything that listens, tails or scrapes.
//!
//! **For** turning what the world sends or shows into batches for a [`pipeline::Output`], and for answering senders only
//! when their batch is acknowledged. **Not for** storing, transforming or querying.
//!
//! # Map
//! Push protocols share one road: [`auth`] (tenant) -> `push` (memory, body, inflate, decode off the async threads,
//! deliver) -> a protocol's own answer ([`reply`]).
//! [`otlp`] logs, metrics and traces over HTTP and gRPC · `loki_push` · `remote_write` · `ndjson` · [`elastic`] · [`listen`] the accept loop for any
//! router · [`metrics`] what was taken and refused · [`tenants`] what each tenant may push.
//! [`syslog`] messages of other machines and this one.
//! What this machine shows: [`file_tail`] log files · [`containers`] which containers there are, and their logs ·
//! [`host_metrics`] figures of the host and its containers. What others show: [`prometheus`] scraped targets.
//! [`yaml`] a text with the place of each of its nodes, for configurations.

pub mod auth;
pub mod containers;
pub mod elastic;
pub mod file_tail;
pub mod host_metrics;
pub mod listen;
mod loki_push;
pub mod metrics;
mod ndjson;
pub mod otlp;
pub mod prometheus;
pub mod push;
mod remote_write;
pub mod reply;
pub mod syslog;
pub mod tenants;
pub mod yaml;

pub use push::{PushConfig, push_and_grpc_routers, push_router};

/// This machine's name: the stream label `node` and the label `instance` of host metrics.
pub fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
