//! NDJSON over HTTP: the lines of `stdout`, one POST a batch.

use super::{
    file::ndjson,
    remote::{
        Answer, BodyCompression, Encoded, Outgoing, Protocol, Rows,
        config::{Compression, remote_config},
        http_client::HttpClient,
        retry::Rules,
    },
};
use crate::{codec::columns::EncodeError, component::Signals};

remote_config! {
    /// `type: http`.
    Config {}
}

impl Config {
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        self.remote().problems(&["http", "https"])
    }

    pub fn protocol(&self, name: &str) -> Result<Ndjson, String> {
        let remote = self.remote();
        let compression = remote.compression;
        HttpClient::new(&remote, name).map(|client| Ndjson { client, url: self.url.clone(), compression })
    }
}

/// Lines that a Sightline says it refused of a request it took; other servers say nothing.
fn refused(body: &[u8]) -> u64 {
    let read = serde_json::from_slice::<serde_json::Value>(body).ok();
    read.and_then(|v| v.get("rejected")?.as_u64()).unwrap_or(0)
}

pub struct Ndjson {
    client: HttpClient,
    url: String,
    compression: Compression,
}

#[async_trait::async_trait]
impl Protocol for Ndjson {
    fn signals(&self) -> Signals {
        Signals::ALL
    }

    fn encode(&self, rows: &Rows<'_>) -> Result<Encoded, EncodeError> {
        ndjson(rows)
    }

    fn compression(&self) -> BodyCompression {
        BodyCompression::Chosen(self.compression)
    }

    async fn send(&self, request: &Outgoing) -> Answer {
        match self.client.post(&self.url, "application/x-ndjson", None, request).await {
            Err(answer) => answer,
            Ok(reply) => reply.refusal(Rules::Common).unwrap_or_else(|| {
                let rejected = refused(&reply.body);
                Answer::Taken {
                    rejected,
                    message: (rejected > 0).then(|| "the remote counts them as rejected".into()),
                }
            }),
        }
    }
}
