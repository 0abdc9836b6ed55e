//! `sightline`: metrics, logs and traces in one binary. This page is the map; read it first.
//!
//! # What happens to a log line
//! A source ([`collector`]) reads it: a container's log file, an OTLP request, a Loki push. Lines travel in Arrow batches
//! of one schema per signal ([`storage::model`]), together with how far their source has got. The pipeline
//! ([`pipeline`]) takes batches through transforms to sinks over queues bounded in bytes; acks flow back the same way.
//! The store's sink calls [`storage::Store::append`], which
//! 1. derives what the store sorts and finds by: `stream_id`, the hash of the stream's labels, and `template_id`, the
//!    hash of the line with its numbers and ids taken out;
//! 2. writes one record to the write-ahead log ([`storage::wal`]), with the source's position beside the rows, and waits
//!    for the `fdatasync` it shares with everyone who writes at that moment;
//! 3. puts the batch into the *head*, where queries see it, and returns. Only now is the sender answered, only now does a
//!    file's offset count.
//!
//! When the head is large, old or idle, a *flush* sorts it by (stream, template, time) into one Parquet *part*
//! ([`storage::part`]) for each hour of event time, and commits them to the table's Delta log ([`storage::catalog`])
//! together with the log sequence number they reach. Head and parts change places in one step. Then the log's segments
//! go. *Compaction* ([`storage::compact`]) merges the parts of an hour, streaming, into one.
//!
//! # What happens to a query
//! A handler in [`query`] checks its parameters, the language's parser makes a tree, the engine asks the store. There is
//! one door, [`storage::Store::scan`]: table, selector, time range, columns, row filter, order and limit in; Arrow batches
//! out, from head and parts under one snapshot. Catalog, row-group and page statistics prune; the exact test comes after
//! and is the same for head and parts ([`storage::scan`]). Filters run where the rows are, on every core.
//!
//! # What must stay true
//! Acked is kept. Visible when acked. Indexes are hints. Everything is bounded. The files are open. Damage is set
//! aside and never stops a start. Everything read is stored, in flight, dropped for a counted reason, or refused. Query
//! reaches data only through the scan; the store knows no protocol and no language; the pipeline names no source.
//!
//! # Where things are
//! | folder | crate | holds | may use |
//! |---|---|---|---|
//! | `storage/` | [`storage`] | model, WAL, head, parts, Delta catalog, compaction, scan | nothing of ours |
//! | `pipeline/` | [`pipeline`] | graph, queues, acks, transforms, sinks, wire codecs | storage |
//! | `collector/src/` | [`collector`] | everything that listens, tails or looks | pipeline, storage |
//! | `query/` | [`query`] | PromQL, LogQL, SQL, read APIs | storage |
//! | `dashboards/` | [`dashboards`] | pages and Grafana files | nothing of ours |
//! | `collector/bin/` | this binary | configuration, start, stop, tests of the real process | all |
//!
//! Bytes on disk: `storage/docs/format.md`. Bounds: `storage::limits`, `query::limits`. Proof: `storage/tests` (the store
//! against a vector), `collector/bin/e2e` (the process, killed and restarted), `query/tests` (recorded conformance).
//!
//! # This binary
//! Parses the command line, runs, and turns what happened into an exit code: 0 stopped cleanly or checked without fault,
//! 1 anything else, 2 a wrong command line; those of [`ask`] are its own. The parts are put together in [`app`]; without a store, shipping elsewhere, in
//! [`agent`].

mod agent;
mod alert_targets;
mod app;
mod ask;
mod backup;
mod cli;
mod config;
mod generate;
mod own_routes;
mod reload;
mod rules;
mod scrape_targets;
mod telemetry;
#[cfg(test)]
mod tenancy;
mod transfer;

use std::{error::Error, path::PathBuf, process::ExitCode, sync::Arc};

use clap::{CommandFactory as _, Parser as _};
use cli::{AgentArgs, Cli, Command, ServeArgs};
use config::{Config, ConfigError};
use query::http::rules::Reload;
use telemetry::Telemetry;
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Buffers here are a few MiB and short-lived: a huge page is cleared whole each time one comes back from the system.
    // That was a quarter of the time of taking logs, and a quarter of the memory. A kernel without the call has none.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Completions { shell }) => {
            clap_complete::generate(shell, &mut Cli::command(), "sightline", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Some(Command::Backup(args)) => block_on(backup::backup(&args)),
        Some(Command::Restore(args)) => block_on(backup::restore_command(&args)),
        Some(Command::Check(args)) => check(args.file.or(args.config).or(cli.serve.config)),
        Some(Command::Test(args)) => test(args.file.or(args.config).or(cli.serve.config)),
        Some(Command::Generate(args)) => generate::run(&args),
        Some(Command::Export(args)) => transfer::export(&args),
        Some(Command::Import(args)) => transfer::import(&args),
        Some(Command::Query(args)) => ask::run(&args),
        Some(Command::Rules(args)) => rules::run(args),
        Some(Command::Serve(args)) => serve(&args),
        Some(Command::Agent(args)) => agent(args),
        None => serve(&cli.serve),
    }
}

fn check(file: Option<PathBuf>) -> ExitCode {
    let Some(file) = file else {
        eprintln!("error: no file to check; give one: sightline check FILE");
        return ExitCode::FAILURE;
    };
    let name = file.display().to_string();
    let checked = std::fs::read_to_string(&file)
        .map_err(|e| ConfigError(vec![format!("cannot read configuration {name}: {e}")]))
        .and_then(|text| config::check(&text, &name));
    match checked {
        Ok(warnings) => {
            warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
            println!("{name}: ok");
            ExitCode::SUCCESS
        }
        Err(e) => {
            print_problems(&e);
            ExitCode::FAILURE
        }
    }
}

fn test(file: Option<PathBuf>) -> ExitCode {
    let Some(file) = file else {
        eprintln!("error: no file to test; give one: sightline test FILE");
        return ExitCode::FAILURE;
    };
    let name = file.display().to_string();
    let tested = std::fs::read_to_string(&file)
        .map_err(|e| ConfigError(vec![format!("cannot read configuration {name}: {e}")]))
        .and_then(|text| config::test(&text, &name));
    let outcomes = match tested {
        Ok(outcomes) => outcomes,
        Err(e) => {
            print_problems(&e);
            return ExitCode::FAILURE;
        }
    };
    for outcome in &outcomes {
        println!("{} {}", if outcome.problems.is_empty() { "ok  " } else { "FAIL" }, outcome.name);
        outcome.problems.iter().for_each(|problem| println!("  {problem}"));
    }
    let failed = outcomes.iter().filter(|o| !o.problems.is_empty()).count();
    println!("{name}: {} passed, {failed} failed", outcomes.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_problems(error: &ConfigError) {
    for line in &error.0 {
        eprintln!("error: {line}");
    }
}

fn serve(args: &ServeArgs) -> ExitCode {
    start(args, async |config, telemetry| app::start(config, telemetry).await)
}

fn agent(mut args: AgentArgs) -> ExitCode {
    args.serve.ships_rest = args.to.is_some();
    // Our own signals rest in a store, which an agent has none of.
    args.serve.telemetry = Some(false);
    start(&args.serve, async |config, _| agent::start(config, &args).await)
}

/// Something that runs until it is told to stop.
trait Process {
    fn banner(&self) -> &[String];
    fn reloadable(&self) -> Arc<dyn Reload>;
    fn failed(&self) -> impl Future<Output = String> + Send + 'static;
    fn stop(self) -> impl Future<Output = bool>;
}

impl Process for app::App {
    fn banner(&self) -> &[String] {
        &self.banner
    }

    fn reloadable(&self) -> Arc<dyn Reload> {
        self.reloadable()
    }

    fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        self.failed()
    }

    fn stop(self) -> impl Future<Output = bool> {
        self.stop()
    }
}

impl Process for agent::Agent {
    fn banner(&self) -> &[String] {
        &self.banner
    }

    fn reloadable(&self) -> Arc<dyn Reload> {
        self.reloadable()
    }

    fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        self.failed()
    }

    fn stop(self) -> impl Future<Output = bool> {
        self.stop()
    }
}

fn start<P: Process>(
    args: &ServeArgs,
    begin: impl AsyncFnOnce(Config, Option<Telemetry>) -> Result<P, app::StartError>,
) -> ExitCode {
    let config = match Config::load(args) {
        Ok(config) => config,
        Err(e) => {
            print_problems(&e);
            return ExitCode::FAILURE;
        }
    };
    config.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    let telemetry = match telemetry::filter(&config.log_level) {
        Ok(filter) => telemetry::start(filter, &config.telemetry),
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    };
    block_on(run(config, telemetry, begin))
}

fn block_on(work: impl Future<Output = ExitCode>) -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(THREAD_STACK_BYTES).build();
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(e) => {
            eprintln!("error: cannot start the runtime: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Stack of each thread. The languages limit how deep a query nests ([`query::syntax::DEPTH_MAX`]); a debug build needs more
/// than the usual 2 MiB for that depth, and an overflow ends the process. Only what is used costs memory.
const THREAD_STACK_BYTES: usize = 8 << 20;

async fn run<P: Process>(
    config: Config,
    telemetry: Option<Telemetry>,
    begin: impl AsyncFnOnce(Config, Option<Telemetry>) -> Result<P, app::StartError>,
) -> ExitCode {
    // Before anything is started: a signal that comes early must still end it cleanly.
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = kinds.map(signal) else {
        eprintln!("error: cannot listen for signals");
        return ExitCode::FAILURE;
    };
    let app = match begin(config, telemetry).await {
        Ok(app) => app,
        Err(e) => {
            eprintln!("error: {}", chain(&e));
            return ExitCode::FAILURE;
        }
    };
    for line in app.banner() {
        println!("{line}");
    }
    let mut failed = std::pin::pin!(app.failed());
    let mut reloads = tokio::task::JoinSet::new();
    let clean = loop {
        tokio::select! {
            _ = interrupt.recv() => break true,
            _ = terminate.recv() => break true,
            Some(()) = hangup.recv() => {
                let reloadable = app.reloadable();
                // What came of it is in the log.
                reloads.spawn(async move { drop(reloadable.reload().await) });
            }
            Some(_) = reloads.join_next(), if !reloads.is_empty() => {}
            reason = &mut failed => {
                eprintln!("error: {reason}");
                break false;
            }
        }
    };
    reloads.shutdown().await;
    let stopped = tokio::select! {
        stopped = app.stop() => stopped,
        // A second Ctrl-C does not wait: the write-ahead log keeps what was acknowledged.
        _ = interrupt.recv() => return ExitCode::FAILURE,
    };
    if clean && stopped { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// An error with its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        out.push_str(": ");
        out.push_str(&cause.to_string());
        next = cause.source();
    }
    out
}
