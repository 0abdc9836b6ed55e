//! Graph to tasks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use storage::vfs::{Clock, SystemClock};
use tokio_util::sync::CancellationToken;

use crate::{
    buffer::{Budget, Feed, memory},
    component::{
        Data, Output, Positions, Signals, Sink, SinkContext, Source, SourceContext, Transform, TransformError,
    },
    config::PipelineConfig,
    error::{BuildError, ConfigError},
    metrics::{ComponentKind, Counters, Registry},
    sink::{registry::SinkConfig, store::Destination},
    topology::{
        dead_letters::{DEAD_LETTER, DeadLetters, WithDeadLetters},
        fanout::{FanOut, Splitter},
        graph::{Graph, NodeSpec, Role},
        running::{Node, Running, Tasks},
        worker::{Maker, SourceFactory, run_source, run_transform},
    },
};

/// Bounds of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Batches that wait in front of one component.
    pub queue_batches: usize,
    /// Bytes of one source's or input's batches in flight, from entry to ack.
    pub input_bytes: usize,
    /// Bytes in flight of the whole process.
    pub process_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { queue_batches: 64, input_bytes: 32 << 20, process_bytes: 96 << 20 }
    }
}

/// Collects the components, checks the graph, starts it.
pub struct PipelineBuilder {
    sources: Vec<(String, Signals, Option<Maker>)>,
    pub(super) transforms: Vec<(String, Vec<String>, Arc<dyn Transform>)>,
    sinks: Vec<(String, Option<Vec<String>>, SinkPlan)>,
    limits: Limits,
    errors: Vec<ConfigError>,
}

enum SinkPlan {
    Configured(SinkConfig),
    Given(Box<dyn Sink>),
    /// One that ships, which will be given to the builder that is built.
    Expected,
}

impl SinkPlan {
    fn keeps_positions(&self) -> bool {
        match self {
            SinkPlan::Configured(c) => c.keeps_positions(),
            SinkPlan::Given(s) => s.keeps_positions(),
            SinkPlan::Expected => true,
        }
    }

    fn gives_dead_letters(&self) -> bool {
        match self {
            SinkPlan::Configured(c) => c.gives_dead_letters(),
            SinkPlan::Given(s) => s.gives_dead_letters(),
            SinkPlan::Expected => true,
        }
    }
}

impl PipelineBuilder {
    /// Transforms and sinks of a configuration. Without any sink there is one, `store`, that takes what nobody else takes.
    pub fn new(config: PipelineConfig) -> Self {
        Self::with_clock(config, Arc::new(SystemClock::default()))
    }

    /// As [`PipelineBuilder::new`], with the clock that transforms ask.
    pub fn with_clock(config: PipelineConfig, clock: Arc<dyn Clock>) -> Self {
        let mut builder = PipelineBuilder {
            sources: Vec::new(),
            transforms: Vec::new(),
            sinks: Vec::new(),
            limits: Limits::default(),
            errors: Vec::new(),
        };
        for (name, transform) in config.transforms {
            match transform.build(&format!("transforms.{name}"), &clock) {
                Ok(built) => builder.transforms.push((name, transform.inputs().to_vec(), built)),
                Err(errors) => {
                    builder.errors.extend(errors);
                    builder.transforms.push((name, transform.inputs().to_vec(), Arc::new(Unbuilt)));
                }
            }
        }
        for (name, sink) in config.sinks {
            builder.errors.extend(sink.problems(&name));
            builder.sinks.push((name, sink.inputs().map(<[String]>::to_vec), SinkPlan::Configured(sink)));
        }
        builder
    }

    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// A source that runs once. When it fails, that is reported and it stays down.
    pub fn source(mut self, name: impl Into<String>, source: Box<dyn Source>) -> Self {
        let signals = source.signals();
        self.sources.push((name.into(), signals, Some(Maker::Once(Some(source)))));
        self
    }

    /// A source that is made anew after each failure, with growing pauses.
    pub fn source_factory(mut self, name: impl Into<String>, signals: Signals, make: SourceFactory) -> Self {
        self.sources.push((name.into(), signals, Some(Maker::Factory(make))));
        self
    }

    /// A source without a task: whoever holds [`Running::input`] sends.
    pub fn input(mut self, name: impl Into<String>, signals: Signals) -> Self {
        self.sources.push((name.into(), signals, None));
        self
    }

    /// A transform that is not in the configuration.
    pub fn transform(mut self, name: &str, inputs: &[&str], transform: Arc<dyn Transform>) -> Self {
        self.transforms.push((name.to_owned(), owned(inputs), transform));
        self
    }

    /// A sink that is not in the configuration.
    pub fn sink(mut self, name: &str, inputs: &[&str], sink: Box<dyn Sink>) -> Self {
        self.sinks.push((name.to_owned(), Some(owned(inputs)), SinkPlan::Given(sink)));
        self
    }

    /// A sink that is not in the configuration and takes what nobody else takes.
    pub fn rest_sink(mut self, name: &str, sink: Box<dyn Sink>) -> Self {
        self.sinks.push((name.to_owned(), None, SinkPlan::Given(sink)));
        self
    }

    /// For a check alone: there will be a [`PipelineBuilder::rest_sink`] of this name, which ships to a remote.
    pub fn expect_rest_sink(mut self, name: &str) -> Self {
        self.sinks.push((name.to_owned(), None, SinkPlan::Expected));
        self
    }

    /// The local store as a sink with these inputs.
    pub fn store_sink(mut self, name: &str, inputs: &[&str]) -> Self {
        let config = SinkConfig::store();
        self.sinks.push((name.to_owned(), Some(owned(inputs)), SinkPlan::Configured(config)));
        self
    }

    /// The graph, or everything wrong with it. Starts nothing.
    pub fn check(&self) -> Result<Graph, BuildError> {
        let listed = self.transforms.iter().map(|(_, inputs, _)| inputs);
        let listed: BTreeSet<&str> = listed
            .chain(self.sinks.iter().filter_map(|(_, inputs, _)| inputs.as_ref()))
            .flatten()
            .map(String::as_str)
            .collect();
        let named = |of: &str| listed.contains(format!("{of}.{DEAD_LETTER}").as_str());
        let mut nodes: Vec<NodeSpec> = self
            .sources
            .iter()
            .map(|(name, signals, _)| NodeSpec {
                name: name.clone(),
                role: Role::Source,
                inputs: None,
                signals: *signals,
                passes_others: true,
                outputs: Vec::new(),
                dead_letters: false,
            })
            .collect();
        nodes.extend(self.transforms.iter().map(|(name, inputs, t)| NodeSpec {
            name: name.clone(),
            role: Role::Transform,
            inputs: Some(inputs.clone()),
            signals: t.signals(),
            passes_others: t.passes_others(),
            outputs: t.outputs(),
            // An output that is called so by itself is no other.
            dead_letters: named(name) && t.outputs().iter().all(|(short, _)| short != DEAD_LETTER),
        }));
        nodes.extend(self.sinks.iter().map(|(name, inputs, plan)| NodeSpec {
            name: name.clone(),
            role: Role::Sink,
            inputs: inputs.clone(),
            signals: match plan {
                SinkPlan::Configured(c) => c.signals(),
                SinkPlan::Given(s) => s.signals(),
                SinkPlan::Expected => Signals::ALL,
            },
            passes_others: true,
            outputs: Vec::new(),
            dead_letters: named(name) && plan.gives_dead_letters(),
        }));
        let twice = self.sinks.iter().filter_map(|(name, _, plan)| match plan {
            SinkPlan::Configured(c) if c.dead_letter_file().is_some() && named(name) => Some(ConfigError::new(
                format!("sinks.{name}.{DEAD_LETTER}"),
                format!(
                    "rows cannot go to this file and to whoever takes `{name}.{DEAD_LETTER}`; leave one of them out"
                ),
            )),
            _ => None,
        });
        let mut errors: Vec<ConfigError> = self.errors.iter().cloned().chain(twice).collect();
        if self.sinks.is_empty() {
            nodes.push(NodeSpec {
                name: DEFAULT_SINK.into(),
                role: Role::Sink,
                inputs: None,
                signals: Signals::ALL,
                passes_others: true,
                outputs: Vec::new(),
                dead_letters: false,
            });
        }
        match Graph::check(&nodes) {
            Ok(graph) if errors.is_empty() => return Ok(graph),
            Ok(_) => {}
            Err(more) => errors.extend(more),
        }
        Err(BuildError(errors))
    }

    /// Starts everything. Must be called inside a Tokio runtime.
    pub fn build(self, store: storage::Store) -> Result<Running, BuildError> {
        let positions: Arc<dyn Positions> = Arc::new(store.clone());
        self.build_on(Arc::new(store), positions)
    }

    /// As [`PipelineBuilder::build`], on anything that takes appends.
    pub fn build_on(
        mut self,
        store: Arc<dyn Destination>,
        positions: Arc<dyn Positions>,
    ) -> Result<Running, BuildError> {
        let graph = self.check()?;
        if self.sinks.is_empty() {
            self.sinks.push((DEFAULT_SINK.into(), None, SinkPlan::Configured(SinkConfig::store())));
        }
        let stores: BTreeSet<String> =
            self.sinks.iter().filter(|(_, _, p)| p.keeps_positions()).map(|(name, _, _)| name.clone()).collect();
        let local: BTreeSet<String> = self
            .sinks
            .iter()
            .filter(|(_, _, p)| matches!(p, SinkPlan::Configured(SinkConfig::Store(_))))
            .map(|(name, _, _)| name.clone())
            .collect();
        let registry = Registry::default();
        let mut start = Start {
            limits: self.limits,
            graph: &graph,
            stores,
            feeds: BTreeMap::new(),
            tasks: Tasks::new(),
            nodes: Vec::new(),
        };
        // Consumers before producers, so that every queue exists when somebody needs it.
        for name in graph.order.iter().rev() {
            if let Some(at) = self.sinks.iter().position(|(n, _, _)| n == name) {
                let (name, _, plan) = self.sinks.swap_remove(at);
                let sink = match plan {
                    SinkPlan::Given(sink) => sink,
                    SinkPlan::Expected => {
                        let message = "this sink was announced for a check and never given";
                        return Err(BuildError(vec![ConfigError::new(format!("sinks.{name}"), message)]));
                    }
                    SinkPlan::Configured(config) => {
                        config.build(&name, store.clone()).map_err(|e| BuildError(vec![e]))?
                    }
                };
                start.sink(name, sink, &registry);
            }
            if let Some(at) = self.transforms.iter().position(|(n, _, _)| n == name) {
                let (name, _, transform) = self.transforms.swap_remove(at);
                start.transform(name, transform, &registry);
            }
        }
        let stop = CancellationToken::new();
        let process = Budget::new(self.limits.process_bytes);
        let mut inputs = BTreeMap::new();
        let mut budgets = Vec::new();
        let mut sources = Vec::new();
        for (name, _, maker) in self.sources {
            let counters = registry.add(&name, ComponentKind::Source);
            let budget = process.input(self.limits.input_bytes);
            let mut out = Output::new(start.output(&name, &name), budget.clone(), counters.clone());
            if let Some([only]) = graph.consumers.get(&name).map(Vec::as_slice)
                && local.contains(only)
            {
                out = out.straight_to_store();
            }
            match maker {
                None => {
                    budgets.push(budget);
                    inputs.insert(name, out);
                }
                Some(maker) => {
                    let ctx =
                        SourceContext { name: name.clone(), out, stop: stop.clone(), positions: positions.clone() };
                    let work = run_source(maker, ctx, counters.clone());
                    sources.push(start.tasks.source(name, stop.clone(), counters, work));
                }
            }
        }
        let Start { mut nodes, tasks, .. } = start;
        // Upstream first: a node is closed when everything that feeds it has ended.
        let place = |n: &Node| {
            let at = graph.order.iter().position(|o| *o == n.after).unwrap_or(usize::MAX);
            (at, n.is_fork)
        };
        nodes.sort_by_key(place);
        Ok(Running::new(stop, inputs, budgets, process, sources, nodes, registry, tasks))
    }
}

/// Stands for a transform with errors while the rest of the graph is checked; such a graph is never built.
struct Unbuilt;

impl Transform for Unbuilt {
    fn signals(&self) -> Signals {
        Signals::ALL
    }

    fn apply(&self, data: Data, _: &Counters) -> Result<Data, TransformError> {
        Ok(data)
    }
}

/// The sink of a configuration without sinks.
pub const DEFAULT_SINK: &str = "store";

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|s| (*s).to_owned()).collect()
}

/// What is under construction.
struct Start<'a> {
    limits: Limits,
    graph: &'a Graph,
    stores: BTreeSet<String>,
    feeds: BTreeMap<String, Feed>,
    tasks: Tasks,
    nodes: Vec<Node>,
}

impl Start<'_> {
    fn sink(&mut self, name: String, sink: Box<dyn Sink>, registry: &Registry) {
        let outputs = self.graph.outputs.get(&name).cloned().unwrap_or_default();
        let dead_letters = outputs.first().map(|output| DeadLetters::new(self.output(output, &name)));
        let counters = registry.add(&name, ComponentKind::Sink);
        let close = CancellationToken::new();
        let (feed, intake) = memory::queue(self.limits.queue_batches, Some(counters.clone()), close.clone());
        self.feeds.insert(name.clone(), feed);
        let ctx = SinkContext { name: name.clone(), intake, counters: counters.clone(), dead_letters };
        let work = async move { sink.run(ctx).await.map_err(|e| e.reason) };
        self.nodes.push(self.tasks.node(name, false, close, Some(counters), work));
    }

    fn transform(&mut self, name: String, transform: Arc<dyn Transform>, registry: &Registry) {
        let outputs = self.graph.outputs.get(&name).cloned().unwrap_or_default();
        let mut outs: Vec<Feed> = outputs.iter().map(|output| self.output(output, &name)).collect();
        let counters = registry.add(&name, ComponentKind::Transform);
        let close = CancellationToken::new();
        let (feed, intake) = memory::queue(self.limits.queue_batches, Some(counters.clone()), close.clone());
        self.feeds.insert(name.clone(), feed);
        let named = transform.outputs().len();
        let (transform, dead): (Arc<dyn Transform>, _) = match outs.len() > named.max(1) {
            false => (transform, None),
            true => {
                let with = WithDeadLetters::new(transform, &name);
                let dead = with.dead();
                (Arc::new(with), Some(dead))
            }
        };
        if named == 0 && dead.is_none() {
            let out = outs.remove(0);
            let work = run_transform(intake, transform, counters.clone(), out);
            self.nodes.push(self.tasks.node(name, false, close, Some(counters), work));
            return;
        }
        let positions = outputs.iter().find_map(|o| self.store_behind(o)).map(|s| self.feeds[s].clone());
        let splitter = Some(Splitter { transform, counters: counters.clone(), dead });
        let fork = FanOut { intake, branches: outs, positions, splitter };
        let work = async move {
            fork.run().await;
            Ok(())
        };
        self.nodes.push(self.tasks.node(name, false, close, Some(counters), work));
    }

    /// The queue behind an output of `producer`: its one consumer's, or a fork's.
    fn output(&mut self, name: &str, producer: &str) -> Feed {
        let branches: Vec<Feed> =
            self.graph.consumers.get(name).into_iter().flatten().map(|c| self.feeds[c].clone()).collect();
        match <[Feed; 1]>::try_from(branches) {
            Ok([only]) => only,
            Err(branches) => {
                let close = CancellationToken::new();
                let (feed, intake) = memory::queue(self.limits.queue_batches, None, close.clone());
                let positions = self.store_behind(name).map(|s| self.feeds[s].clone());
                let fork = FanOut { intake, branches, positions, splitter: None };
                let work = async move {
                    fork.run().await;
                    Ok(())
                };
                self.nodes.push(self.tasks.node(producer.to_owned(), true, close, None, work));
                feed
            }
        }
    }

    fn store_behind(&self, name: &str) -> Option<&str> {
        let mut seen = BTreeSet::new();
        let mut next = vec![name];
        while let Some(n) = next.pop() {
            for c in self.graph.consumers.get(n).into_iter().flatten().filter(|c| seen.insert(c.as_str())) {
                if let Some(store) = self.stores.get(c) {
                    return self.stores.get(store).map(String::as_str);
                }
                next.extend(self.graph.outputs.get(c).into_iter().flatten().map(String::as_str));
            }
        }
        None
    }
}
