//! How many samples each step of a query looks at, as Prometheus counts them: a selector's samples, one for each series
//! that has a value; all of a window; of a subquery, the values it gives. Native histograms count as one sample each.
//!
//! **For** statistics that someone asks for. They are a second reading: the query's selectors are counted by queries of
//! their own, so that a query nobody asks about pays nothing for it.

use storage::model::TenantId;

use super::{
    ast::{DurationKind, Edges, Expr, ExprKind},
    engine::{Engine, InstantRequest, RangeRequest, resolve},
    parser::parse,
    print,
    value::Value,
};
use crate::error::QueryError;

/// What one step looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    pub ts_ms: i64,
    pub samples: u64,
    /// Those of them that the step before did not have.
    pub read: u64,
}

/// What counts the samples of one selector.
struct Counting {
    query: String,
    /// The same for what is new in each step but the first.
    new: Option<String>,
    /// All steps look at the same.
    fixed: bool,
}

impl Engine {
    /// The one step of an instant query.
    pub async fn count_instant(
        &self,
        tenant: &TenantId,
        request: &InstantRequest,
    ) -> Result<Vec<Counted>, QueryError> {
        let mut samples = 0;
        for counting in countings(&request.query, (request.time_ms, request.time_ms, 0))? {
            let output = self.instant(tenant, InstantRequest { query: counting.query, ..request.clone() }).await?;
            if let Value::Vector { samples: found, .. } = output.value {
                samples += found.iter().filter_map(|s| s.point.float()).sum::<f64>() as u64;
            }
        }
        Ok(vec![Counted { ts_ms: request.time_ms, samples, read: samples }])
    }

    /// The steps of a range query, in order.
    pub async fn count_range(&self, tenant: &TenantId, request: &RangeRequest) -> Result<Vec<Counted>, QueryError> {
        let times = (request.start_ms, request.end_ms, request.step_ms);
        let countings = countings(&request.query, times)?;
        let mut out: Vec<Counted> = (request.start_ms..=request.end_ms)
            .step_by(usize::try_from(request.step_ms).unwrap_or(usize::MAX))
            .map(|ts_ms| Counted { ts_ms, samples: 0, read: 0 })
            .collect();
        for counting in countings {
            let all = self.by_step(tenant, request, counting.query).await?;
            let new = match counting.new {
                Some(query) => Some(self.by_step(tenant, request, query).await?),
                None => None,
            };
            for (i, samples) in all {
                let Some(step) = out.get_mut(i) else { continue };
                step.samples += samples;
                if i == 0 || (new.is_none() && !counting.fixed) {
                    step.read += samples;
                }
            }
            for (i, samples) in new.into_iter().flatten().filter(|(i, _)| *i > 0) {
                if let Some(step) = out.get_mut(i) {
                    step.read += samples;
                }
            }
        }
        Ok(out)
    }

    /// Numbers of steps, and the value there.
    async fn by_step(
        &self,
        tenant: &TenantId,
        request: &RangeRequest,
        query: String,
    ) -> Result<Vec<(usize, u64)>, QueryError> {
        let output = self.range(tenant, RangeRequest { query, ..request.clone() }).await?;
        let Value::Matrix(series) = output.value else { return Ok(Vec::new()) };
        let number = |ts_ms: i64| usize::try_from((ts_ms - request.start_ms) / request.step_ms).unwrap_or(usize::MAX);
        let points = series.iter().flat_map(|s| &s.points);
        Ok(points.filter_map(|(ts_ms, p)| Some((number(*ts_ms), p.float()? as u64))).collect())
    }
}

fn countings(query: &str, times: (i64, i64, i64)) -> Result<Vec<Counting>, QueryError> {
    let mut expr = parse(query)?;
    resolve(query, &mut expr, times)?;
    let mut out = Vec::new();
    collect(query, &expr, times.2, &mut out);
    Ok(out)
}

/// As [`Expr::walk`], but for what is below a subquery, and for info series, which are joined rather than looked at.
fn collect(query: &str, expr: &Expr, step_ms: i64, out: &mut Vec<Counting>) {
    let text = |e: &Expr| print::line(query, e);
    match &expr.kind {
        ExprKind::Number(_) | ExprKind::String(_) => {}
        ExprKind::Paren(e) | ExprKind::Unary { operand: e, .. } => collect(query, e, step_ms, out),
        ExprKind::Binary(b) => {
            collect(query, &b.left, step_ms, out);
            collect(query, &b.right, step_ms, out);
        }
        ExprKind::Aggregate(a) => {
            a.parameter.iter().for_each(|p| collect(query, p, step_ms, out));
            collect(query, &a.operand, step_ms, out);
        }
        ExprKind::Call { function, args } => {
            let joined = usize::from(function.name == "info");
            args.iter().take(args.len() - joined.min(args.len().saturating_sub(1))).for_each(|a| {
                collect(query, a, step_ms, out);
            });
        }
        ExprKind::Selector(s) => {
            out.push(Counting { query: format!("count({})", text(expr)), new: None, fixed: s.at.is_some() });
        }
        ExprKind::Range { .. } | ExprKind::Subquery(_) => {
            let mut window = expr.clone();
            let (range, fixed) = match &mut window.kind {
                ExprKind::Range { selector, range } => {
                    // What lies beyond the window is not counted.
                    selector.edges = Edges::Plain;
                    (range, selector.at.is_some())
                }
                ExprKind::Subquery(s) => (&mut s.range, s.at.is_some()),
                _ => return,
            };
            let step_s = step_ms as f64 / 1000.0;
            let overlaps = step_ms > 0 && matches!(range.kind, DurationKind::Seconds(s) if s > step_s);
            let whole = range.kind.clone();
            range.kind = DurationKind::Seconds(step_s);
            let count = |e: &Expr| format!("sum(count_over_time({}))", text(e));
            let new = (overlaps && !fixed).then(|| count(&window));
            match &mut window.kind {
                ExprKind::Range { range, .. } => range.kind = whole,
                ExprKind::Subquery(s) => s.range.kind = whole,
                _ => {}
            }
            out.push(Counting { query: count(&window), new, fixed });
        }
    }
}
