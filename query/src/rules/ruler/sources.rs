//! Rule files: which there are, what they hold, and whether they have changed.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use storage::model::TenantId;

use super::millis;
use crate::rules::file::{self, FileError, RuleGroup};

/// Rule files of one tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSource {
    pub tenant: TenantId,
    /// Paths with wildcards.
    pub files: Vec<String>,
    /// Of groups that name no interval; `None`: that of the ruler.
    pub interval: Option<Duration>,
    /// Of groups that name none.
    pub query_offset: Duration,
    /// A path without wildcards may name no file, as in a file of Prometheus; one that comes later is taken then.
    pub may_be_missing: bool,
}

/// The files that a pattern names.
pub type Discover = Arc<dyn Fn(&str) -> Vec<PathBuf> + Send + Sync>;

/// A group of a file, with the tenant it runs under.
pub type Loaded = (TenantId, String, RuleGroup);

/// Reads all files of all sources; every fault of every file at once. Blocks.
pub fn load(sources: &[RuleSource], discover: &Discover) -> Result<Vec<Loaded>, Vec<FileError>> {
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    for source in sources {
        for path in paths(source, discover) {
            let name = path.display().to_string();
            let read = match file::read(&path) {
                Ok(read) => read,
                Err(e) => {
                    errors.push(e);
                    continue;
                }
            };
            for mut group in read.groups {
                group.interval_ms = group.interval_ms.or(source.interval.map(millis));
                group.query_offset_ms = group.query_offset_ms.or(Some(millis(source.query_offset)));
                out.push((source.tenant.clone(), name.clone(), group));
            }
        }
    }
    if errors.is_empty() { Ok(out) } else { Err(errors) }
}

/// Each file once. A pattern without wildcards names a file that must be there, unless the source says otherwise.
fn paths(source: &RuleSource, discover: &Discover) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = Vec::new();
    for pattern in &source.files {
        let found = match pattern.contains(['*', '?']) {
            true => discover(pattern),
            false if source.may_be_missing && !Path::new(pattern).exists() => Vec::new(),
            false => vec![PathBuf::from(pattern)],
        };
        for path in found {
            if !out.contains(&path) {
                out.push(path);
            }
        }
    }
    out
}

/// What tells whether files have changed: names, times and sizes.
pub(super) type Seen = Vec<(PathBuf, Option<(SystemTime, u64)>)>;

pub(super) fn seen(sources: &[RuleSource], discover: &Discover) -> Seen {
    let mark = |p: &Path| {
        let meta = std::fs::metadata(p).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    sources.iter().flat_map(|s| paths(s, discover)).map(|p| (p.clone(), mark(&p))).collect()
}
