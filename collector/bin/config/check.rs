//! Finds every error of a document at once: the value is read as its type again and again, each error noted and the piece
//! that caused it taken out, until what is left reads well.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::yaml::{Document, Place};

/// Errors reported at most.
const ERRORS_MAX: usize = 100;
/// Of more names than this only the nearest one is told.
const NAMES_MAX: usize = 12;

/// One thing wrong in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// `transforms.parse.format`, empty for the whole file.
    pub path: String,
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: ", self.place.line, self.place.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Reads `path` of the document as `T`. Problems are added to `problems`; `None` when too little is left to read.
pub fn read<T: DeserializeOwned>(
    document: &Document,
    path: &str,
    value: &Value,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let mut value = value.clone();
    for _ in 0..ERRORS_MAX {
        let error = match serde_path_to_error::deserialize::<_, T>(&value) {
            Ok(read) => return Some(read),
            Err(e) => e,
        };
        let inner = path_of(error.path());
        let message = error.inner().to_string();
        let culprit = culprit(&value, &inner, &message);
        let full = join(path, &culprit);
        let unknown = backticked(&message).filter(|_| message.starts_with("unknown"));
        let place =
            if message.starts_with("unknown field") { document.key_place(&full) } else { document.place(&full) };
        problems.push(Problem { place, path: full, message: explain(&message, unknown) });
        // Without its type nothing more can be said of a component.
        if message.starts_with("unknown variant") && culprit.ends_with("type") {
            return None;
        }
        if problems.len() >= ERRORS_MAX || culprit.is_empty() || !prune(&mut value, &culprit) {
            return None;
        }
    }
    None
}

fn join(base: &str, inner: &str) -> String {
    match (base.is_empty(), inner.is_empty()) {
        (true, _) => inner.to_owned(),
        (false, true) => base.to_owned(),
        (false, false) if inner.starts_with('[') => format!("{base}{inner}"),
        (false, false) => format!("{base}.{inner}"),
    }
}

fn path_of(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut out = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => out.push_str(&format!("[{index}]")),
            Segment::Map { key } => out = super::yaml::join(&out, key),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    out
}

/// The first name in backticks.
fn backticked(message: &str) -> Option<&str> {
    let from = message.find('`')? + 1;
    let len = message[from..].find('`')?;
    Some(&message[from..from + len])
}

/// The path of the node to blame. Enums that are told apart by a field lose the inner path: then the name in the message
/// is looked for below the path that is known.
fn culprit(value: &Value, path: &str, message: &str) -> String {
    let Some(node) = get(value, path) else { return path.to_owned() };
    let Some(name) = backticked(message) else { return path.to_owned() };
    if message.starts_with("unknown field") && node.get(name).is_some() {
        return super::yaml::join(path, name);
    }
    if message.starts_with("unknown variant") && node.get("type").and_then(Value::as_str) == Some(name) {
        return super::yaml::join(path, "type");
    }
    path.to_owned()
}

/// The message with what was meant, if a valid name is near.
fn explain(message: &str, unknown: Option<&str>) -> String {
    let Some(unknown) = unknown else { return plain(message) };
    let valid: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
    let many = valid.len() > NAMES_MAX;
    match pipeline::error::nearest(unknown, valid) {
        Some(name) if many => {
            let short = message.split(", expected").next().unwrap_or(message);
            format!("{short}; did you mean `{name}`?")
        }
        Some(name) => format!("{message}; did you mean `{name}`?"),
        None => message.to_owned(),
    }
}

/// The message with types in words.
fn plain(message: &str) -> String {
    for (of_rust, words) in [
        (&["u64", "u32", "u16", "u8", "usize"][..], "a whole number"),
        (&["i64", "i32"], "an integer"),
        (&["f64"], "a number"),
        (&["a sequence"], "a list"),
    ] {
        for name in of_rust {
            if let Some(start) = message.strip_suffix(name).filter(|s| s.ends_with("expected ")) {
                return format!("{start}{words}");
            }
        }
    }
    message.to_owned()
}

/// Steps of `a.b[2].c`.
fn steps(path: &str) -> Vec<String> {
    path.replace('[', ".[").split('.').filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

fn get<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    steps(path).iter().try_fold(value, |at, step| match step.strip_prefix('[') {
        Some(i) => at.get(i.trim_end_matches(']').parse::<usize>().ok()?),
        None => at.get(step.as_str()),
    })
}

/// Takes a node out; `false` if it is not there.
fn prune(value: &mut Value, path: &str) -> bool {
    let steps = steps(path);
    let Some((last, parents)) = steps.split_last() else { return false };
    let mut at = value;
    for step in parents {
        let next = match step.strip_prefix('[') {
            Some(i) => i.trim_end_matches(']').parse::<usize>().ok().and_then(|i| at.get_mut(i)),
            None => at.get_mut(step.as_str()),
        };
        match next {
            Some(n) => at = n,
            None => return false,
        }
    }
    match (at, last.strip_prefix('[')) {
        (Value::Object(map), None) => map.remove(last).is_some(),
        (Value::Array(items), Some(i)) => match i.trim_end_matches(']').parse::<usize>() {
            // The others keep their numbers.
            Ok(i) if i < items.len() => {
                items[i] = Value::Null;
                false
            }
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[derive(Default)]
    struct Sample {
        port: u16,
        name: String,
        inner: Inner,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        depth: u8,
    }

    #[test]
    fn every_error_is_found_with_its_place_and_the_nearest_name() {
        let text = "prot: 1\nport: high\ninner:\n  dpeth: 3\n  depth: 900\nname: ok\n";
        let document = Document::parse(text).unwrap();
        let mut problems = Vec::new();
        let read: Option<Sample> = read(&document, "", &document.value, &mut problems);
        assert_eq!(read.unwrap().name, "ok");
        problems.sort_by_key(|p| p.place);
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 4, "{lines:#?}");
        assert!(lines[0].starts_with("1:1: prot: unknown field `prot`") && lines[0].contains("did you mean `port`?"));
        assert!(lines[1].starts_with("2:7: port: invalid type"), "{}", lines[1]);
        assert!(lines[2].starts_with("4:3: inner.dpeth") && lines[2].contains("`depth`"), "{}", lines[2]);
        assert!(lines[3].starts_with("5:10: inner.depth"), "{}", lines[3]);
    }
}
