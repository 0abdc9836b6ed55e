//! Numbers and durations.

use crate::promql::print::quoted;

/// Units of durations, from long to short, and their milliseconds.
const UNITS: [(&str, i64); 7] = [
    ("y", 365 * 86_400_000),
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// `1h30m`, `500ms`: each unit once, from long to short, whole numbers. `None` if the text is nothing of the kind.
pub fn parse_duration_ms(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0i64;
    let mut next_unit = 0;
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: i64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = UNITS.iter().position(|(name, _)| *name == &rest[..letters])?;
        if unit < next_unit {
            return None;
        }
        next_unit = unit + 1;
        total = total.checked_add(count.checked_mul(UNITS[unit].1)?)?;
        rest = &rest[letters..];
    }
    Some(total)
}

/// Whether what was read as a number is a duration.
pub(super) fn is_duration(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && !text.starts_with("0x")
        && !text.starts_with("0X")
        && text.contains(['s', 'm', 'h', 'd', 'w', 'y'])
}

/// A number or, as seconds, a duration, of what was read as one. Errors in the words of Prometheus.
pub(super) fn literal(text: &str) -> Result<f64, String> {
    if let Some(number) = parse_word_number(text) {
        return Ok(number);
    }
    let parsed = parse_number(text);
    if is_duration(text) {
        // Of nanoseconds, as Prometheus counts them, there are only so many.
        return parsed.filter(|s| *s <= DURATION_SECONDS_MAX).ok_or_else(|| duration_fault(text));
    }
    match parsed {
        Some(number) if number.is_finite() => Ok(number),
        fault => {
            let why = if fault.is_some() { "value out of range" } else { "invalid syntax" };
            Err(format!("error parsing number: strconv.ParseFloat: parsing {}: {why}", quoted(text)))
        }
    }
}

/// Seconds of the longest duration.
pub(super) const DURATION_SECONDS_MAX: f64 = 9_223_372_036.854_776;

fn duration_fault(text: &str) -> String {
    let mut rest = text;
    let mut last = 0;
    while !rest.is_empty() {
        let letters = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let count = &rest[..rest.len() - letters.len()];
        let unit = &letters[..letters.find(|c: char| c.is_ascii_digit()).unwrap_or(letters.len())];
        rest = &letters[unit.len()..];
        if count.parse::<u64>().is_err() || unit.is_empty() {
            return format!("not a valid duration string: {}", quoted(text));
        }
        let Some(at) = UNITS.iter().position(|(name, _)| *name == unit) else {
            return format!("unknown unit {} in duration {}", quoted(unit), quoted(text));
        };
        if at < last {
            return format!("not a valid duration string: {}", quoted(text));
        }
        last = at + 1;
    }
    "duration out of range".into()
}

/// A number or, as seconds, a duration.
fn parse_number(text: &str) -> Option<f64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return i64::from_str_radix(&hex.replace('_', ""), 16).ok().map(|v| v as f64);
    }
    let underscores_ok = !text.starts_with('_') && !text.ends_with('_') && !text.contains("__");
    if text.bytes().all(|b| b.is_ascii_digit() || b"._eE+-".contains(&b)) && underscores_ok {
        // Go reads a leading zero as octal where the text is an octal number.
        if text.len() > 1 && text.starts_with('0') && text.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
            return i64::from_str_radix(text, 8).ok().map(|v| v as f64);
        }
        return text.replace('_', "").parse().ok();
    }
    parse_duration_ms(text).map(|ms| ms as f64 / 1000.0)
}

/// `Inf` and `NaN`, in any case of letters.
pub(super) fn parse_word_number(text: &str) -> Option<f64> {
    if text.eq_ignore_ascii_case("inf") {
        Some(f64::INFINITY)
    } else if text.eq_ignore_ascii_case("nan") {
        Some(f64::NAN)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_each_unit_once_and_descending() {
        assert_eq!(parse_duration_ms("1h30m"), Some(5_400_000));
        assert_eq!(parse_duration_ms("1m500ms"), Some(60_500));
        for bad in ["", "1", "1.5h", "30m1h", "1h1h", "h", "1x"] {
            assert_eq!(parse_duration_ms(bad), None, "{bad}");
        }
        assert_eq!(parse_number("1_000"), Some(1000.0));
        assert_eq!(parse_number("0x1F"), Some(31.0));
        assert_eq!(parse_number("1m"), Some(60.0));
        assert_eq!(literal("Inf"), Ok(f64::INFINITY));
    }
}
