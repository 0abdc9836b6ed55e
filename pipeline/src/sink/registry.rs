//! The one list of sinks.

use std::sync::Arc;

use serde::Deserialize;

use crate::{
    component::Sink,
    sink::{
        stdout,
        store::{self, Destination},
    },
};

/// Every sink we have. Adding one: a variant here, a module, its tests, a line in the configuration page.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SinkConfig {
    Store(store::Config),
    Stdout(stdout::Config),
}

impl SinkConfig {
    /// The local store, fed by all outputs that nobody else takes.
    pub fn store() -> Self {
        SinkConfig::Store(store::Config::default())
    }

    /// `None`: all outputs that nobody else takes.
    pub fn inputs(&self) -> Option<&[String]> {
        match self {
            SinkConfig::Store(c) => c.inputs.as_deref(),
            SinkConfig::Stdout(c) => Some(&c.inputs),
        }
    }

    pub fn is_store(&self) -> bool {
        matches!(self, SinkConfig::Store(_))
    }

    pub(crate) fn build(self, destination: Arc<dyn Destination>) -> Box<dyn Sink> {
        match self {
            SinkConfig::Store(_) => Box::new(store::StoreSink::new(destination)),
            SinkConfig::Stdout(_) => Box::new(stdout::StdoutSink::new(std::io::stdout())),
        }
    }
}
