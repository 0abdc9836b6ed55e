//! Parquet's hybrid of run lengths and bit packing, written from runs.

/// Values of one bit-packed group.
const GROUP: usize = 8;

/// Encodes small numbers of a fixed width in bits. A number that repeats costs one step however often.
pub(super) struct Hybrid {
    width: u8,
    out: Vec<u8>,
    /// The run that may still grow.
    run: (u32, usize),
    /// Numbers that will be bit-packed: fewer than a group of them may be followed by a run.
    literals: Vec<u32>,
}

impl Hybrid {
    /// `out`: what is encoded is appended to it.
    pub(super) fn new(width: u8, out: Vec<u8>) -> Self {
        Hybrid { width, out, run: (0, 0), literals: Vec::new() }
    }

    #[inline]
    pub(super) fn push(&mut self, value: u32, count: usize) {
        if self.run.0 != value {
            self.end_run();
            self.run.0 = value;
        }
        self.run.1 += count;
    }

    #[inline]
    fn end_run(&mut self) {
        let (value, mut count) = std::mem::take(&mut self.run);
        // What follows a bit-packed run starts at a whole group.
        let fill = count.min(self.literals.len().next_multiple_of(GROUP) - self.literals.len());
        if count < fill + GROUP {
            self.literals.extend(std::iter::repeat_n(value, count));
            return;
        }
        self.literals.extend(std::iter::repeat_n(value, fill));
        count -= fill;
        self.end_literals();
        put_varint(&mut self.out, (count as u64) << 1);
        let bytes = usize::from(self.width).div_ceil(8);
        self.out.extend_from_slice(&value.to_le_bytes()[..bytes]);
    }

    fn end_literals(&mut self) {
        if self.literals.is_empty() {
            return;
        }
        let groups = self.literals.len().div_ceil(GROUP);
        self.literals.resize(groups * GROUP, 0);
        put_varint(&mut self.out, (groups as u64) << 1 | 1);
        let width = u32::from(self.width);
        let (mut bits, mut filled) = (0u64, 0);
        for value in self.literals.drain(..) {
            bits |= u64::from(value) << filled;
            filled += width;
            while filled >= 8 {
                self.out.push(bits as u8);
                bits >>= 8;
                filled -= 8;
            }
        }
    }

    /// Bytes so far, without what is still held back.
    pub(super) fn len(&self) -> usize {
        self.out.len() + self.literals.len() * usize::from(self.width) / 8
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.end_run();
        self.end_literals();
        self.out
    }
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The format's rule, read slowly.
    fn decode(bytes: &[u8], width: u8, count: usize) -> Vec<u32> {
        let (mut at, mut out) = (0, Vec::new());
        while out.len() < count {
            let (mut head, mut shift) = (0u64, 0);
            loop {
                head |= u64::from(bytes[at] & 0x7f) << shift;
                shift += 7;
                at += 1;
                if bytes[at - 1] < 0x80 {
                    break;
                }
            }
            let width = usize::from(width);
            if head & 1 == 0 {
                let n = width.div_ceil(8);
                let value = bytes[at..at + n].iter().rev().fold(0u32, |v, b| v << 8 | u32::from(*b));
                at += n;
                out.extend(std::iter::repeat_n(value, (head >> 1) as usize));
            } else {
                let values = (head >> 1) as usize * GROUP;
                let bit = |i: usize| u32::from(bytes[at + i / 8] >> (i % 8) & 1);
                out.extend((0..values).map(|v| (0..width).map(|b| bit(v * width + b) << b).sum::<u32>()));
                at += values * width / 8;
            }
        }
        assert_eq!(at, bytes.len());
        out.truncate(count);
        out
    }

    proptest! {
        #[test]
        fn runs_read_back(runs in proptest::collection::vec((0u32..40, 1usize..40), 0..60), extra in 0u8..12) {
            let width = if runs.iter().all(|r| r.0 == 0) { extra } else { 6 + extra };
            let mut hybrid = Hybrid::new(width, Vec::new());
            let mut expected = Vec::new();
            for (value, count) in runs {
                hybrid.push(value, count);
                expected.extend(std::iter::repeat_n(value, count));
            }
            prop_assert_eq!(decode(&hybrid.finish(), width, expected.len()), expected);
        }
    }

    #[test]
    fn a_long_run_costs_a_few_bytes() {
        let mut hybrid = Hybrid::new(3, Vec::new());
        (0..100_000).for_each(|_| hybrid.push(5, 1));
        assert_eq!(hybrid.finish().len(), 4);
    }
}
