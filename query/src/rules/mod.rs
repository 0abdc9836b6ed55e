//! Rules and alerts: rule files in Prometheus' format, evaluated on a clock, their results written back, alerts kept and
//! sent.
pub mod alerting;
pub mod backtest;
pub mod file;
pub mod group;
pub mod notify;
mod recording;
pub mod ruler;
mod state;
pub mod template;
#[cfg(test)]
mod tests;
pub mod trial;
pub(crate) mod write;
pub mod yaml;
