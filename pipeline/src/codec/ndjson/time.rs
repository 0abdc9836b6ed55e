//! Event times as people write them: integers of any usual unit, float seconds, RFC 3339.

use storage::model::time::NANOS_PER_SECOND;

/// Largest magnitudes still read as seconds, milliseconds and microseconds: each up to the year 5138, and the next
/// unit's present is a thousand times larger.
const SECONDS_BELOW: u64 = 100_000_000_000;
const MILLIS_BELOW: u64 = SECONDS_BELOW * 1_000;
const MICROS_BELOW: u64 = MILLIS_BELOW * 1_000;

/// Nanoseconds of one unit of a number this large.
const fn unit_of(magnitude: u64) -> i64 {
    if magnitude < SECONDS_BELOW {
        NANOS_PER_SECOND
    } else if magnitude < MILLIS_BELOW {
        1_000_000
    } else if magnitude < MICROS_BELOW {
        1_000
    } else {
        1
    }
}

/// Nanoseconds since the epoch of a number (`1767225600`, `1767225600123`, `1767225600.5`, `1.7e9`), its unit told by
/// its magnitude, or of an RFC 3339 time. `None`: neither, or outside of 1677-2262.
pub fn parse(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    if bytes.len() > 10 && bytes[4] == b'-' && bytes[7] == b'-' {
        return parse_rfc3339(bytes);
    }
    parse_number(bytes)
}

/// As [`parse`]; a time without a zone, or a date alone, is of UTC (Elasticsearch's `strict_date_optional_time`).
pub fn parse_zoneless(text: &str) -> Option<i64> {
    parse(text).or_else(|| {
        let date = text.as_bytes().get(4) == Some(&b'-') && text.len() <= 40;
        match (date, text.len()) {
            (false, _) => None,
            (true, 10) => parse(&format!("{text}T00:00:00Z")),
            (true, _) => parse(&format!("{text}Z")),
        }
    })
}

fn parse_number(bytes: &[u8]) -> Option<i64> {
    let (negative, digits) = match bytes {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, bytes),
    };
    let whole_len = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    let whole = digits[..whole_len]
        .iter()
        .try_fold(0u64, |n, b| n.checked_mul(10)?.checked_add(u64::from(b - b'0')))
        .filter(|_| whole_len > 0)?;
    let unit = unit_of(whole);
    let nanos = match &digits[whole_len..] {
        [] => i64::try_from(whole).ok()?.checked_mul(unit)?,
        [b'.', frac @ ..] if !frac.is_empty() && frac.iter().all(u8::is_ascii_digit) => {
            let mut part = 0i64;
            let mut scale = unit / 10;
            for b in frac.iter().take(9) {
                part += i64::from(b - b'0') * scale;
                scale /= 10;
            }
            i64::try_from(whole).ok()?.checked_mul(unit)?.checked_add(part)?
        }
        _ => return parse_float(std::str::from_utf8(bytes).ok()?),
    };
    Some(if negative { -nanos } else { nanos })
}

/// A number with an exponent. As exact as its double.
fn parse_float(text: &str) -> Option<i64> {
    if !text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    let nanos = value * unit_of(value.abs() as u64) as f64;
    (nanos.abs() < 9.2e18).then_some(nanos as i64)
}

fn number(bytes: &[u8], from: usize, len: usize) -> Option<i64> {
    bytes
        .get(from..from + len)?
        .iter()
        .try_fold(0i64, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
}

/// `2026-01-01T00:00:00[.fraction](Z|+hh:mm)`; `t`, `z` and a space for the `T` are taken too (RFC 3339, 5.6).
fn parse_rfc3339(b: &[u8]) -> Option<i64> {
    let (year, month, day) = (number(b, 0, 4)?, number(b, 5, 2)?, number(b, 8, 2)?);
    let (hour, minute, second) = (number(b, 11, 2)?, number(b, 14, 2)?, number(b, 17, 2)?);
    if !(matches!(b[10], b'T' | b't' | b' ') && b[13] == b':' && b[16] == b':') {
        return None;
    }
    let local = civil_seconds(year, month, day, hour, minute, second)?;
    let mut at = 19;
    let mut nanos = 0i64;
    if b.get(at) == Some(&b'.') {
        let digits = b[at + 1..].iter().take_while(|c| c.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        for i in 0..9 {
            nanos = nanos * 10 + if i < digits { i64::from(b[at + 1 + i] - b'0') } else { 0 };
        }
        at += 1 + digits;
    }
    let offset = match &b[at..] {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), zone @ ..] => {
            let (h, m) = match zone.len() {
                5 if zone[2] == b':' => (number(zone, 0, 2)?, number(zone, 3, 2)?),
                4 => (number(zone, 0, 2)?, number(zone, 2, 2)?),
                _ => return None,
            };
            if h > 23 || m > 59 {
                return None;
            }
            (h * 3600 + m * 60) * if *sign == b'-' { -1 } else { 1 }
        }
        _ => return None,
    };
    (local - offset).checked_mul(NANOS_PER_SECOND)?.checked_add(nanos)
}

/// Seconds since the epoch of a UTC date and time; `None`: there is no such one. No part is negative.
pub(crate) fn civil_seconds(year: i64, month: i64, day: i64, hour: i64, minute: i64, second: i64) -> Option<i64> {
    // A leap second counts as the next second, as POSIX time has it.
    if !(hour < 24 && minute < 60 && second <= 60 && (1..=days_in(year, month)?).contains(&day)) {
        return None;
    }
    Some(days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

fn days_in(year: i64, month: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    Some(match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        _ => return None,
    })
}

/// Days since 1970-01-01 of a proleptic Gregorian date.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_told_by_magnitude_and_dates_are_read() {
        for (text, want) in [
            ("1767225600", Some(1_767_225_600_000_000_000)),
            ("1767225600123", Some(1_767_225_600_123_000_000)),
            ("1767225600123456", Some(1_767_225_600_123_456_000)),
            ("1767225600000123456", Some(1_767_225_600_000_123_456)),
            ("1767225600.123456789", Some(1_767_225_600_123_456_789)),
            ("1767225600123.5", Some(1_767_225_600_123_500_000)),
            ("-1.5", Some(-1_500_000_000)),
            ("0", Some(0)),
            ("1.7e9", Some(1_700_000_000_000_000_000)),
            ("2026-01-01T00:00:00Z", Some(1_767_225_600_000_000_000)),
            ("2026-01-01T00:00:00.000123456Z", Some(1_767_225_600_000_123_456)),
            ("2026-01-01T02:00:00.5+02:00", Some(1_767_225_600_500_000_000)),
            ("2026-01-01 00:00:00-0100", Some(1_767_229_200_000_000_000)),
            ("1969-12-31T23:59:59Z", Some(-1_000_000_000)),
            ("2024-02-29T00:00:00Z", Some(1_709_164_800_000_000_000)),
            ("2023-02-29T00:00:00Z", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-01-01T00:00:00", None),
            ("2026-01-01", None),
            ("", None),
            ("-", None),
            ("abc", None),
            ("99999999999999999999", None),
            ("9999-12-31T00:00:00Z", None),
            ("1e400", None),
            ("NaN", None),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }

    #[test]
    fn times_without_a_zone_are_of_utc_where_asked_for() {
        for (text, want) in [
            ("2026-01-01T00:00:00.5", Some(1_767_225_600_500_000_000)),
            ("2026-01-01", Some(1_767_225_600_000_000_000)),
            ("2026-01-01T01:00:00+01:00", Some(1_767_225_600_000_000_000)),
            ("2026-01-01T", None),
            ("2026-13-01", None),
            ("1234-", None),
            ("soon", None),
        ] {
            assert_eq!(parse_zoneless(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(s in ".{0,40}", t in "[0-9T:+Z.eE -]{0,40}") {
            let _ = (parse(&s), parse(&t), parse_zoneless(&s), parse_zoneless(&t));
        }

        #[test]
        fn dates_agree_with_chrono(seconds in -9_000_000_000i64..9_000_000_000, nanos in 0u32..1_000_000_000) {
            let at = chrono::DateTime::from_timestamp(seconds, nanos).unwrap();
            let want = at.timestamp_nanos_opt().unwrap();
            prop_assert_eq!(parse(&at.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true)), Some(want));
        }
    }
}
