//! Reads everything back through the public APIs and holds it against what is owed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};

use super::{
    client::{Client, encode},
    oracle::{DAYS, Fate, HOUR, Kind, Oracle, Request, hex, now_ns},
    server::Server,
};

/// Loki's greatest page.
const PAGE: usize = 5000;
/// Violations told in full.
const TOLD: usize = 20;

/// What to look at.
pub struct Scope {
    pub days: BTreeSet<u64>,
    pub present: bool,
}

impl Scope {
    pub fn all() -> Self {
        Scope { days: (0..DAYS).collect(), present: true }
    }

    fn has(&self, request: &Request) -> bool {
        request.day.map_or(self.present, |d| self.days.contains(&d))
    }
}

/// What was found.
#[derive(Default)]
pub struct Verdict {
    /// Owed records that were compared.
    pub judged: u64,
    /// Records without an answer that turned out to be stored.
    pub found_unasked: u64,
    pub violations: u64,
    pub told: Vec<String>,
}

impl Verdict {
    fn violation(&mut self, text: String) {
        self.violations += 1;
        if self.told.len() < TOLD {
            self.told.push(text);
        }
    }
}

pub struct Judge<'a> {
    pub oracle: &'a Oracle,
    pub app: &'a str,
    client: Client,
    verdict: Verdict,
    /// Times each record was found whole, by request (its place in the list) and record.
    seen: HashMap<(usize, u64), u64>,
}

/// Compares everything in scope. What it found stored is owed from now on.
pub fn judge(oracle: &Oracle, app: &str, server: &Server, requests: &mut [Request], scope: &Scope) -> Verdict {
    let mut judge = Judge { oracle, app, client: server.client(), verdict: Verdict::default(), seen: HashMap::new() };
    judge.logs(requests, scope);
    judge.points(Kind::Points, requests, scope);
    judge.points(Kind::Written, requests, scope);
    judge.traces(requests, scope);
    judge.settle(requests, scope);
    judge.verdict
}

impl Judge<'_> {
    fn windows(&self, scope: &Scope, requests: &[Request]) -> Vec<(i64, i64)> {
        let used: BTreeSet<u64> = requests.iter().filter_map(|r| r.day).collect();
        let mut out: Vec<_> = scope.days.intersection(&used).map(|d| self.oracle.day(*d)).collect();
        if scope.present {
            out.push((self.oracle.began - HOUR / 60, now_ns() + HOUR));
        }
        out
    }

    fn ask(&mut self, path: &str) -> Option<Value> {
        let answer = self.client.get(path).unwrap_or_else(|e| panic!("GET {path}: {e}"));
        match answer.status {
            200 => Some(answer.json()),
            404 => None,
            status => panic!("GET {path}: {status} {}", answer.text()),
        }
    }

    fn logs(&mut self, requests: &[Request], scope: &Scope) {
        let mut places = HashMap::new();
        for (i, r) in requests.iter().enumerate().filter(|(_, r)| r.kind.is_log() && scope.has(r)) {
            places.extend(r.ids().map(|id| (id, i)));
        }
        for (start, end) in self.windows(scope, requests) {
            for (ts, line, labels) in self.entries(start, end) {
                let id = labels.get("id").and_then(|id| id.strip_prefix('r')?.parse::<u64>().ok());
                let Some((id, place)) = id.and_then(|id| Some((id, *places.get(&id)?))) else {
                    self.verdict.violation(format!("log record nobody sent: {ts} {line:?} {labels:?}"));
                    continue;
                };
                let request = &requests[place];
                let (sent, wanted) = (self.oracle.line(id).0, self.oracle.labels(id, request.writer, self.app));
                if request.ts(id) != ts || sent != line || wanted != labels {
                    self.verdict.violation(format!(
                        "log record {id} altered: {ts} {line:?} {labels:?}, sent {} {sent:?} {wanted:?}",
                        request.ts(id)
                    ));
                }
                *self.seen.entry((place, id)).or_default() += 1;
            }
        }
    }

    /// All entries of a window, page by page.
    fn entries(&mut self, start: i64, end: i64) -> Vec<(i64, String, BTreeMap<String, String>)> {
        let mut out: Vec<(i64, String, BTreeMap<String, String>)> = Vec::new();
        let query = encode(&format!("{{app=\"{}\"}}", self.app));
        let mut from = start;
        loop {
            let path = format!(
                "/loki/api/v1/query_range?query={query}&start={from}&end={end}&limit={PAGE}&direction=forward"
            );
            let answer = self.ask(&path).unwrap_or_default();
            let mut page = Vec::new();
            for stream in answer["data"]["result"].as_array().into_iter().flatten() {
                let labels: BTreeMap<String, String> =
                    serde_json::from_value(stream["stream"].clone()).expect("labels are texts");
                for entry in stream["values"].as_array().into_iter().flatten() {
                    let ts = entry[0].as_str().and_then(|t| t.parse().ok()).expect("a time in nanoseconds");
                    page.push((ts, entry[1].as_str().expect("a line").to_owned(), labels.clone()));
                }
            }
            let full = page.len() >= PAGE;
            out.extend(page);
            if !full {
                return out;
            }
            // The last time of a full page may have more: it is asked for again, whole.
            from = out.iter().map(|e| e.0).max().expect("the page is full");
            out.retain(|e| e.0 < from);
        }
    }

    fn points(&mut self, kind: Kind, requests: &[Request], scope: &Scope) {
        let metric = kind.metric().expect("a kind of points");
        let mut writers: BTreeMap<u64, HashMap<i64, (usize, u64)>> = BTreeMap::new();
        for (i, r) in requests.iter().enumerate().filter(|(_, r)| r.kind == kind && scope.has(r)) {
            let places = writers.entry(r.writer).or_default();
            places.extend(r.ids().map(|id| (r.ts(id) / 1_000_000, (i, id))));
        }
        for (writer, places) in writers {
            for (start, end) in self.windows(scope, requests) {
                let seconds = (end - start) / 1_000_000_000;
                let query = encode(&format!("{metric}{{writer=\"w{writer}\"}}[{seconds}s]"));
                let answer = self.ask(&format!("/api/v1/query?query={query}&time={}", end / 1_000_000_000));
                for series in answer.unwrap_or_default()["data"]["result"].as_array().into_iter().flatten() {
                    let mut wanted = json!({ "__name__": metric, "job": self.app, "writer": format!("w{writer}") });
                    if kind == Kind::Points {
                        wanted["service_name"] = self.app.into();
                    }
                    if series["metric"] != wanted {
                        self.verdict.violation(format!("series nobody sent: {}", series["metric"]));
                        continue;
                    }
                    for point in series["values"].as_array().into_iter().flatten() {
                        let ms = (point[0].as_f64().expect("a time") * 1000.0).round() as i64;
                        let Some((place, id)) = places.get(&ms) else {
                            self.verdict.violation(format!("point nobody sent: writer {writer} {point}"));
                            continue;
                        };
                        let sent = self.oracle.value(*id);
                        let value: f64 = point[1].as_str().and_then(|v| v.parse().ok()).expect("a number");
                        if value.to_bits() != sent.to_bits() {
                            self.verdict.violation(format!("point {id} altered: {point}, sent {sent:?}"));
                        }
                        *self.seen.entry((*place, *id)).or_default() += 1;
                    }
                }
            }
        }
    }

    fn traces(&mut self, requests: &[Request], scope: &Scope) {
        let mut traces: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let spans = |r: &Request| matches!(r.kind, Kind::Spans | Kind::MoreSpans) && scope.has(r);
        for (i, r) in requests.iter().enumerate().filter(|(_, r)| spans(r)) {
            for id in r.ids() {
                traces.entry(id).or_default().push(i);
            }
        }
        for (id, places) in traces {
            let mut wanted = BTreeMap::new();
            for place in &places {
                for span in self.oracle.spans(id, requests[*place].ts(id), requests[*place].kind) {
                    // Through text, as the answer: the JSON reader here may miss a number's last bit.
                    let span: Value = serde_json::from_str(&span.to_string()).expect("just written");
                    wanted.insert(span["spanId"].to_string(), (*place, span, 0u64));
                }
            }
            let mut path = format!("/api/traces/{}", hex(&self.oracle.trace_id(id)));
            if id % 2 == 0 {
                let at = requests[places[0]].ts(id) / 1_000_000_000;
                path.push_str(&format!("?start={}&end={}", at - 60, at + 60));
            }
            let Some(answer) = self.ask(&path) else { continue };
            let resource = json!({ "attributes": [{ "key": "service.name", "value": { "stringValue": self.app } }] });
            for batch in answer["batches"].as_array().into_iter().flatten() {
                if batch["resource"] != resource {
                    self.verdict.violation(format!("resource of trace {id} altered: {}", batch["resource"]));
                }
                for scope in batch["scopeSpans"].as_array().into_iter().flatten() {
                    if scope["scope"] != json!({ "name": "torture" }) {
                        self.verdict.violation(format!("scope of trace {id} altered: {}", scope["scope"]));
                    }
                    for span in scope["spans"].as_array().into_iter().flatten() {
                        match wanted.get_mut(&span["spanId"].to_string()) {
                            None => self.verdict.violation(format!("span nobody sent in trace {id}: {span}")),
                            Some((_, sent, count)) => {
                                *count += 1;
                                if sent != span {
                                    self.verdict
                                        .violation(format!("span of trace {id} altered: {span}, sent {sent}"));
                                }
                            }
                        }
                    }
                }
            }
            for place in places {
                let counts: Vec<u64> = wanted.values().filter(|w| w.0 == place).map(|w| w.2).collect();
                let (least, most) = (counts.iter().min(), counts.iter().max());
                if least != most {
                    self.verdict.violation(format!("trace {id}: spans of one request are there {counts:?} times"));
                }
                if let Some(most @ 1..) = most.copied() {
                    self.seen.insert((place, id), most);
                }
            }
        }
    }

    /// Each record once if owed, once or not at all if not; a request whole or not at all.
    fn settle(&mut self, requests: &mut [Request], scope: &Scope) {
        for (i, r) in requests.iter_mut().enumerate().filter(|(_, r)| scope.has(r)) {
            let counts: Vec<u64> = r.ids().map(|id| self.seen.get(&(i, id)).copied().unwrap_or(0)).collect();
            let here = counts.iter().filter(|c| **c > 0).count() as u64;
            let what = format!(
                "{:?} {}..{} of writer {}, sent again {} times",
                r.kind,
                r.first,
                r.first + r.count,
                r.writer,
                r.resent
            );
            if counts.iter().any(|c| *c > 1) {
                self.verdict.violation(format!("stored more than once: {what}: {counts:?}"));
            }
            match r.fate {
                Fate::Owed => {
                    self.verdict.judged += r.count;
                    if here < r.count {
                        self.verdict.violation(format!("LOST: {} of {what}: {counts:?}", r.count - here));
                    }
                }
                Fate::Maybe if here == r.count => {
                    // Whoever saw it once may count on it.
                    self.verdict.found_unasked += r.count;
                    r.fate = Fate::Owed;
                }
                Fate::Maybe if here > 0 => {
                    self.verdict.violation(format!("half a request stored: {what}: {counts:?}"))
                }
                Fate::Maybe => {}
            }
        }
    }
}
