//! `sightline rules`: check and test rule files without a server; run them over what a server has stored.

mod backtest;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use query::rules::{file, trial};

#[derive(Debug, Args)]
pub struct RulesArgs {
    #[command(subcommand)]
    command: RulesCommand,
}

#[derive(Debug, Subcommand)]
enum RulesCommand {
    /// Check rule files: every error with file, line, column and rule
    Check(CheckArgs),
    /// Run unit tests of rules in promtool's format
    Test(CheckArgs),
    /// When alerting rules would have fired on what a running server has stored
    Backtest(backtest::BacktestArgs),
    /// Write what recording rules would have given in the past into a running server
    Backfill(backtest::Over),
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Files in Prometheus' format
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub fn run(args: RulesArgs) -> ExitCode {
    match args.command {
        RulesCommand::Check(args) => check(&args.files),
        RulesCommand::Backtest(args) => crate::block_on(backtest::backtest(args)),
        RulesCommand::Backfill(over) => crate::block_on(backtest::backfill(over)),
        RulesCommand::Test(args) => crate::block_on(test(args.files)),
    }
}

fn check(files: &[PathBuf]) -> ExitCode {
    let mut good = true;
    for path in files {
        match file::read(path) {
            Ok(read) => {
                let rules: usize = read.groups.iter().map(|g| g.rules.len()).sum();
                println!("{}: ok, {rules} rules in {} groups", path.display(), read.groups.len());
                for warning in &read.warnings {
                    eprintln!("warning: {}:{warning}", path.display());
                }
            }
            Err(e) => {
                good = false;
                e.to_string().lines().for_each(|line| eprintln!("error: {line}"));
            }
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn test(files: Vec<PathBuf>) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    for path in &files {
        let name = path.display();
        let tests = match trial::read(path, &crate::config::rules::discover()) {
            Ok(tests) => tests,
            Err(errors) => {
                failed += 1;
                errors.iter().for_each(|e| e.to_string().lines().for_each(|line| eprintln!("error: {line}")));
                continue;
            }
        };
        for outcome in tests.run().await {
            if outcome.failures.is_empty() {
                passed += 1;
                println!("ok   {name}: {}", outcome.name);
                continue;
            }
            failed += 1;
            println!("FAIL {name}: {}", outcome.name);
            for line in outcome.failures.iter().flat_map(|f| f.lines()) {
                println!("  {line}");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
