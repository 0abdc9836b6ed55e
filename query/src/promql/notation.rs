//! The notation of series in test files: `name{a="b"} 1+2x3 _ stale {{schema:0 count:1}}`: numbers, gaps, stale markers,
//! histograms and their expansions. Prometheus' tests and promtool's unit tests are written in it.

use std::{collections::BTreeMap, sync::Arc};

use storage::model::{Labels, batch::HistogramRow};

use super::{
    Point, STALE_NAN_BITS, ast,
    histogram::{CUSTOM_SCHEMA, Histogram, ResetHint},
    parse, parse_duration_ms,
};

pub type Points = Vec<Point>;

/// Points that one expansion may make.
const EXPANSION_MAX: usize = 1_000_000;

/// Seconds, or a Prometheus duration with a sign, in ms.
pub fn duration(text: &str) -> Result<i64, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Ok((seconds * 1000.0).round() as i64);
    }
    match text.strip_prefix('-') {
        Some(rest) => parse_duration_ms(rest).map(|v| -v),
        None => parse_duration_ms(text),
    }
    .ok_or_else(|| format!("bad duration {text:?}"))
}

/// `name{a="b"} points`: labels and the rest.
pub fn series(line: &str) -> Result<(Labels, &str), String> {
    let (head, rest) = split_series(line);
    let labels = if head == "{}" { Labels::default() } else { labels_of(head)? };
    Ok((labels, rest))
}

/// A line of a series: what names it, and the rest.
pub fn split_series(line: &str) -> (&str, &str) {
    let mut quoted = false;
    let mut depth = 0;
    let mut end = line.len();
    let mut escaped = false;
    for (i, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '{' if !quoted => depth += 1,
            '}' if !quoted => depth -= 1,
            ' ' | '\t' if !quoted && depth == 0 && !line[i..].trim_start().starts_with('{') => {
                end = i;
                break;
            }
            // `{...} {{histogram}}`
            ' ' | '\t' if !quoted && depth == 0 && line[i..].trim_start().starts_with("{{") => {
                end = i;
                break;
            }
            _ => {}
        }
    }
    (line[..end].trim(), line[end..].trim())
}

pub fn labels_of(text: &str) -> Result<Labels, String> {
    // The series syntax is that of a selector with equalities; empty values vanish.
    let (name, rest) = match text.find('{') {
        Some(i) => match text[i + 1..].strip_suffix('}') {
            Some(inner) => (&text[..i], inner),
            None => return Err(format!("series {text:?} does not end with a brace")),
        },
        None => (text, ""),
    };
    let selector = format!(
        "{{{rest}{}zzz_all=\"x\"}}",
        if rest.trim().is_empty() || rest.trim().ends_with(',') { "" } else { "," }
    );
    let expr = parse(&selector).map_err(|e| format!("{text}: {e}"))?;
    let ast::ExprKind::Selector(s) = expr.kind else { return Err(format!("bad series {text:?}")) };
    let mut labels = Labels::default();
    for m in s.matchers.iter().filter(|m| m.name() != "zzz_all") {
        labels.set(m.name(), m.value());
    }
    if !name.trim().is_empty() {
        labels.set("__name__", name.trim());
    }
    Ok(labels)
}

pub fn number(text: &str) -> Result<f64, String> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(r) => (-1.0, r),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest.eq_ignore_ascii_case("inf") {
        return Ok(sign * f64::INFINITY);
    }
    if rest.eq_ignore_ascii_case("nan") {
        return Ok(f64::NAN);
    }
    if let Some(hex) = rest.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).map(|v| sign * v as f64).map_err(|e| e.to_string());
    }
    if !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Err(format!("bad number {text:?}"));
    }
    rest.parse::<f64>().map(|v| sign * v).map_err(|_| format!("bad number {text:?}"))
}

pub fn parse_points(text: &str) -> Result<Points, String> {
    let mut out = Vec::new();
    for item in items(text) {
        if item.starts_with("{{") {
            histogram_item(&item, &mut out)?;
        } else if item == "stale" {
            out.push(Point::Float(f64::from_bits(STALE_NAN_BITS)));
        } else if let Some(rest) = item.strip_prefix('_') {
            let n = match rest.strip_prefix('x') {
                Some(n) => times(n).ok_or_else(|| format!("bad gap {item:?}"))?,
                None => 1,
            };
            out.extend(std::iter::repeat_n(Point::None, n));
        } else {
            float_item(&item, &mut out)?;
        }
    }
    Ok(out)
}

/// How often an expansion repeats, at most [`EXPANSION_MAX`].
fn times(text: &str) -> Option<usize> {
    text.parse().ok().filter(|n| *n <= EXPANSION_MAX)
}

/// Start times relative to each sample; `_` for none.
pub fn parse_starts(text: &str) -> Result<Vec<Option<i64>>, String> {
    let mut out = Vec::new();
    for item in items(text) {
        let (value, n) = match item.rsplit_once('x') {
            Some((v, n)) if times(n).is_some() => (v, times(n).unwrap_or(0)),
            _ => (item.as_str(), 0),
        };
        if value == "_" {
            out.extend(std::iter::repeat_n(None, n.max(1)));
            continue;
        }
        // `a+bxn`, `a-bxn` over durations, or one duration.
        let sign = value.strip_prefix('-').map_or(1, |_| -1);
        let body = value.trim_start_matches(['-', '+']);
        let (base, slope) = match body.find(['+', '-']) {
            Some(i) if n > 0 => {
                let slope = duration(&body[i + 1..])?;
                (&body[..i], if body.as_bytes()[i] == b'-' { -slope } else { slope })
            }
            _ => (body, 0),
        };
        let base = sign * duration(base)?;
        (0..=n as i64).for_each(|i| out.push(Some(base + slope * i)));
    }
    Ok(out)
}

/// Splits at white space outside of `{{}}`.
fn items(text: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut inside = false;
    let mut current = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("{{") {
            inside = true;
        }
        if rest.starts_with("}}") {
            inside = false;
            current.push_str("}}");
            rest = &rest[2..];
            continue;
        }
        if c.is_whitespace() && !inside {
            if !current.is_empty() {
                out.push(std::mem::take(&mut current));
            }
        } else {
            current.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    if !current.is_empty() {
        out.push(current);
    }
    out
}

fn float_item(item: &str, out: &mut Points) -> Result<(), String> {
    let Some((head, n)) = item.rsplit_once('x') else {
        out.push(Point::Float(number(item)?));
        return Ok(());
    };
    let n = times(n).ok_or_else(|| format!("bad expansion {item:?}"))?;
    // The sign of the step is the last one that is not an exponent's or the number's own.
    let split = head
        .char_indices()
        .skip(1)
        .filter(|(i, c)| matches!(c, '+' | '-') && !matches!(head.as_bytes()[i - 1], b'e' | b'E' | b'+' | b'-'))
        .map(|(i, _)| i)
        .last();
    let (base, step) = match split {
        Some(i) => {
            let step = number(head[i + 1..].trim_start_matches('+'))?;
            (number(&head[..i])?, if head.as_bytes()[i] == b'-' { -step } else { step })
        }
        None => (number(head)?, 0.0),
    };
    let mut v = base;
    for _ in 0..=n {
        out.push(Point::Float(v));
        v += step;
    }
    Ok(())
}

fn histogram_item(item: &str, out: &mut Points) -> Result<(), String> {
    let close = item.find("}}").ok_or_else(|| format!("bad histogram {item:?}"))? + 2;
    let base = parse_histogram(&item[..close])?;
    let rest = &item[close..];
    if rest.is_empty() {
        out.push(Point::Histogram(Arc::new(base)));
        return Ok(());
    }
    let (middle, n) = rest.rsplit_once('x').ok_or_else(|| format!("bad histogram expansion {item:?}"))?;
    let n = times(n).ok_or_else(|| format!("bad histogram expansion {item:?}"))?;
    let step = match middle.chars().next() {
        None => None,
        Some(sign) => Some((sign, parse_histogram(&middle[1..])?)),
    };
    let mut current = base;
    for _ in 0..=n {
        out.push(Point::Histogram(Arc::new(current.clone())));
        match &step {
            None => {}
            Some((sign, h)) => {
                let hint = current.hint;
                let joined = if *sign == '-' { current.sub(h) } else { current.add(h) };
                joined.map_err(|_| format!("incompatible histograms in {item:?}"))?;
                current.hint = hint;
            }
        }
    }
    Ok(())
}

fn parse_histogram(text: &str) -> Result<Histogram, String> {
    let inner = text.trim_start_matches("{{").trim_end_matches("}}").trim();
    let mut h = Histogram::default();
    let (mut offset, mut n_offset) = (0i32, 0i32);
    let (mut buckets, mut n_buckets) = (Vec::new(), Vec::new());
    let mut rest = inner;
    while !rest.trim().is_empty() {
        let (key, tail) = rest.trim().split_once(':').ok_or_else(|| format!("bad histogram field in {text:?}"))?;
        let tail = tail.trim_start();
        let (value, next) = match tail.strip_prefix('[') {
            Some(list) => list.split_once(']').ok_or_else(|| format!("bad list in {text:?}"))?,
            None => tail.split_once(char::is_whitespace).unwrap_or((tail, "")),
        };
        let list = || value.split_whitespace().map(number).collect::<Result<Vec<f64>, String>>();
        match key.trim() {
            "schema" => h.schema = number(value)? as i32,
            "sum" => h.sum = number(value)?,
            "count" => h.count = number(value)?,
            "z_bucket" => h.zero_count = number(value)?,
            "z_bucket_w" => h.zero_threshold = number(value)?,
            "buckets" => buckets = list()?,
            "n_buckets" => n_buckets = list()?,
            "offset" => offset = number(value)? as i32,
            "n_offset" => n_offset = number(value)? as i32,
            "custom_values" => h.custom = list()?,
            "counter_reset_hint" => {
                h.hint = match value {
                    "gauge" => ResetHint::Gauge,
                    "reset" => ResetHint::Reset,
                    "not_reset" => ResetHint::NotReset,
                    _ => ResetHint::Unknown,
                }
            }
            other => return Err(format!("unknown histogram field {other:?}")),
        }
        rest = next;
    }
    let side = |offset: i32, counts: Vec<f64>| {
        counts.into_iter().enumerate().map(|(i, c)| (offset + i as i32, c)).filter(|b| b.1 != 0.0).collect()
    };
    h.positive = side(offset, buckets);
    h.negative = side(n_offset, n_buckets);
    Ok(h)
}

/// The stored form.
pub fn row(h: &Histogram) -> HistogramRow {
    let dense = |side: &[(i32, f64)]| -> (i32, Vec<f64>) {
        let Some(first) = side.first().map(|b| b.0) else { return (0, Vec::new()) };
        let mut counts = vec![0.0; (side[side.len() - 1].0 - first + 1) as usize];
        side.iter().for_each(|(i, c)| counts[(i - first) as usize] = *c);
        (first, counts)
    };
    let ((positive_offset, positive_counts), (negative_offset, negative_counts)) =
        (dense(&h.positive), dense(&h.negative));
    HistogramRow {
        schema: h.schema,
        zero_threshold: h.zero_threshold,
        zero_count: h.zero_count,
        count: h.count,
        sum: h.sum,
        min: None,
        max: None,
        positive_offset,
        positive_counts,
        negative_offset,
        negative_counts,
        custom_bounds: (h.schema == CUSTOM_SCHEMA).then(|| h.custom.clone()),
        reset_hint: match h.hint {
            ResetHint::Unknown => 0,
            ResetHint::Reset => 1,
            ResetHint::NotReset => 2,
            ResetHint::Gauge => 3,
        },
        is_float: true,
    }
}

/// For every classic histogram the native one with custom buckets that says the same.
pub fn custom_bucket_histograms(loaded: &[(Labels, Vec<(i64, Point)>)]) -> Vec<(Labels, Vec<(i64, Point)>)> {
    #[derive(Default)]
    struct At {
        buckets: Vec<(f64, f64)>,
        sum: Option<f64>,
        count: Option<f64>,
    }
    let mut found: BTreeMap<String, (Labels, BTreeMap<i64, At>)> = BTreeMap::new();
    for (labels, points) in loaded {
        let name = labels.get("__name__").unwrap_or("");
        let (base, part) = match () {
            () if name.ends_with("_bucket") && labels.get("le").is_some() => {
                (name.strip_suffix("_bucket").unwrap_or(name), 'b')
            }
            () if name.ends_with("_sum") => (name.trim_end_matches("_sum"), 's'),
            () if name.ends_with("_count") => (name.trim_end_matches("_count"), 'c'),
            () => continue,
        };
        let bound = labels.get("le").and_then(|l| number(l).ok());
        if part == 'b' && bound.is_none() {
            continue;
        }
        let mut own = labels.clone();
        own.set("__name__", base);
        own.remove("le");
        let entry = found.entry(own.to_json()).or_insert((own, BTreeMap::new()));
        for (t, p) in points {
            let Some(v) = p.float() else { continue };
            let at = entry.1.entry(*t).or_default();
            match part {
                'b' => at.buckets.push((bound.unwrap_or(f64::INFINITY), v)),
                's' => at.sum = Some(v),
                _ => at.count = Some(v),
            }
        }
    }
    let mut out = Vec::new();
    for (_, (labels, times)) in found {
        let points: Vec<(i64, Point)> = times
            .into_iter()
            .filter(|(_, at)| !at.buckets.is_empty())
            .map(|(t, mut at)| {
                at.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                at.buckets.dedup_by_key(|b| b.0);
                let mut h = Histogram { schema: CUSTOM_SCHEMA, ..Histogram::default() };
                let mut before = 0.0;
                for (bound, count) in &at.buckets {
                    if count - before != 0.0 {
                        h.positive.push((h.custom.len() as i32, count - before));
                    }
                    before = *count;
                    if bound.is_finite() {
                        h.custom.push(*bound);
                    }
                }
                let total = at.count.unwrap_or(before);
                if at.buckets.last().is_none_or(|b| b.0.is_finite()) && total > before {
                    h.positive.push((h.custom.len() as i32, total - before));
                }
                h.count = total.max(before);
                h.sum = at.sum.unwrap_or(0.0);
                (t, Point::Histogram(Arc::new(h)))
            })
            .collect();
        if !points.is_empty() {
            out.push((labels, points));
        }
    }
    out
}

/// Equal to 1e-6, relatively; NaN equals NaN.
pub fn close(wanted: f64, got: f64) -> bool {
    if wanted.is_nan() || got.is_nan() {
        return wanted.is_nan() && got.is_nan();
    }
    if wanted == got {
        return true;
    }
    let distance = (wanted - got).abs();
    let scale = wanted.abs() + got.abs();
    if wanted == 0.0 || got == 0.0 || scale < f64::MIN_POSITIVE {
        return distance < 1e-6 * f64::MIN_POSITIVE;
    }
    distance / scale.min(f64::MAX) < 1e-6
}

pub fn same(wanted: &Point, got: &Point) -> bool {
    match (wanted, got) {
        (Point::None, Point::None) => true,
        (Point::Float(a), Point::Float(b)) => close(*a, *b),
        (Point::Histogram(a), Point::Histogram(b)) => {
            let side = |x: &[(i32, f64)], y: &[(i32, f64)]| {
                let kept = |s: &[(i32, f64)]| s.iter().copied().filter(|b| b.1 != 0.0).collect::<Vec<_>>();
                let (x, y) = (kept(x), kept(y));
                x.len() == y.len() && x.iter().zip(&y).all(|(a, b)| a.0 == b.0 && close(a.1, b.1))
            };
            a.schema == b.schema
                && close(a.count, b.count)
                && close(a.sum, b.sum)
                && close(a.zero_count, b.zero_count)
                && (a.schema == CUSTOM_SCHEMA || close(a.zero_threshold, b.zero_threshold))
                && a.custom.len() == b.custom.len()
                && a.custom.iter().zip(&b.custom).all(|(a, b)| close(*a, *b))
                && side(&a.positive, &b.positive)
                && side(&a.negative, &b.negative)
                && (a.hint == ResetHint::Unknown || a.hint == b.hint)
        }
        _ => false,
    }
}
