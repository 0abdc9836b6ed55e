//! Loki push: protobuf in a snappy block. Logs only.

use http::StatusCode;

use super::remote::{
    Answer, BodyCompression, Encoded, Outgoing, Protocol, Rows, config::remote_config, http_client::HttpClient,
    retry::Rules,
};
use crate::{
    Data,
    codec::{columns::EncodeError, loki},
    component::Signals,
};

remote_config! {
    /// `type: loki`.
    Config {}
}

impl Config {
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut out = self.remote().problems(&["http", "https"]);
        if self.compression.is_some() {
            out.push(("compression", "Loki takes snappy only; leave it out".into()));
        }
        out
    }

    pub fn protocol(&self, name: &str) -> Result<Loki, String> {
        let base = self.url.trim_end_matches('/');
        // The address of the server, or of its push route.
        let url = if base.ends_with("/push") { base.to_owned() } else { format!("{base}/loki/api/v1/push") };
        HttpClient::new(&self.remote(), name).map(|client| Loki { client, url })
    }
}

pub struct Loki {
    client: HttpClient,
    url: String,
}

#[async_trait::async_trait]
impl Protocol for Loki {
    fn signals(&self) -> Signals {
        Signals::LOGS
    }

    fn encode(&self, rows: &Rows<'_>) -> Result<Encoded, EncodeError> {
        match rows.data {
            Data::Logs(b) => loki::encode(b).map(|body| Encoded { body, ..Encoded::default() }),
            _ => Ok(Encoded { unsupported: rows.data.rows() as u64, ..Encoded::default() }),
        }
    }

    fn compression(&self) -> BodyCompression {
        BodyCompression::SnappyBlock
    }

    async fn send(&self, request: &Outgoing) -> Answer {
        match self.client.post(&self.url, "application/x-protobuf", Some("snappy"), request).await {
            Err(answer) => answer,
            Ok(reply) => match reply.answer(Rules::Common) {
                // Loki answers so when it stored the good entries of a request and refused others.
                Answer::Refused(reason) if reply.status == StatusCode::BAD_REQUEST => Answer::PartlyRefused(reason),
                other => other,
            },
        }
    }
}
