use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray},
    compute::cast,
    datatypes::{DataType, Schema},
};
use bytes::Bytes;
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder, arrow_writer::ArrowWriterOptions},
    basic::{Compression, ZstdLevel},
};

use super::*;

const ROWS: usize = 500;

/// A row group of `text` and `number` in batches of 50 rows, as a reader that knows nothing of us sees it.
fn written(text: &[Option<String>], number: &[Option<i64>], page_rows: usize) -> (StringArray, Int64Array) {
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let schema = Arc::new(Schema::new(vec![
        Field::new("text", dictionary.clone(), true),
        Field::new("number", DataType::Int64, true),
    ]));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap()))
        .set_dictionary_page_size_limit(2000)
        .build();
    let options = ArrowWriterOptions::new().with_properties(properties.clone());
    let (mut file, factory) = ArrowWriter::try_new_with_options(Vec::new(), schema.clone(), options)
        .unwrap()
        .into_serialized_writer()
        .unwrap();
    let plan = ChunkPlan::new(schema.clone(), file.schema_descr(), &properties, 1, -3, page_rows);
    let mut group = RowGroup::new(&plan, &factory, 0).unwrap();
    for (text, number) in text.chunks(50).zip(number.chunks(50)) {
        let text = cast(&StringArray::from(text.to_vec()), &dictionary).unwrap();
        let number: ArrayRef = Arc::new(Int64Array::from(number.to_vec()));
        group.write(&plan, &RecordBatch::try_new(schema.clone(), vec![text, number]).unwrap()).unwrap();
    }
    assert_eq!(group.rows(), ROWS);
    group.finish(&plan, &mut file).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file.into_inner().unwrap())).unwrap();
    let read: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let all = arrow::compute::concat_batches(&read[0].schema(), &read).unwrap();
    (cast(all.column(0), &DataType::Utf8).unwrap().as_string::<i32>().clone(), all.column(1).as_primitive().clone())
}

#[test]
fn columns_read_back_however_they_were_written() {
    let texts: [fn(usize) -> Option<String>; 6] = [
        |_| None,
        |_| Some("one".into()),
        |i| Some(format!("run {}", i / 70)),
        |i| (i % 3 > 0).then(|| format!("few {}", i % 11)),
        // Nulls first, then runs, then more texts than the dictionary may hold.
        |i| (i > 120).then(|| if i < 300 { "same".into() } else { format!("text number {i}") }),
        |i| Some(format!("all different {i}")),
    ];
    let numbers: [fn(usize) -> Option<i64>; 5] = [
        |_| None,
        |i| Some(i as i64 / 100 - 2),
        |i| (i >= 499).then_some(i64::MIN),
        |i| (i % 2 > 0).then_some(i as i64 % 5),
        |i| Some((i as i64).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64)),
    ];
    for page_rows in [7, 64, 1000] {
        for (text, number) in texts.iter().flat_map(|t| numbers.iter().map(move |n| (t, n))) {
            let text: Vec<_> = (0..ROWS).map(text).collect();
            let number: Vec<_> = (0..ROWS).map(number).collect();
            let (got_text, got_number) = written(&text, &number, page_rows);
            assert_eq!(got_text, StringArray::from(text));
            assert_eq!(got_number, Int64Array::from(number));
        }
    }
}

/// Rows of `column` as a reader that knows nothing of us sees them.
fn texts_written(column: &StringArray, nullable: bool, page_rows: usize, page_bytes: usize) -> StringArray {
    let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, nullable)]));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap()))
        .set_dictionary_enabled(false)
        .set_encoding(Encoding::DELTA_LENGTH_BYTE_ARRAY)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_data_page_size_limit(page_bytes)
        .build();
    let options = ArrowWriterOptions::new().with_properties(properties.clone());
    let (mut file, factory) = ArrowWriter::try_new_with_options(Vec::new(), schema.clone(), options)
        .unwrap()
        .into_serialized_writer()
        .unwrap();
    let plan = ChunkPlan::new(schema.clone(), file.schema_descr(), &properties, 1, -3, page_rows);
    assert!(plan.columns[0].texts.is_some());
    let mut group = RowGroup::new(&plan, &factory, 0).unwrap();
    let mut at = 0;
    for n in [1, 30, 0, 200].into_iter().cycle() {
        let n = usize::min(n, column.len() - at);
        let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(column.slice(at, n)) as ArrayRef]).unwrap();
        group.write(&plan, &batch).unwrap();
        at += n;
        if at == column.len() {
            break;
        }
    }
    group.finish(&plan, &mut file).unwrap();
    let bytes = Bytes::from(file.into_inner().unwrap());
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    let chunk = reader.metadata().row_group(0).column(0).clone();
    assert_eq!(chunk.num_values() as usize, column.len());
    let read: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let all = arrow::compute::concat_batches(&read[0].schema(), &read).unwrap();
    all.column(0).as_string::<i32>().clone()
}

#[test]
fn long_texts_read_back_whatever_their_lengths_and_pages() {
    let cases: [fn(usize) -> Option<String>; 6] = [
        |i| Some(format!("request {i} took {} ms", i * 7919 % 1000)),
        |i| Some("é".repeat(i * 31 % 97)),
        |_| Some(String::new()),
        // Some longer than a page, one much longer.
        |i| Some("x".repeat(if i % 50 == 3 { 700 + i } else { i % 5 })),
        |i| Some("y".repeat(if i == 77 { 100_000 } else { 3 })),
        |i| (i % 7 > 2 && !(100..300).contains(&i)).then(|| format!("attribute {i}")),
    ];
    for case in cases {
        let column: StringArray = (0..ROWS).map(case).collect();
        for (page_rows, page_bytes) in [(1, 10), (64, 500), (7, 100_000), (4096, 1 << 18)] {
            assert_eq!(texts_written(&column, true, page_rows, page_bytes), column);
            if column.null_count() == 0 {
                assert_eq!(texts_written(&column, false, page_rows, page_bytes), column);
            }
        }
    }
}
