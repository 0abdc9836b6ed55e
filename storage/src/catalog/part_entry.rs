//! What the log says about one part: where its file lies, what it holds, how an entry is written and read.

use std::hash::{BuildHasher, Hasher};

use chrono::{DateTime, Days, NaiveDate, SecondsFormat};
use serde_json::{Value, json};

use super::{
    actions::{Add, Remove, StringMap},
    schema::PARTITION_COLUMN,
    state::decode_path,
};
use crate::model::{
    Table, Timestamp,
    time::{NANOS_PER_DAY, NANOS_PER_HOUR, NANOS_PER_MILLI},
};

/// Unit of partition of event time that all rows of a part lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bucket {
    /// Hours since the epoch.
    Hour(i64),
    /// Days since the epoch.
    Day(i64),
}

impl Bucket {
    /// Days since the epoch.
    pub fn day(self) -> i64 {
        match self {
            Bucket::Hour(h) => h.div_euclid(24),
            Bucket::Day(d) => d,
        }
    }

    /// First instant behind the bucket.
    pub fn end(self) -> Timestamp {
        Timestamp(match self {
            Bucket::Hour(h) => h.saturating_add(1).saturating_mul(NANOS_PER_HOUR),
            Bucket::Day(d) => d.saturating_add(1).saturating_mul(NANOS_PER_DAY),
        })
    }

    fn tag(self) -> String {
        match self {
            Bucket::Hour(h) => format!("h{h}"),
            Bucket::Day(d) => format!("d{d}"),
        }
    }

    fn from_tag(tag: &str) -> Option<Self> {
        if let Some(h) = tag.strip_prefix('h') { h.parse().ok().map(Bucket::Hour) } else { None }
            .or_else(|| tag.strip_prefix('d')?.parse().ok().map(Bucket::Day))
    }
}

/// A live part: what the log says about one file.
#[derive(Clone, Debug)]
pub struct PartEntry {
    /// Relative to the table's folder.
    pub path: String,
    pub bucket: Bucket,
    /// Bytes of the file.
    pub size: u64,
    pub rows: u64,
    /// Event time of the rows, both inclusive.
    pub min_ts: Timestamp,
    pub max_ts: Timestamp,
    /// 0 a flush, 1 merged in an open hour, 2 merged of a closed one.
    pub level: u8,
    /// Place in commit order: the version of the flush, for a merged part the greatest of its inputs. Of two rows that
    /// are the same point, that of the greater order counts.
    pub order: i64,
    /// Milliseconds since the epoch.
    pub modification_time: i64,
    pub(super) add: Add,
}

impl PartEntry {
    /// Days since the epoch.
    pub fn day(&self) -> i64 {
        self.bucket.day()
    }

    /// A tag given with [`NewPart::tags`].
    pub fn tag(&self, name: &str) -> Option<&str> {
        self.add.tags.as_ref()?.get(name)?.as_deref()
    }

    /// How many bytes at the file's end opening it takes, if its writer said so.
    pub fn tail_bytes(&self) -> Option<u64> {
        self.tag(TAG_TAIL)?.parse().ok()
    }

    /// An entry without a table.
    #[cfg(test)]
    pub(crate) fn for_test(
        bucket: Bucket,
        size: u64,
        level: u8,
        order: i64,
        min_ts: Timestamp,
        max_ts: Timestamp,
    ) -> std::sync::Arc<Self> {
        let part = NewPart {
            path: part_path(bucket, level),
            bucket,
            size,
            rows: size,
            min_ts,
            max_ts,
            level,
            order: Some(order),
            tags: Vec::new(),
        };
        std::sync::Arc::new(Self::from_add(add_of(Table::Logs, &part, order, max_ts, true)))
    }

    /// Entries of other writers lack our tags: then they are taken for a whole day of the top level.
    pub(super) fn from_add(add: Add) -> Self {
        let tag = |name: &str| add.tags.as_ref().and_then(|t| t.get(name)).and_then(|v| v.as_deref());
        let long = |name: &str| tag(name).and_then(|v| v.parse::<i64>().ok());
        let day = add
            .partition_values
            .get(PARTITION_COLUMN)
            .and_then(|v| v.as_deref())
            .and_then(|v| v.parse::<NaiveDate>().ok())
            .map_or(0, day_of_date);
        let bucket = tag(TAG_BUCKET).and_then(Bucket::from_tag).unwrap_or(Bucket::Day(day));
        let stats: Option<Value> = add.stats.as_deref().and_then(|s| serde_json::from_str(s).ok());
        let start = Timestamp(day.saturating_mul(NANOS_PER_DAY));
        PartEntry {
            path: decode_path(&add.path),
            bucket,
            size: u64::try_from(add.size).unwrap_or(0),
            rows: stats.and_then(|s| s["numRecords"].as_u64()).unwrap_or(0),
            min_ts: long(TAG_MIN_TS).map_or(start, Timestamp),
            max_ts: long(TAG_MAX_TS).map_or(Timestamp(bucket.end().nanos() - 1), Timestamp),
            level: tag(TAG_LEVEL).and_then(|v| v.parse().ok()).unwrap_or(2),
            order: long(TAG_ORDER).unwrap_or(0),
            modification_time: add.modification_time,
            add,
        }
    }
}

const TAG_LEVEL: &str = "sightline.level";
const TAG_BUCKET: &str = "sightline.bucket";
pub(super) const TAG_ORDER: &str = "sightline.order";
const TAG_MIN_TS: &str = "sightline.min_ts";
const TAG_MAX_TS: &str = "sightline.max_ts";

/// Bytes at the file's end that a reader needs first; see [`PartEntry::tail_bytes`].
pub(crate) const TAG_TAIL: &str = "sightline.tail_bytes";

/// A part whose file is complete and durable, to be made visible by a commit.
#[derive(Clone, Debug)]
pub struct NewPart {
    /// Relative to the table's folder, from [`part_path`].
    pub path: String,
    pub bucket: Bucket,
    pub size: u64,
    pub rows: u64,
    /// Both inclusive, nanoseconds.
    pub min_ts: Timestamp,
    pub max_ts: Timestamp,
    pub level: u8,
    /// `None`: the version of this commit (a flush). A merged part has the greatest of its inputs.
    pub order: Option<i64>,
    /// Further facts, kept as strings.
    pub tags: Vec<(String, String)>,
}

pub(super) fn add_of(table: Table, part: &NewPart, version: i64, now: Timestamp, data_change: bool) -> Add {
    let mut tags: StringMap = part.tags.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
    for (name, value) in [
        (TAG_LEVEL, part.level.to_string()),
        (TAG_BUCKET, part.bucket.tag()),
        (TAG_ORDER, part.order.unwrap_or(version).to_string()),
        (TAG_MIN_TS, part.min_ts.nanos().to_string()),
        (TAG_MAX_TS, part.max_ts.nanos().to_string()),
    ] {
        tags.insert(name.to_owned(), Some(value));
    }
    Add {
        path: part.path.clone(),
        partition_values: partition_values(part.bucket.day()),
        size: i64::try_from(part.size).unwrap_or(i64::MAX),
        modification_time: now.millis(),
        data_change,
        stats: Some(stats(table, part).to_string()),
        tags: Some(tags),
    }
}

pub(super) fn remove_of(part: &PartEntry, now: Timestamp, data_change: bool) -> Remove {
    Remove {
        path: part.add.path.clone(),
        deletion_timestamp: Some(now.millis()),
        data_change,
        extended_file_metadata: Some(true),
        partition_values: Some(part.add.partition_values.clone()),
        size: Some(part.add.size),
    }
}

/// Statistics other readers prune by. `ts` is microseconds on disk.
pub(super) fn stats(table: Table, part: &NewPart) -> Value {
    let micros =
        |t: Timestamp| json!(DateTime::from_timestamp_nanos(t.nanos()).to_rfc3339_opts(SecondsFormat::Micros, true));
    let (min, max) = match table {
        Table::Logs | Table::Spans => (json!({"ts": micros(part.min_ts)}), json!({"ts": micros(part.max_ts)})),
        // A series lives from first_ms to last_ms, so each bounds one end only.
        Table::MetricSeries => {
            (json!({"first_ms": part.min_ts.millis()}), json!({"last_ms": part.max_ts.nanos() / NANOS_PER_MILLI}))
        }
        _ => (json!({"ts_ms": part.min_ts.millis()}), json!({"ts_ms": part.max_ts.millis()})),
    };
    json!({"numRecords": part.rows, "minValues": min, "maxValues": max})
}

const EPOCH: NaiveDate = match NaiveDate::from_ymd_opt(1970, 1, 1) {
    Some(date) => date,
    None => unreachable!(),
};

/// `YYYY-MM-DD` of a day since the epoch; days outside chrono's years are clamped, which event time cannot reach.
pub fn date_string(day: i64) -> String {
    let date = if day >= 0 {
        EPOCH.checked_add_days(Days::new(day.unsigned_abs()))
    } else {
        EPOCH.checked_sub_days(Days::new(day.unsigned_abs()))
    };
    date.unwrap_or(EPOCH).format("%Y-%m-%d").to_string()
}

pub(super) fn day_of_date(date: NaiveDate) -> i64 {
    date.signed_duration_since(EPOCH).num_days()
}

pub(super) fn partition_values(day: i64) -> StringMap {
    StringMap::from([(PARTITION_COLUMN.to_owned(), Some(date_string(day)))])
}

/// A new, unique path for a part of a bucket: `day=2026-01-02/l0-<32 hex digits>.parquet`.
pub fn part_path(bucket: Bucket, level: u8) -> String {
    let id = new_uuid().replace('-', "");
    format!("{PARTITION_COLUMN}={}/l{level}-{id}.parquet", date_string(bucket.day()))
}

/// A random version 4 UUID. `RandomState` is seeded by the operating system; names need to be distinct, not secret.
pub(crate) fn new_uuid() -> String {
    let random = || {
        let mut h = std::hash::RandomState::new().build_hasher();
        h.write_u32(std::process::id());
        h.write_u128(std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos()));
        h.finish()
    };
    let (a, b) = (random(), random());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        (b >> 48) & 0x3fff | 0x8000,
        b & 0xffff_ffff_ffff
    )
}
