//! OTLP: protobuf (and JSON, turned into protobuf first) to batches of the three signals.
//!
//! Logs and traces are read by a walker over the body's bytes ([`wire`]), with nothing copied but what is stored; what
//! holds for a whole resource or scope is worked out once for it. A body that is not protobuf is [`super::Malformed`];
//! a record that breaks a rule is refused alone, with its reason.

pub mod json;
mod logs;
mod value;
pub mod wire;

pub use logs::decode_logs;
