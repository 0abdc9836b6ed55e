//! Patterns of literals and captures: the parser `| pattern` and the line filter `|>`.

/// A checked pattern, literals and captures alternating.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    pub parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Literal(String),
    /// `None`: `<_>`.
    Capture(Option<String>),
}

impl Pattern {
    /// For the parser: at least one name, no two captures side by side, no name twice.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = split(text)?;
        let mut names: Vec<&str> = Vec::new();
        for part in &parts {
            if let Part::Capture(Some(n)) = part {
                if names.contains(&n.as_str()) {
                    return Err(format!("duplicate capture name ({n}): invalid expression"));
                }
                names.push(n);
            }
        }
        if names.is_empty() {
            return Err("at least one capture is required".into());
        }
        Ok(Pattern { parts })
    }

    /// For the line filter: unnamed captures only.
    pub fn parse_filter(text: &str) -> Result<Self, String> {
        let parts = split(text)?;
        if parts.iter().any(|p| matches!(p, Part::Capture(Some(_)))) {
            return Err("named captures are not allowed".into());
        }
        Ok(Pattern { parts })
    }

    /// Whether the line filter `|>` keeps the line: literals in order, a capture takes at least one byte, the line ends with
    /// the last literal or, behind it, with at least one byte for a capture.
    pub fn hits(&self, line: &str) -> bool {
        let mut rest = line.as_bytes();
        let mut gap = false;
        if self.parts.is_empty() {
            return false;
        }
        for (i, part) in self.parts.iter().enumerate() {
            match part {
                Part::Capture(_) => gap = true,
                Part::Literal(text) => {
                    let from = usize::from(gap);
                    let Some(hay) = rest.get(from..) else { return false };
                    let last = i + 1 == self.parts.len();
                    let found = if last {
                        // Behind a capture the last occurrence may end the line; in front anything may stand.
                        hay.ends_with(text.as_bytes()).then(|| hay.len() - text.len())
                    } else {
                        memchr::memmem::find(hay, text.as_bytes())
                    };
                    let Some(at) = found else { return false };
                    if i > 0 && !gap && at != 0 {
                        return false;
                    }
                    rest = &hay[at + text.len()..];
                    gap = false;
                }
            }
        }
        if gap { !rest.is_empty() } else { rest.is_empty() }
    }
}

fn split(text: &str) -> Result<Vec<Part>, String> {
    let mut parts: Vec<Part> = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        match capture(rest) {
            Some((name, n)) => {
                if let Some(Part::Capture(before)) = parts.last() {
                    let before = before.as_deref().unwrap_or("_");
                    return Err(format!("found consecutive capture '<{before}><{name}>': invalid expression"));
                }
                parts.push(Part::Capture((name != "_").then(|| name.to_owned())));
                rest = &rest[n..];
            }
            None => {
                let n = rest.chars().next().map_or(1, char::len_utf8);
                match parts.last_mut() {
                    Some(Part::Literal(l)) => l.push_str(&rest[..n]),
                    _ => parts.push(Part::Literal(rest[..n].to_owned())),
                }
                rest = &rest[n..];
            }
        }
    }
    Ok(parts)
}

/// `<name>` at the start: the name and the length.
fn capture(text: &str) -> Option<(&str, usize)> {
    let inner = text.strip_prefix('<')?;
    let n = inner.find('>')?;
    let name = &inner[..n];
    let legal = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    legal.then_some((name, n + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_filter_patterns_follow_the_contract() {
        let hit = |p: &str, line: &str| Pattern::parse_filter(p).unwrap().hits(line);
        assert!(!hit("", "x") && hit("<_>", "x") && !hit("<_>", ""));
        assert!(!hit("<_>request", "request") && hit("<_>request", "a request"));
        assert!(hit("level=<_> d=<_>", "level=info d=1s") && !hit("level=<_> d=<_>", "level=info d="));
        assert!(hit("equest <_> finished<_>", "request 1 finished in"));
        assert!(!hit("a <_> b", "a 1 b c"));
    }

    #[test]
    fn parser_patterns_are_checked() {
        for bad in ["abc", "<a><b>", "<_>", "<a> <a>"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }
}
