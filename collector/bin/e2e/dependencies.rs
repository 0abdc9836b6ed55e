//! Rules for what we depend on: one registry, one version of the heavy crates, no OpenSSL, licences that suit Apache-2.0.

use std::{collections::BTreeMap, process::Command};

/// Crates of which two versions would double build time or types.
const ONE_VERSION: [&str; 14] = [
    "arrow",
    "axum",
    "datafusion",
    "deltalake-core",
    "http",
    "hyper",
    "object_store",
    "opentelemetry-proto",
    "parquet",
    "prost",
    "rustls",
    "tantivy",
    "tokio",
    "tonic",
];

const FORBIDDEN: [&str; 4] = ["native-tls", "openssl", "openssl-sys", "aws-lc-sys"];

/// A licence expression is fine when one of its alternatives is made of these.
const LICENCES: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

fn lock() -> Vec<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).expect("Cargo.lock");
    text.split("[[package]]")
        .skip(1)
        .map(|block| {
            block
                .lines()
                .filter_map(|l| l.split_once(" = "))
                .map(|(k, v)| (k.to_owned(), v.trim_matches('"').to_owned()))
                .collect()
        })
        .collect()
}

#[test]
fn the_registry_is_the_only_source() {
    for package in lock() {
        if let Some(source) = package.get("source") {
            assert_eq!(source, "registry+https://github.com/rust-lang/crates.io-index", "{}", package["name"]);
        } else {
            assert!(package["name"].starts_with("sightline"), "{} is a path dependency", package["name"]);
        }
    }
}

#[test]
fn heavy_crates_have_one_version_and_forbidden_ones_none() {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in lock() {
        versions.entry(package["name"].clone()).or_default().push(package["version"].clone());
    }
    for name in ONE_VERSION {
        assert!(versions.get(name).is_none_or(|v| v.len() == 1), "{name}: {:?}", versions[name]);
    }
    for name in FORBIDDEN {
        assert!(!versions.contains_key(name), "{name} is not to be used");
    }
}

#[test]
fn licences_suit_ours() {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        // Packages of other platforms are not on this machine.
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).expect("cargo prints JSON");
    let mut bad = Vec::new();
    for package in metadata["packages"].as_array().expect("a list of packages") {
        let licence = package["license"].as_str().unwrap_or("");
        let fine = licence
            .replace('/', " OR ")
            .replace(['(', ')'], "")
            .split(" OR ")
            .any(|choice| choice.split(" AND ").all(|l| LICENCES.contains(&l.trim())));
        if !fine {
            bad.push(format!("{}: {licence:?}", package["name"]));
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
}
