//! The page `storage/docs/open-files.md`: its examples, as they are printed there, against the files of a server that was stopped.
//! What they print is what the APIs answered before.

use std::{collections::BTreeMap, fmt::Write as _, path::Path, process::Command};

use serde_json::{Value, json};

use super::{client::encode, oracle::now_ns, otel_sdk::base64_to_hex, server::Server, skip::skipped};

const PAGE: &str = include_str!("../../../storage/docs/open-files.md");

/// The trace that the page asks for.
const TRACE: &str = "5b8efff798038103d269b633813fc60c";

/// The examples of the page by their first line, a comment that says what they show.
fn examples() -> BTreeMap<&'static str, &'static str> {
    let mut out = BTreeMap::new();
    for block in PAGE.split("```python\n").skip(1) {
        let code = block.split("```").next().unwrap();
        let title = code.lines().next().unwrap().strip_prefix("# ").expect("an example begins with its title");
        assert!(out.insert(title, code).is_none(), "{title} is there twice");
    }
    out
}

/// Lines as words, numbers by their bits: each language prints them in its own way. Sorted unless their order matters.
fn words(lines: &str, ordered: bool) -> Vec<Vec<String>> {
    let word = |w: &str| w.parse::<f64>().map_or_else(|_| w.to_owned(), |n| format!("{:016x}", n.to_bits()));
    let mut out: Vec<Vec<String>> = lines.lines().map(|line| line.split_whitespace().map(word).collect()).collect();
    if !ordered {
        out.sort();
    }
    out
}

fn post(server: &Server, path: &str, kind: &str, body: &str) {
    let answer = server.client().post(path, kind, body.as_bytes()).unwrap();
    assert!((200..300).contains(&answer.status), "{path}: {} {}", answer.status, answer.text());
    assert!(!answer.text().contains("\"rejected\":1"), "{path}: {}", answer.text());
}

fn push(server: &Server, base: i64, round: i64) {
    let mut lines = String::new();
    for i in round * 300..(round + 1) * 300 {
        // Ten lines of the stream `shop` at each nanosecond, of more than one kind, so that only their order of arrival is left.
        let ts = base + i / 30 * 1_000_001;
        let (status, level) = if i % 2 == 0 { (200, "error") } else { (404, "warn") };
        let row = match i % 3 {
            0 if i % 2 == 0 => json!({ "app": "shop", "msg": format!("order {i} placed") }),
            0 => json!({ "app": "shop", "msg": format!("customer {i} came by") }),
            1 => {
                json!({ "app": "cart", "level": "info", "http.status_code": status, "msg": format!("GET {i}") })
            }
            _ => {
                json!({ "app": "mail", "level": level, "http.status_code": 500, "msg": format!("no answer {i}") })
            }
        };
        let mut row = row.as_object().unwrap().clone();
        row.insert("ts".into(), ts.into());
        row.insert("service_name".into(), row["app"].clone());
        writeln!(lines, "{}", Value::Object(row)).unwrap();
    }
    let path = "/ingest/ndjson?time_field=ts&message_field=msg&stream_fields=app,service_name";
    post(server, path, "application/x-ndjson", &lines);

    let mut points = String::new();
    for (room, value) in [
        ("kitchen", (|i| f64::from(i) * 0.1) as fn(i32) -> f64),
        ("cellar", |i| if i == 7 { f64::INFINITY } else { -f64::from(i) / 3.0 }),
        ("attic", |i| 1e300 / f64::from(i + 1)),
        ("hall", |i| f64::from(i * 1000 + 250) / 1000.0),
    ] {
        let mut point = |i: i32, bits: u64| {
            let row = json!({
                "row": "sample", "type": "gauge", "series_labels": { "__name__": "temperature", "room": room },
                "ts_ms": base / 1_000_000 + i64::from(i) * 500, "value": format!("0x{bits:016x}"),
            });
            writeln!(points, "{row}").unwrap();
        };
        // The last of the first round comes again with the second one.
        let first = (round as i32 * 40 - 1).max(0);
        (first..(round as i32 + 1) * 40).for_each(|i| point(i, value(i).to_bits()));
        if room == "attic" && round == 1 {
            point(80, 0x7ff0_0000_0000_0002);
        }
    }
    post(server, "/api/v1/import", "application/x-ndjson", &points);

    let spans: Vec<Value> = (round * 40..(round + 1) * 40)
        .map(|i| {
            let start = base + i * 1_001;
            let name = if i % 2 == 0 { "GET /cart" } else { "select" };
            let trace = if i / 8 == 2 { TRACE.to_owned() } else { format!("{:032x}", i / 8 + 1) };
            json!({
                "traceId": trace, "spanId": format!("{:016x}", i + 1), "name": name, "kind": 2,
                "startTimeUnixNano": start.to_string(), "endTimeUnixNano": (start + 1_000 + 7 * i).to_string(),
                "attributes": [{ "key": "http.status_code", "value": { "intValue": "200" } }],
            })
        })
        .collect();
    let resource = json!({ "attributes": [{ "key": "service.name", "value": { "stringValue": "shop" } }] });
    let body = json!({ "resourceSpans": [{ "resource": resource, "scopeSpans": [{ "spans": spans }] }] });
    post(server, "/v1/traces", "application/json", &body.to_string());
}

fn get(server: &Server, path: &str) -> Value {
    let answer = server.get(path);
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

fn results(server: &Server, api: &str, query: &str) -> Vec<Value> {
    let answer = get(server, &format!("{api}/query?query={}", encode(query)));
    answer["data"]["result"].as_array().unwrap().clone()
}

fn sql(server: &Server, query: &str) -> String {
    let body = json!({ "query": query }).to_string();
    let answer = server.client().post("/api/v1/sql", "application/json", body.as_bytes()).unwrap();
    assert_eq!(answer.status, 200, "{query}: {}", answer.text());
    let mut out = String::new();
    for row in answer.json()["data"]["rows"].as_array().unwrap() {
        let cells: Vec<String> =
            row.as_array().unwrap().iter().map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned)).collect();
        writeln!(out, "{}", cells.join(" ")).unwrap();
    }
    out
}

/// A line for each series of a vector: a label and the value.
fn vector(server: &Server, api: &str, query: &str, label: &str) -> String {
    let line = |r: &Value| {
        format!("{} {}\n", r["metric"][label].as_str().unwrap_or("None"), r["value"][1].as_str().unwrap())
    };
    results(server, api, query).iter().map(line).collect()
}

/// What the APIs say to the question of an example.
fn answer(server: &Server, title: &str, base: i64) -> String {
    match title {
        "rows of each table" => {
            let count = |table: &str| format!("{table} {}", sql(server, &format!("select count(*) from {table}")));
            count("logs") + &count("spans")
        }
        "lines with errors" => sql(server, "select body from logs where severity_number >= 17"),
        "lines of each service" => {
            let query = "sum by (service_name) (count_over_time({service_name=~\".+\"}[1h]))";
            vector(server, "/loki/api/v1", query, "service_name")
        }
        "lines by a promoted attribute" => {
            let query = "sum by (http_status_code) (count_over_time({service_name=~\".+\"}[1h]))";
            vector(server, "/loki/api/v1", query, "http_status_code")
        }
        "samples of a metric" => {
            let mut out = String::new();
            for series in results(server, "/api/v1", "temperature[1h]") {
                for point in series["values"].as_array().unwrap() {
                    let ms = (point[0].as_f64().unwrap() * 1000.0).round();
                    let room = series["metric"]["room"].as_str().unwrap();
                    writeln!(out, "{room} {ms} {}", point[1].as_str().unwrap()).unwrap();
                }
            }
            out
        }
        "latest value of each series" => {
            let counts = vector(server, "/api/v1", "count_over_time(temperature[1h])", "room");
            let latest = vector(server, "/api/v1", "last_over_time(temperature[1h])", "room");
            let latest: BTreeMap<&str, &str> = latest.lines().filter_map(|l| l.split_once(' ')).collect();
            counts.lines().map(|l| format!("{l} {}\n", latest[l.split(' ').next().unwrap()])).collect()
        }
        "slowest span of each name" => {
            sql(server, "select name, count(*), max(duration_ns) from spans group by name")
        }
        "one stream in the order it arrived" => {
            let query = encode("{app=\"shop\"}");
            let range = format!("start={}&end={}", base - 1, base + 3_600_000_000_000);
            let path = format!("/loki/api/v1/query_range?query={query}&{range}&limit=5000&direction=forward");
            let json = get(server, &path);
            let streams = json["data"]["result"].as_array().unwrap();
            assert_eq!(streams.len(), 1, "{json}");
            streams[0]["values"].as_array().unwrap().iter().map(|v| format!("{}\n", v[1].as_str().unwrap())).collect()
        }
        "one trace" => {
            let mut out = String::new();
            for batch in get(server, &format!("/api/traces/{TRACE}"))["batches"].as_array().unwrap() {
                for span in
                    batch["scopeSpans"].as_array().unwrap().iter().flat_map(|s| s["spans"].as_array().unwrap())
                {
                    let time = |key: &str| span[key].as_str().unwrap().parse::<i64>().unwrap();
                    let took = time("endTimeUnixNano") - time("startTimeUnixNano");
                    let id = base64_to_hex(span["spanId"].as_str().unwrap());
                    writeln!(out, "{id} {took} {}", span["name"].as_str().unwrap()).unwrap();
                }
            }
            out
        }
        other => panic!("the page has an example {other:?} that no API is asked about"),
    }
}

fn python(dir: &Path, code: &str) -> Result<String, String> {
    let out = Command::new("python3").arg("-c").arg(code).current_dir(dir).output().map_err(|e| e.to_string())?;
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.success() { Ok(String::from_utf8_lossy(&out.stdout).into_owned()) } else { Err(told) }
}

#[test]
fn the_examples_of_the_page_agree_with_the_apis_when_the_server_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    if let Err(missing) = python(dir.path(), "import deltalake, duckdb, polars, pyarrow") {
        let missing = missing.lines().last().unwrap_or_default();
        return skipped("the page on open files", &format!("deltalake, duckdb, polars and pyarrow: {missing}"));
    }
    let examples = examples();
    assert_eq!(examples.len(), 9, "{:?}", examples.keys());
    let config = dir.path().join("c.yaml");
    std::fs::write(&config, "storage: {promote: [http.status_code]}\n").unwrap();
    let data = dir.path().join("sightline-data");
    let base = (now_ns() - 120_000_000_000) / 1_000_000 * 1_000_000;
    let mut expected = BTreeMap::new();
    // Two rounds make two files of each table; the second one is in memory when the APIs are asked.
    for round in 0..2 {
        let server = Server::start(&data, &["--no-collect", "--config", &config.to_string_lossy()]);
        push(&server, base, round);
        expected = examples.keys().map(|title| (*title, answer(&server, title, base))).collect();
        assert!(server.stop().0.success());
    }
    let count = |title: &str| expected[title].lines().count();
    assert_eq!(words(&expected["rows of each table"], true), words("logs 600\nspans 80", true));
    assert_eq!((count("lines with errors"), count("lines by a promoted attribute"), count("one trace")), (100, 4, 8));
    assert_eq!((count("samples of a metric"), count("one stream in the order it arrived")), (320, 200));
    for (title, code) in &examples {
        let printed = python(dir.path(), code).unwrap_or_else(|e| panic!("{title}: {e}"));
        let ordered = title.contains("order");
        assert_eq!(words(&printed, ordered), words(&expected[title], ordered), "{title}");
    }
}
