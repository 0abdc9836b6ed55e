//! Parquet's DELTA_BINARY_PACKED for the lengths of texts.

/// Values of a block, and of each of its four parts that has a bit width of its own.
const BLOCK: usize = 128;
const PARTS: usize = 4;
const PART: usize = BLOCK / PARTS;

/// Bytes that so many values take at most.
pub(super) const fn bytes_max(values: usize) -> usize {
    // Two varints of 32 bits, two small ones; a block: a varint of 33 bits, its widths, all bits of its values.
    20 + (values / BLOCK + 1) * (5 + PARTS + BLOCK * 4)
}

/// Appends `values` to `out`.
pub(super) fn encode(values: &[i32], out: &mut Vec<u8>) {
    put_varint(out, BLOCK as u64);
    put_varint(out, PARTS as u64);
    put_varint(out, values.len() as u64);
    put_varint(out, zigzag(values.first().copied().unwrap_or(0)));
    let mut before = values.first().copied().unwrap_or(0);
    for block in values.get(1..).unwrap_or_default().chunks(BLOCK) {
        let mut deltas = [0i32; BLOCK];
        for (delta, value) in deltas.iter_mut().zip(block) {
            *delta = value.wrapping_sub(before);
            before = *value;
        }
        let deltas = &mut deltas[..block.len().next_multiple_of(PART)];
        let least = deltas[..block.len()].iter().copied().min().unwrap_or(0);
        // What fills up the last part is nothing above the least.
        deltas[block.len()..].fill(least);
        put_varint(out, zigzag(least));
        let widths = out.len();
        out.extend_from_slice(&[0; PARTS]);
        for (i, part) in deltas.chunks(PART).enumerate() {
            let above = |d: &i32| d.wrapping_sub(least) as u32;
            let width = 32 - part.iter().map(above).fold(0, |a, b| a | b).leading_zeros();
            out[widths + i] = width as u8;
            let (mut bits, mut filled) = (0u64, 0);
            for delta in part {
                bits |= u64::from(above(delta)) << filled;
                filled += width;
                while filled >= 8 {
                    out.push(bits as u8);
                    bits >>= 8;
                    filled -= 8;
                }
            }
        }
    }
}

fn zigzag(n: i32) -> u64 {
    u64::from(((n << 1) ^ (n >> 31)) as u32)
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

    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut n, mut shift) = (0, 0);
        loop {
            let b = bytes[0];
            *bytes = &bytes[1..];
            n |= u64::from(b & 0x7f) << shift;
            shift += 7;
            if b < 0x80 {
                return n;
            }
        }
    }

    fn unzigzag(n: u64) -> i32 {
        let n = n as u32;
        (n >> 1) as i32 ^ -((n & 1) as i32)
    }

    /// The format's rule, read slowly.
    fn decode(mut bytes: &[u8]) -> Vec<i32> {
        assert_eq!((varint(&mut bytes), varint(&mut bytes)), (BLOCK as u64, PARTS as u64));
        let count = varint(&mut bytes) as usize;
        let mut out = vec![unzigzag(varint(&mut bytes))];
        while out.len() < count {
            let least = unzigzag(varint(&mut bytes));
            let (widths, rest) = bytes.split_at(PARTS);
            bytes = rest;
            for width in widths.iter().map(|w| usize::from(*w)) {
                if out.len() >= count {
                    break;
                }
                let (part, rest) = bytes.split_at(PART * width / 8);
                bytes = rest;
                for v in 0..PART {
                    let bit = |i: usize| u32::from(part[i / 8] >> (i % 8) & 1);
                    let above = (0..width).map(|b| bit(v * width + b) << b).sum::<u32>();
                    if out.len() < count {
                        out.push(out[out.len() - 1].wrapping_add(least).wrapping_add(above as i32));
                    }
                }
            }
        }
        assert!(bytes.is_empty());
        out.truncate(count);
        out
    }

    proptest! {
        #[test]
        fn lengths_read_back(values in proptest::collection::vec(prop_oneof![0i32..300, any::<i32>()], 0..600)) {
            let mut out = Vec::new();
            encode(&values, &mut out);
            prop_assert!(out.len() <= bytes_max(values.len()));
            prop_assert_eq!(decode(&out), values);
        }
    }
}
