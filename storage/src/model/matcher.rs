//! Label matchers `=`, `!=`, `=~`, `!~`; regular expressions are anchored at both ends, as in Prometheus and Loki.

use regex::Regex;

use super::{Labels, re2};

/// Largest compiled size of a matcher's regular expression, bytes.
pub const MATCHER_REGEX_BYTES_MAX: usize = 10 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchOp {
    Eq,
    Ne,
    Re,
    Nre,
}

/// One matcher on one label. An absent label has the value `""`.
#[derive(Clone, Debug)]
pub struct Matcher {
    name: String,
    op: MatchOp,
    value: String,
    regex: Option<Regex>,
}

impl Matcher {
    /// Errors when `op` is a regular-expression operator and `value` does not compile.
    pub fn new(name: impl Into<String>, op: MatchOp, value: impl Into<String>) -> Result<Self, regex::Error> {
        let (name, value) = (name.into(), value.into());
        let regex = match op {
            MatchOp::Eq | MatchOp::Ne => None,
            // `(?s:` so that `.` also matches a newline, as in Prometheus.
            MatchOp::Re | MatchOp::Nre => Some(
                regex::RegexBuilder::new(&format!("^(?s:{})$", re2::translate(&value)))
                    .size_limit(MATCHER_REGEX_BYTES_MAX)
                    .build()?,
            ),
        };
        Ok(Matcher { name, op, value, regex })
    }

    pub fn equal(name: impl Into<String>, value: impl Into<String>) -> Self {
        Matcher { name: name.into(), op: MatchOp::Eq, value: value.into(), regex: None }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn op(&self) -> MatchOp {
        self.op
    }

    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether a label of this value (`""` if absent) is accepted.
    pub fn matches_value(&self, value: &str) -> bool {
        match self.op {
            MatchOp::Eq => value == self.value,
            MatchOp::Ne => value != self.value,
            MatchOp::Re => self.regex.as_ref().is_some_and(|r| r.is_match(value)),
            MatchOp::Nre => !self.regex.as_ref().is_some_and(|r| r.is_match(value)),
        }
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_value(labels.get(&self.name).unwrap_or(""))
    }

    /// Whether a series without the label is accepted.
    pub fn matches_empty(&self) -> bool {
        self.matches_value("")
    }
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.op == other.op && self.value == other.value
    }
}

impl std::fmt::Display for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let op = match self.op {
            MatchOp::Eq => "=",
            MatchOp::Ne => "!=",
            MatchOp::Re => "=~",
            MatchOp::Nre => "!~",
        };
        write!(f, "{}{}{:?}", self.name, op, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_expressions_are_anchored_and_an_absent_label_is_empty() {
        let labels = Labels::from_pairs([("a", "foobar")]);
        let m = |op, v: &str| Matcher::new("a", op, v).unwrap().matches(&labels);
        assert!(!m(MatchOp::Re, "foo") && m(MatchOp::Re, "foo.*") && m(MatchOp::Nre, "bar"));
        assert!(!m(MatchOp::Re, "foo|bar"));
        assert!(Matcher::new("zz", MatchOp::Re, ".*").unwrap().matches(&labels));
        assert!(!Matcher::new("zz", MatchOp::Re, ".+").unwrap().matches(&labels));
        assert!(Matcher::new("a", MatchOp::Re, "(").is_err());
    }
}
