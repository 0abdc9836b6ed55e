//! Decoders of this crate on broken input; see [`fuzzing`].

#[path = "../../storage/tests/fuzzing/mod.rs"]
mod fuzzing;

use std::{borrow::Cow, fs, io::Write as _, path::Path};

use bytes::Bytes;
use fuzzing::{Target, outline, run, size};
use pipeline::{
    Batch, Data, PipelineBuilder, PipelineConfig, Signals,
    codec::{
        Decoded, Limits, Malformed,
        compress::{Encoding, inflate},
        elastic, loki, ndjson, otlp, prom_text, remote_write, syslog,
    },
    condition::Condition,
    sink::stdout::write_batch,
};

use storage::model::{
    Labels, MetricBatchBuilder,
    batch::{HistogramRow, SeriesMeta},
};

const MANIFEST: &str = env!("CARGO_MANIFEST_DIR");
const NOW: i64 = 1_700_000_000_000_000_000;
/// Small, so that inputs of fuzzing size pass them.
const CAP: usize = 1 << 20;

fn limits() -> Limits {
    Limits { inflated_bytes_max: CAP, record_bytes_max: 16 << 10, attributes_max: 64, ..Limits::default() }
}

fn seed(path: &str) -> Vec<u8> {
    fs::read(Path::new(MANIFEST).join("tests/corpus").join(path)).unwrap()
}

/// What a decoder said; what it took must be rows of the schema, which printing them shows.
fn outcome(decoded: Result<Decoded, Malformed>) -> String {
    match decoded {
        Err(e) => outline(&e),
        Ok(decoded) => {
            let mut rows = 0;
            for data in decoded.batches {
                rows += data.rows();
                write_batch(&Batch::new(Default::default(), data)).unwrap();
            }
            format!("{} rows, {}", size(rows), outline(&decoded.rejected.summary()))
        }
    }
}

const JSON_WORDS: [&str; 12] =
    ["{", "}", "[", "]", "null", "\"\\ud800\"", "\\u0000", "\"\"", ",", "\"NaN\"", "{\"a\":", "[["];

#[test]
fn otlp_json_and_protobuf() {
    use otlp::json::Request;
    for (name, request) in
        [("otlp_logs", Request::Logs), ("otlp_traces", Request::Traces), ("otlp_metrics", Request::Metrics)]
    {
        let json = seed(&format!("{name}/full.json"));
        let protobuf = otlp::json::to_protobuf(&json, request).unwrap();
        run(MANIFEST, Target { name, seeds: vec![json], words: &JSON_WORDS }, |input| match otlp::json::to_protobuf(
            input, request,
        ) {
            Err(e) => outline(&e),
            Ok(protobuf) => outcome(otlp::decode(&protobuf, request, &limits(), NOW, None)),
        });
        let name = format!("{name}_protobuf");
        run(MANIFEST, Target { name: &name, seeds: vec![protobuf], words: &[] }, |input| {
            outcome(otlp::decode(input, request, &limits(), NOW, None))
        });
    }
}

/// A protobuf field of length-delimited bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(bytes);
    out
}

#[test]
fn loki_json_and_protobuf() {
    let judge = |push: Result<loki::Push, Malformed>| match push {
        Err(e) => outline(&e),
        Ok(push) => format!("{} {}", push.streams.min(4), outcome(Ok(push.decoded))),
    };
    run(MANIFEST, Target { name: "loki_json", seeds: vec![], words: &JSON_WORDS }, |input| {
        judge(loki::decode_json(input, &limits(), NOW))
    });
    let time = [vec![0x08, 0x80, 0xe2, 0xcf, 0xaa, 0x06], vec![0x10, 0x07]].concat();
    let pair = [field(1, b"user"), field(2, b"u")].concat();
    let entry = [field(1, &time), field(2, b"a line"), field(3, &pair)].concat();
    let stream = [field(1, br#"{app="web", x="y"}"#), field(2, &entry), field(2, &entry)].concat();
    let push = field(1, &stream);
    assert_eq!(loki::decode_protobuf(&push, &limits(), NOW).unwrap().streams, 1);
    run(MANIFEST, Target { name: "loki_protobuf", seeds: vec![push], words: &["{a=\"", "=~", "\\"] }, |input| {
        judge(loki::decode_protobuf(input, &limits(), NOW))
    });
}

#[test]
fn remote_write_both_versions() {
    use remote_write::{Families, Version, decode, encode_v1, encode_v2};
    let mut rows = MetricBatchBuilder::new();
    for job in ["a", "b"] {
        let labels = Labels::from_pairs([("__name__", "m_total"), ("job", job)]);
        let meta = SeriesMeta { metric_type: Some("counter"), help: Some("h"), ..SeriesMeta::default() };
        let id = rows.series(&labels, meta);
        rows.sample(id, 1_000, None, 1.5);
        rows.exemplar(id, 1_000, 1.0, None, None, r#"{"trace_id":"x"}"#);
        let (positive_counts, negative_counts) = (vec![1.0, 0.0, 2.0], vec![4.0]);
        let h = HistogramRow { schema: 3, count: 7.0, positive_counts, negative_counts, ..HistogramRow::default() };
        rows.histogram(id, 2_000, None, &h);
    }
    let batch = rows.finish();
    let targets =
        [("remote_write_v1", Version::V1, encode_v1(&batch)), ("remote_write_v2", Version::V2, encode_v2(&batch))];
    for (name, version, seed) in targets {
        let judge = |input: &[u8]| match decode(input, version, &limits(), NOW, &Families::default()) {
            Err(e) => outline(&e),
            Ok(write) => outcome(Ok(write.decoded)),
        };
        assert!(judge(&seed).contains("rows"), "{}", judge(&seed));
        run(MANIFEST, Target { name, seeds: vec![seed], words: &[] }, judge);
    }
}

#[test]
fn expositions_of_scraped_targets() {
    use prom_text::{DecodeError, Format, Options, Point};
    let judge = |input: &[u8], format: Format| {
        let (mut samples, mut exemplars, mut histograms) = (0, 0, 0);
        let options = Options { native: true, classic_too: true, custom_buckets: true };
        let read = prom_text::decode(input, format, options, &mut |s| {
            assert_eq!(s.labels[0].0, "__name__");
            samples += 1;
            exemplars += s.exemplars.len();
            histograms += usize::from(matches!(s.point, Point::Histogram(_)));
            Ok::<(), DecodeError>(())
        });
        let end = read.err().map(|e| outline(&e.message)).unwrap_or_default();
        format!("{} {} {} {end}", size(samples), size(exemplars), size(histograms))
    };
    let text = "# HELP a_s h\\n\n# TYPE a_s histogram\na_s_bucket{le=\"1\",x=\"\\\"\"} 2 17\n{\"u.t\",\"q q\"=\"v\"} NaN\nb +Inf\n";
    let open = "# TYPE a_s counter\n# UNIT a_s s\n# HELP a_s h\na_s_total{l=\"v\"} 1 1.5 # {t=\"x\"} 2 3\n# EOF\n";
    let words = [
        "# TYPE ",
        "# HELP ",
        "# UNIT ",
        "# EOF\n",
        "{",
        "}",
        "=\"",
        "\"",
        "\\",
        ",",
        " # {",
        "+Inf",
        "\n",
        "histogram",
        "1e400",
    ];
    let target = |name| Target { name, seeds: vec![text.into(), open.into()], words: &words };
    run(MANIFEST, target("prometheus_text"), |input| judge(input, Format::Text));
    run(MANIFEST, target("openmetrics"), |input| judge(input, Format::OpenMetrics));
    // A histogram `h` of 3 with an exemplar in its one classic bucket, and three native buckets.
    let native = [
        &[0x08, 3, 0x11, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f][..],
        &field(
            3,
            &[&[0x08, 3, 0x11, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f][..], &field(3, &field(1, &field(1, b"t")))].concat(),
        ),
        &[0x28, 6],
        &field(12, &[0x10, 3]),
        &field(13, &[2, 0, 0]),
    ]
    .concat();
    let family = [field(1, b"h"), vec![0x18, 4], field(4, &field(7, &native))].concat();
    let seed = [vec![family.len() as u8], family].concat();
    assert!(!judge(&seed, Format::Protobuf).contains("metric"), "{}", judge(&seed, Format::Protobuf));
    run(MANIFEST, Target { name: "prometheus_protobuf", seeds: vec![seed], words: &[] }, |input| {
        judge(input, Format::Protobuf)
    });
}

#[test]
fn ndjson_lines() {
    let params = ndjson::Params::new(None, None, Some("app")).unwrap();
    run(MANIFEST, Target { name: "ndjson", seeds: vec![], words: &JSON_WORDS }, |input| {
        outcome(Ok(ndjson::decode(input, &params, &limits(), NOW)))
    });
}

#[test]
fn elasticsearch_bulk() {
    let seed = b"{\"index\":{\"_index\":\"logs-app\",\"_id\":\"1\"}}\n\
        {\"@timestamp\":\"2023-11-14T22:13:20.5\",\"message\":\"m\",\"service\":{\"name\":\"s\"},\"level\":\"warn\"}\n\
        {\"create\":{}}\n{\"time\":1700000000000,\"a\":[1,{\"b\":null}]}\n{\"delete\":{\"_id\":2}}\n{\"update\":{}}\n{\"doc\":{}}\n";
    assert!(elastic::decode(seed, Some("i"), &limits(), NOW).is_ok());
    let words = [
        "{\"create\":{}}\n",
        "{\"delete\":{}}\n",
        "\"_index\":",
        "\"@timestamp\":\"2026-01-01\"",
        "\n",
        "\\u0000",
        "{",
        "}",
    ];
    run(MANIFEST, Target { name: "elasticsearch_bulk", seeds: vec![seed.to_vec()], words: &words }, |input| {
        match elastic::decode(input, Some("i"), &limits(), NOW) {
            Err(e) => outline(&e),
            Ok(bulk) => {
                let refused = bulk.items.iter().filter(|i| i.refused.is_some()).count() as u64;
                assert_eq!(refused, bulk.decoded.rejected.total());
                format!("{} items, {}", size(bulk.items.len()), outcome(Ok(bulk.decoded)))
            }
        }
    });
}

#[test]
fn syslog_messages_and_frames() {
    let seeds: Vec<Vec<u8>> = [
        "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 ID [ex@1 iut=\"3\" s=\"q\\\"b\\]\"][z@2] text",
        "<34>Oct 11 22:14:15 mymachine su[12]: 'su root' failed",
        "<189>123: *Mar  1 00:00:00.123 UTC: %SYS-5-CONFIG_I: done",
    ]
    .map(|s| s.as_bytes().to_vec())
    .into();
    let words = [
        "<13>",
        "<191>1 ",
        " - ",
        "[a b=\"",
        "\\\"",
        "]",
        "Feb 29 ",
        "23:59:60",
        "2026-01-01T00:00:00Z",
        "\u{feff}",
        ": ",
    ];
    run(MANIFEST, Target { name: "syslog", seeds, words: &words }, |input| {
        let text = String::from_utf8_lossy(input);
        let m = syslog::parse(&text, NOW, syslog::UtcOffset::default());
        assert!(text.contains(m.body) && m.data.len() <= 256);
        format!("{:?} {} {} {}", m.level(), m.ts.is_some(), m.host.is_some(), size(m.data.len()))
    });
    let seeds = vec![b"5 <1>ab<2>line\n12 <3>two\nlines<4>nul\x0012 monkeys\n<5>end".to_vec()];
    let words = ["\n", "9999999 <", "99999999 <", "0 <", "1 <1>", "<1>", "\0"];
    run(MANIFEST, Target { name: "syslog_frames", seeds, words: &words }, |input| {
        let cut = |piece: usize| {
            let mut frames = syslog::frame::Frames::new(64);
            let mut out = Vec::new();
            for bytes in input.chunks(piece) {
                frames.buffer().extend_from_slice(bytes);
                while let Some(frame) = frames.next() {
                    assert!(frame.bytes.len() <= 64);
                    out.push(frame);
                }
                assert!(frames.buffer().len() <= 80, "{}", frames.buffer().len());
            }
            out.extend(frames.last());
            out
        };
        let whole = cut(usize::MAX);
        assert_eq!(whole, cut(3));
        format!("{} {}", size(whole.len()), whole.iter().filter(|f| f.cut).count().min(4))
    });
}

#[test]
fn compressed_bodies() {
    let text = br#"{"ts":1700000000000000000,"msg":"order 17 placed"}"#.repeat(40);
    let gzip = |level| {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
        e.write_all(&text).unwrap();
        e.finish().unwrap()
    };
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(&text).unwrap();
    let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    deflate.write_all(&text).unwrap();
    let mut framed = snap::write::FrameEncoder::new(Vec::new());
    framed.write_all(&text).unwrap();
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(&text).unwrap();
    let block = snap::raw::Encoder::new().compress_vec(&text).unwrap();
    let cases: [(&str, Encoding, Vec<Vec<u8>>); 5] = [
        ("inflate_gzip", Encoding::Gzip, vec![gzip(1), gzip(0), [gzip(1), gzip(9)].concat()]),
        ("inflate_deflate", Encoding::Deflate, vec![zlib.finish().unwrap(), deflate.finish().unwrap()]),
        ("inflate_zstd", Encoding::Zstd, vec![zstd::encode_all(&text[..], 1).unwrap()]),
        ("inflate_snappy", Encoding::Snappy, vec![block, framed.into_inner().unwrap()]),
        ("inflate_lz4", Encoding::Lz4, vec![lz4.finish().unwrap()]),
    ];
    for (name, encoding, seeds) in cases {
        for seed in &seeds {
            let out = inflate(encoding, Bytes::copy_from_slice(seed), CAP).unwrap();
            assert!(out.len() >= text.len(), "{name}");
        }
        run(MANIFEST, Target { name, seeds, words: &[] }, |input| {
            match inflate(encoding, Bytes::copy_from_slice(input), CAP) {
                Ok(out) => {
                    assert!(out.len() <= CAP);
                    format!("{} bytes", size(out.len()))
                }
                Err(e) => outline(&e),
            }
        });
    }
}

#[test]
fn conditions_and_configurations() {
    let words = ["and ", "not ", "(", ")", ".attrs.", ".body", "==", "matches ", "'", "exists ", "||", "\\d{9}"];
    run(MANIFEST, Target { name: "condition", seeds: vec![], words: &words }, |input| {
        let text = String::from_utf8_lossy(input);
        match Condition::parse(&text) {
            Err(e) => outline(&e.message),
            Ok(condition) => {
                let Data::Logs(rows) = Data::empty() else { return String::new() };
                format!("{} {:?}", condition.signals(), condition.mask(&rows).len())
            }
        }
    });
    let words = ["\"inputs\":[\"push\"]", "\"type\":\"", "null", "{", "[", "\"(?:\"", "\"a{1000}{1000}\""];
    run(MANIFEST, Target { name: "transform_config", seeds: vec![], words: &words }, |input| {
        let text: Cow<'_, str> = String::from_utf8_lossy(input);
        match serde_json::from_str::<PipelineConfig>(&text) {
            Err(e) => outline(&e),
            Ok(config) => match PipelineBuilder::new(config).input("push", Signals::ALL).check() {
                Ok(graph) => format!("{} components", graph.order.len()),
                Err(e) => outline(&e),
            },
        }
    });
}
