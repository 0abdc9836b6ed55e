//! `/rules`, `/alerts` and `/alertmanagers` of the Prometheus API, and the reload of rule files.

use std::{fmt::Write as _, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Response, StatusCode, header::LOCATION},
    routing::{get, post},
};
use storage::model::{Labels, json::write_string, labels::id_of_json};

use super::{
    encode, envelope,
    params::{Params, invalid},
    prometheus::matches,
    same_site,
};
use crate::{
    annotations::Annotations,
    error::QueryError,
    rules::{
        alerting::Alert,
        file::Kind,
        group::Health,
        ruler::{GroupView, RuleView, Ruler},
        template::{Template, go_exponent, query_escape},
    },
};

type Answer = Result<Response<Body>, QueryError>;

fn answer(result: Answer) -> Response<Body> {
    result.unwrap_or_else(|e| envelope::prometheus_error(&e))
}

/// Paths below `/api/v1`. Without a ruler there are no rules.
pub fn router(ruler: Option<Ruler>) -> Router {
    Router::new()
        .route("/rules", get(|State(r): State<Option<Ruler>>, q: Request| async move { answer(rules(r, q).await) }))
        .route("/alerts", get(|State(r): State<Option<Ruler>>, q: Request| async move { answer(alerts(r, q).await) }))
        .route("/alertmanagers", get(alertmanagers))
        .with_state(ruler)
}

/// Reads everything again that can change while the process runs.
#[async_trait::async_trait]
pub trait Reload: Send + Sync {
    /// What is in force now, or every fault; then all is as it was.
    async fn reload(&self) -> Result<String, String>;
}

/// Who is asked to reload, if anyone.
#[derive(Clone, Default)]
pub struct Reloader(pub Option<Arc<dyn Reload>>);

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reloader").field(&self.0.is_some()).finish()
    }
}

/// Paths at the root.
pub fn lifecycle(reloader: Reloader) -> Router {
    Router::new()
        .route("/-/reload", post(reload).put(reload))
        .route("/-/quit", post(quit).put(quit))
        .route("/graph", get(graph))
        .with_state(reloader)
}

/// Who runs a process ends it.
async fn quit() -> Response<Body> {
    let text = "this process is not ended over HTTP: send it SIGTERM\n";
    envelope::with_type(StatusCode::FORBIDDEN, "text/plain; charset=utf-8", text)
}

/// 500 with every fault when a file is bad, as Prometheus answers.
async fn reload(State(reloader): State<Reloader>, request: Request) -> Response<Body> {
    let plain = |status, text: String| envelope::with_type(status, "text/plain; charset=utf-8", text);
    if same_site::is_foreign(request.headers()) {
        return plain(StatusCode::FORBIDDEN, "a page of another site may not ask for this\n".into());
    }
    let Some(reloader) = reloader.0 else {
        return plain(StatusCode::OK, "there is nothing to reload\n".into());
    };
    match reloader.reload().await {
        Ok(text) => plain(StatusCode::OK, format!("{text}\n")),
        Err(faults) => {
            let text = format!("{faults}\nwhat was in force before stays\n");
            plain(StatusCode::INTERNAL_SERVER_ERROR, text)
        }
    }
}

fn success(data: &str) -> Response<Body> {
    envelope::prometheus_success(data, &Annotations::default())
}

/// RFC 3339 of milliseconds; `None` is the time that clients take for never.
fn time(ms: Option<i64>) -> String {
    let Some(ms) = ms else { return "0001-01-01T00:00:00Z".into() };
    match chrono::DateTime::from_timestamp_millis(ms) {
        Some(t) => t.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
        None => "0001-01-01T00:00:00Z".into(),
    }
}

fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}

/// What `/rules` is asked for.
struct Wanted {
    alerts: bool,
    records: bool,
    names: Vec<String>,
    groups: Vec<String>,
    files: Vec<String>,
    matchers: Vec<Vec<storage::model::Matcher>>,
    exclude_alerts: bool,
}

impl Wanted {
    fn of(params: &Params) -> Result<Self, QueryError> {
        let (alerts, records) = match params.get("type").map(str::to_lowercase).as_deref() {
            None => (true, true),
            Some("alert") => (true, false),
            Some("record") => (false, true),
            Some(other) => return Err(invalid("type", &format!("not supported value {other:?}"))),
        };
        let all = |name: &str| params.all(name).map(str::to_owned).collect();
        let exclude_alerts = match params.get("exclude_alerts") {
            None => false,
            Some("true" | "1" | "t" | "T" | "TRUE" | "True") => true,
            Some("false" | "0" | "f" | "F" | "FALSE" | "False") => false,
            Some(other) => {
                let why = format!("error converting exclude_alerts: {other:?} is neither true nor false");
                return Err(invalid("exclude_alerts", &why));
            }
        };
        Ok(Wanted {
            alerts,
            records,
            names: all("rule_name[]"),
            groups: all("rule_group[]"),
            files: all("file[]"),
            matchers: matches(params)?,
            exclude_alerts,
        })
    }

    fn group(&self, g: &GroupView) -> bool {
        let among = |list: &[String], name: &str| list.is_empty() || list.iter().any(|n| n == name);
        among(&self.groups, &g.definition.name) && among(&self.files, &g.file)
    }

    fn rule(&self, r: &RuleView) -> bool {
        let kind = match r.rule.kind {
            Kind::Alert { .. } => self.alerts,
            Kind::Record { .. } => self.records,
        };
        let labels = || Labels::from_pairs(r.rule.labels.iter().map(|(n, t)| (n.as_str(), t.text())));
        kind && (self.names.is_empty() || self.names.iter().any(|n| n == r.rule.name()))
            && (self.matchers.is_empty() || {
                let labels = labels();
                self.matchers.iter().any(|set| set.iter().all(|m| m.matches(&labels)))
            })
    }
}

async fn rules(ruler: Option<Ruler>, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let wanted = Wanted::of(&params)?;
    let limit = match params.get("group_limit").map(|v| (v, v.parse::<i64>())) {
        None => None,
        Some((_, Ok(n))) if n > 0 => Some(usize::try_from(n).unwrap_or(usize::MAX)),
        Some((_, Ok(_))) => return Err(invalid("group_limit", "group_limit needs to be greater than 0")),
        Some((v, Err(_))) => {
            return Err(invalid("group_limit", &format!("group_limit needs to be a valid number, got {v:?}")));
        }
    };
    let token = params.get("group_next_token");
    if token.is_some() && limit.is_none() {
        let why = "group_limit needs to be present in order to paginate over the groups";
        return Err(invalid("group_next_token", why));
    }
    let groups = ruler.map(|r| r.groups(&tenant)).unwrap_or_default();
    let mark = |g: &GroupView| format!("{:016x}", id_of_json(&format!("{};{}", g.file, g.definition.name)) as u64);
    let first = match token {
        None => 0,
        Some(token) => groups.iter().position(|g| mark(g) == token).ok_or_else(|| {
            invalid("group_next_token", &format!("invalid group_next_token '{token}'. were rule groups changed?"))
        })?,
    };
    let mut data = String::from("{\"groups\":[");
    let (mut shown, mut next) = (0, None);
    for group in groups[first..].iter().filter(|g| wanted.group(g)) {
        let rules: Vec<&RuleView> = group.rules.iter().filter(|r| wanted.rule(r)).collect();
        if rules.is_empty() {
            continue;
        }
        if limit == Some(shown) {
            next = Some(mark(group));
            break;
        }
        if shown > 0 {
            data.push(',');
        }
        shown += 1;
        write_group(&mut data, group, &rules, &wanted);
    }
    data.push(']');
    if let Some(next) = next {
        let _ = write!(data, ",\"groupNextToken\":\"{next}\"");
    }
    data.push('}');
    Ok(success(&data))
}

fn write_group(out: &mut String, group: &GroupView, rules: &[&RuleView], wanted: &Wanted) {
    out.push_str("{\"name\":");
    write_string(out, &group.definition.name);
    out.push_str(",\"file\":");
    write_string(out, &group.file);
    out.push_str(",\"rules\":[");
    for (i, rule) in rules.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_rule(out, rule, wanted);
    }
    let _ = write!(
        out,
        "],\"interval\":{},\"limit\":{},\"evaluationTime\":{},\"lastEvaluation\":\"{}\"}}",
        seconds(group.interval_ms),
        group.definition.limit,
        group.seconds,
        time(group.last_ms)
    );
}

fn write_templates(out: &mut String, templates: &[(String, Template)]) {
    encode::write_labels(out, &Labels::from_pairs(templates.iter().map(|(n, t)| (n.as_str(), t.text()))));
}

fn write_rule(out: &mut String, view: &RuleView, wanted: &Wanted) {
    let rule = &view.rule;
    out.push('{');
    if matches!(rule.kind, Kind::Alert { .. }) {
        let _ = write!(out, "\"state\":\"{}\",", view.state.name());
    }
    out.push_str("\"name\":");
    write_string(out, rule.name());
    out.push_str(",\"query\":");
    write_string(out, rule.expression.text());
    if let Kind::Alert { hold_ms, keep_firing_ms, .. } = &rule.kind {
        let _ = write!(out, ",\"duration\":{},\"keepFiringFor\":{}", seconds(*hold_ms), seconds(*keep_firing_ms));
    }
    out.push_str(",\"labels\":");
    write_templates(out, &rule.labels);
    if let Kind::Alert { annotations, .. } = &rule.kind {
        out.push_str(",\"annotations\":");
        write_templates(out, annotations);
        out.push_str(",\"alerts\":[");
        let alerts = if wanted.exclude_alerts { &[][..] } else { &view.alerts[..] };
        write_alerts(out, alerts.iter());
        out.push(']');
    }
    out.push_str(match view.health {
        Health::Unknown => ",\"health\":\"unknown\"",
        Health::Good => ",\"health\":\"ok\"",
        Health::Bad(_) => ",\"health\":\"err\"",
    });
    if let Health::Bad(error) = &view.health {
        out.push_str(",\"lastError\":");
        write_string(out, error);
    }
    let kind = if matches!(rule.kind, Kind::Alert { .. }) { "alerting" } else { "recording" };
    let _ = write!(
        out,
        ",\"evaluationTime\":{},\"lastEvaluation\":\"{}\",\"type\":\"{kind}\"}}",
        view.seconds,
        time(view.last_ms)
    );
}

fn write_alerts<'a>(out: &mut String, alerts: impl Iterator<Item = &'a Alert>) {
    for (i, alert) in alerts.enumerate() {
        out.push_str(if i > 0 { ",{\"labels\":" } else { "{\"labels\":" });
        encode::write_labels(out, &alert.labels);
        out.push_str(",\"annotations\":");
        encode::write_labels(out, &alert.annotations);
        let _ = write!(out, ",\"state\":\"{}\",\"activeAt\":\"{}\"", alert.state.name(), time(Some(alert.active_at)));
        if let Some(since) = alert.keep_firing_since {
            let _ = write!(out, ",\"keepFiringSince\":\"{}\"", time(Some(since)));
        }
        let _ = write!(out, ",\"value\":\"{}\"}}", go_exponent(alert.value));
    }
}

async fn alertmanagers(State(ruler): State<Option<Ruler>>) -> Response<Body> {
    let mut data = String::from("{\"activeAlertmanagers\":[");
    for (i, url) in ruler.map(|r| r.alertmanagers()).unwrap_or_default().iter().enumerate() {
        data.push_str(if i > 0 { ",{\"url\":" } else { "{\"url\":" });
        write_string(&mut data, url);
        data.push('}');
    }
    data.push_str("],\"droppedAlertmanagers\":[]}");
    success(&data)
}

/// Where links of alerts lead, in Prometheus' form: to the answer of the expression.
async fn graph(request: Request) -> Response<Body> {
    let expr = match Params::of(request).await {
        Ok((params, _)) => params.get("g0.expr").unwrap_or_default().to_owned(),
        Err(e) => return envelope::prometheus_error(&e),
    };
    let mut response = envelope::with_type(StatusCode::FOUND, "text/plain; charset=utf-8", "");
    // Relative, so that it holds behind a proxy's prefix too.
    if let Ok(to) = HeaderValue::from_str(&format!("api/v1/query?query={}", query_escape(&expr))) {
        response.headers_mut().insert(LOCATION, to);
    }
    response
}

async fn alerts(ruler: Option<Ruler>, request: Request) -> Answer {
    let (_, tenant) = Params::of(request).await?;
    let groups = ruler.map(|r| r.groups(&tenant)).unwrap_or_default();
    let mut data = String::from("{\"alerts\":[");
    write_alerts(&mut data, groups.iter().flat_map(|g| &g.rules).flat_map(|r| &r.alerts));
    data.push_str("]}");
    Ok(success(&data))
}
