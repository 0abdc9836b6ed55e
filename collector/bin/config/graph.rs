//! Components of the file put together: their names, cycles and signals, and the section `tests`, which runs them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use pipeline::{
    PipelineBuilder, PipelineConfig,
    trial::{self, Case},
};
use storage::vfs::{Clock, SystemClock};

use super::{
    ConfigError, SourceConfig, build,
    check::{self, Problem},
    file::File,
    lines, parse, rules,
    yaml::{self, Document},
};
use crate::cli::ServeArgs;

/// How one case of the section `tests` went.
pub struct Outcome {
    pub name: String,
    /// As `file:line:column: path: message`; empty when all is as expected.
    pub problems: Vec<String>,
}

/// Runs the section `tests` of a text. A text with errors is not run.
pub fn test(text: &str, name: &str) -> Result<Vec<Outcome>, ConfigError> {
    let document = parse(text, name)?;
    let mut problems = Vec::new();
    build(&document, &ServeArgs::default(), &rules::base(name), &mut problems);
    let file: Option<File> = check::read(&document, "", &document.value, &mut Vec::new());
    let Some(file) = file.filter(|_| problems.is_empty()) else { return Err(ConfigError(lines(name, problems))) };
    let sources = components(&document, "sources", &file.sources, &mut problems);
    let outcome = |(place, case): (String, Case)| {
        let found = trial::run(&case, |clock| wired(&document, &sources, &file, clock));
        let found = found.into_iter().map(|p| problem_of_case(&document, &place, p)).collect();
        Outcome { name: case.name, problems: lines(name, found) }
    };
    Ok(cases(&document, &file, &mut problems).into_iter().map(outcome).collect())
}

/// The cases of the section `tests`, each with its place.
pub(super) fn cases(document: &Document, file: &File, problems: &mut Vec<Problem>) -> Vec<(String, Case)> {
    let mut out = Vec::new();
    for (i, raw) in file.tests.iter().enumerate() {
        let place = format!("tests[{i}]");
        if let Some(case) = check::read(document, &place, raw, problems) {
            out.push((place, case));
        }
    }
    out
}

fn problem_of_case(document: &Document, place: &str, problem: trial::Problem) -> Problem {
    let path = if problem.path.is_empty() { place.to_owned() } else { format!("{place}.{}", problem.path) };
    let unknown = problem.message.starts_with("unknown field") || problem.message.starts_with("there is no output");
    Problem {
        place: if unknown { document.key_place(&path) } else { document.place(&path) },
        path,
        message: problem.message,
    }
}

/// Reads each component of a section on its own, so that one bad one does not hide the others.
pub(super) fn components<T: serde::de::DeserializeOwned>(
    document: &Document,
    section: &str,
    raw: &BTreeMap<String, serde_json::Value>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, T> {
    let mut out = BTreeMap::new();
    for (name, value) in raw {
        if let Some(read) = check::read(document, &yaml::join(section, name), value, problems) {
            out.insert(name.clone(), read);
        }
    }
    out
}

/// What transforms and sinks name as their inputs.
pub(super) fn named_inputs(file: &File) -> BTreeSet<String> {
    let components = file.transforms.values().chain(file.sinks.values());
    let inputs = components.filter_map(|c| c.get("inputs")?.as_array());
    inputs.flatten().filter_map(|i| i.as_str()).map(str::to_owned).collect()
}

/// The graph of the file, unstarted. Sources stand for themselves by their names and signals.
fn wired(
    document: &Document,
    sources: &BTreeMap<String, SourceConfig>,
    file: &File,
    clock: Arc<dyn Clock>,
) -> PipelineBuilder {
    let mut unused = Vec::new();
    let pipeline = PipelineConfig {
        transforms: components(document, "transforms", &file.transforms, &mut unused),
        sinks: components(document, "sinks", &file.sinks, &mut unused),
    };
    let mut builder = PipelineBuilder::with_clock(pipeline, clock);
    let collects = !file.no_collect.unwrap_or(false);
    let named = named_inputs(file);
    for (name, signals) in crate::app::fixed_sources(collects) {
        builder = builder.input(name, signals);
    }
    for (name, signals) in crate::app::fixed_sources(true).into_iter().skip(1) {
        if !collects && named.contains(name) && !sources.contains_key(name) {
            builder = builder.input(name, signals);
        }
    }
    for (name, source) in sources {
        let signals = match source {
            SourceConfig::HostMetrics(_) | SourceConfig::PrometheusScrape(_) => pipeline::Signals::METRICS,
            SourceConfig::Files(_) | SourceConfig::Containers(_) | SourceConfig::Syslog(_) => pipeline::Signals::LOGS,
        };
        builder = builder.input(name, signals);
    }
    builder
}

/// Names, cycles and signals of the graph, and what its tests name.
pub(super) fn wiring(
    document: &Document,
    sources: &BTreeMap<String, SourceConfig>,
    file: &File,
    cases: &[(String, Case)],
    ships_rest: bool,
) -> Vec<Problem> {
    let mut builder = wired(document, sources, file, Arc::new(SystemClock::new()));
    if ships_rest {
        builder = builder.expect_rest_sink(crate::agent::TO);
    }
    match builder.check() {
        Ok(graph) => {
            let found = cases.iter().flat_map(|(place, case)| {
                let problems = trial::check(case, &graph).into_iter();
                problems.map(|p| problem_of_case(document, place, p)).collect::<Vec<_>>()
            });
            found.collect()
        }
        Err(e) => e
            .0
            .into_iter()
            .map(|e| Problem {
                place: document.place(&e.path),
                message: match &e.nearest {
                    Some(n) if !e.message.contains("did you mean") => format!("{}; did you mean `{n}`?", e.message),
                    _ => e.message.clone(),
                },
                path: e.path,
            })
            .collect(),
    }
}
