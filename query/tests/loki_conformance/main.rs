//! Recorded requests to Loki and its answers, run against our router over a store filled with the recorded pushes.
//!
//! Folder: `SIGHTLINE_LOKI_CASES`, default `../shared/conformance/loki`. Each group of cases has a floor in
//! `tests/loki_floors.txt` that may only rise. `SIGHTLINE_LOKI_SHOW=group[,group]|all` prints the first difference of failing cases.

mod compare;
mod load;

use std::{collections::BTreeMap, path::PathBuf};

use axum::{Router, body::Body};
use http::Request;
use serde_json::Value;
use tower::Service as _;

/// Groups that check the push API, which has its own tests.
const NOT_HERE: [&str; 1] = ["push_errors"];

fn folder() -> PathBuf {
    match std::env::var_os("SIGHTLINE_LOKI_CASES") {
        Some(f) => f.into(),
        None => concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/conformance/loki").into(),
    }
}

fn floors() -> BTreeMap<String, usize> {
    include_str!("../loki_floors.txt")
        .lines()
        .filter_map(|l| l.split('#').next()?.trim().split_once(' '))
        .map(|(name, n)| (name.to_owned(), n.trim().parse().expect("floors are numbers")))
        .collect()
}

fn encode(text: &str) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(char::from(b)),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

fn form(params: &Value) -> String {
    let mut pairs = Vec::new();
    for (name, value) in params.as_object().into_iter().flatten() {
        let values = match value {
            Value::Array(list) => list.clone(),
            one => vec![one.clone()],
        };
        for v in values {
            let text = v.as_str().map_or_else(|| v.to_string(), str::to_owned);
            pairs.push(format!("{}={}", encode(name), encode(&text)));
        }
    }
    pairs.join("&")
}

async fn send(app: &Router, case: &Value) -> (u16, String, Vec<u8>) {
    let r = &case["request"];
    let method = r["method"].as_str().unwrap_or("GET");
    let mut target = r["path"].as_str().unwrap_or("/").to_owned();
    let mut body = r["body"].as_str().map(str::to_owned);
    let form = form(&r["params"]);
    let post_form = method == "POST" && body.is_none();
    if post_form {
        body = Some(form);
    } else if !form.is_empty() {
        target = format!("{target}?{form}");
    }
    let mut request = Request::builder().method(method).uri(target);
    if post_form {
        request = request.header("content-type", "application/x-www-form-urlencoded");
    }
    for (name, value) in r["headers"].as_object().into_iter().flatten() {
        request = request.header(name, value.as_str().unwrap_or(""));
    }
    let request = request.body(Body::from(body.unwrap_or_default())).expect("recorded requests are well formed");
    let response = app.clone().call(request).await.expect("a router cannot fail");
    let status = response.status().as_u16();
    let content_type = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let bytes = axum::body::to_bytes(response.into_body(), 256 << 20).await.expect("bodies are in memory").to_vec();
    (status, content_type, bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_equal_the_recorded_ones() {
    let folder = folder();
    if !folder.is_dir() {
        assert!(
            std::env::var("SIGHTLINE_REQUIRE_ALL").as_deref() != Ok("1"),
            "the recorded cases are missing: {}",
            folder.display()
        );
        eprintln!("SKIPPED: no recorded Loki cases in {}", folder.display());
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = load::store(dir.path(), &folder.join("data")).await;
    let app = query::http::loki::routes(store);
    let show = std::env::var("SIGHTLINE_LOKI_SHOW").unwrap_or_default();
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder.join("cases"))
        .expect("a folder of cases")
        .map(|e| e.expect("a readable folder").path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    let floors = floors();
    let (mut passed, mut failed, mut below) = (0, 0, Vec::new());
    for file in files {
        let group = file.file_stem().and_then(|s| s.to_str()).unwrap_or("").to_owned();
        if NOT_HERE.contains(&group.as_str()) {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("a readable case file");
        let cases: Vec<Value> = serde_json::from_str(&text).expect("a list of cases");
        let (mut good, mut bad) = (0, 0);
        for case in &cases {
            let (status, content_type, body) = send(&app, case).await;
            match compare::check(case, status, &content_type, &body) {
                None => good += 1,
                Some(difference) => {
                    bad += 1;
                    if show == "all" || show.split(',').any(|g| g == group) {
                        println!("FAIL {} {} {difference}", case["id"], case["request"]["params"]["query"]);
                    }
                }
            }
        }
        println!("{group}: {good} passed, {bad} failed");
        passed += good;
        failed += bad;
        let floor = floors.get(&group).copied().unwrap_or(0);
        if good < floor {
            below.push(format!("{group}: {good} passed, the floor is {floor}"));
        }
    }
    println!("{passed} passed, {failed} failed");
    assert!(below.is_empty(), "fewer recorded answers are met than before:\n{}", below.join("\n"));
}
