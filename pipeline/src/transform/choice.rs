//! `signals: [logs]` of a transform: what it shall work on, when not on all that comes.

use serde::Deserialize;

use crate::{component::Signals, error::ConfigError};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    Logs,
    Metrics,
    Traces,
}

impl Signal {
    pub const fn signals(self) -> Signals {
        match self {
            Signal::Logs => Signals::LOGS,
            Signal::Metrics => Signals::METRICS,
            Signal::Traces => Signals::TRACES,
        }
    }
}

/// What a transform works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Treats {
    pub signals: Signals,
    /// The configuration says so; whatever else comes shall pass. Without it the graph check refuses what cannot be treated.
    pub chosen: bool,
}

impl Treats {
    /// `able`: what the transform can work on, given its other settings.
    pub fn new(chosen: Option<&[Signal]>, able: Signals, path: &str, errors: &mut Vec<ConfigError>) -> Treats {
        let Some(list) = chosen else { return Treats { signals: able, chosen: false } };
        if list.is_empty() {
            errors.push(ConfigError::new(format!("{path}.signals"), "names no signal; leave it out to work on all"));
        }
        let mut signals = Signals::NONE;
        for (i, signal) in list.iter().enumerate() {
            let one = signal.signals();
            if one.without(able).is_none() {
                signals = signals.or(one);
            } else {
                let message = format!("{one} cannot be treated with these settings, only {able}");
                errors.push(ConfigError::new(format!("{path}.signals[{i}]"), message));
            }
        }
        Treats { signals, chosen: true }
    }
}
