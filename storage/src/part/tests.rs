//! Whole parts: written, read back, pruned, damaged.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryBuilder, BooleanArray, Float64Array, Float64Builder, Int32Array, Int64Array,
        ListBuilder, RecordBatch, StringArray, StringDictionaryBuilder, TimestampNanosecondArray,
    },
    compute::concat_batches,
    datatypes::{DataType, Field, Int32Type, Int64Type, TimestampNanosecondType},
};
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{PartReader, PartScan, WriteOptions, encode, write_part, writer::sorted};
use crate::{
    ScanRequest, ScanStats,
    model::{Table, TenantId, TimeRange, Timestamp, schema},
    scan::select::{self, RowSelector},
};

/// Rows of any content that the schema allows, many of them with equal keys.
pub(crate) fn random_batch(table: Table, rows: usize, rng: &mut StdRng) -> RecordBatch {
    let stored = schema::stored(table);
    let columns = stored.fields().iter().map(|f| random_column(f, rows, rng)).collect();
    let batch = RecordBatch::try_new(stored.clone(), columns).unwrap();
    if table != Table::Logs {
        return batch;
    }
    // The labels of a stream follow from its id.
    let mut labels = StringDictionaryBuilder::<Int32Type>::new();
    for id in batch.column_by_name("stream_id").unwrap().as_primitive::<Int64Type>().values() {
        labels.append_value(format!("{{\"s\":\"{id}\"}}"));
    }
    let mut columns = batch.columns().to_vec();
    columns[2] = Arc::new(labels.finish());
    RecordBatch::try_new(stored, columns).unwrap()
}

fn random_text(rng: &mut StdRng) -> String {
    match rng.random_range(0..8) {
        0 => String::new(),
        1 => "ü\u{1F600}\0\n".repeat(rng.random_range(1..4)),
        2 if rng.random_ratio(1, 20) => "long ".repeat(20_000),
        n => format!("value {}", rng.random_range(0..n * n)),
    }
}

fn random_double(rng: &mut StdRng) -> f64 {
    match rng.random_range(0..12) {
        0 => -0.0,
        1 => f64::INFINITY,
        2 => f64::from_bits(0x7ff0_0000_0000_0002),
        3 => f64::from_bits(0xfff8_0000_dead_beef),
        4 if rng.random_ratio(1, 8) => f64::from_bits(rng.random()),
        5 if rng.random_ratio(1, 8) => 9_007_199_254_740_993.0,
        _ => f64::from(rng.random_range(-1000..100_000)) / 100.0,
    }
}

fn random_int(name: &str, rng: &mut StdRng) -> i64 {
    match name {
        "stream_id" | "series_id" | "template_id" => [i64::MIN, -7, 0, 1, 2, 3, i64::MAX][rng.random_range(0..7)],
        _ => match rng.random_range(0..30) {
            0 => i64::MIN,
            1 => i64::MAX,
            2 => -1,
            _ => rng.random_range(0..500) * 1_000_001,
        },
    }
}

fn random_column(f: &Field, rows: usize, rng: &mut StdRng) -> ArrayRef {
    let nulls = if f.is_nullable() { [0, 3, 10][rng.random_range(0..3)] } else { 0 };
    let null = |rng: &mut StdRng| nulls > 0 && rng.random_range(0..10) < nulls;
    let name = f.name().as_str();
    match f.data_type() {
        DataType::Timestamp(..) => {
            let v: TimestampNanosecondArray =
                (0..rows).map(|_| (!null(rng)).then(|| random_int(name, rng))).collect();
            Arc::new(v.with_timezone("UTC"))
        }
        DataType::Int64 => {
            Arc::new((0..rows).map(|_| (!null(rng)).then(|| random_int(name, rng))).collect::<Int64Array>())
        }
        DataType::Int32 => {
            Arc::new((0..rows).map(|_| (!null(rng)).then(|| rng.random_range(-3..9))).collect::<Int32Array>())
        }
        DataType::Float64 => {
            Arc::new((0..rows).map(|_| (!null(rng)).then(|| random_double(rng))).collect::<Float64Array>())
        }
        DataType::Boolean => {
            Arc::new((0..rows).map(|_| (!null(rng)).then(|| rng.random())).collect::<BooleanArray>())
        }
        DataType::Utf8 => {
            Arc::new((0..rows).map(|_| (!null(rng)).then(|| random_text(rng))).collect::<StringArray>())
        }
        DataType::Dictionary(..) => {
            let mut out = StringDictionaryBuilder::<Int32Type>::new();
            for _ in 0..rows {
                if null(rng) {
                    out.append_null();
                } else {
                    out.append_value(random_text(rng));
                }
            }
            Arc::new(out.finish())
        }
        DataType::Binary => {
            let len = if name == "trace_id" { 16 } else { 8 };
            let mut out = BinaryBuilder::new();
            for _ in 0..rows {
                if null(rng) {
                    out.append_null();
                } else {
                    let mut id = vec![0; len];
                    id[rng.random_range(0..2)] = rng.random_range(0..5);
                    out.append_value(id);
                }
            }
            Arc::new(out.finish())
        }
        DataType::List(_) => {
            let mut out = ListBuilder::new(Float64Builder::new());
            for _ in 0..rows {
                for _ in 0..rng.random_range(0..4) {
                    out.values().append_option(rng.random_ratio(7, 8).then(|| random_double(rng)));
                }
                out.append(!null(rng));
            }
            Arc::new(out.finish())
        }
        other => panic!("no random {other}"),
    }
}

/// Same rows, whatever the dictionaries; doubles by their bits.
pub(crate) fn assert_same(a: &RecordBatch, b: &RecordBatch) {
    assert_eq!(a.schema(), b.schema());
    assert_eq!(a.num_rows(), b.num_rows());
    for (i, f) in a.schema().fields().iter().enumerate() {
        let (x, y) = (plain(a.column(i)), plain(b.column(i)));
        if let DataType::Float64 = f.data_type() {
            let bits = |a: &ArrayRef| -> Vec<Option<u64>> {
                a.as_primitive::<arrow::datatypes::Float64Type>().iter().map(|v| v.map(f64::to_bits)).collect()
            };
            assert_eq!(bits(&x), bits(&y), "column {}", f.name());
        } else if let DataType::List(_) = f.data_type() {
            assert_eq!(format!("{x:?}"), format!("{y:?}"), "column {}", f.name());
        } else {
            assert_eq!(&x, &y, "column {}", f.name());
        }
    }
}

fn plain(a: &ArrayRef) -> ArrayRef {
    match a.data_type() {
        DataType::Dictionary(_, v) => arrow::compute::cast(a, v).unwrap(),
        _ => a.clone(),
    }
}

pub(crate) fn small_options() -> WriteOptions {
    WriteOptions { row_group_rows: 300, page_rows: 64, ..WriteOptions::new(0, Timestamp(5)) }
}

pub(crate) fn part_of(table: Table, rows: &[RecordBatch]) -> Vec<u8> {
    let mut out = Vec::new();
    let meta = write_part(table, rows, &small_options(), &mut out).unwrap();
    assert_eq!(meta.bytes_file, out.len() as u64);
    assert_eq!(meta.rows, rows.iter().map(|b| b.num_rows() as u64).sum::<u64>());
    out
}

pub(crate) fn open(bytes: Vec<u8>) -> PartReader {
    PartReader::open(Arc::new(Bytes::from(bytes))).unwrap()
}

fn all_columns(table: Table) -> Vec<usize> {
    (0..schema::stored(table).fields().len()).collect()
}

pub(crate) fn read(reader: &PartReader, range: TimeRange, selector: &RowSelector) -> RecordBatch {
    let columns = all_columns(reader.table());
    let stats = ScanStats::default();
    let rows = reader.scan(&PartScan { columns: &columns, range, selector }, &stats).unwrap();
    let batches: Vec<_> = rows.map(Result::unwrap).collect();
    concat_batches(&schema::stored(reader.table()), &batches).unwrap()
}

fn selected(table: Table, batch: &RecordBatch, range: TimeRange, selector: &RowSelector) -> RecordBatch {
    let request = ScanRequest::new(TenantId::default(), table, range);
    select::select(&request, selector, batch, &ScanStats::default()).unwrap()
}

fn random_batches(table: Table, rng: &mut StdRng) -> Vec<RecordBatch> {
    let n = rng.random_range(0..5);
    (0..n)
        .map(|_| {
            let rows = [0, 1, 40, 700][rng.random_range(0..4)];
            random_batch(table, rows, rng)
        })
        .collect()
}

/// Without the key-value pairs that name our own indexes, as another tool would rewrite a file.
fn stripped(table: Table, rows: &RecordBatch) -> Vec<u8> {
    let mut out = Vec::new();
    let mut w = parquet::arrow::ArrowWriter::try_new(&mut out, encode::written_schema(table), None).unwrap();
    w.write(&encode::to_disk(table, rows).unwrap()).unwrap();
    w.close().unwrap();
    out
}

/// A file as a release wrote it that did not know a column.
pub(crate) fn without_column(table: Table, rows: &RecordBatch, column: &str) -> Vec<u8> {
    let disk = encode::to_disk(table, rows).unwrap();
    let kept: Vec<usize> = (0..disk.num_columns()).filter(|i| disk.schema().field(*i).name() != column).collect();
    let disk = disk.project(&kept).unwrap();
    let mut out = Vec::new();
    let mut w = parquet::arrow::ArrowWriter::try_new(&mut out, disk.schema(), None).unwrap();
    w.write(&disk).unwrap();
    w.close().unwrap();
    out
}

#[test]
fn what_is_written_is_read_back_in_order() {
    for seed in 0..12 {
        for table in Table::ALL {
            let rng = &mut StdRng::seed_from_u64(seed);
            let batches = random_batches(table, rng);
            let expected = sorted_or_empty(table, &batches);
            let reader = open(part_of(table, &batches));
            assert_eq!(reader.table(), table);
            assert_eq!(reader.rows(), expected.num_rows() as u64);
            assert_same(&read(&reader, TimeRange::ALL, &RowSelector::All), &expected);
        }
    }
}

#[test]
fn a_stream_that_does_not_template_comes_in_time_order() {
    let mut b = crate::model::LogBatchBuilder::new();
    let words: Vec<String> =
        (0..5000).map(|i| format!("{}{}", (b'g' + (i % 13) as u8) as char, "xyz".repeat(i % 7))).collect();
    let body = |stream: usize, i: usize| match stream {
        // Words in ever new order.
        0 => format!("{} {} {}", words[i % 4999], words[i * 7 % 4993], "q".repeat(i % 300)),
        _ => format!("request {i} took {} ms", i * 7),
    };
    for i in 0..3000 {
        for stream in 0..2 {
            let labels = format!("{{\"s\":\"{stream}\"}}");
            let row = crate::model::LogRow {
                ts: i as i64,
                stream_labels: &labels,
                body: &body(stream, i),
                ..Default::default()
            };
            b.push(&row);
        }
    }
    let rows = crate::head::rows::derive(Table::Logs, &b.finish()).unwrap().batch;
    let reader = open(part_of(Table::Logs, &[rows]));
    let mut templates: Vec<usize> = reader.streams().unwrap().iter().map(|s| s.templates.len()).collect();
    templates.sort_unstable();
    assert_eq!(templates, [1, 1]);
    let all = read(&reader, TimeRange::ALL, &RowSelector::All);
    let times = all.column_by_name("ts").unwrap().as_primitive::<TimestampNanosecondType>().values();
    let ids = all.column_by_name("template_id").unwrap().as_primitive::<Int64Type>().values();
    assert_eq!(ids.iter().filter(|t| **t == crate::index::template::UNTEMPLATED).count(), 3000);
    assert!(times[..3000].is_sorted() && times[3000..].is_sorted());
}

fn sorted_or_empty(table: Table, batches: &[RecordBatch]) -> RecordBatch {
    if batches.is_empty() { RecordBatch::new_empty(schema::stored(table)) } else { sorted(table, batches) }
}

#[test]
fn rows_of_equal_key_stay_in_commit_order() {
    let stored = schema::stored(Table::MetricSamples);
    let batch = |v: f64| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![1, 1])),
            Arc::new(Int64Array::from(vec![10, 5])),
            Arc::new(Int64Array::from(vec![None, None])),
            Arc::new(Float64Array::from(vec![v, v])),
        ];
        RecordBatch::try_new(stored.clone(), columns).unwrap()
    };
    let reader = open(part_of(Table::MetricSamples, &[batch(1.0), batch(2.0)]));
    let rows = read(&reader, TimeRange::ALL, &RowSelector::All);
    let values = rows.column(3).as_primitive::<arrow::datatypes::Float64Type>();
    assert_eq!(values.values(), &[1.0, 2.0, 1.0, 2.0]);
}

fn random_range(rng: &mut StdRng) -> TimeRange {
    match rng.random_range(0..4) {
        0 => TimeRange::ALL,
        1 => TimeRange::new(Timestamp::MIN, Timestamp(rng.random_range(0..i64::MAX))).unwrap(),
        _ => {
            let unit = if rng.random() { 1_000_001 } else { 1_000_000_000_000 };
            let start = rng.random_range(-2..400) * unit;
            TimeRange::new(Timestamp(start), Timestamp(start + rng.random_range(1..200) * unit)).unwrap()
        }
    }
}

fn random_selector(table: Table, rng: &mut StdRng) -> RowSelector {
    match (table, rng.random_range(0..3)) {
        (_, 0) => RowSelector::All,
        (Table::Spans, _) | (Table::Logs | Table::MetricExemplars, 1) => {
            let mut id = [0; 16];
            id[rng.random_range(0..2)] = rng.random_range(0..7);
            RowSelector::Trace(id)
        }
        _ => RowSelector::Ids(
            (0..rng.random_range(0..4)).map(|_| random_int("series_id", rng)).collect::<HashSet<_>>(),
        ),
    }
}

#[test]
fn a_pruned_scan_keeps_every_row_that_matches_with_and_without_indexes() {
    for seed in 0..40 {
        for table in Table::ALL {
            let rng = &mut StdRng::seed_from_u64(1000 + seed);
            let batch = random_batch(table, 900, rng);
            let expected = sorted(table, std::slice::from_ref(&batch));
            let bytes = part_of(table, std::slice::from_ref(&batch));
            let readers = [open(bytes.clone()), open(without_runs(bytes)), open(stripped(table, &expected))];
            for _ in 0..3 {
                let (range, selector) = (random_range(rng), random_selector(table, rng));
                for reader in &readers {
                    let rows = read(reader, range, &selector);
                    assert_same(
                        &selected(table, &rows, range, &selector),
                        &selected(table, &expected, range, &selector),
                    );
                }
            }
        }
    }
}

/// The checksum of the run index made wrong, and the footer's made right again.
fn without_runs(mut bytes: Vec<u8>) -> Vec<u8> {
    let start = super::seal::tail_start(&bytes).unwrap() as usize;
    let key = memchr::memmem::rfind(&bytes, b"sightline.runs").unwrap() + b"sightline.runs".len();
    // Past the length of the value: its last digit is the last of the checksum.
    let digits = bytes[key + 2..].iter().take_while(|b| b.is_ascii_digit() || **b == b',').count();
    let last = &mut bytes[key + 1 + digits];
    *last = if *last == b'0' { b'1' } else { b'0' };
    let mark = memchr::memmem::rfind(&bytes, b"sightline-tail:").unwrap() + b"sightline-tail:".len() + 17;
    bytes[mark..mark + 8].copy_from_slice(b"00000000");
    let crc = crc32c::crc32c(&bytes[start..]);
    bytes[mark..mark + 8].copy_from_slice(format!("{crc:08x}").as_bytes());
    bytes
}

#[test]
fn runs_are_the_same_with_and_without_the_run_index() {
    for seed in 0..5 {
        let rng = &mut StdRng::seed_from_u64(seed);
        for table in Table::ALL {
            let bytes = part_of(table, &[random_batch(table, 800, rng)]);
            let (with, without) = (open(bytes.clone()), open(without_runs(bytes)));
            assert!(with.run_index().unwrap().is_some());
            assert!(without.run_index().unwrap().is_none());
            match table {
                Table::Logs => assert_eq!(with.streams().unwrap(), without.streams().unwrap()),
                Table::Spans => assert_eq!(with.traces().unwrap(), without.traces().unwrap()),
                _ => assert_eq!(with.series().unwrap(), without.series().unwrap()),
            }
        }
    }
}

#[test]
fn a_scan_of_one_stream_reads_little_of_a_large_part() {
    let rng = &mut StdRng::seed_from_u64(3);
    let reader = open(part_of(Table::Logs, &[random_batch(Table::Logs, 3000, rng)]));
    let stats = ScanStats::default();
    let selector = RowSelector::Ids([-7].into());
    let scan = PartScan { columns: &[0], range: TimeRange::ALL, selector: &selector };
    let rows: usize = reader.scan(&scan, &stats).unwrap().map(|b| b.unwrap().num_rows()).sum();
    let run = reader.streams().unwrap().iter().find(|s| s.stream_id == -7).unwrap().rows;
    assert_eq!(rows as u64, run);
    assert!(stats.row_groups_pruned.into_inner() > 5);
}

#[test]
fn a_flipped_bit_gives_an_error_or_the_same_rows() {
    for table in Table::ALL {
        let rng = &mut StdRng::seed_from_u64(9);
        let batch = random_batch(table, 500, rng);
        let bytes = part_of(table, std::slice::from_ref(&batch));
        let expected = sorted(table, &[batch]);
        let mut errors = 0;
        for _ in 0..150 {
            let mut damaged = bytes.clone();
            let at = rng.random_range(0..damaged.len());
            damaged[at] ^= 1 << rng.random_range(0..8);
            let Ok(reader) = PartReader::open(Arc::new(Bytes::from(damaged))) else {
                errors += 1;
                continue;
            };
            let columns = all_columns(table);
            let stats = ScanStats::default();
            let scan = PartScan { columns: &columns, range: TimeRange::ALL, selector: &RowSelector::All };
            let rows: Result<Vec<_>, _> = reader.scan(&scan, &stats).unwrap().collect();
            match rows {
                Ok(rows) => assert_same(&concat_batches(&schema::stored(table), &rows).unwrap(), &expected),
                Err(_) => errors += 1,
            }
        }
        assert!(errors > 75, "{table:?}: {errors} of 150 found");
    }
}

#[test]
fn a_cut_file_gives_an_error() {
    let rng = &mut StdRng::seed_from_u64(4);
    let bytes = part_of(Table::Logs, &[random_batch(Table::Logs, 100, rng)]);
    for len in [0, 1, 7, 8, 12, 100, bytes.len() / 2, bytes.len() - 1] {
        assert!(PartReader::open(Arc::new(Bytes::from(bytes[..len].to_vec()))).is_err());
    }
}

#[test]
fn the_bounds_in_the_meta_are_those_of_the_rows() {
    let rng = &mut StdRng::seed_from_u64(4);
    let batch = random_batch(Table::Logs, 100, rng);
    let mut out = Vec::new();
    let meta = write_part(Table::Logs, std::slice::from_ref(&batch), &small_options(), &mut out).unwrap();
    let times = batch.column(0).as_primitive::<TimestampNanosecondType>().values();
    assert_eq!((Some(&meta.min_ts), Some(&meta.max_ts)), (times.iter().min(), times.iter().max()));
    let json = serde_json::to_string(&meta).unwrap();
    assert_eq!(serde_json::from_str::<super::PartMeta>(&json).unwrap(), meta);
}
