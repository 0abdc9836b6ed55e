//! Label sets: sorted, unique, and their canonical text from which ids are hashed.

use std::{borrow::Borrow, fmt};

use super::json;

/// A set of labels, sorted by name, names unique, no empty value (an empty value means the label is absent,
/// as in Prometheus and Loki).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Labels(Vec<(String, String)>);

impl Labels {
    /// Sorts; of equal names the last wins; drops empty values.
    pub fn from_pairs<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let mut all: Vec<(String, String)> = pairs.into_iter().map(|(n, v)| (n.into(), v.into())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let mut out: Vec<(String, String)> = Vec::with_capacity(all.len());
        for pair in all {
            match out.last_mut() {
                Some(last) if last.0 == pair.0 => *last = pair,
                _ => out.push(pair),
            }
        }
        out.retain(|(_, v)| !v.is_empty());
        Labels(out)
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok().map(|i| self.0[i].1.as_str())
    }

    /// Sets or, with an empty value, removes a label.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        match self.0.binary_search_by(|(n, _)| n.as_str().cmp(name)) {
            Ok(i) if value.is_empty() => {
                self.0.remove(i);
            }
            Ok(i) => self.0[i].1 = value,
            Err(_) if value.is_empty() => {}
            Err(i) => self.0.insert(i, (name.to_owned(), value)),
        }
    }

    pub fn remove(&mut self, name: &str) -> Option<String> {
        self.0.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok().map(|i| self.0.remove(i).1)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> + Clone {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Canonical JSON: `{"a":"1","b":"2"}`, names in byte order. Column `stream_labels` of logs and `labels` of series.
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(2 + self.0.iter().map(|(n, v)| n.len() + v.len() + 6).sum::<usize>());
        out.push('{');
        for (i, (name, value)) in self.0.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            json::write_string(&mut out, name);
            out.push(':');
            json::write_string(&mut out, value);
        }
        out.push('}');
        out
    }

    /// Reads what [`Labels::to_json`] wrote; values that are not strings are kept as their JSON text.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        let map: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)?;
        Ok(Self::from_pairs(map.into_iter().map(|(n, v)| match v {
            serde_json::Value::String(s) => (n, s),
            other => (n, other.to_string()),
        })))
    }

    /// xxh3-64 of [`Labels::to_json`], as the signed integer that the columns `stream_id` and `series_id` hold.
    pub fn id(&self) -> i64 {
        id_of_json(&self.to_json())
    }
}

/// The id of a label set given as canonical JSON.
pub fn id_of_json(canonical: &str) -> i64 {
    xxhash_rust::xxh3::xxh3_64(canonical.as_bytes()) as i64
}

/// `{a="1", b="2"}`, the form of Prometheus and Loki messages.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, (name, value)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{name}={value:?}")?;
        }
        f.write_str("}")
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<N: Borrow<str>, V: Borrow<str>> FromIterator<(N, V)> for Labels {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(iter: T) -> Self {
        Labels::from_pairs(iter.into_iter().map(|(n, v)| (n.borrow().to_owned(), v.borrow().to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_pairs_does_not_matter_and_empty_values_vanish() {
        let a = Labels::from_pairs([("b", "2"), ("a", "1"), ("c", "")]);
        let b = Labels::from_pairs([("a", "0"), ("a", "1"), ("b", "2")]);
        assert_eq!(a, b);
        assert_eq!(a.id(), b.id());
        assert_eq!(a.to_json(), r#"{"a":"1","b":"2"}"#);
        assert_eq!(Labels::from_json(&a.to_json()).unwrap(), a);
    }

    #[test]
    fn json_keeps_every_character() {
        let l = Labels::from_pairs([("n\"\\\n\u{1}", "ü\u{2028}\t")]);
        assert_eq!(Labels::from_json(&l.to_json()).unwrap(), l);
    }
}
