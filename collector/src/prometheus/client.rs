//! HTTP as Prometheus' client configuration describes it: credentials, TLS, proxies, redirects.
//!
//! Files with secrets are read for every request, so that a changed one counts at once; certificates when the client is
//! made.

use std::{error::Error, path::PathBuf, time::Duration};

use base64::Engine as _;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::config::{HttpConfig, Text};

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 10;
/// Bytes of a secret's file that count.
const SECRET_BYTES_MAX: usize = 64 << 10;

pub const USER_AGENT: &str = concat!("sightline/", env!("CARGO_PKG_VERSION"));

enum Secret {
    Text(String),
    File(PathBuf),
}

impl Secret {
    fn of(text: Option<&Text>, file: Option<&PathBuf>) -> Option<Secret> {
        text.map(|t| Secret::Text(t.0.clone())).or_else(|| file.map(|f| Secret::File(f.clone())))
    }

    async fn read(&self) -> Result<String, String> {
        match self {
            Secret::Text(text) => Ok(text.clone()),
            Secret::File(path) => {
                let text = tokio::fs::read_to_string(path).await;
                let text = text.map_err(|e| format!("cannot read {}: {e}", path.display()))?;
                if text.len() > SECRET_BYTES_MAX {
                    return Err(format!("{} is longer than {SECRET_BYTES_MAX} bytes", path.display()));
                }
                Ok(text.trim().to_owned())
            }
        }
    }
}

enum Auth {
    None,
    Basic { user: Secret, password: Option<Secret> },
    Header { kind: String, credentials: Secret },
}

/// A client with what it sends with every request.
pub struct HttpClient {
    client: reqwest::Client,
    auth: Auth,
    headers: Vec<(HeaderName, Secret)>,
}

impl HttpClient {
    /// Reads certificates: blocks. `timeout` of a whole request; `None`: the caller sees to it.
    pub fn new(config: &HttpConfig, timeout: Option<Duration>) -> Result<HttpClient, String> {
        let mut builder = reqwest::Client::builder().user_agent(USER_AGENT).connect_timeout(Duration::from_secs(10));
        if let Some(timeout) = timeout {
            builder = builder.timeout(timeout);
        }
        builder = builder.redirect(if config.follow_redirects.unwrap_or(true) {
            reqwest::redirect::Policy::limited(REDIRECTS_MAX)
        } else {
            reqwest::redirect::Policy::none()
        });
        if config.enable_http2 == Some(false) {
            builder = builder.http1_only();
        }
        match &config.proxy_url {
            Some(url) => {
                let proxy = reqwest::Proxy::all(url).map_err(|e| format!("proxy_url: {e}"))?;
                builder = builder.proxy(proxy);
            }
            None if config.proxy_from_environment => {}
            None => builder = builder.no_proxy(),
        }
        builder = tls(config, builder)?;
        let client = builder.build().map_err(|e| format!("cannot make an HTTP client: {}", chain(&e)))?;
        let mut headers = Vec::new();
        for (name, values) in &config.http_headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| format!("http_headers.{name}: {e}"))?;
            let texts = values.values.iter().chain(&values.secrets).map(|t| Secret::Text(t.0.clone()));
            let files = values.files.iter().map(|f| Secret::File(f.clone()));
            headers.extend(texts.chain(files).map(|s| (name.clone(), s)));
        }
        Ok(HttpClient { client, auth: auth(config), headers })
    }

    /// As [`HttpClient::new`], off the async threads.
    pub async fn make(config: HttpConfig, timeout: Option<Duration>) -> Result<HttpClient, String> {
        let made = tokio::task::spawn_blocking(move || HttpClient::new(&config, timeout)).await;
        made.map_err(|e| e.to_string())?
    }

    /// Asks; any status is an answer.
    pub async fn get(&self, url: &str, mut headers: HeaderMap) -> Result<reqwest::Response, String> {
        let value = |text: String| {
            let mut value = HeaderValue::from_str(&text).map_err(|_| "a secret is no header value".to_owned())?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        };
        match &self.auth {
            Auth::None => {}
            Auth::Basic { user, password } => {
                let password = match password {
                    Some(secret) => secret.read().await?,
                    None => String::new(),
                };
                let text = format!("{}:{password}", user.read().await?);
                let text = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
                headers.insert(header::AUTHORIZATION, value(text)?);
            }
            Auth::Header { kind, credentials } => {
                headers.insert(header::AUTHORIZATION, value(format!("{kind} {}", credentials.read().await?))?);
            }
        }
        for (name, secret) in &self.headers {
            headers.append(name, value(secret.read().await?)?);
        }
        self.client.get(url).headers(headers).send().await.map_err(|e| chain(&e))
    }
}

fn auth(config: &HttpConfig) -> Auth {
    if let Some(basic) = &config.basic_auth {
        let user = match &basic.username_file {
            Some(file) => Secret::File(file.clone()),
            None => Secret::Text(basic.username.clone()),
        };
        return Auth::Basic { user, password: Secret::of(basic.password.as_ref(), basic.password_file.as_ref()) };
    }
    let bearer = |credentials| Auth::Header { kind: "Bearer".to_owned(), credentials };
    if let Some(auth) = &config.authorization {
        let kind = auth.kind.as_deref().map_or("Bearer", str::trim).to_owned();
        return match Secret::of(auth.credentials.as_ref(), auth.credentials_file.as_ref()) {
            Some(credentials) => Auth::Header { kind, credentials },
            None => Auth::None,
        };
    }
    Secret::of(config.bearer_token.as_ref(), config.bearer_token_file.as_ref()).map_or(Auth::None, bearer)
}

fn tls(config: &HttpConfig, mut builder: reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, String> {
    let tls = &config.tls_config;
    let read = |text: Option<&str>, file: Option<&PathBuf>| -> Result<Option<Vec<u8>>, String> {
        match (text, file) {
            (Some(text), _) => Ok(Some(text.as_bytes().to_vec())),
            (None, Some(path)) => {
                std::fs::read(path).map(Some).map_err(|e| format!("cannot read {}: {e}", path.display()))
            }
            (None, None) => Ok(None),
        }
    };
    if let Some(pem) = read(tls.ca.as_deref(), tls.ca_file.as_ref())? {
        let found =
            reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| format!("tls_config.ca: {}", chain(&e)))?;
        // Only these are trusted, as in Prometheus.
        builder = builder.tls_built_in_root_certs(false);
        for certificate in found {
            builder = builder.add_root_certificate(certificate);
        }
    }
    let certificate = read(tls.cert.as_deref(), tls.cert_file.as_ref())?;
    if let (Some(mut pem), Some(key)) =
        (certificate, read(tls.key.as_ref().map(|k| k.0.as_str()), tls.key_file.as_ref())?)
    {
        pem.push(b'\n');
        pem.extend_from_slice(&key);
        let identity = reqwest::Identity::from_pem(&pem).map_err(|e| format!("tls_config.cert: {}", chain(&e)))?;
        builder = builder.identity(identity);
    }
    let version = |text: Option<&str>| match text {
        Some("TLS12") => Some(reqwest::tls::Version::TLS_1_2),
        Some("TLS13") => Some(reqwest::tls::Version::TLS_1_3),
        _ => None,
    };
    if let Some(least) = version(tls.min_version.as_deref()) {
        builder = builder.min_tls_version(least);
    }
    if let Some(most) = version(tls.max_version.as_deref()) {
        builder = builder.max_tls_version(most);
    }
    Ok(builder.danger_accept_invalid_certs(tls.insecure_skip_verify))
}

/// An error with its causes.
pub fn chain(error: &dyn Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // Some repeat their cause.
        if !out.ends_with(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        next = cause.source();
    }
    out
}
