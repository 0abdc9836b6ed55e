//! `sightline export` and `sightline import`: a time window of one signal out of a running server into a file, and back.
//!
//! Both go through the server (`/api/v1/export`, `/api/v1/import`; OTLP goes in by its own routes), so that limits and
//! tenants hold and nothing needs to be stopped. Memory is that of a few batches. An import may be repeated: each piece of a
//! file has an id of its own, and an id is stored once (the server remembers the latest 65,536).

mod export;
mod import;
mod otlp;
mod parquet_file;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::ValueEnum;

use crate::config::units::Span;

/// Longest silence of a server.
const IDLE_MAX: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Signal {
    Logs,
    Metrics,
    Traces,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line of JSON a row
    Ndjson,
    /// Parquet; of metrics one file a kind: FILE, FILE.histograms, FILE.exemplars
    Parquet,
    /// OTLP's JSON, a request a line, for any OpenTelemetry receiver; of metrics only with --from
    Otlp,
}

#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7600")]
    url: String,
    #[arg(long, value_enum)]
    signal: Signal,
    /// First moment: RFC 3339, Unix seconds, or how long ago, as 6h [default: all]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// First moment that is left out [default: all]
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Streams or series, as {app="shop"}
    #[arg(long, value_name = "{..}")]
    selector: Option<String>,
    #[arg(long, value_enum, default_value = "ndjson")]
    format: Format,
    /// Where to; - is standard output
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
    /// X-Scope-OrgID
    #[arg(long)]
    tenant: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// Files as `export` or, of OTLP, OpenTelemetry's file exporter writes them; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7600")]
    url: String,
    /// [default: by how a file begins; NDJSON for standard input]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// X-Scope-OrgID
    #[arg(long)]
    tenant: Option<String>,
}

pub fn export(args: &ExportArgs) -> ExitCode {
    finish(async |client| export::run(args, &client).await)
}

pub fn import(args: &ImportArgs) -> ExitCode {
    finish(async |client| import::run(args, &client).await)
}

/// Runs the work; its last words go to standard error, because standard output may be the data.
fn finish(work: impl AsyncFnOnce(reqwest::Client) -> Result<String, String>) -> ExitCode {
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))
        .and_then(|runtime| {
            let client = reqwest::Client::builder().read_timeout(IDLE_MAX).build().map_err(|e| e.to_string())?;
            runtime.block_on(work(client))
        });
    match done {
        Ok(told) => {
            eprintln!("{told}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// A moment in milliseconds since the epoch.
fn millis(text: &str) -> Result<i64, String> {
    let moment = moment(text)?;
    query::http::params::parse_time_ms(&moment).ok_or_else(|| format!("invalid time {text:?}"))
}

/// A moment as the API takes it: `6h` is that long before now.
fn moment(text: &str) -> Result<String, String> {
    match text.parse::<Span>() {
        Ok(Span(ago)) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Ok(now.saturating_sub(ago).as_secs_f64().to_string())
        }
        Err(_) if query::http::params::parse_time_ms(text).is_some() => Ok(text.to_owned()),
        Err(_) => Err(format!("invalid time {text:?}, expected RFC 3339, Unix seconds, or how long ago, as 6h")),
    }
}

/// The error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        out = format!("{out}: {cause}");
        next = cause.source();
    }
    out
}
