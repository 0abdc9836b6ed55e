//! The pipeline: a checked graph of sources, transforms and sinks over bounded channels of Arrow batches.
//!
//! **For** moving batches from where they arise to where they rest, with transforms between, one memory budget, and acks
//! that flow back to the source. **Not for** any concrete source (those are in `collector`) or any query.
//!
//! # Invariants
//! 1. Every queue is bounded in bytes; a full queue makes the sender wait.
//! 2. A batch is acknowledged only when every sink it goes to has it; a source moves its durable offset only then.
//! 3. read = delivered + in flight + dropped{reason}: nothing vanishes uncounted.

pub mod buffer;
pub mod codec;
pub mod component;
pub mod condition;
pub mod config;
pub mod error;
pub mod metrics;
pub mod sink;
pub mod topology;
pub mod transform;
pub mod trial;
pub mod units;

pub use component::{
    Batch, Data, Delivery, DeliveryError, Envelope, LABELS_WANTED, Output, Positions, Refusals, Signals, Sink,
    SinkContext, SinkError, Source, SourceContext, SourceError, SourcePosition, Transform,
};
pub use config::PipelineConfig;
pub use error::{BuildError, ConfigError};
pub use topology::{Limits, PipelineBuilder, Report, Running};
