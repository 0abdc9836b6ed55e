//! How an answer is compared with the recorded one. The rules stand in the README of the cases.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

const RELATIVE: f64 = 1e-9;

type Difference = Option<String>;

/// First difference between an answer and the recording, or `None`.
pub fn check(case: &Value, status: u16, content_type: &str, raw: &[u8]) -> Difference {
    let want = &case["response"];
    let text = String::from_utf8_lossy(raw).into_owned();
    if Some(u64::from(status)) != want["status"].as_u64() {
        return Some(format!("status {status}, want {}; body: {}", want["status"], short_text(text.trim())));
    }
    if status / 100 != 2 && case["strict"] != Value::Bool(true) {
        return None;
    }
    if let Value::String(wanted) = &want["body"] {
        return (text.trim() != wanted.trim())
            .then(|| format!("body: got {}, want {}", short_text(&text), short_text(wanted)));
    }
    if !content_type.contains("json") {
        return Some(format!("content type {content_type:?}: {}", short_text(&text)));
    }
    let Ok(mut got) = serde_json::from_str::<Value>(&text) else {
        return Some(format!("body is not JSON: {}", short_text(&text)));
    };
    if let Some(data) = got.get_mut("data").and_then(Value::as_object_mut) {
        data.remove("stats");
    }
    match case["compare"].as_str() {
        Some("patterns") => return patterns(&got),
        Some("keys") => {
            let missing: Vec<&String> = want["body"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, _)| k)
                .filter(|k| got.get(k).is_none())
                .collect();
            return (!missing.is_empty()).then(|| format!("missing keys {missing:?}"));
        }
        _ => {}
    }
    let ignored: Vec<&str> = case["ignore"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let tolerance = case["tolerance"].as_object();
    let differ = Differ {
        unordered: case["compare"] == "unordered",
        loose: tolerance.is_some(),
        relative: tolerance.and_then(|t| t.get("rel")?.as_f64()).unwrap_or(RELATIVE),
        absolute: tolerance.and_then(|t| t.get("abs")?.as_f64()).unwrap_or(0.0),
    };
    differ.document(&trimmed(&want["body"], &ignored), &trimmed(&got, &ignored))
}

fn patterns(got: &Value) -> Difference {
    let good = |p: &Value| {
        p["pattern"].is_string()
            && p["samples"].as_array().is_some_and(|s| s.iter().all(|x| x.as_array().is_some_and(|x| x.len() == 2)))
    };
    match got.get("data") {
        None | Some(Value::Null) => None,
        Some(Value::Array(list)) if list.iter().all(good) => None,
        _ => Some(format!("not a pattern list: {}", short(got))),
    }
}

/// Without ignored keys; null, `[]` and absent mean the same at the top.
fn trimmed(doc: &Value, ignored: &[&str]) -> Value {
    let Value::Object(map) = doc else { return doc.clone() };
    let kept =
        map.iter().filter(|(k, v)| !ignored.contains(&k.as_str()) && !v.is_null() && **v != Value::Array(vec![]));
    Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect())
}

struct Differ {
    unordered: bool,
    loose: bool,
    relative: f64,
    absolute: f64,
}

impl Differ {
    fn document(&self, want: &Value, got: &Value) -> Difference {
        if let (Value::Object(w), Value::Object(g)) = (want, got) {
            if let Some(kind) = w.get("data").and_then(|d| d.get("resultType")) {
                let got_data = g.get("data");
                if got_data.and_then(|d| d.get("resultType")) != Some(kind) {
                    return Some(format!("resultType: got {}, want {kind}", short(got_data.unwrap_or(&Value::Null))));
                }
                let rest = |doc: &Map<String, Value>| {
                    let mut doc = doc.clone();
                    if let Some(d) = doc.get_mut("data").and_then(Value::as_object_mut) {
                        d.remove("result");
                    }
                    Value::Object(doc)
                };
                return self.value(&rest(w), &rest(g), "$").or_else(|| {
                    self.result(kind.as_str().unwrap_or(""), &w["data"]["result"], &g["data"]["result"])
                });
            }
            if self.unordered {
                return self.value(&sorted_lists(w), &sorted_lists(g), "$");
            }
        }
        self.value(want, got, "$")
    }

    fn value(&self, want: &Value, got: &Value, at: &str) -> Difference {
        match (want, got) {
            (Value::Object(w), Value::Object(g)) => {
                for (k, v) in w {
                    match g.get(k) {
                        None => return Some(format!("{at}: missing key {k:?} (want {})", short(v))),
                        Some(x) => {
                            if let Some(d) = self.value(v, x, &format!("{at}.{k}")) {
                                return Some(d);
                            }
                        }
                    }
                }
                g.keys().find(|k| !w.contains_key(*k)).map(|k| format!("{at}: extra key {k:?} = {}", short(&g[k])))
            }
            (Value::Array(w), Value::Array(g)) => {
                if w.len() != g.len() {
                    return Some(format!(
                        "{at}: {} items, want {}; got {} want {}",
                        g.len(),
                        w.len(),
                        short(got),
                        short(want)
                    ));
                }
                w.iter().zip(g).enumerate().find_map(|(i, (a, b))| self.value(a, b, &format!("{at}[{i}]")))
            }
            _ if want == got => None,
            _ => {
                let numeric = (want.is_number() && got.is_number()) || self.loose;
                match (number(want), number(got)) {
                    (Some(a), Some(b)) if numeric && self.close(a, b) => None,
                    _ => Some(format!("{at}: got {}, want {}", short(got), short(want))),
                }
            }
        }
    }

    fn close(&self, a: f64, b: f64) -> bool {
        if a.is_nan() || b.is_nan() {
            return a.is_nan() && b.is_nan();
        }
        a == b
            || (a.is_finite()
                && b.is_finite()
                && (a - b).abs() <= self.absolute + self.relative * a.abs().max(b.abs()))
    }

    /// `[seconds, "value"]`: the time exact, the value as a float.
    fn sample(&self, want: &Value, got: &Value, at: &str) -> Difference {
        let good = got[1].is_string()
            && got[0].as_f64() == want[0].as_f64()
            && number(&want[1]).zip(number(&got[1])).is_some_and(|(a, b)| self.close(a, b));
        (!good).then(|| format!("{at}: got {}, want {}", short(got), short(want)))
    }

    fn result(&self, kind: &str, want: &Value, got: &Value) -> Difference {
        if kind == "scalar" {
            return self.sample(want, got, "scalar");
        }
        let (Some(w), Some(g)) = (want.as_array(), got.as_array()) else {
            return (!got.is_array()).then(|| format!("result is not a list: {}", short(got)));
        };
        let name = if kind == "streams" { "stream" } else { "metric" };
        let pairs: Vec<(String, Vec<&Value>, Vec<&Value>)> = if self.unordered {
            let (mut wk, mut gk) = (by_key(w, name), by_key(g, name));
            if let Some(k) = wk.keys().find(|k| !gk.contains_key(*k)) {
                let other = gk.keys().find(|k| !wk.contains_key(*k)).map_or("", String::as_str);
                return Some(format!(
                    "{name} missing: {} (got {}, want {}), unexpected: {}",
                    short_text(k),
                    gk.len(),
                    wk.len(),
                    short_text(other)
                ));
            }
            if let Some(k) = gk.keys().find(|k| !wk.contains_key(*k)) {
                return Some(format!("{name} unexpected: {} (got {}, want {})", short_text(k), gk.len(), wk.len()));
            }
            let keys: Vec<String> = wk.keys().cloned().collect();
            keys.into_iter()
                .map(|k| {
                    let (a, b) = (wk.remove(&k).unwrap_or_default(), gk.remove(&k).unwrap_or_default());
                    (k, a, b)
                })
                .collect()
        } else {
            if w.iter().map(|x| canon(&x[name])).ne(g.iter().map(|x| canon(&x[name]))) {
                return Some(format!("order or set of {name}s: got {}, want {}", short(got), short(want)));
            }
            w.iter().zip(g).map(|(a, b)| (canon(&a[name]), vec![a], vec![b])).collect()
        };
        pairs.iter().find_map(|(k, ws, gs)| self.series(kind, ws, gs, &short_text(k)))
    }

    fn series(&self, kind: &str, ws: &[&Value], gs: &[&Value], at: &str) -> Difference {
        if kind == "vector" {
            return self.sample(&ws[0]["value"], &gs[0]["value"], at);
        }
        let values = |s: &[&Value]| -> Vec<Value> {
            s.iter().flat_map(|x| x["values"].as_array().cloned().unwrap_or_default()).collect()
        };
        let (mut w, mut g) = (values(ws), values(gs));
        if kind == "streams" && (ws.len() > 1 || gs.len() > 1) {
            w.sort_by_key(canon);
            g.sort_by_key(canon);
        }
        if w.len() != g.len() {
            return Some(format!(
                "{at}: {} values, want {}; got {} want {}",
                g.len(),
                w.len(),
                short(&Value::Array(g.clone())),
                short(&Value::Array(w.clone()))
            ));
        }
        w.iter().zip(&g).enumerate().find_map(|(i, (a, b))| {
            let at = format!("{at}[{i}]");
            if kind == "matrix" { self.sample(a, b, &at) } else { self.value(a, b, &at) }
        })
    }
}

fn number(v: &Value) -> Option<f64> {
    match v {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    }
}

/// serde_json keeps object keys sorted here, so its text is canonical.
fn canon(v: &Value) -> String {
    fn sorted(v: &Value) -> Value {
        match v {
            Value::Object(m) => {
                let all: BTreeMap<&String, Value> = m.iter().map(|(k, v)| (k, sorted(v))).collect();
                Value::Object(all.into_iter().map(|(k, v)| (k.clone(), v)).collect())
            }
            Value::Array(a) => Value::Array(a.iter().map(sorted).collect()),
            other => other.clone(),
        }
    }
    sorted(v).to_string()
}

fn by_key<'a>(items: &'a [Value], name: &str) -> BTreeMap<String, Vec<&'a Value>> {
    let mut out: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for x in items {
        out.entry(canon(&x[name])).or_default().push(x);
    }
    out
}

/// Top-level lists sorted, and the list `parsers` inside their items.
fn sorted_lists(doc: &Map<String, Value>) -> Value {
    let item = |v: &Value| {
        let mut v = v.clone();
        if let Some(p) = v.get_mut("parsers").and_then(Value::as_array_mut) {
            p.sort_by_key(canon);
        }
        v
    };
    let sort = |v: &Value| match v {
        Value::Array(a) => {
            let mut a: Vec<Value> = a.iter().map(item).collect();
            a.sort_by_key(canon);
            Value::Array(a)
        }
        other => other.clone(),
    };
    Value::Object(doc.iter().map(|(k, v)| (k.clone(), sort(v))).collect())
}

fn short(v: &Value) -> String {
    short_text(&canon(v))
}

fn short_text(s: &str) -> String {
    if s.chars().count() <= 300 { s.to_owned() } else { s.chars().take(300).chain("...".chars()).collect() }
}
