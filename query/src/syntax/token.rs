//! Tokens: identifiers, numbers (durations and sizes included), strings, punctuation.

use super::{QUERY_BYTES_MAX, SyntaxError};

/// Byte range in the query text, half-open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub struct Span {
    pub start: usize,
    pub end: usize,
}

impl Span {
    pub const fn new(start: usize, end: usize) -> Self {
        Span { start, end }
    }

    /// The smallest span that holds both.
    pub fn to(self, other: Span) -> Span {
        Span { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    pub fn text(self, of: &str) -> &str {
        of.get(self.start..self.end).unwrap_or("")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Name or keyword, as the dialect's character rules have it.
    Ident,
    /// Starts with a digit or with `.` and a digit and runs as far as letters, digits, `_` and `.` go (with the sign of
    /// a decimal exponent): `1e-3`, `0x1F`, `5m30s`, `10KiB`. The language says what it is.
    Number,
    /// Quoted text, quotes included, known to be terminated; see [`unquote`].
    String,
    /// One of the dialect's [`Dialect::puncts`].
    Punct(&'static str),
    /// The end of the text.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    pub span: Span,
}

/// Lexical form of a language. White space separates; `#` starts a comment that runs to the end of the line.
pub struct Dialect {
    /// All punctuation, longer before shorter where one begins another.
    pub puncts: &'static [&'static str],
    pub ident_start: fn(char) -> bool,
    pub ident_continue: fn(char) -> bool,
    /// `:` may start and continue identifiers outside `{}` and `[]` (PromQL's metric names).
    pub colon_in_idents: bool,
    /// `'...'` is a string too.
    pub single_quotes: bool,
}

/// The tokens of `text`, the last of them [`Kind::End`].
pub fn lex(text: &str, dialect: &Dialect) -> Result<Vec<Token>, SyntaxError> {
    if text.len() > QUERY_BYTES_MAX {
        let message = format!("query of {} bytes is longer than the limit of {QUERY_BYTES_MAX} bytes", text.len());
        return Err(SyntaxError { message, span: Span::default(), line: 1, column: 1 });
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(text.len() / 4 + 1);
    let mut at = 0;
    // Open `{` and `[`: inside them a colon is punctuation.
    let mut open = 0usize;
    while at < bytes.len() {
        let c = text[at..].chars().next().expect("offset is inside the text, on a character");
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        if c == '#' {
            at += text[at..].find('\n').unwrap_or(text.len() - at);
            continue;
        }
        let start = at;
        let kind;
        if c == '"' || c == '`' || (c == '\'' && dialect.single_quotes) {
            at = string_end(text, at)
                .ok_or_else(|| SyntaxError::new(text, Span::new(start, text.len()), "unterminated quoted string"))?;
            kind = Kind::String;
        } else if c.is_ascii_digit() || (c == '.' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)) {
            at = number_end(bytes, at);
            kind = Kind::Number;
        } else if (dialect.ident_start)(c) || (c == ':' && dialect.colon_in_idents && open == 0) {
            at += c.len_utf8();
            for next in text[at..].chars() {
                if !((dialect.ident_continue)(next) || (next == ':' && dialect.colon_in_idents && open == 0)) {
                    break;
                }
                at += next.len_utf8();
            }
            kind = Kind::Ident;
        } else if let Some(p) = dialect.puncts.iter().find(|p| text[at..].starts_with(**p)) {
            at += p.len();
            match *p {
                "{" | "[" => open += 1,
                "}" | "]" => open = open.saturating_sub(1),
                _ => {}
            }
            kind = Kind::Punct(p);
        } else {
            let span = Span::new(at, at + c.len_utf8());
            return Err(SyntaxError::new(text, span, format!("unexpected character: {c:?}")));
        }
        out.push(Token { kind, span: Span::new(start, at) });
    }
    out.push(Token { kind: Kind::End, span: Span::new(text.len(), text.len()) });
    Ok(out)
}

fn string_end(text: &str, start: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let quote = bytes[start];
    let mut at = start + 1;
    while let Some(&b) = bytes.get(at) {
        match b {
            b if b == quote => return Some(at + 1),
            b'\\' if quote != b'`' => at += 2,
            b'\n' if quote != b'`' => return None,
            _ => at += 1,
        }
    }
    None
}

fn number_end(bytes: &[u8], start: usize) -> usize {
    let hex = bytes[start] == b'0' && matches!(bytes.get(start + 1), Some(b'x' | b'X'));
    let mut at = start;
    // An `e` after nothing but digits, dots and underscores is an exponent's.
    let mut decimal = !hex;
    while let Some(&b) = bytes.get(at) {
        match b {
            b'e' | b'E' if decimal => {
                decimal = false;
                at += 1;
                if matches!(bytes.get(at), Some(b'+' | b'-')) && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) {
                    at += 1;
                }
            }
            b'0'..=b'9' | b'.' | b'_' => at += 1,
            _ if b.is_ascii_alphabetic() => {
                decimal = false;
                at += 1;
            }
            // The micro sign of Go durations.
            0xc2 if bytes.get(at + 1) == Some(&0xb5) => at += 2,
            _ => break,
        }
    }
    at
}

/// The bytes a quoted string stands for: back quotes raw, else the escapes of Go
/// (`\a\b\f\n\r\t\v\\\"\'`, `\ooo`, `\xhh`, `\uhhhh`, `\Uhhhhhhhh`). Bytes, because `\xhh` need not be UTF-8.
/// Errors name the first bad escape.
pub fn unquote(quoted: &str) -> Result<Vec<u8>, String> {
    let inner = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or("");
    if quoted.starts_with('`') {
        return Ok(inner.as_bytes().to_vec());
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        let bytes = rest.as_bytes();
        let code = *bytes.get(at + 1).ok_or("string ends in a backslash")?;
        let digits = |from: usize, n: usize, radix: u32| -> Result<u32, String> {
            rest.get(from..from + n)
                .filter(|d| d.chars().all(|c| c.is_digit(radix)))
                .and_then(|d| u32::from_str_radix(d, radix).ok())
                .ok_or_else(|| "illegal character or length in escape sequence".to_owned())
        };
        let mut used = 2;
        match code {
            b'a' => out.push(7),
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(11),
            b'\\' | b'"' | b'\'' => out.push(code),
            b'0'..=b'7' => {
                out.push(u8::try_from(digits(at + 1, 3, 8)?).map_err(|_| "octal escape is over 255".to_owned())?);
                used = 4;
            }
            b'x' => {
                out.push(digits(at + 2, 2, 16)? as u8);
                used = 4;
            }
            b'u' | b'U' => {
                let n = if code == b'u' { 4 } else { 8 };
                let c = char::from_u32(digits(at + 2, n, 16)?)
                    .ok_or("escape sequence is an invalid Unicode code point")?;
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                used = 2 + n;
            }
            _ => {
                let c = rest[at + 1..].chars().next().unwrap_or('\\');
                return Err(format!("unknown escape sequence {c:?}"));
            }
        }
        rest = &rest[at + used..];
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}
