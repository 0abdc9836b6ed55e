//! Text to tree. The grammar is that of Prometheus 3, experimental parts included.

use storage::model::{MatchOp, Matcher, MatcherBudget};

use super::{
    ast::{
        Aggregate, AggregateOp, At, Binary, BinaryOp, Cardinality, Duration, DurationKind, Edges, Expr, ExprKind,
        Matching, Selector, Subquery,
    },
    check,
    eval::name_matchers,
    functions, stack, unclosed,
};
use crate::syntax::{Binding, Climb, Cursor, Dialect, Kind, Span, SyntaxError, climb};

pub(super) const DIALECT: Dialect = Dialect {
    puncts: &[
        "=~", "!~", "!=", "==", "<=", ">=", "</", ">/", "<", ">", "=", "(", ")", "{", "}", "[", "]", ",", "+", "-",
        "*", "/", "%", "^", "@", ":",
    ],
    ident_start: |c| c.is_ascii_alphabetic() || c == '_',
    ident_continue: |c| c.is_ascii_alphanumeric() || c == '_',
    colon_in_idents: true,
    single_quotes: true,
};

const LEVEL_UNARY: u8 = 6;

/// Parses and type-checks one expression.
pub fn parse(text: &str) -> Result<Expr, SyntaxError> {
    parse_within(text, &mut MatcherBudget::default())
}

fn parse_within(text: &str, budget: &mut MatcherBudget) -> Result<Expr, SyntaxError> {
    stack::with_room(text, || parse_here(text, budget))
}

fn parse_here(text: &str, budget: &mut MatcherBudget) -> Result<Expr, SyntaxError> {
    let mut parser =
        Parser { cursor: Cursor::new(text, &DIALECT)?, selectors: 0, names_label: false, budget: *budget };
    if parser.cursor.peek().kind == Kind::End {
        return Err(parser.cursor.error(Span::new(0, 0), "no expression found in input"));
    }
    let expr = climb(&mut parser, 0).and_then(|expr| parser.cursor.finish().map(|()| expr));
    let expr = expr.map_err(|e| unclosed::told(text, parser.cursor.tokens(), e))?;
    *budget = parser.budget;
    check::check(text, &expr)?;
    Ok(expr)
}

/// Parses one plain selector, as `match[]` takes it: its matchers. No offset, `@` or range.
pub fn parse_selector(text: &str) -> Result<Vec<Matcher>, SyntaxError> {
    parse_selector_within(text, &mut MatcherBudget::default())
}

/// As [`parse_selector`], for one of several of a request.
pub fn parse_selector_within(text: &str, budget: &mut MatcherBudget) -> Result<Vec<Matcher>, SyntaxError> {
    let expr = parse_within(text, budget)?;
    match expr.kind {
        ExprKind::Selector(s) if s.offset.is_none() && s.at.is_none() => Ok(s.matchers),
        _ => Err(SyntaxError::new(text, expr.span, "expected a vector selector without offset, @ or range")),
    }
}

/// `1h30m`, `500ms`: each unit once, from long to short, whole numbers. `None` if the text is nothing of the kind.
pub fn parse_duration_ms(text: &str) -> Option<i64> {
    const UNITS: [(&str, i64); 7] = [
        ("y", 365 * 86_400_000),
        ("w", 7 * 86_400_000),
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
        ("ms", 1),
    ];
    let mut rest = text;
    let mut total = 0i64;
    let mut next_unit = 0;
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: i64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = UNITS.iter().position(|(name, _)| *name == &rest[..letters])?;
        if unit < next_unit {
            return None;
        }
        next_unit = unit + 1;
        total = total.checked_add(count.checked_mul(UNITS[unit].1)?)?;
        rest = &rest[letters..];
    }
    Some(total)
}

/// A number or, as seconds, a duration.
fn parse_number(text: &str) -> Option<f64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(&hex.replace('_', ""), 16).ok().map(|v| v as f64);
    }
    let underscores_ok = !text.starts_with('_') && !text.ends_with('_') && !text.contains("__");
    if text.bytes().all(|b| b.is_ascii_digit() || b"._eE+-".contains(&b)) && underscores_ok {
        // Go reads a leading zero as octal where the text is an octal number.
        if text.len() > 1 && text.starts_with('0') && text.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
            return i64::from_str_radix(text, 8).ok().map(|v| v as f64);
        }
        return text.replace('_', "").parse().ok();
    }
    parse_duration_ms(text).map(|ms| ms as f64 / 1000.0)
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
    selectors: usize,
    /// A string here is the name of a label.
    names_label: bool,
    budget: MatcherBudget,
}

struct Operator {
    op: BinaryOp,
    span: Span,
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
            if let (ExprKind::Number(n), false) = (&operand.kind, false) {
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
                return Err(self.cursor.unexpected("binary expression", "on or ignoring before a grouping"));
            }
            let left = self.cursor.is_keyword("group_left");
            let span = self.cursor.next().span;
            if op.is_set() {
                return Err(self.cursor.error(span, format!("no grouping allowed for {:?} operation", op.symbol())));
            }
            matching.cardinality = if left { Cardinality::ManyToOne } else { Cardinality::OneToMany };
            if self.cursor.is_punct("(") {
                matching.include = self.label_list()?;
            }
            if let Some(label) = matching.include.iter().find(|l| matching.on && matching.labels.contains(l)) {
                let message = format!("label {label:?} must not occur in ON and GROUP clause at once");
                return Err(self.cursor.error(span, message));
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
            let span = self.cursor.next().span;
            if op.is_set() {
                return Err(self.cursor.error(span, "filling in missing series is not allowed for set operators"));
            }
            self.cursor.expect("(", "fill modifier")?;
            let negative = self.cursor.eat("-");
            if !negative {
                self.cursor.eat("+");
            }
            let token = self.cursor.next();
            let text = self.cursor.text_of(token);
            let value = parse_word_number(text)
                .or_else(|| parse_number(text))
                .ok_or_else(|| self.cursor.error(token.span, "expected a number in fill modifier"))?;
            self.cursor.expect(")", "fill modifier")?;
            let value = Some(if negative { -value } else { value });
            if sides.0 {
                matching.fill.0 = value;
            }
            if sides.1 {
                matching.fill.1 = value;
            }
        }
        Ok(Operator { op, span: token.span, returns_bool, matching })
    }

    fn join(&mut self, op: Operator, left: Expr, right: Expr) -> Result<Expr, SyntaxError> {
        if op.returns_bool && !op.op.is_comparison() {
            return Err(self.cursor.error(op.span, "bool modifier can only be used on comparison operators"));
        }
        let span = left.span.to(right.span);
        let Operator { op, returns_bool, matching, .. } = op;
        Ok(Expr { kind: ExprKind::Binary(Box::new(Binary { op, left, right, returns_bool, matching })), span })
    }

    fn enter(&mut self) -> Result<(), SyntaxError> {
        self.cursor.enter()
    }

    fn leave(&mut self, levels: usize) {
        (0..levels).for_each(|_| self.cursor.leave());
    }
}

/// `Inf` and `NaN`, in any case of letters.
fn parse_word_number(text: &str) -> Option<f64> {
    if text.eq_ignore_ascii_case("inf") {
        Some(f64::INFINITY)
    } else if text.eq_ignore_ascii_case("nan") {
        Some(f64::NAN)
    } else {
        None
    }
}

impl Parser<'_> {
    fn primary(&mut self) -> Result<Expr, SyntaxError> {
        let token = self.cursor.peek();
        let text = self.cursor.text_of(token);
        match token.kind {
            Kind::Number => {
                self.cursor.next();
                let value = parse_number(text).ok_or_else(|| {
                    self.cursor.error(token.span, format!("bad number or duration syntax: {text:?}"))
                })?;
                Ok(Expr { kind: ExprKind::Number(value), span: token.span })
            }
            Kind::String => {
                let (value, span) = self.string()?;
                Ok(Expr { kind: ExprKind::String(value), span })
            }
            Kind::Punct("(") => {
                self.cursor.next();
                let inner = climb(self, 0)?;
                let end = self.cursor.expect(")", "parenthesised expression")?;
                Ok(Expr { kind: ExprKind::Paren(Box::new(inner)), span: token.span.to(end) })
            }
            Kind::Punct("{") => self.selector(None, token.span, false),
            Kind::Ident => self.name(text, token.span),
            _ => Err(self.cursor.unexpected("", "")),
        }
    }

    fn string(&mut self) -> Result<(String, Span), SyntaxError> {
        let (bytes, span) = self.cursor.string_bytes("expression")?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok((text, span)),
            Err(e) => {
                let mut shown = String::new();
                for chunk in e.as_bytes().utf8_chunks() {
                    shown.push_str(chunk.valid());
                    chunk.invalid().iter().for_each(|b| shown.push_str(&format!("\\x{b:02x}")));
                }
                let what = if self.names_label { "invalid label name" } else { "invalid UTF-8 in string" };
                Err(self.cursor.error(span, format!("{what} \"{shown}\"")))
            }
        }
    }

    fn name(&mut self, text: &str, span: Span) -> Result<Expr, SyntaxError> {
        let after = self.cursor.peek_at(1);
        if !matches!(after.kind, Kind::Punct("{"))
            && let Some(value) = parse_word_number(text)
        {
            self.cursor.next();
            return Ok(Expr { kind: ExprKind::Number(value), span });
        }
        let after_word = self.cursor.text_of(after);
        let grouped = after.kind == Kind::Ident
            && (after_word.eq_ignore_ascii_case("by") || after_word.eq_ignore_ascii_case("without"));
        let called = matches!(after.kind, Kind::Punct("("));
        if let Some(op) = AggregateOp::ALL.into_iter().find(|op| op.name().eq_ignore_ascii_case(text))
            && (grouped || called)
        {
            self.cursor.next();
            return self.aggregate(op, span);
        }
        if ["bool", "on", "ignoring", "group_left", "group_right"].iter().any(|k| k.eq_ignore_ascii_case(text)) {
            return Err(self.cursor.unexpected("", ""));
        }
        if called && binary_op(text).is_none() {
            let function = functions::find(text)
                .ok_or_else(|| self.cursor.error(span, format!("unknown function with name {text:?}")))?;
            self.cursor.next();
            let (mut args, end) = self.arguments(function.name == "info")?;
            if function.name == "info" {
                self.complete_info(&mut args, end);
            }
            return Ok(Expr { kind: ExprKind::Call { function, args }, span: span.to(end) });
        }
        self.cursor.next();
        self.selector(Some(text.to_owned()), span, false)
    }

    /// Gives `info` its selector of info metrics where it has none, or none by name.
    fn complete_info(&mut self, args: &mut Vec<Expr>, end: Span) {
        if args.len() == 1 {
            let id = self.selectors;
            self.selectors += 1;
            let selector =
                Selector { id, name: None, matchers: Vec::new(), offset: None, at: None, edges: Edges::Plain };
            args.push(Expr { kind: ExprKind::Selector(selector), span: end });
        }
        if let Some(ExprKind::Selector(s)) = args.get_mut(1).map(|a| &mut a.kind) {
            name_matchers(&mut s.matchers);
        }
    }

    /// `(a, b)`; with the span of the closing parenthesis. A trailing comma is not allowed.
    fn arguments(&mut self, info: bool) -> Result<(Vec<Expr>, Span), SyntaxError> {
        self.cursor.expect("(", "call")?;
        let mut args = Vec::new();
        if !self.cursor.is_punct(")") {
            loop {
                let start = self.cursor.peek();
                if info && args.len() == 1 && start.kind == Kind::Punct("{") {
                    args.push(self.selector(None, start.span, true)?);
                } else {
                    args.push(climb(self, 0)?);
                }
                if !self.cursor.eat(",") {
                    break;
                }
            }
        }
        let end = self.cursor.expect(")", "call")?;
        Ok((args, end))
    }

    fn aggregate(&mut self, op: AggregateOp, start: Span) -> Result<Expr, SyntaxError> {
        let mut grouping = self.grouping()?;
        self.names_label = op == AggregateOp::CountValues;
        let arguments = self.arguments(false);
        self.names_label = false;
        let (mut args, mut end) = arguments?;
        if grouping.is_none() {
            grouping = self.grouping()?;
            if grouping.is_some() {
                end = self.cursor.previous().span;
            }
        }
        let span = start.to(end);
        if args.is_empty() {
            return Err(self.cursor.error(span, "no arguments for aggregate expression provided"));
        }
        let wanted = if op.parameter().is_some() { 2 } else { 1 };
        if args.len() != wanted {
            let message = format!(
                "wrong number of arguments for aggregate expression provided, expected {wanted}, got {}",
                args.len()
            );
            return Err(self.cursor.error(span, message));
        }
        let operand = args.pop().expect("one or two arguments");
        let (without, grouping) = grouping.unwrap_or((false, Vec::new()));
        let aggregate = Aggregate { op, parameter: args.pop(), operand, without, grouping };
        Ok(Expr { kind: ExprKind::Aggregate(Box::new(aggregate)), span })
    }

    fn grouping(&mut self) -> Result<Option<(bool, Vec<String>)>, SyntaxError> {
        let without = self.cursor.is_keyword("without");
        if !without && !self.cursor.is_keyword("by") {
            return Ok(None);
        }
        self.cursor.next();
        Ok(Some((without, self.label_list()?)))
    }

    fn label_list(&mut self) -> Result<Vec<String>, SyntaxError> {
        self.cursor.expect("(", "grouping opts")?;
        let mut out = Vec::new();
        while !self.cursor.is_punct(")") {
            let token = self.cursor.peek();
            match token.kind {
                Kind::Ident if !self.cursor.text_of(token).contains(':') => {
                    self.cursor.next();
                    out.push(self.cursor.text_of(token).to_owned());
                }
                Kind::String => {
                    let (name, span) = self.cursor.string("grouping opts")?;
                    if name.is_empty() {
                        return Err(self.cursor.error(span, "invalid label name for grouping: \"\""));
                    }
                    out.push(name);
                }
                _ => return Err(self.cursor.unexpected("grouping opts", "label")),
            }
            if !self.cursor.eat(",") {
                break;
            }
        }
        self.cursor.expect(")", "grouping opts")?;
        Ok(out)
    }

    /// `{...}` if it is next, after an optional name. `open`: matchers need not exclude the empty series.
    fn selector(&mut self, name: Option<String>, start: Span, open: bool) -> Result<Expr, SyntaxError> {
        let mut matchers = Vec::new();
        let mut name = name;
        let mut end = start;
        if self.cursor.eat("{") {
            while !self.cursor.is_punct("}") {
                self.matcher(&mut name, &mut matchers)?;
                if !self.cursor.eat(",") {
                    break;
                }
            }
            end = self.cursor.expect("}", "label matching")?;
        }
        let span = start.to(end);
        if let Some(name) = &name {
            if let Some(other) = matchers.iter().find(|m: &&Matcher| m.name() == "__name__" && !open) {
                let message = format!("metric name must not be set twice: {name:?} or {:?}", other.value());
                return Err(self.cursor.error(span, message));
            }
            matchers.push(Matcher::equal("__name__", name.as_str()));
        }
        if !open && matchers.iter().all(Matcher::matches_empty) {
            return Err(self.cursor.error(span, "vector selector must contain at least one non-empty matcher"));
        }
        let id = self.selectors;
        self.selectors += 1;
        let selector = Selector { id, name, matchers, offset: None, at: None, edges: Edges::Plain };
        Ok(Expr { kind: ExprKind::Selector(selector), span })
    }

    fn matcher(&mut self, name: &mut Option<String>, out: &mut Vec<Matcher>) -> Result<(), SyntaxError> {
        let token = self.cursor.peek();
        let label = match token.kind {
            Kind::Ident => {
                self.cursor.next();
                self.cursor.text_of(token).to_owned()
            }
            Kind::String => {
                let (text, span) = self.cursor.string("label matching")?;
                if !matches!(self.cursor.peek().kind, Kind::Punct("=" | "!=" | "=~" | "!~")) {
                    if let Some(first) = name {
                        let message = format!("metric name must not be set twice: {first:?} or {text:?}");
                        return Err(self.cursor.error(span, message));
                    }
                    if text.is_empty() {
                        return Err(self.cursor.error(span, "metric name must not be empty"));
                    }
                    *name = Some(text);
                    return Ok(());
                }
                if text.is_empty() {
                    return Err(self.cursor.error(span, "label name must not be empty"));
                }
                text
            }
            _ => return Err(self.cursor.unexpected("label matching", "label name or \"}\"")),
        };
        let op = match self.cursor.peek().kind {
            Kind::Punct("=") => MatchOp::Eq,
            Kind::Punct("!=") => MatchOp::Ne,
            Kind::Punct("=~") => MatchOp::Re,
            Kind::Punct("!~") => MatchOp::Nre,
            _ => return Err(self.cursor.unexpected("label matching", "one of = != =~ !~")),
        };
        self.cursor.next();
        let (value, span) = self.cursor.string("label matching")?;
        let matcher = self.budget.matcher(label, op, value.clone());
        let matcher =
            matcher.map_err(|e| self.cursor.error(span, format!("invalid regular expression {value:?}: {e}")))?;
        out.push(matcher);
        Ok(())
    }

    fn postfixes(&mut self, mut expr: Expr) -> Result<Expr, SyntaxError> {
        let mut height = 0;
        loop {
            if self.cursor.is_punct("[") {
                // A chain of subqueries is as high as it is long.
                self.cursor.enter()?;
                height += 1;
                expr = self.range(expr)?;
            } else if self.cursor.is_keyword("offset") {
                let word = self.cursor.next();
                let offset = self.offset_duration()?;
                let end = self.cursor.previous().span;
                match offset_slot(&mut expr) {
                    None => {
                        return Err(self.cursor.error(word.span, "offset modifier must be preceded by an instant vector selector or range vector selector or a subquery"));
                    }
                    Some(Some(_)) => {
                        return Err(self.cursor.error(word.span, "offset may not be set multiple times"));
                    }
                    Some(slot) => *slot = Some(offset),
                }
                expr.span = expr.span.to(end);
            } else if self.cursor.is_punct("@") {
                let sign = self.cursor.next();
                let at = self.at()?;
                let end = self.cursor.previous().span;
                match at_slot(&mut expr) {
                    None => {
                        return Err(self.cursor.error(sign.span, "@ modifier must be preceded by an instant vector selector or range vector selector or a subquery"));
                    }
                    Some(Some(_)) => {
                        return Err(self.cursor.error(sign.span, "@ <timestamp> may not be set multiple times"));
                    }
                    Some(slot) => *slot = Some(at),
                }
                expr.span = expr.span.to(end);
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
                        return Err(self.cursor.error(token.span, format!("{word} modifier cannot be used here")));
                    }
                    _ => {
                        return Err(self.cursor.error(token.span, format!("{word} modifier must be preceded by an instant vector selector or range vector selector")));
                    }
                }
                expr.span = expr.span.to(token.span);
            } else {
                self.leave(height);
                return Ok(expr);
            }
        }
    }

    fn range(&mut self, expr: Expr) -> Result<Expr, SyntaxError> {
        let open = self.cursor.next().span;
        let range = self.duration(0)?;
        if self.cursor.eat(":") {
            let step = if self.cursor.is_punct("]") { None } else { Some(self.duration(0)?) };
            let end = self.cursor.expect("]", "subquery")?;
            let span = expr.span.to(end);
            let subquery = Subquery { expr, range, step, offset: None, at: None };
            return Ok(Expr { kind: ExprKind::Subquery(Box::new(subquery)), span });
        }
        let end = self.cursor.expect("]", "range specification")?;
        let span = expr.span.to(end);
        match expr.kind {
            ExprKind::Selector(s) if s.offset.is_some() => {
                Err(self.cursor.error(open.to(end), "no offset modifiers allowed before range"))
            }
            ExprKind::Selector(s) if s.at.is_some() => {
                Err(self.cursor.error(open.to(end), "no @ modifiers allowed before range"))
            }
            ExprKind::Selector(s) if s.edges != Edges::Plain => {
                Err(self.cursor.error(open.to(end), "no smoothed or anchored modifiers allowed before range"))
            }
            ExprKind::Selector(selector) => Ok(Expr { kind: ExprKind::Range { selector, range }, span }),
            _ => Err(self.cursor.error(open.to(end), "ranges only allowed for vector selectors")),
        }
    }

    /// What follows `offset`: a signed literal, a call, or an expression in parentheses.
    fn offset_duration(&mut self) -> Result<Duration, SyntaxError> {
        let start = self.cursor.peek().span;
        if self.cursor.eat("-") {
            let inner = self.duration_operand()?;
            let span = start.to(inner.span);
            return Ok(Duration { kind: DurationKind::Negate(Box::new(inner)), span });
        }
        self.cursor.eat("+");
        self.duration_operand()
    }

    /// Duration arithmetic: climbs operators of at least `level`.
    fn duration(&mut self, level: u8) -> Result<Duration, SyntaxError> {
        self.cursor.enter()?;
        let mut levels = 1;
        let mut left = self.duration_operand()?;
        while let Kind::Punct(p) = self.cursor.peek().kind
            && let Some((op, binding)) = binary_op(p)
            && binding.level >= level.max(4)
        {
            self.cursor.enter()?;
            levels += 1;
            self.cursor.next();
            let right = self.duration(if binding.right { binding.level } else { binding.level + 1 })?;
            let span = left.span.to(right.span);
            left = Duration { kind: DurationKind::Binary(op, Box::new(left), Box::new(right)), span };
        }
        self.leave(levels);
        Ok(left)
    }

    fn duration_operand(&mut self) -> Result<Duration, SyntaxError> {
        let token = self.cursor.peek();
        let text = self.cursor.text_of(token);
        match token.kind {
            Kind::Punct("-") => {
                self.cursor.next();
                let inner = self.duration(LEVEL_UNARY)?;
                let span = token.span.to(inner.span);
                Ok(Duration { kind: DurationKind::Negate(Box::new(inner)), span })
            }
            Kind::Punct("+") => {
                self.cursor.next();
                self.duration(LEVEL_UNARY)
            }
            Kind::Punct("(") => {
                self.cursor.next();
                let inner = self.duration(0)?;
                self.cursor.expect(")", "duration expression")?;
                Ok(inner)
            }
            Kind::Number => {
                self.cursor.next();
                let seconds = parse_number(text).ok_or_else(|| {
                    self.cursor.error(token.span, format!("bad number or duration syntax: {text:?}"))
                })?;
                Ok(Duration { kind: DurationKind::Seconds(seconds), span: token.span })
            }
            Kind::Ident => {
                let name = text.to_ascii_lowercase();
                if !["step", "range", "min_of", "max_of"].contains(&name.as_str()) {
                    return Err(self.cursor.unexpected("duration expression", "number, duration or step()"));
                }
                self.cursor.next();
                self.cursor.expect("(", "duration expression")?;
                let kind = match name.as_str() {
                    "step" => DurationKind::Step,
                    "range" => DurationKind::Range,
                    _ => {
                        let a = Box::new(self.duration(0)?);
                        self.cursor.expect(",", "duration expression")?;
                        let b = Box::new(self.duration(0)?);
                        if name == "min_of" { DurationKind::Least(a, b) } else { DurationKind::Greatest(a, b) }
                    }
                };
                let end = self.cursor.expect(")", "duration expression")?;
                Ok(Duration { kind, span: token.span.to(end) })
            }
            _ => Err(self.cursor.unexpected("duration expression", "number or duration")),
        }
    }

    fn at(&mut self) -> Result<At, SyntaxError> {
        let negative = self.cursor.is_punct("-");
        if negative || self.cursor.is_punct("+") {
            self.cursor.next();
        }
        let token = self.cursor.next();
        let text = self.cursor.text_of(token);
        if token.kind == Kind::Ident && !negative {
            let at = match text.to_ascii_lowercase().as_str() {
                "start" => Some(At::Start),
                "end" => Some(At::End),
                _ => None,
            };
            if let Some(at) = at {
                self.cursor.expect("(", "@")?;
                self.cursor.expect(")", "@")?;
                return Ok(at);
            }
        }
        let seconds = match token.kind {
            Kind::Number => parse_number(text),
            Kind::Ident => parse_word_number(text),
            _ => None,
        };
        let seconds = seconds
            .ok_or_else(|| self.cursor.error(token.span, format!("unexpected {text:?} in @, expected timestamp")))?;
        let millis = (if negative { -seconds } else { seconds }) * 1000.0;
        if !millis.is_finite() || millis.abs() >= i64::MAX as f64 {
            return Err(self.cursor.error(token.span, format!("timestamp out of bounds for @ modifier: {seconds}")));
        }
        Ok(At::Millis(millis.round() as i64))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_each_unit_once_and_descending() {
        assert_eq!(parse_duration_ms("1h30m"), Some(5_400_000));
        assert_eq!(parse_duration_ms("1m500ms"), Some(60_500));
        for bad in ["", "1", "1.5h", "30m1h", "1h1h", "h", "1x"] {
            assert_eq!(parse_duration_ms(bad), None, "{bad}");
        }
        assert_eq!(parse_number("1_000"), Some(1000.0));
        assert_eq!(parse_number("0x1F"), Some(31.0));
        assert_eq!(parse_number("1m"), Some(60.0));
    }

    #[test]
    fn what_prometheus_refuses_is_refused() {
        for bad in [
            "",
            "{}",
            "{a=\"\"}",
            "foo{__name__=\"bar\"}",
            "foo[0s]",
            "foo[5m] offset 1m offset 1m",
            "1 == 1",
            "foo and 1",
            "foo + on(a) group_left(a) bar",
            "sum()",
            "rate(foo)",
            "abs(foo[5m])",
            "unknown(foo)",
            "-\"a\"",
            "(foo + 1)[5m]",
            "foo offset",
            "on",
            "foo{a=~\"(\"}",
            "1 and 1",
            "foo or bool bar",
            "1.5h",
            "foo[5m][5m]",
            "count_values(1, foo)",
            "{\"a\",\"b\"}",
            "foo @ Inf",
            "topk(foo)",
            "foo bar",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("1+").unwrap_err().to_string(), "1:3: parse error: unexpected end of input");
    }

    #[test]
    fn what_prometheus_takes_is_taken() {
        for good in [
            "sum by (a, b,) (foo)",
            "SUM(foo) BY (a)",
            "foo{a=\"b\",}",
            "{\"http.server.duration\", \"service.name\"=\"x\"}",
            "foo[5m:]",
            "foo[5m:1m] offset -1m @ start()",
            "foo @ 1.5 offset 5m",
            "sum without () (foo)",
            "a + on(x) group_left(y) b",
            "1 == bool 1",
            "rate(foo[300])",
            "foo offset 60",
            "sum",
            "by + 1",
            "-2^2",
            "foo[5m + step()]",
            "label_join(foo, \"a\", \",\")",
            "time()",
            "hour()",
            "job:foo:rate5m",
            "a unless on() b",
            "sum(foo) + avg",
            "info(foo, {a=~\".*\"})",
            "foo[5m] anchored",
            "a + fill(0) b",
            "start",
            "Inf",
            "nan + 1",
        ] {
            assert!(parse(good).is_ok(), "{good}: {:?}", parse(good));
        }
    }
}
