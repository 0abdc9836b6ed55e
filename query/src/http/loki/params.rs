//! Request parameters: query string and form body, and their readings as times, durations and numbers.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Failure;
use crate::logql::{self, Direction};

/// Name and value pairs in order, decoded.
pub struct Params(Vec<(String, String)>);

impl Params {
    pub fn parse(query: &str, form: &str) -> Self {
        let pairs = query.split('&').chain(form.split('&')).filter(|p| !p.is_empty()).map(|p| {
            let (name, value) = p.split_once('=').unwrap_or((p, ""));
            (decode(name), decode(value))
        });
        Params(pairs.collect())
    }

    /// The first value; an empty one counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn query(&self) -> &str {
        self.get("query").unwrap_or("")
    }

    /// Start and end in nanoseconds; without them the last `default_since` nanoseconds until now.
    pub fn range(&self, default_since: i64) -> Result<(i64, i64), Failure> {
        let now = now();
        let since = match self.get("since") {
            None => default_since,
            Some(text) => logql::parse_duration(text).ok_or_else(|| {
                Failure::bad(format!("could not parse 'since' parameter: not a valid duration string: {text:?}"))
            })?,
        };
        let end = self.time("end")?.unwrap_or(now);
        let start = self.time("start")?.unwrap_or_else(|| end.min(now).saturating_sub(since));
        Ok((start, end))
    }

    fn time(&self, name: &str) -> Result<Option<i64>, Failure> {
        let Some(text) = self.get(name) else { return Ok(None) };
        parse_time(text).map(Some).ok_or_else(|| {
            Failure::bad(format!(
                "could not parse '{name}' parameter: strconv.ParseInt: parsing {text:?}: invalid syntax"
            ))
        })
    }

    /// The parameter `time`, default now.
    pub fn instant(&self) -> Result<i64, Failure> {
        match self.get("time") {
            None => Ok(now()),
            Some(text) => parse_time(text)
                .ok_or_else(|| Failure::bad(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
        }
    }

    pub fn limit(&self, default: usize) -> Result<usize, Failure> {
        let Some(text) = self.get("limit") else { return Ok(default) };
        let n: i64 = integer(text)?;
        if n <= 0 {
            return Err(Failure::bad("limit must be a positive value"));
        }
        Ok(usize::try_from(n).unwrap_or(usize::MAX))
    }

    pub fn direction(&self) -> Result<Direction, Failure> {
        match self.get("direction").map(str::to_ascii_lowercase).as_deref() {
            None | Some("backward") => Ok(Direction::Backward),
            Some("forward") => Ok(Direction::Forward),
            Some(_) => {
                Err(Failure::bad(format!("invalid direction '{}'", self.get("direction").unwrap_or_default())))
            }
        }
    }

    /// Nanoseconds. `None` without the parameter.
    pub fn step(&self) -> Result<Option<i64>, Failure> {
        let Some(step) = self.seconds("step")? else { return Ok(None) };
        if step <= 0 {
            return Err(Failure::bad(
                "zero or negative query resolution step widths are not accepted. Try a positive integer",
            ));
        }
        Ok(Some(step))
    }

    pub fn interval(&self) -> Result<i64, Failure> {
        let interval = self.seconds("interval")?.unwrap_or(0);
        if interval < 0 {
            return Err(Failure::bad("interval must be >= 0"));
        }
        Ok(interval)
    }

    /// Float seconds or a duration, as nanoseconds.
    fn seconds(&self, name: &str) -> Result<Option<i64>, Failure> {
        let Some(text) = self.get(name) else { return Ok(None) };
        if let Ok(s) = text.parse::<f64>() {
            let nanos = s * 1e9;
            if !nanos.is_finite() || nanos.abs() > 9.2e18 {
                return Err(Failure::bad(format!("cannot parse {text:?} to a valid duration. It overflows int64")));
            }
            return Ok(Some(nanos as i64));
        }
        logql::parse_duration(text)
            .map(Some)
            .ok_or_else(|| Failure::bad(format!("cannot parse {text:?} to a valid duration")))
    }
}

pub fn integer(text: &str) -> Result<i64, Failure> {
    text.parse().map_err(|_| Failure::bad(format!("strconv.Atoi: parsing {text:?}: invalid syntax")))
}

pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// Float seconds, integer seconds (up to 10 digits), integer nanoseconds, or RFC 3339: nanoseconds.
fn parse_time(text: &str) -> Option<i64> {
    if text.contains('.')
        && let Ok(seconds) = text.parse::<f64>()
    {
        // Millisecond precision, as in Loki.
        let millis = (seconds * 1000.0).round();
        return (millis.abs() < 9.2e12).then_some(millis as i64 * 1_000_000);
    }
    if let Ok(n) = text.parse::<i64>() {
        return if text.len() <= 10 { n.checked_mul(1_000_000_000) } else { Some(n) };
    }
    chrono::DateTime::parse_from_rfc3339(text).ok()?.timestamp_nanos_opt()
}

/// Percent decoding of a form: `+` is a space; damaged escapes stay; bytes that are no UTF-8 are replaced.
fn decode(text: &str) -> String {
    if !text.bytes().any(|b| b == b'%' || b == b'+') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'+' => out.push(b' '),
            b'%' => match text.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok()) {
                Some(b) => {
                    out.push(b);
                    i += 2;
                }
                None => out.push(b'%'),
            },
            b => out.push(b),
        }
        i += 1;
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_all_four_forms() {
        assert_eq!(parse_time("1793491200"), Some(1_793_491_200_000_000_000));
        assert_eq!(parse_time("1793491200000000001"), Some(1_793_491_200_000_000_001));
        assert_eq!(parse_time("1793491200.123"), Some(1_793_491_200_123_000_000));
        assert_eq!(parse_time("2026-11-01T01:00:00+01:00"), Some(1_793_491_200_000_000_000));
        assert_eq!(parse_time("2026-11-01T00:00:00.5Z"), Some(1_793_491_200_500_000_000));
        assert_eq!(parse_time("4000000000"), Some(4_000_000_000_000_000_000));
        assert_eq!(parse_time("x"), None);
    }

    #[test]
    fn forms_are_decoded() {
        let p = Params::parse("query=%7Ba%3D%22x+y%22%7D&match[]=1", "match%5B%5D=2&e=");
        assert_eq!(p.query(), "{a=\"x y\"}");
        assert_eq!(p.all("match[]").collect::<Vec<_>>(), ["1", "2"]);
        assert!(p.get("e").is_none() && p.limit(7).is_ok_and(|l| l == 7));
    }
}
