//! The label text of a protobuf stream: `{app="api", env="prod"}`.

use std::borrow::Cow;

use storage::model::Labels;

/// Reads a label set. `Err`: where it is wrong, in Loki's words.
pub fn parse_labels(text: &str) -> Result<Labels, String> {
    let mut p = Parser { text, at: 0 };
    let mut pairs: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::new();
    p.expect('{')?;
    p.space();
    while !p.eat('}') {
        let name = p.name()?;
        p.space();
        p.expect('=')?;
        p.space();
        let value = p.string()?;
        pairs.push((Cow::Borrowed(name), Cow::Owned(value)));
        p.space();
        if !p.eat(',') {
            p.expect('}')?;
            break;
        }
        p.space();
    }
    p.space();
    if p.at < text.len() {
        return Err(p.error());
    }
    super::checked_labels(pairs)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn error(&self) -> String {
        let column = self.text[..self.at].chars().count() + 1;
        match self.rest().chars().next() {
            None => format!("couldn't parse labels: 1:{column}: parse error: unexpected end of input inside braces"),
            Some(c) => {
                format!("couldn't parse labels: 1:{column}: parse error: unexpected character inside braces: '{c}'")
            }
        }
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.rest().starts_with(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.eat(c) { Ok(()) } else { Err(self.error()) }
    }

    fn name(&mut self) -> Result<&'a str, String> {
        let rest = self.rest();
        let len = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        if len == 0 || rest.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(self.error());
        }
        self.at += len;
        Ok(&rest[..len])
    }

    /// Go's string forms: double quotes with escapes, backquotes without.
    fn string(&mut self) -> Result<String, String> {
        if self.eat('`') {
            let len = self.rest().find('`').ok_or_else(|| self.error())?;
            let inside = &self.rest()[..len];
            self.at += len + 1;
            return Ok(inside.to_owned());
        }
        self.expect('"')?;
        let mut out: Vec<u8> = Vec::new();
        loop {
            let c = self.rest().chars().next().ok_or_else(|| self.error())?;
            self.at += c.len_utf8();
            match c {
                '"' => return String::from_utf8(out).map_err(|_| self.error()),
                '\\' => self.escape(&mut out)?,
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let c = self.rest().chars().next().ok_or_else(|| self.error())?;
        self.at += c.len_utf8();
        let plain = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '"' | '\'' => c as u8,
            'x' => self.digits(2, 16)? as u8,
            '0'..='7' => {
                self.at -= 1;
                u8::try_from(self.digits(3, 8)?).map_err(|_| self.error())?
            }
            'u' | 'U' => {
                let code = self.digits(if c == 'u' { 4 } else { 8 }, 16)?;
                let c = char::from_u32(code).ok_or_else(|| self.error())?;
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.error()),
        };
        out.push(plain);
        Ok(())
    }

    fn digits(&mut self, n: usize, radix: u32) -> Result<u32, String> {
        let digits = self.rest().get(..n).filter(|d| d.bytes().all(|b| char::from(b).is_digit(radix)));
        let value = digits.and_then(|d| u32::from_str_radix(d, radix).ok()).ok_or_else(|| self.error())?;
        self.at += n;
        Ok(value)
    }
}
