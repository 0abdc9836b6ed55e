//! Label sets: sorted, unique, and their canonical text from which ids are hashed.

use std::{borrow::Borrow, fmt};

use super::json;

/// A set of labels, sorted by name, names unique, no empty value (an empty value means the label is absent,
/// as in Prometheus and Loki). Names and values lie end to end in one text: two allocations, however many labels.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Labels {
    text: Box<str>,
    /// Where each name and each value ends in the text, in their order: two a label.
    ends: Box<[u32]>,
}

impl Labels {
    /// Sorts; of equal names the last wins; drops empty values.
    pub fn from_pairs<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let owned: Vec<(String, String)> = pairs.into_iter().map(|(n, v)| (n.into(), v.into())).collect();
        Self::of_texts(owned.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect())
    }

    /// As [`Labels::from_pairs`], of texts that lie elsewhere.
    fn of_texts(mut all: Vec<(&str, &str)>) -> Self {
        if !all.windows(2).all(|w| w[0].0 < w[1].0) {
            all.sort_by_key(|(n, _)| *n);
            // `dedup_by` keeps the first of equal ones.
            all.reverse();
            all.dedup_by(|a, b| a.0 == b.0);
            all.reverse();
        }
        all.retain(|(_, v)| !v.is_empty());
        Self::packed(&all)
    }

    /// Of pairs that are as the invariants ask.
    pub(crate) fn packed(pairs: &[(&str, &str)]) -> Self {
        let mut text = String::with_capacity(pairs.iter().map(|(n, v)| n.len() + v.len()).sum());
        let mut ends = Vec::with_capacity(pairs.len() * 2);
        for (name, value) in pairs {
            for part in [name, value] {
                text.push_str(part);
                ends.push(u32::try_from(text.len()).expect("a label set is far smaller than 4 GiB"));
            }
        }
        Labels { text: text.into(), ends: ends.into() }
    }

    /// Name (even) or value (odd) number `i`.
    fn part(&self, i: usize) -> &str {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.text[start..self.ends[i] as usize]
    }

    /// Place of a label, or where it would be.
    fn place(&self, name: &str) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let mid = (low + high) / 2;
            match self.part(2 * mid).cmp(name) {
                std::cmp::Ordering::Less => low = mid + 1,
                std::cmp::Ordering::Greater => high = mid,
                std::cmp::Ordering::Equal => return Ok(mid),
            }
        }
        Err(low)
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.place(name).ok().map(|i| self.part(2 * i + 1))
    }

    /// Sets or, with an empty value, removes a label.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        let value = value.as_str();
        let mut pairs: Vec<(&str, &str)> = self.iter().collect();
        match self.place(name) {
            Ok(i) if value.is_empty() => {
                pairs.remove(i);
            }
            Ok(i) => pairs[i].1 = value,
            Err(_) if value.is_empty() => return,
            Err(i) => pairs.insert(i, (name, value)),
        }
        *self = Self::packed(&pairs);
    }

    pub fn remove(&mut self, name: &str) -> Option<String> {
        let at = self.place(name).ok()?;
        let mut pairs: Vec<(&str, &str)> = self.iter().collect();
        let removed = pairs.remove(at).1.to_owned();
        *self = Self::packed(&pairs);
        Some(removed)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> + Clone {
        (0..self.len()).map(|i| (self.part(2 * i), self.part(2 * i + 1)))
    }

    pub fn len(&self) -> usize {
        self.ends.len() / 2
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Canonical JSON: `{"a":"1","b":"2"}`, names in byte order. Column `stream_labels` of logs and `labels` of series.
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(2 + self.text.len() + 6 * self.len());
        out.push('{');
        for (i, (name, value)) in self.iter().enumerate() {
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
        if let Some(pairs) = plain_pairs(text) {
            return Ok(Self::of_texts(pairs));
        }
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

/// The pairs of an object of strings without escapes and spaces, as nearly all label sets are; `None`: it is another.
fn plain_pairs(text: &str) -> Option<Vec<(&str, &str)>> {
    let mut rest = text.strip_prefix('{')?.strip_suffix('}')?;
    if rest.bytes().any(|b| b == b'\\' || b < 0x20) {
        return None;
    }
    let mut out = Vec::new();
    while !rest.is_empty() {
        if !out.is_empty() {
            rest = rest.strip_prefix(',')?;
        }
        let (name, after) = rest.strip_prefix('"')?.split_once('"')?;
        let (value, after) = after.strip_prefix(":\"")?.split_once('"')?;
        out.push((name, value));
        rest = after;
    }
    Some(out)
}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Pair by pair, names before values.
impl Ord for Labels {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.iter().cmp(other.iter())
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
        for (i, (name, value)) in self.iter().enumerate() {
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
        let owned: Vec<(N, V)> = iter.into_iter().collect();
        Labels::of_texts(owned.iter().map(|(n, v)| (n.borrow(), v.borrow())).collect())
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
    fn a_label_is_set_in_its_place_and_removed() {
        let mut l = Labels::from_pairs([("b", "2"), ("d", "4")]);
        for (name, value) in [("c", "3"), ("a", "1"), ("b", "22"), ("d", ""), ("x", "")] {
            l.set(name, value);
        }
        assert_eq!(l.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "22"), ("c", "3")]);
        assert_eq!(
            (l.remove("b").as_deref(), l.remove("b"), l.get("c"), l.get("zz")),
            (Some("22"), None, Some("3"), None)
        );
        let mut order = [("a", "2"), ("a", "1"), ("aa", "0"), ("", "x")].map(|p| Labels::from_pairs([p]));
        order.sort();
        assert_eq!(order.map(|l| l.to_json()), [r#"{"":"x"}"#, r#"{"a":"1"}"#, r#"{"a":"2"}"#, r#"{"aa":"0"}"#]);
    }

    #[test]
    fn json_keeps_every_character() {
        let l = Labels::from_pairs([("n\"\\\n\u{1}", "ü\u{2028}\t")]);
        assert_eq!(Labels::from_json(&l.to_json()).unwrap(), l);
    }
}
