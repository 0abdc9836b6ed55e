//! RE2 syntax, as the whole project reads it.

pub use storage::model::re2::{compile, compile_one_of};
