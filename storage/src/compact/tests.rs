//! Merging parts against sorting all their rows at once.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{AsArray, RecordBatch, UInt32Array},
    compute::{concat_batches, take_record_batch},
    datatypes::{Int32Type, Int64Type, TimestampNanosecondType},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::merge::{MergeOptions, Merged, merge};
use crate::{
    ScanRequest, ScanStats,
    model::{SpanBatchBuilder, SpanRow, Table, TenantId, TimeRange, Timestamp, schema},
    part::{
        PartReader, sorted_rows,
        tests::{assert_same, open, part_of, random_batch, read, small_options, without_column},
        write_part,
    },
    scan::select::{self, RowSelector},
};

fn merged(table: Table, inputs: &[PartReader], range: TimeRange) -> (RecordBatch, Merged) {
    let mut out = Vec::new();
    let options = MergeOptions { range, ..MergeOptions::new(small_options()) };
    let merged = merge(inputs, table, &options, &mut out).unwrap();
    assert_eq!(merged.rows_in, merged.part.rows + merged.rows_deleted + merged.rows_replaced);
    (read(&open(out), TimeRange::ALL, &RowSelector::All), merged)
}

fn random_parts(table: Table, rng: &mut StdRng) -> (Vec<RecordBatch>, Vec<PartReader>) {
    let batches: Vec<_> = (0..rng.random_range(1..5))
        .map(|_| {
            let rows = [0, 1, 300, 1000][rng.random_range(0..4)];
            random_batch(table, rows, rng)
        })
        .collect();
    let parts = batches.iter().map(|b| open(part_of(table, std::slice::from_ref(b)))).collect();
    (batches, parts)
}

fn ints<'a>(batch: &'a RecordBatch, name: &str) -> &'a [i64] {
    batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().values()
}

/// Rows of `all` (sorted, equal keys in commit order) that are the last of their key.
fn last_of_each<K: PartialEq>(all: &RecordBatch, key: impl Fn(usize) -> K) -> RecordBatch {
    let n = all.num_rows();
    let rows: UInt32Array = (0..n).filter(|i| i + 1 == n || key(*i) != key(i + 1)).map(|i| i as u32).collect();
    take_record_batch(all, &rows).unwrap()
}

#[test]
fn a_merge_of_splits_is_the_sort_of_all() {
    for seed in 0..12 {
        for table in [Table::Logs, Table::MetricExemplars, Table::MetricSamples, Table::MetricHistograms] {
            let rng = &mut StdRng::seed_from_u64(seed);
            let (batches, parts) = random_parts(table, rng);
            let all = sorted_rows(table, &batches);
            let expected = match table {
                Table::MetricSamples | Table::MetricHistograms => {
                    last_of_each(&all, |i| (ints(&all, "series_id")[i], ints(&all, "ts_ms")[i]))
                }
                _ => all.clone(),
            };
            let (rows, merged) = merged(table, &parts, TimeRange::ALL);
            assert_same(&rows, &expected);
            assert_eq!(merged.rows_replaced, (all.num_rows() - expected.num_rows()) as u64);
        }
    }
}

#[test]
fn a_merge_keeps_only_rows_in_the_range() {
    let rng = &mut StdRng::seed_from_u64(5);
    let range = TimeRange::new(Timestamp(0), Timestamp(300_000_000)).unwrap();
    let (batches, parts) = random_parts(Table::Logs, rng);
    let all = sorted_rows(Table::Logs, &batches);
    let request = ScanRequest::new(TenantId::default(), Table::Logs, range);
    let expected = select::select(&request, &RowSelector::All, &all, &ScanStats::default()).unwrap();
    let (rows, merged) = merged(Table::Logs, &parts, range);
    assert_same(&rows, &expected);
    assert_eq!(merged.rows_deleted, (all.num_rows() - expected.num_rows()) as u64);
}

#[test]
fn a_series_keeps_one_row_with_its_whole_life() {
    for seed in 0..6 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let (batches, parts) = random_parts(Table::MetricSeries, rng);
        let all = sorted_rows(Table::MetricSeries, &batches);
        let mut lives: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
        for i in 0..all.num_rows() {
            let (first, last) = (ints(&all, "first_ms")[i], ints(&all, "last_ms")[i]);
            let life = lives.entry(ints(&all, "series_id")[i]).or_insert((first, last));
            *life = (life.0.min(first), life.1.max(last));
        }
        let (rows, _) = merged(Table::MetricSeries, &parts, TimeRange::ALL);
        let got = (0..rows.num_rows())
            .map(|i| (ints(&rows, "series_id")[i], (ints(&rows, "first_ms")[i], ints(&rows, "last_ms")[i])))
            .collect::<Vec<_>>();
        assert_eq!(got, lives.into_iter().collect::<Vec<_>>());
        let latest = last_of_each(&all, |i| ints(&all, "series_id")[i]);
        let texts = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_same(&rows.project(&texts).unwrap(), &latest.project(&texts).unwrap());
    }
}

/// (trace, span, parent, start) of spans.
fn span_part(spans: &[(u8, u8, u8, i64)]) -> PartReader {
    let mut builder = SpanBatchBuilder::new();
    for (trace, id, parent, ts) in spans {
        let parent_id = [*parent; 8];
        builder.push(&SpanRow {
            trace_id: &[*trace; 16],
            span_id: &[*id; 8],
            parent_span_id: (*parent > 0).then_some(&parent_id[..]),
            ts: *ts,
            name: "s",
            ..SpanRow::default()
        });
    }
    let input = builder.finish();
    let stored = schema::stored(Table::Spans);
    let mut columns = input.columns().to_vec();
    for f in &stored.fields()[columns.len()..] {
        columns.push(arrow::array::new_null_array(f.data_type(), input.num_rows()));
    }
    open(part_of(Table::Spans, &[RecordBatch::try_new(stored, columns).unwrap()]))
}

/// trace, span -> left, right, parent, children
fn numbers(rows: &RecordBatch) -> Vec<(u8, u8, [i32; 4])> {
    let id = |name: &str, i: usize| rows.column_by_name(name).unwrap().as_binary::<i32>().value(i)[0];
    let n = |name: &str, i: usize| rows.column_by_name(name).unwrap().as_primitive::<Int32Type>().value(i);
    (0..rows.num_rows())
        .map(|i| {
            let all = ["nested_left", "nested_right", "nested_parent", "child_count"].map(|c| n(c, i));
            (id("trace_id", i), id("span_id", i), all)
        })
        .collect()
}

#[test]
fn a_trace_that_comes_together_is_numbered() {
    let parts = [
        span_part(&[(1, 2, 1, 20), (1, 4, 2, 30), (2, 9, 8, 5)]),
        span_part(&[(1, 1, 0, 10), (1, 3, 1, 15), (3, 1, 2, 1), (3, 2, 1, 2), (4, 1, 1, 0)]),
    ];
    let (rows, _) = merged(Table::Spans, &parts, TimeRange::ALL);
    assert_eq!(
        numbers(&rows),
        [
            (1, 1, [1, 8, -1, 2]),
            (1, 3, [2, 3, 1, 0]),
            (1, 2, [4, 7, 1, 1]),
            (1, 4, [5, 6, 4, 0]),
            (2, 9, [0, 0, 0, 0]),
            (3, 1, [0, 0, 0, 1]),
            (3, 2, [0, 0, 0, 1]),
            (4, 1, [0, 0, 0, 1]),
        ]
    );
}

#[test]
fn of_spans_with_equal_id_the_later_commit_stays() {
    let parts = [span_part(&[(1, 1, 0, 10), (1, 2, 1, 11)]), span_part(&[(1, 1, 0, 7)])];
    let (rows, merged) = merged(Table::Spans, &parts, TimeRange::ALL);
    assert_eq!(merged.rows_replaced, 1);
    assert_eq!(rows.column_by_name("ts").unwrap().as_primitive::<TimestampNanosecondType>().values(), &[7, 11]);
}

#[test]
fn every_span_id_of_every_trace_survives_a_merge_once() {
    for seed in 0..8 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let (batches, parts) = random_parts(Table::Spans, rng);
        let all = concat_batches(&schema::stored(Table::Spans), &batches).unwrap();
        let key = |b: &RecordBatch, i: usize| {
            let id = |name: &str| b.column_by_name(name).unwrap().as_binary::<i32>().value(i).to_vec();
            (id("trace_id"), id("span_id"))
        };
        let mut expected: Vec<_> = (0..all.num_rows()).map(|i| key(&all, i)).collect();
        expected.sort();
        expected.dedup();
        let (rows, _) = merged(Table::Spans, &parts, TimeRange::ALL);
        let mut got: Vec<_> = (0..rows.num_rows()).map(|i| key(&rows, i)).collect();
        assert!(got.is_sorted_by_key(|k| k.0.clone()));
        got.sort();
        assert_eq!(got, expected);
    }
}

#[test]
fn parts_of_a_release_without_seq_are_read_and_merged() {
    let rng = &mut StdRng::seed_from_u64(5);
    let old = random_batch(Table::Logs, 400, rng);
    let head = RecordBatch::try_new(
        schema::head(Table::Logs),
        random_batch(Table::Logs, 300, rng).columns()[..old.num_columns() - 1].to_vec(),
    )
    .unwrap();
    let old = sorted_rows(Table::Logs, &[old]);
    let parts = [open(without_column(Table::Logs, &old, "seq")), open(part_of(Table::Logs, &[head]))];
    let (all, _) = merged(Table::Logs, &parts, TimeRange::ALL);
    assert_eq!(all.num_rows(), 700);
    assert_eq!(all.column_by_name("seq").unwrap().null_count(), 400, "old rows have none, new ones all");
}

#[test]
fn a_damaged_input_fails_the_merge() {
    let rng = &mut StdRng::seed_from_u64(1);
    let mut bytes = part_of(Table::Logs, &[random_batch(Table::Logs, 500, rng)]);
    bytes[200] ^= 1;
    let input = PartReader::open(Arc::new(bytes::Bytes::from(bytes))).unwrap();
    assert!(merge(&[input], Table::Logs, &MergeOptions::new(small_options()), Vec::new()).is_err());
}

#[test]
fn an_exemplar_that_was_sent_twice_is_kept_once() {
    use crate::model::{Labels, MetricBatchBuilder, batch::SeriesMeta};
    let request = || {
        let mut rows = MetricBatchBuilder::new();
        for name in ["a", "b"] {
            let id = rows.series(&Labels::from_pairs([("__name__", name)]), SeriesMeta::default());
            for ts in 0..5 {
                rows.exemplar(id, ts, 1.5, Some(&[7; 16]), None, "{}");
            }
            rows.exemplar(id, 4, 1.5, Some(&[8; 16]), None, "{}");
        }
        rows.finish().exemplars
    };
    // Within one flush, and over two.
    let mut bytes = Vec::new();
    write_part(Table::MetricExemplars, &[request(), request()], &small_options(), &mut bytes).unwrap();
    let first = open(bytes);
    assert_eq!(first.rows(), 12);
    let (rows, merged) =
        merged(Table::MetricExemplars, &[first, open(part_of(Table::MetricExemplars, &[request()]))], TimeRange::ALL);
    assert_eq!((rows.num_rows(), merged.rows_replaced), (12, 12));
}
