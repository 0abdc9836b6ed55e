//! One mail to one SMTP server: plain, STARTTLS, or TLS from the start on port 465.

use std::{path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufStream},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// The whole conversation.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Longest line a server may answer with, bytes.
const LINE_MAX: usize = 4 << 10;

/// Lines of one answer.
const LINES_MAX: usize = 100;

pub struct Mail<'a> {
    /// `host:port`
    pub server: &'a str,
    pub hello: &'a str,
    pub credentials: Option<(&'a str, String)>,
    pub require_tls: bool,
    pub ca_file: Option<&'a Path>,
    pub from: &'a str,
    pub to: Vec<String>,
    pub subject: &'a str,
    pub text: &'a str,
    /// RFC 5322 form.
    pub date: String,
    pub id: String,
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

struct Session {
    wire: BufStream<Box<dyn Wire>>,
}

/// The address of `Name <a@b>`.
fn address(text: &str) -> Result<&str, String> {
    let inner = match (text.rfind('<'), text.rfind('>')) {
        (Some(from), Some(to)) if from < to => &text[from + 1..to],
        _ => text.trim(),
    };
    let plain =
        inner.contains('@') && !inner.contains(|c: char| c.is_whitespace() || c.is_control() || c == '<' || c == '>');
    if plain { Ok(inner) } else { Err(format!("{text:?} is no mail address")) }
}

pub async fn send(mail: &Mail<'_>) -> Result<(), String> {
    tokio::time::timeout(TIMEOUT, converse(mail))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")))
}

async fn converse(mail: &Mail<'_>) -> Result<(), String> {
    let (host, port) = mail.server.rsplit_once(':').ok_or("the smarthost is not host:port")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream =
        TcpStream::connect(mail.server).await.map_err(|e| format!("cannot connect to {}: {e}", mail.server))?;
    let mut secure = port == "465";
    let wire: Box<dyn Wire> =
        if secure { Box::new(tls(stream, host, mail.ca_file).await?) } else { Box::new(stream) };
    let mut session = Session { wire: BufStream::new(wire) };
    session.expect(220).await?;
    let mut offers = session.hello(mail.hello).await?;
    if !secure && offers.iter().any(|o| o.eq_ignore_ascii_case("STARTTLS")) {
        session.ask("STARTTLS", 220).await?;
        let plain = session.wire.into_inner();
        session = Session { wire: BufStream::new(Box::new(tls(plain, host, mail.ca_file).await?)) };
        offers = session.hello(mail.hello).await?;
        secure = true;
    }
    if mail.require_tls && !secure {
        return Err("the server offers no STARTTLS; set require_tls: false to send in clear".into());
    }
    if let Some((name, password)) = &mail.credentials {
        session.login(name, password, &offers).await?;
    }
    session.ask(&format!("MAIL FROM:<{}>", address(mail.from)?), 250).await?;
    for to in &mail.to {
        session.ask(&format!("RCPT TO:<{}>", address(to)?), 250).await?;
    }
    session.ask("DATA", 354).await?;
    session.put(&written(mail)).await?;
    session.expect(250).await?;
    // It has the mail; whether it says goodbye matters not.
    let _ = session.ask("QUIT", 221).await;
    Ok(())
}

/// The mail with its headers, lines ended and dots doubled as SMTP wants it.
fn written(mail: &Mail<'_>) -> String {
    // No line of a template becomes a header.
    let header = |text: &str| {
        let flat: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if flat.is_ascii() { flat } else { format!("=?UTF-8?B?{}?=", STANDARD.encode(flat)) }
    };
    let mut out = String::new();
    for (name, value) in [
        ("From", mail.from.to_owned()),
        ("To", mail.to.join(", ")),
        ("Subject", mail.subject.to_owned()),
        ("Date", mail.date.clone()),
        ("Message-Id", mail.id.clone()),
        ("MIME-Version", "1.0".into()),
        ("Content-Type", "text/plain; charset=utf-8".into()),
        ("Content-Transfer-Encoding", "base64".into()),
    ] {
        out.push_str(&format!("{name}: {}\r\n", header(&value)));
    }
    out.push_str("\r\n");
    let body = STANDARD.encode(mail.text);
    for line in body.as_bytes().chunks(76) {
        out.push_str(std::str::from_utf8(line).unwrap_or(""));
        out.push_str("\r\n");
    }
    out.push_str(".\r\n");
    out
}

async fn tls(stream: impl Wire + 'static, host: &str, ca_file: Option<&Path>) -> Result<impl Wire + 'static, String> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let pem = tokio::fs::read(path).await.map_err(|e| format!("cannot read {}: {e}", path.display()))?;
            for cert in CertificateDer::pem_slice_iter(&pem) {
                let cert = cert.map_err(|e| format!("{}: {e}", path.display()))?;
                roots.add(cert).map_err(|e| format!("{}: {e}", path.display()))?;
            }
        }
        None => {
            let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
            let found = found.map_err(|e| format!("cannot read the system's certificates: {e}"))?;
            roots.add_parsable_certificates(found.certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|e| format!("{host}: {e}"))?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| format!("TLS with {host}: {e}"))
}

impl Session {
    async fn put(&mut self, text: &str) -> Result<(), String> {
        self.wire.write_all(text.as_bytes()).await.map_err(|e| format!("cannot write: {e}"))?;
        self.wire.flush().await.map_err(|e| format!("cannot write: {e}"))
    }

    async fn ask(&mut self, command: &str, wanted: u16) -> Result<Vec<String>, String> {
        self.put(&format!("{command}\r\n")).await?;
        let word = command.split(' ').next().unwrap_or("");
        self.expect(wanted).await.map_err(|e| format!("{word}: {e}"))
    }

    /// What an answer of this code says, a line each.
    async fn expect(&mut self, wanted: u16) -> Result<Vec<String>, String> {
        let mut out = Vec::new();
        loop {
            let line = self.line().await?;
            let (code, rest) = line.split_at_checked(3).ok_or_else(|| format!("the server answers {line:?}"))?;
            out.push(rest.get(1..).unwrap_or("").to_owned());
            if rest.starts_with('-') && out.len() < LINES_MAX {
                continue;
            }
            if code.parse() == Ok(wanted) {
                return Ok(out);
            }
            return Err(format!("the server answers {line:?}"));
        }
    }

    async fn line(&mut self) -> Result<String, String> {
        let mut out = Vec::new();
        loop {
            let part = self.wire.fill_buf().await.map_err(|e| format!("cannot read: {e}"))?;
            if part.is_empty() {
                return Err("the server closed the connection".into());
            }
            let end = part.iter().position(|b| *b == b'\n');
            out.extend_from_slice(&part[..end.unwrap_or(part.len())]);
            let used = end.map_or(part.len(), |e| e + 1);
            self.wire.consume(used);
            if out.len() > LINE_MAX {
                return Err("the server's answer is too long".into());
            }
            if end.is_some() {
                return Ok(String::from_utf8_lossy(&out).trim_end().to_owned());
            }
        }
    }

    /// What the server offers.
    async fn hello(&mut self, name: &str) -> Result<Vec<String>, String> {
        let mut offers = self.ask(&format!("EHLO {name}"), 250).await?;
        offers.remove(0);
        Ok(offers)
    }

    async fn login(&mut self, name: &str, password: &str, offers: &[String]) -> Result<(), String> {
        let auth = offers.iter().find_map(|o| o.to_ascii_uppercase().strip_prefix("AUTH ").map(str::to_owned));
        let ways = auth.ok_or("the server offers no AUTH")?;
        if ways.split(' ').any(|w| w == "PLAIN") {
            let secret = STANDARD.encode(format!("\0{name}\0{password}"));
            return self.ask(&format!("AUTH PLAIN {secret}"), 235).await.map(|_| ());
        }
        if ways.split(' ').any(|w| w == "LOGIN") {
            self.ask("AUTH LOGIN", 334).await?;
            self.ask(&STANDARD.encode(name), 334).await.map_err(|_| "AUTH LOGIN: the name was refused".to_owned())?;
            let done = self.ask(&STANDARD.encode(password), 235).await;
            return done.map(|_| ()).map_err(|_| "AUTH LOGIN: the password was refused".to_owned());
        }
        Err(format!("none of the server's ways to log in is known: {ways}"))
    }
}
