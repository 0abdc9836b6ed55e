//! Every route, and how a tenant asks it.

use storage::model::{Labels, MetricBatchBuilder, batch::SeriesMeta};

/// How a route is asked. `{T}` in a text becomes the tenant's own text, `{ID}` the id of its trace, `{NOW}` seconds.
pub(super) enum Case {
    /// Answers with data of the tenant that asks: its own text must come back, that of the other never.
    Read { url: &'static str, body: Option<(&'static str, &'static str)> },
    /// Takes data: what one tenant pushes there the other cannot find. Content type, body, and where it is found.
    Write { url: &'static str, kind: &'static str, body: fn(&str, u128) -> Vec<u8>, signal: Signal },
    /// Deletes: what one tenant asks for there leaves the other's data alone. Asked by POST.
    Delete { url: &'static str, signal: Signal },
    /// Works on the whole store for whoever runs it and answers with numbers alone; not asked here.
    Operator,
    /// Answers the same to everyone: there is no tenant's data in it.
    Same { url: &'static str },
}

#[derive(Clone, Copy)]
pub(super) enum Signal {
    Logs,
    Metrics,
    Traces,
}

pub(super) const JSON: &str = "application/json";
pub(super) const FORM: &str = "application/x-www-form-urlencoded";

/// A remote read request (snappy, protobuf) for streamed chunks of all series from 1970 to 2109.
const EVERYTHING: &str = "\x0c\x2c\x0a\x08\x10\u{80}\u{80}\u{80}\x01\x10\x01";

fn read(url: &'static str) -> Case {
    Case::Read { url, body: None }
}

fn form(url: &'static str, body: &'static str) -> Case {
    Case::Read { url, body: Some((FORM, body)) }
}

fn otlp(url: &'static str, signal: Signal) -> Case {
    let body = match signal {
        Signal::Logs => otlp_logs,
        Signal::Metrics => otlp_metrics,
        Signal::Traces => otlp_traces,
    };
    Case::Write { url, kind: JSON, body, signal }
}

/// Route as it is registered, and how it is asked.
pub(super) fn cases() -> Vec<(&'static str, Vec<Case>)> {
    use Case::{Same, Write};
    let same = |url| vec![Same { url }];
    let both = |url: &'static str, body: &'static str| vec![form(url, body)];
    let mut out = vec![
        ("/", same("/")),
        ("/ready", same("/ready")),
        ("/-/ready", same("/-/ready")),
        ("/healthz", same("/healthz")),
        ("/-/healthy", same("/-/healthy")),
        ("/metrics", same("/metrics")),
        ("/-/reload", vec![Case::Operator]),
        ("/-/quit", vec![Case::Operator]),
        ("/graph", same("/graph?g0.expr=1")),
        (
            "/ingest/ndjson",
            vec![Write {
                url: "/ingest/ndjson?time_field=t&message_field=m&stream_fields=app",
                kind: "application/x-ndjson",
                body: |t, now| format!("{{\"t\":{now},\"app\":\"{t}\",\"m\":\"{t} line\"}}\n").into_bytes(),
                signal: Signal::Logs,
            }],
        ),
        (
            "/api/v1/import",
            vec![Write {
                url: "/api/v1/import",
                kind: "application/x-ndjson",
                body: |t, now| {
                    format!("{{\"row\":\"log\",\"ts\":{now},\"stream_labels\":{{\"service_name\":\"{t}\"}},\"body\":\"{t} line\"}}\n")
                        .into_bytes()
                },
                signal: Signal::Logs,
            }],
        ),
        (
            "/api/v1/export",
            ["logs", "traces", "metrics", "samples&format=arrow"]
                .map(|signal| read(Box::leak(format!("/api/v1/export?signal={signal}").into_boxed_str())))
                .into(),
        ),
        (
            "/api/v1/sql",
            [
                "{\"query\": \"select * from logs\"}",
                "{\"query\": \"select * from spans\", \"format\": \"csv\"}",
                "{\"query\": \"select * from samples\"}",
                "{\"query\": \"select * from metric_series\"}",
            ]
            .map(|body| Case::Read { url: "/api/v1/sql", body: Some((JSON, body)) })
            .into(),
        ),
        ("/_bulk", vec![bulk("/_bulk")]),
        ("/{index}/_bulk", vec![bulk("/logs-app/_bulk")]),
        ("/elasticsearch/_bulk", vec![bulk("/elasticsearch/_bulk")]),
        ("/elasticsearch/{index}/_bulk", vec![bulk("/elasticsearch/logs-app/_bulk")]),
        ("/elasticsearch", same("/elasticsearch")),
        ("/elasticsearch/", same("/elasticsearch/")),
        ("/elasticsearch/{index}", same("/elasticsearch/logs-app")),
        ("/v1/logs", vec![otlp("/v1/logs", Signal::Logs)]),
        ("/otlp/v1/logs", vec![otlp("/otlp/v1/logs", Signal::Logs)]),
        ("/v1/metrics", vec![otlp("/v1/metrics", Signal::Metrics)]),
        ("/otlp/v1/metrics", vec![otlp("/otlp/v1/metrics", Signal::Metrics)]),
        ("/api/v1/otlp/v1/metrics", vec![otlp("/api/v1/otlp/v1/metrics", Signal::Metrics)]),
        ("/v1/traces", vec![otlp("/v1/traces", Signal::Traces)]),
        ("/otlp/v1/traces", vec![otlp("/otlp/v1/traces", Signal::Traces)]),
        ("/api/v1/write", vec![remote_write("/api/v1/write")]),
        ("/prometheus/api/v1/write", vec![remote_write("/prometheus/api/v1/write")]),
        ("/loki/api/v1/push", vec![loki_push("/loki/api/v1/push")]),
        ("/api/prom/push", vec![loki_push("/api/prom/push")]),
        (
            "/loki/api/v1/query_range",
            vec![
                read("/loki/api/v1/query_range?query={service_name=~%22.%2B%22}"),
                form(
                    "/loki/api/v1/query_range",
                    "query=sum by (service_name) (count_over_time({service_name%3D~%22.%2B%22}[1h]))",
                ),
            ],
        ),
        (
            "/loki/api/v1/query",
            vec![read(
                "/loki/api/v1/query?query=sum%20by%20(service_name)(count_over_time({service_name=~%22.%2B%22}[1h]))",
            )],
        ),
        ("/loki/api/v1/labels", vec![read("/loki/api/v1/labels")]),
        ("/loki/api/v1/label", vec![read("/loki/api/v1/label")]),
        ("/loki/api/v1/label/{name}/values", vec![read("/loki/api/v1/label/service_name/values")]),
        ("/loki/api/v1/series", both("/loki/api/v1/series", "match[]={service_name%3D~%22.%2B%22}")),
        ("/loki/api/v1/index/stats", same("/loki/api/v1/index/stats?query={service_name=~%22.%2Bonly%22}")),
        ("/loki/api/v1/index/volume", vec![read("/loki/api/v1/index/volume?query={service_name=~%22.%2B%22}")]),
        (
            "/loki/api/v1/index/volume_range",
            vec![read("/loki/api/v1/index/volume_range?query={service_name=~%22.%2B%22}")],
        ),
        (
            "/loki/api/v1/delete",
            vec![Case::Delete {
                url: "/loki/api/v1/delete?query={service_name=%22{T}%22}&start=0",
                signal: Signal::Logs,
            }],
        ),
        ("/api/v1/admin/backup", vec![Case::Operator]),
        ("/federate", vec![read("/federate?match[]={__name__=~%22.%2B%22}")]),
        ("/prometheus/federate", vec![read("/prometheus/federate?match[]={__name__=~%22.%2B%22}")]),
        ("/loki/api/v1/drilldown-limits", same("/loki/api/v1/drilldown-limits")),
        ("/loki/api/v1/format_query", same("/loki/api/v1/format_query?query={a=%22b%22}")),
        ("/loki/api/v1/status/buildinfo", same("/loki/api/v1/status/buildinfo")),
    ];
    macro_rules! prometheus {
        ($($route:literal => $cases:expr),* $(,)?) => {$(
            out.push((concat!("/api/v1", $route), $cases("/api/v1")));
            out.push((concat!("/prometheus/api/v1", $route), $cases("/prometheus/api/v1")));
        )*};
    }
    let at = |base: &str, rest: &str| -> &'static str { Box::leak(format!("{base}{rest}").into_boxed_str()) };
    prometheus! {
        "/query" => |b| vec![
            read(at(b, "/query?query={__name__=~%22.%2Bonly.*%22}")),
            form(at(b, "/query"), "query=count%20by%20(__name__)({__name__%3D~%22.%2B%22})"),
        ],
        "/query_range" => |b| vec![read(at(b, "/query_range?query={__name__=~%22.%2Bonly.*%22}&start={NOW}&end={NOW}&step=15"))],
        "/series" => |b| vec![read(at(b, "/series?match[]={__name__=~%22.%2B%22}"))],
        "/labels" => |b| vec![read(at(b, "/labels"))],
        "/label/{name}/values" => |b| vec![read(at(b, "/label/__name__/values"))],
        "/metadata" => |b| vec![read(at(b, "/metadata"))],
        "/query_exemplars" => |b| vec![Same { url: at(b, "/query_exemplars?query={__name__=~%22.%2B%22}&start=0&end={NOW}") }],
        "/admin/tsdb/delete_series" => |b| vec![Case::Delete {
            url: at(b, "/admin/tsdb/delete_series?match[]={T}"),
            signal: Signal::Metrics,
        }],
        "/admin/tsdb/clean_tombstones" => |_| vec![Case::Operator],
        "/status/buildinfo" => |b| same(at(b, "/status/buildinfo")),
        "/status/flags" => |b| same(at(b, "/status/flags")),
        "/status/config" => |b| same(at(b, "/status/config")),
        "/status/runtimeinfo" => |b| same(at(b, "/status/runtimeinfo")),
        "/status/tsdb" => |b| vec![read(at(b, "/status/tsdb"))],
        "/status/walreplay" => |b| same(at(b, "/status/walreplay")),
        "/features" => |b| same(at(b, "/features")),
        "/format_query" => |b| same(at(b, "/format_query?query=up")),
        "/parse_query" => |b| same(at(b, "/parse_query?query=up")),
        "/read" => |b| vec![Case::Read { url: at(b, "/read"), body: Some(("application/x-protobuf", EVERYTHING)) }],
        "/rules" => |b| same(at(b, "/rules")),
        "/alerts" => |b| same(at(b, "/alerts")),
        "/targets" => |b| same(at(b, "/targets")),
        "/targets/metadata" => |b| same(at(b, "/targets/metadata")),
        "/scrape_pools" => |b| same(at(b, "/scrape_pools")),
        "/alertmanagers" => |b| same(at(b, "/alertmanagers")),
    }
    macro_rules! elastic {
        ($($route:literal => $url:literal),* $(,)?) => {$(
            out.push(($route, same($url)));
            out.push((concat!("/elasticsearch", $route), same(concat!("/elasticsearch", $url))));
        )*};
    }
    elastic! {
        "/_license" => "/_license",
        "/_xpack" => "/_xpack",
        "/_cluster/health" => "/_cluster/health",
        "/_nodes/http" => "/_nodes/http",
        "/_nodes/_all/http" => "/_nodes/_all/http",
        "/_index_template/{*name}" => "/_index_template/a",
        "/_template/{*name}" => "/_template/a",
        "/_component_template/{*name}" => "/_component_template/a",
        "/_ilm/policy/{*name}" => "/_ilm/policy/a",
        "/_data_stream/{*name}" => "/_data_stream/a",
        "/_ingest/pipeline/{*name}" => "/_ingest/pipeline/a",
        "/_alias/{*name}" => "/_alias/a",
    }
    macro_rules! tempo {
        ($($route:literal => $cases:expr),* $(,)?) => {$(
            out.push(($route, $cases("")));
            out.push((concat!("/tempo", $route), $cases("/tempo")));
        )*};
    }
    tempo! {
        "/api/traces/{id}" => |b| vec![read(at(b, "/api/traces/{ID}"))],
        "/api/v2/traces/{id}" => |b| vec![read(at(b, "/api/v2/traces/{ID}"))],
        "/api/echo" => |b| same(at(b, "/api/echo")),
        "/api/status/buildinfo" => |b| same(at(b, "/api/status/buildinfo")),
    }
    out
}

pub(super) fn loki_push(url: &'static str) -> Case {
    Case::Write {
        url,
        kind: JSON,
        body: |t, now| {
            format!(
                "{{\"streams\":[{{\"stream\":{{\"app\":\"{t}\",\"label_{t}\":\"x\"}},\"values\":[[\"{now}\",\"{t} line\"]]}}]}}"
            )
            .into_bytes()
        },
        signal: Signal::Logs,
    }
}

fn bulk(url: &'static str) -> Case {
    Case::Write {
        url,
        kind: "application/x-ndjson",
        body: |t, now| {
            format!("{{\"create\":{{\"_index\":\"{t}\"}}}}\n{{\"@timestamp\":{now},\"message\":\"{t} line\"}}\n")
                .into_bytes()
        },
        signal: Signal::Logs,
    }
}

fn remote_write(url: &'static str) -> Case {
    Case::Write {
        url,
        kind: "application/x-protobuf",
        body: |t, now| {
            let mut builder = MetricBatchBuilder::new();
            let id = builder.series(&Labels::from_pairs([("__name__", t)]), SeriesMeta::default());
            builder.sample(id, (now / 1_000_000) as i64, None, 1.0);
            let plain = pipeline::codec::remote_write::encode_v1(&builder.finish());
            snap::raw::Encoder::new().compress_vec(&plain).expect("it is small")
        },
        signal: Signal::Metrics,
    }
}

fn resource(t: &str) -> String {
    format!("\"resource\":{{\"attributes\":[{{\"key\":\"service.name\",\"value\":{{\"stringValue\":\"{t}\"}}}}]}}")
}

pub(super) fn otlp_logs(t: &str, now: u128) -> Vec<u8> {
    let r = resource(t);
    format!("{{\"resourceLogs\":[{{{r},\"scopeLogs\":[{{\"logRecords\":[{{\"timeUnixNano\":\"{now}\",\"body\":{{\"stringValue\":\"{t} line\"}}}}]}}]}}]}}").into_bytes()
}

pub(super) fn otlp_metrics(t: &str, now: u128) -> Vec<u8> {
    let r = resource(t);
    format!("{{\"resourceMetrics\":[{{{r},\"scopeMetrics\":[{{\"metrics\":[{{\"name\":\"{t}\",\"description\":\"{t}\",\"gauge\":{{\"dataPoints\":[{{\"timeUnixNano\":\"{now}\",\"asDouble\":1,\"attributes\":[{{\"key\":\"label_{t}\",\"value\":{{\"stringValue\":\"x\"}}}}]}}]}}}}]}}]}}]}}").into_bytes()
}

pub(super) fn otlp_traces(t: &str, now: u128) -> Vec<u8> {
    let (r, id) = (resource(t), trace_id(t));
    format!("{{\"resourceSpans\":[{{{r},\"scopeSpans\":[{{\"spans\":[{{\"traceId\":\"{id}\",\"spanId\":\"00000000000000aa\",\"name\":\"{t}\",\"startTimeUnixNano\":\"{now}\",\"endTimeUnixNano\":\"{now}\"}}]}}]}}]}}").into_bytes()
}

/// Different for different texts.
pub(super) fn trace_id(t: &str) -> String {
    let mut id = hex(t.as_bytes());
    id.truncate(32);
    format!("{id:0<32}")
}

fn hex(bytes: &[u8]) -> String {
    // Last bytes first: texts of one tenant differ at their end.
    bytes.iter().rev().map(|b| format!("{b:02x}")).collect()
}
