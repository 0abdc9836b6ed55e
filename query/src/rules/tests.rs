//! Groups and the ruler over a real store; the clock is moved by hand.

use std::{path::PathBuf, sync::Arc, time::Duration};

use storage::{
    Store, StoreConfig,
    model::{Labels, TenantId, Timestamp},
    vfs::{Clock, SystemClock},
};

use super::{
    alerting::AlertState,
    file,
    group::{Due, Group, Health, Schedule, Site},
    ruler::{RuleSource, Ruler, RulerSettings},
    write::{OutSample, append},
};
use crate::{
    limits::Limits,
    promql::{Engine, EngineOptions, Point, RangeRequest, Value},
};

const MINUTE: i64 = 60_000;

struct Bench {
    _dir: tempfile::TempDir,
    site: Site,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = StoreConfig::new(dir.path());
        config.durability = storage::Durability::None;
        config.background = false;
        let store = Store::open(config).await.unwrap();
        let engine = Engine::new(store.clone(), Limits::default(), EngineOptions::default());
        let external_labels = Arc::new(Labels::from_pairs([("site", "s1")]));
        let site =
            Site { engine, store, tenant: TenantId::default(), external_labels, external_url: "http://x".into() };
        Bench { _dir: dir, site }
    }

    async fn put(&self, labels: &[(&str, &str)], ts_ms: i64, value: f64) {
        let labels = Arc::new(Labels::from_pairs(labels.iter().copied()));
        append(&self.site.store, &self.site.tenant, &[OutSample { labels, ts_ms, point: Point::Float(value) }])
            .await
            .unwrap();
    }

    /// Series of a selector and their values at each minute.
    async fn read(&self, query: &str, to: i64) -> Vec<String> {
        let request =
            RangeRequest { query: query.into(), start_ms: 0, end_ms: to, step_ms: MINUTE, ..RangeRequest::default() };
        let Value::Matrix(series) = self.site.engine.range(&self.site.tenant, request).await.unwrap().value else {
            panic!("a range gives a matrix")
        };
        let points = |s: &crate::promql::SeriesPoints| {
            s.points
                .iter()
                .map(|(t, p)| format!("{}:{}", t / MINUTE, p.float().unwrap()))
                .collect::<Vec<_>>()
                .join(" ")
        };
        series.iter().map(|s| format!("{:?} {}", s.labels, points(s))).collect()
    }
}

#[test]
fn the_offset_of_a_group_counts_even_when_it_is_none_and_a_missing_file_may_come_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let rule = "rules: [{record: a, expr: b}]";
    let groups = format!(
        "groups:\n- {{name: own, query_offset: 2m, {rule}}}\n- {{name: zero, query_offset: 0s, {rule}}}\n- {{name: none, {rule}}}\n"
    );
    std::fs::write(path("a.yml"), &groups).unwrap();
    let source = RuleSource {
        files: vec![path("a.yml").display().to_string(), path("later.yml").display().to_string()],
        query_offset: Duration::from_secs(60),
        may_be_missing: true,
        ..RuleSource::default()
    };
    let discover: super::ruler::Discover = Arc::new(|_| Vec::new());
    let offsets = |source: &RuleSource| -> Vec<i64> {
        let loaded = super::ruler::load(std::slice::from_ref(source), &discover).unwrap();
        loaded.iter().map(|(_, _, group)| group.offset_ms()).collect()
    };
    assert_eq!(offsets(&source), [2 * MINUTE, 0, MINUTE]);
    std::fs::write(path("later.yml"), &groups).unwrap();
    assert_eq!(offsets(&source).len(), 6);
    std::fs::remove_file(path("later.yml")).unwrap();
    let strict = RuleSource { may_be_missing: false, ..source };
    let errors = super::ruler::load(&[strict], &discover).unwrap_err();
    assert!(errors[0].to_string().contains("later.yml"), "{errors:?}");
}

fn group(text: &str) -> Group {
    let mut read = file::parse(text, "f.yml").unwrap();
    Group::new(&TenantId::default(), "f.yml", read.groups.remove(0), MINUTE)
}

#[test]
fn times_keep_their_grid_and_what_was_missed_is_counted() {
    let schedule = Schedule::new("k", 15_000);
    let first = schedule.at_or_before(1_000_000);
    assert!(first <= 1_000_000 && first > 985_000);
    assert_eq!(schedule.after(first), first + 15_000);
    assert_eq!(schedule.due(first, first + 14_999), None);
    assert_eq!(schedule.due(first, first + 15_000), Some(Due { at: first + 15_000, missed: 0 }));
    assert_eq!(schedule.due(first, first + 50_000), Some(Due { at: first + 45_000, missed: 2 }));
    assert_eq!(schedule.due(first + 3, first + 15_001), Some(Due { at: first + 15_000, missed: 0 }));
    assert_eq!(schedule.due(first, first - 100_000), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_reads_what_the_one_before_it_wrote_and_vanished_series_end() {
    let bench = Bench::new().await;
    let mut group = group(
        "groups:\n- name: g\n  rules:\n  - {record: 'a:sum', expr: 'sum by (job) (m)', labels: {by: rule}}\n  \
         - {record: 'a:twice', expr: 'a:sum * 2'}\n  - {record: one, expr: '1'}\n",
    );
    bench.put(&[("__name__", "m"), ("job", "x"), ("i", "1")], 0, 3.0).await;
    bench.put(&[("__name__", "m"), ("job", "x"), ("i", "2")], 0, 4.0).await;
    group.evaluate(MINUTE, &bench.site).await;
    // The input is gone after the lookback of five minutes.
    group.evaluate(6 * MINUTE, &bench.site).await;
    assert_eq!(
        bench.read("a:sum", 7 * MINUTE).await,
        ["{__name__=\"a:sum\", by=\"rule\", job=\"x\"} 1:7 2:7 3:7 4:7 5:7"]
    );
    assert_eq!(
        bench.read("a:twice", 3 * MINUTE).await,
        ["{__name__=\"a:twice\", by=\"rule\", job=\"x\"} 1:14 2:14 3:14"]
    );
    assert_eq!(bench.read("one", MINUTE).await, ["{__name__=\"one\"} 1:1"]);
    assert!(group.rules.iter().all(|r| r.health == Health::Good));
    assert_eq!((group.counts.evaluations, group.counts.failures), (6, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_moves_what_is_read_and_written() {
    let bench = Bench::new().await;
    let mut group = group(
        "groups:\n- name: g\n  query_offset: 2m\n  rules:\n  - {record: late, expr: 'm'}\n  - {alert: A, expr: m > 0}\n",
    );
    bench.put(&[("__name__", "m")], MINUTE, 1.0).await;
    bench.put(&[("__name__", "m")], 2 * MINUTE, 2.0).await;
    group.evaluate(3 * MINUTE, &bench.site).await;
    assert_eq!(bench.read("late", MINUTE).await, ["{__name__=\"late\"} 1:1"]);
    assert_eq!(
        bench.read("ALERTS_FOR_STATE", MINUTE).await,
        ["{__name__=\"ALERTS_FOR_STATE\", alertname=\"A\"} 1:180"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_carry_expanded_labels_and_annotations_and_are_series() {
    let bench = Bench::new().await;
    let mut group = group(
        "groups:\n- name: g\n  rules:\n  - alert: High\n    expr: m > 1\n    for: 2m\n    labels: {severity: '{{ if gt $value 5.0 }}page{{ else }}mail{{ end }}', empty: ''}\n    \
         annotations: {summary: '{{ $labels.job }}@{{ $externalLabels.site }} {{ query \"m\" | first | value }} {{ .Nope }}'}\n",
    );
    bench.put(&[("__name__", "m"), ("job", "x")], 0, 7.0).await;
    for minute in 0..=2 {
        group.evaluate(minute * MINUTE, &bench.site).await;
    }
    let alert = group.rules[0].alerts.active().next().unwrap();
    assert_eq!(format!("{:?}", alert.labels), "{alertname=\"High\", job=\"x\", severity=\"page\"}");
    let summary = alert.annotations.get("summary").unwrap();
    assert!(summary.starts_with("<error expanding template: ") && summary.contains("Nope"), "{summary}");
    assert_eq!((alert.state, alert.value, alert.active_at), (AlertState::Firing, 7.0, 0));
    bench.put(&[("__name__", "m"), ("job", "x")], 3 * MINUTE, 0.0).await;
    group.evaluate(3 * MINUTE, &bench.site).await;
    let labels = |state: &str| {
        format!("{{__name__=\"ALERTS\", alertname=\"High\", alertstate=\"{state}\", job=\"x\", severity=\"page\"}}")
    };
    assert_eq!(
        bench.read("ALERTS", 5 * MINUTE).await,
        [format!("{} 2:1", labels("firing")), format!("{} 0:1 1:1", labels("pending"))]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_a_rule_are_its_own() {
    let bench = Bench::new().await;
    bench.put(&[("__name__", "m"), ("a", "1"), ("b", "1")], 0, 1.0).await;
    bench.put(&[("__name__", "m"), ("a", "1"), ("b", "2")], 0, 1.0).await;
    let mut group = group(
        "groups:\n- name: g\n  limit: 1\n  rules:\n  - {record: same, expr: m, labels: {b: ''}}\n  - {record: many, expr: m}\n  \
         - {alert: Many, expr: m}\n  - {record: bad, expr: 'm * on (a) m'}\n  - {record: good, expr: sum(m)}\n",
    );
    group.evaluate(0, &bench.site).await;
    let health: Vec<String> = group.rules.iter().map(|r| format!("{:?}", r.health)).collect();
    assert!(health[0].contains("same labelset after applying rule labels"), "{health:?}");
    assert!(health[1].contains("exceeded limit of 1 with 2 series"), "{health:?}");
    assert!(health[2].contains("exceeded limit of 1 with 2 alerts"), "{health:?}");
    assert!(health[3].contains("many-to-many") || health[3].contains("found duplicate series"), "{health:?}");
    assert_eq!(health[4], "Good");
    assert_eq!(group.counts.failures, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_group_goes_on_where_it_was() {
    let bench = Bench::new().await;
    bench.put(&[("__name__", "m")], 0, 1.0).await;
    let mut before =
        group("groups:\n- name: g\n  rules:\n  - {alert: A, expr: m, for: 5m}\n  - {record: gone, expr: m}\n");
    before.evaluate(0, &bench.site).await;
    let mut after =
        group("groups:\n- name: g\n  rules:\n  - {alert: B, expr: m}\n  - {alert: A, expr: m > 0, for: 1m}\n");
    after.continues(before);
    after.evaluate(MINUTE, &bench.site).await;
    let a = after.rules[1].alerts.active().next().unwrap();
    assert_eq!((a.state, a.active_at), (AlertState::Firing, 0));
    assert_eq!(bench.read("gone", 2 * MINUTE).await, ["{__name__=\"gone\"} 0:1"]);
}

/// A clock that is set by hand. Monotonic time is the real one.
#[derive(Debug)]
struct Shifted(SystemClock);

impl Clock for Shifted {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }
}

async fn ruler(bench: &Bench, rules: &std::path::Path, state: &std::path::Path) -> (Ruler, super::ruler::Running) {
    let pattern = format!("{}/*.yml", rules.display());
    let settings = RulerSettings {
        sources: vec![RuleSource { tenant: TenantId::default(), files: vec![pattern], ..RuleSource::default() }],
        interval: Duration::from_millis(50),
        state_dir: state.to_owned(),
        ..RulerSettings::default()
    };
    let folder = rules.to_owned();
    let discover = move |_: &str| {
        let mut found: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
        found.sort();
        found
    };
    let clock = Arc::new(Shifted(SystemClock::new()));
    let started =
        Ruler::start(settings, bench.site.engine.clone(), bench.site.store.clone(), clock, Arc::new(discover));
    started.await.unwrap()
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..2_000 {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} did not come");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_rules_stay_on_a_bad_reload_and_alerts_survive_a_restart() {
    let bench = Bench::new().await;
    let (rules, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = rules.path().join("a.yml");
    std::fs::write(&file, "groups:\n- name: g\n  rules:\n  - {alert: Up, expr: '1 > bool 0'}\n").unwrap();
    let (one, running) = ruler(&bench, rules.path(), state.path()).await;
    let tenant = TenantId::default();
    let firing = |r: &Ruler| {
        let group = r.groups(&tenant).into_iter().next()?;
        let alert = group.rules[0].alerts.first().filter(|a| a.state == AlertState::Firing)?;
        Some(alert.active_at)
    };
    let since = until("a firing alert", || firing(&one)).await;
    std::fs::write(&file, "groups:\n- name: g\n  rules:\n  - {alert: Up, expr: 'sum('}\n").unwrap();
    let errors = one.reload().await.unwrap_err();
    assert!(
        errors[0].to_string().contains("a.yml:4:23: group \"g\", rule 1, \"Up\": could not parse expression"),
        "{errors:?}"
    );
    assert_eq!(one.groups(&tenant)[0].rules[0].rule.expression.text(), "1 > bool 0");
    let line = |r: &Ruler, name: &str| r.metrics().iter().find(|l| l.name == name).unwrap().value;
    assert_eq!((line(&one, "rules_in_force_are_latest"), line(&one, "rules_reloads_failed_total")), (0.0, 1.0));
    assert!(one.groups(&TenantId::parse("other").unwrap()).is_empty());
    std::fs::write(&file, "groups:\n- name: g\n  rules:\n  - {alert: Up, expr: '2 > bool 0'}\n").unwrap();
    assert_eq!(one.reload().await.unwrap(), 1);
    assert_eq!(until("the alert again", || firing(&one)).await, since, "the alert goes on over a reload");
    assert!(running.stop(Duration::from_secs(10)).await);
    let (two, running) = ruler(&bench, rules.path(), state.path()).await;
    assert_eq!(until("the alert after a restart", || firing(&two)).await, since);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(two.reload().await.unwrap(), 0);
    assert!(two.groups(&tenant).is_empty());
    assert!(running.stop(Duration::from_secs(10)).await);
}
