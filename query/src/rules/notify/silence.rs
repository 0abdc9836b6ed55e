//! Silences: alerts that nobody is to be told of for a while. The wire form is that of Alertmanager's API v2.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use storage::model::{Labels, MatchOp, Matcher, MatcherBudget, re2};

use super::time;
use crate::http::params::parse_time_ms;

/// Silences that are kept, ended ones included.
const SILENCES_MAX: usize = 10_000;

/// How long an ended silence is shown. Source: Alertmanager.
const ENDED_KEPT_MS: i64 = 120 * 3_600_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireMatcher {
    pub name: String,
    pub value: String,
    #[serde(default)]
    pub is_regex: bool,
    #[serde(default = "yes")]
    pub is_equal: bool,
}

fn yes() -> bool {
    true
}

/// As it is asked for and shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireSilence {
    #[serde(default)]
    pub id: String,
    pub matchers: Vec<WireMatcher>,
    pub starts_at: String,
    pub ends_at: String,
    #[serde(default)]
    pub created_by: String,
    #[serde(default)]
    pub comment: String,
}

#[derive(Clone, Debug)]
pub struct Silence {
    pub wire: WireSilence,
    matchers: Vec<Matcher>,
    pub starts: i64,
    pub ends: i64,
    pub updated: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SilenceState {
    Pending,
    Active,
    Expired,
}

impl Silence {
    fn read(wire: WireSilence, updated: i64) -> Result<Self, String> {
        let instant =
            |text: &str, what: &str| parse_time_ms(text).ok_or_else(|| format!("bad time {text:?} for {what}"));
        let (starts, ends) = (instant(&wire.starts_at, "startsAt")?, instant(&wire.ends_at, "endsAt")?);
        if ends < starts {
            return Err("end time must not be before start time".into());
        }
        let mut budget = MatcherBudget::default();
        let mut matcher = |m: &WireMatcher| {
            let op = match (m.is_equal, m.is_regex) {
                (true, false) => MatchOp::Eq,
                (false, false) => MatchOp::Ne,
                (true, true) => MatchOp::Re,
                (false, true) => MatchOp::Nre,
            };
            if m.name.is_empty() {
                return Err("invalid label matcher: empty name".to_owned());
            }
            let matcher = budget.matcher(&m.name, op, &m.value);
            matcher.map_err(|e| format!("invalid label matcher {}: {}", m.name, re2::told(&m.value, &e)))
        };
        let matchers = wire.matchers.iter().map(&mut matcher).collect::<Result<Vec<_>, _>>()?;
        if matchers.is_empty() {
            return Err("at least one matcher required".into());
        }
        if matchers.iter().all(Matcher::matches_empty) {
            return Err("at least one matcher must not match the empty string".into());
        }
        Ok(Silence { matchers, starts, ends, updated, wire })
    }

    pub fn state(&self, now: i64) -> SilenceState {
        match () {
            () if now >= self.ends => SilenceState::Expired,
            () if now < self.starts => SilenceState::Pending,
            () => SilenceState::Active,
        }
    }

    /// As the API shows it.
    pub fn shown(&self, now: i64) -> serde_json::Value {
        let state = match self.state(now) {
            SilenceState::Pending => "pending",
            SilenceState::Active => "active",
            SilenceState::Expired => "expired",
        };
        serde_json::json!({
            "id": self.wire.id,
            "status": {"state": state},
            "updatedAt": time(self.updated),
            "matchers": self.wire.matchers,
            "startsAt": time(self.starts),
            "endsAt": time(self.ends),
            "createdBy": self.wire.created_by,
            "comment": self.wire.comment,
        })
    }
}

/// As they are kept over a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedSilence {
    wire: WireSilence,
    updated: i64,
}

#[derive(Debug, Default)]
pub struct Silences(BTreeMap<String, Silence>);

impl Silences {
    pub fn saved(&self) -> Vec<SavedSilence> {
        self.0.values().map(|s| SavedSilence { wire: s.wire.clone(), updated: s.updated }).collect()
    }

    pub fn restore(saved: Vec<SavedSilence>) -> Self {
        let read = |s: SavedSilence| Some((s.wire.id.clone(), Silence::read(s.wire, s.updated).ok()?));
        Silences(saved.into_iter().filter_map(read).collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Silence> {
        self.0.values()
    }

    pub fn get(&self, id: &str) -> Option<&Silence> {
        self.0.get(id)
    }

    /// Adds or changes a silence; its id. One that has ended, or whose matchers change, ends and a new one takes its place.
    pub fn set(&mut self, mut wire: WireSilence, now: i64) -> Result<String, String> {
        self.0.retain(|_, s| now - s.ends < ENDED_KEPT_MS);
        let known = wire.id.clone();
        if !known.is_empty() && !self.0.contains_key(&known) {
            return Err(format!("silence not found: {known}"));
        }
        let read = Silence::read(wire.clone(), now)?;
        if read.ends <= now {
            return Err("end time can't be in the past".into());
        }
        if let Some(before) = self.0.get(&known)
            && (before.state(now) == SilenceState::Expired || before.wire.matchers != wire.matchers)
        {
            self.expire(&known, now);
            wire.id.clear();
        }
        if wire.id.is_empty() {
            if self.0.len() >= SILENCES_MAX {
                return Err(format!("there are {SILENCES_MAX} silences already"));
            }
            wire.id = new_id();
        }
        // A start in the past is now.
        if read.starts < now && !self.0.contains_key(&wire.id) {
            wire.starts_at = time(now);
        }
        let id = wire.id.clone();
        self.0.insert(id.clone(), Silence::read(wire, now)?);
        Ok(id)
    }

    /// Ends a silence; whether it is known.
    pub fn expire(&mut self, id: &str, now: i64) -> bool {
        let Some(silence) = self.0.get_mut(id) else { return false };
        if silence.state(now) != SilenceState::Expired {
            silence.starts = silence.starts.min(now);
            silence.ends = now;
            silence.wire.starts_at = time(silence.starts);
            silence.wire.ends_at = time(now);
            silence.updated = now;
        }
        true
    }

    /// Active silences that match.
    pub fn of<'a>(&'a self, labels: &'a Labels, now: i64) -> impl Iterator<Item = &'a str> + 'a {
        self.0
            .iter()
            .filter(move |(_, s)| {
                s.state(now) == SilenceState::Active && s.matchers.iter().all(|m| m.matches(labels))
            })
            .map(|(id, _)| id.as_str())
    }
}

/// A random id in the form of a UUID.
fn new_id() -> String {
    let bytes: [u8; 16] = rand::random();
    let hex = hex::encode(bytes);
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(id: &str, value: &str, from: &str, to: &str) -> WireSilence {
        let text = format!(
            "{{\"id\":\"{id}\",\"matchers\":[{{\"name\":\"a\",\"value\":\"{value}\",\"isRegex\":true}}],\"startsAt\":\"{from}\",\"endsAt\":\"{to}\"}}"
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_silence_begins_changes_and_ends() {
        let mut silences = Silences::default();
        let labels = Labels::from_pairs([("a", "xy")]);
        let id = silences.set(wire("", "x.*", "1970-01-01T00:00:10Z", "1970-01-01T00:01:00Z"), 1_000).unwrap();
        let matching = |s: &Silences, now| s.of(&labels, now).count();
        assert_eq!((matching(&silences, 9_999), matching(&silences, 10_000), matching(&silences, 60_000)), (0, 1, 0));
        let same = silences.set(wire(&id, "x.*", "1970-01-01T00:00:10Z", "1970-01-01T00:02:00Z"), 1_000).unwrap();
        assert_eq!((same == id, matching(&silences, 60_000)), (true, 1));
        let other = silences.set(wire(&id, "y", "1970-01-01T00:00:10Z", "1970-01-01T00:02:00Z"), 20_000).unwrap();
        assert!(other != id && matching(&silences, 30_000) == 0);
        assert!(silences.expire(&other, 21_000) && !silences.expire("nope", 0));
        let back = Silences::restore(silences.saved());
        assert_eq!(back.iter().count(), 2);
        for (bad, why) in [
            (wire("", "(", "1970-01-01T00:00:10Z", "1970-01-01T00:01:00Z"), "invalid label matcher"),
            (wire("", ".*", "1970-01-01T00:00:10Z", "1970-01-01T00:01:00Z"), "empty string"),
            (wire("", "x", "1970-01-01T00:00:10Z", "1970-01-01T00:00:01Z"), "before start"),
            (wire("", "x", "then", "1970-01-01T00:00:01Z"), "bad time"),
            (wire("zz", "x", "1970-01-01T00:00:10Z", "1970-01-01T00:01:00Z"), "not found"),
        ] {
            let e = silences.set(bad, 1_000).unwrap_err();
            assert!(e.contains(why), "{e}");
        }
    }

    #[test]
    fn regular_expressions_of_one_silence_and_of_one_filter_share_a_budget() {
        const LARGE: &str = "(a{1000}){50}";
        let mut silence = wire("", LARGE, "1970-01-01T00:00:10Z", "1970-01-01T00:01:00Z");
        let of = |wire: &WireSilence| Silences::default().set(wire.clone(), 1_000);
        assert!(of(&silence).is_ok());
        let one = silence.matchers[0].clone();
        silence.matchers.resize(40, one);
        let e = of(&silence).unwrap_err();
        assert!(e.contains("exceeds size limit of"), "{e}");
        // All filters of a request.
        let text = format!("a=~\"{LARGE}\"");
        let mut budget = MatcherBudget::default();
        let mut ask = || super::super::matchers::parse_matchers_within(&text, &mut budget);
        assert!(ask().is_ok());
        let e = (0..39).find_map(|_| ask().err()).unwrap();
        assert!(e.contains("exceeds size limit of"), "{e}");
    }
}
