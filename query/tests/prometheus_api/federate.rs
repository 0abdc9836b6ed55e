//! Federation as a Prometheus scrapes it.

use axum::{Router, body::Body, http::Request};
use storage::model::{Labels, MetricBatchBuilder, batch::HistogramRow, batch::SeriesMeta};

use super::{api_over, append, raw, with_external_labels};

const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

async fn scrape(router: &Router, path: &str, accept: &str) -> (u16, String, Vec<u8>) {
    let request = Request::get(path).header("accept", accept).body(Body::empty()).unwrap();
    let (status, headers, body) = raw(router, request).await;
    (status, headers["content-type"].to_str().unwrap().to_owned(), body)
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_secs() as i64
}

const ALL: &str = "/federate?match[]=%7B__name__%3D~%22.%2B%22%7D";

#[tokio::test]
async fn the_newest_sample_of_each_living_series_is_shown_with_its_time() {
    let at = now() - 200;
    let (_dir, api, store) = api_over(
        &[
            (&[("__name__", "b_total"), ("job", "x"), ("instance", "i")], at, &[1.0, 2.5, 1e22]),
            (&[("__name__", "a"), ("p", "q\"\\\n")], at, &[f64::NAN]),
            (&[("__name__", "a"), ("p", "d")], at, &[f64::INFINITY]),
            (&[("__name__", "a"), ("p", "ended")], at, &[1.0, STALE]),
            (&[("__name__", "a"), ("p", "old")], at - 1000, &[1.0]),
            (&[("p", "nameless")], at, &[1.0]),
            (&[("__name__", "my.metric"), ("a.b", "c")], at, &[7.0]),
        ],
        query::QueryConfig::default(),
    )
    .await;
    let (status, content, body) = scrape(&api, ALL, "text/plain;version=0.0.4").await;
    assert_eq!((status, content.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
    let ms = at * 1000;
    let want = format!(
        "# TYPE a untyped\n\
         a{{p=\"d\",instance=\"\"}} +Inf {ms}\n\
         a{{p=\"q\\\"\\\\\\n\",instance=\"\"}} NaN {ms}\n\
         # TYPE b_total untyped\n\
         b_total{{instance=\"i\",job=\"x\"}} 1e+22 {}\n\
         # TYPE my_metric untyped\n\
         my_metric{{a_b=\"c\",instance=\"\"}} 7 {ms}\n",
        ms + 120_000
    );
    assert_eq!(String::from_utf8(body).unwrap(), want);

    let openmetrics = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8";
    let path = "/prometheus/federate?match[]=%7B%22my.metric%22%7D&match[]=b_total&match[]=b_total";
    let (_, content, body) = scrape(&api, path, openmetrics).await;
    assert_eq!(content, "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8");
    let want = format!(
        "# TYPE b_total unknown\nb_total{{instance=\"i\",job=\"x\"}} 1e+22 {}\n\
         # TYPE \"my.metric\" unknown\n{{\"my.metric\",\"a.b\"=\"c\",instance=\"\"}} 7 {at}\n# EOF\n",
        at + 120
    );
    assert_eq!(String::from_utf8(body).unwrap(), want);

    // Native histograms: in protobuf alone. Of custom bounds: everywhere, as classic ones.
    let mut b = MetricBatchBuilder::new();
    let native = HistogramRow {
        schema: 3,
        zero_threshold: 0.0,
        zero_count: 1.0,
        count: 4.0,
        sum: 3.5,
        min: None,
        max: None,
        positive_offset: 1,
        positive_counts: vec![1.0, 2.0],
        negative_offset: 0,
        negative_counts: vec![],
        custom_bounds: None,
        reset_hint: 0,
        is_float: false,
    };
    let custom = HistogramRow {
        schema: -53,
        zero_count: 0.0,
        count: 3.0,
        positive_offset: 0,
        custom_bounds: Some(vec![0.5, 2.0]),
        ..native.clone()
    };
    for (name, row) in [("native", &native), ("custom", &custom)] {
        let id = b.series(&Labels::from_pairs([("__name__", name)]), SeriesMeta::default());
        b.histogram(id, ms, None, row);
    }
    append(&store, b).await;
    let path = "/federate?match[]=native&match[]=custom";
    let (_, _, body) = scrape(&api, path, "text/plain").await;
    let want = format!(
        "# TYPE custom histogram\n\
         custom_bucket{{instance=\"\",le=\"0.5\"}} 1 {ms}\n\
         custom_bucket{{instance=\"\",le=\"2\"}} 3 {ms}\n\
         custom_bucket{{instance=\"\",le=\"+Inf\"}} 3 {ms}\n\
         custom_sum{{instance=\"\"}} 3.5 {ms}\ncustom_count{{instance=\"\"}} 3 {ms}\n"
    );
    assert_eq!(String::from_utf8(body).unwrap(), want);
    let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
    let (_, content, body) = scrape(&api, path, protobuf).await;
    assert!(content.starts_with("application/vnd.google.protobuf"), "{content}");
    // The second family: name 1, type 3 = histogram 4, a metric 4 with its histogram 7.
    let first = 1 + usize::from(body[0]);
    let second = &body[first + 1..];
    assert_eq!(second.len(), usize::from(body[first]));
    assert_eq!(&second[..10], b"\x0a\x06native\x18\x04");
    // Spans (12: offset 1, length 2) and deltas (13, unpacked: 1, +1).
    assert!(second.windows(10).any(|w| w == b"\x62\x04\x08\x02\x10\x02\x68\x02\x68\x02"), "{second:02x?}");
}

#[tokio::test]
async fn external_labels_are_added_where_a_series_has_none_of_that_name() {
    let given: [super::Given<'_>; 2] = [
        (&[("__name__", "a"), ("region", "us")], now(), &[1.0]),
        (&[("__name__", "a"), ("instance", "i"), ("z", "z")], now(), &[2.0]),
    ];
    let (dir, _, store) = api_over(&given, query::QueryConfig::default()).await;
    let (api, running) = with_external_labels(&dir, store).await;
    let (_, _, body) = scrape(&api, "/federate?match[]=a", "text/plain").await;
    let body = String::from_utf8(body).unwrap();
    let labels: Vec<&str> = body.lines().filter_map(|l| Some(l.split_once('{')?.1.split_once('}')?.0)).collect();
    let (first, second) =
        ("instance=\"i\",z=\"z\",region=\"eu\",replica=\"r\"", "region=\"us\",instance=\"\",replica=\"r\"");
    assert_eq!(labels, [first, second], "{body}");
    running.stop(std::time::Duration::from_secs(5)).await;
}

#[tokio::test]
async fn without_a_selector_there_is_nothing_and_a_bad_one_is_refused() {
    let (_dir, api, _) = api_over(&[(&[("__name__", "a")], now(), &[1.0])], query::QueryConfig::default()).await;
    assert_eq!(scrape(&api, "/federate", "").await.2, b"");
    let (status, content, body) = scrape(&api, "/federate?match[]=a%7B", "").await;
    assert_eq!((status, content.as_str()), (400, "text/plain; charset=utf-8"));
    assert_eq!(String::from_utf8(body).unwrap(), "1:3: parse error: unexpected end of input inside braces\n");
    let (status, _, _) = scrape(&api, "/federate?match[]=%7Ba%3D%22%22%7D", "").await;
    assert_eq!(status, 400);
}
