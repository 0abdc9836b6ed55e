//! Bits of Prometheus chunks: most significant first, the last byte filled with zeros.

/// A growing row of bits.
#[derive(Debug, Default)]
pub struct Bits {
    bytes: Vec<u8>,
    /// Bits of the last byte that are still free.
    free: u32,
}

impl Bits {
    /// Starts with whole bytes.
    pub fn of(bytes: Vec<u8>) -> Self {
        Bits { bytes, free: 0 }
    }

    pub fn bit(&mut self, one: bool) {
        self.bits(u64::from(one), 1);
    }

    /// The `n` lowest bits of `value`, at most 64.
    pub fn bits(&mut self, value: u64, n: u32) {
        let mut left = n;
        while left > 0 {
            if self.free == 0 {
                self.bytes.push(0);
                self.free = 8;
            }
            let take = left.min(self.free);
            let piece = (value >> (left - take)) & ((1 << take) - 1);
            if let Some(last) = self.bytes.last_mut() {
                *last |= (piece as u8) << (self.free - take);
            }
            self.free -= take;
            left -= take;
        }
    }

    pub fn uvarint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bits(value & 0x7f | 0x80, 8);
            value >>= 7;
        }
        self.bits(value, 8);
    }

    /// Zigzag.
    pub fn varint(&mut self, value: i64) {
        self.uvarint((value << 1 ^ value >> 63) as u64);
    }

    /// Histogram chunks' own variable length of a signed number.
    pub fn varbit(&mut self, value: i64) {
        let width = WIDTHS.iter().position(|w| fits(value, *w));
        self.varbit_as(value as u64, value == 0, width);
    }

    pub fn varbit_unsigned(&mut self, value: u64) {
        let width = WIDTHS.iter().position(|w| value >> w == 0);
        self.varbit_as(value, value == 0, width);
    }

    fn varbit_as(&mut self, value: u64, zero: bool, width: Option<usize>) {
        if zero {
            return self.bit(false);
        }
        match width {
            // `10`, `110`, ...: as many ones as the width is in the list, then a zero.
            Some(i) => {
                let ones = i as u32 + 1;
                self.bits((1 << (ones + 1)) - 2, ones + 1);
                self.bits(value, WIDTHS[i]);
            }
            None => {
                self.bits(0xff, 8);
                self.bits(value, 64);
            }
        }
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Bits of a variable length number, by its prefix; after these come 64.
const WIDTHS: [u32; 7] = [3, 6, 9, 12, 18, 25, 56];

/// Whether a signed number can be told in `n` bits, of which the highest value alone is not negative.
pub fn fits(value: i64, n: u32) -> bool {
    let half = 1i64 << (n - 1);
    -(half - 1) <= value && value <= half
}

/// The window of one row of XOR-coded values: the value before, and where its significant bits were.
#[derive(Clone, Debug, Default)]
pub struct Xor {
    last: u64,
    /// Leading and trailing zeros.
    window: Option<(u32, u32)>,
}

impl Xor {
    /// After a value that was written whole.
    pub fn after(value: f64) -> Self {
        Xor { last: value.to_bits(), window: None }
    }

    pub fn put(&mut self, out: &mut Bits, value: f64) {
        let x = value.to_bits() ^ self.last;
        self.last = value.to_bits();
        if x == 0 {
            return out.bit(false);
        }
        out.bit(true);
        let (leading, trailing) = (x.leading_zeros().min(31), x.trailing_zeros());
        match self.window {
            Some((l, t)) if leading >= l && trailing >= t => {
                out.bit(false);
                out.bits(x >> t, 64 - l - t);
            }
            _ => {
                self.window = Some((leading, trailing));
                let significant = 64 - leading - trailing;
                out.bit(true);
                out.bits(leading.into(), 5);
                // 64 does not fit and is told as 0.
                out.bits(u64::from(significant & 63), 6);
                out.bits(x >> trailing, significant);
            }
        }
    }
}
