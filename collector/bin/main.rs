//! `sightline`: metrics, logs and traces in one binary.
//!
//! Parses the command line, runs, and turns what happened into an exit code: 0 stopped cleanly or checked without fault,
//! 1 anything else, 2 a wrong command line. The parts are put together in [`app`].

mod app;
mod cli;
mod config;
mod own_routes;
mod telemetry;

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser as _};
use cli::{Cli, Command, ServeArgs};
use config::{Config, ConfigError};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Completions { shell }) => {
            clap_complete::generate(shell, &mut Cli::command(), "sightline", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Some(Command::Check(args)) => check(args.file.or(args.config).or(cli.serve.config)),
        Some(Command::Serve(args)) => serve(&args),
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
        Ok(()) => {
            println!("{name}: ok");
            ExitCode::SUCCESS
        }
        Err(e) => {
            print_problems(&e);
            ExitCode::FAILURE
        }
    }
}

fn print_problems(error: &ConfigError) {
    for line in &error.0 {
        eprintln!("error: {line}");
    }
}

fn serve(args: &ServeArgs) -> ExitCode {
    let config = match Config::load(args) {
        Ok(config) => config,
        Err(e) => {
            print_problems(&e);
            return ExitCode::FAILURE;
        }
    };
    match telemetry::filter(&config.log_level) {
        Ok(filter) => telemetry::start(filter),
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start the runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(run(config))
}

async fn run(config: Config) -> ExitCode {
    // Before anything is started: a signal that comes early must still end it cleanly.
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        eprintln!("error: cannot listen for signals");
        return ExitCode::FAILURE;
    };
    let app = match app::start(config).await {
        Ok(app) => app,
        Err(e) => {
            eprintln!("error: {}", chain(&e));
            return ExitCode::FAILURE;
        }
    };
    for line in &app.banner {
        println!("{line}");
    }
    let failed = app.failed();
    let clean = tokio::select! {
        _ = interrupt.recv() => true,
        _ = terminate.recv() => true,
        reason = failed => {
            eprintln!("error: {reason}");
            false
        }
    };
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
