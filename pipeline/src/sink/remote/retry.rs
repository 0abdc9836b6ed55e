//! When a failed delivery is tried again, and which failures are worth it. Pure: no clock, no network.

use std::time::Duration;

use rand::Rng as _;
use serde::Deserialize;

use crate::units;

/// The longest `Retry-After` that is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Pauses between attempts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// Upper bound of the first pause; doubled with each attempt.
    #[serde(deserialize_with = "units::duration")]
    pub first: Duration,
    /// Upper bound of every pause.
    #[serde(deserialize_with = "units::duration")]
    pub most: Duration,
    /// How long rows that somebody pushed are tried before the sender is told to come back. Rows of files are tried for ever:
    /// their source waits.
    #[serde(deserialize_with = "units::duration")]
    pub give_up: Duration,
}

impl Default for RetryConfig {
    fn default() -> Self {
        RetryConfig {
            first: Duration::from_millis(500),
            most: Duration::from_secs(30),
            give_up: Duration::from_secs(300),
        }
    }
}

/// The pauses of one request: exponential, each drawn from the whole of its range ("full jitter"), so that many senders
/// that failed together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    attempt: u32,
}

impl Backoff {
    pub fn new(config: &RetryConfig) -> Self {
        Backoff { first: config.first, most: config.most, attempt: 0 }
    }

    /// The next pause; not shorter than what the remote asked for.
    pub fn pause(&mut self, retry_after: Option<Duration>) -> Duration {
        let top = self.first.saturating_mul(1 << self.attempt.min(20)).min(self.most);
        self.attempt = self.attempt.saturating_add(1);
        let drawn = top.mul_f64(rand::rng().random_range(0.0..=1.0));
        match retry_after.map(|r| r.min(RETRY_AFTER_MAX)) {
            // A little later than asked, each by another time.
            Some(asked) => asked + drawn.min(asked / 4 + self.first),
            None => drawn,
        }
    }
}

/// A `Retry-After` header: seconds, or an HTTP date. `now`: seconds since the epoch.
pub fn parse_retry_after(text: &str, now: i64) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = chrono::DateTime::parse_from_rfc2822(text).ok()?.timestamp();
    Some(Duration::from_secs(u64::try_from(at.saturating_sub(now)).unwrap_or(0)))
}

/// What an answer says of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Done,
    /// Nothing is wrong with the rows; later it may work.
    Again,
    /// The remote refuses us (credentials, address), not the rows: kept and tried slowly until somebody mends it.
    Denied,
    /// Smaller requests may pass.
    TooLarge,
    /// The rows are refused for good.
    Refused,
}

/// Which protocol's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// 500 is not retried (OTLP specification, "Failures").
    Otlp,
    /// 429 and every 5xx are retried: Loki push, remote write, Elasticsearch, anything else.
    Common,
}

pub fn http_verdict(status: u16, rules: Rules) -> Verdict {
    match (status, rules) {
        (200..=299, _) => Verdict::Done,
        (401 | 402 | 403 | 404 | 405 | 407 | 300..=399, _) => Verdict::Denied,
        (413, _) => Verdict::TooLarge,
        (408 | 425 | 429 | 502..=504, _) => Verdict::Again,
        (500..=599, Rules::Common) => Verdict::Again,
        _ => Verdict::Refused,
    }
}

/// `code`: `google.rpc.Code`. `retry_info`: whether the answer bears a `RetryInfo`.
pub fn grpc_verdict(code: i32, retry_info: bool) -> Verdict {
    match code {
        0 => Verdict::Done,
        // Cancelled, deadline exceeded, aborted, out of range, unavailable, data loss.
        1 | 4 | 10 | 11 | 14 | 15 => Verdict::Again,
        8 if retry_info => Verdict::Again,
        // A message over the receiver's limit has this code.
        8 => Verdict::TooLarge,
        // Permission denied, unimplemented, unauthenticated.
        7 | 12 | 16 => Verdict::Denied,
        _ => Verdict::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_retried_as_each_protocol_says() {
        use Verdict::{Again, Denied, Done, Refused, TooLarge};
        for (status, otlp, common) in [
            (200, Done, Done),
            (204, Done, Done),
            (307, Denied, Denied),
            (400, Refused, Refused),
            (401, Denied, Denied),
            (404, Denied, Denied),
            (413, TooLarge, TooLarge),
            (422, Refused, Refused),
            (429, Again, Again),
            (500, Refused, Again),
            (502, Again, Again),
            (503, Again, Again),
            (504, Again, Again),
            (507, Refused, Again),
        ] {
            assert_eq!(http_verdict(status, Rules::Otlp), otlp, "{status}");
            assert_eq!(http_verdict(status, Rules::Common), common, "{status}");
        }
        for (code, want) in [(0, Done), (3, Refused), (8, TooLarge), (13, Refused), (14, Again), (16, Denied)] {
            assert_eq!(grpc_verdict(code, false), want, "{code}");
        }
        assert_eq!(grpc_verdict(8, true), Again);
    }

    #[test]
    fn pauses_grow_to_their_top_and_are_spread() {
        let config = RetryConfig {
            first: Duration::from_millis(100),
            most: Duration::from_secs(2),
            give_up: Duration::from_secs(60),
        };
        let mut largest = Duration::ZERO;
        let mut distinct = std::collections::HashSet::new();
        for _ in 0..50 {
            let mut b = Backoff::new(&config);
            for attempt in 0..10u32 {
                let pause = b.pause(None);
                assert!(pause <= Duration::from_millis(100 << attempt).min(config.most), "{attempt}: {pause:?}");
                largest = largest.max(pause);
                distinct.insert(pause);
            }
        }
        assert!(largest > Duration::from_secs(1) && distinct.len() > 100);
    }

    #[test]
    fn the_remote_is_not_asked_before_it_wants_to_be() {
        let mut b = Backoff::new(&RetryConfig::default());
        for _ in 0..20 {
            let pause = b.pause(Some(Duration::from_secs(7)));
            assert!(pause >= Duration::from_secs(7) && pause < Duration::from_secs(10), "{pause:?}");
        }
        assert!(b.pause(Some(Duration::from_secs(1 << 40))) < Duration::from_secs(400));
        assert_eq!(parse_retry_after(" 12 ", 0), Some(Duration::from_secs(12)));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(parse_retry_after(date, 784_111_777 - 5), Some(Duration::from_secs(5)));
        assert_eq!(parse_retry_after(date, 784_111_777 + 5), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("soon", 0), None);
    }
}
