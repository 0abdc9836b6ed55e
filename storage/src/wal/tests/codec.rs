use proptest::prelude::*;

use super::*;
use crate::wal::{
    DecodeError, EncodeError, decode_batch,
    payload::{FLAT_ROWS_MAX, encode_as_messages},
    record::{FRAME_BYTES, Frame, Kind, encode_body, parse_body},
};

fn section() -> impl Strategy<Value = Section> {
    prop_oneof![
        (1usize..80, any::<i32>(), "[a-zé ]{0,40}").prop_map(|(n, t, s)| batch(&logs(n, i64::from(t), &s))),
        ("[ -~]{0,60}", any::<u64>()).prop_map(|(key, position)| Section::Position { key, position }),
        any::<[u8; 16]>().prop_map(Section::BatchId),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_body_reads_back_as_it_was_written(sections in proptest::collection::vec(section(), 0..6)) {
        let tenant = TenantId::parse("team-1").unwrap();
        let body = encode_body(&tenant, sections.clone()).unwrap();
        let parsed = parse_body(&body.bytes).unwrap();
        prop_assert_eq!(parsed.tenant, "team-1");
        prop_assert_eq!(&parsed.batches, &body.batches);
        let (mut batches, mut positions, mut ids) = (0, 0, 0);
        for s in &sections {
            match s {
                Section::Batch(b) => {
                    let (at, meta) = parsed.batches[batches];
                    batches += 1;
                    prop_assert_eq!(meta, b.meta);
                    let payload = &body.bytes[at as usize..at as usize + meta.payload_len as usize];
                    prop_assert_eq!(payload, &b.payload[..]);
                }
                Section::Position { key, position } => {
                    prop_assert_eq!(parsed.positions[positions], (key.as_str(), *position));
                    positions += 1;
                }
                Section::BatchId(id) => {
                    prop_assert_eq!(&parsed.batch_ids[ids], id);
                    ids += 1;
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_body_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse_body(&bytes);
        prop_assert_eq!(Frame::decode(&bytes, 7), None);
    }

    #[test]
    fn a_damaged_body_never_panics(
        sections in proptest::collection::vec(section(), 1..4),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encode_body(&TenantId::default_tenant(), sections.clone()).unwrap().bytes;
        let heads = 64.min(bytes.len());
        flips.iter().for_each(|(i, b)| bytes[i.index(heads)] ^= b);
        let _ = parse_body(&bytes);
        let upto = cut.index(bytes.len());
        prop_assert!(parse_body(&bytes[..upto]).is_none() || upto > 5);
    }

    #[test]
    fn a_damaged_frame_is_not_accepted(
        seq in any::<u64>(), durable in any::<u64>(), len in 0u32..1_000_000, at in 0..FRAME_BYTES, flip in 1u8..
    ) {
        let frame = Frame { len, seq, durable, body_crc: 5, kind: Kind::Append };
        let mut bytes = frame.encode(42);
        prop_assert_eq!(Frame::decode(&bytes, 42), Some(frame));
        prop_assert_eq!(Frame::decode(&bytes, 43), None);
        bytes[at] ^= flip;
        prop_assert_eq!(Frame::decode(&bytes, 42), None);
    }

    #[test]
    fn a_damaged_payload_decodes_to_an_error_or_a_batch_but_never_panics(
        rows in prop_oneof![1..FLAT_ROWS_MAX, FLAT_ROWS_MAX + 1..200],
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let encoded = encode_batch(Table::Logs, &logs(rows, 0, "body")).unwrap();
        let mut payload = encoded.payload.clone();
        flips.iter().for_each(|(i, b)| payload[i.index(encoded.payload.len())] ^= b);
        if let Some(cut) = cut {
            payload.truncate(cut.index(encoded.payload.len()));
        }
        if let Ok(b) = decode_batch(&encoded.meta, payload) {
            prop_assert_eq!(b.num_rows(), rows);
        }
    }
}

#[test]
fn a_batch_of_every_table_and_size_reads_back() {
    for rows in [1, 2, FLAT_ROWS_MAX, FLAT_ROWS_MAX + 1, 5000] {
        let b = logs(rows, 5, "hello");
        let e = encode_batch(Table::Logs, &b).unwrap();
        assert_eq!(decode_batch(&e.meta, e.payload).unwrap(), b);
        // A slice of a larger batch is as good.
        let part = logs(rows + 20, 5, "hello").slice(7, rows);
        let e = encode_batch(Table::Logs, &part).unwrap();
        let got = decode_batch(&e.meta, e.payload).unwrap();
        assert_eq!(got.columns()[10..], part.columns()[10..]);
    }
    for table in Table::ALL {
        let schemas = [crate::model::schema::input(table), crate::model::schema::head(table)];
        for (schema, rows) in schemas.iter().flat_map(|s| [(s, 3), (s, 100)]) {
            let columns = schema.fields().iter().map(|f| filled(f, rows)).collect();
            let b = RecordBatch::try_new(schema.clone(), columns).unwrap();
            let e = encode_batch(table, &b).unwrap();
            assert_eq!(decode_batch(&e.meta, e.payload).unwrap(), b, "{table:?} {rows}");
        }
    }
}

/// A column of zeros, empty texts, or where it may be, nulls.
fn filled(f: &arrow::datatypes::Field, rows: usize) -> arrow::array::ArrayRef {
    use arrow::{
        array::{Int64Array, StringArray, new_null_array},
        compute::cast,
        datatypes::DataType,
    };
    if f.is_nullable() {
        return new_null_array(f.data_type(), rows);
    }
    match f.data_type() {
        DataType::Binary | DataType::Utf8 | DataType::Dictionary(..) => {
            cast(&StringArray::from(vec!["x"; rows]), f.data_type()).unwrap()
        }
        DataType::List(item) => {
            let one = arrow::array::Float64Array::from(vec![1.5; rows]);
            let offsets = arrow::buffer::OffsetBuffer::from_lengths(vec![1; rows]);
            Arc::new(arrow::array::ListArray::new(item.clone(), offsets, Arc::new(one), None))
        }
        other => cast(&Int64Array::from(vec![0; rows]), other).unwrap(),
    }
}

#[test]
fn a_payload_of_the_first_release_reads_back() {
    for rows in [1, 200] {
        let b = logs(rows, 5, "hello");
        let e = encode_as_messages(Table::Logs, &b).unwrap();
        assert_eq!(decode_batch(&e.meta, e.payload).unwrap(), b);
    }
}

#[test]
fn numbers_of_every_kind_read_back() {
    use arrow::array::{Float64Array, Int64Array};
    let near = (0..3000).map(|i| 1_700_000_000_000 + i * 15_000 + i % 7).collect::<Vec<i64>>();
    let wild = near.iter().map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64)).collect::<Vec<_>>();
    let few = wild.iter().enumerate().map(|(i, _)| wild[i % 300]).collect::<Vec<_>>();
    let ends = (0..3000).map(|i| [i64::MIN, i64::MAX, 0, -1][i % 4]).collect::<Vec<_>>();
    let schema = crate::model::schema::input(Table::MetricSamples);
    for ids in [&near, &wild, &few, &ends] {
        for times in [&near, &wild, &few, &ends] {
            let doubles = wild.iter().map(|n| f64::from_bits(*n as u64)).collect::<Vec<_>>();
            let start = times.iter().map(|t| (t % 3 != 0).then_some(*t)).collect::<Int64Array>();
            let columns: Vec<arrow::array::ArrayRef> = vec![
                Arc::new(Int64Array::from(ids.clone())),
                Arc::new(Int64Array::from(times.clone())),
                Arc::new(start),
                Arc::new(Float64Array::from(doubles.clone())),
            ];
            let b = RecordBatch::try_new(schema.clone(), columns).unwrap();
            let e = encode_batch(Table::MetricSamples, &b).unwrap();
            let got = decode_batch(&e.meta, e.payload).unwrap();
            assert_eq!(got.columns()[..3], b.columns()[..3]);
            let bits = |b: &RecordBatch| {
                let values = b.column(3).as_any().downcast_ref::<Float64Array>().unwrap().values().to_vec();
                values.into_iter().map(f64::to_bits).collect::<Vec<_>>()
            };
            assert_eq!(bits(&got), bits(&b));
        }
    }
}

#[test]
fn a_small_log_batch_costs_little_more_than_its_text() {
    for (rows, limit) in [(1, 700), (10, 1100), (100, 6000)] {
        let payload =
            encode_batch(Table::Logs, &logs(rows, 1_700_000_000_000_000_000, "user logged in")).unwrap().payload;
        eprintln!("{rows} rows: {} bytes", payload.len());
        assert!(payload.len() < limit, "{rows} rows take {} bytes", payload.len());
    }
}

#[test]
fn a_changed_schema_is_noticed() {
    let mut e = encode_batch(Table::Logs, &logs(1, 0, "x")).unwrap();
    e.meta.schema ^= 1;
    assert!(matches!(decode_batch(&e.meta, e.payload.clone()), Err(DecodeError::UnknownSchema { .. })));
    assert!(matches!(encode_batch(Table::Spans, &logs(1, 0, "x")), Err(EncodeError::Schema { .. })));
    assert!(matches!(encode_batch(Table::Logs, &logs(1, 0, "x").slice(0, 0)), Err(EncodeError::Empty)));
}
