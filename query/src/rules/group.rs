//! One group: when it is due, and one evaluation of its rules in order.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use storage::{
    Store,
    model::{Labels, TenantId},
};

use super::{
    alerting::{Alert, Alerts, Candidate, Timing},
    file::{Expression, Kind, Rule, RuleGroup},
    recording, state,
    template::{AlertData, AlertValue, Host, QuerySample, Template},
    write::{self, OutSample},
};
use crate::{
    error::QueryError,
    promql::{Engine, InstantRequest, Point, Sample, Value},
    recent::Recent,
};

/// The longest interval of a group whose samples stay in memory from one evaluation to the next, ms.
const KEPT_INTERVAL_MS_MAX: i64 = 300_000;

/// Times at which a group is evaluated: every `interval`, shifted by a part of it that depends on the group's key, so that
/// not all groups work at once and each keeps its times over restarts. Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    interval: i64,
    offset: i64,
}

/// An evaluation that is due, and how many before it were missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    pub at: i64,
    pub missed: u64,
}

impl Schedule {
    pub fn new(key: &str, interval_ms: i64) -> Self {
        let interval = interval_ms.max(1);
        let offset = storage::model::labels::id_of_json(key).rem_euclid(interval);
        Schedule { interval, offset }
    }

    /// The last time that is not after `now`.
    pub fn at_or_before(&self, now: i64) -> i64 {
        now - (now - self.offset).rem_euclid(self.interval)
    }

    pub fn after(&self, time: i64) -> i64 {
        self.at_or_before(time) + self.interval
    }

    /// The evaluation to make at `now` when the last one was for `last`; `None` while it is too early. When more than one
    /// time has passed, the latest counts and the others are missed.
    pub fn due(&self, last: i64, now: i64) -> Option<Due> {
        let at = self.at_or_before(now);
        let passed = (at - self.at_or_before(last)) / self.interval;
        (passed > 0).then(|| Due { at, missed: u64::try_from(passed - 1).unwrap_or(0) })
    }
}

/// What groups of one tenant are evaluated with.
#[derive(Clone)]
pub struct Site {
    pub engine: Engine,
    pub store: Store,
    pub tenant: TenantId,
    pub external_labels: Arc<Labels>,
    /// Without a slash at its end.
    pub external_url: Arc<str>,
}

impl Site {
    /// The vector that an expression gives at a time. A scalar is a vector of one without labels.
    pub async fn ask(&self, expression: &Expression, at_ms: i64) -> Result<Vec<Sample>, QueryError> {
        match expression {
            Expression::PromQl { text, .. } => self.promql(text, at_ms).await,
        }
    }

    async fn promql(&self, text: &str, at_ms: i64) -> Result<Vec<Sample>, QueryError> {
        let request = InstantRequest { query: text.to_owned(), time_ms: at_ms, ..InstantRequest::default() };
        match self.engine.instant(&self.tenant, request).await?.value {
            Value::Vector { samples, .. } => Ok(samples),
            Value::Scalar { value, .. } => Ok(vec![Sample { labels: Arc::default(), point: Point::Float(value) }]),
            Value::String { .. } | Value::Matrix(_) => {
                Err(QueryError::Execution("rule result is not a vector or scalar".into()))
            }
        }
    }
}

/// Templates ask here. Queries block the thread, so only a blocking one may expand a template that queries.
struct EvaluationHost<'a> {
    site: &'a Site,
    at_ms: i64,
    runtime: tokio::runtime::Handle,
}

impl Host for EvaluationHost<'_> {
    fn query(&self, expr: &str) -> Result<Vec<QuerySample>, String> {
        let found = self.runtime.block_on(self.site.promql(expr, self.at_ms)).map_err(|e| e.to_string())?;
        let sample = |s: Sample| QuerySample { value: s.point.float().unwrap_or(0.0), labels: s.labels };
        Ok(found.into_iter().map(sample).collect())
    }

    fn external_url(&self) -> &str {
        &self.site.external_url
    }

    fn now_ms(&self) -> i64 {
        self.at_ms
    }
}

/// How a rule did when it was last evaluated.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Health {
    #[default]
    Unknown,
    Good,
    Bad(String),
}

/// A rule at work.
#[derive(Debug)]
pub struct ActiveRule {
    pub rule: Arc<Rule>,
    pub alerts: Alerts,
    pub health: Health,
    pub seconds: f64,
    pub last_ms: Option<i64>,
    /// Series it gave last.
    previous: Vec<Arc<Labels>>,
}

/// Figures of a group since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub evaluations: u64,
    pub failures: u64,
    pub missed: u64,
    pub samples: u64,
    pub samples_lost: u64,
}

/// A group at work.
#[derive(Debug)]
pub struct Group {
    /// Tenant, file and name.
    pub key: String,
    pub file: Arc<str>,
    pub definition: Arc<RuleGroup>,
    pub interval_ms: i64,
    pub rules: Vec<ActiveRule>,
    pub seconds: f64,
    pub last_ms: Option<i64>,
    pub counts: Counts,
    /// Series of rules that are gone.
    leftover: Vec<Arc<Labels>>,
}

impl Group {
    pub fn new(tenant: &TenantId, file: &str, definition: RuleGroup, default_interval_ms: i64) -> Self {
        let rules = definition.rules.iter().map(|rule| ActiveRule {
            rule: Arc::new(rule.clone()),
            alerts: Alerts::default(),
            health: Health::default(),
            seconds: 0.0,
            last_ms: None,
            previous: Vec::new(),
        });
        Group {
            key: format!("{tenant};{file};{}", definition.name),
            file: file.into(),
            interval_ms: definition.interval_ms.unwrap_or(default_interval_ms),
            rules: rules.collect(),
            definition: Arc::new(definition),
            seconds: 0.0,
            last_ms: None,
            counts: Counts::default(),
            leftover: Vec::new(),
        }
    }

    /// Takes over what the group was before its definition changed. Rules are the same that have kind, name and labels in
    /// common.
    pub fn continues(&mut self, before: Group) {
        self.counts = before.counts;
        self.leftover = before.leftover;
        let mut old: HashMap<String, Vec<ActiveRule>> = HashMap::new();
        for rule in before.rules.into_iter().rev() {
            old.entry(rule.rule.identity()).or_default().push(rule);
        }
        for rule in &mut self.rules {
            if let Some(was) = old.get_mut(&rule.rule.identity()).and_then(Vec::pop) {
                let now = rule.rule.clone();
                *rule = ActiveRule { rule: now, ..was };
            }
        }
        self.leftover.extend(old.into_values().flatten().flat_map(|r| r.previous));
    }

    /// Takes over alerts that were kept over a restart, by their rules' identities.
    pub fn restore(&mut self, mut saved: HashMap<String, Alerts>) {
        for rule in &mut self.rules {
            if let Some(alerts) = saved.remove(&rule.rule.identity()) {
                // Their series end when the alerts do.
                rule.previous = alerts.series(0).into_iter().map(|s| s.labels).collect();
                rule.alerts = alerts;
            }
        }
    }

    /// The text that keeps its alerts, and whether it is to be written at every evaluation: how long an alert has been
    /// pending counts.
    pub fn state(&self, at_ms: i64) -> String {
        state::text(&self.key, at_ms, self.rules.iter().map(|r| (r.rule.identity(), &r.alerts)))
    }

    /// What decides whether the state has to be written again.
    pub fn state_mark(&self) -> Vec<(Arc<Labels>, super::alerting::AlertState, Option<i64>)> {
        let alerts = self.rules.iter().flat_map(|r| r.alerts.iter());
        alerts
            .map(|a| (a.labels.clone(), a.state, a.keep_firing_since.or(a.resolved_at).or(Some(a.active_at))))
            .collect()
    }

    pub fn has_pending(&self) -> bool {
        self.rules.iter().flat_map(|r| r.alerts.iter()).any(|a| a.state == super::alerting::AlertState::Pending)
    }

    /// Evaluates all rules for the time `at_ms`, in order: what one writes, the next reads.
    pub async fn evaluate(&mut self, at_ms: i64, site: &Site) {
        let begun = Instant::now();
        let sample_ms = at_ms - self.definition.offset_ms();
        // What is asked for seldom is not worth keeping.
        let recent = site.engine.recent().filter(|_| self.interval_ms <= KEPT_INTERVAL_MS_MAX).cloned();
        if let (Some(recent), None) = (&recent, self.last_ms) {
            self.rules.iter().for_each(|r| r.rule.expression.note(&site.engine, &site.tenant, sample_ms));
            keep_noted(recent, site).await;
        }
        let mut unwritten = Unwritten::default();
        for i in 0..self.rules.len() {
            if self.rules[i].rule.expression.may_read(&unwritten.names) {
                self.flush(&mut unwritten, site).await;
            }
            let rule_begun = Instant::now();
            self.counts.evaluations += 1;
            let found = self.rules[i].evaluate(at_ms, &self.definition, site).await;
            let rule = &mut self.rules[i];
            rule.last_ms = Some(at_ms);
            match found {
                Ok(samples) => {
                    rule.health = Health::Good;
                    let stale = rule.vanished(&samples, sample_ms);
                    unwritten.add(i, samples.into_iter().chain(stale));
                }
                Err(e) => {
                    tracing::warn!(group = %self.key, rule = rule.rule.name(), error = %e, "rule failed");
                    rule.health = Health::Bad(e);
                    self.counts.failures += 1;
                }
            }
            rule.seconds = rule_begun.elapsed().as_secs_f64();
        }
        let leftover = std::mem::take(&mut self.leftover);
        let live: HashSet<&Arc<Labels>> = self.rules.iter().flat_map(|r| &r.previous).collect();
        let gone = leftover.into_iter().filter(|l| !live.contains(l)).map(|l| OutSample::stale(l, sample_ms));
        unwritten.samples.extend(gone.collect::<Vec<_>>());
        self.flush(&mut unwritten, site).await;
        if let Some(recent) = &recent {
            keep_noted(recent, site).await;
        }
        self.last_ms = Some(at_ms);
        self.seconds = begun.elapsed().as_secs_f64();
    }

    async fn flush(&mut self, unwritten: &mut Unwritten, site: &Site) {
        let Unwritten { samples, rules, .. } = std::mem::take(unwritten);
        match write::append(&site.store, &site.tenant, &samples).await {
            Ok(None) => self.counts.samples += samples.len() as u64,
            Ok(Some(refused)) => {
                let lost = refused.rows().min(samples.len()) as u64;
                self.counts.samples += samples.len() as u64 - lost;
                self.counts.samples_lost += lost;
                self.counts.failures += rules.len() as u64;
                for i in rules {
                    self.rules[i].health = Health::Bad(format!("cannot store all of the result: {refused}"));
                }
            }
            Err(e) => {
                tracing::error!(group = %self.key, samples = samples.len(), error = %e, "results of rules could not be stored");
                self.counts.samples_lost += samples.len() as u64;
                self.counts.failures += rules.len() as u64;
                for i in rules {
                    self.rules[i].health = Health::Bad(format!("cannot store the result: {e}"));
                }
            }
        }
    }

    /// Ends all series of the group, which is gone.
    pub async fn end_series(&mut self, at_ms: i64, site: &Site) {
        let sample_ms = at_ms - self.definition.offset_ms();
        let series = self.rules.iter_mut().flat_map(|r| std::mem::take(&mut r.previous));
        let all: HashSet<Arc<Labels>> = series.chain(std::mem::take(&mut self.leftover)).collect();
        let samples: Vec<OutSample> = all.into_iter().map(|l| OutSample::stale(l, sample_ms)).collect();
        if let Err(e) = write::append(&site.store, &site.tenant, &samples).await {
            tracing::error!(group = %self.key, error = %e, "the ends of a removed group's series could not be stored");
        }
    }

    /// Alerts to be told of now, each with the rule it is of.
    pub fn due(&mut self, at_ms: i64, resend_ms: i64) -> Vec<(Arc<Rule>, Alert)> {
        let mut out = Vec::new();
        for rule in &mut self.rules {
            out.extend(rule.alerts.due(at_ms, resend_ms).into_iter().map(|a| (rule.rule.clone(), a)));
        }
        out
    }
}

/// The store is asked each time where this fails.
async fn keep_noted(recent: &Recent, site: &Site) {
    if let Err(e) = recent.keep_noted(&site.tenant).await {
        tracing::debug!(error = %e, "what rules read cannot be kept in memory");
    }
}

/// Samples on their way, so that a group's rules share a write where none reads what another writes.
#[derive(Default)]
struct Unwritten {
    samples: Vec<OutSample>,
    names: HashSet<String>,
    rules: Vec<usize>,
}

impl Unwritten {
    fn add(&mut self, rule: usize, samples: impl Iterator<Item = OutSample>) {
        let before = self.samples.len();
        self.samples.extend(samples);
        if self.samples.len() > before {
            self.rules.push(rule);
        }
        for s in &self.samples[before..] {
            let name = s.labels.get("__name__").unwrap_or("");
            if !self.names.contains(name) {
                self.names.insert(name.to_owned());
            }
        }
    }
}

impl ActiveRule {
    /// The samples it gives for the time.
    async fn evaluate(&mut self, at_ms: i64, group: &RuleGroup, site: &Site) -> Result<Vec<OutSample>, String> {
        let sample_ms = at_ms - group.offset_ms();
        let found = site.ask(&self.rule.expression, sample_ms).await.map_err(|e| e.to_string())?;
        match &self.rule.kind {
            Kind::Record { metric } => recording::samples(&self.rule, metric, found, group.limit, sample_ms),
            Kind::Alert { hold_ms, keep_firing_ms, .. } => {
                let timing = Timing { hold_ms: *hold_ms, keep_firing_ms: *keep_firing_ms, limit: group.limit };
                let candidates = candidates(&self.rule, found, at_ms, site).await?;
                self.alerts.advance(candidates, at_ms, &timing)?;
                Ok(self.alerts.series(sample_ms))
            }
        }
    }

    /// Ends of the series that were given last and now are not.
    fn vanished(&mut self, samples: &[OutSample], ts_ms: i64) -> Vec<OutSample> {
        let now: HashSet<&Arc<Labels>> = samples.iter().map(|s| &s.labels).collect();
        let ended = self.previous.iter().filter(|l| !now.contains(l));
        let out = ended.map(|l| OutSample::stale(l.clone(), ts_ms)).collect();
        self.previous = samples.iter().map(|s| s.labels.clone()).collect();
        out
    }
}

/// Labels and annotations of what the expression found.
async fn candidates(rule: &Arc<Rule>, found: Vec<Sample>, at_ms: i64, site: &Site) -> Result<Vec<Candidate>, String> {
    let Kind::Alert { annotations, .. } = &rule.kind else { return Ok(Vec::new()) };
    let templates = rule.labels.iter().chain(annotations).map(|(_, t)| t);
    let runtime = tokio::runtime::Handle::current();
    if found.is_empty() || !templates.clone().any(Template::queries) {
        return Ok(expanded(rule, found, &EvaluationHost { site, at_ms, runtime }));
    }
    let (rule, site) = (rule.clone(), site.clone());
    tokio::task::spawn_blocking(move || expanded(&rule, found, &EvaluationHost { site: &site, at_ms, runtime }))
        .await
        .map_err(|e| format!("expansion of templates panicked: {e}"))
}

fn expanded(rule: &Rule, found: Vec<Sample>, host: &EvaluationHost<'_>) -> Vec<Candidate> {
    let Kind::Alert { name, annotations, .. } = &rule.kind else { return Vec::new() };
    let one = |sample: Sample| {
        let histogram = sample.point.histogram().map(|h| h.to_text());
        let value = sample.point.float().unwrap_or(0.0);
        let data = AlertData {
            labels: &sample.labels,
            external_labels: &host.site.external_labels,
            value: histogram.as_deref().map_or(AlertValue::Number(value), AlertValue::Text),
        };
        let expand = |template: &Template| {
            template.expand(&data, host).unwrap_or_else(|e| {
                tracing::warn!(alert = %name, error = %e, "template cannot be expanded");
                format!("<error expanding template: {e}>")
            })
        };
        let mut labels = sample.labels.as_ref().clone();
        labels.remove("__name__");
        for (label, template) in &rule.labels {
            labels.set(label, expand(template));
        }
        labels.set("alertname", name.as_str());
        let annotations = annotations.iter().map(|(n, t)| (n.clone(), expand(t)));
        Candidate { annotations: Labels::from_pairs(annotations), labels, value }
    };
    found.into_iter().map(one).collect()
}
