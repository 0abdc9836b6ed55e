//! Samples that each step of a query looks at, counted beside its evaluation for whoever asks for them.
//!
//! As Prometheus counts: an instant selector looks at one sample for each series that has a value, a range selector at all
//! samples in its window, and a function of a subquery at the values that the subquery gives. A subquery that nothing is
//! called on looks at what is below it. A native histogram is as many samples as it takes of 16 bytes ([`weight`]).
//! Series that `info` joins, and what edge modifiers see beyond a window, are not counted.
//!
//! Two counts are kept: what a step *looks at*, and what of it is *read*, which is what the step before did not have in its
//! window. An instant selector reads its sample at every step. What is the same at all steps is read at the first.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use storage::downsample::Aggregate;

use super::{Seen, Steps};
use crate::{
    fetch::SeriesData,
    promql::{histogram::Histogram, value::Point},
};

/// What one step looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    pub ts_ms: i64,
    pub samples: u64,
    /// Those of them that the step before did not have.
    pub read: u64,
}

/// The counts of a query's steps. Threads add to it.
#[derive(Debug)]
pub(in crate::promql) struct Tally {
    steps: Steps,
    /// [steps] looked at, and read.
    counts: Box<[(AtomicU64, AtomicU64)]>,
}

/// Samples as which a histogram counts: a sixteenth of the bytes that Prometheus holds of it and its time.
pub(in crate::promql) fn weight(h: &Histogram) -> u64 {
    /// Of its time, of what every one has, and of the headers of five lists.
    const FIXED: usize = 8 + 48 + 5 * 24;
    const WORD: usize = 8;
    let words = |side: &[(i32, f64)]| side.len() + side.chunk_by(|a, b| a.0 + 1 == b.0).count();
    ((FIXED + WORD * (words(&h.positive) + words(&h.negative) + h.custom.len())) / 16) as u64
}

fn weight_of(point: &Point) -> u64 {
    match point {
        Point::None => 0,
        Point::Float(_) => 1,
        Point::Histogram(h) => weight(h),
    }
}

impl Tally {
    pub fn new(steps: Steps) -> Self {
        Tally { steps, counts: (0..steps.count).map(|_| Default::default()).collect() }
    }

    /// In order of the steps.
    pub fn counted(&self) -> Vec<Counted> {
        let counted = |(i, (looked, read)): (usize, &(AtomicU64, AtomicU64))| Counted {
            ts_ms: self.steps.time(i),
            samples: looked.load(Ordering::Relaxed),
            read: read.load(Ordering::Relaxed),
        };
        self.counts.iter().enumerate().map(counted).collect()
    }

    /// Counts as one step of this what another counted of all of its steps.
    pub fn take_all(&self, step: usize, of: &Tally) {
        for (looked, read) in &of.counts {
            self.add(step, looked.load(Ordering::Relaxed), read.load(Ordering::Relaxed));
        }
    }

    fn add(&self, step: usize, looked: u64, read: u64) {
        if let Some(counts) = self.counts.get(step) {
            counts.0.fetch_add(looked, Ordering::Relaxed);
            counts.1.fetch_add(read, Ordering::Relaxed);
        }
    }

    /// Which of the query's steps a time is, some of which an evaluation has.
    fn place(&self, time: i64) -> usize {
        usize::try_from((time - self.steps.start) / self.steps.step.max(1)).unwrap_or(usize::MAX)
    }

    /// Values of an instant selector. `fixed`: it gives the same at all steps.
    pub fn values(&self, series: &[Option<Vec<Point>>], steps: &Steps, fixed: bool) {
        let mut looked = vec![0; steps.count];
        for points in series.iter().flatten() {
            looked.iter_mut().zip(points).for_each(|(n, point)| *n += weight_of(point));
        }
        let first = self.place(steps.start);
        for (i, n) in looked.into_iter().enumerate() {
            self.add(first + i, n, if fixed && first + i > 0 { 0 } else { n });
        }
    }

    /// Samples in windows `start < ts <= end` (ms), one for each of the steps.
    pub fn windows(&self, series: &[Arc<SeriesData>], windows: &[(i64, i64)], steps: &Steps) {
        let first = self.place(steps.start);
        let new = self.new_from(first, windows);
        let mut looked = vec![(0, 0); windows.len()];
        for data in series {
            let floats = |i: usize| data.ts.get(i).map(|t| (*t, 1));
            slide(floats, windows, &new, &mut looked);
            if !data.histograms.is_empty() {
                let weights: Vec<(i64, u64)> = data.histograms.iter().map(|(t, h)| (*t, weight(h))).collect();
                slide(|i| weights.get(i).copied(), windows, &new, &mut looked);
            }
        }
        looked.into_iter().enumerate().for_each(|(i, (looked, read))| self.add(first + i, looked, read));
    }

    /// As [`Tally::windows`], of samples that are there as aggregates.
    pub fn buckets(&self, series: &[Vec<Aggregate>], seen: &[Seen], steps: &Steps) {
        let first = self.place(steps.start);
        let windows: Vec<(i64, i64)> = seen.iter().map(|w| (w.start, w.end)).collect();
        let new = self.new_from(first, &windows);
        let mut looked = vec![(0, 0); windows.len()];
        for all in series {
            slide(|i| all.get(i).map(|a| (a.end_ms, a.count)), &windows, &new, &mut looked);
        }
        looked.into_iter().enumerate().for_each(|(i, (looked, read))| self.add(first + i, looked, read));
    }

    /// After which time (ms) the samples of each window are new.
    fn new_from(&self, first: usize, windows: &[(i64, i64)]) -> Vec<i64> {
        let fixed = windows.len() > 1 && windows[0] == windows[1];
        let of = |(i, (start, end)): (usize, &(i64, i64))| match first + i {
            0 => *start,
            _ if fixed => *end,
            _ => (*start).max(end - self.steps.step),
        };
        windows.iter().enumerate().map(of).collect()
    }
}

/// Adds what lies in each window and, of that, after the time in `new`. `sample`: times (ms) ascend; with how much it counts.
/// No window begins or ends before the one before it does.
fn slide(sample: impl Fn(usize) -> Option<(i64, u64)>, windows: &[(i64, i64)], new: &[i64], out: &mut [(u64, u64)]) {
    // Where the samples after a time begin, and how much all before them count.
    let reach = |(mut at, mut sum): (usize, u64), time: i64| {
        while let Some((_, n)) = sample(at).filter(|s| s.0 <= time) {
            (at, sum) = (at + 1, sum + n);
        }
        (at, sum)
    };
    let (mut start, mut middle, mut end) = ((0, 0), (0, 0), (0, 0));
    for ((window, new), out) in windows.iter().zip(new).zip(out) {
        start = reach(start, window.0);
        middle = reach(middle.max(start), *new);
        end = reach(end.max(middle), window.1);
        out.0 += end.1 - start.1;
        out.1 += end.1 - middle.1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_as_what_it_takes_of_sixteen_bytes() {
        let of = |positive: &[i32], negative: &[i32], custom: usize| {
            let side = |indexes: &[i32]| indexes.iter().map(|i| (*i, 1.0)).collect();
            let h = Histogram {
                positive: side(positive),
                negative: side(negative),
                custom: vec![0.0; custom],
                ..Histogram::default()
            };
            weight(&h)
        };
        assert_eq!(of(&[], &[], 0), 11);
        // 176 bytes, a span and four counts of 8 each.
        assert_eq!(of(&[0, 1, 2, 3], &[], 0), 13);
        assert_eq!(of(&[0, 1, 5, 6], &[-1], 0), 15);
        assert_eq!(of(&[0, 1], &[], 9), 17);
    }

    #[test]
    fn what_slides_is_what_each_window_has() {
        let samples: Vec<(i64, u64)> = (0..40).map(|i| (i * i, 1 + i as u64 % 3)).collect();
        let windows: Vec<(i64, i64)> = (0..30).map(|i| (i * 40 - 100, i * 40)).collect();
        let new: Vec<i64> = windows.iter().map(|w| w.1 - 40).collect();
        let mut out = vec![(0, 0); windows.len()];
        slide(|i| samples.get(i).copied(), &windows, &new, &mut out);
        let within =
            |from: i64, to: i64| samples.iter().filter(|s| from < s.0 && s.0 <= to).map(|s| s.1).sum::<u64>();
        for ((window, new), out) in windows.iter().zip(&new).zip(&out) {
            assert_eq!(*out, (within(window.0, window.1), within(*new, window.1)));
        }
    }
}
