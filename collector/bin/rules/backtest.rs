//! `sightline rules backtest` and `backfill`: rules over what a running server has stored.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, ValueEnum};
use prost::Message as _;
use query::rules::{
    backtest::{self, Episode, Range, Series, Surroundings},
    file::{self, Kind, Rule, RuleGroup},
};
use serde_json::{Value, json};
use storage::model::Labels;

use crate::{ask::print::Grid, config::units::Span};

/// Points asked for at once; a server allows 11,000.
const POINTS_AT_ONCE: i64 = 10_000;

/// Evaluations of one rule.
const EVALUATIONS_MAX: i64 = 10_000_000;

/// Samples in one request of a backfill.
const SAMPLES_AT_ONCE: usize = 20_000;

#[derive(Debug, Args)]
pub struct Over {
    /// Rule file in Prometheus' format
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// First time of evaluation: Unix seconds or RFC 3339
    #[arg(long, value_parser = time)]
    from: Millis,
    /// Last time of evaluation
    #[arg(long, value_parser = time)]
    to: Millis,
    /// Time between evaluations of groups that name none
    #[arg(long, default_value = "1m")]
    interval: Span,
    /// The server
    #[arg(long, env = "SIGHTLINE_URL", default_value = "http://127.0.0.1:7600")]
    url: String,
    /// Tenant [default: default]
    #[arg(long, env = "SIGHTLINE_TENANT")]
    tenant: Option<String>,
    /// Only rules of this name; may be given several times
    #[arg(long, value_name = "NAME")]
    rule: Vec<String>,
}

#[derive(Debug, Args)]
pub struct BacktestArgs {
    #[command(flatten)]
    over: Over,
    /// How the outcome is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Millis(i64);

fn time(text: &str) -> Result<Millis, String> {
    query::http::params::parse_time_ms(text)
        .map(Millis)
        .ok_or_else(|| format!("invalid time {text:?}, expected Unix seconds or for example 2026-01-31T12:00:00Z"))
}

/// A rule to work on, with its group.
struct Job {
    group: RuleGroup,
    rule: Rule,
    range: Range,
}

impl Over {
    /// The rules of the file that are asked for.
    fn jobs(&self, wanted: impl Fn(&Rule) -> bool) -> Result<Vec<Job>, String> {
        let read = file::read(&self.file).map_err(|e| e.to_string())?;
        if self.to.0 < self.from.0 {
            return Err("--to is before --from".into());
        }
        let default_ms = i64::try_from(self.interval.0.as_millis()).unwrap_or(i64::MAX).max(1);
        let mut out = Vec::new();
        for group in read.groups {
            let step = group.interval_ms.unwrap_or(default_ms);
            if (self.to.0 - self.from.0) / step > EVALUATIONS_MAX {
                return Err(format!("group {:?} would be evaluated more than {EVALUATIONS_MAX} times", group.name));
            }
            let range = Range { from: self.from.0, to: self.to.0, step };
            for rule in &group.rules {
                if wanted(rule) && (self.rule.is_empty() || self.rule.iter().any(|n| n == rule.name())) {
                    out.push(Job { group: group.clone(), rule: rule.clone(), range });
                }
            }
        }
        Ok(out)
    }

    fn client(&self) -> Result<reqwest::Client, String> {
        let client = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).no_proxy().build();
        client.map_err(|e| e.to_string())
    }

    async fn post(
        &self,
        client: &reqwest::Client,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Vec<u8>, String> {
        let url = format!("{}{path}", self.url.trim_end_matches('/'));
        let mut request = client.post(&url).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(tenant) = &self.tenant {
            request = request.header("X-Scope-OrgID", tenant);
        }
        let answer = request.send().await.map_err(|e| format!("no answer of {url}: {e}"))?;
        let status = answer.status();
        let bytes =
            answer.bytes().await.map_err(|e| format!("the answer of {url} ended before it was whole: {e}"))?;
        if status.is_success() {
            return Ok(bytes.to_vec());
        }
        let error = serde_json::from_slice::<Value>(&bytes).ok().and_then(|v| Some(v["error"].as_str()?.to_owned()));
        Err(error.unwrap_or_else(|| format!("{url} answers {status}: {}", String::from_utf8_lossy(&bytes))))
    }

    /// The expression's values at the times of evaluation, and how many histograms were among them.
    async fn values(&self, client: &reqwest::Client, job: &Job) -> Result<(Vec<Series>, usize), String> {
        let (mut out, mut histograms): (HashMap<Labels, Vec<(i64, f64)>>, usize) = (HashMap::new(), 0);
        let Range { from, to, step } = job.range;
        let offset = job.group.offset_ms();
        let mut start = from;
        while start <= to {
            let end = to.min(start + (POINTS_AT_ONCE - 1) * step);
            let seconds = |ms: i64| format!("{}.{:03}", ms.div_euclid(1000), ms.rem_euclid(1000));
            let pairs = [
                ("query", job.rule.expression.text().to_owned()),
                ("start", seconds(start - offset)),
                ("end", seconds(end - offset)),
                ("step", seconds(step)),
            ];
            let form: Vec<String> =
                pairs.iter().map(|(n, v)| format!("{n}={}", query::rules::template::query_escape(v))).collect();
            let headers = [("Content-Type", "application/x-www-form-urlencoded")];
            let body = self.post(client, "/api/v1/query_range", &headers, form.join("&").into_bytes()).await?;
            let answer: Value = serde_json::from_slice(&body).map_err(|e| format!("the answer is no JSON: {e}"))?;
            for series in answer["data"]["result"].as_array().into_iter().flatten() {
                let labels = Labels::from_json(&series["metric"].to_string()).map_err(|e| e.to_string())?;
                histograms += series["histograms"].as_array().map_or(0, Vec::len);
                let point = |p: &Value| {
                    let ms = (p[0].as_f64()? * 1000.0).round() as i64;
                    Some((ms + offset, p[1].as_str()?.parse::<f64>().ok()?))
                };
                let points = series["values"].as_array().into_iter().flatten().filter_map(point).collect::<Vec<_>>();
                out.entry(labels).or_default().extend(points);
            }
            start = end + step;
        }
        let mut out: Vec<Series> = out.into_iter().collect();
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Ok((out, histograms))
    }
}

fn failed(why: &str) -> ExitCode {
    why.lines().for_each(|line| eprintln!("error: {line}"));
    ExitCode::FAILURE
}

pub async fn backtest(args: BacktestArgs) -> ExitCode {
    match run_backtest(&args).await {
        Ok(code) => code,
        Err(why) => failed(&why),
    }
}

/// RFC 3339 of milliseconds.
fn shown(ms: i64) -> String {
    let time = chrono::DateTime::from_timestamp_millis(ms).unwrap_or_default();
    time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

async fn run_backtest(args: &BacktestArgs) -> Result<ExitCode, String> {
    let over = &args.over;
    let jobs = over.jobs(|r| matches!(r.kind, Kind::Alert { .. }))?;
    let given = over.jobs(|r| matches!(r.kind, Kind::Record { .. }))?;
    let client = over.client()?;
    let (mut episodes, mut summary, mut good): (Vec<Episode>, Vec<Value>, bool) = (Vec::new(), Vec::new(), true);
    for job in &jobs {
        let names = given.iter().map(|g| g.rule.name().to_owned()).collect();
        if let Some(name) = given.iter().map(|g| g.rule.name()).find(|_| job.rule.expression.may_read(&names)) {
            eprintln!(
                "warning: {} may read what recording rules of the file give, such as {name}: only what is stored of it counts (see `rules backfill`)",
                job.rule.name()
            );
        }
        let (found, histograms) = over.values(&client, job).await.map_err(|e| format!("{}: {e}", job.rule.name()))?;
        if histograms > 0 {
            eprintln!("warning: {}: {histograms} histograms of the result are left out", job.rule.name());
        }
        let labels = Labels::default();
        let around = Surroundings { external_labels: &labels, external_url: &over.url };
        match backtest::run(&job.rule, job.group.limit, &found, job.range, &around) {
            Ok(outcome) => {
                summary.push(json!({
                    "group": job.group.name, "alert": job.rule.name(), "fired": outcome.episodes.len(),
                    "only_pending": outcome.only_pending,
                }));
                episodes.extend(outcome.episodes);
            }
            Err((at, why)) => {
                good = false;
                eprintln!("error: {} at {}: {why}", job.rule.name(), shown(at));
            }
        }
    }
    episodes.sort_by(|a, b| (a.fired_at, &a.labels).cmp(&(b.fired_at, &b.labels)));
    match args.format {
        Format::Json => {
            let one = |e: &Episode| {
                let map =
                    |l: &Labels| l.iter().map(|(n, v)| (n.to_owned(), v.into())).collect::<serde_json::Map<_, _>>();
                json!({
                    "alert": e.alert, "labels": map(&e.labels), "annotations": map(&e.annotations), "value": e.value.to_string(),
                    "active_at": shown(e.active_at), "fired_at": shown(e.fired_at), "resolved_at": e.resolved_at.map(shown),
                })
            };
            println!("{}", json!({"rules": summary, "episodes": episodes.iter().map(one).collect::<Vec<_>>()}));
        }
        Format::Table => {
            let row = |e: &Episode| {
                let mut labels = e.labels.clone();
                labels.remove("alertname");
                let end = e.resolved_at.map_or_else(|| "fires at the end".to_owned(), shown);
                let lasted = e.resolved_at.unwrap_or(over.to.0) - e.fired_at;
                vec![
                    e.alert.clone(),
                    labels.to_string(),
                    shown(e.active_at),
                    shown(e.fired_at),
                    end,
                    format!("{}s", lasted / 1000),
                ]
            };
            let names = ["alert", "labels", "true since", "fired", "resolved", "for"].map(str::to_owned).to_vec();
            let grid = Grid {
                numbers: vec![false, false, false, false, false, true],
                rows: episodes.iter().map(row).collect(),
                names,
                raw_from: 0,
            };
            grid.table(&mut std::io::stdout().lock()).map_err(|e| e.to_string())?;
            let quiet: Vec<&str> =
                summary.iter().filter(|s| s["fired"] == 0).filter_map(|s| s["alert"].as_str()).collect();
            if !quiet.is_empty() {
                println!("never fired: {}", quiet.join(", "));
            }
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(prost::Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

#[derive(prost::Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(prost::Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(prost::Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

pub async fn backfill(over: Over) -> ExitCode {
    match run_backfill(&over).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why),
    }
}

/// Recording rules one after the other, so that a later one reads what an earlier one gave.
async fn run_backfill(over: &Over) -> Result<(), String> {
    let client = over.client()?;
    for job in over.jobs(|r| matches!(r.kind, Kind::Record { .. }))? {
        let name = job.rule.name();
        let (found, histograms) = over.values(&client, &job).await.map_err(|e| format!("{name}: {e}"))?;
        if histograms > 0 {
            eprintln!("warning: {name}: {histograms} histograms of the result are left out");
        }
        let (mut seen, mut samples) = (BTreeSet::new(), 0);
        for (labels, points) in found {
            let mut labels = labels;
            labels.set("__name__", name);
            job.rule.labels.iter().for_each(|(n, t)| labels.set(n, t.text()));
            if !seen.insert(labels.clone()) {
                return Err(format!(
                    "{name}: vector contains metrics with the same labelset after applying rule labels"
                ));
            }
            if job.group.limit > 0 && seen.len() > job.group.limit {
                return Err(format!("{name}: exceeded limit of {} series", job.group.limit));
            }
            for part in points.chunks(SAMPLES_AT_ONCE) {
                let label = |(n, v): (&str, &str)| Label { name: n.to_owned(), value: v.to_owned() };
                let offset = job.group.offset_ms();
                let sample = |(t, value): &(i64, f64)| Sample { value: *value, timestamp: t - offset };
                let series = TimeSeries {
                    labels: labels.iter().map(label).collect(),
                    samples: part.iter().map(sample).collect(),
                };
                let body = WriteRequest { timeseries: vec![series] }.encode_to_vec();
                let body = snap::raw::Encoder::new().compress_vec(&body).map_err(|e| e.to_string())?;
                let headers = [
                    ("Content-Type", "application/x-protobuf"),
                    ("Content-Encoding", "snappy"),
                    ("X-Prometheus-Remote-Write-Version", "0.1.0"),
                ];
                over.post(&client, "/api/v1/write", &headers, body).await.map_err(|e| format!("{name}: {e}"))?;
                samples += part.len();
            }
        }
        println!("{name}: {samples} samples of {} series written", seen.len());
    }
    Ok(())
}
