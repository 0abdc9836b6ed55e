//! HTTP as Prometheus' client configuration describes it: credentials, TLS, proxies, redirects.
//!
//! Files with secrets are read for every request, so that a changed one counts at once; certificates when the client is
//! made.

use std::{collections::HashMap, error::Error, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use base64::Engine as _;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use parking_lot::Mutex;

use super::{
    config::{HttpConfig, Text},
    oauth2::Tokens,
};

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 10;
/// Hosts whose clients are kept apart.
const NAMED_MAX: usize = 1_000;
/// Bytes of a secret's file that count.
const SECRET_BYTES_MAX: usize = 64 << 10;

pub const USER_AGENT: &str = concat!("sightline/", env!("CARGO_PKG_VERSION"));

pub(super) enum Secret {
    Text(String),
    File(PathBuf),
}

impl Secret {
    pub fn of(text: Option<&Text>, file: Option<&PathBuf>) -> Option<Secret> {
        text.map(|t| Secret::Text(t.0.clone())).or_else(|| file.map(|f| Secret::File(f.clone())))
    }

    pub async fn read(&self) -> Result<String, String> {
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

pub(super) enum Auth {
    None,
    OAuth2(Box<Tokens>),
    Basic { user: Secret, password: Option<Secret> },
    Header { kind: String, credentials: Secret },
}

/// Clients that speak with one server under one name of its certificate: one for each address.
struct Named {
    /// Where there is no TLS.
    plain: reqwest::Client,
    config: HttpConfig,
    timeout: Option<Duration>,
    server_name: String,
    /// By host.
    made: Mutex<HashMap<String, reqwest::Client>>,
}

enum Clients {
    One(reqwest::Client),
    Named(Arc<Named>),
}

/// A client with what it sends with every request.
pub struct HttpClient {
    clients: Clients,
    auth: Auth,
    headers: Vec<(HeaderName, Secret)>,
}

/// All that a configuration says of connections.
fn builder(config: &HttpConfig, timeout: Option<Duration>) -> Result<reqwest::ClientBuilder, String> {
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
            let except = config.no_proxy.as_deref().and_then(reqwest::NoProxy::from_string);
            builder = builder.proxy(proxy.no_proxy(except));
        }
        None if config.proxy_from_environment => {}
        None => builder = builder.no_proxy(),
    }
    tls(config, builder)
}

fn built(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, String> {
    builder.build().map_err(|e| format!("cannot make an HTTP client: {}", chain(&e)))
}

/// Finds the server's name at its address, and every other where it is.
struct At {
    name: String,
    host: String,
}

impl reqwest::dns::Resolve for At {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let host = if name.as_str() == self.name { self.host.clone() } else { name.as_str().to_owned() };
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

impl Named {
    /// The client of a URL, the URL with the server's name in it, and who is asked.
    async fn client(self: &Arc<Self>, url: &str) -> Result<(reqwest::Client, String, String), String> {
        let mut url = url::Url::parse(url).map_err(|e| e.to_string())?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let asked = url[url::Position::BeforeHost..url::Position::AfterPort].to_owned();
        url.set_host(Some(&self.server_name)).map_err(|e| format!("tls_config.server_name: {e}"))?;
        let known = self.made.lock().get(&host).cloned();
        if let Some(client) = known {
            return Ok((client, url.into(), asked));
        }
        let (this, at) = (self.clone(), At { name: self.server_name.clone(), host: host.clone() });
        // Over HTTP/2 the name would also be who is asked.
        let make = move || built(builder(&this.config, this.timeout)?.http1_only().dns_resolver(Arc::new(at)));
        let client = tokio::task::spawn_blocking(make).await.map_err(|e| e.to_string())??;
        let mut made = self.made.lock();
        if made.len() >= NAMED_MAX {
            made.clear();
        }
        made.insert(host, client.clone());
        Ok((client, url.into(), asked))
    }
}

impl HttpClient {
    /// Reads certificates: blocks. `timeout` of a whole request; `None`: the caller sees to it.
    pub fn new(config: &HttpConfig, timeout: Option<Duration>) -> Result<HttpClient, String> {
        let client = built(builder(config, timeout)?)?;
        let clients = match &config.tls_config.server_name {
            None => Clients::One(client),
            Some(name) => Clients::Named(Arc::new(Named {
                plain: client,
                config: config.clone(),
                timeout,
                server_name: name.to_ascii_lowercase(),
                made: Mutex::default(),
            })),
        };
        let mut headers = Vec::new();
        for (name, values) in &config.http_headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| format!("http_headers.{name}: {e}"))?;
            let texts = values.values.iter().chain(&values.secrets).map(|t| Secret::Text(t.0.clone()));
            let files = values.files.iter().map(|f| Secret::File(f.clone()));
            headers.extend(texts.chain(files).map(|s| (name.clone(), s)));
        }
        Ok(HttpClient { clients, auth: auth(config)?, headers })
    }

    /// As [`HttpClient::new`], off the async threads.
    pub async fn make(config: HttpConfig, timeout: Option<Duration>) -> Result<HttpClient, String> {
        let made = tokio::task::spawn_blocking(move || HttpClient::new(&config, timeout)).await;
        made.map_err(|e| e.to_string())?
    }

    /// Asks; any status is an answer.
    pub async fn get(&self, url: &str, mut headers: HeaderMap) -> Result<reqwest::Response, String> {
        self.authorize(&mut headers).await?;
        let (client, url) = self.client(url, &mut headers).await?;
        client.get(url).headers(headers).send().await.map_err(|e| chain(&e))
    }

    /// Posts JSON; any status is an answer.
    pub async fn post_json(&self, url: &str, body: Vec<u8>) -> Result<reqwest::Response, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.authorize(&mut headers).await?;
        let (client, url) = self.client(url, &mut headers).await?;
        client.post(url).headers(headers).body(body).send().await.map_err(|e| chain(&e))
    }

    async fn authorize(&self, headers: &mut HeaderMap) -> Result<(), String> {
        match &self.auth {
            Auth::None => {}
            Auth::OAuth2(tokens) => {
                headers.insert(header::AUTHORIZATION, value(tokens.get().await?)?);
            }
            Auth::Basic { user, password } => {
                let password = match password {
                    Some(secret) => secret.read().await?,
                    None => String::new(),
                };
                headers.insert(header::AUTHORIZATION, basic(&format!("{}:{password}", user.read().await?))?);
            }
            Auth::Header { kind, credentials } => {
                headers.insert(header::AUTHORIZATION, value(format!("{kind} {}", credentials.read().await?))?);
            }
        }
        for (name, secret) in &self.headers {
            headers.append(name, value(secret.read().await?)?);
        }
        Ok(())
    }

    /// Sends a form, without credentials of its own.
    pub(super) async fn post(
        &self,
        url: &str,
        mut headers: HeaderMap,
        body: String,
    ) -> Result<reqwest::Response, String> {
        let (client, url) = self.client(url, &mut headers).await?;
        client.post(url).headers(headers).body(body).send().await.map_err(|e| chain(&e))
    }

    async fn client(&self, url: &str, headers: &mut HeaderMap) -> Result<(reqwest::Client, String), String> {
        match &self.clients {
            Clients::One(client) => Ok((client.clone(), url.to_owned())),
            Clients::Named(named) if !url.starts_with("https:") => Ok((named.plain.clone(), url.to_owned())),
            Clients::Named(named) => {
                let (client, url, asked) = named.client(url).await?;
                headers.insert(header::HOST, value(asked)?);
                Ok((client, url))
            }
        }
    }
}

fn value(text: String) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(&text).map_err(|_| "a secret is no header value".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// The header of a user and a password, `user:password`.
pub(super) fn basic(both: &str) -> Result<HeaderValue, String> {
    value(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(both)))
}

fn auth(config: &HttpConfig) -> Result<Auth, String> {
    if let Some(oauth2) = &config.oauth2 {
        return Ok(Auth::OAuth2(Box::new(Tokens::new(oauth2)?)));
    }
    Ok(credentials(config))
}

fn credentials(config: &HttpConfig) -> Auth {
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
