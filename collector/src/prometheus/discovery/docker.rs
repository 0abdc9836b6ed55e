//! `docker_sd_configs`: containers by the Docker API, over its socket or HTTP.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};

use ::http::HeaderMap;
use serde::{Deserialize, de::DeserializeOwned};
use storage::model::Labels;

use super::{Publisher, TargetGroup, body, host_port, refresh, sanitize};
use crate::{
    containers::docker_api::socket_get,
    prometheus::{
        client::HttpClient,
        config::{DockerSd, HttpConfig},
        job::{self, Findings},
    },
};

const REFRESH: Duration = Duration::from_secs(60);
/// For one answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Where a container without ports is asked.
const PORT: u16 = 80;

enum Server {
    Socket(PathBuf),
    Http(String),
}

pub struct DockerDiscovery {
    server: Server,
    host: String,
    filters: String,
    port: u16,
    host_networking_host: String,
    first_network: bool,
    refresh: Duration,
    http: HttpConfig,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Container {
    id: String,
    names: Vec<String>,
    labels: Option<BTreeMap<String, String>>,
    host_config: HostConfig,
    network_settings: NetworkSettings,
    ports: Option<Vec<Port>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    network_mode: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSettings {
    networks: Option<BTreeMap<String, Endpoint>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    #[serde(rename = "NetworkID")]
    network_id: String,
    #[serde(rename = "IPAddress")]
    ip: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Port {
    #[serde(rename = "IP")]
    ip: String,
    #[serde(rename = "PrivatePort")]
    private: u16,
    #[serde(rename = "PublicPort")]
    public: u16,
    #[serde(rename = "Type")]
    kind: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Network {
    id: String,
    name: String,
    scope: String,
    internal: bool,
    ingress: bool,
    labels: Option<BTreeMap<String, String>>,
}

impl DockerDiscovery {
    pub(in crate::prometheus) fn new(config: &DockerSd, folder: &Path, at: &mut Findings<'_>) -> DockerDiscovery {
        let host = config.host.trim_end_matches('/');
        let server = match host.split_once("://") {
            Some(("unix", path)) => Server::Socket(path.into()),
            Some(("http" | "https", _)) => Server::Http(host.to_owned()),
            Some(("tcp", rest)) => Server::Http(format!("http://{rest}")),
            _ => {
                at.error("host", format!("{host:?}: expected unix:///path, tcp://, http:// or https://"));
                Server::Http(String::new())
            }
        };
        let mut filters: BTreeMap<&str, BTreeMap<&str, bool>> = BTreeMap::new();
        for filter in &config.filters {
            filters.entry(&filter.name).or_default().extend(filter.values.iter().map(|v| (v.0.as_str(), true)));
        }
        DockerDiscovery {
            server,
            host: host.to_owned(),
            filters: serde_json::to_string(&filters).unwrap_or_default(),
            port: config.port.unwrap_or(PORT),
            host_networking_host: config.host_networking_host.clone().unwrap_or_else(|| "localhost".to_owned()),
            first_network: config.match_first_network.unwrap_or(true),
            refresh: refresh(config.refresh_interval, REFRESH, at),
            http: job::http(config.http(), folder, at),
        }
    }

    pub async fn run(&self, publisher: &Publisher) {
        let mut client = None;
        loop {
            match self.ask(&mut client).await {
                Ok(targets) => publisher.tell(vec![TargetGroup {
                    source: self.host.clone(),
                    labels: Labels::default(),
                    targets,
                }]),
                Err(e) => publisher.failed(&self.host, &e),
            }
            tokio::time::sleep(self.refresh).await;
        }
    }

    async fn ask(&self, client: &mut Option<HttpClient>) -> Result<Vec<Labels>, String> {
        let filters: String = url::form_urlencoded::byte_serialize(self.filters.as_bytes()).collect();
        let containers: Vec<Container> = self.get(client, &format!("/containers/json?filters={filters}")).await?;
        let networks: Vec<Network> = self.get(client, "/networks").await?;
        Ok(self.targets(&containers, &networks))
    }

    async fn get<T: DeserializeOwned>(&self, client: &mut Option<HttpClient>, path: &str) -> Result<T, String> {
        let bytes = match &self.server {
            Server::Socket(socket) => {
                socket_get(socket, path).await.map_err(|e| super::super::client::chain(&e))?.to_vec()
            }
            Server::Http(base) => {
                let client = match client {
                    Some(client) => client,
                    None => client.insert(HttpClient::make(self.http.clone(), Some(TIMEOUT)).await?),
                };
                body(client.get(&format!("{base}{path}"), HeaderMap::new()).await?).await?
            }
        };
        serde_json::from_slice(&bytes).map_err(|e| format!("{path}: an answer not understood: {e}"))
    }

    fn targets(&self, containers: &[Container], networks: &[Network]) -> Vec<Labels> {
        let by_id: HashMap<&str, &Container> = containers.iter().map(|c| (c.id.as_str(), c)).collect();
        let networks: HashMap<&str, &Network> = networks.iter().map(|n| (n.id.as_str(), n)).collect();
        let mut out = Vec::new();
        for c in containers {
            let Some(name) = c.names.first() else { continue };
            let mut common = Labels::from_pairs([
                ("__meta_docker_container_id", &c.id),
                ("__meta_docker_container_name", name),
                ("__meta_docker_container_network_mode", &c.host_config.network_mode),
            ]);
            for (name, value) in c.labels.iter().flatten() {
                common.set(&format!("__meta_docker_container_label_{}", sanitize(name)), value.as_str());
            }
            let joined = joined(c, &by_id);
            for endpoint in joined.values().take(if self.first_network { 1 } else { usize::MAX }) {
                let mut labels = common.clone();
                labels.set("__meta_docker_network_ip", endpoint.ip.as_str());
                if let Some(network) = networks.get(endpoint.network_id.as_str()) {
                    describe(&mut labels, network);
                }
                let before = out.len();
                for port in c.ports.iter().flatten().filter(|p| p.kind == "tcp") {
                    let mut labels = labels.clone();
                    labels.set("__address__", host_port(&endpoint.ip, port.private));
                    labels.set("__meta_docker_port_private", port.private.to_string());
                    if port.public > 0 {
                        labels.set("__meta_docker_port_public", port.public.to_string());
                        labels.set("__meta_docker_port_public_ip", port.ip.as_str());
                    }
                    out.push(labels);
                }
                if out.len() == before {
                    let is_host = c.host_config.network_mode == "host";
                    let address =
                        if is_host { self.host_networking_host.clone() } else { host_port(&endpoint.ip, self.port) };
                    labels.set("__address__", address);
                    out.push(labels);
                }
            }
        }
        out
    }
}

/// The networks of a container, or of the one whose network it shares.
fn joined<'a>(container: &'a Container, by_id: &HashMap<&str, &'a Container>) -> BTreeMap<&'a str, &'a Endpoint> {
    let mut at = container;
    // Containers that share in a circle cannot be started, but may be listed.
    for _ in 0..8 {
        let found: BTreeMap<&str, &Endpoint> =
            at.network_settings.networks.iter().flatten().map(|(n, e)| (n.as_str(), e)).collect();
        let shared = at.host_config.network_mode.strip_prefix("container:").and_then(|id| by_id.get(id));
        match shared {
            Some(other) if found.is_empty() => at = other,
            _ => return found,
        }
    }
    BTreeMap::new()
}

fn describe(labels: &mut Labels, network: &Network) {
    labels.set("__meta_docker_network_id", network.id.as_str());
    labels.set("__meta_docker_network_name", network.name.as_str());
    labels.set("__meta_docker_network_scope", network.scope.as_str());
    labels.set("__meta_docker_network_internal", network.internal.to_string());
    labels.set("__meta_docker_network_ingress", network.ingress.to_string());
    for (name, value) in network.labels.iter().flatten() {
        labels.set(&format!("__meta_docker_network_label_{}", sanitize(name)), value.as_str());
    }
}
