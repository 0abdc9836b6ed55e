//! YAML to a JSON value with the place of every node, so that an error found later can be shown where it stands.

use std::collections::HashMap;

use saphyr::{LoadableYamlNode as _, MarkedYaml, Scalar, YamlData};
use serde_json::{Map, Number, Value};

/// Configuration files larger than this are refused.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// Nodes nested deeper than this are refused.
const DEPTH_MAX: usize = 64;

/// Line and column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

/// A document: its value, and where each path stands. Paths are `a.b[2].c`; a key's own place is at `path#`.
#[derive(Debug)]
pub struct Document {
    pub value: Value,
    places: HashMap<String, Place>,
}

/// Something wrong in the text itself.
#[derive(Debug, PartialEq, Eq)]
pub struct YamlError {
    pub place: Place,
    pub message: String,
}

impl Document {
    /// Reads one document; an empty text is an empty mapping.
    pub fn parse(text: &str) -> Result<Document, YamlError> {
        let top = Place { line: 1, column: 1 };
        if text.len() > FILE_BYTES_MAX {
            let message = format!("the file is larger than {FILE_BYTES_MAX} bytes");
            return Err(YamlError { place: top, message });
        }
        let documents = MarkedYaml::load_from_str(text).map_err(|e| YamlError {
            place: Place { line: e.marker().line(), column: e.marker().col() + 1 },
            message: e.info().to_owned(),
        })?;
        let mut places = HashMap::new();
        let value = match documents.as_slice() {
            [] => Value::Object(Map::new()),
            [one] => convert(one, "", 0, &mut places)?,
            [_, second, ..] => {
                return Err(YamlError {
                    place: place(second),
                    message: "the file holds more than one document; expected one".into(),
                });
            }
        };
        let value = if value.is_null() { Value::Object(Map::new()) } else { value };
        Ok(Document { value, places })
    }

    /// Where a path stands; of a path that is not there, its nearest ancestor.
    pub fn place(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some(p) = self.places.get(path) {
                return *p;
            }
            match path.rfind(['.', '[']) {
                Some(at) => path = &path[..at],
                None => return self.places.get("").copied().unwrap_or(Place { line: 1, column: 1 }),
            }
        }
    }

    /// Where the key that ends a path stands.
    pub fn key_place(&self, path: &str) -> Place {
        self.places.get(&format!("{path}#")).copied().unwrap_or_else(|| self.place(path))
    }
}

/// `parent.key`, or `key` at the top.
pub fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

fn place(node: &MarkedYaml<'_>) -> Place {
    Place { line: node.span.start.line(), column: node.span.start.col() + 1 }
}

fn convert(
    node: &MarkedYaml<'_>,
    path: &str,
    depth: usize,
    places: &mut HashMap<String, Place>,
) -> Result<Value, YamlError> {
    let bad = |message: &str| YamlError { place: place(node), message: message.to_owned() };
    if depth > DEPTH_MAX {
        return Err(bad("nested too deeply"));
    }
    places.insert(path.to_owned(), place(node));
    Ok(match &node.data {
        YamlData::Value(scalar) => match scalar {
            Scalar::Null => Value::Null,
            Scalar::Boolean(b) => Value::Bool(*b),
            Scalar::Integer(i) => Value::Number((*i).into()),
            Scalar::FloatingPoint(f) => {
                Number::from_f64(f.into_inner()).map(Value::Number).ok_or_else(|| bad("not a finite number"))?
            }
            Scalar::String(s) => Value::String(s.to_string()),
        },
        YamlData::Sequence(items) => {
            let mut out = Vec::with_capacity(items.len());
            for (i, item) in items.iter().enumerate() {
                out.push(convert(item, &format!("{path}[{i}]"), depth + 1, places)?);
            }
            Value::Array(out)
        }
        YamlData::Mapping(pairs) => {
            let mut out = Map::new();
            for (key, value) in pairs {
                let name = match &key.data {
                    YamlData::Value(Scalar::String(s)) => s.to_string(),
                    YamlData::Value(Scalar::Integer(i)) => i.to_string(),
                    YamlData::Value(Scalar::Boolean(b)) => b.to_string(),
                    _ => return Err(YamlError { place: place(key), message: "expected a name as key".into() }),
                };
                let path = join(path, &name);
                places.insert(format!("{path}#"), place(key));
                if out.insert(name.clone(), convert(value, &path, depth + 1, places)?).is_some() {
                    return Err(YamlError { place: place(key), message: format!("key `{name}` is given twice") });
                }
            }
            Value::Object(out)
        }
        _ => return Err(bad("aliases and tags are not supported here")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_knows_its_place() {
        let d = Document::parse("a: 1\nb:\n  - x\n  - c: true\n").unwrap();
        assert_eq!(d.value["b"][1]["c"], Value::Bool(true));
        assert_eq!(d.place("b[1].c"), Place { line: 4, column: 8 });
        assert_eq!(d.key_place("b[1].c"), Place { line: 4, column: 5 });
        assert_eq!(d.place("b[1].absent"), d.place("b[1]"));
    }

    #[test]
    fn what_is_no_yaml_is_an_error_with_its_line() {
        let e = Document::parse("a: 1\nb: [1, 2\n").unwrap_err();
        assert!(e.place.line >= 2, "{e:?}");
        assert!(Document::parse("").unwrap().value.as_object().unwrap().is_empty());
    }
}
