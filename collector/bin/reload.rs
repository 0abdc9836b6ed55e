//! Reads the configuration again while the process runs: on SIGHUP and `POST /-/reload`.
//!
//! Rule files, where alerts go, what is scraped: these change. All is checked before anything is put in force; with one
//! fault everything stays as it was. What changed in the file and cannot change while the process runs is named.

use std::{collections::BTreeSet, sync::Arc};

use collector::prometheus::Pools;
use query::{
    http::{prometheus::InForce, rules::Reload},
    rules::{notify::Desk, ruler::Ruler},
};
use serde_json::Value;
use tokio::sync::{Mutex, watch};

use crate::{
    alert_targets::{self, Told},
    app,
    cli::ServeArgs,
    config::{Config, ConfigError, Written},
};

/// Rules and who is told of alerts, at work.
pub struct Rules {
    pub ruler: Ruler,
    pub desk: Option<Desk>,
    pub targets: watch::Sender<Arc<Told>>,
    /// Our own address, for links unless the configuration has another.
    pub url: String,
    pub state_dir: std::path::PathBuf,
}

/// What can be reloaded of a process.
pub struct Reloadable {
    args: ServeArgs,
    /// What the process began with.
    written: Written,
    /// What of that and of the latest reload is in force, for clients.
    shown: InForce,
    scrapers: Vec<(String, Arc<Pools>)>,
    rules: Option<Rules>,
    /// One reload at a time.
    turn: Mutex<()>,
}

/// What may change of a source that scrapes.
const SCRAPED: [&str; 3] = ["config_file", "global", "scrape_configs"];

/// The part of a configuration that takes effect at a start only.
fn fixed(document: &Value) -> Value {
    let mut out = document.clone();
    let Value::Object(sections) = &mut out else { return out };
    sections.remove("rules");
    if let Some(Value::Object(alerting)) = sections.remove("alerting")
        && alerting.contains_key("config_file")
    {
        // What is in it may change, not whether it is.
        sections.insert("alerting.config_file".into(), true.into());
    }
    if let Some(Value::Object(sources)) = sections.get_mut("sources") {
        for source in sources.values_mut().filter_map(Value::as_object_mut) {
            if source.get("type").and_then(Value::as_str) == Some("prometheus_scrape") {
                source.retain(|key, _| !SCRAPED.contains(&key.as_str()));
            }
        }
    }
    out
}

/// What a process that began with one configuration follows after a reload of another: what can change of the second,
/// all else of the first.
fn in_force(began: &Written, mut now: Written) -> Written {
    let mut sections = began.document.as_object().cloned().unwrap_or_default();
    let mut files = began.files.clone();
    sections.remove("rules");
    sections.extend(now.document.get("rules").map(|rules| ("rules".to_owned(), rules.clone())));
    // Whether receivers are told by ourselves does not change, only how.
    let file = |document: &Value| document["alerting"].get("config_file").cloned();
    let kept = file(&began.document).map(|before| file(&now.document).unwrap_or(before));
    let mut alerting = now.document["alerting"].as_object().cloned().unwrap_or_default();
    alerting.remove("config_file");
    alerting.extend(kept.map(|file| ("config_file".to_owned(), file)));
    sections.remove("alerting");
    if !alerting.is_empty() {
        sections.insert("alerting".into(), alerting.into());
    }
    if let Some(Value::Object(sources)) = sections.get_mut("sources") {
        for (name, source) in sources {
            let taken = &now.document["sources"][name];
            let scrapes = |source: &Value| source["type"] == "prometheus_scrape";
            let (true, true, Value::Object(source)) = (scrapes(source), scrapes(taken), source) else { continue };
            source.retain(|key, _| !SCRAPED.contains(&key.as_str()));
            source.extend(SCRAPED.iter().filter_map(|key| Some(((*key).to_owned(), taken.get(key)?.clone()))));
            files.remove(name);
            files.extend(now.files.remove_entry(name));
        }
    }
    // That of a flag stays where it is.
    for (name, file) in now.files {
        files.entry(name).and_modify(|before| *before = file);
    }
    Written { document: sections.into(), files }
}

/// Sections that differ.
fn changed(before: &Value, now: &Value) -> BTreeSet<String> {
    let keys = |v: &Value| v.as_object().map(|m| m.keys().cloned().collect::<BTreeSet<_>>()).unwrap_or_default();
    let mut all = keys(before);
    all.append(&mut keys(now));
    all.retain(|key| before.get(key) != now.get(key));
    all
}

impl Reloadable {
    pub fn new(
        args: ServeArgs,
        written: Written,
        shown: InForce,
        scrapers: Vec<(String, Arc<Pools>)>,
        rules: Option<Rules>,
    ) -> Self {
        Reloadable { args, written, shown, scrapers, rules, turn: Mutex::default() }
    }

    async fn attempt(&self) -> Result<String, String> {
        let args = self.args.clone();
        let scrapers = self.scrapers.clone();
        let has_rules = self.rules.is_some();
        let read = move || -> Result<_, String> {
            let mut config = Config::load(&args).map_err(|ConfigError(lines)| lines.join("\n"))?;
            let mut jobs = Vec::new();
            for (name, pools) in scrapers {
                // A source that is gone goes on until the next start: sources are part of the wiring.
                let Some(now) = config.scraped(&name) else { continue };
                jobs.push((
                    pools.clone(),
                    pools.prepare(now).map_err(|e| format!("sources.{name}: {e}"))?,
                    now.len(),
                ));
            }
            let told = if has_rules { Some(alert_targets::prepare(&mut config.rules)?) } else { None };
            Ok((config, jobs, told))
        };
        let read = tokio::task::spawn_blocking(read).await;
        let (config, jobs, told) = read.map_err(|e| format!("reading the configuration panicked: {e}"))??;
        let mut out = Vec::new();
        if let (Some(rules), Some(told)) = (&self.rules, told) {
            let settings = app::ruler_settings(&config.rules, &rules.url, &rules.state_dir);
            let external_url = settings.external_url.clone();
            let groups = rules
                .ruler
                .replace(settings)
                .await
                .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
            if let (Some(desk), Some(plan)) = (&rules.desk, config.rules.plan) {
                desk.replace(plan, external_url);
            }
            rules.targets.send_replace(Arc::new(told));
            out.push(format!("{groups} rule groups in force"));
        }
        let scraped: usize = jobs.iter().map(|(_, _, n)| n).sum();
        for (pools, prepared, _) in jobs {
            pools.set(prepared);
        }
        if !self.scrapers.is_empty() {
            out.push(format!("{scraped} scrape jobs in force"));
        }
        out.extend(config.warnings.iter().map(|w| format!("warning: {w}")));
        for section in changed(&fixed(&self.written.document), &fixed(&config.written.document)) {
            out.push(format!("warning: `{section}` has changed: it takes effect at the next start"));
        }
        self.shown.set(in_force(&self.written, config.written).shown());
        if out.is_empty() {
            out.push("nothing here can change while the process runs".into());
        }
        Ok(out.join("\n"))
    }
}

#[async_trait::async_trait]
impl Reload for Reloadable {
    async fn reload(&self) -> Result<String, String> {
        let _one = self.turn.lock().await;
        let result = self.attempt().await;
        match &result {
            Ok(text) => {
                for line in text.lines() {
                    match line.strip_prefix("warning: ") {
                        Some(warning) => tracing::warn!(warning, "reloaded"),
                        None => tracing::info!(now = line, "reloaded"),
                    }
                }
            }
            Err(faults) => {
                self.shown.refused();
                for fault in faults.lines() {
                    tracing::error!(fault, "the configuration is faulty; what was in force before stays");
                }
                if let Some(rules) = &self.rules {
                    rules.ruler.refused_reload();
                }
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_takes_a_start_to_change_is_told_from_what_does_not() {
        let before = json!({"http": "a", "rules": ["x"], "alerting": {"alertmanagers": []},
            "sources": {"p": {"type": "prometheus_scrape", "config_file": "p.yml"}}});
        let mut now = before.clone();
        now["rules"] = json!([]);
        now["alerting"] = json!({"external_labels": {"a": "b"}});
        now["sources"]["p"]["config_file"] = json!("q.yml");
        assert!(changed(&fixed(&before), &fixed(&now)).is_empty());
        now["http"] = json!("b");
        now["alerting"]["config_file"] = json!("am.yml");
        now["sources"]["p"]["tenant"] = json!("t");
        let all: Vec<String> = changed(&fixed(&before), &fixed(&now)).into_iter().collect();
        assert_eq!(all, ["alerting.config_file", "http", "sources"]);
    }

    #[test]
    fn what_is_in_force_after_a_reload_is_of_both() {
        let file = |name: &str| std::collections::BTreeMap::from([("p".to_owned(), json!({"global": name}))]);
        let written = |document: Value, name: &str| Written { document, files: file(name) };
        let before = json!({"http": "a", "rules": ["x"], "alerting": {"config_file": "am.yml"},
            "sources": {"p": {"type": "prometheus_scrape", "config_file": "p.yml"}, "s": {"type": "syslog"}}});
        let now = json!({"http": "b", "rules": ["y"], "alerting": {"resend_delay": "1s"},
            "sources": {"p": {"type": "prometheus_scrape", "config_file": "q.yml", "tenant": "t"}, "s": {"type": "otlp"}}});
        let got = in_force(&written(before, "one"), written(now, "two"));
        assert_eq!(
            got.document,
            json!({"http": "a", "rules": ["y"], "alerting": {"config_file": "am.yml", "resend_delay": "1s"},
            "sources": {"p": {"type": "prometheus_scrape", "config_file": "q.yml"}, "s": {"type": "syslog"}}})
        );
        assert_eq!(got.files, file("two"));
        // A process without a file of its own, but with one of Prometheus.
        let got = in_force(&written(Value::Null, "one"), written(Value::Null, "two"));
        assert_eq!((got.document, got.files), (json!({}), file("two")));
    }
}
