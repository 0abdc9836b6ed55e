//! Rows in, one part out, a row group at a time.

use std::io::Write;

use arrow::{
    array::{AsArray, RecordBatch},
    compute::concat_batches,
    datatypes::{Int64Type, SchemaRef, TimestampNanosecondType},
};
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_writer::{ArrowRowGroupWriterFactory, ArrowWriterOptions},
    },
    basic::{Compression, Encoding, ZstdLevel},
    file::{
        metadata::KeyValue,
        properties::{BloomFilterPosition, EnabledStatistics, WriterProperties, WriterPropertiesBuilder},
        writer::SerializedFileWriter,
    },
    schema::types::ColumnPath,
};

use super::{
    PartError, PartMeta, WriteOptions, arrival,
    chunk::{ChunkPlan, RowGroup},
    distinct::Distinct,
    encode,
    error::writing,
    gather::Gather,
    meta::FORMAT,
    reader::FAR_RUNS_BYTES_MAX,
    seal::{self, Sealing},
    sort, untemplated,
};
use crate::{
    index::runs::RunsBuilder,
    limits,
    model::{Table, schema, time::NANOS_PER_MILLI},
};

/// Rows that are gathered at once: their texts stay in cache between being copied and being encoded.
const GATHER_ROWS: usize = 8192;
/// zstd level of long texts in a flushed part, which a merge soon reads and writes anew: on the bodies of W1 two thirds
/// larger than at level 1, written in 0.6 of the time and read faster too.
const ZSTD_FLUSHED_TEXTS: i32 = -3;
/// Share of absent trace ids for which a Bloom filter says "maybe".
const BLOOM_FALSE_POSITIVES: f64 = 0.01;

/// Sorts `rows` (head or stored schema, batches in commit order; without a `seq` they get one) and writes them as one part. Blocks.
pub fn write_part<W: Write + Send>(
    table: Table,
    rows: &[RecordBatch],
    options: &WriteOptions,
    out: W,
) -> Result<PartMeta, PartError> {
    let fresh = rows.first().is_some_and(|b| b.num_columns() < schema::stored(table).fields().len());
    for b in rows {
        check_schema(table, b, if fresh { schema::head(table) } else { schema::stored(table) })?;
    }
    let mut writer = PartWriter::new(table, options, out)?;
    let untemplated = if table == Table::Logs { untemplated::without_templates(rows) } else { None };
    let rows = untemplated.as_deref().unwrap_or(rows);
    if !rows.is_empty() {
        let gather = Gather::new(rows)?;
        let order = sort::order(table, rows);
        let ranks = if fresh { arrival::ranks(rows, &order) } else { None };
        let mut distinct = (table == Table::MetricExemplars).then(Distinct::default);
        for (i, piece) in order.chunks(GATHER_ROWS).enumerate() {
            let mut batch = gather.rows(piece)?;
            if fresh {
                let ranks = ranks.as_ref().map(|r| &r[i * GATHER_ROWS..][..piece.len()]);
                batch = arrival::with_seq(table, batch, options.arrival, ranks)?;
            }
            if let Some(distinct) = &mut distinct {
                batch = distinct.filter(batch)?;
            }
            writer.write(&batch)?;
        }
    }
    Ok(writer.finish()?.0)
}

fn check_schema(table: Table, batch: &RecordBatch, wanted: SchemaRef) -> Result<(), PartError> {
    if batch.schema_ref().fields() == wanted.fields() {
        Ok(())
    } else {
        Err(PartError::Invalid(format!("batch does not have the schema of {}", table.name())))
    }
}

/// Writes rows that are in the table's sort order already.
pub struct PartWriter<W: Write + Send> {
    table: Table,
    options: WriteOptions,
    file: SerializedFileWriter<Sealing<W>>,
    factory: ArrowRowGroupWriterFactory,
    plan: ChunkPlan,
    group: Option<RowGroup>,
    runs: RunsBuilder,
    /// Samples only: rows of the coming row group, whose exponents need all of them.
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    rows: u64,
    min_ts: i64,
    max_ts: i64,
}

impl<W: Write + Send> PartWriter<W> {
    pub fn new(table: Table, options: &WriteOptions, out: W) -> Result<Self, PartError> {
        let dense = table == Table::MetricSamples || crate::downsample::Resolution::of_table(table).is_some();
        let zstd = options.zstd.unwrap_or(if dense { 3 } else { 1 });
        let properties = properties(table, options, zstd)?;
        let schema = encode::with_promoted(table, &options.promoted);
        let arrow = ArrowWriterOptions::new().with_properties(properties.clone()).with_skip_arrow_metadata(true);
        let (file, factory) = ArrowWriter::try_new_with_options(Sealing::new(out), schema.clone(), arrow)
            .and_then(ArrowWriter::into_serialized_writer)
            .map_err(writing)?;
        let zstd_texts = if options.level == 0 && options.zstd.is_none() { ZSTD_FLUSHED_TEXTS } else { zstd };
        let page_rows = page_rows(table, options);
        let plan = ChunkPlan::new(schema, file.schema_descr(), &properties, zstd, zstd_texts, page_rows);
        Ok(PartWriter {
            table,
            options: options.clone(),
            file,
            factory,
            plan,
            group: None,
            runs: RunsBuilder::new(table),
            pending: Vec::new(),
            pending_rows: 0,
            rows: 0,
            min_ts: i64::MAX,
            max_ts: i64::MIN,
        })
    }

    /// `batch`: the next rows, stored schema.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), PartError> {
        check_schema(self.table, batch, schema::stored(self.table))?;
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.rows += batch.num_rows() as u64;
        let (min, max) = time_bounds(self.table, batch);
        self.min_ts = self.min_ts.min(min);
        self.max_ts = self.max_ts.max(max);
        self.runs.push(batch);
        if self.table != Table::MetricSamples {
            let mut disk = encode::to_disk(self.table, batch)?;
            let promoted = self.options.promoted.columns(self.table, batch)?;
            if !promoted.is_empty() {
                let columns = disk.columns().iter().cloned().chain(promoted).collect();
                disk = RecordBatch::try_new(encode::with_promoted(self.table, &self.options.promoted), columns)?;
            }
            return self.write_rows(&disk);
        }
        let mut batch = batch.clone();
        while self.pending_rows + batch.num_rows() >= self.options.row_group_rows {
            let n = self.options.row_group_rows - self.pending_rows;
            self.pending.push(batch.slice(0, n));
            self.write_pending()?;
            batch = batch.slice(n, batch.num_rows() - n);
        }
        self.pending_rows += batch.num_rows();
        self.pending.push(batch);
        Ok(())
    }

    fn write_pending(&mut self) -> Result<(), PartError> {
        let batch = concat_batches(&schema::stored(self.table), &self.pending)?;
        self.pending.clear();
        self.pending_rows = 0;
        self.write_rows(&encode::to_disk(self.table, &batch)?)
    }

    /// `batch`: disk schema.
    fn write_rows(&mut self, batch: &RecordBatch) -> Result<(), PartError> {
        let mut at = 0;
        while at < batch.num_rows() {
            let number = self.file.flushed_row_groups().len();
            let group = match &mut self.group {
                Some(group) => group,
                none => none.insert(RowGroup::new(&self.plan, &self.factory, number).map_err(writing)?),
            };
            let n = (self.options.row_group_rows.max(1) - group.rows()).min(batch.num_rows() - at);
            group.write(&self.plan, &batch.slice(at, n)).map_err(writing)?;
            at += n;
            if group.rows() >= self.options.row_group_rows {
                self.finish_group()?;
            }
        }
        Ok(())
    }

    fn finish_group(&mut self) -> Result<(), PartError> {
        let Some(group) = self.group.take() else { return Ok(()) };
        group.finish(&self.plan, &mut self.file).map_err(writing)
    }

    /// Writes indexes and footer, flushes `out` and gives it back.
    pub fn finish(mut self) -> Result<(PartMeta, W), PartError> {
        if self.pending_rows > 0 {
            self.write_pending()?;
        }
        let io = |source| PartError::Io { what: "write the part", source };
        self.finish_group()?;
        let runs = self.runs.finish().encode().map_err(io)?;
        let at = self.file.bytes_written();
        let small = runs.len() as u64 <= FAR_RUNS_BYTES_MAX;
        let tail_at = at as u64 + if small { 0 } else { runs.len() as u64 };
        self.file.write_all(&runs).map_err(io)?;
        let mut pairs = vec![
            ("sightline.format", FORMAT.to_string()),
            ("sightline.table", self.table.name().to_owned()),
            ("sightline.level", self.options.level.to_string()),
            ("sightline.created", self.options.created.nanos().to_string()),
            ("sightline.runs", format!("{at},{},{}", runs.len(), crc32c::crc32c(&runs))),
        ];
        self.file.flush().map_err(io)?;
        let sums: Vec<u8> = self.file.inner().sums().iter().flat_map(|c| c.to_le_bytes()).collect();
        let at = self.file.bytes_written();
        self.file.write_all(&sums).map_err(io)?;
        self.file.flush().map_err(io)?;
        self.file.inner_mut().begin_tail();
        pairs.push(("sightline.checksums", format!("{at},{},{}", sums.len(), crc32c::crc32c(&sums))));
        pairs.push(("sightline.tail", seal::tail_value((at + sums.len()) as u64)));
        for (key, value) in pairs {
            self.file.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        let groups = self.file.flushed_row_groups();
        let row_groups = groups.len() as u32;
        let bytes_uncompressed = groups.iter().map(|g| g.total_byte_size().max(0) as u64).sum();
        let (out, bytes_file) = self.file.into_inner().map_err(writing)?.finish().map_err(io)?;
        let empty = self.rows == 0;
        let meta = PartMeta {
            table: self.table,
            rows: self.rows,
            bytes_uncompressed,
            bytes_file,
            tail_bytes: bytes_file - tail_at,
            min_ts: if empty { 0 } else { self.min_ts },
            max_ts: if empty { 0 } else { self.max_ts },
            level: self.options.level,
            row_groups,
            created: self.options.created.nanos(),
        };
        Ok((meta, out))
    }
}

/// Smallest and largest event time, nanoseconds. `batch` is not empty.
fn time_bounds(table: Table, batch: &RecordBatch) -> (i64, i64) {
    let column = |name: &str| batch.column_by_name(name).expect("column of the stored schema");
    let bounds = |v: &[i64]| v.iter().fold((i64::MAX, i64::MIN), |(a, b), t| (a.min(*t), b.max(*t)));
    let ms = |t: i64| t.saturating_mul(NANOS_PER_MILLI);
    match table {
        Table::Logs | Table::Spans => bounds(column("ts").as_primitive::<TimestampNanosecondType>().values()),
        Table::MetricSeries => {
            let first = bounds(column("first_ms").as_primitive::<Int64Type>().values());
            let last = bounds(column("last_ms").as_primitive::<Int64Type>().values());
            (ms(first.0.min(last.0)), ms(first.1.max(last.1)))
        }
        _ => {
            let (min, max) = bounds(column("ts_ms").as_primitive::<Int64Type>().values());
            (ms(min), ms(max))
        }
    }
}

/// Rows of a page at most.
fn page_rows(table: Table, options: &WriteOptions) -> usize {
    if table == Table::MetricSamples { options.row_group_rows } else { options.page_rows }
}

fn properties(table: Table, options: &WriteOptions, zstd: i32) -> Result<WriterProperties, PartError> {
    let zstd = ZstdLevel::try_new(zstd).map_err(writing)?;
    let mut p = WriterProperties::builder()
        .set_created_by(concat!("sightline ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(zstd))
        .set_max_row_group_row_count(Some(options.row_group_rows))
        .set_data_page_row_count_limit(page_rows(table, options))
        .set_data_page_size_limit(limits::PAGE_BYTES_MAX)
        .set_dictionary_page_size_limit(limits::DICTIONARY_PAGE_BYTES_MAX)
        .set_write_batch_size(options.page_rows.clamp(1, 1024))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_statistics_truncate_length(Some(64))
        .set_bloom_filter_position(BloomFilterPosition::AfterRowGroup);
    for field in encode::disk_schema(table).fields() {
        p = column_properties(p, table, field.name(), options);
    }
    Ok(p.build())
}

fn column_properties(
    p: WriterPropertiesBuilder,
    table: Table,
    name: &str,
    options: &WriteOptions,
) -> WriterPropertiesBuilder {
    let column = || ColumnPath::from(name);
    let plain = |p: WriterPropertiesBuilder, encoding: Encoding| {
        p.set_column_dictionary_enabled(column(), false).set_column_encoding(column(), encoding)
    };
    let paged = |p: WriterPropertiesBuilder| p.set_column_statistics_enabled(column(), EnabledStatistics::Page);
    match (table, name) {
        (_, "body") => plain(p, Encoding::DELTA_LENGTH_BYTE_ARRAY)
            .set_column_data_page_size_limit(column(), limits::BODY_PAGE_BYTES_MAX)
            .set_column_statistics_enabled(column(), EnabledStatistics::None),
        (Table::Spans, "attrs" | "events" | "links") | (Table::MetricSeries | Table::MetricExemplars, "labels") => {
            plain(p, Encoding::DELTA_LENGTH_BYTE_ARRAY)
                .set_column_data_page_size_limit(column(), limits::BODY_PAGE_BYTES_MAX)
                .set_column_statistics_enabled(column(), EnabledStatistics::None)
        }
        (_, "ts" | "observed_ts" | "first_ms" | "last_ms") => paged(plain(p, Encoding::DELTA_BINARY_PACKED)),
        (Table::MetricSamples, "ts_ms" | "value_i") => paged(plain(p, Encoding::BYTE_STREAM_SPLIT)),
        (_, "ts_ms" | "start_ms") => paged(plain(p, Encoding::DELTA_BINARY_PACKED)),
        (Table::MetricSeries, "series_id") => paged(plain(p, Encoding::PLAIN)),
        (_, "series_id") => {
            paged(p).set_column_dictionary_page_size_limit(column(), limits::SERIES_DICTIONARY_BYTES_MAX)
        }
        (_, "stream_id" | "template_id") => paged(p),
        (_, "trace_id") => {
            // As good as random, so no dictionary: one trace would have to read all of it.
            let p = paged(plain(p, Encoding::PLAIN));
            if table == Table::Spans {
                return p; // they lie sorted by it: the bounds of pages say more than a filter
            }
            p.set_column_bloom_filter_enabled(column(), true)
                .set_column_bloom_filter_fpp(column(), BLOOM_FALSE_POSITIVES)
                .set_column_bloom_filter_max_ndv(column(), options.row_group_rows as u64)
        }
        (Table::MetricSamples5m | Table::MetricSamples1h, "sum" | "min" | "max" | "first" | "last" | "lost") => {
            plain(p, Encoding::BYTE_STREAM_SPLIT)
        }
        (_, "span_id" | "parent_span_id" | "value_f" | "value" | "sum") => plain(p, Encoding::PLAIN),
        (_, "duration_ns" | "nested_left" | "nested_right" | "nested_parent") => {
            plain(p, Encoding::DELTA_BINARY_PACKED)
        }
        _ => p,
    }
}

/// Shared by tests: the stored rows in the order [`write_part`] gives them.
#[cfg(test)]
pub(crate) fn sorted(table: Table, rows: &[RecordBatch]) -> RecordBatch {
    let order = sort::order(table, rows);
    let places: Vec<(usize, usize)> = order.iter().map(|p| (p.batch as usize, p.row as usize)).collect();
    let refs: Vec<&RecordBatch> = rows.iter().collect();
    let batch = arrow::compute::interleave_record_batch(&refs, &places).unwrap();
    RecordBatch::try_new(schema::stored(table), batch.columns().to_vec()).unwrap()
}
