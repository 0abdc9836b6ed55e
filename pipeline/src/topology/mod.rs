//! The graph: checked ([`graph`]), built to tasks over bounded queues ([`build`]), run and drained ([`running`]).
//!
//! # What is guaranteed
//! 1. A source hears `Ok` for a batch when every sink it goes to has it; rows that a filter takes out count as
//!    delivered (and as dropped there). The first refusal of any branch is the answer.
//! 2. Batches of one source reach each sink in the order they were sent. A transform gives one batch for each batch, one
//!    with several outputs at most one to each.
//! 3. A position becomes durable only with or after its rows and those of all earlier batches of its key, in every sink.
//!    On a straight path it is written in the same append as the rows, also when a filter left no rows. Where a path forks,
//!    the branches carry the rows only; when all branches are delivered one append without rows writes the position,
//!    in the order of the source ([`fanout`]). Without a store downstream positions are not kept at all.
//! 4. A batch that came with positions is never answered `Unavailable` by a sink: the sink tries again until it is
//!    told to stop, and the source waits. What is refused for good (`Rejected`) does not hold back later positions.
//! 5. A batch id stays with the rows. Behind a fork every branch but the first gets an id of its own, derived from it,
//!    so that two branches into one store are not taken for a repetition.
//! 6. What a component refuses for good is an output too where somebody takes it ([`dead_letters`]): the source then
//!    hears `Ok` when those rows are delivered there.

pub mod build;
pub mod dead_letters;
pub mod fanout;
pub mod graph;
pub mod running;
#[cfg(test)]
mod tests;
mod trial;
mod worker;

pub use build::{Limits, PipelineBuilder};
pub use dead_letters::DeadLetters;
pub use graph::{Graph, NodeSpec, Role};
pub use running::{Report, Running};
