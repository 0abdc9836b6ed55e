//! Canonical JSON of attribute sets: one text for one meaning, lossless from OTLP's `AnyValue`.
//!
//! Rules: object keys in byte order, last of equal keys wins, no spaces. Strings, booleans and integers (all of i64)
//! as JSON has them; a double always has a `.`, an exponent, or is `{"$double":"NaN"|"Infinity"|"-Infinity"}`;
//! bytes are `{"$bytes":"<base64>"}`; an unset value is `null`.

/// Appends `text` as a JSON string with the shortest escapes.
pub fn write_string(out: &mut String, text: &str) {
    out.push('"');
    let bytes = text.as_bytes();
    // Nearly always nothing is to escape; without an early exit this is told many bytes at a time.
    if !bytes.iter().fold(false, |escapes, b| escapes | (*b < 0x20) | (*b == b'"') | (*b == b'\\')) {
        out.push_str(text);
        out.push('"');
        return;
    }
    let mut from = 0;
    for (i, &b) in bytes.iter().enumerate() {
        let escape: &str = match b {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..=0x1f => {
                out.push_str(&text[from..i]);
                out.push_str("\\u00");
                out.push(char::from(b"0123456789abcdef"[usize::from(b >> 4)]));
                out.push(char::from(b"0123456789abcdef"[usize::from(b & 15)]));
                from = i + 1;
                continue;
            }
            _ => continue,
        };
        out.push_str(&text[from..i]);
        out.push_str(escape);
        from = i + 1;
    }
    out.push_str(&text[from..]);
    out.push('"');
}

/// Appends a double so that it reads back as a double with the same bits (NaN payloads excepted).
pub fn write_double(out: &mut String, value: f64) {
    use std::fmt::Write as _;
    if value.is_finite() {
        // `{:?}` prints the shortest text that reads back the same, with `.0` or an exponent.
        let _ = write!(out, "{value:?}");
    } else if value.is_nan() {
        out.push_str(r#"{"$double":"NaN"}"#);
    } else if value > 0.0 {
        out.push_str(r#"{"$double":"Infinity"}"#);
    } else {
        out.push_str(r#"{"$double":"-Infinity"}"#);
    }
}

/// Appends bytes as `{"$bytes":"<base64>"}`.
pub fn write_bytes(out: &mut String, value: &[u8]) {
    use base64::Engine as _;
    out.push_str(r#"{"$bytes":""#);
    base64::engine::general_purpose::STANDARD.encode_string(value, out);
    out.push_str("\"}");
}

/// Deepest nesting [`parse`] follows; ingest refuses deeper values long before.
pub const DEPTH_MAX: usize = 256;

/// A value read back from canonical JSON. Keys of a map are in the order of the text.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Unset,
    Bool(bool),
    Int(i64),
    Double(f64),
    String(String),
    Bytes(Vec<u8>),
    Array(Vec<Value>),
    Map(Vec<(String, Value)>),
}

impl Value {
    /// The value of a key of a map.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Value::Map(pairs) = self else { return None };
        pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(s) = self { Some(s) } else { None }
    }

    pub fn as_int(&self) -> Option<i64> {
        if let Value::Int(i) = self { Some(*i) } else { None }
    }
}

/// Where canonical JSON cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not canonical JSON at byte {at}")]
pub struct ParseError {
    pub at: usize,
}

/// Reads canonical JSON without loss: integers stay integers, doubles keep their bits.
pub fn parse(text: &str) -> Result<Value, ParseError> {
    let mut p = Parser { text, at: 0 };
    let value = p.value(0)?;
    p.space();
    if p.at == text.len() { Ok(value) } else { Err(p.error()) }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn error(&self) -> ParseError {
        ParseError { at: self.at }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, token: &str) -> bool {
        let hit = self.text[self.at..].starts_with(token);
        if hit {
            self.at += token.len();
        }
        hit
    }

    fn value(&mut self, depth: usize) -> Result<Value, ParseError> {
        if depth > DEPTH_MAX {
            return Err(self.error());
        }
        self.space();
        match self.peek() {
            Some(b'"') => self.string().map(Value::String),
            Some(b'[') => {
                self.at += 1;
                let mut out = Vec::new();
                self.space();
                if self.eat("]") {
                    return Ok(Value::Array(out));
                }
                loop {
                    out.push(self.value(depth + 1)?);
                    self.space();
                    if self.eat("]") {
                        return Ok(Value::Array(out));
                    }
                    if !self.eat(",") {
                        return Err(self.error());
                    }
                }
            }
            Some(b'{') => self.map(depth),
            Some(b't') if self.eat("true") => Ok(Value::Bool(true)),
            Some(b'f') if self.eat("false") => Ok(Value::Bool(false)),
            Some(b'n') if self.eat("null") => Ok(Value::Unset),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.error()),
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, ParseError> {
        self.at += 1;
        let mut out = Vec::new();
        self.space();
        if self.eat("}") {
            return Ok(Value::Map(out));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.error());
            }
            let key = self.string()?;
            self.space();
            if !self.eat(":") {
                return Err(self.error());
            }
            out.push((key, self.value(depth + 1)?));
            self.space();
            if self.eat("}") {
                break;
            }
            if !self.eat(",") {
                return Err(self.error());
            }
        }
        // The two wrappers for what JSON itself cannot say.
        if let [(key, Value::String(inner))] = out.as_slice() {
            match (key.as_str(), inner.as_str()) {
                ("$double", "NaN") => return Ok(Value::Double(f64::NAN)),
                ("$double", "Infinity") => return Ok(Value::Double(f64::INFINITY)),
                ("$double", "-Infinity") => return Ok(Value::Double(f64::NEG_INFINITY)),
                ("$bytes", text) => {
                    use base64::Engine as _;
                    if let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(text) {
                        return Ok(Value::Bytes(bytes));
                    }
                }
                _ => {}
            }
        }
        Ok(Value::Map(out))
    }

    fn number(&mut self) -> Result<Value, ParseError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')) {
            self.at += 1;
        }
        let text = &self.text[start..self.at];
        if !text.contains(['.', 'e', 'E'])
            && let Ok(i) = text.parse()
        {
            return Ok(Value::Int(i));
        }
        text.parse().map(Value::Double).map_err(|_| ParseError { at: start })
    }

    fn string(&mut self) -> Result<String, ParseError> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let rest = &self.text[self.at..];
            let stop = rest.find(['"', '\\']).ok_or_else(|| self.error())?;
            out.push_str(&rest[..stop]);
            self.at += stop + 1;
            if rest.as_bytes()[stop] == b'"' {
                return Ok(out);
            }
            let code = self.peek().ok_or_else(|| self.error())?;
            self.at += 1;
            out.push(match code {
                b'"' => '"',
                b'\\' => '\\',
                b'/' => '/',
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                b'u' => {
                    let mut unit = self.hex4()?;
                    if (0xd800..0xdc00).contains(&unit) && self.eat("\\u") {
                        let low = self.hex4()?;
                        if !(0xdc00..0xe000).contains(&low) {
                            return Err(self.error());
                        }
                        unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                    }
                    char::from_u32(unit).ok_or_else(|| self.error())?
                }
                _ => return Err(self.error()),
            });
        }
    }

    fn hex4(&mut self) -> Result<u32, ParseError> {
        let digits = self.text.get(self.at..self.at + 4).ok_or_else(|| self.error())?;
        let unit = u32::from_str_radix(digits, 16).map_err(|_| self.error())?;
        self.at += 4;
        Ok(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_back_without_loss() {
        let text = r#"{"a":[1,-9223372036854775808,1.0,-0.0,0.1,{"$double":"-Infinity"}],"b":{"$bytes":"AP8="},"c":null,"d":true,"e":{"x":{}},"f":"\u00e9\ud83d\ude00\n"}"#;
        let v = parse(text).unwrap();
        let Some(Value::Array(a)) = v.get("a") else { panic!("an array") };
        assert_eq!(a[..3], [Value::Int(1), Value::Int(i64::MIN), Value::Double(1.0)]);
        assert!(matches!(a[3], Value::Double(z) if z.to_bits() == (-0.0f64).to_bits()));
        assert_eq!(a[5], Value::Double(f64::NEG_INFINITY));
        assert_eq!(v.get("b"), Some(&Value::Bytes(vec![0, 255])));
        assert_eq!(v.get("f").and_then(Value::as_str), Some("\u{e9}\u{1F600}\n"));
        for bad in ["", "{", "[1,]", "{\"a\"}", "1 2", "\"\\ud800\"", &"[".repeat(1000)] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn strings_read_back() {
        for s in ["", "plain", "q\"b\\n\nr\rt\tc\u{1}\u{1f}", "ü\u{1F600}"] {
            let mut out = String::new();
            write_string(&mut out, s);
            assert_eq!(serde_json::from_str::<String>(&out).unwrap(), s);
        }
    }

    #[test]
    fn doubles_are_never_mistaken_for_integers() {
        for (v, text) in [(1.0, "1.0"), (-0.0, "-0.0"), (1e300, "1e300"), (0.1, "0.1")] {
            let mut out = String::new();
            write_double(&mut out, v);
            assert_eq!(out, text);
        }
    }
}
