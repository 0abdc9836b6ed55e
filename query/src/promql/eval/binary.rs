//! Binary operators: on numbers, on elements, and the matching of vectors.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use storage::model::Labels;

use super::{Evaluator, Series, Steps, Values, fail, join_same_labels, native, without_empty};
use crate::{
    error::QueryError,
    promql::{
        ast::{Binary, BinaryOp, Cardinality, Matching},
        histogram::Histogram,
        value::Point,
    },
    syntax::Span,
};

/// Arithmetic on two numbers; comparisons give 0 or 1.
fn number(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        // Rust's `%` is C's `fmod`.
        BinaryOp::Mod => a % b,
        BinaryOp::Pow => a.powf(b),
        BinaryOp::Atan2 => a.atan2(b),
        _ => f64::from(u8::from(compare(op, a, b))),
    }
}

fn compare(op: BinaryOp, a: f64, b: f64) -> bool {
    match op {
        BinaryOp::Eq => a == b,
        BinaryOp::Ne => a != b,
        BinaryOp::Lt => a < b,
        BinaryOp::Le => a <= b,
        BinaryOp::Gt => a > b,
        BinaryOp::Ge => a >= b,
        _ => false,
    }
}

/// Comparisons that filter keep the metric name, and so does trimming.
fn drops_name(b: &Binary) -> bool {
    b.returns_bool || !(b.op.is_comparison() || matches!(b.op, BinaryOp::TrimLower | BinaryOp::TrimUpper))
}

/// An element's result: whether it stays, and its value.
enum Outcome {
    Kept(Point),
    /// A comparison that is false; the value it would have kept.
    Filtered,
    /// The operator does not take these operands.
    Incompatible,
}

impl Evaluator {
    pub(super) fn binary(&self, b: &Binary, span: Span, steps: &Steps) -> Result<Values, QueryError> {
        let left = self.eval(&b.left, steps)?;
        let right = self.eval(&b.right, steps)?;
        match (left, right) {
            (Values::Scalar(a), Values::Scalar(c)) => {
                Ok(Values::Scalar(a.iter().zip(&c).map(|(a, c)| number(b.op, *a, *c)).collect()))
            }
            (Values::Vector(v), Values::Scalar(s)) => self.with_scalar(b, span, v, &s, false).map(Values::Vector),
            (Values::Scalar(s), Values::Vector(v)) => self.with_scalar(b, span, v, &s, true).map(Values::Vector),
            (Values::Vector(l), Values::Vector(r)) if b.op.is_set() => {
                self.set_operation(b, l, r, steps).map(Values::Vector)
            }
            (Values::Vector(l), Values::Vector(r)) => self.matched(b, span, &l, &r, steps).map(Values::Vector),
            _ => Err(QueryError::Internal("operands of a binary operator are checked".into())),
        }
    }

    /// One element. A filter comparison keeps the left operand.
    fn element(&self, op: BinaryOp, span: Span, left: &Point, right: &Point) -> Outcome {
        let kept = |h: Histogram| Outcome::Kept(native::point(h));
        match (left, right) {
            (Point::Float(a), Point::Float(b)) => match op {
                BinaryOp::TrimLower | BinaryOp::TrimUpper => self.incompatible(op, span, left, right),
                _ if op.is_comparison() => {
                    if compare(op, *a, *b) {
                        Outcome::Kept(Point::Float(*a))
                    } else {
                        Outcome::Filtered
                    }
                }
                _ => Outcome::Kept(Point::Float(number(op, *a, *b))),
            },
            (Point::Float(a), Point::Histogram(h)) if op == BinaryOp::Mul => kept(Histogram::clone(h).scaled(*a)),
            (Point::Histogram(h), Point::Float(b)) => match op {
                BinaryOp::Mul => kept(Histogram::clone(h).scaled(*b)),
                BinaryOp::Div => kept(Histogram::clone(h).divided(*b)),
                BinaryOp::TrimUpper => kept(native::trim(h, *b, true)),
                BinaryOp::TrimLower => kept(native::trim(h, *b, false)),
                _ => self.incompatible(op, span, left, right),
            },
            (Point::Histogram(a), Point::Histogram(b)) => match op {
                BinaryOp::Add | BinaryOp::Sub => {
                    let mut out = Histogram::clone(a);
                    let (joined, what) =
                        if op == BinaryOp::Add { (out.add(b), "addition") } else { (out.sub(b), "subtraction") };
                    match joined {
                        Ok(joined) => {
                            if joined.reset_collision {
                                self.warn(span, &format!("conflicting counter resets during histogram {what}"));
                            }
                            if joined.bounds_reconciled {
                                self.info(span, &format!("mismatched custom buckets were reconciled during {what}"));
                            }
                            kept(out)
                        }
                        Err(_) => {
                            let symbol = op.symbol();
                            self.warn(
                                span,
                                &format!("incompatible bucket layout encountered for binary operator {symbol}"),
                            );
                            Outcome::Incompatible
                        }
                    }
                }
                BinaryOp::Eq | BinaryOp::Ne => {
                    if a.same_as(b) == (op == BinaryOp::Eq) {
                        Outcome::Kept(left.clone())
                    } else {
                        Outcome::Filtered
                    }
                }
                _ => self.incompatible(op, span, left, right),
            },
            _ => self.incompatible(op, span, left, right),
        }
    }

    fn incompatible(&self, op: BinaryOp, span: Span, left: &Point, right: &Point) -> Outcome {
        let name = |p: &Point| if p.histogram().is_some() { "histogram" } else { "float" };
        let symbol = op.symbol();
        self.info(
            span,
            &format!(
                "incompatible sample types encountered for binary operator {symbol:?}: {} {symbol} {}",
                name(left),
                name(right)
            ),
        );
        Outcome::Incompatible
    }

    fn with_scalar(
        &self,
        b: &Binary,
        span: Span,
        vector: Vec<Series>,
        scalar: &[f64],
        scalar_first: bool,
    ) -> Result<Vec<Series>, QueryError> {
        let drops_name = drops_name(b);
        let mut out = Vec::with_capacity(vector.len());
        for mut s in vector {
            for (point, scalar) in s.points.iter_mut().zip(scalar) {
                if !point.is_some() {
                    continue;
                }
                let value = std::mem::take(point);
                let number = Point::Float(*scalar);
                let outcome = if scalar_first {
                    self.element(b.op, span, &number, &value)
                } else {
                    self.element(b.op, span, &value, &number)
                };
                *point = match outcome {
                    Outcome::Incompatible => Point::None,
                    Outcome::Kept(_) if b.returns_bool => Point::Float(1.0),
                    Outcome::Filtered if b.returns_bool => Point::Float(0.0),
                    Outcome::Filtered => Point::None,
                    // The vector's value stays, on whichever side it stands.
                    Outcome::Kept(_) if b.op.is_comparison() => value,
                    Outcome::Kept(result) => result,
                };
            }
            if drops_name {
                s.labels = self.without_name(&s.labels);
            }
            out.push(s);
        }
        join_same_labels(without_empty(out))
    }

    fn set_operation(
        &self,
        b: &Binary,
        left: Vec<Series>,
        right: Vec<Series>,
        steps: &Steps,
    ) -> Result<Vec<Series>, QueryError> {
        let mut signatures = Signatures::new(&b.matching, self.drop_type_and_unit);
        let left_ids: Vec<usize> = left.iter().map(|s| signatures.id(&s.labels)).collect();
        let right_ids: Vec<usize> = right.iter().map(|s| signatures.id(&s.labels)).collect();
        // [signatures x steps]: whether the other side has an element.
        let presence = |series: &[Series], ids: &[usize]| {
            let mut out = vec![false; signatures.len() * steps.count];
            for (s, id) in series.iter().zip(ids) {
                let row = &mut out[id * steps.count..(id + 1) * steps.count];
                row.iter_mut().zip(&s.points).for_each(|(o, p)| *o |= p.is_some());
            }
            out
        };
        let keep = |mut series: Vec<Series>, ids: &[usize], other: &[bool], when: bool| {
            for (s, id) in series.iter_mut().zip(ids) {
                let row = &other[id * steps.count..(id + 1) * steps.count];
                for (p, present) in s.points.iter_mut().zip(row) {
                    if *present != when {
                        *p = Point::None;
                    }
                }
            }
            without_empty(series)
        };
        let out = match b.op {
            BinaryOp::And => {
                let other = presence(&right, &right_ids);
                keep(left, &left_ids, &other, true)
            }
            BinaryOp::Unless => {
                let other = presence(&right, &right_ids);
                keep(left, &left_ids, &other, false)
            }
            _ => {
                let other = presence(&left, &left_ids);
                let mut out = left;
                out.extend(keep(right, &right_ids, &other, false));
                out
            }
        };
        join_same_labels(out)
    }

    fn matched(
        &self,
        b: &Binary,
        span: Span,
        left: &[Series],
        right: &[Series],
        steps: &Steps,
    ) -> Result<Vec<Series>, QueryError> {
        let matching = &b.matching;
        let swapped = matching.cardinality == Cardinality::OneToMany;
        // From here on the right side is the "one" side.
        let (many, one) = if swapped { (right, left) } else { (left, right) };
        // Prometheus fills by the exchanged sides, too: with group_right the left value is that of the "many" side.
        let (fill_many, fill_one) = matching.fill;
        if (many.is_empty() && fill_many.is_none()) || (one.is_empty() && fill_one.is_none()) {
            return Ok(Vec::new());
        }
        let mut signatures = Signatures::new(matching, self.drop_type_and_unit);
        let many_ids: Vec<usize> = many.iter().map(|s| signatures.id(&s.labels)).collect();
        let one_ids: Vec<usize> = one.iter().map(|s| signatures.id(&s.labels)).collect();
        let mut results = Results { index: HashMap::new(), series: Vec::new(), steps: steps.count };
        let mut pairs: HashMap<(usize, usize), usize> = HashMap::new();
        let one_to_one = matching.cardinality == Cardinality::OneToOne;
        const NOBODY: usize = usize::MAX;
        for i in 0..steps.count {
            if i % 64 == 0 {
                self.alive()?;
            }
            if (fill_many.is_none() && !many.iter().any(|s| s.points[i].is_some()))
                || (fill_one.is_none() && !one.iter().any(|s| s.points[i].is_some()))
            {
                continue;
            }
            let mut one_of: Vec<usize> = vec![NOBODY; signatures.len()];
            for (n, s) in one.iter().enumerate() {
                if !s.points[i].is_some() {
                    continue;
                }
                let slot = &mut one_of[one_ids[n]];
                if *slot != NOBODY {
                    let side = if swapped { "left" } else { "right" };
                    return fail(format!(
                        "found duplicate series for the match group {} on the {side} hand-side of the operation: \
                         [{}, {}];many-to-many matching not allowed: matching labels must be unique on one side",
                        signatures.group(&s.labels),
                        one[*slot].labels,
                        s.labels
                    ));
                }
                *slot = n;
            }
            let mut matched_once = vec![false; signatures.len()];
            let mut inserted: HashSet<usize> = HashSet::new();
            let mut emit = |m: usize, o: usize, id: usize| -> Result<(), QueryError> {
                let filled_many = fill_many.map(Point::Float).unwrap_or_default();
                let filled_one = fill_one.map(Point::Float).unwrap_or_default();
                let many_point = if m == NOBODY { &filled_many } else { &many[m].points[i] };
                let one_point = if o == NOBODY { &filled_one } else { &one[o].points[i] };
                let outcome = if swapped {
                    self.element(b.op, span, one_point, many_point)
                } else {
                    self.element(b.op, span, many_point, one_point)
                };
                if one_to_one && std::mem::replace(&mut matched_once[id], true) {
                    return fail(
                        "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)",
                    );
                }
                let result = match pairs.get(&(m, o)) {
                    Some(r) => *r,
                    None => {
                        // A filled element has the labels of its match group.
                        let group = |n: usize, of: &[Series], other: &Arc<Labels>| {
                            if n == NOBODY { Arc::new(signatures.group(other)) } else { of[n].labels.clone() }
                        };
                        let many_labels =
                            if m == NOBODY { group(m, many, &one[o].labels) } else { many[m].labels.clone() };
                        let one_labels =
                            if o == NOBODY { group(o, one, &many[m].labels) } else { one[o].labels.clone() };
                        let labels = self.result_labels(b, &many_labels, &one_labels);
                        let r = results.slot(labels);
                        pairs.insert((m, o), r);
                        r
                    }
                };
                if !one_to_one && !inserted.insert(result) {
                    return fail("multiple matches for labels: grouping labels must ensure unique matches");
                }
                let point = match outcome {
                    Outcome::Incompatible => return Ok(()),
                    Outcome::Kept(_) if b.returns_bool => Point::Float(1.0),
                    Outcome::Filtered if b.returns_bool => Point::Float(0.0),
                    Outcome::Filtered => return Ok(()),
                    Outcome::Kept(p) => p,
                };
                results.set(result, i, point)
            };
            let mut used = vec![false; signatures.len()];
            for (m, s) in many.iter().enumerate() {
                if !s.points[i].is_some() {
                    continue;
                }
                let id = many_ids[m];
                used[id] = true;
                let o = one_of[id];
                if o != NOBODY || fill_one.is_some() {
                    emit(m, o, id)?;
                }
            }
            if fill_many.is_some() {
                for (o, s) in one.iter().enumerate() {
                    if s.points[i].is_some() && !used[one_ids[o]] {
                        emit(NOBODY, o, one_ids[o])?;
                    }
                }
            }
        }
        self.charge(results.series.len().saturating_mul(steps.count))?;
        Ok(without_empty(results.series))
    }

    fn result_labels(&self, b: &Binary, many: &Arc<Labels>, one: &Arc<Labels>) -> Arc<Labels> {
        let matching = &b.matching;
        let mut base = many.clone();
        if drops_name(b) {
            base = self.without_name(many);
        }
        let mut out = if matching.cardinality == Cardinality::OneToOne {
            if !matching.on && matching.labels.is_empty() {
                return base;
            }
            base.iter().filter(|(n, _)| matching.labels.iter().any(|l| l == n) == matching.on).collect()
        } else {
            Labels::clone(&base)
        };
        for name in &matching.include {
            out.set(name, one.get(name).unwrap_or(""));
        }
        Arc::new(out)
    }
}

/// Result series by their labels.
struct Results {
    index: HashMap<Arc<Labels>, usize>,
    series: Vec<Series>,
    steps: usize,
}

impl Results {
    fn slot(&mut self, labels: Arc<Labels>) -> usize {
        if let Some(i) = self.index.get(&labels) {
            return *i;
        }
        self.index.insert(labels.clone(), self.series.len());
        self.series.push(Series { labels, points: vec![Point::None; self.steps] });
        self.series.len() - 1
    }

    fn set(&mut self, slot: usize, step: usize, point: Point) -> Result<(), QueryError> {
        let into = &mut self.series[slot].points[step];
        if into.is_some() {
            return fail(super::SAME_LABELS);
        }
        *into = point;
        Ok(())
    }
}

/// Numbers label sets by the labels that matching looks at.
struct Signatures<'a> {
    matching: &'a Matching,
    /// `__type__` and `__unit__` go with the name. Not where labels to ignore are written out: those alone are ignored.
    typed: bool,
    ids: HashMap<Labels, usize>,
}

impl<'a> Signatures<'a> {
    fn new(matching: &'a Matching, typed: bool) -> Self {
        Signatures { matching, typed: typed && !matching.explicit, ids: HashMap::new() }
    }

    /// The labels that matching looks at.
    fn group(&self, labels: &Labels) -> Labels {
        let named = |n: &str| self.matching.labels.iter().any(|l| l == n);
        if self.matching.on {
            labels.iter().filter(|(n, _)| named(n)).collect()
        } else {
            let of_name = |n: &str| n == "__name__" || (self.typed && (n == "__type__" || n == "__unit__"));
            labels.iter().filter(|(n, _)| !of_name(n) && !named(n)).collect()
        }
    }

    fn id(&mut self, labels: &Labels) -> usize {
        let next = self.ids.len();
        *self.ids.entry(self.group(labels)).or_insert(next)
    }

    fn len(&self) -> usize {
        self.ids.len()
    }
}
