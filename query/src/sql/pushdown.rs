//! What a scan need not read, taken from a query's filters. Everything here is a superset: a filter that is not wholly
//! said by the time range is tested again on each row.

use datafusion::{
    common::ScalarValue,
    logical_expr::{Between, BinaryExpr, Expr, Like, Operator, expr::InList},
};
use storage::model::{MatchOp, Matcher, Table, TimeRange, Timestamp, time::NANOS_PER_MILLI};

use super::{columns::Relation, functions::LABEL};

/// Items of an IN list that a scan is told; a longer list is tested on the rows alone.
const IN_LIST_MAX: usize = 1000;

/// What to read.
#[derive(Debug)]
pub struct Hints {
    /// Nanoseconds, both inclusive; `i64::MAX` counts as no end.
    from: i64,
    to: i64,
    pub ids: Option<Vec<i64>>,
    pub trace: Option<[u8; 16]>,
    pub matchers: Vec<Matcher>,
    /// Filters that rows must be tested with.
    pub rest: Vec<Expr>,
}

impl Hints {
    /// `filters` hold together. `within`: what the request allows.
    pub fn new(relation: &Relation, filters: &[Expr], within: TimeRange) -> Self {
        let mut out = Hints {
            from: within.start().nanos(),
            to: if within.end() == Timestamp::MAX { i64::MAX } else { within.end().nanos() - 1 },
            ids: None,
            trace: None,
            matchers: Vec::new(),
            rest: Vec::new(),
        };
        for f in filters {
            if !out.take(relation, f) {
                out.rest.push(f.clone());
            }
        }
        out
    }

    /// `None`: no time is left.
    pub fn range(&self) -> Option<TimeRange> {
        let end = if self.to == i64::MAX { Timestamp::MAX } else { Timestamp(self.to + 1) };
        TimeRange::new(Timestamp(self.from), end)
    }

    /// Whether the time range says all that `filter` does.
    fn take(&mut self, relation: &Relation, filter: &Expr) -> bool {
        match filter {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
                let left = self.take(relation, left);
                self.take(relation, right) && left
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (constant(left), constant(right)) {
                (None, Some(value)) => self.compare(relation, left, *op, value),
                (Some(value), None) => op.swap().is_some_and(|op| self.compare(relation, right, op, value)),
                _ => false,
            },
            Expr::Between(Between { expr, negated: false, low, high }) => match (constant(low), constant(high)) {
                (Some(low), Some(high)) => {
                    let low = self.compare(relation, expr, Operator::GtEq, low);
                    self.compare(relation, expr, Operator::LtEq, high) && low
                }
                _ => false,
            },
            Expr::InList(InList { expr, list, negated: false }) if list.len() <= IN_LIST_MAX => {
                let values: Option<Vec<&ScalarValue>> = list.iter().map(constant).collect();
                if let Some(values) = values {
                    self.one_of(relation, expr, &values);
                }
                false
            }
            Expr::Like(Like { negated: false, expr, pattern, escape_char: None, case_insensitive: false }) => {
                if let (Some(Target::Label(name)), Some(pattern)) =
                    (target(relation, expr), constant(pattern).and_then(text))
                    && !pattern.contains('\\')
                {
                    self.matchers.extend(Matcher::new(name, MatchOp::Re, like_to_regex(pattern)).ok());
                }
                false
            }
            _ => false,
        }
    }

    fn compare(&mut self, relation: &Relation, column: &Expr, op: Operator, value: &ScalarValue) -> bool {
        match target(relation, column) {
            Some(Target::Time) => nanos(value).is_some_and(|ns| self.bound(op, ns)),
            Some(Target::Millis) => match value {
                // Further out, milliseconds are more than nanoseconds can tell apart.
                ScalarValue::Int64(Some(ms)) => match ms.checked_mul(NANOS_PER_MILLI) {
                    Some(ns) if ns.checked_add(NANOS_PER_MILLI).is_some() => match op {
                        // The last nanosecond of that millisecond, where it is to be included.
                        Operator::LtEq => self.bound(op, ns + NANOS_PER_MILLI - 1),
                        Operator::Gt => self.bound(op, ns + NANOS_PER_MILLI - 1),
                        _ => self.bound(op, ns),
                    },
                    _ => false,
                },
                _ => false,
            },
            Some(_) if op == Operator::Eq => {
                self.one_of(relation, column, &[value]);
                false
            }
            _ => false,
        }
    }

    /// Narrows the range to the times that compare with `ns` so; false if that is not a range.
    fn bound(&mut self, op: Operator, ns: i64) -> bool {
        // At the very ends a range cannot say it exactly.
        let (Some(before), Some(after)) = (ns.checked_sub(1), ns.checked_add(1)) else { return false };
        if after == i64::MAX {
            return false;
        }
        let (from, to) = match op {
            Operator::Eq => (ns, ns),
            Operator::GtEq => (ns, i64::MAX),
            Operator::Gt => (after, i64::MAX),
            Operator::LtEq => (i64::MIN, ns),
            Operator::Lt => (i64::MIN, before),
            _ => return false,
        };
        self.from = self.from.max(from);
        self.to = self.to.min(to);
        true
    }

    fn one_of(&mut self, relation: &Relation, column: &Expr, values: &[&ScalarValue]) {
        match target(relation, column) {
            Some(Target::Id) => {
                let ids: Option<Vec<i64>> = values.iter().map(|v| int(v)).collect();
                if let Some(ids) = ids {
                    match &mut self.ids {
                        None => self.ids = Some(ids),
                        Some(known) => known.retain(|id| ids.contains(id)),
                    }
                }
            }
            Some(Target::Trace) => {
                if let [only] = values
                    && let Some(id) = text(only).and_then(trace_id)
                {
                    self.trace = Some(id);
                }
            }
            Some(Target::Label(name)) => {
                let texts: Option<Vec<&str>> = values.iter().map(|v| text(v)).collect();
                let Some(texts) = texts else { return };
                // To a matcher an absent label is empty; to SQL it is null.
                if texts.iter().any(|t| t.is_empty()) {
                    return;
                }
                match texts.as_slice() {
                    [only] => self.matchers.push(Matcher::equal(name, *only)),
                    many => {
                        let any: Vec<String> = many.iter().map(|t| regex::escape(t)).collect();
                        self.matchers.extend(Matcher::new(name, MatchOp::Re, any.join("|")).ok());
                    }
                }
            }
            Some(Target::Time | Target::Millis) | None => {}
        }
    }
}

/// A column that a scan can be narrowed by.
enum Target {
    Time,
    Millis,
    Id,
    Trace,
    Label(String),
}

fn target(relation: &Relation, expr: &Expr) -> Option<Target> {
    let label_column = match relation.table {
        Table::Logs => Some("stream_labels"),
        Table::MetricSeries => Some("labels"),
        _ if relation.with_series => Some("labels"),
        _ => None,
    };
    match expr {
        Expr::Column(c) => match c.name.as_str() {
            // A series is found by its life, not by one instant: nothing of its columns is a time to scan by.
            "ts" if relation.table != Table::MetricSeries => Some(Target::Time),
            "ts_ms" => Some(Target::Millis),
            "stream_id" | "series_id" => Some(Target::Id),
            "trace_id" => Some(Target::Trace),
            "metric" => Some(Target::Label("__name__".into())),
            name @ ("job" | "instance") => Some(Target::Label(name.into())),
            _ => None,
        },
        Expr::ScalarFunction(f) if f.func.name() == LABEL => match f.args.as_slice() {
            [Expr::Column(c), key] if Some(c.name.as_str()) == label_column => {
                Some(Target::Label(constant(key).and_then(text)?.to_owned()))
            }
            _ => None,
        },
        _ => None,
    }
}

fn constant(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Some(value),
        _ => None,
    }
}

fn text(value: &ScalarValue) -> Option<&str> {
    match value {
        ScalarValue::Utf8(v) | ScalarValue::LargeUtf8(v) | ScalarValue::Utf8View(v) => v.as_deref(),
        ScalarValue::Dictionary(_, v) => text(v),
        _ => None,
    }
}

fn int(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::Int64(v) => *v,
        _ => None,
    }
}

fn nanos(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::TimestampNanosecond(v, _) => *v,
        ScalarValue::TimestampMicrosecond(v, _) => v.and_then(|v| v.checked_mul(1000)),
        ScalarValue::TimestampMillisecond(v, _) => v.and_then(|v| v.checked_mul(NANOS_PER_MILLI)),
        ScalarValue::TimestampSecond(v, _) => v.and_then(|v| v.checked_mul(1_000_000_000)),
        _ => None,
    }
}

/// Text that equals the hexadecimal form of 16 bytes, which is lowercase.
fn trace_id(text: &str) -> Option<[u8; 16]> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    hex::decode(text).ok()?.try_into().ok()
}

fn like_to_regex(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 8);
    for c in pattern.chars() {
        match c {
            '%' => out.push_str(".*"),
            '_' => out.push('.'),
            c => out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{col, lit};

    use super::{super::columns::relations, *};

    fn hints(name: &str, filter: Expr) -> Hints {
        let relation = relations().iter().find(|r| r.name == name).unwrap();
        Hints::new(relation, &[filter], TimeRange::ALL)
    }

    fn ts(ns: i64) -> Expr {
        lit(ScalarValue::TimestampNanosecond(Some(ns), Some("UTC".into())))
    }

    #[test]
    fn comparisons_of_time_are_ranges_and_nothing_else_is_left() {
        let range = |a: i64, b: i64| TimeRange::new(Timestamp(a), Timestamp(b));
        let h = hints("logs", col("ts").gt(ts(5)).and(ts(9).gt_eq(col("ts"))));
        assert_eq!((h.range(), h.rest.len()), (range(6, 10), 0));
        let h = hints("spans", col("ts").eq(ts(5)));
        assert_eq!((h.range(), h.rest.len()), (range(5, 6), 0));
        let h = hints("logs", col("ts").lt(ts(5)).and(col("ts").gt(ts(5))));
        assert_eq!((h.range(), h.rest.len()), (None, 0));
        let h = hints("samples", col("ts_ms").between(lit(2i64), lit(3i64)));
        assert_eq!((h.range(), h.rest.len()), (range(2_000_000, 4_000_000), 0));
        let h = hints("metric_samples", col("ts_ms").gt(lit(2i64)));
        assert_eq!((h.range().unwrap().start(), h.rest.len()), (Timestamp(3_000_000), 0));
    }

    #[test]
    fn what_is_no_range_stays_to_be_tested() {
        for filter in [
            col("ts").not_eq(ts(5)),
            col("ts").gt(ts(i64::MAX)),
            col("ts").gt(ts(5)).or(col("ts").lt(ts(2))),
            col("ts").not_between(ts(1), ts(2)),
            col("body").eq(lit("x")),
            col("ts").gt(lit(ScalarValue::TimestampNanosecond(None, None))),
        ] {
            let h = hints("logs", filter.clone());
            assert_eq!((h.range(), h.rest.len()), (Some(TimeRange::ALL), 1), "{filter}");
        }
        let h = hints("metric_series", col("first_ms").gt(lit(5i64)));
        assert_eq!((h.range(), h.rest.len()), (Some(TimeRange::ALL), 1));
    }

    #[test]
    fn labels_ids_and_traces_narrow_and_stay() {
        let h =
            hints("samples", col("metric").eq(lit("up")).and(col("job").in_list(vec![lit("a.b"), lit("c")], false)));
        assert_eq!(h.matchers[0], Matcher::equal("__name__", "up"));
        assert_eq!(h.matchers[1], Matcher::new("job", MatchOp::Re, r"a\.b|c").unwrap());
        assert_eq!(h.rest.len(), 1);
        let h = hints("samples", col("instance").like(lit("web-%_")));
        assert_eq!(h.matchers, [Matcher::new("instance", MatchOp::Re, r"web\-.*.").unwrap()]);
        let h = hints("samples", col("job").eq(lit("")));
        assert!(h.matchers.is_empty());
        let h = hints("logs", col("trace_id").eq(lit("000102030405060708090a0b0c0d0e0f")));
        assert_eq!((h.trace.unwrap()[15], h.rest.len()), (15, 1));
        let h = hints(
            "logs",
            col("stream_id").in_list(vec![lit(1i64), lit(2i64)], false).and(col("stream_id").eq(lit(2i64))),
        );
        assert_eq!(h.ids, Some(vec![2]));
    }
}
