//! Which receiver is told of which alerts and when: grouping, silences, inhibition, repeats. Pure: the clock is an argument.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use storage::model::Labels;

use super::{
    Notice,
    matchers::all_match,
    plan::Plan,
    silence::{SavedSilence, Silences},
};

/// Alerts known at a time; of more, new ones are left out and counted.
const ALERTS_MAX: usize = 100_000;

/// How long what was told is remembered after it was told last. Source: Alertmanager's retention.
const LOG_KEPT_MS: i64 = 120 * 3_600_000;

/// An alert's labels, sorted.
pub type Key = BTreeMap<String, String>;

/// A route and the labels its alerts are grouped by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    pub route: usize,
    pub labels: Key,
}

#[derive(Debug, Default)]
struct Group {
    alerts: BTreeMap<Key, Notice>,
    next: i64,
    /// A delivery is under way.
    busy: bool,
    /// Alerts that the last messages told the end of.
    ended: Vec<Key>,
}

/// What one channel was told last of a group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Told {
    at: i64,
    firing: BTreeSet<u64>,
    resolved: BTreeSet<u64>,
}

/// What survives a restart.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Saved {
    version: u32,
    log: BTreeMap<String, Told>,
    silences: Vec<SavedSilence>,
}

/// A message to make: to one channel of a receiver, on one group.
#[derive(Debug)]
pub struct Message {
    pub group: GroupKey,
    pub receiver: String,
    pub channel: usize,
    /// Firing ones first.
    pub alerts: Vec<Notice>,
    told: Told,
    mark: String,
}

#[derive(Debug, Default)]
pub struct Dispatch {
    groups: BTreeMap<GroupKey, Group>,
    /// All alerts, for inhibition and for the API.
    pub alerts: BTreeMap<Key, Notice>,
    log: BTreeMap<String, Told>,
    pub silences: Silences,
    pub left_out: u64,
}

pub fn fingerprint(labels: &Key) -> u64 {
    labels_of(labels).id() as u64
}

pub fn labels_of(labels: &Key) -> Labels {
    labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect()
}

impl Dispatch {
    pub fn restore(saved: Saved) -> Self {
        Dispatch { log: saved.log, silences: Silences::restore(saved.silences), ..Dispatch::default() }
    }

    pub fn saved(&self) -> Saved {
        Saved { version: 1, log: self.log.clone(), silences: self.silences.saved() }
    }

    /// Takes word on alerts.
    pub fn take(&mut self, plan: &Plan, notices: &[Notice], now: i64) {
        for notice in notices {
            if !self.alerts.contains_key(&notice.labels) && self.alerts.len() >= ALERTS_MAX {
                self.left_out += 1;
                continue;
            }
            self.alerts.insert(notice.labels.clone(), notice.clone());
            for number in plan.routes_of(&labels_of(&notice.labels)) {
                let route = &plan.routes[number];
                let labels = match &route.group_by {
                    None => notice.labels.clone(),
                    Some(names) => {
                        names.iter().filter_map(|n| notice.labels.get(n).map(|v| (n.clone(), v.clone()))).collect()
                    }
                };
                let key = GroupKey { route: number, labels };
                if !self.groups.contains_key(&key) {
                    // Nobody was told of it: nobody is told of its end.
                    if notice.resolved && !self.knows(plan, &key) {
                        continue;
                    }
                    let waits = notice.starts_at + route.wait_ms > now;
                    let next = if waits { now + route.wait_ms } else { now };
                    self.groups.insert(key.clone(), Group { next, ..Group::default() });
                }
                let group = self.groups.get_mut(&key).expect("inserted above");
                group.alerts.insert(notice.labels.clone(), notice.clone());
            }
        }
    }

    /// Groups all alerts anew, under another plan. What was told is remembered by what a route says, so that it is not told
    /// again where nothing changed.
    pub fn regroup(&mut self, plan: &Plan, now: i64) {
        self.groups.clear();
        let notices: Vec<Notice> = self.alerts.values().cloned().collect();
        self.take(plan, &notices, now);
    }

    fn knows(&self, plan: &Plan, key: &GroupKey) -> bool {
        let mark = mark(plan, key, "");
        self.log.range(mark.clone()..).next().is_some_and(|(m, _)| m.starts_with(&mark))
    }

    /// When something may be due next.
    pub fn next(&self) -> Option<i64> {
        self.groups.values().filter(|g| !g.busy).map(|g| g.next).min()
    }

    /// The messages to make now. Their groups rest until [`Dispatch::told`] or [`Dispatch::failed`] is called for each.
    pub fn due(&mut self, plan: &Plan, now: i64) -> Vec<Message> {
        for notice in self.alerts.values_mut().chain(self.groups.values_mut().flat_map(|g| g.alerts.values_mut())) {
            // Nobody says any more that it fires.
            if !notice.resolved && notice.ends_at <= now {
                notice.resolved = true;
            }
        }
        let due: Vec<GroupKey> =
            self.groups.iter().filter(|(_, g)| !g.busy && g.next <= now).map(|(k, _)| k.clone()).collect();
        let mut out = Vec::new();
        for key in due {
            let route = &plan.routes[key.route];
            let mut alerts: Vec<Notice> = self.groups[&key].alerts.values().cloned().collect();
            let ended = alerts.iter().filter(|n| n.resolved).map(|n| n.labels.clone()).collect();
            alerts.retain(|n| !self.is_muted(plan, &n.labels, now));
            alerts.sort_by_key(|n| n.resolved);
            let mut messages = Vec::new();
            let channels = plan.receivers.get(&route.receiver).map_or(&[][..], Vec::as_slice);
            for (i, channel) in channels.iter().enumerate() {
                let mark = mark(plan, &key, &i.to_string());
                let told = Told {
                    at: now,
                    firing: alerts.iter().filter(|n| !n.resolved).map(|n| fingerprint(&n.labels)).collect(),
                    resolved: alerts.iter().filter(|n| n.resolved).map(|n| fingerprint(&n.labels)).collect(),
                };
                if !is_news(self.log.get(&mark), &told, route.repeat_ms, channel.send_resolved) {
                    continue;
                }
                let kept = alerts.iter().filter(|n| channel.send_resolved || !n.resolved).cloned();
                let (group, receiver) = (key.clone(), route.receiver.clone());
                messages.push(Message { group, receiver, channel: i, alerts: kept.collect(), told, mark });
            }
            let group = self.groups.get_mut(&key).expect("it is due");
            group.next = now + route.interval_ms;
            group.busy = !messages.is_empty();
            group.ended = ended;
            if messages.is_empty() {
                self.forget_ended(&key);
            }
            out.extend(messages);
        }
        self.alerts.retain(|_, n| !n.resolved || n.ends_at + 3_600_000 > now);
        self.log.retain(|_, t| t.at + LOG_KEPT_MS > now);
        out
    }

    /// A message arrived.
    pub fn told(&mut self, message: &Message) {
        self.log.insert(message.mark.clone(), message.told.clone());
    }

    /// All messages of a group were made; `failed`: not all arrived, so it is due again soon.
    pub fn finished(&mut self, key: &GroupKey, failed: Option<i64>) {
        let Some(group) = self.groups.get_mut(key) else { return };
        group.busy = false;
        match failed {
            Some(again) => group.next = group.next.min(again),
            None => self.forget_ended(key),
        }
    }

    /// Alerts whose end was told, and that did not begin again, leave the group; an empty group goes.
    fn forget_ended(&mut self, key: &GroupKey) {
        let Some(group) = self.groups.get_mut(key) else { return };
        for labels in std::mem::take(&mut group.ended) {
            if group.alerts.get(&labels).is_some_and(|n| n.resolved) {
                group.alerts.remove(&labels);
            }
        }
        if group.alerts.is_empty() {
            self.groups.remove(key);
        }
    }

    pub fn is_muted(&self, plan: &Plan, labels: &Key, now: i64) -> bool {
        let labels = labels_of(labels);
        self.silences.of(&labels, now).next().is_some() || self.inhibitors(plan, &labels, now).next().is_some()
    }

    /// Alerts that fire and keep this one quiet.
    pub fn inhibitors<'a>(&'a self, plan: &'a Plan, labels: &'a Labels, now: i64) -> impl Iterator<Item = u64> + 'a {
        let rules = plan.inhibit.iter().filter(move |r| all_match(&r.target, labels));
        rules.flat_map(move |rule| {
            let two_sided = all_match(&rule.source, labels);
            self.alerts.values().filter_map(move |source| {
                let of = labels_of(&source.labels);
                let equal = || rule.equal.iter().all(|n| of.get(n).unwrap_or("") == labels.get(n).unwrap_or(""));
                let inhibits = !source.resolved
                    && source.ends_at > now
                    && all_match(&rule.source, &of)
                    && equal()
                    && !(two_sided && all_match(&rule.target, &of));
                inhibits.then(|| of.id() as u64)
            })
        })
    }

    /// Receivers of an alert, in the order of their routes.
    pub fn receivers<'a>(&self, plan: &'a Plan, labels: &Key) -> Vec<&'a str> {
        let mut out: Vec<&str> = Vec::new();
        for route in plan.routes_of(&labels_of(labels)) {
            let name = plan.routes[route].receiver.as_str();
            if !out.contains(&name) {
                out.push(name);
            }
        }
        out
    }

    /// Groups at work, each with its alerts.
    pub fn grouped(&self) -> impl Iterator<Item = (&GroupKey, impl Iterator<Item = &Notice>)> {
        self.groups.iter().map(|(key, group)| (key, group.alerts.values()))
    }

    /// Groups at work.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }
}

/// What names a group of a channel over a restart: the route by its receiver and matchers, not by its place.
fn mark(plan: &Plan, key: &GroupKey, channel: &str) -> String {
    let route = &plan.routes[key.route];
    let matchers: Vec<String> = route.matchers.iter().map(ToString::to_string).collect();
    format!("{} {{{}}} {:?} #{channel}", route.receiver, matchers.join(","), key.labels)
}

/// Whether a channel has to be told. Source: Alertmanager's rules of deduplication.
fn is_news(before: Option<&Told>, now: &Told, repeat_ms: i64, send_resolved: bool) -> bool {
    let Some(before) = before else { return !now.firing.is_empty() };
    if !now.firing.is_subset(&before.firing) {
        return true;
    }
    if now.firing.is_empty() {
        // All have ended: news if it had been told that they fire.
        return send_resolved && !before.firing.is_empty();
    }
    if send_resolved && !now.resolved.is_subset(&before.resolved) {
        return true;
    }
    before.at + repeat_ms <= now.at
}
