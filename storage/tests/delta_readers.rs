//! The tables we write, opened by programs that are not ours: Python's `deltalake` and, where installed, DuckDB.

use std::{path::Path, process::Command, sync::Arc};

use arrow::{
    array::{Int16Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};
use parquet::arrow::ArrowWriter;
use storage::{
    catalog::{Bucket, Commit, NewPart, Operation, TableCatalog, TableOptions, part_path},
    model::{Table, Timestamp},
    object::{LocalStore, Objects},
};

const HOUR: i64 = 3_600_000_000_000;
const NOW: Timestamp = Timestamp(1_790_000_000_000_000_000);

fn schema() -> SchemaRef {
    let us = DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")));
    Arc::new(Schema::new(vec![
        Field::new("ts", us, false),
        Field::new("ts_ns", DataType::Int16, false),
        Field::new("body", DataType::Utf8, true),
    ]))
}

/// A real Parquet part of `rows` rows from the start of an hour on, a second apart.
fn write_part(store: &LocalStore, prefix: &str, hour: i64, rows: i64, level: u8, order: Option<i64>) -> NewPart {
    let bucket = Bucket::Hour(hour);
    let path = part_path(bucket, level);
    let first = hour * HOUR / 1000;
    let ts: Vec<i64> = (0..rows).map(|i| first + i * 1_000_000).collect();
    let (min, max) = (ts[0], ts[ts.len() - 1]);
    let batch = RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(TimestampMicrosecondArray::from(ts).with_timezone("UTC")),
            Arc::new(Int16Array::from(vec![7; rows as usize])),
            Arc::new(StringArray::from_iter_values((0..rows).map(|i| format!("line {hour} {i}")))),
        ],
    )
    .unwrap();
    let mut out = store.create(&format!("{prefix}/{path}")).unwrap();
    let mut writer = ArrowWriter::try_new(&mut out, schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let size = out.finish().unwrap();
    NewPart {
        path,
        bucket,
        size,
        rows: rows as u64,
        min_ts: Timestamp(min * 1000 + 7),
        max_ts: Timestamp(max * 1000 + 7),
        level,
        order,
        tags: vec![],
    }
}

const CHECK: &str = r#"
import sys, json, datetime
from deltalake import DeltaTable
t = DeltaTable(sys.argv[1])
rows = t.to_pyarrow_table()
days = sorted({str(d) for d in rows["day"].to_pylist()})
some = t.to_pyarrow_table(filters=[("day", "=", datetime.date.fromisoformat(days[0]))])
noon = datetime.datetime.fromisoformat(days[0] + "T12:00:00+00:00")
late = t.to_pyarrow_table(filters=[("ts", ">=", noon)])
one = t.to_pyarrow_table(filters=[("body", "=", sys.argv[2])])
print(json.dumps({
    "late": late.num_rows, "one": one.num_rows, "version": t.version(), "files": sorted(u.split("logs/")[-1] for u in t.file_uris()), "rows": rows.num_rows,
    "txn": t.transaction_version("wal-n-logs"), "days": days, "first_day": some.num_rows,
    "ns": sum(rows["ts_ns"].to_pylist()), "names": rows.schema.names, "ts": str(rows.schema.field("ts").type),
    "protocol": [t.protocol().min_reader_version, t.protocol().min_writer_version],
}))
"#;

/// A line of the first part.
const LINE: &str = "line 489984 7";

const DUCKDB: &str = r#"
import sys, json, duckdb
n = duckdb.sql(f"select count(*), sum(ts_ns), count(distinct day) from read_parquet('{sys.argv[1]}/day=*/*.parquet', hive_partitioning=true)").fetchall()[0]
print(json.dumps([int(x) for x in n]))
"#;

/// `None`, said loudly, when the module is not installed and need not be.
fn python(module: &str, program: &str, table: &Path) -> Option<serde_json::Value> {
    let has = Command::new("python3").args(["-c", &format!("import {module}")]).output();
    if !has.is_ok_and(|o| o.status.success()) {
        assert!(std::env::var_os("SIGHTLINE_REQUIRE_ALL").is_none(), "python3 with {module} is required");
        eprintln!("SKIPPED: python3 with {module} is not installed, so no foreign reader checks this table");
        return None;
    }
    // Their worker threads now and then abort an interpreter that is leaving ("terminate called without an active
    // exception"), long after the answer is out: it leaves at once.
    let program = format!("{program}\nimport os\nsys.stdout.flush()\nos._exit(0)\n");
    let out = Command::new("python3").arg("-c").arg(program).arg(table).arg(LINE).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(serde_json::from_slice(&out.stdout).unwrap())
}

#[test]
fn other_programs_see_the_same_files_rows_and_transactions() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalStore::new(dir.path()));
    let prefix = "data/default/logs";
    let table = dir.path().join(prefix);
    let (catalog, _) =
        TableCatalog::open(store.clone(), TableOptions::new(Table::Logs, prefix, schema()), NOW).unwrap();
    let check = |catalog: &TableCatalog, rows: u64, txn: i64, days: usize, first_day: u64| {
        let Some(seen) = python("deltalake, pyarrow", CHECK, &table) else { return };
        let mut files: Vec<String> = catalog.live().iter().map(|p| p.path.clone()).collect();
        files.sort();
        assert_eq!(seen["files"], serde_json::json!(files));
        assert_eq!(seen["version"], catalog.version());
        assert_eq!((seen["rows"].as_u64(), seen["ns"].as_u64()), (Some(rows), Some(rows * 7)));
        assert_eq!(seen["txn"], txn);
        assert_eq!(seen["days"].as_array().unwrap().len(), days);
        assert_eq!(seen["first_day"], first_day);
        assert_eq!(seen["late"], rows - first_day, "pruned by the statistics in the log");
        assert_eq!(seen["one"], 1, "not pruned by statistics that are not there");
        assert_eq!(seen["names"], serde_json::json!(["ts", "ts_ns", "body", "day"]));
        assert_eq!(seen["ts"], "timestamp[us, tz=UTC]");
        assert_eq!(seen["protocol"], serde_json::json!([1, 2]));
    };
    let first = 490_000 / 24 * 24;
    for (i, hour) in [first, first + 1, first + 24].into_iter().enumerate() {
        catalog
            .commit(
                Commit {
                    adds: vec![write_part(&store, prefix, hour, 100, 0, None)],
                    removes: vec![],
                    txn: Some(("wal-n-logs".into(), i as i64 + 1)),
                    operation: Operation::Flush,
                },
                NOW,
            )
            .unwrap();
    }
    check(&catalog, 300, 3, 2, 200);

    let merged = catalog
        .commit(
            Commit {
                adds: vec![write_part(&store, prefix, first, 200, 2, Some(2))],
                removes: catalog.live()[..2].to_vec(),
                txn: None,
                operation: Operation::Compact,
            },
            NOW,
        )
        .unwrap();
    for part in merged.removed {
        store.delete(&catalog.file_of(&part.path)).unwrap();
    }
    check(&catalog, 300, 3, 2, 200);
    catalog.checkpoint(NOW).unwrap();
    check(&catalog, 300, 3, 2, 200);

    // From the checkpoint alone: nothing before it may be needed.
    for version in 0..4 {
        std::fs::remove_file(table.join(format!("_delta_log/{version:020}.json"))).unwrap();
    }
    check(&catalog, 300, 3, 2, 200);
    if let Some(counts) = python("duckdb", DUCKDB, &table) {
        assert_eq!(counts, serde_json::json!([300, 2100, 2]), "the files alone, without the log");
    }

    // And what another program wrote, we read.
    let append = r#"
import sys, datetime, pyarrow as pa
from deltalake import write_deltalake
ts = datetime.datetime(2025, 11, 24, 1, tzinfo=datetime.timezone.utc)
schema = pa.schema([pa.field("ts", pa.timestamp("us", tz="UTC"), False), pa.field("ts_ns", pa.int16(), False),
                    pa.field("body", pa.string()), pa.field("day", pa.date32())])
row = pa.Table.from_pylist([{"ts": ts, "ts_ns": 7, "body": "theirs", "day": ts.date()}], schema=schema)
write_deltalake(sys.argv[1], row, mode="append")
print("true")
"#;
    if python("deltalake, pyarrow", append, &table).is_some() {
        assert!(catalog.refresh().unwrap());
        assert_eq!(catalog.live().len(), 3);
        let theirs = catalog.live().iter().find(|p| p.order == 0).cloned().unwrap();
        assert_eq!((theirs.rows, theirs.bucket), (1, Bucket::Day(20_416)));
        drop(catalog);
        let (again, report) =
            TableCatalog::open(store, TableOptions::new(Table::Logs, prefix, schema()), NOW).unwrap();
        assert!(again.live().len() == 3 && report.parts.is_empty() && report.log.is_empty(), "{report:?}");
    }
}
