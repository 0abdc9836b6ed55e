//! Classic checkpoints: one Parquet file, one action a row. Source: Delta protocol, "Checkpoints" (V1).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, ListBuilder, MapBuilder, MapFieldNames,
        RecordBatch, StringArray, StringBuilder, StructArray, UInt32Array,
    },
    datatypes::{DataType, Field, Fields, Int32Type, Int64Type},
    error::ArrowError,
};
use bytes::Bytes;
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    },
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::WriterProperties,
};

use super::actions::{Action, Add, Format, MetaData, Protocol, Remove, StringMap, Txn};

/// Rows decoded at a time while reading.
const READ_BATCH_ROWS: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("not a checkpoint: {0}")]
    Parquet(#[from] ParquetError),
    #[error("not a checkpoint: {0}")]
    Arrow(#[from] ArrowError),
    #[error("not a checkpoint: {0}")]
    Shape(&'static str),
}

/// What a checkpoint holds.
pub struct Contents<'a> {
    pub protocol: &'a Protocol,
    pub metadata: &'a MetaData,
    pub txns: Vec<&'a Txn>,
    pub adds: Vec<&'a Add>,
    pub removes: Vec<&'a Remove>,
}

impl Contents<'_> {
    pub fn actions(&self) -> usize {
        2 + self.txns.len() + self.adds.len() + self.removes.len()
    }
}

/// The bytes of the file.
pub fn encode(contents: &Contents<'_>) -> Result<Vec<u8>, CheckpointError> {
    let groups = [
        ("protocol", protocol_rows(contents.protocol)?),
        ("metaData", metadata_rows(contents.metadata)?),
        ("txn", txn_rows(&contents.txns)?),
        ("remove", remove_rows(&contents.removes)?),
        ("add", add_rows(&contents.adds)?),
    ];
    let total = contents.actions();
    let (mut fields, mut columns, mut start) = (Vec::new(), Vec::new(), 0);
    for (name, rows) in groups {
        // Each kind fills its own stretch of rows and is null elsewhere.
        let index: UInt32Array =
            (0..total).map(|i| (i >= start && i < start + rows.len()).then(|| (i - start) as u32)).collect();
        start += rows.len();
        fields.push(Field::new(name, rows.data_type().clone(), true));
        columns.push(arrow::compute::take(&rows, &index, None)?);
    }
    let schema = Arc::new(arrow::datatypes::Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), columns)?;
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?)).build();
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, schema, Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(out)
}

fn struct_of(columns: Vec<(&str, ArrayRef)>) -> Result<StructArray, ArrowError> {
    let fields: Fields =
        columns.iter().map(|(name, c)| Field::new(*name, c.data_type().clone(), true)).collect::<Vec<_>>().into();
    StructArray::try_new(fields, columns.into_iter().map(|(_, c)| c).collect(), None)
}

fn maps<'a>(rows: impl Iterator<Item = Option<&'a StringMap>>) -> Result<ArrayRef, ArrowError> {
    let names = MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
    let mut b = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    for row in rows {
        for (k, v) in row.into_iter().flatten() {
            b.keys().append_value(k);
            b.values().append_option(v.as_deref());
        }
        b.append(row.is_some())?;
    }
    Ok(Arc::new(b.finish()))
}

fn strings<'a>(rows: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    Arc::new(rows.collect::<StringArray>())
}

fn protocol_rows(p: &Protocol) -> Result<StructArray, ArrowError> {
    struct_of(vec![
        ("minReaderVersion", Arc::new(Int32Array::from(vec![p.min_reader_version]))),
        ("minWriterVersion", Arc::new(Int32Array::from(vec![p.min_writer_version]))),
    ])
}

fn metadata_rows(m: &MetaData) -> Result<StructArray, ArrowError> {
    let one = |s: Option<&str>| strings(std::iter::once(s));
    let format = struct_of(vec![
        ("provider", one(Some(&m.format.provider))),
        ("options", maps(std::iter::once(Some(&m.format.options)))?),
    ])?;
    let mut partitions =
        ListBuilder::new(StringBuilder::new()).with_field(Field::new("element", DataType::Utf8, true));
    partitions.append_value(m.partition_columns.iter().map(Some));
    struct_of(vec![
        ("id", one(Some(&m.id))),
        ("name", one(m.name.as_deref())),
        ("description", one(m.description.as_deref())),
        ("format", Arc::new(format)),
        ("schemaString", one(Some(&m.schema_string))),
        ("partitionColumns", Arc::new(partitions.finish())),
        ("configuration", maps(std::iter::once(Some(&m.configuration)))?),
        ("createdTime", Arc::new(Int64Array::from(vec![m.created_time]))),
    ])
}

fn txn_rows(rows: &[&Txn]) -> Result<StructArray, ArrowError> {
    struct_of(vec![
        ("appId", strings(rows.iter().map(|t| Some(t.app_id.as_str())))),
        ("version", Arc::new(rows.iter().map(|t| t.version).collect::<Int64Array>())),
        ("lastUpdated", Arc::new(rows.iter().map(|t| t.last_updated).collect::<Int64Array>())),
    ])
}

fn add_rows(rows: &[&Add]) -> Result<StructArray, ArrowError> {
    struct_of(vec![
        ("path", strings(rows.iter().map(|a| Some(a.path.as_str())))),
        ("partitionValues", maps(rows.iter().map(|a| Some(&a.partition_values)))?),
        ("size", Arc::new(rows.iter().map(|a| a.size).collect::<Int64Array>())),
        ("modificationTime", Arc::new(rows.iter().map(|a| a.modification_time).collect::<Int64Array>())),
        // A checkpoint changes no data; readers of changes must not see its adds as new.
        ("dataChange", Arc::new(BooleanArray::from(vec![false; rows.len()]))),
        ("stats", strings(rows.iter().map(|a| a.stats.as_deref()))),
        ("tags", maps(rows.iter().map(|a| a.tags.as_ref()))?),
    ])
}

fn remove_rows(rows: &[&Remove]) -> Result<StructArray, ArrowError> {
    struct_of(vec![
        ("path", strings(rows.iter().map(|r| Some(r.path.as_str())))),
        ("deletionTimestamp", Arc::new(rows.iter().map(|r| r.deletion_timestamp).collect::<Int64Array>())),
        ("dataChange", Arc::new(BooleanArray::from(vec![false; rows.len()]))),
        ("extendedFileMetadata", Arc::new(rows.iter().map(|r| r.extended_file_metadata).collect::<BooleanArray>())),
        ("partitionValues", maps(rows.iter().map(|r| r.partition_values.as_ref()))?),
        ("size", Arc::new(rows.iter().map(|r| r.size).collect::<Int64Array>())),
    ])
}

/// The actions of a checkpoint, ours or another writer's.
pub fn decode(bytes: Bytes) -> Result<Vec<Action>, CheckpointError> {
    // The Parquet reader was not written for hostile bytes: a panic of its own is damage like any other.
    catch_unwind(AssertUnwindSafe(|| read(bytes)))
        .unwrap_or(Err(CheckpointError::Shape("the Parquet reader gave up on it")))
}

fn read(bytes: Bytes) -> Result<Vec<Action>, CheckpointError> {
    // The Arrow schema that some writers embed says nothing that Parquet's does not.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options)?;
    let reader = reader.with_batch_size(READ_BATCH_ROWS).build()?;
    let mut out = Vec::new();
    for batch in reader {
        let batch = batch?;
        for (name, read) in READERS {
            let Some(column) = batch.column_by_name(name) else { continue };
            let rows = column.as_struct_opt().ok_or(CheckpointError::Shape("an action is not a struct"))?;
            for i in (0..rows.len()).filter(|i| rows.is_valid(*i)) {
                out.push(read(&Row { rows, i })?);
            }
        }
    }
    Ok(out)
}

type Reader = fn(&Row<'_>) -> Result<Action, CheckpointError>;

const READERS: [(&str, Reader); 5] = [
    ("protocol", |r| {
        Ok(Action::Protocol(Protocol {
            min_reader_version: r.int("minReaderVersion").ok_or(CheckpointError::Shape("no reader version"))?,
            min_writer_version: r.int("minWriterVersion").ok_or(CheckpointError::Shape("no writer version"))?,
        }))
    }),
    ("metaData", |r| {
        let format = r.column("format").and_then(|c| c.as_struct_opt());
        let format = format.map(|rows| Row { rows, i: r.i });
        Ok(Action::MetaData(MetaData {
            id: r.required("id")?,
            name: r.text("name"),
            description: r.text("description"),
            format: Format {
                provider: format.as_ref().and_then(|f| f.text("provider")).unwrap_or_else(|| "parquet".into()),
                options: format.as_ref().and_then(|f| f.map("options")).unwrap_or_default(),
            },
            schema_string: r.required("schemaString")?,
            partition_columns: r.list("partitionColumns"),
            configuration: r.map("configuration").unwrap_or_default(),
            created_time: r.long("createdTime"),
        }))
    }),
    ("txn", |r| {
        Ok(Action::Txn(Txn {
            app_id: r.required("appId")?,
            version: r.long("version").ok_or(CheckpointError::Shape("a txn has no version"))?,
            last_updated: r.long("lastUpdated"),
        }))
    }),
    ("add", |r| {
        Ok(Action::Add(Add {
            path: r.required("path")?,
            partition_values: r.map("partitionValues").unwrap_or_default(),
            size: r.long("size").ok_or(CheckpointError::Shape("an add has no size"))?,
            modification_time: r.long("modificationTime").unwrap_or(0),
            data_change: false,
            stats: r.text("stats"),
            tags: r.map("tags"),
        }))
    }),
    ("remove", |r| {
        Ok(Action::Remove(Remove {
            path: r.required("path")?,
            deletion_timestamp: r.long("deletionTimestamp"),
            data_change: false,
            extended_file_metadata: r.column("extendedFileMetadata").and_then(|c| {
                let c = c.as_boolean_opt()?;
                c.is_valid(r.i).then(|| c.value(r.i))
            }),
            partition_values: r.map("partitionValues"),
            size: r.long("size"),
        }))
    }),
];

/// One row of a struct column; absent and null fields are `None`.
struct Row<'a> {
    rows: &'a StructArray,
    i: usize,
}

impl<'a> Row<'a> {
    fn column(&self, name: &str) -> Option<&'a ArrayRef> {
        self.rows.column_by_name(name).filter(|c| c.is_valid(self.i))
    }

    fn text(&self, name: &str) -> Option<String> {
        Some(self.column(name)?.as_string_opt::<i32>()?.value(self.i).to_owned())
    }

    fn required(&self, name: &str) -> Result<String, CheckpointError> {
        self.text(name).ok_or(CheckpointError::Shape("a required text is missing"))
    }

    fn long(&self, name: &str) -> Option<i64> {
        Some(self.column(name)?.as_primitive_opt::<Int64Type>()?.value(self.i))
    }

    fn int(&self, name: &str) -> Option<i32> {
        Some(self.column(name)?.as_primitive_opt::<Int32Type>()?.value(self.i))
    }

    fn list(&self, name: &str) -> Vec<String> {
        let Some(list) = self.column(name).and_then(|c| c.as_list_opt::<i32>()) else { return Vec::new() };
        let items = list.value(self.i);
        items.as_string_opt::<i32>().map(|s| s.iter().flatten().map(str::to_owned).collect()).unwrap_or_default()
    }

    fn map(&self, name: &str) -> Option<StringMap> {
        let entries = self.column(name)?.as_map_opt()?.value(self.i);
        let keys = entries.column(0).as_string_opt::<i32>()?;
        let values = entries.column(1).as_string_opt::<i32>()?;
        Some(
            keys.iter().zip(values.iter()).filter_map(|(k, v)| Some((k?.to_owned(), v.map(str::to_owned)))).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_reads_back_and_a_damaged_one_is_an_error() {
        let map = |pairs: &[(&str, Option<&str>)]| -> StringMap {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), v.map(str::to_owned))).collect()
        };
        let metadata = MetaData {
            id: "x".into(),
            name: None,
            description: None,
            format: Format { provider: "parquet".into(), options: map(&[]) },
            schema_string: "{}".into(),
            partition_columns: vec!["day".into()],
            configuration: map(&[("a", Some("b"))]),
            created_time: Some(5),
        };
        let protocol = Protocol { min_reader_version: 1, min_writer_version: 2 };
        let add = |path: &str, tags| Add {
            path: path.into(),
            partition_values: map(&[("day", Some("2026-01-01")), ("null", None)]),
            size: 10,
            modification_time: 7,
            data_change: false,
            stats: Some("{\"numRecords\":1}".into()),
            tags,
        };
        let adds = [add("a", Some(map(&[("k", Some("v"))]))), add("b", None)];
        let remove = Remove {
            path: "c".into(),
            deletion_timestamp: Some(1),
            data_change: false,
            extended_file_metadata: Some(true),
            partition_values: Some(map(&[("day", Some("2026-01-01"))])),
            size: Some(3),
        };
        let txn = Txn { app_id: "app".into(), version: 9, last_updated: None };
        let bytes = encode(&Contents {
            protocol: &protocol,
            metadata: &metadata,
            txns: vec![&txn],
            adds: adds.iter().collect(),
            removes: vec![&remove],
        })
        .unwrap();
        let expected = [
            Action::Protocol(protocol),
            Action::MetaData(metadata),
            Action::Txn(txn),
            Action::Add(adds[0].clone()),
            Action::Add(adds[1].clone()),
            Action::Remove(remove),
        ];
        let read = decode(Bytes::from(bytes.clone())).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", expected));
        for cut in [0, 3, bytes.len() / 2, bytes.len() - 1] {
            assert!(decode(Bytes::copy_from_slice(&bytes[..cut])).is_err());
        }
    }
}
