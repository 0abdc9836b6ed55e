//! Text to nanoseconds since the epoch.

use chrono::{
    DateTime, NaiveDate, NaiveDateTime,
    format::{Item, StrftimeItems},
};

/// How a time is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimeFormat {
    /// RFC 3339, or an epoch number whose size tells the unit.
    Auto,
    Rfc3339,
    /// Nanoseconds of one unit.
    Epoch(i64),
    /// UTC unless the pattern has an offset (`%z`).
    Strftime(String),
}

const SECOND: i64 = 1_000_000_000;

impl TimeFormat {
    /// Reads the name or pattern of the configuration.
    pub fn parse(text: &str) -> Result<TimeFormat, String> {
        Ok(match text {
            "auto" => TimeFormat::Auto,
            "rfc3339" => TimeFormat::Rfc3339,
            "unix_s" => TimeFormat::Epoch(SECOND),
            "unix_ms" => TimeFormat::Epoch(1_000_000),
            "unix_us" => TimeFormat::Epoch(1_000),
            "unix_ns" => TimeFormat::Epoch(1),
            pattern if pattern.contains('%') => {
                if StrftimeItems::new(pattern).any(|i| matches!(i, Item::Error)) {
                    return Err(format!("`{pattern}` is not a valid strftime pattern"));
                }
                TimeFormat::Strftime(pattern.to_owned())
            }
            other => {
                return Err(format!(
                    "`{other}` is no time format; use auto, rfc3339, unix_s, unix_ms, unix_us, unix_ns or a strftime pattern"
                ));
            }
        })
    }
}

/// Nanoseconds since the epoch. `None` when the text is not of the format or out of range (years 1678 to 2261).
pub fn parse_time(text: &str, format: &TimeFormat) -> Option<i64> {
    let text = text.trim();
    match format {
        TimeFormat::Auto => match epoch_auto(text) {
            None => rfc3339(text),
            found => found,
        },
        TimeFormat::Rfc3339 => rfc3339(text),
        TimeFormat::Epoch(unit) => epoch(text, *unit),
        TimeFormat::Strftime(pattern) => {
            if let Ok(t) = DateTime::parse_from_str(text, pattern) {
                return t.timestamp_nanos_opt();
            }
            if let Ok(t) = NaiveDateTime::parse_from_str(text, pattern) {
                return t.and_utc().timestamp_nanos_opt();
            }
            let day = NaiveDate::parse_from_str(text, pattern).ok()?;
            day.and_hms_opt(0, 0, 0)?.and_utc().timestamp_nanos_opt()
        }
    }
}

/// A blank in place of `T` is accepted, as RFC 3339 allows.
fn rfc3339(text: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(text).ok()?.timestamp_nanos_opt()
}

/// Seconds below 1e11 (until the year 5138), then milliseconds, microseconds, nanoseconds by thousands.
fn epoch_auto(text: &str) -> Option<i64> {
    let whole: i64 = text.split('.').next()?.parse().ok()?;
    let unit = match whole.unsigned_abs() {
        0..100_000_000_000 => SECOND,
        100_000_000_000..100_000_000_000_000 => 1_000_000,
        100_000_000_000_000..100_000_000_000_000_000 => 1_000,
        _ => 1,
    };
    epoch(text, unit)
}

/// `1700000000.25` in units of `unit` ns, exact to the nanosecond.
fn epoch(text: &str, unit: i64) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let whole: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut nanos = 0_i64;
    let mut place = unit;
    for b in fraction.bytes() {
        place /= 10;
        nanos += i64::from(b - b'0') * place;
    }
    whole.checked_mul(unit)?.checked_add(if negative { -nanos } else { nanos })
}
