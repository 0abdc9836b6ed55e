//! The one list of transforms.

use std::sync::Arc;

use serde::Deserialize;

use crate::{
    component::Transform,
    error::ConfigError,
    transform::{edit, filter, parse},
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
}

impl TransformConfig {
    pub fn inputs(&self) -> &[String] {
        match self {
            TransformConfig::Filter(c) => &c.inputs,
            TransformConfig::Parse(c) => &c.inputs,
            TransformConfig::Set(c) => &c.inputs,
            TransformConfig::Rename(c) => &c.inputs,
            TransformConfig::Remove(c) => &c.inputs,
        }
    }

    /// The transform, or everything wrong with it. `path` is its place: `transforms.NAME`.
    pub fn build(&self, path: &str) -> Result<Arc<dyn Transform>, Vec<ConfigError>> {
        Ok(match self {
            TransformConfig::Filter(c) => Arc::new(filter::Filter::new(c, path)?),
            TransformConfig::Parse(c) => Arc::new(parse::Parse::new(c, path)?),
            TransformConfig::Set(c) => Arc::new(edit::Edit::set(c, path)?),
            TransformConfig::Rename(c) => Arc::new(edit::Edit::rename(c, path)?),
            TransformConfig::Remove(c) => Arc::new(edit::Edit::remove(c, path)?),
        })
    }
}
