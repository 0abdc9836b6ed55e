//! OTLP receivers: HTTP routes and the gRPC services, for logs, metrics and traces.

pub mod grpc;
pub(crate) mod http;
mod partial;
