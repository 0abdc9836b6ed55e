//! Query languages and read APIs over one store.
//!
//! **For** turning PromQL, LogQL, SQL and trace requests into answers of their APIs' own shapes. **Not for** knowing how data
//! arrived. Storage is reached through [`fetch`], for copies through [`raw`] and, from SQL plans, through [`fragment`]; every bound is in [`limits`] or beside what it bounds.

pub mod annotations;
pub mod error;
pub mod fetch;
pub mod fragment;
pub mod http;
pub mod limits;
pub mod logql;
pub mod promql;
pub mod raw;
pub mod recent;
pub mod rules;
pub mod sql;
pub mod syntax;
pub mod trace;

pub use http::router::{QueryConfig, router};
use storage::parallel;
