use proptest::prelude::*;

use super::{DecodeError, Format, FormatError, Options, Point, Protocol, accept, decode, format_of, write_float};
use crate::codec::otlp::wire::{put_bytes, put_int, put_varint};

/// Samples as `name{a="b"} value @ts !start # {exemplar} value @ts (type unit help)`.
fn read_with(body: &[u8], format: Format, options: Options) -> Result<Vec<String>, DecodeError> {
    let mut out = Vec::new();
    decode(body, format, options, &mut |s| {
        let pairs = |labels: &[super::Label<'_>]| {
            let pairs: Vec<String> = labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
            format!("{{{}}}", pairs.join(","))
        };
        let mut line = format!("{}{}", s.labels[0].1, pairs(&s.labels[1..]));
        assert_eq!(s.labels[0].0, "__name__");
        match s.point {
            Point::Value(v) => line.push_str(&format!(" {v}")),
            Point::Histogram(h) if h.schema == -53 => line.push_str(&format!(
                " h{:?} {} {} {:?}{}",
                h.custom_bounds.as_deref().unwrap(),
                h.count,
                h.sum,
                h.positive_counts,
                if h.is_float { " float" } else { "" }
            )),
            Point::Histogram(h) => line.push_str(&format!(
                " h{} {} {} {}:{:?} {}:{:?} {}",
                h.schema,
                h.count,
                h.sum,
                h.positive_offset,
                h.positive_counts,
                h.negative_offset,
                h.negative_counts,
                h.is_float
            )),
        }
        line.extend(s.ts_ms.map(|t| format!(" @{t}")));
        line.extend(s.start_ms.map(|t| format!(" !{t}")));
        for e in s.exemplars {
            line.push_str(&format!(" # {} {}", pairs(&e.labels), e.value));
            line.extend(e.ts_ms.map(|t| format!(" @{t}")));
        }
        if let Some(f) = s.family {
            let said = |t: &Option<std::borrow::Cow<'_, str>>| t.as_deref().unwrap_or("-").to_owned();
            line.push_str(&format!(" ({} {} {})", f.metric_type.unwrap_or("-"), said(&f.unit), said(&f.help)));
        }
        out.push(line);
        Ok::<(), DecodeError>(())
    })?;
    Ok(out)
}

const CUSTOM: Options = Options { native: false, classic_too: false, custom_buckets: true };

/// Text read with [`CUSTOM`] buckets, and how many histograms stay classic.
fn converted(body: &str, format: Format, options: Options) -> (Vec<String>, u64) {
    let read = decode(body.as_bytes(), format, options, &mut |_| Ok::<(), DecodeError>(())).unwrap();
    (read_with(body.as_bytes(), format, options).unwrap(), read.not_converted)
}

fn text(body: &str) -> Result<Vec<String>, String> {
    read_with(body.as_bytes(), Format::Text, Options::default()).map_err(|e| e.to_string())
}

fn open(body: &str) -> Result<Vec<String>, String> {
    read_with(body.as_bytes(), Format::OpenMetrics, Options::default()).map_err(|e| e.to_string())
}

#[test]
fn text_samples_with_types_helps_escapes_and_times() {
    let body = "# HELP go_gc Pause\\nof \\\\ \"gc\"\n# TYPE go_gc summary\n\
        go_gc{quantile=\"0\"} 4.9351e-05\ngo_gc{quantile=\"0.25\",} 7.424100000000001e-05\n\
        go_gc{ quantile = \"1\" , a=\"b\" } 8 1234\n  go_gc_count \t 99  \n# a comment\n#HELP x y\n\n\
        other{a=\"\\\\x\\n\\\"y\\\"\\z\"} +Inf -5\nneg:x{a=\"é\"} -inf\n nan NaN\r\n\
        # TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+inf\"} 1e1\n{\"my.metric\",\"a b\"=\"c\",d=\"\"} 3\n\
        # TYPE \"my.metric\" counter\n{d=\"x\",\"my.metric\"} 4\nm{}5";
    let want = [
        r#"go_gc{quantile="0.0"} 0.000049351 (summary - Pause
of \ "gc")"#,
        r#"go_gc{quantile="0.25"} 0.00007424100000000001 (summary - Pause
of \ "gc")"#,
        r#"go_gc{quantile="1.0",a="b"} 8 @1234 (summary - Pause
of \ "gc")"#,
        r#"go_gc_count{} 99 (summary - Pause
of \ "gc")"#,
        r#"other{a="\\x\n\"y\"\\z"} inf @-5"#,
        r#"neg:x{a="é"} -inf"#,
        "nan{} NaN",
        r#"h_bucket{le="1.0"} 2 (histogram - -)"#,
        r#"h_bucket{le="+Inf"} 10 (histogram - -)"#,
        r#"my.metric{a b="c",d=""} 3"#,
        r#"my.metric{d="x"} 4 (counter - -)"#,
        "m{} 5",
    ];
    assert_eq!(text(body).unwrap(), want);
    assert!(text("").unwrap().is_empty());
}

#[test]
fn a_nan_is_never_a_stale_marker() {
    decode(b"a NaN\n", Format::Text, Options::default(), &mut |s| {
        let Point::Value(v) = s.point else { panic!() };
        assert_eq!(v.to_bits(), 0x7ff8_0000_0000_0001);
        Ok::<(), DecodeError>(())
    })
    .unwrap();
}

#[test]
fn text_errors_tell_the_line_and_what_was_expected() {
    for (body, want) in [
        ("a 1\nb", "line 2: expected a value after the series, got end of line"),
        ("a{b='c'} 1", "line 1: expected a label's value in quotes, got \"'c'} 1\""),
        ("a{b=\"c} 1\n", "line 1: the quotes of a label's value are not closed: \"\\\"c} 1\""),
        ("a{b=\"c\" d=\"e\"} 1", "line 1: expected \",\" or \"}\" after a label, got \"d=\\\"e\\\"} 1\""),
        ("a{1=\"c\"} 1", "line 1: expected a label name or \"}\", got \"1=\\\"c\\\"} 1\""),
        ("a one", "line 1: a value after the series is not a number: \"one\""),
        ("a 0x1p4", "line 1: a value after the series is not a number: \"0x1p4\""),
        ("a 1_000", "line 1: a value after the series is not a number: \"1_000\""),
        ("a 1 2.5", "line 1: the timestamp is not an integer of milliseconds: \"2.5\""),
        ("a 1 2 3", "line 1: expected the end of the line, got \"3\""),
        ("a 1 # {a=\"b\"} 1", "line 1: the timestamp is not an integer of milliseconds: \"# {a=\\\"b\\\"} 1\""),
        ("1a 2", "line 1: expected a metric name, got \"1a 2\""),
        ("{a=\"b\"} 2", "line 1: a series without a metric name"),
        ("{\"a\",\"b\"} 2", "line 1: expected a value of label \"b\", or the metric name is given twice"),
        ("\n# TYPE a gouge\n", "line 2: invalid metric type \"gouge\""),
        ("# TYPE a\n", "line 1: expected a metric type, got end of line"),
        ("# HELP\n", "line 1: expected a metric name after HELP"),
        ("a{l:m=\"c\"} 1", "line 1: label name \"l:m\" has a colon; quote it"),
    ] {
        assert_eq!(text(body).unwrap_err(), want, "{body:?}");
    }
    let e = read_with(b"a 1\nb{c=\"\xff\"} 1\n", Format::Text, Options::default()).unwrap_err();
    assert_eq!(e.to_string(), "line 2: invalid UTF-8");
}

#[test]
fn openmetrics_with_exemplars_units_and_created() {
    let body = "# TYPE foo_seconds counter\n# UNIT foo_seconds seconds\n# HELP foo_seconds It \\\"is\\\"\n\
        foo_seconds_total{a=\"b\"} 17.0 1520879607.789 # {trace_id=\"KOO\"} 0.5 1520879607\n\
        foo_seconds_created{a=\"b\"} 1520872607.123\n# TYPE h histogram\n\
        h_bucket{le=\"10\"} 4 # {} 3\nh_bucket{le=\"+Inf\"} 5\n# TYPE s stateset\ns{s=\"up\"} 1\n# TYPE i info\n\
        i_info{v=\"1\"} 1\n{\"ü.m\"} 2 -1.5\n# EOF";
    let want = [
        r#"foo_seconds_total{a="b"} 17 @1520879607789 # {trace_id="KOO"} 0.5 @1520879607000 (counter seconds It "is")"#,
        r#"foo_seconds_created{a="b"} 1520872607.123 (counter seconds It "is")"#,
        r#"h_bucket{le="10.0"} 4 # {} 3 (histogram - -)"#,
        r#"h_bucket{le="+Inf"} 5 (histogram - -)"#,
        r#"s{s="up"} 1 (stateset - -)"#,
        r#"i_info{v="1"} 1 (info - -)"#,
        "ü.m{} 2 @-1500",
    ];
    assert_eq!(open(body).unwrap(), want);
    assert_eq!(open(&format!("{body}\n")).unwrap(), want);
}

#[test]
fn openmetrics_is_strict_and_must_end() {
    for (body, want) in [
        ("", "line 1: data does not end with # EOF"),
        ("a 1\n", "line 2: data does not end with # EOF"),
        ("a 1", "line 1: data does not end with # EOF"),
        ("# EOF\n\n", "line 2: unexpected data after # EOF"),
        ("\n# EOF\n", "line 1: a blank line"),
        ("a  1\n# EOF\n", "line 1: more than one space before a value after the series"),
        ("a\t1\n# EOF\n", "line 1: expected a value after the series, got \"\\t1\""),
        ("a 1 \n# EOF\n", "line 1: expected a timestamp, got end of line"),
        ("# a comment\n# EOF\n", "line 1: expected # TYPE, # HELP, # UNIT or # EOF"),
        ("# TYPE a untyped\n# EOF\n", "line 1: invalid metric type \"untyped\""),
        ("# UNIT a_s seconds\n# EOF\n", "line 1: unit \"seconds\" is not a suffix of metric \"a_s\""),
        ("a 1 NaN\n# EOF\n", "line 1: a timestamp is not finite"),
        ("a 1 2 3\n# EOF\n", "line 1: expected an exemplar or the end of the line, got \"3\""),
        ("a 1 # {x=\"y\"}\n# EOF\n", "line 1: expected an exemplar's value, got end of line"),
        ("a 1 # x\n# EOF\n", "line 1: expected an exemplar's labels, got \"x\""),
        ("a 1 # {\"x\"} 1\n# EOF\n", "line 1: expected a value of label \"x\", or the metric name is given twice"),
    ] {
        assert_eq!(open(body).unwrap_err(), want, "{body:?}");
    }
}

fn put_double(out: &mut Vec<u8>, number: u32, value: f64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn message(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    build(&mut out);
    out
}

fn pair(name: &str, value: &str) -> Vec<u8> {
    message(|m| {
        put_bytes(m, 1, name.as_bytes());
        put_bytes(m, 2, value.as_bytes());
    })
}

/// A delimited family of one metric with a label `a="b"`, a time and a value in field `number`.
fn family(name: &str, kind: u64, number: u32, value: &[u8]) -> Vec<u8> {
    let metric = message(|m| {
        put_bytes(m, 1, &pair("a", "b"));
        put_bytes(m, number, value);
        put_int(m, 6, 1234);
    });
    let family = message(|m| {
        put_bytes(m, 1, name.as_bytes());
        put_bytes(m, 2, b"h");
        put_int(m, 3, kind);
        put_bytes(m, 4, &metric);
        put_bytes(m, 5, b"s");
    });
    message(|m| {
        put_varint(m, family.len() as u64);
        m.extend_from_slice(&family);
    })
}

fn an_exemplar() -> Vec<u8> {
    message(|m| {
        put_bytes(m, 1, &pair("trace_id", "x"));
        put_double(m, 2, 0.5);
        put_bytes(
            m,
            3,
            &message(|t| {
                put_int(t, 1, 7);
                put_int(t, 2, 5_000_000);
            }),
        );
    })
}

/// Classic buckets 1 and 3 of 5, and native ones of schema 3: 1 at index 0, 2 at index 1; -1 in a negative one.
fn a_histogram(native: bool) -> Vec<u8> {
    message(|m| {
        put_int(m, 1, 5);
        put_double(m, 2, 2.5);
        for (count, bound) in [(1, 1.0), (3, 2e6)] {
            let bucket = message(|b| {
                put_int(b, 1, count);
                put_double(b, 2, bound);
                put_bytes(b, 3, &an_exemplar());
            });
            put_bytes(m, 3, &bucket);
        }
        if native {
            put_int(m, 5, 6);
            put_double(m, 6, 0.001);
            put_int(m, 7, 1);
            put_bytes(m, 9, &message(|s| put_int(s, 2, 1)));
            put_int(m, 10, 2);
            put_bytes(m, 12, &message(|s| put_int(s, 2, 2)));
            put_int(m, 13, 2);
            put_int(m, 13, 2);
        }
        put_bytes(m, 15, &message(|t| put_int(t, 1, 3)));
    })
}

#[test]
fn protobuf_families_become_the_series_of_their_text() {
    let counter = message(|m| {
        put_double(m, 1, 4.0);
        put_bytes(m, 2, &an_exemplar());
        put_bytes(m, 3, &message(|t| put_int(t, 1, 3)));
    });
    let summary = message(|m| {
        put_int(m, 1, 9);
        put_double(m, 2, 1.5);
        let quantile = message(|q| {
            put_double(q, 1, 0.5);
            put_double(q, 2, f64::NAN);
        });
        put_bytes(m, 3, &quantile);
    });
    let gauge = message(|m| put_double(m, 1, -2.0));
    let body = [
        family("c_total", 0, 3, &counter),
        family("g", 1, 2, &gauge),
        family("s", 2, 4, &summary),
        family("h", 4, 7, &a_histogram(false)),
    ]
    .concat();
    let want = [
        r#"c_total{a="b"} 4 @1234 !3000 # {trace_id="x"} 0.5 @7005 (counter s h)"#,
        r#"g{a="b"} -2 @1234 (gauge s h)"#,
        r#"s_count{a="b"} 9 @1234 (summary s h)"#,
        r#"s_sum{a="b"} 1.5 @1234 (summary s h)"#,
        r#"s{a="b",quantile="0.5"} NaN @1234 (summary s h)"#,
        r#"h_count{a="b"} 5 @1234 !3000 (histogram s h)"#,
        r#"h_sum{a="b"} 2.5 @1234 !3000 (histogram s h)"#,
        r#"h_bucket{a="b",le="1.0"} 1 @1234 !3000 # {trace_id="x"} 0.5 @7005 (histogram s h)"#,
        r#"h_bucket{a="b",le="2e+06"} 3 @1234 !3000 # {trace_id="x"} 0.5 @7005 (histogram s h)"#,
        r#"h_bucket{a="b",le="+Inf"} 5 @1234 !3000 (histogram s h)"#,
    ];
    assert_eq!(read_with(&body, Format::Protobuf, Options::default()).unwrap(), want);
}

#[test]
fn a_native_histogram_is_one_sample_and_its_classic_part_on_demand() {
    let body = family("h", 4, 7, &a_histogram(true));
    let native = Options { native: true, ..Options::default() };
    let both = Options { classic_too: true, ..native };
    let h = r#"h{a="b"} h3 5 2.5 0:[1.0, 2.0] 0:[1.0] false @1234 !3000 # {trace_id="x"} 0.5 @7005 # {trace_id="x"} 0.5 @7005 (histogram s h)"#;
    assert_eq!(read_with(&body, Format::Protobuf, native).unwrap(), [h]);
    assert_eq!(read_with(&body, Format::Protobuf, both).unwrap().len(), 1 + 5);
    assert_eq!(read_with(&body, Format::Protobuf, Options::default()).unwrap().len(), 5);
}

#[test]
fn classic_histograms_become_native_ones_with_custom_buckets() {
    let body = "# TYPE h histogram\n# HELP h So\n\
        h_bucket{le=\"1\",a=\"x\"} 2\nh_bucket{a=\"x\",le=\"+Inf\"} 5\nh_sum{a=\"x\"} 7\nh_count{a=\"x\"} 5\n\
        h_bucket{le=\"0.5\"} 1.5\nh_bucket{le=\"2\"} 2\nh_sum NaN\nh_count 3\nh_other 1\n\
        # TYPE g gauge\ng_bucket{le=\"1\"} 4\n";
    let of_x = r#"h{a="x"} h[1.0] 5 7 [2.0, 3.0] (histogram - So)"#;
    let bare = "h{} h[0.5, 2.0] 3 NaN [1.5, 0.5, 1.0] float (histogram - So)";
    let others = ["h_other{} 1", "g_bucket{le=\"1\"} 4"];
    let want = [others[0], of_x, bare, others[1]];
    assert_eq!(converted(body, Format::Text, CUSTOM), (want.map(str::to_owned).to_vec(), 0));
    let both = Options { classic_too: true, ..CUSTOM };
    let (told, _) = converted(body, Format::Text, both);
    assert_eq!(told.len(), want.len() + 8, "{told:#?}");
    let first = r#"h_bucket{le="1.0",a="x"} 2 (histogram - So)"#;
    assert_eq!((told[1].as_str(), told[2].as_str()), (of_x, first));
    // Lines of one histogram need not stand together; those of two times are two.
    let body = "# TYPE h histogram\nh_bucket{le=\"1\",a=\"x\"} 2 10\nh_bucket{le=\"1\",a=\"y\"} 0 10\n\
        h_count{a=\"y\"} 0 10\nh_count{a=\"x\"} 3 10\nh_count{a=\"x\"} 4 20\nh_sum{a=\"x\"} 6 10\n";
    let want = [
        r#"h{a="x"} h[1.0] 3 6 [2.0, 1.0] @10 (histogram - -)"#,
        r#"h{a="y"} h[1.0] 0 0 [0.0, 0.0] @10 (histogram - -)"#,
        r#"h{a="x"} h[] 4 0 [4.0] @20 (histogram - -)"#,
    ];
    assert_eq!(converted(body, Format::Text, CUSTOM), (want.map(str::to_owned).to_vec(), 0));
}

#[test]
fn what_is_no_histogram_stays_classic_and_is_counted() {
    for (lines, n) in [
        // Counts go down.
        ("h_bucket{le=\"1\"} 3\nh_bucket{le=\"2\"} 2\nh_bucket{le=\"+Inf\"} 4\nh_count 4\n", 4),
        // The highest bucket is above the count.
        ("h_bucket{le=\"1\"} 3\nh_count 2\n", 2),
        // The bucket of all is not the count.
        ("h_bucket{le=\"+Inf\"} 3\nh_sum 1\nh_count 4\n", 3),
        ("h_bucket 3\nh_bucket{le=\"+Inf\"} 3\nh_count 3\n", 3),
        ("h_bucket{le=\"x\"} 3\nh_bucket{le=\"+Inf\"} 3\n", 2),
        ("h_bucket{le=\"NaN\"} 3\nh_bucket{le=\"+Inf\"} 3\n", 2),
        ("h_bucket{le=\"1\"} -1\nh_bucket{le=\"+Inf\"} 3\n", 2),
        ("h_bucket{le=\"1\"} NaN\nh_count NaN\n", 2),
        ("h_sum 3\n", 1),
    ] {
        // The one beside it is one.
        let body = format!("# TYPE h histogram\n{lines}h_bucket{{a=\"b\",le=\"1\"}} 1\n");
        let (told, not_converted) = converted(&body, Format::Text, CUSTOM);
        assert_eq!((told.len(), not_converted), (n + 1, 1), "{body}: {told:#?}");
        assert!(told[..n].iter().all(|line| line.starts_with("h_")), "{told:#?}");
        assert_eq!(told[n], r#"h{a="b"} h[1.0] 1 0 [1.0, 0.0] (histogram - -)"#);
    }
    let gauge = "# TYPE h gaugehistogram\nh_bucket{le=\"+Inf\"} 1\n# EOF\n";
    let (told, not_converted) = converted(gauge, Format::OpenMetrics, CUSTOM);
    assert_eq!((told.len(), not_converted), (1, 0), "only histograms that count are converted: {told:?}");
}

#[test]
fn a_converted_histogram_takes_exemplars_and_when_it_was_created() {
    let body = "# TYPE h histogram\nh_bucket{le=\"1\"} 2 # {t=\"b\"} 0.5 9\nh_bucket{le=\"2\"} 2 # {t=\"a\"} 0.4\n\
        h_bucket{le=\"+Inf\"} 3 # {t=\"c\"} 7 8\nh_count 3\nh_sum 9\nh_created 1.5\n# EOF\n";
    let exemplars = r#"# {t="a"} 0.4 # {t="c"} 7 @8000 # {t="b"} 0.5 @9000"#;
    let want = [
        "h_created{} 1.5 (histogram - -)".to_owned(),
        format!("h{{}} h[1.0, 2.0] 3 9 [2.0, 0.0, 1.0] !1500 {exemplars} (histogram - -)"),
    ];
    assert_eq!(converted(body, Format::OpenMetrics, CUSTOM), (want.to_vec(), 0));
}

#[test]
fn a_classic_histogram_in_protobuf_is_converted_unless_it_is_native_too() {
    let classic = family("h", 4, 7, &a_histogram(false));
    let exemplar = r#"# {trace_id="x"} 0.5 @7005"#;
    let h = format!(
        "h{{a=\"b\"}} h[1.0, 2000000.0] 5 2.5 [1.0, 2.0, 2.0] @1234 !3000 {exemplar} {exemplar} (histogram s h)"
    );
    assert_eq!(read_with(&classic, Format::Protobuf, CUSTOM).unwrap(), [h.as_str()]);
    let both = Options { classic_too: true, ..CUSTOM };
    let told = read_with(&classic, Format::Protobuf, both).unwrap();
    assert_eq!((told.len(), &told[0]), (1 + 5, &h));
    let native = family("h", 4, 7, &a_histogram(true));
    assert_eq!(
        read_with(&native, Format::Protobuf, CUSTOM).unwrap(),
        [h.as_str()],
        "where native ones are not taken"
    );
    let told = read_with(&native, Format::Protobuf, Options { native: true, ..CUSTOM }).unwrap();
    assert!(told.len() == 1 && told[0].starts_with("h{a=\"b\"} h3 5 2.5"), "{told:?}");
    let told = read_with(&native, Format::Protobuf, Options { native: true, ..both }).unwrap();
    assert!(told.len() == 6 && told[1].starts_with("h_count"), "{told:?}");
    // Counts that go down.
    let bucket = |count: u64, bound: f64| {
        message(|b| {
            put_int(b, 1, count);
            put_double(b, 2, bound);
        })
    };
    let broken = message(|m| {
        put_int(m, 1, 5);
        put_bytes(m, 3, &bucket(3, 1.0));
        put_bytes(m, 3, &bucket(2, 2.0));
    });
    let body = family("h", 4, 7, &broken);
    assert_eq!(read_with(&body, Format::Protobuf, CUSTOM).unwrap().len(), 5);
    let read = decode(&body, Format::Protobuf, CUSTOM, &mut |_| Ok::<(), DecodeError>(())).unwrap();
    assert_eq!(read.not_converted, 1);
}

#[test]
fn protobuf_that_is_broken_is_told_with_its_family() {
    let good = family("g", 1, 2, &message(|m| put_double(m, 1, 1.0)));
    for (bad, want) in [
        (vec![9, 1, 2], "metric family 2: a message of 9 bytes, but 2 are left"),
        (family("x", 9, 2, &[]), "metric family 2: unknown metric type 9 of \"x\""),
        (family("x", 0, 2, &[]), "metric family 2: a metric of \"x\" has no value of its type counter"),
        (family("", 0, 3, &[]), "metric family 2: a metric family without a name"),
    ] {
        let body = [good.clone(), bad].concat();
        let e = read_with(&body, Format::Protobuf, Options::default()).unwrap_err();
        assert_eq!(e.to_string(), want);
    }
}

#[test]
fn the_error_of_the_taker_ends_the_reading() {
    let body = family("h", 4, 7, &a_histogram(false));
    for (body, format) in [(&b"a 1\nb 2\n"[..], Format::Text), (&body, Format::Protobuf)] {
        let mut n = 0;
        let e = decode(body, format, Options::default(), &mut |_| {
            n += 1;
            Err(DecodeError { place: "mine", at: 1, message: String::new() })
        });
        assert_eq!((e.unwrap_err().place, n), ("mine", 1));
    }
}

#[test]
fn formats_are_asked_for_and_told_as_prometheus_does() {
    assert_eq!(
        accept(&Protocol::DEFAULT, "allow-utf-8"),
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
         application/openmetrics-text;version=0.0.1;q=0.5,\
         text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    );
    assert!(accept(&[Protocol::Protobuf], "allow-utf-8").starts_with(
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6"
    ));
    assert_eq!(format_of(Some("text/plain; version=0.0.4; charset=utf-8"), None), Ok(Format::Text));
    assert_eq!(format_of(Some("Application/OpenMetrics-Text;version=1.0.0"), None), Ok(Format::OpenMetrics));
    assert_eq!(format_of(Some(""), None), Err(FormatError::Missing));
    assert_eq!(format_of(Some("text/html"), None), Err(FormatError::Unsupported("text/html".to_owned())));
    assert_eq!(format_of(Some("text/html"), Some(Protocol::Text004)), Ok(Format::Text));
    assert_eq!(Protocol::parse("PrometheusText1.0.0"), Some(Protocol::Text100));
}

#[test]
fn floats_are_written_as_openmetrics_has_them() {
    for (value, want) in [
        (1.0, "1.0"),
        (-0.0, "0.0"),
        (0.005, "0.005"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (100_000.0, "100000.0"),
        (1e6, "1e+06"),
        (1_234_567.0, "1.234567e+06"),
        (1e100, "1e+100"),
        (2.5, "2.5"),
        (f64::NEG_INFINITY, "-Inf"),
        (f64::NAN, "NaN"),
    ] {
        assert_eq!(write_float(value), want);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        for format in [Format::Text, Format::OpenMetrics, Format::Protobuf] {
            for custom_buckets in [false, true] {
                let _ = read_with(&noise, format, Options { native: true, classic_too: true, custom_buckets });
            }
        }
    }

    #[test]
    fn a_histogram_is_converted_whatever_the_order_of_its_lines(
        histograms in proptest::collection::vec(proptest::collection::vec(0u32..100, 1..6), 1..5),
        seed in any::<u64>(),
    ) {
        let (mut lines, mut want) = (Vec::new(), Vec::new());
        for (i, counts) in histograms.iter().enumerate() {
            let mut upto = 0;
            for (bound, count) in counts.iter().enumerate() {
                upto += count;
                let le = if bound + 1 == counts.len() { "+Inf".to_owned() } else { bound.to_string() };
                lines.push(format!("h_bucket{{i=\"{i}\",le=\"{le}\"}} {upto}\n"));
            }
            lines.push(format!("h_sum{{i=\"{i}\"}} 7\n"));
            lines.push(format!("h_count{{i=\"{i}\"}} {upto}\n"));
            let bounds: Vec<f64> = (0..counts.len() - 1).map(|b| b as f64).collect();
            let counts: Vec<f64> = counts.iter().map(|c| f64::from(*c)).collect();
            want.push(format!("h{{i=\"{i}\"}} h{bounds:?} {upto} 7 {counts:?} (histogram - -)"));
        }
        lines.sort_by_key(|line| xxhash_rust::xxh3::xxh3_64_with_seed(line.as_bytes(), seed));
        let body = format!("# TYPE h histogram\n{}", lines.concat());
        let (mut told, not_converted) = converted(&body, Format::Text, CUSTOM);
        told.sort();
        prop_assert_eq!((told, not_converted), (want, 0));
    }

    #[test]
    fn what_is_written_reads_back(
        samples in proptest::collection::vec(
            ("[a-zA-Z_:][a-zA-Z0-9_:]{0,8}", proptest::collection::btree_map("[a-z_][a-z0-9_]{0,6}", "\\PC*", 0..4),
             any::<f64>().prop_filter("no nan", |v| !v.is_nan()), proptest::option::of(any::<i64>())),
            0..6),
    ) {
        let mut body = String::new();
        let mut want = Vec::new();
        for (name, labels, value, ts) in &samples {
            let escaped = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let written: Vec<String> = labels.iter().map(|(n, v)| format!("{n}=\"{}\"", escaped(v))).collect();
            body.push_str(&format!("{name}{{{}}} {value:?}", written.join(",")));
            body.extend(ts.map(|t| format!(" {t}")));
            body.push('\n');
            let shown: Vec<String> = labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
            want.push(format!("{name}{{{}}} {value}{}", shown.join(","), ts.map(|t| format!(" @{t}")).unwrap_or_default()));
        }
        prop_assert_eq!(text(&body).unwrap(), want);
    }
}
