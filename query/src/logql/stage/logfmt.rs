//! logfmt, pair by pair.

use std::borrow::Cow;

/// The pairs of a line: `Ok((key, value))`, a bare key with an empty value; `Err` for a malformed stretch, which is skipped.
pub struct Pairs<'a> {
    rest: &'a str,
}

impl<'a> Pairs<'a> {
    pub fn new(line: &'a str) -> Self {
        Pairs { rest: line }
    }

    /// The next pair, `None` at the end.
    pub fn next(&mut self) -> Option<Result<(&'a str, Cow<'a, str>), &'static str>> {
        let text = self.rest.trim_start_matches(|c: char| c <= ' ');
        self.rest = text;
        if text.is_empty() {
            return None;
        }
        let bytes = text.as_bytes();
        let n = bytes.iter().position(|b| *b <= b' ' || *b == b'=' || *b == b'"').unwrap_or(bytes.len());
        let key = &text[..n];
        match bytes.get(n) {
            Some(b'=') if n > 0 => {}
            Some(b'=' | b'"') => {
                self.skip_word();
                return Some(Err("unexpected character"));
            }
            _ => {
                self.rest = &text[n..];
                return Some(Ok((key, Cow::Borrowed(""))));
            }
        }
        let value = &text[n + 1..];
        if let Some(quoted) = value.strip_prefix('"') {
            return Some(match closing_quote(quoted) {
                Some(end) => {
                    self.rest = &quoted[end + 1..];
                    match unquote(&quoted[..end]) {
                        Some(v) => Ok((key, v)),
                        None => Err("invalid quoted value"),
                    }
                }
                None => {
                    self.rest = "";
                    Err("unterminated quoted value")
                }
            });
        }
        let end = value.bytes().position(|b| b <= b' ' || b == b'=' || b == b'"').unwrap_or(value.len());
        if matches!(value.as_bytes().get(end), Some(b'=' | b'"')) {
            self.rest = value;
            self.skip_word();
            return Some(Err("unexpected character in value"));
        }
        self.rest = &value[end..];
        Some(Ok((key, Cow::Borrowed(&value[..end]))))
    }

    fn skip_word(&mut self) {
        let n = self.rest.bytes().position(|b| b <= b' ').unwrap_or(self.rest.len());
        self.rest = &self.rest[n..];
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 1,
            b'"' => return Some(i),
            _ => {}
        }
        i += 1;
    }
    None
}

fn unquote(text: &str) -> Option<Cow<'_, str>> {
    if text.contains('\\') {
        serde_json::from_str::<String>(&format!("\"{text}\"")).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(text))
    }
}
