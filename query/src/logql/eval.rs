//! Metric expressions over steps, and the context a query runs in.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use storage::{
    ScanStats, Store,
    model::{Labels, TenantId, TimeRange},
};

use super::{
    ast::{Grouping, Metric, RangeOp, VectorOp},
    error::QueryError,
    limits,
    range::{self, GroupBy, Steps},
    vector::{self, Sample, Series},
};
use crate::limits::TenantLimits;

/// Where a query runs, until when, and what it cost.
pub struct Context {
    pub store: Store,
    pub tenant: TenantId,
    /// Set when nobody waits for the answer.
    pub cancelled: Arc<AtomicBool>,
    pub deadline: Instant,
    /// Of this tenant.
    bounds: TenantLimits,
    scans: Mutex<Vec<Arc<ScanStats>>>,
}

impl Context {
    pub fn new(store: Store, tenant: TenantId, deadline: Instant) -> Self {
        Context {
            store,
            tenant,
            cancelled: Arc::new(AtomicBool::new(false)),
            deadline,
            bounds: TenantLimits::default(),
            scans: Mutex::new(Vec::new()),
        }
    }

    /// With the bounds of its tenant.
    pub fn within(mut self, bounds: &TenantLimits) -> Self {
        self.bounds = bounds.clone();
        self
    }

    /// Errors when the tenant may not read so much time at once.
    pub fn check_range(&self, range: TimeRange) -> Result<(), QueryError> {
        let nanos = range.end().nanos().saturating_sub(range.start().nanos());
        self.bounds.check_range(nanos).map_err(QueryError::Invalid)
    }

    /// Remembers the statistics of a scan.
    pub fn watch(&self, stats: &Arc<ScanStats>) {
        self.scans.lock().push(stats.clone());
    }

    pub fn scans(&self) -> Vec<Arc<ScanStats>> {
        self.scans.lock().clone()
    }

    /// Errors when the query should stop.
    pub fn check(&self) -> Result<(), QueryError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(QueryError::Cancelled);
        }
        if Instant::now() >= self.deadline {
            return Err(QueryError::Deadline);
        }
        Ok(())
    }
}

/// What a metric query gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Scalar(f64),
    Vector(Vec<Sample>),
    Matrix(Vec<Series>),
}

/// A metric expression at one instant, nanoseconds.
pub async fn instant(ctx: &Context, metric: &Metric, time: i64) -> Result<Value, QueryError> {
    match evaluate(ctx, metric, Steps::instant(time)).await? {
        Partial::Scalar(v) => Ok(Value::Scalar(v)),
        Partial::Series(series) => {
            limit(ctx, &series)?;
            let ordered = is_ordered(metric);
            let mut out: Vec<Sample> = series
                .into_iter()
                .filter_map(|s| s.values[0].map(|value| Sample { labels: s.labels, value }))
                .collect();
            if !ordered {
                out.sort_by(|a, b| a.labels.cmp(&b.labels));
            }
            Ok(Value::Vector(out))
        }
    }
}

/// A metric expression at each step. A scalar becomes one series without labels.
pub async fn range_query(ctx: &Context, metric: &Metric, steps: Steps) -> Result<Value, QueryError> {
    let mut series = match evaluate(ctx, metric, steps).await? {
        Partial::Scalar(v) => vec![constant(v, steps)],
        Partial::Series(s) => s,
    };
    limit(ctx, &series)?;
    series.sort_by(|a, b| a.labels.cmp(&b.labels));
    Ok(Value::Matrix(series))
}

fn limit(ctx: &Context, series: &[Series]) -> Result<(), QueryError> {
    let max = ctx.bounds.series_max.map_or(limits::SERIES_MAX, |n| n.min(limits::SERIES_MAX));
    if series.len() > max {
        return Err(QueryError::Invalid(format!(
            "maximum number of series ({max}) reached for a single query; consider reducing query cardinality by adding more specific stream selectors, reducing the time range, or aggregating results with functions like sum(), count() or topk()"
        )));
    }
    Ok(())
}

/// Whether the result of an instant query is ordered by value.
fn is_ordered(metric: &Metric) -> bool {
    matches!(metric, Metric::Aggregate(a) if matches!(a.op, VectorOp::Sort | VectorOp::SortDesc))
}

fn constant(v: f64, steps: Steps) -> Series {
    Series { labels: Labels::default(), values: vec![Some(v); steps.count] }
}

enum Partial {
    Scalar(f64),
    Series(Vec<Series>),
}

type Evaluation<'a> = Pin<Box<dyn Future<Output = Result<Partial, QueryError>> + Send + 'a>>;

fn evaluate<'a>(ctx: &'a Context, metric: &'a Metric, steps: Steps) -> Evaluation<'a> {
    Box::pin(async move {
        Ok(match metric {
            Metric::Number(v) => Partial::Scalar(*v),
            Metric::Vector(v) => Partial::Series(vec![constant(*v, steps)]),
            Metric::Range(r) => Partial::Series(range::evaluate(ctx, r, steps, &GroupBy::All).await?),
            Metric::Aggregate(a) => {
                if let (VectorOp::Sum, Metric::Range(r)) = (a.op, &a.inner)
                    && r.unwrap.is_none()
                    && matches!(r.op, RangeOp::Count | RangeOp::Rate | RangeOp::Bytes | RangeOp::BytesRate)
                {
                    // A sum of counts is a count by the sum's labels: the inner series never exist.
                    let grouping = a.grouping.clone().unwrap_or(Grouping { without: false, labels: Vec::new() });
                    return Ok(Partial::Series(range::evaluate(ctx, r, steps, &GroupBy::Some(grouping)).await?));
                }
                match evaluate(ctx, &a.inner, steps).await? {
                    Partial::Series(s) => Partial::Series(vector::aggregate(a, s)),
                    Partial::Scalar(_) => {
                        return Err(QueryError::parse(format!("{} needs a vector, not a number", a.op.name())));
                    }
                }
            }
            Metric::LabelReplace { inner, target, replacement, source, regex } => {
                match evaluate(ctx, inner, steps).await? {
                    Partial::Series(s) => {
                        Partial::Series(vector::label_replace(s, target, replacement, source, regex)?)
                    }
                    Partial::Scalar(_) => {
                        return Err(QueryError::parse("label_replace needs a vector, not a number"));
                    }
                }
            }
            Metric::Binary(b) => {
                let left = evaluate(ctx, &b.left, steps).await?;
                let right = evaluate(ctx, &b.right, steps).await?;
                match (left, right) {
                    (Partial::Scalar(x), Partial::Scalar(y)) => Partial::Scalar(b.op.apply(x, y)),
                    (Partial::Series(s), Partial::Scalar(y)) => Partial::Series(vector::with_scalar(b, s, y, false)),
                    (Partial::Scalar(x), Partial::Series(s)) => Partial::Series(vector::with_scalar(b, s, x, true)),
                    (Partial::Series(l), Partial::Series(r)) => {
                        Partial::Series(vector::vectors(b, l, r, steps.count)?)
                    }
                }
            }
        })
    })
}
