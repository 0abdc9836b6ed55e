//! A recording rule's result to the samples it writes. Pure.

use std::{collections::HashSet, sync::Arc};

use super::{file::Rule, write::OutSample};
use crate::promql::Sample;

/// Samples of the metric at `ts_ms`, labels of the rule over those of the result. Errors as Prometheus words them.
pub fn samples(
    rule: &Rule,
    metric: &str,
    found: Vec<Sample>,
    limit: usize,
    ts_ms: i64,
) -> Result<Vec<OutSample>, String> {
    let mut seen = HashSet::with_capacity(found.len());
    let mut out = Vec::with_capacity(found.len());
    for sample in found {
        let mut labels = sample.labels.as_ref().clone();
        labels.set("__name__", metric);
        for (name, value) in &rule.labels {
            labels.set(name, value.text());
        }
        let labels = Arc::new(labels);
        if !seen.insert(labels.clone()) {
            return Err("vector contains metrics with the same labelset after applying rule labels".into());
        }
        out.push(OutSample { labels, ts_ms, point: sample.point });
    }
    if limit > 0 && out.len() > limit {
        return Err(format!("exceeded limit of {limit} with {} series", out.len()));
    }
    Ok(out)
}
