//! Which format is asked for, and which came.

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    Text,
    OpenMetrics,
    Protobuf,
}

/// A format with its version, as `scrape_protocols` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Protobuf,
    Text004,
    Text100,
    OpenMetrics001,
    OpenMetrics100,
}

impl Protocol {
    pub const ALL: [Protocol; 5] = [
        Protocol::Protobuf,
        Protocol::Text004,
        Protocol::Text100,
        Protocol::OpenMetrics001,
        Protocol::OpenMetrics100,
    ];

    /// What Prometheus asks for unless told otherwise.
    pub const DEFAULT: [Protocol; 4] =
        [Protocol::OpenMetrics100, Protocol::OpenMetrics001, Protocol::Text100, Protocol::Text004];

    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Protobuf => "PrometheusProto",
            Protocol::Text004 => "PrometheusText0.0.4",
            Protocol::Text100 => "PrometheusText1.0.0",
            Protocol::OpenMetrics001 => "OpenMetricsText0.0.1",
            Protocol::OpenMetrics100 => "OpenMetricsText1.0.0",
        }
    }

    pub fn parse(name: &str) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|p| p.name() == name)
    }

    pub const fn format(self) -> Format {
        match self {
            Protocol::Protobuf => Format::Protobuf,
            Protocol::Text004 | Protocol::Text100 => Format::Text,
            Protocol::OpenMetrics001 | Protocol::OpenMetrics100 => Format::OpenMetrics,
        }
    }

    const fn media_type(self) -> &'static str {
        match self {
            Protocol::Protobuf => {
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
            }
            Protocol::Text004 => "text/plain;version=0.0.4",
            Protocol::Text100 => "text/plain;version=1.0.0",
            Protocol::OpenMetrics001 => "application/openmetrics-text;version=0.0.1",
            Protocol::OpenMetrics100 => "application/openmetrics-text;version=1.0.0",
        }
    }
}

/// How names that are not `[a-zA-Z_:][a-zA-Z0-9_:]*` shall come, for the versions that know of them.
/// `escaping`: `allow-utf-8`, `underscores`, `dots` or `values`.
pub fn accept(protocols: &[Protocol], escaping: &str) -> String {
    let mut out = String::new();
    let mut weight = Protocol::ALL.len() + 1;
    for protocol in protocols.iter().take(Protocol::ALL.len()) {
        out.push_str(protocol.media_type());
        if matches!(protocol, Protocol::Text100 | Protocol::OpenMetrics100) {
            out.push_str(";escaping=");
            out.push_str(escaping);
        }
        out.push_str(&format!(";q=0.{weight},"));
        weight -= 1;
    }
    out.push_str(&format!("*/*;q=0.{weight}"));
    out
}

/// A `Content-Type` that tells no format we read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("the target sends no Content-Type; set fallback_scrape_protocol for it")]
    Missing,
    #[error("the target sends an unsupported Content-Type {0:?}; set fallback_scrape_protocol for it")]
    Unsupported(String),
}

/// The format of a body by its `Content-Type`. `fallback` counts where that says nothing we know.
pub fn format_of(content_type: Option<&str>, fallback: Option<Protocol>) -> Result<Format, FormatError> {
    let told = content_type.map(str::trim).filter(|t| !t.is_empty());
    let media = told.map(|t| t.split(';').next().unwrap_or("").trim().to_ascii_lowercase());
    let known = match media.as_deref() {
        Some("application/openmetrics-text") => Some(Format::OpenMetrics),
        Some("application/vnd.google.protobuf") => Some(Format::Protobuf),
        Some("text/plain") => Some(Format::Text),
        _ => None,
    };
    match (known.or(fallback.map(Protocol::format)), told) {
        (Some(format), _) => Ok(format),
        (None, None) => Err(FormatError::Missing),
        (None, Some(told)) => Err(FormatError::Unsupported(told.chars().take(100).collect())),
    }
}
