//! Numbers, times and durations as Go writes them.

use std::fmt::Write as _;

use chrono::{DateTime, Datelike, Timelike, Utc};

use super::Value;

/// As Go's `%v` writes a float: shortest, with an exponent below 1e-4 and from 1e6 on.
pub fn go_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let size = value.abs();
    if size == 0.0 || (1e-4..1e6).contains(&size) { format!("{value}") } else { go_exponent(value) }
}

/// As Go's `%e` with the shortest digits: `1.5e+00`.
pub fn go_exponent(value: f64) -> String {
    if !value.is_finite() {
        return go_float(value);
    }
    let text = format!("{value:e}");
    let (mantissa, exponent) = text.split_once('e').expect("`e` is in it");
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{mantissa}e{sign}{exponent:0>2}")
}

/// `%.Ng`: `digits` significant ones, trailing zeros dropped.
pub fn significant(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return go_float(value);
    }
    let digits = digits.max(1);
    let scientific = format!("{:.*e}", digits - 1, value);
    let (mantissa, exponent) = scientific.split_once('e').expect("`e` is in it");
    let exponent: i32 = exponent.parse().expect("a whole number");
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if exponent < -4 || exponent >= digits as i32 {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trimmed(mantissa), exponent.abs());
    }
    let decimals = usize::try_from(digits as i32 - 1 - exponent).unwrap_or(0);
    trimmed(&format!("{value:.decimals$}"))
}

/// `%.Ne`
fn scientific(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return go_float(value);
    }
    let text = format!("{value:.decimals$e}");
    let (mantissa, exponent) = text.split_once('e').expect("`e` is in it");
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{mantissa}e{sign}{exponent:0>2}")
}

fn utc(nanos: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_nanos(nanos)
}

/// As `fmt.Sprint` writes a UTC time.
pub fn go_time(nanos: i64) -> String {
    let t = utc(nanos);
    let mut out = t.format("%Y-%m-%d %H:%M:%S").to_string();
    if t.nanosecond() > 0 {
        let fraction = format!("{:09}", t.nanosecond());
        out.push('.');
        out.push_str(fraction.trim_end_matches('0'));
    }
    out.push_str(" +0000 UTC");
    out
}

/// As Go writes a duration: `1h2m3.5s`, `1.5ms`, `0s`.
pub fn go_duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".into();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let fraction = |value: u64, unit: u64| {
        let rest = value % unit;
        let width = unit.ilog10() as usize;
        match rest {
            0 => (value / unit).to_string(),
            _ => format!("{}.{}", value / unit, format!("{rest:0width$}").trim_end_matches('0')),
        }
    };
    match n {
        0..1_000 => format!("{sign}{n}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", fraction(n, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", fraction(n, 1_000_000)),
        _ => {
            let (hours, minutes) = (n / 3_600_000_000_000, n / 60_000_000_000 % 60);
            let mut out = sign.to_owned();
            if hours > 0 {
                let _ = write!(out, "{hours}h");
            }
            if hours > 0 || minutes > 0 {
                let _ = write!(out, "{minutes}m");
            }
            let _ = write!(out, "{}s", fraction(n % 60_000_000_000, 1_000_000_000));
            out
        }
    }
}

/// A time by Go's reference layout (`2006-01-02 15:04:05`), in UTC.
pub fn time_by_layout(nanos: i64, layout: &str) -> String {
    // Longer names first.
    const PARTS: [(&str, &str); 22] = [
        ("January", "%B"),
        ("Jan", "%b"),
        ("Monday", "%A"),
        ("Mon", "%a"),
        ("2006", "%Y"),
        ("Z07:00", "Z"),
        ("-07:00", "+00:00"),
        ("-0700", "+0000"),
        ("MST", "UTC"),
        (".000000000", "%.9f"),
        (".000000", "%.6f"),
        (".000", "%.3f"),
        ("01", "%m"),
        ("02", "%d"),
        ("03", "%I"),
        ("04", "%M"),
        ("05", "%S"),
        ("06", "%y"),
        ("15", "%H"),
        ("PM", "%p"),
        ("_2", "%e"),
        ("pm", "%P"),
    ];
    let t = utc(nanos);
    let mut out = String::new();
    let mut rest = layout;
    while let Some(c) = rest.chars().next() {
        if let Some((part, by)) = PARTS.iter().find(|(part, _)| rest.starts_with(part)) {
            let _ = write!(out, "{}", t.format(by));
            rest = &rest[part.len()..];
            continue;
        }
        match c {
            '1' => out.push_str(&t.month().to_string()),
            '2' => out.push_str(&t.day().to_string()),
            '3' => out.push_str(&t.hour12().1.to_string()),
            '4' => out.push_str(&t.minute().to_string()),
            '5' => out.push_str(&t.second().to_string()),
            c => out.push(c),
        }
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// Widest field and finest precision of a format.
const WIDTH_MAX: usize = 1_000;

#[derive(Default)]
struct Spec {
    minus: bool,
    plus: bool,
    zero: bool,
    space: bool,
    width: usize,
    precision: Option<usize>,
}

/// `printf`: verbs v s q d x X o b c e f g t U and %%, with flags, width and precision.
pub fn sprintf(layout: &str, arguments: &[Value]) -> String {
    let mut out = String::new();
    let mut next = arguments.iter();
    let mut chars = layout.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| "+-# 0".contains(*c)) {
            match flag {
                '-' => spec.minus = true,
                '+' => spec.plus = true,
                '0' => spec.zero = true,
                ' ' => spec.space = true,
                _ => {}
            }
        }
        let mut number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            if chars.next_if_eq(&'*').is_some() {
                return match next.next() {
                    Some(Value::Int(n)) => usize::try_from(*n).unwrap_or(0).min(WIDTH_MAX),
                    _ => 0,
                };
            }
            let mut n = 0usize;
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                n = (n * 10 + d.to_digit(10).unwrap_or(0) as usize).min(WIDTH_MAX);
            }
            n
        };
        spec.width = number(&mut chars);
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut chars));
        }
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        match next.next() {
            Some(value) => out.push_str(&verb_text(&spec, verb, value)),
            None => {
                let _ = write!(out, "%!{verb}(MISSING)");
            }
        }
    }
    let extra: Vec<String> = next.map(|v| format!("{}={}", v.kind(), v.to_text())).collect();
    if !extra.is_empty() {
        let _ = write!(out, "%!(EXTRA {})", extra.join(", "));
    }
    out
}

fn verb_text(spec: &Spec, verb: char, value: &Value) -> String {
    let signed = |text: String| match (text.starts_with('-'), spec.plus, spec.space) {
        (false, true, _) if !text.starts_with('+') => format!("+{text}"),
        (false, false, true) => format!(" {text}"),
        _ => text,
    };
    let cut = |text: String| match spec.precision {
        Some(n) => text.chars().take(n).collect(),
        None => text,
    };
    let (text, numeric) = match (verb, value) {
        ('v', Value::Float(f)) => (signed(float(spec, 'g', *f)), true),
        ('v' | 'd', Value::Int(i)) => (signed(i.to_string()), true),
        ('d', Value::Duration(i)) => (signed(i.to_string()), true),
        ('v', other) => (other.to_text(), false),
        ('s', Value::Int(_) | Value::Float(_) | Value::Bool(_) | Value::Nil) => {
            (format!("%!s({}={})", value.kind(), value.to_text()), false)
        }
        ('s', other) => (cut(other.to_text()), false),
        ('q', Value::Text(t)) => (format!("{:?}", cut(t.to_string())), false),
        ('x', Value::Int(i)) => (signed(signed_radix(*i, |n| format!("{n:x}"))), true),
        ('X', Value::Int(i)) => (signed(signed_radix(*i, |n| format!("{n:X}"))), true),
        ('o', Value::Int(i)) => (signed(signed_radix(*i, |n| format!("{n:o}"))), true),
        ('b', Value::Int(i)) => (signed(signed_radix(*i, |n| format!("{n:b}"))), true),
        ('x', Value::Text(t)) => (hex::encode(t.as_bytes()), false),
        ('c', Value::Int(i)) => {
            (u32::try_from(*i).ok().and_then(char::from_u32).unwrap_or('\u{FFFD}').to_string(), false)
        }
        ('U', Value::Int(i)) => (format!("U+{i:04X}"), false),
        ('t', Value::Bool(b)) => (b.to_string(), false),
        ('e' | 'f' | 'F' | 'g' | 'G' | 'E', Value::Float(f)) => (signed(float(spec, verb, *f)), true),
        (_, other) => (format!("%!{verb}({}={})", other.kind(), other.to_text()), false),
    };
    let missing = spec.width.saturating_sub(text.chars().count());
    if missing == 0 {
        return text;
    }
    if spec.minus {
        return text + &" ".repeat(missing);
    }
    if spec.zero && numeric {
        let at = usize::from(text.starts_with(['-', '+', ' ']));
        return format!("{}{}{}", &text[..at], "0".repeat(missing), &text[at..]);
    }
    " ".repeat(missing) + &text
}

fn signed_radix(value: i64, write: impl Fn(u64) -> String) -> String {
    let text = write(value.unsigned_abs());
    if value < 0 { format!("-{text}") } else { text }
}

fn float(spec: &Spec, verb: char, value: f64) -> String {
    if !value.is_finite() {
        return go_float(value);
    }
    match (verb, spec.precision) {
        ('f' | 'F', p) => format!("{value:.*}", p.unwrap_or(6)),
        ('e', p) => scientific(value, p.unwrap_or(6)),
        ('E', p) => scientific(value, p.unwrap_or(6)).to_uppercase(),
        (_, Some(p)) => significant(value, p),
        (_, None) => go_float(value),
    }
}
