//! The real process, from outside: started, asked over HTTP, stopped, killed, started again.

mod client;
mod containers;
mod dependencies;
mod otel_sdk;
mod server;
mod skip;
mod smoke;
