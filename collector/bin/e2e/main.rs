//! The real process, from outside: started, asked over HTTP, stopped, killed, started again.

mod client;
mod dependencies;
mod server;
mod smoke;
