use serde::{Deserialize, Serialize};

use super::Promoted;
use crate::{
    limits,
    model::{Table, TimeRange, Timestamp},
};

/// Version of the bytes a part holds, in its key-value metadata under `sightline.format`.
pub(super) const FORMAT: u32 = 1;

/// What the catalog keeps of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartMeta {
    #[serde(with = "table_name")]
    pub table: Table,
    pub rows: u64,
    /// Of the column data, encoded but not compressed.
    pub bytes_uncompressed: u64,
    /// Length of the file.
    pub bytes_file: u64,
    /// Bytes at the file's end that opening it reads: checksums, page indexes and footer, a small run index too.
    #[serde(default)]
    pub tail_bytes: u64,
    /// Smallest event time, nanoseconds. Points and series: of their milliseconds. 0 without rows.
    pub min_ts: i64,
    /// Largest event time, nanoseconds; of series their `last_ms`. 0 without rows.
    pub max_ts: i64,
    /// 0 a flush, 1 within the open hour, 2 a closed hour.
    pub level: u8,
    pub row_groups: u32,
    /// When it was written, nanoseconds, by the clock of [`WriteOptions::created`].
    pub created: i64,
}

impl PartMeta {
    /// Whether a row of the part may lie in the range.
    pub fn overlaps(&self, range: TimeRange) -> bool {
        self.rows > 0 && range.overlaps(Timestamp(self.min_ts), Timestamp(self.max_ts))
    }
}

mod table_name {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::model::Table;

    pub(super) fn serialize<S: Serializer>(table: &Table, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(table.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Table, D::Error> {
        let name = String::deserialize(d)?;
        Table::from_name(&name).ok_or_else(|| D::Error::custom(format!("no table {name}")))
    }
}

/// How a part is written.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    pub level: u8,
    pub created: Timestamp,
    /// Rows of a row group; the tests make it small.
    pub row_group_rows: usize,
    /// Rows of a page at most.
    pub page_rows: usize,
    /// zstd level; `None`: 3 for samples, 1 for everything else, but less for long texts at level 0.
    pub zstd: Option<i32>,
    /// Stands for the flush in column `seq` ([`crate::part::seq_of`]): a number that grows from flush to flush.
    pub arrival: u64,
    /// Attributes of logs and spans that get a column.
    pub promoted: Promoted,
}

impl WriteOptions {
    pub fn new(level: u8, created: Timestamp) -> Self {
        WriteOptions {
            level,
            created,
            row_group_rows: limits::ROW_GROUP_ROWS_MAX,
            page_rows: limits::PAGE_ROWS_MAX,
            zstd: None,
            arrival: 0,
            promoted: Promoted::default(),
        }
    }
}
