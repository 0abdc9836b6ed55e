//! What is refused and what is cut off.

use std::time::Duration;

use serde_json::{Value, json};

use crate::data::World;

#[tokio::test]
async fn what_is_no_single_select_is_refused_by_name() {
    let w = World::new(10, 1, 10).await;
    for (text, word) in [
        ("insert into logs values (1)", "INSERT"),
        ("update logs set body = ''", "UPDATE"),
        ("delete from logs", "DELETE"),
        ("create table x as select 1", "CREATE"),
        ("create external table x stored as csv location '/etc/passwd'", "CREATE"),
        ("create view v as select 1", "CREATE"),
        ("drop table logs", "DROP"),
        ("copy logs to '/tmp/x.csv'", "COPY"),
        ("copy (select 1) to '/tmp/x.csv'", "COPY"),
        ("explain copy logs to '/tmp/x.csv'", "COPY"),
        ("set datafusion.execution.batch_size = 1", "SET"),
        ("show tables", "SHOW"),
        ("begin", "BEGIN"),
        ("select 1; select 2", "2 statements"),
        ("select 1; drop table logs", "2 statements"),
        ("select * into t from logs", "SELECT INTO"),
        ("with x as (insert into logs values (1) returning *) select * from x", "INSERT"),
        ("", "empty"),
        ("select * from '/etc/passwd'", "/etc/passwd"),
        ("select * from read_csv('/etc/passwd')", "read_csv"),
        ("select * from parquet_metadata('/etc/passwd')", "parquet_metadata"),
        ("select * from nothing", "nothing"),
        ("select nothing from logs", "nothing"),
        ("select * from logs for update", "FOR UPDATE"),
    ] {
        let (status, error) = w.refused(text).await;
        assert_eq!(status, 400, "{text}: {error}");
        assert_eq!(error["errorType"], "bad_data", "{text}");
        assert!(error["error"].as_str().unwrap().contains(word), "{text}: {error}");
    }
}

#[tokio::test]
async fn an_error_says_where_it_is() {
    let w = World::new(11, 1, 10).await;
    let (_, error) = w.refused("select ts,\n  from logs where").await;
    assert_eq!(error["position"]["line"], 2, "{error}");
    let (_, error) = w.refused("select\n  bdoy from logs").await;
    assert_eq!(error["position"], json!({"line": 2, "column": 3}), "{error}");
    let (_, error) = w.refused("select 'open").await;
    assert_eq!(error["position"]["line"], 1, "{error}");
    let (status, error) = w.refused("select 1 / (flags - flags) from (select 1 as flags)").await;
    assert_eq!((status, &error["errorType"]), (422, &json!("execution")), "{error}");
    let (status, _, body) = w.ask(json!({"query": "select 1", "fromat": "csv"})).await;
    assert_eq!(status, 400);
    assert!(String::from_utf8(body).unwrap().contains("fromat"));
}

#[tokio::test]
async fn texts_too_deep_too_long_or_too_wide_are_refused_and_nothing_overflows() {
    let w = World::new(12, 1, 10).await;
    let deep = |n: usize| format!("select {}1{}", "(".repeat(n), ")".repeat(n));
    assert_eq!(w.rows(&deep(40)).await, [json!([1])]);
    for (text, word) in [
        (deep(100_000), "bytes"),
        (deep(50_000), "brackets"),
        (deep(60), "brackets"),
        (format!("select * from {}logs{}", "(".repeat(49), ")".repeat(49)), "brackets"),
        (format!("select {}1", "not ".repeat(1_500)), ""),
        (format!("select {}1", "- ".repeat(1_500)), ""),
        (format!("select 1{}", " + 1".repeat(3_000)), "words"),
        (format!("select 1{}", " union all select 1".repeat(1_000)), "words"),
        (format!("select 1 from {}", vec!["logs"; 80].join(",")), "tables"),
    ] {
        let (status, error) = w.refused(&text).await;
        assert_eq!(status, 400, "{}", &text[..50]);
        assert!(error["error"].as_str().unwrap().contains(word), "{} {error}", &text[..50]);
    }
    // A parser that tries each bracket in two ways would take forever.
    let inner = format!("select count(*) from {}logs{}", "(".repeat(40), ")".repeat(40));
    let (status, _, _) = w.ask(json!({"query": inner, "timeout": "20s"})).await;
    assert!(status == 200 || status == 400, "{status}");
    let selects = format!("{}select 1{}", "select * from (".repeat(30), ") q".repeat(30));
    let (status, _, _) = w.ask(json!({"query": selects, "timeout": "20s"})).await;
    assert_eq!(status, 200);
    // As high as a tree may get.
    let sum = format!("select 1{}", " + flags".repeat(950));
    assert_eq!(w.rows(&format!("{sum} from (select 0 as flags)")).await.len(), 1);
    let or = format!("select count(*) from logs where body = ''{}", " or severity_number = 1".repeat(450));
    assert_eq!(w.rows(&or).await, [json!([0])]);
    let many: Vec<String> = (0..5_000).map(|i| format!("'{i}'")).collect();
    let list = format!("select count(*) from logs where body in ({})", many.join(","));
    assert_eq!(w.rows(&list).await, [json!([0])]);
}

#[tokio::test]
async fn rows_memory_and_time_are_bounded() {
    let w = World::new(13, 2, 50).await;
    let (status, _, body) = w.ask(json!({"query": "select * from generate_series(1, 30)", "limit": 7})).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, answer["data"]["rows"].as_array().unwrap().len()), (200, 7));
    assert_eq!(
        (&answer["stats"]["truncated"], &answer["warnings"][0]),
        (&json!(true), &json!("results truncated due to limit"))
    );
    let (_, _, body) = w.ask(json!({"query": "select * from generate_series(1, 7)", "limit": 7})).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(answer["stats"]["truncated"], false);

    // More bytes than are held back: the answer is under way when its rows exceed the limit, and says so at its end.
    let (status, _, body) = w.ask(json!({"query": "select * from generate_series(1, 2000000)"})).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &answer["status"], &answer["errorType"]), (200, &json!("error"), &json!("execution")));
    assert!(answer["error"].as_str().unwrap().contains("1000000 rows"), "{}", answer["error"]);

    let big = "select concat(repeat('x', 100), value) s from generate_series(1, 5000000) order by s";
    let (status, error) = w.refused(big).await;
    assert_eq!(status, 422, "{error}");
    assert!(error["error"].as_str().unwrap().contains("bytes that SQL queries share"), "{error}");

    let endless = "select count(*) from generate_series(1, 1000000000000)";
    let (status, _, body) = w.ask(json!({"query": endless, "timeout": "200ms"})).await;
    assert_eq!(status, 503, "{}", String::from_utf8_lossy(&body));
}

#[tokio::test]
async fn a_query_whose_reader_has_gone_gives_its_place_to_others() {
    let w = World::new(14, 1, 10).await;
    for _ in 0..12 {
        let endless = w.ask(json!({"query": "select count(*) from generate_series(1, 1000000000000)"}));
        assert!(tokio::time::timeout(Duration::from_millis(50), endless).await.is_err());
    }
    assert_eq!(w.rows("select count(*) from logs").await, [json!([10])]);
}

#[tokio::test]
async fn answers_come_as_csv_and_arrow_with_statistics_in_a_header() {
    let w = World::new(15, 4, 100).await;
    let query = "select service_name, count(*) as n from logs group by 1 order by 1 nulls first";
    let (status, headers, body) = w.ask(json!({"query": query, "format": "csv"})).await;
    let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()).unwrap_or_default();
    assert_eq!((status, header("content-type").as_str()), (200, "text/csv; charset=utf-8"));
    let text = String::from_utf8(body).unwrap();
    assert!(text.starts_with("service_name,n\n,"), "{text}");
    let stats: Value = serde_json::from_str(&header("x-sightline-stats")).unwrap();
    assert_eq!(stats["rowsScanned"], 400);
    let (_, headers, body) = w.ask(json!({"query": "select body, service_name from logs", "format": "arrow"})).await;
    assert!(headers.iter().any(|(n, v)| n == "content-type" && v == "application/vnd.apache.arrow.stream"));
    let reader = arrow_ipc::reader::StreamReader::try_new(&body[..], None).unwrap();
    assert_eq!(reader.map(|b| b.unwrap().num_rows()).sum::<usize>(), 400);
    // Longer than what is held back.
    let long = "select body, repeat(body, 300) from logs";
    let (status, _, body) = w.ask(json!({"query": long, "format": "csv"})).await;
    assert_eq!((status, body.iter().filter(|b| **b == b'\n').count()), (200, 401));
}

#[tokio::test]
async fn tenants_see_their_own_rows_and_a_request_its_own_time() {
    let w = World::new(16, 2, 50).await;
    let (status, _, body) = w.ask_as(json!({"query": "select count(*) from logs"}), Some("other")).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &answer["data"]["rows"]), (200, &json!([[0]])));
    let (status, _, _) = w.ask_as(json!({"query": "select 1"}), Some("../x")).await;
    assert_eq!(status, 400);
    let within = json!({"query": "select count(*) from logs", "start": "2023-11-14T22:00:00Z", "end": 1_700_000_000});
    let (_, _, body) = w.ask(within).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    let expected = w.logs.iter().filter(|l| l.ts < 1_700_000_000_001_000_000).count();
    assert_eq!(answer["data"]["rows"], json!([[expected]]));
    let (status, _, _) = w.ask(json!({"query": "select 1", "start": 5, "end": 4})).await;
    assert_eq!(status, 400);
}
