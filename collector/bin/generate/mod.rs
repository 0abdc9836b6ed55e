//! `sightline generate`: logs, points or spans at a rate to any endpoint, and what became of them.
//!
//! The data are a function of the seed: row `n` is the same in every run but for its time, and logs and spans carry `n`, so
//! that what is missing at the other end can be named. Requests go out when they are due, whether or not earlier ones were
//! answered, up to `--connections` at a time. A batch that fails is counted and not sent again.

mod data;
mod send;

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::ValueEnum;
use serde_json::json;
use tokio::task::JoinSet;

use self::{
    data::{SPANS_PER_TRACE, Shape},
    send::{Clock, Rows, Sender},
};
use crate::config::units::Span;

/// Latencies kept; beyond it later ones take the places of earlier ones.
const LATENCIES_MAX: usize = 1 << 20;

/// Distinct errors told; the rest is counted together.
const ERRORS_MAX: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Signal {
    Logs,
    Metrics,
    Traces,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// OTLP over HTTP, protobuf
    Otlp,
    /// OTLP over gRPC; the URL is that of the gRPC port
    OtlpGrpc,
    /// Loki push, JSON; logs only
    Loki,
    /// NDJSON; logs only
    Ndjson,
    /// Prometheus remote write 1.0; metrics only
    RemoteWrite,
}

#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    #[arg(value_enum)]
    signal: Signal,
    /// Endpoint; without a path that of the protocol is taken
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7600")]
    to: String,
    #[arg(long, value_enum, default_value = "otlp")]
    protocol: Protocol,
    /// Log records, points or spans a second; 0: as fast as they are taken
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// How long, for example 30s
    #[arg(long, value_name = "TIME", conflicts_with = "count")]
    duration: Option<Span>,
    /// How many [default: ten seconds of the rate]
    #[arg(long)]
    count: Option<u64>,
    /// Log streams
    #[arg(long, default_value_t = 100)]
    streams: u64,
    /// Metric series
    #[arg(long, default_value_t = 1000)]
    series: u64,
    /// Services that streams, series and spans belong to
    #[arg(long, default_value_t = 10)]
    services: u64,
    /// Equal seeds give equal data
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rows of one request
    #[arg(long, default_value_t = 1000)]
    batch: u64,
    /// Requests at a time
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// X-Scope-OrgID
    #[arg(long)]
    tenant: Option<String>,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
}

/// What the workers share.
struct Run {
    sender: Sender,
    signal: Signal,
    shape: Shape,
    clock: Clock,
    /// Rows a second; 0: no bound.
    rate: f64,
    batch: u64,
    count: u64,
    next: AtomicU64,
    stop: AtomicBool,
    began: Instant,
}

/// What became of the rows.
#[derive(Debug, Default)]
struct Outcome {
    sent: u64,
    acked: u64,
    requests: u64,
    bytes: u64,
    latencies: Vec<Duration>,
    /// The most that a request went out later than it was due.
    behind: Duration,
    errors: BTreeMap<String, u64>,
}

pub fn run(args: &GenerateArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start the runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(generate(args)) {
        Ok((outcome, took)) => {
            println!("{}", if args.json { outcome.json(took) } else { outcome.text(took) });
            if outcome.acked == outcome.sent && outcome.sent > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn generate(args: &GenerateArgs) -> Result<(Outcome, Duration), String> {
    let path = match (args.protocol, args.signal) {
        (Protocol::Loki, Signal::Logs) => "/loki/api/v1/push",
        (Protocol::Ndjson, Signal::Logs) => {
            "/ingest/ndjson?time_field=ts&message_field=msg&stream_fields=service_name,instance"
        }
        (Protocol::RemoteWrite, Signal::Metrics) => "/api/v1/write",
        (Protocol::RemoteWrite, _) => return Err("--protocol remote-write takes metrics only".to_owned()),
        (Protocol::Loki | Protocol::Ndjson, _) => return Err("--protocol loki and ndjson take logs only".to_owned()),
        (_, Signal::Logs) => "/v1/logs",
        (_, Signal::Metrics) => "/v1/metrics",
        (_, Signal::Traces) => "/v1/traces",
    };
    if !args.rate.is_finite() || args.rate < 0.0 {
        return Err("--rate: expected 0 or more".to_owned());
    }
    if args.batch == 0 || args.connections == 0 {
        return Err("--batch and --connections: expected 1 or more".to_owned());
    }
    let shape = Shape { seed: args.seed, services: args.services, streams: args.streams, series: args.series };
    let sender = Sender::new(&args.to, args.protocol, path, args.tenant.clone(), shape)?;
    let batch = match args.signal {
        // Whole traces.
        Signal::Traces => args.batch.next_multiple_of(SPANS_PER_TRACE),
        _ => args.batch,
    };
    let seconds = args.duration.map(|d| d.0.as_secs_f64());
    let count = match (args.count, seconds) {
        (Some(n), _) => n,
        (None, Some(_)) if args.rate == 0.0 => u64::MAX,
        (None, seconds) if args.rate > 0.0 => (args.rate * seconds.unwrap_or(10.0)) as u64,
        (None, _) => return Err("--rate 0 needs --count or --duration".to_owned()),
    };
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let clock = Clock {
        start: u64::try_from(start.as_nanos()).unwrap_or(u64::MAX),
        rows_per_second: match (args.rate, args.signal) {
            // Every round of all series at a millisecond of its own: a series has one value at a time.
            (rate, Signal::Metrics) if rate > 0.0 => rate.min(args.series.max(1) as f64 * 1000.0),
            (_, Signal::Metrics) => args.series.max(1) as f64 * 1000.0,
            (0.0, _) => 1e6,
            (rate, _) => rate,
        },
    };
    let began = Instant::now();
    let run = Arc::new(Run {
        sender,
        signal: args.signal,
        shape,
        clock,
        rate: args.rate,
        batch,
        count,
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        began,
    });
    let mut workers = JoinSet::new();
    for _ in 0..args.connections {
        workers.spawn(run.clone().work());
    }
    let deadline = seconds.filter(|_| args.rate == 0.0).map(Duration::from_secs_f64);
    let ended = async {
        match deadline {
            Some(d) => tokio::time::sleep(d).await,
            None => std::future::pending().await,
        }
    };
    let mut outcome = Outcome::default();
    let mut ended = std::pin::pin!(ended);
    loop {
        tokio::select! {
            done = workers.join_next() => match done {
                Some(part) => outcome.add(part.map_err(|e| e.to_string())?),
                None => return Ok((outcome, began.elapsed())),
            },
            () = &mut ended, if !run.stop.load(Ordering::Relaxed) => run.stop.store(true, Ordering::Relaxed),
            _ = tokio::signal::ctrl_c(), if !run.stop.load(Ordering::Relaxed) => run.stop.store(true, Ordering::Relaxed),
        }
    }
}

impl Run {
    async fn work(self: Arc<Self>) -> Outcome {
        let mut out = Outcome::default();
        while !self.stop.load(Ordering::Relaxed) {
            let first = self.next.fetch_add(1, Ordering::Relaxed).saturating_mul(self.batch);
            if first >= self.count {
                break;
            }
            let rows = self.batch.min(self.count - first);
            if self.rate > 0.0 {
                // A batch is due when its last row is.
                let due = self.began + Duration::from_secs_f64((first + rows) as f64 / self.rate);
                tokio::time::sleep_until(due.into()).await;
                out.behind = out.behind.max(due.elapsed());
            }
            let batch = match self.signal {
                Signal::Logs => {
                    Rows::Lines((first..first + rows).map(|n| self.shape.line(n, self.clock.at(n))).collect())
                }
                Signal::Metrics => Rows::Points(first, rows, self.clock),
                Signal::Traces => Rows::Spans(first, rows, self.clock),
            };
            let asked = Instant::now();
            let answer = self.sender.send(batch).await;
            out.requests += 1;
            out.sent += rows;
            match answer {
                Ok(bytes) => {
                    out.acked += rows;
                    out.bytes += bytes as u64;
                    out.took(asked.elapsed());
                }
                Err(e) => out.error(e, 1),
            }
        }
        out
    }
}

impl Outcome {
    fn took(&mut self, time: Duration) {
        if self.latencies.len() < LATENCIES_MAX {
            self.latencies.push(time);
        } else {
            let at = self.requests as usize % LATENCIES_MAX;
            self.latencies[at] = time;
        }
    }

    fn error(&mut self, why: String, n: u64) {
        let known = self.errors.contains_key(&why) || self.errors.len() < ERRORS_MAX;
        *self.errors.entry(if known { why } else { "other errors".to_owned() }).or_default() += n;
    }

    fn add(&mut self, other: Outcome) {
        self.sent += other.sent;
        self.acked += other.acked;
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.behind = self.behind.max(other.behind);
        let room = LATENCIES_MAX.saturating_sub(self.latencies.len());
        self.latencies.extend(other.latencies.into_iter().take(room));
        other.errors.into_iter().for_each(|(why, n)| self.error(why, n));
    }

    /// Milliseconds below which so many of a thousand requests were answered.
    fn percentile(&self, per_mille: usize) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let at = (sorted.len() * per_mille).div_ceil(1000).saturating_sub(1);
        sorted.get(at).map_or(0.0, |d| d.as_secs_f64() * 1e3)
    }

    fn text(&self, took: Duration) -> String {
        let seconds = took.as_secs_f64().max(1e-9);
        let mut out = format!(
            "sent {} in {} requests, acknowledged {}, failed {}\n\
             {:.1} s, {:.0} a second acknowledged, {} of requests, at most {:.1} ms behind schedule\n\
             to the answer: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            self.sent,
            self.requests,
            self.acked,
            self.sent - self.acked,
            seconds,
            self.acked as f64 / seconds,
            crate::own_routes::size(self.bytes),
            self.behind.as_secs_f64() * 1e3,
            self.percentile(500),
            self.percentile(900),
            self.percentile(990),
            self.percentile(1000),
        );
        for (why, n) in &self.errors {
            out.push_str(&format!("\nerror, {n} times: {why}"));
        }
        out
    }

    fn json(&self, took: Duration) -> String {
        json!({
            "sent": self.sent,
            "acked": self.acked,
            "failed": self.sent - self.acked,
            "requests": self.requests,
            "bytes": self.bytes,
            "seconds": took.as_secs_f64(),
            "behind_ms": self.behind.as_secs_f64() * 1e3,
            "latency_ms": {
                "p50": self.percentile(500),
                "p90": self.percentile(900),
                "p99": self.percentile(990),
                "max": self.percentile(1000),
            },
            "errors": self.errors,
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_requests_and_errors_are_bounded() {
        let mut all = Outcome::default();
        for ms in 1..=100 {
            let one =
                Outcome { sent: 10, acked: 10, latencies: vec![Duration::from_millis(ms)], ..Outcome::default() };
            all.add(one);
        }
        assert_eq!((all.percentile(500), all.percentile(990), all.percentile(1000)), (50.0, 99.0, 100.0));
        (0..50).for_each(|i| all.error(format!("e{i}"), 2));
        assert_eq!(all.errors.len(), ERRORS_MAX + 1);
        assert_eq!(all.errors["other errors"], 80);
        assert!(all.text(Duration::from_secs(2)).contains("500 a second acknowledged"));
    }
}
