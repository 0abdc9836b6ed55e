//! The one list of transforms.

use std::sync::Arc;

use serde::Deserialize;
use storage::vfs::Clock;

use crate::{
    component::Transform,
    error::ConfigError,
    transform::{dedupe, edit, filter, limit_labels, normalize, parse, redact, relabel, route, sample, throttle},
};

/// Every transform we have. Adding one: a variant here, a module, its tests, a line in the configuration page.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TransformConfig {
    Filter(filter::Config),
    Parse(parse::Config),
    Set(edit::SetConfig),
    Rename(edit::RenameConfig),
    Remove(edit::RemoveConfig),
    Relabel(relabel::Config),
    Redact(redact::Config),
    Sample(sample::Config),
    Dedupe(dedupe::Config),
    Throttle(throttle::Config),
    Route(route::Config),
    Normalize(normalize::Config),
    LimitLabels(limit_labels::Config),
}

impl TransformConfig {
    pub fn inputs(&self) -> &[String] {
        match self {
            TransformConfig::Filter(c) => &c.inputs,
            TransformConfig::Parse(c) => &c.inputs,
            TransformConfig::Set(c) => &c.inputs,
            TransformConfig::Rename(c) => &c.inputs,
            TransformConfig::Remove(c) => &c.inputs,
            TransformConfig::Relabel(c) => &c.inputs,
            TransformConfig::Redact(c) => &c.inputs,
            TransformConfig::Sample(c) => &c.inputs,
            TransformConfig::Dedupe(c) => &c.inputs,
            TransformConfig::Throttle(c) => &c.inputs,
            TransformConfig::Route(c) => &c.inputs,
            TransformConfig::Normalize(c) => &c.inputs,
            TransformConfig::LimitLabels(c) => &c.inputs,
        }
    }

    /// The transform, or everything wrong with it. `path` is its place: `transforms.NAME`.
    pub fn build(&self, path: &str, clock: &Arc<dyn Clock>) -> Result<Arc<dyn Transform>, Vec<ConfigError>> {
        Ok(match self {
            TransformConfig::Filter(c) => Arc::new(filter::Filter::new(c, path)?),
            TransformConfig::Parse(c) => Arc::new(parse::Parse::new(c, path)?),
            TransformConfig::Set(c) => Arc::new(edit::Edit::set(c, path)?),
            TransformConfig::Rename(c) => Arc::new(edit::Edit::rename(c, path)?),
            TransformConfig::Remove(c) => Arc::new(edit::Edit::remove(c, path)?),
            TransformConfig::Relabel(c) => Arc::new(relabel::Relabel::new(c, path)?),
            TransformConfig::Redact(c) => Arc::new(redact::Redact::new(c, path)?),
            TransformConfig::Sample(c) => Arc::new(sample::Sample::new(c, path)?),
            TransformConfig::Dedupe(c) => Arc::new(dedupe::Dedupe::new(c, path)?),
            TransformConfig::Throttle(c) => Arc::new(throttle::Throttle::new(c, path, clock.clone())?),
            TransformConfig::Route(c) => Arc::new(route::Route::new(c, path)?),
            TransformConfig::Normalize(c) => Arc::new(normalize::Normalize::new(c, path, clock.clone())?),
            TransformConfig::LimitLabels(c) => Arc::new(limit_labels::LimitLabels::new(c, path)?),
        })
    }
}
