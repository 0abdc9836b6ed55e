//! `sightline query` asks a real server: each language in each format, and what its exit code tells.

use std::{
    io::Write as _,
    net::TcpListener,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

use super::{
    oracle::now_ns,
    server::{Server, program},
};

struct Asker {
    url: String,
}

impl Asker {
    fn output(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program());
        command.arg("query").args(args).args(["--url", &self.url]).stdin(Stdio::null());
        command.env_remove("SIGHTLINE_TENANT").env_remove("SIGHTLINE_URL").output().expect("the program runs")
    }

    /// What an answered query prints.
    fn answer(&self, args: &[&str]) -> String {
        let out = self.output(args);
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!((out.status.code(), told.as_str()), (Some(0), ""), "{args:?}");
        String::from_utf8(out.stdout).unwrap()
    }

    /// Exit code and the one line that says why; nothing on standard output.
    fn refusal(&self, args: &[&str]) -> (Option<i32>, String) {
        let out = self.output(args);
        assert_eq!(String::from_utf8_lossy(&out.stdout), "", "{args:?}");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    }
}

/// A server with three lines, a second apart, and two samples at the first one's second.
fn filled(dir: &std::path::Path) -> (Server, Asker, i64) {
    let server = Server::start(dir, &["--no-collect"]);
    let second = now_ns() / 1_000_000_000 - 600;
    let mut lines = String::new();
    for (i, (level, text)) in [("info", "plain"), ("warn", "one, two"), ("error", "say \"x\"")].iter().enumerate() {
        let ts = (second + i as i64) * 1_000_000_000;
        lines.push_str(&format!("{}\n", json!({ "ts": ts, "app": "shop", "level": level, "msg": text })));
    }
    let path = "/ingest/ndjson?time_field=ts&message_field=msg&stream_fields=app";
    let answer = server.client().post(path, "application/x-ndjson", lines.as_bytes()).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut points = String::new();
    for (room, value) in [("attic", 21.5), ("cellar", -4.0)] {
        let labels = json!({ "__name__": "temperature", "room": room });
        let row = json!({ "row": "sample", "series_labels": labels, "ts_ms": second * 1000, "value": value });
        points.push_str(&format!("{row}\n"));
    }
    let answer = server.client().post("/api/v1/import", "application/x-ndjson", points.as_bytes()).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let asker = Asker { url: format!("http://{}", server.http) };
    (server, asker, second)
}

fn rfc3339(second: i64) -> String {
    chrono::DateTime::from_timestamp(second, 0).unwrap().to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

#[test]
fn each_language_prints_a_table_json_raw_and_csv() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, asker, second) = filled(dir.path());
    let (first, second_text, third) = (rfc3339(second), rfc3339(second + 1), rfc3339(second + 2));

    let sql = "select body, severity_number as n from logs order by ts";
    let table = "body       n\n--------  --\nplain      9\none, two  13\nsay \"x\"   17\n(3 rows)\n";
    assert_eq!(asker.answer(&[sql]), table);
    assert_eq!(asker.answer(&[sql, "--format", "raw"]), "plain\t9\none, two\t13\nsay \"x\"\t17\n");
    let csv = asker.answer(&[sql, "--format", "csv"]);
    assert_eq!(csv.replace("\r\n", "\n"), "body,n\nplain,9\n\"one, two\",13\n\"say \"\"x\"\"\",17\n");
    let answer: Value = serde_json::from_str(&asker.answer(&[sql, "--format", "json"])).unwrap();
    assert_eq!(answer["data"]["rows"], json!([["plain", 9], ["one, two", 13], ["say \"x\"", 17]]));
    let since = asker.answer(&["select count(*) from logs", "--since", "1m", "--format", "raw"]);
    assert_eq!(since, "0\n", "the lines are ten minutes old");
    let cut = asker.output(&[sql, "--limit", "1", "--format", "raw"]);
    let (printed, told) = (String::from_utf8_lossy(&cut.stdout), String::from_utf8_lossy(&cut.stderr));
    assert_eq!((printed.as_ref(), told.as_ref()), ("plain\t9\n", "warning: results truncated due to limit\n"));
    assert_eq!(cut.status.code(), Some(0));

    let end = second.to_string();
    let promql = ["sort(temperature)", "--end", &end];
    let ask = |format: &'static str| asker.answer(&[&promql[..], &["--format", format]].concat());
    let (cold, warm) = ("temperature{room=\"cellar\"}", "temperature{room=\"attic\"}");
    let table = format!("series time value\n\n{cold} {first} -4\n{warm} {first} 21.5\n(2 rows)\n");
    let got = asker.answer(&promql);
    assert_eq!(squeezed(&got), squeezed(&table), "{got}");
    assert_eq!(ask("raw"), format!("{cold}\t{first}\t-4\n{warm}\t{first}\t21.5\n"));
    let quoted = |series: &str| format!("\"{}\"", series.replace('"', "\"\""));
    assert_eq!(
        ask("csv"),
        format!("series,time,value\n{},{first},-4\n{},{first},21.5\n", quoted(cold), quoted(warm))
    );
    let answer: Value = serde_json::from_str(&ask("json")).unwrap();
    assert_eq!(answer["data"]["resultType"], "vector");
    assert_eq!(answer["data"]["result"][1]["value"], json!([second, "21.5"]));
    let range = ["sum(temperature)", "--start", &end, "--end", &(second + 2).to_string(), "--step", "1s"];
    let times = [&first, &second_text, &third];
    let wanted: String = times.iter().map(|t| format!("{{}}\t{t}\t17.5\n")).collect();
    assert_eq!(asker.answer(&[&range[..], &["--format", "raw"]].concat()), wanted);

    // The latest line first, as the API has it.
    let logql = ["{app=\"shop\"}", "--since", "1h"];
    let ask = |format: &'static str| asker.answer(&[&logql[..], &["--format", format]].concat());
    assert_eq!(ask("raw"), "say \"x\"\none, two\nplain\n");
    let table = asker.answer(&logql);
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows[0].split_whitespace().collect::<Vec<_>>(), ["time", "labels", "line"]);
    assert!(rows[1].starts_with("---") && rows.len() == 6 && rows[5] == "(3 rows)", "{table}");
    for (row, (time, line)) in
        rows[2..5].iter().zip([(&third, "say \"x\""), (&second_text, "one, two"), (&first, "plain")])
    {
        assert!(
            row.starts_with(&format!("{time}  {{app=\"shop\",")) && row.ends_with(&format!("  {line}")),
            "{table}"
        );
    }
    let csv = ask("csv");
    let rows: Vec<&str> = csv.lines().collect();
    assert!(rows.len() == 4 && rows[0] == "time,labels,line", "{csv}");
    assert!(rows[1].starts_with(&format!("{third},\"{{app=\"\"shop\"\"")) && rows[1].ends_with(",\"say \"\"x\"\"\""));
    assert!(rows[2].ends_with(",\"one, two\"") && rows[3].ends_with(",plain"), "{csv}");
    let answer: Value = serde_json::from_str(&ask("json")).unwrap();
    assert_eq!(answer["data"]["resultType"], "streams");
    let lines = answer["data"]["result"].as_array().unwrap().iter().flat_map(|s| s["values"].as_array().unwrap());
    assert_eq!(lines.count(), 3);
    let counted = ["sum(count_over_time({app=\"shop\"}[1h]))", "--start", &end, "--end", &end, "--format", "raw"];
    assert_eq!(asker.answer(&counted), format!("{{}}\t{first}\t1\n"));
}

/// The words of each line, without the rule under the names.
fn squeezed(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|l| l.split_whitespace().filter(|w| !w.starts_with("---")).collect()).collect()
}

#[test]
fn the_exit_code_tells_an_answer_a_refusal_a_wrong_command_and_no_server() {
    let dir = tempfile::tempdir().unwrap();
    let (server, asker, _) = filled(dir.path());

    // Answered, though there is nothing: another tenant's.
    for text in ["select body from logs", "temperature", "{app=\"shop\"}"] {
        assert!(asker.answer(&[text, "--tenant", "other"]).ends_with("(0 rows)\n"), "{text}");
    }
    let named = ["{__name__=\"temperature\"}", "--lang", "promql", "--since", "1h", "--format", "raw"];
    assert!(asker.answer(&named).contains("temperature{room=\"attic\"}\t"), "--lang beats the text");
    let mut child = Command::new(program())
        .args(["query", "-", "--format", "raw", "--url", &asker.url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"select count(*)\nfrom logs\n").unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), String::from_utf8_lossy(&out.stdout).as_ref()), (Some(0), "3\n"));

    for format in ["table", "json", "raw", "csv"] {
        let (code, why) = asker.refusal(&["select nope from logs", "--format", format]);
        assert!(code == Some(1) && why.starts_with("error: line 1, column 8: "), "{format}: {code:?} {why}");
        for text in ["sum(", "{app=\"shop\"} |=", "delete from logs"] {
            let lang = if text.starts_with("delete") {
                "sql"
            } else if text.starts_with('{') {
                "logql"
            } else {
                "promql"
            };
            let (code, why) = asker.refusal(&[text, "--lang", lang, "--format", format]);
            assert!(code == Some(1) && why.starts_with("error: "), "{text}, {format}: {code:?} {why}");
        }
    }
    let (code, why) = asker.refusal(&["up", "--tenant", "a|b"]);
    assert!(code == Some(1) && why.contains("tenant"), "{code:?} {why}");

    for wrong in [&["up", "--format", "xml"][..], &["up", "--start", "yesterday"], &["up", "down"], &[]] {
        assert_eq!(asker.refusal(wrong).0, Some(2), "{wrong:?}");
    }

    // Free a moment ago, so nobody answers there.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).unwrap();
    for text in ["select 1", "up", "{app=\"shop\"}"] {
        let (code, why) = Asker { url: format!("http://{free}") }.refusal(&[text]);
        assert!(code == Some(3) && why.contains(&free.to_string()) && why.contains("--url"), "{code:?} {why}");
    }
    assert!(server.stop().0.success());
}
