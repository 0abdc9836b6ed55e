//! `limit_labels`: bounds on how many labels a row may have and how long their names and values may be.

use serde::Deserialize;
use storage::model::Labels;

use crate::{
    component::{Data, Signals, Transform, TransformError},
    error::ConfigError,
    metrics::{Change, Counters, DropReason},
    transform::{
        choice::{Signal, Treats},
        label_sets::{self, Target},
    },
};

/// What becomes of what passes a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The label goes. Of too many labels the first by name stay.
    #[default]
    DropLabel,
    /// Names and values are cut to their limit. Of too many labels the first by name stay.
    Truncate,
    /// The row goes (of metrics: the series with its points).
    DropRow,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub inputs: Vec<String>,
    #[serde(default)]
    pub count_max: Option<usize>,
    #[serde(default)]
    pub name_bytes_max: Option<usize>,
    #[serde(default)]
    pub value_bytes_max: Option<usize>,
    #[serde(default)]
    pub action: Action,
    #[serde(default)]
    pub target: Target,
    #[serde(default)]
    pub signals: Option<Vec<Signal>>,
}

pub struct LimitLabels {
    count_max: usize,
    name_bytes_max: usize,
    value_bytes_max: usize,
    action: Action,
    target: Target,
    treats: Treats,
}

/// Labels that say what the row belongs to: they are never too many, and a row that loses one of them goes.
const IDENTITY: [&str; 5] = ["__name__", "job", "instance", "service_name", "service.name"];

impl LimitLabels {
    pub fn new(config: &Config, path: &str) -> Result<LimitLabels, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let limits = [
            ("count_max", config.count_max),
            ("name_bytes_max", config.name_bytes_max),
            ("value_bytes_max", config.value_bytes_max),
        ];
        if limits.iter().all(|(_, limit)| limit.is_none()) {
            errors.push(ConfigError::new(path, "needs `count_max`, `name_bytes_max` or `value_bytes_max`"));
        }
        for (name, _) in limits.iter().filter(|(_, limit)| *limit == Some(0)) {
            errors.push(ConfigError::new(format!("{path}.{name}"), "expected at least 1"));
        }
        let treats = Treats::new(config.signals.as_deref(), config.target.signals(), path, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(LimitLabels {
            count_max: config.count_max.unwrap_or(usize::MAX),
            name_bytes_max: config.name_bytes_max.unwrap_or(usize::MAX),
            value_bytes_max: config.value_bytes_max.unwrap_or(usize::MAX),
            action: config.action,
            target: config.target,
            treats,
        })
    }

    /// Whether the row stays; `changed` grows by the labels that were cut or taken out.
    fn limit(&self, labels: &mut Labels, changed: &mut u64) -> bool {
        let long = |name: &str, value: &str| name.len() > self.name_bytes_max || value.len() > self.value_bytes_max;
        if labels.len() <= self.count_max && !labels.iter().any(|(n, v)| long(n, v)) {
            return true;
        }
        if self.action == Action::DropRow {
            return false;
        }
        let too_long: Vec<(String, String)> =
            labels.iter().filter(|(n, v)| long(n, v)).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        for (name, value) in too_long {
            if self.action == Action::DropLabel && IDENTITY.contains(&name.as_str()) {
                return false;
            }
            labels.remove(&name);
            *changed += 1;
            if self.action == Action::Truncate {
                let short = cut(&name, self.name_bytes_max);
                // A name that is there already is another label's.
                if !short.is_empty() && labels.get(short).is_none() {
                    labels.set(short, cut(&value, self.value_bytes_max));
                }
            }
        }
        let excess = labels.len().saturating_sub(self.count_max);
        if excess > 0 {
            let mut leaving: Vec<String> =
                labels.iter().map(|(n, _)| n.to_owned()).filter(|n| !IDENTITY.contains(&n.as_str())).collect();
            leaving.drain(..leaving.len().saturating_sub(excess));
            for name in leaving {
                labels.remove(&name);
                *changed += 1;
            }
        }
        true
    }
}

/// The longest beginning of at most `bytes` bytes that is whole characters.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

impl Transform for LimitLabels {
    fn signals(&self) -> Signals {
        self.treats.signals
    }

    fn passes_others(&self) -> bool {
        self.treats.chosen
    }

    fn apply(&self, data: Data, counters: &Counters) -> Result<Data, TransformError> {
        let before = data.rows();
        let mut changed = 0;
        let kept = label_sets::change(data, self.target, |labels| self.limit(labels, &mut changed))?;
        counters.dropped(DropReason::OverLimit, (before - kept.rows()) as u64);
        counters.changed(Change::Limited, changed);
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(config: &str, labels: &[(&str, &str)]) -> (Option<Labels>, u64) {
        let config: Config = serde_json::from_str(config).unwrap();
        let t = LimitLabels::new(&config, "t").unwrap_or_else(|e| panic!("{e:?}"));
        let (mut labels, mut changed) = (Labels::from_pairs(labels.iter().copied()), 0);
        let stays = t.limit(&mut labels, &mut changed);
        (stays.then_some(labels), changed)
    }

    #[test]
    fn each_action_does_what_it_says_and_identity_is_kept() {
        let labels = [("__name__", "m"), ("aaaa", "1"), ("b", "€€€"), ("c", "3"), ("job", "j")];
        let of = |pairs: &[(&str, &str)]| Some(Labels::from_pairs(pairs.iter().copied()));
        let (got, changed) = limit(r#"{"inputs":[],"value_bytes_max":4}"#, &labels);
        assert_eq!((got, changed), (of(&[("__name__", "m"), ("aaaa", "1"), ("c", "3"), ("job", "j")]), 1));
        let (got, _) = limit(r#"{"inputs":[],"value_bytes_max":4,"action":"truncate"}"#, &labels);
        assert_eq!(got.unwrap().get("b"), Some("€"));
        let (got, _) = limit(r#"{"inputs":[],"value_bytes_max":4,"action":"drop_row"}"#, &labels);
        assert_eq!(got, None);
        let (got, changed) = limit(r#"{"inputs":[],"count_max":3}"#, &labels);
        assert_eq!((got, changed), (of(&[("__name__", "m"), ("aaaa", "1"), ("job", "j")]), 2));
        let (got, _) = limit(r#"{"inputs":[],"name_bytes_max":2}"#, &labels);
        assert_eq!(got, None, "a series without its name is none");
        let (got, _) = limit(r#"{"inputs":[],"name_bytes_max":1,"action":"truncate"}"#, &[("aa", "1"), ("a", "2")]);
        assert_eq!(got, of(&[("a", "2")]));
        assert_eq!(limit(r#"{"inputs":[],"count_max":9}"#, &labels).1, 0);
    }
}
