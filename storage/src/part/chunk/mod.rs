//! The column chunks of one row group.
//!
//! Rows of a part are sorted, so most columns hold long runs of few values, and many hold nothing but nulls. The Parquet
//! writer looks at each row of such a column all the same: it hashes its text to find it in the dictionary, compares it
//! with the least and greatest so far, and writes its level. Columns of few distinct values are therefore encoded here, as
//! runs of keys ([`keys`], [`rle`], [`pages`]), and given to the Parquet writer as finished chunks. So are long texts without a
//! dictionary ([`texts`]), which are most of a part's bytes. All others, and those whose dictionary grows too large, go
//! through the Parquet writer.

mod delta;
mod keys;
mod pages;
mod rle;
mod texts;

use std::io::Write;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, new_null_array},
    datatypes::{DataType, Field, SchemaRef},
};
use keys::Keys;
use pages::{ChunkOptions, EncodedChunk, Zstd, encode_keys, encode_nulls};
use parquet::{
    arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves},
    basic::Encoding,
    errors::Result,
    file::{
        properties::{EnabledStatistics, WriterProperties},
        writer::SerializedFileWriter,
    },
    schema::types::SchemaDescriptor,
};
use texts::Texts;

/// How the columns of a table are written; the same for all its row groups.
pub(super) struct ChunkPlan {
    schema: SchemaRef,
    columns: Vec<ColumnPlan>,
}

struct ColumnPlan {
    options: ChunkOptions,
    /// May be written as keys.
    keyed: bool,
    /// Written as texts; bytes of a page.
    texts: Option<usize>,
    /// May be written as nothing but nulls.
    nullable: bool,
    dictionary_bytes_max: usize,
}

impl ChunkPlan {
    /// `schema`: of the batches, each column of which is one leaf. `zstd`: level of `properties`; `zstd_texts`: that of
    /// long texts.
    pub(super) fn new(
        schema: SchemaRef,
        parquet: &SchemaDescriptor,
        properties: &WriterProperties,
        zstd: i32,
        zstd_texts: i32,
        page_rows: usize,
    ) -> Self {
        assert_eq!(schema.fields().len(), parquet.num_columns(), "one leaf a column");
        let columns = schema.fields().iter().zip(parquet.columns()).map(|(field, leaf)| {
            let path = leaf.path();
            let flat = leaf.max_rep_level() == 0;
            let texts = flat
                && *field.data_type() == DataType::Utf8
                && properties.encoding(path) == Some(Encoding::DELTA_LENGTH_BYTE_ARRAY)
                && properties.statistics_enabled(path) == EnabledStatistics::None
                && properties.bloom_filter_properties(path).is_none();
            ColumnPlan {
                texts: texts.then(|| properties.column_data_page_size_limit(path)),
                keyed: flat
                    && properties.dictionary_enabled(path)
                    && properties.bloom_filter_properties(path).is_none()
                    && Keys::new(field.data_type()).is_some(),
                nullable: flat && field.is_nullable(),
                dictionary_bytes_max: properties.column_dictionary_page_size_limit(path),
                options: ChunkOptions {
                    leaf: leaf.clone(),
                    statistics: properties.statistics_enabled(path),
                    page_rows,
                    zstd: if texts { Zstd::Templated(zstd_texts) } else { Zstd::Level(zstd) },
                },
            }
        });
        ChunkPlan { columns: columns.collect(), schema: schema.clone() }
    }
}

/// Rows of one column so far.
enum Column {
    /// Nothing but nulls.
    Nulls(usize),
    Keys(Box<Keys>),
    Texts(Box<Texts>),
    Arrow(Box<ArrowColumnWriter>),
}

impl Column {
    /// For a column with values. `spare`: its writer, taken where the Parquet writer does the work.
    fn new(plan: &ColumnPlan, field: &Field, spare: &mut Option<ArrowColumnWriter>) -> Result<Self> {
        if let Some(page_bytes) = plan.texts {
            return Ok(Column::Texts(Box::new(Texts::new(&plan.options, page_bytes)?)));
        }
        Ok(match Keys::new(field.data_type()).filter(|_| plan.keyed) {
            Some(keys) => Column::Keys(Box::new(keys)),
            None => Column::Arrow(Box::new(spare.take().expect("not in use yet"))),
        })
    }
}

/// A row group being gathered.
pub(super) struct RowGroup {
    columns: Vec<Column>,
    /// Writers not in use yet.
    spare: Vec<Option<ArrowColumnWriter>>,
    rows: usize,
}

impl RowGroup {
    /// `number`: row groups of the file before it.
    pub(super) fn new(plan: &ChunkPlan, factory: &ArrowRowGroupWriterFactory, number: usize) -> Result<Self> {
        let mut spare: Vec<_> = factory.create_column_writers(number)?.into_iter().map(Some).collect();
        let columns = plan
            .columns
            .iter()
            .zip(plan.schema.fields())
            .zip(&mut spare)
            .map(|((p, field), spare)| if p.nullable { Ok(Column::Nulls(0)) } else { Column::new(p, field, spare) })
            .collect::<Result<_>>()?;
        Ok(RowGroup { columns, spare, rows: 0 })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// `batch`: of the plan's schema.
    pub(super) fn write(&mut self, plan: &ChunkPlan, batch: &RecordBatch) -> Result<()> {
        for (i, array) in batch.columns().iter().enumerate() {
            self.write_column(&plan.columns[i], plan.schema.field(i), i, array)?;
        }
        self.rows += batch.num_rows();
        Ok(())
    }

    fn write_column(&mut self, plan: &ColumnPlan, field: &Field, at: usize, array: &ArrayRef) -> Result<()> {
        let column = &mut self.columns[at];
        if let Column::Nulls(rows) = column {
            if array.null_count() == array.len() {
                *rows += array.len();
                return Ok(());
            }
            let rows = *rows;
            *column = Column::new(plan, field, &mut self.spare[at])?;
            match column {
                Column::Keys(keys) => keys.push_nulls(rows),
                Column::Texts(texts) => texts.push_nulls(rows)?,
                Column::Arrow(writer) if rows > 0 => {
                    write_array(writer, field, &new_null_array(field.data_type(), rows))?;
                }
                Column::Arrow(_) | Column::Nulls(_) => {}
            }
        }
        match column {
            Column::Nulls(_) => {}
            Column::Arrow(writer) => write_array(writer, field, array)?,
            Column::Texts(texts) => texts.push(array.as_string::<i32>())?,
            Column::Keys(keys) => {
                keys.push(array);
                if keys.dictionary_bytes() > plan.dictionary_bytes_max {
                    let mut writer = Box::new(self.spare[at].take().expect("not in use yet"));
                    write_array(&mut writer, field, &keys.to_array())?;
                    *column = Column::Arrow(writer);
                }
            }
        }
        Ok(())
    }

    pub(super) fn finish<W: Write + Send>(self, plan: &ChunkPlan, out: &mut SerializedFileWriter<W>) -> Result<()> {
        let mut group = out.next_row_group()?;
        for (column, plan) in self.columns.into_iter().zip(&plan.columns) {
            let EncodedChunk { bytes, close } = match column {
                Column::Arrow(writer) => {
                    writer.close()?.append_to_row_group(&mut group)?;
                    continue;
                }
                Column::Nulls(rows) => encode_nulls(rows, &plan.options)?,
                Column::Keys(keys) => encode_keys(&keys, &plan.options)?,
                Column::Texts(texts) => texts.finish()?,
            };
            group.append_column(&bytes, close)?;
        }
        group.close()?;
        Ok(())
    }
}

fn write_array(writer: &mut ArrowColumnWriter, field: &Field, array: &ArrayRef) -> Result<()> {
    compute_leaves(field, array)?.iter().try_for_each(|leaf| writer.write(leaf))
}

#[cfg(test)]
mod tests;
