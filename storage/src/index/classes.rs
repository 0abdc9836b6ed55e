//! What the bytes of a body are, 64 at a time, one bit a byte.

/// Bytes that one look takes in.
pub(super) const WINDOW: usize = 64;

/// A bit for each byte of a window, the first lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Classes {
    /// Letters, digits, `_` and bytes >= 0x80.
    pub(super) token: u64,
    /// `0-9`.
    pub(super) digit: u64,
    /// `a-f`, `A-F`.
    pub(super) hex: u64,
}

/// Eight bytes at a time, in the bytes of one number. A sum with a byte of 7 bits does not reach the next byte, so the top bit
/// of `t + (0x80 - first)` says whether `t >= first`.
pub(super) fn classes(window: &[u8; WINDOW]) -> Classes {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = ONES << 7;
    let mut out = Classes { token: 0, digit: 0, hex: 0 };
    for (i, eight) in window.as_chunks::<8>().0.iter().enumerate() {
        let word = u64::from_le_bytes(*eight);
        let (text, lower) = (word & !TOPS, word & !TOPS | (ONES * 0x20));
        let from = |t: u64, first: u8| t + ONES * u64::from(0x80 - first);
        let digit = from(text, b'0') & !from(text, b'9' + 1) & !word & TOPS;
        let letters = from(lower, b'a') & !word & TOPS;
        let named = letters & !from(lower, b'z' + 1) | from(text, b'_') & !from(text, b'_' + 1);
        // The top bits of eight bytes become eight bits.
        let bits = |tops: u64| ((tops & TOPS) >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56 << (8 * i);
        out.digit |= bits(digit);
        out.hex |= bits(letters & !from(lower, b'f' + 1));
        out.token |= bits(digit | named | word);
    }
    out
}

#[cfg(test)]
fn slow_classes(window: &[u8; WINDOW]) -> Classes {
    let mask = |is: fn(&u8) -> bool| window.iter().rev().fold(0, |m, b| m << 1 | u64::from(is(b)));
    Classes {
        token: mask(|b| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80),
        digit: mask(u8::is_ascii_digit),
        hex: mask(|b| matches!(b, b'a'..=b'f' | b'A'..=b'F')),
    }
}

impl Classes {
    /// What is left when the bytes from `len` on (1 to 64) are taken for separators.
    pub(super) fn first(self, len: usize) -> Self {
        let kept = u64::MAX >> (WINDOW - len);
        Classes { token: self.token & kept, digit: self.digit & kept, hex: self.hex & kept }
    }

    /// Bytes of tokens with a digit, or of `letters` and more hex letters only; each token is whole within the window.
    pub(super) fn ids<const LETTERS: u32>(self) -> u64 {
        let Classes { token, digit, hex } = self;
        let mut long = token & !flood(token & !hex, token);
        // Where that many follow each other, and from there to where they end.
        for _ in 1..LETTERS {
            long &= long >> 1;
        }
        for _ in 1..LETTERS {
            long |= long << 1;
        }
        flood(digit, token) | long
    }
}

/// The runs of ones in `ground` that hold a one of `seed`.
fn flood(seed: u64, ground: u64) -> u64 {
    let (mut up, mut down) = (seed & ground, seed & ground);
    let (mut over, mut under) = (ground, ground);
    for step in [1, 2, 4, 8, 16, 32] {
        up |= over & (up << step);
        over &= over << step;
        down |= under & (down >> step);
        under &= under >> step;
    }
    up | down
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_byte_has_its_class() {
        for start in (0..=255u8).step_by(WINDOW) {
            let window: [u8; WINDOW] = std::array::from_fn(|i| start + i as u8);
            assert_eq!(classes(&window), slow_classes(&window));
        }
    }

    proptest! {
        #[test]
        fn a_flood_fills_the_runs_it_starts_in(seed in any::<u64>(), a in any::<u64>(), b in any::<u64>()) {
            let ground = a | b;
            let mut expected = seed & ground;
            for _ in 0..64 {
                expected |= ground & (expected << 1 | expected >> 1);
            }
            prop_assert_eq!(flood(seed, ground), expected);
        }
    }
}
