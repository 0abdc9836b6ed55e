//! A small client of the Docker API over a Unix socket: list and inspect, as Docker and Podman serve them.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

use super::{Container, Runtime, runtime_files::CONTAINERS_MAX};
use crate::file_tail::formats::Format;

/// For one request with its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Containers inspected in one refresh; the others have their turn in the next.
const INSPECTS_MAX: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("cannot connect to {socket}")]
    Connect { socket: PathBuf, source: std::io::Error },
    #[error("no answer from {socket} to {path} within {REQUEST_TIMEOUT:?}")]
    Timeout { socket: PathBuf, path: String },
    #[error("{socket} answered {path} with {reason}")]
    Answer { socket: PathBuf, path: String, reason: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    image: String,
    #[serde(default)]
    log_path: Option<String>,
    #[serde(default)]
    config: InspectedConfig,
    #[serde(default)]
    state: InspectedState,
    #[serde(default)]
    host_config: HostConfig,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedState {
    #[serde(default)]
    pid: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    #[serde(default)]
    log_config: LogConfig,
}

#[derive(Default, Deserialize)]
struct LogConfig {
    #[serde(rename = "Type", default)]
    kind: String,
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "Components", default)]
    components: Vec<Component>,
}

#[derive(Deserialize)]
struct Component {
    #[serde(rename = "Name", default)]
    name: String,
}

/// One socket, with what was inspected before.
pub struct DockerApi {
    socket: PathBuf,
    /// Who answers; asked once.
    runtime: Option<Runtime>,
    /// By id: state and names when inspected, and the outcome.
    known: HashMap<String, (String, Vec<String>, Container)>,
}

impl DockerApi {
    pub fn new(socket: PathBuf) -> Self {
        DockerApi { socket, runtime: None, known: HashMap::new() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// All containers. Only those that are new, renamed or in another state are inspected.
    pub async fn containers(&mut self) -> Result<Vec<Container>, ApiError> {
        let runtime = match self.runtime {
            Some(runtime) => runtime,
            None => {
                let version: Version = self.get("/version").await?;
                let podman = version.components.iter().any(|c| c.name.starts_with("Podman"));
                *self.runtime.insert(if podman { Runtime::Podman } else { Runtime::Docker })
            }
        };
        let listed: Vec<Listed> = self.get("/containers/json?all=true").await?;
        let mut known = HashMap::new();
        let mut inspected = 0;
        for l in listed.into_iter().take(CONTAINERS_MAX) {
            let old = self.known.remove(&l.id);
            let fresh = match old {
                Some((state, names, c)) if state == l.state && names == l.names => Some(c),
                _ if inspected < INSPECTS_MAX && l.id.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                    inspected += 1;
                    // Gone between list and inspection, most likely.
                    let answer = self.get::<Inspected>(&format!("/containers/{}/json", l.id)).await;
                    answer
                        .inspect_err(|error| tracing::debug!(%error, "container not inspected"))
                        .ok()
                        .map(|c| container(c, runtime))
                }
                _ => None,
            };
            if let Some(c) = fresh {
                known.insert(l.id, (l.state, l.names, c));
            }
        }
        self.known = known;
        Ok(self.known.values().map(|(_, _, c)| c.clone()).collect())
    }

    async fn get<T: for<'a> Deserialize<'a>>(&self, path: &str) -> Result<T, ApiError> {
        let expired = || ApiError::Timeout { socket: self.socket.clone(), path: path.to_owned() };
        timeout(REQUEST_TIMEOUT, self.ask(path)).await.map_err(|_| expired())?
    }

    async fn ask<T: for<'a> Deserialize<'a>>(&self, path: &str) -> Result<T, ApiError> {
        let body = ask(&self.socket, path).await?;
        serde_json::from_slice(&body).map_err(|e| ApiError::Answer {
            socket: self.socket.clone(),
            path: path.to_owned(),
            reason: format!("a body not understood: {e}"),
        })
    }
}

/// The body of an answer of 200 within [`REQUEST_TIMEOUT`].
pub async fn socket_get(socket: &Path, path: &str) -> Result<Bytes, ApiError> {
    let expired = || ApiError::Timeout { socket: socket.to_owned(), path: path.to_owned() };
    timeout(REQUEST_TIMEOUT, ask(socket, path)).await.map_err(|_| expired())?
}

async fn ask(socket: &Path, path: &str) -> Result<Bytes, ApiError> {
    let wrong = |reason: String| ApiError::Answer { socket: socket.to_owned(), path: path.to_owned(), reason };
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| ApiError::Connect { socket: socket.to_owned(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| wrong(e.to_string()))?;
    // Ends with this set, whatever becomes of the request.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = http::Request::get(path)
        .header(http::header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .map_err(|e| wrong(e.to_string()))?;
    let answer = sender.send_request(request).await.map_err(|e| wrong(e.to_string()))?;
    if answer.status() != http::StatusCode::OK {
        return Err(wrong(format!("status {}", answer.status())));
    }
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
    Ok(body.collect().await.map_err(|e| wrong(e.to_string()))?.to_bytes())
}

fn container(c: Inspected, runtime: Runtime) -> Container {
    // Podman says `json-file` for its one file driver, as Docker's clients expect, and writes the CRI format.
    let format = match (runtime, c.host_config.log_config.kind.as_str()) {
        (Runtime::Podman, "k8s-file" | "json-file") => Some(Format::Cri),
        (_, "json-file") => Some(Format::DockerJson),
        _ => None,
    };
    let path = c.log_path.filter(|p| !p.is_empty()).map(PathBuf::from);
    // A container made of a folder rather than an image has an empty digest.
    let image = c.config.image.filter(|i| !i.is_empty()).unwrap_or(c.image);
    Container {
        name: c.name.trim_start_matches('/').to_owned(),
        image: if image == "sha256:" { String::new() } else { image },
        labels: c.config.labels.unwrap_or_default(),
        runtime,
        logs: path.zip(format).into_iter().collect(),
        pid: u32::try_from(c.state.pid).ok().filter(|p| *p > 0),
        pod: None,
        id: c.id,
    }
}
