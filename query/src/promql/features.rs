//! What of PromQL is only there when it is asked for, under the names that Prometheus gives it.

use super::ast::{AggregateOp, Edges, Expr, ExprKind};
use crate::syntax::SyntaxError;

/// Switches for what Prometheus calls experimental. All off by default, as there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Functions and aggregations that may still change.
    pub experimental_functions: bool,
    /// `anchored` and `smoothed`.
    pub extended_ranges: bool,
    /// `fill`, `fill_left` and `fill_right`.
    pub fill_modifiers: bool,
    /// `__type__` and `__unit__` are dropped together with the metric name.
    pub type_and_unit_labels: bool,
    /// `rate`, `increase`, `irate` and `resets` use the start times of samples.
    pub start_timestamps: bool,
}

const FUNCTIONS: &[&str] = &[
    "double_exponential_smoothing",
    "end",
    "histogram_quantiles",
    "info",
    "mad_over_time",
    "max_of",
    "min_of",
    "range",
    "sort_by_label",
    "sort_by_label_desc",
    "start",
    "start_timestamp",
    "step",
    "ts_of_first_over_time",
    "ts_of_last_over_time",
    "ts_of_max_over_time",
    "ts_of_min_over_time",
];

impl Features {
    /// What `--enable-feature` takes.
    pub const NAMES: [&str; 5] = [
        "promql-experimental-functions",
        "promql-extended-range-selectors",
        "promql-binop-fill-modifiers",
        "type-and-unit-labels",
        "start-timestamps",
    ];

    pub const ALL: Features = Features {
        experimental_functions: true,
        extended_ranges: true,
        fill_modifiers: true,
        type_and_unit_labels: true,
        start_timestamps: true,
    };

    /// Switches one on by its name. Errors with the names there are.
    pub fn enable(&mut self, name: &str) -> Result<(), String> {
        let [functions, ranges, fill, types, starts] = Self::NAMES;
        match name {
            _ if name == functions => self.experimental_functions = true,
            _ if name == ranges => self.extended_ranges = true,
            _ if name == fill => self.fill_modifiers = true,
            _ if name == types => self.type_and_unit_labels = true,
            _ if name == starts => self.start_timestamps = true,
            _ => return Err(format!("no feature {name:?}; expected one of {}", Self::NAMES.join(", "))),
        }
        Ok(())
    }

    /// Refuses an expression that uses what is switched off, at its place.
    pub(super) fn check(&self, query: &str, expr: &Expr) -> Result<(), SyntaxError> {
        let mut refused: Option<SyntaxError> = None;
        let [functions, ranges, fill, ..] = Self::NAMES;
        expr.walk(&mut |e| {
            let found = match &e.kind {
                ExprKind::Call { function, .. } if FUNCTIONS.contains(&function.name) => {
                    (!self.experimental_functions).then(|| (format!("function {:?}", function.name), functions))
                }
                ExprKind::Aggregate(a) if matches!(a.op, AggregateOp::Limitk | AggregateOp::LimitRatio) => {
                    (!self.experimental_functions).then(|| (format!("{}()", a.op.name()), functions))
                }
                ExprKind::Selector(s) | ExprKind::Range { selector: s, .. } if s.edges != Edges::Plain => {
                    let word = if s.edges == Edges::Anchored { "anchored" } else { "smoothed" };
                    (!self.extended_ranges).then(|| (format!("{word} modifier"), ranges))
                }
                ExprKind::Binary(b) if b.matching.fill != (None, None) => {
                    (!self.fill_modifiers).then(|| ("fill modifier".to_owned(), fill))
                }
                _ => None,
            };
            if let (Some((what, name)), None) = (found, &refused) {
                let message = format!("{what} is experimental and must be enabled with --enable-feature={name}");
                refused = Some(SyntaxError::new(query, e.span, message));
            }
        });
        refused.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promql::parse;

    #[test]
    fn what_is_experimental_is_refused_until_it_is_enabled() {
        for (query, name) in [
            ("sum(mad_over_time(a[5m]))", "promql-experimental-functions"),
            ("limitk(2, a)", "promql-experimental-functions"),
            ("rate(a[5m] anchored)", "promql-extended-range-selectors"),
            ("a + fill(0) b", "promql-binop-fill-modifiers"),
        ] {
            let expr = parse(query).unwrap();
            let mut features = Features::default();
            let why = features.check(query, &expr).unwrap_err().to_string();
            assert!(why.contains(name), "{why}");
            features.enable(name).unwrap();
            assert_eq!(features.check(query, &expr), Ok(()));
        }
        assert!(Features::default().enable("nothing").unwrap_err().contains("promql-experimental-functions"));
        let plain = "holt_winters(a[5m], 0.5, 0.5) + topk(1, first_over_time(a[5m] @ start()))";
        assert_eq!(Features::default().check(plain, &parse(plain).unwrap()), Ok(()));
    }
}
