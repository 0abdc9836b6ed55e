//! The checked graph, pure: names, cycles, signals, outputs that lead nowhere. All errors at once.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    component::Signals,
    error::{ConfigError, nearest},
    topology::dead_letters::DEAD_LETTER,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Source,
    Transform,
    Sink,
}

impl Role {
    /// Section of the configuration.
    pub const fn section(self) -> &'static str {
        match self {
            Role::Source => "sources",
            Role::Transform => "transforms",
            Role::Sink => "sinks",
        }
    }
}

/// A component as the check sees it.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    pub name: String,
    pub role: Role,
    /// Names of sources and transforms. `None`: all outputs that nobody else takes.
    pub inputs: Option<Vec<String>>,
    /// A source's output, or what a transform or sink works on.
    pub signals: Signals,
    /// Whether signals that it does not work on may come to it.
    pub passes_others: bool,
    /// Of a transform with more outputs than the one that bears its name: their short names and signals.
    pub outputs: Vec<(String, Signals)>,
    /// Whether it has dead letters and somebody names them: its last output then, `NAME.dead_letter`.
    pub dead_letters: bool,
}

impl NodeSpec {
    /// The names by which others take its output. Empty for a sink without dead letters.
    fn output_names(&self) -> Vec<String> {
        let mut names = match (self.role, self.outputs.is_empty()) {
            (Role::Sink, _) => Vec::new(),
            (_, true) => vec![self.name.clone()],
            (_, false) => self.outputs.iter().map(|(short, _)| format!("{}.{short}", self.name)).collect(),
        };
        names.extend(self.dead_letters.then(|| format!("{}.{DEAD_LETTER}", self.name)));
        names
    }
}

/// An output by its name: whose it is, and what it may give.
type Outputs<'a> = BTreeMap<String, (&'a NodeSpec, Signals)>;

/// A graph without errors.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Every edge goes from an earlier to a later name.
    pub order: Vec<String>,
    /// Consumers of each output, in configuration order.
    pub consumers: BTreeMap<String, Vec<String>>,
    /// Outputs of each component; of a sink only its dead letters, where somebody takes them.
    pub outputs: BTreeMap<String, Vec<String>>,
    pub sinks: BTreeSet<String>,
}

impl Graph {
    /// Checks names, inputs, cycles and signals.
    pub fn check(nodes: &[NodeSpec]) -> Result<Graph, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let by_name = names(nodes, &mut errors);
        let outputs = outputs(nodes, &by_name, &mut errors);
        let inputs = resolve(nodes, &by_name, &outputs, &mut errors);
        let mut consumers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (node, from) in nodes.iter().zip(&inputs) {
            for name in from {
                consumers.entry(name.clone()).or_default().push(node.name.clone());
            }
        }
        for node in nodes {
            for output in node.output_names().into_iter().filter(|o| !consumers.contains_key(o)) {
                errors.push(ConfigError::new(
                    format!("{}.{}", node.role.section(), node.name),
                    format!(
                        "no transform or sink takes the output of `{output}`, its rows would be lost; name `{output}` in the `inputs` of a sink"
                    ),
                ));
            }
        }
        // The components behind the outputs.
        let producers: Vec<Vec<String>> =
            inputs.iter().map(|from| from.iter().map(|o| outputs[o].0.name.clone()).collect()).collect();
        let order = sort(nodes, &producers, &mut errors);
        signals(&order, &by_name, &outputs, &inputs_by_name(nodes, &inputs), &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        let outputs = nodes.iter().map(|n| (n.name.clone(), n.output_names())).collect();
        let sinks = nodes.iter().filter(|n| n.role == Role::Sink).map(|n| n.name.clone()).collect();
        Ok(Graph { order, consumers, outputs, sinks })
    }
}

fn inputs_by_name<'a>(nodes: &'a [NodeSpec], inputs: &'a [Vec<String>]) -> BTreeMap<&'a str, &'a [String]> {
    nodes.iter().zip(inputs).map(|(n, i)| (n.name.as_str(), i.as_slice())).collect()
}

fn names<'a>(nodes: &'a [NodeSpec], errors: &mut Vec<ConfigError>) -> BTreeMap<&'a str, &'a NodeSpec> {
    let mut by_name: BTreeMap<&str, &NodeSpec> = BTreeMap::new();
    for node in nodes {
        let path = format!("{}.{}", node.role.section(), node.name);
        match by_name.get(node.name.as_str()) {
            // A source and a sink may share a name only if nothing could mean either of them.
            Some(other) => errors.push(ConfigError::new(
                path,
                format!("the name `{}` is taken by {}.{}", node.name, other.role.section(), other.name),
            )),
            None if node.name.is_empty() => errors.push(ConfigError::new(path, "a component needs a name")),
            None => {
                by_name.insert(&node.name, node);
            }
        }
    }
    by_name
}

/// Every output by its name.
fn outputs<'a>(
    nodes: &'a [NodeSpec],
    by_name: &BTreeMap<&str, &NodeSpec>,
    errors: &mut Vec<ConfigError>,
) -> Outputs<'a> {
    let mut out = Outputs::new();
    for node in nodes {
        let names = node.output_names();
        // Of dead letters: what the component works on.
        let dead = names.len().checked_sub(1).filter(|_| node.dead_letters);
        let signals = |i: usize| match dead == Some(i) {
            true => node.signals,
            false => node.outputs.get(i).map_or(Signals::ALL, |(_, s)| *s),
        };
        for (i, name) in names.into_iter().enumerate() {
            if name != node.name && by_name.contains_key(name.as_str()) {
                errors.push(ConfigError::new(
                    format!("{}.{}", node.role.section(), node.name),
                    format!("its output `{name}` has the name of another component"),
                ));
            }
            out.insert(name, (node, signals(i)));
        }
    }
    out
}

/// The valid inputs of each node, wildcards filled in.
fn resolve(
    nodes: &[NodeSpec],
    by_name: &BTreeMap<&str, &NodeSpec>,
    outputs: &Outputs<'_>,
    errors: &mut Vec<ConfigError>,
) -> Vec<Vec<String>> {
    let names = || nodes.iter().flat_map(NodeSpec::output_names);
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut all = Vec::new();
    for node in nodes {
        let mut valid: Vec<String> = Vec::new();
        let path = format!("{}.{}.inputs", node.role.section(), node.name);
        let listed = node.inputs.as_deref().unwrap_or_default();
        if node.role != Role::Source && node.inputs.is_some() && listed.is_empty() {
            errors.push(ConfigError::new(path.clone(), "a component needs at least one input"));
        }
        for (i, name) in listed.iter().enumerate() {
            let at = format!("{path}[{i}]");
            if valid.contains(name) {
                errors.push(ConfigError::new(at, format!("`{name}` is listed twice, its rows would arrive twice")));
            } else if outputs.contains_key(name) {
                taken.insert(name.clone());
                valid.push(name.clone());
            } else {
                let dead = name.strip_suffix(DEAD_LETTER).and_then(|n| n.strip_suffix('.'));
                errors.push(match dead.filter(|n| by_name.contains_key(n)) {
                    Some(of) => ConfigError::new(at, format!("`{of}` has no dead letters: it refuses nothing")),
                    None => {
                        unknown_input(at, name, by_name.get(name.as_str()).copied(), &names().collect::<Vec<_>>())
                    }
                });
            }
        }
        all.push(valid);
    }
    for (i, node) in nodes.iter().enumerate() {
        if node.inputs.is_none() && node.role != Role::Source {
            all[i] = names().filter(|o| !taken.contains(o) && *o != node.name).collect();
        }
    }
    all
}

/// A name that is no output: of a component without one, of one that has several, or of nothing.
fn unknown_input(at: String, name: &str, component: Option<&NodeSpec>, known: &[String]) -> ConfigError {
    match component {
        Some(node) if node.role == Role::Sink => {
            ConfigError::new(at, format!("`{name}` is a sink and has no output"))
        }
        Some(node) => {
            let outputs = node.output_names().join(", ");
            ConfigError::new(at, format!("`{name}` has several outputs, name one of {outputs}"))
        }
        None => {
            let mut e = ConfigError::new(at, format!("there is no source or transform `{name}`"));
            e.nearest = nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
            if e.nearest.is_none() && !known.is_empty() {
                e.message = format!("{}; there are {}", e.message, known.join(", "));
            }
            e
        }
    }
}

/// Names in topological order; a cycle is reported once, at its first member in configuration order.
fn sort(nodes: &[NodeSpec], inputs: &[Vec<String>], errors: &mut Vec<ConfigError>) -> Vec<String> {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut order = Vec::new();
    loop {
        let ready: Vec<&NodeSpec> = nodes
            .iter()
            .zip(inputs)
            .filter(|(n, from)| !done.contains(n.name.as_str()) && from.iter().all(|f| done.contains(f.as_str())))
            .map(|(n, _)| n)
            .collect();
        if ready.is_empty() {
            break;
        }
        for n in ready {
            if done.insert(&n.name) {
                order.push(n.name.clone());
            }
        }
    }
    // What is left leads to a cycle or lies on one: walk backwards until a name repeats.
    let from = inputs_by_name(nodes, inputs);
    let mut reported: BTreeSet<&str> = BTreeSet::new();
    for start in nodes.iter().filter(|n| !done.contains(n.name.as_str())) {
        let mut path: Vec<&str> = vec![&start.name];
        let cycle = loop {
            let last = path[path.len() - 1];
            let Some(next) = from[last].iter().map(String::as_str).find(|f| !done.contains(f)) else { break None };
            if let Some(at) = path.iter().position(|p| *p == next) {
                break Some(path.split_off(at));
            }
            path.push(next);
        };
        if let Some(mut cycle) = cycle
            && !cycle.iter().any(|c| reported.contains(c))
        {
            reported.extend(&cycle);
            cycle.reverse();
            let first = (0..cycle.len()).min_by_key(|i| cycle[*i]).unwrap_or(0);
            cycle.rotate_left(first);
            let closing = cycle[cycle.len() - 1];
            // Dead letters may lead back to a sink.
            let section = nodes.iter().find(|n| n.name == cycle[0]).map_or("transforms", |n| n.role.section());
            let index = from[cycle[0]].iter().position(|f| f == closing).unwrap_or(0);
            errors.push(ConfigError::new(
                format!("{section}.{}.inputs[{index}]", cycle[0]),
                format!("a cycle: {} -> {}", cycle.join(" -> "), cycle[0]),
            ));
        }
    }
    order
}

/// What flows along each edge must be of some use at its end, all of it where the component does not let others pass.
fn signals(
    order: &[String],
    by_name: &BTreeMap<&str, &NodeSpec>,
    outputs: &Outputs<'_>,
    inputs: &BTreeMap<&str, &[String]>,
    errors: &mut Vec<ConfigError>,
) {
    let mut flows: BTreeMap<String, Signals> = BTreeMap::new();
    for name in order {
        let Some(node) = by_name.get(name.as_str()) else { continue };
        let mut arriving = Signals::NONE;
        for (i, from) in inputs[name.as_str()].iter().enumerate() {
            let flow = flows.get(from.as_str()).copied().unwrap_or(Signals::ALL);
            let at = format!("{}.{name}.inputs[{i}]", node.role.section());
            let useless = flow.without(node.signals);
            if flow.and(node.signals).is_none() {
                errors.push(ConfigError::new(
                    at,
                    format!("`{from}` gives {flow}, but `{name}` works on {}", node.signals),
                ));
            } else if !node.passes_others && !useless.is_none() {
                errors.push(ConfigError::new(
                    at,
                    format!(
                        "`{from}` gives {useless} too, which `{name}` cannot treat with these settings; let them pass with `signals: [{}]`, or take them out before with a `route`",
                        node.signals.to_string().replace(" and ", ", ")
                    ),
                ));
            }
            arriving = arriving.or(flow);
        }
        let flow = if node.role == Role::Source { node.signals } else { arriving };
        for output in node.output_names() {
            let flow = outputs.get(&output).map_or(flow, |(_, signals)| flow.and(*signals));
            // Nothing arrives only where an error is told already: no second one for what follows.
            flows.insert(output, if flow.is_none() { Signals::ALL } else { flow });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, role: Role, inputs: &[&str], signals: Signals) -> NodeSpec {
        let inputs = (role != Role::Source).then(|| inputs.iter().map(|s| (*s).to_owned()).collect());
        NodeSpec {
            name: name.into(),
            role,
            inputs,
            signals,
            passes_others: true,
            outputs: Vec::new(),
            dead_letters: false,
        }
    }

    fn source(name: &str) -> NodeSpec {
        node(name, Role::Source, &[], Signals::ALL)
    }

    fn transform(name: &str, inputs: &[&str]) -> NodeSpec {
        node(name, Role::Transform, inputs, Signals::ALL)
    }

    fn sink(name: &str, inputs: &[&str]) -> NodeSpec {
        node(name, Role::Sink, inputs, Signals::ALL)
    }

    #[test]
    fn every_error_is_reported_at_once_with_its_path_and_the_nearest_name() {
        let errors = Graph::check(&[
            source("containers"),
            source("unused"),
            transform("parse", &["contianers"]),
            transform("a", &["b", "containers"]),
            transform("b", &["a"]),
            sink("out", &["parse", "b", "out", "parse"]),
            sink("empty", &[]),
        ])
        .unwrap_err();
        let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "transforms.parse.inputs[0]: there is no source or transform `contianers`; did you mean `containers`?",
                "sinks.out.inputs[2]: `out` is a sink and has no output",
                "sinks.out.inputs[3]: `parse` is listed twice, its rows would arrive twice",
                "sinks.empty.inputs: a component needs at least one input",
                "sources.unused: no transform or sink takes the output of `unused`, its rows would be lost; name `unused` in the `inputs` of a sink",
                "transforms.a.inputs[0]: a cycle: a -> b -> a",
            ]
        );
    }

    #[test]
    fn signals_that_do_not_fit_are_an_error_also_through_a_transform() {
        let errors = Graph::check(&[
            node("host", Role::Source, &[], Signals::METRICS),
            transform("any", &["host"]),
            node("parse", Role::Transform, &["any"], Signals::LOGS),
            sink("out", &["parse"]),
        ])
        .unwrap_err();
        assert_eq!(
            errors[0].to_string(),
            "transforms.parse.inputs[0]: `any` gives metrics, but `parse` works on logs"
        );
    }

    #[test]
    fn a_sink_without_inputs_takes_what_nobody_else_takes() {
        let mut store = sink("store", &[]);
        store.inputs = None;
        let g = Graph::check(&[source("a"), source("b"), transform("t", &["a"]), store]).unwrap();
        assert_eq!(g.consumers["t"], ["store"]);
        assert_eq!(g.consumers["b"], ["store"]);
        assert_eq!(g.consumers["a"], ["t"]);
        assert_eq!(g.order.last().unwrap(), "store");
    }

    #[test]
    fn names_are_unique_over_all_sections_and_self_loops_are_cycles() {
        let errors =
            Graph::check(&[source("x"), transform("x", &["x"]), transform("y", &["y"]), sink("s", &["x", "y"])])
                .unwrap_err();
        assert!(
            errors.iter().any(|e| e.to_string() == "transforms.x: the name `x` is taken by sources.x"),
            "{errors:?}"
        );
        assert!(errors.iter().any(|e| e.message == "a cycle: y -> y"), "{errors:?}");
    }

    fn route(name: &str, inputs: &[&str], outputs: &[(&str, Signals)]) -> NodeSpec {
        let outputs = outputs.iter().map(|(n, s)| ((*n).to_owned(), *s)).collect();
        NodeSpec { outputs, ..transform(name, inputs) }
    }

    #[test]
    fn named_outputs_are_taken_by_their_full_name_and_each_must_be_taken() {
        let outputs = [("errors", Signals::LOGS), ("default", Signals::ALL)];
        let g = Graph::check(&[
            source("s"),
            route("r", &["s"], &outputs),
            transform("t", &["r.errors"]),
            sink("out", &["t", "r.default"]),
        ])
        .unwrap();
        assert_eq!((g.consumers["r.errors"].as_slice(), g.outputs["r"].len()), (&["t".to_owned()][..], 2));
        let mut rest = sink("store", &[]);
        rest.inputs = None;
        let g = Graph::check(&[source("s"), route("r", &["s"], &outputs), rest]).unwrap();
        assert_eq!(g.consumers["r.default"], ["store"]);
        let errors = Graph::check(&[
            source("s"),
            route("r", &["s"], &outputs),
            node("m", Role::Transform, &["r.errors"], Signals::METRICS),
            sink("out", &["r", "r.erors", "m"]),
        ])
        .unwrap_err();
        let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "sinks.out.inputs[0]: `r` has several outputs, name one of r.errors, r.default",
                "sinks.out.inputs[1]: there is no source or transform `r.erors`; did you mean `r.errors`?",
                "transforms.r: no transform or sink takes the output of `r.default`, its rows would be lost; name `r.default` in the `inputs` of a sink",
                "transforms.m.inputs[0]: `r.errors` gives logs, but `m` works on metrics",
            ]
        );
    }

    #[test]
    fn what_a_transform_cannot_treat_is_refused_unless_it_is_told_to_let_it_pass() {
        let graph = |passes_others| {
            let one =
                NodeSpec { passes_others, ..node("d", Role::Transform, &["s"], Signals::LOGS.or(Signals::TRACES)) };
            Graph::check(&[source("s"), one, sink("out", &["d"])])
        };
        assert!(graph(true).is_ok());
        assert_eq!(
            graph(false).unwrap_err()[0].to_string(),
            "transforms.d.inputs[0]: `s` gives metrics too, which `d` cannot treat with these settings; let them pass with `signals: [logs, traces]`, or take them out before with a `route`"
        );
    }

    #[test]
    fn fan_out_and_fan_in_are_fine() {
        let g = Graph::check(&[
            source("s"),
            transform("a", &["s"]),
            transform("b", &["s"]),
            sink("out", &["a", "b"]),
            sink("copy", &["s"]),
        ])
        .unwrap();
        assert_eq!(g.consumers["s"], ["a", "b", "copy"]);
    }
}
