//! Numbers as Go prints them.

/// `strconv.FormatFloat(v, 'f', -1, 64)`: no exponent, `+Inf`, `-Inf`, `NaN`.
pub fn float_plain(v: f64) -> String {
    if v.is_nan() {
        "NaN".into()
    } else if v.is_infinite() {
        if v > 0.0 { "+Inf".into() } else { "-Inf".into() }
    } else {
        format!("{v}")
    }
}

/// A duration as Prometheus writes it: `1h30m`, `0s`. `nanos` below a millisecond keep Go's form.
pub fn duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".into();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let mut rest = nanos.unsigned_abs();
    let mut out = String::from(sign);
    for (unit, size) in [
        ("h", 3_600_000_000_000_u64),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
    ] {
        let n = rest / size;
        rest %= size;
        if n > 0 {
            out.push_str(&format!("{n}{unit}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_have_no_exponent_and_infinities_have_signs() {
        assert_eq!(float_plain(1e21), "1000000000000000000000");
        assert_eq!(float_plain(0.1), "0.1");
        assert_eq!(float_plain(2.0), "2");
        assert_eq!(float_plain(f64::INFINITY), "+Inf");
        assert_eq!(duration(5_400_000_000_000), "1h30m");
    }
}
