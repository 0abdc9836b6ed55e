//! `info`: labels of info metrics joined to series of the same `instance` and `job`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use storage::model::{Labels, MatchOp, Matcher};

use super::{
    Evaluator, Series, Steps, fail, join_same_labels, metric_name,
    selector::{Newest, Shift},
    without_empty,
};
use crate::{
    error::QueryError,
    promql::{
        ast::{Expr, ExprKind},
        value::Point,
    },
};

/// What names a target.
const IDENTIFYING: [&str; 2] = ["instance", "job"];

/// Own time and labels of the info series of one metric that hold at a step.
type Found<'a> = BTreeMap<&'a str, (i64, &'a Arc<Labels>)>;

fn identity(labels: &Labels) -> [&str; 2] {
    IDENTIFYING.map(|n| labels.get(n).unwrap_or(""))
}

impl Evaluator {
    pub(super) fn info_join(&self, args: &[Expr], steps: &Steps) -> Result<Vec<Series>, QueryError> {
        let base = self.vector(&args[0], steps)?;
        let Some(ExprKind::Selector(selector)) = args.get(1).map(|a| &a.kind) else {
            return Err(QueryError::Internal("the parser gives info its selector".into()));
        };
        let (names, wanted): (Vec<&Matcher>, Vec<&Matcher>) =
            selector.matchers.iter().partition(|m| m.name() == "__name__");
        let optional = wanted.iter().all(|m| m.matches_empty());
        let shift = Shift::new(selector.at, selector.offset.as_ref());
        let mut sources: Vec<_> =
            self.data[selector.id].iter().map(|d| (&d.labels, Newest::new(d, self.lookback_ms))).collect();
        let mut out: Vec<Series> = Vec::new();
        let mut slots: HashMap<(usize, Arc<Labels>), usize> = HashMap::new();
        for i in 0..steps.count {
            self.alive()?;
            let mut found: HashMap<[&str; 2], Found<'_>> = HashMap::new();
            for (labels, newest) in &mut sources {
                let labels: &Arc<Labels> = labels;
                let Some((t, point)) = newest.at(shift.apply(steps.time(i))) else { continue };
                if point.histogram().is_some() {
                    return fail("info metrics should be of type float");
                }
                let of_target = found.entry(identity(labels)).or_default();
                match of_target.get(metric_name(labels)) {
                    Some((other, _)) if *other == t => {
                        return fail(format!("found duplicate series for info metric: {labels}"));
                    }
                    Some((other, _)) if *other > t => {}
                    _ => {
                        of_target.insert(metric_name(labels), (t, labels));
                    }
                }
            }
            for (n, s) in base.iter().enumerate() {
                if !s.points[i].is_some() {
                    continue;
                }
                let name = metric_name(&s.labels);
                let is_info = !name.is_empty() && names.iter().all(|m| m.matches_value(name));
                let matched = (identity(&s.labels) != ["", ""]).then(|| found.get(&identity(&s.labels))).flatten();
                let labels = match matched {
                    _ if is_info => s.labels.clone(),
                    Some(found) => enriched(&s.labels, found, &wanted)?,
                    None if optional => s.labels.clone(),
                    None => continue,
                };
                let slot = *slots.entry((n, labels.clone())).or_insert_with(|| {
                    out.push(Series { labels, points: vec![Point::None; steps.count] });
                    out.len() - 1
                });
                out[slot].points[i] = s.points[i].clone();
            }
        }
        self.charge(out.len().saturating_mul(steps.count))?;
        join_same_labels(without_empty(out))
    }
}

/// The labels with those of the info series that they do not have; only `wanted` ones if there are any.
fn enriched(base: &Arc<Labels>, found: &Found<'_>, wanted: &[&Matcher]) -> Result<Arc<Labels>, QueryError> {
    let mut out = Labels::clone(base);
    for (_, info) in found.values() {
        for (name, value) in info.iter() {
            let left_out = name == "__name__" || IDENTIFYING.contains(&name) || base.get(name).is_some();
            if left_out || !(wanted.is_empty() || wanted.iter().any(|m| m.name() == name)) {
                continue;
            }
            if out.get(name).is_some_and(|other| other != value) {
                return fail(format!("conflicting label: {name}"));
            }
            out.set(name, value);
        }
    }
    Ok(Arc::new(out))
}

/// Adds which info metrics are meant where no matcher says it: `target_info`, or with exclusions only, all `_info`.
pub(in crate::promql) fn name_matchers(matchers: &mut Vec<Matcher>) {
    let names = || matchers.iter().filter(|m| m.name() == "__name__");
    if names().count() == 0 {
        matchers.push(Matcher::equal("__name__", "target_info"));
    } else if !names().any(|m| matches!(m.op(), MatchOp::Eq | MatchOp::Re)) {
        matchers.extend(Matcher::new("__name__", MatchOp::Re, ".+_info"));
    }
}
