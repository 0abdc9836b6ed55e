//! What is refused, with which status, error type and words, on every route.

use std::time::Duration;

use axum::{body::Body, http::Request};
use query::QueryConfig;
use serde_json::json;

use super::{api_over, get, post, send};

/// Path below `/api/v1`, and the words of a `bad_data`.
const BAD_DATA: &[(&str, &str)] = &[
    ("query?query=up%20%2B", "invalid parameter \"query\": 1:5: parse error: unexpected end of input"),
    ("query?query=up&timeout=x", "invalid parameter \"timeout\": cannot parse \"x\" to a valid duration"),
    (
        "query?query=up&lookback_delta=x",
        "invalid parameter \"lookback_delta\": cannot parse \"x\" to a valid duration",
    ),
    ("query?query=up&limit=x", "invalid parameter \"limit\": strconv.Atoi: parsing \"x\": invalid syntax"),
    ("query?query=up&time=9e15", "invalid parameter \"time\": timestamp is out of range"),
    (
        "query_range?start=1&end=2&step=1",
        "invalid parameter \"query\": unknown position: parse error: no expression found in input",
    ),
    (
        "query?query=up&time=x",
        "invalid parameter \"time\": invalid time value for 'time': cannot parse \"x\" to a valid timestamp",
    ),
    (
        "query_range?query=up&start=1&end=2&step=1e30",
        "invalid parameter \"step\": cannot parse \"1e30\" to a valid duration. It overflows int64",
    ),
    ("query?query=up&limit=1.5", "invalid parameter \"limit\": strconv.Atoi: parsing \"1.5\": invalid syntax"),
    (
        "query?query=up&limit=99999999999999999999",
        "invalid parameter \"limit\": strconv.Atoi: parsing \"99999999999999999999\": value out of range",
    ),
    ("query_range?query=up&end=2&step=1", "invalid parameter \"start\": cannot parse \"\" to a valid timestamp"),
    ("query_range?query=up&start=1&step=1", "invalid parameter \"end\": cannot parse \"\" to a valid timestamp"),
    (
        "query_range?query=up&start=x&end=2&step=1",
        "invalid parameter \"start\": cannot parse \"x\" to a valid timestamp",
    ),
    ("query_range?query=up&start=1&end=2", "invalid parameter \"step\": cannot parse \"\" to a valid duration"),
    (
        "query_range?query=up&start=1&end=2&step=1m1m",
        "invalid parameter \"step\": cannot parse \"1m1m\" to a valid duration",
    ),
    (
        "query_range?query=up&start=1&end=2&step=-1",
        "invalid parameter \"step\": zero or negative query resolution step widths are not accepted. Try a positive integer",
    ),
    (
        "query_range?query=%22a%22&start=1&end=2&step=1",
        "invalid parameter \"query\": invalid expression type \"string\" for range query, must be Scalar or instant Vector",
    ),
    // Ten years by the second.
    (
        "query_range?query=up&start=0&end=315360000&step=1",
        "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)",
    ),
    (
        "series?match[]=up%7B",
        "invalid parameter \"match[]\": 1:4: parse error: unexpected end of input inside braces",
    ),
    (
        "series?match[]=up&start=x",
        "invalid parameter \"start\": invalid time value for 'start': cannot parse \"x\" to a valid timestamp",
    ),
    (
        "series?match[]=%7Ba=~%22.*%22%7D",
        "invalid parameter \"match[]\": match[] must contain at least one non-empty matcher",
    ),
    ("series?match[]=", "invalid parameter \"match[]\": unknown position: parse error: unexpected end of input"),
    ("series?match[]=up%5B5m%5D", "invalid parameter \"match[]\": 1:3: parse error: unexpected \"[\""),
    // Where the parameter is not named, Prometheus does not, either.
    ("labels?match[]=%7Ba=~%22.*%22%7D", "match[] must contain at least one non-empty matcher"),
    ("label/job/values?match[]=up%7B", "1:4: parse error: unexpected end of input inside braces"),
    ("rules?match[]=up%7B", "1:4: parse error: unexpected end of input inside braces"),
    (
        "labels?end=x",
        "invalid parameter \"end\": invalid time value for 'end': cannot parse \"x\" to a valid timestamp",
    ),
    ("label/job/values?limit=-1", "invalid parameter \"limit\": limit must be non-negative"),
    ("label/a%FF%22/values", "invalid label name: \"a\\xff\\\"\""),
    ("metadata?limit=x", "limit must be a number"),
    ("metadata?limit_per_metric=x", "limit_per_metric must be a number"),
    ("targets/metadata?limit=x", "limit must be a number"),
    ("query_exemplars", "invalid parameter \"query\": unknown position: parse error: no expression found in input"),
    ("query_exemplars?query=up&start=10&end=5", "end timestamp must not be before start timestamp"),
    ("query_exemplars?query=up(", "invalid parameter \"query\": 1:4: parse error: unclosed left parenthesis"),
    (
        "query_exemplars?query=up&start=x",
        "invalid parameter \"start\": invalid time value for 'start': cannot parse \"x\" to a valid timestamp",
    ),
    ("format_query", "invalid parameter \"query\": unknown position: parse error: no expression found in input"),
    ("parse_query?query=%23", "invalid parameter \"query\": 1:1: parse error: no expression found in input"),
    ("format_query?query=1%20%2B", "invalid parameter \"query\": 1:4: parse error: unexpected end of input"),
    ("parse_query?query=sum(up", "invalid parameter \"query\": 1:7: parse error: unclosed left parenthesis"),
];

#[tokio::test]
async fn wrong_parameters_are_bad_data_with_the_parameters_name() {
    let (_dir, api, _) = api_over(&[(&[("__name__", "up")], 0, &[1.0])], QueryConfig::default()).await;
    for (path, text) in BAD_DATA {
        let (status, body) = get(&api, &format!("/api/v1/{path}")).await;
        assert_eq!(
            (status, body),
            (400, json!({"status": "error", "errorType": "bad_data", "error": text})),
            "{path}"
        );
    }
    // Selectors that say more than labels are none.
    for selector in ["up%5B5m%5D", "up%20offset%205m", "up%20@%205", "sum(up)", "1"] {
        let (status, body) = get(&api, &format!("/api/v1/series?match[]={selector}")).await;
        assert_eq!((status, &body["errorType"]), (400, &json!("bad_data")), "{selector}");
        assert!(
            body["error"].as_str().unwrap().starts_with("invalid parameter \"match[]\": 1:"),
            "{selector}: {body}"
        );
    }
    // Whatever a client would rather have, it is told in JSON.
    let request = Request::get("/api/v1/query?query=1&time=1").header("accept", "text/html");
    let (status, body) = send(&api, request.body(Body::empty()).unwrap()).await;
    assert_eq!((status, &body["data"]["result"]), (200, &json!([1, "1"])));
    assert_eq!(get(&api, "/api/v1/nothing").await.0, 404);
}

#[tokio::test]
async fn what_cannot_be_evaluated_is_422_and_what_takes_too_long_is_503() {
    let series: [super::Given<'_>; 3] = [
        (&[("__name__", "a"), ("x", "1")], 0, &[1.0, 2.0, 3.0]),
        (&[("__name__", "b"), ("x", "1")], 0, &[1.0, 2.0, 3.0]),
        (&[("__name__", "a"), ("x", "2")], 0, &[1.0, 2.0, 3.0]),
    ];
    let mut config = QueryConfig::default();
    config.limits.samples_max = 5;
    let (_dir, small, store) = api_over(&series, config).await;
    let api = query::router(QueryConfig::default(), store.clone());
    let mut config = QueryConfig::default();
    config.limits.timeout = Duration::from_nanos(1);
    let hasty = query::router(config, store);
    for (router, query, status, kind, text) in [
        (
            &api,
            "-{__name__=~\"a|b\",x=\"1\"}",
            422,
            "execution",
            "vector cannot contain metrics with the same labelset",
        ),
        (
            &api,
            "label_replace(a, \"0\", \"$1\", \"x\", \"(.*\")",
            422,
            "execution",
            "invalid regular expression in label_replace(): (.*",
        ),
        (
            &api,
            "a + on () b",
            422,
            "execution",
            "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)",
        ),
        (
            &small,
            "quantile_over_time(0.1, a[5m]) + quantile_over_time(0.2, a[5m] offset 1s)",
            422,
            "execution",
            "query processing would load too many samples into memory in query execution",
        ),
        (&hasty, "a", 503, "timeout", "query timed out in expression evaluation"),
    ] {
        let form = format!("query={}&time=120", query.replace('+', "%2B"));
        let (got, body) = post(router, "/api/v1/query", &form).await;
        assert_eq!(
            (got, &body["status"], &body["errorType"]),
            (status, &json!("error"), &json!(kind)),
            "{query}: {body}"
        );
        assert_eq!(body["error"], text, "{query}");
    }
    let request = Request::get("/api/v1/query?query=a&time=120").body(Body::empty()).unwrap();
    let (status, headers, _) = super::raw(&hasty, request).await;
    assert!(status == 503 && headers.contains_key("retry-after"));
}

#[tokio::test]
async fn hostile_queries_are_told_what_is_too_much_on_every_route_that_reads_them() {
    let (_dir, api, _) = api_over(&[(&[("__name__", "up")], 0, &[1.0])], QueryConfig::default()).await;
    let nested = format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000));
    let shorter = format!("{}1{}", "(".repeat(50_000), ")".repeat(50_000));
    let regex = format!("up{{x=~\"{}\"}}", "a".repeat(1 << 20));
    let regexes = format!("up{{{}}}", ["x=~\"(a{1000}){50}\""; 5000].join(","));
    for (query, text) in [
        (&regexes, "exceeds size limit of"),
        (&nested, "longer than the limit of 131072 bytes"),
        (&shorter, "nested deeper than 250 levels"),
        (&regex, "longer than the limit of 131072 bytes"),
    ] {
        for route in ["query", "query_range", "query_exemplars", "format_query", "parse_query", "series", "labels"] {
            let form = format!("query={query}&match[]={query}&start=0&end=1&step=1");
            let (status, body) = post(&api, &format!("/api/v1/{route}"), &form).await;
            // Where only a selector may stand, the first parenthesis is one too many.
            let selects = ["series", "labels"].contains(&route) && query == &shorter;
            let text = if selects { "unexpected \"(\"" } else { text };
            assert_eq!((status, &body["errorType"]), (400, &json!("bad_data")), "{route}: {body}");
            assert!(body["error"].as_str().unwrap().contains(text), "{route}: {}", body["error"]);
        }
    }
}

/// Of which each is allowed.
const LARGE_REGEX: &str = "(a{1000}){50}";

#[tokio::test]
async fn regular_expressions_of_one_request_share_a_budget_on_every_route() {
    let (_dir, api, _) = api_over(&[(&[("__name__", "up")], 0, &[1.0])], QueryConfig::default()).await;
    let form = |pairs: &[(&str, &str)], times: usize| {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in pairs.iter().cycle().take(pairs.len() * times) {
            form.append_pair(name, value);
        }
        form.finish()
    };
    let ask = async |method: &str, path: &str, form: &str| {
        let (uri, body) = match method {
            "GET" => (format!("{path}?{form}"), String::new()),
            _ => (path.to_owned(), form.to_owned()),
        };
        let request = Request::builder().method(method).uri(uri).header("host", "localhost");
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let (status, _, body) = super::raw(&api, request.body(Body::from(body)).unwrap()).await;
        (status, String::from_utf8(body).unwrap())
    };
    let many = |one: &str, between: &str| vec![one; 40].join(between);
    let matcher = format!("x=~\"{LARGE_REGEX}\"");
    let selector = format!("{{{matcher}}}");
    let replaced = format!("label_replace(up, \"a\", \"b\", \"c\", (\"{LARGE_REGEX}\"))");
    let queries = [many(&selector, " or "), many(&replaced, " or "), format!("up{{{}}}", many(&matcher, ","))];
    let mut requests: Vec<(&str, &str, String)> = Vec::new();
    for query in &queries {
        for path in ["query", "query_range", "query_exemplars", "format_query", "parse_query"] {
            let path: &str = Box::leak(format!("/api/v1/{path}").into_boxed_str());
            requests.push(("POST", path, form(&[("query", query), ("start", "1"), ("end", "2"), ("step", "1")], 1)));
        }
    }
    let selectors = form(&[("match[]", &selector)], 40);
    for (method, path) in [
        ("POST", "/api/v1/series"),
        ("POST", "/api/v1/labels"),
        ("GET", "/api/v1/label/x/values"),
        ("GET", "/api/v1/rules"),
        ("GET", "/federate"),
        ("POST", "/api/v1/admin/tsdb/delete_series"),
        ("GET", "/loki/api/v1/series"),
    ] {
        requests.push((method, path, selectors.clone()));
    }
    let line = format!(" |~ \"{LARGE_REGEX}\"");
    let pattern = format!("(?P<x>{LARGE_REGEX})");
    let log_queries = [
        format!("{{a=\"b\"}}{}", many(&line, "")),
        format!("{{a=\"b\"}} |~ \"x\"{}", many(&format!(" or \"{LARGE_REGEX}\""), "")),
        format!("{{a=\"b\"}}{}", many(&format!(" | x=~\"{LARGE_REGEX}\""), "")),
        format!("{{a=\"b\"}}{}", many(&format!(" | regexp \"{pattern}\""), "")),
        format!("{{a=\"b\"}}{}", many(&format!(" | drop x=~\"{LARGE_REGEX}\""), "")),
        format!("{{a=\"b\",{}}}", many(&matcher, ",")),
        many(&format!("count_over_time({{a=\"b\"}}{line}[5m])"), " + "),
        many(&format!("label_replace(vector(1), \"a\", \"b\", \"c\", \"{LARGE_REGEX}\")"), " + "),
    ];
    for query in &log_queries {
        requests.push(("GET", "/loki/api/v1/query_range", form(&[("query", query)], 1)));
    }
    for (method, path, form) in requests {
        let (status, body) = ask(method, path, &form).await;
        assert_eq!(status, 400, "{path}: {body}");
        assert!(body.contains("exceeds size limit of"), "{path}: {body}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&body).is_ok(),
            path.starts_with("/api"),
            "{path}: {body}"
        );
    }
    // One of them is taken.
    let (status, body) = ask("POST", "/api/v1/query", &form(&[("query", &selector)], 1)).await;
    assert_eq!(status, 200, "{body}");
}
