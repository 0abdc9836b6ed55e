//! The owner of the groups' tasks: begins and ends them, and takes the place of those that panic.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
};

use storage::model::TenantId;
use tokio::{
    sync::mpsc,
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    Inner, LOOK_EVERY, Reloaded, Request, RulerSettings, millis,
    sources::{Loaded, Seen, seen},
};
use crate::rules::{file::RuleGroup, group::Group};

/// A group in force.
pub(super) struct Slot {
    tenant: TenantId,
    file: String,
    definition: RuleGroup,
    task: Id,
    stop: CancellationToken,
}

/// The owner of the groups' tasks.
pub(super) struct Work {
    pub inner: Arc<Inner>,
    pub groups: HashMap<String, Slot>,
    pub tasks: JoinSet<Group>,
    /// Those that tell of alerts.
    pub deliveries: JoinSet<()>,
    pub seen: Seen,
}

impl Work {
    pub async fn run(mut self, mut inbox: mpsc::Receiver<Request>, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(request) = inbox.recv() => match request {
                    Request::Reload(settings, answer) => {
                        let result = self.reload(settings).await;
                        let _ = answer.send(result);
                    }
                    Request::Alertmanagers(all) => {
                        self.inner.notifier.set_alertmanagers(all, &mut self.deliveries, &stop);
                    }
                },
                Some(ended) = self.deliveries.join_next() => {
                    if let Err(e) = ended {
                        tracing::error!(error = %e, "a task that tells of alerts panicked");
                    }
                }
                Some(ended) = self.tasks.join_next_with_id() => {
                    if let Err(e) = ended {
                        self.revive(e.id(), &e.to_string()).await;
                    }
                }
                _ = look.tick() => {
                    let inner = self.inner.clone();
                    let look = move || seen(&inner.settings().sources, &inner.discover);
                    if tokio::task::spawn_blocking(look).await.is_ok_and(|now| now != self.seen) {
                        // The faults are in the log.
                        let _ = self.reload(None).await;
                    }
                }
            }
        }
        self.groups.values().for_each(|slot| slot.stop.cancel());
        while self.tasks.join_next().await.is_some() {}
        while self.deliveries.join_next().await.is_some() {}
    }

    async fn reload(&mut self, settings: Option<Box<RulerSettings>>) -> Reloaded {
        let settings = settings.map_or_else(|| self.inner.settings(), |s| Arc::new(*s));
        let (seen, groups) = self.inner.read_files(settings.clone()).await;
        self.seen = seen;
        self.inner.reloads.fetch_add(1, Ordering::Relaxed);
        self.inner.in_force_is_latest.store(groups.is_ok(), Ordering::Relaxed);
        match groups {
            Ok(groups) => {
                *self.inner.settings.write() = settings.clone();
                self.inner.notifier.set_resend_delay(settings.notify.resend_delay);
                self.apply(groups, &settings).await;
                tracing::info!(groups = self.groups.len(), "rules loaded");
                Ok(self.groups.len())
            }
            Err(errors) => {
                self.inner.reloads_failed.fetch_add(1, Ordering::Relaxed);
                for e in &errors {
                    tracing::error!(error = %e, "rule file is faulty; the former rules stay in force");
                }
                Err(errors)
            }
        }
    }

    /// Puts the groups in force; those that did not change go on undisturbed.
    pub async fn apply(&mut self, loaded: Vec<Loaded>, settings: &RulerSettings) {
        let default_ms = millis(settings.interval).max(1);
        let mut wanted: BTreeMap<String, (TenantId, String, Group)> = BTreeMap::new();
        for (tenant, file, definition) in loaded {
            let group = Group::new(&tenant, &file, definition, default_ms);
            wanted.insert(group.key.clone(), (tenant, file, group));
        }
        let same = |slot: &Slot, group: &Group| slot.definition == *group.definition;
        let outdated: Vec<String> = self
            .groups
            .iter()
            .filter(|(key, slot)| wanted.get(*key).is_none_or(|(_, _, g)| !same(slot, g)))
            .map(|(key, _)| key.clone())
            .collect();
        wanted.retain(|key, _| !self.groups.contains_key(key) || outdated.contains(key));
        let mut former: HashMap<String, Group> = HashMap::new();
        let ending: Vec<Slot> = outdated.iter().filter_map(|key| self.groups.remove(key)).collect();
        ending.iter().for_each(|slot| slot.stop.cancel());
        while former.len() < ending.len() {
            match self.tasks.join_next().await {
                Some(Ok(group)) => drop(former.insert(group.key.clone(), group)),
                Some(Err(e)) => {
                    tracing::error!(error = %e, "a rule group panicked while it was replaced");
                    break;
                }
                None => break,
            }
        }
        for slot in ending {
            let key = format!("{};{};{}", slot.tenant, slot.file, slot.definition.name);
            if !wanted.contains_key(&key) {
                let name = (slot.tenant.clone(), Arc::from(slot.file.as_str()), slot.definition.name.clone());
                self.inner.views.write().remove(&name);
                if let Some(mut group) = former.remove(&key) {
                    group.end_series(self.inner.now_ms(), &self.inner.site(&slot.tenant)).await;
                }
            }
        }
        for (key, (tenant, file, mut group)) in wanted {
            match former.remove(&key) {
                Some(before) => group.continues(before),
                None => self.restore(&mut group).await,
            }
            self.spawn(tenant, file, group);
        }
    }

    async fn restore(&self, group: &mut Group) {
        let (file, now) = (self.inner.state_file(&group.key), self.inner.now_ms());
        if let Ok(saved) = tokio::task::spawn_blocking(move || file.load(now)).await {
            group.restore(saved);
        }
    }

    fn spawn(&mut self, tenant: TenantId, file: String, group: Group) {
        let stop = CancellationToken::new();
        let (key, definition) = (group.key.clone(), group.definition.as_ref().clone());
        // Whoever is told that it is in force finds it.
        self.inner.show(&tenant, &group);
        let task = self.tasks.spawn(self.inner.clone().run_group(tenant.clone(), group, stop.clone())).id();
        self.groups.insert(key, Slot { tenant, file, definition, task, stop });
    }

    /// A group whose task panicked begins again from its file.
    async fn revive(&mut self, task: Id, why: &str) {
        let Some(key) = self.groups.iter().find(|(_, s)| s.task == task).map(|(k, _)| k.clone()) else { return };
        tracing::error!(group = %key, error = why, "rule group panicked; it begins again from its kept state");
        let Some(slot) = self.groups.remove(&key) else { return };
        let default_ms = millis(self.inner.settings().interval).max(1);
        let mut group = Group::new(&slot.tenant, &slot.file, slot.definition, default_ms);
        self.restore(&mut group).await;
        self.spawn(slot.tenant, slot.file, group);
    }
}
