//! What a log record, a sample and a span are, as Arrow batches. Imports nothing else of ours.
//!
//! Everything that enters the store is a [`Table`] and an Arrow batch of that table's *input* schema
//! ([`schema::input`]); the store derives the remaining columns and answers scans in the *stored* schema
//! ([`schema::stored`]). Low-cardinality strings are `Dictionary(Int32, Utf8)`, attribute sets are canonical JSON
//! ([`json`]), so that a row means the same in memory, in the WAL and in Parquet.

pub mod batch;
pub mod json;
pub mod labels;
pub mod matcher;
pub mod re2;
pub mod re2_fault;
pub mod schema;
pub mod tenant;
pub mod time;

pub use batch::{LogBatchBuilder, LogRow, MetricBatch, MetricBatchBuilder, SpanBatchBuilder, SpanRow};
pub use labels::Labels;
pub use matcher::{MatchOp, Matcher, MatcherBudget};
pub use schema::Table;
pub use tenant::TenantId;
pub use time::{TimeRange, Timestamp};
