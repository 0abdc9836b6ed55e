//! Reads Prometheus configurations for scraping sources: a file of Prometheus as it is, or its sections in our own file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use collector::prometheus::{
    self,
    config::{File, without_nulls},
    job::{self, Finding, Job},
};
use serde_json::{Map, Value};

use storage::model::TenantId;

use super::{
    SourceConfig,
    check::{self, Problem},
    lines,
    rules::{self, OfPrometheus},
    yaml::Document,
};
use crate::cli::ServeArgs;

/// The source that `--prometheus-config` makes.
pub const FLAG_SOURCE: &str = "prometheus";

/// Files that `scrape_config_files` may name.
const FILES_MAX: usize = 1000;

/// A file that can be used.
pub struct Read {
    pub jobs: Vec<Arc<Job>>,
    pub rules: OfPrometheus,
    /// As `file:line:column: path: message`.
    pub warnings: Vec<String>,
    /// The file as it is written.
    pub document: Value,
}

/// Whether a document is Prometheus' configuration rather than ours.
pub fn is_prometheus(document: &Document) -> bool {
    const KEYS: [&str; 4] = ["global", "scrape_configs", "scrape_config_files", "rule_files"];
    KEYS.iter().any(|key| document.value.get(key).is_some())
}

/// Reads a Prometheus file; its problems name it.
pub fn read_file(path: &Path) -> Result<Read, Vec<String>> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| vec![format!("cannot read {name}: {e}")])?;
    let document = super::parse(&text, &name).map_err(|e| e.0)?;
    read_document(&document, &name, path.parent().unwrap_or(Path::new("")))
}

/// `folder`: what relative paths start from.
pub fn read_document(document: &Document, name: &str, folder: &Path) -> Result<Read, Vec<String>> {
    let mut problems = Vec::new();
    let value = without_nulls(document.value.clone());
    let file: Option<File> = check::read(document, "", &value, &mut problems);
    let Some(mut file) = file.filter(|_| problems.is_empty()) else { return Err(lines(name, problems)) };
    let mut errors = Vec::new();
    let mut further = Vec::new();
    for (i, pattern) in file.scrape_config_files.iter().enumerate() {
        let path = format!("scrape_config_files[{i}]");
        match more(&file, &folder.join(pattern)) {
            Ok(read) => further.extend(read),
            Err(found) => {
                errors.extend(found.into_iter().map(|message| problem(document, "", &path, message, false)))
            }
        }
    }
    file.scrape_config_files.clear();
    let checked = job::check(&file, folder);
    errors.extend(checked.errors.into_iter().map(|f| of_finding(document, "", f)));
    if !errors.is_empty() {
        return Err(lines(name, errors));
    }
    let unsupported = checked.unsupported.into_iter().map(|f| of_finding(document, "", f)).collect();
    let rules = OfPrometheus::read(&file, folder, checked.alerting)?;
    let mut read =
        Read { jobs: checked.jobs, rules, warnings: lines(name, unsupported), document: document.value.clone() };
    for (i, pattern) in file.rule_files.iter().enumerate() {
        if !pattern.contains(['*', '?']) && !folder.join(pattern).exists() {
            let message = "there is no such file; its rules are taken when there is".to_owned();
            let found = problem(document, "", &format!("rule_files[{i}]"), message, false);
            read.warnings.extend(lines(name, vec![found]));
        }
    }
    let mut names: BTreeSet<String> = read.jobs.iter().map(|j| j.name.clone()).collect();
    for (jobs, warnings) in further {
        read.warnings.extend(warnings);
        for job in jobs {
            if !names.insert(job.name.clone()) {
                return Err(vec![format!("{name}: there is another scrape configuration named {:?}", job.name)]);
            }
            read.jobs.push(job);
        }
    }
    Ok(read)
}

/// Jobs of another file, and its warnings.
type Further = (Vec<Arc<Job>>, Vec<String>);

/// The files of a pattern, each with `scrape_configs` only, under the first file's defaults.
fn more(file: &File, pattern: &Path) -> Result<Vec<Further>, Vec<String>> {
    let found = collector::prometheus::files_of(&pattern.to_string_lossy());
    if found.len() > FILES_MAX {
        return Err(vec![format!("{} names more than {FILES_MAX} files", pattern.display())]);
    }
    let mut out = Vec::new();
    for path in found {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|e| vec![format!("cannot read {name}: {e}")])?;
        let document = super::parse(&text, &name).map_err(|e| e.0)?;
        let mut problems = Vec::new();
        let own: Option<File> = check::read(&document, "", &without_nulls(document.value.clone()), &mut problems);
        let Some(own) = own.filter(|_| problems.is_empty()) else { return Err(lines(&name, problems)) };
        let own = File { global: file.global.clone(), scrape_configs: own.scrape_configs, ..File::default() };
        let checked = job::check(&own, path.parent().unwrap_or(Path::new("")));
        let at =
            |found: Vec<Finding>| lines(&name, found.into_iter().map(|f| of_finding(&document, "", f)).collect());
        if !checked.errors.is_empty() {
            return Err(at(checked.errors));
        }
        out.push((checked.jobs, at(checked.unsupported)));
    }
    Ok(out)
}

fn problem(document: &Document, base: &str, path: &str, message: String, at_key: bool) -> Problem {
    let path = if base.is_empty() { path.to_owned() } else { format!("{base}.{path}") };
    let place = if at_key { document.key_place(&path) } else { document.place(&path) };
    Problem { place, path, message }
}

fn of_finding(document: &Document, base: &str, f: Finding) -> Problem {
    problem(document, base, &f.path, f.message, f.at_key)
}

/// Gives every scraping source its jobs, and makes the one of `--prometheus-config`. What the files say, by the sources'
/// names.
pub fn read_sources(
    document: &Document,
    args: &ServeArgs,
    sources: &mut BTreeMap<String, SourceConfig>,
    rules: &mut rules::Checked,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> BTreeMap<String, Value> {
    let mut files = BTreeMap::new();
    let place = document.place("");
    let flagged = |message: String| Problem { place, path: "--prometheus-config".to_owned(), message };
    if let Some(path) = &args.prometheus_config {
        if sources.contains_key(FLAG_SOURCE) {
            problems.push(flagged(format!("the configuration has a source named `{FLAG_SOURCE}` already")));
        } else {
            let config = prometheus::Config { config_file: Some(path.clone()), ..prometheus::Config::default() };
            sources.insert(FLAG_SOURCE.to_owned(), SourceConfig::PrometheusScrape(config));
        }
    }
    let folder: PathBuf = args.config.as_ref().and_then(|c| c.parent()).map(Path::to_owned).unwrap_or_default();
    for (name, source) in sources {
        let SourceConfig::PrometheusScrape(config) = source else { continue };
        let base = super::yaml::join("sources", name);
        let is_flag = args.prometheus_config.is_some() && name == FLAG_SOURCE;
        match (&config.config_file, &config.scrape_configs) {
            (Some(file), None) if config.global.is_none() => {
                let path = if is_flag { file.clone() } else { folder.join(file) };
                match read_file(&path) {
                    Ok(read) => {
                        config.jobs = read.jobs;
                        files.insert(name.clone(), read.document);
                        // A bad name is told by the source.
                        let tenant = config.tenant.as_deref().and_then(|t| TenantId::parse(t).ok());
                        rules.adopt(tenant.unwrap_or_default(), read.rules);
                        warnings.extend(read.warnings);
                    }
                    Err(found) if is_flag => problems.extend(found.into_iter().map(flagged)),
                    Err(found) => {
                        let at = |message| problem(document, &base, "config_file", message, false);
                        problems.extend(found.into_iter().map(at));
                    }
                }
            }
            (None, Some(_)) => inline(document, &base, config, &folder, problems, warnings, args),
            (None, None) => problems.push(problem(
                document,
                &base,
                "config_file",
                "is missing; give a Prometheus configuration file, or `scrape_configs` here".to_owned(),
                false,
            )),
            _ => problems.push(problem(
                document,
                &base,
                "config_file",
                "has its own `global` and `scrape_configs`; take those here out".to_owned(),
                false,
            )),
        }
    }
    files
}

/// Sections of Prometheus in our own file.
fn inline(
    document: &Document,
    base: &str,
    config: &mut prometheus::Config,
    folder: &Path,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
    args: &ServeArgs,
) {
    let mut file = Map::new();
    let sections = [("global", &config.global), ("scrape_configs", &config.scrape_configs)];
    for (key, section) in sections {
        file.extend(section.clone().map(|value| (key.to_owned(), value)));
    }
    let before = problems.len();
    let file: Option<File> = check::read(document, base, &without_nulls(Value::Object(file)), problems);
    let Some(file) = file.filter(|_| problems.len() == before) else { return };
    let checked = job::check(&file, folder);
    problems.extend(checked.errors.into_iter().map(|f| of_finding(document, base, f)));
    let name = args.config.as_ref().map(|c| c.display().to_string()).unwrap_or_default();
    warnings.extend(lines(&name, checked.unsupported.into_iter().map(|f| of_finding(document, base, f)).collect()));
    config.jobs = checked.jobs;
}

#[cfg(test)]
mod tests {
    use super::super::{ConfigError, check};

    #[test]
    fn a_prometheus_file_is_checked_as_it_is_and_what_is_left_out_is_named() {
        let text = "global:\n  scrape_interval: 15s\n  external_labels: {dc: eu}\nalerting:\n  alertmanagers: [{consul_sd_configs: []}]\n\
                    scrape_configs:\n  - job_name: node\n    static_configs:\n      - targets: ['localhost:9100', \"b:1\"]\n    consul_sd_configs:\n      - server: x\n    \
                    tls_config:\n      ca_ref: y\nremote_write:\n  - url: http://x\nscrape_config_files:\n";
        let warnings = check(text, "prometheus.yml").unwrap();
        assert_eq!(warnings.len(), 4, "{warnings:#?}");
        let consul = "prometheus.yml:5:20: alerting.alertmanagers[0].consul_sd_configs: `consul_sd_configs` is not supported: these";
        assert!(warnings[0].starts_with(consul), "{warnings:#?}");
        let consul = "prometheus.yml:10:5: scrape_configs[0].consul_sd_configs: `consul_sd_configs` is not supported: its targets";
        assert!(warnings[1].starts_with(consul), "{warnings:#?}");
        assert!(
            warnings[2].starts_with("prometheus.yml:13:7: scrape_configs[0].tls_config.ca_ref: "),
            "{warnings:#?}"
        );
        assert!(warnings[3].contains("configure a sink"), "{warnings:#?}");
    }

    #[test]
    fn rule_files_of_a_prometheus_file_are_checked_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(dir.path().join("rules.yml"), text).unwrap();
        let file = dir.path().join("p.yml").display().to_string();
        let text = "global: {evaluation_interval: 5s}\nrule_files: ['r*.yml']\n";
        write("groups:\n- name: g\n  rules:\n  - {record: a, expr: 'sum('}\n");
        let ConfigError(lines) = check(text, &file).unwrap_err();
        assert!(lines[0].contains("rules.yml:4:23: group \"g\", rule 1, \"a\": could not parse"), "{lines:#?}");
        write("groups:\n- name: g\n  rules:\n  - {record: a, expr: up}\n");
        assert!(check(text, &file).unwrap().is_empty());
        // As Prometheus does, go on without what is not there; but say so.
        let found = check("rule_files: ['r*.yml', 'none*.yml', absent.yml]\n", &file).unwrap();
        assert_eq!(
            found,
            [format!("{file}:1:37: rule_files[2]: there is no such file; its rules are taken when there is")]
        );
    }

    #[test]
    fn slips_in_a_prometheus_file_come_all_at_once_with_their_places() {
        let text = "scrape_configs:\n  - job_name: a\n    scrape_intervall: 5s\n    scrape_timeout: 5 parsecs\n  - job_name: b\n    schema: https\n";
        let ConfigError(lines) = check(text, "p.yml").unwrap_err();
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert!(lines[0].starts_with("p.yml:3:5: scrape_configs[0].scrape_intervall: unknown field"), "{lines:#?}");
        assert!(lines[0].ends_with("did you mean `scrape_interval`?"), "{lines:#?}");
        assert!(lines[1].starts_with("p.yml:4:21: scrape_configs[0].scrape_timeout: invalid duration"), "{lines:#?}");
        assert!(lines[2].starts_with("p.yml:6:5: scrape_configs[1].schema: unknown field"), "{lines:#?}");
        let text = "scrape_configs:\n  - job_name: a\n    scrape_timeout: 2m\n    relabel_configs:\n      - regex: '('\n        target_label: x\n  \
                    - job_name: a\n    scrape_protocols: [PrometheusText0.0.5]\n    dns_sd_configs: [{names: [x], type: A}]\n";
        let ConfigError(lines) = check(text, "p.yml").unwrap_err();
        assert_eq!(lines.len(), 5, "{lines:#?}");
        assert!(
            lines[0].starts_with("p.yml:3:21: scrape_configs[0].scrape_timeout: scrape timeout 2m is longer"),
            "{lines:#?}"
        );
        assert!(
            lines[1].starts_with("p.yml:5:16: scrape_configs[0].relabel_configs[0].regex: error parsing"),
            "{lines:#?}"
        );
        assert!(lines[2].starts_with("p.yml:7:15: scrape_configs[1].job_name: there is another"), "{lines:#?}");
        assert!(lines[3].contains("did you mean `PrometheusText0.0.4`?"), "{lines:#?}");
        assert!(lines[4].contains("dns_sd_configs[0].port: is needed"), "{lines:#?}");
    }

    #[test]
    fn a_source_takes_a_file_or_the_sections_themselves() {
        let inline = "no_collect: true\nsources:\n  prom:\n    type: prometheus_scrape\n    global: {scrape_interval: 5s}\n    scrape_configs:\n      \
                      - job_name: a\n        static_configs: [{targets: ['x:1'], labels: {port: 9}}]\n        proxy_connect_header: {}\n";
        let warnings = check(inline, "s.yaml").unwrap();
        assert_eq!(
            warnings,
            [
                "s.yaml:9:9: sources.prom.scrape_configs[0].proxy_connect_header: `proxy_connect_header` is not supported"
            ]
        );
        let ConfigError(lines) = check(&inline.replace("job_name", "job_nam"), "s.yaml").unwrap_err();
        assert!(
            lines[0].starts_with("s.yaml:7:9: sources.prom.scrape_configs[0].job_nam: unknown field"),
            "{lines:#?}"
        );
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("p.yml"), "scrape_configs: [{job_name: a, tls_config: {ca_fil: x}}]\n")
            .unwrap();
        let file = dir.path().join("s.yaml").display().to_string();
        let text = "sources:\n  prom: {type: prometheus_scrape, config_file: p.yml}\n";
        let ConfigError(lines) = check(text, &file).unwrap_err();
        assert!(lines[0].starts_with(&format!("{file}:2:48: sources.prom.config_file: ")), "{lines:#?}");
        assert!(lines[0].contains("p.yml:1:45: scrape_configs[0].tls_config.ca_fil: unknown field"), "{lines:#?}");
        let ConfigError(lines) = check("sources:\n  prom: {type: prometheus_scrape}\n", "s.yaml").unwrap_err();
        assert!(lines[0].contains("`scrape_configs` here"), "{lines:#?}");
    }
}
