//! Where a syslog source listens, checked: addresses are bound and certificates read before anything starts.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use pipeline::{Source, codec::syslog::UtcOffset};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::{Deserialize, Deserializer};
use storage::model::{Labels, TenantId};
use tokio_rustls::TlsAcceptor;

use super::{Syslog, TlsAcceptorBox, counters::Counters};
use crate::tenants::Tenants;

/// `type: syslog`. At least one of `tcp`, `udp`, `tls`, `unix` and `unix_stream` is given.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Octet counting and lines, told apart message by message.
    pub tcp: Option<SocketAddr>,
    pub udp: Option<SocketAddr>,
    pub tls: Option<TlsConfig>,
    /// Path of a datagram socket, as `/dev/log` is one. Whoever can reach it may write.
    pub unix: Option<PathBuf>,
    /// Path of a stream socket, framed as `tcp`.
    pub unix_stream: Option<PathBuf>,
    /// Added to the stream labels `host`, `app` and `service_name`, which messages set.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub tenant: Option<String>,
    /// Zone of times without one: `+02:00`.
    #[serde(default, deserialize_with = "offset")]
    pub utc_offset: UtcOffset,
    /// Bytes of one message; longer ones are cut.
    #[serde(default = "message_bytes_max")]
    pub message_bytes_max: usize,
    /// Connections of one listener at once; further ones wait.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    #[serde(skip)]
    pub counters: Arc<Counters>,
    /// What its tenant may send.
    #[serde(skip)]
    pub tenants: Arc<Tenants>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    pub listen: SocketAddr,
    /// PEM: the server's certificate and those between it and its authority.
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// PEM: authorities of clients. With it a client must have a certificate.
    pub client_ca_file: Option<PathBuf>,
}

fn message_bytes_max() -> usize {
    64 << 10
}

fn connections_max() -> usize {
    1024
}

fn offset<'de, D: Deserializer<'de>>(d: D) -> Result<UtcOffset, D::Error> {
    UtcOffset::try_from(String::deserialize(d)?).map_err(serde::de::Error::custom)
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("it listens nowhere; give at least one of tcp, udp, tls, unix and unix_stream")]
    Nowhere,
    #[error("cannot listen on {at}: {source}; free it or set another")]
    Listen { at: String, source: io::Error },
    #[error("cannot use {}: {reason}", path.display())]
    Pem { path: PathBuf, reason: String },
    #[error("tenant {name:?} is not valid: {source}")]
    Tenant { name: String, source: storage::model::tenant::TenantError },
}

/// A path that is removed when the source has ended.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Config {
    pub fn build(&self) -> Result<Syslog, ConfigError> {
        let tenant = match &self.tenant {
            None => TenantId::default_tenant(),
            Some(name) => {
                TenantId::parse(name).map_err(|source| ConfigError::Tenant { name: name.clone(), source })?
            }
        };
        let tls = match &self.tls {
            None => None,
            Some(tls) => Some((TlsAcceptorBox(acceptor(tls)?), tcp(tls.listen)?)),
        };
        let mut files = Vec::new();
        let syslog = Syslog {
            tcp: self.tcp.map(tcp).transpose()?,
            udp: self.udp.map(udp).transpose()?,
            tls,
            unix: self.unix.as_deref().map(|p| unix(p, |p| UnixDatagram::bind(p), &mut files)).transpose()?,
            unix_stream: self
                .unix_stream
                .as_deref()
                .map(|p| unix(p, |p| UnixListener::bind(p), &mut files))
                .transpose()?,
            files,
            labels: Labels::from_pairs(self.labels.clone()),
            tenant,
            utc_offset: self.utc_offset,
            message_bytes_max: self.message_bytes_max.clamp(480, 4 << 20),
            connections_max: self.connections_max.clamp(1, 65_536),
            counters: self.counters.clone(),
            tenants: self.tenants.clone(),
        };
        let nowhere = syslog.tcp.is_none()
            && syslog.udp.is_none()
            && syslog.tls.is_none()
            && syslog.unix.is_none()
            && syslog.unix_stream.is_none();
        if nowhere { Err(ConfigError::Nowhere) } else { Ok(syslog) }
    }

    pub fn source(&self) -> Result<Box<dyn Source>, ConfigError> {
        Ok(Box::new(self.build()?))
    }

    /// Where it listens, for a person.
    pub fn summary(&self) -> String {
        let path = |p: &PathBuf| p.display().to_string();
        let places = [
            self.tcp.map(|a| format!("TCP {a}")),
            self.udp.map(|a| format!("UDP {a}")),
            self.tls.as_ref().map(|t| format!("TLS {}", t.listen)),
            self.unix.as_ref().map(path),
            self.unix_stream.as_ref().map(path),
        ];
        places.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

fn tcp(addr: SocketAddr) -> Result<std::net::TcpListener, ConfigError> {
    let failed = |source| ConfigError::Listen { at: format!("TCP {addr}"), source };
    let listener = std::net::TcpListener::bind(addr).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

fn udp(addr: SocketAddr) -> Result<std::net::UdpSocket, ConfigError> {
    let failed = |source| ConfigError::Listen { at: format!("UDP {addr}"), source };
    let socket = std::net::UdpSocket::bind(addr).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket)
}

fn unix<S>(
    path: &Path,
    bind: impl FnOnce(&Path) -> io::Result<S>,
    files: &mut Vec<SocketFile>,
) -> Result<S, ConfigError> {
    let failed = |source| ConfigError::Listen { at: path.display().to_string(), source };
    if is_dead_socket(path) {
        std::fs::remove_file(path).map_err(failed)?;
    }
    let socket = bind(path).map_err(failed)?;
    files.push(SocketFile(path.to_owned()));
    // Every program may log, whoever it runs as.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    Ok(socket)
}

/// A socket that nobody listens on: what a process leaves that was killed.
fn is_dead_socket(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let refused = |e: &io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
    is_socket
        && match UnixStream::connect(path) {
            Ok(_) => false,
            Err(e) if refused(&e) => true,
            // Not a stream socket.
            Err(_) => UnixDatagram::unbound().and_then(|s| s.connect(path)).is_err_and(|e| refused(&e)),
        }
}

fn acceptor(tls: &TlsConfig) -> Result<TlsAcceptor, ConfigError> {
    let wrong = |path: &Path, reason: &dyn std::fmt::Display| ConfigError::Pem {
        path: path.to_owned(),
        reason: reason.to_string(),
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, ConfigError> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| wrong(path, &e))?.collect();
        let all = all.map_err(|e| wrong(path, &e))?;
        if all.is_empty() { Err(wrong(path, &"there is no certificate in it")) } else { Ok(all) }
    };
    let chain = certificates(&tls.cert_file)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key_file).map_err(|e| wrong(&tls.key_file, &e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(&tls.cert_file, &e))?;
    let builder = match &tls.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|e| wrong(path, &e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|e| wrong(path, &e))?)
        }
    };
    let config = builder.with_single_cert(chain, key).map_err(|e| wrong(&tls.cert_file, &e))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
