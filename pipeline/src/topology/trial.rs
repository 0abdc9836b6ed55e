//! A graph run by hand: batches put in at one component and carried through its transforms, without tasks and sinks.

use std::collections::BTreeMap;

use crate::{
    component::{Data, Transform as _},
    metrics::{ComponentKind, Counters},
    topology::{Graph, PipelineBuilder, dead_letters::WithDeadLetters},
    trial::Arrived,
};

impl PipelineBuilder {
    /// What arrives at each output and sink when a transform gets these batches, or a source emits them.
    pub(crate) fn trial(&self, graph: &Graph, at: &str, input: Vec<Data>) -> Result<Arrived, String> {
        let mut arrived = Arrived::new();
        let mut waiting: BTreeMap<&str, Vec<Data>> = BTreeMap::new();
        waiting.insert(at, input);
        for name in &graph.order {
            let batches = waiting.remove(name.as_str()).unwrap_or_default();
            let outputs = graph.outputs.get(name).map_or(&[][..], Vec::as_slice);
            // Its dead letters are the remote's decision, and there is none here.
            if graph.sinks.contains(name) {
                arrived.insert(name.clone(), batches);
                continue;
            }
            let counters = Counters::new(name.clone(), ComponentKind::Transform);
            let transform = self.transforms.iter().find(|(n, _, _)| n == name).map(|(_, _, t)| t);
            let dead = transform
                .filter(|t| outputs.len() > t.outputs().len().max(1))
                .map(|t| WithDeadLetters::new(t.clone(), name));
            for data in batches {
                let parts = match (transform, &dead) {
                    (_, Some(dead)) => dead.split(data, &counters),
                    (Some(t), _) if !t.outputs().is_empty() => t.split(data, &counters),
                    (Some(t), _) if t.signals().has(&data) => t.apply(data, &counters).map(|d| vec![d]),
                    _ => Ok(vec![data]),
                };
                let parts = parts.map_err(|e| format!("transform {name}: {e}"))?;
                for (output, part) in outputs.iter().zip(parts).filter(|(_, part)| !part.is_empty()) {
                    for consumer in graph.consumers.get(output).into_iter().flatten() {
                        waiting.entry(consumer).or_default().push(part.clone());
                    }
                    arrived.entry(output.clone()).or_default().push(part);
                }
            }
        }
        Ok(arrived)
    }
}
