//! Functions of templates: Go's own, Prometheus' and those that Alertmanager adds.

use std::{borrow::Cow, cmp::Ordering, collections::BTreeMap, sync::Arc};

use regex::Regex;
use storage::model::re2;

use super::{Host, QuerySample, Value, format};
use crate::promql::parse_duration_ms;

const NAMES: [&str; 57] = [
    "and",
    "args",
    "date",
    "eq",
    "externalURL",
    "first",
    "ge",
    "graphLink",
    "gt",
    "html",
    "humanize",
    "humanize1024",
    "humanizeDuration",
    "humanizePercentage",
    "humanizeTimestamp",
    "index",
    "join",
    "js",
    "label",
    "le",
    "len",
    "lt",
    "match",
    "ne",
    "not",
    "now",
    "or",
    "parseDuration",
    "pathPrefix",
    "print",
    "printf",
    "println",
    "query",
    "reReplaceAll",
    "safeHtml",
    "safeUrl",
    "since",
    "slice",
    "sortByLabel",
    "stringSlice",
    "stripDomain",
    "stripPort",
    "strvalue",
    "tableLink",
    "title",
    "toDuration",
    "toJson",
    "toLower",
    "toTime",
    "toUpper",
    "trimSpace",
    "tz",
    "urlQueryEscape",
    "urlquery",
    "urlUnescape",
    "value",
    "list",
];

pub fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

type Answer = Result<Value, String>;

fn text(value: &Value) -> Result<&str, String> {
    match value {
        Value::Text(t) => Ok(t),
        other => Err(format!("wrong type for value; expected string; got {}", other.kind())),
    }
}

fn count(arguments: &[Value], wanted: usize) -> Result<(), String> {
    if arguments.len() == wanted {
        return Ok(());
    }
    Err(format!("wrong number of args: want {wanted} got {}", arguments.len()))
}

/// Calls a function that [`exists`]; `and` and `or` are the executor's.
pub fn call(name: &str, arguments: &[Value], host: &dyn Host) -> Answer {
    let one = || count(arguments, 1).map(|()| &arguments[0]);
    match name {
        "query" => Ok(samples(host.query(text(one()?)?)?)),
        "now" => Ok(Value::Float(host.now_ms() as f64 / 1000.0)),
        "externalURL" => Ok(Value::text(host.external_url())),
        "pathPrefix" => Ok(Value::text(path_of(host.external_url()))),
        "since" => match one()? {
            Value::Time(t) => Ok(Value::Duration(host.now_ms().saturating_mul(1_000_000).saturating_sub(*t))),
            other => Err(format!("expected a time, got {}", other.kind())),
        },
        "first" | "label" | "value" | "strvalue" | "sortByLabel" => of_samples(name, arguments),
        "humanize" | "humanize1024" | "humanizeDuration" | "humanizePercentage" | "humanizeTimestamp" | "toTime"
        | "toDuration" => humanized(name, one()?),
        "eq" | "ne" | "lt" | "le" | "gt" | "ge" => compare(name, arguments),
        "not" => Ok(Value::Bool(!one()?.is_true())),
        "len" => match one()? {
            Value::Text(t) => Ok(Value::Int(t.len() as i64)),
            Value::List(l) => Ok(Value::Int(l.len() as i64)),
            Value::Map(m) => Ok(Value::Int(m.len() as i64)),
            other => Err(format!("len of type {}", other.kind())),
        },
        "index" => index(arguments),
        "slice" => slice(arguments),
        "print" => Ok(Value::text(joined(arguments, false))),
        "println" => Ok(Value::text(joined(arguments, true) + "\n")),
        "printf" => {
            let layout = text(arguments.first().ok_or("wrong number of args: want at least 1 got 0")?)?;
            Ok(Value::text(format::sprintf(layout, &arguments[1..])))
        }
        "args" => {
            let named = arguments.iter().enumerate().map(|(i, v)| (format!("arg{i}"), v.clone()));
            Ok(Value::Map(Arc::new(named.collect::<BTreeMap<_, _>>())))
        }
        "stringSlice" | "list" => Ok(Value::list(arguments.iter().cloned())),
        "toJson" => Ok(Value::text(json(one()?).to_string())),
        "date" => match arguments {
            [Value::Text(layout), Value::Time(t)] => Ok(Value::text(format::time_by_layout(*t, layout))),
            _ => Err("expected a layout and a time".into()),
        },
        // Times are shown in UTC; another zone would need a table of them.
        "tz" => match arguments {
            [Value::Text(zone), t @ Value::Time(_)] if matches!(zone.as_ref(), "UTC" | "Etc/UTC" | "GMT") => {
                Ok(t.clone())
            }
            [Value::Text(zone), Value::Time(_)] => Err(format!("unknown time zone {zone}; only UTC is known")),
            _ => Err("expected a zone and a time".into()),
        },
        _ => of_texts(name, arguments),
    }
}

fn samples(found: Vec<QuerySample>) -> Value {
    Value::list(
        found
            .into_iter()
            .map(|s| Value::object([("Labels", Value::of_labels(&s.labels)), ("Value", Value::Float(s.value))])),
    )
}

fn label_of(sample: &Value, name: &str) -> Result<Value, String> {
    match sample {
        Value::Object(o) => match o.get("Labels") {
            Some(Value::Map(labels)) => Ok(labels.get(name).cloned().unwrap_or(Value::text(""))),
            _ => Err("expected a sample".into()),
        },
        other => Err(format!("wrong type for value; expected a sample; got {}", other.kind())),
    }
}

fn of_samples(name: &str, arguments: &[Value]) -> Answer {
    match (name, arguments) {
        ("first", [Value::List(items)]) => {
            items.first().cloned().ok_or_else(|| "first() called on vector with no elements".into())
        }
        ("label", [Value::Text(label), sample]) => label_of(sample, label),
        ("strvalue", [sample]) => label_of(sample, "__value__"),
        ("value", [Value::Object(o)]) => o.get("Value").cloned().ok_or_else(|| "expected a sample".into()),
        ("sortByLabel", [Value::Text(label), Value::List(items)]) => {
            let keyed = items.iter().map(|s| Ok((label_of(s, label)?.to_text(), s.clone())));
            let mut keyed = keyed.collect::<Result<Vec<_>, String>>()?;
            keyed.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(Value::list(keyed.into_iter().map(|(_, s)| s)))
        }
        _ => Err("wrong number or type of arguments".into()),
    }
}

/// `v` scaled to 1 up to 1000 by steps of 1000, with the step's letter.
fn scaled(mut v: f64) -> (f64, &'static str) {
    let mut prefix = "";
    if v.abs() >= 1.0 {
        for p in ["k", "M", "G", "T", "P", "E", "Z", "Y"] {
            if v.abs() < 1000.0 {
                break;
            }
            prefix = p;
            v /= 1000.0;
        }
    } else {
        for p in ["m", "u", "n", "p", "f", "a", "z", "y"] {
            if v.abs() >= 1.0 {
                break;
            }
            prefix = p;
            v *= 1000.0;
        }
    }
    (v, prefix)
}

fn humanized(name: &str, value: &Value) -> Answer {
    let v = match value {
        Value::Duration(d) if name == "humanizeDuration" => *d as f64 / 1e9,
        other => other.to_float()?,
    };
    let four = |v: f64| format::significant(v, 4);
    Ok(Value::text(match name {
        "humanizePercentage" => format!("{}%", four(v * 100.0)),
        "humanize" if v == 0.0 || !v.is_finite() => four(v),
        "humanize" => {
            let (v, prefix) = scaled(v);
            format!("{}{prefix}", four(v))
        }
        "humanize1024" => {
            if v.abs() <= 1.0 || !v.is_finite() {
                return Ok(Value::text(four(v)));
            }
            let (mut v, mut prefix) = (v, "");
            for p in ["ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi"] {
                if v.abs() < 1024.0 {
                    break;
                }
                prefix = p;
                v /= 1024.0;
            }
            format!("{}{prefix}", four(v))
        }
        "humanizeDuration" => human_duration(v),
        "toDuration" => return Ok(Value::Duration((v * 1e9) as i64)),
        // Milliseconds, as Prometheus keeps times.
        _ if !v.is_finite() => {
            return if name == "toTime" { Err("not a time".into()) } else { Ok(Value::text(four(v))) };
        }
        _ => {
            let time = Value::Time(((v * 1000.0) as i64).saturating_mul(1_000_000));
            return Ok(if name == "toTime" { time } else { Value::text(time.to_text()) });
        }
    }))
}

fn human_duration(v: f64) -> String {
    let four = |v: f64| format::significant(v, 4);
    if !v.is_finite() {
        return four(v);
    }
    if v == 0.0 {
        return format!("{}s", four(v));
    }
    if v.abs() < 1.0 {
        let (v, prefix) = scaled(v);
        return format!("{}{prefix}s", four(v));
    }
    let sign = if v < 0.0 { "-" } else { "" };
    let whole = v.abs() as i64;
    let (days, hours, minutes, seconds) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{sign}{}s", four(v.abs())),
        (0, 0, m) => format!("{sign}{m}m {seconds}s"),
        (0, h, m) => format!("{sign}{h}h {m}m {seconds}s"),
        (d, h, m) => format!("{sign}{d}d {h}h {m}m {seconds}s"),
    }
}

fn compare(name: &str, arguments: &[Value]) -> Answer {
    let [first, rest @ ..] = arguments else { return Err("missing argument for comparison".into()) };
    if name == "eq" {
        if rest.is_empty() {
            return Err("missing argument for comparison".into());
        }
        for other in rest {
            if order(first, other, true)? == Some(Ordering::Equal) {
                return Ok(Value::Bool(true));
            }
        }
        return Ok(Value::Bool(false));
    }
    count(arguments, 2)?;
    let found = order(first, &rest[0], name == "ne")?;
    Ok(Value::Bool(match name {
        "ne" => found != Some(Ordering::Equal),
        "lt" => found == Some(Ordering::Less),
        "le" => matches!(found, Some(Ordering::Less | Ordering::Equal)),
        "gt" => found == Some(Ordering::Greater),
        _ => matches!(found, Some(Ordering::Greater | Ordering::Equal)),
    }))
}

/// Values of different kinds do not compare, as in Go; where only equality counts, more kinds do.
fn order(a: &Value, b: &Value, equality: bool) -> Result<Option<Ordering>, String> {
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b))
        | (Value::Duration(a), Value::Duration(b))
        | (Value::Time(a), Value::Time(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) if equality => Some(a.cmp(b)),
        (Value::Nil, Value::Nil) if equality => Some(Ordering::Equal),
        (Value::Nil, _) | (_, Value::Nil) if equality => None,
        _ => return Err(format!("incompatible types for comparison: {} and {}", a.kind(), b.kind())),
    })
}

fn index(arguments: &[Value]) -> Answer {
    let [first, keys @ ..] = arguments else { return Err("wrong number of args: want at least 1 got 0".into()) };
    let mut value = first.clone();
    for key in keys {
        value = match (&value, key) {
            (Value::List(items), Value::Int(i)) => match usize::try_from(*i).ok().and_then(|i| items.get(i)) {
                Some(v) => v.clone(),
                None => return Err(format!("index out of range: {i}")),
            },
            (Value::Map(map), Value::Text(name)) => map.get(name.as_ref()).cloned().unwrap_or(Value::text("")),
            (Value::Text(t), Value::Int(i)) => match usize::try_from(*i).ok().and_then(|i| t.as_bytes().get(i)) {
                Some(b) => Value::Int(i64::from(*b)),
                None => return Err(format!("index out of range: {i}")),
            },
            (other, _) => return Err(format!("can't index item of type {}", other.kind())),
        };
    }
    Ok(value)
}

fn slice(arguments: &[Value]) -> Answer {
    let [of, bounds @ ..] = arguments else { return Err("wrong number of args: want at least 1 got 0".into()) };
    let whole = |i: usize, or: usize| match bounds.get(i) {
        None => Ok(or),
        Some(Value::Int(n)) => usize::try_from(*n).map_err(|_| format!("index out of range: {n}")),
        Some(other) => Err(format!("cannot index slice/array with type {}", other.kind())),
    };
    match of {
        Value::Text(t) => {
            let (from, to) = (whole(0, 0)?, whole(1, t.len())?);
            t.get(from..to).map(Value::text).ok_or_else(|| format!("index out of range: {to}"))
        }
        Value::List(l) => {
            let (from, to) = (whole(0, 0)?, whole(1, l.len())?);
            let part = l.get(from..to).ok_or_else(|| format!("index out of range: {to}"))?;
            Ok(Value::list(part.iter().cloned()))
        }
        other => Err(format!("can't slice item of type {}", other.kind())),
    }
}

/// `print`: a space between two that are no texts; `println`: between all.
fn joined(arguments: &[Value], always: bool) -> String {
    let mut out = String::new();
    for (i, value) in arguments.iter().enumerate() {
        let is_text = |v: &Value| matches!(v, Value::Text(_));
        if i > 0 && (always || (!is_text(value) && !is_text(&arguments[i - 1]))) {
            out.push(' ');
        }
        value.write(&mut out);
    }
    out
}

fn of_texts(name: &str, arguments: &[Value]) -> Answer {
    if matches!(name, "html" | "js" | "urlquery") {
        let all = joined(arguments, false);
        return Ok(Value::text(match name {
            "html" => html(&all),
            "js" => js(&all),
            _ => query_escape(&all),
        }));
    }
    if name == "join" {
        let [Value::Text(between), Value::List(items)] = arguments else {
            return Err("expected a separator and a list".into());
        };
        return Ok(Value::text(items.iter().map(Value::to_text).collect::<Vec<_>>().join(between)));
    }
    let texts = arguments.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let answer: Cow<'_, str> = match (name, texts.as_slice()) {
        ("title", [t]) => title(t).into(),
        ("toUpper", [t]) => t.to_uppercase().into(),
        ("toLower", [t]) => t.to_lowercase().into(),
        ("trimSpace", [t]) => t.trim().into(),
        ("safeHtml" | "safeUrl", [t]) => (*t).into(),
        ("match", [pattern, t]) => return Ok(Value::Bool(regex(pattern)?.is_match(t))),
        ("reReplaceAll", [pattern, by, t]) => regex(pattern)?.replace_all(t, *by).into_owned().into(),
        ("graphLink", [expr]) => format!("/graph?g0.expr={}&g0.tab=0", query_escape(expr)).into(),
        ("tableLink", [expr]) => format!("/graph?g0.expr={}&g0.tab=1", query_escape(expr)).into(),
        ("urlQueryEscape", [t]) => query_escape(t).into(),
        ("urlUnescape", [t]) => crate::http::params::percent_decode(t, true).into(),
        ("stripPort", [t]) => split_port(t).map_or(*t, |(host, _)| host).into(),
        ("stripDomain", [t]) => strip_domain(t).into(),
        ("parseDuration", [t]) => {
            let ms = parse_duration_ms(t).ok_or_else(|| format!("not a valid duration string: {t:?}"))?;
            return Ok(Value::Float(ms as f64 / 1000.0));
        }
        _ => return Err(format!("wrong number of args: got {}", texts.len())),
    };
    Ok(Value::text(answer.into_owned()))
}

fn regex(pattern: &str) -> Result<Regex, String> {
    re2::compile(pattern)
}

fn title(text: &str) -> String {
    let mut start = true;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if start {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
        start = !(c.is_alphanumeric() || c == '_' || c == '\'');
    }
    out
}

/// Go's `url.QueryEscape`.
pub fn query_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(b)),
            b' ' => out.push('+'),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '\0' => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}

fn js(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '<' | '>' | '&' | '=' => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// Host and port of `host:port`; an address of IPv6 is in brackets.
fn split_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    match host.strip_prefix('[') {
        Some(inner) => Some((inner.strip_suffix(']')?, port)),
        None if host.contains(':') => None,
        None => Some((host, port)),
    }
}

fn strip_domain(text: &str) -> String {
    let (host, port) = split_port(text).map_or((text, None), |(h, p)| (h, Some(p)));
    if host.parse::<std::net::IpAddr>().is_ok() {
        return text.to_owned();
    }
    let host = host.split('.').next().unwrap_or(host);
    port.map_or_else(|| host.to_owned(), |p| format!("{host}:{p}"))
}

fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find('/').map_or("", |at| rest[at..].trim_end_matches('/'))
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Nil => serde_json::Value::Null,
        Value::Bool(b) => (*b).into(),
        Value::Int(i) | Value::Duration(i) => (*i).into(),
        Value::Float(f) => (*f).into(),
        Value::Text(t) => t.as_ref().into(),
        Value::List(l) => l.iter().map(json).collect(),
        Value::Map(m) | Value::Object(m) => m.iter().map(|(n, v)| (n.clone(), json(v))).collect(),
        Value::Time(_) => value.to_text().into(),
    }
}
