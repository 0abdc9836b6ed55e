//! Tokens to syntax tree: recursive descent for the grammar, precedence climbing for operators.

use storage::model::{MatchOp, Matcher, MatcherBudget, re2};

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

    fn label_replace(&mut self) -> Parsed<Expr> {
        self.take();
        self.expect("(")?;
        let inner = Box::new(self.metric()?);
        let mut text = || -> Parsed<String> {
            self.expect(",")?;
            self.string()
        };
        let (target, replacement, source, regex) = (text()?, text()?, text()?, text()?);
        self.expect(")")?;
        if let Err(e) = self.budget.anchored(&regex) {
            return Err(QueryError::parse(format!("invalid regex in label_replace: {}", re2::told(&regex, &e))));
        }
        Ok(Expr::Metric(Metric::LabelReplace { inner, target, replacement, source, regex }))
    }

    fn grouping(&mut self) -> Parsed<Option<Grouping>> {
        let without = match self.peek() {
            Token::Ident(w) if w == "by" => false,
            Token::Ident(w) if w == "without" => true,
            _ => return Ok(None),
        };
        self.take();
        Ok(Some(Grouping { without, labels: self.label_list()? }))
    }

    fn vector_aggregation(&mut self, op: VectorOp) -> Parsed<Metric> {
        if !matches!(self.peek_at(1), Token::Op("("))
            && !matches!(self.peek_at(1), Token::Ident(w) if w == "by" || w == "without")
        {
            return self.unexpected("");
        }
        self.take();
        let mut grouping = self.grouping()?;
        self.expect("(")?;
        let mut parameter = None;
        if let (Token::Number(v), Token::Op(",")) = (self.peek().clone(), self.peek_at(1)) {
            self.take();
            self.take();
            parameter = Some(v);
        }
        let inner = self.metric()?;
        self.expect(")")?;
        if grouping.is_none() {
            grouping = self.grouping()?;
        }
        let wants = matches!(op, VectorOp::Topk | VectorOp::Bottomk | VectorOp::ApproxTopk);
        let parameter = match (wants, parameter) {
            (false, None) => None,
            (false, Some(p)) => {
                return Err(QueryError::parse(format!("unsupported parameter for operation {}({p},", op.name())));
            }
            (true, None) => {
                return Err(QueryError::parse(format!("parameter required for operation {}", op.name())));
            }
            (true, Some(p)) if p.fract() != 0.0 || !(0.0..=1e9).contains(&p) => {
                return Err(QueryError::parse(format!("invalid parameter {}({p},", op.name())));
            }
            (true, Some(p)) if p < 1.0 => {
                return Err(QueryError::parse(format!(
                    "invalid parameter (must be greater than 0) {}({p}",
                    op.name()
                )));
            }
            (true, Some(p)) => Some(p as usize),
        };
        if grouping.is_some() {
            if matches!(op, VectorOp::Sort | VectorOp::SortDesc) {
                return Err(QueryError::parse("sort and sort_desc doesn't allow grouping by "));
            }
            if op == VectorOp::ApproxTopk {
                return Err(QueryError::parse("grouping not allowed for approx_topk aggregation"));
            }
        }
        Ok(Metric::Aggregate(Box::new(VectorAggregation { op, parameter, inner, grouping })))
    }

    fn range_aggregation(&mut self, op: RangeOp) -> Parsed<Metric> {
        if !matches!(self.peek_at(1), Token::Op("(")) {
            return self.unexpected("");
        }
        self.take();
        self.take();
        let mut parameter = None;
        if let Token::Number(v) = *self.peek() {
            self.take();
            self.expect(",")?;
            parameter = Some(v);
        }
        let log = self.deeper(Self::log_range)?;
        self.expect(")")?;
        let grouping = self.grouping()?;
        let LogRange { query, unwrap, range, offset } = log;
        let Some(range) = range else {
            self.at -= 1;
            return self.unexpected("");
        };
        let name = op.name();
        match (op, parameter) {
            (RangeOp::Quantile, None) => {
                return Err(QueryError::parse(format!("parameter required for operation {name}")));
            }
            (RangeOp::Quantile, _) | (_, None) => {}
            (_, Some(p)) => {
                return Err(QueryError::parse(format!("parameter {p} not supported for operation {name}")));
            }
        }
        use RangeOp::*;
        if grouping.is_some() && !matches!(op, Avg | Min | Max | Stddev | Stdvar | Quantile | First | Last) {
            return Err(QueryError::parse(format!("grouping not allowed for {name} aggregation")));
        }
        if unwrap.is_some() && matches!(op, Count | Bytes | BytesRate) {
            return Err(QueryError::parse(format!("invalid aggregation {name} with unwrap")));
        }
        if unwrap.is_none() && !matches!(op, Count | Bytes | BytesRate | Rate | Absent) {
            return Err(QueryError::parse(format!("invalid aggregation {name} without unwrap")));
        }
        Ok(Metric::Range(Box::new(RangeAggregation { op, parameter, query, unwrap, range, offset, grouping })))
    }

    /// Selector, pipeline, unwrap, range and offset in every order that Loki takes.
    fn log_range(&mut self) -> Parsed<LogRange> {
        if self.accept("(") {
            let mut inner = self.deeper(Self::log_range)?;
            self.expect(")")?;
            self.log_range_tail(&mut inner)?;
            return Ok(inner);
        }
        if !self.is_op("{") {
            return self.unexpected("NUMBER or { or (");
        }
        let matchers = self.selector()?;
        let mut log =
            LogRange { query: LogQuery { matchers, stages: Vec::new() }, unwrap: None, range: None, offset: 0 };
        self.log_range_tail(&mut log)?;
        Ok(log)
    }

    fn log_range_tail(&mut self, log: &mut LogRange) -> Parsed<()> {
        loop {
            match self.peek() {
                Token::Range(r) if log.range.is_none() => {
                    log.range = Some(*r);
                    self.take();
                    if self.accept_word("offset") {
                        let negative = self.accept("-");
                        let Token::Duration(d) = *self.peek() else { return self.unexpected("DURATION") };
                        self.take();
                        log.offset = if negative { -d } else { d };
                    }
                }
                Token::Op("|")
                    if matches!(self.peek_at(1), Token::Ident(w) if w == "unwrap") && log.unwrap.is_none() =>
                {
                    self.take();
                    self.take();
                    log.unwrap = Some(self.unwrap()?);
                }
                Token::Op("|") if log.unwrap.is_some() => {
                    self.take();
                    let filter = self.label_filter()?;
                    if let Some(u) = &mut log.unwrap {
                        u.filters.push(filter);
                    }
                }
                Token::Op("|" | "|=" | "!=" | "|~" | "!~" | "|>" | "!>") if log.unwrap.is_none() => {
                    let before = self.at;
                    self.one_stage(&mut log.query.stages)?;
                    if self.at == before {
                        return Ok(());
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    fn unwrap(&mut self) -> Parsed<Unwrap> {
        let name = self.ident()?;
        let mut unwrap = Unwrap { label: name, convert: None, filters: Vec::new() };
        if self.is_op("(") {
            unwrap.convert = Some(match unwrap.label.as_str() {
                "bytes" => Convert::Bytes,
                "duration" => Convert::Duration,
                "duration_seconds" => Convert::DurationSeconds,
                _ => return self.unexpected("RANGE or |"),
            });
            self.take();
            unwrap.label = self.ident()?;
            self.expect(")")?;
        }
        Ok(unwrap)
    }

    // --- log expressions ---

    fn log_query(&mut self) -> Parsed<LogQuery> {
        let matchers = self.selector()?;
        let mut stages = Vec::new();
        self.stages(&mut stages)?;
        Ok(LogQuery { matchers, stages })
    }

    fn selector(&mut self) -> Parsed<Vec<Matcher>> {
        self.expect("{")?;
        let mut matchers = Vec::new();
        if self.accept("}") {
            return Ok(matchers);
        }
        loop {
            match self.peek() {
                Token::Ident(_) => {}
                _ if matchers.is_empty() => return self.unexpected("IDENTIFIER or }"),
                _ => return self.unexpected("IDENTIFIER"),
            }
            matchers.push(self.matcher()?);
            if self.accept("}") {
                return Ok(matchers);
            }
            if !self.accept(",") {
                return self.unexpected("} or ,");
            }
        }
    }

    fn matcher(&mut self) -> Parsed<Matcher> {
        let name = self.ident()?;
        let op = match self.peek() {
            Token::Op("=") => MatchOp::Eq,
            Token::Op("!=") => MatchOp::Ne,
            Token::Op("=~") => MatchOp::Re,
            Token::Op("!~") => MatchOp::Nre,
            _ => return self.unexpected("= or =~ or !~ or !="),
        };
        self.take();
        let value = self.string()?;
        self.new_matcher(name, op, value)
    }

    fn new_matcher(&mut self, name: String, op: MatchOp, value: String) -> Parsed<Matcher> {
        let matcher = self.budget.matcher(name, op, value.clone());
        matcher.map_err(|e| QueryError::parse(re2::told(&value, &e)))
    }

    fn stages(&mut self, out: &mut Vec<Stage>) -> Parsed<()> {
        while matches!(self.peek(), Token::Op("|" | "|=" | "!=" | "|~" | "!~" | "|>" | "!>")) {
            // `!=` may also compare two metrics; behind a log query that is an error either way.
            self.one_stage(out)?;
        }
        Ok(())
    }

    fn one_stage(&mut self, out: &mut Vec<Stage>) -> Parsed<()> {
        let op = match self.peek() {
            Token::Op("|=") => LineOp::Contains,
            Token::Op("!=") => LineOp::NotContains,
            Token::Op("|~") => LineOp::Matches,
            Token::Op("!~") => LineOp::NotMatches,
            Token::Op("|>") => LineOp::Pattern,
            Token::Op("!>") => LineOp::NotPattern,
            _ => {
                self.expect("|")?;
                out.push(self.pipe_stage()?);
                return Ok(());
            }
        };
        self.take();
        let mut operands = vec![self.line_operand(op)?];
        while self.accept_word("or") {
            operands.push(self.line_operand(op)?);
        }
        out.push(Stage::Line(LineFilter { op, operands }));
        Ok(())
    }

    fn line_operand(&mut self, op: LineOp) -> Parsed<LineOperand> {
        if self.is_word("ip")
            && matches!(self.peek_at(1), Token::Op("("))
            && matches!(op, LineOp::Contains | LineOp::NotContains)
        {
            return Ok(LineOperand::Ip(self.ip()?));
        }
        match self.peek() {
            Token::Str(_) => {
                let text = self.string()?;
                if matches!(op, LineOp::Matches | LineOp::NotMatches) {
                    self.fits(&text)?;
                }
                Ok(LineOperand::Text(text))
            }
            _ => self.unexpected("STRING or ip"),
        }
    }

    /// Errors when the expression is larger than what the query may still have. Its syntax is looked at with its stage.
    fn fits(&mut self, regex: &str) -> Parsed<()> {
        match self.budget.regex(regex) {
            Err(e @ regex::Error::CompiledTooBig(_)) => Err(QueryError::parse(re2::told(regex, &e))),
            _ => Ok(()),
        }
    }

    fn ip(&mut self) -> Parsed<String> {
        self.take();
        self.expect("(")?;
        let pattern = self.string()?;
        self.expect(")")?;
        Ok(pattern)
    }

    fn pipe_stage(&mut self) -> Parsed<Stage> {
        let Token::Ident(word) = self.peek().clone() else {
            if self.is_op("(") {
                return Ok(Stage::Labels(self.label_filter()?));
            }
            return self.unexpected("");
        };
        // A keyword followed by a comparison is a label of that name.
        if matches!(self.peek_at(1), Token::Op("=" | "==" | "!=" | "=~" | "!~" | ">" | ">=" | "<" | "<="))
            && !matches!(
                (word.as_str(), self.peek_at(1), self.peek_at(2)),
                ("json" | "logfmt" | "unpack" | "decolorize", Token::Op("!=" | "!~"), _)
            )
        {
            return Ok(Stage::Labels(self.label_filter()?));
        }
        Ok(match word.as_str() {
            "json" => {
                self.take();
                Stage::Json(self.extracts()?)
            }
            "logfmt" => {
                self.take();
                let (mut strict, mut keep_empty) = (false, false);
                while let Token::Flag(flag) = *self.peek() {
                    self.take();
                    match flag {
                        "strict" => strict = true,
                        _ => keep_empty = true,
                    }
                }
                Stage::Logfmt { strict, keep_empty, extract: self.extracts()? }
            }
            "regexp" => {
                self.take();
                let re = self.string()?;
                check_regexp(&mut self.budget, &re)?;
                Stage::Regexp(re)
            }
            "pattern" => {
                self.take();
                let p = self.string()?;
                super::stage::pattern::Pattern::parse(&p)
                    .map_err(|e| QueryError::parse(format!("invalid pattern parser: {e}")))?;
                Stage::Pattern(p)
            }
            "unpack" => {
                self.take();
                Stage::Unpack
            }
            "decolorize" => {
                self.take();
                Stage::Decolorize
            }
            "line_format" => {
                self.take();
                Stage::LineFormat(self.string()?)
            }
            "label_format" => {
                self.take();
                Stage::LabelFormat(self.label_formats()?)
            }
            "drop" => {
                self.take();
                Stage::Drop(self.names_or_matchers()?)
            }
            "keep" => {
                self.take();
                Stage::Keep(self.names_or_matchers()?)
            }
            "unwrap" | "or" | "and" | "unless" => return self.unexpected(""),
            _ => Stage::Labels(self.label_filter()?),
        })
    }

    fn extracts(&mut self) -> Parsed<Vec<Extract>> {
        let mut out = Vec::new();
        while matches!(self.peek(), Token::Ident(_)) {
            let name = self.ident()?;
            let path = if self.accept("=") { self.string()? } else { name.clone() };
            out.push(Extract { name, path });
            if !self.is_op(",") {
                break;
            }
            self.take();
            if !matches!(self.peek(), Token::Ident(_)) {
                return self.unexpected("IDENTIFIER");
            }
        }
        Ok(out)
    }

    fn label_formats(&mut self) -> Parsed<Vec<LabelFormat>> {
        let mut out: Vec<LabelFormat> = Vec::new();
        loop {
            let to = self.ident()?;
            if !self.accept("=") {
                return self.unexpected("=");
            }
            let format = match self.peek() {
                Token::Str(_) => LabelFormat::Template { to, template: self.string()? },
                Token::Ident(_) => LabelFormat::Rename { to, from: self.ident()? },
                _ => return self.unexpected("STRING or IDENTIFIER"),
            };
            out.push(format);
            if !self.accept(",") {
                return Ok(out);
            }
        }
    }

    fn names_or_matchers(&mut self) -> Parsed<Vec<NameOrMatcher>> {
        let mut out = Vec::new();
        loop {
            if !matches!(self.peek(), Token::Ident(_)) {
                return self.unexpected("IDENTIFIER");
            }
            out.push(match self.peek_at(1) {
                Token::Op("=" | "=~") => NameOrMatcher::Matcher(self.matcher()?),
                // `drop a != "x"` filters by label, `drop a |= "x"` filters lines: both mean the label when a name leads.
                Token::Op("!=" | "!~") if matches!(self.peek_at(2), Token::Str(_)) => {
                    NameOrMatcher::Matcher(self.matcher()?)
                }
                _ => NameOrMatcher::Name(self.ident()?),
            });
            if !self.accept(",") {
                return Ok(out);
            }
        }
    }

    // --- label filters ---

    fn label_filter(&mut self) -> Parsed<LabelFilter> {
        let mut left = self.label_and()?;
        while self.accept_word("or") {
            left = LabelFilter::Or(Box::new(left), Box::new(self.label_and()?));
        }
        Ok(left)
    }

    /// `and` binds tighter than `or`. A comma or mere juxtaposition takes all that follows as its right side, `or` included,
    /// because Loki's grammar gives them no precedence: `a , b or c` is `a and (b or c)`.
    fn label_and(&mut self) -> Parsed<LabelFilter> {
        let mut left = self.label_unit()?;
        loop {
            if self.accept_word("and") {
                left = LabelFilter::And(Box::new(left), Box::new(self.label_unit()?));
                continue;
            }
            let juxtaposed = !self.is_word("or") && (self.is_op("(") || matches!(self.peek(), Token::Ident(_)));
            if !self.accept(",") && !juxtaposed {
                return Ok(left);
            }
            let right = self.deeper(Self::label_filter)?;
            return Ok(LabelFilter::And(Box::new(left), Box::new(right)));
        }
    }

    fn label_unit(&mut self) -> Parsed<LabelFilter> {
        if self.accept("(") {
            let inner = self.deeper(Self::label_filter)?;
            self.expect(")")?;
            return Ok(inner);
        }
        let name = match self.peek() {
            Token::Ident(w) if w != "or" && w != "and" => self.ident()?,
            _ => return self.unexpected(""),
        };
        let Token::Op(op) = *self.peek() else { return self.unexpected_after_name(&name) };
        let compare = match op {
            "=" | "==" => CompareOp::Eq,
            "!=" => CompareOp::Ne,
            ">" => CompareOp::Gt,
            ">=" => CompareOp::Ge,
            "<" => CompareOp::Lt,
            "<=" => CompareOp::Le,
            "=~" | "!~" => {
                self.take();
                let op = if op == "=~" { MatchOp::Re } else { MatchOp::Nre };
                let value = self.string()?;
                return Ok(LabelFilter::Match(self.new_matcher(name, op, value)?));
            }
            _ => return self.unexpected(""),
        };
        self.take();
        match self.peek().clone() {
            Token::Str(value) if matches!(op, "=" | "!=") => {
                self.take();
                let op = if op == "=" { MatchOp::Eq } else { MatchOp::Ne };
                Ok(LabelFilter::Match(self.new_matcher(name, op, value)?))
            }
            Token::Ident(w) if w == "ip" && matches!(op, "=" | "!=") => {
                Ok(LabelFilter::Ip { name, negated: op == "!=", pattern: self.ip()? })
            }
            Token::Op(sign @ ("+" | "-")) => {
                self.take();
                let value = match self.take() {
                    Token::Number(v) => Literal::Number(if sign == "-" { -v } else { v }),
                    Token::Duration(d) => Literal::Duration(if sign == "-" { -d } else { d }),
                    _ => {
                        self.at -= 1;
                        return self.unexpected("");
                    }
                };
                Ok(LabelFilter::Compare { name, op: compare, value })
            }
            Token::Number(v) => {
                self.take();
                Ok(LabelFilter::Compare { name, op: compare, value: Literal::Number(v) })
            }
            Token::Duration(d) => {
                self.take();
                Ok(LabelFilter::Compare { name, op: compare, value: Literal::Duration(d) })
            }
            Token::Bytes(b) => {
                self.take();
                Ok(LabelFilter::Compare { name, op: compare, value: Literal::Bytes(b) })
            }
            _ => self.unexpected(""),
        }
    }

    fn unexpected_after_name<T>(&self, _name: &str) -> Parsed<T> {
        self.unexpected("")
    }
}

struct LogRange {
    query: LogQuery,
    unwrap: Option<Unwrap>,
    range: Option<i64>,
    offset: i64,
}

fn check_regexp(budget: &mut MatcherBudget, re: &str) -> Parsed<()> {
    let fail = |what: String| Err(QueryError::parse(format!("invalid regexp parser: {what}")));
    let mut names: Vec<&str> = Vec::new();
    // Duplicates first: the regex engine refuses them with a message of its own.
    let mut rest = re;
    while let Some(i) = rest.find("(?P<") {
        rest = &rest[i + 4..];
        let name = rest.split('>').next().unwrap_or("");
        if names.contains(&name) {
            return fail(format!("duplicate extracted label name '{name}'"));
        }
        names.push(name);
    }
    match budget.regex(re) {
        Err(e) => fail(re2::told(re, &e)),
        Ok(r) if r.capture_names().flatten().next().is_none() => {
            fail("at least one named capture must be supplied".into())
        }
        Ok(_) => Ok(()),
    }
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

#[cfg(test)]
#[path = "parser_tests.rs"]
mod tests;
