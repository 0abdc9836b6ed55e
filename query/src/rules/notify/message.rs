//! What a receiver is sent: the data of templates, Alertmanager's webhook body, Slack's.

use serde_json::{Value as Json, json};
use std::collections::BTreeMap;

use super::{
    Notice,
    dispatch::{GroupKey, Key, fingerprint, labels_of},
    time,
};
use crate::rules::template::Value;

/// One message before it takes a channel's form.
#[derive(Debug)]
pub struct Content<'a> {
    pub receiver: &'a str,
    pub group: &'a GroupKey,
    pub alerts: &'a [Notice],
    pub external_url: &'a str,
}

fn status(resolved: bool) -> &'static str {
    if resolved { "resolved" } else { "firing" }
}

/// What all have in common.
fn common<'a>(mut maps: impl Iterator<Item = &'a Key>) -> Key {
    let Some(first) = maps.next() else { return Key::new() };
    let mut out = first.clone();
    for map in maps {
        out.retain(|n, v| map.get(n) == Some(v));
    }
    out
}

impl Content<'_> {
    fn status(&self) -> &'static str {
        status(self.alerts.iter().all(|a| a.resolved))
    }

    fn common_labels(&self) -> Key {
        common(self.alerts.iter().map(|a| &a.labels))
    }

    fn common_annotations(&self) -> Key {
        common(self.alerts.iter().map(|a| &a.annotations))
    }

    /// The end of one that fires is not known.
    fn ends(alert: &Notice) -> Option<i64> {
        alert.resolved.then_some(alert.ends_at)
    }

    /// What templates of messages see.
    pub fn data(&self) -> Value {
        let map = |m: &BTreeMap<String, String>| Value::of_labels(&labels_of(m));
        let instant = |ms: i64| Value::Time(ms.saturating_mul(1_000_000));
        let alert = |a: &Notice| {
            Value::object([
                ("Status", Value::text(status(a.resolved))),
                ("Labels", map(&a.labels)),
                ("Annotations", map(&a.annotations)),
                ("StartsAt", instant(a.starts_at)),
                ("EndsAt", instant(Self::ends(a).unwrap_or(0))),
                ("GeneratorURL", Value::text(a.generator_url.as_str())),
                ("Fingerprint", Value::text(format!("{:016x}", fingerprint(&a.labels)))),
            ])
        };
        Value::object([
            ("Receiver", Value::text(self.receiver)),
            ("Status", Value::text(self.status())),
            ("Alerts", Value::list(self.alerts.iter().map(alert))),
            ("GroupLabels", map(&self.group.labels)),
            ("CommonLabels", map(&self.common_labels())),
            ("CommonAnnotations", map(&self.common_annotations())),
            ("ExternalURL", Value::text(self.external_url)),
        ])
    }

    /// Version 4 of Alertmanager's webhook body; `alerts_max`: 0 for all.
    pub fn webhook(&self, alerts_max: usize) -> Json {
        let shown = if alerts_max == 0 { self.alerts.len() } else { alerts_max.min(self.alerts.len()) };
        let alert = |a: &Notice| {
            json!({
                "status": status(a.resolved),
                "labels": a.labels,
                "annotations": a.annotations,
                "startsAt": time(a.starts_at),
                "endsAt": Self::ends(a).map_or("0001-01-01T00:00:00Z".to_owned(), time),
                "generatorURL": a.generator_url,
                "fingerprint": format!("{:016x}", fingerprint(&a.labels)),
            })
        };
        json!({
            "version": "4",
            "groupKey": format!("{}:{}", self.group.route, labels_of(&self.group.labels)),
            "truncatedAlerts": self.alerts.len() - shown,
            "status": self.status(),
            "receiver": self.receiver,
            "groupLabels": self.group.labels,
            "commonLabels": self.common_labels(),
            "commonAnnotations": self.common_annotations(),
            "externalURL": self.external_url,
            "alerts": self.alerts[..shown].iter().map(alert).collect::<Vec<_>>(),
        })
    }
}
