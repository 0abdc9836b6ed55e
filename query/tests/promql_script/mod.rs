//! The script language of Prometheus' PromQL tests: `load`, `clear`, `eval` and what is expected.

use std::collections::BTreeMap;

use query::{
    annotations::Annotations,
    error::QueryError,
    limits::Limits,
    promql::{
        Engine, EngineOptions, Features, InstantRequest, Point, RangeRequest, Value,
        notation::{self as points, Points, duration, labels_of, parse_points, series, split_series},
    },
};
use storage::{
    Append, Store, StoreConfig,
    model::{Labels, MetricBatchBuilder, Table, TenantId, batch::SeriesMeta},
};

pub struct Outcome {
    pub passed: usize,
    /// `line: query: why`.
    pub failures: Vec<String>,
}

struct Session {
    _dir: tempfile::TempDir,
    store: Store,
    engine: Engine,
}

impl Session {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let mut config = StoreConfig::new(dir.path());
        config.durability = storage::Durability::None;
        config.background = false;
        let store = Store::open(config).await.expect("a fresh store opens");
        let options = EngineOptions { features: Features::ALL, ..EngineOptions::default() };
        let engine = Engine::new(store.clone(), Limits::default(), options);
        Session { _dir: dir, store, engine }
    }
}

pub async fn run(text: &str) -> Outcome {
    let lines: Vec<&str> = text.lines().collect();
    let mut session = Session::new().await;
    let mut out = Outcome { passed: 0, failures: Vec::new() };
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        let word = line.split_whitespace().next().unwrap_or("");
        if word.is_empty() || word.starts_with('#') {
            at += 1;
            continue;
        }
        // A command is followed by its indented lines; comments and blank lines end nothing inside.
        let mut end = at + 1;
        while end < lines.len() && (lines[end].starts_with([' ', '\t']) || lines[end].starts_with('#')) {
            if lines[end].trim().is_empty() {
                break;
            }
            end += 1;
        }
        let body: Vec<&str> =
            lines[at + 1..end].iter().map(|l| l.trim()).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
        if word == "clear" {
            session = Session::new().await;
        } else if word.starts_with("load") {
            if let Err(e) = load(&session.store, line, &body).await {
                out.failures.push(format!("{}: {line}: cannot load: {e}", at + 1));
            }
        } else if word.starts_with("eval") {
            match evaluate(&session.engine, line, &body).await {
                Ok(()) => out.passed += 1,
                Err(e) => out.failures.push(format!("{}: {}: {e}", at + 1, line.trim())),
            }
        } else {
            out.failures.push(format!("{}: unknown command {line:?}", at + 1));
        }
        at = end;
    }
    out
}

async fn load(store: &Store, line: &str, body: &[&str]) -> Result<(), String> {
    let mut words = line.split_whitespace();
    let with_nhcb = words.next() == Some("load_with_nhcb");
    let step = duration(words.next().ok_or("load needs an interval")?)?;
    let mut builder = MetricBatchBuilder::new();
    let mut rows = 0;
    let mut loaded: Vec<(Labels, Vec<(i64, Point)>)> = Vec::new();
    let mut starts: BTreeMap<String, Vec<Option<i64>>> = BTreeMap::new();
    for line in body {
        if let (Some(head), offsets) = (split_series(line).0.strip_suffix("@st"), split_series(line).1) {
            starts.insert(labels_of(head)?.to_json(), points::parse_starts(offsets)?);
            continue;
        }
        let (labels, rest) = series(line)?;
        let points = parse_points(rest)?;
        let timed = points.into_iter().enumerate().filter(|(_, p)| p.is_some());
        loaded.push((labels, timed.map(|(i, p)| (step * i as i64, p)).collect()));
    }
    if with_nhcb {
        loaded.extend(points::custom_bucket_histograms(&loaded));
    }
    for (labels, points) in &loaded {
        let id = builder.series(labels, SeriesMeta::default());
        let starts = starts.get(&labels.to_json());
        for (t, p) in points {
            let index = (*t / step.max(1)) as usize;
            let start = starts.and_then(|s| s.get(index).copied().flatten()).map(|offset| t + offset);
            match p {
                Point::Float(v) => builder.sample(id, *t, start, *v),
                Point::Histogram(h) => builder.histogram(id, *t, start, &points::row(h)),
                Point::None => continue,
            }
            rows += 1;
        }
    }
    if rows == 0 {
        return Ok(());
    }
    let batch = builder.finish();
    let rows = vec![
        (Table::MetricSeries, batch.series),
        (Table::MetricSamples, batch.samples),
        (Table::MetricHistograms, batch.histograms),
    ];
    let rows = rows.into_iter().filter(|(_, b)| b.num_rows() > 0).collect();
    let append = Append { tenant: TenantId::default(), rows, sources: Vec::new(), batch_id: None };
    store.append(append).await.map(|_| ()).map_err(|e| e.to_string())
}

#[derive(Default)]
struct Expected {
    fail: Option<Text>,
    /// Whether warnings and infos must be there (`Some(texts)`, perhaps any) or must not.
    warn: Vec<Text>,
    info: Vec<Text>,
    no_warn: bool,
    no_info: bool,
    ordered: bool,
    string: Option<String>,
    matrix_times: Option<Vec<i64>>,
    series: Vec<(Labels, Points)>,
    scalar: Option<f64>,
}

enum Text {
    Any,
    Exact(String),
    Regex(regex::Regex),
}

impl Text {
    fn parse(rest: &str) -> Result<Text, String> {
        let rest = rest.trim();
        if let Some(m) = rest.strip_prefix("msg:") {
            return Ok(Text::Exact(m.trim().to_owned()));
        }
        if let Some(r) = rest.strip_prefix("regex:") {
            return regex::Regex::new(r.trim()).map(Text::Regex).map_err(|e| e.to_string());
        }
        if rest.is_empty() { Ok(Text::Any) } else { Err(format!("bad expectation {rest:?}")) }
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Text::Any => true,
            Text::Exact(t) => t == text,
            Text::Regex(r) => r.is_match(text),
        }
    }
}

fn expected(word: &str, body: &[&str]) -> Result<Expected, String> {
    let mut out = Expected::default();
    match word {
        "eval_fail" => out.fail = Some(Text::Any),
        "eval_warn" => out.warn.push(Text::Any),
        "eval_info" => out.info.push(Text::Any),
        "eval_ordered" => out.ordered = true,
        _ => {}
    }
    for line in body {
        if let Some(rest) = line.strip_prefix("expect ") {
            let rest = rest.trim();
            let (what, text) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            match what {
                "fail" => out.fail = Some(Text::parse(text)?),
                "warn" => out.warn.push(Text::parse(text)?),
                "info" => out.info.push(Text::parse(text)?),
                "no_warn" => out.no_warn = true,
                "no_info" => out.no_info = true,
                "ordered" => out.ordered = true,
                "string" => out.string = Some(unquoted(text)?),
                "range" => {
                    let words: Vec<&str> = text.split_whitespace().collect();
                    let [_, _, from, _, to, _, step] = words.as_slice() else {
                        return Err(format!("bad line {line:?}"));
                    };
                    let (from, to, step) = (duration(from)?, duration(to)?, duration(step)?);
                    out.matrix_times = Some((0..).map(|i| from + i * step).take_while(|t| *t <= to).collect());
                }
                _ => return Err(format!("unknown expectation {line:?}")),
            }
        } else if let Some(m) = line.strip_prefix("expected_fail_message ") {
            out.fail = Some(Text::Exact(m.trim().to_owned()));
        } else if let Some(r) = line.strip_prefix("expected_fail_regexp ") {
            out.fail = Some(Text::Regex(regex::Regex::new(r.trim()).map_err(|e| e.to_string())?));
        } else if let Ok(v) = points::number(line) {
            out.scalar = Some(v);
        } else {
            let (labels, rest) = series(line)?;
            out.series.push((labels, parse_points(rest)?));
        }
    }
    Ok(out)
}

fn unquoted(text: &str) -> Result<String, String> {
    let bytes = query::syntax::unquote(text.trim())?;
    String::from_utf8(bytes).map_err(|e| e.to_string())
}

async fn evaluate(engine: &Engine, line: &str, body: &[&str]) -> Result<(), String> {
    let (word, rest) = line.trim().split_once(char::is_whitespace).ok_or("empty eval")?;
    let expected = expected(word, body)?;
    let (mode, rest) = rest.trim().split_once(char::is_whitespace).ok_or("eval needs instant or range")?;
    let take = |rest: &mut &str, keyword: &str| -> Result<i64, String> {
        let (k, tail) = rest.trim().split_once(char::is_whitespace).ok_or("eval needs times")?;
        if k != keyword {
            return Err(format!("expected {keyword:?}, got {k:?}"));
        }
        let (value, tail) = tail.trim().split_once(char::is_whitespace).ok_or("eval needs a query")?;
        *rest = tail;
        duration(value)
    };
    let mut rest = rest;
    if mode == "instant" {
        let at = take(&mut rest, "at")?;
        let query = rest.trim();
        let request = InstantRequest { query: query.into(), time_ms: at, ..InstantRequest::default() };
        let instant = engine.instant(&TenantId::default(), request).await;
        check(&instant.as_ref().map(|o| (&o.value, &o.annotations)), &expected, &[at], false)?;
        if expected.fail.is_some() || expected.ordered || expected.matrix_times.is_some() || expected.string.is_some()
        {
            return Ok(());
        }
        let request = RangeRequest {
            query: query.into(),
            start_ms: at - 60_000,
            end_ms: at + 60_000,
            step_ms: 60_000,
            ..RangeRequest::default()
        };
        // Types a range query does not take, and functions of the query's own range, are checked above.
        let times_matter = ["start()", "end()", "range()", "step()"].iter().any(|f| query.contains(f));
        if times_matter || instant.as_ref().is_ok_and(|o| matches!(o.value, Value::Matrix(_) | Value::String { .. }))
        {
            return Ok(());
        }
        let range = engine.range(&TenantId::default(), request).await.map_err(|e| format!("as a range: {e}"))?;
        let Value::Matrix(series) = range.value else { return Err("a range query gives a matrix".into()) };
        let samples = series.into_iter().filter_map(|s| {
            let point = s.points.into_iter().find(|p| p.0 == at)?.1;
            Some(query::promql::Sample { labels: s.labels, point })
        });
        let mut value = Value::Vector { ts_ms: at, samples: samples.collect() };
        if let (Some(_), Value::Vector { samples, .. }) = (expected.scalar, &value)
            && let [sample] = samples.as_slice()
            && let Point::Float(v) = sample.point
        {
            value = Value::Scalar { ts_ms: at, value: v };
        }
        return check_value(&value, &expected, &[at], true).map_err(|e| format!("as a range: {e}"));
    }
    let (start, end, step) = (take(&mut rest, "from")?, take(&mut rest, "to")?, take(&mut rest, "step")?);
    let request = RangeRequest {
        query: rest.trim().into(),
        start_ms: start,
        end_ms: end,
        step_ms: step,
        ..RangeRequest::default()
    };
    let out = engine.range(&TenantId::default(), request).await;
    let times: Vec<i64> = (0..).map(|i| start + i * step).take_while(|t| *t <= end).collect();
    check(&out.as_ref().map(|o| (&o.value, &o.annotations)), &expected, &times, true)
}

fn check(
    out: &Result<(&Value, &Annotations), &QueryError>,
    expected: &Expected,
    times: &[i64],
    range: bool,
) -> Result<(), String> {
    let (value, notes) = match (out, &expected.fail) {
        (Err(e), Some(text)) => {
            let message = match e {
                QueryError::Syntax(s) => s.message.clone(),
                other => other.to_string(),
            };
            return if text.matches(&message) || text.matches(&e.to_string()) {
                Ok(())
            } else {
                Err(format!("fails otherwise: {message}"))
            };
        }
        (Err(e), None) => return Err(format!("fails: {e}")),
        (Ok(_), Some(_)) => return Err("should fail".into()),
        (Ok(ok), None) => *ok,
    };
    for (what, texts, wanted, none) in [
        ("warning", notes.warnings(), &expected.warn, expected.no_warn),
        ("info", notes.infos(), &expected.info, expected.no_info),
    ] {
        if none && !texts.is_empty() {
            return Err(format!("unwanted {what}: {texts:?}"));
        }
        if !wanted.is_empty() {
            if let Some(t) = texts.iter().find(|t| !wanted.iter().any(|w| w.matches(t))) {
                return Err(format!("unexpected {what}: {t}"));
            }
            if wanted.iter().any(|w| !texts.iter().any(|t| w.matches(t))) {
                return Err(format!("missing {what}, got {texts:?}"));
            }
        }
    }
    check_value(value, expected, times, range)
}

fn check_value(value: &Value, expected: &Expected, times: &[i64], range: bool) -> Result<(), String> {
    match value {
        Value::String { value, .. } => match &expected.string {
            Some(s) if s == value => Ok(()),
            other => Err(format!("string {value:?}, expected {other:?}")),
        },
        Value::Scalar { value, .. } => match expected.scalar {
            Some(v) if points::close(v, *value) => Ok(()),
            other => Err(format!("scalar {value}, expected {other:?}")),
        },
        Value::Vector { samples, .. } => {
            if expected.scalar.is_some() {
                return Err(format!("vector {samples:?}, expected a scalar"));
            }
            if samples.len() != expected.series.len() {
                return Err(format!("{} elements, expected {}: {samples:?}", samples.len(), expected.series.len()));
            }
            for (n, (labels, points)) in expected.series.iter().enumerate() {
                let found = samples.iter().position(|s| *s.labels == *labels);
                let Some(i) = found else { return Err(format!("no {labels}, got {samples:?}")) };
                if expected.ordered && !range && i != n {
                    return Err(format!("{labels} is at {i}, expected at {n}"));
                }
                let wanted = points.first().ok_or("an expected element needs a value")?;
                if !points::same(wanted, &samples[i].point) {
                    return Err(format!("{labels}: {:?}, expected {wanted:?}", samples[i].point));
                }
            }
            Ok(())
        }
        Value::Matrix(series) => {
            let times = expected.matrix_times.as_deref().unwrap_or(times);
            if series.len() != expected.series.len() {
                let got: Vec<_> = series.iter().map(|s| (&s.labels, &s.points)).collect();
                return Err(format!("{} series, expected {}: {got:?}", series.len(), expected.series.len()));
            }
            for (labels, points) in &expected.series {
                let Some(found) = series.iter().find(|s| *s.labels == *labels) else {
                    return Err(format!("no {labels}"));
                };
                for (i, t) in times.iter().enumerate() {
                    let got = found.points.iter().find(|p| p.0 == *t).map_or(Point::None, |p| p.1.clone());
                    let wanted = points.get(i).cloned().unwrap_or_default();
                    if !points::same(&wanted, &got) {
                        return Err(format!("{labels} at {t}: {got:?}, expected {wanted:?}"));
                    }
                }
                if let Some(p) = found.points.iter().find(|p| !times.contains(&p.0)) {
                    return Err(format!("{labels}: a point at unexpected time {}", p.0));
                }
            }
            Ok(())
        }
    }
}
