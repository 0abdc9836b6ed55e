//! Files as people have them for Prometheus, taken as they are: what we do not do is named with its place, all else works.

use super::{Config, ConfigError, check};
use crate::cli::ServeArgs;

/// Places and paths of what is named.
fn named(text: &str, file: &str) -> Vec<String> {
    let warnings = check(text, file).unwrap_or_else(|e| panic!("{file}: {:#?}", e.0));
    let prefix = format!("{file}:");
    let short = |w: &String| {
        w.strip_prefix(&prefix)
            .and_then(|w| w.split_once(": "))
            .map(|(at, rest)| format!("{at} {}", rest.split(": ").next().unwrap_or_default()))
    };
    warnings.iter().map(|w| short(w).unwrap_or_else(|| panic!("no place in {w}"))).collect()
}

#[test]
fn files_of_prometheus_are_taken_and_what_is_left_out_is_named() {
    let cases: [(&str, usize, &str, &[&str]); 5] = [
        ("kubernetes.yml", 2, include_str!("prometheus_files/kubernetes.yml"), &["9:1 runtime", "127:1 storage"]),
        (
            "docker.yml",
            3,
            include_str!("prometheus_files/docker.yml"),
            &["19:5 scrape_configs[1].dockerswarm_sd_configs", "23:5 scrape_configs[2].ec2_sd_configs"],
        ),
        (
            "remote.yml",
            1,
            include_str!("prometheus_files/remote.yml"),
            &["3:3 global.query_log_file", "10:1 remote_write", "22:1 remote_read"],
        ),
        (
            "alerting.yml",
            0,
            include_str!("prometheus_files/alerting.yml"),
            &[
                "11:7 alerting.alertmanagers[2].consul_sd_configs",
                "12:7 alerting.alertmanagers[3].sigv4",
                "14:28 rule_files[1]",
            ],
        ),
        (
            "sections.yml",
            0,
            include_str!("prometheus_files/sections.yml"),
            &["2:1 storage", "5:1 tracing", "6:1 otlp"],
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, jobs, text, want) in cases {
        assert_eq!(named(text, name), want, "{name}");
        // What `sightline --prometheus-config` does with it.
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let args = ServeArgs { prometheus_config: Some(path), ..ServeArgs::default() };
        let config = Config::load(&args).unwrap_or_else(|e| panic!("{name}: {:#?}", e.0));
        assert_eq!(config.scraped("prometheus").map(<[_]>::len), Some(jobs), "{name}");
        assert_eq!(config.warnings.len(), want.len(), "{name}: {:#?}", config.warnings);
    }
}

#[test]
fn slips_are_told_with_their_place_and_the_name_that_was_meant() {
    let text = "global:\n  scrape_intervall: 15s\n  external_label: {a: b}\nscrape_configs:\n  - job_name: a\n    static_configs:\n      \
                - target: ['x:1']\n    kubernetes_sd_configs:\n      - role: endpoint\n    relabel_configs:\n      \
                - source_label: [a]\n        action: kep\n    honor_labels: maybe\n    sample_limit: many\n  \
                - job_nam: b\n    scrape_interval: 15\n    static_configs: {targets: [a]}\nalerting:\n  alertmanager: []\n";
    let ConfigError(lines) = check(text, "p.yml").unwrap_err();
    let want = [
        "2:3: global.scrape_intervall: unknown field `scrape_intervall`, did you mean `scrape_interval`?",
        "3:3: global.external_label: unknown field `external_label`, did you mean `external_labels`?",
        "7:9: scrape_configs[0].static_configs[0].target: unknown field `target`, did you mean `targets`?",
        "9:15: scrape_configs[0].kubernetes_sd_configs[0].role: unknown variant `endpoint`, did you mean `endpoints`?",
        "11:9: scrape_configs[0].relabel_configs[0].source_label: unknown field `source_label`, did you mean `source_labels`?",
        "12:17: scrape_configs[0].relabel_configs[0].action: unknown variant `kep`, did you mean `keep`?",
        "13:19: scrape_configs[0].honor_labels: invalid type: string \"maybe\", expected a boolean",
        "14:19: scrape_configs[0].sample_limit: invalid type: string \"many\", expected a whole number",
        "15:5: scrape_configs[1].job_nam: unknown field `job_nam`, did you mean `job_name`?",
        "16:22: scrape_configs[1].scrape_interval: invalid duration \"15\"",
        "17:21: scrape_configs[1].static_configs: invalid type: map, expected a list",
        "19:3: alerting.alertmanager: unknown field `alertmanager`, did you mean `alertmanagers`?",
    ];
    assert_eq!(lines.len(), want.len(), "{lines:#?}");
    for (line, want) in lines.iter().zip(want) {
        let (start, end) =
            want.split_once(", did").map_or((want, ""), |(start, _)| (start, &want[start.len() + 2..]));
        assert!(line.starts_with(&format!("p.yml:{start}")) && line.ends_with(end), "{line}\nwanted {want}");
        assert!(line.len() < 400, "{line}");
    }
}
