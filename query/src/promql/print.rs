//! A tree as text again: in one line, or with long expressions broken into indented lines as Prometheus' `format_query` does.
//!
//! What is printed parses to the same tree. Comments and the spelling of numbers are gone; durations stay durations.

use std::fmt::Write as _;

use storage::model::{MatchOp, Matcher};

use super::{
    ast::{
        Aggregate, At, Binary, Cardinality, Duration, DurationKind, Edges, Expr, ExprKind, Selector, Subquery,
        ValueType,
    },
    parser::parse_duration_ms,
    value::format_plain,
};
use crate::syntax::Span;

/// Characters of an expression that stays on one line.
const LINE_CHARS_MAX: usize = 100;

/// The expression on one line. `text`: what it was parsed from.
pub fn line(text: &str, expr: &Expr) -> String {
    Printer { text }.line(expr)
}

/// The expression with lines of at most [`LINE_CHARS_MAX`] characters where it can be broken.
pub fn pretty(text: &str, expr: &Expr) -> String {
    Printer { text }.pretty(expr, 0).0
}

struct Printer<'a> {
    text: &'a str,
}

fn indent(level: usize) -> String {
    "  ".repeat(level)
}

fn is_name(text: &str, first_may_be_colon: bool) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || c == '_' || (first_may_be_colon && c == ':');
    !text.is_empty() && text.chars().all(ok) && !text.starts_with(|c: char| c.is_ascii_digit())
}

fn label_name(name: &str) -> String {
    if is_name(name, false) { name.to_owned() } else { quoted(name) }
}

fn labels(names: &[String]) -> String {
    names.iter().map(|n| label_name(n)).collect::<Vec<_>>().join(", ")
}

/// In double quotes, with the escapes of Go.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        let escape = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\x07' => "\\a",
            '\x08' => "\\b",
            '\x0c' => "\\f",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\x0b' => "\\v",
            c if c.is_control() && c.is_ascii() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
                continue;
            }
            c if c.is_control() || c == '\u{feff}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
                continue;
            }
            c => {
                out.push(c);
                continue;
            }
        };
        out.push_str(escape);
    }
    out.push('"');
    out
}

/// `1h30m`; years and weeks only where nothing is left beside them.
pub fn duration_text(mut ms: i64) -> String {
    if ms == 0 {
        return "0s".to_owned();
    }
    let mut out = String::new();
    if ms < 0 {
        out.push('-');
        ms = ms.saturating_neg();
    }
    for (unit, size, exact) in [
        ("y", 365 * 86_400_000, true),
        ("w", 7 * 86_400_000, true),
        ("d", 86_400_000, false),
        ("h", 3_600_000, false),
        ("m", 60_000, false),
        ("s", 1000, false),
        ("ms", 1, false),
    ] {
        if ms < size || (exact && ms % size != 0) {
            continue;
        }
        let _ = write!(out, "{}{unit}", ms / size);
        ms %= size;
    }
    out
}

fn seconds_text(seconds: f64) -> String {
    duration_text((seconds * 1000.0).round() as i64)
}

fn matcher(m: &Matcher) -> String {
    let op = match m.op() {
        MatchOp::Eq => "=",
        MatchOp::Ne => "!=",
        MatchOp::Re => "=~",
        MatchOp::Nre => "!~",
    };
    format!("{}{op}{}", label_name(m.name()), quoted(m.value()))
}

/// The name that stands ahead of the braces.
pub(super) fn written_name(s: &Selector) -> Option<&str> {
    s.name.as_deref().filter(|n| is_name(n, true))
}

fn at(at: Option<At>) -> String {
    match at {
        None => String::new(),
        Some(At::Start) => " @ start()".to_owned(),
        Some(At::End) => " @ end()".to_owned(),
        Some(At::Millis(ms)) => {
            let sign = if ms < 0 { "-" } else { "" };
            format!(" @ {sign}{}.{:03}", ms.unsigned_abs() / 1000, ms.unsigned_abs() % 1000)
        }
    }
}

fn edges(edges: Edges) -> &'static str {
    match edges {
        Edges::Plain => "",
        Edges::Anchored => " anchored",
        Edges::Smoothed => " smoothed",
    }
}

/// Matching says something only between two vectors.
pub(super) fn matches_vectors(b: &Binary) -> bool {
    b.left.value_type() == ValueType::Vector && b.right.value_type() == ValueType::Vector
}

impl Printer<'_> {
    fn source(&self, span: Span) -> &str {
        self.text.get(span.start..span.end).unwrap_or_default()
    }

    /// Whether a number was written as a duration.
    fn is_duration(&self, span: Span) -> bool {
        let text = self.source(span).trim_start_matches(['-', '+', ' ']);
        !text.bytes().all(|b| b.is_ascii_digit()) && parse_duration_ms(text).is_some()
    }

    fn number(&self, value: f64, span: Span) -> String {
        if self.is_duration(span) { seconds_text(value) } else { format_plain(value) }
    }

    fn line(&self, expr: &Expr) -> String {
        match &expr.kind {
            ExprKind::Number(n) => self.number(*n, expr.span),
            ExprKind::String(s) => quoted(s),
            ExprKind::Paren(e) => format!("({})", self.line(e)),
            ExprKind::Unary { minus, operand } => format!("{}{}", if *minus { '-' } else { '+' }, self.line(operand)),
            ExprKind::Binary(b) => {
                format!("{} {}{} {}", self.line(&b.left), b.op.symbol(), matching(b), self.line(&b.right))
            }
            ExprKind::Aggregate(a) => {
                let parameter = a.parameter.as_ref().map(|p| self.line(p) + ", ").unwrap_or_default();
                format!("{}({parameter}{})", operation(a), self.line(&a.operand))
            }
            ExprKind::Call { function, args } => {
                let args: Vec<String> = self.arguments(expr, args).iter().map(|a| self.line(a)).collect();
                format!("{}({})", function.name, args.join(", "))
            }
            ExprKind::Selector(s) => {
                format!("{}{}{}{}", series(s), at(s.at), edges(s.edges), self.offset(s.offset.as_ref()))
            }
            ExprKind::Range { selector: s, range } => format!(
                "{}[{}]{}{}{}",
                series(s),
                self.duration(range),
                edges(s.edges),
                at(s.at),
                self.offset(s.offset.as_ref())
            ),
            ExprKind::Subquery(s) => self.line(&s.expr) + &self.subquery_suffix(s),
        }
    }

    /// Without the selector that `info` was given because it had none: that one stands where the call ends.
    fn arguments<'e>(&self, call: &Expr, args: &'e [Expr]) -> &'e [Expr] {
        match args {
            [first, given] if given.span.end == call.span.end && self.source(given.span) == ")" => {
                std::slice::from_ref(first)
            }
            all => all,
        }
    }

    fn subquery_suffix(&self, s: &Subquery) -> String {
        let step = s.step.as_ref().map(|d| self.duration(d)).unwrap_or_default();
        format!("[{}:{step}]{}{}", self.duration(&s.range), at(s.at), self.offset(s.offset.as_ref()))
    }

    fn offset(&self, offset: Option<&Duration>) -> String {
        let Some(d) = offset else { return String::new() };
        match &d.kind {
            DurationKind::Seconds(s) if *s == 0.0 => String::new(),
            DurationKind::Seconds(s) => format!(" offset {}", seconds_text(*s)),
            DurationKind::Negate(inner) if matches!(inner.kind, DurationKind::Seconds(_)) => {
                format!(" offset -{}", self.duration(inner))
            }
            _ => format!(" offset ({})", self.duration(d)),
        }
    }

    fn duration(&self, d: &Duration) -> String {
        match &d.kind {
            DurationKind::Seconds(s) => seconds_text(*s),
            _ => self.duration_part(d, false),
        }
    }

    /// `inside`: as an operand, where arithmetic needs its brackets.
    fn duration_part(&self, d: &Duration, inside: bool) -> String {
        let part = |d: &Duration| self.duration_part(d, true);
        let top = |d: &Duration| self.duration_part(d, false);
        match &d.kind {
            DurationKind::Seconds(s) => self.number(*s, d.span),
            DurationKind::Step => "step()".to_owned(),
            DurationKind::Range => "range()".to_owned(),
            DurationKind::Negate(d) => format!("-{}", part(d)),
            DurationKind::Least(a, b) => format!("min_of({}, {})", top(a), top(b)),
            DurationKind::Greatest(a, b) => format!("max_of({}, {})", top(a), top(b)),
            DurationKind::Binary(op, a, b) => {
                let text = format!("{} {} {}", part(a), op.symbol(), part(b));
                if inside { format!("({text})") } else { text }
            }
        }
    }

    /// The expression, each of its lines ahead with the level's indent, and its length on one line.
    ///
    /// Lengths come from below, so that a deep tree is not printed once for each level.
    fn pretty(&self, expr: &Expr, level: usize) -> (String, usize) {
        let ahead = indent(level);
        let one_line = |text: String| {
            let length = text.chars().count();
            (format!("{ahead}{text}"), length)
        };
        // (broken, length on one line), of nodes that can be broken.
        let (broken, length) = match &expr.kind {
            ExprKind::Number(_) | ExprKind::String(_) | ExprKind::Selector(_) | ExprKind::Range { .. } => {
                return one_line(self.line(expr));
            }
            ExprKind::Unary { minus, operand } => {
                let (text, length) = self.pretty(operand, level);
                let sign = if *minus { '-' } else { '+' };
                return (format!("{ahead}{sign}{}", text.trim()), length + 1);
            }
            ExprKind::Paren(e) => {
                let (text, length) = self.pretty(e, level + 1);
                (format!("{ahead}(\n{text}\n{ahead})"), length + 2)
            }
            ExprKind::Binary(b) => {
                let ((left, l), (right, r)) = (self.pretty(&b.left, level + 1), self.pretty(&b.right, level + 1));
                let op = format!("{}{}", b.op.symbol(), matching(b));
                let length = l + r + op.chars().count() + 2;
                (format!("{left}\n{ahead}{op}\n{right}"), length)
            }
            ExprKind::Aggregate(a) => {
                let op = operation(a);
                let (operand, mut length) = self.pretty(&a.operand, level + 1);
                length += op.chars().count() + 2;
                let parameter = a.parameter.as_ref().map_or_else(String::new, |p| {
                    let (text, l) = self.pretty(p, level + 1);
                    length += l + 2;
                    text + ",\n"
                });
                (format!("{ahead}{op}(\n{parameter}{operand}\n{ahead})"), length)
            }
            ExprKind::Call { function, args } => {
                let args = self.arguments(expr, args);
                let (texts, lengths): (Vec<String>, Vec<usize>) =
                    args.iter().map(|a| self.pretty(a, level + 1)).unzip();
                let length =
                    function.name.len() + 2 + lengths.iter().sum::<usize>() + 2 * args.len().saturating_sub(1);
                (format!("{ahead}{}(\n{}\n{ahead})", function.name, texts.join(",\n")), length)
            }
            ExprKind::Subquery(s) => {
                let suffix = self.subquery_suffix(s);
                let (text, length) = self.pretty(&s.expr, level);
                (format!("{text}{suffix}"), length + suffix.chars().count())
            }
        };
        if length > LINE_CHARS_MAX { (broken, length) } else { (format!("{ahead}{}", self.line(expr)), length) }
    }
}

/// ` bool`, ` on (a) group_left (b)` and so on: what stands behind an operator.
fn matching(b: &Binary) -> String {
    let mut out = if b.returns_bool { " bool" } else { "" }.to_owned();
    if !matches_vectors(b) {
        return out;
    }
    let m = &b.matching;
    let group = match m.cardinality {
        Cardinality::ManyToOne => Some("left"),
        Cardinality::OneToMany => Some("right"),
        Cardinality::OneToOne | Cardinality::ManyToMany => None,
    };
    if !m.labels.is_empty() || m.on || group.is_some() {
        let _ = write!(out, " {} ({})", if m.on { "on" } else { "ignoring" }, labels(&m.labels));
    }
    if let Some(side) = group {
        let _ = write!(out, " group_{side} ({})", labels(&m.include));
    }
    let fills = match m.fill {
        (Some(l), Some(r)) if l.to_bits() == r.to_bits() => [("fill", Some(l)), ("", None)],
        (l, r) => [("fill_left", l), ("fill_right", r)],
    };
    for (word, value) in fills {
        if let Some(value) = value {
            let _ = write!(out, " {word} ({})", format_plain(value));
        }
    }
    out
}

/// The aggregator and its grouping.
fn operation(a: &Aggregate) -> String {
    let name = a.op.name();
    match (a.without, a.grouping.is_empty()) {
        (true, _) => format!("{name} without ({}) ", labels(&a.grouping)),
        (false, false) => format!("{name} by ({}) ", labels(&a.grouping)),
        (false, true) => name.to_owned(),
    }
}

/// Name and matchers.
fn series(s: &Selector) -> String {
    let name = written_name(s);
    let mut rest: Vec<String> = s
        .matchers
        .iter()
        .filter(|m| !(m.name() == "__name__" && m.op() == MatchOp::Eq && Some(m.value()) == name))
        .map(matcher)
        .collect();
    rest.sort();
    let name = name.unwrap_or_default();
    if rest.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", rest.join(",")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promql::parse;

    fn shown(text: &str) -> String {
        pretty(text, &parse(text).unwrap_or_else(|e| panic!("{text}: {e}")))
    }

    #[test]
    fn expressions_on_one_line_have_one_form() {
        for (text, want) in [
            ("sum(a)by(job)", "sum by (job) (a)"),
            ("sum without () (a) # comment", "sum without () (a)"),
            ("topk by(x) (5,a{b='c',a!=\"d\"})", "topk by (x) (5, a{a!=\"d\",b=\"c\"})"),
            ("a+on()group_left(x)b", "a + on () group_left (x) b"),
            ("a*ignoring(y)b", "a * ignoring (y) b"),
            ("a>bool 1", "a > bool 1"),
            ("a and b", "a and b"),
            ("rate(a[300])", "rate(a[5m])"),
            ("a[1h30m]@start()offset -1w", "a[1h30m] @ start() offset -1w"),
            ("a offset 5m @ 12.5", "a @ 12.500 offset 5m"),
            ("max_over_time(rate(a[5m])[1h:]offset 90s)", "max_over_time(rate(a[5m])[1h:] offset 1m30s)"),
            ("{__name__=\"a\"}", "{__name__=\"a\"}"),
            ("{\"my.metric\",\"a.b\"=\"x\"}", "{\"a.b\"=\"x\",__name__=\"my.metric\"}"),
            ("- a ^ 2", "-a ^ 2"),
            ("-(1)", "-(1)"),
            ("0x10 + 1e3 + Inf - nan", "16 + 1000 + +Inf - NaN"),
            ("\"a\\n\\\"b\"", "\"a\\n\\\"b\""),
            ("1m > bool 60", "1m > bool 60"),
            ("a{b=~\"x\\\\.y\"}", "a{b=~\"x\\\\.y\"}"),
            ("a[step() + 5m]", "a[step() + 5m]"),
            ("a[(1m + 2m) * 2]", "a[(1m + 2m) * 2]"),
            ("a + fill(0) b", "a + fill (0) b"),
            ("a[5m] anchored offset 1m", "a[5m] anchored offset 1m"),
            ("info(a)", "info(a)"),
            ("label_replace(a, \"x\", \"$1\", \"y\", \"(.*)\")", "label_replace(a, \"x\", \"$1\", \"y\", \"(.*)\")"),
        ] {
            assert_eq!(shown(text), want, "{text}");
            // What is printed reads as the same.
            assert_eq!(shown(&shown(text)), want, "{text}");
        }
    }

    #[test]
    fn long_expressions_are_broken_where_they_have_parts() {
        let long = "a".repeat(60);
        let text = format!("sum by(job)(rate({long}{{job=\"x\"}}[5m]))/on(job)group_left() topk(5,{long})");
        let want =
            format!("  sum by (job) (rate({long}{{job=\"x\"}}[5m]))\n/ on (job) group_left ()\n  topk(5, {long})");
        assert_eq!(shown(&text), want);
        let text = format!("-(histogram_quantile(0.9, sum by (le) (rate({long}{long}[5m]))))");
        let want = format!(
            "-(\n  histogram_quantile(\n    0.9,\n    sum by (le) (\n      rate(\n        {long}{long}[5m]\n      )\n    )\n  )\n)"
        );
        assert_eq!(shown(&text), want);
    }

    #[test]
    fn durations_are_short() {
        for (ms, want) in [
            (0, "0s"),
            (1, "1ms"),
            (90_061_001, "1d1h1m1s1ms"),
            (7 * 86_400_000, "1w"),
            (90 * 86_400_000, "90d"),
            (-60_000, "-1m"),
            (365 * 86_400_000, "1y"),
        ] {
            assert_eq!(duration_text(ms), want);
        }
    }
}
