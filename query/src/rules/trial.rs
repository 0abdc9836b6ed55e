//! Unit tests of rules in promtool's format: series in, expected alerts and samples out, on a store of their own.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use storage::{
    Store, StoreConfig,
    model::{Labels, TenantId},
};

use super::{
    alerting::AlertState,
    file::{self, FileError, Kind, RuleGroup},
    group::{Group, Health, Site},
    ruler::Discover,
    write::{OutSample, append},
    yaml::{self, FILE_BYTES_MAX, Node, Place, Problem, Report, Value as Yaml},
};
use crate::{
    limits::Limits,
    promql::{
        Engine, EngineOptions, InstantRequest, Point, Value,
        notation::{self, Points},
        parse_duration_ms,
    },
};

/// Evaluations of all groups that one test may take.
const EVALUATIONS_MAX: i64 = 1_000_000;

/// A file of tests, read and checked.
#[derive(Debug)]
pub struct TestFile {
    groups: Vec<(String, RuleGroup)>,
    interval_ms: i64,
    tests: Vec<Test>,
    fuzzy: bool,
}

#[derive(Debug)]
struct Test {
    name: String,
    interval_ms: i64,
    start_ms: i64,
    input: Vec<(Labels, Points)>,
    alerts: Vec<AlertCase>,
    queries: Vec<QueryCase>,
    external_labels: Labels,
    external_url: String,
}

#[derive(Debug)]
struct AlertCase {
    at_ms: i64,
    alertname: String,
    expected: Vec<(Labels, Labels)>,
}

#[derive(Debug)]
struct QueryCase {
    at_ms: i64,
    expr: String,
    expected: Vec<(Labels, Point)>,
}

/// How one test went.
#[derive(Debug)]
pub struct Outcome {
    pub name: String,
    /// Empty when all is as expected.
    pub failures: Vec<String>,
}

/// Reads a file of tests and the rule files it names, which are relative to it.
pub fn read(path: &Path, discover: &Discover) -> Result<TestFile, Vec<FileError>> {
    let file = path.display().to_string();
    let fail = |problems: Vec<Problem>| vec![FileError { file: file.clone(), problems }];
    let top = Place { line: 1, column: 1 };
    let one = |message: String| fail(vec![Problem { place: top, about: String::new(), message }]);
    let size = std::fs::metadata(path).map_err(|e| one(format!("cannot read: {e}")))?.len();
    if size > FILE_BYTES_MAX as u64 {
        return Err(one(format!("the file is larger than {FILE_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| one(format!("cannot read: {e}")))?;
    let root = yaml::parse(&text).map_err(|p| fail(vec![p]))?;
    let mut report = Report::default();
    let (mut out, rule_files, order) = read_root(&root, &mut report);
    if !report.problems.is_empty() {
        report.problems.sort();
        return Err(fail(report.problems));
    }
    let mut errors = Vec::new();
    let base = path.parent().unwrap_or(Path::new(""));
    for pattern in rule_files {
        let pattern = base.join(pattern);
        let pattern = pattern.to_string_lossy();
        let found =
            if pattern.contains(['*', '?']) { discover(&pattern) } else { vec![PathBuf::from(pattern.as_ref())] };
        for path in found {
            match file::read(&path) {
                Ok(read) => {
                    let name = path.display().to_string();
                    out.groups.extend(read.groups.into_iter().map(|g| (name.clone(), g)));
                }
                Err(e) => errors.push(e),
            }
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    // Groups that are not named come first, as they stand in their files.
    out.groups.sort_by_key(|(_, g)| order.iter().position(|n| *n == g.name).map_or(0, |i| i + 1));
    Ok(out)
}

const FILE_FIELDS: [&str; 5] = ["rule_files", "evaluation_interval", "group_eval_order", "tests", "fuzzy_compare"];

fn read_root(root: &Node, report: &mut Report) -> (TestFile, Vec<String>, Vec<String>) {
    let mut out = TestFile { groups: Vec::new(), interval_ms: 60_000, tests: Vec::new(), fuzzy: false };
    let (mut files, mut order) = (Vec::new(), Vec::new());
    let fields = report.fields(root, "the test file", &FILE_FIELDS);
    let mut tests = None;
    for e in fields {
        match e.key.as_str() {
            "rule_files" => files = report.texts(&e.value, "rule_files"),
            "group_eval_order" => order = report.texts(&e.value, "group_eval_order"),
            "fuzzy_compare" => out.fuzzy = report.boolean(&e.value, "fuzzy_compare").unwrap_or(false),
            "evaluation_interval" => {
                let read = report.duration(&e.value, "evaluation_interval");
                out.interval_ms = read.filter(|ms| *ms > 0).unwrap_or(out.interval_ms);
            }
            _ => tests = Some(&e.value),
        }
    }
    let mut seen = HashSet::new();
    for name in order.iter().filter(|n| !seen.insert(n.as_str())) {
        report.note(root.place, format!("group name repeated in evaluation order: {name}"));
    }
    if let Some(tests) = tests {
        for (i, node) in report.list(tests, "tests").iter().enumerate() {
            report.about = format!("test {}", i + 1);
            let test = read_test(node, i, out.interval_ms, report);
            out.tests.push(test);
        }
    }
    report.about.clear();
    (out, files, order)
}

const TEST_FIELDS: [&str; 8] = [
    "name",
    "interval",
    "input_series",
    "alert_rule_test",
    "promql_expr_test",
    "external_labels",
    "external_url",
    "start_timestamp",
];

fn read_test(node: &Node, number: usize, interval_ms: i64, report: &mut Report) -> Test {
    let mut out = Test {
        name: format!("test {}", number + 1),
        interval_ms,
        start_ms: 0,
        input: Vec::new(),
        alerts: Vec::new(),
        queries: Vec::new(),
        external_labels: Labels::default(),
        external_url: String::new(),
    };
    for e in report.fields(node, "the test", &TEST_FIELDS) {
        let value = &e.value;
        match e.key.as_str() {
            "name" => out.name = report.text(value, "name").filter(|n| !n.is_empty()).unwrap_or(out.name),
            "interval" => {
                out.interval_ms = report.duration(value, "interval").filter(|ms| *ms > 0).unwrap_or(interval_ms);
            }
            "external_url" => out.external_url = report.text(value, "external_url").unwrap_or_default(),
            "external_labels" => {
                let pairs = report.pairs(value, "external_labels");
                out.external_labels = Labels::from_pairs(pairs.into_iter().map(|(n, v, _)| (n, v)));
            }
            "start_timestamp" => {
                let text = report.text(value, "start_timestamp").unwrap_or_default();
                match crate::http::params::parse_time_ms(&text) {
                    Some(ms) => out.start_ms = ms,
                    None => report.note(value.place, format!("cannot parse {text:?} to a valid timestamp")),
                }
            }
            "input_series" => {
                for node in report.list(value, "input_series") {
                    out.input.extend(read_series(node, report));
                }
            }
            "alert_rule_test" => {
                for node in report.list(value, "alert_rule_test") {
                    out.alerts.extend(read_alert_case(node, report));
                }
            }
            _ => {
                for node in report.list(value, "promql_expr_test") {
                    out.queries.extend(read_query_case(node, report));
                }
            }
        }
    }
    out
}

fn read_series(node: &Node, report: &mut Report) -> Option<(Labels, Points)> {
    let (mut labels, mut points) = (None, None);
    for e in report.fields(node, "the series", &["series", "values"]) {
        let text = report.text(&e.value, &e.key)?;
        let read = match e.key.as_str() {
            "series" => labels_of(&text).map(|l| labels = Some(l)),
            _ => notation::parse_points(&text).map(|p| points = Some(p)),
        };
        if let Err(why) = read {
            report.note(e.value.place, why);
        }
    }
    let missing = labels.is_none() || points.is_none();
    if missing && !report.problems.iter().any(|p| p.place >= node.place) {
        report.note(node.place, "a series needs `series` and `values`");
    }
    labels.zip(points)
}

/// The labels of `name{a="b"}`; of a text without a name and braces, none.
fn labels_of(text: &str) -> Result<Labels, String> {
    match text.trim() {
        "" | "{}" => Ok(Labels::default()),
        text => notation::labels_of(text),
    }
}

/// A time after the start of the test.
fn after(node: &Node, report: &mut Report) -> i64 {
    let text = report.text(node, "eval_time").unwrap_or_default();
    let (sign, rest) = text.strip_prefix('-').map_or((1, text.as_str()), |r| (-1, r));
    match parse_duration_ms(rest) {
        Some(ms) => sign * ms,
        None => {
            report.note(node.place, format!("not a valid duration string: {text:?} for eval_time"));
            0
        }
    }
}

fn read_alert_case(node: &Node, report: &mut Report) -> Option<AlertCase> {
    let mut out = AlertCase { at_ms: 0, alertname: String::new(), expected: Vec::new() };
    let fields = report.fields(node, "the alert test", &["eval_time", "alertname", "exp_alerts"]);
    for e in &fields {
        match e.key.as_str() {
            "eval_time" => out.at_ms = after(&e.value, report),
            "alertname" => out.alertname = report.text(&e.value, "alertname")?,
            _ => {}
        }
    }
    if out.alertname.is_empty() {
        report.note(node.place, "an item under alert_rule_test misses required attribute alertname");
        return None;
    }
    for e in fields.iter().filter(|e| e.key == "exp_alerts") {
        for node in report.list(&e.value, "exp_alerts") {
            let (mut labels, mut annotations) = (Labels::default(), Labels::default());
            for e in report.fields(node, "the expected alert", &["exp_labels", "exp_annotations"]) {
                let pairs = report.pairs(&e.value, &e.key).into_iter().map(|(n, v, _)| (n, v));
                match e.key.as_str() {
                    "exp_labels" => labels = Labels::from_pairs(pairs),
                    _ => annotations = Labels::from_pairs(pairs),
                }
            }
            labels.set("alertname", out.alertname.as_str());
            out.expected.push((labels, annotations));
        }
    }
    Some(out)
}

fn read_query_case(node: &Node, report: &mut Report) -> Option<QueryCase> {
    let mut out = QueryCase { at_ms: 0, expr: String::new(), expected: Vec::new() };
    for e in report.fields(node, "the expression test", &["expr", "eval_time", "exp_samples"]) {
        match e.key.as_str() {
            "expr" => out.expr = report.text(&e.value, "expr")?,
            "eval_time" => out.at_ms = after(&e.value, report),
            _ => {
                for node in report.list(&e.value, "exp_samples") {
                    out.expected.extend(read_sample(node, report));
                }
            }
        }
    }
    Some(out)
}

fn read_sample(node: &Node, report: &mut Report) -> Option<(Labels, Point)> {
    let (mut labels, mut point) = (Labels::default(), Point::Float(0.0));
    for e in report.fields(node, "the expected sample", &["labels", "value", "histogram"]) {
        let text = report.text(&e.value, &e.key)?;
        let read = match e.key.as_str() {
            "labels" => labels_of(&text).map(|l| labels = l),
            "value" => yaml_number(&text).map(|v| point = Point::Float(v)),
            // An empty one says that the sample is a float.
            _ if matches!(e.value.value, Yaml::Null) || text.is_empty() => Ok(()),
            _ => match notation::parse_points(&text).map(|p| p.into_iter().next()) {
                Ok(Some(p @ Point::Histogram(_))) => {
                    point = p;
                    Ok(())
                }
                Ok(_) => Err(format!("expected a histogram, got {text:?}")),
                Err(why) => Err(why),
            },
        };
        if let Err(why) = read {
            report.note(e.value.place, why);
        }
    }
    Some((labels, point))
}

/// A number of YAML: `.inf` and `.nan` beside the others.
fn yaml_number(text: &str) -> Result<f64, String> {
    match text {
        ".inf" | "+.inf" | ".Inf" | "+.Inf" => Ok(f64::INFINITY),
        "-.inf" | "-.Inf" => Ok(f64::NEG_INFINITY),
        ".nan" | ".NaN" => Ok(f64::NAN),
        text => notation::number(text),
    }
}

/// A folder that goes when it is no longer used.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sightline-rules-{}-{n}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl TestFile {
    /// Runs every test, each on an empty store.
    pub async fn run(&self) -> Vec<Outcome> {
        let mut out = Vec::with_capacity(self.tests.len());
        for test in &self.tests {
            let mut failures = Vec::new();
            if let Err(why) = self.run_one(test, &mut failures).await {
                failures.push(why);
            }
            out.push(Outcome { name: test.name.clone(), failures });
        }
        out
    }

    async fn run_one(&self, test: &Test, failures: &mut Vec<String>) -> Result<(), String> {
        let folder = Folder::new().map_err(|e| format!("cannot make a folder for the test: {e}"))?;
        let mut config = StoreConfig::new(&folder.0);
        config.durability = storage::Durability::None;
        config.background = false;
        let store = Store::open(config).await.map_err(|e| format!("cannot open a store: {e}"))?;
        let site = Site {
            engine: Engine::new(store.clone(), Limits::default(), EngineOptions::default()),
            store,
            tenant: TenantId::default(),
            external_labels: Arc::new(test.external_labels.clone()),
            external_url: test.external_url.as_str().into(),
        };
        load(test, &site).await?;
        let mut groups: Vec<Group> =
            self.groups.iter().map(|(file, g)| Group::new(&site.tenant, file, g.clone(), self.interval_ms)).collect();
        let times = test.alerts.iter().map(|c| c.at_ms).chain(test.queries.iter().map(|c| c.at_ms));
        let last = times.max().unwrap_or(0);
        if last / self.interval_ms > EVALUATIONS_MAX {
            return Err(format!("more than {EVALUATIONS_MAX} evaluations; use a longer evaluation_interval"));
        }
        let mut at = 0;
        while at <= last {
            for group in &mut groups {
                group.evaluate(test.start_ms + at, &site).await;
                for rule in &group.rules {
                    if let Health::Bad(e) = &rule.health {
                        let about = format!("rule: {}, time: {}", rule.rule.name(), shown_time(at));
                        failures.push(format!("{about}, err: {e}"));
                    }
                }
            }
            for case in test.alerts.iter().filter(|c| c.at_ms >= at && c.at_ms < at + self.interval_ms) {
                failures.extend(compare_alerts(case, &groups));
            }
            at += self.interval_ms;
        }
        for case in &test.queries {
            failures.extend(self.compare_query(case, test, &site).await);
        }
        Ok(())
    }

    async fn compare_query(&self, case: &QueryCase, test: &Test, site: &Site) -> Option<String> {
        let about = format!("expr: {:?}, time: {}", case.expr, shown_time(case.at_ms));
        let time_ms = test.start_ms + case.at_ms;
        let request = InstantRequest { query: case.expr.clone(), time_ms, ..InstantRequest::default() };
        let found = match site.engine.instant(&site.tenant, request).await.map(|o| o.value) {
            Ok(Value::Vector { samples, .. }) => {
                samples.into_iter().map(|s| (s.labels.as_ref().clone(), s.point)).collect()
            }
            Ok(Value::Scalar { value, .. }) => vec![(Labels::default(), Point::Float(value))],
            Ok(_) => return Some(format!("{about}, err: the result is not a vector or scalar")),
            Err(e) => return Some(format!("{about}, err: {e}")),
        };
        let sorted = |mut list: Vec<(Labels, Point)>| {
            list.sort_by(|a, b| a.0.cmp(&b.0));
            list
        };
        let (wanted, got) = (sorted(case.expected.clone()), sorted(found));
        let same = |(a, b): (&(Labels, Point), &(Labels, Point))| a.0 == b.0 && self.same(&a.1, &b.1);
        if wanted.len() == got.len() && wanted.iter().zip(&got).all(same) {
            return None;
        }
        let shown = |list: &[(Labels, Point)]| {
            let one = |(l, p): &(Labels, Point)| format!("\n      {} {}", shown_labels(l), shown_point(p));
            if list.is_empty() { " nil".to_owned() } else { list.iter().map(one).collect() }
        };
        Some(format!("{about},\n    exp:{}\n    got:{}", shown(&wanted), shown(&got)))
    }

    fn same(&self, wanted: &Point, got: &Point) -> bool {
        match (wanted, got) {
            (Point::Float(a), Point::Float(b)) if self.fuzzy => {
                a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() / (a.abs() + b.abs()) < 1e-15
            }
            (Point::Float(a), Point::Float(b)) => a == b || (a.is_nan() && b.is_nan()),
            (a, b) => notation::same(a, b),
        }
    }
}

async fn load(test: &Test, site: &Site) -> Result<(), String> {
    let mut samples = Vec::new();
    for (labels, points) in &test.input {
        let labels = Arc::new(labels.clone());
        let timed = points.iter().enumerate().filter(|(_, p)| p.is_some());
        samples.extend(timed.map(|(i, point)| OutSample {
            labels: labels.clone(),
            ts_ms: test.start_ms + test.interval_ms * i as i64,
            point: point.clone(),
        }));
    }
    append(&site.store, &site.tenant, &samples).await.map(drop).map_err(|e| format!("cannot load the series: {e}"))
}

fn compare_alerts(case: &AlertCase, groups: &[Group]) -> Option<String> {
    let rules = groups.iter().flat_map(|g| &g.rules);
    let of_name = rules.filter(|r| matches!(&r.rule.kind, Kind::Alert { name, .. } if *name == case.alertname));
    let firing = of_name.flat_map(|r| r.alerts.active()).filter(|a| a.state == AlertState::Firing);
    let mut got: Vec<(Labels, Labels)> =
        firing.map(|a| (a.labels.as_ref().clone(), a.annotations.as_ref().clone())).collect();
    let mut wanted = case.expected.clone();
    got.sort();
    wanted.sort();
    if got == wanted {
        return None;
    }
    let shown = |list: &[(Labels, Labels)]| {
        let one = |(l, a): &(Labels, Labels)| format!("\n      Labels:{l} Annotations:{a}");
        if list.is_empty() { " []".to_owned() } else { list.iter().map(one).collect() }
    };
    let about = format!("alertname: {}, time: {}", case.alertname, shown_time(case.at_ms));
    Some(format!("{about},\n    exp:{}\n    got:{}", shown(&wanted), shown(&got)))
}

fn shown_labels(labels: &Labels) -> String {
    let mut rest = labels.clone();
    let name = rest.remove("__name__").unwrap_or_default();
    if !name.is_empty() && rest.is_empty() { name } else { format!("{name}{rest}") }
}

fn shown_point(point: &Point) -> String {
    match point {
        Point::Float(v) => crate::promql::format_float(*v),
        Point::Histogram(h) => h.to_text(),
        Point::None => "nothing".into(),
    }
}

/// `1h5m`
fn shown_time(ms: i64) -> String {
    let mut out = String::new();
    let mut rest = ms.unsigned_abs();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if rest >= size {
            out.push_str(&format!("{}{unit}", rest / size));
            rest %= size;
        }
    }
    if out.is_empty() {
        "0s".into()
    } else if ms < 0 {
        format!("-{out}")
    } else {
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "groups:\n- name: g\n  rules:\n  - record: job:m:sum\n    expr: sum by (job) (m)\n  - alert: High\n    expr: job:m:sum > 5\n    for: 2m\n    labels: {severity: page}\n    \
        annotations: {summary: '{{ $labels.job }} {{ $value }}'}\n";

    async fn run(tests: &str) -> Vec<Outcome> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("rules.yml"), RULES).unwrap();
        let path = dir.path().join("t.yml");
        std::fs::write(&path, format!("rule_files: [rules.yml]\ntests:\n{tests}")).unwrap();
        let discover: Discover = Arc::new(|_| Vec::new());
        read(&path, &discover).unwrap_or_else(|e| panic!("{e:?}")).run().await
    }

    const INPUT: &str = "- interval: 1m\n  input_series:\n  - {series: 'm{job=\"a\",i=\"1\"}', values: '1+1x10'}\n  - {series: 'm{job=\"a\",i=\"2\"}', values: '0 0 0 0 stale'}\n";

    #[tokio::test(flavor = "multi_thread")]
    async fn expected_alerts_and_samples_are_found() {
        let cases = "  alert_rule_test:\n  - {eval_time: 6m, alertname: High}\n  - eval_time: 7m\n    alertname: High\n    exp_alerts:\n    \
                     - {exp_labels: {severity: page, job: a}, exp_annotations: {summary: a 8}}\n  promql_expr_test:\n  \
                     - {expr: 'job:m:sum', eval_time: 3m, exp_samples: [{labels: 'job:m:sum{job=\"a\"}', value: 4}]}\n  \
                     - {expr: 'm{i=\"2\"}', eval_time: 4m, exp_samples: []}\n  - {expr: '1 + 1', eval_time: 0, exp_samples: [{labels: '{}', value: 2}]}\n";
        let outcomes = run(&format!("{INPUT}{cases}")).await;
        assert!(outcomes[0].failures.is_empty(), "{:#?}", outcomes[0].failures);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_otherwise_is_shown_beside_what_was_expected() {
        let cases = "  alert_rule_test:\n  - {eval_time: 7m, alertname: High}\n  promql_expr_test:\n  \
                     - {expr: 'job:m:sum', eval_time: 3m, exp_samples: [{labels: 'job:m:sum{job=\"a\"}', value: 5}]}\n";
        let outcomes = run(&format!("{INPUT}{cases}")).await;
        let wanted = [
            "alertname: High, time: 7m,\n    exp: []\n    got:\n      Labels:{alertname=\"High\", job=\"a\", severity=\"page\"} Annotations:{summary=\"a 8\"}",
            "expr: \"job:m:sum\", time: 3m,\n    exp:\n      job:m:sum{job=\"a\"} 5\n    got:\n      job:m:sum{job=\"a\"} 4",
        ];
        assert_eq!(outcomes[0].failures, wanted);
    }

    #[test]
    fn faults_of_a_test_file_have_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.yml");
        std::fs::write(&path, "tests:\n- input_series:\n  - {series: 'm{', values: '1'}\n  alert_rule_test:\n  - {eval_time: 1x}\n  intervall: 1m\n").unwrap();
        let discover: Discover = Arc::new(|_| Vec::new());
        let text = read(&path, &discover).unwrap_err()[0].to_string();
        for wanted in [
            "t.yml:3:14: test 1: ",
            "t.yml:5:17: test 1: not a valid duration",
            "misses required attribute alertname",
            "t.yml:6:3: test 1: field intervall not found",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
    }
}
