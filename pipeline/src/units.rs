//! Lengths of time as people write them in the configuration.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error as _};

/// Reads `200ms`, `30s`, `5m`, `12h`, `30d`, `2w`, also put together: `1h30m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("invalid duration {text:?}, expected for example 200ms, 30s, 5m, 12h or 30d");
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let millis: u64 = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            "y" => 365 * 86_400_000,
            _ => return Err(wrong()),
        };
        rest = &rest[letters..];
        let part = Duration::from_millis(number.checked_mul(millis).ok_or_else(wrong)?);
        total = total.checked_add(part).ok_or_else(wrong)?;
    }
    Ok(total)
}

/// For `#[serde(deserialize_with = "units::duration")]`.
pub(crate) fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(d)?).map_err(D::Error::custom)
}

/// As [`duration`], for a field that may be absent.
pub(crate) fn optional_duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    Option::<String>::deserialize(d)?.map(|t| parse_duration(&t).map_err(D::Error::custom)).transpose()
}

/// Reads `512MiB`, `1GiB`, `64KB`, `1048576`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("invalid size {text:?}, expected for example 512MiB or 1GiB");
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..split].parse().map_err(|_| wrong())?;
    let unit: u64 = match text[split..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let bytes = number * unit as f64;
    if bytes.is_finite() && bytes < 9e18 { Ok(bytes as u64) } else { Err(wrong()) }
}
