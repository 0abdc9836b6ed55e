//! Where batches leave the pipeline.

pub mod registry;
pub mod stdout;
pub mod store;
