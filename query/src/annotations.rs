//! Notices about an answer, with the place in the query they are about. Each text once.

use std::collections::BTreeSet;

use crate::syntax::{Span, line_column};

/// Notices of one kind given to a client; further ones are counted.
pub const ANNOTATIONS_SHOWN_MAX: usize = 10;

/// Distinct notices of one kind kept at all.
const ANNOTATIONS_KEPT_MAX: usize = 1000;

#[derive(Clone, Debug, Default)]
pub struct Annotations {
    warnings: Notices,
    infos: Notices,
}

impl Annotations {
    /// `PromQL warning: message (line:column)`.
    pub fn warn(&mut self, query: &str, at: Span, message: &str) {
        push(&mut self.warnings, placed("warning", query, at, message));
    }

    pub fn info(&mut self, query: &str, at: Span, message: &str) {
        push(&mut self.infos, placed("info", query, at, message));
    }

    /// A warning that is about the answer and not about a place.
    pub fn warn_plain(&mut self, message: impl Into<String>) {
        push(&mut self.warnings, message.into());
    }

    pub fn warnings(&self) -> Vec<&String> {
        self.warnings.iter().collect()
    }

    pub fn infos(&self) -> Vec<&String> {
        self.infos.iter().collect()
    }

    /// The first [`ANNOTATIONS_SHOWN_MAX`] warnings, then how many more there are.
    pub fn warnings_shown(&self) -> Vec<String> {
        shown(&self.warnings, "warning")
    }

    pub fn infos_shown(&self) -> Vec<String> {
        shown(&self.infos, "info")
    }
}

fn placed(kind: &str, query: &str, at: Span, message: &str) -> String {
    let (line, column) = line_column(query, at.start);
    format!("PromQL {kind}: {message} ({line}:{column})")
}

/// In the order of their texts: threads come upon them in any other.
type Notices = BTreeSet<String>;

fn push(list: &mut Notices, text: String) {
    if list.len() < ANNOTATIONS_KEPT_MAX {
        list.insert(text);
    }
}

fn shown(list: &Notices, kind: &str) -> Vec<String> {
    let mut out: Vec<String> = list.iter().take(ANNOTATIONS_SHOWN_MAX).cloned().collect();
    if list.len() > ANNOTATIONS_SHOWN_MAX {
        out.push(format!("{} more {kind} annotations omitted", list.len() - ANNOTATIONS_SHOWN_MAX));
    }
    out
}
