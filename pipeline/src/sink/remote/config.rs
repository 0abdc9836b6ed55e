//! What the configuration says of every sink that ships somewhere.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};

pub use super::retry::RetryConfig;
use crate::units;

/// How rows are put together to requests: whichever is reached first.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    pub rows: usize,
    /// Bytes in memory, before they are encoded and compressed.
    #[serde(deserialize_with = "bytes")]
    pub bytes: usize,
    /// How long rows wait for others.
    #[serde(deserialize_with = "units::duration")]
    pub age: Duration,
}

impl Default for BatchConfig {
    fn default() -> Self {
        BatchConfig { rows: 8_192, bytes: 4 << 20, age: Duration::from_millis(200) }
    }
}

/// What may be on its way.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    /// Bytes of rows that wait or are under way; the sources wait beyond.
    #[serde(deserialize_with = "bytes")]
    pub bytes: usize,
    /// Requests under way at once.
    pub requests: usize,
}

impl Default for QueueConfig {
    fn default() -> Self {
        QueueConfig { bytes: 64 << 20, requests: 4 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    None,
    #[default]
    Gzip,
    Zstd,
    /// The framed format.
    Snappy,
}

/// Who we say we are.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    pub user: Option<String>,
    pub password: Option<String>,
    pub bearer: Option<String>,
}

/// Secrets stay out of logs.
impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "..."))
            .field("bearer", &self.bearer.as_ref().map(|_| "..."))
            .finish()
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM file of authorities that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Takes any certificate: whoever is in between can read and change everything.
    pub insecure_skip_verify: bool,
}

/// What all sinks over HTTP and gRPC have.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    pub url: String,
    pub compression: Compression,
    pub auth: AuthConfig,
    pub headers: BTreeMap<String, String>,
    pub tenant: Option<String>,
    pub tls: TlsConfig,
    pub timeout: Duration,
    pub delivery: DeliveryConfig,
}

/// What all sinks that batch and retry have.
#[derive(Clone, Debug, Default)]
pub struct DeliveryConfig {
    pub batch: BatchConfig,
    pub queue: QueueConfig,
    pub retry: RetryConfig,
    pub dead_letter: Option<PathBuf>,
}

/// The configuration of a sink over the network: the common keys, and those of its own.
macro_rules! remote_config {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident : $t:ty = $default:expr),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            pub inputs: Vec<String>,
            pub url: String,
            #[serde(default)]
            pub compression: Option<$crate::sink::remote::config::Compression>,
            #[serde(default)]
            pub auth: $crate::sink::remote::config::AuthConfig,
            /// Sent with every request.
            #[serde(default)]
            pub headers: std::collections::BTreeMap<String, String>,
            /// `X-Scope-OrgID`. Absent: the tenant of the rows, unless it is the default one.
            #[serde(default)]
            pub tenant: Option<String>,
            #[serde(default)]
            pub tls: $crate::sink::remote::config::TlsConfig,
            /// Of one attempt.
            #[serde(default = "crate::sink::remote::config::timeout", deserialize_with = "crate::units::duration")]
            pub timeout: std::time::Duration,
            #[serde(default)]
            pub batch: $crate::sink::remote::config::BatchConfig,
            #[serde(default)]
            pub queue: $crate::sink::remote::config::QueueConfig,
            #[serde(default)]
            pub retry: $crate::sink::remote::config::RetryConfig,
            /// File for rows that the remote refuses for good, one JSON object a line. Absent: they are dropped and counted.
            #[serde(default)]
            pub dead_letter: Option<std::path::PathBuf>,
            $($(#[$field_meta])* #[serde(default)] pub $field: Option<$t>,)*
        }

        impl $name {
            $(pub fn $field(&self) -> $t {
                self.$field.clone().unwrap_or_else(|| $default)
            })*

            pub fn remote(&self) -> $crate::sink::remote::config::RemoteConfig {
                $crate::sink::remote::config::RemoteConfig {
                    url: self.url.clone(),
                    compression: self.compression.unwrap_or_default(),
                    auth: self.auth.clone(),
                    headers: self.headers.clone(),
                    tenant: self.tenant.clone(),
                    tls: self.tls.clone(),
                    timeout: self.timeout,
                    delivery: $crate::sink::remote::config::DeliveryConfig {
                        batch: self.batch.clone(),
                        queue: self.queue.clone(),
                        retry: self.retry.clone(),
                        dead_letter: self.dead_letter.clone(),
                    },
                }
            }
        }
    };
}
pub(crate) use remote_config;

pub(crate) fn timeout() -> Duration {
    Duration::from_secs(30)
}

/// Bytes: `512MiB`, `1GiB`, `64KB`, `1048576`.
pub(crate) fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Raw {
        Number(u64),
        Text(String),
    }
    let read = match Raw::deserialize(d).map_err(|_| D::Error::custom("expected a size, for example 4MiB"))? {
        Raw::Number(n) => n,
        Raw::Text(t) => units::parse_bytes(&t).map_err(D::Error::custom)?,
    };
    usize::try_from(read).map_err(D::Error::custom)
}

impl RemoteConfig {
    /// Everything that is wrong, as (key, message).
    pub fn problems(&self, schemes: &[&str]) -> Vec<(&'static str, String)> {
        let mut out = self.delivery.problems();
        match url::Url::parse(&self.url) {
            Err(e) => out.push(("url", format!("`{}` is no URL: {e}", self.url))),
            Ok(u) if !schemes.contains(&u.scheme()) || u.host_str().is_none() => {
                let expected = schemes.join(", ");
                out.push(("url", format!("`{}` needs a host and one of the schemes {expected}", self.url)));
            }
            Ok(_) => {}
        }
        for (name, value) in &self.headers {
            if http::HeaderName::from_bytes(name.as_bytes()).is_err() || http::HeaderValue::from_str(value).is_err() {
                out.push(("headers", format!("`{name}` is no header that can be sent")));
            }
        }
        if self.auth.bearer.is_some() && self.auth.user.is_some() {
            out.push(("auth", "`bearer` and `user` exclude each other".into()));
        }
        if self.auth.password.is_some() && self.auth.user.is_none() {
            out.push(("auth", "`password` needs a `user`".into()));
        }
        if let Some(Err(e)) = self.tenant.as_deref().map(storage::model::TenantId::parse) {
            out.push(("tenant", e.to_string()));
        }
        if let Some(Err(e)) = self.tls.ca_file.as_deref().map(std::fs::read) {
            out.push(("tls.ca_file", format!("cannot read it: {e}")));
        }
        if self.timeout.is_zero() {
            out.push(("timeout", "expected more than 0".into()));
        }
        out
    }
}

impl DeliveryConfig {
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        let positive = "expected more than 0";
        for (key, zero) in [
            ("batch.rows", self.batch.rows == 0),
            ("batch.bytes", self.batch.bytes == 0),
            ("queue.bytes", self.queue.bytes == 0),
            ("queue.requests", self.queue.requests == 0),
            ("retry.first", self.retry.first.is_zero()),
            ("retry.most", self.retry.most.is_zero()),
        ] {
            if zero {
                out.push((key, positive.to_owned()));
            }
        }
        out
    }
}
