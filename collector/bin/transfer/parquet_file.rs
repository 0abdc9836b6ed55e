//! Exported rows as a Parquet file that any reader opens: the columns of NDJSON, text instead of JSON objects.

use std::{fs::File, path::Path};

use arrow::{array::RecordBatch, compute::cast};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use query::http::export::plain_schema;
use storage::model::Table;

/// Rows of a row group: what the writer holds.
const ROW_GROUP_ROWS: usize = 65_536;

/// Rows read at a time.
const READ_ROWS: usize = 4096;

/// The kinds a file may hold.
const KINDS: [Table; 5] =
    [Table::Logs, Table::Spans, Table::MetricSamples, Table::MetricHistograms, Table::MetricExemplars];

/// Writes all batches; how many rows.
pub fn write(
    path: &Path,
    table: Table,
    batches: impl Iterator<Item = Result<RecordBatch, String>>,
) -> Result<u64, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot write {}: {e}", path.display());
    let file = File::create(path).map_err(|e| failed(&e))?;
    let level = ZstdLevel::try_new(3).map_err(|e| failed(&e))?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .build();
    let mut writer = ArrowWriter::try_new(file, plain_schema(table), Some(properties)).map_err(|e| failed(&e))?;
    let mut rows = 0;
    for batch in batches {
        let batch = batch?;
        rows += batch.num_rows() as u64;
        writer.write(&batch).map_err(|e| failed(&e))?;
    }
    writer.close().map_err(|e| failed(&e))?;
    Ok(rows)
}

/// The kind of rows in a file, and its batches. Columns may be in any order and of any type that can be cast.
pub fn read(path: &Path) -> Result<(Table, impl Iterator<Item = Result<RecordBatch, String>>), String> {
    let failed = {
        let name = path.display().to_string();
        move |e: &dyn std::fmt::Display| format!("cannot read {name}: {e}")
    };
    let file = File::open(path).map_err(|e| failed(&e))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| failed(&e))?;
    let found = builder.schema().clone();
    let has = |table: Table| {
        let wanted = plain_schema(table);
        found.fields().len() == wanted.fields().len()
            && wanted.fields().iter().all(|f| found.field_with_name(f.name()).is_ok())
    };
    let Some(table) = KINDS.into_iter().find(|t| has(*t)) else {
        return Err(failed(&"its columns are not those of an export"));
    };
    let reader = builder.with_batch_size(READ_ROWS).build().map_err(|e| failed(&e))?;
    let wanted = plain_schema(table);
    let batches = reader.map(move |batch| {
        let batch = batch.map_err(|e| failed(&e))?;
        let columns = wanted.fields().iter().map(|f| {
            let column = batch.column_by_name(f.name()).ok_or_else(|| failed(&format!("no column {}", f.name())))?;
            cast(column, f.data_type()).map_err(|e| failed(&e))
        });
        RecordBatch::try_new(wanted.clone(), columns.collect::<Result<_, _>>()?).map_err(|e| failed(&e))
    });
    Ok((table, batches))
}
