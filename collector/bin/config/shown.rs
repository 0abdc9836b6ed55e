//! The configuration as `/api/v1/status/config` shows it: as YAML, without what is secret.

use serde_json::Value;

/// Words in the names of keys whose values are nobody's business, whatever is below them.
const SECRET: [&str; 9] =
    ["password", "secret", "token", "credential", "auth", "bearer", "headers", "private_key", "access_key"];

const HIDDEN: &str = "<secret>";

/// JSON, which is YAML. Nothing for an empty configuration.
pub fn without_secrets(config: &Value) -> String {
    let mut shown = config.clone();
    hide(&mut shown, false);
    match &shown {
        Value::Object(map) if map.is_empty() => String::new(),
        shown => serde_json::to_string_pretty(shown).unwrap_or_default(),
    }
}

fn hide(value: &mut Value, secret: bool) {
    match value {
        Value::Object(map) => {
            for (key, below) in map {
                let key = key.to_ascii_lowercase();
                hide(below, secret || SECRET.iter().any(|s| key.contains(s)));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| hide(v, secret)),
        // A key in PEM is secret under any name; `key` alone also names what throttles and samples go by.
        Value::String(text) if secret || text.contains("PRIVATE KEY") => HIDDEN.clone_into(text),
        Value::Number(_) if secret => *value = Value::from(HIDDEN),
        Value::String(text) => {
            // `https://user:password@host`
            if let Some(scheme) = text.find("://") {
                let host = scheme + 3;
                let end = text[host..].find(['/', '?', '#']).map_or(text.len(), |i| host + i);
                if let Some(at) = text[host..end].rfind('@') {
                    text.replace_range(host..host + at, HIDDEN);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_wherever_they_are() {
        let config = serde_json::json!({
            "http": "127.0.0.1:7600",
            "sinks": {"a": {
                "url": "https://u:p@host/x?y=a@b",
                "auth": {"bearer": "abc", "nested": ["def", 7]},
                "headers": {"X-Key": "ghi"},
                "keep": ["jkl", true],
                "tls_config": {"key": "-----BEGIN PRIVATE KEY-----\nmno"},
            }},
        });
        let shown = without_secrets(&config);
        for hidden in ["u:p", "abc", "def", "7,", "ghi", "mno"] {
            assert!(!shown.contains(hidden), "{hidden}: {shown}");
        }
        for kept in ["127.0.0.1:7600", "https://<secret>@host/x?y=a@b", "jkl", "X-Key"] {
            assert!(shown.contains(kept), "{kept}: {shown}");
        }
        assert_eq!(without_secrets(&serde_json::json!({})), "");
    }
}
