//! Alerts to an Alertmanager over its API v2.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::json;
use storage::model::Labels;
use tokio_util::sync::CancellationToken;

use super::{Notice, queue::Queue, time};

/// Alerts in one request.
const BATCH_MAX: usize = 256;

/// Longest pause after a delivery that failed.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Bytes of an answer shown in the log.
const SHOWN_MAX: usize = 512;

/// How we show who we are. Files are read at every request, so that they may change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    #[default]
    None,
    Basic {
        username: String,
        password: Secret,
    },
    Bearer(Secret),
}

#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    Text(String),
    File(PathBuf),
}

/// Without the secret.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Secret::Text(_) => f.write_str("<secret>"),
            Secret::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Secret {
    pub async fn read(&self) -> Result<String, String> {
        match self {
            Secret::Text(text) => Ok(text.clone()),
            Secret::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(text) => Ok(text.trim().to_owned()),
                Err(e) => Err(format!("cannot read {}: {e}", path.display())),
            },
        }
    }
}

/// Sends what an Alertmanager is told in a way of its own: TLS, proxies, headers and credentials are its affair.
#[async_trait::async_trait]
pub trait Post: Send + Sync {
    /// Posts JSON: the answer's status and the beginning of its text, or why there is none.
    async fn post(&self, url: &str, body: Vec<u8>) -> Result<(u16, String), String>;
}

/// Changes the labels of an alert; `false`: this alert is not told.
pub type Relabel = Arc<dyn Fn(&mut Labels) -> bool + Send + Sync>;

/// One Alertmanager.
#[derive(Clone)]
pub struct Alertmanager {
    /// Below which `/api/v2` is.
    pub url: url::Url,
    pub timeout: Duration,
    pub credentials: Credentials,
    /// Instead of our own client and `credentials`.
    pub via: Option<Arc<dyn Post>>,
    /// What becomes of labels on the way here.
    pub relabel: Option<Relabel>,
}

impl std::fmt::Debug for Alertmanager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.alerts_url())
    }
}

/// Why a delivery failed.
#[derive(Debug, PartialEq)]
enum Failed {
    /// Trying again may help.
    ForNow(String),
    /// These alerts are not wanted.
    ForGood(String),
}

impl Alertmanager {
    pub fn alerts_url(&self) -> String {
        let mut url = self.url.clone();
        let _ = url.set_username("");
        let _ = url.set_password(None);
        format!("{}/api/v2/alerts", url.as_str().trim_end_matches('/'))
    }

    /// Without what a log should not hold.
    pub fn shown_url(&self) -> String {
        self.alerts_url()
    }

    /// Delivers what comes into the queue until told to stop.
    pub async fn deliver(self, queue: Queue, stop: CancellationToken) {
        let client = reqwest::Client::builder().timeout(self.timeout).build().unwrap_or_default();
        let mut pause = Duration::from_millis(500);
        loop {
            let batch = tokio::select! {
                () = stop.cancelled() => return,
                batch = queue.take(BATCH_MAX) => batch,
            };
            match self.post(&client, &batch).await {
                Ok(()) => {
                    queue.delivered(batch.len());
                    pause = Duration::from_millis(500);
                    continue;
                }
                Err(Failed::ForGood(why)) => {
                    tracing::error!(alertmanager = %self.shown_url(), alerts = batch.len(), error = %why, "alerts were refused");
                    queue.refused(batch.len());
                    continue;
                }
                Err(Failed::ForNow(why)) => {
                    tracing::warn!(alertmanager = %self.shown_url(), alerts = batch.len(), error = %why, "alerts could not be delivered; tried again");
                    queue.put_back(batch);
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }

    async fn post(&self, client: &reqwest::Client, batch: &[Notice]) -> Result<(), Failed> {
        let alerts: Vec<serde_json::Value> = batch.iter().map(wire).collect();
        let body = serde_json::to_vec(&alerts).map_err(|e| Failed::ForGood(e.to_string()))?;
        if let Some(via) = &self.via {
            let sent = tokio::time::timeout(self.timeout, via.post(&self.alerts_url(), body)).await;
            let sent = sent.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.timeout)));
            return match sent.map_err(Failed::ForNow)? {
                (200..300, _) => Ok(()),
                (status, text) => Err(refusal(status, text)),
            };
        }
        let mut request = client.post(self.alerts_url()).header("content-type", "application/json").body(body);
        request = match &self.credentials {
            Credentials::None => request,
            Credentials::Basic { username, password } => {
                request.basic_auth(username, Some(password.read().await.map_err(Failed::ForNow)?))
            }
            Credentials::Bearer(token) => request.bearer_auth(token.read().await.map_err(Failed::ForNow)?),
        };
        let answer = request.send().await.map_err(|e| Failed::ForNow(causes(&e)))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        Err(refusal(status.as_u16(), answer.text().await.unwrap_or_default()))
    }
}

fn refusal(status: u16, mut text: String) -> Failed {
    text.truncate(text.char_indices().map(|(i, _)| i).take_while(|i| *i <= SHOWN_MAX).last().unwrap_or(0));
    let why = format!("status {status}: {text}");
    // A bad alert among good ones: the same request would be refused again.
    if status == 400 { Failed::ForGood(why) } else { Failed::ForNow(why) }
}

fn wire(notice: &Notice) -> serde_json::Value {
    json!({
        "labels": notice.labels,
        "annotations": notice.annotations,
        "startsAt": time(notice.starts_at),
        "endsAt": time(notice.ends_at),
        "generatorURL": notice.generator_url,
    })
}

/// An error of the client with its causes in one line.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        out.push_str(": ");
        out.push_str(&cause.to_string());
        next = cause.source();
    }
    out
}
