//! Alerts on their way to people: to Alertmanagers, each with its own queue, and by the [`Desk`] straight to webhooks, Slack
//! and mail, with routes, groups, silences and inhibition.
//!
//! Of one alert only the newest word is queued. What cannot be delivered waits and is tried again, so that nothing is
//! missed while a receiver is away; after a restart all that fires is told again, which receivers take for the same.

mod alertmanager;
mod deliver;
mod desk;
mod dispatch;
mod matchers;
mod message;
pub mod plan;
mod queue;
mod silence;
mod smtp;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use storage::{metrics::MetricLine, model::Labels};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use alertmanager::{Alertmanager, Credentials, Post, Relabel, Secret};
pub use desk::{Desk, Wanted};
pub use matchers::{parse_matchers, parse_matchers_within};
use queue::Queue;
pub use silence::WireSilence;

use super::{
    alerting::{Alert, AlertState},
    file::Rule,
    group::Site,
    template::query_escape,
};

/// What is told of one alert. Times are ms since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub starts_at: i64,
    /// Of one that fires: until when it is to be believed without another word.
    pub ends_at: i64,
    pub resolved: bool,
    /// Where the expression can be looked at.
    pub generator_url: String,
}

impl Notice {
    /// External labels are added where the alert has none of that name.
    pub fn of(alert: &Alert, rule: &Rule, site: &Site, at_ms: i64, believed_ms: i64) -> Self {
        let map = |l: &Labels| l.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect::<BTreeMap<_, _>>();
        let mut labels = map(&site.external_labels);
        labels.extend(map(&alert.labels));
        let resolved = alert.state == AlertState::Inactive;
        Notice {
            labels,
            annotations: map(&alert.annotations),
            starts_at: alert.fired_at.unwrap_or(alert.active_at),
            ends_at: alert.resolved_at.filter(|_| resolved).unwrap_or(at_ms + believed_ms),
            resolved,
            generator_url: format!(
                "{}/graph?g0.expr={}&g0.tab=1",
                site.external_url,
                query_escape(rule.expression.text())
            ),
        }
    }
}

/// RFC 3339 with milliseconds, UTC.
pub(crate) fn time(ms: i64) -> String {
    let time = chrono::DateTime::from_timestamp_millis(ms).unwrap_or_default();
    time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// Where alerts go.
#[derive(Clone, Default)]
pub struct NotifySettings {
    /// Between two words on an alert that goes on firing.
    pub resend_delay: Duration,
    pub alertmanagers: Vec<Alertmanager>,
    /// Receivers that are told without an Alertmanager.
    pub desk: Option<Desk>,
}

/// An Alertmanager at work.
struct Target {
    to: Alertmanager,
    queue: Queue,
    stop: CancellationToken,
}

/// Takes notices for all receivers. Clones share them.
#[derive(Clone, Default)]
pub struct Notifier {
    targets: Arc<RwLock<Vec<Target>>>,
    desk: Option<Desk>,
    resend_ms: Arc<AtomicI64>,
    /// How often Alertmanagers were added that have heard nothing yet.
    additions: Arc<AtomicU64>,
}

impl Notifier {
    /// The tasks that deliver end with `stop`.
    pub fn start(settings: NotifySettings, tasks: &mut JoinSet<()>, stop: &CancellationToken) -> Self {
        let notifier = Notifier { desk: settings.desk, ..Notifier::default() };
        notifier.set_resend_delay(settings.resend_delay);
        notifier.set_alertmanagers(settings.alertmanagers, tasks, stop);
        if let Some(desk) = &notifier.desk {
            tasks.spawn(desk.clone().run(stop.clone()));
        }
        notifier
    }

    pub fn set_resend_delay(&self, delay: Duration) {
        let ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        self.resend_ms.store(ms, Ordering::Relaxed);
    }

    /// Alerts go to these from now on. What waits for one that stays goes on waiting.
    pub fn set_alertmanagers(&self, new: Vec<Alertmanager>, tasks: &mut JoinSet<()>, stop: &CancellationToken) {
        let mut targets = self.targets.write();
        let mut former = std::mem::take(&mut *targets);
        former.iter().for_each(|t| t.stop.cancel());
        for to in new {
            let same = former.iter().position(|t| t.to.alerts_url() == to.alerts_url());
            if same.is_none() {
                self.additions.fetch_add(1, Ordering::Relaxed);
            }
            let queue = same.map(|i| former.swap_remove(i).queue).unwrap_or_default();
            let stop = stop.child_token();
            tasks.spawn(to.clone().deliver(queue.clone(), stop.clone()));
            targets.push(Target { to, queue, stop });
        }
    }

    /// Whether anybody is to be told anything.
    pub fn is_empty(&self) -> bool {
        self.desk.is_none() && self.targets.read().is_empty()
    }

    pub fn resend_ms(&self) -> i64 {
        self.resend_ms.load(Ordering::Relaxed)
    }

    /// When this has grown all that fires is to be told again.
    pub fn additions(&self) -> u64 {
        self.additions.load(Ordering::Relaxed)
    }

    pub fn notify(&self, notices: &[Notice]) {
        for target in self.targets.read().iter() {
            match &target.to.relabel {
                None => target.queue.put(notices),
                Some(relabel) => {
                    let told: Vec<Notice> = notices.iter().filter_map(|n| relabelled(n, relabel)).collect();
                    target.queue.put(&told);
                }
            }
        }
        if let Some(desk) = &self.desk {
            desk.take(notices);
        }
    }

    pub fn desk(&self) -> Option<Desk> {
        self.desk.clone()
    }

    /// Addresses that Alertmanagers are sent to.
    pub fn alertmanagers(&self) -> Vec<String> {
        self.targets.read().iter().map(|t| t.to.alerts_url()).collect()
    }

    pub fn metrics(&self) -> Vec<MetricLine> {
        let mut out = self.desk.as_ref().map(Desk::metrics).unwrap_or_default();
        let families = [
            ("rules_notifications_sent_total", "Alerts delivered to an Alertmanager.", "counter"),
            (
                "rules_notifications_errors_total",
                "Deliveries to an Alertmanager that failed and are tried again.",
                "counter",
            ),
            (
                "rules_notifications_dropped_total",
                "Alerts left out because an Alertmanager's queue was full or it refused them.",
                "counter",
            ),
            ("rules_notifications_queue_length", "Alerts that wait for an Alertmanager.", "gauge"),
        ];
        for (i, (name, help, kind)) in families.into_iter().enumerate() {
            for target in self.targets.read().iter() {
                let labels = vec![("alertmanager", target.to.shown_url())];
                out.push(MetricLine { name, help, kind, labels, value: target.queue.figures()[i] as f64 });
            }
        }
        out
    }
}

/// As an Alertmanager is told of it; `None`: not at all.
fn relabelled(notice: &Notice, relabel: &Relabel) -> Option<Notice> {
    let mut labels: Labels = notice.labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let kept = relabel(&mut labels);
    let labels = labels.iter().filter(|(_, v)| !v.is_empty()).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    kept.then(|| Notice { labels, ..notice.clone() })
}

#[cfg(test)]
mod desk_tests;
#[cfg(test)]
mod tests;
