//! Log queries: a selector of streams and the stages behind it.

use storage::model::re2;

use super::*;

impl Parser {
    pub(super) fn log_query(&mut self) -> Parsed<LogQuery> {
        let matchers = self.selector()?;
        let mut stages = Vec::new();
        self.stages(&mut stages)?;
        Ok(LogQuery { matchers, stages })
    }

    pub(super) fn selector(&mut self) -> Parsed<Vec<Matcher>> {
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

    pub(super) fn stages(&mut self, out: &mut Vec<Stage>) -> Parsed<()> {
        while matches!(self.peek(), Token::Op("|" | "|=" | "!=" | "|~" | "!~" | "|>" | "!>")) {
            // `!=` may also compare two metrics; behind a log query that is an error either way.
            self.one_stage(out)?;
        }
        Ok(())
    }

    pub(super) fn one_stage(&mut self, out: &mut Vec<Stage>) -> Parsed<()> {
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
                crate::logql::stage::pattern::Pattern::parse(&p)
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

    pub(super) fn label_filter(&mut self) -> Parsed<LabelFilter> {
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
