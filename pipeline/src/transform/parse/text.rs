//! Line formats: CRI and logfmt.

use std::borrow::Cow;

use super::{Found, TimeFormat, parse_time};
use crate::transform::attributes::Attributes;

/// `2026-01-02T03:04:05.000000006Z stdout F a line`. Tags after `F` or `P` (`F:x`) are allowed and dropped.
pub(super) fn cri(text: &str) -> Option<Found<'_>> {
    let (time, rest) = text.split_once(' ')?;
    let (stream, rest) = rest.split_once(' ')?;
    // An empty line may come without the last blank.
    let (tag, line) = rest.split_once(' ').unwrap_or((rest, ""));
    if !matches!(stream, "stdout" | "stderr") {
        return None;
    }
    let mut attributes = Attributes::default();
    match tag.split(':').next() {
        Some("F") => {}
        Some("P") => attributes.set_json(Cow::Borrowed("partial"), Cow::Borrowed("true")),
        _ => return None,
    }
    attributes.set_text(Cow::Borrowed("stream"), stream);
    Some(Found {
        ts: Some(parse_time(time, &TimeFormat::Rfc3339)?),
        body: Some(Cow::Borrowed(line)),
        severity: None,
        attributes,
    })
}

/// Pairs `key=value` or `key="va\"lue"`; words without `=` are passed over. `None` when there is no pair.
pub(super) fn logfmt(text: &str) -> Option<Attributes<'_>> {
    let mut out = Attributes::default();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let Some(value) = after.strip_prefix('=') else {
            rest = after.trim_start();
            continue;
        };
        let (value, after) = if value.starts_with('"') {
            quoted(value)?
        } else {
            let end = value.find(char::is_whitespace).unwrap_or(value.len());
            (Cow::Borrowed(&value[..end]), &value[end..])
        };
        if !key.is_empty() && !key.contains('"') {
            out.set_text(Cow::Borrowed(key), &value);
        }
        rest = after.trim_start();
    }
    (!out.is_empty()).then_some(out)
}

/// The text in quotes at the start, and what follows. `None` when it is not closed.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((Cow::Owned(out), &text[i + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => out.push('\n'),
                'r' => out.push('\r'),
                't' => out.push('\t'),
                c @ ('"' | '\\' | '/') => out.push(c),
                c => out.extend(['\\', c]),
            },
            c => out.push(c),
        }
    }
    None
}
