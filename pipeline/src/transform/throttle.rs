//! `throttle`: at most so many rows a second for each key, with a burst; what is above is dropped and counted.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::Deserialize;
use storage::vfs::Clock;

use crate::{
    component::{Data, Signals, Transform, TransformError},
    error::ConfigError,
    metrics::{Counters, DropReason},
    transform::{
        choice::{Signal, Treats},
        key::Key,
        series,
    },
};

/// Keys at most, whatever the configuration says.
const KEYS_MAX: usize = 10_000_000;
/// How often full buckets are looked for when there are too many keys: a walk over all of them.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub inputs: Vec<String>,
    /// Rows (records, spans or points) a second.
    pub rate: f64,
    /// Rows that may come at once; by default those of one second.
    #[serde(default)]
    pub burst: Option<u64>,
    /// Fields whose values have a rate each; by default all rows share one.
    #[serde(default)]
    pub key: Option<Vec<String>>,
    /// Keys with a rate of their own; when there are more, the others share one.
    #[serde(default = "keys_default")]
    pub keys_max: usize,
    #[serde(default)]
    pub signals: Option<Vec<Signal>>,
}

const fn keys_default() -> usize {
    10_000
}

pub struct Throttle {
    key: Option<Key>,
    treats: Treats,
    clock: Arc<dyn Clock>,
    buckets: Mutex<Buckets>,
}

/// Token buckets. A key without one has all of its burst.
struct Buckets {
    rate: f64,
    burst: f64,
    keys_max: usize,
    of: HashMap<Option<u128>, Bucket>,
    /// Of the keys beyond `keys_max`.
    shared: Bucket,
    swept: Duration,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Duration,
}

impl Bucket {
    fn take(&mut self, now: Duration, rate: f64, burst: f64) -> bool {
        let grown = now.saturating_sub(self.at).as_secs_f64() * rate;
        self.tokens = (self.tokens + grown).min(burst);
        self.at = self.at.max(now);
        let free = self.tokens >= 1.0;
        if free {
            self.tokens -= 1.0;
        }
        free
    }
}

impl Buckets {
    fn take(&mut self, key: Option<u128>, now: Duration) -> bool {
        let (rate, burst) = (self.rate, self.burst);
        if let Some(bucket) = self.of.get_mut(&key) {
            return bucket.take(now, rate, burst);
        }
        if self.of.len() >= self.keys_max && now >= self.swept + SWEEP_EVERY {
            self.swept = now;
            self.of.retain(|_, b| b.tokens + now.saturating_sub(b.at).as_secs_f64() * rate < burst);
        }
        if self.of.len() >= self.keys_max {
            return self.shared.take(now, rate, burst);
        }
        let mut bucket = Bucket { tokens: burst, at: now };
        let free = bucket.take(now, rate, burst);
        self.of.insert(key, bucket);
        free
    }
}

impl Throttle {
    pub fn new(config: &Config, path: &str, clock: Arc<dyn Clock>) -> Result<Throttle, Vec<ConfigError>> {
        let mut errors = Vec::new();
        if !(config.rate.is_finite() && config.rate > 0.0) {
            errors.push(ConfigError::new(format!("{path}.rate"), "expected a number of rows a second above 0"));
        }
        let burst = config.burst.map_or(config.rate.ceil(), |b| b as f64);
        if config.burst == Some(0) {
            errors.push(ConfigError::new(format!("{path}.burst"), "expected at least 1, or nothing would ever pass"));
        }
        if !(1..=KEYS_MAX).contains(&config.keys_max) {
            errors.push(ConfigError::new(format!("{path}.keys_max"), format!("expected 1 to {KEYS_MAX}")));
        }
        let key = config.key.as_ref().map(|fields| Key::parse(fields, &format!("{path}.key"), &mut errors));
        let able = key.as_ref().map_or(Signals::ALL, Key::signals);
        if errors.is_empty() && able.is_none() {
            errors.push(ConfigError::new(format!("{path}.key"), "no signal has all of these fields"));
        }
        let treats = Treats::new(config.signals.as_deref(), able, path, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        let now = clock.monotonic();
        let buckets = Buckets {
            rate: config.rate,
            burst,
            keys_max: config.keys_max,
            of: HashMap::new(),
            shared: Bucket { tokens: burst, at: now },
            swept: now,
        };
        Ok(Throttle { key, treats, clock, buckets: Mutex::new(buckets) })
    }
}

impl Transform for Throttle {
    fn signals(&self) -> Signals {
        self.treats.signals
    }

    fn passes_others(&self) -> bool {
        self.treats.chosen
    }

    fn apply(&self, data: Data, counters: &Counters) -> Result<Data, TransformError> {
        let before = data.rows();
        let now = self.clock.monotonic();
        let hashes = |rows: &arrow::array::RecordBatch| match &self.key {
            Some(key) => key.hashes(rows),
            None => vec![None; rows.num_rows()],
        };
        let mut buckets = self.buckets.lock();
        let kept = match data {
            Data::Metrics(m) => {
                let hashes = hashes(&m.series);
                Data::Metrics(series::keep_points(m, &hashes, None, |h| buckets.take(h, now))?)
            }
            rows => {
                series::keep_where(rows, |rows| hashes(rows).into_iter().map(|h| buckets.take(h, now)).collect())?
            }
        };
        counters.dropped(DropReason::Throttled, (before - kept.rows()) as u64);
        Ok(kept)
    }
}
