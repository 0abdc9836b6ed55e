//! Samples of one bucket to one aggregate.

use super::STALE_NAN_BITS;

/// What is kept of the samples of one series in one bucket. Times are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aggregate {
    /// End of the bucket, inclusive.
    pub end_ms: i64,
    /// Samples, stale markers not counted. At 0 there were only those: values are NaN, `sum` and `lost` 0.
    pub count: u64,
    /// Compensated, as `sum_over_time` sums.
    pub sum: f64,
    /// NaN only where every sample is.
    pub min: f64,
    pub max: f64,
    pub first_ms: i64,
    pub first: f64,
    pub last_ms: i64,
    pub last: f64,
    /// What resets inside the bucket took away.
    pub lost: f64,
    /// Time of the newest sample, where that is a stale marker.
    pub stale_ms: Option<i64>,
}

/// Aggregates of one series, appended to `out`. `ts`: [n] ms, ascending. `values`: [n], stale markers included.
/// `end_of`: end of the bucket of a time, never falling.
pub fn fold(ts: &[i64], values: &[f64], end_of: impl Fn(i64) -> i64, out: &mut Vec<Aggregate>) {
    let mut at = 0;
    while at < ts.len() {
        let end = end_of(ts[at]);
        let n = ts[at..].iter().take_while(|t| **t <= end).count().max(1);
        out.push(aggregate(end, &ts[at..at + n], &values[at..at + n]));
        at += n;
    }
}

fn aggregate(end_ms: i64, ts: &[i64], values: &[f64]) -> Aggregate {
    let newest = ts.len() - 1;
    let is_stale = |v: f64| v.to_bits() == STALE_NAN_BITS;
    let mut out = Aggregate {
        end_ms,
        count: 0,
        sum: 0.0,
        min: f64::NAN,
        max: f64::NAN,
        first_ms: ts[newest],
        first: f64::NAN,
        last_ms: ts[newest],
        last: f64::NAN,
        lost: 0.0,
        stale_ms: is_stale(values[newest]).then_some(ts[newest]),
    };
    // Neumaier's variant of Kahan's summation.
    let (mut sum, mut compensation) = (0.0f64, 0.0f64);
    for (t, v) in ts.iter().zip(values).filter(|(_, v)| !is_stale(**v)) {
        let (t, v) = (*t, *v);
        if out.count == 0 {
            (out.first_ms, out.first, out.min, out.max) = (t, v, v, v);
        } else {
            if v < out.last {
                out.lost += out.last;
            }
            if out.min.is_nan() || v < out.min {
                out.min = v;
            }
            if out.max.is_nan() || v > out.max {
                out.max = v;
            }
        }
        (out.last_ms, out.last) = (t, v);
        out.count += 1;
        let next = sum + v;
        if next.is_infinite() {
            compensation = 0.0;
        } else if sum.abs() >= v.abs() {
            compensation += (sum - next) + v;
        } else {
            compensation += (v - next) + sum;
        }
        sum = next;
    }
    out.sum = sum + compensation;
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_keeps_what_functions_need() {
        let stale = f64::from_bits(STALE_NAN_BITS);
        let mut out = Vec::new();
        let ts = [1, 5, 10, 11, 15, 20, 31];
        fold(&ts, &[7.0, 9.0, 2.0, 3.0, f64::NAN, stale, stale], |t| (t - 1).div_euclid(10) * 10 + 10, &mut out);
        assert_eq!(out.len(), 3);
        let a = &out[0];
        assert_eq!((a.end_ms, a.count, a.sum, a.min, a.max), (10, 3, 18.0, 2.0, 9.0));
        assert_eq!((a.first_ms, a.first, a.last_ms, a.last, a.lost, a.stale_ms), (1, 7.0, 10, 2.0, 9.0, None));
        let b = &out[1];
        assert_eq!((b.end_ms, b.count, b.min, b.max, b.last_ms, b.stale_ms), (20, 2, 3.0, 3.0, 15, Some(20)));
        assert!(b.sum.is_nan() && b.last.is_nan());
        assert_eq!((out[2].count, out[2].stale_ms, out[2].sum), (0, Some(31), 0.0));
    }
}
