//! Syntax tree to text, as Loki's `format_query` and error messages write it.

use storage::model::{MatchOp, Matcher};

use super::{ast::*, format};

/// Longest line that is not broken, characters.
const LINE_CHARS_MAX: usize = 100;

/// The canonical text, broken over lines where it is long.
pub fn pretty(expr: &Expr) -> String {
    match expr {
        Expr::Log(q) => pretty_log(q, 0),
        Expr::Metric(m) => pretty_metric(m, 0),
    }
}

fn indent(level: usize) -> String {
    "  ".repeat(level)
}

fn pretty_log(q: &LogQuery, level: usize) -> String {
    let one = log(q);
    if one.chars().count() <= LINE_CHARS_MAX || q.stages.is_empty() {
        return format!("{}{one}", indent(level));
    }
    let mut out = format!("{}{}", indent(level), selector(&q.matchers));
    for s in &q.stages {
        out.push_str(&format!("\n{}{}", indent(level + 1), stage(s)));
    }
    out
}

fn pretty_metric(m: &Metric, level: usize) -> String {
    let one = metric(m);
    if one.chars().count() <= LINE_CHARS_MAX {
        return format!("{}{one}", indent(level));
    }
    let pad = indent(level);
    match m {
        Metric::Binary(b) => format!(
            "{}\n{pad}{}{}\n{}",
            pretty_metric(&b.left, level + 1),
            b.op.text(),
            modifiers(b),
            pretty_metric(&b.right, level + 1)
        ),
        Metric::Aggregate(a) => {
            let parameter = a.parameter.map_or(String::new(), |p| format!("{}{p},\n", indent(level + 1)));
            format!(
                "{pad}{}{}(\n{parameter}{}\n{pad})",
                a.op.name(),
                grouping(a.grouping.as_ref()),
                pretty_metric(&a.inner, level + 1)
            )
        }
        Metric::Range(r) => {
            let parameter = r.parameter.map_or(String::new(), |p| format!("{}{p},\n", indent(level + 1)));
            let mut inner = pretty_log(&r.query, level + 1);
            if let Some(u) = &r.unwrap {
                inner.push_str(&format!("\n{}{}", indent(level + 2), unwrap(u)));
            }
            let group = r.grouping.as_ref().map_or(String::new(), |g| grouping(Some(g)));
            format!("{pad}{}(\n{parameter}{inner} {}\n{pad}){group}", r.op.name(), window(r))
        }
        _ => format!("{pad}{one}"),
    }
}

fn metric(m: &Metric) -> String {
    match m {
        Metric::Number(v) => format::float_plain(*v),
        Metric::Vector(v) => format!("vector({v:.6})"),
        Metric::Range(r) => {
            let parameter = r.parameter.map_or(String::new(), |p| format!("{},", format::float_plain(p)));
            let unwrap = r.unwrap.as_ref().map_or(String::new(), |u| format!(" {}", unwrap(u)));
            format!(
                "{}({parameter}{}{unwrap}{}){}",
                r.op.name(),
                log(&r.query),
                window(r),
                grouping(r.grouping.as_ref())
            )
        }
        Metric::Aggregate(a) => {
            let parameter = a.parameter.map_or(String::new(), |p| format!("{p},"));
            format!("{}{}({parameter}{})", a.op.name(), grouping(a.grouping.as_ref()), metric(&a.inner))
        }
        Metric::LabelReplace { inner, target, replacement, source, regex } => format!(
            "label_replace({},{},{},{},{})",
            metric(inner),
            quote(target),
            quote(replacement),
            quote(source),
            quote(regex)
        ),
        Metric::Binary(b) => {
            format!("({} {}{} {})", metric(&b.left), b.op.text(), modifiers(b), metric(&b.right))
        }
    }
}

fn modifiers(b: &Binary) -> String {
    let mut out = String::new();
    if b.return_bool {
        out.push_str(" bool");
    }
    let m = &b.matching;
    if m.on || !m.labels.is_empty() {
        out.push_str(&format!(" {} ({})", if m.on { "on" } else { "ignoring" }, m.labels.join(",")));
    }
    match m.card {
        Cardinality::OneToOne => {}
        Cardinality::ManyToOne => out.push_str(&format!(" group_left ({})", m.include.join(","))),
        Cardinality::OneToMany => out.push_str(&format!(" group_right ({})", m.include.join(","))),
    }
    out
}

fn window(r: &RangeAggregation) -> String {
    let offset = if r.offset == 0 { String::new() } else { format!(" offset {}", format::duration(r.offset)) };
    format!("[{}]{offset}", format::duration(r.range))
}

fn grouping(g: Option<&Grouping>) -> String {
    g.map_or(String::new(), |g| format!(" {} ({})", if g.without { "without" } else { "by" }, g.labels.join(",")))
}

fn unwrap(u: &Unwrap) -> String {
    let mut out = match u.convert {
        Some(c) => format!("| unwrap {}({})", c.name(), u.label),
        None => format!("| unwrap {}", u.label),
    };
    for f in &u.filters {
        out.push_str(&format!(" | {}", label_filter(f)));
    }
    out
}

fn log(q: &LogQuery) -> String {
    let mut out = selector(&q.matchers);
    for s in &q.stages {
        out.push(' ');
        out.push_str(&stage(s));
    }
    out
}

pub fn selector(matchers: &[Matcher]) -> String {
    let all: Vec<String> = matchers.iter().map(matcher).collect();
    format!("{{{}}}", all.join(", "))
}

fn matcher(m: &Matcher) -> String {
    let op = match m.op() {
        MatchOp::Eq => "=",
        MatchOp::Ne => "!=",
        MatchOp::Re => "=~",
        MatchOp::Nre => "!~",
    };
    format!("{}{op}{}", m.name(), quote(m.value()))
}

pub fn stage(s: &Stage) -> String {
    match s {
        Stage::Line(f) => line_filter(f),
        Stage::Labels(f) => format!("| {}", label_filter(f)),
        Stage::Json(e) => format!("| json{}", extracts(e)),
        Stage::Logfmt { strict, keep_empty, extract } => format!(
            "| logfmt{}{}{}",
            if *strict { " --strict" } else { "" },
            if *keep_empty { " --keep-empty" } else { "" },
            extracts(extract)
        ),
        Stage::Regexp(r) => format!("| regexp {}", quote(r)),
        Stage::Pattern(p) => format!("| pattern {}", quote(p)),
        Stage::Unpack => "| unpack".into(),
        Stage::LineFormat(t) => format!("| line_format {}", quote(t)),
        Stage::LabelFormat(list) => {
            let all: Vec<String> = list
                .iter()
                .map(|f| match f {
                    LabelFormat::Rename { to, from } => format!("{to}={from}"),
                    LabelFormat::Template { to, template } => format!("{to}={}", quote(template)),
                })
                .collect();
            format!("| label_format {}", all.join(","))
        }
        Stage::Decolorize => "| decolorize".into(),
        Stage::Drop(n) => format!("| drop {}", names(n)),
        Stage::Keep(n) => format!("| keep {}", names(n)),
    }
}

fn names(list: &[NameOrMatcher]) -> String {
    let all: Vec<String> = list
        .iter()
        .map(|n| match n {
            NameOrMatcher::Name(n) => n.clone(),
            NameOrMatcher::Matcher(m) => matcher(m),
        })
        .collect();
    all.join(",")
}

fn extracts(list: &[Extract]) -> String {
    if list.is_empty() {
        return String::new();
    }
    let all: Vec<String> = list.iter().map(|e| format!("{}={}", e.name, quote(&e.path))).collect();
    format!(" {}", all.join(","))
}

pub fn line_filter(f: &LineFilter) -> String {
    let all: Vec<String> = f
        .operands
        .iter()
        .map(|o| match o {
            LineOperand::Text(t) => quote(t),
            LineOperand::Ip(p) => format!("ip({})", quote(p)),
        })
        .collect();
    format!("{} {}", f.op.text(), all.join(" or "))
}

pub fn label_filter(f: &LabelFilter) -> String {
    match f {
        LabelFilter::Match(m) => matcher(m),
        LabelFilter::Ip { name, negated, pattern } => {
            format!("{name}{}ip({})", if *negated { "!=" } else { "=" }, quote(pattern))
        }
        LabelFilter::Compare { name, op, value } => format!("{name}{}{}", op.text(), literal(*value)),
        LabelFilter::And(a, b) => format!("( {} , {} )", label_filter(a), label_filter(b)),
        LabelFilter::Or(a, b) => format!("( {} or {} )", label_filter(a), label_filter(b)),
    }
}

fn literal(value: Literal) -> String {
    match value {
        Literal::Number(v) => format::float_plain(v),
        Literal::Duration(d) => format::duration(d),
        Literal::Bytes(b) => format!("{b}B"),
    }
}

/// A Go string literal.
pub fn quote(text: &str) -> String {
    crate::promql::print::quoted(text)
}
