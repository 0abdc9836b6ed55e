//! Functions of ranges and of histograms against their formulas, written down once more as plainly as can be: random
//! series with resets, gaps, NaN and stale markers, partly in a part, partly in the head.
//!
//! The cases are the same in every run; `SIGHTLINE_SEED=x` draws others.

use std::sync::Arc;

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};
use query::{
    limits::Limits,
    promql::{Engine, EngineOptions, InstantRequest, Value},
};
use storage::{
    Append, Environment, Store, StoreConfig,
    model::{
        Labels, MetricBatchBuilder, Table, TenantId, Timestamp,
        batch::{HistogramRow, SeriesMeta},
    },
    vfs::sim::{SimClock, SimVfs},
};
use tokio::runtime::Runtime;

const BASE: i64 = 1_767_225_600_000;
const STALE: u64 = 0x7ff0_0000_0000_0002;
const CASES: u32 = 64;

fn runner() -> TestRunner {
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let seed: u64 = std::env::var("SIGHTLINE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// An engine over what the builders give: the first in a part, the others in the head.
async fn engine(pieces: Vec<MetricBatchBuilder>) -> Engine {
    let mut config = StoreConfig::new("/store");
    config.background = false;
    let clock = Arc::new(SimClock::new(Timestamp::from_millis(BASE + 86_400_000)));
    let env = Environment { vfs: Arc::new(SimVfs::new(7)), clock, lock_dir: false, ..Environment::default() };
    let store = Store::open_on(config, env).await.unwrap();
    for (i, mut piece) in pieces.into_iter().enumerate() {
        let m = piece.finish();
        let rows = vec![
            (Table::MetricSeries, m.series),
            (Table::MetricSamples, m.samples),
            (Table::MetricHistograms, m.histograms),
        ];
        let rows: Vec<_> = rows.into_iter().filter(|(_, b)| b.num_rows() > 0).collect();
        if rows.is_empty() {
            continue;
        }
        let append = Append { tenant: TenantId::default_tenant(), rows, sources: vec![], batch_id: None };
        store.append(append).await.unwrap();
        if i == 0 {
            store.flush().await.unwrap();
        }
    }
    Engine::new(store, Limits::default(), EngineOptions::default())
}

/// The only value of the answer; none: no series.
async fn ask(engine: &Engine, query: &str, time_ms: i64) -> Option<f64> {
    let request = InstantRequest { query: query.into(), time_ms, ..InstantRequest::default() };
    let out = engine.instant(&TenantId::default_tenant(), request).await.unwrap_or_else(|e| panic!("{query}: {e}"));
    let Value::Vector { samples, .. } = out.value else { panic!("{query} gives no vector") };
    assert!(samples.len() <= 1, "{query}: {samples:?}");
    samples.first().map(|s| s.point.float().unwrap_or_else(|| panic!("{query}: {:?}", s.point)))
}

/// `scale`: what the numbers that were added up are like.
fn check(what: &str, found: Option<f64>, wanted: Option<f64>, scale: f64) -> Result<(), TestCaseError> {
    let same = match (found, wanted) {
        (Some(a), Some(b)) => a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-9 * scale.max(b.abs()),
        (a, b) => a.is_none() && b.is_none(),
    };
    prop_assert!(same, "{what}: {found:?} instead of {wanted:?}");
    Ok(())
}

fn labels(le: Option<f64>) -> Labels {
    let le = le.map(|b| ("le", if b.is_infinite() { "+Inf".to_owned() } else { b.to_string() }));
    Labels::from_pairs([("__name__", "m_total".to_owned())].into_iter().chain(le))
}

/// What one sample is, as a change of the last one.
#[derive(Clone, Debug)]
enum Change {
    Add(f64),
    Reset(f64),
    Nan,
    Stale,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        30 => (0u32..4000).prop_map(|n| Change::Add(f64::from(n) / 8.0)),
        3 => (-2000i32..0).prop_map(|n| Change::Add(f64::from(n) / 8.0)),
        3 => (0u32..800).prop_map(|n| Change::Reset(f64::from(n) / 8.0)),
        1 => Just(Change::Nan),
        1 => Just(Change::Stale),
    ]
}

/// Times in ms after `BASE`, each with its value.
fn float_series() -> impl Strategy<Value = Vec<(i64, f64)>> {
    let gap = prop_oneof![8 => Just(15_000i64), 4 => 1i64..60_000, 1 => 60_000i64..900_000];
    vec((gap, change()), 1..60).prop_map(|changes| {
        let (mut at, mut value) = (0, 0.0);
        let one = |(gap, change)| {
            at += gap;
            let stored = match change {
                Change::Add(n) => {
                    value += n;
                    value
                }
                Change::Reset(n) => {
                    value = n;
                    value
                }
                Change::Nan => f64::NAN,
                Change::Stale => f64::from_bits(STALE),
            };
            (at, stored)
        };
        changes.into_iter().map(one).collect()
    })
}

/// End of a window, as a share of the series' time and beyond it; its length and offset in ms.
fn windows() -> impl Strategy<Value = Vec<(f64, i64, i64)>> {
    vec((0.0..1.2f64, prop_oneof![1i64..120_000, 60_000i64..2_000_000], prop_oneof![Just(0i64), 1i64..100_000]), 1..5)
}

/// Share of the window's difference that the window as a whole has.
fn extrapolation(ts: &[i64], first: f64, difference: f64, (start, end): (i64, i64), counter: bool) -> f64 {
    let (head, last) = (ts[0], ts[ts.len() - 1]);
    let sampled = (last - head) as f64 / 1000.0;
    let between = sampled / (ts.len() - 1) as f64;
    let near = |seconds: f64| if seconds < 1.1 * between { seconds } else { between / 2.0 };
    let mut before = near((head - start) as f64 / 1000.0);
    let after = near((end - last) as f64 / 1000.0);
    if counter && difference > 0.0 && first >= 0.0 {
        before = before.min(sampled * first / difference);
    }
    (sampled + before + after) / sampled
}

fn extrapolated(samples: &[(i64, f64)], window: (i64, i64), counter: bool) -> Option<f64> {
    let ([(_, first), ..], [.., (_, last)]) = (samples, samples) else { return None };
    if samples.len() < 2 {
        return None;
    }
    let lost: f64 = samples.windows(2).filter(|p| counter && p[1].1 < p[0].1).map(|p| p[0].1).sum();
    let difference = last - first + lost;
    let ts: Vec<i64> = samples.iter().map(|s| s.0).collect();
    Some(difference * extrapolation(&ts, *first, difference, window, counter))
}

/// Slope a second and value at `at` of the line of least squares.
fn line(samples: &[(i64, f64)], at: i64) -> Option<(f64, f64)> {
    if samples.len() < 2 {
        return None;
    }
    if samples.iter().all(|s| s.1 == samples[0].1) {
        return Some((0.0, samples[0].1));
    }
    let n = samples.len() as f64;
    let x = |t: i64| (t - at) as f64 / 1000.0;
    let (mx, my) = (samples.iter().map(|s| x(s.0)).sum::<f64>() / n, samples.iter().map(|s| s.1).sum::<f64>() / n);
    let covariance: f64 = samples.iter().map(|s| (x(s.0) - mx) * (s.1 - my)).sum();
    let variance: f64 = samples.iter().map(|s| (x(s.0) - mx).powi(2)).sum();
    let slope = covariance / variance;
    Some((slope, my - slope * mx))
}

/// Like `f64::min` and `f64::max`: any number instead of NaN.
fn extreme(samples: &[(i64, f64)], of: fn(f64, f64) -> f64) -> Option<f64> {
    samples.iter().map(|s| s.1).reduce(of)
}

fn quantile_of(samples: &[(i64, f64)], q: f64) -> Option<f64> {
    let mut values: Vec<f64> = samples.iter().map(|s| s.1).collect();
    values.sort_by(|a, b| b.is_nan().cmp(&a.is_nan()).then(a.total_cmp(b)));
    let rank = q * (values.len().checked_sub(1)?) as f64;
    let (lower, upper) = (rank.floor() as usize, (rank.floor() as usize + 1).min(values.len() - 1));
    let weight = rank - rank.floor();
    Some(values[lower] * (1.0 - weight) + values[upper] * weight)
}

#[test]
fn functions_of_ranges_are_their_formulas() {
    let runtime = Runtime::new().unwrap();
    let input = (float_series(), windows(), 0.0..1.0f64, 0.0..1.0f64);
    let outcome = runner().run(&input, |(series, windows, cut, q)| {
        let cut = (series.len() as f64 * cut) as usize;
        let mut pieces = vec![MetricBatchBuilder::new(), MetricBatchBuilder::new()];
        for (i, (at, value)) in series.iter().enumerate() {
            let piece = &mut pieces[usize::from(i >= cut)];
            let id = piece.series(&labels(None), SeriesMeta::default());
            piece.sample(id, BASE + at, None, *value);
        }
        runtime.block_on(async {
            let engine = engine(pieces).await;
            let last = series[series.len() - 1].0;
            for (share, length, offset) in &windows {
                let end = (last as f64 * share) as i64;
                let start = end - length;
                let inside = |s: &&(i64, f64)| s.0 > start && s.0 <= end && s.1.to_bits() != STALE;
                let samples: Vec<(i64, f64)> = series.iter().filter(inside).copied().collect();
                let some = samples.first().map(|_| ());
                let n = samples.len() as f64;
                let sum: f64 = samples.iter().map(|s| s.1).sum();
                let size = samples.iter().map(|s| s.1.abs()).fold(1.0, f64::max);
                let pairs = || samples.windows(2).map(|p| (p[0].1, p[1].1));
                let variance = samples.iter().map(|s| (s.1 - sum / n).powi(2)).sum::<f64>() / n;
                let seconds = *length as f64 / 1000.0;
                let two = match &samples[..] {
                    [.., a, b] => Some((b.1 - a.1, a.1, b.1, (b.0 - a.0) as f64 / 1000.0)),
                    _ => None,
                };
                let at = end + offset;
                let fit = line(&samples, at);
                let window = (start, end);
                // Slopes are as uncertain as values over a gap.
                let steep = size * 1000.0;
                let cases = [
                    ("rate(R)", extrapolated(&samples, window, true).map(|v| v / seconds), size),
                    ("increase(R)", extrapolated(&samples, window, true), size),
                    ("delta(R)", extrapolated(&samples, window, false), size),
                    ("irate(R)", two.map(|(d, a, b, s)| if b < a { b / s } else { d / s }), size),
                    ("idelta(R)", two.map(|(d, ..)| d), size),
                    ("resets(R)", some.map(|()| pairs().filter(|(a, b)| b < a).count() as f64), 1.0),
                    (
                        "changes(R)",
                        some.map(|()| pairs().filter(|(a, b)| a != b && !(a.is_nan() && b.is_nan())).count() as f64),
                        1.0,
                    ),
                    ("deriv(R)", fit.map(|f| f.0), steep),
                    ("predict_linear(R, 100)", fit.map(|f| f.1 + 100.0 * f.0), steep * 1000.0),
                    ("sum_over_time(R)", some.map(|()| sum), size * n),
                    ("avg_over_time(R)", some.map(|()| sum / n), size),
                    ("count_over_time(R)", some.map(|()| n), 1.0),
                    ("min_over_time(R)", extreme(&samples, f64::min), 0.0),
                    ("max_over_time(R)", extreme(&samples, f64::max), 0.0),
                    ("last_over_time(R)", samples.last().map(|s| s.1), 0.0),
                    ("first_over_time(R)", samples.first().map(|s| s.1), 0.0),
                    ("stdvar_over_time(R)", some.map(|()| variance), size * size),
                    ("stddev_over_time(R)", some.map(|()| variance.sqrt()), size),
                    ("quantile_over_time(Q, R)", quantile_of(&samples, q), size),
                ];
                let range = format!(
                    "m_total[{length}ms]{}",
                    if *offset > 0 { format!(" offset {offset}ms") } else { String::new() }
                );
                for (query, wanted, scale) in cases {
                    let query = query.replace('R', &range).replace('Q', &q.to_string());
                    let found = ask(&engine, &query, BASE + at).await;
                    check(&format!("{query} at {at} over {samples:?}"), found, wanted, scale)?;
                }
            }
            Ok(())
        })
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}

/// Value below which the share `q` of what is in the buckets `(upper bound, count up to it)` lies.
fn classic_quantile(q: f64, buckets: &[(f64, f64)]) -> f64 {
    let total = buckets[buckets.len() - 1].1;
    if total == 0.0 {
        return f64::NAN;
    }
    let rank = q * total;
    let at = buckets[..buckets.len() - 1].iter().position(|b| b.1 >= rank);
    match at {
        None => buckets[buckets.len() - 2].0,
        Some(0) if buckets[0].0 <= 0.0 => buckets[0].0,
        Some(i) => {
            let (lower, below) = if i == 0 { (0.0, 0.0) } else { buckets[i - 1] };
            lower + (buckets[i].0 - lower) * (rank - below) / (buckets[i].1 - below)
        }
    }
}

#[test]
fn quantiles_of_classic_histograms_are_their_formula() {
    let runtime = Runtime::new().unwrap();
    let bounds = proptest::collection::btree_set(-40i32..400, 1..12);
    let input = (bounds, vec(vec(0u32..50, 13), 2..20), 0.0..1.0f64);
    let outcome = runner().run(&input, |(bounds, observed, q)| {
        let bounds: Vec<f64> = bounds.iter().map(|b| f64::from(*b) / 8.0).chain([f64::INFINITY]).collect();
        let mut pieces = vec![MetricBatchBuilder::new(), MetricBatchBuilder::new()];
        let mut counts = vec![0.0; bounds.len()];
        let mut history = Vec::new();
        for (i, more) in observed.iter().enumerate() {
            let at = BASE + i as i64 * 15_000;
            counts.iter_mut().zip(more).for_each(|(c, m)| *c += f64::from(*m));
            let mut below = 0.0;
            let cumulated: Vec<f64> = counts
                .iter()
                .map(|c| {
                    below += c;
                    below
                })
                .collect();
            let piece = &mut pieces[i % 2];
            for (bound, count) in bounds.iter().zip(&cumulated) {
                let id = piece.series(&labels(Some(*bound)), SeriesMeta::default());
                piece.sample(id, at, None, *count);
            }
            history.push(cumulated);
        }
        runtime.block_on(async {
            let engine = engine(pieces).await;
            let at = BASE + (observed.len() as i64 - 1) * 15_000;
            let last = &history[history.len() - 1];
            let buckets: Vec<(f64, f64)> = bounds.iter().copied().zip(last.iter().copied()).collect();
            let found = ask(&engine, &format!("histogram_quantile({q}, m_total)"), at).await;
            check(&format!("{q} of {buckets:?}"), found, Some(classic_quantile(q, &buckets)), 1.0)?;
            // The window is all there is, so that nothing is extrapolated but to the left, for all buckets by one factor
            // where none began at zero; the differences have the same quantile as their rates.
            let ms = (observed.len() as i64 - 1) * 15_000 + 1;
            let grown: Vec<(f64, f64)> =
                bounds.iter().copied().zip(last.iter().zip(&history[0]).map(|(b, a)| b - a)).collect();
            let query = format!("histogram_quantile({q}, delta(m_total[{ms}ms]))");
            check(
                &format!("{query} of {grown:?}"),
                ask(&engine, &query, at).await,
                Some(classic_quantile(q, &grown)),
                1.0,
            )
        })
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}

/// A native histogram as its buckets from below, each with its bounds; what is around zero is linear.
#[derive(Clone, Debug, Default)]
struct Dense {
    schema: i32,
    threshold: f64,
    sum: f64,
    /// Counts of the zero bucket, of positive and of negative ones.
    zero: f64,
    positive: (i32, Vec<f64>),
    negative: (i32, Vec<f64>),
}

impl Dense {
    fn count(&self) -> f64 {
        self.zero + self.positive.1.iter().sum::<f64>() + self.negative.1.iter().sum::<f64>()
    }

    fn row(&self) -> HistogramRow {
        HistogramRow {
            schema: self.schema,
            zero_threshold: self.threshold,
            zero_count: self.zero,
            count: self.count(),
            sum: self.sum,
            positive_offset: self.positive.0,
            positive_counts: self.positive.1.clone(),
            negative_offset: self.negative.0,
            negative_counts: self.negative.1.clone(),
            is_float: true,
            ..HistogramRow::default()
        }
    }

    fn counts(&self) -> Vec<f64> {
        [self.sum, self.zero].into_iter().chain(self.positive.1.clone()).chain(self.negative.1.clone()).collect()
    }

    fn with_counts(&self, counts: &[f64]) -> Dense {
        let (positive, negative) = counts[2..].split_at(self.positive.1.len());
        Dense {
            sum: counts[0],
            zero: counts[1],
            positive: (self.positive.0, positive.to_vec()),
            negative: (self.negative.0, negative.to_vec()),
            ..self.clone()
        }
    }

    fn bound(&self, index: i32) -> f64 {
        (f64::from(index) * f64::from(-self.schema).exp2()).exp2()
    }

    /// Lower and upper bound with the count, without empty ones.
    fn buckets(&self) -> Vec<(f64, f64, f64)> {
        let of = |(offset, counts): &(i32, Vec<f64>)| -> Vec<(f64, f64, f64)> {
            let one = |(i, c): (usize, &f64)| (self.bound(offset + i as i32 - 1), self.bound(offset + i as i32), *c);
            counts.iter().enumerate().map(one).filter(|b| b.2 > 0.0).collect()
        };
        let (above, below) = (of(&self.positive), of(&self.negative));
        let zero = match (above.is_empty(), below.is_empty()) {
            (false, true) => (0.0, self.threshold, self.zero),
            (true, false) => (-self.threshold, 0.0, self.zero),
            _ => (-self.threshold, self.threshold, self.zero),
        };
        let mut out: Vec<_> = below.iter().rev().map(|(lower, upper, c)| (-upper, -lower, *c)).collect();
        out.extend(Some(zero).filter(|z| z.2 > 0.0));
        out.extend(above);
        out
    }

    fn quantile(&self, q: f64) -> f64 {
        let mut rank = q * self.count();
        for (lower, upper, count) in self.buckets() {
            if rank <= count {
                let share = rank / count;
                // Around zero in equal steps, elsewhere in equal factors.
                return if lower <= 0.0 && upper >= 0.0 {
                    lower + (upper - lower) * share
                } else {
                    lower * (upper / lower).powf(share)
                };
            }
            rank -= count;
        }
        f64::NAN
    }

    /// How many are at most `value`.
    fn up_to(&self, value: f64) -> f64 {
        let share = |(lower, upper, count): (f64, f64, f64)| {
            if value >= upper {
                count
            } else if value <= lower {
                0.0
            } else if lower <= 0.0 && upper >= 0.0 {
                count * (value - lower) / (upper - lower)
            } else {
                count * (value / lower).ln() / (upper / lower).ln()
            }
        };
        self.buckets().into_iter().map(share).sum()
    }

    fn variance(&self) -> f64 {
        let mean = self.sum / self.count();
        let far = |(lower, upper, count): (f64, f64, f64)| {
            let middle = if lower <= 0.0 && upper >= 0.0 { 0.0 } else { (lower * upper).sqrt().copysign(lower) };
            count * (middle - mean).powi(2)
        };
        self.buckets().into_iter().map(far).sum::<f64>() / self.count()
    }
}

/// Histograms of one layout as a counter gives them: what is observed between two of them, or a reset before it.
fn native_series() -> impl Strategy<Value = Vec<(i64, Dense)>> {
    let layout = (-2i32..5, -9i32..9, -9i32..9, 1usize..9, 0usize..5);
    let gap = prop_oneof![6 => Just(15_000i64), 2 => 1i64..60_000];
    let steps = vec((gap, vec(1u32..40, 14), 0u32..12), 1..20);
    (layout, steps).prop_map(|((schema, above, below, positives, negatives), steps)| {
        let empty = Dense {
            schema,
            threshold: 1e-4,
            positive: (above, vec![0.0; positives]),
            negative: (below, vec![0.0; negatives]),
            ..Dense::default()
        };
        let (mut at, mut counts) = (0, empty.counts());
        let mut out = Vec::new();
        for (gap, more, reset) in steps {
            at += gap;
            if reset == 0 {
                counts.fill(0.0);
            }
            counts.iter_mut().zip(&more).for_each(|(c, m)| *c += f64::from(*m));
            out.push((at, empty.with_counts(&counts)));
        }
        out
    })
}

#[test]
fn functions_of_native_histograms_are_their_formulas() {
    let runtime = Runtime::new().unwrap();
    // Not a share that a whole number of observations has.
    let q = (1u32..999).prop_map(|n| f64::from(n) / 1000.0 + 0.000_123_4);
    let input = (native_series(), windows(), 0.0..1.0f64, q, (-20i32..20, 1i32..40));
    let outcome = runner().run(&input, |(series, windows, cut, q, (from, wide))| {
        let cut = (series.len() as f64 * cut) as usize;
        let mut pieces = vec![MetricBatchBuilder::new(), MetricBatchBuilder::new()];
        for (i, (at, histogram)) in series.iter().enumerate() {
            let piece = &mut pieces[usize::from(i >= cut)];
            let id = piece.series(&labels(None), SeriesMeta::default());
            piece.histogram(id, BASE + at, None, &histogram.row());
        }
        let (lower, upper) = (f64::from(from) / 4.0, f64::from(from + wide) / 4.0);
        let cases = |h: &Dense| {
            [
                ("histogram_count(H)".to_owned(), h.count()),
                ("histogram_sum(H)".to_owned(), h.sum),
                ("histogram_avg(H)".to_owned(), h.sum / h.count()),
                (format!("histogram_quantile({q}, H)"), h.quantile(q)),
                (format!("histogram_fraction({lower}, {upper}, H)"), (h.up_to(upper) - h.up_to(lower)) / h.count()),
                ("histogram_stdvar(H)".to_owned(), h.variance()),
                ("histogram_stddev(H)".to_owned(), h.variance().sqrt()),
            ]
        };
        runtime.block_on(async {
            let engine = engine(pieces).await;
            for (at, histogram) in &series {
                for (query, wanted) in cases(histogram) {
                    let query = query.replace('H', "m_total");
                    let found = ask(&engine, &query, BASE + at).await;
                    check(&format!("{query} of {histogram:?}"), found, Some(wanted), 1.0)?;
                }
            }
            let last = series[series.len() - 1].0;
            for (share, length, offset) in windows {
                let end = (last as f64 * share) as i64;
                let start = end - length;
                let samples: Vec<_> = series.iter().filter(|s| s.0 > start && s.0 <= end).collect();
                let query_of = |q: &str| {
                    let over = format!(
                        "rate(m_total[{length}ms]{})",
                        if offset > 0 { format!(" offset {offset}ms") } else { String::new() }
                    );
                    q.replace('H', &over)
                };
                if samples.len() < 2 {
                    let found = ask(&engine, &query_of("histogram_count(H)"), BASE + end + offset).await;
                    check("less than two histograms", found, None, 1.0)?;
                    continue;
                }
                let counts: Vec<Vec<f64>> = samples.iter().map(|s| s.1.counts()).collect();
                let mut grown: Vec<f64> =
                    counts[counts.len() - 1].iter().zip(&counts[0]).map(|(b, a)| b - a).collect();
                for pair in counts.windows(2) {
                    // Sums may fall; buckets may not.
                    if pair[1][1..].iter().zip(&pair[0][1..]).any(|(b, a)| b < a) {
                        grown.iter_mut().zip(&pair[0]).for_each(|(g, a)| *g += a);
                    }
                }
                let first = &samples[0].1;
                let ts: Vec<i64> = samples.iter().map(|s| s.0).collect();
                let difference = first.with_counts(&grown).count();
                let factor =
                    extrapolation(&ts, first.count(), difference, (start, end), true) / (length as f64 / 1000.0);
                grown.iter_mut().for_each(|g| *g *= factor);
                let wanted = first.with_counts(&grown);
                for (query, wanted) in cases(&wanted) {
                    let query = query_of(&query);
                    let found = ask(&engine, &query, BASE + end + offset).await;
                    check(&format!("{query} at {} over {samples:?}", end + offset), found, Some(wanted), 1.0)?;
                }
            }
            Ok(())
        })
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}
