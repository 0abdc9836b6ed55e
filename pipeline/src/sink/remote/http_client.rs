//! HTTP as the sinks speak it: one client for one address, answers turned into verdicts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use storage::model::TenantId;

use super::{
    Answer, Outgoing,
    config::{Compression, RemoteConfig},
    retry::{Rules, Verdict, http_verdict, parse_retry_after},
};

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Characters of a refusal that are kept.
const REASON_CHARS_MAX: usize = 300;

pub const TENANT_HEADER: &str = "x-scope-orgid";
/// Names a request that is sent again after a lost answer: a Sightline stores it once.
pub const BATCH_ID_HEADER: &str = "x-batch-id";

/// A client and what it sends with every request.
pub struct HttpClient {
    client: reqwest::Client,
    headers: HeaderMap,
    tenant: Option<String>,
    compression: Compression,
}

/// An answer that was read.
pub struct Reply {
    pub status: StatusCode,
    pub retry_after: Option<Duration>,
    pub body: Vec<u8>,
}

impl HttpClient {
    pub fn new(config: &RemoteConfig, name: &str) -> Result<Self, String> {
        let mut builder = reqwest::Client::builder()
            .timeout(config.timeout)
            .connect_timeout(config.timeout.min(Duration::from_secs(10)))
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("sightline/", env!("CARGO_PKG_VERSION")));
        for certificate in authorities(config)? {
            builder = builder.add_root_certificate(certificate);
        }
        if config.tls.insecure_skip_verify {
            warn_insecure(name, &config.url);
            builder = builder.danger_accept_invalid_certs(true);
        }
        let client = builder.build().map_err(|e| format!("cannot make a client for {}: {e}", config.url))?;
        Ok(HttpClient {
            client,
            headers: headers(config)?,
            tenant: config.tenant.clone(),
            compression: config.compression,
        })
    }

    /// Sends a body. `Err` is an answer already: the request did not get through.
    pub async fn post(
        &self,
        url: &str,
        content_type: &'static str,
        encoding: Option<&'static str>,
        request: &Outgoing,
    ) -> Result<Reply, Answer> {
        let mut headers = self.headers.clone();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(encoding) = encoding.or_else(|| encoding_name(self.compression)) {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        if let Some(tenant) = tenant(self.tenant.as_deref(), &request.tenant) {
            headers.insert(TENANT_HEADER, tenant);
        }
        if let Ok(id) = HeaderValue::from_str(&hex::encode(request.id)) {
            headers.insert(BATCH_ID_HEADER, id);
        }
        let sent = self.client.post(url).headers(headers).body(request.body.clone()).send().await;
        let mut response = sent.map_err(|e| lost(&e))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|v| parse_retry_after(v.to_str().ok()?, now));
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| lost(&e))? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                break;
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Reply { status, retry_after, body })
    }
}

/// No answer: whether the rows arrived is not known, so the same request is sent again.
fn lost(e: &reqwest::Error) -> Answer {
    let mut reason = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(c) = cause {
        reason.push_str(": ");
        reason.push_str(&c.to_string());
        cause = c.source();
    }
    Answer::Again { after: None, reason }
}

impl Reply {
    /// What the status says; `None` for success, whose body may say more.
    pub fn refusal(&self, rules: Rules) -> Option<Answer> {
        let reason = || {
            let text: String = String::from_utf8_lossy(&self.body).chars().take(REASON_CHARS_MAX).collect();
            format!("{}: {}", self.status, text.trim())
        };
        Some(match http_verdict(self.status.as_u16(), rules) {
            Verdict::Done => return None,
            Verdict::Again => Answer::Again { after: self.retry_after, reason: reason() },
            Verdict::Denied => Answer::Denied(reason()),
            Verdict::TooLarge => Answer::TooLarge(reason()),
            Verdict::Refused => Answer::Refused(reason()),
        })
    }

    /// For protocols whose success has nothing more to say.
    pub fn answer(&self, rules: Rules) -> Answer {
        self.refusal(rules).unwrap_or(Answer::Taken { rejected: 0, message: None })
    }
}

fn encoding_name(compression: Compression) -> Option<&'static str> {
    match compression {
        Compression::None => None,
        Compression::Gzip => Some("gzip"),
        Compression::Zstd => Some("zstd"),
        Compression::Snappy => Some("snappy"),
    }
}

/// Said once at start, loudly.
pub fn warn_insecure(name: &str, url: &str) {
    tracing::warn!(
        sink = %name, %url,
        "tls.insecure_skip_verify is on: any certificate is taken, whoever is in between can read and change everything"
    );
}

/// The tenant to send: the configured one, else that of the rows unless it is the default.
pub fn tenant(configured: Option<&str>, rows: &TenantId) -> Option<HeaderValue> {
    let name = configured.or_else(|| (*rows != TenantId::default()).then(|| rows.as_str()))?;
    HeaderValue::from_str(name).ok()
}

/// The configured headers and credentials.
pub fn headers(config: &RemoteConfig) -> Result<HeaderMap, String> {
    use base64::Engine as _;
    let mut out = HeaderMap::new();
    for (name, value) in &config.headers {
        let wrong = |e: &dyn std::fmt::Display| format!("header {name}: {e}");
        let value = HeaderValue::from_str(value).map_err(|e| wrong(&e))?;
        out.insert(HeaderName::from_bytes(name.as_bytes()).map_err(|e| wrong(&e))?, value);
    }
    let credentials = match (&config.auth.bearer, &config.auth.user) {
        (Some(token), _) => Some(format!("Bearer {token}")),
        (None, Some(user)) => {
            let text = format!("{user}:{}", config.auth.password.as_deref().unwrap_or_default());
            Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text)))
        }
        (None, None) => None,
    };
    if let Some(text) = credentials {
        let mut value = HeaderValue::from_str(&text).map_err(|e| format!("auth: {e}"))?;
        value.set_sensitive(true);
        out.insert(header::AUTHORIZATION, value);
    }
    Ok(out)
}

fn authorities(config: &RemoteConfig) -> Result<Vec<reqwest::Certificate>, String> {
    let Some(path) = &config.tls.ca_file else { return Ok(Vec::new()) };
    let wrong = |e: &dyn std::fmt::Display| format!("tls.ca_file {}: {e}", path.display());
    let pem = std::fs::read(path).map_err(|e| wrong(&e))?;
    reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| wrong(&e))
}
