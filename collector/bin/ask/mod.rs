//! `sightline query`: asks a running server over HTTP in SQL, PromQL or LogQL, and prints the answer.
//!
//! Exit code: 0 answered; 1 the query was refused or failed; 2 a wrong command line; 3 no server answered.

mod answer;
pub mod print;

use std::{
    io::{self, Read as _, Write},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::config::units::Span;
use print::Grid;

/// Bytes of an answer that is held to be printed as a table.
const HELD_BYTES_MAX: usize = 1 << 30;

/// Rows of an SQL answer shown as a table when no limit is given.
const TABLE_ROWS: usize = 10_000;

/// Lines of logs when no limit is given.
const LINES: usize = 100;

/// Points a range is cut into when no step is given.
const STEPS: i64 = 100;

/// How far back a range goes whose start is not given.
const SINCE: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
#[command(
    after_help = "Without --lang the text decides: SELECT, WITH, VALUES or EXPLAIN begins SQL; `{` at the start or after a\n\
    bracket is a stream selector, so LogQL; anything else is PromQL.\n\
    A time is Unix seconds or RFC 3339. PromQL without a range or step is asked for one instant.\n\
    Exit code: 0 answered, 1 refused or failed, 2 wrong command line, 3 no server answered."
)]
pub struct QueryArgs {
    /// The query; `-` reads it from standard input
    pub text: String,
    /// Language of the query [default: by its text, see below]
    #[arg(long, value_enum)]
    pub lang: Option<Language>,
    /// The server
    #[arg(long, env = "SIGHTLINE_URL", default_value = "http://127.0.0.1:7600")]
    pub url: String,
    /// How far back from the end, for example 1h [default: 1h for ranges, all of time for SQL]
    #[arg(long, conflicts_with = "start")]
    pub since: Option<Span>,
    /// First time
    #[arg(long, value_parser = time)]
    pub start: Option<Nanos>,
    /// Last time [default: now]
    #[arg(long, value_parser = time)]
    pub end: Option<Nanos>,
    /// Distance of a range's points [default: a hundredth of the range]
    #[arg(long)]
    pub step: Option<Span>,
    /// Rows, lines or series at most [default: 100 lines, 10000 rows of a table]
    #[arg(long)]
    pub limit: Option<usize>,
    /// Tenant [default: default]
    #[arg(long, env = "SIGHTLINE_TENANT")]
    pub tenant: Option<String>,
    /// How the answer is printed; raw: values alone, with tabs between
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Language {
    Sql,
    Promql,
    Logql,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
    Raw,
    Csv,
}

/// Nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nanos(i64);

fn time(text: &str) -> Result<Nanos, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        let whole = seconds.floor();
        let rest = ((seconds - whole) * 1e9).round();
        return if whole.abs() < 9.2e9 { Ok(Nanos(whole as i64 * 1_000_000_000 + rest as i64)) } else { wrong(text) };
    }
    match chrono::DateTime::parse_from_rfc3339(text).ok().and_then(|t| t.timestamp_nanos_opt()) {
        Some(ns) => Ok(Nanos(ns)),
        None => wrong(text),
    }
}

fn wrong<T>(text: &str) -> Result<T, String> {
    Err(format!("invalid time {text:?}, expected Unix seconds or for example 2026-01-31T12:00:00Z"))
}

/// The language a text is taken for.
fn guess(text: &str) -> Language {
    let text = text.trim_start();
    let word: String = text.chars().take_while(char::is_ascii_alphabetic).collect();
    let inner = text.trim_start_matches(['(', ' ', '\n', '\t']);
    let first: String = inner.chars().take_while(char::is_ascii_alphabetic).collect();
    let begins = |w: &str| ["select", "with", "values", "explain"].contains(&w.to_ascii_lowercase().as_str());
    // `with` in brackets or before one is nothing that SQL knows at its start, but a metric could be named so.
    if begins(&word) && text[word.len()..].starts_with(|c: char| c.is_whitespace() || c == '*' || c == '(')
        || first.eq_ignore_ascii_case("select")
    {
        return Language::Sql;
    }
    let squeezed: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    if squeezed.starts_with('{') || squeezed.contains("({") { Language::Logql } else { Language::Promql }
}

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Refused(String),
    #[error("no answer from {url}: {why}; is the server running? give its address with --url")]
    Unreachable { url: String, why: String },
    #[error("cannot print the answer: {0}")]
    Print(#[from] io::Error),
}

/// What is asked.
struct Ask {
    method: reqwest::Method,
    path: &'static str,
    /// Of a form.
    pairs: Vec<(&'static str, String)>,
    json: Option<Value>,
}

pub fn run(args: &QueryArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start the runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(ask_and_print(args)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has enough, like `head`.
        Err(Failure::Print(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            if matches!(e, Failure::Unreachable { .. }) { ExitCode::from(3) } else { ExitCode::FAILURE }
        }
    }
}

async fn ask_and_print(args: &QueryArgs) -> Result<(), Failure> {
    let text = match args.text.as_str() {
        "-" => {
            let mut text = String::new();
            let read = io::stdin().read_to_string(&mut text);
            read.map_err(|e| Failure::Refused(format!("cannot read the query from standard input: {e}")))?;
            text
        }
        text => text.to_owned(),
    };
    let language = args.lang.unwrap_or_else(|| guess(&text));
    let ask = ask(args, &text, language);
    let mut response = send(args, ask).await?;
    let status = response.status();
    if !status.is_success() {
        let body = held(&mut response, args).await?;
        return Err(Failure::Refused(answer::problem(status.as_u16(), &body)));
    }
    let mut out = io::stdout().lock();
    // These are printed as they come.
    if args.format == Format::Json || (args.format == Format::Csv && language == Language::Sql) {
        return pass(&mut response, args, &mut out).await;
    }
    let body = held(&mut response, args).await?;
    let value: Value = serde_json::from_slice(&body)
        .map_err(|e| Failure::Refused(format!("the answer of {} is not what was expected: {e}", args.url)))?;
    if value["status"] == "error" {
        return Err(Failure::Refused(answer::problem(200, &body)));
    }
    for warning in value["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("warning: {warning}");
    }
    let grid = match language {
        Language::Sql => answer::sql(&value),
        Language::Promql | Language::Logql => answer::result(&value["data"]),
    };
    print(&grid, args.format, &mut out)?;
    out.flush()?;
    Ok(())
}

fn print(grid: &Grid, format: Format, out: &mut impl Write) -> io::Result<()> {
    match format {
        Format::Table | Format::Json => grid.table(out),
        Format::Raw => grid.raw(out),
        Format::Csv => grid.csv(out),
    }
}

fn ask(args: &QueryArgs, text: &str, language: Language) -> Ask {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    let nanos = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
    let end = args.end.map_or(now, |t| t.0);
    let since = args.since.map(|s| end.saturating_sub(nanos(s.0)));
    let asked_start = args.start.map(|t| t.0).or(since);
    let start = asked_start.unwrap_or_else(|| end.saturating_sub(nanos(SINCE)));
    // Whole seconds or more, so that points fall on round times.
    let step = args.step.map_or_else(|| (end.saturating_sub(start) / STEPS).max(1_000_000_000), |s| nanos(s.0));
    let seconds = |ns: i64| format!("{}.{:09}", ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    match language {
        Language::Sql => {
            let mut body = json!({"query": text});
            let limit = args.limit.or((args.format == Format::Table).then_some(TABLE_ROWS));
            body["format"] = if args.format == Format::Csv { "csv".into() } else { "json".into() };
            if let Some(limit) = limit {
                body["limit"] = limit.into();
            }
            if let Some(start) = asked_start {
                body["start"] = seconds(start).into();
            }
            if args.end.is_some() || args.since.is_some() {
                body["end"] = seconds(end).into();
            }
            Ask { method: reqwest::Method::POST, path: "/api/v1/sql", pairs: vec![], json: Some(body) }
        }
        Language::Promql => {
            let mut pairs = vec![("query", text.to_owned())];
            pairs.extend(args.limit.map(|l| ("limit", l.to_string())));
            let range = asked_start.is_some() || args.step.is_some();
            if range {
                pairs.extend([("start", seconds(start)), ("end", seconds(end)), ("step", seconds(step))]);
            } else {
                pairs.push(("time", seconds(end)));
            }
            let path = if range { "/api/v1/query_range" } else { "/api/v1/query" };
            Ask { method: reqwest::Method::POST, path, pairs, json: None }
        }
        Language::Logql => {
            let limit = args.limit.unwrap_or(LINES).to_string();
            let mut pairs = vec![("query", text.to_owned()), ("start", start.to_string()), ("end", end.to_string())];
            pairs.push(("limit", limit));
            pairs.extend(args.step.map(|s| ("step", seconds(nanos(s.0)))));
            Ask { method: reqwest::Method::POST, path: "/loki/api/v1/query_range", pairs, json: None }
        }
    }
}

async fn send(args: &QueryArgs, ask: Ask) -> Result<reqwest::Response, Failure> {
    let base = args.url.trim_end_matches('/');
    let unreachable = |e: reqwest::Error| {
        let mut why = e.to_string();
        let mut cause = std::error::Error::source(&e);
        while let Some(c) = cause {
            why = c.to_string();
            cause = c.source();
        }
        Failure::Unreachable { url: base.to_owned(), why }
    };
    let client =
        reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).no_proxy().build().map_err(unreachable)?;
    let mut request = client.request(ask.method, format!("{base}{}", ask.path));
    if let Some(tenant) = &args.tenant {
        request = request.header("X-Scope-OrgID", tenant);
    }
    request = match ask.json {
        Some(body) => request.header("Content-Type", "application/json").body(body.to_string()),
        None => {
            let form: Vec<String> = ask.pairs.iter().map(|(n, v)| format!("{n}={}", encode(v))).collect();
            request.header("Content-Type", "application/x-www-form-urlencoded").body(form.join("&"))
        }
    };
    request.send().await.map_err(unreachable)
}

/// Percent-encodes a form's value.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(b)),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

fn broken_off(args: &QueryArgs, e: &reqwest::Error) -> Failure {
    Failure::Refused(format!("the answer of {} ended before it was whole: {e}", args.url))
}

async fn held(response: &mut reqwest::Response, args: &QueryArgs) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| broken_off(args, &e))? {
        if out.len() + chunk.len() > HELD_BYTES_MAX {
            return Err(Failure::Refused(format!(
                "the answer has more than {HELD_BYTES_MAX} bytes; give --limit, or --format csv or json"
            )));
        }
        out.extend_from_slice(&chunk);
    }
    Ok(out)
}

/// Prints an answer as it comes; an error if it turns out to have failed under way.
async fn pass(response: &mut reqwest::Response, args: &QueryArgs, out: &mut impl Write) -> Result<(), Failure> {
    let mut tail: Vec<u8> = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| broken_off(args, &e))? {
        out.write_all(&chunk)?;
        tail.extend_from_slice(&chunk);
        let from = tail.len().saturating_sub(answer::TAIL_BYTES);
        tail.drain(..from);
    }
    if tail.last().is_some_and(|b| *b != b'\n') {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    match answer::failed_under_way(&tail) {
        Some(why) if args.format == Format::Json => Err(Failure::Refused(why)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_tells_the_language() {
        for (text, language) in [
            ("select 1", Language::Sql),
            ("  WITH x AS (SELECT 1) SELECT * FROM x", Language::Sql),
            ("(select 1) union (select 2)", Language::Sql),
            ("explain select 1", Language::Sql),
            ("{app=\"shop\"} |= \"x\"", Language::Logql),
            ("sum by (app) (rate( {app=\"shop\"}[5m]))", Language::Logql),
            ("up", Language::Promql),
            ("sum(rate(x_total{a=\"b\"}[5m]))", Language::Promql),
            ("selected_total", Language::Promql),
            ("with_errors > 1", Language::Promql),
        ] {
            assert_eq!(guess(text), language, "{text}");
        }
    }

    #[test]
    fn times_are_unix_seconds_or_rfc_3339() {
        assert_eq!(time("1700000000.25"), Ok(Nanos(1_700_000_000_250_000_000)));
        assert_eq!(time("2023-11-14T22:13:20.000000001Z"), Ok(Nanos(1_700_000_000_000_000_001)));
        assert!(time("yesterday").is_err() && time("1e300").is_err());
    }
}
