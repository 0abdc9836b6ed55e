//! One target, asked again and again until it is gone.
//!
//! Its place in the interval follows from its labels and address, so that targets are spread and stay where they are over
//! restarts. All samples of a scrape bear one time: that which was planned, where we are within 2 ms of it.

use std::{
    io::Write as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use pipeline::{
    Batch, Data, DeliveryError, Output,
    codec::{
        compress::{Encoding, InflateError, inflate},
        prom_text::{self, Format},
    },
};
use storage::{
    Repeats,
    model::{MetricBatch, TenantId},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    client::{HttpClient, chain},
    counters::Counters,
    job::Job,
    scrape_pool::PoolState,
    series::{Memory, Report, Taken},
    target::{Health, Target, offset},
};

/// How far from the planned time a scrape may be to bear it.
const TOLERANCE: Duration = Duration::from_millis(2);
/// Bodies larger than this, as far as one can tell before they are inflated, are read off the async threads.
const INLINE_BYTES_MAX: usize = 16 << 10;
/// All bodies under way, in units of [`BUDGET_UNIT`].
pub const BUDGET: usize = 4096;
const BUDGET_UNIT: usize = 64 << 10;
/// Between attempts to deliver.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What all loops of a source share.
#[derive(Clone)]
pub struct Shared {
    pub source: String,
    pub out: Output,
    pub tenant: TenantId,
    pub counters: Arc<Counters>,
    /// The process stops.
    pub stop: CancellationToken,
    /// Bytes of bodies under way.
    pub budget: Arc<Semaphore>,
    /// Spreads servers that scrape the same targets.
    pub seed: u64,
}

pub struct ScrapeLoop {
    pub shared: Shared,
    pub job: Arc<Job>,
    pub target: Arc<Target>,
    pub client: Arc<HttpClient>,
    pub pool: Arc<PoolState>,
    /// The target is no more.
    pub removed: CancellationToken,
    /// Another loop asks it from now on.
    pub replaced: CancellationToken,
}

/// An answer as it came.
struct Answer {
    format: Format,
    encoding: Encoding,
    body: Bytes,
    _held: Option<OwnedSemaphorePermit>,
}

/// Why there is no body. `too_large`: there was, over its limit.
#[derive(Debug)]
struct Failure {
    message: String,
    too_large: bool,
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Failure { message, too_large: false }
    }
}

pub(super) fn unix_ms(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

impl ScrapeLoop {
    pub async fn run(self) {
        let interval = self.target.interval;
        let wall = SystemTime::now();
        let now_ns = wall.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let wait = offset(self.target.id, self.shared.seed, interval, now_ns);
        let (first, first_wall) = (Instant::now() + wait, wall + wait);
        let planned = |n: u32| (first + interval * n, first_wall + interval * n);
        let mut memory = Some(Memory::new(self.job.clone(), self.target.clone()));
        let (mut n, mut asked) = (0u32, false);
        loop {
            let (at, at_wall) = planned(n);
            tokio::select! {
                () = self.shared.stop.cancelled() => return,
                () = self.replaced.cancelled() => return,
                () = self.removed.cancelled() => break,
                () = sleep_until(at) => {}
            }
            let now = SystemTime::now();
            let early_or_late =
                now.duration_since(at_wall).or_else(|_| at_wall.duration_since(now)).unwrap_or_default();
            let ts_ms = unix_ms(if early_or_late <= TOLERANCE.min(interval / 100) { at_wall } else { now });
            memory = self.scrape(memory, ts_ms, at + interval).await;
            asked = true;
            // What was missed meanwhile is gone.
            while planned(n).0 <= Instant::now() {
                n += 1;
            }
        }
        if let (true, Some(memory)) = (asked, memory) {
            self.end(memory, planned(n)).await;
        }
    }

    /// Ends the series of a target that is gone, at the time it would have been asked next; unless it comes back.
    async fn end(&self, mut memory: Memory, (at, at_wall): (Instant, SystemTime)) {
        let interval = self.target.interval;
        // As long as a target that was only named anew may take to be asked.
        let due = at + interval + interval / 10;
        if self.shared.stop.run_until_cancelled(sleep_until(due)).await.is_none()
            || self.pool.has(&self.target.labels)
        {
            return;
        }
        let taken = memory.gone(unix_ms(at_wall));
        Counters::add(&self.shared.counters.stale_markers, taken.stale);
        self.deliver(taken.finish(), Instant::now() + interval).await;
    }

    /// One scrape. The memory is lost only if reading panics.
    async fn scrape(&self, memory: Option<Memory>, ts_ms: i64, next: Instant) -> Option<Memory> {
        let started = Instant::now();
        let counters = &self.shared.counters;
        let mut memory = memory.unwrap_or_else(|| Memory::new(self.job.clone(), self.target.clone()));
        let answer = match self.pool.refusal() {
            Some(refusal) => Err(Failure::from(refusal)),
            None => match timeout(self.target.timeout, self.fetch()).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {:?}", self.target.timeout).into()),
            },
        };
        let (mut taken, read) = match answer {
            Err(failure) => (Taken::default(), Err(failure)),
            Ok(answer) => {
                let limit = self.job.body_bytes_max;
                let ratio = if answer.encoding == Encoding::Identity { 1 } else { 8 };
                let small = answer.body.len() * ratio <= INLINE_BYTES_MAX;
                let digest = move |mut memory: Memory| {
                    let (taken, read) = digest(&mut memory, answer, limit, ts_ms);
                    (memory, taken, read)
                };
                let (kept, taken, read) = if small {
                    digest(memory)
                } else {
                    match tokio::task::spawn_blocking(move || digest(memory)).await {
                        Ok(done) => done,
                        Err(e) => {
                            tracing::error!(url = self.target.url, error = %e, "reading a scrape failed");
                            return None;
                        }
                    }
                };
                memory = kept;
                (taken, read)
            }
        };
        if read.is_err() {
            memory.nothing(&mut taken, ts_ms);
        }
        let elapsed = started.elapsed();
        let body_bytes = match &read {
            Ok(bytes) => *bytes as f64,
            Err(Failure { too_large: true, .. }) => -1.0,
            Err(_) => 0.0,
        };
        memory.report(&mut taken, &Report { up: read.is_ok(), seconds: elapsed.as_secs_f64(), body_bytes }, ts_ms);
        for (counter, n) in [
            (&counters.scrapes, 1),
            (&counters.failed, u64::from(read.is_err())),
            (&counters.scraped, taken.scraped),
            (&counters.duplicates, taken.duplicates),
            (&counters.ahead, taken.ahead),
            (&counters.exemplars_refused, taken.exemplars_refused),
            (&counters.stale_markers, taken.stale),
            (&counters.not_converted, taken.not_converted),
        ] {
            Counters::add(counter, n);
        }
        let error = read.err().map(|f| f.message).unwrap_or_default();
        if !error.is_empty() {
            tracing::debug!(job = self.job.name, url = self.target.url, error, "scrape failed");
            self.tell_failure(&error).await;
        }
        {
            let mut status = self.target.status.lock();
            status.health = if error.is_empty() { Health::Up } else { Health::Down };
            status.last_error = error;
            status.last_scrape = Some(UNIX_EPOCH + Duration::from_millis(ts_ms.max(0) as u64));
            status.last_duration = elapsed;
        }
        self.deliver(taken.finish(), next).await;
        Some(memory)
    }

    /// Appends a failure to the job's `scrape_failure_log_file`, in Prometheus' form. Opened each time: it may be rotated.
    async fn tell_failure(&self, error: &str) {
        let Some(path) = self.job.failure_log.clone() else { return };
        let time = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let (job, target) = (&self.job.name, &self.target.url);
        let mut line =
            serde_json::json!({"time": time, "level": "ERROR", "msg": error, "job_name": job, "target": target})
                .to_string();
        line.push('\n');
        let append = move || {
            let file = std::fs::OpenOptions::new().append(true).create(true).open(&path);
            let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
            written.map_err(|error| (path, error))
        };
        if let Ok(Err((path, error))) = tokio::task::spawn_blocking(append).await {
            tracing::warn!(path = %path.display(), %error, "cannot write to scrape_failure_log_file");
        }
    }

    /// Asks the target; the body as it comes.
    async fn fetch(&self) -> Result<Answer, Failure> {
        let mut headers = HeaderMap::new();
        let text = |t: String| HeaderValue::from_str(&t).map_err(|e| Failure::from(e.to_string()));
        headers.insert(header::ACCEPT, text(prom_text::accept(&self.job.protocols, self.job.escaping))?);
        let encoding = if self.job.compression { "gzip" } else { "identity" };
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(encoding));
        headers.insert("x-prometheus-scrape-timeout-seconds", text(self.target.timeout.as_secs_f64().to_string())?);
        let mut response = self.client.get(&self.target.url, headers).await?;
        let status = response.status();
        if status != http::StatusCode::OK {
            return Err(format!("server returned HTTP status {status}").into());
        }
        let told = |name: header::HeaderName| response.headers().get(name).and_then(|v| v.to_str().ok());
        let format =
            prom_text::format_of(told(header::CONTENT_TYPE), self.job.fallback).map_err(|e| e.to_string())?;
        let encoding = told(header::CONTENT_ENCODING).unwrap_or("");
        let encoding = Encoding::parse(encoding)
            .ok_or_else(|| format!("the target sends an unknown Content-Encoding {encoding:?}"))?;
        let mut body = BytesMut::new();
        let mut held: Option<OwnedSemaphorePermit> = None;
        while let Some(chunk) = response.chunk().await.map_err(|e| chain(&e))? {
            if body.len() + chunk.len() > self.job.body_bytes_max {
                return Err(too_large(self.job.body_bytes_max));
            }
            let units = (body.len() + chunk.len()).div_ceil(BUDGET_UNIT).min(BUDGET);
            let missing = units - held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            if missing > 0 {
                let more = self.shared.budget.clone().acquire_many_owned(missing as u32).await;
                let more = more.map_err(|e| e.to_string())?;
                match &mut held {
                    Some(held) => held.merge(more),
                    None => held = Some(more),
                }
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { format, encoding, body: body.freeze(), _held: held })
    }

    /// Gives the rows to the pipeline; tries again until `until`.
    async fn deliver(&self, batches: Vec<MetricBatch>, until: Instant) {
        let counters = &self.shared.counters;
        for batch in batches {
            let rows = (batch.points() + batch.exemplars.num_rows()) as u64;
            loop {
                let mut batch = Batch::new(self.shared.tenant.clone(), Data::Metrics(batch.clone()));
                // Lines with times of their own may come again with another value.
                batch.repeats = Repeats::Refused;
                let refusals = batch.refusals.clone();
                let error = match self.shared.out.deliver(batch).await {
                    Ok(()) => {
                        let refused = refusals.take();
                        let out = refused.as_ref().map_or(0, |r| r.rows() as u64).min(rows);
                        Counters::add(&counters.delivered, rows - out);
                        let repeated = refused.as_ref().map_or(0, |r| r.repeated as u64).min(out);
                        Counters::add(&counters.over_limit, out - repeated);
                        Counters::add(&counters.duplicates, repeated);
                        if repeated > 0 {
                            let first = refused.as_ref().and_then(|r| r.repeat.as_deref());
                            tracing::warn!(url = self.target.url, repeated, first, "samples left out of a scrape");
                        }
                        if let Some(refused) = refused.filter(|r| r.over_limit() > 0) {
                            // The target is up, and shall be seen to be more than its tenant may have.
                            self.target.status.lock().last_error = refused.to_string();
                        }
                        break;
                    }
                    Err(error) => error,
                };
                let again = Instant::now() + AGAIN_AFTER;
                if matches!(error, DeliveryError::Unavailable { .. })
                    && again < until
                    && self.shared.stop.run_until_cancelled(sleep(AGAIN_AFTER)).await.is_some()
                {
                    continue;
                }
                Counters::add(&counters.lost, rows);
                tracing::warn!(source = self.shared.source, url = self.target.url, rows, %error, "rows dropped");
                break;
            }
        }
    }
}

fn too_large(limit: usize) -> Failure {
    Failure { message: format!("body size limit exceeded: more than {limit} bytes"), too_large: true }
}

/// Inflates and reads an answer. Bytes of the body, inflated.
fn digest(memory: &mut Memory, answer: Answer, limit: usize, ts_ms: i64) -> (Taken, Result<usize, Failure>) {
    let body = match inflate(answer.encoding, answer.body, limit) {
        Ok(body) => body,
        Err(InflateError::TooLarge { limit }) => return (Taken::default(), Err(too_large(limit))),
        Err(e) => return (Taken::default(), Err(e.to_string().into())),
    };
    let (taken, read) = memory.take(&body, answer.format, ts_ms);
    (taken, read.map(|()| body.len()).map_err(|e| e.to_string().into()))
}
