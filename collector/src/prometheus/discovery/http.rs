//! `http_sd_configs`: groups as JSON from a URL.

use std::{path::Path, time::Duration};

use ::http::{HeaderMap, HeaderValue, header};

use super::{Publisher, TargetGroup, body, groups_of, refresh};
use crate::prometheus::{
    client::HttpClient,
    config::{HttpConfig, HttpSd},
    job::{self, Findings},
};

const REFRESH: Duration = Duration::from_secs(60);
/// For one answer.
const TIMEOUT: Duration = Duration::from_secs(30);

pub struct HttpDiscovery {
    url: String,
    refresh: Duration,
    http: HttpConfig,
}

impl HttpDiscovery {
    pub(in crate::prometheus) fn new(config: &HttpSd, folder: &Path, at: &mut Findings<'_>) -> HttpDiscovery {
        match url::Url::parse(&config.url) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {}
            _ => at.error("url", format!("{:?} is no address of http or https", config.url)),
        }
        HttpDiscovery {
            url: config.url.clone(),
            refresh: refresh(config.refresh_interval, REFRESH, at),
            http: job::http(config.http(), folder, at),
        }
    }

    pub async fn run(&self, publisher: &Publisher) {
        let mut client = None;
        loop {
            match self.ask(&mut client).await {
                Ok(groups) => publisher.tell(groups),
                Err(e) => publisher.failed(&self.url, &e),
            }
            tokio::time::sleep(self.refresh).await;
        }
    }

    async fn ask(&self, client: &mut Option<HttpClient>) -> Result<Vec<TargetGroup>, String> {
        let client = match client {
            Some(client) => client,
            None => client.insert(HttpClient::make(self.http.clone(), Some(TIMEOUT)).await?),
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let seconds = HeaderValue::from_str(&self.refresh.as_secs_f64().to_string()).map_err(|e| e.to_string())?;
        headers.insert("x-prometheus-refresh-interval-seconds", seconds);
        let response = client.get(&self.url, headers).await?;
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let is_json = kind.split(';').next().is_some_and(|k| k.trim().eq_ignore_ascii_case("application/json"));
        if response.status() == ::http::StatusCode::OK && !is_json {
            return Err(format!("unsupported content type {kind:?}, expected application/json"));
        }
        let value = serde_json::from_slice(&body(response).await?).map_err(|e| e.to_string())?;
        groups_of(value, &self.url, "__meta_url")
    }
}
