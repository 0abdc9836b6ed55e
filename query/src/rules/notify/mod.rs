//! Alerts on their way to people: to Alertmanagers, each with its own queue, and by the [`Desk`] straight to webhooks, Slack
//! and mail, with routes, groups, silences and inhibition.
//!
//! Of one alert only the newest word is queued. What cannot be delivered waits and is tried again, so that nothing is
//! missed while a receiver is away; after a restart all that fires is told again, which receivers take for the same.

mod alertmanager;
mod deliver;
mod desk;
mod dispatch;
mod message;
pub mod plan;
mod queue;
mod silence;
mod smtp;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use storage::{metrics::MetricLine, model::Labels};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use alertmanager::{Alertmanager, Credentials, Secret};
pub use desk::Desk;
pub use plan::parse_matchers;
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

/// Takes notices for all receivers. Clones share them.
#[derive(Clone, Default)]
pub struct Notifier {
    targets: Arc<Vec<(Alertmanager, Queue)>>,
    desk: Option<Desk>,
    resend_ms: i64,
}

impl Notifier {
    /// The tasks that deliver end with `stop`.
    pub fn start(settings: NotifySettings, tasks: &mut JoinSet<()>, stop: &CancellationToken) -> Self {
        let mut targets = Vec::new();
        for target in settings.alertmanagers {
            let queue = Queue::default();
            tasks.spawn(target.clone().deliver(queue.clone(), stop.clone()));
            targets.push((target, queue));
        }
        let resend_ms = i64::try_from(settings.resend_delay.as_millis()).unwrap_or(i64::MAX);
        if let Some(desk) = &settings.desk {
            tasks.spawn(desk.clone().run(stop.clone()));
        }
        Notifier { targets: Arc::new(targets), desk: settings.desk, resend_ms }
    }

    /// Whether anybody is to be told anything.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.desk.is_none()
    }

    pub fn resend_ms(&self) -> i64 {
        self.resend_ms
    }

    pub fn notify(&self, notices: &[Notice]) {
        for (_, queue) in self.targets.iter() {
            queue.put(notices);
        }
        if let Some(desk) = &self.desk {
            desk.take(notices);
        }
    }

    pub fn desk(&self) -> Option<Desk> {
        self.desk.clone()
    }

    /// Addresses that Alertmanagers are sent to.
    pub fn alertmanagers(&self) -> impl Iterator<Item = String> {
        self.targets.iter().map(|(t, _)| t.alerts_url())
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
            for (target, queue) in self.targets.iter() {
                let labels = vec![("alertmanager", target.shown_url())];
                out.push(MetricLine { name, help, kind, labels, value: queue.figures()[i] as f64 });
            }
        }
        out
    }
}

#[cfg(test)]
mod desk_tests;
#[cfg(test)]
mod tests;
