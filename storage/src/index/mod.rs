//! What lets a reader skip rows: templates of log bodies and the run index of a part. Every index is a hint: a part
//! without one gives the same answers, more slowly.

mod classes;
pub(crate) mod order;
pub mod runs;
pub mod template;
