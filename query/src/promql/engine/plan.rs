//! What a checked tree needs before it is evaluated: numbers in the place of times that are expressions, and of each selector
//! the samples to read and whether its leaf can be evaluated as they are.

use std::collections::HashSet;

use crate::{
    error::QueryError,
    promql::{
        ast::{AggregateOp, At, BinaryOp, Duration, DurationKind, Edges, Expr, ExprKind, Selector},
        eval::{self, Leaf},
    },
    recent::Wanted,
    syntax::Span,
};

/// Samples that a selector needs.
pub(in crate::promql) struct Need {
    pub selector: Selector,
    /// Closed interval of sample times, ms.
    pub from: i64,
    pub to: i64,
    /// What is computed of them while they are read, where nothing else is.
    pub leaf: Option<Leaf>,
    /// An aggregation takes the leaf's values, which looks at other labels than the name.
    pub(super) grouped: bool,
}

impl Need {
    pub(super) fn wanted(&self, at_ms: i64) -> Wanted {
        Wanted { matchers: self.selector.matchers.clone(), from_ms: self.from, to_ms: self.to, at_ms }
    }
}

/// Notes of each need whether its selector can be evaluated as it is read.
pub(super) fn leaves(expr: &Expr, needs: &mut [Need]) {
    let note = |s: &Selector, leaf: Leaf, needs: &mut [Need]| {
        if s.at.is_none()
            && s.edges == Edges::Plain
            && let Some(need) = needs.iter_mut().find(|n| n.selector.id == s.id)
        {
            need.leaf = Some(leaf);
        }
    };
    match &expr.kind {
        // Steps of a subquery are its own.
        ExprKind::Number(_) | ExprKind::String(_) | ExprKind::Range { .. } | ExprKind::Subquery(_) => {}
        ExprKind::Paren(e) | ExprKind::Unary { operand: e, .. } => leaves(e, needs),
        ExprKind::Binary(b) => {
            leaves(&b.left, needs);
            leaves(&b.right, needs);
        }
        ExprKind::Aggregate(a) => {
            a.parameter.iter().for_each(|p| leaves(p, needs));
            leaves(&a.operand, needs);
            // The others make labels of all labels, or choose by them.
            let groups = !matches!(a.op, AggregateOp::CountValues | AggregateOp::LimitRatio);
            if groups
                && !a.grouping.iter().any(|name| name == "__name__")
                && let ExprKind::Call { args, .. } = &a.operand.inner().kind
                && let Some(ExprKind::Range { selector, .. }) = args.first().map(|a| &a.inner().kind)
            {
                needs.iter_mut().filter(|n| n.selector.id == selector.id).for_each(|n| n.grouped = true);
            }
        }
        ExprKind::Selector(s) => note(s, Leaf::Instant(expr.span), needs),
        ExprKind::Call { function, args } => {
            if eval::is_plain(function.name) {
                if let ExprKind::Range { selector, range } = &args[0].inner().kind {
                    let leaf = Leaf::Function { name: function.name, range: range.clone(), span: args[0].span };
                    note(selector, leaf, needs);
                }
                return;
            }
            // These read the samples' own times, or look at labels of selectors.
            if !matches!(function.name, "timestamp" | "start_timestamp" | "info") {
                args.iter().for_each(|a| leaves(a, needs));
            }
        }
    }
}

/// Whether start times are asked for by name.
pub(super) fn asks_for_starts(expr: &Expr) -> bool {
    let mut found = false;
    expr.walk(&mut |e| {
        found |= matches!(&e.kind, ExprKind::Call { function, .. } if function.name == "start_timestamp");
    });
    found
}

/// Puts numbers in the place of duration expressions, `@ start()` and `@ end()`.
pub(super) fn resolve(query: &str, expr: &mut Expr, times: (i64, i64, i64)) -> Result<(), QueryError> {
    let selector = |s: &mut Selector| {
        s.at = s.at.map(|at| fixed(at, times));
        if let Some(offset) = &mut s.offset {
            set(query, offset, times, false)?;
        }
        Ok::<_, QueryError>(())
    };
    match &mut expr.kind {
        ExprKind::Number(_) | ExprKind::String(_) => Ok(()),
        ExprKind::Paren(e) | ExprKind::Unary { operand: e, .. } => resolve(query, e, times),
        ExprKind::Binary(b) => {
            resolve(query, &mut b.left, times)?;
            resolve(query, &mut b.right, times)
        }
        ExprKind::Aggregate(a) => {
            if let Some(p) = &mut a.parameter {
                resolve(query, p, times)?;
            }
            resolve(query, &mut a.operand, times)
        }
        ExprKind::Call { function, args } => {
            if function.name == "info" {
                resolve(query, &mut args[0], times)?;
                complete_info(args);
            }
            args.iter_mut().try_for_each(|a| resolve(query, a, times))
        }
        ExprKind::Selector(s) => selector(s),
        ExprKind::Range { selector: s, range } => {
            selector(s)?;
            set(query, range, times, true)
        }
        ExprKind::Subquery(s) => {
            s.at = s.at.map(|at| fixed(at, times));
            set(query, &mut s.range, times, true)?;
            if let Some(step) = &mut s.step {
                set(query, step, times, true)?;
            }
            if let Some(offset) = &mut s.offset {
                set(query, offset, times, false)?;
            }
            resolve(query, &mut s.expr, times)
        }
    }
}

/// Info series are read at the times at which the selector they are joined to is.
fn complete_info(args: &mut [Expr]) {
    let Some(base) = args.first() else { return };
    let Some((at, offset_ms)) = reference(base) else { return };
    let span = base.span;
    if let Some(ExprKind::Selector(info)) = args.get_mut(1).map(|a| &mut a.kind) {
        info.at = at;
        info.offset = Some(Duration { kind: DurationKind::Seconds(offset_ms as f64 / 1000.0), span });
    }
}

/// Where `@` and offsets (ms) on the way to the first selector of a resolved expression move its time.
fn reference(expr: &Expr) -> Option<(Option<At>, i64)> {
    let moved = |at: Option<At>, offset: &Option<Duration>| (at, offset.as_ref().map_or(0, eval::millis));
    match &expr.kind {
        ExprKind::Number(_) | ExprKind::String(_) => None,
        ExprKind::Paren(e) | ExprKind::Unary { operand: e, .. } => reference(e),
        ExprKind::Binary(b) => reference(&b.left).or_else(|| reference(&b.right)),
        ExprKind::Aggregate(a) => reference(&a.operand),
        ExprKind::Call { args, .. } => args.iter().find_map(reference),
        ExprKind::Selector(s) | ExprKind::Range { selector: s, .. } => Some(moved(s.at, &s.offset)),
        ExprKind::Subquery(s) => {
            let (inner_at, inner_offset) = reference(&s.expr)?;
            let (at, offset) = moved(s.at, &s.offset);
            // A fixed time inside does not move with what is around it.
            Some(if inner_at.is_some() { (inner_at, inner_offset) } else { (at, offset + inner_offset) })
        }
    }
}

fn fixed(at: At, times: (i64, i64, i64)) -> At {
    match at {
        At::Millis(t) => At::Millis(t),
        At::Start => At::Millis(times.0),
        At::End => At::Millis(times.1),
    }
}

fn set(query: &str, d: &mut Duration, times: (i64, i64, i64), positive: bool) -> Result<(), QueryError> {
    let seconds = duration_seconds(query, d, times)?;
    let error = |m: &str| Err(QueryError::Syntax(crate::syntax::SyntaxError::new(query, d.span, m)));
    if positive && seconds < 0.001 {
        return error("duration must be greater than 0");
    }
    // A thousand years; sums of it stay far from the ends of i64.
    if seconds.is_nan() || seconds.abs() > 1000.0 * 365.0 * 86_400.0 {
        return error("duration out of range");
    }
    d.kind = DurationKind::Seconds(seconds);
    Ok(())
}

fn duration_seconds(query: &str, d: &Duration, times: (i64, i64, i64)) -> Result<f64, QueryError> {
    let value = |d: &Duration| duration_seconds(query, d, times);
    let error = |at: Span, m: &str| Err(QueryError::Syntax(crate::syntax::SyntaxError::new(query, at, m)));
    Ok(match &d.kind {
        DurationKind::Seconds(s) => *s,
        DurationKind::Step => times.2 as f64 / 1000.0,
        DurationKind::Range => (times.1 - times.0) as f64 / 1000.0,
        DurationKind::Negate(d) => -value(d)?,
        DurationKind::Least(a, b) => value(a)?.min(value(b)?),
        DurationKind::Greatest(a, b) => value(a)?.max(value(b)?),
        DurationKind::Binary(op, a, b) => {
            let (a, b) = (value(a)?, value(b)?);
            match op {
                BinaryOp::Add => a + b,
                BinaryOp::Sub => a - b,
                BinaryOp::Mul => a * b,
                BinaryOp::Div if b == 0.0 => return error(d.span, "division by zero"),
                BinaryOp::Mod if b == 0.0 => return error(d.span, "modulo by zero"),
                BinaryOp::Div => a / b,
                BinaryOp::Mod => a % b,
                BinaryOp::Pow => a.powf(b),
                _ => return error(d.span, "unexpected operator in duration expression"),
            }
        }
    })
}

/// Selectors of which only counts and sums of histograms are asked for. Prometheus reads those with an iterator that tells
/// every reset, which aggregations can then warn of.
pub(super) fn of_stats(expr: &Expr, inside: bool, out: &mut HashSet<usize>) {
    match &expr.kind {
        ExprKind::Number(_) | ExprKind::String(_) => {}
        ExprKind::Paren(e) | ExprKind::Unary { operand: e, .. } => of_stats(e, inside, out),
        ExprKind::Binary(b) => {
            of_stats(&b.left, inside, out);
            of_stats(&b.right, inside, out);
        }
        ExprKind::Aggregate(a) => of_stats(&a.operand, inside, out),
        ExprKind::Call { function, args } => {
            let inside = match function.name {
                "histogram_count" | "histogram_sum" | "histogram_avg" => true,
                "histogram_quantile" | "histogram_quantiles" | "histogram_fraction" => false,
                _ => inside,
            };
            args.iter().for_each(|a| of_stats(a, inside, out));
        }
        ExprKind::Selector(s) | ExprKind::Range { selector: s, .. } => {
            if inside {
                out.insert(s.id);
            }
        }
        ExprKind::Subquery(s) => of_stats(&s.expr, false, out),
    }
}

/// What each selector needs, by its id: the closed interval of sample times for evaluation times in `times`.
pub(super) fn plan(expr: &Expr, times: (i64, i64), lookback: i64, out: &mut Vec<Need>) {
    let moved = |at: Option<At>, offset: Option<&Duration>| {
        let (from, to) = match at {
            Some(At::Millis(t)) => (t, t),
            _ => times,
        };
        let offset = offset.map_or(0, eval::millis);
        (from - offset, to - offset)
    };
    let mut go = |e: &Expr| plan(e, times, lookback, out);
    match &expr.kind {
        ExprKind::Number(_) | ExprKind::String(_) => {}
        ExprKind::Paren(e) | ExprKind::Unary { operand: e, .. } => go(e),
        ExprKind::Binary(b) => {
            go(&b.left);
            go(&b.right);
        }
        ExprKind::Aggregate(a) => {
            if let Some(p) = &a.parameter {
                go(p);
            }
            go(&a.operand);
        }
        ExprKind::Call { args, .. } => args.iter().for_each(go),
        ExprKind::Selector(s) => {
            let (from, to) = moved(s.at, s.offset.as_ref());
            let to = if s.edges == Edges::Smoothed { to + lookback } else { to };
            out.push(Need { selector: s.clone(), from: from - lookback + 1, to, leaf: None, grouped: false });
        }
        ExprKind::Range { selector: s, range } => {
            let (from, to) = moved(s.at, s.offset.as_ref());
            let (before, after) = match s.edges {
                Edges::Plain => (0, 0),
                Edges::Anchored => (lookback, 0),
                Edges::Smoothed => (lookback, lookback),
            };
            let from = from - eval::millis(range) - before + 1;
            out.push(Need { selector: s.clone(), from, to: to + after, leaf: None, grouped: false });
        }
        ExprKind::Subquery(s) => {
            let (from, to) = moved(s.at, s.offset.as_ref());
            plan(&s.expr, (from - eval::millis(&s.range), to), lookback, out);
        }
    }
}
