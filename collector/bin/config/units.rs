//! Sizes and times as people write them.

use std::{str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};
use storage::Durability;

/// Bytes: `512MiB`, `1GiB`, `64KB`, `1048576`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// A length of time: `200ms`, `30s`, `5m`, `12h`, `30d`, `2w`, `1y`, also put together: `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// `group`, `interval=200ms` or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fsync(pub Durability);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        pipeline::units::parse_bytes(text).map(Bytes)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        pipeline::units::parse_duration(text).map(Span)
    }
}

impl FromStr for Fsync {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "group" => Ok(Fsync(Durability::Group)),
            "none" => Ok(Fsync(Durability::None)),
            other => match other.strip_prefix("interval=").map(Span::from_str) {
                Some(Ok(span)) if span.0 > Duration::ZERO => Ok(Fsync(Durability::Interval(span.0))),
                _ => Err(format!("invalid fsync mode {text:?}, expected group, interval=200ms or none")),
            },
        }
    }
}

/// Text or a plain number.
fn text<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Raw {
        Text(String),
        Number(u64),
    }
    match Raw::deserialize(d).map_err(|_| D::Error::custom("expected text or a whole number"))? {
        Raw::Text(t) => Ok(t),
        Raw::Number(n) => Ok(n.to_string()),
    }
}

macro_rules! from_text {
    ($($t:ty),*) => {$(
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                text(d)?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}
from_text!(Bytes, Span, Fsync);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_as_written() {
        assert_eq!("1GiB".parse(), Ok(Bytes(1 << 30)));
        assert_eq!("1.5 mb".parse(), Ok(Bytes(1_500_000)));
        assert_eq!("1h30m".parse(), Ok(Span(Duration::from_secs(5400))));
        assert_eq!("200ms".parse(), Ok(Span(Duration::from_millis(200))));
        for bad in ["", "x", "5", "5 s s", "-1s", "1q"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
        for bad in ["", "GiB", "1 furlong", "-1"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?}");
        }
        assert_eq!("interval=200ms".parse(), Ok(Fsync(Durability::Interval(Duration::from_millis(200)))));
        assert!("interval=0ms".parse::<Fsync>().is_err() && "sometimes".parse::<Fsync>().is_err());
    }
}
