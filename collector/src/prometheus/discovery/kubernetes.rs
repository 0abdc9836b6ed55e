//! `kubernetes_sd_configs`: nodes, services, pods, endpoints, endpoint slices and ingresses, listed once and watched.
//!
//! Every kind of object a role needs is kept whole in memory, without `managedFields`; targets are made anew of all of them
//! whenever something changed ([`super::kubernetes_targets`]). A watch that ends is taken up again from where it was; one
//! the server has forgotten begins with a new list.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ::http::{HeaderMap, HeaderValue, StatusCode, header};
use futures::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{Publisher, TARGETS_MAX, body, kubernetes_targets};
use crate::prometheus::{
    client::{HttpClient, chain},
    config::{HttpConfig, KubernetesSd, Role},
    job::{self, Findings},
};

/// Where a pod finds who it is.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// For one page of a list.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// After which the server ends a watch.
const WATCH_SECONDS: u64 = 300;
const PAGE: usize = 500;
/// Objects of one kind.
const OBJECTS_MAX: usize = 200_000;
/// One line of a watch.
const EVENT_BYTES_MAX: usize = 16 << 20;
/// Changes within this time are taken up at once.
const SETTLE: Duration = Duration::from_millis(200);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Nodes,
    Services,
    Pods,
    Endpoints,
    EndpointSlices,
    Ingresses,
    Namespaces,
}

impl Kind {
    const fn path(self) -> (&'static str, &'static str) {
        match self {
            Kind::Nodes => ("/api/v1", "nodes"),
            Kind::Services => ("/api/v1", "services"),
            Kind::Pods => ("/api/v1", "pods"),
            Kind::Endpoints => ("/api/v1", "endpoints"),
            Kind::EndpointSlices => ("/apis/discovery.k8s.io/v1", "endpointslices"),
            Kind::Ingresses => ("/apis/networking.k8s.io/v1", "ingresses"),
            Kind::Namespaces => ("/api/v1", "namespaces"),
        }
    }

    const fn of(role: Role) -> Kind {
        match role {
            Role::Node => Kind::Nodes,
            Role::Service => Kind::Services,
            Role::Pod => Kind::Pods,
            Role::Endpoints => Kind::Endpoints,
            Role::EndpointSlice => Kind::EndpointSlices,
            Role::Ingress => Kind::Ingresses,
        }
    }
}

/// Objects by namespace and name.
pub(super) type Objects = BTreeMap<(String, String), Value>;

pub struct KubernetesDiscovery {
    role: Role,
    server: Option<String>,
    http: HttpConfig,
    namespaces: Vec<String>,
    own_namespace: bool,
    /// Label and field selectors by kind.
    selectors: Vec<(Kind, Option<String>, Option<String>)>,
    nodes: bool,
    namespace_metadata: bool,
}

/// One kind of object in one namespace, or in all.
struct Watched {
    kind: Kind,
    namespace: Option<String>,
    objects: Mutex<Objects>,
    listed: AtomicBool,
}

impl KubernetesDiscovery {
    pub(in crate::prometheus) fn new(config: &KubernetesSd, folder: &Path, at: &mut Findings<'_>) -> Self {
        if config.role.is_none() {
            at.error("role", "is missing; expected node, service, pod, endpoints, endpointslice or ingress");
        }
        let elsewhere = config.kubeconfig_file.as_ref().is_some_and(|file| !file.0.is_empty());
        at.unsupported("kubeconfig_file", elsewhere, ": set api_server and its credentials");
        if let Some(server) = &config.api_server
            && url::Url::parse(server).is_err()
        {
            at.error("api_server", format!("{server:?} is no address"));
        }
        let selectors = config.selectors.iter().map(|s| (Kind::of(s.role), s.label.clone(), s.field.clone()));
        KubernetesDiscovery {
            role: config.role.unwrap_or(Role::Pod),
            server: config.api_server.as_ref().map(|s| s.trim_end_matches('/').to_owned()),
            http: job::http(config.http(), folder, at),
            namespaces: config.namespaces.names.clone(),
            own_namespace: config.namespaces.own_namespace,
            selectors: selectors.collect(),
            nodes: config.attach_metadata.node,
            namespace_metadata: config.attach_metadata.namespace,
        }
    }

    pub async fn run(&self, publisher: &Publisher) {
        let mut wait = RETRY_FIRST;
        let (client, base, namespaces) = loop {
            match self.connect().await {
                Ok(found) => break found,
                Err(e) => publisher.failed("kubernetes", &e),
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY_LAST);
        };
        let changed = Notify::new();
        let watched = self.watched(&namespaces);
        let mut watches: FuturesUnordered<_> =
            watched.iter().map(|w| self.follow(&client, &base, w, &changed, publisher)).collect();
        loop {
            tokio::select! {
                // They never end.
                _ = watches.next() => {}
                () = changed.notified() => {
                    // The watches go on meanwhile.
                    let settle = sleep(SETTLE);
                    tokio::pin!(settle);
                    loop {
                        tokio::select! {
                            () = &mut settle => break,
                            _ = watches.next() => {}
                        }
                    }
                    if watched.iter().all(|w| w.listed.load(Ordering::Acquire)) {
                        publisher.tell(self.targets(&watched));
                    }
                }
            }
        }
    }

    fn targets(&self, watched: &[Arc<Watched>]) -> Vec<super::TargetGroup> {
        let all = |kind: Kind| {
            let mut out = Objects::new();
            for w in watched.iter().filter(|w| w.kind == kind) {
                out.extend(w.objects.lock().iter().map(|(k, v)| (k.clone(), v.clone())));
            }
            out
        };
        let (nodes, namespaces) = (all(Kind::Nodes), all(Kind::Namespaces));
        let around = kubernetes_targets::Around {
            nodes: self.nodes.then_some(&nodes),
            namespaces: self.namespace_metadata.then_some(&namespaces),
            services: &all(Kind::Services),
            pods: &all(Kind::Pods),
        };
        let mut groups = kubernetes_targets::groups(self.role, &all(Kind::of(self.role)), &around);
        let mut left = TARGETS_MAX;
        for group in &mut groups {
            group.targets.truncate(left);
            left -= group.targets.len();
        }
        groups
    }

    /// What the role needs to know.
    fn watched(&self, namespaces: &[String]) -> Vec<Arc<Watched>> {
        let mut kinds = vec![Kind::of(self.role)];
        if matches!(self.role, Role::Endpoints | Role::EndpointSlice) {
            kinds.extend([Kind::Services, Kind::Pods]);
        }
        let of_pods = matches!(self.role, Role::Endpoints | Role::EndpointSlice | Role::Pod);
        if self.nodes && of_pods {
            kinds.push(Kind::Nodes);
        }
        if self.namespace_metadata && self.role != Role::Node {
            kinds.push(Kind::Namespaces);
        }
        let mut out = Vec::new();
        for kind in kinds {
            let everywhere = matches!(kind, Kind::Nodes | Kind::Namespaces) || namespaces.is_empty();
            let places = if everywhere { vec![None] } else { namespaces.iter().map(|n| Some(n.clone())).collect() };
            out.extend(places.into_iter().map(|namespace| {
                Arc::new(Watched { kind, namespace, objects: Mutex::default(), listed: AtomicBool::new(false) })
            }));
        }
        out
    }

    /// A client, the server's address and the namespaces to look at.
    async fn connect(&self) -> Result<(HttpClient, String, Vec<String>), String> {
        let mut namespaces = self.namespaces.clone();
        if self.own_namespace {
            let file = format!("{ACCOUNT}/namespace");
            let own = tokio::fs::read_to_string(&file).await.map_err(|e| format!("cannot read {file}: {e}"))?;
            namespaces.push(own.trim().to_owned());
        }
        let mut http = self.http.clone();
        let base = match &self.server {
            Some(server) => server.clone(),
            None => {
                let var = |name: &str| {
                    std::env::var(name).map_err(|_| format!("{name} is not set: set api_server outside of a cluster"))
                };
                let (host, port) = (var("KUBERNETES_SERVICE_HOST")?, var("KUBERNETES_SERVICE_PORT")?);
                http.bearer_token_file = Some(format!("{ACCOUNT}/token").into());
                http.tls_config.ca_file = Some(format!("{ACCOUNT}/ca.crt").into());
                format!("https://{}", super::host_port(&host, port))
            }
        };
        // A watch is long: no time limit for a whole answer.
        Ok((HttpClient::make(http, None).await?, base, namespaces))
    }

    fn url(&self, base: &str, watched: &Watched, query: &[(&str, String)]) -> String {
        let (api, resource) = watched.kind.path();
        let namespace = watched.namespace.as_ref().map(|n| format!("/namespaces/{n}")).unwrap_or_default();
        let mut pairs = url::form_urlencoded::Serializer::new(String::new());
        for (kind, label, field) in &self.selectors {
            if *kind == watched.kind {
                pairs.extend_pairs(label.iter().map(|l| ("labelSelector", l)));
                pairs.extend_pairs(field.iter().map(|f| ("fieldSelector", f)));
            }
        }
        for (name, value) in query {
            pairs.append_pair(name, value);
        }
        format!("{base}{api}{namespace}/{resource}?{}", pairs.finish())
    }

    /// Lists and watches one kind for ever.
    async fn follow(
        &self,
        client: &HttpClient,
        base: &str,
        watched: &Watched,
        changed: &Notify,
        publisher: &Publisher,
    ) {
        let mut wait = RETRY_FIRST;
        let mut version: Option<String> = None;
        loop {
            let step = async {
                let from = match &version {
                    Some(version) => version.clone(),
                    None => {
                        let (objects, version) = self.list(client, base, watched).await?;
                        *watched.objects.lock() = objects;
                        watched.listed.store(true, Ordering::Release);
                        changed.notify_one();
                        version
                    }
                };
                self.watch(client, base, watched, from, changed).await
            };
            match step.await {
                Ok(next) => {
                    version = next;
                    wait = RETRY_FIRST;
                }
                Err(e) => {
                    version = None;
                    publisher.failed(watched.kind.path().1, &e);
                    sleep(wait).await;
                    wait = (wait * 2).min(RETRY_LAST);
                }
            }
        }
    }

    /// All objects, and the version from which to watch.
    async fn list(&self, client: &HttpClient, base: &str, watched: &Watched) -> Result<(Objects, String), String> {
        let mut out = Objects::new();
        let mut next = String::new();
        loop {
            let mut query = vec![("limit", PAGE.to_string())];
            if !next.is_empty() {
                query.push(("continue", next));
            }
            let url = self.url(base, watched, &query);
            let page = async { body(client.get(&url, json()).await?).await };
            let bytes =
                timeout(LIST_TIMEOUT, page).await.map_err(|_| format!("no answer within {LIST_TIMEOUT:?}"))??;
            let mut page: Value =
                serde_json::from_slice(&bytes).map_err(|e| format!("a list not understood: {e}"))?;
            if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                for item in items {
                    keep(&mut out, item);
                }
            }
            if out.len() > OBJECTS_MAX {
                return Err(format!("more than {OBJECTS_MAX} objects; name namespaces or selectors"));
            }
            let text = |key: &str| page["metadata"][key].as_str().unwrap_or_default().to_owned();
            next = text("continue");
            if next.is_empty() {
                return Ok((out, text("resourceVersion")));
            }
        }
    }

    /// Follows changes until the server ends the answer: the version to go on from; `None`: list again.
    async fn watch(
        &self,
        client: &HttpClient,
        base: &str,
        watched: &Watched,
        mut version: String,
        changed: &Notify,
    ) -> Result<Option<String>, String> {
        let query = [
            ("watch", "true".to_owned()),
            ("allowWatchBookmarks", "true".to_owned()),
            ("timeoutSeconds", WATCH_SECONDS.to_string()),
            ("resourceVersion", version.clone()),
        ];
        let url = self.url(base, watched, &query);
        let asked = timeout(LIST_TIMEOUT, client.get(&url, json())).await;
        let mut response = asked.map_err(|_| format!("no answer within {LIST_TIMEOUT:?}"))??;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::GONE => return Ok(None),
            status => return Err(format!("server returned HTTP status {status}")),
        }
        let mut buffer: Vec<u8> = Vec::new();
        // Bookmarks come every minute; a server that is silent for much longer than the watch lasts is gone.
        let silence = Duration::from_secs(WATCH_SECONDS + 60);
        loop {
            let chunk = timeout(silence, response.chunk()).await.map_err(|_| "the watch fell silent".to_owned())?;
            let Some(chunk) = chunk.map_err(|e| chain(&e))? else { return Ok(Some(version)) };
            buffer.extend_from_slice(&chunk);
            let mut from = 0;
            while let Some(end) = memchr::memchr(b'\n', &buffer[from..]) {
                let line = &buffer[from..from + end];
                from += end + 1;
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let mut event: Value =
                    serde_json::from_slice(line).map_err(|e| format!("an event not understood: {e}"))?;
                let object = event["object"].take();
                let kind = event["type"].as_str().unwrap_or_default();
                if kind == "ERROR" {
                    return match object["code"].as_u64() {
                        // Too old to go on from.
                        Some(410) => Ok(None),
                        _ => Err(format!("the watch ends: {}", object["message"].as_str().unwrap_or("no reason"))),
                    };
                }
                if let Some(v) = object["metadata"]["resourceVersion"].as_str() {
                    version = v.to_owned();
                }
                match kind {
                    "ADDED" | "MODIFIED" => keep(&mut watched.objects.lock(), object),
                    "DELETED" => drop(watched.objects.lock().remove(&key(&object))),
                    _ => continue,
                }
                changed.notify_one();
            }
            buffer.drain(..from);
            if buffer.len() > EVENT_BYTES_MAX {
                return Err(format!("an event of more than {EVENT_BYTES_MAX} bytes"));
            }
        }
    }
}

fn json() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers
}

fn key(object: &Value) -> (String, String) {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn keep(objects: &mut Objects, mut object: Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    objects.insert(key(&object), object);
}
