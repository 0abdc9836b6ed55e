//! One physical line of a log file to its parts: plain text, the CRI format and Docker's json-file.
//!
//! CRI (also Podman's k8s-file): `2026-01-01T00:00:00.123456789Z stdout F text`; tag `P` (also `P:x`) marks a part of a
//! longer record that ends with the next `F` of the same stream. json-file: `{"log":"text\n","stream":..,"time":..}`; a
//! `log` without a newline at its end is such a part.

use std::borrow::Cow;

use serde::Deserialize;

/// How the lines of a file are to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    #[default]
    Plain,
    Cri,
    DockerJson,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// One line of a container's log file.
#[derive(Debug, PartialEq)]
pub struct Entry<'a> {
    /// Nanoseconds since the Unix epoch.
    pub ts: i64,
    pub stream: Stream,
    /// More of this record follows in a later line of the same stream.
    pub partial: bool,
    pub body: Cow<'a, [u8]>,
}

/// `line` without its newline. `None`: not a line of this format.
pub fn entry(format: Format, line: &[u8]) -> Option<Entry<'_>> {
    match format {
        Format::Plain => None,
        Format::Cri => cri(line),
        Format::DockerJson => docker_json(line),
    }
}

fn stream_of(name: &[u8]) -> Option<Stream> {
    match name {
        b"stdout" => Some(Stream::Stdout),
        b"stderr" => Some(Stream::Stderr),
        _ => None,
    }
}

fn cri(line: &[u8]) -> Option<Entry<'_>> {
    let space = memchr::memchr(b' ', line.get(..line.len().min(64))?)?;
    let ts = rfc3339(&line[..space])?;
    let rest = &line[space + 1..];
    let stream = stream_of(rest.get(..6)?)?;
    let rest = rest[6..].strip_prefix(b" ")?;
    let (tag, body) = match memchr::memchr(b' ', rest) {
        Some(at) => (&rest[..at], &rest[at + 1..]),
        None => (rest, &rest[rest.len()..]),
    };
    let partial = match (tag.first()?, tag.get(1)) {
        (b'P', None | Some(b':')) => true,
        (b'F', None | Some(b':')) => false,
        _ => return None,
    };
    Some(Entry { ts, stream, partial, body: Cow::Borrowed(body) })
}

#[derive(Deserialize)]
struct DockerLine<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    /// Absent when the container has a terminal: everything is stdout then.
    #[serde(borrow, default)]
    stream: Option<Cow<'a, str>>,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

fn docker_json(line: &[u8]) -> Option<Entry<'_>> {
    let parsed: DockerLine<'_> = serde_json::from_slice(line).ok()?;
    let ts = rfc3339(parsed.time.as_bytes())?;
    let stream = parsed.stream.as_deref().map_or(Some(Stream::Stdout), |s| stream_of(s.as_bytes()))?;
    let mut body = match parsed.log {
        Cow::Borrowed(s) => Cow::Borrowed(s.as_bytes()),
        Cow::Owned(s) => Cow::Owned(s.into_bytes()),
    };
    let partial = body.last() != Some(&b'\n');
    if !partial {
        match &mut body {
            Cow::Borrowed(b) => *b = &b[..b.len() - 1],
            Cow::Owned(b) => drop(b.pop()),
        }
    }
    Some(Entry { ts, stream, partial, body })
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0_i64, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
}

/// `2026-01-01T00:00:00.123456789Z` or with `+02:00`, zero to nine and more fraction digits (cut to nine), as
/// nanoseconds since the epoch. `None` outside the years 1678 to 2261 or if anything is malformed.
pub fn rfc3339(text: &[u8]) -> Option<i64> {
    let fixed: &[u8; 19] = text.first_chunk()?;
    let separators = [fixed[4], fixed[7], fixed[10], fixed[13], fixed[16]];
    if !matches!(separators, [b'-', b'-', b'T' | b't' | b' ', b':', b':']) {
        return None;
    }
    let (year, month, day) = (digits(&fixed[..4])?, digits(&fixed[5..7])?, digits(&fixed[8..10])?);
    let (hour, minute, second) = (digits(&fixed[11..13])?, digits(&fixed[14..16])?, digits(&fixed[17..19])?);
    let in_range = (1678..=2261).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !in_range || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut rest = &text[19..];
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let n = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
        if n == 0 {
            return None;
        }
        let kept = n.min(9);
        nanos = digits(&fraction[..kept])? * 10_i64.pow(9 - kept as u32);
        rest = &fraction[n..];
    }
    let offset = match rest {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let east = digits(&[*h1, *h2])? * 3600 + digits(&[*m1, *m2])? * 60;
            if *sign == b'+' { east } else { -east }
        }
        _ => return None,
    };
    let seconds = days_from_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar. Years start in March here, so that the leap day is the last
/// of its year and the days before a month follow one linear formula.
fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_agree_with_chrono() {
        for text in [
            "2026-01-01T00:00:00.123456789Z",
            "2026-11-22T19:04:58.059030306+00:00",
            "2024-02-29T23:59:59Z",
            "1999-12-31T23:59:59.5-05:30",
            "2000-03-01T00:00:00.000000001+14:00",
            "1970-01-01T00:00:00Z",
            "1969-07-20T20:17:40Z",
            "2100-02-28T12:00:00Z",
        ] {
            let want = chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_nanos_opt();
            assert_eq!(rfc3339(text.as_bytes()), want, "{text}");
        }
        for bad in ["", "2026-01-01", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00.Z", "x"] {
            assert_eq!(rfc3339(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn cri_lines_with_odd_tags_and_bodies() {
        let e = cri(b"2026-01-01T00:00:00Z stderr P:x  two  spaces ").unwrap();
        assert_eq!((e.stream, e.partial, e.body.as_ref()), (Stream::Stderr, true, &b" two  spaces "[..]));
        for empty in [&b"2026-01-01T00:00:00Z stdout F "[..], b"2026-01-01T00:00:00Z stdout F"] {
            let e = cri(empty).unwrap();
            assert_eq!((e.partial, e.body.len()), (false, 0));
        }
        for bad in ["", "x", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z stdout", "2026-01-01T00:00:00Z stdlog F x"]
        {
            assert_eq!(cri(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(cri(b"2026-01-01T00:00:00Z stdout Full x"), None);
    }

    #[test]
    fn docker_lines_without_a_final_newline_are_parts() {
        let whole = br#"{"log":"a \"b\"\n","stream":"stderr","attrs":{"x":"y"},"time":"2026-01-01T00:00:00.5Z"}"#;
        let e = docker_json(whole).unwrap();
        assert_eq!((e.stream, e.partial, e.body.as_ref()), (Stream::Stderr, false, &b"a \"b\""[..]));
        let part = docker_json(br#"{"log":"abc","stream":"stdout","time":"2026-01-01T00:00:00Z"}"#).unwrap();
        assert_eq!((part.partial, part.body.as_ref()), (true, &b"abc"[..]));
        assert_eq!(docker_json(br#"{"log":"abc","stream":"stdout"}"#), None);
        assert_eq!(docker_json(b"not json"), None);
    }
}
