//! Rule files in Prometheus' format: text to checked groups, or everything that is wrong with it.

use std::{
    collections::{BTreeSet, HashSet},
    path::Path,
    sync::Arc,
};

use storage::model::TenantId;

use super::{
    template::Template,
    yaml::{self, Entry, FILE_BYTES_MAX, Node, Place, Problem, Report},
};
use crate::promql::{self, ast::ExprKind};

/// Rules of one file.
const RULES_MAX: usize = 100_000;

/// What a rule's `expr` is written in. LogQL and TraceQL get a variant each when their metrics queries can be rules.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    PromQl {
        text: Arc<str>,
        /// Names of the metrics it reads; `None`: not all selectors give one.
        reads: Option<BTreeSet<String>>,
    },
}

impl Expression {
    /// Errors say where in the expression.
    pub fn promql(text: &str) -> Result<Self, String> {
        let expr = promql::parse(text).map_err(|e| e.to_string())?;
        let mut reads = Some(BTreeSet::new());
        expr.walk(&mut |e| {
            if let ExprKind::Selector(s) | ExprKind::Range { selector: s, .. } = &e.kind {
                let named = s.matchers.iter().find(|m| m.name() == "__name__");
                match named.filter(|m| m.op() == storage::model::MatchOp::Eq) {
                    Some(m) => {
                        if let Some(reads) = &mut reads {
                            reads.insert(m.value().to_owned());
                        }
                    }
                    None => reads = None,
                }
            }
            // Reads series that no selector of the text names.
            if matches!(&e.kind, ExprKind::Call { function, .. } if function.name == "info") {
                reads = None;
            }
        });
        Ok(Expression::PromQl { text: text.into(), reads })
    }

    pub fn text(&self) -> &str {
        match self {
            Expression::PromQl { text, .. } => text,
        }
    }

    /// Tells the engine what it will be asked.
    pub fn note(&self, engine: &promql::Engine, tenant: &TenantId, at_ms: i64) {
        match self {
            Expression::PromQl { text, .. } => engine.note(tenant, text, at_ms),
        }
    }

    /// Whether it may read a metric of one of these names.
    pub fn may_read(&self, names: &HashSet<String>) -> bool {
        match self {
            Expression::PromQl { reads: Some(reads), .. } => reads.iter().any(|n| names.contains(n)),
            Expression::PromQl { reads: None, .. } => true,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct RuleGroup {
    pub name: String,
    /// `None`: the evaluation interval of the process.
    pub interval_ms: Option<i64>,
    /// `None`: that of the process, if it has one.
    pub query_offset_ms: Option<i64>,
    /// Series or alerts that one rule may give; 0: any number.
    pub limit: usize,
    pub rules: Vec<Rule>,
}

impl RuleGroup {
    /// How far before its time a rule is evaluated.
    pub fn offset_ms(&self) -> i64 {
        self.query_offset_ms.unwrap_or(0)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub kind: Kind,
    pub expression: Expression,
    /// Those of the group with those of the rule over them, sorted by name.
    pub labels: Vec<(String, Template)>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Record { metric: String },
    Alert { name: String, hold_ms: i64, keep_firing_ms: i64, annotations: Vec<(String, Template)> },
}

impl Rule {
    pub fn name(&self) -> &str {
        match &self.kind {
            Kind::Record { metric } => metric,
            Kind::Alert { name, .. } => name,
        }
    }

    /// What tells this rule from others of its group: kind, name and labels.
    pub fn identity(&self) -> String {
        let kind = if matches!(self.kind, Kind::Record { .. }) { "record" } else { "alert" };
        let labels: Vec<(&str, &str)> = self.labels.iter().map(|(n, v)| (n.as_str(), v.text())).collect();
        format!("{kind} {} {labels:?}", self.name())
    }
}

/// A file that could be read, and what promtool would warn of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleFile {
    pub groups: Vec<RuleGroup>,
    pub warnings: Vec<Problem>,
}

/// Everything that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    pub file: String,
    pub problems: Vec<Problem>,
}

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, p) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{p}", self.file)?;
        }
        Ok(())
    }
}

impl std::error::Error for FileError {}

/// Reads and checks a file.
pub fn read(path: &Path) -> Result<RuleFile, FileError> {
    let file = path.display().to_string();
    let top = Place { line: 1, column: 1 };
    let fail = |message: String| FileError {
        file: file.clone(),
        problems: vec![Problem { place: top, about: String::new(), message }],
    };
    let size = std::fs::metadata(path).map_err(|e| fail(format!("cannot read: {e}")))?.len();
    if size > FILE_BYTES_MAX as u64 {
        return Err(fail(format!("the file is larger than {FILE_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| fail(format!("cannot read: {e}")))?;
    parse(&text, &file)
}

/// Checks a text. `file` is its name in errors.
pub fn parse(text: &str, file: &str) -> Result<RuleFile, FileError> {
    let fail = |mut problems: Vec<Problem>| {
        problems.sort();
        problems.dedup();
        FileError { file: file.to_owned(), problems }
    };
    let root = yaml::parse(text).map_err(|p| fail(vec![p]))?;
    let mut report = Report::default();
    let out = read_file(&root, &mut report);
    if report.problems.is_empty() { Ok(out) } else { Err(fail(report.problems)) }
}

fn read_file(root: &Node, report: &mut Report) -> RuleFile {
    let mut out = RuleFile::default();
    let mut names: HashSet<String> = HashSet::new();
    let mut rules = 0;
    // `namespace` is what Loki and Mimir write into the files of their rulers.
    for entry in report.fields(root, "the rule file", &["groups", "namespace"]) {
        if entry.key != "groups" {
            continue;
        }
        for node in report.list(&entry.value, "groups") {
            let Some(group) = read_group(node, report) else { continue };
            rules += group.rules.len();
            if rules > RULES_MAX {
                report.note(node.place, format!("the file holds more than {RULES_MAX} rules"));
                return out;
            }
            if !names.insert(group.name.clone()) {
                report.note(node.place, format!("groupname: {:?} is repeated in the same file", group.name));
            }
            out.groups.push(group);
        }
    }
    report.about.clear();
    out.warnings = repeated(&out.groups, root.place);
    out
}

/// Rules that give the same series: promtool's lint `duplicate-rules`.
fn repeated(groups: &[RuleGroup], place: Place) -> Vec<Problem> {
    let mut seen: HashSet<String> = HashSet::new();
    let mut out = Vec::new();
    for group in groups {
        for (i, rule) in group.rules.iter().enumerate() {
            if !seen.insert(rule.identity()) {
                let about = format!("group {:?}, rule {}, {:?}", group.name, i + 1, rule.name());
                let message = "another rule has the same name and labels; this might cause inconsistency".to_owned();
                out.push(Problem { place, about, message });
            }
        }
    }
    out
}

const GROUP_FIELDS: [&str; 6] = ["name", "interval", "query_offset", "limit", "labels", "rules"];

fn read_group(node: &Node, report: &mut Report) -> Option<RuleGroup> {
    report.about.clear();
    let fields = report.fields(node, "the rule group", &GROUP_FIELDS);
    let find = |name: &str| fields.iter().find(|e| e.key == name).copied();
    let name = find("name").and_then(|e| report.text(&e.value, "name")).unwrap_or_default();
    if name.is_empty() {
        report.note(node.place, "Groupname must not be empty");
    }
    report.about = format!("group {name:?}");
    let mut group = RuleGroup { name, interval_ms: None, query_offset_ms: None, limit: 0, rules: Vec::new() };
    if let Some(e) = find("interval") {
        // Zero stands for the default, as in Prometheus.
        group.interval_ms = report.duration(&e.value, "interval").filter(|ms| *ms > 0);
    }
    if let Some(e) = find("query_offset") {
        // Zero says that there is none, whatever the process has.
        group.query_offset_ms = report.duration(&e.value, "query_offset");
    }
    if let Some(e) = find("limit") {
        group.limit = report.count(&e.value, "limit").unwrap_or(0);
    }
    let labels = find("labels").map(|e| read_labels(&e.value, report)).unwrap_or_default();
    if let Some(e) = find("rules") {
        for (i, node) in report.list(&e.value, "rules").iter().enumerate() {
            report.about = format!("group {:?}, rule {}", group.name, i + 1);
            group.rules.extend(read_rule(node, &group.name, i + 1, &labels, report));
        }
    }
    report.about.clear();
    Some(group)
}

fn read_labels(node: &Node, report: &mut Report) -> Vec<(String, String, Place)> {
    let pairs = report.pairs(node, "labels");
    for (name, _, place) in &pairs {
        if name.is_empty() || name == "__name__" {
            report.note(*place, format!("invalid label name: {name}"));
        }
    }
    pairs
}

const RULE_FIELDS: [&str; 7] = ["record", "alert", "expr", "for", "keep_firing_for", "labels", "annotations"];

fn read_rule(
    node: &Node,
    group: &str,
    number: usize,
    group_labels: &[(String, String, Place)],
    report: &mut Report,
) -> Option<Rule> {
    let fields = report.fields(node, "the rule", &RULE_FIELDS);
    let find = |name: &str| fields.iter().find(|e| e.key == name).copied();
    let text =
        |e: Option<&Entry>, report: &mut Report| e.and_then(|e| report.text(&e.value, &e.key)).unwrap_or_default();
    let (record, alert) = (text(find("record"), report), text(find("alert"), report));
    let name = if record.is_empty() { &alert } else { &record };
    if !name.is_empty() {
        report.about = format!("group {group:?}, rule {number}, {name:?}");
    }
    match (record.is_empty(), alert.is_empty()) {
        (false, false) => report.note(node.place, "only one of 'record' and 'alert' must be set"),
        (true, true) => report.note(node.place, "one of 'record' or 'alert' must be set"),
        _ => {}
    }
    let expression = match find("expr") {
        Some(e) => {
            let text = report.text(&e.value, "expr").unwrap_or_default();
            if text.trim().is_empty() {
                report.note(e.value.place, "field 'expr' must be set in rule");
                None
            } else {
                let read = Expression::promql(&text);
                read.map_err(|why| report.note(e.value.place, format!("could not parse expression: {why}"))).ok()
            }
        }
        None => {
            report.note(node.place, "field 'expr' must be set in rule");
            None
        }
    };
    let duration =
        |name: &str, report: &mut Report| find(name).and_then(|e| report.duration(&e.value, name)).unwrap_or(0);
    let (hold_ms, keep_firing_ms) = (duration("for", report), duration("keep_firing_for", report));
    let own = find("labels").map(|e| read_labels(&e.value, report)).unwrap_or_default();
    let annotations = find("annotations").map(|e| report.pairs(&e.value, "annotations")).unwrap_or_default();
    for (name, _, place) in &annotations {
        if name.is_empty() {
            report.note(*place, format!("invalid annotation name: {name}"));
        }
    }
    let is_record = !record.is_empty();
    if is_record {
        if record.contains(['{', '}']) {
            let place = find("record").map_or(node.place, |e| e.value.place);
            report.note(place, format!("braces present in the recording rule name; should it be in expr?: {record}"));
        }
        for field in ["for", "keep_firing_for", "annotations"] {
            if let Some(e) = find(field)
                && !matches!(e.value.value, yaml::Value::Null)
            {
                report.note(e.place, format!("invalid field '{field}' in recording rule"));
            }
        }
    }
    let mut labels: Vec<(String, String, Place)> = group_labels.to_vec();
    labels.retain(|(n, _, _)| !own.iter().any(|(o, _, _)| o == n));
    labels.extend(own);
    labels.sort();
    // Labels of a recording rule are taken as they are.
    let templates = |what: &str, pairs: Vec<(String, String, Place)>, report: &mut Report| {
        let read = |(name, value, place): (String, String, Place)| {
            if is_record {
                return Some((name, Template::plain(&value)));
            }
            match Template::parse(&value) {
                Ok(t) => Some((name, t)),
                Err(e) => {
                    report.note(place, format!("{what} {name:?}: template: {e}"));
                    None
                }
            }
        };
        pairs.into_iter().filter_map(read).collect::<Vec<_>>()
    };
    let labels = templates("label", labels, report);
    let mut annotations = templates("annotation", annotations, report);
    annotations.sort_by(|a, b| a.0.cmp(&b.0));
    let kind = if is_record {
        Kind::Record { metric: record }
    } else {
        Kind::Alert { name: alert, hold_ms, keep_firing_ms, annotations }
    };
    Some(Rule { kind, expression: expression?, labels })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "groups:\n- name: api\n  interval: 30s\n  query_offset: 1m\n  limit: 10\n  labels: {team: a, severity: low}\n  rules:\n  \
        - record: job:up:sum\n    expr: sum by (job) (up)\n    labels: {severity: 1.50}\n  \
        - alert: Down\n    expr: |\n      up == 0\n    for: 5m\n    keep_firing_for: 1m\n    labels: {severity: page}\n    \
        annotations: {summary: '{{ $labels.job }} is down'}\n";

    #[test]
    fn a_good_file_is_read_whole() {
        let file = parse(GOOD, "f.yml").unwrap();
        let group = &file.groups[0];
        assert_eq!((group.interval_ms, group.query_offset_ms, group.limit), (Some(30_000), Some(60_000), 10));
        let labels: Vec<(&str, &str)> = group.rules[0].labels.iter().map(|(n, v)| (n.as_str(), v.text())).collect();
        assert_eq!(labels, [("severity", "1.50"), ("team", "a")]);
        let Kind::Alert { name, hold_ms, keep_firing_ms, annotations } = &group.rules[1].kind else { panic!() };
        assert_eq!((name.as_str(), *hold_ms, *keep_firing_ms, annotations.len()), ("Down", 300_000, 60_000, 1));
        assert_eq!(group.rules[1].labels.iter().find(|l| l.0 == "severity").unwrap().1.text(), "page");
        assert!(parse("", "f.yml").unwrap().groups.is_empty());
    }

    #[test]
    fn each_fault_is_told_with_place_rule_and_reason() {
        for (rules, wanted) in [
            (
                "- {alert: A, record: r, expr: up}",
                "3:5: group \"g\", rule 1, \"r\": only one of 'record' and 'alert' must be set",
            ),
            ("- {expr: up}", "one of 'record' or 'alert' must be set"),
            ("- {alert: A}", "field 'expr' must be set in rule"),
            (
                "- {alert: A, expr: 'sum('}",
                "3:22: group \"g\", rule 1, \"A\": could not parse expression: 1:5: parse error",
            ),
            ("- {record: r, expr: up, for: 1m}", "invalid field 'for' in recording rule"),
            ("- {record: r, expr: up, annotations: {a: b}}", "invalid field 'annotations' in recording rule"),
            ("- {record: r, expr: up, keep_firing_for: 1m}", "invalid field 'keep_firing_for' in recording rule"),
            ("- {record: 'r{a=\"b\"}', expr: up}", "braces present in the recording rule name"),
            ("- {alert: A, expr: up, labels: {__name__: x}}", "invalid label name: __name__"),
            ("- {alert: A, expr: up, for: 5x}", "not a valid duration string: \"5x\""),
            ("- {alert: A, expr: up, fro: 5m}", "3:26: group \"g\", rule 1: field fro not found"),
            ("- {alert: A, expr: up, annotations: {s: '{{ $x }}'}}", "annotation \"s\": template: "),
            ("- {alert: A, expr: up, labels: {s: '{{ nope 1 }}'}}", "function \"nope\" not defined"),
            ("- {alert: A, expr: up, expr: up}", "3:"),
        ] {
            let text = format!("groups:\n- {{name: g, rules: [\n  {}]}}\n", rules.trim_start_matches("- "));
            let text = text.replace("[\n  {", "[\n    {");
            let e = parse(&text, "f.yml").unwrap_err().to_string();
            assert!(e.starts_with("f.yml:3:") && e.contains(wanted.trim_start_matches("3:5: ")), "{rules}: {e}");
        }
        let e = parse("groups:\n- {name: g}\n- {name: g}\n- {rules: []}\n", "f.yml").unwrap_err().to_string();
        assert!(e.contains("f.yml:3:3: groupname: \"g\" is repeated in the same file"), "{e}");
        assert!(e.contains("f.yml:4:3: Groupname must not be empty"), "{e}");
    }

    #[test]
    fn rules_that_give_the_same_series_are_warned_of() {
        let text = "groups:\n- name: g\n  rules:\n  - {record: a, expr: up}\n  - {record: a, expr: up}\n";
        assert_eq!(parse(text, "f.yml").unwrap().warnings.len(), 1);
    }

    #[test]
    fn an_expression_knows_what_it_reads() {
        let names: HashSet<String> = ["a".to_owned()].into();
        assert!(Expression::promql("sum(a) / b").unwrap().may_read(&names));
        assert!(!Expression::promql("max_over_time(b[5m:])").unwrap().may_read(&names));
        assert!(Expression::promql("{job=\"x\"}").unwrap().may_read(&names));
    }
}
