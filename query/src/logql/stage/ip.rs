//! `ip("...")`: one address, a range `a-b` or a CIDR block, against a value or the addresses inside a line.

use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpMatcher {
    low: IpAddr,
    high: IpAddr,
}

impl IpMatcher {
    pub fn parse(pattern: &str) -> Result<Self, String> {
        let invalid = || format!("ip: invalid pattern: {pattern:?}");
        if let Some((base, bits)) = pattern.split_once('/') {
            let base: IpAddr = base.trim().parse().map_err(|_| invalid())?;
            let bits: u32 = bits.trim().parse().map_err(|_| invalid())?;
            return match base {
                IpAddr::V4(a) if bits <= 32 => {
                    let host = u32::MAX.checked_shr(bits).unwrap_or(0);
                    let n = u32::from(a);
                    Ok(IpMatcher { low: IpAddr::V4((n & !host).into()), high: IpAddr::V4((n | host).into()) })
                }
                IpAddr::V6(a) if bits <= 128 => {
                    let host = u128::MAX.checked_shr(bits).unwrap_or(0);
                    let n = u128::from(a);
                    Ok(IpMatcher { low: IpAddr::V6((n & !host).into()), high: IpAddr::V6((n | host).into()) })
                }
                _ => Err(invalid()),
            };
        }
        if let Some((low, high)) = pattern.split_once('-') {
            let low: IpAddr = low.trim().parse().map_err(|_| invalid())?;
            let high: IpAddr = high.trim().parse().map_err(|_| invalid())?;
            if low.is_ipv4() != high.is_ipv4() || high < low {
                return Err(invalid());
            }
            return Ok(IpMatcher { low, high });
        }
        let one: IpAddr = pattern.trim().parse().map_err(|_| invalid())?;
        Ok(IpMatcher { low: one, high: one })
    }

    pub fn matches(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.low.is_ipv4() && self.low <= ip && ip <= self.high
    }

    /// Whether `value` is an address that matches.
    pub fn matches_value(&self, value: &str) -> bool {
        value.parse().is_ok_and(|ip| self.matches(ip))
    }

    /// Whether some address in the line matches.
    pub fn matches_line(&self, line: &str) -> bool {
        let bytes = line.as_bytes();
        let part = |b: &u8| b.is_ascii_hexdigit() || *b == b'.' || *b == b':';
        let mut at = 0;
        while at < bytes.len() {
            if !part(&bytes[at]) {
                at += 1;
                continue;
            }
            let end = at + bytes[at..].iter().position(|b| !part(b)).unwrap_or(bytes.len() - at);
            let run = &line[at..end];
            at = end;
            if run.len() < 2 {
                continue;
            }
            let trimmed = run.trim_end_matches(['.', ':']);
            // `1.2.3.4:80` is an address and a port.
            let before_port = run.split_once(':').map_or(run, |(a, _)| a);
            for candidate in [run, trimmed, before_port] {
                if let Ok(ip) = candidate.parse::<IpAddr>() {
                    if self.matches(ip) {
                        return true;
                    }
                    break;
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_ranges_and_single_addresses_match_inside_a_line() {
        let hit = |p: &str, line: &str| IpMatcher::parse(p).unwrap().matches_line(line);
        assert!(hit("10.1.0.0/16", "src=10.1.2.3 x") && !hit("10.1.0.0/16", "src=10.2.2.3"));
        assert!(hit("fe80::/10", "from fe80::1, port") && !hit("fe80::/10", "10.0.0.1"));
        assert!(hit("10.0.0.1-10.0.0.9", "10.0.0.5:80") && !hit("10.0.0.1", "256.1.1.1"));
        for bad in ["nope", "1.2.3", "1.2.3.4/99", "256.1.1.1", "2.2.2.2-1.1.1.1"] {
            assert!(IpMatcher::parse(bad).is_err(), "{bad}");
        }
    }
}
