//! The part of Alertmanager's API v2 that people and Grafana use: alerts, silences, receivers, status. Below
//! `/alertmanager/api/v2`; there is one set of silences for all tenants, so only the operator's port should reach it.

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{Response, StatusCode},
    routing::get,
};
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value as Json, json};
use storage::model::{Matcher, MatcherBudget};

use super::{
    envelope,
    params::{Params, parse_time_ms},
    same_site,
};
use crate::rules::notify::{Desk, Notice, Wanted, WireSilence, parse_matchers_within, time};

/// Bytes of a body.
const BODY_BYTES_MAX: usize = 8 << 20;

/// How long an alert is believed that does not say until when. Source: Alertmanager's `resolve_timeout`.
const BELIEVED_MS: i64 = 5 * 60_000;

/// An answer that is an error: status and text.
type Refused = (StatusCode, String);

pub fn router(desk: Desk) -> Router {
    let paths = Router::new()
        .route("/alerts", get(alerts).post(take))
        .route("/alerts/groups", get(groups))
        .route("/silences", get(silences).post(silence))
        .route("/silence/{id}", get(one).delete(unsilence))
        .route("/receivers", get(receivers))
        .route("/status", get(status))
        .with_state(desk);
    Router::new().nest("/alertmanager/api/v2", paths)
}

fn answer(result: Result<Json, Refused>) -> Response<Body> {
    match result {
        Ok(value) => envelope::json(StatusCode::OK, value.to_string()),
        // A text in JSON, as Alertmanager answers.
        Err((status, text)) => envelope::json(status, Json::from(text).to_string()),
    }
}

fn bad(text: impl ToString) -> Refused {
    (StatusCode::BAD_REQUEST, text.to_string())
}

/// `filter=a="b"`, repeatable.
async fn filter(request: Request) -> Result<(Params, Vec<Matcher>), Refused> {
    let (params, _) = Params::of(request).await.map_err(bad)?;
    let mut out = Vec::new();
    let mut budget = MatcherBudget::default();
    for text in params.all("filter") {
        out.extend(parse_matchers_within(text, &mut budget).map_err(bad)?);
    }
    Ok((params, out))
}

async fn body<T: serde::de::DeserializeOwned>(request: Request) -> Result<T, Refused> {
    if same_site::is_foreign(request.headers()) {
        return Err((StatusCode::FORBIDDEN, "a page of another site may not ask for this".into()));
    }
    let bytes = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let bytes = bytes.map_err(|e| bad(format!("cannot read the body (at most {BODY_BYTES_MAX} bytes): {e}")))?;
    serde_json::from_slice(&bytes.to_bytes()).map_err(bad)
}

async fn wanted(request: Request) -> Result<Wanted, Refused> {
    let (params, matchers) = filter(request).await?;
    let is = |name: &str| params.get(name) != Some("false");
    Ok(Wanted { matchers, active: is("active"), silenced: is("silenced"), inhibited: is("inhibited") })
}

async fn alerts(State(desk): State<Desk>, request: Request) -> Response<Body> {
    answer(wanted(request).await.map(|w| desk.alerts(&w).into()))
}

async fn groups(State(desk): State<Desk>, request: Request) -> Response<Body> {
    answer(wanted(request).await.map(|w| desk.groups(&w).into()))
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Posted {
    labels: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    starts_at: Option<String>,
    ends_at: Option<String>,
    #[serde(default, rename = "generatorURL")]
    generator_url: String,
}

/// Alerts of others, as Prometheus sends them.
async fn take(State(desk): State<Desk>, request: Request) -> Response<Body> {
    let taken = async {
        let posted: Vec<Posted> = body(request).await?;
        let now = chrono::Utc::now().timestamp_millis();
        let mut notices = Vec::with_capacity(posted.len());
        for mut alert in posted {
            alert.labels.retain(|_, v| !v.is_empty());
            if alert.labels.is_empty() {
                return Err(bad("at least one label pair required"));
            }
            let at = |text: &Option<String>, what: &str| match text.as_deref() {
                // Go's zero time stands for none.
                None | Some("" | "0001-01-01T00:00:00Z" | "0001-01-01T00:00:00.000Z") => Ok(None),
                Some(text) => {
                    parse_time_ms(text).map(Some).ok_or_else(|| bad(format!("bad time {text:?} for {what}")))
                }
            };
            let ends_at = at(&alert.ends_at, "endsAt")?.unwrap_or(now + BELIEVED_MS);
            let starts_at = at(&alert.starts_at, "startsAt")?.unwrap_or(now.min(ends_at));
            notices.push(Notice {
                labels: alert.labels,
                annotations: alert.annotations,
                starts_at,
                ends_at,
                resolved: ends_at <= now,
                generator_url: alert.generator_url,
            });
        }
        desk.take(&notices);
        Ok(json!({}))
    };
    answer(taken.await)
}

async fn silences(State(desk): State<Desk>, request: Request) -> Response<Body> {
    answer(filter(request).await.map(|(_, filter)| desk.silences(&filter).into()))
}

async fn silence(State(desk): State<Desk>, request: Request) -> Response<Body> {
    let made = async {
        let wire: WireSilence = body(request).await?;
        desk.silence(wire).await.map(|id| json!({"silenceID": id})).map_err(|e| {
            let status =
                if e.starts_with("silence not found") { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST };
            (status, e)
        })
    };
    answer(made.await)
}

fn unknown(id: &str) -> Refused {
    (StatusCode::NOT_FOUND, format!("silence not found: {id}"))
}

async fn one(State(desk): State<Desk>, Path(id): Path<String>) -> Response<Body> {
    answer(desk.silence_of(&id).ok_or_else(|| unknown(&id)))
}

async fn unsilence(State(desk): State<Desk>, Path(id): Path<String>, request: Request) -> Response<Body> {
    if same_site::is_foreign(request.headers()) {
        return answer(Err((StatusCode::FORBIDDEN, "a page of another site may not ask for this".into())));
    }
    answer(if desk.unsilence(&id).await { Ok(json!({})) } else { Err(unknown(&id)) })
}

async fn receivers(State(desk): State<Desk>) -> Response<Body> {
    answer(Ok(desk.receivers().into_iter().map(|name| json!({"name": name})).collect()))
}

async fn status(State(desk): State<Desk>) -> Response<Body> {
    answer(Ok(json!({
        "cluster": {"status": "disabled", "peers": []},
        // Secrets stay in the file.
        "config": {"original": ""},
        "uptime": time(desk.started_ms()),
        "versionInfo": {
            "version": env!("CARGO_PKG_VERSION"), "revision": "sightline", "branch": "", "buildUser": "", "buildDate": "",
            "goVersion": "",
        },
    })))
}
