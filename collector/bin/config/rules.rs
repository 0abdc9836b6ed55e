//! The sections `rules` and `alerting`: which rule files are in force, for whom, and what alerts carry.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use collector::{file_tail::discover, prometheus};
use query::rules::{
    notify::{
        Alertmanager, Credentials, Secret,
        plan::{self, Plan},
    },
    ruler::{self, Discover, RuleSource},
};
use serde::Deserialize;
use storage::model::{Labels, TenantId};

use super::{check::Problem, units::Span, yaml::Document};

/// One entry of `rules`: a pattern, or patterns with the tenant they run under.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Entry {
    Files(String),
    Of(Of),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Of {
    files: Vec<String>,
    tenant: String,
}

/// The section `alerting`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Alerting {
    /// Of groups that name no interval; 1m by default.
    evaluation_interval: Option<Span>,
    /// Added to alerts that are sent, known to templates as `$externalLabels`.
    external_labels: BTreeMap<String, String>,
    /// Where people reach this server, for links; by default its own address.
    external_url: Option<String>,
    /// Between two words on an alert that goes on firing; 1m by default.
    resend_delay: Option<Span>,
    /// Alerts go to all of them.
    alertmanagers: Vec<Target>,
    /// Routes, receivers and inhibition in the form of Alertmanager's configuration, for a site without one.
    config_file: Option<PathBuf>,
}

/// An Alertmanager: its address, or more than that.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Target {
    Url(String),
    Of(TargetOf),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetOf {
    url: String,
    timeout: Option<Span>,
    username: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    bearer_token: Option<String>,
    bearer_token_file: Option<PathBuf>,
}

/// The sections, checked.
#[derive(Default)]
pub struct Checked {
    pub sources: Vec<RuleSource>,
    pub interval: Duration,
    pub external_labels: Labels,
    pub external_url: Option<String>,
    pub resend_delay: Duration,
    pub alertmanagers: Vec<Alertmanager>,
    /// Of Prometheus files.
    pub alerting: Vec<prometheus::alertmanagers::Alerting>,
    pub plan: Option<Plan>,
}

impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checked").field("sources", &self.sources).finish_non_exhaustive()
    }
}

/// What a Prometheus file says of rules and alerts.
pub struct OfPrometheus {
    pub source: RuleSource,
    pub external_labels: BTreeMap<String, String>,
    pub alerting: prometheus::alertmanagers::Alerting,
}

impl OfPrometheus {
    /// Reads the rule files of a checked file, too: every fault of them as `file:line:column: rule: reason`.
    pub fn read(
        file: &prometheus::config::File,
        folder: &Path,
        alerting: prometheus::alertmanagers::Alerting,
    ) -> Result<Self, Vec<String>> {
        let span = |s: Option<prometheus::config::Span>| s.map(|s| s.0).filter(|d| !d.is_zero());
        let source = RuleSource {
            tenant: TenantId::default(),
            files: file.rule_files.iter().map(|f| folder.join(f).to_string_lossy().into_owned()).collect(),
            interval: span(file.global.evaluation_interval),
            query_offset: span(file.global.rule_query_offset).unwrap_or_default(),
            may_be_missing: true,
        };
        if let Err(errors) = ruler::load(std::slice::from_ref(&source), &discover()) {
            return Err(errors.iter().flat_map(|e| lines(&e.to_string())).collect());
        }
        let labels = file.global.external_labels.iter();
        let external_labels =
            labels.map(|(n, v)| (n.clone(), expand(&v.0, |name| std::env::var(name).ok()))).collect();
        Ok(OfPrometheus { source, external_labels, alerting })
    }
}

/// A text with `$name` and `${name}` replaced; what is not set is nothing, `$$` a dollar. Source: Prometheus 3, Go's
/// `os.Expand`.
fn expand(text: &str, of: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let name = match rest.strip_prefix('{') {
            Some(braced) => {
                let end = braced.find('}');
                rest = end.map_or(braced, |end| &braced[end + 1..]);
                end.map_or("", |end| &braced[..end])
            }
            None if rest.starts_with('$') => {
                rest = &rest[1..];
                "$"
            }
            None => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                let name = &rest[..end];
                rest = &rest[end..];
                if name.is_empty() {
                    out.push('$');
                }
                name
            }
        };
        match name {
            "" => {}
            "$" => out.push('$'),
            name => out.push_str(&of(name).unwrap_or_default()),
        }
    }
    out.push_str(rest);
    out
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

impl Checked {
    /// Adds what a Prometheus file says, for a tenant. Our own labels stay.
    pub fn adopt(&mut self, tenant: TenantId, of: OfPrometheus) {
        if !of.source.files.is_empty() {
            self.sources.push(RuleSource { tenant, ..of.source });
        }
        for (name, value) in of.external_labels {
            if self.external_labels.get(&name).is_none() {
                self.external_labels.set(&name, value);
            }
        }
        self.alerting.push(of.alerting);
    }
}

/// The files of a pattern.
pub fn discover() -> Discover {
    Arc::new(|pattern| discover::paths(pattern).into_iter().collect())
}

/// Checks the sections and the rule files they name. Paths are relative to `base`, the folder of the configuration file.
pub fn check(
    document: &Document,
    rules: &[Entry],
    alerting: &Alerting,
    base: &Path,
    problems: &mut Vec<Problem>,
) -> Checked {
    let mut problem = |path: String, message: String| {
        problems.push(Problem { place: document.place(&path), path, message });
    };
    let absolute = |pattern: &String| base.join(pattern).to_string_lossy().into_owned();
    let mut out = Checked { interval: Duration::from_secs(60), ..Checked::default() };
    for (i, entry) in rules.iter().enumerate() {
        let (tenant, files) = match entry {
            Entry::Files(pattern) => (Ok(TenantId::default()), vec![absolute(pattern)]),
            Entry::Of(of) => (TenantId::parse(&of.tenant), of.files.iter().map(absolute).collect()),
        };
        match tenant {
            Ok(tenant) => {
                let source = RuleSource { tenant, files, ..RuleSource::default() };
                if let Err(errors) = ruler::load(std::slice::from_ref(&source), &discover()) {
                    for line in errors.iter().flat_map(|e| lines(&e.to_string())) {
                        problem(format!("rules[{i}]"), line);
                    }
                }
                out.sources.push(source);
            }
            Err(e) => problem(format!("rules[{i}].tenant"), e.to_string()),
        }
    }
    match alerting.evaluation_interval {
        Some(Span(interval)) if interval < Duration::from_millis(100) => {
            problem("alerting.evaluation_interval".into(), "expected at least 100ms".into());
        }
        Some(Span(interval)) => out.interval = interval,
        None => {}
    }
    for name in alerting.external_labels.keys().filter(|n| n.is_empty() || *n == "__name__") {
        problem("alerting.external_labels".into(), format!("invalid label name {name:?}"));
    }
    out.external_labels = Labels::from_pairs(alerting.external_labels.clone());
    if let Some(url) = &alerting.external_url {
        match url::Url::parse(url) {
            Ok(parsed) if matches!(parsed.scheme(), "http" | "https") => {
                out.external_url = Some(url.trim_end_matches('/').to_owned());
            }
            _ => problem("alerting.external_url".into(), format!("expected an http or https URL, got {url:?}")),
        }
    }
    let resend = alerting.resend_delay.map_or(Duration::from_secs(60), |s| s.0);
    if resend < Duration::from_millis(100) {
        problem("alerting.resend_delay".into(), "expected at least 100ms".into());
    }
    out.resend_delay = resend;
    if let Some(file) = &alerting.config_file {
        match plan::read(&base.join(file), &discover()) {
            Ok(plan) => out.plan = Some(plan),
            Err(e) => e.to_string().lines().for_each(|line| problem("alerting.config_file".into(), line.to_owned())),
        }
    }
    for (i, target) in alerting.alertmanagers.iter().enumerate() {
        match alertmanager(target, base) {
            Ok(target) => out.alertmanagers.push(target),
            Err(why) => problem(format!("alerting.alertmanagers[{i}]"), why),
        }
    }
    out
}

fn alertmanager(target: &Target, base: &Path) -> Result<Alertmanager, String> {
    let plain = |url: &String| TargetOf {
        url: url.clone(),
        timeout: None,
        username: None,
        password: None,
        password_file: None,
        bearer_token: None,
        bearer_token_file: None,
    };
    let made;
    let of = match target {
        Target::Url(url) => {
            made = plain(url);
            &made
        }
        Target::Of(of) => of,
    };
    let url = match url::Url::parse(&of.url) {
        Ok(parsed) if !parsed.username().is_empty() || parsed.password().is_some() => {
            return Err("credentials belong into `username` and `password`, not into the URL".into());
        }
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") => parsed,
        _ => return Err(format!("expected an http or https URL, got {:?}", of.url)),
    };
    let secret = |text: &Option<String>, file: &Option<PathBuf>| match (text, file) {
        (Some(_), Some(_)) => Err("give a secret or the file it is in, not both".to_owned()),
        (Some(text), None) => Ok(Some(Secret::Text(text.clone()))),
        (None, file) => Ok(file.as_ref().map(|f| Secret::File(base.join(f)))),
    };
    let (password, token) =
        (secret(&of.password, &of.password_file)?, secret(&of.bearer_token, &of.bearer_token_file)?);
    let credentials = match (&of.username, password, token) {
        (None, None, None) => Credentials::None,
        (Some(username), Some(password), None) => Credentials::Basic { username: username.clone(), password },
        (None, None, Some(token)) => Credentials::Bearer(token),
        _ => return Err("expected username and password, or a bearer token".into()),
    };
    let timeout = of.timeout.map_or(Duration::from_secs(10), |s| s.0);
    Ok(Alertmanager { url, timeout, credentials, via: None, relabel: None })
}

/// The folder that paths of a configuration are relative to.
pub fn base(file: &str) -> PathBuf {
    Path::new(file).parent().filter(|p| !p.as_os_str().is_empty()).map_or_else(|| ".".into(), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{ConfigError, check},
        expand,
    };

    #[test]
    fn external_labels_take_variables_of_the_environment() {
        let of = |name: &str| (name == "A_1").then(|| "x".to_owned());
        for (text, want) in [
            ("plain", "plain"),
            ("$A_1-${A_1}y$A_1.", "x-xyx."),
            ("a$$A_1", "a$A_1"),
            ("${NOT}$NOT!", "!"),
            ("5$ $", "5$ $"),
            ("${}a${A_1", "aA_1"),
            ("$é", "$é"),
        ] {
            assert_eq!(expand(text, of), want, "{text}");
        }
    }

    #[test]
    fn rule_files_are_checked_with_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("good.yml", "groups:\n- name: g\n  rules:\n  - {record: a, expr: up}\n");
        let file = dir.path().join("f.yaml").display().to_string();
        check("rules: ['*.yml', {files: [good.yml], tenant: acme}]\nalerting: {external_labels: {site: a}}\n", &file)
            .unwrap();
        write("bad.yml", "groups:\n- name: g\n  rules:\n  - {record: a, expr: 'sum('}\n");
        let ConfigError(lines) = check(
            "rules: ['*.yml', {files: [absent.yml], tenant: a/b}, absent.yml]\nalerting: {external_url: 'x', evaluation_intervall: 1m}\n",
            &file,
        )
        .unwrap_err();
        let all = lines.join("\n");
        for wanted in [
            ":1:9: rules[0]: ",
            "bad.yml:4:23: group \"g\", rule 1, \"a\": could not parse expression",
            "rules[1].tenant",
            "absent.yml:1:1: cannot read",
            "alerting.external_url: expected an http or https URL",
            "did you mean `evaluation_interval`?",
        ] {
            assert!(all.contains(wanted), "{wanted}: {all}");
        }
    }
}
