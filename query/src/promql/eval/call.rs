//! Functions of instant vectors and scalars; the dispatch of all functions.

use std::sync::Arc;

use storage::model::{Labels, MatchOp};

use super::{
    Evaluator, Series, Steps, Values, date, fail, join_same_labels, native, range::selector_of, without_empty,
};
use crate::{
    error::QueryError,
    promql::{
        ast::{Expr, ExprKind},
        functions::Function,
        value::Point,
    },
    syntax::Span,
};

/// Functions of one float; histograms drop out.
fn simple(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "abs" => f64::abs,
        "ceil" => f64::ceil,
        "floor" => f64::floor,
        "exp" => f64::exp,
        "sqrt" => f64::sqrt,
        "ln" => f64::ln,
        "log2" => f64::log2,
        "log10" => f64::log10,
        "sin" => f64::sin,
        "cos" => f64::cos,
        "tan" => f64::tan,
        "asin" => f64::asin,
        "acos" => f64::acos,
        "atan" => f64::atan,
        "sinh" => f64::sinh,
        "cosh" => f64::cosh,
        "tanh" => f64::tanh,
        "asinh" => f64::asinh,
        "acosh" => f64::acosh,
        "atanh" => f64::atanh,
        "deg" => |v| v * 180.0 / std::f64::consts::PI,
        "rad" => |v| v * std::f64::consts::PI / 180.0,
        "sgn" => |v| {
            if v < 0.0 {
                -1.0
            } else if v > 0.0 {
                1.0
            } else {
                v
            }
        },
        _ => return None,
    })
}

/// Steps at which no series has a point get 1.
pub(super) fn absent_points(series: &[Series], steps: &Steps) -> Vec<Point> {
    (0..steps.count)
        .map(|i| if series.iter().any(|s| s.points[i].is_some()) { Point::None } else { Point::Float(1.0) })
        .collect()
}

/// The series of `absent(arg)`: labelled by the equality matchers of a selector.
pub(super) fn absent_series(arg: &Expr, points: Vec<Point>) -> Vec<Series> {
    let mut labels = Labels::default();
    if let Some(selector) = selector_of(arg) {
        for m in &selector.matchers {
            let once = selector.matchers.iter().filter(|o| o.name() == m.name()).count() == 1;
            if m.op() == MatchOp::Eq && m.name() != "__name__" && once {
                labels.set(m.name(), m.value());
            }
        }
    }
    without_empty(vec![Series { labels: Arc::new(labels), points }])
}

impl Evaluator {
    pub(super) fn call(
        &self,
        function: &Function,
        args: &[Expr],
        span: Span,
        steps: &Steps,
    ) -> Result<Values, QueryError> {
        let name = function.name;
        if let Some(series) = self.range_call(name, args, steps)? {
            return Ok(Values::Vector(series));
        }
        if let Some(f) = simple(name) {
            return self.map(&args[0], steps, |_, v| Point::Float(f(v)));
        }
        if let Some(f) = date::function(name) {
            if args.is_empty() {
                let points = (0..steps.count).map(|i| Point::Float(f(steps.time(i) as f64 / 1000.0))).collect();
                return Ok(Values::Vector(vec![Series { labels: Arc::default(), points }]));
            }
            return self.map(&args[0], steps, |_, v| Point::Float(f(v)));
        }
        let constant = |v: f64| Ok(Values::Scalar(vec![v; steps.count]));
        let (start, end, step) = self.times;
        let vector = match name {
            "time" => return Ok(Values::Scalar((0..steps.count).map(|i| steps.time(i) as f64 / 1000.0).collect())),
            "pi" => return constant(std::f64::consts::PI),
            "start" => return constant(start as f64 / 1000.0),
            "end" => return constant(end as f64 / 1000.0),
            "step" => return constant(step as f64 / 1000.0),
            "range" => return constant((end - start) as f64 / 1000.0),
            "min_of" | "max_of" => {
                let (a, b) = (self.scalar(&args[0], steps)?, self.scalar(&args[1], steps)?);
                let pick = |(a, b): (&f64, &f64)| match (a.is_nan() || b.is_nan(), name == "min_of") {
                    (true, _) => f64::NAN,
                    (_, true) => a.min(*b),
                    (_, false) => a.max(*b),
                };
                return Ok(Values::Scalar(a.iter().zip(&b).map(pick).collect()));
            }
            "scalar" => return self.to_scalar(&args[0], steps),
            "vector" => {
                let points = self.scalar(&args[0], steps)?.into_iter().map(Point::Float).collect();
                vec![Series { labels: Arc::default(), points }]
            }
            "clamp" => {
                let (low, high) = (self.scalar(&args[1], steps)?, self.scalar(&args[2], steps)?);
                return self.map(&args[0], steps, |i, v| clamp(v, low[i], high[i]));
            }
            "clamp_min" => {
                let low = self.scalar(&args[1], steps)?;
                return self.map(&args[0], steps, |i, v| clamp(v, low[i], f64::INFINITY));
            }
            "clamp_max" => {
                let high = self.scalar(&args[1], steps)?;
                return self.map(&args[0], steps, |i, v| clamp(v, f64::NEG_INFINITY, high[i]));
            }
            "round" => {
                let to = match args.get(1) {
                    Some(to) => self.scalar(to, steps)?,
                    None => vec![1.0; steps.count],
                };
                return self.map(&args[0], steps, |i, v| {
                    // Divides by the inverse, which keeps the results of `round(v, 0.1)` short.
                    let inverse = 1.0 / to[i];
                    Point::Float((v * inverse + 0.5).floor() / inverse)
                });
            }
            "timestamp" => self.timestamp(&args[0], steps)?,
            "start_timestamp" => match &args[0].inner().kind {
                ExprKind::Selector(s) => {
                    let mut series =
                        self.select_with(s, args[0].span, steps, |_, start, _| Point::Float(start as f64 / 1000.0))?;
                    series.iter_mut().for_each(|s| s.labels = self.without_name(&s.labels));
                    join_same_labels(series)?
                }
                // Nothing but a stored sample has one.
                _ => {
                    self.vector(&args[0], steps)?;
                    Vec::new()
                }
            },
            "absent" => absent_series(&args[0], absent_points(&self.vector(&args[0], steps)?, steps)),
            "sort" | "sort_desc" => self.sort(&args[0], steps, span, name == "sort_desc")?,
            "sort_by_label" => self.sort_by_label(args, steps, false)?,
            "sort_by_label_desc" => self.sort_by_label(args, steps, true)?,
            "label_replace" => self.label_replace(args, steps)?,
            "label_join" => self.label_join(args, steps)?,
            "histogram_count" => return self.map_histograms(&args[0], steps, |h| h.count),
            "histogram_sum" => return self.map_histograms(&args[0], steps, |h| h.sum),
            "histogram_avg" => return self.map_histograms(&args[0], steps, |h| h.sum / h.count),
            "histogram_stdvar" => return self.map_histograms(&args[0], steps, |h| h.variance()),
            "histogram_stddev" => return self.map_histograms(&args[0], steps, |h| h.variance().sqrt()),
            "info" => self.info_join(args, steps)?,
            "histogram_quantile" => self.histogram_quantile(args, steps)?,
            "histogram_quantiles" => self.histogram_quantiles(args, steps)?,
            "histogram_fraction" => self.histogram_fraction(args, steps)?,
            _ => return fail(format!("function {name:?} is not supported yet")),
        };
        Ok(Values::Vector(vector))
    }

    /// Floats through `f(step, value)`, histograms dropped, names dropped.
    fn map(&self, arg: &Expr, steps: &Steps, f: impl Fn(usize, f64) -> Point) -> Result<Values, QueryError> {
        self.map_points(arg, steps, |i, p| p.float().map_or(Point::None, |v| f(i, v)))
    }

    fn map_histograms(
        &self,
        arg: &Expr,
        steps: &Steps,
        f: impl Fn(&crate::promql::histogram::Histogram) -> f64,
    ) -> Result<Values, QueryError> {
        self.map_points(arg, steps, |_, p| p.histogram().map_or(Point::None, |h| Point::Float(f(h))))
    }

    fn map_points(
        &self,
        arg: &Expr,
        steps: &Steps,
        f: impl Fn(usize, &Point) -> Point,
    ) -> Result<Values, QueryError> {
        let mut series = self.vector(arg, steps)?;
        for s in &mut series {
            s.labels = self.without_name(&s.labels);
            for (i, p) in s.points.iter_mut().enumerate() {
                *p = f(i, p);
            }
        }
        join_same_labels(without_empty(series)).map(Values::Vector)
    }

    fn to_scalar(&self, arg: &Expr, steps: &Steps) -> Result<Values, QueryError> {
        let series = self.vector(arg, steps)?;
        let value = |i: usize| {
            let mut floats = series.iter().filter_map(|s| s.points[i].float());
            match (floats.next(), floats.next()) {
                (Some(v), None) => v,
                _ => f64::NAN,
            }
        };
        Ok(Values::Scalar((0..steps.count).map(value).collect()))
    }

    fn timestamp(&self, arg: &Expr, steps: &Steps) -> Result<Vec<Series>, QueryError> {
        let mut series = match &arg.inner().kind {
            ExprKind::Selector(s) => {
                self.select_with(s, arg.span, steps, |t, _, _| Point::Float(t as f64 / 1000.0))?
            }
            _ => {
                let mut series = self.vector(arg, steps)?;
                for s in &mut series {
                    for (i, p) in s.points.iter_mut().enumerate().filter(|(_, p)| p.is_some()) {
                        *p = Point::Float(steps.time(i) as f64 / 1000.0);
                    }
                }
                series
            }
        };
        series.iter_mut().for_each(|s| s.labels = self.without_name(&s.labels));
        join_same_labels(series)
    }

    fn sort(&self, arg: &Expr, steps: &Steps, span: Span, descending: bool) -> Result<Vec<Series>, QueryError> {
        let mut series = self.vector(arg, steps)?;
        if self.times.2 > 0 {
            self.warn(span, "sort is ineffective for range queries since results are always ordered by labels");
        }
        for s in &mut series {
            s.points.iter_mut().filter(|p| p.histogram().is_some()).for_each(|p| *p = Point::None);
        }
        let mut series = without_empty(series);
        if steps.count == 1 {
            series.sort_by(|a, b| {
                let (a, b) = (a.points[0].float().unwrap_or(f64::NAN), b.points[0].float().unwrap_or(f64::NAN));
                match (a.is_nan(), b.is_nan()) {
                    (false, false) if descending => b.total_cmp(&a),
                    (false, false) => a.total_cmp(&b),
                    (a, b) => a.cmp(&b),
                }
            });
        }
        Ok(series)
    }

    fn histogram_quantiles(&self, args: &[Expr], steps: &Steps) -> Result<Vec<Series>, QueryError> {
        let label = self.string(&args[1])?;
        let mut out = Vec::new();
        for q in &args[2..] {
            let quantiles = self.scalar(q, steps)?;
            let mut text = crate::promql::value::format_general(quantiles[0]);
            if text.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
                text.push_str(".0");
            }
            let series = self.quantile_of_histograms(&quantiles, q.span, &args[0], steps)?;
            for mut s in series {
                let mut labels = Labels::clone(&s.labels);
                labels.set(&label, text.as_str());
                s.labels = Arc::new(labels);
                out.push(s);
            }
        }
        join_same_labels(out)
    }

    fn histogram_quantile(&self, args: &[Expr], steps: &Steps) -> Result<Vec<Series>, QueryError> {
        let q = self.scalar(&args[0], steps)?;
        self.quantile_of_histograms(&q, args[0].span, &args[1], steps)
    }

    fn quantile_of_histograms(
        &self,
        q: &[f64],
        q_span: Span,
        arg: &Expr,
        steps: &Steps,
    ) -> Result<Vec<Series>, QueryError> {
        for q in q {
            self.check_quantile(*q, q_span);
        }
        self.over_histograms(
            arg,
            steps,
            |i, h, metric| {
                native::quantile(q[i], h, |note| {
                    let result = match note {
                        native::NanNote::ResultIsNan => "result is NaN",
                        _ => "result is skewed higher",
                    };
                    self.info(
                        arg.span,
                        &format!("input to histogram_quantile has NaN observations, {result} for metric name {metric:?}"),
                    );
                })
            },
            |i, buckets, metric| {
                let (value, fixed) = super::classic::quantile(q[i], buckets);
                if let Some(fixed) = fixed {
                    self.info(
                        arg.span,
                        &format!(
                            "input to histogram_quantile needed to be fixed for monotonicity (see https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile), {fixed} for metric name {metric:?}"
                        ),
                    );
                }
                value
            },
        )
    }

    fn histogram_fraction(&self, args: &[Expr], steps: &Steps) -> Result<Vec<Series>, QueryError> {
        let (lower, upper) = (self.scalar(&args[0], steps)?, self.scalar(&args[1], steps)?);
        let arg = &args[2];
        self.over_histograms(
            arg,
            steps,
            |i, h, metric| {
                native::fraction(lower[i], upper[i], h, |_| {
                    self.info(
                        arg.span,
                        &format!("input to histogram_fraction has NaN observations, which are excluded from all fractions for metric name {metric:?}"),
                    );
                })
            },
            |i, buckets, _| super::classic::fraction(lower[i], upper[i], buckets),
        )
    }
}

fn clamp(v: f64, low: f64, high: f64) -> Point {
    if low > high {
        return Point::None;
    }
    if low.is_nan() || high.is_nan() || v.is_nan() {
        return Point::Float(f64::NAN);
    }
    Point::Float(v.max(low).min(high))
}
