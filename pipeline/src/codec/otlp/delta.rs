//! Delta points to cumulative ones, so that every series is one that PromQL can take a rate of.
//!
//! Of each delta stream (tenant, resource, scope, metric, attributes) the running total is held in memory. A run begins
//! with the first point, after a gap (a point starts later than the one before ended), when the shape of a histogram
//! changes, and when the state was lost (restart, eviction). At its begin, one millisecond after the point's start, a
//! point of zero is written, so that a rate sees the whole first step. The same point again gives the same total; an
//! older one is refused. Totals are bounded in number and bytes: those longest unused go first.

use std::collections::HashMap;

use opentelemetry_proto::tonic::metrics::v1::{
    ExponentialHistogramDataPoint, HistogramDataPoint, NumberDataPoint, exponential_histogram_data_point::Buckets,
    number_data_point::Value,
};
use parking_lot::Mutex;

use crate::codec::Reason;

/// Delta streams whose totals are held.
pub const STREAMS_MAX: usize = 200_000;
/// Bytes of all totals, roughly.
pub const BYTES_MAX: usize = 64 << 20;
/// Buckets of one side of a running exponential histogram; wider ones are merged down.
const BUCKETS_MAX: usize = 1024;
/// Coarsest scale that a native histogram has.
const SCALE_MIN: i32 = -4;
/// What an entry takes beside its buckets.
const ENTRY_BYTES: usize = 160;
/// From a point's start to the zero written for it: the point before may lie at the start itself.
const ZERO_AFTER_NS: u64 = 1_000_000;

/// Names one delta stream: a hash of all that identifies it.
pub type StreamKey = u128;

/// A point that totals are made of.
pub trait DeltaPoint: Clone {
    /// Start and end, ns since the epoch; 0 is unknown.
    fn start(&self) -> u64;
    fn end(&self) -> u64;
    fn set_times(&mut self, start: u64, end: u64);
    /// Without value, attributes and exemplars; the same shape.
    fn zero(&self) -> Self;
    /// Adds a later delta; `false`: the shapes differ, nothing is changed.
    fn add(&mut self, delta: &Self) -> bool;
    /// Keeps a point's attributes, exemplars and flags.
    fn dress(&mut self, point: &Self);
    fn undress_exemplars(&mut self);
    fn bytes(&self) -> usize;
    fn wrap(self) -> Total;
    fn of(total: &Total) -> Option<&Self>;
}

/// A running total, undressed.
#[derive(Clone, Debug)]
pub enum Total {
    Number(NumberDataPoint),
    Histogram(HistogramDataPoint),
    Exponential(ExponentialHistogramDataPoint),
}

struct Entry {
    total: Total,
    bytes: usize,
    used: u64,
}

#[derive(Default)]
struct Held {
    entries: HashMap<StreamKey, Entry>,
    bytes: usize,
    clock: u64,
}

/// The totals of all tenants.
#[derive(Default)]
pub struct Deltas(Mutex<Held>);

/// What takes the place of a delta point.
pub struct Converted<P> {
    /// The begin of a run.
    pub zero: Option<P>,
    pub point: P,
}

impl Deltas {
    /// `point`: its end is known (not 0).
    pub fn convert<P: DeltaPoint>(&self, key: StreamKey, point: &P) -> Result<Converted<P>, (Reason, String)> {
        let mut held = self.0.lock();
        held.clock += 1;
        let clock = held.clock;
        let known = held.entries.get(&key).and_then(|e| P::of(&e.total));
        let start = if point.start() < point.end() { point.start() } else { 0 };
        let mut begins = true;
        let mut total = point.zero();
        if let Some(before) = known {
            if point.end() < before.end() {
                let message = "a delta point is older than the one before it; it is not part of the total".to_owned();
                return Err((Reason::Temporality, message));
            }
            if point.end() == before.end() {
                // Sent again, after an answer that did not arrive.
                let mut same = before.clone();
                same.dress(point);
                return Ok(Converted { zero: None, point: same });
            }
            if start <= before.end() {
                total = before.clone();
                begins = !total.add(point);
            }
        }
        if begins {
            total = point.zero();
            if !total.add(point) {
                return Err((Reason::InvalidMetric, "a delta point cannot be added up".to_owned()));
            }
        }
        let run = if begins { start } else { total.start() };
        total.set_times(run, point.end());
        let bytes = ENTRY_BYTES + total.bytes();
        let entry = Entry { total: total.clone().wrap(), bytes, used: clock };
        held.bytes += bytes;
        if let Some(old) = held.entries.insert(key, entry) {
            held.bytes -= old.bytes;
        }
        held.evict();
        let zero = (begins && start > 0 && start + ZERO_AFTER_NS < point.end()).then(|| {
            let mut zero = point.zero();
            zero.dress(point);
            zero.undress_exemplars();
            zero.set_times(start, start + ZERO_AFTER_NS);
            zero
        });
        total.dress(point);
        Ok(Converted { zero, point: total })
    }

    /// Ends a stream: what comes next begins a new run.
    pub fn forget(&self, key: StreamKey) {
        let mut held = self.0.lock();
        if let Some(old) = held.entries.remove(&key) {
            held.bytes -= old.bytes;
        }
    }
}

impl Held {
    /// Halves what is held once it is too much, so that the cost is spread.
    fn evict(&mut self) {
        if self.entries.len() <= STREAMS_MAX && self.bytes <= BYTES_MAX {
            return;
        }
        let mut used: Vec<u64> = self.entries.values().map(|e| e.used).collect();
        let middle = used.len() / 2;
        let (_, cut, _) = used.select_nth_unstable(middle);
        let cut = *cut;
        self.entries.retain(|_, e| e.used >= cut);
        self.bytes = self.entries.values().map(|e| e.bytes).sum();
    }
}

/// A sum that is unknown on either side is unknown.
fn plus(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? + b?)
}

impl DeltaPoint for NumberDataPoint {
    fn start(&self) -> u64 {
        self.start_time_unix_nano
    }

    fn end(&self) -> u64 {
        self.time_unix_nano
    }

    fn set_times(&mut self, start: u64, end: u64) {
        (self.start_time_unix_nano, self.time_unix_nano) = (start, end);
    }

    fn zero(&self) -> Self {
        NumberDataPoint { value: Some(Value::AsInt(0)), ..NumberDataPoint::default() }
    }

    fn add(&mut self, delta: &Self) -> bool {
        let double = |v: Value| match v {
            Value::AsInt(i) => i as f64,
            Value::AsDouble(d) => d,
        };
        let (Some(total), Some(more)) = (self.value, delta.value) else { return false };
        // Integers stay exact as long as they fit.
        let exact = match (total, more) {
            (Value::AsInt(a), Value::AsInt(b)) => a.checked_add(b),
            _ => None,
        };
        self.value = Some(exact.map_or_else(|| Value::AsDouble(double(total) + double(more)), Value::AsInt));
        true
    }

    fn dress(&mut self, point: &Self) {
        self.attributes.clone_from(&point.attributes);
        self.exemplars.clone_from(&point.exemplars);
        self.flags = point.flags;
    }

    fn undress_exemplars(&mut self) {
        self.exemplars.clear();
    }

    fn bytes(&self) -> usize {
        0
    }

    fn wrap(self) -> Total {
        Total::Number(self)
    }

    fn of(total: &Total) -> Option<&Self> {
        if let Total::Number(p) = total { Some(p) } else { None }
    }
}

impl DeltaPoint for HistogramDataPoint {
    fn start(&self) -> u64 {
        self.start_time_unix_nano
    }

    fn end(&self) -> u64 {
        self.time_unix_nano
    }

    fn set_times(&mut self, start: u64, end: u64) {
        (self.start_time_unix_nano, self.time_unix_nano) = (start, end);
    }

    fn zero(&self) -> Self {
        HistogramDataPoint {
            sum: self.sum.map(|_| 0.0),
            bucket_counts: vec![0; self.bucket_counts.len()],
            explicit_bounds: self.explicit_bounds.clone(),
            ..HistogramDataPoint::default()
        }
    }

    fn add(&mut self, delta: &Self) -> bool {
        if self.explicit_bounds != delta.explicit_bounds || self.bucket_counts.len() != delta.bucket_counts.len() {
            return false;
        }
        // A counter past 64 bits begins anew.
        let Some(count) = self.count.checked_add(delta.count) else { return false };
        self.count = count;
        for (total, more) in self.bucket_counts.iter_mut().zip(&delta.bucket_counts) {
            *total = total.saturating_add(*more);
        }
        self.sum = plus(self.sum, delta.sum);
        true
    }

    fn dress(&mut self, point: &Self) {
        self.attributes.clone_from(&point.attributes);
        self.exemplars.clone_from(&point.exemplars);
        self.flags = point.flags;
    }

    fn undress_exemplars(&mut self) {
        self.exemplars.clear();
    }

    fn bytes(&self) -> usize {
        (self.bucket_counts.len() + self.explicit_bounds.len()) * 8
    }

    fn wrap(self) -> Total {
        Total::Histogram(self)
    }

    fn of(total: &Total) -> Option<&Self> {
        if let Total::Histogram(p) = total { Some(p) } else { None }
    }
}

impl DeltaPoint for ExponentialHistogramDataPoint {
    fn start(&self) -> u64 {
        self.start_time_unix_nano
    }

    fn end(&self) -> u64 {
        self.time_unix_nano
    }

    fn set_times(&mut self, start: u64, end: u64) {
        (self.start_time_unix_nano, self.time_unix_nano) = (start, end);
    }

    fn zero(&self) -> Self {
        ExponentialHistogramDataPoint {
            sum: self.sum.map(|_| 0.0),
            scale: self.scale,
            zero_threshold: self.zero_threshold,
            ..ExponentialHistogramDataPoint::default()
        }
    }

    fn add(&mut self, delta: &Self) -> bool {
        if self.zero_threshold != delta.zero_threshold {
            return false;
        }
        let (Some(count), Some(zero_count)) =
            (self.count.checked_add(delta.count), self.zero_count.checked_add(delta.zero_count))
        else {
            return false;
        };
        // The coarser scale, and coarser still until both sides fit.
        let mut scale = self.scale.min(delta.scale);
        let fits = |scale: i32| {
            [(&self.positive, &delta.positive), (&self.negative, &delta.negative)].into_iter().all(|(a, b)| {
                let (low, high) =
                    range(a.as_ref(), self.scale.abs_diff(scale), b.as_ref(), delta.scale.abs_diff(scale));
                high - low < BUCKETS_MAX as i64
            })
        };
        while scale > SCALE_MIN && !fits(scale) {
            scale -= 1;
        }
        if !fits(scale) {
            return false;
        }
        let (own, other) = (self.scale.abs_diff(scale), delta.scale.abs_diff(scale));
        self.positive = merged(self.positive.as_ref(), own, delta.positive.as_ref(), other);
        self.negative = merged(self.negative.as_ref(), own, delta.negative.as_ref(), other);
        (self.scale, self.count, self.zero_count) = (scale, count, zero_count);
        self.sum = plus(self.sum, delta.sum);
        true
    }

    fn dress(&mut self, point: &Self) {
        self.attributes.clone_from(&point.attributes);
        self.exemplars.clone_from(&point.exemplars);
        self.flags = point.flags;
    }

    fn undress_exemplars(&mut self) {
        self.exemplars.clear();
    }

    fn bytes(&self) -> usize {
        let side = |b: &Option<Buckets>| b.as_ref().map_or(0, |b| b.bucket_counts.len() * 8);
        side(&self.positive) + side(&self.negative)
    }

    fn wrap(self) -> Total {
        Total::Exponential(self)
    }

    fn of(total: &Total) -> Option<&Self> {
        if let Total::Exponential(p) = total { Some(p) } else { None }
    }
}

/// First and last bucket with a count, as an index of a coarser scale.
fn ends(b: Option<&Buckets>, shift: u32) -> Option<(i64, i64)> {
    let b = b?;
    let first = b.bucket_counts.iter().position(|c| *c > 0)? as i64;
    let last = b.bucket_counts.iter().rposition(|c| *c > 0)? as i64;
    let at = |i: i64| (i64::from(b.offset) + i) >> shift.min(62);
    Some((at(first), at(last)))
}

fn range(a: Option<&Buckets>, a_shift: u32, b: Option<&Buckets>, b_shift: u32) -> (i64, i64) {
    match (ends(a, a_shift), ends(b, b_shift)) {
        (Some(a), Some(b)) => (a.0.min(b.0), a.1.max(b.1)),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => (0, -1),
    }
}

/// Both sides' buckets at the coarser scale; the range fits, as `add` has seen.
fn merged(a: Option<&Buckets>, a_shift: u32, b: Option<&Buckets>, b_shift: u32) -> Option<Buckets> {
    let (low, high) = range(a, a_shift, b, b_shift);
    if high < low {
        return None;
    }
    let mut counts = vec![0u64; usize::try_from(high - low + 1).ok()?];
    for (side, shift) in [(a, a_shift), (b, b_shift)] {
        let Some(side) = side else { continue };
        for (i, count) in side.bucket_counts.iter().enumerate().filter(|(_, c)| **c > 0) {
            let at = ((i64::from(side.offset) + i as i64) >> shift.min(62)) - low;
            if let Some(total) = usize::try_from(at).ok().and_then(|at| counts.get_mut(at)) {
                *total = total.saturating_add(*count);
            }
        }
    }
    Some(Buckets { offset: i32::try_from(low).ok()?, bucket_counts: counts })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: u64 = 1_000_000_000;

    fn sum(start: u64, end: u64, value: i64) -> NumberDataPoint {
        NumberDataPoint {
            start_time_unix_nano: start * S,
            time_unix_nano: end * S,
            value: Some(Value::AsInt(value)),
            ..NumberDataPoint::default()
        }
    }

    #[test]
    fn steps_add_up_a_repeated_one_changes_nothing_and_a_gap_begins_anew() {
        let deltas = Deltas::default();
        for (point, want, begins) in [
            (sum(10, 20, 5), Some((10, 5)), true),
            (sum(20, 30, 7), Some((10, 12)), false),
            (sum(20, 30, 7), Some((10, 12)), false),
            (sum(10, 20, 5), None, false),
            (sum(0, 40, 1), Some((10, 13)), false),
            (sum(50, 60, 2), Some((50, 2)), true),
        ] {
            match (deltas.convert(1, &point), want) {
                (Ok(c), Some((start, value))) => {
                    assert_eq!(c.point.value, Some(Value::AsInt(value)));
                    assert_eq!((c.point.start_time_unix_nano, c.point.time_unix_nano), (start * S, point.end()));
                    assert_eq!(c.zero.map(|z| z.time_unix_nano), begins.then_some(start * S + ZERO_AFTER_NS));
                }
                (Err((Reason::Temporality, _)), None) => {}
                (other, _) => panic!("{:?}", other.map(|c| c.point)),
            }
        }
        // Another stream knows nothing of it.
        assert_eq!(deltas.convert(2, &sum(60, 70, 3)).ok().and_then(|c| c.point.value), Some(Value::AsInt(3)));
        deltas.forget(1);
        assert!(deltas.convert(1, &sum(60, 70, 3)).is_ok_and(|c| c.zero.is_some()));
    }

    #[test]
    fn integers_that_no_longer_fit_become_doubles() {
        let deltas = Deltas::default();
        assert!(deltas.convert(1, &sum(1, 2, i64::MAX)).is_ok());
        let total = deltas.convert(1, &sum(2, 3, i64::MAX)).ok().and_then(|c| c.point.value);
        assert_eq!(total, Some(Value::AsDouble(i64::MAX as f64 * 2.0)));
    }

    #[test]
    fn a_histogram_with_other_bounds_begins_anew() {
        let deltas = Deltas::default();
        let point = |end: u64, bound: f64| HistogramDataPoint {
            start_time_unix_nano: (end - 1) * S,
            time_unix_nano: end * S,
            count: 3,
            sum: Some(1.5),
            bucket_counts: vec![1, 2],
            explicit_bounds: vec![bound],
            ..HistogramDataPoint::default()
        };
        for (end, bound, count) in [(2, 1.0, 3), (3, 1.0, 6), (4, 2.0, 3), (5, 2.0, 6)] {
            let c = deltas.convert(1, &point(end, bound)).ok().unwrap();
            assert_eq!(
                (c.point.count, c.point.bucket_counts[1], c.zero.is_some()),
                (count, count * 2 / 3, count == 3)
            );
        }
    }

    #[test]
    fn what_is_held_is_bounded_and_the_longest_unused_goes() {
        let deltas = Deltas::default();
        for key in 0..STREAMS_MAX as u128 + 1 {
            assert!(deltas.convert(key, &sum(1, 2, 1)).is_ok());
        }
        let held = deltas.0.lock();
        assert!(held.entries.len() <= STREAMS_MAX / 2 + 1 && held.entries.contains_key(&(STREAMS_MAX as u128)));
        assert_eq!(held.bytes, held.entries.len() * ENTRY_BYTES);
    }

    proptest! {
        #[test]
        fn exponential_totals_keep_every_count_within_bounds(
            points in proptest::collection::vec(
                (-6i32..20, any::<i32>(), proptest::collection::vec(0u64..9, 0..40), 0u64..5), 1..8),
        ) {
            let deltas = Deltas::default();
            let mut want = 0;
            for (i, (scale, offset, counts, zeros)) in points.into_iter().enumerate() {
                let at = i as u64 + 1;
                let count = counts.iter().sum::<u64>() + zeros;
                let point = ExponentialHistogramDataPoint {
                    start_time_unix_nano: at * S,
                    time_unix_nano: (at + 1) * S,
                    count,
                    zero_count: zeros,
                    scale,
                    positive: Some(Buckets { offset, bucket_counts: counts }),
                    ..ExponentialHistogramDataPoint::default()
                };
                let Ok(c) = deltas.convert(1, &point) else { continue };
                want = if c.zero.is_some() { count } else { want + count };
                let p = c.point;
                let buckets = p.positive.map(|b| b.bucket_counts).unwrap_or_default();
                prop_assert!(buckets.len() <= BUCKETS_MAX);
                prop_assert_eq!(buckets.iter().sum::<u64>() + p.zero_count, p.count);
                prop_assert_eq!(p.count, want);
            }
        }
    }
}
