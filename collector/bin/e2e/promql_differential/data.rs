//! Series that both databases get by remote write: counters with resets, gauges, classic histograms, gaps and stale
//! markers. All sample times have odd milliseconds, so that no window's edge lies on a sample: Prometheus 2 counts the left
//! one in, Prometheus 3 does not.

use std::{net::SocketAddr, ops::Range};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use storage::model::{Labels, MetricBatch, MetricBatchBuilder, batch::SeriesMeta};

use crate::client::Client;

pub const STEP_MS: i64 = 15_000;
/// Samples of each series: two hours.
pub const SAMPLES: i64 = 480;

const STALE: u64 = 0x7ff0_0000_0000_0002;

/// A series with the value of each of its times; `None`: no sample.
pub struct Series {
    pub labels: Labels,
    shift_ms: i64,
    values: Vec<Option<f64>>,
}

pub fn series(seed: u64) -> Vec<Series> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut out: Vec<Series> = Vec::new();
    let mut push = |rng: &mut StdRng, pairs: &[(&str, String)], values: Vec<Option<f64>>| {
        let shift_ms = rng.random_range(1..400) * 2 + 1;
        let labels = Labels::from_pairs(pairs.iter().map(|(n, v)| ((*n).to_owned(), v.clone())));
        // Never at half a second or a whole one, where evaluations are.
        let shift_ms = if shift_ms == 500 { 501 } else { shift_ms };
        out.push(Series { labels, shift_ms, values });
    };
    let mut unique = 0.0;
    for job in ["api", "db", "web"] {
        for instance in 0..3 {
            let base = |name: &str| -> Vec<(&'static str, String)> {
                vec![("__name__", name.to_owned()), ("job", job.to_owned()), ("instance", format!("i{instance}"))]
            };
            for code in ["200", "404", "500"] {
                let mut pairs = base("requests_total");
                pairs.push(("code", code.to_owned()));
                let values = counter(&mut rng);
                push(&mut rng, &pairs, values);
            }
            unique += 1.0;
            // Distinct in every sample, so that ranks have no ties; in quarters and 1024ths, so that sums are exact.
            let mut level = 100.0;
            let values = (0..SAMPLES).map(|_| {
                level += f64::from(rng.random_range(-8..=8)) / 4.0;
                Some(level + unique / 1024.0)
            });
            let values: Vec<_> = values.collect();
            push(&mut rng, &base("temperature"), values);
            let values = (0..SAMPLES).map(|i| {
                // Present for a while, gone for a while, sometimes told to be gone.
                let there = (i / 40 + instance) % 3 != 0;
                let stale = i % 40 == 0 && !there && instance == 1;
                match (there, stale) {
                    (true, _) => Some(f64::from(rng.random_range(-40..40)) / 8.0),
                    (false, true) => Some(f64::from_bits(STALE)),
                    (false, false) => None,
                }
            });
            let values: Vec<_> = values.collect();
            push(&mut rng, &base("sparse"), values);
            let values = (0..SAMPLES).map(|_| match rng.random_range(0..12) {
                0 => Some(f64::NAN),
                1 => Some(f64::INFINITY),
                2 => Some(f64::NEG_INFINITY),
                _ => Some(f64::from(rng.random_range(-3..4))),
            });
            let values: Vec<_> = values.collect();
            push(&mut rng, &base("odd"), values);
            let mut pairs = base("build_info");
            pairs.push(("version", format!("v{}", instance % 2)));
            push(&mut rng, &pairs, vec![Some(1.0); SAMPLES as usize]);
            buckets(&mut rng, &base("latency_seconds"), &mut push);
        }
    }
    out
}

/// High enough that no window reaches down to zero: what a rate assumes there has changed between versions.
fn counter(rng: &mut StdRng) -> Vec<Option<f64>> {
    let mut value = 1e6 + f64::from(rng.random_range(0..1000));
    let resets = rng.random_bool(0.5);
    (0..SAMPLES)
        .map(|i| {
            value += f64::from(rng.random_range(0..10));
            if resets && i > 120 && rng.random_bool(0.01) {
                value = 5e5 + f64::from(rng.random_range(0..1000));
            }
            Some(value)
        })
        .collect()
}

fn buckets(
    rng: &mut StdRng,
    base: &[(&'static str, String)],
    push: &mut impl FnMut(&mut StdRng, &[(&str, String)], Vec<Option<f64>>),
) {
    const BOUNDS: [&str; 6] = ["0.1", "0.5", "1", "2.5", "10", "+Inf"];
    let mut counts = [1e6f64; BOUNDS.len()];
    let mut columns: Vec<Vec<Option<f64>>> = vec![Vec::new(); BOUNDS.len()];
    for _ in 0..SAMPLES {
        let mut all = 0.0;
        for (n, count) in counts.iter_mut().enumerate() {
            all += f64::from(rng.random_range(1..6));
            *count += all;
            columns[n].push(Some(*count));
        }
    }
    let named = |suffix: &str| {
        let mut pairs = base.to_vec();
        pairs[0].1 = format!("{}{suffix}", base[0].1);
        pairs
    };
    push(rng, &named("_count"), columns[BOUNDS.len() - 1].clone());
    for (bound, values) in BOUNDS.into_iter().zip(columns) {
        let mut pairs = named("_bucket");
        pairs.push(("le", bound.to_owned()));
        push(rng, &pairs, values);
    }
}

/// Sends everything to a remote write receiver, half an hour a request, oldest first. Gives the number of samples.
/// The samples of those indices; their number.
pub fn send(to: SocketAddr, series: &[Series], start_ms: i64, samples: Range<i64>) -> usize {
    const PIECE: i64 = 120;
    let mut sent = 0;
    let mut client = Client::new(to);
    for piece in samples.clone().step_by(PIECE as usize) {
        let mut builder = MetricBatchBuilder::new();
        for s in series {
            let id = builder.series(&s.labels, SeriesMeta::default());
            for i in piece..(piece + PIECE).min(samples.end) {
                if let Some(v) = s.values[i as usize] {
                    builder.sample(id, start_ms + i * STEP_MS + s.shift_ms, None, v);
                    sent += 1;
                }
            }
        }
        write(&mut client, &builder.finish());
    }
    sent
}

pub fn write(client: &mut Client, batch: &MetricBatch) {
    let body = pipeline::codec::remote_write::encode_v1(batch);
    let body = snap::raw::Encoder::new().compress_vec(&body).unwrap();
    let headers = [
        ("Content-Type", "application/x-protobuf"),
        ("Content-Encoding", "snappy"),
        ("X-Prometheus-Remote-Write-Version", "0.1.0"),
    ];
    let answer = client.send("POST", "/api/v1/write", &headers, &body).unwrap();
    assert!(answer.status / 100 == 2, "remote write: {} {}", answer.status, answer.text());
}
