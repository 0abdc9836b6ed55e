//! The named patterns: what looks like one is found by a regular expression or a scan, then judged.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    ops::Range,
    sync::LazyLock,
};

use regex::Regex;
use serde::Deserialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Named {
    /// E-mail addresses.
    Email,
    /// Payment card numbers: 12 to 19 digits of a known issuer with a right check digit (Luhn), in groups or not.
    Card,
    /// What follows `Bearer`.
    Bearer,
    /// Addresses of both versions.
    Ip,
    Ipv4,
    Ipv6,
}

fn compiled(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern of our own")
}

static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    compiled(
        r"[A-Za-z0-9._%+\-]+@[A-Za-z0-9](?:[A-Za-z0-9\-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9\-]*[A-Za-z0-9])?)+",
    )
});
static BEARER: LazyLock<Regex> = LazyLock::new(|| compiled(r"(?i)\bbearer[ \t]+([A-Za-z0-9\-._~+/]{8,}=*)"));
static IPV4: LazyLock<Regex> = LazyLock::new(|| compiled(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}"));
static IPV6: LazyLock<Regex> = LazyLock::new(|| compiled(r"[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f.]*){2,}"));

impl Named {
    /// The text with each find replaced, and how many there were; `None` when there is none.
    pub fn replace(self, text: &str) -> Option<(String, u64)> {
        match self {
            Named::Email if memchr::memchr(b'@', text.as_bytes()).is_none() => None,
            Named::Email => put(text, EMAIL.find_iter(text).map(|m| m.range()), "[email]"),
            Named::Bearer => {
                put(text, BEARER.captures_iter(text).filter_map(|c| c.get(1)).map(|m| m.range()), "[bearer]")
            }
            Named::Card => put(text, cards(text).into_iter(), "[card]"),
            Named::Ipv4 => put(text, ipv4(text), "[ip]"),
            Named::Ipv6 => put(text, ipv6(text), "[ip]"),
            // The longer form first: it may end in the shorter.
            Named::Ip => match (Named::Ipv6.replace(text), text) {
                (None, text) => Named::Ipv4.replace(text),
                (Some((new, n)), _) => match Named::Ipv4.replace(&new) {
                    Some((newer, m)) => Some((newer, n + m)),
                    None => Some((new, n)),
                },
            },
        }
    }
}

fn put(text: &str, finds: impl Iterator<Item = Range<usize>>, with: &str) -> Option<(String, u64)> {
    let mut out = String::new();
    let (mut done, mut count) = (0, 0);
    for find in finds {
        out.push_str(&text[done..find.start]);
        out.push_str(with);
        done = find.end;
        count += 1;
    }
    (count > 0).then(|| {
        out.push_str(&text[done..]);
        (out, count)
    })
}

/// Whether a find is not a part of something longer.
fn stands_alone(text: &str, find: &Range<usize>) -> bool {
    let bytes = text.as_bytes();
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let before = find.start.checked_sub(1).and_then(|i| bytes.get(i));
    let after = bytes.get(find.end);
    // `1.2.3.4.` ends a sentence, `1.2.3.4.5` is a version.
    let dotted = after == Some(&b'.') && bytes.get(find.end + 1).is_some_and(u8::is_ascii_digit);
    !before.is_some_and(|b| word(b) || *b == b'.') && !after.is_some_and(word) && !dotted
}

fn ipv4(text: &str) -> impl Iterator<Item = Range<usize>> {
    let finds = IPV4.find_iter(text).map(|m| m.range());
    finds.filter(|r| stands_alone(text, r) && text[r.clone()].parse::<Ipv4Addr>().is_ok())
}

fn ipv6(text: &str) -> impl Iterator<Item = Range<usize>> {
    IPV6.find_iter(text).filter_map(|m| {
        let mut range = m.range();
        // A full stop or a colon may follow an address.
        while let Some(last) = text[range.clone()].chars().next_back()
            && (last == '.' || (last == ':' && !text[range.clone()].ends_with("::")))
        {
            range.end -= 1;
        }
        let found = &text[range.clone()];
        let address = found.len() > 2 && found.parse::<Ipv6Addr>().is_ok();
        (address && stands_alone(text, &range)).then_some(range)
    })
}

/// Digits of a card number, least and most.
const CARD_DIGITS: (usize, usize) = (12, 19);

/// Card numbers in runs of digits with at most one blank or hyphen between two: the longest at each beginning of a group.
fn cards(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(offset) = bytes[at..].iter().position(u8::is_ascii_digit) {
        let start = at + offset;
        // The run: places of its digits.
        let mut digits: Vec<usize> = Vec::new();
        let mut i = start;
        while i < bytes.len() {
            if bytes[i].is_ascii_digit() {
                digits.push(i);
            } else if !(matches!(bytes[i], b' ' | b'-') && bytes.get(i + 1).is_some_and(u8::is_ascii_digit)) {
                break;
            }
            i += 1;
        }
        at = i.max(start + 1);
        if digits.len() < CARD_DIGITS.0 {
            continue;
        }
        let ends_group = |d: usize| d + 1 == digits.len() || digits[d + 1] > digits[d] + 1;
        let mut first = 0;
        while first < digits.len() {
            let begins_group = first == 0 || digits[first] > digits[first - 1] + 1;
            let last = begins_group
                .then(|| {
                    (CARD_DIGITS.0..=CARD_DIGITS.1).rev().map(|n| first + n - 1).find(|last| {
                        *last < digits.len() && ends_group(*last) && is_card(bytes, &digits[first..=*last])
                    })
                })
                .flatten();
            match last {
                Some(last) => {
                    let range = digits[first]..digits[last] + 1;
                    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
                    let before = range.start.checked_sub(1).map(|i| &bytes[i]);
                    if !before.is_some_and(word) && !bytes.get(range.end).is_some_and(word) {
                        out.push(range);
                    }
                    first = last + 1;
                }
                None => first += 1,
            }
        }
    }
    out
}

/// Issuer, length and check digit are right.
fn is_card(bytes: &[u8], places: &[usize]) -> bool {
    let digit = |i: usize| u32::from(bytes[places[i]] - b'0');
    let prefix = |n: usize| (0..n).fold(0, |v, i| v * 10 + digit(i));
    let issuer = match (prefix(1), places.len()) {
        (4, 13 | 16 | 19) => true,
        (5, 16) => (51..=55).contains(&prefix(2)),
        (5 | 6, 12..=19) if matches!(prefix(2), 50 | 56..=58 | 60 | 62..=65 | 67) => true,
        (3, 14..=15) => matches!(prefix(2), 30 | 34 | 36..=39),
        (3, 16..=19) => (3528..=3589).contains(&prefix(4)),
        (2, 16) => (2221..=2720).contains(&prefix(4)),
        _ => false,
    };
    let luhn = || {
        let sum: u32 = (0..places.len())
            .rev()
            .enumerate()
            .map(|(n, i)| match digit(i) * (1 + n as u32 % 2) {
                d if d > 9 => d - 9,
                d => d,
            })
            .sum();
        sum.is_multiple_of(10)
    };
    issuer && luhn()
}
