//! The sections `transforms` and `sinks` of the configuration.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::sink::registry::SinkConfig;

/// What the pipeline reads of the configuration; sources are the collector's.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PipelineConfig {
    pub sinks: BTreeMap<String, SinkConfig>,
}
