//! A condition over a batch: each test once for each distinct value of a dictionary, then boolean logic over rows.

use std::borrow::Cow;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, Int32Type, Int64Type, TimestampNanosecondType},
};

use super::{Compare, Field, Literal, Node, Test};
use crate::transform::attributes::{self, Texts, text_of};

pub(super) fn mask(node: &Node, rows: &RecordBatch) -> Vec<bool> {
    match node {
        Node::And(all) => fold(all, rows, |a, b| a & b),
        Node::Or(all) => fold(all, rows, |a, b| a | b),
        Node::Not(inner) => {
            let mut m = mask(inner, rows);
            m.iter_mut().for_each(|b| *b = !*b);
            m
        }
        Node::Test(field, test) => test_rows(field, test, rows),
    }
}

fn fold(all: &[Node], rows: &RecordBatch, join: fn(bool, bool) -> bool) -> Vec<bool> {
    let mut masks = all.iter().map(|n| mask(n, rows));
    let mut out = masks.next().unwrap_or_else(|| vec![true; rows.num_rows()]);
    for m in masks {
        out.iter_mut().zip(m).for_each(|(a, b)| *a = join(*a, b));
    }
    out
}

/// A value of a row, as a test sees it.
enum Value<'a> {
    Text(Cow<'a, str>),
    Number(f64),
    Bool(bool),
}

fn test_rows(field: &Field, test: &Test, rows: &RecordBatch) -> Vec<bool> {
    let absent = holds(test, None);
    let name = match field {
        Field::Column(name) | Field::Member { column: name, .. } => name,
    };
    let Some(column) = rows.column_by_name(name) else { return vec![absent; rows.num_rows()] };
    match field {
        Field::Member { key, .. } => {
            let Some(texts) = Texts::new(column) else { return vec![absent; rows.num_rows()] };
            texts.each(absent, |json| holds(test, attributes::get(json, key).and_then(json_value)))
        }
        Field::Column(_) => test_column(test, column, absent),
    }
}

fn test_column(test: &Test, column: &ArrayRef, absent: bool) -> Vec<bool> {
    let each = |value: &dyn Fn(usize) -> Value<'static>| -> Vec<bool> {
        (0..column.len()).map(|i| if column.is_null(i) { absent } else { holds(test, Some(value(i))) }).collect()
    };
    match column.data_type() {
        DataType::Int32 => {
            let a = column.as_primitive::<Int32Type>();
            each(&|i| Value::Number(f64::from(a.value(i))))
        }
        DataType::Int64 => {
            let a = column.as_primitive::<Int64Type>();
            each(&|i| Value::Number(a.value(i) as f64))
        }
        DataType::Timestamp(_, _) => {
            let a = column.as_primitive::<TimestampNanosecondType>();
            each(&|i| Value::Number(a.value(i) as f64))
        }
        DataType::Binary => {
            let a = column.as_binary::<i32>();
            each(&|i| Value::Text(Cow::Owned(hex::encode(a.value(i)))))
        }
        _ => match Texts::new(column) {
            Some(texts) => texts.each(absent, |t| holds(test, Some(Value::Text(Cow::Borrowed(t))))),
            None => vec![absent; column.len()],
        },
    }
}

/// `null` is absent.
fn json_value(json: &str) -> Option<Value<'_>> {
    match json.as_bytes().first()? {
        b'n' => None,
        b't' => Some(Value::Bool(true)),
        b'f' => Some(Value::Bool(false)),
        b'-' | b'0'..=b'9' => Some(json.parse().map_or(Value::Text(Cow::Borrowed(json)), Value::Number)),
        _ => Some(Value::Text(text_of(json))),
    }
}

fn holds(test: &Test, value: Option<Value<'_>>) -> bool {
    match (test, value) {
        (Test::Exists, v) => v.is_some(),
        (Test::Compare(Compare::Ne, literal), v) => !v.is_some_and(|v| compare(Compare::Eq, literal, &v)),
        (Test::Compare(c, literal), Some(v)) => compare(*c, literal, &v),
        (Test::Contains(part), Some(v)) => memchr::memmem::find(text(&v).as_bytes(), part.as_bytes()).is_some(),
        (Test::StartsWith(part), Some(v)) => text(&v).starts_with(part.as_str()),
        (Test::EndsWith(part), Some(v)) => text(&v).ends_with(part.as_str()),
        (Test::Matches(regex), Some(v)) => regex.is_match(&text(&v)),
        (_, None) => false,
    }
}

fn text<'a>(value: &'a Value<'_>) -> Cow<'a, str> {
    match value {
        Value::Text(t) => Cow::Borrowed(t),
        Value::Number(n) => Cow::Owned(n.to_string()),
        Value::Bool(b) => Cow::Borrowed(if *b { "true" } else { "false" }),
    }
}

fn compare(op: Compare, literal: &Literal, value: &Value<'_>) -> bool {
    match (literal, value) {
        (Literal::Number(n), Value::Number(v)) => ordered(op, v.partial_cmp(n)),
        (Literal::Number(n), Value::Text(t)) => t.trim().parse::<f64>().is_ok_and(|v| ordered(op, v.partial_cmp(n))),
        (Literal::Number(_), Value::Bool(_)) => false,
        (Literal::Bool(b), Value::Bool(v)) => ordered(op, v.partial_cmp(b)),
        (Literal::Bool(b), v) => ordered(op, (*text(v)).partial_cmp(if *b { "true" } else { "false" })),
        (Literal::Text(t), v) => ordered(op, (*text(v)).partial_cmp(t.as_str())),
    }
}

fn ordered(op: Compare, order: Option<std::cmp::Ordering>) -> bool {
    order.is_some_and(|o| match op {
        Compare::Eq => o.is_eq(),
        Compare::Ne => o.is_ne(),
        Compare::Lt => o.is_lt(),
        Compare::Le => o.is_le(),
        Compare::Gt => o.is_gt(),
        Compare::Ge => o.is_ge(),
    })
}
