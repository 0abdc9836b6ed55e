//! Points of a series to Prometheus chunks. Source: Prometheus' chunk encodings XOR, histogram and float histogram.
//!
//! All histograms of a chunk share their layout: schema, zero threshold, spans of buckets, custom bounds. After the first one,
//! counters of a chunk do not fall. A stale marker has a histogram chunk of its own.

use std::collections::BTreeSet;

use storage::model::batch::HistogramRow;

use super::{
    bits::{Bits, Xor, fits},
    wire::{self, BucketSpan, Chunk},
};
use crate::promql::is_stale;

/// Samples of one chunk; Prometheus cuts there too.
pub const SAMPLES_MAX: usize = 120;

/// Empty buckets between two others that one span still holds.
const SPAN_GAP_MAX: i64 = 2;

const SCHEMA_CUSTOM: i32 = -53;

/// Histograms' hint that values may fall.
const GAUGE: i32 = 3;

pub fn of_samples(samples: &[(i64, f64)]) -> Vec<Chunk> {
    samples.chunks(SAMPLES_MAX).map(xor).collect()
}

fn chunk<T>(kind: i32, points: &[(i64, T)], data: Bits) -> Chunk {
    let time = |p: Option<&(i64, T)>| p.map_or(0, |p| p.0);
    Chunk { min_time_ms: time(points.first()), max_time_ms: time(points.last()), kind, data: data.into_bytes() }
}

/// `samples`: 1 to 65535.
fn xor(samples: &[(i64, f64)]) -> Chunk {
    let mut out = Bits::of((samples.len() as u16).to_be_bytes().to_vec());
    let (mut last, mut delta) = (0i64, 0i64);
    let mut values = Xor::default();
    for (i, (ts, value)) in samples.iter().enumerate() {
        match i {
            0 => {
                out.varint(*ts);
                out.bits(value.to_bits(), 64);
                values = Xor::after(*value);
            }
            1 => {
                delta = ts.wrapping_sub(last);
                out.uvarint(delta as u64);
                values.put(&mut out, *value);
            }
            _ => {
                let next = ts.wrapping_sub(last);
                put_time_change(&mut out, next.wrapping_sub(delta));
                delta = next;
                values.put(&mut out, *value);
            }
        }
        last = *ts;
    }
    chunk(wire::XOR, samples, out)
}

fn put_time_change(out: &mut Bits, change: i64) {
    if change == 0 {
        return out.bit(false);
    }
    for (prefix, prefix_bits, n) in [(0b10, 2, 14), (0b110, 3, 17), (0b1110, 4, 20)] {
        if fits(change, n) {
            out.bits(prefix, prefix_bits);
            return out.bits(change as u64, n);
        }
    }
    out.bits(0b1111, 4);
    out.bits(change as u64, 64);
}

/// Buckets that histograms of a chunk have.
struct Layout {
    positive: Vec<BucketSpan>,
    negative: Vec<BucketSpan>,
}

pub fn of_histograms(points: &[(i64, HistogramRow)]) -> Vec<Chunk> {
    let mut out = Vec::new();
    let mut rest = points;
    while !rest.is_empty() {
        let together = rest.windows(2).take(SAMPLES_MAX - 1).take_while(|w| continues(&w[0].1, &w[1].1)).count() + 1;
        let (now, later) = rest.split_at(together);
        out.push(histograms(now));
        rest = later;
    }
    out
}

/// Whether a histogram may follow another in one chunk.
fn continues(before: &HistogramRow, now: &HistogramRow) -> bool {
    let same = before.schema == now.schema
        && before.zero_threshold.to_bits() == now.zero_threshold.to_bits()
        && before.is_float == now.is_float
        && before.custom_bounds == now.custom_bounds
        && (before.reset_hint == GAUGE) == (now.reset_hint == GAUGE);
    if !same || is_stale(before.sum) || is_stale(now.sum) || now.reset_hint == 1 {
        return false;
    }
    now.reset_hint == GAUGE
        || (now.count >= before.count
            && now.zero_count >= before.zero_count
            && no_bucket_falls(
                (before.positive_offset, &before.positive_counts),
                (now.positive_offset, &now.positive_counts),
            )
            && no_bucket_falls(
                (before.negative_offset, &before.negative_counts),
                (now.negative_offset, &now.negative_counts),
            ))
}

fn count_at((offset, counts): (i32, &[f64]), index: i64) -> f64 {
    usize::try_from(index - i64::from(offset)).ok().and_then(|i| counts.get(i)).copied().unwrap_or(0.0)
}

fn no_bucket_falls(before: (i32, &[f64]), now: (i32, &[f64])) -> bool {
    before.1.iter().zip(i64::from(before.0)..).all(|(count, index)| count_at(now, index) >= *count)
}

/// Spans over all buckets that are filled in any of the sides.
fn spans<'a>(sides: impl Iterator<Item = (i32, &'a [f64])>) -> Vec<BucketSpan> {
    let filled: BTreeSet<i64> = sides
        .flat_map(|(offset, counts)| {
            counts.iter().zip(i64::from(offset)..).filter(|(c, _)| **c != 0.0).map(|(_, i)| i)
        })
        .collect();
    let mut out: Vec<BucketSpan> = Vec::new();
    // One past the last bucket that a span holds.
    let mut end = 0i64;
    for index in filled {
        let gap = index - end;
        match out.last_mut() {
            Some(last) if gap <= SPAN_GAP_MAX => last.length += (gap + 1) as u32,
            // Indexes are of 32 bits, so are gaps between them that any histogram has.
            _ => out.push(BucketSpan { offset: i32::try_from(gap).unwrap_or(i32::MAX), length: 1 }),
        }
        end = index + 1;
    }
    out
}

/// Counts of the buckets that the spans name.
fn counts(spans: &[BucketSpan], side: (i32, &[f64])) -> Vec<f64> {
    let mut out = Vec::new();
    let mut at = 0i64;
    for span in spans {
        at += i64::from(span.offset);
        out.extend((0..i64::from(span.length)).map(|i| count_at(side, at + i)));
        at += i64::from(span.length);
    }
    out
}

/// First absolute, then differences.
fn deltas(counts: &[f64]) -> Vec<i64> {
    let mut last = 0;
    counts.iter().map(|c| (*c as i64).wrapping_sub(std::mem::replace(&mut last, *c as i64))).collect()
}

fn layout(points: &[(i64, HistogramRow)]) -> Layout {
    Layout {
        positive: spans(points.iter().map(|(_, h)| (h.positive_offset, &h.positive_counts[..]))),
        negative: spans(points.iter().map(|(_, h)| (h.negative_offset, &h.negative_counts[..]))),
    }
}

/// `points`: at least one, all of one layout.
fn histograms(points: &[(i64, HistogramRow)]) -> Chunk {
    let first = &points[0].1;
    // Of a stale marker only its sum says anything.
    let stale = is_stale(first.sum);
    let layout = if stale { Layout { positive: Vec::new(), negative: Vec::new() } } else { layout(points) };
    let flags = match first.reset_hint {
        1 => 0b1000_0000,
        2 => 0b0100_0000,
        GAUGE => 0b1100_0000,
        _ => 0,
    };
    let mut head = (points.len() as u16).to_be_bytes().to_vec();
    head.push(flags);
    let mut out = Bits::of(head);
    put_zero_threshold(&mut out, if stale { 0.0 } else { first.zero_threshold });
    let schema = if stale { 0 } else { first.schema };
    out.varbit(schema.into());
    put_spans(&mut out, &layout.positive);
    put_spans(&mut out, &layout.negative);
    if schema == SCHEMA_CUSTOM {
        let bounds = first.custom_bounds.as_deref().unwrap_or_default();
        out.varbit_unsigned(bounds.len() as u64);
        bounds.iter().for_each(|b| put_bound(&mut out, *b));
    }
    if first.is_float {
        put_floats(&mut out, points, &layout, stale);
        chunk(wire::FLOAT_HISTOGRAM, points, out)
    } else {
        put_integers(&mut out, points, &layout, stale);
        chunk(wire::HISTOGRAM, points, out)
    }
}

/// A byte for zero and powers of two of a usual size.
fn put_zero_threshold(out: &mut Bits, threshold: f64) {
    let code = (1..=254u64).find(|b| f64::from_bits((b + 1023 - 244) << 52) == threshold);
    match code {
        _ if threshold == 0.0 => out.bits(0, 8),
        Some(code) => out.bits(code, 8),
        None => {
            out.bits(255, 8);
            out.bits(threshold.to_bits(), 64);
        }
    }
}

fn put_spans(out: &mut Bits, spans: &[BucketSpan]) {
    out.varbit_unsigned(spans.len() as u64);
    for span in spans {
        out.varbit_unsigned(span.length.into());
        out.varbit(span.offset.into());
    }
}

/// Whole thousandths in short, one added so that the first bit is set; others after a zero bit.
fn put_bound(out: &mut Bits, bound: f64) {
    let thousandths = (bound * 1000.0).round();
    if (0.0..=33_554_430.0).contains(&(bound * 1000.0)) && thousandths / 1000.0 == bound {
        out.varbit_unsigned(thousandths as u64 + 1);
    } else {
        out.bit(false);
        out.bits(bound.to_bits(), 64);
    }
}

/// A number that is told whole, then as its change, then as the change of that.
#[derive(Clone, Default)]
struct Changing {
    last: i64,
    delta: i64,
}

impl Changing {
    fn put(&mut self, out: &mut Bits, i: usize, value: i64) {
        let delta = value.wrapping_sub(self.last);
        match i {
            0 => {}
            1 => out.varbit(delta),
            _ => out.varbit(delta.wrapping_sub(self.delta)),
        }
        (self.last, self.delta) = (value, delta);
    }
}

fn put_integers(out: &mut Bits, points: &[(i64, HistogramRow)], layout: &Layout, stale: bool) {
    let (mut time, mut count, mut zero) = (Changing::default(), Changing::default(), Changing::default());
    let mut sum = Xor::default();
    let mut buckets: Vec<Changing> = Vec::new();
    for (i, (ts, h)) in points.iter().enumerate() {
        let whole = |c: f64| if stale { 0 } else { c as i64 };
        if i == 0 {
            out.varbit(*ts);
            out.varbit_unsigned(whole(h.count) as u64);
            out.varbit_unsigned(whole(h.zero_count) as u64);
            out.bits(h.sum.to_bits(), 64);
            sum = Xor::after(h.sum);
        }
        time.put(out, i, *ts);
        count.put(out, i, whole(h.count));
        zero.put(out, i, whole(h.zero_count));
        if i > 0 {
            sum.put(out, h.sum);
        }
        let mut now = deltas(&counts(&layout.positive, (h.positive_offset, &h.positive_counts)));
        now.extend(deltas(&counts(&layout.negative, (h.negative_offset, &h.negative_counts))));
        buckets.resize(now.len(), Changing::default());
        for (bucket, value) in buckets.iter_mut().zip(now) {
            if i == 0 {
                out.varbit(value);
            }
            bucket.put(out, i, value);
        }
    }
}

fn put_floats(out: &mut Bits, points: &[(i64, HistogramRow)], layout: &Layout, stale: bool) {
    let mut time = Changing::default();
    let mut values: Vec<Xor> = Vec::new();
    for (i, (ts, h)) in points.iter().enumerate() {
        if i == 0 {
            out.varbit(*ts);
        }
        time.put(out, i, *ts);
        let mut now = if stale { vec![0.0, 0.0, h.sum] } else { vec![h.count, h.zero_count, h.sum] };
        now.extend(counts(&layout.positive, (h.positive_offset, &h.positive_counts)));
        now.extend(counts(&layout.negative, (h.negative_offset, &h.negative_counts)));
        if i == 0 {
            now.iter().for_each(|v| out.bits(v.to_bits(), 64));
            values = now.into_iter().map(Xor::after).collect();
        } else {
            values.iter_mut().zip(now).for_each(|(x, v)| x.put(out, v));
        }
    }
}

/// The histogram as a message, with spans of its own.
pub fn message(ts_ms: i64, h: &HistogramRow) -> wire::Histogram {
    let side = |offset: i32, all: &[f64]| {
        let spans = spans(std::iter::once((offset, all)));
        let counts = counts(&spans, (offset, all));
        if h.is_float { (spans, Vec::new(), counts) } else { (spans, deltas(&counts), Vec::new()) }
    };
    let (positive_spans, positive_deltas, positive_counts) = side(h.positive_offset, &h.positive_counts);
    let (negative_spans, negative_deltas, negative_counts) = side(h.negative_offset, &h.negative_counts);
    let integer = |v: f64| (!h.is_float).then_some(v as u64);
    let float = |v: f64| h.is_float.then_some(v);
    wire::Histogram {
        count_int: integer(h.count),
        count_float: float(h.count),
        sum: h.sum,
        schema: h.schema,
        zero_threshold: h.zero_threshold,
        zero_count_int: integer(h.zero_count),
        zero_count_float: float(h.zero_count),
        negative_spans,
        negative_deltas,
        negative_counts,
        positive_spans,
        positive_deltas,
        positive_counts,
        reset_hint: h.reset_hint,
        timestamp: ts_ms,
        custom_values: h.custom_bounds.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
#[path = "chunk_tests.rs"]
mod tests;
