use storage::model::{LogBatchBuilder, LogRow};

use super::*;
use crate::{
    component::Data,
    metrics::{ComponentKind, Registry},
};

fn build(json: &str) -> Parse {
    let config: Config = serde_json::from_str(json).unwrap();
    Parse::new(&config, "transforms.p").unwrap()
}

fn row(body: &str) -> LogRow<'_> {
    LogRow { ts: 5, stream_labels: "{}", body, ..LogRow::default() }
}

/// Rows as JSON lines (as the stdout sink writes them) and how many did not parse.
fn run(parse: &Parse, rows: &[LogRow<'_>]) -> (Vec<serde_json::Value>, u64) {
    let mut b = LogBatchBuilder::new();
    rows.iter().for_each(|r| b.push(r));
    let registry = Registry::default();
    let counters = registry.add("p", ComponentKind::Transform);
    let data = parse.apply(Data::Logs(b.finish()), &counters).unwrap();
    let text = crate::sink::stdout::write_batch(&crate::Batch::new(Default::default(), data)).unwrap();
    let lines = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    (lines, registry.snapshot()[0].fault(Fault::Unparsed))
}

#[test]
fn cri_lines_give_time_stream_and_line() {
    let p = build(r#"{"inputs":["s"],"format":"cri"}"#);
    let (out, unparsed) = run(
        &p,
        &[
            row("1970-01-01T00:00:01.5+00:00 stdout F a line"),
            row("1970-01-01T00:00:01Z stderr P:x  two"),
            row("1970-01-01T00:00:01Z stderr F"),
            row("1970-01-01T00:00:01Z stdlog F x"),
            row("not a line"),
            row(""),
        ],
    );
    assert_eq!(unparsed, 3);
    assert_eq!((&out[0]["body"], &out[0]["attrs"]), (&"a line".into(), &serde_json::json!({"stream":"stdout"})));
    assert_eq!(out[0]["timestamp"], "1970-01-01T00:00:01.500000000Z");
    assert_eq!(out[1]["body"], " two");
    assert_eq!(out[1]["attrs"], serde_json::json!({"partial":true,"stream":"stderr"}));
    assert_eq!(out[2]["body"], "");
    assert_eq!(out[4]["body"], "not a line");
    assert_eq!(out[4]["timestamp"], "1970-01-01T00:00:00.000000005Z");
}

#[test]
fn json_members_join_the_attributes_and_the_named_ones_fill_their_columns() {
    let p = build(r#"{"inputs":["s"],"format":"json","message":"msg","timestamp":"t","severity":"lvl"}"#);
    let with = LogRow {
        attrs: Some(r#"{"a":"old","keep":1}"#),
        ..row(r#"{"msg":"hi","t":1700000000123,"lvl":"warn","a":{"z":1,"b":[2.0]}}"#)
    };
    let odd = LogRow { body_type: Some("json"), ..row(r#"{"msg":7,"t":"nonsense","lvl":99}"#) };
    let (out, unparsed) = run(&p, &[with, odd, row("plain"), row("[1]")]);
    assert_eq!(unparsed, 2);
    assert_eq!(out[0]["body"], "hi");
    assert_eq!(out[0]["timestamp"], "2023-11-14T22:13:20.123000000Z");
    assert_eq!((&out[0]["severity_number"], &out[0]["severity_text"]), (&13.into(), &"warn".into()));
    assert_eq!(out[0]["attrs"], serde_json::json!({"a":{"b":[2.0],"z":1},"keep":1}));
    assert_eq!(out[1]["body"], "7");
    assert!(out[1].get("body_type").is_none(), "a replaced body is plain text");
    assert_eq!(out[1]["attrs"], serde_json::json!({"lvl":99,"t":"nonsense"}), "what cannot be used stays");
    assert_eq!(out[2]["body"], "plain");
    assert!(out[2].get("attrs").is_none() && out[2].get("severity_number").is_none());
}

#[test]
fn logfmt_reads_quotes_and_passes_over_bare_words() {
    let p = build(r#"{"inputs":["s"],"format":"logfmt"}"#);
    let (out, unparsed) = run(
        &p,
        &[
            row(r#"level=info msg="a \"b\" c" bare n=1 empty= =x"#),
            row("no pairs here"),
            row(r#"a="not closed"#),
            row("   "),
        ],
    );
    assert_eq!(unparsed, 3);
    assert_eq!(out[0]["attrs"], serde_json::json!({"empty":"","level":"info","msg":"a \"b\" c","n":"1"}));
    assert_eq!(out[0]["body"], r#"level=info msg="a \"b\" c" bare n=1 empty= =x"#);
}

#[test]
fn named_captures_become_attributes_and_an_attribute_can_be_the_source() {
    let p = build(
        r#"{"inputs":["s"],"format":"regex","field":".attrs.req","pattern":"^(?<method>[A-Z]+) (?<path>\\S+)( (?<rest>.*))?$"}"#,
    );
    let (out, unparsed) = run(
        &p,
        &[
            LogRow { attrs: Some(r#"{"req":"GET /x"}"#), ..row("b") },
            LogRow { attrs: Some("{}"), ..row("b") },
            row("b"),
        ],
    );
    assert_eq!(unparsed, 2);
    assert_eq!(out[0]["attrs"], serde_json::json!({"method":"GET","path":"/x","req":"GET /x"}));
}

#[test]
fn times_are_read_to_the_nanosecond() {
    let auto = |t: &str| parse_time(t, &TimeFormat::Auto);
    assert_eq!(auto("1700000000"), Some(1_700_000_000_000_000_000));
    assert_eq!(auto("1700000000.000000007"), Some(1_700_000_000_000_000_007));
    assert_eq!(auto("-1.5"), Some(-1_500_000_000));
    assert_eq!(auto("1700000000123"), Some(1_700_000_000_123_000_000));
    assert_eq!(auto("1700000000123456"), Some(1_700_000_000_123_456_000));
    assert_eq!(auto("1700000000123456789"), Some(1_700_000_000_123_456_789));
    assert_eq!(auto("2023-11-14T22:13:20.000000001+01:00"), Some(1_699_996_400_000_000_001));
    for bad in ["", "yesterday", "1e9", "99999-01-01T00:00:00Z", "1.2.3", "9999999999999999999"] {
        assert_eq!(auto(bad), None, "{bad}");
    }
    let strftime = |t: &str, f: &str| parse_time(t, &TimeFormat::parse(f).unwrap());
    assert_eq!(strftime("14/Nov/2023:22:13:20 +0000", "%d/%b/%Y:%H:%M:%S %z"), Some(1_700_000_000_000_000_000));
    assert_eq!(strftime("2023-11-14 22:13:20.5", "%Y-%m-%d %H:%M:%S%.f"), Some(1_700_000_000_500_000_000));
    assert_eq!(strftime("2023-11-14", "%Y-%m-%d"), Some(1_699_920_000_000_000_000));
    assert!(TimeFormat::parse("%Q").is_err() && TimeFormat::parse("iso").is_err());
}

#[test]
fn severities_of_many_loggers_become_otlp_numbers() {
    for (text, number) in [("WARNING", 13), ("eRR", 17), (" info ", 9), ("24", 24), ("50", 17), ("critical", 21)] {
        assert_eq!(severity_of(text).map(|s| s.0), Some(number), "{text}");
    }
    for text in ["", "0", "25", "-1", "loud", "a very long text that is no severity"] {
        assert_eq!(severity_of(text), None, "{text}");
    }
    let p = build(r#"{"inputs":["s"],"format":"severity","field":".attrs.level"}"#);
    let known = LogRow { severity_number: Some(1), severity_text: Some("t"), ..row("b") };
    let (out, unparsed) = run(&p, &[LogRow { attrs: Some(r#"{"level":"Error"}"#), ..row("b") }, known]);
    assert_eq!((&out[0]["severity_number"], &out[0]["severity_text"]), (&17.into(), &"Error".into()));
    assert_eq!((&out[1]["severity_number"], &out[1]["severity_text"]), (&1.into(), &"t".into()));
    assert_eq!(unparsed, 1);
}

#[test]
fn all_mistakes_of_a_configuration_are_told() {
    let config: Config = serde_json::from_str(
        r#"{"inputs":["s"],"format":"regex","field":".stream.x","time_format":"iso","pattern":"("}"#,
    )
    .unwrap();
    let errors = Parse::new(&config, "transforms.p").err().unwrap();
    let paths: Vec<&str> = errors.iter().map(|e| e.path.as_str()).collect();
    assert_eq!(paths, ["transforms.p.field", "transforms.p.pattern", "transforms.p.time_format"]);
}
