//! OTLP metric and attribute names in Prometheus' form. Source: the OpenTelemetry to Prometheus compatibility rules,
//! strategy "underscore escaping with suffixes".

/// What decides the suffixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Counter,
    Gauge,
    Other,
}

const UNITS: [(&str, &str); 28] = [
    ("d", "days"),
    ("h", "hours"),
    ("min", "minutes"),
    ("s", "seconds"),
    ("ms", "milliseconds"),
    ("us", "microseconds"),
    ("ns", "nanoseconds"),
    ("By", "bytes"),
    ("KiBy", "kibibytes"),
    ("MiBy", "mebibytes"),
    ("GiBy", "gibibytes"),
    ("TiBy", "tebibytes"),
    ("KBy", "kilobytes"),
    ("MBy", "megabytes"),
    ("GBy", "gigabytes"),
    ("TBy", "terabytes"),
    ("m", "meters"),
    ("V", "volts"),
    ("A", "amperes"),
    ("J", "joules"),
    ("W", "watts"),
    ("g", "grams"),
    ("Cel", "celsius"),
    ("Hz", "hertz"),
    ("1", ""),
    ("%", "percent"),
    ("bit", "bits"),
    ("k", "kilo"),
];

const PER_UNITS: [(&str, &str); 7] = [
    ("s", "second"),
    ("m", "minute"),
    ("min", "minute"),
    ("h", "hour"),
    ("d", "day"),
    ("w", "week"),
    ("mo", "month"),
];

/// Words of a name: split at everything but letters, digits and `:`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == ':')).filter(|w| !w.is_empty())
}

/// Words of a unit without its annotations: the main ones, and those after `per`.
fn unit_words(unit: &str) -> (Vec<String>, Vec<String>) {
    let (main, per) = unit.split_once('/').map_or((unit, None), |(m, p)| (m, Some(p)));
    // `{requests}` is an annotation, not a unit.
    let bare = |part: &str| if part.contains(['{', '}']) { String::new() } else { part.trim().to_owned() };
    let known = |table: &[(&str, &str)], part: &str| {
        let part = bare(part);
        let mapped = table.iter().find(|(u, _)| *u == part).map_or(part.as_str(), |(_, name)| name);
        words(mapped).map(str::to_owned).collect::<Vec<_>>()
    };
    (known(&UNITS, main), per.map(|p| known(&PER_UNITS, p)).unwrap_or_default())
}

/// The unit in words (`bytes`, `bytes_per_second`); empty: none.
pub fn unit_name(unit: &str) -> String {
    let (mut main, per) = unit_words(unit);
    if !per.is_empty() {
        main.push("per".to_owned());
        main.extend(per);
    }
    main.join("_")
}

/// The family's name; empty when nothing of the given name is left.
pub fn metric_name(name: &str, unit: &str, shape: Shape) -> String {
    let mut tokens: Vec<String> = words(name).map(str::to_owned).collect();
    if tokens.is_empty() {
        return String::new();
    }
    let (main, per) = unit_words(unit);
    let joined = main.join("_");
    if !main.is_empty() && !tokens.contains(&joined) && !main.iter().all(|w| tokens.contains(w)) {
        tokens.extend(main);
    }
    if !per.is_empty() && !per.iter().all(|w| tokens.contains(w)) {
        tokens.push("per".to_owned());
        tokens.extend(per);
    }
    let last = match shape {
        Shape::Counter => Some("total"),
        Shape::Gauge if unit.trim() == "1" => Some("ratio"),
        _ => None,
    };
    if let Some(last) = last {
        tokens.retain(|t| t != last);
        tokens.push(last.to_owned());
    }
    let out = tokens.join("_");
    if out.starts_with(|c: char| c.is_ascii_digit()) { format!("_{out}") } else { out }
}

/// A label's name; empty for an empty key.
pub fn label_name(key: &str) -> String {
    let mut out = super::super::stream::sanitize_name(key);
    if out.starts_with('_') && !out.starts_with("__") {
        out.insert_str(0, "key");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_published_examples() {
        for (name, unit, shape, want) in [
            ("http.server.duration", "ms", Shape::Other, "http_server_duration_milliseconds"),
            ("system.memory.usage", "By", Shape::Gauge, "system_memory_usage_bytes"),
            ("requests", "{req}", Shape::Counter, "requests_total"),
            ("system.network.io", "By", Shape::Counter, "system_network_io_bytes_total"),
            ("cpu.utilization", "1", Shape::Gauge, "cpu_utilization_ratio"),
            ("disk.speed", "By/s", Shape::Gauge, "disk_speed_bytes_per_second"),
            ("jobs_total.done", "", Shape::Counter, "jobs_done_total"),
            ("latency_seconds", "s", Shape::Other, "latency_seconds"),
            ("2xx", "", Shape::Gauge, "_2xx"),
            ("a..b", "{x}/s", Shape::Gauge, "a_b_per_second"),
            ("...", "s", Shape::Gauge, ""),
        ] {
            assert_eq!(metric_name(name, unit, shape), want, "{name} {unit}");
        }
        assert_eq!(unit_name("By/s"), "bytes_per_second");
    }

    #[test]
    fn label_names_are_escaped() {
        for (key, want) in
            [("http.method", "http_method"), ("_foo", "key_foo"), ("1a", "key_1a"), ("__x", "__x"), ("", "")]
        {
            assert_eq!(label_name(key), want);
        }
    }
}
