//! Every push protocol, through its router, into a real store and back by a scan.

mod fixture;
mod ndjson;
mod otlp;
