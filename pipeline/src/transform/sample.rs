//! `sample`: keeps a share of the rows, chosen by the hash of a key, so that every node decides alike: the spans and logs
//! of one trace are all kept or all dropped, wherever they pass.
//!
//! A row is kept when the upper 64 bits of xxh3-128 of the key's text are below `rate` x 2^64. A binary id counts as its
//! lower-case hex.

use serde::Deserialize;

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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub inputs: Vec<String>,
    /// Share that is kept, 0 to 1.
    pub rate: f64,
    /// Fields; by default `.trace_id`.
    #[serde(default)]
    pub key: Option<Vec<String>>,
    /// What happens to rows without any of the fields.
    #[serde(default)]
    pub without_key: WithoutKey,
    #[serde(default)]
    pub signals: Option<Vec<Signal>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithoutKey {
    #[default]
    Keep,
    Drop,
}

pub struct Sample {
    key: Key,
    rate: f64,
    keep_without: bool,
    treats: Treats,
}

impl Sample {
    pub fn new(config: &Config, path: &str) -> Result<Sample, Vec<ConfigError>> {
        let mut errors = Vec::new();
        if !(0.0..=1.0).contains(&config.rate) {
            errors.push(ConfigError::new(format!("{path}.rate"), "expected a share from 0 to 1"));
        }
        let fields = config.key.clone().unwrap_or_else(|| vec![".trace_id".into()]);
        let key = Key::parse(&fields, &format!("{path}.key"), &mut errors);
        if errors.is_empty() && key.signals().is_none() {
            errors.push(ConfigError::new(format!("{path}.key"), "no signal has all of these fields"));
        }
        let treats = Treats::new(config.signals.as_deref(), key.signals(), path, &mut errors);
        let keep_without = config.without_key == WithoutKey::Keep;
        if errors.is_empty() { Ok(Sample { key, rate: config.rate, keep_without, treats }) } else { Err(errors) }
    }

    fn keeps(&self, hash: Option<u128>) -> bool {
        match hash {
            None => self.keep_without,
            Some(_) if self.rate >= 1.0 => true,
            Some(hash) => ((hash >> 64) as u64 as f64) < self.rate * 2_f64.powi(64),
        }
    }
}

impl Transform for Sample {
    fn signals(&self) -> Signals {
        self.treats.signals
    }

    fn passes_others(&self) -> bool {
        self.treats.chosen
    }

    fn apply(&self, data: Data, counters: &Counters) -> Result<Data, TransformError> {
        let before = data.rows();
        let mask = |rows: &arrow::array::RecordBatch| {
            self.key.hashes(rows).into_iter().map(|h| self.keeps(h)).collect::<Vec<bool>>()
        };
        let kept = match data {
            Data::Metrics(m) => {
                let mask = mask(&m.series);
                Data::Metrics(series::keep_series(m, &mask)?)
            }
            rows => series::keep_where(rows, mask)?,
        };
        counters.dropped(DropReason::Sampled, (before - kept.rows()) as u64);
        Ok(kept)
    }
}
