use arrow::{
    array::{Array as _, AsArray, RecordBatch},
    datatypes::{Float64Type, Int32Type, Int64Type},
};
use proptest::prelude::*;
use storage::model::{
    Labels, MetricBatch, MetricBatchBuilder,
    batch::{HistogramRow, SeriesMeta},
};

use super::*;
use crate::{
    Data,
    codec::{
        Limits, Reason,
        otlp::wire::{put_bytes, put_int, put_varint},
    },
};

const NOW: i64 = 1_767_225_600_000_000_000;
const MS: i64 = NOW / 1_000_000;
const STALE: u64 = 0x7ff0_0000_0000_0002;

fn take(body: &[u8], version: Version) -> Write {
    decode(body, version, &Limits::default(), NOW, &Families::default()).unwrap()
}

fn double(out: &mut Vec<u8>, number: u32, v: f64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&v.to_le_bytes());
}

fn label_v1(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 1, name);
    put_bytes(&mut out, 2, value);
    out
}

fn sample(ms: i64, v: f64) -> Vec<u8> {
    let mut out = Vec::new();
    double(&mut out, 1, v);
    put_int(&mut out, 2, ms as u64);
    out
}

/// A 1.0 request of one series.
fn request(labels: &[(&[u8], &[u8])], samples: &[(i64, f64)]) -> Vec<u8> {
    let mut series = Vec::new();
    for (n, v) in labels {
        put_bytes(&mut series, 1, &label_v1(n, v));
    }
    for (ms, v) in samples {
        put_bytes(&mut series, 2, &sample(*ms, *v));
    }
    let mut out = Vec::new();
    put_bytes(&mut out, 1, &series);
    out
}

fn metrics(w: &Write) -> Vec<&MetricBatch> {
    let of = |d: &'_ Data| matches!(d, Data::Metrics(_));
    assert!(w.decoded.batches.iter().all(of));
    w.decoded.batches.iter().filter_map(|d| if let Data::Metrics(m) = d { Some(m) } else { None }).collect()
}

fn ints(b: &RecordBatch, name: &str) -> Vec<Option<i64>> {
    b.column_by_name(name).unwrap().as_primitive::<Int64Type>().iter().collect()
}

/// (labels, ms, start, bits of the value), sorted.
fn samples(batches: &[&MetricBatch]) -> Vec<(String, i64, Option<i64>, u64)> {
    let mut out = Vec::new();
    for m in batches {
        let ids = ints(&m.series, "series_id");
        let labels = m.series.column_by_name("labels").unwrap().as_string::<i32>();
        let values = m.samples.column_by_name("value").unwrap().as_primitive::<Float64Type>();
        let (times, starts) = (ints(&m.samples, "ts_ms"), ints(&m.samples, "start_ms"));
        for (i, id) in ints(&m.samples, "series_id").iter().enumerate() {
            let row = ids.iter().position(|s| s == id).unwrap();
            out.push((labels.value(row).to_owned(), times[i].unwrap(), starts[i], values.value(i).to_bits()));
        }
    }
    out.sort();
    out
}

fn text(b: &RecordBatch, name: &str, row: usize) -> Option<String> {
    let d = b.column_by_name(name).unwrap().as_dictionary::<Int32Type>();
    d.is_valid(row).then(|| d.values().as_string::<i32>().value(d.keys().value(row) as usize).to_owned())
}

#[test]
fn a_sample_of_1_0_arrives_with_every_bit_of_its_value() {
    for bits in [STALE, 0x7ff8_0000_0000_0001, f64::INFINITY.to_bits(), (-0.0f64).to_bits(), 1.5f64.to_bits()] {
        let body = request(&[(b"job", b"a"), (b"__name__", b"up")], &[(MS, f64::from_bits(bits))]);
        let w = take(&body, Version::V1);
        assert_eq!((w.samples, &w.error), (1, &None));
        assert_eq!(samples(&metrics(&w)), [(r#"{"__name__":"up","job":"a"}"#.to_owned(), MS, None, bits)]);
    }
}

#[test]
fn bad_labels_cost_their_series_and_1_0_is_silent_about_it() {
    let long = vec![b'x'; 1 << 20];
    let many: Vec<Vec<u8>> = (0..300).map(|i| format!("l{i:03}").into_bytes()).collect();
    let many: Vec<(&[u8], &[u8])> = many.iter().map(|n| (n.as_slice(), b"v" as &[u8])).collect();
    type Pairs<'a> = &'a [(&'a [u8], &'a [u8])];
    let cases: [(Pairs, Reason, bool); 7] = [
        (&[(b"job", b"a")], Reason::InvalidLabels, false),
        (&[(b"__name__", b"")], Reason::InvalidLabels, false),
        (&[(b"__name__", b"up"), (b"a", b"1"), (b"a", b"2")], Reason::InvalidLabels, false),
        (&[(b"__name__", b"up"), (b"", b"1")], Reason::InvalidLabels, false),
        (&[(b"__name__", b"up"), (b"a", b"\xff")], Reason::InvalidUtf8, false),
        (&[(b"__name__", b"up"), (b"a", &long)], Reason::LabelTooLong, true),
        (&many, Reason::TooManyLabels, true),
    ];
    for (labels, reason, told) in cases {
        let mut body = request(labels, &[(MS, 1.0), (MS + 1, 2.0)]);
        body.extend(request(&[(b"__name__", b"good")], &[(MS, 3.0)]));
        let w = take(&body, Version::V1);
        assert_eq!(w.decoded.rejected.by_reason().collect::<Vec<_>>(), [(reason, 2)]);
        assert_eq!((w.samples, w.error.is_some()), (1, told), "{reason:?} {:?}", w.error);
        assert_eq!(metrics(&w)[0].series.num_rows(), 1);
    }
}

#[test]
fn times_out_of_bounds_are_told_and_the_others_taken() {
    let extreme = [i64::MIN, i64::MAX, i64::MAX / 1_000_000 + 1, MS + 3_600_000];
    let mut points: Vec<(i64, f64)> = extreme.iter().map(|ms| (*ms, 0.0)).collect();
    points.extend([(0, 1.0), (-5, 2.0), (MS + 1000, 3.0)]);
    let w = take(&request(&[(b"__name__", b"up")], &points), Version::V1);
    assert_eq!((w.samples, w.decoded.rejected.total()), (3, 4));
    assert!(w.error.unwrap().starts_with("out of bounds"));
}

#[test]
fn families_told_earlier_or_with_the_samples_describe_their_series() {
    let mut told = Vec::new();
    put_int(&mut told, 1, 3);
    put_bytes(&mut told, 2, b"req_seconds");
    put_bytes(&mut told, 4, b"How long.");
    put_bytes(&mut told, 5, b"seconds");
    let mut metadata = Vec::new();
    put_bytes(&mut metadata, 3, &told);
    let w = take(&metadata, Version::V1);
    assert!(w.decoded.batches.is_empty() && w.error.is_none());
    let mut known = Families::default();
    assert!(known.learn(w.told));
    let body = request(&[(b"__name__", b"req_seconds_bucket"), (b"le", b"+Inf")], &[(MS, 1.0)]);
    let w = decode(&body, Version::V1, &Limits::default(), NOW, &known).unwrap();
    let series = &metrics(&w)[0].series;
    assert_eq!(text(series, "type", 0).as_deref(), Some("histogram"));
    assert_eq!(text(series, "help", 0).as_deref(), Some("How long."));
    let mut both = metadata;
    both.extend(request(&[(b"__name__", b"req_seconds")], &[(MS, 1.0)]));
    assert_eq!(text(&metrics(&take(&both, Version::V1))[0].series, "unit", 0).as_deref(), Some("seconds"));
}

/// A 2.0 request: symbols and series as encoded messages.
fn request_v2(symbols: &[&[u8]], series: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    symbols.iter().for_each(|s| put_bytes(&mut out, 4, s));
    series.iter().for_each(|s| put_bytes(&mut out, 5, s));
    out
}

fn series_v2(refs: &[u8], points: &[(i64, f64)]) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 1, refs);
    points.iter().for_each(|(ms, v)| put_bytes(&mut out, 2, &sample(*ms, *v)));
    out
}

#[test]
fn every_bad_series_of_2_0_is_told_and_the_good_ones_are_kept() {
    let symbols: [&[u8]; 4] = [b"", b"__name__", b"up", b"\xff"];
    let good = series_v2(&[1, 2], &[(MS, 1.0)]);
    for (bad, points, what) in [
        (series_v2(&[1, 9], &[(MS, 1.0)]), 1, "symbol 9 of 4"),
        (series_v2(&[1], &[(MS, 1.0)]), 1, "odd number"),
        (series_v2(&[1, 3], &[(MS, 1.0)]), 1, "UTF-8"),
        (series_v2(&[], &[(MS, 1.0)]), 1, "no metric name"),
        (series_v2(&[1, 2], &[]), 0, "neither samples nor histograms"),
    ] {
        let w = take(&request_v2(&symbols, &[bad, good.clone()]), Version::V2);
        assert_eq!((w.samples, w.decoded.rejected.total()), (1, points), "{what}");
        assert!(w.error.as_ref().unwrap().contains(what), "{:?}", w.error);
    }
    let body = request_v2(&[b"x"], &[good]);
    assert!(decode(&body, Version::V2, &Limits::default(), NOW, &Families::default()).is_err());
}

fn native() -> HistogramRow {
    HistogramRow {
        schema: 3,
        zero_threshold: 1e-128,
        zero_count: 2.0,
        count: 12.0,
        sum: 18.5,
        positive_offset: -2,
        positive_counts: vec![1.0, 0.0, 0.0, 0.0, 3.0, 2.0, 0.0, 1.0],
        negative_offset: 1,
        negative_counts: vec![3.0],
        ..HistogramRow::default()
    }
}

fn whole_batch() -> MetricBatch {
    let mut b = MetricBatchBuilder::new();
    let meta = SeriesMeta { metric_type: Some("counter"), help: Some("Requests."), unit: Some("s"), origin: None };
    let id = b.series(&Labels::from_pairs([("__name__", "req_total"), ("job", "a"), ("é\"", "\n")]), meta);
    b.sample(id, MS, Some(MS - 1000), 1.0);
    b.sample(id, MS + 1, None, f64::from_bits(STALE));
    b.exemplar(id, MS, 0.5, Some(&[7; 16]), Some(&[8; 8]), r#"{"user":"u1"}"#);
    let h = b.series(&Labels::from_pairs([("__name__", "req_seconds")]), SeriesMeta::default());
    b.histogram(h, MS, Some(MS - 5), &native());
    b.histogram(h, MS + 1, None, &HistogramRow { is_float: true, count: 12.5, reset_hint: 3, ..native() });
    let custom = HistogramRow {
        schema: -53,
        count: 3.0,
        sum: 4.0,
        positive_counts: vec![1.0, 2.0],
        positive_offset: 1,
        custom_bounds: Some(vec![0.5, 1.0]),
        ..HistogramRow::default()
    };
    b.histogram(h, MS + 2, None, &custom);
    b.finish()
}

#[test]
fn what_is_written_is_read_back_the_same() {
    let batch = whole_batch();
    for version in [Version::V1, Version::V2] {
        let body = if version == Version::V1 { encode_v1(&batch) } else { encode_v2(&batch) };
        let w = take(&body, version);
        assert_eq!((w.samples, w.histograms, w.exemplars, &w.error), (2, 3, 1, &None), "{version:?}");
        let back = metrics(&w)[0];
        let mut want = samples(&[&batch]);
        if version == Version::V1 {
            want.iter_mut().for_each(|s| s.2 = None);
        }
        assert_eq!(samples(&[back]), want);
        assert_eq!(back.exemplars, batch.exemplars);
        for column in batch.histograms.schema().fields() {
            let name = column.name().as_str();
            if name != "start_ms" || version == Version::V2 {
                assert_eq!(back.histograms.column_by_name(name), batch.histograms.column_by_name(name), "{name}");
            }
        }
        for name in ["type", "unit", "help"] {
            assert_eq!(text(&back.series, name, 0), text(&batch.series, name, 0), "{name} {version:?}");
        }
    }
}

fn histogram_request(fields: &[(u32, u64)], spans: &[(i32, u32)], deltas: &[i64]) -> Vec<u8> {
    let zigzag = |v: i64| (v << 1 ^ v >> 63) as u64;
    let mut h = Vec::new();
    fields.iter().for_each(|(n, v)| put_int(&mut h, *n, *v));
    for (offset, length) in spans {
        let mut span = Vec::new();
        put_int(&mut span, 1, zigzag((*offset).into()));
        put_int(&mut span, 2, (*length).into());
        put_bytes(&mut h, 11, &span);
    }
    let mut packed = Vec::new();
    deltas.iter().for_each(|d| put_varint(&mut packed, zigzag(*d)));
    put_bytes(&mut h, 12, &packed);
    put_int(&mut h, 15, MS as u64);
    let mut series = Vec::new();
    put_bytes(&mut series, 1, &label_v1(b"__name__", b"h"));
    put_bytes(&mut series, 4, &h);
    let mut out = Vec::new();
    put_bytes(&mut out, 1, &series);
    out
}

#[test]
fn histograms_that_do_not_add_up_are_refused() {
    type Case<'a> = (&'a [(u32, u64)], &'a [(i32, u32)], &'a [i64], &'a str);
    let cases: [Case<'_>; 8] = [
        (&[(1, 5)], &[(0, 2)], &[1, 1], "add up"),
        (&[(1, 3)], &[(0, 3)], &[1, 1], "spans of 3"),
        (&[(1, 3)], &[(0, 1), (-1, 1)], &[1, 1], "goes back"),
        (&[(1, 3)], &[(0, 2)], &[1, -2], "below zero"),
        (&[(1, 3)], &[(0, 1), (i32::MAX, 1)], &[1, 1], "narrower"),
        (&[(1, 3), (4, 200)], &[(0, 2)], &[1, 1], "schema 100"),
        (&[(1, 3), (4, 105)], &[(0, 2)], &[1, 1], "custom bounds"),
        (&[(1, u64::MAX)], &[(0, 3)], &[i64::MAX, 0, 0], "overflow"),
    ];
    for (fields, spans, deltas, what) in cases {
        let w = take(&histogram_request(fields, spans, deltas), Version::V1);
        assert_eq!((w.histograms, w.decoded.rejected.total()), (0, 1), "{what}");
        assert!(w.error.as_ref().unwrap().contains(what), "{what}: {:?}", w.error);
    }
}

#[test]
fn a_finer_schema_is_merged_down_to_the_finest_stored() {
    // Schema 10: four buckets become one; bucket i holds (base^(i-1), base^i].
    let w = take(&histogram_request(&[(1, 10), (4, 20)], &[(1, 4), (0, 1)], &[1, 1, 1, -1, -1]), Version::V1);
    // Counts 1 2 3 2 1 of buckets 1 to 5, and the count is 9: refused first.
    assert_eq!(w.histograms, 0);
    let w = take(&histogram_request(&[(1, 9), (4, 20)], &[(1, 4), (0, 1)], &[1, 1, 1, -1, -1]), Version::V1);
    let h = &metrics(&w)[0].histograms;
    let counts = h.column_by_name("positive_counts").unwrap().as_list::<i32>().value(0);
    assert_eq!(counts.as_primitive::<Float64Type>().values(), &[8.0, 1.0]);
    assert_eq!(h.column_by_name("schema").unwrap().as_primitive::<Int32Type>().value(0), 8);
    assert_eq!(h.column_by_name("positive_offset").unwrap().as_primitive::<Int32Type>().value(0), 1);
}

#[test]
fn gaps_between_buckets_cannot_cost_more_than_a_request_may() {
    let mut body = Vec::new();
    for _ in 0..200 {
        body.extend(histogram_request(&[(1, 2)], &[(0, 1), (65_000, 1)], &[1, 0]));
    }
    let w = take(&body, Version::V1);
    assert_eq!(w.histograms, histogram::GAPS_MAX as u64 / 65_000);
    assert_eq!(w.histograms + w.decoded.rejected.total(), 200);
}

#[test]
fn a_large_request_is_split_and_each_batch_knows_its_series() {
    let limits = Limits { batch_rows_max: 10, ..Limits::default() };
    let points: Vec<(i64, f64)> = (0..25).map(|i| (MS - i, i as f64)).collect();
    let body = request(&[(b"__name__", b"up")], &points);
    let w = decode(&body, Version::V1, &limits, NOW, &Families::default()).unwrap();
    assert_eq!(metrics(&w).len(), 3);
    assert_eq!(samples(&metrics(&w)).len(), 25);
    let limits = Limits { records_max: 7, ..Limits::default() };
    let w = decode(&body, Version::V1, &limits, NOW, &Families::default()).unwrap();
    assert_eq!((w.samples, w.decoded.rejected.total()), (7, 18));
}

proptest! {
    #[test]
    fn arbitrary_and_damaged_bytes_never_panic(
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let batch = whole_batch();
        for version in [Version::V1, Version::V2] {
            let _ = decode(&noise, version, &Limits::default(), NOW, &Families::default());
            let mut body = if version == Version::V1 { encode_v1(&batch) } else { encode_v2(&batch) };
            let i = at.index(body.len());
            body[i] = byte;
            if let Ok(w) = decode(&body, version, &Limits::default(), NOW, &Families::default()) {
                let rows: usize = w.decoded.batches.iter().map(Data::rows).sum();
                prop_assert_eq!(rows as u64, w.decoded.accepted);
            }
        }
    }

    #[test]
    fn samples_of_any_bits_and_labels_read_back(
        series in proptest::collection::btree_map(
            ("[a-z]{1,6}", proptest::collection::btree_map("[a-zé.]{1,4}", "[^\0]{1,8}", 0..4)),
            proptest::collection::btree_map(0i64..4_000_000_000_000, any::<u64>(), 1..5), 1..6),
    ) {
        let limits = Limits { future_max: None, ..Limits::default() };
        let mut b = MetricBatchBuilder::new();
        for ((name, labels), points) in &series {
            let mut all = Labels::from_pairs(labels.clone());
            all.set("__name__", name.clone());
            let id = b.series(&all, SeriesMeta::default());
            points.iter().for_each(|(ms, bits)| b.sample(id, *ms, None, f64::from_bits(*bits)));
        }
        let batch = b.finish();
        for (version, body) in [(Version::V1, encode_v1(&batch)), (Version::V2, encode_v2(&batch))] {
            let w = decode(&body, version, &limits, NOW, &Families::default()).unwrap();
            prop_assert_eq!(samples(&metrics(&w)), samples(&[&batch]));
        }
    }
}

#[test]
fn samples_of_known_series_come_without_labels_and_all_else_as_ever() {
    let known = KnownSeries::default();
    let take = |body: &[u8], version, limits: &Limits| {
        decode_known(body, version, limits, NOW, &Families::default(), Some(&known)).unwrap()
    };
    let limits = Limits::default();
    let one = |samples: &[(i64, f64)]| request(&[(b"__name__", b"up"), (b"job", b"a")], samples);
    let mut first = take(&one(&[(MS, 1.0)]), Version::V1, &limits);
    let id = ints(&metrics(&first)[0].samples, "series_id")[0];
    assert_eq!((first.samples, first.of_known), (1, 0));
    known.learn(std::mem::take(&mut first.declared));
    let body = one(&[(MS + 1, f64::from_bits(STALE)), (MS + 2, 2.0)]);
    let w = take(&body, Version::V1, &limits);
    let m = metrics(&w)[0];
    assert_eq!((w.samples, w.of_known, w.decoded.accepted, m.series.num_rows()), (2, 2, 2, 0));
    assert_eq!(
        (ints(&m.samples, "series_id"), ints(&m.samples, "ts_ms")),
        (vec![id; 2], vec![Some(MS + 1), Some(MS + 2)])
    );
    let values = m.samples.column_by_name("value").unwrap().as_primitive::<Float64Type>();
    assert_eq!((values.value(0).to_bits(), values.value(1)), (STALE, 2.0));
    // Other bytes for the same labels.
    let w = take(&request(&[(b"job", b"a"), (b"__name__", b"up")], &[(MS, 1.0)]), Version::V1, &limits);
    assert_eq!((w.of_known, ints(&metrics(&w)[0].samples, "series_id")), (0, vec![id]));
    // Another day, the far future, more points than may be.
    let day = 86_400_000;
    for (ms, samples) in [(MS - day, 1), (MS + 4000 * day, 0)] {
        let w = take(&one(&[(ms, 1.0)]), Version::V1, &limits);
        assert_eq!((w.of_known, w.samples, w.error.is_some()), (0, samples, samples == 0));
    }
    let w = take(&body, Version::V1, &Limits { records_max: 1, ..Limits::default() });
    assert_eq!((w.of_known, w.samples, w.decoded.rejected.total()), (0, 1, 1));
    // With an exemplar behind the sample the labels come along.
    let mut series = Vec::new();
    for (n, v) in [("__name__", "up"), ("job", "a")] {
        put_bytes(&mut series, 1, &label_v1(n.as_bytes(), v.as_bytes()));
    }
    put_bytes(&mut series, 2, &sample(MS + 1, 1.0));
    let mut exemplar = Vec::new();
    double(&mut exemplar, 2, 1.0);
    put_int(&mut exemplar, 3, MS as u64);
    put_bytes(&mut series, 3, &exemplar);
    let mut body = Vec::new();
    put_bytes(&mut body, 1, &series);
    let w = take(&body, Version::V1, &limits);
    assert_eq!((w.of_known, metrics(&w)[0].series.num_rows()), (0, 1));
}

#[test]
fn samples_of_known_series_of_2_0_come_without_labels_whatever_the_numbers_of_their_symbols() {
    let known = KnownSeries::default();
    let take = |symbols: &[&[u8]], series: &[Vec<u8>]| {
        let body = request_v2(symbols, series);
        let mut w =
            decode_known(&body, Version::V2, &Limits::default(), NOW, &Families::default(), Some(&known)).unwrap();
        known.learn(std::mem::take(&mut w.declared));
        w
    };
    let with = |refs: &[u8], ms: i64, metadata: &[u8], created: i64| {
        let mut series = series_v2(refs, &[(ms, 1.5)]);
        put_bytes(&mut series, 5, metadata);
        if created != 0 {
            put_int(&mut series, 6, created as u64);
        }
        series
    };
    // A counter with a help.
    let w = take(&[b"", b"__name__", b"up", b"help", b"other"], &[with(&[1, 2], MS, &[8, 1, 24, 3], 0)]);
    let id = ints(&metrics(&w)[0].samples, "series_id")[0];
    assert_eq!((w.samples, w.of_known), (1, 0));
    let w = take(&[b"", b"help", b"x", b"up", b"__name__"], &[with(&[4, 3], MS + 1, &[8, 1, 24, 1], MS - 5)]);
    let m = metrics(&w)[0];
    assert_eq!((w.samples, w.of_known, m.series.num_rows()), (1, 1, 0));
    assert_eq!(ints(&m.samples, "series_id"), vec![id]);
    assert_eq!(ints(&m.samples, "start_ms"), vec![Some(MS - 5)]);
    assert_eq!(ints(&m.samples, "ts_ms"), vec![Some(MS + 1)]);
    // Another help, another type, another label, texts that only together are the same.
    for (symbols, series) in [
        ([b"" as &[u8], b"__name__", b"up", b"help!"], with(&[1, 2], MS, &[8, 1, 24, 3], 0)),
        ([b"", b"__name__", b"up", b"help"], with(&[1, 2], MS, &[8, 2, 24, 3], 0)),
        ([b"", b"__name__", b"down", b"help"], with(&[1, 2], MS, &[8, 1, 24, 3], 0)),
        ([b"", b"__name__", b"u", b"phelp"], with(&[1, 2], MS, &[8, 1, 24, 3], 0)),
    ] {
        let w = take(&symbols, &[series]);
        assert_eq!((w.samples, w.of_known, metrics(&w)[0].series.num_rows()), (1, 0, 1));
    }
    // Metadata that cannot be read, and a symbol that is not there, are for the long way.
    let w = take(&[b"", b"__name__", b"up", b"help"], &[with(&[1, 2], MS, &[8, 1, 24, 3, 26, 200], 0)]);
    assert_eq!((w.samples, w.of_known), (1, 0));
    let w = take(&[b"", b"__name__", b"up", b"help"], &[with(&[1, 2, 9, 9], MS, &[8, 1, 24, 3], 0)]);
    assert_eq!((w.samples, w.of_known, w.decoded.rejected.total()), (0, 0, 1));
}

#[test]
fn labels_behind_the_samples_make_another_series() {
    let known = KnownSeries::default();
    let take = |body: &[u8], version| {
        let mut w = decode_known(body, version, &Limits::default(), NOW, &Families::default(), Some(&known)).unwrap();
        known.learn(std::mem::take(&mut w.declared));
        w
    };
    let ids = |w: &Write| ints(&metrics(w)[0].samples, "series_id");
    let id_of = |pairs: &[(&str, &str)]| Some(Labels::from_pairs(pairs.iter().copied()).id());
    let (up, zoned) = (id_of(&[("__name__", "up")]), id_of(&[("__name__", "up"), ("zone", "b")]));
    // 1.0: the bytes up to the sample are those of another series, the one that is likely to come.
    let in_front = |ms| {
        let mut series = Vec::new();
        put_bytes(&mut series, 1, &label_v1(b"__name__", b"up"));
        put_bytes(&mut series, 2, &sample(ms, 1.0));
        series
    };
    let behind = |ms| {
        let mut series = in_front(ms);
        put_bytes(&mut series, 1, &label_v1(b"zone", b"b"));
        series
    };
    let body = |series: &[Vec<u8>]| {
        let mut out = Vec::new();
        series.iter().for_each(|s| put_bytes(&mut out, 1, s));
        out
    };
    assert_eq!(ids(&take(&body(&[behind(MS)]), Version::V1)), [zoned]);
    assert_eq!(ids(&take(&body(&[in_front(MS)]), Version::V1)), [up]);
    for ms in 1..4 {
        let w = take(&body(&[in_front(MS + ms), behind(MS + ms), in_front(MS + ms + 10)]), Version::V1);
        assert_eq!((w.samples, w.of_known), (3, 2));
        assert_eq!(ids(&w), [up, zoned, up]);
        assert_eq!(metrics(&w)[0].series.num_rows(), 1, "the labels of the one that is not known come along");
    }
    // 2.0: all references count, wherever they are.
    let symbols: [&[u8]; 5] = [b"", b"__name__", b"up", b"zone", b"b"];
    let mut split = series_v2(&[1, 2], &[(MS + 20, 1.0)]);
    put_bytes(&mut split, 1, &[3, 4]);
    for _ in 0..2 {
        let series = [series_v2(&[1, 2], &[(MS + 20, 1.0)]), split.clone()];
        assert_eq!(ids(&take(&request_v2(&symbols, &series), Version::V2)), [up, zoned]);
    }
}
