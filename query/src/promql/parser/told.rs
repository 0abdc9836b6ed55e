//! What stands where it should not, in the words of Prometheus.

use super::Parser;
use crate::{
    promql::{ast::AggregateOp, print::quoted},
    syntax::{Kind, Span, SyntaxError, Token},
};

/// Strings and numbers longer than this are cut.
const SHOWN_CHARS: usize = 10;

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", quoted(&text[..end])),
        None => quoted(text),
    }
}

/// Words that are tokens of their own, in any case of letters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Operator,
    Aggregator,
    /// `by`, `offset` and the like. Of these, some may be the name of a metric.
    Keyword,
    /// `start`, `end`, `step` and `range`.
    Preprocessor,
    Metric,
    Other,
}

impl Word {
    pub(super) fn of(text: &str) -> Word {
        let among = |list: &[&str]| list.iter().any(|w| w.eq_ignore_ascii_case(text));
        match () {
            () if text.contains(':') => Word::Metric,
            () if among(&["and", "or", "unless", "atan2"]) => Word::Operator,
            () if AggregateOp::ALL.into_iter().any(|op| op.name().eq_ignore_ascii_case(text)) => Word::Aggregator,
            () if among(&["by", "without", "offset", "smoothed", "anchored"]) || never_metric(text) => Word::Keyword,
            () if among(&["start", "end", "step", "range"]) => Word::Preprocessor,
            () => Word::Other,
        }
    }
}

/// Whether this cannot be the name of a metric outside braces.
pub(super) fn never_metric(text: &str) -> bool {
    ["bool", "on", "ignoring", "group_left", "group_right", "atan2"].iter().any(|w| w.eq_ignore_ascii_case(text))
}

impl Parser<'_> {
    pub(super) fn error(&self, span: Span, message: impl Into<String>) -> SyntaxError {
        self.cursor.error(span, message)
    }

    /// `unexpected <what is next> in <context>, expected <what>`; what is empty is left out. Where reading stopped, why it
    /// did.
    pub(super) fn unexpected(&self, context: &str, expected: &str) -> SyntaxError {
        let token = self.cursor.peek();
        if let (Kind::End, Some(why)) = (token.kind, &self.failure) {
            return self.error(token.span, why.clone());
        }
        let what = self.described(token, context == "label matching");
        self.cursor.unexpected_as(&what, context, expected)
    }

    /// What is next fits nothing around it but, maybe, an aggregation.
    pub(super) fn astray(&self) -> SyntaxError {
        self.unexpected(if self.aggregations > 0 { "aggregation" } else { "" }, "")
    }

    /// Takes the punctuation, or what is next is astray.
    pub(super) fn expect(&mut self, punct: &str) -> Result<Span, SyntaxError> {
        if self.cursor.is_punct(punct) { Ok(self.cursor.next().span) } else { Err(self.astray()) }
    }

    /// `braces`: within them all words are names.
    fn described(&self, token: Token, braces: bool) -> String {
        let text = self.cursor.text_of(token);
        match token.kind {
            Kind::End => "end of input".into(),
            Kind::Number if super::number::is_duration(text) => format!("duration {}", shortened(text)),
            Kind::Number => format!("number {}", shortened(text)),
            Kind::String => format!("string {}", shortened(text)),
            Kind::Punct(p @ ("(" | ")" | "{" | "}" | "[" | "]" | "," | "=" | ":")) => format!("{p:?}"),
            Kind::Punct(p) => format!("<op:{p}>"),
            Kind::Ident if braces => format!("identifier {}", quoted(text)),
            Kind::Ident => match Word::of(text) {
                Word::Operator => format!("<op:{text}>"),
                Word::Aggregator => format!("<aggr:{text}>"),
                Word::Keyword => format!("<{text}>"),
                Word::Preprocessor => quoted(text),
                Word::Metric => format!("metric identifier {}", quoted(text)),
                // Before a parenthesis.
                Word::Other if !self.may_name_metric() => format!("<{text}>"),
                Word::Other => format!("identifier {}", quoted(text)),
            },
        }
    }
}
