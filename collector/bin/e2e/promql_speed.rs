//! How long PromQL takes over 10,000 series of a day, here and in Debian's Prometheus 2.42 with the same samples.
//!
//! On demand: `SIGHTLINE_PROMQL_BENCH=FOLDER SIGHTLINE_BIN=target/release/sightline cargo test --test e2e promql_speed --
//! --nocapture`. The folder keeps both databases, so that a second run only asks. Nothing is asserted on times.
//!
//! Data set: counters `node_work_total` of 10 jobs x 100 instances x 10 cpus, a sample every 15 s for 24 h (57.6 M); classic
//! histograms `bench_seconds_bucket` of 100 series x 12 buckets and native ones `bench_native_seconds` of 100 series x 24
//! buckets in the last two hours.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use super::{
    client::{Client, encode},
    promql_differential::Prometheus,
    server::Server,
};

const SERIES: usize = 10_000;
const STEP_MS: i64 = 15_000;
const PER_DAY: i64 = 5_760;
/// Samples of a series in one request, and series of it.
const PIECE: (i64, usize) = (40, 2_000);
const RUNS: usize = 7;

fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn labels_of(pairs: &[(&str, String)]) -> Vec<u8> {
    let mut pairs: Vec<_> = pairs.to_vec();
    pairs.sort();
    let mut out = Vec::new();
    for (name, value) in pairs {
        let mut label = Vec::new();
        put_bytes(&mut label, 1, name.as_bytes());
        put_bytes(&mut label, 2, value.as_bytes());
        put_bytes(&mut out, 1, &label);
    }
    out
}

fn counters() -> Vec<Vec<u8>> {
    let series = (0..SERIES).map(|n| {
        labels_of(&[
            ("__name__", "node_work_total".to_owned()),
            ("job", format!("job-{}", n / 1000)),
            ("instance", format!("10.0.{}.{}:9100", n / 1000, n / 10 % 100)),
            ("cpu", format!("{}", n % 10)),
            ("zone", format!("eu-{}", n % 3)),
        ])
    });
    series.collect()
}

fn buckets() -> Vec<Vec<u8>> {
    let bounds = ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf"];
    let pairs = (0..100).flat_map(|n| bounds.map(|le| (n, le)));
    let series = pairs.map(|(n, le)| {
        labels_of(&[
            ("__name__", "bench_seconds_bucket".to_owned()),
            ("job", format!("job-{}", n / 10)),
            ("instance", format!("i-{}", n % 10)),
            ("le", le.to_owned()),
        ])
    });
    series.collect()
}

fn natives() -> Vec<Vec<u8>> {
    let series = (0..100).map(|n| {
        labels_of(&[
            ("__name__", "bench_native_seconds".to_owned()),
            ("job", format!("job-{}", n / 10)),
            ("instance", format!("i-{}", n % 10)),
        ])
    });
    series.collect()
}

/// As [`request`], of native counter histograms with 24 buckets in a row.
fn native_request(series: &[Vec<u8>], first: i64, count: i64, start_ms: i64) -> Vec<u8> {
    const BUCKETS: i64 = 24;
    let zigzag = |v: i64| ((v << 1) ^ (v >> 63)) as u64;
    let (mut out, mut one) = (Vec::new(), Vec::new());
    for (n, labels) in series.iter().enumerate() {
        one.clear();
        one.extend_from_slice(labels);
        for i in first..first + count {
            let counts: Vec<i64> = (0..BUCKETS).map(|b| (i + 1) * (1 + (b * 7 + n as i64) % 11)).collect();
            let (mut histogram, mut span, mut deltas) = (Vec::new(), Vec::new(), Vec::new());
            histogram.push(1 << 3);
            put_varint(&mut histogram, counts.iter().sum::<i64>() as u64);
            histogram.push(3 << 3 | 1);
            histogram.extend_from_slice(&((i * 17) as f64).to_le_bytes());
            histogram.push(4 << 3);
            put_varint(&mut histogram, zigzag(2));
            histogram.push(5 << 3 | 1);
            histogram.extend_from_slice(&1e-128f64.to_le_bytes());
            histogram.extend_from_slice(&[6 << 3, 0]);
            span.push(1 << 3);
            put_varint(&mut span, zigzag(-12));
            span.push(2 << 3);
            put_varint(&mut span, BUCKETS as u64);
            put_bytes(&mut histogram, 11, &span);
            for (b, c) in counts.iter().enumerate() {
                put_varint(&mut deltas, zigzag(if b == 0 { *c } else { c - counts[b - 1] }));
            }
            put_bytes(&mut histogram, 12, &deltas);
            histogram.push(15 << 3);
            put_varint(&mut histogram, (start_ms + i * STEP_MS + n as i64) as u64);
            put_bytes(&mut one, 4, &histogram);
        }
        put_bytes(&mut out, 1, &one);
    }
    snap::raw::Encoder::new().compress_vec(&out).unwrap()
}

/// One request: `count` samples from number `first` on of each of `series`, which are numbered from `number`.
fn request(series: &[Vec<u8>], number: usize, first: i64, count: i64, start_ms: i64) -> Vec<u8> {
    let (mut out, mut one, mut sample) = (Vec::new(), Vec::new(), Vec::new());
    for (n, labels) in series.iter().enumerate() {
        let n = (n + number) as i64;
        one.clear();
        one.extend_from_slice(labels);
        for i in first..first + count {
            // A rate of its own with some noise, an integer as counters mostly are.
            let value = 1000 * n + i * (n % 50 + 1) + (i * 7919 + n * 104_729) % 13;
            sample.clear();
            sample.push(1 << 3 | 1);
            sample.extend_from_slice(&(value as f64).to_le_bytes());
            sample.push(2 << 3);
            put_varint(&mut sample, (start_ms + i * STEP_MS + n % 1000) as u64);
            put_bytes(&mut one, 2, &sample);
        }
        put_bytes(&mut out, 1, &one);
    }
    snap::raw::Encoder::new().compress_vec(&out).unwrap()
}

fn write(client: &mut Client, body: &[u8]) {
    let headers = [
        ("Content-Type", "application/x-protobuf"),
        ("Content-Encoding", "snappy"),
        ("X-Prometheus-Remote-Write-Version", "0.1.0"),
    ];
    loop {
        let answer = client.send("POST", "/api/v1/write", &headers, body).unwrap();
        match answer.status {
            200..300 => return,
            429 | 503 => std::thread::sleep(Duration::from_millis(200)),
            status => panic!("remote write: {status} {}", answer.text()),
        }
    }
}

fn parts(data: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(data) else { return 0 };
    entries
        .flatten()
        .map(|e| match e.file_type() {
            Ok(t) if t.is_dir() => parts(&e.path()),
            _ => usize::from(e.path().extension().is_some_and(|x| x == "parquet")),
        })
        .sum()
}

/// `to`: Sightline, and Prometheus where it does not have them yet.
fn fill(dir: &Path, to: &[SocketAddr], start_ms: i64) {
    let counters = counters();
    let begun = Instant::now();
    let mut took = vec![Duration::ZERO; to.len()];
    let mut clients: Vec<Client> = to.iter().copied().map(Client::new).collect();
    for first in (0..PER_DAY).step_by(PIECE.0 as usize) {
        for (n, series) in counters.chunks(PIECE.1).enumerate() {
            let body = request(series, n * PIECE.1, first, PIECE.0, start_ms);
            for (client, took) in clients.iter_mut().zip(&mut took) {
                let sent = Instant::now();
                write(client, &body);
                *took += sent.elapsed();
            }
        }
        if first >= PER_DAY - 480 {
            let body = request(&buckets(), 0, first, PIECE.0, start_ms);
            clients.iter_mut().for_each(|c| write(c, &body));
            let body = native_request(&natives(), first, PIECE.0, start_ms);
            clients.iter_mut().for_each(|c| write(c, &body));
        }
    }
    println!("written in {:?}: Sightline, Prometheus {took:?}", begun.elapsed());
    // Merged as far as it will be: no part comes or goes for a while.
    let (mut last, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_secs(40) {
        std::thread::sleep(Duration::from_secs(2));
        let now = parts(&dir.join("data"));
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    println!("{last} parts");
}

/// Milliseconds of the first run and the median of the others, and the answer's length.
fn measure(at: SocketAddr, path: &str) -> (f64, f64, usize) {
    let mut client = Client::new(at);
    let mut times: Vec<f64> = Vec::new();
    let mut bytes = 0;
    for _ in 0..=RUNS {
        let begun = Instant::now();
        let answer = client.get(path).unwrap();
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        bytes = answer.body.len();
    }
    let first = times.remove(0);
    times.sort_by(f64::total_cmp);
    (first, times[RUNS / 2], bytes)
}

#[test]
fn promql_speed() {
    let Some(dir) = std::env::var_os("SIGHTLINE_PROMQL_BENCH").map(PathBuf::from) else { return };
    assert!(
        Command::new("prometheus").arg("--version").output().is_ok_and(|o| o.status.success()),
        "needs prometheus"
    );
    std::fs::create_dir_all(&dir).unwrap();
    let alone = std::env::var_os("SIGHTLINE_PROMQL_BENCH_ALONE").is_some();
    let filled = dir.join("start");
    let new = !dir.join("data").exists();
    let server = Server::start(&dir.join("data"), &["--no-collect"]);
    let prometheus = (!alone).then(|| Prometheus::receiver_with(&dir, &["--enable-feature=native-histograms"]));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
    let start_ms = match std::fs::read_to_string(&filled) {
        Ok(text) => {
            let start_ms = text.trim().parse().unwrap();
            if new {
                fill(&dir, &[server.http], start_ms);
            }
            start_ms
        }
        Err(_) => {
            // Whole hours, the last of which is over.
            let start_ms = (now / 3_600_000 - 25) * 3_600_000;
            let theirs = prometheus.as_ref().expect("both are filled").http;
            fill(&dir, &[server.http, theirs], start_ms);
            std::fs::write(&filled, start_ms.to_string()).unwrap();
            start_ms
        }
    };
    let end = start_ms / 1000 + PER_DAY * STEP_MS / 1000;
    let range = |query: &str, seconds: i64, step: i64| {
        let start = end - seconds;
        format!("/api/v1/query_range?query={}&start={start}&end={end}&step={step}", encode(query))
    };
    let instant = |query: &str| format!("/api/v1/query?query={}&time={end}", encode(query));
    let labels = encode("{__name__=~\"node_.*\"}");
    let of = format!("match[]={labels}&start={}&end={end}", end - 3600);
    let cases = [
        ("sum by (job)(rate(m[5m])), 1 h, 60 s", range("sum by (job)(rate(node_work_total[5m]))", 3600, 60)),
        ("the same, 24 h, 5 m", range("sum by (job)(rate(node_work_total[5m]))", 86_100, 300)),
        ("topk(10, rate(m[5m])), 1 h, 60 s", range("topk(10, rate(node_work_total[5m]))", 3600, 60)),
        ("topk(10, m), 1 h, 60 s", range("topk(10, node_work_total)", 3600, 60)),
        ("sum(m), 24 h, 5 m", range("sum(node_work_total)", 86_100, 300)),
        (
            "max_over_time(m{cpu=\"1\"}[1h]), 24 h, 5 m",
            range("max(max_over_time(node_work_total{cpu=\"1\"}[1h]))", 82_800, 300),
        ),
        (
            "histogram_quantile(0.9, sum by (le, job)(rate(b[5m]))), 1 h, 60 s",
            range("histogram_quantile(0.9, sum by (le, job)(rate(bench_seconds_bucket[5m])))", 3600, 60),
        ),
        (
            "histogram_quantile(0.9, sum by (job)(rate(n[5m]))), native, 1 h, 60 s",
            range("histogram_quantile(0.9, sum by (job)(rate(bench_native_seconds[5m])))", 3600, 60),
        ),
        ("one series, 1 h, 15 s", range("node_work_total{instance=\"10.0.3.7:9100\",cpu=\"3\"}", 3600, 15)),
        ("labels {__name__=~\"node_.*\"}", format!("/api/v1/labels?{of}")),
        ("values of instance {__name__=~\"node_.*\"}", format!("/api/v1/label/instance/values?{of}")),
        ("series {__name__=~\"node_.*\"}", format!("/api/v1/series?{of}")),
        (
            "series {__name__=~\"node_.*\", job=\"job-3\"}",
            format!(
                "/api/v1/series?match[]={}&start={}&end={end}",
                encode("{__name__=~\"node_.*\",job=\"job-3\"}"),
                end - 3600
            ),
        ),
        ("instant sum by (job)(rate(m[5m]))", instant("sum by (job)(rate(node_work_total[5m]))")),
        ("instant topk(10, rate(m[5m]))", instant("topk(10, rate(node_work_total[5m]))")),
        ("instant topk(10, m)", instant("topk(10, node_work_total)")),
        (
            "instant histogram_quantile(0.9, sum by (le, job)(rate(b[5m])))",
            instant("histogram_quantile(0.9, sum by (le, job)(rate(bench_seconds_bucket[5m])))"),
        ),
        (
            "instant histogram_quantile(0.9, sum by (job)(rate(n[5m]))), native",
            instant("histogram_quantile(0.9, sum by (job)(rate(bench_native_seconds[5m])))"),
        ),
        ("instant one series", instant("node_work_total{instance=\"10.0.3.7:9100\",cpu=\"3\"}")),
    ];
    println!("{:<72} {:>10} {:>10} {:>12} {:>6}", "ms", "first", "warm", "Prometheus", "ratio");
    for (name, path) in &cases {
        let (first, warm, _) = measure(server.http, path);
        match &prometheus {
            Some(p) => {
                let (_, theirs, _) = measure(p.http, path);
                println!("{name:<72} {first:>10.1} {warm:>10.1} {theirs:>12.1} {:>6.2}", warm / theirs);
            }
            None => println!("{name:<72} {first:>10.1} {warm:>10.1}"),
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap_or_default();
    status.lines().filter(|l| l.starts_with("VmHWM") || l.starts_with("VmRSS")).for_each(|l| println!("{l}"));
}
