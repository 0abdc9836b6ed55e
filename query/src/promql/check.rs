//! Types: what is an argument of what.

use super::ast::{AggregateOp, Binary, DurationKind, Edges, Expr, ExprKind, Subquery, ValueType};
use crate::syntax::{Span, SyntaxError};

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
                if let Some(parameter) = &a.parameter {
                    self.node(parameter)?;
                    let wanted = a.op.parameter().expect("parser gives a parameter only where one is taken");
                    self.expect(parameter, wanted, "aggregation parameter")?;
                    if a.op == AggregateOp::CountValues
                        && let ExprKind::String(name) = &parameter.inner().kind
                        && name.is_empty()
                    {
                        return self.error(parameter.span, "invalid label name \"\"");
                    }
                }
                self.node(&a.operand)?;
                self.expect(&a.operand, ValueType::Vector, "aggregation expression")
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
                for (i, arg) in args.iter().enumerate() {
                    self.node(arg)?;
                    let wanted = function.args[i.min(most - 1)];
                    self.expect(arg, wanted, &format!("call to function {:?}", function.name))?;
                    self.edges(function.name, arg)?;
                }
                if function.name == "info" && args.len() == 2 && !matches!(args[1].kind, ExprKind::Selector(_)) {
                    return self.error(args[1].span, "expected label selectors only");
                }
                Ok(())
            }
            ExprKind::Selector(_) => Ok(()),
            ExprKind::Range { range, .. } => self.positive(&range.kind, range.span),
            ExprKind::Subquery(s) => self.subquery(s, expr.span),
        }
    }

    fn subquery(&self, s: &Subquery, span: Span) -> Result<(), SyntaxError> {
        self.node(&s.expr)?;
        self.positive(&s.range.kind, s.range.span)?;
        if let Some(step) = &s.step {
            self.positive(&step.kind, step.span)?;
        }
        if s.expr.value_type() != ValueType::Vector {
            let message =
                format!("subquery is only allowed on instant vector, got {} instead", s.expr.value_type().name());
            return self.error(span, message);
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
        for t in [left, right] {
            if !matches!(t, ValueType::Scalar | ValueType::Vector) {
                return self.error(span, "binary expression must contain only scalar and instant vector types");
            }
        }
        let scalars = (left == ValueType::Scalar) as u8 + (right == ValueType::Scalar) as u8;
        if scalars == 2 && b.op.is_comparison() && !b.returns_bool {
            return self.error(span, "comparisons between scalars must use BOOL modifier");
        }
        if scalars > 0 && b.op.is_set() {
            return self
                .error(span, format!("set operator {:?} not allowed in binary scalar expression", b.op.symbol()));
        }
        if scalars > 0 && (b.matching.explicit || b.matching.fill != (None, None)) {
            return self.error(span, "vector matching only allowed between instant vectors");
        }
        Ok(())
    }

    fn expect(&self, expr: &Expr, wanted: ValueType, context: &str) -> Result<(), SyntaxError> {
        let got = expr.value_type();
        if got == wanted {
            return Ok(());
        }
        self.error(expr.span, format!("expected type {} in {context}, got {}", wanted.name(), got.name()))
    }
}
