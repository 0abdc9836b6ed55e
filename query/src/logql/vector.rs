//! Series over steps, and what vector aggregations, binary operators and `label_replace` make of them.

use std::collections::HashMap;

use storage::model::Labels;

use super::{
    ast::{Binary, BinaryOp, Cardinality, Grouping, Matching, VectorAggregation, VectorOp},
    error::QueryError,
};

/// One series; `values[i]` belongs to step `i`.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub labels: Labels,
    pub values: Vec<Option<f64>>,
}

/// One series at one instant.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub labels: Labels,
    pub value: f64,
}

/// The labels a grouping leaves.
pub fn group_labels(labels: &Labels, grouping: Option<&Grouping>) -> Labels {
    match grouping {
        None => Labels::default(),
        Some(g) => {
            labels
                .iter()
                .filter(|(n, _)| g.labels.iter().any(|l| l == n) != g.without)
                .map(|(n, v)| (n.to_owned(), v.to_owned()))
                .collect::<Vec<_>>()
                .into_iter()
                .collect::<Pairs>()
                .0
        }
    }
}

struct Pairs(Labels);

impl FromIterator<(String, String)> for Pairs {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(iter: T) -> Self {
        Pairs(Labels::from_pairs(iter))
    }
}

/// Groups of series by what `grouping` leaves of their labels, in order of first appearance.
fn groups(input: &[Series], grouping: Option<&Grouping>) -> Vec<(Labels, Vec<usize>)> {
    let mut index: HashMap<Labels, usize> = HashMap::new();
    let mut out: Vec<(Labels, Vec<usize>)> = Vec::new();
    for (i, s) in input.iter().enumerate() {
        let key = group_labels(&s.labels, grouping);
        let at = *index.entry(key).or_insert_with_key(|k| {
            out.push((k.clone(), Vec::new()));
            out.len() - 1
        });
        out[at].1.push(i);
    }
    out
}

pub fn aggregate(a: &VectorAggregation, input: Vec<Series>) -> Vec<Series> {
    match a.op {
        VectorOp::Topk | VectorOp::ApproxTopk => select_k(a, input, true),
        VectorOp::Bottomk => select_k(a, input, false),
        VectorOp::Sort | VectorOp::SortDesc => sort(a.op == VectorOp::SortDesc, input),
        op => groups(&input, a.grouping.as_ref())
            .into_iter()
            .map(|(labels, members)| {
                let steps = input.first().map_or(0, |s| s.values.len());
                let values =
                    (0..steps).map(|t| fold(op, members.iter().filter_map(|m| input[*m].values[t]))).collect();
                Series { labels, values }
            })
            .collect(),
    }
}

/// `None` for no values. Variance by Welford, population.
fn fold(op: VectorOp, values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut n, mut sum, mut mean, mut m2) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
    let (mut min, mut max) = (f64::NAN, f64::NAN);
    for v in values {
        n += 1.0;
        sum += v;
        let delta = v - mean;
        mean += delta / n;
        m2 += delta * (v - mean);
        if min.is_nan() || v < min {
            min = v;
        }
        if max.is_nan() || v > max {
            max = v;
        }
    }
    if n == 0.0 {
        return None;
    }
    Some(match op {
        VectorOp::Sum => sum,
        VectorOp::Avg if mean.is_finite() => mean,
        VectorOp::Avg => sum / n,
        VectorOp::Min => min,
        VectorOp::Max => max,
        VectorOp::Count => n,
        VectorOp::Stdvar => m2 / n,
        VectorOp::Stddev => (m2 / n).sqrt(),
        _ => return None,
    })
}

/// Keeps, at each step, the `k` largest or smallest of each group. NaN ranks last. The result is sorted for an instant.
fn select_k(a: &VectorAggregation, mut input: Vec<Series>, largest: bool) -> Vec<Series> {
    let k = a.parameter.unwrap_or(1);
    let steps = input.first().map_or(0, |s| s.values.len());
    for (_, members) in groups(&input, a.grouping.as_ref()) {
        for t in 0..steps {
            let mut ranked: Vec<(usize, f64)> =
                members.iter().filter_map(|m| input[*m].values[t].map(|v| (*m, v))).collect();
            if ranked.len() <= k {
                continue;
            }
            ranked.sort_by(|x, y| rank(x.1, y.1, largest));
            for (m, _) in &ranked[k..] {
                input[*m].values[t] = None;
            }
        }
    }
    input.retain(|s| s.values.iter().any(Option::is_some));
    sort(largest, input)
}

fn rank(x: f64, y: f64, descending: bool) -> std::cmp::Ordering {
    match (x.is_nan(), y.is_nan()) {
        (true, true) => std::cmp::Ordering::Equal,
        (true, false) => std::cmp::Ordering::Greater,
        (false, true) => std::cmp::Ordering::Less,
        _ if descending => y.total_cmp(&x),
        _ => x.total_cmp(&y),
    }
}

/// Orders the series of an instant by value; longer ones keep their order.
fn sort(descending: bool, mut input: Vec<Series>) -> Vec<Series> {
    if input.first().is_some_and(|s| s.values.len() == 1) {
        let value = |s: &Series| s.values[0].unwrap_or(f64::NAN);
        input.sort_by(|x, y| rank(value(x), value(y), descending));
    }
    input
}

/// Vector with scalar; `scalar_left` tells the side. A comparison without `bool` keeps the vector's value.
pub fn with_scalar(b: &Binary, mut vector: Vec<Series>, scalar: f64, scalar_left: bool) -> Vec<Series> {
    for s in &mut vector {
        for v in s.values.iter_mut().filter(|v| v.is_some()) {
            let x = v.unwrap_or_default();
            let out = if scalar_left { b.op.apply(scalar, x) } else { b.op.apply(x, scalar) };
            *v = if b.op.is_comparison() && !b.return_bool { (out != 0.0).then_some(x) } else { Some(out) };
        }
    }
    vector.retain(|s| s.values.iter().any(Option::is_some));
    vector
}

fn signature(labels: &Labels, m: &Matching) -> Labels {
    Pairs::from_iter(
        labels
            .iter()
            .filter(|(n, _)| m.labels.iter().any(|l| l == n) == m.on)
            .map(|(n, v)| (n.to_owned(), v.to_owned())),
    )
    .0
}

/// Series by signature.
fn by_signature(series: &[Series], m: &Matching) -> HashMap<Labels, Vec<usize>> {
    let mut out: HashMap<Labels, Vec<usize>> = HashMap::new();
    for (i, s) in series.iter().enumerate() {
        out.entry(signature(&s.labels, m)).or_default().push(i);
    }
    out
}

pub fn vectors(b: &Binary, left: Vec<Series>, right: Vec<Series>, steps: usize) -> Result<Vec<Series>, QueryError> {
    if b.op.is_set() { Ok(set(b, left, right, steps)) } else { matched(b, left, right, steps) }
}

fn set(b: &Binary, mut left: Vec<Series>, mut right: Vec<Series>, steps: usize) -> Vec<Series> {
    // Which signatures are present at each step.
    let presence = |series: &[Series]| {
        let mut out: HashMap<Labels, Vec<bool>> = HashMap::new();
        for s in series {
            let at = out.entry(signature(&s.labels, &b.matching)).or_insert_with(|| vec![false; steps]);
            for (p, v) in at.iter_mut().zip(&s.values) {
                *p |= v.is_some();
            }
        }
        out
    };
    let keep = |series: &mut Vec<Series>, other: &HashMap<Labels, Vec<bool>>, wanted: bool| {
        for s in series.iter_mut() {
            let there = other.get(&signature(&s.labels, &b.matching));
            for (t, v) in s.values.iter_mut().enumerate() {
                if there.is_some_and(|p| p[t]) != wanted {
                    *v = None;
                }
            }
        }
        series.retain(|s| s.values.iter().any(Option::is_some));
    };
    match b.op {
        BinaryOp::And => keep(&mut left, &presence(&right), true),
        BinaryOp::Unless => keep(&mut left, &presence(&right), false),
        _ => {
            keep(&mut right, &presence(&left), false);
            // One label set may come from the left at some steps and from the right at others.
            let index: HashMap<Labels, usize> = left.iter().enumerate().map(|(i, s)| (s.labels.clone(), i)).collect();
            for s in right {
                match index.get(&s.labels) {
                    Some(i) => {
                        for (a, b) in left[*i].values.iter_mut().zip(s.values) {
                            *a = a.or(b);
                        }
                    }
                    None => left.push(s),
                }
            }
        }
    }
    left
}

fn matched(b: &Binary, left: Vec<Series>, right: Vec<Series>, steps: usize) -> Result<Vec<Series>, QueryError> {
    let swapped = b.matching.card == Cardinality::OneToMany;
    let (many, one, one_side) = if swapped { (&right, &left, "left") } else { (&left, &right, "right") };
    let ones = by_signature(one, &b.matching);
    let mut out: Vec<Series> = Vec::new();
    let mut index: HashMap<Labels, usize> = HashMap::new();
    // For one to one: which left series took a signature at a step.
    let mut taken: HashMap<Labels, Vec<bool>> = HashMap::new();
    for t in 0..steps {
        for group in ones.values() {
            if group.iter().filter(|i| one[**i].values[t].is_some()).count() > 1 {
                return Err(QueryError::Matching(format!(
                    "found duplicate series on the {one_side} hand-side;many-to-many matching not allowed: matching labels must be unique on one side"
                )));
            }
        }
    }
    for m in many {
        let key = signature(&m.labels, &b.matching);
        let Some(group) = ones.get(&key) else { continue };
        for t in 0..steps {
            let Some(x) = m.values[t] else { continue };
            let Some((o, y)) = group.iter().find_map(|i| one[*i].values[t].map(|y| (*i, y))) else { continue };
            let (l, r) = if swapped { (y, x) } else { (x, y) };
            let value = b.op.apply(l, r);
            let value = if b.op.is_comparison() && !b.return_bool {
                if value == 0.0 { None } else { Some(l) }
            } else {
                Some(value)
            };
            if b.matching.card == Cardinality::OneToOne {
                let used = taken.entry(key.clone()).or_insert_with(|| vec![false; steps]);
                if std::mem::replace(&mut used[t], true) {
                    return Err(QueryError::Matching(
                        "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)"
                            .into(),
                    ));
                }
            }
            let Some(value) = value else { continue };
            let labels = result_labels(b, &m.labels, &one[o].labels);
            let at = *index.entry(labels).or_insert_with_key(|k| {
                out.push(Series { labels: k.clone(), values: vec![None; steps] });
                out.len() - 1
            });
            if out[at].values[t].replace(value).is_some() {
                return Err(QueryError::Matching(
                    "multiple matches for labels: grouping labels must ensure unique matches".into(),
                ));
            }
        }
    }
    Ok(out)
}

fn result_labels(b: &Binary, many: &Labels, one: &Labels) -> Labels {
    match b.matching.card {
        Cardinality::OneToOne => signature(many, &b.matching),
        _ => {
            let mut out = many.clone();
            for name in &b.matching.include {
                out.set(name, one.get(name).unwrap_or(""));
            }
            out
        }
    }
}

/// PromQL's `label_replace`; `regex` is anchored here.
pub fn label_replace(
    mut input: Vec<Series>,
    target: &str,
    replacement: &str,
    source: &str,
    regex: &str,
) -> Result<Vec<Series>, QueryError> {
    let regex = super::regex::compile(&format!("^(?s:{regex})$")).map_err(QueryError::parse)?;
    for s in &mut input {
        let value = s.labels.get(source).unwrap_or("").to_owned();
        if let Some(c) = regex.captures(&value) {
            let mut out = String::new();
            c.expand(&go_template(replacement), &mut out);
            s.labels.set(target, out);
        }
    }
    Ok(input)
}

/// Go expands `$1x` as the group named `1x`, which is empty, as the `regex` crate does; only `$$` and names are alike too.
fn go_template(replacement: &str) -> String {
    replacement.to_owned()
}
