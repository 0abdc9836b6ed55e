//! Attribute sets in the columns of a batch: canonical JSON read without building a tree, changed per distinct value.

use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, DictionaryArray, Int32Array, StringArray, StringBuilder},
    datatypes::{DataType, Int32Type},
};
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use storage::model::json::{write_double, write_string};

/// Members of one object: names in byte order, unique; values as canonical JSON text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Attributes<'a> {
    /// Reads canonical JSON. What is not an object reads as empty.
    pub fn read(json: &'a str) -> Self {
        Attributes(members(json).map(|(k, v)| (k, Cow::Borrowed(v))).collect())
    }

    /// Reads any JSON object, for example a log line. `None` when it is not one.
    pub fn parse(text: &str) -> Option<Attributes<'static>> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let members = Members.deserialize(&mut reader).ok()?;
        reader.end().ok()?;
        let mut out = Attributes::default();
        out.0.reserve(members.len());
        for (name, value) in members {
            out.set_json(Cow::Owned(name), Cow::Owned(value));
        }
        Some(out)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (&**n, &**v))
    }

    /// The value as JSON text.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.at(name).ok().map(|i| &*self.0[i].1)
    }

    /// The value as text: a string without its quotes, anything else as JSON.
    pub fn get_text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.get(name).map(text_of)
    }

    pub fn set_json(&mut self, name: Cow<'a, str>, value: Cow<'a, str>) {
        // Most input comes in order.
        if self.0.last().is_none_or(|(last, _)| **last < *name) {
            self.0.push((name, value));
            return;
        }
        match self.at(&name) {
            Ok(i) => self.0[i].1 = value,
            Err(i) => self.0.insert(i, (name, value)),
        }
    }

    pub fn set_text(&mut self, name: Cow<'a, str>, value: &str) {
        let mut json = String::with_capacity(value.len() + 2);
        write_string(&mut json, value);
        self.set_json(name, Cow::Owned(json));
    }

    pub fn remove(&mut self, name: &str) -> Option<Cow<'a, str>> {
        self.at(name).ok().map(|i| self.0.remove(i).1)
    }

    /// The members of both as JSON; on equal names the other's count.
    pub fn to_json_with(&self, other: &Attributes<'_>) -> String {
        let mut out = String::from("{");
        let mut member = |(name, value): (&str, &str)| {
            if out.len() > 1 {
                out.push(',');
            }
            write_string(&mut out, name);
            out.push(':');
            out.push_str(value);
        };
        let mut others = other.iter().peekable();
        for own in self.iter() {
            while let Some(before) = others.next_if(|o| o.0 < own.0) {
                member(before);
            }
            member(others.next_if(|o| o.0 == own.0).unwrap_or(own));
        }
        others.for_each(member);
        out.push('}');
        out
    }

    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(2 + self.0.iter().map(|(n, v)| n.len() + v.len() + 4).sum::<usize>());
        out.push('{');
        for (i, (name, value)) in self.0.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            write_string(&mut out, name);
            out.push(':');
            out.push_str(value);
        }
        out.push('}');
        out
    }

    fn at(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(n, _)| (**n).cmp(name))
    }
}

/// Text of a JSON value: a string without its quotes, anything else as it is.
pub fn text_of(json: &str) -> Cow<'_, str> {
    match json.strip_prefix('"').and_then(|j| j.strip_suffix('"')) {
        Some(inner) if !inner.contains('\\') => Cow::Borrowed(inner),
        Some(_) => serde_json::from_str::<String>(json).map_or(Cow::Borrowed(json), Cow::Owned),
        None => Cow::Borrowed(json),
    }
}

/// One member of a JSON object, as JSON text, without reading the values before it.
pub fn get<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    members(json).find(|(k, _)| *k == name).map(|(_, v)| v)
}

/// Members of an object in canonical JSON, in order; ends at the first thing that is not canonical.
fn members(json: &str) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
    let bytes = json.as_bytes();
    let mut at = usize::from(bytes.first() == Some(&b'{'));
    let mut open = at == 1;
    std::iter::from_fn(move || {
        if !open || bytes.get(at) != Some(&b'"') {
            return None;
        }
        let name_end = skip_string(bytes, at)?;
        let name = text_of(json.get(at..name_end)?);
        if bytes.get(name_end) != Some(&b':') {
            return None;
        }
        let end = skip_value(bytes, name_end + 1)?;
        let value = json.get(name_end + 1..end)?;
        open = bytes.get(end) == Some(&b',');
        at = end + 1;
        Some((name, value))
    })
}

/// Where the string that opens at `at` ends.
fn skip_string(bytes: &[u8], at: usize) -> Option<usize> {
    let mut i = at + 1;
    loop {
        i += memchr::memchr2(b'"', b'\\', bytes.get(i..)?)?;
        if bytes[i] == b'"' {
            return Some(i + 1);
        }
        i += 2;
    }
}

/// Where the value that begins at `at` ends. No recursion: brackets are counted.
fn skip_value(bytes: &[u8], at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut i = at;
    loop {
        match bytes.get(i)? {
            b'"' => {
                i = skip_string(bytes, i)?;
                if depth == 0 {
                    return Some(i);
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return Some(i),
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(i + 1);
                }
            }
            b',' if depth == 0 => return Some(i),
            _ => {}
        }
        i += 1;
    }
}

/// Members of an object of any JSON text, values as canonical text.
struct Members;

impl<'de> DeserializeSeed<'de> for Members {
    type Value = Vec<(String, String)>;

    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut out = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            out.push((name, map.next_value_seed(Canonical)?));
        }
        Ok(out)
    }
}

/// Any JSON value as canonical text. Depth is bounded by the JSON reader.
struct Canonical;

impl<'de> DeserializeSeed<'de> for Canonical {
    type Value = String;

    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<String, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Canonical {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<String, E> {
        Ok("null".into())
    }

    fn visit_bool<E>(self, v: bool) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_i64<E>(self, v: i64) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<String, E> {
        match i64::try_from(v) {
            Ok(v) => Ok(v.to_string()),
            Err(_) => self.visit_f64(v as f64),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<String, E> {
        if !v.is_finite() {
            return Err(E::custom("number out of range"));
        }
        let mut out = String::new();
        write_double(&mut out, v);
        Ok(out)
    }

    fn visit_str<E>(self, v: &str) -> Result<String, E> {
        let mut out = String::with_capacity(v.len() + 2);
        write_string(&mut out, v);
        Ok(out)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<String, A::Error> {
        let mut out = String::from("[");
        while let Some(v) = seq.next_element_seed(Canonical)? {
            if out.len() > 1 {
                out.push(',');
            }
            out.push_str(&v);
        }
        out.push(']');
        Ok(out)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<String, A::Error> {
        let mut sorted = Attributes::default();
        for (name, value) in Members.visit_map(map)? {
            sorted.set_json(Cow::Owned(name), Cow::Owned(value));
        }
        Ok(sorted.to_json())
    }
}

/// A text column: distinct values and which row holds which. Plain columns have one value a row.
pub struct Texts<'a> {
    values: &'a StringArray,
    keys: Option<&'a Int32Array>,
    rows: &'a dyn Array,
}

impl<'a> Texts<'a> {
    /// `None` when the column is neither Utf8 nor a dictionary of it.
    pub fn new(column: &'a ArrayRef) -> Option<Self> {
        match column.data_type() {
            DataType::Utf8 => Some(Texts { values: column.as_string::<i32>(), keys: None, rows: column }),
            DataType::Dictionary(k, v) if **k == DataType::Int32 && **v == DataType::Utf8 => {
                let d = column.as_dictionary::<Int32Type>();
                Some(Texts { values: d.values().as_string::<i32>(), keys: Some(d.keys()), rows: column })
            }
            _ => None,
        }
    }

    /// Distinct values (or rows, for a plain column).
    pub fn distinct(&self) -> usize {
        self.values.len()
    }

    /// Of [`Texts::distinct`].
    pub fn value(&self, at: usize) -> Option<&'a str> {
        self.values.is_valid(at).then(|| self.values.value(at))
    }

    /// Which distinct value the row holds; `None` for null.
    pub fn slot(&self, row: usize) -> Option<usize> {
        if self.rows.is_null(row) {
            return None;
        }
        Some(self.keys.map_or(row, |k| k.value(row) as usize))
    }

    pub fn row(&self, row: usize) -> Option<&'a str> {
        self.slot(row).and_then(|at| self.value(at))
    }

    /// A fact of each row, found once for each distinct value. `absent` is what null has.
    pub fn each<T: Copy>(&self, absent: T, mut fact: impl FnMut(&'a str) -> T) -> Vec<T> {
        match self.keys {
            None => (0..self.rows.len()).map(|i| self.row(i).map_or(absent, &mut fact)).collect(),
            Some(_) => {
                // Only values that occur: a slice may keep a large dictionary.
                let mut facts: Vec<Option<T>> = vec![None; self.distinct()];
                (0..self.rows.len())
                    .map(|i| match self.slot(i) {
                        Some(at) => *facts[at].get_or_insert_with(|| self.value(at).map_or(absent, &mut fact)),
                        None => absent,
                    })
                    .collect()
            }
        }
    }
}

/// Builds a text column of the same type as the one it replaces, from values that often repeat.
pub struct TextColumn {
    dictionary: Option<Dictionary>,
    plain: StringBuilder,
}

#[derive(Default)]
struct Dictionary {
    known: HashMap<String, i32>,
    keys: Vec<Option<i32>>,
}

impl TextColumn {
    pub fn like(column: &ArrayRef) -> Self {
        let dictionary = matches!(column.data_type(), DataType::Dictionary(_, _)).then(Dictionary::default);
        TextColumn { dictionary, plain: StringBuilder::new() }
    }

    pub fn push(&mut self, value: Option<&str>) {
        match &mut self.dictionary {
            None => self.plain.append_option(value),
            Some(Dictionary { known, keys }) => keys.push(value.map(|v| match known.get(v) {
                Some(k) => *k,
                None => {
                    let key = known.len() as i32;
                    known.insert(v.to_owned(), key);
                    self.plain.append_value(v);
                    key
                }
            })),
        }
    }

    pub fn finish(mut self) -> ArrayRef {
        let values = self.plain.finish();
        match self.dictionary {
            None => Arc::new(values),
            Some(Dictionary { keys, .. }) => Arc::new(
                DictionaryArray::try_new(Int32Array::from(keys), Arc::new(values))
                    .expect("keys point at pushed values"),
            ),
        }
    }
}

/// The column with each value changed; `change` sees each distinct value (and null) once. `None` gives null.
pub fn map_texts(column: &ArrayRef, mut change: impl FnMut(Option<&str>) -> Option<String>) -> ArrayRef {
    let Some(texts) = Texts::new(column) else { return column.clone() };
    let mut out = TextColumn::like(column);
    let mut known: HashMap<Option<usize>, Option<String>> = HashMap::new();
    for row in 0..column.len() {
        let slot = texts.slot(row);
        if texts.keys.is_none() {
            out.push(change(texts.row(row)).as_deref());
            continue;
        }
        let value = known.entry(slot).or_insert_with(|| change(slot.and_then(|at| texts.value(at))));
        out.push(value.as_deref());
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_json_reads_back_member_by_member() {
        let json = r#"{"a\"b":"x,}","d":{"$double":"NaN"},"l":[1,{"k":"]"}],"n":1,"z":null}"#;
        let a = Attributes::read(json);
        assert_eq!(a.to_json(), json);
        assert_eq!(a.get("l"), Some(r#"[1,{"k":"]"}]"#));
        assert_eq!(a.get_text("a\"b").as_deref(), Some("x,}"));
        assert_eq!(get(json, "n"), Some("1"));
        assert_eq!(get(json, "nope"), None);
        for odd in ["", "{", "null", "[1]", r#"{"a""#, r#"{"a":"#, r#"{"a":"\"#] {
            assert!(Attributes::read(odd).is_empty(), "{odd}");
        }
        assert!(Attributes::read("{}").is_empty());
    }

    #[test]
    fn two_sets_are_joined_in_order_and_the_second_counts() {
        let join = |a: &str, b: &str| Attributes::read(a).to_json_with(&Attributes::read(b));
        assert_eq!(join(r#"{"b":1,"d":2}"#, r#"{"a":3,"b":4,"c":5,"e":6}"#), r#"{"a":3,"b":4,"c":5,"d":2,"e":6}"#);
        assert_eq!(join("{}", r#"{"a":1}"#), r#"{"a":1}"#);
        assert_eq!(join(r#"{"a":1}"#, "{}"), r#"{"a":1}"#);
        assert_eq!(join("{}", "{}"), "{}");
    }

    #[test]
    fn slices_of_a_dictionary_are_read_and_mapped_by_their_own_rows() {
        let d: DictionaryArray<Int32Type> = [Some("a"), Some("b"), None, Some("a"), Some("c")].into_iter().collect();
        let column: ArrayRef = Arc::new(d.slice(1, 3));
        let texts = Texts::new(&column).unwrap();
        assert_eq!(texts.each("-", |v| v), ["b", "-", "a"]);
        let mut calls = 0;
        let mapped = map_texts(&column, |v| {
            calls += 1;
            v.map(|v| format!("{v}!"))
        });
        assert_eq!(Texts::new(&mapped).unwrap().each("-", |v| v), ["b!", "-", "a!"]);
        assert_eq!(calls, 3);
    }

    #[test]
    fn foreign_json_becomes_canonical_and_the_last_of_equal_names_wins() {
        let a = Attributes::parse(
            r#" { "b" : 1.0, "a":{"y":[true,null],"x":"\u00fc"}, "b": 18446744073709551615, "c":-5 } "#,
        );
        assert_eq!(a.unwrap().to_json(), r#"{"a":{"x":"ü","y":[true,null]},"b":1.8446744073709552e19,"c":-5}"#);
        for bad in ["", "[]", "1", "{", "{}x", r#"{"a":1e999}"#, &format!("{}{}", r#"{"a":"#.repeat(500), "1")] {
            assert!(Attributes::parse(bad).is_none(), "{bad}");
        }
    }
}
