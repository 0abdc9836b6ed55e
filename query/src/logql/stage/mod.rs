//! The stages of a pipeline. [`line_filter`] and [`label_filter`] also run on columns.

pub mod extract;
pub mod ip;
pub mod label_filter;
pub mod line_filter;
pub mod logfmt;
pub mod pattern;
