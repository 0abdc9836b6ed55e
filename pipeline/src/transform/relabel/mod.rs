//! `relabel`: Prometheus' `relabel_config`, rule by rule, on the labels of series, the stream labels of logs and the
//! resource attributes of spans (or, by `target`, on the attributes of records and spans).
//!
//! Source: `relabel_config` as of Prometheus 3, with names in UTF-8. A set that the rules leave empty leaves, with its
//! rows, as one that they drop.

mod rule;
#[cfg(test)]
mod tests;

use serde::Deserialize;

pub use rule::{Rule, RuleConfig};

use crate::{
    component::{Data, Signals, Transform, TransformError},
    error::ConfigError,
    metrics::{Counters, DropReason},
    transform::{
        choice::{Signal, Treats},
        label_sets::{self, Target},
    },
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub inputs: Vec<String>,
    /// In the order in which they work.
    pub rules: Vec<RuleConfig>,
    #[serde(default)]
    pub target: Target,
    #[serde(default)]
    pub signals: Option<Vec<Signal>>,
}

pub struct Relabel {
    rules: Vec<Rule>,
    target: Target,
    treats: Treats,
}

impl Relabel {
    pub fn new(config: &Config, path: &str) -> Result<Relabel, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let treats = Treats::new(config.signals.as_deref(), config.target.signals(), path, &mut errors);
        if config.rules.is_empty() {
            errors.push(ConfigError::new(format!("{path}.rules"), "has no rule"));
        }
        let mut rules = Vec::with_capacity(config.rules.len());
        for (i, rule) in config.rules.iter().enumerate() {
            rules.extend(Rule::new(rule, &format!("{path}.rules[{i}]"), &mut errors));
        }
        if errors.is_empty() { Ok(Relabel { rules, target: config.target, treats }) } else { Err(errors) }
    }
}

impl Transform for Relabel {
    fn signals(&self) -> Signals {
        self.treats.signals
    }

    fn passes_others(&self) -> bool {
        self.treats.chosen
    }

    fn apply(&self, data: Data, counters: &Counters) -> Result<Data, TransformError> {
        let before = data.rows();
        let kept = label_sets::change(data, self.target, |labels| {
            self.rules.iter().all(|rule| rule.apply(labels)) && !labels.is_empty()
        })?;
        counters.dropped(DropReason::Relabeled, (before - kept.rows()) as u64);
        Ok(kept)
    }
}
