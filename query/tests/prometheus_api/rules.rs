//! `/rules`, `/alerts` and `/alertmanagers` over rules that run: shapes, filters, pages, and what is refused.

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::Router;
use query::{
    QueryConfig,
    limits::Limits,
    promql::{Engine, EngineOptions},
    rules::{
        notify::{Alertmanager, Credentials, NotifySettings},
        ruler::{RuleSource, Ruler, RulerSettings, Running},
    },
};
use serde_json::{Value, json};
use storage::{
    Store,
    model::{Labels, MetricBatchBuilder, TenantId, batch::SeriesMeta},
};

use super::{Given, api_over, append, get};

/// Three groups in two files; the rules of the first have been evaluated, the others wait for their hour.
const ONE: &str = "groups:
- name: api
  interval: 100ms
  limit: 10
  rules:
  - record: job:m:sum
    expr: sum by (job) (m)
    labels: {team: a}
  - alert: High
    expr: m > 1
    labels: {severity: page, team: b}
    annotations: {summary: '{{ $value }} on {{ $labels.job }}'}
  - alert: Slow
    expr: m > 1
    for: 5m
    keep_firing_for: 90s
  - alert: Kept
    expr: m > 2
    keep_firing_for: 1h
  - record: bad
    expr: m * on () m
- name: idle
  interval: 1h
  rules:
  - {alert: Never, expr: 'm > 100', labels: {severity: warn}}
";
const TWO: &str = "groups:
- {name: api, interval: 1h, rules: [{record: 'a:b', expr: m}]}
";

struct World {
    _dirs: (tempfile::TempDir, tempfile::TempDir),
    running: Running,
    ruler: Ruler,
    store: Store,
    api: Router,
    one: String,
    two: String,
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (one, two) = (path("one.yml"), path("two.yml"));
        std::fs::write(&one, ONE).unwrap();
        std::fs::write(&two, TWO).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let given: [Given<'_>; 2] = [
            (&[("__name__", "m"), ("job", "x")], now - 60, &[2.5, 2.5, 2.5]),
            (&[("__name__", "m"), ("job", "y")], now - 60, &[1.0, 1.0, 1.0]),
        ];
        let (data, _, store) = api_over(&given, QueryConfig::default()).await;
        let alertmanager = Alertmanager {
            url: "http://127.0.0.1:1/am".parse().unwrap(),
            timeout: Duration::from_secs(1),
            credentials: Credentials::None,
            via: None,
            relabel: None,
        };
        let settings = RulerSettings {
            sources: vec![RuleSource { files: vec![one.clone(), two.clone()], ..RuleSource::default() }],
            interval: Duration::from_secs(60),
            external_labels: Labels::default(),
            external_url: "http://x".into(),
            state_dir: dir.path().join("state"),
            notify: NotifySettings {
                resend_delay: Duration::from_secs(60),
                alertmanagers: vec![alertmanager],
                desk: None,
            },
        };
        let engine = Engine::new(store.clone(), Limits::default(), EngineOptions::default());
        let clock = Arc::new(storage::vfs::SystemClock::new());
        let discover = Arc::new(|_: &str| Vec::<PathBuf>::new());
        let (ruler, running) = Ruler::start(settings, engine, store.clone(), clock, discover).await.unwrap();
        let api = query::router(QueryConfig { ruler: Some(ruler.clone()), ..QueryConfig::default() }, store.clone());
        let world = World { _dirs: (dir, data), running, ruler, store, api, one, two };
        for _ in 0..1_000 {
            let groups = world.ruler.groups(&TenantId::default());
            if groups[0].rules.iter().all(|r| r.last_ms.is_some()) {
                return world;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no evaluation");
    }

    /// Groups with the names of their rules, and the token of the next page.
    async fn names(&self, query: &str) -> (Vec<(String, Vec<String>)>, Option<String>) {
        let (status, body) = get(&self.api, &format!("/api/v1/rules?{query}")).await;
        assert_eq!((status, &body["status"]), (200, &json!("success")), "{query}: {body}");
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let group = |g: &Value| {
            let file = if text(&g["file"]) == self.one { "one" } else { "two" };
            let rules = g["rules"].as_array().unwrap().iter().map(|r| text(&r["name"])).collect();
            (format!("{file}/{}", text(&g["name"])), rules)
        };
        let groups = body["data"]["groups"].as_array().unwrap().iter().map(group).collect();
        (groups, body["data"]["groupNextToken"].as_str().map(str::to_owned))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_and_alerts_are_shown_in_prometheus_shape() {
    let world = World::new().await;
    let (_, mut body) = get(&world.api, "/api/v1/rules").await;
    let group = body["data"]["groups"][0].take();
    assert_eq!((&group["name"], &group["file"]), (&json!("api"), &json!(world.one)));
    assert_eq!((&group["interval"], &group["limit"]), (&json!(0.1), &json!(10)));
    assert!(group["evaluationTime"].as_f64() > Some(0.0), "{group}");
    let is_time = |v: &Value| chrono::DateTime::parse_from_rfc3339(v.as_str().unwrap()).is_ok();
    assert!(is_time(&group["lastEvaluation"]));
    // What differs from run to run is looked at and taken out.
    let rule = |i: usize| {
        let mut rule = group["rules"][i].clone();
        let map = rule.as_object_mut().unwrap();
        assert!(is_time(&map.remove("lastEvaluation").unwrap()));
        assert!(map.remove("evaluationTime").unwrap().is_number());
        for alert in map.get_mut("alerts").into_iter().flat_map(|a| a.as_array_mut().unwrap()) {
            assert!(is_time(&alert.as_object_mut().unwrap().remove("activeAt").unwrap()));
        }
        rule
    };
    assert_eq!(
        rule(0),
        json!({"name": "job:m:sum", "query": "sum by (job) (m)", "labels": {"team": "a"}, "health": "ok", "type": "recording"})
    );
    let alert = json!({"labels": {"alertname": "High", "job": "x", "severity": "page", "team": "b"},
        "annotations": {"summary": "2.5 on x"}, "state": "firing", "value": "2.5e+00"});
    assert_eq!(
        rule(1),
        json!({"state": "firing", "name": "High", "query": "m > 1", "duration": 0, "keepFiringFor": 0,
            "labels": {"severity": "page", "team": "b"}, "annotations": {"summary": "{{ $value }} on {{ $labels.job }}"},
            "alerts": [alert], "health": "ok", "type": "alerting"})
    );
    let slow = rule(2);
    assert_eq!((&slow["state"], &slow["alerts"][0]["state"]), (&json!("pending"), &json!("pending")));
    assert_eq!((&slow["duration"], &slow["keepFiringFor"]), (&json!(300), &json!(90)));
    assert_eq!((&slow["labels"], &slow["annotations"]), (&json!({}), &json!({})));
    assert_eq!(rule(3)["alerts"][0].get("keepFiringSince"), None);
    let bad = rule(4);
    assert_eq!(bad["health"], "err");
    assert!(bad["lastError"].as_str().unwrap().contains("many-to-many matching not allowed"), "{bad}");
    let never =
        body["data"]["groups"].as_array().unwrap().iter().find(|g| g["name"] == "idle").unwrap()["rules"][0].clone();
    assert_eq!((&never["state"], &never["alerts"]), (&json!("inactive"), &json!([])));
    if never["health"] == "unknown" {
        assert_eq!(never["lastEvaluation"], "0001-01-01T00:00:00Z");
    }
    let (status, body) = get(&world.api, "/api/v1/alerts").await;
    assert_eq!(status, 200);
    let alerts = body["data"]["alerts"].as_array().unwrap();
    let shown: Vec<(&str, &str)> =
        alerts.iter().map(|a| (a["labels"]["alertname"].as_str().unwrap(), a["state"].as_str().unwrap())).collect();
    assert_eq!(shown, [("High", "firing"), ("Slow", "pending"), ("Kept", "firing")], "{body}");
    assert_eq!(alerts[0]["value"], "2.5e+00");
    let (_, body) = get(&world.api, "/api/v1/alertmanagers").await;
    assert_eq!(
        body["data"],
        json!({"activeAlertmanagers": [{"url": "http://127.0.0.1:1/am/api/v2/alerts"}], "droppedAlertmanagers": []})
    );
    assert!(world.running.stop(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_are_filtered_and_come_in_pages() {
    let world = World::new().await;
    let of = |list: &[(&str, &[&str])]| -> Vec<(String, Vec<String>)> {
        list.iter().map(|(g, r)| ((*g).to_owned(), r.iter().map(|n| (*n).to_owned()).collect())).collect()
    };
    let api: (&str, &[&str]) = ("one/api", &["job:m:sum", "High", "Slow", "Kept", "bad"]);
    let idle: (&str, &[&str]) = ("one/idle", &["Never"]);
    let two: (&str, &[&str]) = ("two/api", &["a:b"]);
    let file = |path: &str| path.replace('/', "%2F");
    let (one_file, two_file) = (file(&world.one), file(&world.two));
    for (query, want) in [
        ("", of(&[api, idle, two])),
        ("type=alert", of(&[("one/api", &["High", "Slow", "Kept"]), idle])),
        ("type=RECORD", of(&[("one/api", &["job:m:sum", "bad"]), two])),
        ("rule_name[]=High&rule_name[]=a:b", of(&[("one/api", &["High"]), two])),
        ("rule_group[]=idle", of(&[idle])),
        ("rule_group[]=api&type=alert", of(&[("one/api", &["High", "Slow", "Kept"])])),
        (&format!("file[]={two_file}"), of(&[two])),
        (&format!("file[]={two_file}&file[]={one_file}&rule_group[]=api"), of(&[api, two])),
        ("file[]=elsewhere", of(&[])),
        ("match[]=%7Bseverity=%22page%22%7D", of(&[("one/api", &["High"])])),
        // Any of several, each of which must hold whole.
        (
            "match[]=%7Bseverity=%22warn%22%7D&match[]=%7Bteam=~%22a|b%22,severity!=%22page%22%7D",
            of(&[("one/api", &["job:m:sum"]), idle]),
        ),
    ] {
        assert_eq!(world.names(query).await.0, want, "{query}");
    }
    let (_, body) = get(&world.api, "/api/v1/rules?type=alert&exclude_alerts=true").await;
    let high = &body["data"]["groups"][0]["rules"][0];
    assert_eq!((&high["state"], &high["alerts"]), (&json!("firing"), &json!([])));
    // A page each, and no token after the last one.
    let (mut token, mut pages) = (String::new(), Vec::new());
    for _ in 0..3 {
        let (groups, next) = world.names(&format!("group_limit=1{token}")).await;
        pages.push(groups);
        match next {
            Some(next) => token = format!("&group_next_token={next}"),
            None => break,
        }
    }
    assert_eq!(pages, [of(&[api]), of(&[idle]), of(&[two])]);
    let (groups, next) = world.names("group_limit=3").await;
    assert_eq!((groups.len(), next), (3, None));
    // Groups that a filter leaves nothing of fill no page.
    let (groups, next) = world.names("group_limit=2&type=record").await;
    assert_eq!((groups.len(), next), (2, None));
    for (query, want) in [
        ("type=both", r#"invalid parameter "type": not supported value "both""#),
        (
            "exclude_alerts=perhaps",
            r#"invalid parameter "exclude_alerts": error converting exclude_alerts: "perhaps" is neither true nor false"#,
        ),
        ("group_limit=x", r#"invalid parameter "group_limit": group_limit needs to be a valid number, got "x""#),
        ("group_limit=0", r#"invalid parameter "group_limit": group_limit needs to be greater than 0"#),
        ("group_limit=-1", r#"invalid parameter "group_limit": group_limit needs to be greater than 0"#),
        (
            "group_next_token=abc",
            r#"invalid parameter "group_next_token": group_limit needs to be present in order to paginate over the groups"#,
        ),
        (
            "group_limit=1&group_next_token=abc",
            r#"invalid parameter "group_next_token": invalid group_next_token 'abc'. were rule groups changed?"#,
        ),
        ("match[]=%7B%7D", "match[] must contain at least one non-empty matcher"),
    ] {
        let (status, body) = get(&world.api, &format!("/api/v1/rules?{query}")).await;
        assert_eq!(
            (status, body),
            (400, json!({"status": "error", "errorType": "bad_data", "error": want})),
            "{query}"
        );
    }
    // A token whose group is gone is told so.
    let token = world.names("group_limit=2").await.1.unwrap();
    std::fs::write(&world.two, "").unwrap();
    world.ruler.reload().await.unwrap();
    let (status, body) = get(&world.api, &format!("/api/v1/rules?group_limit=1&group_next_token={token}")).await;
    assert_eq!(status, 400, "{body}");
    assert!(body["error"].as_str().unwrap().ends_with("were rule groups changed?"), "{body}");
    // Without any rules, and for another tenant, there are none.
    let nobody = query::router(QueryConfig::default(), api_over(&[], QueryConfig::default()).await.2);
    let (_, body) = get(&nobody, "/api/v1/rules").await;
    assert_eq!(body, json!({"status": "success", "data": {"groups": []}}));
    let (_, body) = get(&nobody, "/api/v1/alerts").await;
    assert_eq!(body["data"], json!({"alerts": []}));
    assert!(world.running.stop(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_that_is_kept_tells_since_when_and_one_that_is_not_is_gone() {
    let world = World::new().await;
    let mut b = MetricBatchBuilder::new();
    let id = b.series(&Labels::from_pairs([("__name__", "m"), ("job", "x")]), SeriesMeta::default());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    b.sample(id, now, None, 0.0);
    append(&world.store, b).await;
    for _ in 0..1_000 {
        let (_, body) = get(&world.api, "/api/v1/alerts").await;
        let alerts = body["data"]["alerts"].as_array().unwrap();
        if let [kept] = &alerts[..] {
            assert_eq!((&kept["labels"]["alertname"], &kept["state"]), (&json!("Kept"), &json!("firing")));
            let since = chrono::DateTime::parse_from_rfc3339(kept["keepFiringSince"].as_str().unwrap()).unwrap();
            assert!(since.timestamp_millis() >= now - 1, "{body}");
            assert!(world.running.stop(Duration::from_secs(10)).await);
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the alerts that are over stay");
}
