//! Writing, reading and merging parts of logs and samples: rows/s and bytes/s of one core.
//!
//! `cargo bench -p sightline-storage --bench part [-- <million rows>]`. Dataset: the real lines of `../shared/data/logs`, each with
//! its numbers changed, in 128 streams and batches of 10,000 rows; without that folder (or the one in `SHARED_LOGS`),
//! invented lines.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch, new_null_array},
    datatypes::Int32Type,
};
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use storage::{
    ScanStats,
    compact::merge::{MergeOptions, merge},
    index::template::template_id,
    model::{Labels, LogBatchBuilder, LogRow, Table, TimeRange, Timestamp, labels::id_of_json, schema},
    part::{PartReader, PartScan, WriteOptions, write_part},
    scan::select::RowSelector,
};

const STREAMS: usize = 128;
const BATCH_ROWS: usize = 10_000;

fn main() {
    let millions: f64 = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(2.0);
    let rows = (millions * 1e6) as usize;
    let lines = lines();
    let (batches, bytes) = logs(&lines, rows);
    println!("logs: {rows} rows, {} MB of body, {} distinct lines", bytes / 1_000_000, lines.len());

    let started = Clock::start();
    let mut sum = 0i64;
    for b in &batches {
        let body = b.column_by_name("body").unwrap().as_string::<i32>();
        for i in 0..b.num_rows() {
            sum = sum.wrapping_add(template_id(body.value(i).as_bytes()));
        }
    }
    black_box(sum);
    report("template_id", rows, bytes, started.elapsed());

    let started = Clock::start();
    let mut file = Vec::new();
    let meta = write_part(Table::Logs, &batches, &WriteOptions::new(0, Timestamp(0)), &mut file).unwrap();
    report("write_part", rows, bytes, started.elapsed());
    println!(
        "  {} bytes, {:.2} bytes a row, {} row groups",
        meta.bytes_file,
        meta.bytes_file as f64 / rows as f64,
        meta.row_groups
    );
    sizes(&file);
    if let Some(path) = std::env::var_os("PART_OUT") {
        std::fs::write(path, &file).unwrap();
    }

    let started = Clock::start();
    let reader = open(file);
    println!("open: {:?}, {} KB in memory", started.elapsed(), reader.memory_size() / 1000);
    let started = Clock::start();
    let streams = reader.streams().unwrap();
    let runs: usize = streams.iter().map(|s| s.templates.len()).sum();
    println!("run index: {:?}, {} streams, {runs} runs", started.elapsed(), streams.len());
    let all: Vec<usize> = (0..schema::stored(Table::Logs).fields().len()).collect();
    scan("scan of all columns", &reader, &all, &RowSelector::All, bytes);
    scan("scan of ts and body", &reader, &[0, 10], &RowSelector::All, bytes);
    let one = RowSelector::Ids([streams[streams.len() / 2].stream_id].into());
    scan("scan of one stream, ts and body", &reader, &[0, 10, 18], &one, 0);

    for (name, interleaved) in [("merge of 8 in time order", false), ("merge of 8 interleaved", true)] {
        let mut parts: Vec<Vec<RecordBatch>> = vec![Vec::new(); 8];
        for (i, b) in batches.iter().enumerate() {
            parts[if interleaved { i % 8 } else { i * 8 / batches.len() }].push(b.clone());
        }
        let inputs: Vec<PartReader> = parts
            .iter()
            .map(|p| {
                let mut out = Vec::new();
                write_part(Table::Logs, p, &WriteOptions::new(0, Timestamp(0)), &mut out).unwrap();
                open(out)
            })
            .collect();
        let mut out = Vec::new();
        let started = Clock::start();
        let merged =
            merge(&inputs, Table::Logs, &MergeOptions::new(WriteOptions::new(1, Timestamp(0))), &mut out).unwrap();
        report(name, merged.rows_in as usize, bytes, started.elapsed());
    }

    let samples = samples(2_000_000);
    let rows: usize = samples.iter().map(RecordBatch::num_rows).sum();
    let mut file = Vec::new();
    let started = Clock::start();
    let meta = write_part(Table::MetricSamples, &samples, &WriteOptions::new(0, Timestamp(0)), &mut file).unwrap();
    report("samples: write_part", rows, rows * 16, started.elapsed());
    println!("  {:.2} bytes a sample", meta.bytes_file as f64 / rows as f64);
    sizes(&file);
    let reader = open(file);
    scan("samples: scan", &reader, &[0, 1, 3], &RowSelector::All, rows * 16);
}

/// CPU time of this thread, so that a busy machine does not change the figures; wall time where there is no schedstat.
struct Clock {
    cpu: Option<u64>,
    wall: Instant,
}

impl Clock {
    fn start() -> Self {
        Clock { cpu: cpu_nanos(), wall: Instant::now() }
    }

    fn elapsed(&self) -> Duration {
        match (self.cpu, cpu_nanos()) {
            (Some(from), Some(to)) => Duration::from_nanos(to - from),
            _ => self.wall.elapsed(),
        }
    }
}

fn cpu_nanos() -> Option<u64> {
    std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse().ok()
}

fn report(what: &str, rows: usize, bytes: usize, took: Duration) {
    let s = took.as_secs_f64();
    println!("{what}: {s:.3} s, {:.0} rows/s, {:.0} MB/s", rows as f64 / s, bytes as f64 / s / 1e6);
}

fn open(bytes: Vec<u8>) -> PartReader {
    PartReader::open(Arc::new(Bytes::from(bytes))).unwrap()
}

fn scan(what: &str, reader: &PartReader, columns: &[usize], selector: &RowSelector, bytes: usize) {
    let stats = ScanStats::default();
    let started = Clock::start();
    let scan = PartScan { columns, range: TimeRange::ALL, selector };
    let rows: usize = reader.scan(&scan, &stats).unwrap().map(|b| b.unwrap().num_rows()).sum();
    report(what, rows, bytes, started.elapsed());
    println!("  {} KB read", stats.bytes_read.into_inner() / 1000);
}

fn sizes(file: &[u8]) {
    use parquet::file::metadata::ParquetMetaDataReader;
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&Bytes::copy_from_slice(file)).unwrap();
    let columns = metadata.file_metadata().schema_descr().num_columns();
    let mut out: Vec<(i64, String)> = (0..columns)
        .map(|c| {
            let size = metadata.row_groups().iter().map(|g| g.column(c).compressed_size()).sum();
            (size, metadata.file_metadata().schema_descr().column(c).name().to_owned())
        })
        .collect();
    out.sort_by_key(|(n, _)| -n);
    let shown: Vec<String> = out.iter().take(8).map(|(n, c)| format!("{c} {}", n / 1000)).collect();
    println!("  KB: {}", shown.join(", "));
}

fn lines() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/logs");
    let mut out = Vec::new();
    let folder = std::env::var_os("SHARED_LOGS").unwrap_or_else(|| folder.into());
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let text = String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap_or_default()).into_owned();
        out.extend(text.lines().map(str::to_owned));
    }
    if out.is_empty() {
        eprintln!("SKIPPED: no shared log lines; inventing some");
        out = (0..2000).map(|i| format!("worker {} finished block blk_{i:x}77 of {} files", i % 7, i % 31)).collect();
    }
    out
}

/// Stored batches of log rows, and the bytes of their bodies.
fn logs(lines: &[String], rows: usize) -> (Vec<RecordBatch>, usize) {
    let rng = &mut StdRng::seed_from_u64(1);
    let labels: Vec<String> = (0..STREAMS)
        .map(|i| Labels::from_pairs([("app", format!("app-{}", i % 12)), ("pod", format!("pod-{i}"))]).to_json())
        .collect();
    let per_kind = lines.len().div_ceil(12);
    let (mut out, mut bytes, mut ts) = (Vec::new(), 0, 1_700_000_000_000_000_000i64);
    let mut at = 0;
    while at < rows {
        let n = BATCH_ROWS.min(rows - at);
        let mut builder = LogBatchBuilder::new();
        for _ in 0..n {
            let stream = rng.random_range(0..STREAMS);
            let kind = (stream % 12 * per_kind).min(lines.len() - 1);
            let kind = &lines[kind..(kind + per_kind).min(lines.len())];
            let line = &kind[rng.random_range(0..kind.len())];
            let body: String = line
                .chars()
                .map(|c| if c.is_ascii_digit() && rng.random_ratio(1, 3) { rng.random_range('0'..='9') } else { c })
                .collect();
            bytes += body.len();
            ts += rng.random_range(0..100_000);
            builder.push(&LogRow {
                ts,
                stream_labels: &labels[stream],
                service_name: Some(["web", "db", "queue"][stream % 3]),
                severity_number: Some([9, 13, 17][rng.random_range(0..3)]),
                severity_text: Some("INFO"),
                body: &body,
                resource_attrs: Some(&labels[stream]),
                ..LogRow::default()
            });
        }
        out.push(stored(&builder.finish()));
        at += n;
    }
    (out, bytes)
}

fn stored(input: &RecordBatch) -> RecordBatch {
    let labels = input.column(2).as_dictionary::<Int32Type>();
    let ids: Vec<i64> = labels.values().as_string::<i32>().iter().map(|v| id_of_json(v.unwrap())).collect();
    let streams: Int64Array = labels.keys().values().iter().map(|k| ids[*k as usize]).collect();
    let body = input.column_by_name("body").unwrap().as_string::<i32>();
    let templates: Int64Array = body.iter().map(|b| template_id(b.unwrap().as_bytes())).collect();
    let mut columns = input.columns().to_vec();
    columns.push(Arc::new(streams));
    columns.push(Arc::new(templates));
    RecordBatch::try_new(schema::head(Table::Logs), columns).unwrap()
}

/// Counters and gauges of 2,000 series, a scrape a batch.
fn samples(rows: usize) -> Vec<RecordBatch> {
    const SERIES: usize = 2000;
    let rng = &mut StdRng::seed_from_u64(2);
    let schema = schema::stored(Table::MetricSamples);
    let ids: Vec<i64> = (0..SERIES).map(|_| rng.random()).collect();
    let mut values: Vec<f64> = (0..SERIES).map(|_| f64::from(rng.random_range(0..100_000))).collect();
    (0..rows / SERIES)
        .map(|scrape| {
            for (i, v) in values.iter_mut().enumerate() {
                *v = if i % 2 == 0 {
                    *v + f64::from(rng.random_range(0..9))
                } else {
                    f64::from(rng.random_range(0..999)) / 10.0
                };
            }
            let times = vec![1_700_000_000_000 + scrape as i64 * 15_000; SERIES];
            let columns: Vec<ArrayRef> = vec![
                Arc::new(Int64Array::from(ids.clone())),
                Arc::new(Int64Array::from(times)),
                new_null_array(schema.field(2).data_type(), SERIES),
                Arc::new(arrow::array::Float64Array::from(values.clone())),
            ];
            RecordBatch::try_new(schema.clone(), columns).unwrap()
        })
        .collect()
}
