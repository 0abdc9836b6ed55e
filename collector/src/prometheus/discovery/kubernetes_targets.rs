//! Objects of a Kubernetes API to target groups, with the labels Prometheus gives them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use storage::model::Labels;

use super::{TargetGroup, host_port, kubernetes::Objects, sanitize};
use crate::prometheus::config::Role;

const META: &str = "__meta_kubernetes_";

/// What else is known.
pub(super) struct Around<'a> {
    /// To be told of targets on them.
    pub nodes: Option<&'a Objects>,
    pub namespaces: Option<&'a Objects>,
    pub services: &'a Objects,
    pub pods: &'a Objects,
}

pub(super) fn groups(role: Role, objects: &Objects, around: &Around<'_>) -> Vec<TargetGroup> {
    let group = |object: &Value| match role {
        Role::Node => node(object),
        Role::Service => service(object, around),
        Role::Pod => pod(object, around),
        Role::Endpoints => endpoints(object, around),
        Role::EndpointSlice => endpoint_slice(object, around),
        Role::Ingress => ingress(object, around),
    };
    objects.values().map(group).collect()
}

/// Labels under construction.
#[derive(Clone, Default)]
struct Meta(Labels);

impl Meta {
    fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.set(&format!("{META}{name}"), value);
    }

    fn set_some(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.set(name, value);
        }
    }

    /// `role_label_x`, `role_labelpresent_x`, `role_annotation_x`, `role_annotationpresent_x`.
    fn object(&mut self, role: &str, object: &Value) {
        self.labels(role, object);
        for (name, value) in entries(&object["metadata"]["annotations"]) {
            let name = sanitize(name);
            self.set(&format!("{role}_annotation_{name}"), value);
            self.set(&format!("{role}_annotationpresent_{name}"), "true");
        }
    }

    fn labels(&mut self, role: &str, object: &Value) {
        for (name, value) in entries(&object["metadata"]["labels"]) {
            let name = sanitize(name);
            self.set(&format!("{role}_label_{name}"), value);
            self.set(&format!("{role}_labelpresent_{name}"), "true");
        }
    }

    /// The namespace, and what is known of it where that is wanted.
    fn namespace(&mut self, object: &Value, around: &Around<'_>) {
        let name = namespace(object);
        self.set("namespace", name);
        if let Some(found) = around.namespaces.and_then(|n| n.get(&(String::new(), name.to_owned()))) {
            self.object("namespace", found);
        }
    }

    /// What is known of the node of this name, where that is wanted.
    fn node(&mut self, name: Option<&str>, around: &Around<'_>) {
        let found = name.and_then(|name| around.nodes?.get(&(String::new(), name.to_owned())));
        if let Some(found) = found {
            self.set("node_name", self::name(found));
            self.object("node", found);
        }
    }

    fn target(mut self, address: String) -> Labels {
        self.0.set("__address__", address);
        self.0
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &str)> {
    value.as_object().into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

fn group(role: &str, object: &Value, meta: Meta, targets: Vec<Labels>) -> TargetGroup {
    let source = match namespace(object) {
        "" => format!("{role}/{}", name(object)),
        namespace => format!("{role}/{namespace}/{}", name(object)),
    };
    TargetGroup { source, labels: meta.0, targets }
}

fn of_bool(value: &Value) -> Option<&'static str> {
    value.as_bool().map(|b| if b { "true" } else { "false" })
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64()
}

fn node(object: &Value) -> TargetGroup {
    let mut meta = Meta::default();
    meta.set("node_name", name(object));
    meta.set_some("node_provider_id", object["spec"]["providerID"].as_str());
    meta.object("node", object);
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    for address in items(&object["status"]["addresses"]) {
        if let (Some(kind), Some(at)) = (address["type"].as_str(), address["address"].as_str()) {
            first.entry(kind).or_insert(at);
        }
    }
    let order = ["InternalIP", "InternalDNS", "ExternalIP", "ExternalDNS", "LegacyHostIP", "Hostname"];
    let port = number(&object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]).unwrap_or(0);
    let target = order.iter().find_map(|kind| first.get(kind)).map(|at| {
        let mut target = Meta::default();
        for (kind, at) in &first {
            target.set(&format!("node_address_{}", sanitize(kind)), *at);
        }
        target.0.set("instance", name(object));
        target.target(host_port(at, port))
    });
    group("node", object, meta, target.into_iter().collect())
}

fn service_meta(meta: &mut Meta, object: &Value) {
    meta.set("service_name", name(object));
    meta.object("service", object);
}

fn service(object: &Value, around: &Around<'_>) -> TargetGroup {
    let mut meta = Meta::default();
    meta.namespace(object, around);
    service_meta(&mut meta, object);
    let spec = &object["spec"];
    let kind = spec["type"].as_str().unwrap_or("ClusterIP");
    let mut targets = Vec::new();
    for port in items(&spec["ports"]) {
        let Some(number) = number(&port["port"]) else { continue };
        let mut target = Meta::default();
        target.set_some("service_port_name", port["name"].as_str());
        target.set("service_port_number", number.to_string());
        target.set("service_port_protocol", port["protocol"].as_str().unwrap_or("TCP"));
        target.set("service_type", kind);
        if kind == "ExternalName" {
            target.set_some("service_external_name", spec["externalName"].as_str());
        } else {
            target.set_some("service_cluster_ip", spec["clusterIP"].as_str());
        }
        if kind == "LoadBalancer" {
            target.set_some("service_loadbalancer_ip", spec["loadBalancerIP"].as_str());
        }
        targets.push(target.target(format!("{}.{}.svc:{number}", name(object), namespace(object))));
    }
    group("svc", object, meta, targets)
}

fn pod_meta(meta: &mut Meta, object: &Value) {
    let (spec, status) = (&object["spec"], &object["status"]);
    meta.set("pod_name", name(object));
    meta.set_some("pod_ip", status["podIP"].as_str());
    let ready = items(&status["conditions"]).find(|c| c["type"] == "Ready").and_then(|c| c["status"].as_str());
    meta.set("pod_ready", ready.unwrap_or("unknown").to_lowercase());
    meta.set_some("pod_phase", status["phase"].as_str());
    meta.set_some("pod_node_name", spec["nodeName"].as_str());
    meta.set_some("pod_host_ip", status["hostIP"].as_str());
    meta.set_some("pod_uid", object["metadata"]["uid"].as_str());
    let mut owners = items(&object["metadata"]["ownerReferences"]);
    if let Some(owner) = owners.find(|o| o["controller"] == true) {
        meta.set_some("pod_controller_kind", owner["kind"].as_str());
        meta.set_some("pod_controller_name", owner["name"].as_str());
    }
    meta.object("pod", object);
}

/// Containers, those of the start last, each with whether it is one of these.
fn containers(object: &Value) -> impl Iterator<Item = (&Value, bool)> {
    let spec = &object["spec"];
    items(&spec["containers"]).map(|c| (c, false)).chain(items(&spec["initContainers"]).map(|c| (c, true)))
}

fn port_meta(meta: &mut Meta, port: &Value) {
    meta.set_some("pod_container_port_name", port["name"].as_str());
    meta.set("pod_container_port_number", number(&port["containerPort"]).unwrap_or(0).to_string());
    meta.set("pod_container_port_protocol", port["protocol"].as_str().unwrap_or("TCP"));
}

fn pod(object: &Value, around: &Around<'_>) -> TargetGroup {
    let mut meta = Meta::default();
    let Some(ip) = object["status"]["podIP"].as_str().filter(|ip| !ip.is_empty()) else {
        // Not on the network yet.
        return group("pod", object, meta, Vec::new());
    };
    meta.namespace(object, around);
    pod_meta(&mut meta, object);
    meta.node(object["spec"]["nodeName"].as_str(), around);
    let mut targets = Vec::new();
    for (container, is_init) in containers(object) {
        let statuses = if is_init { "initContainerStatuses" } else { "containerStatuses" };
        let status = items(&object["status"][statuses]).find(|s| s["name"] == container["name"]);
        let mut target = Meta::default();
        target.set_some("pod_container_name", container["name"].as_str());
        target.set_some("pod_container_id", status.and_then(|s| s["containerID"].as_str()));
        target.set_some("pod_container_image", container["image"].as_str());
        target.set("pod_container_init", if is_init { "true" } else { "false" });
        let before = targets.len();
        for port in items(&container["ports"]) {
            let mut target = target.clone();
            port_meta(&mut target, port);
            targets.push(target.target(host_port(ip, number(&port["containerPort"]).unwrap_or(0))));
        }
        if targets.len() == before {
            // Relabelling has to say the port.
            targets.push(target.target(if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }));
        }
    }
    group("pod", object, meta, targets)
}

/// Pods met behind endpoints, with the ports they were met at.
#[derive(Default)]
struct Met<'a>(BTreeMap<(String, String), (&'a Value, BTreeSet<u64>)>);

impl<'a> Met<'a> {
    /// Adds what is known of the pod an address belongs to, and of its container with that port.
    fn pod(&mut self, meta: &mut Meta, reference: &Value, within: &str, port: Option<u64>, around: &Around<'a>) {
        if reference["kind"] != "Pod" {
            return;
        }
        let namespace = reference["namespace"].as_str().unwrap_or(within);
        let key = (namespace.to_owned(), reference["name"].as_str().unwrap_or_default().to_owned());
        let Some(pod) = around.pods.get(&key) else { return };
        pod_meta(meta, pod);
        let seen = &mut self.0.entry(key).or_insert_with(|| (pod, BTreeSet::new())).1;
        seen.extend(port);
        for (container, is_init) in containers(pod) {
            for exposed in items(&container["ports"]) {
                if port.is_some() && number(&exposed["containerPort"]) == port {
                    container_meta(meta, container, exposed, is_init);
                    return;
                }
            }
        }
    }

    /// Targets of the ports of these pods that no endpoint named.
    fn others(self, around: &Around<'_>, targets: &mut Vec<Labels>) {
        for (pod, seen) in self.0.into_values() {
            let Some(ip) = pod["status"]["podIP"].as_str().filter(|ip| !ip.is_empty()) else { continue };
            for (container, is_init) in containers(pod) {
                for port in items(&container["ports"]) {
                    let Some(n) = number(&port["containerPort"]).filter(|n| !seen.contains(n)) else { continue };
                    let mut target = Meta::default();
                    pod_meta(&mut target, pod);
                    container_meta(&mut target, container, port, is_init);
                    target.node(pod["spec"]["nodeName"].as_str(), around);
                    targets.push(target.target(host_port(ip, n)));
                }
            }
        }
    }
}

fn container_meta(meta: &mut Meta, container: &Value, port: &Value, is_init: bool) {
    meta.set_some("pod_container_name", container["name"].as_str());
    meta.set_some("pod_container_image", container["image"].as_str());
    meta.set("pod_container_init", if is_init { "true" } else { "false" });
    port_meta(meta, port);
}

fn endpoints(object: &Value, around: &Around<'_>) -> TargetGroup {
    let mut meta = Meta::default();
    meta.namespace(object, around);
    meta.set("endpoints_name", name(object));
    meta.object("endpoints", object);
    let key = (namespace(object).to_owned(), name(object).to_owned());
    if let Some(service) = around.services.get(&key) {
        service_meta(&mut meta, service);
    }
    let (mut targets, mut met) = (Vec::new(), Met::default());
    for subset in items(&object["subsets"]) {
        for port in items(&subset["ports"]) {
            let Some(n) = number(&port["port"]) else { continue };
            for (list, ready) in [("addresses", "true"), ("notReadyAddresses", "false")] {
                for address in items(&subset[list]) {
                    let Some(ip) = address["ip"].as_str() else { continue };
                    let mut target = Meta::default();
                    target.set_some("endpoint_port_name", port["name"].as_str());
                    target.set("endpoint_port_protocol", port["protocol"].as_str().unwrap_or("TCP"));
                    target.set("endpoint_ready", ready);
                    let reference = &address["targetRef"];
                    target.set_some("endpoint_address_target_kind", reference["kind"].as_str());
                    target.set_some("endpoint_address_target_name", reference["name"].as_str());
                    target.set_some("endpoint_node_name", address["nodeName"].as_str());
                    target.set_some("endpoint_hostname", address["hostname"].as_str());
                    target.node(address["nodeName"].as_str(), around);
                    met.pod(&mut target, reference, namespace(object), Some(n), around);
                    targets.push(target.target(host_port(ip, n)));
                }
            }
        }
    }
    met.others(around, &mut targets);
    group("endpoints", object, meta, targets)
}

fn endpoint_slice(object: &Value, around: &Around<'_>) -> TargetGroup {
    let mut meta = Meta::default();
    meta.namespace(object, around);
    meta.set("endpointslice_name", name(object));
    meta.set_some("endpointslice_address_type", object["addressType"].as_str());
    meta.object("endpointslice", object);
    let service = object["metadata"]["labels"]["kubernetes.io/service-name"].as_str();
    let service = service.and_then(|s| around.services.get(&(namespace(object).to_owned(), s.to_owned())));
    if let Some(service) = service {
        service_meta(&mut meta, service);
    }
    let (mut targets, mut met) = (Vec::new(), Met::default());
    for port in items(&object["ports"]) {
        for endpoint in items(&object["endpoints"]) {
            for address in items(&endpoint["addresses"]).filter_map(Value::as_str) {
                let n = number(&port["port"]);
                let mut target = Meta::default();
                target.set_some("endpointslice_port_name", port["name"].as_str());
                target.set_some("endpointslice_port_protocol", port["protocol"].as_str());
                target.set_some("endpointslice_port_app_protocol", port["appProtocol"].as_str());
                target.set_some("endpointslice_port", n.map(|n| n.to_string()).as_deref());
                let conditions = &endpoint["conditions"];
                for condition in ["ready", "serving", "terminating"] {
                    let name = format!("endpointslice_endpoint_conditions_{condition}");
                    target.set_some(&name, of_bool(&conditions[condition]));
                }
                target.set_some("endpointslice_endpoint_hostname", endpoint["hostname"].as_str());
                target.set_some("endpointslice_endpoint_node_name", endpoint["nodeName"].as_str());
                target.set_some("endpointslice_endpoint_zone", endpoint["zone"].as_str());
                let reference = &endpoint["targetRef"];
                target.set_some("endpointslice_address_target_kind", reference["kind"].as_str());
                target.set_some("endpointslice_address_target_name", reference["name"].as_str());
                target.node(endpoint["nodeName"].as_str(), around);
                met.pod(&mut target, reference, namespace(object), n, around);
                targets.push(target.target(match n {
                    Some(n) => host_port(address, n),
                    None => address.to_owned(),
                }));
            }
        }
    }
    met.others(around, &mut targets);
    group("endpointslice", object, meta, targets)
}

fn ingress(object: &Value, around: &Around<'_>) -> TargetGroup {
    let mut meta = Meta::default();
    meta.namespace(object, around);
    meta.set("ingress_name", name(object));
    meta.set_some("ingress_class_name", object["spec"]["ingressClassName"].as_str());
    meta.object("ingress", object);
    let secured: Vec<&str> =
        items(&object["spec"]["tls"]).flat_map(|t| items(&t["hosts"])).filter_map(Value::as_str).collect();
    let is_secured = |host: &str| {
        secured.iter().any(|s| {
            *s == host || s.strip_prefix("*.").is_some_and(|s| host.split_once('.').is_some_and(|(_, h)| h == s))
        })
    };
    let mut targets = Vec::new();
    for rule in items(&object["spec"]["rules"]) {
        let host = rule["host"].as_str().filter(|h| !h.is_empty()).unwrap_or("*");
        let mut paths: Vec<&str> = items(&rule["http"]["paths"])
            .map(|p| p["path"].as_str().filter(|p| !p.is_empty()).unwrap_or("/"))
            .collect();
        if paths.is_empty() {
            paths.push("/");
        }
        for path in paths {
            let mut target = Meta::default();
            target.set("ingress_scheme", if is_secured(host) { "https" } else { "http" });
            target.set("ingress_host", host);
            target.set("ingress_path", path);
            targets.push(target.target(host.to_owned()));
        }
    }
    group("ingress", object, meta, targets)
}
