//! Times of syslog messages. RFC 3164 has neither year nor zone, and routers write more around it.

use storage::model::time::NANOS_PER_SECOND;

use crate::codec::ndjson::time::{civil_seconds, parse};

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// What local time is ahead of UTC: `+02:00`, `-05:30`, `Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UtcOffset {
    seconds: i32,
}

impl TryFrom<String> for UtcOffset {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed = match text.as_bytes() {
            [b'Z'] => Some(0),
            [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
                let two = |a: &u8, b: &u8| {
                    (a.is_ascii_digit() && b.is_ascii_digit()).then(|| i32::from(a - b'0') * 10 + i32::from(b - b'0'))
                };
                let (hours, minutes) = (two(h1, h2).filter(|h| *h < 24), two(m1, m2).filter(|m| *m < 60));
                let sign = if *sign == b'-' { -1 } else { 1 };
                hours.zip(minutes).map(|(h, m)| sign * (h * 3600 + m * 60))
            }
            _ => None,
        };
        let seconds = parsed.ok_or_else(|| format!("invalid offset `{text}`; use for example `+02:00` or `Z`"))?;
        Ok(UtcOffset { seconds })
    }
}

/// An RFC 3339 time and nothing else.
pub(super) fn rfc3339(text: &str) -> Option<i64> {
    (text.as_bytes().get(10) == Some(&b'T') && text.len() <= 40).then(|| parse(text)).flatten()
}

/// The time at the start of a message behind its priority, and what follows the time and the space or colon after it.
pub(super) fn leading(text: &str, now: i64, offset: UtcOffset) -> Option<(i64, &str)> {
    if let Some(found) = dated(text, now, offset) {
        return Some(found);
    }
    // A sequence number in front, and a mark for a clock that is not set: `000123: *Mar  1 ...`.
    let (number, rest) = text.split_once(": ")?;
    let digits = number.len() <= 20 && number.bytes().all(|b| b.is_ascii_digit()) && !number.is_empty();
    if digits { dated(rest, now, offset) } else { None }
}

fn dated(text: &str, now: i64, offset: UtcOffset) -> Option<(i64, &str)> {
    let text = text.strip_prefix(['*', '.']).unwrap_or(text);
    let (first, rest) = text.split_once(' ')?;
    if let Some(ts) = rfc3339(first) {
        return Some((ts, rest));
    }
    let month = MONTHS.iter().position(|m| *m == first)? as i64 + 1;
    let (day, rest) = number(rest.trim_start_matches(' '), 2)?;
    let rest = rest.strip_prefix(' ')?;
    let (year, rest) = match number(rest, 4) {
        Some((year, after)) if after.starts_with(' ') => (Some(year), &after[1..]),
        _ => (None, rest),
    };
    let (hour, rest) = number(rest, 2)?;
    let (minute, rest) = number(rest.strip_prefix(':')?, 2)?;
    let (second, rest) = number(rest.strip_prefix(':')?, 2)?;
    let (nanos, rest) = match rest.strip_prefix('.') {
        None => (0, rest),
        Some(fraction) => {
            let (digits, after) = fraction.split_at(fraction.find(|c: char| !c.is_ascii_digit())?);
            let nine: String = digits.chars().chain("000000000".chars()).take(9).collect();
            (nine.parse::<i64>().ok()?, after)
        }
    };
    let rest = zone_skipped(rest.strip_prefix(':').unwrap_or(rest).strip_prefix(' ')?);
    let at = |year: i64| {
        let seconds = civil_seconds(year, month, day, hour, minute, second)? - i64::from(offset.seconds);
        seconds.checked_mul(NANOS_PER_SECOND)?.checked_add(nanos)
    };
    let ts = match year {
        Some(year) => at(year)?,
        None => {
            // The year that brings it nearest to now; a 29th of February may be years away.
            let this = 1970 + now / (NANOS_PER_SECOND * 31_556_952);
            (this - 4..=this + 4).filter_map(at).min_by_key(|ts| ts.abs_diff(now))?
        }
    };
    Some((ts, rest))
}

/// Without the name of a zone that routers put behind a time, such as `UTC: `.
fn zone_skipped(text: &str) -> &str {
    match text.split_once(": ") {
        Some((zone, rest))
            if (3..=4).contains(&zone.len())
                && zone.bytes().all(|b| b.is_ascii_uppercase())
                && (zone == "UTC" || zone.ends_with('T')) =>
        {
            rest
        }
        _ => text,
    }
}

/// A number of at most `digits` digits, and what follows it.
fn number(text: &str, digits: usize) -> Option<(i64, &str)> {
    let end = text.bytes().take(digits).take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(end);
    Some((number.parse().ok()?, rest))
}
