//! The life of a rule's alerts: inactive, pending, firing, resolved. Pure: a clock is an argument.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use storage::model::Labels;

use super::write::OutSample;
use crate::promql::Point;

/// How long a resolved alert is kept, so that its end is told even when a receiver was away. Source: Prometheus.
const RESOLVED_KEPT_MS: i64 = 15 * 60_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// Resolved, or never active.
    Inactive,
    Pending,
    Firing,
}

impl AlertState {
    pub fn name(self) -> &'static str {
        match self {
            AlertState::Inactive => "inactive",
            AlertState::Pending => "pending",
            AlertState::Firing => "firing",
        }
    }
}

/// One alert. Times are ms since the Unix epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// With `alertname`.
    pub labels: Arc<Labels>,
    pub annotations: Arc<Labels>,
    pub state: AlertState,
    pub value: f64,
    pub active_at: i64,
    pub fired_at: Option<i64>,
    pub resolved_at: Option<i64>,
    pub keep_firing_since: Option<i64>,
    /// Not kept over a restart: what fires then is told again.
    pub last_sent: Option<i64>,
}

/// What an evaluation found true.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// With `alertname`.
    pub labels: Labels,
    pub annotations: Labels,
    pub value: f64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    pub hold_ms: i64,
    pub keep_firing_ms: i64,
    /// 0: any number.
    pub limit: usize,
}

/// All alerts of one rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alerts(BTreeMap<Arc<Labels>, Alert>);

impl Alerts {
    pub fn iter(&self) -> impl Iterator<Item = &Alert> {
        self.0.values()
    }

    /// Pending and firing ones.
    pub fn active(&self) -> impl Iterator<Item = &Alert> {
        self.iter().filter(|a| a.state != AlertState::Inactive)
    }

    /// The worst state of any.
    pub fn state(&self) -> AlertState {
        self.iter().map(|a| a.state).max().unwrap_or(AlertState::Inactive)
    }

    pub fn restore(&mut self, alert: Alert) {
        self.0.insert(alert.labels.clone(), alert);
    }

    /// One evaluation at `at`. After an error the rule has no alerts (too many) or the ones it had (same labels).
    pub fn advance(&mut self, found: Vec<Candidate>, at: i64, timing: &Timing) -> Result<(), String> {
        let mut fresh: BTreeMap<Arc<Labels>, Candidate> = BTreeMap::new();
        for candidate in found {
            if fresh.insert(Arc::new(candidate.labels.clone()), candidate).is_some() {
                return Err("vector contains metrics with the same labelset after applying alert labels".into());
            }
        }
        self.0.retain(|labels, alert| match fresh.remove(labels) {
            Some(candidate) if alert.state != AlertState::Inactive => {
                alert.value = candidate.value;
                alert.annotations = Arc::new(candidate.annotations);
                alert.keep_firing_since = None;
                true
            }
            // Resolved before: it begins anew.
            Some(candidate) => {
                *alert = begun(candidate, at);
                true
            }
            None => alert.vanished(at, timing.keep_firing_ms),
        });
        for (labels, candidate) in fresh {
            self.0.insert(labels, begun(candidate, at));
        }
        for alert in self.0.values_mut() {
            if alert.state == AlertState::Pending && at - alert.active_at >= timing.hold_ms {
                alert.state = AlertState::Firing;
                alert.fired_at = Some(at);
            }
        }
        let active = self.active().count();
        if timing.limit > 0 && active > timing.limit {
            self.0.clear();
            return Err(format!("exceeded limit of {} with {active} alerts", timing.limit));
        }
        Ok(())
    }

    /// `ALERTS` and `ALERTS_FOR_STATE`.
    pub fn series(&self, ts_ms: i64) -> Vec<OutSample> {
        let mut out = Vec::new();
        for alert in self.active() {
            let mut labels = alert.labels.as_ref().clone();
            labels.set("__name__", "ALERTS_FOR_STATE");
            let since = Point::Float(alert.active_at.div_euclid(1000) as f64);
            out.push(OutSample { labels: Arc::new(labels.clone()), ts_ms, point: since });
            labels.set("__name__", "ALERTS");
            labels.set("alertstate", alert.state.name());
            out.push(OutSample { labels: Arc::new(labels), ts_ms, point: Point::Float(1.0) });
        }
        out
    }

    /// What is to be told now: firing ones once in `resend_ms`, resolved ones at once and then as often. Marked as sent.
    pub fn due(&mut self, at: i64, resend_ms: i64) -> Vec<Alert> {
        let mut out = Vec::new();
        for alert in self.0.values_mut() {
            let resolved_unsent = alert.resolved_at.is_some_and(|r| alert.last_sent.is_none_or(|sent| r > sent));
            let again = alert.last_sent.is_none_or(|sent| sent + resend_ms <= at);
            if alert.state != AlertState::Pending && (resolved_unsent || again) {
                alert.last_sent = Some(at);
                out.push(alert.clone());
            }
        }
        out
    }
}

fn begun(candidate: Candidate, at: i64) -> Alert {
    Alert {
        labels: Arc::new(candidate.labels),
        annotations: Arc::new(candidate.annotations),
        state: AlertState::Pending,
        value: candidate.value,
        active_at: at,
        fired_at: None,
        resolved_at: None,
        keep_firing_since: None,
        last_sent: None,
    }
}

impl Alert {
    /// No longer true. Whether it is still to be kept.
    fn vanished(&mut self, at: i64, keep_firing_ms: i64) -> bool {
        match self.state {
            AlertState::Pending => false,
            AlertState::Inactive => self.resolved_at.is_some_and(|r| at - r <= RESOLVED_KEPT_MS),
            AlertState::Firing => {
                if keep_firing_ms > 0 && at - *self.keep_firing_since.get_or_insert(at) < keep_firing_ms {
                    return true;
                }
                self.state = AlertState::Inactive;
                self.resolved_at = Some(at);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str) -> Candidate {
        let labels = Labels::from_pairs([("alertname", "A"), ("i", name)]);
        Candidate { labels, annotations: Labels::default(), value: 1.0 }
    }

    const MINUTE: i64 = 60_000;

    fn states(alerts: &Alerts) -> Vec<&'static str> {
        alerts.iter().map(|a| a.state.name()).collect()
    }

    #[test]
    fn an_alert_waits_fires_is_kept_and_resolves() {
        let timing = Timing { hold_ms: 2 * MINUTE, keep_firing_ms: 3 * MINUTE, limit: 0 };
        let mut alerts = Alerts::default();
        // Minute, whether the expression is true, the state after it.
        for (minute, is_true, state) in [
            (0, true, "pending"),
            (1, true, "pending"),
            (2, true, "firing"),
            (3, false, "firing"),
            (5, false, "firing"),
            (6, false, "inactive"),
            (7, true, "pending"),
            (8, false, ""),
        ] {
            let found = if is_true { vec![candidate("x")] } else { vec![] };
            alerts.advance(found, minute * MINUTE, &timing).unwrap();
            assert_eq!(states(&alerts).first().copied().unwrap_or(""), state, "minute {minute}");
        }
    }

    #[test]
    fn without_hold_it_fires_at_once_and_a_resolved_one_is_told_for_a_while() {
        let mut alerts = Alerts::default();
        alerts.advance(vec![candidate("x")], 0, &Timing::default()).unwrap();
        assert_eq!(alerts.due(0, MINUTE).len(), 1);
        assert_eq!(alerts.due(MINUTE / 2, MINUTE).len(), 0);
        assert_eq!(alerts.due(MINUTE, MINUTE).len(), 1);
        alerts.advance(vec![], MINUTE + 1, &Timing::default()).unwrap();
        let told = alerts.due(MINUTE + 1, MINUTE);
        assert_eq!((told[0].state, told[0].resolved_at), (AlertState::Inactive, Some(MINUTE + 1)));
        assert!(alerts.series(0).is_empty());
        alerts.advance(vec![], 18 * MINUTE, &Timing::default()).unwrap();
        assert_eq!(alerts.iter().count(), 0);
    }

    #[test]
    fn too_many_or_equal_alerts_are_an_error() {
        let mut alerts = Alerts::default();
        let timing = Timing { limit: 1, ..Timing::default() };
        let e = alerts.advance(vec![candidate("x"), candidate("y")], 0, &timing).unwrap_err();
        assert_eq!(e, "exceeded limit of 1 with 2 alerts");
        assert!(
            alerts.advance(vec![candidate("x"), candidate("x")], 0, &timing).unwrap_err().contains("same labelset")
        );
    }

    #[test]
    fn alerts_are_series_too() {
        let mut alerts = Alerts::default();
        let timing = Timing { hold_ms: MINUTE, ..Timing::default() };
        alerts.advance(vec![candidate("x")], 90_500, &timing).unwrap();
        let text: Vec<String> =
            alerts.series(90_500).iter().map(|s| format!("{:?} {:?}", s.labels, s.point)).collect();
        assert_eq!(
            text,
            [
                "{__name__=\"ALERTS_FOR_STATE\", alertname=\"A\", i=\"x\"} Float(90.0)",
                "{__name__=\"ALERTS\", alertname=\"A\", alertstate=\"pending\", i=\"x\"} Float(1.0)",
            ]
        );
    }
}
