//! Fewer and larger parts, and the end of old ones. Decisions are pure ([`plan`], [`retention`]), [`merge`] makes one part of
//! many, [`delete`] leaves rows out of them; a worker does the rest of the IO.

mod combine;
pub mod delete;
pub mod merge;
pub mod plan;
pub mod retention;
#[cfg(test)]
mod tests;
pub(crate) mod worker;

pub use plan::{Job, Limits};
