//! Canonical JSON of attribute sets: one text for one meaning, lossless from OTLP's `AnyValue`.
//!
//! Rules: object keys in byte order, last of equal keys wins, no spaces. Strings, booleans and integers (all of i64)
//! as JSON has them; a double always has a `.`, an exponent, or is `{"$double":"NaN"|"Infinity"|"-Infinity"}`;
//! bytes are `{"$bytes":"<base64>"}`; an unset value is `null`.

/// Appends `text` as a JSON string with the shortest escapes.
pub fn write_string(out: &mut String, text: &str) {
    out.push('"');
    let mut from = 0;
    let bytes = text.as_bytes();
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

#[cfg(test)]
mod tests {
    use super::*;

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
