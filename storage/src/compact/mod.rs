//! Fewer and larger parts, and the end of old ones. Decisions are pure ([`plan`], [`retention`]); a worker does the IO.

pub mod plan;
pub mod retention;

pub use plan::{Job, Limits};
