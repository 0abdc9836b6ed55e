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

    /// One byte or more of each token with a digit, or of `LETTERS` (at least one) and more hex letters only; none of any
    /// other. Each token is whole within the window.
    #[inline]
    pub(super) fn ids<const LETTERS: u32>(self) -> u64 {
        let Classes { token, digit, hex } = self;
        // Added to its first byte, a token of hex letters only carries over to the byte behind it, and no other does.
        let firsts = token & !(token << 1);
        let (sum, over) = (token & hex).overflowing_add(firsts);
        let mut lasts = (sum & !token) >> 1 | u64::from(over) << 63;
        for letter in 1..LETTERS {
            lasts &= token << letter;
        }
        digit | lasts
    }

    /// First byte and end of the token that the byte at `at` is of.
    #[inline]
    pub(super) fn token_at(self, at: usize) -> (usize, usize) {
        let before = !self.token & ((1 << at) - 1);
        let start = WINDOW - before.leading_zeros() as usize;
        (start, at + (self.token >> at).trailing_ones() as usize)
    }
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

    /// The rule, token by token.
    fn slow_ids(classes: Classes) -> Vec<(usize, usize)> {
        let bit = |mask: u64, i: usize| i < WINDOW && mask >> i & 1 == 1;
        let mut out = Vec::new();
        let mut at = 0;
        while at < WINDOW {
            let end = (at..).find(|i| !bit(classes.token, *i)).unwrap();
            let digits = (at..end).any(|i| bit(classes.digit, i));
            if digits || end - at >= 4 && (at..end).all(|i| bit(classes.hex, i)) {
                out.push((at, end));
            }
            at = end + 1;
        }
        out
    }

    proptest! {
        #[test]
        fn every_window_has_its_classes_and_ids(
            window in proptest::collection::vec(
                prop_oneof![any::<u8>(), prop::sample::select(b"abcf09 ".to_vec()), prop::sample::select(b"ad ".to_vec())],
                WINDOW,
            ),
            ones in any::<bool>(),
        ) {
            let mut window: [u8; WINDOW] = window.try_into().unwrap();
            if ones {
                window.iter_mut().for_each(|b| *b |= 0x20);
            }
            let classes = classes(&window);
            prop_assert_eq!(classes, slow_classes(&window));
            let mut found = Vec::new();
            let mut left = classes.ids::<4>();
            while left != 0 {
                let (start, end) = classes.token_at(left.trailing_zeros() as usize);
                found.push((start, end));
                left &= u64::MAX.checked_shl(end as u32).unwrap_or(0);
            }
            prop_assert_eq!(found, slow_ids(classes));
        }
    }
}
