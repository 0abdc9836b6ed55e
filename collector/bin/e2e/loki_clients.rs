//! Loki clients as their users have them, from PyPI and npm: every line pushed comes back from `query_range` with its labels.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    client::encode,
    server::Server,
    skip::{node_modules, run, skipped},
};

const LINES: usize = 12;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("collector/bin/e2e").join(name)
}

/// Every line, once, under the labels its client gives it.
fn check(server: &Server, app: &str, line: impl Fn(usize) -> String) {
    let query = encode(&format!("{{app=\"{app}\"}}"));
    let answer = server.get(&format!("/loki/api/v1/query_range?query={query}&limit=1000"));
    let json = answer.json();
    let mut found = Vec::new();
    for stream in json["data"]["result"].as_array().unwrap_or_else(|| panic!("{json}")) {
        for value in stream["values"].as_array().unwrap() {
            found.push((value[1].as_str().unwrap().to_owned(), stream["stream"].clone()));
        }
    }
    assert_eq!(found.len(), LINES, "{app}: {json}");
    for n in 0..LINES {
        let (_, labels) = found.iter().find(|(l, _)| *l == line(n)).unwrap_or_else(|| panic!("{app} {n}: {json}"));
        assert_eq!(labels["part"], (n % 3).to_string(), "{app} {n}");
        assert_eq!(labels["detected_level"], if n % 2 == 0 { "info" } else { "warn" }, "{app} {n}");
    }
}

#[test]
fn lines_of_python_logging_loki_come_back() {
    if run(Command::new("python3").args(["-c", "import logging_loki"])).is_err() {
        return skipped("Loki's client from PyPI", "the package python-logging-loki");
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    let url = format!("http://{}", server.http);
    run(Command::new("python3").arg(script("loki_client.py")).args([&url, "python", &LINES.to_string()])).unwrap();
    check(&server, "python", |n| format!("python line {n} \"quoted\" ü\nsecond"));
}

#[test]
fn lines_of_winston_loki_come_back_from_json_and_protobuf() {
    let modules = match node_modules("loki-clients", &["winston@3", "winston-loki@6"]) {
        Ok(path) => path,
        Err(missing) => return skipped("Loki's client from npm", &missing),
    };
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--no-collect"]);
    let url = format!("http://{}", server.http);
    for form in ["json", "protobuf"] {
        let mut node = Command::new("node");
        node.arg(script("loki_client.js")).args([&url, form, &LINES.to_string(), form]).env("NODE_PATH", &modules);
        run(&mut node).unwrap();
        check(&server, form, |n| format!("node line {n} \"quoted\" ü"));
    }
}
