//! Selectors of series: a name and matchers.

use storage::model::{MatchOp, Matcher, re2};

use super::Parser;
use crate::{
    promql::ast::{Edges, Expr, ExprKind, Selector},
    syntax::{Kind, Span, SyntaxError},
};

const WHERE: &str = "label matching";

impl Parser<'_> {
    /// `{...}` if it is next, after an optional name.
    pub(super) fn selector(&mut self, name: Option<String>, start: Span) -> Result<Expr, SyntaxError> {
        let mut matchers = Vec::new();
        let mut name = name;
        let mut end = start;
        if self.cursor.eat("{") {
            while !self.cursor.is_punct("}") {
                self.matcher(&mut name, &mut matchers)?;
                if !self.cursor.eat(",") && !self.cursor.is_punct("}") {
                    return Err(self.unexpected(WHERE, "\",\" or \"}\""));
                }
            }
            end = self.cursor.next().span;
        }
        if let Some(name) = &name {
            matchers.push(Matcher::equal("__name__", name.as_str()));
        }
        let id = self.selectors;
        self.selectors += 1;
        let selector = Selector { id, name, matchers, offset: None, at: None, edges: Edges::Plain };
        Ok(Expr { kind: ExprKind::Selector(selector), span: start.to(end) })
    }

    fn matcher(&mut self, name: &mut Option<String>, out: &mut Vec<Matcher>) -> Result<(), SyntaxError> {
        let token = self.cursor.peek();
        let label = match token.kind {
            Kind::Ident => {
                self.cursor.next();
                self.cursor.text_of(token).to_owned()
            }
            Kind::String => {
                let (text, span) = self.cursor.string(WHERE)?;
                if !matches!(self.cursor.peek().kind, Kind::Punct("=" | "!=" | "=~" | "!~")) {
                    if text.is_empty() {
                        return Err(self.error(span, "metric name must not be empty"));
                    }
                    match name {
                        Some(_) => out.push(Matcher::equal("__name__", text)),
                        None => *name = Some(text),
                    }
                    return Ok(());
                }
                if text.is_empty() {
                    return Err(self.error(span, "label name must not be empty"));
                }
                text
            }
            _ => return Err(self.unexpected(WHERE, "identifier or \"}\"")),
        };
        let op = match self.cursor.peek().kind {
            Kind::Punct("=") => MatchOp::Eq,
            Kind::Punct("!=") => MatchOp::Ne,
            Kind::Punct("=~") => MatchOp::Re,
            Kind::Punct("!~") => MatchOp::Nre,
            _ => return Err(self.unexpected(WHERE, "label matching operator")),
        };
        self.cursor.next();
        if self.cursor.peek().kind != Kind::String {
            return Err(self.unexpected(WHERE, "string"));
        }
        let (value, _) = self.cursor.string(WHERE)?;
        let matcher = self.budget.matcher(label, op, value.clone());
        out.push(matcher.map_err(|e| self.error(token.span, re2::told(&value, &e)))?);
        Ok(())
    }
}
