//! YAML as rule files are written: every scalar is kept as its text, every node knows its place, unknown and repeated
//! keys are errors.

use saphyr::{MarkedYaml, ScalarStyle, YamlData, YamlLoader};

/// Files larger than this are refused.
pub const FILE_BYTES_MAX: usize = 4 << 20;

/// Nodes nested deeper than this are refused.
const DEPTH_MAX: usize = 32;

/// Line and column, both from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

/// Something wrong at a place of a file. `about` says in what: `group "x", rule 2, "Name"`, empty for the whole file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub place: Place,
    pub about: String,
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: ", self.place.line, self.place.column)?;
        if !self.about.is_empty() {
            write!(f, "{}: ", self.about)?;
        }
        f.write_str(&self.message)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    /// A scalar as it is written, quotes and folding undone.
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub place: Place,
    pub value: Node,
}

/// Reads one document; an empty text is `Null`.
pub fn parse(text: &str) -> Result<Node, Problem> {
    let top = Place { line: 1, column: 1 };
    let problem = |place, message: String| Problem { place, about: String::new(), message };
    if text.len() > FILE_BYTES_MAX {
        return Err(problem(top, format!("the file is larger than {FILE_BYTES_MAX} bytes")));
    }
    let scan = |e: &saphyr::ScanError| {
        problem(Place { line: e.marker().line(), column: e.marker().col() + 1 }, e.info().to_owned())
    };
    let mut loader: YamlLoader<'_, MarkedYaml<'_>> = YamlLoader::default();
    loader.early_parse(false);
    let mut parser = saphyr_parser::Parser::new_from_str(text);
    parser.load(&mut loader, true).map_err(|e| scan(&e))?;
    if let Some(e) = loader.error() {
        return Err(scan(e));
    }
    let documents = loader.into_documents();
    match documents.as_slice() {
        [] => Ok(Node { place: top, value: Value::Null }),
        [one] => convert(one, 0),
        [_, second, ..] => Err(problem(place(second), "the file holds more than one document; expected one".into())),
    }
}

fn place(node: &MarkedYaml<'_>) -> Place {
    Place { line: node.span.start.line(), column: node.span.start.col() + 1 }
}

fn convert(node: &MarkedYaml<'_>, depth: usize) -> Result<Node, Problem> {
    let place = place(node);
    let bad = |message: &str| Problem { place, about: String::new(), message: message.to_owned() };
    if depth > DEPTH_MAX {
        return Err(bad("nested too deeply"));
    }
    let value = match &node.data {
        YamlData::Representation(text, style, _) => {
            let plain = *style == ScalarStyle::Plain;
            if plain && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL") {
                Value::Null
            } else {
                Value::Text(text.to_string())
            }
        }
        YamlData::BadValue => Value::Null,
        YamlData::Sequence(items) => {
            Value::List(items.iter().map(|i| convert(i, depth + 1)).collect::<Result<_, _>>()?)
        }
        YamlData::Mapping(pairs) => {
            let mut out = Vec::with_capacity(pairs.len());
            for (key, value) in pairs {
                let key_node = convert(key, depth + 1)?;
                let key = match key_node.value {
                    Value::Text(text) => text,
                    Value::Null => "null".to_owned(),
                    _ => return Err(Problem { message: "expected a name as key".into(), ..bad("") }),
                };
                out.push(Entry { key, place: key_node.place, value: convert(value, depth + 1)? });
            }
            Value::Map(out)
        }
        _ => return Err(bad("tags are not supported here")),
    };
    Ok(Node { place, value })
}

/// Where problems go, and what they are about.
#[derive(Debug, Default)]
pub struct Report {
    pub problems: Vec<Problem>,
    /// Given to each problem noted from here on.
    pub about: String,
}

impl Report {
    pub fn note(&mut self, place: Place, message: impl Into<String>) {
        self.problems.push(Problem { place, about: self.about.clone(), message: message.into() });
    }

    /// The entries of a mapping, of which each key is one of `known`; others are noted and left out. `Null` has none.
    pub fn fields<'a>(&mut self, node: &'a Node, what: &str, known: &[&str]) -> Vec<&'a Entry> {
        match &node.value {
            Value::Null => Vec::new(),
            Value::Map(entries) => {
                let (good, bad): (Vec<&Entry>, Vec<&Entry>) =
                    entries.iter().partition(|e| known.contains(&e.key.as_str()));
                for e in bad {
                    self.note(
                        e.place,
                        format!("field {} not found in {what}; expected one of {}", e.key, known.join(", ")),
                    );
                }
                good
            }
            _ => {
                self.note(node.place, format!("expected a mapping for {what}"));
                Vec::new()
            }
        }
    }

    pub fn list<'a>(&mut self, node: &'a Node, what: &str) -> &'a [Node] {
        match &node.value {
            Value::Null => &[],
            Value::List(items) => items,
            _ => {
                self.note(node.place, format!("expected a list for {what}"));
                &[]
            }
        }
    }

    /// Text of a scalar; `Null` is the empty text.
    pub fn text(&mut self, node: &Node, what: &str) -> Option<String> {
        match &node.value {
            Value::Null => Some(String::new()),
            Value::Text(text) => Some(text.clone()),
            _ => {
                self.note(node.place, format!("expected a text for {what}"));
                None
            }
        }
    }

    pub fn texts(&mut self, node: &Node, what: &str) -> Vec<String> {
        self.list(node, what).iter().filter_map(|n| self.text(n, what)).collect()
    }

    /// A mapping of texts with the place of each key.
    pub fn pairs(&mut self, node: &Node, what: &str) -> Vec<(String, String, Place)> {
        let entries = match &node.value {
            Value::Null => return Vec::new(),
            Value::Map(entries) => entries,
            _ => {
                self.note(node.place, format!("expected a mapping for {what}"));
                return Vec::new();
            }
        };
        let read = |e: &Entry| Some((e.key.clone(), self.text(&e.value, &format!("{what} {}", e.key))?, e.place));
        entries.iter().filter_map(read).collect()
    }

    pub fn boolean(&mut self, node: &Node, what: &str) -> Option<bool> {
        match self.text(node, what)?.as_str() {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            other => {
                self.note(node.place, format!("expected true or false for {what}, got {other:?}"));
                None
            }
        }
    }

    pub fn count(&mut self, node: &Node, what: &str) -> Option<usize> {
        let text = self.text(node, what)?;
        let parsed = text.replace('_', "").parse().ok();
        if parsed.is_none() {
            self.note(node.place, format!("expected a whole number for {what}, got {text:?}"));
        }
        parsed
    }

    /// A Prometheus duration in ms, at most [`DURATION_MS_MAX`].
    pub fn duration(&mut self, node: &Node, what: &str) -> Option<i64> {
        let text = self.text(node, what)?;
        if text.is_empty() {
            self.note(node.place, format!("empty duration string for {what}"));
            return None;
        }
        match crate::promql::parse_duration_ms(&text).filter(|ms| *ms <= DURATION_MS_MAX) {
            Some(ms) => Some(ms),
            None => {
                self.note(node.place, format!("not a valid duration string: {text:?} for {what}"));
                None
            }
        }
    }
}

/// Longest duration in a file: what Prometheus can hold, 292 years.
pub const DURATION_MS_MAX: i64 = 9_223_372_036_854;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_keep_their_text_and_nodes_their_place() {
        let node = parse("a: 1.50\nb:\n  - ~\n  - 'null'\n").unwrap();
        let Value::Map(entries) = &node.value else { panic!("{node:?}") };
        assert_eq!(entries[0].value.value, Value::Text("1.50".into()));
        let Value::List(items) = &entries[1].value.value else { panic!("{node:?}") };
        assert_eq!((items[0].value.clone(), items[1].value.clone()), (Value::Null, Value::Text("null".into())));
        assert_eq!(items[1].place, Place { line: 4, column: 5 });
        assert_eq!(parse("a: 1\na: 2\n").unwrap_err().place.line, 2);
        assert_eq!(parse("").unwrap().value, Value::Null);
        assert!(parse("a: [1").is_err());
    }
}
