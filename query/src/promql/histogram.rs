//! Native histograms as the evaluator computes with them: float counts in sparse buckets.
//!
//! Bucket `i` of schema `n` (-4..=8) covers `(2^((i-1)/2^n), 2^(i/2^n)]`, mirrored for negative buckets; with schema
//! -53 bucket `i` ends at `custom[i]`, the last at infinity. Invariant: bucket lists are sorted by index.

/// Schema number of custom bucket bounds.
pub const CUSTOM_SCHEMA: i32 = -53;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ResetHint {
    #[default]
    Unknown,
    Reset,
    NotReset,
    Gauge,
}

impl ResetHint {
    pub fn from_code(code: i32) -> Self {
        match code {
            1 => ResetHint::Reset,
            2 => ResetHint::NotReset,
            3 => ResetHint::Gauge,
            _ => ResetHint::Unknown,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Default)]
pub struct Histogram {
    pub schema: i32,
    pub zero_threshold: f64,
    pub zero_count: f64,
    pub count: f64,
    pub sum: f64,
    pub positive: Vec<(i32, f64)>,
    pub negative: Vec<(i32, f64)>,
    pub custom: Vec<f64>,
    pub hint: ResetHint,
}

/// One bucket with its bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    pub lower: f64,
    pub upper: f64,
    pub count: f64,
}

/// Exponential and custom buckets do not mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncompatibleSchemas;

/// What adding or subtracting met on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Joined {
    /// One operand was known to be reset, the other known not to be.
    pub reset_collision: bool,
    /// Custom bounds differed; only the common ones remain.
    pub bounds_reconciled: bool,
}

/// Buckets with their indexes from the counts of consecutive ones, without empty ones.
pub fn populated(offset: i32, counts: &[f64]) -> Vec<(i32, f64)> {
    let mut out = Vec::with_capacity(counts.iter().filter(|count| **count != 0.0).count());
    let numbered = counts.iter().enumerate().map(|(i, count)| (offset.saturating_add(i as i32), *count));
    out.extend(numbered.filter(|b| b.1 != 0.0));
    out
}

/// Upper bound of bucket `index` of an exponential schema.
fn exponential_bound(index: i32, schema: i32) -> f64 {
    if schema <= 0 {
        let exponent = i64::from(index) << (-schema).min(30);
        return if exponent >= 1024 { f64::MAX } else { (exponent.max(-1100) as f64).exp2() };
    }
    let per_power = 1i32 << schema.min(30);
    let fraction = f64::from(index.rem_euclid(per_power)) / f64::from(per_power);
    let power = index.div_euclid(per_power);
    if power >= 1024 {
        return f64::MAX;
    }
    // In two steps, so that subnormal bounds do not vanish early.
    fraction.exp2() * f64::from(power).exp2()
}

impl Histogram {
    pub fn uses_custom_buckets(&self) -> bool {
        self.schema == CUSTOM_SCHEMA
    }

    fn bound(&self, index: i32) -> f64 {
        if !self.uses_custom_buckets() {
            return exponential_bound(index, self.schema);
        }
        if index < 0 {
            return f64::NEG_INFINITY;
        }
        self.custom.get(index as usize).copied().unwrap_or(f64::INFINITY)
    }

    fn positive_bucket(&self, (index, count): (i32, f64)) -> Bucket {
        Bucket { lower: self.bound(index.saturating_sub(1)), upper: self.bound(index), count }
    }

    fn negative_bucket(&self, (index, count): (i32, f64)) -> Bucket {
        Bucket { lower: -self.bound(index), upper: -self.bound(index.saturating_sub(1)), count }
    }

    /// Bucket `index` of the positive or the negative side, with its bounds.
    pub fn bucket_of(&self, index: i32, count: f64, positive: bool) -> Bucket {
        if positive { self.positive_bucket((index, count)) } else { self.negative_bucket((index, count)) }
    }

    /// Populated buckets in ascending order of bounds, zero bucket included.
    pub fn buckets(&self) -> Vec<Bucket> {
        let mut out: Vec<Bucket> = self.negative.iter().rev().map(|b| self.negative_bucket(*b)).collect();
        if self.zero_count != 0.0 && !self.uses_custom_buckets() {
            out.push(Bucket { lower: -self.zero_threshold, upper: self.zero_threshold, count: self.zero_count });
        }
        out.extend(self.positive.iter().map(|b| self.positive_bucket(*b)));
        out.retain(|b| b.count != 0.0);
        out
    }

    /// Without empty buckets.
    pub fn compact(mut self) -> Self {
        self.positive.retain(|b| b.1 != 0.0);
        self.negative.retain(|b| b.1 != 0.0);
        self
    }

    fn each(&mut self, f: impl Fn(f64) -> f64) {
        self.zero_count = f(self.zero_count);
        self.count = f(self.count);
        self.sum = f(self.sum);
        self.positive.iter_mut().chain(&mut self.negative).for_each(|b| b.1 = f(b.1));
    }

    /// Scales everything; a negative factor makes a gauge.
    pub fn scaled(mut self, factor: f64) -> Self {
        self.each(|v| v * factor);
        if factor < 0.0 {
            self.hint = ResetHint::Gauge;
        }
        self
    }

    pub fn divided(mut self, divisor: f64) -> Self {
        self.each(|v| v / divisor);
        if divisor == 0.0 {
            self.positive.clear();
            self.negative.clear();
        } else if divisor < 0.0 {
            self.hint = ResetHint::Gauge;
        }
        self
    }

    /// At a lower (or the same) resolution. Custom buckets stay as they are.
    pub fn at_schema(mut self, schema: i32) -> Self {
        if schema >= self.schema || self.uses_custom_buckets() {
            return self;
        }
        let shift = (self.schema - schema).min(31);
        for side in [&mut self.positive, &mut self.negative] {
            let mut out: Vec<(i32, f64)> = Vec::with_capacity(side.len());
            for (index, count) in side.drain(..) {
                let to = ((index - 1) >> shift) + 1;
                match out.last_mut() {
                    Some(last) if last.0 == to => last.1 += count,
                    _ => out.push((to, count)),
                }
            }
            *side = out;
        }
        self.schema = schema;
        self
    }

    /// Count of a zero bucket widened to at least `threshold`, and the threshold it ends up with: never inside a
    /// populated bucket.
    fn widened_zero(&self, mut threshold: f64) -> (f64, f64) {
        if threshold == self.zero_threshold {
            return (self.zero_count, threshold);
        }
        'again: loop {
            let mut count = self.zero_count;
            for b in self.positive.iter().map(|b| self.positive_bucket(*b)) {
                if b.lower >= threshold {
                    break;
                }
                count += b.count;
                if b.upper > threshold {
                    if b.count != 0.0 {
                        threshold = b.upper;
                    }
                    break;
                }
            }
            for b in self.negative.iter().map(|b| self.negative_bucket(*b)) {
                if b.upper <= -threshold {
                    break;
                }
                count += b.count;
                if b.lower < -threshold {
                    if b.count != 0.0 {
                        threshold = -b.lower;
                        continue 'again;
                    }
                    break;
                }
            }
            return (count, threshold);
        }
    }

    /// Whether a bucket begins inside the zero bucket.
    fn reaches_into_zero(&self) -> bool {
        let nearest = [self.positive.first(), self.negative.first()].into_iter().flatten();
        self.zero_threshold > 0.0
            && nearest.map(|b| exponential_bound(b.0 - 1, self.schema)).any(|bound| bound < self.zero_threshold)
    }

    /// Moves what lies inside a zero bucket of `threshold` into it. Returns the threshold it ended up with.
    fn widen_zero(&mut self, threshold: f64) -> f64 {
        let (count, threshold) = self.widened_zero(threshold);
        self.zero_count = count;
        self.zero_threshold = threshold;
        let schema = self.schema;
        for side in [&mut self.positive, &mut self.negative] {
            side.retain(|b| exponential_bound(b.0 - 1, schema) >= threshold);
        }
        threshold
    }

    /// Whether buckets of one index are the same bucket in both.
    fn has_layout_of(&self, other: &Histogram) -> bool {
        self.schema == other.schema && self.zero_threshold == other.zero_threshold && self.custom == other.custom
    }

    /// Brings both to one layout: what `other` becomes, and whether custom bounds had to go.
    fn reconcile(&mut self, other: &Histogram) -> Result<(Histogram, bool), IncompatibleSchemas> {
        if self.uses_custom_buckets() != other.uses_custom_buckets() {
            return Err(IncompatibleSchemas);
        }
        let mut other = other.clone();
        let mut reconciled = false;
        if self.uses_custom_buckets() {
            if self.custom != other.custom {
                reconciled = true;
                let common: Vec<f64> = self.custom.iter().copied().filter(|b| other.custom.contains(b)).collect();
                self.keep_bounds(&common);
                other.keep_bounds(&common);
            }
        } else {
            let schema = self.schema.min(other.schema);
            while self.zero_threshold != other.zero_threshold {
                if self.zero_threshold > other.zero_threshold {
                    other.widen_zero(self.zero_threshold);
                } else {
                    self.widen_zero(other.zero_threshold);
                }
            }
            *self = std::mem::take(self).at_schema(schema);
            other = other.at_schema(schema);
        }
        Ok((other, reconciled))
    }

    /// Merges custom buckets so that only the bounds in `keep` (a subset) remain.
    fn keep_bounds(&mut self, keep: &[f64]) {
        let mut out: Vec<(i32, f64)> = Vec::new();
        for &(index, count) in &self.positive {
            let upper = self.bound(index);
            let to = keep.iter().position(|b| *b >= upper).unwrap_or(keep.len()) as i32;
            match out.last_mut() {
                Some(last) if last.0 == to => last.1 += count,
                _ => out.push((to, count)),
            }
        }
        self.positive = out;
        self.custom = keep.to_vec();
    }

    fn join(&mut self, other: &Histogram, sign: f64) -> Result<Joined, IncompatibleSchemas> {
        let (mut reconciled, mut bounds_reconciled) = (None, false);
        if !self.has_layout_of(other) {
            let (other, bounds) = self.reconcile(other)?;
            (reconciled, bounds_reconciled) = (Some(other), bounds);
        }
        let other = reconciled.as_ref().unwrap_or(other);
        let mut reset_collision = false;
        use ResetHint::{Gauge, NotReset, Reset, Unknown};
        self.hint = match (self.hint, other.hint) {
            (a, b) if a == b => a,
            (Gauge, _) | (_, Gauge) => Gauge,
            (Reset, NotReset) | (NotReset, Reset) => {
                reset_collision = true;
                Unknown
            }
            _ => Unknown,
        };
        self.zero_count += sign * other.zero_count;
        self.count += sign * other.count;
        self.sum += sign * other.sum;
        merge(&mut self.positive, &other.positive, sign);
        merge(&mut self.negative, &other.negative, sign);
        Ok(Joined { reset_collision, bounds_reconciled })
    }

    pub fn add(&mut self, other: &Histogram) -> Result<Joined, IncompatibleSchemas> {
        self.join(other, 1.0)
    }

    /// The result is a gauge.
    pub fn sub(&mut self, other: &Histogram) -> Result<Joined, IncompatibleSchemas> {
        let joined = self.join(other, -1.0)?;
        self.hint = ResetHint::Gauge;
        Ok(joined)
    }

    /// Whether a counter was reset between `previous` and this.
    pub fn is_reset_since(&self, previous: &Histogram) -> bool {
        match self.hint {
            ResetHint::Reset => return true,
            ResetHint::NotReset => return false,
            ResetHint::Unknown | ResetHint::Gauge => {}
        }
        if self.count < previous.count || self.uses_custom_buckets() != previous.uses_custom_buckets() {
            return true;
        }
        if self.uses_custom_buckets() {
            let (mut now, mut before) = (self.clone(), previous.clone());
            if self.custom != previous.custom {
                let common: Vec<f64> = now.custom.iter().copied().filter(|b| before.custom.contains(b)).collect();
                now.keep_bounds(&common);
                before.keep_bounds(&common);
            }
            return any_below(&now.positive, &before.positive);
        }
        if self.schema > previous.schema || self.zero_threshold < previous.zero_threshold {
            return true;
        }
        if self.has_layout_of(previous) && !previous.reaches_into_zero() {
            return self.zero_count < previous.zero_count
                || any_below(&self.positive, &previous.positive)
                || any_below(&self.negative, &previous.negative);
        }
        let mut before = previous.clone();
        if before.widen_zero(self.zero_threshold) != self.zero_threshold || self.zero_count < before.zero_count {
            return true;
        }
        let before = before.at_schema(self.schema);
        any_below(&self.positive, &before.positive) || any_below(&self.negative, &before.negative)
    }

    /// Equal in value: layout, counts and sums, hints aside. NaN equals NaN.
    pub fn same_as(&self, other: &Histogram) -> bool {
        let eq = |a: f64, b: f64| a.to_bits() == b.to_bits() || a == b;
        let buckets = |a: &[(i32, f64)], b: &[(i32, f64)]| {
            let nonzero = |s: &[(i32, f64)]| s.iter().copied().filter(|b| b.1 != 0.0).collect::<Vec<_>>();
            nonzero(a) == nonzero(b)
        };
        self.schema == other.schema
            && eq(self.count, other.count)
            && eq(self.sum, other.sum)
            && self.custom == other.custom
            && self.zero_threshold == other.zero_threshold
            && eq(self.zero_count, other.zero_count)
            && buckets(&self.positive, &other.positive)
            && buckets(&self.negative, &other.negative)
    }

    /// Text form, as `count_values` labels it: `{count:3, sum:4, [-0.001,0.001]:1, (1,2]:2}`.
    pub fn to_text(&self) -> String {
        use std::fmt::Write as _;
        let number = super::value::format_general;
        let mut out = format!("{{count:{}, sum:{}", number(self.count), number(self.sum));
        for (rule, b) in self.ruled_buckets() {
            let (open, close) = match rule {
                0 => ('(', ']'),
                1 => ('[', ')'),
                2 => ('(', ')'),
                _ => ('[', ']'),
            };
            let _ = write!(out, ", {open}{},{}{close}:{}", number(b.lower), number(b.upper), number(b.count));
        }
        out.push('}');
        out
    }

    /// Populated buckets with their boundary rule: 0 `(l,u]`, 1 `[l,u)`, 3 `[l,u]`.
    pub fn ruled_buckets(&self) -> Vec<(u8, Bucket)> {
        self.buckets()
            .into_iter()
            .map(|b| {
                let rule = if self.uses_custom_buckets() {
                    if b.lower == f64::NEG_INFINITY { 3 } else { 0 }
                } else if b.lower < 0.0 && b.upper > 0.0 || (b.lower == 0.0 && b.upper == 0.0) {
                    3
                } else if b.upper <= 0.0 {
                    1
                } else {
                    0
                };
                (rule, b)
            })
            .collect()
    }

    /// Mean of the squared distance of bucket midpoints from the mean.
    pub fn variance(&self) -> f64 {
        let mean = self.sum / self.count;
        let mut sum = super::value::Kahan::default();
        for b in self.buckets() {
            let at = if self.uses_custom_buckets() {
                (b.upper + b.lower) / 2.0
            } else if b.lower <= 0.0 && b.upper >= 0.0 {
                0.0
            } else if b.upper < 0.0 {
                -(b.upper * b.lower).sqrt()
            } else {
                (b.upper * b.lower).sqrt()
            };
            sum.add(b.count * (at - mean) * (at - mean));
        }
        sum.total() / self.count
    }
}

/// Adds `sign` times the buckets `b` to `into`.
fn merge(into: &mut Vec<(i32, f64)>, b: &[(i32, f64)], sign: f64) {
    if into.len() == b.len() && into.iter().zip(b).all(|(x, y)| x.0 == y.0) {
        into.iter_mut().zip(b).for_each(|(x, y)| x.1 += sign * y.1);
        return;
    }
    let a = std::mem::take(into);
    let mut out = Vec::with_capacity(a.len().max(b.len()));
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        match (a.get(i), b.get(j)) {
            (Some(x), Some(y)) if x.0 == y.0 => {
                out.push((x.0, x.1 + sign * y.1));
                i += 1;
                j += 1;
            }
            (Some(x), y) if y.is_none_or(|y| x.0 < y.0) => {
                out.push(*x);
                i += 1;
            }
            (_, Some(y)) => {
                out.push((y.0, sign * y.1));
                j += 1;
            }
            (_, None) => break,
        }
    }
    *into = out;
}

/// Whether a bucket of `before` has a smaller count in `now`, or none.
fn any_below(now: &[(i32, f64)], before: &[(i32, f64)]) -> bool {
    let mut rest = now.iter().peekable();
    before.iter().any(|(index, count)| {
        while rest.next_if(|b| b.0 < *index).is_some() {}
        rest.next_if(|b| b.0 == *index).map_or(0.0, |b| b.1) < *count
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_follow_the_schema() {
        assert_eq!(exponential_bound(0, 0), 1.0);
        assert_eq!(exponential_bound(3, 0), 8.0);
        assert_eq!(exponential_bound(-1, -1), 0.25);
        assert!((exponential_bound(1, 1) - 2f64.sqrt()).abs() < 1e-15);
        assert!((exponential_bound(-1, 1) - 0.5f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn adding_goes_to_the_lower_resolution() {
        let mut a = Histogram { schema: 1, count: 2.0, positive: vec![(1, 1.0), (2, 1.0)], ..Default::default() };
        let b = Histogram { schema: 0, count: 1.0, positive: vec![(1, 1.0)], ..Default::default() };
        a.add(&b).unwrap();
        assert_eq!((a.schema, a.count, a.positive), (0, 3.0, vec![(1, 3.0)]));
    }
}
