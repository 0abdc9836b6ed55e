//! Lexer, cursor and precedence climber shared by the query languages.
//!
//! A language describes its lexical form once ([`Dialect`]), walks the tokens with a [`Cursor`] and hands binary
//! operators to [`climb`]. Not here: what any token means to a language.
//!
//! Invariants: text is length-checked before a token is made ([`QUERY_BYTES_MAX`]); nesting is counted by
//! [`Cursor::nested`] and by the climber ([`DEPTH_MAX`]), so that neither parser nor evaluator nor drop can run out of
//! stack; every error carries the [`Span`] it is about.

mod cursor;
mod precedence;
mod token;

pub use cursor::Cursor;
pub use precedence::{Binding, Climb, climb};
pub use token::{Dialect, Kind, Span, Token, lex, unquote};

/// Longest query text, bytes.
pub const QUERY_BYTES_MAX: usize = 128 << 10;

/// Greatest height of an expression tree: nested parentheses, calls and operator chains together.
pub const DEPTH_MAX: usize = 250;

/// What is wrong with a query text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    pub message: String,
    pub span: Span,
    /// 1-based line and column (in characters) of the span's start. Line 0: there is no text.
    pub line: usize,
    pub column: usize,
}

impl SyntaxError {
    pub fn new(text: &str, span: Span, message: impl Into<String>) -> Self {
        let (line, column) = line_column(text, span.start);
        SyntaxError { message: message.into(), span, line, column }
    }

    /// The line of `text` the error is on, and a line below it with a caret.
    pub fn with_caret(&self, text: &str) -> String {
        let line = text.split('\n').nth(self.line.saturating_sub(1)).unwrap_or("");
        format!("{self}\n{line}\n{}^", " ".repeat(line_column(text, self.span.start).1 - 1))
    }
}

/// `line:column: parse error: message`, the form of Prometheus.
impl std::fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.line == 0 {
            return write!(f, "unknown position: parse error: {}", self.message);
        }
        write!(f, "{}:{}: parse error: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for SyntaxError {}

/// 1-based line and column (in characters) of a byte offset; an offset past the end counts as the end.
pub fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests;
