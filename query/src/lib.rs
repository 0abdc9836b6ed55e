//! Query languages and read APIs over one store.

pub mod syntax;
