//! PromQL as of Prometheus 3: text to checked tree to values.
//!
//! [`parse`] gives a tree whose types are checked; [`Engine`] evaluates it over the store. Not here: HTTP and JSON.
//!
//! Invariants: windows are left-open; times are milliseconds; a tree is never higher than the parser's depth limit; what
//! is parsed but cannot be evaluated is an error, never a wrong answer.

mod aggregates;
pub mod ast;
mod check;
mod engine;
mod eval;
mod features;
pub mod functions;
pub mod histogram;
pub mod notation;
mod parser;
pub mod print;
mod stack;
mod tree_json;
pub mod value;

pub use aggregates::{Answered, Source};
pub use ast::Expr;
pub use engine::{Engine, EngineOptions, InstantRequest, Output, RangeRequest};
pub use eval::Counted;
pub use features::Features;
pub use parser::{parse, parse_duration_ms, parse_selector, parse_selector_within};
pub use tree_json::tree_json;
pub use value::{Point, Sample, SeriesPoints, Value, format_float};

/// Bits of the NaN that marks the end of a series.
pub const STALE_NAN_BITS: u64 = 0x7ff0_0000_0000_0002;

/// Whether the value is the staleness marker (any other NaN is a value).
pub fn is_stale(value: f64) -> bool {
    value.to_bits() == STALE_NAN_BITS
}
