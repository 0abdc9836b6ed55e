//! Discoveries against scripted servers and files.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State},
    response::IntoResponse as _,
    routing::get,
};
use futures::StreamExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use storage::model::Labels;
use tokio::{net::TcpListener, sync::broadcast, task::JoinSet, time::timeout};

use super::{Discovery, Feed, Publisher, TargetGroup};
use crate::prometheus::{counters::Counters, tests::a_job};

/// Discoveries of a job at work.
struct Running {
    feed: Arc<Feed>,
    counters: Arc<Counters>,
    tasks: JoinSet<()>,
}

impl Running {
    fn start(config: &str) -> Running {
        let job = a_job(config);
        let (feed, counters) = (Arc::new(Feed::new(job.discovery.len())), Arc::<Counters>::default());
        let mut tasks = JoinSet::new();
        for (i, discovery) in job.discovery.iter().enumerate() {
            let publisher = Publisher::new(feed.clone(), i, "j", counters.clone());
            let discovery: Discovery = discovery.clone();
            tasks.spawn(async move { discovery.run(publisher).await });
        }
        Running { feed, counters, tasks }
    }

    fn targets(&self) -> Vec<Labels> {
        let merged = |g: &TargetGroup| {
            let all = |t: &Labels| {
                let mut out = g.labels.clone();
                t.iter().for_each(|(n, v)| out.set(n, v));
                out
            };
            g.targets.iter().map(all).collect::<Vec<_>>()
        };
        let mut out: Vec<Labels> =
            self.feed.groups().iter().flat_map(|g| g.iter().flat_map(merged).collect::<Vec<_>>()).collect();
        out.sort();
        out
    }

    fn addresses(&self) -> Vec<String> {
        let mut out: Vec<String> =
            self.targets().iter().map(|t| t.get("__address__").unwrap_or("").to_owned()).collect();
        out.sort();
        out
    }

    /// Waits for exactly these.
    async fn until(&self, want: &[&str]) {
        let waiting = async {
            while self.addresses() != want {
                let _ = timeout(Duration::from_millis(200), self.feed.changed()).await;
            }
        };
        if timeout(Duration::from_secs(20), waiting).await.is_err() {
            panic!("wanted {want:?}, got {:?}", self.addresses());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

#[tokio::test]
async fn files_are_read_again_when_they_change_and_kept_while_they_are_broken() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("a.yml"), "- targets: ['b:1', a:1]\n  labels: {zone: eu, port: 9}\n").unwrap();
    let config = format!(
        r#""file_sd_configs":[{{"files":["{}/*.yml","{}/x.json"]}}]"#,
        dir.path().display(),
        dir.path().display()
    );
    let running = Running::start(&config);
    running.until(&["a:1", "b:1"]).await;
    let labels = &running.targets()[0];
    assert_eq!((labels.get("zone"), labels.get("port")), (Some("eu"), Some("9")));
    assert_eq!(labels.get("__meta_filepath"), Some(at("a.yml").to_str().unwrap()));
    // A new file appears under another name and is renamed, as configuration managers do it.
    std::fs::write(at("x.tmp"), r#"[{"targets":["c:1"]}]"#).unwrap();
    std::fs::rename(at("x.tmp"), at("x.json")).unwrap();
    running.until(&["a:1", "b:1", "c:1"]).await;
    std::fs::write(at("a.yml"), "- targets: [d:1\n").unwrap();
    std::fs::write(at("x.json"), r#"[{"targets":["e:1"]}]"#).unwrap();
    running.until(&["a:1", "b:1", "e:1"]).await;
    assert!(running.counters.discovery_failures.load(std::sync::atomic::Ordering::Relaxed) > 0);
    std::fs::remove_file(at("a.yml")).unwrap();
    running.until(&["e:1"]).await;
}

async fn serve(router: Router, tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}")
}

#[tokio::test]
async fn groups_over_http_stay_while_the_server_fails() {
    let answer = Arc::new(Mutex::new(Ok(json!([{"targets": ["a:1"], "labels": {"x": "y"}}]))));
    let told = answer.clone();
    let handler = move |headers: http::HeaderMap| async move {
        assert!(headers["authorization"].to_str().unwrap().starts_with("Basic dTpw"));
        assert_eq!(headers["x-prometheus-refresh-interval-seconds"], "0.05");
        match told.lock().clone() {
            Ok(value) => Json::<Value>(value).into_response(),
            Err(status) => http::StatusCode::into_response(status),
        }
    };
    let mut tasks = JoinSet::new();
    let url = serve(Router::new().route("/sd", get(handler)), &mut tasks).await;
    let config = format!(
        r#""http_sd_configs":[{{"url":"{url}/sd","refresh_interval":"50ms","basic_auth":{{"username":"u","password":"p"}}}}]"#
    );
    let running = Running::start(&config);
    running.until(&["a:1"]).await;
    assert_eq!(running.targets()[0].get("__meta_url"), Some(format!("{url}/sd").as_str()));
    *answer.lock() = Err(http::StatusCode::BAD_GATEWAY);
    let failures = || running.counters.discovery_failures.load(std::sync::atomic::Ordering::Relaxed);
    while failures() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(running.addresses(), ["a:1"]);
    // No list of groups is a failure as well.
    let before = failures();
    *answer.lock() = Ok(json!([{"targets": ["b:1"], "label": {}}]));
    while failures() < before + 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(running.addresses(), ["a:1"]);
    *answer.lock() = Ok(json!([{"targets": ["b:1"]}, {"targets": ["c:1"], "labels": {"x": "z"}}]));
    running.until(&["b:1", "c:1"]).await;
    *answer.lock() = Ok(json!([]));
    running.until(&[]).await;
}

#[tokio::test]
async fn names_resolve_to_addresses() {
    let running = Running::start(r#""dns_sd_configs":[{"names":["localhost"],"type":"A","port":9100}]"#);
    running.until(&["127.0.0.1:9100"]).await;
    assert_eq!(running.targets()[0].get("__meta_dns_name"), Some("localhost"));
    // A name that is none takes nothing from the others.
    let long = "x".repeat(64);
    let names = format!(r#""dns_sd_configs":[{{"names":["{long}","localhost"],"type":"A","port":1}}]"#);
    let running = Running::start(&names);
    running.until(&["127.0.0.1:1"]).await;
    assert_eq!(running.counters.discovery_failures.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn containers_stay_while_docker_fails_and_go_when_they_are_gone() {
    let of = |ids: &[u8]| {
        let one = |n: &u8| {
            json!({"Id": format!("c{n}"), "Names": [format!("/c{n}")], "HostConfig": {"NetworkMode": "net"},
                "NetworkSettings": {"Networks": {"b": {"NetworkID": "n2", "IPAddress": "10.1.0.9"},
                    "a": {"NetworkID": "n1", "IPAddress": format!("10.0.0.{n}")}}}})
        };
        Ok(Value::Array(ids.iter().map(one).collect()))
    };
    let answer = Arc::new(Mutex::new(of(&[1, 2])));
    let told = answer.clone();
    let list = move || async move {
        match told.lock().clone() {
            Ok(value) => Json::<Value>(value).into_response(),
            Err(status) => http::StatusCode::into_response(status),
        }
    };
    let router =
        Router::new().route("/containers/json", get(list)).route("/networks", get(|| async { Json(json!([])) }));
    let mut tasks = JoinSet::new();
    let url = serve(router, &mut tasks).await;
    let start = |more: &str| {
        Running::start(&format!(
            r#""docker_sd_configs":[{{"host":"{url}","port":9,"refresh_interval":"50ms"{more}}}]"#
        ))
    };
    let running = start("");
    running.until(&["10.0.0.1:9", "10.0.0.2:9"]).await;
    start(r#","match_first_network":false"#).until(&["10.0.0.1:9", "10.0.0.2:9", "10.1.0.9:9", "10.1.0.9:9"]).await;
    *answer.lock() = Err(http::StatusCode::INTERNAL_SERVER_ERROR);
    while running.counters.discovery_failures.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(running.addresses(), ["10.0.0.1:9", "10.0.0.2:9"]);
    *answer.lock() = of(&[2, 3]);
    running.until(&["10.0.0.2:9", "10.0.0.3:9"]).await;
}

#[tokio::test]
async fn containers_become_a_target_for_each_port() {
    let containers = json!([
        {"Id": "c1", "Names": ["/web"], "Labels": {"com.x/y": "z"}, "HostConfig": {"NetworkMode": "net"},
         "NetworkSettings": {"Networks": {"net": {"NetworkID": "n1", "IPAddress": "10.0.0.2"}}},
         "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                   {"PrivatePort": 53, "Type": "udp"}, {"PrivatePort": 90, "Type": "tcp"}]},
        {"Id": "c2", "Names": ["/side"], "HostConfig": {"NetworkMode": "container:c1"}, "NetworkSettings": {"Networks": {}}, "Ports": []},
        {"Id": "c3", "Names": ["/agent"], "HostConfig": {"NetworkMode": "host"},
         "NetworkSettings": {"Networks": {"host": {"NetworkID": "n2", "IPAddress": ""}}}}
    ]);
    let networks = json!([{"Id": "n1", "Name": "net", "Scope": "local", "Internal": false, "Ingress": false, "Labels": {"a": "b"}}]);
    let filters = Arc::new(Mutex::new(String::new()));
    let asked = filters.clone();
    let list = move |Query(query): Query<BTreeMap<String, String>>| async move {
        *asked.lock() = query["filters"].clone();
        Json(containers)
    };
    let router =
        Router::new().route("/containers/json", get(list)).route("/networks", get(|| async { Json(networks) }));
    let mut tasks = JoinSet::new();
    let url = serve(router, &mut tasks).await;
    let running = Running::start(&format!(
        r#""docker_sd_configs":[{{"host":"{url}","filters":[{{"name":"label","values":["a","b"]}}]}}]"#
    ));
    running.until(&["10.0.0.2:80", "10.0.0.2:80", "10.0.0.2:90", "localhost"]).await;
    assert_eq!(*filters.lock(), r#"{"label":{"a":true,"b":true}}"#);
    let all = running.targets();
    let web = all.iter().find(|t| t.get("__meta_docker_port_public").is_some()).unwrap();
    for (name, value) in [
        ("container_id", "c1"),
        ("container_name", "/web"),
        ("container_label_com_x_y", "z"),
        ("container_network_mode", "net"),
        ("network_id", "n1"),
        ("network_name", "net"),
        ("network_ip", "10.0.0.2"),
        ("network_scope", "local"),
        ("network_internal", "false"),
        ("network_label_a", "b"),
        ("port_private", "80"),
        ("port_public", "8080"),
        ("port_public_ip", "0.0.0.0"),
    ] {
        assert_eq!(web.get(&format!("__meta_docker_{name}")), Some(value), "{name}");
    }
}

/// A Kubernetes API of a few objects: lists them in pages of one, and passes on what a test sends to its watches.
#[derive(Clone)]
struct Cluster {
    lists: Arc<BTreeMap<&'static str, Vec<Value>>>,
    events: broadcast::Sender<(&'static str, Value)>,
    asked: Arc<Mutex<Vec<String>>>,
}

async fn kubernetes(
    State(c): State<Cluster>,
    uri: http::Uri,
    Query(query): Query<BTreeMap<String, String>>,
) -> axum::response::Response {
    c.asked.lock().push(uri.to_string());
    let Some((kind, items)) = c.lists.iter().find(|(k, _)| uri.path().ends_with(*k)) else {
        return http::StatusCode::NOT_FOUND.into_response();
    };
    if query.contains_key("watch") {
        assert_eq!(query["resourceVersion"], "7");
        let (kind, events) = (*kind, c.events.subscribe());
        let lines = futures::stream::unfold(events, move |mut events| async move {
            loop {
                match events.recv().await {
                    Ok((of, event)) if of == kind => {
                        return Some((Ok::<_, std::io::Error>(format!("{event}\n")), events));
                    }
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        });
        return Body::from_stream(lines.boxed()).into_response();
    }
    let at: usize = query.get("continue").map_or(0, |n| n.parse().unwrap());
    let more = if at + 1 < items.len() { (at + 1).to_string() } else { String::new() };
    let page: Vec<&Value> = items.iter().skip(at).take(1).collect();
    Json(json!({"metadata": {"resourceVersion": "7", "continue": more}, "items": page})).into_response()
}

fn a_pod(name: &str, ip: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "ns", "uid": "u1", "resourceVersion": "8", "labels": {"app.kubernetes.io/name": "web"},
                     "annotations": {"prometheus.io/scrape": "true"}, "managedFields": [{"x": 1}],
                     "ownerReferences": [{"kind": "ReplicaSet", "name": "rs", "controller": true}]},
        "spec": {"nodeName": "n1", "containers": [
            {"name": "app", "image": "img:1", "ports": [{"name": "metrics", "containerPort": 9100, "protocol": "TCP"}, {"containerPort": 9200}]},
            {"name": "bare", "image": "img:2"}], "initContainers": [{"name": "init", "image": "img:3"}]},
        "status": {"phase": "Running", "podIP": ip, "hostIP": "192.0.2.1", "conditions": [{"type": "Ready", "status": "True"}],
                   "containerStatuses": [{"name": "app", "containerID": "containerd://1"}]}
    })
}

async fn cluster(tasks: &mut JoinSet<()>) -> (Cluster, String) {
    let node = json!({"metadata": {"name": "n1", "labels": {"zone": "a"}}, "spec": {"providerID": "p"},
        "status": {"addresses": [{"type": "Hostname", "address": "host"}, {"type": "InternalIP", "address": "192.0.2.1"}],
                   "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}});
    let service = json!({"metadata": {"name": "web", "namespace": "ns", "labels": {"tier": "front"}},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}});
    let target = json!({"kind": "Pod", "name": "p1", "namespace": "ns"});
    let endpoints = json!({"metadata": {"name": "web", "namespace": "ns"}, "subsets": [{
        "addresses": [{"ip": "10.1.0.1", "nodeName": "n1", "targetRef": target}],
        "notReadyAddresses": [{"ip": "10.1.0.9", "hostname": "late"}],
        "ports": [{"name": "metrics", "port": 9100, "protocol": "TCP"}]}]});
    let slice = json!({"metadata": {"name": "web-x", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "metrics", "port": 9100, "protocol": "TCP", "appProtocol": "http"}],
        "endpoints": [{"addresses": ["10.1.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false},
                       "nodeName": "n1", "zone": "a", "targetRef": target}]});
    let ingress = json!({"metadata": {"name": "in", "namespace": "ns"}, "spec": {"ingressClassName": "nginx",
        "tls": [{"hosts": ["a.org"]}],
        "rules": [{"host": "a.org", "http": {"paths": [{"path": "/x"}, {}]}}, {"host": "b.org"}]}});
    let lists = BTreeMap::from([
        ("/nodes", vec![node]),
        ("/services", vec![service]),
        ("/pods", vec![a_pod("p1", "10.1.0.1"), a_pod("p2", "10.1.0.2"), a_pod("pending", "")]),
        ("/endpoints", vec![endpoints]),
        ("/endpointslices", vec![slice]),
        ("/ingresses", vec![ingress]),
    ]);
    let cluster = Cluster { lists: Arc::new(lists), events: broadcast::channel(16).0, asked: Arc::default() };
    let url = serve(Router::new().fallback(kubernetes).with_state(cluster.clone()), tasks).await;
    (cluster, url)
}

#[track_caller]
fn has(labels: &Labels, want: &[(&str, &str)]) {
    for (name, value) in want {
        let full = format!("__meta_kubernetes_{name}");
        assert_eq!(labels.get(&full), Some(*value), "{full} in {labels}");
    }
}

#[tokio::test]
async fn pods_are_listed_in_pages_and_followed() {
    let mut tasks = JoinSet::new();
    let (cluster, url) = cluster(&mut tasks).await;
    let running = Running::start(&format!(
        r#""kubernetes_sd_configs":[{{"role":"pod","api_server":"{url}","namespaces":{{"names":["ns"]}},
            "selectors":[{{"role":"pod","label":"app=web"}}],"attach_metadata":{{"node":true}}}}]"#
    ));
    let of = |ip: &str| [ip.to_owned(), ip.to_owned(), format!("{ip}:9100"), format!("{ip}:9200")];
    let both: Vec<String> = [of("10.1.0.1"), of("10.1.0.2")].concat();
    running.until(&both.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let asked = cluster.asked.lock().clone();
    assert!(
        asked.iter().any(|u| u.starts_with("/api/v1/namespaces/ns/pods?labelSelector=app%3Dweb&limit=500")),
        "{asked:?}"
    );
    let all = running.targets();
    let app = all.iter().find(|t| t.get("__address__") == Some("10.1.0.1:9100")).unwrap();
    has(
        app,
        &[
            ("namespace", "ns"),
            ("pod_name", "p1"),
            ("pod_ip", "10.1.0.1"),
            ("pod_ready", "true"),
            ("pod_phase", "Running"),
            ("pod_node_name", "n1"),
            ("pod_host_ip", "192.0.2.1"),
            ("pod_uid", "u1"),
            ("pod_controller_kind", "ReplicaSet"),
            ("pod_controller_name", "rs"),
            ("pod_label_app_kubernetes_io_name", "web"),
            ("pod_labelpresent_app_kubernetes_io_name", "true"),
            ("pod_annotation_prometheus_io_scrape", "true"),
            ("pod_annotationpresent_prometheus_io_scrape", "true"),
            ("pod_container_name", "app"),
            ("pod_container_id", "containerd://1"),
            ("pod_container_image", "img:1"),
            ("pod_container_init", "false"),
            ("pod_container_port_name", "metrics"),
            ("pod_container_port_number", "9100"),
            ("pod_container_port_protocol", "TCP"),
            ("node_name", "n1"),
            ("node_label_zone", "a"),
        ],
    );
    // The watch begins once the list is there; a change before that would be lost here.
    while !cluster.asked.lock().iter().any(|u| u.contains("/pods?") && u.contains("watch=true")) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while cluster.events.receiver_count() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.events.send(("/pods", json!({"type": "DELETED", "object": a_pod("p1", "10.1.0.1")}))).unwrap();
    cluster.events.send(("/pods", json!({"type": "MODIFIED", "object": a_pod("pending", "10.1.0.3")}))).unwrap();
    let then: Vec<String> = [of("10.1.0.2"), of("10.1.0.3")].concat();
    running.until(&then.iter().map(String::as_str).collect::<Vec<_>>()).await;
    // The server has forgotten where we were: everything is listed again.
    cluster.events.send(("/pods", json!({"type": "ERROR", "object": {"code": 410}}))).unwrap();
    running.until(&both.iter().map(String::as_str).collect::<Vec<_>>()).await;
    // A watch that fails takes no target away.
    while running.counters.discovery_failures.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        let event = json!({"type": "ERROR", "object": {"code": 500, "message": "ill"}});
        cluster.events.send(("/pods", event)).unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(running.addresses(), both);
}

#[tokio::test]
async fn every_role_gives_the_labels_of_prometheus() {
    let mut tasks = JoinSet::new();
    let (_cluster, url) = cluster(&mut tasks).await;
    let of = |role: &str| {
        Running::start(&format!(r#""kubernetes_sd_configs":[{{"role":"{role}","api_server":"{url}"}}]"#))
    };
    let running = of("node");
    running.until(&["192.0.2.1:10250"]).await;
    let node = &running.targets()[0];
    assert_eq!(node.get("instance"), Some("n1"));
    has(
        node,
        &[
            ("node_name", "n1"),
            ("node_provider_id", "p"),
            ("node_address_InternalIP", "192.0.2.1"),
            ("node_address_Hostname", "host"),
        ],
    );
    let running = of("service");
    running.until(&["web.ns.svc:80"]).await;
    has(
        &running.targets()[0],
        &[
            ("service_name", "web"),
            ("service_label_tier", "front"),
            ("service_port_name", "http"),
            ("service_port_number", "80"),
            ("service_port_protocol", "TCP"),
            ("service_type", "ClusterIP"),
            ("service_cluster_ip", "10.96.0.1"),
        ],
    );
    let running = of("endpoints");
    // The pod's other port comes beside those the endpoints name.
    running.until(&["10.1.0.1:9100", "10.1.0.1:9200", "10.1.0.9:9100"]).await;
    let all = running.targets();
    has(
        &all[0],
        &[
            ("endpoints_name", "web"),
            ("service_label_tier", "front"),
            ("endpoint_port_name", "metrics"),
            ("endpoint_port_protocol", "TCP"),
            ("endpoint_ready", "true"),
            ("endpoint_address_target_kind", "Pod"),
            ("endpoint_address_target_name", "p1"),
            ("endpoint_node_name", "n1"),
            ("pod_name", "p1"),
            ("pod_container_name", "app"),
            ("pod_container_port_number", "9100"),
        ],
    );
    has(&all[1], &[("pod_container_port_number", "9200"), ("service_name", "web")]);
    has(&all[2], &[("endpoint_ready", "false"), ("endpoint_hostname", "late")]);
    let running = of("endpointslice");
    running.until(&["10.1.0.1:9100", "10.1.0.1:9200"]).await;
    has(
        &running.targets()[0],
        &[
            ("endpointslice_name", "web-x"),
            ("endpointslice_address_type", "IPv4"),
            ("endpointslice_port", "9100"),
            ("endpointslice_port_name", "metrics"),
            ("endpointslice_port_app_protocol", "http"),
            ("endpointslice_endpoint_conditions_ready", "true"),
            ("endpointslice_endpoint_conditions_terminating", "false"),
            ("endpointslice_endpoint_zone", "a"),
            ("endpointslice_address_target_name", "p1"),
            ("service_name", "web"),
            ("pod_name", "p1"),
        ],
    );
    let running = of("ingress");
    running.until(&["a.org", "a.org", "b.org"]).await;
    let all = running.targets();
    has(
        &all[0],
        &[
            ("ingress_name", "in"),
            ("ingress_class_name", "nginx"),
            ("ingress_scheme", "https"),
            ("ingress_host", "a.org"),
        ],
    );
    has(&all[2], &[("ingress_scheme", "http"), ("ingress_path", "/")]);
}

#[test]
fn paths_start_from_the_folder_of_the_file() {
    let found =
        crate::prometheus::tests::checked(r#"{"job_name":"j","file_sd_configs":[{"files":["t/*.json","x.txt"]}]}"#);
    assert!(found.errors[0].message.contains("does not end in"), "{:?}", found.errors);
    assert_eq!(found.errors[0].path, "scrape_configs[0].file_sd_configs[0].files[1]");
    let Discovery::File(file) = &found.jobs[0].discovery[0] else { panic!() };
    assert!(format!("{file:?}").contains(Path::new("/etc/prometheus/t/*.json").to_str().unwrap()));
}
