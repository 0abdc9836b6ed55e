//! Parsers that turn parts of a line into labels: logfmt, regexp, pattern.

use std::borrow::Cow;

use regex::Regex;

use super::{
    logfmt::Pairs,
    pattern::{Part, Pattern},
};
use crate::logql::{error::QueryError, plan::Row};

pub enum Extractor {
    Logfmt { keep_empty: bool },
    Regexp(Regex),
    Pattern(Pattern),
}

impl Extractor {
    /// One of so `many` regular expressions.
    pub fn regexp(text: &str, many: usize) -> Result<Self, QueryError> {
        let regex = crate::logql::regex::compile_one_of(text, many)
            .map_err(|e| QueryError::parse(format!("invalid regexp parser: {e}")))?;
        Ok(Extractor::Regexp(regex))
    }

    pub fn pattern(text: &str) -> Result<Self, QueryError> {
        let pattern = Pattern::parse(text).map_err(|e| QueryError::parse(format!("invalid pattern parser: {e}")))?;
        Ok(Extractor::Pattern(pattern))
    }

    pub fn run(&self, row: &mut Row<'_>) {
        let line = std::mem::replace(&mut row.line, Cow::Borrowed(""));
        match self {
            Extractor::Logfmt { keep_empty } => {
                let mut pairs = Pairs::new(&line);
                while let Some(pair) = pairs.next() {
                    let Ok((key, value)) = pair else { continue };
                    if !key.is_empty() && (*keep_empty || !value.is_empty()) {
                        row.extract(&sanitise(key), &value);
                    }
                }
            }
            Extractor::Regexp(regex) => {
                if let Some(captures) = regex.captures(&line) {
                    for name in regex.capture_names().flatten() {
                        row.extract(&sanitise(name), captures.name(name).map_or("", |m| m.as_str()));
                    }
                }
            }
            Extractor::Pattern(pattern) => captures(pattern, &line, |name, value| row.extract(name, value)),
        }
        row.line = line;
    }
}

/// A leading literal must start the line; a capture runs to the next literal; where that is missing it takes the rest.
fn captures(pattern: &Pattern, line: &str, mut each: impl FnMut(&str, &str)) {
    let mut rest = line;
    let mut parts = pattern.parts.iter().peekable();
    if let Some(Part::Literal(text)) = parts.peek() {
        let Some(after) = rest.strip_prefix(text.as_str()) else { return };
        rest = after;
        parts.next();
    }
    while let Some(part) = parts.next() {
        let Part::Capture(name) = part else { return };
        let mut emit = |value: &str| {
            if let Some(n) = name {
                each(n, value);
            }
        };
        match parts.next() {
            Some(Part::Literal(text)) => match rest.find(text.as_str()) {
                Some(at) => {
                    emit(&rest[..at]);
                    rest = &rest[at + text.len()..];
                }
                None => {
                    emit(rest);
                    return;
                }
            },
            _ => {
                emit(rest);
                return;
            }
        }
    }
}

/// A legal label name: other characters become `_`, a leading digit gets one in front.
fn sanitise(name: &str) -> Cow<'_, str> {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let digit = name.starts_with(|c: char| c.is_ascii_digit());
    if name.chars().all(legal) && !digit {
        return Cow::Borrowed(name);
    }
    let mut out = String::with_capacity(name.len() + 1);
    if digit {
        out.push('_');
    }
    out.extend(name.chars().map(|c| if legal(c) { c } else { '_' }));
    Cow::Owned(out)
}

/// The line without ANSI escape sequences; `None` if it has none.
pub fn decolorize(line: &str) -> Option<String> {
    if !line.contains('\u{1b}') {
        return None;
    }
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find('\u{1b}') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        match tail.strip_prefix('[') {
            // Control sequence: parameters, then one final byte of `@` to `~`.
            Some(body) => match body.find(|c: char| ('@'..='~').contains(&c)) {
                Some(end) => rest = &body[end + 1..],
                None => rest = "",
            },
            None => {
                out.push('\u{1b}');
                rest = tail;
            }
        }
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_go_and_text_stays() {
        assert_eq!(decolorize("\u{1b}[31mERROR\u{1b}[0m step \u{1b}[1;4m0").as_deref(), Some("ERROR step 0"));
        assert!(decolorize("plain").is_none());
    }

    #[test]
    fn a_missing_literal_gives_the_rest_to_the_capture() {
        let mut got = Vec::new();
        let p = Pattern::parse("<a> - <b> [<c>").unwrap();
        captures(&p, "x - y z", |n, v| got.push((n.to_owned(), v.to_owned())));
        assert_eq!(got, [("a".to_owned(), "x".to_owned()), ("b".to_owned(), "y z".to_owned())]);
    }
}
