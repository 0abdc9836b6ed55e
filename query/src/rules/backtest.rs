//! What an alerting rule would have done: its expression's values over a range, led through the life of an alert. Pure.

use std::{collections::BTreeMap, sync::Arc};

use storage::model::Labels;

use super::{
    alerting::{AlertState, Alerts, Candidate, Timing},
    file::{Kind, Rule},
    template::{AlertData, AlertValue, Host, QuerySample, Template},
};

/// One time that an alert fired. Times are ms since the Unix epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Episode {
    pub alert: String,
    pub labels: Labels,
    /// As they were when it began to fire.
    pub annotations: Labels,
    pub value: f64,
    pub active_at: i64,
    pub fired_at: i64,
    /// `None`: it fires at the end of the range.
    pub resolved_at: Option<i64>,
}

/// What came of a rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub episodes: Vec<Episode>,
    /// Alerts that were pending and never fired.
    pub only_pending: usize,
}

/// A series of the expression's result: labels, and a value for some of the times, ascending.
pub type Series = (Labels, Vec<(i64, f64)>);

/// Times of evaluation: `from, from + step, ..` up to and with `to`, ms.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub from: i64,
    pub to: i64,
    pub step: i64,
}

/// What templates see of their surroundings.
pub struct Surroundings<'a> {
    pub external_labels: &'a Labels,
    pub external_url: &'a str,
}

struct At<'a> {
    url: &'a str,
    now_ms: i64,
}

impl Host for At<'_> {
    fn query(&self, _: &str) -> Result<Vec<QuerySample>, String> {
        Err("a backtest makes no queries of templates".into())
    }

    fn external_url(&self) -> &str {
        self.url
    }

    fn now_ms(&self) -> i64 {
        self.now_ms
    }
}

/// Leads the values through the rule. Times of `found` are those of evaluations: an offset of the group is taken out.
/// Errors as an evaluation does, with its time.
pub fn run(
    rule: &Rule,
    limit: usize,
    found: &[Series],
    range: Range,
    around: &Surroundings<'_>,
) -> Result<Outcome, (i64, String)> {
    let Kind::Alert { name, hold_ms, keep_firing_ms, annotations } = &rule.kind else {
        return Ok(Outcome::default());
    };
    let timing = Timing { hold_ms: *hold_ms, keep_firing_ms: *keep_firing_ms, limit };
    let mut at_times: BTreeMap<i64, Vec<(&Labels, f64)>> = BTreeMap::new();
    for (labels, points) in found {
        points.iter().for_each(|(t, v)| at_times.entry(*t).or_default().push((labels, *v)));
    }
    let mut alerts = Alerts::default();
    let mut out = Outcome::default();
    let mut open: BTreeMap<Arc<Labels>, usize> = BTreeMap::new();
    let mut pending: Vec<Arc<Labels>> = Vec::new();
    let mut at = range.from;
    while at <= range.to {
        let values = at_times.remove(&at).unwrap_or_default();
        // Where nothing is and nothing was, nothing happens.
        if values.is_empty() && alerts.active().next().is_none() {
            at += range.step;
            continue;
        }
        let host = At { url: around.external_url, now_ms: at };
        let candidate = |(labels, value): (&Labels, f64)| {
            let data =
                AlertData { labels, external_labels: around.external_labels, value: AlertValue::Number(value) };
            let expand =
                |t: &Template| t.expand(&data, &host).unwrap_or_else(|e| format!("<error expanding template: {e}>"));
            let mut own = labels.clone();
            own.remove("__name__");
            rule.labels.iter().for_each(|(n, t)| own.set(n, expand(t)));
            own.set("alertname", name.as_str());
            let annotations = annotations.iter().map(|(n, t)| (n.clone(), expand(t)));
            Candidate { labels: own, annotations: Labels::from_pairs(annotations), value }
        };
        alerts.advance(values.into_iter().map(candidate).collect(), at, &timing).map_err(|e| (at, e))?;
        for alert in alerts.iter() {
            match (alert.state, open.get(&alert.labels)) {
                (AlertState::Firing, None) => {
                    open.insert(alert.labels.clone(), out.episodes.len());
                    out.episodes.push(Episode {
                        alert: name.clone(),
                        labels: alert.labels.as_ref().clone(),
                        annotations: alert.annotations.as_ref().clone(),
                        value: alert.value,
                        active_at: alert.active_at,
                        fired_at: at,
                        resolved_at: None,
                    });
                }
                (AlertState::Inactive | AlertState::Pending, Some(i)) => {
                    out.episodes[*i].resolved_at = alert.resolved_at.or(Some(at));
                    open.remove(&alert.labels);
                }
                _ => {}
            }
        }
        let firing = |l: &Arc<Labels>| open.contains_key(l);
        let now: Vec<Arc<Labels>> =
            alerts.iter().filter(|a| a.state == AlertState::Pending).map(|a| a.labels.clone()).collect();
        out.only_pending += pending.iter().filter(|l| !now.contains(l) && !firing(l)).count();
        pending = now;
        at += range.step;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::file;

    #[test]
    fn episodes_are_what_an_evaluation_would_have_told() {
        let text = "groups:\n- name: g\n  rules:\n  - {alert: A, expr: m > 1, for: 2s, labels: {s: '{{ $value }}x'}, annotations: {a: '{{ $labels.i }} at {{ $externalLabels.e }}'}}\n";
        let file = file::parse(text, "f").unwrap();
        let rule = &file.groups[0].rules[0];
        let labels = Labels::from_pairs([("__name__", "m"), ("i", "1")]);
        let points = [1, 2, 3, 4, 8, 9, 12, 13, 14].map(|t| (t * 1000, 7.0)).to_vec();
        let external = Labels::from_pairs([("e", "x")]);
        let around = Surroundings { external_labels: &external, external_url: "" };
        let range = Range { from: 0, to: 15_000, step: 1000 };
        let out = run(rule, 0, &[(labels, points)], range, &around).unwrap();
        let seen: Vec<(i64, i64, Option<i64>)> =
            out.episodes.iter().map(|e| (e.active_at, e.fired_at, e.resolved_at)).collect();
        assert_eq!(seen, [(1000, 3000, Some(5000)), (12_000, 14_000, Some(15_000))]);
        assert_eq!(out.only_pending, 1);
        assert_eq!(format!("{:?}", out.episodes[0].labels), "{alertname=\"A\", i=\"1\", s=\"7x\"}");
        assert_eq!(out.episodes[0].annotations.get("a"), Some("1 at x"));
    }
}
