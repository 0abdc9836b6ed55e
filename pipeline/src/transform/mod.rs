//! What happens to batches between source and sink. Dictionary columns are worked on once per distinct value.

pub mod attributes;
pub mod edit;
pub mod filter;
pub mod parse;
pub mod registry;
mod series;
#[cfg(test)]
mod tests;
