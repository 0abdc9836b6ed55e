//! `dedupe`: of rows that are equal in some fields, one passes in each window of event time.
//!
//! Rows count as seen once their batch was delivered: a sender that is told to come back sends the same rows again, and
//! they must pass. Equal rows in batches that are under way at once may therefore both pass; a row is never lost.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::TimestampNanosecondType,
};
use parking_lot::Mutex;
use serde::Deserialize;

use crate::{
    component::{Data, Settle, Signals, Transform, TransformError},
    error::ConfigError,
    metrics::{Counters, DropReason},
    transform::{
        choice::{Signal, Treats},
        key::Key,
        series,
    },
    units,
};

/// Keys remembered at most, whatever the configuration says.
const KEYS_MAX: usize = 10_000_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub inputs: Vec<String>,
    /// Rows equal in all of these are duplicates: `.body`, `.attrs.id`, or a whole set such as `.stream`.
    pub fields: Vec<String>,
    /// How long after a row, in event time, an equal one is dropped. Earlier ones as well.
    #[serde(deserialize_with = "units::duration")]
    pub window: Duration,
    /// Rows remembered; beyond it the oldest are forgotten.
    #[serde(default = "keys_default")]
    pub keys_max: usize,
    #[serde(default)]
    pub signals: Option<Vec<Signal>>,
}

const fn keys_default() -> usize {
    100_000
}

pub struct Dedupe {
    key: Key,
    window_ns: i64,
    treats: Treats,
    seen: Arc<Mutex<Seen>>,
}

/// What passed, with its event time.
struct Seen {
    times: HashMap<u128, i64>,
    /// Keys in the order they came in; each key of `times` is here once.
    order: VecDeque<u128>,
    keys_max: usize,
}

impl Dedupe {
    pub fn new(config: &Config, path: &str) -> Result<Dedupe, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let key = Key::parse(&config.fields, &format!("{path}.fields"), &mut errors);
        let able = key.signals().without(Signals::METRICS);
        if errors.is_empty() && able.is_none() {
            errors.push(ConfigError::new(
                format!("{path}.fields"),
                "neither logs nor traces have all of these fields; metrics have no duplicates, the store keeps one sample for each time",
            ));
        }
        let treats = Treats::new(config.signals.as_deref(), able, path, &mut errors);
        let window_ns = i64::try_from(config.window.as_nanos()).unwrap_or(i64::MAX);
        if window_ns == 0 {
            errors.push(ConfigError::new(format!("{path}.window"), "expected more than 0"));
        }
        if !(1..=KEYS_MAX).contains(&config.keys_max) {
            errors.push(ConfigError::new(format!("{path}.keys_max"), format!("expected 1 to {KEYS_MAX}")));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let seen = Seen { times: HashMap::new(), order: VecDeque::new(), keys_max: config.keys_max };
        Ok(Dedupe { key, window_ns, treats, seen: Arc::new(Mutex::new(seen)) })
    }

    /// Which rows pass, and what they are to be remembered by.
    fn judge(&self, rows: &RecordBatch) -> Result<(Vec<bool>, HashMap<u128, i64>), TransformError> {
        let ts = rows
            .column_by_name("ts")
            .and_then(|c| c.as_primitive_opt::<TimestampNanosecondType>())
            .ok_or_else(|| TransformError("the rows have no column `ts`".into()))?;
        let hashes = self.key.hashes(rows);
        let seen = self.seen.lock();
        let mut own: HashMap<u128, i64> = HashMap::new();
        let mask = hashes
            .into_iter()
            .zip(ts.values())
            .map(|(hash, at)| {
                // A row without any of the fields equals no other.
                let Some(hash) = hash else { return true };
                let near = |t: &i64| t.abs_diff(*at) < self.window_ns.unsigned_abs();
                if seen.times.get(&hash).is_some_and(near) || own.get(&hash).is_some_and(near) {
                    return false;
                }
                own.insert(hash, *at);
                true
            })
            .collect();
        Ok((mask, own))
    }
}

impl Seen {
    fn remember(&mut self, passed: HashMap<u128, i64>) {
        for (key, at) in passed {
            match self.times.entry(key) {
                Entry::Occupied(mut e) => *e.get_mut() = at,
                Entry::Vacant(e) => {
                    e.insert(at);
                    self.order.push_back(key);
                }
            }
        }
        while self.order.len() > self.keys_max {
            if let Some(oldest) = self.order.pop_front() {
                self.times.remove(&oldest);
            }
        }
    }
}

impl Transform for Dedupe {
    fn signals(&self) -> Signals {
        self.treats.signals
    }

    fn passes_others(&self) -> bool {
        self.treats.chosen
    }

    fn apply(&self, data: Data, counters: &Counters) -> Result<Data, TransformError> {
        let (data, settle) = self.apply_tracked(data, counters)?;
        if let Some(settle) = settle {
            settle(true);
        }
        Ok(data)
    }

    fn apply_tracked(&self, data: Data, counters: &Counters) -> Result<(Data, Option<Settle>), TransformError> {
        let (rows, wrap): (RecordBatch, fn(RecordBatch) -> Data) = match data {
            Data::Logs(rows) => (rows, Data::Logs),
            Data::Spans(rows) => (rows, Data::Spans),
            Data::Metrics(_) => return Ok((data, None)),
        };
        let (mask, passed) = self.judge(&rows)?;
        counters.dropped(DropReason::Duplicate, mask.iter().filter(|keep| !**keep).count() as u64);
        let kept = wrap(series::keep_rows(rows, mask)?);
        if passed.is_empty() {
            return Ok((kept, None));
        }
        let seen = self.seen.clone();
        let settle: Settle = Box::new(move |delivered| {
            if delivered {
                seen.lock().remember(passed);
            }
        });
        Ok((kept, Some(settle)))
    }
}
