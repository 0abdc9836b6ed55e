//! Tokens by OAuth 2.0's client credentials grant (RFC 6749, section 4.4).
//!
//! A token is asked for when it is first needed and kept until shortly before it expires, or until the secret in its file is
//! another. Servers take the client's name and secret in a header or in the form; the header is tried first, and what worked is
//! remembered.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;
use serde_json::Value;
use tokio::{sync::Mutex, time::Instant};
use url::form_urlencoded::{Serializer, byte_serialize};

use super::{
    client::{HttpClient, Secret, chain},
    config::{HttpConfig, OAuth2},
};

/// How long before its end a token is no longer used.
const EARLY: Duration = Duration::from_secs(10);
/// Of one request for a token.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Header,
    Form,
}

/// A token as it is sent.
struct Token {
    header: String,
    /// `None`: never.
    ends: Option<Instant>,
    secret: String,
}

#[derive(Default)]
struct Known {
    token: Option<Token>,
    way: Option<Way>,
}

/// Where tokens of one client come from.
pub struct Tokens {
    client: HttpClient,
    config: OAuth2,
    secret: Secret,
    known: Mutex<Known>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    token_type: String,
    /// Seconds; some send a text.
    expires_in: Option<Value>,
}

impl Tokens {
    /// Reads certificates: blocks.
    pub fn new(config: &OAuth2) -> Result<Tokens, String> {
        let http = HttpConfig {
            tls_config: config.tls_config.clone(),
            proxy_url: config.proxy_url.clone(),
            no_proxy: config.no_proxy.clone(),
            proxy_from_environment: config.proxy_from_environment,
            ..HttpConfig::default()
        };
        let client = HttpClient::new(&http, Some(TIMEOUT)).map_err(|e| format!("oauth2: {e}"))?;
        let secret = Secret::of(config.client_secret.as_ref(), config.client_secret_file.as_ref());
        let secret = secret.unwrap_or(Secret::Text(String::new()));
        Ok(Tokens { client, config: config.clone(), secret, known: Mutex::default() })
    }

    /// The value of the header `Authorization`.
    pub async fn get(&self) -> Result<String, String> {
        let secret = self.secret.read().await?;
        // Whoever needs one meanwhile waits for the same one.
        let mut known = self.known.lock().await;
        if let Some(token) = &known.token
            && token.secret == secret
            && token.ends.is_none_or(|ends| Instant::now() < ends)
        {
            return Ok(token.header.clone());
        }
        known.token = None;
        let ways: &[Way] = match known.way {
            Some(Way::Header) => &[Way::Header],
            Some(Way::Form) => &[Way::Form],
            None => &[Way::Header, Way::Form],
        };
        let mut error = String::new();
        for way in ways {
            match self.ask(*way, &secret).await {
                Ok(token) => {
                    known.way = Some(*way);
                    let header = token.header.clone();
                    known.token = Some(token);
                    return Ok(header);
                }
                Err(e) => error = e,
            }
        }
        // The server may have changed its mind: both ways the next time.
        known.way = None;
        Err(format!("no token from {}: {error}", self.config.token_url))
    }

    /// Headers and body of a request.
    fn request(&self, way: Way, secret: &str) -> Result<(HeaderMap, String), String> {
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if !self.config.scopes.is_empty() {
            let scopes: Vec<&str> = self.config.scopes.iter().map(|s| s.0.as_str()).collect();
            form.append_pair("scope", &scopes.join(" "));
        }
        for (name, value) in &self.config.endpoint_params {
            form.append_pair(name, &value.0);
        }
        let mut headers = HeaderMap::new();
        let id = self.config.client_id.0.as_str();
        match way {
            Way::Header => {
                let escaped = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
                let value = super::client::basic(&format!("{}:{}", escaped(id), escaped(secret)));
                headers.insert(header::AUTHORIZATION, value?);
            }
            Way::Form => {
                form.append_pair("client_id", id);
                if !secret.is_empty() {
                    form.append_pair("client_secret", secret);
                }
            }
        }
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(header::CONTENT_TYPE, kind);
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        Ok((headers, form.finish()))
    }

    async fn ask(&self, way: Way, secret: &str) -> Result<Token, String> {
        let (headers, form) = self.request(way, secret)?;
        let asked = Instant::now();
        let mut response = self.client.post(&self.config.token_url, headers, form).await?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| chain(&e))? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(format!("the answer is longer than {ANSWER_BYTES_MAX} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        if !status.is_success() {
            return Err(format!("it answered {status}"));
        }
        // Not shown in an error: it may hold the token.
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|_| "the answer is not a token in JSON".to_owned())?;
        if answer.access_token.is_empty() {
            return Err("the answer has no access_token".to_owned());
        }
        let kind = match answer.token_type.to_ascii_lowercase().as_str() {
            "" | "bearer" => "Bearer".to_owned(),
            "basic" => "Basic".to_owned(),
            "mac" => "MAC".to_owned(),
            _ => answer.token_type,
        };
        let seconds = match answer.expires_in {
            Some(Value::Number(n)) => n.as_f64(),
            Some(Value::String(text)) => text.parse().ok(),
            _ => None,
        };
        let life = seconds.filter(|s| *s > 0.0).and_then(|s| Duration::try_from_secs_f64(s).ok());
        let ends = life.and_then(|life| asked.checked_add(life.saturating_sub(EARLY)));
        Ok(Token { header: format!("{kind} {}", answer.access_token), ends, secret: secret.to_owned() })
    }
}
