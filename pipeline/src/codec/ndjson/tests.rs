use arrow::{
    array::{Array as _, AsArray, RecordBatch},
    datatypes::{Int32Type, Int64Type, TimestampNanosecondType},
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

const NOW: i64 = 1_767_225_700_000_000_000;

fn text(batch: &RecordBatch, column: &str, row: usize) -> Value {
    let c = batch.column_by_name(column).unwrap();
    match c.as_any_dictionary_opt() {
        _ if c.is_null(row) => Value::Null,
        Some(_) => {
            let d = c.as_dictionary::<Int32Type>();
            d.values().as_string::<i32>().value(d.keys().value(row) as usize).into()
        }
        None => c.as_string::<i32>().value(row).into(),
    }
}

/// Rows as JSON, column by column, as far as NDJSON fills them.
fn rows(decoded: &Decoded) -> Vec<Value> {
    let mut out = Vec::new();
    for data in &decoded.batches {
        let Data::Logs(b) = data else { panic!("logs") };
        for i in 0..b.num_rows() {
            let mut row = Map::new();
            for column in ["stream_labels", "service_name", "severity_text", "body", "body_type", "attrs"] {
                row.insert(column.into(), text(b, column, i));
            }
            let ts = b.column_by_name("ts").unwrap().as_primitive::<TimestampNanosecondType>().value(i);
            row.insert("ts".into(), ts.into());
            let n = b.column_by_name("severity_number").unwrap().as_primitive::<Int32Type>();
            row.insert("severity_number".into(), n.is_valid(i).then(|| n.value(i)).into());
            for column in ["trace_id", "span_id"] {
                let c = b.column_by_name(column).unwrap().as_binary::<i32>();
                row.insert(column.into(), c.is_valid(i).then(|| hex::encode(c.value(i))).into());
            }
            out.push(Value::Object(row));
        }
        assert!(b.column_by_name("flags").unwrap().as_primitive::<Int64Type>().null_count() == b.num_rows());
    }
    out
}

fn params(stream: &str) -> Params {
    Params::new(Some("ts"), Some("msg"), Some(stream)).unwrap()
}

fn read(body: &str) -> Decoded {
    decode(body.as_bytes(), &params("app,pod"), &Limits::default(), NOW)
}

#[test]
fn a_line_becomes_a_record_with_every_field_in_its_place() {
    let line = r#"{"ts":1767225600000123456,"app":"hdfs","pod":"p-1","level":"info","n":1.50,"deep":{"b":[1,"x"],"a":null},"msg":"a \"b\"\n","trace_id":"0af7651916cd43dd8448eb211c80319c","span_id":"00F067AA0BA902B7"}"#;
    let d = read(line);
    assert_eq!(
        rows(&d),
        [json!({
            "ts": 1_767_225_600_000_123_456i64,
            "stream_labels": r#"{"app":"hdfs","pod":"p-1","service_name":"hdfs"}"#,
            "service_name": "hdfs",
            "severity_text": "info",
            "severity_number": 9,
            "body": "a \"b\"\n",
            "body_type": null,
            // The upper-case span id is not what the column gives back, so it stays.
            "attrs": r#"{"deep":{"a":null,"b":[1,"x"]},"level":"info","n":1.5,"span_id":"00F067AA0BA902B7"}"#,
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "span_id": "00f067aa0ba902b7",
        })]
    );
}

#[test]
fn bad_lines_are_told_with_number_and_reason_and_good_ones_kept() {
    let far = NOW + 601 * 1_000_000_000;
    let body = format!(
        "{{\"msg\":\"one\"}}\n\nnot json\n{{\"msg\":\"two\",\"ts\":\"x\"}}\r\n{{\"ts\":{far}}}\n[1]\n{{\"a\":\"\\ud800\"}}\n{{\"msg\":\"last\"}}"
    );
    let d = read(&body);
    assert_eq!(d.accepted, 2);
    let at: Vec<u64> = d.rejected.details.iter().map(|d| d.at).collect();
    assert_eq!(at, [3, 4, 5, 6, 7]);
    let reasons: Vec<_> = d.rejected.by_reason().collect();
    assert_eq!(reasons, [(Reason::Malformed, 3), (Reason::InvalidTime, 1), (Reason::TooFarAhead, 1)]);
    assert_eq!(rows(&d)[0]["ts"], NOW);
    assert_eq!(rows(&d)[1]["body"], "last");
}

#[test]
fn invalid_utf8_refuses_its_line_only() {
    let d = decode(b"{\"msg\":\"\xff\"}\n{\"msg\":\"\xc3\xbc\"}\n", &params(""), &Limits::default(), NOW);
    assert_eq!((d.accepted, d.rejected.total()), (1, 1));
    assert_eq!(rows(&d)[0]["body"], "ü");
    assert_eq!(rows(&d)[0]["stream_labels"], r#"{"service_name":"unknown_service"}"#);
}

#[test]
fn ten_thousand_attributes_pass_and_deep_values_do_not() {
    let many: Vec<String> = (0..10_000).map(|i| format!("\"k{i}\":{i}")).collect();
    let deep = format!("{{\"d\":{}1{}}}", "[".repeat(100), "]".repeat(100));
    let deeper = format!("{{\"d\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let d = read(&format!("{{{}}}\n{deep}\n{deeper}", many.join(",")));
    assert_eq!(d.accepted, 1);
    assert_eq!(d.rejected.by_reason().collect::<Vec<_>>(), [(Reason::TooDeep, 2)]);
}

#[test]
fn labels_over_a_limit_refuse_the_line() {
    let d = read(&format!("{{\"app\":\"{}\"}}\n{{\"app\":\"b\"}}", "v".repeat(2049)));
    assert_eq!((d.accepted, d.rejected.total()), (1, 1));
}

#[test]
fn large_requests_are_split_and_lose_nothing() {
    let limits = Limits { batch_rows_max: 7, ..Limits::default() };
    let body: String =
        (0..100).map(|i| format!("{{\"app\":\"a{}\",\"level\":\"l{}\",\"msg\":\"{i}\"}}\n", i % 3, i % 2)).collect();
    let d = decode(body.as_bytes(), &params("app"), &limits, NOW);
    assert_eq!(d.batches.len(), 15);
    for (i, row) in rows(&d).iter().enumerate() {
        assert_eq!(row["body"], i.to_string());
        assert_eq!(row["attrs"], format!("{{\"level\":\"l{}\"}}", i % 2));
        assert_eq!(row["service_name"], format!("a{}", i % 3));
    }
}

#[test]
fn usual_names_are_found_without_parameters_and_the_rest_stays() {
    let p = Params::new(None, None, None).unwrap();
    let d =
        decode(br#"{"message":"second","msg":"first","time":"2026-01-01T00:00:00Z"}"#, &p, &Limits::default(), NOW);
    let row = &rows(&d)[0];
    assert_eq!((&row["body"], &row["attrs"]), (&json!("first"), &json!(r#"{"message":"second"}"#)));
    assert_eq!(row["ts"], 1_767_225_600_000_000_000i64);
}

/// The record of a line by serde_json alone: no scanner, no caches. `None`: refused.
fn oracle(line: &str) -> Option<Value> {
    // Last of equal keys wins in a Map, as it does for us.
    let map: Map<String, Value> = serde_json::from_str(line).ok()?;
    let ts = match map.get("ts") {
        None | Some(Value::Null) => NOW,
        Some(Value::String(s)) => time::parse(s)?,
        Some(Value::Number(_)) => {
            // As written: a double would round.
            let raw: std::collections::HashMap<String, &serde_json::value::RawValue> =
                serde_json::from_str(line).ok()?;
            time::parse(raw["ts"].get())?
        }
        _ => return None,
    };
    // An integer of ten digits may be a time years from now.
    let ahead = i64::try_from(Limits::default().future_max?.as_nanos()).ok()?;
    if ts > NOW + ahead {
        return None;
    }
    let canonical = |v: &Value| {
        let mut out = String::new();
        value::write_value(&mut out, v, &Limits::default(), 64).ok().map(|()| out)
    };
    let mut labels = Labels::default();
    for name in ["app", "pod"] {
        match map.get(name) {
            None | Some(Value::Null) => {}
            Some(Value::String(s)) => labels.set(name, s.clone()),
            Some(v) => labels.set(name, canonical(v)?),
        }
    }
    stream::discover_service_name(&mut labels);
    let mut attrs: Map<String, Value> = Map::new();
    let mut ids = [Value::Null, Value::Null];
    for (k, v) in &map {
        if ["ts", "msg", "app", "pod"].contains(&k.as_str()) {
            continue;
        }
        let place = ["trace_id", "span_id"].iter().position(|n| n == k);
        if let (Some(i), Some(s)) = (place, v.as_str())
            && s.len() == [32, 16][i]
            && s.bytes().all(|b| b.is_ascii_hexdigit())
            && s.bytes().any(|b| b != b'0')
        {
            ids[i] = s.to_lowercase().into();
            if ids[i] == *v {
                continue;
            }
        }
        attrs.insert(k.clone(), v.clone());
    }
    let level = ["level", "severity"].iter().find_map(|k| attrs.get(*k)?.as_str()).filter(|l| !l.is_empty());
    let (body, body_type) = match map.get("msg") {
        None | Some(Value::Null) => (String::new(), Value::Null),
        Some(Value::String(s)) => (s.clone(), Value::Null),
        Some(v) => (canonical(v)?, "json".into()),
    };
    Some(json!({
        "ts": ts,
        "stream_labels": labels.to_json(),
        "service_name": labels.get("service_name"),
        "severity_text": level,
        "severity_number": level.and_then(stream::severity_number),
        "body": body,
        "body_type": body_type,
        "attrs": if attrs.is_empty() { Value::Null } else { canonical(&Value::Object(attrs))?.into() },
        "trace_id": ids[0],
        "span_id": ids[1],
    }))
}

fn value_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?(0|[1-9][0-9]{0,20})",
        "-?[0-9]{1,3}\\.[0-9]{1,3}(e-?[0-9])?",
        "\"[a-z \\\\\"ü/]{0,6}\"",
        Just("\"info\"".to_owned()),
        Just("\"\\ud83d\\ude00\\u00fc\\n\"".to_owned()),
        Just("\"0af7651916cd43dd8448eb211c80319c\"".to_owned()),
        Just("\"00F067AA0BA902B7\"".to_owned()),
        Just("1767225600000123456".to_owned()),
        Just("\"2026-01-01T00:00:00Z\"".to_owned()),
        Just("tru".to_owned()),
        Just("01".to_owned()),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(|v| format!("[{}]", v.join(", "))),
            proptest::collection::vec(("[ab]", inner), 0..3).prop_map(|v| {
                let fields: Vec<String> = v.into_iter().map(|(k, v)| format!("\"{k}\" :{v}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

fn line() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("ts"),
        Just("msg"),
        Just("app"),
        Just("pod"),
        Just("level"),
        Just("severity"),
        Just("trace_id"),
        Just("span_id"),
        Just("k"),
        Just("\\u006b"),
        Just("ü")
    ];
    let space = prop_oneof![8 => Just(""), 1 => Just(" "), 1 => Just("\t")];
    let fields = proptest::collection::vec((key, value_text(), space.clone()), 0..7);
    (fields, space).prop_map(|(fields, s)| {
        let fields: Vec<String> = fields.into_iter().map(|(k, v, s)| format!("{s}\"{k}\"{s}:{s}{v}{s}")).collect();
        format!("{s}{{{}}}{s}", fields.join(","))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_fast_way_and_the_general_parser_agree(lines in proptest::collection::vec(line(), 1..8)) {
        let d = read(&lines.join("\n"));
        let want: Vec<Value> = lines.iter().filter_map(|l| oracle(l)).collect();
        prop_assert_eq!(rows(&d), want, "{:#?} {:?}", lines, d.rejected.details);
        prop_assert_eq!(d.accepted + d.rejected.total(), lines.len() as u64);
    }

    #[test]
    fn damaged_lines_never_panic_and_are_judged_like_the_general_parser(
        l in line(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = l.into_bytes();
        let i = at.index(bytes.len());
        bytes[i] = byte;
        let d = decode(&bytes, &params("app,pod"), &Limits::default(), NOW);
        if let Ok(text) = std::str::from_utf8(&bytes) && !text.contains('\n') && !text.trim().is_empty() {
            let want: Vec<Value> = oracle(text).into_iter().collect();
            prop_assert_eq!(rows(&d), want, "{}", text);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let d = decode(&bytes, &params("app,pod"), &Limits::default(), NOW);
        prop_assert!(d.accepted <= 200);
    }
}
