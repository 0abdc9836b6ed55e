//! The read APIs over HTTP: each API's parameters, success and error shapes. Evaluation is elsewhere.

pub mod alertmanager;
mod compressed;
pub mod cross_origin;
pub mod encode;
pub mod envelope;
pub mod export;
pub mod loki;
pub mod params;
pub mod prometheus;
mod prometheus_admin;
mod receipt;
pub mod router;
pub mod rules;
mod same_site;
pub mod sql;
mod sql_encode;
pub mod tempo;
