//! Text to tokens. Numbers, durations and byte sizes are told apart here; a range `[5m]` is one token, as in Loki.

use super::error::QueryError;

/// Longest query text, bytes.
pub const QUERY_BYTES_MAX: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Ident(String),
    Str(String),
    Number(f64),
    /// Nanoseconds.
    Duration(i64),
    Bytes(u64),
    /// Nanoseconds.
    Range(i64),
    /// `--strict` without its dashes.
    Flag(&'static str),
    /// Any operator or bracket.
    Op(&'static str),
    End,
}

impl Token {
    /// The name Loki's messages give it.
    pub fn describe(&self) -> String {
        match self {
            Token::Ident(name) if is_keyword(name) => name.to_ascii_uppercase(),
            Token::Ident(_) => "IDENTIFIER".into(),
            Token::Str(_) => "STRING".into(),
            Token::Number(_) => "NUMBER".into(),
            Token::Duration(_) => "DURATION".into(),
            Token::Bytes(_) => "BYTES".into(),
            Token::Range(_) => "RANGE".into(),
            Token::Flag(f) => format!("--{f}"),
            Token::Op(o) => (*o).into(),
            Token::End => "$end".into(),
        }
    }
}

fn is_keyword(name: &str) -> bool {
    super::ast::RangeOp::from_name(name).is_some() || super::ast::VectorOp::from_name(name).is_some()
}

/// A token and where it starts.
#[derive(Clone, Debug)]
pub struct Spanned {
    pub token: Token,
    pub line: usize,
    /// In characters, from 1.
    pub col: usize,
}

const OPS: [&str; 25] = [
    "|=", "|~", "|>", "!=", "!~", "!>", "=~", "==", ">=", "<=", "{", "}", "(", ")", ",", "=", "|", "+", "-", "*",
    "/", "%", "^", ">", "<",
];

pub fn lex(text: &str) -> Result<Vec<Spanned>, QueryError> {
    if text.len() > QUERY_BYTES_MAX {
        return Err(QueryError::parse(format!("query is longer than {QUERY_BYTES_MAX} bytes")));
    }
    let mut lexer = Lexer { text, at: 0, line: 1, line_start: 0 };
    let mut out = Vec::new();
    loop {
        lexer.skip_space();
        let (line, col) = (lexer.line, lexer.col());
        let token = lexer.next()?;
        let end = token == Token::End;
        out.push(Spanned { token, line, col });
        if end {
            return Ok(out);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    line_start: usize,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn col(&self) -> usize {
        self.text[self.line_start..self.at].chars().count() + 1
    }

    fn error(&self, what: impl std::fmt::Display) -> QueryError {
        QueryError::parse_at(self.line, self.col(), what)
    }

    fn skip_space(&mut self) {
        let bytes = self.text.as_bytes();
        while let Some(&b) = bytes.get(self.at) {
            match b {
                b'\n' => {
                    self.at += 1;
                    self.line += 1;
                    self.line_start = self.at;
                }
                b' ' | b'\t' | b'\r' => self.at += 1,
                b'#' => {
                    self.at = self.rest().find('\n').map_or(self.text.len(), |n| self.at + n);
                }
                _ => return,
            }
        }
    }

    fn next(&mut self) -> Result<Token, QueryError> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        if first.is_ascii_alphabetic() || first == '_' {
            let n = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
            let name = rest[..n].to_owned();
            self.at += n;
            return Ok(Token::Ident(name));
        }
        match first {
            '"' | '`' => return self.string(first),
            '[' => return self.range(),
            '0'..='9' => return self.number(),
            '.' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => return self.number(),
            _ => {}
        }
        for flag in ["strict", "keep-empty"] {
            if rest.strip_prefix("--").is_some_and(|r| r.starts_with(flag)) {
                self.at += 2 + flag.len();
                return Ok(Token::Flag(flag));
            }
        }
        if let Some(op) = OPS.iter().find(|o| rest.starts_with(**o)) {
            self.at += op.len();
            return Ok(Token::Op(op));
        }
        Err(self.error(format!("syntax error: unexpected character {first:?}")))
    }

    fn string(&mut self, quote: char) -> Result<Token, QueryError> {
        let body = &self.text[self.at + 1..];
        if quote == '`' {
            let Some(n) = body.find('`') else { return Err(self.error("literal not terminated")) };
            let value = body[..n].replace('\r', "");
            for (i, b) in body[..n].bytes().enumerate() {
                if b == b'\n' {
                    self.line += 1;
                    self.line_start = self.at + 2 + i;
                }
            }
            self.at += n + 2;
            return Ok(Token::Str(value));
        }
        let mut end = None;
        let mut escaped = false;
        for (i, c) in body.char_indices() {
            match c {
                '\n' => break,
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => {
                    end = Some(i);
                    break;
                }
                _ => {}
            }
        }
        let Some(n) = end else { return Err(self.error("literal not terminated")) };
        let value = unescape(&body[..n]).ok_or_else(|| self.error("invalid char escape"))?;
        self.at += n + 2;
        Ok(Token::Str(value))
    }

    fn range(&mut self) -> Result<Token, QueryError> {
        let body = &self.text[self.at + 1..];
        let Some(n) = body.find(']') else { return Err(self.error("missing closing ']' in duration")) };
        let inner = body[..n].trim();
        if inner.is_empty() {
            return Err(self.error("empty duration string"));
        }
        let nanos = parse_duration(inner)
            .filter(|d| *d >= 0)
            .ok_or_else(|| self.error(format!("not a valid duration string: {inner:?}")))?;
        self.at += n + 2;
        Ok(Token::Range(nanos))
    }

    fn number(&mut self) -> Result<Token, QueryError> {
        let rest = self.rest();
        let bytes = rest.as_bytes();
        // The longest run that can belong to a number with a unit.
        let mut n = 0;
        while n < bytes.len() {
            let b = bytes[n];
            let exponent_sign = (b == b'+' || b == b'-')
                && n > 0
                && matches!(bytes[n - 1], b'e' | b'E')
                && bytes[..n - 1].iter().all(|c| c.is_ascii_digit() || *c == b'.');
            if b.is_ascii_alphanumeric() || b == b'.' || b == b'_' || b >= 0x80 || exponent_sign {
                n += 1;
            } else {
                break;
            }
        }
        let word = &rest[..n];
        let token = if let Ok(v) = word.parse::<f64>() {
            // Go reads no number that is out of range; its infinity could not be written down again either.
            if !v.is_finite() {
                let shown: String = word.chars().take(40).collect();
                return Err(self.error(format!("unable to parse literal as a float: {shown:?} is out of range")));
            }
            Token::Number(v)
        } else if let Some(v) =
            word.strip_prefix("0x").or(word.strip_prefix("0X")).and_then(|h| u64::from_str_radix(h, 16).ok())
        {
            Token::Number(v as f64)
        } else if let Some(d) = parse_duration(word) {
            Token::Duration(d)
        } else if let Some(b) = parse_bytes(word) {
            Token::Bytes(b)
        } else {
            return Err(self.error(format!("syntax error: {word:?} is not a number, duration or size")));
        };
        self.at += n;
        Ok(token)
    }
}

/// Go's interpreted string escapes.
fn unescape(text: &str) -> Option<String> {
    if !text.contains('\\') {
        return Some(text.to_owned());
    }
    let mut out: Vec<u8> = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(i) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..i]);
        let code = rest[i + 1..].chars().next()?;
        rest = &rest[i + 1 + code.len_utf8()..];
        let mut hex = |digits: usize| -> Option<u32> {
            let v = u32::from_str_radix(rest.get(..digits)?, 16).ok()?;
            rest = &rest[digits..];
            Some(v)
        };
        let push_char = |out: &mut Vec<u8>, v: u32| -> Option<()> {
            let c = char::from_u32(v)?;
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            Some(())
        };
        match code {
            'a' => out.push(7),
            'b' => out.push(8),
            'f' => out.push(12),
            'n' => out.push(b'\n'),
            'r' => out.push(b'\r'),
            't' => out.push(b'\t'),
            'v' => out.push(11),
            '\\' | '"' => out.push(code as u8),
            'x' => out.push(hex(2)? as u8),
            'u' => push_char(&mut out, hex(4)?)?,
            'U' => push_char(&mut out, hex(8)?)?,
            '0'..='7' => {
                let more = rest.get(..2)?;
                let v = u32::from_str_radix(&format!("{code}{more}"), 8).ok()?;
                rest = &rest[2..];
                out.push(u8::try_from(v).ok()?);
            }
            _ => return None,
        }
    }
    out.extend_from_slice(rest.as_bytes());
    Some(String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

const UNITS: [(&str, f64); 11] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
    ("d", 86_400e9),
    ("w", 7.0 * 86_400e9),
    ("y", 365.0 * 86_400e9),
];

/// `1h30m`, `1.5h`, `1d`, `-5m`: nanoseconds. A number without a unit is none, `0` excepted.
pub fn parse_duration(text: &str) -> Option<i64> {
    parse_duration_units(text, &UNITS)
}

/// As Go's `time.ParseDuration`: no units above an hour.
pub fn parse_go_duration(text: &str) -> Option<i64> {
    parse_duration_units(text, &UNITS[..8])
}

fn parse_duration_units(text: &str, units: &[(&str, f64)]) -> Option<i64> {
    let (sign, mut rest) = match text.as_bytes().first()? {
        b'-' => (-1.0, &text[1..]),
        b'+' => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0_f64;
    let mut whole = 0_i64;
    while !rest.is_empty() {
        let n = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).filter(|n| *n > 0)?;
        let digits = &rest[..n];
        let unit_len = rest[n..].find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len() - n);
        let unit = &rest[n..n + unit_len];
        let scale = units.iter().find(|(u, _)| *u == unit)?.1;
        match digits.parse::<i64>() {
            Ok(v) => whole = whole.checked_add(v.checked_mul(scale as i64)?)?,
            Err(_) => total += digits.parse::<f64>().ok()? * scale,
        }
        rest = &rest[n + unit_len..];
    }
    let nanos = total + whole as f64;
    if nanos.abs() > 9.2e18 {
        return None;
    }
    Some(if total == 0.0 { (sign as i64) * whole } else { (sign * nanos) as i64 })
}

/// `1KB`, `1.5MiB`, `20B`: bytes, decimal and binary units.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let n = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ',')).unwrap_or(text.len());
    let value: f64 = text[..n].replace(',', "").parse().ok()?;
    let unit = text[n..].trim().to_ascii_lowercase();
    let (letter, base) = match unit.as_str() {
        "" | "b" => return Some(value as u64),
        u => {
            let binary = u.ends_with("ib") || (u.len() == 2 && u.ends_with('i'));
            (u.chars().next()?, if binary { 1024.0_f64 } else { 1000.0 })
        }
    };
    if !matches!(unit.as_bytes(), [_] | [_, b'b' | b'i'] | [_, b'i', b'b']) {
        return None;
    }
    let power = "kmgtpe".find(letter)? as i32 + 1;
    let bytes = value * base.powi(power);
    (bytes < u64::MAX as f64).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token> {
        lex(text).unwrap().into_iter().map(|s| s.token).collect()
    }

    #[test]
    fn durations_sizes_and_numbers_are_told_apart() {
        assert_eq!(
            tokens("1h30m 1.5h 20KiB 1e3 5 [5m] 1kB"),
            [
                Token::Duration(5_400_000_000_000),
                Token::Duration(5_400_000_000_000),
                Token::Bytes(20480),
                Token::Number(1000.0),
                Token::Number(5.0),
                Token::Range(300_000_000_000),
                Token::Bytes(1000),
                Token::End
            ]
        );
        assert!(lex("[5]").is_err() && lex("[]").is_err() && lex("1xyz").is_err() && lex("[-5m]").is_err());
    }

    #[test]
    fn strings_take_go_escapes_and_raw_text() {
        assert_eq!(
            tokens("\"a\\n\\\"\\x41\\u00e9\\101\" `\\n`"),
            [Token::Str("a\n\"AéA".into()), Token::Str("\\n".into()), Token::End]
        );
        assert!(lex("\"open").is_err() && lex("\"\\q\"").is_err());
    }

    #[test]
    fn comments_and_flags_and_double_signs() {
        assert_eq!(
            tokens("logfmt --strict # x\n1 --1"),
            [
                Token::Ident("logfmt".into()),
                Token::Flag("strict"),
                Token::Number(1.0),
                Token::Op("-"),
                Token::Op("-"),
                Token::Number(1.0),
                Token::End
            ]
        );
    }
}
