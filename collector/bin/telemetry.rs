//! Our own log, on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Checks a `--log-level`.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(level).map_err(|e| {
        format!("invalid log level {level:?}: {e}; expected error, warn, info, debug or trace, also per module: info,storage=debug")
    })
}

/// Starts logging. Called once.
pub fn start(filter: EnvFilter) {
    let color = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(color).init();
}
