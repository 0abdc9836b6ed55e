//! Aggregates of the real process: a configuration that makes them, queries that say which source answers, and SQL.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{
    client::{Client, encode},
    server::Server,
};

const CONFIG: &str = "storage:\n  flush_age: 200ms\n  downsample:\n    - {match: [e2e_load], after: 0s}\n";

fn get(client: &mut Client, path: &str) -> Value {
    let answer = client.get(path).unwrap();
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

#[test]
fn a_range_query_is_answered_from_aggregates_as_from_samples() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("sightline.yaml");
    std::fs::write(&config, CONFIG).unwrap();
    let config = config.display().to_string();
    let args = ["--no-collect", "--config", config.as_str()];
    let data = dir.path().join("data");
    let mut server = Server::start(&data, &args);
    let hour = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 3600 * 3600;
    let start = hour - 8 * 3600;
    let points: Vec<Value> = (1..=7 * 60)
        .map(|i| json!({"timeUnixNano": ((start + i * 60) * 1_000_000_000).to_string(), "asDouble": (i * i % 997) as f64}))
        .collect();
    let body = json!({"resourceMetrics": [{"scopeMetrics": [{"metrics": [
        {"name": "e2e_load", "gauge": {"dataPoints": points}}]}]}]});
    let sent = server.client().post("/v1/metrics", "application/json", body.to_string().as_bytes()).unwrap();
    assert_eq!(sent.status, 200, "{}", sent.text());
    let ask = |server: &Server, query: &str, source: &str| {
        let path = format!(
            "/api/v1/query_range?query={}&start={}&end={}&step=1h&stats=all{source}",
            encode(query),
            start + 3600,
            hour
        );
        let data = get(&mut server.client(), &path)["data"].clone();
        (data["result"].clone(), data["stats"]["aggregates"].clone())
    };
    let patience = Instant::now() + Duration::from_secs(60);
    while ask(&server, "avg_over_time(e2e_load[1h])", "&max_source_resolution=auto").1 != json!({"5m": 0, "1h": 1}) {
        assert!(Instant::now() < patience, "no aggregates were made");
        std::thread::sleep(Duration::from_millis(200));
    }
    for killed in [false, true] {
        if killed {
            drop(server);
            server = Server::start(&data, &args);
        }
        for query in
            ["avg_over_time(e2e_load[1h])", "sum(max_over_time(e2e_load[2h]))", "increase(e2e_load[1h])", "e2e_load"]
        {
            let (raw, none) = ask(&server, query, "");
            let (found, answered) = ask(&server, query, "&max_source_resolution=auto");
            assert_eq!((none, answered), (json!({"5m": 0, "1h": 0}), json!({"5m": 0, "1h": 1})), "{query}");
            assert_eq!(found, raw, "{query}, killed: {killed}");
            assert!(raw[0]["values"].as_array().unwrap().len() >= 6, "{query}: {raw}");
            let (_, finer) = ask(&server, query, "&max_source_resolution=5m");
            assert_eq!(finer, json!({"5m": 1, "1h": 0}), "{query}");
        }
        let sql = json!({"query": "select count(*) as n, sum(count) as samples from metric_samples_1h"}).to_string();
        let rows = server.client().post("/api/v1/sql", "application/json", sql.as_bytes()).unwrap();
        let text = rows.text();
        assert!(rows.status == 200 && text.contains("420") && text.contains('7'), "{text}");
    }
    let bad = server.client().get("/api/v1/query?query=up&max_source_resolution=soon").unwrap();
    assert_eq!(bad.status, 400, "{}", bad.text());
    assert!(bad.text().contains("max_source_resolution"), "{}", bad.text());
}
