//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::{
    ask::QueryArgs,
    config::units::{Bytes, Fsync},
    generate::GenerateArgs,
    rules::RulesArgs,
    transfer::{ExportArgs, ImportArgs},
};

#[derive(Debug, Parser)]
#[command(name = "sightline", version, about = "Metrics, logs and traces in one binary: collect, store, query")]
#[command(after_help = "Without a subcommand: collect from this machine, store, and serve queries.\n\
    Every flag is also a key of the YAML file (with _ for -) and an environment variable SIGHTLINE_*;\n\
    a flag beats the environment, the environment beats the file.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Collect, store and serve (the default)
    Serve(ServeArgs),
    /// Collect here and ship to a Sightline or any OTLP receiver; no store, no queries
    Agent(AgentArgs),
    /// Check a configuration file: every error at once, with line and column
    Check(CheckArgs),
    /// Run the section `tests` of a configuration file: rows in, rows out, without starting anything
    Test(CheckArgs),
    /// Copy everything stored to a folder, also while a server is running
    Backup(BackupArgs),
    /// Make a data directory of a backup
    Restore(RestoreArgs),
    /// Send generated logs, metrics or traces at a rate, and tell what became of them
    Generate(GenerateArgs),
    /// Write a time window of logs, metrics or traces of a running server to a file
    Export(ExportArgs),
    /// Read exported files into a running server; may be repeated, each piece is stored once
    Import(ImportArgs),
    /// Ask a running server in SQL, PromQL or LogQL, and print the answer
    Query(QueryArgs),
    /// Check rule files
    Rules(RulesArgs),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Clone, Debug, Default, Args)]
pub struct ServeArgs {
    /// YAML configuration file
    #[arg(long, env = "SIGHTLINE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Scrape what a Prometheus configuration file names, evaluate its rule files, tell its Alertmanagers
    #[arg(long, env = "SIGHTLINE_PROMETHEUS_CONFIG", value_name = "FILE")]
    pub prometheus_config: Option<PathBuf>,
    /// Where everything is stored [default: ./sightline-data]
    #[arg(long, env = "SIGHTLINE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Keep parts in a bucket, for example s3://bucket/prefix, with credentials from the AWS_* variables [default: the data directory]
    #[arg(long, env = "SIGHTLINE_STORE", value_name = "URL")]
    pub store: Option<String>,
    /// Disk for what is read from the bucket [default: 4GiB]
    #[arg(long, env = "SIGHTLINE_CACHE_SIZE", value_name = "SIZE")]
    pub cache_size: Option<Bytes>,
    /// Address of the HTTP API [default: 127.0.0.1:7600]
    #[arg(long, env = "SIGHTLINE_HTTP", value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// Address of OTLP over gRPC [default: 127.0.0.1:4317]
    #[arg(long, env = "SIGHTLINE_OTLP_GRPC", value_name = "ADDR")]
    pub otlp_grpc: Option<SocketAddr>,
    /// Address of OTLP over HTTP [default: 127.0.0.1:4318]
    #[arg(long, env = "SIGHTLINE_OTLP_HTTP", value_name = "ADDR")]
    pub otlp_http: Option<SocketAddr>,
    /// Take pushes only: no logs and metrics of this machine
    #[arg(long, env = "SIGHTLINE_NO_COLLECT", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub no_collect: Option<bool>,
    /// When a write is acknowledged: group, interval=200ms or none [default: group]
    #[arg(long, env = "SIGHTLINE_FSYNC", value_name = "MODE")]
    pub fsync: Option<Fsync>,
    /// Memory for data in flight, for example 768MiB [default: three eighths of the memory, at most 768MiB]
    #[arg(long, env = "SIGHTLINE_MEMORY_LIMIT", value_name = "SIZE")]
    pub memory_limit: Option<Bytes>,
    /// Our own logs, metrics and traces, into our own store under the tenant `sightline` [default: true]
    #[arg(long, env = "SIGHTLINE_TELEMETRY", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub telemetry: Option<bool>,
    /// What is switched off by default, several with a comma: promql-experimental-functions, promql-extended-range-selectors, promql-binop-fill-modifiers, type-and-unit-labels, start-timestamps
    #[arg(long, env = "SIGHTLINE_ENABLE_FEATURE", value_name = "NAME", value_delimiter = ',')]
    pub enable_feature: Vec<String>,
    /// error, warn, info, debug or trace, also per module: info,storage=debug [default: warn]
    #[arg(long, env = "SIGHTLINE_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Something takes what no sink of the file takes.
    #[arg(skip)]
    pub ships_rest: bool,
}

#[derive(Debug, Default, Args)]
pub struct AgentArgs {
    /// Where everything is shipped that no sink of the file takes: http, https (OTLP/HTTP), grpc or grpcs (OTLP/gRPC)
    #[arg(long, env = "SIGHTLINE_TO", value_name = "URL")]
    pub to: Option<String>,
    /// Sent as `Authorization: Bearer`
    #[arg(long, env = "SIGHTLINE_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Tenant to name to the receiver (X-Scope-OrgID)
    #[arg(long, env = "SIGHTLINE_TENANT", value_name = "NAME")]
    pub tenant: Option<String>,
    /// PEM file of authorities to trust beside the system's
    #[arg(long, env = "SIGHTLINE_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Bytes of rows that may wait on disk for delivery [default: 1GiB]
    #[arg(long, env = "SIGHTLINE_QUEUE", value_name = "SIZE")]
    pub queue: Option<Bytes>,
    #[command(flatten)]
    pub serve: ServeArgs,
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Data directory to copy
    #[arg(long, env = "SIGHTLINE_DATA_DIR", value_name = "DIR", default_value = "./sightline-data")]
    pub data_dir: PathBuf,
    /// Folder for the copy; empty or not there
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Address of the server that uses the data directory, if one does
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7600")]
    pub url: String,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Folder with the backup
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// Data directory to make; empty or not there
    #[arg(long, env = "SIGHTLINE_DATA_DIR", value_name = "DIR", default_value = "./sightline-data")]
    pub data_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// File to check [default: that of --config or SIGHTLINE_CONFIG]
    pub file: Option<PathBuf>,
    #[arg(long, env = "SIGHTLINE_CONFIG", value_name = "FILE", hide = true)]
    pub config: Option<PathBuf>,
}
