//! The configuration as `/api/v1/status/config` shows it: as YAML, without what is secret.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::scrape::FLAG_SOURCE;

/// Words in the names of keys whose values are nobody's business, whatever is below them.
const SECRET: [&str; 9] =
    ["password", "secret", "token", "credential", "auth", "bearer", "headers", "private_key", "access_key"];

const HIDDEN: &str = "<secret>";

/// A configuration as it is written.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Our own file; null without one.
    pub document: Value,
    /// The files of Prometheus that scraping sources read, by the sources' names.
    pub files: BTreeMap<String, Value>,
}

impl Written {
    /// Without secrets. A file of Prometheus that is all there is, is shown as it is; beside a file of our own, those of
    /// the sources stand under `config_files`.
    pub fn shown(&self) -> String {
        let own = self.document.as_object().filter(|map| !map.is_empty());
        match (own, self.files.get(FLAG_SOURCE)) {
            (None, Some(file)) => without_secrets(file),
            (Some(_), _) if !self.files.is_empty() => {
                let mut all = self.document.clone();
                all["config_files"] = json!(self.files);
                without_secrets(&all)
            }
            _ => without_secrets(&self.document),
        }
    }
}

/// JSON, which is YAML. Nothing for an empty configuration.
fn without_secrets(config: &Value) -> String {
    let mut shown = config.clone();
    hide(&mut shown, false);
    match &shown {
        Value::Object(map) if map.is_empty() => String::new(),
        Value::Null => String::new(),
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

    #[test]
    fn files_of_prometheus_are_shown_alone_or_beside_our_own() {
        let file =
            json!({"global": {"scrape_interval": "15s"}, "scrape_configs": [{"basic_auth": {"password": "abc"}}]});
        let files = BTreeMap::from([(FLAG_SOURCE.to_owned(), file)]);
        let mut written = Written { document: Value::Null, files };
        let shown = |w: &Written| serde_json::from_str::<Value>(&w.shown()).unwrap();
        assert_eq!(
            shown(&written),
            json!({"global": {"scrape_interval": "15s"}, "scrape_configs": [{"basic_auth": {"password": HIDDEN}}]})
        );
        written.document = json!({"http": "a"});
        let all = shown(&written);
        assert_eq!(
            (&all["http"], &all["config_files"]["prometheus"]["global"]["scrape_interval"]),
            (&json!("a"), &json!("15s"))
        );
        assert_eq!(Written::default().shown(), "");
    }
}
