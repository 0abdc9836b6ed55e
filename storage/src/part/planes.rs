//! 64-bit numbers whose bytes lie in planes: byte `k` of all of them, then byte `k + 1` (`BYTE_STREAM_SPLIT`).
//!
//! **For** numbers of which few are wanted, each as near as any other, and which change in few of their bytes: times of an
//! hour in four, counters in three or four. Planes in which all bytes are the same are one byte.

use std::ops::Range;

pub(super) const WIDTH: usize = 8;

/// Numbers made at a time: they stay in the nearest cache.
const CHUNK: usize = 256;

pub(super) struct Planes {
    rows: usize,
    /// The bytes that are the same in all rows.
    base: u64,
    /// Which bytes differ, ascending.
    places: Vec<u8>,
    /// `rows` bytes of each of `places`.
    bytes: Box<[u8]>,
}

impl Planes {
    /// `split`: eight planes of equal length.
    pub fn of(split: &[u8]) -> Self {
        let rows = split.len() / WIDTH;
        let (mut base, mut places) = (0, Vec::new());
        let plane = |k: usize| &split[k * rows..(k + 1) * rows];
        for k in 0..WIDTH {
            let plane = plane(k);
            match plane.first() {
                Some(first) if plane[1..] == plane[..rows - 1] => base |= u64::from(*first) << (8 * k),
                Some(_) => places.push(k as u8),
                None => {}
            }
        }
        let mut bytes = Vec::with_capacity(places.len() * rows);
        places.iter().for_each(|k| bytes.extend_from_slice(plane(usize::from(*k))));
        Planes { rows, base, places, bytes: bytes.into() }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn memory_size(&self) -> usize {
        self.bytes.len() + self.places.capacity() + size_of::<Self>()
    }

    /// No number is greater.
    pub fn most(&self) -> u64 {
        self.places.iter().fold(self.base, |most, k| most | 0xff << (8 * k))
    }

    #[inline]
    pub fn get(&self, row: usize) -> u64 {
        let places = self.places.iter().enumerate();
        places.fold(self.base, |v, (n, k)| v | u64::from(self.bytes[n * self.rows + row]) << (8 * k))
    }

    /// Gives the numbers of `rows` in their order, some at a time.
    pub fn each(&self, rows: Range<usize>, mut give: impl FnMut(&[u64])) {
        let mut out = [0; CHUNK];
        let mut at = rows.start;
        while at < rows.end {
            let n = CHUNK.min(rows.end - at);
            self.fill(at, &mut out[..n]);
            give(&out[..n]);
            at += n;
        }
    }

    fn fill(&self, from: usize, out: &mut [u64]) {
        let plane = |n: usize| &self.bytes[n * self.rows + from..n * self.rows + from + out.len()];
        // What most columns are, in loops that the compiler makes wide ones of.
        match self.places.as_slice() {
            [] => out.fill(self.base),
            [0] => lowest([plane(0)], self.base, out),
            [0, 1] => lowest([plane(0), plane(1)], self.base, out),
            [0, 1, 2] => lowest([plane(0), plane(1), plane(2)], self.base, out),
            [0, 1, 2, 3] => lowest([plane(0), plane(1), plane(2), plane(3)], self.base, out),
            places => {
                out.fill(self.base);
                for (n, k) in places.iter().enumerate() {
                    let plane = &self.bytes[n * self.rows + from..n * self.rows + from + out.len()];
                    out.iter_mut().zip(plane).for_each(|(v, byte)| *v |= u64::from(*byte) << (8 * k));
                }
            }
        }
    }
}

/// Numbers of which the lowest `N` bytes differ.
#[inline]
fn lowest<const N: usize>(planes: [&[u8]; N], base: u64, out: &mut [u64]) {
    let planes = planes.map(|p| &p[..out.len()]);
    for (i, v) in out.iter_mut().enumerate() {
        let low = (0..N).fold(0, |v, k| v | u32::from(planes[k][i]) << (8 * k));
        *v = base | u64::from(low);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_become_the_numbers_they_were() {
        let noise = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i;
        // All bytes, none, the lowest ones, and some in between.
        for mask in [u64::MAX, 0, 0xff, 0xffff, 0xff_ffff, 0xffff_ffff, 0xff00_00ff_0000, 0xff_ffff_ffff, 1 << 63] {
            for rows in [1, 2, 29, 700_u64] {
                let values: Vec<u64> = (0..rows).map(|i| noise(i) & mask | 0x0107_0000_0000_0000 & !mask).collect();
                let split: Vec<u8> =
                    (0..WIDTH).flat_map(|k| values.iter().map(move |v| v.to_le_bytes()[k])).collect();
                let planes = Planes::of(&split);
                assert_eq!(planes.rows(), values.len());
                assert!(values.iter().all(|v| *v <= planes.most()));
                assert!((0..values.len()).all(|i| planes.get(i) == values[i]));
                for (start, end) in [(0, values.len()), (values.len() / 3, values.len()), (0, values.len() / 2)] {
                    let mut out = Vec::new();
                    planes.each(start..end, |v| out.extend_from_slice(v));
                    assert_eq!(out, values[start..end]);
                }
            }
        }
        assert_eq!(Planes::of(&[]).rows(), 0);
    }
}
