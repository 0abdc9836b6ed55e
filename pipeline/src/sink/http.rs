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
            Ok(reply) => reply.answer(Rules::Common),
        }
    }
}
