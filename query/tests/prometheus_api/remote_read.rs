//! Remote read as a Prometheus asks it.

use axum::{Router, body::Body, http::Request};
use prost::Message as _;
use query::http::prometheus::remote_read::wire::{
    ChunkedReadResponse, FLOAT_HISTOGRAM, LabelMatcher, Query, ReadRequest, ReadResponse, SAMPLES,
    STREAMED_XOR_CHUNKS, XOR,
};
use storage::model::{Labels, MetricBatchBuilder, batch::HistogramRow, batch::SeriesMeta};

use super::{api_over, append, raw, with_external_labels};

const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

fn matching(kind: i32, name: &str, value: &str) -> LabelMatcher {
    LabelMatcher { kind, name: name.into(), value: value.into() }
}

fn asked(matchers: Vec<LabelMatcher>, from: i64, to: i64) -> Query {
    Query { start_timestamp_ms: from, end_timestamp_ms: to, matchers }
}

async fn ask(router: &Router, queries: Vec<Query>, types: &[i32]) -> (u16, http::HeaderMap, Vec<u8>) {
    let request = ReadRequest { queries, accepted_response_types: types.to_vec() };
    let body = snap::raw::Encoder::new().compress_vec(&request.encode_to_vec()).unwrap();
    let request = Request::post("/api/v1/read")
        .header("content-type", "application/x-protobuf")
        .header("content-encoding", "snappy")
        .header("x-prometheus-remote-read-version", "0.1.0");
    raw(router, request.body(Body::from(body)).unwrap()).await
}

async fn samples(router: &Router, queries: Vec<Query>) -> ReadResponse {
    let (status, headers, body) = ask(router, queries, &[]).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    assert_eq!(
        (&headers["content-type"], &headers["content-encoding"]),
        (&"application/x-protobuf".parse().unwrap(), &"snappy".parse().unwrap())
    );
    ReadResponse::decode(&snap::raw::Decoder::new().decompress_vec(&body).unwrap()[..]).unwrap()
}

/// Query, labels, and kind and minutes of each chunk.
type Shown = (i64, Vec<String>, Vec<(i32, i64, i64)>);

/// The frames of a stream, their checksums checked.
fn frames(mut body: &[u8]) -> Vec<ChunkedReadResponse> {
    let mut out = Vec::new();
    while !body.is_empty() {
        let length = prost::encoding::decode_varint(&mut body).unwrap() as usize;
        let (sum, rest) = body.split_at(4);
        let (payload, rest) = rest.split_at(length);
        assert_eq!(crc32c::crc32c(payload).to_be_bytes(), sum);
        out.push(ChunkedReadResponse::decode(payload).unwrap());
        body = rest;
    }
    out
}

#[tokio::test]
async fn external_labels_are_added_and_what_asks_for_them_is_met() {
    let given: [super::Given<'_>; 2] =
        [(&[("__name__", "m"), ("region", "us")], 0, &[1.0]), (&[("__name__", "m"), ("x", "y")], 0, &[2.0])];
    let (dir, _, store) = api_over(&given, query::QueryConfig::default()).await;
    let (api, running) = with_external_labels(&dir, store).await;
    let asked = |matchers: &[(i32, &str, &str)]| {
        let matchers = matchers.iter().map(|(kind, name, value)| matching(*kind, name, value));
        asked(matchers.chain([matching(0, "__name__", "m")]).collect(), 0, 60_000)
    };
    let queries = vec![
        asked(&[(0, "replica", "r"), (0, "region", "eu")]),
        asked(&[(0, "region", "us")]),
        asked(&[(2, "replica", "r")]),
    ];
    let shown = |labels: &[query::http::prometheus::remote_read::wire::Label]| {
        labels.iter().map(|l| format!("{}={}", l.name, l.value)).collect::<Vec<_>>().join(",")
    };
    let of = |r: &query::http::prometheus::remote_read::wire::QueryResult| {
        r.timeseries.iter().map(|s| shown(&s.labels)).collect::<Vec<_>>()
    };
    let answer = samples(&api, queries.clone()).await;
    let found: Vec<Vec<String>> = answer.results.iter().map(of).collect();
    let (us, eu) = ("__name__=m,region=us,replica=r", "__name__=m,region=eu,replica=r,x=y");
    assert_eq!(found, [vec![us, eu], vec![us], vec![]] as [Vec<&str>; 3]);
    let (status, _, body) = ask(&api, queries, &[STREAMED_XOR_CHUNKS]).await;
    let streamed: Vec<String> =
        frames(&body).iter().flat_map(|f| &f.chunked_series).map(|s| shown(&s.labels)).collect();
    assert_eq!((status, streamed), (200, vec![us.into(), eu.into(), us.into()]));
    running.stop(std::time::Duration::from_secs(5)).await;
}

#[tokio::test]
async fn samples_come_in_query_order_raw_and_with_both_ends() {
    let (_dir, api, _) = api_over(
        &[
            (&[("__name__", "m"), ("x", "b")], 0, &[1.0, 2.0, STALE, 4.0]),
            (&[("__name__", "m"), ("x", "a")], 0, &[-0.0, f64::NAN]),
            (&[("__name__", "other")], 0, &[9.0]),
        ],
        query::QueryConfig::default(),
    )
    .await;
    let of_m = |kind, value| vec![matching(0, "__name__", "m"), matching(kind, "x", value)];
    let answer = samples(
        &api,
        vec![
            asked(of_m(2, "a|b"), 0, 180_000),
            asked(of_m(1, "a"), 60_000, 120_000),
            asked(of_m(3, ".*"), 0, 180_000),
            asked(vec![matching(0, "__name__", "other")], 1, 180_000),
        ],
    )
    .await;
    assert_eq!(answer.results.len(), 4);
    let first = &answer.results[0].timeseries;
    let labels: Vec<Vec<(&str, &str)>> =
        first.iter().map(|s| s.labels.iter().map(|l| (l.name.as_str(), l.value.as_str())).collect()).collect();
    assert_eq!(labels, [[("__name__", "m"), ("x", "a")], [("__name__", "m"), ("x", "b")]]);
    let points = |i: usize| {
        first[i].samples.iter().map(|s| (s.timestamp, s.value.unwrap_or(0.0).to_bits())).collect::<Vec<_>>()
    };
    assert_eq!(points(0), [(0, (-0.0f64).to_bits()), (60_000, f64::NAN.to_bits())]);
    assert_eq!(
        points(1),
        [(0, 1f64.to_bits()), (60_000, 2f64.to_bits()), (120_000, STALE.to_bits()), (180_000, 4f64.to_bits())]
    );
    let second: Vec<i64> = answer.results[1].timeseries[0].samples.iter().map(|s| s.timestamp).collect();
    assert_eq!(second, [60_000, 120_000]);
    assert!(answer.results[2].timeseries.is_empty() && answer.results[3].timeseries.is_empty());
    // Nothing asked, nothing answered.
    assert!(samples(&api, vec![]).await.results.is_empty());
}

#[tokio::test]
async fn chunks_are_streamed_a_series_a_frame() {
    let values: Vec<f64> = (0..1000).map(f64::from).collect();
    let (_dir, api, store) = api_over(
        &[(&[("__name__", "m"), ("x", "a")], 0, &values), (&[("__name__", "m"), ("x", "b")], 0, &values[..3])],
        query::QueryConfig::default(),
    )
    .await;
    let mut b = MetricBatchBuilder::new();
    let id = b.series(&Labels::from_pairs([("__name__", "h")]), SeriesMeta::default());
    let histogram = HistogramRow {
        schema: 0,
        zero_threshold: 0.0,
        zero_count: 0.0,
        count: 2.5,
        sum: 3.0,
        min: None,
        max: None,
        positive_offset: 1,
        positive_counts: vec![2.5],
        negative_offset: 0,
        negative_counts: vec![],
        custom_bounds: None,
        reset_hint: 3,
        is_float: true,
    };
    (0..3).for_each(|i| b.histogram(id, i * 60_000, None, &histogram));
    append(&store, b).await;

    let named = |name: &str| asked(vec![matching(0, "__name__", name)], 0, 1_000_000_000);
    let (status, headers, body) =
        ask(&api, vec![named("m"), named("none"), named("h")], &[7, STREAMED_XOR_CHUNKS, SAMPLES]).await;
    assert_eq!(status, 200);
    assert_eq!(headers["content-type"], "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse");
    assert!(!headers.contains_key("content-encoding"));
    let frames = frames(&body);
    let shown: Vec<Shown> = frames
        .iter()
        .map(|f| {
            assert_eq!(f.chunked_series.len(), 1);
            let s = &f.chunked_series[0];
            (
                f.query_index,
                s.labels.iter().map(|l| format!("{}={}", l.name, l.value)).collect(),
                s.chunks.iter().map(|c| (c.kind, c.min_time_ms / 60_000, c.max_time_ms / 60_000)).collect(),
            )
        })
        .collect();
    let cut: Vec<(i32, i64, i64)> = (0..9).map(|i| (XOR, i * 120, (i * 120 + 119).min(999))).collect();
    let names = |x: &str| vec!["__name__=m".to_owned(), format!("x={x}")];
    assert_eq!(shown[0], (0, names("a"), cut));
    assert_eq!(shown[1], (0, names("b"), vec![(XOR, 0, 2)]));
    assert_eq!(shown[2], (2, vec!["__name__=h".to_owned()], vec![(FLOAT_HISTOGRAM, 0, 2)]));
    // The same as samples.
    let answer = samples(&api, vec![named("h")]).await;
    let h = &answer.results[0].timeseries[0].histograms[0];
    assert_eq!((h.count_float, h.positive_spans[0].offset, &h.positive_counts[..]), (Some(2.5), 1, &[2.5][..]));
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_with_a_reason() {
    let values: Vec<f64> = (0..100).map(f64::from).collect();
    let mut config = query::QueryConfig::default();
    config.limits.samples_max = 50;
    let (_dir, api, _) = api_over(&[(&[("__name__", "m")], 0, &values)], config).await;
    let all = || asked(vec![matching(0, "__name__", "m")], 0, 1_000_000_000);
    let refused = async |queries, types: &[i32]| {
        let (status, _, body) = ask(&api, queries, types).await;
        (status, String::from_utf8(body).unwrap().trim_end().to_owned())
    };
    assert_eq!(refused(vec![all()], &[]).await, (400, "exceeded sample limit (50)".to_owned()));
    assert_eq!(refused(vec![all()], &[STREAMED_XOR_CHUNKS]).await, (400, "exceeded sample limit (50)".to_owned()));
    let (status, text) = refused(vec![all()], &[5]).await;
    assert!(status == 400 && text.contains("response types [5]"), "{text}");
    let (status, text) = refused(vec![asked(vec![matching(9, "a", "b")], 0, 1)], &[]).await;
    assert!(status == 400 && text.contains("invalid matcher type 9"), "{text}");
    let (status, text) = refused(vec![asked(vec![matching(2, "a", "(")], 0, 1)], &[]).await;
    assert!(status == 400 && text.contains("invalid matcher"), "{text}");
    // One that is half a MiB long, and thousands that would be gigabytes together.
    let long = vec![matching(2, "a", &"a?".repeat(1 << 18))];
    let many = (0..5000).map(|_| matching(2, "a", "(a{1000}){50}")).collect();
    for matchers in [long, many] {
        let (status, text) = refused(vec![asked(matchers, 0, 1)], &[]).await;
        assert!(status == 400 && text.contains("exceeds size limit"), "{text}");
    }

    let post = |body: Vec<u8>| Request::post("/api/v1/read").body(Body::from(body)).unwrap();
    for body in [vec![], b"nonsense".to_vec(), snap::raw::Encoder::new().compress_vec(b"\x0a\xff").unwrap()] {
        let (status, _, text) = raw(&api, post(body)).await;
        assert!(status == 400 && String::from_utf8_lossy(&text).contains("cannot decode"), "{text:?}");
    }
    // A block that says it is a gigabyte is not inflated.
    let mut bomb = Vec::new();
    prost::encoding::encode_varint(1 << 30, &mut bomb);
    let (status, _, text) = raw(&api, post(bomb)).await;
    assert!(status == 400 && String::from_utf8_lossy(&text).contains("larger than the limit"), "{text:?}");
    let gzip = Request::post("/api/v1/read").header("content-encoding", "gzip").body(Body::empty()).unwrap();
    assert_eq!(raw(&api, gzip).await.0, 400);
    assert_eq!(raw(&api, Request::get("/api/v1/read").body(Body::empty()).unwrap()).await.0, 405);
}

#[tokio::test]
async fn requests_of_megabytes_are_answered_and_those_beyond_32_mib_refused() {
    let of_m = [("__name__", "m"), ("x", "a")];
    let (_dir, api, _) = api_over(&[(&of_m, 0, &[1.0, 2.0])], query::QueryConfig::default()).await;
    // What no compression makes small.
    let mut state = 1u64;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:016x}", state ^ state >> 29)
    };
    let mut long = || (0..20).map(|_| word()).collect::<String>();
    let mut of_many = || {
        let others = (0..60).map(|_| matching(1, "x", &long()));
        asked(others.chain([matching(0, "__name__", "m")]).collect(), 0, 60_000)
    };
    let answer = samples(&api, (0..150).map(|_| of_many()).collect()).await;
    assert_eq!(answer.results.len(), 150);
    assert!(answer.results.iter().all(|r| r.timeseries.len() == 1 && r.timeseries[0].samples.len() == 2));

    let told = async |body: Vec<u8>| {
        let (status, _, text) = raw(&api, Request::post("/api/v1/read").body(Body::from(body)).unwrap()).await;
        (status, String::from_utf8(text).unwrap())
    };
    let too_large = (400, "the request is larger than the limit of 33554432 bytes\n".to_owned());
    let large = ReadRequest {
        queries: vec![asked(vec![matching(0, "x", &"v".repeat(33 << 20))], 0, 1)],
        accepted_response_types: vec![],
    };
    assert_eq!(told(snap::raw::Encoder::new().compress_vec(&large.encode_to_vec()).unwrap()).await, too_large);
    assert_eq!(told(vec![0; (32 << 20) + 1]).await, too_large);
    // A matcher of two bytes takes many times as many in memory.
    let mut matchers = vec![0x0a];
    prost::encoding::encode_varint(20_002, &mut matchers);
    matchers.extend([0x1a, 0].repeat(10_001));
    for (request, what) in [
        (matchers, "more than the limit of 10000 matchers"),
        ([0x0a, 0].repeat(201), "more than the limit of 200 queries"),
        ([0x10, 1].repeat(201), "more than the limit of 200 response types"),
    ] {
        let (status, text) = told(snap::raw::Encoder::new().compress_vec(&request).unwrap()).await;
        assert!(status == 400 && text.contains(what), "{text}");
    }
}

/// The chunks of a Prometheus block with one series: after the head of the file each has its length, its encoding, its
/// bytes and their checksum.
fn chunks_of_block(dir: &std::path::Path) -> Vec<(u8, Vec<u8>)> {
    let block =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).find(|p| p.join("chunks").is_dir()).unwrap();
    let bytes = std::fs::read(block.join("chunks/000001")).unwrap();
    let mut rest = &bytes[8..];
    let mut out = Vec::new();
    while !rest.is_empty() {
        let length = prost::encoding::decode_varint(&mut rest).unwrap() as usize;
        let (chunk, after) = rest.split_at(1 + length + 4);
        out.push((chunk[0], chunk[1..=length].to_vec()));
        rest = after;
    }
    out
}

#[tokio::test]
async fn chunks_are_those_that_prometheus_makes_of_the_same_samples() {
    use std::process::Command;
    if !Command::new("promtool").arg("--version").output().is_ok_and(|o| o.status.success()) {
        let what = "chunks beside Prometheus' own: promtool (Debian package prometheus) is not there";
        assert!(std::env::var_os("SIGHTLINE_REQUIRE_ALL").is_none(), "{what}");
        eprintln!("SKIPPED: {what}");
        return;
    }
    // From 2023-11-14 22:00, within one of the two hours that Prometheus puts into a chunk.
    let mut ms = 1_699_999_200_000i64;
    let mut samples = Vec::new();
    let mut text = "# TYPE m gauge\n".to_owned();
    for i in 0..100u32 {
        ms += match i % 9 {
            0..=3 => 15_000,
            4 => 15_001,
            5 => 9_000,
            6 => 24_000,
            7 => 100_000,
            _ => 1,
        };
        let value = match i % 8 {
            0 | 1 => f64::from(i),
            2 => 0.1 * f64::from(i),
            3 => f64::INFINITY,
            4 => -0.0,
            5 => 1e300,
            6 => f64::from_bits(0x7ff8_0000_0000_0001),
            _ => -1.0 / 3.0,
        };
        let seconds = format!("{}.{:03}", ms / 1000, ms % 1000);
        // As OpenMetrics' times are read there.
        samples.push(((seconds.parse::<f64>().unwrap() * 1000.0) as i64, value));
        let shown = if value.is_nan() { "NaN".to_owned() } else { query::promql::format_float(value) };
        text.push_str(&format!("m {shown} {seconds}\n"));
    }
    text.push_str("# EOF\n");
    let dir = tempfile::tempdir().unwrap();
    let (input, blocks) = (dir.path().join("in"), dir.path().join("blocks"));
    std::fs::write(&input, text).unwrap();
    let made = Command::new("promtool")
        .args(["tsdb", "create-blocks-from", "openmetrics"])
        .args([&input, &blocks])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let (_dir, api, store) = api_over(&[], query::QueryConfig::default()).await;
    let mut b = MetricBatchBuilder::new();
    let id = b.series(&Labels::from_pairs([("__name__", "m")]), SeriesMeta::default());
    samples.iter().for_each(|(ts, v)| b.sample(id, *ts, None, *v));
    append(&store, b).await;
    let all = asked(vec![matching(0, "__name__", "m")], 0, 2_000_000_000_000);
    let (_, _, body) = ask(&api, vec![all], &[STREAMED_XOR_CHUNKS]).await;
    let ours: Vec<(u8, Vec<u8>)> = frames(&body)
        .into_iter()
        .flat_map(|f| f.chunked_series)
        .flat_map(|s| s.chunks)
        .map(|c| (c.kind as u8, c.data))
        .collect();
    assert_eq!(ours, chunks_of_block(&blocks));
}
