//! The real process, from outside: started, asked over HTTP, stopped, killed, started again.

mod client;
mod containers;
mod dependencies;
mod judge;
mod oracle;
mod otel_sdk;
mod power_cut;
mod server;
mod skip;
mod smoke;
mod torture;
