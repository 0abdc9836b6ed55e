//! Positions in a file of our own, for when batches go somewhere that keeps none.
//!
//! One JSON object per line, `{"tenant":..,"key":..,"position":..}`. The file is replaced whole: written beside, synced,
//! renamed, folder synced. It is written after the rows are acknowledged, so a crash in between sends rows again: at least
//! once, where the local store gives exactly once.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use pipeline::{Positions, component::SourcePosition};
use serde::{Deserialize, Serialize};
use storage::model::TenantId;

/// Most positions kept; past it the oldest written go.
pub const POSITIONS_MAX: usize = 262_144;

#[derive(Serialize, Deserialize)]
struct Line {
    tenant: String,
    key: String,
    position: u64,
}

struct Entry {
    position: u64,
    /// Order of the latest write.
    age: u64,
}

type Entries = BTreeMap<(String, String), Entry>;

/// Positions backed by one file. Safe to share; `save` is for threads that may block.
pub struct Checkpoint {
    path: PathBuf,
    /// The age given last, and entries by tenant and key.
    positions: Mutex<(u64, Entries)>,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("cannot read checkpoint file {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write checkpoint file {path}; reading goes on, but a restart repeats rows")]
    Write { path: PathBuf, source: io::Error },
}

impl Checkpoint {
    /// Reads what is there. A line that cannot be read is skipped with a warning: its file is then read again.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, CheckpointError> {
        let path = path.into();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(CheckpointError::Read { path, source }),
        };
        let mut positions = BTreeMap::new();
        let mut age = 0;
        for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            match serde_json::from_slice::<Line>(line) {
                Ok(l) => {
                    age += 1;
                    positions.insert((l.tenant, l.key), Entry { position: l.position, age });
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "damaged line in checkpoint file skipped")
                }
            }
        }
        Ok(Checkpoint { path, positions: Mutex::new((age, positions)) })
    }

    /// Takes over positions that are acknowledged. In memory until [`Checkpoint::save`].
    pub fn advance(&self, tenant: &TenantId, sources: &[SourcePosition]) {
        let mut guard = self.positions.lock();
        let (age, positions) = &mut *guard;
        for s in sources {
            *age += 1;
            let key = (tenant.as_str().to_owned(), s.key.clone());
            positions.insert(key, Entry { position: s.position, age: *age });
        }
        if positions.len() > POSITIONS_MAX {
            let mut ages: Vec<u64> = positions.values().map(|e| e.age).collect();
            let excess = positions.len() - POSITIONS_MAX;
            let (_, oldest_kept, _) = ages.select_nth_unstable(excess);
            let oldest_kept = *oldest_kept;
            positions.retain(|_, e| e.age >= oldest_kept);
        }
    }

    /// Makes what [`Checkpoint::advance`] took over durable.
    pub fn save(&self) -> Result<(), CheckpointError> {
        let mut lines: Vec<(u64, Line)> = {
            let guard = self.positions.lock();
            let line = |(tenant, key): &(String, String), e: &Entry| Line {
                tenant: tenant.clone(),
                key: key.clone(),
                position: e.position,
            };
            guard.1.iter().map(|(k, e)| (e.age, line(k, e))).collect()
        };
        lines.sort_by_key(|(age, _)| *age);
        let mut bytes = Vec::new();
        for (_, line) in &lines {
            // Strings and one integer always have a JSON form.
            serde_json::to_writer(&mut bytes, line).expect("a checkpoint line serializes");
            bytes.push(b'\n');
        }
        self.replace(&bytes).map_err(|source| CheckpointError::Write { path: self.path.clone(), source })
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}

impl Positions for Checkpoint {
    fn position(&self, tenant: &TenantId, key: &str) -> Option<u64> {
        self.positions.lock().1.get(&(tenant.as_str().to_owned(), key.to_owned())).map(|e| e.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(key: &str, position: u64) -> SourcePosition {
        SourcePosition { key: key.to_owned(), position }
    }

    #[test]
    fn saved_positions_are_there_after_reopening_and_damage_costs_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("positions");
        let tenant = TenantId::default_tenant();
        let c = Checkpoint::open(&path).unwrap();
        c.advance(&tenant, &[at("a", 1), at("b", 2)]);
        c.save().unwrap();
        c.advance(&tenant, &[at("a", 3)]);
        let unsaved = Checkpoint::open(&path).unwrap();
        assert_eq!(unsaved.position(&tenant, "a"), Some(1));
        c.save().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{{broken\n{text}")).unwrap();
        let reopened = Checkpoint::open(&path).unwrap();
        assert_eq!((reopened.position(&tenant, "a"), reopened.position(&tenant, "b")), (Some(3), Some(2)));
        assert_eq!(reopened.position(&tenant, "c"), None);
    }
}
