//! The OpenTelemetry SDKs for Python and JavaScript, as their users have them, over gRPC and over HTTP: every record comes back through the
//! three read APIs with its values.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::{
    client::encode,
    server::Server,
    skip::{node_modules, skipped},
};

const PACKAGES: [&str; 3] =
    ["opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-grpc", "opentelemetry-exporter-otlp-proto-http"];

/// A Python with the SDK: the machine's, else one set up beside the build.
fn python() -> Result<PathBuf, String> {
    let has_sdk = |python: &Path| {
        let imports = "import opentelemetry.exporter.otlp.proto.http, opentelemetry.exporter.otlp.proto.grpc, opentelemetry.sdk._logs";
        Command::new(python).args(["-c", imports]).output().is_ok_and(|o| o.status.success())
    };
    let run = |command: &mut Command| match command.output() {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim_end())),
        Err(e) => Err(format!("{command:?}: {e}")),
    };
    if has_sdk(Path::new("python3")) {
        return Ok("python3".into());
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("opentelemetry-sdk");
    let python = folder.join("bin/python3");
    if !has_sdk(&python) {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        run(Command::new(&python)
            .args(["-m", "pip", "install", "-q", "--disable-pip-version-check"])
            .args(PACKAGES))?;
    }
    Ok(python)
}

/// The parts that are not declared stable by now change between their versions.
const MODULES: [&str; 12] = [
    "@opentelemetry/api@1",
    "@opentelemetry/api-logs@0.223",
    "@opentelemetry/resources@2",
    "@opentelemetry/sdk-logs@0.223",
    "@opentelemetry/sdk-metrics@2",
    "@opentelemetry/sdk-trace-base@2",
    "@opentelemetry/exporter-logs-otlp-proto@0.223",
    "@opentelemetry/exporter-metrics-otlp-proto@0.223",
    "@opentelemetry/exporter-trace-otlp-proto@0.223",
    "@opentelemetry/exporter-logs-otlp-grpc@0.223",
    "@opentelemetry/exporter-metrics-otlp-grpc@0.223",
    "@opentelemetry/exporter-trace-otlp-grpc@0.223",
];

/// A client's command, up to the protocol.
fn python_client(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/collector/bin/e2e/otel_client.py"));
    command
}

fn node_client(modules: &Path) -> Command {
    let mut command = Command::new("node");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/collector/bin/e2e/otel_client.js")).env("NODE_PATH", modules);
    command
}

/// What the client says must be found.
fn send(mut client: Command, protocol: &str, endpoint: &str, service: &str) -> Value {
    let out = client.args([protocol, endpoint, service]).output().unwrap();
    let problems = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{problems}");
    // The exporters write a line for each request they had to give up.
    assert_eq!(problems.trim(), "", "{protocol}");
    let sent: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(sent["delivered"], Value::from(vec![true; 3]), "{protocol}");
    sent
}

#[test]
fn what_the_sdk_sends_over_grpc_and_http_comes_back_whole_before_and_after_a_kill() {
    let python = match python() {
        Ok(p) => p,
        Err(missing) => return skipped("the OpenTelemetry SDK", &missing),
    };
    comes_back_whole(|| python_client(&python));
}

#[test]
fn what_the_javascript_sdk_sends_over_grpc_and_http_comes_back_whole_before_and_after_a_kill() {
    let modules = match node_modules("opentelemetry-js", &MODULES) {
        Ok(path) => path,
        Err(missing) => return skipped("the OpenTelemetry SDK for JavaScript", &missing),
    };
    comes_back_whole(|| node_client(&modules));
}

fn comes_back_whole(client: impl Fn() -> Command) {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &["--no-collect"]);
    let grpc = send(client(), "grpc", &server.otlp_grpc.to_string(), "sdk-grpc");
    let http = send(client(), "http", &format!("http://{}", server.otlp_http), "sdk-http");
    for round in 0..2 {
        for (sent, service) in [(&grpc, "sdk-grpc"), (&http, "sdk-http")] {
            logs_are_there(&server, sent, service);
            samples_are_there(&server, sent);
            traces_are_there(&server, sent, service);
        }
        if round == 0 {
            server.kill();
            server = Server::start(dir.path(), &["--no-collect"]);
        }
    }
}

fn logs_are_there(server: &Server, sent: &Value, service: &str) {
    let query = encode(&format!("{{service_name=\"{service}\"}}"));
    let answer = server.get(&format!("/loki/api/v1/query_range?query={query}&limit=5000"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut seen = BTreeSet::new();
    for stream in answer.json()["data"]["result"].as_array().unwrap() {
        let labels = &stream["stream"];
        for (name, value) in [("service_version", "1.4.2"), ("team_name", "käse"), ("scope_name", "shop.logger")] {
            assert_eq!(labels[name], value, "{labels}");
        }
        let n: i64 = labels["seq"].as_str().unwrap().parse().unwrap();
        let values = stream["values"].as_array().unwrap();
        assert!(values.len() == 1 && seen.insert(n), "{service}: {n} is there twice");
        if n < 0 {
            assert_eq!((&labels["trace_id"], &labels["severity_text"]), (&sent["traced"], &"FATAL".into()));
            assert_eq!(values[0][1], "inside a trace");
            continue;
        }
        assert_eq!(values[0][1], format!("order {n} placed – ünïcode"));
        let (number, text) = [("9", "INFO"), ("13", "WARN"), ("17", "ERROR")][usize::try_from(n % 3).unwrap()];
        assert_eq!((&labels["severity_number"], &labels["severity_text"]), (&number.into(), &text.into()));
        assert_eq!(labels["detected_level"], text.to_lowercase());
        assert_eq!(labels["vip"], (n % 2 == 0).to_string());
        assert_eq!(labels["user_name"], format!("user-{}", n % 7));
        assert_eq!(labels["price"].as_str().unwrap().parse::<f64>().unwrap() * 4.0, n as f64);
    }
    let all: BTreeSet<i64> = (-1..sent["logs"].as_i64().unwrap()).collect();
    assert_eq!(seen, all, "{service}");
}

fn samples_are_there(server: &Server, sent: &Value) {
    for (query, expected) in sent["samples"].as_object().unwrap() {
        let answer = server.get(&format!("/api/v1/query?query={}", encode(query)));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json();
        let result = json["data"]["result"].as_array().unwrap();
        assert_eq!(result.len(), 1, "{query}: {json}");
        let value: f64 = result[0]["value"][1].as_str().unwrap().parse().unwrap();
        assert_eq!(Some(value), expected.as_f64(), "{query}");
    }
}

fn traces_are_there(server: &Server, sent: &Value, service: &str) {
    for (id, expected) in sent["traces"].as_object().unwrap() {
        let answer = server.get(&format!("/api/traces/{id}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json();
        let batches = json["batches"].as_array().unwrap();
        let mut seen = 0;
        for batch in batches {
            let attributes = batch["resource"]["attributes"].as_array().unwrap();
            assert_eq!(attribute(attributes, "service.name"), &serde_json::json!({ "stringValue": service }));
            for scope in batch["scopeSpans"].as_array().unwrap() {
                assert_eq!(scope["scope"]["name"], "shop.tracer");
                for span in scope["spans"].as_array().unwrap() {
                    span_is_right(span, expected);
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, expected.as_object().unwrap().len(), "spans of {id}: {json}");
    }
}

fn attribute<'a>(attributes: &'a [Value], key: &str) -> &'a Value {
    &attributes.iter().find(|a| a["key"] == key).unwrap_or_else(|| panic!("no {key}"))["value"]
}

fn span_is_right(span: &Value, trace: &Value) {
    let expected = &trace[base64_to_hex(span["spanId"].as_str().unwrap())];
    assert_eq!(span["name"], expected["name"], "{span}");
    assert_eq!(span["parentSpanId"].as_str().map(base64_to_hex).as_deref(), expected["parent"].as_str(), "{span}");
    let kind = format!("SPAN_KIND_{}", expected["kind"].as_str().unwrap().to_uppercase());
    assert_eq!(span["kind"], kind, "{span}");
    let count = |of: &Value| of.as_array().map_or(0, Vec::len) as u64;
    assert_eq!(count(&span["events"]), expected["events"].as_u64().unwrap_or(0), "{span}");
    assert_eq!(count(&span["links"]), expected["links"].as_u64().unwrap_or(0), "{span}");
    if expected["failed"] == true {
        assert_eq!(span["status"]["message"], "no such table", "{span}");
        assert_eq!(span["status"]["code"], "STATUS_CODE_ERROR", "{span}");
    }
    if let Some(n) = expected["n"].as_i64() {
        let attributes = span["attributes"].as_array().unwrap();
        assert_eq!(attribute(attributes, "n"), &serde_json::json!({ "intValue": n.to_string() }));
        assert_eq!(attribute(attributes, "ratio")["doubleValue"].as_f64(), Some(n as f64 / 8.0));
        assert_eq!(attribute(attributes, "ok"), &serde_json::json!({ "boolValue": true }));
        let tags =
            serde_json::json!({ "arrayValue": { "values": [{ "stringValue": "a" }, { "stringValue": "b" }] } });
        assert_eq!(attribute(attributes, "tags"), &tags);
    }
}

/// Ids are base64 in Tempo's JSON.
pub fn base64_to_hex(text: &str) -> String {
    let digit = |b: u8| -> u32 {
        u32::from(match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => panic!("not base64: {text}"),
        })
    };
    let bits: Vec<u8> = text.bytes().filter(|b| *b != b'=').collect();
    let mut out = String::new();
    for four in bits.chunks(4) {
        let word = four.iter().fold(0, |w, b| w << 6 | digit(*b)) << (6 * (4 - four.len()));
        for byte in word.to_be_bytes()[1..].iter().take(four.len() * 6 / 8) {
            out.push_str(&format!("{byte:02x}"));
        }
    }
    out
}
