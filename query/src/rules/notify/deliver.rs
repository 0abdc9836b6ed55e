//! A message to its channel.

use std::time::Duration;

use serde_json::{Map, json};

use super::{
    alertmanager::causes,
    message::Content,
    plan::{Channel, ChannelKind, Email},
    smtp::{self, Mail},
};
use crate::rules::template::{Library, NoHost, Template};

/// For one HTTP request.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes of an answer shown in the log.
const SHOWN_MAX: usize = 256;

/// The client that all HTTP channels share.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(TIMEOUT).build().unwrap_or_default()
}

/// Delivers once. The error is for the log and holds no secret.
pub async fn deliver(
    client: &reqwest::Client,
    channel: &Channel,
    content: &Content<'_>,
    library: &Library,
    now_ms: i64,
) -> Result<(), String> {
    let data = content.data();
    let expand = |t: &Template| t.expand_with(data.clone(), library, &NoHost);
    match &channel.kind {
        ChannelKind::Webhook { url, bearer, alerts_max } => {
            let mut request = client.post(url.read().await?).json_body(&content.webhook(*alerts_max));
            if let Some(token) = bearer {
                request = request.bearer_auth(token.read().await?);
            }
            answered(request).await
        }
        ChannelKind::Slack { url, channel, username, title, title_link, text, color } => {
            let title = expand(title)?;
            let mut body = Map::new();
            for (name, template) in [("channel", channel), ("username", username)] {
                let value = expand(template)?;
                if !value.is_empty() {
                    body.insert(name.to_owned(), value.into());
                }
            }
            let attachment = json!({
                "fallback": title,
                "title": title,
                "title_link": expand(title_link)?,
                "text": expand(text)?,
                "color": expand(color)?,
                "mrkdwn_in": ["fallback", "text"],
            });
            body.insert("attachments".to_owned(), json!([attachment]));
            answered(client.post(url.read().await?).json_body(&body.into())).await
        }
        ChannelKind::Email(email) => mail(email, &expand, now_ms).await,
    }
}

trait JsonBody {
    fn json_body(self, body: &serde_json::Value) -> Self;
}

impl JsonBody for reqwest::RequestBuilder {
    fn json_body(self, body: &serde_json::Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }
}

async fn answered(request: reqwest::RequestBuilder) -> Result<(), String> {
    // An address may hold a secret.
    let answer = request.send().await.map_err(|e| causes(&e.without_url()))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let text = answer.text().await.unwrap_or_default();
    Err(format!("status {status}: {}", text.chars().take(SHOWN_MAX).collect::<String>()))
}

async fn mail(
    email: &Email,
    expand: &(dyn Fn(&Template) -> Result<String, String> + Sync),
    now_ms: i64,
) -> Result<(), String> {
    let credentials = match &email.password {
        Some(password) if !email.username.is_empty() => Some((email.username.as_str(), password.read().await?)),
        _ => None,
    };
    let (from, to) = (expand(&email.from)?, expand(&email.to)?);
    let (subject, text) = (expand(&email.subject)?, expand(&email.text)?);
    let date = chrono::DateTime::from_timestamp_millis(now_ms).unwrap_or_default();
    let host = email.smarthost.rsplit_once(':').map_or("localhost", |(h, _)| h);
    smtp::send(&Mail {
        server: &email.smarthost,
        hello: &email.hello,
        credentials,
        require_tls: email.require_tls,
        ca_file: email.ca_file.as_deref(),
        from: &from,
        to: to.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect(),
        subject: &subject,
        text: &text,
        date: date.format("%a, %d %b %Y %H:%M:%S +0000").to_string(),
        id: format!("<{:032x}@{host}>", rand::random::<u128>()),
    })
    .await
}
