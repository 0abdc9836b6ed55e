//! The table as the log says it is after some version: pure replay.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    actions::{Action, Add, MetaData, Protocol, Remove, Txn},
    part_entry::PartEntry,
};

#[derive(Debug, Default)]
pub(super) struct State {
    /// -1 before the first entry.
    pub version: i64,
    /// By decoded path.
    pub adds: HashMap<String, Arc<PartEntry>>,
    pub tombstones: BTreeMap<String, Remove>,
    pub txns: BTreeMap<String, Txn>,
    pub metadata: Option<MetaData>,
    pub protocol: Option<Protocol>,
    /// Newest checkpoint and the one before, by version.
    pub checkpoints: [Option<i64>; 2],
    /// Checkpoints begin when this many entries have followed the last one.
    pub entries_since_checkpoint: u64,
}

/// What an entry did to the list of live parts.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub added: Vec<Arc<PartEntry>>,
    pub removed: Vec<Arc<PartEntry>>,
}

impl State {
    pub fn empty(version: i64) -> Self {
        State { version, ..State::default() }
    }

    pub fn apply_all(&mut self, actions: Vec<Action>) -> Change {
        let mut change = Change::default();
        for action in actions {
            self.apply(action, &mut change);
        }
        change
    }

    pub fn apply(&mut self, action: Action, change: &mut Change) {
        match action {
            Action::Add(add) => {
                let entry = Arc::new(PartEntry::from_add(add));
                self.tombstones.remove(&entry.path);
                if let Some(old) = self.adds.insert(entry.path.clone(), entry.clone()) {
                    change.removed.push(old);
                }
                change.added.push(entry);
            }
            Action::Remove(remove) => {
                let path = decode_path(&remove.path);
                if let Some(old) = self.adds.remove(&path) {
                    change.removed.push(old);
                }
                self.tombstones.insert(path, remove);
            }
            Action::Txn(txn) => {
                self.txns.insert(txn.app_id.clone(), txn);
            }
            Action::MetaData(m) => self.metadata = Some(m),
            Action::Protocol(p) => self.protocol = Some(p),
            Action::CommitInfo(_) => {}
        }
    }

    /// The adds in the order readers want them: older rows first.
    pub fn sorted(&self) -> Vec<Arc<PartEntry>> {
        let mut all: Vec<Arc<PartEntry>> = self.adds.values().cloned().collect();
        sort(&mut all);
        all
    }
}

pub(super) fn sort(parts: &mut [Arc<PartEntry>]) {
    parts.sort_by(|a, b| a.order.cmp(&b.order).then_with(|| a.path.cmp(&b.path)));
}

/// Paths in the log are URL-encoded.
pub(super) fn decode_path(path: &str) -> String {
    if !path.contains('%') {
        return path.to_owned();
    }
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| bytes.get(i + 1..i + 3)).flatten();
        match hex.and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(b) => {
                out.push(b);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| path.to_owned())
}

/// `Add`s of `parts`, for a checkpoint.
pub(super) fn adds(parts: &[Arc<PartEntry>]) -> Vec<&Add> {
    parts.iter().map(|p| &p.add).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_paths_are_decoded_and_odd_ones_kept() {
        assert_eq!(decode_path("day=2026-01-01/a%20b%25.parquet"), "day=2026-01-01/a b%.parquet");
        assert_eq!(decode_path("a%zz%"), "a%zz%");
    }
}
