//! Answers computed from the rows themselves.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::data::{BASE, Log, SECOND, World, hex, trace};

fn counts<K: Ord + Clone>(keys: impl Iterator<Item = K>) -> BTreeMap<K, u64> {
    let mut out = BTreeMap::new();
    keys.for_each(|k| *out.entry(k).or_insert(0) += 1);
    out
}

/// Rows of (text or null, count).
fn table(rows: &[Value]) -> BTreeMap<Option<String>, u64> {
    rows.iter().map(|r| (r[0].as_str().map(str::to_owned), r[1].as_u64().unwrap())).collect()
}

#[tokio::test]
async fn counts_by_columns_labels_and_attributes_are_those_of_the_rows() {
    let w = World::new(1, 6, 300).await;
    assert_eq!(w.rows("select count(*) from logs").await, [json!([w.logs.len()])]);
    let rows = w.rows("select service_name, count(*) from logs group by service_name").await;
    assert_eq!(table(&rows), counts(w.logs.iter().map(|l| l.service.clone())));
    let rows =
        w.rows("select label(l.stream_labels, 'app') as a, count(1) n from logs l group by a order by n").await;
    assert_eq!(table(&rows), counts(w.logs.iter().map(|l| l.app.clone())));
    let (from, to) = (BASE + 600 * SECOND, BASE + 5000 * SECOND);
    let within = |l: &&Log| from <= l.ts && l.ts < to;
    let rows = w
        .rows(
            "select service_name, count(*) from logs where ts >= '2023-11-14T22:10:00Z' \
             and ts < timestamp '2023-11-14 23:23:20' and body like '%failed%' group by 1",
        )
        .await;
    let failed = w.logs.iter().filter(within).filter(|l| l.body.contains("failed"));
    assert_eq!(table(&rows), counts(failed.map(|l| l.service.clone())));
    let rows = w.rows("select attr(attrs, 'code'), count(*) from logs where attrs is not null group by 1").await;
    let code = |l: &Log| {
        let v: Value = serde_json::from_str(l.attrs.as_deref().unwrap()).unwrap();
        v.get("code").map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned))
    };
    assert_eq!(table(&rows), counts(w.logs.iter().filter(|l| l.attrs.is_some()).map(code)));
    assert_eq!(
        w.rows("select sum(attr_number(attrs, 'code')) from logs").await[0][0],
        json!(w.logs.iter().filter(|l| l.attrs.is_some()).filter_map(|l| code(l)?.parse::<f64>().ok()).sum::<f64>())
    );
    let rows = w.rows("select distinct service_name from logs").await;
    assert_eq!(rows.len(), counts(w.logs.iter().map(|l| l.service.clone())).len());
    assert_eq!(w.rows("select count(*) from logs where ts < '2000-01-01T00:00:00Z'").await, [json!([0])]);
    let none = "select service_name, count(*) from logs where ts < '2000-01-01T00:00:00Z' group by 1";
    assert!(w.rows(none).await.is_empty());
}

#[tokio::test]
async fn the_latest_lines_of_a_label_come_in_order() {
    let w = World::new(2, 5, 200).await;
    let mut expected: Vec<&Log> = w.logs.iter().filter(|l| l.app.as_deref() == Some("shop")).collect();
    expected.sort_by_key(|l| -l.ts);
    let answer = w
        .answer(
            "select ts, body, trace_id from logs where label(stream_labels, 'app') = 'shop' order by ts desc limit 20",
        )
        .await;
    let rows = answer["data"]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 20);
    for (row, log) in rows.iter().zip(expected) {
        assert_eq!(row[1], log.body);
        assert_eq!(row[2], log.trace.map_or(Value::Null, |t| hex(&t).into()));
        let at = chrono::DateTime::parse_from_rfc3339(row[0].as_str().unwrap()).unwrap();
        assert_eq!(at.timestamp_nanos_opt(), Some(log.ts));
    }
}

#[tokio::test]
async fn a_trace_is_found_by_its_hexadecimal_id_and_joins_logs() {
    let w = World::new(3, 4, 200).await;
    let id = hex(&trace(3));
    let n = w.logs.iter().filter(|l| l.trace == Some(trace(3))).count();
    assert_eq!(w.rows(&format!("select count(*) from logs where trace_id = '{id}'")).await, [json!([n])]);
    let of_trace: Vec<_> = w.spans.iter().filter(|s| s.0 == trace(3)).collect();
    let rows = w
        .rows(&format!(
            "select service_name, sum(duration_ns) from spans where trace_id = '{id}' group by 1 order by 1"
        ))
        .await;
    let sum = |service: &str| of_trace.iter().filter(|s| s.2 == service).map(|s| s.3).sum::<i64>();
    assert_eq!(rows, [json!(["bank", sum("bank")]), json!(["shop", sum("shop")])]);
    let pairs = "select count(*) from logs l join spans s on l.trace_id = s.trace_id where s.name = 'pay'";
    let pays = |t: [u8; 16]| w.spans.iter().filter(|s| s.0 == t && s.1 == "pay").count();
    let expected: usize = w.logs.iter().filter_map(|l| l.trace).map(pays).sum();
    assert_eq!(w.rows(pairs).await, [json!([expected])]);
}

#[tokio::test]
async fn samples_bear_the_labels_of_their_series_and_their_exact_values() {
    let w = World::new(4, 4, 10).await;
    let rows = w
        .rows(
            "select ts_ms, value, job, label(labels, 'zone'), type from samples \
             where metric = 'up' and job in ('api', 'a.b') order by job, ts_ms",
        )
        .await;
    let mut expected: Vec<_> = w.samples.iter().filter(|s| s.metric == "up" && s.job != "web").collect();
    expected.sort_by_key(|s| (s.job.clone(), s.ts_ms));
    assert_eq!(rows.len(), expected.len());
    for (row, s) in rows.iter().zip(expected) {
        let value = if s.value.is_finite() { json!(s.value) } else { json!("+Inf") };
        assert_eq!(*row, json!([s.ts_ms, value, s.job, "z1", "gauge"]));
    }
    let rows = w.rows("select metric, count(*) from samples where label(labels, 'job') like 'a%' group by 1").await;
    let a = w.samples.iter().filter(|s| s.job.starts_with('a'));
    assert_eq!(table(&rows), counts(a.map(|s| Some(s.metric.clone()))));
    let minute = "select date_trunc('minute', ts) m, max(value) from samples where metric = 'up' and value < 10 \
                  group by m order by m limit 1";
    let first = w.rows(minute).await;
    assert_eq!(first[0][0], "2023-11-14T22:00:00Z");
    assert_eq!(w.rows("select count(distinct series_id) from metric_series").await, [json!([6])]);
    assert_eq!(w.rows("select count(*) from metric_samples").await, [json!([w.samples.len()])]);
    let joined = "select count(*) from metric_samples s where s.series_id in \
                  (select series_id from metric_series where metric = 'up')";
    assert_eq!(w.rows(joined).await, [json!([w.samples.iter().filter(|s| s.metric == "up").count()])]);
}

#[tokio::test]
async fn subqueries_unions_and_windows_work() {
    let w = World::new(5, 3, 100).await;
    let rows = w
        .rows(
            "with c as (select service_name s, count(*) n from logs group by 1) \
             select s, n, rank() over (order by n desc, s) r from c \
             union all select 'all', (select count(*) from logs), 0 order by r",
        )
        .await;
    assert_eq!(rows[0], json!(["all", w.logs.len(), 0]));
    assert_eq!(rows.len(), 1 + counts(w.logs.iter().map(|l| l.service.clone())).len());
    let plan =
        w.rows("explain select count(*) from logs where ts > '2023-11-14T22:10:00Z' and severity_number > 9").await;
    assert!(plan.iter().any(|r| r[1].as_str().unwrap().contains("FragmentExec: logs")), "{plan:?}");
    let names =
        w.rows("select table_name from information_schema.tables where table_schema = 'public' order by 1").await;
    let mut expected: Vec<&str> = storage::model::Table::ALL.iter().map(|t| t.name()).collect();
    expected.push("samples");
    expected.sort_unstable();
    assert_eq!(names, expected.iter().map(|n| json!([n])).collect::<Vec<_>>());
}
