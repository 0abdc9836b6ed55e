//! Where batches leave the pipeline.

pub mod buffered;
pub mod elasticsearch;
pub mod file;
pub mod http;
pub mod loki;
pub mod otlp;
pub mod registry;
pub mod remote;
pub mod remote_write;
pub mod stdout;
pub mod store;
