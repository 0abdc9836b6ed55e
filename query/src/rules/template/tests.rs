use super::*;

struct Fixed;

impl Host for Fixed {
    fn query(&self, expr: &str) -> Result<Vec<QuerySample>, String> {
        let sample = |instance: &str, value| QuerySample {
            labels: Arc::new(Labels::from_pairs([("__name__", "metric"), ("instance", instance)])),
            value,
        };
        match expr {
            "metric" => Ok(vec![sample("b", 21.0), sample("a", 11.0)]),
            "none" => Ok(Vec::new()),
            other => Err(format!("no such query {other}")),
        }
    }

    fn external_url(&self) -> &str {
        "http://x.example:9090/path/prefix/"
    }

    fn now_ms(&self) -> i64 {
        1_353_755_652_000
    }
}

fn expand(text: &str) -> Result<String, String> {
    let labels = Labels::from_pairs([("job", "api"), ("instance", "h.example.com:80")]);
    let external = Labels::from_pairs([("site", "s1")]);
    let data = AlertData { labels: &labels, external_labels: &external, value: AlertValue::Number(1.5) };
    Template::parse(text)?.expand(&data, &Fixed)
}

/// Expected texts follow what Prometheus documents for each function.
#[test]
fn templates_expand_as_documented() {
    for (text, wanted) in [
        ("plain", "plain"),
        ("{{ $labels.job }} is {{ .Value }} at {{$externalLabels.site}}{{ $labels.absent }}", "api is 1.5 at s1"),
        ("{{ .Labels.job }}{{ .ExternalURL }}", "apihttp://x.example:9090/path/prefix/"),
        ("a {{- /* no */ -}} b", "ab"),
        ("a {{- `x}}` -}} b", "ax}}b"),
        ("{{ \"a\\\"b\" | toUpper }}", "A\"B"),
        ("{{ if gt $value 1.0 }}big{{ else }}small{{ end }}", "big"),
        ("{{ if eq $labels.job \"x\" \"api\" }}y{{ end }}", "y"),
        ("{{ if false }}a{{ else if eq 1 1 }}b{{ else }}c{{ end }}", "b"),
        ("{{ if and true (not false) (or 0 \"x\") }}y{{ end }}", "y"),
        ("{{ with query \"metric\" }}{{ . | first | value }}{{ end }}", "21"),
        ("{{ with query \"none\" }}x{{ else }}nothing{{ end }}", "nothing"),
        (
            "{{ range query \"metric\" | sortByLabel \"instance\" }}{{ .Labels.instance }}={{ .Value }};{{ end }}",
            "a=11;b=21;",
        ),
        ("{{ query \"metric\" | first | label \"instance\" }}", "b"),
        ("{{ (query \"metric\" | first).Value }}", "21"),
        ("{{ range $i, $s := query \"metric\" }}{{ if $i }},{{ end }}{{ $s.Labels.instance }}{{ end }}", "b,a"),
        (
            "{{ range query \"metric\" }}{{ if eq .Value 21.0 }}{{ continue }}{{ end }}{{ .Value }}{{ break }}{{ end }}",
            "11",
        ),
        ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
        ("{{ define \"t\" }}<{{ .arg0 }}{{ .arg1 }}>{{ end }}{{ template \"t\" args 1 \"b\" }}", "<1b>"),
        ("{{ humanize 1234567.0 }} {{ humanize 0.001 }} {{ humanize \"45\" }} {{ humanize 0.0 }}", "1.235M 1m 45 0"),
        ("{{ humanize1024 1048576.0 }} {{ humanize1024 0.5 }}", "1Mi 0.5"),
        (
            "{{ humanizeDuration 86461.0 }} {{ humanizeDuration 0.1 }} {{ humanizeDuration 899.99 }} {{ humanizeDuration 12.3456 }}",
            "1d 0h 1m 1s 100ms 14m 59s 12.35s",
        ),
        ("{{ humanizePercentage 0.1234567 }} {{ humanizePercentage 1.0 }}", "12.35% 100%"),
        ("{{ humanizeTimestamp 1435065584.128 }}", "2015-06-23 13:19:44.128 +0000 UTC"),
        (
            "{{ (1435065584.128 | toTime).Format \"2006-01-02 15:04\" }} {{ toDuration 3661.5 }}",
            "2015-06-23 13:19 1h1m1.5s",
        ),
        (
            "{{ printf \"%.2f|%5d|%-4s|%v|%q|%03d|%e|%x|%t|%%\" $value 3 \"ab\" 1e21 \"z\" 7 1234.5 255 true }}",
            "1.50|    3|ab  |1e+21|\"z\"|007|1.234500e+03|ff|true|%",
        ),
        ("{{ printf \"%d\" 1.5 }}{{ printf \"%s\" }}", "%!d(float64=1.5)%!s(MISSING)"),
        ("{{ printf \"%.3g\" 1234.5678 }}", "1.23e+03"),
        (
            "{{ title \"aa bb\" }} {{ match \"a+\" \"caat\" }} {{ reReplaceAll \"(a)b\" \"x$1\" \"abab\" }}",
            "Aa Bb true xaxa",
        ),
        (
            "{{ stripPort \"h:80\" }} {{ stripDomain \"h.example.com:80\" }} {{ stripDomain \"1.2.3.4:1\" }}",
            "h h:80 1.2.3.4:1",
        ),
        ("{{ tableLink \"a + b\" }} {{ pathPrefix }}", "/graph?g0.expr=a+%2B+b&g0.tab=1 /path/prefix"),
        ("{{ parseDuration \"1h2m\" }} {{ now }}", "3720 1.353755652e+09"),
        ("{{ index (query \"metric\") 1 | value }} {{ len (query \"metric\") }} {{ slice \"abcd\" 1 3 }}", "11 2 bc"),
        ("{{ print 1 2 \"a\" 3 }} {{ html \"<a>\" }} {{ urlquery \"a b&\" }}", "1 2a3 &lt;a&gt; a+b%26"),
        ("{{ 'a' }} {{ 0x10 }} {{ -1 }} {{ 1_000 }} {{ .5 }}", "97 16 -1 1000 0.5"),
        ("{{ $labels }}", "map[instance:h.example.com:80 job:api]"),
    ] {
        assert_eq!(expand(text).as_deref(), Ok(wanted), "{text}");
    }
}

#[test]
fn what_does_not_parse_or_run_says_why() {
    for (text, wanted) in [
        ("{{ $x }}", "1: undefined variable \"$x\""),
        ("a\n{{ nope }}", "2: function \"nope\" not defined"),
        ("{{ if true }}", "unexpected EOF"),
        ("{{ end }}", "unexpected {{end}}"),
        ("{{ }}", "missing value for command"),
        ("{{ break }}", "outside {{range}}"),
        ("{{ \"a", "unclosed action"),
        ("{{ ( }}", "missing value"),
        ("{{ .Nope }}", "can't evaluate field Nope"),
        ("{{ first (query \"none\") }}", "first() called on vector with no elements"),
        ("{{ query \"bad\" }}", "no such query bad"),
        ("{{ gt $value 1 }}", "incompatible types for comparison"),
        ("{{ template \"x\" }}", "template \"x\" not defined"),
        ("{{ define \"x\" }}{{ template \"x\" }}{{ end }}{{ template \"x\" }}", "deeper than"),
        ("{{ range 1000000 }}{{ range 1000000 }}{{ end }}{{ end }}", "steps"),
    ] {
        let e = expand(text).unwrap_err();
        assert!(e.contains(wanted), "{text}: {e}");
    }
    assert!(expand(&format!("{}1{}", "{{ (".replace("(", &"(".repeat(10_000)), " }}")).is_err());
    assert!(expand(&"{{ if true }}".repeat(10_000)).is_err());
}

#[test]
fn templates_of_messages_use_what_others_define() {
    let mut library = Library::default();
    library.add("{{ define \"head\" }}[{{ .Status | toUpper }}]{{ end }}").unwrap();
    let alert = |status: &str| Value::object([("Status", Value::text(status))]);
    let dot = Value::object([
        ("Status", Value::text("firing")),
        ("Alerts", Value::list([alert("firing"), alert("resolved"), alert("firing")])),
        ("GroupLabels", Value::of_labels(&Labels::from_pairs([("a", "1"), ("b", "2")]))),
    ]);
    let text =
        "{{ template \"head\" . }} {{ .Alerts.Firing | len }} {{ .GroupLabels.SortedPairs.Values | join \" \" }}";
    let template = Template::parse_with(text, &[]).unwrap();
    assert_eq!(template.expand_with(dot, &library, &NoHost).unwrap(), "[FIRING] 2 1 2");
}
