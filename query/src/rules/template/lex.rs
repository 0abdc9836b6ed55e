//! Template text to pieces: literal text and actions, and an action to its tokens.

use super::Value;

#[derive(Clone, Debug, PartialEq)]
pub enum Piece<'a> {
    Text(&'a str),
    /// Between the braces, without trim markers. With its line, from 1.
    Action(&'a str, usize),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A name: keyword, function, `true`, `nil`.
    Word(String),
    /// `.name`
    Field(String),
    /// `$name` or `$`
    Variable(String),
    Dot,
    Literal(Value),
    Pipe,
    Open,
    Close,
    Declare,
    Assign,
    Comma,
}

/// A token, and whether white space is before it.
pub type Spaced = (Token, bool);

/// Splits a text at its actions. Errors say what and on which line.
pub fn pieces(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut out = Vec::new();
    let mut rest = text;
    let mut line = 1;
    let mut trim_next = false;
    while let Some(at) = rest.find("{{") {
        let mut before = &rest[..at];
        line += before.matches('\n').count();
        let mut inner = &rest[at + 2..];
        let trims_before = inner.starts_with('-') && inner[1..].starts_with(char::is_whitespace);
        if trims_before {
            inner = &inner[1..];
        }
        if trim_next {
            before = before.trim_start();
        }
        if trims_before {
            before = before.trim_end();
        }
        if !before.is_empty() {
            out.push(Piece::Text(before));
        }
        let begun = inner.trim_start();
        let (body, after) = if begun.starts_with("/*") {
            let skipped = inner.len() - begun.len();
            let end = begun.find("*/").ok_or_else(|| format!("{line}: unclosed comment"))? + skipped + 2;
            let close =
                inner[end..].find("}}").ok_or_else(|| format!("{line}: comment ends before closing delimiter"))?;
            if !matches!(inner[end..end + close].trim(), "" | "-") {
                return Err(format!("{line}: comment ends before closing delimiter"));
            }
            (&inner[..end + close], &inner[end + close + 2..])
        } else {
            let end = end_of_action(inner).ok_or_else(|| format!("{line}: unclosed action"))?;
            (&inner[..end], &inner[end + 2..])
        };
        trim_next = body.ends_with('-') && (body.len() == 1 || body[..body.len() - 1].ends_with(char::is_whitespace));
        let kept = if trim_next { &body[..body.len() - 1] } else { body };
        if !begun.starts_with("/*") {
            out.push(Piece::Action(kept, line));
        }
        line += body.matches('\n').count();
        rest = after;
    }
    let last = if trim_next { rest.trim_start() } else { rest };
    if !last.is_empty() {
        out.push(Piece::Text(last));
    }
    Ok(out)
}

/// Where `}}` ends an action, quotes respected.
fn end_of_action(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut at = 0;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (None, b'}') if bytes.get(at + 1) == Some(&b'}') => return Some(at),
            (None, q @ (b'"' | b'`' | b'\'')) => quote = Some(q),
            (Some(q), b'\\') if q != b'`' => at += 1,
            (Some(q), c) if c == q => quote = None,
            _ => {}
        }
        at += 1;
    }
    None
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Tokens of an action.
pub fn tokens(action: &str) -> Result<Vec<Spaced>, String> {
    let mut out = Vec::new();
    let mut rest = action;
    loop {
        let trimmed = rest.trim_start();
        let spaced = trimmed.len() < rest.len() || out.is_empty();
        rest = trimmed;
        let Some(c) = rest.chars().next() else { return Ok(out) };
        let word_from = |from: usize| rest[from..].find(|c| !is_word(c)).map_or(rest.len(), |n| from + n);
        let (token, used) = match c {
            '|' => (Token::Pipe, 1),
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '=' => (Token::Assign, 1),
            ':' if rest[1..].starts_with('=') => (Token::Declare, 2),
            '"' | '`' | '\'' => quoted(rest)?,
            '.' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => number(rest)?,
            '.' => match word_from(1) {
                1 => (Token::Dot, 1),
                end => (Token::Field(rest[1..end].to_owned()), end),
            },
            '$' => {
                let end = word_from(1);
                (Token::Variable(rest[..end].to_owned()), end)
            }
            '0'..='9' => number(rest)?,
            '+' | '-' if rest[1..].starts_with(|c: char| c.is_ascii_digit() || c == '.') => number(rest)?,
            c if is_word(c) => {
                let end = word_from(0);
                (Token::Word(rest[..end].to_owned()), end)
            }
            c => return Err(format!("unexpected {c:?} in action")),
        };
        out.push((token, spaced));
        rest = &rest[used..];
    }
}

fn quoted(text: &str) -> Result<(Token, usize), String> {
    let quote = text.as_bytes()[0];
    let mut at = 1;
    let bytes = text.as_bytes();
    loop {
        match bytes.get(at) {
            None => return Err("unterminated quoted string".into()),
            Some(b'\n') if quote != b'`' => return Err("unterminated quoted string".into()),
            Some(b'\\') if quote != b'`' => at += 1,
            Some(c) if *c == quote => break,
            _ => {}
        }
        at += 1;
    }
    let value = crate::syntax::unquote(&text[..=at])?;
    let value = String::from_utf8(value).map_err(|_| "text is not UTF-8".to_owned())?;
    if quote == b'\'' {
        let mut chars = value.chars();
        return match (chars.next(), chars.next()) {
            (Some(c), None) => Ok((Token::Literal(Value::Int(i64::from(u32::from(c)))), at + 1)),
            _ => Err("malformed character constant".into()),
        };
    }
    Ok((Token::Literal(Value::text(value)), at + 1))
}

fn number(text: &str) -> Result<(Token, usize), String> {
    let hex = text.trim_start_matches(['+', '-']).starts_with("0x");
    let mut end = 0;
    let mut before = ' ';
    for (i, c) in text.char_indices() {
        let sign = matches!(c, '+' | '-') && (i == 0 || (!hex && matches!(before, 'e' | 'E')));
        if !(sign || c.is_ascii_alphanumeric() || c == '.' || c == '_') {
            break;
        }
        end = i + c.len_utf8();
        before = c;
    }
    let written = &text[..end];
    let plain = written.replace('_', "");
    let bad = || format!("bad number syntax: {written:?}");
    let (minus, digits) = match plain.strip_prefix('-') {
        Some(d) => (true, d),
        None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let whole = match digits.strip_prefix("0x") {
        Some(h) => i64::from_str_radix(h, 16).ok(),
        None => digits.parse::<i64>().ok(),
    };
    let value = match whole {
        Some(n) => Value::Int(if minus { -n } else { n }),
        None if digits.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b)) => {
            Value::Float(plain.parse::<f64>().map_err(|_| bad())?)
        }
        None => return Err(bad()),
    };
    Ok((Token::Literal(value), end))
}
