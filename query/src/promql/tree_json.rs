//! A tree as the JSON of Prometheus' `parse_query`: nodes with a `type`, durations in ms, numbers as text.

use serde_json::{Value, json};
use storage::model::{MatchOp, Matcher};

use super::{
    ast::{At, Binary, Cardinality, Duration, DurationKind, Edges, Expr, ExprKind, Selector, ValueType},
    functions::Function,
    print::{matches_vectors, written_name},
    value::format_plain,
};

pub fn tree_json(expr: &Expr) -> Value {
    match &expr.kind {
        ExprKind::Number(n) => json!({"type": "numberLiteral", "val": format_plain(*n)}),
        ExprKind::String(s) => json!({"type": "stringLiteral", "val": s}),
        ExprKind::Paren(e) => json!({"type": "parenExpr", "expr": tree_json(e)}),
        ExprKind::Unary { minus, operand } => {
            json!({"type": "unaryExpr", "op": if *minus { "-" } else { "+" }, "expr": tree_json(operand)})
        }
        ExprKind::Binary(b) => json!({
            "type": "binaryExpr",
            "op": b.op.symbol(),
            "lhs": tree_json(&b.left),
            "rhs": tree_json(&b.right),
            "matching": matching(b),
            "bool": b.returns_bool,
        }),
        ExprKind::Aggregate(a) => json!({
            "type": "aggregation",
            "op": a.op.name(),
            "expr": tree_json(&a.operand),
            "param": a.parameter.as_ref().map(tree_json),
            "grouping": a.grouping,
            "without": a.without,
        }),
        ExprKind::Call { function, args } => json!({
            "type": "call",
            "func": signature(function),
            "args": args.iter().map(tree_json).collect::<Vec<_>>(),
        }),
        ExprKind::Selector(s) => selector("vectorSelector", s),
        ExprKind::Range { selector: s, range } => {
            let mut node = selector("matrixSelector", s);
            node["range"] = json!(millis(Some(range)));
            node
        }
        ExprKind::Subquery(s) => json!({
            "type": "subquery",
            "expr": tree_json(&s.expr),
            "range": millis(Some(&s.range)),
            "step": millis(s.step.as_ref()),
            "offset": millis(s.offset.as_ref()),
            "timestamp": timestamp(s.at),
            "startOrEnd": start_or_end(s.at),
        }),
    }
}

fn selector(kind: &str, s: &Selector) -> Value {
    json!({
        "type": kind,
        "name": written_name(s).unwrap_or_default(),
        "matchers": s.matchers.iter().map(matcher).collect::<Vec<_>>(),
        "offset": millis(s.offset.as_ref()),
        "timestamp": timestamp(s.at),
        "startOrEnd": start_or_end(s.at),
        "anchored": s.edges == Edges::Anchored,
        "smoothed": s.edges == Edges::Smoothed,
    })
}

fn matcher(m: &Matcher) -> Value {
    let op = match m.op() {
        MatchOp::Eq => "=",
        MatchOp::Ne => "!=",
        MatchOp::Re => "=~",
        MatchOp::Nre => "!~",
    };
    json!({"name": m.name(), "type": op, "value": m.value()})
}

/// Null where one side is a scalar.
fn matching(b: &Binary) -> Value {
    if !matches_vectors(b) {
        return Value::Null;
    }
    let m = &b.matching;
    let card = match m.cardinality {
        Cardinality::OneToOne => "one-to-one",
        Cardinality::ManyToOne => "many-to-one",
        Cardinality::OneToMany => "one-to-many",
        Cardinality::ManyToMany => "many-to-many",
    };
    json!({
        "card": card,
        "labels": m.labels,
        "on": m.on,
        "include": m.include,
        "fillValues": {"lhs": m.fill.0, "rhs": m.fill.1},
    })
}

fn signature(f: &Function) -> Value {
    let name = |t: &ValueType| match t {
        ValueType::Scalar => "scalar",
        ValueType::Vector => "vector",
        ValueType::Matrix => "matrix",
        ValueType::String => "string",
    };
    json!({
        "name": f.name,
        "argTypes": f.args.iter().map(name).collect::<Vec<_>>(),
        // How many may be left out or, without end, -1.
        "variadic": if f.variadic { -1 } else { f.optional as i64 },
        "returnType": name(&f.returns),
    })
}

/// 0 without a duration and for one that is known only when the query runs.
fn millis(d: Option<&Duration>) -> i64 {
    match d.map(|d| &d.kind) {
        Some(DurationKind::Seconds(s)) => (s * 1000.0).round() as i64,
        Some(DurationKind::Negate(d)) => -millis(Some(d)),
        _ => 0,
    }
}

fn timestamp(at: Option<At>) -> Option<i64> {
    match at {
        Some(At::Millis(ms)) => Some(ms),
        _ => None,
    }
}

fn start_or_end(at: Option<At>) -> Option<&'static str> {
    match at {
        Some(At::Start) => Some("start"),
        Some(At::End) => Some("end"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promql::parse;

    #[test]
    fn a_tree_has_prometheus_node_types() {
        let tree = |text: &str| tree_json(&parse(text).unwrap());
        let t = tree("sum by (job) (rate(a{x=\"y\"}[5m] offset 1m)) > bool on (job) -b @ end()");
        assert_eq!(t["type"], "binaryExpr");
        assert_eq!((&t["op"], &t["bool"]), (&json!(">"), &json!(true)));
        assert_eq!(t["matching"]["card"], "one-to-one");
        let call = &t["lhs"]["expr"];
        assert_eq!(
            call["func"],
            json!({"name": "rate", "argTypes": ["matrix"], "variadic": 0, "returnType": "vector"})
        );
        let range = &call["args"][0];
        assert_eq!(
            (&range["type"], &range["range"], &range["offset"]),
            (&json!("matrixSelector"), &json!(300_000), &json!(60_000))
        );
        assert_eq!(range["timestamp"], Value::Null);
        assert_eq!(range["matchers"].as_array().map(Vec::len), Some(2));
        assert_eq!(t["rhs"]["expr"]["startOrEnd"], "end");
        assert_eq!(tree("1 + 2 * a")["matching"], Value::Null);
        assert_eq!(tree("1.5e3"), json!({"type": "numberLiteral", "val": "1500"}));
        assert_eq!(tree("(\"x\")"), json!({"type": "parenExpr", "expr": {"type": "stringLiteral", "val": "x"}}));
        assert_eq!(tree("a[1h:5m]")["step"], 300_000);
        assert_eq!(tree("topk(2, a)")["param"]["val"], "2");
    }
}
