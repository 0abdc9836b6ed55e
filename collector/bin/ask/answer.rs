//! Answers of the APIs as grids of text.

use serde_json::Value;

use super::print::Grid;

/// The end of an answer that is looked at for a failure under way.
pub const TAIL_BYTES: usize = 4096;

/// What an error's body says.
pub fn problem(status: u16, body: &[u8]) -> String {
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        let text = String::from_utf8_lossy(body);
        let text = text.trim();
        return if text.is_empty() { format!("the server answered {status}") } else { text.to_owned() };
    };
    let text = value["error"].as_str().or(value["message"].as_str()).unwrap_or("the server gave no reason");
    match (value["position"]["line"].as_u64(), value["position"]["column"].as_u64()) {
        (Some(line), Some(column)) => format!("line {line}, column {column}: {text}"),
        _ => text.to_owned(),
    }
}

/// Why an SQL answer that was under way failed.
pub fn failed_under_way(tail: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(tail);
    let at = text.rfind("\n],\"status\":\"error\"").or_else(|| text.rfind("\n]},\"status\":\"error\""))?;
    let object = text[at..].trim_start_matches(['\n', ']', '}', ',']);
    Some(problem(200, format!("{{{object}").as_bytes()))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

pub fn sql(answer: &Value) -> Grid {
    let columns = answer["data"]["columns"].as_array();
    let names = columns.into_iter().flatten().map(|c| text(&c["name"])).collect();
    let numbers = columns.into_iter().flatten().map(|c| is_number(c["type"].as_str().unwrap_or(""))).collect();
    let rows = answer["data"]["rows"].as_array();
    let rows = rows.into_iter().flatten().map(|r| r.as_array().into_iter().flatten().map(text).collect());
    Grid { names, numbers, rows: rows.collect(), raw_from: 0 }
}

fn is_number(kind: &str) -> bool {
    ["Int", "UInt", "Float", "Decimal"].iter().any(|k| kind.starts_with(k))
}

/// A result of Prometheus or Loki: scalar, string, vector, matrix or streams.
pub fn result(data: &Value) -> Grid {
    let kind = data["resultType"].as_str().unwrap_or("");
    let items = data["result"].as_array().map_or(&[][..], Vec::as_slice);
    let point = |p: &Value, value: &Value| vec![seconds(&p[0]), text(value)];
    let (names, numbers, rows): (&[&str], &[bool], Vec<Vec<String>>) = match kind {
        "streams" => {
            let mut lines: Vec<(i128, Vec<String>)> = Vec::new();
            for stream in items {
                for entry in stream["values"].as_array().into_iter().flatten() {
                    let ns: i128 = entry[0].as_str().and_then(|t| t.parse().ok()).unwrap_or(0);
                    lines.push((ns, vec![nanos(ns), labels(&stream["stream"]), text(&entry[1])]));
                }
            }
            // Of all streams together, the latest first as each of them.
            lines.sort_by_key(|(ns, _)| -ns);
            let rows = lines.into_iter().map(|(_, row)| row).collect();
            return Grid {
                names: ["time", "labels", "line"].map(str::to_owned).into(),
                numbers: vec![false; 3],
                rows,
                raw_from: 2,
            };
        }
        "scalar" | "string" => (&["time", "value"], &[false, true], vec![point(&data["result"], &data["result"][1])]),
        _ => {
            let mut rows = Vec::new();
            for series in items {
                let name = labels(&series["metric"]);
                let single = [&series["value"], &series["histogram"]].into_iter().filter(|p| p.is_array());
                let many = ["values", "histograms"].into_iter().filter_map(|k| series[k].as_array()).flatten();
                for p in single.chain(many) {
                    rows.push([vec![name.clone()], point(p, &p[1])].concat());
                }
            }
            (&["series", "time", "value"], &[false, false, true], rows)
        }
    };
    Grid { names: names.iter().map(|n| (*n).to_owned()).collect(), numbers: numbers.to_vec(), rows, raw_from: 0 }
}

/// `up{job="api"}`.
fn labels(set: &Value) -> String {
    let Some(set) = set.as_object() else { return String::new() };
    let name = set.get("__name__").map(text).unwrap_or_default();
    let rest = set.iter().filter(|(n, _)| *n != "__name__").map(|(n, v)| format!("{n}={:?}", text(v)));
    let rest: Vec<String> = rest.collect();
    if rest.is_empty() && !name.is_empty() { name } else { format!("{name}{{{}}}", rest.join(",")) }
}

/// RFC 3339 of Unix seconds with a fraction.
fn seconds(value: &Value) -> String {
    match value.as_f64() {
        Some(s) => nanos((s * 1000.0).round() as i128 * 1_000_000),
        None => text(value),
    }
}

fn nanos(ns: i128) -> String {
    let (secs, rest) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    i64::try_from(secs)
        .ok()
        .and_then(|s| chrono::DateTime::from_timestamp(s, rest as u32))
        .map_or_else(|| ns.to_string(), |t| t.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn results_become_rows() {
        let vector =
            json!({"resultType":"vector","result":[{"metric":{"__name__":"up","job":"a"},"value":[1.5,"1"]}]});
        assert_eq!(result(&vector).rows, [["up{job=\"a\"}", "1970-01-01T00:00:01.500Z", "1"]]);
        let streams = json!({"resultType":"streams","result":[
            {"stream":{"app":"a"},"values":[["1","old"]]},{"stream":{"app":"b"},"values":[["2","new"]]}]});
        let grid = result(&streams);
        assert_eq!(grid.rows[0][1..], ["{app=\"b\"}", "new"]);
        let scalar = json!({"resultType":"scalar","result":[4,"2"]});
        assert_eq!(result(&scalar).rows, [["1970-01-01T00:00:04Z", "2"]]);
    }

    #[test]
    fn a_failure_under_way_is_found_in_the_tail() {
        let tail = b"[1]\n]},\"status\":\"error\",\"errorType\":\"timeout\",\"error\":\"query timed out\"}";
        assert_eq!(failed_under_way(tail).as_deref(), Some("query timed out"));
        assert_eq!(failed_under_way(b"[1]\n]},\"stats\":{},\"status\":\"success\"}"), None);
    }

    #[test]
    fn an_error_says_where() {
        let body =
            br#"{"status":"error","errorType":"bad_data","error":"no such column","position":{"line":2,"column":8}}"#;
        assert_eq!(problem(400, body), "line 2, column 8: no such column");
        assert_eq!(problem(404, b"404 page not found\n"), "404 page not found");
        assert_eq!(problem(502, b""), "the server answered 502");
    }
}
