//! SQL over HTTP, as clients see it: answers against naive ones over the same rows, plans with and without pushdown, what
//! is refused, and limits.

mod agree;
mod data;
mod limits;
mod naive;
