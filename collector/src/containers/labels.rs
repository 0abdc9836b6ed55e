//! What a container's records and series are labelled with.

use storage::model::Labels;

/// The first of these that a stream has names its service. Source: Loki's default `discover_service_name`.
const SERVICE_LABELS: [&str; 13] = [
    "service",
    "app",
    "application",
    "app_name",
    "name",
    "app_kubernetes_io_name",
    "container",
    "container_name",
    "k8s_container_name",
    "component",
    "workload",
    "job",
    "k8s_job_name",
];

/// Sets `service_name` by Loki's rule, unless it is there.
pub fn add_service_name(labels: &mut Labels) {
    if labels.get("service_name").is_none() {
        let name = SERVICE_LABELS.iter().find_map(|l| labels.get(l)).unwrap_or("unknown_service").to_owned();
        labels.set("service_name", name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_label_of_the_rule_names_the_service() {
        let mut l = Labels::from_pairs([("container", "c"), ("job", "j")]);
        add_service_name(&mut l);
        assert_eq!(l.get("service_name"), Some("c"));
        let mut l = Labels::from_pairs([("node", "n")]);
        add_service_name(&mut l);
        assert_eq!(l.get("service_name"), Some("unknown_service"));
        let mut l = Labels::from_pairs([("service_name", "given"), ("app", "a")]);
        add_service_name(&mut l);
        assert_eq!(l.get("service_name"), Some("given"));
    }
}
