//! `storage.downsample`: which samples are aggregated, checked into the store's rules.

use std::time::Duration;

use query::promql::parse_selector;
use serde::Deserialize;
use storage::{
    downsample::{Downsample, Resolution, Rule},
    model::TenantId,
};

use super::units::Span;

/// How long an hour is over before it is aggregated, unless a rule says otherwise.
const AFTER: Duration = Duration::from_secs(3600);

/// One rule as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Selectors of series; every series by default.
    #[serde(default)]
    r#match: Vec<String>,
    /// `5m`, `1h`; both by default.
    resolutions: Option<Vec<String>>,
    /// How long an hour is over before it is aggregated; 1h by default.
    after: Option<Span>,
    tenant: Option<String>,
    /// `raw` (default): queries take aggregates where they ask for them or the samples are gone; `auto`: also where the
    /// answer is the same.
    query: Option<String>,
}

/// Checks all rules; problems are told with their path.
pub fn check(entries: &[Entry], problem: &mut dyn FnMut(&str, String)) -> Downsample {
    let rules = entries.iter().enumerate().map(|(i, e)| rule(&format!("storage.downsample[{i}]"), e, problem));
    Downsample { rules: rules.collect() }
}

fn rule(path: &str, entry: &Entry, problem: &mut dyn FnMut(&str, String)) -> Rule {
    let mut selectors = Vec::new();
    for (i, text) in entry.r#match.iter().enumerate() {
        match parse_selector(text) {
            Ok(matchers) => selectors.push(matchers),
            Err(e) => problem(&format!("{path}.match[{i}]"), e.to_string()),
        }
    }
    if entry.r#match.is_empty() {
        selectors.push(Vec::new());
    }
    let mut resolutions = Vec::new();
    match &entry.resolutions {
        None => resolutions.extend(Resolution::ALL),
        Some(names) if names.is_empty() => {
            problem(&format!("{path}.resolutions"), "expected 5m, 1h or both".to_owned());
        }
        Some(names) => {
            for (i, name) in names.iter().enumerate() {
                match Resolution::from_name(name) {
                    Some(r) if resolutions.contains(&r) => {
                        problem(&format!("{path}.resolutions[{i}]"), format!("`{name}` is there twice"));
                    }
                    Some(r) => resolutions.push(r),
                    None => problem(
                        &format!("{path}.resolutions[{i}]"),
                        format!("unknown resolution `{name}`, expected 5m or 1h"),
                    ),
                }
            }
        }
    }
    let tenant = entry.tenant.as_deref().map(TenantId::parse).transpose().unwrap_or_else(|e| {
        problem(&format!("{path}.tenant"), e.to_string());
        None
    });
    let auto = match entry.query.as_deref() {
        None | Some("raw") => false,
        Some("auto") => true,
        Some(other) => {
            problem(&format!("{path}.query"), format!("unknown choice `{other}`, expected raw or auto"));
            false
        }
    };
    Rule { tenant, selectors, resolutions, after: entry.after.map_or(AFTER, |s| s.0), auto }
}
