use proptest::prelude::*;
use storage::model::{LogBatchBuilder, LogRow};

use super::*;

fn rows() -> arrow::array::RecordBatch {
    let mut b = LogBatchBuilder::new();
    let row = LogRow {
        ts: 1_000,
        stream_labels: r#"{"app":"web"}"#,
        service_name: Some("web"),
        severity_number: Some(17),
        trace_id: Some(&[0xab; 16]),
        body: "GET /x failed",
        attrs: Some(r#"{"a key":true,"code":"500","http.status_code":404,"nul":null,"ratio":0.5}"#),
        ..LogRow::default()
    };
    b.push(&row);
    b.push(&LogRow { ts: 2_000, stream_labels: "{}", body: "", ..LogRow::default() });
    b.finish()
}

/// Whether the two rows fulfil it.
fn both(text: &str) -> (bool, bool) {
    let m = Condition::parse(text).unwrap_or_else(|e| panic!("{text}\n{e}")).mask(&rows());
    (m[0], m[1])
}

#[test]
fn tests_read_columns_members_and_text_that_holds_numbers() {
    for (text, expected) in [
        (".body contains 'failed'", (true, false)),
        (".body starts_with \"GET\" and .body ends_with \"failed\"", (true, false)),
        (r#".body matches "^GET /\w+ f""#, (true, false)),
        (".body == ''", (false, true)),
        (".severity_number >= 17", (true, false)),
        (".severity_number < 17", (false, false)),
        (".severity_number == \"17\"", (true, false)),
        (".attrs.code >= 500", (true, false)),
        (".attrs.code == '500'", (true, false)),
        (".attrs.http.status_code == 404", (true, false)),
        (".attrs.http.status_code != 404", (false, true)),
        (".attrs.ratio<1", (true, false)),
        (".attrs.\"a key\" == true", (true, false)),
        (".attrs.'a key' == 'true'", (true, false)),
        ("exists .attrs.nul", (false, false)),
        ("exists(.attrs.code)", (true, false)),
        ("not exists .attrs.code", (false, true)),
        (".stream.app == 'web' && .service_name=='web'", (true, false)),
        (".trace_id == 'abababababababababababababababab'", (true, false)),
        (".ts > 1500", (false, true)),
        ("!(.ts > 1500) || .body == ''", (true, true)),
        (".ts > 1500 or .ts < 1500 and .body == ''", (false, true)),
        (".resource.x != 'y'", (true, true)),
        (".resource.x < 'y'", (false, false)),
    ] {
        assert_eq!(both(text), expected, "{text}");
    }
}

#[test]
fn errors_point_at_the_place_and_name_the_nearest() {
    for (text, message, column, near) in [
        (".bdoy == 'x'", "unknown field `.bdoy`; did you mean `.body`?", 0, Some(".body")),
        (".body contians 'x'", "expected one of == != < <= > >= contains", 6, Some("contains")),
        (".body = 'x'", "expected one of", 6, Some("==")),
        (".body contains x", "expected a quoted text", 15, None),
        (".body contains 5", "`contains` needs a quoted text", 15, None),
        (".attrs == 1", "`.attrs` needs a key", 6, None),
        ("body == 'x'", "did you mean `.body`?", 0, Some(".body")),
        ("(.body == 'x'", "expected `)`", 13, None),
        (".body == 'x", "a text that is not closed", 9, None),
        (".body == 'x' .ts > 1", "expected `and`, `or` or the end", 13, None),
        (".body matches '('", "invalid regular expression: unclosed group", 14, None),
        (".body == 'x' and .metric == 'y'", "no signal has `.metric` and the other fields", 17, None),
        ("", "expected a field", 0, None),
        (".ts > nan", "expected a quoted text, a number", 6, None),
    ] {
        let e = Condition::parse(text).expect_err(text);
        assert!(e.message.contains(message), "{text}: {}", e.message);
        assert_eq!((e.column, e.nearest.as_deref()), (column, near), "{text}");
        let shown = e.to_string();
        assert_eq!(shown.lines().last().unwrap().find('^'), Some(column + 2), "{shown}");
    }
}

#[test]
fn depth_and_length_are_limited() {
    let deep = format!("{}.ts > 1{}", "(".repeat(50), ")".repeat(50));
    assert!(Condition::parse(&deep).is_ok());
    for deep in ["(".repeat(100_000 / 8), "not ".repeat(3_000), "!".repeat(10_000)] {
        assert!(Condition::parse(&deep).unwrap_err().message.contains("nested deeper"));
    }
    let long = vec![".ts > 1"; 5_000].join(" or ");
    assert!(Condition::parse(&long).unwrap_err().message.contains("longer than"));
}

#[test]
fn the_fields_decide_the_signals() {
    assert_eq!(Condition::parse(".body == 'x'").unwrap().signals(), Signals::LOGS);
    assert_eq!(Condition::parse(".metric == 'up' or .labels.job == 'x'").unwrap().signals(), Signals::METRICS);
    assert_eq!(Condition::parse(".attrs.x == 1").unwrap().signals(), LOGS_TRACES);
    assert_eq!(Condition::parse(".attrs.x == 1 and .duration_ns > 5").unwrap().signals(), Signals::TRACES);
}

fn condition() -> impl Strategy<Value = String> {
    let field = prop::sample::select(vec![
        ".body",
        ".ts",
        ".severity_number",
        ".attrs.a",
        ".attrs.b",
        ".stream.app",
        ".resource.x",
        ".trace_id",
    ]);
    let literal = prop::sample::select(vec!["'a'", "''", "5", "-1.5", "true", "false", "'5'"]);
    let op = prop::sample::select(vec!["==", "!=", "<", "<=", ">", ">="]);
    let leaf = (field.clone(), op, literal).prop_map(|(f, o, l)| format!("{f} {o} {l}")).boxed();
    let exists = field.prop_map(|f| format!("exists {f}"));
    prop_oneof![leaf, exists].prop_recursive(4, 16, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..3).prop_map(|v| format!("({})", v.join(" and "))),
            prop::collection::vec(inner.clone(), 1..3).prop_map(|v| format!("({})", v.join(" or "))),
            inner.prop_map(|c| format!("not {c}")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_condition_and_its_negation_partition_the_rows(
        text in condition(),
        rows in prop::collection::vec(("[a5]{0,2}", 0_i64..9, prop::option::of(0_i32..24), 0_usize..5), 0..20),
    ) {
        let attrs = [None, Some("{}"), Some(r#"{"a":"5"}"#), Some(r#"{"a":5,"b":true}"#), Some(r#"{"b":null}"#)];
        let mut b = LogBatchBuilder::new();
        for (body, ts, severity_number, a) in &rows {
            let row = LogRow { ts: *ts, stream_labels: "{}", body, severity_number: *severity_number, attrs: attrs[*a], ..LogRow::default() };
            b.push(&row);
        }
        let rows = b.finish();
        let yes = Condition::parse(&text).unwrap().mask(&rows);
        let no = Condition::parse(&format!("not ({text})")).unwrap().mask(&rows);
        prop_assert!(yes.iter().zip(&no).all(|(a, b)| a != b));
        prop_assert_eq!(yes.len(), rows.num_rows());
    }

    #[test]
    fn no_text_panics(text in "[.a-z\"'\\\\()=<>! \n0-9]{0,60}") {
        let _ = Condition::parse(&text);
        let _ = Condition::parse(&format!(".body {text}"));
    }
}
