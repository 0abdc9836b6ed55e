//! Recorded answers of a Tempo server to traces by id, compared with ours over the same spans: as sets of (resource,
//! scope, span), attributes as maps, whatever the order.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use axum::{body::Body, http::Request};
use base64::Engine as _;
use http_body_util::BodyExt;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message;
use serde_json::{Value, json};
use storage::{
    Append, Store, StoreConfig,
    model::{SpanBatchBuilder, SpanRow, Table, TenantId, json as canonical},
};
use tower::ServiceExt;

const BASE: i64 = 1_699_999_200;

/// OTLP/JSON `AnyValue` to canonical JSON.
fn write_any(out: &mut String, v: &Value) {
    let Some((kind, v)) = v.as_object().and_then(|o| o.iter().next()) else { return out.push_str("null") };
    let list = || v.get("values").and_then(Value::as_array).cloned().unwrap_or_default();
    match kind.as_str() {
        "stringValue" => canonical::write_string(out, v.as_str().unwrap()),
        "boolValue" => out.push_str(if v.as_bool().unwrap() { "true" } else { "false" }),
        "intValue" => out.push_str(&v.as_str().map_or(v.to_string(), str::to_owned)),
        "doubleValue" => canonical::write_double(out, v.as_f64().unwrap()),
        "bytesValue" => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(v.as_str().unwrap()).unwrap();
            canonical::write_bytes(out, &bytes);
        }
        "arrayValue" => {
            out.push('[');
            for (i, item) in list().iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_any(out, item);
            }
            out.push(']');
        }
        _ => out.push_str(&attributes(&Value::Array(list()))),
    }
}

fn attributes(list: &Value) -> String {
    let map: BTreeMap<&str, &Value> = list
        .as_array()
        .map(|l| l.iter().map(|kv| (kv["key"].as_str().unwrap(), &kv["value"])).collect())
        .unwrap_or_default();
    let mut out = String::from("{");
    for (i, (k, v)) in map.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        canonical::write_string(&mut out, k);
        out.push(':');
        write_any(&mut out, v);
    }
    out.push('}');
    out
}

fn number(v: &Value) -> i64 {
    v.as_str().map_or_else(|| v.as_i64().unwrap_or(0), |s| s.parse().unwrap())
}

fn some(text: String) -> Option<String> {
    (text != "{}" && text != "[]").then_some(text)
}

fn push_bodies(bodies: &str, b: &mut SpanBatchBuilder) {
    for body in bodies.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()) {
        for rs in body["resourceSpans"].as_array().unwrap() {
            let resource = some(attributes(&rs["resource"]["attributes"]));
            for ss in rs["scopeSpans"].as_array().unwrap() {
                let scope = &ss["scope"];
                let mut meta = json!({});
                if let Some(v) = scope["version"].as_str() {
                    meta["version"] = v.into();
                }
                let mut meta = meta.to_string();
                if let Some(attrs) = some(attributes(&scope["attributes"])) {
                    let comma = if meta == "{}" { "" } else { "," };
                    meta = format!("{{\"attributes\":{attrs}{comma}{}", &meta[1..]);
                }
                let meta = some(meta);
                ss["spans"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .for_each(|s| push_span(b, s, &resource, scope["name"].as_str(), &meta));
            }
        }
    }
}

fn push_span(
    b: &mut SpanBatchBuilder,
    s: &Value,
    resource: &Option<String>,
    scope: Option<&str>,
    meta: &Option<String>,
) {
    let id = |key: &str| hex::decode(s[key].as_str().unwrap_or("")).unwrap();
    let list = |key: &str| s[key].as_array().cloned().unwrap_or_default();
    let events: Vec<String> = list("events")
        .iter()
        .map(|e| {
            let attrs = attributes(&e["attributes"]);
            let name = json!(e["name"].as_str().unwrap_or(""));
            format!("{{\"attributes\":{attrs},\"name\":{name},\"time_unix_nano\":{}}}", number(&e["timeUnixNano"]))
        })
        .collect();
    let links: Vec<String> = list("links")
        .iter()
        .map(|l| {
            format!(
                "{{\"attributes\":{},\"span_id\":{},\"trace_id\":{}}}",
                attributes(&l["attributes"]),
                l["spanId"],
                l["traceId"]
            )
        })
        .collect();
    let (start, end) = (number(&s["startTimeUnixNano"]), number(&s["endTimeUnixNano"]));
    let parent = id("parentSpanId");
    b.push(&SpanRow {
        trace_id: &id("traceId"),
        span_id: &id("spanId"),
        parent_span_id: (!parent.is_empty()).then_some(parent.as_slice()),
        ts: start,
        duration_ns: end - start,
        name: s["name"].as_str().unwrap_or(""),
        kind: number(&s["kind"]) as i32,
        status_code: number(&s["status"]["code"]) as i32,
        status_message: s["status"]["message"].as_str(),
        trace_state: s["traceState"].as_str(),
        scope_name: scope.filter(|n| !n.is_empty()),
        scope_meta: meta.as_deref(),
        resource_attrs: resource.as_deref(),
        attrs: some(attributes(&s["attributes"])).as_deref(),
        events: some(format!("[{}]", events.join(","))).as_deref(),
        links: some(format!("[{}]", links.join(","))).as_deref(),
        ..SpanRow::default()
    });
}

/// Fills `{{ns:5}}` and the like with absolute times.
fn filled(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(i) = rest.find("{{") {
        let end = i + rest[i..].find("}}").unwrap();
        let (unit, n) = rest[i + 2..end].split_once(':').unwrap();
        let scale = match unit {
            "ns" => 1_000_000_000,
            "ms" => 1000,
            _ => 1,
        };
        out.push_str(&rest[..i]);
        out.push_str(&(BASE * scale + n.parse::<i64>().unwrap()).to_string());
        rest = &rest[end + 2..];
    }
    out + rest
}

fn attr_map(v: &Value) -> Value {
    let mut out = serde_json::Map::new();
    for kv in v.as_array().into_iter().flatten() {
        out.insert(kv["key"].as_str().unwrap_or("").to_owned(), any(&kv["value"]));
    }
    Value::Object(out)
}

fn any(v: &Value) -> Value {
    let Some((k, x)) = v.as_object().and_then(|o| o.iter().next()) else { return json!({}) };
    match k.as_str() {
        "intValue" => json!({k: number(x)}),
        "doubleValue" => json!({k: x.as_f64()}),
        "arrayValue" => {
            json!({k: x["values"].as_array().map(|l| l.iter().map(any).collect::<Vec<_>>()).unwrap_or_default()})
        }
        "kvlistValue" => json!({k: attr_map(&x["values"])}),
        _ => json!({k: x}),
    }
}

/// Every span with its resource and scope, as sorted text.
fn canonical_spans(resource_spans: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    for rs in list(resource_spans) {
        for ss in list(&rs["scopeSpans"]) {
            let scope = &ss["scope"];
            for s in list(&ss["spans"]) {
                let mut events: Vec<String> = list(&s["events"])
                    .iter()
                    .map(|e| json!([e["timeUnixNano"], e["name"], attr_map(&e["attributes"])]).to_string())
                    .collect();
                events.sort();
                let mut links: Vec<String> = list(&s["links"])
                    .iter()
                    .map(|l| json!([l["traceId"], l["spanId"], attr_map(&l["attributes"])]).to_string())
                    .collect();
                links.sort();
                let line = json!({
                    "resource": attr_map(&rs["resource"]["attributes"]),
                    "scope": [scope["name"], scope["version"], attr_map(&scope["attributes"])],
                    "ids": [s["traceId"], s["spanId"], s["parentSpanId"]],
                    "name": s["name"], "kind": s["kind"], "state": s["traceState"],
                    "time": [s["startTimeUnixNano"], s["endTimeUnixNano"]],
                    "status": [s["status"]["code"], s["status"]["message"]],
                    "attributes": attr_map(&s["attributes"]), "events": events, "links": links,
                });
                out.push(line.to_string());
            }
        }
    }
    out.sort();
    out
}

#[tokio::test]
async fn traces_by_id_equal_the_recorded_ones() {
    let own = std::env::var_os("SIGHTLINE_TEMPO_CASES").map(PathBuf::from);
    let folder =
        own.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/conformance/tempo")));
    let script = folder.join("generate.py");
    let generated = Command::new("python3").arg(&script).arg("--base").arg(BASE.to_string()).output();
    let bodies = match generated {
        Ok(out) if out.status.success() => String::from_utf8(out.stdout).unwrap(),
        _ => {
            assert!(std::env::var_os("SIGHTLINE_REQUIRE_ALL").is_none(), "cannot run {}", script.display());
            eprintln!("SKIPPED: cannot run {}", script.display());
            return;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let mut config = StoreConfig::new(dir.path());
    config.background = false;
    let store = Store::open(config).await.unwrap();
    let mut b = SpanBatchBuilder::new();
    push_bodies(&bodies, &mut b);
    let batch = b.finish();
    // Sent twice: spans of the same id must come back once.
    for rows in [batch.clone(), batch] {
        let append =
            Append { tenant: TenantId::default(), rows: vec![(Table::Spans, rows)], sources: vec![], batch_id: None };
        store.append(append).await.unwrap();
    }
    let router = query::router(query::QueryConfig::default(), store);
    let (mut passed, mut failed) = (0, Vec::new());
    for file in ["trace-by-id.json", "trace-protobuf.json"] {
        let cases = filled(&std::fs::read_to_string(folder.join("cases").join(file)).unwrap());
        for case in serde_json::from_str::<Value>(&cases).unwrap().as_array().unwrap() {
            for prefix in ["", "/tempo"] {
                match run(&router, case, prefix).await {
                    Ok(()) => passed += 1,
                    Err(e) => failed.push(format!("{} {prefix}: {e}", case["id"])),
                }
            }
        }
    }
    println!("{passed} passed, {} failed", failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
}

async fn run(router: &axum::Router, case: &Value, prefix: &str) -> Result<(), String> {
    let request = &case["request"];
    let mut path = format!("{prefix}{}", request["path"].as_str().unwrap());
    for (i, (k, v)) in request["params"].as_object().into_iter().flatten().enumerate() {
        path.push_str(&format!("{}{k}={}", if i == 0 { "?" } else { "&" }, v.as_str().unwrap()));
    }
    let mut builder = Request::get(&path);
    for (k, v) in request["headers"].as_object().into_iter().flatten() {
        builder = builder.header(k.as_str(), v.as_str().unwrap());
    }
    let response = router.clone().oneshot(builder.body(Body::empty()).unwrap()).await.unwrap();
    let expected = &case["response"];
    let status = response.status().as_u16();
    if u64::from(status) != expected["status"].as_u64().unwrap() {
        return Err(format!("status {status}"));
    }
    let content_type = response.headers().get("content-type").map(|v| v.to_str().unwrap().to_owned());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    if status != 200 {
        return Ok(());
    }
    if content_type.as_deref() != expected["content_type"].as_str() {
        return Err(format!("content type {content_type:?}"));
    }
    if case["compare"] == "status" {
        return Ok(());
    }
    let v2 = path.contains("/v2/");
    let protobuf = content_type.as_deref() == Some("application/protobuf");
    let got = if protobuf {
        // Both versions hold a trace: v2 in its field 1. Its spans are compared through the JSON form of the same data.
        let trace = if v2 { field_1(&body).ok_or("no trace")? } else { &body[..] };
        let decoded = TracesData::decode(trace).map_err(|e| e.to_string())?;
        let json = router.clone().oneshot(Request::get(&path).body(Body::empty()).unwrap()).await.unwrap();
        let json = json.into_body().collect().await.unwrap().to_bytes();
        let json: Value = serde_json::from_slice(&json).unwrap();
        let spans = |t: &TracesData| -> usize {
            t.resource_spans.iter().flat_map(|r| &r.scope_spans).map(|s| s.spans.len()).sum()
        };
        let same = if v2 { &json["trace"]["resourceSpans"] } else { &json["batches"] };
        if spans(&decoded) != canonical_spans(same).len() {
            return Err("protobuf and JSON differ".into());
        }
        json
    } else {
        serde_json::from_slice(&body).map_err(|e| e.to_string())?
    };
    let wanted = &expected["body"];
    let (a, b) = if v2 {
        (canonical_spans(&wanted["trace"]["resourceSpans"]), canonical_spans(&got["trace"]["resourceSpans"]))
    } else {
        (canonical_spans(&wanted["batches"]), canonical_spans(&got["batches"]))
    };
    if a == b {
        return Ok(());
    }
    let first = a.iter().zip(&b).find(|(a, b)| a != b);
    Err(format!("{} spans, expected {}; {first:?}", b.len(), a.len()))
}

/// The bytes of field 1 of a message, if it comes first.
fn field_1(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.strip_prefix(&[0x0a])?;
    let length = prost::encoding::decode_varint(&mut rest).ok()?;
    rest.get(..usize::try_from(length).ok()?)
}
