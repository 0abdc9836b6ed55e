//! Chunks are read back by a reader written from the format alone.

use super::*;
use crate::promql::STALE_NAN_BITS;

/// Bits from the front.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bits(&mut self, n: usize) -> u64 {
        let mut out = 0;
        for i in self.at..self.at + n {
            out = out << 1 | u64::from(self.bytes[i / 8] >> (7 - i % 8) & 1);
        }
        self.at += n;
        out
    }

    fn bit(&mut self) -> bool {
        self.bits(1) == 1
    }

    /// As the format says: of n bits, what is above 2^(n-1) is negative.
    fn signed(&mut self, n: usize) -> i64 {
        let raw = self.bits(n);
        if n == 64 {
            return raw as i64;
        }
        if raw > 1 << (n - 1) { raw as i64 - (1 << n) } else { raw as i64 }
    }

    fn uvarint(&mut self) -> u64 {
        let (mut out, mut shift) = (0, 0);
        loop {
            let byte = self.bits(8);
            out |= (byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return out;
            }
        }
    }

    fn varint(&mut self) -> i64 {
        let raw = self.uvarint();
        (raw >> 1) as i64 ^ -((raw & 1) as i64)
    }

    fn width(&mut self) -> Option<usize> {
        let mut ones = 0;
        while ones < 8 && self.bit() {
            ones += 1;
        }
        [None, Some(3), Some(6), Some(9), Some(12), Some(18), Some(25), Some(56), Some(64)][ones]
    }

    fn varbit(&mut self) -> i64 {
        self.width().map_or(0, |n| self.signed(n))
    }

    fn varbit_unsigned(&mut self) -> u64 {
        self.width().map_or(0, |n| self.bits(n))
    }

    fn double(&mut self) -> f64 {
        f64::from_bits(self.bits(64))
    }
}

#[derive(Clone, Default)]
struct Value {
    bits: u64,
    leading: usize,
    trailing: usize,
}

impl Value {
    fn next(&mut self, r: &mut Reader<'_>) -> f64 {
        if r.bit() {
            if r.bit() {
                self.leading = r.bits(5) as usize;
                let n = r.bits(6) as usize;
                self.trailing = 64 - self.leading - if n == 0 { 64 } else { n };
            }
            let n = 64 - self.leading - self.trailing;
            self.bits ^= r.bits(n) << self.trailing;
        }
        f64::from_bits(self.bits)
    }
}

fn read_xor(data: &[u8]) -> Vec<(i64, u64)> {
    let n = u16::from_be_bytes([data[0], data[1]]);
    let mut r = Reader { bytes: data, at: 16 };
    let (mut ts, mut delta) = (0i64, 0i64);
    let mut value = Value::default();
    let mut out = Vec::new();
    for i in 0..n {
        match i {
            0 => {
                ts = r.varint();
                value.bits = r.bits(64);
            }
            1 => {
                delta = r.uvarint() as i64;
                ts += delta;
                value.next(&mut r);
            }
            _ => {
                let bits = match () {
                    () if !r.bit() => 0,
                    () if !r.bit() => 14,
                    () if !r.bit() => 17,
                    () if !r.bit() => 20,
                    () => 64,
                };
                delta += if bits == 0 { 0 } else { r.signed(bits) };
                ts += delta;
                value.next(&mut r);
            }
        }
        out.push((ts, value.bits));
    }
    out
}

#[test]
fn samples_come_back_bit_for_bit() {
    let mut state = 42u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 11
    };
    let mut ts = -5_000i64;
    let mut samples = Vec::new();
    for i in 0..1000u64 {
        let gap = match i % 7 {
            0 => 15_000,
            1 => 15_000 + next() % 3,
            2 => 1 + next() % 20_000,
            3 => 1 + next() % 200_000,
            4 => 1 + next() % 2_000_000,
            5 => 1 + next() % 20_000_000_000,
            _ => 8_192,
        };
        ts += gap as i64;
        let value = match i % 5 {
            0 => i as f64,
            1 => f64::from_bits(next() << 11 | next() >> 42),
            2 => f64::NAN,
            3 => f64::from_bits(STALE_NAN_BITS),
            _ => -0.1 * i as f64,
        };
        samples.push((ts, value));
    }
    let chunks = of_samples(&samples);
    assert_eq!(chunks.len(), 9);
    let back: Vec<(i64, u64)> = chunks.iter().flat_map(|c| read_xor(&c.data)).collect();
    let want: Vec<(i64, u64)> = samples.iter().map(|(t, v)| (*t, v.to_bits())).collect();
    assert_eq!(back, want);
    assert_eq!((chunks[0].min_time_ms, chunks[0].max_time_ms), (samples[0].0, samples[119].0));
}

/// Time, count, zero count, sum (as bits) and filled buckets: positive, negative.
type Shown = (i64, f64, f64, u64, Vec<(i64, f64)>, Vec<(i64, f64)>);

fn shown(ts: i64, h: &HistogramRow) -> Shown {
    let side = |offset: i32, counts: &[f64]| -> Vec<(i64, f64)> {
        counts.iter().zip(i64::from(offset)..).filter(|(c, _)| **c != 0.0).map(|(c, i)| (i, *c)).collect()
    };
    if is_stale(h.sum) {
        return (ts, 0.0, 0.0, h.sum.to_bits(), vec![], vec![]);
    }
    let positive = side(h.positive_offset, &h.positive_counts);
    let negative = side(h.negative_offset, &h.negative_counts);
    (ts, h.count, h.zero_count, h.sum.to_bits(), positive, negative)
}

fn read_histograms(chunk: &Chunk) -> Vec<Shown> {
    let data = &chunk.data;
    let n = u16::from_be_bytes([data[0], data[1]]);
    let mut r = Reader { bytes: data, at: 24 };
    let _threshold = match r.bits(8) {
        0 => 0.0,
        255 => r.double(),
        code => (code as f64 - 244.0).exp2(),
    };
    let schema = r.varbit();
    let mut spans = || -> Vec<i64> {
        let n = r.varbit_unsigned();
        let mut at = 0;
        let mut out = Vec::new();
        for _ in 0..n {
            let length = r.varbit_unsigned() as i64;
            at += r.varbit();
            out.extend(at..at + length);
            at += length;
        }
        out
    };
    let (positive, negative) = (spans(), spans());
    if schema == -53 {
        for _ in 0..r.varbit_unsigned() {
            let short = r.bit();
            if short {
                r.at -= 1;
                r.varbit_unsigned();
            } else {
                r.double();
            }
        }
    }
    let buckets = positive.len() + negative.len();
    let mut out = Vec::new();
    // (value, delta) of time, count, zero count and buckets; or values of their own.
    let mut ints = vec![(0i64, 0i64); 3 + buckets];
    let mut values = vec![Value::default(); 3 + buckets];
    for i in 0..n {
        let step = |r: &mut Reader<'_>, state: &mut (i64, i64)| {
            state.1 += r.varbit();
            state.0 += state.1;
        };
        if i == 0 {
            ints[0].0 = r.varbit();
        } else {
            step(&mut r, &mut ints[0]);
        }
        let counts: Vec<f64> = if chunk.kind == wire::HISTOGRAM {
            for state in &mut ints[1..3] {
                if i == 0 { state.0 = r.varbit_unsigned() as i64 } else { step(&mut r, state) }
            }
            if i == 0 {
                values[2].bits = r.bits(64)
            } else {
                values[2].next(&mut r);
            }
            for state in &mut ints[3..] {
                if i == 0 { state.0 = r.varbit() } else { step(&mut r, state) }
            }
            let absolute = |part: &[(i64, i64)]| {
                let mut total = 0;
                part.iter()
                    .map(|(d, _)| {
                        total += d;
                        total as f64
                    })
                    .collect::<Vec<f64>>()
            };
            let mut out = vec![ints[1].0 as f64, ints[2].0 as f64];
            out.extend(absolute(&ints[3..3 + positive.len()]));
            out.extend(absolute(&ints[3 + positive.len()..]));
            out
        } else {
            for v in &mut values {
                if i == 0 {
                    v.bits = r.bits(64)
                } else {
                    v.next(&mut r);
                }
            }
            values.iter().enumerate().filter(|(i, _)| *i != 2).map(|(_, v)| f64::from_bits(v.bits)).collect()
        };
        let filled = |indexes: &[i64], counts: &[f64]| {
            indexes.iter().copied().zip(counts.iter().copied()).filter(|(_, c)| *c != 0.0).collect::<Vec<_>>()
        };
        out.push((
            ints[0].0,
            counts[0],
            counts[1],
            values[2].bits,
            filled(&positive, &counts[2..2 + positive.len()]),
            filled(&negative, &counts[2 + positive.len()..]),
        ));
    }
    out
}

fn row(i: u64, is_float: bool) -> HistogramRow {
    let part = if is_float { 0.25 } else { 0.0 };
    let positive = vec![i as f64 + part, 0.0, 0.0, 0.0, 2.0 * i as f64, 1.0];
    let negative = vec![3.0, i as f64];
    let zero = i as f64;
    HistogramRow {
        schema: 3,
        zero_threshold: 0.001,
        zero_count: zero,
        count: positive.iter().chain(&negative).sum::<f64>() + zero,
        sum: 0.1 * i as f64 + 5.5,
        min: None,
        max: None,
        positive_offset: -3,
        positive_counts: positive,
        negative_offset: 2,
        negative_counts: negative,
        custom_bounds: None,
        reset_hint: 0,
        is_float,
    }
}

#[test]
fn histograms_come_back_whole_and_share_chunks_while_they_grow() {
    for is_float in [false, true] {
        let mut points: Vec<(i64, HistogramRow)> =
            (0..300u64).map(|i| (1_700_000_000_000 + i as i64 * 15_000 + (i % 3) as i64, row(i, is_float))).collect();
        // A reset, a stale marker, another layout, a gauge.
        points[50].1 = row(1, is_float);
        points[60].1 = HistogramRow { sum: f64::from_bits(STALE_NAN_BITS), ..row(0, is_float) };
        points[70].1.positive_offset = 5;
        points[80].1.reset_hint = 3;
        points[90].1.zero_threshold = 0.5f64.powi(20);
        let chunks = of_histograms(&points);
        let kind = if is_float { wire::FLOAT_HISTOGRAM } else { wire::HISTOGRAM };
        assert!(chunks.iter().all(|c| c.kind == kind));
        let back: Vec<Shown> = chunks.iter().flat_map(read_histograms).collect();
        let want: Vec<Shown> = points.iter().map(|(t, h)| shown(*t, h)).collect();
        assert_eq!(back, want);
        assert!(chunks.len() < 20, "{} chunks", chunks.len());
        // Gauges say so.
        let gauge = chunks.iter().find(|c| c.min_time_ms == points[80].0).unwrap();
        assert_eq!(gauge.data[2] >> 6, 0b11);
    }
}

#[test]
fn custom_bounds_are_in_the_layout() {
    let custom = HistogramRow {
        schema: SCHEMA_CUSTOM,
        zero_threshold: 0.0,
        zero_count: 0.0,
        count: 6.0,
        positive_offset: 0,
        positive_counts: vec![1.0, 2.0, 3.0],
        negative_counts: vec![],
        custom_bounds: Some(vec![0.1, 1e9]),
        ..row(0, false)
    };
    let points = vec![(1000, custom.clone()), (2000, custom)];
    let chunks = of_histograms(&points);
    assert_eq!(chunks.len(), 1);
    let want: Vec<Shown> = points.iter().map(|(t, h)| shown(*t, h)).collect();
    assert_eq!(read_histograms(&chunks[0]), want);
}

#[test]
fn a_message_has_spans_over_short_gaps_and_deltas() {
    let m = message(7, &row(4, false));
    let spans: Vec<(i32, u32)> = m.positive_spans.iter().map(|s| (s.offset, s.length)).collect();
    assert_eq!(spans, [(-3, 1), (3, 2)]);
    assert_eq!(m.positive_deltas, [4, 4, -7]);
    assert_eq!((m.count_int, m.count_float, m.timestamp), (Some(24), None, 7));
}
