//! The one list of sinks.

use std::{path::Path, sync::Arc};

use serde::Deserialize;

use crate::{
    component::{Signals, Sink},
    error::ConfigError,
    sink::{
        elasticsearch, file, http, loki, otlp,
        remote::{Protocol, RemoteSink, config::DeliveryConfig},
        remote_write, stdout,
        store::{self, Destination},
    },
};

/// Every sink we have. Adding one: a variant here, a module, its tests, a line in the configuration page.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SinkConfig {
    Store(store::Config),
    Stdout(stdout::Config),
    File(Box<file::Config>),
    Otlp(Box<otlp::Config>),
    Loki(Box<loki::Config>),
    RemoteWrite(Box<remote_write::Config>),
    Elasticsearch(Box<elasticsearch::Config>),
    Http(Box<http::Config>),
}

impl SinkConfig {
    /// The local store, fed by all outputs that nobody else takes.
    pub fn store() -> Self {
        SinkConfig::Store(store::Config::default())
    }

    /// `None`: all outputs that nobody else takes.
    pub fn inputs(&self) -> Option<&[String]> {
        match self {
            SinkConfig::Store(c) => c.inputs.as_deref(),
            SinkConfig::Stdout(c) => Some(&c.inputs),
            SinkConfig::File(c) => Some(&c.inputs),
            SinkConfig::Otlp(c) => Some(&c.inputs),
            SinkConfig::Loki(c) => Some(&c.inputs),
            SinkConfig::RemoteWrite(c) => Some(&c.inputs),
            SinkConfig::Elasticsearch(c) => Some(&c.inputs),
            SinkConfig::Http(c) => Some(&c.inputs),
        }
    }

    /// What it has a form for.
    pub fn signals(&self) -> Signals {
        match self {
            SinkConfig::Loki(_) | SinkConfig::Elasticsearch(_) => Signals::LOGS,
            SinkConfig::RemoteWrite(_) => Signals::METRICS,
            _ => Signals::ALL,
        }
    }

    pub fn is_store(&self) -> bool {
        matches!(self, SinkConfig::Store(_))
    }

    /// Whether it writes the positions of sources behind the rows it delivered.
    pub fn keeps_positions(&self) -> bool {
        !matches!(self, SinkConfig::Stdout(_))
    }

    /// Whether others may take `NAME.dead_letter`: what its remote refuses for good.
    pub(crate) fn gives_dead_letters(&self) -> bool {
        !matches!(self, SinkConfig::Store(_) | SinkConfig::Stdout(_))
    }

    /// The file that dead letters go to.
    pub(crate) fn dead_letter_file(&self) -> Option<&Path> {
        match self {
            SinkConfig::Store(_) | SinkConfig::Stdout(_) | SinkConfig::File(_) => None,
            SinkConfig::Otlp(c) => c.dead_letter.as_deref(),
            SinkConfig::Loki(c) => c.dead_letter.as_deref(),
            SinkConfig::RemoteWrite(c) => c.dead_letter.as_deref(),
            SinkConfig::Elasticsearch(c) => c.dead_letter.as_deref(),
            SinkConfig::Http(c) => c.dead_letter.as_deref(),
        }
    }

    /// Everything wrong with it, each at its key.
    pub(crate) fn problems(&self, name: &str) -> Vec<ConfigError> {
        let found = match self {
            SinkConfig::Store(_) | SinkConfig::Stdout(_) => Vec::new(),
            SinkConfig::File(c) => c.problems(),
            SinkConfig::Otlp(c) => c.problems(),
            SinkConfig::Loki(c) => c.problems(),
            SinkConfig::RemoteWrite(c) => c.problems(),
            SinkConfig::Elasticsearch(c) => c.problems(),
            SinkConfig::Http(c) => c.problems(),
        };
        found.into_iter().map(|(key, message)| ConfigError::new(format!("sinks.{name}.{key}"), message)).collect()
    }

    /// Must be called inside a Tokio runtime. `destination`: the local store, and where positions are kept.
    pub(crate) fn build(self, name: &str, destination: Arc<dyn Destination>) -> Result<Box<dyn Sink>, ConfigError> {
        let wrong = |reason: String| ConfigError::new(format!("sinks.{name}"), reason);
        let ships = |protocol: Arc<dyn Protocol>, delivery: DeliveryConfig| -> Box<dyn Sink> {
            Box::new(RemoteSink::new(protocol, delivery, destination.clone()))
        };
        Ok(match self {
            SinkConfig::Store(_) => Box::new(store::StoreSink::new(destination)),
            SinkConfig::Stdout(_) => Box::new(stdout::StdoutSink::new(std::io::stdout())),
            SinkConfig::File(c) => ships(Arc::new(c.protocol()), c.delivery()),
            SinkConfig::Otlp(c) => ships(Arc::new(c.protocol(name).map_err(wrong)?), c.remote().delivery),
            SinkConfig::RemoteWrite(c) => ships(Arc::new(c.protocol(name).map_err(wrong)?), c.remote().delivery),
            SinkConfig::Loki(c) => ships(Arc::new(c.protocol(name).map_err(wrong)?), c.remote().delivery),
            SinkConfig::Elasticsearch(c) => ships(Arc::new(c.protocol(name).map_err(wrong)?), c.remote().delivery),
            SinkConfig::Http(c) => ships(Arc::new(c.protocol(name).map_err(wrong)?), c.remote().delivery),
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{PipelineBuilder, PipelineConfig, Signals};

    #[test]
    fn what_is_wrong_with_a_sink_is_told_at_its_key() {
        let text = r#"{"sinks": {
            "a": {"type": "otlp", "inputs": ["push"], "url": "ftp://x"},
            "b": {"type": "otlp", "inputs": ["push"], "url": "grpcs://x:1", "tls": {"insecure_skip_verify": true}},
            "c": {"type": "loki", "inputs": ["push"], "url": "http://x", "compression": "gzip"},
            "d": {"type": "elasticsearch", "inputs": ["push"], "url": "http://x", "index": "Logs"},
            "e": {"type": "http", "inputs": ["push"], "url": "http://x", "auth": {"password": "p"}},
            "f": {"type": "file", "inputs": ["push"], "path": "x.ndjson", "batch": {"rows": 0}}
        }}"#;
        let config: PipelineConfig = serde_json::from_str(text).unwrap();
        let errors = PipelineBuilder::new(config).input("push", Signals::ALL).check().unwrap_err();
        let told: Vec<&str> = errors.0.iter().map(|e| e.path.as_str()).collect();
        let want = ["a.url", "b.tls.insecure_skip_verify", "c.compression", "d.index", "e.auth", "f.batch.rows"];
        assert_eq!(told, want.map(|w| format!("sinks.{w}")), "{errors}");
        let unknown = r#"{"sinks": {"a": {"type": "loki", "inputs": [], "url": "http://x", "indx": 1}}}"#;
        assert!(serde_json::from_str::<PipelineConfig>(unknown).unwrap_err().to_string().contains("indx"));
    }

    #[test]
    fn a_sink_that_has_no_form_for_what_comes_is_an_error_of_the_graph() {
        let text = r#"{"sinks": {"a": {"type": "remote_write", "inputs": ["lines"], "url": "http://x"}}}"#;
        let config: PipelineConfig = serde_json::from_str(text).unwrap();
        let errors = PipelineBuilder::new(config).input("lines", Signals::LOGS).check().unwrap_err();
        assert!(errors.to_string().contains("`lines` gives logs, but `a` works on metrics"), "{errors}");
    }
}
