//! What follows an operand: ranges, subqueries, `offset`, `@`, and the durations in them.

use super::{
    LEVEL_UNARY, Parser, binary_op, literal,
    number::{DURATION_SECONDS_MAX, parse_word_number},
};
use crate::{
    promql::ast::{At, Duration, DurationKind, Edges, Expr, ExprKind, Subquery},
    syntax::{Kind, SyntaxError},
};

/// Where a duration stands, and what may begin one.
#[derive(Clone, Copy)]
struct Place(&'static str, &'static str);

const OFFSET: Place = Place("offset", "number, duration, step(), or range()");
const RANGE: Place = Place("subquery or range selector", "number, duration, step(), or range()");
const STEP: Place = Place("subquery selector", "number, duration, step(), range(), or \"]\"");

const NOTHING_TO_MODIFY: &str =
    "modifier must be preceded by an instant vector selector or range vector selector or a subquery";

impl Parser<'_> {
    pub(super) fn postfixes(&mut self, mut expr: Expr) -> Result<Expr, SyntaxError> {
        let mut height = 0;
        loop {
            if self.cursor.is_punct("[") {
                // A chain of subqueries is as high as it is long.
                self.cursor.enter()?;
                height += 1;
                expr = self.range(expr)?;
            } else if self.cursor.is_keyword("offset") {
                self.cursor.next();
                let offset = self.offset_duration()?;
                let end = self.cursor.previous().span;
                let span = expr.span;
                match offset_slot(&mut expr) {
                    None => return Err(self.error(span, format!("offset {NOTHING_TO_MODIFY}"))),
                    Some(Some(_)) => return Err(self.error(span, "offset may not be set multiple times")),
                    Some(slot) => *slot = Some(offset),
                }
                expr.span = span.to(end);
            } else if self.cursor.is_punct("@") {
                self.cursor.next();
                let at = self.at(&expr)?;
                let end = self.cursor.previous().span;
                let span = expr.span;
                match at_slot(&mut expr) {
                    None => return Err(self.error(span, format!("@ {NOTHING_TO_MODIFY}"))),
                    Some(Some(_)) => return Err(self.error(span, "@ <timestamp> may not be set multiple times")),
                    Some(slot) => *slot = Some(at),
                }
                expr.span = span.to(end);
            } else if self.cursor.is_keyword("anchored") || self.cursor.is_keyword("smoothed") {
                let edges = if self.cursor.is_keyword("anchored") { Edges::Anchored } else { Edges::Smoothed };
                let token = self.cursor.next();
                let word = self.cursor.text_of(token).to_ascii_lowercase();
                match &mut expr.kind {
                    ExprKind::Range { selector, .. } if selector.edges == Edges::Plain => selector.edges = edges,
                    ExprKind::Selector(selector) if edges == Edges::Smoothed && selector.edges == Edges::Plain => {
                        selector.edges = edges;
                    }
                    ExprKind::Range { .. } | ExprKind::Selector(_) => {
                        return Err(self.error(token.span, format!("{word} modifier cannot be used here")));
                    }
                    _ => {
                        return Err(self.error(token.span, format!("{word} modifier must be preceded by an instant vector selector or range vector selector")));
                    }
                }
                expr.span = expr.span.to(token.span);
            } else {
                (0..height).for_each(|_| self.cursor.leave());
                return Ok(expr);
            }
        }
    }

    fn range(&mut self, expr: Expr) -> Result<Expr, SyntaxError> {
        let open = self.cursor.next().span;
        let range = self.positive_duration(RANGE)?;
        if self.cursor.eat(":") {
            let step = if self.cursor.is_punct("]") { None } else { Some(self.positive_duration(STEP)?) };
            if !self.cursor.is_punct("]") {
                return Err(self.unexpected("subquery selector", "\"]\""));
            }
            let end = self.cursor.next().span;
            let span = expr.span.to(end);
            let subquery = Subquery { expr, range, step, offset: None, at: None };
            return Ok(Expr { kind: ExprKind::Subquery(Box::new(subquery)), span });
        }
        if !self.cursor.is_punct("]") {
            return Err(self.unexpected("subquery or range", "\":\" or \"]\""));
        }
        let end = self.cursor.next().span;
        let span = expr.span.to(end);
        match expr.kind {
            ExprKind::Selector(s) if s.offset.is_some() => {
                Err(self.error(open.to(end), "no offset modifiers allowed before range"))
            }
            ExprKind::Selector(s) if s.at.is_some() => {
                Err(self.error(open.to(end), "no @ modifiers allowed before range"))
            }
            ExprKind::Selector(s) if s.edges != Edges::Plain => {
                Err(self.error(open.to(end), "no smoothed or anchored modifiers allowed before range"))
            }
            ExprKind::Selector(selector) => Ok(Expr { kind: ExprKind::Range { selector, range }, span }),
            _ => Err(self.error(open.to(end), "ranges only allowed for vector selectors")),
        }
    }

    /// What follows `offset`: a signed literal, a call, or an expression in parentheses.
    fn offset_duration(&mut self) -> Result<Duration, SyntaxError> {
        let start = self.cursor.peek().span;
        if self.cursor.eat("-") {
            let inner = self.duration_operand(OFFSET)?;
            let span = start.to(inner.span);
            return Ok(Duration { kind: DurationKind::Negate(Box::new(inner)), span });
        }
        self.cursor.eat("+");
        self.duration_operand(OFFSET)
    }

    /// A duration that is not known to be 0 or less.
    fn positive_duration(&mut self, place: Place) -> Result<Duration, SyntaxError> {
        let duration = self.duration(0, place)?;
        if literal_seconds(&duration.kind).is_some_and(|s| s <= 0.0) {
            return Err(self.error(duration.span, "duration must be greater than 0"));
        }
        Ok(duration)
    }

    /// Duration arithmetic: climbs operators of at least `level`.
    fn duration(&mut self, level: u8, place: Place) -> Result<Duration, SyntaxError> {
        self.cursor.enter()?;
        let mut levels = 1;
        let mut left = self.duration_operand(place)?;
        while let Kind::Punct(p) = self.cursor.peek().kind
            && let Some((op, binding)) = binary_op(p)
            && binding.level >= level.max(4)
        {
            self.cursor.enter()?;
            levels += 1;
            self.cursor.next();
            let right = self.duration(if binding.right { binding.level } else { binding.level + 1 }, place)?;
            let span = left.span.to(right.span);
            left = Duration { kind: DurationKind::Binary(op, Box::new(left), Box::new(right)), span };
        }
        (0..levels).for_each(|_| self.cursor.leave());
        Ok(left)
    }

    /// Takes the punctuation of a duration.
    fn in_duration(&mut self, punct: &str, place: Place) -> Result<(), SyntaxError> {
        if self.cursor.eat(punct) { Ok(()) } else { Err(self.unexpected(place.0, place.1)) }
    }

    fn duration_operand(&mut self, place: Place) -> Result<Duration, SyntaxError> {
        let token = self.cursor.peek();
        let text = self.cursor.text_of(token);
        match token.kind {
            Kind::Punct("-") => {
                self.cursor.next();
                let inner = self.duration(LEVEL_UNARY, place)?;
                let span = token.span.to(inner.span);
                Ok(Duration { kind: DurationKind::Negate(Box::new(inner)), span })
            }
            Kind::Punct("+") => {
                self.cursor.next();
                self.duration(LEVEL_UNARY, place)
            }
            Kind::Punct("(") => {
                self.cursor.next();
                let inner = self.duration(0, place)?;
                self.in_duration(")", place)?;
                Ok(inner)
            }
            Kind::Number if parse_word_number(text).is_none() => {
                self.cursor.next();
                let seconds = literal(text).map_err(|why| self.error(token.span, why))?;
                if seconds > DURATION_SECONDS_MAX {
                    return Err(self.error(token.span, "duration out of range"));
                }
                Ok(Duration { kind: DurationKind::Seconds(seconds), span: token.span })
            }
            Kind::Ident => {
                let name = text.to_ascii_lowercase();
                if !["step", "range", "min_of", "max_of"].contains(&name.as_str()) {
                    return Err(self.unexpected(place.0, place.1));
                }
                self.cursor.next();
                self.in_duration("(", place)?;
                let kind = match name.as_str() {
                    "step" => DurationKind::Step,
                    "range" => DurationKind::Range,
                    _ => {
                        let a = Box::new(self.duration(0, place)?);
                        self.in_duration(",", place)?;
                        let b = Box::new(self.duration(0, place)?);
                        if name == "min_of" { DurationKind::Least(a, b) } else { DurationKind::Greatest(a, b) }
                    }
                };
                self.in_duration(")", place)?;
                Ok(Duration { kind, span: token.span.to(self.cursor.previous().span) })
            }
            _ => Err(self.unexpected(place.0, place.1)),
        }
    }

    fn at(&mut self, of: &Expr) -> Result<At, SyntaxError> {
        let negative = self.cursor.is_punct("-");
        let signed = negative || self.cursor.is_punct("+");
        if signed {
            self.cursor.next();
        }
        let token = self.cursor.peek();
        let text = self.cursor.text_of(token);
        let named = match text.to_ascii_lowercase().as_str() {
            "start" => Some(At::Start),
            "end" => Some(At::End),
            _ => None,
        };
        match (token.kind, named) {
            (Kind::Ident, Some(at)) if !signed => {
                self.cursor.next();
                if self.cursor.eat("(") && self.cursor.eat(")") {
                    return Ok(at);
                }
                Err(self.unexpected("@", "timestamp"))
            }
            (Kind::Number, _) => {
                self.cursor.next();
                let seconds = literal(text).map_err(|why| self.error(token.span, why))?;
                let seconds = if negative { -seconds } else { seconds };
                let millis = seconds * 1000.0;
                if !millis.is_finite() || millis.abs() >= i64::MAX as f64 {
                    let shown = match () {
                        () if seconds.is_nan() => "NaN".to_owned(),
                        () if seconds.is_infinite() => (if seconds > 0.0 { "+Inf" } else { "-Inf" }).to_owned(),
                        () => format!("{seconds:.6}"),
                    };
                    return Err(self.error(of.span, format!("timestamp out of bounds for @ modifier: {shown}")));
                }
                Ok(At::Millis(millis.round() as i64))
            }
            _ => Err(self.unexpected("@", "timestamp")),
        }
    }
}

/// Seconds of a duration that is no more than a number.
fn literal_seconds(kind: &DurationKind) -> Option<f64> {
    match kind {
        DurationKind::Seconds(s) => Some(*s),
        DurationKind::Negate(inner) => literal_seconds(&inner.kind).map(|s| -s),
        _ => None,
    }
}

fn offset_slot(expr: &mut Expr) -> Option<&mut Option<Duration>> {
    match &mut expr.kind {
        ExprKind::Selector(s) | ExprKind::Range { selector: s, .. } => Some(&mut s.offset),
        ExprKind::Subquery(s) => Some(&mut s.offset),
        _ => None,
    }
}

fn at_slot(expr: &mut Expr) -> Option<&mut Option<At>> {
    match &mut expr.kind {
        ExprKind::Selector(s) | ExprKind::Range { selector: s, .. } => Some(&mut s.at),
        ExprKind::Subquery(s) => Some(&mut s.at),
        _ => None,
    }
}
