//! One JSON object in one pass: fields as slices of the line, eight bytes at a time, nothing copied.
//!
//! Not a full parser. It tells where keys and values begin and end in what it knows to be well-formed enough; anything
//! else is [`Odd`], and the caller asks the general parser. Numbers, nested values and escapes are *found* here and
//! checked by whoever reads them.

/// Not for the fast way: escaped keys, control characters, broken syntax.
#[derive(Debug, PartialEq, Eq)]
pub struct Odd;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With its quotes; no escapes inside.
    Plain,
    /// With its quotes; escapes inside.
    Escaped,
    /// Number, `true`, `false`, `null`.
    Scalar,
    /// Array or object.
    Nested,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Without quotes and escapes.
    pub key: &'a str,
    /// The value's JSON text.
    pub raw: &'a str,
    pub kind: Kind,
}

impl<'a> Field<'a> {
    /// The text between the quotes of a string without escapes.
    pub fn plain(&self) -> Option<&'a str> {
        (self.kind == Kind::Plain).then(|| &self.raw[1..self.raw.len() - 1])
    }
}

/// Walks the fields of one line.
pub struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    first: bool,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// High bit set in the lowest zero byte (bytes above it may be set too).
const fn zero_byte(x: u64) -> u64 {
    x.wrapping_sub(ONES) & !x & HIGHS
}

/// First `"`, `\` or control character at or after `at`.
#[inline]
fn special(bytes: &[u8], mut at: usize) -> Option<usize> {
    while let Some(chunk) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        let quote = zero_byte(word ^ (ONES * b'"' as u64));
        let backslash = zero_byte(word ^ (ONES * b'\\' as u64));
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        let hit = quote | backslash | control;
        if hit != 0 {
            return Some(at + (hit.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
    bytes[at.min(bytes.len())..].iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20)).map(|i| at + i)
}

impl<'a> Scanner<'a> {
    pub fn new(line: &'a str) -> Result<Self, Odd> {
        let mut s = Scanner { text: line, bytes: line.as_bytes(), at: 0, first: true };
        s.expect(b'{')?;
        Ok(s)
    }

    #[inline]
    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r') = self.bytes.get(self.at) {
            self.at += 1;
        }
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<(), Odd> {
        self.skip_space();
        if self.bytes.get(self.at) != Some(&byte) {
            return Err(Odd);
        }
        self.at += 1;
        Ok(())
    }

    /// The end of a string whose opening quote is behind, and whether escapes are in it. `at` moves past the end quote.
    #[inline]
    fn string(&mut self) -> Result<(usize, bool), Odd> {
        let mut escaped = false;
        let mut at = self.at;
        loop {
            at = special(self.bytes, at).ok_or(Odd)?;
            match self.bytes[at] {
                b'"' => {
                    self.at = at + 1;
                    return Ok((at, escaped));
                }
                b'\\' => {
                    escaped = true;
                    at += 2;
                }
                _ => return Err(Odd),
            }
        }
    }

    /// The next field; `None` after the last one, when nothing but space follows.
    #[inline]
    pub fn field(&mut self) -> Result<Option<Field<'a>>, Odd> {
        self.skip_space();
        match self.bytes.get(self.at) {
            Some(b'}') => {
                self.at += 1;
                self.skip_space();
                return if self.at == self.bytes.len() { Ok(None) } else { Err(Odd) };
            }
            Some(b',') if !self.first => self.at += 1,
            Some(_) if self.first => {}
            _ => return Err(Odd),
        }
        self.first = false;
        self.expect(b'"')?;
        let from = self.at;
        let (end, escaped) = self.string()?;
        if escaped {
            return Err(Odd);
        }
        let key = &self.text[from..end];
        self.expect(b':')?;
        self.skip_space();
        let from = self.at;
        let kind = match self.bytes.get(from) {
            Some(b'"') => {
                self.at += 1;
                if self.string()?.1 { Kind::Escaped } else { Kind::Plain }
            }
            Some(b'{' | b'[') => {
                self.nested()?;
                Kind::Nested
            }
            _ => {
                let rest = &self.bytes[from..];
                let len = rest.iter().position(|b| matches!(b, b',' | b'}' | 0..=0x20)).ok_or(Odd)?;
                if len == 0 || !rest[..len].is_ascii() {
                    return Err(Odd);
                }
                self.at += len;
                Kind::Scalar
            }
        };
        Ok(Some(Field { key, raw: &self.text[from..self.at], kind }))
    }

    /// Past the bracket that closes the one at `at`. Which bracket closes which is left to the reader of the value.
    fn nested(&mut self) -> Result<(), Odd> {
        let mut depth = 0usize;
        loop {
            match self.bytes.get(self.at).ok_or(Odd)? {
                b'"' => {
                    self.at += 1;
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                b'\t' | b'\r' => {}
                0..0x20 => return Err(Odd),
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Ok(());
            }
        }
    }
}

/// Appends the meaning of a string's inside (no quotes) to `out`; `None`: a wrong escape or half a surrogate pair.
pub fn unescape(inside: &str, out: &mut String) -> Option<()> {
    let mut rest = inside;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let bytes = rest.as_bytes();
        let (c, used) = match bytes.get(at + 1)? {
            b'"' => ('"', 2),
            b'\\' => ('\\', 2),
            b'/' => ('/', 2),
            b'b' => ('\u{8}', 2),
            b'f' => ('\u{c}', 2),
            b'n' => ('\n', 2),
            b'r' => ('\r', 2),
            b't' => ('\t', 2),
            b'u' => {
                let first = hex4(bytes, at + 2)?;
                if (0xd800..0xdc00).contains(&first) {
                    if bytes.get(at + 6..at + 8)? != b"\\u" {
                        return None;
                    }
                    let second = hex4(bytes, at + 8).filter(|s| (0xdc00..0xe000).contains(s))?;
                    (char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00))?, 12)
                } else {
                    (char::from_u32(first)?, 6)
                }
            }
            _ => return None,
        };
        out.push(c);
        rest = &rest[at + used..];
    }
    out.push_str(rest);
    Some(())
}

fn hex4(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.iter().try_fold(0, |n, b| Some(n << 4 | char::from(*b).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(line: &str) -> Result<Vec<(String, String)>, Odd> {
        let mut s = Scanner::new(line)?;
        let mut out = Vec::new();
        while let Some(f) = s.field()? {
            out.push((f.key.to_owned(), f.raw.to_owned()));
        }
        Ok(out)
    }

    #[test]
    fn fields_are_found_and_broken_lines_are_odd() {
        assert_eq!(
            fields(r#" { "a" : "x\"y" ,"b":[1,{"c":"]"}], "ü":-1.5e3,"d":null } "#).unwrap(),
            [("a", r#""x\"y""#), ("b", r#"[1,{"c":"]"}]"#), ("ü", "-1.5e3"), ("d", "null")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
        );
        assert_eq!(fields("{}").unwrap(), []);
        for bad in [
            "",
            "{",
            "[]",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1"#,
            r#"{"a":1,}"#,
            r#"{,"a":1}"#,
            r#"{"a":1}x"#,
            "{\"a\":\"\n\"}",
            r#"{"a\n":1}"#,
        ] {
            assert_eq!(fields(bad), Err(Odd), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn strings_read_as_the_general_parser_reads_them(s in "(\\\\[\"\\\\/bfnrtux0-9a-f]|\\\\ud83d\\\\ude00|[a-z\u{0}-\u{1f}ü\u{1f600}\"]){0,12}") {
            let quoted = format!("\"{s}\"");
            let want = serde_json::from_str::<String>(&quoted).ok();
            let line = format!("{{\"k\":{quoted}}}");
            let mut got = None;
            if let Ok(f) = fields(&line) && f.len() == 1 && f[0].0 == "k" && f[0].1 == quoted {
                let mut out = String::new();
                got = unescape(&s, &mut out).map(|()| out);
            }
            prop_assert_eq!(got, want);
        }

        #[test]
        fn arbitrary_text_is_survived(s in "[{}\\[\\]\":,\\\\ a1]{0,40}", t in ".{0,40}") {
            let _ = (fields(&s), fields(&t), fields(&format!("{{\"a\":{s}")));
        }
    }
}
