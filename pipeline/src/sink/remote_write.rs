//! Prometheus remote write 1.0. Metrics only.

use super::remote::{
    Answer, BodyCompression, Encoded, Outgoing, Protocol, Rows, config::remote_config, http_client::HttpClient,
    retry::Rules,
};
use crate::{
    Data,
    codec::{columns::EncodeError, remote_write},
    component::Signals,
};

remote_config! {
    /// `type: remote_write`.
    Config {}
}

/// Told with every request (remote write 1.0).
const VERSION: (&str, &str) = ("x-prometheus-remote-write-version", "0.1.0");

impl Config {
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut out = self.remote().problems(&["http", "https"]);
        if self.compression.is_some() {
            out.push(("compression", "remote write is always snappy; leave it out".into()));
        }
        out
    }

    pub fn protocol(&self, name: &str) -> Result<RemoteWrite, String> {
        let mut remote = self.remote();
        remote.headers.entry(VERSION.0.to_owned()).or_insert_with(|| VERSION.1.to_owned());
        HttpClient::new(&remote, name).map(|client| RemoteWrite { client, url: self.url.clone() })
    }
}

pub struct RemoteWrite {
    client: HttpClient,
    url: String,
}

#[async_trait::async_trait]
impl Protocol for RemoteWrite {
    fn signals(&self) -> Signals {
        Signals::METRICS
    }

    fn encode(&self, rows: &Rows<'_>) -> Result<Encoded, EncodeError> {
        match rows.data {
            Data::Metrics(m) => Ok(Encoded { body: remote_write::encode_v1(m), ..Encoded::default() }),
            other => Ok(Encoded { unsupported: other.rows() as u64, ..Encoded::default() }),
        }
    }

    fn compression(&self) -> BodyCompression {
        BodyCompression::SnappyBlock
    }

    async fn send(&self, request: &Outgoing) -> Answer {
        match self.client.post(&self.url, "application/x-protobuf", Some("snappy"), request).await {
            Err(answer) => answer,
            Ok(reply) => reply.answer(Rules::Common),
        }
    }
}
