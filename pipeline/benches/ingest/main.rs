//! What ingest costs from the bytes of a request to merged parts, in CPU time of the whole process.
//!
//!     cargo bench -p sightline-pipeline --bench ingest [-- logs spans samples] [--lines N] [--rounds N] [--spans N] [--samples N]
//!
//! Logs: `SIGHTLINE_BENCH_INPUT=FILE.ndjson` (fields ts, namespace, app, pod, node, level, msg, perhaps trace_id), or
//! lines made up here: 8 kinds, 128 streams. The same records go in as NDJSON and as OTLP protobuf, in requests of the
//! same records. Every request is decoded, appended to a store in a real directory (`fsync: group`), flushed whenever the
//! head is full, and at the end flushed and compacted until nothing is left to merge. Counted is user and system time of
//! those steps, not the making and reading of requests, so that a busy machine does not change the figures much.
//! Spans and samples go the same way. Samples: `SIGHTLINE_BENCH_SAMPLES=FOLDER` with `scrape_1s.parquet` and
//! `scrape_1s.series.json`, or series made up here.

mod logs;
mod measure;
mod samples;
mod spans;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |name: &str, default: usize| {
        let at = args.iter().position(|a| a == name);
        at.and_then(|i| args.get(i + 1)?.parse().ok()).unwrap_or(default)
    };
    let named: Vec<&str> =
        args.iter().map(String::as_str).filter(|a| ["logs", "spans", "samples"].contains(a)).collect();
    let wanted = |what: &str| named.is_empty() || named.contains(&what);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    if wanted("logs") {
        runtime.block_on(logs::run(number("--lines", 1_000_000), number("--rounds", 3)));
    }
    if wanted("spans") {
        runtime.block_on(spans::run(number("--spans", 500_000)));
    }
    if wanted("samples") {
        runtime.block_on(samples::run(number("--samples", 2_000_000)));
    }
}
