//! Functions of native histograms. Source: Prometheus 3.

use std::sync::Arc;

use crate::promql::histogram::{Bucket, Histogram, ResetHint};

/// What summing histograms met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SumNote {
    /// Exponential and custom buckets: no sum.
    Mixed,
    Reconciled,
    Collision,
}

/// Sum of one or more histograms; `None` when their kinds do not mix.
pub(super) fn sum(all: &[&Histogram], note: impl Fn(SumNote)) -> Option<Histogram> {
    let mut out = (*all.first()?).clone();
    let mut total = crate::promql::value::Kahan::default();
    let mut count = crate::promql::value::Kahan::default();
    total.add(out.sum);
    count.add(out.count);
    for h in &all[1..] {
        match out.add(h) {
            Ok(joined) => {
                if joined.bounds_reconciled {
                    note(SumNote::Reconciled);
                }
            }
            Err(_) => {
                note(SumNote::Mixed);
                return None;
            }
        }
        total.add(h.sum);
        count.add(h.count);
    }
    let has = |hint| all.iter().any(|h| h.hint == hint);
    if has(ResetHint::Reset) && has(ResetHint::NotReset) {
        note(SumNote::Collision);
    }
    out.sum = total.total();
    out.count = count.total();
    Some(out)
}

/// Mean of `n` histograms from their sum; where the sum overflows, from the histograms one after the other.
pub(super) fn mean<'a, I: Iterator<Item = &'a Histogram>>(sum: Histogram, n: f64, all: impl Fn() -> I) -> Histogram {
    let finite = |h: &Histogram| {
        h.count.is_finite()
            && !h.sum.is_infinite()
            && h.zero_count.is_finite()
            && h.positive.iter().chain(&h.negative).all(|b| b.1.is_finite())
    };
    if finite(&sum) || !all().all(finite) {
        return sum.divided(n);
    }
    let hint = sum.hint;
    let mut mean: Option<Histogram> = None;
    for (i, h) in all().enumerate() {
        let seen = (i + 1) as f64;
        mean = Some(match mean {
            None => h.clone(),
            Some(before) => {
                let mut next = before.scaled((seen - 1.0) / seen);
                // The sum above has shown that the layouts agree.
                let _ = next.add(&h.clone().divided(seen));
                next
            }
        });
    }
    let mut out = mean.unwrap_or_default();
    let mut sum = crate::promql::value::Mean::default();
    all().for_each(|h| sum.add(h.sum));
    out.sum = sum.value();
    out.hint = hint;
    out
}

/// What a quantile or a fraction has to say about NaN observations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NanNote {
    ResultIsNan,
    SkewedHigher,
    Excluded,
}

/// A zero bucket with observations on one side only ends at zero.
fn halve_zero(h: &Histogram, b: &mut Bucket) {
    if h.negative.is_empty() && !h.positive.is_empty() {
        b.lower = 0.0;
    } else if h.positive.is_empty() && !h.negative.is_empty() {
        b.upper = 0.0;
    }
}

pub(super) fn quantile(q: f64, h: &Histogram, note: impl Fn(NanNote)) -> f64 {
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    if h.count == 0.0 || q.is_nan() {
        return f64::NAN;
    }
    let forward = h.sum.is_nan() || q < 0.5;
    let mut buckets = h.buckets();
    if !forward {
        buckets.reverse();
    }
    let mut rank = if forward { q * h.count } else { (1.0 - q) * h.count };
    let mut count = 0.0;
    let mut bucket = Bucket { lower: 0.0, upper: 0.0, count: 0.0 };
    let mut rest = buckets.into_iter();
    for b in rest.by_ref() {
        bucket = b;
        count += b.count;
        if count >= rank {
            break;
        }
    }
    if h.uses_custom_buckets() {
        if bucket.lower == f64::NEG_INFINITY {
            if bucket.upper <= 0.0 {
                return bucket.upper;
            }
            bucket.lower = 0.0;
        } else if bucket.upper == f64::INFINITY {
            return bucket.lower;
        }
    } else if bucket.lower < 0.0 && bucket.upper > 0.0 {
        halve_zero(h, &mut bucket);
    }
    count = count.min(h.count);
    if count < rank {
        if h.sum.is_nan() {
            note(NanNote::ResultIsNan);
            return f64::NAN;
        }
        return if forward { bucket.upper } else { bucket.lower };
    }
    if h.sum.is_nan() && count + rest.map(|b| b.count).sum::<f64>() < h.count {
        note(NanNote::SkewedHigher);
    }
    rank = if forward { rank - (count - bucket.count) } else { count - rank };
    let fraction = rank / bucket.count;
    if h.uses_custom_buckets() || (bucket.lower <= 0.0 && bucket.upper >= 0.0) {
        return bucket.lower + (bucket.upper - bucket.lower) * fraction;
    }
    let (low, high) = (bucket.lower.abs().log2(), bucket.upper.abs().log2());
    if bucket.lower > 0.0 {
        (low + (high - low) * fraction).exp2()
    } else {
        -(high + (low - high) * (1.0 - fraction)).exp2()
    }
}

pub(super) fn fraction(lower: f64, upper: f64, h: &Histogram, note: impl Fn(NanNote)) -> f64 {
    if h.count == 0.0 || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    let buckets = h.buckets();
    let mut count = h.count;
    if h.sum.is_nan() {
        count = buckets.iter().map(|b| b.count).sum();
        if count < h.count {
            note(NanNote::Excluded);
        }
    }
    let (mut rank, mut low_rank, mut high_rank) = (0.0, None, None);
    for mut b in buckets {
        let zero = !h.uses_custom_buckets() && b.lower <= 0.0 && b.upper >= 0.0;
        if zero {
            halve_zero(h, &mut b);
        }
        if h.uses_custom_buckets() && b.lower == f64::NEG_INFINITY && b.upper > 0.0 {
            b.lower = 0.0;
        }
        let inside = |v: f64| -> f64 {
            if h.uses_custom_buckets() || zero {
                // Nothing to interpolate with: all of a first bucket lies below, and none of a last one.
                if b.lower == f64::NEG_INFINITY {
                    return rank + b.count;
                }
                if b.upper == f64::INFINITY {
                    return rank;
                }
                return rank + b.count * (v - b.lower) / (b.upper - b.lower);
            }
            let (low, high, at) = (b.lower.abs().log2(), b.upper.abs().log2(), v.abs().log2());
            let share = if v > 0.0 { (at - low) / (high - low) } else { 1.0 - (at - high) / (low - high) };
            rank + b.count * share
        };
        for (bound, slot) in [(lower, &mut low_rank), (upper, &mut high_rank)] {
            if slot.is_none() && b.lower >= bound {
                *slot = Some(rank);
            }
            if slot.is_none() && b.upper > bound {
                *slot = Some(inside(bound));
            }
        }
        if low_rank.is_some() && high_rank.is_some() {
            break;
        }
        rank += b.count;
    }
    let low = low_rank.map_or(count, |r| r.min(count));
    let high = high_rank.map_or(count, |r| r.min(count));
    (high - low) / h.count
}

/// Share of a custom bucket with an infinite side that stays when observations above (`keep_below`) or below `bound` are
/// cut off. There is nothing to interpolate with, except in a first bucket that is taken to begin at zero.
fn infinite_share(b: Bucket, bound: f64, keep_below: bool) -> f64 {
    let all = |yes: bool| if yes { 1.0 } else { 0.0 };
    if keep_below {
        return match () {
            () if bound >= b.upper => 1.0,
            () if b.upper == f64::INFINITY => 0.0,
            () if b.upper > 0.0 => bound.max(0.0) / b.upper,
            () => all(bound != f64::NEG_INFINITY),
        };
    }
    match () {
        () if bound == f64::NEG_INFINITY => 1.0,
        () if b.lower == f64::NEG_INFINITY && b.upper == f64::INFINITY => 0.0,
        () if b.upper == f64::INFINITY => all(bound != f64::INFINITY),
        () if b.upper > 0.0 && bound >= 0.0 => (1.0 - bound / b.upper).max(0.0),
        () => 0.0,
    }
}

/// Cuts off the observations above (`keep_below`) or below `bound`, interpolating inside a bucket.
pub(super) fn trim(h: &Histogram, bound: f64, keep_below: bool) -> Histogram {
    let mut out = h.clone();
    if bound.is_nan() {
        return h.clone();
    }
    let custom = h.uses_custom_buckets();
    let kept_share = |mut b: Bucket, zero: bool| -> f64 {
        if zero {
            halve_zero(h, &mut b);
        }
        if custom && (b.lower == f64::NEG_INFINITY || b.upper == f64::INFINITY) {
            return infinite_share(b, bound, keep_below);
        }
        let below = if bound >= b.upper {
            1.0
        } else if bound <= b.lower {
            0.0
        } else if custom || zero {
            (bound - b.lower) / (b.upper - b.lower)
        } else {
            let (low, high, at) = (b.lower.abs().log2(), b.upper.abs().log2(), bound.abs().log2());
            if b.lower >= 0.0 { (at - low) / (high - low) } else { 1.0 - (at - high) / (low - high) }
        };
        if keep_below { below } else { 1.0 - below }
    };
    let midpoint = |b: Bucket, zero: bool| -> f64 {
        let mut b = b;
        if zero {
            halve_zero(h, &mut b);
        }
        let (mut low, mut high) = (b.lower, b.upper);
        if keep_below {
            high = high.min(bound)
        } else {
            low = low.max(bound)
        }
        if custom && low == f64::NEG_INFINITY {
            if high <= 0.0 {
                return high;
            }
            low = 0.0;
        }
        if high == f64::INFINITY {
            return low;
        }
        if custom || zero {
            (low + high) / 2.0
        } else if high <= 0.0 {
            -(low * high).sqrt()
        } else {
            (low * high).sqrt()
        }
    };
    let bounds = h.clone();
    let (mut count, mut sum, mut cut) = (0.0, 0.0, false);
    let mut visit = |b: Bucket, zero: bool| -> f64 {
        if b.count == 0.0 {
            return 0.0;
        }
        let share = kept_share(b, zero);
        cut |= share < 1.0;
        let kept = b.count * share;
        count += kept;
        if kept != 0.0 {
            sum += kept * midpoint(b, zero);
        }
        kept
    };
    for (index, c) in &mut out.positive {
        *c = visit(bounds.bucket_of(*index, *c, true), false);
    }
    for (index, c) in &mut out.negative {
        *c = visit(bounds.bucket_of(*index, *c, false), false);
    }
    if !custom && h.zero_count != 0.0 {
        let zero = Bucket { lower: -h.zero_threshold, upper: h.zero_threshold, count: h.zero_count };
        out.zero_count = visit(zero, true);
    }
    if !cut {
        return h.clone();
    }
    out.count = count;
    out.sum = sum;
    out.compact()
}

/// A changed histogram as a point.
pub(super) fn point(h: Histogram) -> crate::promql::value::Point {
    crate::promql::value::Point::Histogram(Arc::new(h.compact()))
}
