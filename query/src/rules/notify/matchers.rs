//! Matchers as Alertmanager writes them.

use storage::model::{Labels, MatchOp, Matcher, MatcherBudget, re2};

/// `a="b"`, `a=~b`, or several in braces with commas between.
pub fn parse_matchers(text: &str) -> Result<Vec<Matcher>, String> {
    parse_matchers_within(text, &mut MatcherBudget::default())
}

/// As [`parse_matchers`], for one of several of a request.
pub fn parse_matchers_within(text: &str, budget: &mut MatcherBudget) -> Result<Vec<Matcher>, String> {
    let bad = || format!("bad matcher format: {text}");
    let inner = text.trim();
    let inner = match inner.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}').ok_or_else(bad)?,
        None => inner,
    };
    let mut out = Vec::new();
    let mut rest = inner.trim();
    while !rest.is_empty() {
        let at = rest.find(['=', '!']).ok_or_else(bad)?;
        let name = rest[..at].trim().trim_matches('"');
        let tail = &rest[at..];
        let (op, used) = match () {
            () if tail.starts_with("=~") => (MatchOp::Re, 2),
            () if tail.starts_with("!~") => (MatchOp::Nre, 2),
            () if tail.starts_with("!=") => (MatchOp::Ne, 2),
            () if tail.starts_with('=') => (MatchOp::Eq, 1),
            () => return Err(bad()),
        };
        let tail = tail[used..].trim_start();
        let (value, after) = if tail.starts_with('"') {
            let mut escaped = false;
            let end = tail.char_indices().skip(1).find(|(_, c)| {
                let ends = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                ends
            });
            let end = end.ok_or_else(bad)?.0 + 1;
            let value = crate::syntax::unquote(&tail[..end]).map_err(|_| bad())?;
            (String::from_utf8(value).map_err(|_| bad())?, tail[end..].trim_start())
        } else {
            let end = tail.find(',').unwrap_or(tail.len());
            (tail[..end].trim().to_owned(), &tail[end..])
        };
        if name.is_empty() || !(after.is_empty() || after.starts_with(',')) {
            return Err(bad());
        }
        let matcher = budget.matcher(name, op, value.clone());
        out.push(matcher.map_err(|e| format!("{}: {}", bad(), re2::told(&value, &e)))?);
        rest = after.trim_start_matches(',').trim();
    }
    if out.is_empty() { Err(bad()) } else { Ok(out) }
}

/// Whether all matchers accept.
pub fn all_match(matchers: &[Matcher], labels: &Labels) -> bool {
    matchers.iter().all(|m| m.matches(labels))
}
