//! Metric queries: aggregations over ranges and vectors.

use storage::model::re2;

use super::*;

struct LogRange {
    query: LogQuery,
    unwrap: Option<Unwrap>,
    range: Option<i64>,
    offset: i64,
}

impl Parser {
    pub(super) fn label_replace(&mut self) -> Parsed<Expr> {
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

    pub(super) fn vector_aggregation(&mut self, op: VectorOp) -> Parsed<Metric> {
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

    pub(super) fn range_aggregation(&mut self, op: RangeOp) -> Parsed<Metric> {
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
}
