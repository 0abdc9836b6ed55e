//! Text to tree. The grammar is that of Prometheus 3, experimental parts included, and what is wrong with a text is told
//! in its words: the first thing that it would tell, at the same place.
//!
//! Not here: types (`check`), and what is only there when it is switched on (`features`).

mod lexer;
mod number;
mod operand;
mod postfix;
mod selector;
#[cfg(test)]
mod tests;
mod told;

use storage::model::{Matcher, MatcherBudget};

use self::number::literal;
pub use self::number::parse_duration_ms;
use super::{
    ast::{Binary, BinaryOp, Cardinality, Expr, ExprKind, Matching},
    check, stack,
};
use crate::syntax::{Binding, Climb, Cursor, Kind, QUERY_BYTES_MAX, Span, SyntaxError, climb};

const LEVEL_UNARY: u8 = 6;

/// Parses and type-checks one expression.
pub fn parse(text: &str) -> Result<Expr, SyntaxError> {
    let parsed = stack::with_room(text, || {
        let mut parser = Parser::new(text, MatcherBudget::default())?;
        if parser.cursor.peek().kind == Kind::End && parser.failure.is_none() {
            return Err(nowhere(text, "no expression found in input"));
        }
        let expr = climb(&mut parser, 0)?;
        parser.finish()?;
        check::check(text, &expr)?;
        Ok(expr)
    });
    parsed.map_err(|e| counted_in_bytes(text, e))
}

/// Parses one plain selector, as `match[]` takes it: its matchers. No offset, `@` or range.
pub fn parse_selector(text: &str) -> Result<Vec<Matcher>, SyntaxError> {
    parse_selector_within(text, &mut MatcherBudget::default())
}

/// As [`parse_selector`], for one of several of a request.
pub fn parse_selector_within(text: &str, budget: &mut MatcherBudget) -> Result<Vec<Matcher>, SyntaxError> {
    selector_of(text, budget).map_err(|e| counted_in_bytes(text, e))
}

fn selector_of(text: &str, budget: &mut MatcherBudget) -> Result<Vec<Matcher>, SyntaxError> {
    let mut parser = Parser::new(text, *budget)?;
    let token = parser.cursor.peek();
    let selector = match token.kind {
        Kind::Punct("{") => parser.selector(None, token.span)?,
        Kind::Ident if parser.may_name_metric() => {
            parser.cursor.next();
            let name = parser.cursor.text_of(token).to_owned();
            parser.selector(Some(name), token.span)?
        }
        Kind::End if text.is_empty() => return Err(nowhere(text, "unexpected end of input")),
        _ => return Err(parser.astray()),
    };
    parser.finish()?;
    *budget = parser.budget;
    match selector.kind {
        ExprKind::Selector(s) if s.matchers.iter().all(Matcher::matches_empty) => {
            Err(SyntaxError::new(text, selector.span, check::ALL_EMPTY))
        }
        ExprKind::Selector(s) => Ok(s.matchers),
        _ => unreachable!("a selector is parsed to nothing else"),
    }
}

/// With the column that Prometheus gives: it counts bytes.
fn counted_in_bytes(text: &str, mut error: SyntaxError) -> SyntaxError {
    if error.line > 0 && error.span.start <= text.len() && text.len() <= QUERY_BYTES_MAX {
        let line_start = text.as_bytes()[..error.span.start].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        error.column = error.span.start - line_start + 1;
    }
    error
}

/// At the start of a text; nowhere in one that is empty.
fn nowhere(text: &str, message: &str) -> SyntaxError {
    let mut error = SyntaxError::new(text, Span::new(0, 0), message);
    if text.is_empty() {
        error.line = 0;
    }
    error
}

fn binary_op(text: &str) -> Option<(BinaryOp, Binding)> {
    use BinaryOp::*;
    let lower = text.to_ascii_lowercase();
    Some(match lower.as_str() {
        "or" => (Or, Binding::left(1)),
        "and" => (And, Binding::left(2)),
        "unless" => (Unless, Binding::left(2)),
        "==" => (Eq, Binding::left(3)),
        "!=" => (Ne, Binding::left(3)),
        "<" => (Lt, Binding::left(3)),
        "<=" => (Le, Binding::left(3)),
        ">" => (Gt, Binding::left(3)),
        ">=" => (Ge, Binding::left(3)),
        "</" => (TrimUpper, Binding::left(3)),
        ">/" => (TrimLower, Binding::left(3)),
        "+" => (Add, Binding::left(4)),
        "-" => (Sub, Binding::left(4)),
        "*" => (Mul, Binding::left(5)),
        "/" => (Div, Binding::left(5)),
        "%" => (Mod, Binding::left(5)),
        "atan2" => (Atan2, Binding::left(5)),
        "^" => (Pow, Binding::right(LEVEL_UNARY)),
        _ => return None,
    })
}

struct Parser<'a> {
    cursor: Cursor<'a>,
    /// Why there are no more tokens, where it is not that the text ends.
    failure: Option<String>,
    selectors: usize,
    /// A string here is the name of a label.
    names_label: bool,
    /// Aggregations around what is parsed.
    aggregations: usize,
    budget: MatcherBudget,
}

struct Operator {
    op: BinaryOp,
    returns_bool: bool,
    matching: Matching,
}

impl Climb for Parser<'_> {
    type Expr = Expr;
    type Op = Operator;

    fn operand(&mut self) -> Result<Expr, SyntaxError> {
        let token = self.cursor.peek();
        if let Kind::Punct(sign @ ("+" | "-")) = token.kind {
            self.cursor.next();
            let operand = climb(self, LEVEL_UNARY)?;
            let span = token.span.to(operand.span);
            if let ExprKind::Number(n) = &operand.kind {
                return Ok(Expr { kind: ExprKind::Number(if sign == "-" { -n } else { *n }), span });
            }
            return Ok(Expr { kind: ExprKind::Unary { minus: sign == "-", operand: Box::new(operand) }, span });
        }
        let primary = self.primary()?;
        self.postfixes(primary)
    }

    fn binding(&self) -> Option<Binding> {
        let token = self.cursor.peek();
        match token.kind {
            Kind::Punct(_) | Kind::Ident => binary_op(self.cursor.text_of(token)).map(|(_, b)| b),
            _ => None,
        }
    }

    fn operator(&mut self) -> Result<Operator, SyntaxError> {
        let token = self.cursor.next();
        let (op, _) = binary_op(self.cursor.text_of(token)).expect("only called where an operator is next");
        let mut matching = Matching::default();
        if op.is_set() {
            matching.cardinality = Cardinality::ManyToMany;
        }
        let returns_bool = self.cursor.eat_keyword("bool");
        if self.cursor.is_keyword("on") || self.cursor.is_keyword("ignoring") {
            matching.on = self.cursor.is_keyword("on");
            matching.explicit = true;
            self.cursor.next();
            matching.labels = self.label_list()?;
        }
        if self.cursor.is_keyword("group_left") || self.cursor.is_keyword("group_right") {
            if !matching.explicit {
                return Err(self.astray());
            }
            let left = self.cursor.is_keyword("group_left");
            self.cursor.next();
            matching.cardinality = if left { Cardinality::ManyToOne } else { Cardinality::OneToMany };
            if self.cursor.is_punct("(") {
                matching.include = self.label_list()?;
            }
        }
        loop {
            let sides = match () {
                () if self.cursor.is_keyword("fill") => (true, true),
                () if self.cursor.is_keyword("fill_left") => (true, false),
                () if self.cursor.is_keyword("fill_right") => (false, true),
                () => break,
            };
            if !matches!(self.cursor.peek_at(1).kind, Kind::Punct("(")) {
                break;
            }
            self.cursor.next();
            self.expect("(")?;
            let negative = self.cursor.eat("-");
            if !negative {
                self.cursor.eat("+");
            }
            let value = self.number()?;
            self.expect(")")?;
            let value = Some(if negative { -value } else { value });
            if sides.0 {
                matching.fill.0 = value;
            }
            if sides.1 {
                matching.fill.1 = value;
            }
        }
        Ok(Operator { op, returns_bool, matching })
    }

    fn join(&mut self, op: Operator, left: Expr, right: Expr) -> Result<Expr, SyntaxError> {
        let span = left.span.to(right.span);
        let Operator { op, returns_bool, matching } = op;
        Ok(Expr { kind: ExprKind::Binary(Box::new(Binary { op, left, right, returns_bool, matching })), span })
    }

    fn enter(&mut self) -> Result<(), SyntaxError> {
        self.cursor.enter()
    }

    fn leave(&mut self, levels: usize) {
        (0..levels).for_each(|_| self.cursor.leave());
    }
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, budget: MatcherBudget) -> Result<Self, SyntaxError> {
        let lexed = lexer::lex(text)?;
        Ok(Parser {
            cursor: Cursor::over(text, lexed.tokens),
            failure: lexed.failure,
            selectors: 0,
            names_label: false,
            aggregations: 0,
            budget,
        })
    }

    /// Errors unless the whole text is taken.
    fn finish(&self) -> Result<(), SyntaxError> {
        match self.cursor.peek().kind {
            Kind::End if self.failure.is_none() => Ok(()),
            _ => Err(self.astray()),
        }
    }

    /// Takes a number without a sign.
    fn number(&mut self) -> Result<f64, SyntaxError> {
        let token = self.cursor.peek();
        if token.kind != Kind::Number {
            return Err(self.astray());
        }
        self.cursor.next();
        literal(self.cursor.text_of(token)).map_err(|why| self.error(token.span, why))
    }
}
