//! `scrape_configs` as Prometheus writes them, read raw.
//!
//! Every key that Prometheus 3 knows is known here. What we do not do is kept as it is written, so that it can be named
//! with its place ([`super::job::check`]); what nobody knows is an error of the reader.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use pipeline::transform::relabel::RuleConfig;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

/// A value as text: YAML makes numbers and booleans of some.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match Value::deserialize(d)? {
            Value::String(text) => Ok(Text(text)),
            Value::Null => Ok(Text::default()),
            other @ (Value::Number(_) | Value::Bool(_)) => Ok(Text(other.to_string())),
            _ => Err(D::Error::custom("expected a text")),
        }
    }
}

/// A Prometheus duration: `1m30s`, `0`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let Text(text) = Text::deserialize(d)?;
        parse_span(&text).map(Span).map_err(D::Error::custom)
    }
}

pub fn parse_span(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { pipeline::units::parse_duration(text) }
}

/// As Prometheus prints it: `1m30s`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ms = self.0.as_millis();
        if ms == 0 {
            return f.write_str("0s");
        }
        // Years, weeks and days only where nothing else is left.
        let exact = [(31_536_000_000, "y", true), (604_800_000, "w", true), (86_400_000, "d", true)];
        let others = [(3_600_000, "h", false), (60_000, "m", false), (1000, "s", false), (1, "ms", false)];
        for (unit, name, whole) in exact.into_iter().chain(others) {
            if whole && !ms.is_multiple_of(unit) || ms < unit {
                continue;
            }
            write!(f, "{}{name}", ms / unit)?;
            ms %= unit;
        }
        Ok(())
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bytes, all units of base 2: `10MB` is `10MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let Text(text) = Text::deserialize(d)?;
        let binary = match text.strip_suffix("B").filter(|t| t.ends_with(['K', 'M', 'G', 'T'])) {
            Some(stem) => format!("{stem}iB"),
            None => text,
        };
        pipeline::units::parse_bytes(&binary).map(Size).map_err(D::Error::custom)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

impl Scheme {
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BasicAuth {
    pub username: String,
    pub username_file: Option<PathBuf>,
    pub password: Option<Text>,
    pub password_file: Option<PathBuf>,
    pub username_ref: Option<Value>,
    pub password_ref: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Authorization {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub credentials: Option<Text>,
    pub credentials_file: Option<PathBuf>,
    pub credentials_ref: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    pub ca: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub cert: Option<String>,
    pub cert_file: Option<PathBuf>,
    pub key: Option<Text>,
    pub key_file: Option<PathBuf>,
    pub server_name: Option<String>,
    pub insecure_skip_verify: bool,
    pub min_version: Option<String>,
    pub max_version: Option<String>,
    pub ca_ref: Option<Value>,
    pub cert_ref: Option<Value>,
    pub key_ref: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpHeader {
    pub values: Vec<Text>,
    pub secrets: Vec<Text>,
    pub files: Vec<PathBuf>,
}

/// Tokens of the client credentials grant.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OAuth2 {
    pub client_id: Text,
    pub client_secret: Option<Text>,
    pub client_secret_file: Option<PathBuf>,
    pub client_secret_ref: Option<Value>,
    pub scopes: Vec<Text>,
    pub token_url: String,
    pub endpoint_params: BTreeMap<String, Text>,
    pub tls_config: TlsConfig,
    pub proxy_url: Option<String>,
    pub no_proxy: Option<String>,
    pub proxy_from_environment: bool,
    pub proxy_connect_header: Option<Value>,
    pub grant_type: Option<Value>,
    pub iss: Option<Value>,
    pub audience: Option<Value>,
    pub claims: Option<Value>,
    pub signature_algorithm: Option<Value>,
    pub client_certificate_key_id: Option<Value>,
    pub client_certificate_key: Option<Value>,
    pub client_certificate_key_file: Option<Value>,
    pub client_certificate_key_ref: Option<Value>,
}

/// A struct with the keys of Prometheus' HTTP client beside its own, and [`HttpConfig`] of it.
macro_rules! with_http {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
            pub basic_auth: Option<BasicAuth>,
            pub authorization: Option<Authorization>,
            pub bearer_token: Option<Text>,
            pub bearer_token_file: Option<PathBuf>,
            pub oauth2: Option<OAuth2>,
            pub tls_config: TlsConfig,
            pub follow_redirects: Option<bool>,
            pub enable_http2: Option<bool>,
            pub proxy_url: Option<String>,
            pub no_proxy: Option<String>,
            pub proxy_from_environment: bool,
            pub proxy_connect_header: Option<Value>,
            pub http_headers: BTreeMap<String, HttpHeader>,
        }

        impl $name {
            pub fn http(&self) -> HttpConfig {
                HttpConfig {
                    basic_auth: self.basic_auth.clone(),
                    authorization: self.authorization.clone(),
                    bearer_token: self.bearer_token.clone(),
                    bearer_token_file: self.bearer_token_file.clone(),
                    oauth2: self.oauth2.clone(),
                    tls_config: self.tls_config.clone(),
                    follow_redirects: self.follow_redirects,
                    enable_http2: self.enable_http2,
                    proxy_url: self.proxy_url.clone(),
                    no_proxy: self.no_proxy.clone(),
                    proxy_from_environment: self.proxy_from_environment,
                    proxy_connect_header: self.proxy_connect_header.clone(),
                    http_headers: self.http_headers.clone(),
                }
            }
        }
    };
}

/// As [`with_http`], with every discovery: `sd` of its own are ours, the rest is kept to be named.
macro_rules! with_discovery {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }; $($other:ident)*) => {
        with_http!($(#[$meta])* $name {
            $($(#[$field_meta])* $field: $type,)*
            static_configs: Vec<StaticConfig>,
            file_sd_configs: Vec<FileSd>,
            http_sd_configs: Vec<HttpSd>,
            dns_sd_configs: Vec<DnsSd>,
            docker_sd_configs: Vec<DockerSd>,
            kubernetes_sd_configs: Vec<KubernetesSd>,
            $($other: Option<Value>,)*
        });

        impl $name {
            pub fn discoveries(&self) -> Discoveries<'_> {
                Discoveries {
                    fixed: &self.static_configs,
                    file: &self.file_sd_configs,
                    http: &self.http_sd_configs,
                    dns: &self.dns_sd_configs,
                    docker: &self.docker_sd_configs,
                    kubernetes: &self.kubernetes_sd_configs,
                }
            }

            /// Those that we do not have, and whether they are asked for.
            pub fn unsupported_discoveries(&self) -> Vec<(&'static str, bool)> {
                vec![$((stringify!($other), self.$other.is_some()),)*]
            }
        }
    };
    ($(#[$meta:meta])* $name:ident { $($fields:tt)* }) => {
        with_discovery!($(#[$meta])* $name { $($fields)* };
            aws_sd_configs azure_sd_configs consul_sd_configs digitalocean_sd_configs
            dockerswarm_sd_configs ec2_sd_configs eureka_sd_configs gce_sd_configs
            hetzner_sd_configs ionos_sd_configs kuma_sd_configs lightsail_sd_configs
            linode_sd_configs marathon_sd_configs nerve_sd_configs nomad_sd_configs
            openstack_sd_configs ovhcloud_sd_configs puppetdb_sd_configs scaleway_sd_configs
            serverset_sd_configs stackit_sd_configs triton_sd_configs uyuni_sd_configs
            vultr_sd_configs
        );
    };
}

/// Where targets are to be found, as it is written.
#[derive(Clone, Copy, Debug)]
pub struct Discoveries<'a> {
    pub fixed: &'a [StaticConfig],
    pub file: &'a [FileSd],
    pub http: &'a [HttpSd],
    pub dns: &'a [DnsSd],
    pub docker: &'a [DockerSd],
    pub kubernetes: &'a [KubernetesSd],
}

/// How to speak HTTP with a target or a discovery.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpConfig {
    pub basic_auth: Option<BasicAuth>,
    pub authorization: Option<Authorization>,
    pub bearer_token: Option<Text>,
    pub bearer_token_file: Option<PathBuf>,
    pub oauth2: Option<OAuth2>,
    pub tls_config: TlsConfig,
    pub follow_redirects: Option<bool>,
    pub enable_http2: Option<bool>,
    pub proxy_url: Option<String>,
    pub no_proxy: Option<String>,
    pub proxy_from_environment: bool,
    pub proxy_connect_header: Option<Value>,
    pub http_headers: BTreeMap<String, HttpHeader>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StaticConfig {
    pub targets: Vec<Text>,
    pub labels: BTreeMap<String, Text>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileSd {
    pub files: Vec<String>,
    pub refresh_interval: Option<Span>,
}

with_http!(HttpSd {
    url: String,
    refresh_interval: Option<Span>,
});

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum DnsType {
    #[default]
    #[serde(rename = "SRV", alias = "srv")]
    Srv,
    #[serde(rename = "A", alias = "a")]
    A,
    #[serde(rename = "AAAA", alias = "aaaa")]
    Aaaa,
    #[serde(rename = "MX", alias = "mx")]
    Mx,
    #[serde(rename = "NS", alias = "ns")]
    Ns,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsSd {
    pub names: Vec<String>,
    #[serde(rename = "type")]
    pub kind: DnsType,
    pub port: Option<u16>,
    pub refresh_interval: Option<Span>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DockerFilter {
    pub name: String,
    pub values: Vec<Text>,
}

with_http!(DockerSd {
    host: String,
    port: Option<u16>,
    filters: Vec<DockerFilter>,
    host_networking_host: Option<String>,
    match_first_network: Option<bool>,
    refresh_interval: Option<Span>,
});

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Node,
    Service,
    Pod,
    Endpoints,
    EndpointSlice,
    Ingress,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Namespaces {
    pub own_namespace: bool,
    pub names: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleSelector {
    pub role: Role,
    #[serde(default)]
    pub label: Option<String>,
    #[serde(default)]
    pub field: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttachMetadata {
    pub node: bool,
    pub namespace: bool,
}

with_http!(KubernetesSd {
    role: Option<Role>,
    api_server: Option<String>,
    kubeconfig_file: Option<Text>,
    namespaces: Namespaces,
    selectors: Vec<RoleSelector>,
    attach_metadata: AttachMetadata,
});

with_discovery!(
    /// One job.
    ScrapeConfig {
    job_name: String,
    honor_labels: bool,
    honor_timestamps: Option<bool>,
    track_timestamps_staleness: bool,
    params: BTreeMap<String, Vec<Text>>,
    scrape_interval: Option<Span>,
    scrape_timeout: Option<Span>,
    scrape_protocols: Option<Vec<String>>,
    fallback_scrape_protocol: Option<String>,
    scrape_native_histograms: Option<bool>,
    always_scrape_classic_histograms: Option<bool>,
    scrape_classic_histograms: Option<bool>,
    convert_classic_histograms_to_nhcb: Option<bool>,
    extra_scrape_metrics: Option<bool>,
    scrape_failure_log_file: Option<PathBuf>,
    metrics_path: Option<String>,
    scheme: Scheme,
    enable_compression: Option<bool>,
    body_size_limit: Option<Size>,
    sample_limit: Option<u64>,
    target_limit: Option<u64>,
    label_limit: Option<u64>,
    label_name_length_limit: Option<u64>,
    label_value_length_limit: Option<u64>,
    keep_dropped_targets: Option<u64>,
    native_histogram_bucket_limit: Option<u64>,
    native_histogram_min_bucket_factor: Option<f64>,
    metric_name_validation_scheme: Option<String>,
    metric_name_escaping_scheme: Option<String>,
    relabel_configs: Vec<RuleConfig>,
    metric_relabel_configs: Vec<RuleConfig>,
});

with_discovery!(
    /// Alertmanagers that are told alike.
    AlertmanagerConfig {
    scheme: Scheme,
    path_prefix: Option<String>,
    timeout: Option<Span>,
    api_version: Option<String>,
    relabel_configs: Vec<RuleConfig>,
    alert_relabel_configs: Vec<RuleConfig>,
    sigv4: Option<Value>,
});

/// Whom alerts are told.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertingConfig {
    pub alert_relabel_configs: Vec<RuleConfig>,
    pub alertmanagers: Vec<AlertmanagerConfig>,
}

/// What jobs inherit.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Global {
    pub scrape_interval: Option<Span>,
    pub scrape_timeout: Option<Span>,
    pub scrape_protocols: Option<Vec<String>>,
    pub scrape_native_histograms: Option<bool>,
    pub always_scrape_classic_histograms: Option<bool>,
    pub convert_classic_histograms_to_nhcb: Option<bool>,
    pub extra_scrape_metrics: Option<bool>,
    pub body_size_limit: Option<Size>,
    pub sample_limit: Option<u64>,
    pub target_limit: Option<u64>,
    pub label_limit: Option<u64>,
    pub label_name_length_limit: Option<u64>,
    pub label_value_length_limit: Option<u64>,
    pub keep_dropped_targets: Option<u64>,
    pub metric_name_validation_scheme: Option<String>,
    pub metric_name_escaping_scheme: Option<String>,
    /// Of rules.
    pub evaluation_interval: Option<Span>,
    /// Of rules.
    pub rule_query_offset: Option<Span>,
    /// What Prometheus adds to all that leaves it: alerts here.
    pub external_labels: BTreeMap<String, Text>,
    pub query_log_file: Option<Value>,
    pub scrape_failure_log_file: Option<PathBuf>,
}

/// A whole Prometheus configuration file: the one place where it is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    pub global: Global,
    pub scrape_configs: Vec<ScrapeConfig>,
    pub scrape_config_files: Vec<String>,
    /// Rules are not the scraper's: whoever evaluates them takes these.
    pub rule_files: Vec<String>,
    pub alerting: Option<AlertingConfig>,
    pub runtime: Option<Value>,
    pub storage: Option<Value>,
    pub tracing: Option<Value>,
    pub otlp: Option<Value>,
    pub remote_write: Option<Value>,
    pub remote_read: Option<Value>,
}

/// Takes out what is empty (`rule_files:` without a value), as Prometheus reads it.
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}
