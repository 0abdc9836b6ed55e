//! Label matchers `=`, `!=`, `=~`, `!~`; regular expressions are anchored at both ends, as in Prometheus and Loki.
//!
//! What selectors mostly ask by regular expression (`a|b|c`, `prefix.*`) is answered without one: a label may have a million
//! values, and each is asked about.

use regex::Regex;

use super::{Labels, re2};

/// Largest compiled size of a matcher's regular expression, bytes.
pub const MATCHER_REGEX_BYTES_MAX: usize = 10 << 20;

/// Longest regular expression, bytes: to read one takes many times as much memory.
pub const MATCHER_PATTERN_BYTES_MAX: usize = 128 << 10;

/// Largest cache of one regular expression for each thread that matches, bytes.
const MATCHER_CACHE_BYTES_MAX: usize = 2 << 20;

/// Makes the matchers of one request, whose regular expressions share a budget: the nth may compile to an nth of
/// [`MATCHER_REGEX_BYTES_MAX`], so that thousands of them take ten times as much as one. Whatever else of the request is a
/// regular expression is of the same budget.
#[derive(Clone, Copy, Debug, Default)]
pub struct MatcherBudget {
    compiled: usize,
}

impl MatcherBudget {
    /// Errors when `op` is a regular-expression operator and `value` does not compile within what is left.
    pub fn matcher(
        &mut self,
        name: impl Into<String>,
        op: MatchOp,
        value: impl Into<String>,
    ) -> Result<Matcher, regex::Error> {
        let (name, value) = (name.into(), value.into());
        let pattern = match op {
            MatchOp::Eq | MatchOp::Ne => Pattern::Value,
            MatchOp::Re | MatchOp::Nre => match Pattern::simple(&value) {
                Some(simple) => simple,
                None => Pattern::Regex(self.anchored(&value)?),
            },
        };
        Ok(Matcher { name, op, value, pattern })
    }

    /// Compiles RE2 syntax, anchored at both ends as matchers are. Errors as [`MatcherBudget::regex`].
    pub fn anchored(&mut self, re2: &str) -> Result<Regex, regex::Error> {
        // `(?s:` so that `.` also matches a newline, as in Prometheus.
        self.compile(re2, |translated| format!("^(?s:{translated})$"))
    }

    /// Compiles RE2 syntax. Errors when it does not compile within what is left.
    pub fn regex(&mut self, re2: &str) -> Result<Regex, regex::Error> {
        self.compile(re2, |translated| translated)
    }

    fn compile(&mut self, re2: &str, wrap: impl FnOnce(String) -> String) -> Result<Regex, regex::Error> {
        let bytes_max = MATCHER_REGEX_BYTES_MAX / (self.compiled + 1);
        if re2.len() > MATCHER_PATTERN_BYTES_MAX {
            return Err(regex::Error::CompiledTooBig(bytes_max));
        }
        let regex = regex::RegexBuilder::new(&wrap(re2::translate(re2)))
            .size_limit(bytes_max)
            .dfa_size_limit(bytes_max.min(MATCHER_CACHE_BYTES_MAX))
            .build()?;
        self.compiled += 1;
        Ok(regex)
    }
}

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
    pattern: Pattern,
}

/// How a value is told.
#[derive(Clone, Debug)]
enum Pattern {
    /// `=` and `!=`.
    Value,
    /// Any of these, which are sorted.
    Values(Vec<String>),
    /// What begins so and ends so, with at least so many characters more in between.
    Ends {
        prefix: String,
        suffix: String,
        between: usize,
    },
    Regex(Regex),
}

/// Longest expression that is looked at for being a simple one.
const SIMPLE_BYTES_MAX: usize = 64 << 10;

impl Pattern {
    /// `None`: it takes a regular expression.
    fn simple(re2: &str) -> Option<Pattern> {
        if re2.len() > SIMPLE_BYTES_MAX {
            return None;
        }
        let inner = re2.strip_prefix('(').and_then(|t| t.strip_suffix(')')).filter(|t| !t.contains(['(', ')']));
        let mut values = vec![String::new()];
        let mut rest = inner.unwrap_or(re2);
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            let first = values.len() == 1;
            let last = values.last_mut().expect("never empty");
            match c {
                '|' => values.push(String::new()),
                // Escaped punctuation is itself.
                '\\' => {
                    let escaped = rest.chars().next().filter(char::is_ascii_punctuation)?;
                    // RE2 has no meaning for these, some engines do.
                    if matches!(escaped, '<' | '>') {
                        return None;
                    }
                    last.push(escaped);
                    rest = &rest[1..];
                }
                '.' if first && inner.is_none() => {
                    let between = match rest.chars().next()? {
                        '*' => 0,
                        '+' => 1,
                        _ => return None,
                    };
                    let mut suffix = Pattern::simple(&rest[1..])?;
                    let Pattern::Values(ends) = &mut suffix else { return None };
                    // `a.*|b` is none of these, and what a group may be is not asked.
                    let plain = ends.len() == 1 && !rest[1..].contains(['(', '|']);
                    let suffix = ends.pop().filter(|_| plain)?;
                    return Some(Pattern::Ends { prefix: values.pop()?, suffix, between });
                }
                '.' | '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '^' | '$' => return None,
                c => last.push(c),
            }
        }
        values.sort_unstable();
        values.dedup();
        Some(Pattern::Values(values))
    }

    fn is_match(&self, value: &str) -> bool {
        match self {
            Pattern::Value => false,
            Pattern::Values(values) => values.binary_search_by(|v| v.as_str().cmp(value)).is_ok(),
            Pattern::Ends { prefix, suffix, between } => {
                value.len() >= prefix.len() + suffix.len() + between
                    && value.starts_with(prefix.as_str())
                    && value.ends_with(suffix.as_str())
            }
            Pattern::Regex(regex) => regex.is_match(value),
        }
    }
}

impl Matcher {
    /// Errors when `op` is a regular-expression operator and `value` does not compile.
    pub fn new(name: impl Into<String>, op: MatchOp, value: impl Into<String>) -> Result<Self, regex::Error> {
        MatcherBudget::default().matcher(name, op, value)
    }

    pub fn equal(name: impl Into<String>, value: impl Into<String>) -> Self {
        Matcher { name: name.into(), op: MatchOp::Eq, value: value.into(), pattern: Pattern::Value }
    }

    /// The values that it names one by one, and whether it accepts those (and no other) or all but those. `None`: it does
    /// not name its values.
    pub fn named_values(&self) -> Option<(impl Iterator<Item = &str>, bool)> {
        let values = match &self.pattern {
            Pattern::Value => std::slice::from_ref(&self.value),
            Pattern::Values(values) => values.as_slice(),
            _ => return None,
        };
        Some((values.iter().map(String::as_str), matches!(self.op, MatchOp::Eq | MatchOp::Re)))
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
            MatchOp::Re => self.pattern.is_match(value),
            MatchOp::Nre => !self.pattern.is_match(value),
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

    #[test]
    fn regular_expressions_of_one_request_share_a_budget_and_are_no_longer_than_a_query() {
        let big = "(a{1000}){50}";
        let mut budget = MatcherBudget::default();
        let made = (0..100).take_while(|_| budget.matcher("a", MatchOp::Re, big).is_ok()).count();
        assert!((1..10).contains(&made), "{made}");
        assert!(budget.matcher("a", MatchOp::Re, "(?i)a.*").is_ok(), "small ones go on");
        assert!((0..5000).all(|_| budget.matcher("a", MatchOp::Re, "a|b").is_ok()), "those that take none are free");
        assert!(Matcher::new("a", MatchOp::Re, "a?".repeat(MATCHER_PATTERN_BYTES_MAX)).is_err());
    }

    #[test]
    fn simple_expressions_take_no_regex() {
        for simple in ["", "a", "a|b", "(a|b)", "a|", ".*", ".+", "a.*", ".*a", "a.+b", r"10\.0\.0\.1:9100", "é|ü.x"]
        {
            let is_simple = !matches!(Matcher::new("a", MatchOp::Re, simple).unwrap().pattern, Pattern::Regex(_));
            assert_eq!(is_simple, simple != "é|ü.x", "{simple}");
        }
        for other in [
            "a.*|b", "(a).*", "(a)(b)", "(?i)a", "a?", "[a]", r"\d", r"\Qa\E", "^a$", "a.*b.*", "(a|b", "{a}", "a.",
            "|.*",
        ] {
            let pattern = Matcher::new("a", MatchOp::Re, other).map(|m| m.pattern);
            assert!(!matches!(pattern, Ok(Pattern::Values(_) | Pattern::Ends { .. })), "{other}");
        }
    }

    /// Expressions put together from pieces, against the engine.
    #[test]
    fn simple_expressions_match_as_the_engine_does() {
        let pieces = ["a", "b", "é", "|", ".*", ".+", "(", ")", r"\.", ".", r"\-", "?", "\n"];
        let values = ["", "a", "b", "ab", "ba", "aa", "a.b", "é", "aé", "a\nb", "-", "é.", "abab", "\n", "."];
        let mut next = 1u64;
        for _ in 0..20_000 {
            let mut re = String::new();
            for _ in 0..next % 6 {
                next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                re.push_str(pieces[(next >> 33) as usize % pieces.len()]);
            }
            next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) ^ next >> 40;
            let Some(simple) = Pattern::simple(&re) else { continue };
            let engine = regex::Regex::new(&format!("^(?s:{})$", re2::translate(&re))).unwrap();
            for v in values {
                assert_eq!(simple.is_match(v), engine.is_match(v), "{re:?} on {v:?}");
            }
        }
    }
}
