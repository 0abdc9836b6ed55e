//! Samples over Prometheus remote write 1.0, and what they take on disk.

use std::collections::BTreeMap;

use arrow::{
    array::AsArray,
    datatypes::{Float64Type, Int32Type, Int64Type},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipeline::codec::{
    Decoded, Limits,
    otlp::wire::{put_bytes, put_int, put_varint},
    remote_write::{self, Families, Version},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::measure::{Requests, settle};

/// Samples of one request: Prometheus' own default.
const REQUEST_SAMPLES: usize = 2000;

const NOW: i64 = 1_900_000_000_000_000_000;

/// Labels of each series, and samples (time in ms, series, value) by time.
struct Scrapes {
    series: Vec<BTreeMap<String, String>>,
    samples: Vec<(i64, usize, f64)>,
}

pub async fn run(samples: usize) {
    let scrapes = match std::env::var_os("SIGHTLINE_BENCH_SAMPLES") {
        Some(folder) => read(std::path::Path::new(&folder)),
        None => make_up(samples),
    };
    println!("input: {} samples of {} series", scrapes.samples.len(), scrapes.series.len());
    let mut requests = Requests::new();
    for samples in scrapes.samples.chunks(REQUEST_SAMPLES) {
        let body = request(&scrapes.series, samples);
        let body = snap::raw::Encoder::new().compress_vec(&body).expect("snappy");
        requests.push(&body, samples.len() as u64);
    }
    let (limits, known) = (Limits::default(), Families::default());
    let decode = |body: &[u8]| -> Decoded {
        let body = snap::raw::Decoder::new().decompress_vec(body).expect("snappy");
        remote_write::decode(&body, Version::V1, &limits, NOW, &known).expect("protobuf").decoded
    };
    let cost = settle(&mut requests, decode).await;
    cost.print("samples, remote write 1.0", requests.records, requests.bytes);
}

/// `scrape_1s.parquet` (series Int32, ts_ms Int64, value Float64) and `scrape_1s.series.json` (label sets, by series).
fn read(folder: &std::path::Path) -> Scrapes {
    let open = |name: &str| std::fs::File::open(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let series = serde_json::from_reader(open("scrape_1s.series.json")).expect("label sets");
    let mut samples = Vec::new();
    for batch in
        ParquetRecordBatchReaderBuilder::try_new(open("scrape_1s.parquet")).expect("Parquet").build().expect("rows")
    {
        let batch = batch.expect("rows");
        let ids = batch.column(0).as_primitive::<Int32Type>().values();
        let times = batch.column(1).as_primitive::<Int64Type>().values();
        let values = batch.column(2).as_primitive::<Float64Type>().values();
        samples.extend((0..ids.len()).map(|i| (times[i], ids[i] as usize, values[i])));
    }
    samples.sort_by_key(|s| (s.0, s.1));
    Scrapes { series, samples }
}

/// A thousand series, scraped every 15 s: two counters to one gauge.
fn make_up(samples: usize) -> Scrapes {
    const SERIES: usize = 1000;
    let rng = &mut StdRng::seed_from_u64(1);
    let label = |k: &str, v: String| (k.to_owned(), v);
    let series = (0..SERIES)
        .map(|i| {
            let name = ["http_requests_total", "node_cpu_seconds_total", "process_resident_memory_bytes"][i % 3];
            BTreeMap::from([
                label("__name__", name.to_owned()),
                label("job", format!("job-{}", i % 7)),
                label("instance", format!("10.0.{}.{}:9100", i % 4, i % 50)),
                label("path", format!("/api/v1/thing/{}", i / 3)),
            ])
        })
        .collect();
    let mut state: Vec<f64> = (0..SERIES).map(|_| rng.random_range(0..1_000_000) as f64).collect();
    let made = (0..samples).map(|n| {
        let i = n % SERIES;
        state[i] += match i % 3 {
            0 => f64::from(rng.random_range(0..40)),
            1 => f64::from(rng.random_range(0..1500)) / 100.0,
            _ => f64::from(rng.random_range(-100..100)) * 4096.0,
        };
        (1_767_225_600_000 + (n / SERIES) as i64 * 15_000 + i as i64 % 9, i, state[i])
    });
    let mut samples: Vec<_> = made.collect();
    samples.sort_by_key(|s| (s.0, s.1));
    Scrapes { series, samples }
}

fn request(series: &[BTreeMap<String, String>], samples: &[(i64, usize, f64)]) -> Vec<u8> {
    let (mut out, mut one, mut part) = (Vec::new(), Vec::new(), Vec::new());
    for (time, id, value) in samples {
        one.clear();
        for (name, text) in &series[*id] {
            part.clear();
            put_bytes(&mut part, 1, name.as_bytes());
            put_bytes(&mut part, 2, text.as_bytes());
            put_bytes(&mut one, 1, &part);
        }
        part.clear();
        put_varint(&mut part, 1 << 3 | 1);
        part.extend_from_slice(&value.to_le_bytes());
        put_int(&mut part, 2, *time as u64);
        put_bytes(&mut one, 2, &part);
        put_bytes(&mut out, 1, &one);
    }
    out
}
