//! Numbers as expositions write them.

use std::fmt::Write as _;

/// The one NaN of a sample that is a number: a stale marker has other bits and cannot be exposed.
const NORMAL_NAN: f64 = f64::from_bits(0x7ff8_0000_0000_0001);

/// A value, `None` if it is none. Any NaN is the normal one.
pub(super) fn value(text: &str) -> Option<f64> {
    // `parse` also takes a sign before NaN, which nobody writes.
    let value: f64 = text.parse().ok()?;
    Some(if value.is_nan() { NORMAL_NAN } else { value })
}

pub(super) fn normal(value: f64) -> f64 {
    if value.is_nan() { NORMAL_NAN } else { value }
}

/// Shortest text that reads back the same and is told from an integer: `1.0`, `0.005`, `1e+06`, `+Inf`.
pub fn write_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if value == 0.0 {
        return "0.0".to_owned();
    }
    // `d.ddde-7`: the shortest digits and the decimal exponent.
    let shortest = format!("{value:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let mut out = String::new();
    // Go's `%g` of shortest precision.
    if (-4..6).contains(&exponent) {
        let _ = write!(out, "{value}");
        if !out.contains('.') {
            out.push_str(".0");
        }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        let _ = write!(out, "{digits}e{sign}{:02}", exponent.abs());
    }
    out
}
