//! What operators join: literals, calls, aggregations, what is in parentheses.

use storage::model::re2;

use super::{
    Parser, binary_op,
    told::{Word, never_metric},
};
use crate::{
    promql::{
        ast::{Aggregate, AggregateOp, Edges, Expr, ExprKind, Selector},
        eval::name_matchers,
        functions,
        print::quoted,
    },
    syntax::{Kind, Span, SyntaxError, climb},
};

impl Parser<'_> {
    pub(super) fn primary(&mut self) -> Result<Expr, SyntaxError> {
        let token = self.cursor.peek();
        match token.kind {
            Kind::Number => {
                let value = self.number()?;
                Ok(Expr { kind: ExprKind::Number(value), span: token.span })
            }
            Kind::String => {
                let (value, span) = self.string()?;
                Ok(Expr { kind: ExprKind::String(value), span })
            }
            Kind::Punct("(") => {
                self.cursor.next();
                let inner = climb(self, 0)?;
                let end = self.expect(")")?;
                Ok(Expr { kind: ExprKind::Paren(Box::new(inner)), span: token.span.to(end) })
            }
            Kind::Punct("{") => self.selector(None, token.span),
            Kind::Ident => self.name(token.span),
            _ => Err(self.astray()),
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
                Err(self.error(span, format!("{what} \"{shown}\"")))
            }
        }
    }

    /// Whether the word that is next can be the name of a metric.
    pub(super) fn may_name_metric(&self) -> bool {
        let text = self.cursor.text_of(self.cursor.peek());
        let fill = ["fill", "fill_left", "fill_right"].iter().any(|w| w.eq_ignore_ascii_case(text));
        !(never_metric(text) || fill && matches!(self.cursor.peek_at(1).kind, Kind::Punct("(")))
    }

    fn name(&mut self, span: Span) -> Result<Expr, SyntaxError> {
        let text = self.cursor.text_of(self.cursor.peek());
        let after = self.cursor.peek_at(1);
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
        if !self.may_name_metric() {
            return Err(self.astray());
        }
        if called && binary_op(text).is_none() && matches!(Word::of(text), Word::Other | Word::Preprocessor) {
            self.cursor.next();
            let (mut args, end) = self.arguments(text == "info")?;
            let function = functions::find(text)
                .ok_or_else(|| self.error(span, format!("unknown function with name {}", quoted(text))))?;
            if function.name == "info" {
                self.complete_info(&mut args, end);
            }
            if function.name == "label_replace"
                && let Some(pattern) = args.get(4)
                && let ExprKind::String(regex) = &pattern.inner().kind
                && let Err(e @ regex::Error::CompiledTooBig(_)) = self.budget.anchored(regex)
            {
                // Its syntax is looked at when it is evaluated.
                return Err(self.error(pattern.span, re2::told(regex, &e)));
            }
            return Ok(Expr { kind: ExprKind::Call { function, args }, span: span.to(end) });
        }
        self.cursor.next();
        self.selector(Some(text.to_owned()), span)
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

    /// Whether what is next can begin an expression.
    fn begins_expression(&self) -> bool {
        match self.cursor.peek().kind {
            Kind::Number | Kind::String | Kind::Punct("(" | "{" | "+" | "-") => true,
            Kind::Ident => self.may_name_metric(),
            // What cannot be read is told as what it is.
            Kind::End => self.failure.is_some(),
            Kind::Punct(_) => false,
        }
    }

    /// `(a, b)`; with the span of the closing parenthesis. A trailing comma is not allowed.
    fn arguments(&mut self, info: bool) -> Result<(Vec<Expr>, Span), SyntaxError> {
        self.expect("(")?;
        let mut args = Vec::new();
        if !self.cursor.is_punct(")") {
            loop {
                let start = self.cursor.peek();
                // What `info` is told of its info metrics is no expression: no `offset`, no operators.
                if info && args.len() == 1 && start.kind == Kind::Punct("{") {
                    args.push(self.selector(None, start.span)?);
                } else {
                    args.push(climb(self, 0)?);
                }
                if !self.cursor.eat(",") {
                    break;
                }
                if !self.begins_expression() {
                    let comma = self.cursor.previous().span;
                    return Err(self.error(comma, "trailing commas not allowed in function call args"));
                }
            }
        }
        let end = self.expect(")")?;
        Ok((args, end))
    }

    fn aggregate(&mut self, op: AggregateOp, start: Span) -> Result<Expr, SyntaxError> {
        self.aggregations += 1;
        let mut grouping = self.grouping()?;
        self.names_label = op == AggregateOp::CountValues;
        let arguments = self.arguments(false);
        self.names_label = false;
        let (mut args, mut end) = arguments?;
        self.aggregations -= 1;
        if grouping.is_none() {
            grouping = self.grouping()?;
            if grouping.is_some() {
                end = self.cursor.previous().span;
            }
        }
        let span = start.to(end);
        if args.is_empty() {
            return Err(self.error(span, "no arguments for aggregate expression provided"));
        }
        let wanted = if op.parameter().is_some() { 2 } else { 1 };
        if args.len() != wanted {
            let message = format!(
                "wrong number of arguments for aggregate expression provided, expected {wanted}, got {}",
                args.len()
            );
            return Err(self.error(span, message));
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

    pub(super) fn label_list(&mut self) -> Result<Vec<String>, SyntaxError> {
        const WHERE: &str = "grouping opts";
        if !self.cursor.eat("(") {
            return Err(self.unexpected(WHERE, "\"(\""));
        }
        let mut out = Vec::new();
        while !self.cursor.is_punct(")") {
            let token = self.cursor.peek();
            match token.kind {
                Kind::Ident => {
                    self.cursor.next();
                    out.push(self.cursor.text_of(token).to_owned());
                }
                Kind::String => {
                    let (name, span) = self.cursor.string(WHERE)?;
                    if name.is_empty() {
                        return Err(self.error(span, "invalid label name for grouping: \"\""));
                    }
                    out.push(name);
                }
                _ => return Err(self.unexpected(WHERE, "label")),
            }
            if !self.cursor.eat(",") && !self.cursor.is_punct(")") {
                return Err(self.unexpected(WHERE, "\",\" or \")\""));
            }
        }
        self.cursor.next();
        Ok(out)
    }
}
