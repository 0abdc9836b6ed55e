//! `/targets`, `/targets/metadata` and `/scrape_pools`: what a scraper says of itself, whoever it is.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    extract::{Request, State},
    routing::get,
};
use chrono::{DateTime, SecondsFormat, Utc};
use storage::model::{Labels, TenantId, json::write_string};

use super::{Answer, answer};
use crate::{
    annotations::Annotations,
    error::QueryError,
    http::{
        encode, envelope,
        params::{Params, invalid},
    },
    promql,
};

/// What is asked of a scraper. The binary joins the two.
pub trait ScrapeTargets: Send + Sync {
    /// Pools whose samples are this tenant's, in any order.
    fn pools(&self, tenant: &TenantId) -> Vec<ScrapePool>;
    /// Calls back for each metric family of each target of this tenant.
    fn metadata(&self, tenant: &TenantId, each: &mut dyn FnMut(&Labels, &TargetFamily<'_>));
}

/// The targets of one job.
#[derive(Clone, Debug, Default)]
pub struct ScrapePool {
    pub name: String,
    pub active: Vec<ActiveTarget>,
    /// Labels before relabelling of targets that relabelling drops; some may be missing.
    pub dropped: Vec<Labels>,
    /// All of those.
    pub dropped_total: usize,
}

#[derive(Clone, Debug)]
pub struct ActiveTarget {
    pub discovered_labels: Labels,
    pub labels: Labels,
    pub url: String,
    /// As seen from other machines.
    pub global_url: String,
    /// Empty: none.
    pub last_error: String,
    pub last_scrape: Option<SystemTime>,
    pub last_duration: Duration,
    /// `unknown`, `up` or `down`.
    pub health: &'static str,
    pub interval: String,
    pub timeout: String,
}

#[derive(Clone, Copy, Debug)]
pub struct TargetFamily<'a> {
    pub metric: &'a str,
    pub metric_type: &'a str,
    pub help: &'a str,
    pub unit: &'a str,
}

/// A scraper, or none.
#[derive(Clone, Default)]
pub struct Scraper(pub Option<Arc<dyn ScrapeTargets>>);

impl std::fmt::Debug for Scraper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "a scraper" } else { "no scraper" })
    }
}

/// Time of what never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Paths below `/api/v1`.
pub fn router(scraper: Scraper) -> Router {
    let targets = |State(s): State<Scraper>, request: Request| async move { answer(targets(&s, request).await) };
    let scrape_pools =
        |State(s): State<Scraper>, request: Request| async move { answer(scrape_pools(&s, request).await) };
    let metadata = |State(s): State<Scraper>, request: Request| async move { answer(metadata(&s, request).await) };
    Router::new()
        .route("/targets", get(targets))
        .route("/targets/metadata", get(metadata))
        .route("/scrape_pools", get(scrape_pools))
        .with_state(scraper)
}

fn pools(scraper: &Scraper, tenant: &TenantId) -> Vec<ScrapePool> {
    let mut out = scraper.0.as_ref().map(|s| s.pools(tenant)).unwrap_or_default();
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out
}

async fn scrape_pools(scraper: &Scraper, request: Request) -> Answer {
    let (_, tenant) = Params::of(request).await?;
    let pools = pools(scraper, &tenant);
    let mut data = String::from(r#"{"scrapePools":"#);
    encode::write_strings(&mut data, pools.iter().map(|p| p.name.as_str()));
    data.push('}');
    Ok(envelope::prometheus_success(&data, &Annotations::default()))
}

/// Writes `"key":"text",`.
fn text(out: &mut String, key: &str, value: &str) {
    out.push_str(&format!("\"{key}\":"));
    write_string(out, value);
    out.push(',');
}

async fn targets(scraper: &Scraper, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    // As Prometheus: what is none of the three names is nothing.
    let state = params.get("state").unwrap_or("any").to_ascii_lowercase();
    let (active, dropped) = (["any", "active"].contains(&&*state), ["any", "dropped"].contains(&&*state));
    let mut pools = pools(scraper, &tenant);
    if let Some(wanted) = params.get("scrapePool") {
        pools.retain(|p| p.name == wanted);
    }
    let mut data = String::from(r#"{"activeTargets":["#);
    for (pool, target) in pools.iter().flat_map(|p| p.active.iter().map(move |t| (p, t))).filter(|_| active) {
        data.push_str(r#"{"discoveredLabels":"#);
        encode::write_labels(&mut data, &target.discovered_labels);
        data.push_str(r#","labels":"#);
        encode::write_labels(&mut data, &target.labels);
        data.push(',');
        text(&mut data, "scrapePool", &pool.name);
        text(&mut data, "scrapeUrl", &target.url);
        text(&mut data, "globalUrl", &target.global_url);
        text(&mut data, "lastError", &target.last_error);
        let last = target.last_scrape.map(|t| DateTime::<Utc>::from(t).to_rfc3339_opts(SecondsFormat::AutoSi, true));
        text(&mut data, "lastScrape", last.as_deref().unwrap_or(NEVER));
        data.push_str(&format!("\"lastScrapeDuration\":{},", target.last_duration.as_secs_f64()));
        text(&mut data, "health", target.health);
        text(&mut data, "scrapeInterval", &target.interval);
        text(&mut data, "scrapeTimeout", &target.timeout);
        data.pop();
        data.push_str("},");
    }
    close(&mut data);
    data.push_str(r#","droppedTargets":["#);
    for (pool, labels) in pools.iter().flat_map(|p| p.dropped.iter().map(move |l| (p, l))).filter(|_| dropped) {
        data.push_str(r#"{"discoveredLabels":"#);
        encode::write_labels(&mut data, labels);
        data.push(',');
        text(&mut data, "scrapePool", &pool.name);
        data.pop();
        data.push_str("},");
    }
    close(&mut data);
    if !dropped {
        data.push_str(r#","droppedTargetCounts":null}"#);
    } else {
        data.push_str(r#","droppedTargetCounts":{"#);
        for pool in &pools {
            write_string(&mut data, &pool.name);
            data.push_str(&format!(":{},", pool.dropped_total));
        }
        if data.ends_with(',') {
            data.pop();
        }
        data.push_str("}}");
    }
    Ok(envelope::prometheus_success(&data, &Annotations::default()))
}

/// Ends a list whose items end in commas.
fn close(data: &mut String) {
    if data.ends_with(',') {
        data.pop();
    }
    data.push(']');
}

async fn metadata(scraper: &Scraper, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let limit = match params.get("limit").map(str::parse::<i64>) {
        None => usize::MAX,
        Some(Ok(n)) => usize::try_from(n).unwrap_or(usize::MAX),
        Some(Err(_)) => return Err(QueryError::BadData("limit must be a number".into())),
    };
    let matchers = match params.get("match_target") {
        None => Vec::new(),
        Some(selector) => promql::parse_selector(selector).map_err(|e| invalid("match_target", &e.to_string()))?,
    };
    let metric = params.get("metric");
    let mut data = String::from("[");
    let mut met = BTreeSet::new();
    if let Some(scraper) = &scraper.0 {
        scraper.metadata(&tenant, &mut |labels, family| {
            let wanted = metric.is_none_or(|m| m == family.metric) && matchers.iter().all(|m| m.matches(labels));
            if !wanted || met.len() >= limit || !met.insert((labels.id(), family.metric.to_owned())) {
                return;
            }
            data.push_str(r#"{"target":"#);
            encode::write_labels(&mut data, labels);
            data.push(',');
            // Of a metric that was asked for, the name is known.
            if metric.is_none() {
                text(&mut data, "metric", family.metric);
            }
            text(&mut data, "type", family.metric_type);
            text(&mut data, "help", family.help);
            text(&mut data, "unit", family.unit);
            data.pop();
            data.push_str("},");
        });
    }
    close(&mut data);
    Ok(envelope::prometheus_success(&data, &Annotations::default()))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;

    struct One;

    impl ScrapeTargets for One {
        fn pools(&self, tenant: &TenantId) -> Vec<ScrapePool> {
            if *tenant != TenantId::default() {
                return Vec::new();
            }
            let labels = |pairs: &[(&str, &str)]| Labels::from_pairs(pairs.iter().copied());
            let active = ActiveTarget {
                discovered_labels: labels(&[("__address__", "h:1"), ("job", "a")]),
                labels: labels(&[("instance", "h:1"), ("job", "a")]),
                url: "http://h:1/metrics".into(),
                global_url: "http://h:1/metrics".into(),
                last_error: "a \"b\"".into(),
                last_scrape: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)),
                last_duration: Duration::from_millis(50),
                health: "down",
                interval: "15s".into(),
                timeout: "10s".into(),
            };
            let dropped = vec![labels(&[("__address__", "x:1")])];
            let other = ScrapePool { name: "other".into(), ..ScrapePool::default() };
            vec![other, ScrapePool { name: "a".into(), active: vec![active], dropped, dropped_total: 3 }]
        }

        fn metadata(&self, _: &TenantId, each: &mut dyn FnMut(&Labels, &TargetFamily<'_>)) {
            for job in ["a", "b"] {
                let family = TargetFamily { metric: "m", metric_type: "gauge", help: "h", unit: "" };
                each(&Labels::from_pairs([("job", job)]), &family);
            }
        }
    }

    async fn ask(scraper: Scraper, path: &str) -> Value {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let body = router(scraper).oneshot(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test]
    async fn targets_are_told_in_the_shape_of_prometheus() {
        let one = || Scraper(Some(Arc::new(One)));
        let all = ask(one(), "/targets").await;
        let active = json!([{
            "discoveredLabels": {"__address__": "h:1", "job": "a"}, "labels": {"instance": "h:1", "job": "a"},
            "scrapePool": "a", "scrapeUrl": "http://h:1/metrics", "globalUrl": "http://h:1/metrics",
            "lastError": "a \"b\"", "lastScrape": "2023-11-14T22:13:20.123Z", "lastScrapeDuration": 0.05,
            "health": "down", "scrapeInterval": "15s", "scrapeTimeout": "10s",
        }]);
        let dropped = json!([{"discoveredLabels": {"__address__": "x:1"}, "scrapePool": "a"}]);
        let counts = json!({"a": 3, "other": 0});
        assert_eq!(
            all["data"],
            json!({"activeTargets": active, "droppedTargets": dropped, "droppedTargetCounts": counts})
        );
        let only = ask(one(), "/targets?state=dropped").await;
        assert_eq!((&only["data"]["activeTargets"], &only["data"]["droppedTargets"]), (&json!([]), &dropped));
        let none = ask(one(), "/targets?state=all").await;
        assert_eq!((&none["data"]["activeTargets"], &none["data"]["droppedTargets"]), (&json!([]), &json!([])));
        let only = ask(one(), "/targets?state=active&scrapePool=other").await;
        assert_eq!(only["data"]["activeTargets"], json!([]));
        assert_eq!(ask(one(), "/scrape_pools").await["data"], json!({"scrapePools": ["a", "other"]}));
        assert_eq!(ask(Scraper(None), "/scrape_pools").await["data"], json!({"scrapePools": []}));
        assert_eq!(ask(Scraper(None), "/targets").await["data"]["activeTargets"], json!([]));
        let request = Request::get("/scrape_pools").header("X-Scope-OrgID", "other").body(Body::empty()).unwrap();
        let body = router(one()).oneshot(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains("[]"), "targets are told to their tenant only");
    }

    #[tokio::test]
    async fn metadata_is_told_by_target_and_metric() {
        let one = || Scraper(Some(Arc::new(One)));
        let found = ask(one(), "/targets/metadata?match_target=%7Bjob%3D%22b%22%7D").await;
        assert_eq!(
            found["data"],
            json!([{"target": {"job": "b"}, "metric": "m", "type": "gauge", "help": "h", "unit": ""}])
        );
        let found = ask(one(), "/targets/metadata?metric=m&limit=1").await;
        assert_eq!(found["data"], json!([{"target": {"job": "a"}, "type": "gauge", "help": "h", "unit": ""}]));
        assert_eq!(ask(one(), "/targets/metadata?limit=x").await["error"], "limit must be a number");
        assert_eq!(ask(one(), "/targets/metadata?match_target=%7B").await["errorType"], "bad_data");
    }
}
