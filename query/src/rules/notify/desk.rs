//! The notifications of a site without an Alertmanager, at work: takes word on alerts, tells receivers in time, remembers
//! over a restart what it told.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use serde_json::{Value as Json, json};
use storage::{
    metrics::MetricLine,
    model::Matcher,
    vfs::{Clock, OsVfs, Vfs as _},
};
use tokio::{
    sync::Notify,
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    Notice, deliver,
    dispatch::{Dispatch, GroupKey, Message, Saved, fingerprint, labels_of},
    matchers::all_match,
    message::Content,
    plan::Plan,
    silence::WireSilence,
    time,
};

/// Largest file of what was told.
const SAVED_BYTES_MAX: usize = 64 << 20;

/// After a delivery that failed its group is due again this soon, unless it is due earlier.
const AGAIN_MS: i64 = 10_000;

/// Longest sleep: what expires by itself is noticed this soon.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Clones share it.
#[derive(Clone)]
pub struct Desk(Arc<Inner>);

/// What a reload changes.
struct Force {
    plan: Plan,
    external_url: String,
}

struct Inner {
    /// Changed only by whoever holds `state`, so that numbers of routes in there are those of the plan.
    force: RwLock<Arc<Force>>,
    state: Mutex<Dispatch>,
    changed: Notify,
    clock: Arc<dyn Clock>,
    file: PathBuf,
    /// One writer at a time, so that the newest state is on the disk last.
    writing: tokio::sync::Mutex<()>,
    sent: AtomicU64,
    failed: AtomicU64,
    started_ms: i64,
}

impl Desk {
    /// Reads what was told before. Blocks.
    pub fn open(plan: Plan, clock: Arc<dyn Clock>, external_url: String, file: PathBuf) -> Self {
        let saved = match OsVfs.read(&file, SAVED_BYTES_MAX) {
            Ok(bytes) => serde_json::from_slice::<Saved>(&bytes).map_err(|e| e.to_string()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Saved::default()),
            Err(e) => Err(e.to_string()),
        };
        let saved = saved.unwrap_or_else(|error| {
            tracing::error!(path = %file.display(), error, "silences and what was told cannot be read and are set aside; alerts are told again");
            if let Err(e) = OsVfs.rename(&file, &file.with_extension("damaged")) {
                tracing::error!(path = %file.display(), error = %e, "cannot set the file aside");
            }
            Saved::default()
        });
        let started_ms = clock.now().nanos().div_euclid(1_000_000);
        Desk(Arc::new(Inner {
            force: RwLock::new(Arc::new(Force { plan, external_url })),
            state: Mutex::new(Dispatch::restore(saved)),
            changed: Notify::new(),
            clock,
            file,
            writing: tokio::sync::Mutex::new(()),
            sent: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            started_ms,
        }))
    }

    fn now(&self) -> i64 {
        self.0.clock.now().nanos().div_euclid(1_000_000)
    }

    fn force(&self) -> Arc<Force> {
        self.0.force.read().clone()
    }

    /// Puts another plan in force. Silences and what was told stay; so do groups and their times unless the plan differs.
    pub fn replace(&self, plan: Plan, external_url: String) {
        let mut state = self.0.state.lock();
        let same = self.force().plan.mark == plan.mark;
        let force = Arc::new(Force { plan, external_url });
        if !same {
            state.regroup(&force.plan, self.now());
        }
        *self.0.force.write() = force;
        drop(state);
        self.0.changed.notify_one();
    }

    pub fn take(&self, notices: &[Notice]) {
        let mut state = self.0.state.lock();
        state.take(&self.force().plan, notices, self.now());
        drop(state);
        self.0.changed.notify_one();
    }

    /// Tells receivers until told to stop. Deliveries at work are given up then: they are made again after a restart.
    pub async fn run(self, stop: CancellationToken) {
        let client = deliver::client();
        let mut deliveries: JoinSet<(Message, Result<(), String>)> = JoinSet::new();
        let mut open: Vec<(GroupKey, usize, bool)> = Vec::new();
        let mut groups: HashMap<Id, GroupKey> = HashMap::new();
        loop {
            let now = self.now();
            let (due, force) = {
                let mut state = self.0.state.lock();
                let force = self.force();
                (state.due(&force.plan, now), force)
            };
            for message in due {
                match open.iter_mut().find(|(k, _, _)| *k == message.group) {
                    Some(entry) => entry.1 += 1,
                    None => open.push((message.group.clone(), 1, false)),
                }
                let key = message.group.clone();
                let task = deliveries.spawn(self.clone().deliver(client.clone(), force.clone(), message, now));
                groups.insert(task.id(), key);
            }
            let next = self.0.state.lock().next();
            let wait =
                next.map_or(SLEEP_MAX, |n| Duration::from_millis((n - now).max(1).unsigned_abs()).min(SLEEP_MAX));
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
                Some(done) = deliveries.join_next_with_id() => match done {
                    Ok((id, (message, result))) => {
                        groups.remove(&id);
                        self.finish(&message, result, &mut open).await;
                    }
                    Err(e) => {
                        tracing::error!(error = %e, "a delivery panicked; it is tried again");
                        if let Some(key) = groups.remove(&e.id()) {
                            self.close(&key, true, &mut open);
                        }
                    }
                },
            }
        }
    }

    async fn deliver(
        self,
        client: reqwest::Client,
        force: Arc<Force>,
        message: Message,
        now: i64,
    ) -> (Message, Result<(), String>) {
        let content = Content {
            receiver: &message.receiver,
            group: &message.group,
            alerts: &message.alerts,
            external_url: &force.external_url,
        };
        let channel = force.plan.receivers.get(&message.receiver).and_then(|c| c.get(message.channel));
        let result = match channel {
            Some(channel) => deliver::deliver(&client, channel, &content, &force.plan.library, now).await,
            None => Err("the receiver has no such channel".to_owned()),
        };
        (message, result)
    }

    async fn finish(&self, message: &Message, result: Result<(), String>, open: &mut Vec<(GroupKey, usize, bool)>) {
        let failed = result.is_err();
        match result {
            Ok(()) => {
                self.0.sent.fetch_add(1, Ordering::Relaxed);
                self.0.state.lock().told(message);
                self.save().await;
            }
            Err(error) => {
                self.0.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(receiver = %message.receiver, alerts = message.alerts.len(), error, "a notification could not be delivered; tried again");
            }
        }
        self.close(&message.group, failed, open);
    }

    /// One of a group's deliveries has ended.
    fn close(&self, group: &GroupKey, failed: bool, open: &mut Vec<(GroupKey, usize, bool)>) {
        let Some(at) = open.iter().position(|(k, _, _)| k == group) else { return };
        open[at].1 -= 1;
        open[at].2 |= failed;
        if open[at].1 == 0 {
            let (key, _, failed) = open.swap_remove(at);
            let again = failed.then(|| self.now() + AGAIN_MS);
            self.0.state.lock().finished(&key, again);
        }
    }

    /// Durable on return; a failure is in the log.
    async fn save(&self) {
        let _one = self.0.writing.lock().await;
        let text = serde_json::to_vec(&self.0.state.lock().saved()).expect("plain data is JSON");
        let file = self.0.file.clone();
        let write = move || {
            if let Some(dir) = file.parent() {
                OsVfs.create_dir_all(dir)?;
            }
            OsVfs.replace(&file, &text)
        };
        let error = match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => return,
            Ok(Err(e)) => e.to_string(),
            Err(e) => e.to_string(),
        };
        tracing::error!(path = %self.0.file.display(), error, "silences and what was told cannot be written");
    }

    pub fn metrics(&self) -> Vec<MetricLine> {
        let line =
            |name, help, kind, value: u64| MetricLine { name, help, kind, labels: vec![], value: value as f64 };
        let state = self.0.state.lock();
        vec![
            line(
                "rules_messages_sent_total",
                "Messages delivered to receivers.",
                "counter",
                self.0.sent.load(Ordering::Relaxed),
            ),
            line(
                "rules_messages_failed_total",
                "Deliveries to receivers that failed and are tried again.",
                "counter",
                self.0.failed.load(Ordering::Relaxed),
            ),
            line(
                "rules_messages_alerts_left_out_total",
                "Alerts left out because too many were known.",
                "counter",
                state.left_out,
            ),
            line("rules_messages_groups", "Groups of alerts at work.", "gauge", state.groups() as u64),
            line("rules_messages_alerts", "Alerts known.", "gauge", state.alerts.len() as u64),
        ]
    }

    /// Adds or changes a silence; its id.
    pub async fn silence(&self, wire: WireSilence) -> Result<String, String> {
        let id = self.0.state.lock().silences.set(wire, self.now())?;
        self.save().await;
        self.0.changed.notify_one();
        Ok(id)
    }

    /// Ends a silence; whether there is one of that id.
    pub async fn unsilence(&self, id: &str) -> bool {
        let known = self.0.state.lock().silences.expire(id, self.now());
        if known {
            self.save().await;
        }
        known
    }

    /// Silences as the API shows them; with matchers, those that have all of them among theirs.
    pub fn silences(&self, filter: &[Matcher]) -> Vec<Json> {
        let now = self.now();
        let state = self.0.state.lock();
        let wanted = |s: &&super::silence::Silence| {
            let labels = s.wire.matchers.iter().map(|m| (m.name.as_str(), m.value.as_str())).collect();
            all_match(filter, &labels)
        };
        state.silences.iter().filter(wanted).map(|s| s.shown(now)).collect()
    }

    pub fn silence_of(&self, id: &str) -> Option<Json> {
        self.0.state.lock().silences.get(id).map(|s| s.shown(self.now()))
    }

    /// Alerts that fire and are wanted, as the API shows them.
    pub fn alerts(&self, wanted: &Wanted) -> Vec<Json> {
        let now = self.now();
        let state = self.0.state.lock();
        let force = self.force();
        state.alerts.values().filter_map(|n| shown(&state, &force.plan, n, wanted, now)).collect()
    }

    /// As [`Desk::alerts`], by the groups in which receivers are told of them.
    pub fn groups(&self, wanted: &Wanted) -> Vec<Json> {
        let now = self.now();
        let state = self.0.state.lock();
        let force = self.force();
        let mut out = Vec::new();
        for (key, alerts) in state.grouped() {
            let alerts: Vec<Json> = alerts.filter_map(|n| shown(&state, &force.plan, n, wanted, now)).collect();
            if !alerts.is_empty() {
                let receiver = &force.plan.routes[key.route].receiver;
                out.push(json!({"labels": key.labels, "receiver": {"name": receiver}, "alerts": alerts}));
            }
        }
        out
    }

    /// Names of all receivers.
    pub fn receivers(&self) -> Vec<String> {
        self.force().plan.receivers.keys().cloned().collect()
    }

    pub fn started_ms(&self) -> i64 {
        self.0.started_ms
    }
}

/// Which alerts are asked for.
#[derive(Debug)]
pub struct Wanted {
    pub matchers: Vec<Matcher>,
    /// Those that are neither of what follows.
    pub active: bool,
    pub silenced: bool,
    pub inhibited: bool,
}

/// An alert as the API shows it, if it fires and is wanted.
fn shown(state: &Dispatch, plan: &Plan, notice: &Notice, wanted: &Wanted, now: i64) -> Option<Json> {
    let labels = labels_of(&notice.labels);
    if notice.resolved || notice.ends_at <= now || !all_match(&wanted.matchers, &labels) {
        return None;
    }
    let silenced_by: Vec<&str> = state.silences.of(&labels, now).collect();
    let inhibited_by: Vec<String> = state.inhibitors(plan, &labels, now).map(|f| format!("{f:016x}")).collect();
    let quiet = !silenced_by.is_empty() || !inhibited_by.is_empty();
    if (!wanted.active && !quiet)
        || (!wanted.silenced && !silenced_by.is_empty())
        || (!wanted.inhibited && !inhibited_by.is_empty())
    {
        return None;
    }
    let receivers = state.receivers(plan, &notice.labels);
    Some(json!({
        "labels": notice.labels,
        "annotations": notice.annotations,
        "startsAt": time(notice.starts_at),
        "endsAt": time(notice.ends_at),
        "updatedAt": time(now),
        "generatorURL": notice.generator_url,
        "fingerprint": format!("{:016x}", fingerprint(&notice.labels)),
        "receivers": receivers.iter().map(|r| json!({"name": r})).collect::<Vec<_>>(),
        "status": {
            "state": if quiet { "suppressed" } else { "active" },
            "silencedBy": silenced_by,
            "inhibitedBy": inhibited_by,
            "mutedBy": [],
        },
    }))
}
