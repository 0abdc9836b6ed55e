//! Tokens to syntax tree: recursive descent for the grammar, precedence climbing for operators.

mod metric;
mod stage;
#[cfg(test)]
mod tests;

use storage::model::{MatchOp, Matcher, MatcherBudget};

use super::{
    ast::*,
    error::QueryError,
    lexer::{self, Spanned, Token},
};

/// Deepest nesting of parentheses and function calls.
pub const QUERY_DEPTH_MAX: usize = 64;

/// What Loki says to a selector that would match every stream.
pub const EMPTY_SELECTOR: &str = "queries require at least one regexp or equality matcher that does not have an empty-compatible value. For instance, app=~\".*\" does not meet this requirement, but app=~\".+\" will";

/// A whole query, checked: types of operands, parameters, and that each selector excludes something.
pub fn parse(text: &str) -> Result<Expr, QueryError> {
    let mut p = Parser::new(text)?;
    if *p.peek() == Token::End {
        return Err(QueryError::parse("syntax error: unexpected $end"));
    }
    let expr = p.expression(0)?;
    p.end()?;
    check(&expr)?;
    Ok(expr)
}

/// A stream selector alone. `{}` is accepted here; callers that refuse it use [`check_matchers`].
pub fn parse_matchers(text: &str) -> Result<Vec<Matcher>, QueryError> {
    parse_matchers_within(text, &mut MatcherBudget::default())
}

/// As [`parse_matchers`], for one of several of a request.
pub fn parse_matchers_within(text: &str, budget: &mut MatcherBudget) -> Result<Vec<Matcher>, QueryError> {
    let mut p = Parser::new(text)?;
    p.budget = *budget;
    if *p.peek() == Token::End {
        return Err(QueryError::parse("syntax error: unexpected $end"));
    }
    match p.expression(0)? {
        Expr::Log(q) if q.stages.is_empty() => {
            p.end()?;
            *budget = p.budget;
            Ok(q.matchers)
        }
        _ => Err(QueryError::Parse("only label matchers are supported".into())),
    }
}

pub fn check_matchers(matchers: &[Matcher]) -> Result<(), QueryError> {
    if matchers.iter().any(|m| matches!(m.op(), MatchOp::Eq | MatchOp::Re) && !m.matches_empty()) {
        Ok(())
    } else {
        Err(QueryError::parse(EMPTY_SELECTOR))
    }
}

fn check(expr: &Expr) -> Result<(), QueryError> {
    match expr {
        Expr::Log(q) => check_matchers(&q.matchers),
        Expr::Metric(m) => check_metric(m),
    }
}

fn check_metric(metric: &Metric) -> Result<(), QueryError> {
    match metric {
        Metric::Number(_) | Metric::Vector(_) => Ok(()),
        Metric::Range(r) => check_matchers(&r.query.matchers),
        Metric::Aggregate(a) => check_metric(&a.inner),
        Metric::LabelReplace { inner, .. } => check_metric(inner),
        Metric::Binary(b) => check_metric(&b.left).and_then(|()| check_metric(&b.right)),
    }
}

struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
    depth: usize,
    /// Of all regular expressions of the query.
    budget: MatcherBudget,
}

type Parsed<T> = Result<T, QueryError>;

impl Parser {
    fn new(text: &str) -> Parsed<Self> {
        Ok(Parser { tokens: lexer::lex(text)?, at: 0, depth: 0, budget: MatcherBudget::default() })
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.at].token
    }

    fn peek_at(&self, ahead: usize) -> &Token {
        let last = self.tokens.len() - 1;
        &self.tokens[(self.at + ahead).min(last)].token
    }

    fn take(&mut self) -> Token {
        let token = self.tokens[self.at].token.clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    fn unexpected<T>(&self, expecting: &str) -> Parsed<T> {
        let s = &self.tokens[self.at];
        let mut what = format!("syntax error: unexpected {}", s.token.describe());
        if !expecting.is_empty() {
            what.push_str(", expecting ");
            what.push_str(expecting);
        }
        Err(QueryError::parse_at(s.line, s.col, what))
    }

    fn end(&self) -> Parsed<()> {
        if *self.peek() == Token::End { Ok(()) } else { self.unexpected("") }
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Token::Op(o) if *o == op)
    }

    fn accept(&mut self, op: &str) -> bool {
        let hit = self.is_op(op);
        if hit {
            self.take();
        }
        hit
    }

    fn expect(&mut self, op: &str) -> Parsed<()> {
        if self.accept(op) { Ok(()) } else { self.unexpected(op) }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Ident(w) if w == word)
    }

    fn accept_word(&mut self, word: &str) -> bool {
        let hit = self.is_word(word);
        if hit {
            self.take();
        }
        hit
    }

    fn ident(&mut self) -> Parsed<String> {
        match self.peek() {
            Token::Ident(name) => {
                let name = name.clone();
                self.take();
                Ok(name)
            }
            _ => self.unexpected("IDENTIFIER"),
        }
    }

    fn string(&mut self) -> Parsed<String> {
        match self.peek() {
            Token::Str(s) => {
                let s = s.clone();
                self.take();
                Ok(s)
            }
            _ => self.unexpected("STRING"),
        }
    }

    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= QUERY_DEPTH_MAX {
            return Err(QueryError::parse(format!("query is nested deeper than {QUERY_DEPTH_MAX} levels")));
        }
        self.depth += 1;
        let out = f(self);
        self.depth -= 1;
        out
    }

    // --- metric expressions ---

    fn expression(&mut self, min: u8) -> Parsed<Expr> {
        let mut left = self.deeper(Self::primary)?;
        while let Some(op) = self.binary_op().filter(|op| op.precedence() >= min) {
            self.take();
            let (return_bool, matching) = self.modifiers(op)?;
            let next = if op == BinaryOp::Pow { op.precedence() } else { op.precedence() + 1 };
            let right = self.deeper(|p| p.expression(next))?;
            left = Expr::Metric(binary(op, left, right, return_bool, matching)?);
        }
        Ok(left)
    }

    fn binary_op(&self) -> Option<BinaryOp> {
        Some(match self.peek() {
            Token::Op("==") => BinaryOp::Eq,
            Token::Op("!=") => BinaryOp::Ne,
            Token::Op(">") => BinaryOp::Gt,
            Token::Op(">=") => BinaryOp::Ge,
            Token::Op("<") => BinaryOp::Lt,
            Token::Op("<=") => BinaryOp::Le,
            Token::Op("+") => BinaryOp::Add,
            Token::Op("-") => BinaryOp::Sub,
            Token::Op("*") => BinaryOp::Mul,
            Token::Op("/") => BinaryOp::Div,
            Token::Op("%") => BinaryOp::Mod,
            Token::Op("^") => BinaryOp::Pow,
            Token::Ident(w) => match w.as_str() {
                "or" => BinaryOp::Or,
                "and" => BinaryOp::And,
                "unless" => BinaryOp::Unless,
                _ => return None,
            },
            _ => return None,
        })
    }

    fn modifiers(&mut self, _op: BinaryOp) -> Parsed<(bool, Matching)> {
        let return_bool = self.accept_word("bool");
        let mut matching = Matching::default();
        if self.is_word("on") || self.is_word("ignoring") {
            matching.on = self.is_word("on");
            self.take();
            matching.labels = self.label_list()?;
            for (word, card) in [("group_left", Cardinality::ManyToOne), ("group_right", Cardinality::OneToMany)] {
                if self.accept_word(word) {
                    matching.card = card;
                    // `group_left (expr)` without labels is ambiguous; Loki reads the parenthesis as labels.
                    if self.is_op("(") && self.looks_like_labels() {
                        matching.include = self.label_list()?;
                    }
                    break;
                }
            }
        }
        Ok((return_bool, matching))
    }

    /// Whether `(`, names and commas, `)` follow, that is, a label list and no expression.
    fn looks_like_labels(&self) -> bool {
        let mut ahead = 1;
        loop {
            match self.peek_at(ahead) {
                Token::Op(")") => return true,
                Token::Ident(_) | Token::Op(",") => ahead += 1,
                _ => return false,
            }
        }
    }

    fn label_list(&mut self) -> Parsed<Vec<String>> {
        self.expect("(")?;
        let mut labels = Vec::new();
        while !self.is_op(")") {
            if !labels.is_empty() {
                self.expect(",")?;
            }
            labels.push(self.ident()?);
        }
        self.take();
        Ok(labels)
    }

    fn primary(&mut self) -> Parsed<Expr> {
        match self.peek().clone() {
            Token::Number(v) => {
                self.take();
                Ok(Expr::Metric(Metric::Number(v)))
            }
            Token::Op(sign @ ("+" | "-")) => {
                self.take();
                match self.take() {
                    Token::Number(v) => Ok(Expr::Metric(Metric::Number(if sign == "-" { -v } else { v }))),
                    _ => {
                        self.at -= 1;
                        self.unexpected("NUMBER")
                    }
                }
            }
            Token::Op("{") => Ok(Expr::Log(self.log_query()?)),
            Token::Op("(") => {
                self.take();
                let inner = self.deeper(|p| p.expression(0))?;
                self.expect(")")?;
                match inner {
                    Expr::Log(mut q) => {
                        self.stages(&mut q.stages)?;
                        Ok(Expr::Log(q))
                    }
                    metric => Ok(metric),
                }
            }
            Token::Ident(name) => {
                if let Some(op) = RangeOp::from_name(&name) {
                    return Ok(Expr::Metric(self.range_aggregation(op)?));
                }
                if let Some(op) = VectorOp::from_name(&name) {
                    return Ok(Expr::Metric(self.vector_aggregation(op)?));
                }
                match name.as_str() {
                    "vector" => {
                        self.take();
                        self.expect("(")?;
                        let Token::Number(v) = *self.peek() else { return self.unexpected("NUMBER") };
                        self.take();
                        self.expect(")")?;
                        Ok(Expr::Metric(Metric::Vector(v)))
                    }
                    "label_replace" => self.label_replace(),
                    _ => self.unexpected(""),
                }
            }
            _ => self.unexpected(""),
        }
    }

    fn metric(&mut self) -> Parsed<Metric> {
        let before = self.at;
        match self.deeper(|p| p.expression(0))? {
            Expr::Metric(m) => Ok(m),
            Expr::Log(_) => {
                let _ = before;
                self.unexpected("")
            }
        }
    }

    // --- log expressions ---

    // --- label filters ---
}

fn binary(op: BinaryOp, left: Expr, right: Expr, return_bool: bool, matching: Matching) -> Parsed<Metric> {
    let leg = |side: &str, e: Expr| match e {
        Expr::Metric(m) => Ok(m),
        Expr::Log(q) => Err(QueryError::parse(format!(
            "unexpected type for {side} leg of binary operation ({}): *syntax.{}",
            op.text(),
            if q.stages.is_empty() { "MatchersExpr" } else { "PipelineExpr" }
        ))),
    };
    let (left, right) = (leg("left", left)?, leg("right", right)?);
    if op.is_set() {
        for (side, m) in [("left", &left), ("right", &right)] {
            if let Metric::Number(v) = m {
                return Err(QueryError::parse(format!(
                    "unexpected literal for {side} leg of logical/set binary operation ({}): {v:.6}",
                    op.text()
                )));
            }
        }
    }
    if let (Metric::Number(a), Metric::Number(b)) = (&left, &right) {
        return Ok(Metric::Number(op.apply(*a, *b)));
    }
    Ok(Metric::Binary(Box::new(Binary { op, left, right, return_bool, matching })))
}
