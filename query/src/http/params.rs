//! Parameters of a request: of the URL and, in a form POST, of the body; tenant; times and durations.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, Method, header::CONTENT_TYPE},
};
use http_body_util::{BodyExt, Limited};
use storage::model::{TenantId, TimeRange, Timestamp};

use crate::{error::QueryError, limits::FORM_BYTES_MAX, promql::parse_duration_ms};

/// Decoded pairs: those of the body before those of the URL, so that the body wins where one value counts.
#[derive(Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// Reads URL and form. Errors on a body over [`FORM_BYTES_MAX`] or that cannot be read.
    pub async fn of(request: Request<Body>) -> Result<(Self, TenantId), QueryError> {
        let (head, body) = request.into_parts();
        let tenant = tenant(&head.headers)?;
        let mut out = Vec::new();
        let form = head
            .headers
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|v| v.trim().to_ascii_lowercase().starts_with("application/x-www-form-urlencoded"));
        if head.method == Method::POST && form {
            let body = Limited::new(body, FORM_BYTES_MAX).collect().await.map_err(|e| {
                QueryError::BadData(format!("cannot read the form body (at most {FORM_BYTES_MAX} bytes): {e}"))
            })?;
            decode_into(&String::from_utf8_lossy(&body.to_bytes()), &mut out);
        }
        decode_into(head.uri.query().unwrap_or(""), &mut out);
        Ok((Params(out), tenant))
    }

    /// The first value; an empty one counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn required(&self, name: &str) -> Result<&str, QueryError> {
        self.get(name).ok_or_else(|| invalid(name, "missing parameter"))
    }

    /// A time in ms.
    pub fn time(&self, name: &str) -> Result<Option<i64>, QueryError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let time = parse_time_ms(text).ok_or_else(|| {
            invalid(name, &format!("invalid time value for '{name}': cannot parse {text:?} to a valid timestamp"))
        })?;
        Ok(Some(time))
    }

    /// A time in ms that must be there.
    pub fn required_time(&self, name: &str) -> Result<i64, QueryError> {
        let text = self.get(name).unwrap_or("");
        parse_time_ms(text).ok_or_else(|| invalid(name, &format!("cannot parse {text:?} to a valid timestamp")))
    }

    /// A duration in ms.
    pub fn duration(&self, name: &str) -> Result<Option<i64>, QueryError> {
        self.get(name)
            .map(|v| {
                let seconds = v.parse::<f64>().ok().map(|s| s * 1000.0);
                let ms = match seconds {
                    Some(ms) if ms.is_finite() && ms.abs() < 9.2e18 => Some(ms.round() as i64),
                    Some(_) => None,
                    None => parse_duration_ms(v),
                };
                let why = if seconds.is_some() { ". It overflows int64" } else { "" };
                ms.ok_or_else(|| invalid(name, &format!("cannot parse {v:?} to a valid duration{why}")))
            })
            .transpose()
    }

    /// `None`: no limit.
    pub fn limit(&self) -> Result<Option<usize>, QueryError> {
        let Some(text) = self.get("limit") else { return Ok(None) };
        match text.parse::<i64>() {
            Ok(0) => Ok(None),
            Ok(n) => match usize::try_from(n) {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(invalid("limit", "limit must be non-negative")),
            },
            Err(e) => {
                use std::num::IntErrorKind::{NegOverflow, PosOverflow};
                let large = matches!(e.kind(), PosOverflow | NegOverflow);
                let why = if large { "value out of range" } else { "invalid syntax" };
                Err(invalid("limit", &format!("strconv.Atoi: parsing {text:?}: {why}")))
            }
        }
    }

    /// `start` to `end` inclusive, all of time where absent. `None` when the end is before the start.
    pub fn range(&self) -> Result<Option<TimeRange>, QueryError> {
        let (start, end) = (self.time("start")?, self.time("end")?);
        let start = start.map_or(Timestamp::MIN, Timestamp::from_millis);
        let end = end.map_or(Timestamp::MAX, |e| Timestamp::from_millis(e.saturating_add(1)));
        Ok(TimeRange::new(start, end))
    }
}

/// `invalid parameter "name": why`.
pub fn invalid(name: &str, why: &str) -> QueryError {
    QueryError::BadData(format!("invalid parameter {name:?}: {why}"))
}

/// The tenant that `X-Scope-OrgID` names, or the default one.
pub fn tenant(headers: &HeaderMap) -> Result<TenantId, QueryError> {
    TenantId::named(headers.get_all("x-scope-orgid").iter().map(|v| v.as_bytes()))
        .map_err(|e| QueryError::BadData(format!("header X-Scope-OrgID: {e}")))
}

/// Unix seconds with a fraction, or RFC 3339, in ms.
pub fn parse_time_ms(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<f64>() {
        let ms = (seconds * 1000.0).round();
        // Saturates, so that a probe with milliseconds for seconds only finds nothing.
        return ms.is_finite().then_some(ms as i64);
    }
    chrono::DateTime::parse_from_rfc3339(text).ok().map(|t| {
        let nanos = i64::from(t.timestamp_subsec_nanos());
        t.timestamp().saturating_mul(1000).saturating_add((nanos + 500_000) / 1_000_000)
    })
}

fn decode_into(text: &str, out: &mut Vec<(String, String)>) {
    for pair in text.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        out.push((percent_decode(name, true), percent_decode(value, true)));
    }
}

/// `%xx` and, in forms and queries, `+`; what is not UTF-8 afterwards becomes replacement characters.
pub fn percent_decode(text: &str, plus_is_space: bool) -> String {
    let out = percent_bytes(text, plus_is_space);
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// The bytes of [`percent_decode`].
pub fn percent_bytes(text: &str, plus_is_space: bool) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match bytes[at] {
            b'%' if hex(at + 1).is_some() && hex(at + 2).is_some() => {
                let value = hex(at + 1).unwrap_or(0) * 16 + hex(at + 2).unwrap_or(0);
                out.push(value as u8);
                at += 3;
                continue;
            }
            b'+' if plus_is_space => out.push(b' '),
            b => out.push(b),
        }
        at += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_rfc_3339() {
        assert_eq!(parse_time_ms("1700000000.1234"), Some(1_700_000_000_123));
        assert_eq!(parse_time_ms("2023-11-14T22:13:20.5Z"), Some(1_700_000_000_500));
        assert_eq!(parse_time_ms("1700000000000"), Some(1_700_000_000_000_000));
        assert!(parse_time_ms("yesterday").is_none() && parse_time_ms("NaN").is_none());
    }

    #[test]
    fn forms_are_decoded() {
        let mut out = Vec::new();
        decode_into("a=%7Bx%3D%221%22%7D+b&match%5B%5D=up&c", &mut out);
        assert_eq!(out[0], ("a".into(), "{x=\"1\"} b".into()));
        assert_eq!(out[1].0, "match[]");
    }
}
