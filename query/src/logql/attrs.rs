//! Canonical JSON of attribute sets to label pairs: flattened with `_`, names sanitised, every value a string.

use std::borrow::Cow;

use serde_json::Value;

/// Calls `f` with each attribute as a label: sanitised name, text of the value. Empty and null values are left out.
/// Damaged JSON gives what could be read before the damage, that is, nothing.
pub fn for_each(json: &str, f: &mut dyn FnMut(&str, &str)) {
    if json.len() <= 2 || flat_strings(json, f) {
        return;
    }
    let Ok(value) = serde_json::from_str::<Value>(json) else { return };
    let Value::Object(map) = value else { return };
    for (name, value) in &map {
        flatten(&sanitise(name), value, f);
    }
}

/// `{"a":"x","b":"y"}` without escapes: true if all of it was such. Looks before it calls, so that nothing comes twice.
fn flat_strings(json: &str, f: &mut dyn FnMut(&str, &str)) -> bool {
    let bytes = json.as_bytes();
    if bytes.contains(&b'\\') || bytes.first() != Some(&b'{') || bytes.last() != Some(&b'}') {
        return false;
    }
    fn pairs<'a>(json: &'a str, mut each: impl FnMut(&'a str, &'a str)) -> Option<()> {
        let mut rest = &json[1..];
        loop {
            rest = rest.strip_prefix('"')?;
            let n = memchr::memchr(b'"', rest.as_bytes())?;
            let name = &rest[..n];
            rest = rest[n + 1..].strip_prefix(":\"")?;
            let n = memchr::memchr(b'"', rest.as_bytes())?;
            each(name, &rest[..n]);
            rest = &rest[n + 1..];
            if rest == "}" {
                return Some(());
            }
            rest = rest.strip_prefix(',')?;
        }
    }
    if pairs(json, |_, _| {}).is_none() {
        return false;
    }
    pairs(json, |name, value| {
        if !value.is_empty() {
            f(&sanitise(name), value);
        }
    })
    .is_some()
}

fn flatten(name: &str, value: &Value, f: &mut dyn FnMut(&str, &str)) {
    match value {
        Value::Null => {}
        Value::String(s) if s.is_empty() => {}
        Value::String(s) => f(name, s),
        Value::Bool(b) => f(name, if *b { "true" } else { "false" }),
        Value::Number(n) => f(name, &number(n)),
        Value::Array(_) => f(name, &value.to_string()),
        Value::Object(map) => match map.iter().next() {
            Some((key, Value::String(text))) if map.len() == 1 && key == "$bytes" => f(name, text),
            Some((key, Value::String(text))) if map.len() == 1 && key == "$double" => f(
                name,
                match text.as_str() {
                    "Infinity" => "+Inf",
                    "-Infinity" => "-Inf",
                    other => other,
                },
            ),
            _ => {
                for (key, value) in map {
                    flatten(&format!("{name}_{}", sanitise(key)), value, f);
                }
            }
        },
    }
}

/// Integers as written; doubles as the shortest text without a trailing `.0`.
fn number(n: &serde_json::Number) -> String {
    match n.as_f64() {
        Some(v) if n.is_f64() => super::format::float_plain(v),
        _ => n.to_string(),
    }
}

/// A legal label name: other characters become `_`, a leading digit gets `key_`.
pub fn sanitise(name: &str) -> Cow<'_, str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let digit = name.as_bytes().first().is_some_and(u8::is_ascii_digit);
    if name.bytes().all(legal) && !digit {
        return Cow::Borrowed(name);
    }
    let mut out = String::with_capacity(name.len() + 4);
    if digit {
        out.push_str("key_");
    }
    out.extend(name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }));
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(json: &str) -> Vec<(String, String)> {
        let mut out = Vec::new();
        for_each(json, &mut |n, v| out.push((n.to_owned(), v.to_owned())));
        out
    }

    #[test]
    fn values_of_any_type_become_strings_and_maps_flatten() {
        let got = pairs(
            r#"{"9x":"y","a.b":{"c":1,"d":[1,"x"]},"bytes":{"$bytes":"AQI="},"e":"","f":1.0,"nan":{"$double":"NaN"},"q":"a\"b","t":true,"u":null}"#,
        );
        let want = [
            ("key_9x", "y"),
            ("a_b_c", "1"),
            ("a_b_d", "[1,\"x\"]"),
            ("bytes", "AQI="),
            ("f", "1"),
            ("nan", "NaN"),
            ("q", "a\"b"),
            ("t", "true"),
        ];
        assert_eq!(got, want.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn the_fast_path_reads_the_same_as_the_general_one() {
        for json in [r#"{"a":"1","b-c":"2"}"#, r#"{"a":""}"#, "{}", r#"{"a":"1","b":2}"#, "{\"a\":\"1\"", "[]", ""] {
            let mut general = Vec::new();
            if let Ok(Value::Object(map)) = serde_json::from_str::<Value>(json) {
                for (n, v) in &map {
                    flatten(&sanitise(n), v, &mut |n, v| general.push((n.to_owned(), v.to_owned())));
                }
            }
            assert_eq!(pairs(json), general, "{json}");
        }
    }
}
