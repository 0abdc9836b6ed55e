//! Every push protocol, through its router, into a real store and back by a scan.

mod elastic;
mod fixture;
mod grpc;
mod loki;
mod ndjson;
mod otlp;
mod remote_write;
