//! Types: what is an argument of what.

use storage::model::Matcher;

use super::ast::{
    AggregateOp, Binary, Cardinality, DurationKind, Edges, Expr, ExprKind, Selector, Subquery, ValueType,
};
use crate::syntax::{Span, SyntaxError};

pub(super) const ALL_EMPTY: &str = "vector selector must contain at least one non-empty matcher";

/// Errors on the first node whose operands have types it does not take.
pub(super) fn check(text: &str, expr: &Expr) -> Result<(), SyntaxError> {
    Check { text }.node(expr)
}

struct Check<'a> {
    text: &'a str,
}

impl Check<'_> {
    fn error(&self, span: Span, message: impl Into<String>) -> Result<(), SyntaxError> {
        Err(SyntaxError::new(self.text, span, message))
    }

    fn node(&self, expr: &Expr) -> Result<(), SyntaxError> {
        match &expr.kind {
            ExprKind::Number(_) | ExprKind::String(_) => Ok(()),
            ExprKind::Paren(inner) => self.node(inner),
            ExprKind::Unary { operand, .. } => {
                self.node(operand)?;
                match operand.value_type() {
                    ValueType::Scalar | ValueType::Vector => Ok(()),
                    other => self.error(
                        expr.span,
                        format!(
                            "unary expression only allowed on expressions of type scalar or instant vector, got {:?}",
                            other.name()
                        ),
                    ),
                }
            }
            ExprKind::Binary(b) => self.binary(b, expr.span),
            ExprKind::Aggregate(a) => {
                self.node(&a.operand)?;
                self.expect(&a.operand, ValueType::Vector, "aggregation expression")?;
                let Some(parameter) = &a.parameter else { return Ok(()) };
                self.node(parameter)?;
                let wanted = a.op.parameter().expect("parser gives a parameter only where one is taken");
                self.expect(parameter, wanted, "aggregation parameter")?;
                if a.op == AggregateOp::CountValues
                    && let ExprKind::String(name) = &parameter.inner().kind
                    && name.is_empty()
                {
                    return self.error(parameter.span, "invalid label name \"\"");
                }
                Ok(())
            }
            ExprKind::Call { function, args } => {
                let least = function.args.len() - function.optional;
                let most = function.args.len();
                if args.len() < least || (args.len() > most && !function.variadic) {
                    let wanted = match (function.optional, function.variadic) {
                        (0, false) => format!("expected {least}"),
                        _ if args.len() < least => format!("expected at least {least}"),
                        _ => format!("expected at most {most}"),
                    };
                    return self.error(
                        expr.span,
                        format!("{wanted} argument(s) in call to {:?}, got {}", function.name, args.len()),
                    );
                }
                let info = function.name == "info";
                if info && let Some(labels) = args.get(1) {
                    let context = "call to function \"info\"";
                    let found = labels.value_type().name();
                    match &labels.kind {
                        _ if labels.value_type() != ValueType::Vector => {
                            let message = format!("expected type instant vector in {context}, got {found}");
                            return self.error(expr.span, message);
                        }
                        // A name in braces is one more label.
                        ExprKind::Selector(s)
                            if s.name.is_some() && !labels.span.text(self.text).starts_with('{') =>
                        {
                            let message = "expected label selectors only, got vector selector instead";
                            return self.error(labels.span, message);
                        }
                        ExprKind::Selector(_) => {}
                        _ => return self.error(labels.span, "expected label selectors only"),
                    }
                }
                for (i, arg) in args.iter().enumerate() {
                    // The labels that `info` is told may match the empty series.
                    if !(info && i == 1) {
                        self.node(arg)?;
                    }
                    let wanted = function.args[i.min(most - 1)];
                    self.expect(arg, wanted, &format!("call to function {:?}", function.name))?;
                    self.edges(function.name, arg)?;
                }
                Ok(())
            }
            ExprKind::Selector(s) => self.selector(s, expr.span),
            ExprKind::Range { selector, range } => {
                self.selector(selector, expr.span)?;
                self.positive(&range.kind, range.span)
            }
            ExprKind::Subquery(s) => self.subquery(s, expr.span),
        }
    }

    fn selector(&self, s: &Selector, span: Span) -> Result<(), SyntaxError> {
        let Some(name) = &s.name else {
            let empty = s.matchers.iter().all(Matcher::matches_empty);
            return if empty { self.error(span, ALL_EMPTY) } else { Ok(()) };
        };
        // The last of the matchers is the name's.
        let others = s.matchers.split_last().map_or(&[][..], |(_, others)| others);
        match others.iter().find(|m| m.name() == "__name__") {
            Some(m) => self.error(span, format!("metric name must not be set twice: {name:?} or {:?}", m.value())),
            None => Ok(()),
        }
    }

    fn subquery(&self, s: &Subquery, span: Span) -> Result<(), SyntaxError> {
        self.node(&s.expr)?;
        self.positive(&s.range.kind, s.range.span)?;
        if let Some(step) = &s.step {
            self.positive(&step.kind, step.span)?;
        }
        if s.expr.value_type() != ValueType::Vector {
            let found = match s.expr.value_type() {
                ValueType::Matrix => "matrix",
                other => other.name(),
            };
            return self.error(span, format!("subquery is only allowed on instant vector, got {found} instead"));
        }
        Ok(())
    }

    fn positive(&self, kind: &DurationKind, span: Span) -> Result<(), SyntaxError> {
        match kind {
            DurationKind::Seconds(s) if *s < 0.001 => self.error(span, "duration must be greater than 0"),
            DurationKind::Seconds(s) if *s > 9.2e15 => self.error(span, "duration out of range"),
            _ => Ok(()),
        }
    }

    fn edges(&self, function: &str, arg: &Expr) -> Result<(), SyntaxError> {
        let ExprKind::Range { selector, .. } = &arg.inner().kind else { return Ok(()) };
        let (word, allowed): (&str, &[&str]) = match selector.edges {
            Edges::Plain => return Ok(()),
            Edges::Anchored => ("anchored", &["changes", "delta", "increase", "rate", "resets"]),
            Edges::Smoothed => ("smoothed", &["delta", "increase", "rate"]),
        };
        if allowed.contains(&function) {
            return Ok(());
        }
        let message = format!("{word} modifier can only be used with: {} - not with {function}", allowed.join(", "));
        self.error(arg.span, message)
    }

    fn binary(&self, b: &Binary, span: Span) -> Result<(), SyntaxError> {
        self.node(&b.left)?;
        self.node(&b.right)?;
        let (left, right) = (b.left.value_type(), b.right.value_type());
        let scalars = (left == ValueType::Scalar) as u8 + (right == ValueType::Scalar) as u8;
        let matching = &b.matching;
        if b.returns_bool && !b.op.is_comparison() {
            return self.error(self.operator(b), "bool modifier can only be used on comparison operators");
        }
        if scalars == 2 && b.op.is_comparison() && !b.returns_bool {
            return self.error(self.operator(b), "comparisons between scalars must use BOOL modifier");
        }
        if let Some(label) = matching.labels.iter().find(|l| matching.on && matching.include.contains(l)) {
            let message = format!("label {label:?} must not occur in ON and GROUP clause at once");
            return self.error(self.operator(b), message);
        }
        for (side, found) in [(&b.left, left), (&b.right, right)] {
            if !matches!(found, ValueType::Scalar | ValueType::Vector) {
                let message = "binary expression must contain only scalar and instant vector types";
                return self.error(side.span, message);
            }
        }
        let filled = matching.fill != (None, None);
        if scalars > 0 {
            if !matching.labels.is_empty() {
                return self.error(span, "vector matching only allowed between instant vectors");
            }
            if filled {
                return self.error(span, "filling in missing series only allowed between instant vectors");
            }
            if b.op.is_set() {
                let message = format!("set operator {:?} not allowed in binary scalar expression", b.op.symbol());
                return self.error(span, message);
            }
        } else if b.op.is_set() {
            if matching.cardinality != Cardinality::ManyToMany {
                return self.error(span, format!("no grouping allowed for {:?} operation", b.op.symbol()));
            }
            if filled {
                return self.error(span, "filling in missing series not allowed for set operators");
            }
        }
        Ok(())
    }

    /// Where the operator is, about.
    fn operator(&self, b: &Binary) -> Span {
        let after = &self.text[b.left.span.end..];
        let start = b.left.span.end + (after.len() - after.trim_start_matches([' ', '\t', '\n', '\r']).len());
        Span::new(start, b.right.span.start.max(start))
    }

    fn expect(&self, expr: &Expr, wanted: ValueType, context: &str) -> Result<(), SyntaxError> {
        let got = expr.value_type();
        if got == wanted {
            return Ok(());
        }
        self.error(expr.span, format!("expected type {} in {context}, got {}", wanted.name(), got.name()))
    }
}
