//! Stream labels of log records: names made valid, `service_name` found by Loki's rule, limits.

use storage::model::Labels;

use super::{Limits, Reason};

/// Labels that name the service of a stream without `service_name`, first present wins. Source: Loki 3 defaults.
const SERVICE_NAME_FROM: [&str; 13] = [
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

pub const SERVICE_NAME: &str = "service_name";

/// Sets `service_name` where the labels lack it.
pub fn discover_service_name(labels: &mut Labels) {
    if labels.get(SERVICE_NAME).is_none() {
        let found = SERVICE_NAME_FROM.iter().find_map(|n| labels.get(n)).unwrap_or("unknown_service").to_owned();
        labels.set(SERVICE_NAME, found);
    }
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`: other characters become `_`, a leading digit gets `key_`.
pub fn sanitize_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        out.push_str("key_");
    }
    out.extend(name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }));
    out
}

/// The first limit that the labels pass, with Loki's words for it. `service_name` is not counted.
pub fn check_labels(labels: &Labels, limits: &Limits) -> Result<(), (Reason, String)> {
    let shown = || loki_display(labels);
    let count = labels.len() - usize::from(labels.get(SERVICE_NAME).is_some());
    if count > limits.labels_max {
        let message = format!("entry for stream '{}' has {count} label names; limit {}", shown(), limits.labels_max);
        return Err((Reason::TooManyLabels, message));
    }
    for (name, value) in labels.iter() {
        if name.len() > limits.label_name_bytes_max {
            return Err((Reason::LabelTooLong, format!("stream '{}' has label name too long: '{name}'", shown())));
        }
        if value.len() > limits.label_value_bytes_max {
            return Err((Reason::LabelTooLong, format!("stream '{}' has label value too long: '{value}'", shown())));
        }
    }
    Ok(())
}

/// `{a="b", c="d"}` without the `service_name` that we added: what the sender knows as its stream.
pub fn loki_display(labels: &Labels) -> String {
    labels.to_string()
}

/// OTLP severity number of a level word, as the OpenTelemetry log data model maps them; `None`: not a known word.
pub fn severity_number(level: &str) -> Option<i32> {
    const WORDS: [(&str, i32); 19] = [
        ("trace", 1),
        ("trc", 1),
        ("debug", 5),
        ("dbg", 5),
        ("info", 9),
        ("inf", 9),
        ("information", 9),
        ("informational", 9),
        ("notice", 10),
        ("warn", 13),
        ("wrn", 13),
        ("warning", 13),
        ("error", 17),
        ("err", 17),
        ("critical", 18),
        ("crit", 18),
        ("alert", 19),
        ("fatal", 21),
        ("panic", 21),
    ];
    WORDS.into_iter().find(|(w, _)| w.eq_ignore_ascii_case(level)).map(|(_, n)| n)
}

/// `N` bytes from `2 N` hex digits of either case.
pub fn parse_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    hex::decode_to_slice(text, &mut out).ok()?;
    Some(out)
}

/// Whether the text is lower-case hex only, so that [`parse_hex`] loses nothing of it.
pub fn is_canonical_hex(text: &[u8]) -> bool {
    text.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_name_is_found_in_lokis_order() {
        for (pairs, want) in [
            (vec![("app", "a"), ("service", "s")], "s"),
            (vec![("job", "j"), ("container", "c")], "c"),
            (vec![("x", "y")], "unknown_service"),
            (vec![("service_name", "given"), ("app", "a")], "given"),
        ] {
            let mut labels = Labels::from_pairs(pairs);
            discover_service_name(&mut labels);
            assert_eq!(labels.get("service_name"), Some(want));
        }
    }

    #[test]
    fn names_become_valid() {
        assert_eq!(sanitize_name("k8s.pod-name"), "k8s_pod_name");
        assert_eq!(sanitize_name("1a"), "key_1a");
        assert_eq!(sanitize_name("ü"), "_");
    }
}
