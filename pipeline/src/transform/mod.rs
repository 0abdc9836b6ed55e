//! What happens to batches between source and sink. Dictionary columns are worked on once per distinct value.

pub mod attributes;
mod choice;
pub mod dedupe;
pub mod edit;
pub mod filter;
mod key;
mod label_sets;
pub mod limit_labels;
pub mod normalize;
pub mod parse;
pub mod redact;
pub mod registry;
pub mod relabel;
pub mod route;
pub mod sample;
mod series;
#[cfg(test)]
mod tests;
pub mod throttle;
