//! What must survive a restart: the alerts of each group, in a file of their own, replaced whole.
//!
//! `<data directory>/rules/<hash of the group's key>.json`. A file that cannot be read is set aside and named in the log:
//! alerts then begin anew.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use storage::{
    model::{Labels, labels::id_of_json},
    vfs::{OsVfs, Vfs as _},
};

use super::alerting::{Alert, AlertState, Alerts};

/// Largest state file that is read.
const STATE_BYTES_MAX: usize = 256 << 20;

/// Longer than this away, and a pending alert begins anew. Source: Prometheus' `rules.alert.for-outage-tolerance`.
pub const OUTAGE_TOLERATED_MS: i64 = 3_600_000;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Saved {
    version: u32,
    group: String,
    /// When the state was what it is, ms.
    at: i64,
    rules: Vec<SavedRule>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct SavedRule {
    identity: String,
    alerts: Vec<SavedAlert>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct SavedAlert {
    labels: Vec<(String, String)>,
    annotations: Vec<(String, String)>,
    state: AlertState,
    value: Option<f64>,
    active_at: i64,
    fired_at: Option<i64>,
    resolved_at: Option<i64>,
    keep_firing_since: Option<i64>,
}

/// The file of one group.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
    group: String,
}

impl StateFile {
    pub fn of(dir: &Path, group: &str) -> Self {
        StateFile { path: dir.join(format!("{:016x}.json", id_of_json(group) as u64)), group: group.to_owned() }
    }

    /// Durable on return. Blocks.
    pub fn save(&self, text: &str) -> io::Result<()> {
        if let Some(dir) = self.path.parent() {
            OsVfs.create_dir_all(dir)?;
        }
        OsVfs.replace(&self.path, text.as_bytes())
    }

    /// The alerts of each rule, by its identity. While we were away nobody saw whether an expression held: pending alerts
    /// wait that much longer. Blocks.
    pub fn load(&self, now_ms: i64) -> HashMap<String, Alerts> {
        let bytes = match OsVfs.read(&self.path, STATE_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return HashMap::new(),
            Err(e) => {
                tracing::error!(path = %self.path.display(), error = %e, "state of alerts cannot be read; they begin anew");
                return HashMap::new();
            }
        };
        match serde_json::from_slice::<Saved>(&bytes) {
            Ok(saved) if saved.version == 1 && saved.group == self.group => restored(saved, now_ms),
            Ok(_) => HashMap::new(),
            Err(e) => {
                let aside = self.path.with_extension("damaged");
                tracing::error!(path = %self.path.display(), error = %e, "state of alerts is damaged and set aside; they begin anew");
                if let Err(e) = OsVfs.rename(&self.path, &aside) {
                    tracing::error!(path = %self.path.display(), error = %e, "cannot set the file aside");
                }
                HashMap::new()
            }
        }
    }
}

fn pairs(labels: &Labels) -> Vec<(String, String)> {
    labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

/// The text of a group's state.
pub fn text<'a>(group: &str, at: i64, rules: impl Iterator<Item = (String, &'a Alerts)>) -> String {
    let rule = |(identity, alerts): (String, &Alerts)| SavedRule {
        identity,
        alerts: alerts
            .iter()
            .map(|a| SavedAlert {
                labels: pairs(&a.labels),
                annotations: pairs(&a.annotations),
                state: a.state,
                value: Some(a.value).filter(|v| v.is_finite()),
                active_at: a.active_at,
                fired_at: a.fired_at,
                resolved_at: a.resolved_at,
                keep_firing_since: a.keep_firing_since,
            })
            .collect(),
    };
    let rules = rules.filter(|(_, alerts)| alerts.iter().next().is_some()).map(rule).collect();
    let saved = Saved { version: 1, group: group.to_owned(), at, rules };
    serde_json::to_string(&saved).expect("plain data is JSON")
}

fn restored(saved: Saved, now_ms: i64) -> HashMap<String, Alerts> {
    let away = (now_ms - saved.at).max(0);
    let mut out: HashMap<String, Alerts> = HashMap::new();
    for rule in saved.rules {
        let alerts = out.entry(rule.identity).or_default();
        for a in rule.alerts {
            let pending = a.state == AlertState::Pending;
            if pending && away > OUTAGE_TOLERATED_MS {
                continue;
            }
            alerts.restore(Alert {
                labels: Arc::new(Labels::from_pairs(a.labels)),
                annotations: Arc::new(Labels::from_pairs(a.annotations)),
                state: a.state,
                value: a.value.unwrap_or(f64::NAN),
                active_at: if pending { a.active_at + away } else { a.active_at },
                fired_at: a.fired_at,
                resolved_at: a.resolved_at,
                keep_firing_since: a.keep_firing_since,
                last_sent: None,
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::alerting::{Candidate, Timing};

    #[test]
    fn alerts_come_back_and_pending_ones_wait_for_the_time_away() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::of(dir.path(), "g");
        assert!(file.load(0).is_empty());
        let mut alerts = Alerts::default();
        let labels = |n: &str| Labels::from_pairs([("alertname", n)]);
        let found = |n: &str| Candidate { labels: labels(n), annotations: Labels::default(), value: f64::NAN };
        alerts.advance(vec![found("firing")], 0, &Timing::default()).unwrap();
        let waits = Timing { hold_ms: 100_000, ..Timing::default() };
        alerts.advance(vec![found("firing"), found("waits")], 1_000, &waits).unwrap();
        file.save(&text("g", 5_000, [("r".to_owned(), &alerts)].into_iter())).unwrap();
        let back = file.load(15_000);
        let seen: Vec<(AlertState, i64)> = back["r"].iter().map(|a| (a.state, a.active_at)).collect();
        assert_eq!(seen, [(AlertState::Firing, 0), (AlertState::Pending, 11_000)]);
        assert_eq!(file.load(OUTAGE_TOLERATED_MS * 2)["r"].iter().count(), 1);
        std::fs::write(&file.path, "{").unwrap();
        assert!(file.load(0).is_empty() && !file.path.exists());
    }
}
