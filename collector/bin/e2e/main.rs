//! The real process, from outside: started, asked over HTTP, stopped, killed, started again.

mod agent;
mod aggregates;
mod ask;
mod backup;
mod bad_disk;
mod bad_input;
mod bucket;
mod cardinality;
mod client;
mod containers;
mod dependencies;
mod generate;
mod grpc;
mod judge;
mod loki_clients;
mod open_files;
mod oracle;
mod otel_sdk;
mod own_telemetry;
mod power_cut;
mod prometheus;
mod prometheus_reads;
mod promql_differential;
mod promql_speed;
mod rules;
mod scrape;
mod server;
mod skip;
mod smoke;
mod torture;
mod transfer;
mod value_matrix;

#[allow(dead_code, reason = "shared with the store's own tests, which also kill it")]
#[path = "../../../storage/tests/s3/weed.rs"]
mod weed;
