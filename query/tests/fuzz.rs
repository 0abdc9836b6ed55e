//! Query languages on broken text, through the APIs and on a small store: whatever the text, the answer is a result or a
//! refusal in the API's own words. See [`fuzzing`].

#[path = "../../storage/tests/fuzzing/mod.rs"]
mod fuzzing;

use axum::{Router, body::Body, http::Request};
use fuzzing::{Target, outline, run};
use http_body_util::BodyExt as _;
use query::logql;
use storage::{
    Append, Store, StoreConfig,
    model::{Labels, LogBatchBuilder, LogRow, MetricBatchBuilder, Table, TenantId, batch::SeriesMeta},
};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

const MANIFEST: &str = env!("CARGO_MANIFEST_DIR");

/// The read APIs over ten minutes of two series and some lines.
struct Apis {
    runtime: Runtime,
    router: Router,
    _dir: tempfile::TempDir,
}

fn apis() -> Apis {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let router = runtime.block_on(async {
        let mut config = StoreConfig::new(dir.path());
        config.background = false;
        let store = Store::open(config).await.unwrap();
        let mut metrics = MetricBatchBuilder::new();
        let mut logs = LogBatchBuilder::new();
        for (instance, slope) in [("a", 1.0), ("b", f64::NAN)] {
            let labels = Labels::from_pairs([("__name__", "m_total"), ("instance", instance), ("job", "api")]);
            let id = metrics.series(&labels, SeriesMeta::default());
            (0..=10).for_each(|i| metrics.sample(id, i * 60_000, None, slope * i as f64));
            for i in 0..10 {
                let body = match i % 3 {
                    0 => format!("level=error n={i} took=1.5s size=3KiB ip=10.0.0.{i}"),
                    1 => format!(r#"{{"level":"info","n":{i},"o":{{"p":[1,2]}}}}"#),
                    _ => format!("plain é line {i}"),
                };
                logs.push(&LogRow {
                    ts: i * 60_000_000_000,
                    stream_labels: &Labels::from_pairs([("app", instance)]).to_json(),
                    attrs: Some(r#"{"user":"u"}"#),
                    body: &body,
                    ..LogRow::default()
                });
            }
        }
        let metrics = metrics.finish();
        let rows = vec![
            (Table::MetricSeries, metrics.series),
            (Table::MetricSamples, metrics.samples),
            (Table::Logs, logs.finish()),
        ];
        store.append(Append { tenant: TenantId::default(), rows, sources: vec![], batch_id: None }).await.unwrap();
        query::router(query::QueryConfig::default(), store)
    });
    Apis { runtime, router, _dir: dir }
}

impl Apis {
    /// The status and an outline of the answer. Our own failures are the bugs that are looked for.
    fn ask(&self, path: &str, query: &[u8]) -> String {
        let text: String = query.iter().map(|b| format!("%{b:02X}")).collect();
        self.told(path, Request::get(format!("{path}&query={text}")).body(Body::empty()).unwrap())
    }

    fn told(&self, path: &str, request: Request<Body>) -> String {
        let (status, body) = self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            (status, response.into_body().collect().await.unwrap().to_bytes())
        });
        let body = String::from_utf8_lossy(&body);
        assert!(status != 500 && status != 502, "{path}: {status} {body}");
        if status == 200 {
            format!("200 {}", body.len().max(1).ilog2())
        } else {
            format!("{status} {}", outline(&body))
        }
    }
}

/// Queries are shorter than what a URL may hold.
const QUERY_BYTES_MAX: usize = 4 << 10;

#[test]
fn promql() {
    let apis = apis();
    let seeds: Vec<Vec<u8>> = [
        r#"sum by (job) (rate(m_total{instance=~"a|b",job!="x"}[5m:1m] offset 1m)) / on(job) group_left count without(instance)(m_total @ 300) > bool 1e3"#,
        "histogram_quantile(0.9, m_total) or label_replace(m_total, \"x\", \"$1\", \"job\", \"(.*)\") unless topk(1, -m_total ^ 2 % 3)",
        "max_over_time(deriv(m_total[3m])[5m:30s]) * 0x1F + Inf - NaN + time() == bool vector(1) atan2 2",
        "quantile_over_time(1.5, {__name__=\"m_total\"}[10m]) and ignoring(job) absent(nope) # a comment",
    ]
    .iter()
    .map(|q| q.as_bytes().to_vec())
    .collect();
    let words = [
        "rate(",
        "[5m]",
        "[5m:]",
        " by (job) ",
        "m_total",
        "sum(",
        ")",
        "{",
        "}",
        "=~\"",
        " offset -1m ",
        " @ end() ",
        "'",
        "bool ",
        "1e308",
        "[1000y:1ms]",
        " or ",
        "{\"m_total\"}",
        "-",
        "^",
    ];
    run(MANIFEST, Target { name: "promql", seeds, words: &words }, |input| {
        let input = &input[..input.len().min(QUERY_BYTES_MAX)];
        let text = String::from_utf8_lossy(input);
        if let Ok(expr) = query::promql::parse(&text) {
            // What is printed reads as the same.
            let printed = query::promql::print::pretty(&text, &expr);
            let again = query::promql::parse(&printed)
                .unwrap_or_else(|e| panic!("{text:?}: {printed:?} does not parse: {e}"));
            assert_eq!(query::promql::print::pretty(&printed, &again), printed, "{text:?}");
        }
        let instant = apis.ask("/api/v1/query?time=300", input);
        let range = apis.ask("/api/v1/query_range?start=0&end=600&step=60", input);
        format!("{instant} {range}")
    });
}

#[test]
fn logql_texts() {
    let apis = apis();
    let seeds: Vec<Vec<u8>> = [
        r#"{app=~"a|b"} |= "e" != `x` |~ "l.ne" | logfmt | level="error" or n>3 and took>=1s | line_format "{{.n}} {{upper .level}}""#,
        r#"sum by (level) (rate({app="a"} | json o="o.p[0]" | __error__="" | unwrap n [5m] offset 1m)) > 1"#,
        r#"topk(2, quantile_over_time(0.9, {app="a"} | pattern "<_>=<l> <rest>" | label_format x=l,y="{{.rest}}" | unwrap duration(took) [10m]) by (app))"#,
        r#"count_over_time({app="b"} | regexp "(?P<w>\\w+)" | decolorize | drop w | keep app | ip_x=ip("10.0.0.0/8") [1m]) / vector(2)"#,
    ]
    .iter()
    .map(|q| q.as_bytes().to_vec())
    .collect();
    let words = [
        "| json ",
        "| logfmt ",
        "|= \"",
        "!~ `",
        "{{",
        "}}",
        "{{.",
        "[5m]",
        "sum(",
        ")",
        "{app=\"a\"}",
        "| unwrap ",
        " by (",
        " or ",
        "{{if ",
        "{{range ",
        "{{printf \"%999999d\" .n}}",
        "| line_format `",
        "bytes(",
        "ip(\"",
    ];
    run(MANIFEST, Target { name: "logql", seeds, words: &words }, |input| {
        let input = &input[..input.len().min(QUERY_BYTES_MAX)];
        let text = String::from_utf8_lossy(input);
        if let Ok(expr) = logql::parse(&text) {
            // What is printed reads as the same, unless the arithmetic of literals gave what has no literal.
            let printed = logql::pretty(&expr);
            if printed.contains("Inf") || printed.contains("NaN") {
                return "no literal".into();
            }
            let again = logql::parse(&printed).unwrap_or_else(|e| panic!("{printed:?} does not parse: {e}"));
            assert_eq!(logql::pretty(&again), printed);
        }
        let range = apis.ask("/loki/api/v1/query_range?start=0&end=600&step=60", input);
        let instant = apis.ask("/loki/api/v1/query?time=600", input);
        format!("{range} {instant}")
    });
}

#[test]
fn sql_texts_and_bodies() {
    let apis = apis();
    let ask = |body: Vec<u8>| apis.told("/api/v1/sql", Request::post("/api/v1/sql").body(Body::from(body)).unwrap());
    let seeds: Vec<Vec<u8>> = [
        "select service_name, count(*) as n from logs where body like '%e%' group by 1 having count(*) > 1 order by n desc limit 3",
        "with s as (select * from samples where metric = 'm_total') select labels, max(value) over (partition by labels order by ts_ms) from s union all select null, 1",
        "select a.body from logs a join logs b on a.ts = b.ts where a.ts > timestamp '1970-01-01T00:01:00Z' and a.severity_number is null -- comment",
        "select date_bin(interval '1 minute', ts) as t, approx_distinct(body), array_agg(stream_id) from logs group by t",
        "select case when value_i > 3 then cast(value_i as varchar) else 'x' end, series_id % 7 from metric_samples where series_id in (select series_id from metric_series)",
    ]
    .iter()
    .map(|q| q.as_bytes().to_vec())
    .collect();
    let words = [
        "select ",
        " from logs ",
        " from samples ",
        "(select ",
        ")",
        "((((((((",
        " where ",
        " and not ",
        " over (",
        " like '%",
        "'",
        "\"",
        " /* ",
        "interval '1 year'",
        " union all select ",
        "cast(",
        " as bigint)",
        "-9223372036854775808",
        "1e308",
        "0x",
        "array[",
        "insert into logs ",
        "copy logs to 'x' ",
        " limit 99999999999 offset ",
        "regexp_replace(body, '(a*)*b', ",
        "repeat('x', 2147483647)",
    ];
    run(MANIFEST, Target { name: "sql", seeds, words: &words }, |input| {
        let query = String::from_utf8_lossy(&input[..input.len().min(QUERY_BYTES_MAX)]);
        ask(serde_json::json!({ "query": query, "timeout": "2s" }).to_string().into_bytes())
    });
    let seeds = vec![
        br#"{"query": "select 1", "format": "csv", "start": 0, "end": "1970-01-02T00:00:00Z", "limit": 5, "timeout": 1.5}"#.to_vec(),
    ];
    let words = ["\"query\":", "\"format\":\"arrow\"", "null", "{", "[", "-1", "1e999", "\"\\ud800\"", "\"start\":"];
    run(MANIFEST, Target { name: "sql_request", seeds, words: &words }, |input| ask(input.to_vec()));
}

#[test]
fn remote_reads() {
    let apis = apis();
    // Queries 1 {start 1, end 2, matchers 3 {type 1, name 2, value 3}}, response types 2.
    let matcher = b"\x1a\x11\x08\x00\x12\x08__name__\x1a\x07m_total";
    let streamed: Vec<u8> =
        [&b"\x0a\x19\x08\x00\x10\xe0\xa7\x12"[..], &matcher[..], &b"\x12\x02\x01\x00"[..]].concat();
    let regex = b"\x0a\x14\x08\x00\x10\xe0\xa7\x12\x1a\x0c\x08\x02\x12\x03job\x1a\x03a.*".to_vec();
    let words = ["\x0a\x02\x10\x7f", "\x10\x01", "\x10\x00", "\x08\x03", "m_total", "(?:", "\x1a\x00"];
    run(MANIFEST, Target { name: "remote_read", seeds: vec![streamed, regex, Vec::new()], words: &words }, |input| {
        let post = |body: Vec<u8>| Request::post("/api/v1/read").body(Body::from(body)).unwrap();
        let bare = apis.told("read", post(input.to_vec()));
        let packed = snap::raw::Encoder::new().compress_vec(input).unwrap();
        format!("{bare} {}", apis.told("read", post(packed)))
    });
}

#[test]
fn federations() {
    let apis = apis();
    let seeds = vec![
        b"text/plain;version=0.0.4;q=0.5,*/*;q=0.1\n{__name__=~\"m.*\",job!=\"x\"}".to_vec(),
        b"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8\nm_total".to_vec(),
        b"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited\n{\"a.b\"}"
            .to_vec(),
    ];
    let words =
        [";q=", ";escaping=dots", ";escaping=values", "\n", "{", "}", "=~\"", "*/*", ",", "version=\"1.0.0\""];
    run(MANIFEST, Target { name: "federate", seeds, words: &words }, |input| {
        let (accept, selector) = input.split_at(input.iter().position(|b| *b == b'\n').unwrap_or(0));
        let selector: String = selector.iter().take(QUERY_BYTES_MAX).map(|b| format!("%{b:02X}")).collect();
        let mut request = Request::get(format!("/federate?match[]={selector}"));
        if let Ok(accept) = http::HeaderValue::from_bytes(accept) {
            request = request.header("accept", accept);
        }
        apis.told("federate", request.body(Body::empty()).unwrap())
    });
}
